//! What is tried again, how often and after how long? The only answer to it around HTTP: [`retry`] for one exchange, [`Trying`] for what goes on where it broke.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::error::RegistryError;
use crate::error::{Class, Classify as _};

/// How often and how long something is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// At least so many attempts, the first included.
    pub attempts: u32,
    /// And more of them until so long after the first one failed.
    pub patience: Duration,
    /// Before the second attempt; doubles with each.
    pub first_delay: Duration,
    /// No pause of our own choice is longer.
    pub longest_delay: Duration,
}

/// A registry that restarts, or moves to another node, is away for a minute; one that is gone should fail the attempt soon after, since the pod is tried again by its Job.
pub const DEFAULT_BOUNDS: Bounds = Bounds {
    attempts: 3,
    patience: Duration::from_secs(100),
    first_delay: Duration::from_millis(500),
    longest_delay: Duration::from_secs(10),
};

impl Bounds {
    /// Those of a place that has another one behind it: one more attempt for a lost connection, and on.
    pub(super) fn of_a_mirror(self) -> Self {
        Self {
            attempts: 2,
            patience: Duration::ZERO,
            ..self
        }
    }

    /// How long to wait after attempt number `attempt` (from 1) failed; `asked` is what the registry wants, `jitter` is from 0 to 1.
    #[must_use]
    pub fn delay(&self, attempt: u32, asked: Option<Duration>, jitter: f64) -> Duration {
        let doubled = self
            .first_delay
            .saturating_mul(1 << attempt.saturating_sub(1).min(16));
        // half of it is fixed, so that many builds that failed together do not come back together
        let own = doubled
            .min(self.longest_delay)
            .mul_f64(0.5 + jitter.clamp(0.0, 1.0) / 2.0);
        let longest = self.longest_delay.max(self.patience);
        own.max(asked.unwrap_or_default().min(longest))
    }
}

/// How often something was tried again, by what had gone wrong. Clones count together.
#[derive(Clone, Debug, Default)]
pub struct Retries(Arc<Mutex<BTreeMap<String, u32>>>);

impl Retries {
    /// Adds up to `counts`.
    pub fn add_to(&self, counts: &mut BTreeMap<String, u32>) {
        for (cause, count) in &*self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            *counts.entry(cause.clone()).or_default() += count;
        }
    }

    fn count(&self, cause: String) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *counts.entry(cause).or_default() += 1;
    }
}

/// Attempts at one thing.
#[derive(Debug)]
pub(crate) struct Trying {
    bounds: Bounds,
    retries: Retries,
    attempts: u32,
    /// The first failure.
    since: Option<Instant>,
}

impl Trying {
    pub(super) fn new(bounds: Bounds, retries: Retries) -> Self {
        Self {
            bounds,
            retries,
            attempts: 0,
            since: None,
        }
    }

    /// An attempt has failed at `now` for such a `cause`: how long to wait before the next one; none if it was the last.
    pub(crate) fn failed(
        &mut self,
        cause: String,
        now: Instant,
        asked: Option<Duration>,
        jitter: f64,
    ) -> Option<Duration> {
        self.attempts += 1;
        let since = *self.since.get_or_insert(now);
        let is_last = self.attempts >= self.bounds.attempts
            && now.duration_since(since) >= self.bounds.patience;
        if is_last {
            return None;
        }
        self.retries.count(cause);
        Some(self.bounds.delay(self.attempts, asked, jitter))
    }

    /// What was tried has come forward: failures from now on are counted anew.
    pub(super) fn progressed(&mut self) {
        (self.attempts, self.since) = (0, None);
    }

    /// Waits before the next attempt.
    ///
    /// # Errors
    /// The failure itself if no further attempt would end otherwise; after the last attempt also how often and how long it was tried.
    pub(super) async fn pause(&mut self, error: RegistryError) -> Result<(), RegistryError> {
        if error.class() != Class::Transient || error.is_lost_upload() {
            return Err(error);
        }
        let now = Instant::now();
        // Other bytes than those asked for are no outage that passes with time.
        if let RegistryError::WrongDigest { .. } = error {
            self.bounds.patience = Duration::ZERO;
        }
        match self.failed(error.cause(), now, error.retry_after(), jitter()) {
            Some(delay) => {
                tracing::warn!(
                    "{}: trying again in {:.1} s (attempt {} failed)",
                    crate::error::chain(&error),
                    delay.as_secs_f32(),
                    self.attempts
                );
                tokio::time::sleep(delay).await;
                Ok(())
            }
            None => Err(RegistryError::GaveUp {
                attempts: self.attempts,
                elapsed: self.since.map_or(Duration::ZERO, |since| now - since),
                source: Box::new(error),
            }),
        }
    }
}

/// Performs `exchange` until it succeeds, fails for good, or the bounds are reached.
///
/// # Errors
/// The exchange's error; one that was transient to the end says how often and how long it was tried.
pub(super) async fn retry<T, F, Fut>(
    mut trying: Trying,
    mut exchange: F,
) -> Result<T, RegistryError>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T, RegistryError>>,
{
    loop {
        match exchange().await {
            Ok(value) => return Ok(value),
            Err(error) => trying.pause(error).await?,
        }
    }
}

/// From 0 to 1; the hasher's keys are random in each process and differ at each call.
pub(crate) fn jitter() -> f64 {
    use std::hash::{BuildHasher as _, RandomState};
    (RandomState::new().hash_one(0u8) >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_doubles_up_to_the_bound_and_honours_what_the_registry_asks_for() {
        let ms = Duration::from_millis;
        let bounds = DEFAULT_BOUNDS;
        for (attempt, asked, jitter, expected) in [
            (1, None, 1.0, ms(500)),
            (1, None, 0.0, ms(250)),
            (2, None, 1.0, ms(1000)),
            (3, None, 1.0, ms(2000)),
            (30, None, 1.0, ms(10_000)),
            (1, Some(ms(7000)), 1.0, ms(7000)),
            (1, Some(ms(60_000)), 1.0, ms(60_000)),
            (1, Some(ms(3_600_000)), 1.0, ms(100_000)),
            (4, Some(ms(1)), 1.0, ms(4000)),
        ] {
            assert_eq!(
                bounds.delay(attempt, asked, jitter),
                expected,
                "attempt {attempt}, asked {asked:?}, jitter {jitter}"
            );
        }
    }

    /// When attempts begin, in milliseconds, if each takes `attempt` and fails, and when it is given up.
    fn attempts(bounds: Bounds, attempt: Duration, jitter: f64) -> (Vec<u64>, u64) {
        let began = Instant::now();
        let retries = Retries::default();
        let mut trying = Trying::new(bounds, retries.clone());
        let (mut now, mut begun) = (Duration::ZERO, Vec::new());
        loop {
            begun.push(u64::try_from(now.as_millis()).unwrap());
            now += attempt;
            match trying.failed("slow".to_owned(), began + now, None, jitter) {
                Some(delay) => now += delay,
                None => break,
            }
        }
        let mut counted = BTreeMap::new();
        retries.add_to(&mut counted);
        // The first attempt is none that was made again.
        assert_eq!(counted["slow"] as usize, begun.len() - 1);
        (begun, u64::try_from(now.as_millis()).unwrap())
    }

    #[test]
    fn a_minute_of_outage_passes_at_any_jitter_and_one_without_end_is_given_up() {
        for jitter in [0.0, 0.5, 1.0] {
            for takes in [0, 1, 10, 120] {
                let (begun, ended) = attempts(DEFAULT_BOUNDS, Duration::from_secs(takes), jitter);
                assert!(begun.last() > Some(&90_000), "{takes} {jitter}: {begun:?}");
                assert!(begun.len() >= 3 && begun.len() < 40, "{begun:?}");
                assert!(ended < 400_000, "{takes} {jitter}: {ended}");
            }
        }
        let mirror = DEFAULT_BOUNDS.of_a_mirror();
        assert_eq!(attempts(mirror, Duration::ZERO, 1.0), (vec![0, 500], 500));
    }
}
