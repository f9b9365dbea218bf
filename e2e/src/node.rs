//! The test cluster's node itself, for scenarios that change what it can do.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::process::Command;

async fn cluster(script: &str, arguments: &[&str], environment: &[(&str, &str)]) -> Result<()> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("cluster")
        .join(script);
    let output = Command::new(&path)
        .args(arguments)
        .envs(environment.iter().copied())
        .output()
        .await
        .with_context(|| format!("run {}", path.display()))?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "{script} {arguments:?}: {complaint}"
    );
    Ok(())
}

/// Starts the apiserver anew, with further `flags`.
///
/// # Errors
/// If it doesn't end.
pub async fn restart_apiserver(flags: &str) -> Result<()> {
    let environment = [("STRATA_APISERVER_FLAGS", flags)];
    // asked politely, it waits for all watches to end
    cluster("service.sh", &["kill", "apiserver"], &[]).await?;
    cluster("service.sh", &["start", "apiserver"], &environment).await
}

/// Restarts a program of the node, killed as by a loss of power.
///
/// # Errors
/// If it doesn't end.
pub async fn restart(service: &str) -> Result<()> {
    cluster("service.sh", &["kill", service], &[]).await?;
    cluster("service.sh", &["start", service], &[]).await
}

/// Lets a program of the node stand still for so long.
///
/// # Errors
/// If it has ended.
pub async fn stall(service: &str, length: Duration) -> Result<()> {
    cluster("service.sh", &["signal", service, "STOP"], &[]).await?;
    tokio::time::sleep(length).await;
    cluster("service.sh", &["signal", service, "CONT"], &[]).await
}

/// Runs a command in all namespaces of the node.
///
/// # Errors
/// If it fails.
pub async fn run(command: &[&str]) -> Result<()> {
    let arguments: Vec<&str> = [&["--node"], command].concat();
    cluster("exec", &arguments, &[]).await
}
