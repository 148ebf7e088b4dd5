//! Ten thousand members for a virtual minute in which some crash: what it takes to simulate them.

use std::time::Instant;

use distribute::pieces::membership::{Tuning, percentile};

use crate::{Options, ours_checked, secs, shown};

/// The argument that makes this process the one that is measured.
pub(crate) const CHILD: &str = "large-child";

pub(crate) fn run(options: &Options) {
    let nodes = if options.is_quick { 2_000 } else { 10_000 };
    println!(
        "\nlarge: {nodes} members for one virtual minute, five of which crash, every rule checked, in a fresh process"
    );
    let program = std::env::current_exe().expect("this program");
    let status = std::process::Command::new(program).args([CHILD, &nodes.to_string()]).status();
    assert!(status.expect("the child runs").success(), "the child failed");
}

pub(crate) fn child() {
    let nodes: u32 = std::env::args().skip_while(|argument| argument != CHILD).nth(1).unwrap().parse().unwrap();
    let began = Instant::now();
    let mut sim = ours_checked(11, nodes, Tuning::default());
    sim.start(nodes);
    let started = began.elapsed();
    sim.run_for(secs(10));
    (0..5).for_each(|node| sim.crash(node));
    sim.run_for(secs(50));
    let report = sim.report();
    let peak = peak_mib();
    println!(
        "{:.1} s to start, {:.1} s in all; {peak:.0} MiB at the peak, {:.1} KiB per member; {} events",
        started.as_secs_f64(),
        began.elapsed().as_secs_f64(),
        peak * 1_024.0 / f64::from(nodes),
        report.events,
    );
    println!(
        "{} messages, {:.0} KB sent per member, {} handshakes, at most {} links at one member; {} false deaths",
        report.messages_all(),
        report.bytes_all() as f64 / f64::from(nodes) / 1_000.0,
        report.handshakes,
        report.links_max,
        report.false_positives,
    );
    println!(
        "of 5 crashes the first to know knew after {} s, all after {} s (medians)",
        shown(percentile(&mut report.first_detections(), 0.5)),
        shown(percentile(&mut report.full_detections(), 0.5)),
    );
}

/// The most memory that this process ever held.
fn peak_mib() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default();
    let kib: f64 = line.trim().trim_end_matches(" kB").parse().unwrap_or(0.0);
    kib / 1_024.0
}
