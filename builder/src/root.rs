//! Where does a path inside a root file system really lead, and who are its users?
//!
//! Symbolic links are followed as a process inside the root would follow them: absolute ones start at the root, and `..` stops there. Nothing
//! runs in the root while the builder works in it, so a path that was resolved stays resolved.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Read as _};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, ResolveFlags, mkdirat, openat2, readlinkat, statat,
};
use rustix::io::Errno;

use crate::attributes;
use crate::error::{Class, Classify, is_disk_full};

pub mod users;

pub use users::User;

/// Linux gives up after 40 links; images with more are loops.
pub(crate) const MAX_LINKS: usize = 255;

/// Names in a path, at most: in a layer that is read, in a tree that is written or copied. Trees that people make are some 60 deep; a program could name what is 2048 deep. Each
/// level costs whoever walks a descriptor and a piece of the stack.
pub(crate) const DEEPEST: usize = 256;

/// Of a file that is read whole: the largest are lists of users, with some 60 bytes for each.
const MOST_READ_BYTES: u64 = 16 << 20;

/// A root file system on disk.
#[derive(Debug)]
pub struct Root {
    path: PathBuf,
    directory: OwnedFd,
}

/// Something is wrong with a path or a name in a root file system.
#[derive(Debug, thiserror::Error)]
pub enum RootError {
    /// The operation failed.
    #[error("{operation} {} in the root file system", path.display())]
    Path {
        /// What was tried.
        operation: &'static str,
        /// Path in the root.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Not in `/etc/passwd`.
    #[error("user {0:?} is neither a number nor in /etc/passwd of the image")]
    NoUser(String),
    /// Not in `/etc/group`.
    #[error("group {0:?} is neither a number nor in /etc/group of the image")]
    NoGroup(String),
}

impl Classify for RootError {
    fn class(&self) -> Class {
        match self {
            Self::Path { source, .. } if is_disk_full(source) => Class::Transient,
            Self::Path { .. } | Self::NoUser(_) | Self::NoGroup(_) => Class::CONTENT,
        }
    }
}

impl Root {
    /// Opens the directory `path` as a root.
    ///
    /// # Errors
    /// User, if it isn't a directory that can be opened.
    pub fn open(path: &Path) -> Result<Self, RootError> {
        let failed = failed("open", path);
        let directory = rustix::fs::open(
            path,
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map_err(failed)?;
        Ok(Self {
            path: path.to_owned(),
            directory,
        })
    }

    /// The builder's path of the root itself.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// `path` with every link on the way resolved, the last one too, relative to the root (empty for the root). What doesn't exist is kept as written.
    ///
    /// # Errors
    /// User, for a loop of links or a way through something that is no directory.
    pub fn canonical(&self, path: &Path) -> Result<PathBuf, RootError> {
        let failed = |errno: Errno| failed("resolve", path)(errno);
        let mut pending: Vec<OsString> = parts(path).rev().collect();
        let mut resolved = PathBuf::new();
        let mut links = 0;
        while let Some(part) = pending.pop() {
            if part == ".." {
                resolved.pop();
                continue;
            }
            let next = resolved.join(&part);
            match readlinkat(&self.directory, &next, Vec::new()) {
                Ok(target) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(failed(Errno::LOOP));
                    }
                    let target = PathBuf::from(bytes_to_os(target.into_bytes()));
                    if target.is_absolute() {
                        resolved = PathBuf::new();
                    }
                    pending.extend(parts(&target).rev());
                }
                // EINVAL: there, and no link.
                Err(Errno::INVAL | Errno::NOENT) => resolved = next,
                Err(errno) => return Err(failed(errno)),
            }
        }
        Ok(resolved)
    }

    /// As [`Root::canonical`], but the last part is not followed if it is a link.
    ///
    /// # Errors
    /// As [`Root::canonical`].
    pub fn canonical_parent(&self, path: &Path) -> Result<PathBuf, RootError> {
        match (path.parent(), path.file_name()) {
            (Some(parent), Some(name)) => Ok(self.canonical(parent)?.join(name)),
            (_, _) => self.canonical(path),
        }
    }

    /// The builder's own path of the existing `path`.
    ///
    /// # Errors
    /// User, if it doesn't exist.
    pub fn resolve(&self, path: &Path) -> Result<PathBuf, RootError> {
        let canonical = self.canonical(path)?;
        self.file_type(&canonical)?
            .ok_or_else(|| failed("find", path)(Errno::NOENT))?;
        Ok(if canonical.as_os_str().is_empty() {
            self.path.clone()
        } else {
            self.path.join(canonical)
        })
    }

    /// What a canonical path is; none if there is nothing.
    ///
    /// # Errors
    /// User, if it can't be looked at.
    pub fn file_type(&self, canonical: &Path) -> Result<Option<FileType>, RootError> {
        match statat(
            &self.directory,
            canonical,
            AtFlags::SYMLINK_NOFOLLOW | AtFlags::EMPTY_PATH,
        ) {
            Ok(attributes) => Ok(Some(FileType::from_raw_mode(attributes.st_mode))),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(failed("look at", canonical)(errno)),
        }
    }

    /// Opens the existing `path`, following links inside the root only.
    ///
    /// # Errors
    /// User, if it can't be opened.
    pub fn open_file(&self, path: &Path, flags: OFlags) -> Result<OwnedFd, RootError> {
        let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        openat2(
            &self.directory,
            path,
            flags | OFlags::CLOEXEC,
            Mode::empty(),
            inside,
        )
        .map_err(failed("open", path))
    }

    /// Makes the directory `path` and the missing ones above it: mode 0755 under our umask, owned by `owner`. Returns those it made, topmost
    /// first, as canonical paths. A set-group-ID bit of the directory above is inherited, as the kernel does it.
    ///
    /// # Errors
    /// User, if something on the way is no directory.
    pub fn create_directories(
        &self,
        path: &Path,
        owner: (u32, u32),
    ) -> Result<Vec<PathBuf>, RootError> {
        let canonical = self.canonical(path)?;
        let mut made = Vec::new();
        let mut current = PathBuf::new();
        for part in canonical.components() {
            current.push(part);
            match mkdirat(&self.directory, &current, Mode::from_raw_mode(0o755)) {
                Ok(()) => {
                    attributes::inherit(&self.directory, &current)
                        .and_then(|()| attributes::chown(&self.directory, &current, owner))
                        .map_err(failed("chown", &current))?;
                    made.push(current.clone());
                }
                Err(Errno::EXIST) => {}
                Err(errno) => return Err(failed("create the directory", &current)(errno)),
            }
        }
        match self.file_type(&canonical)? {
            Some(FileType::Directory) => Ok(made),
            Some(_) | None => Err(failed("create the directory", path)(Errno::NOTDIR)),
        }
    }

    /// The content of the file `path`; none if there is no such file. A fifo would let us wait for ever, and a device be read for ever: neither is opened.
    ///
    /// # Errors
    /// User, if it is there and can't be read, is no regular file, or has more than [`MOST_READ_BYTES`].
    pub fn read(&self, path: &Path) -> Result<Option<Vec<u8>>, RootError> {
        let failed = |source| RootError::Path {
            operation: "read",
            path: path.to_owned(),
            source,
        };
        let refused = |why: &str| failed(io::Error::new(io::ErrorKind::InvalidData, why));
        let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let place = match openat2(&self.directory, path, flags, Mode::empty(), inside) {
            Ok(place) => place,
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
            Err(errno) => return Err(failed(errno.into())),
        };
        let found = rustix::fs::fstat(&place).map_err(|errno| failed(errno.into()))?;
        if FileType::from_raw_mode(found.st_mode) != FileType::RegularFile {
            return Err(refused("it is no regular file"));
        }
        // Just what was looked at.
        let place = Path::new("/proc/self/fd").join(place.as_raw_fd().to_string());
        let mut content = Vec::new();
        fs::File::open(place)
            .and_then(|file| file.take(MOST_READ_BYTES + 1).read_to_end(&mut content))
            .map_err(failed)?;
        if content.len() as u64 > MOST_READ_BYTES {
            return Err(refused("it is larger than 16 MiB"));
        }
        Ok(Some(content))
    }
}

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }
}

fn failed<'a>(operation: &'static str, path: &'a Path) -> impl Fn(Errno) -> RootError + 'a {
    move |errno| RootError::Path {
        operation,
        path: path.to_owned(),
        source: errno.into(),
    }
}

fn bytes_to_os(bytes: Vec<u8>) -> OsString {
    std::os::unix::ffi::OsStringExt::from_vec(bytes)
}

/// Names and `..`s of a path, without `/` and `.`.
pub(crate) fn parts(path: &Path) -> impl DoubleEndedIterator<Item = OsString> + '_ {
    path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some(OsString::from("..")),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn root() -> (tempfile::TempDir, Root) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        fs::create_dir_all(path.join("srv/data")).unwrap();
        fs::write(path.join("srv/file"), "inside").unwrap();
        for (link, target) in [
            ("absolute", "/srv"),
            ("up", "../../../../srv"),
            ("chain", "absolute/data"),
            ("dangling", "/srv/new/deep"),
            ("loop", "loop"),
            ("passwd", "/etc/passwd"),
        ] {
            symlink(target, path.join(link)).unwrap();
        }
        let root = Root::open(path).unwrap();
        (directory, root)
    }

    #[test]
    fn links_and_parents_stay_inside_the_root() {
        let (_directory, root) = root();
        for (path, expected) in [
            ("/", ""),
            ("/srv/file", "srv/file"),
            ("absolute/file", "srv/file"),
            ("up/file", "srv/file"),
            ("chain/../file", "srv/file"),
            ("/../../srv", "srv"),
            ("dangling", "srv/new/deep"),
            ("none/at/all", "none/at/all"),
        ] {
            assert_eq!(
                root.canonical(Path::new(path)).unwrap(),
                Path::new(expected),
                "{path}"
            );
        }
        assert!(root.canonical(Path::new("loop")).is_err());
        assert!(root.canonical(Path::new("srv/file/below")).is_err());
        assert_eq!(
            root.canonical_parent(Path::new("absolute/../up")).unwrap(),
            Path::new("up")
        );
        assert_eq!(root.read(Path::new("passwd")).unwrap(), None);
        assert_eq!(root.read(Path::new("up/file")).unwrap().unwrap(), b"inside");
    }

    #[test]
    fn only_a_regular_file_of_some_size_is_read() {
        let (directory, root) = root();
        let path = directory.path();
        let fifo = path.join("srv/fifo");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &fifo,
            FileType::Fifo,
            Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        symlink("/srv/fifo", path.join("to-fifo")).unwrap();
        for (name, bytes) in [("most", MOST_READ_BYTES), ("more", MOST_READ_BYTES + 1)] {
            let file = fs::File::create(path.join(name)).unwrap();
            file.set_len(bytes).unwrap();
        }
        for (name, why) in [
            ("srv/fifo", "it is no regular file"),
            ("to-fifo", "it is no regular file"),
            ("srv", "it is no regular file"),
            ("more", "it is larger than 16 MiB"),
        ] {
            let error = root.read(Path::new(name)).unwrap_err();
            assert_eq!(error.class(), Class::CONTENT, "{name}");
            let told = crate::error::chain(&error);
            let expected = format!("read {name} in the root file system: {why}");
            assert_eq!(told, expected);
        }
        let most = root.read(Path::new("most")).unwrap().unwrap();
        assert_eq!(most.len() as u64, MOST_READ_BYTES);
    }

    #[test]
    fn missing_directories_are_made_where_links_lead() {
        let (directory, root) = root();
        let (uid, gid) = (
            rustix::process::geteuid().as_raw(),
            rustix::process::getegid().as_raw(),
        );
        let made = root
            .create_directories(Path::new("/dangling/x"), (uid, gid))
            .unwrap();
        assert_eq!(
            made,
            ["srv/new", "srv/new/deep", "srv/new/deep/x"].map(PathBuf::from)
        );
        assert!(directory.path().join("srv/new/deep/x").is_dir());
        assert_eq!(
            root.create_directories(Path::new("/srv/new"), (uid, gid))
                .unwrap(),
            Vec::<PathBuf>::new()
        );
        assert!(
            root.create_directories(Path::new("/srv/file/x"), (uid, gid))
                .is_err()
        );
    }
}
