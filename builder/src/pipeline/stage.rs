//! What does a stage do to its file system? Its instructions in order, on an overlay over what it starts from.
//!
//! The overlay is mounted when the first instruction needs files, so a stage of metadata costs nothing and may start from an image whose
//! files we don't have. Other stages see a finished one through an overlay of their own, never through its upper directory.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use tokio::task::JoinHandle;

use super::bases::{Name, Outside, lowest_base};
use super::todo::{Position, Todo};
use super::{BuildError, BuildSpec, LayerPer};
use crate::containerfile::graph::{BuildGraph, PlannedStage, Source, StageBase};
use crate::containerfile::mounts::InvalidMount;
use crate::containerfile::{Containerfile, Instruction, Located};
use crate::copy::{CopyError, CopyRequest, InvalidMode, copy, verdict};
use crate::digest::{Digest, InvalidDigest};
use crate::error::{Class, Classify};
use crate::fetch::FetchError;
use crate::ignore::{self, Ignore, IgnoreError};
use crate::image::{History, ImageConfig};
use crate::layer;
use crate::overlay::{Overlay, OverlayError};
use crate::progress::{Event, Progress, StepNumber, millis};
use crate::pull::{PullError, settle_layers};
use crate::root::{Root, RootError};
use crate::sandbox::{Entered, ExitStatus, RunError};
use crate::state::{StageState, StateError};
use crate::unpack::UnpackedLayer;

mod cache;
mod run;
mod transfer;

/// An instruction that failed.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// A command that ended badly.
    #[error("{}", exit_text(*.status))]
    Exit {
        /// How.
        status: ExitStatus,
        /// Its last lines, oldest first.
        output: Vec<String>,
    },
    /// A command that could not run.
    #[error(transparent)]
    Run(#[from] RunError),
    /// COPY or ADD.
    #[error(transparent)]
    Copy(#[from] CopyError),
    /// Words and metadata.
    #[error(transparent)]
    State(#[from] StateError),
    /// A path or name in a root file system.
    #[error(transparent)]
    Root(#[from] RootError),
    /// `--chmod`
    #[error(transparent)]
    Mode(#[from] InvalidMode),
    /// `--mount`
    #[error(transparent)]
    Mount(#[from] InvalidMount),
    /// `--exclude`, or the context's ignore file.
    #[error(transparent)]
    Ignore(#[from] IgnoreError),
    /// A secret that the Containerfile requires.
    #[error("the secret {id:?} is required; give it with --secret id={id},src=FILE")]
    NoSecret {
        /// Its id.
        id: String,
    },
    /// A secret that is to be a variable.
    #[error("the secret {id:?} is no text, so that it can't be the variable {variable}")]
    SecretIsNoText {
        /// Its id.
        id: String,
        /// Its name.
        variable: String,
    },
    /// `--checksum`
    #[error("--checksum")]
    Checksum(#[from] InvalidDigest),
    /// ADD of a remote file.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// A folder in scratch.
    #[error("{operation} {}", path.display())]
    Scratch {
        /// What was tried.
        operation: &'static str,
        /// Which.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// What the files come from, or the stage's own file system.
    #[error(transparent)]
    Files(Box<BuildError>),
}

impl Classify for StepError {
    fn class(&self) -> Class {
        match self {
            Self::Exit { .. }
            | Self::Mode(_)
            | Self::Mount(_)
            | Self::Checksum(_)
            | Self::NoSecret { .. }
            | Self::SecretIsNoText { .. } => Class::CONTENT,
            Self::Fetch(error) => error.class(),
            Self::Ignore(error) => error.class(),
            Self::Run(error) => error.class(),
            Self::Copy(error) => error.class(),
            Self::State(error) => error.class(),
            Self::Root(error) => error.class(),
            Self::Scratch { .. } => Class::Transient,
            Self::Files(error) => error.class(),
        }
    }
}

impl From<BuildError> for StepError {
    fn from(error: BuildError) -> Self {
        Self::Files(Box::new(error))
    }
}

impl From<OverlayError> for StepError {
    fn from(error: OverlayError) -> Self {
        BuildError::from(error).into()
    }
}

fn exit_text(status: ExitStatus) -> String {
    match status {
        ExitStatus::Exited(code) => format!("the command ended with status {code}"),
        ExitStatus::Signaled(signal) => format!("the command was killed by signal {signal}"),
        ExitStatus::TimedOut => "the command took too long and was killed".to_owned(),
    }
}

/// The files that a stage starts from or ends with.
#[derive(Clone, Debug, Default)]
struct Files {
    /// Top first.
    directories: Vec<PathBuf>,
    /// The image whose files are below them.
    image: Option<Name>,
}

/// Files that a stage has changed, ready to become a layer.
#[derive(Clone, Debug)]
pub struct Change {
    /// What made them.
    pub after: Position,
    /// The changes.
    pub upper: PathBuf,
    /// What they are changes to, top first.
    pub below: Vec<PathBuf>,
}

/// The files of an image on their way.
pub enum Pulling {
    /// Still coming.
    Running(JoinHandle<Result<Vec<PathBuf>, PullError>>),
    /// Here, top first.
    Done(Vec<PathBuf>),
}

/// Layers of an earlier attempt, whose instructions are not run again.
#[derive(Default)]
pub struct Earlier {
    /// Where their files are, or will be, by what made them.
    pub directories: BTreeMap<Position, PathBuf>,
    /// On their way, if any instruction needs them.
    pub pulling: Option<EarlierPull>,
}

/// Layers on their way, of the image with this digest.
pub type EarlierPull = (Digest, JoinHandle<Result<Vec<UnpackedLayer>, PullError>>);

/// All that is known before the first instruction runs.
#[derive(Clone, Copy)]
pub struct Plan<'a> {
    /// What is asked for.
    pub spec: &'a BuildSpec,
    /// With the triggers of its bases.
    pub file: &'a Containerfile,
    /// Of the file.
    pub graph: &'a BuildGraph,
    /// Whatever the graph names.
    pub outside: &'a Outside,
    /// What of the graph is left.
    pub todo: &'a Todo,
}

/// A stage that is done.
#[derive(Debug)]
struct Finished {
    state: StageState,
    files: Files,
}

/// All stages of a build, as far as they are done.
pub struct Stages<'a> {
    spec: &'a BuildSpec,
    file: &'a Containerfile,
    graph: &'a BuildGraph,
    outside: &'a Outside,
    todo: &'a Todo,
    earlier: Earlier,
    pulls: BTreeMap<Name, Pulling>,
    entered: Entered,
    progress: &'a Arc<Progress>,
    /// RFC 3339; of the image and its history.
    pub created: String,
    finished: BTreeMap<usize, Finished>,
    /// What the context hides, once it is known.
    ignored: Option<Option<Arc<Ignore>>>,
    /// Roots that files were taken from.
    views: BTreeMap<String, View>,
}

impl Files {
    /// Puts a layer on top, made by the last instruction of `state`.
    fn put(&mut self, directory: PathBuf, state: &mut StageState) {
        self.directories.insert(0, directory);
        if let Some(last) = state.image.history.last_mut() {
            last.empty_layer = false;
        }
    }
}

/// A root file system to take files from.
enum View {
    Directory(PathBuf),
    Overlay(Overlay),
}

impl View {
    fn path(&self) -> &Path {
        match self {
            Self::Directory(path) => path,
            Self::Overlay(overlay) => overlay.merged(),
        }
    }
}

/// The stage that is being built.
struct Current<'a> {
    state: StageState,
    /// Below the overlay.
    below: Files,
    overlay: Option<Overlay>,
    /// Of all its overlays.
    scratch: PathBuf,
    overlays: usize,
    /// Instructions that are done, the present one included.
    after: Position,
    number: StepNumber,
    on_change: &'a mut dyn FnMut(Change),
}

impl<'a> Stages<'a> {
    /// Nothing done yet.
    pub fn new(
        plan: Plan<'a>,
        earlier: Earlier,
        pulls: BTreeMap<Name, Pulling>,
        entered: Entered,
        progress: &'a Arc<Progress>,
    ) -> Self {
        let Plan {
            spec,
            file,
            graph,
            outside,
            todo,
        } = plan;
        let created = match spec.layers.source_date_epoch {
            Some(seconds) => {
                jiff::Timestamp::from_second(i64::try_from(seconds).unwrap_or(i64::MAX))
                    .unwrap_or(jiff::Timestamp::MAX)
            }
            None => jiff::Timestamp::now(),
        };
        Self {
            spec,
            file,
            graph,
            outside,
            todo,
            earlier,
            pulls,
            entered,
            progress,
            created: created.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            finished: BTreeMap::new(),
            views: BTreeMap::new(),
            ignored: None,
        }
    }

    /// The configuration that a finished stage ended with.
    #[must_use]
    pub fn image_of(&self, index: usize) -> Option<ImageConfig> {
        self.finished
            .get(&index)
            .map(|finished| finished.state.image.clone())
    }

    /// Builds the stage `index`, if anything needs it; those before it are done. Each change of files is told as soon as nothing writes to it any more.
    pub fn build(
        &mut self,
        index: usize,
        on_change: &mut dyn FnMut(Change),
    ) -> Result<(), BuildError> {
        let Some(first) = self.todo.first(index) else {
            return Ok(());
        };
        let planned = &self.graph.stages[index];
        let instructions = &self.file.stages[planned.index].instructions;
        let mut current = self.start(index, planned, on_change)?;
        for (step, located) in instructions.iter().enumerate() {
            current.number = StepNumber {
                stage: index + 1,
                stages: self.graph.stages.len(),
                step: step + 1,
                steps: instructions.len(),
            };
            let number = current.number;
            current.after = Position {
                stage: index,
                step: step + 1,
            };
            let text = &located.location.text;
            let failed = |source| match source {
                // Not the instruction's doing.
                StepError::Files(error) if error.is_of_an_image() => *error,
                source => BuildError::Step {
                    file: self.file.file.clone(),
                    line: located.location.line,
                    text: text.clone(),
                    source: Box::new(source),
                },
            };
            if step < first {
                self.replay(&mut current, located).map_err(failed)?;
                continue;
            }
            self.progress.tell(&Event::Step { number, text });
            let began = Instant::now();
            self.step(&mut current, located, &planned.sources[step])
                .map_err(failed)?;
            self.progress.tell(&Event::StepDone {
                number,
                millis: millis(began.elapsed()),
            });
        }
        self.seal(&mut current)?;
        let Current { state, below, .. } = current;
        let files = below;
        self.finished.insert(index, Finished { state, files });
        Ok(())
    }

    fn start<'b>(
        &self,
        index: usize,
        planned: &PlannedStage,
        on_change: &'b mut dyn FnMut(Change),
    ) -> Result<Current<'b>, BuildError> {
        let scope = self.graph.scope.clone();
        let (state, below) = match &planned.base {
            StageBase::Scratch => {
                let platform = planned.platform.as_ref();
                let architecture = platform.map_or(&self.spec.architecture, |p| &p.architecture);
                (
                    StageState::scratch(architecture, "linux", scope),
                    Files::default(),
                )
            }
            StageBase::Stage(parent) => {
                let parent = &self.finished[parent];
                (parent.state.derive(), parent.files.clone())
            }
            StageBase::Context(name) | StageBase::Image(name) => {
                let Some(called) = Name::of_base(planned) else {
                    return Err(BuildError::ContextIsNoImage { name: name.clone() });
                };
                let base = self.outside.image(&called)?;
                let files = Files {
                    directories: Vec::new(),
                    image: Some(called),
                };
                (StageState::start(base.image.config.clone(), scope), files)
            }
        };
        Ok(Current {
            state,
            below,
            overlay: None,
            scratch: self.spec.scratch.join(format!("stage-{index}")),
            overlays: 0,
            after: Position {
                stage: index,
                step: 0,
            },
            number: StepNumber {
                stage: index + 1,
                stages: self.graph.stages.len(),
                step: 0,
                steps: 0,
            },
            on_change,
        })
    }

    fn step(
        &mut self,
        current: &mut Current<'_>,
        located: &Located<Instruction>,
        sources: &[Source],
    ) -> Result<(), StepError> {
        let created_by = current.state.apply(&located.value)?;
        match &located.value {
            Instruction::Run(run) => self.run(current, run, sources)?,
            Instruction::Copy(transfer) => self.transfer(current, transfer, sources, false)?,
            Instruction::Add(transfer) => self.transfer(current, transfer, sources, true)?,
            Instruction::Workdir(_) => {
                let workdir = PathBuf::from(current.state.workdir());
                let root = self.root(current)?;
                // A user that the image doesn't have is an error of the step that would run as it.
                let owner = match current.state.user() {
                    "" => (0, 0),
                    user => root.owner(user).unwrap_or((0, 0)),
                };
                root.create_directories(&workdir, owner)?;
            }
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
        self.tell_history(current, created_by);
        match self.spec.layer_per {
            LayerPer::Stage => Ok(()),
            LayerPer::Step => Ok(self.seal(current)?),
        }
    }

    /// An instruction whose changes are a layer already.
    fn replay(
        &mut self,
        current: &mut Current<'_>,
        located: &Located<Instruction>,
    ) -> Result<(), StepError> {
        let created_by = current.state.apply(&located.value)?;
        self.tell_history(current, created_by);
        if let Some(directory) = self.earlier.directories.get(&current.after) {
            current.below.put(directory.clone(), &mut current.state);
        }
        Ok(())
    }

    fn tell_history(&self, current: &mut Current<'_>, created_by: String) {
        current.state.image.history.push(History {
            created: Some(self.created.clone()),
            created_by: Some(created_by),
            // Until its changes are sealed: a stage's layer counts for its last instruction.
            empty_layer: true,
            ..History::default()
        });
    }

    /// Ends the overlay, if there is one; what it changed lies below from now on.
    fn seal(&mut self, current: &mut Current<'_>) -> Result<(), BuildError> {
        let Some(overlay) = current.overlay.take() else {
            return Ok(());
        };
        let below = self.directories(&current.below)?;
        let upper = overlay.unmount()?;
        if layer::has_changes(&upper, &below)? {
            current.below.put(upper.clone(), &mut current.state);
            (current.on_change)(Change {
                after: current.after,
                upper,
                below,
            });
        }
        Ok(())
    }

    /// The stage's own root, writable.
    fn root(&mut self, current: &mut Current<'_>) -> Result<Root, StepError> {
        let overlay = match current.overlay.take() {
            Some(overlay) => overlay,
            None => {
                let below = self.directories(&current.below)?;
                let scratch = current.scratch.join(current.overlays.to_string());
                current.overlays += 1;
                make_folder(&scratch)?;
                Overlay::mount(&below, &scratch, self.entered.xattrs)?
            }
        };
        let root = Root::open(overlay.merged());
        current.overlay = Some(overlay);
        Ok(root?)
    }

    /// All directories of `files`, top first; waits for those that are still coming.
    fn directories(&mut self, files: &Files) -> Result<Vec<PathBuf>, BuildError> {
        let mut directories = files.directories.clone();
        if let Some(name) = &files.image {
            directories.extend(self.unpacked(name)?);
        }
        if directories.iter().any(|path| self.is_earlier(path)) {
            self.settle_earlier()?;
        }
        Ok(directories)
    }

    fn is_earlier(&self, path: &Path) -> bool {
        let mut known = self.earlier.directories.values();
        known.any(|directory| directory == path)
    }

    /// Waits for the layers of the earlier attempt, and fits them to what is below them.
    fn settle_earlier(&mut self) -> Result<(), BuildError> {
        let Some((digest, pulling)) = self.earlier.pulling.take() else {
            return Ok(());
        };
        let base = match lowest_base(self.graph, self.graph.target) {
            Some(name) => self.unpacked(&name)?,
            None => Vec::new(),
        };
        let layers = tokio::runtime::Handle::current().block_on(pulling)??;
        settle_layers(layers, base).map_err(|source| PullError::Unpack { digest, source })?;
        Ok(())
    }

    fn unpacked(&mut self, name: &Name) -> Result<Vec<PathBuf>, BuildError> {
        if let Some(rootfs) = &self.outside.image(name)?.rootfs {
            return Ok(vec![rootfs.clone()]);
        }
        match self.pulls.remove(name) {
            Some(pulling) => {
                let directories = match pulling {
                    Pulling::Running(running) => {
                        tokio::runtime::Handle::current().block_on(running)??
                    }
                    Pulling::Done(directories) => directories,
                };
                self.pulls
                    .insert(name.clone(), Pulling::Done(directories.clone()));
                Ok(directories)
            }
            // Every image whose files are used is on the list of those to pull.
            None => Ok(Vec::new()),
        }
    }

    fn is_directory(&self, source: &Source) -> bool {
        Name::of_source(source).is_some_and(|name| self.outside.directory(&name).is_some())
    }

    /// What the context hides.
    fn ignored(&mut self) -> Result<Option<Arc<Ignore>>, StepError> {
        if let Some(known) = &self.ignored {
            return Ok(known.clone());
        }
        let mut found = None;
        for path in ignore::candidates(&self.spec.containerfile, &self.spec.context) {
            match std::fs::read_to_string(&path) {
                Ok(text) => {
                    found = Some(Arc::new(Ignore::parse(&text)?));
                    break;
                }
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(source) => return Err(BuildError::ReadFile { path, source }.into()),
            }
        }
        self.ignored = Some(found.clone());
        Ok(found)
    }

    /// Where files of `source` are, without those that an ignore file hides.
    fn visible(&mut self, source: &Source) -> Result<PathBuf, StepError> {
        if *source != Source::MainContext {
            return self.view(source);
        }
        let Some(ignored) = self.ignored()? else {
            return self.view(source);
        };
        let copied = self.spec.scratch.join("view-context");
        if !copied.exists() {
            make_folder(&copied)?;
            let everything = CopyRequest {
                sources: vec![".".to_owned()],
                destination: "/".to_owned(),
                ..CopyRequest::default()
            };
            let rule = |path: &Path, is_directory: bool| verdict(&ignored, path, is_directory);
            let (from, into) = (Root::open(&self.spec.context)?, Root::open(&copied)?);
            copy(&everything, &from, Some(&rule), &into)?;
        }
        Ok(copied)
    }

    /// Where files of `source` are.
    fn view(&mut self, source: &Source) -> Result<PathBuf, StepError> {
        let (key, files) = match source {
            Source::MainContext => return Ok(self.spec.context.clone()),
            Source::Empty => ("empty".to_owned(), Files::default()),
            Source::Stage(index) => (
                format!("of-stage-{index}"),
                self.finished[index].files.clone(),
            ),
            Source::Context(name) | Source::Image(name) => {
                let called = Name::of_source(source);
                let called =
                    called.ok_or_else(|| BuildError::ContextIsNoImage { name: name.clone() })?;
                if let Some(directory) = self.outside.directory(&called) {
                    return Ok(directory.to_owned());
                }
                let files = Files {
                    directories: Vec::new(),
                    image: Some(called),
                };
                (format!("of-image {name}"), files)
            }
        };
        if let Some(view) = self.views.get(&key) {
            return Ok(view.path().to_owned());
        }
        let directories = self.directories(&files)?;
        let view = match directories.as_slice() {
            [only] => View::Directory(only.clone()),
            directories => {
                let scratch = self.spec.scratch.join(format!("view-{}", self.views.len()));
                make_folder(&scratch)?;
                View::Overlay(Overlay::mount(directories, &scratch, self.entered.xattrs)?)
            }
        };
        let path = view.path().to_owned();
        self.views.insert(key, view);
        Ok(path)
    }
}

fn make_folder(path: &Path) -> Result<(), StepError> {
    std::fs::create_dir_all(path).map_err(scratch("make the folder", path))
}

fn scratch<'a>(
    operation: &'static str,
    path: &'a Path,
) -> impl FnOnce(std::io::Error) -> StepError + 'a {
    move |source| StepError::Scratch {
        operation,
        path: path.to_owned(),
        source,
    }
}
