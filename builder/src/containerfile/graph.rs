//! Which stages does the target need, in which order, and where does each take its files from? Pure.
//!
//! A name is looked up as a named context (`--build-context`), then as an earlier stage, then it is
//! an image. Only stages that the target needs are in the [`BuildGraph`], in file order, which is a
//! build order since a stage can use earlier ones only.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};

use super::mounts::MountFlag;
use super::words::{self, WordError};
use super::{Containerfile, Instruction, Location, Stage, Transfer, Word};
use crate::error::{Class, Classify};
use crate::state::{Scope, arg_value};

#[cfg(test)]
mod tests;

/// The base that has no files.
const SCRATCH: &str = "scratch";

/// What the caller wants built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanOptions {
    /// Name or index of a stage; the last one if absent.
    pub target: Option<String>,
    /// `--build-arg`.
    pub build_args: BTreeMap<String, String>,
    /// What the image is for.
    pub platform: Platform,
    /// What we run on.
    pub build_platform: Platform,
    /// Named contexts.
    pub context_names: BTreeSet<String>,
}

/// `os/architecture[/variant]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Platform {
    /// GOOS.
    pub os: String,
    /// GOARCH.
    pub architecture: String,
    /// `v8`
    pub variant: Option<String>,
}

impl Platform {
    /// Linux on this program's own architecture.
    #[must_use]
    pub fn native() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            "powerpc64" => "ppc64le",
            other => other,
        };
        Self {
            os: "linux".to_owned(),
            architecture: architecture.to_owned(),
            variant: None,
        }
    }

    /// Reads `os/architecture[/variant]`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('/');
        let (os, architecture) = (parts.next()?, parts.next()?);
        let variant = parts.next();
        let whole = parts.next().is_none() && !os.is_empty() && !architecture.is_empty();
        whole.then(|| Self {
            os: os.to_ascii_lowercase(),
            architecture: architecture.to_ascii_lowercase(),
            variant: variant.map(str::to_ascii_lowercase),
        })
    }

    fn args(&self, prefix: &str, globals: &mut BTreeMap<String, String>) {
        let variant = self.variant.clone().unwrap_or_default();
        for (name, value) in [
            ("PLATFORM", self.to_string()),
            ("OS", self.os.clone()),
            ("OSVERSION", String::new()),
            ("ARCH", self.architecture.clone()),
            ("VARIANT", variant),
        ] {
            globals.insert(format!("{prefix}{name}"), value);
        }
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

/// What to build.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuildGraph {
    /// Those that the target needs, each after all that it uses itself.
    pub stages: Vec<PlannedStage>,
    /// Index in `stages`: always the last one.
    pub target: usize,
    /// The variables that every stage starts with.
    pub scope: Scope,
    /// What the author may want to know.
    pub warnings: Vec<String>,
}

/// A stage that will be built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedStage {
    /// Index in [`Containerfile::stages`].
    pub index: usize,
    /// `AS name`, or the index.
    pub name: String,
    /// What it starts from.
    pub base: StageBase,
    /// `--platform`, if it says one.
    pub platform: Option<Platform>,
    /// One entry for each instruction of the stage: for COPY and ADD one source, for RUN one for
    /// each of its mounts, else none.
    pub sources: Vec<Vec<Source>>,
}

/// What a stage starts from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StageBase {
    /// Nothing.
    Scratch,
    /// An earlier one; index in [`BuildGraph::stages`].
    Stage(usize),
    /// A named context.
    Context(String),
    /// An image reference, as written.
    Image(String),
}

/// Where files come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// Nothing: a tmpfs, a secret, an empty cache, `scratch`.
    Empty,
    /// The build context.
    MainContext,
    /// An earlier stage; index in [`BuildGraph::stages`].
    Stage(usize),
    /// A named context.
    Context(String),
    /// An image reference, as written.
    Image(String),
}

/// Why there is nothing to build.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// `--target` names none.
    #[error("there is no stage {name:?} to build; the file has {known}")]
    Target {
        /// As given.
        name: String,
        /// The stages' names.
        known: String,
    },
    /// A word of FROM, `--from` or a global ARG.
    #[error("{place}: can't expand {word:?}")]
    Expand {
        /// File and line.
        place: Place,
        /// As written.
        word: String,
        /// Why.
        source: WordError,
    },
    /// FROM or `--from` with variables that leave nothing.
    #[error("{place}: {word:?} expands to nothing; declare its ARG before the first FROM")]
    Blank {
        /// File and line.
        place: Place,
        /// As written.
        word: String,
    },
    /// `--from` with a variable that no ARG or ENV of the stage sets, or with bad quotes.
    #[error("{place}: can't expand {word:?} from the ARG and ENV lines above it")]
    UnknownVariable {
        /// File and line.
        place: Place,
        /// As written.
        word: String,
    },
    /// A stage that comes later, or itself.
    #[error("{place}: stage {name:?} must be defined before the stage that uses it")]
    Forward {
        /// File and line.
        place: Place,
        /// Its name or index.
        name: String,
    },
    /// An index that no stage has.
    #[error("{place}: there is no stage {index}")]
    Index {
        /// File and line.
        place: Place,
        /// As written.
        index: String,
    },
    /// `--platform` that is none.
    #[error("{place}: {value:?} is no platform: expected OS/ARCHITECTURE[/VARIANT]")]
    Platform {
        /// File and line.
        place: Place,
        /// After expansion.
        value: String,
    },
}

impl Classify for PlanError {
    fn class(&self) -> Class {
        match self {
            Self::Target { .. } => Class::CONTRACT,
            Self::Expand { .. }
            | Self::Blank { .. }
            | Self::UnknownVariable { .. }
            | Self::Forward { .. }
            | Self::Index { .. }
            | Self::Platform { .. } => Class::CONTENT,
        }
    }
}

/// Where in which file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Name of the file.
    pub file: String,
    /// From 1.
    pub line: usize,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}, line {}", self.file, self.line)
    }
}

/// Resolves all names and keeps what the target needs.
///
/// # Errors
/// [`PlanError`]: contract for a target that doesn't exist, else user.
pub fn plan(file: &Containerfile, options: &PlanOptions) -> Result<BuildGraph, PlanError> {
    let target = target_index(file, options.target.as_deref())?;
    let mut planner = Planner {
        file,
        options,
        scope: Scope {
            escape: file.escape,
            globals: BTreeMap::new(),
            build_args: options.build_args.clone(),
        },
        warnings: Vec::new(),
        variables: Vec::new(),
    };
    planner.set_globals(target)?;
    planner.warn_of_repeated_names();
    // all stages up to the target: a mistake in one that isn't needed is still a mistake
    let mut bases = Vec::new();
    for index in 0..=target {
        bases.push(planner.base_of(index)?);
    }
    let mut stages = Vec::new();
    for index in 0..=target {
        stages.push(planner.stage(index, &bases)?);
    }
    let (stages, target) = pruned(stages, target);
    Ok(BuildGraph {
        stages,
        target,
        scope: planner.scope,
        warnings: planner.warnings,
    })
}

fn target_index(file: &Containerfile, target: Option<&str>) -> Result<usize, PlanError> {
    let Some(target) = target.filter(|target| !target.is_empty()) else {
        return Ok(file.stages.len().saturating_sub(1));
    };
    let name = target.to_lowercase();
    let named = |stage: &Stage| stage.name.as_ref() == Some(&name);
    let index = || name.parse().ok().filter(|i| *i < file.stages.len());
    file.stages
        .iter()
        .rposition(named)
        .or_else(index)
        .ok_or_else(|| {
            let known: Vec<String> = (0..file.stages.len()).map(|i| shown(file, i)).collect();
            PlanError::Target {
                name: target.to_owned(),
                known: known.join(", "),
            }
        })
}

/// A stage's name, or its index.
fn shown(file: &Containerfile, index: usize) -> String {
    let name = file.stages.get(index).and_then(|stage| stage.name.clone());
    name.unwrap_or_else(|| index.to_string())
}

struct Planner<'a> {
    file: &'a Containerfile,
    options: &'a PlanOptions,
    scope: Scope,
    warnings: Vec<String>,
    /// What each stage's own ARG and ENV lines say at its end; the base image's ENV is not known here.
    variables: Vec<Variables>,
}

/// What a stage's own lines say about its variables; `None` if it takes the base image to know.
#[derive(Clone, Default)]
struct Variables {
    args: BTreeMap<String, Option<String>>,
    env: BTreeMap<String, Option<String>>,
}

impl Variables {
    fn get(&self, name: &str) -> Option<String> {
        let value = self.env.get(name).or_else(|| self.args.get(name));
        value.cloned().flatten()
    }

    /// The word's value, if all its variables have one.
    fn value(&self, word: &Word, escape: char) -> Option<String> {
        let unknown = Cell::new(false);
        let lookup = |name: &str| {
            let value = self.get(name);
            unknown.set(unknown.get() || value.is_none());
            value
        };
        let value = words::expand(word, escape, &lookup).ok()?;
        (!unknown.get()).then_some(value)
    }
}

impl Planner<'_> {
    fn set_globals(&mut self, target: usize) -> Result<(), PlanError> {
        let mut globals = BTreeMap::new();
        self.options.build_platform.args("BUILD", &mut globals);
        self.options.platform.args("TARGET", &mut globals);
        let named = self.options.target.is_some();
        let stage = if named {
            shown(self.file, target)
        } else {
            "default".to_owned()
        };
        globals.insert("TARGETSTAGE".to_owned(), stage);
        for (name, value) in &self.options.build_args {
            if let Some(predefined) = globals.get_mut(name) {
                predefined.clone_from(value);
            }
        }
        self.scope.globals = globals;
        for line in &self.file.global_args {
            for declaration in &line.value {
                let value = arg_value(declaration, &self.scope, |default| {
                    self.expand(&line.location, default)
                })?;
                if let Some(value) = value {
                    self.scope.globals.insert(declaration.name.clone(), value);
                }
            }
        }
        Ok(())
    }

    fn warn_of_repeated_names(&mut self) {
        for (index, stage) in self.file.stages.iter().enumerate() {
            if let Some(name) = &stage.name
                && self.earlier(index, name).is_some()
            {
                let place = self.place(&stage.location);
                let warning = format!("{place}: an earlier stage is called {name} too");
                self.warnings.push(warning);
            }
        }
    }

    fn base_of(&mut self, index: usize) -> Result<StageBase, PlanError> {
        let stage = &self.file.stages[index];
        let written = self.expand_from(&stage.location, &stage.base)?;
        if written.is_empty() {
            return Err(PlanError::Blank {
                place: self.place(&stage.location),
                word: stage.base.0.clone(),
            });
        }
        Ok(self.base(index, &written))
    }

    fn stage(&mut self, index: usize, bases: &[StageBase]) -> Result<PlannedStage, PlanError> {
        let stage = &self.file.stages[index];
        let base = bases[index].clone();
        let platform = self.platform(stage)?;
        let inherited = match base {
            // the last one that starts from it takes them over, so that a chain holds them once
            StageBase::Stage(parent) if !bases[index + 1..].contains(&base) => {
                std::mem::take(&mut self.variables[parent])
            }
            StageBase::Stage(parent) => self.variables[parent].clone(),
            StageBase::Scratch | StageBase::Context(_) | StageBase::Image(_) => {
                Variables::default()
            }
        };
        self.variables.push(inherited);
        let mut sources = Vec::with_capacity(stage.instructions.len());
        for line in &stage.instructions {
            sources.push(self.sources(index, &line.location, &line.value)?);
        }
        Ok(PlannedStage {
            index,
            name: shown(self.file, index),
            base,
            platform,
            sources,
        })
    }

    fn base(&self, index: usize, written: &str) -> StageBase {
        if let Some(context) = self.context(written) {
            StageBase::Context(context)
        } else if let Some(earlier) = self.earlier(index, written) {
            StageBase::Stage(earlier)
        } else if written == SCRATCH {
            StageBase::Scratch
        } else if let Some(number) = written.parse().ok().filter(|number| *number < index) {
            StageBase::Stage(number)
        } else {
            StageBase::Image(written.to_owned())
        }
    }

    fn platform(&mut self, stage: &Stage) -> Result<Option<Platform>, PlanError> {
        let Some(word) = &stage.platform else {
            return Ok(None);
        };
        let value = self.expand_from(&stage.location, word)?;
        // a variable that says nothing leaves the build's own platform
        if value.is_empty() {
            return Ok(None);
        }
        match Platform::parse(&value) {
            Some(platform) => Ok(Some(platform)),
            None => Err(PlanError::Platform {
                place: self.place(&stage.location),
                value,
            }),
        }
    }

    fn sources(
        &mut self,
        index: usize,
        location: &Location,
        instruction: &Instruction,
    ) -> Result<Vec<Source>, PlanError> {
        match instruction {
            Instruction::Copy(Transfer { from, .. }) | Instruction::Add(Transfer { from, .. }) => {
                Ok(vec![match from {
                    Some(from) => self.source(index, location, from)?,
                    None => Source::MainContext,
                }])
            }
            Instruction::Run(run) => run
                .mounts
                .iter()
                .map(|mount| self.mount_source(index, location, mount))
                .collect(),
            Instruction::Arg(declarations) => {
                let (scope, variables) = (&self.scope, &mut self.variables[index]);
                for declaration in declarations {
                    let value = match (
                        scope.build_args.get(&declaration.name),
                        &declaration.default,
                    ) {
                        (Some(value), _) => Some(value.clone()),
                        (None, Some(default)) => variables.value(default, scope.escape),
                        (None, None) => scope.globals.get(&declaration.name).cloned(),
                    };
                    if value.is_some() || declaration.default.is_some() {
                        variables.args.insert(declaration.name.clone(), value);
                    }
                }
                Ok(Vec::new())
            }
            Instruction::Env(pairs) => {
                let variables = &mut self.variables[index];
                let before = variables.clone();
                for (name, value) in pairs {
                    let value = before.value(value, self.scope.escape);
                    variables.env.insert(name.0.clone(), value);
                }
                Ok(Vec::new())
            }
            Instruction::Label(_)
            | Instruction::Workdir(_)
            | Instruction::User(_)
            | Instruction::Shell(_)
            | Instruction::Cmd(_)
            | Instruction::Entrypoint(_)
            | Instruction::Expose(_)
            | Instruction::StopSignal(_)
            | Instruction::Volume(_)
            | Instruction::Maintainer(_)
            | Instruction::Healthcheck(_)
            | Instruction::Onbuild(_) => Ok(Vec::new()),
        }
    }

    fn mount_source(
        &self,
        index: usize,
        location: &Location,
        mount: &MountFlag,
    ) -> Result<Source, PlanError> {
        match mount.from() {
            Some(from) => self.source(index, location, from),
            None if mount.is_bind() => Ok(Source::MainContext),
            None => Ok(Source::Empty),
        }
    }

    fn source(&self, index: usize, location: &Location, from: &Word) -> Result<Source, PlanError> {
        let place = || self.place(location);
        let Some(written) = self.variables[index].value(from, self.scope.escape) else {
            return Err(PlanError::UnknownVariable {
                place: place(),
                word: from.0.clone(),
            });
        };
        if written.is_empty() {
            return Err(PlanError::Blank {
                place: place(),
                word: from.0.clone(),
            });
        }
        if let Some(context) = self.context(&written) {
            return Ok(Source::Context(context));
        }
        if let Some(earlier) = self.earlier(index, &written) {
            return Ok(Source::Stage(earlier));
        }
        let lower = written.to_lowercase();
        if self.file.stages[index..]
            .iter()
            .any(|stage| stage.name.as_ref() == Some(&lower))
        {
            return Err(PlanError::Forward {
                place: place(),
                name: written,
            });
        }
        match written.parse::<usize>() {
            Ok(number) if number < index => Ok(Source::Stage(number)),
            Ok(number) if number < self.file.stages.len() => Err(PlanError::Forward {
                place: place(),
                name: written,
            }),
            Ok(_) => Err(PlanError::Index {
                place: place(),
                index: written,
            }),
            Err(_) if written == SCRATCH => Ok(Source::Empty),
            Err(_) => Ok(Source::Image(written)),
        }
    }

    /// The named context of this name.
    fn context(&self, name: &str) -> Option<String> {
        let names = &self.options.context_names;
        let latest = name.strip_suffix(":latest");
        let lower = name.to_lowercase();
        [Some(name), Some(lower.as_str()), latest]
            .into_iter()
            .flatten()
            .find(|name| names.contains(*name))
            .map(str::to_owned)
    }

    /// The last stage before `index` of this name.
    fn earlier(&self, index: usize, name: &str) -> Option<usize> {
        let name = name.to_lowercase();
        self.file.stages[..index]
            .iter()
            .rposition(|stage| stage.name.as_ref() == Some(&name))
    }

    /// A word of a FROM line; a variable that no global ARG declares gets a warning.
    fn expand_from(&mut self, location: &Location, word: &Word) -> Result<String, PlanError> {
        let undeclared = RefCell::new(BTreeSet::new());
        let declared = |name: &str| {
            let mut names = self.file.global_args.iter().flat_map(|line| &line.value);
            names.any(|declaration| declaration.name == name)
        };
        let lookup = |name: &str| {
            let value = self.scope.globals.get(name).cloned();
            if value.is_none() && !declared(name) {
                undeclared.borrow_mut().insert(name.to_owned());
            }
            value
        };
        let place = self.place(location);
        let value = words::expand(word, self.scope.escape, &lookup).map_err(|source| {
            PlanError::Expand {
                place: place.clone(),
                word: word.0.clone(),
                source,
            }
        })?;
        let names = undeclared.into_inner().into_iter();
        self.warnings.extend(
            names.map(|name| format!("{place}: no ARG before the first FROM declares {name}")),
        );
        Ok(value)
    }

    /// A word of a global ARG.
    fn expand(&self, location: &Location, word: &Word) -> Result<String, PlanError> {
        words::expand(word, self.scope.escape, &|name| {
            self.scope.globals.get(name).cloned()
        })
        .map_err(|source| PlanError::Expand {
            place: self.place(location),
            word: word.0.clone(),
            source,
        })
    }

    fn place(&self, location: &Location) -> Place {
        Place {
            file: self.file.file.clone(),
            line: location.line,
        }
    }
}

/// The stages that the target uses, directly or not, with their indices set right.
fn pruned(mut stages: Vec<PlannedStage>, target: usize) -> (Vec<PlannedStage>, usize) {
    let mut needed = BTreeSet::from([target]);
    // uses go backwards only, so one pass from the target down sees them all
    for index in (0..=target).rev() {
        if needed.contains(&index) {
            needed.extend(used_by(&stages[index]));
        }
    }
    let position: BTreeMap<usize, usize> = needed.iter().copied().zip(0..).collect();
    stages.retain(|stage| needed.contains(&stage.index));
    for stage in &mut stages {
        let sources = stage.sources.iter_mut().flatten();
        let used = sources.filter_map(|source| match source {
            Source::Stage(index) => Some(index),
            Source::Empty | Source::MainContext | Source::Context(_) | Source::Image(_) => None,
        });
        let base = match &mut stage.base {
            StageBase::Stage(index) => Some(index),
            StageBase::Scratch | StageBase::Context(_) | StageBase::Image(_) => None,
        };
        for index in used.chain(base) {
            if let Some(new) = position.get(index) {
                *index = *new;
            }
        }
    }
    let target = stages.len().saturating_sub(1);
    (stages, target)
}

fn used_by(stage: &PlannedStage) -> Vec<usize> {
    let mut used = Vec::new();
    if let StageBase::Stage(index) = stage.base {
        used.push(index);
    }
    for source in stage.sources.iter().flatten() {
        if let Source::Stage(index) = source {
            used.push(*index);
        }
    }
    used
}
