//! What must be the case when nothing disturbs any more?

use std::collections::BTreeSet;

use futures::FutureExt as _;
use jiff::SignedDuration;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Resource, ResourceExt as _};
use strata_builder::digest::Digest;
use strata_builder::reference::Reference;

use super::controller::{Hearing, Key};
use super::kubernetes::End;
use super::registry::OURS;
use super::table::{Propagation, owners};
use super::world::{CONFIGS, World};
use crate::api::condition::is_true;
use crate::api::{MachineOSBuild, MachineOSConfig, annotation};
use crate::ledger::Entry;
use crate::live::Needs as _;
use crate::phase::Phase;
use crate::sweep::GRACE;

/// Far more rounds than the longest way to an end takes.
const ROUNDS: u32 = 300;
/// Longer than any limit in a plan: what is written after that much silence is written for ever.
const SILENCE: SignedDuration = SignedDuration::from_mins(12);

impl World {
    /// The controller hears all that there is to tell, and does all that is due. False if there is nothing.
    pub(super) fn works(&mut self) -> bool {
        let mut moved = false;
        while self.hear_one(0, Hearing::Once) {
            moved = true;
        }
        while self.go_on(0) {
            moved = true;
        }
        moved
    }

    /// Everything that can go on does so once. False if nothing could.
    pub(super) fn round(&mut self) -> bool {
        let mut moved = self.works();
        let jobs: Vec<_> = self.jobs.all().map(kube::ResourceExt::name_any).collect();
        for (n, job) in jobs.iter().enumerate() {
            moved |= self.job_looks(job);
            moved |= u8::try_from(n).is_ok_and(|n| self.pod_starts(n));
        }
        while self.pod_ends(0, End::Well) {
            moved = true;
        }
        while self.collect(0) || self.pod_goes(0) {
            moved = true;
        }
        moved
    }

    /// Nothing disturbs any more: what was out of order is mended, and everything goes on until it is done.
    pub(super) fn come_to_rest(&mut self) {
        self.note(|| "-- all is well".to_owned());
        self.registry.is_down = false;
        self.registry.is_late = false;
        self.controller.refuses = false;
        self.controller.write_fails = false;
        self.controller.answer_lost = false;
        *self.read_fails.get_mut() = false;
        self.secret_comes();
        self.start();
        self.mend();
        let mut last = (self.clock.now, self.controller.writes);
        for _ in 0..ROUNDS {
            if self.broken_rule.is_some() {
                return;
            }
            if self.round() {
                if self.controller.writes != last.1 {
                    last = (self.clock.now, self.controller.writes);
                }
                continue;
            }
            match self.controller.next_due() {
                Some(due) if due.duration_since(last.0) < SILENCE => {
                    self.clock.now = self.clock.now.max(due);
                }
                _ => return,
            }
        }
        self.breaks("settles", || format!("not within {ROUNDS} rounds"));
    }

    /// All that must hold at rest.
    pub(super) fn check(&mut self) {
        if let Err(broken) = self.objects_are_settled() {
            self.breaks("settles", || broken);
        }
        if let Err(broken) = self.nothing_is_left_over() {
            self.breaks("nothing is left over", || broken);
        }
        for name in CONFIGS {
            let created = self.created.get(name).copied().unwrap_or_default();
            let causes = self.causes.get(name).copied().unwrap_or_default();
            if created > causes {
                self.breaks("a build has a cause", || {
                    format!("{created} builds of config {name} for {causes} causes")
                });
            }
        }
        for (name, uid, image, causes) in self.rebuilds.clone() {
            if self.causes.get(name.as_str()) != Some(&causes) {
                continue;
            }
            let status = self.os_configs.get(&name).map(|one| one.status.clone());
            let now = status.flatten().unwrap_or_default();
            let is_ready = is_true(now.conditions.as_deref().unwrap_or_default(), "Ready");
            let is_same = is_ready && image.is_some() && now.current_image_pull_spec == image;
            if is_same || self.os_builds.has_uid(&uid) {
                self.breaks("a rebuild is made", || {
                    format!("{name} still has build {uid} or its image")
                });
            }
        }
        self.enqueue(Key::Sweep, self.clock.now);
        self.come_to_rest();
        let writes = self.controller.writes;
        self.enqueue_all();
        self.come_to_rest();
        if self.controller.writes != writes {
            self.breaks("quiet", || "a second look writes".to_owned());
        }
    }

    fn objects_are_settled(&self) -> Result<(), String> {
        for os_config in self.os_configs.all() {
            let name = os_config.name_any();
            if os_config.metadata.deletion_timestamp.is_some() {
                return Err(format!("config {name} is still being deleted"));
            }
            self.config_is_settled(os_config)
                .map_err(|what| format!("config {name}: {what}"))?;
        }
        for os_build in self.os_builds.all() {
            let name = os_build.name_any();
            if os_build.metadata.deletion_timestamp.is_some() {
                return Err(format!("build {name} is still being deleted"));
            }
            if !Phase::of_build(os_build).is_terminal() {
                return Err(format!("build {name} has not ended"));
            }
        }
        Ok(())
    }

    fn config_is_settled(&self, os_config: &MachineOSConfig) -> Result<(), String> {
        let wanted = self.wanted(os_config);
        let wanted = wanted.name().ok_or("it wants no build")?;
        let build = self.os_builds.get(wanted).ok_or("there is no build")?;
        let status = os_config.status.clone().unwrap_or_default();
        let ready = is_true(status.conditions.as_deref().unwrap_or_default(), "Ready");
        if os_config.annotations().contains_key(annotation::REBUILD) {
            return Err("it still asks for a rebuild".to_owned());
        }
        let current = os_config.annotations().get(annotation::CURRENT_BUILD);
        if current.map(String::as_str) != Some(wanted) {
            return Err(format!("it names {current:?} instead of {wanted}"));
        }
        if Phase::of_build(build) != Phase::Succeeded {
            return if ready {
                Err(format!("it is ready without build {wanted}"))
            } else if self.is_blamed(build) {
                Ok(())
            } else {
                Err(format!("build {wanted} ended without an image"))
            };
        }
        let image = build
            .status
            .as_ref()
            .and_then(|one| one.digested_image_push_spec.clone());
        if !ready || status.current_image_pull_spec != image {
            return Err(format!("it does not name the image of {wanted}"));
        }
        if status.observed_generation != os_config.metadata.generation {
            return Err("its status is of another generation".to_owned());
        }
        let digest = image.as_deref().and_then(digest_of);
        if let Some(digest) = digest
            && !build
                .annotations()
                .contains_key(annotation::PRE_BUILT_IMAGE)
            && !self.registry.images.contains_key(&digest)
            && !self.registry.lost.contains(&digest)
        {
            return Err(format!("the registry has no {digest}"));
        }
        Ok(())
    }

    fn is_blamed(&self, os_build: &MachineOSBuild) -> bool {
        os_build.uid().is_some_and(|uid| self.blamed.contains(&uid))
    }

    fn nothing_is_left_over(&self) -> Result<(), String> {
        let wanted: BTreeSet<String> = self
            .os_configs
            .all()
            .filter_map(|one| self.wanted(one).name().map(str::to_owned))
            .collect();
        for os_build in self.os_builds.all() {
            let has_image = Phase::of_build(os_build) == Phase::Succeeded;
            if !has_image && !wanted.contains(&os_build.name_any()) {
                return Err(format!("build {}", os_build.name_any()));
            }
            if has_image
                && !wanted.contains(&os_build.name_any())
                && self.room_for(os_build).is_none()
                && !self.is_still_needed(os_build)
            {
                return Err(format!("build {}, which may go", os_build.name_any()));
            }
        }
        // a failed build's Job and ConfigMaps stay for a look at them; credentials never do
        let has_failed = |uid: &str| {
            let mut builds = self.os_builds.all();
            builds.any(|one| {
                one.uid().as_deref() == Some(uid) && Phase::of_build(one) == Phase::Failed
            })
        };
        let is_left = |meta: &ObjectMeta| {
            owners(meta).count() > 0 && !owners(meta).any(|owner| has_failed(&owner.uid))
        };
        let jobs = self.jobs.all().map(Resource::meta);
        let config_maps = self.config_maps.all().map(Resource::meta);
        let mut left = jobs.chain(config_maps).filter(|meta| is_left(meta));
        let secrets = self.secrets.all().map(Resource::meta);
        let mut secrets = secrets.filter(|meta| owners(meta).count() > 0);
        if let Some(meta) = left.next().or_else(|| secrets.next()) {
            return Err(meta.name.clone().unwrap_or_default());
        }
        if let Some(digest) = self.leaks().find(|digest| {
            let mut entries = self.ledger.values();
            let in_ledger = entries.any(|entry| digest_of(&entry.image) == Some(*digest));
            !in_ledger
                && !self
                    .os_builds
                    .has_uid(&self.registry.images[digest].build_uid)
        }) {
            return Err(format!("image {digest}"));
        }
        Ok(())
    }

    /// Whether the image of a build that may go is named by more than builds, or its config isn't well, so that nothing goes.
    fn is_still_needed(&self, os_build: &MachineOSBuild) -> bool {
        let status = os_build.status.as_ref();
        let image = status.and_then(|status| status.digested_image_push_spec.as_deref());
        let digest = image.and_then(digest_of);
        let users = self.users().now_or_never().and_then(Result::ok);
        let users = users.unwrap_or_default();
        let is_ready = |one: &MachineOSConfig| {
            let status = one.status.clone().unwrap_or_default();
            is_true(status.conditions.as_deref().unwrap_or_default(), "Ready")
        };
        let os_config = self.os_configs.get(&os_build.spec.machine_os_config.name);
        !os_config.is_some_and(is_ready)
            || digest.is_some_and(|digest| users.beside_builds(digest).is_some())
    }

    /// Images that nobody could have kept from being left over are none.
    fn leaks(&self) -> impl Iterator<Item = Digest> {
        let images = self.registry.images.iter();
        let ours = images.filter(|(digest, image)| {
            image.cluster == OURS
                && !self.registry.excused.contains(digest)
                && !self.registry.kept.contains(digest)
                && !self.not_ours.contains(&image.build_uid)
        });
        ours.map(|(digest, _)| *digest)
    }

    /// Everything is deleted and nobody names an image any more.
    pub(super) fn remove_all(&mut self) {
        self.note(|| "-- all configs are deleted".to_owned());
        for name in CONFIGS {
            self.os_configs
                .delete(&mut self.clock, name, Propagation::Background);
        }
        self.come_to_rest();
        self.let_go();
        self.come_to_rest();
        self.enqueue(Key::Sweep, self.clock.now);
        self.come_to_rest();
        self.clock.now += GRACE;
        self.enqueue(Key::Ledger, self.clock.now);
        self.come_to_rest();
        let builds = self.os_builds.all().map(kube::ResourceExt::name_any);
        let jobs = self.jobs.all().map(kube::ResourceExt::name_any);
        let config_maps = self.config_maps.all().map(kube::ResourceExt::name_any);
        let pods = self.pods.all().map(kube::ResourceExt::name_any);
        let mut left: Vec<String> = builds.chain(jobs).chain(config_maps).chain(pods).collect();
        left.extend(self.leaks().map(|digest| digest.to_string()));
        // a day later also what nobody could know of is gone, if the registry lists it and deletes
        if !self.registry.keeps {
            let listed = self.registry.listed(self.clock.now);
            let ours = listed.filter(|(_, digest, image)| {
                image.cluster == OURS && !self.registry.kept.contains(digest)
            });
            left.extend(ours.map(|(tag, ..)| tag.clone()));
        }
        let stays = |entry: &&Entry| {
            self.registry.keeps
                || digest_of(&entry.image)
                    .is_some_and(|digest| self.registry.kept.contains(&digest))
        };
        let entries = self.ledger.values().filter(|entry| !stays(entry));
        left.extend(entries.map(|entry| entry.image.clone()));
        if !left.is_empty() {
            self.breaks("nothing is left over", || left.join(", "));
        }
    }
}

fn digest_of(image: &str) -> Option<Digest> {
    image.parse::<Reference>().ok()?.digest
}
