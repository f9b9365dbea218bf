//! Which tier runs, given what was asked for and what the machine allows? Pure.

use super::{Probe, Tier};
use crate::error::{Class, Classify};

/// Tiers that a later version brings: name and what it will be for.
pub const LATER: [(&str, &str); 3] = [
    (
        "rootless",
        "an ordinary user with subordinate ids (newuidmap)",
    ),
    ("flat", "no overlay: one unpacked tree"),
    ("copy", "no namespaces: Containerfiles without RUN"),
];

/// No tier can be chosen.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ChoiceError {
    /// There is no such tier.
    #[error("there is no tier {0:?}: use auto, userns or root")]
    Unknown(String),
    /// Not in this version.
    #[error("tier {0} comes with a later version: use auto, userns or root")]
    Later(&'static str),
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
            Self::Unknown(_) | Self::Later(_) => Class::CONTRACT,
            Self::Refused { .. } => Class::RIGHTS,
        }
    }
}

/// The tier to enter for `requested` (`auto`, or a name). `auto` takes root where it is allowed, since it can do all that userns can.
///
/// # Errors
/// Permanent, for a name that isn't known or not yet served; Rights, if the machine refuses.
pub fn choose(requested: &str, probe: &Probe) -> Result<Tier, ChoiceError> {
    let tier = match requested {
        "auto" if probe.allows(Tier::Root) => return Ok(Tier::Root),
        "auto" | "userns" => Tier::Userns,
        "root" => Tier::Root,
        other => {
            let later = LATER.iter().find(|(name, _)| *name == other);
            return Err(later.map_or_else(
                || ChoiceError::Unknown(other.to_owned()),
                |(name, _)| ChoiceError::Later(name),
            ));
        }
    };
    if probe.allows(tier) {
        return Ok(tier);
    }
    let (obstacle, remedy) = probe.obstacles(tier).next().map_or_else(
        || ("not everything could be tried".to_owned(), "none known"),
        |row| {
            (
                format!(
                    "{}: {}",
                    row.check.name(),
                    row.failure.as_deref().unwrap_or_default()
                ),
                row.check.remedy(tier),
            )
        },
    );
    Err(ChoiceError::Refused {
        tier,
        obstacle,
        remedy,
    })
}

#[cfg(test)]
mod tests {
    use super::super::{Check, Row};
    use super::*;

    fn probe(works: &[Tier]) -> Probe {
        let rows = [Tier::Root, Tier::Userns].map(|tier| Row {
            tier,
            check: Check::Seccomp,
            failure: if works.contains(&tier) {
                None
            } else {
                Some("Operation not permitted".to_owned())
            },
        });
        Probe {
            facts: Vec::new(),
            rows: rows.to_vec(),
        }
    }

    #[test]
    fn auto_takes_the_best_tier_and_a_name_takes_that_one() {
        for (requested, works, expected) in [
            ("auto", &[Tier::Root, Tier::Userns][..], Some(Tier::Root)),
            ("auto", &[Tier::Userns], Some(Tier::Userns)),
            ("auto", &[], None),
            ("userns", &[Tier::Root, Tier::Userns], Some(Tier::Userns)),
            ("userns", &[Tier::Root], None),
            ("root", &[Tier::Userns], None),
            ("flat", &[Tier::Root], None),
            ("best", &[Tier::Root], None),
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
                "flat",
                "tier flat comes with a later version: use auto, userns or root",
            ),
            (
                "best",
                "there is no tier \"best\": use auto, userns or root",
            ),
            (
                "root",
                "this machine does not allow tier root; system call filter: Operation not permitted; remedy: a kernel with \
                 CONFIG_SECCOMP_FILTER and no seccompProfile that forbids seccomp(2); see `strata-builder doctor`",
            ),
        ] {
            assert_eq!(
                choose(requested, &probe(&[])).unwrap_err().to_string(),
                message
            );
        }
    }
}
