//! Facts that arrived by gossip, for whoever subscribed to their topics.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, Weak};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;

use super::lock;
use crate::id::NodeId;

/// The subscribers of one node, by topic.
#[derive(Debug)]
pub(crate) struct Facts {
    unread_max: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    topics: HashMap<String, Vec<Weak<Subscriber>>>,
    is_closed: bool,
}

/// A reader of the facts of one topic.
#[derive(Debug)]
pub(crate) struct Subscriber {
    queue: Mutex<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    facts: VecDeque<Arrived>,
    /// Facts that were dropped in front of the first.
    missed: u64,
    reader: Option<Waker>,
    is_closed: bool,
}

/// A fact that nobody has opened yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Arrived {
    pub(crate) from: NodeId,
    pub(crate) body: Bytes,
    /// Facts that the reader left unread for too long, right before this one.
    pub(crate) missed: u64,
}

impl Facts {
    /// Subscribers may leave so many facts unread.
    pub(crate) fn new(unread_max: usize) -> Self {
        Self { unread_max, state: Mutex::default() }
    }

    /// A subscriber to the facts that arrive from now on.
    pub(crate) fn subscribe(&self, topic: &str) -> Arc<Subscriber> {
        let mut state = lock(&self.state);
        let queue = Queue { is_closed: state.is_closed, ..Queue::default() };
        let subscriber = Arc::new(Subscriber { queue: Mutex::new(queue) });
        if !state.is_closed {
            // Here, because a topic that nobody reads any more may never be told of again.
            state.topics.retain(|_, subscribers| {
                subscribers.retain(|subscriber| subscriber.strong_count() > 0);
                !subscribers.is_empty()
            });
            state.topics.entry(topic.to_owned()).or_default().push(Arc::downgrade(&subscriber));
        }
        subscriber
    }

    /// A fact has arrived. A subscriber without room loses its oldest one.
    pub(crate) fn deliver(&self, from: NodeId, topic: &str, body: Bytes) {
        let mut state = lock(&self.state);
        let Some(subscribers) = state.topics.get_mut(topic) else { return };
        subscribers.retain(|subscriber| {
            let Some(subscriber) = subscriber.upgrade() else { return false };
            lock(&subscriber.queue)
                .push(Arrived { from: from.clone(), body: body.clone(), missed: 0 }, self.unread_max);
            true
        });
    }

    /// Nothing more will come.
    pub(crate) fn close(&self) {
        let mut state = lock(&self.state);
        state.is_closed = true;
        for subscriber in state.topics.drain().flat_map(|(_, subscribers)| subscribers) {
            let Some(subscriber) = subscriber.upgrade() else { continue };
            let mut queue = lock(&subscriber.queue);
            queue.is_closed = true;
            if let Some(reader) = queue.reader.take() {
                reader.wake();
            }
        }
    }
}

impl Queue {
    fn push(&mut self, fact: Arrived, max: usize) {
        if self.facts.len() >= max && self.facts.pop_front().is_some() {
            self.missed += 1;
        }
        self.facts.push_back(fact);
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }
}

impl Subscriber {
    /// The next fact; `None` once the node is shut down and all is read.
    #[expect(clippy::needless_pass_by_ref_mut, reason = "the shape of every poll")]
    pub(crate) fn poll_next(&self, context: &mut Context<'_>) -> Poll<Option<Arrived>> {
        let mut queue = lock(&self.queue);
        if let Some(mut fact) = queue.facts.pop_front() {
            fact.missed = std::mem::take(&mut queue.missed);
            return Poll::Ready(Some(fact));
        }
        if queue.is_closed {
            return Poll::Ready(None);
        }
        queue.reader = Some(context.waker().clone());
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node() -> NodeId {
        NodeId::new("a@h".parse().unwrap(), 1)
    }

    fn deliver(facts: &Facts, topic: &str, body: &'static [u8]) {
        facts.deliver(node(), topic, Bytes::from_static(body));
    }

    /// The next fact's body, and what was missed before it; `None` when there is none now.
    fn next(subscriber: &Subscriber) -> Option<(Bytes, u64)> {
        match subscriber.poll_next(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Some(fact)) => Some((fact.body, fact.missed)),
            Poll::Ready(None) => panic!("it is over"),
            Poll::Pending => None,
        }
    }

    #[test]
    fn a_fact_goes_to_the_subscribers_of_its_topic() {
        let facts = Facts::new(8);
        deliver(&facts, "price", b"before");
        let (one, two, other) = (facts.subscribe("price"), facts.subscribe("price"), facts.subscribe("prices"));
        deliver(&facts, "price", b"3");
        let three = Some((Bytes::from_static(b"3"), 0));
        assert_eq!([&one, &two, &other].map(|subscriber| next(subscriber)), [three.clone(), three, None]);
        assert_eq!(next(&one), None, "once");
    }

    /// The oldest make room, and the reader learns how many, once and in their place.
    #[test]
    fn whoever_does_not_read_loses_the_oldest() {
        let facts = Facts::new(2);
        let reader = facts.subscribe("t");
        for body in [b"1", b"2", b"3", b"4"] {
            deliver(&facts, "t", body);
        }
        let read = |missed: u64, body| Some((Bytes::from_static(body), missed));
        assert_eq!(next(&reader), read(2, b"3"));
        deliver(&facts, "t", b"5");
        assert_eq!([next(&reader), next(&reader), next(&reader)], [read(0, b"4"), read(0, b"5"), None]);
    }

    #[test]
    fn nothing_is_kept_for_those_who_are_gone() {
        let facts = Facts::new(2);
        let held = |topic: &str| lock(&facts.state).topics.get(topic).map(Vec::len);
        drop(facts.subscribe("gone"));
        let present = facts.subscribe("t");
        assert_eq!((held("gone"), held("t")), (None, Some(1)));
        drop(present);
        deliver(&facts, "t", b"1");
        assert_eq!(held("t"), Some(0));
    }

    #[test]
    fn at_the_end_what_has_come_is_read() {
        let facts = Facts::new(2);
        let reader = facts.subscribe("t");
        deliver(&facts, "t", b"1");
        facts.close();
        deliver(&facts, "t", b"2");
        assert_eq!(next(&reader), Some((Bytes::from_static(b"1"), 0)));
        let mut context = Context::from_waker(Waker::noop());
        for over in [reader, facts.subscribe("t")] {
            assert_eq!(over.poll_next(&mut context), Poll::Ready(None));
        }
    }
}
