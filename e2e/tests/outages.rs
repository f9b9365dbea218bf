//! The cluster's own programs stall and restart while a build runs. Alone in its file: everybody's apiserver is away.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kube::ResourceExt as _;
use strata_e2e::fixtures::slow;
use strata_e2e::wait::{BUILD, eventually};
use strata_e2e::world::{Pool, is_ready, uid};
use strata_e2e::{World, node, registry};

/// Longer than any request of the controller should take, shorter than its Lease.
const STALL: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, Debug)]
enum Outage {
    ApiserverStalls,
    ApiserverRestarts,
    EtcdRestarts,
    ControllerManagerRestarts,
    KubeletRestarts,
    ContainerdRestarts,
    RegistryRestarts,
}

impl Outage {
    const ALL: [Self; 7] = [
        Self::ApiserverStalls,
        Self::ApiserverRestarts,
        Self::EtcdRestarts,
        Self::ControllerManagerRestarts,
        Self::KubeletRestarts,
        Self::ContainerdRestarts,
        Self::RegistryRestarts,
    ];

    async fn happen(self) -> Result<()> {
        match self {
            Self::ApiserverStalls => node::stall("apiserver", STALL).await,
            Self::ApiserverRestarts => node::restart("apiserver").await,
            Self::EtcdRestarts => node::restart("etcd").await,
            Self::ControllerManagerRestarts => node::restart("controller-manager").await,
            Self::KubeletRestarts => node::restart("kubelet").await,
            Self::ContainerdRestarts => node::restart("containerd").await,
            Self::RegistryRestarts => node::restart("registry-auth").await,
        }
    }
}

#[tokio::test]
async fn a_build_goes_on_through_every_outage_of_the_cluster_and_runs_once() -> Result<()> {
    let world = World::connect().await?;
    let pool = world.pool("outages").await?;
    pool.configure(&slow("undisturbed")).await?;
    let mut known = vec![uid(&pool.succeeds(&[]).await?.0)];
    for outage in Outage::ALL {
        let start = Instant::now();
        through(&world, &pool, outage, &mut known)
            .await
            .with_context(|| format!("{outage:?}"))?;
        println!("{outage:?}: built after {} s", start.elapsed().as_secs());
    }
    pool.remove().await
}

async fn through(
    world: &World,
    pool: &Pool,
    outage: Outage,
    known: &mut Vec<String>,
) -> Result<()> {
    let controller = world.controller().await?;
    pool.edit(&slow(&format!("{outage:?}"))).await?;
    pool.build_in("Building", known).await?;
    outage.happen().await?;
    // until then this process is told of nothing either
    eventually("the apiserver to answer", BUILD, || async {
        let nodes = world.nodes().get("node1").await;
        Ok(nodes.is_ok().then_some(()))
    })
    .await?;
    let (build, image) = pool.succeeds(known).await?;
    ensure!(registry::holds(&image).await?, "{image} isn't there");
    known.push(uid(&build));
    let builds = pool.builds().await?.len();
    ensure!(builds == known.len(), "{builds} builds");
    let now = world.pods().get(&controller.name_any()).await?;
    ensure!(
        now.uid() == controller.uid() && is_ready(&now),
        "the controller's pod was replaced"
    );
    Ok(())
}
