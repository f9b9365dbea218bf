use serde_json::json;

use super::*;
use crate::api::foreign::RegistryBundle;
use crate::api::machine_os_config::ContainerfileArch;
use crate::fixtures;
use crate::inputs::OptionalMounts;
use crate::render::render;

fn settings() -> JobSettings {
    JobSettings {
        namespace: "builds".to_owned(),
        builder_image: "registry.example.com/strata/builder:1".to_owned(),
        plain_http: vec!["10.0.0.1:5000".to_owned()],
        deadline: Duration::from_secs(3600),
        ..fixtures::job_settings()
    }
}

fn os_build(inputs: &BuildInputs) -> MachineOSBuild {
    serde_json::from_value(json!({
        "apiVersion": "machineconfiguration.openshift.io/v1",
        "kind": "MachineOSBuild",
        "metadata": {"name": inputs.name.as_str(), "uid": "build-uid"},
        "spec": {
            "machineConfig": {"name": "rendered-worker-0"},
            "machineOSConfig": {"name": "worker"},
            "renderedImagePushSpec": inputs.push.to_string(),
        },
    }))
    .unwrap()
}

fn credentials() -> Credentials {
    let secret = serde_json::from_value(json!({
        "metadata": {"name": "push"},
        "type": JSON_TYPE,
        "data": {JSON_KEY: BASE64_STANDARD.encode(r#"{"auths":{}}"#)},
    }))
    .unwrap();
    let docker_config = crate::secrets::docker_config(&secret).unwrap();
    Credentials {
        pull: docker_config.clone(),
        push: docker_config,
    }
}

fn objects(
    inputs: &BuildInputs,
    shape: PodShape,
    settings: &JobSettings,
) -> Result<BuildObjects, JobError> {
    let rendered = render(inputs).unwrap();
    build_objects(
        &os_build(inputs),
        inputs,
        &rendered,
        &credentials(),
        shape,
        settings,
    )
}

fn golden(name: &str, text: &str) {
    let path = format!("{}/tests/golden/{name}", env!("CARGO_MANIFEST_DIR"));
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    assert_eq!(text, std::fs::read_to_string(&path).unwrap(), "{path}");
}

#[test]
fn a_plain_build_is_these_objects() {
    let BuildObjects {
        mut config_maps,
        secrets,
        job,
    } = objects(&fixtures::inputs(), PodShape::Userns, &settings()).unwrap();
    golden("job.yaml", &serde_yaml_ng::to_string(&job).unwrap());
    // The text has a golden file of its own, and packing is tested by unpacking.
    for config_map in &mut config_maps {
        for value in config_map.data.iter_mut().flat_map(BTreeMap::values_mut) {
            *value = format!("({} lines)", value.lines().count());
        }
    }
    golden(
        "config-maps.yaml",
        &serde_yaml_ng::to_string(&config_maps).unwrap(),
    );
    golden("secrets.yaml", &serde_yaml_ng::to_string(&secrets).unwrap());
}

#[test]
fn everything_that_can_be_asked_for_is_in_the_job() {
    let mut inputs = fixtures::inputs();
    inputs.extensions_image = Some("quay.io/org/extensions:v1".parse().unwrap());
    inputs.containerfile = Some(fixtures::containerfile(ContainerfileArch::Amd64));
    inputs.trust_bundle = Some(BASE64_STANDARD.encode("PEM"));
    inputs.etc_containers = ["policy.json", "registries.conf", "registries.conf.d/a.conf"]
        .map(|path| (path.to_owned(), path.as_bytes().to_vec()))
        .into();
    inputs.registry_bundles.user = vec![RegistryBundle {
        file: "registry.example.com..5000".to_owned(),
        data: BASE64_STANDARD.encode([0xff, 0]),
    }];
    inputs.optional = OptionalMounts {
        entitlement: true,
        yum_repos: true,
        rpm_gpg: true,
    };
    inputs.proxy.https_proxy = Some("http://proxy:3128".to_owned());
    inputs.proxy.no_proxy = Some(".cluster.local".to_owned());
    inputs.machine_config.metadata.creation_timestamp =
        serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap();
    let mut settings = settings();
    settings.priority_class = Some("system-cluster-critical".to_owned());
    settings.tolerations = vec![Toleration {
        operator: Some("Exists".to_owned()),
        ..Toleration::default()
    }];
    settings.scratch = Scratch {
        size: Some("40Gi".to_owned()),
        class: Some("fast".to_owned()),
    };
    settings.node_selector = BTreeMap::from([("disk".to_owned(), "fast".to_owned())]);
    settings.proxy.no_proxy = Some(".example.com".to_owned());
    settings.cluster = Some("cluster-uid".to_owned());
    settings.retries = 0;
    settings.layers = "step".to_owned();
    settings.compression = "zstd:7".to_owned();
    let BuildObjects {
        config_maps, job, ..
    } = objects(&inputs, PodShape::Userns, &settings).unwrap();
    golden("job-full.yaml", &serde_yaml_ng::to_string(&job).unwrap());
    let of_pulling: Vec<_> = config_maps
        .iter()
        .filter(|one| one.name_any().starts_with("etc-"))
        .collect();
    golden(
        "etc-containers.yaml",
        &serde_yaml_ng::to_string(&of_pulling).unwrap(),
    );
}

#[test]
fn what_no_job_can_be_made_of_is_named() {
    let mut inputs = fixtures::inputs();
    inputs.trust_bundle = Some("~".to_owned());
    assert_eq!(
        objects(&inputs, PodShape::Userns, &settings())
            .unwrap_err()
            .to_string(),
        "ControllerConfig machine-config-controller, spec.additionalTrustBundle is no base64"
    );
    let mut inputs = fixtures::inputs();
    inputs.registry_bundles.cluster = vec![RegistryBundle {
        file: "registry.example.com".to_owned(),
        data: "~".to_owned(),
    }];
    assert_eq!(
        objects(&inputs, PodShape::Userns, &settings())
            .unwrap_err()
            .to_string(),
        "ControllerConfig machine-config-controller, spec.imageRegistryBundleData: \"registry.example.com\" is no base64"
    );
}

#[test]
fn each_shape_has_a_pod_of_its_own() {
    let mut inputs = fixtures::inputs();
    inputs.extensions_image = Some("quay.io/org/extensions:v1".parse().unwrap());
    let job = objects(&inputs, PodShape::Rootless, &settings())
        .unwrap()
        .job;
    golden(
        "job-rootless.yaml",
        &serde_yaml_ng::to_string(&job).unwrap(),
    );
    // all that depends on the shape, but for the builder's arguments
    let pods: Vec<_> = PodShape::ALL.map(|shape| trial(shape, &settings())).into();
    golden("trials.yaml", &serde_yaml_ng::to_string(&pods).unwrap());
}

#[test]
fn a_trial_pod_asks_for_all_that_the_pod_of_a_build_asks_for() {
    let mut settings = settings();
    settings.priority_class = Some("low".to_owned());
    for shape in PodShape::ALL {
        let job = objects(&fixtures::inputs(), shape, &settings).unwrap().job;
        let mut pod = job.spec.unwrap().template.spec.unwrap();
        let mut trial = trial(shape, &settings).spec.unwrap();
        // what a build brings along
        pod.image_pull_secrets = None;
        pod.node_selector = None;
        pod.containers[0].args = None;
        let is_of_build = |volume: &k8s_openapi::api::core::v1::Volume| {
            volume.config_map.is_some() || volume.secret.is_some() || volume.projected.is_some()
        };
        pod.volumes
            .as_mut()
            .unwrap()
            .retain(|one| !is_of_build(one));
        for spec in [&mut pod, &mut trial] {
            let volumes = spec.volumes.as_mut().unwrap();
            volumes.sort_by(|a, b| a.name.cmp(&b.name));
            for image in volumes.iter_mut().filter_map(|one| one.image.as_mut()) {
                image.reference = None;
            }
            let known: Vec<_> = volumes.iter().map(|volume| volume.name.clone()).collect();
            let mounts = spec.containers[0].volume_mounts.as_mut().unwrap();
            mounts.retain(|mount| known.contains(&mount.name));
            mounts.sort_by(|a, b| a.name.cmp(&b.name));
        }
        assert_eq!(trial, pod, "{}", shape.name());
    }
}
