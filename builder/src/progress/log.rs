//! Where do the log's lines go? Among the events: a terminal's live view stays whole, and JSON stays JSON.

use std::io::{self, Write};
use std::sync::Arc;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use super::{Event, Progress};

/// Directives as of `tracing_subscriber`'s `EnvFilter`: `debug`, or `strata_builder::registry=debug`.
const LOG: &str = "STRATA_LOG";
const DEFAULT: &str = "strata_builder=warn";

struct ToProgress(Arc<Progress>);

/// One line of the log.
struct Line<'a>(&'a Progress, Vec<u8>);

impl<'a> MakeWriter<'a> for ToProgress {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line(&self.0, Vec::new())
    }
}

impl Write for Line<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.1.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line<'_> {
    fn drop(&mut self) {
        let text = String::from_utf8_lossy(&self.1);
        self.0.tell(&Event::Warning {
            text: text.trim_end(),
        });
    }
}

/// From now on warnings of this process are told; with the variable `STRATA_LOG` more than these.
pub fn listen(progress: &Arc<Progress>) {
    let filter = EnvFilter::try_from_env(LOG).unwrap_or_else(|_| EnvFilter::new(DEFAULT));
    let lines = tracing_subscriber::fmt()
        .without_time()
        .with_level(false)
        .with_target(false)
        .with_ansi(false)
        .with_env_filter(filter)
        .with_writer(ToProgress(Arc::clone(progress)));
    if lines.try_init().is_err() {
        tracing::debug!("the log goes elsewhere already");
    }
}
