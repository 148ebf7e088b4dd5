//! From samples to a table.

use serde_json::json;

use crate::groups::{Quantity, Row, Target};
use crate::load::{Contender, Sample};
use crate::measure::median;
use crate::options::RuntimeKind;

/// A row with its figures.
pub(crate) struct Outcome {
    pub(crate) what: String,
    pub(crate) runtime: &'static str,
    pub(crate) quantity: Quantity,
    pub(crate) target: Target,
    pub(crate) ours: f64,
    pub(crate) baseline: Option<Baseline>,
    ours_cpu_us: f64,
}

/// The other side of a row.
pub(crate) struct Baseline {
    value: f64,
    cpu_us: f64,
    pub(crate) ratio: f64,
    is_raw: bool,
}

impl Outcome {
    /// `samples` are by round, then by contender.
    pub(crate) fn new(row: &Row, contenders: &[Contender], samples: &[Vec<Sample>], runtime: RuntimeKind) -> Self {
        let find = |name: &String| contenders.iter().position(|contender| contender.name == *name);
        let at = find(&row.ours).expect("a row names contenders");
        let others: Vec<usize> = row.baseline.iter().filter_map(find).collect();
        let ours: Vec<&Sample> = samples.iter().map(|round| &round[at]).collect();
        let best: Vec<&Sample> = samples.iter().filter_map(|round| best_of(round, &others, row.quantity)).collect();
        let medians =
            |of: &[&Sample], value: &dyn Fn(&Sample) -> f64| median(of.iter().map(|one| value(one)).collect());
        let value = |sample: &Sample| row.quantity.of(sample);
        let cpu_us = |sample: &Sample| sample.cpu_us;
        let ratios = ours.iter().zip(&best).map(|(ours, best)| value(ours) / value(best)).collect::<Vec<_>>();
        let baseline = (!best.is_empty()).then(|| Baseline {
            value: medians(&best, &value),
            cpu_us: medians(&best, &cpu_us),
            ratio: median(ratios),
            is_raw: row.baseline.iter().all(|name| name.starts_with("raw")),
        });
        Self {
            what: row.what.clone(),
            runtime: runtime.name(),
            quantity: row.quantity,
            target: row.target,
            ours: medians(&ours, &value),
            baseline,
            ours_cpu_us: medians(&ours, &cpu_us),
        }
    }

    /// Whether it is compared with raw quinn, and not with this library under other circumstances.
    pub(crate) fn is_against_raw(&self) -> bool {
        self.baseline.as_ref().is_some_and(|baseline| baseline.is_raw)
    }

    /// Whether the target is met, if there is one.
    pub(crate) fn is_met(&self) -> Option<bool> {
        let (value, target) = match self.target {
            Target::None => return None,
            Target::Ratio(target) => (self.baseline.as_ref()?.ratio, target),
            Target::Value(target) => (self.ours, target),
        };
        Some(if self.quantity.more_is_better() { value >= target } else { value <= target })
    }

    fn target_text(&self) -> String {
        let sign = if self.quantity.more_is_better() { ">=" } else { "<=" };
        match self.target {
            Target::None => String::new(),
            Target::Ratio(ratio) => format!("{sign} {ratio:.2}"),
            Target::Value(value) => format!("{sign} {}", show(self.quantity, value)),
        }
    }
}

fn best_of<'a>(round: &'a [Sample], among: &[usize], quantity: Quantity) -> Option<&'a Sample> {
    let better = |a: &&Sample, b: &&Sample| quantity.of(a).total_cmp(&quantity.of(b));
    let candidates = among.iter().map(|at| &round[*at]);
    if quantity.more_is_better() { candidates.max_by(better) } else { candidates.min_by(better) }
}

pub(crate) fn print(conditions: &str, outcomes: &[Outcome], notes: &[String]) {
    println!("{conditions}");
    let mut runtime = "";
    for outcome in outcomes {
        if outcome.runtime != runtime {
            runtime = outcome.runtime;
            let heading = format!("{runtime} runtime");
            println!(
                "\n{heading:<48}{:>12}{:>12}{:>8}  {:<12}{:>5}{:>11}{:>11}",
                "baseline", "distribute", "ratio", "target", "", "base CPU", "our CPU"
            );
        }
        println!("{}", line(outcome));
    }
    if !notes.is_empty() {
        println!();
        notes.iter().for_each(|note| println!("{note}"));
    }
}

fn line(outcome: &Outcome) -> String {
    let ours = show(outcome.quantity, outcome.ours);
    let baseline = outcome.baseline.as_ref();
    let value = baseline.map_or_else(String::new, |baseline| show(outcome.quantity, baseline.value));
    let ratio = baseline.map_or_else(String::new, |baseline| format!("{:.2}", baseline.ratio));
    let verdict = outcome.is_met().map_or("", |met| if met { "met" } else { "MISS" });
    // CPU is counted for each call, which says nothing of what goes on beside it.
    let cpu = |us| if outcome.quantity == Quantity::BesideMibPerSecond { String::new() } else { micros(us) };
    let base_cpu = baseline.map_or_else(String::new, |baseline| cpu(baseline.cpu_us));
    let (target, our_cpu) = (outcome.target_text(), cpu(outcome.ours_cpu_us));
    let what = &outcome.what;
    format!("{what:<48}{value:>12}{ours:>12}{ratio:>8}  {target:<12}{verdict:>5}{base_cpu:>11}{our_cpu:>11}")
}

fn show(quantity: Quantity, value: f64) -> String {
    match quantity {
        Quantity::PerSecond => rate(value),
        Quantity::MibPerSecond | Quantity::BesideMibPerSecond => format!("{value:.0} MiB/s"),
        Quantity::P50 | Quantity::P99 | Quantity::Cpu => micros(value),
    }
}

pub(crate) fn rate(per_second: f64) -> String {
    match per_second {
        1e6.. => format!("{:.2} M/s", per_second / 1e6),
        1e4.. => format!("{:.0} k/s", per_second / 1e3),
        _ => format!("{per_second:.0} /s"),
    }
}

fn micros(us: f64) -> String {
    match us {
        1e3.. => format!("{:.2} ms", us / 1e3),
        100.0.. => format!("{us:.0} us"),
        10.0.. => format!("{us:.1} us"),
        _ => format!("{us:.2} us"),
    }
}

/// All figures: rates per second, times and CPU in microseconds.
pub(crate) fn json(conditions: &str, outcomes: &[Outcome], notes: &[String]) -> String {
    let rows: Vec<_> = outcomes.iter().map(row_json).collect();
    let all = json!({ "conditions": conditions, "rows": rows, "notes": notes });
    serde_json::to_string_pretty(&all).unwrap() + "\n"
}

fn row_json(outcome: &Outcome) -> serde_json::Value {
    let baseline = outcome.baseline.as_ref();
    json!({
        "what": outcome.what,
        "runtime": outcome.runtime,
        "distribute": outcome.ours,
        "baseline": baseline.map(|baseline| baseline.value),
        "ratio": baseline.map(|baseline| baseline.ratio),
        "target": outcome.target_text(),
        "met": outcome.is_met(),
        "distribute_cpu_us": outcome.ours_cpu_us,
        "baseline_cpu_us": baseline.map(|baseline| baseline.cpu_us),
    })
}
