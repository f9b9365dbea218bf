//! The controller in this world: its cache, its queue, and passes whose steps are done one at a time.
//!
//! Observing and planning are the real ones. A step is done as [`apply`](crate::apply) does it; between any two of its
//! requests anything may happen, and a pass that is dropped there is a crash.

use std::collections::{BTreeMap, VecDeque};

use futures::FutureExt as _;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, PodTemplateSpec, Secret};
use kube::{Resource, ResourceExt as _};
use serde::Serialize;
use strata_builder::digest::Digest;
use strata_builder::reference::Reference;

use super::table::{Clock, Object, Propagation, Table, Trimmed, is_owned};
use super::world::World;
use crate::api::machine_os_build::MachineOSBuildStatus;
use crate::api::{CLEANUP_FINALIZER, is_guarded};
use crate::apply::{Existing, existing};
use crate::cache::Cache;
use crate::events::Reason;
use crate::job::BuildObjects;
use crate::ledger::Entry;
use crate::live::Live as _;
use crate::phase::Phase;
use crate::plan::{ImageDeletion, Plan, Requeue, Step, Target};
use crate::watches::{Concerned, Queues, Requests};
use crate::{os_build, os_config, pool};

/// After a pass that failed.
const AGAIN: SignedDuration = SignedDuration::from_secs(1);
/// After a pass whose write was refused.
const AGAIN_REFUSED: SignedDuration = SignedDuration::from_mins(1);
/// Between a bell and the look at the ledger.
const LEDGER_PAUSE: SignedDuration = SignedDuration::from_secs(1);
/// Between two looks at the ledger.
const LEDGER_ROUND: SignedDuration = SignedDuration::from_secs(300);
/// After a registry that didn't answer.
const LEDGER_RETRY: SignedDuration = SignedDuration::from_secs(30);

/// What a pass is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Key {
    Config(String),
    Build(String),
    Pool(String),
    Ledger,
}

/// The root object of a pass, as observed, then as each write leaves it.
#[derive(Clone, Default)]
struct Root {
    name: String,
    uid: String,
    resource_version: Option<String>,
    finalizers: Vec<String>,
}

impl Root {
    fn of(object: &impl Resource) -> Self {
        Self {
            name: object.name_any(),
            uid: object.uid().unwrap_or_default(),
            resource_version: object.resource_version(),
            finalizers: object.finalizers().to_vec(),
        }
    }
}

/// A request that a pass will make.
enum Work {
    Step(Step),
    ConfigMap(Box<ConfigMap>),
    Secret(Box<Secret>),
    Job(Box<Job>),
    DeleteManifest(ImageDeletion),
    LookAtEntry(Entry),
    DeleteEntry(Entry),
    Forget(Entry),
}

/// A pass whose plan is made.
pub(super) struct Pass {
    key: Key,
    root: Root,
    left: VecDeque<Work>,
    again: Option<SignedDuration>,
    if_refused: Option<Refused>,
}

type PlanRefused = dyn Fn(&str, Timestamp) -> Option<Plan> + Send + Sync;

/// The root as it was observed, and what is planned when a write is refused.
struct Refused {
    root: Root,
    plan: Box<PlanRefused>,
}

/// A step that wasn't done; the pass ends.
struct Failed;

#[derive(Default)]
pub(super) struct Controller {
    /// None while it is away.
    awake: Option<Awake>,
    due: BTreeMap<Key, Timestamp>,
    passes: Vec<Pass>,
    pub(super) refuses: bool,
    pub(super) write_fails: bool,
    pub(super) answer_lost: bool,
    /// Requests that changed something, or tried to.
    pub(super) writes: u32,
}

/// What goes with the process.
struct Awake {
    concerned: Concerned,
    requests: Requests,
}

impl Controller {
    pub(super) fn cache(&self) -> &Cache {
        &self.awake.as_ref().unwrap().concerned.known
    }

    pub(super) fn is_awake(&self) -> bool {
        self.awake.is_some()
    }

    /// When the next pass is due that isn't yet.
    pub(super) fn next_due(&self) -> Option<Timestamp> {
        self.due.values().min().copied()
    }
}

impl World {
    // --- life

    pub(super) fn start(&mut self) {
        if self.controller.is_awake() {
            return;
        }
        self.note(|| "the controller starts".to_owned());
        let known = Cache {
            os_configs: self.os_configs.listen(),
            os_builds: self.os_builds.listen(),
            pools: self.pools.listen(),
            machine_configs: self.machine_configs.listen(),
            jobs: self.jobs.listen(),
            config_maps: self.config_maps.listen(),
            secrets: self.secrets.listen(),
        };
        // of these nothing is looked up
        self.pods.listen();
        self.nodes.listen();
        let (queues, requests) = Queues::new();
        let concerned = Concerned { known, queues };
        self.controller.awake = Some(Awake {
            concerned,
            requests,
        });
        for kind in 0..Self::KINDS {
            self.hear(kind, Hearing::Relist);
        }
        self.enqueue(Key::Ledger, self.clock.now);
    }

    /// It ends at once, whatever it was doing.
    pub(super) fn stop(&mut self) {
        if self.controller.awake.take().is_some() {
            self.controller.passes.clear();
            self.controller.due.clear();
            self.note(|| "the controller is killed".to_owned());
        }
    }

    // --- watches

    /// Kinds that are watched.
    const KINDS: u8 = 9;

    /// One of the watches that have something to tell does so.
    pub(super) fn hear_one(&mut self, n: u8, hearing: Hearing) -> bool {
        let kinds: Vec<u8> = (0..Self::KINDS)
            .filter(|kind| self.has_untold(*kind))
            .collect();
        if !self.controller.is_awake() || kinds.is_empty() {
            return false;
        }
        self.hear(kinds[usize::from(n) % kinds.len()], hearing);
        true
    }

    pub(super) fn relist(&mut self, n: u8) {
        if self.controller.is_awake() {
            self.hear(n % Self::KINDS, Hearing::Relist);
        }
    }

    fn has_untold(&self, kind: u8) -> bool {
        match kind {
            0 => self.os_configs.has_untold(),
            1 => self.os_builds.has_untold(),
            2 => self.pools.has_untold(),
            3 => self.machine_configs.has_untold(),
            4 => self.jobs.has_untold(),
            5 => self.pods.has_untold(),
            6 => self.secrets.has_untold(),
            7 => self.config_maps.has_untold(),
            _ => self.nodes.has_untold(),
        }
    }

    fn hear(&mut self, kind: u8, hearing: Hearing) {
        let Some(Awake { concerned, .. }) = &self.controller.awake else {
            return;
        };
        let to = concerned.clone();
        match kind {
            0 => hearing.of(&mut self.os_configs, |it| to.os_config(it)),
            1 => hearing.of(&mut self.os_builds, |it| to.os_build(it)),
            2 => hearing.of(&mut self.pools, |it| to.pool(it)),
            3 => hearing.of(&mut self.machine_configs, |it| to.machine_config(it)),
            4 => hearing.of(&mut self.jobs, |it| to.owned(it)),
            5 => hearing.of(&mut self.pods, |it| to.owned(it)),
            6 => hearing.of(&mut self.secrets, |it| to.secret(it)),
            7 => hearing.of(&mut self.config_maps, |it| to.config_map(it)),
            _ => hearing.of(&mut self.nodes, |_| to.queues.unneeded.notify_one()),
        }
        self.take_requests();
    }

    /// Takes over what was queued.
    fn take_requests(&mut self) {
        let now = self.clock.now;
        let Some(Awake {
            concerned,
            requests,
        }) = &mut self.controller.awake
        else {
            return;
        };
        let mut keys = Vec::new();
        while let Ok(one) = requests.os_configs.try_recv() {
            keys.push(Key::Config(one.obj_ref.name));
        }
        while let Ok(one) = requests.os_builds.try_recv() {
            keys.push(Key::Build(one.obj_ref.name));
        }
        while let Ok(one) = requests.pools.try_recv() {
            keys.push(Key::Pool(one.obj_ref.name));
        }
        let is_rung = concerned
            .queues
            .unneeded
            .notified()
            .now_or_never()
            .is_some();
        for key in keys {
            self.enqueue(key, now);
        }
        if is_rung {
            self.enqueue(Key::Ledger, now + LEDGER_PAUSE);
        }
    }

    pub(super) fn enqueue(&mut self, key: Key, at: Timestamp) {
        let due = self.controller.due.entry(key).or_insert(at);
        *due = at.min(*due);
    }

    /// Every object is looked at again.
    pub(super) fn enqueue_all(&mut self) {
        let now = self.clock.now;
        let configs = self.os_configs.all().map(|one| Key::Config(one.name_any()));
        let builds = self.os_builds.all().map(|one| Key::Build(one.name_any()));
        let pools = self.pools.all().map(|one| Key::Pool(one.name_any()));
        let keys: Vec<_> = configs
            .chain(builds)
            .chain(pools)
            .chain([Key::Ledger])
            .collect();
        for key in keys {
            self.enqueue(key, now);
        }
    }

    // --- passes

    /// The next request of a pass, or the begin of one that is due.
    pub(super) fn go_on(&mut self, n: u8) -> bool {
        if !self.controller.is_awake() {
            return false;
        }
        let under_way = self.controller.passes.len();
        let now = self.clock.now;
        let due: Vec<Key> = self
            .controller
            .due
            .iter()
            .filter(|(key, at)| {
                **at <= now && !self.controller.passes.iter().any(|pass| pass.key == **key)
            })
            .map(|(key, _)| key.clone())
            .collect();
        let choices = under_way + due.len();
        if choices == 0 {
            return false;
        }
        let chosen = usize::from(n) % choices;
        if chosen < under_way {
            let pass = self.controller.passes.swap_remove(chosen);
            self.work(pass);
        } else {
            let key = &due[chosen - under_way];
            self.controller.due.remove(key);
            self.begin(key.clone());
        }
        true
    }

    fn begin(&mut self, key: Key) {
        let cache = self.cache().clone();
        let now = self.clock.now;
        let planned = match &key {
            Key::Config(name) => {
                let Some(cached) = cache.os_configs.get(name) else {
                    return;
                };
                let observed = os_config::observe::observe(self, &cached)
                    .now_or_never()
                    .unwrap();
                observed.map(|observed| {
                    let observed = observed?;
                    let plan = os_config::plan::plan(&observed, now);
                    let root = Root::of(&observed.os_config);
                    let refused =
                        move |why: &str, now| os_config::plan::refused(&observed, why, now);
                    Some((
                        root.clone(),
                        plan,
                        Some(Refused {
                            root,
                            plan: Box::new(refused),
                        }),
                    ))
                })
            }
            Key::Build(name) => {
                let Some(cached) = cache.os_builds.get(name) else {
                    return;
                };
                let observed = os_build::observe::observe(self, &cached)
                    .now_or_never()
                    .unwrap();
                observed.map(|observed| {
                    let observed = observed?;
                    let plan = os_build::plan::plan(&observed, now);
                    let root = Root::of(&observed.os_build);
                    let refused =
                        move |why: &str, now| os_build::plan::refused(&observed, why, now);
                    Some((
                        root.clone(),
                        plan,
                        Some(Refused {
                            root,
                            plan: Box::new(refused),
                        }),
                    ))
                })
            }
            Key::Pool(name) => {
                let Some(cached) = cache.pools.get(name) else {
                    return;
                };
                let observed = pool::observe(&cache, cached);
                let plan = pool::plan(&observed, now);
                Ok(Some((Root::of(observed.pool.as_ref()), plan, None)))
            }
            Key::Ledger => {
                let entries = self.ledger.values().cloned();
                let left: VecDeque<_> = entries.map(Work::LookAtEntry).collect();
                self.work(Pass {
                    key,
                    root: Root::default(),
                    left,
                    again: Some(LEDGER_ROUND),
                    if_refused: None,
                });
                return;
            }
        };
        match planned {
            Ok(Some((root, plan, if_refused))) => self.take_up(key, root, plan, if_refused),
            Ok(None) => {}
            Err(_) => self.enqueue(key, now + AGAIN),
        }
    }

    fn take_up(&mut self, key: Key, root: Root, plan: Plan, if_refused: Option<Refused>) {
        let Plan {
            rule,
            steps,
            requeue,
        } = plan;
        self.planned(&key, &root, rule);
        if !steps.is_empty() {
            let names: Vec<_> = steps.iter().map(Step::name).collect();
            self.note(|| format!("  {key:?}: {rule}: {}", names.join(", ")));
        }
        self.end_if_done(Pass {
            key,
            root,
            left: steps.into_iter().map(Work::Step).collect(),
            again: match requeue {
                Requeue::OnChange => None,
                Requeue::After(delay) => SignedDuration::try_from(delay).ok(),
            },
            if_refused,
        });
    }

    fn planned(&mut self, key: &Key, root: &Root, rule: &'static str) {
        let plan = match key {
            Key::Config(_) => "os_config",
            Key::Build(_) => "os_build",
            Key::Pool(_) | Key::Ledger => "pool",
        };
        self.rules.insert((plan, rule));
        match rule {
            // it had been told that nothing was pushed
            "deleting-done" if self.registry.hides(&root.uid, self.clock.now) => {
                self.registry.excuse(&root.uid);
            }
            "invalid" => self.blamed.extend([root.uid.clone()]),
            _ => {}
        }
    }

    fn end_if_done(&mut self, pass: Pass) {
        if !pass.left.is_empty() {
            self.controller.passes.push(pass);
        } else if let Some(delay) = pass.again {
            self.enqueue(pass.key, self.clock.now + delay);
        }
    }

    fn work(&mut self, mut pass: Pass) {
        let Some(work) = pass.left.pop_front() else {
            return self.end_if_done(pass);
        };
        // an event that can't be written fails nothing
        if matches!(work, Work::Step(Step::Tell(_))) {
            if self.request(&mut pass, work).is_ok() {
                self.end_if_done(pass);
            }
            return;
        }
        if std::mem::take(&mut self.controller.refuses) {
            self.note(|| format!("  {:?}: a request is refused", pass.key));
            self.enqueue(pass.key.clone(), self.clock.now + AGAIN_REFUSED);
            if let Some(Refused { root, plan }) = pass.if_refused
                && let Some(plan) = plan("a quota", self.clock.now)
            {
                self.take_up(pass.key, root, plan, None);
            }
            return;
        }
        if std::mem::take(&mut self.controller.write_fails) {
            self.note(|| format!("  {:?}: a request fails", pass.key));
            return self.enqueue(pass.key, self.clock.now + AGAIN);
        }
        let is_lost = std::mem::take(&mut self.controller.answer_lost);
        let done = self.request(&mut pass, work);
        if done.is_err() || is_lost {
            self.note(|| format!("  {:?}: the pass ends early", pass.key));
            return self.enqueue(pass.key, self.clock.now + AGAIN);
        }
        self.end_if_done(pass);
    }

    fn request(&mut self, pass: &mut Pass, work: Work) -> Result<(), Failed> {
        if !matches!(work, Work::LookAtEntry(_)) {
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
                self.delete_manifest(&deletion.image, &deletion.push_secret, Some(&pass.root.uid))
            }
            Work::LookAtEntry(entry) => {
                let image = entry
                    .image
                    .parse::<Reference>()
                    .ok()
                    .and_then(|one| one.digest);
                let digest = image.ok_or(Failed)?;
                if self.users_now()?.of(digest, None).is_none() {
                    pass.left.push_front(Work::DeleteEntry(entry));
                }
                Ok(())
            }
            Work::DeleteEntry(entry) => {
                let image: Reference = entry.image.parse().map_err(|_| Failed)?;
                match self.delete_manifest(&image, &entry.push_secret, None) {
                    Ok(()) => pass.left.push_front(Work::Forget(entry)),
                    // told, and tried again
                    Err(Failed) => pass.again = Some(LEDGER_RETRY),
                }
                Ok(())
            }
            Work::Forget(entry) => {
                self.ledger.remove(&entry.image);
                Ok(())
            }
        }
    }

    fn users_now(&self) -> Result<crate::usage::Users, Failed> {
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
                let annotate = |annotations: &mut std::collections::BTreeMap<String, String>| {
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
                if self.users_now()?.of(digest, Some(&pass.root.uid)).is_some() {
                    return Err(Failed);
                }
                pass.left.push_front(Work::DeleteManifest(*deletion));
                Ok(())
            }
            Step::Remember(entry) => {
                self.ledger.entry(entry.image.clone()).or_insert(entry);
                self.enqueue(Key::Ledger, self.clock.now + LEDGER_PAUSE);
                Ok(())
            }
            Step::Tell(notice) => {
                if notice.reason == Reason::ImageNotDeleted {
                    self.registry.excuse(&pass.root.uid);
                }
                Ok(())
            }
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
        let users = self.users().now_or_never().unwrap();
        if let Ok(users) = users
            && let Some(user) = users.of(digest, asking)
        {
            self.breaks("never deletes an image in use", || {
                format!("{image}: {user}")
            });
        }
        self.registry.remove(digest);
        self.note(|| format!("  {image} is deleted"));
        Ok(())
    }

    // --- what must hold at every request

    /// A pass that has effects outside holds its object.
    fn guarded(&mut self, pass: &Pass, what: &str) {
        let root = &pass.root;
        let holds = match pass.key {
            Key::Config(_) => self
                .os_configs
                .get(&root.name)
                .is_some_and(|one| one.uid().as_ref() == Some(&root.uid) && is_guarded(one)),
            _ => self
                .os_builds
                .get(&root.name)
                .is_some_and(|one| one.uid().as_ref() == Some(&root.uid) && is_guarded(one)),
        };
        if !holds {
            self.breaks("guarded", || {
                format!("{what} for {} without its finalizer", root.name)
            });
        }
    }

    /// What is deleted belongs to the object whose pass it is; by its UID, so that a later one of its name is safe.
    fn owned(
        &mut self,
        pass: &Pass,
        target: &Target,
        found: Option<k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta>,
    ) {
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
    fn check_status(&mut self, root: &Root, next: &MachineOSBuildStatus) {
        let Some(os_build) = self.os_builds.get(&root.name) else {
            return;
        };
        if os_build.resource_version() != root.resource_version {
            return;
        }
        let before = os_build.status.clone().unwrap_or_default();
        if Phase::of_build(os_build).is_terminal() && before != *next {
            self.breaks("terminal is terminal", || root.name.clone());
        }
        if let Some(end) = &next.build_end
            && next
                .build_start
                .as_ref()
                .is_none_or(|start| start.0 >= end.0)
        {
            self.breaks("the end is after the start", || root.name.clone());
        }
        let phases = |status: &MachineOSBuildStatus| {
            Phase::of(status.conditions.as_deref().unwrap_or_default())
        };
        let (from, to) = (phases(&before), phases(next));
        if from != to && !from.may_become(to) {
            self.breaks("phases", || format!("{}: {from:?} → {to:?}", root.name));
        }
    }
}

/// How a watch tells.
#[derive(Clone, Copy)]
pub(super) enum Hearing {
    Once,
    Twice,
    Relist,
}

impl Hearing {
    fn of<K: Object, C: Trimmed>(self, table: &mut Table<K, C>, touched: impl Fn(&C)) {
        let objects = match self {
            Hearing::Once => table.tell(false),
            Hearing::Twice => table.tell(true),
            Hearing::Relist => table.relist(),
        };
        objects.iter().for_each(|object| touched(object));
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
