//! The receiving side: delivers in order, and grants credit out of its budgets.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::{Grant, MESSAGE_COST, Recent, Short, Violation};
use crate::id::BySerial;

/// How many mailboxes of this side the peer is known to have been told to be closed. Fewer than the peer remembers: if it
/// forgot one that this side remembers to have told, it would send in vain and never hear.
const REFUSED_REMEMBERED: usize = 1024;

/// The part of what is free in a budget that one lane may have: an eighth.
const PART: u64 = 8;

/// How much a session's receiving side may hold.
#[derive(Clone, Copy, Debug)]
pub(crate) struct InboundLimits {
    /// What a lane may send without asking, and is always kept supplied with, in bytes.
    pub(crate) window: u64,
    /// What a lane's window may grow to, in bytes.
    pub(crate) window_max: u64,
    /// All lanes of the session.
    pub(crate) lanes_max: usize,
    /// The largest body.
    pub(crate) message_max: u64,
    /// What the windows of all lanes together may take beyond what each always has, in bytes.
    pub(crate) windows_max: u64,
    /// What messages above their windows together may take, in bytes; and one such message more.
    pub(crate) large_max: u64,
}

/// Bytes of which many have a part.
#[derive(Clone, Copy, Debug)]
pub(super) struct Budget {
    pub(super) used: u64,
    max: u64,
}

impl Budget {
    fn new(max: u64) -> Self {
        Self { used: 0, max }
    }

    /// The most that one lane may have of what is free.
    fn part(&self) -> u64 {
        self.max.saturating_sub(self.used) / PART
    }

    fn change(&mut self, before: u64, after: u64) {
        self.used = self.used - before + after;
    }
}

/// What all sessions of a node together may grant beyond their first credit.
#[derive(Debug)]
pub(crate) struct Pool {
    pub(super) windows: Budget,
    large: Budget,
    /// Sessions with a message that waits for a place in `large`.
    waiting: BTreeSet<u64>,
    is_short: bool,
}

impl Pool {
    /// Windows take up to `windows_max` bytes; messages above their windows up to `large_max`, and one more.
    pub(crate) fn new(windows_max: u64, large_max: u64) -> Self {
        Self {
            windows: Budget::new(windows_max),
            large: Budget::new(large_max),
            waiting: BTreeSet::new(),
            is_short: false,
        }
    }

    /// Sessions that may try again, because a place came free.
    pub(crate) fn freed(&mut self) -> BTreeSet<u64> {
        if self.large.used <= self.large.max { std::mem::take(&mut self.waiting) } else { BTreeSet::new() }
    }

    /// Whether it has become short, or no longer is, since this was asked last: then every session has news for its peer.
    pub(crate) fn has_turned(&mut self) -> bool {
        let is_short = !self.waiting.is_empty();
        std::mem::replace(&mut self.is_short, is_short) != is_short
    }

    /// What is granted beyond first credits, in bytes.
    #[cfg(test)]
    pub(crate) fn used(&self) -> u64 {
        self.windows.used + self.large.used
    }
}

/// The receiving side of a session.
#[derive(Debug)]
pub(crate) struct Inbound<T> {
    /// What the session is called in the pool.
    session: u64,
    limits: InboundLimits,
    lanes: BySerial<RecvLane<T>>,
    windows: Budget,
    large: Budget,
    /// Lanes with a message that waits for a place in a budget of large ones, in their order.
    asks: VecDeque<u64>,
    told: Short,
    /// A lane had to do with less than its window since the peer was last asked for what it does not use.
    pressed: bool,
    refused: Recent,
    delivered: u64,
}

#[derive(Debug)]
struct RecvLane<T> {
    next: u64,
    /// What came early: behind a message that is still on its way on another stream or link.
    early: BTreeMap<u64, (u64, T)>,
    received: u64,
    consumed: u64,
    limit: u64,
    asked: u64,
    /// The highest number of a request, and what had been sent by then.
    seq: u64,
    sent: u64,
    /// The sender asked, and it is not known yet whether for a larger window.
    is_starved: bool,
    /// What it is to be supplied with while there is enough.
    window: u64,
    /// What it has out of the budgets, beyond its base: of its window, and for a message above that.
    windowed: u64,
    large: u64,
}

impl<T> RecvLane<T> {
    fn new(window: u64) -> Self {
        let early = BTreeMap::new();
        Self {
            next: 0,
            early,
            received: 0,
            consumed: 0,
            limit: window,
            asked: 0,
            seq: 0,
            sent: 0,
            is_starved: false,
            window,
            windowed: 0,
            large: 0,
        }
    }
}

impl<T> RecvLane<T> {
    /// Doubles the window if the sender had used it up and all of that has been read, with little left since: then it is
    /// shorter than the path. What a request overtook is on its way, so this is known only when it is read too.
    fn grow(&mut self, max: u64) {
        if self.is_starved && self.consumed >= self.sent && self.consumed >= self.window {
            self.is_starved = false;
            if self.received - self.consumed <= self.window / 4 {
                self.window = (2 * self.window).min(max.max(self.window));
            }
        }
    }
}

/// Messages that have arrived together, numbered in a row.
#[derive(Clone, Debug)]
pub(crate) struct Arrived<T> {
    pub(crate) mailbox: u64,
    /// Of the first.
    pub(crate) number: u64,
    pub(crate) messages: u64,
    /// Of all of them: their bodies, and [`MESSAGE_COST`] each.
    pub(crate) cost: u64,
    pub(crate) item: T,
}

/// What an ended session leaves behind: a side that takes nothing.
const NOTHING: InboundLimits =
    InboundLimits { window: 0, window_max: 0, lanes_max: 0, message_max: 0, windows_max: 0, large_max: 0 };

impl<T> Inbound<T> {
    pub(crate) fn new(session: u64, limits: InboundLimits) -> Self {
        Self {
            session,
            limits,
            lanes: BySerial::default(),
            windows: Budget::new(limits.windows_max),
            large: Budget::new(limits.large_max),
            asks: VecDeque::new(),
            told: Short::default(),
            pressed: false,
            refused: Recent::new(REFUSED_REMEMBERED),
            delivered: 0,
        }
    }

    /// Takes messages of an open mailbox, and appends to `ready` what can be delivered, in order.
    ///
    /// # Errors
    /// A [`Violation`] ends the session.
    pub(crate) fn receive(&mut self, arrived: Arrived<T>, ready: &mut Vec<T>) -> Result<(), Violation> {
        let Arrived { mailbox, number, messages, cost, item } = arrived;
        let is_full = self.lanes.len() >= self.limits.lanes_max;
        let lane = match self.lanes.entry(mailbox) {
            Entry::Occupied(lane) => lane.into_mut(),
            Entry::Vacant(_) if is_full => return Err(Violation::Lanes),
            Entry::Vacant(place) => place.insert(RecvLane::new(self.limits.window)),
        };
        let received = lane.received + cost;
        if received > lane.limit {
            return Err(Violation::Credit);
        }
        let end = number + messages;
        let before = lane.early.range(..end).next_back();
        if number < lane.next || before.is_some_and(|(first, (messages, _))| first + messages > number) {
            return Err(Violation::Repeated);
        }
        lane.received = received;
        if number > lane.next {
            lane.early.insert(number, (messages, item));
            return Ok(());
        }
        let before = lane.next;
        lane.next = end;
        ready.push(item);
        while let Some((messages, item)) = lane.early.remove(&lane.next) {
            lane.next += messages;
            ready.push(item);
        }
        self.delivered += lane.next - before;
        Ok(())
    }

    /// The number of the message that is delivered next in this mailbox's lane.
    pub(crate) fn next_number(&self, mailbox: u64) -> u64 {
        self.lanes.get(&mailbox).map_or(0, |lane| lane.next)
    }

    /// What has come and is not read, in bytes.
    pub(crate) fn held(&self) -> u64 {
        self.lanes.values().map(|lane| lane.received - lane.consumed).sum()
    }

    /// How many messages have been delivered.
    pub(crate) fn delivered(&self) -> u64 {
        self.delivered
    }

    /// The peer asks for credit for an open mailbox: whom to grant it.
    ///
    /// # Errors
    /// A [`Violation`] ends the session.
    pub(crate) fn need(
        &mut self,
        mailbox: u64,
        seq: u64,
        sent: u64,
        limit: u64,
        pool: &mut Pool,
        grants: &mut Vec<Grant>,
    ) -> Result<(), Violation> {
        let is_full = self.lanes.len() >= self.limits.lanes_max;
        let lane = match self.lanes.entry(mailbox) {
            Entry::Occupied(lane) => lane.into_mut(),
            Entry::Vacant(_) if is_full => return Err(Violation::Lanes),
            Entry::Vacant(place) => place.insert(RecvLane::new(self.limits.window)),
        };
        if limit > lane.limit + self.limits.message_max + MESSAGE_COST || sent > limit {
            return Err(Violation::TooLarge);
        }
        if seq <= lane.seq {
            return Ok(());
        }
        lane.seq = seq;
        lane.asked = lane.asked.max(limit);
        if limit <= lane.limit {
            // The sender has not heard of it, or had given it back by a request that comes too late.
            grants.push(Grant { mailbox, seq, limit: lane.limit });
            return Ok(());
        }
        lane.sent = sent;
        lane.is_starved = true;
        lane.grow(self.limits.window_max);
        let large = lane.large;
        grants.extend(self.supply(mailbox, pool));
        self.pass_on(mailbox, large, pool, grants);
        Ok(())
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
        pool: &mut Pool,
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
        // What is left of a large grant is a small window from now on.
        self.settle(mailbox, self.limits.window, pool, grants);
        Ok(())
    }

    /// A mailbox has read messages of that cost, or thrown them away: whom to grant more.
    pub(crate) fn consumed(&mut self, mailbox: u64, cost: u64, pool: &mut Pool, grants: &mut Vec<Grant>) {
        // The lane may have been closed since.
        let Some(lane) = self.lanes.get_mut(&mailbox) else { return };
        lane.consumed += cost;
        self.settle(mailbox, 0, pool, grants);
        let Some(lane) = self.lanes.get_mut(&mailbox) else { return };
        lane.grow(self.limits.window_max);
        let large = lane.large;
        // Half a window at a time, so that a stream of small messages costs few grants.
        if lane.asked > lane.limit {
            grants.extend(self.supply(mailbox, pool));
        } else if lane.limit < lane.consumed + lane.window / 2 {
            grants.extend(self.supply_window(mailbox, pool));
        }
        self.pass_on(mailbox, large, pool, grants);
    }

    /// Grants to who waits what a lane had for a large message, where its window has grown over that.
    fn pass_on(&mut self, mailbox: u64, large: u64, pool: &mut Pool, grants: &mut Vec<Grant>) {
        if self.lanes.get(&mailbox).is_some_and(|lane| lane.large < large) {
            self.supply_waiting(pool, grants);
        }
    }

    /// Takes back what a lane no longer has beyond its window, of at least that size, and grants it to who waits.
    fn settle(&mut self, mailbox: u64, window: u64, pool: &mut Pool, grants: &mut Vec<Grant>) {
        let Some(lane) = self.lanes.get(&mailbox) else { return };
        let beyond = (lane.limit - lane.consumed).saturating_sub(self.limits.window);
        let windowed = lane.windowed.max(window).min(beyond);
        let large = beyond - windowed;
        let frees = large < lane.large;
        self.hold(mailbox, windowed, large, pool);
        if frees {
            self.supply_waiting(pool, grants);
        }
    }

    /// Books what a lane has out of the budgets from now on.
    fn hold(&mut self, mailbox: u64, windowed: u64, large: u64, pool: &mut Pool) {
        let Some(lane) = self.lanes.get_mut(&mailbox) else { return };
        for (budget, before, after) in [
            (&mut self.windows, lane.windowed, windowed),
            (&mut pool.windows, lane.windowed, windowed),
            (&mut self.large, lane.large, large),
            (&mut pool.large, lane.large, large),
        ] {
            budget.change(before, after);
        }
        lane.windowed = windowed;
        lane.large = large;
    }

    /// A place came free, here or in the pool: whom to grant it.
    pub(crate) fn supply_waiting(&mut self, pool: &mut Pool, grants: &mut Vec<Grant>) {
        while let Some(mailbox) = self.asks.pop_front() {
            grants.extend(self.supply(mailbox, pool));
            if self.asks.back() == Some(&mailbox) {
                // First come, first served: those behind it wait too.
                self.asks.rotate_right(1);
                break;
            }
        }
    }

    /// Forgets a mailbox that has closed. True when the peer must be told, because it has a lane to it; what the lane
    /// held goes to who waits.
    pub(crate) fn close(&mut self, mailbox: u64, pool: &mut Pool, grants: &mut Vec<Grant>) -> bool {
        self.hold(mailbox, 0, 0, pool);
        if self.lanes.remove(&mailbox).is_none() {
            return false;
        }
        self.asks.retain(|waiting| *waiting != mailbox);
        self.supply_waiting(pool, grants);
        self.refused.insert(mailbox)
    }

    /// Gives back to the pool all that the session has of it, because the session has ended.
    pub(crate) fn end(&mut self, pool: &mut Pool) {
        pool.windows.change(self.windows.used, 0);
        pool.large.change(self.large.used, 0);
        pool.waiting.remove(&self.session);
        *self = Self::new(self.session, NOTHING);
    }

    /// What the peer has not been told of the budgets.
    pub(crate) fn shortage(&mut self, pool: &Pool) -> Option<Short> {
        let on = !self.asks.is_empty() || !pool.waiting.is_empty();
        (on != self.told.on).then(|| {
            self.told = Short { seq: self.told.seq + 1, on };
            self.told
        })
    }

    /// Whether the peer is to be asked for windows that it does not use.
    pub(crate) fn take_pressed(&mut self) -> bool {
        std::mem::take(&mut self.pressed)
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

    /// Raises a lane's limit to its window, as far as the budgets let it.
    fn supply_window(&mut self, mailbox: u64, pool: &mut Pool) -> Option<Grant> {
        let part = self.windows.part().min(pool.windows.part());
        let lane = self.lanes.get_mut(&mailbox)?;
        let wanted = lane.window - self.limits.window;
        self.pressed |= part < wanted && lane.windowed < wanted;
        let windowed = wanted.min(part).max(lane.windowed);
        let limit = lane.consumed + self.limits.window + windowed;
        if limit <= lane.limit {
            return None;
        }
        lane.limit = limit;
        let grant = Grant { mailbox, seq: lane.seq, limit };
        self.hold(mailbox, windowed, 0, pool);
        Some(grant)
    }

    fn supply(&mut self, mailbox: u64, pool: &mut Pool) -> Option<Grant> {
        let grant = self.supply_window(mailbox, pool);
        let lane = self.lanes.get_mut(&mailbox)?;
        if lane.asked <= lane.limit {
            return grant;
        }
        let window = lane.consumed + self.limits.window + lane.windowed;
        // Beyond the window goes only one message that is larger than it, once all before it is read: else a mailbox that
        // nobody reads would take the budget of all others.
        let one_beyond = window + self.limits.message_max + MESSAGE_COST;
        if lane.consumed < lane.sent || lane.consumed < lane.received || lane.asked > one_beyond {
            return grant;
        }
        // What the others hold decides, not the sum: a lane that holds a part and asks for more could otherwise wait for a
        // second such lane, and that one for it. This way the lane that was granted last is never refused.
        let here = self.large.used - lane.large > self.large.max;
        let node = pool.large.used - lane.large > pool.large.max;
        if here || node {
            if node {
                pool.waiting.insert(self.session);
            }
            if !self.asks.contains(&mailbox) {
                self.asks.push_back(mailbox);
            }
            return grant;
        }
        // In addition to the window, so that a small message behind it need not wait until it is read. One message, whatever
        // the peer says it had sent: it may have sent more since, or say less than it had.
        let large = (lane.asked - lane.sent).min(self.limits.message_max + MESSAGE_COST);
        let windowed = lane.windowed;
        lane.limit = window + large;
        let grant = Grant { mailbox, seq: lane.seq, limit: lane.limit };
        self.hold(mailbox, windowed, large, pool);
        Some(grant)
    }
}

#[cfg(test)]
impl<T> Inbound<T> {
    /// What it has out of the budgets, in bytes.
    pub(super) fn used(&self) -> u64 {
        self.windows.used + self.large.used
    }

    pub(super) fn received(&self, mailbox: u64) -> u64 {
        self.lanes.get(&mailbox).map_or(0, |lane| lane.received)
    }

    pub(super) fn window(&self, mailbox: u64) -> u64 {
        self.lanes[&mailbox].window
    }

    /// The books agree, and nothing exceeds its budget.
    pub(super) fn check(&self) {
        let one = self.limits.message_max + MESSAGE_COST;
        assert_eq!(self.windows.used, self.lanes.values().map(|lane| lane.windowed).sum::<u64>());
        assert_eq!(self.large.used, self.lanes.values().map(|lane| lane.large).sum::<u64>());
        assert!(self.large.used <= self.limits.large_max + one, "large messages hold {}", self.large.used);
        for lane in self.lanes.values() {
            assert!(lane.limit - lane.consumed <= self.limits.window + lane.windowed + lane.large, "{}", lane.limit);
            assert!(lane.received - lane.consumed <= self.limits.window_max + one, "a lane holds too much");
        }
    }
}
