//! What goes when a build or a config is deleted, and what stays.

use anyhow::{Context, Result, ensure};
use kube::ResourceExt as _;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use serde_json::{Value, json};
use strata_e2e::fixtures::{endless, quick};
use strata_e2e::wait::{BUILD, REACTION, eventually};
use strata_e2e::world::{PREFIX, delete_and_wait, gone, uid};
use strata_e2e::{World, registry};

#[tokio::test]
async fn deleting_a_running_build_stops_its_job_and_the_config_starts_another() -> Result<()> {
    let world = World::connect().await?;
    let pool = world.pool("stopped").await?;
    pool.configure(&endless("stop")).await?;
    let build = pool.build_in("Building", &[]).await?;
    let job = world
        .jobs()
        .get(&format!("build-{}", build.name_any()))
        .await?;
    world
        .os_builds()
        .delete(&build.name_any(), &DeleteParams::default())
        .await?;
    eventually("the Job to go", REACTION, || async {
        Ok(world
            .jobs()
            .get_opt(&job.name_any())
            .await?
            .is_none_or(|now| now.metadata.uid != job.metadata.uid)
            .then_some(()))
    })
    .await?;
    eventually(
        "another build, for the config still wants one",
        REACTION,
        || async {
            Ok(pool
                .builds()
                .await?
                .iter()
                .any(|b| b.metadata.uid != build.metadata.uid)
                .then_some(()))
        },
    )
    .await?;
    pool.remove().await
}

#[tokio::test]
async fn deleting_a_succeeded_build_that_nothing_needs_deletes_its_image() -> Result<()> {
    let world = World::connect().await?;
    let pool = world.pool("deleted").await?;
    pool.configure(&quick("old")).await?;
    let (old, old_image) = pool.succeeds(&[]).await?;
    pool.edit(&quick("new")).await?;
    let (_, new_image) = pool
        .succeeds(&[old.metadata.uid.clone().unwrap_or_default()])
        .await?;
    ensure!(
        registry::holds(&old_image).await?,
        "a succeeded build keeps its image"
    );
    delete_and_wait(
        &world.os_builds(),
        &old.name_any(),
        &DeleteParams::default(),
    )
    .await?;
    ensure!(
        !registry::holds(&old_image).await?,
        "{old_image} is still there"
    );
    ensure!(registry::holds(&new_image).await?, "{new_image} is needed");
    pool.remove().await
}

#[tokio::test]
async fn what_is_signed_goes_with_its_signature() -> Result<()> {
    let world = World::connect().await?;
    let pool = world.pool("signed").await?;
    pool.configure(&quick("signed")).await?;
    let (_, image) = pool.succeeds(&[]).await?;
    let (repository, digest) = image.split_once('@').context("a digest")?;
    let hex = digest.trim_start_matches("sha256:");
    // where cosign keeps it; for the registry any manifest but the image's own does
    let signature = format!("{repository}:sha256-{hex}.sig");
    registry::copy(&world.builder_image().await?, &signature).await?;
    delete_and_wait(&world.os_configs(), &pool.name, &DeleteParams::default()).await?;
    ensure!(!registry::holds(&image).await?, "{image} is still there");
    ensure!(!registry::holds(&signature).await?, "{signature} is left");
    pool.remove().await
}

#[tokio::test]
async fn an_image_that_is_to_be_kept_stays_when_its_build_is_deleted() -> Result<()> {
    let world = World::connect().await?;
    let pool = world.pool("kept").await?;
    pool.configure(&quick("kept")).await?;
    let (build, image) = pool.succeeds(&[]).await?;
    let annotations = json!({"strata.image-mode.dev/keep-image": ""});
    let patch = Patch::Merge(json!({"metadata": {"annotations": annotations}}));
    let builds = world.os_builds();
    builds
        .patch(&build.name_any(), &PatchParams::default(), &patch)
        .await?;
    delete_and_wait(&world.os_configs(), &pool.name, &DeleteParams::default()).await?;
    ensure!(registry::holds(&image).await?, "{image} was deleted");
    let ledger = world.config_maps().get("strata-image-ledger").await?;
    let entries = ledger.data.unwrap_or_default();
    let entry = entries.iter().find(|(_, value)| value.contains(&image));
    let (key, _) = entry.context("an entry of the ledger")?;
    // and goes when the entry does, by whoever wants it gone
    let patch = Patch::Merge(json!({"data": {key: null}}));
    let config_maps = world.config_maps();
    config_maps
        .patch("strata-image-ledger", &PatchParams::default(), &patch)
        .await?;
    pool.remove().await
}

#[tokio::test]
async fn only_the_newest_builds_stay_and_what_a_node_runs() -> Result<()> {
    let world = World::connect().await?;
    let pool = world.pool("newest").await?;
    let mut images = Vec::new();
    let mut uids: Vec<String> = Vec::new();
    for name in ["first", "second", "third"] {
        match images.is_empty() {
            true => pool.configure(&quick(name)).await?,
            false => pool.edit(&quick(name)).await?,
        }
        let (build, image) = pool.succeeds(&uids).await?;
        uids.push(uid(&build));
        images.push(image);
    }
    let nodes = world.nodes().list(&ListParams::default()).await?.items;
    let node = nodes.first().context("a node")?.name_any();
    names(&world, &node, Some(&images[0])).await?;
    let annotations = json!({"strata.image-mode.dev/keep-builds": "1"});
    let patch = Patch::Merge(json!({"metadata": {"annotations": annotations}}));
    let patched = world.os_configs();
    patched
        .patch(&pool.name, &PatchParams::default(), &patch)
        .await?;
    let second = eventually("the second image to go", BUILD, || async {
        Ok((!registry::holds(&images[1]).await?).then_some(()))
    })
    .await;
    // a build goes after its image
    let builds = eventually("what is wanted and what a node runs", REACTION, || async {
        let left: Vec<String> = pool.builds().await?.iter().map(uid).collect();
        Ok((left == [uids[0].clone(), uids[2].clone()]).then_some(()))
    })
    .await;
    let kept = registry::holds(&images[0]).await;
    names(&world, &node, None).await?;
    second?;
    ensure!(
        kept?,
        "{} was deleted though node {node} runs it",
        images[0]
    );
    ensure!(
        registry::holds(&images[2]).await?,
        "{} is wanted",
        images[2]
    );
    builds?;
    pool.remove().await
}

#[tokio::test]
async fn gc_tells_what_would_go_and_a_dry_run_changes_nothing() -> Result<()> {
    let world = World::connect().await?;
    let pool = world.pool("told").await?;
    pool.configure(&quick("old")).await?;
    let (old, old_image) = pool.succeeds(&[]).await?;
    pool.edit(&quick("new")).await?;
    let (new, new_image) = pool.succeeds(&[uid(&old)]).await?;
    let (repository, _) = new_image.split_once('@').context("a digest")?;
    let by_hand = format!("{repository}:by-hand");
    registry::copy(&world.builder_image().await?, &by_hand).await?;
    let found = gc(&world, &["--dry-run", "--output", "json"]).await?;
    let found: Value = serde_json::from_str(&found)?;
    let fate = |digest: &str| -> Option<(String, String)> {
        let images = found["images"].as_array()?.iter();
        let mut images = images.filter(|row| row["repository"] == repository);
        let row = images.find(|row| row["digest"] == digest)?;
        let text = |key: &str| row[key].as_str().unwrap_or_default().to_owned();
        Some((text("fate"), text("why")))
    };
    for (image, wanted, why) in [
        (
            &old_image,
            "stays",
            format!("MachineOSBuild {} names it", old.name_any()),
        ),
        (
            &new_image,
            "stays",
            format!("MachineOSConfig {} names it", pool.name),
        ),
    ] {
        let digest = image.split_once('@').map_or("", |(_, digest)| digest);
        ensure!(fate(digest) == Some((wanted.to_owned(), why)), "{found:#}");
    }
    let digest = registry::digest(&by_hand).await?;
    let not_ours = Some(("not-ours".to_owned(), "no build made it".to_owned()));
    ensure!(fate(&digest) == not_ours, "{found:#}");
    ensure!(registry::holds(&old_image).await? && registry::holds(&by_hand).await?);
    // the same for all configs would reach other scenarios' pools
    let table = gc(&world, &["--dry-run"]).await?;
    ensure!(
        table.contains("by-hand") && table.contains("go and free"),
        "{table}"
    );
    ensure!(pool.builds().await?.len() == 2, "{}", new.name_any());
    pool.remove().await
}

/// What the controller's program prints.
async fn gc(world: &World, flags: &[&str]) -> Result<String> {
    let program = std::env::var("STRATA_CONTROLLER").context("`make test` sets it")?;
    let output = tokio::process::Command::new(program)
        .arg("gc")
        .args(flags)
        .env("STRATA_NAMESPACE", &world.namespace)
        .output()
        .await?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{complaint}");
    Ok(String::from_utf8(output.stdout)?)
}

#[tokio::test]
async fn deleting_the_config_takes_builds_jobs_secrets_and_images_away() -> Result<()> {
    let world = World::connect().await?;
    let pool = world.pool("taken").await?;
    pool.configure(&quick("one")).await?;
    let (first, first_image) = pool.succeeds(&[]).await?;
    pool.edit(&endless("two")).await?;
    let second = pool
        .build_in(
            "Building",
            &[first.metadata.uid.clone().unwrap_or_default()],
        )
        .await?;
    delete_and_wait(&world.os_configs(), "taken", &DeleteParams::default()).await?;
    ensure!(pool.builds().await?.is_empty());
    gone(&world.jobs(), &format!("build-{}", second.name_any())).await?;
    let labelled = ListParams::default().labels(&format!("{PREFIX}machine-os-config=taken"));
    eventually("ConfigMaps and Secrets to go", REACTION, || async {
        let left = world.config_maps().list(&labelled).await?.items.len()
            + world.secrets().list(&labelled).await?.items.len();
        Ok((left == 0).then_some(()))
    })
    .await?;
    ensure!(!registry::holds(&first_image).await?);
    pool.remove().await
}

#[tokio::test]
async fn an_image_that_a_node_names_stays_until_the_node_lets_go() -> Result<()> {
    let world = World::connect().await?;
    let pool = world.pool("needed").await?;
    pool.configure(&quick("needed")).await?;
    let (_, image) = pool.succeeds(&[]).await?;
    let nodes = world.nodes().list(&ListParams::default()).await?.items;
    let node = nodes.first().context("a node")?.name_any();
    names(&world, &node, Some(&image)).await?;
    // the config and its builds go; the push secret stays, the image is deleted with it later
    let deleted = delete_and_wait(&world.os_configs(), &pool.name, &DeleteParams::default()).await;
    let builds = pool.builds().await;
    let kept = registry::holds(&image).await;
    names(&world, &node, None).await?;
    deleted?;
    ensure!(builds?.is_empty());
    ensure!(kept?, "{image} was deleted though node {node} runs it");
    eventually(
        "the image to go, for nothing names it now",
        BUILD,
        || async { Ok((!registry::holds(&image).await?).then_some(())) },
    )
    .await?;
    pool.remove().await
}

/// Makes the node's annotation say that it runs `image`.
async fn names(world: &World, node: &str, image: Option<&str>) -> Result<()> {
    let annotations = json!({format!("{PREFIX}currentImage"): image});
    let patch = Patch::Merge(json!({"metadata": {"annotations": annotations}}));
    let nodes = world.nodes();
    nodes.patch(node, &PatchParams::default(), &patch).await?;
    Ok(())
}
