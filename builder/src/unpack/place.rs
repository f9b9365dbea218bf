//! How does one entry of a layer get onto the disk?

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{Read, Write as _};
use std::ops::Bound;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, Timespec, Timestamps, futimens, linkat, mkdirat, mknodat,
    openat, statat, symlinkat, utimensat,
};
use rustix::io::Errno;

use super::entries::{Bounded, Entry, EntryReader, Kind};
use super::tree::{Folder, Tree, WHITEOUT, WalkError, is_whiteout, names, open_folder};
use super::{Limits, UnpackError, UnpackedLayer, XATTRS};
use crate::attributes;
use crate::digest::Digest;

/// `.wh..wh.` starts the names of AUFS' own files; of these only the opaque mark means something.
const AUFS: &[u8] = b".wh..wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// Of an entry on average, padding included; far more than any tar has.
const HEADERS_BYTES: u64 = 4096;

/// One layer on its way to disk.
pub(super) struct Unpacker {
    pub layer: UnpackedLayer,
    pub tree: Tree,
    pub limits: Limits,
    /// Of files so far.
    pub bytes: u64,
    /// So far.
    pub entries: u64,
    pub buffer: Vec<u8>,
    /// Hard links whose target this layer doesn't have: link → number of the entry, and target.
    pub links: BTreeMap<PathBuf, (u64, PathBuf)>,
}

/// Removes what is at or below the path; takes as long as there is.
fn forget_below<V>(map: &mut BTreeMap<PathBuf, V>, gone: &Path) {
    let below = map
        .range::<Path, _>((Bound::Included(gone), Bound::Unbounded))
        .map(|(path, _)| path);
    let below: Vec<PathBuf> = below
        .take_while(|path| path.starts_with(gone))
        .cloned()
        .collect();
    for path in below {
        map.remove(&path);
    }
}

impl Unpacker {
    /// Unpacks all entries; returns the stream behind the archive's end.
    pub fn unpack<R: Read>(&mut self, tar: R) -> Result<R, UnpackError> {
        let layer = self.layer.digest;
        let limit = self.limits.entries.saturating_mul(HEADERS_BYTES);
        let limit = self.limits.bytes.saturating_add(limit);
        let mut reader = EntryReader::new(Bounded::new(tar, limit));
        let broken = |source| UnpackError::Tar { layer, source };
        while let Some(entry) = reader.next().map_err(broken)? {
            self.entries += 1;
            self.bytes = self.bytes.saturating_add(entry.size_bytes);
            self.within(self.entries, self.limits.entries, "entries")?;
            self.within(self.bytes, self.limits.bytes, "bytes")?;
            self.place(&entry, &mut reader)
                .map_err(|error| without_number(error, &entry, layer))?;
            // Folders that entries imply take room, too: one path at most between two looks.
            let entries = self.entries.saturating_add(self.tree.made());
            self.within(entries, self.limits.entries, "entries")?;
            let (path_bytes, limit) = (self.tree.path_bytes(), self.limits.path_bytes);
            self.within(path_bytes, limit, "bytes of paths")?;
        }
        // Padding and further zero blocks, so that the compressed stream is read and checked to its end.
        let mut rest = reader.into_inner().into_inner();
        loop {
            match rest
                .read(&mut self.buffer)
                .map_err(|error| broken(error.into()))?
            {
                0 => return Ok(rest),
                read => self.bytes = self.bytes.saturating_add(read as u64),
            }
            self.within(self.bytes, self.limits.bytes, "bytes")?;
        }
    }

    /// The layer, when all is in place.
    pub fn finish(self) -> UnpackedLayer {
        let Self {
            mut layer,
            tree,
            links,
            ..
        } = self;
        layer.implied = tree.into_implied();
        let mut links: Vec<_> = links.into_iter().collect();
        links.sort_by_key(|(_, (number, _))| *number);
        layer.links = links
            .into_iter()
            .map(|(link, (_, target))| (link, target))
            .collect();
        layer
    }

    fn within(&self, count: u64, limit: u64, unit: &'static str) -> Result<(), UnpackError> {
        if count > limit {
            let layer = self.layer.digest;
            return Err(UnpackError::TooLarge { layer, limit, unit });
        }
        Ok(())
    }

    fn place<R: Read>(
        &mut self,
        entry: &Entry,
        reader: &mut EntryReader<R>,
    ) -> Result<(), UnpackError> {
        let path = Path::new(OsStr::from_bytes(&entry.path)).to_owned();
        let layer = self.layer.digest;
        let refuse = |why| UnpackError::Entry {
            layer,
            path: path.clone(),
            why,
        };
        let system = |operation, errno: Errno| UnpackError::Write {
            operation,
            path: path.clone(),
            source: errno.into(),
        };
        let walk = |error| match error {
            WalkError::Path(why) => refuse(why),
            WalkError::System(operation, errno) => system(operation, errno),
        };
        let mut parents = names(&entry.path).map_err(refuse)?;
        let Some(name) = parents.pop() else {
            let root = self.tree.root().clone();
            return match entry.kind {
                Kind::Directory => self.dress_folder(&root, entry).map_err(walk),
                _ => Err(refuse("only a folder can be the root")),
            };
        };
        let parent = self.tree.folder(&parents).map_err(walk)?;
        if name.as_bytes() == OPAQUE {
            return self.tree.make_opaque(&parent).map_err(walk);
        }
        if name.as_bytes().starts_with(AUFS) {
            return Ok(());
        }
        if let Some(hidden) = name.as_bytes().strip_prefix(WHITEOUT) {
            let hidden = OsStr::from_bytes(hidden);
            if hidden.is_empty() || hidden == "." || hidden == ".." {
                return Err(refuse("it hides no name"));
            }
            return self.hide(&parent, hidden).map_err(walk);
        }
        match entry.kind {
            Kind::Directory => self.folder(&parent, &name, entry).map_err(walk),
            Kind::File => {
                self.tree.clear(&parent, &name).map_err(walk)?;
                self.forget(&parent, &name);
                self.file(&parent, &name, entry, reader, &path)
            }
            Kind::HardLink => {
                let target = names(&entry.link).map_err(refuse)?;
                self.hard_link(&parent, &name, &target).map_err(walk)
            }
            Kind::Symlink | Kind::Fifo | Kind::CharDevice | Kind::BlockDevice => {
                self.tree.clear(&parent, &name).map_err(walk)?;
                self.forget(&parent, &name);
                self.special(&parent, &name, entry).map_err(walk)
            }
        }
    }

    /// Times of folders, and links, that are gone.
    fn forget(&mut self, parent: &Folder, name: &OsStr) {
        let gone = parent.path.join(name);
        forget_below(&mut self.links, &gone);
        forget_below(&mut self.layer.times, &gone);
    }

    /// Whiteouts speak of lower layers only: what this layer itself has at the name stays, and a folder no longer shows what is below it.
    fn hide(&mut self, parent: &Folder, name: &OsStr) -> Result<(), WalkError> {
        match open_folder(parent, name) {
            Ok(folder) => return self.tree.make_opaque(&folder),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
            Err(errno) => return Err(WalkError::System("open", errno)),
        }
        // A link that waits for its target is the layer's own, too.
        if self.links.contains_key(&parent.path.join(name)) {
            return Ok(());
        }
        let kind = self.tree.whiteout();
        let whiteout = mknodat(&parent.fd, name, kind, Mode::empty(), 0);
        match whiteout {
            Ok(()) | Err(Errno::EXIST) => Ok(()),
            Err(errno) => Err(WalkError::System("make a whiteout of", errno)),
        }
    }

    fn folder(&mut self, parent: &Folder, name: &OsStr, entry: &Entry) -> Result<(), WalkError> {
        let hidden = is_whiteout(parent, name);
        let folder = match open_folder(parent, name) {
            Ok(folder) => folder,
            Err(_) => {
                self.tree.clear(parent, name)?;
                self.forget(parent, name);
                mkdirat(&parent.fd, name, Mode::from_raw_mode(0o700))
                    .map_err(|e| WalkError::System("create", e))?;
                open_folder(parent, name).map_err(|e| WalkError::System("open", e))?
            }
        };
        if hidden {
            self.tree.make_opaque(&folder)?;
        }
        self.dress_folder(&folder, entry)
    }

    fn dress_folder(&mut self, folder: &Folder, entry: &Entry) -> Result<(), WalkError> {
        let dress = || {
            attributes::chown(&folder.fd, "", (entry.uid, entry.gid))?;
            attributes::chmod(&folder.fd, "", entry.mode)
        };
        dress().map_err(|errno| WalkError::System(ATTRIBUTES, errno))?;
        set_xattrs(&folder.fd, OsStr::new(""), entry)?;
        let path = self.tree.remember(&folder.path);
        self.layer.times.insert(path, times(entry));
        self.tree.is_stated(&folder.path);
        self.tree.changed(folder);
        Ok(())
    }

    fn file<R: Read>(
        &mut self,
        parent: &Folder,
        name: &OsStr,
        entry: &Entry,
        reader: &mut EntryReader<R>,
        path: &Path,
    ) -> Result<(), UnpackError> {
        let layer = self.layer.digest;
        let walk = |error| match error {
            WalkError::Path(why) => UnpackError::Entry {
                layer,
                path: path.to_owned(),
                why,
            },
            WalkError::System(operation, errno) => UnpackError::Write {
                operation,
                path: path.to_owned(),
                source: errno.into(),
            },
        };
        let write = |operation| {
            move |source| UnpackError::Write {
                operation,
                path: path.to_owned(),
                source,
            }
        };
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(&parent.fd, name, flags, Mode::from_raw_mode(0o600))
            .map_err(|errno| write("create")(errno.into()))?;
        let mut file = File::from(file);
        loop {
            let read = reader
                .content(&mut self.buffer)
                .map_err(|source| UnpackError::Tar {
                    layer: self.layer.digest,
                    source,
                })?;
            if read == 0 {
                break;
            }
            file.write_all(&self.buffer[..read])
                .map_err(write("write"))?;
        }
        let dress = || {
            // Root's own files are so already, except where the folder hands its group down.
            if (entry.uid, entry.gid) != (0, 0)
                || parent.gives_group
                || !rustix::process::geteuid().is_root()
            {
                attributes::chown(&file, "", (entry.uid, entry.gid))?;
            }
            // After the owner, whose change would take set-id bits and capabilities away.
            attributes::chmod(&file, "", entry.mode)
        };
        let attributes = |errno: Errno| WalkError::System(ATTRIBUTES, errno);
        dress()
            .map_err(attributes)
            .and_then(|()| set_xattrs(&file, OsStr::new(""), entry))
            .and_then(|()| futimens(&file, &times(entry)).map_err(attributes))
            .map_err(walk)
    }

    fn special(&mut self, parent: &Folder, name: &OsStr, entry: &Entry) -> Result<(), WalkError> {
        let create = |errno| WalkError::System("create", errno);
        let attributes = |errno| WalkError::System(ATTRIBUTES, errno);
        let mode = Mode::from_raw_mode(entry.mode);
        let device = rustix::fs::makedev(entry.device.0, entry.device.1);
        match entry.kind {
            Kind::Symlink if entry.link.is_empty() => {
                return Err(WalkError::Path("it is a symbolic link to nothing"));
            }
            Kind::Symlink => {
                symlinkat(OsStr::from_bytes(&entry.link), &parent.fd, name).map_err(create)?
            }
            Kind::Fifo => mknodat(&parent.fd, name, FileType::Fifo, mode, 0).map_err(create)?,
            Kind::CharDevice | Kind::BlockDevice => {
                let kind = match entry.kind {
                    Kind::BlockDevice => FileType::BlockDevice,
                    _ => FileType::CharacterDevice,
                };
                match mknodat(&parent.fd, name, kind, mode, device) {
                    // In a user namespace; a step gets the devices that it needs by mounts.
                    Err(Errno::PERM) => {
                        tracing::debug!(name = %name.display(), "device of a base layer left out");
                        return Ok(());
                    }
                    other => other.map_err(create)?,
                }
            }
            Kind::File | Kind::HardLink | Kind::Directory => return Ok(()),
        }
        attributes::chown(&parent.fd, name, (entry.uid, entry.gid)).map_err(attributes)?;
        if entry.kind != Kind::Symlink {
            // mknod's mode went through the umask; what was just made here is no link.
            attributes::chmod(&parent.fd, name, entry.mode).map_err(attributes)?;
        }
        set_xattrs(&parent.fd, name, entry)?;
        utimensat(&parent.fd, name, &times(entry), AtFlags::SYMLINK_NOFOLLOW).map_err(attributes)
    }

    fn hard_link(
        &mut self,
        parent: &Folder,
        name: &OsStr,
        target: &[OsString],
    ) -> Result<(), WalkError> {
        let Some((file, folders)) = target.split_last() else {
            return Err(WalkError::Path("it is a hard link to the root"));
        };
        let found = match self.tree.existing_folder(folders)? {
            Some(folder) => match statat(&folder.fd, file, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(_) if is_whiteout(&folder, file) => {
                    return Err(WalkError::Path("its target is hidden"));
                }
                Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
                    return Err(WalkError::Path("its target is a folder"));
                }
                Ok(_) if folder.path == parent.path && file == name => return Ok(()),
                Ok(_) => Some(folder),
                Err(Errno::NOENT) => None,
                Err(errno) => return Err(WalkError::System("look at the target of", errno)),
            },
            None => None,
        };
        self.tree.clear(parent, name)?;
        self.forget(parent, name);
        match found {
            Some(folder) => linkat(&folder.fd, file, &parent.fd, name, AtFlags::empty())
                .map_err(|errno| WalkError::System("link", errno)),
            None => {
                let target = self.tree.remember(&target.iter().collect::<PathBuf>());
                let link = self.tree.remember(&parent.path.join(name));
                self.links.insert(link, (self.entries, target));
                Ok(())
            }
        }
    }
}

const ATTRIBUTES: &str = "set the attributes of";

/// Sets the attributes that an entry brings along and its kind of file can have.
fn set_xattrs(place: impl AsFd, name: &OsStr, entry: &Entry) -> Result<(), WalkError> {
    let has_user = matches!(entry.kind, Kind::File | Kind::Directory);
    for (attribute, value) in kept(&entry.xattrs) {
        // The kernel has these on files and folders only.
        if !has_user && attribute.as_bytes().starts_with(b"user.") {
            tracing::debug!(attribute = %attribute.display(), "extended attribute of a special file left out");
            continue;
        }
        let set = attributes::set_xattr(&place, name, attribute, value);
        tolerated(attribute, set).map_err(|errno| WalkError::System(XATTRS, errno))?;
    }
    Ok(())
}

/// The kernel calls an owner that our user namespace doesn't have an invalid argument.
fn without_number(error: UnpackError, entry: &Entry, layer: Digest) -> UnpackError {
    let is_invalid = matches!(&error, UnpackError::Write { source, .. } if source.raw_os_error() == Some(libc::EINVAL));
    let has = |file: &str, id: u32| {
        fs::read_to_string(file).is_ok_and(|map| map.lines().any(|line| is_in(line, id)))
    };
    let has_both = || has("/proc/self/uid_map", entry.uid) && has("/proc/self/gid_map", entry.gid);
    if !is_invalid || has_both() {
        return error;
    }
    UnpackError::Owner {
        layer,
        path: PathBuf::from(OsStr::from_bytes(&entry.path)),
        uid: entry.uid,
        gid: entry.gid,
    }
}

/// True if a line of an id map (inside, outside, count) has the id inside.
fn is_in(line: &str, id: u32) -> bool {
    let mut numbers = line.split_ascii_whitespace().map(str::parse::<u32>);
    let (Some(Ok(first)), Some(Ok(_)), Some(Ok(count))) =
        (numbers.next(), numbers.next(), numbers.next())
    else {
        return false;
    };
    id.checked_sub(first).is_some_and(|above| above < count)
}

fn times(entry: &Entry) -> Timestamps {
    let time = Timespec {
        tv_sec: entry.mtime.0,
        tv_nsec: entry.mtime.1.into(),
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}

/// All but overlayfs' marks and ours, with which a layer could redirect or hide what isn't its own.
fn kept(xattrs: &[(Vec<u8>, Vec<u8>)]) -> impl Iterator<Item = (&OsStr, &[u8])> {
    xattrs
        .iter()
        .filter(|(name, _)| !is_mark(name))
        .map(|(name, value)| (OsStr::from_bytes(name), value.as_slice()))
}

pub(crate) fn is_mark(name: &[u8]) -> bool {
    [&b"trusted.overlay."[..], b"user.overlay.", b"user.strata."]
        .iter()
        .any(|marks| name.starts_with(marks))
}

/// Labels and privileged attributes that the kernel doesn't let us set are left out; those are the machine's to decide.
pub(super) fn tolerated(name: &OsStr, set: Result<(), Errno>) -> Result<(), Errno> {
    let bytes = name.as_bytes();
    let privileged = bytes.starts_with(b"trusted.")
        || matches!(
            bytes,
            b"security.selinux" | b"security.ima" | b"security.evm"
        );
    match set {
        Err(Errno::PERM | Errno::OPNOTSUPP) if privileged => {
            tracing::debug!(attribute = %name.display(), "extended attribute of a base layer left out");
            Ok(())
        }
        other => other,
    }
}
