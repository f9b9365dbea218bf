//! Where do an image's blobs come from, and where do they go? A registry's repository or a folder, with the same verbs.

use std::io::{Read as _, Seek as _, SeekFrom};
use std::pin::Pin;

use bytes::Bytes;
use futures::{Stream, StreamExt as _, TryStreamExt as _, stream};

use crate::digest::{Digest, Hashing};
use crate::error::{Class, Classify, chain};
use crate::image::Descriptor;
use crate::layout::{Layout, LayoutError, LayoutUpload};
use crate::progress::Transfer;
use crate::reference::Repository;
use crate::registry::{Registry, RegistryError, Upload};
use crate::tee::Fed;

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
    /// Where a blob is copied from.
    #[error(transparent)]
    Source(Box<StoreError>),
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

/// How often an upload is begun: its bytes are not kept, but what they come from is.
const UPLOADS: u32 = 3;

/// Performs `upload`, and again when the registry has lost what it had begun to take. The client goes on with an upload that breaks; only who makes the bytes can begin it
/// again.
///
/// # Errors
/// Those of `upload`, the last time also of a lost one.
pub async fn until_kept<T, E, F, Fut>(is_lost: fn(&E) -> bool, mut upload: F) -> Result<T, E>
where
    E: std::error::Error,
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T, E>>,
{
    for uploads in 1..UPLOADS {
        match upload().await {
            Err(error) if is_lost(&error) => {
                tracing::warn!(uploads, error = %chain(&error), "the registry lost an upload, beginning it again");
            }
            other => return other,
        }
    }
    upload().await
}

impl StoreError {
    /// Whether an upload must be begun again.
    #[must_use]
    pub fn is_lost_upload(&self) -> bool {
        match self {
            Self::Registry(error) => error.is_lost_upload(),
            Self::Layout(_) | Self::Source(_) | Self::WrongBlob { .. } => false,
        }
    }

    /// What a registry has answered, if that is why.
    #[must_use]
    pub fn of_registry(&self) -> Option<&RegistryError> {
        match self {
            Self::Registry(error) => Some(error),
            Self::Source(error) => error.of_registry(),
            Self::Layout(_) | Self::WrongBlob { .. } => None,
        }
    }
}

impl Classify for StoreError {
    fn class(&self) -> Class {
        match self {
            Self::Registry(error) => error.class(),
            Self::Layout(error) => error.class(),
            Self::Source(error) => error.class(),
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

/// How a blob got to where it was wanted without its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passage {
    /// It was there.
    Present,
    /// The registry took it over from another repository.
    Mounted,
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

    /// A blob as it comes, without its first `offset` bytes; the caller checks the digest of the whole.
    #[must_use]
    pub fn blob_stream(&self, digest: Digest, offset: u64) -> BlobStream {
        match self {
            Self::Registry(registry, repository) => registry
                .blob_stream(repository, digest, offset)
                .map_err(StoreError::from)
                .boxed(),
            Self::Layout(layout) => {
                let layout = layout.clone();
                let chunks = stream::try_unfold(None, move |file| {
                    let opened = match file {
                        Some(file) => Ok(file),
                        None => layout.open_blob(digest).and_then(|mut file| {
                            let sought = file.seek(SeekFrom::Start(offset));
                            sought.map(|_| file).map_err(|source| LayoutError::Disk {
                                operation: "read a blob of",
                                path: layout.directory().to_owned(),
                                source,
                            })
                        }),
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
            let upload = || async {
                let mut writer = self.upload()?;
                writer.write(bytes).await?;
                writer.finish(digest).await
            };
            until_kept(StoreError::is_lost_upload, upload).await?;
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

    /// How a blob of `source` gets here without its bytes: it is there, or the registry takes it over itself. None if they have to be sent.
    ///
    /// # Errors
    /// User: no right. Transient: the network.
    pub async fn passage(
        &self,
        source: &Self,
        digest: Digest,
    ) -> Result<Option<Passage>, StoreError> {
        if self.has_blob(digest).await? {
            return Ok(Some(Passage::Present));
        }
        if let (Self::Registry(registry, target), Self::Registry(_, repository)) = (self, source)
            && registry.mount_blob(target, repository, digest).await?
        {
            return Ok(Some(Passage::Mounted));
        }
        Ok(None)
    }

    /// Brings a blob of `source` here as it is. What `fed` gives of it is not fetched again. Several at once are fine.
    ///
    /// # Errors
    /// User: no right on either side. Transient: the network, a blob that isn't what its descriptor says.
    pub async fn send_blob(
        &self,
        source: &Self,
        descriptor: &Descriptor,
        mut fed: Option<Fed>,
        transfer: &Transfer,
    ) -> Result<(), StoreError> {
        let upload = || self.send_blob_once(source, descriptor, fed.take(), transfer);
        until_kept(StoreError::is_lost_upload, upload).await
    }

    async fn send_blob_once(
        &self,
        source: &Self,
        descriptor: &Descriptor,
        fed: Option<Fed>,
        transfer: &Transfer,
    ) -> Result<(), StoreError> {
        let digest = descriptor.digest;
        let mut writer = self.upload()?;
        let mut passed = Hashing::new(std::io::sink());
        if let Some(mut fed) = fed {
            while let Some(bytes) = fed.next().await {
                passed.update(&bytes);
                writer.write(&bytes).await?;
                transfer.add(bytes.len());
            }
        }
        if passed.size_bytes() < descriptor.size_bytes {
            let blob = source.blob_stream(digest, passed.size_bytes());
            let mut blob = blob.map_err(|error| StoreError::Source(Box::new(error)));
            while let Some(bytes) = blob.try_next().await? {
                passed.update(&bytes);
                writer.write(&bytes).await?;
                transfer.add(bytes.len());
            }
        }
        let (_, got, got_bytes) = passed.finish();
        if (got, got_bytes) != (digest, descriptor.size_bytes) {
            return Err(StoreError::Source(Box::new(StoreError::WrongBlob {
                wanted: digest,
                wanted_bytes: descriptor.size_bytes,
                got,
                got_bytes,
            })));
        }
        writer.finish(digest).await
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tee::tee;

    #[tokio::test]
    async fn what_a_feeder_has_not_given_of_a_blob_is_fetched_from_there_on() {
        let folder = tempfile::tempdir().unwrap();
        let store = |name: &str| Store::Layout(Layout::create(&folder.path().join(name)).unwrap());
        let (source, content) = (store("source"), Bytes::from_static(b"one two three"));
        let digest = source.put_blob(&content).await.unwrap();
        let descriptor = Descriptor::new("x", digest, content.len() as u64);
        for fed_bytes in [0, 3, content.len()] {
            let target = store(&format!("target-{fed_bytes}"));
            let (mut feeders, mut fed) = tee(1);
            feeders[0].feed(&content.slice(..fed_bytes));
            drop(feeders);
            let sent = target
                .send_blob(&source, &descriptor, fed.pop(), &Transfer::default())
                .await;
            sent.unwrap();
            assert_eq!(target.blob(digest).await.unwrap(), content);
        }
        let (mut feeders, mut fed) = tee(1);
        feeders[0].feed(&Bytes::from_static(b"another blob!"));
        drop(feeders);
        let target = store("spoiled");
        let transfer = Transfer::default();
        let sent = target.send_blob(&source, &descriptor, fed.pop(), &transfer);
        let source = match sent.await {
            Err(StoreError::Source(source)) => source,
            other => panic!("{other:?}"),
        };
        assert!(matches!(*source, StoreError::WrongBlob { .. }));
    }
}
