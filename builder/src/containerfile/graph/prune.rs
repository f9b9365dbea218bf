//! Which stages does the target need?

use std::collections::{BTreeMap, BTreeSet};

use super::{PlannedStage, Source, StageBase};

/// The stages that the target uses, directly or not, with their indices set right.
pub(super) fn pruned(mut stages: Vec<PlannedStage>, target: usize) -> (Vec<PlannedStage>, usize) {
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

pub(super) fn used_by(stage: &PlannedStage) -> Vec<usize> {
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
