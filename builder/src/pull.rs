//! What is this image, and how do its layers get onto the disk?
//!
//! ```text
//! reference ─► manifest (by digest) ─► configuration          resolve
//! socket ─► sha256 ─► inflate ─► sha256 ─► one folder per layer          unpack_image, several layers at once, biggest first
//! ```
//!
//! No blob is stored: each layer's bytes go through a short channel into the thread that unpacks it.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{Buf as _, Bytes};
use futures::TryStreamExt as _;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

use crate::digest::Digest;
use crate::error::{Class, Classify};
use crate::image::{Descriptor, ImageConfig, Manifest};
use crate::layout::Layout;
use crate::overlay::XattrPrefix;
use crate::progress::Transfer;
use crate::reference::Reference;
use crate::registry::{Registry, choose_platform, manifest_media_type};
use crate::store::{Store, StoreError};
use crate::tee::Feeder;
use crate::unpack::{DEFAULT_LIMITS, UnpackError, UnpackedLayer, unpack_layer};

/// Layers on their way at once: enough to keep two cores and a fast network busy, few enough for any registry's rate limit.
const LAYERS_AT_ONCE: usize = 6;
/// Pieces of a layer between its socket and its thread; a piece is what the socket gives, 16 KiB to 1 MiB.
const PIECES_AHEAD: usize = 4;

/// An image whose manifest and configuration are known.
#[derive(Clone, Debug)]
pub struct ResolvedImage {
    /// Where its blobs are.
    pub store: Store,
    /// Of the manifest for the asked platform.
    pub digest: Digest,
    /// As served.
    pub manifest: Manifest,
    /// As served.
    pub config: ImageConfig,
}

/// An image that can't be pulled.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// Manifest, configuration or a layer didn't come.
    #[error("pull {image}")]
    Store {
        /// As asked for.
        image: String,
        /// Why not.
        source: StoreError,
    },
    /// A document that isn't one.
    #[error("pull {image}: its {document} can't be read")]
    Document {
        /// As asked for.
        image: String,
        /// `manifest` or `configuration`.
        document: &'static str,
        /// Where it goes wrong.
        source: serde_json::Error,
    },
    /// A layer didn't get onto the disk.
    #[error("unpack the image {digest}")]
    Unpack {
        /// Of the image.
        digest: Digest,
        /// Why not.
        source: UnpackError,
    },
    /// A thread that unpacks broke down.
    #[error("unpack the image {digest}")]
    Thread {
        /// Of the image.
        digest: Digest,
        /// How.
        source: tokio::task::JoinError,
    },
}

impl Classify for PullError {
    fn class(&self) -> Class {
        match self {
            Self::Store { source, .. } => source.class(),
            Self::Document { .. } => Class::CONTENT,
            Self::Unpack { source, .. } => source.class(),
            Self::Thread { .. } => Class::INTERNAL,
        }
    }
}

/// The image that `reference` names; of an index the one for linux on `architecture` (GOARCH).
///
/// # Errors
/// User: no such image, no right, no such platform. Transient: the network.
pub async fn resolve(
    registry: &Registry,
    reference: &Reference,
    architecture: &str,
) -> Result<ResolvedImage, PullError> {
    let image = reference.to_string();
    let (place, found) = registry
        .manifest_from_any(reference, architecture)
        .await
        .map_err(|error| PullError::Store {
            image: image.clone(),
            source: error.into(),
        })?;
    let store = Store::Registry(registry.clone(), place.repository);
    with_config(store, image, found.digest, &found.bytes).await
}

/// The image in a layout, under `tag`, or its only one; of an index the one for linux on `architecture` (GOARCH).
///
/// # Errors
/// User: no such image, no such platform.
pub async fn resolve_in_layout(
    layout: &Layout,
    tag: Option<&str>,
    architecture: &str,
) -> Result<ResolvedImage, PullError> {
    let image = format!(
        "oci:{}{}",
        layout.directory().display(),
        tag.map(|tag| format!(":{tag}")).unwrap_or_default()
    );
    let store = |source| PullError::Store {
        image: image.clone(),
        source,
    };
    let entry = layout.find(tag).map_err(|error| store(error.into()))?;
    let mut digest = entry.digest;
    let mut bytes = layout.blob(digest).map_err(|error| store(error.into()))?;
    let media_type = manifest_media_type(entry.media_type, &bytes);
    if let Some(chosen) = choose_platform(&image, &media_type, &bytes, architecture)
        .map_err(|error| store(error.into()))?
    {
        digest = chosen;
        bytes = layout.blob(digest).map_err(|error| store(error.into()))?;
    }
    with_config(Store::Layout(layout.clone()), image, digest, &bytes).await
}

async fn with_config(
    store: Store,
    image: String,
    digest: Digest,
    bytes: &[u8],
) -> Result<ResolvedImage, PullError> {
    let broken = |document| {
        let image = image.clone();
        move |source| PullError::Document {
            image,
            document,
            source,
        }
    };
    let manifest: Manifest = serde_json::from_slice(bytes).map_err(broken("manifest"))?;
    let config = store
        .blob(manifest.config.digest)
        .await
        .map_err(|source| PullError::Store {
            image: image.clone(),
            source,
        })?;
    let config = serde_json::from_slice(&config).map_err(broken("configuration"))?;
    Ok(ResolvedImage {
        store,
        digest,
        manifest,
        config,
    })
}

/// Unpacks all layers of `image` into folders of their own in `scratch`; the folders, top first, ready as lower directories of an overlay. If somebody else takes the layers, too,
/// `feeders` has one for each, else none.
///
/// # Errors
/// User: a layer that is no tar or leaves its root. Transient: the network, the disk.
///
/// # Cancel safety
/// What was begun stays in `scratch`, under names that end in `.tmp`.
pub async fn unpack_image(
    image: &ResolvedImage,
    scratch: &Path,
    marks: XattrPrefix,
    feeders: Vec<Feeder>,
    transfer: &Transfer,
) -> Result<Vec<PathBuf>, PullError> {
    let digest = image.digest;
    let layers = unpack_layers(image, scratch, marks, feeders, transfer).await?;
    tokio::task::spawn_blocking(move || settle_layers(layers, Vec::new()))
        .await
        .map_err(|source| PullError::Thread { digest, source })?
        .map_err(|source| PullError::Unpack { digest, source })
}

/// Fits layers, lowest first, to each other and to the folders `below` them; all folders, top first.
///
/// # Errors
/// User: links to what isn't there. Transient: the disk.
pub fn settle_layers(
    layers: Vec<UnpackedLayer>,
    below: Vec<PathBuf>,
) -> Result<Vec<PathBuf>, UnpackError> {
    let mut lowers = below;
    for layer in layers {
        let directory = layer.settle(&lowers)?;
        lowers.insert(0, directory);
    }
    Ok(lowers)
}

/// Where [`unpack_layers`] puts the layer with this index in the manifest.
#[must_use]
pub fn layer_directory(scratch: &Path, index: usize, layer: Digest) -> PathBuf {
    scratch.join(format!("{index:03}-{}", &layer.hex()[..12]))
}

/// Unpacks all layers of `image` as [`unpack_image`], but leaves fitting them to what is below them to [`settle_layers`].
///
/// # Errors
/// As [`unpack_image`].
pub async fn unpack_layers(
    image: &ResolvedImage,
    scratch: &Path,
    marks: XattrPrefix,
    feeders: Vec<Feeder>,
    transfer: &Transfer,
) -> Result<Vec<UnpackedLayer>, PullError> {
    std::fs::create_dir_all(scratch).map_err(|source| PullError::Unpack {
        digest: image.digest,
        source: UnpackError::Write {
            operation: "create",
            path: scratch.to_owned(),
            source,
        },
    })?;
    let slots = Arc::new(Semaphore::new(LAYERS_AT_ONCE));
    let mut feeders = feeders.into_iter();
    let layers = image.manifest.layers.iter().enumerate();
    let mut biggest_first: Vec<(usize, &Descriptor, Option<Feeder>)> = layers
        .map(|(index, layer)| (index, layer, feeders.next()))
        .collect();
    biggest_first.sort_by_key(|(_, layer, _)| std::cmp::Reverse(layer.size_bytes));
    let mut running = JoinSet::new();
    for (index, layer, feeder) in biggest_first {
        let (store, slots, layer) = (image.store.clone(), slots.clone(), layer.clone());
        // An image may have the same layer twice.
        let directory = layer_directory(scratch, index, layer.digest);
        let diff_id = image.config.rootfs.diff_ids.get(index).copied();
        let image = image.digest;
        let transfer = transfer.clone();
        running.spawn(async move {
            // Closed only with the set that waits for us.
            let _slot = slots.acquire_owned().await;
            let into = (directory, marks);
            let unpacked = stream_layer(
                &store,
                (layer.digest, diff_id),
                into,
                image,
                (feeder, &transfer),
            )
            .await?;
            Ok::<_, PullError>((index, unpacked))
        });
    }
    let mut layers: Vec<Option<UnpackedLayer>> =
        image.manifest.layers.iter().map(|_| None).collect();
    while let Some(joined) = running.join_next().await {
        let (index, layer) = joined.map_err(|source| PullError::Thread {
            digest: image.digest,
            source,
        })??;
        layers[index] = Some(layer);
    }
    Ok(layers.into_iter().flatten().collect())
}

async fn stream_layer(
    store: &Store,
    (digest, diff_id): (Digest, Option<Digest>),
    (directory, marks): (PathBuf, XattrPrefix),
    image: Digest,
    (mut feeder, fetched): (Option<Feeder>, &Transfer),
) -> Result<UnpackedLayer, PullError> {
    let (sender, receiver) = mpsc::channel(PIECES_AHEAD);
    let thread = tokio::task::spawn_blocking(move || {
        unpack_layer(
            Pieces::new(receiver),
            (digest, diff_id),
            &directory,
            marks,
            DEFAULT_LIMITS,
        )
    });
    let transfer = async move {
        let mut blob = store.blob_stream(digest, 0);
        while let Some(piece) = blob.try_next().await? {
            fetched.add(piece.len());
            if let Some(feeder) = &mut feeder {
                feeder.feed(&piece);
            }
            // The thread gave up: it says why.
            if sender.send(piece).await.is_err() {
                break;
            }
        }
        Ok::<_, StoreError>(())
    };
    let transferred = transfer.await;
    let unpacked = thread.await.map_err(|source| PullError::Thread {
        digest: image,
        source,
    })?;
    match (transferred, unpacked) {
        (Ok(()), unpacked) => unpacked.map_err(|source| PullError::Unpack {
            digest: image,
            source,
        }),
        // The thread saw only that the bytes ended; or it had all it needed, but the digest can't be known.
        (Err(source), _) => Err(PullError::Store {
            image: image.to_string(),
            source,
        }),
    }
}

/// The receiving end of a layer's pieces, for a thread.
struct Pieces {
    receiver: mpsc::Receiver<Bytes>,
    current: Bytes,
}

impl Pieces {
    fn new(receiver: mpsc::Receiver<Bytes>) -> Self {
        Self {
            receiver,
            current: Bytes::new(),
        }
    }
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.receiver.blocking_recv() {
                Some(piece) => self.current = piece,
                None => return Ok(0),
            }
        }
        let length = self.current.len().min(buffer.len());
        self.current.copy_to_slice(&mut buffer[..length]);
        Ok(length)
    }
}
