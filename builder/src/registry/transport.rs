//! Over which connections is a registry reached? With TLS and its own certificates, or without where that is allowed.

use std::collections::BTreeMap;
use std::time::Duration;

use reqwest::redirect::Policy;

use super::proxies::Proxies;
use super::{Registry, RegistryError};
use crate::reference::Repository;

/// A registry may move a large blob from one place of its storage to another before it answers.
const IDLE_TIMEOUT: Duration = Duration::from_secs(120);

/// What containers-certs.d(5) has for one registry.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct HostCertificates {
    /// `*.crt`: PEM of authorities that are trusted for this registry.
    pub authorities: Vec<Vec<u8>>,
    /// `*.cert` and `*.key`: PEM of what we show it, and of its key.
    pub identity: Option<Vec<u8>>,
}

impl std::fmt::Debug for HostCertificates {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HostCertificates(…)")
    }
}

/// Makes HTTP clients.
#[derive(Debug)]
pub(super) struct Transport {
    idle_timeout: Duration,
    authorities: Vec<reqwest::Certificate>,
    hosts: BTreeMap<String, Host>,
    proxies: Proxies,
}

#[derive(Debug)]
struct Host {
    authorities: Vec<reqwest::Certificate>,
    identity: Option<reqwest::Identity>,
}

impl Transport {
    /// Reads the certificates.
    pub fn new(
        idle_timeout: Option<Duration>,
        ca_bundles: &[Vec<u8>],
        certificates: BTreeMap<String, HostCertificates>,
    ) -> Result<Self, RegistryError> {
        // ring is the only provider compiled in; whoever came first installed the same one
        let _installed_before = rustls::crypto::ring::default_provider().install_default();
        let host = |(name, files): (String, HostCertificates)| {
            let bad = |source| RegistryError::Certificates {
                host: name.clone(),
                source,
            };
            let identity = files.identity.as_deref().map(reqwest::Identity::from_pem);
            let host = Host {
                authorities: authorities(&files.authorities).map_err(bad)?,
                identity: identity.transpose().map_err(bad)?,
            };
            Ok::<_, RegistryError>((name, host))
        };
        Ok(Self {
            idle_timeout: idle_timeout.unwrap_or(IDLE_TIMEOUT),
            authorities: authorities(ca_bundles).map_err(RegistryError::Client)?,
            hosts: certificates
                .into_iter()
                .map(host)
                .collect::<Result<_, _>>()?,
            proxies: Proxies::of(|name| std::env::var(name).ok()),
        })
    }

    /// A client for one registry, or for whatever has nothing of its own.
    pub fn client(
        &self,
        host: Option<&str>,
        insecure: bool,
    ) -> Result<reqwest::Client, RegistryError> {
        let own = host.and_then(|host| self.hosts.get(host));
        let proxies = self.proxies.clone();
        let mut builder = reqwest::Client::builder()
            // instead of those that the HTTP client would find by its own rules
            .proxy(reqwest::Proxy::custom(move |url| proxies.to(url).cloned()))
            .user_agent(concat!("strata/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(Duration::from_secs(10))
            // these are followed by ourselves, who know what may go along
            .redirect(Policy::none())
            .tls_danger_accept_invalid_certs(insecure);
        let own_authorities = own
            .map(|own| own.authorities.as_slice())
            .unwrap_or_default();
        for certificate in self.authorities.iter().chain(own_authorities) {
            builder = builder.add_root_certificate(certificate.clone());
        }
        if let Some(identity) = own.and_then(|own| own.identity.clone()) {
            builder = builder.identity(identity);
        }
        builder.build().map_err(RegistryError::Client)
    }

    pub fn idle_timeout(&self) -> Duration {
        self.idle_timeout
    }

    fn is_special(&self, host: &str) -> bool {
        self.hosts.contains_key(host)
    }
}

fn authorities(bundles: &[Vec<u8>]) -> Result<Vec<reqwest::Certificate>, reqwest::Error> {
    let mut all = Vec::new();
    for bundle in bundles {
        all.extend(reqwest::Certificate::from_pem_bundle(bundle)?);
    }
    Ok(all)
}

impl Registry {
    pub(crate) fn idle_timeout(&self) -> Duration {
        self.inner.transport.idle_timeout()
    }

    /// The client for a repository's registry.
    pub(super) fn client(&self, repository: &Repository) -> Result<reqwest::Client, RegistryError> {
        let host = repository.host();
        let insecure = self.inner.rules.is_insecure(repository);
        if !insecure && !self.inner.transport.is_special(host) {
            return Ok(self.inner.http.clone());
        }
        let mut clients = self
            .inner
            .clients
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let key = (host.to_owned(), insecure);
        if let Some(client) = clients.get(&key) {
            return Ok(client.clone());
        }
        let client = self.inner.transport.client(Some(host), insecure)?;
        clients.insert(key, client.clone());
        Ok(client)
    }

    pub(super) fn is_plain_http(&self, repository: &Repository) -> bool {
        let host = repository.host();
        let learned = || {
            let without_tls = self.inner.without_tls.lock();
            let has_none = without_tls
                .unwrap_or_else(std::sync::PoisonError::into_inner)
                .contains(host);
            // The same host may have places that must be reached with TLS.
            has_none && self.inner.rules.is_insecure(repository)
        };
        self.inner.plain_http.iter().any(|plain| plain == host) || learned()
    }

    /// `url`, which may have been made before its registry turned out to have no TLS, as that is spoken to now.
    pub(super) fn as_learned(&self, repository: &Repository, url: &url::Url) -> url::Url {
        let is_told = |plain: &String| plain == repository.host();
        let mut plain = url.clone();
        let is_learned = !self.inner.plain_http.iter().any(is_told)
            && url.scheme() == "https"
            && plain.set_scheme("http").is_ok()
            && self.is_own(repository, &plain);
        if is_learned { plain } else { url.clone() }
    }

    /// The same place without TLS, if the registry may be reached so and isn't yet.
    pub(super) fn without_tls(&self, repository: &Repository, url: &url::Url) -> Option<url::Url> {
        let may = self.is_own(repository, url)
            && url.scheme() == "https"
            && self.inner.rules.is_insecure(repository);
        let mut plain = url.clone();
        (may && plain.set_scheme("http").is_ok()).then_some(plain)
    }

    /// It speaks HTTP without TLS.
    pub(super) fn learn_without_tls(&self, repository: &Repository) {
        let without_tls = self.inner.without_tls.lock();
        let mut without_tls = without_tls.unwrap_or_else(std::sync::PoisonError::into_inner);
        without_tls.insert(repository.host().to_owned());
    }

    pub(super) fn url(&self, repository: &Repository, rest: &str) -> String {
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
