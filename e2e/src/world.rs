//! The cluster under test, and one pool of it with all that belongs to a scenario.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use futures::TryStreamExt as _;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Node, Pod, Secret};
use kube::api::{
    DeleteParams, DynamicObject, ListParams, LogParams, Patch, PatchParams, PostParams, WatchEvent,
    WatchParams,
};
use kube::core::{ApiResource, GroupVersionKind};
use kube::{Api, Client, ResourceExt as _};
use serde_json::{Value, json};

use crate::fixtures;
use crate::wait::{BUILD, REACTION, eventually};

/// Prefix of the incumbent's labels and annotations.
pub const PREFIX: &str = "machineconfiguration.openshift.io/";

/// The cluster, as its administrator reaches it.
#[derive(Clone)]
pub struct World {
    /// With the administrator's rights.
    pub client: Client,
    /// Where the controller, secrets and Jobs live.
    pub namespace: String,
    /// The base OS image, by digest.
    pub base_image: String,
}

impl World {
    /// Connects to the cluster in `KUBECONFIG`, whose base OS image is in `STRATA_BASE_IMAGE` (`HOST/REPOSITORY@sha256:…`).
    ///
    /// # Errors
    /// If there is no such cluster; the message says how to get one.
    pub async fn connect() -> Result<Self> {
        // ring is compiled in as the only provider; a second call finds it installed
        let _installed_before = rustls::crypto::ring::default_provider().install_default();
        let client = Client::try_default()
            .await
            .context("no cluster in KUBECONFIG: `make up` brings one up, `make test` does all")?;
        let base_image = std::env::var("STRATA_BASE_IMAGE")
            .context("STRATA_BASE_IMAGE is not set: `make test` sets it")?;
        let namespace = std::env::var("STRATA_NAMESPACE")
            .unwrap_or_else(|_| "openshift-machine-config-operator".to_owned());
        Ok(Self {
            client,
            namespace,
            base_image,
        })
    }

    /// The group's cluster-wide objects of `kind`.
    #[must_use]
    pub fn objects(&self, kind: &str) -> Api<DynamicObject> {
        let gvk = GroupVersionKind::gvk("machineconfiguration.openshift.io", "v1", kind);
        Api::all_with(self.client.clone(), &ApiResource::from_gvk(&gvk))
    }

    /// MachineOSConfigs.
    #[must_use]
    pub fn os_configs(&self) -> Api<DynamicObject> {
        self.objects("MachineOSConfig")
    }

    /// MachineOSBuilds.
    #[must_use]
    pub fn os_builds(&self) -> Api<DynamicObject> {
        self.objects("MachineOSBuild")
    }

    /// Namespaced objects of Strata's namespace.
    #[must_use]
    pub fn namespaced<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// Jobs.
    #[must_use]
    pub fn jobs(&self) -> Api<Job> {
        self.namespaced()
    }

    /// Pods.
    #[must_use]
    pub fn pods(&self) -> Api<Pod> {
        self.namespaced()
    }

    /// Secrets.
    #[must_use]
    pub fn secrets(&self) -> Api<Secret> {
        self.namespaced()
    }

    /// ConfigMaps.
    #[must_use]
    pub fn config_maps(&self) -> Api<ConfigMap> {
        self.namespaced()
    }

    /// The controller's pods, those that are being deleted as well.
    ///
    /// # Errors
    /// If the apiserver refuses.
    pub async fn controllers(&self) -> Result<Vec<Pod>> {
        let ours = ListParams::default().labels("app.kubernetes.io/name=strata-controller");
        Ok(self.pods().list(&ours).await?.items)
    }

    /// The controller's pod that holds the Lease and is ready.
    ///
    /// # Errors
    /// If there is none for long.
    pub async fn controller(&self) -> Result<Pod> {
        let leases: Api<Lease> = self.namespaced();
        eventually("a ready controller with the Lease", REACTION, || async {
            let lease = leases.get_opt("machine-os-builder").await?;
            let holder = lease.and_then(|lease| lease.spec?.holder_identity);
            let pods = self.controllers().await?.into_iter();
            Ok(pods
                .filter(is_ready)
                .find(|pod| Some(pod.name_any()) == holder))
        })
        .await
    }

    /// What the controller that works tells Prometheus.
    ///
    /// # Errors
    /// If there is none for long, or it doesn't answer.
    pub async fn metrics(&self) -> Result<String> {
        let (namespace, name) = (&self.namespace, self.controller().await?.name_any());
        let url = format!("/api/v1/namespaces/{namespace}/pods/{name}:8797/proxy/metrics");
        let request = http::Request::get(&url).body(Vec::new())?;
        Ok(self.client.request_text(request).await?)
    }

    /// Sets how many controllers there shall be.
    ///
    /// # Errors
    /// If the apiserver refuses.
    pub async fn scale(&self, replicas: u32) -> Result<()> {
        let deployments: Api<Deployment> = self.namespaced();
        let patch = Patch::Merge(json!({"spec": {"replicas": replicas}}));
        let name = "strata-controller";
        deployments
            .patch(name, &PatchParams::default(), &patch)
            .await?;
        Ok(())
    }

    /// Ends the controller, and waits until it is gone.
    ///
    /// # Errors
    /// If it stays.
    pub async fn stop_controller(&self) -> Result<()> {
        self.scale(0).await?;
        eventually("the controller to be gone", REACTION, || async {
            Ok(self.controllers().await?.is_empty().then_some(()))
        })
        .await
    }

    /// Starts one controller, and waits until it works.
    ///
    /// # Errors
    /// If it doesn't come to that.
    pub async fn start_controller(&self) -> Result<()> {
        self.scale(1).await?;
        self.controller().await.map(|_| ())
    }

    /// Nodes.
    #[must_use]
    pub fn nodes(&self) -> Api<Node> {
        Api::all(self.client.clone())
    }

    /// A pool called `name` that wants its first rendered MachineConfig, with a push secret and without a MachineOSConfig; what an earlier run left
    /// under that name is removed first.
    ///
    /// # Errors
    /// If the cluster refuses, or the remains don't go.
    pub async fn pool(&self, name: &str) -> Result<Pool> {
        let pool = Pool {
            world: self.clone(),
            name: name.to_owned(),
        };
        pool.remove().await?;
        pool.render(1).await?;
        self.objects("MachineConfigPool")
            .create(
                &PostParams::default(),
                &object(fixtures::pool(name, &fixtures::rendered_name(name, 1)))?,
            )
            .await?;
        self.create_secret(fixtures::push_secret(&fixtures::push_secret_name(name)))
            .await?;
        Ok(pool)
    }

    /// The builder's image, by digest: the smallest that is surely in a registry of the cluster.
    ///
    /// # Errors
    /// If Strata isn't installed.
    pub async fn builder_image(&self) -> Result<String> {
        let config_maps = self.config_maps().list(&ListParams::default()).await?;
        config_maps
            .into_iter()
            .filter(|one| one.name_any().starts_with("strata-settings"))
            .max_by_key(|one| one.creation_timestamp())
            .and_then(|settings| settings.data?.remove("STRATA_BUILDER_IMAGE"))
            .context("no ConfigMap strata-settings… has STRATA_BUILDER_IMAGE")
    }

    /// Creates a Secret.
    ///
    /// # Errors
    /// If the apiserver refuses.
    pub async fn create_secret(&self, secret: Value) -> Result<()> {
        self.secrets()
            .create(&PostParams::default(), &serde_json::from_value(secret)?)
            .await?;
        Ok(())
    }

    /// Runs `command` in a container of `image` to its end; its output.
    ///
    /// # Errors
    /// If the pod doesn't succeed.
    pub async fn run_image(
        &self,
        name: &str,
        image: &str,
        pull_secret: &str,
        command: &[&str],
    ) -> Result<String> {
        let pod: Pod = serde_json::from_value(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name},
            "spec": {
                "restartPolicy": "Never",
                "imagePullSecrets": [{"name": pull_secret}],
                "containers": [{"name": "image", "image": image, "command": command}],
            },
        }))?;
        let now = DeleteParams {
            grace_period_seconds: Some(0),
            ..DeleteParams::default()
        };
        delete_and_wait(&self.pods(), name, &now).await?;
        self.pods().create(&PostParams::default(), &pod).await?;
        let phase = eventually(&format!("pod {name} to end"), BUILD, || async {
            let status = self.pods().get(name).await?.status.unwrap_or_default();
            Ok(status
                .phase
                .filter(|phase| phase == "Succeeded" || phase == "Failed"))
        })
        .await?;
        let output = self.pods().logs(name, &LogParams::default()).await?;
        delete_and_wait(&self.pods(), name, &now).await?;
        if phase != "Succeeded" {
            bail!("{command:?} in {image} failed: {output}");
        }
        Ok(output)
    }
}

/// One pool and its MachineOSConfig, builds and secrets.
#[derive(Clone)]
pub struct Pool {
    /// The cluster.
    pub world: World,
    /// Of the pool and its MachineOSConfig.
    pub name: String,
}

impl Pool {
    /// Creates the pool's rendered MachineConfig number `revision` on the base image.
    ///
    /// # Errors
    /// If the apiserver refuses.
    pub async fn render(&self, revision: u32) -> Result<String> {
        self.render_with(revision, |_| {}).await
    }

    /// The same, its spec changed.
    ///
    /// # Errors
    /// If the apiserver refuses.
    pub async fn render_with(
        &self,
        revision: u32,
        change: impl FnOnce(&mut Value),
    ) -> Result<String> {
        let name = fixtures::rendered_name(&self.name, revision);
        let mut machine_config = fixtures::machine_config(&name, &self.world.base_image);
        change(&mut machine_config["spec"]);
        let machine_config = object(machine_config)?;
        self.world
            .objects("MachineConfig")
            .create(&PostParams::default(), &machine_config)
            .await?;
        Ok(name)
    }

    /// Makes the pool want its rendered MachineConfig number `revision`.
    ///
    /// # Errors
    /// If the apiserver refuses.
    pub async fn move_to(&self, revision: u32) -> Result<()> {
        let rendered = fixtures::rendered_name(&self.name, revision);
        let patch = json!({"spec": {"configuration": fixtures::configuration(&rendered)}});
        self.world
            .objects("MachineConfigPool")
            .patch(&self.name, &PatchParams::default(), &Patch::Merge(patch))
            .await?;
        Ok(())
    }

    /// Creates the MachineOSConfig with `containerfile`.
    ///
    /// # Errors
    /// If the apiserver refuses.
    pub async fn configure(&self, containerfile: &str) -> Result<()> {
        self.configure_with(fixtures::os_config(&self.name, containerfile))
            .await
    }

    /// Creates the MachineOSConfig as given.
    ///
    /// # Errors
    /// If the apiserver refuses.
    pub async fn configure_with(&self, os_config: Value) -> Result<()> {
        self.world
            .os_configs()
            .create(&PostParams::default(), &object(os_config)?)
            .await?;
        Ok(())
    }

    /// Replaces the Containerfile.
    ///
    /// # Errors
    /// If the apiserver refuses.
    pub async fn edit(&self, containerfile: &str) -> Result<()> {
        let patch = json!({"spec": {"containerFile": [{"containerfileArch": "NoArch", "content": containerfile}]}});
        self.patch_config(patch).await
    }

    /// Sets the rebuild annotation.
    ///
    /// # Errors
    /// If the apiserver refuses.
    pub async fn request_rebuild(&self) -> Result<()> {
        self.patch_config(json!({"metadata": {"annotations": {format!("{PREFIX}rebuild"): ""}}}))
            .await
    }

    async fn patch_config(&self, patch: Value) -> Result<()> {
        self.world
            .os_configs()
            .patch(&self.name, &PatchParams::default(), &Patch::Merge(patch))
            .await?;
        Ok(())
    }

    /// The MachineOSConfig.
    ///
    /// # Errors
    /// If there is none.
    pub async fn os_config(&self) -> Result<DynamicObject> {
        Ok(self.world.os_configs().get(&self.name).await?)
    }

    /// The MachineOSBuilds of this config, oldest first.
    ///
    /// # Errors
    /// If the apiserver refuses.
    pub async fn builds(&self) -> Result<Vec<DynamicObject>> {
        let mut builds = self
            .world
            .os_builds()
            .list(&ListParams::default().labels(&self.label()))
            .await?
            .items;
        builds.sort_by_key(|build| build.creation_timestamp());
        Ok(builds)
    }

    /// The Jobs of this config's builds.
    ///
    /// # Errors
    /// If the apiserver refuses.
    pub async fn jobs(&self) -> Result<Vec<Job>> {
        Ok(self
            .world
            .jobs()
            .list(&ListParams::default().labels(&self.label()))
            .await?
            .items)
    }

    fn label(&self) -> String {
        format!("{PREFIX}machine-os-config={}", self.name)
    }

    /// Waits for a build in `condition`, other than those in `but`.
    ///
    /// # Errors
    /// If none comes to it, at once if one fails instead; the message holds what the builds say.
    pub async fn build_in(&self, condition: &str, but: &[String]) -> Result<DynamicObject> {
        let found = eventually(
            &format!("a build of {} that is {condition}", self.name),
            BUILD,
            || async {
                let builds = self.builds().await?.into_iter();
                let others: Vec<_> = builds.filter(|b| !but.contains(&uid(b))).collect();
                let found = others.iter().find(|b| is_true(b, condition)).cloned();
                let failed = others.iter().find(|b| is_true(b, "Failed"));
                if let (None, Some(failed)) = (&found, failed) {
                    bail!("{} failed", failed.name_any());
                }
                Ok(found)
            },
        )
        .await;
        match found {
            Ok(build) => Ok(build),
            Err(error) => bail!("{error:#}; there is: {}", self.told().await?),
        }
    }

    /// What config and builds say, for the message of a scenario that fails.
    async fn told(&self) -> Result<String> {
        let mut lines = vec![format!(
            "config {}",
            self.os_config()
                .await
                .map(|c| c.data["status"].to_string())
                .unwrap_or_default()
        )];
        lines.extend(
            self.builds()
                .await?
                .iter()
                .map(|b| format!("build {} {}", b.name_any(), b.data["status"])),
        );
        Ok(lines.join("\n"))
    }

    /// Waits until the config's status names the image of the build named `build`.
    ///
    /// # Errors
    /// If it doesn't come to that.
    pub async fn adopted(&self, build: &DynamicObject) -> Result<String> {
        let digested = text(build, "/status/digestedImagePushSpec")
            .context("a succeeded build without a digest")?;
        eventually(
            &format!("MachineOSConfig {} to name {digested}", self.name),
            REACTION,
            || async {
                let os_config = self.os_config().await?;
                let named =
                    text(&os_config, "/status/currentImagePullSpec").as_ref() == Some(&digested);
                let observed = os_config
                    .data
                    .pointer("/status/observedGeneration")
                    .and_then(Value::as_i64)
                    == os_config.metadata.generation;
                Ok((named
                    && observed
                    && text(&os_config, "/status/machineOSBuild/name") == Some(build.name_any()))
                .then(|| digested.clone()))
            },
        )
        .await
    }

    /// Waits for a succeeded build other than `but` that the config's status names; the build and its image.
    ///
    /// # Errors
    /// If none succeeds.
    pub async fn succeeds(&self, but: &[String]) -> Result<(DynamicObject, String)> {
        let build = self.build_in("Succeeded", but).await?;
        let image = self.adopted(&build).await?;
        Ok((build, image))
    }

    /// Removes all that belongs to the pool, and waits until it is gone.
    ///
    /// # Errors
    /// If it doesn't go.
    pub async fn remove(&self) -> Result<()> {
        let world = &self.world;
        delete_and_wait(&world.os_configs(), &self.name, &DeleteParams::default()).await?;
        for build in self.builds().await? {
            delete_and_wait(
                &world.os_builds(),
                &build.name_any(),
                &DeleteParams::default(),
            )
            .await?;
        }
        delete_and_wait(
            &world.objects("MachineConfigPool"),
            &self.name,
            &DeleteParams::default(),
        )
        .await?;
        let prefix = format!("rendered-{}-", self.name);
        for machine_config in world
            .objects("MachineConfig")
            .list(&ListParams::default())
            .await?
        {
            if machine_config.name_any().starts_with(&prefix) {
                delete_and_wait(
                    &world.objects("MachineConfig"),
                    &machine_config.name_any(),
                    &DeleteParams::default(),
                )
                .await?;
            }
        }
        delete_and_wait(
            &world.secrets(),
            &fixtures::push_secret_name(&self.name),
            &DeleteParams::default(),
        )
        .await
    }
}

/// Deletes `name` and waits until it is gone; one that isn't there is fine.
///
/// # Errors
/// If the apiserver refuses, or it stays.
pub async fn delete_and_wait<K>(api: &Api<K>, name: &str, how: &DeleteParams) -> Result<()>
where
    K: kube::Resource + Clone + serde::de::DeserializeOwned + std::fmt::Debug,
{
    match api.delete(name, how).await {
        Ok(_) => {}
        Err(kube::Error::Api(status)) if status.code == 404 => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("delete {name}")),
    }
    gone(api, name).await
}

/// Waits until `name` is gone.
///
/// # Errors
/// If it stays.
pub async fn gone<K>(api: &Api<K>, name: &str) -> Result<()>
where
    K: kube::Resource + Clone + serde::de::DeserializeOwned + std::fmt::Debug,
{
    eventually(
        &format!("{name} to go"),
        REACTION.max(Duration::from_secs(120)),
        || async { Ok(api.get_opt(name).await?.is_none().then_some(())) },
    )
    .await
}

/// Waits until `object`, as it was read, comes to be so. Watched from there, so that no state is missed however short it is.
///
/// # Errors
/// If it is deleted before, or doesn't come to it.
pub async fn becomes<K>(
    api: &Api<K>,
    object: &K,
    what: &str,
    holds: impl Fn(&K) -> bool,
) -> Result<K>
where
    K: kube::Resource + Clone + serde::de::DeserializeOwned + std::fmt::Debug,
{
    let name = object.name_any();
    let only = WatchParams::default().fields(&format!("metadata.name={name}"));
    let from = object.resource_version().unwrap_or_default();
    let mut events = std::pin::pin!(api.watch(&only, &from).await?);
    let told = async {
        while let Some(event) = events.try_next().await? {
            match event {
                WatchEvent::Added(now) | WatchEvent::Modified(now) if holds(&now) => {
                    return Ok(now);
                }
                WatchEvent::Added(_) | WatchEvent::Modified(_) | WatchEvent::Bookmark(_) => {}
                WatchEvent::Deleted(last) => bail!("{name} went before it was {what}: {last:?}"),
                WatchEvent::Error(status) => bail!("watch {name}: {status:?}"),
            }
        }
        bail!("the watch of {name} ended before it was {what}")
    };
    match tokio::time::timeout(BUILD, told).await {
        Ok(outcome) => outcome,
        Err(_) => bail!("waited in vain for {name} to be {what}"),
    }
}

/// Whether the pod is ready, and not being deleted.
#[must_use]
pub fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|s| s.conditions.as_ref());
    pod.metadata.deletion_timestamp.is_none()
        && conditions
            .into_iter()
            .flatten()
            .any(|c| c.type_ == "Ready" && c.status == "True")
}

/// A dynamic object from JSON.
///
/// # Errors
/// If it has no kind.
pub fn object(value: Value) -> Result<DynamicObject> {
    Ok(serde_json::from_value(value)?)
}

/// Whether the condition of `kind` is True.
#[must_use]
pub fn is_true(object: &DynamicObject, kind: &str) -> bool {
    condition(object, kind).is_some_and(|c| c["status"] == "True")
}

/// The condition of `kind`.
#[must_use]
pub fn condition<'a>(object: &'a DynamicObject, kind: &str) -> Option<&'a Value> {
    object
        .data
        .pointer("/status/conditions")?
        .as_array()?
        .iter()
        .find(|c| c["type"] == kind)
}

/// The message of the condition of `kind`; empty if there is none.
#[must_use]
pub fn message(object: &DynamicObject, kind: &str) -> String {
    condition(object, kind)
        .and_then(|c| c["message"].as_str())
        .unwrap_or_default()
        .to_owned()
}

/// The string at a JSON pointer below the object's root.
#[must_use]
pub fn text(object: &DynamicObject, pointer: &str) -> Option<String> {
    Some(object.data.pointer(pointer)?.as_str()?.to_owned())
}

/// The object's UID; empty before it is stored.
#[must_use]
pub fn uid(object: &DynamicObject) -> String {
    object.metadata.uid.clone().unwrap_or_default()
}

/// The incumbent's annotation `key` of an object.
#[must_use]
pub fn annotation(object: &DynamicObject, key: &str) -> Option<String> {
    object.annotations().get(&format!("{PREFIX}{key}")).cloned()
}

/// Labels under the incumbent's prefix, without it.
#[must_use]
pub fn labels(labels: &BTreeMap<String, String>) -> BTreeMap<&str, &str> {
    labels
        .iter()
        .filter_map(|(key, value)| Some((key.strip_prefix(PREFIX)?, value.as_str())))
        .collect()
}
