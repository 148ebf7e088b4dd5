//! Names: who owns one, and who may have it.
//!
//! Each node writes the bindings of its own mailboxes into its own log; what everybody sees of a name follows from all
//! bindings of it by one pure rule. So that two are not bound at one time, a claim asks three arbiters first, which rendezvous
//! hashing picks from those who are ready; a majority of them grants it.

mod arbiters;
mod claims;
mod conflicts;
mod owners;
mod rounds;
mod view;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;

use self::arbiters::Arbiters;
use self::claims::Claim;
pub(crate) use self::claims::Wish;
use self::rounds::{Round, RoundId};
use self::view::Entry;

use crate::id::{NodeId, NodeName, Pid};
use crate::key::ByName;
use crate::wire::services::Text;
use crate::wire::services::registry::{Answer, Registry as Frame, Request, Token};
use crate::wire::services::replication::{Ended, State};

/// Which of two bindings of one name stands. Every node has to have the same rule.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Rule {
    /// The older claim; of two that are equally old, that of the lower node.
    #[default]
    Oldest,
    Newest,
    /// That of the node which is earlier in the list, and of two that are not in it the older.
    Priority(Vec<NodeName>),
    /// The application says so, at the node of the older claim. Until then, and when it does not, the older.
    Asked,
}

/// How claims are made.
#[derive(Clone, Debug)]
pub(crate) struct Params {
    pub(crate) rule: Rule,
    /// Where another rule holds.
    pub(crate) rules: ByName<Rule>,
    /// A coordinator, an arbiter or an owner that does not answer for so long is done without.
    pub(crate) patience: Duration,
    /// How long a new arbiter waits at most for what the others have granted before.
    pub(crate) barrier: Duration,
    /// How long a claim that was voted for, and is not bound, keeps its name from others.
    pub(crate) grant_kept: Duration,
    /// Names of this node, in all scopes.
    pub(crate) names_max: usize,
    /// Claims of others that wait for this arbiter or have its vote.
    pub(crate) claims_max: usize,
    /// Never an arbiter.
    pub(crate) is_client: bool,
}

/// What a name's owner is, to everybody on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Named {
    pub(crate) pid: Pid,
    /// Changes with the metadata.
    pub(crate) version: u64,
    pub(crate) stamp: u64,
    pub(crate) tag: Text,
    pub(crate) metadata: Bytes,
}

/// Why a name has another owner than before, another metadata, or no owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum NameReason {
    /// A mailbox registered it.
    Registered,
    /// A mailbox took the place of the one before, by [`Registry::replace`](crate::Registry::replace).
    Replaced,
    /// The metadata was updated.
    Updated,
    /// It was unregistered.
    Unregistered,
    /// The mailbox that had it closed.
    MailboxClosed,
    /// The node of the mailbox leaves or has left the cluster.
    NodeLeft,
    /// The node of the mailbox died, as far as membership knows.
    NodeDown,
    /// Of two claims, made on the two sides of a partition, the other one stands.
    Conflict,
    /// It was so before, and this node learned of it only now: it came, or came back, to the others.
    Synced,
}

/// Why a name was not registered, replaced, unregistered or updated. Nothing has happened, but for `Timeout`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    Taken {
        owner: Pid,
        is_confirmed: bool,
    },
    MailboxClosed,
    /// That mailbox is not the owner.
    NotOwner {
        owner: Pid,
    },
    /// Nobody is.
    NotRegistered,
    /// There is no room for more names.
    LimitReached {
        max: usize,
    },
    NotReady,
    /// Nobody decided in time: it may have been, or may yet be, done.
    Timeout,
    /// The metadata is another by now: try again with this.
    Stale {
        version: u64,
        metadata: Bytes,
    },
    /// This node takes no part in that scope.
    NotInScope,
    Shutdown,
}

/// A request of this node's handles, by a number that is never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct RequestId(pub(crate) u64);

/// What a resolver is asked: which of two claims stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Dispute {
    pub(crate) scope: Text,
    pub(crate) name: Text,
    pub(crate) older: Named,
    pub(crate) newer: Named,
}

/// What becomes of two claims of one name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Verdict {
    /// The one that was made first stands.
    Older,
    /// The one that was made later stands.
    Newer,
    /// Both lose the name.
    Neither,
}

/// A dispute that is with the resolver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct DisputeId(pub(crate) u64);

/// What the registry has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counters {
    pub(crate) claims: u64,
    pub(crate) granted: u64,
    pub(crate) conflicts: u64,
    pub(crate) lost: u64,
    pub(crate) malformed: u64,
}

#[derive(Clone, Debug)]
pub(crate) enum Input {
    /// What there is to be seen of an owner's name: a state that was written, or `None` when it is hidden or void.
    Changed {
        scope: Text,
        name: Text,
        owner: NodeId,
        version: u64,
        state: Option<State>,
        why: Why,
    },
    /// What was to be written into the own log is.
    Written {
        scope: Text,
        name: Text,
        version: u64,
        state: State,
    },
    /// A node that lives decides on claims in that scope, or no longer does.
    Arbiter {
        scope: Text,
        node: NodeId,
        is: bool,
    },
    /// A session begins; it ends.
    Up {
        peer: NodeId,
    },
    Down {
        peer: NodeId,
    },
    DialFailed {
        peer: NodeName,
    },
    /// Membership holds this life for live, or for dead.
    Live {
        node: NodeId,
    },
    Gone {
        node: NodeId,
    },
    Frame {
        from: NodeId,
        frame: Frame,
    },
    /// It asks about a scope in which it takes no part.
    Stranger {
        from: NodeId,
        number: u64,
    },
    /// From now on this node may claim names, and decides on claims.
    Ready {
        is_founder: bool,
    },
    Register {
        id: RequestId,
        wish: Wish,
    },
    Unregister {
        id: RequestId,
        scope: Text,
        name: Text,
        pid: Pid,
        deadline: Instant,
    },
    Update {
        id: RequestId,
        scope: Text,
        name: Text,
        pid: Pid,
        version: u64,
        metadata: Bytes,
        deadline: Instant,
    },
    GiveUp {
        id: RequestId,
    },
    /// A mailbox of this node is gone.
    Closed {
        serial: u64,
    },
    Decided {
        dispute: DisputeId,
        verdict: Verdict,
    },
    /// The node leaves: it gives up its names and claims no more.
    Withdraw,
    Renewed {
        id: NodeId,
    },
}

/// Why a state is to be seen that was not, or the other way round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    Written,
    Synced,
    Left,
    Died,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Output {
    /// To a peer with a session.
    Send {
        to: NodeId,
        frame: Frame,
    },
    /// A session with this node is needed.
    Dial {
        peer: NodeName,
    },
    /// Write this into the own log. [`Input::Written`] is to follow, in the same order.
    Write {
        scope: Text,
        name: Text,
        state: State,
    },
    /// The mailbox has a name now: say [`Input::Closed`] when it is gone.
    Track {
        serial: u64,
    },
    Done {
        id: RequestId,
        outcome: Result<Granted, Refusal>,
    },
    Named {
        scope: Text,
        name: Text,
        named: Option<Named>,
        reason: NameReason,
    },
    Lost {
        scope: Text,
        name: Text,
        serial: u64,
        winner: Pid,
    },
    /// A mailbox of this node has the name no more, for another reason than a claim that won.
    Over {
        scope: Text,
        name: Text,
        serial: u64,
    },
    Decide {
        dispute: DisputeId,
        over: Dispute,
    },
    /// The peer broke a rule.
    Broken {
        peer: NodeId,
    },
}

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Granted {
    Bound { version: u64, stamp: u64 },
    Unregistered,
    Updated { version: u64 },
}

/// The names of one node's scopes, and its part in giving them out.
#[derive(Debug)]
pub(crate) struct Registry {
    id: NodeId,
    params: Params,
    rng: fastrand::Rng,
    scopes: BTreeMap<Text, Scope>,
    /// Lamport's (1978): above every stamp that was heard of.
    clock: u64,
    is_ready: bool,
    is_leaving: bool,
    peers: BTreeSet<NodeId>,
    live: BTreeSet<NodeId>,
    /// The own names, by the mailbox's serial.
    own: BTreeMap<u64, BTreeSet<(Text, Text)>>,
    own_count: usize,
    claims: BTreeMap<RequestId, Claim>,
    claimed: u64,
    rounds: BTreeMap<RoundId, Round>,
    last_round: u64,
    /// Claims whose turn has come.
    resumed: VecDeque<(rounds::Asker, rounds::Asked)>,
    is_resuming: bool,
    /// Own names that were handed to another node a short while ago, and since which version of the log.
    handing: BTreeMap<(Text, Text), u64>,
    /// What is to be done when the writes under way are done, in their order.
    writes: VecDeque<(Text, Text, Then)>,
    /// Requests of handles that are with an owner, or for which it is being dialled.
    to_owners: BTreeMap<RequestId, owners::ToOwner>,
    /// Questions to others that are open.
    asked: BTreeMap<u64, Asked>,
    last_asked: u64,
    /// Votes of this node that count, in all scopes.
    votes: usize,
    /// Own names whose rival is asked once more a while later.
    contests: BTreeSet<(Text, Text)>,
    disputes: BTreeMap<DisputeId, conflicts::Open>,
    /// Nodes of older claims that are being dialled, and over which names.
    rivals_dialled: BTreeSet<(NodeId, Text, Text)>,
    last_dispute: u64,
    timers: BTreeSet<(Instant, Timer)>,
    outputs: VecDeque<Output>,
    counters: Counters,
}

/// The names of one scope.
#[derive(Debug, Default)]
struct Scope {
    names: HashMap<Text, Entry>,
    arbiters: Arbiters,
    /// The version of the last own name that was written.
    own_version: u64,
    /// Names of which a release is remembered, the oldest first.
    released: VecDeque<Text>,
    /// Names that this node voted on, for claims that are not bound yet.
    voted: BTreeSet<Text>,
    /// Names that are on their way from one owner to the next.
    handed: BTreeSet<Text>,
}

/// A question to another node.
#[derive(Clone, Debug)]
struct Asked {
    to: NodeId,
    purpose: Purpose,
    due: Instant,
}

/// What an answer is for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Purpose {
    Claim(RequestId),
    Vote(RoundId),
    Confirm(RoundId),
    Release(RoundId),
    /// Of a handle, to the owner.
    Owner(RequestId),
    /// Of that mailbox, which has the older claim.
    Contend {
        scope: Text,
        name: Text,
        serial: u64,
    },
    Hold {
        scope: Text,
        epoch: u64,
    },
}

/// What follows a write.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Then {
    Nothing,
    /// A claim succeeded.
    Bound {
        id: RequestId,
        stamp: u64,
        serial: u64,
    },
    /// An owner did what was asked of it.
    Owner {
        asker: owners::Asker,
        stamp: u64,
        is_update: bool,
    },
    /// The own binding was given up for a claim that is coordinated here.
    Handed {
        round: RoundId,
        stamp: u64,
    },
    /// The own claim, the older one, was given up.
    Yielded {
        peer: NodeId,
        number: u64,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    /// A question was not answered.
    Silence(u64),
    /// Nobody is there to be asked yet.
    Retry(RequestId),
    Deadline(RequestId),
    /// A vote is held no longer.
    Vote {
        scope: Text,
        name: Text,
        token: Token,
    },
    Barrier {
        scope: Text,
        epoch: u64,
    },
    Round(RoundId),
    Contend {
        scope: Text,
        name: Text,
    },
    /// A name was handed to another node a while ago.
    Handed {
        scope: Text,
        name: Text,
        version: u64,
    },
}

/// Releases that are remembered, in each scope: a claim that follows one carries it.
const RELEASES_KEPT: usize = 4096;

impl Registry {
    pub(crate) fn new(id: NodeId, scopes: &[Text], params: Params, seed: u64) -> Self {
        Self {
            id,
            params,
            rng: fastrand::Rng::with_seed(seed),
            scopes: scopes.iter().map(|scope| (scope.clone(), Scope::default())).collect(),
            clock: 0,
            is_ready: false,
            is_leaving: false,
            peers: BTreeSet::new(),
            live: BTreeSet::new(),
            own: BTreeMap::new(),
            own_count: 0,
            claims: BTreeMap::new(),
            claimed: 0,
            rounds: BTreeMap::new(),
            last_round: 0,
            resumed: VecDeque::new(),
            is_resuming: false,
            handing: BTreeMap::new(),
            writes: VecDeque::new(),
            to_owners: BTreeMap::new(),
            asked: BTreeMap::new(),
            last_asked: 0,
            votes: 0,
            contests: BTreeSet::new(),
            disputes: BTreeMap::new(),
            rivals_dialled: BTreeSet::new(),
            last_dispute: 0,
            timers: BTreeSet::new(),
            outputs: VecDeque::new(),
            counters: Counters::default(),
        }
    }

    pub(crate) fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.timers.first().map(|(due, _)| *due)
    }

    pub(crate) fn counters(&self) -> &Counters {
        &self.counters
    }

    pub(crate) fn handle(&mut self, input: Input, now: Instant) {
        match input {
            Input::Changed { scope, name, owner, version, state, why } => {
                self.changed(&scope, &name, owner, version, state, why, now);
            }
            Input::Written { scope, name, version, state } => {
                self.handing.remove(&(scope.clone(), name.clone()));
                if let State::Gone(Ended::Replaced { .. }) = &state {
                    self.handing.insert((scope.clone(), name.clone()), version);
                    let due = now + self.params.grant_kept;
                    self.timers.insert((due, Timer::Handed { scope: scope.clone(), name: name.clone(), version }));
                }
                self.changed(&scope, &name, self.id.clone(), version, Some(state), Why::Written, now);
                let then = self.writes.pop_front().map_or(Then::Nothing, |(_, _, then)| then);
                self.written(then, version, now);
            }
            Input::Arbiter { scope, node, is } => self.arbiter(&scope, node, is, now),
            Input::Up { peer } => self.up(peer, now),
            Input::Down { peer } => self.down(&peer, now),
            Input::DialFailed { peer } => self.dial_failed(&peer, now),
            Input::Live { node } => drop(self.live.insert(node)),
            Input::Gone { node } => self.gone(&node, now),
            Input::Frame { from, frame } => self.frame(from, frame, now),
            Input::Stranger { from, number } => self.answer(from, number, Answer::NotInScope),
            Input::Ready { is_founder } => {
                self.is_ready = true;
                if is_founder {
                    // The one place where a clock comes in: lives of a name are numbered by the time of their start, so what
                    // a cluster that begins anew claims is not taken for older than the claims of one that has lived on.
                    self.clock = self.clock.max(self.id.incarnation());
                }
            }
            Input::Register { id, wish } => {
                self.claimed += 1;
                let claim = Claim::new(self.claimed, wish);
                self.register(id, claim, now);
            }
            Input::Unregister { id, scope, name, pid, deadline } => {
                let request = Request::Release { scope, name, serial: pid.serial(), successor: None };
                self.ask_owner(id, pid.node(), request, deadline);
            }
            Input::Update { id, scope, name, pid, version, metadata, deadline } => {
                let request = Request::Update { scope, name, serial: pid.serial(), version, metadata };
                self.ask_owner(id, pid.node(), request, deadline);
            }
            Input::GiveUp { id } => self.give_up(id, now),
            Input::Closed { serial } => self.closed(serial, now),
            Input::Decided { dispute, verdict } => self.decided(dispute, verdict),
            Input::Withdraw => self.withdraw(now),
            Input::Renewed { id } => self.renewed(id, now),
        }
    }

    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        while self.timers.first().is_some_and(|(due, _)| *due <= now) {
            let Some((_, timer)) = self.timers.pop_first() else { return };
            match timer {
                Timer::Silence(number) => self.unanswered(number, now),
                Timer::Retry(id) => self.retry(id, now),
                Timer::Deadline(id) => self.refuse(id, Refusal::Timeout, now),
                Timer::Vote { scope, name, token } => self.forget_vote(&scope, &name, &token),
                Timer::Barrier { scope, epoch } => self.barrier_over(&scope, epoch, now),
                Timer::Round(round) => self.round_timeout(round, now),
                Timer::Contend { scope, name } => {
                    self.contests.remove(&(scope.clone(), name.clone()));
                    self.contest(&scope, &name, now);
                }
                Timer::Handed { scope, name, version } => self.hand_over_ended(&scope, &name, version),
            }
        }
    }

    fn up(&mut self, peer: NodeId, now: Instant) {
        self.peers.insert(peer.clone());
        self.go_on_with(&peer, now);
        self.contend_with(&peer, now);
    }

    fn down(&mut self, peer: &NodeId, now: Instant) {
        self.peers.remove(peer);
        let lost = self.asked.iter().filter(|(_, asked)| asked.to == *peer).map(|(number, _)| *number);
        let lost: Vec<u64> = lost.collect();
        lost.into_iter().for_each(|number| self.unanswered(number, now));
        self.forget_questions_of(peer, now);
    }

    fn dial_failed(&mut self, peer: &NodeName, now: Instant) {
        let waiting = self.claims.iter().filter(|(_, claim)| claim.waits_for(peer)).map(|(id, _)| *id);
        let waiting: Vec<RequestId> = waiting.collect();
        waiting.into_iter().for_each(|id| self.next_coordinator(id, now));
        self.owner_unreachable(peer);
    }

    fn gone(&mut self, node: &NodeId, now: Instant) {
        self.live.remove(node);
        self.rivals_dialled.retain(|(rival, _, _)| rival != node);
        self.owner_gone(node);
        let scopes: Vec<Text> = self.scopes.keys().cloned().collect();
        for scope in scopes {
            self.arbiter(&scope, node.clone(), false, now);
            self.forget_votes_for(&scope, node);
            self.refresh_handed(&scope, node);
        }
    }

    fn frame(&mut self, from: NodeId, frame: Frame, now: Instant) {
        match frame {
            Frame::Request { number, clock, request } => {
                self.heard_clock(clock);
                self.question(from, number, request, now);
            }
            Frame::Answer { number, clock, answer } => {
                self.heard_clock(clock);
                // Those that come too late are for nobody.
                let Some(asked) = self.asked.remove(&number) else { return };
                if asked.to != from {
                    self.asked.insert(number, asked);
                    self.counters.malformed += 1;
                    return self.outputs.push_back(Output::Broken { peer: from });
                }
                self.timers.remove(&(asked.due, Timer::Silence(number)));
                self.answered(asked, answer, clock, now);
            }
            Frame::Withdraw { scope, name, token, clock } => {
                self.heard_clock(clock);
                self.withdrawn(&from, &scope, &name, &token, now);
            }
        }
    }

    fn question(&mut self, from: NodeId, number: u64, request: Request, now: Instant) {
        let asker = owners::Asker::Peer { peer: from.clone(), number };
        let answer = match request {
            Request::Claim { scope, name, claim, serial, replacing, has_voted } => {
                let token = Token { node: from.clone(), number: claim };
                let asked = rounds::Asked { scope, name, token, serial, replacing, has_voted };
                return self.coordinate(rounds::Asker::Peer { peer: from, number }, asked, now);
            }
            Request::Vote { .. } => return self.vote(from, number, request, now),
            Request::Confirm { scope, name, serial } => self.confirm(&scope, &name, serial),
            Request::Contend { scope, name, serial, contender, stamp } => {
                match self.contended(&from, number, &scope, &name, serial, &contender, stamp) {
                    Some(answer) => answer,
                    None => return,
                }
            }
            Request::Release { .. } | Request::Update { .. } => return self.of_owner(asker, request),
            Request::Hold { scope } => self.held(&from, &scope, now),
        };
        self.answer(from, number, answer);
    }

    fn answered(&mut self, asked: Asked, answer: Answer, clock: u64, now: Instant) {
        match asked.purpose {
            Purpose::Claim(id) => self.claim_answered(id, &asked.to, answer, now),
            Purpose::Vote(round) => self.voted(round, asked.to, Some(answer), now),
            Purpose::Confirm(round) => self.confirmed(round, &asked.to, Some(answer), clock, now),
            Purpose::Release(round) => self.released(round, &asked.to, Some(answer), now),
            Purpose::Owner(id) => self.owner_answered(id, answer),
            Purpose::Contend { scope, name, serial } => {
                let rival = Pid::new(asked.to, serial);
                self.contend_answered(&scope, &name, rival, answer, now);
            }
            Purpose::Hold { scope, epoch } => self.held_answered(&scope, epoch, asked.to, Some(answer), now),
        }
    }

    /// The peer did not answer in time, or its session is over.
    fn unanswered(&mut self, number: u64, now: Instant) {
        let Some(Asked { to, purpose, due }) = self.asked.remove(&number) else { return };
        self.timers.remove(&(due, Timer::Silence(number)));
        match purpose {
            Purpose::Claim(id) => self.next_coordinator(id, now),
            Purpose::Vote(round) => self.voted(round, to, None, now),
            Purpose::Confirm(round) => self.confirmed(round, &to, None, 0, now),
            Purpose::Release(round) => self.released(round, &to, None, now),
            // It may have been done.
            Purpose::Owner(id) => self.refuse(id, Refusal::Timeout, now),
            Purpose::Contend { scope, name, .. } => self.contest(&scope, &name, now),
            Purpose::Hold { scope, epoch } => self.held_answered(&scope, epoch, to, None, now),
        }
    }

    /// The rule that holds for a name.
    fn rule_of(&self, name: &str) -> &Rule {
        self.params.rules.of(name).unwrap_or(&self.params.rule)
    }

    fn write(&mut self, scope: &Text, name: &Text, state: State, then: Then) {
        self.writes.push_back((scope.clone(), name.clone(), then));
        self.outputs.push_back(Output::Write { scope: scope.clone(), name: name.clone(), state });
    }

    /// A write of this name is under way: what is known of the own binding is about to change.
    fn is_writing(&self, scope: &Text, name: &Text) -> bool {
        self.writes.iter().any(|(of, written, _)| of == scope && written == name)
    }

    fn written(&mut self, then: Then, version: u64, now: Instant) {
        match then {
            Then::Nothing => {}
            Then::Bound { id, stamp, serial } => {
                self.outputs.push_back(Output::Track { serial });
                self.done(id, Ok(Granted::Bound { version, stamp }));
            }
            Then::Owner { asker, stamp, is_update } => {
                let answer = if is_update { Answer::Updated { version } } else { Answer::Released { version, stamp } };
                self.answer_asker(asker, answer);
            }
            Then::Handed { round, stamp } => {
                let answer = Answer::Released { version, stamp };
                self.released(round, &self.id.clone(), Some(answer), now);
            }
            Then::Yielded { peer, number } => self.answer(peer, number, Answer::Yields { version }),
        }
    }

    fn ask(&mut self, to: &NodeId, purpose: Purpose, request: Request, due: Instant) -> u64 {
        self.last_asked += 1;
        let number = self.last_asked;
        self.asked.insert(number, Asked { to: to.clone(), purpose, due });
        self.timers.insert((due, Timer::Silence(number)));
        let frame = Frame::Request { number, clock: self.clock, request };
        self.outputs.push_back(Output::Send { to: to.clone(), frame });
        number
    }

    /// The answer is for nobody any more.
    fn unask(&mut self, number: u64) {
        if let Some(asked) = self.asked.remove(&number) {
            self.timers.remove(&(asked.due, Timer::Silence(number)));
        }
    }

    fn answer(&mut self, to: NodeId, number: u64, answer: Answer) {
        if self.peers.contains(&to) {
            let frame = Frame::Answer { number, clock: self.clock, answer };
            self.outputs.push_back(Output::Send { to, frame });
        }
    }

    fn done(&mut self, id: RequestId, outcome: Result<Granted, Refusal>) {
        self.outputs.push_back(Output::Done { id, outcome });
    }

    /// Claims, questions, votes and disputes that are open.
    #[cfg(test)]
    pub(crate) fn pending(&self) -> usize {
        let asked = self.claims.len() + self.rounds.len() + self.asked.len() + self.to_owners.len();
        let deferred: usize = self.scopes.values().map(|scope| scope.arbiters.pending() + scope.handed.len()).sum();
        asked + self.handing.len() + self.votes + self.disputes.len() + self.writes.len() + deferred
    }

    fn heard_clock(&mut self, clock: u64) {
        // A clock that a peer put at its end would leave no later time: it is not believed.
        if clock < CLOCK_END {
            self.clock = self.clock.max(clock);
        } else {
            self.counters.malformed += 1;
        }
    }

    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// Mailboxes keep their names under the new identity; whatever is under way is asked anew under it.
    fn renewed(&mut self, id: NodeId, now: Instant) {
        let old = std::mem::replace(&mut self.id, id);
        for (scope, name) in std::mem::take(&mut self.own).into_values().flatten() {
            if let Some(this) = self.scopes.get_mut(&scope) {
                this.entry(&name).bindings.retain(|bound| bound.owner != old);
            }
        }
        self.own_count = 0;
        self.handing.clear();
        let scopes: Vec<Text> = self.scopes.keys().cloned().collect();
        for scope in scopes {
            self.arbiter(&scope, old.clone(), false, now);
            // What was handed over under the old identity went with it.
            self.refresh_handed(&scope, &old);
            if let Some(this) = self.scopes.get_mut(&scope) {
                this.own_version = 0;
            }
        }
        let claims: Vec<RequestId> = self.claims.keys().copied().collect();
        claims.into_iter().for_each(|id| self.retry(id, now));
    }
}

/// Beyond any time that counting reaches.
const CLOCK_END: u64 = 1 << 61;

#[cfg(test)]
mod tests;
