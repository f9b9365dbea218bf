//! A config that changes, or asks to be built again.

use std::time::Duration;

use anyhow::{Result, ensure};
use kube::ResourceExt as _;
use strata_e2e::fixtures::{endless, quick};
use strata_e2e::wait::{BUILD, REACTION, eventually, never};
use strata_e2e::world::{annotation, becomes, gone, is_true, uid};
use strata_e2e::{World, registry};

#[tokio::test]
async fn an_edit_while_a_build_runs_interrupts_it_and_builds_the_new_content() -> Result<()> {
    let world = World::connect().await?;
    let pool = world.pool("superseded").await?;
    pool.configure(&endless("first")).await?;
    let first = pool.build_in("Building", &[]).await?;
    pool.edit(&quick("second")).await?;

    becomes(&world.os_builds(), &first, "Interrupted", |old| {
        is_true(old, "Interrupted")
    })
    .await?;
    let (second, image) = pool.succeeds(&[uid(&first)]).await?;
    ensure!(second.name_any() != first.name_any());
    gone(&world.jobs(), &format!("build-{}", first.name_any())).await?;
    ensure!(registry::holds(&image).await?);
    eventually("only the second build to be left", REACTION, || async {
        let builds: Vec<String> = pool.builds().await?.iter().map(uid).collect();
        Ok((builds == [uid(&second)]).then_some(()))
    })
    .await?;
    pool.remove().await
}

#[tokio::test]
async fn the_rebuild_annotation_gives_exactly_one_rebuild_and_goes() -> Result<()> {
    let world = World::connect().await?;
    let pool = world.pool("rebuilt").await?;
    pool.configure(&quick("again")).await?;
    let (first, first_image) = pool.succeeds(&[]).await?;
    pool.request_rebuild().await?;
    eventually(
        "the first image to stay until the rebuild has succeeded",
        BUILD,
        || async {
            // in this order: it may go as soon as its successor is there
            let kept = registry::holds(&first_image).await?;
            let builds = pool.builds().await?;
            let succeeded = builds
                .iter()
                .any(|b| uid(b) != uid(&first) && is_true(b, "Succeeded"));
            ensure!(
                kept || succeeded,
                "{first_image} was deleted before its successor was there"
            );
            Ok(succeeded.then_some(()))
        },
    )
    .await?;
    let (second, image) = pool.succeeds(&[uid(&first)]).await?;
    ensure!(second.name_any() == first.name_any() && uid(&second) != uid(&first));
    ensure!(registry::holds(&image).await?);
    eventually("the annotation to go", REACTION, || async {
        Ok(annotation(&pool.os_config().await?, "rebuild")
            .is_none()
            .then_some(()))
    })
    .await?;
    never("a second rebuild", Duration::from_secs(5), || async {
        let builds = pool.builds().await?;
        Ok(
            (builds.iter().any(|b| uid(b) != uid(&second)) || builds.len() != 1)
                .then(|| format!("{} builds", builds.len())),
        )
    })
    .await?;
    pool.remove().await
}

#[tokio::test]
async fn a_succeeded_build_is_left_alone_and_used_again_when_the_config_goes_back_to_it()
-> Result<()> {
    let world = World::connect().await?;
    let pool = world.pool("back").await?;
    pool.configure(&quick("one")).await?;
    let (first, first_image) = pool.succeeds(&[]).await?;
    pool.edit(&quick("two")).await?;
    let (second, _) = pool.succeeds(&[uid(&first)]).await?;
    pool.edit(&quick("one")).await?;
    ensure!(pool.adopted(&first).await? == first_image);
    let uids: Vec<String> = pool.builds().await?.iter().map(uid).collect();
    ensure!(
        uids.contains(&uid(&first)) && uids.contains(&uid(&second)),
        "succeeded builds stay"
    );
    pool.remove().await
}
