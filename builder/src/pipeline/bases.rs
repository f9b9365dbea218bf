//! What do the images and contexts that a build names stand for? Each is resolved once, to a manifest by digest or to a directory.
//!
//! The files of an image are fetched only if a stage needs them, and while the stages before that one run.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::outline::Outline;
use super::todo::{Todo, ancestors};
use super::{BuildError, BuildSpec, ContextSource};
use crate::containerfile::graph::{BuildGraph, Source, StageBase};
use crate::containerfile::{Containerfile, Location};
use crate::digest::Digest;
use crate::error::{Class, Classify as _, chain};
use crate::image::Image;
use crate::layout::Layout;
use crate::progress::{Event, Progress};
use crate::pull::{ResolvedImage, resolve, resolve_in_layout};
use crate::reference::Reference;
use crate::store::StoreError;

/// An image that a stage starts from, or that files are taken from.
#[derive(Clone, Debug)]
pub struct Base {
    /// Layers and configuration.
    pub image: Image,
    /// Where its layers come from.
    pub resolved: ResolvedImage,
    /// Already unpacked (`--base-rootfs`), or what stands for it.
    pub rootfs: Option<PathBuf>,
    /// What `rootfs` is, if it has only folders.
    pub outline: Option<Arc<Outline>>,
}

/// What is outside of the Containerfile, by [`Name`].
#[derive(Debug, Default)]
pub struct Outside {
    images: BTreeMap<Name, Base>,
    directories: BTreeMap<Name, PathBuf>,
}

/// How the Containerfile calls it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Name {
    /// A named context.
    Context(String),
    /// An image reference as written, for an architecture (GOARCH) if the stage says one.
    Image(String, Option<String>),
}

impl Name {
    /// The name of a stage's base, if it comes from outside.
    #[must_use]
    pub fn of_base(stage: &crate::containerfile::graph::PlannedStage) -> Option<Self> {
        match &stage.base {
            StageBase::Scratch | StageBase::Stage(_) => None,
            StageBase::Context(name) => Some(Self::Context(name.clone())),
            StageBase::Image(text) => {
                let platform = stage.platform.as_ref();
                let architecture = platform.map(|platform| platform.architecture.clone());
                Some(Self::Image(text.clone(), architecture))
            }
        }
    }

    /// The name of a source of files, if it comes from outside.
    #[must_use]
    pub fn of_source(source: &Source) -> Option<Self> {
        match source {
            Source::Empty | Source::MainContext | Source::Stage(_) => None,
            Source::Context(name) => Some(Self::Context(name.clone())),
            Source::Image(text) => Some(Self::Image(text.clone(), None)),
        }
    }

    /// `error` with the first instruction that names what it is about.
    pub fn told(&self, file: &Containerfile, graph: &BuildGraph, error: BuildError) -> BuildError {
        match self.first_use(file, graph) {
            Some(location) => BuildError::Outside {
                place: file.place(location),
                text: location.shown(),
                source: Box::new(error),
            },
            None => error,
        }
    }

    fn first_use<'f>(&self, file: &'f Containerfile, graph: &BuildGraph) -> Option<&'f Location> {
        graph.stages.iter().find_map(|planned| {
            let stage = &file.stages[planned.index];
            if Self::of_base(planned).as_ref() == Some(self) {
                return Some(&stage.location);
            }
            let mut instructions = stage.instructions.iter().zip(&planned.sources);
            let names_it = |source: &Source| Self::of_source(source).as_ref() == Some(self);
            let found = instructions.find(|(_, sources)| sources.iter().any(names_it));
            found.map(|(located, _)| &located.location)
        })
    }

    /// As written.
    #[must_use]
    pub fn text(&self) -> &str {
        match self {
            Self::Context(text) | Self::Image(text, _) => text,
        }
    }
}

impl Outside {
    /// The image called so.
    pub fn image(&self, name: &Name) -> Result<&Base, BuildError> {
        self.images
            .get(name)
            .ok_or_else(|| BuildError::ContextIsNoImage {
                name: name.text().to_owned(),
            })
    }

    /// The directory called so, if it is one.
    pub fn directory(&self, name: &Name) -> Option<&Path> {
        self.directories.get(name).map(PathBuf::as_path)
    }

    /// Finds everything that the graph names and that isn't known yet.
    pub async fn resolve(
        &mut self,
        file: &Containerfile,
        graph: &BuildGraph,
        spec: &BuildSpec,
        progress: &Progress,
    ) -> Result<(), BuildError> {
        let final_base = final_base(graph);
        let bases = graph.stages.iter().filter_map(Name::of_base);
        let sources = graph
            .stages
            .iter()
            .flat_map(|stage| stage.sources.iter().flatten());
        for name in bases.chain(sources.filter_map(Name::of_source)) {
            if self.images.contains_key(&name) || self.directories.contains_key(&name) {
                continue;
            }
            let found = find(&name, spec).await;
            let (image, resolved, reference) =
                match found.map_err(|error| name.told(file, graph, error))? {
                    Found::Directory(directory) => {
                        self.directories.insert(name, directory);
                        continue;
                    }
                    Found::Image(image, resolved, reference) => (image, resolved, reference),
                };
            progress.tell(&Event::Base {
                image: name.text(),
                digest: resolved.digest,
                layers: image.layers.len(),
            });
            let rootfs = rootfs(spec, reference.as_ref(), final_base.as_ref() == Some(&name));
            let base = Base {
                image: *image,
                resolved: *resolved,
                rootfs,
                outline: None,
            };
            self.images.insert(name, base);
        }
        Ok(())
    }

    /// The images whose files the build reads or changes, and which aren't here yet.
    pub fn to_unpack(
        &self,
        file: &Containerfile,
        graph: &BuildGraph,
        todo: &Todo,
    ) -> Vec<(Name, ResolvedImage)> {
        let mut needed: BTreeSet<Name> = todo.sources(graph).filter_map(Name::of_source).collect();
        for index in 0..graph.stages.len() {
            if todo.needs_files(file, graph, index)
                && let Some(name) = lowest_base(graph, index)
            {
                needed.insert(name);
            }
        }
        let image = |name: Name| {
            let base = self.images.get(&name)?;
            base.rootfs.is_none().then(|| (name, base.resolved.clone()))
        };
        needed.into_iter().filter_map(image).collect()
    }

    /// From now on an image's folders stand for all its files.
    pub fn give_outline(&mut self, name: &Name, outline: Outline) {
        if let Some(base) = self.images.get_mut(name) {
            base.rootfs = Some(outline.directory().to_owned());
            base.outline = Some(Arc::new(outline));
        }
    }

    /// True if folders stand for an image's files.
    pub fn has_outline(&self) -> bool {
        self.images.values().any(|base| base.outline.is_some())
    }

    /// Every image.
    pub fn image_names(&self) -> impl Iterator<Item = &Name> {
        self.images.keys()
    }

    /// Each image by name and digest.
    pub fn digests(&self) -> impl Iterator<Item = (&str, Digest)> {
        let images = self.images.iter();
        images.map(|(name, base)| (name.text(), base.resolved.digest))
    }

    /// The contexts that are directories, in the order of their names.
    pub fn directories(&self) -> impl Iterator<Item = &Path> {
        self.directories.values().map(PathBuf::as_path)
    }
}

/// What a name stands for.
enum Found {
    Directory(PathBuf),
    /// With what its registry calls it, if it is in one.
    Image(Box<Image>, Box<ResolvedImage>, Option<Reference>),
}

async fn find(name: &Name, spec: &BuildSpec) -> Result<Found, BuildError> {
    let architecture = match name {
        Name::Image(_, Some(architecture)) => architecture,
        Name::Image(_, None) | Name::Context(_) => &spec.architecture,
    };
    let candidates = match name {
        Name::Image(text, _) => spec.pull.rules().candidates(text)?,
        Name::Context(context) => match spec.contexts.get(context) {
            None => {
                return Err(BuildError::ContextIsNoImage {
                    name: context.clone(),
                });
            }
            Some(ContextSource::Directory(directory)) => {
                return Ok(Found::Directory(directory.clone()));
            }
            Some(ContextSource::Layout(directory, tag)) => {
                let layout = Layout::open(directory).map_err(StoreError::from)?;
                let resolved = resolve_in_layout(&layout, tag.as_deref(), architecture).await?;
                return found(resolved, None);
            }
            Some(ContextSource::Image(reference)) => vec![reference.clone()],
        },
    };
    let (resolved, reference) = resolve_first(spec, candidates, architecture).await?;
    found(resolved, Some(reference))
}

fn found(resolved: ResolvedImage, reference: Option<Reference>) -> Result<Found, BuildError> {
    let image = Image::of_base(&resolved.manifest, resolved.config.clone())?;
    Ok(Found::Image(Box::new(image), Box::new(resolved), reference))
}

/// The first of the images that there is.
async fn resolve_first(
    spec: &BuildSpec,
    mut candidates: Vec<Reference>,
    architecture: &str,
) -> Result<(ResolvedImage, Reference), BuildError> {
    loop {
        let reference = candidates.remove(0);
        match resolve(&spec.pull, &reference, architecture).await {
            Ok(image) => return Ok((image, reference)),
            // A short name: another registry may have it, or let us see that it has.
            Err(error) if !candidates.is_empty() && matches!(error.class(), Class::User(_)) => {
                tracing::debug!(%reference, error = %chain(&error), "not here");
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// What the target stage finally derives from, if that is outside.
fn final_base(graph: &BuildGraph) -> Option<Name> {
    lowest_base(graph, graph.target)
}

/// The image or context below the lowest ancestor of a stage; none on scratch.
pub fn lowest_base(graph: &BuildGraph, index: usize) -> Option<Name> {
    let lowest = ancestors(graph, index).first().copied();
    lowest.and_then(|index| Name::of_base(&graph.stages[index]))
}

fn rootfs(spec: &BuildSpec, reference: Option<&Reference>, is_final_base: bool) -> Option<PathBuf> {
    let named = reference.and_then(|reference| {
        spec.base_rootfs
            .iter()
            .find(|rootfs| rootfs.image.as_ref() == Some(reference))
    });
    let unnamed = || {
        spec.base_rootfs
            .iter()
            .find(|rootfs| is_final_base && rootfs.image.is_none())
    };
    named
        .or_else(unnamed)
        .map(|rootfs| rootfs.directory.clone())
}
