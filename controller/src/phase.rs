//! Which state is a build in, how do its conditions say so, and where may it go from there?
//!
//! This is the only module that converts between [`Phase`] and conditions. Every write carries all five
//! conditions with the incumbent's reasons and messages; what went wrong follows the fixed text.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use crate::api::MachineOSBuild;
use crate::api::condition::{self, Statement};

/// The states of a build.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Nothing has been done: no condition is True.
    Initial,
    /// The Job exists, its pod doesn't run.
    Prepared,
    /// The pod runs, or the Job is between two.
    Building,
    /// The image is in the registry.
    Succeeded,
    /// There will be no image.
    Failed,
    /// Stopped, or replaced by a newer build.
    Interrupted,
}

/// A condition type with its fixed reason and message.
struct Row {
    phase: Phase,
    type_: &'static str,
    reason: &'static str,
    message: &'static str,
}

/// In the order in which they are written.
const ROWS: [Row; 5] = [
    Row {
        phase: Phase::Prepared,
        type_: "Prepared",
        reason: "Prepared",
        message: "Build Prepared and Pending",
    },
    Row {
        phase: Phase::Building,
        type_: "Building",
        reason: "Building",
        message: "Image Build In Progress",
    },
    Row {
        phase: Phase::Failed,
        type_: "Failed",
        reason: "Failed",
        message: "Build Failed",
    },
    Row {
        phase: Phase::Interrupted,
        type_: "Interrupted",
        reason: "Interrupted",
        message: "Build Interrupted",
    },
    Row {
        phase: Phase::Succeeded,
        type_: "Succeeded",
        reason: "Ready",
        message: "Build Ready",
    },
];

/// Reason of all five conditions of a build that was seeded with an image.
const SEEDED_REASON: &str = "PreBuiltImageSeeded";

impl Phase {
    /// All states.
    pub const ALL: [Phase; 6] = [
        Phase::Initial,
        Phase::Prepared,
        Phase::Building,
        Phase::Succeeded,
        Phase::Failed,
        Phase::Interrupted,
    ];

    /// Whether nothing may follow.
    #[must_use]
    pub const fn is_terminal(self) -> bool {
        match self {
            Phase::Succeeded | Phase::Failed | Phase::Interrupted => true,
            Phase::Initial | Phase::Prepared | Phase::Building => false,
        }
    }

    /// Whether a build in this state may be written as `next`. Staying is no transition.
    #[must_use]
    pub const fn may_become(self, next: Phase) -> bool {
        match (self, next) {
            (Phase::Initial, Phase::Prepared | Phase::Building)
            | (Phase::Prepared, Phase::Building)
            | (
                Phase::Initial | Phase::Prepared | Phase::Building,
                Phase::Succeeded | Phase::Failed | Phase::Interrupted,
            ) => true,
            (Phase::Initial | Phase::Prepared | Phase::Building, _)
            | (Phase::Succeeded | Phase::Failed | Phase::Interrupted, _) => false,
        }
    }

    /// The state whose condition takes the detail.
    const fn telling(self) -> Phase {
        match self {
            Phase::Initial => Phase::Prepared,
            Phase::Prepared
            | Phase::Building
            | Phase::Succeeded
            | Phase::Failed
            | Phase::Interrupted => self,
        }
    }

    /// For logs, metrics and events.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Phase::Initial => "Initial",
            Phase::Prepared => "Prepared",
            Phase::Building => "Building",
            Phase::Succeeded => "Succeeded",
            Phase::Failed => "Failed",
            Phase::Interrupted => "Interrupted",
        }
    }

    /// The state that conditions tell. A terminal one wins, so that a strange object is left alone.
    #[must_use]
    pub fn of(conditions: &[Condition]) -> Phase {
        [
            Phase::Succeeded,
            Phase::Failed,
            Phase::Interrupted,
            Phase::Building,
            Phase::Prepared,
        ]
        .into_iter()
        .find(|phase| condition::is_true(conditions, phase.as_str()))
        .unwrap_or(Phase::Initial)
    }

    /// The state that the status of `os_build` tells.
    #[must_use]
    pub fn of_build(os_build: &MachineOSBuild) -> Phase {
        let status = os_build.status.as_ref();
        let conditions = status.and_then(|status| status.conditions.as_deref());
        Phase::of(conditions.unwrap_or_default())
    }

    /// Makes `conditions` tell this state, `detail` following the fixed message of the True one; before any is
    /// True, that of Prepared, since it says why the build isn't. True if that changed anything but a time.
    pub fn write(
        self,
        conditions: &mut Vec<Condition>,
        detail: Option<&str>,
        now: Timestamp,
    ) -> bool {
        let mut changed = false;
        for row in &ROWS {
            let holds = row.phase == self;
            let message = match detail {
                Some(detail) if row.phase == self.telling() => format!("{}: {detail}", row.message),
                Some(_) | None => row.message.to_owned(),
            };
            let statement = Statement {
                type_: row.type_,
                holds,
                reason: row.reason.to_owned(),
                message,
            };
            changed |= condition::set(conditions, statement, now);
        }
        changed
    }
}

/// Makes `conditions` tell that the build was seeded with `image`; true if that changed anything.
pub fn write_seeded(conditions: &mut Vec<Condition>, image: &str, now: Timestamp) -> bool {
    let mut changed = false;
    for row in &ROWS {
        let holds = row.phase == Phase::Succeeded;
        let statement = Statement {
            type_: row.type_,
            holds,
            reason: SEEDED_REASON.to_owned(),
            message: if holds {
                format!("Pre-built image \"{image}\" successfully seeded")
            } else {
                "Skipped: using pre-built image".to_owned()
            },
        };
        changed |= condition::set(conditions, statement, now);
    }
    changed
}

/// What follows the fixed message: the cause of a failure, or of waiting.
#[must_use]
pub fn detail(conditions: &[Condition]) -> Option<&str> {
    let phase = Phase::of(conditions).telling();
    let row = ROWS.iter().find(|row| row.phase == phase)?;
    condition::get(conditions, row.type_)?
        .message
        .strip_prefix(row.message)?
        .strip_prefix(": ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Timestamp {
        Timestamp::from_second(1_700_000_000).unwrap()
    }

    #[test]
    fn only_the_transitions_of_the_table_are_allowed() {
        use Phase::{Building, Failed, Initial, Interrupted, Prepared, Succeeded};
        let allowed = [
            (Initial, Prepared),
            (Initial, Building),
            (Initial, Succeeded),
            (Initial, Failed),
            (Initial, Interrupted),
            (Prepared, Building),
            (Prepared, Succeeded),
            (Prepared, Failed),
            (Prepared, Interrupted),
            (Building, Succeeded),
            (Building, Failed),
            (Building, Interrupted),
        ];
        for from in Phase::ALL {
            for to in Phase::ALL {
                assert_eq!(
                    from.may_become(to),
                    allowed.contains(&(from, to)),
                    "{from:?} → {to:?}"
                );
            }
        }
    }

    #[test]
    fn a_phase_reads_back_from_the_five_conditions_it_writes() {
        for phase in Phase::ALL {
            let mut conditions = Vec::new();
            phase.write(&mut conditions, None, now());
            assert_eq!(conditions.len(), 5);
            assert_eq!(Phase::of(&conditions), phase);
            assert!(!phase.write(&mut conditions, None, now()));
        }
        assert_eq!(Phase::of(&[]), Phase::Initial);
    }

    #[test]
    fn reasons_and_messages_are_the_incumbents_and_a_detail_follows() {
        let mut conditions = Vec::new();
        Phase::Failed.write(&mut conditions, Some("no such package"), now());
        let told: Vec<_> = conditions
            .iter()
            .map(|c| {
                (
                    c.type_.as_str(),
                    c.status.as_str(),
                    c.reason.as_str(),
                    c.message.as_str(),
                )
            })
            .collect();
        assert_eq!(
            told,
            [
                (
                    "Prepared",
                    "False",
                    "Prepared",
                    "Build Prepared and Pending"
                ),
                ("Building", "False", "Building", "Image Build In Progress"),
                ("Failed", "True", "Failed", "Build Failed: no such package"),
                ("Interrupted", "False", "Interrupted", "Build Interrupted"),
                ("Succeeded", "False", "Ready", "Build Ready"),
            ]
        );
        assert_eq!(detail(&conditions), Some("no such package"));
        let mut waiting = Vec::new();
        Phase::Initial.write(&mut waiting, Some("secret push is missing"), now());
        assert_eq!(Phase::of(&waiting), Phase::Initial);
        assert_eq!(detail(&waiting), Some("secret push is missing"));
    }

    #[test]
    fn a_seeded_build_has_one_reason_and_two_messages() {
        let mut conditions = Vec::new();
        write_seeded(&mut conditions, "q.io/r@sha256:0", now());
        assert_eq!(Phase::of(&conditions), Phase::Succeeded);
        assert!(conditions.iter().all(|c| c.reason == SEEDED_REASON));
        assert_eq!(
            condition::get(&conditions, "Succeeded").unwrap().message,
            "Pre-built image \"q.io/r@sha256:0\" successfully seeded"
        );
    }
}
