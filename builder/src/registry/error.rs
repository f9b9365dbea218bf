//! What a registry's answers mean, and who can do something about them.

use std::time::Duration;

use crate::digest::Digest;
use crate::error::{Class, Classify};

/// A failed conversation with a registry. Credentials and query strings are never part of it.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The HTTP client can't be made: CA certificates that don't parse.
    #[error("set up the HTTP client")]
    Client(#[source] reqwest::Error),
    /// An answer that is a refusal.
    #[error("{operation} {target}: the registry answered {status}{}{detail}", code.as_deref().map(|c| format!(" {c}")).unwrap_or_default())]
    Refused {
        /// What was tried: `push manifest`.
        operation: &'static str,
        /// Repository, with tag or digest.
        target: String,
        /// HTTP status.
        status: u16,
        /// The registry's error code: `MANIFEST_UNKNOWN`.
        code: Option<String>,
        /// `: ` and the registry's own words, or empty.
        detail: String,
        /// From the Retry-After header.
        retry_after: Option<Duration>,
    },
    /// No answer, or one that broke off.
    #[error("{operation} {target}")]
    Transport {
        /// What was tried.
        operation: &'static str,
        /// Repository, with tag or digest.
        target: String,
        /// Without its URL, which may hold a token.
        source: reqwest::Error,
    },
    /// Transient to the end.
    #[error("gave up after {attempts} attempts in {} s", elapsed.as_secs())]
    GaveUp {
        /// In all.
        attempts: u32,
        /// From the first attempt's start.
        elapsed: Duration,
        /// The last one.
        source: Box<RegistryError>,
    },
    /// Bytes that are not what their digest says.
    #[error("{target}: the registry sent {got} where {wanted} was asked for")]
    WrongDigest {
        /// Repository.
        target: String,
        /// Asked for.
        wanted: Digest,
        /// Came.
        got: Digest,
    },
    /// An answer that the specification does not allow.
    #[error("{operation} {target}: {what}")]
    Malformed {
        /// What was tried.
        operation: &'static str,
        /// Repository, with tag or digest.
        target: String,
        /// What is wrong with the answer.
        what: String,
    },
    /// An index without an image for us.
    #[error("{target} has no image for linux/{architecture}")]
    NoPlatform {
        /// The index.
        target: String,
        /// GOARCH.
        architecture: String,
    },
}

impl RegistryError {
    /// How long the registry wants us to wait.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// Whether the registry said that there is no such manifest, blob or repository.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        match self {
            Self::Refused {
                status,
                code,
                detail,
                ..
            } => {
                let code = code.as_deref().unwrap_or_default();
                // Quay answers 500 UNKNOWN for what was deleted or has expired; Harbor and others use their own codes with 404
                *status == 404
                    || matches!(code, "MANIFEST_UNKNOWN" | "NAME_UNKNOWN" | "BLOB_UNKNOWN")
                    || (code == "UNKNOWN"
                        && ["not found", "deleted", "expired"]
                            .iter()
                            .any(|w| detail.to_lowercase().contains(w)))
            }
            Self::GaveUp { source, .. } => source.is_not_found(),
            _ => false,
        }
    }

    /// Whether the registry can't or won't delete: a missing right, or no such function.
    #[must_use]
    pub fn is_refused_deletion(&self) -> bool {
        match self {
            Self::Refused { status, .. } => matches!(status, 400 | 401 | 403 | 405 | 501),
            Self::GaveUp { source, .. } => source.is_refused_deletion(),
            _ => false,
        }
    }
}

impl Classify for RegistryError {
    fn class(&self) -> Class {
        match self {
            Self::Client(_) => Class::INTERNAL,
            Self::Transport { .. } => Class::Transient,
            _ if self.is_not_found() => Class::CONTENT,
            Self::Refused {
                status: 408 | 425 | 429 | 500 | 502 | 503 | 504,
                ..
            } => Class::Transient,
            Self::Refused {
                status: 401 | 403, ..
            } => Class::RIGHTS,
            Self::Refused { .. } | Self::Malformed { .. } => Class::INTERNAL,
            // a proxy that cut or spoiled a body may do better next time
            Self::WrongDigest { .. } => Class::Transient,
            Self::GaveUp { source, .. } => source.class(),
            Self::NoPlatform { .. } => Class::CONTENT,
        }
    }
}
