//! What has happened to the calls of a node, and what has gone each way in a session, counted.
//!
//! Sessions count under the locks that they hold anyway, and calls cost more than a counter; so nobody pays for being
//! counted. What ended sessions have counted is kept in one sum.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;

use super::journal::Journal;
use super::lock;
use super::session::Session;
use crate::id::NodeId;
use crate::proto::admission::AdmissionCounters;
use crate::proto::links::SessionId;
use crate::proto::membership::MembershipCounters;
use crate::proto::node::services::RegistryStats;
use crate::wire::Status;

/// Counts that only rise.
#[derive(Debug, Default)]
pub(crate) struct CallCounters {
    pub(crate) made: AtomicU64,
    pub(crate) answered: AtomicU64,
    pub(crate) failed: AtomicU64,
    pub(crate) timed_out: AtomicU64,
    pub(crate) given_up: AtomicU64,
    pub(crate) late: AtomicU64,
    pub(crate) served: AtomicU64,
    pub(crate) overloaded: AtomicU64,
    pub(crate) refused: AtomicU64,
    pub(crate) casts: AtomicU64,
    pub(crate) casts_failed: AtomicU64,
}

impl CallCounters {
    pub(crate) fn count(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Something arrived that nobody waits for.
    pub(crate) fn late(&self) {
        Self::count(&self.late);
    }

    /// A handler was started.
    pub(crate) fn served(&self) {
        Self::count(&self.served);
    }

    /// A call was turned away here.
    pub(crate) fn refused(&self, status: Status) {
        Self::count(if status == Status::Overloaded { &self.overloaded } else { &self.refused });
    }

    /// A cast reached no handler here, or one that did not come to its end.
    pub(crate) fn cast_failed(&self) {
        Self::count(&self.casts_failed);
    }
}

/// What went one way between this node and others, as their applications count it: bytes are those of bodies, without
/// what frames, QUIC and UDP add. Counts only rise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Flow {
    /// Messages to one mailbox each: those that were accepted for sending, or that came to an open mailbox.
    pub messages: u64,
    /// Bytes of these.
    pub message_bytes: u64,
    /// Copies of broadcasts, one for each mailbox.
    pub copies: u64,
    /// Bytes of these, counted for each mailbox, though the body travels once to each node.
    pub copy_bytes: u64,
    /// Requests: of calls, of casts and of streams.
    pub requests: u64,
    /// Bytes of these.
    pub request_bytes: u64,
    /// Answers to calls, items of streams, and replies to questions. A call that failed has none.
    pub answers: u64,
    /// Bytes of these.
    pub answer_bytes: u64,
}

impl Flow {
    /// Returns the bytes of all bodies.
    pub fn bytes(&self) -> u64 {
        self.message_bytes + self.copy_bytes + self.request_bytes + self.answer_bytes
    }

    pub(super) fn message(&mut self, messages: u64, bytes: usize) {
        self.messages += messages;
        self.message_bytes += bytes as u64;
    }

    pub(super) fn copy(&mut self, bytes: usize) {
        self.copies += 1;
        self.copy_bytes += bytes as u64;
    }

    pub(super) fn call(&mut self, is_request: bool, bytes: usize) {
        let (count, sum) = match is_request {
            true => (&mut self.requests, &mut self.request_bytes),
            false => (&mut self.answers, &mut self.answer_bytes),
        };
        *count += 1;
        *sum += bytes as u64;
    }

    fn add(&mut self, other: &Self) {
        self.messages += other.messages;
        self.message_bytes += other.message_bytes;
        self.copies += other.copies;
        self.copy_bytes += other.copy_bytes;
        self.requests += other.requests;
        self.request_bytes += other.request_bytes;
        self.answers += other.answers;
        self.answer_bytes += other.answer_bytes;
    }
}

/// What went between this node and others, and what did not. Counts only rise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Traffic {
    /// What this node sent.
    pub sent: Flow,
    /// What came to this node.
    pub received: Flow,
    /// Messages and copies that were turned away as full, because they would not wait: by
    /// [`try_send`](crate::Address::try_send), and by a broadcast.
    pub full: u64,
    /// Messages and copies that came for a mailbox that is closed. They are not among those received.
    pub undeliverable: u64,
    /// Messages sent that their mailboxes could not read, as far as the peers have told.
    pub refused: u64,
    /// How often the way to a peer became busy: something had to wait for credit or for room, and nothing had before.
    pub busy: u64,
    /// How long messages, requests and answers have waited for credit or for room, all together. Those that wait now are
    /// counted up to now.
    pub blocked: Duration,
}

impl Traffic {
    fn add(&mut self, other: &Self) {
        self.sent.add(&other.sent);
        self.received.add(&other.received);
        self.full += other.full;
        self.undeliverable += other.undeliverable;
        self.refused += other.refused;
        self.busy += other.busy;
        self.blocked += other.blocked;
    }
}

/// What waits between this node and a peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Queues {
    /// Messages, requests and answers that wait for credit or for room: not accepted yet.
    pub waiting: u64,
    /// Bytes of accepted messages that are not written yet, each with 128 bytes more than its body, of those that share
    /// streams: see [`Config::send_buffer`](crate::Config::send_buffer).
    pub buffered: u64,
    /// The same of messages that have a stream of their own: see [`Config::bulk_buffer`](crate::Config::bulk_buffer).
    pub bulk_buffered: u64,
    /// Bytes of accepted requests and answers that are not written yet, the small and the large.
    pub calls_buffered: u64,
    /// Bytes of the peer's messages in mailboxes of this node that are not read yet, each with 128 bytes more than its
    /// body.
    pub unread: u64,
    /// Packets of membership that are not sent yet.
    pub packets: u64,
}

/// How long something waits for a peer, all together, and how often that began.
#[derive(Debug)]
pub(crate) struct Pressure {
    peer: NodeId,
    state: Mutex<PressureState>,
}

#[derive(Debug)]
struct PressureState {
    waiting: u64,
    episodes: u64,
    blocked: Duration,
    /// Up to when `blocked` was counted.
    counted: Instant,
}

impl PressureState {
    fn advance(&mut self) {
        let now = Instant::now();
        let times = u32::try_from(self.waiting).unwrap_or(u32::MAX);
        self.blocked += now.saturating_duration_since(self.counted).saturating_mul(times);
        self.counted = now;
    }
}

/// Something that waits, until it is dropped.
#[derive(Debug)]
pub(crate) struct Blocked(Arc<Pressure>);

impl Pressure {
    pub(super) fn new(peer: NodeId) -> Arc<Self> {
        let state = PressureState { waiting: 0, episodes: 0, blocked: Duration::ZERO, counted: Instant::now() };
        Arc::new(Self { peer, state: Mutex::new(state) })
    }

    /// Something waits. Not under a lock: the log is told.
    pub(super) fn enter(self: &Arc<Self>) -> Blocked {
        let mut state = lock(&self.state);
        state.advance();
        state.waiting += 1;
        let is_news = state.waiting == 1;
        state.episodes += u64::from(is_news);
        drop(state);
        if is_news {
            Journal::busy(&self.peer, true);
        }
        Blocked(self.clone())
    }

    /// How many wait, how often that began, and for how long it was.
    pub(super) fn look(&self) -> (u64, u64, Duration) {
        let mut state = lock(&self.state);
        state.advance();
        (state.waiting, state.episodes, state.blocked)
    }
}

impl Drop for Blocked {
    fn drop(&mut self) {
        let mut state = lock(&self.0.state);
        state.advance();
        state.waiting -= 1;
        let is_news = state.waiting == 0;
        drop(state);
        if is_news {
            Journal::busy(&self.0.peer, false);
        }
    }
}

/// The sessions of a node, and what those that are over have counted.
#[derive(Debug, Default)]
pub(crate) struct Accounts(Mutex<Books>);

#[derive(Debug, Default)]
struct Books {
    live: HashMap<SessionId, Arc<Session>>,
    ended: Traffic,
}

impl Accounts {
    pub(super) fn open(&self, session: &Arc<Session>) {
        lock(&self.0).live.insert(session.id, session.clone());
    }

    /// The session has ended, and counts nothing more.
    pub(super) fn close(&self, session: SessionId) {
        let mut books = lock(&self.0);
        if let Some(session) = books.live.remove(&session) {
            books.ended.add(&session.traffic());
        }
    }

    /// What all sessions have counted, and those that live with what each has.
    pub(crate) fn look(&self) -> (Traffic, Vec<(Arc<Session>, Traffic)>) {
        let books = lock(&self.0);
        let mut all = books.ended;
        let live: Vec<_> = books.live.values().map(|session| (session.clone(), session.traffic())).collect();
        drop(books);
        live.iter().for_each(|(_, traffic)| all.add(traffic));
        (all, live)
    }
}

/// What the machines of the node task have counted, as of its last turn.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tallies {
    pub(crate) membership: MembershipCounters,
    pub(crate) registry: RegistryStats,
    pub(crate) admission: AdmissionCounters,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An episode lasts from the first that waits to the last; what each has waited is summed.
    #[tokio::test(start_paused = true)]
    async fn an_episode_is_counted_once_and_each_wait_in_full() {
        let second = Duration::from_secs(1);
        let pressure = Pressure::new(NodeId::new("a@h".parse().unwrap(), 1));
        assert_eq!(pressure.look(), (0, 0, Duration::ZERO));
        let first = pressure.enter();
        tokio::time::advance(second).await;
        let later = pressure.enter();
        assert_eq!(pressure.look(), (2, 1, second));
        tokio::time::advance(second).await;
        drop(first);
        tokio::time::advance(second).await;
        assert_eq!(pressure.look(), (1, 1, 4 * second), "who waits now is counted up to now");
        drop(later);
        tokio::time::advance(second).await;
        assert_eq!(pressure.look(), (0, 1, 4 * second));
        drop(pressure.enter());
        assert_eq!(pressure.look(), (0, 2, 4 * second));
    }
}
