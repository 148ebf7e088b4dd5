//! Ends a run that hangs.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// A step takes a second or two.
const STEP_MAX: Duration = Duration::from_secs(40);
/// The whole table with a hundred rounds stays below.
const RUN_MAX: Duration = Duration::from_secs(3600);

/// Exits the process when a step, or the whole run, takes too long. A far end follows, since its input ends.
pub(crate) struct Watchdog {
    step: Arc<Mutex<(&'static str, Instant)>>,
}

impl Watchdog {
    pub(crate) fn start() -> Self {
        let begun = Instant::now();
        let step = Arc::new(Mutex::new(("the start", begun)));
        let watched = step.clone();
        std::thread::spawn(move || {
            loop {
                std::thread::sleep(Duration::from_millis(500));
                let (name, since) = *watched.lock().unwrap();
                if since.elapsed() > STEP_MAX || begun.elapsed() > RUN_MAX {
                    eprintln!("gave up: {name} takes too long");
                    std::process::exit(1);
                }
            }
        });
        Self { step }
    }

    /// The next step begins.
    pub(crate) fn step(&self, name: &'static str) {
        *self.step.lock().unwrap() = (name, Instant::now());
    }
}
