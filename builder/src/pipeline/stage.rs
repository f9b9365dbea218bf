//! What does a stage do to its file system? Its instructions in order, on a root that begins as what it starts from.
//!
//! Its root is made when the first instruction needs files, so a stage of metadata costs nothing and may start from an image whose files we
//! don't have.

use std::collections::BTreeMap;
use std::future::Future;
use std::path::PathBuf;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::task::JoinHandle;

use super::bases::{Name, Outside};
use super::todo::{Position, Todo};
use super::{BuildError, BuildSpec, LayerPer};
use crate::containerfile::graph::{BuildGraph, PlannedStage, Source, StageBase};
use crate::containerfile::{Containerfile, Instruction, Located};
use crate::digest::Digest;
use crate::ignore::Ignore;
use crate::image::{History, ImageConfig};
use crate::progress::{Event, Progress, StepNumber, millis};
use crate::pull::{PullError, ResolvedImage};
use crate::sandbox::Entered;
use crate::state::StageState;
use crate::stop::Stop;
use crate::unpack::UnpackedLayer;

mod cache;
mod context;
mod error;
mod files;
mod run;
mod transfer;

pub use error::StepError;
use error::make_folder;
pub use files::{Change, Pulling, Unpacked};
use files::{Files, OpenRoot, View};
pub(super) use transfer::is_url;
/// Layers of an earlier attempt, whose instructions are not run again.
#[derive(Default)]
pub struct Earlier {
    /// Where their files are, or will be, by what made them.
    pub directories: BTreeMap<Position, PathBuf>,
    /// On their way, if any instruction needs them; where there are overlays.
    pub pulling: Mutex<EarlierPull>,
    /// What they are pulled as; where there are none.
    pub image: Option<ResolvedImage>,
}

/// Layers of an earlier attempt on their way.
#[derive(Default)]
pub enum EarlierPull {
    /// Of the image with this digest.
    Running(Digest, JoinHandle<Result<Vec<UnpackedLayer>, PullError>>),
    /// They won't come; another stage has told why.
    Failed,
    /// Nothing is awaited any more.
    #[default]
    Over,
}

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
    /// None once the last stage that starts from it has taken it over.
    state: Option<StageState>,
    /// Stages that are still to start from it, and the image itself.
    uses: usize,
    files: Files,
}

/// Told of changes as soon as nothing writes to them any more.
pub type OnChange<'a> = dyn Fn(Change) + Sync + 'a;

/// All stages of a build, as far as they are done. Several may be built at once, on threads of their own.
pub struct Stages<'a> {
    spec: &'a BuildSpec,
    file: &'a Containerfile,
    graph: &'a BuildGraph,
    outside: &'a Outside,
    todo: &'a Todo,
    earlier: Earlier,
    /// Of every image.
    pulls: BTreeMap<Name, Mutex<Pulling>>,
    entered: Entered,
    progress: &'a Arc<Progress>,
    /// Said when one of them has failed.
    stop: &'a Stop,
    /// RFC 3339; of the image and its history.
    pub created: String,
    finished: Mutex<BTreeMap<usize, Finished>>,
    /// What the context hides, once it is known.
    ignored: Mutex<Option<Option<Arc<Ignore>>>>,
    /// Whether there is a copy of the context without what it hides.
    context_is_copied: Mutex<bool>,
    /// Roots that files were taken from.
    views: Mutex<BTreeMap<String, View>>,
    /// In scratch so far, for views and the like.
    folders: AtomicUsize,
}

/// The stage that is being built.
struct Current<'a> {
    state: StageState,
    /// What its root began as.
    below: Files,
    open: Option<OpenRoot>,
    /// Of all its roots.
    scratch: PathBuf,
    roots: usize,
    /// Instructions that are done, the present one included.
    after: Position,
    number: StepNumber,
    on_change: &'a OnChange<'a>,
}

impl<'a> Stages<'a> {
    /// Nothing done yet.
    pub fn new(
        plan: Plan<'a>,
        earlier: Earlier,
        mut pulls: BTreeMap<Name, Pulling>,
        entered: Entered,
        progress: &'a Arc<Progress>,
        stop: &'a Stop,
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
        let pulls = outside.image_names().map(|name| {
            let pulling = pulls.remove(name).unwrap_or(Pulling::NotBegun);
            (name.clone(), Mutex::new(pulling))
        });
        Self {
            spec,
            file,
            graph,
            outside,
            todo,
            earlier,
            pulls: pulls.collect(),
            entered,
            progress,
            stop,
            created: created.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            finished: Mutex::default(),
            ignored: Mutex::default(),
            context_is_copied: Mutex::default(),
            views: Mutex::default(),
            folders: AtomicUsize::new(0),
        }
    }

    /// The configuration that a finished stage ended with.
    #[must_use]
    pub fn image_of(&self, index: usize) -> Option<ImageConfig> {
        let finished = lock(&self.finished);
        let state = finished.get(&index)?.state.as_ref();
        state.map(|state| state.image.clone())
    }

    /// How many stages that are to be built start from the stage, one more if it is the image.
    fn uses(&self, index: usize) -> usize {
        let stages = self.graph.stages.iter().enumerate();
        let derived = stages.filter(|(other, stage)| {
            stage.base == StageBase::Stage(index) && self.todo.first(*other).is_some()
        });
        derived.count() + usize::from(index == self.graph.target)
    }

    /// Waits for something outside of this thread, unless the build is stopped.
    fn wait<F: Future>(&self, future: F) -> Result<F::Output, BuildError> {
        let runtime = tokio::runtime::Handle::current();
        let output = runtime.block_on(self.stop.or(future));
        output.ok_or(BuildError::Stopped)
    }

    /// Builds the stage `index`, if anything needs it; those that it needs are done. Blocks; the calling thread knows the runtime.
    ///
    /// # Errors
    /// What went wrong; [`BuildError::Stopped`] if something did in another stage.
    pub fn build(&self, index: usize, on_change: &OnChange<'_>) -> Result<(), BuildError> {
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
                // With all files of the base it may succeed.
                source if self.outside.has_outline() && source.is_of_a_root() => {
                    BuildError::BeyondOutline
                }
                source => BuildError::Step {
                    place: self.file.place(&located.location),
                    text: located.location.shown(),
                    source: Box::new(source),
                },
            };
            if step < first {
                self.replay(&mut current, located).map_err(failed)?;
                continue;
            }
            if self.stop.is_said() {
                return Err(BuildError::Stopped);
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
        let finished = Finished {
            state: Some(state),
            uses: self.uses(index),
            files: below,
        };
        lock(&self.finished).insert(index, finished);
        Ok(())
    }

    fn start<'b>(
        &self,
        index: usize,
        planned: &PlannedStage,
        on_change: &'b OnChange<'b>,
    ) -> Result<Current<'b>, BuildError> {
        let scope = self.graph.scope.clone();
        let (state, below) = match &planned.base {
            StageBase::Scratch => {
                // Whatever --platform says: there is nothing of another kind in it.
                let architecture = &self.spec.architecture;
                (
                    StageState::scratch(architecture, "linux", scope),
                    Files::default(),
                )
            }
            StageBase::Stage(parent) => {
                let mut finished = lock(&self.finished);
                let taken = finished.get_mut(parent).and_then(|finished| {
                    finished.uses = finished.uses.saturating_sub(1);
                    let state = match finished.uses {
                        0 => finished.state.take(),
                        _ => finished.state.clone(),
                    };
                    Some((state?.derive(), finished.files.clone()))
                });
                taken.ok_or_else(|| BuildError::StageIsGone {
                    name: planned.name.clone(),
                })?
            }
            StageBase::Context(name) | StageBase::Image(name) => {
                let Some(called) = Name::of_base(planned) else {
                    return Err(BuildError::ContextIsNoImage { name: name.clone() });
                };
                let base = self.outside.image(&called)?;
                let state = StageState::start(base.image.config.clone(), scope);
                (state, Files::of_image(called))
            }
        };
        Ok(Current {
            state,
            below,
            open: None,
            scratch: self.spec.scratch.join(format!("stage-{index}")),
            roots: 0,
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
        &self,
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
        &self,
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
}

/// What a thread left that panicked is as good as anything: that build has failed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
