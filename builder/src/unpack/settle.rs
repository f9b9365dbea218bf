//! What does a layer take from the layers below it?
//!
//! Folders that a tar only implies look as they do below, hard links into lower layers become files of this one (as overlayfs copies
//! up what a link is made to), and folders get their times when nothing comes into them any more.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, fgetxattr,
    fgetxattr_query, flistxattr, futimens, linkat, openat, openat2, statat,
};
use rustix::io::Errno;

use super::place::{is_mark, tolerated};
use super::tree::{Folder, Tree, WalkError, stands_for_nothing};
use super::{UnpackError, UnpackedLayer, open_root, write};
use crate::attributes;
use crate::overlay::XattrPrefix;

/// What the stack of lower layers has at a path.
enum Below {
    Nothing,
    /// In this folder, under the path's last name.
    Entry(OwnedFd, Stat),
    /// A part of the path, or its end, is a symbolic link.
    Link,
}

impl UnpackedLayer {
    /// Fits the layer to those below it (`lowers`, top first, settled themselves) and returns its folder.
    ///
    /// # Errors
    /// User: links to what isn't there. Transient: the disk.
    pub fn settle(self, lowers: &[PathBuf]) -> Result<PathBuf, UnpackError> {
        let Self {
            digest,
            directory,
            marks,
            implied,
            links,
            mut times,
        } = self;
        let root = open_root(&directory)?;
        let mut lowers = match implied.is_empty() && links.is_empty() {
            true => Lowers::new(Vec::new(), marks),
            false => {
                let folders = lowers.iter().map(|lower| open_root(lower));
                Lowers::new(folders.collect::<Result<_, _>>()?, marks)
            }
        };
        let refuse = |path: &Path, why| UnpackError::Entry {
            layer: digest,
            path: path.to_owned(),
            why,
        };
        let system = |path: &Path, operation, errno: Errno| {
            write(operation, &directory.join(path))(errno.into())
        };
        let walk = |path: &Path, error| match error {
            WalkError::Path(why) => refuse(path, why),
            WalkError::System(operation, errno) => system(path, operation, errno),
        };
        let mut tree = Tree::new(root, marks);
        for path in &implied {
            let Some(folder) =
                folder_at(&tree.root().fd, path).map_err(|e| system(path, "open", e))?
            else {
                continue;
            };
            let below = match lowers
                .folder(path)
                .map_err(|e| system(path, "look below", e))?
            {
                BelowFolder::Folder(below) => below,
                BelowFolder::Nothing => continue,
                BelowFolder::Link => {
                    return Err(refuse(
                        path,
                        "in a lower layer its folder is a symbolic link, which isn't supported yet",
                    ));
                }
            };
            let stat = attributes::stat(&below, "").map_err(|e| system(path, "read", e))?;
            copy_attributes(&below, &stat, &folder)
                .map_err(|e| system(path, "set the attributes of", e))?;
            times.insert(path.clone(), times_of(&stat));
        }
        let mut brought = BTreeMap::new();
        for (link, target) in &links {
            place_link(&mut tree, &mut lowers, &mut brought, link, target)
                .map_err(|e| walk(link, e))?;
        }
        for (path, times) in times {
            if let Some(folder) =
                folder_at(&tree.root().fd, &path).map_err(|e| system(&path, "open", e))?
            {
                futimens(&folder, &times).map_err(|e| system(&path, "set the times of", e))?;
            }
        }
        Ok(directory)
    }
}

fn names_of(path: &Path) -> Vec<OsString> {
    path.iter().map(OsStr::to_owned).collect()
}

fn is(stat: &Stat, kind: FileType) -> bool {
    FileType::from_raw_mode(stat.st_mode) == kind
}

/// The folder at `path`, which has no links in it; none if there is no folder. One call, however deep it is.
fn folder_at(root: impl AsFd, path: &Path) -> Result<Option<OwnedFd>, Errno> {
    let path = match path.as_os_str().is_empty() {
        true => Path::new("."),
        false => path,
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let way = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    match openat2(root, path, flags, Mode::empty(), way) {
        Ok(folder) => Ok(Some(folder)),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// The stack of lower layers, top first.
struct Lowers {
    folders: Vec<OwnedFd>,
    marks: XattrPrefix,
    /// From the root to the folder that was asked for last, which most often has the next one in it.
    trail: Vec<(OsString, Shown)>,
}

/// What the stack has where a folder could be.
#[derive(Clone)]
enum Shown {
    /// The layers that have it, from the top down to where one hides the others.
    Folder(Vec<usize>),
    /// A symbolic link, here or above.
    Link,
    /// No folder.
    Nothing,
}

enum BelowFolder {
    Folder(OwnedFd),
    Link,
    Nothing,
}

impl Lowers {
    fn new(folders: Vec<OwnedFd>, marks: XattrPrefix) -> Self {
        Self {
            folders,
            marks,
            trail: Vec::new(),
        }
    }

    /// The topmost folder at `path`, looked for as overlayfs would.
    fn folder(&mut self, path: &Path) -> Result<BelowFolder, Errno> {
        let layer = match self.shown(path)? {
            Shown::Folder(layers) => layers.first().copied(),
            Shown::Link => return Ok(BelowFolder::Link),
            Shown::Nothing => None,
        };
        let folder = match layer {
            Some(layer) => folder_at(&self.folders[layer], path)?,
            None => None,
        };
        Ok(folder.map_or(BelowFolder::Nothing, BelowFolder::Folder))
    }

    /// What is at `path`, which need not be a folder.
    fn entry(&mut self, path: &Path) -> Result<Below, Errno> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Ok(Below::Nothing);
        };
        let layers = match self.shown(parent)? {
            Shown::Folder(layers) => layers,
            Shown::Link => return Ok(Below::Link),
            Shown::Nothing => return Ok(Below::Nothing),
        };
        for layer in layers {
            let Some(folder) = folder_at(&self.folders[layer], parent)? else {
                continue;
            };
            return Ok(match attributes::stat(&folder, name) {
                Ok(stat) if stands_for_nothing(&stat) => Below::Nothing,
                Ok(stat) if is(&stat, FileType::Symlink) => Below::Link,
                Ok(stat) => Below::Entry(folder, stat),
                Err(Errno::NOENT) => continue,
                Err(errno) => return Err(errno),
            });
        }
        Ok(Below::Nothing)
    }

    fn shown(&mut self, path: &Path) -> Result<Shown, Errno> {
        let known = self
            .trail
            .iter()
            .zip(path)
            .take_while(|((known, _), name)| known == name)
            .count();
        self.trail.truncate(known);
        let mut here: PathBuf = path.iter().take(known).collect();
        for name in path.iter().skip(known) {
            let shown = match self.trail.last() {
                None => self.next((0..self.folders.len()).collect(), &here, name)?,
                Some((_, Shown::Folder(layers))) => self.next(layers.clone(), &here, name)?,
                Some((_, nothing)) => nothing.clone(),
            };
            here.push(name);
            self.trail.push((name.to_owned(), shown));
        }
        Ok(match self.trail.last() {
            None => Shown::Folder((0..self.folders.len()).collect()),
            Some((_, shown)) => shown.clone(),
        })
    }

    /// What is shown at `name` in the folder `parent` that `layers` have.
    fn next(&self, layers: Vec<usize>, parent: &Path, name: &OsStr) -> Result<Shown, Errno> {
        let path = parent.join(name);
        let mut having = Vec::new();
        for layer in layers {
            let folder = match folder_at(&self.folders[layer], &path)? {
                Some(folder) => folder,
                None => match statat(&self.folders[layer], &path, AtFlags::SYMLINK_NOFOLLOW) {
                    Err(Errno::NOENT) => continue,
                    Err(errno) => return Err(errno),
                    Ok(stat) if having.is_empty() && is(&stat, FileType::Symlink) => {
                        return Ok(Shown::Link);
                    }
                    // It hides what lies deeper.
                    Ok(_) => break,
                },
            };
            having.push(layer);
            if is_opaque(&folder, self.marks)? {
                break;
            }
        }
        Ok(match having.is_empty() {
            true => Shown::Nothing,
            false => Shown::Folder(having),
        })
    }
}

fn is_opaque(folder: &OwnedFd, marks: XattrPrefix) -> Result<bool, Errno> {
    let mut value = [0; 1];
    match fgetxattr(folder, marks.opaque(), &mut value) {
        Ok(length) => Ok(&value[..length] == b"y"),
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(false),
        // Longer than `y`: some other mark.
        Err(Errno::RANGE) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// Makes `link` a second name of `target`, which is brought into this layer if only a lower one has it. What the layer hides under its old name since is brought to the
/// link alone; `brought` has the first link to each.
fn place_link(
    tree: &mut Tree,
    lowers: &mut Lowers,
    brought: &mut BTreeMap<PathBuf, PathBuf>,
    link: &Path,
    target: &Path,
) -> Result<(), WalkError> {
    const MISSING: WalkError = WalkError::Path("the target of this hard link doesn't exist");
    let (names, link_names) = (names_of(target), names_of(link));
    let (Some((file, folders)), Some((name, link_folders))) =
        (names.split_last(), link_names.split_last())
    else {
        return Err(MISSING);
    };
    if let Some(folder) = tree.existing_folder(folders)? {
        match statat(&folder.fd, file, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if stands_for_nothing(&stat) => {}
            Ok(_) => return make_link(&folder, file, &tree.folder(link_folders)?, name),
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(WalkError::System("look at the target of", errno)),
        }
    }
    let looked = |errno| WalkError::System("look below", errno);
    let is_hidden = hides(tree.root(), target, lowers.marks).map_err(looked)?;
    if is_hidden && let Some(first) = brought.get(target) {
        let first = names_of(first);
        if let Some((file, folders)) = first.split_last() {
            let folder = tree.folder(folders)?;
            return make_link(&folder, file, &tree.folder(link_folders)?, name);
        }
    }
    let Below::Entry(parent, stat) = lowers.entry(target).map_err(looked)? else {
        return Err(MISSING);
    };
    if !is(&stat, FileType::RegularFile) {
        return Err(WalkError::Path(
            "the target of this hard link is no file in a lower layer",
        ));
    }
    if is_hidden {
        brought.insert(target.to_owned(), link.to_owned());
        return copy_up(&parent, file, &tree.folder(link_folders)?, name);
    }
    let folder = take_folders(tree, lowers, folders)?;
    copy_up(&parent, file, &folder, file)?;
    make_link(&folder, file, &tree.folder(link_folders)?, name)
}

/// Only a folder that other entries imply can be there: what has an entry of its own takes the link's place.
const TAKEN: WalkError = WalkError::Path("other entries make a folder of it");

fn make_link(from: &Folder, file: &OsStr, to: &Folder, name: &OsStr) -> Result<(), WalkError> {
    match linkat(&from.fd, file, &to.fd, name, AtFlags::empty()) {
        Err(Errno::EXIST) => Err(TAKEN),
        other => other.map_err(|errno| WalkError::System("link", errno)),
    }
}

/// Whether the layer itself hides what lower ones have at `path`.
fn hides(root: &Folder, path: &Path, marks: XattrPrefix) -> Result<bool, Errno> {
    let mut here = PathBuf::new();
    for name in path {
        match folder_at(&root.fd, &here)? {
            Some(folder) if is_opaque(&folder, marks)? => return Ok(true),
            Some(_) => here.push(name),
            None => break,
        }
    }
    match statat(&root.fd, &here, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(stands_for_nothing(&stat)),
        Err(Errno::NOENT) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// The folder in this layer, those made for it looking as they do below.
fn take_folders(
    tree: &mut Tree,
    lowers: &mut Lowers,
    names: &[OsString],
) -> Result<Folder, WalkError> {
    let mut folder = tree.root().clone();
    for depth in 1..=names.len() {
        let path = &names[..depth];
        let is_new = tree.existing_folder(path)?.is_none();
        folder = tree.folder(path)?;
        if is_new
            && let BelowFolder::Folder(below) = lowers
                .folder(&path.iter().collect::<PathBuf>())
                .map_err(|errno| WalkError::System("look below", errno))?
        {
            let take = || {
                let stat = attributes::stat(&below, "")?;
                copy_attributes(&below, &stat, &*folder.fd)
            };
            take().map_err(|errno| WalkError::System("set the attributes of", errno))?;
        }
    }
    Ok(folder)
}

/// Copies the file `name` in `from` to the new file `new` in `to`.
fn copy_up(from: &OwnedFd, name: &OsStr, to: &Folder, new: &OsStr) -> Result<(), WalkError> {
    let failed = |errno| WalkError::System("copy up the target of", errno);
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let source = openat(from, name, flags, Mode::empty()).map_err(failed)?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let copy = match openat(&to.fd, new, flags, Mode::from_raw_mode(0o600)) {
        Err(Errno::EXIST) => return Err(TAKEN),
        other => other.map_err(failed)?,
    };
    let copy = || {
        let (mut source, mut copy) = (File::from(source), File::from(copy));
        io::copy(&mut source, &mut copy)
            .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
        let stat = attributes::stat(&source, "")?;
        copy_attributes(&source, &stat, &copy)?;
        futimens(&copy, &times_of(&stat))
    };
    copy().map_err(failed)
}

/// Owner, mode and extended attributes.
fn copy_attributes(from: impl AsFd, stat: &Stat, to: impl AsFd) -> Result<(), Errno> {
    attributes::chown(&to, "", (stat.st_uid, stat.st_gid))?;
    attributes::chmod(&to, "", stat.st_mode & 0o7777)?;
    // The kernel's own limit for the list of names.
    let mut list = vec![0; 64 << 10];
    let length = match flistxattr(&from, &mut list) {
        Err(Errno::OPNOTSUPP) => 0,
        length => length?,
    };
    let names = list[..length]
        .split(|&byte| byte == 0)
        .filter(|name| !name.is_empty());
    for name in names.filter(|name| !is_mark(name)) {
        let name = OsStr::from_bytes(name);
        let mut value = vec![0; fgetxattr_query(&from, name)?];
        let length = fgetxattr(&from, name, &mut value)?;
        tolerated(name, attributes::set_xattr(&to, "", name, &value[..length]))?;
    }
    for (name, value) in attributes::recorded_xattrs(&from, "")? {
        attributes::set_xattr(&to, "", OsStr::from_bytes(&name), &value)?;
    }
    Ok(())
}

fn times_of(stat: &Stat) -> Timestamps {
    let time = |seconds, nanoseconds: u64| Timespec {
        tv_sec: seconds,
        tv_nsec: nanoseconds.cast_signed(),
    };
    Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    }
}
