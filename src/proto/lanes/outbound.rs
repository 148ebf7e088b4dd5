//! The sending side: numbers what it accepts, as far as there is credit and room.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, VecDeque};

use super::{Grant, MESSAGE_COST, Recent, Short, copies_cost};
use crate::id::BySerial;

/// How many closed mailboxes of the peer are remembered, so that a send to one fails at once. Forgetting one costs a
/// message that the peer answers with CLOSED again.
const CLOSED_REMEMBERED: usize = 4096;

/// How many lanes are looked at when the peer asks for unused credit.
const SPARE_AT_ONCE: usize = 64;

/// A message that waits for credit or room.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Ticket(u64);

#[cfg(test)]
impl Ticket {
    /// Of a message that did not wait.
    pub(super) const NONE: Self = Self(u64::MAX);
}

/// A message that waited and may go: write it now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Accepted<T> {
    pub(crate) ticket: Ticket,
    pub(crate) mailbox: u64,
    pub(crate) number: u64,
    pub(crate) bulk: bool,
    pub(crate) item: T,
}

/// What became of an offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Offered {
    /// It may go, with this number: write it now.
    Accepted(u64),
    /// It waits its turn; [`Outbound::cancel`] takes it back.
    Waits(Ticket),
    /// There is no credit, or no room, and the caller would not wait.
    Full,
    /// The mailbox is closed.
    Closed,
    /// The peer lets one session send to so many mailboxes and no more.
    TooMany,
}

/// A message to offer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Offer {
    pub(crate) mailbox: u64,
    /// The body's size in bytes.
    pub(crate) body: usize,
    pub(crate) bulk: bool,
    /// Whether to wait for credit and room.
    pub(crate) wait: bool,
}

/// Something that [`Outbound`] wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Output<T> {
    Write(Accepted<T>),
    /// So much is sent: ask the peer for credit up to the limit.
    Need {
        mailbox: u64,
        seq: u64,
        sent: u64,
        limit: u64,
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
    lanes_max: usize,
    lanes: BySerial<SendLane<T>>,
    closed: Recent,
    small: Room,
    bulk: Room,
    /// Lanes whose first waiter has credit but no room.
    blocked: BTreeSet<u64>,
    /// Lanes that may have unused credit beyond the first.
    rich: BTreeSet<u64>,
    /// Where the next search for unused credit begins.
    hand: u64,
    /// The peer has messages waiting for credit, as it said last.
    short: Short,
    next_ticket: u64,
}

#[derive(Debug)]
struct SendLane<T> {
    next: u64,
    sent: u64,
    limit: u64,
    asked: u64,
    /// Something was sent since the last search for unused credit came by.
    active: bool,
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
    /// A session whose peer takes messages for `lanes_max` mailboxes, and grants each `first_credit` bytes unasked. Up to `small_max` and `bulk_max` bytes, and one message more, wait between acceptance and
    /// the socket.
    pub(crate) fn new(first_credit: u64, lanes_max: usize, small_max: u64, bulk_max: u64) -> Self {
        Self {
            first_credit,
            lanes_max,
            lanes: BySerial::default(),
            closed: Recent::new(CLOSED_REMEMBERED),
            small: Room { used: 0, max: small_max },
            bulk: Room { used: 0, max: bulk_max },
            blocked: BTreeSet::new(),
            rich: BTreeSet::new(),
            hand: 0,
            short: Short::default(),
            next_ticket: 0,
        }
    }

    /// Takes a message, in the order of the calls for each mailbox. One that has to wait is kept as `item`.
    pub(crate) fn offer(&mut self, offer: Offer, item: impl FnOnce() -> T, outputs: &mut Vec<Output<T>>) -> Offered {
        let Offer { mailbox, body, bulk, wait } = offer;
        let lanes = self.lanes.len();
        let lane = match self.lanes.entry(mailbox) {
            Entry::Occupied(lane) => lane.into_mut(),
            Entry::Vacant(_) if self.closed.contains(mailbox) => return Offered::Closed,
            Entry::Vacant(_) if lanes >= self.lanes_max => return Offered::TooMany,
            Entry::Vacant(place) => place.insert(SendLane::new(self.first_credit)),
        };
        let cost = body as u64 + MESSAGE_COST;
        let room = if bulk { &mut self.bulk } else { &mut self.small };
        let has_credit = lane.sent + cost <= lane.limit;
        let is_first = lane.waiting.is_empty();
        if is_first && has_credit && room.is_free() {
            return Offered::Accepted(lane.accept(room, cost));
        }
        // Even who does not wait asks: a message larger than the first credit would never go otherwise.
        if is_first && !has_credit {
            lane.ask(mailbox, cost, outputs);
        }
        if !wait {
            self.forget_unused(mailbox);
            return Offered::Full;
        }
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        lane.waiting.push_back((ticket, cost, bulk, item()));
        if is_first && has_credit {
            self.blocked.insert(mailbox);
        }
        Offered::Waits(ticket)
    }

    /// Takes one message to several mailboxes, where that needs no waiting: what became of each, in their order. The copies
    /// travel as one frame, which takes [`copies_cost`] of the room.
    pub(crate) fn offer_copies(
        &mut self,
        mailboxes: &[u64],
        body: usize,
        bulk: bool,
        outputs: &mut Vec<Output<T>>,
    ) -> Vec<Offered> {
        let used = if bulk { self.bulk.used } else { self.small.used };
        let offered: Vec<_> = mailboxes
            .iter()
            .map(|mailbox| {
                let offer = Offer { mailbox: *mailbox, body, bulk, wait: false };
                let offered = self.offer(offer, || unreachable!("nobody waits"), outputs);
                // Together they take the room once.
                *self.room(bulk) = used;
                offered
            })
            .collect();
        let accepted = offered.iter().filter(|offered| matches!(offered, Offered::Accepted(_))).count();
        if accepted > 0 {
            *self.room(bulk) += copies_cost(body, accepted);
        }
        offered
    }

    /// What was accepted and has not left for the socket, in bytes: of small messages, and of bulk.
    pub(crate) fn buffered(&self) -> (u64, u64) {
        (self.small.used, self.bulk.used)
    }

    fn room(&mut self, bulk: bool) -> &mut u64 {
        if bulk { &mut self.bulk.used } else { &mut self.small.used }
    }

    /// Takes a waiting message back. Returns `None` when it was accepted before.
    pub(crate) fn cancel(&mut self, mailbox: u64, ticket: Ticket, outputs: &mut Vec<Output<T>>) -> Option<T> {
        let lane = self.lanes.get_mut(&mailbox)?;
        let at = lane.waiting.iter().position(|(waiting, ..)| *waiting == ticket)?;
        let (_, _, _, item) = lane.waiting.remove(at)?;
        self.pump(mailbox, outputs);
        self.forget_unused(mailbox);
        Some(item)
    }

    /// Forgets a lane that the peer has not heard of: it would not say either that its mailbox has closed.
    fn forget_unused(&mut self, mailbox: u64) {
        if let Entry::Occupied(lane) = self.lanes.entry(mailbox)
            && lane.get().is_unused()
        {
            lane.remove();
            self.rich.remove(&mailbox);
        }
    }

    /// The number that the next message for this mailbox has: all that were accepted come before it.
    pub(crate) fn next_number(&self, mailbox: u64) -> u64 {
        self.lanes.get(&mailbox).map_or(0, |lane| lane.next)
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

    /// The peer has messages waiting for credit, or no longer has. What it grants to messages above their window comes out
    /// of one budget, so credit for a message that was given up would keep the next one waiting for ever.
    pub(crate) fn short(&mut self, short: Short, outputs: &mut Vec<Output<T>>) {
        if short.seq > self.short.seq {
            self.short = short;
            if short.on {
                let rich: Vec<_> = self.rich.iter().copied().collect();
                rich.into_iter().for_each(|mailbox| self.give_back(mailbox, outputs));
            }
        }
    }

    /// The peer's windows are small because many lanes have one: gives back those of a few lanes that have been idle since
    /// this was asked last.
    pub(crate) fn spare(&mut self, outputs: &mut Vec<Output<T>>) {
        let from_hand = self.rich.range(self.hand..).chain(self.rich.range(..self.hand));
        let some: Vec<_> = from_hand.take(SPARE_AT_ONCE).copied().collect();
        for mailbox in some {
            self.hand = mailbox + 1;
            let Some(lane) = self.lanes.get_mut(&mailbox) else { continue };
            if !std::mem::take(&mut lane.active) {
                self.give_back(mailbox, outputs);
            }
        }
    }

    /// Gives back what a lane has beyond the first credit, unless somebody waits to use it.
    fn give_back(&mut self, mailbox: u64, outputs: &mut Vec<Output<T>>) {
        let Some(lane) = self.lanes.get_mut(&mailbox) else { return };
        let kept = lane.sent + self.first_credit;
        if lane.limit <= kept {
            self.rich.remove(&mailbox);
        } else if lane.waiting.is_empty() {
            lane.limit = kept;
            lane.asked = kept;
            lane.seq += 1;
            lane.returned = lane.seq;
            outputs.push(Output::Return { mailbox, seq: lane.seq, limit: kept });
            self.rich.remove(&mailbox);
        }
    }

    /// The peer's mailbox is closed, or never was.
    pub(crate) fn closed(&mut self, mailbox: u64, outputs: &mut Vec<Output<T>>) {
        self.closed.insert(mailbox);
        self.blocked.remove(&mailbox);
        self.rich.remove(&mailbox);
        if let Some(lane) = self.lanes.remove(&mailbox) {
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
        while let Some((ticket, cost, bulk, item)) = lane.waiting.pop_front() {
            let room = if bulk { &mut self.bulk } else { &mut self.small };
            if lane.sent + cost > lane.limit {
                lane.ask(mailbox, cost, outputs);
                lane.waiting.push_front((ticket, cost, bulk, item));
                break;
            }
            if !room.is_free() {
                self.blocked.insert(mailbox);
                lane.waiting.push_front((ticket, cost, bulk, item));
                break;
            }
            let number = lane.accept(room, cost);
            outputs.push(Output::Write(Accepted { ticket, mailbox, number, bulk, item }));
        }
        if lane.limit > lane.sent + self.first_credit {
            self.rich.insert(mailbox);
        }
        if self.short.on {
            self.give_back(mailbox, outputs);
        }
    }
}

impl<T> SendLane<T> {
    fn new(limit: u64) -> Self {
        let waiting = VecDeque::new();
        Self { next: 0, sent: 0, limit, asked: limit, active: true, seq: 0, returned: 0, waiting }
    }

    /// Nothing was sent or asked for, and nothing waits.
    fn is_unused(&self) -> bool {
        self.next == 0 && self.seq == 0 && self.waiting.is_empty()
    }

    fn accept(&mut self, room: &mut Room, cost: u64) -> u64 {
        room.used += cost;
        self.sent += cost;
        self.active = true;
        self.next += 1;
        self.next - 1
    }

    fn ask(&mut self, mailbox: u64, cost: u64, outputs: &mut Vec<Output<T>>) {
        let limit = self.sent + cost;
        if limit > self.limit && limit > self.asked {
            self.asked = limit;
            self.seq += 1;
            outputs.push(Output::Need { mailbox, seq: self.seq, sent: self.sent, limit });
        }
    }
}
