//! One kind of objects as the apiserver keeps them, and what its watch has not told yet.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Debug;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};
use kube::runtime::watcher::Event;
use kube::{Resource, ResourceExt as _};

use crate::api::FOREGROUND_FINALIZER;
use crate::cache::{Keeper, Kept, kept};

/// Where UIDs, versions and times come from.
#[derive(Clone, Copy)]
pub(super) struct Clock {
    pub(super) now: Timestamp,
    count: u64,
}

impl Clock {
    pub(super) fn new(now: Timestamp) -> Self {
        Self { now, count: 0 }
    }

    pub(super) fn next(&mut self) -> u64 {
        self.count += 1;
        self.count
    }
}

/// What a deletion says of the objects that belong to the deleted one.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Propagation {
    Background,
    Foreground,
    /// The finalizers of the object decide.
    AsItSays,
}

/// What the apiserver can keep.
pub(super) trait Object: Resource<DynamicType = ()> + Clone + PartialEq {}

impl<K: Resource<DynamicType = ()> + Clone + PartialEq> Object for K {}

/// What the cache can keep.
pub(super) trait Trimmed: Resource<DynamicType = ()> + Clone + Debug + 'static {}

impl<K: Resource<DynamicType = ()> + Clone + Debug + 'static> Trimmed for K {}

/// Objects of a kind by name; `C` is what the cache keeps of one.
pub(super) struct Table<K, C = K>
where
    C: Resource<DynamicType = ()> + Clone + 'static,
{
    objects: BTreeMap<String, K>,
    untold: VecDeque<Event<C>>,
    keeper: Keeper<C>,
    groups_of: fn(&C) -> Vec<String>,
    kept_of: fn(&K) -> C,
}

impl<K: Object, C: Trimmed> Table<K, C> {
    pub(super) fn new(kept_of: fn(&K) -> C, groups_of: fn(&C) -> Vec<String>) -> Self {
        Self {
            objects: BTreeMap::new(),
            untold: VecDeque::new(),
            keeper: kept(groups_of).1,
            groups_of,
            kept_of,
        }
    }

    pub(super) fn get(&self, name: &str) -> Option<&K> {
        self.objects.get(name)
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &K> {
        self.objects.values()
    }

    /// The `n`th, counted round and round.
    pub(super) fn nth(&self, n: u8) -> Option<&K> {
        let count = self.objects.len().max(1);
        self.objects.values().nth(usize::from(n) % count)
    }

    pub(super) fn has_uid(&self, uid: &str) -> bool {
        self.all()
            .any(|object| object.meta().uid.as_deref() == Some(uid))
    }

    /// Creates it, unless its name is taken.
    pub(super) fn create(&mut self, clock: &mut Clock, mut object: K) -> bool {
        let name = object.name_any();
        if self.objects.contains_key(&name) {
            return false;
        }
        let stamp = clock.next().to_string();
        let meta = object.meta_mut();
        meta.uid = Some(format!("uid-{stamp}"));
        meta.resource_version = Some(stamp);
        meta.generation = Some(1);
        meta.creation_timestamp = Some(Time(clock.now));
        self.untold.push_back(Event::Apply((self.kept_of)(&object)));
        self.objects.insert(name, object);
        true
    }

    /// Changes it, if it is there; it goes if it is being deleted and nothing holds it any more.
    pub(super) fn change(&mut self, clock: &mut Clock, name: &str, change: impl FnOnce(&mut K)) {
        let Some(object) = self.objects.get_mut(name) else {
            return;
        };
        let before = object.clone();
        change(object);
        let meta = object.meta_mut();
        if meta.deletion_timestamp.is_some() && meta.finalizers.as_ref().is_none_or(Vec::is_empty) {
            self.untold.push_back(Event::Delete((self.kept_of)(object)));
            self.objects.remove(name);
        } else if *object != before {
            object.meta_mut().resource_version = Some(clock.next().to_string());
            self.untold.push_back(Event::Apply((self.kept_of)(object)));
        }
    }

    /// Deletes it, if it is there, as the apiserver does.
    pub(super) fn delete(&mut self, clock: &mut Clock, name: &str, propagation: Propagation) {
        let now = clock.now;
        self.change(clock, name, |object| {
            let meta = object.meta_mut();
            let finalizers = meta.finalizers.get_or_insert_default();
            if propagation != Propagation::AsItSays {
                finalizers.retain(|one| one != FOREGROUND_FINALIZER);
            }
            if propagation == Propagation::Foreground {
                finalizers.push(FOREGROUND_FINALIZER.to_owned());
            }
            meta.deletion_timestamp.get_or_insert(Time(now));
        });
    }

    /// A new reader: the cache of a controller that has just begun.
    pub(super) fn listen(&mut self) -> Kept<C> {
        let (kept, keeper) = kept(self.groups_of);
        self.keeper = keeper;
        kept
    }

    /// Tells all that is there anew, as after a watch that broke; what it concerns.
    pub(super) fn relist(&mut self) -> Vec<Arc<C>> {
        self.untold.clear();
        self.keeper.take(&Event::Init);
        for object in self.objects.values() {
            self.keeper.take(&Event::InitApply((self.kept_of)(object)));
        }
        self.keeper.take(&Event::InitDone)
    }

    /// Tells the oldest event, `again` to be told once more; what it concerns.
    pub(super) fn tell(&mut self, again: bool) -> Vec<Arc<C>> {
        let Some(event) = self.untold.pop_front() else {
            return Vec::new();
        };
        let touched = self.keeper.take(&event);
        if again {
            self.untold.push_front(event);
        }
        touched
    }

    pub(super) fn has_untold(&self) -> bool {
        !self.untold.is_empty()
    }
}

/// The UIDs of the owners of an object.
pub(super) fn owners(meta: &ObjectMeta) -> impl Iterator<Item = &OwnerReference> {
    meta.owner_references.iter().flatten()
}

pub(super) fn is_owned(meta: &ObjectMeta, uid: &str) -> bool {
    owners(meta).any(|owner| owner.uid == uid)
}
