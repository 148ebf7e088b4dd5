//! A voter without a disk, after a restart.
//!
//! It has forgotten for whom it voted, and asks the others, as in Michael, Ports, Sharma and Szekeres, "Recovering shared
//! objects without stable storage" (DISC 2017). Everybody who answers remembers this life of it; and votes say which lives
//! the voter knew of, so that a candidate does not count a vote of a life that another of its votes knows to be over.

use std::collections::BTreeMap;

use super::vote::Choice;
use super::{Election, Time};
use crate::wire::services::election::{NUMBER_MAX, Word};

/// What the others have answered.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Recovery {
    replies: BTreeMap<usize, Reply>,
    /// Those who have forgotten too, and their lives.
    blanks: BTreeMap<usize, u64>,
    pub(super) ask_at: Time,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Reply {
    life: u64,
    term: u64,
    lives: Vec<u64>,
}

/// Of answers by voters, those that none of them contradicts: nobody knows of a later life.
pub(super) fn consistent(answers: &BTreeMap<usize, (u64, &[u64])>) -> Vec<usize> {
    let is_over =
        |rank: usize, life: u64| answers.values().any(|(_, lives)| lives.get(rank).is_some_and(|l| *l > life));
    answers.iter().filter(|(rank, (life, _))| !is_over(**rank, *life)).map(|(rank, _)| *rank).collect()
}

impl Recovery {
    pub(super) fn new(now: Time) -> Self {
        Self { replies: BTreeMap::new(), blanks: BTreeMap::new(), ask_at: now }
    }
}

impl Election {
    pub(super) fn ask_for_recovery(&mut self, now: Time) {
        let Some(recovery) = &mut self.recovery else { return };
        recovery.ask_at = now + self.fixed.params.heartbeat * 2;
        self.send_all(&Word::Recover);
        self.found(now);
    }

    /// Another has forgotten. From now on its earlier lives are over.
    pub(super) fn recover_other(&mut self, rank: usize, life: u64) {
        if !self.fixed.voters.is_diskless() {
            return;
        }
        self.lives[rank] = life;
        let word = match self.recovery {
            Some(_) => Word::Blank { life },
            None => {
                let has_begun = self.begun_with.get(rank) == Some(&life);
                Word::Recovered { life, has_begun, lives: self.lives.clone() }
            }
        };
        self.send(rank, word);
    }

    pub(super) fn recovered(&mut self, rank: usize, life: u64, term: u64, word: Word, now: Time) {
        let Word::Recovered { has_begun, lives, .. } = word else { return };
        let Some(recovery) = &mut self.recovery else { return };
        if lives.len() != self.lives.len() || term > NUMBER_MAX {
            self.counters.malformed += 1;
            return;
        }
        recovery.blanks.remove(&rank);
        recovery.replies.insert(rank, Reply { life, term, lives });
        let answers = recovery.replies.iter().map(|(rank, reply)| (*rank, (reply.life, &reply.lives[..]))).collect();
        let counted = consistent(&answers);
        // This voter is not one of them: a majority's worth of others. Unless it was only late: in this life it has not voted,
        // and nobody who began together with it remembers another.
        if !has_begun && !self.fixed.voters.is_quorum(|rank| counted.contains(&rank)) {
            return;
        }
        let replies = std::mem::take(&mut recovery.replies);
        for Reply { lives, .. } in replies.values() {
            for (known, life) in self.lives.iter_mut().zip(lives) {
                *known = (*known).max(*life);
            }
        }
        let term = replies.values().map(|reply| reply.term).max().unwrap_or_default();
        self.begin_at(term, now);
    }

    pub(super) fn blank(&mut self, rank: usize, life: u64, now: Time) {
        let Some(recovery) = &mut self.recovery else { return };
        if !recovery.replies.contains_key(&rank) {
            recovery.blanks.insert(rank, life);
        }
        self.found(now);
    }

    /// When all have forgotten, they begin anew. Operators raise the generation then. Should one not, the sum of their lives,
    /// which are times, is later than any term before.
    fn found(&mut self, now: Time) {
        let Some(recovery) = &self.recovery else { return };
        if recovery.blanks.len() + 1 < self.fixed.voters.names().len() {
            return;
        }
        let others = recovery.blanks.values().fold(0, |sum: u64, life| sum.saturating_add(*life));
        let term = others.saturating_add(self.fixed.me.incarnation()).min(NUMBER_MAX / 2);
        self.begun_with = self.lives.clone();
        for (rank, life) in &recovery.blanks {
            self.begun_with[*rank] = *life;
        }
        self.begin_at(term, now);
    }

    fn begin_at(&mut self, term: u64, now: Time) {
        self.recovery = None;
        self.vote.term = self.vote.term.max(term);
        self.vote.choice = Choice::Unknown;
        self.wait(now);
    }
}
