//! How long one rumour takes to all, and how many hear of it, over links that the probes have left warm.

use std::time::Duration;

use distribute::pieces::membership::{Tuning, percentile};

use crate::{Options, ours, secs, shown, warm};

pub(crate) fn run(options: &Options) {
    println!("\nspread: one rumour at a time; medians over all rumours, in seconds, by gossip alone");
    println!(
        "memberlist's queue, measured alike with any member as a target: 128: .35 .64 .70 .70, 1000: .51 .82 .94 .99,"
    );
    println!("10000: .65 .96 1.10 1.26 without loss; with 50 %: 128: .68 1.30 1.48 -, 1000: .96 1.57 1.82 1.98");
    println!(
        "{:>6} {:>5} {:>6} {:>6} {:>6} {:>6} {:>10} {:>10} {:>11}",
        "n", "loss", "t50", "t99", "t99.9", "t100", "complete", "reached", "sends each"
    );
    let sizes: &[(u32, u64)] =
        if options.is_quick { &[(128, 10), (1_000, 4)] } else { &[(128, 40), (1_000, 20), (10_000, 4)] };
    for (nodes, rumours) in sizes {
        for loss in [0.0, 0.25, 0.5] {
            // Only gossip is lost: probes that fail would make rumours of their own.
            let mut sim = warm(ours(7, *nodes, Tuning::default()), *nodes, secs(62));
            sim.network().gossip_loss = loss;
            let mut sends = 0;
            for rumour in 0..*rumours {
                sim.clear_report();
                sim.publish((rumour * 37 % u64::from(*nodes)) as u32);
                sim.run_for(secs(6));
                sends += sim.report().messages[1];
            }
            let facts = sim.report().facts;
            let at = |share: f64| {
                let mut times: Vec<Duration> = facts.iter().filter_map(|fact| fact.until(share)).collect();
                shown(percentile(&mut times, 0.5).filter(|_| times.len() * 2 >= facts.len()))
            };
            let complete = facts.iter().filter(|fact| fact.is_complete()).count();
            let reached: f64 = facts.iter().map(|fact| fact.arrivals.len() as f64 / fact.audience as f64).sum::<f64>()
                / facts.len() as f64;
            println!(
                "{nodes:>6} {:>4}% {:>6} {:>6} {:>6} {:>6} {:>9}% {:>9.2}% {:>11.1}",
                loss * 100.0,
                at(0.5),
                at(0.99),
                at(0.999),
                at(1.0),
                100 * complete / facts.len(),
                100.0 * reached,
                sends as f64 / *rumours as f64 / f64::from(*nodes),
            );
        }
    }
}
