//! What decides a build? All of it is known before the first byte is read.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use super::target::Target;
use crate::layer::LayerOptions;
use crate::reference::Reference;
use crate::registry::Registry;
use crate::sandbox::MountSpec;
use crate::stop::Interrupt;

/// All that decides a build.
#[derive(Clone, Debug)]
pub struct BuildSpec {
    /// The Containerfile.
    pub containerfile: PathBuf,
    /// How many lines at its start aren't its author's; errors and reports count those behind them.
    pub generated_lines: usize,
    /// The build context.
    pub context: PathBuf,
    /// Name or index of a stage; the last one if absent.
    pub target: Option<String>,
    /// `--build-arg`.
    pub build_args: BTreeMap<String, String>,
    /// `--build-context`.
    pub contexts: BTreeMap<String, ContextSource>,
    /// Put on the image beside the Containerfile's own.
    pub labels: BTreeMap<String, String>,
    /// Of the image's manifest, and of the note of its steps.
    pub annotations: BTreeMap<String, String>,
    /// `--secret`, by id.
    pub secrets: BTreeMap<String, Secret>,
    /// What every step sees besides its root.
    pub volumes: Vec<MountSpec>,
    /// Where cache mounts are kept; in scratch, and so for this build only, if absent.
    pub caches: Option<PathBuf>,
    /// Images that are already unpacked.
    pub base_rootfs: Vec<BaseRootfs>,
    /// Where the image goes.
    pub push: Target,
    /// With the credentials to pull.
    pub pull: Registry,
    /// On a file system that takes overlay uppers; emptied by its owner, not by us.
    pub scratch: PathBuf,
    /// How layers are written; its time is the image's, too.
    pub layers: LayerOptions,
    /// What becomes a layer.
    pub layer_per: LayerPer,
    /// Why no step can run; none if steps can.
    pub no_steps: Option<String>,
    /// Steps are killed after this time.
    pub step_timeout: Option<std::time::Duration>,
    /// The build that this is an attempt of.
    pub build_uid: Option<String>,
    /// GOARCH of the image.
    pub architecture: String,
    /// What ends it early.
    pub interrupt: Arc<Interrupt>,
}

/// What becomes one layer of the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum LayerPer {
    /// All that a stage changes.
    #[default]
    Stage,
    /// What each instruction changes.
    Step,
}

/// The content of a secret; never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub Vec<u8>);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// What a named context is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ContextSource {
    /// Files.
    Directory(PathBuf),
    /// An image in an OCI image layout, by its name there.
    Layout(PathBuf, Option<String>),
    /// An image in a registry.
    Image(Reference),
}

/// `--base-rootfs`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseRootfs {
    /// Which image it is; the one that the target finally derives from if absent.
    pub image: Option<Reference>,
    /// Its files.
    pub directory: PathBuf,
}
