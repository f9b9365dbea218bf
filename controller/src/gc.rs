//! `strata-controller gc`: prints what is in the repositories and what would happen to it; does it, unless told not to.
//!
//! What it does is what the running controller does by itself: it deletes the builds that retention lets go, whose images the
//! controller then deletes, enters images that have lost their build in the ledger, and deletes what is due there.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::Timestamp;
use kube::{Api, Client, ResourceExt as _};
use strata_builder::error::chain;
use strata_builder::reference::{Reference, Repository};
use strata_builder::registry::{Registry, RegistryError};
use tokio::task::JoinSet;
use tracing::{info, warn};

use crate::api::{MachineOSBuild, MachineOSConfig};
use crate::apply;
use crate::context::Context;
use crate::error::Error;
use crate::inventory::{Facts, Inventory, Stored, inventory, table};
use crate::ledger::drain::{Failures, drain};
use crate::live::{Live as _, Needs as _};
use crate::metrics::Metrics;
use crate::plan::Target;
use crate::retention::surplus;
use crate::settings::current::CurrentError;
use crate::settings::{Current, RunArgs, Settings, current};
use crate::sweep::{repositories, sweep, tagged};
use crate::usage::Users;
use crate::watches::{self, Queues};

/// Flags of `strata-controller gc`.
#[derive(Clone, Debug, PartialEq, Eq, clap::Args)]
pub struct GcArgs {
    /// Only print what would happen
    #[arg(long)]
    pub dry_run: bool,
    /// Form of what is printed
    #[arg(long, value_name = "FORM", value_enum, default_value_t)]
    pub output: Form,
    /// As of run.
    #[command(flatten)]
    pub run: RunArgs,
}

/// How an inventory is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Form {
    /// Columns for a reader.
    #[default]
    Table,
    /// One document.
    Json,
}

/// Why there is no inventory, or what is due is not done.
#[derive(Debug, thiserror::Error)]
pub enum GcError {
    /// The settings.
    #[error(transparent)]
    Settings(#[from] CurrentError),
    /// The apiserver.
    #[error(transparent)]
    Cluster(#[from] Error),
    /// The inventory can't be written down.
    #[error("write the inventory")]
    Json(#[from] serde_json::Error),
}

/// The inventory, as text; without `is_dry_run` what is due is done afterwards.
///
/// # Errors
///
/// Transient: the apiserver. Permanent: a setting. A registry that doesn't answer is told in the log, and its images are left out.
pub async fn gc(
    client: Client,
    settings: Settings,
    metrics: Metrics,
    is_dry_run: bool,
    form: Form,
) -> Result<String, GcError> {
    let builds = current::read(&client, &settings.builds, &settings.namespace).await?;
    let (queues, _requests) = Queues::new();
    let mut tasks = JoinSet::new();
    let cache = watches::start(&client, &settings.namespace, &queues, &mut tasks);
    watches::listed(&cache).await;
    let current = Current::new(builds);
    let context = Context::open(client, &settings, current, metrics, cache, &queues).await;
    let now = Timestamp::now();
    let users = context.users().await?;
    let let_go = let_go(&context, &users, now);
    let because = let_go.iter();
    let because = because.map(|(target, why)| (target.uid.clone(), why.clone()));
    let facts = Facts {
        stored: stored(&context, &users).await,
        cluster: context.cluster.clone(),
        surplus: because.collect(),
        users,
    };
    let found = inventory(&facts, now);
    if !is_dry_run {
        collect(&context, now).await?;
    }
    text(&found, form)
}

fn text(found: &Inventory, form: Form) -> Result<String, GcError> {
    Ok(match form {
        Form::Table => table(found),
        Form::Json => serde_json::to_string_pretty(found)?,
    })
}

/// Does what is due, decided anew: reading all repositories may have taken long.
async fn collect(context: &Context, now: Timestamp) -> Result<(), Error> {
    let builds: Api<MachineOSBuild> = Api::all(context.client.clone());
    let users = context.users().await?;
    for (target, why) in let_go(context, &users, now) {
        apply::delete(&builds, "delete-build", "MachineOSBuild", &target, None).await?;
        info!(
            os_build = target.name,
            why, "deleted a build; the controller deletes its image"
        );
    }
    sweep(context).await?;
    drain(context, &mut Failures::default()).await?;
    Ok(())
}

/// The builds that retention lets go and whose images nothing but builds needs, and why.
fn let_go(context: &Context, users: &Users, now: Timestamp) -> Vec<(Target, String)> {
    let settings = context.settings();
    let mut found = Vec::new();
    for os_config in &users.os_configs {
        let (Ok(retention), (wanted, _)) =
            (settings.retention_of(os_config), context.wanted(os_config))
        else {
            continue;
        };
        let Some(wanted) = wanted.name() else {
            continue;
        };
        let its = |one: &&Arc<MachineOSBuild>| crate::os_config::controls(os_config, one);
        let os_builds: Vec<_> = users.os_builds.iter().filter(its).cloned().collect();
        if !is_settled(os_config, &os_builds, wanted) {
            continue;
        }
        let surplus = surplus(retention, os_config, &os_builds, wanted, now);
        for one in surplus.os_builds {
            let status = one.status.as_ref();
            let image = status.and_then(|status| status.digested_image_push_spec.as_deref());
            let image = image.and_then(|image| image.parse::<Reference>().ok());
            let digest = image.and_then(|image| image.digest);
            if digest.is_none_or(|digest| users.beside_builds(digest).is_none()) {
                found.push((Target::of(one.as_ref()), retention.to_string()));
            }
        }
    }
    found
}

/// Whether the config has what it wants, as nothing goes before that.
fn is_settled(
    os_config: &MachineOSConfig,
    os_builds: &[Arc<MachineOSBuild>],
    wanted: &str,
) -> bool {
    let status = os_config.status.as_ref();
    let told = status.and_then(|status| status.machine_os_build.as_ref());
    os_config.metadata.deletion_timestamp.is_none()
        && told.is_some_and(|told| told.name == wanted)
        && os_builds.iter().any(|one| one.name_any() == wanted)
}

/// What the repositories have that is tagged, or that builds and the ledger name.
async fn stored(context: &Context, users: &Users) -> Vec<Stored> {
    let mut places = repositories(
        users.os_configs.iter().map(Arc::as_ref),
        users.os_builds.iter().map(Arc::as_ref),
    );
    let of_builds = users.os_builds.iter().filter_map(|one| {
        let status = one.status.as_ref()?;
        status.digested_image_push_spec.as_deref()
    });
    let of_ledger = users.entries.iter().map(|entry| entry.image.as_str());
    let named: BTreeSet<String> = of_builds.chain(of_ledger).map(str::to_owned).collect();
    let named: Vec<Reference> = named.iter().filter_map(|one| one.parse().ok()).collect();
    for entry in &users.entries {
        if let Ok(image) = entry.image.parse::<Reference>() {
            let secret = || entry.push_secret.clone();
            places.entry(image.repository).or_insert_with(secret);
        }
    }
    let mut found = Vec::new();
    for (repository, push_secret) in places {
        let registry = match context.registries.open(&push_secret).await {
            Ok(registry) => registry,
            Err(error) => {
                warn!(%repository, error = chain(&error), "its images are left out");
                continue;
            }
        };
        match of_repository(&registry, &repository, &named).await {
            Ok(images) => found.extend(images),
            Err(error) => warn!(%repository, error = chain(&error), "its images are left out"),
        }
    }
    found
}

async fn of_repository(
    registry: &Registry,
    repository: &Repository,
    named: &[Reference],
) -> Result<Vec<Stored>, RegistryError> {
    let mut found = BTreeMap::new();
    for one in tagged(registry, repository, |_| true).await? {
        let stored = found.entry(one.digest).or_insert_with(|| Stored {
            repository: repository.clone(),
            digest: one.digest,
            tags: BTreeSet::new(),
            manifest: one.manifest,
        });
        stored.tags.insert(one.tag);
    }
    let named = named.iter().filter(|image| image.repository == *repository);
    for image in named {
        let Some(digest) = image.digest.filter(|digest| !found.contains_key(digest)) else {
            continue;
        };
        if let Some(manifest) = registry.stored_manifest(image).await? {
            let stored = Stored {
                repository: repository.clone(),
                digest,
                tags: BTreeSet::new(),
                manifest: manifest.bytes.to_vec(),
            };
            found.insert(digest, stored);
        }
    }
    Ok(found.into_values().collect())
}
