//! What does a layer take from the layers below it?
//!
//! Folders that a tar only implies look as they do below, hard links into lower layers become files of this one (as overlayfs copies
//! up what a link is made to), and folders get their times when nothing comes into them any more.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, Stat, Timespec, Timestamps, fgetxattr, fgetxattr_query,
    flistxattr, futimens, linkat, openat, statat,
};
use rustix::io::Errno;

use super::place::{is_mark, tolerated};
use super::tree::{Folder, Tree, WalkError, is_whiteout, open_folder};
use super::{UnpackError, UnpackedLayer, open_root, write};
use crate::attributes;
use crate::overlay::XattrPrefix;

/// What the stack of lower layers has at a path.
enum Below {
    Nothing,
    /// In this folder, under this name.
    Entry(Folder, Stat),
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
        let lowers = match implied.is_empty() && links.is_empty() {
            true => Vec::new(),
            false => lowers
                .iter()
                .map(|lower| open_lower(lower))
                .collect::<Result<_, _>>()?,
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
            let names = names_of(path);
            let Some(folder) = tree.existing_folder(&names).map_err(|e| walk(path, e))? else {
                continue;
            };
            let below = match path.file_name() {
                None => lowers.first().map(|lower| lower.fd.clone()),
                Some(name) => match below(&lowers, &names, marks)
                    .map_err(|e| system(path, "look below", e))?
                {
                    Below::Entry(parent, stat) if is(&stat, FileType::Directory) => {
                        let folder =
                            open_folder(&parent, name).map_err(|e| system(path, "open", e))?;
                        Some(folder.fd)
                    }
                    Below::Link => {
                        return Err(refuse(
                            path,
                            "in a lower layer its folder is a symbolic link, which isn't supported yet",
                        ));
                    }
                    Below::Entry(..) | Below::Nothing => None,
                },
            };
            if let Some(below) = below {
                let stat = attributes::stat(&below, "").map_err(|e| system(path, "read", e))?;
                copy_attributes(&*below, &stat, &*folder.fd)
                    .map_err(|e| system(path, "set the attributes of", e))?;
                times.insert(path.clone(), times_of(&stat));
            }
        }
        for (link, target) in &links {
            place_link(&mut tree, &lowers, marks, link, target).map_err(|e| walk(link, e))?;
        }
        for (path, times) in times {
            if let Some(folder) = tree
                .existing_folder(&names_of(&path))
                .map_err(|e| walk(&path, e))?
            {
                futimens(&folder.fd, &times).map_err(|e| system(&path, "set the times of", e))?;
            }
        }
        Ok(directory)
    }
}

fn open_lower(directory: &Path) -> Result<Folder, UnpackError> {
    Ok(Folder {
        fd: Arc::new(open_root(directory)?),
        path: PathBuf::new(),
        gives_group: false,
    })
}

fn names_of(path: &Path) -> Vec<OsString> {
    path.iter().map(OsStr::to_owned).collect()
}

fn is(stat: &Stat, kind: FileType) -> bool {
    FileType::from_raw_mode(stat.st_mode) == kind
}

/// Looks through the layers from the top as overlayfs would.
fn below(lowers: &[Folder], names: &[OsString], marks: XattrPrefix) -> Result<Below, Errno> {
    let Some((last, parents)) = names.split_last() else {
        return Ok(Below::Nothing);
    };
    'layers: for lower in lowers {
        let mut here = lower.clone();
        let mut hides_lower = false;
        for name in parents {
            here = match open_folder(&here, name) {
                Ok(folder) => folder,
                Err(Errno::NOENT) if hides_lower => return Ok(Below::Nothing),
                Err(Errno::NOENT) => continue 'layers,
                Err(Errno::NOTDIR | Errno::LOOP) => {
                    let stat = statat(&here.fd, name, AtFlags::SYMLINK_NOFOLLOW)?;
                    return Ok(match is(&stat, FileType::Symlink) {
                        true => Below::Link,
                        false => Below::Nothing,
                    });
                }
                Err(errno) => return Err(errno),
            };
            hides_lower |= is_opaque(&here, marks)?;
        }
        match attributes::stat(&here.fd, last) {
            Ok(_) if is_whiteout(&here, last) => return Ok(Below::Nothing),
            Ok(stat) if is(&stat, FileType::Symlink) => return Ok(Below::Link),
            Ok(stat) => return Ok(Below::Entry(here, stat)),
            Err(Errno::NOENT) if hides_lower => return Ok(Below::Nothing),
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(Below::Nothing)
}

fn is_opaque(folder: &Folder, marks: XattrPrefix) -> Result<bool, Errno> {
    let mut value = [0; 1];
    match fgetxattr(&folder.fd, marks.opaque(), &mut value) {
        Ok(length) => Ok(&value[..length] == b"y"),
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(false),
        // Longer than `y`: some other mark.
        Err(Errno::RANGE) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// Makes `link` a second name of `target`, which is brought into this layer if only a lower one has it.
fn place_link(
    tree: &mut Tree,
    lowers: &[Folder],
    marks: XattrPrefix,
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
    let found = match tree.existing_folder(folders)? {
        Some(folder) => statat(&folder.fd, file, AtFlags::SYMLINK_NOFOLLOW)
            .is_ok()
            .then_some(folder),
        None => None,
    };
    let folder = match found {
        Some(folder) => folder,
        None => {
            let below = below(lowers, &names, marks)
                .map_err(|errno| WalkError::System("look below", errno))?;
            let Below::Entry(parent, stat) = below else {
                return Err(MISSING);
            };
            if !is(&stat, FileType::RegularFile) {
                return Err(WalkError::Path(
                    "the target of this hard link is no file in a lower layer",
                ));
            }
            let folder = take_folders(tree, lowers, marks, folders)?;
            copy_up(&parent, file, &folder)
                .map_err(|errno| WalkError::System("copy up the target of", errno))?;
            folder
        }
    };
    let link_folder = tree.folder(link_folders)?;
    linkat(&folder.fd, file, &link_folder.fd, name, AtFlags::empty())
        .map_err(|errno| WalkError::System("link", errno))
}

/// The folder in this layer, those made for it looking as they do below.
fn take_folders(
    tree: &mut Tree,
    lowers: &[Folder],
    marks: XattrPrefix,
    names: &[OsString],
) -> Result<Folder, WalkError> {
    let mut folder = tree.root().clone();
    for depth in 1..=names.len() {
        let path = &names[..depth];
        let is_new = tree.existing_folder(path)?.is_none();
        folder = tree.folder(path)?;
        if is_new
            && let Below::Entry(parent, stat) = below(lowers, path, marks)
                .map_err(|errno| WalkError::System("look below", errno))?
            && let Some(name) = path.last()
        {
            let take = || {
                let from = open_folder(&parent, name)?;
                copy_attributes(&*from.fd, &stat, &*folder.fd)
            };
            take().map_err(|errno| WalkError::System("set the attributes of", errno))?;
        }
    }
    Ok(folder)
}

fn copy_up(from: &Folder, name: &OsStr, to: &Folder) -> Result<(), Errno> {
    let source = openat(
        &from.fd,
        name,
        OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let copy = openat(&to.fd, name, flags, Mode::from_raw_mode(0o600))?;
    let (mut source, mut copy) = (File::from(source), File::from(copy));
    io::copy(&mut source, &mut copy)
        .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    let stat = attributes::stat(&source, "")?;
    copy_attributes(&source, &stat, &copy)?;
    futimens(&copy, &times_of(&stat))
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
