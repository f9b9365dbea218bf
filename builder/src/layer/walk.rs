//! What did a stage change? One walk over its upper directory, in the order of the names' bytes.
//!
//! Whiteouts and opaque directories of overlayfs become `.wh.NAME` entries: an opaque directory becomes one whiteout for each lower entry
//! that it hides, which every reader understands. To know those, the walk follows the lower directories along; it also leaves out a directory
//! that is in the upper only because something below it changed. Sockets are skipped. `sysroot` comes last, so that of a file
//! that is linked there and elsewhere, the entry elsewhere is the first one (ostree's objects are links to the files of the tree).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat, lgetxattr, llistxattr, major, minor, openat,
    readlinkat, statat,
};
use rustix::io::Errno;

use super::LayerError;
use super::header::{Entry, Kind};

/// Takes the entries, with the open file where content follows.
pub trait Entries {
    /// The next entry.
    ///
    /// # Errors
    /// Whatever ends the walk.
    fn entry(&mut self, entry: Entry, content: Option<OwnedFd>) -> Result<(), LayerError>;
}

/// Walks `upper`, which lies above `lowers` (top first), and gives each change to `entries`. Times after `newest` become `newest`.
///
/// # Errors
/// See [`LayerError`].
pub fn walk(
    upper: &Path,
    lowers: &[PathBuf],
    newest: Option<u64>,
    entries: &mut dyn Entries,
) -> Result<(), LayerError> {
    let open = |path: &Path| {
        openat(CWD, path, DIRECTORY, Mode::empty()).map_err(|errno| LayerError::Read {
            path: path.to_owned(),
            source: errno.into(),
        })
    };
    let directory = Directory {
        upper: open(upper)?,
        lowers: lowers
            .iter()
            .map(|lower| open(lower))
            .collect::<Result<_, _>>()?,
        hidden: false,
    };
    Walk {
        entries,
        newest,
        links: HashMap::new(),
    }
    .directory(&directory, b"")
}

const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

struct Walk<'a> {
    entries: &'a mut dyn Entries,
    newest: Option<u64>,
    /// Device and inode of each file with several links, and the entry that holds its content.
    links: HashMap<(u64, u64), Vec<u8>>,
}

struct Directory {
    upper: OwnedFd,
    /// The same directory in the layers below, top first, as far down as it shines through.
    lowers: Vec<OwnedFd>,
    /// It is opaque: nothing of the lower ones is to be seen.
    hidden: bool,
}

impl Walk<'_> {
    /// `path` is empty for the root, else it ends with `/`.
    fn directory(&mut self, directory: &Directory, path: &[u8]) -> Result<(), LayerError> {
        let upper = directory.upper.as_fd();
        let mut names = names(upper, path)?;
        if directory.hidden {
            for name in lower_names(&directory.lowers, path)?.difference(&names) {
                self.whiteout(path, name, 0)?;
            }
        }
        let last = path
            .is_empty()
            .then(|| names.take(&b"sysroot"[..]))
            .flatten();
        for name in names.iter().chain(&last) {
            self.child(directory, path, name)?;
        }
        Ok(())
    }

    fn child(&mut self, parent: &Directory, path: &[u8], name: &[u8]) -> Result<(), LayerError> {
        let upper = parent.upper.as_fd();
        let mut full = [path, name].concat();
        let failed = |errno: Errno| read_failed(&full, errno);
        let stat = statat(upper, name, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
        let file_type = FileType::from_raw_mode(stat.st_mode);
        let mtime = seconds(&stat);
        if is_whiteout(&stat) {
            return self.whiteout(path, name, mtime);
        }
        let xattrs = Xattrs::read(upper, name, file_type).map_err(failed)?;
        let mut content = None;
        let kind = match file_type {
            FileType::Directory => {
                let directory = Directory {
                    upper: openat(upper, name, DIRECTORY, Mode::empty()).map_err(failed)?,
                    lowers: lower_directories(&parent.lowers, name).map_err(failed)?,
                    hidden: parent.hidden || xattrs.opaque,
                };
                full.push(b'/');
                if directory.hidden || !same_as_lower(&stat, &xattrs, &directory.lowers, &full)? {
                    self.emit(full.clone(), Kind::Directory, &stat, xattrs.kept, None)?;
                }
                return self.directory(&directory, &full);
            }
            FileType::Socket | FileType::Unknown => return Ok(()),
            _ if let Some(primary) = self.links.get(&(stat.st_dev, stat.st_ino)) => {
                return self.emit(
                    full,
                    Kind::HardLink(primary.clone()),
                    &stat,
                    BTreeMap::new(),
                    None,
                );
            }
            FileType::RegularFile => {
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                content = Some(openat(upper, name, flags, Mode::empty()).map_err(failed)?);
                Kind::File {
                    size_bytes: stat.st_size.unsigned_abs(),
                }
            }
            FileType::Symlink => Kind::Symlink(
                readlinkat(upper, name, Vec::new())
                    .map_err(failed)?
                    .into_bytes(),
            ),
            FileType::Fifo => Kind::Fifo,
            FileType::CharacterDevice => {
                Kind::CharacterDevice(major(stat.st_rdev), minor(stat.st_rdev))
            }
            FileType::BlockDevice => Kind::BlockDevice(major(stat.st_rdev), minor(stat.st_rdev)),
        };
        if stat.st_nlink > 1 {
            self.links.insert((stat.st_dev, stat.st_ino), full.clone());
        }
        self.emit(full, kind, &stat, xattrs.kept, content)
    }

    fn emit(
        &mut self,
        name: Vec<u8>,
        kind: Kind,
        stat: &Stat,
        xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
        content: Option<OwnedFd>,
    ) -> Result<(), LayerError> {
        let entry = Entry {
            name,
            kind,
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            mtime: self.clamp(seconds(stat)),
            xattrs,
        };
        self.entries.entry(entry, content)
    }

    fn whiteout(&mut self, path: &[u8], name: &[u8], mtime: u64) -> Result<(), LayerError> {
        let entry = Entry {
            name: [path, b".wh.", name].concat(),
            kind: Kind::File { size_bytes: 0 },
            mode: 0,
            uid: 0,
            gid: 0,
            mtime: self.clamp(mtime),
            xattrs: BTreeMap::new(),
        };
        self.entries.entry(entry, None)
    }

    fn clamp(&self, mtime: u64) -> u64 {
        self.newest.map_or(mtime, |newest| mtime.min(newest))
    }
}

/// Whole seconds; before 1970 is 1970.
fn seconds(stat: &Stat) -> u64 {
    u64::try_from(stat.st_mtime).unwrap_or(0)
}

fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

/// A path inside the layer, for a message.
fn read_failed(path: &[u8], errno: Errno) -> LayerError {
    LayerError::Read {
        path: Path::new(OsStr::from_bytes(path)).to_owned(),
        source: errno.into(),
    }
}

fn names(directory: BorrowedFd<'_>, path: &[u8]) -> Result<BTreeSet<Vec<u8>>, LayerError> {
    let read = || -> Result<BTreeSet<Vec<u8>>, Errno> {
        let mut names = BTreeSet::new();
        for entry in Dir::read_from(directory)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                names.insert(name.to_vec());
            }
        }
        Ok(names)
    };
    read().map_err(|errno| read_failed(path, errno))
}

/// What is visible in `lowers` together.
fn lower_names(lowers: &[OwnedFd], path: &[u8]) -> Result<BTreeSet<Vec<u8>>, LayerError> {
    let (mut visible, mut gone) = (BTreeSet::new(), BTreeSet::new());
    for lower in lowers {
        for name in names(lower.as_fd(), path)? {
            let stat = statat(lower, &name[..], AtFlags::SYMLINK_NOFOLLOW)
                .map_err(|errno| read_failed(path, errno))?;
            if is_whiteout(&stat) {
                gone.insert(name);
            } else if !gone.contains(&name) {
                visible.insert(name);
            }
        }
    }
    Ok(visible)
}

/// The directories called `name` in `lowers` that shine through each other.
fn lower_directories(lowers: &[OwnedFd], name: &[u8]) -> Result<Vec<OwnedFd>, Errno> {
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
    Ok(directories)
}

/// True if the upper directory says nothing that the topmost lower one doesn't.
fn same_as_lower(
    stat: &Stat,
    xattrs: &Xattrs,
    lowers: &[OwnedFd],
    path: &[u8],
) -> Result<bool, LayerError> {
    let Some(lower) = lowers.first() else {
        return Ok(false);
    };
    let failed = |errno: Errno| read_failed(path, errno);
    let below = rustix::fs::fstat(lower).map_err(failed)?;
    let attributes = |stat: &Stat| (stat.st_mode, stat.st_uid, stat.st_gid);
    Ok(attributes(stat) == attributes(&below)
        && xattrs.kept
            == Xattrs::read(lower.as_fd(), b".", FileType::Directory)
                .map_err(failed)?
                .kept)
}

#[derive(Default)]
struct Xattrs {
    /// What goes into the image.
    kept: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Overlayfs' mark.
    opaque: bool,
}

impl Xattrs {
    /// By way of `/proc/self/fd`, as there is no call for a name in an open directory.
    fn read(directory: BorrowedFd<'_>, name: &[u8], file_type: FileType) -> Result<Self, Errno> {
        // The `user.` attributes that we keep and the mark exist on files and directories only, capabilities on files.
        if !matches!(file_type, FileType::RegularFile | FileType::Directory) {
            return Ok(Self::default());
        }
        let prefix = format!("/proc/self/fd/{}/", directory.as_raw_fd());
        let path = CString::new([prefix.as_bytes(), name].concat()).map_err(|_| Errno::INVAL)?;
        let mut list = vec![0; 1024];
        let listed = loop {
            match llistxattr(&path, &mut list[..]) {
                Ok(length) => break length,
                Err(Errno::RANGE) => list.resize(64 << 10, 0),
                Err(Errno::OPNOTSUPP) => break 0,
                Err(errno) => return Err(errno),
            }
        };
        let mut xattrs = Self::default();
        for key in list[..listed]
            .split(|byte| *byte == 0)
            .filter(|key| !key.is_empty())
        {
            if matches!(key, b"user.overlay.opaque" | b"trusted.overlay.opaque") {
                xattrs.opaque = value(&path, key)? == b"y";
            } else if is_kept(key) {
                xattrs.kept.insert(key.to_vec(), value(&path, key)?);
            }
        }
        Ok(xattrs)
    }
}

fn value(path: &CString, key: &[u8]) -> Result<Vec<u8>, Errno> {
    // The kernel's limit for one attribute.
    let mut value = vec![0; 64 << 10];
    let length = lgetxattr(path, key, &mut value[..])?;
    value.truncate(length);
    Ok(value)
}

/// Labels of SELinux come from the policy of the machine that runs the image, and overlayfs' marks are not content.
fn is_kept(key: &[u8]) -> bool {
    key == b"security.capability"
        || (key.starts_with(b"user.") && !key.starts_with(b"user.overlay."))
}
