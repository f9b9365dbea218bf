//! The only retry loop around HTTP exchanges: what is tried again, how often and after how long.

use std::future::Future;
use std::time::{Duration, Instant};

use super::error::RegistryError;
use crate::error::{Class, Classify as _};

/// How often and how long one exchange is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// In all, the first included.
    pub attempts: u32,
    /// Before the second attempt; doubles with each.
    pub first_delay: Duration,
    /// No waiting time is longer, whatever a registry asks for.
    pub longest_delay: Duration,
}

/// A registry that restarts is away for a few seconds; one that is gone should fail the attempt within a minute or two, since the pod is tried again by its Job.
pub const DEFAULT_BOUNDS: Bounds = Bounds {
    attempts: 6,
    first_delay: Duration::from_millis(500),
    longest_delay: Duration::from_secs(30),
};

/// A mirror has another place behind it: one more attempt for a lost connection, and on.
pub(super) const BOUNDS_OF_A_MIRROR: Bounds = Bounds {
    attempts: 2,
    ..DEFAULT_BOUNDS
};

impl Bounds {
    /// How long to wait after attempt number `attempt` (from 1) failed; `jitter` is from 0 to 1.
    #[must_use]
    pub fn delay(&self, attempt: u32, asked: Option<Duration>, jitter: f64) -> Duration {
        let doubled = self
            .first_delay
            .saturating_mul(1 << attempt.saturating_sub(1).min(16));
        // half of it is fixed, so that many builds that failed together do not come back together
        let own = doubled
            .min(self.longest_delay)
            .mul_f64(0.5 + jitter.clamp(0.0, 1.0) / 2.0);
        own.max(asked.unwrap_or_default().min(self.longest_delay))
    }
}

/// Performs `exchange` until it succeeds, fails for good, or the bounds are reached.
///
/// # Errors
/// The exchange's error; one that was transient to the end says how often and how long it was tried.
pub(super) async fn retry<T, F, Fut>(bounds: &Bounds, mut exchange: F) -> Result<T, RegistryError>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T, RegistryError>>,
{
    let start = Instant::now();
    let mut attempt = 1;
    loop {
        let error = match exchange().await {
            Ok(value) => return Ok(value),
            Err(error) if error.class() != Class::Transient || error.is_lost_upload() => {
                return Err(error);
            }
            Err(error) => error,
        };
        if attempt >= bounds.attempts {
            return Err(RegistryError::GaveUp {
                attempts: attempt,
                elapsed: start.elapsed(),
                source: Box::new(error),
            });
        }
        let delay = bounds.delay(attempt, error.retry_after(), jitter());
        tracing::warn!(attempt, delay_ms = delay.as_millis() as u64, error = %crate::error::chain(&error), "registry exchange failed, trying again");
        tokio::time::sleep(delay).await;
        attempt += 1;
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
            (30, None, 1.0, ms(30_000)),
            (1, Some(ms(7000)), 1.0, ms(7000)),
            (1, Some(ms(3_600_000)), 1.0, ms(30_000)),
            (4, Some(ms(1)), 1.0, ms(4000)),
        ] {
            assert_eq!(
                bounds.delay(attempt, asked, jitter),
                expected,
                "attempt {attempt}, asked {asked:?}, jitter {jitter}"
            );
        }
    }
}
