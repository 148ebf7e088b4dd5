//! Facts of applications: spread like rumours, and delivered once.

use std::time::{Duration, Instant};

use bytes::Bytes;

use super::table::Slot;
use super::{Membership, Output};
use crate::wire::membership::{ShortId, Swim};

/// The last numbers of one origin that were heard.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Heard {
    highest: u64,
    /// Bit `n`: the number `highest - n` was heard.
    recent: u64,
}

impl Heard {
    /// Notes a number. False if it was heard before, or is so old that this is no longer known.
    pub(super) fn note(&mut self, number: u64) -> bool {
        if number > self.highest {
            let newer = number - self.highest;
            self.recent = if newer < 64 { self.recent << newer } else { 0 } | 1;
            self.highest = number;
            return true;
        }
        let age = self.highest - number;
        if age >= 64 || self.recent & (1 << age) != 0 {
            return false;
        }
        self.recent |= 1 << age;
        true
    }
}

impl Membership {
    pub(super) fn publish(&mut self, topic: String, body: Bytes, now: Instant) {
        if !self.has_room() {
            self.counters.facts_dropped += 1;
            return;
        }
        self.fact_number += 1;
        let number = self.fact_number;
        let frame = Swim::Fact { origin: self.own_short(), number, topic: topic.clone(), body: body.clone() };
        self.outputs.push_back(Output::Fact { from: self.id.clone(), topic, body });
        if !self.peers.is_empty() {
            self.tell_fact(self.own, number, &frame);
            self.gossip_soon(now, Duration::ZERO);
        }
    }

    pub(super) fn handle_fact(
        &mut self,
        from: Slot,
        origin: ShortId,
        number: u64,
        topic: String,
        body: Bytes,
        now: Instant,
    ) {
        let Some(slot) = self.table.by_short(origin) else {
            return self.ask(from, origin, now);
        };
        if slot == self.own || !self.facts.entry(slot).or_default().note(number) {
            return;
        }
        let Some(id) = self.table.get(slot).map(|record| record.identity.id.clone()) else { return };
        let frame = Swim::Fact { origin, number, topic: topic.clone(), body: body.clone() };
        if self.rumours.facts() < self.params.facts_max {
            self.tell_fact(slot, number, &frame);
        } else {
            self.counters.facts_dropped += 1;
        }
        self.outputs.push_back(Output::Fact { from: id, topic, body });
    }

    pub(super) fn tell_fact(&mut self, origin: Slot, number: u64, frame: &Swim) {
        let mut bytes = Vec::with_capacity(frame.len());
        frame.put(&mut bytes);
        self.rumours.tell_fact(origin, number, bytes.into(), origin == self.own);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each number once, in any order, as far back as 63 numbers.
    #[test]
    fn each_fact_once() {
        let mut heard = Heard::default();
        let news = [5, 5, 3, 5, 3, 6, 200, 137, 136, 199, 200, 137].map(|number| heard.note(number));
        assert_eq!(news, [true, false, true, false, false, true, true, true, false, true, false, false]);
    }
}
