//! Whom does an event concern?
//!
//! One watch per kind feeds the [`cache`](crate::cache) and queues what depends on the object that was touched. A
//! watch that breaks is begun again, with a growing delay; meanwhile the last state holds. An object that can't be
//! decoded is told, and the others of its kind go on.

use std::collections::{BTreeMap, HashMap};
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

use crate::api::{MachineConfig, MachineConfigPool, MachineOSBuild, MachineOSConfig, label, name};
use crate::cache::{
    Cache, Heard, Keeper, Kept, Meta, build_groups, by_pool, by_secret, config_groups, kept,
    owned_groups, pool_groups, ungrouped,
};
use crate::decoded::{Decoded, Undecodable};
use crate::phase::Phase;
use crate::settings::current::SETTINGS_NAME;
use crate::turns::Turns;

/// Until a missing list is told: a start takes less than a second when all CRDs and rights are there.
const SLOW_START: Duration = Duration::from_secs(10);

/// Objects to look at, a queue a kind, and the bells of the ledger and of the settings.
#[derive(Clone)]
pub struct Queues {
    os_configs: UnboundedSender<ReconcileRequest<MachineOSConfig>>,
    os_builds: UnboundedSender<ReconcileRequest<MachineOSBuild>>,
    pools: UnboundedSender<ReconcileRequest<MachineConfigPool>>,
    undecodable: UnboundedSender<Arc<Undecodable>>,
    /// Rung when an image may have become unneeded.
    pub unneeded: Arc<Notify>,
    /// Rung when the ConfigMap with the settings may have changed.
    pub settings: Arc<Notify>,
    /// Builds that wait for another to end.
    pub turns: Arc<Turns>,
}

/// The reading ends of [`Queues`].
pub struct Requests {
    /// Configs to look at.
    pub os_configs: UnboundedReceiver<ReconcileRequest<MachineOSConfig>>,
    /// Builds to look at.
    pub os_builds: UnboundedReceiver<ReconcileRequest<MachineOSBuild>>,
    /// Pools to look at.
    pub pools: UnboundedReceiver<ReconcileRequest<MachineConfigPool>>,
    /// Objects to tell on that they can't be decoded.
    pub undecodable: UnboundedReceiver<Arc<Undecodable>>,
}

impl Queues {
    /// Empty queues.
    #[must_use]
    pub fn new() -> (Self, Requests) {
        let (config_sender, os_configs) = unbounded();
        let (build_sender, os_builds) = unbounded();
        let (pool_sender, pools) = unbounded();
        let (undecodable_sender, undecodable) = unbounded();
        let queues = Self {
            turns: Arc::new(Turns::new(build_sender.clone())),
            os_configs: config_sender,
            os_builds: build_sender,
            pools: pool_sender,
            undecodable: undecodable_sender,
            unneeded: Arc::default(),
            settings: Arc::default(),
        };
        (
            queues,
            Requests {
                os_configs,
                os_builds,
                pools,
                undecodable,
            },
        )
    }

    pub(crate) fn os_config(&self, name: &str) {
        // closed at the stop only
        let _stopping = self.os_configs.unbounded_send(ObjectRef::new(name).into());
    }

    pub(crate) fn os_build(&self, name: &str) {
        let _stopping = self.os_builds.unbounded_send(ObjectRef::new(name).into());
    }

    fn pool(&self, name: &str) {
        let _stopping = self.pools.unbounded_send(ObjectRef::new(name).into());
    }
}

/// Queues what an event concerns.
#[derive(Clone)]
pub(crate) struct Concerned {
    /// What the watches have told.
    pub(crate) known: Cache,
    /// Where it is queued.
    pub(crate) queues: Queues,
}

impl Concerned {
    pub(crate) fn os_config(&self, os_config: &MachineOSConfig) {
        self.config_with_builds(&os_config.name_any());
        self.queues.pool(&os_config.spec.machine_config_pool.name);
        self.queues.unneeded.notify_one();
    }

    pub(crate) fn os_build(&self, os_build: &MachineOSBuild) {
        let os_config = &os_build.spec.machine_os_config.name;
        self.queues.os_build(&os_build.name_any());
        self.queues.turns.wake();
        self.queues.os_config(os_config);
        if let Some(os_config) = self.known.os_configs.get(os_config) {
            self.queues.pool(&os_config.spec.machine_config_pool.name);
        }
        self.queues.unneeded.notify_one();
    }

    pub(crate) fn pool(&self, pool: &MachineConfigPool) {
        self.pool_with_configs(&pool.name_any());
    }

    pub(crate) fn machine_config(&self, machine_config: &MachineConfig) {
        self.queues.unneeded.notify_one();
        for pool in self.known.pools.names_in(&machine_config.name_any()) {
            self.pool_with_configs(&pool);
        }
    }

    pub(crate) fn secret(&self, secret: &impl Resource) {
        if !self.owner(secret) {
            let name = by_secret(&secret.name_any());
            for os_config in self.known.os_configs.names_in(&name) {
                self.config_with_builds(&os_config);
            }
        }
    }

    pub(crate) fn config_map(&self, config_map: &impl Resource) {
        if self.owner(config_map) {
            return;
        }
        match config_map.name_any().as_str() {
            name::YUM_REPOS => self.all_configs(),
            SETTINGS_NAME => self.queues.settings.notify_one(),
            _ => {}
        }
    }

    /// Other objects can't be decoded than before; anything may depend on them.
    fn undecodable(&self) {
        self.all_configs();
        self.queues.unneeded.notify_one();
    }

    pub(crate) fn owned(&self, object: &impl Resource) {
        self.owner(object);
    }

    /// The build whose label an object carries; whether there is one.
    fn owner(&self, object: &impl Resource) -> bool {
        let os_build = object.labels().get(label::OS_BUILD);
        if let Some(os_build) = os_build {
            self.queues.os_build(os_build);
        }
        os_build.is_some()
    }

    fn all_configs(&self) {
        for os_config in self.known.os_configs.store.state() {
            self.config_with_builds(&os_config.name_any());
        }
    }

    fn config_with_builds(&self, name: &str) {
        self.queues.os_config(name);
        for os_build in self.known.os_builds.names_in(name) {
            self.queues.os_build(&os_build);
        }
    }

    fn pool_with_configs(&self, name: &str) {
        self.queues.pool(name);
        for os_config in self.known.os_configs.names_in(&by_pool(name)) {
            self.config_with_builds(&os_config);
        }
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
        nodes: nodes.clone(),
        jobs,
        config_maps,
        secrets,
    };
    let concerned = Concerned {
        known: cache.clone(),
        queues: queues.clone(),
    };
    let mut watching = Watching {
        client,
        namespace,
        concerned: &concerned,
        tasks,
    };
    let each = || concerned.clone();
    let to = each();
    watching.everywhere(config_keeper, keep_all, move |it| to.os_config(it));
    let to = each();
    watching.everywhere(build_keeper, keep_outcome, move |it| to.os_build(it));
    let to = each();
    watching.everywhere(pool_keeper, keep_all, move |it| to.pool(it));
    let to = each();
    watching.everywhere(machine_config_keeper, keep_names, move |it| {
        to.machine_config(it);
    });
    let to = each();
    watching.namespaced(job_keeper, move |it| to.owned(it));
    let to = each();
    watching.namespaced(pod_keeper, move |it| to.owned(it));
    let to = each();
    watching.namespaced(secret_keeper, move |it| to.secret(it));
    let to = each();
    watching.namespaced(config_map_keeper, move |it| to.config_map(it));
    let to = each();
    let mut images: HashMap<String, BTreeMap<String, String>> = HashMap::new();
    watching.everywhere(node_keeper, keep_images, move |node| {
        let name = node.name_any();
        let named = nodes.get(&name).map(|node| node.annotations().clone());
        // a node's heartbeat concerns nobody
        if images.get(&name) != named.as_ref() {
            to.queues.unneeded.notify_one();
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
    concerned: &'a Concerned,
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
        let concerned = self.concerned.clone();
        self.tasks
            .spawn(watch(api, keeper, concerned, trim, touched));
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
        let concerned = self.concerned.clone();
        self.tasks
            .spawn(watch(api, keeper, concerned, keep_all, touched));
    }
}

/// Waits until every kind was listed once; tells which isn't, since a missing CRD or right shows itself only so.
pub async fn listed(cache: &Cache) {
    let Cache {
        os_configs,
        os_builds,
        pools,
        machine_configs,
        nodes,
        jobs,
        config_maps,
        secrets,
    } = cache;
    futures::join!(
        told("MachineOSConfigs", first_list(os_configs)),
        told("MachineOSBuilds", first_list(os_builds)),
        told("MachineConfigPools", first_list(pools)),
        told("MachineConfigs", first_list(machine_configs)),
        told("Nodes", first_list(nodes)),
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
    api: Api<Decoded<K>>,
    mut keeper: Keeper<K>,
    concerned: Concerned,
    trim: fn(&mut K),
    mut touched: impl FnMut(&K) + Send,
) where
    K: Resource + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
    K::DynamicType: Hash + Eq + Clone + Default,
{
    let kind = K::plural(&K::DynamicType::default()).into_owned();
    let events = watcher(api, watcher::Config::default())
        .default_backoff()
        .modify(move |decoded| {
            if let Decoded::Whole(object) = decoded {
                object.managed_fields_mut().clear();
                trim(object);
            }
        });
    pin_mut!(events);
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => {
                let Heard {
                    touched: objects,
                    news,
                    is_other,
                } = keeper.hear(event);
                for object in objects {
                    touched(&object);
                }
                if is_other {
                    concerned.undecodable();
                }
                if let Some(one) = news {
                    warn!(
                        kind,
                        name = one.name(),
                        version = one.metadata.resource_version,
                        field = one.field,
                        error = one.why,
                        "an object can't be read, and nothing is done with it"
                    );
                    // closed at the stop only
                    let _stopping = concerned.queues.undecodable.unbounded_send(one);
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

/// What is asked of a build that has ended: there may be tens of thousands. Of one that hasn't all is kept.
pub(crate) fn keep_outcome(os_build: &mut MachineOSBuild) {
    if !Phase::of_build(os_build).is_terminal() {
        return;
    }
    let labels = os_build.metadata.labels.take().unwrap_or_default();
    let mut labels = labels.into_iter();
    let pre_built = labels.find(|(key, _)| key == label::PRE_BUILT_IMAGE);
    os_build.metadata.labels = pre_built.map(|one| BTreeMap::from([one]));
    let Some(status) = &mut os_build.status else {
        return;
    };
    status.builder = None;
    status.related_objects = None;
    if let Some(conditions) = &mut status.conditions {
        conditions.retain(|one| one.status == "True");
        conditions.shrink_to_fit();
    }
}

/// What names a build; files and units are read when one starts.
fn keep_names(machine_config: &mut MachineConfig) {
    machine_config.spec.config = None;
    machine_config.spec.other.clear();
}

fn keep_images(node: &mut Meta<Node>) {
    node.labels_mut().clear();
    node.annotations_mut()
        .retain(|_, value| value.contains("sha256:"));
}
