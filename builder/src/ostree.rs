//! Which folders does a base have, before any of it is unpacked? An image made from an ostree commit (RHEL CoreOS, Fedora CoreOS, bootc images) says it in
//! its first layer, which holds the commit and all its folder objects: about a megabyte for an operating system.
//!
//! ```text
//! commit ─► folder object (names and checksums of its files and folders) ─► folder objects below
//!                     └─► folder metadata (owner, mode)
//! ```
//!
//! Each object is named after the SHA-256 of its content, and the commit by the image's label [`COMMIT_LABEL`]. Formats: ostree-core.h of libostree (GVariant), and for the
//! tar ostree-ext's `docs/ostree-ext.md`. A name in a folder that is no folder may be a file or a symbolic link; only the other layers know.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};

use gvariant::aligned_bytes::{AsAligned as _, copy_to_align};
use gvariant::{Marker as _, gv};
use rustix::fs::{Mode, mkdirat};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};

use crate::attributes;
use crate::unpack::TarError;
use crate::unpack::entries::{Bounded, EntryReader};

/// Label of an image: the commit that it was made from, 64 hex digits.
pub const COMMIT_LABEL: &str = "ostree.commit";
/// Label of an image: the diff id of the last layer that belongs to the commit.
pub const LAST_LAYER_LABEL: &str = "ostree.final-diffid";

/// All objects together; RHEL CoreOS has some ten thousand folders.
const OBJECTS_LIMIT_BYTES: u64 = 64 << 20;
/// Unpacked; the objects of RHEL CoreOS are about ten.
const LAYER_LIMIT_BYTES: u64 = 256 << 20;
/// A folder object may stand in many places.
const FOLDERS_LIMIT: usize = 200_000;
const OBJECTS: &str = "sysroot/ostree/repo/objects/";
const MODE_BITS: u32 = 0o7777;

/// SHA-256 of an object.
type Checksum = [u8; 32];

/// The folders of a commit, as the image has them.
#[derive(Debug)]
pub struct Folders {
    objects: HashMap<Checksum, Vec<u8>>,
    top: Folder,
}

/// A folder's objects.
#[derive(Clone, Copy, Debug)]
struct Folder {
    content: Checksum,
    metadata: Checksum,
}

/// What is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Nothing.
    Absent,
    /// A folder.
    Folder,
    /// A file or a link, or the commit doesn't say.
    Other,
}

enum Found {
    Absent,
    Folder(Folder),
    Other,
}

/// The folders can't be known from this layer.
#[derive(Debug, thiserror::Error)]
pub enum FoldersError {
    /// No tar.
    #[error("read the layer of the ostree commit")]
    Read(#[from] TarError),
    /// More than 64 MiB of objects, or 200,000 folders.
    #[error("the ostree commit has more folders than an operating system")]
    TooLarge,
    /// Not all objects are in the layer, or one isn't what its name says.
    #[error("the layer lacks an object of the ostree commit")]
    Incomplete,
    /// A folder can't be made.
    #[error("make the folder {}", path.display())]
    Make {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

impl Folders {
    /// Reads the commit and its folder objects from the first layer's tar.
    ///
    /// # Errors
    /// No tar, or without these objects.
    pub fn read(layer: impl Read, commit: Checksum) -> Result<Self, FoldersError> {
        let mut objects = HashMap::new();
        let mut left = OBJECTS_LIMIT_BYTES;
        let mut tar = EntryReader::new(Bounded::new(layer, LAYER_LIMIT_BYTES));
        while let Some(entry) = tar.next()? {
            let Some(checksum) = object(&entry.path) else {
                continue;
            };
            left = left
                .checked_sub(entry.size_bytes)
                .ok_or(FoldersError::TooLarge)?;
            let mut content = vec![0; usize::try_from(entry.size_bytes).unwrap_or(0)];
            let mut filled = 0;
            while filled < content.len() {
                filled += tar.content(&mut content[filled..])?;
            }
            if Sha256::digest(&content)[..] == checksum {
                objects.insert(checksum, content);
            }
        }
        let commit = objects.get(&commit).ok_or(FoldersError::Incomplete)?;
        let commit = copy_to_align(commit);
        let (_, _, _, _, _, _, content, metadata) =
            gv!("(a{sv}aya(say)sstayay)").cast(&commit).into();
        let top = Folder::of(content, metadata).ok_or(FoldersError::Incomplete)?;
        Ok(Self { objects, top })
    }

    /// What is at `path`, which is absolute or relative to the root, without links in it.
    #[must_use]
    pub fn kind(&self, path: &Path) -> Kind {
        match self.find(path) {
            Found::Absent => Kind::Absent,
            Found::Folder(_) => Kind::Folder,
            Found::Other => Kind::Other,
        }
    }

    /// Makes in `root` the folders on the way to `path`, and if there is one at it, all below it; false if something else than a folder is on
    /// the way.
    ///
    /// # Errors
    /// The disk, or more folders than an operating system has.
    pub fn make(&self, path: &Path, root: &Path) -> Result<bool, FoldersError> {
        let mut made = PathBuf::new();
        for part in parts(path) {
            made.push(part);
            match self.find(&made) {
                Found::Other => return Ok(false),
                Found::Absent => return Ok(true),
                Found::Folder(folder) => self.make_one(folder, root, &made)?,
            }
        }
        let (mut waiting, mut count) = (vec![made], 0);
        while let Some(path) = waiting.pop() {
            let Found::Folder(folder) = self.find(&path) else {
                continue;
            };
            count += 1;
            if count > FOLDERS_LIMIT {
                return Err(FoldersError::TooLarge);
            }
            self.make_one(folder, root, &path)?;
            let names = self.names(folder)?;
            waiting.extend(names.into_iter().map(|name| path.join(name)));
            if path.as_os_str().is_empty() {
                waiting.push(PathBuf::from("etc"));
            }
        }
        Ok(true)
    }

    fn make_one(&self, folder: Folder, root: &Path, path: &Path) -> Result<(), FoldersError> {
        if path.as_os_str().is_empty() {
            return Ok(());
        }
        let metadata = copy_to_align(self.object(folder.metadata)?);
        let (uid, gid, mode, _) = gv!("(uuua(ayay))").cast(&metadata).into();
        // In network order, as all numbers of these objects.
        let [uid, gid, mode] = [uid, gid, mode].map(|number| u32::from_be(*number));
        let made = File::open(root).and_then(|root| {
            match mkdirat(&root, path, Mode::RWXU) {
                Ok(()) => {
                    attributes::chown(&root, path, (uid, gid))?;
                    attributes::chmod(&root, path, mode & MODE_BITS)?;
                }
                Err(Errno::EXIST) => {}
                Err(errno) => return Err(errno.into()),
            }
            Ok(())
        });
        made.map_err(|source| FoldersError::Make {
            path: path.to_owned(),
            source,
        })
    }

    /// The names of the folders in a folder.
    fn names(&self, folder: Folder) -> Result<Vec<OsString>, FoldersError> {
        let content = self.object(folder.content)?;
        let (_, folders) = gv!("(a(say)a(sayay))").cast(content.as_aligned()).into();
        let names = folders.iter().map(|folder| {
            let (name, _, _) = folder.into();
            let name = OsStr::new(name.to_str());
            let is_one_part = Path::new(name).components().eq([Component::Normal(name)]);
            is_one_part.then(|| name.to_owned())
        });
        names.collect::<Option<_>>().ok_or(FoldersError::Incomplete)
    }

    fn object(&self, checksum: Checksum) -> Result<&[u8], FoldersError> {
        let object = self.objects.get(&checksum);
        object.map(Vec::as_slice).ok_or(FoldersError::Incomplete)
    }

    /// The image has the commit's `/usr/etc` at `/etc`, and content of its own in `/sysroot` and `/var`.
    fn find(&self, path: &Path) -> Found {
        // GVariant's strings are UTF-8.
        let Some(in_image) = parts(path).map(OsStr::to_str).collect::<Option<Vec<_>>>() else {
            return Found::Other;
        };
        let in_commit = match in_image.as_slice() {
            ["sysroot" | "ostree" | "var", ..] | ["usr", "etc", ..] => return Found::Other,
            ["etc", below @ ..] => match (self.look(&["etc"]), self.look(&["usr", "etc"])) {
                (Found::Absent, Found::Folder(_)) => [&["usr", "etc"], below].concat(),
                _ => return Found::Other,
            },
            other => other.to_vec(),
        };
        self.look(&in_commit)
    }

    fn look(&self, in_commit: &[&str]) -> Found {
        let mut folder = self.top;
        for part in in_commit {
            let Ok(content) = self.object(folder.content) else {
                return Found::Other;
            };
            let (files, folders) = gv!("(a(say)a(sayay))").cast(content.as_aligned()).into();
            let below = folders.iter().find_map(|entry| {
                let (name, content, metadata) = entry.into();
                (name.to_str() == *part).then(|| Folder::of(content, metadata))
            });
            let is_file = || {
                files.iter().any(|entry| {
                    let (name, _) = entry.into();
                    name.to_str() == *part
                })
            };
            folder = match below {
                Some(Some(below)) => below,
                Some(None) => return Found::Other,
                None if is_file() => return Found::Other,
                None => return Found::Absent,
            };
        }
        Found::Folder(folder)
    }
}

impl Folder {
    fn of(content: &[u8], metadata: &[u8]) -> Option<Self> {
        Some(Self {
            content: content.try_into().ok()?,
            metadata: metadata.try_into().ok()?,
        })
    }
}

/// The names on the way to `path`.
fn parts(path: &Path) -> impl Iterator<Item = &OsStr> {
    path.components().filter_map(|part| match part {
        Component::Normal(name) => Some(name),
        // Paths are canonical.
        Component::RootDir | Component::CurDir | Component::ParentDir | Component::Prefix(_) => {
            None
        }
    })
}

/// `sysroot/ostree/repo/objects/XX/YYY….KIND` → the checksum, for the kinds that tell of folders.
fn object(path: &[u8]) -> Option<Checksum> {
    let path = std::str::from_utf8(path).ok()?;
    let path = path.strip_prefix("./").unwrap_or(path);
    let (name, kind) = path.strip_prefix(OBJECTS)?.rsplit_once('.')?;
    if !matches!(kind, "commit" | "dirtree" | "dirmeta") {
        return None;
    }
    hex::decode(name.replacen('/', "", 1)).ok()?.try_into().ok()
}
