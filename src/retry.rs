//! Trying again what was not done.

use std::time::Duration;

use backon::{ExponentialBuilder, Retryable};
use tokio::time::Instant;

use crate::config::LONGEST;
use crate::error::{Effect, HasEffect};

/// How often, and for how long, something is tried again that was not done.
///
/// The library repeats nothing by itself. This repeats what *cannot* have had an effect, and nothing else: an error is tried
/// again when it says [`Effect::NotDone`] and is not [lasting](HasEffect::is_lasting); any other is returned at once. So what
/// is run is done once at most, however often it was tried, if it does one thing, and its error is that of this thing: two
/// calls in one attempt are tried again both when the second fails.
///
/// A send that fails with [`SendError::SessionEnded`](crate::SendError::SessionEnded) was not done, and is tried again, too:
/// that *earlier* messages may be lost is then told to nobody. Who has to know does not retry it.
///
/// Between two attempts there is a pause, which doubles each time, and is made longer by up to as much again by chance, so
/// that many who fail at once do not come back at once.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), distribute::Error> {
/// use std::time::Duration;
/// use distribute::{Cookie, Method, Node, Retry};
///
/// const DOUBLE: Method<u64, u64> = Method::new("double");
///
/// let node = Node::builder("here@127.0.0.1:0").cookie(Cookie::generate()).start().await?;
/// let serving = tokio::spawn({
///     let node = node.clone();
///     async move {
///         tokio::time::sleep(Duration::from_millis(20)).await;
///         node.rpc().serve(DOUBLE, |_call, n| async move { 2 * n })
///     }
/// });
/// let rpc = node.rpc();
/// let retry = Retry::new().attempts(8).within(Duration::from_secs(3));
/// let answer = retry.run(async || rpc.call(node.name(), DOUBLE, 4).await).await?; // nobody serves it yet
/// assert_eq!(answer, 8);
/// # serving.await.unwrap()?;
/// # node.shutdown().await;
/// # Ok(()) }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "nothing is tried until `run`"]
pub struct Retry {
    attempts: usize,
    within: Duration,
    first: Duration,
    longest: Duration,
}

impl Default for Retry {
    fn default() -> Self {
        Self::new()
    }
}

impl Retry {
    /// Five attempts within ten seconds, with pauses from 50 ms to 2 s.
    pub const fn new() -> Self {
        Self {
            attempts: 5,
            within: Duration::from_secs(10),
            first: Duration::from_millis(50),
            longest: Duration::from_secs(2),
        }
    }

    /// Sets how often it is tried, the first time included. The default is 5; 0 counts as 1.
    pub fn attempts(mut self, attempts: usize) -> Self {
        self.attempts = attempts.max(1);
        self
    }

    /// Sets for how long it is tried again, from the start: no attempt begins later. The default is 10 s; more than a year
    /// counts as a year.
    ///
    /// An attempt that has begun is waited for, because to give it up may leave something half done: it should have a
    /// deadline of its own, as calls do.
    pub fn within(mut self, time: Duration) -> Self {
        self.within = time.min(LONGEST);
        self
    }

    /// Sets the first pause, and the longest. The default is 50 ms and 2 s; a longest below the first counts as the first.
    /// With the part that is added by chance a pause may last up to twice as long.
    pub fn pauses(mut self, first: Duration, longest: Duration) -> Self {
        self.first = first.min(LONGEST);
        self.longest = longest.min(LONGEST).max(self.first);
        self
    }

    /// Tries until it is done, fails in a way that may have had an effect or will not pass, or attempts or time are over.
    ///
    /// # Errors
    /// The error of the last attempt.
    ///
    /// # Cancel safety
    /// That of the attempt under way; a pause that is dropped leaves nothing behind.
    pub async fn run<T, E, F, Fut>(self, attempt: F) -> Result<T, E>
    where
        E: HasEffect,
        F: FnMut() -> Fut,
        Fut: Future<Output = Result<T, E>>,
    {
        let begun = Instant::now();
        let pauses = ExponentialBuilder::new()
            .with_jitter()
            .with_min_delay(self.first)
            .with_max_delay(self.longest)
            .with_max_times(self.attempts - 1);
        attempt
            .retry(pauses)
            .sleep(tokio::time::sleep)
            .when(|error| error.effect() == Effect::NotDone && !error.is_lasting())
            .adjust(|_, pause| pause.filter(|pause| begun.elapsed() + *pause <= self.within))
            .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{CallError, Error, NamedSendError, SendError};

    fn millis(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    /// Fails so often, with that error; counts.
    async fn fails(retry: Retry, times: usize, error: CallError) -> (Result<usize, CallError>, usize) {
        let mut tried = 0;
        let outcome = retry.run(|| {
            tried += 1;
            std::future::ready(if tried > times { Ok(tried) } else { Err(error.clone()) })
        });
        (outcome.await, tried)
    }

    #[tokio::test(start_paused = true)]
    async fn attempts_are_as_many_as_they_are() {
        let retry = Retry::new().attempts(3);
        assert_eq!(fails(retry, 0, CallError::Overloaded).await, (Ok(1), 1));
        assert_eq!(fails(retry, 2, CallError::Overloaded).await, (Ok(3), 3));
        assert_eq!(fails(retry, 3, CallError::Overloaded).await, (Err(CallError::Overloaded), 3));
        for attempts in [0, 1] {
            let once = Retry::new().attempts(attempts);
            assert_eq!(fails(once, 1, CallError::Overloaded).await, (Err(CallError::Overloaded), 1));
        }
    }

    /// What may have been done, and what will not pass, is not tried again.
    #[tokio::test(start_paused = true)]
    async fn only_what_was_not_done_is_tried_again() {
        let begun = Instant::now();
        for error in [
            CallError::Timeout(millis(1)),
            CallError::Panicked,
            CallError::Cancelled,
            CallError::BadAnswer("x".into()),
            CallError::TooLarge { size: 2, max: 1 },
            CallError::Encode("x".into()),
            CallError::Undecodable,
            CallError::Mismatch("x".into()),
        ] {
            assert_eq!(fails(Retry::new(), 1, error.clone()).await, (Err(error), 1));
        }
        assert_eq!(begun.elapsed(), Duration::ZERO, "nor is anything waited for");
        for error in [CallError::ShuttingDown, CallError::NoSuchMethod("x".into()), CallError::Overloaded] {
            assert_eq!(fails(Retry::new(), 1, error).await, (Ok(2), 2));
        }
    }

    /// Whatever the error is wrapped in, it is judged by what it says.
    #[test]
    fn wrapped_errors_say_the_same() {
        let lasting = SendError::TooLarge { size: 2, max: 1 };
        assert!(lasting.is_lasting() && NamedSendError::Send(lasting.clone()).is_lasting());
        assert!(Error::from(NamedSendError::Send(lasting)).is_lasting());
        assert!(!Error::from(SendError::Full).is_lasting());
        assert_eq!(HasEffect::effect(&Error::from(CallError::Panicked)), Effect::Unknown);
    }

    /// Each pause is at least as long as said and less than twice as long.
    #[tokio::test(start_paused = true)]
    async fn pauses_double_up_to_the_longest() {
        let retry = Retry::new().attempts(6).pauses(millis(100), millis(400)).within(LONGEST);
        let mut times = vec![];
        let tried = retry.run(|| {
            times.push(Instant::now());
            std::future::ready(Err::<(), _>(CallError::Overloaded))
        });
        assert_eq!(tried.await, Err(CallError::Overloaded));
        let pauses: Vec<_> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
        for (pause, least) in pauses.iter().zip([100, 200, 400, 400, 400].map(millis)) {
            assert!((least..=2 * least + millis(1)).contains(pause), "{pauses:?}");
        }
        assert_eq!(pauses.len(), 5);
        let odd = Retry::new().pauses(millis(100), millis(1));
        assert_eq!((odd.first, odd.longest), (millis(100), millis(100)));
    }

    /// No attempt begins when the time is over; one that has begun is waited for.
    #[tokio::test(start_paused = true)]
    async fn time_is_over_when_it_is_over() {
        let retry = Retry::new().attempts(1000).pauses(millis(10), millis(10)).within(millis(500));
        let begun = Instant::now();
        let mut last = Duration::ZERO;
        let tried = retry.run(|| {
            last = begun.elapsed();
            async {
                tokio::time::sleep(millis(90)).await;
                Err::<(), _>(CallError::Overloaded)
            }
        });
        assert_eq!(tried.await, Err(CallError::Overloaded));
        assert!((millis(390)..=millis(500)).contains(&last), "{last:?}");
        assert_eq!(begun.elapsed(), last + millis(90));
    }
}
