//! How do we talk to a registry? One client for builder and controller: pull, push, mount, inspect, delete.
//!
//! ```text
//! verb ─► retry (bounds, Retry-After) ─► authorize (token per scope set, again on 401) ─► HTTP
//! ```
//!
//! Every exchange is tried again when its failure may pass by itself ([`retry`]); callers must not loop around a verb. Tokens are asked for exactly
//! the scopes that an exchange needs. Credentials go to the host they belong to only: redirects to another host are followed without them.

mod auth;
mod error;
pub mod retry;
mod upload;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt as _, stream};
use oci_client::manifest::{
    IMAGE_DOCKER_CONFIG_MEDIA_TYPE, IMAGE_MANIFEST_LIST_MEDIA_TYPE, IMAGE_MANIFEST_MEDIA_TYPE,
    OCI_IMAGE_INDEX_MEDIA_TYPE, OCI_IMAGE_MEDIA_TYPE,
};
use reqwest::header::{
    ACCEPT, CONTENT_TYPE, HeaderMap, LOCATION, RANGE, RETRY_AFTER, WWW_AUTHENTICATE,
};
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde::Deserialize;

pub use auth::{AuthFileError, Credential, Credentials};
pub use error::RegistryError;
pub use upload::Upload;

use crate::digest::Digest;
use crate::reference::{Reference, Repository};
use auth::Challenge;
pub use retry::Bounds;
use retry::{DEFAULT_BOUNDS, retry};

/// Registries bound manifests at 4 MiB; configurations of large images stay below this too.
const LARGEST_DOCUMENT_BYTES: usize = 8 << 20;

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

/// A manifest as the registry has it.
#[derive(Clone, Debug)]
pub struct Manifest {
    /// Of `bytes`, checked.
    pub digest: Digest,
    /// As the registry names it.
    pub media_type: String,
    /// Exactly as served.
    pub bytes: Bytes,
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

#[derive(Clone)]
enum Authorization {
    Basic { user: String, password: String },
    Bearer(String),
}

impl std::fmt::Debug for Authorization {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Authorization(…)")
    }
}

/// What a token must allow.
#[derive(Clone, Debug)]
struct Scope {
    repository: Repository,
    /// `repository:NAME:ACTIONS`, one or two of them.
    scopes: Vec<String>,
}

impl Scope {
    fn new(repository: &Repository, actions: &str) -> Self {
        Self {
            repository: repository.clone(),
            scopes: vec![format!("repository:{}:{actions}", repository.path())],
        }
    }

    fn and(mut self, repository: &Repository, actions: &str) -> Self {
        self.scopes
            .push(format!("repository:{}:{actions}", repository.path()));
        self
    }

    fn key(&self) -> (String, String) {
        (self.repository.host().to_owned(), self.scopes.join(" "))
    }
}

/// What an exchange does and to what, for messages.
#[derive(Clone, Copy, Debug)]
struct Subject<'a> {
    operation: &'static str,
    target: &'a str,
}

impl Subject<'_> {
    fn transport(self, source: reqwest::Error) -> RegistryError {
        RegistryError::Transport {
            operation: self.operation,
            target: self.target.to_owned(),
            source: source.without_url(),
        }
    }

    fn malformed(self, what: impl Into<String>) -> RegistryError {
        RegistryError::Malformed {
            operation: self.operation,
            target: self.target.to_owned(),
            what: what.into(),
        }
    }
}

#[derive(Deserialize)]
struct TokenAnswer {
    #[serde(default)]
    token: String,
    /// The same, in OAuth 2's words; some servers send both.
    #[serde(default)]
    access_token: String,
}

#[derive(Deserialize)]
struct Errors {
    #[serde(default)]
    errors: Vec<ErrorEntry>,
}

#[derive(Deserialize)]
struct ErrorEntry {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
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

    /// The manifest that `reference` names; of an index the one for linux on `architecture` (GOARCH).
    ///
    /// # Errors
    /// User: no such image, no right, no such platform. Transient: the network.
    pub async fn manifest(
        &self,
        reference: &Reference,
        architecture: &str,
    ) -> Result<Manifest, RegistryError> {
        let found = self.raw_manifest(reference).await?;
        let chosen = choose_platform(
            &reference.to_string(),
            &found.media_type,
            &found.bytes,
            architecture,
        )?;
        match chosen {
            Some(digest) => {
                self.raw_manifest(&reference.repository.digested(digest))
                    .await
            }
            None => Ok(found),
        }
    }

    async fn raw_manifest(&self, reference: &Reference) -> Result<Manifest, RegistryError> {
        let target = reference.to_string();
        let subject = Subject {
            operation: "pull the manifest of",
            target: &target,
        };
        let scope = Scope::new(&reference.repository, "pull");
        let url = self.url(
            &reference.repository,
            &format!("manifests/{}", reference.manifest_name()),
        );
        retry(&self.0.bounds, || async {
            let response = self
                .exchange(subject, &scope, &|http| {
                    manifest_request(http, Method::GET, &url)
                })
                .await?;
            let media_type = header(&response, CONTENT_TYPE.as_str()).unwrap_or_default();
            let bytes = bounded_body(subject, response).await?;
            let digest = Digest::of(&bytes);
            match reference.digest {
                Some(wanted) if wanted != digest => Err(RegistryError::WrongDigest {
                    target: target.clone(),
                    wanted,
                    got: digest,
                }),
                _ => Ok(Manifest {
                    digest,
                    media_type: manifest_media_type(media_type, &bytes),
                    bytes,
                }),
            }
        })
        .await
    }

    /// The digest that `reference` resolves to; `None` if the registry has no such manifest.
    ///
    /// # Errors
    /// User: no right. Transient: the network.
    pub async fn head_manifest(
        &self,
        reference: &Reference,
    ) -> Result<Option<Digest>, RegistryError> {
        let target = reference.to_string();
        let subject = Subject {
            operation: "look for",
            target: &target,
        };
        let scope = Scope::new(&reference.repository, "pull");
        let url = self.url(
            &reference.repository,
            &format!("manifests/{}", reference.manifest_name()),
        );
        let head = retry(&self.0.bounds, || async {
            self.exchange(subject, &scope, &|http| {
                manifest_request(http, Method::HEAD, &url)
            })
            .await
        });
        match head.await {
            Ok(response) => match header(&response, "docker-content-digest")
                .and_then(|d| d.parse().ok())
                .or(reference.digest)
            {
                Some(digest) => Ok(Some(digest)),
                // some registries leave the header out of a HEAD
                None => self
                    .raw_manifest(reference)
                    .await
                    .map(|manifest| Some(manifest.digest)),
            },
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// A small blob whole: an image configuration.
    ///
    /// # Errors
    /// As [`Self::manifest`].
    pub async fn blob(
        &self,
        repository: &Repository,
        digest: Digest,
    ) -> Result<Bytes, RegistryError> {
        let target = format!("{repository}@{digest}");
        let subject = Subject {
            operation: "pull the blob",
            target: &target,
        };
        let scope = Scope::new(repository, "pull");
        let url = self.url(repository, &format!("blobs/{digest}"));
        retry(&self.0.bounds, || async {
            let response = self
                .exchange(subject, &scope, &|http| http.get(&url))
                .await?;
            let bytes = bounded_body(subject, response).await?;
            match Digest::of(&bytes) {
                got if got == digest => Ok(bytes),
                got => Err(RegistryError::WrongDigest {
                    target: target.clone(),
                    wanted: digest,
                    got,
                }),
            }
        })
        .await
    }

    /// A blob as it comes; a broken connection goes on where it broke. The caller checks the digest of the whole.
    pub fn blob_stream(
        &self,
        repository: &Repository,
        digest: Digest,
    ) -> impl Stream<Item = Result<Bytes, RegistryError>> + Send + use<> {
        let state = (
            self.clone(),
            repository.clone(),
            digest,
            0u64,
            None::<Body>,
            0u32,
        );
        stream::try_unfold(
            state,
            |(registry, repository, digest, mut offset, mut body, mut breaks)| async move {
                loop {
                    let mut open = match body.take() {
                        Some(body) => body,
                        None => registry.open_blob(&repository, digest, offset).await?,
                    };
                    let error = match open.next().await {
                        None => return Ok(None),
                        Some(Ok(bytes)) => {
                            offset += bytes.len() as u64;
                            return Ok(Some((
                                bytes,
                                (registry, repository, digest, offset, Some(open), breaks),
                            )));
                        }
                        Some(Err(error)) => error,
                    };
                    breaks += 1;
                    let target = format!("{repository}@{digest}");
                    let error = Subject {
                        operation: "pull the blob",
                        target: &target,
                    }
                    .transport(error);
                    if breaks >= registry.0.bounds.attempts {
                        return Err(error);
                    }
                    tracing::warn!(offset, error = %crate::error::chain(&error), "blob broke off, going on from its offset");
                    let delay = registry.0.bounds.delay(breaks, None, retry::jitter());
                    tokio::time::sleep(delay).await;
                }
            },
        )
    }

    async fn open_blob(
        &self,
        repository: &Repository,
        digest: Digest,
        offset: u64,
    ) -> Result<Body, RegistryError> {
        let target = format!("{repository}@{digest}");
        let subject = Subject {
            operation: "pull the blob",
            target: &target,
        };
        let scope = Scope::new(repository, "pull");
        let url = self.url(repository, &format!("blobs/{digest}"));
        let response = retry(&self.0.bounds, || async {
            let from = |http: &reqwest::Client| match offset {
                0 => http.get(&url),
                offset => http.get(&url).header(RANGE, format!("bytes={offset}-")),
            };
            self.exchange(subject, &scope, &from).await
        })
        .await?;
        // a registry that ignores Range starts over: drop what we have
        let skip = if response.status() == StatusCode::PARTIAL_CONTENT {
            0
        } else {
            offset
        };
        Ok(Box::pin(skipping(response.bytes_stream(), skip)))
    }

    /// Whether the repository has the blob.
    ///
    /// # Errors
    /// User: no right. Transient: the network.
    pub async fn has_blob(
        &self,
        repository: &Repository,
        digest: Digest,
    ) -> Result<bool, RegistryError> {
        let target = format!("{repository}@{digest}");
        let subject = Subject {
            operation: "look for the blob",
            target: &target,
        };
        // the scope of the pushes that follow, so that one token serves all
        let scope = Scope::new(repository, "pull,push");
        let url = self.url(repository, &format!("blobs/{digest}"));
        let head = retry(&self.0.bounds, || async {
            self.exchange(subject, &scope, &|http| http.head(&url))
                .await
        })
        .await;
        match head {
            Ok(_) => Ok(true),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Asks the registry to make a blob of `source` part of `target` without moving it; false if it won't.
    ///
    /// # Errors
    /// User: no right to push. Transient: the network.
    pub async fn mount_blob(
        &self,
        target: &Repository,
        source: &Repository,
        digest: Digest,
    ) -> Result<bool, RegistryError> {
        if target.host() != source.host() {
            return Ok(false);
        }
        let told = format!("{target}@{digest}");
        let subject = Subject {
            operation: "mount the blob",
            target: &told,
        };
        let scope = Scope::new(target, "pull,push").and(source, "pull");
        let url = self.url(target, "blobs/uploads/");
        let response = retry(&self.0.bounds, || async {
            let query = [
                ("mount", digest.to_string()),
                ("from", source.path().to_owned()),
            ];
            self.exchange(subject, &scope, &|http| {
                http.post(&url).query(&query).body(Bytes::new())
            })
            .await
        })
        .await?;
        if response.status() == StatusCode::CREATED {
            return Ok(true);
        }
        // 202 opened an upload instead; close it, and don't mind if the registry has no such function
        if let Some(location) = location(&response) {
            let _closed = self
                .exchange(subject, &scope, &|http| http.delete(location.clone()))
                .await;
        }
        Ok(false)
    }

    /// Opens an upload into the repository; bytes go out as they come, the digest is said at the end.
    #[must_use]
    pub fn upload(&self, repository: &Repository) -> Upload {
        Upload::new(self.clone(), repository.clone())
    }

    /// Pushes a manifest under the tag or digest of `reference`; its digest as the registry confirms it.
    ///
    /// # Errors
    /// User: no right. Transient: the network.
    pub async fn push_manifest(
        &self,
        reference: &Reference,
        media_type: &str,
        bytes: &Bytes,
    ) -> Result<Digest, RegistryError> {
        let target = reference.to_string();
        let subject = Subject {
            operation: "push the manifest to",
            target: &target,
        };
        let scope = Scope::new(&reference.repository, "pull,push");
        let url = self.url(
            &reference.repository,
            &format!("manifests/{}", reference.manifest_name()),
        );
        let wanted = Digest::of(bytes);
        let response = retry(&self.0.bounds, || async {
            self.exchange(subject, &scope, &|http| {
                http.put(&url)
                    .header(CONTENT_TYPE, media_type)
                    .body(bytes.clone())
            })
            .await
        })
        .await?;
        match header(&response, "docker-content-digest").and_then(|d| d.parse::<Digest>().ok()) {
            Some(got) if got != wanted => Err(RegistryError::WrongDigest {
                target,
                wanted,
                got,
            }),
            _ => Ok(wanted),
        }
    }

    /// Deletes a manifest by digest; one that isn't there is fine.
    ///
    /// # Errors
    /// User: no right, or a registry that doesn't delete. Transient: the network.
    pub async fn delete_manifest(
        &self,
        repository: &Repository,
        digest: Digest,
    ) -> Result<(), RegistryError> {
        let target = format!("{repository}@{digest}");
        let subject = Subject {
            operation: "delete the manifest",
            target: &target,
        };
        // token servers differ in the word for it; those that know neither ignore it
        let scope = Scope::new(repository, "pull,push,delete");
        let url = self.url(repository, &format!("manifests/{digest}"));
        match retry(&self.0.bounds, || async {
            self.exchange(subject, &scope, &|http| http.delete(&url))
                .await
        })
        .await
        {
            Ok(_) => Ok(()),
            Err(error) if error.is_not_found() => Ok(()),
            Err(error) => Err(error),
        }
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

    /// One request with authorization, repeated once with a fresh token if the registry asks for one. Answers above 399 are errors.
    async fn exchange(
        &self,
        subject: Subject<'_>,
        scope: &Scope,
        request: &(dyn Fn(&reqwest::Client) -> RequestBuilder + Sync),
    ) -> Result<Response, RegistryError> {
        let known = self.authorization(scope);
        let response = self.send(subject, scope, request, known.as_ref()).await?;
        // A challenge from elsewhere is not ours to answer: whoever we were sent to could have us log in where it likes.
        if response.status() != StatusCode::UNAUTHORIZED
            || !self.is_own(&scope.repository, response.url())
        {
            return checked(subject, response).await;
        }
        let challenge = response
            .headers()
            .get_all(WWW_AUTHENTICATE)
            .iter()
            .filter_map(|h| Challenge::parse(h.to_str().ok()?))
            .next();
        let fresh = match challenge {
            Some(challenge) => self.log_in(subject, scope, &challenge).await?,
            None => None,
        };
        match fresh {
            Some(fresh) => {
                let response = self.send(subject, scope, request, Some(&fresh)).await?;
                let response = checked(subject, response).await?;
                self.remember(scope, fresh);
                Ok(response)
            }
            None => checked(subject, response).await,
        }
    }

    async fn send(
        &self,
        subject: Subject<'_>,
        scope: &Scope,
        request: &(dyn Fn(&reqwest::Client) -> RequestBuilder + Sync),
        authorization: Option<&Authorization>,
    ) -> Result<Response, RegistryError> {
        let transport = |error| subject.transport(error);
        let plain = request(&self.0.http).build().map_err(transport)?;
        let authorization = authorization.filter(|_| self.is_own(&scope.repository, plain.url()));
        let request = RequestBuilder::from_parts(self.0.http.clone(), plain);
        let request = match authorization {
            Some(Authorization::Basic { user, password }) => {
                request.basic_auth(user, Some(password))
            }
            Some(Authorization::Bearer(token)) => request.bearer_auth(token),
            None => request,
        };
        request.send().await.map_err(transport)
    }

    fn authorization(&self, scope: &Scope) -> Option<Authorization> {
        self.0.tokens.lock().ok()?.get(&scope.key()).cloned()
    }

    fn remember(&self, scope: &Scope, authorization: Authorization) {
        if let Ok(mut tokens) = self.0.tokens.lock() {
            tokens.insert(scope.key(), authorization);
        }
    }

    /// What the challenge asks for; `None` if we have nothing to answer it with.
    async fn log_in(
        &self,
        subject: Subject<'_>,
        scope: &Scope,
        challenge: &Challenge,
    ) -> Result<Option<Authorization>, RegistryError> {
        let credential = self.0.credentials.find(&scope.repository);
        let (realm, service) = match (challenge, credential) {
            (Challenge::Basic, Some(Credential::Basic { user, password })) => {
                return Ok(Some(Authorization::Basic {
                    user: user.clone(),
                    password: password.expose().to_owned(),
                }));
            }
            (Challenge::Basic, _) => return Ok(None),
            (Challenge::Bearer { realm, service }, _) => (realm, service),
        };
        let subject = Subject {
            operation: "get a token for",
            ..subject
        };
        let is_safe = url::Url::parse(realm)
            .is_ok_and(|realm| realm.scheme() == "https" || self.is_plain_http(&scope.repository));
        if credential.is_some() && !is_safe {
            return Err(subject.malformed(
                "its token server is reached without TLS, where credentials would be read by anybody; name the registry with --plain-http if that is meant",
            ));
        }
        let request = match credential {
            Some(Credential::IdentityToken(token)) => {
                let scopes = scope.scopes.join(" ");
                let form = [
                    ("grant_type", "refresh_token"),
                    ("client_id", "strata"),
                    ("refresh_token", token.expose()),
                    ("scope", &scopes),
                    ("service", service.as_deref().unwrap_or_default()),
                ];
                let body = url::form_urlencoded::Serializer::new(String::new())
                    .extend_pairs(form)
                    .finish();
                self.0
                    .http
                    .post(realm)
                    .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
                    .body(body)
            }
            credential => {
                let service = service.iter().map(|s| ("service", s.as_str()));
                let query: Vec<(&str, &str)> = service
                    .chain(scope.scopes.iter().map(|s| ("scope", s.as_str())))
                    .collect();
                let request = self.0.http.get(realm).query(&query);
                match credential {
                    Some(Credential::Basic { user, password }) => {
                        request.basic_auth(user, Some(password.expose()))
                    }
                    _ => request,
                }
            }
        };
        let response = request
            .send()
            .await
            .map_err(|error| subject.transport(error))?;
        let response = checked(subject, response)
            .await
            .map_err(RegistryError::of_token_server)?;
        let answer: TokenAnswer =
            serde_json::from_slice(&bounded_body(subject, response).await?)
                .map_err(|_| subject.malformed("the token server sent no token"))?;
        let tokens = [answer.token, answer.access_token];
        let token = tokens.into_iter().find(|token| !token.is_empty());
        match token {
            Some(token) => Ok(Some(Authorization::Bearer(token))),
            None => Err(subject.malformed("the token server sent no token")),
        }
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

type Body = std::pin::Pin<Box<dyn Stream<Item = Result<Bytes, reqwest::Error>> + Send>>;

/// The stream without its first `skip` bytes.
fn skipping(
    body: impl Stream<Item = Result<Bytes, reqwest::Error>> + Send,
    mut skip: u64,
) -> impl Stream<Item = Result<Bytes, reqwest::Error>> + Send {
    body.map(move |item| {
        item.map(|mut bytes| {
            let cut = usize::try_from(skip).unwrap_or(usize::MAX).min(bytes.len());
            skip -= cut as u64;
            bytes.split_off(cut)
        })
    })
    .filter(|item| std::future::ready(!matches!(item, Ok(bytes) if bytes.is_empty())))
}

fn manifest_request(http: &reqwest::Client, method: Method, url: &str) -> RequestBuilder {
    let kinds = [
        OCI_IMAGE_MEDIA_TYPE,
        OCI_IMAGE_INDEX_MEDIA_TYPE,
        IMAGE_MANIFEST_MEDIA_TYPE,
        IMAGE_MANIFEST_LIST_MEDIA_TYPE,
    ];
    http.request(method, url).header(ACCEPT, kinds.join(", "))
}

/// The manifest for linux on `architecture` that an index (or manifest list) names; `None` if the document is no index.
pub(crate) fn choose_platform(
    target: &str,
    media_type: &str,
    bytes: &[u8],
    architecture: &str,
) -> Result<Option<Digest>, RegistryError> {
    if ![OCI_IMAGE_INDEX_MEDIA_TYPE, IMAGE_MANIFEST_LIST_MEDIA_TYPE].contains(&media_type) {
        return Ok(None);
    }
    let subject = Subject {
        operation: "read the index",
        target,
    };
    let index: oci_client::manifest::OciImageIndex =
        serde_json::from_slice(bytes).map_err(|e| subject.malformed(e.to_string()))?;
    let ours = index.manifests.iter().find(|entry| {
        entry.platform.as_ref().is_some_and(|p| {
            p.os.to_string() == "linux" && p.architecture.to_string() == architecture
        })
    });
    let ours = ours.ok_or_else(|| RegistryError::NoPlatform {
        target: target.to_owned(),
        architecture: architecture.to_owned(),
    })?;
    let digest = ours
        .digest
        .parse()
        .map_err(|e: crate::digest::InvalidDigest| subject.malformed(e.to_string()))?;
    Ok(Some(digest))
}

/// The manifest's own word for its kind, where the registry's header is missing or vague.
pub(crate) fn manifest_media_type(header: String, bytes: &[u8]) -> String {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Kind {
        media_type: Option<String>,
        manifests: Option<serde::de::IgnoredAny>,
        config: Option<ConfigKind>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct ConfigKind {
        media_type: Option<String>,
    }
    let Ok(kind) = serde_json::from_slice::<Kind>(bytes) else {
        return header;
    };
    let docker = kind
        .config
        .is_some_and(|c| c.media_type.as_deref() == Some(IMAGE_DOCKER_CONFIG_MEDIA_TYPE));
    match (kind.media_type, kind.manifests) {
        (Some(own), _) => own,
        (None, Some(_)) => OCI_IMAGE_INDEX_MEDIA_TYPE.to_owned(),
        (None, None) if docker => IMAGE_MANIFEST_MEDIA_TYPE.to_owned(),
        (None, None) => OCI_IMAGE_MEDIA_TYPE.to_owned(),
    }
}

async fn bounded_body(subject: Subject<'_>, response: Response) -> Result<Bytes, RegistryError> {
    let mut whole = Vec::new();
    let mut body = response.bytes_stream();
    while let Some(part) = body.next().await {
        whole.extend_from_slice(&part.map_err(|error| subject.transport(error))?);
        if whole.len() > LARGEST_DOCUMENT_BYTES {
            return Err(subject.malformed(format!(
                "the answer is larger than {LARGEST_DOCUMENT_BYTES} bytes"
            )));
        }
    }
    Ok(whole.into())
}

fn header(response: &Response, name: &str) -> Option<String> {
    response
        .headers()
        .get(name)?
        .to_str()
        .ok()
        .map(str::to_owned)
}

/// The Location header as an absolute URL.
fn location(response: &Response) -> Option<url::Url> {
    response
        .url()
        .join(response.headers().get(LOCATION)?.to_str().ok()?)
        .ok()
}

/// The answer, or an error with the registry's own words.
async fn checked(subject: Subject<'_>, response: Response) -> Result<Response, RegistryError> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let retry_after = retry_after(response.headers());
    let said = bounded_body(subject, response).await.unwrap_or_default();
    let entry = serde_json::from_slice::<Errors>(&said)
        .ok()
        .and_then(|e| e.errors.into_iter().next());
    let (code, message) = match entry {
        Some(entry) => (Some(entry.code).filter(|c| !c.is_empty()), entry.message),
        None => (None, String::new()),
    };
    // one line: it goes into conditions and logs
    let message: String = message
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
        .chars()
        .take(300)
        .collect();
    let detail = if message.is_empty() {
        message
    } else {
        format!(": {message}")
    };
    Err(RegistryError::Refused {
        operation: subject.operation,
        target: subject.target.to_owned(),
        status: status.as_u16(),
        code,
        detail,
        retry_after,
    })
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    // the date form is rare, and the bounds hold without it
    headers
        .get(RETRY_AFTER)?
        .to_str()
        .ok()?
        .trim()
        .parse()
        .ok()
        .map(Duration::from_secs)
}
