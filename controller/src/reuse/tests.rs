use serde_json::json;

use super::*;
use crate::api::MachineConfigPool;
use crate::fixtures;
use crate::inputs::OptionalMounts;
use crate::os_config::{new_build, seeded_build};

const HEX: &str = "220a60ecd4a3c32c282622a625a54db9ba0ff55b5ba9c29c7064a2bc358b6a3e";

fn image(n: u8) -> String {
    format!("registry.example.com/org/repo@sha256:{n:02x}{}", &HEX[2..])
}

/// Pool `worker` that wants the MachineConfig number `n`, made from these MachineConfigs.
fn pool(n: u32, sources: &[&str]) -> MachineConfigPool {
    let source: Vec<_> = sources.iter().map(|name| json!({"name": name})).collect();
    let mut pool = fixtures::pool();
    pool.spec.configuration =
        serde_json::from_value(json!({"name": format!("rendered-worker-{n}"), "source": source}))
            .unwrap();
    pool
}

fn machine_config(name: &str) -> MachineConfig {
    let mut machine_config = fixtures::machine_config();
    machine_config.metadata.name = Some(name.to_owned());
    machine_config
}

fn sources<'a>(
    pool: &'a MachineConfigPool,
    machine_config: &'a MachineConfig,
    os_config: &'a MachineOSConfig,
) -> Sources<'a> {
    Sources {
        pool,
        machine_config,
        os_config,
        controller_config: None,
        optional: OptionalMounts::default(),
    }
}

/// The build that the incumbent made of these, with an image.
fn made_of(
    pool: &MachineConfigPool,
    machine_config: &MachineConfig,
    os_config: &MachineOSConfig,
    n: u8,
) -> MachineOSBuild {
    let inputs = BuildInputs::new(sources(pool, machine_config, os_config)).unwrap();
    let mut os_build = new_build(&inputs, os_config);
    os_build.metadata.uid = Some(format!("build-{n}"));
    os_build.status = fixtures::os_build_with_image(&image(n)).status;
    os_build
}

fn recorded(mut os_build: MachineOSBuild, key: &str) -> MachineOSBuild {
    let annotations = os_build.annotations_mut();
    annotations.insert(annotation::CONTENT_KEY.to_owned(), key.to_owned());
    os_build
}

/// The builds whose images pool `worker`, moved to MachineConfig 1, may use.
fn found(
    pool: &MachineConfigPool,
    os_config: &MachineOSConfig,
    os_builds: &[MachineOSBuild],
    find: impl Fn(&str) -> Option<MachineConfig>,
) -> Vec<String> {
    let machine_config = machine_config("rendered-worker-1");
    let sources = sources(pool, &machine_config, os_config);
    let key = BuildInputs::new(sources).unwrap().content_key();
    candidates(sources, &key, os_builds, |name| find(name).map(Arc::new))
        .into_iter()
        .map(|candidate| candidate.image.to_string())
        .collect()
}

#[test]
fn only_what_its_config_has_built_of_the_same_content_is_used_again() {
    let os_config = fixtures::os_config();
    let (before, after) = (pool(0, &[]), pool(1, &[]));
    let key = BuildInputs::new(sources(
        &after,
        &machine_config("rendered-worker-1"),
        &os_config,
    ))
    .unwrap()
    .content_key();
    let good = || {
        let built = made_of(&before, &machine_config("rendered-worker-0"), &os_config, 1);
        recorded(built, key.as_str())
    };
    type Change = fn(&mut MachineOSBuild);
    let rows: [(Change, bool); 7] = [
        (|_| {}, true),
        (
            |one| {
                one.annotations_mut()
                    .insert(annotation::CONTENT_KEY.to_owned(), "v2:00".to_owned());
            },
            false,
        ),
        (|one| one.metadata.owner_references = None, false),
        (
            |one| {
                one.metadata.deletion_timestamp = Some(
                    k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(fixtures::now()),
                );
            },
            false,
        ),
        (|one| one.status = None, false),
        (
            |one| one.status.get_or_insert_default().digested_image_push_spec = None,
            false,
        ),
        (
            |one| {
                one.status.get_or_insert_default().digested_image_push_spec =
                    Some("registry.example.com/org/repo:tag".to_owned());
            },
            false,
        ),
    ];
    for (change, is_used) in rows {
        let mut os_build = good();
        change(&mut os_build);
        let found = found(&after, &os_config, &[os_build.clone()], |_| None);
        assert_eq!(!found.is_empty(), is_used, "{os_build:#?}");
    }
}

#[test]
fn the_image_that_the_status_names_comes_first_then_the_newest_and_each_once() {
    let mut os_config = fixtures::os_config();
    let before = pool(0, &[]);
    let machine_config = machine_config("rendered-worker-0");
    let build = |n, seconds: i64, os_config: &MachineOSConfig| {
        let mut os_build = made_of(&before, &machine_config, os_config, n);
        let created = fixtures::now() + jiff::SignedDuration::from_secs(seconds);
        os_build.metadata.creation_timestamp = Some(
            k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(created),
        );
        os_build
    };
    let builds = [
        build(1, 1, &os_config),
        build(2, 3, &os_config),
        build(3, 2, &os_config),
        build(2, 0, &os_config),
    ];
    let find = |_: &str| Some(machine_config.clone());
    let after = pool(1, &[]);
    assert_eq!(
        found(&after, &os_config, &builds, find),
        [image(2), image(3), image(1)]
    );
    os_config
        .status
        .get_or_insert_default()
        .current_image_pull_spec = Some(image(1));
    assert_eq!(
        found(&after, &os_config, &builds, find),
        [image(1), image(2), image(3)]
    );
}

#[test]
fn a_build_without_a_key_counts_if_todays_spec_and_its_machine_config_give_its_name() {
    let mut os_config = fixtures::os_config();
    os_config.spec.container_file = Some(vec![fixtures::containerfile(
        crate::api::machine_os_config::ContainerfileArch::NoArch,
    )]);
    let old = machine_config("rendered-worker-0");
    let find = |name: &str| (name == "rendered-worker-0").then(|| old.clone());
    let other_sources = pool(0, &["00-worker", "99-ssh"]);
    let same_sources = pool(0, &["00-worker"]);
    let mut after = pool(1, &["00-worker"]);
    let built = |pool: &MachineConfigPool| made_of(pool, &old, &os_config, 1);

    assert_eq!(
        found(&after, &os_config, &[built(&same_sources)], find),
        [image(1)],
        "the same sources as today"
    );
    assert_eq!(
        found(&after, &os_config, &[built(&pool(0, &[]))], find),
        [image(1)],
        "sources that weren't told"
    );
    let of_another_layout = recorded(built(&same_sources), "v1:00");
    assert_eq!(
        found(&after, &os_config, &[of_another_layout], find),
        [image(1)]
    );
    // other sources, and nobody knows which
    let moved = built(&other_sources);
    assert!(found(&after, &os_config, std::slice::from_ref(&moved), find).is_empty());
    let status = after.status.get_or_insert_default();
    status.configuration = other_sources.spec.configuration.clone();
    assert_eq!(
        found(&after, &os_config, std::slice::from_ref(&moved), find),
        [image(1)],
        "the nodes still have that configuration"
    );
    // its MachineConfig is gone
    assert!(found(&after, &os_config, std::slice::from_ref(&moved), |_| None).is_empty());
    // its MachineConfig had another base image
    let mut other_base = old.clone();
    other_base.spec.os_image_url = Some(format!("registry.example.com/base/os@sha256:{HEX}"))
        .map(|image| image.replace("base/os", "base/older"));
    let older = made_of(&same_sources, &other_base, &os_config, 1);
    assert!(found(&after, &os_config, &[older], |_| Some(other_base.clone())).is_empty());
    // the Containerfile has changed since: its name comes out differently
    let built_before_the_edit = built(&same_sources);
    os_config.spec.container_file = None;
    assert!(found(&after, &os_config, &[built_before_the_edit], find).is_empty());
}

#[test]
fn a_seeded_image_is_used_again_and_stays_somebody_elses() {
    let os_config = fixtures::os_config();
    let before = pool(0, &[]);
    let old = machine_config("rendered-worker-0");
    let inputs = BuildInputs::new(sources(&before, &old, &os_config)).unwrap();
    let mut seeded = seeded_build(&inputs, &os_config, &image(1));
    seeded.status = fixtures::os_build_with_image(&image(1)).status;
    let after = pool(1, &[]);
    let machine_config = machine_config("rendered-worker-1");
    let sources = sources(&after, &machine_config, &os_config);
    let key = BuildInputs::new(sources).unwrap().content_key();
    let found = candidates(sources, &key, &[seeded], |_| Some(Arc::new(old.clone())));
    assert!(found.len() == 1 && found[0].is_pre_built);
}

#[test]
fn an_image_is_given_if_its_build_its_config_or_a_build_that_stands_for_it_says_so() {
    let old = machine_config("rendered-worker-0");
    let os_build = || made_of(&pool(0, &[]), &old, &fixtures::os_config(), 1);
    let standing = |n| {
        let mut seeded = made_of(&pool(2, &[]), &old, &fixtures::os_config(), n);
        let labels = seeded.labels_mut();
        labels.insert(label::PRE_BUILT_IMAGE.to_owned(), "true".to_owned());
        Arc::new(seeded)
    };
    let annotated = |n| {
        let mut os_config = fixtures::os_config();
        os_config
            .annotations_mut()
            .insert(annotation::PRE_BUILT_IMAGE.to_owned(), image(n));
        os_config
    };
    let seeded = |n| {
        let mut os_config = fixtures::os_config();
        let status = os_config.status.get_or_insert_default();
        let statement = condition::Statement {
            type_: SEEDED,
            holds: true,
            reason: "PreBuiltImageSeeded".to_owned(),
            message: format!(
                "MachineOSConfig seeded with pre-built image \"{}\"",
                image(n)
            ),
        };
        let conditions = status.conditions.get_or_insert_default();
        condition::set(conditions, statement, fixtures::now());
        os_config
    };
    let mut orphan = standing(1).as_ref().clone();
    orphan.metadata.owner_references = None;
    let rows = [
        (fixtures::os_config(), vec![], false),
        (fixtures::os_config(), vec![Arc::new(os_build())], false),
        (fixtures::os_config(), vec![standing(1)], true),
        (fixtures::os_config(), vec![standing(2)], false),
        (fixtures::os_config(), vec![Arc::new(orphan)], false),
        (annotated(1), vec![], true),
        (annotated(2), vec![], false),
        (seeded(1), vec![], true),
        (seeded(2), vec![], false),
    ];
    for (os_config, os_builds, is_one) in rows {
        let given = is_given(&os_build(), &os_config, &os_builds);
        assert_eq!(given, is_one, "{os_config:?} {os_builds:?}");
    }
    assert!(is_given(&standing(1), &fixtures::os_config(), &[]));
    let mut imageless = os_build();
    imageless.status = None;
    assert!(!is_given(&imageless, &annotated(1), &[standing(1)]));
}
