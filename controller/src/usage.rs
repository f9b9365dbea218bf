//! Does anything need this image?
//!
//! Pure. An image is known by its digest alone: a mirror or another name of the repository doesn't make it another
//! image. Whoever asks reads nodes, configs and builds at that moment; a read that fails means *in use*.

use std::fmt;

use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt as _;
use kube::core::PartialObjectMeta;
use strata_builder::digest::Digest;

use crate::api::{MachineOSBuild, MachineOSConfig, annotation};
use crate::phase::Phase;

/// Who needs an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Use {
    /// It runs on this node, or shall.
    Node(String),
    /// Status of this MachineOSConfig names it.
    Config(String),
    /// Status of this MachineOSBuild names it.
    Build(String),
}

impl fmt::Display for Use {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Use::Node(name) => write!(f, "node {name} names it"),
            Use::Config(name) => write!(f, "MachineOSConfig {name} names it"),
            Use::Build(name) => write!(f, "MachineOSBuild {name} names it"),
        }
    }
}

/// All that can name an image.
#[derive(Clone, Debug, Default)]
pub struct Users {
    /// All of the cluster.
    pub nodes: Vec<PartialObjectMeta<Node>>,
    /// All of the cluster.
    pub os_configs: Vec<MachineOSConfig>,
    /// All of the cluster.
    pub os_builds: Vec<MachineOSBuild>,
}

impl Users {
    /// The first that needs the image. What is being deleted needs none, nor does the build with the UID `asking`.
    #[must_use]
    pub fn of(&self, digest: Digest, asking: Option<&str>) -> Option<Use> {
        let names = |image: Option<&str>| image.is_some_and(|image| has_digest(image, digest));
        let node = self.nodes.iter().find(|node| {
            [
                annotation::NODE_CURRENT_IMAGE,
                annotation::NODE_DESIRED_IMAGE,
            ]
            .iter()
            .any(|key| names(node.annotations().get(*key).map(String::as_str)))
        });
        if let Some(node) = node {
            return Some(Use::Node(node.name_any()));
        }
        let config = self.os_configs.iter().find(|config| {
            let status = config.status.as_ref();
            // one that isn't seeded yet will name the image of its annotation
            let seeded = config.annotations().get(annotation::PRE_BUILT_IMAGE);
            config.metadata.deletion_timestamp.is_none()
                && (names(status.and_then(|status| status.current_image_pull_spec.as_deref()))
                    || names(seeded.map(String::as_str)))
        });
        if let Some(config) = config {
            return Some(Use::Config(config.name_any()));
        }
        let build = self.os_builds.iter().find(|build| {
            let status = build.status.as_ref();
            // one that is about to say that it takes this image instead of being built
            let claimed = build.annotations().get(annotation::REUSED_IMAGE);
            let claimed = claimed.filter(|_| !Phase::of_build(build).is_terminal());
            build.metadata.deletion_timestamp.is_none()
                && build.metadata.uid.as_deref() != asking
                && (names(status.and_then(|status| status.digested_image_push_spec.as_deref()))
                    || names(claimed.map(String::as_str)))
        });
        build.map(|build| Use::Build(build.name_any()))
    }
}

/// Whether the reference `image` ends in this digest.
fn has_digest(image: &str, digest: Digest) -> bool {
    image
        .rsplit_once('@')
        .is_some_and(|(_, named)| named.parse() == Ok(digest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::machine_os_config::MachineOSConfigStatus;
    use crate::fixtures;

    const IMAGE: &str = "10.0.0.1:5000/os/worker@sha256:220a60ecd4a3c32c282622a625a54db9ba0ff55b5ba9c29c7064a2bc358b6a3e";

    fn digest() -> Digest {
        IMAGE.rsplit_once('@').unwrap().1.parse().unwrap()
    }

    fn node(key: &str, value: &str) -> PartialObjectMeta<Node> {
        let mut node: PartialObjectMeta<Node> = PartialObjectMeta::default();
        node.metadata.name = Some("node1".to_owned());
        node.annotations_mut()
            .insert(key.to_owned(), value.to_owned());
        node
    }

    #[test]
    fn nodes_configs_and_builds_that_live_need_the_images_they_name() {
        let elsewhere = IMAGE.replace("10.0.0.1:5000", "mirror.example.com");
        let mut os_config = fixtures::os_config();
        os_config.status = Some(MachineOSConfigStatus {
            current_image_pull_spec: Some(IMAGE.to_owned()),
            ..MachineOSConfigStatus::default()
        });
        let mut seeded = fixtures::os_config();
        seeded
            .annotations_mut()
            .insert(annotation::PRE_BUILT_IMAGE.to_owned(), IMAGE.to_owned());
        let mut going = os_config.clone();
        going.metadata.deletion_timestamp = Some(
            k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(jiff::Timestamp::UNIX_EPOCH),
        );
        let os_build = fixtures::os_build_with_image(IMAGE);
        let nodes = |key, value: &str| Users {
            nodes: vec![node(key, value)],
            ..Users::default()
        };
        let configs = |config: &MachineOSConfig| Users {
            os_configs: vec![config.clone()],
            ..Users::default()
        };
        let claim = |mut os_build: MachineOSBuild| {
            os_build
                .annotations_mut()
                .insert(annotation::REUSED_IMAGE.to_owned(), IMAGE.to_owned());
            os_build
        };
        let mut ended = os_build.clone();
        let other = IMAGE.replace("220a", "330b");
        ended
            .status
            .get_or_insert_default()
            .digested_image_push_spec = Some(other);
        let builds = Users {
            os_builds: vec![os_build],
            ..Users::default()
        };
        let claimed = Users {
            os_builds: vec![claim(fixtures::os_build())],
            ..Users::default()
        };
        let no_longer_claimed = Users {
            os_builds: vec![claim(ended)],
            ..Users::default()
        };
        let on_node = Some(Use::Node("node1".to_owned()));
        let by_config = Some(Use::Config("worker".to_owned()));
        for (users, asking, wanted) in [
            (
                nodes(annotation::NODE_CURRENT_IMAGE, IMAGE),
                None,
                on_node.clone(),
            ),
            (
                nodes(annotation::NODE_DESIRED_IMAGE, &elsewhere),
                None,
                on_node,
            ),
            (nodes(annotation::NODE_DESIRED_IMAGE, ""), None, None),
            (
                nodes(annotation::NODE_DESIRED_IMAGE, "junk@sha256:12"),
                None,
                None,
            ),
            (configs(&os_config), None, by_config.clone()),
            (configs(&seeded), None, by_config),
            (configs(&going), None, None),
            (
                builds.clone(),
                None,
                Some(Use::Build(builds.os_builds[0].name_any())),
            ),
            (builds.clone(), Some("build-uid"), None),
            (
                claimed.clone(),
                None,
                Some(Use::Build(claimed.os_builds[0].name_any())),
            ),
            (no_longer_claimed, None, None),
            (Users::default(), None, None),
        ] {
            assert_eq!(users.of(digest(), asking), wanted);
        }
    }
}
