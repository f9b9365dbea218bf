//! How does a layer's tar become a directory that overlayfs takes as a lower one?
//!
//! ```text
//! compressed bytes ─► sha256 ─► inflate ─► sha256 ─► entries ─► NAME.tmp/ ─► (both digests right?) ─► NAME/ ─► settle over the lower layers
//! ```
//!
//! * Each layer gets a directory of its own, so layers unpack at the same time. What a tar says about lower layers (hard links into
//!   them, folders that it only implies) is left to [`UnpackedLayer::settle`], which needs them to be there.
//! * Nothing is written outside the directory: every path is walked one component at a time without following links, and symbolic links of
//!   the layer are followed as a process inside the root would ([`tree`]).
//! * A whiteout becomes a character device 0/0, an opaque mark an extended attribute, as overlayfs has them (or what [`XattrPrefix::Own`] says). Marks that a tar itself
//!   brings along as `*.overlay.*` attributes are dropped: they could redirect a folder.
//! * A layer whose digest or diff ID is wrong never gets its name.
//!
//! Left out: sparse files (no builder writes them into layers), and devices and `trusted.` attributes where the kernel refuses them
//! to us: the base's own layers are pushed byte for byte, so nothing is lost from the image.

pub(crate) mod entries;
mod place;
mod settle;
mod tree;

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, BufRead as _, BufReader, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use flate2::bufread::MultiGzDecoder;
use rustix::fs::{Mode, OFlags, Timestamps};

use crate::decompress::{LARGEST_LAYER_WINDOW, ZstdReader};
use crate::digest::{Digest, Hashing};
use crate::error::{Class, Classify};
use crate::overlay::XattrPrefix;
pub use entries::TarError;
use place::Unpacker;
pub(crate) use place::is_mark;
use tree::Tree;

/// What one layer may come to. The limits are far above any operating system's layer and far below a node's disk and inodes.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Of all files together.
    pub bytes: u64,
    /// Files, folders, links; folders that are only implied, too.
    pub entries: u64,
    /// Of the paths that are kept in memory until the layer is settled: those of folders, and of links into lower layers.
    pub path_bytes: u64,
}

/// See [`Limits`].
pub const DEFAULT_LIMITS: Limits = Limits {
    bytes: 64 << 30,
    entries: 4_000_000,
    // Half a million folders; the largest layers have some ten thousand.
    path_bytes: 64 << 20,
};

/// A layer that can't be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The bytes themselves.
    #[error("unpack the layer {layer}")]
    Tar {
        /// The blob.
        layer: Digest,
        /// Why not.
        source: TarError,
    },
    /// The blob is another one.
    #[error("the layer {layer} came with the digest {got}")]
    WrongDigest {
        /// Asked for.
        layer: Digest,
        /// Came.
        got: Digest,
    },
    /// The tar is another one than the image's configuration says.
    #[error("the layer {layer} unpacks to {got}, but the image's configuration says {diff_id}")]
    WrongDiffId {
        /// The blob.
        layer: Digest,
        /// In the configuration.
        diff_id: Digest,
        /// Of the tar.
        got: Digest,
    },
    /// Neither gzip nor zstd nor a bare tar: layers of images are not compressed otherwise.
    #[error("the layer {layer} is compressed with {compression}, which no image may use")]
    Compression {
        /// The blob.
        layer: Digest,
        /// Its format.
        compression: &'static str,
    },
    /// More than [`Limits`] allow.
    #[error("the layer {layer} unpacks to more than {limit} {unit}")]
    TooLarge {
        /// The blob.
        layer: Digest,
        /// How many.
        limit: u64,
        /// Of what.
        unit: &'static str,
    },
    /// An entry that can't be where it wants to be.
    #[error("the layer {layer} has the entry {}, but {why}", path.display())]
    Entry {
        /// The blob.
        layer: Digest,
        /// The entry.
        path: PathBuf,
        /// Why not.
        why: &'static str,
    },
    /// Somebody who has no number in our user namespace.
    #[error("the layer {layer} has the entry {} of {uid}:{gid}, but this tier has no such id; see `strata-builder doctor`", path.display())]
    Owner {
        /// The blob.
        layer: Digest,
        /// The entry.
        path: PathBuf,
        /// Its owner.
        uid: u32,
        /// Its group.
        gid: u32,
    },
    /// The disk.
    #[error("{operation} {}", path.display())]
    Write {
        /// What was tried.
        operation: &'static str,
        /// With what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

impl Classify for UnpackError {
    fn class(&self) -> Class {
        match self {
            Self::Tar { source, .. } => match source {
                TarError::Read(error) => match error.kind() {
                    io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput => Class::CONTENT,
                    // A transfer that broke off; the next may not.
                    _ => Class::Transient,
                },
                TarError::Malformed(_) => Class::CONTENT,
            },
            Self::Owner { .. } => Class::RIGHTS,
            // A proxy that cut or spoiled a body may do better next time.
            Self::WrongDigest { .. } => Class::Transient,
            Self::WrongDiffId { .. }
            | Self::Compression { .. }
            | Self::TooLarge { .. }
            | Self::Entry { .. } => Class::CONTENT,
            Self::Write {
                operation, source, ..
            } => of_write(operation, source),
        }
    }
}

/// What is done with an entry's extended attributes.
const XATTRS: &str = "set the extended attributes of";

/// Whose fault it is that the kernel refuses something. Names, targets and attributes that it can't have are those of the layer, and stay so on every node.
fn of_write(operation: &str, error: &io::Error) -> Class {
    match error.raw_os_error() {
        // A file has room for few extended attributes, however empty the disk is.
        Some(libc::ENOSPC) if operation == XATTRS => Class::CONTENT,
        // A full or failing disk of this node, or a node that is short of something; another attempt may land on another one.
        Some(
            libc::ENOSPC | libc::EDQUOT | libc::EIO | libc::EMFILE | libc::ENFILE | libc::ENOMEM,
        ) => Class::Transient,
        // We may not do what we must.
        Some(libc::EPERM | libc::EACCES | libc::EROFS) if operation != XATTRS => Class::INTERNAL,
        Some(_) => Class::CONTENT,
        None => Class::INTERNAL,
    }
}

/// A layer on disk, not yet fit to the layers below it.
#[derive(Debug)]
pub struct UnpackedLayer {
    digest: Digest,
    directory: PathBuf,
    marks: XattrPrefix,
    /// Folders that the tar has entries in but no entry for; parents first.
    implied: Vec<PathBuf>,
    /// Hard links whose target this layer doesn't have: link and target.
    links: Vec<(PathBuf, PathBuf)>,
    /// Times of folders; set last, since every new entry changes them.
    times: BTreeMap<PathBuf, Timestamps>,
}

/// Unpacks the layer `digest` from `blob` (its bytes as they are in the registry) into the new folder `directory`. On failure nothing of that name exists. With a
/// `diff_id`, the tar must have it: whatever scans or signs an image may go by it.
///
/// # Errors
/// User: no tar, or one with entries that leave its root. Transient: the transfer, the disk.
pub fn unpack_layer(
    blob: impl Read,
    (digest, diff_id): (Digest, Option<Digest>),
    directory: &Path,
    marks: XattrPrefix,
    limits: Limits,
) -> Result<UnpackedLayer, UnpackError> {
    let mut partial = directory.as_os_str().to_owned();
    partial.push(".tmp");
    let partial = PathBuf::from(partial);
    let unpacked =
        unpack_into(blob, (digest, diff_id), &partial, marks, limits).and_then(|mut layer| {
            fs::rename(&partial, directory).map_err(write("rename", &partial))?;
            layer.directory = directory.to_owned();
            Ok(layer)
        });
    if unpacked.is_err()
        && let Err(error) = fs::remove_dir_all(&partial)
    {
        // The scratch folder goes away with the pod; the first failure is the one to tell.
        tracing::debug!(%error, partial = %partial.display(), "partial layer stays");
    }
    unpacked
}

fn unpack_into(
    blob: impl Read,
    (digest, diff_id): (Digest, Option<Digest>),
    directory: &Path,
    marks: XattrPrefix,
    limits: Limits,
) -> Result<UnpackedLayer, UnpackError> {
    fs::create_dir(directory).map_err(write("create", directory))?;
    let root = open_root(directory)?;
    let tar = |source| UnpackError::Tar {
        layer: digest,
        source,
    };
    let mut unpacker = Unpacker {
        layer: UnpackedLayer {
            digest,
            directory: directory.to_owned(),
            marks,
            implied: Vec::new(),
            links: Vec::new(),
            times: BTreeMap::new(),
        },
        tree: Tree::new(root, marks),
        limits,
        bytes: 0,
        entries: 0,
        buffer: vec![0; 256 << 10],
        links: BTreeMap::new(),
    };
    let mut blob = BufReader::with_capacity(256 << 10, Hashing::new(blob));
    let start = blob.fill_buf().map_err(|error| tar(error.into()))?;
    let (mut blob, tar_digest) = match start {
        [0x1f, 0x8b, ..] => {
            let inflated = Hashing::new(MultiGzDecoder::new(blob));
            let inflated = BufReader::with_capacity(256 << 10, inflated);
            let (decoder, tar_digest, _) = unpacker.unpack(inflated)?.into_inner().finish();
            (decoder.into_inner(), Some(tar_digest))
        }
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            let decoder = ZstdReader::new(blob, LARGEST_LAYER_WINDOW);
            let decoder = decoder.map_err(|error| tar(error.into()))?;
            let inflated = BufReader::with_capacity(256 << 10, Hashing::new(decoder));
            let (decoder, tar_digest, _) = unpacker.unpack(inflated)?.into_inner().finish();
            (decoder.into_inner(), Some(tar_digest))
        }
        [b'B', b'Z', b'h', ..] => {
            return Err(UnpackError::Compression {
                layer: digest,
                compression: "bzip2",
            });
        }
        [0xfd, b'7', b'z', ..] => {
            return Err(UnpackError::Compression {
                layer: digest,
                compression: "xz",
            });
        }
        _ => (unpacker.unpack(blob)?, None),
    };
    // The digest is of all bytes, those after the archive's end too.
    io::copy(&mut blob, &mut io::sink()).map_err(|error| tar(error.into()))?;
    let (_, got, _) = blob.into_inner().finish();
    if got != digest {
        return Err(UnpackError::WrongDigest { layer: digest, got });
    }
    // What isn't compressed is the tar itself.
    let got = tar_digest.unwrap_or(digest);
    match diff_id {
        Some(diff_id) if diff_id != got => Err(UnpackError::WrongDiffId {
            layer: digest,
            diff_id,
            got,
        }),
        Some(_) | None => Ok(unpacker.finish()),
    }
}

fn open_root(directory: &Path) -> Result<OwnedFd, UnpackError> {
    rustix::fs::open(
        directory,
        OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(|errno| write("open", directory)(errno.into()))
}

fn write<'a>(
    operation: &'static str,
    path: &'a Path,
) -> impl FnOnce(io::Error) -> UnpackError + 'a {
    move |source| UnpackError::Write {
        operation,
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests;
