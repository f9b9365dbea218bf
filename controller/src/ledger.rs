//! Which images are to be deleted as soon as nothing needs them?
//!
//! A build whose image is still in use goes at once when it is deleted; its image is entered here, in a ConfigMap,
//! and deleted when the last use ends: also after a restart, also when the config is gone. An entry is a key of its
//! own, so that two writers never lose each other's. [`drain`] deletes.
//!
//! Beside the entries it holds each manifest for the moments of its deletion ([`Removing`]): should the process end before it
//! has seen that nobody took the image meanwhile, the next one looks, and puts the manifest back.

pub mod drain;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{ObjectMeta, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use strata_builder::error::{Class, Classify};
use tracing::warn;

use crate::api::FIELD_MANAGER;
use crate::error::{class_of, code};

/// The ConfigMap.
pub const LEDGER_NAME: &str = "strata-image-ledger";

/// The apiserver takes 1 MiB of keys and values; metadata and a second writer have room beside it. That is some 2,000 images.
const MOST_BYTES: usize = 960 << 10;
/// Of that, for images that are to be kept, which nobody must forget.
const ROOM_FOR_KEPT_BYTES: usize = 192 << 10;

/// An image to delete.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// By digest.
    pub image: String,
    /// The tag that it was pushed under.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
    /// Name of the Secret with credentials for its registry.
    pub push_secret: String,
    /// The MachineOSBuild that made it.
    pub os_build: String,
    /// When it was entered.
    pub since: Timestamp,
    /// Whether an administrator wants it to stay: then it is never deleted, and whoever takes the entry out leaves the image to the registry.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub keep: bool,
    /// UID of the MachineOSBuild that was gone when the image was found: it is deleted only some time after it was entered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub orphan_of: Option<String>,
    /// UID of a MachineOSBuild that may have pushed without telling the digest: then `image` has only the tag, and what the
    /// manifest under it says decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unseen_of: Option<String>,
    /// What the image is made from, if that is known: a build that would make the same takes it instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content_key: Option<String>,
    /// Since when its registry refuses to delete it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused_since: Option<Timestamp>,
}

impl Entry {
    /// A key that a ConfigMap allows, the same for the same image. What is to be kept has one of its own, so that no other build that had the
    /// image writes over it.
    pub(crate) fn key(&self) -> String {
        let key = hash(&self.image);
        match self.keep {
            true => format!("keep-{key}"),
            false => key,
        }
    }
}

/// A manifest that is being deleted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Removing {
    /// By digest.
    pub image: String,
    /// The tag that goes with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
    /// Name of the Secret with credentials for its registry.
    pub push_secret: String,
    /// Of the manifest.
    pub media_type: String,
    /// As served.
    pub manifest: String,
}

/// Keys of what is being deleted start with it.
const REMOVING: &str = "removing-";

impl Removing {
    fn key(&self) -> String {
        format!("{REMOVING}{}", hash(&self.image))
    }
}

/// As long as it lives, this process deletes that manifest; whoever finds the note without it finishes what was cut off.
#[derive(Debug, Default)]
pub struct AtWork {
    key: String,
    all: Arc<Mutex<BTreeSet<String>>>,
}

impl AtWork {
    fn begin(all: &Arc<Mutex<BTreeSet<String>>>, key: String) -> Self {
        let mut keys = all.lock().unwrap_or_else(PoisonError::into_inner);
        keys.insert(key.clone());
        drop(keys);
        Self {
            key,
            all: Arc::clone(all),
        }
    }
}

impl Drop for AtWork {
    fn drop(&mut self) {
        let mut keys = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        keys.remove(&self.key);
    }
}

fn hash(image: &str) -> String {
    hex::encode(Sha256::digest(image))[..32].to_owned()
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
    /// There is no room.
    #[error("ConfigMap {LEDGER_NAME} is full, so {image} can't be entered")]
    Full {
        /// Of the entry.
        image: String,
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
            LedgerError::Full { .. } | LedgerError::Json { .. } => false,
        }
    }
}

impl Classify for LedgerError {
    fn class(&self) -> Class {
        match self {
            LedgerError::Kube { source, .. } => class_of(source),
            LedgerError::Full { .. } => Class::CONTENT,
            LedgerError::Json { .. } => Class::INTERNAL,
        }
    }
}

/// Whether a ledger takes so many bytes more.
fn has_room(there: &BTreeMap<String, String>, more_bytes: usize, is_to_be_kept: bool) -> bool {
    let sizes = there.iter().map(|(key, value)| key.len() + value.len());
    let bound = match is_to_be_kept {
        true => MOST_BYTES,
        false => MOST_BYTES - ROOM_FOR_KEPT_BYTES,
    };
    sizes.sum::<usize>() + more_bytes <= bound
}

/// The ledger of a namespace.
#[derive(Clone)]
pub struct Ledger {
    api: Api<ConfigMap>,
    at_work: Arc<Mutex<BTreeSet<String>>>,
}

impl Ledger {
    /// Of `namespace`.
    #[must_use]
    pub fn new(client: Client, namespace: &str) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
            at_work: Arc::default(),
        }
    }

    /// Enters an image; one that is there already stays as it is.
    ///
    /// # Errors
    ///
    /// Of the apiserver. User: there is no room.
    pub async fn remember(&self, entry: &Entry) -> Result<(), LedgerError> {
        let there = self.data().await?;
        if there.contains_key(&entry.key()) {
            return Ok(());
        }
        let value = encode(entry, &entry.image)?;
        if !has_room(&there, entry.key().len() + value.len(), entry.keep) {
            return Err(LedgerError::Full {
                image: entry.image.clone(),
            });
        }
        self.set(entry.key(), value).await
    }

    /// Writes anew what is there.
    ///
    /// # Errors
    ///
    /// Of the apiserver.
    pub async fn change(&self, entry: &Entry) -> Result<(), LedgerError> {
        let value = encode(entry, &entry.image)?;
        self.set(entry.key(), value).await
    }

    /// Notes that a manifest is about to be deleted. A ledger without room doesn't keep it from being so.
    ///
    /// # Errors
    ///
    /// Of the apiserver.
    pub async fn begin(&self, removing: &Removing) -> Result<AtWork, LedgerError> {
        let key = removing.key();
        let at_work = AtWork::begin(&self.at_work, key.clone());
        let value = encode(removing, &removing.image)?;
        let there = self.data().await?;
        if has_room(&there, key.len() + value.len(), true) {
            self.set(key, value).await?;
        } else {
            warn!(
                image = removing.image,
                "ConfigMap {LEDGER_NAME} is full, so the manifest is not kept there while it is deleted"
            );
        }
        Ok(at_work)
    }

    /// Takes the note out.
    ///
    /// # Errors
    ///
    /// Of the apiserver.
    pub async fn end(&self, removing: &Removing) -> Result<(), LedgerError> {
        self.patch(&json!({"data": {removing.key(): null}})).await
    }

    async fn set(&self, key: String, value: String) -> Result<(), LedgerError> {
        match self.patch(&json!({"data": {&key: &value}})).await {
            Err(LedgerError::Kube { source, .. }) if code(&source) == Some(404) => {
                let ledger = ConfigMap {
                    metadata: ObjectMeta {
                        name: Some(LEDGER_NAME.to_owned()),
                        ..ObjectMeta::default()
                    },
                    data: Some(BTreeMap::from([(key, value)])),
                    ..ConfigMap::default()
                };
                let made = self.api.create(&PostParams::default(), &ledger).await;
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

    async fn data(&self) -> Result<BTreeMap<String, String>, LedgerError> {
        let ledger = self.api.get_opt(LEDGER_NAME).await;
        let ledger = ledger.map_err(|source| LedgerError::Kube {
            operation: "read",
            source,
        })?;
        Ok(ledger.and_then(|ledger| ledger.data).unwrap_or_default())
    }

    async fn patch(&self, change: &serde_json::Value) -> Result<(), LedgerError> {
        let parameters = PatchParams {
            field_manager: Some(FIELD_MANAGER.to_owned()),
            ..PatchParams::default()
        };
        self.api
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
        Ok(self.contents().await?.entries)
    }

    /// All that is in it; what can't be read is left where it is and told.
    ///
    /// # Errors
    ///
    /// Of the apiserver.
    pub async fn contents(&self) -> Result<Contents, LedgerError> {
        let data = self.data().await?;
        let at_work = self.at_work.lock();
        let at_work = at_work.unwrap_or_else(PoisonError::into_inner).clone();
        let mut contents = Contents::default();
        for (key, value) in &data {
            if !key.starts_with(REMOVING) {
                contents.entries.extend(decode::<Entry>(key, value));
            } else if !at_work.contains(key) {
                contents.cut_off.extend(decode::<Removing>(key, value));
            }
        }
        Ok(contents)
    }
}

/// What is in a ledger.
#[derive(Debug, Default)]
pub struct Contents {
    /// Images to delete, and to keep.
    pub entries: Vec<Entry>,
    /// Manifests whose deletion was cut off.
    pub cut_off: Vec<Removing>,
}

fn encode(value: &impl Serialize, image: &str) -> Result<String, LedgerError> {
    serde_json::to_string(value).map_err(|source| LedgerError::Json {
        image: image.to_owned(),
        source,
    })
}

fn decode<T: serde::de::DeserializeOwned>(key: &str, value: &str) -> Option<T> {
    match serde_json::from_str(value) {
        Ok(found) => Some(found),
        Err(error) => {
            warn!(ledger = LEDGER_NAME, key, %error, "unreadable entry of the ledger");
            None
        }
    }
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

    #[test]
    fn a_full_ledger_still_takes_what_is_to_be_kept() {
        let of = |bytes: usize| BTreeMap::from([("key".to_owned(), "v".repeat(bytes - 3))]);
        for (there, more, keep, fits) in [
            (BTreeMap::new(), 1, false, true),
            (of(768 << 10), 0, false, true),
            (of(768 << 10), 1, false, false),
            (of(768 << 10), 1, true, true),
            (of(960 << 10), 1, true, false),
        ] {
            assert_eq!(has_room(&there, more, keep), fits, "{more} {keep}");
        }
    }

    #[test]
    fn entries_of_earlier_versions_are_read() {
        let text = r#"{"image":"q.io/a/b@sha256:0","pushSecret":"push","osBuild":"worker-0","since":"2023-11-14T22:13:20Z"}"#;
        let entry: Entry = serde_json::from_str(text).unwrap();
        assert_eq!(entry, fixtures::entry("q.io/a/b@sha256:0"));
        assert_eq!(serde_json::to_string(&entry).unwrap(), text);
    }
}
