//! How do the layers of an image become one tree? Each is moved into the one below it; nothing is copied.
//!
//! The layers are directories of their own ([`crate::unpack`]): their whiteouts and opaque marks are carried out here and then gone.

use std::ffi::OsStr;
use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, Stat, Timespec, Timestamps, fgetxattr, fgetxattr_query,
    flistxattr, fremovexattr, fsetxattr, futimens, openat, renameat, statat, unlinkat,
};
use rustix::io::Errno;

use super::FlatError;
use crate::attributes;
use crate::overlay::XattrPrefix;
use crate::unpack::is_mark;

const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// Moves `layers` (top first; at least one) together into the new directory `root`, which is on the same file system. The layers' directories are gone then.
///
/// # Errors
/// Transient: the disk.
pub fn merge(layers: &[PathBuf], marks: XattrPrefix, root: &Path) -> Result<(), FlatError> {
    let Some((lowest, others)) = layers.split_last() else {
        return fs::create_dir(root).map_err(FlatError::disk("create", root));
    };
    fs::rename(lowest, root).map_err(FlatError::disk("rename", lowest))?;
    Merging { marks }
        .clean(&open(root)?)
        .map_err(failed(root))?;
    add(others, marks, root)
}

/// Moves `layers` (top first) into `root`, which is on the same file system. The layers' directories are gone then.
///
/// # Errors
/// Transient: the disk.
pub fn add(layers: &[PathBuf], marks: XattrPrefix, root: &Path) -> Result<(), FlatError> {
    let merging = Merging { marks };
    let into = open(root)?;
    for layer in layers.iter().rev() {
        merging.fold(&open(layer)?, &into).map_err(failed(layer))?;
        fs::remove_dir_all(layer).map_err(FlatError::disk("remove", layer))?;
    }
    Ok(())
}

fn open(path: &Path) -> Result<OwnedFd, FlatError> {
    openat(CWD, path, DIRECTORY, Mode::empty())
        .map_err(|errno| FlatError::disk("open", path)(errno.into()))
}

fn failed(path: &Path) -> impl FnOnce(Errno) -> FlatError + '_ {
    move |errno| FlatError::disk("merge", path)(errno.into())
}

struct Merging {
    marks: XattrPrefix,
}

impl Merging {
    /// Moves what is in `from` into `into`, which then looks like `from` itself.
    fn fold(&self, from: &OwnedFd, into: &OwnedFd) -> Result<(), Errno> {
        let look = attributes::stat(from, "")?;
        for (name, kind) in names(from.as_fd())? {
            let name = OsStr::from_bytes(&name);
            let below = match statat(into, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => Some(FileType::from_raw_mode(stat.st_mode)),
                Err(Errno::NOENT) => None,
                Err(errno) => return Err(errno),
            };
            if self.is_whiteout(from.as_fd(), name, kind)? {
                if below.is_some() {
                    remove(into.as_fd(), name)?;
                }
                continue;
            }
            if kind != FileType::Directory {
                if below == Some(FileType::Directory) {
                    remove(into.as_fd(), name)?;
                }
                renameat(from, name, into, name)?;
                continue;
            }
            let directory = openat(from, name, DIRECTORY, Mode::empty())?;
            if below == Some(FileType::Directory) {
                let lower = openat(into, name, DIRECTORY, Mode::empty())?;
                if self.is_opaque(&directory)? {
                    for (name, _) in names(lower.as_fd())? {
                        remove(lower.as_fd(), OsStr::from_bytes(&name))?;
                    }
                }
                self.fold(&directory, &lower)?;
            } else {
                if below.is_some() {
                    remove(into.as_fd(), name)?;
                }
                self.clean(&directory)?;
                renameat(from, name, into, name)?;
            }
        }
        dress(from, &look, into)
    }

    /// Takes whiteouts and marks out of a directory that nothing is below.
    fn clean(&self, directory: &OwnedFd) -> Result<(), Errno> {
        if self.is_opaque(directory)? {
            fremovexattr(directory, self.marks.opaque())?;
        }
        let look = attributes::stat(directory, "")?;
        let mut changed = false;
        for (name, kind) in names(directory.as_fd())? {
            let name = OsStr::from_bytes(&name);
            if kind == FileType::Directory {
                self.clean(&openat(directory, name, DIRECTORY, Mode::empty())?)?;
            } else if self.is_whiteout(directory.as_fd(), name, kind)? {
                unlinkat(directory, name, AtFlags::empty())?;
                changed = true;
            }
        }
        match changed {
            true => futimens(directory, &times(&look)),
            false => Ok(()),
        }
    }

    fn is_whiteout(
        &self,
        directory: BorrowedFd<'_>,
        name: &OsStr,
        kind: FileType,
    ) -> Result<bool, Errno> {
        Ok(kind == self.marks.whiteout()
            && statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?.st_rdev == 0)
    }

    fn is_opaque(&self, directory: &OwnedFd) -> Result<bool, Errno> {
        let mut value = [0; 1];
        match fgetxattr(directory, self.marks.opaque(), &mut value) {
            Ok(length) => Ok(&value[..length] == b"y"),
            Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::RANGE) => Ok(false),
            Err(errno) => Err(errno),
        }
    }
}

/// Owner, mode, attributes and times of `from`, which looked like `look`, for `into`.
fn dress(from: &OwnedFd, look: &Stat, into: &OwnedFd) -> Result<(), Errno> {
    attributes::chown(into, "", (look.st_uid, look.st_gid))?;
    attributes::chmod(into, "", look.st_mode & 0o7777)?;
    let wanted = xattrs(from)?;
    let is_ours = |name: &&Vec<u8>| name.starts_with(b"user.") && !is_mark(name);
    for name in xattrs(into)?.iter().filter(is_ours) {
        if !wanted.contains(name) {
            fremovexattr(into, OsStr::from_bytes(name))?;
        }
    }
    for name in wanted.iter().filter(is_ours) {
        let name = OsStr::from_bytes(name);
        let mut value = vec![0; fgetxattr_query(from, name)?];
        let length = fgetxattr(from, name, &mut value)?;
        fsetxattr(
            into,
            name,
            &value[..length],
            rustix::fs::XattrFlags::empty(),
        )?;
    }
    futimens(into, &times(look))
}

fn xattrs(file: &OwnedFd) -> Result<Vec<Vec<u8>>, Errno> {
    // The kernel's own limit for the list of names.
    let mut list = vec![0; 64 << 10];
    let length = match flistxattr(file, &mut list) {
        Err(Errno::OPNOTSUPP) => 0,
        length => length?,
    };
    let names = list[..length].split(|byte| *byte == 0);
    Ok(names
        .filter(|name| !name.is_empty())
        .map(<[u8]>::to_vec)
        .collect())
}

fn names(directory: BorrowedFd<'_>) -> Result<Vec<(Vec<u8>, FileType)>, Errno> {
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes().to_vec();
        if name == b"." || name == b".." {
            continue;
        }
        let kind = match entry.file_type() {
            // Some file systems don't tell.
            FileType::Unknown => {
                let stat = statat(directory, &name[..], AtFlags::SYMLINK_NOFOLLOW)?;
                FileType::from_raw_mode(stat.st_mode)
            }
            kind => kind,
        };
        names.push((name, kind));
    }
    Ok(names)
}

/// Removes what is at `name`, with all that is below it.
fn remove(directory: BorrowedFd<'_>, name: &OsStr) -> Result<(), Errno> {
    match unlinkat(directory, name, AtFlags::empty()) {
        Err(Errno::ISDIR) => {
            let folder = openat(directory, name, DIRECTORY, Mode::empty())?;
            for (child, _) in names(folder.as_fd())? {
                remove(folder.as_fd(), OsStr::from_bytes(&child))?;
            }
            unlinkat(directory, name, AtFlags::REMOVEDIR)
        }
        other => other,
    }
}

fn times(look: &Stat) -> Timestamps {
    let time = |seconds, nanoseconds: u64| Timespec {
        tv_sec: seconds,
        tv_nsec: nanoseconds.cast_signed(),
    };
    Timestamps {
        last_access: time(look.st_atime, look.st_atime_nsec),
        last_modification: time(look.st_mtime, look.st_mtime_nsec),
    }
}
