//! Which credential belongs to which repository, and what does a registry's challenge ask for? Pure.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_STANDARD_NO_PAD};
use serde::Deserialize;

use crate::error::{Class, Classify};
use crate::reference::Repository;

/// A password or token; never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl Secret {
    /// For a header or a form, never for a message.
    pub(super) fn expose(&self) -> &str {
        &self.0
    }
}

/// How to log in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Credential {
    /// User and password.
    Basic {
        /// The user.
        user: String,
        /// The password.
        password: Secret,
    },
    /// A refresh token for the registry's token server.
    IdentityToken(Secret),
}

/// The credentials of a Docker configuration, by registry or by a path below one.
#[derive(Clone, Debug, Default)]
pub struct Credentials(BTreeMap<String, Credential>);

/// A Docker configuration that can't be used. Its content is never quoted.
#[derive(Debug, thiserror::Error)]
pub enum AuthFileError {
    /// Not JSON, or not of its shape.
    #[error("it is no Docker configuration (line {line}, column {column})")]
    Shape {
        /// From 1.
        line: usize,
        /// From 1.
        column: usize,
    },
    /// `auth` that is not base64 of `user:password`.
    #[error("the entry {0:?} has an \"auth\" that is not the base64 form of user:password")]
    Entry(String),
}

impl Classify for AuthFileError {
    fn class(&self) -> Class {
        Class::CONTENT
    }
}

#[derive(Deserialize)]
struct Entry {
    #[serde(default)]
    auth: Option<String>,
    #[serde(default)]
    username: Option<String>,
    #[serde(default)]
    password: Option<String>,
    #[serde(default)]
    identitytoken: Option<String>,
}

impl Credentials {
    /// Reads a Docker configuration in either form: `{"auths": {…}}`, or the entries alone as in `.dockercfg`.
    ///
    /// # Errors
    /// User: text that is neither, or an entry that can't be decoded.
    pub fn parse(text: &str) -> Result<Self, AuthFileError> {
        let shape = |error: serde_json::Error| AuthFileError::Shape {
            line: error.line(),
            column: error.column(),
        };
        let mut document: BTreeMap<String, serde_json::Value> =
            serde_json::from_str(text).map_err(shape)?;
        let entries: BTreeMap<String, Entry> = match document.remove("auths") {
            Some(auths) => serde_json::from_value(auths).map_err(shape)?,
            None => {
                // credential helpers name programs that don't exist where we run
                document.retain(|key, _| {
                    !matches!(key.as_str(), "credHelpers" | "credsStore" | "HttpHeaders")
                });
                serde_json::from_value(document.into_iter().collect()).map_err(shape)?
            }
        };
        let mut credentials = BTreeMap::new();
        for (key, entry) in entries {
            if let Some(credential) = credential(&key, entry)? {
                credentials.insert(normalized(&key), credential);
            }
        }
        Ok(Self(credentials))
    }

    /// With those of `others` that we have none for.
    #[must_use]
    pub fn or(mut self, others: Self) -> Self {
        for (key, credential) in others.0 {
            self.0.entry(key).or_insert(credential);
        }
        self
    }

    /// The credential of the longest entry that the repository lies below.
    #[must_use]
    pub fn find(&self, repository: &Repository) -> Option<&Credential> {
        let full = repository.to_string();
        let is_above = |key: &str| {
            full == key
                || full
                    .strip_prefix(key)
                    .is_some_and(|rest| rest.starts_with('/'))
        };
        self.0
            .iter()
            .filter(|(key, _)| is_above(key))
            .max_by_key(|(key, _)| key.len())
            .map(|(_, credential)| credential)
    }
}

fn credential(key: &str, entry: Entry) -> Result<Option<Credential>, AuthFileError> {
    let nonempty = |text: Option<String>| text.filter(|t| !t.is_empty());
    if let Some(token) = nonempty(entry.identitytoken) {
        return Ok(Some(Credential::IdentityToken(Secret(token))));
    }
    if let Some(auth) = nonempty(entry.auth) {
        let bad = || AuthFileError::Entry(key.to_owned());
        let decoded = BASE64_STANDARD
            .decode(auth.trim())
            .or_else(|_| BASE64_STANDARD_NO_PAD.decode(auth.trim()))
            .map_err(|_| bad())?;
        let decoded = String::from_utf8(decoded).map_err(|_| bad())?;
        let (user, password) = decoded.split_once(':').ok_or_else(bad)?;
        return Ok(Some(Credential::Basic {
            user: user.to_owned(),
            password: Secret(password.trim_end_matches('\0').to_owned()),
        }));
    }
    Ok(match (nonempty(entry.username), nonempty(entry.password)) {
        (Some(user), Some(password)) => Some(Credential::Basic {
            user,
            password: Secret(password),
        }),
        _ => None,
    })
}

/// `https://index.docker.io/v1/` → `docker.io`; other keys without scheme, version and closing slash.
fn normalized(key: &str) -> String {
    let bare = key
        .trim_start_matches("https://")
        .trim_start_matches("http://")
        .trim_end_matches('/');
    let bare = bare
        .strip_suffix("/v1")
        .or_else(|| bare.strip_suffix("/v2"))
        .unwrap_or(bare);
    match bare {
        "index.docker.io" | "registry-1.docker.io" => "docker.io".to_owned(),
        bare => bare.to_owned(),
    }
}

/// What a 401 asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    Basic,
    Bearer {
        realm: String,
        service: Option<String>,
    },
}

impl Challenge {
    /// Reads one WWW-Authenticate header.
    pub fn parse(header: &str) -> Option<Self> {
        let (scheme, rest) = header.trim().split_once(' ').unwrap_or((header.trim(), ""));
        if scheme.eq_ignore_ascii_case("basic") {
            return Some(Self::Basic);
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let parameter = |name: &str| {
            parameters(rest)
                .into_iter()
                .find(|(key, _)| key.eq_ignore_ascii_case(name))
                .map(|(_, value)| value)
        };
        Some(Self::Bearer {
            realm: parameter("realm")?,
            service: parameter("service"),
        })
    }
}

/// `a="b, c",d=e`
fn parameters(text: &str) -> Vec<(String, String)> {
    let mut parameters = Vec::new();
    let mut rest = text.trim();
    while let Some((key, after)) = rest.split_once('=') {
        let (value, next) = match after.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').unwrap_or((quoted, "")),
            None => after.split_once(',').unwrap_or((after, "")),
        };
        parameters.push((key.trim_matches([' ', ',']).to_owned(), value.to_owned()));
        rest = next.trim_start_matches([' ', ',']);
    }
    parameters
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(credentials: &Credentials, repository: &str) -> Option<String> {
        let reference: crate::reference::Reference = repository.parse().unwrap();
        match credentials.find(&reference.repository)? {
            Credential::Basic { user, password } => Some(format!("{user}:{}", password.expose())),
            Credential::IdentityToken(token) => Some(format!("token {}", token.expose())),
        }
    }

    #[test]
    fn the_longest_entry_above_a_repository_wins_in_both_forms() {
        let entries = r#"{"quay.io": {"auth": "YTpi"}, "quay.io/org": {"username": "c", "password": "d"}, "quay.io/org/os": {"identitytoken": "t"},
            "https://index.docker.io/v1/": {"auth": "ZTpmOmc="}, "10.0.0.1:5000": {"auth": ""}}"#;
        for text in [
            format!(r#"{{"auths": {entries}, "credHelpers": {{"x": "y"}}}}"#),
            entries.to_owned(),
        ] {
            let credentials = Credentials::parse(&text).unwrap();
            for (repository, expected) in [
                ("quay.io/other/os", Some("a:b")),
                ("quay.io/org/x", Some("c:d")),
                ("quay.io/organisation/x", Some("a:b")),
                ("quay.io/org/os:tag", Some("token t")),
                ("busybox", Some("e:f:g")),
                ("10.0.0.1:5000/x", None),
                ("elsewhere.io/x", None),
            ] {
                assert_eq!(
                    user(&credentials, repository).as_deref(),
                    expected,
                    "{repository}"
                );
            }
        }
    }

    #[test]
    fn what_is_no_docker_configuration_is_refused_without_quoting_it() {
        for text in [
            "",
            "null",
            "[]",
            r#"{"auths": ["hunter2"]}"#,
            r#"{"auths": {"x": {"auth": "hunter2!"}}}"#,
            r#"{"auths": {"x": {"auth": "aHVudGVyMg=="}}}"#,
        ] {
            let error = Credentials::parse(text).unwrap_err();
            assert!(
                !format!("{error} {error:?}").contains("hunter2"),
                "{error:?}"
            );
        }
        let credentials =
            Credentials::parse(r#"{"auths": {"x.io": {"auth": "YTpodW50ZXIy"}}}"#).unwrap();
        assert!(!format!("{credentials:?}").contains("hunter2"));
    }

    #[test]
    fn challenges_are_read_with_quoted_commas() {
        let bearer = |realm: &str, service: Option<&str>| {
            Some(Challenge::Bearer {
                realm: realm.to_owned(),
                service: service.map(str::to_owned),
            })
        };
        for (header, expected) in [
            ("Basic realm=\"x\"", Some(Challenge::Basic)),
            (
                "bearer realm=\"https://a/token\",service=\"s\",scope=\"repository:x:pull,push\"",
                bearer("https://a/token", Some("s")),
            ),
            (
                "Bearer service=s, realm=https://a",
                bearer("https://a", Some("s")),
            ),
            ("Bearer service=s", None),
            ("Negotiate", None),
        ] {
            assert_eq!(Challenge::parse(header), expected, "{header}");
        }
    }
}
