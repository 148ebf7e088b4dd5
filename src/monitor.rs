//! To be told when a mailbox or a node is gone.
//!
//! **Once, always.** A watch has exactly one notice, unless it is ended before. Beginning one never fails: what is gone
//! already, or cannot be reached, has its notice soon. Without a session with the target's node one is made, within
//! [`Config::connect_timeout`](crate::Config::connect_timeout).
//!
//! **Prompt or in band.** The future of [`Node::monitor`](crate::Node::monitor) resolves as soon as the end is known; messages
//! of the target may be read after that. The notice of [`Mailbox::monitor`] is read after everything that the target's node
//! had sent to that mailbox before the end.
//!
//! **What it costs.** A node asks another once for all that watch one of its mailboxes, and is told once. As long as it
//! watches something of a peer it asks their link for signs of life.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};

use tokio::sync::oneshot;

use crate::driver::Shared;
use crate::driver::mailboxes::{self, Queue};
use crate::id::{NodeId, NodeName, Pid};
use crate::message::Message;
use crate::messaging::{Address, Mailbox};
use crate::proto::monitor::{Fate, Target, Told, WatchId};
use crate::registry::Name;
use crate::wire::services::Text;

/// Whom a monitor is about. Addresses, mailboxes, [`Pid`], [`NodeId`], [`NodeName`] and [`Name`] can be made into it.
///
/// A name is looked up when the watch begins: who has it then is watched, wherever the name goes later.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Monitored {
    /// A mailbox.
    Mailbox(Pid),
    /// One life of a node.
    Node(NodeId),
    /// The present life of a node: the one that there is a session with, or that is a member. When there is neither, the
    /// notice is [`Fate::Disconnected`] at once: [connect](crate::Cluster::connect) first.
    NodeName(NodeName),
    /// The owner of a name, as far as this node knows. When there is none, the notice is [`Fate::NoSuchMailbox`] at once.
    Name {
        /// The scope of the name; the default scope's is empty.
        scope: String,
        /// The name.
        name: String,
    },
}

impl Monitored {
    /// Looks names up. Tells what is to be watched, or why that is not to be had.
    fn resolve(self, shared: &Shared) -> (Self, Result<Target, Fate>) {
        match self {
            Self::Mailbox(pid) => (Self::Mailbox(pid.clone()), Ok(Target::Mailbox(pid))),
            Self::Node(node) => (Self::Node(node.clone()), Ok(Target::Node(node))),
            Self::NodeName(name) => match life(shared, &name) {
                Some(node) => (Self::Node(node.clone()), Ok(Target::Node(node))),
                None => (Self::NodeName(name), Err(Fate::Disconnected)),
            },
            Self::Name { scope, name } => match shared.owner_of(&scope, &name) {
                Some(pid) => (Self::Mailbox(pid.clone()), Ok(Target::Mailbox(pid))),
                None => (Self::Name { scope, name }, Err(Fate::NoSuchMailbox)),
            },
        }
    }
}

/// The present life of a node, as far as it is known here.
fn life(shared: &Shared, name: &NodeName) -> Option<NodeId> {
    let own = shared.id();
    if own.name() == name {
        return Some(own);
    }
    let session = shared.session(name).map(|session| session.peer.clone());
    session.or_else(|| shared.members.member(name).map(|member| member.id))
}

impl fmt::Display for Monitored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mailbox(pid) => pid.fmt(f),
            Self::Node(node) => node.fmt(f),
            Self::NodeName(name) => name.fmt(f),
            Self::Name { scope, name } if scope.is_empty() => f.write_str(name),
            Self::Name { scope, name } => write!(f, "{scope}/{name}"),
        }
    }
}

impl<M: Message> From<&Address<M>> for Monitored {
    fn from(address: &Address<M>) -> Self {
        Self::Mailbox(address.pid().clone())
    }
}

impl<M: Message> From<&Mailbox<M>> for Monitored {
    fn from(mailbox: &Mailbox<M>) -> Self {
        Self::Mailbox(mailbox.pid())
    }
}

impl From<Pid> for Monitored {
    fn from(pid: Pid) -> Self {
        Self::Mailbox(pid)
    }
}

impl From<&Pid> for Monitored {
    fn from(pid: &Pid) -> Self {
        Self::Mailbox(pid.clone())
    }
}

impl From<NodeId> for Monitored {
    fn from(node: NodeId) -> Self {
        Self::Node(node)
    }
}

impl From<&NodeId> for Monitored {
    fn from(node: &NodeId) -> Self {
        Self::Node(node.clone())
    }
}

/// The name in the default scope.
impl<M> From<&Name<M>> for Monitored {
    fn from(name: &Name<M>) -> Self {
        Self::Name { scope: String::new(), name: name.name().to_owned() }
    }
}

impl From<&NodeName> for Monitored {
    fn from(name: &NodeName) -> Self {
        Self::NodeName(name.clone())
    }
}

/// The end of a watch.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
#[doc(alias = "DOWN")]
pub struct Notice {
    /// Whom it is about. In place of a name that somebody had stands who had it.
    pub target: Monitored,
    /// What became of it.
    pub fate: Fate,
    /// Why it failed.
    pub(crate) reason: Option<Text>,
}

impl Notice {
    fn new(target: Monitored, told: Told) -> Self {
        let Told { fate, reason } = told;
        Self { target, fate, reason }
    }

    /// Returns why the target failed, when its fate is [`Fate::Failed`]: what its owner said, cut to
    /// [`REASON_MAX`](crate::REASON_MAX) bytes.
    pub fn reason(&self) -> Option<&str> {
        self.reason.as_deref()
    }
}

/// A watch, and the future of its notice. From [`Node::monitor`](crate::Node::monitor).
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), distribute::Error> {
/// use distribute::{Cookie, Fate, Node};
///
/// let node = Node::builder("here@127.0.0.1:0").cookie(Cookie::generate()).start().await?;
/// let numbers = node.mailbox::<u64>();
/// let gone = node.monitor(&numbers);
/// drop(numbers);
/// assert_eq!(gone.await.fate, Fate::Closed);
/// # node.shutdown().await;
/// # Ok(()) }
/// ```
///
/// The watch is on since the monitor was made: of a mailbox that closes before its node has heard of the watch, the notice
/// is [`Fate::NoSuchMailbox`]. When this node shuts down, the notice is [`Fate::Disconnected`].
///
/// # Cancel safety
/// Dropping it ends the watch. Polled by reference in a loop it loses nothing.
#[doc(alias = "demonitor")]
#[must_use = "a monitor that is dropped is ended"]
pub struct Monitor {
    target: Monitored,
    shared: Arc<Shared>,
    watch: Option<WatchId>,
    told: oneshot::Receiver<Told>,
}

impl Monitor {
    pub(crate) fn begin(shared: &Arc<Shared>, target: Monitored, until_dead: bool) -> Self {
        let (target, resolved) = target.resolve(shared);
        let (watch, told) = match resolved {
            Ok(target) => {
                let (watch, told) = shared.watch(target, until_dead);
                (Some(watch), told)
            }
            Err(known) => {
                let (tell, told) = oneshot::channel();
                let _ = tell.send(known.into());
                (None, told)
            }
        };
        Self { target, shared: shared.clone(), watch, told }
    }

    /// Returns whom it is about.
    pub fn target(&self) -> &Monitored {
        &self.target
    }
}

impl Future for Monitor {
    type Output = Notice;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Notice> {
        let told = std::task::ready!(Pin::new(&mut self.told).poll(context));
        Poll::Ready(Notice::new(self.target.clone(), told.unwrap_or_else(|_| Fate::Disconnected.into())))
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        if let Some(watch) = self.watch {
            self.shared.unwatch(watch);
        }
    }
}

impl fmt::Debug for Monitor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Monitor({})", self.target)
    }
}

impl<M: Message> Mailbox<M> {
    /// Watches a mailbox, a node or the owner of a name. The notice becomes a message of this mailbox, by `message`, and is
    /// received as such: once, and after everything that the target's node had sent here before.
    ///
    /// It takes no room, and comes from this node. `message` runs when it is received, in the task that receives. Dropping
    /// the mailbox ends the watch; dropping the [`Watching`] does not.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), distribute::Error> {
    /// use distribute::{Cookie, Fate, Message, Node, Notice};
    /// use serde::{Deserialize, Serialize};
    ///
    /// #[derive(Serialize, Deserialize)]
    /// enum Event {
    ///     Order(u64),
    ///     #[serde(skip)]
    ///     Down(Notice),
    /// }
    ///
    /// impl Message for Event {
    ///     const TAG: &'static str = "shop.event";
    ///     const VERSION: u32 = 1;
    /// }
    ///
    /// let node = Node::builder("here@127.0.0.1:0").cookie(Cookie::generate()).start().await?;
    /// let mut events = node.mailbox::<Event>();
    /// let desk = node.mailbox::<u64>();
    /// events.monitor(&desk, Event::Down);
    /// events.address().send(Event::Order(7)).await?;
    /// drop(desk);
    /// assert!(matches!(events.recv().await, Some(Event::Order(7))));
    /// assert!(matches!(events.recv().await, Some(Event::Down(notice)) if notice.fate == Fate::Closed));
    /// # node.shutdown().await;
    /// # Ok(()) }
    /// ```
    pub fn monitor(
        &self,
        target: impl Into<Monitored>,
        message: impl FnOnce(Notice) -> M + Send + 'static,
    ) -> Watching {
        watch_into(self.shared(), &Arc::downgrade(self.queue()), self.pid().serial(), target.into(), false, message)
    }

    /// As [`monitor`](Self::monitor), until the target is gone for certain: see
    /// [`Node::monitor_until_dead`](crate::Node::monitor_until_dead). Messages that a lost session took along do not come
    /// before the notice, nor after it.
    pub fn monitor_until_dead(
        &self,
        target: impl Into<Monitored>,
        message: impl FnOnce(Notice) -> M + Send + 'static,
    ) -> Watching {
        watch_into(self.shared(), &Arc::downgrade(self.queue()), self.pid().serial(), target.into(), true, message)
    }
}

/// Begins a watch whose notice becomes a message of the mailbox with that queue and serial.
pub(crate) fn watch_into<M: Message>(
    shared: &Arc<Shared>,
    queue: &Weak<Queue<M>>,
    serial: u64,
    target: Monitored,
    until_dead: bool,
    message: impl FnOnce(Notice) -> M + Send + 'static,
) -> Watching {
    let (target, resolved) = target.resolve(shared);
    let is_cancelled = Arc::new(AtomicBool::new(false));
    let queue = queue.clone();
    let (about, unwanted) = (target.clone(), is_cancelled.clone());
    let deliver = move |told| {
        let make = move || {
            let is_wanted = !unwanted.load(Ordering::Acquire);
            is_wanted.then(|| message(Notice::new(about, told)))
        };
        if let Some(queue) = queue.upgrade() {
            queue.push_notice(mailboxes::Notice::new(make));
        }
    };
    let watch = match resolved {
        Ok(target) => Some(shared.watch_in_band(target, serial, until_dead, Box::new(deliver))),
        Err(known) => {
            deliver(known.into());
            None
        }
    };
    Watching { target, shared: shared.clone(), watch, is_cancelled }
}

/// A watch whose notice comes to a mailbox. From [`Mailbox::monitor`]; dropping it changes nothing.
pub struct Watching {
    target: Monitored,
    shared: Arc<Shared>,
    watch: Option<WatchId>,
    is_cancelled: Arc<AtomicBool>,
}

impl Watching {
    /// Ends the watch: a notice that was not received yet never will be. Afterwards, and when it was received, it does
    /// nothing.
    #[doc(alias = "demonitor")]
    #[doc(alias = "flush")]
    pub fn cancel(&self) {
        self.is_cancelled.store(true, Ordering::Release);
        if let Some(watch) = self.watch {
            self.shared.unwatch(watch);
        }
    }

    /// Returns whom it is about.
    pub fn target(&self) -> &Monitored {
        &self.target
    }

    #[cfg(test)]
    pub(crate) fn id(&self) -> WatchId {
        self.watch.expect("a target that was found")
    }
}

impl fmt::Debug for Watching {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Watching({})", self.target)
    }
}
