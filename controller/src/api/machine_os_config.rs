//! What does an administrator ask for, and what has come of it?

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::lenient::{self, null_as_default};
use super::{NameReference, ObjectReference, schema};

/// The wish for a custom operating-system image for one pool.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "machineconfiguration.openshift.io",
    version = "v1",
    kind = "MachineOSConfig",
    plural = "machineosconfigs",
    doc = "MachineOSConfig asks for a custom operating-system image for the nodes of one pool.",
    status = "MachineOSConfigStatus",
    derive = "PartialEq",
    label("openshift.io/operator-managed", ""),
    annotation(
        "api-approved.openshift.io",
        "https://github.com/openshift/api/pull/2090"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct MachineOSConfigSpec {
    /// The pool whose nodes shall run the image; its name is also this object's.
    #[serde(default, deserialize_with = "null_as_default")]
    #[schemars(!default)]
    pub machine_config_pool: NameReference,
    /// How the image is built.
    #[serde(default, deserialize_with = "null_as_default")]
    #[schemars(!default)]
    pub image_builder: ImageBuilder,
    /// Secret to pull images with; without it the cluster's global pull secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::of::<NameReference>")]
    pub base_image_pull_secret: Option<NameReference>,
    /// Secret to push the image with.
    #[serde(default, deserialize_with = "null_as_default")]
    #[schemars(!default)]
    pub rendered_image_push_secret: NameReference,
    /// Where the image is pushed to; the tag is replaced by the build's name.
    #[serde(default, deserialize_with = "null_as_default")]
    #[schemars(!default, schema_with = "schema::tagged_image")]
    pub rendered_image_push_spec: String,
    /// What is put on top of the base image, per architecture.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::containerfiles")]
    pub container_file: Option<Vec<OsContainerfile>>,
}

/// How an image is built.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ImageBuilder {
    /// The kind of builder.
    #[serde(default, deserialize_with = "null_as_default")]
    #[schemars(!default, schema_with = "schema::builder_type")]
    pub image_builder_type: ImageBuilderType,
}

/// The kinds of builder.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum ImageBuilderType {
    /// A Kubernetes Job.
    #[default]
    Job,
    /// None that we have.
    Other(String),
}

impl From<String> for ImageBuilderType {
    fn from(text: String) -> Self {
        match text.as_str() {
            "Job" => Self::Job,
            _ => Self::Other(text),
        }
    }
}

impl From<ImageBuilderType> for String {
    fn from(kind: ImageBuilderType) -> Self {
        match kind {
            ImageBuilderType::Job => "Job".to_owned(),
            ImageBuilderType::Other(text) => text,
        }
    }
}

/// A Containerfile and the architecture it is for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct OsContainerfile {
    /// The architecture; NoArch is for all.
    #[serde(default, deserialize_with = "null_as_default")]
    #[schemars(schema_with = "schema::architecture")]
    pub containerfile_arch: ContainerfileArch,
    /// The Containerfile; its stages may start from `configs`.
    #[serde(default, deserialize_with = "null_as_default")]
    #[schemars(!default, length(max = 4096))]
    pub content: String,
}

/// The architectures a Containerfile may be for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum ContainerfileArch {
    /// 64-bit Arm.
    Arm64,
    /// 64-bit x86.
    Amd64,
    /// 64-bit little-endian Power.
    Ppc64le,
    /// IBM Z.
    S390x,
    /// Any.
    #[default]
    NoArch,
    /// None that we know.
    Other(String),
}

/// A place whose label can be lent.
static OURS: ContainerfileArch = ContainerfileArch::OURS;

impl ContainerfileArch {
    /// The value of the API field.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Arm64 => "ARM64",
            Self::Amd64 => "AMD64",
            Self::Ppc64le => "PPC64LE",
            Self::S390x => "S390X",
            Self::NoArch => "NoArch",
            Self::Other(text) => text,
        }
    }

    /// What this program, and so the builder that is released with it, is made for.
    pub const OURS: Self = if cfg!(target_arch = "aarch64") {
        Self::Arm64
    } else if cfg!(target_arch = "powerpc64") {
        Self::Ppc64le
    } else if cfg!(target_arch = "s390x") {
        Self::S390x
    } else {
        Self::Amd64
    };

    /// The value of the node label `kubernetes.io/arch` where it is built.
    #[must_use]
    pub fn node_label(&self) -> &str {
        match self {
            Self::Arm64 => "arm64",
            Self::Amd64 => "amd64",
            Self::Ppc64le => "ppc64le",
            Self::S390x => "s390x",
            Self::NoArch => OURS.node_label(),
            Self::Other(text) => text,
        }
    }
}

impl From<String> for ContainerfileArch {
    fn from(text: String) -> Self {
        match text.as_str() {
            "ARM64" => Self::Arm64,
            "AMD64" => Self::Amd64,
            "PPC64LE" => Self::Ppc64le,
            "S390X" => Self::S390x,
            "NoArch" => Self::NoArch,
            _ => Self::Other(text),
        }
    }
}

impl From<ContainerfileArch> for String {
    fn from(arch: ContainerfileArch) -> Self {
        arch.as_str().to_owned()
    }
}

/// What has come of the wish.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MachineOSConfigStatus {
    /// State that isn't told by a build.
    #[serde(
        default,
        deserialize_with = "lenient::conditions",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(schema_with = "schema::config_conditions")]
    pub conditions: Option<Vec<Condition>>,
    /// metadata.generation that the other fields were made from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::observed_generation")]
    pub observed_generation: Option<i64>,
    /// The newest good image, by digest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::digested_image")]
    pub current_image_pull_spec: Option<String>,
    /// The build that made it.
    #[serde(
        default,
        rename = "machineOSBuild",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(schema_with = "schema::of::<ObjectReference>")]
    pub machine_os_build: Option<ObjectReference>,
}
