//! The end of a node, in its one order.
//!
//! 1. Leaderships are resigned, each when its holder has let go of it: whoever leads next need not wait.
//! 2. Names and memberships in groups are withdrawn, and this node decides on no names any more: nobody is led here, and a
//!    successor may have a name while handlers still run. Others see them go with
//!    [`NameReason::NodeLeft`](crate::NameReason::NodeLeft) and [`LeftReason::NodeLeft`](crate::LeftReason::NodeLeft).
//! 3. New calls are refused as [`CallError::ShuttingDown`](crate::CallError::ShuttingDown). Messages are still taken.
//! 4. Handlers that run are waited for, until the deadline. They may call other nodes.
//! 5. The other members are told that this node leaves; nobody takes it for dead.
//! 6. The links stop in agreement with their peers: what was accepted is written, until the deadline.
//! 7. Mailboxes, subscriptions and waits end, and the socket is closed.
//!
//! Steps 1 to 4 are [`Shared::drain`]; 5 to 7 are the node task's, from [`Command::Stop`] on.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::journal::target;
use super::{Command, Node, Shared, now};
use crate::proto::node::services::Input;

/// What the links have at least to write what was accepted, when handlers took all the time.
const LAST_WRITES: Duration = Duration::from_secs(1);

impl Shared {
    /// Refuses new work and waits for what runs, at most until then. Returns how many handlers still run.
    ///
    /// Dropping it stops the wait only.
    pub(crate) async fn drain(self: &Arc<Self>, deadline: Instant) -> usize {
        self.resign_all().await;
        let (done, withdrawn) = oneshot::channel();
        self.command(Command::Withdraw { done });
        // Also when the node task has ended.
        let _ = withdrawn.await;
        self.begin_stop();
        let (running, _) = self.methods.load();
        if running > 0 {
            tracing::info!(target: target::NODE, running, "names are withdrawn, running handlers are waited for");
        }
        let _ = tokio::time::timeout_at(deadline.into(), self.methods.drained()).await;
        let (running, _) = self.methods.load();
        if running > 0 {
            tracing::warn!(target: target::NODE, running, "handlers did not end in time");
        }
        running
    }

    /// All of it. When this is dropped it goes on, without waiting for running handlers.
    pub(crate) async fn shut_down(self: &Arc<Self>) {
        struct StopNow<'a>(&'a Shared, Instant);
        impl Drop for StopNow<'_> {
            fn drop(&mut self) {
                self.0.command(Command::Stop { by: self.1 });
            }
        }
        let deadline = self.stop_by();
        let stop = StopNow(self, deadline);
        self.drain(deadline).await;
        drop(stop);
        self.stopped().await;
    }

    /// Until when a shutdown that begins now may take.
    pub(crate) fn stop_by(&self) -> Instant {
        now() + self.config.shutdown_timeout
    }
}

impl Node {
    /// Nobody is led here any more.
    pub(super) fn withdraw(&mut self) {
        self.shared.withdraw_groups();
        self.tell_services(Input::Withdraw);
    }

    /// When the links are cut that still have something to write.
    pub(super) fn links_end(by: Instant) -> Instant {
        by.max(now() + LAST_WRITES)
    }
}
