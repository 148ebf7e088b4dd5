//! Messages and calls beside raw quinn, in one run.
//!
//! ```text
//! cargo bench --bench traffic                                the whole table, some minutes
//! cargo bench --bench traffic -- --quick                     a rough one, under 40 seconds
//! cargo bench --bench traffic -- --only calls-64 --rounds 9
//! cargo bench --bench traffic -- --svg ratios.svg            and the picture of it
//! ```
//!
//! Each group of rows has some loads that take turns: in each round every load runs once for a fixed time, after it has
//! run in. A figure is the median of the rounds, a ratio the median of the ratios within the rounds. The two ends are two
//! processes on a CPU each (a multi-thread runtime is not placed), or one process (`--processes one`). Messages are counted
//! where they arrive, calls where they were made. CPU is that of all processes, for each operation.
//!
//! The baseline is quinn with the same TLS provider, runtime, and kind of certificates, in the way that is fastest: small
//! messages framed on one stream, written in batches of 64 KiB, split and counted at the far end, handed to nobody; large
//! ones on a stream each; calls on a stream each or numbered on one stream, whichever is better in that round.
//!
//! | group | what it shows |
//! |---|---|
//! | `one-way-64`, `one-way-1k` | one sender, one mailbox; or a thousand in turn, beside one |
//! | `one-way-1m` | four senders of 1 MiB messages, with both MTUs |
//! | `call-one-cpu`, `call` | one caller: with both ends on one CPU the length of the path, else also wake-ups |
//! | `calls-64`, `calls-256` | so many callers, each with one call under way |
//! | `call-beside-bulk` | one caller, while four senders send 1 MiB messages on the same link |
//! | `local` | from one task to another on one node |
//! | `unread` | traffic beside mailboxes that are full and that nobody reads |

use std::process::ExitCode;
use std::time::{Duration, Instant};

use crate::far::{Far, Secrets};
use crate::groups::{Group, PLANS, Placement, Plan};
use crate::load::Sample;
use crate::options::{Options, RuntimeKind, USAGE};
use crate::report::Outcome;
use crate::watchdog::Watchdog;

mod baseline;
mod far;
mod groups;
mod load;
mod machine;
mod options;
mod ours;
mod plot;

mod report;
mod watchdog;

#[path = "../measure/mod.rs"]
mod measure;
#[path = "../raw/mod.rs"]
mod raw;

/// A payload of a small message.
const SMALL: usize = 64;
/// And of a large one.
const LARGE: usize = 1024 * 1024;
/// What loopback and jumbo frames carry.
const JUMBO_MTU: u16 = 6000;

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some(far::ARGUMENT) {
        far::run();
        return ExitCode::SUCCESS;
    }
    let options = match Options::parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(error) => {
            eprintln!("{error}\n{USAGE}");
            return ExitCode::FAILURE;
        }
    };
    Bench::new(options).run()
}

/// One run.
struct Bench {
    options: Options,
    watchdog: Watchdog,
    begun: Instant,
    /// All that may be used.
    cpus: Vec<u32>,
    /// Whether the program `taskset` is there, which moves a process to a CPU.
    can_place: bool,
    outcomes: Vec<Outcome>,
    notes: Vec<String>,
}

impl Bench {
    fn new(options: Options) -> Self {
        let cpus = machine::allowed_cpus();
        let can_place = machine::place(std::process::id(), &cpus);
        let (watchdog, begun) = (Watchdog::start(), Instant::now());
        Self { options, watchdog, begun, cpus, can_place, outcomes: Vec::new(), notes: Vec::new() }
    }

    fn run(mut self) -> ExitCode {
        if self.options.placement == Some(Placement::Together) && !self.can_place {
            eprintln!("--pin needs the program taskset, which is not there or may not do that");
            return ExitCode::FAILURE;
        }
        let conditions = self.conditions();
        eprintln!("{conditions}");
        for kind in self.options.runtimes.clone() {
            let runtime = kind.build();
            runtime.block_on(self.run_on(kind));
            runtime.shutdown_timeout(Duration::from_secs(1));
        }
        if self.outcomes.is_empty() {
            let names: Vec<_> = PLANS.iter().map(|plan| plan.name).collect();
            eprintln!("no such group; there are {}", names.join(", "));
            return ExitCode::FAILURE;
        }
        report::print(&conditions, &self.outcomes, &self.notes);
        self.write_files(&conditions)
    }

    async fn run_on(&mut self, kind: RuntimeKind) {
        let is_only_runtime = self.options.runtimes.len() == 1;
        for plan in PLANS.iter().filter(|plan| is_only_runtime || kind == RuntimeKind::Current || plan.on_multi) {
            if self.options.only.is_empty() || self.options.only.iter().any(|only| only == plan.name) {
                self.run_group(plan, kind).await;
            }
        }
    }

    /// Each group has a far end of its own, so that no group finds another's memory.
    async fn run_group(&mut self, plan: &Plan, kind: RuntimeKind) {
        if plan.placement == Placement::Together && !self.can_place {
            self.notes.push(format!("{}: skipped, it needs the program taskset", plan.name));
            return;
        }
        self.watchdog.step(plan.name);
        let secrets = Secrets::generate(kind);
        let mut far = if self.options.two_processes { Far::in_a_process(&secrets) } else { Far::here(&secrets).await };
        self.place(self.options.placement.unwrap_or(plan.placement), kind, &far);
        let mut group = groups::build(plan.name, &secrets, &mut far).await;
        let samples = self.run_rounds(plan, kind, &group, &mut far).await;
        self.notes.append(&mut group.notes);
        self.outcomes.extend(group.rows.iter().map(|row| Outcome::new(row, &group.contenders, &samples, kind)));
    }

    /// Puts both ends where they belong.
    fn place(&self, placement: Placement, kind: RuntimeKind, far: &Far) {
        let (near, all) = (std::process::id(), &self.cpus[..]);
        let apart = kind == RuntimeKind::Current && all.len() > 1 && far.process().is_some();
        let (here, there) = match placement {
            Placement::Apart if apart => (&all[..1], &all[1..2]),
            Placement::Together => (&all[..1], &all[..1]),
            Placement::Apart | Placement::Free => (all, all),
        };
        if self.can_place {
            machine::place(near, here);
            if let Some(far) = far.process() {
                machine::place(far, there);
            }
        }
    }

    /// All samples, by round and contender.
    async fn run_rounds(&self, plan: &Plan, kind: RuntimeKind, group: &Group, far: &mut Far) -> Vec<Vec<Sample>> {
        let mut rounds = Vec::new();
        for round in 1..=self.options.rounds {
            let mut samples = Vec::new();
            for contender in &group.contenders {
                self.watchdog.step(plan.name);
                samples.push(contender.measure(far, self.options.times()).await);
            }
            let seconds = self.begun.elapsed().as_secs_f64();
            let (name, kind, of) = (plan.name, kind.name(), self.options.rounds);
            eprintln!("[{seconds:5.1} s] {kind}, {name}, round {round} of {of}: {}", brief(group, &samples));
            rounds.push(samples);
        }
        rounds
    }

    fn conditions(&self) -> String {
        let processes = if self.options.two_processes { "two processes" } else { "one process" };
        let placed = match self.options.placement {
            Some(Placement::Together) => " on one CPU",
            Some(Placement::Free) => ", placed by the scheduler",
            _ if self.can_place => "",
            _ => ", placed by the scheduler (there is no taskset)",
        };
        let (rounds, span) = (self.options.rounds, self.options.times().span.as_millis());
        format!("{}; {processes}{placed}; medians of {rounds} rounds of {span} ms", machine::describe())
    }

    fn write_files(&self, conditions: &str) -> ExitCode {
        let json = self.options.json.as_ref().map(|path| (path, report::json(conditions, &self.outcomes, &self.notes)));
        let svg = self.options.svg.as_ref().map(|path| (path, plot::draw(conditions, &self.outcomes)));
        for (path, text) in json.into_iter().chain(svg) {
            if let Err(error) = std::fs::write(path, text) {
                eprintln!("{}: {error}", path.display());
                return ExitCode::FAILURE;
            }
        }
        ExitCode::SUCCESS
    }
}

fn brief(group: &Group, samples: &[Sample]) -> String {
    let each = group.contenders.iter().zip(samples);
    let each = each.map(|(contender, sample)| format!("{} {}", contender.name, report::rate(sample.per_second)));
    each.collect::<Vec<_>>().join(", ")
}
