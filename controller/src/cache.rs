//! What do the watches tell, and which objects belong together?
//!
//! A [`Kept`] is a kind's objects as the watch last told them, with an index from whatever groups them (a config's
//! builds, a pool's configs) to their names, so that an event costs what it concerns. [`watches`](crate::watches)
//! fills them; nothing here talks to the apiserver.

use std::collections::{BTreeSet, HashMap};
use std::fmt::Debug;
use std::hash::Hash;
use std::sync::{Arc, PoisonError, RwLock};

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, Node, Secret};
use kube::core::PartialObjectMeta;
use kube::runtime::reflector::{ObjectRef, Store, store::Writer};
use kube::runtime::watcher::Event;
use kube::{Resource, ResourceExt as _};

use crate::api::{MachineConfig, MachineConfigPool, MachineOSBuild, MachineOSConfig, label};
use crate::phase::Phase;
use crate::wanted::{Wanted, wanted};

/// Objects of one kind, by name and by group.
pub struct Kept<K>
where
    K: Resource + 'static,
    K::DynamicType: Hash + Eq,
{
    /// By name.
    pub store: Store<K>,
    groups: Arc<RwLock<Groups>>,
}

impl<K> Clone for Kept<K>
where
    K: Resource + Clone + 'static,
    K::DynamicType: Hash + Eq + Clone,
{
    fn clone(&self) -> Self {
        Self {
            store: self.store.clone(),
            groups: Arc::clone(&self.groups),
        }
    }
}

#[derive(Default)]
struct Groups {
    members: HashMap<String, BTreeSet<String>>,
    of: HashMap<String, Vec<String>>,
}

impl Groups {
    fn set(&mut self, name: &str, groups: Vec<String>) {
        if self.of.get(name).is_some_and(|known| *known == groups) {
            return;
        }
        self.remove(name);
        for group in &groups {
            self.members
                .entry(group.clone())
                .or_default()
                .insert(name.to_owned());
        }
        if !groups.is_empty() {
            self.of.insert(name.to_owned(), groups);
        }
    }

    fn remove(&mut self, name: &str) {
        for group in self.of.remove(name).unwrap_or_default() {
            if let Some(members) = self.members.get_mut(&group) {
                members.remove(name);
                if members.is_empty() {
                    self.members.remove(&group);
                }
            }
        }
    }
}

/// The end of a [`Kept`] that the watch writes to.
pub struct Keeper<K>
where
    K: Resource + Clone + 'static,
    K::DynamicType: Hash + Eq + Clone,
{
    writer: Writer<K>,
    kept: Kept<K>,
    groups_of: fn(&K) -> Vec<String>,
}

/// An empty [`Kept`] whose objects are grouped by `groups_of`, and its writing end.
pub fn kept<K>(groups_of: fn(&K) -> Vec<String>) -> (Kept<K>, Keeper<K>)
where
    K: Resource + Clone + 'static,
    K::DynamicType: Hash + Eq + Clone + Default,
{
    let writer = Writer::default();
    let kept = Kept {
        store: writer.as_reader(),
        groups: Arc::default(),
    };
    let keeper = Keeper {
        writer,
        kept: kept.clone(),
        groups_of,
    };
    (kept, keeper)
}

impl<K> Kept<K>
where
    K: Resource + Clone + 'static,
    K::DynamicType: Hash + Eq + Clone + Default,
{
    /// The cluster-wide object of this name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<Arc<K>> {
        self.store.get(&ObjectRef::new(name))
    }

    /// The object of this name in `namespace`.
    #[must_use]
    pub fn get_in(&self, namespace: &str, name: &str) -> Option<Arc<K>> {
        self.store.get(&ObjectRef::new(name).within(namespace))
    }

    /// Names of the objects in `group`, sorted.
    #[must_use]
    pub fn names_in(&self, group: &str) -> Vec<String> {
        let groups = self.groups.read().unwrap_or_else(PoisonError::into_inner);
        let members = groups.members.get(group);
        members.map_or_else(Vec::new, |names| names.iter().cloned().collect())
    }

    /// The cluster-wide objects in `group`, by name.
    #[must_use]
    pub fn of(&self, group: &str) -> Vec<Arc<K>> {
        let names = self.names_in(group);
        names.iter().filter_map(|name| self.get(name)).collect()
    }
}

impl<K> Keeper<K>
where
    K: Resource + Clone + Debug + 'static,
    K::DynamicType: Hash + Eq + Clone + Default,
{
    /// Takes over what a watch tells. The objects that this concerns; after a new list all that are or were there.
    pub fn take(&mut self, event: &Event<K>) -> Vec<Arc<K>> {
        let before = match event {
            Event::InitDone => self.kept.store.state(),
            Event::Apply(_) | Event::Delete(_) | Event::Init | Event::InitApply(_) => Vec::new(),
        };
        self.writer.apply_watcher_event(event);
        let mut groups = self
            .kept
            .groups
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        match event {
            Event::Init | Event::InitApply(_) => Vec::new(),
            Event::Apply(object) => {
                groups.set(&object.name_any(), (self.groups_of)(object));
                vec![Arc::new(object.clone())]
            }
            Event::Delete(object) => {
                groups.remove(&object.name_any());
                vec![Arc::new(object.clone())]
            }
            Event::InitDone => {
                *groups = Groups::default();
                let mut touched = self.kept.store.state();
                for object in &touched {
                    groups.set(&object.name_any(), (self.groups_of)(object));
                }
                let uids: BTreeSet<_> = touched.iter().map(|object| object.uid()).collect();
                touched.extend(
                    before
                        .into_iter()
                        .filter(|object| !uids.contains(&object.uid())),
                );
                touched
            }
        }
    }
}

/// An object of which only the metadata is kept.
pub type Meta<K> = PartialObjectMeta<K>;

/// Everything that is watched.
#[derive(Clone)]
pub struct Cache {
    /// In groups by what they refer to: see [`config_groups`].
    pub os_configs: Kept<MachineOSConfig>,
    /// In groups by the name of their MachineOSConfig.
    pub os_builds: Kept<MachineOSBuild>,
    /// In groups by the rendered MachineConfig that they want.
    pub pools: Kept<MachineConfigPool>,
    /// Without what only a build reads.
    pub machine_configs: Kept<MachineConfig>,
    /// The annotations that name images.
    pub nodes: Kept<Meta<Node>>,
    /// In groups by the name of their MachineOSBuild.
    pub jobs: Kept<Meta<Job>>,
    /// In groups by the name of their MachineOSBuild.
    pub config_maps: Kept<Meta<ConfigMap>>,
    /// In groups by the name of their MachineOSBuild.
    pub secrets: Kept<Meta<Secret>>,
}

impl Cache {
    /// What `os_config` wants, and its pool, as the watches told them.
    #[must_use]
    pub fn wanted(&self, os_config: &MachineOSConfig) -> (Wanted, Option<Arc<MachineConfigPool>>) {
        let pool = self.pools.get(&os_config.spec.machine_config_pool.name);
        let machine_config = pool
            .as_deref()
            .and_then(MachineConfigPool::target_machine_config)
            .and_then(|target| self.machine_configs.get(target));
        let wanted = wanted(os_config, pool.as_deref(), machine_config.as_deref());
        (wanted, pool)
    }
}

/// Group of the configs of a pool.
#[must_use]
pub fn by_pool(pool: &str) -> String {
    format!("pool/{pool}")
}

/// Group of the configs that need a Secret.
#[must_use]
pub fn by_secret(secret: &str) -> String {
    format!("secret/{secret}")
}

/// The groups of a config: its pool, and the Secrets that its builds may need.
#[must_use]
pub fn config_groups(os_config: &MachineOSConfig) -> Vec<String> {
    let spec = &os_config.spec;
    let pool = &spec.machine_config_pool.name;
    let pull = spec.base_image_pull_secret.as_ref();
    vec![
        by_pool(pool),
        by_secret(&spec.rendered_image_push_secret.name),
        by_secret(pull.map_or(crate::api::DEFAULT_PULL_SECRET, |secret| &secret.name)),
        by_secret(&crate::api::name::entitlement(pool)),
        by_secret(crate::api::name::RPM_GPG),
    ]
}

/// Group of the builds that have not ended; no config has such a name.
pub const ACTIVE: &str = "active builds";

/// The groups of a build: its config, and [`ACTIVE`].
#[must_use]
pub fn build_groups(os_build: &MachineOSBuild) -> Vec<String> {
    let active = !Phase::of_build(os_build).is_terminal();
    let os_config = os_build.spec.machine_os_config.name.clone();
    std::iter::once(os_config)
        .chain(active.then(|| ACTIVE.to_owned()))
        .collect()
}

/// The group of a pool: the rendered MachineConfig that it wants.
#[must_use]
pub fn pool_groups(pool: &MachineConfigPool) -> Vec<String> {
    pool.target_machine_config()
        .map(str::to_owned)
        .into_iter()
        .collect()
}

/// The group of an object made for a build: that build.
#[must_use]
pub fn owned_groups<K: Resource>(object: &K) -> Vec<String> {
    object
        .labels()
        .get(label::OS_BUILD)
        .cloned()
        .into_iter()
        .collect()
}

/// No groups.
#[must_use]
pub fn ungrouped<K>(_: &K) -> Vec<String> {
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures;

    fn build(uid: &str, os_config: &str) -> MachineOSBuild {
        let mut os_build = fixtures::os_build();
        os_build.metadata.name = Some(format!("build-{uid}"));
        os_build.metadata.uid = Some(uid.to_owned());
        os_build.spec.machine_os_config.name = os_config.to_owned();
        os_build
    }

    fn uids(touched: &[Arc<MachineOSBuild>]) -> Vec<String> {
        let mut uids: Vec<_> = touched.iter().filter_map(|one| one.uid()).collect();
        uids.sort();
        uids
    }

    #[test]
    fn objects_are_found_by_group_and_move_between_groups() {
        let (kept, mut keeper) = kept(build_groups);
        keeper.take(&Event::Apply(build("1", "a")));
        keeper.take(&Event::Apply(build("2", "a")));
        assert_eq!(kept.names_in("a"), ["build-1", "build-2"]);
        keeper.take(&Event::Apply(build("2", "b")));
        assert_eq!(kept.names_in("a"), ["build-1"]);
        assert_eq!(uids(&kept.of("b")), ["2"]);
        keeper.take(&Event::Delete(build("1", "a")));
        assert!(kept.of("a").is_empty());
    }

    #[test]
    fn a_new_list_concerns_what_is_there_and_what_has_gone_unseen() {
        let (kept, mut keeper) = kept(build_groups);
        keeper.take(&Event::Apply(build("1", "a")));
        keeper.take(&Event::Apply(build("2", "a")));
        assert!(keeper.take(&Event::Init).is_empty());
        assert!(keeper.take(&Event::InitApply(build("2", "a"))).is_empty());
        keeper.take(&Event::InitApply(build("3", "b")));
        // until the list is whole, the old one holds
        assert_eq!(kept.names_in("a"), ["build-1", "build-2"]);
        assert_eq!(uids(&keeper.take(&Event::InitDone)), ["1", "2", "3"]);
        assert_eq!(kept.names_in("a"), ["build-2"]);
        assert_eq!(kept.names_in("b"), ["build-3"]);
    }
}
