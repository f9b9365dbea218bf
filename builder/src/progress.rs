//! What does somebody who watches the build see? Events, as lines of text or of JSON; at a terminal also what goes on at the moment.
//!
//! Written to standard error; the digest alone goes to standard output. Every line carries the seconds since the build began.

use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use serde::Serialize;

use crate::contract::{StepTime, Work};
use crate::digest::Digest;
use live::Live;

mod live;
mod log;

pub use log::listen;

/// `--progress`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A line per event, and below what goes on at this moment, on a terminal.
    Live,
    /// A line per event.
    Plain,
    /// A JSON object per event.
    Json,
}

/// Which step of which stage; all from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct StepNumber {
    /// In build order.
    pub stage: usize,
    /// Stages that will be built.
    pub stages: usize,
    /// In the stage.
    pub step: usize,
    /// Of the stage.
    pub steps: usize,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event<'a> {
    /// What the author may want to know.
    Warning {
        /// One sentence.
        text: &'a str,
    },
    /// A base image's manifest is known.
    Base {
        /// As in the Containerfile.
        image: &'a str,
        /// Of its manifest.
        digest: Digest,
        /// How many.
        layers: usize,
    },
    /// An image's files are on the disk.
    Unpacked {
        /// Of its manifest.
        digest: Digest,
        /// How many.
        layers: usize,
        /// Compressed.
        size_bytes: u64,
        /// Wall time, overlapping with steps.
        millis: u64,
    },
    /// What comes before an instruction is there from an earlier attempt of the same build.
    GoesOn {
        /// The first that runs; past the last one of its stage if that is done.
        #[serde(flatten)]
        number: StepNumber,
        /// In the target.
        layers: usize,
    },
    /// An instruction begins.
    Step {
        /// Which.
        #[serde(flatten)]
        number: StepNumber,
        /// As written.
        text: &'a str,
    },
    /// A line that a step printed.
    Output {
        /// Which step.
        #[serde(flatten)]
        number: StepNumber,
        /// Without its line end.
        line: &'a str,
    },
    /// An instruction ended well.
    StepDone {
        /// Which.
        #[serde(flatten)]
        number: StepNumber,
        /// Wall time.
        millis: u64,
    },
    /// A stage's layer is in the target.
    Layer {
        /// The stage's name or index.
        stage: &'a str,
        /// Of the compressed layer.
        digest: Digest,
        /// Compressed.
        size_bytes: u64,
        /// In the tar.
        entries: u64,
        /// Wall time, overlapping with steps.
        millis: u64,
    },
    /// All layers of the base are in the target.
    BaseLayers {
        /// Were there.
        present: usize,
        /// Came from another repository of the registry without moving.
        mounted: usize,
        /// Were copied as they are.
        copied: usize,
        /// Of those that were copied.
        copied_bytes: u64,
        /// Wall time, overlapping with steps.
        millis: u64,
    },
    /// The manifest is in the target.
    Pushed {
        /// Where.
        target: &'a str,
        /// Of the manifest.
        digest: Digest,
        /// Wall time of the whole build.
        millis: u64,
    },
    /// An earlier attempt of the same build has pushed it.
    AlreadyThere {
        /// Where.
        target: &'a str,
        /// Of the manifest.
        digest: Digest,
    },
}

/// Where events go; shared by all threads.
pub struct Progress {
    began: Instant,
    work: Mutex<Work>,
    out: Out,
}

enum Out {
    Live(Box<Live>),
    Plain(Lines),
    Json(Lines),
}

type Lines = Mutex<Box<dyn Write + Send>>;

/// Bytes on their way; gone from the view when dropped.
#[derive(Clone, Debug, Default)]
pub struct Transfer(Option<Arc<Bar>>);

#[derive(Debug)]
struct Bar(ProgressBar);

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

impl Transfer {
    /// So many more have come or gone.
    pub fn add(&self, bytes: usize) {
        if let Some(bar) = &self.0 {
            bar.0.inc(bytes as u64);
        }
    }
}

impl Progress {
    /// Time zero is now. Lines go to `out`; the live view is on standard error.
    #[must_use]
    pub fn new(format: Format, out: Box<dyn Write + Send>) -> Self {
        let lines = Mutex::new(out);
        let out = match format {
            Format::Json => Out::Json(lines),
            Format::Plain => Out::Plain(lines),
            Format::Live => match Live::new() {
                Ok(live) => Out::Live(Box::new(live)),
                Err(error) => {
                    tracing::debug!(%error, "no live view");
                    Out::Plain(lines)
                }
            },
        };
        Self {
            began: Instant::now(),
            work: Mutex::default(),
            out,
        }
    }

    /// Bytes on their way, of which there are so many if that is known.
    #[must_use]
    pub fn transfer(&self, what: String, size_bytes: Option<u64>) -> Transfer {
        Transfer(match &self.out {
            Out::Live(live) => {
                let bar = live.transfer(what, size_bytes);
                Some(Arc::new(Bar(bar)))
            }
            Out::Plain(_) | Out::Json(_) => None,
        })
    }

    /// What has been told of so far.
    #[must_use]
    pub fn work(&self) -> Work {
        self.counted().clone()
    }

    fn counted(&self) -> MutexGuard<'_, Work> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes away what shows only that something goes on.
    pub fn close(&self) {
        if let Out::Live(live) = &self.out {
            lost(live.close());
        }
    }

    /// Time since the build began.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// Tells.
    pub fn tell(&self, event: &Event<'_>) {
        let elapsed = self.elapsed();
        count(&mut self.counted(), event);
        lost(match &self.out {
            Out::Plain(lines) => write(lines, &plain(elapsed, event)),
            Out::Json(lines) => write(lines, &json(elapsed, event)),
            Out::Live(live) => live.tell(event, &plain(elapsed, event)),
        });
    }
}

/// What an event adds to the work done.
fn count(work: &mut Work, event: &Event<'_>) {
    match event {
        Event::StepDone { number, millis } => work.steps.push(StepTime {
            stage: number.stage,
            step: number.step,
            millis: *millis,
        }),
        Event::GoesOn { layers, .. } => work.earlier_layers += layers,
        Event::Unpacked { size_bytes, .. } => work.unpacked_bytes += size_bytes,
        Event::Layer { size_bytes, .. } => work.layer_bytes += size_bytes,
        Event::BaseLayers {
            present,
            mounted,
            copied,
            copied_bytes,
            ..
        } => {
            work.base_layers_present += present;
            work.base_layers_mounted += mounted;
            work.base_layers_copied += copied;
            work.base_copied_bytes += copied_bytes;
        }
        Event::Warning { .. }
        | Event::Base { .. }
        | Event::Step { .. }
        | Event::Output { .. }
        | Event::Pushed { .. }
        | Event::AlreadyThere { .. } => {}
    }
}

fn write(lines: &Lines, line: &str) -> io::Result<()> {
    let mut out = lines.lock().unwrap_or_else(PoisonError::into_inner);
    out.write_all(line.as_bytes()).and_then(|()| out.flush())
}

/// Nobody watches any more; the build goes on, and its outcome is told otherwise.
fn lost(written: io::Result<()>) {
    if let Err(error) = written
        && error.kind() != io::ErrorKind::BrokenPipe
    {
        tracing::debug!(%error, "progress line lost");
    }
}

/// Milliseconds for events and reports.
#[must_use]
pub fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn json(elapsed: Duration, event: &Event<'_>) -> String {
    #[derive(Serialize)]
    struct Line<'a> {
        at_millis: u64,
        #[serde(flatten)]
        event: &'a Event<'a>,
    }
    let line = Line {
        at_millis: millis(elapsed),
        event,
    };
    // Numbers and text always encode.
    serde_json::to_string(&line).map_or_else(|_| String::new(), |line| line + "\n")
}

fn plain(elapsed: Duration, event: &Event<'_>) -> String {
    let text = match event {
        Event::Warning { text } => format!("warning: {text}"),
        Event::Base {
            image,
            digest,
            layers,
        } => {
            format!("base {image}: {layers} layers, {digest}")
        }
        Event::Unpacked {
            digest,
            layers,
            size_bytes,
            millis,
        } => format!(
            "unpacked {digest}: {layers} layers, {}, in {}",
            size(*size_bytes),
            seconds(*millis)
        ),
        Event::GoesOn { number, layers } => format!(
            "{} is where this attempt goes on: an earlier one has pushed {layers} layers",
            prefix(*number)
        ),
        Event::Step { number, text } => format!("{} {text}", prefix(*number)),
        Event::Output { number, line } => format!("{}   {line}", prefix(*number)),
        Event::StepDone { number, millis } => {
            format!("{} done in {}", prefix(*number), seconds(*millis))
        }
        Event::Layer {
            stage,
            digest,
            size_bytes,
            entries,
            millis,
        } => format!(
            "layer of stage {stage} pushed: {entries} entries, {}, {digest}, in {}",
            size(*size_bytes),
            seconds(*millis)
        ),
        Event::BaseLayers {
            present,
            mounted,
            copied,
            copied_bytes,
            millis,
        } => format!(
            "layers of the base: {present} there already, {mounted} mounted, {copied} copied ({}), in {}",
            size(*copied_bytes),
            seconds(*millis)
        ),
        Event::Pushed {
            target,
            digest,
            millis,
        } => {
            format!("pushed {target} as {digest}, {} in all", seconds(*millis))
        }
        Event::AlreadyThere { target, digest } => {
            format!("{target} is there already from an earlier attempt of this build: {digest}")
        }
    };
    format!("{:7.2} {text}\n", elapsed.as_secs_f64())
}

fn prefix(number: StepNumber) -> String {
    let StepNumber {
        stage,
        stages,
        step,
        steps,
    } = number;
    format!("[stage {stage}/{stages} step {step}/{steps}]")
}

fn seconds(millis: u64) -> String {
    format!("{:.2} s", Duration::from_millis(millis).as_secs_f64())
}

fn size(bytes: u64) -> String {
    match bytes {
        0..1_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        _ => format!("{:.1} MB", bytes as f64 / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_lines_name_stage_and_step_and_json_lines_hold_the_same() {
        let number = StepNumber {
            stage: 2,
            stages: 3,
            step: 4,
            steps: 9,
        };
        let at = Duration::from_millis(1234);
        for (event, text, object) in [
            (
                Event::Step {
                    number,
                    text: "RUN dnf install -y cowsay",
                },
                "   1.23 [stage 2/3 step 4/9] RUN dnf install -y cowsay\n",
                serde_json::json!({
                    "at_millis": 1234, "event": "step", "stage": 2, "stages": 3, "step": 4, "steps": 9,
                    "text": "RUN dnf install -y cowsay",
                }),
            ),
            (
                Event::Output {
                    number,
                    line: "Complete!",
                },
                "   1.23 [stage 2/3 step 4/9]   Complete!\n",
                serde_json::json!({
                    "at_millis": 1234, "event": "output", "stage": 2, "stages": 3, "step": 4, "steps": 9,
                    "line": "Complete!",
                }),
            ),
            (
                Event::BaseLayers {
                    present: 40,
                    mounted: 1,
                    copied: 1,
                    copied_bytes: 2_500_000,
                    millis: 900,
                },
                "   1.23 layers of the base: 40 there already, 1 mounted, 1 copied (2.5 MB), in 0.90 s\n",
                serde_json::json!({
                    "at_millis": 1234, "event": "base-layers", "present": 40, "mounted": 1, "copied": 1,
                    "copied_bytes": 2_500_000, "millis": 900,
                }),
            ),
        ] {
            assert_eq!(plain(at, &event), text);
            let line: serde_json::Value = serde_json::from_str(&json(at, &event)).unwrap();
            assert_eq!(line, object);
        }
    }
}
