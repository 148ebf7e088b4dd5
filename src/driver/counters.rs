//! What has happened to the calls of a node, counted.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::wire::Status;

/// Counts that only rise.
#[derive(Debug, Default)]
pub(crate) struct CallCounters {
    pub(crate) made: AtomicU64,
    pub(crate) answered: AtomicU64,
    pub(crate) failed: AtomicU64,
    pub(crate) timed_out: AtomicU64,
    pub(crate) given_up: AtomicU64,
    pub(crate) late: AtomicU64,
    pub(crate) served: AtomicU64,
    pub(crate) overloaded: AtomicU64,
    pub(crate) casts: AtomicU64,
    pub(crate) casts_failed: AtomicU64,
}

impl CallCounters {
    pub(crate) fn count(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Something arrived that nobody waits for.
    pub(crate) fn late(&self) {
        Self::count(&self.late);
    }

    /// A handler was started.
    pub(crate) fn served(&self) {
        Self::count(&self.served);
    }

    /// A call was turned away here.
    pub(crate) fn refused(&self, status: Status) {
        if status == Status::Overloaded {
            Self::count(&self.overloaded);
        }
    }

    /// A cast reached no handler here, or one that did not come to its end.
    pub(crate) fn cast_failed(&self) {
        Self::count(&self.casts_failed);
    }
}
