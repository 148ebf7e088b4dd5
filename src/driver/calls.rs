//! The methods that a node serves, and the handlers at work.

use std::any::Any;
use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use super::exchange::{Answer, Content, ItemsIn, ItemsOut, ServedId, StreamEnd};
use super::session::Session;
use super::{Shared, lock};
use crate::config::LONGEST;
use crate::id::NodeId;
use crate::trace::Trace;
use crate::wire::{CallMode, Code, Status, Term};

/// What is known of a call that is handled here, to all that have to do with it.
#[derive(Debug)]
pub(crate) struct CallState {
    pub(crate) caller: NodeId,
    pub(crate) is_local: bool,
    pub(crate) deadline: Instant,
    pub(crate) trace: Option<Trace>,
    /// Nobody waits for it any more, or its handler has returned.
    is_over: AtomicBool,
    told: Notify,
}

impl CallState {
    pub(crate) fn new(caller: NodeId, is_local: bool, deadline: Instant, trace: Option<Trace>) -> Arc<Self> {
        Arc::new(Self { caller, is_local, deadline, trace, is_over: AtomicBool::new(false), told: Notify::new() })
    }

    pub(crate) fn end(&self) {
        self.is_over.store(true, Ordering::Release);
        self.told.notify_waiters();
    }

    pub(crate) fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Acquire)
    }

    pub(crate) async fn over(&self) {
        let told = self.told.notified();
        tokio::pin!(told);
        // Before the look, so that no end falls between.
        told.as_mut().enable();
        if !self.is_over() {
            told.await;
        }
    }
}

/// A request as its handler sees it.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) call: Arc<CallState>,
    pub(crate) term: Arc<Term>,
    pub(crate) body: Bytes,
}

/// A method being served.
pub(crate) trait Handler: Send + Sync {
    /// Runs the handler in a task of its own. Never waits.
    fn spawn(self: Arc<Self>, request: Request, reply: Reply);

    /// Whether it answers with a stream of items.
    fn is_stream(&self) -> bool;
}

/// A handler, with a number of its own.
type Served = (u64, Arc<dyn Handler>);

/// The methods of a node, by name.
pub(crate) struct Methods {
    served: RwLock<HashMap<String, Served>>,
    next: AtomicU64,
    load: Arc<Load>,
    /// Handlers that nobody waits for, so that the end of the node is theirs too.
    casts: Mutex<HashMap<u64, Arc<CallState>>>,
}

impl std::fmt::Debug for Methods {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Methods")
    }
}

impl Methods {
    pub(crate) fn new(handlers_max: usize, bytes_max: usize) -> Self {
        Self {
            served: RwLock::default(),
            next: AtomicU64::new(0),
            load: Arc::new(Load::new(handlers_max, bytes_max)),
            casts: Mutex::default(),
        }
    }

    /// Serves a method; `None` when its name is taken.
    pub(crate) fn serve(&self, name: &str, handler: Arc<dyn Handler>) -> Option<u64> {
        let mut served = self.served.write().unwrap_or_else(PoisonError::into_inner);
        if served.contains_key(name) {
            return None;
        }
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        served.insert(name.to_owned(), (id, handler));
        Some(id)
    }

    /// Serves the method no longer, if it is still the one of that id.
    pub(crate) fn remove(&self, name: &str, id: u64) {
        let mut served = self.served.write().unwrap_or_else(PoisonError::into_inner);
        if served.get(name).is_some_and(|(served, _)| *served == id) {
            served.remove(name);
        }
    }

    fn handler(&self, name: &str) -> Option<Arc<dyn Handler>> {
        let served = self.served.read().unwrap_or_else(PoisonError::into_inner);
        served.get(name).map(|(_, handler)| handler.clone())
    }

    /// The handler that a request asks for, or why there is none.
    fn find(&self, shared: &Shared, name: &str, mode: CallMode) -> Result<Arc<dyn Handler>, Status> {
        if shared.is_stopping() {
            return Err(Status::ShuttingDown);
        }
        let handler = self.handler(name).ok_or(Status::NoSuchMethod)?;
        // A cast may go to either; what a stream says is then thrown away.
        let is_meant = match mode {
            CallMode::Answer => !handler.is_stream(),
            CallMode::Items { .. } => handler.is_stream(),
            CallMode::Nothing => true,
        };
        if is_meant { Ok(handler) } else { Err(Status::Mismatch) }
    }

    /// Waits until no handler runs.
    pub(crate) async fn drained(&self) {
        loop {
            let idle = self.load.idle.notified();
            tokio::pin!(idle);
            idle.as_mut().enable();
            if self.load.handlers() == 0 {
                return;
            }
            idle.await;
        }
    }

    /// The node ends: nobody waits for what still runs.
    pub(crate) fn end(&self) {
        let casts = std::mem::take(&mut *lock(&self.casts));
        casts.into_values().for_each(|call| call.end());
    }

    /// How many handlers run, and what their requests take.
    pub(crate) fn load(&self) -> (usize, usize) {
        (self.load.handlers(), self.load.bytes.load(Ordering::Acquire))
    }
}

/// How many handlers run, of a node or for a peer, and what their requests take.
#[derive(Debug)]
pub(crate) struct Load {
    handlers: AtomicUsize,
    handlers_max: usize,
    bytes: AtomicUsize,
    bytes_max: usize,
    idle: Notify,
}

impl Load {
    pub(crate) fn new(handlers_max: usize, bytes_max: usize) -> Self {
        Self { handlers: AtomicUsize::new(0), handlers_max, bytes: AtomicUsize::new(0), bytes_max, idle: Notify::new() }
    }

    pub(crate) fn handlers(&self) -> usize {
        self.handlers.load(Ordering::SeqCst)
    }

    /// Takes a place, if there is one. One request always may take what it needs.
    fn take(&self, bytes: usize) -> bool {
        let handlers = self.handlers.fetch_add(1, Ordering::SeqCst);
        let before = self.bytes.fetch_add(bytes, Ordering::AcqRel);
        let has_room = before == 0 || before + bytes <= self.bytes_max;
        if handlers < self.handlers_max && has_room {
            return true;
        }
        self.give(bytes);
        false
    }

    fn give(&self, bytes: usize) {
        self.bytes.fetch_sub(bytes, Ordering::AcqRel);
        if self.handlers.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.idle.notify_waiters();
        }
    }
}

/// Where a handler's outcome goes, with its place among the handlers. Dropped without an outcome, it says that the handler
/// was stopped; dropped at all, it gives the place back. So whoever does not read answers runs out of places.
#[derive(Debug)]
pub(crate) struct Reply {
    shared: Arc<Shared>,
    to: To,
    /// What the request takes.
    bytes: usize,
    is_over: AtomicBool,
}

#[derive(Debug)]
enum To {
    Peer { session: Arc<Session>, call: ServedId, items: Option<Arc<ItemsOut>> },
    Local(Mutex<Option<oneshot::Sender<Answer>>>),
    LocalItems { out: Arc<ItemsOut>, inn: Arc<ItemsIn> },
    Cast { id: u64, from: Option<Arc<Session>> },
}

impl To {
    fn peer(&self) -> Option<&Arc<Session>> {
        match self {
            Self::Peer { session, .. } => Some(session),
            Self::Cast { from, .. } => from.as_ref(),
            Self::Local(_) | Self::LocalItems { .. } => None,
        }
    }
}

impl Reply {
    /// Takes a place for a request of that size, if there is one.
    fn new(shared: &Arc<Shared>, to: To, bytes: usize) -> Result<Self, Status> {
        let peer = to.peer().map(|session| session.handlers());
        if peer.is_some_and(|peer| !peer.take(bytes)) {
            return Err(Status::Overloaded);
        }
        if !shared.methods.load.take(bytes) {
            if let Some(peer) = peer {
                peer.give(bytes);
            }
            return Err(Status::Overloaded);
        }
        let reply = Self { shared: shared.clone(), to, bytes, is_over: AtomicBool::new(false) };
        // Once more: whoever has seen that no handler runs, after the node had begun to stop, will see none.
        if shared.is_stopping() {
            reply.is_over.store(true, Ordering::Relaxed);
            return Err(Status::ShuttingDown);
        }
        Ok(reply)
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// The largest answer or item.
    pub(crate) fn size_max(&self) -> usize {
        match &self.to {
            To::Peer { session, .. } => session.message_max,
            _ => self.shared.config.message_max,
        }
    }

    /// Sends an answer if that needs no waiting; else it comes back.
    pub(crate) fn send_now(&self, content: Content) -> Option<Content> {
        if content.body.len() <= self.size_max()
            && let To::Peer { session, call, .. } = &self.to
        {
            let content = session.answer_now(*call, content);
            self.is_over.store(content.is_none(), Ordering::Relaxed);
            return content;
        }
        Some(content)
    }

    /// Sends an answer. Waits until it has left.
    pub(crate) async fn send(&self, content: Content) {
        if content.body.len() > self.size_max() {
            return self.end(Status::AnswerTooLarge);
        }
        match &self.to {
            To::Peer { session, call, .. } => {
                session.answer(*call, content).await;
                self.is_over.store(true, Ordering::Relaxed);
            }
            To::Local(done) => {
                let term = Term { method: String::new(), schema: (content.kind.schema)() };
                if let Some(done) = lock(done).take() {
                    let _ = done.send(Answer::Answered { term: Arc::new(term), body: content.body });
                }
                self.is_over.store(true, Ordering::Relaxed);
            }
            To::LocalItems { .. } | To::Cast { .. } => self.end(Status::Answered),
        }
    }

    /// Sends an item. Waits for credit and room. Says whether it was sent, which it is not after the end.
    pub(crate) async fn item(&self, content: Content) -> bool {
        match &self.to {
            To::Peer { session, call, items: Some(items) } => session.item(*call, items, content).await,
            To::LocalItems { out, inn } => {
                out.credit().await;
                let Some(number) = out.number(content.body.len()) else { return false };
                let term = Term { method: String::new(), schema: (content.kind.schema)() };
                inn.arrived(number, Arc::new(term), content.body).is_ok()
            }
            // Nobody listens, but the handler of a cast goes on.
            _ => !self.is_over.load(Ordering::Relaxed),
        }
    }

    /// Says that there is no answer, or no further item.
    pub(crate) fn end(&self, status: Status) {
        if self.is_over.swap(true, Ordering::AcqRel) {
            return;
        }
        match &self.to {
            To::Peer { session, call, items } => {
                session.end_call(*call, status, items.as_ref().map_or(0, |items| items.end()));
            }
            To::Local(done) => {
                if let Some(done) = lock(done).take() {
                    let _ = done.send(Answer::Failed(status));
                }
            }
            To::LocalItems { out, inn } => drop(inn.finish(out.end(), StreamEnd::Status(status))),
            To::Cast { id, .. } => {
                let call = lock(&self.shared.methods.casts).remove(id);
                if status != Status::Answered {
                    if let Some(call) = call {
                        self.shared.journal.cast_failed(&call.caller, None, status);
                    }
                    self.shared.counters.cast_failed();
                }
            }
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        self.end(if std::thread::panicking() { Status::Panicked } else { Status::Cancelled });
        if let Some(session) = self.to.peer() {
            session.handlers().give(self.bytes);
        }
        self.shared.methods.load.give(self.bytes);
    }
}

/// A call of a peer.
#[derive(Debug)]
pub(super) struct Arrived {
    pub(super) id: u64,
    pub(super) timeout_ms: u64,
    pub(super) mode: CallMode,
    pub(super) trace: Option<Trace>,
    pub(super) term: Arc<Term>,
    pub(super) body: Bytes,
    /// When it arrived.
    pub(super) now: Instant,
}

/// Handles a peer's request: starts the method's handler, or answers why not. Never waits.
///
/// # Errors
/// The code to close the link with, when the peer has too many refusals unread.
pub(super) fn serve(shared: &Arc<Shared>, session: &Arc<Session>, call: Arrived) -> Result<(), Code> {
    let Arrived { id, timeout_ms, mode, trace, term, body, now } = call;
    let deadline = now + Duration::from_millis(timeout_ms).min(LONGEST);
    let methods = &shared.methods;
    let handler = methods.find(shared, &term.method, mode);
    let call = CallState::new(session.peer.clone(), false, deadline, trace);
    let request = Request { call: call.clone(), term, body };
    let start = |to| start(shared, handler, request, to);
    if mode == CallMode::Nothing {
        methods.cast(shared, call, Some(session.clone()), start);
        return Ok(());
    }
    let items = match mode {
        CallMode::Items { limit } => Some(ItemsOut::new(limit)),
        _ => None,
    };
    session.serve(id, call, items.clone(), |call| start(To::Peer { session: session.clone(), call, items }))
}

/// Starts a handler, if there is one and a place for it.
fn start(
    shared: &Arc<Shared>,
    handler: Result<Arc<dyn Handler>, Status>,
    request: Request,
    to: To,
) -> Result<(), Status> {
    let is_cast = matches!(to, To::Cast { .. });
    let placed = handler.and_then(|handler| Ok((handler, Reply::new(shared, to, request.body.len())?)));
    let (handler, reply) = placed.inspect_err(|status| {
        let (caller, method) = (&request.call.caller, request.term.method.as_str());
        shared.counters.refused(*status);
        if is_cast {
            shared.journal.cast_failed(caller, Some(method), *status);
        } else {
            shared.journal.call_refused(caller, method, *status);
        }
    })?;
    shared.counters.served();
    handler.spawn(request, reply);
    Ok(())
}

impl Methods {
    /// Starts a handler that nobody waits for.
    fn cast(
        &self,
        shared: &Shared,
        call: Arc<CallState>,
        from: Option<Arc<Session>>,
        start: impl FnOnce(To) -> Result<(), Status>,
    ) {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        // First, so that its end does not come before its beginning.
        lock(&self.casts).insert(id, call);
        if start(To::Cast { id, from }).is_err() {
            lock(&self.casts).remove(&id);
            shared.counters.cast_failed();
        }
    }

    fn start_local(&self, shared: &Arc<Shared>, mode: CallMode, request: Request, to: To) -> Result<(), Status> {
        let handler = self.find(shared, &request.term.method, mode);
        start(shared, handler, request, to)
    }
}

/// Ends a handler of this very node when nobody waits for it any more.
#[derive(Debug)]
pub(crate) struct EndOnDrop(Arc<CallState>);

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// Calls a method of this very node.
pub(crate) async fn call_local(shared: &Arc<Shared>, request: Request) -> Answer {
    let (done, answer) = oneshot::channel();
    let _running = EndOnDrop(request.call.clone());
    let to = To::Local(Mutex::new(Some(done)));
    if let Err(status) = shared.methods.start_local(shared, CallMode::Answer, request, to) {
        return Answer::Failed(status);
    }
    answer.await.unwrap_or(Answer::Failed(Status::Cancelled))
}

/// Calls a method of this very node that answers with items.
pub(crate) fn stream_local(
    shared: &Arc<Shared>,
    request: Request,
    inn: &Arc<ItemsIn>,
    limit: u64,
) -> (EndOnDrop, Arc<ItemsOut>) {
    let out = ItemsOut::new(limit);
    let running = EndOnDrop(request.call.clone());
    let to = To::LocalItems { out: out.clone(), inn: inn.clone() };
    if let Err(status) = shared.methods.start_local(shared, CallMode::Items { limit }, request, to) {
        let _ = inn.finish(0, StreamEnd::Status(status));
    }
    (running, out)
}

/// Casts to a method of this very node.
pub(crate) fn cast_local(shared: &Arc<Shared>, request: Request) {
    let methods = &shared.methods;
    methods.cast(shared, request.call.clone(), None, |to| methods.start_local(shared, CallMode::Nothing, request, to));
}

/// Runs a handler to its end, or until nobody waits for it any more, or its deadline; a panic is contained. All of it runs
/// in an environment.
pub(crate) async fn supervise<F: Future<Output = Result<(), Status>>>(
    mut work: Pin<&mut F>,
    call: &CallState,
    within: impl Fn(&mut dyn FnMut() -> Poll<F::Output>) -> Poll<F::Output>,
) -> Result<(), Status> {
    let mut work = poll_fn(|context| {
        // The future is not polled again after a panic, so nobody sees what it left half done.
        let mut poll = || {
            catch_unwind(AssertUnwindSafe(|| work.as_mut().poll(context)))
                .unwrap_or_else(|panic| Poll::Ready(panicked(panic)))
        };
        within(&mut poll)
    });
    // Most handlers are done at once: these need neither a timer nor to be told.
    if let Poll::Ready(outcome) = poll_fn(|context| Poll::Ready(Pin::new(&mut work).poll(context))).await {
        return outcome;
    }
    // Boxed, or each task would be as large as those that need it.
    let waiting = Box::pin(async {
        tokio::select! {
            biased;
            () = call.over() => Err(Status::Cancelled),
            outcome = &mut work => outcome,
            () = tokio::time::sleep_until(call.deadline) => Err(Status::Expired),
        }
    });
    waiting.await
}

/// Runs something of a user's; a panic is an outcome.
pub(crate) fn contained<T>(run: impl FnOnce() -> Result<T, Status>) -> Result<T, Status> {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(panicked)
}

fn panicked<T>(panic: Box<dyn Any + Send>) -> Result<T, Status> {
    drop(panic);
    Err(Status::Panicked)
}
