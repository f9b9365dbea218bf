//! How does a step's own process become a container? Runs in a fresh copy of this program with one thread.
//!
//! ```text
//! builder ─ spawn ─► internal-run-step ─ fork ─► pid 1: mounts, pivot_root ─ fork ─► pid 2: privileges dropped ─ exec ─► the command
//! ```
//!
//! Standard input brings the [`StepOrder`], standard output is the step's output, standard error takes one [`StepReport`]. When pid 1 ends, the
//! kernel kills everything that the step has started; when the builder dies, so does this process, and pid 1 with it.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, MemfdFlags, Mode, OFlags, ResolveFlags, openat2};
use rustix::io::{Errno, dup};
use rustix::process::{DumpableBehavior, Pid, Signal, WaitOptions, set_dumpable_behavior, wait};
use rustix::thread::UnshareFlags;
use serde::{Deserialize, Serialize};

use super::enter::{die_with, make_mounts_private};
use super::{MountSpec, kernel, mounts, privileges};
use crate::open_files;

/// The first argument that starts this program as a step's process.
pub(super) const INTERNAL_RUN_STEP: &str = "internal-run-step";

/// The name that a step sees as its machine's.
pub(super) const HOST_NAME: &str = "strata-build";

/// What to run, with all names resolved.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct StepOrder {
    pub builder: u32,
    pub root: PathBuf,
    pub scratch: PathBuf,
    pub argv: Vec<String>,
    pub environment: Vec<(String, String)>,
    pub workdir: PathBuf,
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
    pub mounts: Vec<MountSpec>,
    pub files: Vec<(PathBuf, Vec<u8>)>,
    pub own_network: bool,
    /// How many it may have, if that isn't what we may.
    pub open_files: Option<u64>,
    pub stdin: Option<Vec<u8>>,
}

/// How it ended; one line of JSON.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum StepReport {
    Exited(i32),
    Signaled(i32),
    ProgramFailed { program: String, errno: i32 },
    NoWorkdir,
    PrepareFailed { operation: String, errno: i32 },
}

/// An operation of the set-up that failed.
#[derive(Debug)]
pub(super) struct Failed {
    pub operation: String,
    pub source: io::Error,
}

/// Names the operation of a failing call.
pub(super) trait Doing<T> {
    fn doing(self, operation: impl FnOnce() -> String) -> Result<T, Failed>;
}

impl<T, E: Into<io::Error>> Doing<T> for Result<T, E> {
    fn doing(self, operation: impl FnOnce() -> String) -> Result<T, Failed> {
        self.map_err(|source| Failed {
            operation: operation(),
            source: source.into(),
        })
    }
}

/// The whole life of `internal-run-step`; returns its exit status.
pub(super) fn main() -> u8 {
    // Not only at the command's exec: a working directory may name a descriptor before.
    if kernel::close_inherited().is_err() {
        return 70;
    }
    let report = match dup(io::stderr())
        .and_then(|fd| rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC).map(|()| fd))
    {
        Ok(report) => report,
        Err(_) => return 70,
    };
    let mut report = File::from(report);
    match prepare_and_wait(&mut report) {
        Ok(()) => 0,
        Err(failed) => {
            tell(&mut report, failed.into());
            70
        }
    }
}

impl From<Failed> for StepReport {
    fn from(Failed { operation, source }: Failed) -> Self {
        // An error without a number comes from us, with its own words.
        match source.raw_os_error() {
            Some(errno) => Self::PrepareFailed { operation, errno },
            None => Self::PrepareFailed {
                operation: format!("{operation}: {source}"),
                errno: libc::EIO,
            },
        }
    }
}

/// Nobody is left to hear it if the builder is gone.
fn tell(report: &mut File, what: StepReport) {
    if let Ok(mut line) = serde_json::to_vec(&what) {
        line.push(b'\n');
        let _ = report.write_all(&line);
    }
}

fn prepare_and_wait(report: &mut File) -> Result<(), Failed> {
    let mut order = Vec::new();
    io::stdin()
        .read_to_end(&mut order)
        .doing(|| "read the order".to_owned())?;
    let order: StepOrder = serde_json::from_slice(&order).doing(|| "read the order".to_owned())?;
    let builder = Pid::from_raw(order.builder.cast_signed())
        .ok_or_else(|| io::Error::other("no builder"))
        .doing(|| "find the builder".to_owned())?;
    die_with(builder).doing(|| "follow the builder".to_owned())?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable).doing(|| "hide the memory".to_owned())?;
    let mut namespaces =
        UnshareFlags::NEWNS | UnshareFlags::NEWPID | UnshareFlags::NEWUTS | UnshareFlags::NEWIPC;
    if order.own_network {
        namespaces |= UnshareFlags::NEWNET;
    }
    kernel::unshare(namespaces).doing(|| "make namespaces".to_owned())?;
    make_mounts_private().doing(|| "make the mounts private".to_owned())?;
    let stdin =
        standard_input(order.stdin.as_deref()).doing(|| "prepare standard input".to_owned())?;
    match kernel::fork().doing(|| "start pid 1".to_owned())? {
        Some(_) => {
            // Where a step sees this process, it sees its working directory, too.
            rustix::process::chdir("/").doing(|| "leave the working directory".to_owned())?;
            wait(WaitOptions::empty()).doing(|| "wait for pid 1".to_owned())?;
            Ok(())
        }
        None => {
            let done = first_process(&order, stdin, report).unwrap_or_else(Into::into);
            tell(report, done);
            kernel::exit_now(0)
        }
    }
}

/// The bytes for the step to read, or nothing.
fn standard_input(content: Option<&[u8]>) -> io::Result<OwnedFd> {
    let mut file = File::from(rustix::fs::memfd_create("stdin", MemfdFlags::CLOEXEC)?);
    file.write_all(content.unwrap_or_default())?;
    file.rewind()?;
    Ok(file.into())
}

/// Pid 1 of the step: its mounts, then its command, then nothing more.
fn first_process(
    order: &StepOrder,
    stdin: OwnedFd,
    report: &mut File,
) -> Result<StepReport, Failed> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .doing(|| "follow the step's process".to_owned())?;
    rustix::system::sethostname(HOST_NAME.as_bytes()).doing(|| "set the host name".to_owned())?;
    if order.own_network {
        kernel::loopback_up().doing(|| "bring the loopback device up".to_owned())?;
    }
    rustix::process::umask(rustix::fs::Mode::empty());
    mounts::build(order)?;
    let command = match kernel::fork().doing(|| "start the command".to_owned())? {
        Some(command) => command,
        None => {
            let failed = become_command(order, &stdin);
            tell(report, failed);
            kernel::exit_now(127)
        }
    };
    // Only the command itself holds the output open now, and what it starts.
    drop(stdin);
    loop {
        let Some((pid, status)) =
            wait(WaitOptions::empty()).doing(|| "wait for the command".to_owned())?
        else {
            continue;
        };
        if pid == command {
            let signaled = status.terminating_signal().map(StepReport::Signaled);
            let ended = status.exit_status().map(StepReport::Exited).or(signaled);
            return ended
                .ok_or_else(|| io::Error::other("neither exited nor signaled"))
                .doing(|| "wait for the command".to_owned());
        }
    }
}

/// Everything between the fork and the exec; returns only what went wrong.
fn become_command(order: &StepOrder, stdin: &OwnedFd) -> StepReport {
    if let Err(failed) = take_session(order, stdin) {
        return failed.into();
    }
    match enter_workdir(&order.workdir) {
        Ok(()) => {}
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV) => {
            return StepReport::NoWorkdir;
        }
        Err(errno) => {
            let operation = format!("enter the working directory {}", order.workdir.display());
            let source = errno.into();
            return Failed { operation, source }.into();
        }
    }
    if let Err(failed) = privileges::take(order.uid, order.gid, &order.groups) {
        return failed.into();
    }
    let program = order.argv.first().cloned().unwrap_or_default();
    let strings = |list: &mut dyn Iterator<Item = String>| {
        list.map(CString::new).collect::<Result<Vec<_>, _>>()
    };
    let arguments = strings(&mut order.argv.iter().cloned());
    let environment = strings(
        &mut order
            .environment
            .iter()
            .map(|(name, value)| format!("{name}={value}")),
    );
    let (Ok(arguments), Ok(environment)) = (arguments, environment) else {
        return StepReport::ProgramFailed {
            program,
            errno: libc::EINVAL,
        };
    };
    let path = order
        .environment
        .iter()
        .find(|(name, _)| name == "PATH")
        .map_or("", |(_, value)| value);
    let mut errno = libc::ENOENT;
    for candidate in candidates(&program, path) {
        let Ok(candidate) = CString::new(candidate.into_os_string().into_encoded_bytes()) else {
            continue;
        };
        match kernel::execute(&candidate, &arguments, &environment).raw_os_error() {
            Some(libc::ENOENT | libc::ENOTDIR) | None => {}
            Some(other) => errno = other,
        }
    }
    StepReport::ProgramFailed { program, errno }
}

/// Where a program may be: itself if it has a `/`, else in each directory of `PATH`.
fn candidates(program: &str, path: &str) -> Vec<PathBuf> {
    if program.contains('/') {
        return vec![PathBuf::from(program)];
    }
    path.split(':')
        .map(|directory| {
            Path::new(if directory.is_empty() { "." } else { directory }).join(program)
        })
        .collect()
}

fn take_session(order: &StepOrder, stdin: &OwnedFd) -> Result<(), Failed> {
    kernel::reset_signals();
    rustix::process::setsid().doing(|| "start a session".to_owned())?;
    rustix::stdio::dup2_stdin(stdin).doing(|| "set standard input".to_owned())?;
    rustix::stdio::dup2_stderr(io::stdout()).doing(|| "set standard error".to_owned())?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    match order.open_files {
        Some(found) => open_files::limit_to(found).doing(|| "limit the open files".to_owned()),
        None => Ok(()),
    }
}

/// The links of /proc that are no paths lead out of the root: to what a process has open, or where another one is. With the capabilities that we still hold, we could follow them.
fn enter_workdir(workdir: &Path) -> Result<(), Errno> {
    let directory = openat2(
        CWD,
        Path::new("/").join(workdir),
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
    )?;
    rustix::process::fchdir(directory)
}
