//! What is fetched while the first steps run? Images whose files are needed, and the layers that an earlier attempt has left.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use super::attempt::{Done, Left};
use super::bases::{Name, lowest_base};
use super::spec::BuildSpec;
use super::stage::{self, Earlier, EarlierPull, Pulling, Unpacked};
use super::todo::Position;
use crate::containerfile::graph::BuildGraph;
use crate::flat::{FlatRoot, merge};
use crate::progress::{Event, Progress, StepNumber, Transfer, millis};
use crate::pull::{ResolvedImage, layer_directory, unpack_image, unpack_layers};
use crate::sandbox::{Entered, Storage};
use crate::tee::{Fed, tee};

/// Begins to fetch the images whose files are needed. With takers of the layers of the image that the target derives from, if it is one of these.
pub(super) fn start_pulls(
    planned: stage::Plan<'_>,
    entered: Entered,
    progress: &Arc<Progress>,
) -> (BTreeMap<Name, Pulling>, Vec<Fed>) {
    let stage::Plan {
        spec,
        file,
        graph,
        outside,
        todo,
    } = planned;
    let base = lowest_base(graph, graph.target);
    let mut fed_of_base = Vec::new();
    let images = outside.to_unpack(file, graph, todo).into_iter().enumerate();
    let mut start = |(number, (name, image)): (usize, (Name, ResolvedImage))| {
        let scratch = spec.scratch.join(format!("image-{number}"));
        let progress = Arc::clone(progress);
        let is_base = base.as_ref() == Some(&name);
        let (feeders, fed) = tee(if is_base {
            image.manifest.layers.len()
        } else {
            0
        });
        fed_of_base.extend(fed);
        let running = tokio::spawn(async move {
            let began = Instant::now();
            let size_bytes = image.manifest.layers.iter().map(|l| l.size_bytes).sum();
            let transfer = progress.transfer(format!("fetch {}", image.digest), Some(size_bytes));
            let directories =
                unpack_image(&image, &scratch, entered.xattrs, feeders, &transfer).await?;
            drop(transfer);
            progress.tell(&Event::Unpacked {
                digest: image.digest,
                layers: directories.len(),
                size_bytes,
                millis: millis(began.elapsed()),
            });
            if entered.tier.storage() == Storage::Overlay {
                return Ok(Unpacked::Stack(directories));
            }
            let root = scratch.join("root");
            let merging = tokio::task::spawn_blocking(move || {
                merge(&directories, entered.xattrs, &root).map(|()| root)
            });
            Ok(Unpacked::Flat(Arc::new(FlatRoot::ours(merging.await??))))
        });
        (name, Pulling::Running(running))
    };
    let pulls = images.map(&mut start).collect();
    (pulls, fed_of_base)
}

/// The layers of an earlier attempt, and their files on their way if any step needs some.
pub(super) fn go_on(
    spec: &BuildSpec,
    left: Left,
    needs_files: bool,
    entered: Entered,
    progress: &Progress,
) -> (Vec<Done>, Earlier) {
    let Left { layers, image } = left;
    let scratch = spec.scratch.join("earlier");
    let directories = layers.iter().enumerate().map(|(index, layer)| {
        let directory = layer_directory(&scratch, index, layer.descriptor.digest);
        (layer.after, directory)
    });
    let directories = directories.collect();
    let mut earlier = Earlier {
        directories,
        ..Earlier::default()
    };
    match entered.tier.storage() {
        Storage::Overlay if needs_files => {
            let digest = image.digest;
            let transfer = of_earlier(&image, progress);
            let pull = async move {
                unpack_layers(&image, &scratch, entered.xattrs, Vec::new(), &transfer).await
            };
            earlier.pulling = Mutex::new(EarlierPull::Running(digest, tokio::spawn(pull)));
        }
        Storage::Overlay => {}
        Storage::Flat => earlier.image = Some(image),
    }
    (layers, earlier)
}

/// The layers of an earlier attempt on their way back.
pub(super) fn of_earlier(image: &ResolvedImage, progress: &Progress) -> Transfer {
    let layers = image.manifest.layers.iter();
    let size_bytes = layers.map(|layer| layer.size_bytes).sum();
    progress.transfer(
        "fetch layers of an earlier attempt".to_owned(),
        Some(size_bytes),
    )
}

/// Tells where this attempt goes on.
pub(super) fn tell_where(graph: &BuildGraph, left: &Left, progress: &Progress) {
    let Some(Position { stage, step }) = left.layers.last().map(|layer| layer.after) else {
        return;
    };
    progress.tell(&Event::GoesOn {
        number: StepNumber {
            stage: stage + 1,
            stages: graph.stages.len(),
            step,
            steps: graph
                .stages
                .get(stage)
                .map_or(0, |stage| stage.sources.len()),
        },
        layers: left.layers.len(),
    });
}
