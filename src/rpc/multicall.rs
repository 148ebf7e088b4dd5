//! One question to many nodes.

use std::fmt;
use std::future::{Future, IntoFuture};
use std::pin::Pin;
use std::time::Duration;

use tokio::task::JoinSet;

use super::call::{Counted, Wait, answer, ask};
use super::{Method, Rpc, Target, content};
use crate::config::LONGEST;
use crate::error::CallError;
use crate::message::Message;
use crate::trace::Trace;

/// Calls about to be made to many nodes: await them.
///
/// The result at each position is that of the node at that position; a node that is named twice is called twice, and this
/// node may be among them. The question is encoded once, all are asked at once, and all have the same deadline, so it takes
/// as long as the slowest.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), distribute::Error> {
/// use distribute::{Cookie, Method, Node};
///
/// const DOUBLE: Method<u64, u64> = Method::new("double");
///
/// let cookie = Cookie::generate();
/// let one = Node::builder("one@127.0.0.1:0").cookie(cookie.clone()).start().await?;
/// let two = Node::builder("two@127.0.0.1:0").cookie(cookie).start().await?;
/// for node in [&one, &two] {
///     node.rpc().serve(DOUBLE, |_call, n| async move { 2 * n })?;
/// }
/// let answers = one.rpc().multicall([one.name(), two.name()], DOUBLE, 4).await;
/// assert_eq!(answers, [Ok(8), Ok(8)]);
/// # two.shutdown().await;
/// # one.shutdown().await;
/// # Ok(()) }
/// ```
///
/// # Cancel safety
/// Dropping it gives up all calls that are not answered.
#[must_use = "the calls are made when they are awaited"]
pub struct Multicall<'a, Q, R> {
    rpc: &'a Rpc,
    targets: Vec<Target>,
    method: Method<Q, R>,
    question: Q,
    timeout: Duration,
    trace: Option<Trace>,
}

impl<'a, Q, R> Multicall<'a, Q, R> {
    pub(super) fn new(rpc: &'a Rpc, targets: Vec<Target>, method: Method<Q, R>, question: Q) -> Self {
        Self { timeout: rpc.shared.config.call_timeout, trace: None, rpc, targets, method, question }
    }

    /// Sets how long to wait, as [`Call::timeout`](crate::Call::timeout) does.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout.min(LONGEST);
        self
    }

    /// Sets the trace that the calls belong to, as [`Call::trace`](crate::Call::trace) does.
    pub fn trace(mut self, trace: Trace) -> Self {
        self.trace = Some(trace);
        self
    }
}

impl<Q, R> fmt::Debug for Multicall<'_, Q, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nodes: Vec<_> = self.targets.iter().map(|target| &target.name).collect();
        f.debug_struct("Multicall").field("nodes", &nodes).field("method", &self.method).finish_non_exhaustive()
    }
}

impl<'a, Q: Message, R: Message> IntoFuture for Multicall<'a, Q, R> {
    type Output = Vec<Result<R, CallError>>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send + 'a>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.run())
    }
}

impl<Q: Message, R: Message> Multicall<'_, Q, R> {
    async fn run(self) -> Vec<Result<R, CallError>> {
        let Self { rpc: Rpc { shared }, targets, method, question, timeout, trace } = self;
        let wait = Wait::new(timeout, trace);
        let question = match content(&question) {
            Ok(question) => question,
            Err(error) => return targets.iter().map(|_| Err(CallError::Encode(error.to_string()))).collect(),
        };
        let mut answers: Vec<_> = targets.iter().map(|_| Err(CallError::Cancelled)).collect();
        let mut calls = JoinSet::new();
        for (at, target) in targets.into_iter().enumerate() {
            let (shared, method, question) = (shared.clone(), method.clone(), question.clone());
            calls.spawn(async move {
                let counted = Counted::new(&shared);
                let answered = counted.end(ask(&shared, &target, method.name(), question, &wait).await);
                (at, answered.and_then(|(term, body)| answer(&shared, &term, &body)))
            });
        }
        while let Some(call) = calls.join_next().await {
            match call {
                Ok((at, answer)) => answers[at] = answer,
                // Only a decoder of the caller's own can panic here.
                Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                Err(_) => {}
            }
        }
        answers
    }
}
