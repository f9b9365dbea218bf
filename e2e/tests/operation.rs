//! The controller as a program in a cluster: its endpoints, and what becomes of its Lease and its work when it stops. One scenario: it stops the
//! controller that others would look at.

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Pod;
use kube::api::DeleteParams;
use kube::{Api, ResourceExt as _};
use strata_e2e::fixtures::slow;
use strata_e2e::wait::{REACTION, eventually};
use strata_e2e::world::{becomes, gone, is_ready, uid};
use strata_e2e::{World, registry};

#[tokio::test]
async fn one_works_the_other_waits_and_takes_over_what_a_stopped_one_leaves() -> Result<()> {
    let world = World::connect().await?;
    let leases: Api<Lease> = world.namespaced();
    let leader = world.controller().await?;
    serves(&world, &leader, "healthz", "ok").await?;
    serves(&world, &leader, "readyz", "ok, leading").await?;
    serves(&world, &leader, "metrics", "# TYPE ").await?;

    world.scale(2).await?;
    let outcome = hand_over(&world, &leases, &leader).await;
    // however that went: the next scenario expects one
    world.scale(1).await?;
    outcome?;
    eventually("one controller to be left", REACTION, || async {
        Ok((world.controllers().await?.len() == 1).then_some(()))
    })
    .await?;
    world.controller().await?;
    Ok(())
}

/// With two: the one that doesn't lead waits, and goes on with what the leader had begun when that is stopped.
async fn hand_over(world: &World, leases: &Api<Lease>, leader: &Pod) -> Result<()> {
    let other = eventually("a second controller to be ready", REACTION, || async {
        let pods = world.controllers().await?;
        Ok(pods
            .into_iter()
            .find(|pod| is_ready(pod) && pod.name_any() != leader.name_any()))
    })
    .await?;
    serves(world, &other, "healthz", "ok").await?;
    serves(world, &other, "readyz", "ok, standby").await?;
    serves(world, leader, "readyz", "ok, leading").await?;

    let pool = world.pool("stopping").await?;
    pool.configure(&slow("stopping")).await?;
    let build = pool.build_in("Building", &[]).await?;
    let lease = leases.get("machine-os-builder").await?;
    ensure!(holder(&lease) == leader.name_any(), "{lease:?}");
    let politely = DeleteParams::default();
    world.pods().delete(&leader.name_any(), &politely).await?;
    // given back, not left to expire
    let released = becomes(leases, &lease, "held by nobody", |lease| {
        holder(lease).is_empty()
    })
    .await?;
    becomes(leases, &released, "held by another", |lease| {
        ![String::new(), leader.name_any()].contains(&holder(lease))
    })
    .await?;
    gone(&world.pods(), &leader.name_any()).await?;
    let (succeeded, image) = pool.succeeds(&[]).await?;
    ensure!(uid(&succeeded) == uid(&build), "it was built again");
    ensure!(registry::holds(&image).await?);
    let successor = world.controller().await?;
    serves(world, &successor, "readyz", "ok, leading").await?;
    pool.remove().await
}

fn holder(lease: &Lease) -> String {
    let spec = lease.spec.as_ref();
    spec.and_then(|spec| spec.holder_identity.clone())
        .unwrap_or_default()
}

/// Waits until the pod's answer to `path` holds `wanted`.
async fn serves(world: &World, pod: &Pod, path: &str, wanted: &str) -> Result<()> {
    let (namespace, name) = (&world.namespace, pod.name_any());
    let url = format!("/api/v1/namespaces/{namespace}/pods/{name}:8797/proxy/{path}");
    let what = format!("{name} to say {wanted:?} at /{path}");
    eventually(&what, REACTION, || async {
        let request = http::Request::get(&url).body(Vec::new())?;
        let answer = world.client.request_text(request).await.context("ask")?;
        Ok(answer.contains(wanted).then_some(()))
    })
    .await
}
