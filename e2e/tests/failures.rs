//! What is wrong is said on the object, at once, with what to change.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kube::ResourceExt as _;
use kube::api::{DeleteParams, DynamicObject, ListParams};
use strata_e2e::World;
use strata_e2e::fixtures::{docker_secret, push_secret, push_secret_name, quick};
use strata_e2e::wait::{REACTION, eventually, never};
use strata_e2e::world::{Pool, delete_and_wait, is_true, message, uid};

#[tokio::test]
async fn a_failing_step_ends_the_build_after_one_pod_and_is_quoted() -> Result<()> {
    let world = World::connect().await?;
    let pool = world.pool("failing").await?;
    pool.configure("FROM configs AS final\nRUN echo before\nRUN echo the reason why; exit 7\n")
        .await?;
    let build = pool.build_in("Failed", &[]).await?;
    let told = message(&build, "Failed");
    for part in [
        "Build Failed",
        "Containerfile",
        "line 3",
        "RUN echo the reason why; exit 7",
        "status 7",
        "the reason why",
    ] {
        ensure!(told.contains(part), "{part:?} is not in {told:?}");
    }
    ensure!(
        attempts(&world, &build).await? == 1,
        "one pod is enough for a step that can't succeed"
    );
    pool.edit(&quick("mended")).await?;
    pool.succeeds(&[uid(&build)]).await?;
    pool.remove().await
}

#[tokio::test]
async fn a_containerfile_that_does_not_parse_fails_without_a_job() -> Result<()> {
    let world = World::connect().await?;
    let pool = world.pool("unparsable").await?;
    pool.configure("FROM configs AS final\nRUM dnf install -y cowsay\n")
        .await?;
    let build = pool.build_in("Failed", &[]).await?;
    let told = message(&build, "Failed");
    for part in ["line 2", "RUM", "RUN"] {
        ensure!(told.contains(part), "{part:?} is not in {told:?}");
    }
    ensure!(
        pool.jobs().await?.is_empty(),
        "no Job for a Containerfile that can't be built"
    );
    pool.edit(&quick("parsable")).await?;
    pool.succeeds(&[uid(&build)]).await?;
    pool.remove().await
}

#[tokio::test]
async fn a_missing_secret_is_named_and_the_build_starts_when_it_comes() -> Result<()> {
    let world = World::connect().await?;
    let pool = world.pool("secretless").await?;
    let secret = push_secret_name("secretless");
    delete_and_wait(&world.secrets(), &secret, &DeleteParams::default()).await?;
    pool.configure(&quick("secret")).await?;
    says(&pool, &[&secret]).await?;
    world.create_secret(push_secret(&secret)).await?;
    pool.succeeds(&[]).await?;
    pool.remove().await
}

#[tokio::test]
async fn a_malformed_secret_is_named_and_the_build_starts_when_it_is_mended() -> Result<()> {
    let world = World::connect().await?;
    let pool = world.pool("malformed").await?;
    let secret = push_secret_name("malformed");
    delete_and_wait(&world.secrets(), &secret, &DeleteParams::default()).await?;
    world
        .create_secret(docker_secret(&secret, r#"{"auths": ["not", "a", "map"]}"#))
        .await?;
    pool.configure(&quick("malformed")).await?;
    says(&pool, &[&secret, ".dockerconfigjson"]).await?;
    delete_and_wait(&world.secrets(), &secret, &DeleteParams::default()).await?;
    world.create_secret(push_secret(&secret)).await?;
    pool.succeeds(&[]).await?;
    pool.remove().await
}

#[tokio::test]
async fn a_push_that_the_registry_refuses_is_a_failure_that_names_the_right() -> Result<()> {
    let world = World::connect().await?;
    let pool = world.pool("refused").await?;
    let secret = push_secret_name("refused");
    delete_and_wait(&world.secrets(), &secret, &DeleteParams::default()).await?;
    world
        .create_secret(docker_secret(
            &secret,
            r#"{"auths": {"10.250.0.1:5001": {"username": "strata", "password": "wrong"}}}"#,
        ))
        .await?;
    pool.configure(&quick("refused")).await?;
    let build = pool.build_in("Failed", &[]).await?;
    let told = message(&build, "Failed");
    for part in [
        "10.250.0.1:5001/scenarios/refused",
        "401",
        &format!("change Secret {secret}"),
        "spec.renderedImagePushSecret",
        "machineconfiguration.openshift.io/rebuild",
    ] {
        ensure!(told.contains(part), "{part:?} is not in {told:?}");
    }
    ensure!(
        attempts(&world, &build).await? == 1,
        "one pod is enough for credentials that don't change"
    );
    pool.remove().await
}

/// How many pods have tried the build; they stay with their Job when it fails.
async fn attempts(world: &World, build: &DynamicObject) -> Result<usize> {
    let its = format!("batch.kubernetes.io/job-name=build-{}", build.name_any());
    let pods = world
        .pods()
        .list(&ListParams::default().labels(&its))
        .await?;
    Ok(pods.items.len())
}

/// Waits until a condition of the config and one of its builds hold all of `parts`, and sees that no Job is made.
async fn says(pool: &Pool, parts: &[&str]) -> Result<()> {
    eventually(
        &format!("{} to say {parts:?}", pool.name),
        REACTION,
        || async {
            let os_config = pool.os_config().await?;
            let told = os_config.data["status"]["conditions"].to_string();
            Ok(parts.iter().all(|part| told.contains(part)).then_some(()))
        },
    )
    .await?;
    never(
        "a Job without credentials",
        Duration::from_secs(2),
        || async { Ok((!pool.jobs().await?.is_empty()).then(|| "there is one".to_owned())) },
    )
    .await?;
    let builds = pool.builds().await?;
    ensure!(
        builds.iter().all(|build| !is_true(build, "Failed")),
        "what can still be mended has not failed"
    );
    let build = builds.first().context("the build that waits")?;
    let told = message(build, "Prepared");
    ensure!(
        parts.iter().all(|part| told.contains(part)),
        "the build says {told:?}"
    );
    Ok(())
}
