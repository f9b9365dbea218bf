//! How is the end of a build told? Its failure by class and place, its phases by time, its memory.

use std::time::Instant;

use super::error::BuildError;
use super::stage::StepError;
use crate::containerfile::Place;
use crate::contract::{FailedStep, Failure, PhaseTime};
use crate::error::{Classify as _, chain};
use crate::progress::millis;
use crate::registry::RegistryError;

/// What the report says of an error.
pub(super) fn failure(error: &BuildError) -> Failure {
    let class = error.class();
    let refused_by = error.of_registry().and_then(RegistryError::refused_by);
    // the place is told by the step
    let (message, step) = match error {
        BuildError::Step {
            place,
            text,
            source,
        } => {
            let (exit_status, output) = match &**source {
                StepError::Exit { status, output } | StepError::Short { status, output, .. } => {
                    (Some(status.code()), output.clone())
                }
                _ => (None, Vec::new()),
            };
            let step = failed_step(place, text, exit_status, output);
            (chain(&**source), Some(step))
        }
        BuildError::Outside {
            place,
            text,
            source,
        } => {
            let step = failed_step(place, text, None, Vec::new());
            (chain(&**source), Some(step))
        }
        _ => (chain(error), None),
    };
    Failure {
        class,
        message,
        refused_by: refused_by.map(str::to_owned),
        step,
    }
}

fn failed_step(
    place: &Place,
    text: &str,
    exit_status: Option<i32>,
    output: Vec<String>,
) -> FailedStep {
    FailedStep {
        file: place.file.clone(),
        line: place.line,
        text: text.to_owned(),
        exit_status,
        output,
    }
}

/// Largest resident set of this process so far.
pub(super) fn peak_rss_bytes() -> u64 {
    // getrusage(2) also counts who started this program, from before it was this one
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kilobytes =
        peak.and_then(|peak| peak.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
    kilobytes.unwrap_or(0) * 1024
}

/// How long each part of the build took.
#[derive(Default)]
pub(super) struct Phases {
    done: Vec<PhaseTime>,
    current: Option<(&'static str, Instant)>,
}

impl Phases {
    /// Ends the present phase, and begins another.
    pub(super) fn begin(&mut self, name: &'static str) {
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

    /// All, in order.
    pub(super) fn finish(mut self) -> Vec<PhaseTime> {
        self.end();
        self.done
    }
}
