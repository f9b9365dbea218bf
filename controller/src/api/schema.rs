//! What may the fields of the two kinds hold, in the apiserver's own words?
//!
//! Limits, defaults and CEL rules equal those of the incumbent's CRDs, with one difference: a digest
//! reference may name a repository below more than one namespace.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde_json::{Value, json};

use super::machine_os_config::OsContainerfile;
use super::{
    ControllerConfig, MachineConfig, MachineConfigPool, MachineOSBuild, MachineOSConfig,
    ObjectReference,
};

const SUBDOMAIN_RULE: &str = "!format.dns1123Subdomain().validate(self).hasValue()";
const SUBDOMAIN_MESSAGE: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, hyphens ('-'), and periods ('.'), and must start and end with an alphanumeric character";

const TAG_RULE: &str = r"self.matches(r'^([a-zA-Z0-9-]+\.)+[a-zA-Z0-9-]+(:[0-9]{2,5})?(/[a-zA-Z0-9-_]{1,61})*/[a-zA-Z0-9-_.]+:[a-zA-Z0-9._-]+$') || self.matches(r'^[^.]+\.[^.]+\.svc:\d+\/[^\/]+\/[^\/]+:[^\/]+$')";
const TAG_MESSAGE: &str = "the OCI Image name should follow the host[:port][/namespace]/name format, resembling a valid URL without the scheme. Or it must be a valid .svc followed by a port, repository, image name, and tag.";

const DIGEST_RULE: &str =
    r"self.split('@').size() == 2 && self.split('@')[1].matches(r'^sha256:[a-f0-9]{64}$')";
const DIGEST_MESSAGE: &str = "the OCI Image reference must end with a valid '@sha256:<digest>' suffix, where '<digest>' is 64 characters long";
// The incumbent allows one namespace at most, so what its tag rule lets be pushed it can't always record.
const DIGEST_NAME_RULE: &str = r"self.split('@')[0].matches(r'^([a-zA-Z0-9-]+\.)+[a-zA-Z0-9-]+(:[0-9]{2,5})?/([a-zA-Z0-9-_]{0,61}/)*[a-zA-Z0-9-_.]*?$')";
const DIGEST_NAME_MESSAGE: &str = "the OCI Image name should follow the host[:port][/namespace]/name format, resembling a valid URL without the scheme";

/// CRDs of the two kinds that Strata serves, by plural.
#[must_use]
pub fn own_crds() -> Vec<(&'static str, Value)> {
    let mut os_config = finished(&MachineOSConfig::crd());
    os_config["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["x-kubernetes-validations"] = json!([{
        "rule": "self.metadata.name == self.spec.machineConfigPool.name || (oldSelf.hasValue() && oldSelf.value().spec.machineConfigPool.name == self.spec.machineConfigPool.name)",
        "message": "MachineOSConfig name must match the referenced MachineConfigPool name; can only have one MachineOSConfig per MachineConfigPool",
        "optionalOldSelf": true,
    }]);
    vec![
        ("machineosconfigs", os_config),
        ("machineosbuilds", finished(&MachineOSBuild::crd())),
    ]
}

/// CRDs of other controllers' kinds, by plural, for clusters that have no such controllers.
#[must_use]
pub fn foreign_crds() -> Vec<(&'static str, Value)> {
    vec![
        ("machineconfigpools", finished(&MachineConfigPool::crd())),
        ("machineconfigs", finished(&MachineConfig::crd())),
        ("controllerconfigs", finished(&ControllerConfig::crd())),
    ]
}

/// The generated CRD without what a Rust type brings along: an optional field isn't a nullable one, and
/// a null that a client writes is pruned.
fn finished(crd: &CustomResourceDefinition) -> Value {
    fn walk(value: &mut Value) {
        match value {
            Value::Object(fields) => {
                fields.retain(|key, field| {
                    let brought_along = match key.as_str() {
                        "nullable" => field.is_boolean(),
                        "default" => field.is_null(),
                        _ => false,
                    };
                    !brought_along
                });
                fields.values_mut().for_each(walk);
            }
            Value::Array(items) => items.iter_mut().for_each(walk),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }
    let mut value = json!(crd);
    walk(&mut value);
    value
}

/// The schema of `T` in place of that of `Option<T>`.
pub(super) fn of<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    T::json_schema(generator)
}

pub(super) fn anything(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "object", "x-kubernetes-preserve-unknown-fields": true})
}

pub(super) fn dns_subdomain(_: &mut SchemaGenerator) -> Schema {
    subdomain(None)
}

pub(super) fn dns_subdomain_not_empty(_: &mut SchemaGenerator) -> Schema {
    subdomain(Some(1))
}

fn subdomain(shortest: Option<u32>) -> Schema {
    let mut schema = json_schema!({
        "type": "string",
        "maxLength": 253,
        "x-kubernetes-validations": [{"rule": SUBDOMAIN_RULE, "message": SUBDOMAIN_MESSAGE}],
    });
    if let Some(shortest) = shortest {
        schema.insert("minLength".to_owned(), json!(shortest));
    }
    schema
}

fn reference(shortest: u32) -> Schema {
    json_schema!({
        "type": "object",
        "required": ["name"],
        "properties": {"name": subdomain(Some(shortest))},
    })
}

/// `rendered-` and at least one character.
pub(super) fn rendered_reference(_: &mut SchemaGenerator) -> Schema {
    reference(10)
}

pub(super) fn not_empty_reference(_: &mut SchemaGenerator) -> Schema {
    reference(1)
}

pub(super) fn resource_name(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "string", "minLength": 1, "maxLength": 63,
        "x-kubernetes-validations": [{
            "rule": "!format.dns1035Label().validate(self).hasValue()",
            "message": "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character",
        }],
    })
}

pub(super) fn namespace_name(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "string", "minLength": 1, "maxLength": 63,
        "x-kubernetes-validations": [{
            "rule": "!format.dns1123Label().validate(self).hasValue()",
            "message": "a DNS-1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character",
        }],
    })
}

pub(super) fn tagged_image(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "string", "minLength": 1, "maxLength": 447,
        "x-kubernetes-validations": [{"rule": TAG_RULE, "message": TAG_MESSAGE}],
    })
}

pub(super) fn digested_image(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "string", "minLength": 1, "maxLength": 447,
        "x-kubernetes-validations": [
            {"rule": DIGEST_RULE, "message": DIGEST_MESSAGE},
            {"rule": DIGEST_NAME_RULE, "message": DIGEST_NAME_MESSAGE},
        ],
    })
}

pub(super) fn builder_type(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "enum": ["Job"]})
}

pub(super) fn architecture(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "string",
        "enum": ["ARM64", "AMD64", "PPC64LE", "S390X", "NoArch"],
        "default": "NoArch",
    })
}

pub(super) fn containerfiles(generator: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array", "minItems": 0, "maxItems": 4,
        "items": OsContainerfile::json_schema(generator),
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["containerfileArch"],
    })
}

pub(super) fn observed_generation(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "integer", "format": "int64", "minimum": 0,
        "x-kubernetes-validations": [
            {"rule": "self >= oldSelf", "message": "observedGeneration must not move backwards"},
        ],
    })
}

fn immutable_time(field: &str) -> Schema {
    json_schema!({
        "type": "string", "format": "date-time",
        "x-kubernetes-validations": [
            {"rule": "self == oldSelf", "message": format!("{field} is immutable once set")},
        ],
    })
}

pub(super) fn build_start(_: &mut SchemaGenerator) -> Schema {
    immutable_time("buildStart")
}

pub(super) fn build_end(_: &mut SchemaGenerator) -> Schema {
    immutable_time("buildEnd")
}

pub(super) fn related_objects(generator: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array", "maxItems": 10,
        "items": ObjectReference::json_schema(generator),
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["name", "resource"],
    })
}

/// `metav1.Condition` with the limits that its Rust type leaves out.
fn conditions() -> Schema {
    json_schema!({
        "type": "array",
        "items": {
            "type": "object",
            "required": ["lastTransitionTime", "message", "reason", "status", "type"],
            "properties": {
                "lastTransitionTime": {"type": "string", "format": "date-time"},
                "message": {"type": "string", "maxLength": 32768},
                "observedGeneration": {"type": "integer", "format": "int64", "minimum": 0},
                "reason": {
                    "type": "string", "minLength": 1, "maxLength": 1024,
                    "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$",
                },
                "status": {"type": "string", "enum": ["True", "False", "Unknown"]},
                "type": {
                    "type": "string", "maxLength": 316,
                    "pattern": r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])$",
                },
            },
        },
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"],
    })
}

pub(super) fn config_conditions(_: &mut SchemaGenerator) -> Schema {
    conditions()
}

pub(super) fn build_conditions(_: &mut SchemaGenerator) -> Schema {
    let mut schema = conditions();
    schema.insert("maxItems".to_owned(), json!(8));
    let rule = |type_: &str, article: &str| {
        json!({
            "rule": format!("!oldSelf.exists(x, x.type == '{type_}' && x.status == 'True') || self == oldSelf"),
            "message": format!("once {article} {type_} condition is set, conditions are immutable"),
        })
    };
    schema.insert(
        "x-kubernetes-validations".to_owned(),
        json!([
            rule("Failed", "a"),
            rule("Interrupted", "an"),
            rule("Succeeded", "an")
        ]),
    );
    schema
}

pub(super) fn pool_conditions(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "items": {
            "type": "object",
            "properties": {
                "type": {"type": "string"},
                "status": {"type": "string"},
                "lastTransitionTime": {"type": "string", "format": "date-time"},
                "reason": {"type": "string"},
                "message": {"type": "string"},
            },
        },
    })
}

/// File name and text of each CRD.
///
/// # Errors
///
/// If a CRD can't be written as YAML, which would be a bug.
pub fn crd_files(
    crds: Vec<(&'static str, Value)>,
) -> Result<Vec<(String, String)>, serde_yaml_ng::Error> {
    crds.into_iter()
        .map(|(plural, crd)| {
            let text = serde_yaml_ng::to_string(&crd)?;
            Ok((
                format!("{plural}.yaml"),
                format!("# Generated by `cargo crds`; don't edit.\n{text}"),
            ))
        })
        .collect()
}
