//! Leading, for as long as a majority answers.

use std::collections::VecDeque;

#[cfg(test)]
use super::Flaw;
use super::{Election, Output, Role, Time};
use crate::id::NodeName;
use crate::wire::services::election::{Token, Word};

/// Heartbeats whose answers count. Older ones would extend no lease.
const BEATS_MAX: usize = 64;

/// Why a node leads no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LossReason {
    /// It resigned, or its [`Leadership`](crate::Leadership) was dropped.
    Resigned,
    /// It handed over to another voter.
    Transferred,
    /// A majority of the voters has not answered for as long as a lease lasts.
    LeaseExpired,
    /// A voter is in a later term.
    Deposed,
    /// There is a leader of a later version of the voters.
    Superseded,
    /// The node shuts down.
    Shutdown,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Leading {
    /// When it steps down. Until a majority has answered for the first time, it is elected but does not lead.
    until: Time,
    has_led: bool,
    pub(super) number: u64,
    next_beat: Time,
    /// The heartbeats that may still be answered, and when they were sent.
    beats: VecDeque<(u64, Time)>,
    /// By voter, when the last heartbeat was sent that it has answered.
    answered: Vec<Option<Time>>,
}

impl Leading {
    pub(super) fn is_over(&self, now: Time) -> bool {
        self.until <= now
    }

    pub(super) fn timeout(&self) -> Time {
        self.next_beat.min(self.until)
    }
}

impl Election {
    /// By which token this node leads, and until when, unless the lease is extended.
    pub(crate) fn lease(&self) -> Option<(Token, Time)> {
        match &self.role {
            Role::Leader(leading) if leading.has_led => Some((self.token(self.vote.term), leading.until)),
            _ => None,
        }
    }

    /// Whether this node leads, by its own clock.
    pub(super) fn leads(&self, now: Time) -> bool {
        self.lease().is_some_and(|(_, until)| now < until)
    }

    /// Whether a majority has voted for it in its term.
    #[cfg(test)]
    pub(super) fn is_elected(&self) -> bool {
        matches!(self.role, Role::Leader(_))
    }

    /// A majority has voted for this node.
    pub(super) fn lead(&mut self, now: Time) {
        self.counters.elected += 1;
        self.promise = None;
        self.due = None;
        self.role = Role::Leader(Leading {
            until: now + self.fixed.params.timeout,
            has_led: false,
            number: 0,
            next_beat: now,
            beats: VecDeque::new(),
            answered: vec![None; self.fixed.voters.names().len()],
        });
        self.send_beat(now);
    }

    pub(super) fn lead_on(&mut self, now: Time) {
        let Role::Leader(leading) = &self.role else { return };
        if leading.until <= now {
            self.step_down(LossReason::LeaseExpired, now);
        } else if leading.next_beat <= now {
            self.send_beat(now);
        }
    }

    fn send_beat(&mut self, now: Time) {
        let Role::Leader(leading) = &mut self.role else { return };
        leading.number += 1;
        leading.next_beat = now + self.fixed.params.heartbeat;
        leading.beats.push_back((leading.number, now));
        if leading.beats.len() > BEATS_MAX {
            leading.beats.pop_front();
        }
        let number = leading.number;
        if let Some(own) = self.fixed.rank {
            leading.answered[own] = Some(now);
        }
        self.send_all(&Word::Beat { number });
        self.extend(now);
    }

    pub(super) fn beaten(&mut self, rank: usize, number: u64, now: Time) {
        #[cfg(test)]
        let from_receipt = self.has_flaw(Flaw::LeaseFromReceipt);
        let Role::Leader(leading) = &mut self.role else { return };
        let Some((_, sent)) = leading.beats.iter().find(|(sent, _)| *sent == number) else { return };
        let answered = leading.answered[rank].max(Some(*sent));
        #[cfg(test)]
        let answered = if from_receipt { Some(now) } else { answered };
        leading.answered[rank] = answered;
        self.extend(now);
    }

    fn extend(&mut self, now: Time) {
        let Role::Leader(leading) = &mut self.role else { return };
        let Some(reached) = self.fixed.voters.reached(|rank| leading.answered[rank]) else { return };
        // What a majority has answered is of no more use.
        while leading.beats.front().is_some_and(|(_, sent)| *sent < reached) {
            leading.beats.pop_front();
        }
        let until = reached + self.fixed.params.held;
        if leading.has_led {
            leading.until = leading.until.max(until);
        } else if now < until {
            leading.until = until;
            leading.has_led = true;
            self.has_led();
            let token = self.token(self.vote.term);
            self.outputs.push_back(Output::Led { token });
            self.observe(token, Some(self.fixed.me.name().clone()));
        }
    }

    pub(super) fn lost(&mut self, leading: &Leading, why: LossReason) {
        let token = self.token(self.vote.term);
        if leading.has_led {
            self.outputs.push_back(Output::Lost { token, why });
            self.observe(token, None);
        }
    }

    /// Leads no more, and stands no more.
    pub(super) fn resign(&mut self, now: Time) {
        self.is_standing = false;
        let was_elected = matches!(self.role, Role::Leader(_));
        self.step_down(LossReason::Resigned, now);
        self.due = self.due.filter(|_| !self.is_voter());
        if was_elected {
            self.send_all(&Word::Resigned);
        }
    }

    /// Leads no more, and has another stand at once.
    pub(super) fn transfer(&mut self, to: &NodeName, now: Time) {
        let Some(rank) = self.fixed.voters.rank(to).filter(|rank| Some(*rank) != self.fixed.rank) else { return };
        if self.lease().is_none() {
            return;
        }
        #[cfg(test)]
        if self.has_flaw(Flaw::ClaimsOn) {
            return self.send(rank, Word::TakeOver);
        }
        self.step_down(LossReason::Transferred, now);
        self.send(rank, Word::TakeOver);
    }
}
