//! One row per case of the table in the module's documentation.

use std::collections::BTreeSet;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use strata_builder::contract::{Outcome, REPORT_VERSION};

use super::*;
use crate::api::machine_os_build::MachineOSBuildStatus;
use crate::fixtures::{self, documented_rules, now, os_build, os_build_with_image};
use crate::inputs::ContentKey;
use crate::job::{BuildObjects, Credentials, PodShape, build_objects};
use crate::plan::{Requeue, Target};
use crate::render::render;
use crate::reuse::Candidate;
use crate::secrets::DockerConfig;
use crate::usage::Use;

const HEX: &str = "220a60ecd4a3c32c282622a625a54db9ba0ff55b5ba9c29c7064a2bc358b6a3e";

fn digest() -> Digest {
    format!("sha256:{HEX}").parse().unwrap()
}

fn image() -> String {
    format!("registry.example.com/org/repo@sha256:{HEX}")
}

/// A build in `phase`, as the apiserver has it.
fn build_in(phase: Phase) -> MachineOSBuild {
    let mut build = os_build();
    if phase == Phase::Succeeded {
        return os_build_with_image(&image());
    }
    if phase != Phase::Initial {
        let status = build.status.get_or_insert_default();
        phase.write(status.conditions.get_or_insert_default(), None, now());
        status.build_start = Some(Time(now()));
    }
    build
}

/// What is seen around `os_build` when nothing else is there and it is wanted.
fn seen(os_build: MachineOSBuild) -> Observed {
    Observed {
        namespace: "ns".to_owned(),
        wanted: Some(os_build.name_any()),
        is_controlled: true,
        has_given_image: false,
        seed: None,
        os_build,
        preparation: Preparation::NotAsked,
        job: JobState::Absent,
        is_pushing: false,
        config_maps: Vec::new(),
        secrets: Vec::new(),
        image: Answer::NotAsked,
        used: None,
    }
}

fn deleted(mut os_build: MachineOSBuild, seconds_ago: i64) -> MachineOSBuild {
    let since = now() - SignedDuration::from_secs(seconds_ago);
    os_build.metadata.deletion_timestamp = Some(Time(since));
    os_build
}

fn job(outcome: JobOutcome) -> JobState {
    JobState::Present(Box::new(JobSeen {
        target: object("build"),
        is_going: false,
        created: Some(now() - SignedDuration::from_secs(3)),
        outcome: Some(outcome),
        left_digest: None,
    }))
}

/// A complete Job of the incumbent, whose pod left this digest.
fn left(hex: &str) -> JobState {
    match complete(None) {
        JobState::Present(mut job) => {
            job.left_digest = Some(format!("sha256:{hex}").parse().unwrap());
            JobState::Present(job)
        }
        other => other,
    }
}

fn object(name: &str) -> Target {
    Target {
        name: name.to_owned(),
        uid: format!("{name}-uid"),
    }
}

fn report() -> BuildReport {
    BuildReport {
        version: REPORT_VERSION,
        outcome: Outcome::Pushed {
            digest: digest(),
            size_bytes: 1,
            layers: 1,
            sent_bytes: 1,
            already_there: false,
        },
        tier: "userns".to_owned(),
        phases: Vec::new(),
        peak_rss_bytes: 0,
        work: strata_builder::contract::Work::default(),
    }
}

fn complete(report: Option<BuildReport>) -> JobState {
    job(JobOutcome::Complete { report })
}

/// The registry has been asked for its image in vain since then.
fn asked(observed: Observed, seconds_ago: i64) -> Observed {
    let since = now() - SignedDuration::from_secs(seconds_ago);
    let mut observed = observed;
    observed
        .os_build
        .annotations_mut()
        .insert(annotation::UNCONFIRMED_SINCE.to_owned(), since.to_string());
    observed
}

fn present(build_uid: Option<&str>) -> Answer {
    Answer::Present {
        digest: digest(),
        build_uid: build_uid.map(str::to_owned),
    }
}

fn prepared() -> Prepared {
    let inputs = fixtures::inputs();
    let rendered = render(&inputs).unwrap();
    let settings = fixtures::job_settings();
    let credentials = Credentials {
        pull: DockerConfig::anonymous(),
        push: DockerConfig::anonymous(),
    };
    let objects: BuildObjects = build_objects(
        &os_build(),
        &inputs,
        &rendered,
        &credentials,
        PodShape::Userns,
        &settings,
    )
    .unwrap();
    let content_key: ContentKey = inputs.content_key();
    Prepared {
        displaced: None,
        objects,
        content_key,
    }
}

fn reusable() -> Preparation {
    Preparation::Reusable(Box::new(Reusable {
        content_key: fixtures::inputs().content_key(),
        candidate: Candidate {
            os_build: "worker-other".to_owned(),
            image: image().parse().unwrap(),
            is_pre_built: false,
        },
    }))
}

/// A build that has noted which image it takes.
fn claiming(mut os_build: MachineOSBuild) -> MachineOSBuild {
    let key = fixtures::inputs().content_key();
    let annotations = os_build.annotations_mut();
    annotations.insert(annotation::CONTENT_KEY.to_owned(), key.as_str().to_owned());
    annotations.insert(annotation::REUSED_IMAGE.to_owned(), image());
    os_build
}

/// Rule, names of the steps, phase that is written.
fn told(plan: &Plan) -> (&'static str, Vec<&'static str>, Option<Phase>) {
    let phase = plan.steps.iter().find_map(|step| match step {
        Step::SetBuildStatus(status) => {
            Some(Phase::of(status.conditions.as_deref().unwrap_or_default()))
        }
        _ => None,
    });
    (
        plan.rule,
        plan.steps.iter().map(Step::name).collect(),
        phase,
    )
}

#[test]
fn every_rule_has_its_steps() {
    use Phase::{Building, Failed, Initial, Interrupted, Prepared, Succeeded};
    let going = |state: JobState| match state {
        JobState::Present(mut job) => {
            job.is_going = true;
            JobState::Present(job)
        }
        other => other,
    };
    let running = || {
        job(JobOutcome::Building {
            progress: None,
            starting: None,
        })
    };
    let failed = |report| {
        job(JobOutcome::Failed {
            message: "no".to_owned(),
            report,
        })
    };
    let unknown = || Answer::Unknown("no".to_owned());
    let no_access = || Answer::NoAccess("no".to_owned());
    let not_allowed = || Answer::Refused("no".to_owned());
    let unguarded = |mut build: MachineOSBuild| {
        build.metadata.finalizers = None;
        build
    };
    let labelled = |mut build: MachineOSBuild| {
        build
            .labels_mut()
            .insert(label::PRE_BUILT_IMAGE.to_owned(), "true".to_owned());
        build
            .annotations_mut()
            .insert(annotation::PRE_BUILT_IMAGE.to_owned(), image());
        build
    };
    let half_seeded = |mut build: MachineOSBuild| {
        build
            .labels_mut()
            .insert(label::PRE_BUILT_IMAGE.to_owned(), "true".to_owned());
        build
    };
    let given = |observed: Observed| Observed {
        has_given_image: true,
        ..observed
    };
    let gone = |answer: Answer, age| Observed {
        image: answer,
        ..seen(deleted(build_in(Succeeded), age))
    };
    let kept = |answer: Answer| {
        let mut observed = gone(answer, 0);
        let annotations = observed.os_build.annotations_mut();
        annotations.insert(annotation::KEEP_IMAGE.to_owned(), String::new());
        observed
    };
    let with_job = |phase, job| Observed {
        job,
        ..seen(build_in(phase))
    };
    let with_image = |phase, job, image| Observed {
        job,
        image,
        ..seen(build_in(phase))
    };
    let preparing = |preparation| Observed {
        preparation,
        ..seen(build_in(Initial))
    };
    let retain = vec!["remember", "tell", "remove-finalizer"];
    let rows: Vec<(Observed, &str, Vec<&str>, Option<Phase>)> = vec![
        // deletion
        (
            Observed {
                job: running(),
                ..seen(deleted(build_in(Building), 0))
            },
            "deleting-job",
            vec!["delete-job"],
            None,
        ),
        (
            Observed {
                job: going(running()),
                ..seen(deleted(build_in(Building), 0))
            },
            "deleting-job",
            vec![],
            None,
        ),
        (
            gone(Answer::Absent, 0),
            "deleting-done",
            vec!["delete-image", "remove-finalizer"],
            None,
        ),
        (
            gone(Answer::Absent, 600),
            "deleting-done",
            vec!["remember", "remove-finalizer"],
            None,
        ),
        (
            Observed {
                is_pushing: true,
                ..gone(Answer::Absent, 600)
            },
            "deleting-pod",
            vec![],
            None,
        ),
        // what a stopped build noted goes with it, unless its registry fails to delete it for long
        (
            Observed {
                image: Answer::Absent,
                ..seen(deleted(build_in(Interrupted), 0))
            },
            "deleting-done",
            vec!["delete-image", "remove-finalizer"],
            None,
        ),
        (
            Observed {
                image: Answer::Absent,
                ..seen(deleted(build_in(Interrupted), 600))
            },
            "deleting-done",
            vec!["remove-finalizer"],
            None,
        ),
        (
            Observed {
                image: present(None),
                ..seen(deleted(build_in(Interrupted), 0))
            },
            "deleting-image",
            vec!["delete-image", "delete-image", "remove-finalizer"],
            None,
        ),
        (
            gone(Answer::NotAsked, 0),
            "deleting-done",
            vec!["remove-finalizer"],
            None,
        ),
        // the incumbent's, whose deletion has begun before anyone could guard it
        (
            seen(deleted(unguarded(build_in(Succeeded)), 0)),
            "deleting-done",
            vec!["remember"],
            None,
        ),
        (
            Observed {
                job: running(),
                ..seen(deleted(unguarded(build_in(Succeeded)), 0))
            },
            "deleting-job",
            vec!["remember", "delete-job"],
            None,
        ),
        (
            seen(deleted(unguarded(build_in(Failed)), 0)),
            "deleting-done",
            vec![],
            None,
        ),
        (
            given(seen(deleted(unguarded(build_in(Succeeded)), 0))),
            "deleting-done",
            vec![],
            None,
        ),
        // what was done already isn't noted
        (
            seen(deleted(claiming(unguarded(build_in(Succeeded))), 0)),
            "deleting-done",
            vec![],
            None,
        ),
        (
            Observed {
                is_controlled: false,
                ..seen(deleted(unguarded(build_in(Succeeded)), 0))
            },
            "deleting-done",
            vec![],
            None,
        ),
        (
            Observed {
                used: Some(Use::Node("n".to_owned())),
                ..gone(present(None), 0)
            },
            "deleting-retain",
            retain.clone(),
            None,
        ),
        (kept(present(None)), "deleting-kept", retain.clone(), None),
        (
            kept(Answer::Refused("no".to_owned())),
            "deleting-kept",
            retain,
            None,
        ),
        (
            kept(Answer::Absent),
            "deleting-done",
            vec!["delete-image", "remove-finalizer"],
            None,
        ),
        (
            gone(present(None), 0),
            "deleting-image",
            vec!["delete-image", "remove-finalizer"],
            None,
        ),
        (
            gone(Answer::Refused("no".to_owned()), 0),
            "deleting-refused",
            vec!["remember", "tell", "remove-finalizer"],
            None,
        ),
        (
            gone(Answer::NoAccess("no".to_owned()), 1),
            "deleting-waiting",
            vec![],
            None,
        ),
        (
            gone(Answer::NoAccess("no".to_owned()), 60),
            "deleting-refused",
            vec!["remember", "tell", "remove-finalizer"],
            None,
        ),
        (
            gone(Answer::Unknown("no".to_owned()), 60),
            "deleting-waiting",
            vec![],
            None,
        ),
        (
            gone(Answer::Unknown("no".to_owned()), 600),
            "deleting-retain",
            vec!["remember", "remove-finalizer"],
            None,
        ),
        (
            gone(present(None), 600),
            "deleting-retain",
            vec!["remember", "remove-finalizer"],
            None,
        ),
        // ended
        (
            seen(unguarded(build_in(Initial))),
            "guard",
            vec!["add-finalizer"],
            None,
        ),
        (
            seen(unguarded(build_in(Succeeded))),
            "guard",
            vec!["add-finalizer"],
            None,
        ),
        (
            given(seen(unguarded(build_in(Succeeded)))),
            "guard",
            vec!["annotate", "add-finalizer"],
            None,
        ),
        (
            Observed {
                is_controlled: false,
                wanted: None,
                ..seen(unguarded(build_in(Succeeded)))
            },
            "settled",
            vec![],
            None,
        ),
        (
            with_job(Succeeded, running()),
            "cleanup",
            vec!["delete-job"],
            None,
        ),
        (
            Observed {
                config_maps: vec![object("c")],
                secrets: vec![object("s")],
                ..seen(build_in(Interrupted))
            },
            "cleanup",
            vec!["delete-config-map", "delete-secret"],
            None,
        ),
        (
            Observed {
                config_maps: vec![object("c")],
                secrets: vec![object("s")],
                ..with_job(Failed, running())
            },
            "cleanup",
            vec!["delete-secret"],
            None,
        ),
        (seen(build_in(Succeeded)), "settled", vec![], None),
        (seen(build_in(Failed)), "settled", vec![], None),
        (
            Observed {
                wanted: Some("other".to_owned()),
                ..seen(build_in(Interrupted))
            },
            "settled",
            vec![],
            None,
        ),
        // wanted, or not
        (
            Observed {
                wanted: None,
                ..seen(build_in(Initial))
            },
            "orphaned",
            vec![],
            None,
        ),
        (
            Observed {
                wanted: None,
                ..with_job(Prepared, running())
            },
            "running",
            vec!["annotate", "set-build-status", "tell", "tell"],
            Some(Building),
        ),
        (
            Observed {
                wanted: Some("other".to_owned()),
                ..with_job(Building, running())
            },
            "superseded",
            vec!["annotate", "delete-job", "set-build-status", "tell"],
            Some(Interrupted),
        ),
        (
            Observed {
                wanted: Some("other".to_owned()),
                ..seen(build_in(Initial))
            },
            "superseded",
            vec!["annotate", "set-build-status", "tell"],
            Some(Interrupted),
        ),
        (
            seen(labelled(build_in(Initial))),
            "seeded",
            vec!["set-build-status"],
            Some(Succeeded),
        ),
        (
            Observed {
                seed: Some(image()),
                ..seen(half_seeded(build_in(Initial)))
            },
            "seeded",
            vec!["annotate", "set-build-status"],
            Some(Succeeded),
        ),
        (
            seen(half_seeded(build_in(Initial))),
            "seeded",
            vec!["set-build-status", "tell"],
            Some(Initial),
        ),
        (
            Observed {
                seed: Some("registry.example.com/org/repo:latest".to_owned()),
                ..seen(half_seeded(build_in(Initial)))
            },
            "seeded",
            vec!["set-build-status", "tell"],
            Some(Initial),
        ),
        // before the Job
        (
            preparing(Preparation::Invalid("no".to_owned())),
            "invalid",
            vec!["set-build-status", "tell"],
            Some(Failed),
        ),
        (preparing(reusable()), "claim", vec!["annotate"], None),
        (
            Observed {
                preparation: reusable(),
                ..seen(claiming(build_in(Initial)))
            },
            "reuse",
            vec!["set-build-status", "tell"],
            Some(Succeeded),
        ),
        (
            preparing(Preparation::Unanswered("no".to_owned())),
            "unanswered",
            vec!["set-build-status", "tell"],
            Some(Initial),
        ),
        (
            preparing(Preparation::Queued("no".to_owned())),
            "queued",
            vec!["set-build-status", "tell"],
            Some(Initial),
        ),
        (
            preparing(Preparation::Blocked("no".to_owned())),
            "blocked",
            vec!["set-build-status", "tell"],
            Some(Initial),
        ),
        (
            preparing(Preparation::Waiting("no".to_owned())),
            "waiting",
            vec!["set-build-status", "tell"],
            Some(Initial),
        ),
        (
            Observed {
                job: JobState::Foreign,
                ..seen(build_in(Initial))
            },
            "waiting",
            vec!["set-build-status", "tell"],
            Some(Initial),
        ),
        (
            preparing(Preparation::Ready(Box::new(prepared()))),
            "start",
            vec![
                "annotate",
                "create-objects",
                "set-build-status",
                "tell",
                "tell",
                "tell",
            ],
            Some(Prepared),
        ),
        // with the Job
        (
            with_job(Initial, job(JobOutcome::Prepared { waiting: None })),
            "running",
            vec!["annotate", "set-build-status"],
            Some(Prepared),
        ),
        (
            with_job(Building, job(JobOutcome::Prepared { waiting: None })),
            "running",
            vec!["annotate", "set-build-status"],
            Some(Building),
        ),
        (
            with_job(Building, going(running())),
            "running",
            vec!["annotate"],
            None,
        ),
        (
            with_image(Building, JobState::Absent, Answer::Absent),
            "vanished",
            vec!["set-build-status", "tell", "tell"],
            Some(Interrupted),
        ),
        (
            with_image(Building, JobState::Absent, unknown()),
            "unconfirmed",
            vec!["annotate", "set-build-status"],
            Some(Building),
        ),
        (
            with_image(Prepared, JobState::Absent, no_access()),
            "unconfirmed",
            vec!["annotate", "set-build-status"],
            Some(Building),
        ),
        (
            with_image(Building, JobState::Absent, not_allowed()),
            "unconfirmed",
            vec!["annotate", "set-build-status"],
            Some(Building),
        ),
        (
            asked(with_image(Building, JobState::Absent, not_allowed()), 59),
            "unconfirmed",
            vec!["set-build-status"],
            Some(Building),
        ),
        (
            asked(with_image(Building, JobState::Absent, not_allowed()), 60),
            "vanished",
            vec!["set-build-status", "tell", "tell"],
            Some(Interrupted),
        ),
        (
            asked(with_image(Building, JobState::Absent, unknown()), 60),
            "unconfirmed",
            vec!["set-build-status"],
            Some(Building),
        ),
        (
            with_image(Building, JobState::Absent, present(Some("build-uid"))),
            "succeeded",
            vec!["set-build-status", "tell"],
            Some(Succeeded),
        ),
        (
            with_image(Building, JobState::Absent, present(Some("another"))),
            "vanished",
            vec!["set-build-status", "tell", "tell"],
            Some(Interrupted),
        ),
        (
            with_job(Building, failed(None)),
            "failed",
            vec!["annotate", "set-build-status", "tell", "tell"],
            Some(Failed),
        ),
        (
            with_image(Building, failed(None), unknown()),
            "unconfirmed",
            vec!["annotate", "annotate", "set-build-status"],
            Some(Building),
        ),
        (
            with_image(Building, failed(None), not_allowed()),
            "unconfirmed",
            vec!["annotate", "annotate", "set-build-status"],
            Some(Building),
        ),
        (
            asked(with_image(Building, failed(None), not_allowed()), 60),
            "failed",
            vec!["annotate", "set-build-status", "tell", "tell"],
            Some(Failed),
        ),
        (
            asked(with_image(Building, failed(None), no_access()), 60),
            "failed",
            vec!["annotate", "set-build-status", "tell", "tell"],
            Some(Failed),
        ),
        (
            with_image(Building, failed(None), present(Some("build-uid"))),
            "succeeded",
            vec!["annotate", "set-build-status", "tell", "tell"],
            Some(Succeeded),
        ),
        // however long ago it has ended, the first look is not the last
        (
            with_image(Building, complete(Some(report())), Answer::Absent),
            "unconfirmed",
            vec!["annotate", "annotate", "set-build-status"],
            Some(Building),
        ),
        (
            asked(
                with_image(Building, complete(Some(report())), Answer::Absent),
                59,
            ),
            "unconfirmed",
            vec!["annotate", "set-build-status"],
            Some(Building),
        ),
        (
            asked(
                with_image(Building, complete(Some(report())), Answer::Absent),
                60,
            ),
            "unconfirmed",
            vec!["annotate", "set-build-status", "tell"],
            Some(Failed),
        ),
        (
            asked(
                with_image(Building, complete(Some(report())), unknown()),
                60,
            ),
            "unconfirmed",
            vec!["annotate", "set-build-status"],
            Some(Building),
        ),
        (
            asked(
                with_image(Building, complete(Some(report())), no_access()),
                60,
            ),
            "unconfirmed",
            vec!["annotate", "set-build-status"],
            Some(Building),
        ),
        (
            asked(
                with_image(Building, complete(Some(report())), not_allowed()),
                60,
            ),
            "unconfirmed",
            vec!["annotate", "set-build-status"],
            Some(Building),
        ),
        (
            with_image(Building, complete(None), present(None)),
            "unconfirmed",
            vec!["annotate", "annotate", "set-build-status"],
            Some(Building),
        ),
        (
            with_image(Building, left(HEX), present(None)),
            "succeeded",
            vec!["annotate", "set-build-status", "tell", "tell"],
            Some(Succeeded),
        ),
        (
            with_image(Building, left(&HEX.replace("220a", "330b")), present(None)),
            "unconfirmed",
            vec!["annotate", "annotate", "set-build-status"],
            Some(Building),
        ),
        (
            with_image(Building, complete(None), present(Some("build-uid"))),
            "succeeded",
            vec!["annotate", "set-build-status", "tell", "tell"],
            Some(Succeeded),
        ),
        (
            with_image(Building, complete(Some(report())), present(None)),
            "succeeded",
            vec!["annotate", "annotate", "set-build-status", "tell", "tell"],
            Some(Succeeded),
        ),
        (
            with_image(Initial, complete(Some(report())), present(None)),
            "succeeded",
            vec!["annotate", "annotate", "set-build-status", "tell", "tell"],
            Some(Succeeded),
        ),
    ];
    let mut rules = BTreeSet::new();
    for (observed, rule, steps, phase) in rows {
        let plan = plan(&observed, now());
        assert_eq!(told(&plan), (rule, steps, phase), "{observed:#?}");
        rules.insert(rule);
    }
    rules.extend(refused(&seen(os_build()), "no", now()).map(|plan| plan.rule));
    assert_eq!(rules, documented_rules(include_str!("../plan.rs")));
}

#[test]
fn an_image_that_was_given_is_noted_before_it_could_go_with_its_build() {
    let mut os_build = build_in(Phase::Succeeded);
    os_build.metadata.finalizers = None;
    let observed = Observed {
        has_given_image: true,
        ..seen(os_build)
    };
    let noted = vec![(annotation::PRE_BUILT_IMAGE, Some(image()))];
    assert_eq!(
        plan(&observed, now()).steps,
        [Step::Annotate(noted), Step::AddFinalizer]
    );
}

#[test]
fn a_build_that_goes_without_our_finalizer_is_entered_as_its_annotation_asks() {
    for (keep, is_kept) in [(None, false), (Some(""), true), (Some("false"), false)] {
        let mut os_build = deleted(build_in(Phase::Succeeded), 0);
        os_build.metadata.finalizers = None;
        if let Some(keep) = keep {
            let annotations = os_build.annotations_mut();
            annotations.insert(annotation::KEEP_IMAGE.to_owned(), keep.to_owned());
        }
        let plan = plan(&seen(os_build), now());
        let [Step::Remember(entry)] = plan.steps.as_slice() else {
            panic!("{plan:?}");
        };
        assert_eq!(
            (entry.image.as_str(), entry.keep),
            (image().as_str(), is_kept)
        );
    }
}

#[test]
fn what_the_apiserver_refuses_is_said_once_on_a_build_that_has_not_begun() {
    let first = refused(&seen(os_build()), "exceeded quota", now()).unwrap();
    assert_eq!(
        told(&first),
        (
            "refused",
            vec!["set-build-status", "tell"],
            Some(Phase::Initial)
        )
    );
    let Some(Step::SetBuildStatus(status)) = first.steps.first() else {
        panic!("{first:?}");
    };
    let mut again = os_build();
    again.status = Some(status.as_ref().clone());
    let again = refused(&seen(again), "exceeded quota", now()).unwrap();
    assert_eq!(again.steps, []);
    for phase in [Phase::Prepared, Phase::Building, Phase::Succeeded] {
        assert_eq!(refused(&seen(build_in(phase)), "no", now()), None);
    }
}

#[test]
fn a_status_that_says_it_already_is_not_written_again() {
    let waiting = |os_build| Observed {
        preparation: Preparation::Waiting("secret push does not exist".to_owned()),
        ..seen(os_build)
    };
    let first = plan(&waiting(os_build()), now());
    let mut again = os_build();
    again.status = first.steps.iter().find_map(|step| match step {
        Step::SetBuildStatus(status) => Some(status.as_ref().clone()),
        _ => None,
    });
    let later = now() + SignedDuration::from_secs(30);
    let second = plan(&waiting(again), later);
    assert_eq!(second.steps, []);
    assert_eq!(second.requeue, Requeue::After(LOOK_AGAIN));
}

#[test]
fn a_pod_that_is_not_started_is_looked_at_again_sooner_than_one_that_runs() {
    let requeue = |starting| {
        let progress = Some("its node can't start its pod: no".to_owned());
        let observed = Observed {
            job: job(JobOutcome::Building { progress, starting }),
            ..seen(build_in(Phase::Building))
        };
        plan(&observed, now()).requeue
    };
    assert_eq!(requeue(Some(Box::default())), Requeue::After(LOOK_FOR_POD));
    assert_eq!(requeue(None), Requeue::After(LOOK_AGAIN));
}

#[test]
fn a_registry_that_is_asked_in_vain_is_noted_once_and_asked_again() {
    let mut observed = Observed {
        job: complete(Some(report())),
        image: Answer::Refused("403".to_owned()),
        ..seen(build_in(Phase::Building))
    };
    let first = plan(&observed, now());
    assert_eq!(first.requeue, Requeue::After(ASK_AGAIN));
    for step in first.steps {
        match step {
            Step::Annotate(changes) => {
                for (key, value) in changes {
                    let annotations = observed.os_build.annotations_mut();
                    annotations.insert(key.to_owned(), value.unwrap());
                }
            }
            Step::SetBuildStatus(status) => observed.os_build.status = Some(*status),
            other => panic!("{other:?}"),
        }
    }
    let later = now() + SignedDuration::from_secs(7200);
    let again = plan(&observed, later);
    assert_eq!((again.rule, again.steps), ("unconfirmed", Vec::new()));
    assert_eq!(again.requeue, Requeue::After(ASK_AGAIN));
    observed.image = Answer::Absent;
    let (rule, _, phase) = told(&plan(&observed, later));
    assert_eq!((rule, phase), ("unconfirmed", Some(Phase::Failed)));
}

#[test]
fn a_build_that_ends_within_its_first_second_ends_a_second_after_its_start() {
    let mut build = build_in(Phase::Building);
    build.status.get_or_insert_default().build_start = Some(Time(now()));
    let observed = Observed {
        job: complete(Some(report())),
        image: present(None),
        ..seen(build)
    };
    let plan = plan(&observed, now());
    let status = plan.steps.iter().find_map(|step| match step {
        Step::SetBuildStatus(status) => Some(status.as_ref()),
        _ => None,
    });
    let status = status.unwrap();
    assert_eq!(status.build_start, Some(Time(now())));
    assert_eq!(
        status.build_end,
        Some(Time(now() + SignedDuration::from_secs(1)))
    );
    assert_eq!(status.digested_image_push_spec, Some(image()));
}

#[test]
fn a_build_without_a_job_has_neither_start_nor_end_nor_builder() {
    let observed = Observed {
        preparation: Preparation::Invalid("Containerfile, line 2".to_owned()),
        ..seen(os_build())
    };
    let plan = plan(&observed, now());
    let Some(Step::SetBuildStatus(status)) = plan.steps.first() else {
        panic!("{plan:?}");
    };
    assert_eq!(
        (&status.build_start, &status.build_end, &status.builder),
        (&None, &None, &None)
    );
    assert_eq!(
        phase::detail(status.conditions.as_deref().unwrap()),
        Some("Containerfile, line 2")
    );
}

#[test]
fn a_reused_build_has_the_others_digest_and_neither_start_nor_end_nor_builder() {
    let observed = Observed {
        preparation: reusable(),
        ..seen(claiming(os_build()))
    };
    let plan = plan(&observed, now());
    let Some(Step::SetBuildStatus(status)) = plan.steps.first() else {
        panic!("{plan:?}");
    };
    let expected = MachineOSBuildStatus {
        conditions: status.conditions.clone(),
        digested_image_push_spec: Some(image()),
        ..MachineOSBuildStatus::default()
    };
    assert_eq!(**status, expected);
    assert_eq!(status.conditions.as_deref().map(<[_]>::len), Some(5));
}

#[test]
fn a_build_that_claimed_an_image_and_starts_after_all_gives_it_back() {
    let observed = Observed {
        preparation: Preparation::Ready(Box::new(prepared())),
        ..seen(claiming(os_build()))
    };
    let given_back = Step::Annotate(vec![(annotation::REUSED_IMAGE, None)]);
    assert_eq!(plan(&observed, now()).steps.first(), Some(&given_back));
}

#[test]
fn refused_credentials_are_told_by_the_secret_that_holds_them() {
    let os_build = build_in(Phase::Building);
    let after =
        "; then annotate the MachineOSConfig with machineconfiguration.openshift.io/rebuild";
    let push = "change Secret push, which MachineOSConfig worker names as spec.renderedImagePushSecret, to credentials that may push to, pull from and delete from it";
    let pull = "change the Secret that MachineOSConfig worker names as spec.baseImagePullSecret, or without one Secret global-pull-secret-copy, to credentials that may pull from it";
    let rows = [
        (os_build.spec.rendered_image_push_spec.clone(), push),
        ("registry.example.com/org/repo".to_owned(), push),
        (image(), push),
        ("registry.example.com/org/base:latest".to_owned(), pull),
        ("quay.io/org/repo:latest".to_owned(), pull),
    ];
    for (repository, change) in rows {
        assert_eq!(
            credentials_to_change(&os_build, &repository),
            Some(format!("{change}{after}")),
            "{repository}"
        );
    }
}
