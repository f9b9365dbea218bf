//! What can go wrong in a pass, and who can end it?

use std::future::Future;
use std::time::Duration;

use strata_builder::error::{Class, Classify, chain};

use crate::apply::image::DeleteError;
use crate::ledger::LedgerError;
use crate::registries::RegistriesError;

/// A pass that could not be finished; the object is looked at again.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The apiserver didn't give an object.
    #[error("read {object}")]
    Read {
        /// Kind and name.
        object: String,
        /// Why.
        #[source]
        source: kube::Error,
    },
    /// The apiserver didn't take a change.
    #[error("{step} {object}")]
    Write {
        /// The step's name.
        step: &'static str,
        /// Kind and name.
        object: String,
        /// Why.
        #[source]
        source: kube::Error,
    },
    /// An object of the same name belongs to somebody else, or to an earlier build that is still being removed.
    #[error("{step} {object}: there is one with another owner")]
    Taken {
        /// The step's name.
        step: &'static str,
        /// Kind and name, and the namespace if it has one.
        object: String,
        /// Whether it is being deleted.
        is_going: bool,
    },
    /// A registry can't be reached as it should be.
    #[error("reach the registry of {image}")]
    Access {
        /// The image.
        image: String,
        /// Why.
        #[source]
        source: RegistriesError,
    },
    /// A registry failed.
    #[error("delete {image}")]
    Registry {
        /// By digest.
        image: String,
        /// Why.
        #[source]
        source: DeleteError,
    },
    /// Something has begun to use an image since it was seen to be unneeded.
    #[error("delete {image}: {used} by now")]
    InUse {
        /// By digest.
        image: String,
        /// Who.
        used: String,
    },
    /// An object isn't what its type says.
    #[error("{0}")]
    Undecodable(String),
    /// The ledger can't be read or written.
    #[error("keep the ledger of images")]
    Ledger(#[from] LedgerError),
    /// Nobody answered.
    #[error("{what} was not done after {} s", limit.as_secs())]
    Timeout {
        /// What was tried.
        what: &'static str,
        /// How long it may take.
        limit: Duration,
    },
}

impl Error {
    /// Whether another writer was faster: nothing is wrong, the object is to be looked at again at once.
    #[must_use]
    pub fn is_conflict(&self) -> bool {
        match self {
            Error::Write { source, .. } => code(source) == Some(409),
            Error::Ledger(source) => source.is_conflict(),
            Error::Read { .. }
            | Error::Taken { .. }
            | Error::Access { .. }
            | Error::Registry { .. }
            | Error::InUse { .. }
            | Error::Undecodable(_)
            | Error::Timeout { .. } => false,
        }
    }
}

impl Error {
    /// What is in the way of a change, if somebody must do something about it: a missing right, a quota, a webhook, somebody else's object.
    #[must_use]
    pub fn refusal(&self) -> Option<String> {
        match self {
            Error::Write { object, source, .. } if class_of(source) != Class::Transient => {
                let why = match source {
                    kube::Error::Api(status) => status.message.clone(),
                    other => chain(other),
                };
                Some(format!("the apiserver refuses {object}: {why}"))
            }
            Error::Taken {
                object, is_going, ..
            } => Some(match is_going {
                true => format!(
                    "{object} of an earlier owner is in the way until its deletion has ended; if it doesn't, see its finalizers"
                ),
                false => format!(
                    "{object} is in the way, as it has another owner or none: delete it, or have it renamed"
                ),
            }),
            Error::Undecodable(told) => Some(told.clone()),
            Error::Write { .. }
            | Error::Read { .. }
            | Error::Access { .. }
            | Error::Registry { .. }
            | Error::InUse { .. }
            | Error::Ledger(_)
            | Error::Timeout { .. } => None,
        }
    }
}

/// What `work` comes to, if it does within `limit`.
///
/// # Errors
///
/// Its own. Transient: it didn't end, and was dropped.
pub async fn within<T>(
    what: &'static str,
    limit: Duration,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    tokio::time::timeout(limit, work)
        .await
        .unwrap_or(Err(Error::Timeout { what, limit }))
}

/// The HTTP status of the apiserver's answer, if it gave one.
#[must_use]
pub fn code(error: &kube::Error) -> Option<u16> {
    match error {
        kube::Error::Api(status) => Some(status.code),
        _ => None,
    }
}

/// The class of a failed request to the apiserver.
#[must_use]
pub fn class_of(error: &kube::Error) -> Class {
    match code(error) {
        // 422 is a policy's or webhook's no more often than an invalid object
        Some(401 | 403 | 422) => Class::RIGHTS,
        Some(400 | 404 | 405 | 413 | 415) => Class::INTERNAL,
        // conflicts, rate limits, restarts, and no answer at all
        Some(_) | None => Class::Transient,
    }
}

impl Classify for Error {
    fn class(&self) -> Class {
        match self {
            Error::Read { source, .. } | Error::Write { source, .. } => class_of(source),
            Error::Taken { .. } | Error::InUse { .. } | Error::Timeout { .. } => Class::Transient,
            Error::Access { source, .. } => source.class(),
            Error::Registry { source, .. } => source.class(),
            Error::Undecodable(_) => Class::CONTENT,
            Error::Ledger(source) => source.class(),
        }
    }
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::*;

    #[test]
    fn what_somebody_must_do_something_about_is_told_with_the_object() {
        let write = |code, message: &str| Error::Write {
            step: "create-objects",
            object: "Job build-a".to_owned(),
            source: kube::Error::Api(Box::new(Status::failure(message, "").with_code(code))),
        };
        let taken = |is_going| Error::Taken {
            step: "create-objects",
            object: "ConfigMap mc-a in namespace ns".to_owned(),
            is_going,
        };
        for (error, told) in [
            (
                write(403, "exceeded quota"),
                Some("the apiserver refuses Job build-a: exceeded quota"),
            ),
            (write(409, "changed"), None),
            (write(500, "no etcd"), None),
            (
                taken(false),
                Some(
                    "ConfigMap mc-a in namespace ns is in the way, as it has another owner or none: delete it, or have it renamed",
                ),
            ),
            (
                taken(true),
                Some(
                    "ConfigMap mc-a in namespace ns of an earlier owner is in the way until its deletion has ended; if it doesn't, see its finalizers",
                ),
            ),
        ] {
            assert_eq!(error.refusal().as_deref(), told, "{error}");
        }
    }

    #[tokio::test]
    async fn what_does_not_end_in_time_may_pass_by_itself() {
        let minute = Duration::from_secs(60);
        let done = within("observe", minute, std::future::ready(Ok(1))).await;
        assert!(matches!(done, Ok(1)));
        let error = within::<()>("observe", Duration::ZERO, std::future::pending())
            .await
            .unwrap_err();
        assert_eq!(error.to_string(), "observe was not done after 0 s");
        assert_eq!(error.class(), Class::Transient);
    }
}
