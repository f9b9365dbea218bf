//! How does the builder get mounts of its own before it starts?
//!
//! In the tiers with a user namespace the calling process stays outside as a small parent: it writes the id maps (which only somebody outside may do for more
//! than one id), passes signals on and ends as the builder ends. The builder goes on in the child and dies with its parent.

use std::fs;
use std::io::{self, Read, Write};

use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::process::{
    DumpableBehavior, Pid, Signal, WaitOptions, getppid, kill_process, set_dumpable_behavior, wait,
};
use rustix::thread::UnshareFlags;

use super::{ExitStatus, Rights, Storage, Tier, kernel, subordinate};
use crate::attributes;
use crate::error::{Class, Classify};
use crate::overlay::{OverlayError, XattrPrefix};

/// Passed on to the builder, except SIGCHLD.
const SIGNALS: [i32; 6] = [
    libc::SIGTERM,
    libc::SIGINT,
    libc::SIGHUP,
    libc::SIGQUIT,
    libc::SIGUSR1,
    libc::SIGCHLD,
];

/// What the parent says when the maps are written; else it says why not.
const MAPPED: &str = "mapped";

/// The process is in its tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entered {
    /// Which one.
    pub tier: Tier,
    /// Where marks of layers are kept here.
    pub xattrs: XattrPrefix,
}

/// The tier could not be entered.
#[derive(Debug, thiserror::Error)]
pub enum EnterError {
    /// Namespaces belong to threads, so there must be only one.
    #[error("a tier must be entered before any thread is started, but there are {0} threads")]
    Threads(usize),
    /// The kernel or the pod's security settings refused.
    #[error("{operation} for tier {}; see `strata-builder doctor`", tier.name())]
    Refused {
        /// The tier.
        tier: Tier,
        /// What was tried.
        operation: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// Our own user namespace can't be told.
    #[error(transparent)]
    Overlay(#[from] OverlayError),
}

impl Classify for EnterError {
    fn class(&self) -> Class {
        match self {
            Self::Threads(_) => Class::INTERNAL,
            // Somebody must change the pod or pick another tier.
            Self::Refused { .. } => Class::RIGHTS,
            Self::Overlay(error) => error.class(),
        }
    }
}

/// Enters `tier`. In the tiers with a user namespace this returns in a child process; the parent never returns.
///
/// # Errors
/// Rights, if something is refused; Permanent, if threads exist already.
pub fn enter(tier: Tier) -> Result<Entered, EnterError> {
    let refused = |operation| {
        move |source| EnterError::Refused {
            tier,
            operation,
            source,
        }
    };
    let threads = fs::read_dir("/proc/self/task")
        .map_err(refused("count the threads"))?
        .count();
    if threads != 1 {
        return Err(EnterError::Threads(threads));
    }
    match tier.rights() {
        Rights::None => attributes::keep_records(),
        Rights::Root => {
            kernel::unshare(UnshareFlags::NEWNS).map_err(refused("make a mount namespace"))?
        }
        Rights::Userns => enter_user_namespace(&write_identity_maps)
            .map_err(refused("make a user namespace with the ids of this one"))?,
        Rights::Rootless => enter_user_namespace(&subordinate::write_maps)
            .map_err(refused("make a user namespace with subordinate ids"))?,
    }
    if tier.rights() != Rights::None {
        make_mounts_private().map_err(refused("make the mounts private"))?;
    }
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    // Steps must not be able to look into this process, even where they can see it.
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(|errno| refused("hide the memory")(errno.into()))?;
    Ok(Entered {
        tier,
        xattrs: match tier.storage() {
            Storage::Overlay => XattrPrefix::of_this_process()?,
            Storage::Flat => XattrPrefix::Own,
        },
    })
}

/// Mounts made from here on are seen by nobody else, and none of others appear here.
pub(super) fn make_mounts_private() -> io::Result<()> {
    Ok(mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )?)
}

/// Gives a process its id maps from outside.
pub(super) type WriteMaps<'a> = &'a dyn Fn(Pid) -> io::Result<()>;

fn enter_user_namespace(write_maps: WriteMaps<'_>) -> io::Result<()> {
    let (mut unshared_reader, mut unshared) = io::pipe()?;
    let (mut mapped, mut mapped_writer) = io::pipe()?;
    let parent = rustix::process::getpid();
    kernel::block_signals(&SIGNALS);
    match kernel::fork()? {
        Some(builder) => {
            drop((unshared, mapped));
            // Nothing to read: the builder could not unshare, said so, and has ended.
            if unshared_reader.read(&mut [0])? == 1 {
                let verdict = match write_maps(builder) {
                    Ok(()) => MAPPED.to_owned(),
                    Err(error) => error.to_string(),
                };
                mapped_writer.write_all(verdict.as_bytes())?;
            }
            drop(mapped_writer);
            let status = stand_by(builder)?;
            std::process::exit(status.code())
        }
        None => {
            drop((unshared_reader, mapped_writer));
            kernel::unblock_signals(&SIGNALS);
            kernel::unshare(UnshareFlags::NEWUSER | UnshareFlags::NEWNS)?;
            // After unshare, which clears it with the old credentials.
            die_with(parent)?;
            unshared.write_all(&[1])?;
            let mut verdict = String::new();
            mapped.read_to_string(&mut verdict)?;
            match verdict.as_str() {
                MAPPED => become_root_inside(),
                _ => Err(io::Error::other(verdict)),
            }
        }
    }
}

/// This process is killed when `parent` ends.
pub(super) fn die_with(parent: Pid) -> io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    if getppid() == Some(parent) {
        Ok(())
    } else {
        Err(io::Error::other("the parent process is gone"))
    }
}

/// The ids are the same as outside, but only now the kernel knows that they are ours.
pub(super) fn become_root_inside() -> io::Result<()> {
    let (uid, gid) = (rustix::fs::Uid::ROOT, rustix::fs::Gid::ROOT);
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    Ok(rustix::thread::set_thread_res_uid(uid, uid, uid)?)
}

/// Gives `process` every id that we have, under the same number.
pub(super) fn write_identity_maps(process: Pid) -> io::Result<()> {
    for map in ["uid_map", "gid_map"] {
        let ours = fs::read_to_string(format!("/proc/self/{map}"))?;
        fs::write(
            format!("/proc/{}/{map}", process.as_raw_nonzero()),
            identity(&ours),
        )?;
    }
    Ok(())
}

/// The map that repeats the inside of `map`: `inside outside count` → `inside inside count`.
fn identity(map: &str) -> String {
    let lines = map.lines().filter_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let (inside, count) = (fields.next()?, fields.nth(1)?);
        Some(format!("{inside} {inside} {count}\n"))
    });
    lines.collect()
}

/// Waits for the builder, passing signals on, and reaps whatever else ends (we may be a container's first process).
fn stand_by(builder: Pid) -> io::Result<ExitStatus> {
    loop {
        while let Some((pid, status)) = wait(WaitOptions::NOHANG)? {
            if pid == builder {
                let signaled = status.terminating_signal().map(ExitStatus::Signaled);
                return Ok(status
                    .exit_status()
                    .map(ExitStatus::Exited)
                    .or(signaled)
                    .unwrap_or(ExitStatus::Exited(70)));
            }
        }
        match kernel::wait_for_signal(&SIGNALS)? {
            libc::SIGCHLD => {}
            signal => {
                if let Some(signal) = Signal::from_named_raw(signal) {
                    match kill_process(builder, signal) {
                        // It has just ended; the next wait tells how.
                        Ok(()) | Err(rustix::io::Errno::SRCH) => {}
                        Err(errno) => return Err(errno.into()),
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_identity_map_keeps_the_ids_inside_and_their_count() {
        for (map, expected) in [
            ("         0          0 4294967295\n", "0 0 4294967295\n"),
            ("         0   11534336      65536\n", "0 0 65536\n"),
            ("0 1000 1\n1 100000 65535\n", "0 0 1\n1 1 65535\n"),
        ] {
            assert_eq!(identity(map), expected);
        }
    }
}
