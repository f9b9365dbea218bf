//! How do the parts of the controller run together?
//!
//! ```text
//! lease ─► watches ─► queues ─► reconcile MachineOSConfigs
//!              │         ├────► reconcile MachineOSBuilds
//!              │         ├────► tell MachineConfigPools
//!              └► cache  └────► drain the ledger, remove leftovers
//! admin server from the start; on SIGTERM: queues end, passes in hand finish, the lease is released
//! ```

use std::convert::Infallible;
use std::fmt::Debug;
use std::future::Future;
use std::hash::Hash;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use futures::channel::mpsc::UnboundedReceiver;
use kube::runtime::applier;
use kube::runtime::controller::{self, Action, ReconcileRequest};
use kube::runtime::reflector::Store;
use kube::{Client, Resource, ResourceExt as _};
use strata_builder::error::{Class, Classify, chain};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::admin::{self, AdminError, Health};
use crate::apply;
use crate::cache::ACTIVE;
use crate::context::Context;
use crate::decoded::Undecodable;
use crate::error::{Error, within};
use crate::lease::{self, Leadership, LeaseError, Lost};
use crate::ledger;
use crate::ledger::drain::Failures;
use crate::metrics::{Kind, Metrics};
use crate::phase::Phase;
use crate::settings::current::{self, CurrentError};
use crate::settings::{BuildArgs, Current, Settings};
use crate::usage::Users;
use crate::watches::{self, Queues, Requests};
use crate::{hand_back, holdings, leftovers, lost, os_build, os_config, pool, sweep};

/// Passes at the same time, per kind: enough that some that wait for a registry hold nobody else up.
const CONCURRENCY: u16 = 32;

/// Events of one change come together within this; they cost one pass.
const DEBOUNCE: Duration = Duration::from_millis(5);

/// Between two looks at the ledger at least.
const LEDGER_PAUSE: Duration = Duration::from_secs(1);
/// Between two looks at the ledger at most.
const LEDGER_ROUND: Duration = Duration::from_secs(300);
/// Between two looks for images that have lost their build: many requests, for what is rare.
const SWEEP_ROUND: Duration = Duration::from_secs(6 * 3600);
/// After an apiserver that didn't answer.
const LEDGER_RETRY: Duration = Duration::from_secs(30);

/// Of one look for leftovers: what is left is found by the next.
const LEFTOVERS_LIMIT: Duration = Duration::from_secs(300);
/// Of one look for images that have lost their build: many requests to slow registries; what isn't entered is found by the next.
const SWEEP_LIMIT: Duration = Duration::from_secs(3600);

/// After an apiserver that didn't tell the settings.
const SETTINGS_RETRY: Duration = Duration::from_secs(2);

/// Passes in hand get this long at the stop.
const STOP_LIMIT: Duration = Duration::from_secs(5);

/// How often builds are counted.
const COUNT: Duration = Duration::from_secs(2);

/// How often images are counted.
const COUNT_IMAGES: Duration = Duration::from_secs(60);

/// How often the process shows that it lives.
const BEAT: Duration = Duration::from_secs(15);

/// Why the program ends other than by being told to.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Signals can't be caught.
    #[error("catch signals")]
    Signals(#[source] std::io::Error),
    /// The admin server.
    #[error(transparent)]
    Admin(#[from] AdminError),
    /// The settings of builds.
    #[error(transparent)]
    Settings(#[from] CurrentError),
    /// Our finalizers can't be taken off.
    #[error(transparent)]
    HandBack(#[from] Error),
    /// The Lease.
    #[error(transparent)]
    Lease(#[from] LeaseError),
    /// Another replica may work by now.
    #[error("the lease could not be renewed in time: another replica may work by now")]
    LeaseLost,
}

impl Classify for RunError {
    fn class(&self) -> Class {
        match self {
            RunError::Signals(_) => Class::INTERNAL,
            RunError::Admin(source) => source.class(),
            RunError::Settings(source) => source.class(),
            RunError::HandBack(source) => source.class(),
            RunError::Lease(source) => source.class(),
            RunError::LeaseLost => Class::Transient,
        }
    }
}

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
///
/// Whatever keeps it from running; the process is to end, and be started again.
pub async fn run(client: Client, settings: Settings, metrics: Metrics) -> Result<(), RunError> {
    let shutdown = stop_on_signal()?;
    // one that waits for the lease shall not find out only then
    let builds = current::read(&client, &settings.builds, &settings.namespace).await?;
    let builds = Current::new(builds);
    let health = Health::new();
    let mut tasks = JoinSet::new();
    let serving = admin::serve(
        settings.listen,
        health.clone(),
        metrics.clone(),
        shutdown.clone(),
    );
    let serving = tokio::spawn(serving);
    tasks.spawn(beat(health.clone()));
    // one that waits has nothing to load
    health.set_ready(true);

    let namespace = settings.namespace.clone();
    let leading = async {
        let identity = settings.identity.clone();
        let acquired =
            lease::acquire(client.clone(), &namespace, &identity, shutdown.clone()).await?;
        match acquired {
            Some(leadership) => {
                let leading = (client, settings, builds);
                lead(leadership, leading, &health, metrics, &shutdown).await
            }
            None => Ok(()),
        }
    };
    let outcome = tokio::select! {
        Ok(Err(error)) = serving => Err(error.into()),
        led = leading => led,
    };
    tasks.shutdown().await;
    outcome
}

/// Works as long as the lease is held.
async fn lead(
    leadership: Leadership,
    (client, settings, builds): (Client, Settings, Current),
    health: &Health,
    metrics: Metrics,
    shutdown: &CancellationToken,
) -> Result<(), RunError> {
    health.set_ready(false);
    health.set_leading(true);
    metrics.leader(true);
    info!(identity = settings.identity, "leading");
    // the lease is given back only when nothing works any more
    let idle = CancellationToken::new();
    let mut holding = tokio::spawn(leadership.hold(idle.clone()));
    let hands_back = settings.hand_back;
    let working = async {
        if hands_back {
            return hand_back::free_all(&client).await;
        }
        let metrics = metrics.clone();
        work(client, settings, builds, health, metrics, shutdown).await;
        Ok(())
    };
    let mut done = Ok(());
    let lost = tokio::select! {
        worked = working => {
            done = worked;
            idle.cancel();
            holding.await
        }
        lost = &mut holding => lost,
    };
    done?;
    match lost {
        Ok(Lost::Released) => {
            if hands_back {
                health.set_ready(true);
                health.set_leading(false);
                metrics.leader(false);
                shutdown.cancelled().await;
            }
            info!("stopped");
            Ok(())
        }
        Ok(Lost::Expired) | Err(_) => Err(RunError::LeaseLost),
    }
}

/// Watches and reconciles until the shutdown, then finishes what is in hand.
async fn work(
    client: Client,
    settings: Settings,
    builds: Current,
    health: &Health,
    metrics: Metrics,
    shutdown: &CancellationToken,
) {
    let begin = Instant::now();
    let (queues, requests) = Queues::new();
    let mut tasks = JoinSet::new();
    let cache = watches::start(&client, &settings.namespace, &queues, &mut tasks);
    tokio::select! {
        () = watches::listed(&cache) => {}
        () = shutdown.cancelled() => return,
    }
    health.set_ready(true);
    info!(elapsed = ?begin.elapsed(), "all kinds are listed");
    metrics.settings_valid(true);
    let context = Context::open(client, &settings, builds, metrics, cache, &queues).await;
    let context = Arc::new(context);
    let given = settings.builds;
    let Requests {
        os_configs,
        os_builds,
        pools,
        undecodable,
    } = requests;
    let working = async {
        futures::join!(
            drive(
                Kind::OsConfig,
                os_configs,
                context.cache.os_configs.store.clone(),
                Arc::clone(&context),
                shutdown,
                os_config::reconcile,
            ),
            drive(
                Kind::OsBuild,
                os_builds,
                context.cache.os_builds.store.clone(),
                Arc::clone(&context),
                shutdown,
                os_build::reconcile,
            ),
            drive(
                Kind::Pool,
                pools,
                context.cache.pools.store.clone(),
                Arc::clone(&context),
                shutdown,
                pool::reconcile,
            ),
            drain(&context, shutdown),
            remove_leftovers(&context, shutdown),
            sweep_repositories(&context, shutdown),
            look_for_lost(&context, &queues, shutdown),
            try_pods(&context),
            tell_undecodable(&context, undecodable, shutdown),
            count_builds(&context, shutdown),
            count_images(&context, shutdown),
            follow_settings(&context, &given, &queues, shutdown),
        );
    };
    let limit = async {
        shutdown.cancelled().await;
        tokio::time::sleep(STOP_LIMIT).await;
    };
    tokio::select! {
        () = working => {}
        () = limit => warn!("passes in hand were not finished in time; the next start goes on with them"),
    }
}

/// Reconciles what is queued until the shutdown.
async fn drive<K, F, Fut>(
    kind: Kind,
    requests: UnboundedReceiver<ReconcileRequest<K>>,
    store: Store<K>,
    context: Arc<Context>,
    shutdown: &CancellationToken,
    reconcile: F,
) where
    K: Resource + Clone + Debug + Send + Sync + 'static,
    K::DynamicType: Debug + Hash + Eq + Clone + Default + Unpin,
    F: Fn(Arc<K>, Arc<Context>) -> Fut + Copy,
    Fut: Future<Output = Result<Action, Error>> + Send,
{
    let queue = requests
        .map(Ok::<_, Infallible>)
        .take_until(shutdown.cancelled());
    let pass = move |object: Arc<K>, context: Arc<Context>| {
        Box::pin(async move {
            let begin = Instant::now();
            let name = object.name_any();
            let outcome = reconcile(object, Arc::clone(&context)).await;
            context.metrics.reconcile_seconds(kind, begin.elapsed());
            if outcome.is_ok() {
                context.backoff.succeeded(&key(kind, &name));
            }
            outcome
        })
    };
    let limits = controller::Config::default()
        .debounce(DEBOUNCE)
        .concurrency(CONCURRENCY);
    let known = Arc::clone(&context);
    applier(
        pass,
        move |object, error, context| again(kind, &object.name_any(), error, &context),
        context,
        store.clone(),
        queue,
        limits,
    )
    .for_each(|done| {
        // failed passes are told where their delay is chosen; the rest are requests for what is gone
        if let Err(controller::Error::ObjectNotFound(object)) = done {
            debug!(%object, "gone");
            known.backoff.forget(&key(kind, &object.name));
        }
        known.metrics.objects(kind, store.len());
        std::future::ready(())
    })
    .await;
}

/// When to try again after `error`, which is told here.
fn again(kind: Kind, name: &str, error: &Error, context: &Context) -> Action {
    if error.is_conflict() {
        let delay = context.backoff.conflicted(&key(kind, name));
        debug!(
            ?kind,
            name,
            error = chain(error),
            again_after = ?delay,
            "another writer was faster"
        );
        return Action::requeue(delay);
    }
    let class = error.class();
    let delay = context.backoff.failed(&key(kind, name), class);
    context.metrics.reconcile_error(kind, class);
    let error = chain(error);
    match class {
        Class::Transient | Class::User(_) => {
            warn!(?kind, name, ?class, error, again_after = ?delay, "pass not finished");
        }
        Class::Permanent(_) => {
            error!(?kind, name, ?class, error, again_after = ?delay, "pass not finished");
        }
    }
    Action::requeue(delay)
}

fn key(kind: Kind, name: &str) -> String {
    format!("{kind:?}/{name}")
}

/// Deletes images of the ledger whenever one may have become unneeded. Its requests have limits, and all of them together none: a deletion isn't cut off before
/// the look that follows it.
async fn drain(context: &Context, shutdown: &CancellationToken) {
    let mut round = LEDGER_PAUSE;
    let mut failures = Failures::default();
    loop {
        tokio::select! {
            () = context.unneeded.notified() => {}
            () = tokio::time::sleep(round) => {}
            () = shutdown.cancelled() => return,
        }
        let begin = Instant::now();
        round = match ledger::drain::drain(context, &mut failures).await {
            Ok(next) => next.unwrap_or(LEDGER_ROUND).min(LEDGER_ROUND),
            Err(error) => {
                warn!(error = chain(&error), "the ledger can't be worked on");
                LEDGER_RETRY
            }
        };
        context
            .metrics
            .reconcile_seconds(Kind::Ledger, begin.elapsed());
        tokio::select! {
            () = tokio::time::sleep(LEDGER_PAUSE) => {}
            () = shutdown.cancelled() => return,
        }
    }
}

/// Deletes what builds that are gone have left, from time to time.
async fn remove_leftovers(context: &Context, shutdown: &CancellationToken) {
    loop {
        let removing = leftovers::remove(context);
        if let Err(error) = within("removing leftovers", LEFTOVERS_LIMIT, removing).await {
            warn!(
                error = chain(&error),
                "leftovers of builds that are gone can't be deleted"
            );
        }
        tokio::select! {
            () = tokio::time::sleep(leftovers::ROUND) => {}
            () = shutdown.cancelled() => return,
        }
    }
}

/// Looks at the start and then again and again for images that have lost their build.
async fn sweep_repositories(context: &Context, shutdown: &CancellationToken) {
    loop {
        let looking = sweep::sweep(context);
        match within("looking for images without a build", SWEEP_LIMIT, looking).await {
            Ok(0) => {}
            Ok(_) => context.unneeded.notify_one(),
            Err(error) => warn!(error = chain(&error), "no look for images without a build"),
        }
        tokio::select! {
            () = tokio::time::sleep(SWEEP_ROUND) => {}
            () = shutdown.cancelled() => return,
        }
    }
}

/// Looks at the start and then again and again for images that have gone from their registry.
async fn look_for_lost(context: &Context, queues: &Queues, shutdown: &CancellationToken) {
    loop {
        let missing = tokio::select! {
            missing = lost::look(context) => missing,
            () = shutdown.cancelled() => return,
        };
        let os_configs: Vec<String> = missing.values().cloned().collect();
        context.set_missing(missing.into_keys().collect());
        for os_config in os_configs {
            queues.os_config(&os_config);
        }
        tokio::select! {
            () = tokio::time::sleep(lost::ROUND) => {}
            () = shutdown.cancelled() => return,
        }
    }
}

/// Finds out before the first build which pods the cluster takes.
async fn try_pods(context: &Context) {
    let settings = context.settings.get();
    if let Err(error) = context.trials.begin(&context.client, &settings.job).await {
        warn!(
            error = chain(&error),
            "not known yet which pods the cluster takes; the first build asks again"
        );
    }
}

/// Tells on objects that can't be decoded what is wrong with them.
async fn tell_undecodable(
    context: &Context,
    told: UnboundedReceiver<Arc<Undecodable>>,
    shutdown: &CancellationToken,
) {
    told.take_until(shutdown.cancelled())
        .for_each(async |one| {
            if let Err(error) = apply::tell_undecodable(context, &one).await {
                let kind = &one.resource.kind;
                let error = chain(&error);
                warn!(
                    kind,
                    name = one.name(),
                    error,
                    "its status can't say that it can't be read"
                );
            }
        })
        .await;
}

/// Tells the metrics how many builds there are that have not ended.
async fn count_builds(context: &Context, shutdown: &CancellationToken) {
    loop {
        let active = context.cache.os_builds.of(ACTIVE);
        let phases: Vec<Phase> = active.iter().map(|one| Phase::of_build(one)).collect();
        context.metrics.builds(&phases, context.turns.waiting());
        tokio::select! {
            () = tokio::time::sleep(COUNT) => {}
            () = shutdown.cancelled() => return,
        }
    }
}

/// Tells the metrics how many images there are, and what holds them.
async fn count_images(context: &Context, shutdown: &CancellationToken) {
    loop {
        match context.ledger.entries().await {
            Ok(entries) => {
                let known = Users::known(&context.cache, entries);
                context.metrics.holdings(&holdings::holdings(&known));
            }
            Err(error) => debug!(error = chain(&error), "images are not counted"),
        }
        tokio::select! {
            () = tokio::time::sleep(COUNT_IMAGES) => {}
            () = shutdown.cancelled() => return,
        }
    }
}

/// Takes over what the ConfigMap with the settings says, whenever it changes; what waits may start by it.
async fn follow_settings(
    context: &Context,
    given: &BuildArgs,
    queues: &Queues,
    shutdown: &CancellationToken,
) {
    loop {
        tokio::select! {
            () = queues.settings.notified() => {}
            () = shutdown.cancelled() => return,
        }
        match current::renew(context, given).await {
            Ok(false) => {}
            Ok(true) => {
                try_pods(context).await;
                for os_config in context.cache.os_configs.store.state() {
                    queues.os_config(&os_config.name_any());
                }
                for os_build in context.cache.os_builds.store.state() {
                    if Phase::of_build(&os_build) == Phase::Initial {
                        queues.os_build(&os_build.name_any());
                    }
                }
            }
            Err(error) => {
                warn!(error = chain(&error), "the settings can't be read");
                tokio::time::sleep(SETTINGS_RETRY).await;
                queues.settings.notify_one();
            }
        }
    }
}

async fn beat(health: Health) {
    loop {
        health.beat();
        tokio::time::sleep(BEAT).await;
    }
}

/// Cancelled by the first SIGTERM or SIGINT.
fn stop_on_signal() -> Result<CancellationToken, RunError> {
    let shutdown = CancellationToken::new();
    let stop = shutdown.clone();
    let mut terminate = signal(SignalKind::terminate()).map_err(RunError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(RunError::Signals)?;
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        info!("stopping");
        stop.cancel();
    });
    Ok(shutdown)
}
