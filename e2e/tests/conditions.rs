//! What keeps an image from being built is said where an administrator looks, and goes when the cause does.

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::admissionregistration::v1::{
    ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding,
};
use kube::Api;
use kube::ResourceExt as _;
use kube::api::{DeleteParams, PostParams};
use serde_json::{Value, json};
use strata_e2e::World;
use strata_e2e::fixtures::quick;
use strata_e2e::wait::{REACTION, eventually};
use strata_e2e::world::{Pool, condition, delete_and_wait, message, uid};

#[tokio::test]
async fn a_pool_says_whether_its_image_can_be_built() -> Result<()> {
    let world = World::connect().await?;
    let pool = world.pool("degraded").await?;
    pool.configure("FROM configs AS final\nRUN false\n").await?;
    let build = pool.build_in("Failed", &[]).await?;
    let name = build.name_any();
    degraded(&pool, "True", "BuildFailed", &format!("Failed to build OS image for pool degraded (MachineOSBuild: {name}): Failed: Build Failed")).await?;
    pool.edit(&quick("undegraded")).await?;
    pool.succeeds(&[uid(&build)]).await?;
    degraded(
        &pool,
        "False",
        "BuildSuccess",
        "Build succeeded for pool degraded",
    )
    .await?;
    pool.remove().await
}

#[tokio::test]
async fn a_job_that_the_apiserver_refuses_is_said_on_the_build_and_made_later() -> Result<()> {
    let world = World::connect().await?;
    let pool = world.pool("jobless").await?;
    let policy = Policy::forbid(
        &world,
        "strata-e2e-jobless",
        "batch",
        "jobs",
        "build-jobless-",
    )
    .await?;
    pool.configure(&quick("jobless")).await?;
    let said = says(
        &pool,
        "the apiserver refuses Job build-jobless-",
        "not on this day",
    )
    .await;
    policy.remove().await?;
    said?;
    pool.succeeds(&[]).await?;
    pool.remove().await
}

#[tokio::test]
async fn a_pod_that_the_apiserver_refuses_is_said_on_the_build_and_made_later() -> Result<()> {
    let world = World::connect().await?;
    let pool = world.pool("podless").await?;
    let policy = Policy::forbid(&world, "strata-e2e-podless", "", "pods", "build-podless-").await?;
    pool.configure(&quick("podless")).await?;
    let said = says(&pool, "its Job can't make a pod", "not on this day").await;
    policy.remove().await?;
    said?;
    pool.succeeds(&[]).await?;
    pool.remove().await
}

/// Waits until the pool's ImageBuildDegraded is this.
async fn degraded(pool: &Pool, status: &str, reason: &str, text: &str) -> Result<()> {
    let expected = [status, reason, text];
    eventually(
        &format!("pool {} to say {expected:?}", pool.name),
        REACTION,
        || async {
            let object = pool
                .world
                .objects("MachineConfigPool")
                .get(&pool.name)
                .await?;
            let said = condition(&object, "ImageBuildDegraded").map(|condition| {
                ["status", "reason", "message"].map(|key| condition[key].as_str().unwrap_or(""))
            });
            Ok((said == Some(expected)).then_some(()))
        },
    )
    .await
}

/// Waits until the build of a pool says both of itself as something that it waits for.
async fn says(pool: &Pool, what: &str, why: &str) -> Result<()> {
    eventually(
        &format!("the build of {} to say {what:?} and {why:?}", pool.name),
        REACTION,
        || async {
            let builds = pool.builds().await?;
            Ok(builds
                .first()
                .map(|build| message(build, "Prepared"))
                .filter(|said| said.contains(what) && said.contains(why))
                .map(|_| ()))
        },
    )
    .await?;
    let build = pool.builds().await?.pop().context("the build")?;
    ensure!(
        !strata_e2e::world::is_true(&build, "Failed"),
        "what may pass has not failed"
    );
    Ok(())
}

/// Something of the cluster's own that refuses objects, as a quota or a webhook does.
struct Policy {
    policies: Api<ValidatingAdmissionPolicy>,
    bindings: Api<ValidatingAdmissionPolicyBinding>,
    name: String,
}

impl Policy {
    /// Objects of this kind whose name begins with `prefix` can't be created; in force when this returns.
    async fn forbid(
        world: &World,
        name: &str,
        group: &str,
        resource: &str,
        prefix: &str,
    ) -> Result<Self> {
        let policy = Self {
            policies: Api::all(world.client.clone()),
            bindings: Api::all(world.client.clone()),
            name: name.to_owned(),
        };
        policy.remove().await?;
        let named =
            "(has(object.metadata.name) ? object.metadata.name : object.metadata.generateName)";
        let rule: ValidatingAdmissionPolicy = serde_json::from_value(json!({
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy",
            "metadata": {"name": name},
            "spec": {
                "failurePolicy": "Fail",
                "matchConstraints": {"resourceRules": [{
                    "apiGroups": [group], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": [resource],
                }]},
                "validations": [{"expression": format!("!{named}.startsWith('{prefix}')"), "message": "not on this day"}],
            },
        }))?;
        let binding: ValidatingAdmissionPolicyBinding = serde_json::from_value(json!({
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicyBinding",
            "metadata": {"name": name},
            "spec": {"policyName": name, "validationActions": ["Deny"]},
        }))?;
        policy
            .policies
            .create(&PostParams::default(), &rule)
            .await?;
        policy
            .bindings
            .create(&PostParams::default(), &binding)
            .await?;
        policy.is_in_force(world, resource, prefix).await?;
        Ok(policy)
    }

    /// The apiserver learns of a policy some moments after it took it.
    async fn is_in_force(&self, world: &World, resource: &str, prefix: &str) -> Result<()> {
        let pod = json!({"restartPolicy": "Never", "containers": [{"name": "c", "image": "none"}]});
        let metadata = json!({"name": format!("{prefix}probe")});
        let probe = match resource {
            "jobs" => {
                json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": {"template": {"spec": pod}}})
            }
            _ => json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": pod}),
        };
        let trying = PostParams {
            dry_run: true,
            ..PostParams::default()
        };
        eventually(
            &format!("policy {} to be in force", self.name),
            REACTION,
            || async {
                let outcome = match resource {
                    "jobs" => world.jobs().create(&trying, &parsed(&probe)?).await.err(),
                    _ => world.pods().create(&trying, &parsed(&probe)?).await.err(),
                };
                let refused = outcome.filter(|error| error.to_string().contains("not on this day"));
                Ok(refused.map(|_| ()))
            },
        )
        .await
    }

    async fn remove(&self) -> Result<()> {
        let at_once = DeleteParams::default();
        delete_and_wait(&self.bindings, &self.name, &at_once).await?;
        delete_and_wait(&self.policies, &self.name, &at_once).await
    }
}

fn parsed<K: serde::de::DeserializeOwned>(value: &Value) -> Result<K> {
    Ok(serde_json::from_value(value.clone())?)
}
