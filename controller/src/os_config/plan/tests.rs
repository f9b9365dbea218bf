//! One row per case of the table in the module's documentation.

use std::collections::BTreeSet;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::*;
use crate::api::{CLEANUP_FINALIZER, MachineOSConfig};
use crate::decoded::Decoded;
use crate::fixtures::{self, documented_rules, now, os_build, os_build_with_image};
use crate::retention::Retention;
use crate::usage::Users;

const IMAGE: &str = "registry.example.com/org/repo@sha256:220a60ecd4a3c32c282622a625a54db9ba0ff55b5ba9c29c7064a2bc358b6a3e";

fn guarded() -> MachineOSConfig {
    let mut os_config = fixtures::os_config();
    os_config.metadata.finalizers = Some(vec![CLEANUP_FINALIZER.to_owned()]);
    os_config.metadata.generation = Some(1);
    os_config
}

fn annotated(mut os_config: MachineOSConfig, key: &str, value: &str) -> MachineOSConfig {
    os_config
        .annotations_mut()
        .insert(key.to_owned(), value.to_owned());
    os_config
}

/// With the wanted build's name.
fn named() -> MachineOSConfig {
    annotated(
        guarded(),
        annotation::CURRENT_BUILD,
        fixtures::inputs().name.as_str(),
    )
}

fn seen(os_config: MachineOSConfig, os_builds: Vec<MachineOSBuild>) -> Observed {
    Observed {
        wanted: Wanted::Build(Box::new(fixtures::inputs())),
        os_config,
        os_builds: os_builds.into_iter().map(Arc::new).collect(),
        image: Answer::NotAsked,
        retention: Ok(Retention::default()),
        users: None,
    }
}

fn build_in(phase: Phase) -> MachineOSBuild {
    let mut build = os_build();
    let status = build.status.get_or_insert_default();
    phase.write(status.conditions.get_or_insert_default(), None, now());
    build
}

fn other(mut os_build: MachineOSBuild) -> MachineOSBuild {
    os_build.metadata.name = Some("worker-other".to_owned());
    os_build.metadata.uid = Some("other-uid".to_owned());
    os_build
}

fn going(mut os_build: MachineOSBuild) -> MachineOSBuild {
    os_build.metadata.deletion_timestamp = Some(Time(now()));
    os_build
}

/// After the plan's status was written.
fn after(mut observed: Observed) -> Observed {
    for step in plan(&observed, now()).steps {
        match step {
            Step::SetConfigStatus(status) => observed.os_config.status = Some(*status),
            Step::Annotate(changes) => {
                for (key, value) in changes {
                    match value {
                        Some(value) => observed
                            .os_config
                            .annotations_mut()
                            .insert(key.to_owned(), value),
                        None => observed.os_config.annotations_mut().remove(key),
                    };
                }
            }
            _ => {}
        }
    }
    observed
}

#[test]
fn every_rule_has_its_steps() {
    use Phase::{Building, Failed, Initial, Interrupted, Prepared};
    let deleted = |mut os_config: MachineOSConfig| {
        os_config.metadata.deletion_timestamp = Some(Time(now()));
        os_config
    };
    let rebuild = |os_config| annotated(os_config, annotation::REBUILD, "");
    let seed = |os_config, image| annotated(os_config, annotation::PRE_BUILT_IMAGE, image);
    let superseded = |mut build: MachineOSBuild| {
        build
            .annotations_mut()
            .insert(annotation::SUPERSEDED_BY.to_owned(), "newer".to_owned());
        build
    };
    let anew = |mut build: MachineOSBuild| {
        let annotations = build.annotations_mut();
        annotations.insert(annotation::BUILD_ANEW.to_owned(), String::new());
        build
    };
    let labelled = |mut build: MachineOSBuild| {
        let labels = build.labels_mut();
        labels.insert(label::PRE_BUILT_IMAGE.to_owned(), "true".to_owned());
        build
    };
    let with = |wanted, observed| Observed { wanted, ..observed };
    let unbuildable = || Wanted::Invalid {
        why: "no".to_owned(),
        name: Some(fixtures::inputs().name.to_string()),
    };
    let good = || os_build_with_image(IMAGE);
    let answered = |image| Observed {
        image,
        ..seen(named(), vec![good()])
    };
    let ended_before = |seconds, mut observed: Observed| {
        let mut os_build = (*observed.os_builds[0]).clone();
        let status = os_build.status.get_or_insert_default();
        let since = now() - jiff::SignedDuration::from_secs(seconds);
        for condition in status.conditions.iter_mut().flatten() {
            condition.last_transition_time = Time(since);
        }
        observed.os_builds[0] = Arc::new(os_build);
        observed
    };
    let imageless = |mut build: MachineOSBuild| {
        build
            .status
            .get_or_insert_default()
            .digested_image_push_spec = None;
        build
    };
    let left = |os_config| annotated(os_config, annotation::CURRENT_BUILD, "worker-other");
    let adopted = after(answered(Answer::NotAsked));
    let mut full = adopted.clone();
    full.os_builds.push(Arc::new(other(build_in(Interrupted))));
    let mut kept = adopted.clone();
    kept.os_builds.push(Arc::new(other(good())));
    let old = |hours| {
        let mut old = other(os_build_with_image(&IMAGE.replace("220a", "330b")));
        let created = now() - jiff::SignedDuration::from_hours(hours);
        old.metadata.creation_timestamp = Some(Time(created));
        old
    };
    let limited = |hours, users| {
        let mut limited = adopted.clone();
        limited.os_builds.push(Arc::new(old(hours)));
        limited.retention = Ok(Retention {
            builds: Some(1),
            age: Some(Duration::from_secs(7200)),
        });
        limited.users = users;
        limited
    };
    let mut wrong = limited(3, Some(Users::default()));
    wrong.retention = Err("annotation x".to_owned());
    let needed = || Users {
        nodes: vec![
            fixtures::node(
                annotation::NODE_CURRENT_IMAGE,
                &IMAGE.replace("220a", "330b"),
            )
            .into(),
        ],
        ..Users::default()
    };
    let create = vec!["annotate", "create-build", "tell", "set-config-status"];
    let rows: Vec<(Observed, &str, Vec<&str>)> = vec![
        (
            seen(deleted(guarded()), vec![good(), other(good())]),
            "deleting",
            vec!["delete-build", "delete-build"],
        ),
        (
            seen(deleted(guarded()), vec![going(good())]),
            "deleting",
            vec![],
        ),
        (
            seen(deleted(guarded()), vec![]),
            "deleting",
            vec!["tell", "remove-finalizer"],
        ),
        (
            seen(deleted(fixtures::os_config()), vec![]),
            "deleting",
            vec![],
        ),
        (
            seen(fixtures::os_config(), vec![]),
            "guard",
            vec!["add-finalizer"],
        ),
        (
            with(unbuildable(), seen(guarded(), vec![])),
            "invalid",
            vec!["set-config-status", "tell"],
        ),
        (
            with(
                Wanted::Invalid {
                    why: "no".to_owned(),
                    name: None,
                },
                seen(guarded(), vec![good()]),
            ),
            "invalid",
            vec!["set-config-status", "tell"],
        ),
        // what was built all the same is adopted, and not built again
        (
            with(unbuildable(), seen(guarded(), vec![good()])),
            "adopt",
            vec!["set-config-status", "annotate"],
        ),
        (
            with(unbuildable(), seen(guarded(), vec![going(good())])),
            "invalid",
            vec!["set-config-status", "tell"],
        ),
        (
            with(unbuildable(), seen(guarded(), vec![build_in(Building)])),
            "invalid",
            vec!["set-config-status", "tell"],
        ),
        (
            with(unbuildable(), seen(rebuild(named()), vec![good()])),
            "invalid",
            vec!["set-config-status", "tell"],
        ),
        (
            with(unbuildable(), ended_before(60, answered(Answer::Absent))),
            "invalid",
            vec!["set-config-status", "tell"],
        ),
        (with(unbuildable(), adopted.clone()), "settled", vec![]),
        (
            with(Wanted::Waiting("no".to_owned()), seen(guarded(), vec![])),
            "waiting",
            vec!["set-config-status"],
        ),
        (
            seen(rebuild(named()), vec![good()]),
            "rebuild-requested",
            vec!["tell", "delete-build", "set-config-status"],
        ),
        (
            seen(rebuild(named()), vec![going(good())]),
            "rebuild-requested",
            vec!["set-config-status"],
        ),
        (seen(rebuild(named()), vec![]), "create", create.clone()),
        (
            seen(seed(guarded(), IMAGE), vec![]),
            "seed",
            vec!["create-build", "set-config-status"],
        ),
        (
            seen(seed(guarded(), "repo:latest"), vec![]),
            "invalid",
            vec!["set-config-status", "tell"],
        ),
        (
            seen(seed(named(), IMAGE), vec![]),
            "create",
            vec!["create-build", "tell", "set-config-status"],
        ),
        (
            seen(rebuild(seed(guarded(), IMAGE)), vec![]),
            "create",
            create.clone(),
        ),
        (seen(guarded(), vec![]), "create", create),
        (
            seen(guarded(), vec![going(good())]),
            "replaced",
            vec!["set-config-status"],
        ),
        (
            seen(named(), vec![superseded(build_in(Interrupted))]),
            "restart",
            vec!["delete-build", "set-config-status"],
        ),
        (
            seen(named(), vec![anew(superseded(build_in(Interrupted)))]),
            "restart",
            vec!["annotate", "delete-build", "set-config-status"],
        ),
        // the config has come back to what had failed before it wanted another
        (
            seen(left(guarded()), vec![build_in(Failed)]),
            "restart",
            vec!["delete-build", "set-config-status"],
        ),
        (
            seen(left(guarded()), vec![build_in(Interrupted), other(good())]),
            "restart",
            vec!["delete-build", "set-config-status"],
        ),
        (
            seen(guarded(), vec![build_in(Failed)]),
            "failed",
            vec!["annotate", "set-config-status", "tell"],
        ),
        (
            seen(named(), vec![build_in(Prepared), other(build_in(Failed))]),
            "building",
            vec!["delete-build", "set-config-status"],
        ),
        (
            seen(
                guarded(),
                vec![build_in(Building), other(build_in(Interrupted))],
            ),
            "building",
            vec!["annotate", "delete-build", "set-config-status"],
        ),
        (
            seen(named(), vec![build_in(Building), other(build_in(Building))]),
            "building",
            vec!["set-config-status"],
        ),
        (
            seen(
                annotated(named(), annotation::BUILD_ANEW, ""),
                vec![anew(build_in(Initial))],
            ),
            "building",
            vec!["annotate", "set-config-status"],
        ),
        (
            seen(guarded(), vec![build_in(Building)]),
            "building",
            vec!["annotate", "set-config-status"],
        ),
        // it is named when it has its image, so that a seeding that was cut off can go on
        (
            seen(seed(guarded(), IMAGE), vec![labelled(build_in(Initial))]),
            "building",
            vec!["set-config-status"],
        ),
        (
            seen(named(), vec![labelled(build_in(Initial))]),
            "building",
            vec!["set-config-status"],
        ),
        (
            seen(seed(guarded(), IMAGE), vec![labelled(good())]),
            "adopt",
            vec!["set-config-status", "annotate"],
        ),
        (
            seen(named(), vec![build_in(Initial), other(build_in(Failed))]),
            "building",
            vec!["set-config-status"],
        ),
        (
            seen(
                named(),
                vec![
                    build_in(Failed),
                    other(build_in(Interrupted)),
                    other(good()),
                ],
            ),
            "failed",
            vec!["delete-build", "set-config-status", "tell"],
        ),
        (
            seen(named(), vec![build_in(Interrupted)]),
            "failed",
            vec!["set-config-status"],
        ),
        (
            answered(Answer::Absent),
            "unconfirmed",
            vec!["set-config-status"],
        ),
        (
            ended_before(59, answered(Answer::Absent)),
            "unconfirmed",
            vec!["set-config-status"],
        ),
        (
            ended_before(60, answered(Answer::Absent)),
            "image-lost",
            vec!["tell", "delete-build", "set-config-status"],
        ),
        (
            seen(named(), vec![imageless(good())]),
            "image-lost",
            vec!["tell", "delete-build", "set-config-status"],
        ),
        (
            with(unbuildable(), seen(named(), vec![imageless(good())])),
            "invalid",
            vec!["set-config-status", "tell"],
        ),
        (
            answered(Answer::Unknown("no".to_owned())),
            "unconfirmed",
            vec!["set-config-status"],
        ),
        (
            answered(Answer::Refused("no".to_owned())),
            "adopt",
            vec!["set-config-status"],
        ),
        (
            Observed {
                os_config: seed(guarded(), IMAGE),
                ..answered(Answer::NotAsked)
            },
            "adopt",
            vec!["set-config-status", "annotate"],
        ),
        (full, "prune", vec!["delete-build"]),
        (kept, "settled", vec![]),
        (
            limited(3, Some(Users::default())),
            "prune",
            vec!["delete-build", "tell"],
        ),
        (limited(1, Some(Users::default())), "settled", vec![]),
        (limited(3, Some(needed())), "settled", vec![]),
        (limited(3, None), "settled", vec![]),
        (wrong, "settled", vec!["set-config-status"]),
        (adopted, "settled", vec![]),
    ];
    let mut rules = BTreeSet::new();
    for (observed, rule, steps) in rows {
        let plan = plan(&observed, now());
        let names: Vec<_> = plan.steps.iter().map(Step::name).collect();
        assert_eq!((plan.rule, names), (rule, steps), "{observed:#?}");
        rules.insert(rule);
    }
    rules.extend(refused(&seen(guarded(), vec![]), "no", now()).map(|plan| plan.rule));
    rules.insert("undecodable");
    assert_eq!(rules, documented_rules(include_str!("../plan.rs")));
}

#[test]
fn a_config_that_can_not_be_decoded_says_so_once_and_keeps_its_other_conditions() {
    let mut document = serde_json::to_value(guarded()).unwrap();
    document["spec"]["renderedImagePushSecret"] = serde_json::json!("push");
    let seen = |conditions: serde_json::Value| {
        let mut document = document.clone();
        document["status"] = serde_json::json!({"conditions": conditions});
        match serde_json::from_value(document).unwrap() {
            Decoded::<MachineOSConfig>::Undecodable(one) => one,
            Decoded::Whole(_) => panic!("decoded"),
        }
    };
    let names = |steps: &[Step]| steps.iter().map(Step::name).collect::<Vec<_>>();
    let one = seen(serde_json::json!([{"type": SEEDED, "status": "True"}]));
    let steps = undecodable(&one, now());
    assert_eq!(names(&steps), ["tell", "set-config-status"]);
    let Some(Step::SetConfigStatus(status)) = steps.last() else {
        panic!("{steps:?}");
    };
    let conditions = status.conditions.clone().unwrap();
    assert!(condition::is_true(&conditions, SEEDED));
    let ready = condition::get(&conditions, READY).unwrap();
    assert_eq!(
        (ready.status.as_str(), ready.reason.as_str()),
        ("False", INVALID)
    );
    assert_eq!(ready.message, one.told());
    assert!(ready.message.contains("spec.renderedImagePushSecret"));
    let again = seen(serde_json::to_value(&conditions).unwrap());
    assert_eq!(names(&undecodable(&again, now())), ["tell"]);
    // nothing of it may be lost
    let unreadable = seen(serde_json::json!("none"));
    assert_eq!(names(&undecodable(&unreadable, now())), ["tell"]);
}

#[test]
fn a_rebuild_that_was_asked_for_is_marked_until_its_build_is_there_and_no_other_is() {
    let created = |os_config| {
        let plan = plan(&seen(os_config, vec![]), now());
        let build = plan.steps.iter().find_map(|step| match step {
            Step::CreateBuild(os_build) => Some(os_build.clone()),
            _ => None,
        });
        let is_anew = |one: &MachineOSBuild| one.annotations().contains_key(annotation::BUILD_ANEW);
        (plan, build.is_some_and(|build| is_anew(&build)))
    };
    let asked = annotated(named(), annotation::REBUILD, "");
    let (plan, is_anew) = created(asked.clone());
    assert!(is_anew);
    let change = Step::Annotate(vec![
        (annotation::REBUILD, None),
        (annotation::BUILD_ANEW, Some(String::new())),
    ]);
    assert_eq!(plan.steps.first(), Some(&change));
    // the controller is killed between the two
    assert!(created(after(seen(asked, vec![])).os_config).1);
    assert!(!created(named()).1);
}

#[test]
fn adoption_names_image_build_and_generation() {
    let observed = after(seen(named(), vec![os_build_with_image(IMAGE)]));
    let status = observed.os_config.status.unwrap();
    assert_eq!(status.current_image_pull_spec.as_deref(), Some(IMAGE));
    assert_eq!(status.observed_generation, Some(1));
    assert_eq!(
        status.machine_os_build,
        Some(ObjectReference {
            group: "machineconfiguration.openshift.io".to_owned(),
            resource: "machineosbuilds".to_owned(),
            namespace: None,
            name: fixtures::inputs().name.to_string(),
        })
    );
    assert!(condition::is_true(&status.conditions.unwrap(), READY));
}

#[test]
fn a_new_content_keeps_the_old_image_in_the_status_until_it_is_built() {
    let mut observed = after(seen(named(), vec![os_build_with_image(IMAGE)]));
    observed.os_builds = vec![Arc::new(other(os_build_with_image(IMAGE)))];
    let before = observed.os_config.status.clone().unwrap();
    let status = after(observed).os_config.status.unwrap();
    assert_eq!(
        status.current_image_pull_spec,
        before.current_image_pull_spec
    );
    assert_eq!(status.machine_os_build, before.machine_os_build);
    assert!(!condition::is_true(&status.conditions.unwrap(), READY));
}

#[test]
fn a_build_that_may_go_later_or_is_still_needed_is_looked_at_again() {
    let mut observed = after(seen(named(), vec![os_build_with_image(IMAGE)]));
    let mut old = other(os_build_with_image(&IMAGE.replace("220a", "330b")));
    let created = now() - jiff::SignedDuration::from_hours(1);
    old.metadata.creation_timestamp = Some(Time(created));
    observed.os_builds.push(Arc::new(old));
    for (age_seconds, is_surplus, seconds) in [(7200, false, 3600), (3600, true, 600)] {
        observed.retention = Ok(Retention {
            builds: Some(1),
            age: Some(Duration::from_secs(age_seconds)),
        });
        assert_eq!(has_surplus(&observed, now()), is_surplus);
        let again = crate::plan::Requeue::After(Duration::from_secs(seconds));
        assert_eq!(plan(&observed, now()).requeue, again);
    }
}
