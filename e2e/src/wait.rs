//! Waiting for a condition with a deadline.

use std::future::Future;
use std::sync::Once;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use tokio::process::Command;

/// Long enough for a build on a machine that does much else at the same time.
pub const BUILD: Duration = Duration::from_secs(300);

/// Long enough for the controller to react on such a machine.
pub const REACTION: Duration = Duration::from_secs(60);

/// Between two looks: short beside what is waited for, long beside one request.
const POLL: Duration = Duration::from_millis(100);

/// The first `Some` that `look` gives, asked again until `limit` has passed.
///
/// # Errors
/// If `look` fails, or nothing came within `limit`; the message holds `what`.
pub async fn eventually<T, F, Fut>(what: &str, limit: Duration, mut look: F) -> Result<T>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<Option<T>>>,
{
    let start = Instant::now();
    loop {
        if let Some(found) = look().await? {
            return Ok(found);
        }
        if start.elapsed() > limit {
            tell_state().await;
            bail!("waited {} s in vain for {what}", limit.as_secs());
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Prints what the cluster does, the first time that a program waits in vain: that tells more than what didn't come.
async fn tell_state() {
    static TOLD: Once = Once::new();
    if TOLD.is_completed() {
        return;
    }
    TOLD.call_once(|| {});
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/cluster/state.sh");
    match Command::new(script).output().await {
        Ok(told) => eprintln!("{}", String::from_utf8_lossy(&told.stdout)),
        Err(error) => eprintln!("{script}: {error}"),
    }
}

/// Looks for `span` and fails as soon as `wrong` gives a reason: for what must not happen.
///
/// # Errors
/// The reason that `wrong` gave, or its own error.
pub async fn never<F, Fut>(what: &str, span: Duration, mut wrong: F) -> Result<()>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<Option<String>>>,
{
    let start = Instant::now();
    while start.elapsed() < span {
        if let Some(reason) = wrong().await? {
            bail!("{what}: {reason}");
        }
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}
