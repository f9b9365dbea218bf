//! How does the outcome fit into a termination message? Pure, but for [`write`].

use std::fs;
use std::io;
use std::path::Path;

use crate::contract::{BuildReport, FailedStep, Outcome, REPORT_LIMIT_BYTES};

/// Long enough for a compiler's message, short enough that twenty fit beside the rest.
const LINE_BYTES: usize = 300;

/// The report as JSON of at most [`REPORT_LIMIT_BYTES`]. What is too long is shortened in this order: the times of the fastest steps, output lines, their number (oldest
/// first), the instruction's text, the message.
///
/// # Errors
/// If it can't be written as JSON at all.
pub fn encode(report: &BuildReport) -> serde_json::Result<Vec<u8>> {
    let mut report = report.clone();
    loop {
        let bytes = serde_json::to_vec(&report)?;
        if bytes.len() <= REPORT_LIMIT_BYTES || !shorten(&mut report) {
            return Ok(bytes);
        }
    }
}

/// Makes the report a little shorter; false if there is nothing left to shorten.
fn shorten(report: &mut BuildReport) -> bool {
    let steps = &mut report.work.steps;
    if !steps.is_empty() {
        let mut times: Vec<u64> = steps.iter().map(|step| step.millis).collect();
        times.sort_unstable();
        let median = times[times.len() / 2];
        let before = steps.len();
        steps.retain(|step| step.millis > median);
        // All as fast as each other, or none above the middle.
        steps.truncate(before / 2);
        return true;
    }
    let Outcome::Failed(failure) = &mut report.outcome else {
        return false;
    };
    if let Some(FailedStep { output, text, .. }) = &mut failure.step {
        let mut shortened = false;
        for line in output.iter_mut() {
            shortened |= truncate(line, LINE_BYTES);
        }
        if shortened {
            return true;
        }
        if output.len() > 1 {
            output.remove(0);
            return true;
        }
        if truncate(text, LINE_BYTES) {
            return true;
        }
    }
    let half = failure.message.len() / 2;
    half > LINE_BYTES && truncate(&mut failure.message, half)
}

/// Cuts `text` to at most `limit` bytes, an ellipsis included; false if it is short enough.
fn truncate(text: &mut String, limit: usize) -> bool {
    if text.len() <= limit {
        return false;
    }
    let end = text.floor_char_boundary(limit.saturating_sub('…'.len_utf8()));
    text.truncate(end);
    text.push('…');
    true
}

/// Writes the report over what `path` holds: a termination message is a file mounted by itself, so it can't be replaced by a rename.
///
/// # Errors
/// If it can't be encoded or written.
pub fn write(report: &BuildReport, path: &Path) -> io::Result<()> {
    fs::write(path, encode(report)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::{Failure, REPORT_VERSION, StepTime, Work};
    use crate::error::Class;

    fn failed(message: &str, output: Vec<String>) -> BuildReport {
        BuildReport {
            version: REPORT_VERSION,
            outcome: Outcome::Failed(Failure {
                class: Class::CONTENT,
                message: message.to_owned(),
                refused_by: None,
                step: Some(FailedStep {
                    file: "Containerfile".to_owned(),
                    line: 7,
                    text: "RUN false".to_owned(),
                    exit_status: Some(1),
                    output,
                }),
            }),
            tier: "userns".to_owned(),
            phases: Vec::new(),
            peak_rss_bytes: 0,
            work: Work::default(),
        }
    }

    fn decoded(report: &BuildReport) -> (String, Vec<String>) {
        let bytes = encode(report).unwrap();
        assert!(bytes.len() <= REPORT_LIMIT_BYTES, "{} bytes", bytes.len());
        let report: BuildReport = serde_json::from_slice(&bytes).unwrap();
        let Outcome::Failed(Failure {
            message,
            step: Some(step),
            ..
        }) = report.outcome
        else {
            panic!("the outcome changed");
        };
        (message, step.output)
    }

    #[test]
    fn a_short_report_stays_as_it_is() {
        let output = vec!["one".to_owned(), "two".to_owned()];
        assert_eq!(
            decoded(&failed("short", output.clone())),
            ("short".to_owned(), output)
        );
    }

    #[test]
    fn long_lines_are_cut_before_any_is_dropped_and_the_last_ones_stay() {
        let lines = |length: usize| {
            (0..20)
                .map(|n| format!("{n:02} {}", "x".repeat(length)))
                .collect::<Vec<_>>()
        };
        let (_, output) = decoded(&failed(
            "message",
            [lines(5), vec!["y".repeat(5000)]].concat(),
        ));
        assert_eq!(output.len(), 21);
        let (message, output) = decoded(&failed("message", lines(1000)));
        assert_eq!(message, "message");
        assert!(output.len() > 5 && output[output.len() - 1].starts_with("19 x"));
    }

    #[test]
    fn of_many_steps_the_slowest_stay_and_a_failure_goes_before_them() {
        let mut report = failed("message", Vec::new());
        let step = |step: usize| StepTime {
            stage: 1,
            step,
            millis: (step as u64 * 7919) % 5000,
        };
        report.work.steps = (1..=5000).map(step).collect();
        let bytes = encode(&report).unwrap();
        assert!(bytes.len() <= REPORT_LIMIT_BYTES, "{} bytes", bytes.len());
        let shortened: BuildReport = serde_json::from_slice(&bytes).unwrap();
        let left = shortened.work.steps;
        assert!(left.len() > 20 && left.is_sorted_by_key(|step| step.step));
        assert!(left.iter().any(|step| step.millis == 4999));
        assert!(left.iter().all(|step| step.millis > 4500));
        assert_eq!(shortened.outcome, report.outcome);
        // As fast as each other.
        report
            .work
            .steps
            .iter_mut()
            .for_each(|step| step.millis = 1);
        assert!(encode(&report).unwrap().len() <= REPORT_LIMIT_BYTES);
    }

    #[test]
    fn even_a_message_of_control_characters_fits() {
        let (message, output) = decoded(&failed(
            &"\u{1}".repeat(20_000),
            vec!["\u{2}".repeat(9_000)],
        ));
        assert!(message.ends_with('…') && output.len() == 1);
    }
}
