//! How do we talk to a registry? One client for builder and controller: pull, push, mount, inspect, delete.
//!
//! ```text
//! verb ─► retry (bounds, Retry-After) ─► authorize (token per scope set, again on 401) ─► HTTP
//! ```
//!
//! Every exchange is tried again when its failure may pass by itself ([`retry`]); callers must not loop around a verb. Tokens are asked for exactly
//! the scopes that an exchange needs. Credentials go to the host they belong to only: redirects to another host are followed without them.

mod auth;
mod blobs;
mod error;
mod exchange;
mod journey;
mod listing;
mod login;
mod manifests;
mod pace;
mod policy;
mod proxies;
mod referrers;
pub mod retry;
mod rules;
mod transport;
mod upload;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

pub use auth::{AuthFileError, Credential, Credentials};
pub use error::RegistryError;
pub(crate) use exchange::Subject;
pub use manifests::Manifest;
pub(crate) use manifests::{choose_platform, manifest_media_type};
pub(crate) use pace::Incoming;
pub use policy::{Denied, Policy, PolicyError};
pub use retry::Bounds;
pub use rules::{Rules, RulesError};
pub use transport::HostCertificates;
pub use upload::Upload;

use login::Authorization;
use retry::{DEFAULT_BOUNDS, Retries, Trying};
use transport::Transport;

use crate::reference::Repository;

/// How to reach registries.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Whom to be.
    pub credentials: Credentials,
    /// `HOST[:PORT]` of registries that speak HTTP without TLS.
    pub plain_http: Vec<String>,
    /// PEM bundles trusted beside the system's.
    pub ca_bundles: Vec<Vec<u8>>,
    /// By `HOST[:PORT]`.
    pub certificates: BTreeMap<String, HostCertificates>,
    /// Where names lead.
    pub rules: Rules,
    /// Which images may be pulled.
    pub policy: Policy,
    /// How often an exchange is tried.
    pub bounds: Option<Bounds>,
    /// A connection on which nothing comes for so long is given up; two minutes if absent.
    pub idle_timeout: Option<Duration>,
}

/// A client; cheap to clone, tokens are shared between clones.
#[derive(Clone, Debug)]
pub struct Registry {
    inner: Arc<Inner>,
    bounds: Bounds,
}

#[derive(Debug)]
struct Inner {
    /// For registries that need nothing of their own.
    http: reqwest::Client,
    transport: Transport,
    /// For the others, by host and by whether certificates are checked.
    clients: Mutex<HashMap<(String, bool), reqwest::Client>>,
    credentials: Credentials,
    plain_http: Vec<String>,
    /// Hosts that turned out to have no TLS where they may be reached without. This says nothing of their other places.
    without_tls: Mutex<BTreeSet<String>>,
    rules: Rules,
    policy: Policy,
    /// To where from where: told already.
    refused_mounts: Mutex<BTreeSet<(Repository, Repository)>>,
    /// By repository and scopes.
    tokens: Mutex<HashMap<(Repository, String), Authorization>>,
    retries: Retries,
}

impl Registry {
    /// Makes a client.
    ///
    /// # Errors
    /// Permanent: certificates that don't parse.
    pub fn new(options: Options) -> Result<Self, RegistryError> {
        let Options {
            credentials,
            plain_http,
            ca_bundles,
            certificates,
            rules,
            policy,
            bounds,
            idle_timeout,
        } = options;
        let transport = Transport::new(idle_timeout, &ca_bundles, certificates)?;
        let inner = Inner {
            http: transport.client(None, false)?,
            transport,
            clients: Mutex::default(),
            credentials,
            plain_http,
            without_tls: Mutex::default(),
            rules,
            policy,
            refused_mounts: Mutex::default(),
            tokens: Mutex::default(),
            retries: Retries::default(),
        };
        Ok(Self {
            inner: Arc::new(inner),
            bounds: bounds.unwrap_or(DEFAULT_BOUNDS),
        })
    }

    /// The same client, less or more patient.
    #[must_use]
    fn with_bounds(&self, bounds: Bounds) -> Self {
        Self {
            inner: Arc::clone(&self.inner),
            bounds,
        }
    }

    /// Attempts at something, as many as at an exchange.
    pub(crate) fn trying(&self) -> Trying {
        Trying::new(self.bounds, self.inner.retries.clone())
    }

    /// What was tried again, also by clones of this client.
    #[must_use]
    pub fn retries(&self) -> &Retries {
        &self.inner.retries
    }

    /// Where names lead.
    #[must_use]
    pub fn rules(&self) -> &Rules {
        &self.inner.rules
    }
}
