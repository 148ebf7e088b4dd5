//! Virtual time: when what happens, in one order.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::{Duration, Instant};

/// Nanoseconds since the simulation began.
pub(super) type Time = u64;

pub(super) fn nanos(duration: Duration) -> Time {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// What will happen. What is due at the same time happens in the order in which it was planned.
#[derive(Debug)]
pub(super) struct Agenda<E> {
    heap: BinaryHeap<Reverse<(Time, u64, u32)>>,
    // The heap moves small entries; what they stand for stays where it is.
    events: Vec<Option<E>>,
    free: Vec<u32>,
    planned: u64,
}

impl<E> Agenda<E> {
    pub(super) fn new() -> Self {
        Self { heap: BinaryHeap::new(), events: Vec::new(), free: Vec::new(), planned: 0 }
    }

    pub(super) fn plan(&mut self, at: Time, event: E) {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.events.push(None);
            u32::try_from(self.events.len() - 1).expect("fewer than 2^32 events wait")
        });
        self.events[slot as usize] = Some(event);
        self.heap.push(Reverse((at, self.planned, slot)));
        self.planned += 1;
    }

    /// Takes the next event, unless it is due after `limit`.
    pub(super) fn next(&mut self, limit: Time) -> Option<(Time, E)> {
        let &Reverse((at, _, slot)) = self.heap.peek()?;
        if at > limit {
            return None;
        }
        self.heap.pop();
        self.free.push(slot);
        let event = self.events[slot as usize].take().expect("each entry of the heap has its event");
        Some((at, event))
    }
}

/// One node's clock, which may run fast or slow.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    base: Instant,
    rate: f64,
}

impl Clock {
    pub(super) fn new(base: Instant, rate: f64) -> Self {
        assert!(rate > 0.0, "a clock runs forward");
        Self { base, rate }
    }

    /// What the clock shows.
    pub(super) fn at(&self, time: Time) -> Instant {
        self.base + Duration::from_nanos(self.shown(time))
    }

    /// The first time at which the clock shows `instant`.
    pub(super) fn when(&self, instant: Instant) -> Time {
        let shown = nanos(instant.saturating_duration_since(self.base));
        if self.rate == 1.0 {
            return shown;
        }
        let mut time = (shown as f64 / self.rate) as Time;
        while self.shown(time) < shown {
            time += 1;
        }
        time
    }

    fn shown(&self, time: Time) -> u64 {
        if self.rate == 1.0 { time } else { (time as f64 * self.rate) as u64 }
    }
}
