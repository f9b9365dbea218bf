//! What must hold at every request. Told in words of its own, so that a mistake in the code that promises it isn't
//! repeated here.

use jiff::SignedDuration;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta};
use kube::{Resource, ResourceExt as _};
use strata_builder::digest::Digest;

use super::controller::{Key, Pass, Root};
use super::registry::OURS;
use super::table::is_owned;
use super::world::World;
use crate::api::machine_os_build::MachineOSBuildStatus;
use crate::api::{CLEANUP_FINALIZER, MachineOSBuild, annotation};
use crate::phase::Phase;
use crate::plan::Target;
use crate::wanted::wanted;

impl World {
    /// A pass that has effects outside holds its object.
    pub(super) fn guarded(&mut self, pass: &Pass, what: &str) {
        let root = &pass.root;
        let found = match pass.key {
            Key::Config(_) => self.os_configs.get(&root.name).map(Resource::meta),
            _ => self.os_builds.get(&root.name).map(Resource::meta),
        };
        let is_held = found.is_some_and(|meta| {
            let mut finalizers = meta.finalizers.iter().flatten();
            meta.uid.as_ref() == Some(&root.uid) && finalizers.any(|one| one == CLEANUP_FINALIZER)
        });
        if !is_held {
            self.breaks("guarded", || {
                format!("{what} for {} without its finalizer", root.name)
            });
        }
    }

    /// Nobody names the image that is about to be deleted, but the build with the UID `asking` and what is going itself.
    pub(super) fn unused(&mut self, digest: Digest, asking: Option<&str>) {
        let image = self.registry.images.get(&digest);
        if image.is_some_and(|image| image.cluster != OURS) {
            self.breaks("another cluster's images stay", || digest.to_string());
        }
        let digest = digest.to_string();
        let names = |image: Option<&String>| image.is_some_and(|image| image.ends_with(&digest));
        let node = self.nodes.all().find(|node| {
            let mut annotations = node.annotations().values();
            annotations.any(|value| value.contains(&digest))
        });
        let pinned = self.machine_configs.all().find(|one| {
            let base = one.spec.os_image_url.as_ref();
            names(base)
        });
        let os_config = self.os_configs.all().find(|one| {
            let status = one.status.as_ref();
            one.metadata.deletion_timestamp.is_none()
                && names(status.and_then(|status| status.current_image_pull_spec.as_ref()))
        });
        let os_build = self.os_builds.all().find(|one| {
            let status = one.status.as_ref();
            one.metadata.deletion_timestamp.is_none()
                && one.metadata.uid.as_deref() != asking
                && names(status.and_then(|status| status.digested_image_push_spec.as_ref()))
        });
        let to_stay = self.os_builds.all().find(|one| {
            let status = one.status.as_ref();
            let annotation = one.annotations().get(annotation::KEEP_IMAGE);
            annotation.is_some_and(|value| value.is_empty())
                && names(status.and_then(|status| status.digested_image_push_spec.as_ref()))
        });
        let stays = self
            .registry
            .kept
            .iter()
            .find(|one| one.to_string() == digest);
        let user = node
            .map(kube::ResourceExt::name_any)
            .or_else(|| pinned.map(kube::ResourceExt::name_any))
            .or_else(|| to_stay.map(kube::ResourceExt::name_any))
            .or_else(|| stays.map(|_| "the ledger".to_owned()))
            .or_else(|| os_config.map(kube::ResourceExt::name_any))
            .or_else(|| os_build.map(kube::ResourceExt::name_any));
        if let Some(user) = user {
            self.breaks("never deletes an image in use", || {
                format!("{digest}, which {user} names")
            });
        }
    }

    /// A build that is about to get a Job makes something that no image is of: another build of its config with the same
    /// base image, spec and pool has none that the registry serves. Unless somebody asked for it.
    pub(super) fn unmade(&mut self, name: &str) {
        let Some(os_build) = self.os_builds.get(name) else {
            return;
        };
        let anew = os_build.annotations().contains_key(annotation::BUILD_ANEW);
        let Some(os_config) = self.os_configs.get(&os_build.spec.machine_os_config.name) else {
            return;
        };
        let base = |one: &MachineOSBuild| {
            let machine_config = self.machine_configs.get(&one.spec.machine_config.name)?;
            machine_config.spec.os_image_url.clone()
        };
        // the name of the build that today's spec would have given on the other's MachineConfig
        let of_this_spec = |one: &MachineOSBuild| {
            let mut pool = self.pools.get(&os_config.name_any())?.clone();
            let configuration = pool.spec.configuration.as_mut()?;
            configuration.reference.name = Some(one.spec.machine_config.name.clone());
            let machine_config = self.machine_configs.get(&one.spec.machine_config.name)?;
            let wanted = wanted(os_config, Some(&pool), Some(machine_config));
            Some(wanted.name()? == one.name_any())
        };
        // its config was edited since
        if of_this_spec(os_build) != Some(true) {
            return;
        }
        let made = self.os_builds.all().find(|one| {
            let status = one.status.clone().unwrap_or_default();
            let image = status.digested_image_push_spec.as_deref();
            let digest = image.and_then(|image| image.rsplit_once('@')?.1.parse().ok());
            one.uid() != os_build.uid()
                && one.metadata.deletion_timestamp.is_none()
                && is_owned(
                    &one.metadata,
                    os_config.uid().as_deref().unwrap_or_default(),
                )
                && base(one) == base(os_build)
                && digest.is_some_and(|digest| self.registry.serves(digest, self.clock.now))
                && of_this_spec(one) == Some(true)
        });
        if let Some(made) = made.map(kube::ResourceExt::name_any)
            && !anew
        {
            let name = name.to_owned();
            self.breaks("one build for one content", || {
                format!("{name} gets a Job for what {made} has made")
            });
        }
    }

    /// As many builds run as may, with the one that is about to.
    pub(super) fn has_turn(&mut self, root: &Root) {
        let runs = |one: &&MachineOSBuild| {
            let phase = Phase::of_build(one);
            matches!(phase, Phase::Prepared | Phase::Building)
                && one.uid().as_ref() != Some(&root.uid)
        };
        let running = self.os_builds.all().filter(runs).count();
        if let Some(max) = self.settings.max_builds
            && running >= max
        {
            self.breaks("no more builds than may", || {
                format!("{} begins beside {running}, of {max}", root.name)
            });
        }
    }

    /// A build with an image that is deleted for want of nothing but room is older than those that stay.
    pub(super) fn may_go(&mut self, pass: &Pass, target: &Target) {
        let Some(os_build) = self.os_builds.get(&target.name) else {
            return;
        };
        let has_ended = is_ended(&os_build.status.clone().unwrap_or_default());
        let has_image = os_build
            .status
            .as_ref()
            .is_some_and(|status| status.digested_image_push_spec.is_some());
        // one that is built again goes by another rule
        if pass.rule != "prune"
            || !has_ended
            || !has_image
            || os_build.metadata.deletion_timestamp.is_some()
            || os_build.metadata.uid.as_deref() != Some(&target.uid)
        {
            return;
        }
        let stays = self.room_for(os_build);
        let name = target.name.clone();
        if let Some(why) = stays {
            self.breaks("retention", || format!("{name} is deleted, but {why}"));
        }
    }

    /// Why a build with an image stays, beside being needed or wanted.
    pub(super) fn room_for(&self, os_build: &MachineOSBuild) -> Option<&'static str> {
        let owners = |one: &MachineOSBuild| one.metadata.owner_references.clone();
        let place = |one: &MachineOSBuild| (one.creation_timestamp(), one.name_any());
        let retention = self.settings.retention;
        let newer = self.os_builds.all().filter(|one| {
            let status = one.status.as_ref();
            let image = status.and_then(|status| status.digested_image_push_spec.as_ref());
            image.is_some()
                && one.metadata.deletion_timestamp.is_none()
                && owners(one) == owners(os_build)
                && place(one) > place(os_build)
        });
        let newer = newer.count();
        let created = os_build.creation_timestamp()?;
        let age = self.clock.now.duration_since(created.0);
        match (retention.builds, retention.age) {
            (None, None) => Some("all stay"),
            (Some(builds), _) if newer < builds => Some("it is one of the newest"),
            (_, Some(limit)) if age < SignedDuration::try_from(limit).ok()? => {
                Some("it is too young")
            }
            _ if os_build
                .annotations()
                .get(annotation::KEEP_IMAGE)
                .is_some_and(String::is_empty) =>
            {
                Some("somebody keeps it")
            }
            _ => None,
        }
    }

    /// What is deleted belongs to the object whose pass it is; by its UID, so that a later one of its name is safe.
    pub(super) fn owned(&mut self, pass: &Pass, target: &Target, found: Option<ObjectMeta>) {
        let is_owned = found.is_none_or(|meta| {
            meta.uid.as_ref() != Some(&target.uid) || is_owned(&meta, &pass.root.uid)
        });
        if target.uid.is_empty() || !is_owned {
            self.breaks("owned only", || {
                format!("{} deletes {target:?}", pass.root.name)
            });
        }
    }

    /// A build that has ended never changes, and the apiserver takes what is written.
    pub(super) fn check_status(&mut self, root: &Root, next: &MachineOSBuildStatus) {
        let Some(os_build) = self.os_builds.get(&root.name) else {
            return;
        };
        if os_build.resource_version() != root.resource_version {
            return;
        }
        let before = os_build.status.clone().unwrap_or_default();
        if is_ended(&before) && before != *next {
            self.breaks("terminal is terminal", || root.name.clone());
        }
        let end = next.build_end.as_ref();
        let starts_before = |end| next.build_start.as_ref().is_some_and(|start| start.0 < end);
        if end.is_some_and(|end| !starts_before(end.0)) {
            self.breaks("the end is after the start", || root.name.clone());
        }
    }
}

/// Whether a condition says that nothing follows.
fn is_ended(status: &MachineOSBuildStatus) -> bool {
    let ends = |one: &Condition| {
        matches!(one.type_.as_str(), "Succeeded" | "Failed" | "Interrupted") && one.status == "True"
    };
    status.conditions.iter().flatten().any(ends)
}
