//! A build's whole life, with a controller that is disturbed at every one of its writes. Alone in its file: it stops the cluster's own.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use kube::ResourceExt as _;
use kube::api::{DeleteParams, ListParams};
use strata_e2e::fixtures::{endless, quick};
use strata_e2e::proxy::{Disturbed, Fault};
use strata_e2e::wait::{REACTION, eventually};
use strata_e2e::world::{Pool, delete_and_wait, uid};
use strata_e2e::{World, registry};

#[tokio::test]
async fn whatever_happens_at_any_write_each_content_is_built_once_and_nothing_is_left() -> Result<()>
{
    let world = World::connect().await?;
    world.stop_controller().await?;
    for fault in [Fault::Kill, Fault::LoseAnswer, Fault::Conflict] {
        let start = Instant::now();
        let controller = Disturbed::start(&world, fault).await?;
        let lived = life(&world).await;
        let disturbed = controller.disturbed();
        let lived = lived.with_context(|| format!("{fault:?} after {disturbed:#?}"));
        controller.stop().await?;
        lived?;
        // create, build, supersede, rebuild, delete: some hundred different ones
        ensure!(disturbed.len() > 60, "{fault:?}: only {disturbed:#?}");
        let (writes, seconds) = (disturbed.len(), start.elapsed().as_secs());
        println!("{fault:?} at each of {writes} writes: as without, after {seconds} s");
    }
    world.start_controller().await
}

/// Creation, an edit while a build runs, a rebuild, deletion by hand of what is wanted, deletion.
async fn life(world: &World) -> Result<()> {
    let pool = world.pool("disturbed").await?;
    pool.configure(&quick("first")).await?;
    let (first, first_image) = pool.succeeds(&[]).await?;
    only(&pool, &[uid(&first)]).await?;

    pool.edit(&endless("second")).await?;
    let second = pool.build_in("Building", &[uid(&first)]).await?;
    pool.edit(&quick("third")).await?;
    let (third, third_image) = pool.succeeds(&[uid(&first), uid(&second)]).await?;
    only(&pool, &[uid(&first), uid(&third)]).await?;
    ensure!(registry::holds(&first_image).await?);

    pool.request_rebuild().await?;
    let before = [uid(&first), uid(&second), uid(&third)];
    let (fourth, fourth_image) = pool.succeeds(&before).await?;
    ensure!(fourth.name_any() == third.name_any());
    only(&pool, &[uid(&first), uid(&fourth)]).await?;

    let builds = world.os_builds();
    delete_and_wait(&builds, &first.name_any(), &DeleteParams::default()).await?;
    absent(&first_image).await?;
    pool.remove().await?;
    for image in [first_image, third_image, fourth_image] {
        absent(&image).await?;
    }
    left_over(world).await
}

/// Only these builds are there, and no Job.
async fn only(pool: &Pool, wanted: &[String]) -> Result<()> {
    let what = format!("only {} builds and no Job", wanted.len());
    eventually(&what, REACTION, || async {
        let mut builds: Vec<String> = pool.builds().await?.iter().map(uid).collect();
        builds.sort();
        let mut wanted = wanted.to_vec();
        wanted.sort();
        Ok((builds == wanted && pool.jobs().await?.is_empty()).then_some(()))
    })
    .await
}

async fn absent(image: &str) -> Result<()> {
    eventually(&format!("{image} to be deleted"), REACTION, || async {
        Ok((!registry::holds(image).await?).then_some(()))
    })
    .await
}

/// Of the pool's builds nothing is left in the namespace.
async fn left_over(world: &World) -> Result<()> {
    let of_pool = ListParams::default()
        .labels("machineconfiguration.openshift.io/target-machine-config-pool=disturbed");
    eventually("what was made for builds to be gone", REACTION, || async {
        let config_maps = world.config_maps().list(&of_pool).await?.items.len();
        let secrets = world.secrets().list(&of_pool).await?.items.len();
        let pods = world.pods().list(&of_pool).await?.items.len();
        Ok((config_maps + secrets + pods == 0).then_some(()))
    })
    .await
}
