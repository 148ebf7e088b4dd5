//! What an actor knows of itself.

use std::fmt;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use tokio::time::Instant;

use crate::config::LONGEST;
use crate::driver::mailboxes::Queue;
use crate::driver::{Shared, lock};
use crate::id::{NodeId, Pid};
use crate::message::Message;
use crate::messaging::{Address, Mailbox};
use crate::monitor::{Monitored, Notice, Watching, watch_into};
use crate::node::{Node, WeakNode};

/// What an actor knows of itself, and can do to itself. Handed to its handler.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), distribute::Error> {
/// use std::time::Duration;
/// use distribute::{Actor, ActorContext, Address, Cookie, Exit, Message, Next, Node, Notice};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize, Deserialize)]
/// enum Event {
///     Join(Address<String>),
///     #[serde(skip)]
///     Gone(Notice),
/// }
///
/// impl Message for Event {
///     const TAG: &'static str = "chat.event";
///     const VERSION: u32 = 1;
/// }
///
/// /// A room that closes when the last guest has gone, or when nothing happens for an hour.
/// struct Room { guests: usize }
///
/// impl Actor for Room {
///     type Message = Event;
///
///     async fn handle(&mut self, event: Event, context: &ActorContext<Event>) -> Next {
///         context.stop_after(Duration::from_secs(3600));
///         match event {
///             Event::Join(guest) => {
///                 context.monitor(&guest, Event::Gone);
///                 self.guests += 1;
///             }
///             Event::Gone(_) => self.guests -= 1,
///         }
///         if self.guests > 0 { Next::Continue } else { Next::Stop }
///     }
/// }
///
/// let node = Node::builder("here@127.0.0.1:0").cookie(Cookie::generate()).start().await?;
/// let room = node.actor(Room { guests: 0 }).await?;
/// let guest = node.mailbox::<String>();
/// room.address().send(Event::Join(guest.address())).await?;
/// drop(guest);
/// assert_eq!(room.ended().await, Exit::Stopped);
/// # node.shutdown().await;
/// # Ok(()) }
/// ```
pub struct ActorContext<M: Message> {
    address: Address<M>,
    node: WeakNode,
    shared: Arc<Shared>,
    queue: Weak<Queue<M>>,
    stop_at: Mutex<Option<Instant>>,
    sender: NodeId,
}

impl<M: Message> ActorContext<M> {
    pub(super) fn new(node: WeakNode, mailbox: &Mailbox<M>) -> Self {
        Self {
            address: mailbox.address(),
            node,
            shared: mailbox.home().clone(),
            queue: Arc::downgrade(mailbox.queue()),
            stop_at: Mutex::new(None),
            sender: mailbox.home().id(),
        }
    }

    /// Returns an address of the actor's own mailbox.
    #[doc(alias = "self")]
    pub fn address(&self) -> &Address<M> {
        &self.address
    }

    /// Returns the identity of the actor's own mailbox. It stays through restarts.
    pub fn pid(&self) -> &Pid {
        self.address.pid()
    }

    /// Returns the node that the actor lives on; `None` once its last handle is dropped, from when on it shuts down. A
    /// state that keeps it keeps the node running.
    pub fn node(&self) -> Option<Node> {
        self.node.upgrade()
    }

    /// Returns the node that sent the message which is being handled. Before the first one, it is this node.
    pub fn sender(&self) -> &NodeId {
        &self.sender
    }

    pub(super) fn set_sender(&mut self, sender: NodeId) {
        self.sender = sender;
    }

    /// Stops the actor when so much time has passed, as [`ActorRef::stop`](super::ActorRef::stop) does: after the message
    /// that it is handling then. A later call takes the place of an earlier one, so one with each message is a limit for
    /// idleness. More than a year counts as a year.
    pub fn stop_after(&self, time: Duration) {
        *lock(&self.stop_at) = Some(Instant::now() + time.min(LONGEST));
    }

    /// Takes [`stop_after`](Self::stop_after) back.
    pub fn stay(&self) {
        *lock(&self.stop_at) = None;
    }

    pub(super) fn stop_at(&self) -> Option<Instant> {
        *lock(&self.stop_at)
    }

    /// Watches a mailbox, a node or the owner of a name, as [`Mailbox::monitor`] does: the notice becomes a message of this
    /// actor. The watch stays through restarts, and ends with the actor.
    pub fn monitor(
        &self,
        target: impl Into<Monitored>,
        message: impl FnOnce(Notice) -> M + Send + 'static,
    ) -> Watching {
        self.watch(target.into(), false, message)
    }

    /// As [`monitor`](Self::monitor), until the target is gone for certain: see [`Mailbox::monitor_until_dead`].
    pub fn monitor_until_dead(
        &self,
        target: impl Into<Monitored>,
        message: impl FnOnce(Notice) -> M + Send + 'static,
    ) -> Watching {
        self.watch(target.into(), true, message)
    }

    fn watch(
        &self,
        target: Monitored,
        until_dead: bool,
        message: impl FnOnce(Notice) -> M + Send + 'static,
    ) -> Watching {
        watch_into(&self.shared, &self.queue, self.pid().serial(), target, until_dead, message)
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }
}

impl<M: Message> fmt::Debug for ActorContext<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ActorContext").field("pid", self.pid()).field("sender", &self.sender).finish_non_exhaustive()
    }
}
