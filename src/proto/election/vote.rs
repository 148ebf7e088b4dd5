//! What a voter must not forget, and how its words wait until it is written down.

use std::sync::Arc;

use super::voters::Set;
use super::{Election, Output, Time};
use crate::id::NodeName;
use crate::wire::services::election::{Election as Frame, Word};

/// For whom a voter has voted in its term.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Choice {
    Nobody,
    For(NodeName),
    /// It has forgotten.
    Unknown,
}

/// What a voter remembers over restarts.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Vote {
    /// The voters that it counts with.
    pub(crate) set: Arc<Set>,
    pub(crate) term: u64,
    pub(crate) choice: Choice,
    /// The last set under which it has known a leader. No quorum of an earlier one is left.
    pub(crate) led: Option<Arc<Set>>,
    /// The greatest version under which it has heard of a leader.
    pub(crate) seen: u64,
}

/// Words that wait for the disk, at most. More are dropped, as a network might.
const HELD_MAX: usize = 64;

/// The disk of one voter.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Store {
    pub(super) is_diskless: bool,
    /// What is on disk for certain.
    stored: Option<Vote>,
    /// What is being written.
    writing: Option<Vote>,
    /// After a write that failed.
    retry_at: Option<Time>,
    /// What is to be said when all that the voter knows is on disk.
    held: Vec<(NodeName, Frame)>,
}

impl Store {
    pub(super) fn new(is_diskless: bool, stored: Option<Vote>) -> Self {
        Self { is_diskless, stored, writing: None, retry_at: None, held: Vec::new() }
    }

    /// What others may learn of this vote would survive a crash now.
    fn covers(&self, vote: &Vote) -> bool {
        let covers = |stored: &Vote| {
            stored.term == vote.term && stored.choice == vote.choice && stored.set.version == vote.set.version
        };
        self.is_diskless || self.stored.as_ref().is_some_and(covers)
    }
}

impl Election {
    /// Says something, as soon as a crash could not make it untrue.
    pub(super) fn send(&mut self, to: usize, word: Word) {
        let to = self.fixed.voters.names()[to].clone();
        #[cfg(test)]
        if self.has_flaw(super::Flaw::EarlyWord) {
            return self.send_to(to, word);
        }
        if self.store.covers(&self.vote) {
            return self.send_to(to, word);
        }
        let held = (to, self.framed(word));
        if self.store.held.len() < HELD_MAX && !self.store.held.contains(&held) {
            self.store.held.push(held);
        }
    }

    pub(super) fn send_all(&mut self, word: &Word) {
        for rank in self.others() {
            self.send(rank, word.clone());
        }
    }

    pub(super) fn is_durable(&self) -> bool {
        self.store.covers(&self.vote)
    }

    /// The disk refused a while ago: there is no use in standing.
    pub(super) fn is_disk_failing(&self, now: Time) -> bool {
        self.store.retry_at.is_some_and(|at| now < at)
    }

    /// Has written what is not, one at a time.
    pub(super) fn store_vote(&mut self, now: Time) {
        let store = &mut self.store;
        if store.is_diskless || store.writing.is_some() || store.stored.as_ref() == Some(&self.vote) {
            return;
        }
        if store.retry_at.is_some_and(|at| now < at) {
            return;
        }
        store.writing = Some(self.vote.clone());
        self.outputs.push_back(Output::Persist(Box::new(self.vote.clone())));
    }

    pub(super) fn persisted(&mut self, is_written: bool, now: Time) {
        let Some(written) = self.store.writing.take() else { return };
        if !is_written {
            self.counters.write_failures += 1;
            self.store.held.clear();
            self.store.retry_at = Some(now + self.fixed.params.timeout);
            self.fell_through(now);
            return;
        }
        self.store.retry_at = None;
        self.store.stored = Some(written);
        if self.store.covers(&self.vote) {
            let held = std::mem::take(&mut self.store.held);
            self.outputs.extend(held.into_iter().map(|(to, frame)| Output::Send { to, frame }));
            self.voted_for_itself(now);
        }
    }

    #[cfg(test)]
    pub(super) fn stored(&self) -> Option<&Vote> {
        self.store.stored.as_ref()
    }
}
