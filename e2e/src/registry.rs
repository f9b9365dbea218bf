//! What the registry holds, read by skopeo: a tool that knows nothing of us.

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tokio::process::Command;

use crate::fixtures::PUSH_CREDENTIALS;

async fn skopeo(arguments: &[&str]) -> Result<std::process::Output> {
    Command::new("skopeo")
        .args(arguments)
        .output()
        .await
        .context("run skopeo")
}

/// Whether the registry answers for `reference` (`HOST/REPOSITORY@sha256:…` or with a tag).
///
/// # Errors
/// If the registry says anything but the manifest or that there is none.
pub async fn holds(reference: &str) -> Result<bool> {
    let url = format!("docker://{reference}");
    let output = skopeo(&[
        "inspect",
        "--raw",
        "--tls-verify=false",
        "--creds",
        PUSH_CREDENTIALS,
        &url,
    ])
    .await?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    match output.status.success() {
        true => Ok(true),
        false if complaint.contains("manifest unknown") || complaint.contains("name unknown") => {
            Ok(false)
        }
        false => bail!("skopeo inspect {reference}: {complaint}"),
    }
}

/// The image configuration of `reference`.
///
/// # Errors
/// If skopeo can't read it.
pub async fn image_config(reference: &str) -> Result<Value> {
    read(
        &[
            "inspect",
            "--config",
            "--tls-verify=false",
            "--creds",
            PUSH_CREDENTIALS,
        ],
        reference,
    )
    .await
}

/// The manifest of `reference`.
///
/// # Errors
/// If skopeo can't read it.
pub async fn manifest(reference: &str) -> Result<Value> {
    read(
        &[
            "inspect",
            "--raw",
            "--tls-verify=false",
            "--creds",
            PUSH_CREDENTIALS,
        ],
        reference,
    )
    .await
}

async fn read(arguments: &[&str], reference: &str) -> Result<Value> {
    let url = format!("docker://{reference}");
    let output = skopeo(&[arguments, &[&url]].concat()).await?;
    if !output.status.success() {
        bail!(
            "skopeo inspect {reference}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    serde_json::from_slice(&output.stdout)
        .with_context(|| format!("read what skopeo says of {reference}"))
}
