use serde_json::{Value, json};

use super::*;

fn job(status: Value) -> Job {
    serde_json::from_value(json!({
        "metadata": {"name": "build-x"},
        "spec": {"activeDeadlineSeconds": 60, "template": {"spec": {"containers": []}}},
        "status": status,
    }))
    .unwrap()
}

fn ended(type_: &str, reason: &str) -> Value {
    json!({"failed": 1, "conditions": [{
        "type": type_, "status": "True", "reason": reason, "message": "of the Job",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }]})
}

fn pod(phase: &str, state: Value) -> Pod {
    serde_json::from_value(json!({
        "metadata": {"name": "p", "creationTimestamp": "2026-01-01T00:00:00Z"},
        "status": {"phase": phase, "containerStatuses": [{
            "name": CONTAINER, "image": "i", "imageID": "", "ready": false, "restartCount": 0, "state": state,
        }]},
    }))
    .unwrap()
}

fn failure(step: Value) -> String {
    json!({
        "version": 1, "tier": "userns", "phases": [],
        "outcome": {"result": "failed", "class": "content", "message": "the command failed", "step": step},
    })
    .to_string()
}

fn terminated(code: i32, reason: &str, message: &str) -> Value {
    json!({"terminated": {"exitCode": code, "reason": reason, "message": message}})
}

fn message(job: &Job, pods: &[Pod]) -> String {
    match outcome(job, pods) {
        JobOutcome::Failed { message, .. } => message,
        other => panic!("not failed: {other:?}"),
    }
}

#[test]
fn a_failed_step_is_told_with_its_output() {
    let step = failure(json!({
        "file": "Containerfile", "line": 3,
        "text": "RUN false", "exitStatus": 7, "output": ["one", "two"],
    }));
    let job = job(ended("Failed", "PodFailurePolicy"));
    assert_eq!(
        message(&job, &[pod("Failed", terminated(65, "Error", &step))]),
        "Containerfile, line 3: RUN false: the command failed (exit status 7)\none\ntwo"
    );
}

#[test]
fn every_other_end_has_its_own_words() {
    let evicted: Pod = serde_json::from_value(json!({
        "metadata": {"name": "p"},
        "status": {"phase": "Failed", "reason": "Evicted", "message": "ephemeral-storage is used up"},
    }))
    .unwrap();
    for (reason, pods, wanted) in [
        (
            "PodFailurePolicy",
            vec![pod("Failed", terminated(64, "Error", "unknown flag"))],
            "its pod ended with exit code 64 (Error) without a report\nunknown flag",
        ),
        (
            "BackoffLimitExceeded",
            vec![pod("Failed", terminated(137, "OOMKilled", ""))],
            "gave up after 1 attempts: its pod ran out of memory; raise the builder's memory limit",
        ),
        (
            "BackoffLimitExceeded",
            vec![evicted],
            "gave up after 1 attempts: the node ended its pod: Evicted: ephemeral-storage is used up",
        ),
        (
            "DeadlineExceeded",
            vec![pod(
                "Pending",
                json!({"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}),
            )],
            "the build was not done after 60 s; its pod: its pod waits: ImagePullBackOff: no such image",
        ),
        (
            "BackoffLimitExceeded",
            vec![],
            "BackoffLimitExceeded: of the Job",
        ),
    ] {
        assert_eq!(message(&job(ended("Failed", reason)), &pods), wanted);
    }
}

#[test]
fn a_complete_job_hands_back_the_report_of_the_pod_that_succeeded() {
    let digest = format!("sha256:{}", "a".repeat(64));
    let pushed = json!({
        "version": 1, "tier": "userns", "phases": [],
        "outcome": {"result": "pushed", "digest": digest, "sizeBytes": 1, "layers": 2, "sentBytes": 3},
    })
    .to_string();
    let pods = [
        pod("Succeeded", terminated(0, "Completed", &pushed)),
        pod("Failed", terminated(1, "Error", "")),
    ];
    match outcome(&job(ended("Complete", "")), &pods) {
        JobOutcome::Complete {
            report: Some(report),
        } => {
            assert_eq!(report.tier, "userns");
        }
        other => panic!("{other:?}"),
    }
    assert!(matches!(
        outcome(&job(ended("Complete", "")), &[]),
        JobOutcome::Complete { report: None }
    ));
}

#[test]
fn a_job_without_an_end_is_prepared_until_there_is_a_pod() {
    let waiting = json!({"waiting": {"reason": "ErrImagePull", "message": "not found"}});
    let creating = json!({"waiting": {"reason": "ContainerCreating"}});
    let building = |progress: Option<&str>| JobOutcome::Building {
        progress: progress.map(str::to_owned),
        starting: None,
    };
    let starting = pod("Pending", creating);
    for (status, pods, wanted) in [
        (json!({}), vec![], JobOutcome::Prepared { waiting: None }),
        (json!({"active": 1}), vec![], building(None)),
        (
            json!({"active": 1}),
            vec![pod("Running", json!({"running": {}}))],
            building(None),
        ),
        (
            json!({"active": 1}),
            vec![starting.clone()],
            JobOutcome::Building {
                progress: None,
                starting: Some(Box::new(starting)),
            },
        ),
        (
            json!({"active": 1}),
            vec![pod("Pending", waiting)],
            building(Some("its pod waits: ErrImagePull: not found")),
        ),
        (
            json!({"failed": 2}),
            vec![pod("Failed", terminated(75, "Error", ""))],
            building(Some(
                "failed attempts: 2; the last one: its pod ended with exit code 75 (Error) without a report",
            )),
        ),
    ] {
        assert_eq!(outcome(&job(status), &pods), wanted);
    }
}

#[test]
fn a_pod_that_has_pushed_is_enough_before_the_job_says_so_and_when_it_says_that_it_failed() {
    let digest = format!("sha256:{}", "0".repeat(64));
    let report = json!({
        "version": 1, "tier": "userns", "phases": [],
        "outcome": {"result": "pushed", "digest": digest, "sizeBytes": 1, "layers": 1, "sentBytes": 1},
    })
    .to_string();
    let pushed = pod("Running", terminated(0, "Completed", &report));
    let killed = pod("Failed", terminated(137, "Error", &report));
    for status in [
        json!({"active": 1}),
        ended("Complete", ""),
        ended("Failed", "DeadlineExceeded"),
        ended("FailureTarget", "DeadlineExceeded"),
        json!({"failed": 7}),
    ] {
        for pod in [&pushed, &killed] {
            let outcome = outcome(&job(status.clone()), std::slice::from_ref(pod));
            assert!(
                matches!(&outcome, JobOutcome::Complete { report: Some(report) } if report.pushed().is_some()),
                "{status}: {outcome:?}"
            );
        }
    }
    let failed = pod("Running", terminated(65, "Error", &failure(Value::Null)));
    assert!(matches!(
        outcome(&job(json!({"active": 1})), &[failed]),
        JobOutcome::Building { .. }
    ));
}

#[test]
fn a_job_without_conditions_is_told_by_its_counts() {
    let broken = || vec![pod("Failed", terminated(75, "Error", ""))];
    let gave_up =
        "gave up after 4 attempts: its pod ended with exit code 75 (Error) without a report";
    let failed = |message: &str| {
        Some(JobOutcome::Failed {
            message: message.to_owned(),
            report: None,
        })
    };
    let complete = || Some(JobOutcome::Complete { report: None });
    for (status, pods, wanted) in [
        (json!({"succeeded": 1}), vec![], complete()),
        (json!({"succeeded": 1, "failed": 4}), vec![], complete()),
        (json!({"failed": 4}), broken(), failed(gave_up)),
        (
            json!({"failed": 4}),
            vec![],
            failed("BackoffLimitExceeded: its Job gives no reason"),
        ),
        (json!({"failed": 4, "active": 1}), broken(), None),
        (json!({"failed": 3}), broken(), None),
    ] {
        let mut job = job(status.clone());
        job.spec.get_or_insert_default().backoff_limit = Some(3);
        let outcome = outcome(&job, &pods);
        match wanted {
            Some(wanted) => assert_eq!(outcome, wanted, "{status}"),
            None => assert!(matches!(outcome, JobOutcome::Building { .. }), "{status}"),
        }
    }
    // by the API's default six are replaced
    assert!(matches!(
        outcome(&job(json!({"failed": 6})), &broken()),
        JobOutcome::Building { .. }
    ));
}
