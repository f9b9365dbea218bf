//! What shall be done for a MachineOSBuild? Pure.
//!
//! Rules are tried in order; the first that matches makes the plan. A status is written only where it says something
//! new, and never once a build has ended.
//!
//! | rule | observed | steps | phase afterwards |
//! | --- | --- | --- | --- |
//! | deleting-job | deleted, its Job is there | Remember (without a finalizer), DeleteJob | unchanged |
//! | deleting-pod | deleted, its Job is gone, but not its pod | – | unchanged |
//! | deleting-done | deleted; no image, a seeded one, or our part done | Remember (without a finalizer), DeleteImage (what is left of it, a note of steps), RemoveFinalizer | – |
//! | deleting-kept | deleted, an administrator wants its image to stay | Remember, Tell, RemoveFinalizer | – |
//! | deleting-retain | deleted, something needs its image, or its registry has failed for long | Remember, Tell, RemoveFinalizer | – |
//! | deleting-image | deleted, nothing does | DeleteImage, RemoveFinalizer | – |
//! | deleting-waiting | deleted, the registry can't be asked for now | – | – |
//! | deleting-refused | deleted, nobody can ask it | Remember, Tell, RemoveFinalizer | – |
//! | guard | a config controls it, no finalizer | Annotate (that its image was given), AddFinalizer | unchanged |
//! | cleanup | ended, objects are left that it no longer needs | delete them | unchanged, for ever |
//! | settled | ended | – | unchanged, for ever |
//! | orphaned | not ended, no config controls it | – | unchanged |
//! | superseded | the config wants another build | Annotate (by which), DeleteJob, SetBuildStatus, Tell | Interrupted |
//! | seeded | stands for a pre-built image, its own or its config's annotation names it | Annotate (which), SetBuildStatus | Succeeded |
//! | seeded | the same, and neither does | SetBuildStatus, Tell | Initial |
//! | invalid | what it is made from can't be built | SetBuildStatus, Tell | Failed |
//! | claim | an earlier build has the image that it would make | Annotate | Initial |
//! | reuse | the same, and that image is kept for it | SetBuildStatus, Tell | Succeeded |
//! | unanswered | the same, but the registry can't be asked for that image now | SetBuildStatus, Tell | Initial |
//! | queued | as many builds run as may | SetBuildStatus, Tell | Initial |
//! | blocked | its pool isn't well | SetBuildStatus, Tell | Initial |
//! | waiting | something is missing | SetBuildStatus, Tell | Initial |
//! | refused | the apiserver refused what `start` makes, or an object with another owner is in its way | SetBuildStatus, Tell | Initial |
//! | start | all is there | Remember (an image that would lose its tag), Annotate, CreateObjects, SetBuildStatus, Tell | Prepared |
//! | running | its Job hasn't ended | SetBuildStatus | Prepared or Building |
//! | vanished | its Job is gone, the registry has no image of it, or hasn't let us look for long | SetBuildStatus, Tell | Interrupted |
//! | failed | its Job failed, the same | SetBuildStatus, Tell | Failed |
//! | unconfirmed | its Job has ended or is gone, the registry doesn't tell an image of it | Annotate (since when), SetBuildStatus | Building, then Failed if it says for long that there is none |
//! | succeeded | the registry has its image | Annotate, SetBuildStatus, Tell | Succeeded |

mod deletion;
mod status;

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt as _;
use strata_builder::contract::{BuildReport, Outcome};
use strata_builder::digest::Digest;
use strata_builder::reference::Reference;

use self::status::{after, credentials_to_change, say, written};
use super::observe::{JobSeen, JobState, Observed};
use super::prepare::{Preparation, Prepared, Reusable};
use crate::api::condition;
use crate::api::{self, MachineOSBuild, annotation, label, name};
use crate::events::{Notice, Reason};
use crate::job::JobOutcome;
use crate::phase::{self, Phase};
use crate::plan::{Plan, Step};
use crate::registries::Answer;

/// A registry may serve a manifest some moments after it took it; a minute is far beyond that. It begins at the first look in vain, since nobody
/// may have looked before.
pub(crate) const CONFIRMATION_LIMIT: SignedDuration = SignedDuration::from_secs(60);

/// Until the next look at a registry that didn't answer as wanted.
const ASK_AGAIN: Duration = Duration::from_secs(2);

/// Until the next look at what keeps a build from starting, besides at every change: not everything is watched.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// Until the next look at a Job that has no pod, or at a pod that is not started, besides at every change.
const LOOK_FOR_POD: Duration = Duration::from_secs(5);

/// The plan for what was observed at `now`.
#[must_use]
pub fn plan(observed: &Observed, now: Timestamp) -> Plan {
    let os_build = &observed.os_build;
    if let Some(since) = &os_build.metadata.deletion_timestamp {
        return deletion::deleting(observed, now, now.duration_since(since.0));
    }
    // the incumbent's builds have none; an image that no config asked for is not ours to delete
    if observed.is_controlled && !api::is_guarded(os_build) {
        return guard(observed);
    }
    let phase = Phase::of_build(os_build);
    if phase.is_terminal() {
        return ended(observed, phase);
    }
    let Some(wanted) = &observed.wanted else {
        return unwanted(observed, now);
    };
    if *wanted != os_build.name_any() {
        return superseded(observed, wanted, now);
    }
    if os_build.labels().contains_key(label::PRE_BUILT_IMAGE) {
        return seeded(observed, now);
    }
    following(observed, now)
}

/// The plan when the apiserver has refused what [`plan`] would make, or something is in its way: a build that could not begin says why.
#[must_use]
pub fn refused(observed: &Observed, why: &str, now: Timestamp) -> Option<Plan> {
    let os_build = &observed.os_build;
    let begins = os_build.metadata.deletion_timestamp.is_none()
        && Phase::of_build(os_build) == Phase::Initial;
    begins.then(|| waiting(observed, "refused", why, now))
}

/// It isn't known which build is wanted: what runs goes on, nothing is begun.
fn unwanted(observed: &Observed, now: Timestamp) -> Plan {
    match observed.job {
        JobState::Present(_) => following(observed, now),
        JobState::Absent | JobState::Foreign => Plan::new("orphaned", Vec::new()),
    }
}

fn following(observed: &Observed, now: Timestamp) -> Plan {
    let os_build = &observed.os_build;
    match (&observed.job, Phase::of_build(os_build)) {
        (JobState::Present(job), _) => job_seen(observed, job, now),
        (JobState::Absent, Phase::Prepared | Phase::Building) => vanished(observed, now),
        (JobState::Absent, _) => not_begun(observed, now),
        (JobState::Foreign, _) => waiting(
            observed,
            "waiting",
            &format!(
                "Job {} of an earlier build has not gone yet",
                name::job(&os_build.name_any())
            ),
            now,
        ),
    }
}

// --- ended

fn ended(observed: &Observed, phase: Phase) -> Plan {
    let mut steps = Vec::new();
    // a failed Job and its ConfigMaps stay for a look at them; credentials never do
    if phase != Phase::Failed {
        if let JobState::Present(job) = &observed.job
            && !job.is_going
        {
            steps.push(Step::DeleteJob(job.target.clone()));
        }
        steps.extend(
            observed
                .config_maps
                .iter()
                .cloned()
                .map(Step::DeleteConfigMap),
        );
    }
    steps.extend(observed.secrets.iter().cloned().map(Step::DeleteSecret));
    let rule = if steps.is_empty() {
        "settled"
    } else {
        "cleanup"
    };
    Plan::new(rule, steps)
}

fn superseded(observed: &Observed, wanted: &str, now: Timestamp) -> Plan {
    // first, so that a build whose Job is gone when it is wanted again is known to be one to restart
    let mut steps = annotate(
        &observed.os_build,
        &[(annotation::SUPERSEDED_BY, Some(wanted))],
    );
    if let JobState::Present(job) = &observed.job
        && !job.is_going
    {
        steps.push(Step::DeleteJob(job.target.clone()));
    }
    let detail = format!("superseded by MachineOSBuild {wanted}");
    steps.extend(say(observed, Phase::Interrupted, Some(&detail), now));
    steps.push(Step::Tell(Notice::new(Reason::BuildInterrupted, detail)));
    Plan::new("superseded", steps)
}

fn guard(observed: &Observed) -> Plan {
    let os_build = &observed.os_build;
    let given = recorded(os_build).filter(|_| observed.has_given_image);
    let given = given.map(|image| image.to_string());
    // in one with the finalizer: from then on the image would go with the build
    let mut steps = given.map_or_else(Vec::new, |image| {
        annotate(os_build, &[(annotation::PRE_BUILT_IMAGE, Some(&image))])
    });
    steps.push(Step::AddFinalizer);
    Plan::new("guard", steps)
}

fn seeded(observed: &Observed, now: Timestamp) -> Plan {
    let os_build = &observed.os_build;
    let is_digested = |image: &&String| {
        let image = image.parse::<Reference>();
        image.is_ok_and(|image| image.digest.is_some())
    };
    // the incumbent, which writes label and status in two steps, may have been stopped between them; it notes the image on the config alone
    let own = os_build.annotations().get(annotation::PRE_BUILT_IMAGE);
    let Some(image) = own.into_iter().chain(&observed.seed).find(is_digested) else {
        let what = format!(
            "it stands for a pre-built image, which nothing names: annotate MachineOSConfig {} with {}=REPOSITORY@sha256:…, or delete this MachineOSBuild to have one built",
            os_build.spec.machine_os_config.name,
            annotation::PRE_BUILT_IMAGE
        );
        return waiting(observed, "seeded", &what, now);
    };
    let mut steps = annotate(os_build, &[(annotation::PRE_BUILT_IMAGE, Some(image))]);
    let mut status = os_build.status.clone().unwrap_or_default();
    phase::write_seeded(status.conditions.get_or_insert_default(), image, now);
    let start = condition::whole_second(now);
    status.build_start = Some(Time(start));
    status.build_end = Some(Time(after(start)));
    status.digested_image_push_spec = Some(image.clone());
    steps.push(Step::SetBuildStatus(Box::new(status)));
    Plan::new("seeded", steps)
}

// --- before the Job

fn not_begun(observed: &Observed, now: Timestamp) -> Plan {
    match &observed.preparation {
        Preparation::NotAsked => Plan::new("waiting", Vec::new()).again_after(LOOK_AGAIN),
        Preparation::Invalid(why) => {
            let mut steps = say(observed, Phase::Failed, Some(why), now);
            steps.push(Step::Tell(Notice::new(Reason::BuildFailed, why)));
            Plan::new("invalid", steps)
        }
        Preparation::Reusable(reusable) => reuse(observed, reusable, now),
        Preparation::Unanswered(why) => {
            waiting(observed, "unanswered", why, now).again_after(ASK_AGAIN)
        }
        Preparation::Queued(why) => queued(observed, why, now),
        Preparation::Blocked(why) => waiting(observed, "blocked", why, now),
        Preparation::Waiting(what) => waiting(observed, "waiting", what, now),
        Preparation::Ready(prepared) => start(observed, prepared, now),
    }
}

fn waiting(observed: &Observed, rule: &'static str, what: &str, now: Timestamp) -> Plan {
    let mut steps = say(observed, Phase::Initial, Some(what), now);
    if !steps.is_empty() {
        steps.push(Step::Tell(Notice::new(Reason::Waiting, what)));
    }
    Plan::new(rule, steps).again_after(LOOK_AGAIN)
}

fn queued(observed: &Observed, why: &str, now: Timestamp) -> Plan {
    let mut steps = say(observed, Phase::Initial, Some(why), now);
    if !steps.is_empty() {
        steps.push(tell(Reason::Queued, why));
    }
    Plan::new("queued", steps).again_after(LOOK_AGAIN)
}

/// Claims the image first: whoever deletes the other build afterwards keeps it. The pass after that has seen the other build there.
fn reuse(observed: &Observed, reusable: &Reusable, now: Timestamp) -> Plan {
    let Reusable {
        content_key,
        candidate,
    } = reusable;
    let os_build = &observed.os_build;
    let image = candidate.image.to_string();
    let pre_built = candidate.is_pre_built.then_some(image.as_str());
    let claim = annotate(
        os_build,
        &[
            (annotation::CONTENT_KEY, Some(content_key.as_str())),
            (annotation::REUSED_IMAGE, Some(&image)),
            (annotation::PRE_BUILT_IMAGE, pre_built),
        ],
    );
    if !claim.is_empty() {
        return Plan::new("claim", claim);
    }
    let mut status = written(observed, Phase::Succeeded, None, now);
    let told = format!(
        "MachineOSBuild {} has the same content, so its image {image} is used again",
        candidate.os_build
    );
    status.digested_image_push_spec = Some(image);
    let steps = vec![
        Step::SetBuildStatus(Box::new(status)),
        Step::Tell(Notice::new(Reason::ImageReused, told)),
    ];
    Plan::new("reuse", steps)
}

fn start(observed: &Observed, prepared: &Prepared, now: Timestamp) -> Plan {
    let Prepared {
        objects,
        content_key,
        displaced,
    } = prepared;
    // it loses its tag, and could not be found any more
    let mut steps = Vec::from_iter(displaced.clone().map(Step::Remember));
    steps.extend(annotate(
        &observed.os_build,
        &[
            (annotation::CONTENT_KEY, Some(content_key.as_str())),
            // the image that it was to take may be gone
            (annotation::REUSED_IMAGE, None),
            (annotation::PRE_BUILT_IMAGE, None),
        ],
    ));
    steps.push(Step::CreateObjects(Box::new(objects.clone())));
    steps.extend(say(observed, Phase::Prepared, None, now));
    let job = name::job(&observed.os_build.name_any());
    steps.extend([
        tell(Reason::BuildStarted, "the build was taken up"),
        tell(
            Reason::BuildPreparing,
            "its ConfigMaps, Secrets and Job were made",
        ),
        tell(Reason::JobCreated, format!("Job {job} was created")),
    ]);
    Plan::new("start", steps)
}

// --- with the Job

fn job_seen(observed: &Observed, job: &JobSeen, now: Timestamp) -> Plan {
    let mut steps = annotate(
        &observed.os_build,
        &[(annotation::JOB_UID, Some(job.target.uid.as_str()))],
    );
    let plan = match &job.outcome {
        None => Plan::new("running", Vec::new()),
        Some(_) if job.is_going => Plan::new("running", Vec::new()),
        Some(JobOutcome::Prepared { waiting }) => {
            // a Job between two pods isn't back at its beginning
            let phase = match Phase::of_build(&observed.os_build) {
                Phase::Building => Phase::Building,
                _ => Phase::Prepared,
            };
            let steps = say(observed, phase, waiting.as_deref(), now);
            // no watch tells why its pod isn't made
            Plan::new("running", steps).again_after(LOOK_FOR_POD)
        }
        Some(JobOutcome::Building { progress, starting }) => {
            let mut steps = say(observed, Phase::Building, progress.as_deref(), now);
            if Phase::of_build(&observed.os_build) != Phase::Building {
                steps.extend([
                    tell(Reason::BuildBuilding, "the build's pod was created"),
                    tell(Reason::JobStarted, "the Job has a pod"),
                ]);
            }
            let plan = Plan::new("running", steps);
            match starting {
                // no watch tells why its node doesn't start it
                Some(_) => plan.again_after(LOOK_FOR_POD),
                // should the event of its end be lost
                None => plan.again_after(LOOK_AGAIN),
            }
        }
        Some(JobOutcome::Complete { report }) => complete(observed, report.as_ref(), now),
        Some(JobOutcome::Failed { message, report }) => {
            failed(observed, message, report.as_ref(), now)
        }
    };
    steps.extend(plan.steps);
    Plan { steps, ..plan }
}

fn failed(
    observed: &Observed,
    message: &str,
    report: Option<&BuildReport>,
    now: Timestamp,
) -> Plan {
    if report.is_none() {
        // its pod was lost after the push
        if let Some(digest) = confirmed(observed) {
            return succeeded(observed, digest, None, now);
        }
        if let Some(why) = untold(observed, now) {
            let detail = format!("its Job failed, whether after the push isn't known: {why}");
            return unconfirmed(observed, &detail, now);
        }
    }
    let remedy = report.and_then(|report| {
        let Outcome::Failed(failure) = &report.outcome else {
            return None;
        };
        credentials_to_change(&observed.os_build, failure.refused_by.as_deref()?)
    });
    let message = match remedy {
        Some(remedy) => format!("{message}\n{remedy}"),
        None => message.to_owned(),
    };
    let mut plan = fail(observed, "failed", &message, now);
    plan.steps
        .push(tell(Reason::JobFailed, "the Job made no image"));
    plan
}

fn complete(observed: &Observed, report: Option<&BuildReport>, now: Timestamp) -> Plan {
    if let Some(digest) = confirmed(observed) {
        return succeeded(observed, digest, report, now);
    }
    let (why, is_known) = match &observed.image {
        // a registry or a secret that comes back, or a right, may still confirm it
        Answer::NoAccess(why) | Answer::Refused(why) | Answer::Unknown(why) => (why.clone(), false),
        Answer::Present { .. } => (
            format!(
                "{} in the registry is an image of another build",
                observed.os_build.spec.rendered_image_push_spec
            ),
            true,
        ),
        Answer::Absent | Answer::NotAsked => (
            format!("the registry has no {}", image_name(&observed.os_build)),
            true,
        ),
    };
    if is_known && is_overdue(&observed.os_build, now) {
        let message = format!("its image was pushed, but can't be confirmed: {why}");
        return fail(observed, "unconfirmed", &message, now);
    }
    unconfirmed(observed, &format!("pushed, not confirmed yet: {why}"), now)
}

/// Says what isn't known, notes since when, and looks again.
fn unconfirmed(observed: &Observed, detail: &str, now: Timestamp) -> Plan {
    let os_build = &observed.os_build;
    let mut steps = Vec::new();
    if unconfirmed_since(os_build).is_none() {
        let since = condition::whole_second(now).to_string();
        steps = annotate(os_build, &[(annotation::UNCONFIRMED_SINCE, Some(&since))]);
    }
    steps.extend(say(observed, Phase::Building, Some(detail), now));
    Plan::new("unconfirmed", steps).again_after(ASK_AGAIN)
}

fn unconfirmed_since(os_build: &MachineOSBuild) -> Option<Timestamp> {
    let noted = os_build.annotations().get(annotation::UNCONFIRMED_SINCE)?;
    noted.parse().ok()
}

/// Whether the registry has been looked at in vain for long.
fn is_overdue(os_build: &MachineOSBuild, now: Timestamp) -> bool {
    unconfirmed_since(os_build).is_some_and(|since| now.duration_since(since) >= CONFIRMATION_LIMIT)
}

/// Why it can't be told yet whether a build whose Job says nothing of it has pushed.
fn untold(observed: &Observed, now: Timestamp) -> Option<&str> {
    match &observed.image {
        Answer::Unknown(why) => Some(why),
        Answer::NoAccess(why) | Answer::Refused(why) => {
            (!is_overdue(&observed.os_build, now)).then_some(why)
        }
        Answer::NotAsked | Answer::Absent | Answer::Present { .. } => None,
    }
}

/// The digest of this build's image, if the registry has it. By digest it was asked for what the builder reported; by tag the build's UID counts, or
/// that the incumbent's pod left the same digest.
fn confirmed(observed: &Observed) -> Option<Digest> {
    let Answer::Present { digest, build_uid } = &observed.image else {
        return None;
    };
    let reported = match &observed.job {
        JobState::Present(job) => match &job.outcome {
            Some(JobOutcome::Complete { report, .. }) => {
                report.as_ref().map_or(job.left_digest, BuildReport::pushed)
            }
            _ => None,
        },
        JobState::Absent | JobState::Foreign => None,
    };
    let ours = build_uid.is_some() && *build_uid == observed.os_build.uid();
    (reported == Some(*digest) || ours).then_some(*digest)
}

fn vanished(observed: &Observed, now: Timestamp) -> Plan {
    if let Some(digest) = confirmed(observed) {
        return succeeded(observed, digest, None, now);
    }
    let job = name::job(&observed.os_build.name_any());
    if let Some(why) = untold(observed, now) {
        let detail = format!("Job {job} is gone, whether after its push isn't known: {why}");
        return unconfirmed(observed, &detail, now);
    }
    let detail = format!(
        "Job {job} was deleted; the annotation {} on the MachineOSConfig builds again",
        annotation::REBUILD
    );
    let mut steps = say(observed, Phase::Interrupted, Some(&detail), now);
    steps.extend([
        tell(Reason::JobDeleted, "the Job was deleted before its end"),
        tell(Reason::BuildInterrupted, detail),
    ]);
    Plan::new("vanished", steps)
}

fn fail(observed: &Observed, rule: &'static str, message: &str, now: Timestamp) -> Plan {
    let mut steps = say(observed, Phase::Failed, Some(message), now);
    steps.push(Step::Tell(Notice::new(Reason::BuildFailed, message)));
    Plan::new(rule, steps)
}

fn succeeded(
    observed: &Observed,
    digest: Digest,
    report: Option<&BuildReport>,
    now: Timestamp,
) -> Plan {
    let os_build = &observed.os_build;
    let Some(image) = pushed(os_build, digest) else {
        // it could not have been asked for
        return Plan::new("succeeded", Vec::new());
    };
    let mut steps = report.map_or_else(Vec::new, |report| {
        let size = match &report.outcome {
            Outcome::Pushed { size_bytes, .. } => Some(size_bytes.to_string()),
            Outcome::Failed(_) => None,
        };
        let told = [
            (annotation::TIER, Some(report.tier.as_str())),
            (annotation::IMAGE_BYTES, size.as_deref()),
        ];
        annotate(os_build, &told)
    });
    let mut status = written(observed, Phase::Succeeded, None, now);
    status.digested_image_push_spec = Some(image.to_string());
    steps.push(Step::SetBuildStatus(Box::new(status)));
    if let JobState::Present(_) = observed.job {
        steps.push(tell(Reason::JobCompleted, "the Job has made its image"));
    }
    steps.push(tell(Reason::BuildCompleted, format!("built {image}")));
    Plan::new("succeeded", steps)
}

fn tell(reason: Reason, message: impl Into<String>) -> Step {
    Step::Tell(Notice::new(reason, message))
}

// --- image

/// Its repository with this digest.
pub(super) fn pushed(os_build: &MachineOSBuild, digest: Digest) -> Option<Reference> {
    let push: Reference = os_build.spec.rendered_image_push_spec.parse().ok()?;
    Some(push.repository.digested(digest))
}

/// What the status names.
fn recorded(os_build: &MachineOSBuild) -> Option<Reference> {
    let status = os_build.status.as_ref()?;
    status.digested_image_push_spec.as_deref()?.parse().ok()
}

fn image_name(os_build: &MachineOSBuild) -> String {
    recorded(os_build).map_or_else(
        || os_build.spec.rendered_image_push_spec.clone(),
        |image| image.to_string(),
    )
}

fn annotate(os_build: &MachineOSBuild, wanted: &[(&'static str, Option<&str>)]) -> Vec<Step> {
    let there = os_build.annotations();
    let changes: Vec<_> = wanted
        .iter()
        .filter(|(key, value)| there.get(*key).map(String::as_str) != *value)
        .map(|(key, value)| (*key, value.map(str::to_owned)))
        .collect();
    if changes.is_empty() {
        Vec::new()
    } else {
        vec![Step::Annotate(changes)]
    }
}

#[cfg(test)]
mod tests;
