//! Which images are to be deleted as soon as nothing needs them?
//!
//! A build whose image is still in use goes at once when it is deleted; its image is entered here, in a ConfigMap,
//! and deleted when the last use ends: also after a restart, also when the config is gone. An entry is a key of its
//! own, so that two writers never lose each other's.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{ObjectMeta, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use strata_builder::error::{Class, Classify, chain};
use strata_builder::reference::Reference;
use strata_builder::registry::Registry;
use tracing::{info, warn};

use crate::api::FIELD_MANAGER;
use crate::context::Context;
use crate::error::{class_of, code};
use crate::live::Live as _;
use crate::metrics::Deletion;
use crate::registries::{RegistriesError, in_use};
use crate::usage::Use;

/// The ConfigMap.
pub const LEDGER_NAME: &str = "strata-image-ledger";

/// An image to delete.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// By digest.
    pub image: String,
    /// Name of the Secret with credentials for its registry.
    pub push_secret: String,
    /// The MachineOSBuild that made it.
    pub os_build: String,
    /// When it was entered.
    pub since: Timestamp,
    /// Whether an administrator wants it to stay: then it is never deleted, and whoever takes the entry out leaves the image to the registry.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub keep: bool,
}

impl Entry {
    /// A key that a ConfigMap allows, the same for the same image. What is to be kept has one of its own, so that no other build that had the
    /// image writes over it.
    pub(crate) fn key(&self) -> String {
        let key = &hex::encode(Sha256::digest(&self.image))[..32];
        match self.keep {
            true => format!("keep-{key}"),
            false => key.to_owned(),
        }
    }
}

/// The ledger can't be kept.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The apiserver refuses.
    #[error("{operation} ConfigMap {LEDGER_NAME}")]
    Kube {
        /// What was tried.
        operation: &'static str,
        /// Why.
        #[source]
        source: kube::Error,
    },
    /// An entry can't be written.
    #[error("write an entry for {image}")]
    Json {
        /// Of the entry.
        image: String,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

impl LedgerError {
    /// Whether another writer was faster.
    #[must_use]
    pub fn is_conflict(&self) -> bool {
        match self {
            LedgerError::Kube { source, .. } => code(source) == Some(409),
            LedgerError::Json { .. } => false,
        }
    }
}

impl Classify for LedgerError {
    fn class(&self) -> Class {
        match self {
            LedgerError::Kube { source, .. } => class_of(source),
            LedgerError::Json { .. } => Class::INTERNAL,
        }
    }
}

/// The ledger of a namespace.
#[derive(Clone)]
pub struct Ledger(Api<ConfigMap>);

impl Ledger {
    /// Of `namespace`.
    #[must_use]
    pub fn new(client: Client, namespace: &str) -> Self {
        Self(Api::namespaced(client, namespace))
    }

    /// Enters an image; one that is there already stays as it is.
    ///
    /// # Errors
    ///
    /// Of the apiserver.
    pub async fn remember(&self, entry: &Entry) -> Result<(), LedgerError> {
        let value = serde_json::to_string(entry).map_err(|source| LedgerError::Json {
            image: entry.image.clone(),
            source,
        })?;
        let added = json!({"data": {entry.key(): value}});
        match self.patch(&added).await {
            Err(LedgerError::Kube { source, .. }) if code(&source) == Some(404) => {
                let ledger = ConfigMap {
                    metadata: ObjectMeta {
                        name: Some(LEDGER_NAME.to_owned()),
                        ..ObjectMeta::default()
                    },
                    data: Some(BTreeMap::from([(entry.key(), value)])),
                    ..ConfigMap::default()
                };
                let made = self.0.create(&PostParams::default(), &ledger).await;
                made.map(|_| ()).map_err(|source| LedgerError::Kube {
                    operation: "create",
                    source,
                })
            }
            other => other,
        }
    }

    /// Takes an image out.
    ///
    /// # Errors
    ///
    /// Of the apiserver.
    pub async fn forget(&self, entry: &Entry) -> Result<(), LedgerError> {
        self.patch(&json!({"data": {entry.key(): null}})).await
    }

    async fn patch(&self, change: &serde_json::Value) -> Result<(), LedgerError> {
        let parameters = PatchParams {
            field_manager: Some(FIELD_MANAGER.to_owned()),
            ..PatchParams::default()
        };
        self.0
            .patch(LEDGER_NAME, &parameters, &Patch::Merge(change))
            .await
            .map(|_| ())
            .map_err(|source| LedgerError::Kube {
                operation: "patch",
                source,
            })
    }

    /// All entries; what can't be read is left where it is and told.
    ///
    /// # Errors
    ///
    /// Of the apiserver.
    pub async fn entries(&self) -> Result<Vec<Entry>, LedgerError> {
        let ledger = self
            .0
            .get_opt(LEDGER_NAME)
            .await
            .map_err(|source| LedgerError::Kube {
                operation: "read",
                source,
            })?;
        let data = ledger.and_then(|ledger| ledger.data).unwrap_or_default();
        Ok(data
            .iter()
            .filter_map(|(key, value)| match serde_json::from_str(value) {
                Ok(entry) => Some(entry),
                Err(error) => {
                    warn!(ledger = LEDGER_NAME, key, %error, "unreadable entry of the ledger");
                    None
                }
            })
            .collect())
    }
}

/// Why images stay for now, by image: so that it is told once.
pub type Told = BTreeMap<String, String>;

/// Deletes every image of the ledger that nothing needs any more; whether some entries are left that the next pass may delete without any change
/// in the cluster.
///
/// # Errors
///
/// Of the apiserver; what a registry says is told and tried again with the next pass.
pub async fn drain(context: &Context, told: &mut Told) -> Result<bool, crate::error::Error> {
    let entries = context.ledger.entries().await?;
    let before = std::mem::take(told);
    let mut unfinished = false;
    let mut left = 0;
    for entry in entries.into_iter().filter(|entry| !entry.keep) {
        let Ok(image) = entry.image.parse::<Reference>() else {
            context.ledger.forget(&entry).await?;
            continue;
        };
        match delete(context, &entry, &image).await? {
            Drained::Gone => {
                context.metrics.image_deletion(Deletion::Deleted);
                context.ledger.forget(&entry).await?;
                info!(
                    image = entry.image,
                    os_build = entry.os_build,
                    "deleted an image that nothing needs any more"
                );
            }
            Drained::Refused(why) => {
                context.metrics.image_deletion(Deletion::Refused);
                context.ledger.forget(&entry).await?;
                warn!(
                    image = entry.image,
                    os_build = entry.os_build,
                    error = why,
                    "the registry does not delete this image"
                );
            }
            Drained::InUse => left += 1,
            Drained::Later(why) => {
                context.metrics.image_deletion(Deletion::Failed);
                left += 1;
                unfinished = true;
                if before.get(&entry.image) != Some(&why) {
                    warn!(
                        image = entry.image,
                        os_build = entry.os_build,
                        error = why,
                        "an image can't be deleted for now"
                    );
                }
                told.insert(entry.image, why);
            }
        }
    }
    context.metrics.ledger_entries(left);
    Ok(unfinished)
}

enum Drained {
    Gone,
    InUse,
    Refused(String),
    Later(String),
}

async fn delete(
    context: &Context,
    entry: &Entry,
    image: &Reference,
) -> Result<Drained, crate::error::Error> {
    let Some(digest) = image.digest else {
        return Ok(Drained::Gone);
    };
    let users = context.users().await?;
    if users.of(digest, None).is_some() {
        return Ok(Drained::InUse);
    }
    let registry = match open(context, entry, image).await {
        Ok(registry) => registry,
        Err(error) => return Ok(Drained::Later(chain(&error))),
    };
    match in_use(&registry, image, digest, &users, None).await {
        None => {}
        Some(Use::Unknown(why)) => return Ok(Drained::Later(why)),
        Some(_) => return Ok(Drained::InUse),
    }
    Ok(
        match registry.delete_manifest(&image.repository, digest).await {
            Ok(()) => Drained::Gone,
            Err(error) if error.class() != Class::Transient => Drained::Refused(chain(&error)),
            Err(error) => Drained::Later(chain(&error)),
        },
    )
}

/// With the entry's Secret; if that went with its config, with one that another config pushes to the same registry with.
async fn open(
    context: &Context,
    entry: &Entry,
    image: &Reference,
) -> Result<Registry, RegistriesError> {
    let gone = match context.registries.open(&entry.push_secret).await {
        Err(error @ RegistriesError::NoSecret(_)) => error,
        opened => return opened,
    };
    for os_config in context.cache.os_configs.store.state() {
        let spec = &os_config.spec;
        let pushes_there = spec
            .rendered_image_push_spec
            .parse::<Reference>()
            .is_ok_and(|push| push.repository.host() == image.repository.host());
        if pushes_there
            && let Ok(registry) = context
                .registries
                .open(&spec.rendered_image_push_secret.name)
                .await
        {
            return Ok(registry);
        }
    }
    Err(gone)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures;

    #[test]
    fn an_entry_has_a_key_that_a_config_map_takes_and_that_its_image_decides() {
        let entry = |image: &str, second| Entry {
            since: Timestamp::from_second(second).unwrap(),
            ..fixtures::entry(image)
        };
        let key = entry("q.io/a/b@sha256:0", 1).key();
        let keep = Entry {
            keep: true,
            ..entry("q.io/a/b@sha256:0", 1)
        };
        for key in [&key, &keep.key()] {
            let is_right = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
            assert!(key.len() <= 253 && key.bytes().all(is_right));
        }
        assert_ne!(key, keep.key());
        assert_eq!(key, entry("q.io/a/b@sha256:0", 2).key());
        assert_ne!(key, entry("q.io/a/c@sha256:0", 1).key());
    }
}
