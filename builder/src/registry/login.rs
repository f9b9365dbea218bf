//! How does a challenge become an authorization? With the credential of the repository, or anonymously.

use reqwest::header::CONTENT_TYPE;
use serde::Deserialize;

use super::auth::{Challenge, Credential};
use super::exchange::{Scope, Subject, bounded_body, checked};
use super::{Registry, RegistryError};

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
        let is_safe = url::Url::parse(realm)
            .is_ok_and(|realm| realm.scheme() == "https" || self.is_plain_http(&scope.repository));
        if credential.is_some() && !is_safe {
            return Err(subject.malformed(
                "its token server is reached without TLS, where credentials would be read by anybody; name the registry with --plain-http if that is meant",
            ));
        }
        let http = self.client(&scope.repository)?;
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
                http.post(realm)
                    .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
                    .body(body)
            }
            credential => {
                let service = service.iter().map(|s| ("service", s.as_str()));
                let query: Vec<(&str, &str)> = service
                    .chain(scope.scopes.iter().map(|s| ("scope", s.as_str())))
                    .collect();
                let request = http.get(realm).query(&query);
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
