//! How does a Containerfile become an image in a registry? The build in order:
//!
//! ```text
//! parse ─► plan ─► resolve ─┬─► images whose files are needed: pulled and unpacked, several layers at once
//!                           ├─► stage by stage: steps on an overlay ─► upper ─┐
//!                           │                      (next step runs meanwhile) ├─► layer ─► upload ─┐
//!                           └─► layers of the base: there, mounted or copied ─────────────────────┼─► config ─► manifest ─► report
//! ```
//!
//! * Nothing runs before the whole file is parsed, planned and checked for what this builder doesn't do.
//! * A stage (or, with [`LayerPer::Step`], a step) makes at most one layer, and none if it changed no file.
//! * Steps run on the calling thread, one after the other; uploads go on beside them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use crate::containerfile::Containerfile;
use crate::containerfile::graph::{self, BuildGraph, PlanError, PlanOptions, Platform};
use crate::containerfile::parse::{self, ParseError};
use crate::contract::{
    BUILD_UID_ANNOTATION, BuildReport, FailedStep, Failure, Outcome, PhaseTime, REPORT_VERSION,
};
use crate::error::{Class, Classify, chain};
use crate::flat::{FlatError, FlatRoot, merge};
use crate::image::{Image, ImageError};
use crate::layer::{LayerError, LayerOptions};
use crate::overlay::OverlayError;
use crate::progress::{Event, Progress, StepNumber, millis};
use crate::pull::{PullError, ResolvedImage, layer_directory, unpack_image, unpack_layers};
use crate::reference::{InvalidReference, Reference};
use crate::registry::{Registry, RegistryError};
use crate::sandbox::{Entered, MountSpec, Storage};
use crate::store::StoreError;
use crate::tee::{Fed, tee};
use attempt::{Done, Left, Note, inputs};
use bases::{Name, Outside, lowest_base};
use layers::Layers;
use stage::{Change, Earlier, Pulling, Stages, StepError, Unpacked};
use target::Target;
use todo::{Position, Todo, ancestors};

mod attempt;
pub mod bases;
mod check;
mod layers;
pub mod report;
pub mod stage;
pub mod target;
pub mod todo;
mod triggers;

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
    /// The Containerfile asks for something that this builder doesn't do.
    #[error(
        "{file}, line {line}, column {column}: {what} is not supported\n  {source_line}\n  {caret:>column$}",
        caret = '^'
    )]
    Unsupported {
        /// The Containerfile.
        file: String,
        /// From 1.
        line: usize,
        /// From 1.
        column: usize,
        /// Instruction and flag.
        what: String,
        /// The instruction as written.
        source_line: String,
    },
    /// A RUN where none can run.
    #[error("{file}, line {line}: RUN can't be done: {why}\n  {text}")]
    NoSteps {
        /// The Containerfile.
        file: String,
        /// From 1.
        line: usize,
        /// As written.
        text: String,
        /// What is missing.
        why: String,
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
    /// Our own mistake.
    #[error("what the stage {name} starts from was given up too early")]
    StageIsGone {
        /// Its name.
        name: String,
    },
    /// An image that the build starts from.
    #[error(transparent)]
    Pull(#[from] PullError),
    /// A place for images.
    #[error(transparent)]
    Store(#[from] StoreError),
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
    /// The same, without overlays.
    #[error(transparent)]
    Flat(#[from] FlatError),
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
            | Self::ContextIsNoImage { .. } => Class::CONTENT,
            Self::NoSteps { .. } => Class::RIGHTS,
            Self::Pull(error) => error.class(),
            Self::Store(error) => error.class(),
            Self::Plan(error) => error.class(),
            Self::Reference(error) => error.class(),
            Self::Registry(error) => error.class(),
            Self::Image(error) => error.class(),
            Self::Step { source, .. } => source.class(),
            Self::Overlay(error) => error.class(),
            Self::Flat(error) => error.class(),
            Self::Layer(error) => error.class(),
            Self::Task(_) | Self::StageIsGone { .. } => Class::INTERNAL,
        }
    }
}

impl BuildError {
    /// True if an image that the build starts from, or its registry, is to blame.
    fn is_of_an_image(&self) -> bool {
        match self {
            Self::Pull(_) | Self::Store(_) | Self::Registry(_) | Self::Task(_) => true,
            Self::ReadFile { .. }
            | Self::Parse(_)
            | Self::Plan(_)
            | Self::Unsupported { .. }
            | Self::NoSteps { .. }
            | Self::Reference(_)
            | Self::ContextIsNoImage { .. }
            | Self::StageIsGone { .. }
            | Self::Image(_)
            | Self::Step { .. }
            | Self::Overlay(_)
            | Self::Flat(_)
            | Self::Layer(_) => false,
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
    let file = read_file(spec)?;
    let graph = plan(spec, &file)?;
    let note = Note::of(spec).map(Arc::new);
    let earlier = match &spec.build_uid {
        Some(uid) => spec.push.earlier_attempt(uid, &spec.architecture).await?,
        None => None,
    };
    let result = match earlier {
        Some(outcome) => {
            if let Outcome::Pushed { digest, .. } = outcome {
                progress.tell(&Event::AlreadyThere {
                    target: spec.push.name(),
                    digest,
                });
            }
            Ok(outcome)
        }
        None => {
            attempt(
                spec,
                entered,
                progress,
                phases,
                (file, graph),
                note.as_ref(),
            )
            .await
        }
    };
    if let Some(note) = note {
        match &result {
            Ok(Outcome::Pushed {
                already_there: false,
                ..
            }) => note.delete().await,
            Err(error) if error.class() == Class::Transient => {}
            Ok(_) | Err(_) => note.find_and_delete().await,
        }
    }
    result
}

async fn attempt(
    spec: &BuildSpec,
    entered: Entered,
    progress: &Arc<Progress>,
    phases: &mut Phases,
    (mut file, mut graph): (Containerfile, BuildGraph),
    note: Option<&Arc<Note>>,
) -> Result<Outcome, BuildError> {
    let mut outside = Outside::default();
    let mut triggered = BTreeSet::new();
    loop {
        outside.resolve(&graph, spec, progress).await?;
        if !triggers::insert(&mut file, &graph, &outside, &mut triggered)? {
            break;
        }
        graph = plan(spec, &file)?;
    }
    for warning in &graph.warnings {
        progress.tell(&Event::Warning { text: warning });
    }
    let inputs = tokio::task::block_in_place(|| match note {
        Some(_) => inputs(spec, &outside).map(Some),
        None => Ok(None),
    })?;
    let note = note.cloned().zip(inputs);
    let left = match &note {
        Some((note, inputs)) => note.find(*inputs).await?,
        None => None,
    };
    let done = left.as_ref().and_then(|left| left.layers.last());
    let todo = Todo::after(&graph, done.map(|done| done.after));
    let planned = stage::Plan {
        spec,
        file: &file,
        graph: &graph,
        outside: &outside,
        todo: &todo,
    };
    let (pulls, fed) = start_pulls(planned, entered, progress);
    let base = base_of_target(&graph, &outside)?;
    let base_layers = ensure_base(spec.push.clone(), base, fed, Arc::clone(progress));
    let base_layers = tokio::spawn(base_layers);
    let needs_files = |index| todo.needs_files(&file, &graph, index);
    let (done, earlier) = match left {
        Some(left) => {
            tell_where(&graph, &left, progress);
            go_on(
                spec,
                left,
                (0..graph.stages.len()).any(needs_files),
                entered,
            )
        }
        None => (Vec::new(), Earlier::default()),
    };
    let sent_before = done.len();

    phases.begin("steps");
    let mut stages = Stages::new(planned, earlier, pulls, entered, progress);
    let ancestors = ancestors(&graph, graph.target);
    let layers = Layers::after(done, note);
    for index in 0..graph.stages.len() {
        let in_image = ancestors.contains(&index);
        let name = &graph.stages[index].name;
        let mut on_change = |change: Change| {
            if in_image {
                layers.start(spec, name, change, progress);
            }
        };
        // Blocks this thread only; uploads go on in the runtime's own.
        let built = tokio::task::block_in_place(|| stages.build(index, &mut on_change));
        if let Err(error) = built {
            layers.abandon().await;
            return Err(error);
        }
    }
    phases.begin("layers");
    let mut image = base_image(&graph, &outside)?;
    image.config = stages.image_of(graph.target).unwrap_or_default();
    let mut sent_bytes = 0;
    for (index, layer) in layers.finish().await?.into_iter().enumerate() {
        if index >= sent_before {
            sent_bytes += layer.descriptor.size_bytes;
        }
        image.add_layer(layer.descriptor, layer.diff_id);
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
        target: spec.push.name(),
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

fn read_file(spec: &BuildSpec) -> Result<Containerfile, BuildError> {
    let text = read(&spec.containerfile)?;
    let name = spec.containerfile.file_name().map_or_else(
        || "Containerfile".into(),
        |name| name.to_string_lossy().into_owned(),
    );
    Ok(parse::parse(&text, &name)?)
}

fn plan(spec: &BuildSpec, file: &Containerfile) -> Result<BuildGraph, BuildError> {
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
    let graph = graph::plan(file, &options)?;
    check::supported(file, &graph)?;
    if let Some(why) = &spec.no_steps {
        check::without_steps(file, &graph, why)?;
    }
    Ok(graph)
}

/// Begins to fetch the images whose files are needed. With takers of the layers of the image that the target derives from, if it is one of these.
fn start_pulls(
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
            let directories = unpack_image(&image, &scratch, entered.xattrs, feeders).await?;
            progress.tell(&Event::Unpacked {
                digest: image.digest,
                layers: directories.len(),
                size_bytes: image.manifest.layers.iter().map(|l| l.size_bytes).sum(),
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
fn go_on(
    spec: &BuildSpec,
    left: Left,
    needs_files: bool,
    entered: Entered,
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
            let pull =
                async move { unpack_layers(&image, &scratch, entered.xattrs, Vec::new()).await };
            earlier.pulling = Some((digest, tokio::spawn(pull)));
        }
        Storage::Overlay => {}
        Storage::Flat => earlier.image = Some(image),
    }
    (layers, earlier)
}

fn tell_where(graph: &BuildGraph, left: &Left, progress: &Progress) {
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

fn read(path: &Path) -> Result<String, BuildError> {
    std::fs::read_to_string(path).map_err(|source| BuildError::ReadFile {
        path: path.to_owned(),
        source,
    })
}

/// The image below the target's lowest ancestor; none on scratch.
fn base_of_target(
    graph: &BuildGraph,
    outside: &Outside,
) -> Result<Option<bases::Base>, BuildError> {
    match lowest_base(graph, graph.target) {
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
    fed: Vec<Fed>,
    progress: Arc<Progress>,
) -> Result<u64, BuildError> {
    match base {
        Some(base) => {
            target
                .ensure_layers(&base.resolved.store, &base.image.layers, fed, &progress)
                .await
        }
        None => Ok(0),
    }
}

fn failure(error: &BuildError) -> Failure {
    let class = error.class();
    let refused_by = match error {
        BuildError::Registry(source)
        | BuildError::Store(StoreError::Registry(source))
        | BuildError::Pull(PullError::Store {
            source: StoreError::Registry(source),
            ..
        }) => source.refused_by().map(str::to_owned),
        _ => None,
    };
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
            refused_by,
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
        refused_by,
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
