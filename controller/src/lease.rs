//! Which replica works? The one that holds a Lease, by the rules of client-go.
//!
//! The Lease is the incumbent's, so of it and us one works and the other waits. Whether a Lease has expired is judged
//! by our own monotonic clock, from the moment on when we last saw it change, and by the duration that its holder
//! wrote into it; nobody's wall clock matters. Every write carries the version that it was decided on, so of several
//! candidates one wins. The identity is the pod's name: a restarted container finds its own Lease and goes on at once.
//!
//! Existing crates were looked at: kube-leader-election and kubert compare wall clocks, kube-lease-manager writes
//! by server-side apply, with which a client-go neighbour's updates conflict.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::{Api, PostParams};
use kube::{Client, ResourceExt as _};
use strata_builder::error::{Class, Classify, chain};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::api::{FIELD_MANAGER, LEASE_NAME};

/// Others may take the Lease when it hasn't changed for this long. With a crashed node's pod this is how long nobody
/// works, so it is far below the incumbent's 137 s; yet it survives an apiserver that is restarted (some 10 s).
const LEASE_DURATION: Duration = Duration::from_secs(30);
/// A holder that could not renew for this long gives up: 10 s before others may take over, which is room for
/// requests under way and for the process to end.
const RENEW_DEADLINE: Duration = Duration::from_secs(20);
/// From one renewal to the next: three may fail before the deadline.
const RENEW_PERIOD: Duration = Duration::from_secs(5);
/// From one failed renewal to the next try.
const RETRY_PERIOD: Duration = Duration::from_secs(1);
/// A waiting replica reads the Lease this often: a released one is taken within a second, for one small read.
const POLL_PERIOD: Duration = Duration::from_secs(1);
/// Of one request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Written with the release, as client-go does: the next one need not wait even if it sees us as the holder.
const RELEASED_DURATION_SECONDS: i32 = 1;

/// The Lease can't be taken, and waiting doesn't help.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// The namespace is missing, or the ServiceAccount may not get, create and update Leases in it.
    #[error("can't {verb} lease {LEASE_NAME} in namespace {namespace}")]
    Request {
        /// get, create or update.
        verb: &'static str,
        /// Of the Lease.
        namespace: String,
        /// The apiserver's answer.
        source: Box<kube::Error>,
    },
    /// The apiserver doesn't answer.
    #[error(
        "no answer in {REQUEST_TIMEOUT:?} to {verb} lease {LEASE_NAME} in namespace {namespace}"
    )]
    Timeout {
        /// get, create or update.
        verb: &'static str,
        /// Of the Lease.
        namespace: String,
    },
}

impl LeaseError {
    /// The answer's HTTP status, if there was an answer.
    fn status(&self) -> Option<u16> {
        match self {
            LeaseError::Request { source, .. } => match source.as_ref() {
                kube::Error::Api(status) => Some(status.code),
                _ => None,
            },
            LeaseError::Timeout { .. } => None,
        }
    }

    /// Somebody else's write came first: the Lease was changed, created or deleted since it was read.
    fn is_overtaken(&self) -> bool {
        match self {
            LeaseError::Request { verb: "update", .. } => matches!(self.status(), Some(404 | 409)),
            LeaseError::Request { .. } | LeaseError::Timeout { .. } => self.status() == Some(409),
        }
    }
}

impl Classify for LeaseError {
    fn class(&self) -> Class {
        match (self, self.status()) {
            (LeaseError::Request { .. }, Some(403 | 404)) => Class::RIGHTS,
            (LeaseError::Request { .. }, Some(400 | 405 | 422)) => Class::INTERNAL,
            // conflicts, throttling, failures of the server, tokens that are being renewed, connections
            (LeaseError::Request { .. } | LeaseError::Timeout { .. }, _) => Class::Transient,
        }
    }
}

/// How [`Leadership::hold`] ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// Shut down, and the Lease given away.
    Released,
    /// Not renewed in time, or taken by somebody: another replica may work. End the process at once.
    Expired,
}

/// The Lease is ours until [`RENEW_DEADLINE`] after the last renewal.
#[derive(Debug)]
pub struct Leadership {
    lock: Lock,
    lease: Lease,
    /// Just before the last successful renewal was sent: what others saw was not earlier.
    renewed: Instant,
}

/// What may be done with a Lease.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Verdict {
    /// Take it: nobody holds it.
    Free,
    /// Take it: an earlier run of ours, or this one, holds it.
    Ours,
    /// Take it: its holder hasn't renewed it in time.
    Expired(String),
    /// Wait: somebody works.
    Held(String),
}

/// A Lease's spec and since when it has been so, by our clock.
#[derive(Clone, Debug)]
struct Seen {
    spec: LeaseSpec,
    since: Instant,
}

/// What `spec` looked like before, if it looked the same; otherwise it is new from `now` on.
fn observe(before: Option<Seen>, spec: &LeaseSpec, now: Instant) -> Seen {
    match before {
        Some(seen) if seen.spec == *spec => seen,
        Some(_) | None => Seen {
            spec: spec.clone(),
            since: now,
        },
    }
}

fn judge(seen: &Seen, identity: &str, now: Instant) -> Verdict {
    let holder = match seen.spec.holder_identity.as_deref() {
        None | Some("") => return Verdict::Free,
        Some(holder) if holder == identity => return Verdict::Ours,
        Some(holder) => holder.to_owned(),
    };
    // the holder's own; one that wrote none or nonsense gets ours
    let duration = seen
        .spec
        .lease_duration_seconds
        .and_then(|seconds| u64::try_from(seconds).ok())
        .filter(|seconds| *seconds > 0)
        .map_or(LEASE_DURATION, Duration::from_secs);
    if now.saturating_duration_since(seen.since) >= duration {
        Verdict::Expired(holder)
    } else {
        Verdict::Held(holder)
    }
}

/// `lease` held by `identity` from now on; what others wrote beside the spec's holder stays.
fn taken(mut lease: Lease, identity: &str, now: Timestamp) -> Lease {
    let spec = lease.spec.get_or_insert_default();
    if spec.holder_identity.as_deref() != Some(identity) {
        spec.acquire_time = Some(MicroTime(now));
        spec.lease_transitions = Some(spec.lease_transitions.map_or(0, |n| n.saturating_add(1)));
        spec.holder_identity = Some(identity.to_owned());
    }
    spec.lease_duration_seconds = i32::try_from(LEASE_DURATION.as_secs()).ok();
    spec.renew_time = Some(MicroTime(now));
    lease
}

/// `lease` held by nobody.
fn released(mut lease: Lease, now: Timestamp) -> Lease {
    let spec = lease.spec.get_or_insert_default();
    spec.holder_identity = Some(String::new());
    spec.lease_duration_seconds = Some(RELEASED_DURATION_SECONDS);
    spec.acquire_time = Some(MicroTime(now));
    spec.renew_time = Some(MicroTime(now));
    lease
}

/// The Lease on the apiserver, under our identity.
#[derive(Clone, Debug)]
struct Lock {
    leases: Api<Lease>,
    namespace: String,
    identity: String,
}

impl Lock {
    async fn request<T>(
        &self,
        verb: &'static str,
        request: impl Future<Output = Result<T, kube::Error>>,
    ) -> Result<T, LeaseError> {
        let namespace = self.namespace.clone();
        match timeout(REQUEST_TIMEOUT, request).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => Err(LeaseError::Request {
                verb,
                namespace,
                source: Box::new(error),
            }),
            Err(_elapsed) => Err(LeaseError::Timeout { verb, namespace }),
        }
    }

    async fn get(&self) -> Result<Option<Lease>, LeaseError> {
        self.request("get", self.leases.get_opt(LEASE_NAME)).await
    }

    /// Writes `lease`; fails with a conflict if the apiserver's version isn't the one that it was made of.
    async fn put(&self, lease: &Lease) -> Result<Lease, LeaseError> {
        let parameters = PostParams {
            field_manager: Some(FIELD_MANAGER.to_owned()),
            ..PostParams::default()
        };
        if lease.resource_version().is_none() {
            let request = self.leases.create(&parameters, lease);
            return self.request("create", request).await;
        }
        let request = self.leases.replace(LEASE_NAME, &parameters, lease);
        self.request("update", request).await
    }

    /// One look, and the write if it may be taken.
    async fn try_acquire(&self, seen: &mut Option<Seen>) -> Result<Attempt, LeaseError> {
        let found = self.get().await?;
        let now = Instant::now();
        let lease = match found {
            None => {
                *seen = None;
                Lease {
                    metadata: ObjectMeta {
                        name: Some(LEASE_NAME.to_owned()),
                        namespace: Some(self.namespace.clone()),
                        ..ObjectMeta::default()
                    },
                    spec: None,
                }
            }
            Some(lease) => {
                let spec = lease.spec.clone().unwrap_or_default();
                let before = seen.take();
                let current = seen.insert(observe(before, &spec, now));
                match judge(current, &self.identity, now) {
                    Verdict::Free | Verdict::Ours => {}
                    Verdict::Expired(holder) => {
                        tracing::info!(holder, "lease has expired, taking it");
                    }
                    Verdict::Held(holder) => return Ok(Attempt::Held(holder)),
                }
                lease
            }
        };
        match self
            .put(&taken(lease, &self.identity, Timestamp::now()))
            .await
        {
            Ok(lease) => Ok(Attempt::Acquired(Box::new(Leadership {
                lock: self.clone(),
                lease,
                renewed: now,
            }))),
            Err(error) if error.is_overtaken() => Ok(Attempt::Overtaken),
            Err(error) => Err(error),
        }
    }
}

enum Attempt {
    Acquired(Box<Leadership>),
    /// By whom.
    Held(String),
    Overtaken,
}

/// Waits until the Lease in `namespace` is ours; none if shut down before.
///
/// # Errors
///
/// User: no right to get, create or update Leases there, or no such namespace. Permanent: the apiserver doesn't
/// understand. Transient failures are waited out.
///
/// # Cancel safety
///
/// Don't drop it while it waits, cancel `shutdown`: a Lease that was just written would stay ours unused.
pub async fn acquire(
    client: Client,
    namespace: &str,
    identity: &str,
    shutdown: CancellationToken,
) -> Result<Option<Leadership>, LeaseError> {
    let lock = Lock {
        leases: Api::namespaced(client, namespace),
        namespace: namespace.to_owned(),
        identity: identity.to_owned(),
    };
    let mut seen = None;
    let mut told = String::new();
    let mut failing = false;
    while !shutdown.is_cancelled() {
        match lock.try_acquire(&mut seen).await {
            Ok(Attempt::Acquired(leadership)) => {
                tracing::info!(identity, "lease acquired");
                return Ok(Some(*leadership));
            }
            Ok(Attempt::Held(holder)) => {
                failing = false;
                if holder != told {
                    tracing::info!(holder, "waiting for the lease");
                    told = holder;
                }
            }
            Ok(Attempt::Overtaken) => {
                failing = false;
                tracing::debug!("somebody else wrote the lease first");
            }
            Err(error) if error.class() == Class::Transient => {
                // told once, not every second of an outage
                if !std::mem::replace(&mut failing, true) {
                    tracing::warn!(error = %chain(&error), "lease not reachable, trying on");
                }
            }
            Err(error) => return Err(error),
        }
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = sleep(POLL_PERIOD) => {}
        }
    }
    Ok(None)
}

impl Leadership {
    /// Renews the Lease until `shutdown`, then gives it away; ends early when it is lost. Cancel `shutdown` only when
    /// all work has ended: the next holder begins within a second.
    ///
    /// # Cancel safety
    ///
    /// Dropped, the Lease is neither renewed nor given away.
    pub async fn hold(mut self, shutdown: CancellationToken) -> Lost {
        let mut next = self.renewed + RENEW_PERIOD;
        loop {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return self.release().await,
                () = tokio::time::sleep_until(next) => {}
            }
            let deadline = self.renewed + RENEW_DEADLINE;
            let sent = Instant::now();
            match tokio::time::timeout_at(deadline, self.renew()).await {
                Ok(Ok(Some(lease))) => {
                    self.lease = lease;
                    self.renewed = sent;
                    next = sent + RENEW_PERIOD;
                }
                Ok(Ok(None)) => return Lost::Expired,
                Ok(Err(error)) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    tracing::warn!(left_ms = left.as_millis() as u64, error = %chain(&error), "lease not renewed, trying again");
                    next = (Instant::now() + RETRY_PERIOD).min(deadline);
                }
                Err(_elapsed) => {
                    tracing::error!("lease could not be renewed in {RENEW_DEADLINE:?}");
                    return Lost::Expired;
                }
            }
        }
    }

    /// The renewed Lease; none if somebody else holds it.
    async fn renew(&self) -> Result<Option<Lease>, LeaseError> {
        let identity = &self.lock.identity;
        let known = taken(self.lease.clone(), identity, Timestamp::now());
        match self.lock.put(&known).await {
            Ok(lease) => return Ok(Some(lease)),
            Err(error) if error.is_overtaken() => {}
            Err(error) => return Err(error),
        }
        let current = self.lock.get().await?.unwrap_or_else(|| Lease {
            metadata: ObjectMeta {
                name: Some(LEASE_NAME.to_owned()),
                namespace: Some(self.lock.namespace.clone()),
                ..ObjectMeta::default()
            },
            spec: known.spec.clone(),
        });
        let holder = current
            .spec
            .as_ref()
            .and_then(|spec| spec.holder_identity.as_deref());
        // an emptied one was emptied by somebody who wants another to work; a candidate may have read it
        if holder != Some(identity) {
            tracing::error!(holder, "somebody else took the lease");
            return Ok(None);
        }
        let current = taken(current, identity, Timestamp::now());
        self.lock.put(&current).await.map(Some)
    }

    async fn release(self) -> Lost {
        match self.give_away().await {
            Ok(()) => tracing::info!("lease released"),
            // it expires by itself
            Err(error) => tracing::warn!(error = %chain(&error), "lease not released"),
        }
        Lost::Released
    }

    async fn give_away(&self) -> Result<(), LeaseError> {
        let free = released(self.lease.clone(), Timestamp::now());
        match self.lock.put(&free).await {
            Ok(_) => return Ok(()),
            Err(error) if error.is_overtaken() => {}
            Err(error) => return Err(error),
        }
        // touched since the last renewal; it is ours to give away only if it still says so
        let current = self.lock.get().await?.filter(|lease| {
            let spec = lease.spec.as_ref();
            spec.and_then(|spec| spec.holder_identity.as_deref()) == Some(&self.lock.identity)
        });
        match current {
            Some(lease) => self
                .lock
                .put(&released(lease, Timestamp::now()))
                .await
                .map(|_| ()),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
