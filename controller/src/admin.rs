//! Is this process alive and ready, and what does it count? Answered over HTTP.
//!
//! | path | 200 | 503 |
//! | --- | --- | --- |
//! | `/healthz` | the process works | its heart, once it has begun to beat, stands still |
//! | `/readyz` | caches are loaded; a standby replica is ready too | they aren't |
//! | `/metrics` | always, OpenMetrics text | – |
//!
//! Only GET and HEAD; no TLS and no secrets. A client that is slow or silent holds one of a bounded number of
//! connections for a bounded time.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use strata_builder::error::{Class, Classify};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;

/// Without a beat for this long the process is stuck. Far above the seconds between two beats, as a
/// restart costs more than a slow minute on a starved node.
const BEAT_BOUND: Duration = Duration::from_secs(120);
/// Kubelet and a scraper have one each; the rest is for people and for broken clients.
const CONNECTIONS: usize = 64;
/// From a connection's start, or from its last answer, to the end of the next request's header. Above the
/// usual scrape interval of 30 s, so that a scraper keeps its connection.
const HEADER_TIMEOUT: Duration = Duration::from_secs(40);
/// A connection is closed after this long, whatever it does.
const CONNECTION_LIFETIME: Duration = Duration::from_secs(600);
/// At the stop, running answers get this long.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);
/// After a failed accept: as a rule file descriptors have run out, and at once they still are.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What the process knows about itself. Clones share it.
#[derive(Clone, Debug)]
pub struct Health(Arc<State>);

#[derive(Debug)]
struct State {
    born: Instant,
    ready: AtomicBool,
    leading: AtomicBool,
    /// Milliseconds from `born` to the last beat, plus 1; 0 before the first.
    beat: AtomicU64,
}

impl Default for Health {
    fn default() -> Self {
        Self(Arc::new(State {
            born: Instant::now(),
            ready: AtomicBool::new(false),
            leading: AtomicBool::new(false),
            beat: AtomicU64::new(0),
        }))
    }
}

impl Health {
    /// Alive, not ready, not leading.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Caches are loaded, or no longer.
    pub fn set_ready(&self, ready: bool) {
        self.0.ready.store(ready, Ordering::Relaxed);
    }

    /// This replica works, or waits for the one that does. Shown; a standby is as ready as a leader.
    pub fn set_leading(&self, leading: bool) {
        self.0.leading.store(leading, Ordering::Relaxed);
    }

    /// Work makes progress. The first beat is a promise of one at least every two minutes.
    pub fn beat(&self) {
        self.beat_at(Instant::now());
    }

    fn beat_at(&self, now: Instant) {
        let age = now.saturating_duration_since(self.0.born).as_millis();
        let beat = u64::try_from(age).unwrap_or(u64::MAX).saturating_add(1);
        self.0.beat.store(beat, Ordering::Relaxed);
    }

    fn is_alive(&self, now: Instant) -> bool {
        match self.0.beat.load(Ordering::Relaxed) {
            0 => true,
            beat => {
                let last = self.0.born + Duration::from_millis(beat - 1);
                now.saturating_duration_since(last) <= BEAT_BOUND
            }
        }
    }

    fn healthz(&self, now: Instant) -> (StatusCode, &'static str) {
        if self.is_alive(now) {
            (StatusCode::OK, "ok\n")
        } else {
            (StatusCode::SERVICE_UNAVAILABLE, "no progress\n")
        }
    }

    fn readyz(&self) -> (StatusCode, &'static str) {
        let ready = self.0.ready.load(Ordering::Relaxed);
        let leading = self.0.leading.load(Ordering::Relaxed);
        match (ready, leading) {
            (true, true) => (StatusCode::OK, "ok, leading\n"),
            (true, false) => (StatusCode::OK, "ok, standby\n"),
            (false, _) => (StatusCode::SERVICE_UNAVAILABLE, "caches are not loaded\n"),
        }
    }
}

/// The server can't run.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// The address isn't this machine's, or taken.
    #[error("can't listen on {listen} (--listen)")]
    Listen {
        /// As set.
        listen: SocketAddr,
        /// The kernel's answer.
        source: std::io::Error,
    },
}

impl Classify for AdminError {
    fn class(&self) -> Class {
        match self {
            AdminError::Listen { .. } => Class::INTERNAL,
        }
    }
}

/// Answers on `listen` until `shutdown`; then finishes running answers.
///
/// # Errors
///
/// Permanent: nothing can listen there.
///
/// # Cancel safety
///
/// Dropping it closes all connections at once.
pub async fn serve(
    listen: SocketAddr,
    health: Health,
    metrics: Metrics,
    shutdown: CancellationToken,
) -> Result<(), AdminError> {
    let listener = TcpListener::bind(listen)
        .await
        .map_err(|source| AdminError::Listen { listen, source })?;
    tracing::info!(address = %listen, "listening");
    accept(listener, health, metrics, shutdown).await;
    Ok(())
}

async fn accept(
    listener: TcpListener,
    health: Health,
    metrics: Metrics,
    shutdown: CancellationToken,
) {
    let free = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let next = async {
            // more than these wait in the kernel's queue
            let permit = Arc::clone(&free).acquire_owned().await;
            (permit, listener.accept().await)
        };
        let (permit, accepted) = tokio::select! {
            () = shutdown.cancelled() => break,
            next = next => next,
        };
        match accepted {
            Ok((stream, _peer)) => {
                let (health, metrics, shutdown) =
                    (health.clone(), metrics.clone(), shutdown.clone());
                connections.spawn(async move {
                    connection(stream, health, metrics, shutdown).await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::debug!(%error, "connection not accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
        while connections.try_join_next().is_some() {}
    }
    drop(listener);
    let all = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(STOP_TIMEOUT, all).await.is_err() {
        tracing::debug!("connections that would not end are closed");
    }
}

async fn connection(
    stream: TcpStream,
    health: Health,
    metrics: Metrics,
    shutdown: CancellationToken,
) {
    let service = service_fn(move |request: Request<Incoming>| {
        let response = answer(request.method(), request.uri().path(), &health, &metrics);
        std::future::ready(Ok::<_, Infallible>(response))
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let lifetime = tokio::time::sleep(CONNECTION_LIFETIME);
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
        () = lifetime => return,
    };
    if let Err(error) = result {
        // the client's doing: it went away, was silent, or doesn't speak HTTP
        tracing::debug!(%error, "connection ended");
    }
}

fn answer(
    method: &Method,
    path: &str,
    health: &Health,
    metrics: &Metrics,
) -> Response<Full<Bytes>> {
    const PLAIN: &str = "text/plain; charset=utf-8";
    const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    let is_read = method == Method::GET || method == Method::HEAD;
    let (status, content_type, body) = match path {
        "/healthz" | "/readyz" | "/metrics" if !is_read => (
            StatusCode::METHOD_NOT_ALLOWED,
            PLAIN,
            Bytes::from_static(b"only GET and HEAD\n"),
        ),
        "/healthz" => {
            let (status, text) = health.healthz(Instant::now());
            (status, PLAIN, Bytes::from_static(text.as_bytes()))
        }
        "/readyz" => {
            let (status, text) = health.readyz();
            (status, PLAIN, Bytes::from_static(text.as_bytes()))
        }
        "/metrics" => (StatusCode::OK, OPEN_METRICS, Bytes::from(metrics.encode())),
        _ => (
            StatusCode::NOT_FOUND,
            PLAIN,
            Bytes::from_static(b"/healthz /readyz /metrics\n"),
        ),
    };
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if status == StatusCode::METHOD_NOT_ALLOWED {
        headers.insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    }
    response
}

#[cfg(test)]
mod tests;
