//! Every rule of the two CRDs, both ways, on the real apiserver.

use anyhow::{Context, Result, bail, ensure};
use kube::api::{Api, DeleteParams, DynamicObject, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use strata_e2e::World;
use strata_e2e::fixtures::{PUSH_REGISTRY, os_build, os_config};
use strata_e2e::world::{delete_and_wait, object};

/// What the apiserver should say to a change of a valid object.
enum Answer {
    Accepts,
    /// With these words in its refusal.
    Refuses(&'static str),
}
use Answer::{Accepts, Refuses};

fn dry_run() -> PostParams {
    PostParams {
        dry_run: true,
        ..PostParams::default()
    }
}

async fn check(
    api: &Api<DynamicObject>,
    name: &str,
    candidate: Value,
    answer: &Answer,
) -> Result<()> {
    judge(
        name,
        api.create(&dry_run(), &object(candidate)?)
            .await
            .map(|_| ()),
        answer,
    )
}

fn judge(name: &str, outcome: kube::Result<()>, answer: &Answer) -> Result<()> {
    match (outcome, answer) {
        (Ok(()), Accepts) => Ok(()),
        (Err(kube::Error::Api(status)), Refuses(words)) if status.message.contains(words) => Ok(()),
        (Ok(()), Refuses(words)) => bail!("{name}: accepted; wanted a refusal with {words:?}"),
        (Err(error), Accepts) => bail!("{name}: refused: {error}"),
        (Err(error), Refuses(words)) => bail!("{name}: refused without {words:?}: {error}"),
    }
}

/// `value` with the field at a JSON pointer set; `Value::Null` removes it.
fn with(mut value: Value, pointer: &str, field: Value) -> Value {
    let (parent, key) = pointer.rsplit_once('/').unwrap_or(("", pointer));
    if let Some(parent) = value.pointer_mut(parent).and_then(Value::as_object_mut) {
        match field {
            Value::Null => drop(parent.remove(key)),
            field => drop(parent.insert(key.to_owned(), field)),
        }
    }
    value
}

#[tokio::test]
async fn a_machine_os_config_is_judged_by_every_rule_on_creation() -> Result<()> {
    let world = World::connect().await?;
    let valid = os_config("rules", "FROM configs AS final\n");
    let name_rule = "MachineOSConfig name must match the referenced MachineConfigPool name";
    let image_rule = "the OCI Image name should follow the host[:port][/namespace]/name format";
    let entries = |n: usize| {
        let archs = ["NoArch", "ARM64", "AMD64", "PPC64LE", "S390X"];
        json!(
            archs[..n]
                .iter()
                .map(|arch| json!({"containerfileArch": arch, "content": "FROM configs"}))
                .collect::<Vec<_>>()
        )
    };
    let cases: Vec<(&str, &str, Value, Answer)> = vec![
        (
            "unchanged",
            "/spec/machineConfigPool/name",
            json!("rules"),
            Accepts,
        ),
        (
            "another pool",
            "/spec/machineConfigPool/name",
            json!("other"),
            Refuses(name_rule),
        ),
        (
            "no spec",
            "/spec",
            Value::Null,
            Refuses("spec: Required value"),
        ),
        (
            "no pool",
            "/spec/machineConfigPool",
            Value::Null,
            Refuses("spec.machineConfigPool: Required value"),
        ),
        (
            "an empty pool name",
            "/spec/machineConfigPool/name",
            json!(""),
            Refuses("spec.machineConfigPool.name"),
        ),
        (
            "no builder",
            "/spec/imageBuilder",
            Value::Null,
            Refuses("spec.imageBuilder: Required value"),
        ),
        (
            "another builder",
            "/spec/imageBuilder/imageBuilderType",
            json!("PodImageBuilder"),
            Refuses("Unsupported value"),
        ),
        (
            "no push secret",
            "/spec/renderedImagePushSecret",
            Value::Null,
            Refuses("spec.renderedImagePushSecret: Required value"),
        ),
        (
            "an upper-case secret",
            "/spec/renderedImagePushSecret/name",
            json!("Upper"),
            Refuses("spec.renderedImagePushSecret.name"),
        ),
        (
            "a secret name of 254",
            "/spec/renderedImagePushSecret/name",
            json!("a".repeat(254)),
            Refuses("Too long"),
        ),
        (
            "a base secret",
            "/spec/baseImagePullSecret",
            json!({"name": "base"}),
            Accepts,
        ),
        (
            "a base secret without a name",
            "/spec/baseImagePullSecret",
            json!({}),
            Refuses("spec.baseImagePullSecret.name: Required value"),
        ),
        (
            "an upper-case base secret",
            "/spec/baseImagePullSecret",
            json!({"name": "Base"}),
            Refuses("spec.baseImagePullSecret.name"),
        ),
        (
            "no push spec",
            "/spec/renderedImagePushSpec",
            Value::Null,
            Refuses("spec.renderedImagePushSpec: Required value"),
        ),
        (
            "a nested repository",
            "/spec/renderedImagePushSpec",
            json!("quay.io/a/b/c:tag"),
            Accepts,
        ),
        (
            "the internal registry",
            "/spec/renderedImagePushSpec",
            json!("image-registry.openshift-image-registry.svc:5000/ns/os:latest"),
            Accepts,
        ),
        (
            "an address",
            "/spec/renderedImagePushSpec",
            json!("10.0.0.1:5000/org/repo:x"),
            Accepts,
        ),
        (
            "no tag",
            "/spec/renderedImagePushSpec",
            json!("quay.io/org/repo"),
            Refuses(image_rule),
        ),
        (
            "a digest",
            "/spec/renderedImagePushSpec",
            json!(format!("quay.io/org/repo@sha256:{}", "a".repeat(64))),
            Refuses(image_rule),
        ),
        (
            "a host without a dot",
            "/spec/renderedImagePushSpec",
            json!("registry:5000/org/repo:x"),
            Refuses(image_rule),
        ),
        (
            "a scheme",
            "/spec/renderedImagePushSpec",
            json!("https://quay.io/org/repo:x"),
            Refuses(image_rule),
        ),
        (
            "a push spec of 448",
            "/spec/renderedImagePushSpec",
            json!(format!("quay.io/{}:t", "a".repeat(448 - 10))),
            Refuses("Too long"),
        ),
        (
            "no Containerfile",
            "/spec/containerFile",
            Value::Null,
            Accepts,
        ),
        ("an empty list", "/spec/containerFile", json!([]), Accepts),
        (
            "four Containerfiles",
            "/spec/containerFile",
            entries(4),
            Accepts,
        ),
        (
            "five Containerfiles",
            "/spec/containerFile",
            entries(5),
            Refuses("Too many"),
        ),
        (
            "an architecture twice",
            "/spec/containerFile",
            json!([{"containerfileArch": "ARM64", "content": "x"}, {"containerfileArch": "ARM64", "content": "y"}]),
            Refuses("Duplicate value"),
        ),
        (
            "an unknown architecture",
            "/spec/containerFile",
            json!([{"containerfileArch": "RISCV", "content": "x"}]),
            Refuses("Unsupported value"),
        ),
        (
            "a Containerfile without content",
            "/spec/containerFile",
            json!([{"containerfileArch": "ARM64"}]),
            Refuses("content: Required value"),
        ),
        (
            "4096 characters",
            "/spec/containerFile",
            json!([{"content": "é".repeat(4096)}]),
            Accepts,
        ),
        (
            "4097 characters",
            "/spec/containerFile",
            json!([{"content": "x".repeat(4097)}]),
            Refuses("Too long"),
        ),
    ];
    for (name, pointer, field, answer) in cases {
        check(
            &world.os_configs(),
            name,
            with(valid.clone(), pointer, field),
            &answer,
        )
        .await?;
    }
    let defaulted = world
        .os_configs()
        .create(
            &dry_run(),
            &object(with(
                valid,
                "/spec/containerFile",
                json!([{"content": "x"}]),
            ))?,
        )
        .await?;
    ensure!(
        defaulted
            .data
            .pointer("/spec/containerFile/0/containerfileArch")
            == Some(&json!("NoArch"))
    );
    Ok(())
}

#[tokio::test]
async fn a_machine_os_build_is_judged_by_every_rule_on_creation() -> Result<()> {
    let world = World::connect().await?;
    let valid = os_build("rules-1");
    let cases: Vec<(&str, &str, Value, Answer)> = vec![
        ("unchanged", "/metadata/name", json!("rules-1"), Accepts),
        (
            "no spec",
            "/spec",
            Value::Null,
            Refuses("spec: Required value"),
        ),
        (
            "no machine config",
            "/spec/machineConfig",
            Value::Null,
            Refuses("spec.machineConfig: Required value"),
        ),
        (
            "a short machine config",
            "/spec/machineConfig/name",
            json!("rendered-"),
            Refuses("spec.machineConfig.name"),
        ),
        (
            "an upper-case machine config",
            "/spec/machineConfig/name",
            json!("Rendered-worker-1"),
            Refuses("spec.machineConfig.name"),
        ),
        (
            "no config",
            "/spec/machineOSConfig",
            Value::Null,
            Refuses("spec.machineOSConfig: Required value"),
        ),
        (
            "an empty config name",
            "/spec/machineOSConfig/name",
            json!(""),
            Refuses("spec.machineOSConfig.name"),
        ),
        (
            "no push spec",
            "/spec/renderedImagePushSpec",
            Value::Null,
            Refuses("spec.renderedImagePushSpec: Required value"),
        ),
        (
            "a push spec without a tag",
            "/spec/renderedImagePushSpec",
            json!("quay.io/org/repo"),
            Refuses("the OCI Image name should follow"),
        ),
    ];
    for (name, pointer, field, answer) in cases {
        check(
            &world.os_builds(),
            name,
            with(valid.clone(), pointer, field),
            &answer,
        )
        .await?;
    }
    Ok(())
}

#[tokio::test]
async fn updates_are_judged_by_the_transition_rules() -> Result<()> {
    let world = World::connect().await?;
    // paused from building by a pool that does not exist: only the rules are looked at
    let api = world.os_configs();
    let name = "transitions";
    delete_and_wait(&api, name, &DeleteParams::default()).await?;
    api.create(
        &PostParams::default(),
        &object(os_config(name, "FROM configs AS final\n"))?,
    )
    .await?;
    let patch = |pool: &str| Patch::Merge(json!({"spec": {"machineConfigPool": {"name": pool}}}));
    let dry = PatchParams {
        dry_run: true,
        ..PatchParams::default()
    };
    judge(
        "a config that changes its pool",
        api.patch(name, &dry, &patch("other")).await.map(|_| ()),
        &Refuses("MachineOSConfig name must match"),
    )?;

    let status = |value: Value| Patch::Merge(json!({"status": value}));
    let digest = "a".repeat(64);
    let good = format!("{PUSH_REGISTRY}/a/b/c@sha256:{digest}");
    let cases: Vec<(&str, Value, Answer)> = vec![
        (
            "a digest below nested repositories",
            json!({"currentImagePullSpec": good}),
            Accepts,
        ),
        (
            "a tag",
            json!({"currentImagePullSpec": "quay.io/org/repo:tag"}),
            Refuses("valid '@sha256:<digest>' suffix"),
        ),
        (
            "a short digest",
            json!({"currentImagePullSpec": "quay.io/org/repo@sha256:abc"}),
            Refuses("valid '@sha256:<digest>' suffix"),
        ),
        (
            "a digest of a bad name",
            json!({"currentImagePullSpec": format!("repo@sha256:{digest}")}),
            Refuses("host[:port][/namespace]/name"),
        ),
        (
            "a negative generation",
            json!({"observedGeneration": -1}),
            Refuses("observedGeneration"),
        ),
        (
            "a reference into the core group",
            json!({"machineOSBuild": {"group": "", "resource": "pods", "name": "x"}}),
            Refuses("group"),
        ),
        (
            "a reference",
            json!({"machineOSBuild": {"group": "machineconfiguration.openshift.io", "resource": "machineosbuilds", "name": "x"}}),
            Accepts,
        ),
        (
            "a bad resource",
            json!({"machineOSBuild": {"group": "machineconfiguration.openshift.io", "resource": "Upper", "name": "x"}}),
            Refuses("resource"),
        ),
    ];
    for (case, value, answer) in cases {
        judge(
            case,
            api.patch_status(name, &dry, &status(value))
                .await
                .map(|_| ()),
            &answer,
        )?;
    }
    delete_and_wait(&api, name, &DeleteParams::default()).await
}

#[tokio::test]
async fn a_builds_spec_times_and_terminal_conditions_are_immutable() -> Result<()> {
    let world = World::connect().await?;
    let api = world.os_builds();
    let dry = PatchParams {
        dry_run: true,
        ..PatchParams::default()
    };
    let status = |value: Value| Patch::Merge(json!({"status": value}));
    let condition = |kind: &str, value: &str| json!({"type": kind, "status": value, "reason": "Rules", "message": "rules", "lastTransitionTime": "2026-01-01T00:00:00Z"});

    for (number, (terminal, words)) in [
        ("Failed", "once a Failed condition is set"),
        ("Interrupted", "once an Interrupted"),
        ("Succeeded", "once an Succeeded"),
    ]
    .into_iter()
    .enumerate()
    {
        // no MachineOSConfig of that name: nobody but this scenario writes to it
        let name = format!("immutable-{number}");
        delete_and_wait(&api, &name, &DeleteParams::default()).await?;
        api.create(
            &PostParams::default(),
            &object(with(
                os_build(&name),
                "/spec/machineOSConfig/name",
                json!("nobody"),
            ))?,
        )
        .await?;
        let spec =
            Patch::Merge(json!({"spec": {"machineConfig": {"name": "rendered-rules-other"}}}));
        judge(
            "a changed spec",
            api.patch(&name, &dry, &spec).await.map(|_| ()),
            &Refuses("machineOSBuildSpec is immutable once set"),
        )?;

        let (early, late) = ("2026-01-01T00:00:00Z", "2026-01-01T00:00:01Z");
        let cases: Vec<(&str, Value, Answer)> = vec![
            (
                "an end without a start",
                json!({"buildEnd": late}),
                Refuses("buildEnd must be after buildStart"),
            ),
            (
                "an end in the second of the start",
                json!({"buildStart": late, "buildEnd": late}),
                Refuses("buildEnd must be after buildStart"),
            ),
            (
                "an end after the start",
                json!({"buildStart": early, "buildEnd": late}),
                Accepts,
            ),
            (
                "a Job builder without a Job",
                json!({"builder": {"imageBuilderType": "Job"}}),
                Refuses("builder"),
            ),
            (
                "a Job builder",
                json!({"builder": {"imageBuilderType": "Job", "job": {"group": "batch", "resource": "jobs", "namespace": "ns", "name": "build"}}}),
                Accepts,
            ),
            (
                "nine conditions",
                json!({"conditions": (0..9).map(|n| condition(&format!("C{n}"), "False")).collect::<Vec<_>>()}),
                Refuses("Too many"),
            ),
            (
                "eleven related objects",
                json!({"relatedObjects": (0..11).map(|n| json!({"group": "batch", "resource": "jobs", "name": format!("n{n}")})).collect::<Vec<_>>()}),
                Refuses("Too many"),
            ),
            (
                "a digest that is none",
                json!({"digestedImagePushSpec": "quay.io/org/repo:tag"}),
                Refuses("valid '@sha256:<digest>' suffix"),
            ),
        ];
        for (case, value, answer) in cases {
            judge(
                case,
                api.patch_status(&name, &dry, &status(value))
                    .await
                    .map(|_| ()),
                &answer,
            )?;
        }
        let set = json!({"buildStart": early, "buildEnd": late, "conditions": [condition(terminal, "True")]});
        api.patch_status(&name, &PatchParams::default(), &status(set))
            .await
            .context("a terminal status")?;
        for (case, value, answer) in [
            (
                "another start",
                json!({"buildStart": "2025-12-31T00:00:00Z"}),
                Refuses("buildStart"),
            ),
            (
                "another end",
                json!({"buildEnd": "2026-01-02T00:00:00Z"}),
                Refuses("buildEnd"),
            ),
            (
                "another condition",
                json!({"conditions": [condition(terminal, "True"), condition("Building", "True")]}),
                Refuses(words),
            ),
            (
                "the same conditions",
                json!({"conditions": [condition(terminal, "True")]}),
                Accepts,
            ),
        ] {
            judge(
                case,
                api.patch_status(&name, &dry, &status(value))
                    .await
                    .map(|_| ()),
                &answer,
            )?;
        }
        delete_and_wait(&api, &name, &DeleteParams::default()).await?;
    }
    Ok(())
}

#[tokio::test]
async fn builds_show_their_conditions_as_columns_and_both_kinds_have_a_status_subresource()
-> Result<()> {
    let world = World::connect().await?;
    let crds: Api<k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition> = Api::all(world.client.clone());
    let columns: [(&str, &[&str]); 2] = [
        ("machineosconfigs", &[]),
        (
            "machineosbuilds",
            &[
                "Prepared",
                "Building",
                "Succeeded",
                "Interrupted",
                "Failed",
                "Age",
            ],
        ),
    ];
    for (plural, wanted) in columns {
        let crd = crds
            .get(&format!("{plural}.machineconfiguration.openshift.io"))
            .await?;
        ensure!(crd.spec.scope == "Cluster" && crd.spec.versions.len() == 1);
        let version = &crd.spec.versions[0];
        ensure!(version.name == "v1" && version.served && version.storage);
        ensure!(
            version
                .subresources
                .as_ref()
                .is_some_and(|s| s.status.is_some()),
            "{plural} has a status subresource"
        );
        let names: Vec<&str> = version
            .additional_printer_columns
            .iter()
            .flatten()
            .map(|c| c.name.as_str())
            .collect();
        ensure!(names == wanted, "{plural} shows {names:?}");
    }
    Ok(())
}
