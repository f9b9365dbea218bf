//! What the registry holds, read by skopeo: a tool that knows nothing of us.

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tokio::process::Command;

use crate::fixtures::PUSH_CREDENTIALS;

async fn inspect(reference: &str, options: &[&str]) -> Result<std::process::Output> {
    Command::new("skopeo")
        .args(["inspect", "--tls-verify=false", "--creds", PUSH_CREDENTIALS])
        .args(options)
        .arg(format!("docker://{reference}"))
        .output()
        .await
        .context("run skopeo")
}

async fn read(reference: &str, options: &[&str]) -> Result<Vec<u8>> {
    let output = inspect(reference, options).await?;
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        bail!("skopeo inspect {reference}: {complaint}");
    }
    Ok(output.stdout)
}

/// Copies an image that anybody may read to `target` (`HOST/REPOSITORY:TAG`).
///
/// # Errors
/// If skopeo can't.
pub async fn copy(source: &str, target: &str) -> Result<()> {
    let output = Command::new("skopeo")
        .args([
            "copy",
            "--quiet",
            "--src-tls-verify=false",
            "--src-no-creds",
        ])
        .args(["--dest-tls-verify=false", "--dest-creds", PUSH_CREDENTIALS])
        .args([source, target].map(|one| format!("docker://{one}")))
        .output()
        .await
        .context("run skopeo")?;
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        bail!("skopeo copy {source} {target}: {complaint}");
    }
    Ok(())
}

/// Whether the registry answers for `reference` (`HOST/REPOSITORY@sha256:…` or with a tag).
///
/// # Errors
/// If the registry says anything but the manifest or that there is none.
pub async fn holds(reference: &str) -> Result<bool> {
    let output = inspect(reference, &["--raw"]).await?;
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
    Ok(serde_json::from_slice(
        &read(reference, &["--config"]).await?,
    )?)
}

/// The manifest of `reference`.
///
/// # Errors
/// If skopeo can't read it.
pub async fn manifest(reference: &str) -> Result<Value> {
    Ok(serde_json::from_slice(&read(reference, &["--raw"]).await?)?)
}

/// The digest that a tag names.
///
/// # Errors
/// If skopeo can't read it.
pub async fn digest(reference: &str) -> Result<String> {
    let digest = read(reference, &["--format", "{{.Digest}}"]).await?;
    Ok(String::from_utf8(digest)?.trim().to_owned())
}

/// The tags of `repository`; none if there is no such repository.
///
/// # Errors
/// If skopeo can't list them.
pub async fn tags(repository: &str) -> Result<Vec<String>> {
    let output = Command::new("skopeo")
        .args([
            "list-tags",
            "--tls-verify=false",
            "--creds",
            PUSH_CREDENTIALS,
        ])
        .arg(format!("docker://{repository}"))
        .output()
        .await
        .context("run skopeo")?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        if complaint.contains("name unknown") {
            return Ok(Vec::new());
        }
        bail!("skopeo list-tags {repository}: {complaint}");
    }
    let listed: Value = serde_json::from_slice(&output.stdout)?;
    let tags = listed["Tags"].as_array().into_iter().flatten();
    Ok(tags.filter_map(Value::as_str).map(str::to_owned).collect())
}
