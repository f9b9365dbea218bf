//! What do the watches tell, and which objects belong together?
//!
//! A [`Kept`] is a kind's objects as the watch last told them, with an index from whatever groups them (a config's
//! builds, a pool's configs) to their names, so that an event costs what it concerns. Objects that aren't what their type says are
//! kept apart: they are in no group, and whoever looks for one by name may ask for them. [`watches`](crate::watches)
//! fills them; nothing here talks to the apiserver.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Debug;
use std::hash::Hash;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, Node, Secret};
use kube::core::PartialObjectMeta;
use kube::runtime::reflector::{ObjectRef, Store, store::Writer};
use kube::runtime::watcher::Event;
use kube::{Resource, ResourceExt as _};

use crate::api::{MachineConfig, MachineConfigPool, MachineOSBuild, MachineOSConfig, label};
use crate::decoded::{Decoded, Undecodable};
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
    undecodable: Arc<RwLock<Apart>>,
}

/// Undecodable objects, by name.
type Apart = BTreeMap<String, Arc<Undecodable>>;

impl<K> Clone for Kept<K>
where
    K: Resource + Clone + 'static,
    K::DynamicType: Hash + Eq + Clone,
{
    fn clone(&self) -> Self {
        Self {
            store: self.store.clone(),
            groups: Arc::clone(&self.groups),
            undecodable: Arc::clone(&self.undecodable),
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
    /// Of a list that isn't whole yet.
    listed: Apart,
}

/// What something that a watch tells comes to.
#[derive(Debug)]
pub struct Heard<K> {
    /// The objects that it concerns.
    pub touched: Vec<Arc<K>>,
    /// One that can't be decoded, unless the same was told of it before.
    pub news: Option<Arc<Undecodable>>,
    /// Whether other objects can't be decoded than before, or for another reason.
    pub is_other: bool,
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
        undecodable: Arc::default(),
    };
    let keeper = Keeper {
        writer,
        kept: kept.clone(),
        groups_of,
        listed: Apart::new(),
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

    /// The object of this name, if it is there and can't be decoded.
    #[must_use]
    pub fn undecodable(&self, name: &str) -> Option<Arc<Undecodable>> {
        self.apart().get(name).cloned()
    }

    /// All objects that can't be decoded, by name.
    #[must_use]
    pub fn all_undecodable(&self) -> Vec<Arc<Undecodable>> {
        self.apart().values().cloned().collect()
    }

    fn apart(&self) -> RwLockReadGuard<'_, Apart> {
        self.undecodable
            .read()
            .unwrap_or_else(PoisonError::into_inner)
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
    /// Takes over what a watch tells: as [`Self::take`] does of what can be decoded, and the rest apart. An object that can't be decoded any more is
    /// gone for those who look for it as its type.
    pub fn hear(&mut self, event: Event<Decoded<K>>) -> Heard<K> {
        let mut apart = self.kept.apart().clone();
        let mut told: Option<Arc<Undecodable>> = None;
        let event = match event {
            Event::Init => {
                self.listed.clear();
                Some(Event::Init)
            }
            Event::InitDone => {
                apart = std::mem::take(&mut self.listed);
                Some(Event::InitDone)
            }
            Event::InitApply(Decoded::Whole(object)) => Some(Event::InitApply(object)),
            Event::Apply(Decoded::Whole(object)) => {
                apart.remove(&object.name_any());
                Some(Event::Apply(object))
            }
            Event::Delete(Decoded::Whole(object)) => {
                apart.remove(&object.name_any());
                Some(Event::Delete(object))
            }
            Event::InitApply(Decoded::Undecodable(one)) => {
                let one = told.insert(Arc::from(one));
                self.listed.insert(one.name().to_owned(), Arc::clone(one));
                None
            }
            Event::Apply(Decoded::Undecodable(one)) => {
                let one = told.insert(Arc::from(one));
                apart.insert(one.name().to_owned(), Arc::clone(one));
                self.goes(one)
            }
            Event::Delete(Decoded::Undecodable(one)) => {
                apart.remove(one.name());
                self.goes(&one)
            }
        };
        let touched = event.map_or_else(Vec::new, |event| self.take(&event));
        let known = self.kept.undecodable.write();
        let mut known = known.unwrap_or_else(PoisonError::into_inner);
        let is_news = |one: &Arc<Undecodable>| {
            let before = known.get(one.name());
            before.is_none_or(|before| !one.is_told_by(before))
        };
        let news = told.filter(is_news);
        let is_other = known.len() != apart.len() || apart.values().any(is_news);
        *known = apart;
        Heard {
            touched,
            news,
            is_other,
        }
    }

    /// The end of what `one` was as its type, if it was that.
    fn goes(&self, one: &Undecodable) -> Option<Event<K>> {
        let known = self.kept.store.find(|known| known.name_any() == one.name());
        known.map(|known| Event::Delete((*known).clone()))
    }

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
        let pool_name = &os_config.spec.machine_config_pool.name;
        let pool = self.pools.get(pool_name);
        let target = pool
            .as_deref()
            .and_then(MachineConfigPool::target_machine_config);
        let machine_config = target.and_then(|target| self.machine_configs.get(target));
        let wanted = wanted(os_config, pool.as_deref(), machine_config.as_deref());
        let undecodable = self
            .pools
            .undecodable(pool_name)
            .or_else(|| self.machine_configs.undecodable(target?))
            .or_else(|| self.os_builds.undecodable(wanted.name()?));
        match undecodable {
            Some(one) => (
                Wanted::Invalid {
                    why: one.told(),
                    name: None,
                },
                pool,
            ),
            None => (wanted, pool),
        }
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
mod tests;
