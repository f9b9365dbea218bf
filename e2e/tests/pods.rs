//! The same image in each pod that a cluster may allow: the default one; and the only one of OpenShift 4.19, which has neither image volumes nor user namespaces for pods and
//! whose constraint `anyuid` is here a policy that refuses what it refuses; there also without overlays, as SELinux may deny them. One scenario: it changes apiserver, node
//! and controller, which others look at.

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::admissionregistration::v1::{
    ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding,
};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Pod, PodSpec};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt as _};
use serde_json::{Value, json};
use strata_e2e::wait::{BUILD, REACTION, eventually};
use strata_e2e::world::{Pool, delete_and_wait, message, uid};
use strata_e2e::{World, node, registry};

/// Owners, modes, links, capabilities, what is removed and what is replaced; and the same bytes whenever it is built.
const VARIED: &str = r#"FROM configs AS tool
RUN mkdir -p /made/deep && echo made > /made/deep/file && chown -R 12:34 /made && chmod 2775 /made/deep
FROM configs AS final
COPY --from=tool --chown=7:8 /made /etc/made
RUN echo one > /etc/one && chown daemon:adm /etc/one && chmod 4750 /etc/one && ln /etc/one /etc/two && ln -s one /etc/three && mkfifo /etc/fifo
RUN cp /bin/true /usr/bin/capable && setcap cap_net_raw+ep /usr/bin/capable && getcap /usr/bin/capable | grep -q cap_net_raw
RUN rm -r /etc/scenario && mkdir -m 700 /etc/scenario && touch /etc/scenario/new && id -u | grep -qx 0 && ostree container commit
"#;

/// As far back as this apiserver can go, with the features off that 1.32 has off.
const LIKE_1_32: &str =
    "--emulated-version=1.33 --feature-gates=UserNamespacesSupport=false,ProcMountType=false";

const POLICY: &str = "strata-like-scc-anyuid";

/// What OpenShift's constraint `anyuid` forbids.
fn anyuid(namespace: &str) -> Value {
    let rules = [
        (
            "!has(object.spec.volumes) || object.spec.volumes.all(v, has(v.configMap) || has(v.secret) || has(v.emptyDir) || has(v.projected))",
            "these volumes are not allowed",
        ),
        (
            "!has(object.spec.securityContext) || !has(object.spec.securityContext.seccompProfile)",
            "seccomp may not be set",
        ),
        (
            "object.spec.containers.all(c, !has(c.securityContext) || !has(c.securityContext.seccompProfile))",
            "seccomp may not be set",
        ),
        (
            "object.spec.containers.all(c, !has(c.securityContext) || !has(c.securityContext.privileged) || !c.securityContext.privileged)",
            "privileged containers are not allowed",
        ),
        (
            "object.spec.containers.all(c, !has(c.securityContext) || !has(c.securityContext.capabilities) || !has(c.securityContext.capabilities.add))",
            "capabilities may not be added",
        ),
    ];
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": POLICY},
        "spec": {
            "failurePolicy": "Fail",
            "matchConstraints": {
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
                "resourceRules": [{"apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"], "operations": ["CREATE"]}],
            },
            "matchConditions": [{"name": "builds", "expression": "has(object.spec.serviceAccountName) && object.spec.serviceAccountName == 'strata-builder'"}],
            "validations": rules.map(|(expression, message)| json!({"expression": expression, "message": message})),
        },
    })
}

#[tokio::test]
async fn every_pod_that_a_cluster_may_allow_builds_the_same_image() -> Result<()> {
    let world = World::connect().await?;
    // a killed run may have left its changes
    restore(&world).await?;
    let outcome = scenario(&world).await;
    restore(&world).await?;
    outcome
}

async fn scenario(world: &World) -> Result<()> {
    shows(world, "userns").await?;
    let pool = world.pool("pods").await?;
    pool.configure(VARIED).await?;
    let (build, image) = pool.succeeds(&[]).await?;
    ensure!(tier(&build) == "userns", "the tier is {}", tier(&build));
    let mut known = vec![uid(&build)];
    let wanted = content(&image).await?;

    a_node_that_can_not_is_named(world).await?;

    like_openshift_4_19(world).await?;
    for (setting, tier_wanted) in [(None, "rootless"), (Some("rootless-flat"), "rootless-flat")] {
        start_controller(world, setting).await?;
        shows(world, "rootless-default").await?;
        pool.request_rebuild().await?;
        let spec = pod_of_build(world, &pool, &known).await?;
        ensure!(
            spec.host_users.is_none() && spec.volumes.iter().flatten().all(|v| v.image.is_none()),
            "{spec:?}"
        );
        let user = spec
            .security_context
            .and_then(|context| context.run_as_user);
        ensure!(user == Some(1000), "the builder is user {user:?}");
        let (build, image) = pool.succeeds(&known).await?;
        known.push(uid(&build));
        ensure!(tier(&build) == tier_wanted, "the tier is {}", tier(&build));
        ensure!(
            content(&image).await? == wanted,
            "{image} of tier {tier_wanted} differs"
        );
    }
    pool.remove().await
}

/// The pod can't be started where no unmasked proc is left for a user namespace to mount: said on the build, which goes on once the node can.
async fn a_node_that_can_not_is_named(world: &World) -> Result<()> {
    const PROC: &str = "/run/strata/proc";
    node::run(&["/bin/umount", PROC]).await?;
    let pool = world.pool("unstartable").await?;
    pool.configure(&strata_e2e::fixtures::quick("unstartable"))
        .await?;
    let told = eventually(
        "the build to say why its pod isn't started",
        BUILD,
        || async {
            let builds = pool.builds().await?;
            let said = builds.first().map(|build| message(build, "Building"));
            Ok(said.filter(|said| said.contains("can't start its pod")))
        },
    )
    .await;
    node::run(&["/bin/mount", "-t", "proc", "proc", PROC]).await?;
    println!("{}", told?);
    pool.succeeds(&[]).await?;
    pool.remove().await
}

/// What decides about an image's content; annotations name the build.
async fn content(image: &str) -> Result<Value> {
    let mut manifest = registry::manifest(image).await?;
    let fields = manifest.as_object_mut().context("a manifest")?;
    fields.remove("annotations");
    Ok(manifest)
}

fn tier(build: &kube::api::DynamicObject) -> String {
    build
        .annotations()
        .get("strata.image-mode.dev/tier")
        .cloned()
        .unwrap_or_default()
}

/// The pod of a build other than those in `known`.
async fn pod_of_build(world: &World, pool: &Pool, known: &[String]) -> Result<PodSpec> {
    pool.build_in("Building", known).await?;
    let label = format!(
        "machineconfiguration.openshift.io/machine-os-config={}",
        pool.name
    );
    let pods = world
        .pods()
        .list(&ListParams::default().labels(&label))
        .await?;
    let newest = pods
        .items
        .into_iter()
        .max_by_key(|pod| pod.creation_timestamp());
    newest
        .and_then(|pod| pod.spec)
        .context("a build that runs has a pod")
}

async fn like_openshift_4_19(world: &World) -> Result<()> {
    let policies: Api<ValidatingAdmissionPolicy> = Api::all(world.client.clone());
    let bindings: Api<ValidatingAdmissionPolicyBinding> = Api::all(world.client.clone());
    let policy = serde_json::from_value(anyuid(&world.namespace))?;
    policies.create(&PostParams::default(), &policy).await?;
    let binding = serde_json::from_value(json!({
        "metadata": {"name": POLICY},
        "spec": {"policyName": POLICY, "validationActions": ["Deny"]},
    }))?;
    bindings.create(&PostParams::default(), &binding).await?;
    node::restart_apiserver(LIKE_1_32).await?;
    // neither the gates nor the policy let it through, once both are there
    eventually("the apiserver to be like an old one", BUILD, || async {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "strata-old"},
            "spec": {
                "hostUsers": false, "serviceAccountName": "strata-builder",
                "containers": [{"name": "c", "image": "localhost/busybox:1", "securityContext": {"seccompProfile": {"type": "Unconfined"}}}],
            },
        }))?;
        let dry = PostParams { dry_run: true, ..PostParams::default() };
        match world.pods().create(&dry, &pod).await {
            Err(kube::Error::Api(status)) if status.message.contains("seccomp may not be set") => Ok(Some(())),
            Ok(_) | Err(_) => Ok(None),
        }
    })
    .await
}

/// Starts the controller anew, with a tier for builds.
async fn start_controller(world: &World, tier: Option<&str>) -> Result<()> {
    let deployments: Api<Deployment> = world.namespaced();
    let env = match tier {
        Some(tier) => json!({"name": "STRATA_BUILD_TIER", "value": tier}),
        None => json!({"name": "STRATA_BUILD_TIER", "$patch": "delete"}),
    };
    world.scale(0).await?;
    eventually("the controller to stop", BUILD, || async {
        Ok(world.controllers().await?.is_empty().then_some(()))
    })
    .await?;
    let patch = json!({"spec": {"replicas": 1, "template": {"spec": {"containers": [{"name": "strata-controller", "env": [env]}]}}}});
    deployments
        .patch(
            "strata-controller",
            &PatchParams::default(),
            &Patch::Strategic(patch),
        )
        .await?;
    world.controller().await?;
    Ok(())
}

/// The apiserver, the policy and the controller as they are for every other scenario.
async fn restore(world: &World) -> Result<()> {
    let policies: Api<ValidatingAdmissionPolicy> = Api::all(world.client.clone());
    let bindings: Api<ValidatingAdmissionPolicyBinding> = Api::all(world.client.clone());
    let now = DeleteParams::default();
    node::restart_apiserver("").await?;
    eventually("the apiserver", BUILD, || async {
        Ok(world.client.apiserver_version().await.ok())
    })
    .await?;
    delete_and_wait(&bindings, POLICY, &now).await?;
    delete_and_wait(&policies, POLICY, &now).await?;
    start_controller(world, None).await
}

/// Waits until the controller's metrics tell that pods of builds have this shape.
async fn shows(world: &World, shape: &str) -> Result<()> {
    let wanted = format!("strata_build_pod{{shape=\"{shape}\"}} 1");
    eventually(&wanted, REACTION, || async {
        let metrics = world.metrics().await?;
        Ok(metrics.contains(&wanted).then_some(()))
    })
    .await
}
