//! What does a reconciler have at hand?

use std::sync::Arc;

use kube::core::NamespaceResourceScope;
use kube::{Api, Client, Resource};
use tokio::sync::Notify;

use crate::backoff::Backoff;
use crate::cache::Cache;
use crate::events::Recorder;
use crate::ledger::Ledger;
use crate::metrics::Metrics;
use crate::registries::Registries;
use crate::settings::Current;
use crate::trial::Trials;
use crate::turns::Turns;

/// Handles to everything outside, and the settings.
pub struct Context {
    /// To the apiserver.
    pub client: Client,
    /// What the watches have told.
    pub cache: Cache,
    /// Where all namespaced objects live.
    pub namespace: String,
    /// What images of this cluster say that they are of; none if that isn't known.
    pub cluster: Option<String>,
    /// What shapes builds.
    pub settings: Current,
    /// Which pods the cluster takes.
    pub trials: Trials,
    /// To registries.
    pub registries: Registries,
    /// Images to delete later.
    pub ledger: Ledger,
    /// Which builds may begin.
    pub turns: Arc<Turns>,
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
    /// The objects of a kind in the namespace that is ours.
    #[must_use]
    pub fn namespaced<K>(&self) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }
}
