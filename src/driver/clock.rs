//! The clock of leases: it goes on while the machine sleeps, where the system has such a clock.
//!
//! Only differences count. Nobody sets it, as one may set the time of day.

use std::time::Duration;

/// A clock of this machine, or of the network in memory.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Clock {
    System,
    /// Tokio's, which tests may pause, since then.
    Tokio(tokio::time::Instant),
}

/// So that no time is close to zero, from which nothing could be subtracted.
const BEGIN: Duration = Duration::from_secs(3600);

impl Clock {
    pub(crate) fn tokio() -> Self {
        Self::Tokio(tokio::time::Instant::now())
    }

    pub(crate) fn now(&self) -> Duration {
        BEGIN
            + match self {
                Self::System => system(),
                Self::Tokio(since) => since.elapsed(),
            }
    }
}

#[cfg(any(target_os = "linux", target_os = "android"))]
fn system() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    // It begins at zero when the machine does.
    Duration::new(time.tv_sec.try_into().unwrap_or_default(), time.tv_nsec.try_into().unwrap_or_default())
}

/// It may stop while the machine sleeps: a lease seems to last until it wakes.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn system() -> Duration {
    static BEGAN: std::sync::LazyLock<std::time::Instant> = std::sync::LazyLock::new(std::time::Instant::now);
    BEGAN.elapsed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_systems_clock_runs_at_the_rate_of_others() {
        let (clock, began) = (Clock::System, std::time::Instant::now());
        let first = clock.now();
        while clock.now() < first + Duration::from_millis(20) {
            std::hint::spin_loop();
        }
        assert!(began.elapsed() >= Duration::from_millis(19), "{:?}", began.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn tokios_clock_goes_on_when_it_is_told() {
        let clock = Clock::tokio();
        let first = clock.now();
        tokio::time::advance(Duration::from_secs(5)).await;
        assert_eq!(clock.now() - first, Duration::from_secs(5));
    }
}
