//! Where do log lines go, which ones, and in which form?
//!
//! To standard error: standard output is for what a command prints. Set up once by the program.

use std::io::IsTerminal as _;

use strata_builder::error::{Class, Classify};
use tracing::Subscriber;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;
use tracing_subscriber::fmt::MakeWriter;

/// `--log-format`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// A line for people: time, level, module, message, fields.
    #[default]
    Text,
    /// A JSON object per line, for collectors.
    Json,
}

/// Log lines can't be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// Not a filter.
    #[error(
        "--log {filter:?} is no log filter: write a level (error, warn, info, debug, trace) or a list like info,strata_controller=debug"
    )]
    Filter {
        /// As given.
        filter: String,
        /// Why not.
        source: ParseError,
    },
    /// Done twice in one process.
    #[error("log lines are set up already")]
    SecondTime(#[from] tracing::subscriber::SetGlobalDefaultError),
}

impl Classify for TelemetryError {
    fn class(&self) -> Class {
        match self {
            TelemetryError::Filter { .. } => Class::CONTRACT,
            TelemetryError::SecondTime(_) => Class::INTERNAL,
        }
    }
}

/// From now on this process's log lines that pass `filter` go to standard error.
///
/// # Errors
///
/// Permanent: no such filter, or the second call in this process.
pub fn init(filter: &str, format: LogFormat) -> Result<(), TelemetryError> {
    let colours = std::io::stderr().is_terminal();
    let subscriber = subscriber(filter, format, colours, std::io::stderr)?;
    Ok(tracing::subscriber::set_global_default(subscriber)?)
}

fn subscriber<W>(
    filter: &str,
    format: LogFormat,
    colours: bool,
    writer: W,
) -> Result<Box<dyn Subscriber + Send + Sync>, TelemetryError>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let filter = EnvFilter::builder()
        .parse(filter)
        .map_err(|source| TelemetryError::Filter {
            filter: filter.to_owned(),
            source,
        })?;
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(writer);
    Ok(match format {
        // with colours, NO_COLOR still has its say
        LogFormat::Text if colours => Box::new(lines.finish()),
        LogFormat::Text => Box::new(lines.with_ansi(false).finish()),
        LogFormat::Json => Box::new(
            lines
                .json()
                .flatten_event(true)
                .with_span_list(false)
                .finish(),
        ),
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn lines(filter: &str, format: LogFormat) -> String {
        let sink = Sink::default();
        let writer = sink.clone();
        let subscriber = subscriber(filter, format, false, move || writer.clone()).unwrap();
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(os_build = "worker-1", "phase entered");
            tracing::debug!("decision");
        });
        String::from_utf8(sink.0.lock().unwrap().clone()).unwrap()
    }

    #[test]
    fn text_lines_have_no_colours_outside_a_terminal_and_pass_the_filter() {
        let text = lines("info", LogFormat::Text);
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(
            text.ends_with("phase entered os_build=\"worker-1\"\n"),
            "{text}"
        );
        assert!(!text.contains('\u{1b}'), "{text}");
        assert_eq!(lines("debug", LogFormat::Text).lines().count(), 2);
    }

    #[test]
    fn a_json_line_has_message_and_fields_at_its_top() {
        let text = lines("info", LogFormat::Json);
        let line: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(line["message"], "phase entered");
        assert_eq!(line["os_build"], "worker-1");
        assert_eq!(line["level"], "INFO");
    }

    #[test]
    fn what_is_no_filter_is_refused_with_an_example() {
        let error = init("strata=loud", LogFormat::Text).unwrap_err();
        assert!(error.to_string().contains("--log \"strata=loud\""));
        assert_eq!(error.class(), Class::CONTRACT);
    }
}
