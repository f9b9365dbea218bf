//! Where does a request go? To its registry, and from there to where that sends it: a few times, never away from TLS, and with credentials only at their own place.

use bytes::Bytes;
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use url::Url;

use super::exchange::{Scope, Subject, location};
use super::login::Authorization;
use super::{Registry, RegistryError, pace};
use crate::reference::Repository;

/// A registry sends us to its storage once; some put a cache between. Files that ADD names are found further away.
const MOST_REDIRECTS: usize = 10;

/// Performs `hop` for `url`, and for each place that the answers lead to.
///
/// # Errors
/// Those of `hop`. Permanent: too many places, or one without TLS where `is_secure`, or after one with it.
pub(super) async fn followed<F, Fut>(
    subject: Subject<'_>,
    method: &Method,
    mut url: Url,
    mut is_secure: bool,
    hop: F,
) -> Result<Response, RegistryError>
where
    F: Fn(Url) -> Fut,
    Fut: Future<Output = Result<Response, RegistryError>>,
{
    for _ in 0..=MOST_REDIRECTS {
        is_secure |= url.scheme() == "https";
        if is_secure && url.scheme() != "https" {
            return Err(
                subject.malformed("it leads away from TLS, to where anybody could read along")
            );
        }
        let response = hop(url).await?;
        match redirection(method, &response) {
            Some(next) => url = next,
            None => return Ok(response),
        }
    }
    Err(subject.malformed(format!(
        "it leads to more than {MOST_REDIRECTS} other places"
    )))
}

/// Where the answer leads, if what was asked is to be asked there.
fn redirection(method: &Method, response: &Response) -> Option<Url> {
    let is_look = [Method::GET, Method::HEAD].contains(method);
    match response.status() {
        StatusCode::TEMPORARY_REDIRECT | StatusCode::PERMANENT_REDIRECT => location(response),
        StatusCode::MOVED_PERMANENTLY | StatusCode::FOUND | StatusCode::SEE_OTHER if is_look => {
            location(response)
        }
        _ => None,
    }
}

/// A port for TLS answers 400 to HTTP, a web server leads to TLS.
fn is_of_a_registry(response: &Response) -> bool {
    let known = [StatusCode::UNAUTHORIZED, StatusCode::NOT_FOUND];
    response.status().is_success() || known.contains(&response.status())
}

impl Registry {
    /// Sends the request to its registry and on.
    pub(super) async fn send(
        &self,
        subject: Subject<'_>,
        scope: &Scope,
        body: &Bytes,
        request: &(dyn Fn(&reqwest::Client) -> RequestBuilder + Sync),
        authorization: Option<&Authorization>,
    ) -> Result<Response, RegistryError> {
        let repository = &scope.repository;
        let http = self.client(repository)?;
        let http = &http;
        let build = || {
            request(http)
                .build()
                .map_err(|error| subject.transport(error))
        };
        let first = build()?;
        let hop = |url: Url| async move {
            let mut request = build()?;
            *request.url_mut() = url;
            let own = self.is_own(repository, request.url());
            let authorization = authorization.filter(|_| own);
            self.send_once(subject, http, request, body.clone(), authorization)
                .await
        };
        let is_secure = !self.is_plain_http(repository);
        let url = self.as_learned(repository, first.url());
        let plain = self.without_tls(repository, &url);
        let sent = followed(subject, first.method(), url, is_secure, hop).await;
        // A registry that may be spoken to without TLS: it has just shown that it has none, or isn't where TLS would be.
        let (failed, plain) = match (sent, plain) {
            (Err(error @ RegistryError::WithoutTls { .. }), Some(plain)) => (error, plain),
            (Err(RegistryError::Transport { source, .. }), Some(plain)) if source.is_connect() => {
                (subject.transport(source), plain)
            }
            (sent, _) => return sent,
        };
        let mut request = build()?;
        *request.url_mut() = plain;
        // Nobody is logged in to a registry that wasn't reached before.
        let sent = self.send_once(subject, http, request, body.clone(), None);
        match sent.await {
            Ok(response) if is_of_a_registry(&response) => {
                self.learn_without_tls(repository);
                Ok(response)
            }
            Ok(_) | Err(_) => Err(failed),
        }
    }

    /// A file that is no registry's: nobody's credentials go along.
    pub(crate) async fn file(
        &self,
        subject: Subject<'_>,
        url: Url,
    ) -> Result<Response, RegistryError> {
        let http = &self.inner.http;
        let hop = |url: Url| async move {
            let request = http.get(url).build();
            let request = request.map_err(|error| subject.transport(error))?;
            pace::send(subject, http, request, Bytes::new(), self.idle_timeout()).await
        };
        followed(subject, &Method::GET, url, false, hop).await
    }

    async fn send_once(
        &self,
        subject: Subject<'_>,
        http: &reqwest::Client,
        request: reqwest::Request,
        body: Bytes,
        authorization: Option<&Authorization>,
    ) -> Result<Response, RegistryError> {
        let request = RequestBuilder::from_parts(http.clone(), request);
        let request = match authorization {
            Some(Authorization::Basic { user, password }) => {
                request.basic_auth(user, Some(password))
            }
            Some(Authorization::Bearer(token)) => request.bearer_auth(token),
            None => request,
        };
        let request = request.build().map_err(|error| subject.transport(error))?;
        pace::send(subject, http, request, body, self.idle_timeout()).await
    }

    /// Whether `url` is at the repository's own registry, over the transport that it is spoken to by: only then may it see credentials. An upload's
    /// Location, or a redirect, may name any place.
    pub(super) fn is_own(&self, repository: &Repository, url: &Url) -> bool {
        let own = self.url(repository, "").parse::<Url>();
        own.is_ok_and(|own| own.origin() == url.origin())
    }
}
