//! Which succeeded builds of a config may go?
//!
//! Pure. A build stays that is one of the newest so many, or younger than so long; without either bound all stay. Whatever the
//! bounds, a build stays that is wanted, that the config's status names, that an administrator keeps, or that has not ended. What
//! somebody else needs is looked up by whoever asks, see [`usage`](crate::usage).

use std::cmp::Reverse;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use kube::ResourceExt as _;

use crate::api::{MachineOSBuild, MachineOSConfig, annotation};
use crate::phase::Phase;
use crate::usage::is_to_be_kept;

/// What stays; all if nothing is said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Retention {
    /// So many of a config's newest succeeded builds, the wanted one among them.
    pub builds: Option<usize>,
    /// Those that were created less than so long ago.
    pub age: Option<Duration>,
}

impl fmt::Display for Retention {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.builds, self.age) {
            (None, None) => write!(f, "all builds stay"),
            (Some(builds), None) => write!(f, "the newest {builds} stay"),
            (None, Some(age)) => write!(f, "those of the last {} s stay", age.as_secs()),
            (Some(builds), Some(age)) => write!(
                f,
                "the newest {builds} and those of the last {} s stay",
                age.as_secs()
            ),
        }
    }
}

/// What may go.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Surplus {
    /// Builds that may go at once, the newest first.
    pub os_builds: Vec<Arc<MachineOSBuild>>,
    /// When the next may.
    pub next: Option<Timestamp>,
}

/// What of `os_builds`, those of `os_config`, may go at `now`, if `wanted` names the build that is wanted.
#[must_use]
pub fn surplus(
    retention: Retention,
    os_config: &MachineOSConfig,
    os_builds: &[Arc<MachineOSBuild>],
    wanted: &str,
    now: Timestamp,
) -> Surplus {
    let Retention { builds, age } = retention;
    if builds.is_none() && age.is_none() {
        return Surplus::default();
    }
    let mut succeeded: Vec<_> = os_builds
        .iter()
        .filter(|one| Phase::of_build(one) == Phase::Succeeded)
        .filter(|one| one.metadata.deletion_timestamp.is_none())
        .collect();
    // one that the apiserver has not made yet is as young as can be; what was created in the same second is told apart by name
    succeeded.sort_by_key(|one| {
        let created = one.creation_timestamp();
        Reverse((created.is_none(), created, one.name_any()))
    });
    let older = succeeded.into_iter().skip(builds.unwrap_or(0));
    let mut surplus = Surplus::default();
    for one in older.filter(|one| !is_named(os_config, one, wanted) && !is_to_be_kept(one)) {
        let Some(created) = one.creation_timestamp() else {
            continue;
        };
        let age = SignedDuration::try_from(age.unwrap_or_default());
        let end = age.ok().and_then(|age| created.0.checked_add(age).ok());
        match end {
            Some(end) if end <= now => surplus.os_builds.push(Arc::clone(one)),
            Some(end) => surplus.next = surplus.next.map_or(Some(end), |next| Some(next.min(end))),
            // an age beyond all times
            None => {}
        }
    }
    surplus
}

/// Whether the config is about this build.
fn is_named(os_config: &MachineOSConfig, os_build: &MachineOSBuild, wanted: &str) -> bool {
    let name = os_build.name_any();
    let annotated = os_config.annotations().get(annotation::CURRENT_BUILD);
    let status = os_config.status.as_ref();
    let told = status.and_then(|status| status.machine_os_build.as_ref());
    let current = status.and_then(|status| status.current_image_pull_spec.as_ref());
    let of_build = os_build.status.as_ref();
    let image = of_build.and_then(|status| status.digested_image_push_spec.as_ref());
    name == wanted
        || annotated == Some(&name)
        || told.is_some_and(|told| told.name == name)
        || (current.is_some() && current == image)
}

#[cfg(test)]
mod tests;
