//! Less common ways through the contract: pools that are paused, ill or leave, requests that come twice, names and paths at their limits.

use std::time::Duration;

use anyhow::{Result, ensure};
use kube::ResourceExt as _;
use kube::api::{DeleteParams, DynamicObject, Patch, PatchParams};
use serde_json::{Value, json};
use strata_e2e::fixtures::{PUSH_REGISTRY, os_config, quick, slow};
use strata_e2e::wait::{BUILD, REACTION, eventually, never};
use strata_e2e::world::{Pool, annotation, delete_and_wait, uid};
use strata_e2e::{World, registry};

async fn patch_pool(pool: &Pool, patch: Value) -> Result<()> {
    let pools = pool.world.objects("MachineConfigPool");
    pools
        .patch(&pool.name, &PatchParams::default(), &Patch::Merge(patch))
        .await?;
    Ok(())
}

#[tokio::test]
async fn a_paused_pool_is_built_and_a_degraded_one_waits_and_says_so() -> Result<()> {
    let world = World::connect().await?;
    let pool = world.pool("ill").await?;
    patch_pool(&pool, json!({"spec": {"paused": true}})).await?;
    pool.configure(&quick("paused")).await?;
    let (first, _) = pool.succeeds(&[]).await?;
    let ill = |status: &str| {
        json!({"status": {"conditions": [{
            "type": "NodeDegraded", "status": status, "reason": "NodeDegraded", "message": "node1 is ill",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }]}})
    };
    let pools = world.objects("MachineConfigPool");
    let parameters = PatchParams::default();
    pools
        .patch_status(&pool.name, &parameters, &Patch::Merge(ill("True")))
        .await?;
    pool.edit(&quick("degraded")).await?;
    let waiting = eventually("a build that waits for its pool", REACTION, || async {
        let builds = pool.builds().await?.into_iter();
        let says = |one: &DynamicObject| {
            let conditions = one.data["status"]["conditions"].to_string();
            uid(one) != uid(&first) && conditions.contains("degraded")
        };
        Ok(builds.clone().find(says))
    })
    .await?;
    let job = format!("build-{}", waiting.name_any());
    ensure!(world.jobs().get_opt(&job).await?.is_none(), "it has a Job");
    pools
        .patch_status(&pool.name, &parameters, &Patch::Merge(ill("False")))
        .await?;
    let (built, _) = pool.succeeds(&[uid(&first)]).await?;
    ensure!(uid(&built) == uid(&waiting));
    pool.remove().await
}

#[tokio::test]
async fn a_config_that_goes_and_comes_back_has_its_image_again() -> Result<()> {
    let world = World::connect().await?;
    let pool = world.pool("returning").await?;
    pool.configure(&quick("returning")).await?;
    let (first, first_image) = pool.succeeds(&[]).await?;
    let configs = world.os_configs();
    delete_and_wait(&configs, &pool.name, &DeleteParams::default()).await?;
    eventually("its image to be deleted", REACTION, || async {
        Ok((!registry::holds(&first_image).await?).then_some(()))
    })
    .await?;
    pool.configure(&quick("returning")).await?;
    let (second, image) = pool.succeeds(&[uid(&first)]).await?;
    ensure!(second.name_any() == first.name_any());
    ensure!(registry::holds(&image).await?);
    pool.remove().await
}

#[tokio::test]
async fn a_rebuild_that_is_asked_for_twice_while_a_build_runs_is_one_rebuild() -> Result<()> {
    let world = World::connect().await?;
    let pool = world.pool("twice").await?;
    pool.configure(&slow("twice")).await?;
    let first = pool.build_in("Building", &[]).await?;
    pool.request_rebuild().await?;
    pool.request_rebuild().await?;
    eventually("the annotation to go", BUILD, || async {
        let asked = annotation(&pool.os_config().await?, "rebuild");
        Ok(asked.is_none().then_some(()))
    })
    .await?;
    let (second, image) = pool.succeeds(&[uid(&first)]).await?;
    ensure!(registry::holds(&image).await?);
    never("a third build", Duration::from_secs(5), || async {
        let builds = pool.builds().await?;
        let others: Vec<String> = builds
            .iter()
            .map(uid)
            .filter(|one| *one != uid(&second))
            .collect();
        Ok((!others.is_empty()).then(|| format!("{others:?}")))
    })
    .await?;
    pool.remove().await
}

#[tokio::test]
async fn the_longest_name_and_the_deepest_repository_are_built() -> Result<()> {
    let world = World::connect().await?;
    // the name of its rendered MachineConfig is a label of the build
    let name = "name-of-21-characters";
    let pool = world.pool(name).await?;
    let mut config = os_config(name, &quick("long"));
    let repository = format!("{PUSH_REGISTRY}/deep/deeper/{}/{name}", "d".repeat(61));
    config["spec"]["renderedImagePushSpec"] = json!(format!("{repository}:latest"));
    pool.configure_with(config).await?;
    let (_, image) = pool.succeeds(&[]).await?;
    ensure!(image.starts_with(&repository), "{image}");
    pool.remove().await
}
