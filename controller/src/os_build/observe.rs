//! What is the case around a MachineOSBuild? All reads of its reconciler; no write, no choice.
//!
//! A build that has ended never changes again, so it is judged by what the watches told. Everything of one that hasn't,
//! and of one that is being deleted, is read anew: a watch that lags behind our own writes must not start a Job twice
//! or take a finished one for lost.

use std::sync::Arc;

use jiff::Timestamp;
use kube::{Resource, ResourceExt as _};
use strata_builder::contract::BuildReport;
use strata_builder::digest::Digest;
use strata_builder::reference::Reference;

use super::plan::pushed;
use super::prepare::{Preparation, prepare};
use crate::api::{self, MachineOSBuild, MachineOSConfig, annotation, label, name};
use crate::cache::{Kept, Meta};
use crate::error::Error;
use crate::job::{JobOutcome, outcome};
use crate::live::Live;
use crate::os_config::controls;
use crate::phase::Phase;
use crate::plan::Target;
use crate::registries::Answer;
use crate::reuse::{is_given, is_pre_built};
use crate::trial;
use crate::usage::Use;
use crate::wanted::Wanted;

/// A MachineOSBuild and all that its plan depends on.
#[derive(Clone, Debug)]
pub struct Observed {
    /// The build.
    pub os_build: MachineOSBuild,
    /// Where its Job and the other objects made for it live.
    pub namespace: String,
    /// Whether its config is there and controls it, be it one that is being deleted.
    pub is_controlled: bool,
    /// Whether its image is one that its config was given, and not ours to delete, though it may not say so; only of a build without our
    /// finalizer.
    pub has_given_image: bool,
    /// The image that its config is to be seeded with; only of a build that has not ended.
    pub seed: Option<String>,
    /// The build that its config wants; none if that can't be told, or nobody controls this build any more.
    pub wanted: Option<String>,
    /// Whether and with what it could start; only of a build that has not begun.
    pub preparation: Preparation,
    /// The Job of its name.
    pub job: JobState,
    /// Whether a pod of its Job is there although the Job is not; only of a build that is being deleted.
    pub is_pushing: bool,
    /// ConfigMaps made for it.
    pub config_maps: Vec<Target>,
    /// Secrets made for it.
    pub secrets: Vec<Target>,
    /// What the registry says of its image, where something depends on it.
    pub image: Answer,
    /// Who needs the image of a build that is being deleted.
    pub used: Option<Use>,
}

impl Observed {
    /// What the builder of a complete Job says.
    #[must_use]
    pub fn report(&self) -> Option<&BuildReport> {
        match &self.job {
            JobState::Present(job) => match &job.outcome {
                Some(JobOutcome::Complete { report, .. }) => report.as_ref(),
                _ => None,
            },
            JobState::Absent | JobState::Foreign => None,
        }
    }
}

/// The Job of a build's name.
#[derive(Clone, Debug, PartialEq)]
pub enum JobState {
    /// There is none.
    Absent,
    /// It belongs to an earlier build of this name, or to somebody else.
    Foreign,
    /// It is this build's.
    Present(Box<JobSeen>),
}

/// A Job of ours.
#[derive(Clone, Debug, PartialEq)]
pub struct JobSeen {
    /// Name and UID.
    pub target: Target,
    /// Whether it is being deleted.
    pub is_going: bool,
    /// When it was created.
    pub created: Option<Timestamp>,
    /// How it stands; none if that wasn't asked.
    pub outcome: Option<JobOutcome>,
    /// What the pod of a complete Job left in a ConfigMap instead of a report, as the incumbent's do.
    pub left_digest: Option<Digest>,
}

/// Reads; none if the build is gone.
///
/// # Errors
///
/// Of the apiserver.
pub async fn observe(live: &impl Live, cached: &MachineOSBuild) -> Result<Option<Observed>, Error> {
    let observed = look(live, cached).await?;
    let keeps_its_turn = observed.as_ref().is_some_and(|observed| {
        matches!(
            observed.preparation,
            Preparation::Ready(_) | Preparation::Queued(_)
        ) || matches!(
            Phase::of_build(&observed.os_build),
            // the watch may not have told yet that it has begun
            Phase::Prepared | Phase::Building
        )
    });
    if !keeps_its_turn {
        live.turns().leave(&cached.uid().unwrap_or_default());
    }
    Ok(observed)
}

async fn look(live: &impl Live, cached: &MachineOSBuild) -> Result<Option<Observed>, Error> {
    if Phase::of_build(cached).is_terminal() && cached.metadata.deletion_timestamp.is_none() {
        return Ok(Some(ended(live, cached)));
    }
    let name = cached.name_any();
    let Some(os_build) = live.os_build(&name).await? else {
        return Ok(None);
    };
    let job = job(live, &os_build).await?;
    let mut observed = Observed {
        wanted: None,
        preparation: Preparation::NotAsked,
        job,
        image: Answer::NotAsked,
        used: None,
        ..ended(live, &os_build)
    };
    if os_build.metadata.deletion_timestamp.is_some() {
        if api::is_guarded(&os_build) && !matches!(observed.job, JobState::Present(_)) {
            observed.is_pushing = pods_push(live, &os_build).await?;
            observed.image = image_to_delete(live, &os_build).await;
            if let Answer::Present { digest, .. } = observed.image
                && let Some(image) = pushed(&os_build, digest)
                && let Some(secret) = os_build.annotations().get(annotation::PUSH_SECRET)
            {
                let asking = os_build.uid();
                observed.used = live.used(&image, secret, asking.as_deref()).await?;
            }
        }
        return Ok(Some(observed));
    }
    let Some(os_config) = controller(live, &os_build) else {
        // what runs goes on
        observed.image = image_of(live, &observed).await;
        return Ok(Some(observed));
    };
    let seed = os_config.annotations().get(annotation::PRE_BUILT_IMAGE);
    observed.seed = seed.cloned();
    let (wanted, pool) = live.wanted(&os_config);
    observed.wanted = wanted
        .name()
        .filter(|name| may_be(live, &wanted, name))
        .map(str::to_owned);
    if observed.wanted.as_deref() == Some(&name)
        && observed.job == JobState::Absent
        && Phase::of_build(&os_build) == Phase::Initial
        && let Some(pool) = &pool
        && !os_build.labels().contains_key(label::PRE_BUILT_IMAGE)
    {
        observed.preparation = prepare(live, &os_build, &os_config, pool).await?;
    }
    observed.image = image_of(live, &observed).await;
    Ok(Some(observed))
}

/// Whether the build `name` is wanted: one that can't be begun is if it has succeeded.
fn may_be(live: &impl Live, wanted: &Wanted, name: &str) -> bool {
    match wanted {
        Wanted::Build(_) => true,
        Wanted::Waiting(_) => false,
        Wanted::Invalid { .. } => live.cache().os_builds.get(name).is_some_and(|os_build| {
            Phase::of_build(&os_build) == Phase::Succeeded
                && os_build.metadata.deletion_timestamp.is_none()
        }),
    }
}

/// The config that controls `os_build`, unless it is being deleted.
fn controller(live: &impl Live, os_build: &MachineOSBuild) -> Option<Arc<MachineOSConfig>> {
    owner(live, os_build).filter(|os_config| os_config.metadata.deletion_timestamp.is_none())
}

/// The config that controls `os_build`.
fn owner(live: &impl Live, os_build: &MachineOSBuild) -> Option<Arc<MachineOSConfig>> {
    let os_configs = &live.cache().os_configs;
    os_configs
        .get(&os_build.spec.machine_os_config.name)
        .filter(|os_config| controls(os_config, os_build))
}

/// A build that has ended, as the watches tell it.
fn ended(live: &impl Live, os_build: &MachineOSBuild) -> Observed {
    let build = os_build.name_any();
    let cache = live.cache();
    let namespace = live.namespace();
    let job = cache
        .jobs
        .get_in(namespace, &name::job(&build))
        .filter(|job| is_owned(job.as_ref(), os_build))
        .map_or(JobState::Absent, |job| {
            JobState::Present(Box::new(JobSeen {
                target: Target::of(job.as_ref()),
                is_going: job.metadata.deletion_timestamp.is_some(),
                created: None,
                outcome: None,
                left_digest: None,
            }))
        });
    let owner = owner(live, os_build);
    let has_given_image = !api::is_guarded(os_build)
        && owner.as_ref().is_some_and(|os_config| {
            is_given(
                os_build,
                os_config,
                &cache.os_builds.of(&os_config.name_any()),
            )
        });
    Observed {
        is_controlled: owner.is_some(),
        has_given_image,
        seed: None,
        os_build: os_build.clone(),
        namespace: namespace.to_owned(),
        wanted: None,
        preparation: Preparation::NotAsked,
        job,
        is_pushing: false,
        config_maps: owned(&cache.config_maps, namespace, os_build),
        secrets: owned(&cache.secrets, namespace, os_build),
        image: Answer::NotAsked,
        used: None,
    }
}

/// The objects made for a build, but those that are going already. The incumbent's belong to the Job or, left by a crash, to nobody.
fn owned<K>(kept: &Kept<Meta<K>>, namespace: &str, os_build: &MachineOSBuild) -> Vec<Target>
where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + 'static,
{
    let job_uid = os_build.annotations().get(annotation::JOB_UID);
    kept.names_in(&os_build.name_any())
        .iter()
        .filter_map(|name| kept.get_in(namespace, name))
        .filter(|object| {
            let owners = object.owner_references();
            let job_owns = owners.iter().any(|owner| Some(&owner.uid) == job_uid);
            object.metadata.deletion_timestamp.is_none()
                && object.labels().contains_key(label::EPHEMERAL)
                && (owners.is_empty() || job_owns || is_owned(object.as_ref(), os_build))
        })
        .map(|object| Target::of(object.as_ref()))
        .collect()
}

fn is_owned<K: Resource>(object: &K, os_build: &MachineOSBuild) -> bool {
    object
        .owner_references()
        .iter()
        .any(|owner| Some(&owner.uid) == os_build.metadata.uid.as_ref())
}

async fn job(live: &impl Live, os_build: &MachineOSBuild) -> Result<JobState, Error> {
    let Some(job) = live.job(&name::job(&os_build.name_any())).await? else {
        return Ok(JobState::Absent);
    };
    if !is_owned(&job, os_build) {
        return Ok(JobState::Foreign);
    }
    let pods = live.pods(&job.uid().unwrap_or_default()).await?;
    let mut outcome = outcome(&job, &pods);
    if let JobOutcome::Prepared { waiting } = &mut outcome
        && waiting.is_none()
    {
        *waiting = live
            .refused_pod(&job.uid().unwrap_or_default())
            .await?
            .map(|why| format!("its Job can't make a pod: {why}"));
    }
    if let JobOutcome::Building {
        progress: progress @ None,
        starting: Some(pod),
    } = &mut outcome
        && let Some(why) = live.refused_start(&pod.uid().unwrap_or_default()).await?
    {
        let remedy = pod.spec.as_ref().and_then(|spec| trial::remedy(spec, &why));
        let remedy = remedy
            .map(|remedy| format!("; {remedy}"))
            .unwrap_or_default();
        *progress = Some(format!("its node can't start its pod: {why}{remedy}"));
    }
    let left_digest = match outcome {
        JobOutcome::Complete { report: None, .. } => left_digest(live, os_build).await?,
        _ => None,
    };
    Ok(JobState::Present(Box::new(JobSeen {
        target: Target::of(&job),
        is_going: job.metadata.deletion_timestamp.is_some(),
        created: job.creation_timestamp().map(|time| time.0),
        outcome: Some(outcome),
        left_digest,
    })))
}

async fn left_digest(live: &impl Live, os_build: &MachineOSBuild) -> Result<Option<Digest>, Error> {
    let left = live.config_map(&name::digest(&os_build.name_any())).await?;
    let data = left.and_then(|left| left.data).unwrap_or_default();
    Ok(data
        .get(name::DIGEST_KEY)
        .and_then(|digest| digest.trim().parse().ok()))
}

/// The image that goes with a build: of its status, or what its tag names when it was stopped before it could say.
async fn image_to_delete(live: &impl Live, os_build: &MachineOSBuild) -> Answer {
    // it is not ours, whoever pushed it
    if is_pre_built(os_build) {
        return Answer::NotAsked;
    }
    let status = os_build.status.as_ref();
    let digested = status.and_then(|status| status.digested_image_push_spec.as_deref());
    if let Some(image) = digested {
        return ask(live, os_build, image, false).await;
    }
    let tag = &os_build.spec.rendered_image_push_spec;
    match ask(live, os_build, tag, true).await {
        Answer::Present { build_uid, .. } if !is_of(os_build, build_uid.as_deref()) => {
            Answer::Absent
        }
        answer => answer,
    }
}

/// Whether an image under the build's tag, pushed for `build_uid`, is this build's: another cluster may have builds of the same name. The
/// incumbent's images don't say; one that never began has none.
fn is_of(os_build: &MachineOSBuild, build_uid: Option<&str>) -> bool {
    let annotations = os_build.annotations();
    let is_started_here = annotations.contains_key(annotation::CONTENT_KEY);
    let has_begun = annotations.contains_key(annotation::JOB_UID)
        || Phase::of_build(os_build) != Phase::Initial;
    match build_uid {
        Some(build_uid) => os_build.metadata.uid.as_deref() == Some(build_uid),
        None => has_begun && !is_started_here,
    }
}

/// Whether pods of a Job that is gone already may still push.
async fn pods_push(live: &impl Live, os_build: &MachineOSBuild) -> Result<bool, Error> {
    let annotations = os_build.annotations();
    let has_begun = annotations.contains_key(annotation::CONTENT_KEY)
        || Phase::of_build(os_build) != Phase::Initial;
    if !has_begun || Phase::of_build(os_build) == Phase::Succeeded {
        return Ok(false);
    }
    let pods = live.pods_of_build(&os_build.name_any()).await?;
    Ok(pods.iter().any(|pod| {
        let phase = pod
            .status
            .as_ref()
            .and_then(|status| status.phase.as_deref());
        !matches!(phase, Some("Succeeded" | "Failed"))
    }))
}

/// What the registry says of the image of a build that has not been told to have ended.
async fn image_of(live: &impl Live, observed: &Observed) -> Answer {
    let os_build = &observed.os_build;
    let tag = &os_build.spec.rendered_image_push_spec;
    let report = match &observed.job {
        JobState::Present(job) => match &job.outcome {
            Some(JobOutcome::Complete { report, .. }) => report.as_ref(),
            // a pod that is gone may have pushed before it went
            Some(JobOutcome::Failed { report: None, .. }) => None,
            Some(
                JobOutcome::Failed { .. }
                | JobOutcome::Prepared { .. }
                | JobOutcome::Building { .. },
            )
            | None => return Answer::NotAsked,
        },
        JobState::Absent
            if matches!(Phase::of_build(os_build), Phase::Prepared | Phase::Building) =>
        {
            None
        }
        JobState::Absent | JobState::Foreign => return Answer::NotAsked,
    };
    let reported = report.and_then(BuildReport::pushed);
    let reference: Option<Reference> = tag.parse().ok();
    match (reported, reference) {
        (Some(digest), Some(reference)) => {
            let image = reference.repository.digested(digest).to_string();
            ask(live, os_build, &image, false).await
        }
        _ => ask(live, os_build, tag, true).await,
    }
}

async fn ask(live: &impl Live, os_build: &MachineOSBuild, image: &str, manifest: bool) -> Answer {
    let image: Reference = match image.parse() {
        Ok(image) => image,
        Err(error) => return Answer::Refused(format!("{error}")),
    };
    match os_build.annotations().get(annotation::PUSH_SECRET) {
        Some(secret) => live.look(&image, secret, manifest).await,
        // it does not come back
        None => Answer::Refused(format!(
            "MachineOSBuild {} has no annotation {}",
            os_build.name_any(),
            annotation::PUSH_SECRET
        )),
    }
}
