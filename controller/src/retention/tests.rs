use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::*;
use crate::api::ObjectReference;
use crate::api::machine_os_config::MachineOSConfigStatus;
use crate::fixtures::{self, now};

const HOUR: Duration = Duration::from_secs(3600);

/// A build that was made so many hours ago; its name ends in that number.
fn build(hours: i64, phase: Phase) -> MachineOSBuild {
    let mut os_build = fixtures::os_build();
    os_build.metadata.name = Some(format!("worker-{hours}"));
    let created = now() - SignedDuration::from_hours(hours);
    os_build.metadata.creation_timestamp = Some(Time(created));
    let status = os_build.status.get_or_insert_default();
    phase.write(status.conditions.get_or_insert_default(), None, now());
    status.digested_image_push_spec = Some(format!("q.io/a/b@sha256:{hours:064}"));
    os_build
}

fn kept(mut os_build: MachineOSBuild) -> MachineOSBuild {
    let annotations = os_build.annotations_mut();
    annotations.insert(annotation::KEEP_IMAGE.to_owned(), String::new());
    os_build
}

fn going(mut os_build: MachineOSBuild) -> MachineOSBuild {
    os_build.metadata.deletion_timestamp = Some(Time(now()));
    os_build
}

fn keep(builds: Option<usize>, hours: Option<u32>) -> Retention {
    Retention {
        builds,
        age: hours.map(|hours| HOUR * hours),
    }
}

/// What goes, and in how many hours the next does.
fn goes(
    retention: Retention,
    os_config: &MachineOSConfig,
    os_builds: Vec<MachineOSBuild>,
) -> (Vec<String>, Option<i64>) {
    let os_builds: Vec<_> = os_builds.into_iter().map(Arc::new).collect();
    let Surplus { os_builds, next } = surplus(retention, os_config, &os_builds, "worker-0", now());
    let names = os_builds.iter().map(|one| one.name_any());
    let names = names.map(|name| name.replace("worker-", "")).collect();
    (
        names,
        next.map(|next| next.duration_since(now()).as_hours()),
    )
}

#[test]
fn the_newest_and_the_young_stay_and_without_a_bound_all_do() {
    let five = || (0..5).rev().map(|hours| build(hours, Phase::Succeeded));
    let os_config = fixtures::os_config();
    for (retention, gone, next) in [
        (keep(None, None), vec![], None),
        (keep(Some(9), None), vec![], None),
        (keep(Some(3), None), vec!["3", "4"], None),
        (keep(Some(1), None), vec!["1", "2", "3", "4"], None),
        // the wanted one stays
        (keep(Some(0), None), vec!["1", "2", "3", "4"], None),
        (keep(None, Some(3)), vec!["3", "4"], Some(1)),
        (keep(Some(2), Some(4)), vec!["4"], Some(1)),
        (keep(Some(4), Some(1)), vec!["4"], None),
        // beyond all times
        (keep(None, Some(u32::MAX)), vec![], None),
    ] {
        let gone = gone.into_iter().map(str::to_owned).collect();
        assert_eq!(
            goes(retention, &os_config, five().collect()),
            (gone, next),
            "{retention}"
        );
    }
}

#[test]
fn what_is_named_kept_unfinished_or_going_stays() {
    let mut named = fixtures::os_config();
    let annotations = named.annotations_mut();
    annotations.insert(annotation::CURRENT_BUILD.to_owned(), "worker-2".to_owned());
    named.status = Some(MachineOSConfigStatus {
        current_image_pull_spec: Some(format!("q.io/a/b@sha256:{:064}", 3)),
        machine_os_build: Some(ObjectReference {
            name: "worker-4".to_owned(),
            ..ObjectReference::default()
        }),
        ..MachineOSConfigStatus::default()
    });
    let mut unmade = build(9, Phase::Succeeded);
    unmade.metadata.creation_timestamp = None;
    let os_builds = vec![
        build(0, Phase::Succeeded),
        build(2, Phase::Succeeded),
        build(3, Phase::Succeeded),
        build(4, Phase::Succeeded),
        kept(build(5, Phase::Succeeded)),
        going(build(6, Phase::Succeeded)),
        build(7, Phase::Failed),
        build(8, Phase::Building),
        unmade,
        build(10, Phase::Succeeded),
    ];
    let gone = goes(keep(Some(0), None), &named, os_builds);
    assert_eq!(gone, (vec!["10".to_owned()], None));
}

#[test]
fn builds_of_the_same_second_go_in_the_order_of_their_names() {
    let mut twin = build(1, Phase::Succeeded);
    twin.metadata.name = Some("worker-1b".to_owned());
    let os_builds = vec![build(1, Phase::Succeeded), twin];
    let gone = goes(keep(Some(1), None), &fixtures::os_config(), os_builds);
    assert_eq!(gone, (vec!["1".to_owned()], None));
}
