//! What shall be done, in which order? Effects as data, shared by both reconcilers.
//!
//! A plan is made by a pure function from what was observed; [`apply`](crate::apply) performs its steps and is
//! the only writer. No step means that the object is settled.

use std::time::Duration;

use kube::{Resource, ResourceExt as _};
use strata_builder::reference::Reference;

use crate::api::MachineOSBuild;
use crate::api::foreign::PoolCondition;
use crate::api::machine_os_build::MachineOSBuildStatus;
use crate::api::machine_os_config::MachineOSConfigStatus;
use crate::events::Notice;
use crate::job::BuildObjects;
use crate::ledger::Entry;

/// An object as it was seen: a deletion names its UID, so that a newer one of the same name is safe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// metadata.name.
    pub name: String,
    /// metadata.uid.
    pub uid: String,
}

impl Target {
    /// `object`.
    #[must_use]
    pub fn of(object: &impl Resource) -> Self {
        Self {
            name: object.name_any(),
            uid: object.uid().unwrap_or_default(),
        }
    }
}

/// One effect. Steps on the root object itself fail if it was changed since it was observed.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Put our finalizer on the root object.
    AddFinalizer,
    /// Take it off.
    RemoveFinalizer,
    /// Set annotations of the root object; none removes.
    Annotate(Vec<(&'static str, Option<String>)>),
    /// Write the status of the root MachineOSConfig.
    SetConfigStatus(Box<MachineOSConfigStatus>),
    /// Write the status of the root MachineOSBuild.
    SetBuildStatus(Box<MachineOSBuildStatus>),
    /// Write all conditions of the root MachineConfigPool.
    SetPoolConditions(Vec<PoolCondition>),
    /// Create it; that it exists already, owned by the same object, is success.
    CreateBuild(Box<MachineOSBuild>),
    /// Delete it.
    DeleteBuild(Target),
    /// Create ConfigMaps and Secrets, then the Job.
    CreateObjects(Box<BuildObjects>),
    /// Delete it; it stays until its pods have ended.
    DeleteJob(Target),
    /// Delete it.
    DeleteConfigMap(Target),
    /// Delete it.
    DeleteSecret(Target),
    /// Delete a manifest by digest with all that belongs to it, if nothing has begun to use it meanwhile; or by its tag, if there is one, what a build noted of its steps. A registry that refuses is told in an event and is no failure.
    DeleteImage(Box<ImageDeletion>),
    /// Put an image into the ledger.
    Remember(Entry),
    /// Publish an event on the root object.
    Tell(Notice),
}

/// An image to delete, and how to log in for it.
#[derive(Clone, Debug, PartialEq)]
pub struct ImageDeletion {
    /// By digest; a note by its tag.
    pub image: Reference,
    /// Of an image: the tag that it was pushed under.
    pub tag: Option<String>,
    /// Name of the Secret with the credentials.
    pub push_secret: String,
}

impl Step {
    /// For logs and metrics.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Step::AddFinalizer => "add-finalizer",
            Step::RemoveFinalizer => "remove-finalizer",
            Step::Annotate(_) => "annotate",
            Step::SetConfigStatus(_) => "set-config-status",
            Step::SetBuildStatus(_) => "set-build-status",
            Step::SetPoolConditions(_) => "set-pool-conditions",
            Step::CreateBuild(_) => "create-build",
            Step::DeleteBuild(_) => "delete-build",
            Step::CreateObjects(_) => "create-objects",
            Step::DeleteJob(_) => "delete-job",
            Step::DeleteConfigMap(_) => "delete-config-map",
            Step::DeleteSecret(_) => "delete-secret",
            Step::DeleteImage(_) => "delete-image",
            Step::Remember(_) => "remember",
            Step::Tell(_) => "tell",
        }
    }
}

/// When to look again, besides at every change of what was observed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Requeue {
    /// Only then.
    OnChange,
    /// After this long at the latest: for what no watch tells.
    After(Duration),
}

/// What one pass does.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The rule that matched.
    pub rule: &'static str,
    /// In order; the first that fails ends the pass.
    pub steps: Vec<Step>,
    /// When to look again.
    pub requeue: Requeue,
}

impl Plan {
    /// The steps of `rule`, until something changes.
    #[must_use]
    pub const fn new(rule: &'static str, steps: Vec<Step>) -> Self {
        Self {
            rule,
            steps,
            requeue: Requeue::OnChange,
        }
    }

    /// The same, looked at again after `delay`.
    #[must_use]
    pub const fn again_after(mut self, delay: Duration) -> Self {
        self.requeue = Requeue::After(delay);
        self
    }
}
