//! What the Rapid paper (Suresh and others, ATC 2018) does to a cluster: ten of a thousand members hear nothing for 20 s in every
//! 40 s, or lose 80 % of what they get, or of what they send.

use std::time::Duration;

use distribute::pieces::membership::{Machine, Sim, State, Tuning};

use crate::{Options, ours, secs, theirs, warm};

const FAULTY: u32 = 10;

#[derive(Clone, Copy)]
enum Fault {
    Flips,
    LosesIn,
    LosesOut,
}

pub(crate) fn run(options: &Options) {
    let (nodes, length) = if options.is_quick { (200, secs(200)) } else { (1_000, secs(400)) };
    println!("\nrapid: {FAULTY} of {nodes} members are faulty for {length:?}");
    println!("Rapid removes exactly the faulty, once; memberlist removes and takes back, for as long as it lasts");
    println!(
        "{:<22} {:<14} {:>7} {:>12} {:>12} {:>15} {:>9} {:>9}",
        "", "", "removed", "deaths each", "returns each", "healthy removed", "sizes", "KB/s each"
    );
    for (fault, name) in [
        (Fault::Flips, "in 20 s on, 20 s off"),
        (Fault::LosesIn, "80 % of in is lost"),
        (Fault::LosesOut, "80 % of out is lost"),
    ] {
        let seed = options.seeds.unwrap_or(1);
        print(name, "our defaults", fault, ours(seed, nodes, Tuning::default()), nodes, length);
        print(name, "undamped", fault, ours(seed, nodes, Tuning::default().undamped()), nodes, length);
        print(name, "foca 2.0", fault, theirs(seed, nodes), nodes, length);
    }
}

fn print<M: Machine>(fault_name: &str, name: &str, fault: Fault, sim: Sim<M>, nodes: u32, length: Duration) {
    let mut sim = warm(sim, nodes, secs(30));
    let began = sim.time();
    while sim.time() < began + length {
        for node in 0..FAULTY {
            match fault {
                Fault::Flips => sim.loss_in(node, 1.0),
                Fault::LosesIn => sim.loss_in(node, 0.8),
                Fault::LosesOut => sim.loss_out(node, 0.8),
            }
        }
        sim.run_for(secs(20));
        if matches!(fault, Fault::Flips) {
            (0..FAULTY).for_each(|node| sim.loss_in(node, 0.0));
            sim.run_for(secs(20));
        }
    }
    let removed = (0..FAULTY).filter(|node| {
        let dead = (FAULTY..nodes).filter(|other| sim.state(*other, *node) == Some(State::Dead)).count();
        dead * 2 > (nodes - FAULTY) as usize
    });
    let removed = removed.count();
    let report = sim.report();
    // Of one faulty member, by one healthy one.
    let pairs = f64::from(FAULTY) * f64::from(nodes - FAULTY);
    let about_faulty = report.false_positives - report.false_positives_healthy;
    let per_second = report.bytes_all() as f64 / f64::from(nodes) / length.as_secs_f64() / 1_000.0;
    println!(
        "{fault_name:<22} {name:<14} {removed:>7} {:>12.2} {:>12.2} {:>15} {:>9} {per_second:>9.2}",
        about_faulty as f64 / pairs,
        report.flaps as f64 / pairs,
        report.healthy_removed.len(),
        report.view_sizes.len(),
    );
}
