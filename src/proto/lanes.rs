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
//! A lane starts with a small credit, which needs no asking and is always kept up, so a mailbox that nobody reads costs
//! little. Whoever needs more asks; and if the mailbox is read promptly meanwhile, the window was too small for the path, and
//! doubles.
//!
//! What windows grow by comes out of two budgets, the session's and the node's ([`Pool`]), and no lane gets more than an
//! eighth of what is free: the dynamic thresholds of [Choudhury and Hahne 1998]. A message that is larger than its lane's
//! window comes out of a budget of its own, and waits its turn there.
//!
//! [RFC 9000, section 4]: https://www.rfc-editor.org/rfc/rfc9000#section-4
//! [Choudhury and Hahne 1998]: https://doi.org/10.1109/90.664262

mod inbound;
mod outbound;
#[cfg(test)]
mod tests;

use std::collections::{HashSet, VecDeque};

pub(crate) use self::inbound::{Arrived, Inbound, InboundLimits, Pool};
pub(crate) use self::outbound::{Accepted, Offer, Offered, Outbound, Output, Ticket};

/// What a message costs beside its body, in bytes: its place in a queue that may be half empty, and its allocation. It
/// bounds the number of small messages.
pub(crate) const MESSAGE_COST: u64 = 128;

/// Says whether a message of that many bytes travels on a stream of its own.
pub(crate) fn is_bulk(body: usize, bulk_from: usize) -> bool {
    body >= bulk_from
}

/// What a frame with so many copies of a body takes of the room between acceptance and the socket. Of the credit of each
/// mailbox a copy takes as much as a message.
pub(crate) fn copies_cost(body: usize, copies: usize) -> u64 {
    // Two numbers of 8 bytes at most.
    body as u64 + MESSAGE_COST + 16 * copies as u64
}

/// A limit to tell the peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Grant {
    pub(crate) mailbox: u64,
    /// Of the lane's last request that was heard.
    pub(crate) seq: u64,
    pub(crate) limit: u64,
}

/// What a peer says of its budgets; of two the one with the greater `seq` stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Short {
    pub(crate) seq: u64,
    pub(crate) on: bool,
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
