//! Elections: who leads, for sure.

mod leadership;
mod singleton;

use std::collections::BTreeMap;
use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

pub use self::leadership::{Leadership, Lease};

use self::leadership::Campaign;
use crate::config::Config;
use crate::driver::Shared;
use crate::driver::leaders::{ElectionCounters, ElectionEvent, Place, Standing, State};
use crate::driver::subscriber::Subscriber;
use crate::error::ElectionError;
use crate::id::{NameError, NodeName};
use crate::key::Key;
use crate::proto::election::{self, LossReason};
use crate::wire::services::election::Token;

/// Who votes in an election: the same on all nodes.
///
/// A majority of them has to live and reach each other for anybody to lead; three can lose one, five can lose two. Nodes that
/// are no voters learn who leads, and cannot lead.
///
/// # Changing them
/// Give a later version with every change, and add or remove one voter at a time. To replace one, or to change more of them at
/// once, name the set [`before`](Self::before), of which a majority has to agree as well, and to be voters still. Give the new voters to all nodes, one after the
/// other, by a restart or by another [`Node::election`](crate::Node::election). Once a leader of the later version is known, no
/// voter votes by an earlier one. A version that cannot follow what a node remembers is refused there, as a [`VotersError`](crate::VotersError).
///
/// ```
/// use distribute::Voters;
///
/// let three = Voters::new(1, ["a@10.0.0.1", "b@10.0.0.2", "c@10.0.0.3"]);
/// // The host of c is gone for good: d takes its place.
/// let next = Voters::new(2, ["a@10.0.0.1", "b@10.0.0.2", "d@10.0.0.4"])
///     .before(["a@10.0.0.1", "b@10.0.0.2", "c@10.0.0.3"])
///     .priority("a@10.0.0.1", 1);
/// ```
#[derive(Clone, Debug)]
pub struct Voters {
    version: u64,
    names: Result<Vec<NodeName>, ElectionError>,
    before: Result<Option<Vec<NodeName>>, ElectionError>,
    generation: Option<u64>,
    priorities: Result<BTreeMap<NodeName, u8>, ElectionError>,
}

fn parse<N>(name: N) -> Result<NodeName, ElectionError>
where
    N: TryInto<NodeName, Error = NameError> + ToString,
{
    let text = name.to_string();
    name.try_into().map_err(|source| ElectionError::Voter { name: text, source })
}

fn parse_all<N>(names: impl IntoIterator<Item = N>) -> Result<Vec<NodeName>, ElectionError>
where
    N: TryInto<NodeName, Error = NameError> + ToString,
{
    names.into_iter().map(parse).collect()
}

impl Voters {
    /// These nodes, 1 to 15, as this version of the voters. The names are checked by [`Node::election`](crate::Node::election).
    pub fn new<N>(version: u64, names: impl IntoIterator<Item = N>) -> Self
    where
        N: TryInto<NodeName, Error = NameError> + ToString,
    {
        let names = parse_all(names);
        Self { version, names, before: Ok(None), generation: None, priorities: Ok(BTreeMap::new()) }
    }

    /// Names the voters of the version before: of these a majority has to agree as well, and so has to live, until the next
    /// version. It allows to replace a voter, and to change several at once.
    #[must_use]
    pub fn before<N>(mut self, names: impl IntoIterator<Item = N>) -> Self
    where
        N: TryInto<NodeName, Error = NameError> + ToString,
    {
        self.before = parse_all(names).map(Some);
        self
    }

    /// Says that voters keep their votes in memory only, so that they need no directory.
    ///
    /// A voter that restarts has forgotten its vote, and votes only after so many others as make a majority have told it what
    /// they know: of three voters both others, of five any three. Until then it counts as failed. If more than a minority
    /// forget at once, nobody can be elected; unless all have forgotten and all are back, who then begin anew. To begin anew
    /// otherwise, restart all voters with a greater `generation`: it comes first in a [`Token`], so that those of before are
    /// lesser. To use the same generation again after that, or to restart only some of the voters with a greater one, may elect
    /// two leaders at one time.
    #[must_use]
    pub fn diskless(mut self, generation: u64) -> Self {
        self.generation = Some(generation);
        self
    }

    /// Prefers a voter: those with a lesser number wait for a heartbeat more, for each step that they are below the greatest,
    /// before they stand. All have 0 unless it is said. It is no right: a preferred voter takes no lead from another, and
    /// [`Election::transfer`] gives it to one.
    #[must_use]
    pub fn priority<N>(mut self, name: N, priority: u8) -> Self
    where
        N: TryInto<NodeName, Error = NameError> + ToString,
    {
        self.priorities = self.priorities.and_then(|mut priorities| {
            priorities.insert(parse(name)?, priority);
            Ok(priorities)
        });
        self
    }

    /// As the machine takes them, and by how much that node waits longer than others.
    fn checked(self, own: &NodeName, config: &Config) -> Result<(election::Voters, Duration), ElectionError> {
        let (names, priorities) = (self.names?, self.priorities?);
        let of = |name: &NodeName| priorities.get(name).copied().unwrap_or_default();
        let steps = names.iter().map(of).max().unwrap_or_default().saturating_sub(of(own));
        let voters = election::Voters::new(self.version, names, self.before?, self.generation)?;
        Ok((voters, config.election_heartbeat * u32::from(steps)))
    }
}

/// One election, on one node. Cheap to clone.
///
/// Of the nodes that [`campaign`](Self::campaign) at most one leads at a time, as long as clocks keep their rate. Every
/// leadership has a [`Token`], greater than that of any before. Every node that takes part learns who leads, whether or not it
/// may lead itself.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), distribute::Error> {
/// use distribute::{Cookie, Node, Voters};
///
/// # let scratch = tempfile::tempdir().expect("a directory");
/// # let directory = scratch.path();
/// let node = Node::builder("a@127.0.0.1:0").cookie(Cookie::generate()).election_dir(directory).start().await?;
/// // One voter is a majority of one. Use three or five, and the same version and names on all nodes.
/// let election = node.election("billing", Voters::new(1, [node.name()])).await?;
///
/// let leadership = election.campaign().await?; // waits until this node leads
/// assert!(leadership.is_current());
/// assert_eq!(election.leader(), Some((leadership.token(), node.name().clone())));
///
/// // Work that ends with the leadership, and then the next node's turn.
/// let billed = leadership.run(|lease| async move { format!("billed by {}", lease.token()) }).await;
/// assert!(billed.is_ok_and(|billed| billed.starts_with("billed by 0.1.")));
/// # node.shutdown().await;
/// # Ok(()) }
/// ```
///
/// # Leases and tokens
/// A leader sends the voters a heartbeat every [`Config::election_heartbeat`](crate::Config::election_heartbeat), 250 ms.
/// Once a majority has answered one, its lease lasts for [`Config::election_lease`](crate::Config::election_lease), 1.5 s, from
/// when that was sent, and for longer than that none of those who answered votes for another. So a leader that is cut off stops
/// leading, by its own clock, before another begins. The clock goes on while the machine sleeps, on Linux; elsewhere it may not.
///
/// What a lease cannot do is to stop a leader that is frozen between looking at its clock and acting: by a debugger, a paused
/// virtual machine, a page that has to be read from disk. It goes on where it was, and its write arrives after another leader's.
/// **So whatever leads should have its effects fenced:** each names the token, and the resource refuses those below the
/// greatest that it has seen, as [`Fence`](crate::Fence) does. Then it does not matter what a leader of the past believes.
///
/// [`Membership::leader`](crate::Membership::leader) needs no voters, no majority and no disk, and answers at once. It will do
/// where two leaders at a time cost only work done twice: who prints the statistics, who warms a cache. It will not do where
/// two at a time do harm, because while views differ two nodes may each believe that they lead.
///
/// # When the leader is gone
/// A leader that resigns, or whose node is shut down, is followed within some 0.4 s and a few round trips. One that is killed or
/// cut off is followed after between 1.5 and 3 s, whichever voter stands first, a little more for each of its `priority` steps,
/// the time that two rounds of votes and two flushes to disk take, and again up to 1.5 s whenever two voters split the votes:
/// with three voters and default settings within 5 s. As soon as membership has found the leader dead, voters stand without
/// waiting longer than they have promised.
///
/// # On disk
/// A voter writes its vote before anybody hears of it, into [`Builder::election_dir`](crate::Builder::election_dir). A voter
/// whose disk refuses does not vote, says so in the log and in [`counters`](Self::counters), and tries again.
#[derive(Clone)]
#[doc(alias = "raft")]
#[doc(alias = "lease")]
#[doc(alias = "lock")]
pub struct Election {
    shared: Arc<Shared>,
    place: Arc<Place>,
}

impl Election {
    pub(crate) async fn open(shared: &Arc<Shared>, name: String, voters: Voters) -> Result<Self, ElectionError> {
        let name = Key::parse(name)?.to_text();
        let (voters, handicap) = shared.with_id(|id| voters.checked(id.name(), &shared.config))?;
        let place = shared.open_election(name, voters, handicap).await?;
        Ok(Self { shared: shared.clone(), place })
    }

    /// Returns the election's name.
    pub fn name(&self) -> &str {
        &self.place.name
    }

    /// Tells whether this node is a voter, and so may lead.
    pub fn is_voter(&self) -> bool {
        self.place.is_voter
    }

    /// Stands for election, and waits until this node leads. It leads until the [`Leadership`] is lost or dropped.
    ///
    /// There is one campaign or leadership of a node at a time: another waits until the one before it is dropped. There is no
    /// deadline; without a majority it waits for ever.
    ///
    /// # Errors
    /// [`ElectionError::NotAVoter`]; [`ElectionError::Superseded`] and [`ElectionError::Shutdown`] also while it waits.
    ///
    /// # Cancel safety
    /// A campaign that is dropped is given up: this node does not lead.
    #[doc(alias = "acquire")]
    pub async fn campaign(&self) -> Result<Leadership, ElectionError> {
        if !self.is_voter() {
            return Err(ElectionError::NotAVoter);
        }
        let mut state = self.place.state.subscribe();
        let closed =
            |why| if why == LossReason::Superseded { ElectionError::Superseded } else { ElectionError::Shutdown };
        let turn = tokio::select! {
            turn = self.place.turn.clone().lock_owned() => turn,
            why = is_closed(state.clone()) => return Err(closed(why)),
        };
        loop {
            if let Some(why) = state.borrow().closed {
                return Err(closed(why));
            }
            let campaign = Campaign::begin(self);
            let of = campaign.number();
            let is_over = |state: &State| {
                let token = match &state.standing {
                    Standing::Leads { campaign, token, .. } if *campaign == of => Some(Some(*token)),
                    // It was lost before anybody looked.
                    Standing::Lost { campaign, .. } if *campaign == of => Some(None),
                    _ => None,
                };
                token.or_else(|| state.closed.map(|_| None))
            };
            let ended = state.wait_for(|state| is_over(state).is_some()).await;
            let token = ended.map_or(None, |state| is_over(&state).flatten());
            if let Some(token) = token {
                return Ok(Leadership::new(campaign, token, turn));
            }
        }
    }

    /// Gives up the lead, if this node has it: its [`Leadership`] is lost, with [`LossReason::Resigned`], and others may lead
    /// as soon as it is dropped, or after as long as a lease lasts.
    ///
    /// A campaign of this node that waits goes on: drop it to give it up.
    ///
    /// # Cancel safety
    /// One that is dropped goes on, and does not make sure that the leadership is dropped.
    pub async fn resign(&self) {
        self.shared.end_leadership(&self.place, LossReason::Resigned, None).await;
    }

    /// Gives the lead to another voter, which has to campaign: this node's [`Leadership`] is lost, with
    /// [`LossReason::Transferred`], and as soon as it is dropped, or after as long as a lease lasts, the other stands without
    /// waiting. Returns when that one leads.
    ///
    /// # Errors
    /// [`ElectionError::NotASuccessor`] and [`ElectionError::NotLeader`]: nothing has changed.
    /// [`ElectionError::NotTransferred`]: this node has stopped leading, and the other does not lead within twice a lease,
    /// because it does not campaign or cannot be reached. Any voter may lead next.
    ///
    /// # Cancel safety
    /// As [`resign`](Self::resign).
    pub async fn transfer<N>(&self, to: N) -> Result<(), ElectionError>
    where
        N: TryInto<NodeName, Error = NameError> + ToString,
    {
        let to = parse(to)?;
        if self.place.voters.rank(&to).is_none() || self.shared.with_id(|id| *id.name() == to) {
            return Err(ElectionError::NotASuccessor(to));
        }
        let ended = self.shared.end_leadership(&self.place, LossReason::Transferred, Some(to.clone())).await;
        let Some(token) = ended else { return Err(ElectionError::NotLeader) };
        let patience = self.shared.config.election_lease * 2;
        let mut leader = self.place.leader.subscribe();
        let next = leader.wait_for(|leader| leader.as_ref().is_some_and(|(next, of)| *next > token && of.is_some()));
        match tokio::time::timeout(patience, next).await {
            Ok(Ok(next)) if next.as_ref().is_some_and(|(_, of)| of.as_ref() == Some(&to)) => Ok(()),
            _ => Err(ElectionError::NotTransferred { to, patience }),
        }
    }

    /// Returns who leads and by which token, as far as this node knows; `None` when nobody is known to lead. Answers from
    /// memory.
    ///
    /// What it says may be over: only the leader itself knows how long its lease lasts. A leader that was killed or cut off is
    /// named until the next one is heard of.
    pub fn leader(&self) -> Option<(Token, NodeName)> {
        self.place.leader()
    }

    /// Waits until somebody is known to lead, and returns who, and by which token. `None` once the node is shut down.
    ///
    /// # Cancel safety
    /// A wait that is dropped leaves nothing behind.
    pub async fn wait_for_leader(&self) -> Option<(Token, NodeName)> {
        let mut events = self.observe();
        loop {
            let event = events.next().await?;
            if let ElectionEvent::Snapshot(Some(leader)) = event {
                return Some(leader);
            }
            if let ElectionEvent::Changed { token, leader: Some(leader) } = event {
                return Some((token, leader));
            }
        }
    }

    /// Subscribes to who leads: first an [`ElectionEvent::Snapshot`], then each change once, in the order in which this node
    /// learned of it.
    ///
    /// A reader that leaves more than [`Config::events_max`](crate::Config::events_max) events unread loses them, is told
    /// [`ElectionEvent::Lagged`], and begins again with a snapshot.
    pub fn observe(&self) -> ElectionEvents {
        ElectionEvents { subscriber: self.place.subscribe() }
    }

    /// Returns what this election has done on this node.
    pub fn counters(&self) -> ElectionCounters {
        self.shared.leaders.counters(&self.place)
    }

    /// Campaigns, runs a task as [`Leadership::run`] does, and campaigns again when the leadership is lost, until the task ends
    /// by itself: then this node resigns, and the task's outcome is returned.
    ///
    /// # Errors
    /// As [`campaign`](Self::campaign).
    ///
    /// # Cancel safety
    /// Dropping it drops the task, and then gives up the campaign or the leadership.
    pub async fn while_leading<T, F, Fut>(&self, mut task: F) -> Result<T, ElectionError>
    where
        F: FnMut(Lease) -> Fut,
        Fut: Future<Output = T>,
    {
        loop {
            let leadership = self.campaign().await?;
            if let Ok(outcome) = leadership.run(&mut task).await {
                return Ok(outcome);
            }
        }
    }
}

async fn is_closed(mut state: tokio::sync::watch::Receiver<State>) -> LossReason {
    let closed = state.wait_for(|state| state.closed.is_some()).await;
    closed.ok().and_then(|state| state.closed).unwrap_or(LossReason::Shutdown)
}

impl fmt::Debug for Election {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Election").field("name", &self.name()).field("leader", &self.leader()).finish_non_exhaustive()
    }
}

/// What a reader learns of who leads: see [`Election::observe`]. It is a [`Stream`](futures_core::Stream), too.
#[derive(Debug)]
pub struct ElectionEvents {
    subscriber: Arc<Subscriber<ElectionEvent>>,
}

impl ElectionEvents {
    /// Waits for the next event; `None` once the node is shut down, or has opened the election anew, and all is read.
    ///
    /// # Cancel safety
    /// Dropping it loses no event.
    pub async fn next(&mut self) -> Option<ElectionEvent> {
        poll_fn(|context| self.subscriber.poll_next(context)).await
    }
}

impl futures_core::Stream for ElectionEvents {
    type Item = ElectionEvent;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<ElectionEvent>> {
        self.subscriber.poll_next(context)
    }
}
