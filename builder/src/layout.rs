//! How does an image lie in a folder? OCI image layouts, read and written.
//!
//! `oci-layout`, `index.json` and `blobs/sha256/<hex>`, as in the OCI image specification. A blob gets its name only when its digest is
//! known to be right, and `index.json` is replaced at once, so a layout is whole at any moment.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use tempfile::NamedTempFile;

use crate::digest::{Digest, Hashing};
use crate::error::{Class, Classify};
use crate::image::Descriptor;
use crate::reference::{InvalidReference, Reference, is_tag};

/// The annotation that names a manifest in `index.json`.
const NAME_ANNOTATION: &str = "org.opencontainers.image.ref.name";
/// Manifests, indexes and configurations are read whole; registries bound them at 4 MiB.
const LARGEST_DOCUMENT_BYTES: u64 = 8 << 20;

/// Where an image is or goes: `oci:DIR[:TAG]` is a folder, anything else a registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// In a registry.
    Registry(Reference),
    /// In an OCI image layout.
    Layout {
        /// The folder.
        directory: PathBuf,
        /// The manifest's name in it.
        tag: Option<String>,
    },
}

impl FromStr for Location {
    type Err = InvalidReference;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let Some(layout) = text.strip_prefix("oci:") else {
            return text.parse().map(Self::Registry);
        };
        let (directory, tag) = match layout.rsplit_once(':') {
            Some((directory, tag)) if is_tag(tag) => (directory, Some(tag.to_owned())),
            _ => (layout, None),
        };
        if directory.is_empty() {
            return Err(InvalidReference {
                text: text.to_owned(),
                why: "behind oci: stands no folder",
            });
        }
        Ok(Self::Layout {
            directory: directory.into(),
            tag,
        })
    }
}

/// A layout that can't be read or written.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
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
    /// A document that isn't what its name says.
    #[error("{} is no {what}", path.display())]
    Shape {
        /// The file.
        path: PathBuf,
        /// What it should be.
        what: &'static str,
        /// Where it goes wrong.
        source: serde_json::Error,
    },
    /// No such image.
    #[error("{} has no image {}; it has {}", directory.display(), tag.as_deref().unwrap_or("without a tag"), known.join(", "))]
    NoImage {
        /// The layout.
        directory: PathBuf,
        /// Asked for.
        tag: Option<String>,
        /// The tags it has, or how many manifests.
        known: Vec<String>,
    },
    /// Bytes that are not what their digest says.
    #[error("the blob {wanted} has the digest {got}")]
    WrongDigest {
        /// Asked for.
        wanted: Digest,
        /// Came.
        got: Digest,
    },
}

impl Classify for LayoutError {
    fn class(&self) -> Class {
        match self {
            Self::Disk { source, .. } => match source.kind() {
                io::ErrorKind::NotFound
                | io::ErrorKind::NotADirectory
                | io::ErrorKind::PermissionDenied => Class::CONTENT,
                _ => Class::Transient,
            },
            Self::Shape { .. } | Self::NoImage { .. } | Self::WrongDigest { .. } => Class::CONTENT,
        }
    }
}

/// An OCI image layout on disk.
#[derive(Clone, Debug)]
pub struct Layout {
    directory: PathBuf,
}

#[derive(Serialize, Deserialize)]
struct Marker {
    #[serde(rename = "imageLayoutVersion")]
    version: String,
}

/// `index.json`; fields that we don't know are kept.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Index {
    schema_version: u32,
    #[serde(default)]
    manifests: Vec<Descriptor>,
    #[serde(flatten)]
    other: BTreeMap<String, serde_json::Value>,
}

/// A blob on its way into a layout; dropped before its end, nothing of it stays.
#[derive(Debug)]
pub struct LayoutUpload {
    file: Hashing<NamedTempFile>,
    blobs: PathBuf,
}

impl Layout {
    /// Opens the layout at `directory`.
    ///
    /// # Errors
    /// User: the folder isn't one.
    pub fn open(directory: &Path) -> Result<Self, LayoutError> {
        let layout = Self {
            directory: directory.to_owned(),
        };
        layout.document::<Marker>(
            &directory.join("oci-layout"),
            "marker of an OCI image layout",
        )?;
        Ok(layout)
    }

    /// Opens the layout at `directory` and makes what is missing of it, the folder included.
    ///
    /// # Errors
    /// User: the folder can't be written. Transient: the disk.
    pub fn create(directory: &Path) -> Result<Self, LayoutError> {
        let layout = Self {
            directory: directory.to_owned(),
        };
        fs::create_dir_all(layout.blobs()).map_err(disk("create", &layout.blobs()))?;
        let marker = directory.join("oci-layout");
        if !marker.exists() {
            layout.replace(&marker, br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        }
        if !layout.index_path().exists() {
            layout.replace(
                &layout.index_path(),
                br#"{"schemaVersion":2,"manifests":[]}"#,
            )?;
        }
        Ok(layout)
    }

    /// The folder.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// What the layout has under `tag`: a manifest or an index. Without a tag `latest`, else the only one.
    ///
    /// # Errors
    /// User: no such image, or more than one.
    pub fn find(&self, tag: Option<&str>) -> Result<Descriptor, LayoutError> {
        let index: Index = self.document(&self.index_path(), "OCI image index")?;
        let named = |wanted: &str| {
            index
                .manifests
                .iter()
                .find(|entry| name_of(entry) == Some(wanted))
        };
        let found = match tag {
            Some(tag) => named(tag),
            None => named("latest").or(match index.manifests.as_slice() {
                [only] => Some(only),
                _ => None,
            }),
        };
        found.cloned().ok_or_else(|| LayoutError::NoImage {
            directory: self.directory.clone(),
            tag: tag.map(str::to_owned),
            known: match index
                .manifests
                .iter()
                .filter_map(name_of)
                .map(str::to_owned)
                .collect::<Vec<_>>()
            {
                names if names.is_empty() => {
                    vec![format!("{} without tags", index.manifests.len())]
                }
                names => names,
            },
        })
    }

    /// Whether the blob is there.
    #[must_use]
    pub fn has_blob(&self, digest: Digest) -> bool {
        self.blob_path(digest).is_file()
    }

    /// The blob as it lies there; the caller checks the digest of the whole.
    ///
    /// # Errors
    /// User: no such blob.
    pub fn open_blob(&self, digest: Digest) -> Result<File, LayoutError> {
        let path = self.blob_path(digest);
        File::open(&path).map_err(disk("open", &path))
    }

    /// A small blob whole, checked: a manifest or an image configuration.
    ///
    /// # Errors
    /// User: no such blob, or another one under its name.
    pub fn blob(&self, digest: Digest) -> Result<Vec<u8>, LayoutError> {
        let path = self.blob_path(digest);
        let bytes = self.read(&path)?;
        match Digest::of(&bytes) {
            got if got == digest => Ok(bytes),
            got => Err(LayoutError::WrongDigest {
                wanted: digest,
                got,
            }),
        }
    }

    /// Starts a blob whose digest is said at the end.
    ///
    /// # Errors
    /// User or Transient: the disk.
    pub fn upload(&self) -> Result<LayoutUpload, LayoutError> {
        let blobs = self.blobs();
        let file = NamedTempFile::new_in(&blobs).map_err(disk("create a file in", &blobs))?;
        Ok(LayoutUpload {
            file: Hashing::new(file),
            blobs,
        })
    }

    /// Writes a manifest and names it in the index; whatever had the name before loses it.
    ///
    /// # Errors
    /// User or Transient: the disk.
    pub fn put_manifest(
        &self,
        tag: Option<&str>,
        media_type: &str,
        bytes: &[u8],
    ) -> Result<Digest, LayoutError> {
        let digest = Digest::of(bytes);
        self.replace(&self.blob_path(digest), bytes)?;
        let mut index: Index = self.document(&self.index_path(), "OCI image index")?;
        index.manifests.retain(|entry| match (tag, name_of(entry)) {
            (Some(tag), Some(name)) => name != tag,
            (_, None) => entry.digest != digest,
            (None, Some(_)) => true,
        });
        let mut entry = Descriptor::new(media_type, digest, bytes.len() as u64);
        if let Some(tag) = tag {
            entry.other.insert(
                "annotations".to_owned(),
                serde_json::json!({ NAME_ANNOTATION: tag }),
            );
        }
        index.manifests.push(entry);
        let path = self.index_path();
        let shape = |source| LayoutError::Shape {
            path: path.clone(),
            what: "OCI image index",
            source,
        };
        self.replace(&path, &serde_json::to_vec(&index).map_err(shape)?)?;
        Ok(digest)
    }

    fn blobs(&self) -> PathBuf {
        self.directory.join("blobs/sha256")
    }

    fn blob_path(&self, digest: Digest) -> PathBuf {
        self.blobs().join(digest.hex())
    }

    fn index_path(&self) -> PathBuf {
        self.directory.join("index.json")
    }

    fn read(&self, path: &Path) -> Result<Vec<u8>, LayoutError> {
        let too_large = || {
            io::Error::new(
                io::ErrorKind::FileTooLarge,
                "larger than any document of an image",
            )
        };
        match fs::metadata(path).map_err(disk("read", path))?.len() {
            ..=LARGEST_DOCUMENT_BYTES => fs::read(path).map_err(disk("read", path)),
            _ => Err(disk("read", path)(too_large())),
        }
    }

    fn document<T: for<'de> Deserialize<'de>>(
        &self,
        path: &Path,
        what: &'static str,
    ) -> Result<T, LayoutError> {
        serde_json::from_slice(&self.read(path)?).map_err(|source| LayoutError::Shape {
            path: path.to_owned(),
            what,
            source,
        })
    }

    /// Whole or not at all.
    fn replace(&self, path: &Path, bytes: &[u8]) -> Result<(), LayoutError> {
        let mut file = NamedTempFile::new_in(&self.directory)
            .map_err(disk("create a file in", &self.directory))?;
        file.write_all(bytes).map_err(disk("write", path))?;
        persist(file, path)
    }
}

impl LayoutUpload {
    /// Takes the next bytes.
    ///
    /// # Errors
    /// Transient: the disk.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), LayoutError> {
        self.file
            .write_all(bytes)
            .map_err(disk("write a blob in", &self.blobs))
    }

    /// Gives the blob its name.
    ///
    /// # Errors
    /// User: its digest is another one. Transient: the disk.
    pub fn finish(self, digest: Digest) -> Result<(), LayoutError> {
        let (file, got, _) = self.file.finish();
        if got != digest {
            return Err(LayoutError::WrongDigest {
                wanted: digest,
                got,
            });
        }
        persist(file, &self.blobs.join(digest.hex()))
    }
}

/// Readable by everybody, as other tools leave their layouts.
fn persist(file: NamedTempFile, path: &Path) -> Result<(), LayoutError> {
    use std::os::unix::fs::PermissionsExt as _;
    file.as_file()
        .set_permissions(fs::Permissions::from_mode(0o644))
        .map_err(disk("chmod", path))?;
    file.persist(path)
        .map_err(|error| disk("write", path)(error.error))?;
    Ok(())
}

fn name_of(entry: &Descriptor) -> Option<&str> {
    entry
        .other
        .get("annotations")?
        .get(NAME_ANNOTATION)?
        .as_str()
}

fn disk<'a>(operation: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> LayoutError + 'a {
    move |source| LayoutError::Disk {
        operation,
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests;
