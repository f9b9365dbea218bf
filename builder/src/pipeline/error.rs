//! Why was no image made, and whose business is that?

use std::path::PathBuf;

use super::stage::StepError;
use crate::containerfile::Place;
use crate::containerfile::graph::PlanError;
use crate::containerfile::parse::ParseError;
use crate::error::{Class, Classify};
use crate::flat::FlatError;
use crate::image::ImageError;
use crate::layer::LayerError;
use crate::overlay::OverlayError;
use crate::pull::PullError;
use crate::reference::InvalidReference;
use crate::registry::RegistryError;
use crate::store::StoreError;

/// A build that made no image.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// A file that the caller names.
    #[error("read {}", path.display())]
    ReadFile {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The Containerfile doesn't parse.
    #[error(transparent)]
    Parse(#[from] ParseError),
    /// The Containerfile can't be planned.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The Containerfile asks for something that this builder doesn't do.
    #[error(
        "{place}, column {column}: {what} is not supported\n  {source_line}\n  {caret:>column$}",
        caret = '^'
    )]
    Unsupported {
        /// Of the instruction.
        place: Place,
        /// From 1.
        column: usize,
        /// Instruction and flag.
        what: String,
        /// The instruction as written.
        source_line: String,
    },
    /// A RUN where none can run.
    #[error("{place}: RUN can't be done: {why}\n  {text}")]
    NoSteps {
        /// Of the instruction.
        place: Place,
        /// As written.
        text: String,
        /// What is missing.
        why: String,
    },
    /// FROM or `--from` names neither stage nor image.
    #[error(transparent)]
    Reference(#[from] InvalidReference),
    /// FROM or `--from` names a context that has no image.
    #[error("the context {name:?} is no image; give one with --build-context {name}=REFERENCE")]
    ContextIsNoImage {
        /// Its name.
        name: String,
    },
    /// Our own mistake.
    #[error("what the stage {name} starts from was given up too early")]
    StageIsGone {
        /// Its name.
        name: String,
    },
    /// Never told: the build begins anew with all files.
    #[error("a file of the base is in the place of a new one")]
    BeyondOutline,
    /// Another stage has failed, and that is the error to tell.
    #[error("another stage of the build has failed")]
    Stopped,
    /// Somebody wanted it to end.
    #[error("the build was stopped by {0}")]
    Interrupted(&'static str),
    /// This process has no descriptor left for it.
    #[error("prepare to stop stages")]
    Stop(#[source] std::io::Error),
    /// An image that the build starts from.
    #[error(transparent)]
    Pull(#[from] PullError),
    /// A place for images.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A registry.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The image's documents.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// An instruction.
    #[error("{place}: {text}")]
    Step {
        /// Of the instruction.
        place: Place,
        /// As written.
        text: String,
        /// What went wrong.
        source: Box<StepError>,
    },
    /// Something outside of the Containerfile that an instruction names: an image that can't be pulled.
    #[error("{place}: {text}")]
    Outside {
        /// Of the first instruction that names it.
        place: Place,
        /// As written.
        text: String,
        /// What went wrong.
        source: Box<BuildError>,
    },
    /// A stage's file system.
    #[error(transparent)]
    Overlay(#[from] OverlayError),
    /// The same, without overlays.
    #[error(transparent)]
    Flat(#[from] FlatError),
    /// A stage's layer.
    #[error(transparent)]
    Layer(#[from] LayerError),
    /// A thread or task of ours ended early.
    #[error("a part of the build ended early")]
    Task(#[from] tokio::task::JoinError),
}

impl Classify for BuildError {
    fn class(&self) -> Class {
        match self {
            Self::ReadFile { .. }
            | Self::Parse(_)
            | Self::Unsupported { .. }
            | Self::ContextIsNoImage { .. } => Class::CONTENT,
            Self::NoSteps { .. } => Class::RIGHTS,
            Self::Pull(error) => error.class(),
            Self::Store(error) => error.class(),
            Self::Plan(error) => error.class(),
            Self::Reference(error) => error.class(),
            Self::Registry(error) => error.class(),
            Self::Image(error) => error.class(),
            Self::Step { source, .. } => source.class(),
            Self::Outside { source, .. } => source.class(),
            Self::Overlay(error) => error.class(),
            Self::Flat(error) => error.class(),
            Self::Layer(error) => error.class(),
            Self::Task(_) | Self::StageIsGone { .. } | Self::Stop(_) | Self::BeyondOutline => {
                Class::INTERNAL
            }
            Self::Stopped | Self::Interrupted(_) => Class::Transient,
        }
    }
}

impl BuildError {
    /// True if another attempt, perhaps with more memory or room, may go on where this one ended.
    pub(super) fn may_go_on(&self) -> bool {
        let is_short = matches!(self, Self::Step { source, .. } if matches!(**source, StepError::Short { .. }));
        is_short || self.class() == Class::Transient
    }

    /// True if a blob didn't come from where it was to be copied from.
    pub(super) fn is_of_source(&self) -> bool {
        matches!(self, Self::Store(StoreError::Source(_)))
    }

    /// What a registry has answered, if that is why.
    pub(super) fn of_registry(&self) -> Option<&RegistryError> {
        match self {
            Self::Registry(error) => Some(error),
            Self::Store(error) | Self::Pull(PullError::Store { source: error, .. }) => {
                error.of_registry()
            }
            Self::Outside { source, .. } => source.of_registry(),
            _ => None,
        }
    }

    /// True if an image that the build starts from, or its registry, is to blame.
    pub(super) fn is_of_an_image(&self) -> bool {
        match self {
            Self::Outside { .. }
            | Self::Pull(_)
            | Self::Store(_)
            | Self::Registry(_)
            | Self::Task(_)
            | Self::Stop(_)
            | Self::BeyondOutline
            | Self::Interrupted(_)
            | Self::Stopped => true,
            Self::ReadFile { .. }
            | Self::Parse(_)
            | Self::Plan(_)
            | Self::Unsupported { .. }
            | Self::NoSteps { .. }
            | Self::Reference(_)
            | Self::ContextIsNoImage { .. }
            | Self::StageIsGone { .. }
            | Self::Image(_)
            | Self::Step { .. }
            | Self::Overlay(_)
            | Self::Flat(_)
            | Self::Layer(_) => false,
        }
    }
}
