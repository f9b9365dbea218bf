//! Which layers of the image does the target have by now? Each is uploaded beside the steps; they are awaited in order, and noted for another attempt.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;

use super::attempt::{Done, Note};
use super::stage::Change;
use super::todo::Position;
use super::{BuildError, BuildSpec, both, stopping};
use crate::digest::Digest;
use crate::error::chain;
use crate::image::Descriptor;
use crate::layer::LayerDescriptor;
use crate::progress::{Event, Progress, millis};
use crate::stop::Stop;

/// Layers written and uploaded at once, so that a slow target doesn't make every step's layer take memory: a piece of its upload, its blocks, its threads' buffers. What the others are made of
/// stays on the disk.
const LAYERS_AT_ONCE: usize = 2;

type Running = (Position, JoinHandle<Result<LayerDescriptor, BuildError>>);

/// The layers of the image, on their way.
pub struct Layers {
    running: mpsc::UnboundedSender<Running>,
    slots: Arc<Semaphore>,
    stop: Arc<Stop>,
    collector: JoinHandle<Result<Vec<Done>, BuildError>>,
}

impl Layers {
    /// After those of an earlier attempt. With a note, and the digest of the build's inputs, each layer is noted. One that fails says `stop`.
    #[must_use]
    pub fn after(earlier: Vec<Done>, note: Option<(Arc<Note>, Digest)>, stop: Arc<Stop>) -> Self {
        let (running, receiver) = mpsc::unbounded_channel();
        let collector = tokio::spawn(collect(earlier, receiver, note));
        Self {
            running,
            slots: Arc::new(Semaphore::new(LAYERS_AT_ONCE)),
            stop,
            collector,
        }
    }

    /// Begins to write and upload what a stage has changed, as soon as its turn comes.
    pub fn start(&self, spec: &BuildSpec, stage: &str, change: Change, progress: &Arc<Progress>) {
        let (target, options, progress) = (spec.push.clone(), spec.layers, Arc::clone(progress));
        let (stage, slots) = (stage.to_owned(), Arc::clone(&self.slots));
        let Change {
            after,
            changes,
            reader,
        } = change;
        let layer = stopping(Arc::clone(&self.stop), async move {
            // Never closed.
            let _slot = slots.acquire_owned().await;
            let began = Instant::now();
            let transfer = progress.transfer(format!("push the layer of stage {stage}"), None);
            let layer = target.push_layer(changes, options, &transfer).await?;
            drop(transfer);
            drop(reader);
            progress.tell(&Event::Layer {
                stage: &stage,
                digest: layer.digest,
                size_bytes: layer.size_bytes,
                entries: layer.entries,
                millis: millis(began.elapsed()),
            });
            Ok(layer)
        });
        let layer = tokio::spawn(layer);
        // A collector that has ended did so with an error, which `finish` tells.
        let _ended = self.running.send((after, layer));
    }

    /// All layers, lowest first, once the target has them. Once this is done, none is on its way and no note is written any more.
    ///
    /// # Errors
    /// What went wrong with one of them; [`BuildError::Stopped`], if that is only that another part of the build has failed.
    pub async fn finish(self) -> Result<Vec<Done>, BuildError> {
        drop(self.running);
        self.collector.await?
    }
}

async fn collect(
    earlier: Vec<Done>,
    mut running: mpsc::UnboundedReceiver<Running>,
    mut note: Option<(Arc<Note>, Digest)>,
) -> Result<Vec<Done>, BuildError> {
    let mut done = Ok(earlier);
    while let Some((after, layer)) = running.recv().await {
        let layer = layer.await.map_err(BuildError::from).flatten();
        // After a failure the others are waited for, since they end soon, too.
        let (mut layers, layer) = match both(done, layer) {
            Ok(both) => both,
            Err(error) => {
                done = Err(error);
                continue;
            }
        };
        layers.push(Done {
            after,
            descriptor: Descriptor::new(layer.media_type, layer.digest, layer.size_bytes),
            diff_id: layer.diff_id,
        });
        if let Some((at, inputs)) = &note
            && let Err(error) = at.write(*inputs, &layers).await
        {
            tracing::warn!(error = %chain(&error), "another attempt of this build will not know of its layers");
            note = None;
        }
        done = Ok(layers);
    }
    done
}
