//! Valid objects for tests; a test changes what it is about.

use serde_json::json;

use crate::api::machine_os_config::{ContainerfileArch, OsContainerfile};
use crate::api::{MachineConfig, MachineConfigPool, MachineOSConfig, annotation};
use crate::inputs::{BuildInputs, OptionalMounts, Sources};

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
