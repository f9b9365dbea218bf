//! How does a step run apart from the builder, with what this machine allows?
//!
//! ```text
//! probe ─► tier ─► enter ─► (the whole build)            once per process, before any thread exists
//! run   ─► `internal-run-step` process ─► namespaces ─► pid 1 of the step ─► the command
//! ```
//!
//! * A [`Tier`] is chosen by trying, never by version.
//! * `enter` gives the builder mounts of its own, so that nothing stays behind on the machine, however it ends.
//! * `run` re-executes this program for each step: forking a process with threads is not safe, and a fresh process has no
//!   credentials, no environment and no descriptors of the builder in it.
//!
//! Left out: cgroups (the pod has its limits).

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::containerfile::Network;
use crate::stop::Stop;

mod attach;
mod enter;
mod kernel;
mod lines;
mod mount_points;
mod mounts;
mod privileges;
pub mod probe;
mod run;
mod seccomp;
mod step;
mod subordinate;
mod tier;

pub use enter::{EnterError, Entered, enter};
pub use probe::{ChoiceError, Probe, ProbeError, choose, no_steps, probe};
pub use run::{RunError, run};
pub use tier::{Rights, Storage, Tier};

/// Does what this program was re-executed for, if it was; to be called first in `main`. The exit status, or none for an ordinary call.
#[must_use]
pub fn internal_main() -> Option<u8> {
    let mut arguments = std::env::args_os();
    if let Some(kind) = subordinate::Kind::called(&arguments.next()?) {
        return Some(subordinate::main(kind));
    }
    match arguments.next()?.to_str()? {
        step::INTERNAL_RUN_STEP => Some(step::main()),
        probe::INTERNAL_PROBE => Some(probe::main()),
        _ => None,
    }
}

/// One RUN, ready to go: nothing is expanded or looked up in the Containerfile any more.
#[derive(Clone, Debug)]
pub struct RunSpec<'a> {
    /// The root file system, writable: the stage's merged overlay.
    pub root: &'a Path,
    /// An existing folder for what only this step needs; on the same volume as the overlays.
    pub scratch: &'a Path,
    /// Not empty. Without a `/` the program is looked up in the environment's `PATH`.
    pub argv: Vec<String>,
    /// Exactly what the step sees, plus `HOME` from the user's entry in `/etc/passwd` if it isn't given.
    pub env: Vec<(String, String)>,
    /// Absolute; it must exist.
    pub workdir: &'a str,
    /// As in `USER`: `name|uid[:group|gid]`; empty for root.
    pub user: &'a str,
    /// In order; later ones may lie in earlier ones.
    pub mounts: Vec<MountSpec>,
    /// `None` gives loopback only; `Default` and `Host` are both the builder's network.
    pub network: Network,
    /// Standard input; empty if absent.
    pub stdin: Option<Vec<u8>>,
    /// Executable files that only the step sees (heredoc scripts), by absolute path.
    pub files: Vec<(PathBuf, Vec<u8>)>,
    /// The step and all it started is killed after this time.
    pub timeout: Option<Duration>,
    /// The same once this is said.
    pub stop: &'a Stop,
}

/// One mount of a step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountSpec {
    /// Absolute path in the root; made if absent, and removed again afterwards.
    pub target: PathBuf,
    /// What appears there.
    pub kind: StepMount,
}

/// What a mount shows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StepMount {
    /// A file or directory of the builder's own view, already resolved safely.
    Bind {
        /// Absolute.
        source: PathBuf,
        /// What the step may do to it.
        access: Access,
    },
    /// An empty directory in memory, mode 1777.
    Tmpfs {
        /// Half of the memory if absent.
        size_bytes: Option<u64>,
    },
    /// A file in memory: a secret.
    File {
        /// Its content.
        content: Vec<u8>,
        /// Permission bits.
        mode: u32,
        /// Owner.
        uid: u32,
        /// Group.
        gid: u32,
    },
}

/// What a step may do to a bind mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Access {
    /// Read.
    ReadOnly,
    /// Write, and nobody else sees it: a bind mount with `rw`.
    Discard,
    /// Write for real: a cache.
    ReadWrite,
}

/// How a step ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitStatus {
    /// By itself.
    Exited(i32),
    /// By a signal.
    Signaled(i32),
    /// Killed by us at the end of its time.
    TimedOut,
}

impl ExitStatus {
    /// As a shell says it: the status, 128 + signal, or 124 after a timeout.
    #[must_use]
    pub const fn code(self) -> i32 {
        match self {
            Self::Exited(code) => code,
            Self::Signaled(signal) => 128 + signal,
            Self::TimedOut => 124,
        }
    }

    /// True for exit status 0.
    #[must_use]
    pub const fn is_success(self) -> bool {
        matches!(self, Self::Exited(0))
    }
}

#[cfg(test)]
mod tests;
