//! How does a challenge become an authorization? With the credential of the repository, or anonymously.

use bytes::Bytes;
use reqwest::header::CONTENT_TYPE;
use reqwest::{Method, RequestBuilder};
use serde::Deserialize;
use url::Url;

use super::auth::{Challenge, Credential};
use super::exchange::{Scope, Subject};
use super::journey::followed;
use super::{Registry, RegistryError, pace};

#[derive(Clone)]
pub(super) enum Authorization {
    Basic { user: String, password: String },
    Bearer(String),
}

impl std::fmt::Debug for Authorization {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Authorization(…)")
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

impl Registry {
    pub(super) fn authorization(&self, scope: &Scope) -> Option<Authorization> {
        self.inner.tokens.lock().ok()?.get(&scope.key()).cloned()
    }

    pub(super) fn remember(&self, scope: &Scope, authorization: Authorization) {
        if let Ok(mut tokens) = self.inner.tokens.lock() {
            tokens.insert(scope.key(), authorization);
        }
    }

    /// What the challenge asks for; `None` if we have nothing to answer it with.
    pub(super) async fn log_in(
        &self,
        subject: Subject<'_>,
        scope: &Scope,
        challenge: &Challenge,
    ) -> Result<Option<Authorization>, RegistryError> {
        let credential = self.inner.credentials.find(&scope.repository);
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
        let mut realm = Url::parse(realm)
            .map_err(|error| subject.malformed(format!("its token server is no URL: {error}")))?;
        let is_secure = !self.is_plain_http(&scope.repository);
        if is_secure && realm.scheme() != "https" {
            return Err(subject.malformed(
                "its token server is reached without TLS, where credentials and tokens would be read by anybody; name the registry with --plain-http if that is meant",
            ));
        }
        let http = self.client(&scope.repository)?;
        let http = &http;
        let service = service.as_deref();
        let is_post = matches!(credential, Some(Credential::IdentityToken(_)));
        let method = if is_post { Method::POST } else { Method::GET };
        let origin = realm.origin();
        if !is_post {
            let service = service.map(|service| ("service", service));
            let scopes = scope.scopes.iter().map(|scope| ("scope", scope.as_str()));
            realm
                .query_pairs_mut()
                .extend_pairs(service.into_iter().chain(scopes));
        }
        let hop = |url: Url| {
            let is_elsewhere = url.origin() != origin;
            async move {
                // Whoever has the password or the refresh token is us.
                if credential.is_some() && is_elsewhere {
                    return Err(subject.malformed(format!(
                        "its token server leads to {}, where credentials are not sent",
                        url.host_str().unwrap_or_default()
                    )));
                }
                let request = token_request(http, url, scope, service, credential).build();
                let request = request.map_err(|error| subject.transport(error))?;
                pace::send(subject, http, request, Bytes::new(), self.idle_timeout()).await
            }
        };
        let response = followed(subject, &method, realm, is_secure, hop).await?;
        let response = self
            .checked(subject, response)
            .await
            .map_err(RegistryError::of_token_server)?;
        let answer: TokenAnswer = serde_json::from_slice(&self.body(subject, response).await?)
            .map_err(|_| subject.malformed("the token server sent no token"))?;
        let tokens = [answer.token, answer.access_token];
        let token = tokens.into_iter().find(|token| !token.is_empty());
        match token {
            Some(token) => Ok(Some(Authorization::Bearer(token))),
            None => Err(subject.malformed("the token server sent no token")),
        }
    }
}

fn token_request(
    http: &reqwest::Client,
    realm: Url,
    scope: &Scope,
    service: Option<&str>,
    credential: Option<&Credential>,
) -> RequestBuilder {
    if let Some(Credential::IdentityToken(token)) = credential {
        let scopes = scope.scopes.join(" ");
        let form = [
            ("grant_type", "refresh_token"),
            ("client_id", "strata"),
            ("refresh_token", token.expose()),
            ("scope", &scopes),
            ("service", service.unwrap_or_default()),
        ];
        let body = url::form_urlencoded::Serializer::new(String::new())
            .extend_pairs(form)
            .finish();
        return http
            .post(realm)
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(body);
    }
    let request = http.get(realm);
    match credential {
        Some(Credential::Basic { user, password }) => {
            request.basic_auth(user, Some(password.expose()))
        }
        Some(Credential::IdentityToken(_)) | None => request,
    }
}
