//! What does somebody at a terminal see? The lines of a log, and below them what goes on at this moment: steps with their time, transfers with bytes, rate and
//! time left.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use indicatif::style::TemplateError;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::{Event, StepNumber, prefix};

/// Often enough to look alive.
const TICK: Duration = Duration::from_millis(100);
const STEP: &str = "{spinner} {elapsed} {wide_msg}";
const KNOWN_SIZE: &str =
    "{spinner} {wide_msg} {bytes}/{total_bytes}, {bytes_per_sec}, {eta} left [{bar:20}]";
const UNKNOWN_SIZE: &str = "{spinner} {wide_msg} {bytes}, {bytes_per_sec}";

/// The lower part of the terminal.
pub(super) struct Live {
    bars: MultiProgress,
    styles: Styles,
    /// By stage and step.
    steps: Mutex<BTreeMap<(usize, usize), ProgressBar>>,
}

struct Styles {
    step: ProgressStyle,
    known_size: ProgressStyle,
    unknown_size: ProgressStyle,
}

impl Live {
    /// On standard error, which is a terminal.
    pub(super) fn new() -> Result<Self, TemplateError> {
        Ok(Self {
            bars: MultiProgress::with_draw_target(ProgressDrawTarget::stderr()),
            styles: Styles {
                step: ProgressStyle::with_template(STEP)?,
                known_size: ProgressStyle::with_template(KNOWN_SIZE)?.progress_chars("=> "),
                unknown_size: ProgressStyle::with_template(UNKNOWN_SIZE)?,
            },
            steps: Mutex::default(),
        })
    }

    /// Shows an event, whose line is `line`.
    pub(super) fn tell(&self, event: &Event<'_>, line: &str) -> io::Result<()> {
        match event {
            Event::Step { number, text } => {
                let bar = self.bars.add(ProgressBar::new_spinner());
                bar.set_style(self.styles.step.clone());
                bar.set_message(format!("{} {text}", prefix(*number)));
                bar.enable_steady_tick(TICK);
                self.steps().insert(key(*number), bar);
            }
            Event::StepDone { number, .. } => {
                if let Some(bar) = self.steps().remove(&key(*number)) {
                    bar.finish_and_clear();
                    self.bars.remove(&bar);
                }
            }
            Event::Warning { .. }
            | Event::Base { .. }
            | Event::Unpacked { .. }
            | Event::GoesOn { .. }
            | Event::Output { .. }
            | Event::Layer { .. }
            | Event::BaseLayers { .. }
            | Event::Pushed { .. }
            | Event::AlreadyThere { .. } => {}
        }
        self.bars.println(line.trim_end_matches('\n'))
    }

    /// A bar for bytes on their way.
    pub(super) fn transfer(&self, what: String, size_bytes: Option<u64>) -> ProgressBar {
        let (bar, style) = match size_bytes {
            Some(size) => (ProgressBar::new(size), &self.styles.known_size),
            None => (ProgressBar::new_spinner(), &self.styles.unknown_size),
        };
        let bar = self.bars.add(bar);
        bar.set_style(style.clone());
        bar.set_message(what);
        bar.enable_steady_tick(TICK);
        bar
    }

    /// Nothing goes on any more.
    pub(super) fn close(&self) -> io::Result<()> {
        for (_, bar) in std::mem::take(&mut *self.steps()) {
            bar.finish_and_clear();
        }
        self.bars.clear()
    }

    fn steps(&self) -> MutexGuard<'_, BTreeMap<(usize, usize), ProgressBar>> {
        self.steps.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn key(number: StepNumber) -> (usize, usize) {
    (number.stage, number.step)
}
