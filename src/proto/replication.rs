//! What each node says of its own names and group members, at every other node that takes part.
//!
//! A node alone writes its own log: a map from keys to states, in which each write has the next version. The others hold
//! replicas. A log travels as the entries above a version, in the order of versions, so a delta, a snapshot and a repair are
//! one thing, which waits in no queue: what is to be sent is read from the log when there is room for it.
//!
//! ```text
//! one                            other
//!  |--- what I have of your log ---->|   both, when a session begins
//!  |<-- entries above that ----------|   the last part says so, with a digest, also when there is nothing to send
//!  |--- I have them ---------------->|   one answer to each part, which makes room for the next
//!  |<-- entries, as they are written-|
//! ```
//!
//! As long as an owner has a link, it alone is believed about its log. Without one, others hand it on: `sync` finds out who
//! has more.

mod log;
mod peer;
mod replica;
mod sync;

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use self::log::Log;
use self::peer::{Peer, Sent, Sources};
use self::replica::{Batch, Life, Outcome, Owners};
use self::sync::Wanted;
use crate::id::{NodeId, NodeName};
use crate::wire::services::Text;
use crate::wire::services::replication::{Entry, Key, Mine, Replication as Frame, State};

/// How much is held, and how often it is compared.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Entries of one owner in all scopes, without tombstones. Whoever sends more breaks the rules.
    pub(crate) owner_max: usize,
    /// Entries of all owners together. Beyond it, the rest of a log is left out, and counted.
    pub(crate) total_max: usize,
    /// Tombstones that are kept of each log; a peer that lacks an older one gets the whole log anew.
    pub(crate) tombstones_max: usize,
    /// Bytes on their way to one peer that it has not acknowledged.
    pub(crate) window: usize,
    /// How often all that is held is compared with another node.
    pub(crate) sync_interval: Duration,
}

#[derive(Clone, Debug)]
pub(crate) enum Input {
    /// A session with the peer begins. Nothing of an earlier one is on its way any more.
    Up {
        peer: NodeId,
    },
    /// The peer has a link, or no longer has one; its session goes on. `Up` says nothing of it.
    Linked {
        peer: NodeId,
    },
    Unlinked {
        peer: NodeId,
    },
    /// The session is over.
    Down {
        peer: NodeId,
    },
    Frame {
        from: NodeId,
        frame: Frame,
    },
    /// Membership holds this life for live; so it may return.
    Live {
        node: NodeId,
    },
    /// Membership holds it for dead: its entries are hidden, and are kept for its return.
    Hidden {
        node: NodeId,
    },
    /// That life is over for good: its entries are void.
    Over {
        node: NodeId,
    },
    /// Get all that this peer holds, from whoever it is to be had; [`Output::Synced`] follows.
    SyncWith {
        peer: NodeId,
    },
    /// This node goes on as another incarnation: its log begins anew under that.
    Renewed {
        id: NodeId,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Output {
    /// In the order of these outputs, as long as the session lasts.
    Send { to: NodeId, frame: Frame },
    /// Nobody who takes part in a scope has a link.
    Dial { peer: NodeName },
    /// What is to be seen of an owner's key has changed: `None` when there is nothing, or it is hidden.
    Changed(Change),
    /// All that the peer held when it was asked is here.
    Synced { peer: NodeId },
    /// The peer has this node's own log up to that version.
    Acknowledged { peer: NodeId, scope: Text, version: u64 },
    /// The peer broke a rule: its session is to end.
    Broken { peer: NodeId, rule: Broken },
}

/// What is to be seen of one key of one owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) scope: Text,
    pub(crate) owner: NodeId,
    pub(crate) key: Key,
    pub(crate) version: u64,
    /// A state that was written, a tombstone included; `None` when it is hidden or void, or when it turns out that it is
    /// no longer in the log, and the tombstone was not seen: then the version is that of the log.
    pub(crate) state: Option<State>,
    pub(crate) cause: Cause,
}

/// How a change came about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// The owner wrote it, just now as far as can be told.
    Written,
    /// It was so before, and is learned now: a snapshot, a repair, an owner that returns.
    Synced,
    /// The owner left, or its life is over.
    Left,
    /// The owner died, as far as membership knows.
    Died,
}

/// What a peer may be guilty of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Broken {
    #[error("it sent entries of a scope that it takes no part in")]
    Scope,
    #[error("it contradicts itself about its own log")]
    Versions,
    #[error("it sent more entries than a node may have")]
    Limit,
    #[error("it has more questions open than there is need for")]
    Questions,
}

/// What the replication has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counters {
    pub(crate) entries_sent: u64,
    pub(crate) entries_received: u64,
    /// Relayed entries that contradict what their owner says itself.
    pub(crate) contradicted: u64,
    /// Entries for which there was no room.
    pub(crate) left_out: u64,
    pub(crate) snapshots_sent: u64,
    pub(crate) repairs: u64,
    pub(crate) rounds: u64,
}

/// The own log of a node in each scope, and what it has of the others'.
#[derive(Debug)]
pub(crate) struct Replication {
    id: NodeId,
    limits: Limits,
    rng: fastrand::Rng,
    /// Those that this node takes part in.
    scopes: Vec<Text>,
    own: BTreeMap<Text, Log>,
    owners: Owners,
    peers: BTreeMap<NodeId, Peer>,
    /// Logs that were asked for.
    wanted: BTreeMap<(Text, NodeId), Wanted>,
    next_round: Instant,
    outputs: VecDeque<Output>,
    counters: Counters,
}

impl Replication {
    /// The first of the scopes is the default one, whose name is empty.
    pub(crate) fn new(id: NodeId, scopes: &[Text], limits: Limits, seed: u64, now: Instant) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let phase = limits.sync_interval.mul_f64(rng.f64());
        Self {
            id,
            limits,
            rng,
            scopes: scopes.to_vec(),
            own: scopes.iter().map(|scope| (scope.clone(), Log::default())).collect(),
            owners: Owners::default(),
            peers: BTreeMap::new(),
            wanted: BTreeMap::new(),
            next_round: now + phase,
            outputs: VecDeque::new(),
            counters: Counters::default(),
        }
    }

    /// Writes into the own log, and returns the version of that. The scope is one that this node takes part in.
    pub(crate) fn write(&mut self, scope: &str, key: Key, state: State) -> u64 {
        let (scope, _) = self.own.get_key_value(scope).expect("a scope that this node takes part in");
        let scope = scope.clone();
        let log = self.own.get_mut(&scope).expect("found just now");
        let version = log.write(key.clone(), state.clone(), self.limits.tombstones_max);
        let (owner, state, cause) = (self.id.clone(), Some(state), Cause::Written);
        self.outputs.push_back(Output::Changed(Change { scope, owner, key, version, state, cause }));
        let Self { peers, own, owners, limits, counters, outputs, .. } = self;
        for (id, peer) in peers {
            peer.push(id, Sources { own, owners }, limits, counters, outputs);
        }
        version
    }

    pub(crate) fn handle(&mut self, input: Input, now: Instant) {
        match input {
            Input::Up { peer } => self.up(peer),
            Input::Linked { peer } => {
                if let Some(state) = self.peers.get_mut(&peer) {
                    state.is_linked = true;
                    self.push(&peer);
                    self.fetch(&peer);
                }
            }
            Input::Unlinked { peer } => {
                if let Some(state) = self.peers.get_mut(&peer) {
                    state.is_linked = false;
                }
            }
            Input::Down { peer } => self.down(&peer),
            Input::Frame { from, frame } => self.handle_frame(&from, frame, now),
            Input::Live { node } => self.live(node),
            Input::Hidden { node } => self.hidden(&node),
            Input::Over { node } => self.over(&node),
            Input::SyncWith { peer } => self.sync_with(&peer),
            Input::Renewed { id } => self.renewed(id),
        }
    }

    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        if self.next_round <= now {
            self.next_round = now + self.limits.sync_interval;
            self.start_rounds(now);
        }
    }

    pub(crate) fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        Some(self.next_round)
    }

    /// What this node itself says of a key, tombstones included.
    #[cfg(test)]
    pub(crate) fn own(&self, scope: &str, key: &Key) -> Option<(u64, &State)> {
        self.own.get(scope)?.get(key)
    }

    /// Where mailboxes of this node are members, in one scope.
    pub(crate) fn own_members(&self, scope: &str) -> Vec<Key> {
        let own = self.own.get(scope).into_iter().flat_map(Log::visible).map(|(key, ..)| key);
        own.filter(|key| matches!(key, Key::Member { .. })).cloned().collect()
    }

    pub(crate) fn own_version(&self, scope: &str) -> u64 {
        self.own.get(scope).map_or(0, Log::version)
    }

    /// The own entries in all scopes, without tombstones.
    pub(crate) fn own_len(&self) -> usize {
        self.own.values().map(Log::live).sum()
    }

    /// How much of this node's own log the peer has, as far as it said in this session.
    pub(crate) fn acknowledged(&self, peer: &NodeId, scope: &str) -> u64 {
        let sent = self.peers.get(peer).and_then(|peer| peer.own.as_ref()?.get(scope));
        sent.map_or(0, |sent| sent.acked)
    }

    pub(crate) fn is_linked(&self, peer: &NodeId) -> bool {
        self.peers.get(peer).is_some_and(|peer| peer.is_linked)
    }

    /// What is to be seen of a node, without tombstones: of this one, or of another that lives.
    #[cfg(test)]
    pub(crate) fn visible(&self, scope: &str, owner: &NodeId) -> impl Iterator<Item = (&Key, u64, &State)> {
        let own = (*owner == self.id).then(|| self.own.get(scope)).flatten();
        let is_live = self.owners.is_live(owner);
        let other = self.owners.replica(owner, scope).filter(|_| is_live).map(|replica| &replica.log);
        own.or(other).into_iter().flat_map(Log::visible)
    }

    /// This node, and those who live and have anything in that scope.
    #[cfg(test)]
    pub(crate) fn owners<'a>(&'a self, scope: &'a str) -> impl Iterator<Item = &'a NodeId> {
        let own = self.own.get(scope).filter(|own| own.live() > 0).map(|_| &self.id);
        let live = self.owners.live(scope).filter(|(_, replica)| replica.log.live() > 0);
        own.into_iter().chain(live.map(|(owner, _)| owner))
    }

    #[cfg(test)]
    pub(crate) fn takes_part(&self, scope: &str) -> bool {
        self.own.contains_key(scope)
    }

    /// Whether a peer with a session takes part in a scope of this node, as it said; not known before that.
    pub(crate) fn shares(&self, peer: &NodeId, scope: &str) -> Option<bool> {
        let peer = self.peers.get(peer).filter(|peer| peer.own.is_some())?;
        Some(peer.shares(scope))
    }

    pub(crate) fn counters(&self) -> Counters {
        self.counters
    }

    fn send(&mut self, to: &NodeId, frame: Frame) {
        self.outputs.push_back(Output::Send { to: to.clone(), frame });
    }

    fn broken(&mut self, peer: &NodeId, rule: Broken) {
        if let Some(state) = self.peers.get_mut(peer).filter(|peer| !peer.is_broken) {
            state.is_broken = true;
            self.outputs.push_back(Output::Broken { peer: peer.clone(), rule });
        }
    }

    /// A session begins: the peer is told what this node has of its logs, and so knows where to go on.
    fn up(&mut self, peer: NodeId) {
        self.down(&peer);
        let mine = self.scopes.iter().map(|scope| {
            let log = self.owners.replica(&peer, scope).map(|replica| &replica.log);
            let (version, digest) = log.map_or((0, 0), |log| (log.version(), log.digest()));
            Mine { scope: scope.clone(), version, digest }
        });
        let frame = Frame::Status { scopes: mine.collect() };
        self.send(&peer, frame);
        self.peers.insert(peer, Peer::default());
    }

    fn down(&mut self, peer: &NodeId) {
        self.peers.remove(peer);
        self.wanted.retain(|_, wanted| wanted.peer != *peer);
        for owner in self.owners.nodes.values_mut() {
            owner.replicas.values_mut().for_each(|replica| replica.interrupt(peer));
        }
        if let Some(owner) = self.owners.nodes.get_mut(peer) {
            owner.replicas.values_mut().for_each(|replica| replica.is_synced = false);
        }
        // Nobody but itself has ever said that it is there.
        if self.owners.life(peer) == Life::Unknown {
            self.owners.remove(peer);
        }
    }

    fn live(&mut self, node: NodeId) {
        if node == self.id || self.owners.is_live(&node) {
            return;
        }
        self.owners.nodes.entry(node.clone()).or_default().life = Life::Live;
        self.owners.tell(&node, Cause::Synced, &mut self.outputs);
        let ids: Vec<_> = self.peers.keys().cloned().collect();
        ids.iter().for_each(|peer| self.fetch(peer));
    }

    fn hidden(&mut self, node: &NodeId) {
        if self.owners.is_live(node) {
            self.owners.tell(node, Cause::Died, &mut self.outputs);
        }
        if let Some(owner) = self.owners.nodes.get_mut(node) {
            owner.life = Life::Hidden;
            owner.replicas.values_mut().for_each(|replica| replica.is_synced = false);
        }
        self.is_gone(node);
    }

    fn over(&mut self, node: &NodeId) {
        if self.owners.is_live(node) {
            self.owners.tell(node, Cause::Left, &mut self.outputs);
        }
        self.owners.remove(node);
        self.is_gone(node);
    }

    /// The log goes on under another id, which nobody knows yet: all that it says is written anew.
    fn renewed(&mut self, id: NodeId) {
        let peers: Vec<_> = self.peers.keys().cloned().collect();
        peers.iter().for_each(|peer| self.down(peer));
        let old = std::mem::replace(&mut self.id, id);
        self.owners.remove(&self.id);
        let mut entries = Vec::new();
        for (scope, log) in &mut self.own {
            let log = std::mem::take(log);
            let live = log.versions(0, u64::MAX).filter_map(|version| Some((version, log.at(version)?)));
            for (version, (key, state)) in live {
                let (scope, owner, key) = (scope.clone(), old.clone(), key.clone());
                entries.push((scope.clone(), key.clone(), state.clone()));
                let change = Change { scope, owner, key, version, state: None, cause: Cause::Left };
                self.outputs.push_back(Output::Changed(change));
            }
        }
        for (scope, key, state) in entries {
            self.write(&scope, key, state);
        }
    }

    fn handle_frame(&mut self, from: &NodeId, frame: Frame, now: Instant) {
        if self.peers.get(from).is_none_or(|peer| peer.is_broken) {
            return;
        }
        match frame {
            Frame::Status { scopes } => self.handle_status(from, scopes),
            Frame::Entries { scope, owner, since, upto, is_reset, digest, entries } => {
                self.counters.entries_received += entries.len() as u64;
                let asked = owner.as_ref().and_then(|owner| self.wanted.get(&(scope.clone(), owner.clone())));
                let asked = asked.filter(|wanted| wanted.peer == *from).map_or(0, |wanted| wanted.version);
                let of = owner.as_ref().unwrap_or(from);
                let batch = Batch { scope: &scope, owner: of, from, since, upto, is_reset, digest, entries, asked };
                self.handle_entries(batch, owner.as_ref(), now);
            }
            Frame::Have { scope, owner, version } => self.handle_have(from, &scope, owner, version, now),
            Frame::Digest { scope, digest } => self.handle_digest(from, &scope, digest),
            Frame::Vector { scope, logs, is_question } => self.handle_vector(from, &scope, logs, is_question, now),
            Frame::Want { scope, owner, since } => self.handle_want(from, scope, owner, since),
        }
    }

    /// The peer says what it has: from there, it is sent what there is.
    fn handle_status(&mut self, from: &NodeId, scopes: Vec<Mine>) {
        let Some(peer) = self.peers.get_mut(from).filter(|peer| peer.own.is_none()) else { return };
        let mut logs = BTreeMap::new();
        for Mine { scope, version, digest } in scopes {
            let Some(own) = self.own.get(&scope) else { continue };
            let (cursor, is_known) = own.cursor(version, digest);
            let acked = if is_known { version } else { 0 };
            self.counters.repairs += u64::from(!is_known && version > 0);
            if acked > 0 {
                let (peer, scope) = (from.clone(), scope.clone());
                self.outputs.push_back(Output::Acknowledged { peer, scope, version });
            }
            logs.insert(scope, Sent { cursor, acked, repaired: None });
        }
        peer.own = Some(logs);
        self.push(from);
        self.ask_all(from, false);
    }

    fn handle_entries(&mut self, batch: Batch<'_>, relayed: Option<&NodeId>, now: Instant) {
        let (from, owner, scope) = (batch.from, batch.owner, batch.scope);
        if !self.peers.get(from).is_some_and(|peer| peer.shares(scope)) {
            return self.broken(from, Broken::Scope);
        }
        if let Err(broken) = batch.check() {
            return self.broken(from, broken);
        }
        let is_own = owner == from;
        let key = (scope.clone(), owner.clone());
        let is_wanted = self.wanted.get(&key).is_some_and(|wanted| wanted.peer == *from);
        let is_taken = is_own || is_wanted && self.owners.is_live(owner) && !self.is_direct(owner);
        let outcome = if is_taken {
            let own = self.own_len();
            let Self { owners, limits, counters, outputs, .. } = self;
            Some(owners.accept(batch, limits, own, &mut counters.left_out, outputs))
        } else {
            self.count_contradictions(owner, scope, &batch.entries);
            None
        };
        match outcome {
            Some(Outcome::Broken(broken)) => return self.broken(from, broken),
            Some(Outcome::Partial) => _ = self.wanted.get_mut(&key).map(|wanted| wanted.moves = true),
            Some(Outcome::Whole) => _ = self.wanted.remove(&key),
            Some(Outcome::Differs) => {
                self.wanted.remove(&key);
                if is_own {
                    self.repair(owner, scope, now);
                }
            }
            // It is asked for again, but once; of another than the owner, with the next comparison.
            Some(Outcome::Gap) if is_own && !is_wanted => {
                let have = self.owners.version(owner, scope);
                self.want(owner, scope, owner, have, have);
            }
            Some(Outcome::Gap) | None => {}
        }
        let version = if *owner == self.id { self.own_version(scope) } else { self.owners.version(owner, scope) };
        self.send(from, Frame::Have { scope: scope.clone(), owner: relayed.cloned(), version });
        if outcome.is_some() {
            self.advanced(owner, scope);
            self.fetch(from);
        }
    }

    /// Counts what a peer says of a log that this node knows better.
    fn count_contradictions(&mut self, owner: &NodeId, scope: &str, entries: &[Entry]) {
        let own = (*owner == self.id).then(|| self.own.get(scope)).flatten();
        let Some(log) = own.or_else(|| Some(&self.owners.replica(owner, scope)?.log)) else { return };
        let contradicts = |entry: &&Entry| {
            let here = log.at(entry.version);
            let is_own_future = own.is_some() && entry.version > log.version();
            is_own_future || here.is_some_and(|here| here != (&entry.key, &entry.state))
        };
        self.counters.contradicted += entries.iter().filter(contradicts).count() as u64;
    }

    fn handle_have(&mut self, from: &NodeId, scope: &Text, owner: Option<NodeId>, version: u64, now: Instant) {
        let Some(peer) = self.peers.get_mut(from) else { return };
        peer.answered(scope, owner.as_ref());
        if owner.is_none()
            && let Some(sent) = peer.own.as_mut().and_then(|own| own.get_mut(scope))
        {
            let own = self.own.get(scope).map_or(0, Log::version);
            if version > own {
                self.send_anew(from, scope, now);
            } else if version > sent.acked {
                sent.acked = version;
                let (peer, scope) = (from.clone(), scope.clone());
                self.outputs.push_back(Output::Acknowledged { peer, scope, version });
            }
        }
        self.push(from);
    }
}

#[cfg(test)]
mod tests;
