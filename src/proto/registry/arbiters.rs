//! The deciding side: three arbiters of each name, and how a majority of them grants a claim.
//!
//! ```text
//! claimant ── Claim ──▶ coordinator ── Vote ──▶ two other arbiters        the coordinator is any of the three
//!                            │  ▲──── Yes, No ───┘
//!                            ├── Confirm ──▶ whoever has the name          only when somebody seems to have it
//!                            ├── Release ──▶ whoever is to be replaced     only for a replacement
//! claimant ◀── Granted ──────┘
//! ```
//!
//! An arbiter that has voted keeps the name from others until the binding is to be seen, the claim is withdrawn, or a while
//! has passed. Two majorities of three have an arbiter in common, so two claims are granted at one time only when views of the
//! members differ. After a member is gone, a new arbiter decides on nothing that it did not decide on before, until all others
//! have told it what they have voted for, or a while has passed.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Instant;

use super::{Output, Purpose, Registry, RequestId, Then, Timer};
use crate::id::{NodeId, Pid};
use crate::wire::services::registry::{Answer, Pending, Registry as Frame, Request, Spent, Token};
use crate::wire::services::replication::{After, Ended, State};
use crate::wire::services::{ITEMS_MAX, Text};

/// Arbiters of each name, when there are so many.
const ARBITERS: usize = 3;

/// How often a round asks owners whether they hold the name.
const CONFIRMS_MAX: u32 = 8;

/// Who decides in one scope.
#[derive(Debug, Default)]
pub(super) struct Arbiters {
    /// Those who live and are ready, as far as this node knows.
    present: BTreeSet<NodeId>,
    /// The same without what this node gained since the last barrier.
    settled: BTreeSet<NodeId>,
    barrier: Option<Barrier>,
    epoch: u64,
    /// What has come for this node as an arbiter that waits for the barrier.
    deferred: VecDeque<Deferred>,
}

#[derive(Debug)]
struct Barrier {
    /// Who has not answered yet.
    waiting: BTreeSet<NodeId>,
    /// Who could not be asked, for want of a session.
    unasked: BTreeSet<NodeId>,
}

#[derive(Debug)]
enum Deferred {
    Claim(Asker, Asked),
    Vote { from: NodeId, number: u64, request: Request },
}

/// A vote that this node gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Vote {
    pub(super) token: Token,
    pub(super) serial: u64,
    pub(super) stamp: u64,
    /// Who asked for it last: it may take it back.
    pub(super) by: NodeId,
    /// Until when it is kept.
    pub(super) due: Instant,
}

impl Vote {
    /// The claim is over. One that the same mailbox has made since has a later stamp: its node's clock went with it.
    fn is_spent(&self, spent: &Spent) -> bool {
        let Spent { mailbox, time } = spent;
        self.token.node == *mailbox.node() && self.serial == mailbox.serial() && self.stamp <= *time
    }

    pub(super) fn timer(&self, scope: &Text, name: &Text) -> (Instant, Timer) {
        (self.due, Timer::Vote { scope: scope.clone(), name: name.clone(), token: self.token.clone() })
    }
}

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
    asked: Asked,
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
    due: Instant,
    /// Other claims of the name: they are decided on after this one.
    waiting: Vec<(Asker, Asked)>,
}

impl Arbiters {
    /// The arbiters of a name, the first coordinator first: rendezvous hashing (Thaler, Ravishankar 1998).
    pub(super) fn of(&self, name: &Text) -> Vec<NodeId> {
        top(&self.present, name)
    }

    fn may_decide(&self, id: &NodeId, name: &Text) -> bool {
        self.present.contains(id) && self.of(name).contains(id)
    }

    /// Whether this node decided on that name before the last change, too.
    fn holds(&self, id: &NodeId, name: &Text) -> bool {
        self.settled.contains(id) && self.may_decide(id, name) && top(&self.settled, name).contains(id)
    }

    #[cfg(test)]
    pub(super) fn pending(&self) -> usize {
        self.deferred.len() + usize::from(self.barrier.is_some())
    }
}

fn top(nodes: &BTreeSet<NodeId>, name: &Text) -> Vec<NodeId> {
    if nodes.len() <= ARBITERS {
        let mut all: Vec<_> = nodes.iter().map(|node| (weight(node, name), node)).collect();
        all.sort_unstable();
        return all.into_iter().map(|(_, node)| node.clone()).collect();
    }
    let mut best: Vec<(u64, &NodeId)> = Vec::with_capacity(ARBITERS + 1);
    for node in nodes {
        let weighed = (weight(node, name), node);
        if best.len() == ARBITERS && best.last().is_some_and(|last| *last <= weighed) {
            continue;
        }
        let place = best.partition_point(|other| *other < weighed);
        best.insert(place, weighed);
        best.truncate(ARBITERS);
    }
    best.into_iter().map(|(_, node)| node.clone()).collect()
}

/// Of FNV-1a (Fowler, Noll, Vo), mixed once more as in splitmix64, because the last bytes decide too little. The lowest wins.
fn weight(node: &NodeId, name: &str) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let bytes = name.bytes().chain([0xff]).chain(node.name().as_str().bytes());
    for byte in bytes.chain(node.incarnation().to_be_bytes()) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

impl Registry {
    pub(super) fn holds(&self, scope: &Text, name: &Text) -> bool {
        self.scopes.get(scope).is_some_and(|scope| scope.arbiters.holds(&self.id, name))
    }

    /// A node decides from now on, or no longer does.
    pub(super) fn arbiter(&mut self, scope: &Text, node: NodeId, is: bool, now: Instant) {
        let Some(this) = self.scopes.get_mut(scope) else { return };
        let arbiters = &mut this.arbiters;
        if is {
            if !arbiters.present.insert(node.clone()) {
                return;
            }
            if node != self.id {
                // Whoever comes takes names from others, and gives none to them.
                arbiters.settled.insert(node);
                return;
            }
        } else {
            if !arbiters.present.remove(&node) {
                return;
            }
            if !arbiters.present.contains(&self.id) {
                arbiters.settled.remove(&node);
                return;
            }
        }
        self.begin_barrier(scope, now);
    }

    /// Asks all others what they have voted for.
    fn begin_barrier(&mut self, scope: &Text, now: Instant) {
        let Some(this) = self.scopes.get_mut(scope) else { return };
        this.arbiters.epoch += 1;
        let epoch = this.arbiters.epoch;
        let others = this.arbiters.present.iter().filter(|node| **node != self.id).cloned();
        let (asked, unasked): (BTreeSet<_>, BTreeSet<_>) = others.partition(|node| self.peers.contains(node));
        this.arbiters.barrier = Some(Barrier { waiting: asked.clone(), unasked });
        let due = now + self.params.barrier;
        self.timers.insert((due, Timer::Barrier { scope: scope.clone(), epoch }));
        for node in asked {
            let purpose = Purpose::Hold { scope: scope.clone(), epoch };
            self.ask(&node, purpose, Request::Hold { scope: scope.clone() }, due);
        }
        self.settle_if_told(scope, now);
    }

    /// A session came up with one that could not be asked.
    pub(super) fn hold_again(&mut self, peer: &NodeId, now: Instant) {
        let scopes: Vec<Text> = self.scopes.keys().cloned().collect();
        for scope in scopes {
            let Some(this) = self.scopes.get_mut(&scope) else { continue };
            let epoch = this.arbiters.epoch;
            let Some(barrier) = &mut this.arbiters.barrier else { continue };
            if barrier.unasked.remove(peer) {
                barrier.waiting.insert(peer.clone());
                let purpose = Purpose::Hold { scope: scope.clone(), epoch };
                self.ask(peer, purpose, Request::Hold { scope }, now + self.params.barrier);
            }
        }
    }

    pub(super) fn held_answered(
        &mut self,
        scope: &Text,
        epoch: u64,
        from: NodeId,
        answer: Option<Answer>,
        now: Instant,
    ) {
        let Some(this) = self.scopes.get_mut(scope) else { return };
        // Silence, and whatever is no answer, waits for the end of the barrier.
        let Some(Answer::Held { pending }) = answer else { return };
        for Pending { name, token, serial, stamp } in pending {
            let is_bound = this.entry(&name).of(&token.node).is_some();
            if !is_bound && this.entry(&name).vote().is_none() && self.votes < self.params.claims_max {
                self.votes += 1;
                let vote = Vote { token, serial, stamp, by: from.clone(), due: now + self.params.grant_kept };
                self.timers.insert(vote.timer(scope, &name));
                this.entry(&name).set_vote(Some(vote));
                this.voted.insert(name.clone());
            }
            this.tidy(&name);
        }
        if this.arbiters.epoch == epoch
            && let Some(barrier) = &mut this.arbiters.barrier
        {
            barrier.waiting.remove(&from);
        }
        self.settle_if_told(scope, now);
    }

    fn settle_if_told(&mut self, scope: &Text, now: Instant) {
        let barrier = self.scopes.get(scope).and_then(|this| this.arbiters.barrier.as_ref());
        if barrier.is_some_and(|barrier| barrier.waiting.is_empty() && barrier.unasked.is_empty()) {
            self.settle(scope, now);
        }
    }

    pub(super) fn barrier_over(&mut self, scope: &Text, epoch: u64, now: Instant) {
        let arbiters = self.scopes.get(scope).map(|this| &this.arbiters);
        if arbiters.is_some_and(|arbiters| arbiters.epoch == epoch && arbiters.barrier.is_some()) {
            self.settle(scope, now);
        }
    }

    /// From now on this node decides on all that it has gained.
    fn settle(&mut self, scope: &Text, now: Instant) {
        let Some(this) = self.scopes.get_mut(scope) else { return };
        this.arbiters.barrier = None;
        this.arbiters.settled = this.arbiters.present.clone();
        for deferred in std::mem::take(&mut this.arbiters.deferred) {
            match deferred {
                Deferred::Claim(asker, asked) => self.coordinate(asker, asked, now),
                Deferred::Vote { from, number, request } => self.vote(from, number, request, now),
            }
        }
    }

    /// Whoever has gone asks nothing any more.
    pub(super) fn forget_questions_of(&mut self, peer: &NodeId, now: Instant) {
        let is_of = |asker: &Asker| matches!(asker, Asker::Peer { peer: asker, .. } if asker == peer);
        for round in self.rounds.values_mut() {
            round.waiting.retain(|(asker, _)| !is_of(asker));
        }
        let over: Vec<RoundId> =
            self.rounds.iter().filter(|(_, round)| is_of(&round.asker)).map(|(id, _)| *id).collect();
        over.into_iter().for_each(|id| self.drop_round(id, now));
        for this in self.scopes.values_mut() {
            this.arbiters.deferred.retain(|deferred| match deferred {
                Deferred::Claim(Asker::Peer { peer: asker, .. }, _) => asker != peer,
                Deferred::Claim(Asker::Own(_), _) => true,
                Deferred::Vote { from, .. } => from != peer,
            });
        }
    }

    /// What this node has voted for, and has not seen bound, where the asker decides now.
    pub(super) fn held(&mut self, from: &NodeId, scope: &Text, now: Instant) -> Answer {
        if !self.scopes.contains_key(scope) {
            return Answer::NotInScope;
        }
        // It decides, whether its entry has come or not: from now on this node knows.
        self.arbiter(scope, from.clone(), true, now);
        let Some(this) = self.scopes.get(scope) else { return Answer::NotInScope };
        let votes = this.voted.iter().filter_map(|name| Some((name, this.names.get(name)?.vote()?)));
        let of_asker = votes.filter(|(name, _)| this.arbiters.of(name).contains(from));
        let pending = of_asker.map(|(name, vote)| Pending {
            name: name.clone(),
            token: vote.token.clone(),
            serial: vote.serial,
            stamp: vote.stamp,
        });
        let mut room = ITEMS_MAX;
        let mut held = Vec::new();
        for pending in pending {
            // More than fit are not to be had: then the barrier lasts its time.
            let Some(left) = room.checked_sub(pending.size_bound()) else { return Answer::Busy };
            room = left;
            held.push(pending);
        }
        Answer::Held { pending: held }
    }

    /// Votes for a claim, if nothing speaks against it; else says who does.
    #[expect(clippy::too_many_arguments, reason = "they are the fields of one question")]
    pub(super) fn cast(
        &mut self,
        scope: &Text,
        name: &Text,
        token: &Token,
        serial: u64,
        stamp: u64,
        replacing: Option<&Pid>,
        known: (Option<&After>, Option<&Spent>),
        by: &NodeId,
        now: Instant,
    ) -> Result<(), Option<Pid>> {
        let Some(this) = self.scopes.get_mut(scope) else { return Err(None) };
        let (free, spent) = known;
        if let Some(free) = free {
            this.entry(name).confirm_release(free.clone());
        }
        let entry = this.entry(name);
        let is_this = |pid: &Pid| *pid.node() == token.node && pid.serial() == serial;
        let rival = entry.valid().map(|bound| bound.pid()).find(|pid| !is_this(pid) && Some(pid) != replacing);
        if let Some(rival) = rival {
            self.tidy(scope, name);
            return Err(Some(rival));
        }
        if let Some(vote) = entry.vote().filter(|vote| vote.token != *token)
            && !spent.is_some_and(|spent| vote.is_spent(spent))
        {
            return Err(Some(Pid::new(vote.token.node.clone(), vote.serial)));
        }
        let stamp = stamp.max(entry.vote().filter(|vote| vote.token == *token).map_or(0, |vote| vote.stamp));
        let due = now + self.params.grant_kept;
        let vote = Vote { token: token.clone(), serial, stamp, by: by.clone(), due };
        let timer = vote.timer(scope, name);
        match entry.set_vote(Some(vote)) {
            Some(old) => drop(self.timers.remove(&old.timer(scope, name))),
            None => self.votes += 1,
        }
        this.voted.insert(name.clone());
        self.timers.insert(timer);
        Ok(())
    }

    pub(super) fn forget_vote(&mut self, scope: &Text, name: &Text, token: &Token) {
        let Some(this) = self.scopes.get_mut(scope) else { return };
        let Some(entry) = this.names.get_mut(name) else { return };
        if entry.vote().is_some_and(|vote| vote.token == *token)
            && let Some(vote) = entry.set_vote(None)
        {
            this.voted.remove(name);
            self.votes -= 1;
            self.timers.remove(&vote.timer(scope, name));
        }
        self.tidy(scope, name);
    }

    /// The claimant gives its claim up: nothing is granted to it any more. Or a coordinator does without this vote; the one
    /// before it has no say any more.
    pub(super) fn withdrawn(&mut self, from: &NodeId, scope: &Text, name: &Text, token: &Token, now: Instant) {
        let vote = self.scopes.get(scope).and_then(|this| this.names.get(name)?.vote());
        let is_its = vote.is_some_and(|vote| vote.by == *from);
        if *from == token.node {
            let is_it = |asked: &Asked| asked.token == *token && asked.scope == *scope && asked.name == *name;
            if let Some(this) = self.scopes.get_mut(scope) {
                let is_it = |deferred: &Deferred| matches!(deferred, Deferred::Claim(_, asked) if is_it(asked));
                this.arbiters.deferred.retain(|deferred| !is_it(deferred));
            }
            for round in self.rounds.values_mut() {
                round.waiting.retain(|(_, asked)| !is_it(asked));
            }
            let over: Vec<RoundId> =
                self.rounds.iter().filter(|(_, round)| is_it(&round.asked)).map(|(id, _)| *id).collect();
            over.into_iter().for_each(|id| self.drop_round(id, now));
        } else if !is_its {
            return;
        }
        self.forget_vote(scope, name, token);
    }

    /// The claimant is gone.
    pub(super) fn forget_votes_for(&mut self, scope: &Text, node: &NodeId) {
        let Some(this) = self.scopes.get(scope) else { return };
        let votes =
            this.voted.iter().filter_map(|name| Some((name.clone(), this.names.get(name)?.vote()?.token.clone())));
        let of_node: Vec<_> = votes.filter(|(_, token)| token.node == *node).collect();
        of_node.into_iter().for_each(|(name, token)| self.forget_vote(scope, &name, &token));
    }

    fn has_room(&self) -> bool {
        let deferred: usize = self.scopes.values().map(|this| this.arbiters.deferred.len()).sum();
        let rounds: usize = self.rounds.values().map(|round| 1 + round.waiting.len()).sum();
        rounds + deferred + self.votes < self.params.claims_max
    }

    pub(super) fn vote(&mut self, from: NodeId, number: u64, request: Request, now: Instant) {
        let Request::Vote { scope, name, token, serial, stamp, replacing, free, spent } = &request else { return };
        let Some(this) = self.scopes.get(scope) else { return self.answer(from, number, Answer::NotInScope) };
        let may_decide = self.is_ready && !self.is_leaving && this.arbiters.may_decide(&self.id, name);
        if !may_decide || !this.arbiters.present.contains(&from) {
            return self.answer(from, number, Answer::NotArbiter);
        }
        if !self.has_room() {
            return self.answer(from, number, Answer::Busy);
        }
        if !this.arbiters.holds(&self.id, name) {
            let scope = scope.clone();
            return self.defer(&scope, Deferred::Vote { from, number, request });
        }
        let known = (free.as_ref(), spent.as_ref());
        let vote = self.cast(scope, name, token, *serial, *stamp, replacing.as_ref(), known, &from, now);
        let answer = match vote {
            Ok(()) => Answer::Yes,
            Err(Some(holder)) => Answer::No { holder },
            Err(None) => Answer::NotInScope,
        };
        self.answer(from, number, answer);
    }

    fn defer(&mut self, scope: &Text, deferred: Deferred) {
        if let Some(this) = self.scopes.get_mut(scope) {
            this.arbiters.deferred.push_back(deferred);
        }
    }

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
                self.refresh(&scope, &name, super::Reason::Unregistered);
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

    pub(super) fn tidy(&mut self, scope: &Text, name: &Text) {
        if let Some(this) = self.scopes.get_mut(scope) {
            this.tidy(name);
        }
    }
}

/// A round takes so much of a claimant's patience with its coordinator at most, so that the answer comes in time.
const ROUND_SHARE: f64 = 0.75;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::NodeName;

    fn nodes(count: u64) -> BTreeSet<NodeId> {
        (0..count).map(|n| NodeId::new(NodeName::parse(&format!("n{n}@h:1")).unwrap(), 1)).collect()
    }

    /// Each node decides on its share of the names, and one more node takes only its own share from the others.
    #[test]
    fn names_are_spread_and_stay_where_they_are() {
        let (ten, eleven) = (nodes(10), nodes(11));
        let newcomer = eleven.difference(&ten).next().unwrap();
        let mut share: BTreeMap<NodeId, u32> = BTreeMap::new();
        for n in 0..10_000 {
            let name: Text = format!("name/{n}").into();
            let (before, after) = (top(&ten, &name), top(&eleven, &name));
            before.iter().for_each(|node| *share.entry(node.clone()).or_default() += 1);
            let stayed: Vec<_> = after.iter().filter(|node| *node != newcomer).collect();
            assert!(before.iter().zip(stayed).all(|(one, other)| one == other), "{name}");
        }
        assert!(share.values().all(|share| (2_800..3_200).contains(share)), "{share:?}");
    }

    #[test]
    fn with_few_nodes_all_decide() {
        assert_eq!(top(&nodes(0), &"x".into()), []);
        assert_eq!(top(&nodes(2), &"x".into()).len(), 2);
        assert_eq!(top(&nodes(4), &"x".into()).len(), 3);
    }
}
