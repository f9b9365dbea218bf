//! What does a reconciler have at hand?

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kube::core::NamespaceResourceScope;
use kube::{Api, Client, Resource};
use strata_builder::error::{Class, chain};
use strata_builder::reference::Reference;
use tokio::sync::Notify;
use tracing::warn;

use crate::backoff::Backoff;
use crate::cache::Cache;
use crate::error::class_of;
use crate::events::Recorder;
use crate::ledger::Ledger;
use crate::metrics::Metrics;
use crate::registries::Registries;
use crate::settings::{Current, Settings};
use crate::sweep::cluster_id;
use crate::trial::Trials;
use crate::turns::Turns;
use crate::watches::Queues;

/// Between two tries to tell the cluster.
const ASK_AGAIN: Duration = Duration::from_secs(2);

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
    missing: Mutex<BTreeSet<Reference>>,
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
    /// With what the watches fill `cache` with. It waits for an apiserver that doesn't answer; a cluster that can't be told is told in the log.
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
        let cluster = told_cluster(&client).await;
        Self {
            ledger: Ledger::new(client.clone(), namespace),
            given_up: Mutex::default(),
            missing: Mutex::default(),
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

    /// The images that a status names and that were last [looked for](crate::lost) in vain.
    pub fn set_missing(&self, images: BTreeSet<Reference>) {
        let missing = self.missing.lock();
        *missing.unwrap_or_else(PoisonError::into_inner) = images;
    }

    /// Whether [`Self::set_missing`] was told so of `image`.
    #[must_use]
    pub fn is_missing(&self, image: &Reference) -> bool {
        let missing = self.missing.lock();
        let missing = missing.unwrap_or_else(PoisonError::into_inner);
        missing.contains(image)
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

/// What images say that they are of. Whatever is built without it is never found again, so an apiserver is asked until it answers.
async fn told_cluster(client: &Client) -> Option<String> {
    loop {
        match cluster_id(client).await {
            Ok(cluster) => return cluster,
            Err(error) if class_of(&error) == Class::Transient => {
                warn!(
                    error = chain(&error),
                    "the namespace kube-system can't be read yet"
                );
                tokio::time::sleep(ASK_AGAIN).await;
            }
            Err(error) => {
                warn!(
                    error = chain(&error),
                    "the namespace kube-system can't be read: images don't say which cluster they are of, and those without a build are not looked for"
                );
                return None;
            }
        }
    }
}
