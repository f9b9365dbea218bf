//! How do a stage's changes become a layer? One pass, nothing stored:
//!
//! ```text
//! walk ─► tar ─► sha256 (diff ID) ─► deflate on up to 8 cores ─► one gzip member, or one zstd frame ─► sha256 (digest) ─► sink
//! ```
//!
//! * The same tree gives the same bytes: names sorted, times whole seconds and clamped, no owner names, a fixed gzip header.
//! * Memory is bounded by the blocks in flight ([`gzip`]) and the names of hard-linked files ([`walk`]).
//!
//! Left out: POSIX ACLs, sparse files (their holes are written as zeros).

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::thread;

use crate::digest::{Digest, Hashing};
use crate::error::{Class, Classify};
use crate::image::{LAYER_MEDIA_TYPE, LAYER_ZSTD_MEDIA_TYPE};
use crate::root::DEEPEST;
use header::{Entry, Kind};
use walk::{Found, Place};

mod before;
pub mod gzip;
pub mod header;
pub mod index;
pub mod walk;
mod xattrs;

/// How a layer is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// One gzip member of this level, 0 to 9.
    Gzip {
        /// As in zlib.
        level: u32,
    },
    /// One zstd frame of this level, 1 to 19: what lies above takes memory that a pod doesn't have.
    Zstd {
        /// As in zstd.
        level: i32,
    },
}

impl Compression {
    /// Of a layer that is compressed so.
    #[must_use]
    pub fn media_type(self) -> &'static str {
        match self {
            Self::Gzip { .. } => LAYER_MEDIA_TYPE,
            Self::Zstd { .. } => LAYER_ZSTD_MEDIA_TYPE,
        }
    }
}

impl Default for Compression {
    /// Level 2: a tenth smaller than level 1 for half as much time again; above it the time grows and the size hardly shrinks.
    fn default() -> Self {
        Self::Gzip { level: 2 }
    }
}

/// zstd's own default.
const ZSTD_LEVEL: i32 = 3;

/// The text is no compression that this version knows.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not supported: layers are written as gzip or gzip:LEVEL, with a level from 0 to 9, or as zstd or zstd:LEVEL, with a level from 1 to 19"
)]
pub struct InvalidCompression(String);

impl FromStr for Compression {
    type Err = InvalidCompression;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidCompression(text.to_owned());
        match text.split_once(':') {
            None if text == "gzip" => Ok(Self::default()),
            Some(("gzip", level)) => match level.parse() {
                Ok(level @ 0..=9) => Ok(Self::Gzip { level }),
                _ => Err(invalid()),
            },
            None if text == "zstd" => Ok(Self::Zstd { level: ZSTD_LEVEL }),
            Some(("zstd", level)) => match level.parse() {
                Ok(level @ 1..=19) => Ok(Self::Zstd { level }),
                _ => Err(invalid()),
            },
            _ => Err(invalid()),
        }
    }
}

/// What decides a layer's bytes besides the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct LayerOptions {
    /// Times after this one (seconds since 1970) become this one.
    pub source_date_epoch: Option<u64>,
    /// How it is compressed.
    pub compression: Compression,
}

/// A written layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerDescriptor {
    /// By its compression.
    pub media_type: &'static str,
    /// Of the compressed bytes.
    pub digest: Digest,
    /// Of the tar.
    pub diff_id: Digest,
    /// Compressed.
    pub size_bytes: u64,
    /// Of the tar.
    pub tar_size_bytes: u64,
    /// Whiteouts included.
    pub entries: u64,
}

/// A layer could not be written.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// A file of the upper or a lower directory.
    #[error("read {} for the layer", path.display())]
    Read {
        /// Inside the image, or one of the directories themselves.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Folders in folders in folders.
    #[error("{} is more than {DEEPEST} folders deep, which no image may have", path.display())]
    TooDeep {
        /// Inside the image.
        path: PathBuf,
    },
    /// A file became shorter while it was read.
    #[error("{} ended early while it was read for the layer", path.display())]
    Truncated {
        /// Inside the image.
        path: PathBuf,
    },
    /// Compressing, or the sink.
    #[error("write the layer")]
    Write(#[from] io::Error),
}

impl Classify for LayerError {
    fn class(&self) -> Class {
        match self {
            // A failing disk of this node; another attempt may land on another node.
            Self::Read { .. } | Self::Write(_) => Class::Transient,
            Self::TooDeep { .. } => Class::CONTENT,
            // Nothing may write to a finished stage.
            Self::Truncated { .. } => Class::INTERNAL,
        }
    }
}

/// Where a stage's changes are.
#[derive(Clone, Debug)]
pub enum Changes {
    /// An overlay's.
    Upper {
        /// What was written.
        upper: PathBuf,
        /// What it lies above, top first.
        below: Vec<PathBuf>,
    },
    /// A flat root's.
    Listed {
        /// All files.
        root: PathBuf,
        /// Those that changed, in order.
        found: Arc<Vec<Found>>,
    },
}

impl Changes {
    /// True if there are none: an empty stage makes no layer.
    ///
    /// # Errors
    /// Transient, if they can't be read.
    pub fn is_empty(&self) -> Result<bool, LayerError> {
        /// Ends the walk at the first change.
        struct First(bool);
        impl walk::Entries for First {
            fn entry(&mut self, _: Entry, _: Place<'_>) -> Result<(), LayerError> {
                self.0 = true;
                Err(LayerError::Write(io::ErrorKind::Interrupted.into()))
            }
        }
        let mut first = First(false);
        match self.tell(None, &mut first) {
            Err(_) if first.0 => Ok(false),
            Err(error) => Err(error),
            Ok(()) => Ok(true),
        }
    }

    /// True if `wanted` is of the path of each, which is relative to the root.
    ///
    /// # Errors
    /// Transient, if they can't be read.
    pub fn all(&self, wanted: impl FnMut(&Path) -> bool) -> Result<bool, LayerError> {
        struct All<F>(F, bool);
        impl<F: FnMut(&Path) -> bool> walk::Entries for All<F> {
            fn entry(&mut self, entry: Entry, _: Place<'_>) -> Result<(), LayerError> {
                self.1 &= (self.0)(Path::new(OsStr::from_bytes(&entry.name)));
                Ok(())
            }
        }
        let mut all = All(wanted, true);
        self.tell(None, &mut all)?;
        Ok(all.1)
    }

    fn tell(&self, newest: Option<u64>, entries: &mut dyn walk::Entries) -> Result<(), LayerError> {
        match self {
            Self::Upper { upper, below } => walk::walk(upper, below, newest, entries),
            Self::Listed { root, found } => walk::replay(root, found, newest, entries),
        }
    }
}

/// Each thread of a layer has some 3 MiB of blocks, and two layers are written at once: 48 MiB on the largest node.
const MOST_THREADS: usize = 8;

/// One per processor, up to [`MOST_THREADS`].
fn threads_for(processors: usize) -> usize {
    processors.clamp(1, MOST_THREADS)
}

/// Writes `changes` to `sink`, with one thread per core, up to eight.
///
/// # Errors
/// See [`LayerError`].
pub fn write_layer<S: Write + Send>(
    changes: &Changes,
    options: LayerOptions,
    sink: S,
) -> Result<(LayerDescriptor, S), LayerError> {
    let threads = threads_for(thread::available_parallelism().map_or(1, usize::from));
    let produce = |out: &mut dyn Write| {
        let mut tar = TarWriter {
            out: Hashing::new(out),
            entries: 0,
            buffer: vec![0; 128 << 10],
        };
        changes.tell(options.source_date_epoch, &mut tar)?;
        tar.out.write_all(&header::END)?;
        let (_, diff_id, size_bytes) = tar.out.finish();
        Ok::<_, LayerError>((diff_id, size_bytes, tar.entries))
    };
    let sink = Hashing::new(sink);
    let ((diff_id, tar_size_bytes, entries), sink) = match options.compression {
        Compression::Gzip { level } => {
            gzip::compress(level, threads, sink, |blocks| produce(blocks))?
        }
        Compression::Zstd { level } => zstd_frame(level, threads, sink, produce)?,
    };
    let (sink, digest, size_bytes) = sink.finish();
    Ok((
        LayerDescriptor {
            media_type: options.compression.media_type(),
            digest,
            diff_id,
            size_bytes,
            tar_size_bytes,
            entries,
        },
        sink,
    ))
}

/// What `produce` writes, as one zstd frame; the bytes don't depend on the number of threads.
fn zstd_frame<S: Write, T>(
    level: i32,
    threads: usize,
    sink: S,
    produce: impl FnOnce(&mut dyn Write) -> Result<T, LayerError>,
) -> Result<(T, S), LayerError> {
    let mut encoder = zstd::stream::write::Encoder::new(sink, level)?;
    encoder.include_checksum(true)?;
    encoder.multithread(u32::try_from(threads).unwrap_or(1).max(1))?;
    let produced = produce(&mut encoder)?;
    Ok((produced, encoder.finish()?))
}

struct TarWriter<'a> {
    out: Hashing<&'a mut dyn Write>,
    entries: u64,
    buffer: Vec<u8>,
}

impl walk::Entries for TarWriter<'_> {
    fn entry(&mut self, entry: Entry, (directory, path): Place<'_>) -> Result<(), LayerError> {
        self.entries += 1;
        self.out.write_all(&entry.header())?;
        if let Kind::File { size_bytes } = entry.kind
            && size_bytes > 0
        {
            let file = before::open_file(directory, path)
                .map_err(|errno| walk::read_failed(&entry.name, errno))?;
            self.content(file, size_bytes, &entry)?;
            self.out
                .write_all(&[0; 511][..header::padding(size_bytes)])?;
        }
        Ok(())
    }
}

impl TarWriter<'_> {
    fn content(
        &mut self,
        mut file: File,
        size_bytes: u64,
        entry: &Entry,
    ) -> Result<(), LayerError> {
        let path = || PathBuf::from(String::from_utf8_lossy(&entry.name).into_owned());
        let mut left = size_bytes;
        while left > 0 {
            let wanted =
                usize::try_from(left).map_or(self.buffer.len(), |left| left.min(self.buffer.len()));
            let read =
                file.read(&mut self.buffer[..wanted])
                    .map_err(|source| LayerError::Read {
                        path: path(),
                        source,
                    })?;
            if read == 0 {
                return Err(LayerError::Truncated { path: path() });
            }
            self.out.write_all(&self.buffer[..read])?;
            left -= read as u64;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
