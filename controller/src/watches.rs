//! Whom does an event concern?
//!
//! One watch per kind feeds the [`cache`](crate::cache) and queues what depends on the object that was touched. A
//! watch that breaks is begun again, with a growing delay; meanwhile the last state holds.

use std::collections::HashMap;
use std::fmt::Debug;
use std::future::Future;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use futures::channel::mpsc::{UnboundedReceiver, UnboundedSender, unbounded};
use futures::{StreamExt as _, pin_mut};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::core::NamespaceResourceScope;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::controller::ReconcileRequest;
use kube::runtime::reflector::ObjectRef;
use kube::runtime::watcher::{self, watcher};
use kube::{Api, Client, Resource, ResourceExt as _};
use serde::de::DeserializeOwned;
use strata_builder::error::chain;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tracing::{debug, warn};

use crate::api::{
    MachineConfig, MachineConfigPool, MachineOSBuild, MachineOSConfig, annotation, label, name,
};
use crate::cache::{
    Cache, Keeper, Kept, Meta, build_groups, by_pool, by_secret, config_groups, kept, owned_groups,
    pool_groups, ungrouped,
};

/// Until a missing list is told: a start takes less than a second when all CRDs and rights are there.
const SLOW_START: Duration = Duration::from_secs(10);

/// Objects to look at, a queue a kind, and the ledger's bell.
#[derive(Clone)]
pub struct Queues {
    os_configs: UnboundedSender<ReconcileRequest<MachineOSConfig>>,
    os_builds: UnboundedSender<ReconcileRequest<MachineOSBuild>>,
    pools: UnboundedSender<ReconcileRequest<MachineConfigPool>>,
    /// Rung when an image may have become unneeded.
    pub unneeded: Arc<Notify>,
}

/// The reading ends of [`Queues`].
pub struct Requests {
    /// Configs to look at.
    pub os_configs: UnboundedReceiver<ReconcileRequest<MachineOSConfig>>,
    /// Builds to look at.
    pub os_builds: UnboundedReceiver<ReconcileRequest<MachineOSBuild>>,
    /// Pools to look at.
    pub pools: UnboundedReceiver<ReconcileRequest<MachineConfigPool>>,
}

impl Queues {
    /// Empty queues.
    #[must_use]
    pub fn new() -> (Self, Requests) {
        let (config_sender, os_configs) = unbounded();
        let (build_sender, os_builds) = unbounded();
        let (pool_sender, pools) = unbounded();
        let queues = Self {
            os_configs: config_sender,
            os_builds: build_sender,
            pools: pool_sender,
            unneeded: Arc::default(),
        };
        (
            queues,
            Requests {
                os_configs,
                os_builds,
                pools,
            },
        )
    }

    fn os_config(&self, name: &str) {
        // closed at the stop only
        let _stopping = self.os_configs.unbounded_send(ObjectRef::new(name).into());
    }

    fn os_build(&self, name: &str) {
        let _stopping = self.os_builds.unbounded_send(ObjectRef::new(name).into());
    }

    fn pool(&self, name: &str) {
        let _stopping = self.pools.unbounded_send(ObjectRef::new(name).into());
    }

    fn os_config_with_builds(&self, cache: &Cache, name: &str) {
        self.os_config(name);
        for os_build in cache.os_builds.names_in(name) {
            self.os_build(&os_build);
        }
    }

    fn pool_with_configs(&self, cache: &Cache, name: &str) {
        self.pool(name);
        for os_config in cache.os_configs.names_in(&by_pool(name)) {
            self.os_config_with_builds(cache, &os_config);
        }
    }

    /// The build whose label an object carries.
    fn owner(&self, object: &impl Resource) -> bool {
        let os_build = object.labels().get(label::OS_BUILD);
        if let Some(os_build) = os_build {
            self.os_build(os_build);
        }
        os_build.is_some()
    }
}

/// Watches everything; the tasks run until they are dropped.
#[must_use]
pub fn start(client: &Client, namespace: &str, queues: &Queues, tasks: &mut JoinSet<()>) -> Cache {
    let (os_configs, config_keeper) = kept(config_groups);
    let (os_builds, build_keeper) = kept(build_groups);
    let (pools, pool_keeper) = kept(pool_groups);
    let (machine_configs, machine_config_keeper) = kept(ungrouped);
    let (jobs, job_keeper) = kept(owned_groups);
    let (config_maps, config_map_keeper) = kept(owned_groups);
    let (secrets, secret_keeper) = kept(owned_groups);
    let (_, pod_keeper) = kept::<Meta<Pod>>(ungrouped);
    let (nodes, node_keeper) = kept::<Meta<Node>>(ungrouped);
    let cache = Cache {
        os_configs,
        os_builds,
        pools,
        machine_configs,
        jobs,
        config_maps,
        secrets,
    };
    let mut watching = Watching {
        client,
        namespace,
        tasks,
    };
    // the closures below have one of each
    let each = || (cache.clone(), queues.clone());

    let (known, queue) = each();
    watching.everywhere(config_keeper, keep_all, move |os_config| {
        queue.os_config_with_builds(&known, &os_config.name_any());
        queue.pool(&os_config.spec.machine_config_pool.name);
        queue.unneeded.notify_one();
    });
    let (known, queue) = each();
    watching.everywhere(build_keeper, keep_all, move |os_build| {
        let os_config = &os_build.spec.machine_os_config.name;
        queue.os_build(&os_build.name_any());
        queue.os_config(os_config);
        if let Some(os_config) = known.os_configs.get(os_config) {
            queue.pool(&os_config.spec.machine_config_pool.name);
        }
        queue.unneeded.notify_one();
    });
    let (known, queue) = each();
    watching.everywhere(pool_keeper, keep_all, move |pool| {
        queue.pool_with_configs(&known, &pool.name_any());
    });
    let (known, queue) = each();
    watching.everywhere(machine_config_keeper, keep_names, move |machine_config| {
        for pool in known.pools.names_in(&machine_config.name_any()) {
            queue.pool_with_configs(&known, &pool);
        }
    });
    let (_, queue) = each();
    watching.namespaced(job_keeper, move |job| {
        queue.owner(job);
    });
    let (_, queue) = each();
    watching.namespaced(pod_keeper, move |pod| {
        queue.owner(pod);
    });
    let (known, queue) = each();
    watching.namespaced(secret_keeper, move |secret| {
        if !queue.owner(secret) {
            for os_config in known.os_configs.names_in(&by_secret(&secret.name_any())) {
                queue.os_config_with_builds(&known, &os_config);
            }
        }
    });
    let (known, queue) = each();
    watching.namespaced(config_map_keeper, move |config_map| {
        if !queue.owner(config_map) && config_map.name_any() == name::YUM_REPOS {
            for os_config in known.os_configs.store.state() {
                queue.os_config_with_builds(&known, &os_config.name_any());
            }
        }
    });
    let (_, queue) = each();
    let mut images: HashMap<String, [Option<String>; 2]> = HashMap::new();
    watching.everywhere(node_keeper, keep_images, move |node| {
        let name = node.name_any();
        let named = nodes.get(&name).map(|node| {
            [
                annotation::NODE_CURRENT_IMAGE,
                annotation::NODE_DESIRED_IMAGE,
            ]
            .map(|key| node.annotations().get(key).cloned())
        });
        // a node's heartbeat concerns nobody
        if images.get(&name) != named.as_ref() {
            queue.unneeded.notify_one();
        }
        match named {
            Some(named) => images.insert(name, named),
            None => images.remove(&name),
        };
    });
    cache
}

/// Begins watches.
struct Watching<'a> {
    client: &'a Client,
    namespace: &'a str,
    tasks: &'a mut JoinSet<()>,
}

impl Watching<'_> {
    /// On all objects of a cluster-wide kind.
    fn everywhere<K>(
        &mut self,
        keeper: Keeper<K>,
        trim: fn(&mut K),
        touched: impl FnMut(&K) + Send + 'static,
    ) where
        K: Resource + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
        K::DynamicType: Hash + Eq + Clone + Default,
    {
        let api = Api::all(self.client.clone());
        self.tasks.spawn(watch(api, keeper, trim, touched));
    }

    /// On the metadata of all objects of a kind in our namespace.
    fn namespaced<K>(&mut self, keeper: Keeper<K>, touched: impl FnMut(&K) + Send + 'static)
    where
        K: Resource<Scope = NamespaceResourceScope>
            + Clone
            + DeserializeOwned
            + Debug
            + Send
            + Sync
            + 'static,
        K::DynamicType: Hash + Eq + Clone + Default,
    {
        let api = Api::namespaced(self.client.clone(), self.namespace);
        self.tasks.spawn(watch(api, keeper, keep_all, touched));
    }
}

/// Waits until every kind was listed once; tells which isn't, since a missing CRD or right shows itself only so.
pub async fn listed(cache: &Cache) {
    let Cache {
        os_configs,
        os_builds,
        pools,
        machine_configs,
        jobs,
        config_maps,
        secrets,
    } = cache;
    futures::join!(
        told("MachineOSConfigs", first_list(os_configs)),
        told("MachineOSBuilds", first_list(os_builds)),
        told("MachineConfigPools", first_list(pools)),
        told("MachineConfigs", first_list(machine_configs)),
        told("Jobs", first_list(jobs)),
        told("ConfigMaps", first_list(config_maps)),
        told("Secrets", first_list(secrets)),
    );
}

async fn first_list<K>(kept: &Kept<K>)
where
    K: Resource + Clone + 'static,
    K::DynamicType: Hash + Eq + Clone,
{
    if kept.store.wait_until_ready().await.is_err() {
        // the watch's task has ended, as it does at the stop only
        std::future::pending::<()>().await;
    }
}

async fn told(kind: &'static str, listed: impl Future<Output = ()>) {
    pin_mut!(listed);
    while tokio::time::timeout(SLOW_START, &mut listed).await.is_err() {
        warn!(
            kind,
            "not listed yet: is the CRD installed, and may this ServiceAccount list it?"
        );
    }
}

async fn watch<K>(
    api: Api<K>,
    mut keeper: Keeper<K>,
    trim: fn(&mut K),
    mut touched: impl FnMut(&K) + Send,
) where
    K: Resource + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
    K::DynamicType: Hash + Eq + Clone + Default,
{
    let kind = K::plural(&K::DynamicType::default()).into_owned();
    let events = watcher(api, watcher::Config::default())
        .default_backoff()
        .modify(move |object| {
            object.managed_fields_mut().clear();
            trim(object);
        });
    pin_mut!(events);
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => {
                for object in keeper.take(&event) {
                    touched(&object);
                }
            }
            // the usual end of a watch that the apiserver has forgotten
            Err(watcher::Error::WatchError(status)) if status.code == 410 => {
                debug!(kind, "watch expired");
            }
            Err(error) => warn!(kind, error = chain(&error), "watch broke off"),
        }
    }
}

fn keep_all<K>(_: &mut K) {}

/// What names a build; files and units are read when one starts.
fn keep_names(machine_config: &mut MachineConfig) {
    machine_config.spec.config = None;
    machine_config.spec.other.clear();
}

fn keep_images(node: &mut Meta<Node>) {
    node.labels_mut().clear();
    node.annotations_mut().retain(|key, _| {
        [
            annotation::NODE_CURRENT_IMAGE,
            annotation::NODE_DESIRED_IMAGE,
        ]
        .contains(&key.as_str())
    });
}
