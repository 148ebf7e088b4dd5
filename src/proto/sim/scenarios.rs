//! How clusters of the real membership behave: one story each.

use std::time::Duration;

use bytes::Bytes;

use super::tests::{epoch, secs};
use super::{FIRST_LIFE, Fault, Id, LIFE_STEP, Machine, Network, Ours, Rules, Settings, Setup, Sim, State, Tuning};
use crate::id::{NodeId, NodeName};
use crate::wire::membership::{Introduction, Life, ShortId, Swim, encode_all};

pub(super) fn rules(tuning: Tuning, nodes: u32) -> Rules {
    // Whoever was heard within an interval, which grows with the score, is not held for dead yet; and clocks differ.
    let patience = secs(1) * (tuning.score_max() + 1);
    Rules { suspicion_max: tuning.suspicion_max(nodes).mul_f64(1.1) + patience, score_max: tuning.score_max() }
}

fn settings(tuning: Tuning, nodes: u32) -> Settings {
    Settings { rules: Some(rules(tuning, nodes)), ..Settings::default() }
}

fn empty(seed: u64, nodes: u32, tuning: Tuning) -> Sim<Ours> {
    Sim::new(seed, Setup::new(tuning, nodes), settings(tuning, nodes), epoch())
}

/// Nodes that know each other, and have run for a short while.
fn cluster_with(seed: u64, nodes: u32, tuning: Tuning) -> Sim<Ours> {
    let mut sim = empty(seed, nodes, tuning);
    sim.start(nodes);
    sim.run_for(secs(5));
    sim
}

fn cluster(seed: u64, nodes: u32) -> Sim<Ours> {
    cluster_with(seed, nodes, Tuning::default())
}

/// The shortest that a suspicion among so many lasts.
fn suspicion_min(nodes: u32) -> Duration {
    secs(4).mul_f64(f64::from(nodes).log10().max(1.0))
}

/// When nothing happens, nothing is said about it, and it costs little.
#[test]
fn a_quiet_cluster() {
    let mut sim = cluster(1, 20);
    sim.run_for(secs(120));
    let report = sim.report();
    assert_eq!((report.suspicions, report.false_positives, report.faults.count(Fault::Unlinked)), (0, 0, 0));
    // A ping and its answer per second and member.
    let per_second = report.messages_all() as f64 / 125.0 / 20.0;
    assert!((1.8..2.3).contains(&per_second), "{per_second}");
}

/// All hold a crashed node for dead, after the time that the parameters say, and nobody else.
#[test]
fn one_crash() {
    for (nodes, seeds) in [(3, 8), (10, 8), (100, 3)] {
        for seed in 0..seeds {
            let mut sim = cluster(seed, nodes);
            sim.crash(1);
            sim.run_until(|sim| sim.all_see(1, State::Dead), secs(60)).unwrap();
            let report = sim.report();
            let (first, all) = (report.crashes[0].first.unwrap(), report.crashes[0].all.unwrap());
            // A probe must fail, which takes an interval, and somebody must think of it.
            let min = suspicion_min(nodes);
            assert!(first > min && first < min + secs(9), "{nodes} nodes: the first after {first:?}");
            assert!(all - first < secs(3), "{nodes} nodes: {first:?}, but all after {all:?}");
            assert_eq!(report.false_positives, 0);
            assert!(sim.is_converged());
        }
    }
}

/// A death among few is suspected within ten seconds, and helpers that had no answer say so: nobody doubts its own health.
#[test]
fn helpers_say_that_they_have_no_answer() {
    let mut sim = cluster(2, 5);
    sim.crash(3);
    let suspected = sim.run_until(|sim| sim.all_see(3, State::Suspect), secs(10));
    assert!(suspected.is_some());
    let mut scores = 0;
    for _ in 0..20 {
        sim.run_for(secs(1));
        scores += sim.running().filter_map(|node| sim.machine(node)).map(Machine::score).sum::<u32>();
    }
    assert!(scores <= 2, "{scores}");
}

/// Whoever is alone in accusing waits as long as a suspicion may last.
#[test]
fn a_lone_accuser_waits() {
    let mut sim = cluster(4, 8);
    sim.partition(&[0]);
    // Each of its suspicions begins at least a probe after the cut.
    sim.run_for(secs(24));
    assert!((1..8).all(|node| sim.state(0, node) != Some(State::Dead)));
    assert!(sim.state(0, 1).is_some());
    assert!(
        (1..8).all(|node| sim.state(node, 0) == Some(State::Dead)),
        "the others agree among themselves long before"
    );
    sim.run_for(secs(90));
    assert_eq!(sim.view(0), 1);
    sim.heal();
    sim.converge_within(secs(60)).unwrap();
}

/// One way between two of three is cut: the third vouches for both.
#[test]
fn one_way_is_cut() {
    for seed in 0..6 {
        let mut sim = cluster(seed, 3);
        sim.cut(0, 1);
        sim.run_for(secs(180));
        assert!(sim.report().faults.count(Fault::Cut) > 50);
        assert_eq!(sim.report().false_positives, 0);
        sim.heal();
        sim.run_for(secs(30));
        assert!((0..3).all(|node| sim.all_see(node, State::Alive)));
    }
}

/// A partition that is shorter than the shortest suspicion kills nobody.
#[test]
fn a_short_partition() {
    for seed in 0..5 {
        let mut sim = cluster(seed, 10);
        sim.partition(&[0, 1, 2]);
        sim.run_for(secs(3));
        sim.heal();
        sim.run_for(secs(60));
        assert_eq!(sim.report().false_positives, 0);
        assert!(sim.report().faults.count(Fault::Split) > 0 && sim.is_converged());
    }
}

/// Each side of a partition that lasts drops the other; when it heals both are one again, in the same lives.
#[test]
fn a_long_partition() {
    for (seed, cut) in [(1, 3), (2, 5), (3, 1)] {
        let mut sim = cluster(seed, 10);
        let side: Vec<u32> = (0..cut).collect();
        sim.partition(&side);
        let dropped = |sim: &Sim<Ours>| sim.view(0) == cut as usize && sim.view(9) == 10 - cut as usize;
        sim.run_until(dropped, secs(120)).unwrap();
        sim.run_for(secs(60));
        assert_eq!(sim.distinct_views(), 2);
        sim.heal();
        let took = sim.converge_within(secs(60)).unwrap();
        assert!((0..10).all(|node| sim.sees(0, node) == Some((FIRST_LIFE, State::Alive))), "after {took:?}");
    }
}

/// A partition that outlasts all memory ends when somebody dials a contact that it has lost from sight.
#[test]
fn a_forgotten_side() {
    let mut tuning = Tuning::default();
    tuning.params.dead_kept = secs(60);
    let settings = Settings { contact_again: Some(secs(30)), ..settings(tuning, 6) };
    let mut sim: Sim<Ours> = Sim::new(3, Setup::new(tuning, 6), settings, epoch());
    sim.start_alone(6);
    (1..6).for_each(|node| sim.join(node, 0));
    sim.join(0, 5);
    sim.converge_within(secs(10)).unwrap();
    sim.set_metadata(5, Bytes::from_static(b"old"));
    sim.run_for(secs(5));
    sim.partition(&[4, 5]);
    sim.run_until(|sim| sim.sees(0, 5).is_none() && sim.sees(5, 0).is_none(), secs(300)).unwrap();
    sim.set_metadata(5, Bytes::from_static(b"new"));
    sim.heal();
    sim.converge_within(secs(60)).unwrap();
    let metadata = |observer: u32| {
        let name = NodeName::parse("5@simulated").unwrap();
        sim.machine(observer).unwrap().membership.member(&name).unwrap().metadata
    };
    assert!((0..6).all(|observer| metadata(observer) == "new"));
}

/// A new life replaces the old one as soon as it shows itself, and no rumour about the old one harms it.
#[test]
fn a_restart() {
    let mut sim = cluster(5, 10);
    // Others suspect the old life, or do not yet.
    for pause in [0, 2, 5, 20] {
        sim.crash(4);
        sim.run_for(secs(pause));
        sim.restart(4, 0);
        sim.run_for(Duration::from_millis(10));
        assert_eq!(sim.sees(0, 4), Some((sim.id(4).life, State::Alive)));
        sim.converge_within(secs(2)).unwrap();
        sim.run_for(secs(60));
        assert!(sim.is_converged() && sim.report().false_positives == 0);
    }
    assert_eq!(sim.id(4).life, FIRST_LIFE + 4 * LIFE_STEP);
    sim.crash(4);
    sim.restart_stepped_back(4, 0);
    sim.converge_within(secs(5)).unwrap();
    assert_eq!(sim.sees(0, 4), Some((FIRST_LIFE + 4 * LIFE_STEP + 1, State::Alive)));
}

/// A good-bye is known everywhere as soon as any rumour is, and is no death; who left may come again.
#[test]
fn a_leave() {
    for seed in 0..5 {
        let mut sim = cluster(seed, 30);
        sim.leave(7);
        sim.converge_within(secs(2)).unwrap();
        sim.run_for(secs(60));
        assert!(sim.all_see(7, State::Left));
        let report = sim.report();
        assert_eq!((report.false_positives, report.suspicions, report.crashes.len()), (0, 0, 0));
        sim.restart(7, 0);
        sim.converge_within(secs(5)).unwrap();
    }
}

/// Who never met anybody leaves without trouble.
#[test]
fn a_leave_alone() {
    let mut sim = empty(1, 2, Tuning::default());
    sim.start_alone(2);
    sim.leave(1);
    sim.run_for(secs(10));
    assert!(!sim.is_running(1) && sim.view(0) == 1);
}

/// All join at once through one contact.
#[test]
fn all_join_at_once() {
    let nodes = 100;
    let mut sim = empty(1, nodes, Tuning::default());
    sim.start_alone(nodes);
    (1..nodes).for_each(|node| sim.join(node, 0));
    sim.converge_within(secs(5)).unwrap();
    assert_eq!(sim.report().suspicions, 0);
}

/// A quarter, and a third, of all crash together: exactly these are removed.
#[test]
fn many_crash_together() {
    for (seed, share) in [(1, 4), (2, 3)] {
        let mut sim = cluster(seed, 60);
        (0..60 / share).for_each(|node| sim.crash(node));
        sim.converge_within(secs(90)).unwrap();
        assert_eq!(sim.report().false_positives, 0);
        assert_eq!(sim.report().full_detections().len(), (60 / share) as usize);
    }
}

/// A node that hears nothing for 20 s in every 40 s is put away after a few times and stays away for longer each time, and
/// takes nobody with it.
#[test]
fn a_node_that_flips() {
    let mut sim = cluster(6, 50);
    let cycle = |sim: &mut Sim<Ours>| {
        sim.loss_in(3, 1.0);
        sim.run_for(secs(20));
        sim.loss_in(3, 0.0);
        sim.run_for(secs(20));
    };
    (0..3).for_each(|_| cycle(&mut sim));
    for _ in 0..3 {
        cycle(&mut sim);
        assert!(sim.all_see(3, State::Dead));
    }
    assert!(sim.report().flaps < 6 * 49 && sim.report().flaps > 49);
    assert_eq!(sim.report().false_positives_among_healthy, 0);
    // It is not put away for ever.
    sim.run_until(|sim| sim.is_converged(), secs(120)).unwrap();
}

/// A node that loses most of what it gets, or sends, takes nobody with it.
#[test]
fn a_node_that_loses_most() {
    for (seed, is_ingress) in [(1, true), (2, false)] {
        let mut sim = cluster(seed, 50);
        if is_ingress {
            sim.loss_in(3, 0.8);
        } else {
            sim.loss_out(3, 0.8);
        }
        sim.run_for(secs(400));
        let report = sim.report();
        assert!(report.flaps <= 5 * 49, "it comes and goes: {}", report.flaps);
        assert_eq!(report.false_positives_among_healthy, 0);
    }
}

/// Loss everywhere: suspicions are as rare as the odds say, and nobody dies of it.
#[test]
fn loss_everywhere() {
    for loss in [0.01, 0.05, 0.10, 0.25, 0.50] {
        let mut sim = cluster(9, 20);
        sim.network().loss = loss;
        sim.run_for(secs(60));
        let report = sim.report();
        let passes: f64 = 1.0 - loss;
        // Neither the direct way nor any of three others, each there and back.
        let odds = (1.0 - passes.powi(2)) * (1.0 - passes.powi(4)).powi(3);
        let probes = sim.running().filter_map(|node| sim.machine(node));
        let (probes, failures) = probes
            .map(|machine| machine.membership.counters())
            .fold((0, 0), |sum, counters| (sum.0 + counters.probes, sum.1 + counters.failures));
        let rate = failures as f64 / probes as f64;
        assert!(rate <= odds + 3.0 * (odds / probes as f64).sqrt(), "{rate} {odds}");
        assert_eq!(report.false_positives, 0, "at a loss of {loss}");
        assert!(report.faults.count(Fault::Lost) > 0);
    }
}

/// Nodes whose network stands still take others for dead; with Lifeguard they doubt themselves first.
#[test]
fn nodes_that_are_blocked() {
    let run = |tuning: Tuning| {
        let mut sim = cluster_with(8, 64, tuning);
        for _ in 0..3 {
            (0..8).for_each(|node| sim.block(node, secs(12)));
            sim.run_for(secs(30));
        }
        sim.report()
    };
    let swim = run(Tuning::paper().undamped().lifeguard(false, false, false)).false_positives_healthy;
    let ours = run(Tuning::paper().undamped()).false_positives_healthy;
    assert!(swim > 100 && ours * 50 <= swim, "{ours} of {swim}");
}

/// Nodes that stand still, but not for as long as a suspicion takes, hardly ever die of it, and nobody else does.
#[test]
fn nodes_that_stand_still() {
    let mut sim = cluster(8, 64);
    for _ in 0..10 {
        (0..8).for_each(|node| sim.freeze(node, secs(6)));
        sim.run_for(secs(9));
    }
    let report = sim.report();
    assert!(report.suspicions > 1_000 && report.faults.count(Fault::LateTimer) > 0);
    assert_eq!((report.false_positives, report.false_positives_healthy), (0, 0));
}

/// Nodes that are slow do not make others look dead.
#[test]
fn slow_nodes() {
    let mut sim = cluster(8, 100);
    (0..8).for_each(|node| sim.slow(node, Duration::from_millis(150)));
    sim.run_for(secs(120));
    let report = sim.report();
    println!(
        "false {} healthy {} suspicions {}",
        report.false_positives, report.false_positives_healthy, report.suspicions
    );
    assert!(report.faults.count(Fault::Slowed) > 1_000);
    assert_eq!(report.false_positives_healthy, 0);
}

/// Joining, crashing and leaving go on all the time, and the table holds no more than there are names.
#[test]
fn churn() {
    let mut sim = empty(5, 60, Tuning::default());
    sim.start(40);
    for round in 0..20u32 {
        let (one, other) = (1 + round, 21 + round % 19);
        let new = sim.start_alone(1);
        sim.join(new, 0);
        if sim.is_running(one) {
            sim.crash(one);
        }
        if sim.is_running(other) && round % 2 == 0 {
            sim.leave(other);
        }
        sim.run_for(secs(2));
        if round % 3 == 0 {
            sim.restart(one, 0);
        }
    }
    sim.converge_within(secs(90)).unwrap();
    assert_eq!(sim.report().false_positives, 0);
    let mut known = 0;
    sim.machine(0).unwrap().each_member(&mut |_| known += 1);
    assert!(known <= 60, "{known}");
}

/// All but one restart again and again: nothing of their old lives stays.
#[test]
fn all_restart_again_and_again() {
    let mut sim = cluster(5, 8);
    for _ in 0..50 {
        (1..8).for_each(|node| sim.crash(node));
        (1..8).for_each(|node| sim.restart(node, 0));
        sim.run_for(secs(3));
    }
    sim.converge_within(secs(10)).unwrap();
    let mut known = 0;
    sim.machine(0).unwrap().each_member(&mut |_| known += 1);
    assert_eq!(known, 8);
}

/// Whoever is left alone finds its peer again when that answers, without being told to.
#[test]
fn two_lose_each_other() {
    let mut sim = cluster(5, 2);
    sim.partition(&[1]);
    sim.run_until(|sim| sim.view(0) == 1 && sim.view(1) == 1, secs(60)).unwrap();
    sim.run_for(secs(120));
    sim.heal();
    sim.converge_within(secs(30)).unwrap();
    // And when its peer comes back as another life.
    sim.crash(1);
    sim.run_until(|sim| sim.view(0) == 1, secs(60)).unwrap();
    sim.restart(1, 0);
    sim.converge_within(secs(30)).unwrap();
}

fn id(node: u32, life: u32) -> NodeId {
    NodeId::new(NodeName::parse(&format!("{node}@simulated")).unwrap(), life.into())
}

fn short(node: u32) -> ShortId {
    ShortId::of(&id(node, FIRST_LIFE))
}

/// Lies, and truths that are old, change nothing that a single objection does not put right.
#[test]
fn lies_and_old_truths() {
    let mut sim = cluster(5, 6);
    let all_alive = |sim: &Sim<Ours>| (0..6).all(|node| sim.all_see(node, State::Alive));
    let tell = |sim: &mut Sim<Ours>, from: Id, frame: Swim| {
        sim.forge(from, 0, encode_all([&frame]));
        sim.run_for(secs(10));
    };
    let peer = Id { node: 1, life: FIRST_LIFE };
    let accuser = short(1);
    // Of somebody that nobody knows.
    tell(&mut sim, peer, Swim::Dead { subject: short(99), refutation: 3, accuser });
    assert!(all_alive(&sim) && sim.view(0) == 6 && sim.report().false_positives == 0);
    // From somebody that nobody knows.
    let stranger = Id { node: 2, life: FIRST_LIFE + 7 };
    tell(&mut sim, stranger, Swim::Dead { subject: short(3), refutation: 3, accuser });
    assert!(all_alive(&sim) && sim.report().false_positives == 0);
    // Of the own death, a little and very far in the future.
    tell(&mut sim, peer, Swim::Dead { subject: short(0), refutation: 5, accuser });
    assert!(all_alive(&sim));
    tell(&mut sim, peer, Swim::Dead { subject: short(0), refutation: u32::MAX - 1, accuser });
    assert!(all_alive(&sim));
    let refutations = sim.machine(0).unwrap().membership.counters().refutations;
    assert!(refutations <= 2, "{refutations}");
    // That a member has left, when it has not: it objects or is not believed.
    tell(&mut sim, peer, Swim::Left { subject: short(4), refutation: 0 });
    assert!(all_alive(&sim), "{:?}", sim.sees(0, 4));
    // A life that is over.
    sim.crash(5);
    sim.restart(5, 0);
    sim.converge_within(secs(10)).unwrap();
    let replayed = Introduction {
        id: id(5, FIRST_LIFE),
        life: Life::Alive,
        refutation: 9,
        profile: 3,
        flags: crate::wire::NodeFlags::default(),
        addresses: Vec::new(),
        metadata: Bytes::new(),
    };
    tell(&mut sim, peer, Swim::Introduce(replayed));
    assert_eq!(sim.sees(0, 5), Some((FIRST_LIFE + LIFE_STEP, State::Alive)));
    assert!(sim.is_converged());
}

/// An old rumour that a dead member lives does not bring it back.
#[test]
fn old_rumours_of_the_dead() {
    let mut sim = cluster(5, 6);
    sim.crash(5);
    sim.converge_within(secs(30)).unwrap();
    let peer = Id { node: 1, life: FIRST_LIFE };
    sim.forge(peer, 0, encode_all([&Swim::Alive { subject: short(5), refutation: 0, profile: 0 }]));
    sim.forge(peer, 0, encode_all([&Swim::Suspect { subject: short(5), refutation: 0, accuser: short(1) }]));
    assert_eq!(sim.state(0, 5), Some(State::Dead));
    sim.run_for(secs(120));
    assert!(sim.is_converged() && sim.report().flaps == 0);
}

/// A comparison that is cut off leaves nothing half true, and the next one completes it.
#[test]
fn a_cut_in_a_comparison() {
    for millis in [2, 3, 4, 5, 6, 8] {
        let mut sim = empty(millis, 101, Tuning::default());
        sim.start(100);
        sim.run_for(secs(3));
        let new = sim.start_alone(1);
        sim.join(new, 0);
        sim.run_for(Duration::from_millis(millis));
        sim.partition(&[new]);
        sim.run_for(secs(3));
        sim.check_table(new);
        sim.heal();
        sim.converge_within(secs(90)).unwrap();
    }
}

/// Probes are lost where the application is heard: that is no silence.
#[test]
fn the_application_is_heard() {
    let mut sim = cluster(5, 3);
    sim.network().datagram_loss = 0.9;
    for (from, to) in [(0, 1), (1, 0), (0, 2), (2, 0), (1, 2), (2, 1)] {
        sim.flow(from, to, Duration::from_millis(100));
    }
    sim.run_for(secs(120));
    let report = sim.report();
    assert_eq!((report.false_positives, report.suspicions), (0, 0));
}

/// A fact reaches everybody once.
#[test]
fn facts_spread() {
    let mut sim = cluster(5, 60);
    (0..5).for_each(|node| sim.publish(node));
    sim.run_for(secs(5));
    for spread in sim.report().facts {
        assert_eq!(spread.arrivals.len(), 59);
        assert!(spread.until(0.5) < Some(Duration::from_millis(500)) && spread.until(1.0) < Some(secs(2)));
    }
}

/// A bad network: latencies of a continent, jitter, duplicates, and packets that overtake each other.
#[test]
fn a_bad_network() {
    let mut sim = cluster(5, 30);
    *sim.network() = Network {
        latency: (Duration::from_millis(10), Duration::from_millis(120)),
        jitter: Duration::from_millis(80),
        loss: 0.03,
        duplicate: 0.05,
        reorder: 0.05,
        ..Network::default()
    };
    sim.run_for(secs(120));
    assert_eq!(sim.report().false_positives, 0);
    sim.crash(3);
    sim.converge_within(secs(60)).unwrap();
}
