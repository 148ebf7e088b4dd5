//! Who may begin a handshake: a ladder that grows steeper the more of them are under way.
//!
//! | under way | an address that is not proven | one that is |
//! |---|---|---|
//! | below a quarter of the places | admitted | admitted |
//! | below all of them | is to prove itself | admitted |
//! | all, and a member is known there | is to prove itself | admitted while a reserved place is free, then refused |
//! | all | ignored | refused |
//!
//! Many honest nodes may share an address, so nobody is judged by how often it comes, only by how often it fails: that TLS or
//! the greeting was refused. A first packet can be sent in another's name. So a failure of an address that is not proven has
//! its source prove itself from then on, and only failures of proven ones are charged; who has [`FAILURES_MAX`] of them within
//! [`FAILURES_WINDOW`] is ignored for [`IGNORED_FOR`], unless a member is known there: else whoever shares an address with
//! members could shut them out. A member's address that is charged has no reserved places, though.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

/// So many failures of a source within the window are too many.
pub(crate) const FAILURES_MAX: usize = 10;

/// See [`FAILURES_MAX`].
pub(crate) const FAILURES_WINDOW: Duration = Duration::from_secs(10);

/// How long a source is ignored that failed too often.
pub(crate) const IGNORED_FOR: Duration = Duration::from_secs(10);

/// So many sources are remembered that have failed, those that failed last.
pub(crate) const SOURCES_MAX: usize = 4096;

/// How many handshakes may be under way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) places: usize,
    /// Beside these, for addresses of members.
    pub(crate) reserved: usize,
}

/// What becomes of an arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ruling {
    /// [`Admission::over`] gives the place back.
    Admit(Place),
    /// It comes again with a proof of its address.
    Prove,
    /// It is told that there is no room.
    Refuse,
    /// It gets no answer.
    Ignore,
}

/// What a handshake takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Open,
    Reserved,
}

/// What has become of those who dialled this node, counted. Counts only rise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct AdmissionCounters {
    /// Handshakes that were let begin.
    pub admitted: u64,
    /// Of these: on a place that is reserved for addresses of members.
    pub admitted_reserved: u64,
    /// First packets that were answered by the request to prove their address.
    pub asked_to_prove: u64,
    /// First packets of proven addresses that were told that there is no room.
    pub refused: u64,
    /// First packets of addresses that are not proven, which got no answer because there was no room.
    pub ignored: u64,
    /// First packets that got no answer because too many handshakes of their source had failed.
    pub ignored_failing: u64,
    /// Handshakes that failed: TLS or the greeting was refused, by either side. Those that ran out of time do not count.
    pub failed: u64,
    /// How often a source began to be ignored.
    pub sources_ignored: u64,
}

/// Those who share what they did: an IPv4 address, or a /64 of IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Source(IpAddr);

impl From<IpAddr> for Source {
    fn from(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            IpAddr::V4(address) => address.into(),
            IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
        })
    }
}

/// What is known of a source that failed with its address proven.
#[derive(Debug, Default)]
struct Charge {
    /// When it failed, [`FAILURES_MAX`] times at most.
    failures: VecDeque<Instant>,
    ignored_until: Option<Instant>,
}

/// Decides on arrivals at one node.
#[derive(Debug)]
pub(crate) struct Admission {
    limits: Limits,
    open: usize,
    reserved: usize,
    /// Until when these are to prove themselves first.
    doubted: Recent<Instant>,
    charged: Recent<Charge>,
    counters: AdmissionCounters,
}

impl Admission {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            limits,
            open: 0,
            reserved: 0,
            doubted: Recent::default(),
            charged: Recent::default(),
            counters: AdmissionCounters::default(),
        }
    }

    pub(crate) fn counters(&self) -> &AdmissionCounters {
        &self.counters
    }

    /// Handshakes that are under way.
    #[cfg(test)]
    pub(crate) fn under_way(&self) -> usize {
        self.open + self.reserved
    }

    /// A first packet has come. `is_member` is asked when it matters.
    pub(crate) fn arrived(
        &mut self,
        from: IpAddr,
        is_proven: bool,
        is_member: impl FnOnce() -> bool,
        now: Instant,
    ) -> Ruling {
        let ruling = self.rule(from.into(), is_proven, is_member, now);
        let counters = &mut self.counters;
        match ruling {
            Ruling::Admit(Place::Open) => self.open += 1,
            Ruling::Admit(Place::Reserved) => {
                self.reserved += 1;
                counters.admitted_reserved += 1;
            }
            Ruling::Prove => counters.asked_to_prove += 1,
            Ruling::Refuse => counters.refused += 1,
            // Why is counted where it is found out.
            Ruling::Ignore => {}
        }
        if let Ruling::Admit(_) = ruling {
            counters.admitted += 1;
        }
        ruling
    }

    fn rule(&mut self, source: Source, is_proven: bool, is_member: impl FnOnce() -> bool, now: Instant) -> Ruling {
        let Limits { places, reserved } = self.limits;
        let is_charged = self.charged.get(&source).is_some_and(|charge| charge.ignored_until > Some(now));
        let is_full = self.open >= places;
        let is_member = (is_charged || is_full) && is_member();
        if is_charged && !is_member {
            self.counters.ignored_failing += 1;
            return Ruling::Ignore;
        }
        let is_doubted = is_charged || self.doubted.get(&source).is_some_and(|until| *until > now);
        match is_proven {
            false if is_full && !is_member => {
                self.counters.ignored += 1;
                Ruling::Ignore
            }
            false if is_full || is_doubted || self.open >= places / 4 => Ruling::Prove,
            true if is_full && is_member && !is_charged && self.reserved < reserved => Ruling::Admit(Place::Reserved),
            true if is_full => Ruling::Refuse,
            _ => Ruling::Admit(Place::Open),
        }
    }

    /// A handshake has ended, however it did.
    pub(crate) fn over(&mut self, place: Place) {
        match place {
            Place::Open => self.open -= 1,
            Place::Reserved => self.reserved -= 1,
        }
    }

    /// A handshake has failed, by what came from there.
    pub(crate) fn failed(&mut self, from: IpAddr, is_proven: bool, now: Instant) {
        let source = Source::from(from);
        self.counters.failed += 1;
        if !is_proven {
            *self.doubted.touch(source, || now) = now + FAILURES_WINDOW;
            return;
        }
        let charge = self.charged.touch(source, Charge::default);
        if charge.ignored_until > Some(now) {
            // It was admitted before.
            return;
        }
        charge.failures.push_back(now);
        while charge.failures.front().is_some_and(|first| *first + FAILURES_WINDOW <= now) {
            charge.failures.pop_front();
        }
        if charge.failures.len() >= FAILURES_MAX {
            charge.failures.clear();
            charge.ignored_until = Some(now + IGNORED_FOR);
            self.counters.sources_ignored += 1;
        }
    }
}

/// What is known of the sources that were touched last, [`SOURCES_MAX`] at most.
#[derive(Debug)]
struct Recent<T> {
    known: BTreeMap<Source, (u64, T)>,
    /// The one that was touched longest ago is first.
    turns: BTreeMap<u64, Source>,
    last: u64,
}

impl<T> Default for Recent<T> {
    fn default() -> Self {
        Self { known: BTreeMap::new(), turns: BTreeMap::new(), last: 0 }
    }
}

impl<T> Recent<T> {
    fn get(&self, source: &Source) -> Option<&T> {
        self.known.get(source).map(|(_, value)| value)
    }

    fn touch(&mut self, source: Source, make: impl FnOnce() -> T) -> &mut T {
        self.last += 1;
        let turn = self.last;
        self.turns.insert(turn, source);
        let before = self.known.get(&source).map(|(turn, _)| *turn);
        match before {
            Some(before) => drop(self.turns.remove(&before)),
            None if self.known.len() >= SOURCES_MAX => {
                if let Some((_, oldest)) = self.turns.pop_first() {
                    self.known.remove(&oldest);
                }
            }
            None => {}
        }
        let (at, value) = self.known.entry(source).or_insert_with(|| (turn, make()));
        *at = turn;
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOM: Limits = Limits { places: 8, reserved: 2 };

    fn v4(last: u8) -> IpAddr {
        [10, 0, 0, last].into()
    }

    fn later(start: Instant, millis: u64) -> Instant {
        start + Duration::from_millis(millis)
    }

    fn admission(open: usize, now: Instant) -> Admission {
        let mut admission = Admission::new(ROOM);
        for _ in 0..open {
            assert_eq!(admission.arrived(v4(1), true, || false, now), Ruling::Admit(Place::Open));
        }
        admission
    }

    /// With so many under way: what becomes of an address without and with a proof, and of a member's.
    #[test]
    fn each_rung_has_two_sides() {
        let now = Instant::now();
        let open = Ruling::Admit(Place::Open);
        for (under_way, unproven, proven, member_unproven, member) in [
            (0, open, open, open, open),
            (1, open, open, open, open),
            (2, Ruling::Prove, open, Ruling::Prove, open),
            (7, Ruling::Prove, open, Ruling::Prove, open),
            (8, Ruling::Ignore, Ruling::Refuse, Ruling::Prove, Ruling::Admit(Place::Reserved)),
        ] {
            let rule = |is_proven, is_member| admission(under_way, now).arrived(v4(9), is_proven, || is_member, now);
            let ruled = [rule(false, false), rule(true, false), rule(false, true), rule(true, true)];
            assert_eq!(ruled, [unproven, proven, member_unproven, member], "{under_way}");
        }
    }

    /// A room of less than four has no quarter: everybody proves itself.
    #[test]
    fn the_smallest_room_has_one_place() {
        let now = Instant::now();
        let mut admission = Admission::new(Limits { places: 1, reserved: 0 });
        assert_eq!(admission.arrived(v4(1), false, || true, now), Ruling::Prove);
        assert_eq!(admission.arrived(v4(1), true, || true, now), Ruling::Admit(Place::Open));
        assert_eq!(admission.arrived(v4(2), true, || true, now), Ruling::Refuse, "nothing is reserved");
        admission.over(Place::Open);
        assert_eq!(admission.arrived(v4(2), true, || true, now), Ruling::Admit(Place::Open));
    }

    /// Reserved places are as many as they are, and come back.
    #[test]
    fn reserved_places_are_counted() {
        let now = Instant::now();
        let mut admission = admission(8, now);
        let arrive = |admission: &mut Admission| admission.arrived(v4(2), true, || true, now);
        assert_eq!(arrive(&mut admission), Ruling::Admit(Place::Reserved));
        assert_eq!(arrive(&mut admission), Ruling::Admit(Place::Reserved));
        assert_eq!(arrive(&mut admission), Ruling::Refuse);
        assert_eq!(admission.under_way(), 10);
        admission.over(Place::Reserved);
        assert_eq!(arrive(&mut admission), Ruling::Admit(Place::Reserved));
        admission.over(Place::Open);
        assert_eq!(arrive(&mut admission), Ruling::Admit(Place::Open), "an open one first");
        let AdmissionCounters { admitted, admitted_reserved, refused, .. } = *admission.counters();
        assert_eq!((admitted, admitted_reserved, refused), (12, 3, 1));
    }

    /// The tenth failure within ten seconds is one too many, and is paid for with ten seconds.
    #[test]
    fn ten_failures_in_ten_seconds_are_too_many() {
        let start = Instant::now();
        let fail = |pause: u64, times: u64| {
            let mut admission = Admission::new(ROOM);
            (0..times).for_each(|n| admission.failed(v4(1), true, later(start, n * pause)));
            (admission, later(start, (times - 1) * pause))
        };
        let (mut nine, now) = fail(0, 9);
        assert_eq!(nine.arrived(v4(1), true, || false, now), Ruling::Admit(Place::Open));
        let (mut slow, now) = fail(1112, 20);
        assert_eq!(slow.arrived(v4(1), true, || false, now), Ruling::Admit(Place::Open), "never ten in ten seconds");
        let (mut ten, now) = fail(1111, 10);
        for is_proven in [true, false] {
            assert_eq!(ten.arrived(v4(1), is_proven, || false, now), Ruling::Ignore);
            assert_eq!(ten.arrived(v4(1), is_proven, || false, later(now, 9_999)), Ruling::Ignore);
        }
        assert_eq!(ten.arrived(v4(2), true, || false, now), Ruling::Admit(Place::Open), "another source");
        assert_eq!(ten.arrived(v4(1), true, || false, later(now, 10_000)), Ruling::Admit(Place::Open), "it is over");
        let AdmissionCounters { failed, ignored_failing, sources_ignored, .. } = *ten.counters();
        assert_eq!((failed, ignored_failing, sources_ignored), (10, 4, 1));
    }

    /// Anybody can send a packet in another's name: it cannot have the other shut out.
    #[test]
    fn failures_in_anothers_name_cost_a_round_trip_only() {
        let now = Instant::now();
        let mut admission = Admission::new(ROOM);
        (0..1000).for_each(|_| admission.failed(v4(1), false, now));
        assert_eq!(admission.arrived(v4(1), false, || false, now), Ruling::Prove);
        assert_eq!(admission.arrived(v4(1), true, || false, now), Ruling::Admit(Place::Open));
        assert_eq!(admission.arrived(v4(2), false, || false, now), Ruling::Admit(Place::Open));
        let soon = later(now, 9_999);
        assert_eq!(admission.arrived(v4(1), false, || false, soon), Ruling::Prove);
        admission.over(Place::Open);
        assert_eq!(admission.arrived(v4(1), false, || false, later(now, 10_000)), Ruling::Admit(Place::Open));
    }

    /// A stranger that fails again and again where members are does not have them ignored; the reserve it spoils.
    #[test]
    fn members_are_not_ignored_for_what_their_neighbours_do() {
        let now = Instant::now();
        let mut admission = Admission::new(ROOM);
        (0..10).for_each(|_| admission.failed(v4(1), true, now));
        assert_eq!(admission.arrived(v4(1), false, || true, now), Ruling::Prove);
        for _ in 0..8 {
            assert_eq!(admission.arrived(v4(1), true, || true, now), Ruling::Admit(Place::Open));
        }
        assert_eq!(admission.arrived(v4(1), true, || true, now), Ruling::Refuse);
        assert_eq!(admission.arrived(v4(2), true, || true, now), Ruling::Admit(Place::Reserved));
    }

    /// An address of IPv4 stands for itself, also in its IPv6 clothes; of IPv6, the first half counts.
    #[test]
    fn sources_are_networks_of_ipv6() {
        let now = Instant::now();
        let of = |text: &str| text.parse::<IpAddr>().unwrap();
        for (one, other, is_same) in [
            ("2001:db8:0:1::1", "2001:db8:0:1:ffff:ffff:ffff:ffff", true),
            ("2001:db8:0:1::1", "2001:db8:0:2::1", false),
            ("10.0.0.1", "::ffff:10.0.0.1", true),
            ("10.0.0.1", "10.0.0.2", false),
        ] {
            let mut admission = Admission::new(ROOM);
            (0..10).for_each(|_| admission.failed(of(one), true, now));
            let is_ignored = admission.arrived(of(other), true, || false, now) == Ruling::Ignore;
            assert_eq!(is_ignored, is_same, "{one} {other}");
        }
    }

    /// Those that failed last are remembered; one more pushes the oldest out.
    #[test]
    fn sources_are_bounded() {
        let now = Instant::now();
        let source = |n: usize| IpAddr::from((0x0b00_0000 + n as u32).to_be_bytes());
        let mut admission = Admission::new(ROOM);
        for n in 0..SOURCES_MAX {
            (0..10).for_each(|_| admission.failed(source(n), true, now));
        }
        // Touched again, so it is not the oldest.
        admission.failed(source(0), true, now);
        let ignored =
            |admission: &mut Admission, n| admission.arrived(source(n), false, || false, now) == Ruling::Ignore;
        assert!([0, 1, SOURCES_MAX - 1].into_iter().all(|n| ignored(&mut admission, n)));
        admission.failed(source(SOURCES_MAX), true, now);
        assert_eq!(admission.charged.known.len(), SOURCES_MAX);
        assert_eq!(admission.charged.turns.len(), SOURCES_MAX);
        assert!(ignored(&mut admission, 0) && !ignored(&mut admission, 1) && ignored(&mut admission, 2));
    }
}
