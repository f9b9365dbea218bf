//! Whatever happens in whatever order: no image in use is deleted, and none is left over.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use kube::ResourceExt as _;
use kube::api::{Api, DeleteParams, DynamicObject, ListParams, Patch, PatchParams};
use serde_json::{Value, json};
use strata_e2e::fixtures::{quick, slow};
use strata_e2e::wait::{BUILD, eventually};
use strata_e2e::world::{Pool, delete_and_wait, is_true, text};
use strata_e2e::{World, registry};

const OPERATIONS: u32 = 200;

/// The same numbers for the same seed.
struct Chance(u64);

impl Chance {
    /// Below `bound`.
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

/// What the scenario knows of a pool.
struct Known {
    pool: Pool,
    /// Every image that a build was seen with.
    images: BTreeSet<String>,
    /// What the node names, so that it must be there.
    staged: Option<String>,
}

impl Known {
    /// On the node, so that pools and scenarios don't meet.
    fn key(&self) -> String {
        format!("example.com/staged-{}", self.pool.name)
    }

    async fn os_config(&self) -> Result<Option<DynamicObject>> {
        Ok(self
            .pool
            .world
            .os_configs()
            .get_opt(&self.pool.name)
            .await?)
    }

    /// The image that the config's status names.
    async fn adopted(&self) -> Result<Option<String>> {
        let os_config = self.os_config().await?;
        let going = |one: &DynamicObject| one.metadata.deletion_timestamp.is_some();
        let os_config = os_config.filter(|one| !going(one));
        Ok(os_config.and_then(|one| text(&one, "/status/currentImagePullSpec")))
    }

    async fn see(&mut self) -> Result<()> {
        for build in self.pool.builds().await? {
            self.images
                .extend(text(&build, "/status/digestedImagePushSpec"));
        }
        Ok(())
    }

    async fn stage(&self, node: &str, image: Option<&str>) -> Result<()> {
        let patch = json!({"metadata": {"annotations": {self.key(): image}}});
        let nodes = self.pool.world.nodes();
        let parameters = PatchParams::default();
        nodes.patch(node, &parameters, &Patch::Merge(patch)).await?;
        Ok(())
    }

    /// Sets an annotation of the config; one that has gone meanwhile needs none.
    async fn annotate(&self, key: &str, value: &str) -> Result<()> {
        let patch = Patch::Merge(json!({"metadata": {"annotations": {key: value}}}));
        let os_configs = self.pool.world.os_configs();
        let parameters = PatchParams::default();
        match os_configs.patch(&self.pool.name, &parameters, &patch).await {
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            done => Ok(done.map(|_| ())?),
        }
    }

    /// Does something; what it was.
    async fn act(&mut self, chance: &mut Chance, node: &str) -> Result<String> {
        let pool = self.pool.clone();
        let world = &pool.world;
        Ok(match chance.below(14) {
            0..=3 => {
                let variant = chance.below(4).to_string();
                let containerfile = match chance.below(3) {
                    0 => slow(&variant),
                    _ => quick(&variant),
                };
                match self.os_config().await? {
                    None => pool.configure(&containerfile).await?,
                    Some(one) if one.metadata.deletion_timestamp.is_some() => {}
                    Some(_) => pool.edit(&containerfile).await?,
                }
                format!("content {variant}")
            }
            4..=6 => {
                self.settle().await?;
                "settles".to_owned()
            }
            7 => {
                self.annotate("machineconfiguration.openshift.io/rebuild", "")
                    .await?;
                "a rebuild".to_owned()
            }
            8 => {
                let builds = pool.builds().await?;
                let count = u64::try_from(builds.len())?.max(1);
                let chosen = usize::try_from(chance.below(count))?;
                if let Some(build) = builds.get(chosen) {
                    delete(&world.os_builds(), &build.name_any()).await?;
                }
                "a build is deleted".to_owned()
            }
            9..=10 => {
                let image = self.adopted().await?;
                self.stage(node, image.as_deref()).await?;
                // from now on it must stay, if it had not gone before
                self.staged = self
                    .adopted()
                    .await?
                    .filter(|one| image.as_ref() == Some(one));
                format!("the node names {image:?}")
            }
            11 => {
                self.staged = None;
                self.stage(node, None).await?;
                "the node lets go".to_owned()
            }
            12 => {
                let builds = ["all", "2", "1", "0"][usize::try_from(chance.below(4))?];
                self.annotate("strata.image-mode.dev/keep-builds", builds)
                    .await?;
                format!("{builds} builds stay")
            }
            _ => match chance.below(3) {
                0 => {
                    delete(&world.os_configs(), &pool.name).await?;
                    "the config is deleted".to_owned()
                }
                _ => "nothing".to_owned(),
            },
        })
    }

    /// Until the config has what it wants, or there is none.
    async fn settle(&self) -> Result<()> {
        eventually("the config to be ready, or gone", BUILD, || async {
            let os_config = self.os_config().await?;
            Ok(os_config
                .is_none_or(|one| is_true(&one, "Ready"))
                .then_some(()))
        })
        .await
    }
}

/// What has gone meanwhile needn't be deleted.
async fn delete(api: &Api<DynamicObject>, name: &str) -> Result<()> {
    match api.delete(name, &DeleteParams::default()).await {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        done => Ok(done.map(|_| ())?),
    }
}

#[tokio::test]
async fn two_hundred_random_operations_lose_no_image_in_use_and_leave_none() -> Result<()> {
    let seed = match std::env::var("STRATA_SEED") {
        Ok(seed) => seed.parse().context("STRATA_SEED")?,
        Err(_) => u64::from(std::process::id()),
    };
    println!("STRATA_SEED={seed}");
    let mut chance = Chance(seed);
    let world = World::connect().await?;
    let nodes = world.nodes().list(&ListParams::default()).await?.items;
    let node = nodes.first().context("a node")?.name_any();
    let mut pools = Vec::new();
    for name in ["random-a", "random-b"] {
        pools.push(Known {
            pool: world.pool(name).await?,
            images: BTreeSet::new(),
            staged: None,
        });
    }
    for number in 0..OPERATIONS {
        let chosen = usize::try_from(chance.below(2))?;
        let what = pools[chosen].act(&mut chance, &node).await?;
        println!("{number} {}: {what}", pools[chosen].pool.name);
        for known in &mut pools {
            known.see().await?;
            if let Some(image) = &known.staged {
                let there = registry::holds(image).await?;
                ensure!(
                    there,
                    "seed {seed}, {number}: {image}, which {node} names, is gone"
                );
            }
        }
    }
    for known in &mut pools {
        delete_and_wait(
            &world.os_configs(),
            &known.pool.name,
            &DeleteParams::default(),
        )
        .await?;
        known.see().await?;
        if let Some(image) = &known.staged {
            ensure!(
                registry::holds(image).await?,
                "seed {seed}: {image} is gone"
            );
        }
        known.stage(&node, None).await?;
    }
    for known in pools {
        println!("{}: {} images", known.pool.name, known.images.len());
        for image in &known.images {
            eventually(&format!("seed {seed}: {image} to go"), BUILD, || async {
                Ok((!registry::holds(image).await?).then_some(()))
            })
            .await?;
        }
        if let Some(repository) = known.images.first().and_then(|one| one.split_once('@')) {
            let prefix = format!("{}-", known.pool.name);
            let mut tags = registry::tags(repository.0).await?;
            tags.retain(|tag| tag.starts_with(&prefix));
            ensure!(tags.is_empty(), "seed {seed}: {tags:?} are left");
        }
        known.pool.remove().await?;
    }
    let ledger = world.config_maps().get_opt("strata-image-ledger").await?;
    let entries = ledger.and_then(|ledger| ledger.data).unwrap_or_default();
    for entry in entries.values() {
        let entry: Value = serde_json::from_str(entry)?;
        let build = entry["osBuild"].as_str().unwrap_or_default();
        ensure!(
            !build.starts_with("random-"),
            "seed {seed}: {entry} is left"
        );
    }
    Ok(())
}
