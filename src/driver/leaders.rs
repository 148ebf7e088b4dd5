//! Who leads, as handles see it: a place for each election that this node takes part in.
//!
//! The node task writes what its machines say. A place has one campaign or one leadership of this node at a time. One that is to
//! end is told so first, and goes on by its lease until its holder has let go: then nobody else leads before its work has ended.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;

use super::clock::Clock;
use super::elections::Ask;
use super::subscriber::Subscriber;
use super::votes::VoteDir;
use super::{Command, Shared, lock};
use crate::error::{ElectionError, VoteError};
use crate::id::NodeName;
use crate::identity::fill_random;
use crate::proto::election::{Counters, Election as Machine, LossReason, Params, Voters};
use crate::wire::services::Text;
use crate::wire::services::election::Token;

/// What a reader of an election reads.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ElectionEvent {
    /// Who leads at this moment, as far as this node knows. It comes first, and after [`Lagged`](Self::Lagged).
    Snapshot(Option<(Token, NodeName)>),
    /// A node leads by this token; or, without one, the leader of this token is known to have stopped. Tokens never go back,
    /// and some may not be heard of: a leader may have come and gone meanwhile.
    Changed {
        /// The greatest token that this node knows of.
        token: Token,
        /// Whose it is.
        leader: Option<NodeName>,
    },
    /// The reader left too many events unread, and they are gone. A snapshot follows.
    Lagged,
}

/// What one election has done on this node since it was opened there. Counts only rise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ElectionCounters {
    /// Terms that this node has begun to be elected in.
    pub campaigns: u64,
    /// Votes that it gave to others.
    pub votes_given: u64,
    /// Times that it was elected.
    pub elected: u64,
    /// Words of nodes that count with other voters, of another version, or with another lease. They are no votes.
    pub other_voters: u64,
    /// Words of nodes that are no voters.
    pub strangers: u64,
    /// Words with a term that nobody can have reached. The term does not follow them.
    pub absurd: u64,
    /// Words to or from lives that are over.
    pub stale: u64,
    /// Words that make no sense.
    pub malformed: u64,
    /// Requests for a vote while a leader could rely on this node.
    pub promised_away: u64,
    /// Times that the vote could not be written. Until it can, this node does not vote.
    pub write_failures: u64,
    /// Times that a reader left too many events unread.
    pub lagged: u64,
    /// Of the whole node: words of elections that it takes no part in.
    pub unknown: u64,
    /// Of the whole node: packets of elections that cannot be read.
    pub unreadable: u64,
}

/// The elections of one node.
#[derive(Debug)]
pub(crate) struct Leaders {
    pub(super) clock: Clock,
    /// Gone once the node has stopped, so that the directory is free while handles live on.
    votes: Mutex<Option<Arc<VoteDir>>>,
    places: Mutex<HashMap<Text, Arc<Place>>>,
    /// Whoever has it opens an election.
    opening: tokio::sync::Mutex<()>,
    is_closed: AtomicBool,
    unknown: AtomicU64,
    unreadable: AtomicU64,
}

impl Leaders {
    pub(crate) fn new(clock: Clock, votes: Option<VoteDir>) -> Self {
        Self {
            clock,
            votes: Mutex::new(votes.map(Arc::new)),
            places: Mutex::default(),
            opening: tokio::sync::Mutex::default(),
            is_closed: AtomicBool::new(false),
            unknown: AtomicU64::new(0),
            unreadable: AtomicU64::new(0),
        }
    }

    pub(super) fn votes(&self) -> Option<Arc<VoteDir>> {
        lock(&self.votes).clone()
    }

    fn place(&self, name: &str) -> Option<Arc<Place>> {
        lock(&self.places).get(name).cloned()
    }

    pub(super) fn places(&self) -> Vec<Arc<Place>> {
        lock(&self.places).values().cloned().collect()
    }

    pub(super) fn refused(&self, unknown: u64, unreadable: u64) {
        self.unknown.fetch_add(unknown, Ordering::Relaxed);
        self.unreadable.fetch_add(unreadable, Ordering::Relaxed);
    }

    pub(crate) fn counters(&self, place: &Place) -> ElectionCounters {
        let Counters {
            campaigns,
            votes_given,
            elected,
            other_ballot,
            strangers,
            absurd,
            stale,
            malformed,
            promised_away,
            write_failures,
        } = *lock(&place.counters);
        ElectionCounters {
            campaigns,
            votes_given,
            elected,
            other_voters: other_ballot,
            strangers,
            absurd,
            stale,
            malformed,
            promised_away,
            write_failures,
            lagged: lock(&place.view).lagged,
            unknown: self.unknown.load(Ordering::Relaxed),
            unreadable: self.unreadable.load(Ordering::Relaxed),
        }
    }

    /// Nobody of this node leads or is elected any more.
    pub(super) fn refuse(&self) {
        self.is_closed.store(true, Ordering::Release);
        self.places().iter().for_each(|place| place.close(LossReason::Shutdown));
    }

    /// The node is over.
    pub(super) fn close(&self) {
        self.refuse();
        for place in std::mem::take(&mut *lock(&self.places)).into_values() {
            place.over();
        }
        lock(&self.votes).take();
    }
}

/// How it stands with this node's own part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) standing: Standing,
    /// No campaign begins any more, and one that has begun is over.
    pub(crate) closed: Option<LossReason>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// It does not lead.
    Idle,
    Leads {
        campaign: u64,
        token: Token,
        ending: Option<Ending>,
    },
    /// It led.
    Lost {
        campaign: u64,
        why: LossReason,
    },
}

/// A leadership is to end, and its holder is to let go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ending {
    why: LossReason,
    to: Option<NodeName>,
}

impl State {
    /// Why that campaign does not lead, if it does not.
    pub(crate) fn loss(&self, of: u64) -> Option<LossReason> {
        match &self.standing {
            Standing::Leads { campaign, ending, .. } if *campaign == of => ending.as_ref().map(|ending| ending.why),
            Standing::Lost { campaign, why } if *campaign == of => Some(*why),
            _ => Some(self.closed.unwrap_or(LossReason::Resigned)),
        }
    }
}

/// One election, on one node.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) name: Text,
    pub(crate) voters: Voters,
    pub(crate) is_voter: bool,
    clock: Clock,
    pub(crate) state: watch::Sender<State>,
    /// When the lease ends, in nanoseconds of the clock; 0 without one.
    until: AtomicU64,
    campaigns: AtomicU64,
    /// One campaign or leadership at a time.
    pub(crate) turn: Arc<tokio::sync::Mutex<()>>,
    pub(crate) leader: watch::Sender<Option<(Token, Option<NodeName>)>>,
    view: Mutex<View>,
    events_max: usize,
    counters: Mutex<Counters>,
}

#[derive(Debug, Default)]
struct View {
    subscribers: Vec<Weak<Subscriber<ElectionEvent>>>,
    lagged: u64,
    is_over: bool,
}

impl Place {
    fn new(name: Text, voters: Voters, is_voter: bool, clock: Clock, events_max: usize) -> Arc<Self> {
        Arc::new(Self {
            name,
            voters,
            is_voter,
            clock,
            state: watch::Sender::new(State { standing: Standing::Idle, closed: None }),
            until: AtomicU64::new(0),
            campaigns: AtomicU64::new(0),
            turn: Arc::default(),
            leader: watch::Sender::new(None),
            view: Mutex::default(),
            events_max,
            counters: Mutex::default(),
        })
    }

    /// The number of a new campaign.
    pub(crate) fn next_campaign(&self) -> u64 {
        self.campaigns.fetch_add(1, Ordering::Relaxed)
    }

    /// How long the lease still lasts.
    pub(crate) fn lease_left(&self) -> Duration {
        Duration::from_nanos(self.until.load(Ordering::Acquire)).saturating_sub(self.clock.now())
    }

    /// Whether that campaign leads, by this node's clock.
    pub(crate) fn leads(&self, campaign: u64) -> bool {
        self.state.borrow().loss(campaign).is_none() && !self.lease_left().is_zero()
    }

    pub(crate) fn leader(&self) -> Option<(Token, NodeName)> {
        let (token, leader) = self.leader.borrow().clone()?;
        leader.map(|leader| (token, leader))
    }

    pub(crate) fn subscribe(&self) -> Arc<Subscriber<ElectionEvent>> {
        let mut view = lock(&self.view);
        let first = VecDeque::from([ElectionEvent::Snapshot(self.leader())]);
        let subscriber = Subscriber::new(first, view.is_over);
        view.subscribers.retain(|other| other.strong_count() > 0);
        view.subscribers.push(Arc::downgrade(&subscriber));
        subscriber
    }

    pub(super) fn observed(&self, token: Token, leader: Option<NodeName>) {
        let mut view = lock(&self.view);
        self.leader.send_replace(Some((token, leader.clone())));
        let mut lagged = 0;
        for subscriber in view.subscribers.iter().filter_map(Weak::upgrade) {
            let anew = || {
                lagged += 1;
                [ElectionEvent::Lagged, ElectionEvent::Snapshot(self.leader())].into()
            };
            subscriber.push(ElectionEvent::Changed { token, leader: leader.clone() }, self.events_max, anew);
        }
        view.lagged += lagged;
    }

    pub(super) fn count(&self, counters: &Counters) {
        *lock(&self.counters) = *counters;
    }

    pub(super) fn set_lease(&self, until: Option<Duration>) {
        self.until.store(until.map_or(0, |until| until.as_nanos() as u64), Ordering::Release);
    }

    pub(super) fn led(&self, campaign: u64, token: Token) {
        self.state.send_modify(|state| state.standing = Standing::Leads { campaign, token, ending: None });
    }

    pub(super) fn lost(&self, why: LossReason) {
        self.state.send_if_modified(|state| {
            let Standing::Leads { campaign, ending, .. } = &state.standing else { return false };
            let why = ending.as_ref().map_or(why, |ending| ending.why);
            state.standing = Standing::Lost { campaign: *campaign, why };
            true
        });
    }

    /// The holder is to let go of its leadership. Which campaign that is, and its token; `None` when this node does not lead.
    fn end(&self, why: LossReason, to: Option<NodeName>) -> Option<(u64, Token)> {
        let mut led = None;
        self.state.send_if_modified(|state| {
            let Standing::Leads { campaign, token, ending } = &mut state.standing else { return false };
            led = Some((*campaign, *token));
            let is_first = ending.is_none();
            ending.get_or_insert(Ending { why, to });
            is_first
        });
        led
    }

    /// The holder has let go, or gives a campaign up. To whom it hands over.
    pub(crate) fn let_go(&self, of: u64) -> Option<NodeName> {
        let mut to = None;
        self.state.send_if_modified(|state| {
            let Standing::Leads { campaign, ending, .. } = &mut state.standing else { return false };
            if *campaign != of {
                return false;
            }
            to = ending.take().and_then(|ending| ending.to);
            state.standing = Standing::Idle;
            true
        });
        to
    }

    /// No campaign begins any more.
    fn close(&self, why: LossReason) {
        self.end(why, None);
        self.state.send_if_modified(|state| {
            let is_first = state.closed.is_none();
            state.closed.get_or_insert(why);
            is_first
        });
    }

    /// Nobody writes here any more.
    pub(super) fn over(&self) {
        self.set_lease(None);
        self.lost(LossReason::Shutdown);
        let mut view = lock(&self.view);
        view.is_over = true;
        view.subscribers
            .drain(..)
            .filter_map(|subscriber| subscriber.upgrade())
            .for_each(|subscriber| subscriber.close());
        drop(view);
        self.leader.send_replace(None);
    }
}

impl Shared {
    /// Takes part in an election. Once this has begun it goes on, also when nobody waits for it any more.
    pub(crate) async fn open_election(
        self: &Arc<Self>,
        name: Text,
        voters: Voters,
        handicap: Duration,
    ) -> Result<Arc<Place>, ElectionError> {
        let shared = self.clone();
        let opened = tokio::spawn(async move { shared.open_in_turn(name, voters, handicap).await });
        opened.await.unwrap_or(Err(ElectionError::Shutdown))
    }

    async fn open_in_turn(&self, name: Text, voters: Voters, handicap: Duration) -> Result<Arc<Place>, ElectionError> {
        let leaders = &self.leaders;
        let _turn = leaders.opening.lock().await;
        let config = &self.config;
        let voters = voters.timed(config.election_lease, config.election_drift);
        let is_voter = self.with_id(|id| voters.rank(id.name()).is_some());
        if self.is_stopping() || leaders.is_closed.load(Ordering::Acquire) {
            return Err(ElectionError::Shutdown);
        }
        if is_voter && self.is_client() {
            return Err(ElectionError::Client);
        }
        let before = leaders.place(&name);
        match &before {
            Some(place) if place.voters == voters => return Ok(place.clone()),
            Some(place) => voters.may_follow(place.voters.set())?,
            None if lock(&leaders.places).len() >= config.elections_max => {
                return Err(ElectionError::TooMany(config.elections_max));
            }
            None => {}
        }
        let votes = leaders.votes();
        if is_voter && !voters.is_diskless() && votes.is_none() {
            return Err(ElectionError::NoDirectory);
        }
        let votes = votes.filter(|_| is_voter && !voters.is_diskless());
        let mut machine = self.machine(&name, &voters, handicap, votes.clone()).await?;
        if let Some(before) = before {
            self.end_leadership(&before, LossReason::Superseded, None).await;
            before.close(LossReason::Superseded);
            let (done, closed) = oneshot::channel();
            self.command(Command::Election(Ask::Close { name: name.clone(), done }));
            closed.await.map_err(|_| ElectionError::Shutdown)?;
            lock(&leaders.places).remove(&name);
            before.over();
            // It may have voted meanwhile.
            machine = self.machine(&name, &voters, handicap, votes).await?;
        }
        let place = Place::new(name.clone(), voters, is_voter, leaders.clock, config.events_max);
        lock(&leaders.places).insert(name.clone(), place.clone());
        if leaders.is_closed.load(Ordering::Acquire) {
            lock(&leaders.places).remove(&name);
            return Err(ElectionError::Shutdown);
        }
        self.command(Command::Election(Ask::Open { place: place.clone(), machine: Box::new(machine) }));
        Ok(place)
    }

    /// What the node's vote is goes into it.
    async fn machine(
        &self,
        name: &Text,
        voters: &Voters,
        handicap: Duration,
        votes: Option<Arc<VoteDir>>,
    ) -> Result<Machine, ElectionError> {
        let stored = match votes {
            Some(votes) => {
                let name = name.clone();
                self.blocking(move || votes.load(&name)).await.unwrap_or_else(|| Err(lost_thread()))?
            }
            None => None,
        };
        let config = &self.config;
        let params = Params::new(config.election_heartbeat, config.election_lease, config.election_drift, handicap);
        let mut seed = [0; 8];
        fill_random(&mut seed);
        let (seed, now) = (u64::from_be_bytes(seed), self.leaders.clock.now());
        Ok(Machine::new(name.clone(), self.id(), voters.clone(), params, stored, seed, now)?)
    }

    /// Runs what may wait for a disk; in place under a clock that tests may have paused.
    async fn blocking<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        match self.leaders.clock {
            Clock::System => tokio::task::spawn_blocking(work).await.ok(),
            Clock::Tokio(_) => Some(work()),
        }
    }

    /// Has the holder of a leadership let go of it, and gives it up itself when that takes longer than a lease. The token it
    /// had; `None` when this node does not lead.
    pub(crate) async fn end_leadership(&self, place: &Place, why: LossReason, to: Option<NodeName>) -> Option<Token> {
        let (of, token) = place.end(why, to.clone())?;
        let mut state = place.state.subscribe();
        let is_over = |state: &State| !matches!(state.standing, Standing::Leads { campaign, .. } if campaign == of);
        let patience = self.config.election_lease;
        if tokio::time::timeout(patience, state.wait_for(is_over)).await.is_err() {
            self.command(Command::Election(Ask::Yield { name: place.name.clone(), campaign: of, to }));
            let _ = state.wait_for(is_over).await;
        }
        Some(token)
    }

    /// Nobody of this node leads any more, and others may at once. Waits for holders, at most as long as a lease lasts.
    pub(crate) async fn resign_all(self: &Arc<Self>) {
        self.leaders.refuse();
        let mut ending = JoinSet::new();
        for place in self.leaders.places() {
            let shared = self.clone();
            ending.spawn(async move { shared.end_leadership(&place, LossReason::Shutdown, None).await });
        }
        while ending.join_next().await.is_some() {}
    }
}

fn lost_thread() -> VoteError {
    let kind = std::io::ErrorKind::Interrupted;
    VoteError::Io { path: "".into(), kind, message: "the runtime is shutting down".into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place() -> Arc<Place> {
        let voters = Voters::new(1, vec![NodeName::parse("a@h:1").unwrap()], None, None).unwrap();
        Place::new("e".into(), voters, true, Clock::System, 3)
    }

    fn token(term: u64) -> Token {
        format!("0.1.{term}").parse().unwrap()
    }

    #[test]
    fn a_lease_is_over_when_its_time_is_whatever_the_node_task_says() {
        let place = place();
        place.led(7, token(1));
        assert!(!place.leads(7), "without a lease");
        place.set_lease(Some(place.clock.now() + Duration::from_secs(60)));
        assert!(place.leads(7) && !place.leads(6));
        place.set_lease(Some(place.clock.now()));
        assert!(!place.leads(7));
        assert_eq!(place.state.borrow().loss(7), None, "the node task has not noticed yet");
    }

    #[test]
    fn a_leadership_that_is_to_end_says_why_until_its_holder_lets_go() {
        let place = place();
        place.set_lease(Some(place.clock.now() + Duration::from_secs(60)));
        assert_eq!(place.end(LossReason::Resigned, None), None, "nobody leads");
        place.led(7, token(1));
        let heir = NodeName::parse("b@h:1").unwrap();
        assert_eq!(place.end(LossReason::Transferred, Some(heir.clone())), Some((7, token(1))));
        assert_eq!(place.end(LossReason::Shutdown, None), Some((7, token(1))), "the first reason stands");
        assert!(!place.leads(7));
        assert_eq!(place.state.borrow().loss(7), Some(LossReason::Transferred));
        assert_eq!(place.let_go(6), None, "another's");
        assert_eq!(place.let_go(7), Some(heir));
        assert_eq!(place.state.borrow().standing, Standing::Idle);
        place.led(8, token(2));
        place.end(LossReason::Resigned, None);
        place.lost(LossReason::LeaseExpired);
        assert_eq!(place.state.borrow().loss(8), Some(LossReason::Resigned));
    }

    #[test]
    fn a_reader_that_lags_begins_again_with_a_snapshot() {
        let place = place();
        let reader = place.subscribe();
        let next = || {
            let mut context = std::task::Context::from_waker(std::task::Waker::noop());
            match reader.poll_next(&mut context) {
                std::task::Poll::Ready(event) => event,
                std::task::Poll::Pending => panic!("nothing waits"),
            }
        };
        let leader = NodeName::parse("b@h:1").unwrap();
        for term in 1..=4 {
            place.observed(token(term), Some(leader.clone()));
        }
        assert_eq!(next(), Some(ElectionEvent::Lagged));
        assert_eq!(next(), Some(ElectionEvent::Snapshot(Some((token(3), leader.clone())))));
        assert_eq!(lock(&place.view).lagged, 1);
        place.over();
        assert_eq!(next(), Some(ElectionEvent::Changed { token: token(4), leader: Some(leader) }));
        assert_eq!(next(), None);
    }
}
