//! Does COPY need the base's files? Where a build only puts files onto an image that was made from an ostree commit, the commit's folders are enough, and no layer is
//! unpacked.
//!
//! Only folders decide where a file goes: a destination that is a link is followed, and one that is a folder is merged with. So such a stage starts from a directory
//! that has the base's folders at its destinations, and afterwards nothing may lie where the base has a file or a link. Wherever that can't be told, the base is unpacked.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use futures::TryStreamExt as _;

use super::BuildError;
use super::bases::{Base, Name, Outside, lowest_base};
use super::spec::BuildSpec;
use super::todo::Todo;
use crate::containerfile::graph::{BuildGraph, Source, StageBase};
use crate::containerfile::{Containerfile, Instruction, Transfer};
use crate::decompress::decompress;
use crate::digest::Hashing;
use crate::error::chain;
use crate::image::Descriptor;
use crate::layer::Changes;
use crate::ostree::{COMMIT_LABEL, Folders, FoldersError, Kind, LAST_LAYER_LABEL};
use crate::state::{StageState, StateError};
use crate::store::{Store, StoreError};

/// A commit's layer is about a megabyte; with much more in it there is nothing to be won.
const LAYER_LIMIT_BYTES: u64 = 32 << 20;

/// A base's folders at the destinations of a build.
#[derive(Debug)]
pub struct Outline {
    folders: Folders,
    /// They are made here.
    directory: PathBuf,
}

/// No outline can be made.
#[derive(Debug, thiserror::Error)]
enum OutlineError {
    #[error("fetch the layer of the ostree commit")]
    Store(#[from] StoreError),
    #[error("the layer of the ostree commit has another digest or size")]
    NotAsked,
    #[error(transparent)]
    Folders(#[from] FoldersError),
    #[error("make the root of the outline")]
    Make(#[from] std::io::Error),
}

impl Outline {
    /// Where its folders are.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// True if no change is where the base has, or may have, something else than the folders that were made.
    ///
    /// # Errors
    /// Transient, if the changes can't be read.
    pub fn covers(&self, changes: &Changes) -> Result<bool, BuildError> {
        let covered = |path: &Path| match self.folders.kind(path) {
            Kind::Absent => true,
            Kind::Folder => self.directory.join(path).is_dir(),
            Kind::Other => false,
        };
        Ok(changes.all(covered)?)
    }
}

/// Gives those images an outline that need nothing more.
pub async fn outline(
    outside: &mut Outside,
    spec: &BuildSpec,
    file: &Containerfile,
    graph: &BuildGraph,
    todo: &Todo,
) {
    for (name, image) in outside.to_unpack(file, graph, todo) {
        let Some(destinations) = destinations(&name, outside, file, graph, todo) else {
            continue;
        };
        let Ok(base) = outside.image(&name) else {
            continue;
        };
        let Some((commit, layer)) = commit_layer(base) else {
            continue;
        };
        let directory = spec
            .scratch
            .join(format!("outline-{}", &image.digest.hex()[..12]));
        match make(&image.store, &layer, commit, &destinations, &directory).await {
            Ok(Some(folders)) => {
                let outline = Outline { folders, directory };
                outside.give_outline(&name, outline);
            }
            Ok(None) => tracing::debug!(name = name.text(), "a destination is not in a folder"),
            // Whatever it is, the pull of the whole image will tell.
            Err(error) => tracing::debug!(name = name.text(), error = %chain(&error), "no outline"),
        }
    }
}

/// The commit, and the layer that holds its folders, if all layers of the base belong to it.
fn commit_layer(base: &Base) -> Option<([u8; 32], Descriptor)> {
    let config = &base.resolved.config;
    let labels = config.config.labels.as_ref()?;
    let commit = hex::decode(labels.get(COMMIT_LABEL)?)
        .ok()?
        .try_into()
        .ok()?;
    let last = config.rootfs.diff_ids.last()?;
    let layer = base.resolved.manifest.layers.first()?;
    let whole = labels.get(LAST_LAYER_LABEL) == Some(&last.to_string());
    (whole && layer.size_bytes <= LAYER_LIMIT_BYTES).then(|| (commit, layer.clone()))
}

async fn make(
    store: &Store,
    layer: &Descriptor,
    commit: [u8; 32],
    destinations: &[PathBuf],
    directory: &Path,
) -> Result<Option<Folders>, OutlineError> {
    let mut blob = Hashing::new(Vec::new());
    let mut stream = store.blob_stream(layer.digest, 0);
    while let Some(piece) = stream.try_next().await? {
        if blob.size_bytes() + piece.len() as u64 > layer.size_bytes {
            return Err(OutlineError::NotAsked);
        }
        std::io::Write::write_all(&mut blob, &piece)?;
    }
    let (blob, digest, _) = blob.finish();
    if digest != layer.digest {
        return Err(OutlineError::NotAsked);
    }
    tokio::task::block_in_place(|| made_from(&blob, commit, destinations, directory))
}

fn made_from(
    blob: &[u8],
    commit: [u8; 32],
    destinations: &[PathBuf],
    directory: &Path,
) -> Result<Option<Folders>, OutlineError> {
    let folders = Folders::read(decompress(blob)?, commit)?;
    fs::create_dir_all(directory)?;
    for destination in destinations {
        if !folders.make(destination, directory)? {
            return Ok(None);
        }
    }
    // Where the base has it, it says at least this, and no other name is asked for.
    let users = Path::new("etc/passwd");
    if folders.kind(users) == Kind::Other && !folders.make(users, directory)? {
        fs::write(directory.join(users), "root:x:0:0:root:/root:/bin/sh\n")?;
        fs::write(directory.join("etc/group"), "root:x:0:\n")?;
    }
    Ok(Some(folders))
}

/// Where the stages on an image put files; none if they need its files, too.
fn destinations(
    name: &Name,
    outside: &Outside,
    file: &Containerfile,
    graph: &BuildGraph,
    todo: &Todo,
) -> Option<Vec<PathBuf>> {
    let on_it = |index: usize| lowest_base(graph, index).as_ref() == Some(name);
    let reads = |source: &Source| match source {
        Source::Stage(index) => on_it(*index),
        Source::Image(_) | Source::Context(_) => Name::of_source(source).as_ref() == Some(name),
        Source::Empty | Source::MainContext => false,
    };
    if todo.sources(graph).any(reads) {
        return None;
    }
    let mut ends: BTreeMap<usize, StageState> = BTreeMap::new();
    let mut places = Vec::new();
    for index in (0..graph.stages.len()).filter(|index| on_it(*index)) {
        todo.first(index)?;
        let planned = &graph.stages[index];
        let mut state = match &planned.base {
            StageBase::Stage(parent) => ends.get(parent)?.clone().derive(),
            StageBase::Scratch => return None,
            StageBase::Context(_) | StageBase::Image(_) => {
                let config = outside.image(name).ok()?.image.config.clone();
                StageState::start(config, graph.scope.clone())
            }
        };
        for located in &file.stages.get(planned.index)?.instructions {
            state.apply(&located.value).ok()?;
            match &located.value {
                Instruction::Run(_) => return None,
                Instruction::Copy(transfer) | Instruction::Add(transfer) => {
                    places.push(destination(&state, transfer).ok()??);
                }
                Instruction::Workdir(_) if is_known(state.user()) => {
                    places.push(PathBuf::from(state.workdir()));
                }
                Instruction::Workdir(_) => return None,
                Instruction::Arg(_)
                | Instruction::Env(_)
                | Instruction::Label(_)
                | Instruction::User(_)
                | Instruction::Shell(_)
                | Instruction::Cmd(_)
                | Instruction::Entrypoint(_)
                | Instruction::Expose(_)
                | Instruction::StopSignal(_)
                | Instruction::Volume(_)
                | Instruction::Maintainer(_)
                | Instruction::Healthcheck(_)
                | Instruction::Onbuild(_) => {}
            }
        }
        ends.insert(index, state);
    }
    Some(places)
}

/// Where it goes; none if only the base knows its owner.
fn destination(state: &StageState, transfer: &Transfer) -> Result<Option<PathBuf>, StateError> {
    let owner = transfer.chown.as_ref().map(|word| state.expand(word));
    if !is_known(&owner.transpose()?.unwrap_or_default()) {
        return Ok(None);
    }
    let written = state.expand(&transfer.destination)?;
    let path = Path::new("/").join(state.workdir()).join(written);
    Ok(Some(crate::copy::clean(&path.to_string_lossy())))
}

/// True for root and for users by number. A group's number is looked up as a name first.
fn is_known(owner: &str) -> bool {
    let (user, group) = owner.split_once(':').unwrap_or((owner, ""));
    let user = user == "root" || user.bytes().all(|byte| byte.is_ascii_digit());
    user && matches!(group, "" | "0" | "root")
}
