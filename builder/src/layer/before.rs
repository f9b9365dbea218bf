//! What was at this place before? The layers below an upper directory know, or the index of a flat root.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat, openat, readlinkat, statat};
use rustix::io::Errno;

use super::index::{Index, Node};
use super::walk::{DIRECTORY, is_whiteout, names};
use super::xattrs::Xattrs;

/// A directory as it was.
pub(super) enum Before<'a> {
    /// The same directory in the layers below, top first, as far down as it shines through.
    Lowers(Vec<OwnedFd>),
    /// In the index; none if it wasn't there.
    Indexed(&'a Index, Option<&'a Node>),
}

impl<'a> Before<'a> {
    /// What was visible in it.
    pub fn names(&self) -> Result<BTreeSet<Vec<u8>>, Errno> {
        let lowers = match self {
            Self::Lowers(lowers) => lowers,
            Self::Indexed(_, node) => return Ok(node.map(Node::names).unwrap_or_default()),
        };
        let (mut visible, mut gone) = (BTreeSet::new(), BTreeSet::new());
        for lower in lowers {
            for name in names(lower.as_fd())? {
                let stat = statat(lower, &name[..], AtFlags::SYMLINK_NOFOLLOW)?;
                if is_whiteout(&stat) {
                    gone.insert(name);
                } else if !gone.contains(&name) {
                    visible.insert(name);
                }
            }
        }
        Ok(visible)
    }

    /// True if something called `name` was in it.
    pub fn has(&self, name: &[u8]) -> Result<bool, Errno> {
        match self {
            Self::Lowers(lowers) => Ok(topmost(lowers, name)?.is_some()),
            Self::Indexed(_, node) => Ok(node.is_some_and(|node| node.child(name).is_some())),
        }
    }

    /// The directory called `name` in it.
    pub fn directory(&self, name: &[u8]) -> Result<Self, Errno> {
        let lowers = match self {
            Self::Lowers(lowers) => lowers,
            Self::Indexed(index, node) => {
                let child = node.and_then(|node| node.child(name));
                return Ok(Self::Indexed(index, child));
            }
        };
        let mut directories = Vec::new();
        for lower in lowers {
            match openat(lower, name, DIRECTORY, Mode::empty()) {
                Ok(directory) => {
                    let opaque = Xattrs::read(lower.as_fd(), name, FileType::Directory)?.opaque;
                    directories.push(directory);
                    if opaque {
                        break;
                    }
                }
                Err(Errno::NOENT) => {}
                // A file, a link or a whiteout: it hides what is below.
                Err(Errno::NOTDIR | Errno::LOOP) => break,
                Err(errno) => return Err(errno),
            }
        }
        Ok(Self::Lowers(directories))
    }

    /// True if this directory itself was there, with these attributes; times don't count, as every entry changes them.
    pub fn is_same_directory(&self, stat: &Stat, xattrs: &Xattrs) -> Result<bool, Errno> {
        let attributes = |stat: &Stat| (stat.st_mode, stat.st_uid, stat.st_gid);
        match self {
            Self::Lowers(lowers) => {
                let Some(lower) = lowers.first() else {
                    return Ok(false);
                };
                let below = rustix::fs::fstat(lower)?;
                Ok(attributes(stat) == attributes(&below)
                    && xattrs.kept == Xattrs::read(lower.as_fd(), b".", FileType::Directory)?.kept)
            }
            Self::Indexed(_, node) => {
                Ok(node.is_some_and(|node| node.is_same_directory(stat, xattrs)))
            }
        }
    }

    /// True if `name`, which is no directory and in `now` looks like `stat`, was there just so. `xattrs` are asked for only if all else is the same.
    pub fn is_same(
        &self,
        now: BorrowedFd<'_>,
        name: &[u8],
        stat: &Stat,
        xattrs: &dyn Fn() -> Result<Xattrs, Errno>,
    ) -> Result<bool, Errno> {
        match self {
            Self::Indexed(index, node) => match node.and_then(|node| node.child(name)) {
                Some(node) => index.is_same(node, now, name, stat, xattrs),
                None => Ok(false),
            },
            // Overlayfs copies a file up with one name; more are this stage's doing.
            Self::Lowers(_) if stat.st_nlink > 1 => Ok(false),
            Self::Lowers(lowers) => {
                let Some((lower, below)) = topmost(lowers, name)? else {
                    return Ok(false);
                };
                if Looks::of(stat) != Looks::of(&below) {
                    return Ok(false);
                }
                let file_type = FileType::from_raw_mode(stat.st_mode);
                Ok(Xattrs::read(lower, name, file_type)?.kept == xattrs()?.kept
                    && has_same_content(lower, now, name, file_type)?)
            }
        }
    }

    /// How many names the very file `stat` had if `name` was one of them.
    pub fn links(&self, name: &[u8], stat: &Stat) -> Option<u64> {
        match self {
            Self::Lowers(_) => None,
            Self::Indexed(_, node) => node.and_then(|node| node.child(name)?.links(stat)),
        }
    }
}

/// What of a file's attributes an image keeps; the time in nanoseconds, so that a rewritten file is another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Looks {
    pub mode: u32,
    pub owner: (u32, u32),
    pub device: u64,
    pub size: i64,
    pub modified: (i64, u64),
}

impl Looks {
    pub fn of(stat: &Stat) -> Self {
        Self {
            mode: stat.st_mode,
            owner: (stat.st_uid, stat.st_gid),
            device: stat.st_rdev,
            size: stat.st_size,
            modified: (stat.st_mtime, stat.st_mtime_nsec),
        }
    }
}

/// What is visible under `name`, and in which layer.
fn topmost<'b>(
    lowers: &'b [OwnedFd],
    name: &[u8],
) -> Result<Option<(BorrowedFd<'b>, Stat)>, Errno> {
    for lower in lowers {
        match statat(lower, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if is_whiteout(&stat) => return Ok(None),
            Ok(stat) => return Ok(Some((lower.as_fd(), stat))),
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(None)
}

fn has_same_content(
    one: BorrowedFd<'_>,
    other: BorrowedFd<'_>,
    name: &[u8],
    file_type: FileType,
) -> Result<bool, Errno> {
    match file_type {
        FileType::Symlink => {
            Ok(readlinkat(one, name, Vec::new())? == readlinkat(other, name, Vec::new())?)
        }
        FileType::RegularFile => {
            let compare = || -> io::Result<bool> {
                let (mut one, mut other) = (open_file(one, name)?, open_file(other, name)?);
                let (mut left, mut right) = (vec![0; 64 << 10], vec![0; 64 << 10]);
                loop {
                    let read = one.read(&mut left)?;
                    if read == 0 {
                        return Ok(other.read(&mut right)? == 0);
                    }
                    match other.read_exact(&mut right[..read]) {
                        Ok(()) if left[..read] == right[..read] => {}
                        Ok(()) => return Ok(false),
                        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                            return Ok(false);
                        }
                        Err(error) => return Err(error),
                    }
                }
            };
            compare().map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
        }
        _ => Ok(true),
    }
}

/// Opens a file for its content.
pub(super) fn open_file(directory: BorrowedFd<'_>, name: &[u8]) -> Result<File, Errno> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(directory, name, flags, Mode::empty()).map(File::from)
}
