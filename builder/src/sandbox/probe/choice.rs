//! Which tier runs, given what was asked for and what the machine allows? Pure.

use super::{Probe, Rights, Tier};
use crate::error::{Class, Classify};
use crate::sandbox::Storage;

/// No tier can be chosen.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ChoiceError {
    /// There is no such tier.
    #[error("there is no tier {0:?}: use auto, flat or one of {names}", names = names())]
    Unknown(String),
    /// The machine doesn't allow it.
    #[error("this machine does not allow tier {}; {obstacle}; remedy: {remedy}; see `strata-builder doctor`", tier.name())]
    Refused {
        /// What was asked for, or the nearest tier.
        tier: Tier,
        /// The first obstacle.
        obstacle: String,
        /// What would lift it.
        remedy: &'static str,
    },
}

impl Classify for ChoiceError {
    fn class(&self) -> Class {
        match self {
            Self::Unknown(_) => Class::CONTRACT,
            Self::Refused { .. } => Class::RIGHTS,
        }
    }
}

fn names() -> String {
    Tier::LADDER.map(Tier::name).join(", ")
}

/// The tier to enter for `requested`: a tier's name, `flat` for the best without overlays, or `auto` for the best that is allowed.
///
/// # Errors
/// Permanent, for a name that isn't known; Rights, if the machine refuses.
pub fn choose(requested: &str, probe: &Probe) -> Result<Tier, ChoiceError> {
    let wanted: Vec<Tier> = Tier::LADDER
        .into_iter()
        .filter(|tier| match requested {
            "auto" => true,
            "flat" => tier.storage() == Storage::Flat && *tier != Tier::Copy,
            name => name == tier.name(),
        })
        .collect();
    if let Some(tier) = wanted.iter().find(|tier| probe.allows(**tier)) {
        return Ok(*tier);
    }
    // What is nearest to being allowed is what has got furthest.
    let nearest = wanted.iter().rev().max_by_key(|tier| probe.works(**tier));
    let Some(&tier) = nearest else {
        return Err(ChoiceError::Unknown(requested.to_owned()));
    };
    let (obstacle, remedy) = obstacle(probe, tier);
    Err(ChoiceError::Refused {
        tier,
        obstacle,
        remedy,
    })
}

/// Why no step can run in `tier`; none if steps can.
#[must_use]
pub fn no_steps(requested: &str, tier: Tier, probe: &Probe) -> Option<String> {
    if tier.rights() != Rights::None {
        return None;
    }
    if requested == tier.name() {
        return Some(format!(
            "tier {requested}, which was asked for, runs no steps"
        ));
    }
    let others = Tier::LADDER.iter().filter(|other| **other != tier);
    let nearest = others.rev().max_by_key(|other| probe.works(**other))?;
    let (obstacle, remedy) = obstacle(probe, *nearest);
    Some(format!(
        "this machine allows no tier that runs steps; tier {}: {obstacle}; remedy: {remedy}; see `strata-builder doctor`",
        nearest.name()
    ))
}

/// Why a tier that isn't allowed isn't, and what would change that.
#[must_use]
pub fn obstacle(probe: &Probe, tier: Tier) -> (String, &'static str) {
    probe.obstacles(tier).next().map_or_else(
        || ("not everything could be tried".to_owned(), "none known"),
        |row| {
            let failure = row.failure.as_deref().unwrap_or_default();
            (
                format!("{}: {failure}", row.check.name()),
                row.check.remedy(tier.rights(), probe.place),
            )
        },
    )
}

#[cfg(test)]
mod tests {
    use super::super::{Check, Place, Row};
    use super::*;

    fn probe(works: &[Tier]) -> Probe {
        let mut rows = Vec::new();
        for tier in Tier::LADDER {
            let check = match tier {
                Tier::Root | Tier::Userns | Tier::Rootless => Check::Overlay,
                Tier::RootFlat | Tier::UsernsFlat | Tier::RootlessFlat => Check::Seccomp,
                Tier::Copy => Check::Files,
            };
            let failure = (!works.contains(&tier)).then(|| "Operation not permitted".to_owned());
            let rights = tier.rights();
            rows.push(Row {
                rights,
                check,
                failure,
            });
        }
        Probe {
            place: Place::Pod,
            facts: Vec::new(),
            rows,
        }
    }

    #[test]
    fn auto_takes_the_best_tier_and_a_name_takes_that_one() {
        for (requested, works, expected) in [
            ("auto", &Tier::LADDER[..], Some(Tier::Root)),
            ("auto", &Tier::LADDER[1..], Some(Tier::Userns)),
            ("auto", &Tier::LADDER[2..], Some(Tier::Rootless)),
            ("auto", &Tier::LADDER[3..], Some(Tier::RootFlat)),
            ("auto", &[Tier::RootlessFlat], Some(Tier::RootlessFlat)),
            ("auto", &[Tier::Copy], Some(Tier::Copy)),
            ("auto", &[], None),
            ("flat", &[Tier::Copy], None),
            ("copy", &Tier::LADDER, Some(Tier::Copy)),
            ("flat", &Tier::LADDER, Some(Tier::RootFlat)),
            ("flat", &Tier::LADDER[4..], Some(Tier::UsernsFlat)),
            ("userns", &Tier::LADDER, Some(Tier::Userns)),
            ("userns", &[Tier::UsernsFlat], None),
            ("userns-flat", &Tier::LADDER, Some(Tier::UsernsFlat)),
            ("rootless", &Tier::LADDER[3..], None),
            ("best", &Tier::LADDER, None),
        ] {
            assert_eq!(
                choose(requested, &probe(works)).ok(),
                expected,
                "{requested} {works:?}"
            );
        }
    }

    #[test]
    fn a_refusal_names_the_tier_the_obstacle_and_the_remedy() {
        for (requested, message) in [
            (
                "best",
                "there is no tier \"best\": use auto, flat or one of root, userns, rootless, root-flat, userns-flat, rootless-flat, copy",
            ),
            (
                "root",
                "this machine does not allow tier root; overlay in scratch: Operation not permitted; remedy: an emptyDir or other volume as the scratch \
                 folder; with SELinux seLinuxOptions.type: container_engine_t (SCC nested-container); with AppArmor appArmorProfile.type: Unconfined; see \
                 `strata-builder doctor`",
            ),
        ] {
            assert_eq!(
                choose(requested, &probe(&[])).unwrap_err().to_string(),
                message
            );
        }
    }
}
