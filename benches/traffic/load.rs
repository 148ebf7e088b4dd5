//! A load on the link, and what is measured while it runs.

use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use crate::far::Far;
use crate::machine;

/// How long a measurement takes.
#[derive(Clone, Copy)]
pub(crate) struct Times {
    pub(crate) warm_up: Duration,
    pub(crate) span: Duration,
}

/// One of those that take turns: a load that can be put on the link again and again.
pub(crate) struct Contender {
    pub(crate) name: String,
    counted: Counted,
    start: Start,
}

/// Starts the tasks of a load.
type Start = Box<dyn Fn(&mut JoinSet<()>, &Arc<Tally>)>;

/// Which end knows how much was done.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Counted {
    Near,
    Far,
}

/// What the near end has done: what ended here, and how long each call took.
#[derive(Default)]
pub(crate) struct Tally {
    done: AtomicU64,
    latencies: Mutex<Vec<Duration>>,
}

/// What one measurement found.
#[derive(Clone, Copy, Default)]
pub(crate) struct Sample {
    pub(crate) per_second: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    /// CPU time of all processes per operation.
    pub(crate) cpu_us: f64,
    /// Messages that arrived at the far end each second, whatever was counted.
    pub(crate) beside_per_second: f64,
}

impl Tally {
    pub(crate) fn add_one(&self) {
        self.done.fetch_add(1, Ordering::Relaxed);
    }
}

impl Contender {
    /// A load whose operations end here: calls.
    pub(crate) fn near(name: impl Into<String>, start: impl Fn(&mut JoinSet<()>, &Arc<Tally>) + 'static) -> Self {
        Self { name: name.into(), counted: Counted::Near, start: Box::new(start) }
    }

    /// A load whose operations end there: messages.
    pub(crate) fn far(name: impl Into<String>, start: impl Fn(&mut JoinSet<()>) + 'static) -> Self {
        Self { name: name.into(), counted: Counted::Far, start: Box::new(move |tasks, _| start(tasks)) }
    }

    /// Puts the load on, lets it run in, measures for a while, and takes it off again.
    pub(crate) async fn measure(&self, far: &mut Far, times: Times) -> Sample {
        let tally = Arc::new(Tally::default());
        let mut tasks = JoinSet::new();
        (self.start)(&mut tasks, &tally);
        tokio::time::sleep(times.warm_up).await;
        tally.latencies.lock().unwrap().clear();
        let before = Moment::now(&tally, far);
        tokio::time::sleep(times.span).await;
        let after = Moment::now(&tally, far);
        if let Some(ended) = tasks.try_join_next() {
            panic!("the load {:?} ended: {ended:?}", self.name);
        }
        tasks.shutdown().await;
        far.settle().await;
        self.sample(&before, &after, &tally)
    }

    fn sample(&self, before: &Moment, after: &Moment, tally: &Tally) -> Sample {
        let near = (after.done - before.done) as f64;
        let far = (after.arrived - before.arrived) as f64;
        let near_per_second = near / (after.near - before.near).as_secs_f64();
        let far_per_second = far / (after.far - before.far).as_secs_f64();
        let (done, per_second) = match self.counted {
            Counted::Near => (near, near_per_second),
            Counted::Far => (far, far_per_second),
        };
        let cpu = (after.cpu - before.cpu).as_secs_f64() * 1e6;
        let (p50_us, p99_us) = percentiles(&mut tally.latencies.lock().unwrap());
        Sample { per_second, p50_us, p99_us, cpu_us: cpu / done.max(1.0), beside_per_second: far_per_second }
    }
}

/// All counters at one moment. Each end's clock is read with its counter.
struct Moment {
    near: Instant,
    done: u64,
    far: Duration,
    arrived: u64,
    cpu: Duration,
}

impl Moment {
    fn now(tally: &Tally, far: &mut Far) -> Self {
        let there = far.report();
        let (near, done) = (Instant::now(), tally.done.load(Ordering::Relaxed));
        Self { near, done, far: there.at, arrived: there.arrived, cpu: machine::cpu() + there.cpu }
    }
}

fn percentiles(latencies: &mut [Duration]) -> (f64, f64) {
    if latencies.is_empty() {
        return (0.0, 0.0);
    }
    latencies.sort_unstable();
    let us = |percent: usize| latencies[latencies.len() * percent / 100].as_secs_f64() * 1e6;
    (us(50), us(99))
}

/// Something that answers.
pub(crate) trait Ask: Clone + Send + 'static {
    fn ask(&self) -> impl Future<Output = ()> + Send;
}

/// Starts callers, each of which asks again as soon as it has its answer.
pub(crate) fn ask_from(tasks: &mut JoinSet<()>, tally: &Arc<Tally>, callers: usize, ask: &impl Ask) {
    for _ in 0..callers {
        let (ask, tally) = (ask.clone(), tally.clone());
        tasks.spawn(async move {
            loop {
                let begun = Instant::now();
                ask.ask().await;
                // A lock for each call would weigh on the rates of many callers.
                if callers == 1 {
                    tally.latencies.lock().unwrap().push(begun.elapsed());
                }
                tally.add_one();
            }
        });
    }
}
