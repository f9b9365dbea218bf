//! What does the caller ask for? The command line, checked as far as it can be without looking at anything.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use strata_builder::layer::Compression;
use strata_builder::layout::Location;
use strata_builder::pipeline::{BaseRootfs, ContextSource};
use strata_builder::reference::{InvalidReference, Reference};
use strata_builder::sandbox::Access;

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

    /// How many lines at the Containerfile's start its author hasn't written: messages count the lines behind them
    #[arg(long, value_name = "LINES", default_value_t = 0)]
    pub generated_lines: usize,

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
    #[arg(
        long = "build-context",
        value_name = "NAME=DIR|oci:DIR[:TAG]|REFERENCE"
    )]
    pub build_contexts: Vec<BuildContext>,

    /// File, or variable of the environment, that RUN --mount=type=secret,id=ID shows to a step and that never reaches the image [repeatable]
    #[arg(long = "secret", value_name = "id=ID[,src=FILE|,env=NAME]")]
    pub secrets: Vec<SecretSource>,

    /// File or directory of this machine that every RUN sees at a path of its root, and that never reaches the image: read-only with ro; with rw steps change the original; with O, as
    /// without any, each step changes a view of its own. With optional it may be absent [repeatable]
    #[arg(
        short = 'v',
        long = "volume",
        value_name = "PATH:TARGET[:ro|rw|O][,optional]"
    )]
    pub volumes: Vec<Volume>,

    /// Directory that keeps the files of RUN --mount=type=cache from build to build; by default they last as long as the build
    #[arg(long, value_name = "DIR")]
    pub cache_dir: Option<PathBuf>,

    /// Label of the image beside those of the Containerfile [repeatable]
    #[arg(long = "label", value_name = "NAME=VALUE")]
    pub labels: Vec<Pair>,

    /// Annotation of the image's manifest [repeatable]
    #[arg(long = "annotation", value_name = "NAME=VALUE")]
    pub annotations: Vec<Pair>,

    /// Where the image goes: to a registry, or into an OCI image layout
    #[arg(long, value_name = "REFERENCE|oci:DIR[:TAG]")]
    pub push: PushTarget,

    /// Credentials of registries, as `podman login` and `docker login` write them; by default the files that these write
    #[arg(long, value_name = "FILE", env = "REGISTRY_AUTH_FILE")]
    pub authfile: Option<PathBuf>,

    /// Credentials for pulling, if they are others
    #[arg(long, value_name = "FILE")]
    pub pull_authfile: Option<PathBuf>,

    /// Registry that speaks HTTP without TLS [repeatable]
    #[arg(long = "plain-http", value_name = "HOST[:PORT]", value_delimiter = ',')]
    pub plain_http: Vec<String>,

    /// Mirrors, blocked and insecure registries and short names, in the form of containers-registries.conf(5); by default ~/.config/containers/registries.conf or
    /// /etc/containers/registries.conf, with the files of registries.conf.d beside them
    #[arg(long, value_name = "FILE", env = "CONTAINERS_REGISTRIES_CONF")]
    pub registries_conf: Option<PathBuf>,

    /// Which images may be used, in the form of containers-policy.json(5); where it requires signatures the image isn't used, as they can't be checked; by default
    /// ~/.config/containers/policy.json or /etc/containers/policy.json
    #[arg(long, value_name = "FILE")]
    pub signature_policy: Option<PathBuf>,

    /// Directory with a folder HOST[:PORT] for each registry that has certificates of its own: authorities (*.crt), and what it wants to see of us (*.cert and *.key); by default
    /// ~/.config/containers/certs.d, /etc/containers/certs.d and /etc/docker/certs.d
    #[arg(long, value_name = "DIR")]
    pub certs_dir: Option<PathBuf>,

    /// PEM file with certificate authorities to trust beside the system's [repeatable]
    #[arg(long = "ca-bundle", value_name = "FILE")]
    pub ca_bundles: Vec<PathBuf>,

    /// Give up a connection to a registry on which nothing comes for so long, and try again; 2m by default
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub idle_timeout: Option<Duration>,

    /// Try a registry again that doesn't answer or is busy, until it has been so for so long; 100s by default
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub retry_for: Option<Duration>,

    /// An image that is already unpacked, such as an image volume: its files are used as they are, while manifest and configuration come from the registry. Without REFERENCE it
    /// is the image that the target stage finally derives from [repeatable]
    #[arg(long = "base-rootfs", value_name = "[REFERENCE=]DIR", value_parser = parse_base_rootfs)]
    pub base_rootfs: Vec<BaseRootfs>,

    /// Directory for the work files: not on an overlay file system; by default a new one in the system's folder for temporary files
    #[arg(long, value_name = "DIR")]
    pub scratch: Option<PathBuf>,

    /// Leave the work files in --scratch: somebody else takes the directory away
    #[arg(long, requires = "scratch")]
    pub leave_scratch: bool,

    /// How steps are kept apart from this machine and where their files are: with the rights of root, in a user namespace with the ids of this one, or as an ordinary user with
    /// subordinate ids, each on overlays or without (flat, or -flat behind a name), or with no rights at all where nothing is to RUN (copy); auto takes the best that this machine allows, see `strata-builder doctor`
    #[arg(
        long,
        value_name = "auto|root|userns|rootless|flat|root-flat|userns-flat|rootless-flat|copy",
        default_value = "auto",
        env = "STRATA_TIER"
    )]
    pub tier: String,

    /// Layers of the image: one per stage, or one per instruction that changes files
    #[arg(long, value_enum, default_value = "stage")]
    pub layers: Layers,

    /// Compression of new layers; the base's layers stay as they are. Not every node and registry reads zstd
    #[arg(long, value_name = "gzip[:LEVEL]|zstd[:LEVEL]", default_value = "gzip")]
    pub compression: Compression,

    /// Time of the image in seconds since 1970; newer files get it, too. With it the same inputs give the same digest
    #[arg(long, value_name = "SECONDS", env = "SOURCE_DATE_EPOCH")]
    pub source_date_epoch: Option<u64>,

    /// Kill a step that takes longer than this, such as 90s, 30m or 2h, and all that it started
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub step_timeout: Option<Duration>,

    /// The build that this is an attempt of: an image of the same build that is already there is reported instead of built again
    #[arg(long, value_name = "UID")]
    pub build_uid: Option<String>,

    /// Write the outcome as JSON of at most 4096 bytes to this file
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,

    /// Write the digest of the pushed manifest to this file
    #[arg(long, value_name = "FILE")]
    pub digestfile: Option<PathBuf>,

    /// What standard error shows: lines of text, or a JSON object per event; auto is the live view of tty on a terminal, and plain elsewhere
    #[arg(long, value_enum, default_value = "auto")]
    pub progress: ProgressChoice,
}

/// `--layers`.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Layers {
    /// One layer per stage.
    Stage,
    /// One layer per instruction that changes files.
    Step,
}

/// `--progress`.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum ProgressChoice {
    /// A live view if standard error is a terminal, else plain.
    Auto,
    /// A line per event, and below them what goes on at this moment.
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
        if let Some(layout) = layout(&value)? {
            let Location::Layout { directory, tag } = layout else {
                return Err(format!("{value:?} is no OCI image layout"));
            };
            let source = ContextSource::Layout(directory, tag);
            return Ok(Self { name, source });
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

/// `oci:DIR[:TAG]`, or BuildKit's word for the same, `oci-layout://DIR[:TAG]`; none if the text is neither.
fn layout(text: &str) -> Result<Option<Location>, String> {
    let rest = text
        .strip_prefix("oci-layout://")
        .or_else(|| text.strip_prefix("oci:"));
    match rest {
        Some(rest) => format!("oci:{rest}")
            .parse()
            .map(Some)
            .map_err(|error: InvalidReference| error.to_string()),
        None => Ok(None),
    }
}

/// `--push`.
#[derive(Clone, Debug)]
pub struct PushTarget(pub Location);

impl FromStr for PushTarget {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(layout) = layout(text)? {
            return Ok(Self(layout));
        }
        let reference: Reference = text
            .parse()
            .map_err(|error: InvalidReference| error.to_string())?;
        match reference.digest {
            None => Ok(Self(Location::Registry(reference))),
            Some(_) => {
                Err("an image is pushed to a tag; its digest is known only afterwards".to_owned())
            }
        }
    }
}

/// `--secret`: where its content comes from.
#[derive(Clone, Debug)]
pub struct SecretSource {
    /// As mounts name it.
    pub id: String,
    /// A file, or else a variable.
    pub file: Option<PathBuf>,
    /// A variable of the environment.
    pub variable: Option<String>,
}

impl FromStr for SecretSource {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (mut id, mut file, mut variable, mut kind) = (None, None, None, None);
        for option in text.split(',') {
            let (key, value) = option
                .split_once('=')
                .ok_or("expected id=ID,src=FILE or id=ID,env=NAME")?;
            match key {
                "id" => id = Some(value.to_owned()),
                "src" | "source" => file = Some(PathBuf::from(value)),
                "env" => variable = Some(value.to_owned()),
                "type" if ["file", "env"].contains(&value) => kind = Some(value),
                _ => {
                    return Err(format!(
                        "there is no option {option:?}: id, src and env are known"
                    ));
                }
            }
        }
        let id = id.filter(|id| !id.is_empty()).ok_or("id= is missing")?;
        // As Docker has it: with type=env, src names the variable.
        if kind == Some("env") && variable.is_none() {
            variable = file.take().map(|name| name.to_string_lossy().into_owned());
        }
        if file.is_some() && variable.is_some() {
            return Err("src and env exclude each other".to_owned());
        }
        Ok(Self { id, file, variable })
    }
}

/// `--volume`.
#[derive(Clone, Debug)]
pub struct Volume {
    /// On this machine.
    pub source: PathBuf,
    /// In the root of each step.
    pub target: PathBuf,
    /// What a step may do to it.
    pub access: Access,
    /// Whether it may be absent.
    pub is_optional: bool,
}

impl FromStr for Volume {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut fields = text.splitn(3, ':');
        let (Some(source), Some(target), options) = (fields.next(), fields.next(), fields.next())
        else {
            return Err("expected PATH:TARGET or PATH:TARGET:OPTIONS".to_owned());
        };
        if source.is_empty() || !target.starts_with('/') || target == "/" {
            return Err(format!(
                "{target:?} is no absolute path below the root of a step"
            ));
        }
        let mut volume = Self {
            source: source.into(),
            target: target.into(),
            access: Access::Discard,
            is_optional: false,
        };
        for option in options.unwrap_or("O").split(',') {
            match option {
                "ro" => volume.access = Access::ReadOnly,
                "rw" => volume.access = Access::ReadWrite,
                "O" => volume.access = Access::Discard,
                "optional" => volume.is_optional = true,
                _ => {
                    return Err(format!(
                        "there is no option {option:?}: ro, rw, O and optional are known"
                    ));
                }
            }
        }
        Ok(volume)
    }
}

/// A whole number with s, m or h.
fn parse_duration(text: &str) -> Result<Duration, String> {
    let invalid = || format!("{text:?} is no duration such as 90s, 30m or 2h");
    let (digits, factor) = match text.char_indices().next_back() {
        Some((at, 's')) => (&text[..at], 1),
        Some((at, 'm')) => (&text[..at], 60),
        Some((at, 'h')) => (&text[..at], 3600),
        _ => return Err(invalid()),
    };
    let number: u64 = digits.parse().map_err(|_| invalid())?;
    let seconds = number.checked_mul(factor).filter(|seconds| *seconds > 0);
    seconds.map(Duration::from_secs).ok_or_else(invalid)
}

fn parse_base_rootfs(text: &str) -> Result<BaseRootfs, String> {
    // A reference never starts with a slash or a dot, so a directory that holds an = is still one.
    match text.split_once('=') {
        Some((image, directory)) if !text.starts_with(['/', '.']) => {
            let image = image
                .parse()
                .map_err(|error: InvalidReference| error.to_string())?;
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
