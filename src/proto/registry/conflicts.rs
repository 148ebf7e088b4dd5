//! Two bindings of one name: which one stands, and who gives it up.
//!
//! The node of the younger claim asks the node of the older one, which decides. Only a node itself gives up its own binding,
//! after the other has said that it holds the name; so a loss is never declared against a binding that is gone.

use std::time::Instant;

use super::view::Bound;
use super::{Dispute, DisputeId, Output, Purpose, Registry, Rule, Then, Timer, Verdict};
use crate::id::{NodeId, Pid};
use crate::wire::services::Text;
use crate::wire::services::registry::{Answer, Request};
use crate::wire::services::replication::{After, Ended, State};

/// A dispute that the resolver was asked about.
#[derive(Debug)]
pub(super) struct Open {
    scope: Text,
    name: Text,
    serial: u64,
    contender: Pid,
    /// Whom to answer.
    peer: NodeId,
    number: u64,
}

impl Registry {
    /// Is the own binding the younger of two? Then the older's node is asked, again and again until it is settled.
    pub(super) fn contest(&mut self, scope: &Text, name: &Text, now: Instant) {
        let is_open = |asked: &super::Asked| matches!(&asked.purpose, Purpose::Contend { scope: s, name: n, .. } if s == scope && n == name);
        if self.older_rival(scope, name).is_some() && !self.asked.values().any(is_open) {
            self.contend(scope, name, now);
        }
    }

    /// The oldest binding that is older than the own one.
    fn older_rival(&self, scope: &Text, name: &Text) -> Option<(Bound, Bound)> {
        let entry = self.scopes.get(scope)?.names.get(name)?;
        if entry.bindings.len() < 2 {
            return None;
        }
        let own = entry.valid().find(|bound| bound.owner == self.id)?;
        let rival = entry.valid().min_by_key(|bound| bound.age())?;
        (rival.owner != self.id).then(|| (own.clone(), rival.clone()))
    }

    fn contend(&mut self, scope: &Text, name: &Text, now: Instant) {
        let Some((own, rival)) = self.older_rival(scope, name) else { return };
        let (scope, name) = (scope.clone(), name.clone());
        if !self.peers.contains(&rival.owner) {
            if self.contest_later(&scope, &name, now) {
                self.outputs.push_back(Output::Dial { peer: rival.owner.name().clone() });
            }
            self.rivals_dialled.insert((rival.owner, scope, name));
            return;
        }
        self.counters.conflicts += 1;
        let request = Request::Contend {
            scope: scope.clone(),
            name: name.clone(),
            serial: rival.binding.serial,
            contender: own.pid(),
            stamp: own.binding.stamp,
        };
        // A resolver may take its time.
        let due = now + CONTEND_PATIENCE * self.params.patience;
        let purpose = Purpose::Contend { scope, name, serial: rival.binding.serial };
        self.ask(&rival.owner, purpose, request, due);
    }

    /// There is a session with the node of an older claim.
    pub(super) fn contend_with(&mut self, peer: &NodeId, now: Instant) {
        let dialled: Vec<_> = self.rivals_dialled.iter().filter(|(rival, _, _)| rival == peer).cloned().collect();
        self.rivals_dialled.retain(|(rival, _, _)| rival != peer);
        dialled.into_iter().for_each(|(_, scope, name)| self.contest(&scope, &name, now));
    }

    /// False when that was said before.
    fn contest_later(&mut self, scope: &Text, name: &Text, now: Instant) -> bool {
        let is_new = self.contests.insert((scope.clone(), name.clone()));
        if is_new {
            let timer = Timer::Contend { scope: scope.clone(), name: name.clone() };
            self.timers.insert((now + self.params.patience, timer));
        }
        is_new
    }

    pub(super) fn contend_answered(&mut self, scope: &Text, name: &Text, rival: Pid, answer: Answer, now: Instant) {
        match answer {
            Answer::Wins | Answer::Neither => self.lose(scope, name, rival, Then::Nothing),
            Answer::Yields { version } | Answer::Free { version } => {
                if let Some(this) = self.scopes.get_mut(scope) {
                    this.entry(name).confirm_release(After { owner: rival.node().clone(), version });
                }
                self.refresh(scope, name, super::NameReason::Conflict);
                if self.older_rival(scope, name).is_some_and(|(_, older)| older.pid() == rival) {
                    // What it has given up is older than what is to be seen of it.
                    self.contest_later(scope, name, now);
                } else {
                    self.contest(scope, name, now);
                }
            }
            _ => {
                self.contest_later(scope, name, now);
            }
        }
    }

    /// The own binding is given up, because another stands.
    fn lose(&mut self, scope: &Text, name: &Text, winner: Pid, then: Then) {
        let Some(own) = self.own_binding(scope, name) else { return };
        self.counters.lost += 1;
        self.write(scope, name, State::Gone(Ended::Lost), then);
        let serial = own.binding.serial;
        self.outputs.push_back(Output::Lost { scope: scope.clone(), name: name.clone(), serial, winner });
    }

    /// The node of a younger claim asks whether the own one stands. `None` when the answer comes later.
    #[expect(clippy::too_many_arguments, reason = "they are the fields of one question")]
    pub(super) fn contended(
        &mut self,
        from: &NodeId,
        number: u64,
        scope: &Text,
        name: &Text,
        serial: u64,
        contender: &Pid,
        stamp: u64,
    ) -> Option<Answer> {
        if contender.node() != from {
            // Nobody speaks for another's mailboxes.
            self.counters.malformed += 1;
            self.outputs.push_back(Output::Broken { peer: from.clone() });
            return None;
        }
        let own_version = match self.scopes.get(scope) {
            Some(this) => this.own_version,
            None => return Some(Answer::NotInScope),
        };
        let own = self.own_binding(scope, name);
        let older = own.as_ref().filter(|own| own.binding.serial == serial && own.age() < (stamp, from));
        let Some(older) = older.cloned() else {
            return Some(Answer::Free { version: own.map_or(own_version, |own| own.version - 1) });
        };
        let newer = self.scopes.get(scope).and_then(|this| this.names.get(name)?.of(from)).cloned();
        if *self.rule_of(name) == Rule::Oldest {
            return Some(Answer::Wins);
        }
        // Without the contender's binding there is nothing to decide about yet: it asks again.
        let Some(newer) = newer else { return Some(Answer::Contended) };
        let stands = match self.rule_of(name) {
            rule @ (Rule::Oldest | Rule::Newest | Rule::Priority(_)) => rule.prefers(&older, &newer),
            Rule::Asked => {
                self.dispute(from, number, scope, name, &older, &newer, contender);
                return None;
            }
        };
        if stands {
            return Some(Answer::Wins);
        }
        self.lose(scope, name, contender.clone(), Then::Yielded { peer: from.clone(), number });
        None
    }

    #[expect(clippy::too_many_arguments, reason = "they are what a dispute is about")]
    fn dispute(
        &mut self,
        from: &NodeId,
        number: u64,
        scope: &Text,
        name: &Text,
        older: &Bound,
        newer: &Bound,
        contender: &Pid,
    ) {
        let same = self
            .disputes
            .values_mut()
            .find(|open| open.scope == *scope && open.name == *name && open.contender == *contender);
        if let Some(open) = same {
            // Asked once more: the resolver is not.
            open.number = number;
            return;
        }
        if self.disputes.len() >= self.params.claims_max {
            return self.answer(from.clone(), number, Answer::Busy);
        }
        self.last_dispute += 1;
        let id = DisputeId(self.last_dispute);
        let open = Open {
            scope: scope.clone(),
            name: name.clone(),
            serial: older.binding.serial,
            contender: contender.clone(),
            peer: from.clone(),
            number,
        };
        self.disputes.insert(id, open);
        let over = Dispute { scope: scope.clone(), name: name.clone(), older: older.named(), newer: newer.named() };
        self.outputs.push_back(Output::Decide { dispute: id, over });
    }

    pub(super) fn decided(&mut self, dispute: DisputeId, verdict: Verdict) {
        let Some(Open { scope, name, serial, contender, peer, number }) = self.disputes.remove(&dispute) else {
            return;
        };
        let holds = self.own_binding(&scope, &name).is_some_and(|own| own.binding.serial == serial);
        if !holds {
            let version = self.scopes.get(&scope).map_or(0, |this| this.own_version);
            return self.answer(peer, number, Answer::Free { version });
        }
        match verdict {
            Verdict::Older => self.answer(peer, number, Answer::Wins),
            Verdict::Newer => self.lose(&scope, &name, contender, Then::Yielded { peer, number }),
            Verdict::Neither => {
                self.lose(&scope, &name, contender, Then::Nothing);
                self.answer(peer, number, Answer::Neither);
            }
        }
    }
}

/// So many times longer than other questions this one waits for its answer.
const CONTEND_PATIENCE: u32 = 4;
