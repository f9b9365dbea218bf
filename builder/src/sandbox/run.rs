//! What does a step see, and how did it end? The builder's side of a step.
//!
//! It makes the missing mount points, starts `internal-run-step`, hands its output on line by line, and afterwards removes the mount
//! points again and restores their parents' times, so that none of them reaches a layer.

use std::io::{self, PipeReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::lines::Lines;
use super::mount_points::{MountPoints, Shape};
use super::step::{INTERNAL_RUN_STEP, StepOrder, StepReport};
use super::{ExitStatus, MountSpec, RunSpec, StepMount};
use crate::error::{Class, Classify, is_disk_full};
use crate::root::{Root, RootError};
use crate::stop::Stop;

/// A step could not be started or followed.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// There is no command.
    #[error("the command is empty")]
    NoCommand,
    /// A user, or a path in the root.
    #[error(transparent)]
    Root(#[from] RootError),
    /// It must exist before the step.
    #[error("the working directory {0} is no directory")]
    NoWorkdir(PathBuf),
    /// The program can't be executed.
    #[error("run {program:?}")]
    Program {
        /// As in the Containerfile.
        program: String,
        /// Why not.
        source: io::Error,
    },
    /// More than the kernel hands to a program.
    #[error(
        "the command is too long for the kernel: an argument or variable has at most 128 KiB; put it into a file, such as a heredoc that begins with #!"
    )]
    TooLong,
    /// Namespaces, mounts, privileges.
    #[error("prepare the step: {operation}")]
    Prepare {
        /// What was tried.
        operation: String,
        /// Why not.
        source: io::Error,
    },
    /// The process that runs the step.
    #[error("{operation} the step's process")]
    Helper {
        /// What was tried.
        operation: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// We killed it, since another part of the build has failed.
    #[error("stopped, since another part of the build has failed")]
    Stopped,
    /// It ended without saying how the step ended.
    #[error("the step's process was killed from outside ({0})")]
    Killed(std::process::ExitStatus),
}

impl Classify for RunError {
    fn class(&self) -> Class {
        match self {
            Self::NoCommand | Self::NoWorkdir(_) | Self::Program { .. } | Self::TooLong => {
                Class::CONTENT
            }
            Self::Root(error) => error.class(),
            Self::Prepare { source, .. } if is_disk_full(source) => Class::Transient,
            Self::Prepare { .. } | Self::Helper { .. } => Class::INTERNAL,
            // The kernel's out-of-memory killer, or an eviction; and what is never told.
            Self::Killed(_) | Self::Stopped => Class::Transient,
        }
    }
}

/// Runs one step to its end and gives each line of its output (standard output and error, in order) to `output`. Whatever it started is dead
/// when this returns. Blocks; the calling thread must not end before it returns.
///
/// # Errors
/// User, if the user, working directory or program doesn't exist; Permanent, if the sandbox can't be made; Transient, if it was killed.
pub fn run(spec: &RunSpec<'_>, output: &mut dyn FnMut(&str)) -> Result<ExitStatus, RunError> {
    if spec.argv.is_empty() {
        return Err(RunError::NoCommand);
    }
    let prepare = |operation: &str| {
        let operation = operation.to_owned();
        move |source| RunError::Prepare { operation, source }
    };
    let root = Root::open(spec.root)?;
    let user = root.user(spec.user)?;
    let workdir = PathBuf::from(spec.workdir);
    // of `/a/../b` only `/b` need exist
    let canonical = root.canonical(&workdir)?;
    if root.file_type(&canonical)? != Some(rustix::fs::FileType::Directory) {
        return Err(RunError::NoWorkdir(workdir));
    }
    let mut environment = spec.env.clone();
    if !environment.iter().any(|(name, _)| name == "HOME") {
        environment.push(("HOME".to_owned(), user.home.clone()));
    }
    let scratch = tempfile::Builder::new()
        .prefix("step-")
        .tempdir_in(spec.scratch)
        .map_err(prepare("make a scratch folder"))?;
    let order = StepOrder {
        builder: std::process::id(),
        root: spec.root.to_owned(),
        scratch: scratch.path().to_owned(),
        argv: spec.argv.clone(),
        environment,
        workdir: Path::new("/").join(canonical),
        uid: user.uid,
        gid: user.gid,
        groups: user.groups,
        mounts: spec.mounts.clone(),
        files: spec.files.clone(),
        own_network: spec.network == crate::containerfile::Network::None,
        open_files: crate::open_files::found(),
        stdin: spec.stdin.clone(),
    };
    let mount_points = MountPoints::make(&root, &wanted_mount_points(spec)?)?;
    let result = follow(&order, spec.timeout, spec.stop, output);
    mount_points.remove(&root)?;
    match result? {
        Ended::Cut(Cut::TimedOut) => Ok(ExitStatus::TimedOut),
        Ended::Cut(Cut::Stopped) => Err(RunError::Stopped),
        Ended::Reported(StepReport::Exited(code)) => Ok(ExitStatus::Exited(code)),
        Ended::Reported(StepReport::Signaled(signal)) => Ok(ExitStatus::Signaled(signal)),
        Ended::Reported(StepReport::ProgramFailed { errno, .. }) if errno == libc::E2BIG => {
            Err(RunError::TooLong)
        }
        Ended::Reported(StepReport::ProgramFailed { program, errno }) => Err(RunError::Program {
            program,
            source: io::Error::from_raw_os_error(errno),
        }),
        Ended::Reported(StepReport::NoWorkdir) => Err(RunError::NoWorkdir(workdir)),
        Ended::Reported(StepReport::PrepareFailed { operation, errno }) => Err(RunError::Prepare {
            operation,
            source: io::Error::from_raw_os_error(errno),
        }),
        Ended::Killed(status) => Err(RunError::Killed(status)),
    }
}

/// Every mount of a step and what must be below it.
fn wanted_mount_points(spec: &RunSpec<'_>) -> Result<Vec<(PathBuf, Shape)>, RunError> {
    let directories = ["/proc", "/dev", "/sys"].map(|path| (PathBuf::from(path), Shape::Directory));
    let files = ["/etc/resolv.conf", "/etc/hosts", "/run/.containerenv"]
        .map(|path| (PathBuf::from(path), Shape::File));
    let mut wanted = [directories, files].concat();
    for MountSpec { target, kind } in &spec.mounts {
        let shape = match kind {
            StepMount::Bind { source, .. } => {
                let look = |source_error| RunError::Prepare {
                    operation: format!("look at {}", source.display()),
                    source: source_error,
                };
                if source.metadata().map_err(look)?.is_dir() {
                    Shape::Directory
                } else {
                    Shape::File
                }
            }
            StepMount::Tmpfs { .. } => Shape::Directory,
            StepMount::File { .. } => Shape::File,
        };
        wanted.push((target.clone(), shape));
    }
    wanted.extend(
        spec.files
            .iter()
            .map(|(path, _)| (path.clone(), Shape::File)),
    );
    // What lies in these is made in the step's own mounts.
    wanted.retain(|(path, _)| {
        !["/dev", "/proc", "/sys"]
            .iter()
            .any(|own| path.starts_with(own) && path.as_os_str() != *own)
    });
    Ok(wanted)
}

enum Ended {
    Reported(StepReport),
    Cut(Cut),
    Killed(std::process::ExitStatus),
}

fn follow(
    order: &StepOrder,
    timeout: Option<Duration>,
    stop: &Stop,
    output: &mut dyn FnMut(&str),
) -> Result<Ended, RunError> {
    let failed = |operation| move |source| RunError::Helper { operation, source };
    let (lines, step_output) = io::pipe().map_err(failed("make a pipe for"))?;
    let (report, step_report) = io::pipe().map_err(failed("make a pipe for"))?;
    let order =
        serde_json::to_vec(order).map_err(|error| failed("write the order for")(error.into()))?;
    let mut child = Command::new("/proc/self/exe")
        .arg(INTERNAL_RUN_STEP)
        .env_clear()
        // A terminal's signals are for the builder, which ends it.
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(step_output)
        .stderr(step_report)
        .spawn()
        .map_err(failed("start"))?;
    let followed = feed(&mut child, &order)
        .and_then(|()| follow_pipes(&mut child, lines, report, (timeout, stop), output));
    if followed.is_err() {
        // It may have ended already; waiting below tells.
        let _ = child.kill();
    }
    let status = child.wait().map_err(failed("wait for"))?;
    let Followed { report, cut } = followed.map_err(failed("follow"))?;
    if let Some(cut) = cut {
        return Ok(Ended::Cut(cut));
    }
    let first_line = report
        .split(|byte| *byte == b'\n')
        .next()
        .unwrap_or_default();
    Ok(serde_json::from_slice(first_line).map_or(Ended::Killed(status), Ended::Reported))
}

fn feed(child: &mut Child, order: &[u8]) -> io::Result<()> {
    let mut stdin = child
        .stdin
        .take()
        .ok_or_else(|| io::Error::other("no standard input"))?;
    stdin.write_all(order)
}

struct Followed {
    report: Vec<u8>,
    cut: Option<Cut>,
}

/// Why we killed it.
#[derive(Clone, Copy)]
enum Cut {
    TimedOut,
    Stopped,
}

/// Reads both pipes to their ends, which come when the last process of the step is gone.
fn follow_pipes(
    child: &mut Child,
    mut lines: PipeReader,
    mut report: PipeReader,
    (timeout, stop): (Option<Duration>, &Stop),
    output: &mut dyn FnMut(&str),
) -> io::Result<Followed> {
    let deadline = timeout.map(|timeout| Instant::now() + timeout);
    let mut followed = Followed {
        report: Vec::new(),
        cut: None,
    };
    let mut splitter = Lines::default();
    let mut buffer = vec![0; 64 * 1024];
    let (mut lines_open, mut report_open) = (true, true);
    while lines_open || report_open {
        let left = deadline
            .filter(|_| followed.cut.is_none())
            .map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let cut = match (followed.cut, left) {
            (Some(_), _) => None,
            (None, _) if stop.is_said() => Some(Cut::Stopped),
            (None, Some(Duration::ZERO)) => Some(Cut::TimedOut),
            (None, _) => None,
        };
        if cut.is_some() {
            followed.cut = cut;
            child.kill()?;
            continue;
        }
        let wanted = |open| {
            if open {
                PollFlags::IN
            } else {
                PollFlags::empty()
            }
        };
        let mut descriptors = [
            PollFd::from_borrowed_fd(lines.as_fd(), wanted(lines_open)),
            PollFd::from_borrowed_fd(report.as_fd(), wanted(report_open)),
            PollFd::from_borrowed_fd(stop.as_fd(), wanted(followed.cut.is_none())),
        ];
        let left = left.and_then(|left| Timespec::try_from(left).ok());
        match poll(&mut descriptors, left.as_ref()) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(errno) => return Err(errno.into()),
        }
        let [lines_ready, report_ready, _] =
            descriptors.map(|descriptor| !descriptor.revents().is_empty());
        if lines_open && lines_ready {
            let read = lines.read(&mut buffer)?;
            lines_open = read > 0;
            splitter.push(&buffer[..read], output);
        }
        if report_open && report_ready {
            let read = report.read(&mut buffer)?;
            report_open = read > 0;
            followed.report.extend_from_slice(&buffer[..read]);
        }
    }
    splitter.finish(output);
    Ok(followed)
}
