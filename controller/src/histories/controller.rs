//! The controller in this world: its cache, its queue, and passes whose steps are done one at a time.
//!
//! Observing and planning are the real ones, and so is whom an event concerns. Between any two requests of a pass
//! anything may happen, and a pass that is dropped there is a crash.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use futures::FutureExt as _;
use jiff::{SignedDuration, Timestamp};
use kube::{Resource, ResourceExt as _};

use super::requests::Work;
use super::table::{Object, Table, Trimmed};
use super::world::World;
use crate::api::MachineOSBuild;
use crate::cache::Cache;
use crate::live::Live as _;
use crate::phase::Phase;
use crate::plan::{Plan, Requeue, Step};
use crate::retention::Retention;
use crate::turns::Turns;
use crate::watches::{Concerned, Queues, Requests};
use crate::{os_build, os_config, pool};

/// After a pass that failed.
const AGAIN: SignedDuration = SignedDuration::from_secs(1);
/// After a pass whose write was refused.
const AGAIN_REFUSED: SignedDuration = SignedDuration::from_mins(1);
/// Between a bell and the look at the ledger.
pub(super) const LEDGER_PAUSE: SignedDuration = SignedDuration::from_secs(1);
/// Between two looks at the ledger.
const LEDGER_ROUND: SignedDuration = SignedDuration::from_secs(300);
/// Between two looks for images that have lost their build.
const SWEEP_ROUND: SignedDuration = SignedDuration::from_hours(6);
/// After a registry that didn't answer.
pub(super) const LEDGER_RETRY: SignedDuration = SignedDuration::from_secs(30);

/// What a pass is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Key {
    Config(String),
    Build(String),
    Pool(String),
    Ledger,
    Sweep,
}

/// The root object of a pass, as observed, then as each write leaves it.
#[derive(Clone, Default)]
pub(super) struct Root {
    pub(super) name: String,
    pub(super) uid: String,
    pub(super) resource_version: Option<String>,
    pub(super) finalizers: Vec<String>,
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

/// A pass whose plan is made.
pub(super) struct Pass {
    pub(super) key: Key,
    /// That made its plan.
    pub(super) rule: &'static str,
    pub(super) root: Root,
    pub(super) left: VecDeque<Work>,
    pub(super) again: Option<SignedDuration>,
    if_refused: Option<Refused>,
}

type PlanRefused = dyn Fn(&str, Timestamp) -> Option<Plan> + Send + Sync;

/// The root as it was observed, and what is planned when a write is refused.
struct Refused {
    root: Root,
    plan: Box<PlanRefused>,
}

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

    pub(super) fn turns(&self) -> &Turns {
        &self.awake.as_ref().unwrap().concerned.queues.turns
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
            nodes: self.nodes.listen(),
            jobs: self.jobs.listen(),
            config_maps: self.config_maps.listen(),
            secrets: self.secrets.listen(),
        };
        // of these nothing is looked up
        self.pods.listen();
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
        self.enqueue(Key::Sweep, self.clock.now);
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
            .chain([Key::Ledger, Key::Sweep])
            .collect();
        for key in keys {
            self.enqueue(key, now);
        }
    }

    /// So many builds may run at the same time from now on.
    pub(super) fn limit(&mut self, n: u8) {
        let mut settings = (*self.settings).clone();
        settings.max_builds = Some(usize::from(n % 3)).filter(|max| *max > 0);
        self.settings = Arc::new(settings);
        let initial = |one: &&MachineOSBuild| Phase::of_build(one) == Phase::Initial;
        let waiting = self.os_builds.all().filter(initial);
        let keys: Vec<_> = waiting.map(|one| Key::Build(one.name_any())).collect();
        for key in keys {
            self.enqueue(key, self.clock.now);
        }
    }

    /// Fewer builds stay from now on, or more.
    pub(super) fn retain(&mut self, n: u8) {
        let mut settings = (*self.settings).clone();
        settings.retention = match n % 5 {
            0 => Retention::default(),
            1 | 2 => Retention {
                builds: Some(usize::from(n % 5)),
                age: None,
            },
            three_or_four => Retention {
                builds: (three_or_four == 3).then_some(1),
                age: Some(std::time::Duration::from_secs(240)),
            },
        };
        self.note(|| format!("of builds: {}", settings.retention));
        self.settings = Arc::new(settings);
        let configs = self.os_configs.all().map(|one| Key::Config(one.name_any()));
        for key in configs.collect::<Vec<_>>() {
            self.enqueue(key, self.clock.now);
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
        self.take_requests();
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
                let observed = os_config::observe::observe(self, &cached, now)
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
            Key::Sweep => {
                self.work(Pass {
                    key,
                    rule: "sweep",
                    root: Root::default(),
                    left: [Work::Sweep].into(),
                    again: Some(SWEEP_ROUND),
                    if_refused: None,
                });
                return;
            }
            Key::Ledger => {
                let entries = self.ledger.values().filter(|entry| !entry.keep).cloned();
                let left: VecDeque<_> = entries.map(Work::LookAtEntry).collect();
                self.work(Pass {
                    key,
                    rule: "drain",
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
            rule,
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
            Key::Pool(_) | Key::Ledger | Key::Sweep => "pool",
        };
        self.rules.insert((plan, rule));
        match rule {
            // it had been told that nothing was pushed
            "deleting-done" if self.registry.hides(&root.uid, self.clock.now) => {
                self.registry.excuse(&root.uid);
            }
            "invalid" => self.blamed.extend([root.uid.clone()]),
            "start" => {
                self.unmade(&root.name);
                self.has_turn(root);
            }
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
