//! One call with one answer.

use std::fmt;
use std::future::{Future, IntoFuture};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::{Method, Rpc, Target, content, inherited};
use crate::config::LONGEST;
use crate::driver::calls::{CallState, Request, call_local};
use crate::driver::counters::CallCounters;
use crate::driver::exchange::{Answer, Ask, Content, RequestError, Taken};
use crate::driver::session::Session;
use crate::driver::{Shared, inside};
use crate::error::{CallError, ConnectError};
use crate::id::{NodeId, NodeName};
use crate::message::{Message, decode};
use crate::trace::Trace;
use crate::wire::{Status, TAG_MAX, Term};

/// A call about to be made: await it.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), distribute::Error> {
/// use std::time::Duration;
/// use distribute::{CallError, Cookie, Effect, Method, Node};
///
/// const NEVER: Method<(), ()> = Method::new("never");
///
/// let node = Node::builder("here@127.0.0.1:0").cookie(Cookie::generate()).start().await?;
/// node.rpc().serve(NEVER, |_call, ()| std::future::pending())?;
/// let patience = Duration::from_millis(10);
/// let error = node.rpc().call(node.name(), NEVER, ()).timeout(patience).await.unwrap_err();
/// assert_eq!(error, CallError::Timeout(patience));
/// assert_eq!(error.effect(), Effect::Unknown);
/// # node.shutdown().await;
/// # Ok(()) }
/// ```
///
/// # Errors
/// [`CallError`], at the deadline at the latest.
///
/// # Cancel safety
/// A call that is dropped is given up: the handler, if it runs, is dropped at the callee. A large request that is not
/// wholly written is taken back.
#[must_use = "a call is made when it is awaited"]
pub struct Call<'a, Q, R> {
    rpc: &'a Rpc,
    target: Target,
    method: Method<Q, R>,
    question: Q,
    timeout: Duration,
    trace: Option<Trace>,
}

impl<'a, Q, R> Call<'a, Q, R> {
    pub(super) fn new(rpc: &'a Rpc, target: Target, method: Method<Q, R>, question: Q) -> Self {
        Self { timeout: rpc.shared.config.call_timeout, trace: None, rpc, target, method, question }
    }

    /// Sets how long to wait, dialling included. The default is [`Config::call_timeout`](crate::Config::call_timeout),
    /// 5 s; more than a year counts as a year.
    ///
    /// In a handler the call has no more time than the handler has left, whatever is set here.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout.min(LONGEST);
        self
    }

    /// Sets the trace that the call belongs to. The default is that of the call that is handled here, if there is one.
    pub fn trace(mut self, trace: Trace) -> Self {
        self.trace = Some(trace);
        self
    }
}

impl<Q, R> fmt::Debug for Call<'_, Q, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call").field("node", &self.target.name).field("method", &self.method).finish_non_exhaustive()
    }
}

impl<'a, Q: Message, R: Message> IntoFuture for Call<'a, Q, R> {
    type Output = Result<R, CallError>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send + 'a>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.run())
    }
}

impl<Q: Message, R: Message> Call<'_, Q, R> {
    async fn run(self) -> Result<R, CallError> {
        let Self { rpc: Rpc { shared }, target, method, question, timeout, trace } = self;
        let wait = Wait::new(timeout, trace);
        let encoded = content(&question).map_err(|error| CallError::Encode(error.to_string()))?;
        // Only its bytes are kept for as long as the answer takes.
        drop(question);
        let counted = Counted::new(shared);
        let answered = counted.end(ask(shared, &target, method.name(), encoded, &wait).await);
        answered.and_then(|(term, body)| answer(shared, &term, &body))
    }
}

/// How long a call waits, and for which trace.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wait {
    pub(super) timeout: Duration,
    pub(super) deadline: Instant,
    pub(super) trace: Option<Trace>,
}

impl Wait {
    /// From now on, within the call that is handled here.
    pub(super) fn new(timeout: Duration, trace: Option<Trace>) -> Self {
        let (now, scope) = (Instant::now(), inherited());
        let deadline = scope.cap(now + timeout);
        Self { timeout: deadline.saturating_duration_since(now), deadline, trace: trace.or(scope.trace) }
    }

    fn remaining_ms(&self) -> u64 {
        self.deadline.saturating_duration_since(Instant::now()).as_millis() as u64
    }
}

/// Counts a call, and how it ends, also when it is dropped.
pub(super) struct Counted<'a>(Option<&'a CallCounters>);

impl<'a> Counted<'a> {
    pub(super) fn new(shared: &'a Shared) -> Self {
        CallCounters::count(&shared.counters.made);
        Self(Some(&shared.counters))
    }

    pub(super) fn end<T>(mut self, outcome: Result<T, CallError>) -> Result<T, CallError> {
        if let Some(counters) = self.0.take() {
            CallCounters::count(match &outcome {
                Ok(_) => &counters.answered,
                Err(CallError::Timeout(_)) => &counters.timed_out,
                Err(_) => &counters.failed,
            });
        }
        outcome
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        if let Some(counters) = self.0 {
            CallCounters::count(&counters.given_up);
        }
    }
}

/// Makes one call, with the question as it travels.
pub(super) async fn ask(
    shared: &Arc<Shared>,
    target: &Target,
    method: &str,
    question: Content,
    wait: &Wait,
) -> Result<(Arc<Term>, Bytes), CallError> {
    let size = question.body.len();
    // The common way waits for nothing but the answer. The others are boxed, or each call would be as large as they are.
    let (answer, callee) = match ready(shared, target, method, size)? {
        Some((session, room)) => {
            let ask = Ask { method, question, timeout_ms: wait.timeout.as_millis() as u64, trace: wait.trace };
            let awaited = session.request(room, ask).map_err(|error| not_sent(error, &session))?;
            let answer = tokio::time::timeout_at(wait.deadline, awaited).await;
            (answer.map_err(|_| CallError::Timeout(wait.timeout))?, Some(session))
        }
        None => {
            let slow = tokio::time::timeout_at(wait.deadline, ask_slowly(shared, target, method, question, wait));
            Box::pin(slow).await.map_err(|_| CallError::Timeout(wait.timeout))??
        }
    };
    match answer {
        Answer::Answered { term, body } => Ok((term, body)),
        Answer::Failed(Status::Expired) => Err(CallError::Timeout(wait.timeout)),
        Answer::Failed(status) => Err(failed(status, method)),
        Answer::SessionEnded => {
            Err(CallError::Disconnected(callee.map_or_else(|| shared.id(), |session| session.peer.clone())))
        }
    }
}

/// Makes a call to this node, or one that has to wait before it is sent.
async fn ask_slowly(
    shared: &Arc<Shared>,
    target: &Target,
    method: &str,
    question: Content,
    wait: &Wait,
) -> Result<(Answer, Option<Arc<Session>>), CallError> {
    match reach(shared, target, method, question.body.len()).await? {
        Callee::Here(caller) => {
            let term = Arc::new(Term { method: method.to_owned(), schema: (question.kind.schema)() });
            let &Wait { deadline, trace, .. } = wait;
            let call = CallState::new(caller, true, deadline, trace);
            let request = Request { call, term, body: question.body };
            Ok((call_local(shared, request).await, None))
        }
        Callee::There(session) => {
            let room = session.call_room(question.body.len()).await;
            let room = room.ok_or_else(|| not_sent(RequestError::SessionEnded, &session))?;
            let ask = Ask { method, question, timeout_ms: wait.remaining_ms(), trace: wait.trace };
            let awaited = session.request(room, ask).map_err(|error| not_sent(error, &session))?;
            Ok((awaited.await, Some(session)))
        }
    }
}

/// The session to call in, and room there, if there are both.
fn ready(
    shared: &Shared,
    target: &Target,
    method: &str,
    size: usize,
) -> Result<Option<(Arc<Session>, Taken)>, CallError> {
    let Some(session) = shared.session(&target.name) else { return Ok(None) };
    check(shared, &session, target, method, size)?;
    let room = session.try_call_room(size);
    Ok(room.map(|room| (session, room)))
}

/// Where a call goes.
pub(super) enum Callee {
    /// To this node, which calls itself this.
    Here(NodeId),
    There(Arc<Session>),
}

/// The node that is meant, dialled when there is no session with it.
pub(super) async fn reach(
    shared: &Arc<Shared>,
    target: &Target,
    method: &str,
    size: usize,
) -> Result<Callee, CallError> {
    let Target { name, life } = target;
    let session = match shared.session(name) {
        Some(session) => session,
        None => {
            let own = shared.id();
            if name == own.name() {
                checked_size(size, shared.config.message_max)?;
                let is_meant = life.as_ref().is_none_or(|life| *life == own);
                return if is_meant { Ok(Callee::Here(own)) } else { Err(superseded(target)) };
            }
            checked_size(size, shared.config.message_max)?;
            checked_name(method)?;
            let connected = shared.connect(name, false).await;
            connected.map_err(|error| CallError::NotConnected(name.clone(), Some(error)))?
        }
    };
    check(shared, &session, target, method, size)?;
    Ok(Callee::There(session))
}

/// Whether the call may be made in this session.
fn check(shared: &Shared, session: &Session, target: &Target, method: &str, size: usize) -> Result<(), CallError> {
    if target.life.as_ref().is_some_and(|life| *life != session.peer) {
        return Err(superseded(target));
    }
    checked_name(method)?;
    checked_size(size, shared.config.message_max)?;
    checked_size(size, session.message_max)
}

fn checked_size(size: usize, max: usize) -> Result<(), CallError> {
    if size > max { Err(CallError::TooLarge { size, max }) } else { Ok(()) }
}

/// A name that cannot be sent is served nowhere.
fn checked_name(method: &str) -> Result<(), CallError> {
    if method.len() > TAG_MAX { Err(CallError::NoSuchMethod(method.to_owned())) } else { Ok(()) }
}

fn superseded(target: &Target) -> CallError {
    CallError::NotConnected(target.name.clone(), target.life.clone().map(ConnectError::Superseded))
}

pub(super) fn not_sent(error: RequestError, session: &Session) -> CallError {
    match error {
        RequestError::Overloaded => CallError::Overloaded,
        RequestError::SessionEnded => CallError::NotConnected(NodeName::clone(session.peer.name()), None),
    }
}

pub(super) fn answer<R: Message>(shared: &Arc<Shared>, term: &Term, body: &Bytes) -> Result<R, CallError> {
    inside(shared, || decode(&term.schema, body)).map_err(|error| CallError::BadAnswer(error.to_string()))
}

/// What a callee's status means to the caller.
pub(super) fn failed(status: Status, method: &str) -> CallError {
    match status {
        Status::NoSuchMethod => CallError::NoSuchMethod(method.to_owned()),
        Status::Mismatch => CallError::Mismatch(method.to_owned()),
        Status::Undecodable => CallError::Undecodable,
        Status::Panicked => CallError::Panicked,
        Status::Cancelled | Status::Expired | Status::Answered => CallError::Cancelled,
        Status::ShuttingDown => CallError::ShuttingDown,
        Status::Overloaded => CallError::Overloaded,
        Status::AnswerTooLarge => CallError::AnswerTooLarge,
    }
}
