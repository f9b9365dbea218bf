//! How does one request get its answer? With the authorization that its scopes need, and with the registry's own words where it refuses.

use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use reqwest::header::{HeaderMap, LOCATION, RETRY_AFTER, WWW_AUTHENTICATE};
use reqwest::{RequestBuilder, Response, StatusCode};
use serde::Deserialize;

use super::auth::Challenge;
use super::error::distrust;
use super::login::Authorization;
use super::{Registry, RegistryError};
use crate::reference::Repository;

/// Registries bound manifests at 4 MiB; configurations of large images stay below this too.
const LARGEST_DOCUMENT_BYTES: usize = 8 << 20;

/// What a token must allow.
#[derive(Clone, Debug)]
pub(super) struct Scope {
    pub(super) repository: Repository,
    /// `repository:NAME:ACTIONS`, one or two of them.
    pub(super) scopes: Vec<String>,
}

impl Scope {
    pub(super) fn new(repository: &Repository, actions: &str) -> Self {
        Self {
            repository: repository.clone(),
            scopes: vec![format!("repository:{}:{actions}", repository.path())],
        }
    }

    pub(super) fn and(mut self, repository: &Repository, actions: &str) -> Self {
        self.scopes
            .push(format!("repository:{}:{actions}", repository.path()));
        self
    }

    pub(super) fn key(&self) -> (String, String) {
        (self.repository.host().to_owned(), self.scopes.join(" "))
    }
}

/// What an exchange does and to what, for messages.
#[derive(Clone, Copy, Debug)]
pub(super) struct Subject<'a> {
    pub(super) operation: &'static str,
    pub(super) target: &'a str,
}

impl Subject<'_> {
    pub(super) fn transport(self, source: reqwest::Error) -> RegistryError {
        let (operation, target) = (self.operation, self.target.to_owned());
        match distrust(&source) {
            Some(source) => RegistryError::Untrusted {
                operation,
                target,
                source,
            },
            None => RegistryError::Transport {
                operation,
                target,
                source: source.without_url(),
            },
        }
    }

    pub(super) fn malformed(self, what: impl Into<String>) -> RegistryError {
        RegistryError::Malformed {
            operation: self.operation,
            target: self.target.to_owned(),
            what: what.into(),
        }
    }
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
    /// One request with authorization, repeated once with a fresh token if the registry asks for one. Answers above 399 are errors.
    pub(super) async fn exchange(
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
        let repository = &scope.repository;
        let http = self.client(repository)?;
        let transport = |error| subject.transport(error);
        let built = request(&http).build().map_err(transport)?;
        let plain = self.without_tls(repository, built.url());
        let sent = self
            .send_authorized(repository, &http, built, authorization)
            .await;
        match (sent, plain) {
            (Err(error), Some(plain)) if error.is_connect() => {
                let mut built = request(&http).build().map_err(transport)?;
                *built.url_mut() = plain;
                // Nobody is logged in to a registry that wasn't reached before.
                let Ok(response) = self.send_authorized(repository, &http, built, None).await
                else {
                    return Err(transport(error));
                };
                self.learn_without_tls(repository);
                Ok(response)
            }
            (sent, _) => sent.map_err(transport),
        }
    }

    async fn send_authorized(
        &self,
        repository: &Repository,
        http: &reqwest::Client,
        request: reqwest::Request,
        authorization: Option<&Authorization>,
    ) -> Result<Response, reqwest::Error> {
        let authorization = authorization.filter(|_| self.is_own(repository, request.url()));
        let request = RequestBuilder::from_parts(http.clone(), request);
        let request = match authorization {
            Some(Authorization::Basic { user, password }) => {
                request.basic_auth(user, Some(password))
            }
            Some(Authorization::Bearer(token)) => request.bearer_auth(token),
            None => request,
        };
        request.send().await
    }
}

pub(super) async fn bounded_body(
    subject: Subject<'_>,
    response: Response,
) -> Result<Bytes, RegistryError> {
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

pub(super) fn header(response: &Response, name: &str) -> Option<String> {
    response
        .headers()
        .get(name)?
        .to_str()
        .ok()
        .map(str::to_owned)
}

/// The Location header as an absolute URL.
pub(super) fn location(response: &Response) -> Option<url::Url> {
    response
        .url()
        .join(response.headers().get(LOCATION)?.to_str().ok()?)
        .ok()
}

/// The answer, or an error with the registry's own words.
pub(super) async fn checked(
    subject: Subject<'_>,
    response: Response,
) -> Result<Response, RegistryError> {
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
