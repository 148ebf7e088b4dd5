//! Streams of answers: their order, their credit; and the cancels that overtake what they cancel.
//!
//! Items of one stream are numbered from 0, because a large one has a QUIC stream of its own, and because a link may change
//! under them. [`Outflow`] numbers what the callee sends, [`Inflow`] gives the caller n after n - 1.
//!
//! The caller grants a credit of bytes that only rises: an item may be sent while less than the credit was sent before it.
//! So an item larger than the window goes when its turn comes, and a caller that does not read holds a window and one item
//! at most.

use std::collections::{BTreeMap, HashSet, VecDeque};

/// What an item costs beside its body: about what it takes in a queue. It bounds the number of small items.
pub(crate) const ITEM_COST: u64 = 64;

/// What a callee did wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Violation {
    #[error("an item came twice")]
    Repeated,
    #[error("an item was sent without credit")]
    OverCredit,
    #[error("an item comes after the end of its stream")]
    AfterEnd,
}

/// The callee's side of one stream.
#[derive(Debug)]
pub(crate) struct Outflow {
    limit: u64,
    sent: u64,
    items: u64,
    has_ended: bool,
}

impl Outflow {
    pub(crate) fn new(limit: u64) -> Self {
        Self { limit, sent: 0, items: 0, has_ended: false }
    }

    /// Whether who wants to send need not wait: there is credit, or it is too late.
    pub(crate) fn may_send(&self) -> bool {
        self.sent < self.limit || self.has_ended
    }

    /// Takes the number of the next item; `None` after the end.
    pub(crate) fn send(&mut self, body: usize) -> Option<u64> {
        if self.has_ended {
            return None;
        }
        debug_assert!(self.may_send(), "the sender waits for credit");
        let number = self.items;
        self.items += 1;
        self.sent += body as u64 + ITEM_COST;
        Some(number)
    }

    /// Ends the stream, and tells how many items it had.
    pub(crate) fn end(&mut self) -> u64 {
        self.has_ended = true;
        self.items
    }

    /// The caller has read on. Says whether a sender that waited may go on.
    pub(crate) fn granted(&mut self, limit: u64) -> bool {
        let waited = !self.may_send();
        // Grants may overtake each other: the highest stands.
        self.limit = self.limit.max(limit);
        waited && self.may_send()
    }
}

/// What the reader of a stream finds.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next<T, E> {
    Item(T),
    End(E),
    Wait,
}

/// The caller's side of one stream, which ends with an `E`.
#[derive(Debug)]
pub(crate) struct Inflow<T, E> {
    window: u64,
    limit: u64,
    /// What the items cost that have arrived, and the one with the greatest number among them.
    arrived: u64,
    last: Option<(u64, u64)>,
    consumed: u64,
    /// The number that is to follow what is ready.
    next: u64,
    ready: VecDeque<(u64, T)>,
    early: BTreeMap<u64, (u64, T)>,
    end: Option<(u64, E)>,
}

impl<T, E> Inflow<T, E> {
    /// A stream whose callee was granted one window.
    pub(crate) fn new(window: u64) -> Self {
        Self {
            window,
            limit: window,
            arrived: 0,
            last: None,
            consumed: 0,
            next: 0,
            ready: VecDeque::new(),
            early: BTreeMap::new(),
            end: None,
        }
    }

    /// Takes an item that has arrived. Says whether the reader finds something new.
    pub(crate) fn receive(&mut self, number: u64, body: usize, item: T) -> Result<bool, Violation> {
        if number < self.next || self.early.contains_key(&number) {
            return Err(Violation::Repeated);
        }
        if self.end.as_ref().is_some_and(|(items, _)| number >= *items) {
            return Err(Violation::AfterEnd);
        }
        let cost = body as u64 + ITEM_COST;
        let last = self.last.filter(|(last, _)| *last > number).unwrap_or((number, cost));
        // All that arrived but the last one was sent before the last one was.
        if self.arrived + cost - last.1 >= self.limit {
            return Err(Violation::OverCredit);
        }
        self.arrived += cost;
        self.last = Some(last);
        self.early.insert(number, (cost, item));
        let before = self.next;
        while let Some(item) = self.early.remove(&self.next) {
            self.ready.push_back(item);
            self.next += 1;
        }
        Ok(self.next > before)
    }

    /// The stream ended after so many items. Says whether the reader finds something new.
    pub(crate) fn finish(&mut self, items: u64, end: E) -> Result<bool, Violation> {
        if self.end.is_some() || items < self.next || self.last.is_some_and(|(last, _)| last >= items) {
            return Err(Violation::AfterEnd);
        }
        self.end = Some((items, end));
        Ok(items == self.next)
    }

    /// The stream is cut off: what had arrived in order is read, then this end.
    pub(crate) fn cut(&mut self, end: E) {
        if self.end.as_ref().is_none_or(|(items, _)| *items > self.next) {
            self.early.clear();
            self.end = Some((self.next, end));
        }
    }

    /// Takes what comes next, and the new limit when it is time to tell the callee.
    pub(crate) fn take(&mut self) -> (Next<T, E>, Option<u64>) {
        if let Some((cost, item)) = self.ready.pop_front() {
            self.consumed += cost;
            let limit = self.consumed + self.window;
            // Told in steps, so that small items do not cost a frame each.
            let is_due = self.end.is_none() && limit - self.limit >= self.window.div_ceil(2);
            if is_due {
                self.limit = limit;
            }
            return (Next::Item(item), is_due.then_some(limit));
        }
        match self.end.take_if(|(items, _)| *items == self.next) {
            Some((_, end)) => (Next::End(end), None),
            None => (Next::Wait, None),
        }
    }

    /// What is held for the reader.
    #[cfg(test)]
    fn held(&self) -> u64 {
        self.arrived - self.consumed
    }
}

/// Ids that were cancelled before what they cancel was seen; the oldest are forgotten.
#[derive(Debug)]
pub(crate) struct Cancelled {
    max: usize,
    ids: HashSet<u64>,
    order: VecDeque<u64>,
}

impl Cancelled {
    pub(crate) fn new(max: usize) -> Self {
        Self { max, ids: HashSet::new(), order: VecDeque::new() }
    }

    pub(crate) fn remember(&mut self, id: u64) {
        if !self.ids.insert(id) {
            return;
        }
        self.order.push_back(id);
        if self.order.len() > self.max
            && let Some(oldest) = self.order.pop_front()
        {
            self.ids.remove(&oldest);
        }
    }

    /// Whether this id was cancelled. It is forgotten with that.
    pub(crate) fn take(&mut self, id: u64) -> bool {
        if !self.ids.remove(&id) {
            return false;
        }
        self.order.retain(|other| *other != id);
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn inflow(window: u64) -> Inflow<u64, &'static str> {
        Inflow::new(window)
    }

    #[test]
    fn items_come_in_the_order_of_their_numbers() {
        let mut stream = inflow(1000);
        assert_eq!(stream.take().0, Next::Wait);
        assert_eq!(stream.receive(1, 1, 11), Ok(false));
        assert_eq!(stream.receive(2, 1, 12), Ok(false));
        assert_eq!(stream.take().0, Next::Wait);
        assert_eq!(stream.receive(0, 1, 10), Ok(true));
        assert_eq!(stream.finish(4, "done"), Ok(false));
        for item in 10..13 {
            assert_eq!(stream.take().0, Next::Item(item));
        }
        assert_eq!(stream.take().0, Next::Wait, "one is on its way");
        assert_eq!(stream.receive(3, 1, 13), Ok(true));
        assert_eq!(stream.take().0, Next::Item(13));
        assert_eq!(stream.take().0, Next::End("done"));
    }

    #[test]
    fn what_a_callee_may_not_do() {
        let mut stream = inflow(1000);
        assert_eq!(stream.receive(0, 1, 0), Ok(true));
        assert_eq!(stream.receive(0, 1, 0), Err(Violation::Repeated));
        assert_eq!(stream.receive(2, 1, 0), Ok(false));
        assert_eq!(stream.receive(2, 1, 0), Err(Violation::Repeated));
        assert_eq!(stream.finish(2, "too few"), Err(Violation::AfterEnd));
        assert_eq!(stream.finish(3, "done"), Ok(false));
        assert_eq!(stream.receive(3, 1, 0), Err(Violation::AfterEnd));
        assert_eq!(stream.finish(3, "again"), Err(Violation::AfterEnd));
    }

    #[test]
    fn the_last_byte_of_credit_lets_one_item_go_and_no_more() {
        let window = 2 * ITEM_COST;
        let (mut callee, mut caller) = (Outflow::new(window), inflow(window));
        assert_eq!((callee.send(0), callee.may_send()), (Some(0), true));
        assert_eq!((callee.send(1 << 20), callee.may_send()), (Some(1), false));
        assert_eq!(caller.receive(1, 1 << 20, 1), Ok(false), "the large one may overtake");
        assert_eq!(caller.receive(0, 0, 0), Ok(true));
        assert_eq!(caller.receive(2, 0, 2), Err(Violation::OverCredit));
        assert_eq!(caller.take(), (Next::Item(0), Some(window + ITEM_COST)));
        assert!(!callee.granted(window + ITEM_COST), "the large one is not read yet");
        let (item, limit) = caller.take();
        assert_eq!(item, Next::Item(1));
        assert!(callee.granted(limit.unwrap()));
        assert!(!callee.granted(0), "an older grant changes nothing");
        assert!(callee.may_send());
        assert_eq!((callee.end(), callee.send(1)), (2, None), "nothing follows the end");
    }

    #[test]
    fn a_cut_lets_what_is_whole_be_read() {
        let mut stream = inflow(1000);
        stream.receive(0, 1, 10).unwrap();
        stream.receive(2, 1, 12).unwrap();
        stream.cut("lost");
        assert_eq!(stream.take().0, Next::Item(10));
        assert_eq!(stream.take().0, Next::End("lost"));
        let mut whole = inflow(1000);
        whole.finish(0, "done").unwrap();
        whole.cut("lost");
        assert_eq!(whole.take().0, Next::End("done"), "it had ended before");
    }

    #[test]
    fn the_oldest_cancel_is_forgotten_first() {
        let mut cancelled = Cancelled::new(2);
        for id in [1, 2, 2, 3] {
            cancelled.remember(id);
        }
        assert_eq!([1, 2, 3, 3].map(|id| cancelled.take(id)), [false, true, true, false]);
        assert!(cancelled.order.is_empty() && cancelled.ids.is_empty());
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// An honest callee is never refused, whatever overtakes what; all items come, each once, in order, and the caller
        /// never holds more than a window and an item.
        #[test]
        fn honest_streams_come_through(
            bodies in vec(prop_oneof![0..40usize, 0..5000usize], 0..60),
            window in 64..2000u64,
            choices in vec(any::<prop::sample::Index>(), 1..400),
        ) {
            let largest = bodies.iter().max().map_or(0, |largest| *largest as u64) + ITEM_COST;
            let (mut callee, mut caller) = (Outflow::new(window), Inflow::<usize, ()>::new(window));
            let (mut sent, mut read) = (0, 0);
            let (mut flying, mut grants) = (Vec::new(), Vec::new());
            let mut has_ended = false;
            for choice in choices.iter().cycle().take(20_000) {
                match choice.index(4) {
                    0 if sent < bodies.len() && callee.may_send() => {
                        flying.push((callee.send(bodies[sent]).unwrap(), sent));
                        sent += 1;
                    }
                    0 if sent == bodies.len() && !has_ended => {
                        has_ended = true;
                        prop_assert!(caller.finish(callee.end(), ()).is_ok());
                    }
                    1 if !flying.is_empty() => {
                        let (number, at) = flying.swap_remove(choice.index(flying.len()));
                        prop_assert!(caller.receive(number, bodies[at], at).is_ok());
                    }
                    2 if !grants.is_empty() => {
                        callee.granted(grants.swap_remove(choice.index(grants.len())));
                    }
                    _ => {
                        let (next, grant) = caller.take();
                        grants.extend(grant);
                        match next {
                            Next::Item(at) => {
                                prop_assert_eq!(at, read);
                                read += 1;
                            }
                            Next::End(()) => {
                                prop_assert_eq!(read, bodies.len());
                                return Ok(());
                            }
                            Next::Wait => {}
                        }
                    }
                }
                prop_assert!(caller.held() < window + largest);
            }
            // A schedule may starve one of the four; going on fairly must reach the end.
            for _ in 0..=bodies.len() {
                while sent < bodies.len() && callee.may_send() {
                    flying.push((callee.send(bodies[sent]).unwrap(), sent));
                    sent += 1;
                }
                for (number, at) in flying.drain(..) {
                    prop_assert!(caller.receive(number, bodies[at], at).is_ok());
                }
                while let (Next::Item(at), grant) = caller.take() {
                    prop_assert_eq!(at, read);
                    read += 1;
                    grants.extend(grant);
                }
                for grant in grants.drain(..) {
                    callee.granted(grant);
                }
            }
            prop_assert_eq!(read, bodies.len());
        }

        /// Whatever a callee sends, what the caller holds is bounded.
        #[test]
        fn hostile_streams_are_bounded(
            items in vec((0..50u64, 0..3000usize), 0..200),
            window in 64..2000u64,
        ) {
            let mut caller = Inflow::<(), ()>::new(window);
            for (number, body) in items {
                if caller.receive(number, body, ()).is_err() {
                    break;
                }
                prop_assert!(caller.held() < window + 3000 + ITEM_COST);
            }
        }
    }
}
