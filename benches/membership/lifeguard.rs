//! The grid of the Lifeguard paper (Dadgar, Phillips, Currey, 2017), a part of it: of 128 members C are blocked for D, all at
//! once. Blocked means that nothing which they send or should receive passes until the end, when all of it does; their timers
//! go on. Once each ("threshold"), or again and again with I between ("interval").
//!
//! A false positive is a death that a member declares of one which was never touched; "at healthy" are those that were declared
//! by members which were not touched either. Of the blocked, those that stay so for longer than a suspicion lasts must be taken
//! for dead: they are counted apart.

use std::time::Duration;

use distribute::pieces::membership::{Machine, Sim, Tuning, percentile};

use crate::{Options, ours, secs, shown, theirs, warm};

const NODES: u32 = 128;
const BLOCKED: [u32; 3] = [4, 16, 32];
const FOR: [Duration; 3] = [Duration::from_secs(2), Duration::from_secs(8), Duration::from_secs(32)];
/// What is between two blocks; none, when there is one only.
const BETWEEN: [Option<Duration>; 3] = [None, Some(Duration::from_millis(256)), Some(Duration::from_secs(4))];
const LENGTH: Duration = Duration::from_secs(120);

/// What was counted, over all cells of the grid.
#[derive(Default)]
struct Row {
    about_healthy: u64,
    among_healthy: u64,
    about_blocked: u64,
    messages: u64,
    bytes: u64,
    handshakes: u64,
    links_max: usize,
    first: Vec<Duration>,
    all: Vec<Duration>,
}

pub(crate) fn run(options: &Options) {
    let seeds = options.seeds(1, 3);
    let paper = Tuning::paper().undamped();
    let variants = [
        ("SWIM", Some(paper.lifeguard(false, false, false))),
        ("+ probe", Some(paper.lifeguard(true, false, false))),
        ("+ suspicion", Some(paper.lifeguard(false, true, false))),
        ("+ buddy", Some(paper.lifeguard(false, false, true))),
        ("Lifeguard", Some(paper)),
        ("our defaults", Some(Tuning::default())),
        ("foca 2.0", None),
    ];
    println!("\nlifeguard: {NODES} members, C of {BLOCKED:?}, D of {FOR:?}, I of {BETWEEN:?}, {seeds} seeds each");
    println!("the first five with the paper's alpha 5, beta 6, K 3, S 8 and undamped; the defaults have alpha 4, K 2");
    println!(
        "{:<13} {:>9} {:>6} {:>10} {:>6} {:>9} | {:>8} {:>5} {:>8} {:>5} {:>10} {:>5} | {:>5} {:>5} {:>5} {:>5}",
        "",
        "FP",
        "%",
        "at healthy",
        "%",
        "blocked",
        "messages",
        "%",
        "MiB",
        "%",
        "handshakes",
        "links",
        "T1 50",
        "T1 99",
        "Ta 50",
        "Ta 99"
    );
    let mut base: Option<Row> = None;
    for (name, tuning) in variants {
        let mut row = Row::default();
        match tuning {
            Some(tuning) => measure(&mut row, seeds, |seed| ours(seed, NODES, tuning)),
            None => measure(&mut row, seeds, |seed| theirs(seed, NODES)),
        }
        let share = |mine: u64, whole: u64| {
            if whole == 0 { "-".into() } else { format!("{:.1}", 100.0 * mine as f64 / whole as f64) }
        };
        let mut first = |at| shown(percentile(&mut row.first, at));
        let (first_half, first_most) = (first(0.5), first(0.99));
        let mut all = |at| shown(percentile(&mut row.all, at));
        let (all_half, all_most) = (all(0.5), all(0.99));
        let of = base.as_ref().unwrap_or(&row);
        println!(
            "{name:<13} {:>9} {:>6} {:>10} {:>6} {:>9} | {:>8} {:>5} {:>8.1} {:>5} {:>10} {:>5} | {:>5} {:>5} {:>5} {:>5}",
            row.about_healthy,
            share(row.about_healthy, of.about_healthy),
            row.among_healthy,
            share(row.among_healthy, of.among_healthy),
            row.about_blocked,
            row.messages,
            share(row.messages, of.messages),
            row.bytes as f64 / f64::from(1 << 20),
            share(row.bytes, of.bytes),
            row.handshakes,
            row.links_max,
            first_half,
            first_most,
            all_half,
            all_most,
        );
        base.get_or_insert(row);
    }
    println!(
        "the paper, % of SWIM: FP 67.7, 3.0, 94.1, 1.5; at healthy 32.9, 6.7, 44.6, 1.9; messages 98, 111, 100, 111;"
    );
    println!("bytes 90, 107, 99, 98 (probe, suspicion, buddy, all three)");
}

fn measure<M: Machine>(row: &mut Row, seeds: u64, sim: impl Fn(u64) -> Sim<M>) {
    for seed in 0..seeds {
        for blocked in BLOCKED {
            for duration in FOR {
                BETWEEN.iter().for_each(|between| block(row, sim(seed), blocked, duration, *between));
            }
        }
        eprint!(".");
    }
    for seed in 0..seeds * 4 {
        crash(row, sim(1_000 + seed));
    }
    eprintln!();
}

/// One cell of the grid.
fn block<M: Machine>(row: &mut Row, sim: Sim<M>, blocked: u32, duration: Duration, between: Option<Duration>) {
    let mut sim = warm(sim, NODES, secs(15));
    let began = sim.time();
    while sim.time() < began + LENGTH {
        (0..blocked).for_each(|node| sim.block(node, duration));
        sim.run_for(duration + between.unwrap_or(LENGTH));
    }
    let report = sim.report();
    row.about_healthy += report.false_positives_healthy;
    row.among_healthy += report.false_positives_among_healthy;
    row.about_blocked += report.false_positives - report.false_positives_healthy;
    row.messages += report.messages_all();
    row.bytes += report.bytes_all();
    row.handshakes += report.handshakes;
    row.links_max = row.links_max.max(report.links_max);
}

/// Deaths without any other trouble, one after the other.
fn crash<M: Machine>(row: &mut Row, sim: Sim<M>) {
    let mut sim = warm(sim, NODES, secs(15));
    for node in 0..8 {
        sim.crash(node);
        sim.run_for(secs(30));
    }
    let report = sim.report();
    row.first.extend(report.first_detections());
    row.all.extend(report.full_detections());
}
