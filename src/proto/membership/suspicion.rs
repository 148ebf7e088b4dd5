//! How long a suspected member has to object.
//!
//! Lifeguard's local health aware suspicion (section 4.2 of the paper): the time begins long and shrinks with each further
//! member that had no answer either, so that a single slow accuser does not kill, and many agree quickly.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use super::Membership;
use super::table::Slot;
use crate::wire::membership::ShortId;

/// A running suspicion.
#[derive(Clone, Debug)]
pub(super) struct Suspicion {
    started: Instant,
    min: Duration,
    max: Duration,
    /// So many accusers beside the first shorten the time to its minimum.
    enough: usize,
    accusers: Vec<ShortId>,
    /// What was added because the accused was heard, or this node stood still.
    pub(super) extended: Duration,
}

/// The shortest time, in a cluster of so many: the paper's `alpha * max(1, log10(n)) * interval`.
pub(super) fn shortest(mult: u32, live: usize, interval: Duration) -> Duration {
    interval.mul_f64(f64::from(mult) * (live.max(1) as f64).log10().max(1.0))
}

impl Suspicion {
    /// Begins with one accuser.
    pub(super) fn new(accuser: ShortId, enough: usize, min: Duration, max: Duration, now: Instant) -> Self {
        Self { started: now, min, max, enough, accusers: vec![accuser], extended: Duration::ZERO }
    }

    /// Hears another accuser. True if it was new and counted, and so worth telling others.
    pub(super) fn confirm(&mut self, accuser: ShortId) -> bool {
        let counts = self.accusers.len() <= self.enough && !self.accusers.contains(&accuser);
        if counts {
            self.accusers.push(accuser);
        }
        counts
    }

    pub(super) fn accusers(&self) -> &[ShortId] {
        &self.accusers
    }

    pub(super) fn deadline(&self) -> Instant {
        self.started + timeout(self.accusers.len() - 1, self.enough, self.min, self.max) + self.extended
    }

    /// Whether it has run for half of the shortest time: long enough for the accused to hear of it and to object.
    pub(super) fn is_ripe(&self, now: Instant) -> bool {
        now >= self.started + self.min / 2
    }
}

/// The whole time, after so many accusers beside the first: `max - (max - min) * log(c + 1) / log(k + 1)`.
fn timeout(confirmations: usize, enough: usize, min: Duration, max: Duration) -> Duration {
    if enough == 0 {
        return min;
    }
    let share = ((confirmations + 1) as f64).ln() / ((enough + 1) as f64).ln();
    max.saturating_sub(max.saturating_sub(min).mul_f64(share)).max(min)
}

/// The suspicions that run.
#[derive(Debug, Default)]
pub(super) struct Suspicions {
    pub(super) running: HashMap<Slot, Suspicion>,
    pub(super) deadlines: BTreeSet<(Instant, Slot)>,
}

impl Suspicions {
    pub(super) fn get(&self, slot: Slot) -> Option<&Suspicion> {
        self.running.get(&slot)
    }

    pub(super) fn begin(&mut self, slot: Slot, suspicion: Suspicion) {
        self.end(slot);
        self.deadlines.insert((suspicion.deadline(), slot));
        self.running.insert(slot, suspicion);
    }

    pub(super) fn end(&mut self, slot: Slot) {
        if let Some(suspicion) = self.running.remove(&slot) {
            self.deadlines.remove(&(suspicion.deadline(), slot));
        }
    }

    /// True if the accuser was new and counted.
    pub(super) fn confirm(&mut self, slot: Slot, accuser: ShortId) -> bool {
        self.change(slot, |suspicion| suspicion.confirm(accuser)).unwrap_or(false)
    }

    /// Gives the accused more time.
    pub(super) fn extend(&mut self, slot: Slot, by: Duration) {
        self.change(slot, |suspicion| suspicion.extended += by);
    }

    fn change<T>(&mut self, slot: Slot, change: impl FnOnce(&mut Suspicion) -> T) -> Option<T> {
        let suspicion = self.running.get_mut(&slot)?;
        self.deadlines.remove(&(suspicion.deadline(), slot));
        let changed = change(suspicion);
        self.deadlines.insert((suspicion.deadline(), slot));
        Some(changed)
    }
}

impl Membership {
    /// Whoever has not objected in time is dead, unless it answers here.
    pub(super) fn suspicion_timeouts(&mut self, now: Instant) {
        while let Some((due, slot)) = self.suspicions.deadlines.first().copied().filter(|(due, _)| *due <= now) {
            if self.was_just_heard(slot, now) {
                self.suspicions.extend(slot, now - due + self.params.probe_interval);
                self.tell_it(slot);
                continue;
            }
            let refutation = self.table.get(slot).map_or(0, |record| record.refutation);
            let by = self.id.clone();
            self.suspicions.end(slot);
            self.die(slot, refutation, by, now);
        }
    }

    /// This node did nothing for a while. Answers and objections wait to be read: nobody is judged before.
    pub(super) fn stood_still(&mut self, now: Instant) {
        if !self.params.lifeguard.probe {
            return;
        }
        self.excuse_probes();
        let until = now + self.params.probe_interval;
        let due: Vec<_> = self.suspicions.deadlines.iter().take_while(|(due, _)| *due < until).copied().collect();
        for (due, slot) in due {
            self.suspicions.extend(slot, until - due);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    /// What is left after so many confirmations and seconds.
    #[test]
    fn the_time_left_shrinks_with_each_accuser() {
        for (confirmations, elapsed, left) in [(0, 0.0, 30.0), (1, 2.0, 14.0), (2, 3.0, 4.81), (3, 4.0, -2.0)] {
            let whole = timeout(confirmations, 3, secs(2), secs(30)).as_secs_f64();
            assert!((whole - elapsed - left).abs() < 0.005, "{confirmations}: {whole}");
        }
        let fires = [0, 1, 2, 3].map(|c| timeout(c, 3, secs(1) / 2, secs(2)).as_secs_f64());
        for (fires, expected) in fires.into_iter().zip([2.0, 1.25, 0.81, 0.5]) {
            assert!((fires - expected).abs() < 0.005, "{fires} {expected}");
        }
    }

    /// Neither the first accuser again, nor one that was heard, nor one too many counts.
    #[test]
    fn only_new_accusers_count() {
        let start = Instant::now();
        let mut suspicion = Suspicion::new(ShortId(1), 3, secs(1) / 2, secs(2), start);
        assert_eq!(suspicion.deadline(), start + secs(2));
        assert!(!suspicion.confirm(ShortId(1)));
        assert_eq!(suspicion.deadline(), start + secs(2));
        assert!(suspicion.confirm(ShortId(2)));
        assert!(!suspicion.confirm(ShortId(2)));
        assert!(suspicion.confirm(ShortId(3)) && suspicion.confirm(ShortId(4)));
        assert_eq!(suspicion.deadline(), start + secs(1) / 2);
        assert!(!suspicion.confirm(ShortId(5)));
    }

    /// In a cluster too small for other accusers the time is short from the start.
    #[test]
    fn without_others_the_time_is_short() {
        assert_eq!(timeout(0, 0, secs(1), secs(6)), secs(1));
    }

    #[test]
    fn the_shortest_time_grows_with_the_cluster() {
        for (live, expected) in [(5, 3.0), (10, 3.0), (50, 5.096), (100, 6.0), (500, 8.096), (1000, 9.0)] {
            let shortest = shortest(3, live, secs(1)).as_secs_f64();
            assert!((shortest - expected).abs() < 0.005, "{live}: {shortest}");
        }
    }
}
