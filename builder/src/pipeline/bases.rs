//! What do the images and contexts that a build names stand for? Each is resolved once, to a manifest by digest or to a directory.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::{BuildError, BuildSpec, ContextSource};
use crate::containerfile::graph::{BuildGraph, Source, StageBase};
use crate::image::{Image, ImageConfig, Manifest};
use crate::progress::{Event, Progress};
use crate::reference::{Reference, Repository};
use crate::registry::Registry;

/// Where an image's blobs are.
#[derive(Clone, Debug)]
pub struct Origin {
    /// With the credentials to pull.
    pub registry: Registry,
    /// Where.
    pub repository: Repository,
}

/// An image that a stage starts from, or that files are taken from.
#[derive(Clone, Debug)]
pub struct Base {
    /// Layers and configuration.
    pub image: Image,
    /// Where its layers come from.
    pub origin: Origin,
    /// Already unpacked (`--base-rootfs`).
    pub rootfs: Option<PathBuf>,
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
    /// An image reference as written.
    Image(String),
}

impl Name {
    /// The name of a stage's base, if it comes from outside.
    pub fn of_base(base: &StageBase) -> Option<Self> {
        match base {
            StageBase::Scratch | StageBase::Stage(_) => None,
            StageBase::Context(name) => Some(Self::Context(name.clone())),
            StageBase::Image(text) => Some(Self::Image(text.clone())),
        }
    }

    /// The name of a source of files, if it comes from outside.
    pub fn of_source(source: &Source) -> Option<Self> {
        match source {
            Source::Empty | Source::MainContext | Source::Stage(_) => None,
            Source::Context(name) => Some(Self::Context(name.clone())),
            Source::Image(text) => Some(Self::Image(text.clone())),
        }
    }

    fn text(&self) -> &str {
        match self {
            Self::Context(text) | Self::Image(text) => text,
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

    /// Finds everything that the graph names.
    pub async fn resolve(
        graph: &BuildGraph,
        spec: &BuildSpec,
        progress: &Progress,
    ) -> Result<Self, BuildError> {
        let final_base = final_base(graph);
        let bases = graph
            .stages
            .iter()
            .filter_map(|stage| Name::of_base(&stage.base));
        let sources = graph
            .stages
            .iter()
            .flat_map(|stage| stage.sources.iter().flatten());
        let mut outside = Self::default();
        for name in bases.chain(sources.filter_map(Name::of_source)) {
            if outside.images.contains_key(&name) || outside.directories.contains_key(&name) {
                continue;
            }
            let reference = match &name {
                Name::Image(text) => text.parse::<Reference>()?,
                Name::Context(context) => match spec.contexts.get(context) {
                    Some(ContextSource::Image(reference)) => reference.clone(),
                    Some(ContextSource::Directory(directory)) => {
                        outside.directories.insert(name, directory.clone());
                        continue;
                    }
                    None => {
                        return Err(BuildError::ContextIsNoImage {
                            name: context.clone(),
                        });
                    }
                },
            };
            let mut base = fetch(&spec.pull, &reference, &spec.architecture, progress).await?;
            base.rootfs = rootfs(spec, &reference, final_base.as_ref() == Some(&name));
            outside.images.insert(name, base);
        }
        Ok(outside)
    }
}

/// What the target stage finally derives from, if that is outside.
fn final_base(graph: &BuildGraph) -> Option<Name> {
    let mut base = &graph.stages.get(graph.target)?.base;
    while let StageBase::Stage(index) = base {
        base = &graph.stages.get(*index)?.base;
    }
    Name::of_base(base)
}

fn rootfs(spec: &BuildSpec, reference: &Reference, is_final_base: bool) -> Option<PathBuf> {
    let named = spec
        .base_rootfs
        .iter()
        .find(|rootfs| rootfs.image.as_ref() == Some(reference));
    let unnamed = || {
        spec.base_rootfs
            .iter()
            .find(|rootfs| is_final_base && rootfs.image.is_none())
    };
    named
        .or_else(unnamed)
        .map(|rootfs| rootfs.directory.clone())
}

async fn fetch(
    registry: &Registry,
    reference: &Reference,
    architecture: &str,
    progress: &Progress,
) -> Result<Base, BuildError> {
    let document = |document| {
        let image = reference.to_string();
        move |source| BuildError::Document {
            document,
            image,
            source,
        }
    };
    let found = registry.manifest(reference, architecture).await?;
    let manifest: Manifest = serde_json::from_slice(&found.bytes).map_err(document("manifest"))?;
    let config = registry
        .blob(&reference.repository, manifest.config.digest)
        .await?;
    let config: ImageConfig = serde_json::from_slice(&config).map_err(document("configuration"))?;
    let image = Image::of_base(&manifest, config)?;
    let (digest, layers) = (found.digest, image.layers.len());
    progress.tell(&Event::Base {
        image: &reference.to_string(),
        digest,
        layers,
    });
    let origin = Origin {
        registry: registry.clone(),
        repository: reference.repository.clone(),
    };
    Ok(Base {
        image,
        origin,
        rootfs: None,
    })
}
