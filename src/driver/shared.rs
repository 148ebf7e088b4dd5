//! What everything of one node shares: the node task, its links, and handles.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use tokio::sync::{mpsc, oneshot, watch};

use super::asks::Asks;
use super::calls::Methods;
use super::counters::{Accounts, CallCounters, Tallies};
use super::events::Events;
use super::facts::Facts;
use super::groups::Groups;
use super::journal::Journal;
use super::leaders::Leaders;
use super::mailboxes::{Ending, Mailboxes, RefusedHook};
use super::members::Members;
use super::monitors::Monitors;
use super::names::Names;
use super::packets::{Arrivals, PacketCounters};
use super::services::Requests;
use super::session::Session;
use super::{Command, lock};
use crate::config::Config;
use crate::error::ConnectError;
use crate::id::{ClusterName, NodeId, NodeName};
use crate::proto::hello::Local;
use crate::proto::lanes::Pool;
use crate::proto::node;
use crate::transport::Endpoint;
use crate::transport::tls::Tls;
use crate::wire::NodeFlags;
use crate::wire::services::monitor::Gone;

/// What everything of one node shares.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) cluster: ClusterName,
    /// Gone once the node has stopped, so that its socket is free while handles live on.
    pub(super) endpoint: Mutex<Option<Endpoint>>,
    pub(crate) tls: Tls,
    pub(crate) mailboxes: Mailboxes,
    pub(crate) methods: Methods,
    pub(crate) asks: Asks,
    pub(crate) counters: CallCounters,
    pub(crate) accounts: Accounts,
    /// What the node task's own have counted, as it was when it last did something.
    pub(crate) tallies: Mutex<Tallies>,
    pub(crate) started: tokio::time::Instant,
    pub(crate) packets: PacketCounters,
    pub(crate) journal: Journal,
    /// Where links hand over packets of membership and service frames.
    pub(super) arrivals: Arrivals,
    pub(crate) events: Events,
    pub(crate) members: Members,
    pub(crate) facts: Facts,
    pub(crate) names: Names,
    pub(crate) groups: Groups,
    pub(crate) monitors: Monitors,
    pub(crate) leaders: Leaders,
    pub(super) requests: Requests,
    pub(crate) pool: Arc<Mutex<Pool>>,
    pub(crate) on_refused: Option<RefusedHook>,
    pub(super) addresses: Vec<SocketAddr>,
    pub(super) flags: NodeFlags,
    pub(super) id: RwLock<NodeId>,
    pub(super) sessions: RwLock<HashMap<NodeName, Arc<Session>>>,
    /// Where peers say that they can be dialled, beside their names.
    pub(super) advertised: Mutex<BTreeMap<NodeName, Vec<SocketAddr>>>,
    pub(super) commands: mpsc::UnboundedSender<Command>,
    /// Peers for which [`Shared::want`] has a command under way, so that a loop of sends queues one.
    pub(super) wanted: Mutex<HashSet<NodeName>>,
    pub(super) is_stopping: AtomicBool,
    pub(super) is_closing: AtomicBool,
    pub(super) stopped: watch::Sender<bool>,
    #[cfg(test)]
    pub(super) census: Mutex<Census>,
    /// What the services were told by links and handles.
    #[cfg(test)]
    pub(super) told: watch::Sender<Vec<node::services::Input>>,
}

/// What the node task holds, for tests that look for leaks.
#[cfg(test)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Census {
    pub(super) entries: usize,
    pub(super) handshakes: usize,
    pub(super) handshakes_most: usize,
    pub(super) sessions: usize,
    pub(super) waiting: usize,
}

impl Shared {
    pub(crate) fn endpoint(&self) -> Option<Endpoint> {
        lock(&self.endpoint).clone()
    }

    /// This node's present identity.
    pub(crate) fn id(&self) -> NodeId {
        self.id.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether this node only uses the cluster.
    pub(super) fn is_client(&self) -> bool {
        self.flags.client
    }

    pub(crate) fn is_own(&self, node: &NodeId) -> bool {
        self.with_id(|id| id == node)
    }

    /// Looks at this node's present identity.
    pub(crate) fn with_id<T>(&self, look: impl FnOnce(&NodeId) -> T) -> T {
        look(&self.id.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn local(&self) -> Local {
        Local {
            id: self.id(),
            cluster: self.cluster.clone(),
            message_max: self.config.message_max as u32,
            addresses: self.addresses.clone(),
            flags: self.flags,
            first_credit: self.config.lane_window as u32,
            lanes_max: self.config.lanes_max as u32,
        }
    }

    pub(crate) fn session(&self, peer: &NodeName) -> Option<Arc<Session>> {
        self.sessions.read().unwrap_or_else(PoisonError::into_inner).get(peer).cloned()
    }

    pub(crate) fn sessions(&self) -> Vec<Arc<Session>> {
        self.sessions.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    pub(crate) fn advertised(&self, peer: &NodeName) -> Vec<SocketAddr> {
        lock(&self.advertised).get(peer).cloned().unwrap_or_default()
    }

    /// Also when there are none: the names are those of all peers that may be remembered.
    pub(super) fn remember_addresses(&self, node: &NodeName, addresses: &[SocketAddr]) {
        let mut advertised = lock(&self.advertised);
        advertised.remove(node);
        if advertised.len() >= self.config.peers_remembered {
            advertised.pop_first();
        }
        advertised.insert(node.clone(), addresses.to_vec());
    }

    /// Whether new work is refused.
    pub(crate) fn is_stopping(&self) -> bool {
        // In one order with the counts of handlers: see `calls::Reply`.
        self.is_stopping.load(Ordering::SeqCst)
    }

    /// Whether its links are about to be closed, too.
    pub(crate) fn is_closing(&self) -> bool {
        self.is_closing.load(Ordering::Acquire)
    }

    pub(crate) fn command(&self, command: Command) {
        // After the node task has ended nobody is left to tell.
        let _ = self.commands.send(command);
    }

    /// Something waits for a link to the peer.
    pub(crate) fn want(&self, peer: &NodeName) {
        if !lock(&self.wanted).insert(peer.clone()) {
            return;
        }
        self.command(Command::Connect { peer: peer.clone(), urgent: false, done: None });
    }

    /// The session with a peer, dialled when there is none.
    ///
    /// Waits for the peer's answer, at most for the connect deadline.
    pub(crate) async fn connect(&self, peer: &NodeName, urgent: bool) -> Result<Arc<Session>, ConnectError> {
        if self.is_closing() {
            return Err(ConnectError::Shutdown);
        }
        if self.id().name() == peer {
            return Err(ConnectError::IsSelf);
        }
        let (done, connected) = oneshot::channel();
        self.command(Command::Connect { peer: peer.clone(), urgent, done: Some(done) });
        let patience = self.config.connect_timeout;
        match tokio::time::timeout(patience, connected).await {
            Err(_) => Err(ConnectError::Timeout(patience)),
            Ok(connected) => connected.unwrap_or(Err(ConnectError::Shutdown)),
        }
    }

    /// The pool has changed: sessions that waited for a place in it try again, and all tell their peers if it has become
    /// short or no longer is.
    pub(crate) fn pool_changed(&self, mut change: PoolChange) {
        while !change.is_nothing() {
            let mut next = PoolChange::default();
            for session in self.sessions() {
                if change.has_turned || change.freed.contains(&session.id.0) {
                    next.add(session.pool_changed());
                }
            }
            change = next;
        }
    }

    /// Closes a mailbox here, and at every peer that sends to it. Its watchers are told how.
    pub(crate) fn close_mailbox(&self, serial: u64, ending: Ending) {
        let is_tracked = self.mailboxes.remove(serial);
        self.leave_all_groups(serial);
        self.asks.mailbox_closed(&self.id(), serial);
        self.names.mailbox_closed(serial);
        for session in self.sessions() {
            session.close_mailbox(serial);
        }
        if is_tracked {
            let (gone, reason) = match ending {
                Ending::Closed if std::thread::panicking() => (Gone::Panicked, None),
                Ending::Closed => (Gone::Closed, None),
                Ending::Panicked => (Gone::Panicked, None),
                Ending::Failed(reason) => (Gone::Closed, Some(reason)),
            };
            self.command(Command::Service(node::services::Input::Closed { serial, gone, reason }));
        }
    }

    /// Closes a mailbox under its user, who reads what has come and then its end.
    pub(crate) fn shut_mailbox(&self, serial: u64) {
        if let Some(inbox) = self.mailboxes.inbox(serial) {
            inbox.close();
        }
        self.close_mailbox(serial, Ending::Closed);
    }

    /// Begins to stop: new calls are refused from now on.
    pub(crate) fn begin_stop(&self) {
        self.is_stopping.store(true, Ordering::SeqCst);
    }

    /// Waits until the node task has ended.
    pub(crate) async fn stopped(&self) {
        let mut stopped = self.stopped.subscribe();
        let _ = stopped.wait_for(|stopped| *stopped).await;
    }
}

/// What became of the pool that concerns other sessions than the one that changed it.
#[derive(Debug, Default)]
pub(crate) struct PoolChange {
    freed: BTreeSet<u64>,
    has_turned: bool,
}

impl PoolChange {
    pub(crate) fn of(pool: &mut Pool) -> Self {
        Self { freed: pool.freed(), has_turned: pool.has_turned() }
    }

    pub(crate) fn is_nothing(&self) -> bool {
        self.freed.is_empty() && !self.has_turned
    }

    fn add(&mut self, other: Self) {
        self.freed.extend(other.freed);
        self.has_turned |= other.has_turned;
    }
}

thread_local! {
    /// The node in which a value is being decoded, so that addresses in it are bound to that node.
    static INSIDE: RefCell<Option<Arc<Shared>>> = const { RefCell::new(None) };
}

/// Runs a decoder inside a node.
pub(crate) fn inside<T>(shared: &Arc<Shared>, decode: impl FnOnce() -> T) -> T {
    /// Restores what was there before, also when the decoder panics.
    struct Restore(Option<Arc<Shared>>);
    impl Drop for Restore {
        fn drop(&mut self) {
            INSIDE.set(self.0.take());
        }
    }
    let _restore = Restore(INSIDE.replace(Some(shared.clone())));
    decode()
}

/// The node in which a value is being decoded, if it is decoded in one.
pub(crate) fn decoding_node() -> Option<Arc<Shared>> {
    INSIDE.with_borrow(Clone::clone)
}
