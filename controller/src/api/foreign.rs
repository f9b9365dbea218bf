//! Which parts of other controllers' objects does a build read?
//!
//! Everything is optional and what isn't listed here is kept in [`MachineConfigSpec::other`] (the node
//! needs the whole MachineConfig) or left unread. The CRDs generated from these types are for plain
//! Kubernetes only; they keep unknown fields.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::lenient::null_as_default;
use super::schema;

/// The nodes that share a rendered MachineConfig.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "machineconfiguration.openshift.io",
    version = "v1",
    kind = "MachineConfigPool",
    plural = "machineconfigpools",
    shortname = "mcp",
    doc = "MachineConfigPool is a set of nodes that share a rendered MachineConfig.",
    status = "MachineConfigPoolStatus",
    derive = "PartialEq",
    printcolumn(
        name = "Config",
        type_ = "string",
        json_path = ".status.configuration.name"
    ),
    printcolumn(
        name = "Updated",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Updated")].status"#
    ),
    printcolumn(
        name = "Updating",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Updating")].status"#
    ),
    printcolumn(
        name = "Degraded",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Degraded")].status"#
    ),
    printcolumn(
        name = "MachineCount",
        type_ = "number",
        json_path = ".status.machineCount"
    ),
    printcolumn(
        name = "ReadyMachineCount",
        type_ = "number",
        json_path = ".status.readyMachineCount"
    ),
    printcolumn(
        name = "UpdatedMachineCount",
        type_ = "number",
        json_path = ".status.updatedMachineCount"
    ),
    printcolumn(
        name = "DegradedMachineCount",
        type_ = "number",
        json_path = ".status.degradedMachineCount"
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    )
)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-preserve-unknown-fields" = true))]
pub struct MachineConfigPoolSpec {
    /// The rendered MachineConfig that the nodes shall have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::of::<PoolConfiguration>")]
    pub configuration: Option<PoolConfiguration>,
}

/// What a pool has come to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-preserve-unknown-fields" = true))]
pub struct MachineConfigPoolStatus {
    /// The rendered MachineConfig that all nodes have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::of::<PoolConfiguration>")]
    pub configuration: Option<PoolConfiguration>,
    /// Of the pool; `ImageBuildDegraded` is ours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::pool_conditions")]
    pub conditions: Option<Vec<PoolCondition>>,
}

/// A pool's condition: older than `metav1.Condition`, so everything but the type may be absent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PoolCondition {
    /// Which condition.
    #[serde(rename = "type", default, deserialize_with = "null_as_default")]
    pub type_: String,
    /// True, False or Unknown.
    #[serde(default, deserialize_with = "null_as_default")]
    pub status: String,
    /// When the status last changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_transition_time: Option<Time>,
    /// CamelCase cause.
    #[serde(default)]
    pub reason: Option<String>,
    /// For a reader.
    #[serde(default)]
    pub message: Option<String>,
}

impl From<Condition> for PoolCondition {
    fn from(condition: Condition) -> Self {
        Self {
            type_: condition.type_,
            status: condition.status,
            last_transition_time: Some(condition.last_transition_time),
            reason: Some(condition.reason),
            message: Some(condition.message),
        }
    }
}

impl From<PoolCondition> for Condition {
    fn from(condition: PoolCondition) -> Self {
        Self {
            type_: condition.type_,
            status: condition.status,
            last_transition_time: condition
                .last_transition_time
                .unwrap_or(Time(jiff::Timestamp::UNIX_EPOCH)),
            observed_generation: None,
            reason: condition.reason.unwrap_or_default(),
            message: condition.message.unwrap_or_default(),
        }
    }
}

/// A rendered MachineConfig and what it was rendered from; feeds the build's name field by field.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-preserve-unknown-fields" = true))]
pub struct PoolConfiguration {
    /// The rendered MachineConfig.
    #[serde(flatten)]
    pub reference: CoreObjectReference,
    /// The MachineConfigs that it was rendered from, in order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<Vec<CoreObjectReference>>,
}

/// `corev1.ObjectReference`; empty is the same as absent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CoreObjectReference {
    /// Group and version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_version: Option<String>,
    /// A part of the object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field_path: Option<String>,
    /// Its kind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Its namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// The version of it that is meant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resource_version: Option<String>,
    /// Its UID.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
}

impl MachineConfigPool {
    /// Name of the rendered MachineConfig that the nodes shall have (`spec.configuration.name`).
    #[must_use]
    pub fn target_machine_config(&self) -> Option<&str> {
        let name = self
            .spec
            .configuration
            .as_ref()?
            .reference
            .name
            .as_deref()?;
        (!name.is_empty()).then_some(name)
    }
}

/// What is on a node: base image, Ignition files and units, extensions, kernel.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "machineconfiguration.openshift.io",
    version = "v1",
    kind = "MachineConfig",
    plural = "machineconfigs",
    shortname = "mc",
    doc = "MachineConfig is the configuration of an operating system.",
    derive = "PartialEq",
    printcolumn(
        name = "GeneratedByController",
        type_ = "string",
        json_path = r".metadata.annotations.machineconfiguration\.openshift\.io/generated-by-controller-version"
    ),
    printcolumn(
        name = "IgnitionVersion",
        type_ = "string",
        json_path = ".spec.config.ignition.version"
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    )
)]
#[schemars(extend("x-kubernetes-preserve-unknown-fields" = true))]
pub struct MachineConfigSpec {
    /// The base operating-system image.
    #[serde(
        default,
        rename = "osImageURL",
        skip_serializing_if = "Option::is_none"
    )]
    pub os_image_url: Option<String>,
    /// The image that extensions and kernels are installed from.
    #[serde(
        default,
        rename = "baseOSExtensionsContainerImage",
        skip_serializing_if = "Option::is_none"
    )]
    pub extensions_image: Option<String>,
    /// Named sets of packages to install.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub extensions: Option<Vec<String>>,
    /// `default`, `realtime` or `64k-pages`; empty is default.
    #[serde(
        default,
        rename = "kernelType",
        skip_serializing_if = "Option::is_none"
    )]
    pub kernel_type: Option<String>,
    /// The Ignition config.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::anything")]
    pub config: Option<Value>,
    /// Everything else.
    #[serde(flatten)]
    #[schemars(skip)]
    pub other: BTreeMap<String, Value>,
}

impl MachineConfigSpec {
    /// The kernel; empty and absent are `default`.
    #[must_use]
    pub fn kernel_type(&self) -> &str {
        let named = self.kernel_type.as_deref().filter(|name| !name.is_empty());
        named.unwrap_or("default")
    }
}

/// Settings of the whole cluster.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "machineconfiguration.openshift.io",
    version = "v1",
    kind = "ControllerConfig",
    plural = "controllerconfigs",
    doc = "ControllerConfig holds settings of the whole cluster that builds read.",
    derive = "PartialEq"
)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-preserve-unknown-fields" = true))]
pub struct ControllerConfigSpec {
    /// PEM certificates that nodes and builds shall trust, in base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub additional_trust_bundle: Option<String>,
    /// PEM certificates of the cluster's own authority, in base64.
    #[serde(
        default,
        rename = "rootCAData",
        skip_serializing_if = "Option::is_none"
    )]
    pub root_ca_data: Option<String>,
    /// Certificates for single registries, of the cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_registry_bundle_data: Option<Vec<RegistryBundle>>,
    /// Certificates for single registries, of its administrators.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_registry_bundle_user_data: Option<Vec<RegistryBundle>>,
    /// How to reach what is outside.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::of::<Proxy>")]
    pub proxy: Option<Proxy>,
}

/// Certificates for one registry.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RegistryBundle {
    /// The registry's host; `..` stands for the colon before a port.
    #[serde(default, deserialize_with = "null_as_default")]
    pub file: String,
    /// PEM in base64.
    #[serde(default, deserialize_with = "null_as_default")]
    pub data: String,
}

/// How to reach what is outside the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Proxy {
    /// For http.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http_proxy: Option<String>,
    /// For https.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub https_proxy: Option<String>,
    /// What needs no proxy, joined by commas.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub no_proxy: Option<String>,
}
