//! Where does the image go, and what has to be moved? Layers that are there stay where they are.

use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Instant;

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use tokio::sync::mpsc;

use super::BuildError;
use super::bases::Origin;
use crate::contract::{BUILD_UID_ANNOTATION, Outcome};
use crate::digest::Digest;
use crate::image::{Assembled, Descriptor, MANIFEST_MEDIA_TYPE, Manifest};
use crate::layer::{LayerDescriptor, LayerOptions, write_layer};
use crate::progress::{Event, Progress, millis};
use crate::reference::Reference;
use crate::registry::Registry;

/// Blobs looked for or copied at the same time; registries limit connections per client, and each copy holds a piece in memory.
const BLOBS_AT_ONCE: usize = 6;
/// Compressed blocks that wait for the network: some 2 MiB.
const BLOCKS_WAITING: usize = 8;

/// A tag of a repository, and a client that may push there.
#[derive(Clone, Debug)]
pub struct Target {
    /// With the credentials to push.
    pub registry: Registry,
    /// Where the manifest goes.
    pub reference: Reference,
}

impl Target {
    /// The outcome of an earlier attempt of the build `uid`, if it pushed.
    pub(super) async fn earlier_attempt(
        &self,
        uid: &str,
        architecture: &str,
    ) -> Result<Option<Outcome>, BuildError> {
        let found = match self.registry.manifest(&self.reference, architecture).await {
            Ok(found) => found,
            Err(error) if error.is_not_found() => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        // What somebody else put there is no image manifest, or not of this build: it will be replaced.
        let Ok(manifest) = serde_json::from_slice::<Manifest>(&found.bytes) else {
            return Ok(None);
        };
        let is_ours = manifest
            .annotations
            .get(BUILD_UID_ANNOTATION)
            .is_some_and(|of| of == uid);
        Ok(is_ours.then(|| Outcome::Pushed {
            digest: found.digest,
            size_bytes: manifest.config.size_bytes
                + manifest
                    .layers
                    .iter()
                    .map(|layer| layer.size_bytes)
                    .sum::<u64>(),
            layers: manifest.layers.len(),
            sent_bytes: 0,
            already_there: true,
        }))
    }

    /// Makes sure that the target has all of `layers`, which are those of an image at `origin`; returns the bytes sent.
    pub(super) async fn ensure_layers(
        &self,
        origin: &Origin,
        layers: &[Descriptor],
        progress: &Progress,
    ) -> Result<u64, BuildError> {
        let began = Instant::now();
        let (mut present, mut mounted, mut copied, mut copied_bytes) = (0, 0, 0, 0);
        let mut moves = stream::iter(layers.to_vec())
            .map(|layer| async move { self.ensure_layer(origin, &layer).await })
            .buffer_unordered(BLOBS_AT_ONCE);
        while let Some(moved) = moves.try_next().await? {
            match moved {
                Moved::Present => present += 1,
                Moved::Mounted => mounted += 1,
                Moved::Copied { size_bytes } => {
                    copied += 1;
                    copied_bytes += size_bytes;
                }
            }
        }
        let millis = millis(began.elapsed());
        progress.tell(&Event::BaseLayers {
            present,
            mounted,
            copied,
            copied_bytes,
            millis,
        });
        Ok(copied_bytes)
    }

    async fn ensure_layer(&self, origin: &Origin, layer: &Descriptor) -> Result<Moved, BuildError> {
        let Descriptor {
            digest, size_bytes, ..
        } = *layer;
        let target = &self.reference.repository;
        if self.registry.has_blob(target, digest).await? {
            return Ok(Moved::Present);
        }
        let Origin {
            registry,
            repository,
        } = origin;
        if self.registry.mount_blob(target, repository, digest).await? {
            return Ok(Moved::Mounted);
        }
        let mut upload = self.registry.upload(target);
        let mut blob = std::pin::pin!(registry.blob_stream(repository, digest));
        while let Some(bytes) = blob.try_next().await? {
            upload.write(&bytes).await?;
        }
        // The registry compares the digest of what it got.
        upload.finish(digest).await?;
        Ok(Moved::Copied { size_bytes })
    }

    /// Writes what `upper` changes above `lowers` as a layer and uploads it meanwhile.
    pub(super) async fn push_layer(
        &self,
        upper: PathBuf,
        lowers: Vec<PathBuf>,
        options: LayerOptions,
    ) -> Result<LayerDescriptor, BuildError> {
        let (send, mut receive) = mpsc::channel(BLOCKS_WAITING);
        let writer = tokio::task::spawn_blocking(move || {
            write_layer(&upper, &lowers, options, ChannelWriter(send)).map(|(layer, _)| layer)
        });
        let mut upload = self.registry.upload(&self.reference.repository);
        let uploaded: Result<_, BuildError> = async {
            while let Some(bytes) = receive.recv().await {
                upload.write(&bytes).await?;
            }
            Ok(upload)
        }
        .await;
        // A failed upload ends the writer by closing its channel; then the upload knows why.
        drop(receive);
        let written = writer.await?;
        let upload = uploaded?;
        let layer = written?;
        upload.finish(layer.digest).await?;
        Ok(layer)
    }

    /// The configuration, then the manifest.
    pub(super) async fn push_image(&self, image: Assembled) -> Result<Digest, BuildError> {
        let mut upload = self.registry.upload(&self.reference.repository);
        upload.write(&image.config).await?;
        upload.finish(image.config_descriptor.digest).await?;
        let manifest = Bytes::from(image.manifest);
        Ok(self
            .registry
            .push_manifest(&self.reference, MANIFEST_MEDIA_TYPE, &manifest)
            .await?)
    }
}

enum Moved {
    Present,
    Mounted,
    Copied { size_bytes: u64 },
}

/// Gives what a thread writes to a task.
struct ChannelWriter(mpsc::Sender<Bytes>);

impl Write for ChannelWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0
            .blocking_send(Bytes::copy_from_slice(bytes))
            .map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
