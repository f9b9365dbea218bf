//! Where do a stage's files live where overlays are denied? In one directory that holds base and changes.
//!
//! ```text
//! layers ─► merge (moved, not copied) ─► FlatRoot ─► open ─► Open: steps write, an index knows how it was ─► seal ─► what changed
//!                                           └─ still needed by others? then open copies it first
//! ```
//!
//! The last stage that starts from a root works in the root itself; only one before it gets a copy. What a step changes is found by one walk beside
//! the [`Index`] made before it.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::fs::CWD;
use tokio::sync::{OwnedRwLockReadGuard, RwLock};

use crate::attributes;
use crate::copy::{CopyError, CopyRequest, copy};
use crate::error::{Class, Classify};
use crate::layer::LayerError;
use crate::layer::index::{Index, Known};
use crate::layer::walk::{Found, changes};
use crate::root::{Root, RootError};

mod merge;

pub use merge::{add, merge};

/// A tree that nobody changes at the moment.
#[derive(Debug)]
pub struct FlatRoot {
    path: PathBuf,
    /// It may become a stage's own.
    is_ours: bool,
    index: Mutex<Indexed>,
    /// Held by those who read it while it may already have become a stage's own.
    readers: Arc<RwLock<()>>,
}

/// What is known of a root.
#[derive(Clone, Debug)]
enum Indexed {
    Not,
    /// But it has changed since.
    Earlier(Arc<Index>),
    Now(Arc<Index>),
}

/// A tree that a stage changes.
#[derive(Debug)]
pub struct Open {
    path: PathBuf,
    before: Arc<Index>,
}

/// A flat root could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum FlatError {
    /// The disk.
    #[error("{operation} {}", path.display())]
    Disk {
        /// What was tried.
        operation: &'static str,
        /// With what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Copying a root.
    #[error("copy the base's files")]
    Copy(#[from] CopyError),
    /// A root that can't be opened.
    #[error(transparent)]
    Root(#[from] RootError),
    /// Looking at a root.
    #[error(transparent)]
    Read(#[from] LayerError),
}

impl Classify for FlatError {
    fn class(&self) -> Class {
        match self {
            // A full or failing disk of this node; another attempt may land on another node. The files are our own, so nothing is wrong with them.
            Self::Disk { .. } | Self::Copy(_) | Self::Root(_) => Class::Transient,
            Self::Read(error) => error.class(),
        }
    }
}

impl FlatError {
    fn disk<'a>(operation: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> Self + 'a {
        move |source| Self::Disk {
            operation,
            path: path.to_owned(),
            source,
        }
    }
}

impl FlatRoot {
    /// The tree `path`, which a stage may take over.
    #[must_use]
    pub fn ours(path: PathBuf) -> Self {
        Self::new(path, true, Indexed::Not)
    }

    /// The tree `path`, which stays as it is.
    #[must_use]
    pub fn foreign(path: PathBuf) -> Self {
        Self::new(path, false, Indexed::Not)
    }

    fn new(path: PathBuf, is_ours: bool, index: Indexed) -> Self {
        Self {
            path,
            is_ours,
            index: Mutex::new(index),
            readers: Arc::default(),
        }
    }

    /// Its files.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Keeps those who would change it waiting; none if somebody does already.
    #[must_use]
    pub fn reader(&self) -> Option<OwnedRwLockReadGuard<()>> {
        Arc::clone(&self.readers).try_read_owned().ok()
    }

    fn index(&self) -> Result<Arc<Index>, LayerError> {
        let mut index = self.index.lock().unwrap_or_else(PoisonError::into_inner);
        let now = match &*index {
            Indexed::Now(index) => return Ok(Arc::clone(index)),
            Indexed::Earlier(earlier) => Index::of(&self.path, Known::Earlier(earlier))?,
            Indexed::Not => Index::of(&self.path, Known::Nothing)?,
        };
        let now = Arc::new(now);
        *index = Indexed::Now(Arc::clone(&now));
        Ok(now)
    }

    /// Makes a root to be changed: this one if nobody else has it, or else a copy at `new`. Blocks.
    ///
    /// # Errors
    /// Transient: the disk.
    pub fn open(self: Arc<Self>, new: &Path) -> Result<Open, FlatError> {
        let before = self.index()?;
        let open = match Arc::try_unwrap(self) {
            Ok(root) if root.is_ours => {
                drop(tokio::runtime::Handle::current().block_on(root.readers.write()));
                Open {
                    path: root.path,
                    before,
                }
            }
            Ok(Self { path, .. }) => copy_root(&path, &before, new)?,
            Err(shared) => copy_root(&shared.path, &before, new)?,
        };
        open.wait_for_the_clock()?;
        Ok(open)
    }
}

impl Open {
    /// An empty root at `new`, mode 0755.
    ///
    /// # Errors
    /// Transient: the disk.
    pub fn empty(new: &Path) -> Result<Self, FlatError> {
        fs::create_dir_all(new).map_err(FlatError::disk("create", new))?;
        fs::set_permissions(new, fs::Permissions::from_mode(0o755))
            .map_err(FlatError::disk("chmod", new))?;
        Ok(Self {
            path: new.to_owned(),
            before: Arc::new(Index::of(new, Known::Nothing)?),
        })
    }

    /// Its files.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What changed, and the root as it is now.
    ///
    /// # Errors
    /// Transient: the disk.
    pub fn seal(self) -> Result<(Vec<Found>, FlatRoot), FlatError> {
        let found = changes(&self.path, &self.before)?;
        let root = FlatRoot::new(self.path, true, Indexed::Earlier(self.before));
        Ok((found, root))
    }

    /// Change times are as fine as the kernel's clock ticks: a change in the same tick as the last one before would look like none.
    fn wait_for_the_clock(&self) -> Result<(), FlatError> {
        let beside = self.path.with_extension("clock");
        let failed = || FlatError::disk("write", &beside);
        loop {
            fs::write(&beside, "").map_err(failed())?;
            let now = fs::metadata(&beside).map_err(failed())?;
            if (now.ctime(), now.ctime_nsec().unsigned_abs()) > self.before.newest() {
                return fs::remove_file(&beside).map_err(failed());
            }
            fs::remove_file(&beside).map_err(failed())?;
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

fn copy_root(from: &Path, index: &Index, to: &Path) -> Result<Open, FlatError> {
    copy_tree(from, to)?;
    Ok(Open {
        path: to.to_owned(),
        before: Arc::new(Index::of(to, Known::Original(index))?),
    })
}

/// Copies all files of `from` with their attributes into the new directory `to`, which then looks like `from` itself.
///
/// # Errors
/// Transient: the disk.
pub fn copy_tree(from: &Path, to: &Path) -> Result<(), FlatError> {
    fs::create_dir_all(to).map_err(FlatError::disk("create", to))?;
    let everything = CopyRequest {
        sources: vec![".".to_owned()],
        destination: "/".to_owned(),
        ..CopyRequest::default()
    };
    copy(&everything, &Root::open(from)?, None, &Root::open(to)?)?;
    let dress = || {
        let look = attributes::stat(CWD, from)?;
        attributes::chown(CWD, to, (look.st_uid, look.st_gid))?;
        attributes::chmod(CWD, to, look.st_mode & 0o7777)
    };
    dress().map_err(|errno| FlatError::disk("set the attributes of", to)(errno.into()))
}
