//! What is the case around a MachineOSConfig? All reads of its reconciler; no write, no choice.
//!
//! Most of it is what the watches told. What a stale answer could make wrong is read anew: config and builds before a
//! rebuild, a restart or a deletion.

use std::sync::Arc;

use jiff::Timestamp;
use kube::ResourceExt as _;
use strata_builder::error::chain;
use strata_builder::reference::Reference;

use super::{controls, plan};
use crate::api::{MachineOSBuild, MachineOSConfig, annotation};
use crate::error::Error;
use crate::live::Live;
use crate::registries::Answer;
use crate::retention::Retention;
use crate::reuse::is_pre_built;
use crate::usage::Users;
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
    /// Which of its builds stay, or which annotation says so wrongly.
    pub retention: Result<Retention, String>,
    /// All that can name an image, if builds may go.
    pub users: Option<Users>,
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

/// Reads at `now`; none if the config is gone.
///
/// # Errors
///
/// Of the apiserver.
pub async fn observe(
    live: &impl Live,
    cached: &MachineOSConfig,
    now: Timestamp,
) -> Result<Option<Observed>, Error> {
    let name = cached.name_any();
    let annotations = cached.annotations();
    let anew = cached.metadata.deletion_timestamp.is_some()
        || annotations.contains_key(annotation::REBUILD)
        || annotations.contains_key(annotation::BUILD_ANEW);
    let (os_config, os_builds) = if anew {
        let Some(os_config) = live.os_config(&name).await? else {
            return Ok(None);
        };
        let wanted = live.wanted(&os_config).0;
        let os_builds = live.os_builds(&name, wanted.name()).await?;
        (os_config, os_builds.into_iter().map(Arc::new).collect())
    } else {
        (cached.clone(), live.cache().os_builds.of(&name))
    };
    let mut observed = Observed {
        wanted: live.wanted(&os_config).0,
        os_builds: os_builds
            .into_iter()
            .filter(|os_build| controls(&os_config, os_build))
            .collect(),
        retention: live
            .settings()
            .retention_of(&os_config)
            .map_err(|error| chain(&error)),
        os_config,
        image: Answer::NotAsked,
        users: None,
    };
    observed.image = look(live, &observed).await;
    let has_surplus = observed.image == Answer::NotAsked && plan::has_surplus(&observed, now);
    if has_surplus || plan::is_to_restart(&observed) {
        // the spec, the name of the wanted build or a status may have come to name another
        let Some(os_config) = live.os_config(&name).await? else {
            return Ok(None);
        };
        observed.wanted = live.wanted(&os_config).0;
        let os_builds = live.os_builds(&name, observed.wanted.name()).await?;
        let os_builds = os_builds
            .into_iter()
            .filter(|os_build| controls(&os_config, os_build));
        observed.os_builds = os_builds.map(Arc::new).collect();
        observed.os_config = os_config;
        observed.image = look(live, &observed).await;
    }
    if has_surplus {
        observed.users = Some(live.users().await?);
    }
    Ok(Some(observed))
}

/// Asks the registry for the image that is about to be named in the status, or that is named there and seems to have gone; an image that was never
/// pushed by a build is taken as it is.
async fn look(live: &impl Live, observed: &Observed) -> Answer {
    let image_of = |os_build: &MachineOSBuild| -> Option<Reference> {
        let status = os_build.status.as_ref()?;
        status.digested_image_push_spec.as_ref()?.parse().ok()
    };
    let seems_gone = |one: &&MachineOSBuild| image_of(one).is_some_and(|it| live.is_missing(&it));
    let adopted = || observed.current().map(AsRef::as_ref).filter(seems_gone);
    let Some(os_build) = plan::to_adopt(observed).or_else(adopted) else {
        return Answer::NotAsked;
    };
    let image = image_of(os_build);
    let secret = os_build.annotations().get(annotation::PUSH_SECRET);
    match (image, secret) {
        (Some(image), Some(secret)) if !is_pre_built(os_build) => {
            live.look(&image, secret, false).await
        }
        _ => Answer::NotAsked,
    }
}
