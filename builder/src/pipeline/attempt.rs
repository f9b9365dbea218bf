//! What has an earlier attempt of this build left behind, and what does this one leave to the next?
//!
//! A pod that is killed takes its disk with it, but not the layers that it has pushed. So a build that has a UID notes each layer of its image once the
//! repository has it, in a manifest under a tag beside its own ([`steps_tag`]):
//!
//! | where | what |
//! | --- | --- |
//! | annotation [`STEPS_OF_ANNOTATION`] | the build's UID |
//! | annotation [`INPUTS_ANNOTATION`] | the digest of all that decides the layers: another Containerfile, base or context makes the note void |
//! | its layers, lowest first | those made so far; the annotation [`POSITION_ANNOTATION`] of each says after which instruction |
//! | its configuration | their diff IDs |
//!
//! It is an image manifest, so that every registry takes it and keeps its layers. The next attempt goes on after the last layer that is still there. When the build has
//! ended for good the note is deleted; a registry that refuses to delete keeps one small manifest.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};

use super::bases::Outside;
use super::todo::Position;
use super::{BuildError, BuildSpec, LayerPer};
use crate::contract::{STEPS_OF_ANNOTATION, TAG_ANNOTATION, steps_tag};
use crate::digest::{Digest, Hashing};
use crate::error::{Class, Classify as _, chain};
use crate::image::{Descriptor, Image, MANIFEST_MEDIA_TYPE, Manifest};
use crate::pull::{PullError, ResolvedImage};
use crate::reference::Reference;
use crate::registry::Registry;
use crate::store::Store;

/// On the note: see the module.
pub const INPUTS_ANNOTATION: &str = "strata.image-mode.dev/inputs";
/// On a layer of the note: `STAGE.STEP`, see [`Position`].
pub const POSITION_ANNOTATION: &str = "strata.image-mode.dev/after";
/// Changes when attempts of different versions of this program must not go on with each other's layers.
const VERSION: &str = concat!("1 ", env!("CARGO_PKG_VERSION"));
/// Layers looked for at the same time.
const LOOKS_AT_ONCE: usize = 6;

/// A layer of the image that the target has.
#[derive(Clone, Debug, PartialEq)]
pub struct Done {
    /// After which instruction.
    pub after: Position,
    /// As the manifest will name it.
    pub descriptor: Descriptor,
    /// Of its tar.
    pub diff_id: Digest,
}

/// What an earlier attempt left.
#[derive(Debug)]
pub struct Left {
    /// Lowest first; at least one.
    pub layers: Vec<Done>,
    /// The layers as an image, to unpack them.
    pub image: ResolvedImage,
}

/// The note of a build's layers.
#[derive(Debug)]
pub struct Note {
    registry: Registry,
    /// Where it is.
    at: Reference,
    build_uid: String,
    /// Beside our own.
    annotations: BTreeMap<String, String>,
    architecture: String,
    /// Under the tag now, as far as we know.
    current: Mutex<Option<Digest>>,
    /// The registry has refused to delete, so there is no use in asking for more.
    refuses: AtomicBool,
}

impl Note {
    /// Where the build's note is; none if the build has no UID or makes no image in a registry.
    #[must_use]
    pub fn of(spec: &BuildSpec) -> Option<Self> {
        let (registry, image) = spec.push.in_registry()?;
        let tag = steps_tag(image.tag.as_deref()?)?;
        Some(Self {
            registry: registry.clone(),
            at: image.repository.tagged(&tag),
            build_uid: spec.build_uid.clone()?,
            annotations: spec.annotations.clone(),
            architecture: spec.architecture.clone(),
            current: Mutex::new(None),
            refuses: AtomicBool::new(false),
        })
    }

    /// The layers that an earlier attempt of the same build noted for the same inputs, as far as the repository still has them.
    ///
    /// # Errors
    /// Transient: the network. Whatever else is wrong with a note, the build can do without.
    pub async fn find(&self, inputs: Digest) -> Result<Option<Left>, BuildError> {
        let mut image = match self.resolve().await {
            Ok(image) => image,
            Err(error) if error.class() == Class::Transient => return Err(error),
            Err(error) => {
                tracing::debug!(error = %chain(&error), "no earlier attempt");
                return Ok(None);
            }
        };
        *self.current() = Some(image.digest);
        let annotation = |key: &str| image.manifest.annotations.get(key).map(String::as_str);
        if annotation(STEPS_OF_ANNOTATION) != Some(self.build_uid.as_str())
            || annotation(INPUTS_ANNOTATION) != Some(inputs.to_string().as_str())
        {
            return Ok(None);
        }
        let diff_ids = image.config.rootfs.diff_ids.iter();
        let noted: Vec<Done> = image
            .manifest
            .layers
            .iter()
            .zip(diff_ids)
            .map_while(|(layer, diff_id)| done(layer, *diff_id))
            .collect();
        let repository = &self.at.repository;
        let is_there: Vec<bool> = stream::iter(&noted)
            .map(|layer| self.registry.has_blob(repository, layer.descriptor.digest))
            .buffered(LOOKS_AT_ONCE)
            .try_collect()
            .await?;
        let there = is_there.iter().take_while(|there| **there).count();
        image.manifest.layers.truncate(there);
        let layers: Vec<Done> = noted.into_iter().take(there).collect();
        Ok((!layers.is_empty()).then_some(Left { layers, image }))
    }

    /// The note as an image. It is our own, in the place that we push to: what is said of images that are pulled (mirrors, policy.json) is not said of it.
    async fn resolve(&self) -> Result<ResolvedImage, BuildError> {
        let found = self.registry.manifest(&self.at, &self.architecture).await?;
        let store = self.store();
        let broken = |document| {
            let image = self.at.to_string();
            move |source| PullError::Document {
                image,
                document,
                source,
            }
        };
        let manifest: Manifest =
            serde_json::from_slice(&found.bytes).map_err(broken("manifest"))?;
        let config = store.blob(manifest.config.digest).await?;
        let config = serde_json::from_slice(&config).map_err(broken("configuration"))?;
        Ok(ResolvedImage {
            store,
            digest: found.digest,
            manifest,
            config,
        })
    }

    fn store(&self) -> Store {
        Store::Registry(self.registry.clone(), self.at.repository.clone())
    }

    /// Notes that the repository has `layers`.
    ///
    /// # Errors
    /// User: no right. Transient: the network.
    pub async fn write(&self, inputs: Digest, layers: &[Done]) -> Result<(), BuildError> {
        let mut image = Image::default();
        image.config.architecture.clone_from(&self.architecture);
        image.config.os = "linux".to_owned();
        for layer in layers {
            let mut descriptor = layer.descriptor.clone();
            let Position { stage, step } = layer.after;
            let annotations = serde_json::json!({POSITION_ANNOTATION: format!("{stage}.{step}")});
            descriptor
                .other
                .insert("annotations".to_owned(), annotations);
            image.add_layer(descriptor, layer.diff_id);
        }
        image.annotations = [
            (STEPS_OF_ANNOTATION, self.build_uid.clone()),
            (INPUTS_ANNOTATION, inputs.to_string()),
            (TAG_ANNOTATION, self.at.tag.clone().unwrap_or_default()),
        ]
        .map(|(key, value)| (key.to_owned(), value))
        .into();
        image.annotations.extend(self.annotations.clone());
        // A time would make each note another one.
        let image = image.assemble("1970-01-01T00:00:00Z")?;
        self.store().put_blob(&image.config).await?;
        let manifest = Bytes::from(image.manifest);
        let digest = self
            .registry
            .push_manifest(&self.at, MANIFEST_MEDIA_TYPE, &manifest)
            .await?;
        let before = self.current().replace(digest);
        if let Some(before) = before.filter(|before| *before != digest) {
            self.delete_manifest(before).await;
        }
        Ok(())
    }

    /// Deletes the note that this attempt found or wrote.
    pub async fn delete(&self) {
        let current = self.current().take();
        if let Some(digest) = current {
            self.delete_manifest(digest).await;
        }
    }

    /// Deletes the note that is there, whoever wrote it.
    pub async fn find_and_delete(&self) {
        match self.registry.head_manifest(&self.at).await {
            Ok(Some(digest)) => self.delete_manifest(digest).await,
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(at = %self.at, error = %chain(&error), "the note of this build's steps may stay in the registry");
            }
        }
    }

    async fn delete_manifest(&self, digest: Digest) {
        if self.refuses.load(Ordering::Relaxed) {
            return;
        }
        let deleted = self.registry.delete_manifest(&self.at.repository, digest);
        if let Err(error) = deleted.await {
            tracing::warn!(at = %self.at, %digest, error = %chain(&error), "the note of this build's steps stays in the registry");
            self.refuses.store(true, Ordering::Relaxed);
        }
    }

    fn current(&self) -> std::sync::MutexGuard<'_, Option<Digest>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn done(layer: &Descriptor, diff_id: Digest) -> Option<Done> {
    let mut descriptor = layer.clone();
    let annotations = descriptor.other.remove("annotations")?;
    let (stage, step) = annotations[POSITION_ANNOTATION].as_str()?.split_once('.')?;
    Some(Done {
        after: Position {
            stage: stage.parse().ok()?,
            step: step.parse().ok()?,
        },
        descriptor,
        diff_id,
    })
}

/// The digest of all that decides the layers of a build, but for what steps fetch by themselves. Secrets are left out: a digest would tell who guesses.
///
/// # Errors
/// User: the context can't be read.
pub fn inputs(spec: &BuildSpec, outside: &Outside) -> Result<Digest, BuildError> {
    let BuildSpec {
        containerfile,
        context,
        target,
        build_args,
        layers,
        generated_lines: _, // for messages
        layer_per,
        architecture,
        volumes,        // where they are; their content may be secret
        contexts: _,    // by what they stand for
        labels: _,      // of the image, not of its layers
        annotations: _, // the same
        secrets: _,     // see above
        caches: _,      // make a step faster
        base_rootfs: _, // the image's own files
        push: _,
        pull: _,
        scratch: _,
        step_timeout: _,
        build_uid: _,
        no_steps: _,
        interrupt: _,
    } = spec;
    let mut all = Hashing::new(io::sink());
    let mut add = |text: &str| {
        all.update(&(text.len() as u64).to_le_bytes());
        all.update(text.as_bytes());
    };
    add(VERSION);
    add(&Digest::of(&super::read(containerfile)?).to_string());
    add(&format!(
        "{target:?} {build_args:?} {layers:?} {architecture}"
    ));
    add(match layer_per {
        LayerPer::Stage => "stage",
        LayerPer::Step => "step",
    });
    for volume in volumes {
        add(&volume.target.to_string_lossy());
    }
    for (name, digest) in outside.digests() {
        add(&format!("{name} {digest}"));
    }
    let directories = outside.directories();
    for directory in std::iter::once(context.as_path()).chain(directories) {
        let mut content = Hashing::new(io::sink());
        let hashed = hash_folder(directory, &mut content);
        hashed.map_err(|(path, source)| BuildError::ReadFile { path, source })?;
        add(&content.finish().1.to_string());
    }
    Ok(all.finish().1)
}

/// Names, kinds and contents. A ConfigMap's or Secret's files are links by way of folders that are named for the time (`..2026_11_25_…`): links are followed, those names left out.
fn hash_folder(directory: &Path, into: &mut Hashing<io::Sink>) -> Result<(), (PathBuf, io::Error)> {
    let at = |path: &Path| {
        let path = path.to_owned();
        move |error| (path, error)
    };
    let entries = fs::read_dir(directory).map_err(at(directory))?;
    let mut names = entries
        .map(|entry| entry.map(|entry| entry.file_name()))
        .collect::<io::Result<Vec<_>>>()
        .map_err(at(directory))?;
    names.sort();
    for name in names {
        let bytes = name.as_encoded_bytes();
        if bytes.starts_with(b"..") {
            continue;
        }
        let path = directory.join(&name);
        let own = fs::symlink_metadata(&path).map_err(at(&path))?;
        into.update(&(bytes.len() as u64).to_le_bytes());
        into.update(bytes);
        if own.is_dir() {
            into.update(b"/");
            hash_folder(&path, into)?;
            into.update(b"\\");
            continue;
        }
        match fs::metadata(&path) {
            Ok(file) if file.is_file() => {
                into.update(&file.len().to_le_bytes());
                let mut content = fs::File::open(&path).map_err(at(&path))?;
                io::copy(&mut content, into).map_err(at(&path))?;
            }
            // A link to a folder or to nothing, a socket.
            Ok(_) | Err(_) => {
                if own.is_symlink() {
                    let to = fs::read_link(&path).map_err(at(&path))?;
                    into.update(to.as_os_str().as_encoded_bytes());
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(directory: &Path) -> Digest {
        let mut into = Hashing::new(io::sink());
        hash_folder(directory, &mut into).unwrap();
        into.finish().1
    }

    #[test]
    fn a_mounted_config_map_is_the_same_in_each_pod_and_a_changed_file_is_not() {
        let mounted = |time: &str, content: &str| {
            let folder = tempfile::tempdir().unwrap();
            let at = |name: &str| folder.path().join(name);
            fs::create_dir(at(time)).unwrap();
            fs::write(at(&format!("{time}/key")), content).unwrap();
            std::os::unix::fs::symlink(time, at("..data")).unwrap();
            std::os::unix::fs::symlink("..data/key", at("key")).unwrap();
            hash(folder.path())
        };
        let first = mounted("..2026_11_25_09.1", "a");
        assert_eq!(first, mounted("..2026_11_25_10.2", "a"));
        assert_ne!(first, mounted("..2026_11_25_09.1", "b"));
    }
}
