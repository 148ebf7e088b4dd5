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
use crate::driver::Shared;
use crate::driver::calls::{Request, call_local};
use crate::driver::counters::CallCounters;
use crate::driver::exchange::{Answer, Ask, Content, RequestError};
use crate::driver::session::Session;
use crate::error::{CallError, ConnectError};
use crate::id::{NodeId, NodeName};
use crate::message::{Message, decode};
use crate::messaging::inside;
use crate::trace::Trace;
use crate::wire::{Status, Term};

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
        let question = content(&question).map_err(|error| CallError::Encode(error.to_string()))?;
        let (term, body) = counted(shared, ask(shared, &target, method.name(), question, &wait)).await?;
        answer(shared, &term, &body)
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

    pub(super) fn remaining_ms(&self) -> u64 {
        self.deadline.saturating_duration_since(Instant::now()).as_millis() as u64
    }
}

/// Counts how a call ends, also when it is dropped.
pub(super) async fn counted<T>(
    shared: &Shared,
    call: impl Future<Output = Result<T, CallError>>,
) -> Result<T, CallError> {
    struct GivenUp<'a>(Option<&'a CallCounters>);
    impl Drop for GivenUp<'_> {
        fn drop(&mut self) {
            if let Some(counters) = self.0 {
                CallCounters::count(&counters.given_up);
            }
        }
    }
    let counters = &shared.counters;
    CallCounters::count(&counters.made);
    let mut given_up = GivenUp(Some(counters));
    let outcome = call.await;
    given_up.0 = None;
    CallCounters::count(match &outcome {
        Ok(_) => &counters.answered,
        Err(CallError::Timeout(_)) => &counters.timed_out,
        Err(_) => &counters.failed,
    });
    outcome
}

/// Makes one call, with the question as it travels.
pub(super) async fn ask(
    shared: &Arc<Shared>,
    target: &Target,
    method: &str,
    question: Content,
    wait: &Wait,
) -> Result<(Arc<Term>, Bytes), CallError> {
    let asking = async {
        match reach(shared, target, method, question.body.len()).await? {
            Callee::Here(caller) => {
                let term = Arc::new(Term { method: method.to_owned(), schema: (question.kind.schema)() });
                let &Wait { deadline, trace, .. } = wait;
                let request = Request { caller: caller.clone(), deadline, trace, term, body: question.body };
                Ok((call_local(shared, request).await, caller))
            }
            Callee::There(session) => {
                let ask = Ask { method, question, timeout_ms: wait.remaining_ms(), trace: wait.trace };
                let awaited = session.request(ask).await.map_err(|error| not_sent(error, &session))?;
                Ok((awaited.answer().await, session.peer.clone()))
            }
        }
    };
    let answered = tokio::time::timeout_at(wait.deadline, asking).await;
    let (answer, callee) = answered.map_err(|_| CallError::Timeout(wait.timeout))??;
    match answer {
        Answer::Answered { term, body } => Ok((term, body)),
        Answer::Failed(Status::Expired) => Err(CallError::Timeout(wait.timeout)),
        Answer::Failed(status) => Err(failed(status, method)),
        Answer::SessionEnded => Err(CallError::Disconnected(callee)),
    }
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
    let max = shared.config.message_max;
    if size > max {
        return Err(CallError::TooLarge { size, max });
    }
    if method.len() > crate::wire::TAG_MAX {
        return Err(CallError::NoSuchMethod(method.to_owned()));
    }
    let Target { name, life } = target;
    let superseded = || CallError::NotConnected(name.clone(), life.clone().map(ConnectError::Superseded));
    let session = match shared.session(name) {
        Some(session) => session,
        None => {
            let own = shared.id();
            if name == own.name() {
                let is_meant = life.as_ref().is_none_or(|life| *life == own);
                return if is_meant { Ok(Callee::Here(own)) } else { Err(superseded()) };
            }
            let connected = shared.connect(name, false).await;
            connected.map_err(|error| CallError::NotConnected(name.clone(), Some(error)))?
        }
    };
    if life.as_ref().is_some_and(|life| *life != session.peer) {
        return Err(superseded());
    }
    if size > session.message_max {
        return Err(CallError::TooLarge { size, max: session.message_max });
    }
    Ok(Callee::There(session))
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
