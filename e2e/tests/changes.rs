//! A config that changes, or asks to be built again.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use kube::ResourceExt as _;
use kube::api::{DeleteParams, DynamicObject, Patch, PatchParams};
use serde_json::json;
use strata_e2e::fixtures::{endless, quick, rendered_name};
use strata_e2e::wait::{BUILD, REACTION, eventually, never};
use strata_e2e::world::{Pool, annotation, becomes, delete_and_wait, gone, is_true, text, uid};
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

/// The build of the rendered MachineConfig number `revision`, succeeded, and its image, which the config names.
async fn succeeded_with(pool: &Pool, revision: u32) -> Result<(DynamicObject, String)> {
    let rendered = rendered_name(&pool.name, revision);
    let build = eventually(
        &format!("a build of {rendered} that has succeeded"),
        BUILD,
        || async {
            let builds = pool.builds().await?.into_iter();
            let its = |build: &DynamicObject| text(build, "/spec/machineConfig/name");
            let mut its = builds.filter(|build| its(build).as_deref() == Some(&rendered));
            Ok(its.find(|build| is_true(build, "Succeeded")))
        },
    )
    .await?;
    let image = pool.adopted(&build).await?;
    Ok((build, image))
}

/// A build that had no Job has neither of these.
fn had_a_job(build: &DynamicObject) -> bool {
    ["/status/buildStart", "/status/buildEnd", "/status/builder"]
        .iter()
        .any(|field| build.data.pointer(field).is_some())
}

#[tokio::test]
async fn a_pool_that_moves_gets_its_image_again_without_a_job_unless_it_needs_another() -> Result<()>
{
    let world = World::connect().await?;
    let pool = world.pool("moved").await?;
    pool.configure(&quick("moved")).await?;
    let (first, image) = succeeded_with(&pool, 1).await?;
    ensure!(had_a_job(&first));

    // other files, users, kernel arguments, and the same kernel and extensions in other words
    pool.render_with(2, |spec| {
        spec["config"]["storage"] = json!({});
        spec["config"]["passwd"] =
            json!({"users": [{"name": "core", "sshAuthorizedKeys": ["ssh-ed25519 AAAA"]}]});
        spec["kernelArguments"] = json!(["quiet"]);
        spec["kernelType"] = json!("");
    })
    .await?;
    // what is wrong with a pool may be mended by just such a change
    degrade(&pool, "True").await?;
    let begun = Instant::now();
    pool.move_to(2).await?;
    let (second, reused) = succeeded_with(&pool, 2).await?;
    println!("moved to an equal content in {:.2?}", begun.elapsed());
    degrade(&pool, "False").await?;
    ensure!(reused == image && !had_a_job(&second));
    ensure!(annotation(&second, "job-uid").is_none());
    ensure!(
        annotation(&pool.os_config().await?, "current-machine-os-build") == Some(second.name_any())
    );

    // another kind of image
    pool.render_with(3, |spec| spec["extensions"] = json!(["usbguard"]))
        .await?;
    pool.move_to(3).await?;
    let (third, _) = succeeded_with(&pool, 3).await?;
    ensure!(had_a_job(&third));

    // back, and then to a content that was built two moves ago
    pool.move_to(1).await?;
    ensure!(pool.adopted(&first).await? == image);
    pool.render_with(4, |spec| spec["config"]["storage"] = json!({}))
        .await?;
    pool.move_to(4).await?;
    let (fourth, again) = succeeded_with(&pool, 4).await?;
    ensure!(again == image && !had_a_job(&fourth));

    // one of those that share the image goes, and the image stays
    delete_and_wait(
        &world.os_builds(),
        &first.name_any(),
        &DeleteParams::default(),
    )
    .await?;
    ensure!(registry::holds(&image).await?);

    // a rebuild is a build
    pool.request_rebuild().await?;
    let rebuilt = pool
        .build_in("Succeeded", &[uid(&second), uid(&third), uid(&fourth)])
        .await?;
    ensure!(rebuilt.name_any() == fourth.name_any() && had_a_job(&rebuilt));
    pool.adopted(&rebuilt).await?;
    pool.remove().await
}

async fn degrade(pool: &Pool, status: &str) -> Result<()> {
    let patch = json!({"status": {"conditions": [{"type": "NodeDegraded", "status": status, "reason": "Scenario", "message": "a file"}]}});
    let pools = pool.world.objects("MachineConfigPool");
    pools
        .patch_status(&pool.name, &PatchParams::default(), &Patch::Merge(patch))
        .await?;
    Ok(())
}
