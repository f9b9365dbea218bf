//! How does one request get its answer? With the authorization that its scopes need, and with the registry's own words where it refuses.

use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{DATE, HeaderMap, LOCATION, RETRY_AFTER, WWW_AUTHENTICATE};
use reqwest::{RequestBuilder, Response, StatusCode};
use serde::Deserialize;

use super::auth::Challenge;
use super::error::{is_distrust, is_no_tls, of_tls};
use super::pace::Incoming;
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

    /// With how the repository is reached: what was said over TLS is not repeated without.
    pub(super) fn key(&self) -> (Repository, String) {
        (self.repository.clone(), self.scopes.join(" "))
    }
}

/// What an exchange does and to what, for messages.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Subject<'a> {
    pub(crate) operation: &'static str,
    pub(crate) target: &'a str,
}

impl Subject<'_> {
    pub(super) fn transport(self, source: reqwest::Error) -> RegistryError {
        let (operation, target) = (self.operation, self.target.to_owned());
        match of_tls(&source).cloned() {
            Some(source) if is_distrust(&source) => RegistryError::Untrusted {
                operation,
                target,
                source,
            },
            Some(found) if is_no_tls(&found) => RegistryError::WithoutTls { operation, target },
            Some(_) | None => RegistryError::Transport {
                operation,
                target,
                source: source.without_url(),
            },
        }
    }

    pub(super) fn slow(self, moved_bytes: usize, waited: Duration) -> RegistryError {
        RegistryError::Slow {
            operation: self.operation,
            target: self.target.to_owned(),
            moved_bytes,
            waited,
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
        self.exchange_with(subject, scope, &Bytes::new(), request)
            .await
    }

    /// The same with a body.
    pub(super) async fn exchange_with(
        &self,
        subject: Subject<'_>,
        scope: &Scope,
        body: &Bytes,
        request: &(dyn Fn(&reqwest::Client) -> RequestBuilder + Sync),
    ) -> Result<Response, RegistryError> {
        let known = self.authorization(scope);
        let response = self
            .send(subject, scope, body, request, known.as_ref())
            .await?;
        // A challenge from elsewhere is not ours to answer: whoever we were sent to could have us log in where it likes.
        if response.status() != StatusCode::UNAUTHORIZED
            || !self.is_own(&scope.repository, response.url())
        {
            return self.checked(subject, response).await;
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
                let response = self
                    .send(subject, scope, body, request, Some(&fresh))
                    .await?;
                let response = self.checked(subject, response).await?;
                self.remember(scope, fresh);
                Ok(response)
            }
            None => self.checked(subject, response).await,
        }
    }

    /// The whole answer.
    pub(super) async fn body(
        &self,
        subject: Subject<'_>,
        response: Response,
    ) -> Result<Bytes, RegistryError> {
        let mut whole = Vec::new();
        let mut body = Incoming::of(response, self.idle_timeout());
        while let Some(part) = body.next(subject).await? {
            whole.extend_from_slice(&part);
            if whole.len() > LARGEST_DOCUMENT_BYTES {
                return Err(subject.malformed(format!(
                    "the answer is larger than {LARGEST_DOCUMENT_BYTES} bytes"
                )));
            }
        }
        Ok(whole.into())
    }

    /// The answer, or an error with the registry's own words.
    pub(super) async fn checked(
        &self,
        subject: Subject<'_>,
        response: Response,
    ) -> Result<Response, RegistryError> {
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let retry_after = retry_after(response.headers());
        let said = self.body(subject, response).await.unwrap_or_default();
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

/// In seconds, or until a date by the registry's own clock.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = |name| Some(headers.get(name)?.to_str().ok()?.trim());
    let date = |name| jiff::fmt::rfc2822::parse(text(name)?).ok();
    if let Ok(seconds) = text(RETRY_AFTER)?.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let wait = date(RETRY_AFTER)?.duration_since(&date(DATE)?);
    Some(wait.try_into().unwrap_or(Duration::ZERO))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registry_asks_for_a_wait_in_seconds_or_until_a_date() {
        let date = |time: &str| format!("Wed, 25 Nov 2026 {time} GMT");
        for (asked, now, expected) in [
            ("7", None, Some(7)),
            (" 120 ", Some(date("10:00:00")), Some(120)),
            (&date("10:00:30"), Some(date("10:00:00")), Some(30)),
            (&date("09:59:00"), Some(date("10:00:00")), Some(0)),
            (&date("10:00:30"), None, None),
            ("soon", Some(date("10:00:00")), None),
            ("-1", None, None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, asked.parse().unwrap());
            if let Some(now) = &now {
                headers.insert(DATE, now.parse().unwrap());
            }
            let expected = expected.map(Duration::from_secs);
            assert_eq!(retry_after(&headers), expected, "{asked} at {now:?}");
        }
    }
}
