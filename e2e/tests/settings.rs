//! Settings that change while the controller runs. Alone in its file: they are everybody's.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures::future::try_join_all;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Event;
use kube::ResourceExt as _;
use kube::api::{DynamicObject, ListParams, Patch, PatchParams};
use serde_json::{Value, json};
use strata_e2e::World;
use strata_e2e::fixtures::quick;
use strata_e2e::wait::{BUILD, REACTION, eventually};
use strata_e2e::world::{Pool, is_true, message, uid};

const PREFIX: &str = "strata.image-mode.dev/";

async fn set(world: &World, data: Value) -> Result<()> {
    let patch = Patch::Merge(json!({"data": data}));
    let config_maps = world.config_maps();
    config_maps
        .patch("strata-settings", &PatchParams::default(), &patch)
        .await?;
    Ok(())
}

async fn annotate(pool: &Pool, annotations: Value) -> Result<()> {
    let patch = Patch::Merge(json!({"metadata": {"annotations": annotations}}));
    let os_configs = pool.world.os_configs();
    os_configs
        .patch(&pool.name, &PatchParams::default(), &patch)
        .await?;
    Ok(())
}

/// The Job of the config's next build, as soon as it is there; the build is waited for as well.
async fn next_job(pool: &Pool, known: &mut Vec<String>) -> Result<Job> {
    let job = eventually("the next Job", REACTION, || async {
        let jobs = pool.jobs().await?;
        Ok(jobs.into_iter().find(|job| {
            let owners = job.owner_references();
            owners.iter().all(|owner| !known.contains(&owner.uid))
        }))
    })
    .await?;
    known.push(uid(&pool.succeeds(known).await?.0));
    Ok(job)
}

fn deadline(job: &Job) -> Option<i64> {
    job.spec.as_ref()?.active_deadline_seconds
}

fn requests(job: &Job) -> BTreeMap<String, String> {
    let pod = job
        .spec
        .as_ref()
        .and_then(|spec| spec.template.spec.as_ref());
    let container = pod.and_then(|pod| pod.containers.first());
    let resources = container.and_then(|container| container.resources.clone());
    let requests = resources.and_then(|resources| resources.requests);
    let requests = requests.into_iter().flatten();
    requests
        .map(|(name, quantity)| (name, quantity.0))
        .collect()
}

/// What events of this reason about the settings say.
async fn complaints(world: &World) -> Result<Vec<String>> {
    let events = world.namespaced::<Event>();
    let which =
        ListParams::default().fields("involvedObject.name=strata-settings,reason=InvalidSettings");
    let events = events.list(&which).await?;
    Ok(events
        .into_iter()
        .filter_map(|event| event.message)
        .collect())
}

#[tokio::test]
async fn settings_are_followed_and_a_mistake_in_them_changes_nothing() -> Result<()> {
    let world = World::connect().await?;
    let controller = world.controller().await?;
    let before = world.config_maps().get("strata-settings").await?;
    let outcome = follow(&world).await;
    let data = json!({
        "STRATA_BUILD_DEADLINE": Value::Null, "STRATA_MAX_BUILDS": Value::Null,
        "STRATA_BUILD_DEDLINE": Value::Null,
    });
    set(&world, data).await?;
    outcome?;
    let after = world.config_maps().get("strata-settings").await?;
    ensure!(
        after.data == before.data,
        "the settings aren't as they were"
    );
    ensure!(
        world.controller().await?.uid() == controller.uid(),
        "the controller has another pod"
    );
    Ok(())
}

async fn follow(world: &World) -> Result<()> {
    let pool = world.pool("settings").await?;
    let mut known = Vec::new();
    set(world, json!({"STRATA_BUILD_DEADLINE": "47m"})).await?;
    eventually("a build with the new deadline", BUILD, || async {
        // the first may be faster than the watch
        match known.is_empty() {
            true => pool.configure(&quick("deadline")).await?,
            false => {
                pool.edit(&quick(&format!("deadline {}", known.len())))
                    .await?
            }
        }
        let mut so_far = known.clone();
        let job = next_job(&pool, &mut so_far).await?;
        Ok((deadline(&job) == Some(47 * 60)).then_some(()))
    })
    .await?;
    known = pool.builds().await?.iter().map(uid).collect();

    set(world, json!({"STRATA_BUILD_DEDLINE": "1h"})).await?;
    let told = eventually("the mistake to be told", REACTION, || async {
        Ok(complaints(world).await?.into_iter().next())
    })
    .await?;
    ensure!(
        told.contains("STRATA_BUILD_DEDLINE is no setting; do you mean STRATA_BUILD_DEADLINE?"),
        "{told}"
    );
    let typo = format!("{PREFIX}build-memory-request");
    annotate(&pool, json!({&typo: "300 Mi"})).await?;
    pool.edit(&quick("of its own")).await?;
    let waiting = eventually(
        "a build that waits for its annotation",
        REACTION,
        || async {
            let builds = pool.builds().await?.into_iter();
            let says = |one: &DynamicObject| {
                let conditions = one.data["status"]["conditions"].to_string();
                !known.contains(&uid(one)) && conditions.contains(&typo)
            };
            Ok(builds.clone().find(says))
        },
    )
    .await?;
    annotate(&pool, json!({&typo: "300Mi"})).await?;
    let job = next_job(&pool, &mut known).await?;
    ensure!(
        known.last() == Some(&uid(&waiting)),
        "another build went on"
    );
    ensure!(requests(&job)["memory"] == "300Mi", "{:?}", requests(&job));
    // of the settings before the mistake
    ensure!(deadline(&job) == Some(47 * 60));
    pool.remove().await?;
    one_after_the_other(world).await
}

/// With one build at a time, the others wait their turn and say so, and all are built in the order of their creation.
async fn one_after_the_other(world: &World) -> Result<()> {
    set(
        world,
        json!({"STRATA_MAX_BUILDS": "1", "STRATA_BUILD_DEDLINE": Value::Null}),
    )
    .await?;
    let names = ["turn-a", "turn-b", "turn-c"];
    let pools = try_join_all(names.map(|name| world.pool(name))).await?;
    for pool in &pools {
        let containerfile = format!("{}RUN sleep 3\n", quick(&pool.name));
        pool.configure(&containerfile).await?;
        // times of creation are whole seconds
        tokio::time::sleep(Duration::from_millis(1100)).await;
    }
    let ends = tokio::time::timeout(2 * BUILD, watch_turns(&pools)).await;
    let ends = ends.context("three builds, one after the other, take too long")??;
    let end = |name: &str| ends.get(name).context("a build without an end");
    ensure!(
        end("turn-a")? <= end("turn-b")? && end("turn-b")? <= end("turn-c")?,
        "not in order: {ends:?}"
    );
    for pool in &pools {
        pool.remove().await?;
    }
    Ok(())
}

/// Until each pool has an image: when its build ended. Never more than one runs, and one has waited for that.
async fn watch_turns(pools: &[Pool]) -> Result<BTreeMap<String, String>> {
    let mut has_waited = false;
    let mut ends = BTreeMap::new();
    while ends.len() < pools.len() {
        let mut running = Vec::new();
        for pool in pools {
            for build in pool.builds().await? {
                if is_true(&build, "Prepared") || is_true(&build, "Building") {
                    running.push(build.name_any());
                }
                let conditions = build.data["status"]["conditions"].to_string();
                has_waited |= conditions.contains("waits for its turn");
                ensure!(!is_true(&build, "Failed"), "{}", message(&build, "Failed"));
                if is_true(&build, "Succeeded") {
                    let end = build.data["status"]["buildEnd"].to_string();
                    ends.insert(pool.name.clone(), end);
                }
            }
        }
        ensure!(running.len() <= 1, "at the same time: {running:?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    ensure!(has_waited, "no build has waited for its turn");
    Ok(ends)
}
