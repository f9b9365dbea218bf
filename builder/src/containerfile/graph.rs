//! Which stages does the target need, in which order, and where does each take its files from? Pure.
//!
//! A name is looked up as a named context (`--build-context`), then as an earlier stage, then it is
//! an image. Only stages that the target needs are in the [`BuildGraph`], in file order, which is a
//! build order since a stage can use earlier ones only.

use std::collections::{BTreeMap, BTreeSet};

use super::Place;
use super::words::WordError;
use crate::error::{Class, Classify};
use crate::state::Scope;

mod planner;
mod platform;
mod prune;
#[cfg(test)]
mod tests;
mod variables;

pub use planner::plan;
pub use platform::Platform;

/// What the caller wants built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanOptions {
    /// Name or index of a stage; the last one if absent.
    pub target: Option<String>,
    /// `--build-arg`.
    pub build_args: BTreeMap<String, String>,
    /// What the image is for.
    pub platform: Platform,
    /// What we run on.
    pub build_platform: Platform,
    /// Named contexts.
    pub context_names: BTreeSet<String>,
}

/// What to build.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuildGraph {
    /// Those that the target needs, each after all that it uses itself.
    pub stages: Vec<PlannedStage>,
    /// Index in `stages`: always the last one.
    pub target: usize,
    /// The variables that every stage starts with.
    pub scope: Scope,
    /// What the author may want to know.
    pub warnings: Vec<String>,
}

/// A stage that will be built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedStage {
    /// Index in [`Containerfile::stages`].
    pub index: usize,
    /// `AS name`, or the index.
    pub name: String,
    /// What it starts from.
    pub base: StageBase,
    /// `--platform`, if it says one.
    pub platform: Option<Platform>,
    /// One entry for each instruction of the stage: for COPY and ADD one source, for RUN one for
    /// each of its mounts, else none.
    pub sources: Vec<Vec<Source>>,
}

/// What a stage starts from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StageBase {
    /// Nothing.
    Scratch,
    /// An earlier one; index in [`BuildGraph::stages`].
    Stage(usize),
    /// A named context.
    Context(String),
    /// An image reference, as written.
    Image(String),
}

/// Where files come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// Nothing: a tmpfs, a secret, an empty cache, `scratch`.
    Empty,
    /// The build context.
    MainContext,
    /// An earlier stage; index in [`BuildGraph::stages`].
    Stage(usize),
    /// A named context.
    Context(String),
    /// An image reference, as written.
    Image(String),
}

/// Why there is nothing to build.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// `--target` names none.
    #[error("there is no stage {name:?} to build; its stages are {known}")]
    Target {
        /// As given.
        name: String,
        /// The stages' names.
        known: String,
    },
    /// A word of FROM, `--from` or a global ARG.
    #[error("{place}: can't expand {word:?}")]
    Expand {
        /// File and line.
        place: Place,
        /// As written.
        word: String,
        /// Why.
        source: WordError,
    },
    /// FROM or `--from` with variables that leave nothing.
    #[error("{place}: {word:?} expands to nothing; declare its ARG before the first FROM")]
    Blank {
        /// File and line.
        place: Place,
        /// As written.
        word: String,
    },
    /// `--from` with a variable that no ARG or ENV of the stage sets, or with bad quotes.
    #[error("{place}: can't expand {word:?} from the ARG and ENV lines above it")]
    UnknownVariable {
        /// File and line.
        place: Place,
        /// As written.
        word: String,
    },
    /// A stage that comes later, or itself.
    #[error("{place}: stage {name:?} must be defined before the stage that uses it")]
    Forward {
        /// File and line.
        place: Place,
        /// Its name or index.
        name: String,
    },
    /// An index that no stage has.
    #[error("{place}: there is no stage {index}")]
    Index {
        /// File and line.
        place: Place,
        /// As written.
        index: String,
    },
    /// `--platform` that is none.
    #[error(
        "{place}: {value:?} is no platform: expected OS/ARCHITECTURE[/VARIANT], OS or ARCHITECTURE"
    )]
    Platform {
        /// File and line.
        place: Place,
        /// After expansion.
        value: String,
    },
}

impl Classify for PlanError {
    fn class(&self) -> Class {
        match self {
            Self::Target { .. } => Class::CONTRACT,
            Self::Expand { .. }
            | Self::Blank { .. }
            | Self::UnknownVariable { .. }
            | Self::Forward { .. }
            | Self::Index { .. }
            | Self::Platform { .. } => Class::CONTENT,
        }
    }
}
