//! What is the case around a MachineOSConfig? All reads of its reconciler; no write, no choice.
//!
//! Most of it is what the watches told. What a stale answer could make wrong is read anew: config and builds before a
//! rebuild or a deletion.

use std::sync::Arc;

use kube::api::ListParams;
use kube::{Api, ResourceExt as _};
use strata_builder::reference::Reference;

use super::controls;
use crate::api::{MachineOSBuild, MachineOSConfig, annotation, label};
use crate::context::Context;
use crate::error::Error;
use crate::registries::Answer;
use crate::wanted::Wanted;

/// A MachineOSConfig and all that its plan depends on.
#[derive(Clone, Debug)]
pub struct Observed {
    /// The config.
    pub os_config: MachineOSConfig,
    /// Which build it wants.
    pub wanted: Wanted,
    /// The builds that it controls, by name.
    pub os_builds: Vec<Arc<MachineOSBuild>>,
    /// What the registry says of the wanted build's image, if it is to be adopted.
    pub image: Answer,
}

impl Observed {
    /// The build that is wanted now, if it exists.
    #[must_use]
    pub fn current(&self) -> Option<&Arc<MachineOSBuild>> {
        let name = self.wanted.name()?;
        self.os_builds
            .iter()
            .find(|os_build| os_build.name_any() == name)
    }
}

/// Reads; none if the config is gone.
///
/// # Errors
///
/// Of the apiserver.
pub async fn observe(
    context: &Context,
    cached: &MachineOSConfig,
) -> Result<Option<Observed>, Error> {
    let name = cached.name_any();
    let anew = cached.metadata.deletion_timestamp.is_some()
        || cached.annotations().contains_key(annotation::REBUILD);
    let (os_config, os_builds) = if anew {
        let Some(os_config) = read_config(context, &name).await? else {
            return Ok(None);
        };
        (os_config, read_builds(context, &name).await?)
    } else {
        (cached.clone(), context.cache.os_builds.of(&name))
    };
    let mut observed = Observed {
        wanted: context.cache.wanted(&os_config).0,
        os_builds: os_builds
            .into_iter()
            .filter(|os_build| controls(&os_config, os_build))
            .collect(),
        os_config,
        image: Answer::NotAsked,
    };
    observed.image = look(context, &observed).await;
    Ok(Some(observed))
}

async fn read_config(context: &Context, name: &str) -> Result<Option<MachineOSConfig>, Error> {
    let api: Api<MachineOSConfig> = Api::all(context.client.clone());
    api.get_opt(name).await.map_err(|source| Error::Read {
        object: format!("MachineOSConfig {name}"),
        source,
    })
}

async fn read_builds(
    context: &Context,
    os_config: &str,
) -> Result<Vec<Arc<MachineOSBuild>>, Error> {
    let api: Api<MachineOSBuild> = Api::all(context.client.clone());
    let selector = ListParams::default().labels(&format!("{}={os_config}", label::OS_CONFIG));
    let list = api.list(&selector).await.map_err(|source| Error::Read {
        object: format!("MachineOSBuilds of MachineOSConfig {os_config}"),
        source,
    })?;
    Ok(list.items.into_iter().map(Arc::new).collect())
}

/// Asks the registry for the image that is about to be named in the status; an image that was never pushed by a build is taken as it is.
async fn look(context: &Context, observed: &Observed) -> Answer {
    let Some(os_build) = super::plan::to_adopt(observed) else {
        return Answer::NotAsked;
    };
    let image = os_build
        .status
        .as_ref()
        .and_then(|status| status.digested_image_push_spec.as_deref())
        .and_then(|image| image.parse::<Reference>().ok());
    let secret = os_build.annotations().get(annotation::PUSH_SECRET);
    match (image, secret) {
        (Some(image), Some(secret)) if !os_build.labels().contains_key(label::PRE_BUILT_IMAGE) => {
            context.registries.look(&image, secret, false).await
        }
        _ => Answer::NotAsked,
    }
}
