//! What does the status of a MachineOSBuild say of a phase? Computed whole, compared before it is written.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt as _;
use strata_builder::reference::Reference;

use crate::api::machine_os_build::{BuilderReference, MachineOSBuildStatus};
use crate::api::{self, MachineOSBuild, ObjectReference, annotation, condition, name};
use crate::os_build::observe::{JobState, Observed};
use crate::phase::Phase;
use crate::plan::Step;

/// A step that makes the status say it, unless it does.
pub(super) fn say(
    observed: &Observed,
    phase: Phase,
    detail: Option<&str>,
    now: Timestamp,
) -> Vec<Step> {
    let status = written(observed, phase, detail, now);
    if observed.os_build.status.as_ref() == Some(&status) {
        return Vec::new();
    }
    vec![Step::SetBuildStatus(Box::new(status))]
}

/// The whole status in `phase`. Start and end are written once; one that never had a Job has neither.
pub(super) fn written(
    observed: &Observed,
    phase: Phase,
    detail: Option<&str>,
    now: Timestamp,
) -> MachineOSBuildStatus {
    let os_build = &observed.os_build;
    let mut status = os_build.status.clone().unwrap_or_default();
    phase.write(status.conditions.get_or_insert_default(), detail, now);
    let job_created = match &observed.job {
        JobState::Present(job) => job.created,
        JobState::Absent | JobState::Foreign => None,
    };
    let has_begun = job_created.is_some() || matches!(phase, Phase::Prepared | Phase::Building);
    if has_begun {
        let start = job_created.unwrap_or(now).min(now);
        status
            .build_start
            .get_or_insert(Time(condition::whole_second(start)));
        status.builder = Some(BuilderReference {
            image_builder_type: "Job".to_owned(),
            job: Some(ObjectReference {
                group: "batch".to_owned(),
                resource: "jobs".to_owned(),
                namespace: Some(observed.namespace.clone()),
                name: name::job(&os_build.name_any()),
            }),
        });
    }
    if phase.is_terminal()
        && let Some(start) = &status.build_start
    {
        let end = condition::whole_second(now).max(after(start.0));
        status.build_end.get_or_insert(Time(end));
    }
    status
}

/// The API wants an end after the start, in whole seconds.
pub(super) fn after(start: Timestamp) -> Timestamp {
    start
        .checked_add(SignedDuration::from_secs(1))
        .unwrap_or(start)
}

/// What to do about a registry that refused the builder's credentials for `repository`.
pub(super) fn credentials_to_change(os_build: &MachineOSBuild, repository: &str) -> Option<String> {
    let spec = &os_build.spec;
    let os_config = &spec.machine_os_config.name;
    let of = |reference: &str| Some(reference.parse::<Reference>().ok()?.repository);
    let secret = os_build.annotations().get(annotation::PUSH_SECRET)?;
    let (change, right) = if of(repository) == of(&spec.rendered_image_push_spec) {
        let change = format!(
            "Secret {secret}, which MachineOSConfig {os_config} names as spec.renderedImagePushSecret,"
        );
        (change, "push to, pull from and delete from")
    } else {
        let change = format!(
            "the Secret that MachineOSConfig {os_config} names as spec.baseImagePullSecret, or without one Secret {},",
            api::DEFAULT_PULL_SECRET
        );
        (change, "pull from")
    };
    Some(format!(
        "change {change} to credentials that may {right} it; then annotate the MachineOSConfig with {}",
        annotation::REBUILD
    ))
}
