//! How does a Job stand? Job and pods in, one answer out; pure.
//!
//! The first that holds decides.
//!
//! | seen | outcome |
//! | --- | --- |
//! | a pod reports a push | Complete, whatever the Job says of it: the registry is asked for that digest |
//! | condition Failed or FailureTarget | Failed |
//! | condition Complete or SuccessCriteriaMet | Complete |
//! | no such condition, a pod counted as succeeded | Complete |
//! | no such condition, more counted as failed than are replaced, none active | Failed |
//! | nothing counted and no pod | Prepared |
//! | anything else | Building |

use k8s_openapi::api::batch::v1::{Job, JobCondition};
use k8s_openapi::api::core::v1::{ContainerState, ContainerStateTerminated, Pod};
use kube::ResourceExt as _;
use strata_builder::contract::{BuildReport, FailedStep, Failure, Outcome, REPORT_VERSION};

use super::CONTAINER;

/// The reason of a Job whose pods have failed too often.
const GAVE_UP: &str = "BackoffLimitExceeded";

/// Failed pods that a Job replaces if it says nothing of it: the API's default.
const DEFAULT_BACKOFF_LIMIT: i32 = 6;

/// How a Job stands.
#[derive(Clone, Debug, PartialEq)]
pub enum JobOutcome {
    /// No pod has been made.
    Prepared {
        /// Why not, if that is known.
        waiting: Option<String>,
    },
    /// A pod is there, or the Job is between two.
    Building {
        /// What it waits for, or how often it has failed.
        progress: Option<String>,
        /// The pod that its node has not started yet; why not, only events tell.
        starting: Option<Box<Pod>>,
    },
    /// A pod has ended well, or has pushed before it was ended; the Job may not have noticed, or have failed all the same.
    Complete {
        /// What the builder says; absent if the pod is gone.
        report: Option<BuildReport>,
    },
    /// There will be no further pod.
    Failed {
        /// Why, for the administrator: the step with its output, or what ended the pod.
        message: String,
        /// What the builder says; absent if it couldn't say anything.
        report: Option<BuildReport>,
    },
}

/// What a Job says of its failure.
struct Cause {
    reason: String,
    message: Option<String>,
}

/// How `job` stands, given the pods that it owns.
#[must_use]
pub fn outcome(job: &Job, pods: &[Pod]) -> JobOutcome {
    let newest = pods.iter().max_by_key(|pod| {
        let created = pod.creation_timestamp().map(|time| time.0);
        (created, pod.name_any())
    });
    // The Job says so a second or two after its pod, or that it took too long; a pushed digest is confirmed with the registry anyway.
    let mut reports = pods.iter().filter_map(report);
    if let Some(report) = reports.find(|report| report.pushed().is_some()) {
        return JobOutcome::Complete {
            report: Some(report),
        };
    }
    let status = job.status.clone().unwrap_or_default();
    let (active, failed) = (
        status.active.unwrap_or_default(),
        status.failed.unwrap_or_default(),
    );
    let replaced = job.spec.as_ref().and_then(|spec| spec.backoff_limit);
    let ended_by = |condition: &JobCondition| Cause {
        reason: condition.reason.clone().unwrap_or_default(),
        message: condition.message.clone(),
    };
    let cause = match holds(job, &["Failed", "FailureTarget"]) {
        Some(condition) => Some(ended_by(condition)),
        None if holds(job, &["Complete", "SuccessCriteriaMet"]).is_some()
            || status.succeeded.unwrap_or_default() > 0 =>
        {
            let succeeded = pods.iter().find(|pod| phase(pod) == Some("Succeeded"));
            return JobOutcome::Complete {
                report: succeeded.or(newest).and_then(report),
            };
        }
        None => {
            (active == 0 && failed > replaced.unwrap_or(DEFAULT_BACKOFF_LIMIT)).then(|| Cause {
                reason: GAVE_UP.to_owned(),
                message: None,
            })
        }
    };
    if let Some(cause) = cause {
        return JobOutcome::Failed {
            message: why(job, &cause, newest),
            report: newest.and_then(report),
        };
    }
    if active == 0 && failed == 0 && newest.is_none() {
        let suspended = job.spec.as_ref().and_then(|spec| spec.suspend) == Some(true);
        return JobOutcome::Prepared {
            waiting: suspended.then(|| "its Job is suspended".to_owned()),
        };
    }
    JobOutcome::Building {
        starting: newest.filter(|pod| is_starting(pod)).cloned().map(Box::new),
        progress: newest.and_then(waiting).or_else(|| {
            let last = newest.and_then(end_of);
            (failed > 0).then(|| match last {
                Some(last) => format!("failed attempts: {failed}; the last one: {last}"),
                None => format!("failed attempts: {failed}"),
            })
        }),
    }
}

fn holds<'a>(job: &'a Job, types: &[&str]) -> Option<&'a JobCondition> {
    let conditions = job.status.as_ref()?.conditions.as_deref()?;
    types.iter().find_map(|type_| {
        conditions
            .iter()
            .find(|condition| condition.type_ == *type_ && condition.status == "True")
    })
}

fn phase(pod: &Pod) -> Option<&str> {
    pod.status.as_ref()?.phase.as_deref()
}

fn state(pod: &Pod) -> Option<&ContainerState> {
    let statuses = pod.status.as_ref()?.container_statuses.as_deref()?;
    statuses
        .iter()
        .find(|status| status.name == CONTAINER)?
        .state
        .as_ref()
}

fn terminated(pod: &Pod) -> Option<&ContainerStateTerminated> {
    state(pod)?.terminated.as_ref()
}

/// The builder's own words, if it came to write them.
fn report(pod: &Pod) -> Option<BuildReport> {
    let message = terminated(pod)?.message.as_deref()?;
    let report: BuildReport = serde_json::from_str(message).ok()?;
    (report.version == REPORT_VERSION).then_some(report)
}

/// Why a Job has failed.
fn why(job: &Job, cause: &Cause, newest: Option<&Pod>) -> String {
    let Cause { reason, message } = cause;
    let end = newest.and_then(end_of);
    match (reason.as_str(), end) {
        ("DeadlineExceeded", end) => {
            let seconds = job
                .spec
                .as_ref()
                .and_then(|spec| spec.active_deadline_seconds)
                .unwrap_or_default();
            let doing = newest.and_then(waiting).or(end);
            let doing = doing
                .map(|doing| format!("; its pod: {doing}"))
                .unwrap_or_default();
            format!("the build was not done after {seconds} s{doing}")
        }
        (GAVE_UP, Some(end)) => {
            let attempts = job.status.as_ref().and_then(|status| status.failed);
            format!(
                "gave up after {} attempts: {end}",
                attempts.unwrap_or_default()
            )
        }
        (_, Some(end)) => end,
        (_, None) => {
            let message = message.as_deref().unwrap_or("its Job gives no reason");
            match reason.as_str() {
                "" => message.to_owned(),
                reason => format!("{reason}: {message}"),
            }
        }
    }
}

/// What ended a pod; none if nothing has.
fn end_of(pod: &Pod) -> Option<String> {
    if let Some(report) = report(pod) {
        return match report.outcome {
            Outcome::Failed(failure) => Some(told(&failure)),
            Outcome::Pushed { .. } => None,
        };
    }
    let status = pod.status.as_ref()?;
    // The node speaks for the whole pod when it evicts one, or never lets it in.
    if phase(pod) == Some("Failed")
        && let Some(reason) = status.reason.as_deref()
    {
        let message = status.message.as_deref().unwrap_or_default();
        return Some(format!("the node ended its pod: {reason}: {message}"));
    }
    let end = terminated(pod)?;
    let output = end.message.as_deref().map(str::trim).unwrap_or_default();
    let output = if output.is_empty() {
        String::new()
    } else {
        format!("\n{output}")
    };
    match (end.reason.as_deref(), end.exit_code) {
        (_, 0) => None,
        (Some("OOMKilled"), _) => Some(format!(
            "its pod ran out of memory; raise the builder's memory limit{output}"
        )),
        (reason, code) => Some(format!(
            "its pod ended with exit code {code} ({}) without a report{output}",
            reason.unwrap_or("no reason")
        )),
    }
}

/// A failure with its step.
fn told(failure: &Failure) -> String {
    let Failure {
        class: _,
        message,
        // what to do about it depends on the build's secrets
        refused_by: _,
        step,
    } = failure;
    let Some(FailedStep {
        file,
        line,
        text,
        exit_status,
        output,
    }) = step
    else {
        return message.clone();
    };
    let mut told = format!("{file}, line {line}: {text}: {message}");
    if let Some(status) = exit_status
        && !message.contains(&format!("status {status}"))
    {
        told.push_str(&format!(" (exit status {status})"));
    }
    for line in output {
        told.push('\n');
        told.push_str(line);
    }
    told
}

/// Whether a node has it, and has not come to its container yet.
fn is_starting(pod: &Pod) -> bool {
    let waiting = state(pod).and_then(|state| state.waiting.as_ref());
    let reason = waiting.and_then(|waiting| waiting.reason.as_deref());
    matches!(reason, Some("ContainerCreating" | "PodInitializing"))
}

/// What a pod that doesn't run waits for.
fn waiting(pod: &Pod) -> Option<String> {
    if let Some(waiting) = state(pod).and_then(|state| state.waiting.as_ref()) {
        // Every pod is told so for its first moments.
        if is_starting(pod) {
            return None;
        }
        let reason = waiting.reason.as_deref().unwrap_or("waiting");
        return Some(match waiting.message.as_deref() {
            Some(message) => format!("its pod waits: {reason}: {message}"),
            None => format!("its pod waits: {reason}"),
        });
    }
    let conditions = pod.status.as_ref()?.conditions.as_deref()?;
    let unscheduled = conditions
        .iter()
        .find(|condition| condition.type_ == "PodScheduled" && condition.status == "False")?;
    let message = unscheduled.message.as_deref().unwrap_or("no node is found");
    Some(format!("its pod waits for a node: {message}"))
}

#[cfg(test)]
mod tests;
