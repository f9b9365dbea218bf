//! Why did an instruction fail, and whose business is that?

use std::path::{Path, PathBuf};

use crate::containerfile::mounts::InvalidMount;
use crate::copy::{CopyError, InvalidMode};
use crate::digest::InvalidDigest;
use crate::error::{Class, Classify};
use crate::fetch::FetchError;
use crate::ignore::IgnoreError;
use crate::pipeline::BuildError;
use crate::root::RootError;
use crate::sandbox::{ExitStatus, RunError};
use crate::shortage::Shortage;
use crate::state::StateError;

/// An instruction that failed.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// A command that ended badly.
    #[error("{}", exit_text(*.status))]
    Exit {
        /// How.
        status: ExitStatus,
        /// Its last lines, oldest first.
        output: Vec<String>,
    },
    /// A command that ended badly because it had too little of something.
    #[error("{}", exit_text(*.status))]
    Short {
        /// How.
        status: ExitStatus,
        /// Its last lines, oldest first.
        output: Vec<String>,
        /// Of what.
        source: Shortage,
    },
    /// A command that could not run.
    #[error(transparent)]
    Run(RunError),
    /// COPY or ADD.
    #[error(transparent)]
    Copy(#[from] CopyError),
    /// Words and metadata.
    #[error(transparent)]
    State(#[from] StateError),
    /// A path or name in a root file system.
    #[error(transparent)]
    Root(#[from] RootError),
    /// `--chmod`
    #[error(transparent)]
    Mode(#[from] InvalidMode),
    /// `--mount`
    #[error(transparent)]
    Mount(#[from] InvalidMount),
    /// `--exclude`; its lines are the flags.
    #[error("--exclude")]
    Exclude(#[source] IgnoreError),
    /// What hides files of the context.
    #[error("read {}", path.display())]
    IgnoreFile {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: IgnoreError,
    },
    /// A secret that the Containerfile requires.
    #[error("the secret {id:?} is required; give it with --secret id={id},src=FILE")]
    NoSecret {
        /// Its id.
        id: String,
    },
    /// A secret that is to be a variable.
    #[error("the secret {id:?} is no text, so that it can't be the variable {variable}")]
    SecretIsNoText {
        /// Its id.
        id: String,
        /// Its name.
        variable: String,
    },
    /// `--checksum`
    #[error("--checksum")]
    Checksum(#[from] InvalidDigest),
    /// `--checksum` of something else than one file that is fetched.
    #[error("--checksum is for one source, and that a URL")]
    ChecksumOfWhat,
    /// ADD of what is a git repository once its variables are replaced.
    #[error("ADD of the git repository {0:?} is not supported")]
    Git(String),
    /// ADD of a remote file.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// A folder in scratch.
    #[error("{operation} {}", path.display())]
    Scratch {
        /// What was tried.
        operation: &'static str,
        /// Which.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// What the files come from, or the stage's own file system.
    #[error(transparent)]
    Files(Box<BuildError>),
}

impl Classify for StepError {
    fn class(&self) -> Class {
        match self {
            Self::Exit { .. }
            | Self::Mode(_)
            | Self::Mount(_)
            | Self::Checksum(_)
            | Self::ChecksumOfWhat
            | Self::Git(_)
            | Self::NoSecret { .. }
            | Self::SecretIsNoText { .. } => Class::CONTENT,
            Self::Short { source, .. } => source.class(),
            Self::Fetch(error) => error.class(),
            Self::Exclude(error) | Self::IgnoreFile { source: error, .. } => error.class(),
            Self::Run(error) => error.class(),
            Self::Copy(error) => error.class(),
            Self::State(error) => error.class(),
            Self::Root(error) => error.class(),
            Self::Scratch { .. } => Class::Transient,
            Self::Files(error) => error.class(),
        }
    }
}

impl From<RunError> for StepError {
    fn from(error: RunError) -> Self {
        match error {
            RunError::Stopped => BuildError::Stopped.into(),
            error => Self::Run(error),
        }
    }
}

impl From<BuildError> for StepError {
    fn from(error: BuildError) -> Self {
        Self::Files(Box::new(error))
    }
}

fn exit_text(status: ExitStatus) -> String {
    match status {
        ExitStatus::Exited(code) => format!("the command ended with status {code}"),
        ExitStatus::Signaled(signal) => format!("the command was killed by signal {signal}"),
        ExitStatus::TimedOut => "the command took too long and was killed".to_owned(),
    }
}

impl StepError {
    /// True if another root file system could have led to another end.
    pub(super) fn is_of_a_root(&self) -> bool {
        match self {
            Self::Root(_) => true,
            Self::Copy(error) => match error {
                CopyError::Root(_) | CopyError::File { .. } | CopyError::InTheWay { .. } => true,
                CopyError::NotFound { .. } | CopyError::Pattern(_) | CopyError::TooLarge { .. } => {
                    false
                }
            },
            _ => false,
        }
    }
}

pub(super) fn make_folder(path: &Path) -> Result<(), StepError> {
    std::fs::create_dir_all(path).map_err(scratch("make the folder", path))
}

pub(super) fn scratch<'a>(
    operation: &'static str,
    path: &'a Path,
) -> impl FnOnce(std::io::Error) -> StepError + 'a {
    move |source| StepError::Scratch {
        operation,
        path: path.to_owned(),
        source,
    }
}
