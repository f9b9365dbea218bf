//! What does a stage do to its file system? Its instructions in order, on an overlay over what it starts from.
//!
//! The overlay is mounted when the first instruction needs files, so a stage of metadata costs nothing and may start from an image whose
//! files we don't have. Other stages see a finished one through an overlay of their own, never through its upper directory.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use super::bases::{Base, Name, Outside};
use super::{BuildError, BuildSpec};
use crate::containerfile::graph::{BuildGraph, PlannedStage, Source, StageBase};
use crate::containerfile::{
    Containerfile, Instruction, Located, Mount, MountKind, Run, Transfer, Word,
};
use crate::copy::{CopyError, CopyRequest, InvalidMode, Verdict, copy};
use crate::error::{Class, Classify};
use crate::ignore::{self, Ignore, IgnoreError};
use crate::image::{History, ImageConfig};
use crate::layer;
use crate::overlay::{Overlay, OverlayError};
use crate::progress::{Event, Progress, StepNumber, millis};
use crate::root::{Root, RootError};
use crate::sandbox::{Access, Entered, ExitStatus, MountSpec, RunError, RunSpec, StepMount, run};
use crate::state::{StageState, StateError};

/// Lines of a failed command that its report shows.
const LAST_LINES: usize = 20;

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
    /// `--exclude`, or the context's ignore file.
    #[error(transparent)]
    Ignore(#[from] IgnoreError),
    /// A folder in scratch.
    #[error("make the folder {}", path.display())]
    Scratch {
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
            Self::Exit { .. } | Self::Mode(_) => Class::CONTENT,
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
    /// The image whose files would have to be below them, but aren't here.
    missing: Option<String>,
}

impl Files {
    /// The directories, if they are complete.
    fn complete(&self) -> Result<&[PathBuf], BuildError> {
        match &self.missing {
            None => Ok(&self.directories),
            Some(name) => Err(BuildError::NotUnpacked { name: name.clone() }),
        }
    }
}

/// A stage that is done.
#[derive(Debug)]
pub struct Finished {
    state: StageState,
    files: Files,
    /// True if the first of them is its own and holds a change.
    pub changed: bool,
}

impl Finished {
    /// Its own changes; only if it is `changed`.
    #[must_use]
    pub fn upper(&self) -> PathBuf {
        self.files.directories.first().cloned().unwrap_or_default()
    }

    /// What its changes are changes to.
    #[must_use]
    pub fn below(&self) -> Vec<PathBuf> {
        self.files.directories.get(1..).unwrap_or_default().to_vec()
    }
}

/// All stages of a build, as far as they are done.
pub struct Stages<'a> {
    spec: &'a BuildSpec,
    file: &'a Containerfile,
    graph: &'a BuildGraph,
    outside: &'a Outside,
    entered: Entered,
    progress: &'a Arc<Progress>,
    /// RFC 3339; of the image and its history.
    pub created: String,
    finished: Vec<Finished>,
    /// Roots that files were taken from.
    views: BTreeMap<String, View>,
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
    planned: &'a PlannedStage,
    state: StageState,
    /// Below the overlay.
    below: Files,
    overlay: Option<Overlay>,
    scratch: PathBuf,
}

impl<'a> Stages<'a> {
    /// Nothing done yet.
    pub fn new(
        spec: &'a BuildSpec,
        file: &'a Containerfile,
        graph: &'a BuildGraph,
        outside: &'a Outside,
        entered: Entered,
        progress: &'a Arc<Progress>,
    ) -> Self {
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
            entered,
            progress,
            created: created.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            finished: Vec::new(),
            views: BTreeMap::new(),
        }
    }

    /// The configuration that a finished stage ended with.
    #[must_use]
    pub fn image_of(&self, index: usize) -> Option<ImageConfig> {
        self.finished
            .get(index)
            .map(|finished| finished.state.image.clone())
    }

    /// Builds the stage `index`; those before it are done.
    pub fn build(&mut self, index: usize) -> Result<&Finished, BuildError> {
        let planned = &self.graph.stages[index];
        let instructions = &self.file.stages[planned.index].instructions;
        let mut current = self.start(index, planned)?;
        for (step, located) in instructions.iter().enumerate() {
            let number = StepNumber {
                stage: index + 1,
                stages: self.graph.stages.len(),
                step: step + 1,
                steps: instructions.len(),
            };
            let text = &located.location.text;
            self.progress.tell(&Event::Step { number, text });
            let began = Instant::now();
            self.step(&mut current, located, &planned.sources[step], number)
                .map_err(|source| BuildError::Step {
                    file: self.file.file.clone(),
                    line: located.location.line,
                    text: text.clone(),
                    source: Box::new(source),
                })?;
            self.progress.tell(&Event::StepDone {
                number,
                millis: millis(began.elapsed()),
            });
        }
        let finished = finish(current)?;
        self.finished.push(finished);
        Ok(&self.finished[index])
    }

    fn start(&self, index: usize, planned: &'a PlannedStage) -> Result<Current<'a>, BuildError> {
        let scope = self.graph.scope.clone();
        let (state, below) = match &planned.base {
            StageBase::Scratch => (
                StageState::scratch(&self.spec.architecture, "linux", scope),
                Files::default(),
            ),
            StageBase::Stage(parent) => {
                let parent = &self.finished[*parent];
                (parent.state.derive(), parent.files.clone())
            }
            StageBase::Context(name) | StageBase::Image(name) => {
                let outside = Name::of_base(&planned.base).map(|name| self.outside.image(&name));
                let Some(base) = outside.transpose()? else {
                    return Err(BuildError::ContextIsNoImage { name: name.clone() });
                };
                let state = StageState::start(base.image.config.clone(), scope);
                if !state.base_triggers().is_empty() {
                    return Err(BuildError::Triggers { name: name.clone() });
                }
                (state, files_of(base, name))
            }
        };
        let scratch = self.spec.scratch.join(format!("stage-{index}"));
        Ok(Current {
            planned,
            state,
            below,
            overlay: None,
            scratch,
        })
    }

    fn step(
        &mut self,
        current: &mut Current<'_>,
        located: &Located<Instruction>,
        sources: &[Source],
        number: StepNumber,
    ) -> Result<(), StepError> {
        let created_by = current.state.apply(&located.value)?;
        match &located.value {
            Instruction::Run(run) => self.run(current, run, sources, number)?,
            Instruction::Copy(transfer) => self.copy(current, transfer, sources, false)?,
            Instruction::Add(transfer) => self.copy(current, transfer, sources, true)?,
            Instruction::Workdir(_) => {
                let workdir = PathBuf::from(current.state.workdir());
                self.root(current)?.create_directories(&workdir, (0, 0))?;
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
        current.state.image.history.push(History {
            created: Some(self.created.clone()),
            created_by: Some(created_by),
            // Until the stage is done: its layer counts for its last instruction.
            empty_layer: true,
            ..History::default()
        });
        Ok(())
    }

    /// The stage's own root, writable.
    fn root(&self, current: &mut Current<'_>) -> Result<Root, StepError> {
        if current.overlay.is_none() {
            let below = current.below.complete()?;
            make_folder(&current.scratch)?;
            let overlay = Overlay::mount(below, &current.scratch, self.entered.xattrs)?;
            current.overlay = Some(overlay);
        }
        let merged = current
            .overlay
            .as_ref()
            .map(Overlay::merged)
            .unwrap_or(&current.scratch);
        Ok(Root::open(merged)?)
    }

    fn run(
        &mut self,
        current: &mut Current<'_>,
        run_instruction: &Run,
        sources: &[Source],
        number: StepNumber,
    ) -> Result<(), StepError> {
        let Run {
            command,
            heredocs,
            mounts,
            network,
        } = run_instruction;
        let root = self.root(current)?;
        let workdir = current.state.workdir().to_owned();
        root.create_directories(Path::new(&workdir), (0, 0))?;
        let mut specs = Vec::new();
        for (mount, source) in mounts.iter().zip(sources) {
            specs.push(self.mount(current, mount, source)?);
        }
        let scratch = current.scratch.join("steps");
        make_folder(&scratch)?;
        let command = current.state.command_line(command, heredocs);
        let spec = RunSpec {
            root: root.path(),
            scratch: &scratch,
            argv: command.argv,
            env: current.state.run_environment(),
            workdir: &workdir,
            user: current.state.user(),
            mounts: specs,
            network: *network,
            stdin: None,
            files: command
                .files
                .into_iter()
                .map(|(path, content)| (path.into(), content))
                .collect(),
            timeout: None,
        };
        let mut last = VecDeque::with_capacity(LAST_LINES);
        let status = run(&spec, &mut |line| {
            self.progress.tell(&Event::Output { number, line });
            if last.len() == LAST_LINES {
                last.pop_front();
            }
            last.push_back(line.to_owned());
        })?;
        if status.is_success() {
            Ok(())
        } else {
            Err(StepError::Exit {
                status,
                output: last.into(),
            })
        }
    }

    fn mount(
        &mut self,
        current: &Current<'_>,
        mount: &Mount,
        source: &Source,
    ) -> Result<MountSpec, StepError> {
        let target = match &mount.target {
            Some(target) => current.state.expand(target)?,
            None => String::new(),
        };
        let kind = match &mount.kind {
            MountKind::Bind { source: path, .. } => {
                let path = match path {
                    Some(path) => current.state.expand(path)?,
                    None => "/".to_owned(),
                };
                let root = Root::open(self.view(source)?)?;
                let access = if mount.read_write == Some(true) {
                    Access::Discard
                } else {
                    Access::ReadOnly
                };
                StepMount::Bind {
                    source: root.resolve(Path::new(&path))?,
                    access,
                }
            }
            MountKind::Tmpfs { size_bytes } => StepMount::Tmpfs {
                size_bytes: *size_bytes,
            },
            MountKind::Cache { .. } | MountKind::Secret { .. } => {
                // Refused before the build began.
                return Err(BuildError::Unsupported {
                    file: self.file.file.clone(),
                    line: self.file.stages[current.planned.index].location.line,
                    column: 1,
                    what: "this RUN --mount".to_owned(),
                }
                .into());
            }
        };
        Ok(MountSpec {
            target: Path::new(current.state.workdir()).join(target),
            kind,
        })
    }

    fn copy(
        &mut self,
        current: &mut Current<'_>,
        transfer: &Transfer,
        sources: &[Source],
        unpack: bool,
    ) -> Result<(), StepError> {
        let into = self.root(current)?;
        let source = sources.first().unwrap_or(&Source::MainContext);
        let from = Root::open(self.view(source)?)?;
        let state = &current.state;
        let expand = |word: &Word| state.expand(word);
        let mut inline = Vec::new();
        for heredoc in &transfer.heredocs {
            inline.push((
                heredoc.name.clone(),
                state.inline_file(heredoc)?.into_bytes(),
            ));
        }
        // What comes from outside belongs to root; what comes from another root file system keeps its owners.
        let owner = match (&transfer.chown, source) {
            (Some(owner), _) => Some(into.owner(&expand(owner)?)?),
            (None, Source::MainContext) => Some((0, 0)),
            (None, Source::Context(_)) if self.is_directory(source) => Some((0, 0)),
            (None, Source::Empty | Source::Stage(_) | Source::Context(_) | Source::Image(_)) => {
                None
            }
        };
        let mode = match &transfer.chmod {
            Some(mode) => Some(expand(mode)?.parse()?),
            None => None,
        };
        let exclude = Ignore::parse(&state.expand_all(&transfer.exclude)?.join("\n"))?;
        let exclude = |path: &Path, is_directory: bool| verdict(&exclude, path, is_directory);
        let request = CopyRequest {
            sources: state.expand_all(&transfer.sources)?,
            inline,
            destination: expand(&transfer.destination)?,
            workdir: state.workdir().to_owned(),
            owner,
            mode,
            exclude: (!transfer.exclude.is_empty()).then_some(&exclude as _),
            unpack,
            time: self
                .spec
                .layers
                .source_date_epoch
                .and_then(|seconds| i64::try_from(seconds).ok()),
        };
        let ignored = match source {
            Source::MainContext => self.ignored()?,
            Source::Empty | Source::Stage(_) | Source::Context(_) | Source::Image(_) => None,
        };
        let ignored = ignored.map(|ignored| {
            move |path: &Path, is_directory: bool| verdict(&ignored, path, is_directory)
        });
        copy(
            &request,
            &from,
            ignored.as_ref().map(|rule| rule as _),
            &into,
        )?;
        Ok(())
    }

    fn is_directory(&self, source: &Source) -> bool {
        Name::of_source(source).is_some_and(|name| self.outside.directory(&name).is_some())
    }

    /// What the context hides.
    fn ignored(&self) -> Result<Option<Ignore>, StepError> {
        for path in ignore::candidates(&self.spec.containerfile, &self.spec.context) {
            match std::fs::read_to_string(&path) {
                Ok(text) => return Ok(Some(Ignore::parse(&text)?)),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(source) => return Err(BuildError::ReadFile { path, source }.into()),
            }
        }
        Ok(None)
    }

    /// Where files of `source` are.
    fn view(&mut self, source: &Source) -> Result<&Path, StepError> {
        let (key, files) = match source {
            Source::MainContext => return Ok(&self.spec.context),
            Source::Empty => ("empty".to_owned(), Files::default()),
            Source::Stage(index) => (
                format!("of-stage-{index}"),
                self.finished[*index].files.clone(),
            ),
            Source::Context(name) | Source::Image(name) => {
                let called = Name::of_source(source);
                let called =
                    called.ok_or_else(|| BuildError::ContextIsNoImage { name: name.clone() })?;
                if let Some(directory) = self.outside.directory(&called) {
                    return Ok(directory);
                }
                (
                    format!("of-image-{}", self.views.len()),
                    files_of(self.outside.image(&called)?, name),
                )
            }
        };
        if !self.views.contains_key(&key) {
            let scratch = self.spec.scratch.join(format!("view-{key}"));
            make_folder(&scratch)?;
            let view = match files.complete()? {
                [only] => View::Directory(only.clone()),
                directories => {
                    View::Overlay(Overlay::mount(directories, &scratch, self.entered.xattrs)?)
                }
            };
            self.views.insert(key.clone(), view);
        }
        Ok(self
            .views
            .get(&key)
            .map(View::path)
            .unwrap_or(&self.spec.context))
    }
}

fn finish(current: Current<'_>) -> Result<Finished, BuildError> {
    let Current {
        planned: _,
        mut state,
        below: mut files,
        overlay,
        scratch: _,
    } = current;
    let mut changed = false;
    if let Some(overlay) = overlay {
        let upper = overlay.unmount()?;
        changed = layer::has_changes(&upper, &files.directories)?;
        if changed {
            files.directories.insert(0, upper);
            if let Some(last) = state.image.history.last_mut() {
                last.empty_layer = false;
            }
        }
    }
    Ok(Finished {
        state,
        files,
        changed,
    })
}

fn files_of(base: &Base, name: &str) -> Files {
    match &base.rootfs {
        Some(rootfs) => Files {
            directories: vec![rootfs.clone()],
            missing: None,
        },
        None => Files {
            directories: Vec::new(),
            missing: Some(name.to_owned()),
        },
    }
}

fn make_folder(path: &Path) -> Result<(), StepError> {
    std::fs::create_dir_all(path).map_err(|source| StepError::Scratch {
        path: path.to_owned(),
        source,
    })
}

fn verdict(ignore: &Ignore, path: &Path, is_directory: bool) -> Verdict {
    let path = path.to_string_lossy();
    if !ignore.is_excluded(&path) {
        Verdict::Included
    } else if is_directory && ignore.may_include_below(&path) {
        Verdict::Descend
    } else {
        Verdict::Excluded
    }
}
