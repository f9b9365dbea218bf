//! What happens while no controller runs, and is put right when one comes back. Alone in its file: nothing else would be worked on.

use anyhow::{Context, Result, ensure};
use kube::ResourceExt as _;
use kube::api::{DeleteParams, DynamicObject};
use strata_e2e::fixtures::slow;
use strata_e2e::wait::{BUILD, REACTION, eventually};
use strata_e2e::world::{Pool, gone, is_true, text};
use strata_e2e::{World, registry};

#[tokio::test]
async fn a_build_that_pushed_meanwhile_and_was_deleted_before_anyone_knew_leaves_no_image()
-> Result<()> {
    let world = World::connect().await?;
    let pool = world.pool("absent").await?;
    pool.configure(&slow("absent")).await?;
    let build = pool.build_in("Building", &[]).await?;
    world.scale(0).await?;
    let pushed = pushed_and_deleted(&world, &pool, &build).await;
    // however that went: the next scenario needs one
    world.scale(1).await?;
    let (tag, image) = pushed?;

    gone(&world.os_configs(), &pool.name).await?;
    ensure!(pool.builds().await?.is_empty());
    ensure!(!registry::holds(&image).await?, "{image} is still there");
    ensure!(!registry::holds(&tag).await?, "{tag} is still there");
    pool.remove().await
}

/// With no controller: waits for the push, deletes the config; the image by tag and by digest.
async fn pushed_and_deleted(
    world: &World,
    pool: &Pool,
    build: &DynamicObject,
) -> Result<(String, String)> {
    eventually("the controller to be gone", REACTION, || async {
        Ok(world.controllers().await?.is_empty().then_some(()))
    })
    .await?;

    let tag = text(build, "/spec/renderedImagePushSpec").context("a push spec")?;
    eventually("the build's pod to push", BUILD, || async {
        Ok(registry::holds(&tag).await?.then_some(()))
    })
    .await?;
    let repository = tag.rsplit_once(':').context("a tag")?.0;
    let image = format!("{repository}@{}", registry::digest(&tag).await?);
    world
        .os_configs()
        .delete(&pool.name, &DeleteParams::default())
        .await?;
    let unrecorded = world.os_builds().get(&build.name_any()).await?;
    ensure!(!is_true(&unrecorded, "Succeeded"), "somebody recorded it");
    Ok((tag, image))
}
