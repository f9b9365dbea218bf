//! Where in this root is that path? Folders found and made without ever leaving the root.
//!
//! A path is walked from the root's descriptor, one component at a time and never following a link in the kernel. Symbolic links are read and
//! followed here, as a process chrooted into the root would follow them; missing folders are made on the way and remembered as implied.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::ops::Bound;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, Stat, XattrFlags, fsetxattr, fstat, mkdirat, openat,
    readlinkat, statat, unlinkat,
};
use rustix::io::Errno;

use crate::overlay::XattrPrefix;
use crate::root::DEEPEST;

/// As many as the kernel follows in one path.
const MOST_LINKS: usize = 40;

/// `.wh.NAME` hides NAME of the lower layers.
pub(super) const WHITEOUT: &[u8] = b".wh.";

/// What a program could open by name.
const LONGEST_PATH_BYTES: usize = 4096;
/// Of any file system on Linux.
const LONGEST_NAME_BYTES: usize = 255;

/// A folder within the root.
#[derive(Clone, Debug)]
pub(super) struct Folder {
    pub fd: Arc<OwnedFd>,
    /// From the root, free of links.
    pub path: PathBuf,
    /// New entries take the folder's group.
    pub gives_group: bool,
}

/// Why a path leads nowhere.
#[derive(Debug)]
pub(super) enum WalkError {
    /// It is the layer's fault.
    Path(&'static str),
    /// It is the disk's.
    System(&'static str, Errno),
}

/// The root of one layer.
#[derive(Debug)]
pub(super) struct Tree {
    root: Folder,
    marks: XattrPrefix,
    /// The last folder asked for, by the name it was asked by: entries of one folder follow each other.
    last: Option<(PathBuf, Folder)>,
    implied: BTreeSet<PathBuf>,
    made: u64,
    path_bytes: u64,
}

/// `path` split into names that are plain: neither empty nor `.` nor `..`.
pub(super) fn names(path: &[u8]) -> Result<Vec<OsString>, &'static str> {
    if path.contains(&0) {
        return Err("its path has a zero byte");
    }
    if path.len() > LONGEST_PATH_BYTES {
        return Err("its path is longer than 4096 bytes");
    }
    let mut names = Vec::new();
    for component in Path::new(OsStr::from_bytes(path)).components() {
        match component {
            Component::Prefix(_) | Component::RootDir | Component::CurDir => {}
            Component::ParentDir => {
                if names.pop().is_none() {
                    return Err("it leaves the root");
                }
            }
            Component::Normal(name) if own_name(name).len() > LONGEST_NAME_BYTES => {
                return Err("its path has a name longer than 255 bytes");
            }
            Component::Normal(name) => names.push(name.to_owned()),
        }
        if names.len() > DEEPEST {
            return Err("its path has more than 256 names");
        }
    }
    Ok(names)
}

/// Without what makes a whiteout of it, which never gets onto the disk.
fn own_name(name: &OsStr) -> &[u8] {
    let name = name.as_bytes();
    name.strip_prefix(WHITEOUT).unwrap_or(name)
}

impl Tree {
    pub fn new(root: OwnedFd, marks: XattrPrefix) -> Self {
        Self {
            root: Folder {
                fd: Arc::new(root),
                path: PathBuf::new(),
                gives_group: false,
            },
            marks,
            last: None,
            // The root itself, until the tar has an entry for it.
            implied: BTreeSet::from([PathBuf::new()]),
            made: 0,
            path_bytes: 0,
        }
    }

    /// How many folders were made because a path implied them.
    pub const fn made(&self) -> u64 {
        self.made
    }

    /// Of all paths that were [remembered](Self::remember).
    pub const fn path_bytes(&self) -> u64 {
        self.path_bytes
    }

    /// A copy of the path, which will be kept, is counted.
    pub fn remember(&mut self, path: &Path) -> PathBuf {
        self.path_bytes += path.as_os_str().len() as u64;
        path.to_owned()
    }

    pub fn root(&self) -> &Folder {
        &self.root
    }

    /// Folders made on the way, parents first.
    pub fn into_implied(self) -> Vec<PathBuf> {
        self.implied.into_iter().collect()
    }

    /// The folder has an entry of its own now.
    pub fn is_stated(&mut self, path: &Path) {
        self.implied.remove(path);
    }

    /// The folder at `names`, made where it is missing.
    pub fn folder(&mut self, names: &[OsString]) -> Result<Folder, WalkError> {
        let asked: PathBuf = names.iter().collect();
        if let Some((name, folder)) = &self.last
            && *name == asked
        {
            return Ok(folder.clone());
        }
        let folder = self
            .walk(names, true)?
            .ok_or(WalkError::Path("its folder is missing"))?;
        self.last = Some((asked, folder.clone()));
        Ok(folder)
    }

    /// The folder at `names`, if it is there.
    pub fn existing_folder(&mut self, names: &[OsString]) -> Result<Option<Folder>, WalkError> {
        self.walk(names, false)
    }

    fn walk(&mut self, names: &[OsString], make: bool) -> Result<Option<Folder>, WalkError> {
        // The folders from the root to here, and the names still to go, next one last.
        let mut trail = vec![self.root.clone()];
        let mut ahead: Vec<OsString> = names.iter().rev().cloned().collect();
        let mut links = 0;
        while let Some(name) = ahead.pop() {
            let here = trail.last().unwrap_or(&self.root).clone();
            // Links lead deeper than a path looks.
            if trail.len() > DEEPEST || here.path.as_os_str().len() >= LONGEST_PATH_BYTES {
                return Err(WalkError::Path("its folder is too deep"));
            }
            if name == ".." {
                if trail.len() > 1 {
                    trail.pop();
                }
                continue;
            }
            match open_folder(&here, &name) {
                Ok(folder) => trail.push(folder),
                Err(Errno::NOENT) if !make => return Ok(None),
                Err(Errno::NOENT) => trail.push(self.make(&here, &name)?),
                Err(Errno::NOTDIR | Errno::LOOP) => match readlinkat(&here.fd, &name, Vec::new()) {
                    Ok(target) => {
                        links += 1;
                        if links > MOST_LINKS {
                            return Err(WalkError::Path("its path has too many symbolic links"));
                        }
                        let target = PathBuf::from(OsString::from_vec(target.into_bytes()));
                        if target.is_absolute() {
                            trail.truncate(1);
                        }
                        let steps: Vec<OsString> = target
                            .components()
                            .filter(|step| {
                                matches!(step, Component::Normal(_) | Component::ParentDir)
                            })
                            .map(|step| step.as_os_str().to_owned())
                            .collect();
                        ahead.extend(steps.into_iter().rev());
                    }
                    Err(Errno::INVAL) if make && is_whiteout(&here, &name) => {
                        remove(&here, &name).map_err(|errno| WalkError::System("remove", errno))?;
                        let folder = self.make(&here, &name)?;
                        self.make_opaque(&folder)?;
                        trail.push(folder);
                    }
                    Err(Errno::INVAL) if make => {
                        return Err(WalkError::Path("a part of its path is no folder"));
                    }
                    Err(Errno::INVAL) => return Ok(None),
                    Err(errno) => return Err(WalkError::System("read the link", errno)),
                },
                Err(errno) => return Err(WalkError::System("open", errno)),
            }
        }
        Ok(trail.pop())
    }

    fn make(&mut self, parent: &Folder, name: &OsStr) -> Result<Folder, WalkError> {
        mkdirat(&parent.fd, name, Mode::from_raw_mode(0o755))
            .map_err(|errno| WalkError::System("create", errno))?;
        let folder = open_folder(parent, name).map_err(|errno| WalkError::System("open", errno))?;
        self.made += 1;
        let path = self.remember(&folder.path);
        self.implied.insert(path);
        Ok(folder)
    }

    /// What hides a name of the lower layers.
    pub fn whiteout(&self) -> FileType {
        self.marks.whiteout()
    }

    /// Hides what lower layers have in the folder.
    pub fn make_opaque(&self, folder: &Folder) -> Result<(), WalkError> {
        fsetxattr(&folder.fd, self.marks.opaque(), b"y", XattrFlags::empty())
            .map_err(|errno| WalkError::System("mark as opaque", errno))
    }

    /// The folder's mode may be another one now.
    pub fn changed(&mut self, folder: &Folder) {
        if self
            .last
            .as_ref()
            .is_some_and(|(_, last)| last.path == folder.path)
        {
            self.last = None;
        }
    }

    /// Removes what is at `name`, with all that is below it; nothing there is fine.
    pub fn clear(&mut self, parent: &Folder, name: &OsStr) -> Result<(), WalkError> {
        match remove(parent, name) {
            Ok(()) => {}
            Err(Errno::NOENT) => return Ok(()),
            Err(errno) => return Err(WalkError::System("remove", errno)),
        }
        self.last = None;
        let gone = parent.path.join(name);
        let below = self
            .implied
            .range::<Path, _>((Bound::Included(gone.as_path()), Bound::Unbounded));
        let below: Vec<PathBuf> = below
            .take_while(|path| path.starts_with(&gone))
            .cloned()
            .collect();
        for path in below {
            self.implied.remove(&path);
        }
        Ok(())
    }
}

/// The folder `name` in `parent`, not following a link.
pub(super) fn open_folder(parent: &Folder, name: &OsStr) -> Result<Folder, Errno> {
    let fd = openat(
        &parent.fd,
        name,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let gives_group = fstat(&fd)?.st_mode & 0o2000 != 0;
    Ok(Folder {
        fd: Arc::new(fd),
        path: parent.path.join(name),
        gives_group,
    })
}

/// Whether `name` is a whiteout, of overlayfs or ours.
pub(super) fn is_whiteout(parent: &Folder, name: &OsStr) -> bool {
    statat(&parent.fd, name, AtFlags::SYMLINK_NOFOLLOW).is_ok_and(|stat| stands_for_nothing(&stat))
}

/// Whether that is a whiteout.
pub(super) fn stands_for_nothing(stat: &Stat) -> bool {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::CharacterDevice => stat.st_rdev == 0,
        kind => kind == FileType::Socket,
    }
}

fn remove(parent: &Folder, name: &OsStr) -> Result<(), Errno> {
    match unlinkat(&parent.fd, name, AtFlags::empty()) {
        Err(Errno::ISDIR) => {
            let folder = open_folder(parent, name)?;
            for child in children(&folder)? {
                remove(&folder, &child)?;
            }
            unlinkat(&parent.fd, name, AtFlags::REMOVEDIR)
        }
        other => other,
    }
}

/// The names in a folder.
pub(super) fn children(folder: &Folder) -> Result<Vec<OsString>, Errno> {
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(folder.fd.as_fd())? {
        let name = entry?.file_name().to_owned();
        if !matches!(name.to_bytes(), b"." | b"..") {
            names.push(OsString::from_vec(name.into_bytes()));
        }
    }
    Ok(names)
}
