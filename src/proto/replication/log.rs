//! One log: its entries by key and by version, a digest over them, and what of it is to be sent next.

use std::collections::{BTreeMap, BTreeSet};

use crate::id::NodeId;
use crate::wire::services::replication::{Entry, Key, State};

/// The log of one node in one scope: the original, or what another node has of it.
#[derive(Debug, Default)]
pub(super) struct Log {
    entries: BTreeMap<Key, (u64, State)>,
    keys: BTreeMap<u64, Key>,
    /// The versions of tombstones.
    tombstones: BTreeSet<u64>,
    digest: u64,
    /// Everything up to here is in.
    version: u64,
    /// Tombstones up to here may be missing.
    floor: u64,
}

/// How far a log was sent to one peer.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Cursor {
    sent: u64,
    way: Way,
    /// The peer was told that it has everything.
    is_done: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Way {
    #[default]
    Delta,
    /// The log is to be sent from its beginning.
    Anew,
    /// It is being sent from its beginning, without the tombstones that it had then.
    Reset { until: u64 },
}

/// The entries of a log with versions above `since`, up to `upto`.
#[derive(Debug)]
pub(super) struct Chunk {
    pub(super) since: u64,
    pub(super) upto: u64,
    pub(super) is_reset: bool,
    pub(super) digest: Option<u64>,
    pub(super) entries: Vec<Entry>,
    /// What the entries take on the wire, at most.
    pub(super) bytes: usize,
}

impl Cursor {
    /// Of a peer that has the log up to this version.
    pub(super) fn after(version: u64) -> Self {
        Self { sent: version, ..Self::default() }
    }

    /// Of a peer that gets all of the log anew.
    pub(super) fn anew() -> Self {
        Self { way: Way::Anew, ..Self::default() }
    }

    pub(super) fn is_done(&self) -> bool {
        self.is_done
    }
}

impl Log {
    pub(super) fn version(&self) -> u64 {
        self.version
    }

    pub(super) fn digest(&self) -> u64 {
        self.digest
    }

    pub(super) fn is_empty(&self) -> bool {
        self.version == 0 && self.entries.is_empty()
    }

    /// How many entries are no tombstones.
    pub(super) fn live(&self) -> usize {
        self.entries.len() - self.tombstones.len()
    }

    pub(super) fn get(&self, key: &Key) -> Option<(u64, &State)> {
        self.entries.get(key).map(|(version, state)| (*version, state))
    }

    pub(super) fn at(&self, version: u64) -> Option<(&Key, &State)> {
        let key = self.keys.get(&version)?;
        self.entries.get(key).map(|(_, state)| (key, state))
    }

    /// What is no tombstone, in the order of keys.
    pub(super) fn visible(&self) -> impl Iterator<Item = (&Key, u64, &State)> {
        let all = self.entries.iter().map(|(key, (version, state))| (key, *version, state));
        all.filter(|(_, _, state)| !is_tombstone(state))
    }

    /// What is no tombstone and has a version in that range, in the order of versions.
    pub(super) fn versions(&self, since: u64, upto: u64) -> impl Iterator<Item = u64> {
        let range = (since < upto).then(|| self.keys.range(since + 1..=upto));
        range.into_iter().flatten().map(|(version, _)| *version).filter(|version| !self.tombstones.contains(version))
    }

    /// Writes the next version.
    pub(super) fn write(&mut self, key: Key, state: State, tombstones_max: usize) -> u64 {
        let version = self.version + 1;
        self.put(version, key, state, tombstones_max);
        self.version = version;
        version
    }

    /// Takes an entry in, whatever there is of its key. Nothing else may have its version.
    pub(super) fn put(&mut self, version: u64, key: Key, state: State, tombstones_max: usize) {
        self.remove(&key);
        if is_tombstone(&state) {
            self.tombstones.insert(version);
        } else {
            self.digest = self.digest.wrapping_add(hash(&key, version, &state));
        }
        self.keys.insert(version, key.clone());
        self.entries.insert(key, (version, state));
        while self.tombstones.len() > tombstones_max {
            self.drop_tombstone();
        }
    }

    pub(super) fn remove(&mut self, key: &Key) -> Option<(u64, State)> {
        let (version, state) = self.entries.remove(key)?;
        self.keys.remove(&version);
        if !self.tombstones.remove(&version) {
            self.digest = self.digest.wrapping_sub(hash(key, version, &state));
        }
        Some((version, state))
    }

    fn drop_tombstone(&mut self) {
        if let Some(version) = self.tombstones.pop_first() {
            let key = self.keys.remove(&version).expect("every version has its key");
            self.entries.remove(&key);
            self.floor = self.floor.max(version);
        }
    }

    /// Everything up to this version is in.
    pub(super) fn advance(&mut self, version: u64) {
        self.version = self.version.max(version);
    }

    /// Nothing is known to be in, though there are entries.
    pub(super) fn rewind(&mut self) {
        self.version = 0;
    }

    /// What is in is the log as of this version, without its tombstones.
    pub(super) fn rebase(&mut self, version: u64) {
        while !self.tombstones.is_empty() {
            self.drop_tombstone();
        }
        (self.version, self.floor) = (version, version);
    }

    /// Where a peer goes on that has the log up to this version, with such a digest; and whether it has that at all.
    pub(super) fn cursor(&self, version: u64, digest: u64) -> (Cursor, bool) {
        let is_known = version < self.version || (version, digest) == (self.version, self.digest);
        let begins = version == 0 && self.version > 0;
        (if is_known && !begins { Cursor::after(version) } else { Cursor::anew() }, is_known)
    }

    /// What is to be sent next, of so many bytes at most; a single entry that is larger if nothing else is on its way.
    pub(super) fn next(&self, cursor: &mut Cursor, budget: usize, is_alone: bool) -> Option<Chunk> {
        let floor = self.floor.min(self.version);
        // What the peer has is not of this log, or it may lack a tombstone that is here no more.
        let is_lost = match cursor.way {
            Way::Delta => cursor.sent < floor || cursor.sent > self.version,
            Way::Anew => false,
            Way::Reset { until } => cursor.sent < floor && until < floor,
        };
        if is_lost {
            *cursor = Cursor::anew();
        }
        if cursor.way == Way::Delta && cursor.sent == self.version && cursor.is_done {
            return None;
        }
        let (since, skipped) = match cursor.way {
            Way::Delta => (cursor.sent, 0),
            Way::Anew => (0, self.version),
            Way::Reset { until } => (cursor.sent, until),
        };
        let is_reset = cursor.way == Way::Anew;
        let mut chunk = Chunk { since, upto: since, is_reset, digest: None, entries: Vec::new(), bytes: 0 };
        let mut is_whole = true;
        let range = (since < self.version).then(|| self.keys.range(since + 1..=self.version));
        for (version, key) in range.into_iter().flatten() {
            if *version <= skipped && self.tombstones.contains(version) {
                continue;
            }
            let (_, state) = &self.entries[key];
            let entry = Entry { version: *version, key: key.clone(), state: state.clone() };
            let bytes = entry.size_bound();
            let is_first = chunk.entries.is_empty();
            if chunk.bytes + bytes > budget && !(is_first && is_alone) {
                if is_first {
                    return None;
                }
                is_whole = false;
                break;
            }
            chunk.entries.push(entry);
            (chunk.upto, chunk.bytes) = (*version, chunk.bytes + bytes);
        }
        if is_whole {
            (chunk.upto, chunk.digest) = (self.version, Some(self.digest));
        }
        cursor.sent = chunk.upto;
        cursor.is_done = is_whole;
        cursor.way = match cursor.way {
            _ if is_whole => Way::Delta,
            Way::Anew => Way::Reset { until: self.version },
            way => way,
        };
        Some(chunk)
    }
}

pub(super) fn is_tombstone(state: &State) -> bool {
    matches!(state, State::Gone(_))
}

/// Whether a key can be in that state.
pub(super) fn fits(key: &Key, state: &State) -> bool {
    match state {
        State::Arbiter => matches!(key, Key::Arbiter { .. }),
        State::Bound(_) => matches!(key, Key::Name(_)),
        State::Joined(_) => matches!(key, Key::Member { .. }),
        State::Gone(_) => true,
    }
}

/// What an entry adds to the digest of its log. Every node computes the same.
fn hash(key: &Key, version: u64, state: &State) -> u64 {
    let mut mix = Mix::new(1);
    mix.word(version);
    match key {
        Key::Arbiter { scope } => mix.kind(1).bytes(scope.as_bytes()),
        Key::Name(name) => mix.kind(2).bytes(name.as_bytes()),
        Key::Member { group, serial } => mix.kind(3).word(*serial).bytes(group.as_bytes()),
    };
    match state {
        State::Arbiter => mix.kind(1),
        State::Bound(binding) => {
            mix.kind(2).word(binding.serial).word(binding.stamp).bytes(binding.tag.as_bytes()).bytes(&binding.metadata);
            match &binding.after {
                Some(after) => mix.kind(1).node(&after.owner).word(after.version),
                None => mix.kind(0),
            }
        }
        State::Joined(joined) => mix.kind(3).word(joined.count.into()).bytes(joined.tag.as_bytes()),
        // Tombstones are in no digest.
        State::Gone(_) => &mut mix,
    };
    mix.finish()
}

/// What a log adds to the digest of all logs.
pub(super) fn hash_log(owner: &NodeId, log: &Log) -> u64 {
    let mut mix = Mix::new(2);
    mix.node(owner).word(log.version).word(log.digest);
    mix.finish()
}

/// A hash of 64 bits, the same on every machine. Each step can be undone, so none forgets what came before.
struct Mix(u64);

impl Mix {
    fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn word(&mut self, word: u64) -> &mut Self {
        // The constant is that of PCG and Knuth's MMIX: odd, and without structure.
        let mixed = (self.0.rotate_left(23) ^ word).wrapping_mul(0x5851_f42d_4c95_7f2d);
        self.0 = mixed ^ (mixed >> 29);
        self
    }

    fn kind(&mut self, kind: u64) -> &mut Self {
        self.word(kind)
    }

    fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.word(bytes.len() as u64);
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.word(u64::from_le_bytes(word));
        }
        self
    }

    fn node(&mut self, node: &NodeId) -> &mut Self {
        self.bytes(node.name().as_str().as_bytes()).word(node.incarnation())
    }

    /// The finalizer of SplitMix64.
    fn finish(&self) -> u64 {
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}
