//! Whose is this file, and with which mode? The kernel's answer, or our own records where we may not tell the kernel.
//!
//! A process without any right can make files only as itself, and can't read what a mode like 0000 forbids it. So in the copy tier owners, modes
//! and file capabilities are kept in this process, by inode, and what is on disk belongs to us and lets us in. What has no record belongs to
//! root, as everything does that the builder makes by itself. In all other tiers each function is the system call that it is named for.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, Stat, StatxFlags, Uid, XattrFlags, chmodat, chownat, fchmod,
    fsetxattr, lsetxattr, statat, statx,
};
use rustix::io::Errno;

/// Where a file is: a directory and a path in it, or the open file itself and "".
type Place<'a> = (BorrowedFd<'a>, &'a Path);

/// The kernel's name of a file; the time when it was made tells files apart that had one inode after each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    device: u64,
    inode: u64,
    born: (i64, u32),
}

#[derive(Clone, Debug, Default)]
struct Record {
    uid: u32,
    gid: u32,
    /// The twelve permission bits; those on disk if absent.
    mode: Option<u32>,
    capability: Option<Vec<u8>>,
}

static RECORDS: OnceLock<Mutex<HashMap<Key, Record>>> = OnceLock::new();

const CAPABILITY: &str = "security.capability";
const SET_GROUP_ID: u32 = 0o2000;

/// From now on this process keeps records.
pub fn keep_records() {
    RECORDS.get_or_init(Mutex::default);
}

fn records() -> Option<MutexGuard<'static, HashMap<Key, Record>>> {
    let records = RECORDS.get()?;
    Some(records.lock().unwrap_or_else(PoisonError::into_inner))
}

fn key((directory, path): Place<'_>) -> Result<Key, Errno> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::EMPTY_PATH;
    let wanted = StatxFlags::INO | StatxFlags::BTIME;
    let found = statx(directory, path, flags, wanted)?;
    Ok(Key {
        device: rustix::fs::makedev(found.stx_dev_major, found.stx_dev_minor),
        inode: found.stx_ino,
        born: (found.stx_btime.tv_sec, found.stx_btime.tv_nsec),
    })
}

/// Gives `path` in `directory` (a link itself, not what it leads to; the directory itself if empty) an owner.
///
/// # Errors
/// The kernel's.
pub fn chown(
    directory: impl AsFd,
    path: impl AsRef<Path>,
    (uid, gid): (u32, u32),
) -> Result<(), Errno> {
    let place = (directory.as_fd(), path.as_ref());
    if RECORDS.get().is_none() {
        let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
        let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::EMPTY_PATH;
        return chownat(place.0, place.1, Some(uid), Some(gid), flags);
    }
    change(place, |record| {
        (record.uid, record.gid) = (uid, gid);
        // As the kernel does.
        record.capability = None;
    })
}

/// Gives `path` in `directory`, which is no link, a mode.
///
/// # Errors
/// The kernel's.
pub fn chmod(directory: impl AsFd, path: impl AsRef<Path>, mode: u32) -> Result<(), Errno> {
    let place = (directory.as_fd(), path.as_ref());
    let on_disk = match RECORDS.get() {
        None => mode,
        Some(_) => {
            change(place, |record| record.mode = Some(mode & 0o7777))?;
            // We must get in ourselves, and nobody gets more than we.
            match FileType::from_raw_mode(kernel_stat(place)?.st_mode) {
                FileType::Directory => 0o700,
                _ => 0o600,
            }
        }
    };
    let on_disk = Mode::from_raw_mode(on_disk);
    match place.1.as_os_str().is_empty() {
        true => fchmod(place.0, on_disk),
        false => chmodat(place.0, place.1, on_disk, AtFlags::empty()),
    }
}

/// What `path` in `directory` (a link itself; the directory itself if empty) looks like.
///
/// # Errors
/// The kernel's.
pub fn stat(directory: impl AsFd, path: impl AsRef<Path>) -> Result<Stat, Errno> {
    let place = (directory.as_fd(), path.as_ref());
    let mut stat = kernel_stat(place)?;
    if let Some(records) = records() {
        let record = records.get(&key(place)?).cloned().unwrap_or_default();
        (stat.st_uid, stat.st_gid) = (record.uid, record.gid);
        if let Some(mode) = record.mode {
            stat.st_mode = (stat.st_mode & !0o7777) | mode;
        }
    }
    Ok(stat)
}

/// Sets an extended attribute of `path` in `directory` (a link itself; the directory itself if empty).
///
/// # Errors
/// The kernel's.
pub fn set_xattr(
    directory: impl AsFd,
    path: impl AsRef<Path>,
    name: impl AsRef<OsStr>,
    value: &[u8],
) -> Result<(), Errno> {
    let place = (directory.as_fd(), path.as_ref());
    let name = name.as_ref();
    if name == CAPABILITY && RECORDS.get().is_some() {
        return change(place, |record| record.capability = Some(value.to_vec()));
    }
    if place.1.as_os_str().is_empty() {
        return fsetxattr(place.0, name, value, XattrFlags::empty());
    }
    if place.1.is_absolute() {
        return lsetxattr(place.1, name, value, XattrFlags::empty());
    }
    // There is no call for a name in an open directory.
    let by_descriptor = Path::new("/proc/self/fd")
        .join(place.0.as_raw_fd().to_string())
        .join(place.1);
    lsetxattr(by_descriptor, name, value, XattrFlags::empty())
}

/// Passes a set-group-ID bit of `directory` on to the new directory `path` in it, as the kernel does where it knows of it.
///
/// # Errors
/// The kernel's.
pub fn inherit(directory: impl AsFd, path: &Path) -> Result<(), Errno> {
    if RECORDS.get().is_none() {
        return Ok(());
    }
    let parent = path.parent().unwrap_or(Path::new(""));
    let above = stat(&directory, parent)?.st_mode & SET_GROUP_ID;
    let mode = stat(&directory, path)?.st_mode & 0o7777;
    match above {
        0 => Ok(()),
        bit => change((directory.as_fd(), path), |record| {
            record.mode = Some(mode | bit)
        }),
    }
}

/// The file capability that we may not show the kernel.
///
/// # Errors
/// The kernel's.
pub fn recorded_xattrs(
    directory: impl AsFd,
    path: impl AsRef<Path>,
) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, Errno> {
    let Some(records) = records() else {
        return Ok(BTreeMap::new());
    };
    let record = records.get(&key((directory.as_fd(), path.as_ref()))?);
    let capability = record.and_then(|record| record.capability.clone());
    Ok(capability
        .map(|value| (CAPABILITY.as_bytes().to_vec(), value))
        .into_iter()
        .collect())
}

fn change(place: Place<'_>, change: impl FnOnce(&mut Record)) -> Result<(), Errno> {
    let key = key(place)?;
    if let Some(mut records) = records() {
        change(records.entry(key).or_default());
    }
    Ok(())
}

fn kernel_stat((directory, path): Place<'_>) -> Result<Stat, Errno> {
    statat(
        directory,
        path,
        AtFlags::SYMLINK_NOFOLLOW | AtFlags::EMPTY_PATH,
    )
}
