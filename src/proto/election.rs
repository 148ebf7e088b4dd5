//! One election as one node takes part in it: who leads, and until when.
//!
//! Terms, votes and heartbeats are Raft's (Ongaro and Ousterhout, 2014), without its log. A voter votes once in a term, and
//! writes that down before it says so. A candidate asks first whether it would be elected, so that one who is cut off does not
//! disturb the others when it comes back. A leader leads for as long as its lease lasts, which the answers of a majority of
//! voters to its heartbeats extend; until later than that, none of them votes for another.
//!
//! A lease is counted from the time when the heartbeat was sent, and the promise of a voter from the time when it arrived,
//! each by a clock of its own. So the clocks need not show the same time, only run at nearly the same rate: within
//! `drift` of the true one, each.

mod candidate;
mod fence;
mod leader;
mod observer;
mod recovery;
mod vote;
mod voter;
mod voters;

use std::collections::VecDeque;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

pub use self::fence::{Fence, Fenced};
pub use self::leader::LossReason;
pub(crate) use self::vote::{Choice, Vote};
pub(crate) use self::voters::{Set, Voters};

use self::candidate::{Candidacy, Canvass};
use self::leader::Leading;
use self::recovery::Recovery;
use self::vote::Store;
use self::voter::Promise;
use crate::error::VotersError;
use crate::id::{NodeId, NodeName};
use crate::wire::services::Text;
use crate::wire::services::election::{Ballot, Election as Frame, Token, Word};

/// Time since some moment in the past, by a clock of this machine that goes on while the machine sleeps.
pub(crate) type Time = Duration;

/// How long things take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Params {
    /// Between two heartbeats of a leader.
    pub(crate) heartbeat: Duration,
    /// A voter that hears no leader for so long, and up to `spread` longer by chance, stands.
    pub(crate) timeout: Duration,
    pub(crate) spread: Duration,
    /// ... and by so much longer, where others are to be preferred.
    pub(crate) handicap: Duration,
    /// How long a leader relies on a heartbeat that a majority has answered.
    pub(crate) held: Duration,
    /// How long a voter keeps what it promised by its answer. Always longer.
    pub(crate) promised: Duration,
    /// A rule that is broken on purpose.
    #[cfg(test)]
    pub(crate) flaw: Option<Flaw>,
    /// A candidate is sure that the others would vote for it.
    #[cfg(test)]
    pub(crate) skips_canvass: bool,
}

/// What would go wrong without a rule: the model checker has to find it.
#[cfg(test)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flaw {
    /// A voter votes for whoever asks.
    DoubleVote,
    /// A vote is erased by a heartbeat or a step down in its own term.
    ForgottenVote,
    /// A lease counts from the time when the answers came.
    LeaseFromReceipt,
    /// A restarted voter votes at once.
    ForgottenPromise,
    /// A majority of those who answer is enough.
    LiveQuorum,
    /// A voter without a disk waits after a restart, and asks nobody.
    WaitOnly,
    /// One set of voters follows another as if they had no versions, and votes of either count.
    NoVersion,
    /// Words leave before the vote is written.
    EarlyWord,
    /// A vote of a life that is over counts.
    NoLives,
    /// A leader has another stand, and goes on.
    ClaimsOn,
}

impl Params {
    /// For that lease, on clocks that are wrong by at most `drift_ppm` microseconds in a second.
    pub(crate) fn new(heartbeat: Duration, lease: Duration, drift_ppm: u32, handicap: Duration) -> Self {
        let drift = lease * drift_ppm / 1_000_000;
        Self {
            heartbeat,
            timeout: lease,
            spread: lease,
            handicap,
            held: lease - drift,
            promised: lease + drift,
            #[cfg(test)]
            flaw: None,
            #[cfg(test)]
            skips_canvass: false,
        }
    }
}

#[derive(Clone, Debug)]
pub(crate) enum Input {
    Frame {
        from: NodeId,
        frame: Frame,
    },
    /// The answer to [`Output::Persist`]: whether the vote is on disk now, for certain.
    Persisted {
        is_written: bool,
    },
    /// This node is to be leader.
    Stand,
    /// It is not to be, and is not if it was.
    Resign,
    /// Another voter is to lead in its place, at once.
    Transfer {
        to: NodeName,
    },
    /// Membership holds this node for dead.
    Gone {
        name: NodeName,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Output {
    /// Write this down, in place of what was written before. [`Input::Persisted`] is to follow.
    Persist(Box<Vote>),
    /// To whichever life of that node there is a session with.
    Send { to: NodeName, frame: Frame },
    /// This node leads, until [`Election::lease`] ends.
    Led { token: Token },
    /// It leads no more.
    Lost { token: Token, why: LossReason },
    /// What this node knows of who leads has changed.
    Observed { token: Token, leader: Option<NodeName> },
}

/// What an election has done here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counters {
    /// Times that this node has stood.
    pub(crate) campaigns: u64,
    pub(crate) votes_given: u64,
    /// Times that it was elected.
    pub(crate) elected: u64,
    /// Frames of nodes that count with other voters.
    pub(crate) other_ballot: u64,
    /// Of nodes that are no voters.
    pub(crate) strangers: u64,
    /// With a term that nobody can have reached.
    pub(crate) absurd: u64,
    /// To or from lives that are over.
    pub(crate) stale: u64,
    pub(crate) malformed: u64,
    /// Requests for a vote that a promise stood against.
    pub(crate) promised_away: u64,
    pub(crate) write_failures: u64,
}

/// What does not change.
#[derive(Clone, Debug)]
struct Fixed {
    me: NodeId,
    name: Text,
    params: Params,
    voters: Voters,
    ballot: Ballot,
    /// Among the voters, if it is one.
    rank: Option<usize>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Role {
    Follower,
    Canvassing(Canvass),
    Candidate(Candidacy),
    Leader(Leading),
}

/// One node's part in one election.
#[derive(Clone, Debug)]
pub(crate) struct Election {
    fixed: Arc<Fixed>,
    vote: Vote,
    store: Store,
    role: Role,
    /// A leader of a later version of the voters exists: this node does not vote again.
    is_retired: bool,
    /// Whether this node is to be leader.
    is_standing: bool,
    promise: Option<Promise>,
    /// Until when a restarted voter keeps promises that it may have forgotten.
    quiet_until: Time,
    /// When this voter stands, or this observer asks.
    due: Option<Time>,
    /// The incarnations of the voters, as far as known, where votes are not on disk.
    lives: Vec<u64>,
    /// Those who began together with this life, if all did.
    begun_with: Vec<u64>,
    recovery: Option<Recovery>,
    /// Of the last question to the others.
    round: u64,
    /// The voter that was asked last who leads.
    asked: usize,
    observed: Option<(Token, Option<NodeName>)>,
    rng: fastrand::Rng,
    outputs: VecDeque<Output>,
    counters: Counters,
}

impl Election {
    /// `stored` is what [`Output::Persist`] last gave to write, and `None` for a voter that has never voted.
    ///
    /// # Errors
    /// [`VotersError`] when these voters may not follow those that are stored.
    pub(crate) fn new(
        name: Text,
        me: NodeId,
        voters: Voters,
        params: Params,
        stored: Option<Vote>,
        seed: u64,
        now: Time,
    ) -> Result<Self, VotersError> {
        let rank = voters.rank(me.name());
        let is_diskless = voters.is_diskless();
        let mut vote = Vote { set: voters.set().clone(), term: 0, choice: Choice::Nobody, led: None, seen: 0 };
        let mut restarted = is_diskless;
        if let Some(stored) = stored.clone().filter(|_| rank.is_some() && !is_diskless) {
            restarted = true;
            let version = voters.set().version;
            if version < stored.seen {
                return Err(VotersError::Older { version, stored: stored.seen });
            }
            let known = [Some(&stored.set), stored.led.as_ref()];
            #[cfg(test)]
            let known = if params.flaw == Some(Flaw::NoVersion) { [None, None] } else { known };
            for set in known.into_iter().flatten() {
                voters.may_follow(set)?;
            }
            vote = Vote { set: voters.set().clone(), ..stored };
        }
        #[cfg(test)]
        if params.flaw == Some(Flaw::ForgottenPromise) {
            restarted = false;
        }
        let mut lives = vec![0; if is_diskless { voters.names().len() } else { 0 }];
        if let Some(life) = rank.and_then(|rank| lives.get_mut(rank)) {
            *life = me.incarnation();
        }
        let recovery = (is_diskless && rank.is_some()).then(|| Recovery::new(now));
        #[cfg(test)]
        let recovery = recovery.filter(|_| params.flaw != Some(Flaw::WaitOnly));
        let quiet_until = if restarted { now + params.promised } else { Time::ZERO };
        let fixed = Fixed { me, name, ballot: voters.ballot(), rank, params, voters };
        let mut election = Self {
            fixed: Arc::new(fixed),
            vote,
            store: Store::new(is_diskless || rank.is_none(), stored),
            role: Role::Follower,
            is_retired: false,
            is_standing: false,
            promise: None,
            quiet_until,
            due: rank.is_none().then_some(now),
            lives,
            begun_with: Vec::new(),
            recovery,
            round: 0,
            asked: 0,
            observed: None,
            rng: fastrand::Rng::with_seed(seed),
            outputs: VecDeque::new(),
            counters: Counters::default(),
        };
        election.asked = election.rng.usize(..election.fixed.voters.names().len());
        election.store_vote(now);
        Ok(election)
    }

    /// This node goes on as another incarnation, and has forgotten nothing.
    pub(crate) fn renewed(&mut self, me: NodeId) {
        let fixed = Arc::make_mut(&mut self.fixed);
        if let Some(life) = fixed.rank.and_then(|rank| self.lives.get_mut(rank)) {
            *life = me.incarnation();
        }
        fixed.me = me;
    }

    pub(crate) fn counters(&self) -> &Counters {
        &self.counters
    }

    pub(crate) fn is_voter(&self) -> bool {
        self.fixed.rank.is_some()
    }

    pub(crate) fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    pub(crate) fn poll_timeout(&self) -> Option<Time> {
        if let Some(recovery) = &self.recovery {
            return Some(recovery.ask_at);
        }
        let own = match &self.role {
            Role::Leader(leading) => Some(leading.timeout()),
            Role::Canvassing(Canvass { again, .. }) | Role::Candidate(Candidacy { again, .. }) => Some(*again),
            Role::Follower => None,
        };
        own.into_iter().chain(self.due).min()
    }

    pub(crate) fn handle_timeout(&mut self, now: Time) {
        if self.recovery.as_ref().is_some_and(|recovery| recovery.ask_at <= now) {
            self.ask_for_recovery(now);
        } else if matches!(self.role, Role::Leader(_)) {
            self.lead_on(now);
        } else if self.due.is_some_and(|due| due <= now) {
            if self.is_voter() { self.canvass(now) } else { self.ask(now) }
        } else {
            self.ask_again(now);
        }
        self.store_vote(now);
    }

    pub(crate) fn handle(&mut self, input: Input, now: Time) {
        if let Role::Leader(leading) = &self.role
            && leading.is_over(now)
        {
            self.lead_on(now);
        }
        match input {
            Input::Frame { from, frame } => self.frame(from, frame, now),
            Input::Persisted { is_written } => self.persisted(is_written, now),
            Input::Stand => self.stand(now),
            Input::Resign => self.resign(now),
            Input::Transfer { to } => self.transfer(&to, now),
            Input::Gone { name } => self.leader_gone(&name, now),
        }
        self.store_vote(now);
    }

    fn frame(&mut self, from: NodeId, frame: Frame, now: Time) {
        let Frame { ballot, term, word, .. } = frame;
        if let Word::Leads { token, leader } = word {
            self.told(&from, token, leader);
            self.look_for_later_voters(&from, ballot, now);
            return;
        }
        if matches!(word, Word::Ask) {
            return self.tell(&from);
        }
        #[cfg(test)]
        let ballot = if self.has_flaw(Flaw::NoVersion) { self.fixed.ballot } else { ballot };
        if ballot != self.fixed.ballot {
            return self.other_ballot(&from, ballot, term, &word, now);
        }
        let (Some(_), Some(rank)) = (self.fixed.rank, self.fixed.voters.rank(from.name())) else {
            self.counters.strangers += 1;
            return;
        };
        if Some(rank) == self.fixed.rank || self.is_retired {
            return;
        }
        let life = from.incarnation();
        let is_over = self.lives.get(rank).is_some_and(|known| life < *known);
        let asked_by = match &word {
            Word::Canvassed { life, .. }
            | Word::Voted { life, .. }
            | Word::Beaten { life, .. }
            | Word::Recovered { life, .. }
            | Word::Blank { life } => Some(*life),
            _ => None,
        };
        if is_over || asked_by.is_some_and(|life| life != self.fixed.me.incarnation()) {
            self.counters.stale += 1;
            return;
        }
        match word {
            Word::Recover => self.recover_other(rank, life),
            Word::Recovered { .. } => self.recovered(rank, life, term, word, now),
            Word::Blank { .. } => self.blank(rank, life, now),
            // Whoever has forgotten does nothing else.
            _ if self.recovery.is_some() => {}
            word => self.word(rank, life, term, word, now),
        }
    }

    fn word(&mut self, rank: usize, life: u64, term: u64, word: Word, now: Time) {
        if self.is_absurd(term, self.vote.term) {
            return;
        }
        match word {
            // What is only asked for changes nothing, and a vote only if it may be given.
            Word::Canvass { round } => return self.canvassed(rank, life, term, round, now),
            Word::Stand { release } => return self.stood(rank, life, term, release.as_ref(), now),
            _ if term > self.vote.term => {
                self.adopt(term, now);
                if matches!(word, Word::Canvassed { .. }) {
                    // It was asked in too old a term.
                    self.wait_for(self.fixed.params.heartbeat, now);
                }
            }
            _ => {}
        }
        let is_current = term == self.vote.term;
        match word {
            Word::Beat { number } => self.beat(rank, life, term, number, now),
            Word::Canvassed { round, is_for, .. } => self.canvass_answered(rank, round, is_for, now),
            Word::Voted { is_for: true, lives, .. } if is_current => self.voted(rank, life, lives, now),
            Word::Beaten { number, .. } if is_current => self.beaten(rank, number, now),
            Word::TakeOver if is_current => self.take_over(rank, term, now),
            Word::Resigned if is_current => self.resigned(rank, term, now),
            _ => {}
        }
    }

    /// Somebody counts with other voters.
    fn other_ballot(&mut self, from: &NodeId, ballot: Ballot, term: u64, word: &Word, now: Time) {
        self.counters.other_ballot += 1;
        let is_of = |ballot: Ballot| (ballot.generation, ballot.version);
        if is_of(ballot) < is_of(self.fixed.ballot) {
            return self.tell(from);
        }
        if is_of(ballot) > is_of(self.fixed.ballot) && matches!(word, Word::Beat { .. }) {
            let token = Token::new(ballot.generation, ballot.version, term);
            self.told(from, token, Some(from.name().clone()));
            self.look_for_later_voters(from, ballot, now);
        }
    }

    /// Once there is a leader of later voters, by the word of a voter, this one votes no more.
    fn look_for_later_voters(&mut self, from: &NodeId, ballot: Ballot, now: Time) {
        let own = (self.fixed.ballot.generation, self.fixed.ballot.version);
        let is_later = self.observed.as_ref().is_some_and(|(token, _)| (token.generation(), token.version()) > own);
        let is_said = (ballot.generation, ballot.version) > own && self.fixed.voters.rank(from.name()).is_some();
        if is_later && is_said && self.is_voter() && !self.is_retired {
            self.step_down(LossReason::Superseded, now);
            self.is_retired = true;
            self.due = None;
            self.vote.seen = self.vote.seen.max(ballot.version);
        }
    }

    /// Goes on in a later term.
    fn adopt(&mut self, term: u64, now: Time) {
        self.step_down(LossReason::Deposed, now);
        self.vote.term = term;
        self.vote.choice = Choice::Nobody;
    }

    /// Whatever this voter was doing, it follows now.
    fn step_down(&mut self, why: LossReason, now: Time) {
        let before = std::mem::replace(&mut self.role, Role::Follower);
        if let Role::Leader(leading) = before {
            self.lost(&leading, why);
        }
        #[cfg(test)]
        if self.has_flaw(Flaw::ForgottenVote) {
            self.vote.choice = Choice::Nobody;
        }
        self.wait(now);
    }

    /// Under these voters there has been a leader.
    fn has_led(&mut self) {
        let set = self.fixed.voters.set();
        if self.vote.led.as_ref().is_none_or(|led| led.version < set.version) {
            self.vote.led = Some(set.clone());
        }
    }

    fn others(&self) -> impl Iterator<Item = usize> + use<> {
        let own = self.fixed.rank;
        (0..self.fixed.voters.names().len()).filter(move |rank| Some(*rank) != own)
    }

    fn framed(&self, word: Word) -> Frame {
        let Fixed { name, ballot, .. } = &*self.fixed;
        Frame { name: name.clone(), ballot: *ballot, term: self.vote.term, word }
    }

    fn send_to(&mut self, to: NodeName, word: Word) {
        let frame = self.framed(word);
        self.outputs.push_back(Output::Send { to, frame });
    }

    /// Up to so much, by chance.
    fn by_chance(&mut self, most: Duration) -> Duration {
        most.mul_f64(self.rng.f64())
    }

    #[cfg(test)]
    fn has_flaw(&self, flaw: Flaw) -> bool {
        self.fixed.params.flaw == Some(flaw)
    }
}

/// Equal are those that will do the same, whatever chance has in store and whatever they have counted.
impl PartialEq for Election {
    fn eq(&self, other: &Self) -> bool {
        self.vote == other.vote
            && self.store == other.store
            && self.role == other.role
            && (self.is_retired, self.is_standing) == (other.is_retired, other.is_standing)
            && self.promise == other.promise
            && self.quiet_until == other.quiet_until
            && self.due == other.due
            && (&self.lives, &self.begun_with) == (&other.lives, &other.begun_with)
            && self.recovery == other.recovery
            && self.round == other.round
            && self.observed == other.observed
            && self.outputs == other.outputs
    }
}

impl Eq for Election {}

impl Hash for Election {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.vote.hash(state);
        self.store.hash(state);
        self.role.hash(state);
        (self.is_retired, self.is_standing).hash(state);
        self.promise.hash(state);
        self.quiet_until.hash(state);
        self.due.hash(state);
        (&self.lives, &self.begun_with).hash(state);
        self.recovery.hash(state);
        self.round.hash(state);
        self.observed.hash(state);
    }
}

#[cfg(test)]
mod tests;
