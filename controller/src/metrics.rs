//! What does this process count, and under which names?
//!
//! All names stand here. Ours begin with `strata_`; their labels are closed sets and never name an object. Those that
//! begin with `ocl_` or `mco_` are the incumbent's, for its dashboards and alerts; their label `pool` is an object's
//! name, so a pool's series go with it ([`Metrics::pool`]). Counts of the incumbent that say nothing
//! about an image here (Jobs, pushes, rollouts) are left out.

mod process;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use jiff::Timestamp;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Metric, Registry};
use strata_builder::contract::{self, BuildReport, PhaseTime};
use strata_builder::error::Class;

use crate::holdings::{Held, Sum};
use crate::job::PodShape;
use crate::phase::Phase;

/// Which reconciler.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Of MachineOSConfigs.
    OsConfig,
    /// Of MachineOSBuilds.
    OsBuild,
    /// Of MachineConfigPools.
    Pool,
    /// Of images that outlive their build.
    Ledger,
}

/// How a step of a plan ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// As planned.
    Done,
    /// With an error; the rest of the plan was left.
    Failed,
}

/// How the deletion of an image ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Deletion {
    /// The registry no longer has it.
    Deleted,
    /// It is in use and stays for now.
    Retained,
    /// The registry can't or won't; it stays for good.
    Refused,
    /// Another try follows.
    Failed,
}

/// How a pool stands with its builds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolState {
    /// Of the build that decides; none if there is no build.
    pub phase: Option<Phase>,
    /// Builds that have not ended.
    pub unfinished: usize,
    /// When the build that decides began.
    pub start: Option<Timestamp>,
    /// When it ended.
    pub end: Option<Timestamp>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RuleLabels {
    kind: &'static str,
    rule: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabels {
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ErrorLabels {
    kind: &'static str,
    class: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StepLabels {
    step: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StepOutcomeLabels {
    step: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    verb: &'static str,
    code: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PhaseLabels {
    phase: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct HeldLabels {
    held: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabels {
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ShapeLabels {
    shape: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PoolLabels {
    pool: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PoolStateLabels {
    pool: String,
    state: &'static str,
}

/// As the builder's report names them; others are not counted.
const BUILD_PHASES: [&str; 5] = ["plan", "pull", "steps", "layers", "push"];

/// The incumbent's states, in the order of a build's life.
const STATES: [&str; 5] = ["pending", "building", "succeeded", "failed", "interrupted"];

const fn state(phase: Phase) -> &'static str {
    match phase {
        Phase::Initial | Phase::Prepared => "pending",
        Phase::Building => "building",
        Phase::Succeeded => "succeeded",
        Phase::Failed => "failed",
        Phase::Interrupted => "interrupted",
    }
}

const KINDS: [&str; 4] = ["os_config", "os_build", "pool", "ledger"];
const CLASSES: [&str; 3] = ["transient", "user", "permanent"];
const DELETIONS: [&str; 4] = ["deleted", "retained", "refused", "failed"];

const fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::OsConfig => "os_config",
        Kind::OsBuild => "os_build",
        Kind::Pool => "pool",
        Kind::Ledger => "ledger",
    }
}

const fn class_name(class: Class) -> &'static str {
    match class {
        Class::Transient => "transient",
        Class::User(_) => "user",
        Class::Permanent(_) => "permanent",
    }
}

type Seconds = Gauge<f64, AtomicU64>;
type Histograms<L> = Family<L, Histogram, fn() -> Histogram>;

/// A pass reads caches and writes a few objects: from under a millisecond to a registry's timeout.
fn pass_histogram() -> Histogram {
    Histogram::new([
        0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
    ])
}

/// A build takes from seconds on a warm node to the deadline; the incumbent's dashboards look at 60 to 3600.
fn build_histogram() -> Histogram {
    Histogram::new([
        2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 900.0, 1200.0, 1800.0, 2700.0, 3600.0,
        7200.0,
    ])
}

/// All counts of the process. Clones share them.
#[derive(Clone, Debug)]
pub struct Metrics(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    registry: Registry,
    rules: Family<RuleLabels, Counter>,
    pass_seconds: Histograms<KindLabels>,
    errors: Family<ErrorLabels, Counter>,
    steps: Family<StepOutcomeLabels, Counter>,
    step_seconds: Histograms<StepLabels>,
    requests: Family<RequestLabels, Counter>,
    running: Family<PhaseLabels, Gauge>,
    queued: Gauge,
    phase_seconds: Histograms<PhaseLabels>,
    pushed_images: Counter,
    pushed_bytes: Counter,
    leader: Gauge,
    build_pod: Family<ShapeLabels, Gauge>,
    deletions: Family<OutcomeLabels, Counter>,
    images: Family<HeldLabels, Gauge>,
    image_bytes: Family<HeldLabels, Gauge>,
    ledger_entries: Gauge,
    ledger_oldest: Seconds,
    ledger_failing: Gauge,
    settings_valid: Gauge,
    build_state: Family<PoolStateLabels, Gauge>,
    builds: Family<PoolStateLabels, Counter>,
    build_seconds: Histograms<PoolStateLabels>,
    build_start: Family<PoolLabels, Seconds>,
    build_end: Family<PoolStateLabels, Seconds>,
    active_builds: Family<PoolLabels, Gauge>,
    os_configs: Gauge,
    objects: Family<KindLabels, Gauge>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

/// Puts `metric` in the registry and gives it back.
fn registered<M: Metric + Clone>(registry: &mut Registry, name: &str, help: &str, metric: M) -> M {
    registry.register(name, help, metric.clone());
    metric
}

impl Metrics {
    /// Everything at zero.
    #[must_use]
    pub fn new() -> Self {
        let mut registry = Registry::default();
        let r = &mut registry;
        // the text form adds _total to a counter's name
        let inner = Inner {
            rules: registered(
                r,
                "strata_reconcile",
                "Passes, by the rule that decided",
                Family::default(),
            ),
            pass_seconds: registered(
                r,
                "strata_reconcile_duration_seconds",
                "Time of a pass: observe, plan, apply",
                Family::new_with_constructor(pass_histogram as fn() -> Histogram),
            ),
            errors: registered(
                r,
                "strata_reconcile_errors",
                "Passes that ended with an error, by who can end it",
                Family::default(),
            ),
            steps: registered(
                r,
                "strata_step",
                "Steps of plans that were performed",
                Family::default(),
            ),
            step_seconds: registered(
                r,
                "strata_step_duration_seconds",
                "Time of a step, whatever its outcome",
                Family::new_with_constructor(pass_histogram as fn() -> Histogram),
            ),
            requests: registered(
                r,
                "strata_api_requests",
                "Requests to the apiserver, by verb and status of the answer; error if there was none",
                Family::default(),
            ),
            running: registered(
                r,
                "strata_builds",
                "Builds that have not ended, by phase; initial is one that waits",
                Family::default(),
            ),
            queued: registered(
                r,
                "strata_queued_builds",
                "Builds that wait because as many run as STRATA_MAX_BUILDS allows",
                Gauge::default(),
            ),
            phase_seconds: registered(
                r,
                "strata_build_phase_duration_seconds",
                "Time of the builder's phases, of builds that were pushed",
                Family::new_with_constructor(build_histogram as fn() -> Histogram),
            ),
            pushed_images: registered(
                r,
                "strata_pushed_images",
                "Images that builds have pushed",
                Counter::default(),
            ),
            pushed_bytes: registered(
                r,
                "strata_pushed_bytes",
                "Bytes of blobs that builds have sent to registries",
                Counter::default(),
            ),
            leader: registered(
                r,
                "strata_leader",
                "1 while this replica holds the Lease",
                Gauge::default(),
            ),
            build_pod: registered(
                r,
                "strata_build_pod",
                "1 for the shape of the pods that builds get",
                Family::default(),
            ),
            deletions: registered(
                r,
                "strata_image_deletions",
                "Images that were to be removed from a registry",
                Family::default(),
            ),
            images: registered(
                r,
                "strata_images",
                "Images of builds by what holds them: in-use, build-only (only MachineOSBuilds), leaving (only the ledger)",
                Family::default(),
            ),
            image_bytes: registered(
                r,
                "strata_image_bytes",
                "Their sizes, those counted together that their builds have told",
                Family::default(),
            ),
            ledger_entries: registered(
                r,
                "strata_ledger_entries",
                "Images that are to be removed later",
                Gauge::default(),
            ),
            ledger_oldest: registered(
                r,
                "strata_ledger_oldest_timestamp_seconds",
                "When the oldest of them was entered; 0 if there is none",
                Seconds::default(),
            ),
            ledger_failing: registered(
                r,
                "strata_ledger_failing",
                "Those of them that nothing needs, but that could not be removed yet",
                Gauge::default(),
            ),
            settings_valid: registered(
                r,
                "strata_settings_valid",
                "1 if the ConfigMap strata-settings is what builds have, 0 if it has a mistake",
                Gauge::default(),
            ),
            build_state: registered(
                r,
                "ocl_build_state",
                "1 for the state of the pool's newest build",
                Family::default(),
            ),
            builds: registered(
                r,
                "ocl_build",
                "Builds that ended, by how",
                Family::default(),
            ),
            build_seconds: registered(
                r,
                "ocl_build_duration_seconds",
                "From a MachineOSBuild's creation to its end",
                Family::new_with_constructor(build_histogram as fn() -> Histogram),
            ),
            build_start: registered(
                r,
                "ocl_build_start_timestamp_seconds",
                "When the pool's newest build was prepared",
                Family::default(),
            ),
            build_end: registered(
                r,
                "ocl_build_end_timestamp_seconds",
                "When the pool's newest build in this state ended",
                Family::default(),
            ),
            active_builds: registered(
                r,
                "ocl_active_builds",
                "Builds of the pool that have begun and not ended",
                Family::default(),
            ),
            os_configs: registered(
                r,
                "mco_mosc_count",
                "MachineOSConfigs in the cluster",
                Gauge::default(),
            ),
            objects: registered(
                r,
                "strata_objects",
                "Objects in the cluster that are reconciled",
                Family::default(),
            ),
            registry: {
                registry.register_collector(Box::new(process::Process::new()));
                registry
            },
        };
        // Prometheus sees no increase of a series that begins with its first count
        for kind in KINDS {
            for class in CLASSES {
                drop(inner.errors.get_or_create(&ErrorLabels { kind, class }));
            }
        }
        for outcome in DELETIONS {
            drop(inner.deletions.get_or_create(&OutcomeLabels { outcome }));
        }
        Self(Arc::new(inner))
    }

    /// A pass whose plan `rule` made.
    pub fn rule(&self, kind: Kind, rule: &'static str) {
        let kind = kind_name(kind);
        self.0.rules.get_or_create(&RuleLabels { kind, rule }).inc();
    }

    /// How long a pass took.
    pub fn reconcile_seconds(&self, kind: Kind, elapsed: Duration) {
        let kind = kind_name(kind);
        self.0
            .pass_seconds
            .get_or_create(&KindLabels { kind })
            .observe(elapsed.as_secs_f64());
    }

    /// A pass that ended with an error of this class.
    pub fn reconcile_error(&self, kind: Kind, class: Class) {
        let (kind, class) = (kind_name(kind), class_name(class));
        self.0
            .errors
            .get_or_create(&ErrorLabels { kind, class })
            .inc();
    }

    /// A step was performed or failed.
    pub fn step(&self, step: &'static str, outcome: Outcome, elapsed: Duration) {
        let outcome = match outcome {
            Outcome::Done => "done",
            Outcome::Failed => "failed",
        };
        self.0
            .steps
            .get_or_create(&StepOutcomeLabels { step, outcome })
            .inc();
        self.0
            .step_seconds
            .get_or_create(&StepLabels { step })
            .observe(elapsed.as_secs_f64());
    }

    /// The apiserver was asked and answered so; none if it didn't answer.
    pub fn api_request(&self, verb: &'static str, code: Option<u16>) {
        let code = code.map_or_else(|| "error".to_owned(), |code| code.to_string());
        let labels = RequestLabels { verb, code };
        self.0.requests.get_or_create(&labels).inc();
    }

    /// How many builds are in each phase that isn't an end, and how many of them wait for their turn.
    pub fn builds(&self, phases: &[Phase], queued: usize) {
        for (phase, name) in [
            (Phase::Initial, "initial"),
            (Phase::Prepared, "prepared"),
            (Phase::Building, "building"),
        ] {
            let count = phases.iter().filter(|one| **one == phase).count();
            let gauge = self.0.running.get_or_create(&PhaseLabels { phase: name });
            gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
        }
        self.0.queued.set(i64::try_from(queued).unwrap_or(i64::MAX));
    }

    /// What the builder says of a build that has pushed. To be called once per build, since it counts.
    pub fn pushed(&self, report: &BuildReport) {
        let contract::Outcome::Pushed { sent_bytes, .. } = &report.outcome else {
            return;
        };
        self.0.pushed_images.inc();
        self.0.pushed_bytes.inc_by(*sent_bytes);
        for PhaseTime { name, millis } in &report.phases {
            let Some(phase) = BUILD_PHASES.iter().find(|known| **known == name) else {
                continue;
            };
            let seconds = self.0.phase_seconds.get_or_create(&PhaseLabels { phase });
            seconds.observe(Duration::from_millis(*millis).as_secs_f64());
        }
    }

    /// Whether this replica works.
    pub fn leader(&self, leading: bool) {
        self.0.leader.set(i64::from(leading));
    }

    /// Builds get pods of this shape.
    pub fn build_pod(&self, chosen: PodShape) {
        for shape in PodShape::ALL {
            let labels = ShapeLabels {
                shape: shape.name(),
            };
            let gauge = self.0.build_pod.get_or_create(&labels);
            gauge.set(i64::from(shape == chosen));
        }
    }

    /// An image was to be removed.
    pub fn image_deletion(&self, outcome: Deletion) {
        let outcome = match outcome {
            Deletion::Deleted => "deleted",
            Deletion::Retained => "retained",
            Deletion::Refused => "refused",
            Deletion::Failed => "failed",
        };
        self.0
            .deletions
            .get_or_create(&OutcomeLabels { outcome })
            .inc();
    }

    /// How many images there are, and how large.
    pub fn holdings(&self, holdings: &BTreeMap<Held, Sum>) {
        let number = |count| i64::try_from(count).unwrap_or(i64::MAX);
        for (held, sum) in holdings {
            let labels = HeldLabels {
                held: held.as_str(),
            };
            let Sum { images, bytes } = *sum;
            self.0.images.get_or_create(&labels).set(number(images));
            self.0.image_bytes.get_or_create(&labels).set(number(bytes));
        }
    }

    /// How many images wait for their deletion, since when the first, and how many of them nothing needs any more.
    pub fn ledger(&self, count: usize, since: Option<Timestamp>, failing: usize) {
        let number = |count| i64::try_from(count).unwrap_or(i64::MAX);
        self.0.ledger_entries.set(number(count));
        self.0.ledger_failing.set(number(failing));
        let since = since.map_or(0.0, |since| since.as_duration().as_secs_f64());
        self.0.ledger_oldest.set(since);
    }

    /// Whether the ConfigMap with the settings could be taken over.
    pub fn settings_valid(&self, is_valid: bool) {
        self.0.settings_valid.set(i64::from(is_valid));
    }

    /// Objects of this kind in the cluster.
    pub fn objects(&self, kind: Kind, count: usize) {
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        if kind == Kind::OsConfig {
            self.0.os_configs.set(count);
        }
        let kind = kind_name(kind);
        self.0
            .objects
            .get_or_create(&KindLabels { kind })
            .set(count);
    }

    /// A build of `pool` ended in `phase`, `age` after its creation. To be called once per build, since it counts.
    pub fn build_ended(&self, pool: &str, phase: Phase, age: Option<Duration>) {
        let labels = pool_state_labels(pool, state(phase));
        self.0.builds.get_or_create(&labels).inc();
        if let Some(age) = age {
            let seconds = self.0.build_seconds.get_or_create(&labels);
            seconds.observe(age.as_secs_f64());
        }
    }

    /// How `pool` stands; without an image of its own its series go.
    pub fn pool(&self, pool: &str, known: Option<PoolState>) {
        let Some(known) = known else {
            return self.forget_pool(pool);
        };
        for one in STATES {
            let holds = known.phase.map(state) == Some(one);
            let labels = pool_state_labels(pool, one);
            let gauge = self.0.build_state.get_or_create(&labels);
            gauge.set(i64::from(holds));
        }
        let labels = pool_labels(pool);
        let unfinished = i64::try_from(known.unfinished).unwrap_or(i64::MAX);
        self.0.active_builds.get_or_create(&labels).set(unfinished);
        let seconds = |time: Timestamp| time.as_duration().as_secs_f64();
        if let Some(start) = known.start {
            let gauge = self.0.build_start.get_or_create(&labels);
            gauge.set(seconds(start));
        }
        if let (Some(phase), Some(end)) = (known.phase, known.end) {
            let labels = pool_state_labels(pool, state(phase));
            self.0.build_end.get_or_create(&labels).set(seconds(end));
        }
    }

    fn forget_pool(&self, pool: &str) {
        let labels = pool_labels(pool);
        self.0.build_start.remove(&labels);
        self.0.active_builds.remove(&labels);
        for state in STATES {
            let labels = pool_state_labels(pool, state);
            self.0.build_state.remove(&labels);
            self.0.builds.remove(&labels);
            self.0.build_seconds.remove(&labels);
            self.0.build_end.remove(&labels);
        }
    }

    /// Everything in the OpenMetrics text form.
    #[must_use]
    pub fn encode(&self) -> String {
        let mut text = String::new();
        if let Err(error) = prometheus_client::encoding::text::encode(&mut text, &self.0.registry) {
            // writing to a String doesn't fail
            tracing::debug!(%error, "metrics cut short");
        }
        text
    }
}

fn pool_labels(pool: &str) -> PoolLabels {
    PoolLabels {
        pool: pool.to_owned(),
    }
}

fn pool_state_labels(pool: &str, state: &'static str) -> PoolStateLabels {
    PoolStateLabels {
        pool: pool.to_owned(),
        state,
    }
}

#[cfg(test)]
mod tests;
