//! Which settings of builds count at this moment? Flags and environment, changed by the ConfigMap `strata-settings`.
//!
//! The ConfigMap may change at any time and counts for builds that start afterwards. One that is wrong changes nothing: the
//! settings before it go on, and its mistake is told in an event on it, in the log and in a metric.

use std::sync::{Arc, PoisonError, RwLock};

use k8s_openapi::api::core::v1::{ConfigMap, ObjectReference};
use kube::{Api, Client, Resource as _};
use strata_builder::error::{Class, Classify, chain};
use tracing::{info, warn};

use super::{BuildArgs, BuildSettings, SettingsError};
use crate::context::Context;
use crate::error::class_of;
use crate::events::{Notice, Reason};

/// The ConfigMap.
pub const SETTINGS_NAME: &str = "strata-settings";

/// Keys of it that the Deployment hands to the process as environment: they count from its next start.
const OF_THE_PROCESS: [&str; 3] = ["STRATA_LOG", "STRATA_LOG_FORMAT", "STRATA_LISTEN"];

/// The settings of builds, the same for all who hold it.
#[derive(Clone)]
pub struct Current(Arc<RwLock<Arc<BuildSettings>>>);

impl Current {
    /// `settings`, until others come.
    #[must_use]
    pub fn new(settings: BuildSettings) -> Self {
        Self(Arc::new(RwLock::new(Arc::new(settings))))
    }

    /// Those of this moment.
    #[must_use]
    pub fn get(&self) -> Arc<BuildSettings> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn set(&self, settings: BuildSettings) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(settings);
    }
}

/// The settings can't be had.
#[derive(Debug, thiserror::Error)]
pub enum CurrentError {
    /// The apiserver refuses.
    #[error("read ConfigMap {SETTINGS_NAME}")]
    Read(#[source] kube::Error),
    /// A flag or variable.
    #[error(transparent)]
    Given(SettingsError),
    /// A key of the ConfigMap.
    #[error("ConfigMap {SETTINGS_NAME}")]
    Key {
        /// It, for an event.
        object: Box<ObjectReference>,
        /// Which, and what to write.
        #[source]
        source: SettingsError,
    },
}

impl Classify for CurrentError {
    fn class(&self) -> Class {
        match self {
            CurrentError::Read(source) => class_of(source),
            CurrentError::Given(source) | CurrentError::Key { source, .. } => source.class(),
        }
    }
}

/// What `given` and the ConfigMap of `namespace` come to.
///
/// # Errors
///
/// Permanent: a setting must be changed. Transient: the apiserver didn't answer.
pub async fn read(
    client: &Client,
    given: &BuildArgs,
    namespace: &str,
) -> Result<BuildSettings, CurrentError> {
    let config_maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let config_map = config_maps
        .get_opt(SETTINGS_NAME)
        .await
        .map_err(CurrentError::Read)?;
    let Some(config_map) = config_map else {
        return BuildSettings::new(given.clone(), namespace).map_err(CurrentError::Given);
    };
    let data = config_map.data.clone().unwrap_or_default();
    BuildSettings::of_config_map(given, &data, &OF_THE_PROCESS, namespace).map_err(|source| {
        CurrentError::Key {
            object: Box::new(config_map.object_ref(&())),
            source,
        }
    })
}

/// Takes over what the ConfigMap says by now; whether anything is different.
///
/// # Errors
///
/// Transient: the apiserver didn't answer. What must be changed is told.
pub async fn renew(context: &Context, given: &BuildArgs) -> Result<bool, CurrentError> {
    let before = context.settings.get();
    let error = match read(&context.client, given, &context.namespace).await {
        Ok(settings) => {
            context.metrics.settings_valid(true);
            let changed = settings.differs(&before);
            if changed.is_empty() {
                return Ok(false);
            }
            info!(
                ?changed,
                "builds that start from now on have other settings"
            );
            context.settings.set(settings);
            return Ok(true);
        }
        Err(error @ CurrentError::Read(_)) => return Err(error),
        Err(error) => error,
    };
    context.metrics.settings_valid(false);
    let told = format!("{}; the settings before it go on", chain(&error));
    warn!(error = told, "the settings can't be taken over");
    if let CurrentError::Key { object, .. } = error {
        let notice = Notice::new(Reason::InvalidSettings, told);
        context.recorder.publish(&object, &notice).await;
    }
    Ok(false)
}
