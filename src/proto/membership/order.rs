//! Whose turn it is to be probed: every slot of the table once per round, in an order by chance.
//!
//! SWIM (section 4.3) keeps a shuffled list, which bounds the time to the first probe of a member by two rounds. A list would
//! take memory for each member and a shift for each that comes or goes. A keyed permutation of the slots, four rounds of
//! Feistel with cycle walking (Black and Rogaway, "Ciphers with Arbitrary Finite Domains", CT-RSA 2002), gives the same
//! bound and takes none.

/// A walk through slots `0..len` in rounds; `len` may change at any time.
#[derive(Clone, Debug)]
pub(super) struct Order {
    keys: [u32; 4],
    /// Half the width of the domain, in bits.
    half: u32,
    next: u64,
}

impl Order {
    pub(super) fn new(rng: &mut fastrand::Rng) -> Self {
        Self { keys: std::array::from_fn(|_| rng.u32(..)), half: 0, next: u64::MAX }
    }

    /// The next slot of the round. Slots that were added to a domain which did not have to grow are still reached in
    /// this round, or in the next one: either way within two.
    pub(super) fn next(&mut self, len: usize, rng: &mut fastrand::Rng) -> Option<u32> {
        if len == 0 {
            return None;
        }
        loop {
            if self.next >= 1 << (2 * self.half) || self.next == u64::MAX {
                *self = Self::new(rng);
                self.next = 0;
                while (1u64 << (2 * self.half)) < len as u64 {
                    self.half += 1;
                }
            }
            let slot = self.permute(self.next);
            self.next += 1;
            if slot < len as u64 {
                return Some(slot as u32);
            }
        }
    }

    fn permute(&self, at: u64) -> u64 {
        let mask = (1u64 << self.half) - 1;
        let (mut left, mut right) = (at >> self.half, at & mask);
        for key in self.keys {
            let mixed = (right as u32 ^ key).wrapping_mul(0x9e37_79b1);
            let mixed = (mixed ^ (mixed >> 15)).wrapping_mul(0x85eb_ca77);
            (left, right) = (right, left ^ (u64::from(mixed ^ (mixed >> 13)) & mask));
        }
        (left << self.half) | right
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each slot comes once per round, whatever the length.
    #[test]
    fn a_round_reaches_every_slot_once() {
        let mut rng = fastrand::Rng::with_seed(1);
        for len in [1, 2, 3, 4, 5, 16, 17, 100, 1000, 4097] {
            let mut order = Order::new(&mut rng);
            for _ in 0..3 {
                let mut slots: Vec<_> = (0..len).map(|_| order.next(len, &mut rng).unwrap()).collect();
                slots.sort_unstable();
                assert_eq!(slots, (0..len as u32).collect::<Vec<_>>());
            }
        }
    }

    /// The orders of two rounds differ, and neither is the order of the slots.
    #[test]
    fn rounds_differ() {
        let mut rng = fastrand::Rng::with_seed(2);
        let mut order = Order::new(&mut rng);
        let mut round = || (0..100).map(|_| order.next(100, &mut rng).unwrap()).collect::<Vec<_>>();
        let (one, two) = (round(), round());
        assert_ne!(one, two);
        assert!(!one.is_sorted() && !two.is_sorted());
    }

    /// A slot that is added in the middle of a round is reached before two rounds are over.
    #[test]
    fn a_late_slot_is_reached_within_two_rounds() {
        let mut rng = fastrand::Rng::with_seed(3);
        for before in [3, 16, 64, 99] {
            for after in 1..before {
                let mut order = Order::new(&mut rng);
                (0..after).for_each(|_| assert!(order.next(before, &mut rng).is_some()));
                let turns = (1..).take_while(|_| order.next(before + 1, &mut rng) != Some(before as u32)).count();
                assert!(turns < 2 * (before + 1), "{turns} turns after {after} of {before}");
            }
        }
    }
}
