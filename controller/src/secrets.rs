//! Is this Secret one that an image can be pulled or pushed with, and how does it read as dockerconfigjson?
//!
//! Pure. Contents never appear in an error or in Debug.

use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::api::core::v1::Secret;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use strata_builder::error::{Class, Classify};
use strata_builder::registry::Credentials;

/// The newer form: `{"auths": {…}}`.
pub const JSON_TYPE: &str = "kubernetes.io/dockerconfigjson";
/// Its key.
pub const JSON_KEY: &str = ".dockerconfigjson";
/// The older form: the inner map alone.
pub const LEGACY_TYPE: &str = "kubernetes.io/dockercfg";
/// Its key.
pub const LEGACY_KEY: &str = ".dockercfg";

/// A dockerconfigjson document.
#[derive(Clone, PartialEq, Eq)]
pub struct DockerConfig(Vec<u8>);

impl DockerConfig {
    /// Without credentials.
    #[must_use]
    pub fn anonymous() -> Self {
        Self(br#"{"auths":{}}"#.to_vec())
    }

    /// The document.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for DockerConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DockerConfig(…)")
    }
}

/// A Secret that can't be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("secret {secret}: {fault}")]
pub struct SecretError {
    /// metadata.name.
    pub secret: String,
    /// What is wrong with it.
    pub fault: SecretFault,
}

/// What is wrong with a Secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SecretFault {
    /// No data at all.
    #[error("it has no data; it needs the key {JSON_KEY} or {LEGACY_KEY}")]
    Empty,
    /// Another type.
    #[error("its type is {0:?}; it must be {JSON_TYPE} or {LEGACY_TYPE}")]
    Type(String),
    /// The key that goes with the type is absent or empty.
    #[error("the key {0} is missing or empty")]
    Missing(&'static str),
    /// Both keys.
    #[error("it has the key {0} besides the one of its type; remove it")]
    Both(&'static str),
    /// Not the expected document.
    #[error("the key {key} holds no docker configuration: {why}")]
    Content {
        /// Which key.
        key: &'static str,
        /// Where it departs from one, without quoting it.
        why: &'static str,
    },
    /// An entry that holds no credential.
    #[error("the key {key}: {why}")]
    Entry {
        /// Which key.
        key: &'static str,
        /// Which entry and why.
        why: String,
    },
}

impl Classify for SecretError {
    fn class(&self) -> Class {
        match self.fault {
            SecretFault::Empty
            | SecretFault::Type(_)
            | SecretFault::Missing(_)
            | SecretFault::Both(_)
            | SecretFault::Content { .. }
            | SecretFault::Entry { .. } => Class::CONTENT,
        }
    }
}

/// One registry's credentials; another field is an error, as it is for the incumbent.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    username: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    password: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    email: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    auth: Option<String>,
}

#[derive(Serialize)]
struct Document {
    auths: BTreeMap<String, Entry>,
}

/// The Secret's credentials in the newer form, whichever it has.
///
/// # Errors
///
/// User: the Secret must be changed; the error names it and the key.
pub fn docker_config(secret: &Secret) -> Result<DockerConfig, SecretError> {
    read(secret).map_err(|fault| SecretError {
        secret: secret.metadata.name.clone().unwrap_or_default(),
        fault,
    })
}

fn read(secret: &Secret) -> Result<DockerConfig, SecretFault> {
    let entries = secret
        .data
        .as_ref()
        .filter(|entries| !entries.is_empty())
        .ok_or(SecretFault::Empty)?;
    let (key, other) = match secret.type_.as_deref() {
        Some(JSON_TYPE) => (JSON_KEY, LEGACY_KEY),
        Some(LEGACY_TYPE) => (LEGACY_KEY, JSON_KEY),
        other => return Err(SecretFault::Type(other.unwrap_or_default().to_owned())),
    };
    if entries.contains_key(other) {
        return Err(SecretFault::Both(other));
    }
    let body = entries
        .get(key)
        .map(|bytes| bytes.0.as_slice())
        .filter(|body| !body.is_empty())
        .ok_or(SecretFault::Missing(key))?;
    let auths = auths(body).map_err(|why| SecretFault::Content { key, why })?;
    // An Entry is made of strings only, so writing it can't fail; if it did, the Secret would be at fault.
    let document =
        serde_json::to_string(&Document { auths }).map_err(|_| SecretFault::Content {
            key,
            why: "it can't be written again",
        })?;
    // what the builder would say of it, before there is one
    Credentials::parse(&document).map_err(|error| SecretFault::Entry {
        key,
        why: error.to_string(),
    })?;
    Ok(DockerConfig(document.into_bytes()))
}

/// Either form, whatever the Secret's type says; helpers and stores of another machine are left out.
fn auths(body: &[u8]) -> Result<BTreeMap<String, Entry>, &'static str> {
    let document: Value = serde_json::from_slice(body).map_err(|_| "it is no JSON")?;
    let Value::Object(mut fields) = document else {
        return Err("it is no JSON object");
    };
    let map = match fields.remove("auths") {
        None => Value::Object(fields),
        Some(auths) => {
            fields.remove("credHelpers");
            fields.remove("credsStore");
            if !fields.is_empty() {
                return Err("it has other fields than auths, credHelpers and credsStore");
            }
            auths
        }
    };
    serde_json::from_value(map).map_err(
        |_| "each entry must be an object of the strings username, password, email and auth",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::ByteString;

    fn secret(type_: &str, entries: &[(&str, &str)]) -> Secret {
        let mut secret = Secret {
            type_: Some(type_.to_owned()),
            data: Some(
                entries
                    .iter()
                    .map(|(k, v)| ((*k).to_owned(), ByteString(v.as_bytes().to_vec())))
                    .collect(),
            ),
            ..Secret::default()
        };
        secret.metadata.name = Some("push".to_owned());
        secret
    }

    #[test]
    fn both_forms_become_dockerconfigjson_whatever_the_type_says() {
        let wanted = r#"{"auths":{"q.io":{"auth":"eDp5"}}}"#;
        let legacy = r#"{"q.io":{"auth":"eDp5"}}"#;
        let helped =
            r#"{"auths":{"q.io":{"auth":"eDp5"}},"credsStore":"x","credHelpers":{"a":"b"}}"#;
        for (type_, key, body, wanted) in [
            (JSON_TYPE, JSON_KEY, wanted, wanted),
            (JSON_TYPE, JSON_KEY, legacy, wanted),
            (JSON_TYPE, JSON_KEY, helped, wanted),
            (LEGACY_TYPE, LEGACY_KEY, legacy, wanted),
            (LEGACY_TYPE, LEGACY_KEY, wanted, wanted),
            (JSON_TYPE, JSON_KEY, "{}", r#"{"auths":{}}"#),
        ] {
            let read = docker_config(&secret(type_, &[(key, body)])).unwrap();
            assert_eq!(std::str::from_utf8(read.as_bytes()).unwrap(), wanted);
            assert_eq!(format!("{read:?}"), "DockerConfig(…)");
        }
    }

    #[test]
    fn a_secret_that_cannot_be_used_is_named_with_its_key_and_never_quoted() {
        for (secret, wanted) in [
            (secret(JSON_TYPE, &[]), "secret push: it has no data"),
            (secret("Opaque", &[("a", "b")]), "its type is \"Opaque\""),
            (
                secret(JSON_TYPE, &[("a", "b")]),
                "the key .dockerconfigjson is missing",
            ),
            (
                secret(JSON_TYPE, &[(JSON_KEY, "")]),
                "the key .dockerconfigjson is missing",
            ),
            (
                secret(LEGACY_TYPE, &[(JSON_KEY, "{}")]),
                "the key .dockerconfigjson besides",
            ),
            (secret(JSON_TYPE, &[(JSON_KEY, "hunter2")]), "it is no JSON"),
            (
                secret(JSON_TYPE, &[(JSON_KEY, "null")]),
                "it is no JSON object",
            ),
            (
                secret(JSON_TYPE, &[(JSON_KEY, r#"{"auths":"hunter2"}"#)]),
                "each entry",
            ),
            (
                secret(
                    JSON_TYPE,
                    &[(JSON_KEY, r#"{"auths":{"q":{"token":"hunter2"}}}"#)],
                ),
                "each entry",
            ),
            (
                secret(JSON_TYPE, &[(JSON_KEY, r#"{"auths":{},"hunter2":1}"#)]),
                "other fields",
            ),
            (
                secret(
                    JSON_TYPE,
                    &[(JSON_KEY, r#"{"auths":{"q":{"auth":"aHVudGVyMg=="}}}"#)],
                ),
                "the key .dockerconfigjson: the entry \"q\" has an \"auth\"",
            ),
        ] {
            let error = docker_config(&secret).unwrap_err();
            let told = error.to_string();
            assert!(told.contains(wanted), "{told}");
            assert!(!told.contains("hunter2"), "{told}");
            assert_eq!(error.class(), Class::CONTENT);
        }
    }
}
