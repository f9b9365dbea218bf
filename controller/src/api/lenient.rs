//! What do our types make of what isn't there?
//!
//! Objects are older than the CRD that is installed, or newer than this program: a field may be absent that is required, be null, or hold a word that we
//! don't know. None of that may keep the object from being read, since one that isn't stops whatever depends on it. So
//! what has a sensible default gets it, an unknown word is kept, and [`inputs`](crate::inputs) refuses with the field's name what can't be built from. The
//! CRDs say what they would say without that.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use serde::{Deserialize, Deserializer};

/// The value of a field; that of one that is null is its type's default.
pub(super) fn null_as_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// Conditions, also such without a time: it is taken to be long ago.
pub(crate) fn conditions<'de, D>(deserializer: D) -> Result<Option<Vec<Condition>>, D::Error>
where
    D: Deserializer<'de>,
{
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Found {
        last_transition_time: Option<Time>,
        message: Option<String>,
        observed_generation: Option<i64>,
        reason: Option<String>,
        status: Option<String>,
        #[serde(rename = "type")]
        type_: Option<String>,
    }
    let found: Option<Vec<Found>> = Option::deserialize(deserializer)?;
    let whole = |found: Found| Condition {
        last_transition_time: found
            .last_transition_time
            .unwrap_or(Time(Timestamp::UNIX_EPOCH)),
        message: found.message.unwrap_or_default(),
        observed_generation: found.observed_generation,
        reason: found.reason.unwrap_or_default(),
        status: found.status.unwrap_or_default(),
        type_: found.type_.unwrap_or_default(),
    };
    Ok(found.map(|found| found.into_iter().map(whole).collect()))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::api::machine_os_config::{ContainerfileArch, ImageBuilderType};
    use crate::api::{MachineConfigPool, MachineOSBuild, MachineOSConfig};

    fn os_config(spec: Value, status: Value) -> MachineOSConfig {
        serde_json::from_value(json!({
            "apiVersion": "machineconfiguration.openshift.io/v1",
            "kind": "MachineOSConfig",
            "metadata": {"name": "worker"},
            "spec": spec,
            "status": status,
        }))
        .unwrap()
    }

    #[test]
    fn a_config_of_another_crd_is_read_and_keeps_its_words() {
        let empty = os_config(json!({}), json!(null));
        let nulls = os_config(
            json!({
                "machineConfigPool": null,
                "imageBuilder": {"imageBuilderType": null},
                "baseImagePullSecret": null,
                "renderedImagePushSecret": {"name": null},
                "renderedImagePushSpec": null,
                "containerFile": null,
            }),
            json!({"conditions": null, "machineOSBuild": {"name": null}}),
        );
        for read in [&empty, &nulls] {
            let spec = &read.spec;
            assert_eq!(spec.machine_config_pool.name, "");
            assert_eq!(spec.image_builder.image_builder_type, ImageBuilderType::Job);
            assert_eq!(spec.rendered_image_push_secret.name, "");
            assert_eq!(spec.rendered_image_push_spec, "");
            assert_eq!(spec.container_file, None);
        }
        let words = json!({
            "machineConfigPool": {"name": "worker"},
            "imageBuilder": {"imageBuilderType": "PodImageBuilder"},
            "renderedImagePushSecret": {"name": "push"},
            "renderedImagePushSpec": "registry.example.com/org/repo:latest",
            "containerFile": [
                {"containerfileArch": "RISCV64", "content": "FROM configs"},
                {"containerfileArch": "AMD64", "content": ""},
                {"containerfileArch": "NoArch", "content": ""},
            ],
        });
        let read = os_config(words.clone(), json!({}));
        assert_eq!(serde_json::to_value(&read.spec).unwrap(), words);
        let files = read.spec.container_file.unwrap();
        assert_eq!(
            files[0].containerfile_arch,
            ContainerfileArch::Other("RISCV64".to_owned())
        );
        assert_eq!(files[1].containerfile_arch, ContainerfileArch::Amd64);
        let bare = os_config(
            json!({"containerFile": [{"containerfileArch": null, "content": null}]}),
            json!({}),
        );
        let files = bare.spec.container_file.unwrap();
        assert_eq!(files[0].containerfile_arch, ContainerfileArch::NoArch);
        assert_eq!(files[0].content, "");
    }

    #[test]
    fn builds_and_pools_with_nulls_are_read() {
        let os_build: MachineOSBuild = serde_json::from_value(json!({
            "apiVersion": "machineconfiguration.openshift.io/v1",
            "kind": "MachineOSBuild",
            "metadata": {"name": "worker-0"},
            "spec": {"machineConfig": null, "machineOSConfig": {}},
            "status": {
                "builder": {"imageBuilderType": null, "job": {"group": null}},
                "relatedObjects": [{"name": "a"}],
                "conditions": [{"type": "Succeeded", "status": "True", "lastTransitionTime": null}],
            },
        }))
        .unwrap();
        assert_eq!(os_build.spec.machine_os_config.name, "");
        assert!(crate::phase::Phase::of_build(&os_build).is_terminal());
        let pool: MachineConfigPool = serde_json::from_value(json!({
            "apiVersion": "machineconfiguration.openshift.io/v1",
            "kind": "MachineConfigPool",
            "metadata": {"name": "worker"},
            "spec": {"configuration": null},
            "status": {"conditions": [{"type": null, "status": null, "reason": null}, {}]},
        }))
        .unwrap();
        let conditions = pool.status.unwrap().conditions.unwrap();
        assert!(conditions.iter().all(|one| one.status.is_empty()));
    }
}
