//! Standing: first asking whether there is a chance, then in a term of its own.

use std::collections::{BTreeMap, BTreeSet};

#[cfg(test)]
use super::Flaw;
use super::recovery::consistent;
use super::vote::Choice;
use super::{Election, Role, Time};
use crate::wire::services::election::{NUMBER_MAX, Release, Word};

/// Who would vote for this one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Canvass {
    answered: BTreeSet<usize>,
    pub(super) again: Time,
}

/// Who has voted for this one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Candidacy {
    /// With the life that has voted, and the lives that it knew.
    votes: BTreeMap<usize, (u64, Vec<u64>)>,
    release: Option<Release>,
    pub(super) again: Time,
}

impl Election {
    pub(super) fn stand(&mut self, now: Time) {
        if !self.is_voter() || self.is_standing {
            return;
        }
        self.is_standing = true;
        if matches!(self.role, Role::Follower) {
            // A leader would be heard by then.
            let soon = self.fixed.params.heartbeat + self.by_chance(self.fixed.params.timeout / 2);
            self.wait_for(soon, now);
        }
    }

    /// Asks the others whether they would vote for this one, if nothing stands against it.
    pub(super) fn canvass(&mut self, now: Time) {
        let wait = self.fixed.params.timeout / 2 + self.by_chance(self.fixed.params.spread / 2);
        self.wait_for(wait, now);
        if self.is_retired || !self.is_standing || self.is_bound(None, now) || self.is_disk_failing(now) {
            return;
        }
        #[cfg(test)]
        if self.fixed.params.skips_canvass {
            return self.campaign(None, now);
        }
        self.round += 1;
        let answered = self.fixed.rank.into_iter().collect();
        self.role = Role::Canvassing(Canvass { answered, again: now + self.fixed.params.heartbeat });
        self.send_all(&Word::Canvass { round: self.round });
        self.count_canvass(now);
    }

    pub(super) fn canvass_answered(&mut self, rank: usize, round: u64, is_for: bool, now: Time) {
        let is_current = round == self.round;
        if let Role::Canvassing(canvass) = &mut self.role
            && is_current
            && is_for
        {
            canvass.answered.insert(rank);
            self.count_canvass(now);
        }
    }

    fn count_canvass(&mut self, now: Time) {
        if let Role::Canvassing(canvass) = &self.role
            && self.has_quorum(|rank| canvass.answered.contains(&rank))
            && !self.is_bound(None, now)
        {
            self.campaign(None, now);
        }
    }

    /// Stands in the next term.
    pub(super) fn campaign(&mut self, release: Option<Release>, now: Time) {
        if self.vote.term >= NUMBER_MAX || self.is_disk_failing(now) {
            return;
        }
        let Some(rank) = self.fixed.rank else { return };
        self.counters.campaigns += 1;
        self.vote.term += 1;
        self.vote.choice = Choice::For(self.fixed.voters.names()[rank].clone());
        let again = now + self.fixed.params.heartbeat;
        self.role = Role::Candidate(Candidacy { votes: BTreeMap::new(), release: release.clone(), again });
        let wait = self.fixed.params.timeout / 2 + self.by_chance(self.fixed.params.spread / 2);
        self.wait_for(wait, now);
        self.send_all(&Word::Stand { release });
        if self.is_durable() {
            self.voted_for_itself(now);
        }
    }

    /// Its own vote is on disk now, where that is needed, and counts.
    pub(super) fn voted_for_itself(&mut self, now: Time) {
        if let (Role::Candidate(_), Some(rank)) = (&self.role, self.fixed.rank) {
            self.voted(rank, self.fixed.me.incarnation(), self.lives.clone(), now);
        }
    }

    pub(super) fn voted(&mut self, rank: usize, life: u64, lives: Vec<u64>, now: Time) {
        #[cfg(test)]
        let counts_all = self.has_flaw(Flaw::NoLives);
        let Role::Candidate(candidacy) = &mut self.role else { return };
        if lives.len() != self.lives.len() {
            self.counters.malformed += 1;
            return;
        }
        candidacy.votes.insert(rank, (life, lives));
        let votes = candidacy.votes.iter().map(|(rank, (life, lives))| (*rank, (*life, &lives[..]))).collect();
        let counted = consistent(&votes);
        #[cfg(test)]
        let counted = if counts_all { votes.keys().copied().collect() } else { counted };
        // Of a candidate whose own vote is not on disk nobody has heard yet.
        if self.has_quorum(|rank| counted.contains(&rank)) && self.is_durable() {
            self.lead(now);
        }
    }

    /// What a candidate's own disk refuses is no vote.
    pub(super) fn fell_through(&mut self, now: Time) {
        if matches!(self.role, Role::Canvassing(_) | Role::Candidate(_)) {
            self.role = Role::Follower;
            self.wait(now);
        }
    }

    /// Asks those once more who have not answered.
    pub(super) fn ask_again(&mut self, now: Time) {
        let next = now + self.fixed.params.heartbeat;
        let (word, answered): (_, BTreeSet<usize>) = match &mut self.role {
            Role::Canvassing(canvass) if canvass.again <= now => {
                canvass.again = next;
                (Word::Canvass { round: self.round }, canvass.answered.clone())
            }
            Role::Candidate(candidacy) if candidacy.again <= now => {
                candidacy.again = next;
                (Word::Stand { release: candidacy.release.clone() }, candidacy.votes.keys().copied().collect())
            }
            _ => return,
        };
        for rank in self.others().filter(|rank| !answered.contains(rank)) {
            self.send(rank, word.clone());
        }
    }

    fn has_quorum(&self, has: impl Fn(usize) -> bool) -> bool {
        #[cfg(test)]
        if self.has_flaw(Flaw::LiveQuorum) {
            // Of those who are known to live, which are those who have answered.
            return self.fixed.rank.is_some_and(has);
        }
        self.fixed.voters.is_quorum(has)
    }
}
