//! Where do a stage's writes go? One overlay per stage: lower directories below, a fresh upper above.
//!
//! The upper directory alone is the stage's change, so nothing is ever compared with the base. Options that would put references to lower
//! files into the upper (`metacopy`, `redirect_dir`, `index`) are off: a layer must stand by itself. `volatile` leaves out all syncing,
//! because a scratch folder has no use after a crash.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Timespec, Timestamps, utimensat};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, UnmountFlags,
    fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, mount, move_mount,
    unmount,
};

use crate::error::{Class, Classify, is_disk_full};

/// The namespace of the extended attributes in which overlayfs keeps its marks (`opaque`), or we ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XattrPrefix {
    /// `trusted.overlay.`: with real root only.
    Trusted,
    /// `user.overlay.`: in a user namespace.
    User,
    /// `user.strata.`: where there are no overlays. A file system that takes no overlay's marks takes these.
    Own,
}

impl XattrPrefix {
    /// What this process may use: `user.` as soon as it is in a user namespace other than the machine's.
    ///
    /// # Errors
    /// Transient, if `/proc` can't be read.
    pub fn of_this_process() -> Result<Self, OverlayError> {
        let link = Path::new("/proc/self/ns/user");
        let namespace = fs::read_link(link).map_err(prepare("read", link))?;
        Ok(if namespace.as_os_str() == FIRST_USER_NAMESPACE {
            Self::Trusted
        } else {
            Self::User
        })
    }

    /// The attribute that hides a lower directory's entries; its value is `y`.
    #[must_use]
    pub const fn opaque(self) -> &'static str {
        match self {
            Self::Trusted => "trusted.overlay.opaque",
            Self::User => "user.overlay.opaque",
            Self::Own => "user.strata.opaque",
        }
    }

    /// What stands for a name that is gone; no layer has sockets.
    #[must_use]
    pub const fn whiteout(self) -> FileType {
        match self {
            Self::Trusted | Self::User => FileType::CharacterDevice,
            Self::Own => FileType::Socket,
        }
    }
}

/// The kernel gives the machine's own user namespace this number always (`PROC_USER_INIT_INO`). A map of all ids doesn't tell: a nested
/// namespace may have it too.
const FIRST_USER_NAMESPACE: &str = "user:[4026531837]";

/// A mounted overlay; unmounted when dropped.
#[derive(Debug)]
pub struct Overlay {
    merged: PathBuf,
    upper: PathBuf,
    work: PathBuf,
    mounted: bool,
}

/// An overlay could not be made or taken down.
#[derive(Debug, thiserror::Error)]
pub enum OverlayError {
    /// A directory of ours.
    #[error("{operation} {}", path.display())]
    Prepare {
        /// What was tried.
        operation: &'static str,
        /// With what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The mount itself.
    #[error("mount an overlay of {lowers} lower directories at {}", merged.display())]
    Mount {
        /// Where.
        merged: PathBuf,
        /// How many.
        lowers: usize,
        /// Why not.
        source: io::Error,
    },
    /// The end.
    #[error("unmount the overlay at {}", merged.display())]
    Unmount {
        /// Where.
        merged: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

impl Classify for OverlayError {
    fn class(&self) -> Class {
        match self {
            // A full or failing disk of this node; another attempt may land on another node.
            Self::Prepare { .. } => Class::Transient,
            Self::Mount { source, .. } if is_disk_full(source) => Class::Transient,
            Self::Mount { .. } | Self::Unmount { .. } => Class::INTERNAL,
        }
    }
}

impl Overlay {
    /// Mounts `lowers` (top first; none for an empty base) under a new upper directory in `scratch`, which must be on a file system that
    /// takes overlay uppers (a volume, not another overlay) and must not hold an earlier overlay.
    ///
    /// The upper's root takes mode, owner and time from the top lower's root, so that an untouched root is no change.
    ///
    /// # Errors
    /// Transient if the scratch folder can't be written; Permanent if the kernel refuses the mount.
    pub fn mount(
        lowers: &[PathBuf],
        scratch: &Path,
        xattrs: XattrPrefix,
    ) -> Result<Self, OverlayError> {
        let mut overlay = Self {
            merged: scratch.join("merged"),
            upper: scratch.join("upper"),
            work: scratch.join("work"),
            mounted: false,
        };
        for directory in [&overlay.upper, &overlay.work, &overlay.merged] {
            fs::create_dir_all(directory).map_err(prepare("create", directory))?;
        }
        let lowers = if lowers.is_empty() {
            let empty = scratch.join("empty");
            fs::create_dir_all(&empty).map_err(prepare("create", &empty))?;
            fs::set_permissions(&empty, fs::Permissions::from_mode(0o755))
                .map_err(prepare("chmod", &empty))?;
            vec![empty]
        } else {
            lowers.to_vec()
        };
        take_attributes(&lowers[0], &overlay.upper)?;
        mount_overlay(&lowers, &overlay, xattrs).map_err(|source| OverlayError::Mount {
            merged: overlay.merged.clone(),
            lowers: lowers.len(),
            source,
        })?;
        overlay.mounted = true;
        Ok(overlay)
    }

    /// The file system as a step sees it.
    #[must_use]
    pub fn merged(&self) -> &Path {
        &self.merged
    }

    /// The changes so far; to be read only, and only while nothing runs.
    #[must_use]
    pub fn upper(&self) -> &Path {
        &self.upper
    }

    /// Takes the mount down, removes what overlayfs needed beside the upper directory and returns the upper directory.
    ///
    /// # Errors
    /// Permanent if something still uses the mount; Transient if the rest can't be removed.
    pub fn unmount(mut self) -> Result<PathBuf, OverlayError> {
        unmount(&self.merged, UnmountFlags::empty()).map_err(|source| OverlayError::Unmount {
            merged: self.merged.clone(),
            source: source.into(),
        })?;
        self.mounted = false;
        fs::remove_dir_all(&self.work).map_err(prepare("remove", &self.work))?;
        fs::remove_dir(&self.merged).map_err(prepare("remove", &self.merged))?;
        Ok(self.upper.clone())
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        if self.mounted
            && let Err(error) = unmount(&self.merged, UnmountFlags::DETACH)
        {
            // The mount namespace is ours alone and takes the mount with it at the end.
            tracing::debug!(%error, merged = %self.merged.display(), "overlay stays mounted");
        }
    }
}

fn prepare<'a>(
    operation: &'static str,
    path: &'a Path,
) -> impl FnOnce(io::Error) -> OverlayError + 'a {
    move |source| OverlayError::Prepare {
        operation,
        path: path.to_owned(),
        source,
    }
}

/// Mode, owner and modification time of `from`, given to `to`.
fn take_attributes(from: &Path, to: &Path) -> Result<(), OverlayError> {
    let attributes = fs::metadata(from).map_err(prepare("read", from))?;
    chown(to, Some(attributes.uid()), Some(attributes.gid())).map_err(prepare("chown", to))?;
    fs::set_permissions(to, fs::Permissions::from_mode(attributes.mode() & 0o7777))
        .map_err(prepare("chmod", to))?;
    let times = Timestamps {
        last_access: Timespec {
            tv_sec: attributes.atime(),
            tv_nsec: attributes.atime_nsec(),
        },
        last_modification: Timespec {
            tv_sec: attributes.mtime(),
            tv_nsec: attributes.mtime_nsec(),
        },
    };
    utimensat(CWD, to, &times, AtFlags::empty())
        .map_err(|errno| prepare("set the times of", to)(errno.into()))
}

/// Lower directories are named by descriptor (`/proc/self/fd/N`): short, so that a page holds some 200 of them and 256 bytes any one, and
/// without characters that the option syntax would need escaped.
fn mount_overlay(lowers: &[PathBuf], overlay: &Overlay, xattrs: XattrPrefix) -> io::Result<()> {
    let open = |path: &Path| {
        rustix::fs::open(
            path,
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
    };
    let lowers = lowers
        .iter()
        .map(|lower| open(lower))
        .collect::<Result<Vec<_>, _>>()?;
    let (upper, work) = (open(&overlay.upper)?, open(&overlay.work)?);
    match mount_by_context(&lowers, &upper, &work, &overlay.merged, xattrs) {
        // Without `lowerdir+` (before Linux 6.7), or without the new calls at all (a seccomp profile may hide them).
        Err(Errno::INVAL | Errno::NOSYS | Errno::PERM) => {
            mount_by_options(&lowers, &upper, &work, &overlay.merged, xattrs)?
        }
        other => other?,
    }
    Ok(())
}

fn descriptor_path(descriptor: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", descriptor.as_raw_fd())
}

fn mount_by_context(
    lowers: &[OwnedFd],
    upper: &OwnedFd,
    work: &OwnedFd,
    merged: &Path,
    xattrs: XattrPrefix,
) -> Result<(), Errno> {
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&context, "source", "overlay")?;
    for lower in lowers {
        fsconfig_set_string(&context, "lowerdir+", descriptor_path(lower))?;
    }
    fsconfig_set_string(&context, "upperdir", descriptor_path(upper))?;
    fsconfig_set_string(&context, "workdir", descriptor_path(work))?;
    for (key, value) in standalone_upper(xattrs) {
        fsconfig_set_string(&context, *key, *value)?;
    }
    fsconfig_set_flag(&context, "volatile")?;
    if xattrs != XattrPrefix::Trusted {
        fsconfig_set_flag(&context, "userxattr")?;
    }
    fsconfig_create(&context)?;
    let detached = fsmount(
        &context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::empty(),
    )?;
    move_mount(
        &detached,
        "",
        CWD,
        merged,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )
}

fn mount_by_options(
    lowers: &[OwnedFd],
    upper: &OwnedFd,
    work: &OwnedFd,
    merged: &Path,
    xattrs: XattrPrefix,
) -> Result<(), Errno> {
    let lowers = lowers
        .iter()
        .map(descriptor_path)
        .collect::<Vec<_>>()
        .join(":");
    let mut options = format!(
        "lowerdir={lowers},upperdir={},workdir={},volatile",
        descriptor_path(upper),
        descriptor_path(work)
    );
    for (key, value) in standalone_upper(xattrs) {
        options.push_str(&format!(",{key}={value}"));
    }
    if xattrs != XattrPrefix::Trusted {
        options.push_str(",userxattr");
    }
    let options = CString::new(options).map_err(|_| Errno::INVAL)?;
    mount(
        "overlay",
        merged,
        "overlay",
        MountFlags::empty(),
        Some(options.as_c_str()),
    )
}

/// What keeps the upper directory free of references to the lower ones. `userxattr` implies the last two and refuses to be told them.
const fn standalone_upper(xattrs: XattrPrefix) -> &'static [(&'static str, &'static str)] {
    match xattrs {
        XattrPrefix::Trusted => &[
            ("index", "off"),
            ("metacopy", "off"),
            ("redirect_dir", "nofollow"),
        ],
        XattrPrefix::User | XattrPrefix::Own => &[("index", "off")],
    }
}
