//! Messages of one session: their numbers, their credit, their order.
//!
//! QUIC orders neither streams nor connections, so each message to a mailbox has a number, counted from 0 in each
//! (session, mailbox). [`Outbound`] numbers what it accepts; [`Inbound`] delivers n after n - 1, however streams and links
//! interleave, and holds what comes early.
//!
//! Credit is counted in bytes over the session, like the limits of [RFC 9000, section 4]: a lane may send up to a limit
//! that only rises. The receiver alone raises it, as its mailbox is read; so what a sender may make it hold is bounded, a
//! mailbox that nobody reads stops only its own senders, and readers never stop. Each message costs its body and
//! [`MESSAGE_COST`].
//!
//! The first lanes of a session start with a first credit; later ones, and messages above their credit, ask first.
//!
//! [RFC 9000, section 4]: https://www.rfc-editor.org/rfc/rfc9000#section-4

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};

/// What a message costs beside its body: about what it takes in a queue. It bounds the number of small messages.
pub(crate) const MESSAGE_COST: u64 = 64;

/// How many closed mailboxes of the peer are remembered, so that a send to one fails at once. Forgetting one costs a
/// message that the peer answers with CLOSED again.
const CLOSED_REMEMBERED: usize = 4096;

/// How many mailboxes of this side the peer is known to have been told to be closed. Fewer than the peer remembers: if it
/// forgot one that this side remembers to have told, it would send in vain and never hear.
const REFUSED_REMEMBERED: usize = 1024;

/// Says whether a message of that many bytes travels on a stream of its own.
pub(crate) fn is_bulk(body: usize, bulk_from: usize) -> bool {
    body >= bulk_from
}

/// A message that waits for credit or room.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Ticket(u64);

/// A message that may go: write it now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Accepted<T> {
    pub(crate) ticket: Ticket,
    pub(crate) mailbox: u64,
    pub(crate) number: u64,
    pub(crate) bulk: bool,
    pub(crate) item: T,
}

/// What became of an offer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Offered<T> {
    Accepted(Accepted<T>),
    /// It waits its turn; [`Outbound::cancel`] takes it back.
    Waits(Ticket),
    /// There is no credit, or no room, and the caller would not wait.
    Full(T),
    /// The mailbox is closed.
    Closed(T),
}

/// A message to offer.
#[derive(Clone, Debug)]
pub(crate) struct Offer<T> {
    pub(crate) mailbox: u64,
    /// The body's size in bytes.
    pub(crate) body: usize,
    pub(crate) bulk: bool,
    pub(crate) item: T,
    /// Whether to wait for credit and room.
    pub(crate) wait: bool,
}

/// Something that [`Outbound`] wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Output<T> {
    Write(Accepted<T>),
    /// Ask the peer for credit up to the limit; `first` says that the lane has the first credit.
    Need {
        mailbox: u64,
        seq: u64,
        limit: u64,
        first: bool,
    },
    /// Give credit back that nobody waits to use, because others wait.
    Return {
        mailbox: u64,
        seq: u64,
        limit: u64,
    },
    /// The mailbox is closed: these wait in vain.
    Refused {
        ticket: Ticket,
        item: T,
    },
}

/// The sending side of a session.
#[derive(Debug)]
pub(crate) struct Outbound<T> {
    first_credit: u64,
    /// How many more lanes may use the first credit.
    first_lanes: u64,
    lanes: HashMap<u64, SendLane<T>>,
    closed: Recent,
    small: Room,
    bulk: Room,
    /// Lanes whose first waiter has credit but no room.
    blocked: BTreeSet<u64>,
    /// Lanes whose first waiter has no credit.
    starving: BTreeSet<u64>,
    /// Lanes with more unused credit than the first.
    rich: BTreeSet<u64>,
    next_ticket: u64,
}

#[derive(Debug)]
struct SendLane<T> {
    /// Started with the first credit, so its end gives that place back.
    free: bool,
    next: u64,
    sent: u64,
    limit: u64,
    asked: u64,
    /// Of the last request, and of the last that gave credit back.
    seq: u64,
    returned: u64,
    waiting: VecDeque<(Ticket, u64, bool, T)>,
}

/// Space in the buffers between acceptance and the socket.
#[derive(Debug)]
struct Room {
    used: u64,
    max: u64,
}

impl Room {
    /// One message always fits an empty buffer.
    fn is_free(&self) -> bool {
        self.used < self.max
    }
}

impl<T> Outbound<T> {
    /// A session whose peer grants the first `first_lanes` lanes `first_credit` bytes each. Up to `small_max` and
    /// `bulk_max` bytes, and one message more, wait between acceptance and the socket.
    pub(crate) fn new(first_credit: u64, first_lanes: u64, small_max: u64, bulk_max: u64) -> Self {
        Self {
            first_credit,
            first_lanes,
            lanes: HashMap::new(),
            closed: Recent::new(CLOSED_REMEMBERED),
            small: Room { used: 0, max: small_max },
            bulk: Room { used: 0, max: bulk_max },
            blocked: BTreeSet::new(),
            starving: BTreeSet::new(),
            rich: BTreeSet::new(),
            next_ticket: 0,
        }
    }

    /// Takes a message, in the order of the calls for each mailbox.
    pub(crate) fn offer(&mut self, offer: Offer<T>, outputs: &mut Vec<Output<T>>) -> Offered<T> {
        let Offer { mailbox, body, bulk, item, wait } = offer;
        if self.closed.contains(mailbox) {
            return Offered::Closed(item);
        }
        let lane = self.lanes.entry(mailbox).or_insert_with(|| {
            let free = self.first_lanes > 0;
            self.first_lanes -= u64::from(free);
            let limit = if free { self.first_credit } else { 0 };
            SendLane { free, next: 0, sent: 0, limit, asked: limit, seq: 0, returned: 0, waiting: VecDeque::new() }
        });
        let cost = body as u64 + MESSAGE_COST;
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        let room = if bulk { &mut self.bulk } else { &mut self.small };
        if lane.waiting.is_empty() && lane.sent + cost <= lane.limit && room.is_free() {
            return Offered::Accepted(lane.accept(room, ticket, mailbox, cost, bulk, item));
        }
        let has_credit = lane.sent + cost <= lane.limit;
        let is_first = lane.waiting.is_empty();
        // Even who does not wait asks: a message larger than the first credit would never go otherwise.
        if is_first && !has_credit {
            lane.ask(mailbox, cost, outputs);
        }
        let result = if wait {
            lane.waiting.push_back((ticket, cost, bulk, item));
            if is_first {
                let set = if has_credit { &mut self.blocked } else { &mut self.starving };
                set.insert(mailbox);
            }
            Offered::Waits(ticket)
        } else {
            Offered::Full(item)
        };
        if is_first && !has_credit {
            self.give_back(Some(mailbox), outputs);
        }
        result
    }

    /// Takes a waiting message back. Returns `None` when it was accepted before.
    pub(crate) fn cancel(&mut self, mailbox: u64, ticket: Ticket, outputs: &mut Vec<Output<T>>) -> Option<T> {
        let lane = self.lanes.get_mut(&mailbox)?;
        let at = lane.waiting.iter().position(|(waiting, ..)| *waiting == ticket)?;
        let (_, _, _, item) = lane.waiting.remove(at)?;
        self.pump(mailbox, outputs);
        Some(item)
    }

    /// The peer raised a mailbox's limit.
    pub(crate) fn granted(&mut self, grant: Grant, outputs: &mut Vec<Output<T>>) {
        let Grant { mailbox, seq, limit } = grant;
        // A grant may cross the news that the mailbox is closed, and grants may overtake each other across links.
        let Some(lane) = self.lanes.get_mut(&mailbox) else { return };
        // One from before credit was given back is void: it may speak of that credit.
        if limit > lane.limit && seq >= lane.returned {
            lane.limit = limit;
            self.pump(mailbox, outputs);
        }
    }

    /// Gives back what others hold and nobody waits to use. What a peer grants beyond the first credit comes out of one
    /// budget, so a message that was given up would keep the next one waiting for ever.
    fn give_back(&mut self, asking: Option<u64>, outputs: &mut Vec<Output<T>>) {
        let (lanes, first_credit) = (&mut self.lanes, self.first_credit);
        self.rich.retain(|mailbox| {
            let Some(lane) = lanes.get_mut(mailbox) else { return false };
            if lane.limit - lane.sent <= first_credit {
                return false;
            }
            if Some(*mailbox) == asking || !lane.waiting.is_empty() {
                return true;
            }
            lane.limit = lane.sent + first_credit;
            lane.asked = lane.limit;
            lane.seq += 1;
            lane.returned = lane.seq;
            outputs.push(Output::Return { mailbox: *mailbox, seq: lane.seq, limit: lane.limit });
            false
        });
    }

    /// The peer's mailbox is closed, or never was.
    pub(crate) fn closed(&mut self, mailbox: u64, outputs: &mut Vec<Output<T>>) {
        self.closed.insert(mailbox);
        self.blocked.remove(&mailbox);
        self.starving.remove(&mailbox);
        self.rich.remove(&mailbox);
        if let Some(lane) = self.lanes.remove(&mailbox) {
            self.first_lanes += u64::from(lane.free);
            outputs.extend(lane.waiting.into_iter().map(|(ticket, _, _, item)| Output::Refused { ticket, item }));
        }
    }

    /// Messages of that cost have left the buffer for the socket.
    pub(crate) fn written(&mut self, cost: u64, bulk: bool, outputs: &mut Vec<Output<T>>) {
        let room = if bulk { &mut self.bulk } else { &mut self.small };
        let was_free = room.is_free();
        room.used = room.used.saturating_sub(cost);
        if !was_free && room.is_free() && !self.blocked.is_empty() {
            for mailbox in std::mem::take(&mut self.blocked) {
                self.pump(mailbox, outputs);
            }
        }
    }

    /// All that waits, because the session has ended.
    pub(crate) fn drain_waiting(&mut self) -> Vec<Ticket> {
        self.lanes.values_mut().flat_map(|lane| lane.waiting.drain(..)).map(|(ticket, ..)| ticket).collect()
    }

    fn pump(&mut self, mailbox: u64, outputs: &mut Vec<Output<T>>) {
        let Some(lane) = self.lanes.get_mut(&mailbox) else { return };
        self.blocked.remove(&mailbox);
        self.starving.remove(&mailbox);
        while let Some((ticket, cost, bulk, item)) = lane.waiting.pop_front() {
            let room = if bulk { &mut self.bulk } else { &mut self.small };
            if lane.sent + cost > lane.limit {
                lane.ask(mailbox, cost, outputs);
                lane.waiting.push_front((ticket, cost, bulk, item));
                self.starving.insert(mailbox);
                break;
            }
            if !room.is_free() {
                self.blocked.insert(mailbox);
                lane.waiting.push_front((ticket, cost, bulk, item));
                break;
            }
            outputs.push(Output::Write(lane.accept(room, ticket, mailbox, cost, bulk, item)));
        }
        if lane.limit - lane.sent > self.first_credit {
            self.rich.insert(mailbox);
        }
        if !self.starving.is_empty() {
            self.give_back(None, outputs);
        }
    }
}

impl<T> SendLane<T> {
    fn accept(&mut self, room: &mut Room, ticket: Ticket, mailbox: u64, cost: u64, bulk: bool, item: T) -> Accepted<T> {
        room.used += cost;
        self.sent += cost;
        let number = self.next;
        self.next += 1;
        Accepted { ticket, mailbox, number, bulk, item }
    }

    fn ask(&mut self, mailbox: u64, cost: u64, outputs: &mut Vec<Output<T>>) {
        let limit = self.sent + cost;
        if limit > self.limit && limit > self.asked {
            self.asked = limit;
            self.seq += 1;
            outputs.push(Output::Need { mailbox, seq: self.seq, limit, first: self.free });
        }
    }
}

/// A peer that breaks the rules of the lanes; its session ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Violation {
    #[error("a message number came twice")]
    Repeated,
    #[error("a message exceeds its credit")]
    Credit,
    #[error("a message is announced that is larger than the limit")]
    TooLarge,
    #[error("more lanes than a session may have")]
    Lanes,
    #[error("a message number is missing")]
    Gap,
}

/// How much a session's receiving side may hold.
#[derive(Clone, Copy, Debug)]
pub(crate) struct InboundLimits {
    /// What a lane may send without asking, and what it is kept supplied with, in bytes.
    pub(crate) window: u64,
    /// How many lanes may use the window without asking.
    pub(crate) first_lanes: u64,
    /// All lanes of the session.
    pub(crate) lanes_max: usize,
    /// The largest body.
    pub(crate) message_max: u64,
    /// What all lanes together may be granted beyond their windows, in bytes, for messages that are larger; and one such
    /// message more.
    pub(crate) extra_max: u64,
}

/// The receiving side of a session.
#[derive(Debug)]
pub(crate) struct Inbound<T> {
    limits: InboundLimits,
    first_lanes: u64,
    lanes: HashMap<u64, RecvLane<T>>,
    /// Credit granted beyond the windows.
    extra: u64,
    /// Lanes that asked for more than there was, in their order.
    asks: VecDeque<u64>,
    refused: Recent,
    delivered: u64,
}

#[derive(Debug)]
struct RecvLane<T> {
    free: bool,
    next: u64,
    /// What came early: behind a message that is still on its way on another stream or link.
    early: BTreeMap<u64, T>,
    received: u64,
    consumed: u64,
    limit: u64,
    asked: u64,
    /// The highest number of a request.
    seq: u64,
    extra: u64,
}

impl<T> RecvLane<T> {
    fn new(limit: u64, free: bool) -> Self {
        let early = BTreeMap::new();
        Self { free, next: 0, early, received: 0, consumed: 0, limit, asked: 0, seq: 0, extra: 0 }
    }
}

/// A limit to tell the peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Grant {
    pub(crate) mailbox: u64,
    /// Of the lane's last request that was heard.
    pub(crate) seq: u64,
    pub(crate) limit: u64,
}

impl<T> Inbound<T> {
    pub(crate) fn new(limits: InboundLimits) -> Self {
        Self {
            limits,
            first_lanes: limits.first_lanes,
            lanes: HashMap::new(),
            extra: 0,
            asks: VecDeque::new(),
            refused: Recent::new(REFUSED_REMEMBERED),
            delivered: 0,
        }
    }

    /// Takes a message of an open mailbox, and appends to `ready` what can be delivered, in order.
    ///
    /// # Errors
    /// A [`Violation`] ends the session.
    pub(crate) fn receive(
        &mut self,
        mailbox: u64,
        number: u64,
        body: usize,
        item: T,
        ready: &mut Vec<T>,
    ) -> Result<(), Violation> {
        let lane = match self.lanes.entry(mailbox) {
            std::collections::hash_map::Entry::Occupied(lane) => lane.into_mut(),
            std::collections::hash_map::Entry::Vacant(place) => {
                self.first_lanes = self.first_lanes.checked_sub(1).ok_or(Violation::Credit)?;
                place.insert(RecvLane::new(self.limits.window, true))
            }
        };
        let received = lane.received + body as u64 + MESSAGE_COST;
        if received > lane.limit {
            return Err(Violation::Credit);
        }
        if number < lane.next || lane.early.contains_key(&number) {
            return Err(Violation::Repeated);
        }
        lane.received = received;
        if number > lane.next {
            lane.early.insert(number, item);
            return Ok(());
        }
        let before = lane.next;
        lane.next += 1;
        ready.push(item);
        while let Some(item) = lane.early.remove(&lane.next) {
            lane.next += 1;
            ready.push(item);
        }
        self.delivered += lane.next - before;
        Ok(())
    }

    /// How many messages have been delivered.
    pub(crate) fn delivered(&self) -> u64 {
        self.delivered
    }

    /// The peer asks for credit for an open mailbox.
    ///
    /// # Errors
    /// A [`Violation`] ends the session.
    pub(crate) fn need(&mut self, mailbox: u64, seq: u64, limit: u64, first: bool) -> Result<Option<Grant>, Violation> {
        if !self.lanes.contains_key(&mailbox) {
            if self.lanes.len() >= self.limits.lanes_max {
                return Err(Violation::Lanes);
            }
            // The sender says it, because a message of a lane may overtake what another lane asks.
            if first {
                self.first_lanes = self.first_lanes.checked_sub(1).ok_or(Violation::Credit)?;
            }
            self.lanes.insert(mailbox, RecvLane::new(if first { self.limits.window } else { 0 }, first));
        }
        let lane = self.lanes.get_mut(&mailbox).expect("inserted above");
        if limit > lane.limit + self.limits.message_max + MESSAGE_COST {
            return Err(Violation::TooLarge);
        }
        if seq <= lane.seq {
            return Ok(None);
        }
        lane.seq = seq;
        lane.asked = lane.asked.max(limit);
        if limit <= lane.limit {
            // The sender has not heard of it, or had given it back by a request that comes too late.
            return Ok(Some(Grant { mailbox, seq, limit: lane.limit }));
        }
        Ok(self.supply(mailbox))
    }

    /// The sender of a lane gives credit back: to whom it goes.
    ///
    /// # Errors
    /// A [`Violation`] ends the session.
    pub(crate) fn returned(
        &mut self,
        mailbox: u64,
        seq: u64,
        limit: u64,
        grants: &mut Vec<Grant>,
    ) -> Result<(), Violation> {
        let Some(lane) = self.lanes.get_mut(&mailbox) else { return Ok(()) };
        if seq <= lane.seq {
            return Ok(());
        }
        lane.seq = seq;
        if limit > lane.limit || limit < lane.received {
            return Err(Violation::Credit);
        }
        lane.limit = limit;
        lane.asked = limit;
        self.free_extra(mailbox, grants);
        Ok(())
    }

    /// A mailbox has read a message of that size, or thrown it away: whom to grant more.
    pub(crate) fn consumed(&mut self, mailbox: u64, body: usize, grants: &mut Vec<Grant>) {
        // The lane may have been closed since.
        let Some(lane) = self.lanes.get_mut(&mailbox) else { return };
        lane.consumed += body as u64 + MESSAGE_COST;
        // Half a window at a time, so that a stream of small messages costs few grants.
        if lane.limit < lane.consumed + self.limits.window / 2 {
            lane.limit = lane.consumed + self.limits.window;
            grants.push(Grant { mailbox, seq: lane.seq, limit: lane.limit });
        }
        if lane.asked > lane.limit {
            grants.extend(self.supply(mailbox));
        }
        self.free_extra(mailbox, grants);
    }

    /// Takes back what a lane no longer holds beyond its window, and grants it to who waits.
    fn free_extra(&mut self, mailbox: u64, grants: &mut Vec<Grant>) {
        let Some(lane) = self.lanes.get_mut(&mailbox) else { return };
        let extra = lane.limit.saturating_sub(lane.consumed + self.limits.window).min(lane.extra);
        let freed = std::mem::replace(&mut lane.extra, extra) - extra;
        self.extra -= freed;
        if freed > 0 {
            self.supply_waiting(grants);
        }
    }

    fn supply_waiting(&mut self, grants: &mut Vec<Grant>) {
        for waiting in std::mem::take(&mut self.asks) {
            grants.extend(self.supply(waiting));
        }
    }

    /// Forgets a mailbox that has closed. True when the peer must be told, because it has a lane to it; what the lane
    /// held goes to who waits.
    pub(crate) fn close(&mut self, mailbox: u64, grants: &mut Vec<Grant>) -> bool {
        let Some(lane) = self.lanes.remove(&mailbox) else { return false };
        self.first_lanes += u64::from(lane.free);
        self.extra -= lane.extra;
        self.supply_waiting(grants);
        self.refused.insert(mailbox)
    }

    /// A message came for a mailbox that is not open. True when the peer is to be told; it is told once, as far as
    /// memory goes.
    pub(crate) fn refuse(&mut self, mailbox: u64) -> bool {
        self.refused.insert(mailbox)
    }

    /// Checks that nothing is missing, once all streams of the peer have been read.
    ///
    /// # Errors
    /// [`Violation::Gap`] when a message waits for one that can no longer come.
    pub(crate) fn finish(&self) -> Result<(), Violation> {
        if self.lanes.values().any(|lane| !lane.early.is_empty()) { Err(Violation::Gap) } else { Ok(()) }
    }

    fn supply(&mut self, mailbox: u64) -> Option<Grant> {
        let lane = self.lanes.get_mut(&mailbox)?;
        if lane.asked <= lane.limit {
            return None;
        }
        let window = lane.consumed + self.limits.window;
        if lane.asked <= window {
            lane.limit = window;
            return Some(Grant { mailbox, seq: lane.seq, limit: window });
        }
        // Beyond the window goes only one message that is larger than it, once all before it is read: else a mailbox that
        // nobody reads would take the budget of all others.
        let one_beyond = window + self.limits.message_max + MESSAGE_COST;
        if lane.consumed < lane.received || lane.asked > one_beyond {
            return None;
        }
        let extra = lane.asked - window;
        let others = self.extra - lane.extra;
        // What the others hold decides, not the sum: a lane that holds a part and asks for more could otherwise wait for a
        // second such lane, and that one for it. This way the lane that was granted last is never refused.
        if others > self.limits.extra_max {
            if !self.asks.contains(&mailbox) {
                self.asks.push_back(mailbox);
            }
            return None;
        }
        self.extra = others + extra;
        lane.extra = extra;
        lane.limit = lane.asked;
        Some(Grant { mailbox, seq: lane.seq, limit: lane.limit })
    }
}

/// A bounded set that forgets its oldest entries.
#[derive(Debug)]
struct Recent {
    max: usize,
    set: HashSet<u64>,
    order: VecDeque<u64>,
}

impl Recent {
    fn new(max: usize) -> Self {
        Self { max, set: HashSet::new(), order: VecDeque::new() }
    }

    fn contains(&self, value: u64) -> bool {
        self.set.contains(&value)
    }

    /// Returns whether the value is new.
    fn insert(&mut self, value: u64) -> bool {
        if !self.set.insert(value) {
            return false;
        }
        self.order.push_back(value);
        if self.order.len() > self.max
            && let Some(oldest) = self.order.pop_front()
        {
            self.set.remove(&oldest);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMITS: InboundLimits =
        InboundLimits { window: 1000, first_lanes: 3, lanes_max: 8, message_max: 5000, extra_max: 6000 };

    fn offer(mailbox: u64, body: usize, wait: bool) -> Offer<usize> {
        Offer { mailbox, body, bulk: false, item: body, wait }
    }

    fn outbound() -> Outbound<usize> {
        Outbound::new(LIMITS.window, LIMITS.first_lanes, 10_000, 10_000)
    }

    #[test]
    fn the_last_byte_of_credit_is_used_and_one_more_waits() {
        let mut out = Vec::new();
        let mut lanes = outbound();
        let fits = (LIMITS.window - MESSAGE_COST) as usize;
        assert!(matches!(lanes.offer(offer(1, fits, false), &mut out), Offered::Accepted(a) if a.number == 0));
        assert_eq!(out, []);
        assert_eq!(lanes.offer(offer(2, fits + 1, false), &mut out), Offered::Full(fits + 1));
        assert_eq!(out, [Output::Need { mailbox: 2, seq: 1, limit: LIMITS.window + 1, first: true }]);
    }

    #[test]
    fn a_small_message_does_not_overtake_a_large_one_that_waits() {
        let mut out = Vec::new();
        let mut lanes = outbound();
        let Offered::Waits(_) = lanes.offer(offer(1, 3000, true), &mut out) else { panic!() };
        assert_eq!(lanes.offer(offer(1, 1, false), &mut out), Offered::Full(1));
        let Offered::Waits(_) = lanes.offer(offer(1, 1, true), &mut out) else { panic!() };
        out.clear();
        lanes.granted(Grant { mailbox: 1, seq: 1, limit: 3000 + 1 + 2 * MESSAGE_COST }, &mut out);
        let bodies: Vec<_> = out
            .iter()
            .map(|output| match output {
                Output::Write(accepted) => (accepted.number, accepted.item),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(bodies, [(0, 3000), (1, 1)]);
    }

    #[test]
    fn who_gives_up_makes_way() {
        let mut out = Vec::new();
        let mut lanes = outbound();
        let Offered::Waits(large) = lanes.offer(offer(1, 3000, true), &mut out) else { panic!() };
        let Offered::Waits(small) = lanes.offer(offer(1, 1, true), &mut out) else { panic!() };
        out.clear();
        assert_eq!(lanes.cancel(1, large, &mut out), Some(3000));
        assert!(matches!(&out[..], [Output::Write(Accepted { number: 0, item: 1, .. })]), "{out:?}");
        assert_eq!(lanes.cancel(1, small, &mut out), None, "it was accepted");
    }

    #[test]
    fn a_closed_mailbox_refuses_who_waits_and_who_comes() {
        let mut out = Vec::new();
        let mut lanes = outbound();
        let Offered::Waits(ticket) = lanes.offer(offer(1, 3000, true), &mut out) else { panic!() };
        out.clear();
        lanes.closed(1, &mut out);
        assert_eq!(out, [Output::Refused { ticket, item: 3000 }]);
        assert_eq!(lanes.offer(offer(1, 1, true), &mut out), Offered::Closed(1));
    }

    #[test]
    fn a_full_buffer_holds_back_and_its_emptying_lets_go() {
        let mut out = Vec::new();
        let mut lanes = Outbound::new(1_000_000, 100, 100, 100);
        assert!(matches!(lanes.offer(offer(1, 500, true), &mut out), Offered::Accepted(_)), "one always fits");
        let Offered::Waits(_) = lanes.offer(offer(2, 7, true), &mut out) else { panic!() };
        let bulk = Offer { bulk: true, ..offer(3, 9, true) };
        assert!(matches!(lanes.offer(bulk, &mut out), Offered::Accepted(_)), "bulk has its own room");
        assert_eq!(out, []);
        lanes.written(500 + MESSAGE_COST, false, &mut out);
        assert!(matches!(&out[..], [Output::Write(Accepted { mailbox: 2, .. })]), "{out:?}");
    }

    #[test]
    fn lanes_beyond_the_first_ask_before_they_send() {
        let mut out = Vec::new();
        let mut lanes = outbound();
        for mailbox in 0..LIMITS.first_lanes {
            assert!(matches!(lanes.offer(offer(mailbox, 1, false), &mut out), Offered::Accepted(_)));
        }
        assert_eq!(lanes.offer(offer(9, 1, false), &mut out), Offered::Full(1));
        assert_eq!(out, [Output::Need { mailbox: 9, seq: 1, limit: 1 + MESSAGE_COST, first: false }]);
        lanes.closed(0, &mut out);
        assert!(matches!(lanes.offer(offer(10, 1, false), &mut out), Offered::Accepted(_)), "a place came free");
    }

    #[test]
    fn what_breaks_the_rules_is_a_violation() {
        let mut ready = Vec::new();
        let mut lanes = Inbound::new(LIMITS);
        let fits = (LIMITS.window - MESSAGE_COST) as usize;
        assert_eq!(lanes.receive(1, 0, fits, 0, &mut ready), Ok(()));
        assert_eq!(lanes.receive(1, 1, 0, 1, &mut ready), Err(Violation::Credit));
        assert_eq!(lanes.receive(2, 0, fits + 1, 0, &mut ready), Err(Violation::Credit));
        assert_eq!(lanes.receive(3, 5, 1, 0, &mut ready), Ok(()));
        assert_eq!(lanes.receive(3, 5, 1, 0, &mut ready), Err(Violation::Repeated));
        assert_eq!(lanes.receive(4, 0, 1, 0, &mut ready), Err(Violation::Credit), "the first lanes are used up");
        assert_eq!(lanes.finish(), Err(Violation::Gap));
        assert_eq!(
            lanes.need(1, 1, LIMITS.window + LIMITS.message_max + MESSAGE_COST + 1, true),
            Err(Violation::TooLarge)
        );
        for mailbox in 10..10 + (LIMITS.lanes_max as u64 - 3) {
            assert!(lanes.need(mailbox, 1, 1, false).is_ok());
        }
        assert_eq!(lanes.need(99, 1, 1, false), Err(Violation::Lanes));
    }

    #[test]
    fn a_mailbox_that_nobody_reads_gets_no_more_than_its_window() {
        let mut lanes = Inbound::new(LIMITS);
        let mut ready = Vec::new();
        assert_eq!(lanes.receive(1, 0, 500, 0, &mut ready), Ok(()));
        let full = 500 + MESSAGE_COST + 500 + MESSAGE_COST;
        assert_eq!(lanes.need(1, 1, full, true), Ok(None), "it holds a message, and the second exceeds the window");
        let mut grants = Vec::new();
        lanes.consumed(1, 500, &mut grants);
        assert_eq!(grants, [Grant { mailbox: 1, seq: 1, limit: 500 + MESSAGE_COST + LIMITS.window }]);
    }

    #[test]
    fn large_messages_share_a_budget_and_wait_in_turn() {
        let mut lanes = Inbound::<()>::new(LIMITS);
        let large = LIMITS.message_max + MESSAGE_COST;
        assert_eq!(lanes.need(1, 1, large, false), Ok(Some(Grant { mailbox: 1, seq: 1, limit: large })));
        assert_eq!(lanes.need(2, 1, large, false), Ok(Some(Grant { mailbox: 2, seq: 1, limit: large })), "one more");
        assert_eq!(lanes.need(3, 1, large, false), Ok(None), "the two hold more than the budget");
        let mut ready = Vec::new();
        assert_eq!(lanes.receive(1, 0, LIMITS.message_max as usize, (), &mut ready), Ok(()));
        let mut grants = Vec::new();
        lanes.consumed(1, LIMITS.message_max as usize, &mut grants);
        assert!(grants.contains(&Grant { mailbox: 3, seq: 1, limit: large }), "{grants:?}");
    }

    #[derive(Clone, Debug)]
    enum Step {
        Send {
            mailbox: u64,
            body: usize,
            wait: bool,
        },
        Cancel,
        /// A frame at the front of one of the streams arrives.
        Arrive {
            stream: usize,
        },
        Read {
            mailbox: u64,
        },
        SwitchLink,
        CloseMailbox {
            mailbox: u64,
        },
    }

    /// What travels in the streams of either link, to the receiver or back.
    #[derive(Debug)]
    enum Travelling {
        Message(Accepted<(u64, u64)>, usize),
        Control(Output<(u64, u64)>),
        Grant(Grant),
        Closed(u64),
    }

    /// Streams of one link: small messages, two for bodies, control, and control of the other direction.
    const STREAMS: usize = 5;

    struct World {
        sender: Outbound<(u64, u64)>,
        receiver: Inbound<(u64, u64)>,
        streams: Vec<VecDeque<Travelling>>,
        link: usize,
        bodies: BTreeMap<u64, usize>,
        accepted: BTreeMap<u64, Vec<u64>>,
        delivered: BTreeMap<u64, Vec<u64>>,
        queues: BTreeMap<u64, VecDeque<usize>>,
        waiting: Vec<(u64, Ticket, u64)>,
        gone: BTreeSet<u64>,
        next: u64,
    }

    impl World {
        fn new() -> Self {
            Self {
                sender: Outbound::new(LIMITS.window, LIMITS.first_lanes, 4000, 6000),
                receiver: Inbound::new(LIMITS),
                streams: (0..2 * STREAMS).map(|_| VecDeque::new()).collect(),
                link: 0,
                bodies: BTreeMap::new(),
                accepted: BTreeMap::new(),
                delivered: BTreeMap::new(),
                queues: BTreeMap::new(),
                waiting: Vec::new(),
                gone: BTreeSet::new(),
                next: 0,
            }
        }

        fn travel(&mut self, stream: usize, what: Travelling) {
            self.streams[self.link * STREAMS + stream].push_back(what);
        }

        fn step(&mut self, step: Step) {
            let mut out = Vec::new();
            let mut grants = Vec::new();
            match step {
                Step::Send { mailbox, body, wait } => {
                    self.next += 1;
                    let id = self.next;
                    self.bodies.insert(id, body);
                    let offer = Offer { mailbox, body, bulk: is_bulk(body, 1000), item: (mailbox, id), wait };
                    match self.sender.offer(offer, &mut out) {
                        Offered::Accepted(message) => out.push(Output::Write(message)),
                        Offered::Waits(ticket) => self.waiting.push((mailbox, ticket, id)),
                        Offered::Full(_) => {}
                        Offered::Closed(_) => assert!(self.gone.contains(&mailbox)),
                    }
                }
                Step::Cancel => {
                    if let Some((mailbox, ticket, id)) = self.waiting.pop() {
                        let back = self.sender.cancel(mailbox, ticket, &mut out);
                        assert_eq!(back, Some((mailbox, id)));
                    }
                }
                Step::Arrive { stream } => {
                    if let Some(what) = self.streams[stream].pop_front() {
                        self.arrive(what, &mut out, &mut grants);
                    }
                }
                Step::Read { mailbox } => {
                    if let Some(body) = self.queues.entry(mailbox).or_default().pop_front() {
                        self.receiver.consumed(mailbox, body, &mut grants);
                    }
                }
                Step::SwitchLink => self.link = 1 - self.link,
                Step::CloseMailbox { mailbox } => {
                    self.gone.insert(mailbox);
                    self.queues.remove(&mailbox);
                    if self.receiver.close(mailbox, &mut grants) {
                        self.travel(4, Travelling::Closed(mailbox));
                    }
                }
            }
            for grant in grants {
                self.travel(4, Travelling::Grant(grant));
            }
            for output in out {
                match output {
                    Output::Write(message) => {
                        let (mailbox, id) = message.item;
                        self.accepted.entry(mailbox).or_default().push(id);
                        self.waiting.retain(|(.., waits)| *waits != id);
                        let body = self.bodies[&id];
                        let stream = if message.bulk { 1 + (id % 2) as usize } else { 0 };
                        self.travel(stream, Travelling::Message(message, body));
                    }
                    Output::Refused { item: (_, id), .. } => self.waiting.retain(|(.., waits)| *waits != id),
                    other => self.travel(3, Travelling::Control(other)),
                }
            }
            for (mailbox, ids) in &self.delivered {
                assert!(self.accepted[mailbox].starts_with(ids), "mailbox {mailbox} got {ids:?}");
            }
            let held: u64 = self.receiver.lanes.values().map(|lane| lane.received - lane.consumed).sum();
            let one = LIMITS.message_max + MESSAGE_COST;
            assert!(held <= 5 * LIMITS.window + LIMITS.extra_max + one, "holds {held}");
            for lane in self.receiver.lanes.values() {
                assert!(lane.received - lane.consumed <= LIMITS.window + one, "a lane holds too much");
            }
        }

        fn arrive(&mut self, what: Travelling, out: &mut Vec<Output<(u64, u64)>>, grants: &mut Vec<Grant>) {
            let receiver = &mut self.receiver;
            match what {
                Travelling::Grant(grant) => self.sender.granted(grant, out),
                Travelling::Closed(mailbox) => self.sender.closed(mailbox, out),
                Travelling::Control(Output::Need { mailbox, .. }) if self.gone.contains(&mailbox) => {
                    if receiver.refuse(mailbox) {
                        self.travel(4, Travelling::Closed(mailbox));
                    }
                }
                Travelling::Control(Output::Need { mailbox, seq, limit, first }) => {
                    grants.extend(receiver.need(mailbox, seq, limit, first).unwrap());
                }
                Travelling::Control(Output::Return { mailbox, seq, limit }) => {
                    receiver.returned(mailbox, seq, limit, grants).unwrap();
                }
                Travelling::Control(other) => panic!("{other:?}"),
                Travelling::Message(message, body) => {
                    self.sender.written(body as u64 + MESSAGE_COST, message.bulk, out);
                    if self.gone.contains(&message.mailbox) {
                        if receiver.refuse(message.mailbox) {
                            self.travel(4, Travelling::Closed(message.mailbox));
                        }
                        return;
                    }
                    let mut ready = Vec::new();
                    let Accepted { mailbox, number, item, .. } = message;
                    receiver.receive(mailbox, number, body, item, &mut ready).unwrap();
                    for (mailbox, id) in ready {
                        self.delivered.entry(mailbox).or_default().push(id);
                        self.queues.entry(mailbox).or_default().push_back(self.bodies[&id]);
                    }
                }
            }
        }
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => (0..5u64, prop_oneof![0..50usize, 0..1200usize, 3000..5000usize], any::<bool>())
                .prop_map(|(mailbox, body, wait)| Step::Send { mailbox, body, wait }),
            1 => Just(Step::Cancel),
            8 => (0..2 * STREAMS).prop_map(|stream| Step::Arrive { stream }),
            6 => (0..5u64).prop_map(|mailbox| Step::Read { mailbox }),
            1 => Just(Step::SwitchLink),
            1 => (0..5u64).prop_map(|mailbox| Step::CloseMailbox { mailbox }),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

        /// However sends, streams, links, reads and closes interleave: each mailbox gets what was accepted for it, in the
        /// order of acceptance, once; nothing breaks a rule; what is held stays within the limits; and when all has
        /// arrived and is read, nothing waits for ever.
        #[test]
        fn every_interleaving_keeps_order_and_bounds(steps in proptest::collection::vec(step(), 1..300)) {
            let mut world = World::new();
            for step in steps {
                world.step(step);
            }
            for _ in 0..400 {
                for stream in 0..2 * STREAMS {
                    world.step(Step::Arrive { stream });
                }
                for mailbox in 0..5 {
                    world.step(Step::Read { mailbox });
                }
            }
            prop_assert!(world.streams.iter().all(VecDeque::is_empty));
            prop_assert!(world.waiting.is_empty(), "{:?} wait for ever", world.waiting);
            prop_assert_eq!(world.receiver.finish(), Ok(()));
            for (mailbox, ids) in &world.accepted {
                if !world.gone.contains(mailbox) {
                    prop_assert_eq!(&world.delivered[mailbox], ids);
                }
            }
        }
    }
}
