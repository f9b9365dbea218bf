//! Can this build start, and with which objects? Or is there an image already of what it would make?
//!
//! Reads what only the start of a build needs: the whole MachineConfig, secrets, the cluster's settings.

use kube::ResourceExt as _;
use strata_builder::digest::Digest;
use strata_builder::error::{Class, Classify as _, chain};
use strata_builder::reference::{Reference, Repository};

use crate::api::{
    DEFAULT_PULL_SECRET, MachineConfigPool, MachineOSBuild, MachineOSConfig, annotation,
};
use crate::error::Error;
use crate::inputs::{BuildInputs, ContentKey, Sources};
use crate::job::{BuildObjects, Credentials, JobSettings, build_objects};
use crate::ledger::Entry;
use crate::live::Live;
use crate::registries::Answer;
use crate::render::render;
use crate::reuse::{Candidate, candidates, remembered};
use crate::secrets::{DockerConfig, docker_config};
use crate::wanted::degraded;

/// Whether a build can start.
#[derive(Clone, Debug, PartialEq)]
pub enum Preparation {
    /// Nothing depends on it.
    NotAsked,
    /// With these objects.
    Ready(Box<Prepared>),
    /// It needn't: this is what it would make, and the registry has it.
    Reusable(Box<Reusable>),
    /// Not before a registry has told whether it needs to.
    Unanswered(String),
    /// Not before this is mended; then by itself.
    Waiting(String),
    /// Not before another build has ended.
    Queued(String),
    /// Not before its pool is well.
    Blocked(String),
    /// Never: what it is made from can't be built.
    Invalid(String),
}

/// What starts a build.
#[derive(Clone, Debug, PartialEq)]
pub struct Prepared {
    /// ConfigMaps, Secrets, Job.
    pub objects: BuildObjects,
    /// Of the image.
    pub content_key: ContentKey,
    /// An image of an earlier build under the same tag, by which alone the ledger knows it.
    pub displaced: Option<Entry>,
}

/// What is used instead of being built.
#[derive(Clone, Debug, PartialEq)]
pub struct Reusable {
    /// Of both builds.
    pub content_key: ContentKey,
    /// The other build and its image.
    pub candidate: Candidate,
}

/// Prepares `os_build`, which `os_config` wants.
///
/// # Errors
///
/// Of the apiserver.
pub async fn prepare(
    live: &impl Live,
    os_build: &MachineOSBuild,
    os_config: &MachineOSConfig,
    pool: &MachineConfigPool,
) -> Result<Preparation, Error> {
    match begin(live, os_build, os_config, pool).await {
        Err(Error::Undecodable(told)) => Ok(Preparation::Waiting(told)),
        prepared => prepared,
    }
}

async fn begin(
    live: &impl Live,
    os_build: &MachineOSBuild,
    os_config: &MachineOSConfig,
    pool: &MachineConfigPool,
) -> Result<Preparation, Error> {
    let rendered_name = &os_build.spec.machine_config.name;
    let Some(machine_config) = live.machine_config(rendered_name).await? else {
        return Ok(Preparation::Waiting(format!(
            "MachineConfig {rendered_name} does not exist"
        )));
    };
    let controller_config = live.controller_config().await?;
    let sources = Sources {
        pool,
        machine_config: &machine_config,
        os_config,
        controller_config: controller_config.as_ref(),
        optional: live.optional_mounts(&pool.name_any()).await?,
    };
    let inputs = match BuildInputs::new(sources) {
        Ok(inputs) => inputs,
        Err(error) => return Ok(Preparation::Invalid(chain(&error))),
    };
    if inputs.name.as_str() != os_build.name_any() {
        // config, pool or MachineConfig have moved on since: their events are on the way
        return Ok(Preparation::Waiting(format!(
            "MachineOSConfig {} wants another build by now",
            inputs.os_config
        )));
    }
    let content_key = inputs.content_key();
    let entries = live.entries().await?;
    match reusable(live, os_build, sources, &content_key, &entries).await? {
        Ok(Some(candidate)) => {
            return Ok(Preparation::Reusable(Box::new(Reusable {
                content_key,
                candidate,
            })));
        }
        Ok(None) => {}
        Err(why) => return Ok(Preparation::Unanswered(why)),
    }
    // what is wrong with a pool may be mended by a MachineConfig that needs no new image
    if let Some(why) = degraded(pool) {
        return Ok(Preparation::Blocked(why));
    }
    let settings = live.settings();
    if let Err(occupied) = live
        .turns()
        .ask(os_build, &live.cache().os_builds, settings.max_builds)
    {
        return Ok(Preparation::Queued(occupied.to_string()));
    }
    let rendered = match render(&inputs) {
        Ok(rendered) => rendered,
        Err(error) => return Ok(Preparation::Invalid(chain(&error))),
    };
    let credentials = match credentials(live, &inputs, controller_config.is_some()).await? {
        Ok(credentials) => credentials,
        Err(what) => return Ok(Preparation::Waiting(what)),
    };
    let settings = match settings.of(os_config) {
        Ok(settings) => JobSettings {
            cluster: live.cluster().map(str::to_owned),
            ..settings
        },
        Err(error) => {
            return Ok(Preparation::Waiting(format!(
                "MachineOSConfig {}: {}",
                inputs.os_config,
                chain(&error)
            )));
        }
    };
    if let Err(why) = records(live, os_build, &inputs.push.repository).await? {
        return Ok(Preparation::Waiting(why));
    }
    let displaced = match displaced(live, &inputs.push, &entries).await {
        Ok(displaced) => displaced,
        Err(why) => return Ok(Preparation::Unanswered(why)),
    };
    let shape = match live.pod_shape(&settings).await? {
        Ok(shape) => shape,
        Err(why) => return Ok(Preparation::Waiting(why)),
    };
    Ok(
        match build_objects(os_build, &inputs, &rendered, &credentials, shape, &settings) {
            Ok(objects) => Preparation::Ready(Box::new(Prepared {
                content_key,
                objects,
                displaced,
            })),
            // an object besides the config's own inputs: mended, the same build can go on
            Err(error) => match error.class() {
                Class::User(_) => Preparation::Waiting(chain(&error)),
                Class::Transient | Class::Permanent(_) => Preparation::Invalid(chain(&error)),
            },
        },
    )
}

/// The image that this build's push would take the tag from, although nobody knows it otherwise; or why that can't be told.
async fn displaced(
    live: &impl Live,
    push: &Reference,
    entries: &[Entry],
) -> Result<Option<Entry>, String> {
    let tag = push.to_string();
    let mut unseen = entries.iter().filter(|entry| entry.unseen_of.is_some());
    let Some(entry) = unseen.find(|entry| entry.image == tag) else {
        return Ok(None);
    };
    match live.look(push, &entry.push_secret, true).await {
        Answer::Present { digest, build_uid } if build_uid == entry.unseen_of => Ok(Some(Entry {
            image: push.repository.digested(digest).to_string(),
            unseen_of: None,
            ..entry.clone()
        })),
        Answer::Unknown(why) => Err(format!(
            "an earlier build may have pushed under the same tag, and the registry can't be asked: {why}"
        )),
        _ => Ok(None),
    }
}

/// Whether the status can name an image of `repository`: older CRDs take no path of more than two parts.
async fn records(
    live: &impl Live,
    os_build: &MachineOSBuild,
    repository: &Repository,
) -> Result<Result<(), String>, Error> {
    if repository.path().split('/').count() <= 2 {
        return Ok(Ok(()));
    }
    let image = repository.digested(Digest::of(b""));
    let taken = live.takes_image(os_build, &image).await?;
    Ok(taken.map_err(|why| {
        format!(
            "the installed CRD of MachineOSBuilds can't hold an image of {repository}: apply Strata's CRDs, or push to a repository with a shorter path (spec.renderedImagePushSpec of the MachineOSConfig): {why}"
        )
    }))
}

/// An image with the content `key` that the registry still has; or why it can't tell. Read anew, so that a build whose
/// image `os_build` has claimed, and that is there afterwards, can't be deleted with its image any more.
async fn reusable(
    live: &impl Live,
    os_build: &MachineOSBuild,
    sources: Sources<'_>,
    key: &ContentKey,
    entries: &[Entry],
) -> Result<Result<Option<Candidate>, String>, Error> {
    let annotations = os_build.annotations();
    let Some(push_secret) = annotations.get(annotation::PUSH_SECRET) else {
        return Ok(Ok(None));
    };
    if annotations.contains_key(annotation::BUILD_ANEW) {
        return Ok(Ok(None));
    }
    let os_builds = live.os_builds(&sources.os_config.name_any(), None).await?;
    let machine_config = |name: &str| live.cache().machine_configs.get(name);
    let mut found = candidates(sources, key, &os_builds, machine_config);
    for one in remembered(os_build, sources.os_config, key, entries) {
        if found.iter().all(|known| known.image != one.image) {
            found.push(one);
        }
    }
    let mut unanswered = None;
    for candidate in found {
        match live.look(&candidate.image, push_secret, false).await {
            Answer::Present { .. } => return Ok(Ok(Some(candidate))),
            Answer::Absent => {}
            // its registry need not know our push secret: it is taken as it was when it was given
            _ if candidate.is_pre_built => return Ok(Ok(Some(candidate))),
            Answer::Unknown(why) => {
                unanswered.get_or_insert_with(|| {
                    format!(
                        "MachineOSBuild {} has the same content, but the registry can't be asked whether it still has its image: {why}",
                        candidate.os_build
                    )
                });
            }
            // a secret or registry of which the preparations of a build tell more
            Answer::NoAccess(_) | Answer::Refused(_) | Answer::NotAsked => {}
        }
    }
    Ok(unanswered.map_or(Ok(None), Err))
}

/// The credentials, or what is wrong with them. Where there is a ControllerConfig there is a machine config operator, `has_operator`, which makes the
/// global pull secret when the first MachineOSConfig has appeared.
async fn credentials(
    live: &impl Live,
    inputs: &BuildInputs,
    has_operator: bool,
) -> Result<Result<Credentials, String>, Error> {
    let namespace = live.namespace();
    let field = |field: &str, secret: &str| {
        format!(
            "secret {secret}, which MachineOSConfig {} names in spec.{field}.name, does not exist in namespace {namespace}",
            inputs.os_config
        )
    };
    let push_name = &inputs.push_secret;
    let push = match live.secret(push_name).await? {
        None => return Ok(Err(field("renderedImagePushSecret", push_name))),
        Some(secret) => match docker_config(&secret) {
            Ok(push) => push,
            Err(error) => return Ok(Err(chain(&error))),
        },
    };
    let pull_name = inputs.pull_secret.as_deref();
    let pull = match (
        live.secret(pull_name.unwrap_or(DEFAULT_PULL_SECRET))
            .await?,
        pull_name,
    ) {
        (Some(secret), _) => match docker_config(&secret) {
            Ok(pull) => pull,
            Err(error) => return Ok(Err(chain(&error))),
        },
        (None, Some(name)) => return Ok(Err(field("baseImagePullSecret", name))),
        (None, None) if has_operator => {
            return Ok(Err(format!(
                "secret {DEFAULT_PULL_SECRET} does not exist in namespace {namespace} yet: the machine config operator makes it; without one, make it, or name another in spec.baseImagePullSecret.name of MachineOSConfig {}",
                inputs.os_config
            )));
        }
        // plain Kubernetes has no global pull secret: public images need none
        (None, None) => DockerConfig::anonymous(),
    };
    Ok(Ok(Credentials { pull, push }))
}
