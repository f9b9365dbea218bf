//! Which objects run a build?
//!
//! A MachineOSBuild with its inputs becomes ConfigMaps, Secrets and a Job, all owned by it from the first
//! write on; pure. What the Job comes to is told by [`outcome`](outcome::outcome).
//!
//! The pod has no API token and no rights. By default it lives in a user namespace of its own, in which the builder
//! makes another one to mount overlays, and base and extensions images come from the node as image volumes; where a
//! cluster doesn't take that, it has another [`PodShape`].

mod outcome;
mod pod;
mod pulling;
mod shape;

pub use outcome::{JobOutcome, outcome};
pub use pod::trial;
pub use shape::PodShape;

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use k8s_openapi::ByteString;
use k8s_openapi::api::batch::v1::{
    Job, JobSpec, PodFailurePolicy, PodFailurePolicyOnExitCodesRequirement,
    PodFailurePolicyOnPodConditionsPattern, PodFailurePolicyRule,
};
use k8s_openapi::api::core::v1::{ConfigMap, Secret, Toleration};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::{Resource as _, ResourceExt as _};
use strata_builder::error::{Class, Classify};

use crate::api::foreign::Proxy;
use crate::api::{CONTROLLER_CONFIG_NAME, MachineOSBuild, annotation, label, name};
use crate::etc_containers::{self, BundleError};
use crate::inputs::BuildInputs;
use crate::render::Rendered;
use crate::secrets::{DockerConfig, JSON_KEY, JSON_TYPE};
use pulling::Content;

/// Name of the pod's only container.
pub const CONTAINER: &str = "image-build";

/// Failed pods that the Job replaces; the incumbent's number.
pub const BACKOFF_LIMIT: i32 = 3;

/// Key of the Containerfile's ConfigMap.
const CONTAINERFILE_KEY: &str = "Containerfile";
/// Key of the MachineConfig's ConfigMap.
const MACHINE_CONFIG_KEY: &str = "machineconfig.json.gz";
/// Key of the trust bundle's ConfigMap.
const TRUST_BUNDLE_KEY: &str = "openshift-config-user-ca-bundle.crt";

/// The part of the settings that shapes Jobs.
#[derive(Clone, Debug, PartialEq)]
pub struct JobSettings {
    /// Of all namespaced objects.
    pub namespace: String,
    /// What images say that are built in this cluster; none if it can't be told.
    pub cluster: Option<String>,
    /// Image with strata-builder.
    pub builder_image: String,
    /// Without rights; its token isn't mounted.
    pub service_account: String,
    /// Registries without TLS.
    pub plain_http: Vec<String>,
    /// A Job that lasts longer is ended.
    pub deadline: Duration,
    /// Failed pods that the Job replaces.
    pub retries: i32,
    /// What a pod asks for and may take.
    pub resources: Resources,
    /// Where a pod unpacks and builds.
    pub scratch: Scratch,
    /// Labels of the pods' nodes, besides their architecture.
    pub node_selector: BTreeMap<String, String>,
    /// Of the pods.
    pub tolerations: Vec<Toleration>,
    /// Of the pods.
    pub priority_class: Option<String>,
    /// Of the pods; none for the best that the cluster takes.
    pub shape: Option<PodShape>,
    /// As the builder's `--tier`.
    pub tier: String,
    /// As the builder's `--layers`.
    pub layers: String,
    /// As the builder's `--compression`.
    pub compression: String,
    /// Instead of the cluster's, each that is given.
    pub proxy: Proxy,
}

/// The volume that a build unpacks and builds in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scratch {
    /// A Kubernetes quantity.
    pub size: Option<String>,
    /// Of a volume that is claimed for the pod; none for a directory of the node.
    pub class: Option<String>,
}

/// Requests and limits of a build's pod, as Kubernetes quantities.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resources {
    /// Request; without a limit, so that a build uses an idle node.
    pub cpu_request: String,
    /// Request.
    pub memory_request: String,
    /// Limit; the steps count too, and `dnf` takes most of it.
    pub memory_limit: String,
    /// Request of ephemeral storage.
    pub storage_request: String,
    /// Limit of ephemeral storage: unpacked base and the diff where there is no image volume.
    pub storage_limit: String,
}

impl Default for Resources {
    fn default() -> Self {
        Self {
            cpu_request: "500m".to_owned(),
            memory_request: "512Mi".to_owned(),
            memory_limit: "2Gi".to_owned(),
            storage_request: "8Gi".to_owned(),
            storage_limit: "30Gi".to_owned(),
        }
    }
}

/// What the builder shows to registries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// To pull the base image and what a Containerfile names.
    pub pull: DockerConfig,
    /// To push the result.
    pub push: DockerConfig,
}

/// Everything that runs a build.
#[derive(Clone, Debug, PartialEq)]
pub struct BuildObjects {
    /// Containerfile, MachineConfig, trust bundle; and what says how to pull, if anything does.
    pub config_maps: Vec<ConfigMap>,
    /// Pull and push credentials.
    pub secrets: Vec<Secret>,
    /// What mounts them.
    pub job: Job,
}

/// Inputs that no Job can be made of.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    /// Only what the apiserver has accepted can own something.
    #[error("MachineOSBuild {0} has no UID")]
    NoUid(String),
    /// Certificates that are none.
    #[error("ControllerConfig {CONTROLLER_CONFIG_NAME}, spec.additionalTrustBundle is no base64")]
    TrustBundle(#[source] base64::DecodeError),
    /// The same, for a single registry.
    #[error(transparent)]
    RegistryBundle(#[from] BundleError),
}

impl Classify for JobError {
    fn class(&self) -> Class {
        match self {
            JobError::NoUid(_) => Class::INTERNAL,
            JobError::TrustBundle(_) | JobError::RegistryBundle(_) => Class::CONTENT,
        }
    }
}

/// The objects that run `os_build` in a pod of `shape`.
///
/// # Errors
///
/// User: an object, which the error names, must be changed. Permanent: a bug.
pub fn build_objects(
    os_build: &MachineOSBuild,
    inputs: &BuildInputs,
    rendered: &Rendered,
    credentials: &Credentials,
    shape: PodShape,
    settings: &JobSettings,
) -> Result<BuildObjects, JobError> {
    let mut controller = os_build
        .controller_owner_ref(&())
        .filter(|owner| !owner.uid.is_empty())
        .ok_or_else(|| JobError::NoUid(os_build.name_any()))?;
    // With its finalizer the build stays until the Job is gone.
    controller.block_owner_deletion = Some(true);
    // Not blocking: these may be collected in any order once the build is gone.
    let owner = OwnerReference {
        controller: None,
        block_owner_deletion: None,
        ..controller.clone()
    };
    let build = inputs.name.as_str();
    let metadata = |name: String, owner: &OwnerReference| ObjectMeta {
        name: Some(name),
        namespace: Some(settings.namespace.clone()),
        labels: Some(labels(inputs)),
        annotations: Some(annotations(inputs)),
        owner_references: Some(vec![owner.clone()]),
        ..ObjectMeta::default()
    };
    let trust_bundle = BASE64_STANDARD
        .decode(inputs.trust_bundle.as_deref().unwrap_or_default())
        .map_err(JobError::TrustBundle)?;
    let etc_containers = etc_containers::with_authorities(
        inputs.etc_containers.clone(),
        &etc_containers::authorities(&inputs.registry_bundles)?,
    );
    let config_map = |name, key: &str, value: String| ConfigMap {
        metadata: metadata(name, &owner),
        data: Some(BTreeMap::from([(key.to_owned(), value)])),
        ..ConfigMap::default()
    };
    let secret = |name, original: &str, docker_config: &DockerConfig| {
        let mut secret = Secret {
            metadata: metadata(name, &owner),
            type_: Some(JSON_TYPE.to_owned()),
            data: Some(BTreeMap::from([(
                JSON_KEY.to_owned(),
                ByteString(docker_config.as_bytes().to_vec()),
            )])),
            ..Secret::default()
        };
        secret
            .labels_mut()
            .insert(label::CANONICALIZED_SECRET.to_owned(), String::new());
        // A Secret's name may be longer than a label value.
        if original.len() <= 63 {
            secret
                .labels_mut()
                .insert(label::ORIGINAL_SECRET_NAME.to_owned(), original.to_owned());
        }
        secret
    };
    let pull_secret = inputs
        .pull_secret
        .as_deref()
        .unwrap_or(crate::api::DEFAULT_PULL_SECRET);
    Ok(BuildObjects {
        config_maps: [
            config_map(
                name::containerfile(build),
                CONTAINERFILE_KEY,
                rendered.containerfile.clone(),
            ),
            config_map(
                name::machine_config(build),
                MACHINE_CONFIG_KEY,
                rendered.packed_machine_config.clone(),
            ),
            ConfigMap {
                metadata: metadata(name::trust_bundle(build), &owner),
                binary_data: Some(BTreeMap::from([(
                    TRUST_BUNDLE_KEY.to_owned(),
                    ByteString(trust_bundle),
                )])),
                ..ConfigMap::default()
            },
        ]
        .into_iter()
        .chain(pulling::contents(build, &etc_containers).into_iter().map(
            |(name, Content { text, binary })| ConfigMap {
                metadata: metadata(name, &owner),
                data: (!text.is_empty()).then_some(text),
                binary_data: (!binary.is_empty()).then_some(binary),
                ..ConfigMap::default()
            },
        ))
        .collect(),
        secrets: vec![
            secret(name::pull_secret(build), pull_secret, &credentials.pull),
            secret(
                name::push_secret(build),
                &inputs.push_secret,
                &credentials.push,
            ),
        ],
        job: Job {
            metadata: metadata(name::job(build), &controller),
            spec: Some(JobSpec {
                active_deadline_seconds: i64::try_from(settings.deadline.as_secs()).ok(),
                backoff_limit: Some(settings.retries),
                completions: Some(1),
                parallelism: Some(1),
                pod_failure_policy: Some(failure_policy()),
                template: pod::template(
                    &controller.uid,
                    inputs,
                    &etc_containers,
                    rendered.user_line_offset,
                    shape,
                    settings,
                ),
                ..JobSpec::default()
            }),
            status: None,
        },
    })
}

/// The labels of everything that goes with a build.
#[must_use]
pub fn labels(inputs: &BuildInputs) -> BTreeMap<String, String> {
    [
        (label::EPHEMERAL, ""),
        (label::ON_CLUSTER_LAYERING, ""),
        (
            label::RENDERED_MACHINE_CONFIG,
            &inputs.machine_config.name_any(),
        ),
        (label::TARGET_POOL, &inputs.pool),
        (label::OS_CONFIG, &inputs.os_config),
        (label::OS_BUILD, inputs.name.as_str()),
    ]
    .into_iter()
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .collect()
}

fn annotations(inputs: &BuildInputs) -> BTreeMap<String, String> {
    let BuildInputs { optional, .. } = inputs;
    let mut annotations = BTreeMap::from([
        (annotation::OS_CONFIG.to_owned(), inputs.os_config.clone()),
        (annotation::OS_BUILD.to_owned(), inputs.name.to_string()),
    ]);
    for (present, key) in [
        (optional.entitlement, annotation::HAS_ENTITLEMENT),
        (optional.yum_repos, annotation::HAS_YUM_REPOS),
        (optional.rpm_gpg, annotation::HAS_RPM_GPG),
    ] {
        if present {
            annotations.insert(key.to_owned(), String::new());
        }
    }
    annotations
}

/// What another attempt can't cure ends the Job; what the node did doesn't count as an attempt.
fn failure_policy() -> PodFailurePolicy {
    let hopeless = [
        Class::CONTENT,
        Class::RIGHTS,
        Class::CONTRACT,
        Class::INTERNAL,
    ];
    let mut values: Vec<i32> = hopeless.map(|class| i32::from(class.exit_code())).to_vec();
    values.sort_unstable();
    PodFailurePolicy {
        rules: vec![
            PodFailurePolicyRule {
                action: "Ignore".to_owned(),
                on_pod_conditions: Some(vec![PodFailurePolicyOnPodConditionsPattern {
                    status: Some("True".to_owned()),
                    type_: "DisruptionTarget".to_owned(),
                }]),
                ..PodFailurePolicyRule::default()
            },
            PodFailurePolicyRule {
                action: "FailJob".to_owned(),
                on_exit_codes: Some(PodFailurePolicyOnExitCodesRequirement {
                    container_name: Some(CONTAINER.to_owned()),
                    operator: "In".to_owned(),
                    values,
                }),
                ..PodFailurePolicyRule::default()
            },
        ],
    }
}

#[cfg(test)]
mod tests;
