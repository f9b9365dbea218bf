//! The controller program.

use std::io::Write as _;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use kube::Client;
use strata_controller::gc::{self, GcArgs};
use strata_controller::metrics::Metrics;
use strata_controller::settings::{RunArgs, Settings, current};
use strata_controller::{client, run, telemetry, trial};

/// Builds an operating-system image for each MachineOSConfig of a cluster, and removes images that nothing needs.
#[derive(Parser)]
#[command(version, about, arg_required_else_help = true)]
struct Program {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the controller until it is told to stop
    Run(Box<RunArgs>),
    /// Say which pods for builds the cluster takes, with the settings of run; nothing is created
    Doctor(Box<RunArgs>),
    /// Print the images of all repositories that builds push to, who uses them and what becomes of them; then delete what is due
    Gc(Box<GcArgs>),
}

fn main() -> ExitCode {
    let done = match Program::parse().command {
        Command::Run(arguments) => start(*arguments, async |client, settings, metrics| {
            Ok(run::run(client, settings, metrics).await?)
        }),
        Command::Doctor(arguments) => start(*arguments, async |client, settings, _| {
            let builds = current::read(&client, &settings.builds, &settings.namespace).await?;
            let told = trial::doctor(&client, &builds.job).await?;
            Ok(writeln!(std::io::stdout(), "{}", told.trim_end())?)
        }),
        Command::Gc(arguments) => {
            let GcArgs {
                dry_run,
                output,
                run,
            } = *arguments;
            start(run, async |client, settings, metrics| {
                let told = gc::gc(client, settings, metrics, dry_run, output).await?;
                Ok(writeln!(std::io::stdout(), "{}", told.trim_end())?)
            })
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(
    arguments: RunArgs,
    work: impl AsyncFnOnce(Client, Settings, Metrics) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    telemetry::init(&arguments.log.filter, arguments.log.format)?;
    let settings = arguments.validate()?;
    // ring is the only provider compiled in; whoever came first installed the same one
    let _installed_before = rustls::crypto::ring::default_provider().install_default();
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("start the runtime")?
        .block_on(async {
            let metrics = Metrics::new();
            let client = client::connect(&metrics).await?;
            work(client, settings, metrics).await
        })
}
