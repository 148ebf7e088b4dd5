//! Finding and repairing what two nodes hold differently.
//!
//! ```text
//! one                              other
//!  |--- digest of all logs in the scope -->|   equal: silence
//!  |<-- versions and digests of all logs --|   else
//!  |--- the same ------------------------->|
//!  |<-- wants, entries ------------------->|   each what the other has more of
//! ```

use std::collections::BTreeMap;
use std::time::Instant;

use super::log::{Cursor, Log, hash_log, is_tombstone};
use super::peer::{Peer, Sources};
use super::replica::Life;
use super::{Broken, Output, Replication};
use crate::id::NodeId;
use crate::wire::services::Text;
use crate::wire::services::replication::{Held, Key, Replication as Frame};

/// Logs that are asked of one peer at once.
pub(super) const OPEN_MAX: usize = 64;

/// Logs that one peer has more of, and that are remembered to be asked for.
const OFFERS_MAX: usize = 16 * 1024;

/// Logs of one frame, in bytes.
const VECTOR: usize = 48 * 1024;

/// A log that a peer has more of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Offer {
    version: u64,
    /// It is another than here, at the same version.
    is_other: bool,
}

/// A log that was asked for.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub(super) peer: NodeId,
    /// What the peer has at least.
    pub(super) version: u64,
    /// Something of it came in this interval.
    pub(super) moves: bool,
}

/// Getting all that a peer has.
#[derive(Debug, Default)]
pub(super) struct Syncing {
    /// How many answers of the peer are to come in each scope; not known until it has said in which it takes part.
    open: Option<BTreeMap<Text, usize>>,
    /// What is lacking, and up to which version.
    lacking: BTreeMap<(Text, NodeId), u64>,
    /// It was asked again: what nobody here holds for live by now is not waited for.
    is_again: bool,
}

impl Replication {
    /// Sums up all logs of a scope.
    pub(super) fn digest(&self, scope: &Text) -> u64 {
        let own = self.own.get(scope).filter(|own| own.version() > 0).map_or(0, |own| hash_log(&self.id, own));
        let others = self.owners.live(scope).map(|(owner, replica)| hash_log(owner, &replica.log));
        others.fold(own, u64::wrapping_add)
    }

    /// Compares with a peer in each scope, and looks after what has been asked for.
    pub(super) fn start_rounds(&mut self, now: Instant) {
        self.wanted.retain(|_, wanted| std::mem::take(&mut wanted.moves));
        let owners = &self.owners;
        for peer in self.peers.values_mut() {
            peer.questions = 0;
            let is_syncing = peer.syncing.is_some();
            peer.offers.retain(|(_, owner), _| is_syncing || owners.is_live(owner));
        }
        self.ask_for_left_out(now);
        let syncing: Vec<_> =
            self.peers.iter().filter(|(_, peer)| peer.syncing.is_some()).map(|(id, _)| id.clone()).collect();
        for peer in syncing {
            self.ask_all(&peer, true);
        }
        for scope in self.scopes.clone() {
            let direct = self.peers.iter().filter(|(_, peer)| peer.is_direct() && peer.shares(&scope));
            let direct: Vec<_> = direct.map(|(id, _)| id.clone()).collect();
            if let Some(at) = (!direct.is_empty()).then(|| self.rng.usize(..direct.len())) {
                self.counters.rounds += 1;
                let frame = Frame::Digest { digest: self.digest(&scope), scope: scope.clone() };
                self.send(&direct[at], frame);
            }
            self.look_for_others(&scope, direct.is_empty());
        }
        let ids: Vec<_> = self.peers.keys().cloned().collect();
        ids.iter().for_each(|peer| self.fetch(peer));
    }

    /// Dials one of those who take part in a scope: when none of them has a link, or to this one there never was one and
    /// nobody has handed on its log. Else two groups of nodes might never hear of each other.
    fn look_for_others(&mut self, scope: &Text, is_alone: bool) {
        if scope.is_empty() {
            return;
        }
        let key = Key::Arbiter { scope: scope.clone() };
        let members = self
            .owners
            .live("")
            .filter(|(_, replica)| replica.log.get(&key).is_some_and(|(_, state)| !is_tombstone(state)));
        let members: Vec<_> = members.map(|(owner, _)| owner).collect();
        if members.is_empty() {
            return;
        }
        let member = members[self.rng.usize(..members.len())];
        let is_unheard = !self.peers.contains_key(member) && self.owners.version(member, scope) == 0;
        let is_linked = self.peers.get(member).is_some_and(|peer| peer.is_linked);
        if (is_alone && !is_linked) || is_unheard {
            self.outputs.push_back(Output::Dial { peer: member.name().clone() });
        }
    }

    /// Logs for which there was no room are asked for when there may be.
    fn ask_for_left_out(&mut self, now: Instant) {
        let room = self.limits.total_max.saturating_sub(self.owners.live + self.own_len());
        let mut asked = Vec::new();
        for (node, owner) in &mut self.owners.nodes {
            for (scope, replica) in &mut owner.replicas {
                if replica.left_out > 0 && replica.left_out <= room {
                    asked.push((node.clone(), scope.clone()));
                }
            }
        }
        for (owner, scope) in asked {
            if self.is_direct(&owner) {
                self.repair(&owner, &scope, now);
            } else if let Some(replica) = self.owners.replica_mut(&owner, &scope) {
                replica.forget_how_far();
            }
        }
    }

    pub(super) fn handle_digest(&mut self, from: &NodeId, scope: &Text, digest: u64) {
        let Some(peer) = self.peers.get_mut(from).filter(|peer| peer.shares(scope)) else { return };
        if !peer.may_ask() {
            return self.broken(from, Broken::Questions);
        }
        if self.digest(scope) != digest {
            self.ask(from, scope);
        }
    }

    /// Asks a peer for all that it has in a scope, unless it is asked already.
    fn ask(&mut self, peer: &NodeId, scope: &Text) {
        if self.peers.get(peer).is_some_and(|peer| !peer.asked.contains_key(scope)) {
            self.send_question(peer, scope);
        }
    }

    pub(super) fn sync_with(&mut self, peer: &NodeId) {
        if let Some(state) = self.peers.get_mut(peer).filter(|peer| !peer.is_broken) {
            state.syncing = Some(Syncing::default());
            self.ask_all(peer, false);
        }
    }

    /// Asks a peer that this node gets everything from, in each scope.
    pub(super) fn ask_all(&mut self, peer: &NodeId, is_again: bool) {
        let Some(state) = self.peers.get_mut(peer) else { return };
        let Some(scopes) = state.own.as_ref().map(|own| own.keys().cloned().collect::<Vec<_>>()) else { return };
        let Some(syncing) = &mut state.syncing else { return };
        if syncing.open.as_ref().is_some_and(|open| !open.is_empty()) {
            return;
        }
        // An answer that is on its way to an earlier question does not count.
        let open = scopes.iter().map(|scope| (scope.clone(), 1 + state.asked.get(scope).copied().unwrap_or_default()));
        *syncing = Syncing { open: Some(open.collect()), lacking: BTreeMap::new(), is_again };
        for scope in scopes {
            self.send_question(peer, &scope);
        }
        self.check_synced(peer);
    }

    fn send_question(&mut self, to: &NodeId, scope: &Text) {
        if let Some(peer) = self.peers.get_mut(to) {
            *peer.asked.entry(scope.clone()).or_default() += 1;
            self.send_vector(to, scope, true);
        }
    }

    /// The last part of an answer has come.
    fn answered(&mut self, from: &NodeId, scope: &Text) {
        let count_down = |open: &mut BTreeMap<Text, usize>| {
            if let Some(count) = open.get_mut(scope) {
                *count -= 1;
                if *count == 0 {
                    open.remove(scope);
                }
            }
        };
        if let Some(peer) = self.peers.get_mut(from) {
            count_down(&mut peer.asked);
            peer.syncing.as_mut().and_then(|syncing| syncing.open.as_mut()).map(count_down);
        }
    }

    /// Sends what this node has of each log in a scope. Its own comes last, and ends it.
    fn send_vector(&mut self, to: &NodeId, scope: &Text, is_question: bool) {
        let held =
            |owner: &NodeId, log: &Log| Held { owner: owner.clone(), version: log.version(), digest: log.digest() };
        let mut frames = Vec::new();
        let (mut logs, mut bytes) = (Vec::new(), 0);
        for (owner, replica) in self.owners.live(scope).filter(|(_, replica)| replica.can_serve()) {
            let held = held(owner, &replica.log);
            let cost = held.size_bound();
            if bytes + cost > VECTOR {
                frames.push(std::mem::take(&mut logs));
                bytes = 0;
            }
            logs.push(held);
            bytes += cost;
        }
        logs.push(held(&self.id, &self.own[scope]));
        frames.push(logs);
        for logs in frames {
            self.send(to, Frame::Vector { scope: scope.clone(), logs, is_question });
        }
    }

    pub(super) fn handle_vector(
        &mut self,
        from: &NodeId,
        scope: &Text,
        logs: Vec<Held>,
        is_question: bool,
        now: Instant,
    ) {
        let Some(peer) = self.peers.get_mut(from).filter(|peer| peer.shares(scope)) else { return };
        if is_question && !peer.may_ask() {
            return self.broken(from, Broken::Questions);
        }
        let is_answer = !is_question;
        let ends = logs.iter().any(|held| held.owner == *from);
        for held in logs {
            self.compare(from, scope, held, is_answer, now);
        }
        if ends && is_question {
            self.send_vector(from, scope, false);
        }
        if ends && is_answer {
            self.answered(from, scope);
        }
        self.fetch(from);
        self.check_synced(from);
    }

    /// Looks at what a peer has of one log.
    fn compare(&mut self, from: &NodeId, scope: &Text, held: Held, is_answer: bool, now: Instant) {
        let Held { owner, version, digest } = held;
        if owner == self.id {
            return self.compare_own(from, scope, version, digest, now);
        }
        let have = self.owners.version(&owner, scope);
        let replica = self.owners.replica(&owner, scope);
        let differs =
            replica.is_some_and(|replica| have == version && replica.is_whole() && replica.log.digest() != digest);
        if owner == *from && differs {
            self.repair(from, scope, now);
        }
        let is_direct = self.is_direct(&owner);
        let life = self.owners.life(&owner);
        let Some(peer) = self.peers.get_mut(from) else { return };
        let waits = peer.syncing.as_ref().map(|syncing| !syncing.is_again);
        let is_possible = match life {
            Life::Live => true,
            // Membership may hear of it yet.
            Life::Unknown => owner == *from || waits == Some(true),
            Life::Hidden => owner == *from,
        };
        if !is_possible || version == 0 {
            return;
        }
        let key = (scope.clone(), owner);
        if have < version
            && is_answer
            && let Some(syncing) = &mut peer.syncing
            && syncing.lacking.len() < OFFERS_MAX
        {
            syncing.lacking.insert(key.clone(), version);
        }
        // Nobody says who is right when two have different things of a third who is linked to neither. A coin makes them
        // agree in the end.
        let is_other = differs && !is_direct && self.rng.bool();
        if (have < version || is_other) && !is_direct && key.1 != *from && peer.offers.len() < OFFERS_MAX {
            peer.offers.insert(key, Offer { version, is_other });
        }
    }

    /// Looks at what a peer has of this node's own log.
    fn compare_own(&mut self, from: &NodeId, scope: &Text, version: u64, digest: u64, now: Instant) {
        let Some(own) = self.own.get(scope) else { return };
        let is_wrong = version > own.version() || version == own.version() && digest != own.digest();
        if is_wrong {
            self.send_anew(from, scope, now);
        }
    }

    /// The peer has something else than this node wrote: it gets all of it, once in an interval.
    pub(super) fn send_anew(&mut self, to: &NodeId, scope: &Text, now: Instant) {
        let interval = self.limits.sync_interval;
        let sent = self.peers.get_mut(to).and_then(|peer| peer.own.as_mut()?.get_mut(scope));
        let Some(sent) = sent else { return };
        if sent.repaired.is_none_or(|last| last + interval <= now) {
            (sent.repaired, sent.cursor) = (Some(now), Cursor::anew());
            self.counters.repairs += 1;
            self.push(to);
        }
    }

    /// Asks an owner for all of its log, once in an interval.
    pub(super) fn repair(&mut self, owner: &NodeId, scope: &Text, now: Instant) {
        let interval = self.limits.sync_interval;
        let Some(replica) = self.owners.replica_mut(owner, scope) else { return };
        if replica.repaired.is_some_and(|last| now < last + interval) {
            return;
        }
        replica.repaired = Some(now);
        self.counters.repairs += 1;
        self.want(owner, scope, owner, 0, 0);
    }

    /// Asks a peer for a log, from that version on.
    pub(super) fn want(&mut self, peer: &NodeId, scope: &Text, owner: &NodeId, since: u64, version: u64) {
        let wanted = Wanted { peer: peer.clone(), version, moves: true };
        self.wanted.insert((scope.clone(), owner.clone()), wanted);
        self.send(peer, Frame::Want { scope: scope.clone(), owner: owner.clone(), since });
    }

    /// Asks a peer for what it has more of, as far as that is not to be had from the owner, and not too much at once.
    pub(super) fn fetch(&mut self, from: &NodeId) {
        let Some(peer) = self.peers.get_mut(from).filter(|peer| peer.is_direct() && !peer.offers.is_empty()) else {
            return;
        };
        let mut open = self.wanted.values().filter(|wanted| wanted.peer == *from).count();
        let offers = std::mem::take(&mut peer.offers);
        let mut rest = BTreeMap::new();
        for (key, offer) in offers {
            let (scope, owner) = &key;
            let have = self.owners.version(owner, scope);
            let is_useful = have < offer.version || offer.is_other && have == offer.version;
            match self.owners.life(owner) {
                Life::Live if self.is_direct(owner) || !is_useful => {}
                Life::Live if self.wanted.contains_key(&key) => {}
                Life::Live if open < OPEN_MAX => {
                    open += 1;
                    let since = if offer.is_other { 0 } else { have };
                    self.want(from, scope, owner, since, offer.version);
                }
                Life::Live | Life::Unknown => _ = rest.insert(key, offer),
                Life::Hidden => {}
            }
        }
        if let Some(peer) = self.peers.get_mut(from) {
            peer.offers = rest;
        }
    }

    pub(super) fn handle_want(&mut self, from: &NodeId, scope: Text, owner: NodeId, since: u64) {
        let Some(peer) = self.peers.get_mut(from).filter(|peer| peer.shares(&scope)) else { return };
        let cursor = if since == 0 { Cursor::anew() } else { Cursor::after(since) };
        if owner == self.id {
            let is_asked_too_often = !peer.may_ask();
            if let Some(sent) = peer.own.as_mut().and_then(|own| own.get_mut(&scope)) {
                sent.cursor = cursor;
            }
            if is_asked_too_often {
                return self.broken(from, Broken::Questions);
            }
        } else if self.owners.served(&owner, &scope).is_some_and(|log| since <= log.version())
            && !peer.want(scope, owner, cursor)
        {
            return self.broken(from, Broken::Questions);
        }
        self.push(from);
    }

    /// A log has come so far: that may be what somebody waits for.
    pub(super) fn advanced(&mut self, owner: &NodeId, scope: &Text) {
        let version = self.owners.version(owner, scope);
        self.no_longer_lacking(|(of, who), lacking| who == owner && of == scope && lacking <= version);
    }

    /// A node is gone: nobody waits for its log.
    pub(super) fn is_gone(&mut self, node: &NodeId) {
        self.wanted.retain(|(_, owner), _| owner != node);
        self.no_longer_lacking(|(_, owner), _| owner == node);
    }

    fn no_longer_lacking(&mut self, is_over: impl Fn(&(Text, NodeId), u64) -> bool) {
        let mut changed = Vec::new();
        for (id, peer) in &mut self.peers {
            if let Some(syncing) = &mut peer.syncing {
                syncing.lacking.retain(|key, version| !is_over(key, *version));
                changed.push(id.clone());
            }
        }
        changed.iter().for_each(|peer| self.check_synced(peer));
    }

    fn check_synced(&mut self, peer: &NodeId) {
        let is_over =
            |syncing: &Syncing| syncing.open.as_ref().is_some_and(BTreeMap::is_empty) && syncing.lacking.is_empty();
        if let Some(state) = self.peers.get_mut(peer)
            && state.syncing.as_ref().is_some_and(is_over)
        {
            state.syncing = None;
            self.outputs.push_back(Output::Synced { peer: peer.clone() });
        }
    }

    /// Whether the logs of that node come from itself.
    pub(super) fn is_direct(&self, owner: &NodeId) -> bool {
        self.peers.get(owner).is_some_and(Peer::is_direct)
    }

    pub(super) fn push(&mut self, to: &NodeId) {
        let Self { peers, own, owners, limits, counters, outputs, .. } = self;
        if let Some(peer) = peers.get_mut(to) {
            peer.push(to, Sources { own, owners }, limits, counters, outputs);
        }
    }
}
