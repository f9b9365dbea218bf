//! An image that has lost its build while nobody looked is found again. Alone in its file: the controller is away for a while.

use anyhow::{Context, Result, ensure};
use kube::api::{DeleteParams, Patch, PatchParams};
use kube::{Api, ResourceExt as _};
use serde_json::{Value, json};
use strata_e2e::fixtures::quick;
use strata_e2e::wait::{REACTION, eventually};
use strata_e2e::world::{Pool, gone, uid};
use strata_e2e::{World, registry};

const LEDGER: &str = "strata-image-ledger";

#[tokio::test]
async fn an_image_without_a_build_is_entered_in_the_ledger_and_deleted_after_its_grace()
-> Result<()> {
    let world = World::connect().await?;
    let pool = world.pool("unseen").await?;
    pool.configure(&quick("first")).await?;
    let (build, image) = pool.succeeds(&[]).await?;
    world.stop_controller().await?;
    let forgotten = forgotten(&world, &pool).await;
    world.start_controller().await?;
    forgotten?;
    ensure!(registry::holds(&image).await?, "{image} went at once");

    // the look at the start needs to know the repository
    pool.configure(&quick("second")).await?;
    pool.succeeds(&[uid(&build)]).await?;
    world.stop_controller().await?;
    world.start_controller().await?;
    let (key, mut entry) = eventually("the entry of the image", REACTION, || async {
        let ledger = world.config_maps().get_opt(LEDGER).await?;
        let entries = ledger.and_then(|ledger| ledger.data).unwrap_or_default();
        Ok(entries
            .into_iter()
            .find(|(_, entry)| entry.contains(&image)))
    })
    .await
    .map(|(key, entry)| anyhow::Ok((key, serde_json::from_str::<Value>(&entry)?)))??;
    ensure!(entry["orphanOf"].as_str() == Some(&uid(&build)), "{entry}");
    ensure!(
        registry::holds(&image).await?,
        "{image} went before its grace"
    );

    entry["since"] = "2020-01-01T00:00:00Z".into();
    let patch = Patch::Merge(json!({"data": {key: entry.to_string()}}));
    let ledger = world.config_maps();
    ledger
        .patch(LEDGER, &PatchParams::default(), &patch)
        .await?;
    // an edit of anything that can name an image makes the controller look
    pool.edit(&quick("third")).await?;
    eventually("the image to go", REACTION, || async {
        Ok((!registry::holds(&image).await?).then_some(()))
    })
    .await?;
    pool.remove().await
}

/// With no controller: takes our finalizers off, deletes config and build.
async fn forgotten(world: &World, pool: &Pool) -> Result<()> {
    let free = Patch::Merge(json!({"metadata": {"finalizers": Value::Null}}));
    let free = |api: Api<_>, name: String| {
        let free = &free;
        async move {
            api.patch(&name, &PatchParams::default(), free).await?;
            api.delete(&name, &DeleteParams::default()).await?;
            gone(&api, &name).await
        }
    };
    for build in pool.builds().await? {
        free(world.os_builds(), build.name_any()).await?;
    }
    free(world.os_configs(), pool.name.clone())
        .await
        .context("the config")
}
