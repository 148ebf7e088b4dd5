//! Many actors of one kind, in a group.

use std::fmt;
use std::future::{Future, IntoFuture};
use std::pin::Pin;
use std::sync::Arc;

use super::restart::Restart;
use super::run::Make;
use super::spawn::Prepared;
use super::{Actor, ActorRef, Exit};
use crate::error::SpawnError;
use crate::groups::Group;
use crate::message::Message;
use crate::node::Node;
use crate::registry::Names;

impl Node {
    /// Spawns so many actors that are members of a group, so that any node finds them: await the returned [`SpawnPool`].
    /// `make` makes the state of each, in its own task, and is told its index, from 0 on.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), distribute::Error> {
    /// use distribute::{ActorContext, Cookie, Group, Message, Next, Node, ReplyTo, Restart, actor_fn};
    /// use serde::{Deserialize, Serialize};
    ///
    /// #[derive(Serialize, Deserialize)]
    /// struct Square { number: u64, reply_to: ReplyTo<u64> }
    ///
    /// impl Message for Square {
    ///     const TAG: &'static str = "math.square";
    ///     const VERSION: u32 = 1;
    /// }
    ///
    /// const SQUARERS: Group<Square> = Group::new("squarers");
    ///
    /// async fn square(_index: &mut usize, Square { number, reply_to }: Square, _: &ActorContext<Square>) -> Next {
    ///     let _ = reply_to.reply(number * number).await; // too great a number panics, and no other work is lost
    ///     Next::Continue
    /// }
    ///
    /// let node = Node::builder("here@127.0.0.1:0").cookie(Cookie::generate()).start().await?;
    /// let pool = node.pool(SQUARERS, 4, |index| actor_fn(index, square)).restart(Restart::on_panic()).await?;
    /// assert_eq!((pool.members().len(), node.groups().count(SQUARERS)), (4, 4));
    ///
    /// let worker = node.groups().pick(SQUARERS).random().expect("there are four");
    /// assert_eq!(worker.ask(|reply_to| Square { number: 12, reply_to }).await?, 144);
    /// pool.stop().await;
    /// # node.shutdown().await;
    /// # Ok(()) }
    /// ```
    #[doc(alias = "supervisor")]
    pub fn pool<A: Actor>(
        &self,
        group: Group<A::Message>,
        members: usize,
        make: impl Fn(usize) -> A + Send + Sync + 'static,
    ) -> SpawnPool<A> {
        let (node, make, policy) = (self.clone(), Arc::new(make), Restart::never());
        SpawnPool { node, group, members, make, policy, names: None }
    }
}

/// A pool about to be spawned: await it.
///
/// All its members run when this resolves, or none does.
///
/// # Errors
/// [`SpawnError`]: of a pool of 0, or when one of the members did not get its name or could not join. No handler has run,
/// and all mailboxes are closed.
///
/// # Cancel safety
/// One that is dropped spawns nothing, and leaves no names.
#[must_use = "a pool is spawned when this is awaited"]
pub struct SpawnPool<A: Actor> {
    node: Node,
    group: Group<A::Message>,
    members: usize,
    make: Arc<dyn Fn(usize) -> A + Send + Sync>,
    policy: Restart,
    names: Option<Names<A::Message>>,
}

impl<A: Actor> SpawnPool<A> {
    /// Sets when each member begins anew; each counts its own restarts. The default is [`Restart::never`].
    pub fn restart(mut self, policy: Restart) -> Self {
        self.policy = policy;
        self
    }

    /// Registers each member by a name of this family first, made of its index: `worker/0`, `worker/1`.
    pub fn named_each(mut self, family: Names<A::Message>) -> Self {
        self.names = Some(family);
        self
    }

    async fn run(self) -> Result<Pool<A::Message>, SpawnError> {
        let Self { node, group, members, make, policy, names } = self;
        if members == 0 {
            return Err(SpawnError::EmptyPool);
        }
        let mut prepared = Vec::new();
        for index in 0..members {
            let name = names.as_ref().map(|family| family.name(index)).transpose()?;
            let mailbox = node.mailbox();
            let register = name.map(|name| node.registry().register(name, &mailbox));
            prepared.push(Prepared::<A>::new(&node, mailbox, register, std::slice::from_ref(&group)).await?);
        }
        let members = prepared.into_iter().enumerate().map(|(index, prepared)| {
            let make = make.clone();
            let make: Make<A> = Box::new(move || make(index));
            prepared.spawn(&node, None, policy.clone(), Some(make))
        });
        Ok(Pool { members: members.collect(), group })
    }
}

impl<A: Actor> IntoFuture for SpawnPool<A> {
    type Output = Result<Pool<A::Message>, SpawnError>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.run())
    }
}

impl<A: Actor> fmt::Debug for SpawnPool<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { node, group, members, policy, .. } = self;
        f.debug_struct("SpawnPool")
            .field("node", node)
            .field("group", group)
            .field("members", members)
            .field("restart", policy)
            .finish_non_exhaustive()
    }
}

/// The members of a pool on this node. Cheap to clone. Dropping it leaves them running. There is an example at
/// [`Node::pool`].
pub struct Pool<M: Message> {
    members: Arc<[ActorRef<M>]>,
    group: Group<M>,
}

impl<M: Message> Pool<M> {
    /// Returns the members by their index, those that have ended included.
    pub fn members(&self) -> &[ActorRef<M>] {
        &self.members
    }

    /// Returns the group that they are in.
    pub fn group(&self) -> &Group<M> {
        &self.group
    }

    /// Returns how often members have begun anew, all together.
    pub fn restarts(&self) -> u64 {
        self.members.iter().map(ActorRef::restarts).sum()
    }

    /// Returns how often members have panicked, all together.
    pub fn panics(&self) -> u64 {
        self.members.iter().map(ActorRef::panics).sum()
    }

    /// Waits until all members have ended. The exits are in the order of their indices.
    ///
    /// # Cancel safety
    /// A wait that is dropped changes nothing.
    pub async fn ended(&self) -> Vec<Exit> {
        let mut exits = Vec::new();
        for member in &*self.members {
            exits.push(member.ended().await);
        }
        exits
    }

    /// Stops all members, as [`ActorRef::stop`] does each, and waits for their end.
    ///
    /// # Cancel safety
    /// A stop that is dropped goes on, once it was polled.
    pub async fn stop(&self) -> Vec<Exit> {
        self.members.iter().for_each(ActorRef::ask_to_stop);
        self.ended().await
    }
}

impl<M: Message> Clone for Pool<M> {
    fn clone(&self) -> Self {
        Self { members: self.members.clone(), group: self.group.clone() }
    }
}

impl<M: Message> fmt::Debug for Pool<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("group", &self.group).field("members", &self.members.len()).finish_non_exhaustive()
    }
}
