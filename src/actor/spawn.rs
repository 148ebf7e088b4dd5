//! Spawning one actor.

use std::fmt;
use std::future::{Future, IntoFuture};
use std::pin::Pin;
use std::sync::Arc;

use super::exit::Status;
use super::restart::{Restart, Restarts};
use super::run::{Exiting, Make, Run};
use super::{Actor, ActorContext, ActorRef, Exit};
use crate::driver::mailboxes::Ending;
use crate::error::SpawnError;
use crate::groups::Group;
use crate::messaging::Mailbox;
use crate::node::Node;
use crate::registry::{Name, Register, Registration};
use crate::wire::services::monitor::reason;

impl Node {
    /// Spawns an actor, on the present runtime: await the returned [`Spawn`].
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), distribute::Error> {
    /// use distribute::{Actor, ActorContext, Cookie, Exit, Message, Next, Node, ReplyTo};
    /// use serde::{Deserialize, Serialize};
    ///
    /// #[derive(Serialize, Deserialize)]
    /// struct Add { number: u64, reply_to: ReplyTo<u64> }
    ///
    /// impl Message for Add {
    ///     const TAG: &'static str = "sum.add";
    ///     const VERSION: u32 = 1;
    /// }
    ///
    /// struct Sum(u64);
    ///
    /// impl Actor for Sum {
    ///     type Message = Add;
    ///
    ///     async fn handle(&mut self, Add { number, reply_to }: Add, _: &ActorContext<Add>) -> Next {
    ///         self.0 += number;
    ///         let _ = reply_to.reply(self.0).await; // that nobody waits any more is no harm
    ///         Next::Continue
    ///     }
    /// }
    ///
    /// let node = Node::builder("here@127.0.0.1:0").cookie(Cookie::generate()).start().await?;
    /// let sum = node.actor(Sum(0)).await?;
    /// for (number, total) in [(3, 3), (4, 7), (5, 12)] {
    ///     assert_eq!(sum.address().ask(|reply_to| Add { number, reply_to }).await?, total);
    /// }
    /// assert_eq!(sum.stop().await, Exit::Stopped);
    /// # node.shutdown().await;
    /// # Ok(()) }
    /// ```
    #[doc(alias = "spawn")]
    #[doc(alias = "gen_server")]
    pub fn actor<A: Actor>(&self, actor: A) -> Spawn<A> {
        let (node, policy) = (self.clone(), Restart::never());
        Spawn { node, actor, policy, make: None, register: None, groups: Vec::new() }
    }
}

/// An actor about to be spawned: await it.
///
/// It runs when this resolves, and not before: until it has its name and its groups, what arrives waits.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), distribute::Error> {
/// use distribute::{ActorContext, Cookie, Name, Next, Node, RegisterError, SpawnError, actor_fn};
///
/// const DESK: Name<String> = Name::new("desk");
///
/// async fn print(_: &mut (), text: String, _: &ActorContext<String>) -> Next {
///     println!("{text}");
///     Next::Continue
/// }
///
/// let node = Node::builder("here@127.0.0.1:0").cookie(Cookie::generate()).start().await?;
/// node.ready().await?;
/// let first = node.actor(actor_fn((), print)).named(DESK).await?;
/// let second = node.actor(actor_fn((), print)).named(DESK).await;
/// match second {
///     Err(SpawnError::Register(RegisterError::Taken { owner, .. })) => assert_eq!(owner, *first.pid()),
///     other => panic!("{other:?}"),
/// }
/// # node.shutdown().await;
/// # Ok(()) }
/// ```
///
/// # Errors
/// [`SpawnError`]: it did not get its name, or could not join a group, or the node is shutting down. The handler never
/// runs, and the mailbox is closed.
///
/// # Cancel safety
/// A spawn that is dropped spawns nothing, and leaves no name.
#[must_use = "an actor is spawned when this is awaited"]
pub struct Spawn<A: Actor> {
    node: Node,
    actor: A,
    policy: Restart,
    make: Option<Make<A>>,
    register: Option<Claim<A>>,
    groups: Vec<Group<A::Message>>,
}

type Claim<A> = Box<dyn FnOnce(&Node, &Mailbox<<A as Actor>::Message>) -> Register<<A as Actor>::Message> + Send>;

impl<A: Actor> Spawn<A> {
    /// Registers its mailbox by a name first, in the default scope. Of several names the last is taken.
    pub fn named(self, name: Name<A::Message>) -> Self {
        self.registered(|node, mailbox| node.registry().register(name, mailbox))
    }

    /// Registers its mailbox first, as described: with metadata, in another scope, with a deadline, or to be closed when the
    /// name is lost.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), distribute::Error> {
    /// use distribute::{ActorContext, Cookie, Name, Next, Node, OnLoss, actor_fn};
    ///
    /// const LEDGER: Name<u64> = Name::new("ledger");
    ///
    /// # let node = Node::builder("here@127.0.0.1:0").cookie(Cookie::generate()).start().await?;
    /// # node.ready().await?;
    /// let ledger = actor_fn(0, async |total: &mut u64, number: u64, _: &ActorContext<u64>| {
    ///     *total += number;
    ///     Next::Continue
    /// });
    /// let ledger = node
    ///     .actor(ledger)
    ///     .registered(|node, mailbox| node.registry().register(LEDGER, mailbox).on_loss(OnLoss::CloseMailbox))
    ///     .await?;
    /// assert!(ledger.registration().is_some());
    /// # node.shutdown().await;
    /// # Ok(()) }
    /// ```
    pub fn registered(
        mut self,
        register: impl FnOnce(&Node, &Mailbox<A::Message>) -> Register<A::Message> + Send + 'static,
    ) -> Self {
        self.register = Some(Box::new(register));
        self
    }

    /// Makes its mailbox a member of a group, once it has its name. May be said again for others.
    pub fn in_group(mut self, group: Group<A::Message>) -> Self {
        self.groups.push(group);
        self
    }

    /// Sets when it begins anew, and what it begins anew with. The default is [`Restart::never`].
    pub fn restart(mut self, policy: Restart, make: impl FnMut() -> A + Send + 'static) -> Self {
        self.policy = policy;
        self.make = Some(Box::new(make));
        self
    }

    async fn run(self) -> Result<ActorRef<A::Message>, SpawnError> {
        let Self { node, actor, policy, make, register, groups } = self;
        let mailbox = node.mailbox();
        let register = register.map(|register| register(&node, &mailbox));
        let prepared = Prepared::new(&node, mailbox, register, &groups).await?;
        Ok(prepared.spawn(&node, Some(actor), policy, make))
    }
}

impl<A: Actor> IntoFuture for Spawn<A> {
    type Output = Result<ActorRef<A::Message>, SpawnError>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.run())
    }
}

impl<A: Actor> fmt::Debug for Spawn<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { node, policy, groups, .. } = self;
        f.debug_struct("Spawn")
            .field("node", node)
            .field("restart", policy)
            .field("groups", groups)
            .finish_non_exhaustive()
    }
}

/// A mailbox that has what its actor is to have. Dropping it closes the mailbox, and takes all of that back.
pub(super) struct Prepared<A: Actor> {
    mailbox: Mailbox<A::Message>,
    registration: Option<Registration<A::Message>>,
}

impl<A: Actor> Prepared<A> {
    pub(super) async fn new(
        node: &Node,
        mailbox: Mailbox<A::Message>,
        register: Option<Register<A::Message>>,
        groups: &[Group<A::Message>],
    ) -> Result<Self, SpawnError> {
        if node.shared().is_stopping() {
            return Err(SpawnError::Shutdown);
        }
        let registration = match register {
            Some(register) => Some(register.await?),
            None => None,
        };
        for group in groups {
            node.groups().join(group.clone(), &mailbox)?;
        }
        Ok(Self { mailbox, registration })
    }

    pub(super) fn spawn(
        self,
        node: &Node,
        actor: Option<A>,
        policy: Restart,
        make: Option<Make<A>>,
    ) -> ActorRef<A::Message> {
        let Self { mut mailbox, registration } = self;
        // Here, because a task that is killed before it begins runs nothing.
        mailbox.set_ending(Ending::Failed(reason(Exit::Killed.kind())));
        let (address, shared) = (mailbox.address(), mailbox.home().clone());
        let context = ActorContext::new(node.downgrade(), &mailbox);
        let status = Arc::new(Status::default());
        let ending = Exiting { status: status.clone(), exit: None };
        let run = Run { actor, make, restarts: Restarts::new(policy), context, mailbox, ending };
        let task = tokio::spawn(run.run()).abort_handle();
        ActorRef { address, shared, registration, status, task }
    }
}
