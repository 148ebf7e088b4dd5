//! Who waits for the end of what, on this node.
//!
//! A prompt notice goes to whoever waits for it. One in band goes to a mailbox, after the messages that came before it: the
//! session keeps it until those are delivered.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};

use tokio::sync::oneshot;

use super::session::Session;
use super::{Command, Shared, lock};
use crate::id::NodeId;
use crate::proto::monitor::{Fate, Target, Told, WatchId};
use crate::proto::node::services::Input;

/// The watches of a node that are not over.
#[derive(Debug, Default)]
pub(crate) struct Monitors {
    last: AtomicU64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    waiting: HashMap<WatchId, Waiter>,
    /// Those whose notices are for a mailbox of this node.
    by_mailbox: HashMap<u64, BTreeSet<WatchId>>,
    is_closed: bool,
}

/// Who is to get a notice.
enum Waiter {
    Prompt(oneshot::Sender<Told>),
    InBand {
        mailbox: u64,
        deliver: Deliver,
        /// The session that keeps it, and until which number.
        parked: Option<(Weak<Session>, u64)>,
    },
}

/// Puts a notice into a mailbox.
pub(crate) type Deliver = Box<dyn FnOnce(Told) + Send>;

impl std::fmt::Debug for Waiter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Prompt(_) => f.write_str("Prompt"),
            Self::InBand { mailbox, parked, .. } => {
                f.debug_struct("InBand").field("mailbox", mailbox).field("parked", parked).finish_non_exhaustive()
            }
        }
    }
}

impl Waiter {
    fn tell(self, told: Told) {
        match self {
            Self::Prompt(waiting) => drop(waiting.send(told)),
            Self::InBand { deliver, .. } => deliver(told),
        }
    }
}

impl State {
    fn remove(&mut self, watch: WatchId) -> Option<Waiter> {
        let waiter = self.waiting.remove(&watch)?;
        if let Waiter::InBand { mailbox, .. } = &waiter
            && let Some(watches) = self.by_mailbox.get_mut(mailbox)
        {
            watches.remove(&watch);
            if watches.is_empty() {
                self.by_mailbox.remove(mailbox);
            }
        }
        Some(waiter)
    }
}

impl Monitors {
    /// The node is over, and so is every watch: whoever waits is told so.
    pub(crate) fn close(&self) {
        let mut state = lock(&self.state);
        state.is_closed = true;
        let waiting = std::mem::take(&mut state.waiting);
        state.by_mailbox.clear();
        drop(state);
        waiting.into_values().for_each(|waiter| waiter.tell(Fate::Disconnected.into()));
    }

    /// The notice may be given now.
    pub(super) fn deliver(&self, watch: WatchId, told: Told) {
        let waiter = lock(&self.state).remove(watch);
        if let Some(waiter) = waiter {
            waiter.tell(told);
        }
    }

    pub(super) fn is_waiting(&self, watch: WatchId) -> bool {
        lock(&self.state).waiting.contains_key(&watch)
    }

    /// What it holds for watches that are not over.
    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        let state = lock(&self.state);
        state.waiting.len() + state.by_mailbox.len()
    }
}

impl Shared {
    /// Begins a watch. The receiver is told its fate as soon as that is known.
    pub(crate) fn watch(&self, target: Target, until_dead: bool) -> (WatchId, oneshot::Receiver<Told>) {
        let (waiting, told) = oneshot::channel();
        (self.begin_watch(target, Waiter::Prompt(waiting), until_dead), told)
    }

    /// Begins a watch whose notice is for a mailbox of this node, in band.
    pub(crate) fn watch_in_band(&self, target: Target, mailbox: u64, until_dead: bool, deliver: Deliver) -> WatchId {
        self.begin_watch(target, Waiter::InBand { mailbox, deliver, parked: None }, until_dead)
    }

    fn begin_watch(&self, target: Target, waiter: Waiter, until_dead: bool) -> WatchId {
        let watch = WatchId(self.monitors.last.fetch_add(1, Ordering::Relaxed));
        let mut state = lock(&self.monitors.state);
        if state.is_closed {
            drop(state);
            waiter.tell(Fate::Disconnected.into());
            return watch;
        }
        let mailbox = match &waiter {
            Waiter::Prompt(_) => None,
            Waiter::InBand { mailbox, .. } => Some(*mailbox),
        };
        if let Some(mailbox) = mailbox {
            state.by_mailbox.entry(mailbox).or_default().insert(watch);
        }
        state.waiting.insert(watch, waiter);
        drop(state);
        if let Target::Mailbox(pid) = &target
            && self.is_own(pid.node())
        {
            // From now on, not when the node task comes to it: whoever closes the mailbox next says how.
            self.mailboxes.track(pid.serial());
        }
        self.command(Command::Service(Input::Watch { watch, target, mailbox, until_dead }));
        watch
    }

    /// Ends a watch, if it is not over: it has no notice from now on.
    pub(crate) fn unwatch(&self, watch: WatchId) {
        let waiter = lock(&self.monitors.state).remove(watch);
        match waiter {
            // The watch is over, and its notice waits for messages.
            Some(Waiter::InBand { mailbox, parked: Some((session, number)), .. }) => {
                if let Some(session) = session.upgrade() {
                    session.unpark(mailbox, number, watch);
                }
            }
            Some(_) => self.command(Command::Service(Input::Unwatch { watch })),
            None => {}
        }
    }

    /// Ends the watches whose notices are for that mailbox.
    pub(crate) fn unwatch_all(&self, mailbox: u64) {
        let watches = lock(&self.monitors.state).by_mailbox.get(&mailbox).cloned();
        watches.into_iter().flatten().for_each(|watch| self.unwatch(watch));
    }

    /// A watch is over.
    pub(super) fn notice(&self, watch: WatchId, told: Told, cut: Option<(NodeId, u64)>) {
        let session = cut.and_then(|(peer, number)| {
            let session = self.session(peer.name()).filter(|session| session.peer == peer)?;
            Some((session, number))
        });
        // Without a session, what came in it is delivered.
        let Some((session, number)) = session else { return self.monitors.deliver(watch, told) };
        let mut state = lock(&self.monitors.state);
        let Some(Waiter::InBand { mailbox, parked, .. }) = state.waiting.get_mut(&watch) else { return };
        *parked = Some((Arc::downgrade(&session), number));
        let mailbox = *mailbox;
        drop(state);
        session.park(mailbox, number, watch, told);
    }
}
