//! How well a node and its cluster are, for probes, dashboards and people.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::cluster::Cluster;
use crate::config::LONGEST;
use crate::driver::members::{Condition, PeerVitals};
use crate::driver::trust::expires_soon;
use crate::driver::{Command, Shared};
use crate::error::PingError;
use crate::id::NodeId;
use crate::proto::membership::MemberState;

/// How a node is, and how it sees its cluster. Cheap to clone.
///
/// [`status`](Self::status), [`has_quorum`](Self::has_quorum) and [`peers`](Self::peers) tell what the node knows
/// anyway, and send nothing. [`check`](Self::check) asks.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), distribute::Error> {
/// use distribute::{Cookie, HealthReason, HealthStatus, Node};
///
/// let node = Node::builder("here@127.0.0.1:0").cookie(Cookie::generate()).start().await?;
/// let health = node.health();
/// assert_eq!(health.status(), HealthStatus::Isolated(vec![HealthReason::Alone]));
/// assert!(health.has_quorum(1) && !health.has_quorum(3));
/// # node.shutdown().await;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Health {
    shared: Arc<Shared>,
}

/// How well a node is, by what it knows of its cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum HealthStatus {
    /// Nothing is known to be wrong.
    Healthy,
    /// Other members live, and something is wrong.
    Degraded(Vec<HealthReason>),
    /// No other member lives, as far as this node can see: it is the first or the last, or cut off.
    Isolated(Vec<HealthReason>),
}

impl HealthStatus {
    /// Returns true for [`Healthy`](Self::Healthy).
    pub fn is_healthy(&self) -> bool {
        *self == Self::Healthy
    }

    /// Returns what is wrong, if anything is.
    pub fn reasons(&self) -> &[HealthReason] {
        match self {
            Self::Healthy => &[],
            Self::Degraded(reasons) | Self::Isolated(reasons) => reasons,
        }
    }
}

/// What is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum HealthReason {
    /// No other member lives.
    Alone,
    /// The node has left, or is shut down.
    Gone,
    /// Members are suspected now, by whomever.
    Suspected(Vec<NodeId>),
    /// Members were declared dead within the last minute, and have not come back. Those who left in good order are not
    /// among them.
    Died(Vec<NodeId>),
    /// This node's own probes fail too often, or others suspect it: its score is at least half of
    /// [`Config::health_score_max`](crate::Config::health_score_max), rounded up. It is short of CPU, or its network is
    /// bad.
    Unwell {
        /// The score; 0 is good.
        score: u32,
    },
    /// This node's certificate expires within 14 days, or has expired: see [`Trust`](crate::Trust).
    CertificateExpires {
        /// The last moment of its validity.
        at: SystemTime,
    },
}

/// For so long a death is a reason not to be healthy.
const OF_LATE: Duration = Duration::from_secs(60);

/// So many members are asked at one time.
const PARALLEL: usize = 16;

impl Health {
    pub(crate) fn new(shared: &Arc<Shared>) -> Self {
        Self { shared: shared.clone() }
    }

    /// Returns how well the node is, with all reasons if it is not.
    ///
    /// A suspicion is common where packets are lost, and mostly cleared in seconds: do not restart a process for being
    /// `Degraded`.
    pub fn status(&self) -> HealthStatus {
        let members = &self.shared.members;
        let tls = &self.shared.tls;
        let expires = tls.not_after().filter(|_| expires_soon(tls));
        judge(members.condition(OF_LATE), members.score(), self.shared.config.health_score_max, expires)
    }

    /// Returns whether more than half of so many members live, this node included and those counted who are suspected.
    ///
    /// `expected` is how many there should be. Of two sides of a partition at most one has a quorum of it, unless more
    /// than `expected` members exist; but each side learns of the partition only after some seconds.
    pub fn has_quorum(&self, expected: usize) -> bool {
        is_quorum(self.shared.members.live_count(), expected)
    }

    /// Returns how the node's sessions are, in the order of the peers' names.
    ///
    /// # Cancel safety
    /// Dropping it has no effect.
    pub async fn peers(&self) -> Vec<PeerHealth> {
        let (done, vitals) = oneshot::channel();
        self.shared.command(Command::Health { done });
        let vitals = vitals.await.unwrap_or_default();
        let now = Instant::now().into_std();
        let mut peers: Vec<_> = vitals
            .into_iter()
            .map(|PeerVitals { peer, path, last_heard }| {
                let member = self.shared.members.member(peer.name()).filter(|member| member.id == peer);
                PeerHealth {
                    state: member.map(|member| member.state),
                    round_trip: path.map(|path| path.rtt),
                    packets_sent: path.map_or(0, |path| path.packets_sent),
                    packets_lost: path.map_or(0, |path| path.packets_lost),
                    silent_for: last_heard.map(|heard| now.saturating_duration_since(heard)),
                    id: peer,
                }
            })
            .collect();
        peers.sort_by(|a, b| a.id.cmp(&b.id));
        peers
    }

    /// Asks every other live member for a sign of life, dialling those without a link, and returns what came of it, in
    /// the order of their names.
    ///
    /// All is over after `patience`. Sixteen are asked at a time, and each has an equal part of the time and what
    /// quicker ones leave over, so that some who never answer do not use up the others' time. Give it a second for each
    /// sixteen members.
    ///
    /// # Cancel safety
    /// A check that is dropped leaves nothing behind but links that it made.
    pub async fn check(&self, patience: Duration) -> Vec<Checked> {
        let patience = patience.min(LONGEST);
        let begin = Instant::now();
        let own = self.shared.id();
        let others: Vec<_> = self.shared.members.live().into_iter().filter(|id| id.name() != own.name()).collect();
        let mut waiting = others.iter().cloned().enumerate();
        let mut checked: Vec<_> =
            others.iter().map(|id| Checked { id: id.clone(), outcome: Err(PingError::Timeout(patience)) }).collect();
        let mut asked = JoinSet::new();
        loop {
            while asked.len() < PARALLEL
                && let Some((at, id)) = waiting.next()
            {
                let share = patience.mul_f64(due(at, others.len())).saturating_sub(begin.elapsed());
                let cluster = Cluster::new(&self.shared);
                asked.spawn(async move { (at, cluster.ping(id.name(), share).await) });
            }
            match asked.join_next().await {
                Some(Ok((at, outcome))) => checked[at].outcome = outcome,
                Some(Err(_)) => {}
                None => return checked,
            }
        }
    }
}

/// A member that was asked for a sign of life.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Checked {
    /// The member.
    pub id: NodeId,
    /// How long the answer took, or why there is none. The time of a dial counts.
    pub outcome: Result<Duration, PingError>,
}

/// How a peer is: a node that this one has a session with.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PeerHealth {
    /// The peer.
    pub id: NodeId,
    /// What membership says of it; `None` if it does not know this life.
    pub state: Option<MemberState>,
    /// The link's smoothed round trip; `None` without a link.
    pub round_trip: Option<Duration>,
    /// UDP packets that this node sent on the link.
    pub packets_sent: u64,
    /// Of these: how many QUIC believes lost.
    pub packets_lost: u64,
    /// How long ago anything was last heard of it, on any way; `None` for never.
    pub silent_for: Option<Duration>,
}

impl PeerHealth {
    /// Returns whether membership suspects it now.
    pub fn is_suspected(&self) -> bool {
        self.state == Some(MemberState::Suspect)
    }

    /// Returns the lost part of the packets sent on the link, between 0 and 1.
    pub fn loss(&self) -> f64 {
        if self.packets_sent == 0 {
            return 0.0;
        }
        (self.packets_lost as f64 / self.packets_sent as f64).min(1.0)
    }
}

fn judge(condition: Condition, score: u32, score_max: u32, expires: Option<SystemTime>) -> HealthStatus {
    let Condition { live, suspected, died } = condition;
    let reasons = [
        (live == 0).then_some(HealthReason::Gone),
        (live == 1).then_some(HealthReason::Alone),
        (!suspected.is_empty()).then_some(HealthReason::Suspected(suspected)),
        (!died.is_empty()).then_some(HealthReason::Died(died)),
        (score > 0 && score >= score_max.div_ceil(2)).then_some(HealthReason::Unwell { score }),
        expires.map(|at| HealthReason::CertificateExpires { at }),
    ];
    let reasons: Vec<_> = reasons.into_iter().flatten().collect();
    match live {
        0 | 1 => HealthStatus::Isolated(reasons),
        _ if reasons.is_empty() => HealthStatus::Healthy,
        _ => HealthStatus::Degraded(reasons),
    }
}

fn is_quorum(live: usize, expected: usize) -> bool {
    live > expected / 2
}

/// After which part of the time the member at this position has had its turn, of so many.
fn due(at: usize, all: usize) -> f64 {
    (at / PARALLEL + 1) as f64 / all.div_ceil(PARALLEL) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_than_half_is_a_quorum() {
        let least = |expected| (0..10).find(|live| is_quorum(*live, expected)).unwrap();
        assert_eq!([1, 2, 3, 4, 5, 6, 7].map(least), [1, 2, 2, 3, 3, 4, 4]);
        assert!(!is_quorum(0, 0), "a node that is gone is no quorum of anything");
        assert!(!is_quorum(1 << 40, usize::MAX));
    }

    #[test]
    fn the_status_says_what_is_wrong() {
        let [a, b] = ["a@h", "b@h"].map(|name| NodeId::new(name.parse().unwrap(), 1));
        let of = |live, suspected: &[&NodeId], died: &[&NodeId], score| {
            let ids = |ids: &[&NodeId]| ids.iter().copied().cloned().collect();
            judge(Condition { live, suspected: ids(suspected), died: ids(died) }, score, 7, None)
        };
        assert_eq!(of(2, &[], &[], 0), HealthStatus::Healthy);
        assert_eq!(of(2, &[], &[], 3), HealthStatus::Healthy, "below half of 7");
        assert_eq!(of(2, &[], &[], 4), HealthStatus::Degraded(vec![HealthReason::Unwell { score: 4 }]));
        let reasons = vec![HealthReason::Suspected(vec![a.clone()]), HealthReason::Died(vec![b.clone()])];
        assert_eq!(of(3, &[&a], &[&b], 0), HealthStatus::Degraded(reasons));
        let alone = HealthStatus::Isolated(vec![HealthReason::Alone, HealthReason::Died(vec![a.clone()])]);
        assert_eq!(of(1, &[], &[&a], 0), alone);
        assert_eq!(of(0, &[], &[], 0), HealthStatus::Isolated(vec![HealthReason::Gone]));
        let (at, two) = (SystemTime::UNIX_EPOCH, Condition { live: 2, ..Condition::default() });
        let expires = vec![HealthReason::CertificateExpires { at }];
        assert_eq!(judge(two, 0, 7, Some(at)), HealthStatus::Degraded(expires));
        assert!(
            judge(Condition { live: 2, ..Condition::default() }, 0, 0, None).is_healthy(),
            "a score that is switched off"
        );
    }

    #[test]
    fn each_has_an_equal_part_of_the_time() {
        assert_eq!([due(0, 1), due(0, 16), due(15, 16)], [1.0; 3], "all are asked at once");
        assert_eq!([due(0, 17), due(15, 17), due(16, 17)], [0.5, 0.5, 1.0]);
        assert_eq!([due(15, 64), due(16, 64), due(48, 64), due(63, 64)], [0.25, 0.5, 1.0, 1.0]);
    }

    /// Forty members that never answer are asked beside one that does; that one has its turn, and all is over in time.
    #[cfg(feature = "sim")]
    #[tokio::test(start_paused = true)]
    async fn a_check_asks_everybody_in_time() {
        use crate::identity::Cookie;
        use crate::node::Node;
        use crate::proto::membership::{Member, MemberEvent};
        use crate::sim::Fabric;

        let fabric = Fabric::new(1);
        let cookie = Cookie::generate();
        let node = async |name: &str, host| {
            let builder = Node::builder(name).cookie(cookie.clone()).network(fabric.host([10, 0, 0, host]));
            builder.start().await.unwrap()
        };
        let (a, z) = (node("a@10.0.0.1:4370", 1).await, node("z@10.0.0.2:4370", 2).await);
        let silent = (100..140).map(|host| NodeId::new(format!("m@10.0.0.{host}:4370").parse().unwrap(), 1));
        let others: Vec<_> = silent.chain([z.id()]).collect();
        for id in others.clone() {
            let (metadata, addresses) = (bytes::Bytes::new(), Vec::new());
            let (state, not_dialable, client) = (MemberState::Alive, false, false);
            let member = Member { id, state, refutation: 0, metadata, addresses, not_dialable, client };
            a.shared().members.apply(MemberEvent::Joined(member));
        }
        let begin = Instant::now();
        let checked = a.health().check(Duration::from_secs(3)).await;
        assert_eq!(begin.elapsed().as_secs(), 3);
        assert_eq!(checked.iter().map(|checked| checked.id.clone()).collect::<Vec<_>>(), others, "not itself");
        let (last, silent) = checked.split_last().unwrap();
        assert!(last.outcome.is_ok(), "{last:?}");
        for checked in silent {
            assert_eq!(checked.outcome, Err(PingError::Timeout(Duration::from_secs(1))), "a third of the time each");
        }
    }
}
