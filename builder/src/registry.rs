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
mod login;
mod manifests;
pub mod retry;
mod upload;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

pub use auth::{AuthFileError, Credential, Credentials};
pub use error::RegistryError;
pub use manifests::Manifest;
pub(crate) use manifests::{choose_platform, manifest_media_type};
pub use retry::Bounds;
pub use upload::Upload;

use crate::reference::Repository;
use login::Authorization;
use retry::DEFAULT_BOUNDS;

/// A registry may move a large blob from one place of its storage to another before it answers.
const IDLE_TIMEOUT: Duration = Duration::from_secs(120);
/// A registry sends us to its storage once; some put a cache between.
const MOST_REDIRECTS: usize = 5;

/// How to reach registries.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Whom to be.
    pub credentials: Credentials,
    /// `HOST[:PORT]` of registries that speak HTTP without TLS.
    pub plain_http: Vec<String>,
    /// PEM bundles trusted beside the system's.
    pub ca_bundles: Vec<Vec<u8>>,
    /// How often an exchange is tried.
    pub bounds: Option<Bounds>,
    /// A connection on which nothing comes for so long is given up; two minutes if absent.
    pub idle_timeout: Option<Duration>,
}

/// A client; cheap to clone, tokens are shared between clones.
#[derive(Clone, Debug)]
pub struct Registry(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    http: reqwest::Client,
    credentials: Credentials,
    plain_http: Vec<String>,
    bounds: Bounds,
    /// By host and scopes.
    tokens: Mutex<HashMap<(String, String), Authorization>>,
}

impl Registry {
    /// Makes a client.
    ///
    /// # Errors
    /// Permanent: a CA bundle that doesn't parse.
    pub fn new(options: Options) -> Result<Self, RegistryError> {
        // ring is the only provider compiled in; whoever came first installed the same one
        let _installed_before = rustls::crypto::ring::default_provider().install_default();
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("strata/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(Duration::from_secs(10))
            // between two reads, not for a whole blob
            .read_timeout(options.idle_timeout.unwrap_or(IDLE_TIMEOUT))
            .redirect(reqwest::redirect::Policy::custom(followed));
        for bundle in &options.ca_bundles {
            for certificate in
                reqwest::Certificate::from_pem_bundle(bundle).map_err(RegistryError::Client)?
            {
                builder = builder.add_root_certificate(certificate);
            }
        }
        let http = builder.build().map_err(RegistryError::Client)?;
        let Options {
            credentials,
            plain_http,
            ca_bundles: _,
            bounds,
            idle_timeout: _,
        } = options;
        Ok(Self(Arc::new(Inner {
            http,
            credentials,
            plain_http,
            bounds: bounds.unwrap_or(DEFAULT_BOUNDS),
            tokens: Mutex::default(),
        })))
    }

    /// For files that are no registry's; it sends no credentials by itself.
    pub(crate) fn http(&self) -> &reqwest::Client {
        &self.0.http
    }

    fn is_plain_http(&self, repository: &Repository) -> bool {
        let host = repository.host();
        self.0.plain_http.iter().any(|plain| plain == host)
    }

    /// Whether `url` is at the repository's own registry, over the transport that it is spoken to by: only then may it see credentials. An upload's
    /// Location, or a redirect, may name any place.
    fn is_own(&self, repository: &Repository, url: &url::Url) -> bool {
        let own = self.url(repository, "").parse::<url::Url>();
        own.is_ok_and(|own| own.origin() == url.origin())
    }

    fn url(&self, repository: &Repository, rest: &str) -> String {
        let host = repository.host();
        let scheme = if self.is_plain_http(repository) {
            "http"
        } else {
            "https"
        };
        let host = if host == "docker.io" {
            "registry-1.docker.io"
        } else {
            host
        };
        format!("{scheme}://{host}/v2/{}/{rest}", repository.path())
    }
}

/// The HTTP client takes credentials off when the host or port changes. What it doesn't see is the same place without TLS.
fn followed(attempt: reqwest::redirect::Attempt<'_>) -> reqwest::redirect::Action {
    let secure = |url: &url::Url| url.scheme() == "https";
    let was_secure = attempt.previous().iter().any(secure);
    if attempt.previous().len() > MOST_REDIRECTS {
        attempt.error("too many redirects")
    } else if was_secure && !secure(attempt.url()) {
        attempt.error("a redirect away from TLS")
    } else {
        attempt.follow()
    }
}
