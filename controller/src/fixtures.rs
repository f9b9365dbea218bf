//! Valid objects for tests; a test changes what it is about.

use std::collections::BTreeSet;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt as _;
use kube::core::PartialObjectMeta;
use serde_json::json;

use crate::api::machine_os_config::{ContainerfileArch, OsContainerfile};
use crate::api::{MachineConfig, MachineConfigPool, MachineOSBuild, MachineOSConfig, annotation};
use crate::inputs::{BuildInputs, OptionalMounts, Sources};
use crate::job::JobSettings;
use crate::ledger::Entry;
use crate::phase::Phase;
use crate::settings::{BuildArgs, BuildSettings};

const DIGEST: &str = "sha256:220a60ecd4a3c32c282622a625a54db9ba0ff55b5ba9c29c7064a2bc358b6a3e";

/// A pool `worker` that wants [`machine_config`].
pub(crate) fn pool() -> MachineConfigPool {
    let mut pool = MachineConfigPool::new("worker", Default::default());
    pool.spec.configuration = serde_json::from_value(json!({"name": "rendered-worker-0"})).unwrap();
    pool
}

/// A rendered MachineConfig with one file.
pub(crate) fn machine_config() -> MachineConfig {
    serde_json::from_value(json!({
        "apiVersion": "machineconfiguration.openshift.io/v1",
        "kind": "MachineConfig",
        "metadata": {"name": "rendered-worker-0", "uid": "mc-uid", "annotations": {
            annotation::RELEASE_IMAGE_VERSION: "4.20.0",
            annotation::GENERATED_BY_VERSION: "abc",
        }},
        "spec": {
            "osImageURL": format!("registry.example.com/base/os@{DIGEST}"),
            "config": {"ignition": {"version": "3.4.0"}},
            "kernelArguments": [],
        },
    }))
    .unwrap()
}

/// A MachineOSConfig for [`pool`] without a Containerfile.
pub(crate) fn os_config() -> MachineOSConfig {
    serde_json::from_value(json!({
        "apiVersion": "machineconfiguration.openshift.io/v1",
        "kind": "MachineOSConfig",
        "metadata": {"name": "worker", "uid": "config-uid"},
        "spec": {
            "machineConfigPool": {"name": "worker"},
            "imageBuilder": {"imageBuilderType": "Job"},
            "renderedImagePushSecret": {"name": "push"},
            "renderedImagePushSpec": "registry.example.com/org/repo:latest",
        },
    }))
    .unwrap()
}

/// A Containerfile for an architecture.
pub(crate) fn containerfile(arch: ContainerfileArch) -> OsContainerfile {
    OsContainerfile {
        containerfile_arch: arch,
        content: "FROM configs AS final\nRUN true\n".to_owned(),
    }
}

/// The inputs of the objects above.
pub(crate) fn inputs() -> BuildInputs {
    BuildInputs::new(Sources {
        pool: &pool(),
        machine_config: &machine_config(),
        os_config: &os_config(),
        controller_config: None,
        optional: OptionalMounts::default(),
    })
    .unwrap()
}

/// The build of [`inputs`], succeeded with `image`.
pub(crate) fn os_build_with_image(image: &str) -> MachineOSBuild {
    let mut os_build = os_build();
    let status = os_build.status.get_or_insert_default();
    Phase::Succeeded.write(status.conditions.get_or_insert_default(), None, now());
    status.digested_image_push_spec = Some(image.to_owned());
    os_build
}

/// The build of [`inputs`] as the apiserver has it before anything was written to its status.
pub(crate) fn os_build() -> MachineOSBuild {
    let mut os_build = crate::os_config::new_build(&inputs(), &os_config());
    os_build.metadata.uid = Some("build-uid".to_owned());
    os_build.metadata.resource_version = Some("1".to_owned());
    os_build
}

/// Settings with nothing special.
pub(crate) fn job_settings() -> JobSettings {
    build_settings().job
}

/// Flags of an installation that has changed nothing.
pub(crate) fn build_args() -> BuildArgs {
    use clap::{Args as _, FromArgMatches as _};
    let command = BuildArgs::augment_args(clap::Command::new("settings").no_binary_name(true));
    let matches = command
        .try_get_matches_from(["--builder-image", "builder"])
        .unwrap();
    BuildArgs::from_arg_matches(&matches).unwrap()
}

/// What [`build_args`] come to.
pub(crate) fn build_settings() -> BuildSettings {
    BuildSettings::new(build_args(), "ns").unwrap()
}

/// A node with an annotation.
pub(crate) fn node(key: &str, value: &str) -> PartialObjectMeta<Node> {
    let mut node: PartialObjectMeta<Node> = PartialObjectMeta::default();
    node.metadata.name = Some("node1".to_owned());
    node.annotations_mut()
        .insert(key.to_owned(), value.to_owned());
    node
}

/// An entry of the ledger.
pub(crate) fn entry(image: &str) -> Entry {
    Entry {
        image: image.to_owned(),
        tag: None,
        push_secret: "push".to_owned(),
        os_build: "worker-0".to_owned(),
        since: now(),
        keep: false,
        orphan_of: None,
        unseen_of: None,
        content_key: None,
        refused_since: None,
    }
}

/// A moment.
pub(crate) fn now() -> Timestamp {
    Timestamp::from_second(1_700_000_000).unwrap_or_default()
}

/// The names in the first column of the table in a plan's documentation; a test tries each rule and no other.
pub(crate) fn documented_rules(plan: &str) -> BTreeSet<&str> {
    plan.lines()
        .filter_map(|line| line.strip_prefix("//! | ")?.split(" | ").next())
        .filter(|name| !matches!(*name, "rule" | "---"))
        .collect()
}
