//! What a registry's answers mean, and who can do something about them.

use std::time::Duration;

use super::policy::Denied;
use crate::digest::Digest;
use crate::error::{Class, Classify};
use crate::reference::InvalidReference;

/// What errors of a blob's way into a registry say was tried.
pub(super) const UPLOAD_OPERATION: &str = "upload a blob to";

/// A failed conversation with a registry. Credentials and query strings are never part of it.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The HTTP client can't be made: CA certificates that don't parse.
    #[error("set up the HTTP client")]
    Client(#[source] reqwest::Error),
    /// A registry's own certificates.
    #[error("the certificates for {host} can't be used")]
    Certificates {
        /// `HOST[:PORT]`
        host: String,
        /// Why not.
        source: reqwest::Error,
    },
    /// By the rules of registries.conf.
    #[error("{target}: registries.conf blocks this registry")]
    Blocked {
        /// What was to be pulled or pushed.
        target: String,
    },
    /// By the rules of policy.json.
    #[error("{target} may not be used")]
    Policy {
        /// What was to be pulled.
        target: String,
        /// Why not.
        source: Denied,
    },
    /// A place that registries.conf names.
    #[error("registries.conf")]
    Place(#[from] InvalidReference),
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
    /// The token server's refusal: whatever it says, nothing is known about the image.
    #[error("{operation} {target}: the token server answered {status}{}{detail}", code.as_deref().map(|c| format!(" {c}")).unwrap_or_default())]
    NoToken {
        /// `get a token for`.
        operation: &'static str,
        /// Repository, with tag or digest.
        target: String,
        /// HTTP status.
        status: u16,
        /// The server's error code.
        code: Option<String>,
        /// `: ` and the server's own words, or empty.
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
    /// A connection on which nothing moves, or next to nothing.
    #[error("{operation} {target}: only {moved_bytes} bytes moved in {} s", waited.as_secs())]
    Slow {
        /// What was tried.
        operation: &'static str,
        /// Repository, with tag or digest.
        target: String,
        /// Of a body.
        moved_bytes: usize,
        /// For these.
        waited: Duration,
    },
    /// The registry's count of an upload's bytes is none that we can go on with.
    #[error(
        "upload a blob to {target}: the registry has {has_bytes} bytes where {expected} were expected"
    )]
    Miscounted {
        /// Repository.
        target: String,
        /// It says.
        has_bytes: u64,
        /// What was sent for sure, and what was sent at most.
        expected: String,
    },
    /// TLS with a certificate that nobody vouches for, or for another name; or a registry that doesn't trust ours.
    #[error("{operation} {target}: no trusted connection")]
    Untrusted {
        /// What was tried.
        operation: &'static str,
        /// Repository, with tag or digest.
        target: String,
        /// What is wrong with it.
        source: rustls::Error,
    },
    /// HTTP where TLS was expected.
    #[error(
        "{operation} {target}: the registry speaks no TLS; if it shall be spoken to without, say so: --plain-http HOST[:PORT], or insecure = true in registries.conf"
    )]
    WithoutTls {
        /// What was tried.
        operation: &'static str,
        /// Repository, with tag or digest.
        target: String,
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

/// What TLS said, if that is why there is no connection.
pub(super) fn of_tls<'a>(
    error: &'a (dyn std::error::Error + 'static),
) -> Option<&'a rustls::Error> {
    if let Some(found) = error.downcast_ref::<rustls::Error>() {
        return Some(found);
    }
    // An I/O error's source is that of the error which it wraps.
    let wrapped = error.downcast_ref::<std::io::Error>();
    let wrapped =
        wrapped.and_then(|error| Some(error.get_ref()? as &(dyn std::error::Error + 'static)));
    of_tls(wrapped.or(error.source())?)
}

/// True if it is about a certificate, theirs or ours.
pub(super) fn is_distrust(error: &rustls::Error) -> bool {
    use rustls::AlertDescription as Alert;
    matches!(
        error,
        rustls::Error::InvalidCertificate(_)
            | rustls::Error::AlertReceived(
                Alert::BadCertificate
                    | Alert::CertificateRequired
                    | Alert::CertificateUnknown
                    | Alert::CertificateExpired
                    | Alert::CertificateRevoked
                    | Alert::UnknownCA,
            )
    )
}

/// True if the other side doesn't speak TLS at all.
pub(super) fn is_no_tls(error: &rustls::Error) -> bool {
    use rustls::InvalidMessage;
    matches!(
        error,
        rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType)
    )
}

impl RegistryError {
    /// The repository, as a rule with tag or digest, whose registry refused our credentials.
    #[must_use]
    pub fn refused_by(&self) -> Option<&str> {
        match self {
            Self::GaveUp { source, .. } => source.refused_by(),
            Self::Refused { target, .. } | Self::NoToken { target, .. }
                if self.class() == Class::RIGHTS =>
            {
                Some(target)
            }
            _ => None,
        }
    }

    /// What went wrong, in a word: the status of a refusal, or its like.
    pub(crate) fn cause(&self) -> String {
        match self {
            Self::Refused { status, .. } | Self::NoToken { status, .. } => status.to_string(),
            Self::GaveUp { source, .. } => source.cause(),
            Self::Transport { .. } => "connection".to_owned(),
            Self::Slow { .. } => "slow".to_owned(),
            Self::WrongDigest { .. } => "digest".to_owned(),
            _ => "answer".to_owned(),
        }
    }

    /// How long the registry wants us to wait.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused { retry_after, .. } | Self::NoToken { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// The same refusal, from a token server instead of the registry.
    pub(super) fn of_token_server(self) -> Self {
        match self {
            Self::Refused {
                operation,
                target,
                status,
                code,
                detail,
                retry_after,
            } => Self::NoToken {
                operation,
                target,
                status,
                code,
                detail,
                retry_after,
            },
            other => other,
        }
    }

    /// Whether the registry or its token server has answered that it won't, and will say so again: 4xx, but for those that may pass.
    pub(super) fn is_refusal(&self) -> bool {
        let is_told = match self {
            Self::Refused { status, .. } | Self::NoToken { status, .. } => {
                (400..500).contains(status) && ![408, 425, 429].contains(status)
            }
            _ => false,
        };
        is_told || self.is_not_found()
    }

    /// Whether an upload that was begun can't be ended: the registry no longer knows it, or has other bytes. It must be begun again.
    #[must_use]
    pub fn is_lost_upload(&self) -> bool {
        match self {
            Self::Refused {
                operation,
                status,
                code,
                ..
            } => {
                let code = code.as_deref().unwrap_or_default();
                *operation == UPLOAD_OPERATION
                    && (*status == 404
                        || matches!(
                            code,
                            "BLOB_UPLOAD_UNKNOWN" | "BLOB_UPLOAD_INVALID" | "DIGEST_INVALID"
                        ))
            }
            Self::Miscounted { .. } => true,
            Self::GaveUp { source, .. } => source.is_lost_upload(),
            _ => false,
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
}

impl Classify for RegistryError {
    fn class(&self) -> Class {
        match self {
            Self::Client(_) => Class::INTERNAL,
            Self::Certificates { .. } => Class::CONTRACT,
            Self::Blocked { .. } | Self::Policy { .. } | Self::Place(_) => Class::CONTENT,
            Self::Untrusted { .. } => Class::RIGHTS,
            Self::WithoutTls { .. } => Class::CONTENT,
            Self::Transport { .. } | Self::Slow { .. } | Self::Miscounted { .. } => {
                Class::Transient
            }
            Self::NoToken {
                status: 408 | 425 | 429 | 500 | 502 | 503 | 504,
                ..
            } => Class::Transient,
            Self::NoToken { .. } => Class::RIGHTS,
            _ if self.is_lost_upload() => Class::Transient,
            // a piece that came twice: the registry is asked how far it is
            Self::Refused {
                operation: UPLOAD_OPERATION,
                status: 416,
                ..
            } => Class::Transient,
            // a blob that was there a moment ago: a registry that lost it, or hasn't told all its parts yet
            Self::Refused {
                code: Some(code), ..
            } if code == "MANIFEST_BLOB_UNKNOWN" => Class::Transient,
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
