//! What does the caller ask for? The command line, checked as far as it can be without looking at anything.

use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Parser, Subcommand, ValueEnum};
use strata_builder::layer::Compression;
use strata_builder::pipeline::{BaseRootfs, ContextSource};
use strata_builder::reference::Reference;

/// Builds an image from a Containerfile, without a daemon and without privileges, and pushes it.
#[derive(Debug, Parser)]
#[command(name = "strata-builder", version, arg_required_else_help = true)]
pub struct Program {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Build an image and push it; the digest of its manifest goes to standard output
    #[command(after_help = EXIT_CODES)]
    Build(Box<Build>),
    /// Print what this machine or pod allows, which tier a build would run in, and what would lift it
    Doctor(Doctor),
}

/// `strata-builder doctor`.
#[derive(Debug, Args)]
pub struct Doctor {
    /// Directory that builds would use for their work files; by default the system's folder for temporary files
    #[arg(long, value_name = "DIR")]
    pub scratch: Option<PathBuf>,
}

const EXIT_CODES: &str = "\
Exit codes:
   0  the image is pushed
  64  wrong arguments
  65  the Containerfile, its context or a step of it has to change
  70  this machine can't build, or a bug
  75  may pass by itself: the network, a busy registry, a full disk
  77  a right is missing: registry credentials, namespaces for this pod or user";

/// `strata-builder build`.
#[derive(Debug, Args)]
pub struct Build {
    /// The Containerfile; by default Containerfile or Dockerfile in the context
    #[arg(
        short = 'f',
        long = "containerfile",
        visible_alias = "file",
        value_name = "FILE"
    )]
    pub containerfile: Option<PathBuf>,

    /// Directory that COPY and ADD take files from
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub context: PathBuf,

    /// Stage to build, by name or number; by default the last one
    #[arg(long, value_name = "STAGE")]
    pub target: Option<String>,

    /// Value of an ARG; without =VALUE it is taken from the environment [repeatable]
    #[arg(long = "build-arg", value_name = "NAME[=VALUE]")]
    pub build_args: Vec<BuildArg>,

    /// Another source of files or stages: FROM, --from and from= find it by its name before stages and images [repeatable]
    #[arg(long = "build-context", value_name = "NAME=DIR|REFERENCE")]
    pub build_contexts: Vec<BuildContext>,

    /// Label of the image beside those of the Containerfile [repeatable]
    #[arg(long = "label", value_name = "NAME=VALUE")]
    pub labels: Vec<Pair>,

    /// Where the image goes
    #[arg(long, value_name = "REFERENCE")]
    pub push: PushTarget,

    /// Credentials of registries, as `podman login` and `docker login` write them
    #[arg(long, value_name = "FILE", env = "REGISTRY_AUTH_FILE")]
    pub authfile: Option<PathBuf>,

    /// Credentials for pulling, if they are others
    #[arg(long, value_name = "FILE")]
    pub pull_authfile: Option<PathBuf>,

    /// Registry that speaks HTTP without TLS [repeatable]
    #[arg(long = "plain-http", value_name = "HOST[:PORT]")]
    pub plain_http: Vec<String>,

    /// PEM file with certificate authorities to trust beside the system's [repeatable]
    #[arg(long = "ca-bundle", value_name = "FILE")]
    pub ca_bundles: Vec<PathBuf>,

    /// An image that is already unpacked, such as an image volume: its files are used as they are, while manifest and configuration come from the registry. Without REFERENCE it
    /// is the image that the target stage finally derives from [repeatable]
    #[arg(long = "base-rootfs", value_name = "[REFERENCE=]DIR", value_parser = parse_base_rootfs)]
    pub base_rootfs: Vec<BaseRootfs>,

    /// Directory for the work files: not on an overlay file system; by default a new one in the system's folder for temporary files
    #[arg(long, value_name = "DIR")]
    pub scratch: Option<PathBuf>,

    /// How steps are kept apart from this machine: in a user namespace of their own, or with the rights of root; auto takes what this machine allows, see `strata-builder doctor`
    #[arg(long, value_name = "auto|userns|root", default_value = "auto")]
    pub tier: String,

    /// Layers of the image: one per stage
    #[arg(long, value_enum, default_value = "stage")]
    pub layers: Layers,

    /// Compression of new layers; the base's layers stay as they are
    #[arg(long, value_name = "gzip[:LEVEL]", default_value = "gzip")]
    pub compression: Compression,

    /// Time of the image in seconds since 1970; newer files get it, too. With it the same inputs give the same digest
    #[arg(long, value_name = "SECONDS", env = "SOURCE_DATE_EPOCH")]
    pub source_date_epoch: Option<u64>,

    /// The build that this is an attempt of: an image of the same build that is already there is reported instead of built again
    #[arg(long, value_name = "UID")]
    pub build_uid: Option<String>,

    /// Write the outcome as JSON of at most 4096 bytes to this file
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,

    /// Write the digest of the pushed manifest to this file
    #[arg(long, value_name = "FILE")]
    pub digestfile: Option<PathBuf>,

    /// What standard error shows: lines of text, or a JSON object per event; auto and tty are plain in this version
    #[arg(long, value_enum, default_value = "auto")]
    pub progress: ProgressChoice,
}

/// `--layers`.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Layers {
    /// One layer per stage.
    Stage,
}

/// `--progress`.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum ProgressChoice {
    /// Plain.
    Auto,
    /// Plain.
    Tty,
    /// A line per event.
    Plain,
    /// A JSON object per event.
    Json,
}

/// `NAME=VALUE`.
#[derive(Clone, Debug)]
pub struct Pair(pub String, pub String);

impl FromStr for Pair {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('=') {
            Some((name, value)) if !name.is_empty() => Ok(Self(name.to_owned(), value.to_owned())),
            _ => Err("expected NAME=VALUE"),
        }
    }
}

/// `NAME[=VALUE]`.
#[derive(Clone, Debug)]
pub struct BuildArg {
    /// The ARG.
    pub name: String,
    /// None: from the environment.
    pub value: Option<String>,
}

impl FromStr for BuildArg {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (text, None),
        };
        if name.is_empty() {
            return Err("expected NAME or NAME=VALUE");
        }
        Ok(Self {
            name: name.to_owned(),
            value,
        })
    }
}

/// `NAME=DIR|REFERENCE`.
#[derive(Clone, Debug)]
pub struct BuildContext {
    /// How the Containerfile calls it.
    pub name: String,
    /// What it is.
    pub source: ContextSource,
}

impl FromStr for BuildContext {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Pair(name, value) = text
            .parse()
            .map_err(|_| "expected NAME=DIR or NAME=REFERENCE".to_owned())?;
        if value.starts_with("oci:") || value.starts_with("oci-layout:") {
            return Err(
                "an OCI layout as a context is not in this version; push it to a registry"
                    .to_owned(),
            );
        }
        let source = if value == "." || value.starts_with(['/', '.']) {
            ContextSource::Directory(PathBuf::from(value))
        } else {
            let reference = value.strip_prefix("docker-image://").unwrap_or(&value);
            let hint = "a directory starts with / or .";
            ContextSource::Image(
                reference
                    .parse()
                    .map_err(|error| format!("{error}; {hint}"))?,
            )
        };
        Ok(Self { name, source })
    }
}

/// `--push`.
#[derive(Clone, Debug)]
pub struct PushTarget(pub Reference);

impl FromStr for PushTarget {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.starts_with("oci:") {
            return Err(
                "an OCI layout as a target is not in this version; give a registry's reference"
                    .to_owned(),
            );
        }
        let reference: Reference = text
            .parse()
            .map_err(|error: strata_builder::reference::InvalidReference| error.to_string())?;
        match reference.digest {
            None => Ok(Self(reference)),
            Some(_) => {
                Err("an image is pushed to a tag; its digest is known only afterwards".to_owned())
            }
        }
    }
}

fn parse_base_rootfs(text: &str) -> Result<BaseRootfs, String> {
    // A reference never starts with a slash or a dot, so a directory that holds an = is still one.
    match text.split_once('=') {
        Some((image, directory)) if !text.starts_with(['/', '.']) => {
            let image = image
                .parse()
                .map_err(|error: strata_builder::reference::InvalidReference| error.to_string())?;
            Ok(BaseRootfs {
                image: Some(image),
                directory: PathBuf::from(directory),
            })
        }
        _ => Ok(BaseRootfs {
            image: None,
            directory: PathBuf::from(text),
        }),
    }
}
