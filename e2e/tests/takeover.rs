//! Builds that machine-os-builder has begun, and what it leaves behind. Alone in its file: it stops the controller.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::ResourceExt as _;
use kube::api::{DeleteParams, DynamicObject, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use strata_e2e::fixtures::{endless, push_secret_name};
use strata_e2e::wait::{BUILD, REACTION, eventually, never};
use strata_e2e::world::{PREFIX, Pool, delete_and_wait, is_true, text, uid};
use strata_e2e::{World, registry};

/// On what machine-os-builder makes for the build `build`; it makes most of it without an owner.
fn left_labels(build: &str) -> Value {
    json!({
        format!("{PREFIX}ephemeral-build-object"): "",
        format!("{PREFIX}on-cluster-layering"): "",
        format!("{PREFIX}machine-os-config"): "taken",
        format!("{PREFIX}machine-os-build"): build,
        format!("{PREFIX}target-machine-config-pool"): "taken",
    })
}

fn digest_of(build: &str, digest: &str) -> Result<ConfigMap> {
    Ok(serde_json::from_value(json!({
        "metadata": {"name": format!("digest-{build}"), "labels": left_labels(build)},
        "data": {"digest": digest},
    }))?)
}

/// Makes the build look as machine-os-builder leaves one: with its finalizer, and nothing that only Strata writes.
async fn make_foreign(world: &World, build: &DynamicObject) -> Result<()> {
    let ours: serde_json::Map<String, Value> = build
        .annotations()
        .keys()
        .filter(|key| key.starts_with("strata."))
        .map(|key| (key.clone(), Value::Null))
        .collect();
    let patch = json!({"metadata": {"finalizers": ["foregroundDeletion"], "annotations": ours}});
    let parameters = PatchParams::default();
    let builds = world.os_builds();
    builds
        .patch(&build.name_any(), &parameters, &Patch::Merge(patch))
        .await?;
    Ok(())
}

/// Puts a Job as machine-os-builder makes it in the place of Strata's: it lasts some seconds, and pushes nothing itself.
async fn replace_job(world: &World, build: &DynamicObject) -> Result<String> {
    let name = format!("build-{}", build.name_any());
    delete_and_wait(&world.jobs(), &name, &DeleteParams::foreground()).await?;
    let job = json!({
        "metadata": {
            "name": name,
            "labels": left_labels(&build.name_any()),
            "ownerReferences": [{
                "apiVersion": "machineconfiguration.openshift.io/v1", "kind": "MachineOSBuild",
                "name": build.name_any(), "uid": uid(build), "controller": true, "blockOwnerDeletion": true,
            }],
        },
        "spec": {"backoffLimit": 3, "completions": 1, "template": {
            "spec": {
                "restartPolicy": "Never",
                "terminationGracePeriodSeconds": 0,
                "containers": [{
                    "name": "image-build", "image": world.base_image, "command": ["sleep", "20"],
                }],
            },
        }},
    });
    let job = serde_json::from_value(job)?;
    let job = world.jobs().create(&PostParams::default(), &job).await?;
    Ok(job.uid().unwrap_or_default())
}

#[tokio::test]
async fn what_the_incumbent_has_begun_is_finished_and_what_it_has_left_goes() -> Result<()> {
    let world = World::connect().await?;
    let pool = world.pool("taken").await?;
    pool.configure(&endless("begun")).await?;
    let begun = pool.build_in("Building", &[]).await?;
    let name = begun.name_any();
    world.stop_controller().await?;
    let lost = digest_of("taken-of-long-ago", "sha256:00")?;
    let config_maps = world.config_maps();
    for config_map in ["digest-taken-of-long-ago", &format!("digest-{name}")] {
        delete_and_wait(&config_maps, config_map, &DeleteParams::default()).await?;
    }
    config_maps.create(&PostParams::default(), &lost).await?;
    let job = replace_job(&world, &begun).await?;
    make_foreign(&world, &begun).await?;
    let tag = text(&begun, "/spec/renderedImagePushSpec").context("a build without a push spec")?;
    registry::copy(&world.builder_image().await?, &tag).await?;
    let digest = registry::digest(&tag).await?;
    let left = digest_of(&name, &digest)?;
    config_maps.create(&PostParams::default(), &left).await?;
    world.start_controller().await?;

    let (built, image) = pool.succeeds(&[]).await?;
    ensure!(uid(&built) == uid(&begun), "it was built again");
    ensure!(image.ends_with(&digest), "{image} isn't {digest}");
    let told = built
        .annotations()
        .get(&format!("{PREFIX}job-uid"))
        .cloned();
    ensure!(told == Some(job.clone()), "{told:?} isn't its Job {job}");
    cleaned(&pool, &name).await?;
    adopted_as_it_is(&pool, &built, &image).await?;

    eventually(
        "what a build that is gone has left to go",
        BUILD,
        || async {
            let left = config_maps.get_opt("digest-taken-of-long-ago").await?;
            Ok(left.is_none().then_some(()))
        },
    )
    .await?;
    pool.remove().await?;
    eventually("the image to go with its build", REACTION, || async {
        Ok((!registry::holds(&image).await?).then_some(()))
    })
    .await
}

/// All that was made for a build goes when it has ended.
async fn cleaned(pool: &Pool, build: &str) -> Result<()> {
    eventually("the Job and the digest to go", REACTION, || async {
        let digest = pool
            .world
            .config_maps()
            .get_opt(&format!("digest-{build}"))
            .await?;
        Ok((pool.jobs().await?.is_empty() && digest.is_none()).then_some(()))
    })
    .await
}

/// A build that succeeded under machine-os-builder is taken over: nothing is built, nothing changes for its config.
async fn adopted_as_it_is(pool: &Pool, built: &DynamicObject, image: &str) -> Result<()> {
    let world = &pool.world;
    world.stop_controller().await?;
    make_foreign(world, built).await?;
    let status = pool.os_config().await?.data["status"].clone();
    world.start_controller().await?;
    eventually("the build to have Strata's finalizer", REACTION, || async {
        let now = world.os_builds().get(&built.name_any()).await?;
        Ok((now.finalizers().len() == 2).then_some(()))
    })
    .await?;
    never("a takeover", Duration::from_secs(5), || async {
        let builds = pool.builds().await?;
        let wrong = match builds.as_slice() {
            [only] if uid(only) == uid(built) && is_true(only, "Succeeded") => None,
            others => Some(format!("builds {others:?}")),
        };
        let jobs = pool.jobs().await?;
        let now = pool.os_config().await?.data["status"].clone();
        let changed = (now != status).then(|| format!("the status became {now}"));
        Ok(wrong
            .or_else(|| (!jobs.is_empty()).then(|| "a Job".to_owned()))
            .or(changed))
    })
    .await?;
    // its nodes can still run it
    let secret = push_secret_name("taken");
    let command = ["strata-builder", "--version"];
    let output = world
        .run_image("taken-look", image, &secret, &command)
        .await?;
    ensure!(output.contains("strata-builder"), "{output:?}");
    Ok(())
}
