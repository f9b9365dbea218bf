//! What machine-os-builder has left of builds, in every state. Alone in its file: it stops the controller.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::apps::v1::Deployment;
use kube::ResourceExt as _;
use kube::api::{DeleteParams, DynamicObject, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use strata_e2e::fixtures::quick;
use strata_e2e::wait::{BUILD, eventually, never};
use strata_e2e::world::{PREFIX, Pool, delete_and_wait, is_true, object, text, uid};
use strata_e2e::{World, registry};

/// The five conditions as machine-os-builder writes them, one of them True.
fn conditions(holds: &str) -> Value {
    let told = [
        ("Prepared", "Prepared", "Build Prepared and Pending"),
        ("Building", "Building", "Image Build In Progress"),
        ("Failed", "Failed", "Build Failed"),
        ("Interrupted", "Interrupted", "Build Interrupted"),
        ("Succeeded", "Ready", "Build Ready"),
    ];
    told.map(|(kind, reason, message)| {
        let status = if kind == holds { "True" } else { "False" };
        json!({
            "type": kind, "status": status, "reason": reason, "message": message,
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        })
    })
    .into_iter()
    .collect()
}

/// Puts a build as machine-os-builder creates it in the place of `build`, with this status.
async fn recreate(world: &World, build: &DynamicObject, status: Value) -> Result<DynamicObject> {
    let (name, builds) = (build.name_any(), world.os_builds());
    let none = Patch::Merge(json!({"metadata": {"finalizers": []}}));
    builds.patch(&name, &PatchParams::default(), &none).await?;
    delete_and_wait(&builds, &name, &DeleteParams::background()).await?;
    let mut labels = build.labels().clone();
    labels.retain(|key, _| key.starts_with(PREFIX));
    let secret = format!("{PREFIX}rendered-image-push-secret");
    let new = object(json!({
        "apiVersion": "machineconfiguration.openshift.io/v1", "kind": "MachineOSBuild",
        "metadata": {
            "name": name, "labels": labels, "finalizers": ["foregroundDeletion"],
            "annotations": {&secret: build.annotations()[&secret]},
            "ownerReferences": build.owner_references(),
        },
        "spec": build.data["spec"],
    }))?;
    let made = builds.create(&PostParams::default(), &new).await?;
    if !status.is_null() {
        let status = Patch::Merge(json!({"status": status}));
        builds
            .patch_status(&name, &PatchParams::default(), &status)
            .await?;
    }
    Ok(made)
}

/// How machine-os-builder has left a build, and what becomes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Left {
    /// It failed: it stays failed, and nothing is built before something changes.
    Failed,
    /// It was interrupted: the same.
    Interrupted,
    /// It was created, and its ConfigMap, but no Job: the same object is built.
    HalfCreated,
    /// The config names it, and it isn't there: it is built.
    Named,
    /// It has succeeded, and the config doesn't say so yet: its image is taken.
    Unadopted,
    /// It is being deleted, held by the finalizer that no garbage collector took off: it goes, its image too, and another is built.
    HalfDeleted,
}

impl Left {
    const ALL: [Self; 6] = [
        Self::Failed,
        Self::Interrupted,
        Self::HalfCreated,
        Self::Named,
        Self::Unadopted,
        Self::HalfDeleted,
    ];

    fn pool(self) -> String {
        format!("left-{self:?}").to_ascii_lowercase()
    }

    /// With no controller there, makes it so; what the build is afterwards.
    async fn make(
        self,
        world: &World,
        pool: &Pool,
        built: &DynamicObject,
    ) -> Result<DynamicObject> {
        let name = built.name_any();
        let ended = |condition: &str| {
            json!({
                "conditions": conditions(condition),
                "buildStart": "2026-01-01T00:00:00Z", "buildEnd": "2026-01-01T00:01:00Z",
            })
        };
        let image = text(built, "/status/digestedImagePushSpec").context("an image")?;
        let left = match self {
            Self::Failed => recreate(world, built, ended("Failed")).await?,
            Self::Interrupted => recreate(world, built, ended("Interrupted")).await?,
            Self::HalfCreated | Self::Named => recreate(world, built, Value::Null).await?,
            Self::Unadopted | Self::HalfDeleted => {
                let mut status = ended("Succeeded");
                status["digestedImagePushSpec"] = json!(image);
                recreate(world, built, status).await?
            }
        };
        let config = json!({"metadata": {
            "finalizers": [],
            "annotations": {format!("{PREFIX}current-machine-os-build"): name},
        }});
        let configs = world.os_configs();
        let parameters = PatchParams::default();
        configs
            .patch(&pool.name, &parameters, &Patch::Merge(config))
            .await?;
        let nothing = Patch::Merge(json!({"status": Value::Null}));
        configs
            .patch_status(&pool.name, &parameters, &nothing)
            .await?;
        match self {
            Self::HalfCreated => {
                let made = serde_json::from_value(json!({
                    "metadata": {"name": format!("containerfile-{name}"), "labels": {
                        format!("{PREFIX}ephemeral-build-object"): "",
                        format!("{PREFIX}on-cluster-layering"): "",
                        format!("{PREFIX}machine-os-build"): name,
                    }},
                    "data": {"Containerfile": "FROM of-another-time"},
                }))?;
                let config_maps = world.config_maps();
                config_maps.create(&PostParams::default(), &made).await?;
            }
            Self::Named => {
                let none = Patch::Merge(json!({"metadata": {"finalizers": []}}));
                let builds = world.os_builds();
                builds.patch(&name, &parameters, &none).await?;
                delete_and_wait(&builds, &name, &DeleteParams::background()).await?;
            }
            Self::HalfDeleted => {
                let builds = world.os_builds();
                let held =
                    json!({"metadata": {"finalizers": ["foregroundDeletion", "example.com/held"]}});
                builds
                    .patch(&name, &parameters, &Patch::Merge(held))
                    .await?;
                builds.delete(&name, &DeleteParams::foreground()).await?;
            }
            Self::Failed | Self::Interrupted | Self::Unadopted => {}
        }
        Ok(left)
    }

    /// What Strata comes to.
    async fn ends_well(self, world: &World, pool: &Pool, left: &DynamicObject) -> Result<()> {
        match self {
            Self::Failed | Self::Interrupted => {
                let condition = format!("{self:?}");
                never("a build", Duration::from_secs(5), || async {
                    let builds = pool.builds().await?;
                    let same = matches!(builds.as_slice(), [only] if uid(only) == uid(left) && is_true(only, &condition));
                    Ok((!same).then(|| format!("{builds:?}")))
                })
                .await?;
                pool.request_rebuild().await?;
                pool.succeeds(&[uid(left)]).await?;
            }
            Self::HalfCreated | Self::Unadopted => {
                let (built, _) = pool.succeeds(&[]).await?;
                ensure!(uid(&built) == uid(left), "another was built");
            }
            Self::Named => {
                let (built, _) = pool.succeeds(&[uid(left)]).await?;
                ensure!(built.name_any() == left.name_any());
            }
            Self::HalfDeleted => {
                // whoever held it lets go
                let free = Patch::Merge(json!({"metadata": {"finalizers": []}}));
                let builds = world.os_builds();
                builds
                    .patch(&left.name_any(), &PatchParams::default(), &free)
                    .await?;
                pool.succeeds(&[uid(left)]).await?;
            }
        }
        Ok(())
    }
}

#[tokio::test]
async fn builds_in_every_state_are_taken_over_and_given_back() -> Result<()> {
    let world = World::connect().await?;
    let mut lefts = Vec::new();
    for left in Left::ALL {
        let pool = world.pool(&left.pool()).await?;
        pool.configure(&quick(&pool.name)).await?;
        lefts.push((left, pool));
    }
    let mut made = Vec::new();
    for (left, pool) in lefts {
        let built = pool.succeeds(&[]).await?.0;
        made.push((left, pool, built));
    }
    world.stop_controller().await?;
    for (left, pool, build) in &mut made {
        let now = left.make(&world, pool, build).await;
        *build = now.with_context(|| format!("make {left:?}"))?;
    }
    world.start_controller().await?;
    for (left, pool, build) in &made {
        let ended = left.ends_well(&world, pool, build).await;
        ended.with_context(|| format!("{left:?}"))?;
    }
    for (_, pool, _) in made {
        pool.remove().await?;
    }
    give_back(&world).await
}

async fn hand_back(world: &World, value: Value) -> Result<()> {
    let variable = json!({"name": "STRATA_HAND_BACK", "value": value});
    let variable = match value {
        Value::Null => json!({"name": "STRATA_HAND_BACK", "$patch": "delete"}),
        _ => variable,
    };
    let patch = json!({"spec": {"template": {"spec": {"containers": [
        {"name": "strata-controller", "env": [variable]},
    ]}}}});
    let deployments = world.namespaced::<Deployment>();
    let parameters = PatchParams::default();
    deployments
        .patch("strata-controller", &parameters, &Patch::Strategic(patch))
        .await?;
    Ok(())
}

/// What is given back has nothing of Strata's that would hold it, and is as it was.
async fn give_back(world: &World) -> Result<()> {
    let pool = world.pool("given-back").await?;
    pool.configure(&quick("given-back")).await?;
    let (built, image) = pool.succeeds(&[]).await?;
    let status = pool.os_config().await?.data["status"].clone();
    hand_back(world, json!("true")).await?;
    let freed = eventually("finalizers of ours to be off", BUILD, || async {
        let build = world.os_builds().get(&built.name_any()).await?;
        let config = pool.os_config().await?;
        let is_free = |object: &DynamicObject| {
            !object
                .finalizers()
                .iter()
                .any(|one| one.starts_with("strata."))
        };
        Ok((is_free(&build) && is_free(&config)).then_some(build))
    })
    .await;
    hand_back(world, Value::Null).await?;
    let freed = freed?;
    ensure!(freed.finalizers() == ["foregroundDeletion"]);
    ensure!(is_true(&freed, "Succeeded") && uid(&freed) == uid(&built));
    ensure!(pool.os_config().await?.data["status"] == status);
    eventually("Strata to hold it again", BUILD, || async {
        let build = world.os_builds().get(&built.name_any()).await?;
        Ok((build.finalizers().len() == 2).then_some(()))
    })
    .await?;
    pool.adopted(&built).await?;
    ensure!(registry::holds(&image).await?);
    pool.remove().await
}
