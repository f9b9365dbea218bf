//! What does a tree look like now, so that changes can be told later without a second copy of it?
//!
//! Of each file: inode, change time, attributes, and a digest of its content. A file whose inode and change time are the same has not
//! changed: no program can set a change time. If only the change time differs (another of its names is gone, its mode was set to what it was) the
//! rest decides.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use rustix::fs::{CWD, FileType, Mode, Stat, openat, readlinkat};
use rustix::io::Errno;

use super::LayerError;
use super::before::{Looks, open_file};
use super::walk::{DIRECTORY, is_whiteout, names, not_too_deep, read_failed};
use super::xattrs::Xattrs;
use crate::attributes;
use crate::digest::{Digest, Hashing};

/// A tree at one time.
#[derive(Debug)]
pub struct Index {
    root: Node,
    /// Of files and links; a file of several names has one.
    contents: Vec<Option<Digest>>,
    /// The newest change time in the tree.
    newest: (i64, u64),
}

/// One entry, and what is in it if it is a directory.
#[derive(Debug)]
pub(super) struct Node {
    looks: Looks,
    inode: u64,
    links: u64,
    changed: (i64, u64),
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// In [`Index::contents`].
    content: Option<usize>,
    /// By name. A map would hold room for eleven in each of the many directories that have one or two.
    children: Children,
}

type Children = Box<[(Box<[u8]>, Node)]>;

/// A tree whose contents are known already.
#[derive(Clone, Copy)]
pub enum Known<'a> {
    /// None is.
    Nothing,
    /// The same tree at an earlier time.
    Earlier(&'a Index),
    /// A tree that this one is a copy of.
    Original(&'a Index),
}

impl Index {
    /// Looks at everything below `root` and reads the files whose content isn't known.
    ///
    /// # Errors
    /// Transient: the disk.
    pub fn of(root: &Path, known: Known<'_>) -> Result<Self, LayerError> {
        let directory = openat(CWD, root, DIRECTORY, Mode::empty()).map_err(|e| failed(root, e))?;
        let stat = attributes::stat(&directory, "").map_err(|e| failed(root, e))?;
        let mut making = Making {
            known,
            contents: Vec::new(),
            unread: Vec::new(),
            links: HashMap::new(),
            newest: (0, 0),
        };
        let before = match known {
            Known::Nothing => None,
            Known::Earlier(index) | Known::Original(index) => Some(&index.root),
        };
        let mut node = Node::of(&stat);
        node.children = making.children(&directory, before, &mut PathBuf::new())?;
        let Making {
            mut contents,
            unread,
            newest,
            ..
        } = making;
        for (slot, digest) in digests(&directory, &unread)? {
            contents[slot] = Some(digest);
        }
        Ok(Self {
            root: node,
            contents,
            newest,
        })
    }

    pub(super) fn root(&self) -> &Node {
        &self.root
    }

    /// The newest change time in the tree: a later change has a later one.
    #[must_use]
    pub const fn newest(&self) -> (i64, u64) {
        self.newest
    }

    pub(super) fn is_same(
        &self,
        node: &Node,
        now: BorrowedFd<'_>,
        name: &[u8],
        stat: &Stat,
        xattrs: &dyn Fn() -> Result<Xattrs, Errno>,
    ) -> Result<bool, Errno> {
        if node.inode == stat.st_ino && node.changed == changed(stat) {
            return Ok(true);
        }
        if node.looks != Looks::of(stat) || node.xattrs != xattrs()?.kept {
            return Ok(false);
        }
        let content = node.content.and_then(|slot| self.contents[slot]);
        Ok(match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => {
                let file = open_file(now, name)?;
                content == Some(digest(file).map_err(from_io)?)
            }
            FileType::Symlink => {
                let target = readlinkat(now, name, Vec::new())?;
                content == Some(Digest::of(target.as_bytes()))
            }
            _ => true,
        })
    }
}

impl Node {
    fn of(stat: &Stat) -> Self {
        Self {
            looks: Looks::of(stat),
            inode: stat.st_ino,
            links: stat.st_nlink,
            changed: changed(stat),
            xattrs: BTreeMap::new(),
            content: None,
            children: Children::default(),
        }
    }

    pub fn names(&self) -> BTreeSet<Vec<u8>> {
        let names = self.children.iter();
        names.map(|(name, _)| name.to_vec()).collect()
    }

    pub fn child(&self, name: &[u8]) -> Option<&Self> {
        let found = self
            .children
            .binary_search_by(|(known, _)| known.as_ref().cmp(name));
        found.ok().map(|place| &self.children[place].1)
    }

    /// How many names it had if it is `stat`.
    pub fn links(&self, stat: &Stat) -> Option<u64> {
        (self.inode == stat.st_ino).then_some(self.links)
    }

    pub fn is_same_directory(&self, stat: &Stat, xattrs: &Xattrs) -> bool {
        let now = Looks::of(stat);
        (self.looks.mode, self.looks.owner) == (now.mode, now.owner) && self.xattrs == xattrs.kept
    }
}

struct Making<'a> {
    known: Known<'a>,
    contents: Vec<Option<Digest>>,
    /// Files to read, and where their digests belong.
    unread: Vec<(PathBuf, usize)>,
    /// Inodes with several names → place of their content.
    links: HashMap<u64, usize>,
    newest: (i64, u64),
}

impl Making<'_> {
    fn children(
        &mut self,
        directory: &OwnedFd,
        before: Option<&Node>,
        path: &mut PathBuf,
    ) -> Result<Children, LayerError> {
        not_too_deep(path)?;
        let mut children = Vec::new();
        for name in names(directory.as_fd()).map_err(|e| failed(path, e))? {
            path.push(OsStr::from_bytes(&name));
            let before = before.and_then(|before| before.child(&name));
            if let Some(node) = self.node(directory, &name, before, path)? {
                children.push((name.into_boxed_slice(), node));
            }
            path.pop();
        }
        children.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
        Ok(children.into_boxed_slice())
    }

    fn node(
        &mut self,
        parent: &OwnedFd,
        name: &[u8],
        before: Option<&Node>,
        path: &mut PathBuf,
    ) -> Result<Option<Node>, LayerError> {
        let stat =
            attributes::stat(parent, OsStr::from_bytes(name)).map_err(|e| failed(path, e))?;
        if is_whiteout(&stat) {
            return Ok(None);
        }
        let mut node = Node::of(&stat);
        self.newest = self.newest.max(node.changed);
        let file_type = FileType::from_raw_mode(stat.st_mode);
        node.xattrs = Xattrs::read(parent.as_fd(), name, file_type)
            .map_err(|e| failed(path, e))?
            .kept;
        match file_type {
            FileType::Directory => {
                let directory =
                    openat(parent, name, DIRECTORY, Mode::empty()).map_err(|e| failed(path, e))?;
                node.children = self.children(&directory, before, path)?;
            }
            FileType::Symlink => {
                let target = readlinkat(parent, name, Vec::new()).map_err(|e| failed(path, e))?;
                node.content = Some(self.contents.len());
                self.contents.push(Some(Digest::of(target.as_bytes())));
            }
            FileType::RegularFile => node.content = Some(self.file(&node, &stat, before, path)),
            // It never gets into an image.
            FileType::Socket => return Ok(None),
            FileType::Fifo
            | FileType::CharacterDevice
            | FileType::BlockDevice
            | FileType::Unknown => {}
        }
        Ok(Some(node))
    }

    /// The place of the file's content.
    fn file(&mut self, node: &Node, stat: &Stat, before: Option<&Node>, path: &Path) -> usize {
        if let Some(slot) = self.links.get(&node.inode) {
            return *slot;
        }
        let known = before.and_then(|before| match self.known {
            Known::Nothing => None,
            Known::Earlier(index) => (before.inode == node.inode && before.changed == node.changed)
                .then(|| index.contents[before.content?]),
            Known::Original(index) => {
                (before.looks == node.looks).then(|| index.contents[before.content?])
            }
        });
        let slot = self.contents.len();
        self.contents.push(known.flatten());
        if self.contents[slot].is_none() {
            self.unread.push((path.to_owned(), slot));
        }
        if stat.st_nlink > 1 {
            self.links.insert(node.inode, slot);
        }
        slot
    }
}

/// Reads the files on all cores.
fn digests(root: &OwnedFd, files: &[(PathBuf, usize)]) -> Result<Vec<(usize, Digest)>, LayerError> {
    let next = AtomicUsize::new(0);
    let read = || {
        let mut read = Vec::new();
        while let Some((path, slot)) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
            let file = open_file(root.as_fd(), path.as_os_str().as_bytes());
            let digest = file.map_err(io::Error::from).and_then(digest);
            let digest = digest.map_err(|source| LayerError::Read {
                path: path.clone(),
                source,
            })?;
            read.push((*slot, digest));
        }
        Ok(read)
    };
    let threads = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        let readers: Vec<_> = (0..threads).map(|_| scope.spawn(read)).collect();
        let mut all = Vec::with_capacity(files.len());
        for reader in readers {
            // A thread that panics is a bug of ours, told as a file that can't be read.
            let read = reader.join().unwrap_or_else(|_| {
                Err(LayerError::Write(io::Error::other("a thread broke down")))
            });
            all.extend(read?);
        }
        Ok(all)
    })
}

fn digest(mut file: std::fs::File) -> io::Result<Digest> {
    let mut hashing = Hashing::new(io::sink());
    let mut buffer = vec![0; 128 << 10];
    loop {
        match io::Read::read(&mut file, &mut buffer)? {
            0 => return Ok(hashing.finish().1),
            read => hashing.update(&buffer[..read]),
        }
    }
}

fn changed(stat: &Stat) -> (i64, u64) {
    (stat.st_ctime, stat.st_ctime_nsec)
}

fn from_io(error: io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}

fn failed(path: &Path, errno: Errno) -> LayerError {
    read_failed(path.as_os_str().as_bytes(), errno)
}
