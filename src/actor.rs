//! Actors: a state, and a handler that has it alone, one message at a time.
//!
//! A task that reads a [`Mailbox`] is enough for many programs, and remains the plain way: it may wait for other things
//! beside its messages, and decides everything by itself. An actor is that task with the loop written once. Take one
//! - for a **name without an orphan**: the handler never runs unless the name is had;
//! - for **restarts**: a handler that panics begins anew with a fresh state, after a pause that grows, and the mailbox, its
//!   names and its groups stay;
//! - for an **end that is told**: stopped, failed for a reason, panicked; [`ActorRef::ended`] tells it to whoever holds the
//!   actor, and monitors tell it to all others;
//! - for **a pool** of workers in a group.
//!
//! An actor is a type that implements [`Actor`], or a state and a function put together by [`actor_fn`]:
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), distribute::Error> {
//! use distribute::{Actor, ActorContext, Cookie, Exit, Message, Name, Next, Node, ReplyTo};
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(Serialize, Deserialize)]
//! enum Till { Pay(u64), Total(ReplyTo<u64>) }
//!
//! impl Message for Till {
//!     const TAG: &'static str = "shop.till";
//!     const VERSION: u32 = 1;
//! }
//!
//! struct Desk { total: u64 }
//!
//! impl Actor for Desk {
//!     type Message = Till;
//!
//!     async fn handle(&mut self, message: Till, _context: &ActorContext<Till>) -> Next {
//!         match message {
//!             Till::Pay(amount) => self.total += amount,
//!             Till::Total(reply_to) => drop(reply_to.reply(self.total).await),
//!         }
//!         Next::Continue
//!     }
//! }
//!
//! const DESK: Name<Till> = Name::new("desk");
//!
//! let node = Node::builder("shop@127.0.0.1:0").cookie(Cookie::generate()).start().await?;
//! node.ready().await?;
//! let desk = node.actor(Desk { total: 0 }).named(DESK).await?;
//!
//! let there = node.registry().lookup(DESK)?; // on any node
//! there.send(Till::Pay(7)).await?;
//! assert_eq!(there.ask(Till::Total).await?, 7);
//! assert_eq!(desk.stop().await, Exit::Stopped);
//! # node.shutdown().await;
//! # Ok(()) }
//! ```
//!
//! **Order and loss** are those of the mailbox. A message is handled once at most: the one during which a handler panics is
//! not handled again. While an actor pauses before it begins anew, messages wait in its mailbox, which is bounded as ever.
//!
//! **The node.** An actor does not keep its node running, unless its state holds a [`Node`]. When the node shuts down, the
//! actor handles what had arrived, and ends with [`Exit::Stopped`]; one that pauses before it begins anew ends at once.

mod context;
mod exit;
mod pool;
mod resource;
mod restart;
mod run;
mod spawn;

use std::fmt;
use std::future::Future;
use std::marker::PhantomData;

pub use self::context::ActorContext;
pub use self::exit::{ActorRef, Exit};
pub use self::pool::{Pool, SpawnPool};
pub use self::resource::Resource;
pub use self::restart::{RESTARTS_MAX, Restart};
pub use self::spawn::Spawn;
use crate::driver::mailboxes::RefusedMessage;
use crate::message::Message;
#[cfg(doc)]
use crate::messaging::Mailbox;
#[cfg(doc)]
use crate::node::Node;

/// What an actor does after a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// It waits for the next one.
    Continue,
    /// It ends, with [`Exit::Stopped`]. What has arrived and was not handled is thrown away.
    #[doc(alias = "normal")]
    Stop,
    /// It ends, with [`Exit::Failed`] for this reason, unless its [`Restart`] has it begin anew.
    StopAbnormal(String),
}

impl Next {
    /// [`Next::StopAbnormal`], for the reason that an error gives.
    pub fn fail(reason: impl fmt::Display) -> Self {
        Self::StopAbnormal(reason.to_string())
    }
}

/// A state that handles messages, one at a time. Spawned by [`Node::actor`] and [`Node::pool`].
///
/// All of it runs in one task of the runtime that the actor was spawned on. A handler that waits holds up the messages
/// behind it, and nothing else. There is an example at [`Node::actor`].
#[doc(alias = "gen_server")]
pub trait Actor: Send + Sized + 'static {
    /// What it receives.
    type Message: Message;

    /// Handles a message.
    ///
    /// Messages and calls that it sends belong to the trace of the message. A panic is contained, counted, and ends the
    /// actor or has it begin anew, as its [`Restart`] says.
    fn handle(
        &mut self,
        message: Self::Message,
        context: &ActorContext<Self::Message>,
    ) -> impl Future<Output = Next> + Send;

    /// Is run before the first message, and again after each restart. By default it does nothing. A panic is as one of
    /// [`handle`](Self::handle).
    fn started(&mut self, context: &ActorContext<Self::Message>) -> impl Future<Output = Next> + Send {
        let _ = context;
        std::future::ready(Next::Continue)
    }

    /// Is told of a message that cannot be read: of another type, of a version that is not readable here, or malformed. By
    /// default it goes on. The message is counted and logged, and the node's hook is told of it, all the same.
    fn refused(&mut self, refused: &RefusedMessage, context: &ActorContext<Self::Message>) -> Next {
        let _ = (refused, context);
        Next::Continue
    }

    /// Is run when the actor ends with its state in order: by [`Next::Stop`], [`ActorRef::stop`], [`ActorRef::drain`],
    /// [`ActorContext::stop_after`], a shutdown of the node, or [`Next::StopAbnormal`]; also when it then begins anew. By
    /// default it does nothing.
    ///
    /// After a panic, after [`ActorRef::kill`] and when the runtime goes away it is not run: what is to be closed in any case
    /// belongs into a [`Resource`].
    fn stopping(&mut self, context: &ActorContext<Self::Message>) -> impl Future<Output = ()> + Send {
        let _ = context;
        std::future::ready(())
    }
}

/// An actor of a state and a function that handles messages. It is an `async fn`, or an async closure that captures
/// nothing: what it needs is in the state.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), distribute::Error> {
/// use distribute::{ActorContext, Cookie, Exit, Next, Node, actor_fn};
///
/// async fn add(total: &mut u64, number: u64, _context: &ActorContext<u64>) -> Next {
///     *total += number;
///     if *total < 10 { Next::Continue } else { Next::Stop }
/// }
///
/// let node = Node::builder("here@127.0.0.1:0").cookie(Cookie::generate()).start().await?;
/// let adder = node.actor(actor_fn(0, add)).await?;
/// adder.address().send(3).await?;
/// adder.address().send(7).await?;
/// assert_eq!(adder.ended().await, Exit::Stopped);
///
/// let last = actor_fn(None, async |last: &mut Option<String>, text: String, _: &ActorContext<String>| {
///     *last = Some(text);
///     Next::Continue
/// });
/// node.actor(last).await?.address().send("kept".into()).await?;
/// # node.shutdown().await;
/// # Ok(()) }
/// ```
pub fn actor_fn<S, M, F>(state: S, handler: F) -> ActorFn<S, M, F>
where
    S: Send + 'static,
    M: Message,
    F: for<'a> ActorHandler<'a, S, M> + Send + 'static,
{
    ActorFn { state, handler, message: PhantomData }
}

/// A state and a function as an [`Actor`]. Made by [`actor_fn`].
pub struct ActorFn<S, M, F> {
    state: S,
    handler: F,
    message: PhantomData<fn(M)>,
}

impl<S, M, F> Actor for ActorFn<S, M, F>
where
    S: Send + 'static,
    M: Message,
    F: for<'a> ActorHandler<'a, S, M> + Send + 'static,
{
    type Message = M;

    async fn handle(&mut self, message: M, context: &ActorContext<M>) -> Next {
        (self.handler)(&mut self.state, message, context).await
    }
}

impl<S: fmt::Debug, M, F> fmt::Debug for ActorFn<S, M, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ActorFn").field("state", &self.state).finish_non_exhaustive()
    }
}

/// What [`actor_fn`] takes: a function of the state, the message and the context, whose future is [`Send`]. It is implemented
/// for all of them.
pub trait ActorHandler<'a, S: 'a, M: Message>:
    FnMut(&'a mut S, M, &'a ActorContext<M>) -> <Self as ActorHandler<'a, S, M>>::Handling
{
    /// The future of one message.
    type Handling: Future<Output = Next> + Send + 'a;
}

impl<'a, S: 'a, M: Message, F, R> ActorHandler<'a, S, M> for F
where
    F: FnMut(&'a mut S, M, &'a ActorContext<M>) -> R,
    R: Future<Output = Next> + Send + 'a,
{
    type Handling = R;
}
