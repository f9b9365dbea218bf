//! How long does an object wait after a failure?
//!
//! The wait depends on who can end the failure and on how often it came in a row. A change of the object or of
//! something it names ends the wait earlier, by its watch; this is only for what no watch tells.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use strata_builder::error::Class;

/// First wait after another writer was faster: its change is told by then, unless the watch lags behind.
const CONFLICT_FIRST: Duration = Duration::from_millis(50);
/// Longest of these waits, which double: a watch that lags is caught up with soon, and a hundred objects that wait for it ask the apiserver some 20
/// times a second.
const CONFLICT_LAST: Duration = Duration::from_secs(5);
/// First wait of a transient failure; the next ones double it. Short, as most are a connection that was just closed.
const TRANSIENT_FIRST: Duration = Duration::from_millis(500);
/// Longest wait of a transient failure: what an apiserver or a registry that comes back is found after.
const TRANSIENT_LAST: Duration = Duration::from_secs(60);
/// A right in a registry is granted without an event that we could see.
const USER: Duration = Duration::from_secs(60);
/// Nothing is expected to change; a new version of this program starts with a clean list anyway.
const PERMANENT: Duration = Duration::from_secs(300);
/// Waits are shortened by up to this part in 1000, a constant of the key, so that what failed together
/// doesn't come back together.
const JITTER_PER_MILLE: u64 = 200;

/// Failures in a row of every object that had one.
#[derive(Debug, Default)]
pub struct Backoff {
    failures: Mutex<HashMap<String, Failures>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Failures {
    kind: Kind,
    count: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Conflict,
    Transient,
    User,
    Permanent,
}

impl Kind {
    const fn of(class: Class) -> Self {
        match class {
            Class::Transient => Kind::Transient,
            Class::User(_) => Kind::User,
            Class::Permanent(_) => Kind::Permanent,
        }
    }
}

impl Backoff {
    /// An empty list.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Counts a failure of `key`, a UID or a name; how long to wait before the next try.
    pub fn failed(&self, key: &str, class: Class) -> Duration {
        self.count(key, Kind::of(class))
    }

    /// Counts that another writer was faster than a pass over `key`; how long to wait before the next.
    pub fn conflicted(&self, key: &str) -> Duration {
        self.count(key, Kind::Conflict)
    }

    fn count(&self, key: &str, kind: Kind) -> Duration {
        let mut all = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let count = match all.get(key) {
            Some(before) if before.kind == kind => before.count.saturating_add(1),
            // a failure of another kind begins a row of its own
            Some(_) | None => 1,
        };
        all.insert(key.to_owned(), Failures { kind, count });
        jittered(delay(kind, count), key)
    }

    /// Ends the row of failures of `key`.
    pub fn succeeded(&self, key: &str) {
        self.forget(key);
    }

    /// The object is gone.
    pub fn forget(&self, key: &str) {
        self.failures
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(key);
    }
}

/// The wait after the `count`th failure in a row, from 1.
fn delay(kind: Kind, count: u32) -> Duration {
    let doubled = |first: Duration, last: Duration| {
        let doublings = count.saturating_sub(1).min(16);
        first.saturating_mul(1 << doublings).min(last)
    };
    match kind {
        Kind::Conflict => doubled(CONFLICT_FIRST, CONFLICT_LAST),
        Kind::Transient => doubled(TRANSIENT_FIRST, TRANSIENT_LAST),
        Kind::User => USER,
        Kind::Permanent => PERMANENT,
    }
}

fn jittered(delay: Duration, key: &str) -> Duration {
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    let less_per_mille = hasher.finish() % (JITTER_PER_MILLE + 1);
    delay.mul_f64((1000 - less_per_mille) as f64 / 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_depends_on_the_class_and_on_the_failures_in_a_row() {
        let of = Kind::of;
        for (kind, count, milliseconds) in [
            (Kind::Conflict, 1, 50),
            (Kind::Conflict, 2, 100),
            (Kind::Conflict, 7, 3_200),
            (Kind::Conflict, 8, 5_000),
            (Kind::Conflict, u32::MAX, 5_000),
            (of(Class::Transient), 1, 500),
            (of(Class::Transient), 2, 1_000),
            (of(Class::Transient), 3, 2_000),
            (of(Class::Transient), 7, 32_000),
            (of(Class::Transient), 8, 60_000),
            (of(Class::Transient), u32::MAX, 60_000),
            (of(Class::CONTENT), 1, 60_000),
            (of(Class::RIGHTS), 9, 60_000),
            (of(Class::CONTRACT), 1, 300_000),
            (of(Class::INTERNAL), 9, 300_000),
        ] {
            assert_eq!(
                delay(kind, count),
                Duration::from_millis(milliseconds),
                "{kind:?} {count}"
            );
        }
    }

    #[test]
    fn jitter_shortens_by_a_fifth_at_most_and_is_the_same_for_the_same_key() {
        let second = Duration::from_secs(1);
        let waits: Vec<Duration> = (0..200)
            .map(|n| jittered(second, &format!("key-{n}")))
            .collect();
        assert!(
            waits
                .iter()
                .all(|wait| (Duration::from_millis(800)..=second).contains(wait))
        );
        let mut different = waits.clone();
        different.sort_unstable();
        different.dedup();
        assert!(different.len() > 100, "{}", different.len());
        assert_eq!(jittered(second, "key-7"), waits[7]);
    }

    #[test]
    fn a_row_ends_with_success_with_another_class_and_with_the_object() {
        let backoff = Backoff::new();
        let first = backoff.failed("a", Class::Transient);
        assert_eq!(backoff.failed("a", Class::Transient), first * 2);
        backoff.succeeded("a");
        assert_eq!(backoff.failed("a", Class::Transient), first);
        backoff.failed("a", Class::Transient);
        backoff.failed("a", Class::RIGHTS);
        assert_eq!(backoff.failed("a", Class::Transient), first);
        let overtaken = backoff.conflicted("a");
        assert!(overtaken < first);
        assert_eq!(backoff.conflicted("a"), overtaken * 2);
        assert_eq!(backoff.failed("a", Class::Transient), first);
        backoff.failed("b", Class::Transient);
        backoff.forget("a");
        backoff.forget("b");
        assert!(backoff.failures.lock().unwrap().is_empty());
    }
}
