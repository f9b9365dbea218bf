//! The controller killed and started again. Alone in its file: it stops work for every other scenario while it runs.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kube::api::ListParams;
use strata_e2e::fixtures::quick;
use strata_e2e::wait::{REACTION, eventually};
use strata_e2e::world::uid;
use strata_e2e::{World, process, registry};

/// Kills within one build; the span in which they fall is longer than a build on a quiet machine.
const KILLS: u32 = 10;

#[tokio::test]
async fn killed_at_ten_random_moments_of_a_build_it_finishes_what_was_begun() -> Result<()> {
    let world = World::connect().await?;
    let pool = world.pool("killed").await?;
    let mut known: Vec<String> = Vec::new();
    for attempt in 0..KILLS {
        let containerfile = quick(&format!("attempt {attempt}"));
        match attempt {
            0 => pool.configure(&containerfile).await?,
            _ => pool.edit(&containerfile).await?,
        }
        // std's hasher is seeded anew in each process: randomness enough for a moment within six seconds
        let random = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), attempt);
        let moment = Duration::from_millis(random % 6000);
        tokio::time::sleep(moment).await;
        kill_controller(&world).await?;
        let (build, image) = pool.succeeds(&known).await.with_context(|| {
            format!("attempt {attempt}, killed after {} ms", moment.as_millis())
        })?;
        ensure!(registry::holds(&image).await?);
        known.push(uid(&build));
    }
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

async fn kill_controller(world: &World) -> Result<()> {
    let pids = eventually("a running controller", REACTION, || async {
        let pods = world
            .pods()
            .list(&ListParams::default().labels("k8s-app=machine-os-builder"))
            .await?
            .items;
        let mut pids = Vec::new();
        for pod in pods {
            pids.extend(process::in_pod(
                pod.metadata.uid.as_deref().unwrap_or("none"),
                "strata-controller",
            )?);
        }
        Ok((!pids.is_empty()).then_some(pids))
    })
    .await?;
    process::kill(&pids);
    Ok(())
}
