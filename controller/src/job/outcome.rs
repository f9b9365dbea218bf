//! How does a Job stand? Job and pods in, one answer out; pure.

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{Job, JobCondition};
use k8s_openapi::api::core::v1::{ContainerState, ContainerStateTerminated, Pod};
use kube::ResourceExt as _;
use strata_builder::contract::{BuildReport, FailedStep, Failure, Outcome, REPORT_VERSION};

use super::CONTAINER;

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
    /// A pod has ended well; the Job may not have noticed yet.
    Complete {
        /// When.
        finished: Option<Timestamp>,
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

/// How `job` stands, given the pods that it owns.
#[must_use]
pub fn outcome(job: &Job, pods: &[Pod]) -> JobOutcome {
    let newest = pods.iter().max_by_key(|pod| {
        let created = pod.creation_timestamp().map(|time| time.0);
        (created, pod.name_any())
    });
    if let Some(failed) = holds(job, &["Failed", "FailureTarget"]) {
        return JobOutcome::Failed {
            message: why(job, failed, newest),
            report: newest.and_then(report),
        };
    }
    if let Some(complete) = holds(job, &["Complete", "SuccessCriteriaMet"]) {
        let succeeded = pods.iter().find(|pod| phase(pod) == Some("Succeeded"));
        return JobOutcome::Complete {
            finished: complete.last_transition_time.as_ref().map(|time| time.0),
            report: succeeded.or(newest).and_then(report),
        };
    }
    // The Job says so a second or two after its pod; a pushed digest is confirmed with the registry anyway.
    let pushed = pods.iter().find_map(|pod| {
        let finished = terminated(pod)?.finished_at.as_ref().map(|time| time.0);
        let report = report(pod).filter(|report| report.pushed().is_some())?;
        Some((finished, report))
    });
    if let Some((finished, report)) = pushed {
        return JobOutcome::Complete {
            finished,
            report: Some(report),
        };
    }
    let status = job.status.clone().unwrap_or_default();
    let failed = status.failed.unwrap_or_default();
    if status.active.unwrap_or_default() == 0 && failed == 0 && newest.is_none() {
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
fn why(job: &Job, failed: &JobCondition, newest: Option<&Pod>) -> String {
    let reason = failed.reason.as_deref().unwrap_or_default();
    let end = newest.and_then(end_of);
    match (reason, end) {
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
        ("BackoffLimitExceeded", Some(end)) => {
            let attempts = job.status.as_ref().and_then(|status| status.failed);
            format!(
                "gave up after {} attempts: {end}",
                attempts.unwrap_or_default()
            )
        }
        (_, Some(end)) => end,
        (_, None) => {
            let message = failed
                .message
                .as_deref()
                .unwrap_or("its Job gives no reason");
            match reason {
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
