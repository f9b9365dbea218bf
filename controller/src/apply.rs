//! Performs the steps of a plan: the only writer to the apiserver, and the only one that deletes images.
//!
//! Steps are done in order; the first that fails ends the pass. A step that finds its work done is a success. Writes to
//! the root object carry the version that was observed, deletions the UID.

pub mod image;

use std::fmt::Debug;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, ObjectReference, Secret};
use kube::api::{
    ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, PostParams, Preconditions,
    PropagationPolicy,
};
use kube::runtime::controller::Action;
use kube::{Api, Resource, ResourceExt as _};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use strata_builder::error::chain;
use tracing::{debug, info};

use self::image::{Doomed, Removal, remedy, remove, remove_note};
use crate::api::{
    CLEANUP_FINALIZER, FIELD_MANAGER, MachineConfigPool, MachineOSBuild, MachineOSConfig, condition,
};
use crate::context::Context;
use crate::decoded::Undecodable;
use crate::error::{Error, code, within};
use crate::events::{Notice, Reason};
use crate::ledger::{Entry, LEDGER_NAME, LedgerError};
use crate::metrics::{Deletion, Kind, Outcome};
use crate::os_config;
use crate::plan::{ImageDeletion, Plan, Requeue, Step, Target};
use crate::sweep::Origin;

/// Longer than the apiserver's own limit of a minute for a request, so that its answer is what is told.
const STEP_LIMIT: Duration = Duration::from_secs(90);

/// The object that a plan is about.
#[derive(Clone, Debug)]
pub struct Root {
    resource: ApiResource,
    name: String,
    uid: String,
    /// As observed, then as each write leaves it.
    resource_version: Option<String>,
    finalizers: Vec<String>,
}

impl Root {
    /// A MachineOSConfig.
    #[must_use]
    pub fn of_config(os_config: &MachineOSConfig) -> Self {
        Self::of(os_config)
    }

    /// A MachineOSBuild.
    #[must_use]
    pub fn of_build(os_build: &MachineOSBuild) -> Self {
        Self::of(os_build)
    }

    /// A MachineConfigPool.
    #[must_use]
    pub fn of_pool(pool: &MachineConfigPool) -> Self {
        Self::of(pool)
    }

    /// An object that can't be decoded.
    #[must_use]
    pub fn of_undecodable(one: &Undecodable) -> Self {
        let Undecodable {
            resource,
            metadata,
            conditions: _,
            field: _,
            why: _,
        } = one.clone();
        Self {
            resource,
            name: metadata.name.unwrap_or_default(),
            uid: metadata.uid.unwrap_or_default(),
            resource_version: metadata.resource_version,
            finalizers: metadata.finalizers.unwrap_or_default(),
        }
    }

    fn of<K: Resource<DynamicType = ()>>(object: &K) -> Self {
        Self {
            resource: ApiResource::erase::<K>(&()),
            name: object.name_any(),
            uid: object.uid().unwrap_or_default(),
            resource_version: object.resource_version(),
            finalizers: object.finalizers().to_vec(),
        }
    }

    fn reference(&self) -> ObjectReference {
        ObjectReference {
            api_version: Some(self.resource.api_version.clone()),
            kind: Some(self.resource.kind.clone()),
            name: Some(self.name.clone()),
            uid: Some(self.uid.clone()),
            resource_version: self.resource_version.clone(),
            ..ObjectReference::default()
        }
    }

    fn object(&self) -> String {
        format!("{} {}", self.resource.kind, self.name)
    }
}

/// Performs `plan` for `root`, and says when to look again.
///
/// # Errors
///
/// Of the first step that failed.
///
/// # Cancel safety
///
/// Steps done stay done; the next pass goes on from there.
pub async fn perform(
    context: &Context,
    kind: Kind,
    mut root: Root,
    plan: Plan,
) -> Result<Action, Error> {
    let Plan {
        rule,
        steps,
        requeue,
    } = plan;
    context.metrics.rule(kind, rule);
    if steps.is_empty() {
        debug!(object = root.object(), rule, "nothing to do");
    } else {
        let count = steps.len();
        perform_steps(context, &mut root, rule, steps).await?;
        info!(object = root.object(), rule, steps = count, "reconciled");
    }
    Ok(match requeue {
        Requeue::OnChange => Action::await_change(),
        Requeue::After(delay) => Action::requeue(delay),
    })
}

/// Tells on an object that can't be decoded what is wrong with it.
///
/// # Errors
///
/// Of the apiserver, if its status can't be written; the event was tried by then.
///
/// # Cancel safety
///
/// What was told stays told.
pub async fn tell_undecodable(context: &Context, one: &Undecodable) -> Result<(), Error> {
    let mut root = Root::of_undecodable(one);
    let steps = if one.resource.kind == MachineOSConfig::kind(&()) {
        os_config::plan::undecodable(one, Timestamp::now())
    } else {
        vec![Step::Tell(Notice::new(Reason::InvalidInput, one.told()))]
    };
    perform_steps(context, &mut root, "undecodable", steps).await
}

async fn perform_steps(
    context: &Context,
    root: &mut Root,
    rule: &'static str,
    steps: Vec<Step>,
) -> Result<(), Error> {
    for step in steps {
        let name = step.name();
        let begin = Instant::now();
        let done = within(name, STEP_LIMIT, run(context, root, step)).await;
        let outcome = match &done {
            Ok(()) => Outcome::Done,
            Err(_) => Outcome::Failed,
        };
        context.metrics.step(name, outcome, begin.elapsed());
        debug!(object = root.object(), rule, step = name, elapsed = ?begin.elapsed(), ok = done.is_ok(), "step");
        done?;
    }
    Ok(())
}

async fn run(context: &Context, root: &mut Root, step: Step) -> Result<(), Error> {
    let client = || context.client.clone();
    let namespace = &context.namespace;
    let name = step.name();
    match step {
        Step::AddFinalizer => {
            if !root.finalizers.iter().any(|one| one == CLEANUP_FINALIZER) {
                root.finalizers.push(CLEANUP_FINALIZER.to_owned());
            }
            let change = json!({"metadata": {"finalizers": root.finalizers}});
            patch_root(context, root, name, change, false).await
        }
        Step::RemoveFinalizer => {
            root.finalizers.retain(|one| one != CLEANUP_FINALIZER);
            let change = json!({"metadata": {"finalizers": root.finalizers}});
            patch_root(context, root, name, change, false).await
        }
        Step::Annotate(changes) => {
            let annotations: serde_json::Map<String, Value> = changes
                .into_iter()
                .map(|(key, value)| (key.to_owned(), json!(value)))
                .collect();
            let change = json!({"metadata": {"annotations": annotations}});
            patch_root(context, root, name, change, false).await
        }
        Step::SetConfigStatus(status) => {
            patch_root(context, root, name, json!({"status": status}), true).await
        }
        Step::SetBuildStatus(status) => {
            patch_root(context, root, name, json!({"status": status}), true).await
        }
        Step::SetPoolConditions(conditions) => {
            let change = json!({"status": {"conditions": conditions}});
            patch_root(context, root, name, change, true).await
        }
        Step::CreateBuild(os_build) => {
            ensure(
                &Api::all(client()),
                name,
                "MachineOSBuild",
                os_build.as_ref(),
            )
            .await
        }
        Step::DeleteBuild(target) => {
            let api: Api<MachineOSBuild> = Api::all(client());
            delete(&api, name, "MachineOSBuild", &target, None).await
        }
        Step::CreateObjects(objects) => {
            let config_maps: Api<ConfigMap> = Api::namespaced(client(), namespace);
            let secrets: Api<Secret> = Api::namespaced(client(), namespace);
            for config_map in &objects.config_maps {
                ensure(&config_maps, name, "ConfigMap", config_map).await?;
            }
            for secret in &objects.secrets {
                ensure(&secrets, name, "Secret", secret).await?;
            }
            let jobs: Api<Job> = Api::namespaced(client(), namespace);
            ensure(&jobs, name, "Job", &objects.job).await
        }
        Step::DeleteJob(target) => {
            let api: Api<Job> = Api::namespaced(client(), namespace);
            // it stays until its pods have ended, so that nothing is pushed after its image was deleted
            let foreground = Some(PropagationPolicy::Foreground);
            delete(&api, name, "Job", &target, foreground).await
        }
        Step::DeleteConfigMap(target) => {
            let api: Api<ConfigMap> = Api::namespaced(client(), namespace);
            delete(&api, name, "ConfigMap", &target, None).await
        }
        Step::DeleteSecret(target) => {
            let api: Api<Secret> = Api::namespaced(client(), namespace);
            delete(&api, name, "Secret", &target, None).await
        }
        Step::DeleteImage(deletion) => delete_image(context, root, &deletion).await,
        Step::Remember(entry) => remember(context, root, &entry).await,
        Step::Tell(notice) => {
            context.recorder.publish(&root.reference(), &notice).await;
            Ok(())
        }
    }
}

/// Changes the root object if it still is what was observed.
async fn patch_root(
    context: &Context,
    root: &mut Root,
    step: &'static str,
    mut change: Value,
    is_status: bool,
) -> Result<(), Error> {
    change["metadata"]["resourceVersion"] = json!(root.resource_version);
    change["metadata"]["uid"] = json!(root.uid);
    let api: Api<DynamicObject> = Api::all_with(context.client.clone(), &root.resource);
    let parameters = PatchParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PatchParams::default()
    };
    let change = Patch::Merge(change);
    let changed = if is_status {
        api.patch_status(&root.name, &parameters, &change).await
    } else {
        api.patch(&root.name, &parameters, &change).await
    };
    match changed {
        Ok(changed) => {
            root.resource_version = changed.resource_version();
            Ok(())
        }
        // its last finalizer is off, by us or by somebody else
        Err(source) if code(&source) == Some(404) => {
            debug!(object = root.object(), step, "gone");
            Ok(())
        }
        Err(source) => Err(Error::Write {
            step,
            object: root.object(),
            source,
        }),
    }
}

/// Creates `object`. One that is there is fine if it has the same owner; otherwise it is an earlier build's, on its way out.
async fn ensure<K>(
    api: &Api<K>,
    step: &'static str,
    kind: &'static str,
    object: &K,
) -> Result<(), Error>
where
    K: Resource + Clone + DeserializeOwned + Serialize + Debug,
{
    let name = object.name_any();
    let object_name = || format!("{kind} {name}");
    let parameters = PostParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PostParams::default()
    };
    let failed = |source| Error::Write {
        step,
        object: object_name(),
        source,
    };
    let conflict = match api.create(&parameters, object).await {
        Ok(_) => return Ok(()),
        Err(error) if code(&error) == Some(409) => error,
        Err(error) => return Err(failed(error)),
    };
    let Some(found) = api.get_opt(&name).await.map_err(failed)? else {
        // gone in between: the next pass makes it
        return Err(failed(conflict));
    };
    match existing(kind, object, &found) {
        Existing::Ours => {
            debug!(object = object_name(), step, "is there already");
            Ok(())
        }
        Existing::Stale(stale) => {
            delete(api, step, kind, &stale, None).await?;
            let made = api.create(&parameters, object).await;
            made.map(|_| ()).map_err(failed)
        }
        Existing::Foreign => Err(Error::Taken {
            step,
            object: match found.namespace() {
                Some(namespace) => format!("{} in namespace {namespace}", object_name()),
                None => object_name(),
            },
            is_going: found.meta().deletion_timestamp.is_some(),
        }),
    }
}

/// What has the name of an object that is to be created.
pub(crate) enum Existing {
    /// That object.
    Ours,
    /// One that an earlier build or pass left; it makes way.
    Stale(Target),
    /// Somebody else's, or an earlier build's that is still needed or on its way out.
    Foreign,
}

/// What `found` is to `object`, which has its name.
pub(crate) fn existing<K: Resource + Serialize>(kind: &str, object: &K, found: &K) -> Existing {
    let owners = |object: &K| -> Vec<String> {
        let owners = object.owner_references().iter();
        owners.map(|owner| owner.uid.clone()).collect()
    };
    let is_ours = owners(object).iter().any(|uid| owners(found).contains(uid));
    let is_content = matches!(kind, "ConfigMap" | "Secret");
    // an earlier pass was stopped before the Job, and what it had read was changed since
    let is_old = is_ours && is_content && content(object) != content(found);
    if is_ours && !is_old {
        return Existing::Ours;
    }
    let is_of_builds = found
        .owner_references()
        .iter()
        .all(|owner| owner.kind == "MachineOSBuild" || owner.kind == "Job");
    if is_content && is_of_builds && found.meta().deletion_timestamp.is_none() {
        Existing::Stale(Target::of(found))
    } else {
        Existing::Foreign
    }
}

/// What a ConfigMap or Secret holds.
fn content(object: &impl Serialize) -> [Option<Value>; 2] {
    let document = serde_json::to_value(object).unwrap_or_default();
    ["data", "binaryData"].map(|key| document.get(key).cloned())
}

/// Deletes what was observed; that it is gone, or that another has its name by now, is success.
///
/// # Errors
///
/// Of the apiserver.
pub async fn delete<K>(
    api: &Api<K>,
    step: &'static str,
    kind: &'static str,
    target: &Target,
    propagation: Option<PropagationPolicy>,
) -> Result<(), Error>
where
    K: Resource + Clone + DeserializeOwned + Debug,
{
    let parameters = DeleteParams {
        preconditions: Some(Preconditions {
            uid: Some(target.uid.clone()),
            resource_version: None,
        }),
        propagation_policy: Some(propagation.unwrap_or(PropagationPolicy::Background)),
        ..DeleteParams::default()
    };
    match api.delete(&target.name, &parameters).await {
        Ok(_) => Ok(()),
        Err(error) if matches!(code(&error), Some(404 | 409)) => {
            debug!(
                kind,
                name = target.name,
                uid = target.uid,
                step,
                "gone already"
            );
            Ok(())
        }
        Err(source) => Err(Error::Write {
            step,
            object: format!("{kind} {}", target.name),
            source,
        }),
    }
}

/// Enters an image in the ledger; that there is no room is told and holds nothing up, unless it is to be kept.
async fn remember(context: &Context, root: &Root, entry: &Entry) -> Result<(), Error> {
    match context.ledger.remember(entry).await {
        Ok(()) => context.metrics.image_deletion(Deletion::Retained),
        // what is to be kept must be known for ever
        Err(LedgerError::Full { .. }) if !entry.keep => {
            context.metrics.image_deletion(Deletion::Refused);
            let told = format!(
                "{} stays in the registry, as ConfigMap {LEDGER_NAME} is full: delete it by hand when nothing needs it any more",
                entry.image
            );
            let notice = Notice::new(Reason::ImageNotDeleted, told);
            context.recorder.publish(&root.reference(), &notice).await;
        }
        Err(error) => return Err(error.into()),
    }
    context.unneeded.notify_one();
    Ok(())
}

async fn delete_image(
    context: &Context,
    root: &Root,
    deletion: &ImageDeletion,
) -> Result<(), Error> {
    let ImageDeletion {
        image,
        tag,
        push_secret,
    } = deletion;
    let registry = context
        .registries
        .open(push_secret)
        .await
        .map_err(|source| Error::Access {
            image: image.to_string(),
            source,
        })?;
    let Some(digest) = image.digest else {
        // nothing needs a note, so nobody is told of it
        let tag = image.tag.as_deref().unwrap_or_default();
        let is_ours = |origin: &Origin| origin.build_uid == root.uid;
        return remove_note(context, &registry, &image.repository, tag, is_ours).await;
    };
    let doomed = Doomed {
        repository: &image.repository,
        digest,
        tag: tag.as_deref(),
        push_secret,
        asking: Some(&root.uid),
    };
    match remove(context, &registry, &doomed).await {
        Ok(Removal::Gone { was_there: false }) => Ok(()),
        Ok(Removal::Gone { was_there: true }) => {
            context.metrics.image_deletion(Deletion::Deleted);
            info!(object = root.object(), %image, "deleted the image");
            let told = format!("{image} was deleted from the registry");
            let notice = Notice::new(Reason::BuildDeleted, told);
            context.recorder.publish(&root.reference(), &notice).await;
            Ok(())
        }
        Ok(Removal::InUse(used)) => Err(Error::InUse {
            image: image.to_string(),
            used: used.to_string(),
        }),
        Ok(Removal::Refused(error)) => {
            context.metrics.image_deletion(Deletion::Refused);
            let told = format!(
                "{image} stays in the registry, which does not delete it: {}; {}",
                chain(&error),
                remedy(&error, push_secret)
            );
            info!(object = root.object(), %image, error = chain(&error), "the registry does not delete the image");
            let notice = Notice::new(Reason::ImageNotDeleted, told);
            context.recorder.publish(&root.reference(), &notice).await;
            // a right may come back, a registry may be read-only for an hour
            let now = condition::whole_second(Timestamp::now());
            let entry = Entry {
                image: image.to_string(),
                tag: tag.clone(),
                push_secret: push_secret.clone(),
                os_build: root.name.clone(),
                since: now,
                keep: false,
                orphan_of: None,
                unseen_of: None,
                content_key: None,
                refused_since: Some(now),
            };
            remember(context, root, &entry).await
        }
        Err(error) => {
            context.metrics.image_deletion(Deletion::Failed);
            Err(error)
        }
    }
}
