//! What the command line says.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::groups::Placement;
use crate::load::Times;

pub(crate) const USAGE: &str = "\
usage: cargo bench --bench traffic -- [OPTIONS]
  --quick                  fewer and shorter rounds
  --only GROUP             one group of rows; again for another
  --rounds N               rounds of each group
  --runtime current|multi  one kind of runtime instead of both
  --processes one|two      where the two ends are; the default is two
  --pin                    both ends on one CPU throughout
  --free                   wherever the scheduler puts them throughout
  --json FILE              writes the results
  --svg FILE               draws the ratios";

/// The runtime of each end.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum RuntimeKind {
    Current,
    Multi,
}

impl RuntimeKind {
    pub(crate) fn build(self) -> tokio::runtime::Runtime {
        let mut builder = match self {
            Self::Current => tokio::runtime::Builder::new_current_thread(),
            Self::Multi => tokio::runtime::Builder::new_multi_thread(),
        };
        builder.worker_threads(2).enable_all().build().unwrap()
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Current => "current-thread",
            Self::Multi => "multi-thread",
        }
    }
}

pub(crate) struct Options {
    pub(crate) quick: bool,
    pub(crate) only: Vec<String>,
    pub(crate) rounds: usize,
    pub(crate) runtimes: Vec<RuntimeKind>,
    pub(crate) two_processes: bool,
    /// Where the ends run, whatever a group says.
    pub(crate) placement: Option<Placement>,
    pub(crate) json: Option<PathBuf>,
    pub(crate) svg: Option<PathBuf>,
}

impl Options {
    /// # Errors
    /// What is wrong with the arguments.
    pub(crate) fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let (mut rounds, mut runtime) = (None, None);
        let mut options = Self {
            quick: false,
            only: Vec::new(),
            rounds: 0,
            runtimes: Vec::new(),
            two_processes: true,
            placement: None,
            json: None,
            svg: None,
        };
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().ok_or_else(|| format!("{argument} needs a value"));
            match argument.as_str() {
                // What cargo says to every benchmark.
                "--bench" => {}
                "--quick" => options.quick = true,
                "--only" => options.only.push(value()?),
                "--rounds" => rounds = Some(parse_rounds(&value()?)?),
                "--runtime" => runtime = Some(parse_runtime(&value()?)?),
                "--processes" => options.two_processes = parse_processes(&value()?)?,
                "--pin" => options.placement = Some(Placement::Together),
                "--free" => options.placement = Some(Placement::Free),
                "--json" => options.json = Some(value()?.into()),
                "--svg" => options.svg = Some(value()?.into()),
                other => return Err(format!("unknown option {other}")),
            }
        }
        options.rounds = rounds.unwrap_or(if options.quick { 3 } else { 5 });
        options.runtimes = match runtime {
            Some(runtime) => vec![runtime],
            None if options.quick => vec![RuntimeKind::Current],
            None => vec![RuntimeKind::Current, RuntimeKind::Multi],
        };
        Ok(options)
    }

    pub(crate) fn times(&self) -> Times {
        let millis = Duration::from_millis;
        if self.quick {
            Times { warm_up: millis(60), span: millis(120) }
        } else {
            Times { warm_up: millis(150), span: millis(400) }
        }
    }
}

fn parse_rounds(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|rounds| (1..=100).contains(rounds)).ok_or_else(|| "rounds are 1 to 100".to_owned())
}

fn parse_runtime(text: &str) -> Result<RuntimeKind, String> {
    match text {
        "current" => Ok(RuntimeKind::Current),
        "multi" => Ok(RuntimeKind::Multi),
        _ => Err("a runtime is current or multi".to_owned()),
    }
}

fn parse_processes(text: &str) -> Result<bool, String> {
    match text {
        "one" => Ok(false),
        "two" => Ok(true),
        _ => Err("processes are one or two".to_owned()),
    }
}
