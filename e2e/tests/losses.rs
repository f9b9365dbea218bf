//! Pods of builds that are taken away, starve, or find no place.

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use kube::api::{DynamicObject, EvictParams, ListParams, Patch, PatchParams};
use serde_json::{Value, json};
use strata_e2e::fixtures::{endless, os_config, quick, slow};
use strata_e2e::wait::{BUILD, REACTION, eventually};
use strata_e2e::world::{Pool, message, uid};
use strata_e2e::{World, registry};

/// A config whose builds have these settings of their own.
fn with_settings(name: &str, containerfile: &str, settings: &[(&str, &str)]) -> Value {
    let mut config = os_config(name, containerfile);
    for (setting, value) in settings {
        config["metadata"]["annotations"][format!("strata.image-mode.dev/build-{setting}")] =
            json!(value);
    }
    config
}

async fn pods(pool: &Pool) -> Result<Vec<Pod>> {
    let of_pool = format!(
        "machineconfiguration.openshift.io/target-machine-config-pool={}",
        pool.name
    );
    let pods = pool.world.pods();
    Ok(pods
        .list(&ListParams::default().labels(&of_pool))
        .await?
        .items)
}

/// Waits until some condition of the pool's only build says this.
async fn says(pool: &Pool, what: &str) -> Result<DynamicObject> {
    eventually(&format!("a build that says {what:?}"), BUILD, || async {
        let builds = pool.builds().await?.into_iter();
        let says =
            |one: &DynamicObject| one.data["status"]["conditions"].to_string().contains(what);
        Ok(builds.clone().find(says))
    })
    .await
}

#[tokio::test]
async fn an_evicted_pod_is_replaced_and_the_build_succeeds() -> Result<()> {
    let world = World::connect().await?;
    let pool = world.pool("evicted").await?;
    pool.configure(&slow("evicted")).await?;
    pool.build_in("Building", &[]).await?;
    let first = eventually("a pod that runs", BUILD, || async {
        let running = |pod: &Pod| {
            let phase = pod
                .status
                .as_ref()
                .and_then(|status| status.phase.as_deref());
            phase == Some("Running")
        };
        Ok(pods(&pool).await?.into_iter().find(running))
    })
    .await?;
    let evicted = world.pods();
    evicted
        .evict(&first.name_any(), &EvictParams::default())
        .await?;
    eventually("another pod", BUILD, || async {
        let others = pods(&pool).await?.into_iter();
        Ok(others.clone().find(|pod| pod.uid() != first.uid()))
    })
    .await?;
    let (_, image) = pool.succeeds(&[]).await?;
    ensure!(registry::holds(&image).await?);
    pool.remove().await
}

#[tokio::test]
async fn a_build_past_its_deadline_fails_and_says_so() -> Result<()> {
    let world = World::connect().await?;
    let pool = world.pool("late").await?;
    pool.configure_with(with_settings(
        "late",
        &endless("late"),
        &[("deadline", "15s")],
    ))
    .await?;
    let failed = pool.build_in("Failed", &[]).await?;
    let told = message(&failed, "Failed");
    ensure!(told.contains("was not done after 15 s"), "{told}");
    eventually("its pod to be gone", REACTION, || async {
        Ok(pods(&pool).await?.is_empty().then_some(()))
    })
    .await?;
    pool.edit(&quick("in time")).await?;
    pool.succeeds(&[uid(&failed)]).await?;
    pool.remove().await
}

#[tokio::test]
async fn a_step_that_takes_more_memory_than_it_may_is_told_with_the_limit() -> Result<()> {
    let world = World::connect().await?;
    let pool = world.pool("starved").await?;
    let settings = [
        ("memory-request", "200Mi"),
        ("memory-limit", "300Mi"),
        ("retries", "0"),
    ];
    let greedy = "FROM configs AS final\nRUN tail /dev/zero\n";
    pool.configure_with(with_settings("starved", greedy, &settings))
        .await?;
    let failed = pool.build_in("Failed", &[]).await?;
    let told = message(&failed, "Failed");
    ensure!(told.contains("memory"), "{told}");
    pool.remove().await
}

#[tokio::test]
async fn a_build_without_a_node_says_so_and_goes_on_when_there_is_one() -> Result<()> {
    let world = World::connect().await?;
    let pool = world.pool("placeless").await?;
    let settings = [("node-selector", "example.com/builds=yes")];
    pool.configure_with(with_settings("placeless", &quick("placeless"), &settings))
        .await?;
    says(&pool, "its pod waits for a node").await?;
    let label =
        |value: Value| Patch::Merge(json!({"metadata": {"labels": {"example.com/builds": value}}}));
    let nodes = world.nodes();
    let parameters = PatchParams::default();
    nodes
        .patch("node1", &parameters, &label(json!("yes")))
        .await?;
    let built = pool.succeeds(&[]).await;
    nodes
        .patch("node1", &parameters, &label(Value::Null))
        .await?;
    built?;
    pool.remove().await
}

#[tokio::test]
async fn a_base_image_that_no_registry_has_is_named_until_the_pool_has_another() -> Result<()> {
    let world = World::connect().await?;
    let pool = world.pool("baseless").await?;
    let (repository, _) = world.base_image.split_once('@').context("by digest")?;
    let absent = format!("{repository}@sha256:{}", "ab".repeat(32));
    pool.render_with(2, |spec| spec["osImageURL"] = json!(absent))
        .await?;
    pool.move_to(2).await?;
    pool.configure(&quick("baseless")).await?;
    let waiting = says(&pool, &"ab".repeat(32)).await?;
    pool.move_to(1).await?;
    pool.succeeds(&[uid(&waiting)]).await?;
    pool.remove().await
}
