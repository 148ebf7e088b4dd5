//! The claiming side: a claim goes to one arbiter after the other until one decides.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::rounds::{Asked, Asker};
use super::view::Bound;
use super::{Granted, Output, Purpose, Refusal, Registry, RequestId, Then, Timer};
use crate::id::{NodeId, NodeName, Pid};
use crate::wire::services::Text;
use crate::wire::services::registry::{Answer, Registry as Frame, Request, Token};
use crate::wire::services::replication::{After, Binding, Ended, State};

/// A claim of this node that is not decided.
#[derive(Debug)]
pub(super) struct Claim {
    number: u64,
    pub(super) scope: Text,
    pub(super) name: Text,
    pub(super) serial: u64,
    tag: Text,
    metadata: Bytes,
    replacing: Option<Pid>,
    deadline: Instant,
    /// When it asks again, while it waits.
    retry: Option<Instant>,
    stage: Stage,
    /// Arbiters that did not answer, since one did.
    silent: Vec<NodeId>,
    /// Whether this node, as an arbiter, votes for it.
    has_voted: bool,
}

/// What a handle asks for.
#[derive(Clone, Debug)]
pub(crate) struct Wish {
    pub(crate) scope: Text,
    pub(crate) name: Text,
    pub(crate) serial: u64,
    pub(crate) tag: Text,
    pub(crate) metadata: Bytes,
    pub(crate) replacing: Option<Pid>,
    pub(crate) deadline: Instant,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Stage {
    /// A coordinator was asked: by that question, or this node is it.
    Asked(Option<u64>),
    /// The coordinator is being dialled.
    Dialling(NodeId),
    /// Until the next attempt.
    Waiting,
}

/// How long a claim waits before it asks again, at least, when another is under way or nobody is there to be asked; at most
/// twice as long.
const PAUSE: Duration = Duration::from_millis(25);

impl Claim {
    pub(super) fn new(number: u64, wish: Wish) -> Self {
        let Wish { scope, name, serial, tag, metadata, replacing, deadline } = wish;
        Self {
            number,
            scope,
            name,
            serial,
            tag,
            metadata,
            replacing,
            deadline,
            retry: None,
            stage: Stage::Waiting,
            silent: Vec::new(),
            has_voted: false,
        }
    }

    pub(super) fn waits_for(&self, peer: &NodeName) -> bool {
        matches!(&self.stage, Stage::Dialling(node) if node.name() == peer)
    }
}

impl Registry {
    pub(super) fn register(&mut self, id: RequestId, claim: Claim, now: Instant) {
        let (scope, name) = (claim.scope.clone(), claim.name.clone());
        if !self.scopes.contains_key(&scope) {
            return self.done(id, Err(Refusal::NotInScope));
        }
        if self.is_leaving {
            return self.done(id, Err(Refusal::Shutdown));
        }
        if !self.is_ready {
            return self.done(id, Err(Refusal::NotReady));
        }
        let own = self.own_binding(&scope, &name);
        match (&claim.replacing, own) {
            (Some(old), own) if *old.node() == self.id => {
                return match own {
                    Some(own) if own.binding.serial == old.serial() => {
                        let stamp = own.binding.stamp;
                        self.bind(id, &claim, stamp, own.binding.after.clone());
                    }
                    Some(own) => self.done(id, Err(Refusal::NotOwner { owner: own.pid() })),
                    None => self.done(id, Err(self.not_owner(self.shown(&scope, &name)))),
                };
            }
            (_, Some(own)) => return self.has_it(id, &claim, &own),
            (_, None) => {}
        }
        if self.own_count + self.claims.len() >= self.params.names_max {
            return self.done(id, Err(Refusal::LimitReached { max: self.params.names_max }));
        }
        self.counters.claims += 1;
        self.timers.insert((claim.deadline, Timer::Deadline(id)));
        self.claims.insert(id, claim);
        self.attempt(id, now);
    }

    /// Asks the first arbiter that is not known to be silent.
    fn attempt(&mut self, id: RequestId, now: Instant) {
        let Some(claim) = self.claims.get(&id) else { return };
        let Some(scope) = self.scopes.get(&claim.scope) else { return };
        let arbiters = scope.arbiters.of(&claim.name);
        let target = arbiters.iter().find(|node| !claim.silent.contains(node)).cloned();
        let Some(target) = target else {
            // Nobody answered, or nobody is known: perhaps the next ones do.
            if let Some(claim) = self.claims.get_mut(&id) {
                claim.silent.clear();
            }
            return self.pause(id, now);
        };
        let token = Token { node: self.id.clone(), number: claim.number };
        let (name, serial, replacing) = (claim.name.clone(), claim.serial, claim.replacing.clone());
        if target == self.id {
            let asked = Asked { scope: claim.scope.clone(), name, token, serial, replacing, has_voted: true };
            self.set_stage(id, Stage::Asked(None));
            return self.coordinate(Asker::Own(id), asked, now);
        }
        if !self.peers.contains(&target) {
            self.outputs.push_back(Output::Dial { peer: target.name().clone() });
            self.set_stage(id, Stage::Dialling(target));
            return self.retry_at(id, now + self.params.patience);
        }
        // One of three, and the one that is asked is another: that is a majority without asking anybody else.
        let has_voted = arbiters.contains(&self.id) && self.vote_for_own(id, now);
        let Some(claim) = self.claims.get_mut(&id) else { return };
        claim.has_voted = has_voted;
        let request = Request::Claim {
            scope: claim.scope.clone(),
            name: claim.name.clone(),
            claim: claim.number,
            serial: claim.serial,
            replacing: claim.replacing.clone(),
            has_voted,
        };
        let number = self.ask(&target, Purpose::Claim(id), request, now + self.params.patience);
        self.set_stage(id, Stage::Asked(Some(number)));
    }

    fn set_stage(&mut self, id: RequestId, stage: Stage) {
        if let Some(claim) = self.claims.get_mut(&id) {
            claim.stage = stage;
        }
    }

    fn pause(&mut self, id: RequestId, now: Instant) {
        self.set_stage(id, Stage::Waiting);
        let pause = PAUSE.mul_f64(1.0 + self.rng.f64());
        self.retry_at(id, now + pause);
    }

    fn retry_at(&mut self, id: RequestId, due: Instant) {
        if let Some(claim) = self.claims.get_mut(&id) {
            if let Some(old) = claim.retry.replace(due) {
                self.timers.remove(&(old, Timer::Retry(id)));
            }
            self.timers.insert((due, Timer::Retry(id)));
        }
    }

    /// The pause is over, or a dial took too long.
    pub(super) fn retry(&mut self, id: RequestId, now: Instant) {
        match self.claims.get(&id).map(|claim| claim.stage.clone()) {
            Some(Stage::Waiting) => self.attempt(id, now),
            Some(Stage::Dialling(_)) => self.next_coordinator(id, now),
            _ => {}
        }
    }

    /// A session has come up: whoever waited for it goes on.
    pub(super) fn go_on_with(&mut self, peer: &NodeId, now: Instant) {
        let waiting = self.claims.iter().filter(|(_, claim)| claim.stage == Stage::Dialling(peer.clone()));
        let waiting: Vec<RequestId> = waiting.map(|(id, _)| *id).collect();
        waiting.into_iter().for_each(|id| self.attempt(id, now));
        self.go_on_with_owner(peer);
        self.go_on_with_rounds(peer, now);
        self.hold_again(peer, now);
    }

    /// The coordinator does not answer, or cannot be reached.
    pub(super) fn next_coordinator(&mut self, id: RequestId, now: Instant) {
        let Some(claim) = self.claims.get_mut(&id) else { return };
        let silent = match &claim.stage {
            Stage::Dialling(node) => Some(node.clone()),
            _ => None,
        };
        let silent = silent.or_else(|| {
            let arbiters = self.scopes.get(&claim.scope)?.arbiters.of(&claim.name);
            arbiters.into_iter().find(|node| !claim.silent.contains(node))
        });
        claim.silent.extend(silent);
        self.attempt(id, now);
    }

    pub(super) fn claim_answered(&mut self, id: RequestId, from: &NodeId, answer: Answer, now: Instant) {
        // One that was given up is granted in vain: its votes were withdrawn.
        let Some(claim) = self.claims.get(&id) else { return };
        let is_writing = self.is_writing(&claim.scope, &claim.name);
        let Some(claim) = self.claims.get_mut(&id) else { return };
        claim.silent.retain(|node| node != from);
        match answer {
            Answer::Granted { .. } if is_writing => self.pause(id, now),
            Answer::Granted { stamp, after } => {
                let Some(claim) = self.claims.remove(&id) else { return };
                self.heard_clock(stamp);
                match self.own_binding(&claim.scope, &claim.name) {
                    // Another request of this node was faster, and may have gone on since.
                    Some(own) => {
                        self.over(id, &claim, now);
                        self.has_it(id, &claim, &own);
                    }
                    None => {
                        self.forget_timers(id, &claim);
                        self.bind(id, &claim, stamp, after);
                    }
                }
            }
            Answer::Taken { owner, is_confirmed } => {
                // Whoever knows that the owner is dead is not told so by one who does not know yet.
                if *owner.node() != self.id && !self.live.contains(owner.node()) {
                    self.unvote(id);
                    return self.pause(id, now);
                }
                self.refuse(id, Refusal::Taken { owner, is_confirmed }, now);
            }
            Answer::NotOwner { owner } => {
                let refusal = self.not_owner(owner);
                self.refuse(id, refusal, now);
            }
            Answer::NotArbiter | Answer::NotInScope | Answer::Busy => {
                claim.silent.push(from.clone());
                self.pause(id, now);
            }
            Answer::Contended => {
                self.unvote(id);
                self.pause(id, now);
            }
            _ => {
                claim.silent.push(from.clone());
                self.counters.malformed += 1;
                self.outputs.push_back(Output::Broken { peer: from.clone() });
                self.pause(id, now);
            }
        }
    }

    /// This node holds the name already.
    fn has_it(&mut self, id: RequestId, claim: &Claim, own: &Bound) {
        let follows = own.binding.after.as_ref().map(|after| &after.owner);
        let outcome = match &claim.replacing {
            // It was done, and the answer was late.
            None if own.binding.serial == claim.serial => {
                Ok(Granted::Bound { version: own.version, stamp: own.binding.stamp })
            }
            Some(old) if own.binding.serial == claim.serial && follows == Some(old.node()) => {
                Ok(Granted::Bound { version: own.version, stamp: own.binding.stamp })
            }
            None => Err(Refusal::Taken { owner: own.pid(), is_confirmed: true }),
            Some(_) => Err(Refusal::NotOwner { owner: own.pid() }),
        };
        self.done(id, outcome);
    }

    fn not_owner(&self, owner: Option<Pid>) -> Refusal {
        owner.map_or(Refusal::NotRegistered, |owner| Refusal::NotOwner { owner })
    }

    /// The name is this node's: it says so to all.
    fn bind(&mut self, id: RequestId, claim: &Claim, stamp: u64, after: Option<After>) {
        let Claim { scope, name, serial, tag, metadata, .. } = claim;
        let binding = Binding { serial: *serial, stamp, after, tag: tag.clone(), metadata: metadata.clone() };
        self.counters.granted += 1;
        self.write(scope, name, State::Bound(Arc::new(binding)), Then::Bound { id, stamp, serial: *serial });
    }

    /// The request is over without success.
    pub(super) fn refuse(&mut self, id: RequestId, refusal: Refusal, now: Instant) {
        if self.end(id, now) {
            self.done(id, Err(refusal));
        }
    }

    /// Nobody waits for it any more.
    pub(super) fn give_up(&mut self, id: RequestId, now: Instant) {
        self.end(id, now);
    }

    fn end(&mut self, id: RequestId, now: Instant) -> bool {
        let was_asked = self.forget_to_owner(id);
        if !self.claims.contains_key(&id) {
            return was_asked;
        }
        let Some(claim) = self.claims.remove(&id) else { return was_asked };
        self.over(id, &claim, now);
        true
    }

    fn forget_timers(&mut self, id: RequestId, claim: &Claim) {
        self.timers.remove(&(claim.deadline, Timer::Deadline(id)));
        if let Some(retry) = claim.retry {
            self.timers.remove(&(retry, Timer::Retry(id)));
        }
    }

    /// Nothing is kept of a claim that is not bound.
    fn over(&mut self, id: RequestId, claim: &Claim, now: Instant) {
        self.forget_timers(id, claim);
        let token = Token { node: self.id.clone(), number: claim.number };
        // Arbiters that have voted for it, this one among them, would keep the name from others for a while.
        self.withdraw_votes(&claim.scope, &claim.name, &token);
        let own = self.id.clone();
        self.withdrawn(&own, &claim.scope, &claim.name, &token, now);
        if let Stage::Asked(Some(number)) = claim.stage {
            self.unask(number);
        }
    }

    /// Tells all arbiters that the claim is over.
    pub(super) fn withdraw_votes(&mut self, scope: &Text, name: &Text, token: &Token) {
        let Some(this) = self.scopes.get(scope) else { return };
        for peer in this.arbiters.of(name).into_iter().filter(|peer| self.peers.contains(peer)).collect::<Vec<_>>() {
            let (scope, name, token) = (scope.clone(), name.clone(), token.clone());
            let frame = Frame::Withdraw { scope, name, token, clock: self.clock };
            self.outputs.push_back(Output::Send { to: peer, frame });
        }
    }

    /// This node votes for its own claim, as an arbiter does.
    fn vote_for_own(&mut self, id: RequestId, now: Instant) -> bool {
        let Some(claim) = self.claims.get(&id) else { return false };
        let (scope, name, replacing) = (claim.scope.clone(), claim.name.clone(), claim.replacing.clone());
        let token = Token { node: self.id.clone(), number: claim.number };
        let serial = claim.serial;
        if !self.holds(&scope, &name) {
            return false;
        }
        let (stamp, own) = (self.tick(), self.id.clone());
        self.cast(&scope, &name, &token, serial, stamp, replacing.as_ref(), (None, None), &own, now).is_ok()
    }

    fn unvote(&mut self, id: RequestId) {
        let Some(claim) = self.claims.get_mut(&id) else { return };
        claim.has_voted = false;
        let (scope, name) = (claim.scope.clone(), claim.name.clone());
        let token = Token { node: self.id.clone(), number: claim.number };
        self.forget_vote(&scope, &name, &token);
    }

    pub(super) fn claims_name(&self, scope: &Text, name: &Text, serial: u64) -> bool {
        self.claims.values().any(|claim| claim.scope == *scope && claim.name == *name && claim.serial == serial)
    }

    /// A mailbox of this node is gone: so are its names, and its claims.
    pub(super) fn closed(&mut self, serial: u64, now: Instant) {
        let names: Vec<_> = self.own.get(&serial).into_iter().flatten().cloned().collect();
        for (scope, name) in names {
            self.write(&scope, &name, State::Gone(Ended::Closed), Then::Nothing);
        }
        self.handed_over_closed(serial);
        let claims = self.claims.iter().filter(|(_, claim)| claim.serial == serial).map(|(id, _)| *id);
        let claims: Vec<RequestId> = claims.collect();
        claims.into_iter().for_each(|id| self.refuse(id, Refusal::MailboxClosed, now));
    }

    /// The node leaves.
    pub(super) fn withdraw(&mut self, now: Instant) {
        self.is_leaving = true;
        let names: Vec<_> = self.own.values().flatten().cloned().collect();
        for (scope, name) in names {
            self.write(&scope, &name, State::Gone(Ended::Left), Then::Nothing);
        }
        let claims: Vec<RequestId> = self.claims.keys().copied().collect();
        claims.into_iter().for_each(|id| self.refuse(id, Refusal::Shutdown, now));
    }
}
