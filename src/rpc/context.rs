//! What a handler knows of its call, and what it hands on.

use std::fmt;
use std::future::Future;
use std::sync::Arc;

use tokio::time::Instant;

use crate::correlation::CorrelationId;
use crate::driver::calls::CallState;
use crate::id::{NodeId, NodeName};
use crate::trace::Trace;

/// What a handler knows of its call. Cheap to clone, and may outlive the handler.
#[derive(Clone)]
pub struct CallContext {
    pub(super) call: Arc<CallState>,
}

/// Who calls, as far as it was proved.
///
/// A caller that reaches a handler is a member. Where certificates of a PKI name the nodes, so much is proved of its name;
/// a cookie closes the cluster, and does not divide it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Caller {
    /// This very node.
    Here,
    /// A peer, whose certificate is for this name by the authority of the cluster, and which proved to own it.
    Node(NodeName),
}

impl Caller {
    /// Whether this very node calls.
    pub fn is_here(&self) -> bool {
        matches!(self, Self::Here)
    }
}

impl CallContext {
    /// Returns the life of the node that calls.
    pub fn caller(&self) -> &NodeId {
        &self.call.caller
    }

    /// Returns who calls, as TLS has proved it.
    pub fn identity(&self) -> Caller {
        if self.call.is_local { Caller::Here } else { Caller::Node(self.caller().name().clone()) }
    }

    /// Returns when the caller stops waiting. The handler is dropped then. A stream without a deadline has one in a year.
    pub fn deadline(&self) -> Instant {
        self.call.deadline
    }

    /// Returns the trace that the call belongs to.
    pub fn trace(&self) -> Option<Trace> {
        self.call.trace
    }

    /// Returns the id of the trace that the call belongs to, as it stands in the log.
    pub fn correlation_id(&self) -> Option<CorrelationId> {
        self.call.trace.map(CorrelationId::from)
    }

    /// Returns whether the call is over; see [`CallContext::cancelled`].
    pub fn is_cancelled(&self) -> bool {
        self.call.is_over()
    }

    /// Resolves when the call is over: the caller gave up, the deadline passed, the session ended, or the handler
    /// returned.
    ///
    /// The handler itself need not look, since it is dropped. This is for tasks that it has spawned: hand them a clone of
    /// the context.
    ///
    /// # Cancel safety
    /// Dropping it misses nothing.
    #[doc(alias = "token")]
    pub async fn cancelled(&self) {
        self.call.over().await;
    }

    /// Runs a future within this call: what it calls has no more time than the call has, and belongs to its trace.
    ///
    /// A handler runs so anyway. A task that it spawns does not inherit this by itself.
    pub fn scope<F: Future>(&self, future: F) -> impl Future<Output = F::Output> + use<F> {
        Scope::of(&self.call).run(future)
    }
}

impl fmt::Debug for CallContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CallContext")
            .field("caller", self.caller())
            .field("deadline", &self.deadline())
            .field("trace", &self.trace())
            .finish()
    }
}

/// Says that the call is over when it is dropped.
#[derive(Debug)]
pub(super) struct OverGuard(pub(super) Arc<CallState>);

impl Drop for OverGuard {
    fn drop(&mut self) {
        self.0.end();
    }
}

tokio::task_local! {
    static SCOPE: Scope;
}

/// What a call within a call inherits.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Scope {
    pub(crate) deadline: Option<Instant>,
    pub(crate) trace: Option<Trace>,
}

impl Scope {
    pub(super) fn of(call: &CallState) -> Self {
        Self { deadline: Some(call.deadline), trace: call.trace }
    }

    /// Runs a future within this call.
    pub(super) fn run<F: Future>(self, future: F) -> impl Future<Output = F::Output> + use<F> {
        SCOPE.scope(self, future)
    }

    /// Runs one step of a future within this call.
    pub(super) fn enter<T>(self, step: impl FnOnce() -> T) -> T {
        SCOPE.sync_scope(self, step)
    }

    /// The earlier of a deadline and that of the call around.
    pub(crate) fn cap(&self, deadline: Instant) -> Instant {
        self.deadline.map_or(deadline, |inherited| inherited.min(deadline))
    }
}

impl Trace {
    /// Runs a future within this trace: messages and calls that it sends carry it.
    ///
    /// A handler runs within the trace of its call anyway. A task that the future spawns does not inherit it.
    pub fn scope<F: Future>(self, future: F) -> impl Future<Output = F::Output> {
        SCOPE.scope(Scope { trace: Some(self), ..inherited() }, future)
    }

    /// Returns the trace that this task is in: that of the call which it handles, or of the [`scope`](Self::scope) around.
    pub fn current() -> Option<Self> {
        inherited().trace
    }
}

impl CorrelationId {
    /// Returns the id of the undertaking that this task is in: that of the call which it handles, or of the scope around.
    pub fn current() -> Option<Self> {
        inherited().trace.map(Self::from)
    }

    /// Runs a future within this undertaking: messages and calls that it sends carry the id, as with [`Trace::scope`].
    ///
    /// Within a trace of this id that one goes on. Otherwise one begins of which nobody records a span: its
    /// `traceparent` says that it is not sampled. A task that the future spawns does not inherit it.
    pub fn scope<F: Future>(self, future: F) -> impl Future<Output = F::Output> {
        let present = inherited().trace.filter(|trace| Self::from(*trace) == self);
        present.unwrap_or_else(|| self.begin()).scope(future)
    }
}

/// What this task inherits from the call that it handles, if it handles one.
pub(crate) fn inherited() -> Scope {
    SCOPE.try_with(|scope| *scope).unwrap_or_default()
}
