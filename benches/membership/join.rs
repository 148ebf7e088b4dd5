//! Everybody joins at once through one contact.

use distribute::pieces::membership::Tuning;

use crate::{Options, ours, secs, shown};

pub(crate) fn run(options: &Options) {
    println!("\njoin: all but one join at once through that one");
    println!(
        "to 1000/1500/2000: Rapid 28/40/53 s and 4/8/4 sizes, memberlist 45/68/97 s and 901/1383/1858 sizes (Rapid paper)"
    );
    println!(
        "{:>6} {:>8} {:>7} {:>12} {:>10} {:>9}",
        "n", "all see", "sizes", "KB per node", "handshakes", "suspected"
    );
    let sizes: &[u32] = if options.is_quick { &[100, 300] } else { &[100, 1_000, 2_000] };
    for nodes in sizes {
        let mut sim = ours(3, *nodes, Tuning::default());
        sim.start_alone(*nodes);
        (1..*nodes).for_each(|node| sim.join(node, 0));
        let took = sim.run_until(|sim| sim.is_converged(), secs(300));
        let report = sim.report();
        println!(
            "{nodes:>6} {:>8} {:>7} {:>12.1} {:>10} {:>9}",
            shown(took),
            report.view_sizes.len(),
            report.bytes_all() as f64 / f64::from(*nodes) / 1_000.0,
            report.handshakes,
            report.suspicions,
        );
    }
}
