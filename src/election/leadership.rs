//! Leading, from the holder's side.

use std::fmt;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use tokio::sync::OwnedMutexGuard;

use super::Election;
use crate::driver::elections::Ask;
use crate::driver::leaders::Place;
use crate::driver::{Command, Shared};
use crate::proto::election::LossReason;
use crate::wire::services::election::Token;

/// This node stands, or leads. Dropping it ends that.
#[derive(Debug)]
pub(super) struct Campaign {
    shared: Arc<Shared>,
    place: Arc<Place>,
    number: u64,
}

impl Campaign {
    pub(super) fn begin(election: &Election) -> Self {
        let Election { shared, place } = election.clone();
        let number = place.next_campaign();
        shared.command(Command::Election(Ask::Stand { name: place.name.clone(), campaign: number }));
        Self { shared, place, number }
    }

    pub(super) fn number(&self) -> u64 {
        self.number
    }
}

impl Drop for Campaign {
    fn drop(&mut self) {
        let to = self.place.let_go(self.number);
        let name = self.place.name.clone();
        self.shared.command(Command::Election(Ask::Yield { name, campaign: self.number, to }));
    }
}

/// This node leads, until the leadership is lost or dropped. Dropping it resigns: what nobody holds, nobody has.
///
/// Drop it when it is lost, and after all that was done in its name has ended: where the end is a graceful one, by
/// [`Election::resign`], [`Election::transfer`] or a shutdown, others lead as soon as it is dropped, and not before, unless that
/// takes longer than a lease. [`Leadership::run`] does it right.
#[derive(Debug)]
#[must_use = "dropping a leadership resigns"]
pub struct Leadership {
    lease: Lease,
    // In this order: the lead is given up, and then it is another campaign's turn.
    _campaign: Campaign,
    _turn: OwnedMutexGuard<()>,
}

impl Leadership {
    pub(super) fn new(campaign: Campaign, token: Token, turn: OwnedMutexGuard<()>) -> Self {
        let lease = Lease { place: campaign.place.clone(), campaign: campaign.number, token };
        Self { lease, _campaign: campaign, _turn: turn }
    }

    /// Returns what may be given to others: it tells what this tells, and does not keep the leadership.
    pub fn lease(&self) -> Lease {
        self.lease.clone()
    }

    /// As [`Lease::token`].
    pub fn token(&self) -> Token {
        self.lease.token
    }

    /// As [`Lease::is_current`].
    pub fn is_current(&self) -> bool {
        self.lease.is_current()
    }

    /// As [`Lease::lost`].
    ///
    /// # Cancel safety
    /// A wait that is dropped leaves nothing behind.
    pub async fn lost(&self) -> LossReason {
        self.lease.lost().await
    }

    /// Resigns, as dropping it does.
    pub fn resign(self) {}

    /// Runs a task as long as this node leads, drops it otherwise, and then resigns.
    ///
    /// The lease is looked at before each time that the task is polled: after a freeze it does not go on if the lease has ended
    /// meanwhile. Within one poll, between two of its awaits, nothing stops it; what it does there must be fenced by the token,
    /// and so must be what it has given to other tasks.
    ///
    /// # Errors
    /// [`LossReason`]: the task was dropped because the leadership was lost.
    ///
    /// # Cancel safety
    /// Dropping it drops the task, and then resigns.
    pub async fn run<T, F, Fut>(self, task: F) -> Result<T, LossReason>
    where
        F: FnOnce(Lease) -> Fut,
        Fut: Future<Output = T>,
    {
        let lease = self.lease();
        let (mut lost, mut task) = (pin!(lease.lost()), pin!(task(self.lease())));
        poll_fn(|context| {
            if let Poll::Ready(why) = lost.as_mut().poll(context) {
                return Poll::Ready(Err(why));
            }
            if !lease.is_current() {
                return Poll::Ready(Err(lease.loss()));
            }
            task.as_mut().poll(context).map(Ok)
        })
        .await
        // The task is dropped first, being the younger, and then `self`.
    }
}

/// What a task may know of the leadership in whose name it works. Cheap to clone; it does not keep the leadership.
#[derive(Clone)]
pub struct Lease {
    place: Arc<Place>,
    campaign: u64,
    token: Token,
}

impl Lease {
    /// Returns the token: give it along with every effect outside of this task's own memory, for a
    /// [`Fence`](crate::Fence) to look at.
    pub fn token(&self) -> Token {
        self.token
    }

    /// Tells whether this node leads by this token at this moment. It looks at a clock, and asks nobody.
    ///
    /// It may be over when the answer is looked at: see [`Election`] on leases and tokens.
    pub fn is_current(&self) -> bool {
        self.place.leads(self.campaign)
    }

    /// Waits until this node leads by this token no more, and returns why. At once when it does not. A leadership that is to be
    /// given up for a reason of this node's own is lost first, and given up when it is dropped.
    ///
    /// # Cancel safety
    /// A wait that is dropped leaves nothing behind.
    pub async fn lost(&self) -> LossReason {
        let mut state = self.place.state.subscribe();
        loop {
            if let Some(why) = state.borrow_and_update().loss(self.campaign) {
                return why;
            }
            let left = self.place.lease_left();
            if left.is_zero() {
                return LossReason::LeaseExpired;
            }
            tokio::select! {
                changed = state.changed() => if changed.is_err() { return LossReason::Shutdown },
                () = tokio::time::sleep(left) => {}
            }
        }
    }

    fn loss(&self) -> LossReason {
        self.place.state.borrow().loss(self.campaign).unwrap_or(LossReason::LeaseExpired)
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("Lease");
        debug.field("election", &self.place.name).field("token", &self.token).finish_non_exhaustive()
    }
}
