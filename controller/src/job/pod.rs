//! The pod of a build: what it mounts, what it may, and how the builder is called.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    ConfigMapVolumeSource, Container, EmptyDirVolumeSource, EnvVar, EphemeralVolumeSource,
    ImageVolumeSource, KeyToPath, LocalObjectReference, PersistentVolumeClaimSpec,
    PersistentVolumeClaimTemplate, Pod, PodSpec, PodTemplateSpec, ResourceRequirements,
    SecretVolumeSource, Volume, VolumeMount, VolumeResourceRequirements,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use strata_builder::contract::CLUSTER_ANNOTATION;
use strata_builder::reference::Reference;

use super::{
    CONTAINER, CONTAINERFILE_KEY, JobSettings, MACHINE_CONFIG_KEY, PodShape, Resources, Scratch,
    TRUST_BUNDLE_KEY, labels, pulling,
};
use crate::api::machine_os_config::ContainerfileArch;
use crate::api::name;
use crate::etc_containers::Files;
use crate::inputs::BuildInputs;
use crate::secrets::JSON_KEY;

const CONTEXT: &str = "/run/strata/context";
const CONTAINERFILE: &str = "/run/strata/containerfile";
const PULL: &str = "/run/strata/pull";
const PUSH: &str = "/run/strata/push";
const BASE: &str = "/run/strata/base";
const EXTENSIONS: &str = "/run/strata/extensions";
const SCRATCH: &str = "/run/strata/scratch";
const SHARED: &str = "/run/strata/shared";
const SUBSCRIPTION: &str = "/run/secrets/rhsm";
const REPORT: &str = "/dev/termination-log";

/// The builder cleans up what it mounted; the kernel does it without it.
const TERMINATION_GRACE_SECONDS: i64 = 10;

pub(super) fn template(
    build_uid: &str,
    inputs: &BuildInputs,
    etc_containers: &Files,
    generated_lines: usize,
    shape: PodShape,
    settings: &JobSettings,
) -> PodTemplateSpec {
    let file = inputs.containerfile.as_ref();
    let arch = file.map_or(&ContainerfileArch::NoArch, |file| &file.containerfile_arch);
    let (volumes, mounts) = volumes(inputs, etc_containers, shape, &settings.scratch)
        .into_iter()
        .unzip();
    let container = Container {
        args: Some(arguments(
            build_uid,
            inputs,
            generated_lines,
            shape,
            settings,
        )),
        env: Some(
            proxy(inputs, settings)
                .into_iter()
                .map(|(name, value)| EnvVar {
                    name: name.to_owned(),
                    value: Some(value),
                    value_from: None,
                })
                .collect(),
        )
        .filter(|env: &Vec<_>| !env.is_empty()),
        ..container(shape, settings, mounts)
    };
    PodTemplateSpec {
        metadata: Some(ObjectMeta {
            labels: Some(labels(inputs)),
            ..ObjectMeta::default()
        }),
        spec: Some(PodSpec {
            image_pull_secrets: Some(vec![LocalObjectReference {
                name: name::pull_secret(inputs.name.as_str()),
            }]),
            node_selector: Some(
                [(
                    "kubernetes.io/arch".to_owned(),
                    arch.node_label().to_owned(),
                )]
                .into_iter()
                .chain(settings.node_selector.clone())
                .collect(),
            ),
            ..spec(shape, settings, container, volumes)
        }),
    }
}

/// A pod that asks for what a build's pod of this shape asks for, and belongs to no build: to see whether it would be taken.
#[must_use]
pub fn trial(shape: PodShape, settings: &JobSettings) -> Pod {
    let mut parts = vec![scratch(&settings.scratch)];
    // any reference does: it is not pulled
    if shape.has_image_volumes()
        && let Ok(image_reference) = settings.builder_image.parse()
    {
        parts.push(image("base", &image_reference, BASE));
    }
    let (volumes, mounts) = parts.into_iter().unzip();
    Pod {
        metadata: ObjectMeta {
            name: Some(format!("strata-trial-{}", shape.name())),
            namespace: Some(settings.namespace.clone()),
            ..ObjectMeta::default()
        },
        spec: Some(spec(
            shape,
            settings,
            container(shape, settings, mounts),
            volumes,
        )),
        status: None,
    }
}

/// What depends on shape and settings only.
fn spec(
    shape: PodShape,
    settings: &JobSettings,
    container: Container,
    volumes: Vec<Volume>,
) -> PodSpec {
    PodSpec {
        automount_service_account_token: Some(false),
        containers: vec![container],
        enable_service_links: Some(false),
        host_users: shape.host_users(),
        priority_class_name: settings.priority_class.clone(),
        restart_policy: Some("Never".to_owned()),
        security_context: shape.pod_context(),
        service_account_name: Some(settings.service_account.clone()),
        termination_grace_period_seconds: Some(TERMINATION_GRACE_SECONDS),
        tolerations: (!settings.tolerations.is_empty()).then(|| settings.tolerations.clone()),
        volumes: Some(volumes),
        ..PodSpec::default()
    }
}

fn container(shape: PodShape, settings: &JobSettings, mounts: Vec<VolumeMount>) -> Container {
    Container {
        name: CONTAINER.to_owned(),
        image: Some(settings.builder_image.clone()),
        image_pull_policy: Some("IfNotPresent".to_owned()),
        command: Some(vec!["strata-builder".to_owned()]),
        resources: Some(resources(&settings.resources)),
        security_context: Some(shape.container_context()),
        termination_message_path: Some(REPORT.to_owned()),
        termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
        volume_mounts: Some(mounts),
        ..Container::default()
    }
}

fn arguments(
    build_uid: &str,
    inputs: &BuildInputs,
    generated_lines: usize,
    shape: PodShape,
    settings: &JobSettings,
) -> Vec<String> {
    let mut arguments: Vec<String> = vec!["build".to_owned()];
    let mut flag = |name: &str, value: String| {
        arguments.push(format!("--{name}"));
        arguments.push(value);
    };
    flag(
        "containerfile",
        format!("{CONTAINERFILE}/{CONTAINERFILE_KEY}"),
    );
    flag("generated-lines", generated_lines.to_string());
    flag("context", CONTEXT.to_owned());
    for (_, image, path) in from_node(inputs, shape) {
        flag("base-rootfs", format!("{image}={path}"));
    }
    flag("push", inputs.push.to_string());
    flag("pull-authfile", format!("{PULL}/config.json"));
    flag("authfile", format!("{PUSH}/config.json"));
    for host in &settings.plain_http {
        flag("plain-http", host.clone());
    }
    if inputs.trust_bundle.is_some() {
        flag("ca-bundle", format!("{CONTEXT}/{TRUST_BUNDLE_KEY}"));
    }
    for (_, path, target) in shared_with_steps(inputs) {
        flag("volume", format!("{path}:{target}"));
    }
    // a node's own subscription, where its container runtime hands it on
    flag(
        "volume",
        format!("{SUBSCRIPTION}:{SUBSCRIPTION}:O,optional"),
    );
    flag("build-uid", build_uid.to_owned());
    if let Some(cluster) = &settings.cluster {
        flag("annotation", format!("{CLUSTER_ANNOTATION}={cluster}"));
    }
    flag("source-date-epoch", epoch(inputs).to_string());
    flag("scratch", SCRATCH.to_owned());
    flag("tier", settings.tier.clone());
    flag("layers", settings.layers.clone());
    flag("compression", settings.compression.clone());
    flag("progress", "plain".to_owned());
    flag("report", REPORT.to_owned());
    for (name, value) in proxy(inputs, settings) {
        flag("build-arg", format!("{name}={value}"));
    }
    // the volume goes with the pod, and nobody waits for it
    arguments.push("--leave-scratch".to_owned());
    arguments
}

/// Images that the node brings: the pod's volume, what is in it, and where the builder finds it.
fn from_node(inputs: &BuildInputs, shape: PodShape) -> Vec<(&str, &Reference, &str)> {
    if !shape.has_image_volumes() {
        return Vec::new();
    }
    let mut images = vec![("base", &inputs.base_image, BASE)];
    if let Some(extensions) = &inputs.extensions_image {
        images.push(("extensions", extensions, EXTENSIONS));
    }
    images
}

/// What steps see beside the image: the pod's volume, where the builder finds it, and where the steps do.
fn shared_with_steps(inputs: &BuildInputs) -> Vec<(Volume, String, &'static str)> {
    let optional = inputs.optional;
    let entitlement = name::entitlement(&inputs.pool);
    [
        (
            optional.entitlement,
            "/etc/pki/entitlement",
            true,
            entitlement.as_str(),
        ),
        (
            optional.yum_repos,
            "/etc/yum.repos.d",
            false,
            name::YUM_REPOS,
        ),
        (optional.rpm_gpg, "/etc/pki/rpm-gpg", true, name::RPM_GPG),
    ]
    .into_iter()
    .filter(|(exists, ..)| *exists)
    .map(|(_, target, is_secret, object)| {
        let volume = target.trim_start_matches('/').replace(['/', '.'], "-");
        let path = format!("{SHARED}/{volume}");
        let mut shared = Volume {
            name: volume,
            ..Volume::default()
        };
        // as the incumbent has them: a step may run as any user
        let mode = Some(0o755);
        if is_secret {
            shared.secret = Some(SecretVolumeSource {
                secret_name: Some(object.to_owned()),
                default_mode: mode,
                ..SecretVolumeSource::default()
            });
        } else {
            shared.config_map = Some(ConfigMapVolumeSource {
                name: object.to_owned(),
                default_mode: mode,
                ..ConfigMapVolumeSource::default()
            });
        }
        (shared, path, target)
    })
    .collect()
}

/// When the MachineConfig was rendered: a rebuild of the same inputs has the same times, and so the same layers; its manifest names the build besides.
fn epoch(inputs: &BuildInputs) -> i64 {
    let rendered = &inputs.machine_config.metadata.creation_timestamp;
    rendered
        .as_ref()
        .map_or(0, |time| time.0.as_second().max(0))
}

fn proxy(inputs: &BuildInputs, settings: &JobSettings) -> Vec<(&'static str, String)> {
    let cluster = &inputs.proxy;
    let own = &settings.proxy;
    [
        ("HTTP_PROXY", &own.http_proxy, &cluster.http_proxy),
        ("HTTPS_PROXY", &own.https_proxy, &cluster.https_proxy),
        ("NO_PROXY", &own.no_proxy, &cluster.no_proxy),
    ]
    .into_iter()
    .filter_map(|(name, own, cluster)| {
        let value = own.as_ref().or(cluster.as_ref()).cloned();
        let value = value.filter(|value| !value.is_empty())?;
        Some((name, value))
    })
    .collect()
}

fn resources(resources: &Resources) -> ResourceRequirements {
    let Resources {
        cpu_request,
        memory_request,
        memory_limit,
        storage_request,
        storage_limit,
    } = resources;
    let quantities = |pairs: &[(&str, &String)]| {
        pairs
            .iter()
            .map(|(name, quantity)| ((*name).to_owned(), Quantity((*quantity).clone())))
            .collect()
    };
    ResourceRequirements {
        requests: Some(quantities(&[
            ("cpu", cpu_request),
            ("memory", memory_request),
            ("ephemeral-storage", storage_request),
        ])),
        limits: Some(quantities(&[
            ("memory", memory_limit),
            ("ephemeral-storage", storage_limit),
        ])),
        claims: None,
    }
}

/// Each volume with its one mount.
fn volumes(
    inputs: &BuildInputs,
    etc_containers: &Files,
    shape: PodShape,
    room: &Scratch,
) -> Vec<(Volume, VolumeMount)> {
    let build = inputs.name.as_str();
    let mut volumes = vec![
        config_map(
            "containerfile",
            name::containerfile(build),
            CONTAINERFILE,
            None,
        ),
        // By subPath, so that the context holds plain files and no links into a hidden directory.
        config_map(
            "machineconfig",
            name::machine_config(build),
            &format!("{CONTEXT}/machineconfig/{MACHINE_CONFIG_KEY}"),
            Some(MACHINE_CONFIG_KEY),
        ),
        config_map(
            "additional-trust-bundle",
            name::trust_bundle(build),
            &format!("{CONTEXT}/{TRUST_BUNDLE_KEY}"),
            Some(TRUST_BUNDLE_KEY),
        ),
        secret("base-image-pull-creds", name::pull_secret(build), PULL),
        secret("final-image-push-creds", name::push_secret(build), PUSH),
    ];
    volumes.extend(pulling::volume(build, etc_containers));
    let images = from_node(inputs, shape);
    volumes.extend(
        images
            .into_iter()
            .map(|(volume, reference, path)| image(volume, reference, path)),
    );
    volumes.push(scratch(room));
    volumes.extend(
        shared_with_steps(inputs)
            .into_iter()
            .map(|(volume, path, _)| {
                let mount = mount(&volume.name, &path, true);
                (volume, mount)
            }),
    );
    volumes
}

fn scratch(room: &Scratch) -> (Volume, VolumeMount) {
    let Scratch { size, class } = room;
    let size = size.clone().map(Quantity);
    let mut volume = Volume {
        name: "scratch".to_owned(),
        ..Volume::default()
    };
    match class {
        None => {
            volume.empty_dir = Some(EmptyDirVolumeSource {
                size_limit: size,
                ..EmptyDirVolumeSource::default()
            });
        }
        Some(class) => {
            let spec = PersistentVolumeClaimSpec {
                access_modes: Some(vec!["ReadWriteOnce".to_owned()]),
                resources: Some(VolumeResourceRequirements {
                    requests: size.map(|size| BTreeMap::from([("storage".to_owned(), size)])),
                    limits: None,
                }),
                storage_class_name: Some(class.clone()),
                ..PersistentVolumeClaimSpec::default()
            };
            volume.ephemeral = Some(EphemeralVolumeSource {
                volume_claim_template: Some(PersistentVolumeClaimTemplate {
                    metadata: None,
                    spec,
                }),
            });
        }
    }
    (volume, mount("scratch", SCRATCH, false))
}

pub(super) fn mount(volume: &str, path: &str, read_only: bool) -> VolumeMount {
    VolumeMount {
        name: volume.to_owned(),
        mount_path: path.to_owned(),
        read_only: read_only.then_some(true),
        ..VolumeMount::default()
    }
}

fn config_map(
    volume: &str,
    object: String,
    path: &str,
    sub_path: Option<&str>,
) -> (Volume, VolumeMount) {
    let source = ConfigMapVolumeSource {
        name: object,
        ..ConfigMapVolumeSource::default()
    };
    (
        Volume {
            name: volume.to_owned(),
            config_map: Some(source),
            ..Volume::default()
        },
        VolumeMount {
            sub_path: sub_path.map(str::to_owned),
            ..mount(volume, path, true)
        },
    )
}

fn secret(volume: &str, object: String, path: &str) -> (Volume, VolumeMount) {
    let source = SecretVolumeSource {
        secret_name: Some(object),
        default_mode: Some(0o400),
        items: Some(vec![KeyToPath {
            key: JSON_KEY.to_owned(),
            path: "config.json".to_owned(),
            ..KeyToPath::default()
        }]),
        ..SecretVolumeSource::default()
    };
    (
        Volume {
            name: volume.to_owned(),
            secret: Some(source),
            ..Volume::default()
        },
        mount(volume, path, true),
    )
}

fn image(volume: &str, image: &Reference, path: &str) -> (Volume, VolumeMount) {
    let source = ImageVolumeSource {
        pull_policy: Some("IfNotPresent".to_owned()),
        reference: Some(image.to_string()),
    };
    (
        Volume {
            name: volume.to_owned(),
            image: Some(source),
            ..Volume::default()
        },
        mount(volume, path, true),
    )
}
