//! How does a MachineOSBuild come to its end? Observe, plan, apply.
//!
//! Its objects are made, its Job followed, its digest confirmed; deleted, it takes its Job and its image along. The
//! rules are in [`plan`](plan::plan).

pub mod observe;
pub mod plan;
mod prepare;

use std::sync::Arc;

use jiff::Timestamp;
use kube::ResourceExt as _;
use kube::runtime::controller::Action;

use crate::api::{MachineOSBuild, label};
use crate::apply::{self, Root};
use crate::context::Context;
use crate::error::{Error, within};
use crate::live::OBSERVE_LIMIT;
use crate::metrics::Kind;
use crate::phase::Phase;
use crate::plan::{Plan, Step};

/// One pass over a MachineOSBuild.
///
/// # Errors
///
/// Whatever kept the pass from being finished; nothing is lost, the next one observes again.
///
/// # Cancel safety
///
/// As safe as a crash: the steps done so far stay done, and the next pass goes on from there.
pub async fn reconcile(
    os_build: Arc<MachineOSBuild>,
    context: Arc<Context>,
) -> Result<Action, Error> {
    let observing = observe::observe(context.as_ref(), &os_build);
    let Some(observed) = within("observe", OBSERVE_LIMIT, observing).await? else {
        return Ok(Action::await_change());
    };
    let plan = plan::plan(&observed, Timestamp::now());
    let ended = ended_by(&plan, &observed.os_build);
    let root = Root::of_build(&observed.os_build);
    let done = apply::perform(&context, Kind::OsBuild, root.clone(), plan).await;
    match &done {
        Ok(_) => {
            if let Some(phase) = ended {
                count_end(&context, &observed.os_build, phase);
                if let Some(report) = observed.report() {
                    context.metrics.pushed(report);
                }
            }
        }
        Err(error) => {
            if let Some(why) = error.refusal()
                && let Some(plan) = plan::refused(&observed, &why, Timestamp::now())
            {
                apply::perform(&context, Kind::OsBuild, root, plan).await?;
            }
        }
    }
    done
}

/// The state in which `plan` ends the build.
fn ended_by(plan: &Plan, os_build: &MachineOSBuild) -> Option<Phase> {
    let status = plan.steps.iter().find_map(|step| match step {
        Step::SetBuildStatus(status) => status.conditions.as_deref(),
        _ => None,
    });
    let phase = Phase::of(status?);
    (phase.is_terminal() && !Phase::of_build(os_build).is_terminal()).then_some(phase)
}

fn count_end(context: &Context, os_build: &MachineOSBuild, phase: Phase) {
    let Some(pool) = os_build.labels().get(label::TARGET_POOL) else {
        return;
    };
    let created = os_build.creation_timestamp();
    let age = created.map(|time| Timestamp::now().duration_since(time.0));
    let age = age.and_then(|age| age.try_into().ok());
    context.metrics.build_ended(pool, phase, age);
}
