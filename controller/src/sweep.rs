//! Which images in the repositories have outlived their build unseen?
//!
//! A build that is deleted while no controller runs with its finalizer, or whose deletion the registry or a lost apiserver
//! kept from being finished, leaves an image that nobody remembers. Its manifest still says whose it was. So the tags of all
//! repositories that configs and builds push to are read, and what was pushed for a build of this cluster that no longer
//! exists is entered in the [`ledger`](crate::ledger), to be deleted after a grace time if nothing needs it.
//!
//! A manifest without our annotations, or with another cluster's, is left alone. Registries list only what has a tag.

use std::collections::{BTreeMap, BTreeSet};

use futures::{StreamExt as _, stream};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Namespace;
use kube::{Api, Client, ResourceExt as _};
use serde::Deserialize;
use strata_builder::contract::{
    BUILD_UID_ANNOTATION, CLUSTER_ANNOTATION, STEPS_OF_ANNOTATION, TAG_ANNOTATION, steps_tag,
};
use strata_builder::digest::Digest;
use strata_builder::error::{Class, Classify as _, chain};
use strata_builder::reference::{Reference, Repository};
use strata_builder::registry::{Registry, RegistryError};
use tracing::{info, warn};

use crate::api::{MachineOSBuild, MachineOSConfig, annotation};
use crate::context::Context;
use crate::error::Error;
use crate::ledger::{Entry, LedgerError};
use crate::live::Needs as _;
use crate::phase::Phase;
use crate::usage::Users;

/// An apiserver that is restored from a backup may bring builds back.
pub const GRACE: SignedDuration = SignedDuration::from_hours(24);

/// Manifests that are read at the same time from one registry.
const AT_ONCE: usize = 8;

/// For whom an image was pushed, as its manifest says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// UID of the MachineOSBuild.
    pub build_uid: String,
    /// Whose cluster that is, if that was known.
    pub cluster: Option<String>,
    /// The tag that it was pushed under.
    pub tag: Option<String>,
}

impl Origin {
    /// Of a manifest; none if no build of ours pushed it.
    #[must_use]
    pub fn of(manifest: &[u8]) -> Option<Self> {
        #[derive(Deserialize)]
        struct Annotated {
            #[serde(default)]
            annotations: BTreeMap<String, String>,
        }
        let mut found: Annotated = serde_json::from_slice(manifest).ok()?;
        let annotations = &mut found.annotations;
        let of_image = annotations.remove(BUILD_UID_ANNOTATION);
        Some(Self {
            build_uid: of_image.or_else(|| annotations.remove(STEPS_OF_ANNOTATION))?,
            cluster: annotations.remove(CLUSTER_ANNOTATION),
            tag: annotations.remove(TAG_ANNOTATION),
        })
    }

    /// Whether what is found under `tag` was pushed there for a build of `cluster` that is gone. Other builders hand annotations of an image on to
    /// those made from it, under another tag.
    #[must_use]
    pub fn is_orphan(&self, cluster: &str, tag: &str, users: &Users) -> bool {
        self.cluster.as_deref() == Some(cluster)
            && self.tag.as_deref() == Some(tag)
            && !users.has_build(&self.build_uid)
    }
}

/// What identifies the cluster: the UID of the namespace `kube-system`.
///
/// # Errors
///
/// The apiserver's.
pub async fn cluster_id(client: &Client) -> Result<Option<String>, kube::Error> {
    let namespaces: Api<Namespace> = Api::all(client.clone());
    Ok(namespaces.get("kube-system").await?.uid())
}

/// The repositories that these push to, with the Secret to do so; the configs' first, as theirs are the newest.
pub fn repositories<'a>(
    os_configs: impl Iterator<Item = &'a MachineOSConfig>,
    os_builds: impl Iterator<Item = &'a MachineOSBuild>,
) -> BTreeMap<Repository, String> {
    let of_configs = os_configs.map(|one| {
        let spec = &one.spec;
        let secret = &spec.rendered_image_push_secret.name;
        (spec.rendered_image_push_spec.as_str(), Some(secret))
    });
    let of_builds = os_builds.map(|one| {
        let secret = one.annotations().get(annotation::PUSH_SECRET);
        (one.spec.rendered_image_push_spec.as_str(), secret)
    });
    let mut found = BTreeMap::new();
    for (push, secret) in of_configs.chain(of_builds) {
        let secret = secret.filter(|secret| !secret.is_empty());
        if let (Ok(push), Some(secret)) = (push.parse::<Reference>(), secret) {
            found
                .entry(push.repository)
                .or_insert_with(|| secret.clone());
        }
    }
    found
}

/// Whether builds give such tags: a config's name and 32 hexadecimal digits, the note of steps too.
#[must_use]
pub fn is_of_build(tag: &str) -> bool {
    let steps = steps_tag("").unwrap_or_default();
    let name = tag.strip_suffix(&steps).unwrap_or(tag);
    let is_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    name.rsplit_once('-').is_some_and(|(config, hash)| {
        !config.is_empty() && hash.len() == 32 && hash.bytes().all(is_hex)
    })
}

/// A tag of a repository and the manifest that it names.
#[derive(Clone, Debug)]
pub struct Tagged {
    /// The tag.
    pub tag: String,
    /// Of the manifest.
    pub digest: Digest,
    /// As served.
    pub manifest: Vec<u8>,
}

/// The manifests of those tags that `is_asked`, in the registry's order; one that goes meanwhile, or that the registry has but doesn't give, is
/// left out.
///
/// # Errors
///
/// User: no right. Transient: the network.
pub async fn tagged(
    registry: &Registry,
    repository: &Repository,
    is_asked: impl Fn(&str) -> bool,
) -> Result<Vec<Tagged>, RegistryError> {
    let tags = registry.tags(repository).await?;
    let asked = tags.into_iter().filter(|tag| is_asked(tag));
    let mut manifests = stream::iter(asked)
        .map(|tag| async {
            let found = registry.stored_manifest(&repository.tagged(&tag)).await;
            match found {
                Ok(found) => Ok((tag, found)),
                Err(error) => Err((tag, error)),
            }
        })
        .buffered(AT_ONCE);
    let mut found = Vec::new();
    while let Some(one) = manifests.next().await {
        let (tag, manifest) = match one {
            Ok(one) => one,
            Err((_, error)) if error.class() == Class::Transient => return Err(error),
            Err((tag, error)) => {
                warn!(%repository, tag, error = chain(&error), "a tag's manifest can't be read, so it is left alone");
                continue;
            }
        };
        found.extend(manifest.map(|manifest| Tagged {
            tag,
            digest: manifest.digest,
            manifest: manifest.bytes.to_vec(),
        }));
    }
    Ok(found)
}

/// The entry for an image that has lost its build.
#[must_use]
pub fn entry(
    repository: &Repository,
    tagged: &Tagged,
    origin: &Origin,
    push_secret: &str,
    now: Timestamp,
) -> Entry {
    let tag = &tagged.tag;
    let steps = steps_tag("").unwrap_or_default();
    Entry {
        image: repository.digested(tagged.digest).to_string(),
        tag: Some(tag.clone()),
        push_secret: push_secret.to_owned(),
        os_build: tag.strip_suffix(&steps).unwrap_or(tag).to_owned(),
        since: crate::api::condition::whole_second(now),
        keep: false,
        orphan_of: Some(origin.build_uid.clone()),
        unseen_of: None,
        content_key: None,
        refused_since: None,
    }
}

/// Enters what has lost its build in the ledger; how many images that is. A registry that doesn't answer is told and asked the next time.
///
/// # Errors
///
/// Of the apiserver.
pub async fn sweep(context: &Context) -> Result<usize, Error> {
    let Some(cluster) = &context.cluster else {
        return Ok(0);
    };
    let os_configs = context.cache.os_configs.store.state();
    let os_builds = context.cache.os_builds.store.state();
    let repositories = repositories(
        os_configs.iter().map(AsRef::as_ref),
        os_builds.iter().map(AsRef::as_ref),
    );
    // what a build has told of, it has under its tag; one that hasn't may not have pushed what is there
    let known: BTreeSet<&str> = os_builds
        .iter()
        .filter(|one| Phase::of_build(one) == Phase::Succeeded)
        .map(|one| one.spec.rendered_image_push_spec.as_str())
        .collect();
    let mut found = Vec::new();
    for (repository, push_secret) in &repositories {
        let is_asked = |tag: &str| {
            is_of_build(tag) && !known.contains(repository.tagged(tag).to_string().as_str())
        };
        let registry = match context.registries.open(push_secret).await {
            Ok(registry) => registry,
            Err(error) => {
                warn!(%repository, error = chain(&error), "no look for images without a build");
                continue;
            }
        };
        match tagged(&registry, repository, is_asked).await {
            Ok(tags) => found.extend(tags.into_iter().map(|one| (repository, push_secret, one))),
            Err(error) => {
                warn!(%repository, error = chain(&error), "no look for images without a build");
            }
        }
    }
    // afterwards, since a build is there before its image
    let users = context.users().await?;
    let mut count = 0;
    for (repository, push_secret, one) in found {
        let Some(origin) = Origin::of(&one.manifest) else {
            continue;
        };
        let entry = entry(repository, &one, &origin, push_secret, Timestamp::now());
        let is_entered = users.entries.iter().any(|known| known.image == entry.image);
        if !origin.is_orphan(cluster, &one.tag, &users)
            || is_entered
            || context.is_given_up(&entry.image)
        {
            continue;
        }
        info!(
            image = entry.image,
            os_build = entry.os_build,
            "an image has lost its build; it goes after a day, if nothing needs it"
        );
        match context.ledger.remember(&entry).await {
            Ok(()) => count += 1,
            // what has room the next time is found again
            Err(error @ LedgerError::Full { .. }) => {
                warn!(
                    error = chain(&error),
                    "not all images without a build are entered"
                );
                break;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures;

    #[test]
    fn only_an_image_of_a_build_of_this_cluster_that_is_gone_is_an_orphan() {
        let users = Users {
            os_builds: vec![fixtures::os_build().into()],
            ..Users::default()
        };
        let of = "strata.image-mode.dev";
        let here = format!(r#""{of}/cluster": "ours", "{of}/tag": "worker-0""#);
        for (annotations, is_orphan) in [
            (
                format!(r#"{{"{of}/build-uid": "gone", {here}}}"#),
                Some(true),
            ),
            (
                format!(r#"{{"{of}/steps-of": "gone", {here}}}"#),
                Some(true),
            ),
            (
                format!(r#"{{"{of}/build-uid": "build-uid", {here}}}"#),
                Some(false),
            ),
            (
                format!(
                    r#"{{"{of}/build-uid": "gone", "{of}/cluster": "theirs", "{of}/tag": "worker-0"}}"#
                ),
                Some(false),
            ),
            // made from an image of ours by another builder
            (
                format!(
                    r#"{{"{of}/build-uid": "gone", "{of}/cluster": "ours", "{of}/tag": "worker-1"}}"#
                ),
                Some(false),
            ),
            (format!(r#"{{"{of}/build-uid": "gone"}}"#), Some(false)),
            (format!("{{{here}}}"), None),
            ("{}".to_owned(), None),
        ] {
            let manifest = format!(r#"{{"schemaVersion": 2, "annotations": {annotations}}}"#);
            let origin = Origin::of(manifest.as_bytes());
            let found = origin.map(|origin| origin.is_orphan("ours", "worker-0", &users));
            assert_eq!(found, is_orphan, "{annotations}");
        }
        assert_eq!(Origin::of(b"no manifest"), None);
        assert_eq!(Origin::of(b"{}"), None);
    }

    #[test]
    fn tags_of_builds_are_known_by_their_form() {
        let hash = "0123456789abcdef0123456789abcdef";
        for (tag, is_right) in [
            (format!("worker-{hash}"), true),
            (format!("a-b.c-{hash}-strata-steps"), true),
            (hash.to_owned(), false),
            (format!("-{hash}"), false),
            (format!("worker-{}", &hash[1..]), false),
            (format!("worker-{}", hash.to_uppercase()), false),
            (format!("worker-{hash}-keep"), false),
            ("latest".to_owned(), false),
        ] {
            assert_eq!(is_of_build(&tag), is_right, "{tag}");
        }
    }

    #[test]
    fn each_repository_is_asked_once_with_the_secret_of_a_config_that_pushes_to_it() {
        let os_config = fixtures::os_config();
        let mut elsewhere = fixtures::os_build();
        elsewhere.spec.rendered_image_push_spec = "q.io/a/b:worker-1".to_owned();
        let mut no_push = fixtures::os_build();
        no_push.spec.rendered_image_push_spec = "Capitals".to_owned();
        let same = fixtures::os_build();
        let found = repositories(
            [&os_config].into_iter(),
            [&elsewhere, &no_push, &same].into_iter(),
        );
        let found: Vec<_> = found
            .iter()
            .map(|(repository, secret)| (repository.to_string(), secret.as_str()))
            .collect();
        assert_eq!(
            found,
            [
                ("q.io/a/b".to_owned(), "push"),
                ("registry.example.com/org/repo".to_owned(), "push"),
            ]
        );
    }
}
