//! What one subscriber has not read yet.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use super::lock;

/// A reader of events, and those that wait for it.
#[derive(Debug)]
pub(crate) struct Subscriber<E> {
    queue: Mutex<Queue<E>>,
}

#[derive(Debug)]
struct Queue<E> {
    events: VecDeque<E>,
    reader: Option<Waker>,
    is_closed: bool,
}

impl<E> Subscriber<E> {
    /// A subscriber for which these wait; nothing more comes if it is closed.
    pub(crate) fn new(events: VecDeque<E>, is_closed: bool) -> Arc<Self> {
        Arc::new(Self { queue: Mutex::new(Queue { events, reader: None, is_closed }) })
    }

    /// Adds an event; when so many wait already, all of these are dropped for what tells it anew.
    pub(super) fn push(&self, event: E, max: usize, anew: impl FnOnce() -> VecDeque<E>) {
        let mut queue = lock(&self.queue);
        if queue.events.len() >= max {
            queue.events = anew();
        } else {
            queue.events.push_back(event);
        }
        queue.wake();
    }

    /// Drops what waits.
    pub(super) fn clear(&self) {
        lock(&self.queue).events.clear();
    }

    /// Nothing more will come.
    pub(super) fn close(&self) {
        let mut queue = lock(&self.queue);
        queue.is_closed = true;
        queue.wake();
    }

    /// The next event; `None` once it is closed and all is read.
    #[expect(clippy::needless_pass_by_ref_mut, reason = "the shape of every poll")]
    pub(crate) fn poll_next(&self, context: &mut Context<'_>) -> Poll<Option<E>> {
        let mut queue = lock(&self.queue);
        if let Some(event) = queue.events.pop_front() {
            return Poll::Ready(Some(event));
        }
        if queue.is_closed {
            return Poll::Ready(None);
        }
        queue.reader = Some(context.waker().clone());
        Poll::Pending
    }
}

impl<E> Queue<E> {
    fn wake(&mut self) {
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }
}
