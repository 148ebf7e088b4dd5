//! How one claim is decided, by the arbiter that coordinates it.
//!
//! ```text
//! claimant ── Claim ──▶ coordinator ── Vote ──▶ two other arbiters        the coordinator is any of the three
//!                            │  ▲──── Yes, No ───┘
//!                            ├── Confirm ──▶ whoever has the name          only when somebody seems to have it
//!                            ├── Release ──▶ whoever is to be replaced     only for a replacement
//! claimant ◀── Granted ──────┘
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use super::arbiters::Deferred;
use super::{NameReason, Output, Purpose, Registry, RequestId, Then, Timer};
use crate::id::{NodeId, Pid};
use crate::wire::services::Text;
use crate::wire::services::registry::{Answer, Registry as Frame, Request, Spent, Token};
use crate::wire::services::replication::{After, Ended, State};

/// How often a round asks owners whether they hold the name.
const CONFIRMS_MAX: u32 = 8;

/// A round takes so much of a claimant's patience with its coordinator at most, so that the answer comes in time.
const ROUND_SHARE: f64 = 0.75;

/// A claim that is being decided here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct RoundId(u64);

/// Who wants to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Asker {
    Own(RequestId),
    Peer { peer: NodeId, number: u64 },
}

/// What a claim asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) scope: Text,
    pub(super) name: Text,
    pub(super) token: Token,
    pub(super) serial: u64,
    pub(super) replacing: Option<Pid>,
    pub(super) has_voted: bool,
}

#[derive(Debug)]
pub(super) struct Round {
    pub(super) asker: Asker,
    pub(super) asked: Asked,
    arbiters: Vec<NodeId>,
    stamp: u64,
    after: Option<After>,
    spent: Option<Spent>,
    /// Of those who were asked; `None` until they answer.
    votes: BTreeMap<NodeId, Option<bool>>,
    /// Arbiters that are being dialled.
    dialled: BTreeSet<NodeId>,
    /// The owner that is asked whether it holds the name.
    confirming: Option<Pid>,
    confirms: u32,
    is_releasing: bool,
    pub(super) due: Instant,
    /// Other claims of the name: they are decided on after this one.
    pub(super) waiting: Vec<(Asker, Asked)>,
}

impl Registry {
    /// Decides on a claim, with the other arbiters.
    pub(super) fn coordinate(&mut self, asker: Asker, asked: Asked, now: Instant) {
        let Asked { scope, name, token, .. } = &asked;
        let Some(this) = self.scopes.get(scope) else { return self.reply(asker, Answer::NotInScope, now) };
        if !self.is_ready || self.is_leaving || !this.arbiters.may_decide(&self.id, name) {
            return self.reply(asker, Answer::NotArbiter, now);
        }
        if !self.has_room() {
            return self.reply(asker, Answer::Busy, now);
        }
        if !this.arbiters.holds(&self.id, name) {
            let scope = scope.clone();
            return self.defer(&scope, Deferred::Claim(asker, asked));
        }
        // The same claim again: its last attempt is over.
        let is_of_name = |round: &Round| round.asked.name == asked.name && round.asked.scope == asked.scope;
        let last = self.rounds.iter().find(|(_, round)| is_of_name(round) && round.asked.token == asked.token);
        let last = last.map(|(id, round)| (*id, round.due));
        let waiting = last.and_then(|(id, due)| {
            self.timers.remove(&(due, Timer::Round(id)));
            self.rounds.remove(&id).map(|round| round.waiting)
        });
        let waiting = waiting.unwrap_or_default();
        if let Some(round) = self.rounds.values_mut().find(|round| is_of_name(round)) {
            return round.waiting.push((asker, asked));
        }
        self.last_round += 1;
        let id = RoundId(self.last_round);
        let arbiters = this.arbiters.of(name);
        let after = this.names.get(name).and_then(|entry| entry.released());
        let stamp = self.tick();
        let mut votes = BTreeMap::new();
        if asked.has_voted && arbiters.contains(&token.node) {
            votes.insert(token.node.clone(), Some(true));
        }
        let due = now + self.params.patience.mul_f64(ROUND_SHARE);
        let round = Round {
            asker,
            asked,
            arbiters,
            stamp,
            after,
            spent: None,
            votes,
            dialled: BTreeSet::new(),
            confirming: None,
            confirms: 0,
            is_releasing: false,
            due,
            waiting,
        };
        self.rounds.insert(id, round);
        self.timers.insert((due, Timer::Round(id)));
        self.cast_own(id, now);
    }

    /// The coordinator's own vote; then the others'.
    fn cast_own(&mut self, id: RoundId, now: Instant) {
        let Some(round) = self.rounds.get(&id) else { return };
        let Asked { scope, name, token, serial, replacing, .. } = round.asked.clone();
        let stamp = round.stamp;
        let own = self.id.clone();
        match self.cast(&scope, &name, &token, serial, stamp, replacing.as_ref(), (None, None), &own, now) {
            Ok(()) => {
                // A claim that is tried again keeps the time of its first vote.
                let vote =
                    self.scopes.get(&scope).and_then(|this| this.names.get(&name)?.vote()).map(|vote| vote.stamp);
                if let Some(round) = self.rounds.get_mut(&id) {
                    round.stamp = vote.unwrap_or(stamp);
                    round.votes.insert(self.id.clone(), Some(true));
                }
                self.ask_for_votes(id, now);
            }
            Err(Some(holder)) => self.ask_whether_it_holds(id, holder, now),
            Err(None) => self.end_round(id, Answer::NotInScope, now),
        }
    }

    fn ask_for_votes(&mut self, id: RoundId, now: Instant) {
        if self.has_majority(id, now) {
            return;
        }
        let Some(round) = self.rounds.get(&id) else { return };
        let unasked = round.arbiters.iter().filter(|node| !round.votes.contains_key(node));
        let unasked: Vec<NodeId> = unasked.cloned().collect();
        for node in unasked {
            if self.peers.contains(&node) {
                self.ask_for_vote(id, &node, now);
            } else if let Some(round) = self.rounds.get_mut(&id)
                && round.dialled.insert(node.clone())
            {
                self.outputs.push_back(Output::Dial { peer: node.name().clone() });
            }
        }
    }

    fn ask_for_vote(&mut self, id: RoundId, node: &NodeId, now: Instant) {
        let Some(round) = self.rounds.get_mut(&id) else { return };
        round.votes.insert(node.clone(), None);
        let Asked { scope, name, token, serial, replacing, .. } = round.asked.clone();
        let (stamp, free, spent) = (round.stamp, round.after.clone(), round.spent.clone());
        let request = Request::Vote { scope, name, token, serial, stamp, replacing, free, spent };
        self.ask(node, Purpose::Vote(id), request, now + self.params.patience);
    }

    /// A session with an arbiter has come up.
    pub(super) fn go_on_with_rounds(&mut self, peer: &NodeId, now: Instant) {
        let waiting = self.rounds.iter_mut().filter_map(|(id, round)| round.dialled.remove(peer).then_some(*id));
        let waiting: Vec<RoundId> = waiting.collect();
        for id in waiting {
            let holder = self.rounds.get(&id).and_then(|round| round.confirming.clone());
            match holder.filter(|holder| holder.node() == peer) {
                Some(holder) => self.ask_whether_it_holds(id, holder, now),
                None => self.ask_for_vote(id, peer, now),
            }
        }
    }

    pub(super) fn voted(&mut self, id: RoundId, from: NodeId, answer: Option<Answer>, now: Instant) {
        let Some(round) = self.rounds.get_mut(&id) else {
            return;
        };
        match answer {
            Some(Answer::Yes) => {
                round.votes.insert(from, Some(true));
                self.has_majority(id, now);
            }
            Some(Answer::No { holder }) => {
                round.votes.insert(from, Some(false));
                if round.confirming.is_none() && !round.is_releasing {
                    self.ask_whether_it_holds(id, holder, now);
                }
            }
            // It is none, or not to be reached: the others may be enough.
            Some(_) | None => {
                round.votes.insert(from, Some(false));
                self.lost_if_hopeless(id, now);
            }
        }
    }

    fn majority(round: &Round) -> usize {
        round.arbiters.len() / 2 + 1
    }

    fn has_majority(&mut self, id: RoundId, now: Instant) -> bool {
        let Some(round) = self.rounds.get_mut(&id) else { return true };
        let yes = round.votes.values().filter(|vote| **vote == Some(true)).count();
        if yes < Self::majority(round) || round.is_releasing {
            return false;
        }
        round.confirming = None;
        let (stamp, after) = (round.stamp, round.after.clone());
        match round.asked.replacing.clone() {
            None => self.end_round(id, Answer::Granted { stamp, after }, now),
            Some(old) => {
                round.is_releasing = true;
                self.release_for(id, &old, now);
            }
        }
        true
    }

    fn lost_if_hopeless(&mut self, id: RoundId, now: Instant) {
        let Some(round) = self.rounds.get(&id) else { return };
        let no = round.votes.values().filter(|vote| **vote == Some(false)).count();
        let is_open = round.confirming.is_none() && !round.is_releasing;
        if is_open && round.arbiters.len() - no < Self::majority(round) {
            self.end_round(id, Answer::Contended, now);
        }
    }

    /// The one who is to be replaced gives the name up, now that the successor is agreed on.
    fn release_for(&mut self, id: RoundId, old: &Pid, now: Instant) {
        let Some(round) = self.rounds.get(&id) else { return };
        let Asked { scope, name, token, serial, .. } = round.asked.clone();
        let successor = Pid::new(token.node, serial);
        if let Some((version, stamp)) = self.handed_to(&scope, &name, old, successor.node()) {
            // Its log says that it is done: the answer was too late for an earlier round.
            return self.released(id, old.node(), Some(Answer::Released { version, stamp }), now);
        }
        if *old.node() == self.id {
            let own = self.own_binding(&scope, &name).filter(|own| own.binding.serial == old.serial());
            let Some(own) = own else { return self.not_replaced(id, now) };
            let stamp = own.binding.stamp;
            let ended = Ended::Replaced { by: successor.node().clone(), old: own.binding };
            return self.write(&scope, &name, State::Gone(ended), Then::Handed { round: id, stamp });
        }
        if !self.peers.contains(old.node()) {
            return self.not_replaced(id, now);
        }
        let request = Request::Release { scope, name, serial: old.serial(), successor: Some(successor) };
        self.ask(old.node(), Purpose::Release(id), request, now + self.params.patience);
    }

    /// It does not own the name any more, or is not to be reached.
    fn not_replaced(&mut self, id: RoundId, now: Instant) {
        let Some(round) = self.rounds.get(&id) else { return };
        let old = round.asked.replacing.clone();
        let owner = self.shown(&round.asked.scope, &round.asked.name);
        let answer = if owner == old && owner.is_some() { Answer::Contended } else { Answer::NotOwner { owner } };
        self.end_round(id, answer, now);
    }

    pub(super) fn released(&mut self, id: RoundId, from: &NodeId, answer: Option<Answer>, now: Instant) {
        match answer {
            Some(Answer::Released { version, stamp }) => {
                let after = Some(After { owner: from.clone(), version });
                self.end_round(id, Answer::Granted { stamp, after }, now);
            }
            Some(Answer::NotOwner { owner }) => self.end_round(id, Answer::NotOwner { owner }, now),
            Some(_) | None => self.end_round(id, Answer::Contended, now),
        }
    }

    /// Somebody seems to have the name, or to be about to: does it?
    fn ask_whether_it_holds(&mut self, id: RoundId, holder: Pid, now: Instant) {
        let Some(round) = self.rounds.get_mut(&id) else { return };
        round.confirms += 1;
        if round.confirms > CONFIRMS_MAX {
            return self.end_round(id, Answer::Contended, now);
        }
        round.confirming = Some(holder.clone());
        let (scope, name) = (round.asked.scope.clone(), round.asked.name.clone());
        if *holder.node() == self.id {
            let answer = self.confirm(&scope, &name, holder.serial());
            let own = self.id.clone();
            return self.confirmed(id, &own, Some(answer), self.clock, now);
        }
        if round.asked.token.node == *holder.node() && round.asked.serial == holder.serial() {
            // An earlier claim of the very mailbox: it is this claim's to have.
            return self.end_round(id, Answer::Contended, now);
        }
        if !self.peers.contains(holder.node()) {
            round.dialled.insert(holder.node().clone());
            return self.outputs.push_back(Output::Dial { peer: holder.node().name().clone() });
        }
        let request = Request::Confirm { scope, name, serial: holder.serial() };
        self.ask(holder.node(), Purpose::Confirm(id), request, now + self.params.patience);
    }

    /// The answer was given at that Lamport time.
    pub(super) fn confirmed(&mut self, id: RoundId, from: &NodeId, answer: Option<Answer>, time: u64, now: Instant) {
        let Some(round) = self.rounds.get_mut(&id) else { return };
        let Some(holder) = round.confirming.take_if(|holder| holder.node() == from) else { return };
        match answer {
            Some(Answer::Holds) if round.asked.replacing.as_ref() == Some(&holder) => {
                self.end_round(id, Answer::Contended, now);
            }
            Some(Answer::Holds) if round.asked.replacing.is_some() => {
                self.end_round(id, Answer::NotOwner { owner: Some(holder) }, now);
            }
            Some(Answer::Holds) => self.end_round(id, Answer::Taken { owner: holder, is_confirmed: true }, now),
            Some(Answer::Free { version } | Answer::Yields { version }) => {
                let after = After { owner: from.clone(), version };
                round.after = Some(after.clone());
                let spent = Spent { mailbox: holder, time };
                round.spent = Some(spent.clone());
                // Those who said no are asked once more: now they are told.
                round.votes.retain(|_, vote| *vote == Some(true));
                let (scope, name) = (round.asked.scope.clone(), round.asked.name.clone());
                if let Some(this) = self.scopes.get_mut(&scope) {
                    this.entry(&name).confirm_release(after);
                    let stale = this.entry(&name).vote().filter(|vote| vote.is_spent(&spent)).cloned();
                    if let Some(vote) = stale.filter(|vote| vote.token != round.asked.token) {
                        self.forget_vote(&scope, &name, &vote.token);
                    }
                }
                self.refresh(&scope, &name, NameReason::Unregistered);
                self.cast_own(id, now);
            }
            Some(Answer::Claims) => self.end_round(id, Answer::Contended, now),
            Some(_) | None => {
                self.end_round(id, Answer::Taken { owner: holder, is_confirmed: false }, now);
            }
        }
    }

    /// Not all have answered in time.
    pub(super) fn round_timeout(&mut self, id: RoundId, now: Instant) {
        let Some(round) = self.rounds.get(&id) else { return };
        let answer = match &round.confirming {
            Some(holder) => Answer::Taken { owner: holder.clone(), is_confirmed: false },
            None => Answer::Contended,
        };
        self.end_round(id, answer, now);
    }

    /// Goes on with claims that waited: the first of them begins a round of its own, and the others wait for that. They are
    /// taken one after the other, however many rounds end at once.
    fn resume(&mut self, waiting: Vec<(Asker, Asked)>, now: Instant) {
        self.resumed.extend(waiting);
        if std::mem::replace(&mut self.is_resuming, true) {
            return;
        }
        while let Some((asker, asked)) = self.resumed.pop_front() {
            self.coordinate(asker, asked, now);
        }
        self.is_resuming = false;
    }

    /// Nobody wants to know its outcome any more.
    pub(super) fn drop_round(&mut self, id: RoundId, now: Instant) {
        let Some(round) = self.rounds.remove(&id) else { return };
        self.timers.remove(&(round.due, Timer::Round(id)));
        self.resume(round.waiting, now);
    }

    fn end_round(&mut self, id: RoundId, answer: Answer, now: Instant) {
        let Some(round) = self.rounds.remove(&id) else { return };
        self.timers.remove(&(round.due, Timer::Round(id)));
        if !matches!(answer, Answer::Granted { .. }) {
            // Votes for what is not granted are in the way of others.
            let Asked { scope, name, token, .. } = &round.asked;
            self.forget_vote(scope, name, token);
            for (voter, _) in round.votes.iter().filter(|(voter, _)| **voter != self.id && **voter != token.node) {
                if self.peers.contains(voter) {
                    let (scope, name, token) = (scope.clone(), name.clone(), token.clone());
                    let frame = Frame::Withdraw { scope, name, token, clock: self.clock };
                    self.outputs.push_back(Output::Send { to: voter.clone(), frame });
                }
            }
        }
        self.reply(round.asker, answer, now);
        self.resume(round.waiting, now);
    }

    fn reply(&mut self, asker: Asker, answer: Answer, now: Instant) {
        match asker {
            Asker::Peer { peer, number } => self.answer(peer, number, answer),
            Asker::Own(id) => {
                let own = self.id.clone();
                self.claim_answered(id, &own, answer, now);
            }
        }
    }
}
