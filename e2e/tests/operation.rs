//! The controller as a program in a cluster: its Lease, its endpoints, its stop.

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::coordination::v1::Lease;
use kube::Api;
use kube::api::ListParams;
use strata_e2e::World;
use strata_e2e::wait::{REACTION, eventually};

#[tokio::test]
async fn the_leader_holds_the_incumbents_lease() -> Result<()> {
    let world = World::connect().await?;
    let leases: Api<Lease> = world.namespaced();
    let holder = eventually("a holder of the Lease", REACTION, || async {
        let lease = leases.get_opt("machine-os-builder").await?;
        Ok(lease
            .and_then(|lease| lease.spec?.holder_identity)
            .filter(|holder| !holder.is_empty()))
    })
    .await?;
    let pods = world
        .pods()
        .list(&ListParams::default().labels("k8s-app=machine-os-builder"))
        .await?
        .items;
    ensure!(
        pods.iter()
            .any(|pod| holder.starts_with(pod.metadata.name.as_deref().unwrap_or("none"))),
        "{holder} is none of the controller's pods"
    );
    Ok(())
}

#[tokio::test]
async fn health_readiness_and_metrics_are_served() -> Result<()> {
    let world = World::connect().await?;
    let pod = eventually("a ready controller", REACTION, || async {
        let pods = world
            .pods()
            .list(&ListParams::default().labels("k8s-app=machine-os-builder"))
            .await?
            .items;
        Ok(pods.into_iter().find(|pod| {
            pod.status
                .as_ref()
                .and_then(|s| s.conditions.as_ref())
                .is_some_and(|c| c.iter().any(|c| c.type_ == "Ready" && c.status == "True"))
        }))
    })
    .await?;
    let name = pod.metadata.name.context("a pod has a name")?;
    for (path, wanted) in [("healthz", "ok"), ("readyz", "ok"), ("metrics", "# TYPE ")] {
        let url = format!(
            "/api/v1/namespaces/{}/pods/{name}:8797/proxy/{path}",
            world.namespace
        );
        let answer = world
            .client
            .request_text(http::Request::get(&url).body(Vec::new())?)
            .await?;
        ensure!(answer.contains(wanted), "/{path} says {answer}");
    }
    Ok(())
}
