//! Does anything need this image?
//!
//! Pure. An image is known by its digest alone: a mirror or another name of the repository doesn't make it another
//! image. Whoever asks reads all that can name it at that moment; a read that fails means *in use*.
//!
//! | who needs an image | by |
//! | --- | --- |
//! | a node | any annotation whose value has the digest: what it runs and shall run, what rpm-ostree or bootc has staged or goes back to |
//! | a MachineOSConfig | its status, the image that it is to be seeded with, the images that it is to keep |
//! | a MachineOSBuild | its status, the image that it is about to take instead of being built |
//! | a MachineConfig | its base image and its extensions image |
//! | an administrator | the keeping annotation on the MachineOSBuild, remembered in the ledger when that is gone |
//! | an index | naming it among its manifests, while one of the above names the index |
//! | an object that can't be decoded | being one of the above: as long as there is one, no image is unneeded |

use std::fmt;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt as _;
use kube::core::PartialObjectMeta;
use strata_builder::digest::Digest;
use strata_builder::reference::{Reference, Repository};

use crate::api::{MachineConfig, MachineOSBuild, MachineOSConfig, annotation};
use crate::cache::Cache;
use crate::decoded::Undecodable;
use crate::ledger::Entry;
use crate::phase::Phase;

/// Who needs an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Use {
    /// It runs on this node, or shall, or did.
    Node(String),
    /// Status or an annotation of this MachineOSConfig names it.
    Config(String),
    /// Status of this MachineOSBuild names it.
    Build(String),
    /// Images are made from it by this MachineConfig.
    MachineConfig(String),
    /// An administrator wants the image of this MachineOSBuild to stay.
    Kept(String),
    /// It is a part of this index, which is needed.
    Index(String),
    /// That can't be told, and why.
    Unknown(String),
}

impl fmt::Display for Use {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Use::Node(name) => write!(f, "node {name} names it"),
            Use::Config(name) => write!(f, "MachineOSConfig {name} names it"),
            Use::Build(name) => write!(f, "MachineOSBuild {name} names it"),
            Use::MachineConfig(name) => write!(f, "MachineConfig {name} names it"),
            Use::Kept(name) => write!(
                f,
                "MachineOSBuild {name} has the annotation {}",
                annotation::KEEP_IMAGE
            ),
            Use::Index(name) => write!(f, "{name}, which is needed, names it"),
            Use::Unknown(why) => write!(f, "whether it is needed can't be told: {why}"),
        }
    }
}

/// All that can name an image.
#[derive(Clone, Debug, Default)]
pub struct Users {
    /// All of the cluster.
    pub nodes: Vec<Arc<PartialObjectMeta<Node>>>,
    /// All of the cluster.
    pub os_configs: Vec<Arc<MachineOSConfig>>,
    /// All of the cluster.
    pub os_builds: Vec<Arc<MachineOSBuild>>,
    /// All of the cluster; they may be trimmed to what names images.
    pub machine_configs: Vec<Arc<MachineConfig>>,
    /// Of the ledger.
    pub entries: Vec<Entry>,
    /// MachineOSConfigs, MachineOSBuilds and MachineConfigs that can't be decoded.
    pub undecodable: Vec<Arc<Undecodable>>,
}

impl Users {
    /// As the watches told them. What they name may be named no longer, or by others too.
    #[must_use]
    pub fn known(cache: &Cache, entries: Vec<Entry>) -> Self {
        Self {
            nodes: cache.nodes.store.state(),
            os_configs: cache.os_configs.store.state(),
            os_builds: cache.os_builds.store.state(),
            machine_configs: cache.machine_configs.store.state(),
            entries,
            undecodable: [
                cache.os_configs.all_undecodable(),
                cache.os_builds.all_undecodable(),
                cache.machine_configs.all_undecodable(),
            ]
            .concat(),
        }
    }

    /// The first that needs the image. What is being deleted needs none, nor does the build with the UID `asking`.
    #[must_use]
    pub fn of(&self, digest: Digest, asking: Option<&str>) -> Option<Use> {
        self.named_beside_builds(digest)
            .or_else(|| self.of_builds(digest, asking))
            .or_else(|| self.unknown())
    }

    /// The first that needs the image, other than a MachineOSBuild that has it.
    #[must_use]
    pub fn beside_builds(&self, digest: Digest) -> Option<Use> {
        self.named_beside_builds(digest).or_else(|| self.unknown())
    }

    /// The first that may need any image.
    fn unknown(&self) -> Option<Use> {
        let one = self.undecodable.first()?;
        Some(Use::Unknown(one.told()))
    }

    fn named_beside_builds(&self, digest: Digest) -> Option<Use> {
        let text = digest.to_string();
        let names = |value: Option<&String>| value.is_some_and(|value| value.contains(&text));
        let node = self.nodes.iter().find(|node| {
            let mut annotations = node.annotations().values();
            annotations.any(|value| value.contains(&text))
        });
        if let Some(node) = node {
            return Some(Use::Node(node.name_any()));
        }
        let config = self.os_configs.iter().find(|config| {
            let status = config.status.as_ref();
            // one that isn't seeded yet will name the image of its annotation
            let annotated = |key| names(config.annotations().get(key));
            config.metadata.deletion_timestamp.is_none()
                && (names(status.and_then(|status| status.current_image_pull_spec.as_ref()))
                    || annotated(annotation::PRE_BUILT_IMAGE)
                    || annotated(annotation::KEEP_IMAGE))
        });
        if let Some(config) = config {
            return Some(Use::Config(config.name_any()));
        }
        let machine_config = self.machine_configs.iter().find(|machine_config| {
            let spec = &machine_config.spec;
            names(spec.os_image_url.as_ref()) || names(spec.extensions_image.as_ref())
        });
        if let Some(machine_config) = machine_config {
            return Some(Use::MachineConfig(machine_config.name_any()));
        }
        let mut kept = self.os_builds.iter();
        let kept = kept.find(|build| {
            is_to_be_kept(build) && image_of(build).is_some_and(|image| has_digest(image, digest))
        });
        if let Some(build) = kept {
            return Some(Use::Kept(build.name_any()));
        }
        let mut entries = self.entries.iter();
        entries
            .find(|entry| entry.keep && has_digest(&entry.image, digest))
            .map(|entry| Use::Kept(entry.os_build.clone()))
    }

    fn of_builds(&self, digest: Digest, asking: Option<&str>) -> Option<Use> {
        let names = |image: Option<&str>| image.is_some_and(|image| has_digest(image, digest));
        let build = self.os_builds.iter().find(|build| {
            // one that is about to say that it takes this image instead of being built
            let claimed = build.annotations().get(annotation::REUSED_IMAGE);
            let claimed = claimed.filter(|_| !Phase::of_build(build).is_terminal());
            build.metadata.deletion_timestamp.is_none()
                && build.metadata.uid.as_deref() != asking
                && (names(image_of(build)) || names(claimed.map(String::as_str)))
        });
        build.map(|build| Use::Build(build.name_any()))
    }

    /// Whether there is a MachineOSBuild with this UID, and be it one that is being deleted.
    #[must_use]
    pub fn has_build(&self, uid: &str) -> bool {
        let builds = self.os_builds.iter().map(|build| &build.metadata);
        let mut all = builds.chain(self.undecodable.iter().map(|one| &one.metadata));
        all.any(|metadata| metadata.uid.as_deref() == Some(uid))
    }

    /// What of `repository` is named and may be an index, each once: all images but those that builds here have pushed. Named by another
    /// host counts too: a registry has more than one name.
    #[must_use]
    pub fn possible_indexes(&self, repository: &Repository) -> Vec<Reference> {
        let on_nodes = self
            .nodes
            .iter()
            .flat_map(|node| node.annotations().values());
        let on_nodes = on_nodes.flat_map(|value| images_in(value));
        let of_builds = self.os_builds.iter().flat_map(|build| {
            let annotated = |key| build.annotations().get(key).map(String::as_str);
            let seed = annotated(annotation::PRE_BUILT_IMAGE);
            let named = image_of(build).filter(|_| crate::reuse::is_pre_built(build));
            seed.into_iter().chain(named)
        });
        let of_configs = self.os_configs.iter().flat_map(|config| {
            let status = config.status.as_ref();
            let annotated = |key| config.annotations().get(key);
            let kept = annotated(annotation::KEEP_IMAGE).into_iter();
            let kept = kept.flat_map(|list| list.split([',', ' ']));
            let current = status.and_then(|status| status.current_image_pull_spec.as_deref());
            let seed = annotated(annotation::PRE_BUILT_IMAGE).map(String::as_str);
            kept.chain(current).chain(seed)
        });
        let of_machine_configs = self.machine_configs.iter().flat_map(|machine_config| {
            let spec = &machine_config.spec;
            [&spec.os_image_url, &spec.extensions_image]
                .into_iter()
                .filter_map(|image| image.as_deref())
        });
        let named = on_nodes.chain(of_builds);
        let named = named.chain(of_configs).chain(of_machine_configs);
        let mut found: Vec<Reference> = Vec::new();
        for image in named.filter_map(|image| image.parse::<Reference>().ok()) {
            let is_built = |digest| {
                let mut builds = self.os_builds.iter();
                builds.any(|build| {
                    !crate::reuse::is_pre_built(build)
                        && image_of(build).is_some_and(|image| has_digest(image, digest))
                })
            };
            let image = match image.repository.path() == repository.path() {
                true => Reference {
                    repository: repository.clone(),
                    ..image
                },
                false => continue,
            };
            if !image.digest.is_some_and(is_built) && !found.contains(&image) {
                found.push(image);
            }
        }
        found
    }
}

/// What in an annotation's value may name an image: all of it, and each word in it that has a digest.
fn images_in(value: &str) -> impl Iterator<Item = &str> {
    let words = value.split(|c: char| c.is_whitespace() || "\"',;()[]{}<>".contains(c));
    let with_digest = words.filter(|word| word.contains("@sha256:"));
    with_digest.chain((!value.contains('@')).then_some(value))
}

/// Whether an administrator wants the image of `os_build` to stay.
#[must_use]
pub fn is_to_be_kept(os_build: &MachineOSBuild) -> bool {
    let value = os_build.annotations().get(annotation::KEEP_IMAGE);
    value.is_some_and(|value| value != "false")
}

fn image_of(os_build: &MachineOSBuild) -> Option<&str> {
    let status = os_build.status.as_ref()?;
    status.digested_image_push_spec.as_deref()
}

/// Whether the reference `image` ends in this digest.
fn has_digest(image: &str, digest: Digest) -> bool {
    image
        .rsplit_once('@')
        .is_some_and(|(_, named)| named.parse() == Ok(digest))
}

#[cfg(test)]
mod tests;
