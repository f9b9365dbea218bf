//! Which instructions does a stage inherit? The ONBUILD triggers of what it starts from, put before its own; pure.

use std::collections::BTreeSet;

use super::BuildError;
use super::bases::{Name, Outside};
use crate::containerfile::graph::{BuildGraph, PlannedStage, StageBase};
use crate::containerfile::{Containerfile, Instruction, Located, parse};
use crate::state::triggers;

/// Puts the triggers of each stage's base into the stage, once per stage (`done`). True if there were any: then stages and images may be needed that
/// were not before, so the file has to be planned again.
///
/// # Errors
/// User: a trigger that doesn't parse.
pub fn insert(
    file: &mut Containerfile,
    graph: &BuildGraph,
    outside: &Outside,
    done: &mut BTreeSet<usize>,
) -> Result<bool, BuildError> {
    let mut any = false;
    for planned in &graph.stages {
        if !done.insert(planned.index) {
            continue;
        }
        let (texts, of) = inherited(file, graph, outside, planned)?;
        let line = file.stages[planned.index].location.line;
        let mut inserted = Vec::new();
        for text in &texts {
            inserted.extend(instructions(text, &of, file.escape, line)?);
        }
        any |= !inserted.is_empty();
        file.stages[planned.index]
            .instructions
            .splice(0..0, inserted);
    }
    Ok(any)
}

/// The triggers' texts, and whose they are.
fn inherited(
    file: &Containerfile,
    graph: &BuildGraph,
    outside: &Outside,
    planned: &PlannedStage,
) -> Result<(Vec<String>, String), BuildError> {
    match &planned.base {
        StageBase::Scratch => Ok((Vec::new(), String::new())),
        StageBase::Stage(parent) => {
            let parent = &graph.stages[*parent];
            let instructions = &file.stages[parent.index].instructions;
            let texts = instructions
                .iter()
                .filter_map(|located| match &located.value {
                    Instruction::Onbuild(text) => Some(text.clone()),
                    _ => None,
                });
            Ok((texts.collect(), format!("stage {}", parent.name)))
        }
        StageBase::Context(name) | StageBase::Image(name) => {
            let Some(called) = Name::of_base(planned) else {
                return Ok((Vec::new(), String::new()));
            };
            let config = &outside.image(&called)?.image.config;
            Ok((triggers(config), name.clone()))
        }
    }
}

fn instructions(
    text: &str,
    of: &str,
    escape: char,
    line: usize,
) -> Result<Vec<Located<Instruction>>, BuildError> {
    // A trigger is one instruction of a file that has nothing else; the first two lines are ours.
    let text = format!("# escape={escape}\nFROM scratch\n{text}\n");
    let parsed = parse::parse(&text, &format!("ONBUILD triggers of {of}"))?;
    let instructions = parsed
        .stages
        .into_iter()
        .flat_map(|stage| stage.instructions);
    Ok(instructions
        .map(|mut located| {
            located.location.line = line;
            located.location.last_line = line;
            located
        })
        .collect())
}
