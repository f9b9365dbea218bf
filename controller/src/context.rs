//! What does a reconciler have at hand?

use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;
use kube::api::ListParams;
use kube::core::PartialObjectMeta;
use kube::{Api, Client};
use tokio::sync::Notify;

use crate::api::{MachineOSBuild, MachineOSConfig};
use crate::backoff::Backoff;
use crate::cache::Cache;
use crate::error::Error;
use crate::events::Recorder;
use crate::job::JobSettings;
use crate::ledger::Ledger;
use crate::metrics::Metrics;
use crate::registries::Registries;
use crate::usage::Users;

/// Handles to everything outside, and the settings.
pub struct Context {
    /// To the apiserver.
    pub client: Client,
    /// What the watches have told.
    pub cache: Cache,
    /// Of this process.
    pub settings: JobSettings,
    /// To registries.
    pub registries: Registries,
    /// Images to delete later.
    pub ledger: Ledger,
    /// Told when an image may have become unneeded.
    pub unneeded: Arc<Notify>,
    /// For events.
    pub recorder: Recorder,
    /// Counts and times.
    pub metrics: Metrics,
    /// Failures per object.
    pub backoff: Backoff,
}

impl Context {
    /// All that can name an image, as the apiserver has it now.
    ///
    /// # Errors
    ///
    /// Of the apiserver; the image at hand then counts as used.
    pub async fn users(&self) -> Result<Users, Error> {
        let nodes: Api<PartialObjectMeta<Node>> = Api::all(self.client.clone());
        let os_configs: Api<MachineOSConfig> = Api::all(self.client.clone());
        let os_builds: Api<MachineOSBuild> = Api::all(self.client.clone());
        let all = ListParams::default();
        let read = |object: &str| {
            let object = object.to_owned();
            move |source| Error::Read { object, source }
        };
        Ok(Users {
            nodes: nodes.list(&all).await.map_err(read("nodes"))?.items,
            os_configs: os_configs
                .list(&all)
                .await
                .map_err(read("MachineOSConfigs"))?
                .items,
            os_builds: os_builds
                .list(&all)
                .await
                .map_err(read("MachineOSBuilds"))?
                .items,
        })
    }
}
