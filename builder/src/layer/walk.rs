//! What did a stage change? One walk over the tree after it, in the order of the names' bytes, beside what was there before.
//!
//! The tree is an overlay's upper directory, which holds what was touched, or a flat root, which holds everything. Either way an entry is a
//! change if it is new or looks other than before, and a name that is gone becomes a `.wh.NAME` entry; so both ways give the same layer. Overlayfs'
//! opaque directories become one whiteout for each entry that they hide, which every reader understands. Sockets are left out. `sysroot` comes
//! last, so that of a file that is linked there and elsewhere, the entry elsewhere is the first one (ostree's objects are links to the files of
//! the tree).

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Dir, FileType, Mode, OFlags, Stat, major, minor, openat, readlinkat};
use rustix::io::Errno;

use super::LayerError;
use super::before::Before;
use super::header::{Entry, Kind};
use super::index::Index;
use super::xattrs::Xattrs;
use crate::attributes;
use crate::root::DEEPEST;

/// Takes the entries, with the place of a file's content: a directory and a path in it.
pub trait Entries {
    /// The next entry.
    ///
    /// # Errors
    /// Whatever ends the walk.
    fn entry(&mut self, entry: Entry, place: Place<'_>) -> Result<(), LayerError>;
}

/// Where an entry is on disk.
pub type Place<'a> = (BorrowedFd<'a>, &'a [u8]);

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
    let before = Before::Lowers(
        lowers
            .iter()
            .map(|lower| open(lower))
            .collect::<Result<_, _>>()?,
    );
    let mut layer = Layer::new(newest, entries);
    Walk {
        found: &mut |found, place| layer.take(found, place),
    }
    .directory(&open(upper)?, &before, false, b"")
}

/// What changed in the flat root `root` since `index` was made; an empty list if nothing did.
///
/// # Errors
/// See [`LayerError`].
pub fn changes(root: &Path, index: &Index) -> Result<Vec<Found>, LayerError> {
    let mut all = Vec::new();
    let before = Before::Indexed(index, Some(index.root()));
    let mut found = |found, _: Place<'_>| {
        all.push(found);
        Ok(())
    };
    Walk { found: &mut found }.directory(&open(root)?, &before, true, b"")?;
    // A file with a new name is told under its old names, too, as overlayfs does by copying it up.
    let changed = all.iter().filter(|found| found.is_change);
    let linked: HashSet<_> = changed.filter_map(|found| found.inode).collect();
    all.retain(|found| {
        let is_linked = || found.inode.is_some_and(|inode| linked.contains(&inode));
        found.is_change || (found.has_more_names && is_linked())
    });
    // The content of an ostree object never changes: a step that writes to the file that it is linked to means that file. On an overlay it writes to a copy.
    all.retain(|found| !(found.was_there && found.entry.name.starts_with(OBJECTS)));
    Ok(all)
}

const OBJECTS: &[u8] = b"sysroot/ostree/repo/objects/";

/// Gives what [`changes`] found in `root` to `entries`.
///
/// # Errors
/// See [`LayerError`].
pub fn replay(
    root: &Path,
    changes: &[Found],
    newest: Option<u64>,
    entries: &mut dyn Entries,
) -> Result<(), LayerError> {
    let root = open(root)?;
    let mut layer = Layer::new(newest, entries);
    for found in changes {
        layer.take(found.clone(), (root.as_fd(), &found.entry.name))?;
    }
    Ok(())
}

/// An entry that is, or may be, a change.
#[derive(Clone, Debug)]
pub struct Found {
    entry: Entry,
    /// Device and inode, if it has other names.
    inode: Option<(u64, u64)>,
    /// It isn't as it was.
    is_change: bool,
    /// The same inode had this name before.
    was_there: bool,
    /// And fewer names in all.
    has_more_names: bool,
}

pub(super) const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// What makes entries of a layer from what is found: times that are not too new, and links between names.
struct Layer<'a> {
    entries: &'a mut dyn Entries,
    newest: Option<u64>,
    /// Device and inode of each file with several names, and the entry that holds its content.
    links: HashMap<(u64, u64), Vec<u8>>,
}

impl<'a> Layer<'a> {
    fn new(newest: Option<u64>, entries: &'a mut dyn Entries) -> Self {
        Self {
            entries,
            newest,
            links: HashMap::new(),
        }
    }

    fn take(&mut self, found: Found, place: Place<'_>) -> Result<(), LayerError> {
        let Found {
            mut entry, inode, ..
        } = found;
        entry.mtime = self
            .newest
            .map_or(entry.mtime, |newest| entry.mtime.min(newest));
        if let Some(inode) = inode {
            if let Some(primary) = self.links.get(&inode) {
                // With its attributes: containerd gives a link to its owner again, and that takes a file's capabilities away.
                entry.kind = Kind::HardLink(primary.clone());
            } else {
                self.links.insert(inode, entry.name.clone());
            }
        }
        self.entries.entry(entry, place)
    }
}

struct Walk<'a> {
    found: &'a mut dyn FnMut(Found, Place<'_>) -> Result<(), LayerError>,
}

impl Walk<'_> {
    /// `path` is empty for the root, else it ends with `/`. If the directory is `whole`, what it doesn't hold is gone.
    fn directory(
        &mut self,
        directory: &OwnedFd,
        before: &Before<'_>,
        whole: bool,
        path: &[u8],
    ) -> Result<(), LayerError> {
        not_too_deep(Path::new(OsStr::from_bytes(path)))?;
        let failed = |errno| read_failed(path, errno);
        let present = names(directory.as_fd()).map_err(failed)?;
        let mut names = present.clone();
        if whole {
            names.extend(before.names().map_err(failed)?);
        }
        let last = path
            .is_empty()
            .then(|| names.take(&b"sysroot"[..]))
            .flatten();
        for name in names.iter().chain(&last) {
            if present.contains(name) {
                self.child(directory.as_fd(), before, whole, path, name)?;
            } else {
                self.whiteout(directory.as_fd(), path, name)?;
            }
        }
        Ok(())
    }

    fn child(
        &mut self,
        directory: BorrowedFd<'_>,
        before: &Before<'_>,
        whole: bool,
        path: &[u8],
        name: &[u8],
    ) -> Result<(), LayerError> {
        let mut full = [path, name].concat();
        let failed = |errno: Errno| read_failed(&full, errno);
        let stat = attributes::stat(directory, OsStr::from_bytes(name)).map_err(failed)?;
        let file_type = FileType::from_raw_mode(stat.st_mode);
        let xattrs = || Xattrs::read(directory, name, file_type);
        let kind = match file_type {
            FileType::Directory => {
                let xattrs = xattrs().map_err(failed)?;
                let child = openat(directory, name, DIRECTORY, Mode::empty()).map_err(failed)?;
                let below = before.directory(name).map_err(failed)?;
                let is_change = !below.is_same_directory(&stat, &xattrs).map_err(failed)?;
                let whole = whole || xattrs.opaque;
                full.push(b'/');
                if is_change {
                    let found = Found::new(full.clone(), Kind::Directory, &stat, xattrs);
                    (self.found)(found, (directory, name))?;
                }
                return self.directory(&child, &below, whole, &full);
            }
            FileType::CharacterDevice if is_whiteout(&stat) => {
                return match whole && !before.has(name).map_err(failed)? {
                    true => Ok(()),
                    false => self.whiteout(directory, path, name),
                };
            }
            FileType::Socket | FileType::Unknown => {
                return match before.has(name).map_err(failed)? {
                    true => self.whiteout(directory, path, name),
                    false => Ok(()),
                };
            }
            FileType::RegularFile => Kind::File {
                size_bytes: stat.st_size.unsigned_abs(),
            },
            FileType::Symlink => Kind::Symlink(
                readlinkat(directory, name, Vec::new())
                    .map_err(failed)?
                    .into_bytes(),
            ),
            FileType::Fifo => Kind::Fifo,
            FileType::CharacterDevice => {
                Kind::CharacterDevice(major(stat.st_rdev), minor(stat.st_rdev))
            }
            FileType::BlockDevice => Kind::BlockDevice(major(stat.st_rdev), minor(stat.st_rdev)),
        };
        let is_same = before
            .is_same(directory, name, &stat, &xattrs)
            .map_err(failed)?;
        if is_same && stat.st_nlink == 1 {
            return Ok(());
        }
        let links = before.links(name, &stat);
        let found = Found {
            inode: (stat.st_nlink > 1).then_some((stat.st_dev, stat.st_ino)),
            is_change: !is_same,
            was_there: links.is_some(),
            has_more_names: links.is_some_and(|links| links < stat.st_nlink),
            ..Found::new(full.clone(), kind, &stat, xattrs().map_err(failed)?)
        };
        (self.found)(found, (directory, name))
    }

    /// Its time is always the same, as only overlayfs knows when a name went.
    fn whiteout(
        &mut self,
        directory: BorrowedFd<'_>,
        path: &[u8],
        name: &[u8],
    ) -> Result<(), LayerError> {
        let entry = Entry {
            name: [path, b".wh.", name].concat(),
            kind: Kind::File { size_bytes: 0 },
            mode: 0,
            uid: 0,
            gid: 0,
            mtime: 0,
            xattrs: BTreeMap::new(),
        };
        let found = Found {
            entry,
            inode: None,
            is_change: true,
            was_there: false,
            has_more_names: false,
        };
        (self.found)(found, (directory, name))
    }
}

impl Found {
    fn new(name: Vec<u8>, kind: Kind, stat: &Stat, xattrs: Xattrs) -> Self {
        let entry = Entry {
            name,
            kind,
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            // Whole seconds; before 1970 is 1970.
            mtime: u64::try_from(stat.st_mtime).unwrap_or(0),
            xattrs: xattrs.kept,
        };
        Self {
            entry,
            inode: None,
            is_change: true,
            was_there: false,
            has_more_names: false,
        }
    }
}

pub(super) fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

/// Each level takes a descriptor and some of the stack of whoever walks down.
pub(super) fn not_too_deep(path: &Path) -> Result<(), LayerError> {
    match path.iter().nth(DEEPEST) {
        None => Ok(()),
        Some(_) => Err(LayerError::TooDeep {
            path: path.iter().collect(),
        }),
    }
}

/// A path inside the layer, for a message.
pub(super) fn read_failed(path: &[u8], errno: Errno) -> LayerError {
    LayerError::Read {
        path: Path::new(OsStr::from_bytes(path)).to_owned(),
        source: errno.into(),
    }
}

fn open(path: &Path) -> Result<OwnedFd, LayerError> {
    openat(CWD, path, DIRECTORY, Mode::empty()).map_err(|errno| LayerError::Read {
        path: path.to_owned(),
        source: errno.into(),
    })
}

/// The names in a directory, sorted.
pub(super) fn names(directory: BorrowedFd<'_>) -> Result<BTreeSet<Vec<u8>>, Errno> {
    let mut names = BTreeSet::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.insert(name.to_vec());
        }
    }
    Ok(names)
}
