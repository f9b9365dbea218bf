//! Which instructions does this attempt run? All that the target needs, without those that an earlier attempt has finished; pure.

use std::collections::{BTreeMap, BTreeSet};

use crate::containerfile::graph::{BuildGraph, PlannedStage, Source, StageBase};
use crate::containerfile::{Containerfile, Instruction};

/// A place between two instructions of the stages that the target derives from: all before it is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// Index in [`BuildGraph::stages`].
    pub stage: usize,
    /// Instructions of that stage.
    pub step: usize,
}

/// By stage, the first instruction that runs; none for a stage that nothing needs any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Todo(Vec<Option<usize>>);

impl Todo {
    /// What is left after `done`.
    #[must_use]
    pub fn after(graph: &BuildGraph, done: Option<Position>) -> Self {
        let mut first = vec![None; graph.stages.len()];
        let mut needed = Vec::new();
        for stage in ancestors(graph, graph.target) {
            let steps = graph.stages[stage].sources.len();
            let finished = match done {
                Some(done) if stage < done.stage => steps,
                Some(done) if stage == done.stage => done.step.min(steps),
                Some(_) | None => 0,
            };
            first[stage] = Some(finished);
            needed.extend(graph.stages[stage].sources[finished..].iter().flatten());
        }
        while let Some(source) = needed.pop() {
            let Source::Stage(stage) = source else {
                continue;
            };
            for stage in ancestors(graph, *stage) {
                if first[stage].is_none() {
                    first[stage] = Some(0);
                    needed.extend(graph.stages[stage].sources.iter().flatten());
                }
            }
        }
        Self(first)
    }

    /// The first instruction of the stage that runs, all of them finished included; none if nothing needs the stage.
    #[must_use]
    pub fn first(&self, stage: usize) -> Option<usize> {
        self.0.get(stage).copied().flatten()
    }

    /// By stage that is built, the stages that must be done before: what it starts from, and what its instructions take files from.
    #[must_use]
    pub fn needs(&self, graph: &BuildGraph) -> BTreeMap<usize, BTreeSet<usize>> {
        let built = graph.stages.iter().enumerate();
        let built = built.filter_map(|(index, stage)| Some((index, stage, self.first(index)?)));
        let needs = |(index, stage, first): (usize, &PlannedStage, usize)| {
            let mut needs = BTreeSet::new();
            if let StageBase::Stage(parent) = stage.base {
                needs.insert(parent);
            }
            for source in stage.sources[first..].iter().flatten() {
                if let Source::Stage(other) = source {
                    needs.insert(*other);
                }
            }
            (index, needs)
        };
        built.map(needs).collect()
    }

    /// Where the instructions that run take files from.
    pub fn sources<'a>(&'a self, graph: &'a BuildGraph) -> impl Iterator<Item = &'a Source> {
        let stages = graph.stages.iter().zip(&self.0);
        stages
            .filter_map(|(stage, first)| Some(&stage.sources[(*first)?..]))
            .flat_map(|steps| steps.iter().flatten())
    }

    /// True if the root file system of the stage is changed or read.
    #[must_use]
    pub fn needs_files(&self, file: &Containerfile, graph: &BuildGraph, stage: usize) -> bool {
        let Some(first) = self.first(stage) else {
            return false;
        };
        let instructions = file.stages.get(graph.stages[stage].index);
        let changes = instructions
            .into_iter()
            .flat_map(|stage| stage.instructions.iter().skip(first))
            .any(|located| {
                matches!(
                    located.value,
                    Instruction::Run(_)
                        | Instruction::Copy(_)
                        | Instruction::Add(_)
                        | Instruction::Workdir(_)
                )
            });
        changes
            || self
                .sources(graph)
                .any(|source| *source == Source::Stage(stage))
    }
}

/// The stage and those it derives from, lowest first.
#[must_use]
pub fn ancestors(graph: &BuildGraph, stage: usize) -> Vec<usize> {
    let mut chain = vec![stage];
    while let Some(StageBase::Stage(parent)) = chain.last().map(|index| &graph.stages[*index].base)
    {
        chain.push(*parent);
    }
    chain.reverse();
    chain
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::containerfile::graph::{self, PlanOptions, Platform};
    use crate::containerfile::parse;

    #[test]
    fn what_is_finished_is_not_run_and_what_only_it_needed_is_not_built() {
        let text = "FROM a AS tool\nRUN one\nFROM b AS base\nCOPY --from=tool /x /x\nRUN two\nFROM base\nLABEL a=b\nRUN --mount=from=tool,target=/t three\nRUN four\n";
        let file = parse::parse(text, "Containerfile").unwrap();
        let options = PlanOptions {
            target: None,
            build_args: std::collections::BTreeMap::new(),
            platform: Platform::native(),
            build_platform: Platform::native(),
            context_names: std::collections::BTreeSet::new(),
        };
        let graph = graph::plan(&file, &options).unwrap();
        let at = |stage, step| Some(Position { stage, step });
        for (done, first, files, before) in [
            (
                None,
                [Some(0), Some(0), Some(0)],
                [true, true, true],
                vec![(0, vec![]), (1, vec![0]), (2, vec![0, 1])],
            ),
            (
                at(1, 1),
                [Some(0), Some(1), Some(0)],
                [true, true, true],
                vec![(0, vec![]), (1, vec![]), (2, vec![0, 1])],
            ),
            (
                at(1, 2),
                [Some(0), Some(2), Some(0)],
                [true, false, true],
                vec![(0, vec![]), (1, vec![]), (2, vec![0, 1])],
            ),
            (
                at(2, 1),
                [Some(0), Some(2), Some(1)],
                [true, false, true],
                vec![(0, vec![]), (1, vec![]), (2, vec![0, 1])],
            ),
            (
                at(2, 2),
                [None, Some(2), Some(2)],
                [false, false, true],
                vec![(1, vec![]), (2, vec![1])],
            ),
            (
                at(2, 3),
                [None, Some(2), Some(3)],
                [false, false, false],
                vec![(1, vec![]), (2, vec![1])],
            ),
        ] {
            let todo = Todo::after(&graph, done);
            assert_eq!(todo, Todo(first.to_vec()), "{done:?}");
            let needs = [0, 1, 2].map(|stage| todo.needs_files(&file, &graph, stage));
            assert_eq!(needs, files, "{done:?}");
            let order = todo.needs(&graph);
            let order = order
                .into_iter()
                .map(|(stage, needs)| (stage, Vec::from_iter(needs)));
            assert_eq!(Vec::from_iter(order), before, "{done:?}");
        }
    }
}
