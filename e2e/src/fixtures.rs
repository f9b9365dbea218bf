//! The objects an administrator's cluster holds: valid defaults, with the adjective that a scenario needs.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

/// Where the samples and scenarios push to; it wants credentials.
pub const PUSH_REGISTRY: &str = "10.250.0.1:5001";

/// User and password of [`PUSH_REGISTRY`].
pub const PUSH_CREDENTIALS: &str = "strata:strata-push";

/// The Containerfile of OpenShift's documentation, unchanged.
pub const DOCUMENTED: &str = "FROM configs AS final\nRUN dnf install -y cowsay && dnf clean all && ostree container commit\n";

/// A Containerfile that is built in a moment.
#[must_use]
pub fn quick(text: &str) -> String {
    format!("FROM configs AS final\nRUN echo '{text}' > /etc/strata-scenario\n")
}

/// A Containerfile whose build lasts longer than a controller needs to stop.
#[must_use]
pub fn slow(text: &str) -> String {
    format!("{}RUN sleep 15\n", quick(text))
}

/// A Containerfile whose step lasts until it is stopped.
#[must_use]
pub fn endless(text: &str) -> String {
    format!("FROM configs AS final\nRUN echo '{text}' && sleep 3600\n")
}

/// A rendered MachineConfig's name for `pool`; `revision` tells several of one pool apart.
#[must_use]
pub fn rendered_name(pool: &str, revision: u32) -> String {
    format!("rendered-{pool}-{revision:032x}")
}

/// A rendered MachineConfig with a file and a unit, on the base image `os_image_url`.
#[must_use]
pub fn machine_config(name: &str, os_image_url: &str) -> Value {
    let content = BASE64_STANDARD.encode("[Service]\nNice=5\n");
    json!({
        "apiVersion": "machineconfiguration.openshift.io/v1",
        "kind": "MachineConfig",
        "metadata": {"name": name, "annotations": {
            "machineconfiguration.openshift.io/release-image-version": "4.20.0-scenario",
            "machineconfiguration.openshift.io/generated-by-controller-version": "scenario",
        }},
        "spec": {
            "osImageURL": os_image_url,
            "baseOSExtensionsContainerImage": "",
            "kernelType": "default",
            "extensions": [],
            "kernelArguments": [],
            "fips": false,
            "config": {
                "ignition": {"version": "3.3.0"},
                "storage": {"files": [{
                    "path": "/etc/scenario/nice.conf", "mode": 420, "overwrite": true,
                    "contents": {"source": format!("data:text/plain;charset=utf-8;base64,{content}")},
                }]},
                "systemd": {"units": [{
                    "name": "scenario.service", "enabled": true,
                    "contents": "[Unit]\nDescription=Scenario\n[Service]\nExecStart=/bin/true\n[Install]\nWantedBy=multi-user.target\n",
                }]},
            },
        },
    })
}

/// A pool that wants `rendered`.
#[must_use]
pub fn pool(name: &str, rendered: &str) -> Value {
    json!({
        "apiVersion": "machineconfiguration.openshift.io/v1",
        "kind": "MachineConfigPool",
        "metadata": {"name": name},
        "spec": {
            "machineConfigSelector": {"matchLabels": {"machineconfiguration.openshift.io/role": name}},
            "nodeSelector": {"matchLabels": {format!("node-role.kubernetes.io/{name}"): ""}},
            "paused": false,
            "configuration": configuration(rendered),
        },
    })
}

/// What a pool's spec and status say of a rendered MachineConfig.
#[must_use]
pub fn configuration(rendered: &str) -> Value {
    json!({"name": rendered, "source": [
        {"apiVersion": "machineconfiguration.openshift.io/v1", "kind": "MachineConfig", "name": "00-worker"},
    ]})
}

/// A valid MachineOSConfig for the pool `name`.
#[must_use]
pub fn os_config(name: &str, containerfile: &str) -> Value {
    json!({
        "apiVersion": "machineconfiguration.openshift.io/v1",
        "kind": "MachineOSConfig",
        "metadata": {"name": name},
        "spec": {
            "machineConfigPool": {"name": name},
            "imageBuilder": {"imageBuilderType": "Job"},
            "renderedImagePushSecret": {"name": push_secret_name(name)},
            "renderedImagePushSpec": format!("{PUSH_REGISTRY}/scenarios/{name}:latest"),
            "containerFile": [{"containerfileArch": "NoArch", "content": containerfile}],
        },
    })
}

/// A valid MachineOSBuild as the controller makes it; for the rules of its CRD only.
#[must_use]
pub fn os_build(name: &str) -> Value {
    json!({
        "apiVersion": "machineconfiguration.openshift.io/v1",
        "kind": "MachineOSBuild",
        "metadata": {"name": name},
        "spec": {
            "machineConfig": {"name": rendered_name("rules", 1)},
            "machineOSConfig": {"name": "rules"},
            "renderedImagePushSpec": format!("{PUSH_REGISTRY}/scenarios/rules:{name}"),
        },
    })
}

/// The push secret's name for a pool.
#[must_use]
pub fn push_secret_name(pool: &str) -> String {
    format!("{pool}-push")
}

/// A dockerconfigjson Secret with [`PUSH_CREDENTIALS`].
#[must_use]
pub fn push_secret(name: &str) -> Value {
    docker_secret(
        name,
        &json!({"auths": {PUSH_REGISTRY: {"auth": BASE64_STANDARD.encode(PUSH_CREDENTIALS)}}})
            .to_string(),
    )
}

/// A dockerconfigjson Secret with any text in it.
#[must_use]
pub fn docker_secret(name: &str, docker_config: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Secret",
        "metadata": {"name": name},
        "type": "kubernetes.io/dockerconfigjson",
        "stringData": {".dockerconfigjson": docker_config},
    })
}
