//! The simulator itself: it repeats, its network and links do what they say, and its rules bite.

use std::time::{Duration, Instant};

use super::toy::{Bug, SUSPICION, Toy};
use super::{Breach, Chances, Chaos, FIRST_LIFE, Fault, LIFE_STEP, LinkTimes, Network, Rules, Settings, Sim, State};

pub(super) fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

/// Virtual time begins somewhere.
pub(super) fn epoch() -> Instant {
    Instant::now()
}

fn settings() -> Settings {
    // A toy looks at its suspicions at each tick.
    let rules = Rules { suspicion_max: SUSPICION + secs(1), score_max: 8 };
    Settings { rules: Some(rules), ..Settings::default() }
}

fn toys(seed: u64, nodes: u32) -> Sim<Toy> {
    let mut sim = Sim::new(seed, Bug::None, settings(), epoch());
    sim.start(nodes);
    sim
}

/// Nodes that know nobody.
fn alone(nodes: u32, settings: Settings) -> Sim<Toy> {
    let mut sim = Sim::new(1, Bug::None, settings, epoch());
    sim.start_alone(nodes);
    sim
}

/// Faults of every kind, for so many steps.
fn chaos(sim: &mut Sim<Toy>, seed: u64, nodes: u32, steps: usize) -> Chaos {
    let mut chaos = Chaos::new(seed, Chances::default());
    *sim.network() = chaos.network();
    for _ in 0..steps {
        chaos.step(sim, nodes);
        sim.run_for(Duration::from_millis(100));
    }
    chaos
}

/// The same seed gives the same run to the last packet; another seed gives another.
#[test]
fn a_seed_replays() {
    let run = |seed| {
        let mut sim = toys(seed, 5);
        chaos(&mut sim, seed, 5, 300);
        sim.trace()
    };
    assert_eq!(run(7), run(7));
    assert_ne!(run(7), run(8));
}

/// Whoever knows nobody dials its contact, and all see all.
#[test]
fn nodes_join_through_a_contact() {
    let mut sim = alone(6, settings());
    assert!(!sim.is_converged());
    (1..6).for_each(|node| sim.join(node, 0));
    sim.converge_within(secs(10)).unwrap();
    assert_eq!((0..6).map(|node| sim.view(node)).collect::<Vec<_>>(), [6; 6]);
}

/// A contact that does not answer is dialled again until it does.
#[test]
fn a_contact_is_dialled_again() {
    let mut sim = alone(2, settings());
    sim.cut(1, 0);
    sim.join(1, 0);
    sim.run_for(secs(20));
    assert!(sim.report().faults.count(Fault::DialFailed) >= 2);
    sim.heal();
    sim.converge_within(secs(10)).unwrap();
}

/// A link is up one and a half round trips after the dial, and a little for the work.
#[test]
fn a_handshake_takes_its_flights() {
    let latency = Duration::from_millis(10);
    let network = Network { latency: (latency, latency), jitter: Duration::ZERO, ..Network::default() };
    let mut sim = alone(2, Settings { network, ..settings() });
    sim.join(1, 0);
    // Two flights and the work of both sides bring it up at the dialler, the third at the responder.
    sim.run_for(Duration::from_micros(20_999));
    assert_eq!((sim.view(1), sim.view(0)), (1, 1));
    sim.run_for(Duration::from_micros(1));
    assert_eq!((sim.view(1), sim.view(0)), (2, 1));
    sim.run_for(Duration::from_micros(9_999));
    assert_eq!((sim.view(1), sim.view(0)), (2, 1));
    sim.run_for(Duration::from_micros(2));
    assert_eq!((sim.view(1), sim.view(0)), (2, 2));
}

/// A crash is found and told, and only that.
#[test]
fn a_crash_is_reported() {
    let mut sim = toys(3, 6);
    sim.run_for(secs(5));
    sim.crash(2);
    sim.run_for(secs(30));
    assert!(sim.all_see(2, State::Dead) && sim.is_converged());
    let report = sim.report();
    let [crash] = &report.crashes[..] else { panic!("one crash") };
    let (first, all) = (crash.first.unwrap(), crash.all.unwrap());
    assert!(SUSPICION < first && first <= all && all < secs(20), "{first:?} {all:?}");
    assert_eq!((report.false_positives, report.flaps), (0, 0));
    assert!(report.diverged > Duration::ZERO && report.diverged < secs(20));
}

/// A crash gives no notice: whoever has a link learns of it ten seconds after it sent something.
#[test]
fn a_link_to_a_crashed_node_is_lost() {
    let mut sim = toys(3, 2);
    sim.run_for(secs(5));
    sim.crash(1);
    sim.run_for(secs(9));
    assert_eq!(sim.report().faults.count(Fault::LinkLost), 0);
    sim.run_for(secs(5));
    assert_eq!(sim.report().faults.count(Fault::LinkLost), 1);
}

/// A new process says that it knows nothing of the old one's link, and its life replaces the old one.
#[test]
fn a_restart_is_another_life() {
    let mut sim = toys(3, 3);
    sim.run_for(secs(5));
    sim.crash(1);
    sim.restart(1, 0);
    sim.converge_within(secs(10)).unwrap();
    assert_eq!(sim.sees(0, 1), Some((FIRST_LIFE + LIFE_STEP, State::Alive)));
    sim.crash(1);
    sim.restart_stepped_back(1, 0);
    sim.converge_within(secs(10)).unwrap();
    // One below what the others know was refused, one above it was taken.
    assert_eq!(sim.sees(0, 1), Some((FIRST_LIFE + LIFE_STEP + 1, State::Alive)));
    assert_eq!(sim.report().faults.count(Fault::Renewed), 1);
}

/// Whoever leaves is seen to have left, by all that it had a link with at once.
#[test]
fn a_leave_is_no_crash() {
    let mut sim = toys(3, 4);
    sim.run_for(secs(10));
    sim.leave(3);
    sim.converge_within(secs(5)).unwrap();
    assert!(sim.all_see(3, State::Left));
    assert_eq!(sim.report().false_positives, 0);
}

/// A frozen node does nothing, and all that waited comes at once when it goes on; its silence was no crash.
#[test]
fn a_freeze_holds_up_and_releases() {
    let mut sim = toys(5, 5);
    sim.run_for(secs(5));
    let before = sim.report().bytes_out[4];
    sim.freeze(4, secs(12));
    sim.run_for(secs(11));
    assert_eq!(sim.report().bytes_out[4], before);
    assert!(sim.all_see(4, State::Dead));
    let report = sim.report();
    assert_eq!((report.false_positives, report.false_positives_healthy), (4, 0));
    assert!(report.faults.count(Fault::HeldUp) > 0);
    sim.converge_within(secs(30)).unwrap();
    assert!(sim.report().flaps >= 4 && sim.report().faults.count(Fault::LateTimer) > 0);
}

/// What waits for a frozen node is bounded for each link: the oldest give way.
#[test]
fn a_backlog_is_bounded() {
    let links = LinkTimes { lost_after: secs(10_000), ..LinkTimes::default() };
    let mut sim = alone(2, Settings { links, rules: None, ..settings() });
    sim.join(1, 0);
    sim.run_for(secs(5));
    sim.freeze(1, secs(3_000));
    sim.run_for(secs(600));
    assert_eq!(sim.report().faults.count(Fault::Overflowed), 0);
    sim.run_for(secs(2_300));
    assert!(sim.report().faults.count(Fault::Overflowed) > 0);
    sim.run_for(secs(110));
    sim.converge_within(secs(30)).unwrap();
}

/// A node that takes long for each packet works on what it got, one after the other.
#[test]
fn a_slow_node_is_late() {
    let mut sim = toys(5, 8);
    sim.slow(0, Duration::from_millis(400));
    sim.run_for(secs(60));
    assert!(sim.report().faults.count(Fault::Slowed) > 20);
    sim.slow(0, Duration::ZERO);
    sim.converge_within(secs(30)).unwrap();
}

/// One way is cut and the other is not; a partition cuts both, and ends.
#[test]
fn cuts_and_partitions() {
    let mut sim = toys(9, 4);
    sim.cut(0, 1);
    sim.run_for(secs(20));
    let report = sim.report();
    assert!(report.faults.count(Fault::Cut) > 0 && report.faults.count(Fault::Split) == 0);
    sim.heal();
    sim.converge_within(secs(30)).unwrap();
    sim.partition(&[0, 1]);
    sim.run_for(secs(60));
    assert_eq!((sim.view(0), sim.view(2), sim.distinct_views()), (2, 2, 2));
    assert!(sim.report().faults.count(Fault::Split) > 0);
    sim.heal();
    sim.converge_within(secs(120)).unwrap();
}

/// A clock that runs fast makes its node busier, and nothing else.
#[test]
fn clocks_drift() {
    let mut sim = toys(9, 2);
    sim.drift(0, 1.5);
    sim.run_for(secs(60));
    let report = sim.report();
    let pings = |node: usize| report.bytes_out[node] as f64;
    assert!(sim.is_converged() && report.faults.count(Fault::Drifting) == 1);
    // Each of its pings is answered, so both say more; what it says beyond that are its own.
    assert!(pings(0) + pings(1) > 2.3 * 60.0 * 2.0 * 27.0, "{report:?}");
}

/// A link that nobody uses is closed by both sides, and not lost.
#[test]
fn idle_links_are_closed() {
    let links = LinkTimes { idle: secs(5), ..LinkTimes::default() };
    let mut sim: Sim<Toy> = Sim::new(4, Bug::None, Settings { links, ..settings() }, epoch());
    sim.start(20);
    sim.run_for(secs(60));
    let report = sim.report();
    assert!(report.faults.count(Fault::LinkIdled) > 20, "{report:?}");
    assert_eq!(report.faults.count(Fault::LinkLost), 0);
    assert_eq!(report.false_positives, 0);
}

/// Application traffic is heard before a silence is judged.
#[test]
fn flows_are_heard() {
    let mut sim = toys(4, 2);
    sim.flow(0, 1, Duration::from_millis(100));
    sim.network().datagram_loss = 1.0;
    sim.run_for(secs(30));
    assert!(sim.report().faults.count(Fault::Heard) > 10);
}

/// Streams arrive through loss, and in order; datagrams do not all arrive.
#[test]
fn streams_are_sent_again() {
    let mut sim = alone(2, settings());
    sim.network().loss = 0.4;
    sim.join(1, 0);
    sim.converge_within(secs(30)).unwrap();
    sim.run_for(secs(20));
    let faults = sim.report().faults;
    assert!(faults.count(Fault::Lost) > 10 && faults.count(Fault::Resent) > 0, "{faults:?}");
}

/// Under every fault that there is the rules hold, each fault happened, and in the end all agree.
#[test]
fn a_sound_machine_breaks_no_rule() {
    let mut all = super::Faults::default();
    for seed in 0..12 {
        let mut sim = toys(seed, 6);
        let mut chaos = chaos(&mut sim, seed, 6, 600);
        chaos.calm(&mut sim, 6);
        sim.converge_within(secs(180)).unwrap();
        (0..6).for_each(|node| sim.check_table(node));
        all.add(&sim.report().faults);
    }
    let kinds = [
        Fault::Lost,
        Fault::Cut,
        Fault::Split,
        Fault::Duplicated,
        Fault::Reordered,
        Fault::Frozen,
        Fault::HeldUp,
        Fault::Slowed,
        Fault::LateTimer,
        Fault::Crashed,
        Fault::Restarted,
        Fault::Renewed,
        Fault::Left,
        Fault::DialFailed,
        Fault::LinkLost,
        Fault::Reset,
        Fault::Resent,
    ];
    for kind in kinds {
        assert!(all.count(kind) > 0, "{kind:?} never happened: {all:?}");
    }
}

/// Each fault of a machine is found by the rule that is there for it.
#[test]
fn the_rules_bite() {
    let bites = |bug, breach| {
        let found = (0..20).any(|seed| {
            let mut sim: Sim<Toy> = Sim::new(seed, bug, Settings { is_strict: false, ..settings() }, epoch());
            sim.start(5);
            let mut chaos = chaos(&mut sim, seed, 5, 400);
            chaos.calm(&mut sim, 5);
            sim.converge_within(secs(180));
            (0..5).for_each(|node| sim.check_table(node));
            sim.violations().iter().any(|violation| violation.breach == breach)
        });
        assert!(found, "{bug:?} went unnoticed");
    };
    bites(Bug::TellsTwice, Breach::Repeated);
    bites(Bug::DropsRefutation, Breach::RefutationFell);
    bites(Bug::Resurrects, Breach::Resurrected);
    bites(Bug::SuspectsForEver, Breach::SuspicionTooLong);
    bites(Bug::KeepsQuiet, Breach::TableDiffers);
    bites(Bug::BelievesItsDeath, Breach::OwnDeath);
    bites(Bug::ScoreRunsAway, Breach::ScoreTooHigh);
    bites(Bug::NeverForgives, Breach::NotConverged);
}
