//! The program that runs in a build's pod and on a workstation.
//!
//! ```text
//! arguments ─► checked ─► tier entered (no thread yet) ─► runtime ─► pipeline ─► report, digest, exit code
//! ```

use std::process::ExitCode;

use clap::Parser as _;

mod arguments;
mod command;
mod places;

fn main() -> ExitCode {
    // This program is also the process that runs a step: it re-executes itself.
    if let Some(status) = strata_builder::sandbox::internal_main() {
        return ExitCode::from(status);
    }
    match arguments::Program::parse().command {
        arguments::Command::Build(build) => command::build(*build),
        arguments::Command::Doctor(doctor) => command::doctor(doctor),
    }
}
