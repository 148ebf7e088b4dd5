//! What a handler knows of its call, and what it hands on.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::id::{NodeId, NodeName};
use crate::trace::Trace;

/// What a handler knows of its call. Cheap to clone, and may outlive the handler.
#[derive(Clone)]
#[non_exhaustive]
pub struct CallContext {
    /// The life of the node that calls.
    pub caller: NodeId,
    /// When the caller stops waiting. The handler is dropped then. A stream without a deadline has one in a year.
    pub deadline: Instant,
    /// The trace that the call belongs to.
    pub trace: Option<Trace>,
    pub(super) is_local: bool,
    pub(super) over: Over,
}

/// Who calls, as far as it was proved.
///
/// A caller that reaches a handler holds the cluster's cookie; the cookie closes the cluster, and does not divide it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Identity {
    /// This very node.
    Here,
    /// A peer, whose certificate an authority of the cluster has made for this name, and which proved to own it.
    Node(NodeName),
}

impl Identity {
    /// Whether this very node calls.
    pub fn is_here(&self) -> bool {
        matches!(self, Self::Here)
    }
}

impl CallContext {
    /// Returns who calls, as TLS has proved it.
    pub fn identity(&self) -> Identity {
        if self.is_local { Identity::Here } else { Identity::Node(self.caller.name().clone()) }
    }

    /// Returns whether the call is over; see [`CallContext::cancelled`].
    pub fn is_cancelled(&self) -> bool {
        self.over.is_over()
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
        self.over.over().await;
    }

    /// Runs a future within this call: what it calls has no more time than the call has, and belongs to its trace.
    ///
    /// A handler runs so anyway. A task that it spawns does not inherit this by itself.
    pub fn scope<F: Future>(&self, future: F) -> impl Future<Output = F::Output> {
        Scope { deadline: Some(self.deadline), trace: self.trace }.run(future)
    }
}

impl fmt::Debug for CallContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CallContext")
            .field("caller", &self.caller)
            .field("deadline", &self.deadline)
            .field("trace", &self.trace)
            .finish_non_exhaustive()
    }
}

/// Whether a call is over.
#[derive(Clone, Debug, Default)]
pub(super) struct Over(Arc<(AtomicBool, Notify)>);

impl Over {
    fn is_over(&self) -> bool {
        self.0.0.load(Ordering::Acquire)
    }

    async fn over(&self) {
        let told = self.0.1.notified();
        tokio::pin!(told);
        // Before the look, so that no end falls between.
        told.as_mut().enable();
        if !self.is_over() {
            told.await;
        }
    }
}

/// Says that the call is over when it is dropped.
#[derive(Debug)]
pub(super) struct OverGuard(pub(super) Over);

impl Drop for OverGuard {
    fn drop(&mut self) {
        let (is_over, told) = &*self.0.0;
        is_over.store(true, Ordering::Release);
        told.notify_waiters();
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
    pub(super) fn run<F: Future>(self, future: F) -> impl Future<Output = F::Output> {
        SCOPE.scope(self, future)
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
        Scope { trace: Some(self), ..inherited() }.run(future)
    }
}

/// What this task inherits from the call that it handles, if it handles one.
pub(crate) fn inherited() -> Scope {
    SCOPE.try_with(|scope| *scope).unwrap_or_default()
}
