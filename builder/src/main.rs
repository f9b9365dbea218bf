//! The program that runs in a build's pod and on a workstation.
//!
//! ```text
//! arguments ─► checked ─► tier entered (no thread yet) ─► runtime ─► pipeline ─► report, digest, exit code
//! ```

use std::process::ExitCode;

use clap::Parser as _;
use strata_builder::error::Class;

mod arguments;
mod command;
mod ending;
mod places;
mod signals;
mod streams;

fn main() -> ExitCode {
    // This program is also the process that runs a step: it re-executes itself.
    if let Some(status) = strata_builder::sandbox::internal_main() {
        return ExitCode::from(status);
    }
    if let Err(error) = strata_builder::open_files::allow_most() {
        // What needs more will say so.
        tracing::debug!(%error, "the limit of open files stays");
    }
    let program = match arguments::Program::try_parse() {
        Ok(program) => program,
        // help and version, asked for, are no error
        Err(told) => {
            let code = if told.use_stderr() {
                Class::CONTRACT.exit_code()
            } else {
                0
            };
            return match streams::heard(told.print()) {
                Ok(()) => ExitCode::from(code),
                Err(_) => ExitCode::FAILURE,
            };
        }
    };
    match program.command {
        arguments::Command::Build(build) => command::build(*build),
        arguments::Command::Doctor(doctor) => command::doctor(doctor),
    }
}
