//! Who is to be told when a mailbox or a node is gone.
//!
//! A node asks another once for each of its mailboxes that anybody here watches, and is told once; it tells its own
//! watchers. The end of a session or of a member tells the rest.
//!
//! | what ends a watch | its fate |
//! |---|---|
//! | the target's node says that the mailbox is gone | as it says |
//! | the session with that node ends, or cannot be had | `Disconnected`, unless the watch goes on until the target is gone for certain |
//! | the node left, is dead, or has a later life | `NodeLeft`, `NodeDown`, `Superseded` |
//!
//! A watch that goes on without a session is carried over to the next one, for which the node is dialled again and again
//! as long as membership holds it for live.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use crate::id::{NodeId, NodeName, Pid};
use crate::wire::services::Text;
use crate::wire::services::monitor::{Cut, Gone, Monitor as Frame};

/// Whom a watch is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Target {
    Mailbox(Pid),
    /// That life of a node.
    Node(NodeId),
}

/// A watch, by a number that is never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct WatchId(pub(crate) u64);

#[derive(Clone, Debug)]
pub(crate) enum Input {
    Watch {
        watch: WatchId,
        target: Target,
        /// The notice is for this mailbox of this node, after everything that the target's node sent to it before.
        mailbox: Option<u64>,
        /// A lost session is no end: the watch goes on until the target is gone for certain.
        until_dead: bool,
    },
    Unwatch {
        watch: WatchId,
    },
    /// A mailbox of this node that was to be tracked is gone.
    Closed {
        serial: u64,
        gone: Gone,
        /// Why, when it was closed because it failed.
        reason: Option<Text>,
    },
    Frame {
        from: NodeId,
        frame: Frame,
    },
    /// A session begins.
    Up {
        peer: NodeId,
    },
    /// It has ended, for that reason as far as this node knows.
    Down {
        peer: NodeId,
        why: Fate,
    },
    DialFailed {
        peer: NodeName,
    },
    /// Membership holds this life for live.
    Live {
        node: NodeId,
    },
    /// Membership says so of that life.
    Ended {
        node: NodeId,
        fate: Fate,
    },
    Renewed {
        id: NodeId,
    },
}

/// What became of a monitored mailbox or node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
#[doc(alias = "reason")]
pub enum Fate {
    /// The mailbox was closed.
    #[doc(alias = "normal")]
    Closed,
    /// The mailbox was closed by a panic of the task that held it.
    Panicked,
    /// The mailbox was closed because its owner failed, for the [`reason`](crate::Notice::reason) that the notice gives. An
    /// older release, which does not know it, is told [`Fate::Closed`].
    Failed,
    /// There is no such mailbox, or none any more, or nobody has the name.
    #[doc(alias = "noproc")]
    NoSuchMailbox,
    /// The session with the target's node ended, or none could be had. The target may live.
    #[doc(alias = "noconnection")]
    Disconnected,
    /// The target's node left in good order.
    NodeLeft,
    /// The members agree that the target's node is dead, or it is no member and cannot be reached.
    #[doc(alias = "nodedown")]
    NodeDown,
    /// The target belongs to an earlier life of its node.
    Superseded,
}

/// What a notice tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Told {
    pub(crate) fate: Fate,
    /// Why the target failed, if it did.
    pub(crate) reason: Option<Text>,
}

impl Told {
    /// Of a mailbox that is gone. Only one that was closed can have failed.
    fn of(gone: Gone, reason: Option<Text>) -> Self {
        match gone.into() {
            Fate::Closed if reason.is_some() => Self { fate: Fate::Failed, reason },
            fate => fate.into(),
        }
    }
}

impl From<Fate> for Told {
    fn from(fate: Fate) -> Self {
        Self { fate, reason: None }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Output {
    /// In the order of these outputs, as long as the session lasts. The cuts of `Down` are filled in by whoever numbers
    /// messages; here they name the mailboxes only.
    Send { to: NodeId, frame: Frame },
    /// A session with that node is needed. Answered by [`Input::Up`] or [`Input::DialFailed`].
    Dial { peer: NodeName },
    /// A mailbox of this node is watched now: say [`Input::Closed`] when it is gone, at once if it is.
    Track { serial: u64 },
    /// The watch is over. With a cut, the notice comes after the messages below that number in the lane from that peer.
    Notice { watch: WatchId, told: Told, cut: Option<(NodeId, u64)> },
    /// So many watches of mailboxes or the life of this peer are armed, after each change: while there are some, its link is
    /// asked for signs of life.
    Armed { peer: NodeId, watches: usize },
    /// The peer watches more than it may.
    Broken { peer: NodeId },
}

/// How long a watch that goes on without a session waits before its node is dialled again.
const REDIAL: Duration = Duration::from_secs(1);

/// Of how many lives it is remembered that they are over, and how. A life that is forgotten is found out by dialling.
const ENDED_REMEMBERED: usize = 1024;

/// The watches of one node, and those of its mailboxes by others.
#[derive(Debug)]
pub(crate) struct Monitors {
    id: NodeId,
    /// How many watches one peer may have here.
    watches_max: usize,
    watches: BTreeMap<WatchId, Watch>,
    /// The watches by the life on which their targets depend.
    lives: BTreeMap<NodeId, Life>,
    /// What peers watch here.
    watched: BTreeMap<NodeId, Watched>,
    /// By whom each mailbox of this node is watched; its own name stands for all watches of this node.
    watchers: BTreeMap<u64, BTreeSet<NodeId>>,
    sessions: BTreeMap<NodeName, NodeId>,
    /// Whom membership holds for live.
    live: BTreeMap<NodeName, NodeId>,
    ended: Ended,
    /// Dials that are not answered.
    dialling: BTreeSet<NodeName>,
    redial: Option<Instant>,
    /// Peers of which the number of watches has changed since it was told.
    changed: BTreeSet<NodeId>,
    outputs: VecDeque<Output>,
}

#[derive(Debug)]
struct Watch {
    target: Target,
    mailbox: Option<u64>,
    until_dead: bool,
}

impl Watch {
    fn node(&self) -> &NodeId {
        match &self.target {
            Target::Mailbox(pid) => pid.node(),
            Target::Node(node) => node,
        }
    }
}

/// This node's watches of one life of a node.
#[derive(Debug, Default)]
struct Life {
    watches: usize,
    itself: BTreeSet<WatchId>,
    mailboxes: BTreeMap<u64, Mailbox>,
}

/// This node's watches of one mailbox.
#[derive(Debug, Default)]
struct Mailbox {
    /// It is known to be gone, and the answers for some mailboxes of this node are still to come.
    gone: Option<Told>,
    /// Why it failed, said before it is said to be gone.
    failure: Option<Text>,
    /// By the mailbox that the notice is for. The peer is asked once for each.
    watches: BTreeMap<Option<u64>, BTreeSet<WatchId>>,
}

/// What one peer watches.
#[derive(Debug, Default)]
struct Watched {
    watches: usize,
    /// By the mailbox that the answer is for.
    mailboxes: BTreeMap<u64, BTreeSet<Option<u64>>>,
}

/// How lives ended, the last ones.
#[derive(Debug, Default)]
struct Ended {
    fates: BTreeMap<NodeId, Fate>,
    order: VecDeque<NodeId>,
}

impl Ended {
    fn insert(&mut self, node: NodeId, fate: Fate) {
        if self.fates.insert(node.clone(), fate).is_none() {
            self.order.push_back(node);
            if self.order.len() > ENDED_REMEMBERED {
                let oldest = self.order.pop_front();
                oldest.map(|oldest| self.fates.remove(&oldest));
            }
        }
    }

    fn remove(&mut self, node: &NodeId) {
        if self.fates.remove(node).is_some() {
            self.order.retain(|ended| ended != node);
        }
    }
}

impl From<Gone> for Fate {
    fn from(gone: Gone) -> Self {
        match gone {
            Gone::Closed => Self::Closed,
            Gone::Panicked => Self::Panicked,
            Gone::NoSuchMailbox => Self::NoSuchMailbox,
        }
    }
}

impl Monitors {
    /// Each peer may have `watches_max` watches of mailboxes of this node. Those of this node are bounded by who waits for
    /// them.
    pub(crate) fn new(id: NodeId, watches_max: usize) -> Self {
        Self {
            id,
            watches_max,
            watches: BTreeMap::new(),
            lives: BTreeMap::new(),
            watched: BTreeMap::new(),
            watchers: BTreeMap::new(),
            sessions: BTreeMap::new(),
            live: BTreeMap::new(),
            ended: Ended::default(),
            dialling: BTreeSet::new(),
            redial: None,
            changed: BTreeSet::new(),
            outputs: VecDeque::new(),
        }
    }

    pub(crate) fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.redial
    }

    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        if self.redial.is_none_or(|due| due > now) {
            return;
        }
        self.redial = None;
        let waiting = self.lives.keys().map(NodeId::name).filter(|name| !self.sessions.contains_key(*name));
        let waiting: BTreeSet<_> = waiting.filter(|name| *name != self.id.name()).cloned().collect();
        waiting.into_iter().for_each(|name| self.dial(name));
    }

    pub(crate) fn handle(&mut self, input: Input, now: Instant) {
        match input {
            Input::Watch { watch, target, mailbox, until_dead } => {
                self.watch(watch, Watch { target, mailbox, until_dead });
            }
            Input::Unwatch { watch } => self.unwatch(watch),
            Input::Closed { serial, gone, reason } => self.closed(serial, gone, reason),
            Input::Frame { from, frame } if self.has_session(&from) => self.frame(from, frame),
            Input::Frame { .. } => {}
            Input::Up { peer } => self.up(peer, now),
            Input::Down { peer, why } => self.down(&peer, why, now),
            Input::DialFailed { peer } => self.dial_failed(&peer, now),
            Input::Live { node } => self.live(node),
            Input::Ended { node, fate } => self.ended(node, fate),
            Input::Renewed { id } => {
                self.end_all(&self.id.clone(), Fate::Superseded);
                self.id = id;
            }
        }
        for peer in std::mem::take(&mut self.changed) {
            if self.has_session(&peer) {
                let watches = self.lives.get(&peer).map_or(0, |life| life.watches);
                self.outputs.push_back(Output::Armed { peer, watches });
            }
        }
    }

    // Of this node's watches.

    fn watch(&mut self, id: WatchId, watch: Watch) {
        if let Some(fate) = self.known_fate(&watch) {
            return self.notice(id, fate.into(), None);
        }
        let node = watch.node().clone();
        let kind = watch.mailbox;
        let life = self.lives.entry(node.clone()).or_default();
        let mut is_first = false;
        if let Target::Mailbox(pid) = &watch.target {
            let mailbox = life.mailboxes.entry(pid.serial()).or_default();
            if let Some(told) = mailbox.gone.clone().filter(|_| kind.is_none()) {
                return self.notice(id, told, None);
            }
            let watches = mailbox.watches.entry(kind).or_default();
            is_first = watches.is_empty();
            watches.insert(id);
        } else {
            life.itself.insert(id);
        }
        life.watches += 1;
        let serial = match &watch.target {
            Target::Mailbox(pid) => Some(pid.serial()),
            Target::Node(_) => None,
        };
        self.watches.insert(id, watch);
        if node == self.id {
            if let Some(serial) = serial {
                self.track(serial, node);
            }
        } else if self.has_session(&node) {
            if let Some(serial) = serial.filter(|_| is_first) {
                self.send(&node, Frame::Watch { serial, mailbox: kind });
            }
            self.changed.insert(node);
        } else if !self.sessions.contains_key(node.name()) {
            self.dial(node.name().clone());
        }
    }

    fn unwatch(&mut self, id: WatchId) {
        let Some((watch, is_last)) = self.forget(id) else { return };
        if let Target::Mailbox(pid) = &watch.target
            && is_last
            && self.has_session(pid.node())
        {
            self.send(pid.node(), Frame::Unwatch { serial: pid.serial(), mailbox: watch.mailbox });
        }
    }

    /// What is known without asking.
    fn known_fate(&self, watch: &Watch) -> Option<Fate> {
        let node = watch.node();
        if node.name() == self.id.name() {
            return (*node != self.id).then_some(Fate::Superseded);
        }
        let session = self.sessions.get(node.name());
        if session == Some(node) {
            return None;
        }
        // An earlier life's session may not have ended yet: what becomes of the later one is not known from it.
        let is_behind = session.is_some_and(|present| present < node);
        let later = session.or_else(|| self.live.get(node.name())).is_some_and(|present| present > node);
        match self.ended.fates.get(node) {
            _ if later => Some(Fate::Superseded),
            Some(fate) => Some(*fate),
            None => (is_behind && !watch.until_dead).then_some(Fate::Disconnected),
        }
    }

    /// Takes a watch out of all tables, and tells whether it was the last of its kind.
    fn forget(&mut self, id: WatchId) -> Option<(Watch, bool)> {
        let watch = self.watches.remove(&id)?;
        let node = watch.node().clone();
        let mut is_last = false;
        let mut is_unwatched = None;
        if let Some(life) = self.lives.get_mut(&node) {
            life.watches -= 1;
            life.itself.remove(&id);
            if let Target::Mailbox(pid) = &watch.target
                && let Some(mailbox) = life.mailboxes.get_mut(&pid.serial())
            {
                if let Some(watches) = mailbox.watches.get_mut(&watch.mailbox) {
                    watches.remove(&id);
                    is_last = watches.is_empty();
                }
                if is_last {
                    mailbox.watches.remove(&watch.mailbox);
                }
                if mailbox.watches.is_empty() {
                    life.mailboxes.remove(&pid.serial());
                    is_unwatched = Some(pid.serial());
                }
            }
            if life.watches == 0 {
                self.lives.remove(&node);
            }
        }
        if let Some(serial) = is_unwatched.filter(|_| node == self.id) {
            self.untrack(serial, &node);
        }
        self.changed.insert(node);
        Some((watch, is_last))
    }

    fn end(&mut self, id: WatchId, told: Told, cut: Option<(NodeId, u64)>) {
        if self.forget(id).is_some() {
            self.notice(id, told, cut);
        }
    }

    /// Ends watches of that life. Of a mailbox that is known to be gone, it is told how.
    fn end_some(&mut self, node: &NodeId, fate: Fate, ends: impl Fn(&Watch) -> bool) {
        let Some(life) = self.lives.get(node) else { return };
        let of_mailboxes = life.mailboxes.values().flat_map(|mailbox| {
            let ids = mailbox.watches.values().flatten();
            ids.map(|id| (*id, mailbox.gone.clone()))
        });
        let all = life.itself.iter().map(|id| (*id, None)).chain(of_mailboxes);
        let ending = all.filter(|(id, gone)| gone.is_some() || self.watches.get(id).is_some_and(&ends));
        for (id, gone) in ending.collect::<Vec<_>>() {
            self.end(id, gone.unwrap_or_else(|| fate.into()), None);
        }
    }

    fn end_all(&mut self, node: &NodeId, fate: Fate) {
        self.end_some(node, fate, |_| true);
    }

    fn notice(&mut self, watch: WatchId, told: Told, cut: Option<(NodeId, u64)>) {
        self.outputs.push_back(Output::Notice { watch, told, cut });
    }

    /// The watched lives of a name.
    fn lives_of(&self, name: &NodeName) -> Vec<NodeId> {
        let all = NodeId::new(name.clone(), 0)..=NodeId::new(name.clone(), u64::MAX);
        self.lives.range(all).map(|(node, _)| node.clone()).collect()
    }

    // Of the watches of this node's mailboxes.

    /// That node watches this mailbox of this one.
    fn track(&mut self, serial: u64, watcher: NodeId) {
        let watchers = self.watchers.entry(serial).or_default();
        let is_first = watchers.is_empty();
        watchers.insert(watcher);
        if is_first {
            self.outputs.push_back(Output::Track { serial });
        }
    }

    fn untrack(&mut self, serial: u64, watcher: &NodeId) {
        if let Some(watchers) = self.watchers.get_mut(&serial) {
            watchers.remove(watcher);
            if watchers.is_empty() {
                self.watchers.remove(&serial);
            }
        }
    }

    fn closed(&mut self, serial: u64, gone: Gone, reason: Option<Text>) {
        for watcher in self.watchers.remove(&serial).unwrap_or_default() {
            if watcher == self.id {
                let life = self.lives.get(&watcher);
                let mailbox = life.and_then(|life| life.mailboxes.get(&serial));
                let ids: Vec<_> =
                    mailbox.into_iter().flat_map(|mailbox| mailbox.watches.values().flatten().copied()).collect();
                ids.into_iter().for_each(|id| self.end(id, Told::of(gone, reason.clone()), None));
                continue;
            }
            let Some(watched) = self.watched.get_mut(&watcher) else { continue };
            let asked = watched.mailboxes.remove(&serial).unwrap_or_default();
            watched.watches -= asked.len();
            if watched.watches == 0 {
                self.watched.remove(&watcher);
            }
            if let Some(reason) = reason.clone() {
                self.send(&watcher, Frame::Failed { serial, reason });
            }
            let cuts = asked.into_iter().flatten().map(|mailbox| Cut { mailbox, number: 0 }).collect();
            self.send(&watcher, Frame::Down { serial, gone, cuts });
        }
    }

    fn frame(&mut self, from: NodeId, frame: Frame) {
        match frame {
            Frame::Watch { serial, mailbox } => {
                let watched = self.watched.entry(from.clone()).or_default();
                if watched.mailboxes.get(&serial).is_some_and(|asked| asked.contains(&mailbox)) {
                    return;
                }
                if watched.watches >= self.watches_max {
                    return self.outputs.push_back(Output::Broken { peer: from });
                }
                watched.watches += 1;
                watched.mailboxes.entry(serial).or_default().insert(mailbox);
                self.track(serial, from);
            }
            Frame::Unwatch { serial, mailbox } => {
                let Some(watched) = self.watched.get_mut(&from) else { return };
                // Its answer may have met this on the way.
                let Some(asked) = watched.mailboxes.get_mut(&serial) else { return };
                watched.watches -= usize::from(asked.remove(&mailbox));
                if asked.is_empty() {
                    watched.mailboxes.remove(&serial);
                    if watched.watches == 0 {
                        self.watched.remove(&from);
                    }
                    self.untrack(serial, &from);
                }
            }
            Frame::Down { serial, gone, cuts } => self.told(&from, serial, gone, &cuts),
            Frame::Failed { serial, reason } => {
                let life = self.lives.get_mut(&from);
                if let Some(mailbox) = life.and_then(|life| life.mailboxes.get_mut(&serial)) {
                    mailbox.failure = Some(reason);
                }
            }
        }
    }

    /// A mailbox of a peer is gone. Nothing may be watching it any more, because the peer had not read so yet.
    fn told(&mut self, from: &NodeId, serial: u64, gone: Gone, cuts: &[Cut]) {
        let life = self.lives.get_mut(from);
        let Some(mailbox) = life.and_then(|life| life.mailboxes.get_mut(&serial)) else { return };
        // What was asked after the answer was on its way is answered again.
        let failure = mailbox.failure.take();
        let told = mailbox.gone.get_or_insert_with(|| Told::of(gone, failure)).clone();
        let prompt = mailbox.watches.get(&None).into_iter().flatten().map(|id| (*id, None));
        let in_band = cuts.iter().flat_map(|cut| {
            let ids = mailbox.watches.get(&Some(cut.mailbox)).into_iter().flatten();
            ids.map(|id| (*id, Some((from.clone(), cut.number))))
        });
        for (id, cut) in prompt.chain(in_band).collect::<Vec<_>>() {
            self.end(id, told.clone(), cut);
        }
    }

    // Of sessions and members.

    fn has_session(&self, node: &NodeId) -> bool {
        self.sessions.get(node.name()) == Some(node)
    }

    fn dial(&mut self, peer: NodeName) {
        if self.dialling.insert(peer.clone()) {
            self.outputs.push_back(Output::Dial { peer });
        }
    }

    fn send(&mut self, to: &NodeId, frame: Frame) {
        self.outputs.push_back(Output::Send { to: to.clone(), frame });
    }

    fn up(&mut self, peer: NodeId, now: Instant) {
        if let Some(old) = self.sessions.get(peer.name()).filter(|old| **old != peer).cloned() {
            self.down(&old, Fate::Superseded, now);
        }
        self.dialling.remove(peer.name());
        self.ended.remove(&peer);
        // The name is this life's now.
        for other in self.lives_of(peer.name()).into_iter().filter(|life| *life != peer) {
            self.end_all(&other, Fate::Superseded);
        }
        if let Some(life) = self.lives.get(&peer) {
            for (serial, mailbox) in &life.mailboxes {
                let frames = mailbox.watches.keys().map(|kind| Frame::Watch { serial: *serial, mailbox: *kind });
                self.outputs.extend(frames.map(|frame| Output::Send { to: peer.clone(), frame }));
            }
            self.changed.insert(peer.clone());
        }
        self.sessions.insert(peer.name().clone(), peer);
    }

    fn down(&mut self, peer: &NodeId, why: Fate, now: Instant) {
        if !self.has_session(peer) {
            return;
        }
        self.sessions.remove(peer.name());
        for serial in self.watched.remove(peer).unwrap_or_default().mailboxes.into_keys() {
            self.untrack(serial, peer);
        }
        if why != Fate::Disconnected {
            self.ended.insert(peer.clone(), why);
        }
        let fate = self.ended.fates.get(peer).copied().unwrap_or(why);
        self.end_some(peer, fate, |watch| fate != Fate::Disconnected || !watch.until_dead);
        self.redial_for(peer.name(), now);
    }

    fn dial_failed(&mut self, peer: &NodeName, now: Instant) {
        self.dialling.remove(peer);
        if self.sessions.contains_key(peer) {
            return;
        }
        for life in self.lives_of(peer) {
            self.end_some(&life, Fate::Disconnected, |watch| !watch.until_dead);
            if self.live.get(peer) != Some(&life) {
                self.end_all(&life, Fate::NodeDown);
            }
        }
        self.redial_for(peer, now);
    }

    /// What goes on without a session is to have one again.
    fn redial_for(&mut self, peer: &NodeName, now: Instant) {
        if !self.lives_of(peer).is_empty() {
            self.redial.get_or_insert(now + REDIAL);
        }
    }

    fn live(&mut self, node: NodeId) {
        if node.name() == self.id.name() || self.live.get(node.name()).is_some_and(|known| *known > node) {
            return;
        }
        self.ended.remove(&node);
        for earlier in self.lives_of(node.name()).into_iter().filter(|life| *life < node) {
            self.end_all(&earlier, Fate::Superseded);
        }
        self.live.insert(node.name().clone(), node);
    }

    fn ended(&mut self, node: NodeId, fate: Fate) {
        if node.name() == self.id.name() {
            return;
        }
        if self.live.get(node.name()) == Some(&node) {
            self.live.remove(node.name());
        }
        // What it sent before may still be on its way, as long as there is a session.
        let has_session = self.has_session(&node);
        self.end_some(&node, fate, |watch| watch.mailbox.is_none() || !has_session);
        self.ended.insert(node, fate);
    }
}

#[cfg(test)]
impl Monitors {
    /// What it holds for watches, of this node and of others.
    pub(crate) fn held(&self) -> usize {
        let tables = [&self.watches.len(), &self.lives.len(), &self.watched.len(), &self.watchers.len()];
        tables.into_iter().sum::<usize>() + self.dialling.len() + self.changed.len()
    }
}

#[cfg(test)]
mod tests;
