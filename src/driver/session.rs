//! The data plane of one session: what handles put in, what links take out, and the other way round.
//!
//! Handles and links meet here without the node task. Two locks, each held for a few moves: `out` for all that leaves,
//! `inn` for all that arrives; who needs both takes `inn` first. The rules are in [`proto::lanes`](crate::proto::lanes).

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::carrier::Carrier;
use super::counters::{Flow, Pressure, Queues, Traffic};
use super::delivery::{Letter, Run};
use super::exchange::{Exchange, LargeCall, Terms};
use super::journal::target;
use super::packets::Doorway;
use super::sequence::Sequence;
use super::waiting::{Refused, Taken, Waiters, Waiting, refuse_all};
use super::{PoolChange, Shared, lock};
use crate::config::Config;
use crate::error::DownReason;
use crate::id::NodeId;
use crate::proto::hello::Peer;
use crate::proto::lanes::{
    self, Accepted, Grant, Inbound, InboundLimits, MESSAGE_COST, Offer, Offered, Outbound, Pool, Ticket, Violation,
};
use crate::proto::links::{LinkId, SessionId};
use crate::proto::monitor::{Told, WatchId};
use crate::wire::services::monitor::{CUTS_MAX, Cut};
use crate::wire::services::{Monitor, Service, put_numbered};
use crate::wire::{
    COPIES_MAX, COPY_MAX, Code, Control, CopiesHead, Frame, MessageHead, NodeFlags, OVERHEAD_MAX, Schema, StreamKind,
    Trace, Unreadable, WireError, put_message_head, put_schema,
};

/// How many kinds of message one side may declare in one session.
pub(super) const SCHEMAS_MAX: u64 = 4096;

/// How many mailboxes that do not exist a peer may name faster than it reads that they do not.
const CLOSES_MAX: usize = 64 * 1024;

/// How many frames of copies may wait for the peer's answer.
pub(super) const COPIES_WAITING_MAX: usize = 16 * 1024;

/// What a frame of copies adds to its body beside the copies, in bytes: an upper bound.
const COPIES_HEAD_MAX: usize = 128;

/// What answers to such frames may take that a peer does not read, in bytes.
const ANSWERS_MAX: usize = 1 << 20;

/// Bytes of service frames that wait for a link, and one frame more. A peer that asks for more answers than it reads ends
/// its session.
const SERVICES_MAX: usize = 16 * 1024 * 1024;

/// A body on its way out.
#[derive(Clone, Debug)]
pub(crate) enum Body<'a> {
    /// In a buffer that is used again.
    Borrowed(&'a [u8]),
    Owned(Bytes),
}

impl Body<'_> {
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Borrowed(bytes) => bytes.len(),
            Self::Owned(bytes) => bytes.len(),
        }
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Self::Borrowed(bytes) => bytes,
            Self::Owned(bytes) => bytes,
        }
    }

    pub(crate) fn into_owned(self) -> Bytes {
        match self {
            Self::Borrowed(bytes) => Bytes::copy_from_slice(bytes),
            Self::Owned(bytes) => bytes,
        }
    }
}

/// Messages that the peer could not read, by reason.
#[derive(Debug, Default)]
pub(crate) struct Refusals([AtomicU64; Unreadable::ALL.len()]);

impl Refusals {
    pub(crate) fn add(&self, reason: Unreadable, messages: u64) {
        self.0[reason as usize - 1].fetch_add(messages, Ordering::Relaxed);
    }

    pub(crate) fn count(&self, reason: Unreadable) -> u64 {
        self.0[reason as usize - 1].load(Ordering::Relaxed)
    }
}

/// What waits for a link: the message of a lane, with all but its number.
#[derive(Debug)]
struct Item {
    schema: u64,
    trace: Option<Trace>,
    body: Bytes,
}

/// A frame for a stream of its own.
#[derive(Debug)]
struct Bulk {
    schema: u64,
    /// All of the frame but its body.
    head: Vec<u8>,
    body: Bytes,
    /// Of the room.
    cost: u64,
}

/// A message that was offered to several mailboxes of one peer.
#[derive(Debug)]
pub(crate) struct Copies {
    /// At the place of each mailbox, whether a copy went to it.
    pub(crate) offered: Vec<Result<(), Refused>>,
    /// The frames that they went in: for how many mailboxes each, and which of these turn out not to exist. That is never
    /// said when the session ends before.
    pub(crate) frames: Vec<(usize, oneshot::Receiver<Vec<u64>>)>,
}

/// What a frame of a call counts for: whether it is a request, and the size of its body.
pub(super) type Counted = Option<(bool, usize)>;

/// The association with one life of one peer.
pub(crate) struct Session {
    pub(crate) id: SessionId,
    pub(crate) peer: NodeId,
    pub(crate) peer_flags: NodeFlags,
    /// The largest body that both sides take.
    pub(crate) message_max: usize,
    /// Messages of this side that the peer could not read.
    pub(crate) refusals: Refusals,
    /// Messages of the peer that mailboxes here could not read.
    unreadable: AtomicU64,
    pub(super) pressure: Arc<Pressure>,
    pub(super) shared: std::sync::Weak<Shared>,
    /// The node's, of which lanes have what they hold beyond their first windows. Locked after `inn`.
    pool: Arc<Mutex<Pool>>,
    bulk_from: usize,
    lanes: usize,
    call_streams: usize,
    out: Mutex<Out>,
    /// How many sends wait.
    sends_waiting: Arc<AtomicUsize>,
    pub(super) inn: Mutex<In>,
    pub(super) exchange: Exchange,
    /// See [`Session::drained`].
    is_drained: AtomicBool,
    services: Mutex<Sequence>,
    /// Whoever has it hands over service frames: those of two links are not to overtake each other on the way.
    services_turn: tokio::sync::Mutex<()>,
    /// How many watches of this side depend on the session.
    watches: AtomicUsize,
    /// What frames that have begun and are not complete may take, over all links.
    assembly: Arc<Semaphore>,
}

struct Out {
    lanes: Outbound<Item>,
    sent: Flow,
    /// Messages and copies that would not wait.
    full: u64,
    schemas: Vec<Schema>,
    schema_ids: HashMap<Schema, u64>,
    /// What the lane and call streams and that of the services write next.
    channels: Vec<Buffer>,
    bodies: VecDeque<Bulk>,
    /// Frames of copies that the peer has not answered, by their ids.
    copies: HashMap<u64, oneshot::Sender<Vec<u64>>>,
    last_copies: u64,
    /// Answers to the peer's, as frames.
    answers: Vec<u8>,
    /// How many service frames were queued.
    services: u64,
    /// What was declared for calls, and the large frames of calls.
    terms: Terms,
    large_calls: VecDeque<LargeCall>,
    grants: BTreeMap<u64, Grant>,
    /// Requests for credit, and credit given back, as the frames that say so.
    needs: BTreeMap<u64, Control>,
    returns: BTreeMap<u64, Control>,
    closes: BTreeSet<u64>,
    short: Option<lanes::Short>,
    spare: bool,
    /// Messages of the peer that could not be read, by reason, since it was told.
    refused: [u64; Unreadable::ALL.len()],
    /// The link that this side sends on.
    carrier: Option<Arc<Carrier>>,
    /// A link was asked for since the last one.
    wanted: bool,
    waiting: Waiters,
    /// Nothing more is taken; what was taken is still written.
    closing: bool,
    ended: Option<DownReason>,
    scratch: Vec<lanes::Output<Item>>,
}

#[derive(Debug, Default)]
struct Buffer {
    bytes: Vec<u8>,
    cost: u64,
}

pub(super) struct In {
    pub(super) lanes: Inbound<Letter>,
    /// Messages and copies; what arrives of calls is counted elsewhere.
    pub(super) received: Flow,
    /// Messages and copies for mailboxes that are closed.
    pub(super) undeliverable: u64,
    /// By their numbers, which the peer counts up.
    pub(super) schemas: Vec<Option<Arc<Schema>>>,
    pub(super) ready: Vec<Letter>,
    /// What a delivery gathers; empty between two.
    pub(super) run: Run,
    /// Notices that come after messages which are not delivered, by the mailbox and the number of the message that may
    /// come after them.
    parked: BTreeMap<(u64, u64), Vec<(WatchId, Told)>>,
    /// How many messages and service frames had been delivered when the last link ended and one was missing.
    gap_at: Option<u64>,
    pub(super) ended: bool,
}

impl In {
    /// Takes the notices whose turn has come.
    pub(super) fn due_notices(&mut self) -> Vec<(WatchId, Told)> {
        let mut due = Vec::new();
        if !self.parked.is_empty() {
            let lanes = &self.lanes;
            self.parked.retain(|(mailbox, number), notices| {
                let is_early = lanes.next_number(*mailbox) < *number;
                if !is_early {
                    due.append(notices);
                }
                is_early
            });
        }
        due
    }
}

/// What a writer got.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Take {
    Bytes {
        cost: u64,
    },
    Empty,
    /// Another link carries what comes next, or nothing comes.
    Detached,
}

/// A body for a stream of its own.
#[derive(Debug)]
pub(crate) struct OwnStream {
    /// All of its frames but the body of the last.
    pub(crate) head: Vec<u8>,
    pub(crate) body: Bytes,
    /// Of the room.
    pub(crate) cost: u64,
}

impl Bulk {
    fn message(head: &MessageHead, body: Bytes) -> Self {
        let mut bytes = Vec::new();
        put_message_head(&mut bytes, head, body.len());
        Self { schema: head.schema, head: bytes, cost: body.len() as u64 + MESSAGE_COST, body }
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("id", &self.id).field("peer", &self.peer).finish_non_exhaustive()
    }
}

impl Session {
    pub(crate) fn new(id: SessionId, peer: &Peer, shared: &Arc<Shared>) -> Arc<Self> {
        let config: &Config = &shared.config;
        let limits = InboundLimits {
            window: config.lane_window as u64,
            window_max: config.lane_window_max as u64,
            lanes_max: config.lanes_max,
            message_max: config.message_max as u64,
            windows_max: config.window_budget as u64,
            large_max: config.bulk_budget as u64,
        };
        let waiting = Waiters::default();
        let sends_waiting = waiting.count.clone();
        let pressure = Pressure::new(peer.id.clone());
        Arc::new(Self {
            id,
            peer: peer.id.clone(),
            peer_flags: peer.flags,
            message_max: config.message_max.min(peer.message_max as usize),
            refusals: Refusals::default(),
            is_drained: AtomicBool::new(false),
            unreadable: AtomicU64::new(0),
            shared: Arc::downgrade(shared),
            pool: shared.pool.clone(),
            bulk_from: config.bulk_from,
            lanes: config.lanes,
            call_streams: config.call_streams,
            out: Mutex::new(Out {
                lanes: Outbound::new(
                    peer.first_credit.into(),
                    peer.lanes_max as usize,
                    config.send_buffer as u64,
                    config.bulk_buffer as u64,
                ),
                sent: Flow::default(),
                full: 0,
                schemas: Vec::new(),
                schema_ids: HashMap::new(),
                channels: (0..=config.lanes + config.call_streams).map(|_| Buffer::default()).collect(),
                services: 0,
                bodies: VecDeque::new(),
                copies: HashMap::new(),
                last_copies: 0,
                answers: Vec::new(),
                terms: Terms::default(),
                large_calls: VecDeque::new(),
                grants: BTreeMap::new(),
                needs: BTreeMap::new(),
                returns: BTreeMap::new(),
                closes: BTreeSet::new(),
                short: None,
                spare: false,
                refused: Default::default(),
                carrier: None,
                wanted: false,
                waiting,
                closing: false,
                ended: None,
                scratch: Vec::new(),
            }),
            sends_waiting,
            inn: Mutex::new(In {
                lanes: Inbound::new(id.0, limits),
                received: Flow::default(),
                undeliverable: 0,
                schemas: Vec::new(),
                ready: Vec::new(),
                run: Run::default(),
                parked: BTreeMap::new(),
                gap_at: None,
                ended: false,
            }),
            exchange: Exchange::new(config, &pressure),
            pressure,
            services: Mutex::default(),
            services_turn: tokio::sync::Mutex::default(),
            watches: AtomicUsize::new(0),
            // One message always fits.
            assembly: Arc::new(Semaphore::new(config.bulk_budget.max(config.message_max + OVERHEAD_MAX))),
        })
    }

    // What handles do.

    /// The number of a schema in this session; `None` when it has as many as a peer takes.
    pub(crate) fn declare(&self, schema: &Schema) -> Option<u64> {
        let mut out = lock(&self.out);
        if let Some(id) = out.schema_ids.get(schema) {
            return Some(*id);
        }
        let id = out.schemas.len() as u64;
        if id >= SCHEMAS_MAX {
            return None;
        }
        out.schemas.push(schema.clone());
        out.schema_ids.insert(schema.clone(), id);
        Some(id)
    }

    /// Takes a message for a mailbox of the peer. What is accepted is written in the order of acceptance.
    pub(crate) fn offer(
        self: &Arc<Self>,
        mailbox: u64,
        schema: u64,
        trace: Option<Trace>,
        body: Body<'_>,
        wait: bool,
    ) -> Result<Taken, Refused> {
        let mut guard = lock(&self.out);
        let out = &mut *guard;
        if out.closing {
            return Err(Refused::SessionEnded);
        }
        let bulk = lanes::is_bulk(body.len(), self.bulk_from);
        let offer = Offer { mailbox, body: body.len(), bulk, wait };
        let item = || Item { schema, trace, body: body.clone().into_owned() };
        let (size, mut starts_waiting) = (body.len(), false);
        let mut taken = match out.lanes.offer(offer, item, &mut out.scratch) {
            Offered::Accepted(number) => {
                out.sent.message(1, size);
                let message = MessageHead { mailbox, number, schema, trace };
                if bulk {
                    self.enqueue_bulk(out, Bulk::message(&message, body.into_owned()));
                } else {
                    self.enqueue(out, &message, body.bytes());
                }
                Ok(Taken::Accepted)
            }
            Offered::Waits(ticket) => {
                let (done, outcome) = oneshot::channel();
                out.waiting.insert(ticket, done);
                starts_waiting = out.waiting.len() == 1;
                Ok(Taken::Waits(Waiting { session: self.clone(), mailbox, ticket, outcome, _blocked: None }))
            }
            Offered::Full => {
                out.full += 1;
                Err(Refused::Full)
            }
            Offered::Closed => Err(Refused::MailboxClosed),
            Offered::TooMany => Err(Refused::TooManyMailboxes),
        };
        self.settle(out);
        let carrier = out.carrier.clone().filter(|_| starts_waiting);
        self.unlock_and_want(guard);
        if let Some(carrier) = carrier {
            carrier.work_began();
        }
        if let Ok(Taken::Waits(waiting)) = &mut taken {
            waiting._blocked = Some(self.pressure.enter());
        }
        taken
    }

    /// Takes one message for several mailboxes of the peer, where that needs no waiting. The body goes once in each frame,
    /// on a stream of that number.
    pub(crate) fn offer_copies(
        &self,
        mailboxes: &[u64],
        schema: u64,
        trace: Option<Trace>,
        body: &Bytes,
        stream: u64,
    ) -> Copies {
        let mut copies = Copies { offered: Vec::with_capacity(mailboxes.len()), frames: Vec::new() };
        let bulk = lanes::is_bulk(body.len(), self.bulk_from);
        // The peer takes no longer frame: next to a body as large as may be, there is room for a few.
        let spare = (self.message_max + OVERHEAD_MAX).saturating_sub(body.len() + COPIES_HEAD_MAX);
        let most = (spare / COPY_MAX).clamp(1, COPIES_MAX);
        let mut guard = lock(&self.out);
        let out = &mut *guard;
        for mailboxes in mailboxes.chunks(most) {
            if out.closing || out.copies.len() >= COPIES_WAITING_MAX {
                let refused = if out.closing { Refused::SessionEnded } else { Refused::Full };
                out.full += if out.closing { 0 } else { mailboxes.len() as u64 };
                copies.offered.extend(mailboxes.iter().map(|_| Err(refused)));
                continue;
            }
            let mut to = Vec::with_capacity(mailboxes.len());
            let offered = out.lanes.offer_copies(mailboxes, body.len(), bulk, &mut out.scratch);
            copies.offered.extend(mailboxes.iter().zip(offered).map(|(mailbox, offered)| match offered {
                Offered::Accepted(number) => {
                    out.sent.copy(body.len());
                    to.push((*mailbox, number));
                    Ok(())
                }
                Offered::Closed => Err(Refused::MailboxClosed),
                Offered::TooMany => Err(Refused::TooManyMailboxes),
                Offered::Full | Offered::Waits(_) => {
                    out.full += 1;
                    Err(Refused::Full)
                }
            }));
            if to.is_empty() {
                continue;
            }
            let (done, answer) = oneshot::channel();
            out.last_copies += 1;
            out.copies.insert(out.last_copies, done);
            copies.frames.push((to.len(), answer));
            let cost = lanes::copies_cost(body.len(), to.len());
            let head = CopiesHead { id: out.last_copies, schema, trace, to };
            if bulk {
                let mut bytes = Vec::new();
                head.put(&mut bytes, body.len());
                self.enqueue_bulk(out, Bulk { schema, head: bytes, body: body.clone(), cost });
            } else {
                let channel = (stream % self.lanes as u64) as usize;
                self.enqueue_on(out, channel, cost, |bytes| {
                    head.put(bytes, body.len());
                    bytes.extend_from_slice(body);
                });
            }
        }
        self.settle(out);
        self.unlock_and_want(guard);
        copies
    }

    /// The peer has a frame of copies.
    pub(crate) fn copies_delivered(&self, id: u64, closed: Vec<u64>) -> Result<(), Code> {
        let done = lock(&self.out).copies.remove(&id).ok_or(Code::PROTOCOL)?;
        // Whoever waited may have given up.
        let _ = done.send(closed);
        Ok(())
    }

    /// Tells the peer that frames of copies have come, each with the mailboxes in it that do not exist.
    pub(super) fn answer_copies(&self, delivered: Vec<(u64, Vec<u64>)>) -> Result<(), Code> {
        let mut unread = 0;
        self.push_control(|out| {
            for (id, closed) in delivered {
                Control::Delivered { id, closed }.encode(&mut out.answers);
            }
            unread = out.answers.len();
        });
        if unread > ANSWERS_MAX { Err(Code::LIMIT) } else { Ok(()) }
    }

    pub(super) fn take_back(&self, mailbox: u64, ticket: Ticket) -> bool {
        let mut guard = lock(&self.out);
        let out = &mut *guard;
        let waited = out.waiting.remove(&ticket).is_some();
        if waited {
            let _ = out.lanes.cancel(mailbox, ticket, &mut out.scratch);
            self.settle(out);
            // Who waited behind it may go, on a link that is not there.
            self.unlock_and_want(guard);
        }
        waited
    }

    /// How many calls are open, of either side, sends wait, and watches are armed: whoever waits wants to know of the peer's
    /// end.
    pub(super) fn outstanding(&self) -> usize {
        self.exchange.open() + self.sends_waiting.load(Ordering::Acquire) + self.watches.load(Ordering::Acquire)
    }

    /// The peer leaves, and has answered all that it began: what waits for it by the end was not done.
    pub(super) fn drained(&self) {
        self.is_drained.store(true, Ordering::Release);
    }

    /// Whether it ends, or has ended: it takes nothing more.
    pub(super) fn is_closing(&self) -> bool {
        lock(&self.out).closing
    }

    pub(crate) fn is_ended(&self) -> bool {
        lock(&self.out).ended.is_some()
    }

    // What the node task does.

    /// From now on, this link carries what leaves.
    pub(crate) fn attach(&self, carrier: &Arc<Carrier>) {
        let mut out = lock(&self.out);
        if out.ended.is_some() {
            return;
        }
        let old = out.carrier.replace(carrier.clone());
        out.wanted = false;
        for (channel, _) in out.channels.iter().enumerate().filter(|(_, buffer)| !buffer.bytes.is_empty()) {
            carrier.signal(channel);
        }
        if !out.bodies.is_empty() {
            (0..out.bodies.len()).for_each(|_| carrier.signal_body());
        }
        (0..out.large_calls.len()).for_each(|_| carrier.signal_large_call());
        carrier.signal_control();
        drop(out);
        if let Some(old) = old {
            old.signal_all();
        }
        carrier.work_began();
    }

    /// The link carries nothing new, because it stops. For a code that ends the session what was taken is still written.
    pub(crate) fn detach(&self, link: LinkId, code: Code) {
        let mut out = lock(&self.out);
        if !code.keeps_session() {
            out.closing = true;
            let refused: Vec<_> = out.waiting.drain();
            out.lanes.drain_waiting();
            drop(out);
            refuse_all(refused);
            return;
        }
        if out.carrier.as_ref().is_some_and(|carrier| carrier.id == link) {
            out.carrier = None;
        }
        self.unlock_and_want(out);
    }

    /// The link that this side sends on.
    pub(crate) fn carrier(&self) -> Option<Arc<Carrier>> {
        lock(&self.out).carrier.clone()
    }

    /// Whether something waits for a link.
    pub(crate) fn is_pending(&self) -> bool {
        lock(&self.out).is_pending() || self.outstanding() > 0
    }

    /// Ends the session: nothing is taken or delivered from now on, and whoever waits is told.
    pub(crate) fn end(&self, reason: DownReason) {
        // Under the lock of delivery: what was delivered was delivered before.
        let mut inn = lock(&self.inn);
        inn.ended = true;
        let parked = std::mem::take(&mut inn.parked);
        let mut pool = lock(&self.pool);
        inn.lanes.end(&mut pool);
        let change = PoolChange::of(&mut pool);
        drop(pool);
        drop(inn);
        if let Some(shared) = self.shared.upgrade() {
            parked.into_values().flatten().for_each(|(watch, fate)| shared.monitors.deliver(watch, fate));
        }
        lock(&self.services).end();
        let mut out = lock(&self.out);
        out.ended = Some(reason);
        out.closing = true;
        out.carrier = None;
        let refused: Vec<_> = out.waiting.drain();
        out.lanes.drain_waiting();
        out.channels.iter_mut().for_each(|buffer| *buffer = Buffer::default());
        out.bodies.clear();
        out.copies.clear();
        out.answers.clear();
        out.large_calls.clear();
        drop(out);
        refuse_all(refused);
        self.exchange.end(self.is_drained.load(Ordering::Acquire));
        self.tell_others(change);
    }

    /// Queues a service frame. False when the peer has left too many unread.
    ///
    /// The cuts of a mailbox's end are filled in here, where messages have their numbers. What has more of them than a frame
    /// holds goes in several.
    pub(crate) fn push_service(&self, service: Service) -> bool {
        let channel = self.services_channel();
        let mut guard = lock(&self.out);
        let out = &mut *guard;
        if out.ended.is_some() {
            return true;
        }
        let buffer = &mut out.channels[channel];
        if buffer.bytes.len() >= SERVICES_MAX {
            return false;
        }
        let was_empty = buffer.bytes.is_empty();
        let mut put = |service: &Service| {
            buffer.cost += u64::from(!service.is_background());
            put_numbered(&mut buffer.bytes, out.services, service);
            out.services += 1;
        };
        match service {
            Service::Monitor(Monitor::Down { serial, gone, cuts }) if !cuts.is_empty() => {
                for some in cuts.chunks(CUTS_MAX) {
                    let cuts = some.iter().map(|Cut { mailbox, .. }| {
                        let (mailbox, number) = (*mailbox, out.lanes.next_number(*mailbox));
                        Cut { mailbox, number }
                    });
                    put(&Service::Monitor(Monitor::Down { serial, gone, cuts: cuts.collect() }));
                }
            }
            service => put(&service),
        }
        if let Some(carrier) = out.carrier.as_ref().filter(|_| was_empty) {
            carrier.signal(channel);
        }
        self.unlock_and_want(guard);
        true
    }

    /// So many watches of this side depend on the session: as long as there are some, its link asks for signs of life.
    pub(crate) fn armed(&self, watches: usize) {
        let had_any = self.watches.swap(watches, Ordering::AcqRel) > 0;
        if let Some(carrier) = self.carrier().filter(|_| watches > 0 && !had_any) {
            carrier.work_began();
        }
    }

    /// A mailbox of this node has closed.
    pub(crate) fn close_mailbox(&self, mailbox: u64) {
        let is_known = self.with_lanes(|lanes, pool, grants| lanes.close(mailbox, pool, grants));
        if is_known == Some(true) {
            self.push_control(|out| {
                out.closes.insert(mailbox);
                out.grants.remove(&mailbox);
            });
        }
    }

    /// Delivers the notice of a watch after the messages below that number in its mailbox's lane.
    pub(super) fn park(&self, mailbox: u64, number: u64, watch: WatchId, told: Told) {
        let Some(shared) = self.shared.upgrade() else { return };
        let mut inn = lock(&self.inn);
        if inn.ended || inn.lanes.next_number(mailbox) >= number {
            // Not under the lock: a notice that nobody takes is the user's to drop.
            drop(inn);
            return shared.monitors.deliver(watch, told);
        }
        // Whoever cancels it from now on finds it here.
        if shared.monitors.is_waiting(watch) {
            inn.parked.entry((mailbox, number)).or_default().push((watch, told));
        }
    }

    /// Nobody waits for the notice any more.
    pub(super) fn unpark(&self, mailbox: u64, number: u64, watch: WatchId) {
        let mut inn = lock(&self.inn);
        if let Some(notices) = inn.parked.get_mut(&(mailbox, number)) {
            notices.retain(|(parked, _)| *parked != watch);
            if notices.is_empty() {
                inn.parked.remove(&(mailbox, number));
            }
        }
    }

    /// How many notices wait for messages.
    #[cfg(test)]
    pub(super) fn parked(&self) -> usize {
        lock(&self.inn).parked.values().map(Vec::len).sum()
    }

    // What links do: sending.

    /// Moves what waits for a stream into `bytes`, which is empty. `declared` counts the schemas said on this stream.
    pub(crate) fn take(&self, link: LinkId, channel: usize, declared: &mut usize, bytes: &mut Vec<u8>) -> Take {
        let mut out = lock(&self.out);
        if out.carrier.as_ref().is_none_or(|carrier| carrier.id != link) {
            return Take::Detached;
        }
        if out.channels[channel].bytes.is_empty() {
            return if out.closing { Take::Detached } else { Take::Empty };
        }
        match self.kind_of(channel) {
            StreamKind::Services => {}
            StreamKind::Lane if *declared < out.schemas.len() => {
                for (id, schema) in out.schemas.iter().enumerate().skip(*declared) {
                    put_schema(bytes, id as u64, schema);
                }
                *declared = out.schemas.len();
            }
            StreamKind::Lane => {}
            _ => out.terms.declare(declared, bytes),
        }
        let buffer = &mut out.channels[channel];
        if bytes.is_empty() {
            std::mem::swap(bytes, &mut buffer.bytes);
        } else {
            bytes.append(&mut buffer.bytes);
        }
        Take::Bytes { cost: std::mem::take(&mut buffer.cost) }
    }

    /// What was taken has been handed to QUIC.
    pub(crate) fn written(&self, channel: usize, cost: u64) {
        match self.kind_of(channel) {
            StreamKind::Lane => {}
            StreamKind::Services => return,
            _ => return self.exchange.written(cost),
        }
        let mut out = lock(&self.out);
        let out = &mut *out;
        out.lanes.written(cost, false, &mut out.scratch);
        self.settle(out);
    }

    /// The next body for a stream of its own.
    pub(crate) fn take_body(&self, link: LinkId) -> Result<Option<OwnStream>, ()> {
        let mut out = lock(&self.out);
        if out.carrier.as_ref().is_none_or(|carrier| carrier.id != link) {
            return Err(());
        }
        match out.bodies.pop_front() {
            Some(Bulk { schema, head: rest, body, cost }) => {
                let mut head = Vec::new();
                put_schema(&mut head, schema, &out.schemas[schema as usize]);
                head.extend_from_slice(&rest);
                Ok(Some(OwnStream { head, body, cost }))
            }
            None if out.closing => Err(()),
            None => Ok(None),
        }
    }

    pub(crate) fn body_written(&self, cost: u64) {
        let mut out = lock(&self.out);
        let out = &mut *out;
        out.lanes.written(cost, true, &mut out.scratch);
        self.settle(out);
    }

    /// Appends the session's control frames.
    pub(crate) fn take_control(&self, link: LinkId, bytes: &mut Vec<u8>) {
        let mut out = lock(&self.out);
        if out.carrier.as_ref().is_none_or(|carrier| carrier.id != link) {
            return;
        }
        for Grant { mailbox, seq, limit } in std::mem::take(&mut out.grants).into_values() {
            Control::Grant { mailbox, seq, limit }.encode(bytes);
        }
        // A lane that asks again after it gave back means the later.
        let (returns, needs) = (std::mem::take(&mut out.returns), std::mem::take(&mut out.needs));
        returns.into_values().chain(needs.into_values()).for_each(|frame| frame.encode(bytes));
        if let Some(lanes::Short { seq, on }) = out.short.take() {
            Control::Short { seq, on }.encode(bytes);
        }
        if std::mem::take(&mut out.spare) {
            Control::Spare.encode(bytes);
        }
        for (reason, messages) in Unreadable::ALL.into_iter().zip(std::mem::take(&mut out.refused)) {
            if messages > 0 {
                Control::Refused { reason, messages }.encode(bytes);
            }
        }
        for mailbox in std::mem::take(&mut out.closes) {
            Control::Closed { mailbox }.encode(bytes);
        }
        bytes.append(&mut out.answers);
    }

    // What links do: receiving.

    /// Takes a service frame, and hands over those whose turn it is. Waits for room at the node task.
    ///
    /// # Cancel safety
    /// What was not handed over waits for the next that arrives.
    pub(super) async fn receive_service(&self, number: u64, frame: Frame, doorway: &Doorway) -> Result<(), Code> {
        lock(&self.services).arrived(number, frame)?;
        let _turn = self.services_turn.lock().await;
        loop {
            let next = lock(&self.services).peek();
            let Some(next) = next else { return Ok(()) };
            let bytes = next.body.len();
            let kind = next.kind;
            match Service::decode(next).map_err(wire_code)? {
                Some(service) => {
                    let Some(room) = doorway.room_for_service(bytes).await else { return Ok(()) };
                    room.send(service);
                }
                None => {
                    if let Some(shared) = self.shared.upgrade() {
                        shared.journal.skipped(&self.peer, kind);
                    }
                }
            }
            lock(&self.services).advance();
        }
    }

    /// Tells the peer that these mailboxes do not exist.
    pub(super) fn refuse_mailboxes(&self, mailboxes: &[u64]) -> Result<(), Code> {
        let mut unread = 0;
        self.push_control(|out| {
            out.closes.extend(mailboxes);
            unread = out.closes.len();
        });
        if unread > CLOSES_MAX { Err(Code::LIMIT) } else { Ok(()) }
    }

    /// Messages of that cost were read by their mailbox, or thrown away.
    pub(crate) fn consumed(&self, mailbox: u64, cost: u64) {
        self.with_lanes(|lanes, pool, grants| lanes.consumed(mailbox, cost, pool, grants));
    }

    /// A mailbox could not read a message.
    pub(crate) fn refused(&self, reason: Unreadable) {
        self.unreadable.fetch_add(1, Ordering::Relaxed);
        self.push_control(|out| out.refused[reason as usize - 1] += 1);
    }

    /// The node's pool has changed.
    pub(super) fn pool_changed(&self) -> PoolChange {
        let change = self.change_lanes(|lanes, pool, grants| lanes.supply_waiting(pool, grants));
        change.map(|(_, change)| change).unwrap_or_default()
    }

    /// Does something with the receiving lanes, and tells the peer, and other sessions, what follows from it. `None` once
    /// the session has ended.
    fn with_lanes<R>(&self, act: impl FnOnce(&mut Inbound<Letter>, &mut Pool, &mut Vec<Grant>) -> R) -> Option<R> {
        let (result, change) = self.change_lanes(act)?;
        self.tell_others(change);
        Some(result)
    }

    fn tell_others(&self, change: PoolChange) {
        if !change.is_nothing()
            && let Some(shared) = self.shared.upgrade()
        {
            shared.pool_changed(change);
        }
    }

    fn change_lanes<R>(
        &self,
        act: impl FnOnce(&mut Inbound<Letter>, &mut Pool, &mut Vec<Grant>) -> R,
    ) -> Option<(R, PoolChange)> {
        let mut inn = lock(&self.inn);
        if inn.ended {
            return None;
        }
        let mut grants = Vec::new();
        let mut pool = lock(&self.pool);
        let result = act(&mut inn.lanes, &mut pool, &mut grants);
        let short = inn.lanes.shortage(&pool);
        let spare = inn.lanes.take_pressed();
        let change = PoolChange::of(&mut pool);
        drop(pool);
        drop(inn);
        if !grants.is_empty() || short.is_some() || spare {
            self.push_control(|out| {
                out.add_grants(&grants);
                // Made under another lock, so an older one may come after a newer.
                if short.is_some_and(|short| out.short.is_none_or(|newest| newest.seq < short.seq)) {
                    out.short = short;
                }
                out.spare |= spare;
            });
        }
        Some((result, change))
    }

    pub(crate) fn granted(&self, grant: Grant) {
        let mut guard = lock(&self.out);
        let out = &mut *guard;
        out.lanes.granted(grant, &mut out.scratch);
        self.settle(out);
    }

    pub(crate) fn mailbox_closed(&self, mailbox: u64) {
        if let Some(shared) = self.shared.upgrade() {
            shared.asks.mailbox_closed(&self.peer, mailbox);
        }
        let mut guard = lock(&self.out);
        let out = &mut *guard;
        out.needs.remove(&mailbox);
        out.lanes.closed(mailbox, &mut out.scratch);
        self.settle(out);
    }

    pub(crate) fn need(&self, mailbox: u64, seq: u64, sent: u64, limit: u64) -> Result<(), Code> {
        let Some(shared) = self.shared.upgrade() else { return Ok(()) };
        let needed = self.with_lanes(|lanes, pool, grants| {
            // Looked up under the lock of the lanes, because a mailbox that closes is forgotten there after it is gone here.
            if shared.mailboxes.inbox(mailbox).is_none() {
                return Ok(lanes.refuse(mailbox));
            }
            lanes.need(mailbox, seq, sent, limit, pool, grants).map(|()| false)
        });
        match needed {
            None | Some(Ok(false)) => Ok(()),
            Some(Ok(true)) => self.refuse_mailboxes(&[mailbox]),
            Some(Err(violation)) => Err(self.broken(violation)),
        }
    }

    pub(crate) fn returned(&self, mailbox: u64, seq: u64, limit: u64) -> Result<(), Code> {
        let returned = self.with_lanes(|lanes, pool, grants| lanes.returned(mailbox, seq, limit, pool, grants));
        returned.unwrap_or(Ok(())).map_err(|violation| self.broken(violation))
    }

    pub(crate) fn peer_is_short(&self, short: lanes::Short) {
        let mut guard = lock(&self.out);
        let out = &mut *guard;
        out.lanes.short(short, &mut out.scratch);
        self.settle(out);
    }

    pub(crate) fn peer_is_pressed(&self) {
        let mut guard = lock(&self.out);
        let out = &mut *guard;
        out.lanes.spare(&mut out.scratch);
        self.settle(out);
    }

    pub(super) fn broken(&self, violation: Violation) -> Code {
        tracing::debug!(target: target::PROTOCOL, peer = %self.peer, %violation, "the peer breaks the rules of the lanes");
        Code::PROTOCOL
    }

    /// Waits for room for the rest of a frame. Whoever has it gives it back when the frame is complete.
    pub(crate) async fn room_to_assemble(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        self.assembly.clone().acquire_many_owned(u32::try_from(bytes).ok()?).await.ok()
    }

    /// All streams of the peer are read, on all links: does a message wait for one that is missing? The peer may still
    /// hold that one, for its next link: only a gap that the link did nothing about will stay.
    pub(crate) fn gap(&self) -> Gap {
        let mut inn = lock(&self.inn);
        let services = lock(&self.services);
        if inn.lanes.finish().is_ok() && !services.has_gap() {
            inn.gap_at = None;
            return Gap::None;
        }
        let delivered = inn.lanes.delivered() + services.taken();
        drop(services);
        if inn.gap_at.replace(delivered) == Some(delivered) { Gap::Stays } else { Gap::New }
    }

    // What calls do; the rest of them is in `exchange`.

    pub(super) fn handlers(&self) -> &Arc<super::calls::Load> {
        &self.exchange.load
    }

    /// Whether the frame of a call with such a body has a stream of its own.
    pub(super) fn is_large_call(&self, body: usize) -> bool {
        lanes::is_bulk(body, self.bulk_from)
    }

    /// The one place where the bytes of small calls are queued. Frames of one key keep their order on one link.
    pub(super) fn push_call(
        &self,
        key: u64,
        room: usize,
        counted: Counted,
        put: impl FnOnce(&mut Terms, &mut Vec<u8>),
    ) {
        let channel = self.lanes + (key % self.call_streams as u64) as usize;
        let mut guard = lock(&self.out);
        let out = &mut *guard;
        if out.ended.is_some() {
            return;
        }
        let buffer = &mut out.channels[channel];
        let was_empty = buffer.bytes.is_empty();
        if let Some((is_request, body)) = counted {
            out.sent.call(is_request, body);
        }
        put(&mut out.terms, &mut buffer.bytes);
        buffer.cost += room as u64;
        if let Some(carrier) = out.carrier.as_ref().filter(|_| was_empty) {
            carrier.signal(channel);
        }
        self.unlock_and_want(guard);
    }

    /// Queues a large frame of a call.
    pub(super) fn push_large_call(&self, is_request: bool, make: impl FnOnce(&mut Terms) -> LargeCall) {
        let mut guard = lock(&self.out);
        let out = &mut *guard;
        if out.ended.is_some() {
            return;
        }
        let large = make(&mut out.terms);
        out.sent.call(is_request, large.body.len());
        out.large_calls.push_back(large);
        if let Some(carrier) = &out.carrier {
            carrier.signal_large_call();
        }
        self.unlock_and_want(guard);
    }

    /// The next large frame that somebody wants.
    pub(super) fn take_large_call(&self, link: LinkId) -> Result<Option<LargeCall>, ()> {
        let mut out = lock(&self.out);
        if out.carrier.as_ref().is_none_or(|carrier| carrier.id != link) {
            return Err(());
        }
        while let Some(large) = out.large_calls.pop_front() {
            if large.is_wanted() {
                return Ok(Some(large));
            }
            self.exchange.large_written(large.cost);
        }
        if out.closing { Err(()) } else { Ok(None) }
    }

    /// Throws away what was queued and nobody wants any more.
    pub(super) fn drop_unwanted(&self) {
        let mut out = lock(&self.out);
        if out.large_calls.is_empty() {
            return;
        }
        let (unwanted, wanted) =
            std::mem::take(&mut out.large_calls).into_iter().partition(|large: &LargeCall| !large.is_wanted());
        out.large_calls = wanted;
        drop(out);
        let unwanted: VecDeque<LargeCall> = unwanted;
        unwanted.iter().for_each(|large| self.exchange.large_written(large.cost));
    }

    // What is counted.

    /// What has gone each way, all in one look at each side.
    pub(crate) fn traffic(&self) -> Traffic {
        let (_, busy, blocked) = self.pressure.look();
        let inn = lock(&self.inn);
        let (mut received, undeliverable) = (inn.received, inn.undeliverable);
        drop(inn);
        self.exchange.count(&mut received);
        let out = lock(&self.out);
        let (sent, full) = (out.sent, out.full);
        drop(out);
        let refused = Unreadable::ALL.into_iter().map(|reason| self.refusals.count(reason)).sum();
        Traffic { sent, received, full, undeliverable, refused, busy, blocked }
    }

    pub(crate) fn queues(&self) -> Queues {
        let unread = lock(&self.inn).lanes.held();
        let out = lock(&self.out);
        let (buffered, bulk_buffered) = out.lanes.buffered();
        let carrier = out.carrier.clone();
        drop(out);
        Queues {
            waiting: self.pressure.look().0,
            buffered,
            bulk_buffered,
            calls_buffered: self.exchange.buffered(),
            unread,
            packets: carrier.map_or(0, |carrier| carrier.packets_waiting()),
        }
    }

    /// How many messages of the peer mailboxes here could not read.
    pub(crate) fn unreadable(&self) -> u64 {
        self.unreadable.load(Ordering::Relaxed)
    }

    // Common parts.

    /// How many channels there are: lanes, then call streams, then the one of the services.
    pub(super) fn channels(&self) -> usize {
        self.services_channel() + 1
    }

    fn services_channel(&self) -> usize {
        self.lanes + self.call_streams
    }

    /// The kind of the streams that a channel is written to.
    pub(super) fn kind_of(&self, channel: usize) -> StreamKind {
        if channel < self.lanes {
            StreamKind::Lane
        } else if channel < self.services_channel() {
            StreamKind::Calls
        } else {
            StreamKind::Services
        }
    }

    fn enqueue_bulk(&self, out: &mut Out, bulk: Bulk) {
        out.bodies.push_back(bulk);
        if let Some(carrier) = &out.carrier {
            carrier.signal_body();
        }
    }

    fn enqueue(&self, out: &mut Out, head: &MessageHead, body: &[u8]) {
        let channel = (head.mailbox % self.lanes as u64) as usize;
        self.enqueue_on(out, channel, body.len() as u64 + MESSAGE_COST, |bytes| {
            put_message_head(bytes, head, body.len());
            bytes.extend_from_slice(body);
        });
    }

    fn enqueue_on(&self, out: &mut Out, channel: usize, cost: u64, put: impl FnOnce(&mut Vec<u8>)) {
        let buffer = &mut out.channels[channel];
        let was_empty = buffer.bytes.is_empty();
        put(&mut buffer.bytes);
        buffer.cost += cost;
        if let Some(carrier) = out.carrier.as_ref().filter(|_| was_empty) {
            carrier.signal(channel);
        }
    }

    /// Does what the lanes want done.
    fn settle(&self, out: &mut Out) {
        if out.scratch.is_empty() {
            return;
        }
        for output in std::mem::take(&mut out.scratch) {
            match output {
                lanes::Output::Write(accepted) => {
                    let Accepted { ticket, mailbox, number, bulk, item: Item { schema, trace, body } } = accepted;
                    if let Some(done) = out.waiting.remove(&ticket) {
                        let _ = done.send(Ok(()));
                    }
                    out.sent.message(1, body.len());
                    let message = MessageHead { mailbox, number, schema, trace };
                    if bulk {
                        self.enqueue_bulk(out, Bulk::message(&message, body));
                    } else {
                        self.enqueue(out, &message, &body);
                    }
                }
                lanes::Output::Return { mailbox, seq, limit } => {
                    out.returns.insert(mailbox, Control::Return { mailbox, seq, limit });
                    if let Some(carrier) = &out.carrier {
                        carrier.signal_control();
                    }
                }
                lanes::Output::Need { mailbox, seq, sent, limit } => {
                    out.needs.insert(mailbox, Control::Need { mailbox, seq, sent, limit });
                    if let Some(carrier) = &out.carrier {
                        carrier.signal_control();
                    }
                }
                lanes::Output::Refused { ticket, .. } => {
                    if let Some(done) = out.waiting.remove(&ticket) {
                        let _ = done.send(Err(Refused::MailboxClosed));
                    }
                }
            }
        }
    }

    fn push_control(&self, push: impl FnOnce(&mut Out)) {
        let mut out = lock(&self.out);
        if out.ended.is_some() {
            return;
        }
        push(&mut out);
        if let Some(carrier) = &out.carrier {
            carrier.signal_control();
        }
        self.unlock_and_want(out);
    }

    /// Asks for a link when there is none and something waits for one.
    fn unlock_and_want(&self, mut out: std::sync::MutexGuard<'_, Out>) {
        let wants = out.carrier.is_none() && !out.wanted && !out.closing && out.is_pending();
        out.wanted |= wants;
        drop(out);
        if wants && let Some(shared) = self.shared.upgrade() {
            shared.want(self.peer.name());
        }
    }
}

impl Out {
    /// Grants are made under another lock, so an older one may come after a newer: the newest stands.
    fn add_grants(&mut self, grants: &[Grant]) {
        for grant in grants {
            let newest = self.grants.entry(grant.mailbox).or_insert(*grant);
            if (grant.seq, grant.limit) > (newest.seq, newest.limit) {
                *newest = *grant;
            }
        }
    }

    fn is_pending(&self) -> bool {
        self.channels.iter().any(|buffer| !buffer.bytes.is_empty())
            || !self.bodies.is_empty()
            || !self.large_calls.is_empty()
            || !self.grants.is_empty()
            || !self.needs.is_empty()
            || !self.returns.is_empty()
            || !self.closes.is_empty()
            || !self.answers.is_empty()
            || self.short.is_some()
    }
}

/// Whether a message is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Gap {
    None,
    New,
    Stays,
}

/// The close code for bytes that a peer got wrong.
pub(crate) fn wire_code(error: WireError) -> Code {
    match error {
        WireError::TooLong(_) => Code::FRAME_TOO_LARGE,
        _ => Code::PROTOCOL,
    }
}
