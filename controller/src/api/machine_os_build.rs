//! Which image is built for a MachineOSConfig, and how far has it come?

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::lenient::{self, null_as_default};
use super::{NameReference, ObjectReference, schema};

/// One build of one image; immutable.
#[derive(CustomResource, Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "machineconfiguration.openshift.io",
    version = "v1",
    kind = "MachineOSBuild",
    plural = "machineosbuilds",
    doc = "MachineOSBuild is one build of the image that a MachineOSConfig asks for.",
    status = "MachineOSBuildStatus",
    derive = "PartialEq",
    label("openshift.io/operator-managed", ""),
    annotation(
        "api-approved.openshift.io",
        "https://github.com/openshift/api/pull/2090"
    ),
    printcolumn(
        name = "Prepared",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Prepared")].status"#
    ),
    printcolumn(
        name = "Building",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Building")].status"#
    ),
    printcolumn(
        name = "Succeeded",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Succeeded")].status"#
    ),
    printcolumn(
        name = "Interrupted",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Interrupted")].status"#
    ),
    printcolumn(
        name = "Failed",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Failed")].status"#
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    )
)]
#[schemars(extend("x-kubernetes-validations" = [
    {"rule": "self == oldSelf", "message": "machineOSBuildSpec is immutable once set"}
]))]
#[serde(rename_all = "camelCase")]
pub struct MachineOSBuildSpec {
    /// The rendered MachineConfig that the image is made from.
    #[serde(default, deserialize_with = "null_as_default")]
    #[schemars(!default, schema_with = "schema::rendered_reference")]
    pub machine_config: NameReference,
    /// The MachineOSConfig that asked for it.
    #[serde(
        rename = "machineOSConfig",
        default,
        deserialize_with = "null_as_default"
    )]
    #[schemars(!default, schema_with = "schema::not_empty_reference")]
    pub machine_os_config: NameReference,
    /// Where the image is pushed to; the tag is this object's name.
    #[serde(default, deserialize_with = "null_as_default")]
    #[schemars(!default, schema_with = "schema::tagged_image")]
    pub rendered_image_push_spec: String,
}

/// How far a build has come.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "!has(self.buildEnd) || (has(self.buildStart) && self.buildStart < self.buildEnd)",
    "message": "buildEnd must be after buildStart"
}]))]
pub struct MachineOSBuildStatus {
    /// Prepared, Building, Succeeded, Failed, Interrupted; at most one is True.
    #[serde(
        default,
        deserialize_with = "lenient::conditions",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(schema_with = "schema::build_conditions")]
    pub conditions: Option<Vec<Condition>>,
    /// What builds it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::of::<BuilderReference>")]
    pub builder: Option<BuilderReference>,
    /// Objects made for the build.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::related_objects")]
    pub related_objects: Option<Vec<ObjectReference>>,
    /// When the build began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::build_start")]
    pub build_start: Option<Time>,
    /// When it came to an end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::build_end")]
    pub build_end: Option<Time>,
    /// The image, by digest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::digested_image")]
    pub digested_image_push_spec: Option<String>,
}

/// What builds an image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "self.imageBuilderType == 'Job' ? has(self.job) : !has(self.job)",
    "message": "job is required when imageBuilderType is Job, and forbidden otherwise"
}]))]
pub struct BuilderReference {
    /// The kind of builder: `Job`.
    #[serde(default, deserialize_with = "null_as_default")]
    #[schemars(!default)]
    pub image_builder_type: String,
    /// The Job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::of::<ObjectReference>")]
    pub job: Option<ObjectReference>,
}
