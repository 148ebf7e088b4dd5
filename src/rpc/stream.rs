//! Calls that are answered by a stream of items.

use std::fmt;
use std::future::{Future, IntoFuture, poll_fn};
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{Instant, Sleep};

use super::call::{Callee, answer, failed, not_sent, reach};
use super::{Method, Rpc, Target, content, inherited};
use crate::config::LONGEST;
use crate::driver::Shared;
use crate::driver::calls::{CallState, EndOnDrop, Request, stream_local};
use crate::driver::counters::CallCounters;
use crate::driver::exchange::{Ask, ItemsIn, ItemsOut, StreamEnd};
use crate::driver::session::Session;
use crate::error::CallError;
use crate::id::NodeId;
use crate::message::Message;
use crate::trace::Trace;
use crate::wire::{Status, Term};

/// A call for a stream, about to be made: await it, then read the [`CallStream`].
///
/// Resolves when the request is accepted, before the handler has begun.
///
/// # Errors
/// [`CallError`]; nothing was sent.
///
/// # Cancel safety
/// A call that is dropped before it resolves has sent nothing.
#[must_use = "a call is made when it is awaited"]
pub struct StreamCall<'a, Q, R> {
    rpc: &'a Rpc,
    target: Target,
    method: Method<Q, R>,
    question: Q,
    timeout: Duration,
    deadline: Option<Duration>,
    trace: Option<Trace>,
}

impl<'a, Q, R> StreamCall<'a, Q, R> {
    pub(super) fn new(rpc: &'a Rpc, target: Target, method: Method<Q, R>, question: Q) -> Self {
        let timeout = rpc.shared.config.call_timeout;
        Self { rpc, target, method, question, timeout, deadline: None, trace: None }
    }

    /// Sets how long to wait for the session, and then for each item: the longest silence. The default is
    /// [`Config::call_timeout`](crate::Config::call_timeout), 5 s; more than a year counts as a year.
    ///
    /// Only the time counts in which somebody waits for the next item.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout.min(LONGEST);
        self
    }

    /// Sets how long the whole stream may take, read or not; the handler is dropped then. There is no such limit by
    /// default, but in a handler: what it calls ends with it.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = Some(deadline.min(LONGEST));
        self
    }

    /// Sets the trace that the call belongs to, as [`Call::trace`](crate::Call::trace) does.
    pub fn trace(mut self, trace: Trace) -> Self {
        self.trace = Some(trace);
        self
    }
}

impl<Q, R> fmt::Debug for StreamCall<'_, Q, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let node = &self.target.name;
        f.debug_struct("StreamCall").field("node", node).field("method", &self.method).finish_non_exhaustive()
    }
}

impl<'a, Q: Message, R: Message> IntoFuture for StreamCall<'a, Q, R> {
    type Output = Result<CallStream<R>, CallError>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send + 'a>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.run())
    }
}

impl<Q: Message, R: Message> StreamCall<'_, Q, R> {
    async fn run(self) -> Result<CallStream<R>, CallError> {
        let Self { rpc: Rpc { shared }, target, method, question, timeout, deadline, trace } = self;
        let (now, scope) = (Instant::now(), inherited());
        let deadline = scope.cap(now + deadline.unwrap_or(LONGEST));
        let trace = trace.or(scope.trace);
        let total = deadline.saturating_duration_since(now);
        let question = content(&question).map_err(|error| CallError::Encode(error.to_string()))?;
        let window = shared.config.call_window as u64;
        let items = ItemsIn::new(window);
        let opening = async {
            match reach(shared, &target, method.name(), question.body.len()).await? {
                Callee::Here(callee) => {
                    let term = Term { method: method.name().to_owned(), schema: (question.kind.schema)() };
                    let (term, body) = (Arc::new(term), question.body);
                    let call = CallState::new(callee.clone(), true, deadline, trace);
                    let request = Request { call, term, body };
                    let (_running, out) = stream_local(shared, request, &items, window);
                    Ok((Source::Here { _running, out }, callee))
                }
                Callee::There(session) => {
                    let timeout_ms = deadline.saturating_duration_since(Instant::now()).as_millis() as u64;
                    let ask = Ask { method: method.name(), question, timeout_ms, trace };
                    let asked = session.request_items(ask, items.clone(), window).await;
                    let (id, _wanted) = asked.map_err(|error| not_sent(error, &session))?;
                    let callee = session.peer.clone();
                    Ok((Source::There { session, id, _wanted }, callee))
                }
            }
        };
        let patience = timeout.min(total);
        let opened = tokio::time::timeout_at(now + patience, opening).await;
        let (source, callee) = opened.map_err(|_| CallError::Timeout(patience))??;
        CallCounters::count(&shared.counters.made);
        Ok(CallStream {
            shared: shared.clone(),
            source: Some(source),
            callee,
            method: method.name().to_owned(),
            items,
            timeout,
            total,
            deadline,
            patience: Box::pin(tokio::time::sleep_until(deadline)),
            is_waiting: false,
            types: PhantomData,
        })
    }
}

/// The items that a callee answers with, in the order of sending; also a [`Stream`](futures_core::Stream).
///
/// The callee may be a window ahead of the reader ([`Config::call_window`](crate::Config::call_window), 256 KiB), and waits
/// then. The end of the stream is `None`; an error is the last that comes. Dropping it cancels the handler.
///
/// See [`Rpc::serve_stream`] for an example.
pub struct CallStream<R> {
    shared: Arc<Shared>,
    /// `None` once it is over.
    source: Option<Source>,
    callee: NodeId,
    method: String,
    items: Arc<ItemsIn>,
    /// For each item, and for all of them.
    timeout: Duration,
    total: Duration,
    deadline: Instant,
    patience: Pin<Box<Sleep>>,
    is_waiting: bool,
    types: PhantomData<fn() -> R>,
}

/// Where items come from. Dropping it gives the call up.
#[derive(Debug)]
enum Source {
    Here { _running: EndOnDrop, out: Arc<ItemsOut> },
    There { session: Arc<Session>, id: u64, _wanted: Option<oneshot::Receiver<()>> },
}

impl Source {
    fn credit(&self, limit: u64) {
        match self {
            Self::Here { out, .. } => out.grant(limit),
            Self::There { session, id, .. } => session.credit(*id, limit),
        }
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        if let Self::There { session, id, _wanted } = self {
            *_wanted = None;
            session.give_up(*id);
        }
    }
}

impl<R: Message> CallStream<R> {
    /// Waits for the next item; `None` at the end of the stream, and after an error.
    ///
    /// # Errors
    /// [`CallError::Timeout`] when nothing came in time, [`CallError::Disconnected`] when the session ended, what the callee
    /// says went wrong, or [`CallError::BadAnswer`]. The items before have been given out.
    ///
    /// # Cancel safety
    /// Dropping it loses no item.
    pub async fn next(&mut self) -> Option<Result<R, CallError>> {
        poll_fn(|context| self.poll_item(context)).await
    }

    fn poll_item(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<R, CallError>>> {
        let Some(source) = &self.source else { return Poll::Ready(None) };
        if let Poll::Ready((item, limit)) = self.items.poll_take(context) {
            self.is_waiting = false;
            if let Some(limit) = limit {
                source.credit(limit);
            }
            return Poll::Ready(match item {
                Ok((term, body)) => match answer(&self.shared, &term, &body) {
                    Ok(item) => Some(Ok(item)),
                    Err(error) => Some(Err(self.over(error))),
                },
                Err(end) => self.ended(end).map(Err),
            });
        }
        if !std::mem::replace(&mut self.is_waiting, true) {
            let until = self.deadline.min(Instant::now() + self.timeout);
            self.patience.as_mut().reset(until);
        }
        ready!(self.patience.as_mut().poll(context));
        let patience = if Instant::now() >= self.deadline { self.total } else { self.timeout };
        Poll::Ready(Some(Err(self.over(CallError::Timeout(patience)))))
    }

    /// The callee, or the end of the session, says that nothing follows.
    fn ended(&mut self, end: StreamEnd) -> Option<CallError> {
        if let Some(Source::There { session, id, .. }) = &self.source {
            session.stream_over(*id);
        }
        match end {
            StreamEnd::Status(Status::Answered) => {
                self.source = None;
                CallCounters::count(&self.shared.counters.answered);
                None
            }
            StreamEnd::Status(Status::Expired) => Some(self.over(CallError::Timeout(self.total))),
            StreamEnd::Status(status) => Some(self.over(failed(status, &self.method))),
            StreamEnd::SessionEnded => Some(self.over(CallError::Disconnected(self.callee.clone()))),
        }
    }

    /// Nothing follows this error.
    fn over(&mut self, error: CallError) -> CallError {
        self.source = None;
        let counters = &self.shared.counters;
        CallCounters::count(match error {
            CallError::Timeout(_) => &counters.timed_out,
            _ => &counters.failed,
        });
        error
    }
}

impl<R: Message> futures_core::Stream for CallStream<R> {
    type Item = Result<R, CallError>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.get_mut().poll_item(context)
    }
}

impl<R> Drop for CallStream<R> {
    fn drop(&mut self) {
        if self.source.is_some() {
            CallCounters::count(&self.shared.counters.given_up);
        }
    }
}

impl<R> fmt::Debug for CallStream<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CallStream").field("callee", &self.callee).field("method", &self.method).finish_non_exhaustive()
    }
}
