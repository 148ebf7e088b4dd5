//! Membership in the simulator: how soon deaths are noticed, which are false, how fast news spread, and what it costs.
//!
//! `cargo bench --bench membership -- [--quick] [--only NAME] [--seeds N]`, where NAME is one of `lifeguard`, `rapid`,
//! `spread`, `join` and `large`. Everything is virtual but the wall time and the memory of `large`; the same seed gives the
//! same figures on every machine. foca 2.0, with its settings for a local network, runs under the same faults. It speaks
//! plain datagrams, so no handshake costs it anything.

use std::time::{Duration, Instant};

use distribute::pieces::membership::{Machine, Ours, Rules, Settings, Setup, Sim, Tuning};

mod foca;
mod join;
mod large;
mod lifeguard;
mod rapid;
mod spread;

/// One part of the program.
type Part = fn(&Options);

/// What is asked for on the command line.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    is_quick: bool,
    only: Option<String>,
    seeds: Option<u64>,
}

impl Options {
    fn read() -> Self {
        let mut options = Self { is_quick: false, only: None, seeds: None };
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--quick" => options.is_quick = true,
                "--only" => options.only = arguments.next(),
                "--seeds" => options.seeds = arguments.next().and_then(|seeds| seeds.parse().ok()),
                _ => {}
            }
        }
        options
    }

    /// How many seeds to run, where so many are the custom.
    fn seeds(&self, quick: u64, full: u64) -> u64 {
        self.seeds.unwrap_or(if self.is_quick { quick } else { full })
    }
}

fn main() {
    if std::env::args().any(|argument| argument == large::CHILD) {
        return large::child();
    }
    let options = Options::read();
    let parts: [(&str, Part); 5] = [
        ("lifeguard", lifeguard::run),
        ("rapid", rapid::run),
        ("spread", spread::run),
        ("join", join::run),
        ("large", large::run),
    ];
    for (name, run) in parts {
        if options.only.as_ref().is_none_or(|only| only == name) {
            let began = Instant::now();
            run(&options);
            eprintln!("{name}: {:.1} s", began.elapsed().as_secs_f64());
        }
    }
}

/// A simulation of our machines.
pub(crate) fn ours(seed: u64, nodes: u32, tuning: Tuning) -> Sim<Ours> {
    Sim::new(seed, Setup::new(tuning, nodes), Settings::default(), Instant::now())
}

/// The same, checked at each event.
pub(crate) fn ours_checked(seed: u64, nodes: u32, tuning: Tuning) -> Sim<Ours> {
    let rules = Rules { suspicion_max: 2 * tuning.suspicion_max(nodes), score_max: tuning.score_max() };
    let settings = Settings { rules: Some(rules), ..Settings::default() };
    Sim::new(seed, Setup::new(tuning, nodes), settings, Instant::now())
}

/// A simulation of foca's.
pub(crate) fn theirs(seed: u64, nodes: u32) -> Sim<foca::FocaMachine> {
    Sim::new(seed, foca::config(nodes), Settings::default(), Instant::now())
}

/// Starts nodes that know each other, and lets them warm up.
pub(crate) fn warm<M: Machine>(mut sim: Sim<M>, nodes: u32, warm_up: Duration) -> Sim<M> {
    sim.start(nodes);
    sim.run_for(warm_up);
    sim.clear_report();
    sim
}

/// Seconds, as a table shows them.
pub(crate) fn shown(duration: Option<Duration>) -> String {
    duration.map_or_else(|| "-".into(), |duration| format!("{:.2}", duration.as_secs_f64()))
}

pub(crate) fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}
