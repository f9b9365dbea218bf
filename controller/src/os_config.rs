//! How does a MachineOSConfig come to its image? Observe, plan, apply.
//!
//! Its build is made under the incumbent's name, watched over by [`os_build`](crate::os_build), and its digest
//! adopted. The rules are in [`plan`](plan::plan).

pub mod observe;
pub mod plan;

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::runtime::controller::Action;
use kube::{Resource as _, ResourceExt as _};

use crate::api::machine_os_build::MachineOSBuildSpec;
use crate::api::{
    CLEANUP_FINALIZER, FOREGROUND_FINALIZER, MachineOSBuild, MachineOSConfig, NameReference,
    annotation, label,
};
use crate::apply::{self, Root};
use crate::context::Context;
use crate::error::{Error, within};
use crate::inputs::BuildInputs;
use crate::live::OBSERVE_LIMIT;
use crate::metrics::Kind;

/// One pass over a MachineOSConfig.
///
/// # Errors
///
/// Whatever kept the pass from being finished; nothing is lost, the next one observes again.
///
/// # Cancel safety
///
/// As safe as a crash: the steps done so far stay done, and the next pass goes on from there.
pub async fn reconcile(
    os_config: Arc<MachineOSConfig>,
    context: Arc<Context>,
) -> Result<Action, Error> {
    let observing = observe::observe(context.as_ref(), &os_config, Timestamp::now());
    let Some(observed) = within("observe", OBSERVE_LIMIT, observing).await? else {
        return Ok(Action::await_change());
    };
    let plan = plan::plan(&observed, Timestamp::now());
    let root = Root::of_config(&observed.os_config);
    let done = apply::perform(&context, Kind::OsConfig, root.clone(), plan).await;
    if let Err(error) = &done
        && let Some(why) = error.refusal()
        && let Some(plan) = plan::refused(&observed, &why, Timestamp::now())
    {
        apply::perform(&context, Kind::OsConfig, root, plan).await?;
    }
    done
}

/// Whether `os_config` controls `os_build`.
#[must_use]
pub fn controls(os_config: &MachineOSConfig, os_build: &MachineOSBuild) -> bool {
    os_build.owner_references().iter().any(|owner| {
        owner.controller == Some(true) && Some(&owner.uid) == os_config.meta().uid.as_ref()
    })
}

/// The MachineOSBuild for `inputs`, as the incumbent makes it, with our finalizer.
#[must_use]
pub fn new_build(inputs: &BuildInputs, os_config: &MachineOSConfig) -> MachineOSBuild {
    let spec = MachineOSBuildSpec {
        machine_config: NameReference::new(inputs.machine_config.name_any()),
        machine_os_config: NameReference::new(inputs.os_config.clone()),
        rendered_image_push_spec: inputs.push.to_string(),
    };
    let mut os_build = MachineOSBuild::new(inputs.name.as_str(), spec);
    os_build.metadata.labels = Some(
        [
            (label::TARGET_POOL, inputs.pool.clone()),
            (
                label::RENDERED_MACHINE_CONFIG,
                inputs.machine_config.name_any(),
            ),
            (label::OS_CONFIG, inputs.os_config.clone()),
        ]
        .map(|(key, value)| (key.to_owned(), value))
        .into(),
    );
    os_build.metadata.annotations = Some(BTreeMap::from([(
        annotation::PUSH_SECRET.to_owned(),
        inputs.push_secret.clone(),
    )]));
    os_build.metadata.finalizers = Some(vec![
        FOREGROUND_FINALIZER.to_owned(),
        CLEANUP_FINALIZER.to_owned(),
    ]);
    os_build.metadata.owner_references = os_config.controller_owner_ref(&()).map(|owner| {
        vec![OwnerReference {
            block_owner_deletion: Some(true),
            ..owner
        }]
    });
    os_build
}

/// The build that stands for the pre-built image of `os_config`; it never runs.
#[must_use]
pub fn seeded_build(
    inputs: &BuildInputs,
    os_config: &MachineOSConfig,
    image: &str,
) -> MachineOSBuild {
    let mut os_build = new_build(inputs, os_config);
    os_build
        .labels_mut()
        .insert(label::PRE_BUILT_IMAGE.to_owned(), "true".to_owned());
    os_build
        .annotations_mut()
        .insert(annotation::PRE_BUILT_IMAGE.to_owned(), image.to_owned());
    os_build.spec.rendered_image_push_spec = os_config.spec.rendered_image_push_spec.clone();
    os_build
}
