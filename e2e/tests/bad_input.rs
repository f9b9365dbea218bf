//! Input that no schema stops: said on the object, with the field and what to do, and nobody else is affected.

use anyhow::{Result, ensure};
use kube::api::{DynamicObject, Patch, PatchParams};
use serde_json::{Value, json};
use strata_e2e::World;
use strata_e2e::fixtures::{os_config, quick};
use strata_e2e::wait::{REACTION, eventually};
use strata_e2e::world::{Pool, condition, message};

/// Waits until the config says that it isn't ready, and why.
async fn says(pool: &Pool, parts: &[&str]) -> Result<()> {
    let what = format!("MachineOSConfig {} to say {parts:?}", pool.name);
    let said = eventually(&what, REACTION, || async {
        let config = pool.os_config().await?;
        let told = message(&config, "Ready");
        let holds = condition(&config, "Ready").is_some_and(|ready| ready["status"] == "False");
        Ok((holds && parts.iter().all(|part| told.contains(part))).then_some(()))
    })
    .await;
    match said {
        Ok(()) => Ok(()),
        Err(error) => {
            let status = pool.os_config().await?.data["status"].clone();
            Err(error.context(status.to_string()))
        }
    }
}

async fn patch(world: &World, kind: &str, name: &str, patch: Value) -> Result<DynamicObject> {
    let objects = world.objects(kind);
    let patched = objects
        .patch(name, &PatchParams::default(), &Patch::Merge(patch))
        .await?;
    Ok(patched)
}

#[tokio::test]
async fn a_containerfile_with_a_control_character_is_told_and_mended() -> Result<()> {
    let world = World::connect().await?;
    let pool = world.pool("control").await?;
    pool.configure("FROM configs AS final\nRUN echo '\u{7f}'\n")
        .await?;
    says(&pool, &["spec.containerFile[0].content, line 2", "U+007F"]).await?;
    pool.edit(&quick("mended")).await?;
    pool.succeeds(&[]).await?;
    pool.remove().await
}

#[tokio::test]
async fn a_seed_without_a_digest_is_told_and_mended() -> Result<()> {
    let world = World::connect().await?;
    let pool = world.pool("seedless").await?;
    let seed = "machineconfiguration.openshift.io/pre-built-image";
    let mut config = os_config("seedless", &quick("seedless"));
    config["metadata"]["annotations"] = json!({seed: "registry.example.com/os:latest"});
    pool.configure_with(config).await?;
    says(&pool, &["pre-built-image", "digest"]).await?;
    let none = json!({"metadata": {"annotations": {seed: Value::Null}}});
    patch(&world, "MachineOSConfig", &pool.name, none).await?;
    pool.succeeds(&[]).await?;
    pool.remove().await
}

#[tokio::test]
async fn a_machine_config_that_no_release_rendered_is_told_and_mended() -> Result<()> {
    let world = World::connect().await?;
    let pool = world.pool("unreleased").await?;
    let rendered = pool.render(2).await?;
    let version = "machineconfiguration.openshift.io/release-image-version";
    let annotate = |value: Value| json!({"metadata": {"annotations": {version: value}}});
    patch(&world, "MachineConfig", &rendered, annotate(Value::Null)).await?;
    pool.move_to(2).await?;
    pool.configure(&quick("unreleased")).await?;
    says(&pool, &[rendered.as_str(), "release-image-version"]).await?;
    patch(
        &world,
        "MachineConfig",
        &rendered,
        annotate(json!("4.20.0")),
    )
    .await?;
    pool.succeeds(&[]).await?;
    pool.remove().await
}

#[tokio::test]
async fn whatever_a_containerfile_may_hold_reaches_the_image() -> Result<()> {
    let world = World::connect().await?;
    let pool = world.pool("anything").await?;
    pool.render_with(2, |spec| {
        spec["config"]["passwd"] = Value::Null;
        spec["config"]["unheardOf"] = json!({"of": ["a", {"newer": "version"}]});
    })
    .await?;
    pool.move_to(2).await?;
    // the schema takes 4096 characters
    let long = "# \u{1f980} a comment that is long\n".repeat(120);
    let containerfile = format!(
        "{long}FROM configs AS final\r\nRUN <<-'END'\n\tprintf '%s\\n' 'täb\there: \u{4f60}\u{597d} \"quoted\" #no comment' > /etc/strata-scenario\nEND\n"
    );
    pool.configure(&containerfile).await?;
    let (_, image) = pool.succeeds(&[]).await?;
    let secret = strata_e2e::fixtures::push_secret_name(&pool.name);
    let command = ["cat", "/etc/strata-scenario"];
    let found = world
        .run_image("anything-look", &image, &secret, &command)
        .await?;
    ensure!(
        found == "täb\there: \u{4f60}\u{597d} \"quoted\" #no comment\n",
        "{found:?}"
    );
    pool.remove().await
}
