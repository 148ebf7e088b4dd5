//! Who decides on a name: three arbiters, which rendezvous hashing picks, and their votes.
//!
//! An arbiter that has voted keeps the name from others until the binding is to be seen, the claim is withdrawn, or a while
//! has passed. Two majorities of three have an arbiter in common, so two claims are granted at one time only when views of the
//! members differ. After a member is gone, a new arbiter decides on nothing that it did not decide on before, until all others
//! have told it what they have voted for, or a while has passed.

use std::collections::{BTreeSet, VecDeque};
use std::time::Instant;

use super::rounds::{Asked, Asker, RoundId};
use super::{Purpose, Registry, Timer};
use crate::id::{NodeId, Pid};
use crate::wire::services::registry::{Answer, Pending, Request, Spent, Token};
use crate::wire::services::replication::After;
use crate::wire::services::{ITEMS_MAX, Text};

/// Arbiters of each name, when there are so many.
const ARBITERS: usize = 3;

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
pub(super) enum Deferred {
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
    pub(super) fn is_spent(&self, spent: &Spent) -> bool {
        let Spent { mailbox, time } = spent;
        self.token.node == *mailbox.node() && self.serial == mailbox.serial() && self.stamp <= *time
    }

    pub(super) fn timer(&self, scope: &Text, name: &Text) -> (Instant, Timer) {
        (self.due, Timer::Vote { scope: scope.clone(), name: name.clone(), token: self.token.clone() })
    }
}

impl Arbiters {
    /// The arbiters of a name, the first coordinator first: rendezvous hashing (Thaler, Ravishankar 1998).
    pub(super) fn of(&self, name: &Text) -> Vec<NodeId> {
        top(&self.present, name)
    }

    pub(super) fn may_decide(&self, id: &NodeId, name: &Text) -> bool {
        self.present.contains(id) && self.of(name).contains(id)
    }

    /// Whether this node decided on that name before the last change, too.
    pub(super) fn holds(&self, id: &NodeId, name: &Text) -> bool {
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
            self.tidy_name(scope, name);
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
        self.tidy_name(scope, name);
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

    pub(super) fn has_room(&self) -> bool {
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

    pub(super) fn defer(&mut self, scope: &Text, deferred: Deferred) {
        if let Some(this) = self.scopes.get_mut(scope) {
            this.arbiters.deferred.push_back(deferred);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

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
