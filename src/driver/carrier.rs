//! One link at work for a session: its clock, its writers, its readers.
//!
//! ```text
//!  Session ──take──▶ writers: control · lanes · calls · services · bodies ──▶ streams   one task each, started when needed
//!  Session ◀─receive── readers: one per stream of the peer ◀───── streams      they never wait for a mailbox
//!  node task ──▶ packets ──▶ datagrams, one at a time · a stream for what they cannot hold
//!  node task ◀── packets ◀── datagrams · streams                               they wait for nothing but their own link's
//!  clock: signs of life, the idle close, the agreed stop (proto::link)
//! ```

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{Notify, OwnedSemaphorePermit, oneshot};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::{Instrument, Span};

use super::delivery::{COPY_BELOW, Delivery};
use super::exchange::{Heard, LargeCall};
use super::journal::target;
use super::packets::{Doorway, Outgoing};
use super::session::{OwnStream, Session, Take, wire_code};
use super::{Command, Shared, lock};
use crate::id::NodeName;
use crate::proto::lanes::{Grant, Short};
use crate::proto::link::{Clockwork, Idle, Output, Times};
use crate::proto::links::LinkId;
use crate::proto::membership::{Path, Rank, Way};
use crate::transport::Link;
use crate::transport::link::{DatagramError, Receiver, Sender, StreamError};
use crate::wire::services::{NUMBERED_MAX, is_background, numbered};
use crate::wire::{
    CONTROL_MAX, CallFrame, CallHead, Code, Control, Frame, LaneFrame, OVERHEAD_MAX, SKIPPABLE, Splitter, StreamKind,
    packet, put_packet,
};

/// Pings of users are told from the clock's own by their numbers.
const USER_PINGS: u64 = 1 << 40;

/// How often the clock looks for signs of life while something is outstanding.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The rest of a frame that takes more than this waits for its share of what the session may assemble. Streams are few, so
/// smaller ones are bounded by their number, and need not wait behind the large.
const ASSEMBLED_FREELY: usize = 64 * 1024;

/// A frame that has begun must bring so many bytes per `frame_timeout`.
const PROGRESS: usize = 1024;

/// A link that stops must move so many bytes per `frame_timeout`: more than the questions and answers of its clock.
const STOP_PROGRESS: u64 = 16 * 1024;

/// So many pieces of one begun frame are joined.
const PIECES_MAX: usize = 64;

pub(crate) const CONTROL_PRIORITY: i32 = 2;
const CALL_PRIORITY: i32 = 1;

/// So many bytes of packets are written to the membership stream at once, so that a probe waits for no more.
const PACKETS_AT_ONCE: usize = 64 * 1024;

/// What a greeting hands over: the streams that are open already.
#[derive(Debug)]
pub(crate) struct Greeted {
    pub(crate) link: Link,
    pub(crate) control: Sender,
    /// The peer's control stream, when READY came on it, and what followed READY.
    pub(crate) peer_control: Option<(Receiver, Splitter)>,
    pub(crate) peer: NodeName,
    /// The trust by which the peer was let in.
    pub(crate) trust: u64,
}

/// One link at work for one session.
pub(crate) struct Carrier {
    pub(crate) id: LinkId,
    pub(crate) link: Link,
    session: Arc<Session>,
    shared: Weak<Shared>,
    clock: Mutex<Clockwork>,
    clock_changed: Notify,
    /// Control frames of this link alone.
    control: Mutex<Vec<u8>>,
    control_ready: Notify,
    /// Packets of membership.
    packets: Outgoing,
    doorway: Doorway,
    /// One per channel: lanes, call streams, services, writers of bodies, writers of large calls, and the one of packets.
    channels: Vec<Notify>,
    /// Which channels have been signalled once, so that their writers are to run.
    started: AtomicU64,
    start: Notify,
    next_body: AtomicUsize,
    bodies: std::ops::Range<usize>,
    next_large_call: AtomicUsize,
    large_calls: std::ops::Range<usize>,
    membership: usize,
    finishing: Mutex<Finishing>,
    pings: Mutex<Pings>,
    closed_with: Mutex<Option<Code>>,
    /// The peer has said that it has answered all that it began.
    is_drained: AtomicBool,
}

#[derive(Debug, Default)]
struct Finishing {
    /// The stop was asked for: once what was accepted has its writers, no writer starts any more.
    asked: bool,
    begun: bool,
    /// The channels that ever had a writer, and how many of these run.
    writers: u64,
    running: usize,
    /// Streams that this side opened, the control stream not counted.
    opened: u64,
}

#[derive(Debug, Default)]
struct Pings {
    next: u64,
    waiting: HashMap<u64, oneshot::Sender<()>>,
}

impl std::fmt::Debug for Carrier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Carrier").field("id", &self.id).finish_non_exhaustive()
    }
}

fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

impl Carrier {
    /// Puts a link to work. It reports its end to the node task.
    pub(crate) fn start(
        id: LinkId,
        greeted: Greeted,
        session: &Arc<Session>,
        shared: &Arc<Shared>,
        is_kept: bool,
        (span, tasks): (Span, &mut JoinSet<()>),
    ) -> Arc<Self> {
        let config = &shared.config;
        let times = Times {
            ask_after: config.sign_of_life_every,
            repeat_every: config.sign_of_life_every / 6,
            lost_after: config.link_lost_after,
            idle: if is_kept { Idle::Keep(config.keep_alive) } else { Idle::Close(config.idle_close) },
        };
        let writers = session.channels();
        let bodies = writers..writers + config.bulk_streams;
        let large_calls = bodies.end..bodies.end + config.bulk_streams;
        let membership = large_calls.end;
        let carrier = Arc::new(Self {
            id,
            link: greeted.link.clone(),
            session: session.clone(),
            shared: Arc::downgrade(shared),
            clock: Mutex::new(Clockwork::new(times, now())),
            clock_changed: Notify::new(),
            control: Mutex::default(),
            control_ready: Notify::new(),
            packets: Outgoing::default(),
            doorway: shared.arrivals.doorway(session.peer.clone(), session.id),
            channels: (0..=membership).map(|_| Notify::new()).collect(),
            started: AtomicU64::new(0),
            start: Notify::new(),
            next_body: AtomicUsize::new(0),
            bodies,
            next_large_call: AtomicUsize::new(0),
            large_calls,
            membership,
            finishing: Mutex::default(),
            pings: Mutex::default(),
            closed_with: Mutex::default(),
            is_drained: AtomicBool::new(false),
        });
        let task = run(carrier.clone(), greeted);
        tasks.spawn(task.instrument(span));
        carrier
    }

    /// Sends a packet of membership, or drops an older one that has waited for long.
    pub(crate) fn send_packet(&self, way: Way, rank: Rank, packet: Bytes) {
        let peer = &self.session.peer;
        tracing::trace!(target: target::MEMBER, %peer, ?way, ?rank, bytes = packet.len(), "sends a packet");
        let dropped = match way {
            Way::Datagram => self.packets.push_datagram(rank, packet),
            Way::Stream => {
                let dropped = self.packets.push_stream(rank, packet);
                self.signal(self.membership);
                dropped
            }
        };
        if let Some(shared) = self.shared.upgrade().filter(|_| dropped > 0) {
            shared.packets.dropped_out(dropped);
        }
    }

    /// Sends a packet of elections, before gossip and all that has a stream. One that is said only once goes by a stream,
    /// too: then it is lost with the link alone.
    pub(crate) fn send_election(&self, packet: Bytes, is_said_once: bool) {
        if is_said_once {
            self.send_packet(Way::Stream, Rank::Probe, packet.clone());
        }
        let dropped = self.packets.push_election(packet);
        if let Some(shared) = self.shared.upgrade().filter(|_| dropped > 0) {
            shared.packets.dropped_out(dropped);
        }
    }

    /// The way to the peer, as it is now.
    pub(crate) fn path(&self) -> Path {
        membership_path(&self.link)
    }

    /// When something of the peer's application arrived last.
    pub(crate) fn last_received(&self) -> Option<Instant> {
        lock(&self.clock).last_received()
    }

    /// Closes the link at once.
    pub(crate) fn close(&self, code: Code) {
        // The first reason stands, as it does for QUIC.
        lock(&self.closed_with).get_or_insert(code);
        if self.link.close_if_open(code, b"")
            && let Some(shared) = self.shared.upgrade()
        {
            shared.journal.link_closed(&self.session.peer, self.id, code);
        }
    }

    pub(super) fn packets_waiting(&self) -> u64 {
        self.packets.len() as u64
    }

    /// Something of a later protocol was skipped.
    fn skipped(&self, kind: u8) {
        if let Some(shared) = self.shared.upgrade() {
            shared.journal.skipped(&self.session.peer, kind);
        }
    }

    /// Whether this side has read all that the peer sent, and has sent all of its own.
    pub(crate) fn is_agreed(&self) -> bool {
        lock(&self.clock).is_agreed()
    }

    /// Whether the agreed stop has begun.
    pub(crate) fn is_stopping(&self) -> bool {
        lock(&self.clock).is_stopping()
    }

    /// Whether all that the peer ever asked for here is answered, or will not be done.
    fn has_answered(&self) -> bool {
        let is_stopping = self.shared.upgrade().is_some_and(|shared| shared.is_stopping());
        is_stopping && self.session.handlers().handlers() == 0
    }

    /// Whether what has no answer of the peer by now was not done there.
    pub(crate) fn is_drained(&self) -> bool {
        self.is_drained.load(Ordering::Acquire) && self.is_agreed()
    }

    /// Why this side closed the link, if it did.
    pub(crate) fn closed_with(&self) -> Option<Code> {
        *lock(&self.closed_with)
    }

    /// A channel has something to write.
    pub(crate) fn signal(&self, channel: usize) {
        let bit = 1u64 << channel;
        if self.started.load(Ordering::Relaxed) & bit == 0 && self.started.fetch_or(bit, Ordering::Relaxed) & bit == 0 {
            self.start.notify_one();
        }
        self.channels[channel].notify_one();
    }

    /// A body waits for a stream of its own.
    pub(crate) fn signal_body(&self) {
        self.signal_one_of(self.bodies.clone(), &self.next_body);
    }

    /// A large frame of a call waits for a stream of its own.
    pub(crate) fn signal_large_call(&self) {
        self.signal_one_of(self.large_calls.clone(), &self.next_large_call);
    }

    fn signal_one_of(&self, writers: std::ops::Range<usize>, next: &AtomicUsize) {
        let turn = next.fetch_add(1, Ordering::Relaxed);
        self.signal(writers.start + turn % writers.len());
        // The one whose turn it is may be busy: whoever is idle takes it.
        writers.for_each(|writer| self.channels[writer].notify_one());
    }

    pub(crate) fn signal_control(&self) {
        self.control_ready.notify_one();
    }

    /// Every writer is to look again, because the link may no longer be the one to write on.
    pub(crate) fn signal_all(&self) {
        self.channels.iter().for_each(Notify::notify_one);
        self.control_ready.notify_one();
    }

    /// The first of the open calls, perhaps: from now on a sign of life is awaited. That the last one is over is noticed
    /// when it matters, at the next sign.
    pub(crate) fn work_began(&self) {
        let mut clock = lock(&self.clock);
        let was_waiting = clock.is_waiting();
        // Counted under the clock's lock, so that the last count is the one that stands.
        clock.calls_open(self.session.outstanding(), now());
        let is_news = !was_waiting && clock.is_waiting();
        drop(clock);
        if is_news {
            self.clock_changed.notify_one();
        }
    }

    /// Begins the agreed stop.
    pub(crate) fn stop(&self, code: Code) {
        let output = lock(&self.clock).begin_stop(code, now());
        if output.is_none() && !code.keeps_session() {
            // It was stopping for a lesser reason: now nothing more is taken either.
            self.session.detach(self.id, code);
        }
        self.apply(output);
    }

    /// Sends a ping. The receiver resolves when it is answered.
    pub(crate) fn ping(&self) -> oneshot::Receiver<()> {
        let (done, answered) = oneshot::channel();
        let mut pings = lock(&self.pings);
        pings.next += 1;
        let seq = USER_PINGS + pings.next;
        pings.waiting.retain(|_, waiting| !waiting.is_closed());
        pings.waiting.insert(seq, done);
        drop(pings);
        self.push_control(Control::Ping { seq });
        answered
    }

    fn push_control(&self, frame: Control) {
        frame.encode(&mut lock(&self.control));
        self.control_ready.notify_one();
    }

    /// Does what the clock wants done.
    fn apply(&self, outputs: impl IntoIterator<Item = Output>) {
        for output in outputs {
            match output {
                Output::SendPing { seq } => self.push_control(Control::Ping { seq }),
                Output::FinishStreams => {
                    let code = lock(&self.clock).stop_code();
                    // First, because answers that come later are not written.
                    if code == Code::SHUTDOWN && self.has_answered() {
                        self.push_control(Control::Drained);
                    }
                    self.command(Command::LinkStopping { link: self.id });
                    self.session.detach(self.id, code);
                    lock(&self.finishing).asked = true;
                    self.signal_all();
                    self.start.notify_one();
                }
                Output::SendStop { code, streams } => self.push_control(Control::Stop { code, streams }),
                Output::SendStopped => self.push_control(Control::Stopped),
                Output::Close(code) => self.close(code),
            }
        }
        self.clock_changed.notify_one();
    }

    fn finished(&self, opened: u64) {
        let outputs = lock(&self.clock).streams_finished(opened);
        self.apply(outputs);
    }

    fn command(&self, command: Command) {
        if let Some(shared) = self.shared.upgrade() {
            shared.command(command);
        }
    }

    async fn open(&self, kind: StreamKind, priority: i32) -> Result<Sender, StreamError> {
        let stream = self.link.open(kind, priority).await?;
        lock(&self.finishing).opened += 1;
        Ok(stream)
    }

    fn is_finishing(&self) -> bool {
        lock(&self.finishing).asked
    }

    fn touched(&self) {
        lock(&self.clock).touched(now());
    }

    fn wrote(&self) {
        let mut clock = lock(&self.clock);
        let was_waiting = clock.is_waiting();
        clock.wrote(now());
        drop(clock);
        if !was_waiting {
            self.clock_changed.notify_one();
        }
    }
}

/// Runs a link until it ends, then reports.
async fn run(carrier: Arc<Carrier>, greeted: Greeted) {
    let Greeted { link, control, peer_control, .. } = greeted;
    let Some(frame_timeout) = carrier.shared.upgrade().map(|shared| shared.config.frame_timeout) else { return };
    let mut tasks = JoinSet::new();
    tasks.spawn(write_control(carrier.clone(), control).in_current_span());
    tasks.spawn(write_datagrams(carrier.clone()).in_current_span());
    tasks.spawn(read_datagrams(carrier.clone()).in_current_span());
    tasks.spawn(accept_streams(carrier.clone(), peer_control).in_current_span());
    let end = {
        let closed = link.closed();
        tokio::pin!(closed);
        let mut signs = link.signs_of_life();
        // While the link stops: by when it must have moved so many bytes, or be closed.
        let mut stopping: Option<(Instant, u64)> = None;
        loop {
            let next_look = {
                let clock = lock(&carrier.clock);
                let look = clock.is_waiting().then(|| now() + LOOK_EVERY);
                if clock.is_stopping() && stopping.is_none_or(|(due, _)| now() >= due) {
                    let moved = link.bytes_moved();
                    if stopping.is_some_and(|(_, wanted)| moved < wanted) {
                        carrier.close(Code::SLOW);
                    }
                    stopping = Some((now() + frame_timeout, moved + STOP_PROGRESS));
                }
                let due = stopping.map(|(due, _)| due);
                clock.poll_timeout().into_iter().chain(look).chain(due).min()
            };
            // No branch waits for the network: each does its move and returns here.
            tokio::select! {
                end = &mut closed => break end,
                () = carrier.clock_changed.notified() => {}
                () = carrier.start.notified() => start_writers(&carrier, &mut tasks),
                () = sleep_until(next_look) => {
                    let heard = link.signs_of_life();
                    let outputs = {
                        let mut clock = lock(&carrier.clock);
                        if std::mem::replace(&mut signs, heard) != heard {
                            clock.heard(now());
                        }
                        clock.handle_timeout(now())
                    };
                    carrier.apply(outputs);
                }
            }
        }
    };
    // What the peer had sent before it closed in good order has been read: it said STOPPED only after that.
    tasks.shutdown().await;
    carrier.command(Command::LinkEnded { link: carrier.id, end });
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

/// What membership wants to know of a link.
pub(super) fn membership_path(link: &Link) -> Path {
    let path = link.path();
    Path { rtt: path.rtt, datagram_max: path.datagram_max }
}

async fn read_datagrams(carrier: Arc<Carrier>) {
    while let Ok(packet) = carrier.link.read_datagram().await {
        carrier.touched();
        tracing::trace!(target: target::MEMBER, bytes = packet.len(), "a datagram came");
        let is_taken = carrier.doorway.try_hand_over(packet, || carrier.path());
        if let Some(shared) = carrier.shared.upgrade().filter(|_| !is_taken) {
            shared.packets.dropped_in();
        }
    }
}

/// Hands datagrams to QUIC one at a time, so that a probe overtakes all gossip that waits.
async fn write_datagrams(carrier: Arc<Carrier>) {
    loop {
        let Some(datagram) = carrier.packets.take_datagram() else {
            carrier.packets.datagram_queued().await;
            continue;
        };
        let sending = carrier.link.send_datagram_wait(datagram.packet.clone());
        tokio::pin!(sending);
        let sent = loop {
            tokio::select! {
                biased;
                sent = &mut sending => break Some(sent),
                () = carrier.packets.datagram_queued(), if !datagram.is_probe => {
                    if carrier.packets.has_probe() {
                        break None;
                    }
                }
            }
        };
        match sent {
            Some(Ok(())) => carrier.touched(),
            // The path has become narrower since it was built, or takes none.
            Some(Err(DatagramError::TooLarge)) => {
                let rank = if datagram.is_probe { Rank::Probe } else { Rank::Gossip };
                carrier.send_packet(Way::Stream, rank, datagram.packet);
            }
            Some(Err(DatagramError::LinkEnded)) => return,
            None => carrier.packets.untake(datagram),
        }
    }
}

fn start_writers(carrier: &Arc<Carrier>, tasks: &mut JoinSet<()>) {
    let wanted = carrier.started.load(Ordering::Relaxed);
    let mut finishing = lock(&carrier.finishing);
    if finishing.begun {
        return;
    }
    let new = wanted & !finishing.writers;
    finishing.writers = wanted;
    for channel in (0..carrier.channels.len()).filter(|channel| new & 1 << channel != 0) {
        finishing.running += 1;
        let carrier = carrier.clone();
        let writing = async move {
            let result = if channel == carrier.membership {
                write_packets(&carrier).await
            } else if carrier.bodies.contains(&channel) {
                write_bodies(&carrier, channel).await
            } else if carrier.large_calls.contains(&channel) {
                write_large_calls(&carrier, channel).await
            } else {
                write_channel(&carrier, channel).await
            };
            writer_ended(&carrier, result);
        };
        tasks.spawn(writing.in_current_span());
    }
    if finishing.asked {
        finishing.begun = true;
        let opened = (finishing.running == 0).then_some(finishing.opened);
        drop(finishing);
        if let Some(opened) = opened {
            carrier.finished(opened);
        }
    }
}

fn writer_ended(carrier: &Carrier, result: Result<(), StreamError>) {
    if result.is_err() {
        // A stream that the peer gave up would leave a gap in what it was promised.
        carrier.close(Code::PROTOCOL);
        return;
    }
    let all_finished = {
        let mut finishing = lock(&carrier.finishing);
        finishing.running -= 1;
        (finishing.begun && finishing.running == 0).then_some(finishing.opened)
    };
    if let Some(opened) = all_finished {
        carrier.finished(opened);
    }
}

/// Writes one lane or call stream, or that of the services: all that waits, in one piece, again and again.
async fn write_channel(carrier: &Carrier, channel: usize) -> Result<(), StreamError> {
    let session = &carrier.session;
    let kind = session.kind_of(channel);
    let mut stream = None;
    let mut declared = 0;
    let mut bytes = Vec::new();
    loop {
        bytes.clear();
        match session.take(carrier.id, channel, &mut declared, &mut bytes) {
            Take::Detached => break,
            Take::Empty => carrier.channels[channel].notified().await,
            Take::Bytes { cost } => {
                // What nobody waits for does not keep a link open.
                if kind != StreamKind::Services || cost > 0 {
                    carrier.wrote();
                }
                let stream = match &mut stream {
                    Some(stream) => stream,
                    none => {
                        let priority = if kind == StreamKind::Lane { 0 } else { CALL_PRIORITY };
                        none.insert(carrier.open(kind, priority).await?)
                    }
                };
                tracing::trace!(target: target::LINK, ?kind, bytes = bytes.len(), "writes");
                stream.write(&bytes).await?;
                session.written(channel, cost);
                // One great burst is not to hold its buffer for ever.
                if bytes.capacity() > 256 * 1024 {
                    bytes = Vec::new();
                }
            }
        }
    }
    if let Some(stream) = stream {
        stream.finish();
    }
    Ok(())
}

/// Writes the membership stream.
async fn write_packets(carrier: &Carrier) -> Result<(), StreamError> {
    let mut stream = None;
    let mut bytes = Vec::new();
    loop {
        let is_last = carrier.is_finishing();
        if is_last {
            carrier.packets.drop_syncs();
        }
        bytes.clear();
        while bytes.len() < PACKETS_AT_ONCE
            && let Some(packet) = carrier.packets.take_stream()
        {
            put_packet(&mut bytes, &packet);
        }
        if bytes.is_empty() {
            if is_last {
                break;
            }
            // Bursts are rare, and a link that lives long is not to hold their buffer.
            bytes = Vec::new();
            carrier.channels[carrier.membership].notified().await;
            continue;
        }
        carrier.touched();
        let stream = match &mut stream {
            Some(stream) => stream,
            none => none.insert(carrier.open(StreamKind::Membership, CALL_PRIORITY).await?),
        };
        stream.write(&bytes).await?;
    }
    if let Some(stream) = stream {
        stream.finish();
    }
    Ok(())
}

/// Writes bodies, each on a stream of its own.
async fn write_bodies(carrier: &Carrier, channel: usize) -> Result<(), StreamError> {
    let session = &carrier.session;
    loop {
        match session.take_body(carrier.id) {
            Err(()) => return Ok(()),
            Ok(None) => carrier.channels[channel].notified().await,
            Ok(Some(OwnStream { head, body, cost })) => {
                carrier.wrote();
                let mut stream = carrier.open(StreamKind::Body, 0).await?;
                stream.write(&head).await?;
                stream.write_chunk(body).await?;
                // QUIC would take body after body into its buffers, and share the path among all of them.
                stream.finish_and_wait().await?;
                session.body_written(cost);
            }
        }
    }
}

/// Writes large frames of calls, each on a stream of its own, which is reset when nobody wants it any more.
async fn write_large_calls(carrier: &Carrier, channel: usize) -> Result<(), StreamError> {
    let session = &carrier.session;
    loop {
        match session.take_large_call(carrier.id) {
            Err(()) => return Ok(()),
            Ok(None) => carrier.channels[channel].notified().await,
            Ok(Some(LargeCall { head, body, cost, mut wanted })) => {
                carrier.wrote();
                // Not given up before it is counted, because the peer counts it too.
                let mut stream = carrier.open(StreamKind::LargeCall, 0).await?;
                let writing = async {
                    stream.write(&head).await?;
                    stream.write_chunk(body).await?;
                    stream.finish_and_wait().await
                };
                let written = tokio::select! {
                    written = writing => Some(written),
                    () = unwanted(wanted.as_mut()) => None,
                };
                session.large_call_written(cost);
                match written {
                    Some(Ok(())) => drop(wanted.map(|wanted| wanted.send(()))),
                    Some(Err(error)) => return Err(error),
                    None => {}
                }
            }
        }
    }
}

/// Resolves when nobody wants a frame any more.
async fn unwanted(wanted: Option<&mut oneshot::Sender<()>>) {
    match wanted {
        Some(wanted) => wanted.closed().await,
        None => std::future::pending().await,
    }
}

async fn write_control(carrier: Arc<Carrier>, mut stream: Sender) {
    let mut bytes = Vec::new();
    loop {
        bytes.clear();
        carrier.session.take_control(carrier.id, &mut bytes);
        if !bytes.is_empty() {
            // Grants and the like are work for the session; the link's own frames are not.
            carrier.wrote();
        }
        bytes.append(&mut lock(&carrier.control));
        if bytes.is_empty() {
            carrier.control_ready.notified().await;
        } else if let Err(error) = stream.write(&bytes).await {
            if error == StreamError::Reset {
                carrier.close(Code::PROTOCOL);
            }
            return;
        }
    }
}

async fn accept_streams(carrier: Arc<Carrier>, mut control: Option<(Receiver, Splitter)>) {
    let Some((stream_timeout, frame_timeout, message_max)) = carrier
        .shared
        .upgrade()
        .map(|shared| (shared.config.stream_timeout, shared.config.frame_timeout, shared.config.message_max))
    else {
        return;
    };
    let mut readers = JoinSet::new();
    let mut has_control = false;
    loop {
        if let Some((stream, splitter)) = control.take() {
            has_control = true;
            let reader = Reader::new(stream, splitter, frame_timeout, carrier.clone());
            readers.spawn(read(reader, StreamKind::Control).in_current_span());
        }
        let mut stream = tokio::select! {
            stream = carrier.link.accept() => match stream {
                Ok(stream) => stream,
                Err(_) => break,
            },
            Some(_) = readers.join_next() => continue,
        };
        // The first stream is the peer's control stream, whatever else it has opened since.
        if !has_control {
            let Ok(Some(splitter)) = kind_of(&mut stream, stream_timeout, CONTROL_MAX, StreamKind::Control).await
            else {
                carrier.close(Code::PROTOCOL);
                break;
            };
            control = Some((stream, splitter));
            continue;
        }
        let carrier = carrier.clone();
        let reading = async move {
            let first = match timeout(stream_timeout, stream.read()).await {
                Err(_) => return carrier.close(Code::SLOW),
                Ok(Err(StreamError::LinkEnded)) => return,
                Ok(Ok(Some(chunk))) => chunk,
                // QUIC drops what came before the reset, so it may have been a kind that is to be skipped. A message that
                // is missing now is noticed by its number.
                Ok(Err(StreamError::Reset)) => return carrier.stream_read(),
                // A stream that says nothing is none that this side knows how to serve.
                Ok(Ok(None)) => return carrier.close(Code::PROTOCOL),
            };
            let Some((kind, rest)) = first.split_first() else { return };
            match StreamKind::from_byte(*kind) {
                Some(kind) if kind != StreamKind::Control => {
                    let max = match kind {
                        StreamKind::Membership => CONTROL_MAX,
                        StreamKind::Services => NUMBERED_MAX,
                        _ => message_max + OVERHEAD_MAX,
                    };
                    let mut splitter = Splitter::new(max);
                    splitter.push(first.slice_ref(rest));
                    read(Reader::new(stream, splitter, frame_timeout, carrier), kind).await;
                }
                None if kind & SKIPPABLE != 0 => {
                    carrier.skipped(*kind);
                    stream.stop();
                    carrier.stream_read();
                }
                _ => carrier.close(Code::PROTOCOL),
            }
        };
        readers.spawn(reading.in_current_span());
    }
    // Streams that had arrived are read to their end; the link's end stops the rest.
    while readers.join_next().await.is_some() {}
}

/// Reads the first byte of a stream, which is to be of that kind. The splitter holds what came with it.
pub(crate) async fn kind_of(
    stream: &mut Receiver,
    patience: Duration,
    max: usize,
    expected: StreamKind,
) -> Result<Option<Splitter>, StreamError> {
    let Ok(read) = timeout(patience, stream.read()).await else { return Ok(None) };
    let Some(chunk) = read? else { return Ok(None) };
    let Some((kind, rest)) = chunk.split_first() else { return Ok(None) };
    if *kind != expected.to_byte() {
        return Ok(None);
    }
    let mut splitter = Splitter::new(max);
    splitter.push(chunk.slice_ref(rest));
    Ok(Some(splitter))
}

/// One stream of the peer.
struct Reader {
    stream: Receiver,
    /// What was read and is not split yet.
    pieces: VecDeque<Bytes>,
    splitter: Splitter,
    frame_timeout: Duration,
    carrier: Arc<Carrier>,
    /// For the frame that has begun.
    room: Option<OwnedSemaphorePermit>,
    /// What was declared for calls on this stream.
    heard: Heard,
    /// The one frame of a stream of its own has come.
    is_served: bool,
}

/// Reads a stream to its end. Whatever is wrong with it ends the session.
async fn read(mut reader: Reader, kind: StreamKind) {
    match reader.read_frames(kind).await {
        Ok(()) if kind == StreamKind::Control => {
            // Only the end of the link ends its control streams.
            reader.carrier.close(Code::PROTOCOL);
        }
        Ok(()) => reader.carrier.stream_read(),
        Err(None) => {}
        Err(Some(code)) => {
            tracing::debug!(target: target::PROTOCOL, ?kind, ?code, "closing the link because of what came on a stream");
            reader.carrier.close(code);
        }
    }
}

/// Why a stream brings nothing more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum StreamFlaw {
    LinkEnded,
    Reset,
    Slow,
}

impl StreamFlaw {
    /// The code to close the link with, unless it has ended.
    fn code(self) -> Option<Code> {
        match self {
            Self::LinkEnded => None,
            Self::Reset => Some(Code::PROTOCOL),
            Self::Slow => Some(Code::SLOW),
        }
    }
}

impl Reader {
    fn new(stream: Receiver, splitter: Splitter, frame_timeout: Duration, carrier: Arc<Carrier>) -> Self {
        let (pieces, heard) = (VecDeque::new(), Heard::default());
        Self { stream, pieces, splitter, frame_timeout, carrier, room: None, heard, is_served: false }
    }

    /// `Err(None)` when the link ended.
    async fn read_frames(&mut self, kind: StreamKind) -> Result<(), Option<Code>> {
        loop {
            match kind {
                StreamKind::Membership => self.hand_over_packets().await.map_err(Some)?,
                StreamKind::Services => self.hand_over_services().await.map_err(Some)?,
                _ => self.handle_frames(kind).map_err(Some)?,
            }
            let is_open = match self.read_on().await {
                // The one frame of such a stream is taken back.
                Err(StreamFlaw::Reset) if kind == StreamKind::LargeCall => return Ok(()),
                read => read.map_err(StreamFlaw::code)?,
            };
            if !is_open && self.pieces.is_empty() {
                return if self.splitter.is_begun() { Err(Some(Code::PROTOCOL)) } else { Ok(()) };
            }
            let bytes = || self.pieces.iter().map(Bytes::len).sum::<usize>();
            tracing::trace!(target: target::LINK, ?kind, bytes = bytes(), "read");
            let now = now();
            {
                let mut clock = lock(&self.carrier.clock);
                match kind {
                    StreamKind::Control | StreamKind::Services => clock.heard(now),
                    StreamKind::Membership => {
                        clock.heard(now);
                        clock.touched(now);
                    }
                    _ => clock.received(now),
                }
            }
            if matches!(kind, StreamKind::Body | StreamKind::LargeCall) {
                // A large body may have come whole, and others are not to wait until all of it is copied.
                tokio::task::yield_now().await;
            }
        }
    }

    /// Waits for more of the stream; false at its end.
    async fn read_on(&mut self) -> Result<bool, StreamFlaw> {
        let read = if self.splitter.is_begun() {
            self.make_room().await;
            match timeout(self.frame_timeout, self.progress()).await {
                Ok(read) => read,
                Err(_) => return Err(StreamFlaw::Slow),
            }
        } else {
            self.room = None;
            self.stream.read_many(&mut self.pieces).await
        };
        read.map_err(|error| match error {
            StreamError::LinkEnded => StreamFlaw::LinkEnded,
            StreamError::Reset => StreamFlaw::Reset,
        })
    }

    /// Waits until the frame that has begun may grow to its end. While it waits, the stream's window bounds the peer.
    async fn make_room(&mut self) {
        let missing = self.splitter.missing();
        // A frame that goes on has its room, and misses less and less of it.
        let has_room = self.room.as_ref().map_or(ASSEMBLED_FREELY, OwnedSemaphorePermit::num_permits);
        if missing > has_room {
            // First gives back what an earlier frame had, so that nobody waits with something in hand.
            self.room = None;
            self.room = self.carrier.session.room_to_assemble(missing).await;
        }
    }

    /// Reads on in a frame that has begun, until it is complete, or the next good piece of it is there.
    async fn progress(&mut self) -> Result<bool, StreamError> {
        let wanted = self.splitter.missing().min(PROGRESS);
        while self.pieces.iter().map(Bytes::len).sum::<usize>() < wanted {
            if !self.stream.read_many(&mut self.pieces).await? {
                return Ok(false);
            }
            if self.pieces.len() > PIECES_MAX {
                // Many small ones: each holds the packet that it came in.
                let whole: Vec<u8> = self.pieces.drain(..).flatten().collect();
                self.pieces.push_back(whole.into());
            }
        }
        Ok(true)
    }

    /// The next whole frame of what has been read.
    fn next_frame(&mut self) -> Result<Option<Frame>, Code> {
        loop {
            if let Some(frame) = self.splitter.next_frame().map_err(wire_code)? {
                return Ok(Some(frame));
            }
            let Some(piece) = self.pieces.pop_front() else { return Ok(None) };
            self.splitter.push(piece);
        }
    }

    fn handle_frames(&mut self, kind: StreamKind) -> Result<(), Code> {
        match kind {
            StreamKind::Control => {
                while let Some(frame) = self.next_frame()? {
                    let kind = frame.kind;
                    match Control::decode(frame).map_err(wire_code)? {
                        Some(frame) => self.carrier.handle_control(frame)?,
                        None => self.carrier.skipped(kind),
                    }
                }
                Ok(())
            }
            StreamKind::Lane | StreamKind::Body => {
                let session = self.carrier.session.clone();
                let mut delivery = session.deliver()?;
                let delivered = self.deliver(&mut delivery);
                delivery.finish().and(delivered)
            }
            StreamKind::Calls | StreamKind::LargeCall => self.handle_calls(kind),
            StreamKind::Membership | StreamKind::Services => Ok(()),
        }
    }

    /// Packets are handed to the node task one by one: while it is busy, the stream's window bounds the peer.
    async fn hand_over_packets(&mut self) -> Result<(), Code> {
        while let Some(frame) = self.next_frame()? {
            let kind = frame.kind;
            match packet(frame).map_err(wire_code)? {
                Some(packet) => self.carrier.doorway.hand_over(packet, || self.carrier.path()).await,
                None => self.carrier.skipped(kind),
            }
        }
        Ok(())
    }

    /// The same for service frames, which are handed over in the order of their numbers, whatever link they came on.
    async fn hand_over_services(&mut self) -> Result<(), Code> {
        while let Some(frame) = self.next_frame()? {
            let kind = frame.kind;
            let Some((number, frame)) = numbered(frame).map_err(wire_code)? else {
                self.carrier.skipped(kind);
                continue;
            };
            tracing::trace!(target: target::NAME, number, kind = frame.kind, bytes = frame.body.len(), "a frame came");
            if !is_background(&frame) {
                lock(&self.carrier.clock).received(now());
            }
            self.carrier.session.receive_service(number, frame, &self.carrier.doorway).await?;
        }
        Ok(())
    }

    fn deliver(&mut self, delivery: &mut Delivery<'_>) -> Result<(), Code> {
        loop {
            while let Some((head, body)) = self.splitter.next_small_message(COPY_BELOW).map_err(wire_code)? {
                delivery.small(head, body)?;
            }
            let Some(frame) = self.next_frame()? else { return Ok(()) };
            let kind = frame.kind;
            match LaneFrame::decode(frame).map_err(wire_code)? {
                Some(frame) => delivery.frame(frame)?,
                None => self.carrier.skipped(kind),
            }
        }
    }

    fn handle_calls(&mut self, kind: StreamKind) -> Result<(), Code> {
        let Some(shared) = self.carrier.shared.upgrade() else { return Err(Code::SHUTDOWN) };
        let now = tokio::time::Instant::now();
        while let Some(frame) = self.next_frame()? {
            let skipped = frame.kind;
            let Some(frame) = CallFrame::decode(frame).map_err(wire_code)? else {
                self.carrier.skipped(skipped);
                continue;
            };
            if kind == StreamKind::LargeCall {
                // What its frame means, and then that frame.
                let is_term = matches!(frame.head, CallHead::Term { .. });
                if self.is_served || !(is_term || frame.head.has_body()) {
                    return Err(Code::PROTOCOL);
                }
                self.is_served = !is_term;
            }
            self.carrier.session.receive_call(&shared, &mut self.heard, frame, now)?;
        }
        Ok(())
    }
}

impl Carrier {
    fn handle_control(&self, frame: Control) -> Result<(), Code> {
        let session = &self.session;
        match frame {
            // READY was read by the greeting, where it belongs; a dialler is sent none.
            Control::Ready => return Err(Code::PROTOCOL),
            Control::Grant { mailbox, seq, limit } => session.granted(Grant { mailbox, seq, limit }),
            Control::Need { mailbox, seq, sent, limit } => session.need(mailbox, seq, sent, limit)?,
            Control::Return { mailbox, seq, limit } => session.returned(mailbox, seq, limit)?,
            Control::Closed { mailbox } => session.mailbox_closed(mailbox),
            Control::Short { seq, on } => session.peer_is_short(Short { seq, on }),
            Control::Spare => session.peer_is_pressed(),
            Control::Refused { reason, messages } => session.refusals.add(reason, messages),
            Control::Delivered { id, closed } => session.copies_delivered(id, closed)?,
            Control::Ping { seq } => {
                // A peer that asks faster than its answers leave waits for them.
                if lock(&self.control).len() > CONTROL_MAX {
                    return Err(Code::LIMIT);
                }
                if seq < USER_PINGS {
                    // Whoever waits for something asks again and again, and is not to wait without a link.
                    self.touched();
                }
                self.push_control(Control::Pong { seq });
            }
            Control::Pong { seq } if seq >= USER_PINGS => {
                if let Some(done) = lock(&self.pings).waiting.remove(&seq) {
                    let _ = done.send(());
                }
            }
            Control::Pong { seq } => {
                let mut clock = lock(&self.clock);
                clock.calls_open(self.session.outstanding(), now());
                clock.pong(seq, now());
                drop(clock);
                self.clock_changed.notify_one();
            }
            Control::Stop { code, streams } => {
                let outputs = lock(&self.clock).peer_stops(code, streams, now());
                self.apply(outputs);
            }
            Control::Drained => self.is_drained.store(true, Ordering::Release),
            Control::Stopped => {
                let outputs = lock(&self.clock).peer_stopped();
                self.apply(outputs);
            }
        }
        Ok(())
    }

    /// One of the peer's streams was read to its end.
    fn stream_read(&self) {
        let outputs = lock(&self.clock).stream_read();
        self.apply(outputs);
    }
}
