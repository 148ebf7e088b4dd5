//! What was seen from outside: how soon deaths were noticed, which were false, and what it cost.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::clock::Time;
use super::machine::{Id, Rank};

/// Something that went wrong on purpose, or because of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    Lost,
    Cut,
    Split,
    Duplicated,
    Reordered,
    Frozen,
    Blocked,
    /// What waited at nodes that were frozen or blocked.
    HeldUp,
    /// What waited at nodes that were slow.
    Slowed,
    /// Timers that fired late.
    LateTimer,
    /// Datagrams that gave way to later ones.
    Overflowed,
    Crashed,
    Restarted,
    /// Nodes whose life was over elsewhere, and that went on as another.
    Renewed,
    Left,
    Drifting,
    DialFailed,
    LinkLost,
    LinkIdled,
    /// Links that only one end still held.
    Reset,
    Resent,
    /// Datagrams that came before the link was up at their end.
    Early,
    /// Packets to peers without a link.
    Unlinked,
    /// Datagrams that would not have fitted the path.
    Oversized,
    Heard,
    Superseded,
}

/// How often each fault really happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults([u64; Fault::Superseded as usize + 1]);

impl Faults {
    pub fn count(&self, fault: Fault) -> u64 {
        self.0[fault as usize]
    }

    pub(super) fn note(&mut self, fault: Fault) {
        self.0[fault as usize] += 1;
    }

    pub fn add(&mut self, other: &Self) {
        self.0.iter_mut().zip(other.0).for_each(|(mine, others)| *mine += others);
    }
}

/// A crash, and who noticed when.
#[derive(Clone, Debug)]
pub struct Crash {
    pub id: Id,
    pub at: Duration,
    /// How long until the first, and the last, of the running nodes held it for dead.
    pub first: Option<Duration>,
    pub all: Option<Duration>,
    waiting: BTreeSet<u32>,
}

/// A fact, and when it arrived where.
#[derive(Clone, Debug)]
pub struct Spread {
    pub origin: u32,
    pub at: Duration,
    /// In the order of arrival, without the origin.
    pub arrivals: Vec<Duration>,
    /// Nodes that ran when it was published, without the origin.
    pub audience: usize,
}

impl Spread {
    /// How long until so large a share of the audience had it, from 0 to 1.
    pub fn until(&self, share: f64) -> Option<Duration> {
        let wanted = (self.audience as f64 * share).ceil() as usize;
        self.arrivals.get(wanted.max(1) - 1).copied()
    }

    pub fn is_complete(&self) -> bool {
        self.arrivals.len() >= self.audience
    }
}

/// Counts, since the simulation began or since they were last set to zero.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// By rank: probes, gossip, sync.
    pub messages: [u64; 3],
    pub bytes: [u64; 3],
    pub bytes_in: Vec<u64>,
    pub bytes_out: Vec<u64>,
    pub handshakes: u64,
    /// The most links that one node had.
    pub links_max: usize,
    /// Deaths that were declared of nodes that had not crashed, once for each node that said so.
    pub false_positives: u64,
    /// Those of them about nodes that nothing was done to.
    pub false_positives_healthy: u64,
    /// Those of them that nodes said to which nothing was done either.
    pub false_positives_among_healthy: u64,
    /// Nodes that nothing was done to, and that such nodes held for dead.
    pub healthy_removed: BTreeSet<u32>,
    pub suspicions: u64,
    pub flaps: u64,
    pub crashes: Vec<Crash>,
    /// How many live, as any running node ever saw it.
    pub view_sizes: BTreeSet<u32>,
    /// How long running nodes differed in whom they held for live.
    pub diverged: Duration,
    pub facts: Vec<Spread>,
    pub faults: Faults,
    pub events: u64,
}

impl Report {
    pub(super) fn sent(&mut self, from: u32, rank: Rank, bytes: usize) {
        let rank = rank as usize;
        self.messages[rank] += 1;
        self.bytes[rank] += bytes as u64;
        self.bytes_out[from as usize] += bytes as u64;
    }

    pub fn messages_all(&self) -> u64 {
        self.messages.iter().sum()
    }

    pub fn bytes_all(&self) -> u64 {
        self.bytes.iter().sum()
    }

    /// A node crashed, and these running nodes hold it for live.
    pub(super) fn crashed(&mut self, id: Id, waiting: BTreeSet<u32>, now: Time) {
        self.crashes.push(Crash { id, at: Duration::from_nanos(now), first: None, all: None, waiting });
        self.faults.note(Fault::Crashed);
    }

    /// A node no longer holds this life for live.
    pub(super) fn given_up(&mut self, observer: u32, id: Id, now: Time) {
        for crash in self.crashes.iter_mut().filter(|crash| crash.id == id) {
            let after = Duration::from_nanos(now) - crash.at;
            crash.first.get_or_insert(after);
            if crash.waiting.remove(&observer) && crash.waiting.is_empty() {
                crash.all = Some(after);
            }
        }
    }

    /// A node that is gone notices nothing any more.
    pub(super) fn observer_gone(&mut self, observer: u32, now: Time) {
        for crash in &mut self.crashes {
            if crash.waiting.remove(&observer) && crash.waiting.is_empty() {
                crash.all = Some(Duration::from_nanos(now) - crash.at);
            }
        }
    }

    pub fn first_detections(&self) -> Vec<Duration> {
        self.crashes.iter().filter_map(|crash| crash.first).collect()
    }

    pub fn full_detections(&self) -> Vec<Duration> {
        self.crashes.iter().filter_map(|crash| crash.all).collect()
    }
}

/// The value below which so large a share of the sample lies.
pub fn percentile(sample: &mut [Duration], share: f64) -> Option<Duration> {
    sample.sort_unstable();
    let rank = (sample.len() as f64 * share).ceil() as usize;
    sample.get(rank.max(1) - 1).copied()
}

/// How many running nodes hold which set for live, and since when they differ.
#[derive(Debug, Default)]
pub(super) struct Divergence {
    views: BTreeMap<u64, u32>,
    since: Option<Time>,
    total: Time,
}

impl Divergence {
    pub(super) fn add(&mut self, view: u64, now: Time) {
        *self.views.entry(view).or_default() += 1;
        self.note(now);
    }

    pub(super) fn remove(&mut self, view: u64, now: Time) {
        let count = self.views.get_mut(&view).expect("each running node's view is counted");
        *count -= 1;
        if *count == 0 {
            self.views.remove(&view);
        }
        self.note(now);
    }

    pub(super) fn replace(&mut self, old: u64, new: u64, now: Time) {
        if old != new {
            self.remove(old, now);
            self.add(new, now);
        }
    }

    pub(super) fn total(&self, now: Time) -> Duration {
        Duration::from_nanos(self.total + self.since.map_or(0, |since| now - since))
    }

    pub(super) fn clear(&mut self, now: Time) {
        self.total = 0;
        self.since = self.since.map(|_| now);
    }

    /// Whether all running nodes hold just this set for live.
    pub(super) fn is_agreed(&self, view: u64) -> bool {
        self.views.is_empty() || (self.views.len() == 1 && self.views.contains_key(&view))
    }

    pub(super) fn distinct(&self) -> usize {
        self.views.len()
    }

    fn note(&mut self, now: Time) {
        if self.views.len() > 1 {
            self.since.get_or_insert(now);
        } else if let Some(since) = self.since.take() {
            self.total += now - since;
        }
    }
}
