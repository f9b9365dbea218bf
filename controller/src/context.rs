//! What does a reconciler have at hand?

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use kube::core::NamespaceResourceScope;
use kube::{Api, Client, Resource};
use strata_builder::error::chain;
use tokio::sync::Notify;
use tracing::warn;

use crate::backoff::Backoff;
use crate::cache::Cache;
use crate::events::Recorder;
use crate::ledger::Ledger;
use crate::metrics::Metrics;
use crate::registries::Registries;
use crate::settings::{Current, Settings};
use crate::sweep::cluster_id;
use crate::trial::Trials;
use crate::turns::Turns;
use crate::watches::Queues;

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
    given_up: Mutex<BTreeSet<String>>,
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
    /// With what the watches fill `cache` with. A cluster that can't be told is told in the log.
    pub async fn open(
        client: Client,
        settings: &Settings,
        builds: Current,
        metrics: Metrics,
        cache: Cache,
        queues: &Queues,
    ) -> Self {
        let Settings {
            namespace,
            listen: _,
            identity,
            hand_back: _,
            builds: _,
        } = settings;
        let cluster = match cluster_id(&client).await {
            Ok(cluster) => cluster,
            Err(error) => {
                warn!(
                    error = chain(&error),
                    "the namespace kube-system can't be read: images don't say which cluster they are of, and those without a build are not looked for"
                );
                None
            }
        };
        Self {
            ledger: Ledger::new(client.clone(), namespace),
            given_up: Mutex::default(),
            recorder: Recorder::new(client.clone(), identity),
            turns: Arc::clone(&queues.turns),
            unneeded: Arc::clone(&queues.unneeded),
            backoff: Backoff::new(),
            cluster,
            registries: Registries::new(client.clone(), namespace.clone(), builds.clone()),
            settings: builds,
            namespace: namespace.clone(),
            trials: Trials::new(metrics.clone()),
            metrics,
            cache,
            client,
        }
    }

    /// Its registry doesn't delete `image`, as was told: it isn't looked for again, as long as this process lives.
    pub fn give_up(&self, image: &str) {
        let given_up = self.given_up.lock();
        let mut given_up = given_up.unwrap_or_else(PoisonError::into_inner);
        given_up.insert(image.to_owned());
    }

    /// Whether [`Self::give_up`] was told so.
    #[must_use]
    pub fn is_given_up(&self, image: &str) -> bool {
        let given_up = self.given_up.lock();
        let given_up = given_up.unwrap_or_else(PoisonError::into_inner);
        given_up.contains(image)
    }

    /// The objects of a kind in the namespace that is ours.
    #[must_use]
    pub fn namespaced<K>(&self) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }
}
