//! How does a MachineOSBuild come to its end? Observe, plan, apply.
//!
//! Its objects are made, its Job followed, its digest confirmed; deleted, it takes its Job and its image along. The
//! rules are in [`plan`](plan::plan).

pub mod observe;
pub mod plan;
mod prepare;

use std::sync::Arc;

use jiff::Timestamp;
use kube::runtime::controller::Action;

use crate::api::MachineOSBuild;
use crate::apply::{self, Root};
use crate::context::Context;
use crate::error::Error;
use crate::metrics::Kind;

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
    let Some(observed) = observe::observe(context.as_ref(), &os_build).await? else {
        return Ok(Action::await_change());
    };
    let plan = plan::plan(&observed, Timestamp::now());
    let root = Root::of_build(&observed.os_build);
    apply::perform(&context, Kind::OsBuild, root, plan).await
}
