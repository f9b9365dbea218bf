//! What the requests of a pass do to the world, as [`apply`](crate::apply) and the ledger make them.

use std::collections::BTreeMap;

use futures::FutureExt as _;
use jiff::SignedDuration;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, PodTemplateSpec, Secret};
use kube::{Resource, ResourceExt as _};
use serde::Serialize;
use strata_builder::digest::Digest;
use strata_builder::reference::Reference;

use super::controller::{Key, LEDGER_PAUSE, LEDGER_RETRY, Pass, Root};
use super::registry::OURS;
use super::table::{Clock, Object, Propagation, Table, Trimmed};
use super::world::{PUSH_SECRET, World};
use crate::api::CLEANUP_FINALIZER;
use crate::apply::{Existing, existing};
use crate::job::BuildObjects;
use crate::ledger::Entry;
use crate::live::Needs as _;
use crate::plan::{ImageDeletion, Step, Target};
use crate::sweep::{GRACE, Origin};
use crate::usage::Users;

/// A request that a pass will make.
pub(super) enum Work {
    Step(Step),
    ConfigMap(Box<ConfigMap>),
    Secret(Box<Secret>),
    Job(Box<Job>),
    DeleteManifest(ImageDeletion),
    /// Look for images that have lost their build.
    Sweep,
    LookAtEntry(Entry),
    DeleteEntry(Entry, Reference),
    Forget(Entry),
}

/// Before what was refused is tried again: longer than anything else takes.
const AFTER_REFUSAL: SignedDuration = SignedDuration::from_hours(6);

/// A request that wasn't done; the pass ends.
pub(super) struct Failed;

impl World {
    pub(super) fn request(&mut self, pass: &mut Pass, work: Work) -> Result<(), Failed> {
        if !matches!(work, Work::LookAtEntry(_) | Work::Sweep) {
            self.controller.writes += 1;
        }
        match work {
            Work::Step(step) => self.step(pass, step),
            Work::ConfigMap(object) => {
                self.guarded(pass, "a ConfigMap");
                ensure(&mut self.config_maps, &mut self.clock, *object)
            }
            Work::Secret(object) => {
                self.guarded(pass, "a Secret");
                ensure(&mut self.secrets, &mut self.clock, *object)
            }
            Work::Job(object) => {
                self.guarded(pass, "a Job");
                ensure(&mut self.jobs, &mut self.clock, (*object).clone())?;
                let name = object.name_any();
                self.send(&name);
                Ok(())
            }
            Work::DeleteManifest(deletion) => {
                self.guarded(pass, "the deletion of an image");
                if self.registry.keeps {
                    let entry = Entry {
                        image: deletion.image.to_string(),
                        tag: deletion.tag.clone(),
                        push_secret: deletion.push_secret.clone(),
                        os_build: pass.root.name.clone(),
                        since: self.clock.now,
                        keep: false,
                        orphan_of: None,
                        unseen_of: None,
                        content_key: None,
                        refused_since: Some(self.clock.now),
                    };
                    self.ledger.entry(entry.key()).or_insert(entry);
                }
                self.delete_manifest(&deletion.image, &deletion.push_secret, Some(&pass.root.uid))
            }
            Work::Sweep => self.sweep(),
            Work::LookAtEntry(entry) => {
                if let Some(uid) = &entry.orphan_of {
                    if self.users_now()?.has_build(uid) {
                        pass.left.push_front(Work::Forget(entry));
                        return Ok(());
                    }
                    if self.clock.now.duration_since(entry.since) < GRACE {
                        return Ok(());
                    }
                }
                let users = self.users_now()?;
                if let Some(uid) = &entry.unseen_of
                    && users.has_build(uid)
                {
                    return Ok(());
                }
                if let Some(since) = entry.refused_since
                    && self.clock.now.duration_since(since) < AFTER_REFUSAL
                {
                    return Ok(());
                }
                let image: Reference = entry.image.parse().map_err(|_| Failed)?;
                let uid = entry.unseen_of.as_deref().unwrap_or_default();
                let digest = image
                    .digest
                    .or_else(|| self.registry.tagged(&entry.image, uid));
                match digest {
                    None if self.registry.is_down => pass.again = Some(LEDGER_RETRY),
                    None => pass.left.push_front(Work::Forget(entry)),
                    Some(digest) if users.of(digest, None).is_none() => {
                        let image = image.repository.digested(digest);
                        pass.left.push_front(Work::DeleteEntry(entry, image));
                    }
                    Some(_) => {}
                }
                Ok(())
            }
            Work::DeleteEntry(entry, image) => {
                match self.delete_manifest(&image, &entry.push_secret, None) {
                    Ok(()) if self.registry.keeps => {
                        let refused_since = Some(self.clock.now);
                        let entry = Entry {
                            refused_since,
                            ..entry
                        };
                        self.ledger.insert(entry.key(), entry);
                    }
                    Ok(()) => pass.left.push_front(Work::Forget(entry)),
                    // told, and tried again
                    Err(Failed) => pass.again = Some(LEDGER_RETRY),
                }
                Ok(())
            }
            Work::Forget(entry) => {
                self.ledger.remove(&entry.key());
                Ok(())
            }
        }
    }

    /// As [`sweep`](crate::sweep) does it.
    fn sweep(&mut self) -> Result<(), Failed> {
        if self.registry.is_down || self.secrets.get(PUSH_SECRET).is_none() {
            return Ok(());
        }
        let now = self.clock.now;
        let users = self.users_now()?;
        let found = self
            .registry
            .listed(now)
            .filter_map(|(tag, digest, image)| {
                let origin = Origin {
                    build_uid: image.build_uid.clone(),
                    cluster: Some(image.cluster.to_owned()),
                    tag: tag.rsplit_once(':').map(|(_, tag)| tag.to_owned()),
                };
                let push: Reference = tag.parse().ok()?;
                let name = push.tag.clone().unwrap_or_default();
                let entry = Entry {
                    image: push.repository.digested(digest).to_string(),
                    tag: push.tag,
                    push_secret: PUSH_SECRET.to_owned(),
                    os_build: String::new(),
                    since: now,
                    keep: false,
                    orphan_of: Some(origin.build_uid.clone()),
                    unseen_of: None,
                    content_key: None,
                    refused_since: None,
                };
                let is_entered = users.entries.iter().any(|known| known.image == entry.image);
                (origin.is_orphan(OURS, &name, &users) && !is_entered).then_some(entry)
            });
        for entry in found.collect::<Vec<_>>() {
            self.note(|| format!("  {} has lost its build", entry.image));
            self.controller.writes += 1;
            self.ledger.insert(entry.key(), entry);
        }
        Ok(())
    }

    fn users_now(&self) -> Result<Users, Failed> {
        self.users().now_or_never().unwrap().map_err(|_| Failed)
    }

    /// As [`apply`](crate::apply) does it.
    fn step(&mut self, pass: &mut Pass, step: Step) -> Result<(), Failed> {
        match step {
            Step::AddFinalizer => {
                if !pass
                    .root
                    .finalizers
                    .iter()
                    .any(|one| one == CLEANUP_FINALIZER)
                {
                    pass.root.finalizers.push(CLEANUP_FINALIZER.to_owned());
                }
                self.set_finalizers(pass)
            }
            Step::RemoveFinalizer => {
                pass.root.finalizers.retain(|one| one != CLEANUP_FINALIZER);
                self.set_finalizers(pass)
            }
            Step::Annotate(changes) => {
                let annotate = |annotations: &mut BTreeMap<String, String>| {
                    for (key, value) in changes {
                        match value {
                            Some(value) => annotations.insert(key.to_owned(), value),
                            None => annotations.remove(key),
                        };
                    }
                };
                match pass.key {
                    Key::Config(_) => patch(
                        &mut self.os_configs,
                        &mut self.clock,
                        &mut pass.root,
                        |one| annotate(one.annotations_mut()),
                    ),
                    _ => patch(
                        &mut self.os_builds,
                        &mut self.clock,
                        &mut pass.root,
                        |one| annotate(one.annotations_mut()),
                    ),
                }
            }
            Step::SetConfigStatus(status) => patch(
                &mut self.os_configs,
                &mut self.clock,
                &mut pass.root,
                |one| one.status = Some(*status),
            ),
            Step::SetBuildStatus(status) => {
                self.check_status(&pass.root, &status);
                patch(
                    &mut self.os_builds,
                    &mut self.clock,
                    &mut pass.root,
                    |one| one.status = Some(*status),
                )
            }
            Step::SetPoolConditions(conditions) => {
                let root = &mut pass.root;
                patch(&mut self.pools, &mut self.clock, root, |pool| {
                    pool.status.get_or_insert_default().conditions = Some(conditions);
                })
            }
            Step::CreateBuild(os_build) => {
                self.guarded(pass, "a build");
                let before = self.os_builds.all().count();
                ensure(&mut self.os_builds, &mut self.clock, *os_build)?;
                if self.os_builds.all().count() > before {
                    *self.created.entry(pass.root.name.clone()).or_default() += 1;
                }
                Ok(())
            }
            Step::DeleteBuild(target) => {
                self.owned(
                    pass,
                    &target,
                    self.os_builds
                        .get(&target.name)
                        .map(Resource::meta)
                        .cloned(),
                );
                self.may_go(pass, &target);
                delete(
                    &mut self.os_builds,
                    &mut self.clock,
                    &target,
                    Propagation::Background,
                );
                Ok(())
            }
            Step::CreateObjects(objects) => {
                let BuildObjects {
                    config_maps,
                    secrets,
                    mut job,
                } = *objects;
                // nothing here reads it, and it is most of a Job
                job.spec.get_or_insert_default().template = PodTemplateSpec::default();
                let first = config_maps.into_iter().map(Box::new).map(Work::ConfigMap);
                let then = secrets.into_iter().map(Box::new).map(Work::Secret);
                let last = Work::Job(Box::new(job));
                for work in first.chain(then).chain([last]).rev() {
                    pass.left.push_front(work);
                }
                Ok(())
            }
            Step::DeleteJob(target) => {
                self.owned(
                    pass,
                    &target,
                    self.jobs.get(&target.name).map(Resource::meta).cloned(),
                );
                delete(
                    &mut self.jobs,
                    &mut self.clock,
                    &target,
                    Propagation::Foreground,
                );
                Ok(())
            }
            Step::DeleteConfigMap(target) => {
                self.owned(
                    pass,
                    &target,
                    self.config_maps
                        .get(&target.name)
                        .map(Resource::meta)
                        .cloned(),
                );
                delete(
                    &mut self.config_maps,
                    &mut self.clock,
                    &target,
                    Propagation::Background,
                );
                Ok(())
            }
            Step::DeleteSecret(target) => {
                self.owned(
                    pass,
                    &target,
                    self.secrets.get(&target.name).map(Resource::meta).cloned(),
                );
                delete(
                    &mut self.secrets,
                    &mut self.clock,
                    &target,
                    Propagation::Background,
                );
                Ok(())
            }
            Step::DeleteImage(deletion) => {
                let Some(digest) = deletion.image.digest else {
                    return Ok(());
                };
                let used = self.users_now()?.of(digest, Some(&pass.root.uid));
                if !self.registry.images.contains_key(&digest) {
                    return Ok(());
                }
                if used.is_some() {
                    return Err(Failed);
                }
                pass.left.push_front(Work::DeleteManifest(*deletion));
                Ok(())
            }
            Step::Remember(entry) => {
                if entry.keep {
                    let image = entry.image.parse::<Reference>().ok();
                    self.registry.kept.extend(image.and_then(|one| one.digest));
                }
                self.ledger.entry(entry.key()).or_insert(entry);
                self.enqueue(Key::Ledger, self.clock.now + LEDGER_PAUSE);
                Ok(())
            }
            Step::Tell(_) => Ok(()),
        }
    }

    fn set_finalizers(&mut self, pass: &mut Pass) -> Result<(), Failed> {
        let finalizers = Some(pass.root.finalizers.clone());
        match pass.key {
            Key::Config(_) => patch(
                &mut self.os_configs,
                &mut self.clock,
                &mut pass.root,
                |one| one.metadata.finalizers = finalizers,
            ),
            _ => patch(
                &mut self.os_builds,
                &mut self.clock,
                &mut pass.root,
                |one| one.metadata.finalizers = finalizers,
            ),
        }
    }

    /// Deletes a manifest as the registry lets us; an image in use must never come here.
    fn delete_manifest(
        &mut self,
        image: &Reference,
        push_secret: &str,
        asking: Option<&str>,
    ) -> Result<(), Failed> {
        let digest: Digest = image.digest.ok_or(Failed)?;
        if self.secrets.get(push_secret).is_none() || self.registry.is_down {
            return Err(Failed);
        }
        if self.registry.keeps {
            self.registry.excused.insert(digest);
            return Ok(());
        }
        self.unused(digest, asking);
        self.registry.remove(digest);
        self.note(|| format!("  {image} is deleted"));
        Ok(())
    }
}

/// Changes the root object of a pass if it is as it was observed; one that is gone needs no change.
fn patch<K: Object, C: Trimmed>(
    table: &mut Table<K, C>,
    clock: &mut Clock,
    root: &mut Root,
    change: impl FnOnce(&mut K),
) -> Result<(), Failed> {
    let Some(found) = table.get(&root.name).map(Resource::meta) else {
        return Ok(());
    };
    if found.uid.as_ref() != Some(&root.uid) || found.resource_version != root.resource_version {
        return Err(Failed);
    }
    table.change(clock, &root.name, change);
    let left = table.get(&root.name);
    root.resource_version = left.and_then(kube::ResourceExt::resource_version);
    Ok(())
}

fn delete<K: Object, C: Trimmed>(
    table: &mut Table<K, C>,
    clock: &mut Clock,
    target: &Target,
    propagation: Propagation,
) {
    let found = table.get(&target.name).map(Resource::meta);
    if found.is_some_and(|meta| meta.uid.as_ref() == Some(&target.uid)) {
        table.delete(clock, &target.name, propagation);
    }
}

/// Creates it, unless what has its name forbids.
fn ensure<K: Object + Serialize, C: Trimmed>(
    table: &mut Table<K, C>,
    clock: &mut Clock,
    object: K,
) -> Result<(), Failed> {
    if table.create(clock, object.clone()) {
        return Ok(());
    }
    let found = table.get(&object.name_any()).ok_or(Failed)?;
    match existing(&K::kind(&()), &object, found) {
        Existing::Ours => Ok(()),
        Existing::Stale(stale) => {
            delete(table, clock, &stale, Propagation::Background);
            if table.create(clock, object) {
                Ok(())
            } else {
                Err(Failed)
            }
        }
        Existing::Foreign => Err(Failed),
    }
}
