//! Which objects have outlived their build without an owner to take them along?
//!
//! Ours are owned by their build, so the garbage collector takes them. The incumbent's ConfigMaps and Secrets get an owner only after their Job
//! is there, and the ConfigMap with the digest never does: a crash between two of its requests, or a deleted build, leaves them for ever.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::{Resource, ResourceExt as _};
use tracing::info;

use crate::api::label;
use crate::apply::delete;
use crate::cache::{Kept, Meta};
use crate::context::Context;
use crate::error::Error;
use crate::live::Live as _;
use crate::plan::Target;

/// Longer than the watches may lag behind, and than an incumbent that was stopped needs to finish its request.
const GRACE: SignedDuration = SignedDuration::from_secs(60);

/// Between two looks. Only a takeover brings new ones.
pub const ROUND: Duration = Duration::from_secs(60);

/// The build that `object` was made for, if nobody else will ever delete it should that build be gone.
fn abandoned(object: &impl Resource, now: Timestamp) -> Option<&str> {
    let build = object.labels().get(label::OS_BUILD)?;
    let created = object.meta().creation_timestamp.as_ref()?;
    let is_ours = object.labels().contains_key(label::EPHEMERAL);
    let is_owned = !object.owner_references().is_empty();
    let is_going = object.meta().deletion_timestamp.is_some();
    (is_ours && !is_owned && !is_going && now.duration_since(created.0) >= GRACE)
        .then_some(build.as_str())
}

/// Deletes what builds that are gone have left.
///
/// # Errors
///
/// Of the apiserver.
pub async fn remove(context: &Context) -> Result<(), Error> {
    let cache = &context.cache;
    remove_kind::<Job>(context, "Job", &cache.jobs).await?;
    remove_kind::<ConfigMap>(context, "ConfigMap", &cache.config_maps).await?;
    remove_kind::<Secret>(context, "Secret", &cache.secrets).await
}

async fn remove_kind<K>(
    context: &Context,
    kind: &'static str,
    kept: &Kept<Meta<K>>,
) -> Result<(), Error>
where
    K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
        + Clone
        + std::fmt::Debug
        + serde::de::DeserializeOwned
        + 'static,
{
    let now = Timestamp::now();
    for object in kept.store.state() {
        let object: Arc<Meta<K>> = object;
        let Some(build) = abandoned(object.as_ref(), now) else {
            continue;
        };
        let known = &context.cache.os_builds;
        if known.get(build).is_some()
            || known.undecodable(build).is_some()
            || context.os_build(build).await?.is_some()
        {
            continue;
        }
        let target = Target::of(object.as_ref());
        delete(
            &context.namespaced::<K>(),
            "remove-leftover",
            kind,
            &target,
            None,
        )
        .await?;
        info!(
            kind,
            name = object.name_any(),
            os_build = build,
            "deleted what a build that is gone has left"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::{OwnerReference, Time};

    use super::*;

    fn left() -> ConfigMap {
        let mut object = ConfigMap::default();
        object.metadata.creation_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
        let labels = object.labels_mut();
        labels.insert(label::EPHEMERAL.to_owned(), String::new());
        labels.insert(label::OS_BUILD.to_owned(), "worker-0".to_owned());
        object
    }

    #[test]
    fn only_what_was_made_for_a_build_and_has_no_owner_is_abandoned() {
        let changed = |change: fn(&mut ConfigMap)| {
            let mut object = left();
            change(&mut object);
            object
        };
        let rows: [(&str, ConfigMap, bool); 6] = [
            ("left by the incumbent", left(), true),
            (
                "owned",
                changed(|it| it.owner_references_mut().push(OwnerReference::default())),
                false,
            ),
            (
                "of somebody else",
                changed(|it| _ = it.labels_mut().remove(label::EPHEMERAL)),
                false,
            ),
            (
                "of no build",
                changed(|it| _ = it.labels_mut().remove(label::OS_BUILD)),
                false,
            ),
            (
                "being deleted",
                changed(|it| {
                    it.metadata.deletion_timestamp = it.metadata.creation_timestamp.clone();
                }),
                false,
            ),
            (
                "new",
                changed(|it| {
                    it.metadata.creation_timestamp = Some(Time(Timestamp::UNIX_EPOCH + GRACE));
                }),
                false,
            ),
        ];
        for (what, object, is_abandoned) in rows {
            let now = Timestamp::UNIX_EPOCH + GRACE;
            assert_eq!(abandoned(&object, now).is_some(), is_abandoned, "{what}");
        }
    }
}
