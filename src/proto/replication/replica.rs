//! What this node has of the logs of others, and how entries that arrive change it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Instant;

use super::log::{Log, fits, is_tombstone};
use super::{Broken, Cause, Change, Limits, Output};
use crate::id::NodeId;
use crate::wire::services::Text;
use crate::wire::services::replication::{Entry, Key, State};

/// The other nodes whose logs are here, or that live.
#[derive(Debug, Default)]
pub(super) struct Owners {
    pub(super) nodes: BTreeMap<NodeId, Owner>,
    /// Entries of all of them, without tombstones.
    pub(super) live: usize,
}

#[derive(Debug, Default)]
pub(super) struct Owner {
    pub(super) life: Life,
    pub(super) replicas: BTreeMap<Text, Replica>,
}

/// What membership says of a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Life {
    /// Nothing yet: it has a session.
    #[default]
    Unknown,
    Live,
    Hidden,
}

#[derive(Debug, Default)]
pub(super) struct Replica {
    pub(super) log: Log,
    /// A log that is being sent anew.
    pub(super) building: Option<Building>,
    /// Entries up to here came with a log that was sent anew, but not to its end.
    torn: u64,
    /// It was in step with its source, so that what follows is written just now.
    pub(super) is_synced: bool,
    /// Entries that there was no room for.
    pub(super) left_out: usize,
    /// When all of it was last asked for because it was another than the owner's.
    pub(super) repaired: Option<Instant>,
}

/// How far a log has arrived that is being sent anew.
#[derive(Debug)]
pub(super) struct Building {
    pub(super) from: NodeId,
    upto: u64,
    /// Versions of entries that are not in it. They stay until all of it is here, because their keys may come yet.
    stale: Vec<u64>,
}

/// Entries of one log, as they arrived.
#[derive(Debug)]
pub(super) struct Batch<'a> {
    pub(super) scope: &'a Text,
    pub(super) owner: &'a NodeId,
    pub(super) from: &'a NodeId,
    pub(super) since: u64,
    pub(super) upto: u64,
    pub(super) is_reset: bool,
    pub(super) digest: Option<u64>,
    pub(super) entries: Vec<Entry>,
    /// What was asked for holds at least this: what is sent anew may replace what is here.
    pub(super) asked: u64,
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// There is more to come.
    Partial,
    /// That is all that the sender has, and it is the same here.
    Whole,
    /// That is all that the sender has, and it is another than what is here.
    Differs,
    /// Something before it is lacking.
    Gap,
    Broken(Broken),
}

impl Batch<'_> {
    fn is_own(&self) -> bool {
        self.owner == self.from
    }

    /// Whether the entries can be what the frame says that they are.
    pub(super) fn check(&self) -> Result<(), Broken> {
        let mut last = self.since;
        for entry in &self.entries {
            let is_next = last < entry.version && entry.version <= self.upto;
            if !is_next || !fits(&entry.key, &entry.state) {
                return Err(Broken::Versions);
            }
            if matches!(entry.key, Key::Arbiter { .. }) && !self.scope.is_empty() {
                return Err(Broken::Scope);
            }
            last = entry.version;
        }
        let is_possible = self.since <= self.upto && (!self.is_reset || self.since == 0);
        if is_possible { Ok(()) } else { Err(Broken::Versions) }
    }
}

impl Owners {
    pub(super) fn life(&self, node: &NodeId) -> Life {
        self.nodes.get(node).map_or(Life::Unknown, |owner| owner.life)
    }

    pub(super) fn is_live(&self, node: &NodeId) -> bool {
        self.life(node) == Life::Live
    }

    pub(super) fn replica(&self, node: &NodeId, scope: &str) -> Option<&Replica> {
        self.nodes.get(node)?.replicas.get(scope)
    }

    pub(super) fn replica_mut(&mut self, node: &NodeId, scope: &str) -> Option<&mut Replica> {
        self.nodes.get_mut(node)?.replicas.get_mut(scope)
    }

    /// How far the log of that node is here.
    pub(super) fn version(&self, node: &NodeId, scope: &str) -> u64 {
        self.replica(node, scope).map_or(0, |replica| replica.log.version())
    }

    /// The logs of live nodes in a scope, as far as anything of them is here.
    pub(super) fn live<'a>(&'a self, scope: &'a str) -> impl Iterator<Item = (&'a NodeId, &'a Replica)> {
        let live = self.nodes.iter().filter(|(_, owner)| owner.life == Life::Live);
        live.filter_map(move |(node, owner)| Some((node, owner.replicas.get(scope)?)))
            .filter(|(_, replica)| !replica.log.is_empty())
    }

    /// A log that can be handed on.
    pub(super) fn served(&self, node: &NodeId, scope: &str) -> Option<&Log> {
        let owner = self.nodes.get(node).filter(|owner| owner.life == Life::Live)?;
        owner.replicas.get(scope).filter(|replica| replica.can_serve()).map(|replica| &replica.log)
    }

    /// Says of all that is to be seen of a node that it is so, or for that cause no longer.
    pub(super) fn tell(&self, node: &NodeId, cause: Cause, outputs: &mut VecDeque<Output>) {
        let Some(owner) = self.nodes.get(node) else { return };
        for (scope, replica) in &owner.replicas {
            for (key, version, state) in replica.log.visible() {
                let state = (cause == Cause::Synced).then(|| state.clone());
                let (scope, owner, key) = (scope.clone(), node.clone(), key.clone());
                outputs.push_back(Output::Changed(Change { scope, owner, key, version, state, cause }));
            }
        }
    }

    /// Forgets all of a node.
    pub(super) fn remove(&mut self, node: &NodeId) {
        if let Some(owner) = self.nodes.remove(node) {
            self.live -= owner.live();
        }
    }

    /// Takes in what arrived. `own` entries are of this node itself.
    pub(super) fn accept(
        &mut self,
        batch: Batch<'_>,
        limits: &Limits,
        own: usize,
        left_out: &mut u64,
        outputs: &mut VecDeque<Output>,
    ) -> Outcome {
        let owner = self.nodes.entry(batch.owner.clone()).or_default();
        let is_shown = owner.life == Life::Live;
        let before = owner.live();
        let replica = owner.replicas.entry(batch.scope.clone()).or_default();
        let here = replica.log.live();
        let others = self.live - here + own;
        let room = Room {
            owner: limits.owner_max.saturating_sub(before - here),
            total: limits.total_max.saturating_sub(others),
        };
        let was_left_out = replica.left_out;
        let mut teller = Teller { scope: batch.scope, owner: batch.owner, is_shown, outputs };
        let outcome = replica.accept(batch, room, limits.tombstones_max, &mut teller);
        *left_out += replica.left_out.saturating_sub(was_left_out) as u64;
        self.live = self.live + replica.log.live() - here;
        outcome
    }
}

impl Owner {
    pub(super) fn live(&self) -> usize {
        self.replicas.values().map(|replica| replica.log.live()).sum()
    }
}

/// How many entries the replica may have.
#[derive(Clone, Copy, Debug)]
struct Room {
    owner: usize,
    total: usize,
}

/// Where changes of one log are told.
struct Teller<'a> {
    scope: &'a Text,
    owner: &'a NodeId,
    is_shown: bool,
    outputs: &'a mut VecDeque<Output>,
}

impl Teller<'_> {
    fn tell(&mut self, key: Key, version: u64, state: Option<State>, cause: Cause) {
        if self.is_shown {
            let (scope, owner) = (self.scope.clone(), self.owner.clone());
            self.outputs.push_back(Output::Changed(Change { scope, owner, key, version, state, cause }));
        }
    }
}

impl Replica {
    /// Everything up to its version is here, and nothing above it.
    pub(super) fn is_whole(&self) -> bool {
        self.building.is_none() && self.torn <= self.log.version() && self.left_out == 0
    }

    pub(super) fn can_serve(&self) -> bool {
        self.is_whole() && self.log.version() > 0
    }

    /// There may be room for what was left out: it is asked for from the beginning.
    pub(super) fn forget_how_far(&mut self) {
        self.left_out = 0;
        self.torn = self.torn.max(self.log.version());
        self.log.rewind();
    }

    /// Nobody goes on to send it anew.
    pub(super) fn interrupt(&mut self, from: &NodeId) {
        if self.building.as_ref().is_some_and(|building| building.from == *from) {
            self.building = None;
        }
    }

    fn accept(&mut self, batch: Batch<'_>, room: Room, tombstones_max: usize, teller: &mut Teller<'_>) -> Outcome {
        let is_own = batch.is_own();
        let have = self.log.version();
        let goes_on = |building: &Building| building.from == *batch.from && building.upto == batch.since;
        if batch.is_reset {
            if !is_own && batch.asked < have {
                return Outcome::Partial;
            }
            self.building = Some(Building { from: batch.from.clone(), upto: 0, stale: Vec::new() });
            self.left_out = 0;
            return self.rebuild(batch, room, tombstones_max, teller);
        }
        if self.building.as_ref().is_some_and(goes_on) {
            return self.rebuild(batch, room, tombstones_max, teller);
        }
        if batch.since > have {
            return Outcome::Gap;
        }
        // Whatever else is under way, the owner is the better source.
        self.building = self.building.take().filter(|building| !is_own && building.from != *batch.from);
        let cause = if self.is_synced { Cause::Written } else { Cause::Synced };
        for entry in batch.entries.into_iter().filter(|entry| entry.version > have) {
            if let Err(broken) = self.take(entry, is_own, false, room, tombstones_max, cause, teller) {
                return Outcome::Broken(broken);
            }
        }
        self.log.advance(batch.upto);
        self.compare(batch.upto, batch.digest)
    }

    /// Takes in the next part of a log that is being sent anew.
    fn rebuild(&mut self, batch: Batch<'_>, room: Room, tombstones_max: usize, teller: &mut Teller<'_>) -> Outcome {
        let is_own = batch.is_own();
        let Some(mut building) = self.building.take() else { return Outcome::Gap };
        let sent: BTreeSet<u64> = batch.entries.iter().map(|entry| entry.version).collect();
        building.stale.extend(self.log.versions(batch.since, batch.upto).filter(|version| !sent.contains(version)));
        self.torn = self.torn.max(batch.upto);
        for entry in batch.entries {
            if let Err(broken) = self.take(entry, is_own, true, room, tombstones_max, Cause::Synced, teller) {
                return Outcome::Broken(broken);
            }
        }
        building.upto = batch.upto;
        if batch.digest.is_none() {
            self.building = Some(building);
            return Outcome::Partial;
        }
        if !is_own && batch.upto < self.log.version() {
            return Outcome::Differs;
        }
        let beyond = if is_own { self.log.versions(batch.upto, u64::MAX).collect() } else { Vec::new() };
        for version in building.stale.into_iter().chain(beyond) {
            self.drop(version, batch.upto, teller);
        }
        self.log.rebase(batch.upto);
        if is_own {
            self.torn = 0;
        }
        match self.compare(batch.upto, batch.digest) {
            // All that is here is what the owner just sent.
            Outcome::Differs if is_own => Outcome::Broken(Broken::Versions),
            outcome => outcome,
        }
    }

    /// Whether all that the sender has, up to that version, is the same here.
    fn compare(&mut self, upto: u64, digest: Option<u64>) -> Outcome {
        let Some(digest) = digest else { return Outcome::Partial };
        let is_comparable = upto == self.log.version() && self.is_whole();
        if is_comparable && digest != self.log.digest() {
            return Outcome::Differs;
        }
        self.is_synced = true;
        Outcome::Whole
    }

    /// Takes in an entry, unless there is a later one of its key. The owner's word stands in any case when it is sent anew.
    #[expect(clippy::too_many_arguments, reason = "one step of two loops")]
    fn take(
        &mut self,
        entry: Entry,
        is_own: bool,
        is_anew: bool,
        room: Room,
        tombstones_max: usize,
        cause: Cause,
        teller: &mut Teller<'_>,
    ) -> Result<(), Broken> {
        let Entry { version, key, state } = entry;
        let present = self.log.get(&key);
        let is_same = present == Some((version, &state));
        let is_later = present.is_none_or(|(here, _)| here < version || here == version && (is_own || is_anew));
        if is_same || !(is_later || is_own && is_anew) {
            return Ok(());
        }
        let grows = !is_tombstone(&state) && present.is_none_or(|(_, state)| is_tombstone(state));
        if grows && self.log.live() >= room.owner && is_own {
            return Err(Broken::Limit);
        }
        if grows && self.log.live() >= room.owner.min(room.total) {
            self.left_out += 1;
            return Ok(());
        }
        let other = self.log.at(version).map(|(other, _)| other.clone()).filter(|other| *other != key);
        if let Some(other) = other {
            self.log.remove(&other);
            teller.tell(other, version, None, Cause::Synced);
        }
        teller.tell(key.clone(), version, Some(state.clone()), cause);
        self.log.put(version, key, state, tombstones_max);
        Ok(())
    }

    /// Drops an entry that is no longer in the log, unless a later one of its key has come.
    fn drop(&mut self, version: u64, upto: u64, teller: &mut Teller<'_>) {
        if let Some((key, _)) = self.log.at(version).map(|(key, state)| (key.clone(), state)) {
            self.log.remove(&key);
            teller.tell(key, upto, None, Cause::Synced);
        }
    }
}
