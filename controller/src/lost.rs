//! Which images that a config's status names does the registry no longer have?
//!
//! Nobody tells when somebody deletes an image by hand, or a registry's own rules do. So every image that a status names is asked for at the
//! start and from time to time. What is missing twice, a minute apart, is missing: its config looks once more and has it built again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt as _, stream};
use kube::ResourceExt as _;
use strata_builder::reference::Reference;
use strata_builder::registry::Registry;
use tracing::{debug, warn};

use crate::api::MachineOSConfig;
use crate::context::Context;

/// Between two looks at all images.
pub const ROUND: Duration = Duration::from_secs(3600);
/// Between the two looks at one that is missing: a replica of the registry may lag behind.
const AGAIN: Duration = Duration::from_secs(60);
/// Asked for at the same time with the same credentials.
const AT_ONCE: usize = 8;

/// Names of the configs whose image is missing, by that image. A registry that doesn't answer has all of them.
pub async fn look(context: &Context) -> BTreeMap<Reference, String> {
    let os_configs = context.cache.os_configs.store.state();
    let named = os_configs.iter().filter_map(named);
    let missing = missing(context, named.collect()).await;
    if missing.is_empty() {
        return BTreeMap::new();
    }
    tokio::time::sleep(AGAIN).await;
    let missing = self::missing(context, missing).await;
    let missing: BTreeMap<_, _> = missing
        .into_iter()
        .map(|one| (one.image, one.os_config))
        .collect();
    for (image, os_config) in &missing {
        warn!(os_config, %image, "the registry no longer has the image that the status names");
    }
    missing
}

/// An image that a status names.
struct Named {
    os_config: String,
    image: Reference,
    push_secret: String,
}

/// What `os_config` names and a build of it has pushed: its status names a build, too.
fn named(os_config: &Arc<MachineOSConfig>) -> Option<Named> {
    let status = os_config.status.as_ref()?;
    status.machine_os_build.as_ref()?;
    let image: Reference = status.current_image_pull_spec.as_ref()?.parse().ok()?;
    image.digest?;
    Some(Named {
        os_config: os_config.name_any(),
        image,
        push_secret: os_config.spec.rendered_image_push_secret.name.clone(),
    })
}

/// Those that are missing at this moment.
async fn missing(context: &Context, all: Vec<Named>) -> Vec<Named> {
    let mut by_secret: BTreeMap<String, Vec<Named>> = BTreeMap::new();
    for one in all {
        by_secret
            .entry(one.push_secret.clone())
            .or_default()
            .push(one);
    }
    let mut missing = Vec::new();
    for (push_secret, named) in by_secret {
        match context.registries.open(&push_secret).await {
            Ok(registry) => missing.extend(missing_in(&registry, named).await),
            Err(error) => debug!(push_secret, %error, "its images are not looked for"),
        }
    }
    missing
}

async fn missing_in(registry: &Registry, named: Vec<Named>) -> Vec<Named> {
    let looks = stream::iter(named).map(|one| async {
        match registry.head_manifest(&one.image).await {
            Ok(None) => Some(one),
            Ok(Some(_)) | Err(_) => None,
        }
    });
    looks
        .buffer_unordered(AT_ONCE)
        .filter_map(std::future::ready)
        .collect()
        .await
}
