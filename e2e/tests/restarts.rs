//! The controller killed and started again. Alone in its file: it stops work for every other scenario while it runs.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use strata_e2e::fixtures::quick;
use strata_e2e::wait::{REACTION, eventually};
use strata_e2e::world::uid;
use strata_e2e::{World, process, registry};

/// One in each tenth of a build.
const KILLS: u32 = 10;

#[tokio::test]
async fn killed_at_ten_random_moments_of_a_build_it_finishes_what_was_begun() -> Result<()> {
    let world = World::connect().await?;
    let pool = world.pool("killed").await?;
    // the first build pushes the base, which the others find
    pool.configure(&quick("base")).await?;
    let mut known = vec![uid(&pool.succeeds(&[]).await?.0)];
    let start = Instant::now();
    pool.edit(&quick("undisturbed")).await?;
    known.push(uid(&pool.succeeds(&known).await?.0));
    let undisturbed = start.elapsed();

    let controller = world.controller().await?;
    let before = restarts(&controller);
    for attempt in 0..KILLS {
        // std's hasher is seeded anew each time: randomness enough for a moment within a tenth of a build
        let random = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), attempt);
        let tenth = undisturbed / KILLS;
        let moment = tenth * attempt + tenth * u32::try_from(random % 1000)? / 1000;
        pool.edit(&quick(&format!("attempt {attempt}"))).await?;
        tokio::time::sleep(moment).await;
        kill(&controller).await?;
        let (build, image) = pool.succeeds(&known).await.with_context(|| {
            format!(
                "attempt {attempt}, killed after {} of {} ms",
                moment.as_millis(),
                undisturbed.as_millis()
            )
        })?;
        ensure!(registry::holds(&image).await?);
        known.push(uid(&build));
    }
    eventually(
        "every kill to be counted as a restart",
        REACTION,
        || async {
            let now = restarts(&world.pods().get(&controller.name_any()).await?) - before;
            ensure!(now <= i64::from(KILLS), "{now} restarts for {KILLS} kills");
            Ok((now == i64::from(KILLS)).then_some(()))
        },
    )
    .await?;
    let builds = pool.builds().await?;
    ensure!(
        builds.len() == known.len(),
        "{} builds for {} contents",
        builds.len(),
        known.len()
    );
    eventually("all Jobs to be gone", REACTION, || async {
        Ok(pool.jobs().await?.is_empty().then_some(()))
    })
    .await?;
    pool.remove().await
}

fn restarts(controller: &Pod) -> i64 {
    let status = controller.status.as_ref();
    let containers = status.and_then(|status| status.container_statuses.as_ref());
    containers
        .into_iter()
        .flatten()
        .map(|container| i64::from(container.restart_count))
        .sum()
}

async fn kill(controller: &Pod) -> Result<()> {
    let pids = eventually("a running controller", REACTION, || async {
        let pids = process::in_pod(&controller.uid().unwrap_or_default(), "strata-controller")?;
        Ok((!pids.is_empty()).then_some(pids))
    })
    .await?;
    process::kill(&pids);
    Ok(())
}
