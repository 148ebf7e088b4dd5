//! The members by name and by their short id, and digests of them all.
//!
//! One slot per name: a name has one life at a time. Slots stand in chunks that copies of a table share until one of them
//! is written to, so that a simulator can hold ten thousand tables of ten thousand members.

use std::collections::HashMap;
use std::sync::Arc;

use super::Profile;
use crate::id::{NodeId, NodeName};
use crate::wire::membership::{Life, ShortId};

/// A slot of the table.
pub(super) type Slot = u32;

/// How finely digests tell where two tables differ, at most.
pub(super) const BUCKETS: usize = 256;

const CHUNK: usize = 64;

/// Who a member is and what it says of itself.
#[derive(Debug)]
pub(super) struct Identity {
    pub(super) id: NodeId,
    pub(super) short: ShortId,
    /// Counts the changes of the profile; only the member itself raises it.
    pub(super) version: u32,
    pub(super) profile: Profile,
}

/// What is known of a member.
#[derive(Clone, Debug)]
pub(super) struct Record {
    pub(super) identity: Arc<Identity>,
    pub(super) life: Life,
    pub(super) refutation: u32,
}

impl Record {
    pub(super) fn is_live(&self) -> bool {
        matches!(self.life, Life::Alive | Life::Suspect)
    }

    /// Of two claims about one life, the one with the greater key stands.
    pub(super) fn key(&self) -> (u32, u8) {
        key(self.refutation, self.life)
    }
}

pub(super) fn key(refutation: u32, life: Life) -> (u32, u8) {
    (refutation, life as u8)
}

type Chunk = Vec<Option<Record>>;

#[derive(Clone, Debug, Default)]
pub(super) struct Table {
    chunks: Vec<Arc<Chunk>>,
    slots: usize,
    free: Vec<Slot>,
    by_short: Arc<HashMap<ShortId, Slot>>,
    by_name: Arc<HashMap<NodeName, Slot>>,
    live: usize,
    /// Of the live ones, by the low bits of their short ids.
    digests: Vec<u64>,
}

impl Table {
    pub(super) fn new() -> Self {
        Self { digests: vec![0; BUCKETS], ..Self::default() }
    }

    /// All slots that were ever used, the free ones included.
    pub(super) fn slots(&self) -> usize {
        self.slots
    }

    /// How many members are known, whatever became of them.
    pub(super) fn len(&self) -> usize {
        self.slots - self.free.len()
    }

    /// How many live.
    pub(super) fn live(&self) -> usize {
        self.live
    }

    pub(super) fn get(&self, slot: Slot) -> Option<&Record> {
        let (chunk, at) = place(slot);
        self.chunks.get(chunk)?.get(at)?.as_ref()
    }

    pub(super) fn by_short(&self, short: ShortId) -> Option<Slot> {
        self.by_short.get(&short).copied()
    }

    pub(super) fn by_name(&self, name: &NodeName) -> Option<Slot> {
        self.by_name.get(name).copied()
    }

    /// The slot of this very life.
    pub(super) fn by_id(&self, id: &NodeId) -> Option<Slot> {
        self.by_name(id.name()).filter(|slot| self.get(*slot).is_some_and(|record| record.identity.id == *id))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Slot, &Record)> {
        let all = self.chunks.iter().flat_map(|chunk| chunk.iter());
        all.enumerate().filter_map(|(slot, record)| record.as_ref().map(|record| (slot as Slot, record)))
    }

    /// Takes in a name that is not known.
    pub(super) fn insert(&mut self, record: Record) -> Slot {
        let slot = self.free.pop().unwrap_or_else(|| {
            if self.slots.is_multiple_of(CHUNK) {
                self.chunks.push(Arc::default());
            }
            Arc::make_mut(self.chunks.last_mut().expect("pushed above")).push(None);
            self.slots += 1;
            (self.slots - 1) as Slot
        });
        Arc::make_mut(&mut self.by_name).insert(record.identity.id.name().clone(), slot);
        Arc::make_mut(&mut self.by_short).insert(record.identity.short, slot);
        self.put(slot, Some(record));
        slot
    }

    /// Changes what is known of a member; of its identity too, as long as the name stays.
    pub(super) fn update(&mut self, slot: Slot, change: impl FnOnce(&mut Record)) {
        let Some(mut record) = self.get(slot).cloned() else { return };
        let short = record.identity.short;
        change(&mut record);
        if record.identity.short != short {
            let by_short = Arc::make_mut(&mut self.by_short);
            by_short.remove(&short);
            by_short.insert(record.identity.short, slot);
        }
        self.put(slot, Some(record));
    }

    pub(super) fn remove(&mut self, slot: Slot) {
        let Some(record) = self.get(slot) else { return };
        let (name, short) = (record.identity.id.name().clone(), record.identity.short);
        Arc::make_mut(&mut self.by_name).remove(&name);
        Arc::make_mut(&mut self.by_short).remove(&short);
        self.put(slot, None);
        self.free.push(slot);
    }

    fn put(&mut self, slot: Slot, record: Option<Record>) {
        let (chunk, at) = place(slot);
        let entry = &mut Arc::make_mut(&mut self.chunks[chunk])[at];
        for record in [&*entry, &record].into_iter().flatten().filter(|record| record.is_live()) {
            self.digests[bucket(record.identity.short, BUCKETS)] ^= digest(record);
        }
        self.live -= usize::from(entry.as_ref().is_some_and(Record::is_live));
        self.live += usize::from(record.as_ref().is_some_and(Record::is_live));
        *entry = record;
    }

    /// A hash of all live members, their refutations and profiles, whatever order they came in. A suspicion does not show:
    /// it ends soon either way.
    pub(super) fn digest(&self) -> u64 {
        self.digests.iter().enumerate().fold(0, |all, (n, digest)| all ^ digest.rotate_left(n as u32))
    }

    /// The same, divided into so many buckets, a power of two.
    pub(super) fn digests(&self, buckets: usize) -> Vec<u64> {
        let mut folded = vec![0; buckets];
        for (n, digest) in self.digests.iter().enumerate() {
            folded[n % buckets] ^= digest.rotate_left((n / buckets) as u32);
        }
        folded
    }
}

fn place(slot: Slot) -> (usize, usize) {
    (slot as usize / CHUNK, slot as usize % CHUNK)
}

/// Which of so many buckets a member is in.
pub(super) fn bucket(short: ShortId, buckets: usize) -> usize {
    short.0 as usize % buckets
}

fn digest(record: &Record) -> u64 {
    let mut hash = record.identity.short.0;
    for part in [record.refutation, record.identity.version] {
        // The finalizer of SplitMix64.
        hash = (hash ^ u64::from(part)).wrapping_add(0x9e37_79b9_7f4a_7c15);
        hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        hash ^= hash >> 31;
    }
    hash
}
