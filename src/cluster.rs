//! The links of a node, as a user sees them.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::config::LONGEST;
use crate::driver::events::NodeEvent;
use crate::driver::subscriber::Subscriber;
use crate::driver::{Command, Shared, lock};
use crate::error::{ConnectError, PingError};
use crate::id::{NodeId, NodeName};
use crate::proto::admission::AdmissionCounters;
use crate::wire::Unreadable;

/// The nodes that this one has sessions with. Cheap to clone.
///
/// Links are made when they are needed, so nobody has to call [`Cluster::connect`]; it is there to learn early whether a
/// node can be reached.
#[derive(Clone, Debug)]
pub struct Cluster {
    shared: Arc<Shared>,
}

impl Cluster {
    pub(crate) fn new(shared: &Arc<Shared>) -> Self {
        Self { shared: shared.clone() }
    }

    /// Connects to a node, if there is no link to it yet, and returns who answered.
    ///
    /// Dials at once, whatever failed before. To this very node it does nothing.
    ///
    /// # Errors
    /// [`ConnectError`], within [`Config::connect_timeout`](crate::Config::connect_timeout).
    ///
    /// # Cancel safety
    /// A connect that is dropped may still lead to a session.
    #[doc(alias = "net_adm")]
    pub async fn connect(&self, name: &NodeName) -> Result<NodeId, ConnectError> {
        let own = self.shared.id();
        if own.name() == name {
            return Ok(own);
        }
        Ok(self.shared.connect(name, true).await?.peer.clone())
    }

    /// Ends the session with a node in good order, if there is one: what was accepted is still delivered, unless it waits
    /// for a link to be made.
    ///
    /// Returns once it is ended. The next send or call dials again.
    ///
    /// # Cancel safety
    /// A disconnect that is dropped goes on.
    pub async fn disconnect(&self, name: &NodeName) {
        let Some(session) = self.shared.session(name) else { return };
        let mut events = self.node_events();
        self.shared.command(Command::Disconnect { peer: name.clone() });
        loop {
            if session.is_ended() {
                return;
            }
            if events.next().await.is_none() {
                return;
            }
        }
    }

    /// Leaves the cluster: says good-bye, so that the other members list this node as
    /// [`Left`](crate::MemberState::Left) at once and nobody takes it for dead; then the sessions end.
    ///
    /// Waits until members are told, for a second at most: what the network does not carry in this time is not told,
    /// and the node is declared dead instead. [`Node::shutdown`](crate::Node::shutdown) does this too, so call it only
    /// where the process goes on without the cluster.
    ///
    /// It is final for this life of the node, which is no member any more: its [`Membership`](crate::Membership) is
    /// empty and over, it looks for no others and dials none, so sends and calls to other nodes fail as after a
    /// shutdown. Its own mailboxes and methods go on for callers on this node. Start another node to come back. A
    /// second call does nothing.
    ///
    /// # Cancel safety
    /// A leave that is dropped goes on.
    pub async fn leave(&self) {
        /// Also when nobody waits for the good-bye to be told.
        struct Over<'a>(&'a Shared);
        impl Drop for Over<'_> {
            fn drop(&mut self) {
                self.0.members.close();
            }
        }
        if self.shared.members.is_closed() {
            return;
        }
        let (done, told) = oneshot::channel();
        self.shared.command(Command::Leave { done });
        let _over = Over(&self.shared);
        let _ = tokio::time::timeout(GOODBYE, told).await;
    }

    /// Returns the nodes that this one has a session with, in the order of their names.
    #[doc(alias = "nodes")]
    pub fn peers(&self) -> Vec<NodeId> {
        let mut peers: Vec<_> = self.shared.sessions().iter().map(|session| session.peer.clone()).collect();
        peers.sort();
        peers
    }

    /// Asks a node for a sign of life, and returns how long it took. Dials if there is no link.
    ///
    /// A ping never ends a link or a session, whatever comes of it. To this very node it takes no time.
    ///
    /// # Errors
    /// [`PingError`], within the given time.
    ///
    /// # Cancel safety
    /// A ping that is dropped leaves nothing behind.
    pub async fn ping(&self, name: &NodeName, patience: Duration) -> Result<Duration, PingError> {
        if self.shared.id().name() == name {
            return Ok(Duration::ZERO);
        }
        let deadline = Instant::now() + patience.min(LONGEST);
        let asking = async {
            self.shared.connect(name, false).await.map_err(PingError::NotConnected)?;
            let (done, pinged) = oneshot::channel();
            let sent = Instant::now();
            self.shared.command(Command::Ping { peer: name.clone(), done });
            let pong = pinged.await.ok().flatten().ok_or(PingError::Disconnected)?;
            pong.await.map_err(|_| PingError::Disconnected)?;
            Ok(sent.elapsed())
        };
        tokio::time::timeout_at(deadline, asking).await.unwrap_or(Err(PingError::Timeout(patience)))
    }

    /// Returns how many messages of this node the mailboxes of a node could not read, in the present session; `None`
    /// without one. The node tells of them soon after they are read.
    pub fn refusals(&self, name: &NodeName) -> Option<Refusals> {
        let session = self.shared.session(name)?;
        let count = |reason| session.refusals.count(reason);
        Some(Refusals {
            wrong_type: count(Unreadable::Tag),
            wrong_version: count(Unreadable::Version),
            malformed: count(Unreadable::Malformed),
        })
    }

    /// Returns what has become of those who dialled this node, since its start.
    pub fn admission(&self) -> AdmissionCounters {
        lock(&self.shared.tallies).admission
    }

    /// Subscribes to what happens to sessions: first an `Up` for each present one, then every change.
    ///
    /// For each node, `Up` and `Down` alternate. `Up` comes before the first message of a session, `Down` after the last.
    /// A subscriber that leaves more than [`Config::events_max`](crate::Config::events_max) events unread loses them, and
    /// is told [`NodeEvent::Lagged`].
    #[doc(alias = "monitor_nodes")]
    pub fn node_events(&self) -> NodeEvents {
        NodeEvents { subscriber: self.shared.events.subscribe() }
    }
}

/// How long a good-bye may take to be told.
const GOODBYE: Duration = Duration::from_secs(1);

/// Messages that were sent and could not be read, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Refusals {
    /// The mailbox takes messages of another type.
    pub wrong_type: u64,
    /// The reader does not know the version.
    pub wrong_version: u64,
    /// The bytes are not what the type expects, or would take more than they may.
    pub malformed: u64,
}

/// A subscription to [`NodeEvent`]s, also a [`Stream`](futures_core::Stream). Dropping it ends it.
#[derive(Debug)]
pub struct NodeEvents {
    subscriber: Arc<Subscriber<NodeEvent>>,
}

impl NodeEvents {
    /// Waits for the next event; `None` once the node is shut down.
    ///
    /// # Cancel safety
    /// Dropping it loses no event.
    pub async fn next(&mut self) -> Option<NodeEvent> {
        poll_fn(|context| self.subscriber.poll_next(context)).await
    }
}

impl futures_core::Stream for NodeEvents {
    type Item = NodeEvent;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<NodeEvent>> {
        self.subscriber.poll_next(context)
    }
}
