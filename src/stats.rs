//! What a node has done and holds, in numbers: for dashboards, tests, and whoever looks for the reason of something.

#[cfg(feature = "metrics")]
pub(crate) mod export;

use std::sync::Arc;
use std::time::Duration;

use crate::driver::counters::{Queues, Tallies, Traffic};
use crate::driver::journal::Incidents;
use crate::driver::names::RegistryCounters;
use crate::driver::{Shared, lock};
use crate::id::NodeId;
use crate::proto::admission::AdmissionCounters;
use crate::proto::membership::MembershipCounters;
use crate::proto::node::services::RegistryStats;
use crate::rpc::{CallStats, Rpc};

/// What a node has done since its start, and what it holds now, from [`Node::stats`](crate::Node::stats).
///
/// All of it is counted whether somebody looks or not. Counts only rise, and those of sessions that ended are in the
/// sums; what is held now goes back to zero. The parts are looked at one after the other, so a message on its way may be in
/// one and not yet in the other.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), distribute::Error> {
/// use distribute::{Cookie, Node};
///
/// let cookie = Cookie::generate();
/// let one = Node::builder("one@127.0.0.1:0").cookie(cookie.clone()).start().await?;
/// let two = Node::builder("two@127.0.0.1:0").cookie(cookie).start().await?;
/// let mut texts = two.mailbox::<String>();
/// texts.address().bind(&one).send("seven".into()).await?;
/// assert_eq!(texts.recv().await.as_deref(), Some("seven"));
///
/// let sent = one.stats().traffic.sent;
/// assert_eq!(two.stats().traffic.received, sent);
/// assert_eq!(sent.messages, 1);
/// let stats = one.stats();
/// let [peer] = &stats.peers[..] else { panic!("one peer") };
/// assert_eq!((&peer.id, peer.traffic.sent), (&two.id(), sent));
/// # two.shutdown().await;
/// # one.shutdown().await;
/// # Ok(()) }
/// ```
///
/// # The `metrics` facade
/// With the feature `metrics` a node hands these to the process's [recorder](https://docs.rs/metrics) every 5 seconds, and
/// once more at its end, each with the label `node`, its name:
///
/// | name | kind | what |
/// |---|---|---|
/// | `distribute_messages_sent_total` | counter | Messages sent to other nodes |
/// | `distribute_messages_received_total` | counter | Messages of other nodes |
/// | `distribute_copies_sent_total` | counter | Copies of broadcasts sent |
/// | `distribute_copies_received_total` | counter | Copies of broadcasts received |
/// | `distribute_requests_sent_total` | counter | Requests of calls and casts sent |
/// | `distribute_requests_received_total` | counter | Requests of calls and casts received |
/// | `distribute_answers_sent_total` | counter | Answers, items and replies sent |
/// | `distribute_answers_received_total` | counter | Answers, items and replies received |
/// | `distribute_body_bytes_sent_total` | counter | Bytes of bodies sent |
/// | `distribute_body_bytes_received_total` | counter | Bytes of bodies received |
/// | `distribute_messages_local_total` | counter | Messages within the node |
/// | `distribute_messages_full_total` | counter | Messages turned away as full |
/// | `distribute_messages_undeliverable_total` | counter | Messages that came for closed mailboxes |
/// | `distribute_messages_refused_total` | counter | Messages that mailboxes could not read |
/// | `distribute_handshakes_total` | counter | Handshakes of others that were let begin |
/// | `distribute_handshakes_failed_total` | counter | Of these: those that were refused |
/// | `distribute_handshakes_turned_away_total` | counter | Those for which there was no room, or no patience |
/// | `distribute_busy_total` | counter | Times that something began to wait for a peer |
/// | `distribute_blocked_microseconds_total` | counter | Time that sends, requests and answers waited |
/// | `distribute_calls_made_total` | counter | Calls made |
/// | `distribute_calls_answered_total` | counter | Calls answered |
/// | `distribute_calls_failed_total` | counter | Calls that failed, other than in time |
/// | `distribute_calls_timed_out_total` | counter | Calls without an answer in time |
/// | `distribute_calls_given_up_total` | counter | Calls dropped by who made them |
/// | `distribute_answers_late_total` | counter | Answers that nobody waited for |
/// | `distribute_calls_served_total` | counter | Handlers started |
/// | `distribute_calls_refused_total` | counter | Calls turned away for another reason |
/// | `distribute_calls_overloaded_total` | counter | Calls turned away as too many |
/// | `distribute_casts_total` | counter | Casts made |
/// | `distribute_casts_failed_total` | counter | Casts that came to nothing here |
/// | `distribute_handlers_panicked_total` | counter | Handlers that panicked |
/// | `distribute_actors_panicked_total` | counter | Panics of actors |
/// | `distribute_actors_restarted_total` | counter | Restarts of actors |
/// | `distribute_sessions_begun_total` | counter | Sessions that began |
/// | `distribute_sessions_lost_total` | counter | Sessions that ended without a good-bye |
/// | `distribute_disconnects_forced_total` | counter | Sessions ended by force |
/// | `distribute_frames_rejected_total` | counter | Links closed because of a frame |
/// | `distribute_frames_skipped_total` | counter | Frames of a later protocol skipped |
/// | `distribute_links_refused_total` | counter | Incoming links refused |
/// | `distribute_dials_failed_total` | counter | Dials that did not lead to a link |
/// | `distribute_lives_refused_total` | counter | Second lives of a live name refused |
/// | `distribute_packets_dropped_total` | counter | Packets of membership dropped |
/// | `distribute_names_lost_total` | counter | Names lost to another claim |
/// | `distribute_member_deaths_total` | counter | Members declared dead |
/// | `distribute_member_suspicions_total` | counter | Members suspected |
/// | `distribute_member_false_alarms_total` | counter | Suspicions and deaths that were wrong |
/// | `distribute_sessions` | gauge | Sessions now |
/// | `distribute_peers_busy` | gauge | Peers that something waits for now |
/// | `distribute_buffered_bytes` | gauge | Accepted and not written now |
/// | `distribute_mailboxes` | gauge | Open mailboxes now |
/// | `distribute_unread_messages` | gauge | Unread messages in mailboxes now |
/// | `distribute_calls_waiting` | gauge | Calls to other nodes without an answer now |
/// | `distribute_handlers` | gauge | Handlers at work now |
/// | `distribute_uptime_seconds` | gauge | Since the node's start |
/// | `distribute_round_trip_seconds` | histogram | Smoothed round trips of links |
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct NodeStats {
    /// The node.
    pub id: NodeId,
    /// How long it has run.
    pub uptime: Duration,
    /// What went between it and all others, in all sessions.
    pub traffic: Traffic,
    /// Messages between mailboxes of this node, which take no link.
    pub local_messages: u64,
    /// Now: open mailboxes.
    pub mailboxes: usize,
    /// Now: messages and notices in mailboxes that are not read.
    pub unread: u64,
    /// What became of its calls: see [`Rpc::stats`].
    pub calls: CallStats,
    /// What a person may ask about.
    pub incidents: Incidents,
    /// What became of those who dialled it: see [`Cluster::admission`](crate::Cluster::admission).
    pub admission: AdmissionCounters,
    /// What it has done for its membership: see [`Membership::counters`](crate::Membership::counters).
    pub membership: MembershipCounters,
    /// What it has done for names and groups: see [`Registry::stats`](crate::Registry::stats).
    pub registry: RegistryStats,
    /// What has happened to names: see [`Registry::counters`](crate::Registry::counters).
    pub names: RegistryCounters,
    /// Each session, in the order of the peers.
    pub peers: Vec<PeerStats>,
}

/// One session, with a peer that this node is or was linked to.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct PeerStats {
    /// The peer.
    pub id: NodeId,
    /// What went between this node and the peer in this session.
    pub traffic: Traffic,
    /// Messages of the peer that mailboxes of this node could not read.
    pub unreadable: u64,
    /// Now: what waits.
    pub queues: Queues,
    /// Now: calls of this node to the peer that wait for answers, streams among them.
    pub calls: usize,
    /// Now: of these, streams.
    pub streams: usize,
    /// Now: handlers of this node that work for the peer.
    pub handlers: usize,
    /// The link in use; `None` while there is none.
    pub link: Option<LinkStats>,
}

impl PeerStats {
    /// Returns whether something waits for credit or for room: the peer, or the way to it, takes less than it is given.
    ///
    /// It is told to the log when that begins and ends, and counted in [`Traffic::busy`].
    pub fn is_busy(&self) -> bool {
        self.queues.waiting > 0
    }
}

/// A link, since it began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LinkStats {
    /// The smoothed round trip.
    pub round_trip: Duration,
    /// UDP packets that this node sent.
    pub packets_sent: u64,
    /// Of these: how many QUIC believes lost.
    pub packets_lost: u64,
    /// Bytes in UDP packets that this node sent: bodies, and all that frames and QUIC add.
    pub bytes_sent: u64,
    /// The same that came.
    pub bytes_received: u64,
}

/// Looks at all of a node.
pub(crate) fn look(shared: &Arc<Shared>) -> NodeStats {
    let (traffic, live) = shared.accounts.look();
    let mut peers: Vec<_> = live
        .into_iter()
        .filter(|(session, _)| !session.is_ended())
        .map(|(session, traffic)| PeerStats {
            id: session.peer.clone(),
            traffic,
            unreadable: session.unreadable(),
            queues: session.queues(),
            calls: session.calls_waiting(),
            streams: session.streams_waiting(),
            handlers: session.handlers_at_work(),
            link: session.carrier().map(|carrier| {
                let path = carrier.link.path();
                LinkStats {
                    round_trip: path.rtt,
                    packets_sent: path.packets_sent,
                    packets_lost: path.packets_lost,
                    bytes_sent: path.bytes_sent,
                    bytes_received: path.bytes_received,
                }
            }),
        })
        .collect();
    peers.sort_unstable_by(|a, b| a.id.cmp(&b.id));
    let holding = shared.mailboxes.holding();
    let Tallies { membership, registry, admission } = *lock(&shared.tallies);
    NodeStats {
        id: shared.id(),
        uptime: shared.started.elapsed(),
        traffic,
        local_messages: holding.local,
        mailboxes: holding.open,
        unread: holding.unread,
        calls: Rpc::new(shared).stats(),
        incidents: shared.journal.incidents(&shared.packets),
        admission,
        membership,
        registry,
        names: shared.names.counters(),
        peers,
    }
}
