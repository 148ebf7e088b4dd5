//! Remote calls: a method served on one node, called from another.
//!
//! [`Rpc::call`] asks for one answer, [`Rpc::multicall`] asks many nodes, [`Rpc::cast`] wants no answer, and
//! [`Rpc::call_stream`] gets many. A call ends at its deadline, at the end of the session with the callee, or with an
//! answer, whichever is first. The error says whether the handler cannot have run, may have run, or ran
//! ([`CallError::effect`](crate::CallError::effect)). The library never repeats a call.
//!
//! What a handler calls ends when its own call does: the deadline travels with the request, and shrinks on the way.

mod call;
mod cast;
mod context;
mod method;
mod multicall;
mod serve;
mod stream;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

pub use self::call::Call;
pub use self::cast::Cast;
pub use self::context::{CallContext, Caller};
pub(crate) use self::context::{Scope, inherited};
pub use self::method::Method;
pub use self::multicall::Multicall;
pub use self::serve::{Serving, Sink};
pub use self::stream::{CallStream, StreamCall};
use crate::driver::Shared;
use crate::driver::exchange::{Content, Kind};
use crate::error::ServeError;
use crate::id::{NodeId, NodeName};
use crate::message::{self, Message, schema};

/// Calls to and from one node. Cheap to clone.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), distribute::Error> {
/// use distribute::{Cookie, Method, Node};
///
/// const LENGTH: Method<String, u64> = Method::new("text.length");
///
/// let node = Node::builder("here@127.0.0.1:0").cookie(Cookie::generate()).start().await?;
/// node.rpc().serve(LENGTH, |_call, text| async move { text.len() as u64 })?;
/// assert_eq!(node.rpc().call(node.name(), LENGTH, "seven".into()).await?, 5);
/// # node.shutdown().await;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
#[doc(alias = "erpc")]
pub struct Rpc {
    shared: Arc<Shared>,
}

impl Rpc {
    pub(crate) fn new(shared: &Arc<Shared>) -> Self {
        Self { shared: shared.clone() }
    }

    /// Serves a method until the returned handle says stop, or the node shuts down.
    ///
    /// The handler runs in a task of its own for each call. It is dropped when the caller gives up, at the deadline, and
    /// when the session with the caller ends; a panic is the caller's error and nothing else. What it calls has no more
    /// time than it has itself, and belongs to its trace; see [`CallContext::scope`] for tasks that it spawns.
    ///
    /// At most [`Config::handlers_max`](crate::Config::handlers_max) handlers of the node run at once, and
    /// [`Config::handlers_per_peer`](crate::Config::handlers_per_peer) for one peer; their requests take
    /// [`Config::calls_budget`](crate::Config::calls_budget) bytes at most. A call beyond fails with
    /// [`CallError::Overloaded`](crate::CallError::Overloaded).
    ///
    /// # Errors
    /// [`ServeError::Taken`] when the node serves that name.
    pub fn serve<Q, R, F, Fut>(&self, method: Method<Q, R>, handler: F) -> Result<Serving, ServeError>
    where
        Q: Message,
        R: Message,
        F: Fn(CallContext, Q) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = R> + Send + 'static,
    {
        serve::serve(&self.shared, method, handler)
    }

    /// Serves a method whose handler answers at once, where the request arrives: it saves the task that [`Rpc::serve`]
    /// starts for each call.
    ///
    /// For a look-up, a counter, a hand-over to a channel. While it runs nothing else of the caller's node is read, so it
    /// must not block, nor compute for longer than some microseconds. Nothing can cancel it; a panic is the caller's error
    /// and nothing else. All else is as with [`Rpc::serve`].
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), distribute::Error> {
    /// use std::sync::atomic::{AtomicU64, Ordering};
    /// use distribute::{Cookie, Method, Node};
    ///
    /// const NEXT: Method<(), u64> = Method::new("next");
    ///
    /// let node = Node::builder("here@127.0.0.1:0").cookie(Cookie::generate()).start().await?;
    /// let next = AtomicU64::new(0);
    /// node.rpc().serve_inline(NEXT, move |_call, ()| next.fetch_add(1, Ordering::Relaxed))?;
    /// assert_eq!(node.rpc().call(node.name(), NEXT, ()).await?, 0);
    /// # node.shutdown().await;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`ServeError::Taken`] when the node serves that name.
    pub fn serve_inline<Q, R, F>(&self, method: Method<Q, R>, handler: F) -> Result<Serving, ServeError>
    where
        Q: Message,
        R: Message,
        F: Fn(CallContext, Q) -> R + Send + Sync + 'static,
    {
        serve::serve_inline(&self.shared, method, handler)
    }

    /// Serves a method that answers with a stream of items, as [`Rpc::serve`] does one answer.
    ///
    /// The handler sends what it has into the [`Sink`], which waits while the caller does not read; the stream ends with
    /// the handler.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), distribute::Error> {
    /// use distribute::{Cookie, Method, Node};
    ///
    /// const COUNT: Method<u64, u64> = Method::new("count");
    ///
    /// let node = Node::builder("here@127.0.0.1:0").cookie(Cookie::generate()).start().await?;
    /// node.rpc().serve_stream(COUNT, |_call, to, mut sink| async move {
    ///     for n in 0..to {
    ///         let _ = sink.send(n).await;
    ///     }
    /// })?;
    /// let mut numbers = node.rpc().call_stream(node.name(), COUNT, 3).await?;
    /// while let Some(number) = numbers.next().await {
    ///     println!("{}", number?);
    /// }
    /// # node.shutdown().await;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`ServeError::Taken`] when the node serves that name.
    pub fn serve_stream<Q, R, F, Fut>(&self, method: Method<Q, R>, handler: F) -> Result<Serving, ServeError>
    where
        Q: Message,
        R: Message,
        F: Fn(CallContext, Q, Sink<R>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        serve::serve_stream(&self.shared, method, handler)
    }

    /// Calls a method of a node: await the returned [`Call`].
    ///
    /// The node is named by its [`NodeName`], or by a [`NodeId`], which only that life of it answers. Without a session
    /// the node is dialled. A call to this node takes the same way, without a link.
    pub fn call<'a, Q: Message, R: Message>(
        &'a self,
        node: impl Callee,
        method: Method<Q, R>,
        question: Q,
    ) -> Call<'a, Q, R> {
        Call::new(self, Target::of(&node), method, question)
    }

    /// Calls a method of a node and wants no answer: await the returned [`Cast`].
    pub fn cast<'a, Q: Message, R: Message>(
        &'a self,
        node: impl Callee,
        method: Method<Q, R>,
        question: Q,
    ) -> Cast<'a, Q, R> {
        Cast::new(self, Target::of(&node), method, question)
    }

    /// Calls a method of many nodes at once: await the returned [`Multicall`].
    pub fn multicall<'a, Q: Message, R: Message>(
        &'a self,
        nodes: impl IntoIterator<Item = impl Callee>,
        method: Method<Q, R>,
        question: Q,
    ) -> Multicall<'a, Q, R> {
        Multicall::new(self, nodes.into_iter().map(|node| Target::of(&node)).collect(), method, question)
    }

    /// Calls a method that answers with a stream of items: await the returned [`StreamCall`], then read the
    /// [`CallStream`].
    pub fn call_stream<'a, Q: Message, R: Message>(
        &'a self,
        node: impl Callee,
        method: Method<Q, R>,
        question: Q,
    ) -> StreamCall<'a, Q, R> {
        StreamCall::new(self, Target::of(&node), method, question)
    }

    /// Returns what has happened to the calls of this node since its start, and what is open now.
    pub fn stats(&self) -> CallStats {
        let counters = &self.shared.counters;
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let (handlers, handler_bytes) = self.shared.methods.load();
        CallStats {
            made: count(&counters.made),
            answered: count(&counters.answered),
            failed: count(&counters.failed),
            timed_out: count(&counters.timed_out),
            given_up: count(&counters.given_up),
            late: count(&counters.late),
            served: count(&counters.served),
            overloaded: count(&counters.overloaded),
            refused: count(&counters.refused),
            casts: count(&counters.casts),
            casts_failed: count(&counters.casts_failed),
            waiting: self.shared.sessions().iter().map(|session| session.calls_waiting()).sum(),
            asking: self.shared.asks.waiting(),
            handlers,
            handler_bytes,
        }
    }
}

/// What happened to the calls of one node. Counts only rise; what is open now goes back to zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CallStats {
    /// Calls that this node made, streams and questions to mailboxes among them.
    pub made: u64,
    /// Of these: how many were answered, or came to the end of their stream.
    pub answered: u64,
    /// Of these: how many failed, other than in time.
    pub failed: u64,
    /// Of these: how many had no answer in time.
    pub timed_out: u64,
    /// Of these: how many were dropped by whoever made them.
    pub given_up: u64,
    /// Answers, items and replies that arrived when nobody waited for them any more, and were dropped.
    pub late: u64,
    /// Handlers that this node started.
    pub served: u64,
    /// Calls and casts that this node turned away as too many.
    pub overloaded: u64,
    /// Calls and casts that this node turned away for another reason: there is no such method, or it shuts down.
    pub refused: u64,
    /// Casts that this node made.
    pub casts: u64,
    /// Casts to this node that reached no handler, or one that did not come to its end.
    pub casts_failed: u64,
    /// Now: calls to other nodes that wait for answers.
    pub waiting: usize,
    /// Now: questions to mailboxes that wait for replies.
    pub asking: usize,
    /// Now: handlers at work.
    pub handlers: usize,
    /// Now: bytes of the requests of handlers at work.
    pub handler_bytes: usize,
}

/// What can be called: a node's name, or one life of a node.
pub trait Callee {
    /// The node's name.
    fn name(&self) -> &NodeName;
    /// The life that is meant, when only that one will do.
    fn life(&self) -> Option<&NodeId>;
}

impl Callee for &NodeName {
    fn name(&self) -> &NodeName {
        self
    }

    fn life(&self) -> Option<&NodeId> {
        None
    }
}

impl Callee for &NodeId {
    fn name(&self) -> &NodeName {
        NodeId::name(self)
    }

    fn life(&self) -> Option<&NodeId> {
        Some(self)
    }
}

/// The node that is meant.
#[derive(Clone, Debug)]
struct Target {
    name: NodeName,
    life: Option<NodeId>,
}

impl Target {
    fn of(node: &impl Callee) -> Self {
        Self { name: node.name().clone(), life: node.life().cloned() }
    }
}

pub(crate) fn kind<M: Message>() -> Kind {
    Kind { id: std::any::TypeId::of::<M>(), schema: schema::<M> }
}

/// A value for the other side.
pub(crate) fn content<M: Message>(value: &M) -> Result<Content, crate::EncodeError> {
    Ok(Content { kind: kind::<M>(), body: message::body(value)? })
}
