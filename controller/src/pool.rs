//! What does a MachineConfigPool say about its image? Observe, plan, apply.
//!
//! The nodes' own controllers read the pool's condition `ImageBuildDegraded`; the metrics of a pool are set by the same
//! pass. Everything else of a pool is other people's. The machine config operator's node controller writes the same condition, and
//! when it is False with messages of its own: that it is, and the reason, is what both agree on, so the message is left to whoever was
//! first.
//!
//! | rule | observed | steps |
//! | --- | --- | --- |
//! | no-image | no MachineOSConfig names the pool | condition removed |
//! | failed | its build failed | ImageBuildDegraded True |
//! | building | its build has begun | ImageBuildDegraded False |
//! | built | its build succeeded, or there is none | ImageBuildDegraded False |
//! | undecided | its build hasn't begun, or was interrupted; its MachineOSConfig can't be decoded | – |

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::ResourceExt as _;
use kube::runtime::controller::Action;

use crate::api::condition::{self, Statement};
use crate::api::foreign::PoolCondition;
use crate::api::{MachineConfigPool, MachineOSBuild, annotation};
use crate::apply::{self, Root};
use crate::cache::{Cache, by_pool};
use crate::context::Context;
use crate::error::Error;
use crate::metrics::{Kind, PoolState};
use crate::phase::Phase;
use crate::plan::{Plan, Step};

const DEGRADED: &str = "ImageBuildDegraded";

/// A pool and the builds for it.
pub(crate) struct Observed {
    /// The pool.
    pub(crate) pool: Arc<MachineConfigPool>,
    /// The build that each MachineOSConfig of the pool names as its current one; empty if none names the pool.
    os_configs: Vec<Option<String>>,
    /// Of all those configs.
    os_builds: Vec<Arc<MachineOSBuild>>,
    /// Whether a MachineOSConfig of its name, as its own has, can't be decoded.
    is_hidden: bool,
}

/// One pass over a MachineConfigPool.
///
/// # Errors
///
/// If the apiserver doesn't take the condition.
///
/// # Cancel safety
///
/// As safe as a crash: it is one write.
pub async fn reconcile(
    pool: Arc<MachineConfigPool>,
    context: Arc<Context>,
) -> Result<Action, Error> {
    let observed = observe(&context.cache, pool);
    let name = observed.pool.name_any();
    context.metrics.pool(&name, state(&observed));
    let plan = plan(&observed, Timestamp::now());
    apply::perform(&context, Kind::Pool, Root::of_pool(&observed.pool), plan).await
}

pub(crate) fn observe(cache: &Cache, pool: Arc<MachineConfigPool>) -> Observed {
    let os_configs = cache.os_configs.of(&by_pool(&pool.name_any()));
    Observed {
        os_builds: os_configs
            .iter()
            .flat_map(|os_config| cache.os_builds.of(&os_config.name_any()))
            .collect(),
        os_configs: os_configs
            .iter()
            .map(|os_config| {
                let annotations = os_config.annotations();
                annotations.get(annotation::CURRENT_BUILD).cloned()
            })
            .collect(),
        is_hidden: cache.os_configs.undecodable(&pool.name_any()).is_some(),
        pool,
    }
}

pub(crate) fn plan(observed: &Observed, now: Timestamp) -> Plan {
    if observed.is_hidden {
        return Plan::new("undecided", Vec::new());
    }
    if observed.os_configs.is_empty() {
        return write("no-image", observed, None, now);
    }
    let pool = observed.pool.name_any();
    let active = active(observed);
    let (rule, reason, message) = match active.map(|os_build| (Phase::of_build(os_build), os_build))
    {
        Some((Phase::Initial | Phase::Interrupted, _)) => {
            return Plan::new("undecided", Vec::new());
        }
        Some((Phase::Failed, os_build)) => {
            let os_build = os_build.name_any();
            let message = format!(
                "Failed to build OS image for pool {pool} (MachineOSBuild: {os_build}): Failed: Build Failed"
            );
            ("failed", "BuildFailed", message)
        }
        Some((Phase::Prepared | Phase::Building, _)) => {
            let message = format!("Build started for pool {pool}");
            ("building", "Building", message)
        }
        Some((Phase::Succeeded, _)) | None => {
            let message = format!("Build succeeded for pool {pool}");
            ("built", "BuildSuccess", message)
        }
    };
    let statement = Statement {
        type_: DEGRADED,
        holds: rule == "failed",
        reason: reason.to_owned(),
        message,
    };
    write(rule, observed, Some(statement), now)
}

/// The build that decides: the one that a config names, else one that runs, else the newest.
fn active(observed: &Observed) -> Option<&MachineOSBuild> {
    let builds = || observed.os_builds.iter().map(Arc::as_ref);
    let named = |os_build: &&MachineOSBuild| {
        let named = observed.os_configs.iter().flatten();
        named.into_iter().any(|name| *name == os_build.name_any())
    };
    let runs = |os_build: &&MachineOSBuild| {
        matches!(Phase::of_build(os_build), Phase::Prepared | Phase::Building)
    };
    builds()
        .find(named)
        .or_else(|| builds().find(runs))
        .or_else(|| builds().max_by_key(|os_build| os_build.creation_timestamp()))
}

/// What the pool's metrics tell; none if it has no image.
fn state(observed: &Observed) -> Option<PoolState> {
    if observed.os_configs.is_empty() {
        return None;
    }
    let active = active(observed);
    let status = active.and_then(|os_build| os_build.status.as_ref());
    let unfinished = observed
        .os_builds
        .iter()
        .filter(|os_build| !Phase::of_build(os_build).is_terminal());
    Some(PoolState {
        phase: active.map(Phase::of_build),
        unfinished: unfinished.count(),
        start: status.and_then(|status| status.build_start.as_ref().map(|time| time.0)),
        end: status.and_then(|status| status.build_end.as_ref().map(|time| time.0)),
    })
}

/// Whether a condition says as much as needs to be said of a build that has not failed. Of one that has, the text names it and is ours word for
/// word.
fn agrees(said: &Condition, statement: &Statement) -> bool {
    !statement.holds && said.status == "False" && said.reason == statement.reason
}

/// The plan that makes the pool say it, or, if none, say nothing.
fn write(
    rule: &'static str,
    observed: &Observed,
    statement: Option<Statement>,
    now: Timestamp,
) -> Plan {
    let status = observed.pool.status.as_ref();
    let before = status
        .and_then(|status| status.conditions.clone())
        .unwrap_or_default();
    let mut conditions = before.clone();
    match statement {
        None => conditions.retain(|one| one.type_ != DEGRADED),
        Some(statement) => {
            let mut said: Vec<_> = before
                .iter()
                .filter(|one| one.type_ == DEGRADED)
                .map(|one| one.clone().into())
                .collect();
            let is_said = said.iter().any(|one| agrees(one, &statement));
            if !is_said && condition::set(&mut said, statement, now) {
                conditions.retain(|one| one.type_ != DEGRADED);
                conditions.extend(said.into_iter().map(PoolCondition::from));
            }
        }
    }
    let steps = if conditions == before {
        Vec::new()
    } else {
        vec![Step::SetPoolConditions(conditions)]
    };
    Plan::new(rule, steps)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures;

    /// Pool `worker` with a condition of somebody else, whose config names `current` and has these builds.
    fn observed(current: Option<&str>, os_builds: &[(&str, Phase)]) -> Observed {
        let mut pool = fixtures::pool();
        let other = PoolCondition {
            type_: "Updated".to_owned(),
            status: "True".to_owned(),
            ..PoolCondition::default()
        };
        pool.status.get_or_insert_default().conditions = Some(vec![other]);
        let build = |(name, phase): &(&str, Phase)| {
            let mut os_build = fixtures::os_build();
            os_build.metadata.name = Some((*name).to_owned());
            let status = os_build.status.get_or_insert_default();
            let conditions = status.conditions.get_or_insert_default();
            phase.write(conditions, None, fixtures::now());
            Arc::new(os_build)
        };
        Observed {
            pool: Arc::new(pool),
            os_configs: vec![current.map(str::to_owned)],
            os_builds: os_builds.iter().map(build).collect(),
            is_hidden: false,
        }
    }

    /// The rule, and what the pool says afterwards.
    fn said(observed: &mut Observed) -> (&'static str, Option<(String, String)>) {
        let mut plan = plan(observed, fixtures::now());
        if let Some(Step::SetPoolConditions(conditions)) = plan.steps.pop() {
            let mut pool = (*observed.pool).clone();
            pool.status.get_or_insert_default().conditions = Some(conditions);
            observed.pool = Arc::new(pool);
        }
        assert_eq!(plan.steps, []);
        let status = observed.pool.status.as_ref().unwrap();
        let conditions = status.conditions.as_ref().unwrap();
        assert_eq!(conditions[0].type_, "Updated");
        let ours = conditions.get(1).map(|one| {
            assert_eq!(one.type_, DEGRADED);
            (
                one.status.clone(),
                format!(
                    "{}: {}",
                    one.reason.as_deref().unwrap(),
                    one.message.as_deref().unwrap()
                ),
            )
        });
        (plan.rule, ours)
    }

    #[test]
    fn the_condition_follows_the_build_that_decides() {
        let failed = "BuildFailed: Failed to build OS image for pool worker (MachineOSBuild: a): Failed: Build Failed";
        let building = "Building: Build started for pool worker";
        let built = "BuildSuccess: Build succeeded for pool worker";
        type Row<'a> = (
            Option<&'a str>,
            &'a [(&'a str, Phase)],
            &'a str,
            Option<(&'a str, &'a str)>,
        );
        let rows: [Row<'_>; 8] = [
            (None, &[], "built", Some(("False", built))),
            (
                None,
                &[("a", Phase::Failed)],
                "failed",
                Some(("True", failed)),
            ),
            (
                Some("b"),
                &[("a", Phase::Failed), ("b", Phase::Succeeded)],
                "built",
                Some(("False", built)),
            ),
            (
                Some("a"),
                &[("a", Phase::Failed), ("b", Phase::Building)],
                "failed",
                Some(("True", failed)),
            ),
            (
                Some("gone"),
                &[("a", Phase::Failed), ("b", Phase::Building)],
                "building",
                Some(("False", building)),
            ),
            (
                Some("a"),
                &[("a", Phase::Prepared)],
                "building",
                Some(("False", building)),
            ),
            (Some("a"), &[("a", Phase::Initial)], "undecided", None),
            (Some("a"), &[("a", Phase::Interrupted)], "undecided", None),
        ];
        for (current, os_builds, rule, expected) in rows {
            let mut observed = observed(current, os_builds);
            let expected =
                expected.map(|(status, text): (&str, &str)| (status.to_owned(), text.to_owned()));
            assert_eq!(
                said(&mut observed),
                (rule, expected),
                "{current:?} {os_builds:?}"
            );
            // said once, it is not written again
            assert_eq!(plan(&observed, fixtures::now()).steps, []);
        }
    }

    #[test]
    fn another_writers_words_are_left_alone_unless_the_build_has_failed() {
        let others = |status: &str, reason: &str| PoolCondition {
            type_: DEGRADED.to_owned(),
            status: status.to_owned(),
            reason: Some(reason.to_owned()),
            message: Some("All builds succeeded".to_owned()),
            ..PoolCondition::default()
        };
        let rows = [
            (Phase::Succeeded, "False", "BuildSuccess", true),
            (Phase::Building, "False", "Building", true),
            (Phase::Succeeded, "False", "Building", false),
            (Phase::Building, "False", "BuildSuccess", false),
            (Phase::Succeeded, "True", "BuildSuccess", false),
            (Phase::Failed, "True", "BuildFailed", false),
            (Phase::Failed, "False", "BuildFailed", false),
        ];
        for (phase, status, reason, is_left) in rows {
            let mut observed = observed(Some("a"), &[("a", phase)]);
            let mut pool = (*observed.pool).clone();
            let conditions = &mut pool.status.get_or_insert_default().conditions;
            conditions
                .get_or_insert_default()
                .push(others(status, reason));
            observed.pool = Arc::new(pool);
            let steps = plan(&observed, fixtures::now()).steps;
            assert_eq!(steps.is_empty(), is_left, "{phase:?} {status} {reason}");
        }
    }

    #[test]
    fn a_condition_goes_with_the_last_config_and_the_others_conditions_stay() {
        let mut observed = observed(Some("a"), &[("a", Phase::Failed)]);
        assert!(said(&mut observed).1.is_some());
        observed.os_configs.clear();
        observed.os_builds.clear();
        observed.is_hidden = true;
        assert_eq!(plan(&observed, fixtures::now()).rule, "undecided");
        observed.is_hidden = false;
        assert_eq!(said(&mut observed), ("no-image", None));
        assert_eq!(state(&observed), None);
    }
}
