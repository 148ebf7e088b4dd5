//! Calls that nobody waits for.

use std::fmt;
use std::future::{Future, IntoFuture};
use std::pin::Pin;
use std::time::Duration;

use tokio::time::Instant;

use super::call::{Callee, reach};
use super::{Method, Rpc, Target, content, inherited};
use crate::config::LONGEST;
use crate::driver::calls::{CallState, Request, cast_local};
use crate::driver::counters::CallCounters;
use crate::driver::exchange::{Ask, RequestError};
use crate::error::{CallError, CastError};
use crate::message::Message;
use crate::trace::Trace;
use crate::wire::Term;

/// A cast about to be made: await it.
///
/// Resolves when the request is accepted; it arrives once, unless the session ends before, or not at all. What becomes of
/// it is not told: a method that the node does not serve, a node that has no room, a handler that panics are counted there
/// ([`CallStats::casts_failed`](crate::CallStats::casts_failed)). The handler goes on when the caller's session ends; its
/// answer is thrown away.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), distribute::Error> {
/// use distribute::{Cookie, Method, Node};
///
/// const NOTE: Method<String, ()> = Method::new("note");
///
/// let node = Node::builder("here@127.0.0.1:0").cookie(Cookie::generate()).start().await?;
/// let (notes, mut noted) = tokio::sync::mpsc::unbounded_channel();
/// node.rpc().serve(NOTE, move |_call, text| std::future::ready(drop(notes.send(text))))?;
/// node.rpc().cast(node.name(), NOTE, "seen".into()).await?;
/// assert_eq!(noted.recv().await.as_deref(), Some("seen"));
/// # node.shutdown().await;
/// # Ok(()) }
/// ```
///
/// # Errors
/// [`CastError`]; nothing was sent.
///
/// # Cancel safety
/// A cast that is dropped before it resolves has sent nothing, or was accepted in that instant.
#[must_use = "a cast is made when it is awaited"]
pub struct Cast<'a, Q, R> {
    rpc: &'a Rpc,
    target: Target,
    method: Method<Q, R>,
    question: Q,
    timeout: Duration,
    trace: Option<Trace>,
}

impl<'a, Q, R> Cast<'a, Q, R> {
    pub(super) fn new(rpc: &'a Rpc, target: Target, method: Method<Q, R>, question: Q) -> Self {
        Self { timeout: rpc.shared.config.call_timeout, trace: None, rpc, target, method, question }
    }

    /// Sets how long to wait for the session and for room, and how long the handler may take after that. The default is
    /// [`Config::call_timeout`](crate::Config::call_timeout), 5 s; more than a year counts as a year.
    ///
    /// In a handler a cast may outlive the call that is handled, since nobody waits for it.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout.min(LONGEST);
        self
    }

    /// Sets the trace that the cast belongs to. The default is that of the call that is handled here, if there is one.
    pub fn trace(mut self, trace: Trace) -> Self {
        self.trace = Some(trace);
        self
    }
}

impl<Q, R> fmt::Debug for Cast<'_, Q, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cast").field("node", &self.target.name).field("method", &self.method).finish_non_exhaustive()
    }
}

impl<'a, Q: Message, R: Message> IntoFuture for Cast<'a, Q, R> {
    type Output = Result<(), CastError>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send + 'a>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.run())
    }
}

impl<Q: Message, R: Message> Cast<'_, Q, R> {
    async fn run(self) -> Result<(), CastError> {
        let Self { rpc: Rpc { shared }, target, method, question, timeout, trace } = self;
        let question = content(&question).map_err(|error| CastError::Encode(error.to_string()))?;
        let trace = trace.or_else(|| inherited().trace);
        let method = method.name();
        let casting = async {
            match reach(shared, &target, method, question.body.len()).await.map_err(refused)? {
                Callee::Here(caller) => {
                    let term = Term { method: method.to_owned(), schema: (question.kind.schema)() };
                    let deadline = Instant::now() + timeout;
                    let call = CallState::new(caller, true, deadline, trace);
                    cast_local(shared, Request { call, term: term.into(), body: question.body });
                    Ok(())
                }
                Callee::There(session) => {
                    let ask = Ask { method, question, timeout_ms: timeout.as_millis() as u64, trace };
                    session.cast(ask).await.map_err(|error| match error {
                        RequestError::SessionEnded | RequestError::Overloaded => {
                            CastError::NotConnected(target.name.clone(), None)
                        }
                    })
                }
            }
        };
        tokio::time::timeout(timeout, casting).await.unwrap_or(Err(CastError::Timeout(timeout)))?;
        CallCounters::count(&shared.counters.casts);
        Ok(())
    }
}

/// Why a node cannot be reached with a cast.
fn refused(error: CallError) -> CastError {
    match error {
        CallError::NotConnected(name, reason) => CastError::NotConnected(name, reason),
        CallError::TooLarge { size, max } => CastError::TooLarge { size, max },
        other => CastError::Encode(other.to_string()),
    }
}
