//! From the file to the graph: names are resolved, variables expanded as far as the file alone says, dead stages left out.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use super::super::mounts::MountFlag;
use super::super::parse::{did_you_mean, nearest};
use super::super::words;
use super::super::{Containerfile, Instruction, Location, Place, Stage, Transfer, Word};
use super::prune::pruned;
use super::variables::Variables;
use super::{BuildGraph, PlanError, PlanOptions, PlannedStage, Platform, Source, StageBase};
use crate::state::{Scope, arg_value, is_proxy};

/// The base that has no files.
const SCRATCH: &str = "scratch";

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
    planner.warn_of_unused_arguments();
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

impl Planner<'_> {
    fn set_globals(&mut self, target: usize) -> Result<(), PlanError> {
        let mut globals = BTreeMap::new();
        self.options.build_platform.args("BUILD", &mut globals);
        self.options.platform.args("TARGET", &mut globals);
        let asked = self.options.target.clone().filter(|name| !name.is_empty());
        let last = || self.file.stages.get(target)?.name.clone();
        let stage = asked.or_else(last);
        let stage = stage.unwrap_or_else(|| "default".to_owned());
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

    /// A build argument that no ARG of the file takes: most often a slip of the pen.
    fn warn_of_unused_arguments(&mut self) {
        let stages = self
            .file
            .stages
            .iter()
            .flat_map(|stage| &stage.instructions);
        let in_stages = stages.filter_map(|line| match &line.value {
            Instruction::Arg(declarations) => Some(declarations),
            _ => None,
        });
        let globals = self.file.global_args.iter().map(|line| &line.value);
        let declared = globals.chain(in_stages).flatten();
        let declared: BTreeSet<&str> = declared.map(|arg| arg.name.as_str()).collect();
        let known: Vec<&str> = declared.iter().copied().collect();
        for name in self.options.build_args.keys() {
            let is_used = declared.contains(name.as_str())
                || self.scope.globals.contains_key(name)
                || is_proxy(name);
            if !is_used {
                let suggestion = did_you_mean(nearest(name, &known));
                let warning = format!("no ARG takes the build argument {name}{suggestion}");
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
        if value.is_empty() {
            return Err(PlanError::Blank {
                place: self.place(&stage.location),
                word: word.0.clone(),
            });
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
                self.variables[index].declare(declarations, &self.scope);
                Ok(Vec::new())
            }
            Instruction::Env(pairs) => {
                self.variables[index].set(pairs, self.scope.escape);
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

    /// The named context of this name, however much of an image's name is spelt out.
    fn context(&self, name: &str) -> Option<String> {
        if ["scratch", "context"].contains(&name.to_lowercase().as_str()) {
            return None;
        }
        let names = &self.options.context_names;
        let lower = name.to_lowercase();
        let wanted = [name, lower.as_str()].map(familiar);
        let mut known = names.iter();
        let called = || known.find(|known| wanted.contains(&familiar(known)));
        names.get(name).or_else(called).cloned()
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
        self.file.place(location)
    }
}

/// The name of an image without what goes without saying.
fn familiar(name: &str) -> &str {
    let hub = ["docker.io/", "index.docker.io/"];
    let name = hub
        .iter()
        .find_map(|prefix| name.strip_prefix(prefix))
        .unwrap_or(name);
    let name = name.strip_prefix("library/").unwrap_or(name);
    name.strip_suffix(":latest").unwrap_or(name)
}
