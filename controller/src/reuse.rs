//! Which images of earlier builds, and be these gone, are what a build would make?
//!
//! Pure. A build's content is told by its [content key](crate::inputs::ContentKey), which it carries as an annotation. One
//! without, the incumbent's, is asked in another way: its name is a hash over spec, pool and rendered MachineConfig, so if
//! today's spec and the MachineConfig that it was built from give its name again, the key of these two is its own. What
//! neither tells (the trust bundle and the optional objects of that time) is taken to be as today, as the incumbent does.

use std::sync::Arc;

use kube::ResourceExt as _;
use strata_builder::reference::Reference;

use crate::api::condition::{self, SEEDED};
use crate::api::foreign::PoolConfiguration;
use crate::api::{MachineConfig, MachineOSBuild, MachineOSConfig, annotation, label};
use crate::inputs::{BuildInputs, ContentKey, Sources};
use crate::ledger::Entry;
use crate::os_config::controls;
use crate::phase::Phase;

/// An image that may be used again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The MachineOSBuild that made it, or used it again itself.
    pub os_build: String,
    /// By digest.
    pub image: Reference,
    /// Whether it came from outside, so that it isn't ours to delete.
    pub is_pre_built: bool,
}

/// The images of `os_builds` with the content `key`, each once: first the one that the config's status names, then the
/// newest. `sources` are those of the build that looks, `machine_config` finds an earlier one's.
pub fn candidates(
    sources: Sources<'_>,
    key: &ContentKey,
    os_builds: &[MachineOSBuild],
    machine_config: impl Fn(&str) -> Option<Arc<MachineConfig>>,
) -> Vec<Candidate> {
    let status = sources.os_config.status.as_ref();
    let current = status.and_then(|status| status.current_image_pull_spec.as_deref());
    let mut found: Vec<(&MachineOSBuild, Candidate)> = os_builds
        .iter()
        .filter(|os_build| {
            controls(sources.os_config, os_build)
                && os_build.metadata.deletion_timestamp.is_none()
                && Phase::of_build(os_build) == Phase::Succeeded
        })
        .filter_map(|os_build| Some((os_build, candidate(os_build)?)))
        .filter(|(os_build, _)| key_of(sources, os_build, &machine_config).as_ref() == Some(key))
        .collect();
    found.sort_by_key(|(os_build, candidate)| {
        let is_current = current == Some(candidate.image.to_string().as_str());
        std::cmp::Reverse((is_current, os_build.creation_timestamp()))
    });
    let mut once: Vec<Candidate> = Vec::new();
    for (_, candidate) in found {
        if once.iter().all(|known| known.image != candidate.image) {
            once.push(candidate);
        }
    }
    once
}

/// The images of builds that are gone: that of an earlier build of this name, if the config's status still names it, and those in the
/// ledger with the content `key`. They are of this config's repository, as that is part of name and key.
#[must_use]
pub fn remembered(
    os_build: &MachineOSBuild,
    os_config: &MachineOSConfig,
    key: &ContentKey,
    entries: &[Entry],
) -> Vec<Candidate> {
    let status = os_config.status.as_ref();
    let told = status.and_then(|status| {
        let name = &status.machine_os_build.as_ref()?.name;
        let image: Reference = status.current_image_pull_spec.as_ref()?.parse().ok()?;
        let text = image.to_string();
        let asked = os_config.annotations().get(annotation::PRE_BUILT_IMAGE);
        let mut said = status.conditions.iter().flatten();
        let is_seeded = asked.is_some_and(|asked| *asked == text)
            || said.any(|one| one.type_ == "Seeded" && one.message.contains(&text));
        (*name == os_build.name_any() && image.digest.is_some()).then(|| Candidate {
            os_build: name.clone(),
            image,
            is_pre_built: is_seeded,
        })
    });
    let of_ledger = entries.iter().filter_map(|entry| {
        let image: Reference = entry.image.parse().ok()?;
        let is_same = entry.content_key.as_deref() == Some(key.as_str());
        (is_same && image.digest.is_some()).then(|| Candidate {
            os_build: entry.os_build.clone(),
            image,
            is_pre_built: false,
        })
    });
    told.into_iter().chain(of_ledger).collect()
}

fn candidate(os_build: &MachineOSBuild) -> Option<Candidate> {
    let image = os_build
        .status
        .as_ref()?
        .digested_image_push_spec
        .as_ref()?;
    let image: Reference = image.parse().ok()?;
    image.digest?;
    Some(Candidate {
        os_build: os_build.name_any(),
        image,
        is_pre_built: is_pre_built(os_build),
    })
}

/// Whether the image of `os_build` was not made by any build here.
#[must_use]
pub fn is_pre_built(os_build: &MachineOSBuild) -> bool {
    os_build.labels().contains_key(label::PRE_BUILT_IMAGE)
        || os_build
            .annotations()
            .contains_key(annotation::PRE_BUILT_IMAGE)
}

/// Whether the image of `os_build` is one that `os_config` was given: by what it says itself, by the config, or by one of `os_builds`, the config's
/// builds, that stands for it. The incumbent's builds that took it over for a MachineConfig that needed no new image don't say so.
#[must_use]
pub fn is_given(
    os_build: &MachineOSBuild,
    os_config: &MachineOSConfig,
    os_builds: &[Arc<MachineOSBuild>],
) -> bool {
    if is_pre_built(os_build) {
        return true;
    }
    let Some(digest) = candidate(os_build).and_then(|its| its.image.digest) else {
        return false;
    };
    let digest = digest.to_string();
    let annotated = os_config.annotations().get(annotation::PRE_BUILT_IMAGE);
    let status = os_config.status.as_ref();
    let conditions = status.and_then(|status| status.conditions.as_deref());
    // the image is in its message
    let seeded = condition::get(conditions.unwrap_or_default(), SEEDED);
    let of_builds = os_builds
        .iter()
        .filter(|one| controls(os_config, one) && is_pre_built(one))
        .filter_map(|one| one.status.as_ref()?.digested_image_push_spec.as_ref());
    annotated
        .into_iter()
        .chain(seeded.map(|seeded| &seeded.message))
        .chain(of_builds)
        .any(|text| text.contains(&digest))
}

/// The content of a build; none if that can't be told.
fn key_of(
    sources: Sources<'_>,
    os_build: &MachineOSBuild,
    machine_config: impl Fn(&str) -> Option<Arc<MachineConfig>>,
) -> Option<ContentKey> {
    let recorded = os_build.annotations().get(annotation::CONTENT_KEY);
    if let Some(key) = recorded.and_then(|value| ContentKey::of_annotation(value)) {
        return Some(key);
    }
    let rendered = &os_build.spec.machine_config.name;
    let machine_config = machine_config(rendered)?;
    configurations(sources, rendered)
        .into_iter()
        .find_map(|configuration| {
            let mut pool = sources.pool.clone();
            pool.spec.configuration = Some(configuration);
            let inputs = BuildInputs::new(Sources {
                pool: &pool,
                machine_config: &machine_config,
                ..sources
            });
            let inputs = inputs.ok()?;
            (inputs.name.as_str() == os_build.name_any()).then(|| inputs.content_key())
        })
}

/// What the pool's `spec.configuration` may have been when it wanted `rendered`: as the nodes still have it, made from
/// the same sources as today's, or from sources that weren't told.
fn configurations(sources: Sources<'_>, rendered: &str) -> Vec<PoolConfiguration> {
    let pool = sources.pool;
    let of_nodes = pool.status.as_ref().and_then(|status| {
        let configuration = status.configuration.clone()?;
        (configuration.reference.name.as_deref() == Some(rendered)).then_some(configuration)
    });
    let named = |mut configuration: PoolConfiguration| {
        configuration.reference.name = Some(rendered.to_owned());
        configuration
    };
    let today = pool.spec.configuration.clone().map(named);
    let bare = today.clone().map(|today| PoolConfiguration {
        source: None,
        ..today
    });
    [of_nodes, today, bare].into_iter().flatten().collect()
}

#[cfg(test)]
mod tests;
