//! Whom a voter votes for, and what it has promised.

#[cfg(test)]
use super::Flaw;
use super::vote::Choice;
use super::{Election, Role, Time};
use crate::id::NodeName;
use crate::wire::services::election::{Release, Word};

/// A leader relies on this voter.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Promise {
    leader: usize,
    term: u64,
    pub(super) until: Time,
}

impl Election {
    /// Until when this voter votes for nobody else, itself included.
    fn bound_until(&self) -> Time {
        let promised = self.promise.as_ref().map_or(Time::ZERO, |promise| promise.until);
        promised.max(self.quiet_until)
    }

    /// Whether a leader may rely on this voter, and that leader has not released it.
    pub(super) fn is_bound(&self, release: Option<&Release>, now: Time) -> bool {
        let is_released = |promise: &Promise| {
            let leader = &self.fixed.voters.names()[promise.leader];
            release.is_some_and(|release| release.term == promise.term && release.leader == *leader)
        };
        now < self.quiet_until
            || self.promise.as_ref().is_some_and(|promise| now < promise.until && !is_released(promise))
    }

    /// Starts to wait for a leader, all over.
    pub(super) fn wait(&mut self, now: Time) {
        if !self.is_voter() {
            return;
        }
        let wait = self.fixed.params.timeout + self.by_chance(self.fixed.params.spread);
        self.wait_for(wait, now);
    }

    /// Stands after so long, if it is to, and as soon as it may.
    pub(super) fn wait_for(&mut self, wait: Time, now: Time) {
        let is_to = self.is_standing && !self.is_retired;
        self.due = is_to.then(|| (now + wait + self.fixed.params.handicap).max(self.bound_until()));
    }

    /// Would this voter vote for that one?
    pub(super) fn canvassed(&mut self, rank: usize, life: u64, term: u64, round: u64, now: Time) {
        let is_for = term >= self.vote.term && !self.is_bound(None, now) && !self.leads(now);
        self.send(rank, Word::Canvassed { life, round, is_for });
    }

    pub(super) fn stood(&mut self, rank: usize, life: u64, term: u64, release: Option<&Release>, now: Time) {
        if term > self.vote.term {
            if self.is_bound(release, now) || self.leads(now) {
                // As if it had not been asked, so that nobody's term disturbs a leader.
                self.counters.promised_away += 1;
                return;
            }
            self.adopt(term, now);
        }
        let is_for = term == self.vote.term && !self.is_bound(release, now) && self.choose(rank);
        if is_for {
            self.counters.votes_given += 1;
            self.wait(now);
        }
        let lives = self.lives.clone();
        self.send(rank, Word::Voted { life, is_for, lives });
    }

    fn choose(&mut self, rank: usize) -> bool {
        let candidate = &self.fixed.voters.names()[rank];
        #[cfg(test)]
        if self.has_flaw(Flaw::DoubleVote) {
            self.vote.choice = Choice::For(candidate.clone());
        }
        match &self.vote.choice {
            Choice::Nobody => {
                self.vote.choice = Choice::For(candidate.clone());
                true
            }
            Choice::For(chosen) => chosen == candidate,
            Choice::Unknown => false,
        }
    }

    /// A leader lives.
    pub(super) fn beat(&mut self, rank: usize, life: u64, term: u64, number: u64, now: Time) {
        if term == self.vote.term && !matches!(self.role, Role::Leader(_)) {
            self.step_down(super::LossReason::Deposed, now);
            self.promise = Some(Promise { leader: rank, term, until: now + self.fixed.params.promised });
            self.wait(now);
            self.has_led();
            let leader = self.fixed.voters.names()[rank].clone();
            self.observe(self.token(term), Some(leader));
        }
        // A leader of the past learns by it that it is one.
        self.send(rank, Word::Beaten { life, number });
    }

    /// The leader asks for nothing more.
    pub(super) fn resigned(&mut self, rank: usize, term: u64, now: Time) {
        let leader = self.fixed.voters.names()[rank].clone();
        if self.release(rank, term) {
            let soon = self.by_chance(self.fixed.params.timeout / 4);
            self.wait_for(soon, now);
        }
        let is_known = self.observed.as_ref().is_some_and(|(_, known)| known.as_ref() == Some(&leader));
        if is_known {
            self.observe(self.token(term), None);
        }
    }

    fn release(&mut self, rank: usize, term: u64) -> bool {
        let is_its = self.promise.as_ref().is_some_and(|promise| promise.leader == rank && promise.term == term);
        if is_its {
            self.promise = None;
        }
        is_its
    }

    /// The leader asks this voter to follow it, and holds nobody to what was promised.
    pub(super) fn take_over(&mut self, rank: usize, term: u64, now: Time) {
        self.release(rank, term);
        let leader = self.fixed.voters.names()[rank].clone();
        if self.is_standing && matches!(self.role, Role::Follower) && !self.is_bound(None, now) {
            self.campaign(Some(Release { leader, term }), now);
        }
    }

    /// Membership holds the leader for dead: this voter stands early, but not before its promise has ended.
    pub(super) fn leader_gone(&mut self, name: &NodeName, now: Time) {
        let leads = self.observed.as_ref().is_some_and(|(_, leader)| leader.as_ref() == Some(name));
        if leads && matches!(self.role, Role::Follower) && self.due.is_some() {
            let before = self.due;
            let soon = self.by_chance(self.fixed.params.timeout / 4);
            self.wait_for(soon, now);
            self.due = self.due.min(before);
        }
    }
}
