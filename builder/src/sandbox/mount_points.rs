//! Which mount points did we have to make, and how do they vanish again without a trace?
//!
//! When they go, the step may have put links where folders were: a way that now leads through a link leads elsewhere, and nothing there is ours to remove.
//! `/dev`, `/proc` and `/sys` stay, as with other builders: whatever runs the image needs them.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, ResolveFlags, Timestamps, openat, openat2, statat, unlinkat,
    utimensat,
};
use rustix::io::Errno;

use crate::root::{Root, RootError};

/// What a mount needs below it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// For a mounted directory.
    Directory,
    /// For a mounted file.
    File,
}

/// What was made, in order.
#[derive(Debug, Default)]
pub(super) struct MountPoints {
    made: Vec<Made>,
}

#[derive(Debug)]
struct Made {
    /// Canonical.
    path: PathBuf,
    parent: PathBuf,
    /// The parent's times before, and its modification time after.
    before: Timestamps,
    after: (i64, i64),
}

impl MountPoints {
    /// Makes what is missing of `wanted`.
    ///
    /// # Errors
    /// User, if something on the way is no directory.
    pub(super) fn make(root: &Root, wanted: &[(PathBuf, Shape)]) -> Result<Self, RootError> {
        let mut points = Self::default();
        for (path, shape) in wanted {
            if let Err(error) = points.make_one(root, path, *shape) {
                // The first error counts; what can't be removed here was made in a stage that has failed.
                let _ = points.remove(root);
                return Err(error);
            }
        }
        Ok(points)
    }

    fn make_one(&mut self, root: &Root, path: &Path, shape: Shape) -> Result<(), RootError> {
        let canonical = root.canonical(path)?;
        let mut current = PathBuf::new();
        let parts: Vec<_> = canonical.components().collect();
        for (index, part) in parts.iter().enumerate() {
            let parent = current.clone();
            current.push(part);
            if root.file_type(&current)?.is_some() {
                continue;
            }
            let failed = |errno: Errno| RootError::Path {
                operation: "make the mount point",
                path: current.clone(),
                source: errno.into(),
            };
            let before = times(root, &parent).map_err(failed)?;
            if index + 1 < parts.len() || shape == Shape::Directory {
                rustix::fs::mkdirat(root, &current, Mode::from_raw_mode(0o755)).map_err(failed)?;
            } else {
                let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
                openat(root, &current, flags, Mode::from_raw_mode(0o644)).map_err(failed)?;
            }
            let after = modified(&times(root, &parent).map_err(failed)?);
            self.made.push(Made {
                path: current.clone(),
                parent,
                before,
                after,
            });
        }
        Ok(())
    }

    /// Removes what is still as we made it. A parent that the step didn't touch gets its times back.
    ///
    /// # Errors
    /// User, if the file system refuses.
    pub(super) fn remove(self, root: &Root) -> Result<(), RootError> {
        for Made {
            path,
            parent,
            before,
            after,
        } in self.made.into_iter().rev()
        {
            let failed = |errno: Errno| RootError::Path {
                operation: "remove the mount point",
                path: path.clone(),
                source: errno.into(),
            };
            let Some(name) = path.file_name() else {
                continue;
            };
            let Some(folder) = same_folder(root, &parent).map_err(failed)? else {
                continue;
            };
            let now = times(&folder, Path::new("")).map_err(failed)?;
            let kept = KEPT.iter().any(|kept| path == Path::new(kept));
            if !kept && !remove(&folder, name).map_err(failed)? {
                continue;
            }
            let restored = if modified(&now) == after { before } else { now };
            utimensat(&folder, ".", &restored, AtFlags::empty()).map_err(failed)?;
        }
        Ok(())
    }
}

/// What every image may have, whoever made it.
const KEPT: [&str; 3] = ["dev", "proc", "sys"];

/// Removes an empty folder or file; false if there is something else, which is the step's own doing.
fn remove(folder: &OwnedFd, name: &OsStr) -> Result<bool, Errno> {
    let attributes = match statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(attributes) => attributes,
        Err(Errno::NOENT) => return Ok(false),
        Err(errno) => return Err(errno),
    };
    let removed = match FileType::from_raw_mode(attributes.st_mode) {
        FileType::Directory => unlinkat(folder, name, AtFlags::REMOVEDIR),
        FileType::RegularFile if attributes.st_size == 0 => {
            unlinkat(folder, name, AtFlags::empty())
        }
        _ => return Ok(false),
    };
    match removed {
        Ok(()) => Ok(true),
        Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// The folder `path`, unless the way to it has changed.
fn same_folder(root: &Root, path: &Path) -> Result<Option<OwnedFd>, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let way = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    match openat2(root, here(path), flags, Mode::empty(), way) {
        Ok(folder) => Ok(Some(folder)),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
        Err(errno) => Err(errno),
    }
}

fn times(root: impl AsFd, path: &Path) -> Result<Timestamps, Errno> {
    let attributes = statat(root, here(path), AtFlags::empty())?;
    let time = |seconds: i64, nanos: u64| rustix::fs::Timespec {
        tv_sec: seconds,
        tv_nsec: nanos.cast_signed(),
    };
    Ok(Timestamps {
        last_access: time(attributes.st_atime, attributes.st_atime_nsec),
        last_modification: time(attributes.st_mtime, attributes.st_mtime_nsec),
    })
}

fn modified(times: &Timestamps) -> (i64, i64) {
    (
        times.last_modification.tv_sec,
        times.last_modification.tv_nsec,
    )
}

/// The root itself has an empty canonical path.
fn here(path: &Path) -> &Path {
    if path.as_os_str().is_empty() {
        Path::new(".")
    } else {
        path
    }
}
