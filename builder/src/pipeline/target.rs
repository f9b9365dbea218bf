//! Where does the image go, and what has to be moved? Layers that are there stay where they are.

use std::io::{self, Write};
use std::time::Instant;

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use tokio::sync::mpsc;

use super::BuildError;
use crate::contract::{BUILD_UID_ANNOTATION, Outcome};
use crate::digest::Digest;
use crate::image::{Assembled, Descriptor, MANIFEST_MEDIA_TYPE, Manifest};
use crate::layer::{Changes, LayerDescriptor, LayerOptions, write_layer};
use crate::layout::{Layout, LayoutError};
use crate::progress::{Event, Progress, Transfer, millis};
use crate::reference::Reference;
use crate::registry::{Registry, RegistryError};
use crate::store::{Passage, Store, StoreError, until_kept};
use crate::tee::Fed;

/// Blobs looked for at the same time; registries limit connections per client.
const LOOKS_AT_ONCE: usize = 6;
/// Blobs copied at the same time. Each holds a piece of 8 MiB on its way and collects the next one, in a buffer that grows to twice as much: 24 MiB of the budget of 128.
const COPIES_AT_ONCE: usize = 2;
/// Compressed blocks that wait for the network: some 2 MiB.
const BLOCKS_WAITING: usize = 8;

/// A name in a place for images: a tag of a repository, or one of a layout.
#[derive(Clone, Debug)]
pub struct Target {
    store: Store,
    tag: Option<String>,
    name: String,
}

impl Target {
    /// A tag of a repository, and a client that may push there.
    #[must_use]
    pub fn registry(registry: Registry, reference: &Reference) -> Self {
        Self {
            store: Store::Registry(registry, reference.repository.clone()),
            tag: reference.tag.clone(),
            name: reference.to_string(),
        }
    }

    /// A name in an OCI image layout, or none.
    #[must_use]
    pub fn layout(layout: Layout, tag: Option<String>) -> Self {
        let name = match &tag {
            Some(tag) => format!("oci:{}:{tag}", layout.directory().display()),
            None => format!("oci:{}", layout.directory().display()),
        };
        Self {
            store: Store::Layout(layout),
            tag,
            name,
        }
    }

    /// The client and the image's name, if it goes to a registry.
    pub(super) fn in_registry(&self) -> Option<(&Registry, Reference)> {
        match &self.store {
            Store::Registry(registry, repository) => {
                let tag = self.tag.as_deref().unwrap_or("latest");
                Some((registry, repository.tagged(tag)))
            }
            Store::Layout(_) => None,
        }
    }

    /// As the user wrote it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The tag in it.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The outcome of an earlier attempt of the build `uid`, if it pushed.
    pub(super) async fn earlier_attempt(
        &self,
        uid: &str,
        architecture: &str,
    ) -> Result<Option<Outcome>, BuildError> {
        let Some((digest, bytes)) = self.present(architecture).await? else {
            return Ok(None);
        };
        // What somebody else put there is no image manifest, or not of this build: it will be replaced.
        let Ok(manifest) = serde_json::from_slice::<Manifest>(&bytes) else {
            return Ok(None);
        };
        let is_ours = manifest
            .annotations
            .get(BUILD_UID_ANNOTATION)
            .is_some_and(|of| of == uid);
        Ok(is_ours.then(|| Outcome::Pushed {
            digest,
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

    /// The manifest that has the name now; none if it can't be one of ours.
    async fn present(&self, architecture: &str) -> Result<Option<(Digest, Bytes)>, BuildError> {
        match &self.store {
            Store::Registry(registry, repository) => {
                let reference = repository.tagged(self.tag.as_deref().unwrap_or("latest"));
                match registry.manifest(&reference, architecture).await {
                    Ok(found) => Ok(Some((found.digest, found.bytes))),
                    Err(error) if error.is_not_found() => Ok(None),
                    // Somebody else's index, or what is none: ours is a manifest for this platform.
                    Err(RegistryError::NoPlatform { .. } | RegistryError::Malformed { .. }) => {
                        Ok(None)
                    }
                    Err(error) => Err(error.into()),
                }
            }
            Store::Layout(layout) => match layout.find(self.tag.as_deref()) {
                Ok(found) => {
                    let bytes = layout.blob(found.digest).map_err(StoreError::from)?;
                    Ok(Some((found.digest, bytes.into())))
                }
                Err(LayoutError::NoImage { .. }) => Ok(None),
                Err(error) => Err(StoreError::from(error).into()),
            },
        }
    }

    /// Makes sure that the target has all of `layers`, which are in `source`; returns the bytes sent. If they are being unpacked, too, `fed` has one taker for each
    /// of them, else none.
    pub(super) async fn ensure_layers(
        &self,
        source: &Store,
        layers: &[Descriptor],
        fed: Vec<Fed>,
        progress: &Progress,
    ) -> Result<u64, BuildError> {
        let began = Instant::now();
        let passages: Vec<Option<Passage>> = stream::iter(layers.to_vec())
            .map(|layer| async move { self.store.passage(source, layer.digest).await })
            .buffered(LOOKS_AT_ONCE)
            .try_collect()
            .await?;
        let count = |passage| passages.iter().filter(|found| **found == passage).count();
        let mut fed = fed.into_iter();
        let mut missing: Vec<(Descriptor, Option<Fed>)> = layers
            .iter()
            .cloned()
            .map(|layer| (layer, fed.next()))
            .zip(&passages)
            .filter_map(|(layer, passage)| passage.is_none().then_some(layer))
            .collect();
        // An image may have the same layer twice.
        missing.sort_by_key(|(layer, _)| layer.digest);
        missing.dedup_by_key(|(layer, _)| layer.digest);
        // As they are unpacked.
        missing.sort_by_key(|(layer, _)| std::cmp::Reverse(layer.size_bytes));
        let copied_bytes = missing.iter().map(|(layer, _)| layer.size_bytes).sum();
        let transfer = (copied_bytes > 0)
            .then(|| progress.transfer("send layers of the base".to_owned(), Some(copied_bytes)));
        let transfer = transfer.unwrap_or_default();
        let sent = &transfer;
        stream::iter(missing)
            .map(
                |(layer, fed)| async move { self.store.send_blob(source, &layer, fed, sent).await },
            )
            .buffer_unordered(COPIES_AT_ONCE)
            .try_collect::<()>()
            .await?;
        drop(transfer);
        progress.tell(&Event::BaseLayers {
            present: count(Some(Passage::Present)),
            mounted: count(Some(Passage::Mounted)),
            copied: count(None),
            copied_bytes,
            millis: millis(began.elapsed()),
        });
        Ok(copied_bytes)
    }

    /// Writes `changes` as a layer and uploads it meanwhile.
    pub(super) async fn push_layer(
        &self,
        changes: Changes,
        options: LayerOptions,
        transfer: &Transfer,
    ) -> Result<LayerDescriptor, BuildError> {
        let is_lost = |error: &BuildError| matches!(error, BuildError::Store(error) if error.is_lost_upload());
        until_kept(is_lost, || {
            self.push_layer_once(changes.clone(), options, transfer)
        })
        .await
    }

    async fn push_layer_once(
        &self,
        changes: Changes,
        options: LayerOptions,
        transfer: &Transfer,
    ) -> Result<LayerDescriptor, BuildError> {
        let (send, mut receive) = mpsc::channel(BLOCKS_WAITING);
        let writer = tokio::task::spawn_blocking(move || {
            write_layer(&changes, options, ChannelWriter(send)).map(|(layer, _)| layer)
        });
        let uploaded: Result<_, StoreError> = async {
            let mut upload = self.store.upload()?;
            while let Some(bytes) = receive.recv().await {
                upload.write(&bytes).await?;
                transfer.add(bytes.len());
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
        self.store.put_blob(&image.config).await?;
        let manifest = Bytes::from(image.manifest);
        Ok(self
            .store
            .put_manifest(self.tag.as_deref(), MANIFEST_MEDIA_TYPE, &manifest)
            .await?)
    }
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
