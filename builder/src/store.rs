//! Where do an image's blobs come from, and where do they go? A registry's repository or a folder, with the same verbs.

use std::io::Read as _;
use std::pin::Pin;

use bytes::Bytes;
use futures::{Stream, StreamExt as _, TryStreamExt as _, stream};

use crate::digest::{Digest, Hashing};
use crate::error::{Class, Classify};
use crate::image::Descriptor;
use crate::layout::{Layout, LayoutError, LayoutUpload};
use crate::reference::Repository;
use crate::registry::{Registry, RegistryError, Upload};

/// A place for blobs; cheap to clone.
#[derive(Clone, Debug)]
pub enum Store {
    /// A repository.
    Registry(Registry, Repository),
    /// An OCI image layout.
    Layout(Layout),
}

/// A verb that failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// At a registry.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// In a folder.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// A blob that isn't what its manifest says.
    #[error(
        "the blob {wanted} came with {got_bytes} bytes and the digest {got} instead of {wanted_bytes} bytes"
    )]
    WrongBlob {
        /// In the manifest.
        wanted: Digest,
        /// In the manifest.
        wanted_bytes: u64,
        /// Came.
        got: Digest,
        /// Came.
        got_bytes: u64,
    },
}

impl Classify for StoreError {
    fn class(&self) -> Class {
        match self {
            Self::Registry(error) => error.class(),
            Self::Layout(error) => error.class(),
            // A proxy that cut or spoiled a body may do better next time.
            Self::WrongBlob { .. } => Class::Transient,
        }
    }
}

/// A blob's bytes as they come.
pub type BlobStream = Pin<Box<dyn Stream<Item = Result<Bytes, StoreError>> + Send>>;

/// A blob on its way into a store.
#[derive(Debug)]
pub enum BlobWriter {
    /// To a registry.
    Registry(Box<Upload>),
    /// Into a folder.
    Layout(LayoutUpload),
}

/// How a blob got to where it was wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passage {
    /// It was there.
    Present,
    /// The registry took it over from another repository.
    Mounted,
    /// Its bytes went through us.
    Sent,
}

impl Store {
    /// Whether the store has the blob.
    ///
    /// # Errors
    /// User: no right. Transient: the network.
    pub async fn has_blob(&self, digest: Digest) -> Result<bool, StoreError> {
        match self {
            Self::Registry(registry, repository) => {
                Ok(registry.has_blob(repository, digest).await?)
            }
            Self::Layout(layout) => Ok(layout.has_blob(digest)),
        }
    }

    /// A small blob whole, checked.
    ///
    /// # Errors
    /// User: no such blob, no right. Transient: the network, the disk.
    pub async fn blob(&self, digest: Digest) -> Result<Bytes, StoreError> {
        match self {
            Self::Registry(registry, repository) => Ok(registry.blob(repository, digest).await?),
            Self::Layout(layout) => Ok(layout.blob(digest)?.into()),
        }
    }

    /// A blob as it comes; the caller checks the digest of the whole.
    #[must_use]
    pub fn blob_stream(&self, digest: Digest) -> BlobStream {
        match self {
            Self::Registry(registry, repository) => registry
                .blob_stream(repository, digest)
                .map_err(StoreError::from)
                .boxed(),
            Self::Layout(layout) => {
                let layout = layout.clone();
                let chunks = stream::try_unfold(None, move |file| {
                    let opened = match file {
                        Some(file) => Ok(file),
                        None => layout.open_blob(digest),
                    };
                    let path = layout.directory().to_owned();
                    async move {
                        let mut file = opened?;
                        let mut chunk = vec![0; 1 << 20];
                        let length = file.read(&mut chunk).map_err(|source| LayoutError::Disk {
                            operation: "read a blob of",
                            path,
                            source,
                        })?;
                        chunk.truncate(length);
                        Ok((length > 0).then(|| (Bytes::from(chunk), Some(file))))
                    }
                });
                chunks.boxed()
            }
        }
    }

    /// Starts a blob whose digest is said at the end.
    ///
    /// # Errors
    /// User or Transient: the disk.
    pub fn upload(&self) -> Result<BlobWriter, StoreError> {
        match self {
            Self::Registry(registry, repository) => {
                Ok(BlobWriter::Registry(Box::new(registry.upload(repository))))
            }
            Self::Layout(layout) => Ok(BlobWriter::Layout(layout.upload()?)),
        }
    }

    /// Writes a small blob: an image configuration.
    ///
    /// # Errors
    /// As [`BlobWriter::finish`].
    pub async fn put_blob(&self, bytes: &[u8]) -> Result<Digest, StoreError> {
        let digest = Digest::of(bytes);
        if !self.has_blob(digest).await? {
            let mut writer = self.upload()?;
            writer.write(bytes).await?;
            writer.finish(digest).await?;
        }
        Ok(digest)
    }

    /// Puts a manifest under `tag`, or under its digest alone; its blobs must be there.
    ///
    /// # Errors
    /// User: no right. Transient: the network, the disk.
    pub async fn put_manifest(
        &self,
        tag: Option<&str>,
        media_type: &str,
        bytes: &Bytes,
    ) -> Result<Digest, StoreError> {
        match self {
            Self::Registry(registry, repository) => {
                let reference = match tag {
                    Some(tag) => repository.tagged(tag),
                    None => repository.digested(Digest::of(bytes)),
                };
                Ok(registry
                    .push_manifest(&reference, media_type, bytes)
                    .await?)
            }
            Self::Layout(layout) => Ok(layout.put_manifest(tag, media_type, bytes)?),
        }
    }

    /// Brings a blob of `source` here with as little moving as possible: it is there, the registry takes it over itself, or its bytes pass through as they
    /// are. Several at once are fine.
    ///
    /// # Errors
    /// User: no right on either side. Transient: the network, a blob that isn't what its descriptor says.
    pub async fn copy_blob(
        &self,
        source: &Self,
        descriptor: &Descriptor,
    ) -> Result<Passage, StoreError> {
        let digest = descriptor.digest;
        if self.has_blob(digest).await? {
            return Ok(Passage::Present);
        }
        if let (Self::Registry(registry, target), Self::Registry(_, repository)) = (self, source)
            && registry.mount_blob(target, repository, digest).await?
        {
            return Ok(Passage::Mounted);
        }
        let mut writer = self.upload()?;
        let mut passed = Hashing::new(std::io::sink());
        let mut blob = source.blob_stream(digest);
        while let Some(bytes) = blob.try_next().await? {
            passed.update(&bytes);
            writer.write(&bytes).await?;
        }
        let (_, got, got_bytes) = passed.finish();
        if (got, got_bytes) != (digest, descriptor.size_bytes) {
            return Err(StoreError::WrongBlob {
                wanted: digest,
                wanted_bytes: descriptor.size_bytes,
                got,
                got_bytes,
            });
        }
        writer.finish(digest).await?;
        Ok(Passage::Sent)
    }
}

impl BlobWriter {
    /// Takes the next bytes.
    ///
    /// # Errors
    /// User: no right. Transient: the network, the disk.
    ///
    /// # Cancel safety
    /// None: a writer whose write was cancelled must be dropped.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        match self {
            Self::Registry(upload) => Ok(upload.write(bytes).await?),
            Self::Layout(upload) => Ok(upload.write(bytes)?),
        }
    }

    /// Ends the blob, which must have the digest.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub async fn finish(self, digest: Digest) -> Result<(), StoreError> {
        match self {
            Self::Registry(upload) => Ok(upload.finish(digest).await?),
            Self::Layout(upload) => Ok(upload.finish(digest)?),
        }
    }
}
