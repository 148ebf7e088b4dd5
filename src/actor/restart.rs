//! Whether an actor begins anew, and after which pause.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use super::run::Ended;
use crate::config::LONGEST;

/// The most restarts that a [`Restart`] counts in its window.
pub const RESTARTS_MAX: u32 = 10_000;

/// When an actor begins anew, how often, and after which pause.
///
/// It begins anew in the same mailbox, so its names, groups and monitors stay, and what has arrived is handled. The state is
/// a fresh one. The message that it ended at is not handled again.
///
/// The first restart comes after a pause of 100 ms, and the pause doubles with each restart of the last minute, up to 10 s.
/// Of each pause a random part, half of it at most, is left out, so that actors that fell together do not rise together.
/// After the fifth restart within a minute, the actor ends the next time with
/// [`Exit::TooManyRestarts`](super::Exit::TooManyRestarts).
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), distribute::Error> {
/// use std::time::Duration;
/// use distribute::{ActorContext, Cookie, Next, Node, Restart, actor_fn};
///
/// async fn invert(_: &mut u64, number: u64, _: &ActorContext<u64>) -> Next {
///     assert!(1000 / number < 1000, "dividing by zero panics, too");
///     Next::Continue
/// }
///
/// let node = Node::builder("here@127.0.0.1:0").cookie(Cookie::generate()).start().await?;
/// let policy = Restart::on_panic().limit(3, Duration::from_secs(10)).back_off(Duration::ZERO, Duration::from_secs(1));
/// let inverter = node.actor(actor_fn(0, invert)).restart(policy, || actor_fn(0, invert)).await?;
/// for number in [0, 5, 0] {
///     inverter.address().send(number).await?;
/// }
/// inverter.drain().await;
/// assert_eq!((inverter.restarts(), inverter.panics()), (2, 2));
/// # node.shutdown().await;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[doc(alias = "supervisor")]
#[must_use = "a policy does nothing by itself"]
pub struct Restart {
    when: When,
    limit: u32,
    within: Duration,
    first: Duration,
    longest: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum When {
    Never,
    OnPanic,
    OnFailure,
    Always,
}

impl Restart {
    const fn when(when: When) -> Self {
        Self {
            when,
            limit: 5,
            within: Duration::from_secs(60),
            first: Duration::from_millis(100),
            longest: Duration::from_secs(10),
        }
    }

    /// It never begins anew.
    #[doc(alias = "temporary")]
    pub const fn never() -> Self {
        Self::when(When::Never)
    }

    /// It begins anew after a panic.
    pub const fn on_panic() -> Self {
        Self::when(When::OnPanic)
    }

    /// It begins anew after a panic, and after [`Next::StopAbnormal`](super::Next::StopAbnormal).
    #[doc(alias = "transient")]
    pub const fn on_failure() -> Self {
        Self::when(When::OnFailure)
    }

    /// It begins anew also after [`Next::Stop`](super::Next::Stop). It ends when it is stopped from outside, when its time is
    /// over ([`ActorContext::stop_after`](super::ActorContext::stop_after)), and with its mailbox.
    #[doc(alias = "permanent")]
    pub const fn always() -> Self {
        Self::when(When::Always)
    }

    /// Sets how often it may begin anew within a time: with 0, never. The default is 5 times within 60 s. More than
    /// [`RESTARTS_MAX`] counts as that, and more than a year as a year.
    #[doc(alias = "intensity")]
    pub fn limit(mut self, restarts: u32, within: Duration) -> Self {
        self.limit = restarts.min(RESTARTS_MAX);
        self.within = within.min(LONGEST);
        self
    }

    /// Sets the first pause and the longest one. The default is 100 ms and 10 s. The longest is never less than the first,
    /// and never more than a year.
    pub fn back_off(mut self, first: Duration, longest: Duration) -> Self {
        self.first = first.min(LONGEST);
        self.longest = longest.clamp(self.first, LONGEST);
        self
    }
}

/// The restarts of one actor.
#[derive(Debug)]
pub(super) struct Restarts {
    policy: Restart,
    /// Those that count, from the oldest on.
    recent: VecDeque<Instant>,
}

impl Restarts {
    pub(super) fn new(policy: Restart) -> Self {
        Self { policy, recent: VecDeque::new() }
    }

    /// Whether it begins anew after such an end, as long as it does not do so too often.
    pub(super) fn follows(&self, ended: &Ended) -> bool {
        let least = match ended {
            Ended::Asked | Ended::Closed => return false,
            Ended::Panicked(_) => When::OnPanic,
            Ended::Failed(_) => When::OnFailure,
            Ended::Stopped => When::Always,
        };
        self.policy.when >= least
    }

    /// Counts a restart, and returns the pause before it; `None` when there were too many. `chance` is from 0 to 1.
    pub(super) fn next(&mut self, now: Instant, chance: f64) -> Option<Duration> {
        let Restart { limit, within, first, longest, .. } = self.policy;
        while self.recent.front().is_some_and(|restart| now.saturating_duration_since(*restart) >= within) {
            self.recent.pop_front();
        }
        if self.recent.len() >= limit as usize {
            return None;
        }
        // 2^32 times anything above a nanosecond is longer than the longest.
        let doubled = 1u32.checked_shl(self.recent.len().try_into().unwrap_or(u32::MAX)).unwrap_or(u32::MAX);
        let pause = first.saturating_mul(doubled).min(longest);
        self.recent.push_back(now);
        Some(pause.mul_f64(1.0 - chance.clamp(0.0, 1.0) / 2.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secs(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    fn pauses(policy: Restart, chance: f64, times: u32) -> Vec<Option<Duration>> {
        let (mut restarts, now) = (Restarts::new(policy), Instant::now());
        (0..times).map(|_| restarts.next(now, chance)).collect()
    }

    #[test]
    fn pauses_double_up_to_the_longest() {
        let policy = Restart::on_panic().limit(6, secs(60)).back_off(secs(1), secs(10));
        let whole = [1, 2, 4, 8, 10, 10].map(|n| Some(secs(n))).into_iter().chain([None]);
        assert_eq!(pauses(policy.clone(), 0.0, 7), whole.collect::<Vec<_>>());
        let half = [500, 1000, 2000, 4000, 5000, 5000].map(|n| Some(Duration::from_millis(n)));
        assert_eq!(pauses(policy.clone(), 1.0, 6), half, "half is left out, at most");
        let between = pauses(policy, 0.5, 1)[0];
        assert_eq!(between, Some(Duration::from_millis(750)));
    }

    #[test]
    fn restarts_count_within_the_window() {
        let policy = Restart::on_panic().limit(2, secs(10)).back_off(secs(1), secs(60));
        let (mut restarts, start) = (Restarts::new(policy), Instant::now());
        let mut at = |seconds| restarts.next(start + secs(seconds), 0.0);
        assert_eq!((at(0), at(1)), (Some(secs(1)), Some(secs(2))));
        assert_eq!(at(9), None, "the third within ten seconds");
        assert_eq!(at(10), Some(secs(2)), "the first no longer counts, neither for the pause");
        assert_eq!(at(10), None);
        assert_eq!((at(30), at(30), at(30)), (Some(secs(1)), Some(secs(2)), None), "as if nothing had been");
    }

    #[test]
    fn limits_have_limits() {
        assert_eq!(pauses(Restart::always().limit(0, secs(60)), 0.0, 1), [None]);
        assert_eq!(pauses(Restart::always().limit(1, Duration::ZERO), 0.0, 9).iter().flatten().count(), 9, "no window");
        let policy = Restart::always().limit(u32::MAX, Duration::MAX).back_off(Duration::MAX, Duration::ZERO);
        let all = pauses(policy, 0.0, RESTARTS_MAX + 1);
        assert_eq!((all[0], all[40], all[RESTARTS_MAX as usize]), (Some(LONGEST), Some(LONGEST), None));
        let none = pauses(Restart::always().limit(100, secs(60)).back_off(Duration::ZERO, secs(1)), 0.0, 100);
        assert!(none.iter().all(|pause| *pause == Some(Duration::ZERO)), "no pause stays none");
    }

    #[test]
    fn each_policy_follows_what_it_says() {
        let ends =
            [Ended::Panicked(String::new()), Ended::Failed(String::new()), Ended::Stopped, Ended::Asked, Ended::Closed];
        for (policy, followed) in
            [(Restart::never(), 0), (Restart::on_panic(), 1), (Restart::on_failure(), 2), (Restart::always(), 3)]
        {
            let restarts = Restarts::new(policy);
            assert_eq!(ends.each_ref().map(|end| restarts.follows(end)), [0, 1, 2, 3, 4].map(|n| n < followed));
        }
    }
}
