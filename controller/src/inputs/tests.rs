use super::*;
use crate::api::NameReference;
use crate::fixtures;

fn vectors() -> Vec<Value> {
    let text = include_str!("../../tests/data/build-name-vectors.json");
    let mut file: Value = serde_json::from_str(text).unwrap();
    match file["vectors"].take() {
        Value::Array(vectors) => vectors,
        other => panic!("no list of vectors: {other}"),
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}

/// Pool, MachineConfig and MachineOSConfig as the vector's maker had them.
fn objects(vector: &Value) -> (MachineConfigPool, MachineConfig, MachineOSConfig) {
    let spec = &vector["moscSpec"];
    let images = &vector["osImageURLConfig"];
    let mut os_config = fixtures::os_config();
    os_config.metadata.name = Some(text(&vector["moscName"]));
    os_config.spec = serde_json::from_value(spec.clone()).unwrap();
    let mut pool = fixtures::pool();
    pool.metadata.name = Some(text(&spec["machineConfigPool"]["name"]));
    pool.spec.configuration = serde_json::from_value(vector["configuration"].clone()).unwrap();
    let mut machine_config = fixtures::machine_config();
    machine_config.spec.os_image_url = Some(text(&images["BaseOSContainerImage"]));
    machine_config.spec.extensions_image = Some(text(&images["BaseOSExtensionsContainerImage"]));
    machine_config.annotations_mut().insert(
        annotation::RELEASE_IMAGE_VERSION.to_owned(),
        text(&images["ReleaseVersion"]),
    );
    (pool, machine_config, os_config)
}

#[test]
fn every_build_has_the_name_that_the_incumbent_gives_it() {
    let vectors = vectors();
    assert_eq!(vectors.len(), 30);
    for vector in &vectors {
        let (pool, machine_config, os_config) = objects(vector);
        let name = build_name(&pool, &machine_config, &os_config);
        match vector.get("machineOSBuildName") {
            Some(wanted) => assert_eq!(
                name.as_ref().map(BuildName::as_str).ok(),
                wanted.as_str(),
                "{}",
                vector["name"]
            ),
            None => assert!(
                matches!(name, Err(InputError::Yaml { .. })),
                "{}: {name:?}",
                vector["name"]
            ),
        }
    }
}

#[test]
fn the_hashed_text_is_the_incumbents() {
    for vector in vectors().iter().filter(|v| v.get("error").is_none()) {
        let (pool, _, os_config) = objects(vector);
        let documents = [
            configuration_document(pool.spec.configuration.as_ref()),
            spec_document(&os_config),
            vector["osImageURLConfig"].clone(),
        ];
        for (document, wanted) in documents
            .iter()
            .zip(vector["preimageYaml"].as_array().unwrap())
        {
            assert_eq!(
                to_yaml(document).unwrap(),
                text(wanted),
                "{}",
                vector["name"]
            );
        }
    }
}

#[test]
fn what_cannot_be_built_from_is_named_with_object_and_field() {
    type Change = fn(&mut MachineConfigPool, &mut MachineConfig, &mut MachineOSConfig);
    let cases: [(Change, &str); 16] = [
        (
            |pool, _, _| pool.metadata.name = Some("other".to_owned()),
            "MachineOSConfig worker names the pool worker in spec.machineConfigPool.name, not other",
        ),
        (
            |_, mc, _| mc.metadata.name = Some("00-worker".to_owned()),
            "MachineConfig 00-worker is no rendered one: its name must start with \"rendered-\"",
        ),
        (
            |_, mc, _| mc.annotations_mut().clear(),
            "MachineConfig rendered-worker-0 has no annotation machineconfiguration.openshift.io/release-image-version",
        ),
        (
            |_, mc, _| {
                mc.annotations_mut()
                    .insert(annotation::GENERATED_BY_VERSION.to_owned(), String::new());
            },
            "MachineConfig rendered-worker-0 has no annotation machineconfiguration.openshift.io/generated-by-controller-version",
        ),
        (
            |_, mc, _| mc.spec.os_image_url = None,
            "MachineConfig rendered-worker-0 has no spec.osImageURL",
        ),
        (
            |_, mc, _| mc.spec.os_image_url = Some("quay.io/org/os:v1".to_owned()),
            "MachineConfig rendered-worker-0, spec.osImageURL is quay.io/org/os:v1, which has no digest: name the image as REPOSITORY@sha256:…, since what a tag names may change during a build",
        ),
        (
            |_, _, config| {
                let file = fixtures::containerfile(ContainerfileArch::S390x);
                config.spec.container_file = Some(vec![file]);
            },
            "MachineOSConfig worker has Containerfiles for S390X only in spec.containerFile, but builds are for AMD64 here: add one for AMD64 or for NoArch",
        ),
        (
            |_, _, config| {
                let arch = ContainerfileArch::Other("RISCV64".to_owned());
                config.spec.container_file = Some(vec![fixtures::containerfile(arch)]);
            },
            "MachineOSConfig worker has Containerfiles for RISCV64 only in spec.containerFile, but builds are for AMD64 here: add one for AMD64 or for NoArch",
        ),
        (
            |_, _, config| {
                config.spec.image_builder.image_builder_type =
                    ImageBuilderType::Other("PodImageBuilder".to_owned());
            },
            "MachineOSConfig worker has \"PodImageBuilder\" in spec.imageBuilder.imageBuilderType: write Job, the only kind of builder that there is",
        ),
        (
            |_, _, config| config.spec.machine_config_pool.name.clear(),
            "MachineOSConfig worker has no spec.machineConfigPool.name",
        ),
        (
            |_, _, config| config.spec.rendered_image_push_secret.name.clear(),
            "MachineOSConfig worker has no spec.renderedImagePushSecret.name",
        ),
        (
            |_, _, config| config.spec.base_image_pull_secret = Some(NameReference::default()),
            "MachineOSConfig worker has no spec.baseImagePullSecret.name",
        ),
        (
            |_, _, config| config.spec.rendered_image_push_spec.clear(),
            "MachineOSConfig worker has no spec.renderedImagePushSpec",
        ),
        (
            |_, _, config| config.spec.rendered_image_push_spec = "quay.io/Org/Repo:x".to_owned(),
            "MachineOSConfig worker, spec.renderedImagePushSpec",
        ),
        (
            |pool, _, config| {
                let long = "w".repeat(25);
                pool.metadata.name = Some(long.clone());
                config.metadata.name = Some(long.clone());
                config.spec.machine_config_pool.name = long;
            },
            "the name of MachineOSConfig wwwwwwwwwwwwwwwwwwwwwwwww has 25 characters; at most 24 leave room for what is added to it",
        ),
        (
            |_, _, config| {
                config.spec.container_file = Some(vec![
                    fixtures::containerfile(ContainerfileArch::Arm64),
                    fixtures::containerfile(ContainerfileArch::S390x),
                ]);
            },
            "MachineOSConfig worker has Containerfiles for ARM64, S390X only in spec.containerFile, but builds are for AMD64 here: add one for AMD64 or for NoArch",
        ),
    ];
    for (change, wanted) in cases {
        let (mut pool, mut machine_config, mut os_config) = (
            fixtures::pool(),
            fixtures::machine_config(),
            fixtures::os_config(),
        );
        change(&mut pool, &mut machine_config, &mut os_config);
        let error = BuildInputs::new(Sources {
            pool: &pool,
            machine_config: &machine_config,
            os_config: &os_config,
            controller_config: None,
            optional: OptionalMounts::default(),
        })
        .unwrap_err();
        assert_eq!(error.to_string(), wanted);
        assert_eq!(error.class(), Class::CONTENT);
    }
}

#[test]
fn of_several_containerfiles_the_one_for_all_architectures_is_built_else_the_one_for_ours() {
    use ContainerfileArch::{Arm64, NoArch, S390x};
    const OURS: ContainerfileArch = ContainerfileArch::OURS;
    for (archs, chosen) in [
        (vec![], None),
        (vec![OURS, S390x], Some(OURS)),
        (vec![Arm64, S390x, OURS], Some(OURS)),
        (vec![OURS, S390x, NoArch], Some(NoArch)),
        (vec![S390x, NoArch], Some(NoArch)),
    ] {
        let mut os_config = fixtures::os_config();
        let files = archs.iter().cloned().map(fixtures::containerfile);
        os_config.spec.container_file = Some(files.collect());
        let inputs = BuildInputs::new(Sources {
            pool: &fixtures::pool(),
            machine_config: &fixtures::machine_config(),
            os_config: &os_config,
            controller_config: None,
            optional: OptionalMounts::default(),
        })
        .unwrap();
        let found = inputs.containerfile.map(|file| file.containerfile_arch);
        assert_eq!(found, chosen, "{archs:?}");
    }
}

#[test]
fn the_image_is_pushed_under_the_builds_name() {
    let inputs = fixtures::inputs();
    assert_eq!(
        inputs.push.to_string(),
        format!("registry.example.com/org/repo:{}", inputs.name)
    );
}

#[test]
fn the_content_key_changes_with_what_makes_another_image_and_with_nothing_else() {
    type Change = fn(&mut BuildInputs);
    let inputs = fixtures::inputs();
    let key = inputs.content_key();
    // An accidental change would rebuild every image there is.
    assert_eq!(
        key.as_str(),
        "v2:2ad208aaf2d3890671cbca6df8001c6793b59651c28f3ed2e18a36c3ce80a71d"
    );
    let spec = |inputs: &mut BuildInputs, change: Value| {
        let mut spec = serde_json::to_value(&inputs.machine_config.spec).unwrap();
        let fields = spec.as_object_mut().unwrap();
        fields.extend(change.as_object().unwrap().clone());
        inputs.machine_config.spec = serde_json::from_value(spec).unwrap();
    };
    let file = |content: &str, containerfile_arch| {
        Some(OsContainerfile {
            containerfile_arch,
            content: content.to_owned(),
        })
    };
    let changed = |change: &dyn Fn(&mut BuildInputs)| {
        let mut changed = inputs.clone();
        change(&mut changed);
        changed.content_key()
    };
    let entering: [Change; 9] = [
        |inputs| inputs.trust_bundle = Some("Zm9v".to_owned()),
        |inputs| inputs.optional.entitlement = true,
        |inputs| inputs.optional.yum_repos = true,
        |inputs| inputs.optional.rpm_gpg = true,
        |inputs| inputs.base_image = "quay.io/a/b:c".parse().unwrap(),
        |inputs| inputs.extensions_image = Some("quay.io/a/b:c".parse().unwrap()),
        |inputs| inputs.push = "quay.io/a/b:c".parse().unwrap(),
        |inputs| inputs.pool = "infra".to_owned(),
        |inputs| inputs.containerfile = Some(fixtures::containerfile(ContainerfileArch::NoArch)),
    ];
    let mut keys: Vec<_> = entering.iter().map(|change| changed(change)).collect();
    keys.push(changed(&|one| spec(one, json!({"kernelType": "realtime"}))));
    keys.push(changed(&|one| {
        spec(one, json!({"extensions": ["usbguard"]}))
    }));
    keys.push(changed(&|one| {
        one.containerfile = file("", ContainerfileArch::Arm64);
    }));
    keys.push(key.clone());
    let different: std::collections::HashSet<_> = keys.iter().collect();
    assert_eq!(different.len(), keys.len(), "{keys:?}");

    let outside: [Change; 5] = [
        |inputs| inputs.push_secret = "other".to_owned(),
        |inputs| inputs.pull_secret = Some("other".to_owned()),
        |inputs| inputs.push = inputs.push.repository.tagged("other"),
        |inputs| inputs.machine_config.metadata.name = Some("rendered-worker-1".to_owned()),
        |inputs| inputs.proxy.http_proxy = Some("http://p".to_owned()),
    ];
    for change in outside {
        assert_eq!(changed(&change), key);
    }
    for same in [
        json!({"kernelType": ""}),
        json!({"kernelType": "default"}),
        json!({"kernelType": null}),
        json!({"extensions": null}),
        json!({"extensions": []}),
        json!({"kernelArguments": ["quiet"]}),
        json!({"fips": true}),
        json!({"config": {"ignition": {"version": "3.5.0"}, "passwd": {}}}),
    ] {
        assert_eq!(changed(&|one| spec(one, same.clone())), key, "{same}");
    }
    let twice = |list: Value| changed(&|one| spec(one, json!({"extensions": list})));
    assert_eq!(
        twice(json!(["usbguard", "sysstat"])),
        twice(json!(["sysstat", "usbguard", "sysstat"]))
    );
    for arch in [ContainerfileArch::NoArch, ContainerfileArch::OURS] {
        assert_eq!(
            changed(&|one| one.containerfile = file("", arch.clone())),
            key
        );
    }
}

#[test]
fn a_key_over_another_layout_is_none() {
    let key = fixtures::inputs().content_key();
    assert_eq!(ContentKey::of_annotation(key.as_str()), Some(key));
    for other in ["", "v1:00", "junk"] {
        assert_eq!(ContentKey::of_annotation(other), None);
    }
}
