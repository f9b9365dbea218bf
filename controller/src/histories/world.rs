//! What is there, and what users, nodes and other controllers do to it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use jiff::SignedDuration;
use k8s_openapi::ByteString;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, Node, Pod, Secret};
use kube::{Resource, ResourceExt as _};
use serde_json::json;
use strata_builder::reference::{Reference, Repository};

use super::controller::Controller;
use super::registry::{OURS, Registry};
use super::table::{Clock, Propagation, Table, is_owned};
use crate::api::foreign::PoolCondition;
use crate::api::machine_os_config::ContainerfileArch;
use crate::api::{
    CLEANUP_FINALIZER, ControllerConfig, MachineConfig, MachineConfigPool, MachineOSBuild,
    MachineOSConfig, annotation, label,
};
use crate::cache::{
    Cache, Meta, build_groups, config_groups, owned_groups, pool_groups, ungrouped,
};
use crate::error::Error;
use crate::fixtures;
use crate::image_streams::ImageStream;
use crate::inputs::OptionalMounts;
use crate::job::{JobSettings, PodShape};
use crate::ledger::{AtWork, Entry, Removing};
use crate::live::{Live, Needs};
use crate::registries::Answer;
use crate::secrets::{JSON_KEY, JSON_TYPE};
use crate::settings::BuildSettings;
use crate::turns::Turns;
use crate::usage::{Use, Users};
use crate::wanted::{Wanted, wanted};
use crate::watches::keep_outcome;

/// Names of the configs, each with a pool and a node of its name.
pub(super) const CONFIGS: [&str; 2] = ["infra", "worker"];
/// How many good Containerfiles a config may have; one more is bad.
const GOOD: u8 = 2;
/// How many MachineConfigs of a pool there are: the first two on the same base image, the third on another; one more is missing.
const RENDERED: u8 = 3;
pub(super) const PUSH_SECRET: &str = "push";
/// Where a node tells what it has staged.
const STAGED: &str = "example.com/rpm-ostree-state";
/// A MachineConfig of no pool.
const PIN: &str = "99-pinned";
/// An image that was never built here.
const SEED: &str = "registry.example.com/org/seed@sha256:220a60ecd4a3c32c282622a625a54db9ba0ff55b5ba9c29c7064a2bc358b6a3e";

/// A config's UID and generation, and the MachineConfig that its pool wants if that is there.
type Decider = (Option<String>, Option<i64>, Option<String>);

pub(super) struct World {
    pub(super) clock: Clock,
    pub(super) os_configs: Table<MachineOSConfig>,
    pub(super) os_builds: Table<MachineOSBuild>,
    pub(super) pools: Table<MachineConfigPool>,
    pub(super) machine_configs: Table<MachineConfig>,
    pub(super) jobs: Table<Job, Meta<Job>>,
    pub(super) pods: Table<Pod, Meta<Pod>>,
    pub(super) config_maps: Table<ConfigMap, Meta<ConfigMap>>,
    pub(super) secrets: Table<Secret, Meta<Secret>>,
    pub(super) nodes: Table<Node, Meta<Node>>,
    pub(super) ledger: BTreeMap<String, Entry>,
    pub(super) registry: Registry,
    pub(super) controller: Controller,
    pub(super) settings: Arc<BuildSettings>,
    pub(super) read_fails: AtomicBool,
    /// Pods that broke or were lost, by their Job's UID.
    pub(super) broken: BTreeMap<String, i32>,
    /// Where the pods of a Job push to and for which build, by the Job's UID.
    pub(super) errands: BTreeMap<String, (String, String)>,
    /// UIDs of builds that may end without an image: their pods failed, or somebody deleted their Job.
    pub(super) blamed: BTreeSet<String>,
    /// UIDs of builds that the incumbent had for a while: nobody keeps their images from being left over.
    pub(super) not_ours: BTreeSet<String>,
    known_wanted: Mutex<HashMap<Decider, Wanted>>,
    /// How many builds each config may have made: one for each cause there was.
    pub(super) causes: BTreeMap<&'static str, u32>,
    pub(super) created: BTreeMap<String, u32>,
    /// Which rules of the plans were used: of which plan, and the name.
    pub(super) rules: BTreeSet<(&'static str, &'static str)>,
    /// Rebuilds that were asked for: config, build that it had and its image, causes there were then.
    pub(super) rebuilds: Vec<(String, String, Option<String>, u32)>,
    /// The first rule of this world that was broken.
    pub(super) broken_rule: Option<String>,
    /// What happened, for a reader.
    pub(super) diary: Option<Vec<String>>,
}

impl World {
    pub(super) fn new() -> Self {
        let mut clock = Clock::new(fixtures::now());
        let mut pools = Table::new(Clone::clone, pool_groups);
        let mut machine_configs = Table::new(Clone::clone, ungrouped);
        let mut nodes = Table::new(metadata, ungrouped);
        for name in CONFIGS {
            for variant in 0..RENDERED {
                machine_configs.create(&mut clock, machine_config(name, variant));
            }
            pools.create(&mut clock, pool(name));
            let mut node = Node::default();
            node.metadata.name = Some(name.to_owned());
            nodes.create(&mut clock, node);
        }
        let mut world = Self {
            clock,
            os_configs: Table::new(Clone::clone, config_groups),
            os_builds: Table::new(outcome, build_groups),
            pools,
            machine_configs,
            jobs: Table::new(metadata, owned_groups),
            pods: Table::new(metadata, ungrouped),
            config_maps: Table::new(metadata, owned_groups),
            secrets: Table::new(metadata, owned_groups),
            nodes,
            ledger: BTreeMap::new(),
            registry: Registry::default(),
            controller: Controller::default(),
            settings: Arc::new(fixtures::build_settings()),
            read_fails: AtomicBool::new(false),
            broken: BTreeMap::new(),
            errands: BTreeMap::new(),
            known_wanted: Mutex::default(),
            blamed: BTreeSet::new(),
            not_ours: BTreeSet::new(),
            causes: BTreeMap::new(),
            created: BTreeMap::new(),
            rules: BTreeSet::new(),
            rebuilds: Vec::new(),
            broken_rule: None,
            diary: None,
        };
        world.secret_comes();
        world.start();
        world
    }

    pub(super) fn note(&mut self, what: impl FnOnce() -> String) {
        if let Some(diary) = &mut self.diary {
            diary.push(what());
        }
    }

    pub(super) fn breaks(&mut self, rule: &str, what: impl FnOnce() -> String) {
        if self.broken_rule.is_none() {
            let told = format!("{rule}: {}", what());
            self.note(|| told.clone());
            self.broken_rule = Some(told);
        }
    }

    pub(super) fn wanted(&self, os_config: &MachineOSConfig) -> Wanted {
        let pool = self.pools.get(&os_config.spec.machine_config_pool.name);
        let target = pool.and_then(MachineConfigPool::target_machine_config);
        let machine_config = target.and_then(|target| self.machine_configs.get(target));
        wanted(os_config, pool, machine_config)
    }

    fn caused(&mut self, name: &str) {
        let name = CONFIGS.iter().find(|one| **one == name);
        if let Some(name) = name {
            *self.causes.entry(name).or_default() += 1;
        }
    }

    // --- users

    pub(super) fn create_config(&mut self, n: u8, seed: bool) {
        let name = CONFIGS[usize::from(n) % CONFIGS.len()];
        let mut os_config = fixtures::os_config();
        os_config.metadata.name = Some(name.to_owned());
        os_config.metadata.uid = None;
        os_config.spec.machine_config_pool.name = name.to_owned();
        os_config.spec.rendered_image_push_secret.name = PUSH_SECRET.to_owned();
        os_config.spec.rendered_image_push_spec = format!("registry.example.com/org/{name}:latest");
        if seed {
            os_config
                .annotations_mut()
                .insert(annotation::PRE_BUILT_IMAGE.to_owned(), SEED.to_owned());
        }
        if self.os_configs.create(&mut self.clock, os_config) {
            self.caused(name);
            self.note(|| format!("config {name} is created"));
        }
    }

    pub(super) fn edit(&mut self, n: u8) {
        let Some(name) = self.os_configs.nth(n).map(kube::ResourceExt::name_any) else {
            return;
        };
        let variant = n / 2 % (GOOD + 2);
        let mut file = fixtures::containerfile(ContainerfileArch::NoArch);
        if variant == GOOD {
            file.content.push_str("NOTHING\n");
        } else {
            file.content.push_str(&format!("RUN echo {variant}\n"));
        }
        let push_spec = match variant <= GOOD {
            true => format!("registry.example.com/org/{name}:latest"),
            false => "registry.example.com/Capitals:latest".to_owned(),
        };
        self.os_configs.change(&mut self.clock, &name, |os_config| {
            let before = os_config.spec.clone();
            os_config.spec.container_file = Some(vec![file]);
            os_config.spec.rendered_image_push_spec = push_spec;
            if os_config.spec != before {
                *os_config.metadata.generation.get_or_insert_default() += 1;
            }
        });
        self.caused(&name);
        self.note(|| format!("config {name} has Containerfile {variant}"));
    }

    /// What can't be built because something is missing or wrong can be from now on.
    pub(super) fn mend(&mut self) {
        for (n, name) in (0..).zip(CONFIGS) {
            self.degrade(n, false);
            if self
                .machine_configs
                .get(&rendered(name, RENDERED))
                .is_none()
            {
                self.machine_configs
                    .create(&mut self.clock, machine_config(name, RENDERED));
            }
        }
        for n in 0..2 {
            let wanted = self.os_configs.nth(n).map(|one| self.wanted(one));
            if matches!(wanted, Some(Wanted::Invalid { .. })) {
                self.edit(n);
            }
        }
    }

    pub(super) fn ask_for_rebuild(&mut self, n: u8) {
        let Some(name) = self.os_configs.nth(n).map(kube::ResourceExt::name_any) else {
            return;
        };
        self.os_configs.change(&mut self.clock, &name, |os_config| {
            let annotations = os_config.annotations_mut();
            annotations.insert(annotation::REBUILD.to_owned(), String::new());
        });
        self.caused(&name);
        let os_config = self.os_configs.get(&name);
        let wanted = os_config.map(|one| self.wanted(one));
        let build = wanted
            .as_ref()
            .and_then(Wanted::name)
            .and_then(|name| self.os_builds.get(name));
        if let Some(build) = build {
            let status = build.status.as_ref();
            let image = status.and_then(|status| status.digested_image_push_spec.clone());
            let uid = build.uid().unwrap_or_default();
            let causes = self.causes[name.as_str()];
            self.rebuilds.push((name.clone(), uid, image, causes));
        }
        self.note(|| format!("config {name} is to be built again"));
    }

    pub(super) fn touch_config(&mut self, n: u8) {
        if let Some(name) = self.os_configs.nth(n).map(kube::ResourceExt::name_any) {
            let stamp = self.clock.next().to_string();
            self.os_configs
                .change(&mut self.clock, &name, |one| touch(one, stamp));
            self.note(|| format!("another writer touches config {name}"));
        }
    }

    pub(super) fn touch_build(&mut self, n: u8) {
        if let Some(name) = self.os_builds.nth(n).map(kube::ResourceExt::name_any) {
            let stamp = self.clock.next().to_string();
            self.os_builds
                .change(&mut self.clock, &name, |one| touch(one, stamp));
            self.note(|| format!("another writer touches build {name}"));
        }
    }

    /// The incumbent's builds have no finalizer of ours.
    pub(super) fn unguard(&mut self, n: u8) {
        let Some(os_build) = self.os_builds.nth(n) else {
            return;
        };
        if self.controller.is_awake() || os_build.metadata.deletion_timestamp.is_some() {
            return;
        }
        let name = os_build.name_any();
        self.not_ours.extend(os_build.uid());
        self.os_builds.change(&mut self.clock, &name, |one| {
            one.finalizers_mut().retain(|one| one != CLEANUP_FINALIZER);
        });
        self.note(|| format!("build {name} is the incumbent's"));
    }

    pub(super) fn delete_config(&mut self, n: u8) {
        if let Some(name) = self.os_configs.nth(n).map(kube::ResourceExt::name_any) {
            self.os_configs
                .delete(&mut self.clock, &name, Propagation::Background);
            self.note(|| format!("config {name} is deleted"));
        }
    }

    pub(super) fn delete_build(&mut self, n: u8, propagation: Propagation) {
        let Some(os_build) = self.os_builds.nth(n) else {
            return;
        };
        let (name, os_config) = (
            os_build.name_any(),
            os_build.spec.machine_os_config.name.clone(),
        );
        self.blame(n);
        self.os_builds.delete(&mut self.clock, &name, propagation);
        self.caused(&os_config);
        self.note(|| format!("build {name} is deleted by hand"));
    }

    fn blame(&mut self, n: u8) {
        let uid = self.os_builds.nth(n).and_then(kube::ResourceExt::uid);
        self.blamed.extend(uid);
    }

    pub(super) fn delete_job(&mut self, n: u8) {
        let Some(job) = self.jobs.nth(n) else {
            return;
        };
        let name = job.name_any();
        let uids: Vec<_> = job
            .owner_references()
            .iter()
            .map(|one| one.uid.clone())
            .collect();
        self.blamed.extend(uids);
        self.jobs
            .delete(&mut self.clock, &name, Propagation::Background);
        self.note(|| format!("Job {name} is deleted by hand"));
    }

    pub(super) fn secret_goes(&mut self) {
        self.secrets
            .delete(&mut self.clock, PUSH_SECRET, Propagation::Background);
        self.note(|| "the push secret is gone".to_owned());
    }

    pub(super) fn secret_comes(&mut self) {
        let mut secret = Secret {
            type_: Some(JSON_TYPE.to_owned()),
            data: Some([(JSON_KEY.to_owned(), ByteString(b"{}".to_vec()))].into()),
            ..Secret::default()
        };
        secret.metadata.name = Some(PUSH_SECRET.to_owned());
        secret.metadata.namespace = Some(self.settings.job.namespace.clone());
        if self.secrets.create(&mut self.clock, secret) {
            self.note(|| "the push secret is there".to_owned());
        }
    }

    // --- pools and nodes

    pub(super) fn move_pool(&mut self, n: u8) {
        let name = CONFIGS[usize::from(n) % CONFIGS.len()];
        let variant = n / 2 % (RENDERED + 1);
        self.pools.change(&mut self.clock, name, |pool| {
            pool.spec.configuration = configuration(name, variant);
        });
        self.caused(name);
        self.note(|| format!("pool {name} wants {}", rendered(name, variant)));
    }

    pub(super) fn degrade(&mut self, n: u8, is_degraded: bool) {
        let name = CONFIGS[usize::from(n) % CONFIGS.len()];
        self.pools.change(&mut self.clock, name, |pool| {
            let condition = PoolCondition {
                type_: "NodeDegraded".to_owned(),
                status: if is_degraded { "True" } else { "False" }.to_owned(),
                ..PoolCondition::default()
            };
            let status = pool.status.get_or_insert_default();
            let conditions = status.conditions.get_or_insert_default();
            conditions.retain(|one| one.type_ != condition.type_);
            conditions.push(condition);
        });
        self.note(|| format!("pool {name} is degraded: {is_degraded}"));
    }

    pub(super) fn node_wants(&mut self, n: u8) {
        let name = CONFIGS[usize::from(n) % CONFIGS.len()];
        if let Some(image) = self.adopted(name) {
            self.annotate_node(name, annotation::NODE_DESIRED_IMAGE, image);
        }
    }

    pub(super) fn node_has(&mut self, n: u8) {
        let name = CONFIGS[usize::from(n) % CONFIGS.len()];
        let image = self.nodes.get(name).and_then(|node| {
            node.annotations()
                .get(annotation::NODE_DESIRED_IMAGE)
                .cloned()
        });
        if let Some(image) = image {
            self.annotate_node(name, annotation::NODE_CURRENT_IMAGE, image);
        }
    }

    fn annotate_node(&mut self, name: &str, key: &str, image: String) {
        self.note(|| format!("node {name}: {key} is {image}"));
        self.nodes.change(&mut self.clock, name, |node| {
            node.annotations_mut().insert(key.to_owned(), image);
        });
    }

    /// A node stages the image of its config, or forgets what it had staged.
    pub(super) fn node_stages(&mut self, n: u8) {
        let name = CONFIGS[usize::from(n) % CONFIGS.len()];
        let image = self.adopted(name).filter(|_| n % 4 < 2);
        let staged = image.map(|image| format!(r#"{{"staged":{{"image":"{image}"}}}}"#));
        self.annotate_node(name, STAGED, staged.unwrap_or_default());
    }

    /// Somebody wants the image of a build to stay, or no longer.
    pub(super) fn keep_image(&mut self, n: u8) {
        let Some(name) = self.os_builds.nth(n / 2).map(kube::ResourceExt::name_any) else {
            return;
        };
        let value = if n.is_multiple_of(2) { "" } else { "false" };
        self.os_builds.change(&mut self.clock, &name, |one| {
            let annotations = one.annotations_mut();
            annotations.insert(annotation::KEEP_IMAGE.to_owned(), value.to_owned());
        });
        self.note(|| format!("the image of build {name} is to stay: {value:?}"));
    }

    /// A MachineConfig names the image of a config, or the base image again.
    pub(super) fn pin(&mut self, n: u8) {
        let name = CONFIGS[usize::from(n) % CONFIGS.len()];
        let image = self.adopted(name).filter(|_| n % 4 < 2);
        let mut pinned = machine_config(name, 0);
        pinned.metadata.name = Some(PIN.to_owned());
        self.machine_configs.create(&mut self.clock, pinned);
        self.note(|| format!("MachineConfig {PIN} names {image:?}"));
        self.machine_configs
            .change(&mut self.clock, PIN, |one| one.spec.os_image_url = image);
    }

    /// The image that status of this config names.
    fn adopted(&self, name: &str) -> Option<String> {
        let status = self.os_configs.get(name)?.status.as_ref()?;
        status.current_image_pull_spec.clone()
    }

    /// Nothing but configs and builds names an image any more.
    pub(super) fn let_go(&mut self) {
        (0..2).for_each(|n| self.node_leaves(n));
        self.pin(2);
        for n in 0..u8::try_from(self.os_builds.all().count()).unwrap_or(u8::MAX) / 2 {
            self.keep_image(2 * n + 1);
        }
    }

    /// A node goes back to the image that it had without a config.
    pub(super) fn node_leaves(&mut self, n: u8) {
        let name = CONFIGS[usize::from(n) % CONFIGS.len()];
        self.note(|| format!("node {name} names no image"));
        self.nodes
            .change(&mut self.clock, name, |node| node.annotations_mut().clear());
    }

    // --- the rest

    pub(super) fn registry_loses(&mut self, n: u8) {
        let count = self.registry.images.len().max(1);
        let digest = self.registry.images.keys().nth(usize::from(n) % count);
        if let Some(digest) = digest.copied() {
            let uid = self.registry.images[&digest].build_uid.clone();
            let build = self
                .os_builds
                .all()
                .find(|one| one.uid().as_ref() == Some(&uid));
            if let Some(name) = build.map(|one| one.spec.machine_os_config.name.clone()) {
                self.caused(&name);
            }
            self.blamed.insert(uid);
            self.registry.remove(digest);
            self.registry.lost.insert(digest);
            self.note(|| format!("the registry loses {digest}"));
        }
    }

    pub(super) fn push_theirs(&mut self, n: u8) {
        let Some(os_build) = self.os_builds.nth(n) else {
            return;
        };
        let reference = os_build.spec.rendered_image_push_spec.clone();
        let stamp = self.clock.next();
        self.registry.push_theirs(&reference, self.clock.now, stamp);
        self.note(|| format!("another cluster pushes {reference}"));
    }

    pub(super) fn wait(&mut self, seconds: i64) {
        self.clock.now += SignedDuration::from_secs(seconds);
        self.note(|| format!("{seconds} s pass"));
    }

    fn read(&self) -> Result<(), Error> {
        if self.read_fails.swap(false, Ordering::Relaxed) {
            return Err(Error::Timeout {
                what: "read",
                limit: std::time::Duration::ZERO,
            });
        }
        Ok(())
    }
}

fn touch(object: &mut impl Resource, stamp: String) {
    object
        .annotations_mut()
        .insert("example.com/touched".to_owned(), stamp);
}

fn outcome(os_build: &MachineOSBuild) -> MachineOSBuild {
    let mut os_build = os_build.clone();
    keep_outcome(&mut os_build);
    os_build
}

pub(super) fn metadata<K: Resource<DynamicType = ()>>(object: &K) -> Meta<K> {
    Meta {
        types: None,
        metadata: object.meta().clone(),
        _phantom: std::marker::PhantomData,
    }
}

fn rendered(pool: &str, variant: u8) -> String {
    format!("rendered-{pool}-{variant}")
}

fn machine_config(pool: &str, variant: u8) -> MachineConfig {
    let mut machine_config = fixtures::machine_config();
    machine_config.metadata.name = Some(rendered(pool, variant));
    if variant == 2 {
        let base = machine_config.spec.os_image_url.as_mut();
        base.unwrap().insert_str(0, "mirror.");
    }
    machine_config
}

fn pool(name: &str) -> MachineConfigPool {
    let mut pool = fixtures::pool();
    pool.metadata.name = Some(name.to_owned());
    pool.spec.configuration = configuration(name, 0);
    pool
}

fn configuration(pool: &str, variant: u8) -> Option<crate::api::foreign::PoolConfiguration> {
    serde_json::from_value(json!({"name": rendered(pool, variant)})).unwrap()
}

impl Needs for World {
    fn cluster(&self) -> Option<&str> {
        Some(OURS)
    }

    async fn image_stream(&self, _repository: &Repository) -> Result<Option<ImageStream>, Error> {
        Ok(None)
    }

    async fn users(&self) -> Result<Users, Error> {
        self.read()?;
        Ok(Users {
            nodes: self.nodes.all().map(metadata).map(Arc::new).collect(),
            os_configs: self.os_configs.all().cloned().map(Arc::new).collect(),
            os_builds: self.os_builds.all().cloned().map(Arc::new).collect(),
            machine_configs: self.machine_configs.all().cloned().map(Arc::new).collect(),
            entries: self.ledger.values().cloned().collect(),
            undecodable: Vec::new(),
        })
    }

    async fn begin_removal(&self, _removing: &Removing) -> Result<AtWork, Error> {
        Ok(AtWork::default())
    }

    async fn end_removal(&self, _removing: &Removing) -> Result<(), Error> {
        Ok(())
    }
}

impl Live for World {
    fn cache(&self) -> &Cache {
        self.controller.cache()
    }

    fn namespace(&self) -> &str {
        &self.settings.job.namespace
    }

    fn settings(&self) -> Arc<BuildSettings> {
        Arc::clone(&self.settings)
    }

    /// Told from what decides it, since the hash is most of a history's time.
    fn wanted(&self, os_config: &MachineOSConfig) -> (Wanted, Option<Arc<MachineConfigPool>>) {
        let cache = self.cache();
        let pool = cache.pools.get(&os_config.spec.machine_config_pool.name);
        let target = pool
            .as_deref()
            .and_then(MachineConfigPool::target_machine_config);
        let target = target.filter(|target| cache.machine_configs.get(target).is_some());
        let metadata = &os_config.metadata;
        let key = (
            metadata.uid.clone(),
            metadata.generation,
            target.map(str::to_owned),
        );
        let mut known = self.known_wanted.lock().unwrap();
        let wanted = known
            .entry(key)
            .or_insert_with(|| cache.wanted(os_config).0);
        (wanted.clone(), pool.clone())
    }

    fn turns(&self) -> &Turns {
        self.controller.turns()
    }

    async fn os_config(&self, name: &str) -> Result<Option<MachineOSConfig>, Error> {
        self.read()?;
        Ok(self.os_configs.get(name).cloned())
    }

    async fn os_build(&self, name: &str) -> Result<Option<MachineOSBuild>, Error> {
        self.read()?;
        Ok(self.os_builds.get(name).cloned())
    }

    async fn job(&self, name: &str) -> Result<Option<Job>, Error> {
        self.read()?;
        Ok(self.jobs.get(name).cloned())
    }

    async fn pods(&self, job_uid: &str) -> Result<Vec<Pod>, Error> {
        self.read()?;
        let its = |pod: &&Pod| is_owned(&pod.metadata, job_uid);
        Ok(self.pods.all().filter(its).cloned().collect())
    }

    async fn pods_of_build(&self, os_build: &str) -> Result<Vec<Pod>, Error> {
        self.read()?;
        let its = |pod: &&Pod| {
            pod.labels()
                .get(label::OS_BUILD)
                .is_some_and(|of| of == os_build)
        };
        Ok(self.pods.all().filter(its).cloned().collect())
    }

    async fn refused_pod(&self, _job_uid: &str) -> Result<Option<String>, Error> {
        Ok(None)
    }

    async fn refused_start(&self, _pod_uid: &str) -> Result<Option<String>, Error> {
        Ok(None)
    }

    async fn pod_shape(&self, _settings: &JobSettings) -> Result<Result<PodShape, String>, Error> {
        self.read()?;
        Ok(Ok(PodShape::Userns))
    }

    async fn takes_image(
        &self,
        _os_build: &MachineOSBuild,
        _image: &Reference,
    ) -> Result<Result<(), String>, Error> {
        self.read()?;
        Ok(Ok(()))
    }

    async fn machine_config(&self, name: &str) -> Result<Option<MachineConfig>, Error> {
        self.read()?;
        Ok(self.machine_configs.get(name).cloned())
    }

    async fn controller_config(&self) -> Result<Option<ControllerConfig>, Error> {
        Ok(None)
    }

    async fn secret(&self, name: &str) -> Result<Option<Secret>, Error> {
        self.read()?;
        Ok(self.secrets.get(name).cloned())
    }

    async fn config_map(&self, name: &str) -> Result<Option<ConfigMap>, Error> {
        self.read()?;
        Ok(self.config_maps.get(name).cloned())
    }

    async fn optional_mounts(&self, _pool: &str) -> Result<OptionalMounts, Error> {
        Ok(OptionalMounts::default())
    }

    async fn entries(&self) -> Result<Vec<Entry>, Error> {
        self.read()?;
        Ok(self.ledger.values().cloned().collect())
    }

    async fn used(
        &self,
        image: &Reference,
        _push_secret: &str,
        asking: Option<&str>,
    ) -> Result<Option<Use>, Error> {
        let users = self.users().await?;
        Ok(image.digest.and_then(|digest| users.of(digest, asking)))
    }

    fn is_missing(&self, image: &Reference) -> bool {
        let digest = image.digest;
        digest.is_some_and(|digest| self.registry.lost.contains(&digest))
    }

    async fn look(&self, image: &Reference, push_secret: &str, manifest: bool) -> Answer {
        if self.secrets.get(push_secret).is_none() {
            return Answer::NoAccess(format!("secret {push_secret} does not exist"));
        }
        self.registry.look(image, manifest, self.clock.now)
    }
}
