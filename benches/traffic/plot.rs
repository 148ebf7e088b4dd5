//! The ratios to raw quinn as a picture: a bar for each row and runtime, and a mark where its target is.
//!
//! An SVG that carries its own background, for readers of light pages and of dark ones.

use std::fmt::Write;

use crate::groups::Target;
use crate::report::Outcome;

const WIDTH: f64 = 900.0;
const LABELS: f64 = 330.0;
/// Where the figures beside the bars begin to need room.
const RIGHT: f64 = 80.0;
const BAR: f64 = 13.0;
const ROW_GAP: f64 = 9.0;
const MARGIN: f64 = 24.0;

const STYLE: &str = "\
.back { fill: #ffffff } text { fill: #1f2328; font: 13px system-ui, sans-serif } .title { font-size: 17px; font-weight: 600 }
.small { font-size: 11px; fill: #59636e } .grid { stroke: #d1d9e0 } .one { stroke: #59636e; stroke-width: 1.5 }
.bar0 { fill: #2f81f7 } .bar1 { fill: #8250df } .target { stroke: #d1242f; stroke-width: 2.5 }
@media (prefers-color-scheme: dark) {
.back { fill: #0d1117 } text { fill: #f0f6fc } .small { fill: #9198a1 } .grid { stroke: #3d444d }
.one { stroke: #9198a1 } .bar0 { fill: #4493f8 } .bar1 { fill: #ab7df8 } .target { stroke: #ff7b72 } }";

/// Draws all rows that are compared with raw quinn.
pub(crate) fn draw(conditions: &str, outcomes: &[Outcome]) -> String {
    let shown: Vec<&Outcome> = outcomes.iter().filter(|outcome| outcome.is_against_raw()).collect();
    let mut runtimes: Vec<&str> = shown.iter().map(|outcome| outcome.runtime).collect();
    runtimes.dedup();
    let mut picture = Picture { body: String::new(), y: MARGIN + 16.0 };
    picture.text(MARGIN, "title", "start", "distribute beside raw quinn");
    picture.y += 20.0;
    picture.text(MARGIN, "small", "start", conditions);
    picture.y += 22.0;
    picture.legend(&runtimes);
    for (title, more_is_better) in [("Throughput: longer is better", true), ("Latency, CPU: shorter is better", false)]
    {
        let rows = shown.iter().copied().filter(|outcome| outcome.quantity.more_is_better() == more_is_better);
        picture.panel(title, &rows.collect::<Vec<_>>(), &runtimes);
    }
    picture.finish()
}

struct Picture {
    body: String,
    /// How far down it is drawn.
    y: f64,
}

/// From ratios to places on the picture.
struct Scale {
    end: f64,
    step: f64,
}

impl Scale {
    fn of(outcomes: &[&Outcome]) -> Self {
        let largest = outcomes.iter().map(|outcome| ratio(outcome).max(target(outcome).unwrap_or(0.0)));
        let largest = largest.fold(1.0, f64::max);
        let step = if largest > 4.0 {
            1.0
        } else if largest > 2.0 {
            0.5
        } else {
            0.25
        };
        Self { end: (largest / step).ceil() * step, step }
    }

    fn x(&self, ratio: f64) -> f64 {
        LABELS + ratio / self.end * (WIDTH - LABELS - RIGHT)
    }
}

impl Picture {
    fn panel(&mut self, title: &str, outcomes: &[&Outcome], runtimes: &[&str]) {
        if outcomes.is_empty() {
            return;
        }
        let scale = Scale::of(outcomes);
        let mut names: Vec<&str> = Vec::new();
        for outcome in outcomes {
            if !names.contains(&outcome.what.as_str()) {
                names.push(&outcome.what);
            }
        }
        self.y += 34.0;
        self.text(MARGIN, "", "start", title);
        self.y += 12.0;
        let height = names.len() as f64 * (BAR * runtimes.len() as f64 + ROW_GAP) + ROW_GAP;
        self.axis(&scale, height);
        self.y += ROW_GAP;
        for name in names {
            self.row(name, outcomes, runtimes, &scale);
        }
        self.y += 16.0;
        for tick in ticks(&scale) {
            self.text(scale.x(tick), "small", "middle", &format!("{tick}"));
        }
        self.y += 16.0;
        self.text(scale.x(scale.end / 2.0), "small", "middle", "ratio to raw quinn (1 = the same)");
    }

    fn axis(&mut self, scale: &Scale, height: f64) {
        for tick in ticks(scale) {
            let class = if tick == 1.0 { "one" } else { "grid" };
            self.line(class, scale.x(tick), self.y, self.y + height);
        }
    }

    /// The bars of one row, one for each runtime.
    fn row(&mut self, name: &str, outcomes: &[&Outcome], runtimes: &[&str], scale: &Scale) {
        let of_row = |runtime: &str| outcomes.iter().find(|outcome| outcome.what == name && outcome.runtime == runtime);
        let height = BAR * runtimes.len() as f64;
        let top = self.y;
        self.y = top + height / 2.0 + 4.0;
        self.text(LABELS - 10.0, "", "end", name);
        for (at, runtime) in runtimes.iter().enumerate() {
            let Some(outcome) = of_row(runtime) else { continue };
            let (y, width) = (top + BAR * at as f64, scale.x(ratio(outcome)) - LABELS);
            let _ = writeln!(
                self.body,
                r#"<rect class="bar{at}" x="{LABELS}" y="{y:.1}" width="{width:.1}" height="{:.1}"/>"#,
                BAR - 1.0
            );
            self.y = y + BAR - 3.0;
            self.text(WIDTH - RIGHT + 14.0, "small", "start", &format!("{:.2}", ratio(outcome)));
        }
        if let Some(target) = runtimes.iter().find_map(|runtime| target(of_row(runtime)?)) {
            self.line("target", scale.x(target), top - 3.0, top + height + 2.0);
        }
        self.y = top + height + ROW_GAP;
    }

    fn legend(&mut self, runtimes: &[&str]) {
        let mut x = MARGIN;
        for (at, runtime) in runtimes.iter().enumerate() {
            let _ =
                writeln!(self.body, r#"<rect class="bar{at}" x="{x}" y="{}" width="12" height="12"/>"#, self.y - 11.0);
            self.text(x + 18.0, "small", "start", &format!("{runtime} runtime"));
            x += 150.0;
        }
        self.line("target", x + 6.0, self.y - 12.0, self.y + 2.0);
        self.text(x + 18.0, "small", "start", "target");
    }

    fn text(&mut self, x: f64, class: &str, anchor: &str, text: &str) {
        let text = text.replace('&', "&amp;").replace('<', "&lt;");
        let y = self.y;
        let _ =
            writeln!(self.body, r#"<text class="{class}" x="{x:.1}" y="{y:.1}" text-anchor="{anchor}">{text}</text>"#);
    }

    fn line(&mut self, class: &str, x: f64, from: f64, to: f64) {
        let _ = writeln!(self.body, r#"<line class="{class}" x1="{x:.1}" x2="{x:.1}" y1="{from:.1}" y2="{to:.1}"/>"#);
    }

    fn finish(self) -> String {
        let (body, height) = (self.body, self.y + MARGIN);
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height:.0}\" role=\"img\" \
             aria-label=\"Ratios of distribute to raw quinn\">\n<style>\n{STYLE}\n</style>\n\
             <rect class=\"back\" width=\"{WIDTH}\" height=\"{height:.0}\" rx=\"6\"/>\n{body}</svg>\n"
        )
    }
}

fn ticks(scale: &Scale) -> impl Iterator<Item = f64> + use<> {
    let step = scale.step;
    (0..=(scale.end / step).round() as usize).map(move |tick| tick as f64 * step)
}

fn ratio(outcome: &Outcome) -> f64 {
    outcome.baseline.as_ref().map_or(0.0, |baseline| baseline.ratio)
}

fn target(outcome: &Outcome) -> Option<f64> {
    match outcome.target {
        Target::Ratio(ratio) => Some(ratio),
        Target::None | Target::Value(_) => None,
    }
}
