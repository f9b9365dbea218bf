//! Does an exchange still move? One on which nothing moves is given up, and one that drips, too. One that is merely slow isn't: no time bounds the whole.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::{StreamExt as _, stream};
use reqwest::header::CONTENT_LENGTH;
use reqwest::{Body, Client, Request, Response};

use super::RegistryError;
use super::exchange::Subject;

/// What moves at least in an idle timeout in which we wait for it: some 550 bytes a second with the default of two minutes. Any link gives that much, and a server that
/// gives less holds a build for days.
pub(super) const SLOWEST_BYTES: usize = 64 << 10;
/// What the connection takes of a request's body at once.
const PART_BYTES: usize = 16 << 10;

/// Sends the request, with `body` unless that is empty; the answer's head.
///
/// # Errors
/// Transient: no connection, or one that broke, stands still or drips.
pub(super) async fn send(
    subject: Subject<'_>,
    http: &Client,
    mut request: Request,
    body: Bytes,
    idle_timeout: Duration,
) -> Result<Response, RegistryError> {
    let taken = Arc::new(AtomicUsize::new(0));
    let mut left = body.len();
    if left > 0 {
        request.headers_mut().insert(CONTENT_LENGTH, left.into());
        *request.body_mut() = Some(counted(body, Arc::clone(&taken)));
    }
    let answer = http.execute(request);
    tokio::pin!(answer);
    loop {
        if let Ok(answer) = tokio::time::timeout(idle_timeout, &mut answer).await {
            return answer.map_err(|error| subject.transport(error));
        }
        let moved = taken.swap(0, Ordering::Relaxed);
        if left == 0 || moved < SLOWEST_BYTES.min(left) {
            return Err(subject.slow(moved, idle_timeout));
        }
        left -= moved;
    }
}

/// A body that says how much of it was taken.
fn counted(whole: Bytes, taken: Arc<AtomicUsize>) -> Body {
    Body::wrap_stream(stream::unfold(whole, move |mut rest| {
        let taken = Arc::clone(&taken);
        async move {
            let part = rest.split_to(PART_BYTES.min(rest.len()));
            taken.fetch_add(part.len(), Ordering::Relaxed);
            (!part.is_empty()).then_some((Ok::<_, std::convert::Infallible>(part), rest))
        }
    }))
}

/// The body of an answer.
pub(crate) struct Incoming {
    body: stream::BoxStream<'static, reqwest::Result<Bytes>>,
    idle_timeout: Duration,
    /// For the bytes beside; without the time in which nobody asked for any.
    waited: Duration,
    bytes: usize,
}

impl std::fmt::Debug for Incoming {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Incoming(…)")
    }
}

impl Incoming {
    pub(crate) fn of(response: Response, idle_timeout: Duration) -> Self {
        Self {
            body: response.bytes_stream().boxed(),
            idle_timeout,
            waited: Duration::ZERO,
            bytes: 0,
        }
    }

    /// The next bytes; none at the end.
    ///
    /// # Errors
    /// Transient: the connection broke, stands still or drips.
    pub(crate) async fn next(
        &mut self,
        subject: Subject<'_>,
    ) -> Result<Option<Bytes>, RegistryError> {
        let began = Instant::now();
        let patience = self.idle_timeout.saturating_sub(self.waited);
        let next = tokio::time::timeout(patience, self.body.next()).await;
        self.waited += began.elapsed();
        let Ok(next) = next else {
            return Err(subject.slow(self.bytes, self.waited));
        };
        let Some(part) = next.transpose().map_err(|error| subject.transport(error))? else {
            return Ok(None);
        };
        self.bytes += part.len();
        if self.bytes >= SLOWEST_BYTES {
            (self.waited, self.bytes) = (Duration::ZERO, 0);
        }
        Ok(Some(part))
    }
}
