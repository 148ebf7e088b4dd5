//! The open calls of one session, in both directions.
//!
//! ```text
//!  handles ── request, give_up ──▶ asked ──▶ push ──▶ Session::push_call, push_large_call ──▶ links
//!  handles ◀──── answer, items ─── asked ◀── receive_call ◀──────────────────────────────── links
//!  handlers ── answer, items ──▶ push                    serving ◀── calls, cancels, credit ──┘
//! ```
//!
//! Neither lock is held while the other, or a lock of the session, is taken.

use std::any::TypeId;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use tokio::sync::{Notify, Semaphore, oneshot};
use tokio::time::Instant;

use super::calls::{self, CallState, Load};
use super::counters::{Flow, Pressure};
use super::delivery::COPY_BELOW;
use super::journal::target;
use super::session::Session;
use super::{Shared, lock};
use crate::config::Config;
use crate::proto::calls::{Cancelled, Inflow, Next, Outflow, Violation};
use crate::wire::{CallFrame, CallHead, CallMode, Code, Schema, Status, Term, TermRef, Trace};

/// How many terms one side may declare in one session. What it says beyond is said in full.
const TERMS_MAX: u64 = 4096;

/// How many cancels of unknown calls are remembered, in case that they overtook a large request.
const CANCELS_REMEMBERED: usize = 1024;

/// How many calls a peer may have refused faster than it reads the refusals.
const REFUSALS_MAX: usize = 64 * 1024;

/// How a call came back.
#[derive(Debug)]
pub(crate) enum Answer {
    Answered { term: Arc<Term>, body: Bytes },
    Failed(Status),
    SessionEnded,
}

/// How a stream of answers ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StreamEnd {
    Status(Status),
    SessionEnded,
}

/// A type as it is known in a process; its schema is made when it is first declared.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kind {
    pub(crate) id: TypeId,
    pub(crate) schema: fn() -> Schema,
}

/// A value for the other side: its type and its bytes.
#[derive(Clone, Debug)]
pub(crate) struct Content {
    pub(crate) kind: Kind,
    pub(crate) body: Bytes,
}

/// A request about to be made.
#[derive(Debug)]
pub(crate) struct Ask<'a> {
    pub(crate) method: &'a str,
    pub(crate) question: Content,
    pub(crate) timeout_ms: u64,
    pub(crate) trace: Option<Trace>,
}

/// What a session holds of its calls.
#[derive(Debug)]
pub(crate) struct Exchange {
    asked: Mutex<Asked>,
    serving: Mutex<Serving>,
    /// What the peer has declared.
    terms: Mutex<HashMap<u64, Arc<Term>>>,
    /// Calls that are open, of either side.
    open: AtomicUsize,
    /// Refusals since the last write.
    refusals: AtomicUsize,
    small: Room,
    large: Room,
    received: Received,
    /// What handlers hold for the peer.
    pub(super) load: Arc<Load>,
    calls_max: usize,
}

/// What has arrived, counted.
#[derive(Debug, Default)]
struct Received {
    requests: AtomicU64,
    request_bytes: AtomicU64,
    answers: AtomicU64,
    answer_bytes: AtomicU64,
}

/// Calls of this side.
#[derive(Debug, Default)]
struct Asked {
    last: u64,
    waiting: HashMap<u64, Waiter>,
    ended: bool,
}

#[derive(Debug)]
enum Waiter {
    Answer(oneshot::Sender<Answer>),
    Items(Arc<ItemsIn>),
}

/// Calls of the peer.
#[derive(Debug)]
struct Serving {
    last: u64,
    running: HashMap<u64, Running>,
    cancelled: Cancelled,
    ended: bool,
}

/// A call of the peer that a handler was started for.
#[derive(Clone, Copy, Debug)]
pub(super) struct ServedId {
    id: u64,
    serial: u64,
}

#[derive(Debug)]
struct Running {
    /// Tells handlers apart of which a peer gave the same id, one after the other.
    serial: u64,
    call: Arc<CallState>,
    items: Option<Arc<ItemsOut>>,
}

impl Exchange {
    pub(super) fn new(config: &Config, pressure: &Arc<Pressure>) -> Self {
        Self {
            asked: Mutex::default(),
            serving: Mutex::new(Serving {
                last: 0,
                running: HashMap::new(),
                cancelled: Cancelled::new(CANCELS_REMEMBERED),
                ended: false,
            }),
            terms: Mutex::default(),
            open: AtomicUsize::new(0),
            refusals: AtomicUsize::new(0),
            small: Room::new(config.send_buffer, pressure),
            large: Room::new(config.bulk_buffer, pressure),
            received: Received::default(),
            load: Arc::new(Load::new(config.handlers_per_peer, config.calls_budget_per_peer)),
            calls_max: config.calls_max,
        }
    }

    /// What was taken from the call streams has been handed to QUIC.
    pub(super) fn written(&self, cost: u64) {
        self.refusals.store(0, Ordering::Relaxed);
        self.small.give(cost as usize);
    }

    pub(super) fn large_written(&self, cost: usize) {
        self.large.give(cost);
    }

    /// How many calls are open, of either side.
    pub(super) fn open(&self) -> usize {
        self.open.load(Ordering::Acquire)
    }

    /// How many calls of this side wait for answers.
    pub(super) fn waiting(&self) -> usize {
        lock(&self.asked).waiting.len()
    }

    /// How many of these are streams. It looks at each.
    pub(super) fn streams(&self) -> usize {
        lock(&self.asked).waiting.values().filter(|waiter| matches!(waiter, Waiter::Items(_))).count()
    }

    /// Bytes of frames that are not written yet.
    pub(super) fn buffered(&self) -> u64 {
        (self.small.taken() + self.large.taken()) as u64
    }

    /// Adds what has arrived.
    pub(super) fn count(&self, received: &mut Flow) {
        let Received { requests, request_bytes, answers, answer_bytes } = &self.received;
        let [requests, request_bytes, answers, answer_bytes] =
            [requests, request_bytes, answers, answer_bytes].map(|counter| counter.load(Ordering::Relaxed));
        received.requests += requests;
        received.request_bytes += request_bytes;
        received.answers += answers;
        received.answer_bytes += answer_bytes;
    }

    fn arrived(&self, is_request: bool, bytes: usize) {
        let Received { requests, request_bytes, answers, answer_bytes } = &self.received;
        let (count, sum) = if is_request { (requests, request_bytes) } else { (answers, answer_bytes) };
        count.fetch_add(1, Ordering::Relaxed);
        sum.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn closed(&self, calls: usize) {
        self.open.fetch_sub(calls, Ordering::AcqRel);
    }

    /// The session ends: whoever waits is told, and whatever runs for the peer is stopped. Nothing that waits was done, if the
    /// peer has said so.
    pub(super) fn end(&self, is_drained: bool) {
        self.small.semaphore.close();
        self.large.semaphore.close();
        let mut asked = lock(&self.asked);
        asked.ended = true;
        let waiting = std::mem::take(&mut asked.waiting);
        drop(asked);
        let mut serving = lock(&self.serving);
        serving.ended = true;
        let running = std::mem::take(&mut serving.running);
        drop(serving);
        self.closed(waiting.len() + running.len());
        for waiter in waiting.into_values() {
            match waiter {
                Waiter::Answer(done) if is_drained => drop(done.send(Answer::Failed(Status::ShuttingDown))),
                Waiter::Answer(done) => drop(done.send(Answer::SessionEnded)),
                Waiter::Items(items) if is_drained => items.cut(StreamEnd::Status(Status::ShuttingDown)),
                Waiter::Items(items) => items.cut(StreamEnd::SessionEnded),
            }
        }
        running.into_values().for_each(|running| running.call.end());
    }

    fn room(&self, is_large: bool) -> &Room {
        if is_large { &self.large } else { &self.small }
    }
}

/// Room for what waits for the socket; a frame larger than all of it takes all of it.
#[derive(Debug)]
struct Room {
    semaphore: Semaphore,
    size: usize,
    /// Counts who waits for it.
    pressure: Arc<Pressure>,
}

impl Room {
    fn new(size: usize, pressure: &Arc<Pressure>) -> Self {
        Self { semaphore: Semaphore::new(size), size, pressure: pressure.clone() }
    }

    /// Bytes that are in use.
    fn taken(&self) -> usize {
        self.size.saturating_sub(self.semaphore.available_permits())
    }

    fn try_take(&self, bytes: usize) -> Option<usize> {
        let bytes = bytes.min(self.size);
        self.semaphore.try_acquire_many(bytes as u32).ok()?.forget();
        Some(bytes)
    }

    async fn take(&self, bytes: usize) -> Option<usize> {
        if let Some(taken) = self.try_take(bytes) {
            return Some(taken);
        }
        let bytes = bytes.min(self.size);
        let _blocked = self.pressure.enter();
        self.semaphore.acquire_many(bytes as u32).await.ok()?.forget();
        Some(bytes)
    }

    fn give(&self, bytes: usize) {
        if bytes > 0 {
            self.semaphore.add_permits(bytes);
        }
    }
}

/// What a frame takes in a buffer beside its body: about its head.
const HEAD_COST: usize = 16;

/// Room that was taken for one frame.
#[derive(Debug)]
pub(crate) struct Taken(usize);

/// What this side has declared in a session.
#[derive(Debug, Default)]
pub(super) struct Terms {
    list: Vec<Term>,
    numbers: HashMap<String, Vec<(TypeId, u64)>>,
}

impl Terms {
    /// How to speak of a method's requests, or of answers, whose method is empty.
    fn refer(&mut self, method: &str, kind: Kind) -> TermRef {
        if let Some(known) = self.numbers.get(method)
            && let Some((_, number)) = known.iter().find(|(id, _)| *id == kind.id)
        {
            return TermRef::Number(*number);
        }
        let term = Term { method: method.to_owned(), schema: (kind.schema)() };
        let number = self.list.len() as u64 + 1;
        if number > TERMS_MAX {
            return TermRef::InFull(Box::new(term));
        }
        self.list.push(term);
        self.numbers.entry(method.to_owned()).or_default().push((kind.id, number));
        TermRef::Number(number)
    }

    /// Says what was not said on a stream, which has heard so many.
    pub(super) fn declare(&self, said: &mut usize, out: &mut Vec<u8>) {
        for (at, term) in self.list.iter().enumerate().skip(*said) {
            CallHead::Term { number: at as u64 + 1, term: term.clone() }.put(out, 0);
        }
        *said = self.list.len();
    }

    fn declare_one(&self, term: &TermRef, out: &mut Vec<u8>) {
        if let TermRef::Number(number) = term {
            let term = self.list[*number as usize - 1].clone();
            CallHead::Term { number: *number, term }.put(out, 0);
        }
    }
}

/// What the peer has declared on one stream.
#[derive(Debug, Default)]
pub(super) struct Heard(Vec<Option<Arc<Term>>>);

impl Heard {
    fn read(&self, term: TermRef) -> Result<Arc<Term>, Code> {
        match term {
            TermRef::InFull(term) => Ok(Arc::new(*term)),
            TermRef::Number(number) => {
                let term = usize::try_from(number).ok().and_then(|number| self.0.get(number));
                term.cloned().flatten().ok_or(Code::PROTOCOL)
            }
        }
    }
}

/// A large frame, for a stream of its own.
#[derive(Debug)]
pub(super) struct LargeCall {
    pub(super) head: Vec<u8>,
    pub(super) body: Bytes,
    pub(super) cost: usize,
    /// Closed when nobody wants the frame to arrive any more; told when it is written. `None` for one that goes in any case.
    pub(super) wanted: Option<oneshot::Sender<()>>,
}

impl LargeCall {
    pub(super) fn is_wanted(&self) -> bool {
        self.wanted.as_ref().is_none_or(|wanted| !wanted.is_closed())
    }
}

/// The answer to come. Dropping it gives the call up.
#[derive(Debug)]
pub(crate) struct Awaited {
    session: Arc<Session>,
    id: u64,
    answer: oneshot::Receiver<Answer>,
    is_over: bool,
    /// Keeps a large request on its way.
    _wanted: Option<oneshot::Receiver<()>>,
}

impl Future for Awaited {
    type Output = Answer;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Answer> {
        let answer = ready!(Pin::new(&mut self.answer).poll(context));
        self.is_over = true;
        Poll::Ready(answer.unwrap_or(Answer::SessionEnded))
    }
}

impl Drop for Awaited {
    fn drop(&mut self) {
        self._wanted = None;
        if !self.is_over {
            self.session.give_up(self.id);
        }
    }
}

/// One item as it arrived.
type Item = (Arc<Term>, Bytes);

/// Items that have arrived for a caller.
#[derive(Debug)]
pub(crate) struct ItemsIn {
    state: Mutex<ItemsState>,
}

#[derive(Debug)]
struct ItemsState {
    flow: Inflow<Item, StreamEnd>,
    reader: Option<Waker>,
}

impl ItemsIn {
    pub(crate) fn new(window: u64) -> Arc<Self> {
        Arc::new(Self { state: Mutex::new(ItemsState { flow: Inflow::new(window), reader: None }) })
    }

    fn wake(mut state: MutexGuard<'_, ItemsState>, is_new: bool) {
        let reader = if is_new { state.reader.take() } else { None };
        drop(state);
        if let Some(reader) = reader {
            reader.wake();
        }
    }

    pub(crate) fn arrived(&self, number: u64, term: Arc<Term>, body: Bytes) -> Result<(), Violation> {
        let mut state = lock(&self.state);
        let is_new = state.flow.receive(number, body.len(), (term, body))?;
        Self::wake(state, is_new);
        Ok(())
    }

    pub(crate) fn finish(&self, items: u64, end: StreamEnd) -> Result<(), Violation> {
        let mut state = lock(&self.state);
        let is_new = state.flow.finish(items, end)?;
        Self::wake(state, is_new);
        Ok(())
    }

    fn cut(&self, end: StreamEnd) {
        let mut state = lock(&self.state);
        state.flow.cut(end);
        Self::wake(state, true);
    }

    /// The next item, and the limit to tell the callee.
    #[expect(clippy::needless_pass_by_ref_mut, reason = "the shape of every poll")]
    pub(crate) fn poll_take(&self, context: &mut Context<'_>) -> Poll<(Result<Item, StreamEnd>, Option<u64>)> {
        let mut state = lock(&self.state);
        match state.flow.take() {
            (Next::Item(item), limit) => Poll::Ready((Ok(item), limit)),
            (Next::End(end), limit) => Poll::Ready((Err(end), limit)),
            (Next::Wait, _) => {
                state.reader = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

/// The credit of a handler that sends items.
#[derive(Debug)]
pub(crate) struct ItemsOut {
    flow: Mutex<Outflow>,
    granted: Notify,
}

impl ItemsOut {
    pub(crate) fn new(limit: u64) -> Arc<Self> {
        Arc::new(Self { flow: Mutex::new(Outflow::new(limit)), granted: Notify::new() })
    }

    /// Waits until the next item may go. There is one sender.
    pub(crate) async fn credit(&self) {
        while !lock(&self.flow).may_send() {
            self.granted.notified().await;
        }
    }

    pub(crate) fn grant(&self, limit: u64) {
        if lock(&self.flow).granted(limit) {
            self.granted.notify_one();
        }
    }

    /// The number of the next item; `None` after the end.
    pub(crate) fn number(&self, body: usize) -> Option<u64> {
        lock(&self.flow).send(body)
    }

    /// Ends the stream after so many items.
    pub(crate) fn end(&self) -> u64 {
        let items = lock(&self.flow).end();
        self.granted.notify_one();
        items
    }
}

impl Session {
    // What handles do.

    /// Waits for room for a frame with so large a body; `None` when the session ends.
    pub(crate) async fn call_room(&self, body: usize) -> Option<Taken> {
        self.exchange.room(self.is_large_call(body)).take(body + HEAD_COST).await.map(Taken)
    }

    pub(crate) fn try_call_room(&self, body: usize) -> Option<Taken> {
        self.exchange.room(self.is_large_call(body)).try_take(body + HEAD_COST).map(Taken)
    }

    /// Makes a call, for which there is room.
    pub(crate) fn request(self: &Arc<Self>, room: Taken, ask: Ask<'_>) -> Result<Awaited, RequestError> {
        let is_large = self.is_large_call(ask.question.body.len());
        let (done, answer) = oneshot::channel();
        let id = self.register(Waiter::Answer(done), &room, is_large)?;
        let _wanted = self.push_request(room, id, ask, CallMode::Answer);
        Ok(Awaited { session: self.clone(), id, answer, is_over: false, _wanted })
    }

    /// Makes a call that is answered by items. Waits for room. The stream is given up by [`Session::give_up`].
    pub(crate) async fn request_items(
        self: &Arc<Self>,
        ask: Ask<'_>,
        items: Arc<ItemsIn>,
        limit: u64,
    ) -> Result<(u64, Option<oneshot::Receiver<()>>), RequestError> {
        let is_large = self.is_large_call(ask.question.body.len());
        let room = self.call_room(ask.question.body.len()).await.ok_or(RequestError::SessionEnded)?;
        let id = self.register(Waiter::Items(items), &room, is_large)?;
        Ok((id, self.push_request(room, id, ask, CallMode::Items { limit })))
    }

    /// Makes a call that nobody waits for. Waits for room.
    pub(crate) async fn cast(&self, ask: Ask<'_>) -> Result<(), RequestError> {
        let room = self.call_room(ask.question.body.len()).await.ok_or(RequestError::SessionEnded)?;
        let mut asked = lock(&self.exchange.asked);
        if asked.ended {
            return Err(RequestError::SessionEnded);
        }
        asked.last += 1;
        let id = asked.last;
        drop(asked);
        let Ask { method, question, timeout_ms, trace } = ask;
        let mode = CallMode::Nothing;
        self.push(room, id, method, question, false, |term| CallHead::Call { id, term, timeout_ms, mode, trace });
        Ok(())
    }

    fn register(&self, waiter: Waiter, room: &Taken, is_large: bool) -> Result<u64, RequestError> {
        let mut asked = lock(&self.exchange.asked);
        if asked.ended {
            return Err(RequestError::SessionEnded);
        }
        if asked.waiting.len() >= self.exchange.calls_max {
            drop(asked);
            self.exchange.room(is_large).give(room.0);
            return Err(RequestError::Overloaded);
        }
        asked.last += 1;
        let id = asked.last;
        asked.waiting.insert(id, waiter);
        // Under the lock, so that it is counted before it can be over.
        self.exchange.open.fetch_add(1, Ordering::AcqRel);
        Ok(id)
    }

    fn push_request(&self, room: Taken, id: u64, ask: Ask<'_>, mode: CallMode) -> Option<oneshot::Receiver<()>> {
        let Ask { method, question, timeout_ms, trace } = ask;
        self.push(room, id, method, question, true, |term| CallHead::Call { id, term, timeout_ms, mode, trace })
    }

    /// Queues a frame with a body. A large one that is revocable is wanted until what is returned is dropped, and tells when
    /// it is written.
    fn push(
        &self,
        room: Taken,
        key: u64,
        method: &str,
        content: Content,
        is_revocable: bool,
        head: impl FnOnce(TermRef) -> CallHead,
    ) -> Option<oneshot::Receiver<()>> {
        let Content { kind, body } = content;
        let is_request = !method.is_empty();
        if !self.is_large_call(body.len()) {
            self.push_call(key, room.0, Some((is_request, body.len())), |terms, out| {
                head(terms.refer(method, kind)).put(out, body.len());
                out.extend_from_slice(&body);
            });
            return None;
        }
        let (wanted, written) = is_revocable.then(oneshot::channel).unzip();
        self.push_large_call(is_request, |terms| {
            let mut out = Vec::new();
            let term = terms.refer(method, kind);
            terms.declare_one(&term, &mut out);
            head(term).put(&mut out, body.len());
            LargeCall { head: out, body, cost: room.0, wanted }
        });
        written
    }

    fn push_bare(&self, key: u64, head: &CallHead) {
        self.push_call(key, 0, None, |_, out| head.put(out, 0));
    }

    /// Nobody waits for the answer any more: the callee is told.
    pub(crate) fn give_up(&self, id: u64) {
        if lock(&self.exchange.asked).waiting.remove(&id).is_none() {
            return;
        }
        self.exchange.closed(1);
        self.drop_unwanted();
        // A cancel takes no room: it is small, and there is at most one per call that had room.
        self.push_bare(id, &CallHead::Cancel { id });
    }

    /// The reader of a stream has read on.
    pub(crate) fn credit(&self, id: u64, limit: u64) {
        // There is one per half a window that was read.
        self.push_bare(id, &CallHead::Credit { id, limit });
    }

    /// Sends a reply to whoever asked.
    pub(crate) fn reply(&self, room: Taken, serial: u64, secret: [u8; 8], content: Content) {
        self.push(room, serial, "", content, false, |term| CallHead::Reply { serial, secret, term });
    }

    // What handlers do.

    /// Sends an answer if that needs no waiting; else it comes back.
    pub(super) fn answer_now(&self, served: ServedId, content: Content) -> Option<Content> {
        if self.is_large_call(content.body.len()) {
            return Some(content);
        }
        let Some(room) = self.try_call_room(content.body.len()) else { return Some(content) };
        let id = served.id;
        self.push(room, id, "", content, true, |term| CallHead::Answer { id, term });
        self.finished(served);
        None
    }

    /// Sends an answer. Waits for room, and until a large answer has been handed over.
    pub(super) async fn answer(&self, served: ServedId, content: Content) {
        let id = served.id;
        if let Some(room) = self.call_room(content.body.len()).await
            && let Some(written) = self.push(room, id, "", content, true, |term| CallHead::Answer { id, term })
        {
            let _ = written.await;
        }
        self.finished(served);
    }

    /// Sends an item. Waits for credit and room; dropped before that, it sends nothing. Says whether the item was sent.
    pub(super) async fn item(&self, served: ServedId, items: &ItemsOut, content: Content) -> bool {
        let id = served.id;
        items.credit().await;
        let Some(room) = self.call_room(content.body.len()).await else { return false };
        let Some(number) = items.number(content.body.len()) else {
            self.exchange.room(self.is_large_call(content.body.len())).give(room.0);
            return false;
        };
        let written = self.push(room, id, "", content, false, |term| CallHead::Item { id, number, term });
        debug_assert!(written.is_none(), "an item with a number goes in any case");
        true
    }

    /// Ends a call without an answer, or after its items, unless nobody waits any more.
    pub(super) fn end_call(&self, served: ServedId, status: Status, items: u64) {
        let id = served.id;
        if self.finished(served) {
            // Takes no room: there is one per handler that had a place.
            self.push_bare(id, &CallHead::End { id, status, items });
        }
    }

    /// Whether the call was open until now.
    fn finished(&self, served: ServedId) -> bool {
        let mut serving = lock(&self.exchange.serving);
        let was_open = match serving.running.entry(served.id) {
            Entry::Occupied(running) if running.get().serial == served.serial => {
                running.remove();
                true
            }
            _ => false,
        };
        drop(serving);
        self.exchange.closed(usize::from(was_open));
        was_open
    }

    // What links do.

    /// Takes a frame of the peer. Never waits.
    ///
    /// # Errors
    /// The code to close the link with, when the peer broke a rule or reached a limit.
    pub(super) fn receive_call(
        self: &Arc<Self>,
        shared: &Arc<Shared>,
        heard: &mut Heard,
        frame: CallFrame,
        now: Instant,
    ) -> Result<(), Code> {
        let CallFrame { head, mut body } = frame;
        if body.len() < COPY_BELOW {
            body = Bytes::copy_from_slice(&body);
        }
        if body.len() > shared.config.message_max {
            return Err(Code::FRAME_TOO_LARGE);
        }
        match &head {
            CallHead::Call { .. } => self.exchange.arrived(true, body.len()),
            head if head.has_body() => self.exchange.arrived(false, body.len()),
            _ => {}
        }
        match head {
            CallHead::Term { number, term } => self.learn(heard, number, term)?,
            CallHead::Call { id, term, timeout_ms, mode, trace } => {
                let term = heard.read(term)?;
                calls::serve(shared, self, calls::Arrived { id, timeout_ms, mode, trace, term, body, now })?;
            }
            CallHead::Answer { id, term } => {
                let term = heard.read(term)?;
                self.answered(shared, id, Answer::Answered { term, body })?;
            }
            CallHead::Item { id, number, term } => {
                let term = heard.read(term)?;
                let waiter = match lock(&self.exchange.asked).waiting.get(&id) {
                    Some(Waiter::Items(items)) => Some(items.clone()),
                    Some(Waiter::Answer(_)) => return Err(Code::PROTOCOL),
                    None => None,
                };
                match waiter {
                    Some(items) => {
                        items.arrived(number, term, body).map_err(|violation| self.broken_call(violation))?
                    }
                    None => shared.counters.late(),
                }
            }
            CallHead::End { id, status, items } => self.ended_by_callee(shared, id, status, items)?,
            CallHead::Cancel { id } => self.cancelled_by_caller(id),
            CallHead::Credit { id, limit } => {
                let running = lock(&self.exchange.serving);
                let items = running.running.get(&id).and_then(|running| running.items.clone());
                drop(running);
                if let Some(items) = items {
                    items.grant(limit);
                }
            }
            CallHead::Reply { serial, secret, term } => {
                let term = heard.read(term)?;
                if !shared.asks.replied(serial, secret, term, body) {
                    shared.counters.late();
                }
            }
        }
        Ok(())
    }

    fn learn(&self, heard: &mut Heard, number: u64, term: Term) -> Result<(), Code> {
        if number > TERMS_MAX {
            return Err(Code::LIMIT);
        }
        let at = number as usize;
        let mut terms = lock(&self.exchange.terms);
        let known = terms.entry(number).or_insert_with(|| Arc::new(term.clone()));
        if **known != term {
            return Err(Code::PROTOCOL);
        }
        if heard.0.len() <= at {
            heard.0.resize(at + 1, None);
        }
        heard.0[at] = Some(known.clone());
        Ok(())
    }

    fn answered(&self, shared: &Shared, id: u64, answer: Answer) -> Result<(), Code> {
        let mut asked = lock(&self.exchange.asked);
        // Nobody waits: it ends here.
        let Entry::Occupied(waiter) = asked.waiting.entry(id) else {
            drop(asked);
            shared.counters.late();
            return Ok(());
        };
        if matches!(waiter.get(), Waiter::Items(_)) {
            return Err(Code::PROTOCOL);
        }
        let waiter = waiter.remove();
        drop(asked);
        self.exchange.closed(1);
        if let Waiter::Answer(done) = waiter {
            let _ = done.send(answer);
        }
        Ok(())
    }

    fn ended_by_callee(&self, shared: &Shared, id: u64, status: Status, items: u64) -> Result<(), Code> {
        let stream = match lock(&self.exchange.asked).waiting.get(&id) {
            Some(Waiter::Items(stream)) => Some(stream.clone()),
            _ => None,
        };
        let Some(stream) = stream else { return self.answered(shared, id, Answer::Failed(status)) };
        stream.finish(items, StreamEnd::Status(status)).map_err(|violation| self.broken_call(violation))
    }

    /// The reader of a stream has come to its end.
    pub(crate) fn stream_over(&self, id: u64) {
        let was_open = lock(&self.exchange.asked).waiting.remove(&id).is_some();
        self.exchange.closed(usize::from(was_open));
    }

    fn broken_call(&self, violation: Violation) -> Code {
        tracing::debug!(target: target::PROTOCOL, peer = %self.peer, %violation, "the peer breaks the rules of calls");
        Code::PROTOCOL
    }

    fn cancelled_by_caller(&self, id: u64) {
        let mut serving = lock(&self.exchange.serving);
        let running = serving.running.remove(&id);
        if running.is_none() {
            serving.cancelled.remember(id);
        }
        drop(serving);
        if let Some(running) = running {
            self.exchange.closed(1);
            running.call.end();
        }
    }

    /// Starts a handler for a call of the peer, unless the session has ended, the id is in use, or the call was cancelled
    /// before it came.
    pub(super) fn serve(
        &self,
        id: u64,
        call: Arc<CallState>,
        items: Option<Arc<ItemsOut>>,
        start: impl FnOnce(ServedId) -> Result<(), Status>,
    ) -> Result<(), Code> {
        let mut serving = lock(&self.exchange.serving);
        if serving.ended || serving.running.contains_key(&id) || serving.cancelled.take(id) {
            return Ok(());
        }
        // First, so that the handler's end cannot come before its beginning.
        serving.last += 1;
        let served = ServedId { id, serial: serving.last };
        serving.running.insert(id, Running { serial: served.serial, call, items });
        let before = self.exchange.open.fetch_add(1, Ordering::AcqRel);
        drop(serving);
        if let Err(status) = start(served) {
            self.finished(served);
            return self.refuse(id, status);
        }
        if before == 0
            && let Some(carrier) = self.carrier()
        {
            carrier.work_began();
        }
        Ok(())
    }

    /// Answers that a call will not be handled. A peer that floods and does not read the refusals reaches its limit.
    fn refuse(&self, id: u64, status: Status) -> Result<(), Code> {
        self.push_bare(id, &CallHead::End { id, status, items: 0 });
        let unread = self.exchange.refusals.fetch_add(1, Ordering::Relaxed);
        if unread > REFUSALS_MAX { Err(Code::LIMIT) } else { Ok(()) }
    }

    pub(super) fn large_call_written(&self, cost: usize) {
        self.exchange.large_written(cost);
    }

    /// How many calls of this side wait for answers.
    pub(crate) fn calls_waiting(&self) -> usize {
        self.exchange.waiting()
    }

    /// How many of these are streams.
    pub(crate) fn streams_waiting(&self) -> usize {
        self.exchange.streams()
    }

    /// How many handlers work for the peer.
    pub(crate) fn handlers_at_work(&self) -> usize {
        self.exchange.load.handlers()
    }
}

/// Why a request was not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RequestError {
    Overloaded,
    SessionEnded,
}
