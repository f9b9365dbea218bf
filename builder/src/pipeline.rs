//! How does a Containerfile become an image in a registry? The build in order:
//!
//! ```text
//! parse ─► plan ─► resolve ─┬─► stage by stage: steps on an overlay ─► upper ─┐
//!                           │                     (next stage runs meanwhile) ├─► layer ─► upload ─┐
//!                           └─► layers of the base: there, mounted or copied ─────────────────────┼─► config ─► manifest ─► report
//! ```
//!
//! * Nothing runs before the whole file is parsed, planned and checked for what this version doesn't support.
//! * A stage makes at most one layer, and none if it changed no file.
//! * Steps run on the calling thread, one after the other; uploads go on beside them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use tokio::task::JoinHandle;

use crate::containerfile::Containerfile;
use crate::containerfile::graph::{self, BuildGraph, PlanError, PlanOptions, Platform, StageBase};
use crate::containerfile::parse::{self, ParseError};
use crate::contract::{
    BUILD_UID_ANNOTATION, BuildReport, FailedStep, Failure, Outcome, PhaseTime, REPORT_VERSION,
};
use crate::error::{Class, Classify, chain};
use crate::image::{Descriptor, Image, ImageError, LAYER_MEDIA_TYPE};
use crate::layer::{LayerDescriptor, LayerError, LayerOptions};
use crate::overlay::OverlayError;
use crate::progress::{Event, Progress, millis};
use crate::reference::{InvalidReference, Reference};
use crate::registry::{Registry, RegistryError};
use crate::sandbox::Entered;
use bases::{Name, Outside};
use stage::{Finished, Stages, StepError};
use target::Target;

pub mod bases;
mod check;
pub mod report;
pub mod stage;
pub mod target;

/// All that decides a build.
#[derive(Clone, Debug)]
pub struct BuildSpec {
    /// The Containerfile.
    pub containerfile: PathBuf,
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
    /// The build that this is an attempt of.
    pub build_uid: Option<String>,
    /// GOARCH of the image.
    pub architecture: String,
}

/// What a named context is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ContextSource {
    /// Files.
    Directory(PathBuf),
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

/// A build that made no image.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// A file that the caller names.
    #[error("read {}", path.display())]
    ReadFile {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The Containerfile doesn't parse.
    #[error(transparent)]
    Parse(#[from] ParseError),
    /// The Containerfile can't be planned.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The Containerfile asks for something that comes with a later version.
    #[error("{file}, line {line}, column {column}: {what} is not supported yet")]
    Unsupported {
        /// The Containerfile.
        file: String,
        /// From 1.
        line: usize,
        /// From 1.
        column: usize,
        /// Instruction and flag.
        what: String,
    },
    /// FROM or `--from` names neither stage nor image.
    #[error(transparent)]
    Reference(#[from] InvalidReference),
    /// FROM or `--from` names a context that has no image.
    #[error("the context {name:?} is no image; give one with --build-context {name}=REFERENCE")]
    ContextIsNoImage {
        /// Its name.
        name: String,
    },
    /// An image that has to be unpacked first.
    #[error(
        "the files of {name:?} are needed, but this version only builds on unpacked images; give its files with --base-rootfs {name}=DIRECTORY"
    )]
    NotUnpacked {
        /// As in the Containerfile.
        name: String,
    },
    /// The base image asks for steps of its own.
    #[error("the image {name:?} has ONBUILD triggers, which are not supported yet")]
    Triggers {
        /// As in the Containerfile.
        name: String,
    },
    /// A base image's manifest or configuration.
    #[error("the {document} of {image} is no OCI or Docker one")]
    Document {
        /// `manifest` or `configuration`.
        document: &'static str,
        /// Its reference.
        image: String,
        /// Why not.
        source: serde_json::Error,
    },
    /// A registry.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The image's documents.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// An instruction.
    #[error("{file}, line {line}: {text}")]
    Step {
        /// The Containerfile.
        file: String,
        /// From 1.
        line: usize,
        /// As written.
        text: String,
        /// What went wrong.
        source: Box<StepError>,
    },
    /// A stage's file system.
    #[error(transparent)]
    Overlay(#[from] OverlayError),
    /// A stage's layer.
    #[error(transparent)]
    Layer(#[from] LayerError),
    /// A thread or task of ours ended early.
    #[error("a part of the build ended early")]
    Task(#[from] tokio::task::JoinError),
}

impl Classify for BuildError {
    fn class(&self) -> Class {
        match self {
            Self::ReadFile { .. }
            | Self::Parse(_)
            | Self::Unsupported { .. }
            | Self::ContextIsNoImage { .. }
            | Self::NotUnpacked { .. }
            | Self::Triggers { .. }
            | Self::Document { .. } => Class::CONTENT,
            Self::Plan(error) => error.class(),
            Self::Reference(error) => error.class(),
            Self::Registry(error) => error.class(),
            Self::Image(error) => error.class(),
            Self::Step { source, .. } => source.class(),
            Self::Overlay(error) => error.class(),
            Self::Layer(error) => error.class(),
            Self::Task(_) => Class::INTERNAL,
        }
    }
}

/// Builds and pushes; every outcome is a report. The second part is the error behind a failed one.
pub async fn build(
    spec: &BuildSpec,
    entered: Entered,
    progress: &Arc<Progress>,
) -> (BuildReport, Option<BuildError>) {
    let mut phases = Phases::default();
    let result = run(spec, entered, progress, &mut phases).await;
    let (outcome, error) = match result {
        Ok(outcome) => (outcome, None),
        Err(error) => (Outcome::Failed(failure(&error)), Some(error)),
    };
    let report = BuildReport {
        version: REPORT_VERSION,
        outcome,
        tier: entered.tier.name().to_owned(),
        phases: phases.finish(),
        peak_rss_bytes: peak_rss_bytes(),
    };
    (report, error)
}

async fn run(
    spec: &BuildSpec,
    entered: Entered,
    progress: &Arc<Progress>,
    phases: &mut Phases,
) -> Result<Outcome, BuildError> {
    phases.begin("plan");
    let (file, graph) = plan(spec)?;
    for warning in &graph.warnings {
        progress.tell(&Event::Warning { text: warning });
    }
    if let Some(uid) = &spec.build_uid
        && let Some(outcome) = spec.push.earlier_attempt(uid, &spec.architecture).await?
    {
        if let Outcome::Pushed { digest, .. } = outcome {
            progress.tell(&Event::AlreadyThere {
                target: &spec.push.reference.to_string(),
                digest,
            });
        }
        return Ok(outcome);
    }
    let outside = Outside::resolve(&graph, spec, progress).await?;
    let base = base_of_target(&graph, &outside)?;
    let base_layers = tokio::spawn(ensure_base(spec.push.clone(), base, Arc::clone(progress)));

    phases.begin("steps");
    let mut stages = Stages::new(spec, &file, &graph, &outside, entered, progress);
    let ancestors = ancestors(&graph);
    let mut layers = Vec::new();
    for index in 0..graph.stages.len() {
        // Blocks this thread only; uploads go on in the runtime's own.
        let finished = tokio::task::block_in_place(|| stages.build(index))?;
        if ancestors.contains(&index) && finished.changed {
            layers.push(start_layer(
                spec,
                &graph.stages[index].name,
                finished,
                progress,
            ));
        }
    }
    phases.begin("layers");
    let mut image = base_image(&graph, &outside)?;
    image.config = stages.image_of(graph.target).unwrap_or_default();
    let mut sent_bytes = 0;
    for layer in layers {
        let layer = layer.await??;
        sent_bytes += layer.size_bytes;
        image.add_layer(
            Descriptor::new(LAYER_MEDIA_TYPE, layer.digest, layer.size_bytes),
            layer.diff_id,
        );
    }
    phases.begin("push");
    sent_bytes += base_layers.await??;
    if !spec.labels.is_empty() {
        image
            .config
            .config
            .labels
            .get_or_insert_default()
            .extend(spec.labels.clone());
    }
    if let Some(uid) = &spec.build_uid {
        image
            .annotations
            .insert(BUILD_UID_ANNOTATION.to_owned(), uid.clone());
    }
    let assembled = image.assemble(&stages.created)?;
    sent_bytes += assembled.config_descriptor.size_bytes;
    let size_bytes = assembled.size_bytes;
    let digest = spec.push.push_image(assembled).await?;
    progress.tell(&Event::Pushed {
        target: &spec.push.reference.to_string(),
        digest,
        millis: millis(progress.elapsed()),
    });
    let layers = image.layers.len();
    Ok(Outcome::Pushed {
        digest,
        size_bytes,
        layers,
        sent_bytes,
        already_there: false,
    })
}

fn plan(spec: &BuildSpec) -> Result<(Containerfile, BuildGraph), BuildError> {
    let text = read(&spec.containerfile)?;
    let name = spec.containerfile.file_name().map_or_else(
        || "Containerfile".into(),
        |name| name.to_string_lossy().into_owned(),
    );
    let file = parse::parse(&text, &name)?;
    let platform = Platform {
        architecture: spec.architecture.clone(),
        ..Platform::native()
    };
    let options = PlanOptions {
        target: spec.target.clone(),
        build_args: spec.build_args.clone(),
        platform,
        build_platform: Platform::native(),
        context_names: spec.contexts.keys().cloned().collect(),
    };
    let graph = graph::plan(&file, &options)?;
    check::supported(&file, &graph)?;
    Ok((file, graph))
}

fn read(path: &Path) -> Result<String, BuildError> {
    std::fs::read_to_string(path).map_err(|source| BuildError::ReadFile {
        path: path.to_owned(),
        source,
    })
}

/// The target and the stages it derives from, lowest first.
fn ancestors(graph: &BuildGraph) -> Vec<usize> {
    let mut chain = vec![graph.target];
    while let Some(StageBase::Stage(parent)) = chain.last().map(|index| &graph.stages[*index].base)
    {
        chain.push(*parent);
    }
    chain.reverse();
    chain
}

/// The image below the target's lowest ancestor; none on scratch.
fn base_of_target(
    graph: &BuildGraph,
    outside: &Outside,
) -> Result<Option<bases::Base>, BuildError> {
    let lowest = ancestors(graph)
        .first()
        .map(|index| &graph.stages[*index].base);
    match lowest.and_then(Name::of_base) {
        Some(name) => outside.image(&name).cloned().map(Some),
        None => Ok(None),
    }
}

fn base_image(graph: &BuildGraph, outside: &Outside) -> Result<Image, BuildError> {
    Ok(base_of_target(graph, outside)?
        .map(|base| base.image)
        .unwrap_or_default())
}

async fn ensure_base(
    target: Target,
    base: Option<bases::Base>,
    progress: Arc<Progress>,
) -> Result<u64, BuildError> {
    match base {
        Some(base) => {
            target
                .ensure_layers(&base.origin, &base.image.layers, &progress)
                .await
        }
        None => Ok(0),
    }
}

fn start_layer(
    spec: &BuildSpec,
    stage: &str,
    finished: &Finished,
    progress: &Arc<Progress>,
) -> JoinHandle<Result<LayerDescriptor, BuildError>> {
    let (target, options, progress) = (spec.push.clone(), spec.layers, Arc::clone(progress));
    let (stage, upper, lowers) = (stage.to_owned(), finished.upper(), finished.below());
    tokio::spawn(async move {
        let began = Instant::now();
        let layer = target.push_layer(upper, lowers, options).await?;
        progress.tell(&Event::Layer {
            stage: &stage,
            digest: layer.digest,
            size_bytes: layer.size_bytes,
            entries: layer.entries,
            millis: millis(began.elapsed()),
        });
        Ok(layer)
    })
}

fn failure(error: &BuildError) -> Failure {
    let class = error.class();
    let BuildError::Step {
        file,
        line,
        text,
        source,
    } = error
    else {
        return Failure {
            class,
            message: chain(error),
            step: None,
        };
    };
    let (exit_status, output) = match &**source {
        StepError::Exit { status, output } => (Some(status.code()), output.clone()),
        _ => (None, Vec::new()),
    };
    Failure {
        class,
        // the place is told by the step
        message: chain(&**source),
        step: Some(FailedStep {
            file: file.clone(),
            line: *line,
            text: text.clone(),
            exit_status,
            output,
        }),
    }
}

/// Largest resident set of this process so far.
fn peak_rss_bytes() -> u64 {
    // SAFETY: getrusage only writes to the struct it is given, for which all zeros is a valid value.
    let usage = unsafe {
        let mut usage = std::mem::zeroed::<libc::rusage>();
        libc::getrusage(libc::RUSAGE_SELF, &mut usage);
        usage
    };
    // Linux counts in KiB.
    u64::try_from(usage.ru_maxrss).unwrap_or(0) * 1024
}

#[derive(Default)]
struct Phases {
    done: Vec<PhaseTime>,
    current: Option<(&'static str, Instant)>,
}

impl Phases {
    fn begin(&mut self, name: &'static str) {
        self.end();
        self.current = Some((name, Instant::now()));
    }

    fn end(&mut self) {
        if let Some((name, began)) = self.current.take() {
            let millis = millis(began.elapsed());
            self.done.push(PhaseTime {
                name: name.to_owned(),
                millis,
            });
        }
    }

    fn finish(mut self) -> Vec<PhaseTime> {
        self.end();
        self.done
    }
}
