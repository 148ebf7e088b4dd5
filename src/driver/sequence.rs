//! The service frames of one session, in the order of their numbers.
//!
//! Links come and go, and two of them may cross: a frame may arrive before those that it follows. It waits for them here,
//! as long as there is room. That a peer numbers its frames from 0, and each once, is the rule.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::wire::{Code, Frame};

/// Frames that wait for an earlier one, and their bytes.
const EARLY_MAX: usize = 4096;
const EARLY_BYTES_MAX: usize = 4 * 1024 * 1024;

/// What has arrived and was not taken.
#[derive(Debug, Default)]
pub(super) struct Sequence {
    next: u64,
    waiting: BTreeMap<u64, Frame>,
    bytes: usize,
}

impl Sequence {
    /// Takes a frame as it arrives. One whose turn it is always has room.
    pub(super) fn arrived(&mut self, number: u64, frame: Frame) -> Result<(), Code> {
        if number < self.next || self.waiting.contains_key(&number) {
            return Err(Code::PROTOCOL);
        }
        let is_early = number > self.next;
        let bytes = self.bytes + frame.body.len();
        if is_early && (self.waiting.len() >= EARLY_MAX || bytes > EARLY_BYTES_MAX) {
            return Err(Code::PROTOCOL);
        }
        // What waits long is not to hold the packet that it came in.
        let body = if is_early { Bytes::copy_from_slice(&frame.body) } else { frame.body };
        self.bytes = bytes;
        self.waiting.insert(number, Frame { kind: frame.kind, body });
        Ok(())
    }

    /// The frame whose turn it is, if it is there. It stays until [`Sequence::advance`].
    pub(super) fn peek(&self) -> Option<Frame> {
        self.waiting.get(&self.next).cloned()
    }

    /// What was peeked is taken.
    pub(super) fn advance(&mut self) {
        if let Some(frame) = self.waiting.remove(&self.next) {
            self.bytes -= frame.body.len();
            self.next += 1;
        }
    }

    /// The session has ended: nothing waits or is taken any more.
    pub(super) fn end(&mut self) {
        *self = Self { next: u64::MAX, ..Self::default() };
    }

    /// How many were taken.
    pub(super) fn taken(&self) -> u64 {
        self.next
    }

    /// Whether one that is missing keeps others waiting.
    pub(super) fn has_gap(&self) -> bool {
        !self.waiting.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(number: u64) -> Frame {
        Frame { kind: 0x80, body: Bytes::copy_from_slice(&number.to_be_bytes()) }
    }

    fn arrived(sequence: &mut Sequence, number: u64) -> Result<(), Code> {
        sequence.arrived(number, frame(number))
    }

    fn take_all(sequence: &mut Sequence) -> Vec<Frame> {
        let take = || {
            let frame = sequence.peek()?;
            sequence.advance();
            Some(frame)
        };
        std::iter::from_fn(take).collect()
    }

    #[test]
    fn an_early_frame_waits_for_its_turn() {
        let mut sequence = Sequence::default();
        arrived(&mut sequence, 1).unwrap();
        arrived(&mut sequence, 2).unwrap();
        assert_eq!((sequence.peek(), sequence.taken(), sequence.has_gap()), (None, 0, true));
        arrived(&mut sequence, 0).unwrap();
        assert_eq!(take_all(&mut sequence), [frame(0), frame(1), frame(2)]);
        assert_eq!((sequence.bytes, sequence.taken(), sequence.has_gap()), (0, 3, false));
    }

    /// Whoever hands a frame on may be stopped before it does.
    #[test]
    fn a_frame_stays_until_it_is_taken() {
        let mut sequence = Sequence::default();
        arrived(&mut sequence, 0).unwrap();
        assert_eq!(sequence.peek(), Some(frame(0)));
        assert_eq!(sequence.peek(), Some(frame(0)));
        arrived(&mut sequence, 1).unwrap();
        assert_eq!(take_all(&mut sequence), [frame(0), frame(1)]);
        sequence.advance();
        assert_eq!(sequence.taken(), 2, "there is nothing to take");
    }

    #[test]
    fn a_number_comes_once() {
        let mut sequence = Sequence::default();
        arrived(&mut sequence, 0).unwrap();
        assert_eq!(arrived(&mut sequence, 0), Err(Code::PROTOCOL), "it waits to be taken");
        take_all(&mut sequence);
        assert_eq!(arrived(&mut sequence, 0), Err(Code::PROTOCOL), "it was taken");
        arrived(&mut sequence, 2).unwrap();
        assert_eq!(arrived(&mut sequence, 2), Err(Code::PROTOCOL), "it is early");
        arrived(&mut sequence, 1).unwrap();
        assert_eq!(take_all(&mut sequence), [frame(1), frame(2)]);
    }

    #[test]
    fn so_many_frames_wait_and_no_more() {
        let mut sequence = Sequence::default();
        for number in 1..=EARLY_MAX as u64 {
            arrived(&mut sequence, number).unwrap();
        }
        assert_eq!(arrived(&mut sequence, EARLY_MAX as u64 + 1), Err(Code::PROTOCOL));
        arrived(&mut sequence, 0).expect("the one that is missing has room");
        assert_eq!(take_all(&mut sequence).len(), EARLY_MAX + 1);
    }

    #[test]
    fn so_many_bytes_wait_and_no_more() {
        let mut sequence = Sequence::default();
        let large = |len| Frame { kind: 0x80, body: vec![0; len].into() };
        sequence.arrived(1, large(EARLY_BYTES_MAX - 1)).unwrap();
        sequence.arrived(2, large(1)).unwrap();
        assert_eq!(sequence.arrived(3, large(1)), Err(Code::PROTOCOL));
        sequence.arrived(3, large(0)).unwrap();
        sequence.arrived(0, large(1000)).expect("the one that is missing has room");
        assert_eq!(take_all(&mut sequence).len(), 4);
        sequence.arrived(5, large(EARLY_BYTES_MAX)).expect("all room is free");
    }

    #[test]
    fn nothing_comes_after_the_end() {
        let mut sequence = Sequence::default();
        arrived(&mut sequence, 0).unwrap();
        arrived(&mut sequence, 2).unwrap();
        sequence.end();
        assert_eq!((sequence.peek(), sequence.has_gap()), (None, false));
        assert_eq!(arrived(&mut sequence, 3), Err(Code::PROTOCOL));
    }

    /// The last of the numbers that can be written.
    #[test]
    fn a_number_far_ahead_is_early() {
        let mut sequence = Sequence::default();
        arrived(&mut sequence, (1 << 62) - 1).unwrap();
        assert_eq!((sequence.peek(), sequence.has_gap()), (None, true));
    }

    #[test]
    fn what_waits_does_not_hold_the_packet_that_it_came_in() {
        let packet = Bytes::from(vec![7; 100]);
        let mut sequence = Sequence::default();
        sequence.arrived(1, Frame { kind: 0x80, body: packet.slice(10..20) }).unwrap();
        assert!(packet.is_unique());
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Two links bring them, each in order.
        #[test]
        fn however_two_links_cross_the_order_is_that_of_the_numbers(turns in prop::collection::vec(any::<(bool, bool)>(), 1..60)) {
            let (mut on_one, mut on_other): (Vec<u64>, Vec<u64>) = (0..turns.len() as u64).partition(|n| turns[*n as usize].0);
            on_one.reverse();
            on_other.reverse();
            let mut sequence = Sequence::default();
            let mut taken = Vec::new();
            for (_, is_from_one) in turns.iter().cycle() {
                let (first, second) = if *is_from_one { (&mut on_one, &mut on_other) } else { (&mut on_other, &mut on_one) };
                let Some(number) = first.pop().or_else(|| second.pop()) else { break };
                prop_assert!(arrived(&mut sequence, number).is_ok());
                taken.extend(take_all(&mut sequence));
            }
            prop_assert_eq!(taken, (0..turns.len() as u64).map(frame).collect::<Vec<_>>());
        }
    }
}
