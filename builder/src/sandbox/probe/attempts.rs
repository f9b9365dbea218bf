//! Does it work when tried? Runs in `internal-probe`, a process with one thread; every attempt that changes a process has its own.

use std::error::Error as _;
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, chown};
use std::path::{Path, PathBuf};

use rustix::fs::XattrFlags;
use rustix::mount::{MountFlags, mount};
use rustix::process::{Pid, WaitOptions, waitpid};
use rustix::thread::UnshareFlags;

use super::{Check, tell};
use crate::overlay::{Overlay, XattrPrefix};
use crate::sandbox::enter::{
    WriteMaps, become_root_inside, make_mounts_private, write_identity_maps,
};
use crate::sandbox::{Rights, attach, kernel, seccomp, subordinate};

/// What one attempt does.
type Attempt<'a> = &'a dyn Fn() -> io::Result<()>;

/// The whole life of `internal-probe`; returns its exit status.
pub(in crate::sandbox) fn main() -> u8 {
    let Some(scratch) = std::env::args_os().nth(2).map(PathBuf::from) else {
        return 64;
    };
    let namespaces = UnshareFlags::NEWNS | UnshareFlags::NEWUTS | UnshareFlags::NEWIPC;
    if tell(
        Rights::Root,
        Check::Namespaces,
        in_child(&|| kernel::unshare(namespaces | UnshareFlags::NEWPID)),
    ) {
        let folder = scratch.join("root");
        report_unexpected(
            Rights::Root,
            in_child(&|| {
                kernel::unshare(namespaces)?;
                inside(Rights::Root, &folder)
            }),
        );
    }
    let copied = scratch.join("copied");
    tell(Rights::None, Check::Files, fs::write(copied, "copied"));
    for rights in [Rights::Userns, Rights::Rootless] {
        with_user_namespace(rights, namespaces, &scratch.join(rights.name()));
    }
    0
}

fn with_user_namespace(rights: Rights, namespaces: UnshareFlags, folder: &Path) {
    let with_user = namespaces | UnshareFlags::NEWUSER | UnshareFlags::NEWPID;
    let unshared = in_child(&|| kernel::unshare(with_user));
    if !tell(rights, Check::Namespaces, unshared) {
        return;
    }
    let maps = |map: WriteMaps<'_>| in_mapped_child(namespaces, map, &|| Ok(()));
    let map: WriteMaps<'_> = match rights {
        Rights::None | Rights::Root | Rights::Userns => {
            if !tell(rights, Check::IdentityMap, maps(&write_identity_maps)) {
                let shifted = maps(&|pid| write_map(pid, "0 1 65535\n", true));
                tell(rights, Check::ShiftedMap, shifted);
                let own = format!("0 {} 1\n", rustix::process::geteuid().as_raw());
                tell(
                    rights,
                    Check::SingleMap,
                    maps(&|pid| write_map(pid, &own, false)),
                );
                return;
            }
            &write_identity_maps
        }
        Rights::Rootless => {
            let mapped = maps(&subordinate::write_maps);
            if !tell(rights, Check::SubordinateIds, mapped) {
                return;
            }
            &subordinate::write_maps
        }
    };
    report_unexpected(
        rights,
        in_mapped_child(namespaces, map, &|| inside(rights, folder)),
    );
}

/// The attempts tell about themselves; what fails between them is told as a failure of the last one.
fn report_unexpected(rights: Rights, result: io::Result<()>) {
    if result.is_err() {
        tell(rights, Check::Seccomp, result);
    }
}

/// Everything that is tried once the tier's namespaces are there.
fn inside(rights: Rights, folder: &Path) -> io::Result<()> {
    make_mounts_private()?;
    file_attempts(rights, folder)?;
    let point = folder.join("point");
    fs::create_dir_all(&point)?;
    let at = |kind: &'static str, options: Option<&std::ffi::CStr>| {
        in_child(&|| {
            Ok(mount(
                kind,
                &point,
                kind,
                MountFlags::NOSUID | MountFlags::NOEXEC,
                options,
            )?)
        })
    };
    tell(
        rights,
        Check::Proc,
        in_child(&|| {
            kernel::unshare(UnshareFlags::NEWPID)?;
            in_child(&|| {
                Ok(mount(
                    "proc",
                    &point,
                    "proc",
                    MountFlags::NOSUID | MountFlags::NOEXEC | MountFlags::NODEV,
                    None,
                )?)
            })
        }),
    );
    tell(rights, Check::Tmpfs, at("tmpfs", Some(c"mode=0755")));
    tell(
        rights,
        Check::Devpts,
        at("devpts", Some(c"newinstance,ptmxmode=0666,mode=0620,gid=5")),
    );
    tell(
        rights,
        Check::Sys,
        in_child(&|| {
            let (sys, point) = (attach::source(Path::new("/sys"))?, attach::source(&point)?);
            attach::bind(sys, point, &[kernel::Restriction::ReadOnly])
        }),
    );
    tell(rights, Check::Seccomp, in_child(&seccomp::install));
    Ok(())
}

fn file_attempts(rights: Rights, folder: &Path) -> io::Result<()> {
    let base = folder.join("base");
    fs::create_dir_all(base.join("directory"))?;
    fs::write(base.join("file"), "lower")?;
    let xattrs = XattrPrefix::of_this_process().map_err(io::Error::other)?;
    let overlay = Overlay::mount(&[base], &folder.join("stage"), xattrs);
    let told = overlay.as_ref().map(|_| ()).map_err(|error| {
        // Where it was tried is of no interest.
        let cause = error.source().map(ToString::to_string);
        io::Error::other(cause.unwrap_or_else(|| error.to_string()))
    });
    tell(rights, Check::Overlay, told);
    let overlay = overlay.ok();
    if let Some(overlay) = &overlay {
        overlay_attempts(rights, overlay, xattrs);
    }
    // Without overlays it has to work beside them.
    let new = overlay.as_ref().map_or(folder, Overlay::merged).join("new");
    fs::write(&new, "new")?;
    tell(rights, Check::Chown, chown(&new, Some(1234), Some(65534)));
    // Version 2, CAP_NET_BIND_SERVICE permitted and effective.
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let set = rustix::fs::lsetxattr(
        &new,
        "security.capability",
        &capability,
        XattrFlags::empty(),
    );
    tell(
        rights,
        Check::FileCapabilities,
        set.map_err(io::Error::from),
    );
    Ok(())
}

fn overlay_attempts(rights: Rights, overlay: &Overlay, xattrs: XattrPrefix) {
    let (merged, upper) = (overlay.merged(), overlay.upper());
    let whiteout = || {
        fs::remove_file(merged.join("file"))?;
        let left = fs::symlink_metadata(upper.join("file"))?;
        if left.file_type().is_char_device() && left.rdev() == 0 {
            Ok(())
        } else {
            Err(io::Error::other("no whiteout in the upper directory"))
        }
    };
    tell(rights, Check::Whiteout, whiteout());
    let opaque = || {
        fs::remove_dir(merged.join("directory"))?;
        fs::create_dir(merged.join("directory"))?;
        let mut value = [0];
        rustix::fs::lgetxattr(upper.join("directory"), xattrs.opaque(), &mut value)?;
        if &value == b"y" {
            Ok(())
        } else {
            Err(io::Error::other("not marked in the upper directory"))
        }
    };
    tell(rights, Check::Opaque, opaque());
}

/// Runs `attempt` in a child and brings its error back.
fn in_child(attempt: Attempt<'_>) -> io::Result<()> {
    match kernel::fork()? {
        Some(child) => outcome(child),
        None => end(attempt()),
    }
}

/// As `in_child`, in a new user namespace (and `namespaces`) whose maps this process writes.
fn in_mapped_child(
    namespaces: UnshareFlags,
    maps: WriteMaps<'_>,
    attempt: Attempt<'_>,
) -> io::Result<()> {
    let (mut unshared_reader, mut unshared) = io::pipe()?;
    let (mut mapped, mut mapped_writer) = io::pipe()?;
    match kernel::fork()? {
        Some(child) => {
            drop((unshared, mapped));
            let written = match unshared_reader.read(&mut [0])? {
                1 => maps(child).and_then(|()| mapped_writer.write_all(&[1])),
                _ => Ok(()),
            };
            drop(mapped_writer);
            let outcome = outcome(child);
            written.and(outcome)
        }
        None => {
            drop((unshared_reader, mapped_writer));
            end(kernel::unshare(UnshareFlags::NEWUSER)
                .and_then(|()| unshared.write_all(&[1]))
                .and_then(|()| mapped.read_exact(&mut [0]))
                .and_then(|()| become_root_inside())
                .and_then(|()| kernel::unshare(namespaces))
                .and_then(|()| attempt()))
        }
    }
}

fn write_map(process: Pid, map: &str, groups: bool) -> io::Result<()> {
    let folder = PathBuf::from(format!("/proc/{}", process.as_raw_nonzero()));
    if !groups {
        fs::write(folder.join("setgroups"), "deny")?;
    }
    fs::write(folder.join("uid_map"), map)?;
    fs::write(folder.join("gid_map"), map)
}

/// An exit status holds an errno; an error without one is EIO.
fn end(result: io::Result<()>) -> ! {
    kernel::exit_now(match result {
        Ok(()) => 0,
        Err(error) => error.raw_os_error().unwrap_or(libc::EIO),
    })
}

fn outcome(child: Pid) -> io::Result<()> {
    let Some((_, status)) = waitpid(Some(child), WaitOptions::empty())? else {
        return Err(io::Error::other("the attempt is lost"));
    };
    match status.exit_status() {
        Some(0) => Ok(()),
        Some(errno) => Err(io::Error::from_raw_os_error(errno)),
        None => Err(io::Error::other("the attempt was killed")),
    }
}
