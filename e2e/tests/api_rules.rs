//! Every rule of the two CRDs, both ways, on the real apiserver.

use anyhow::{Context, Result, bail, ensure};
use kube::api::{Api, DeleteParams, DynamicObject, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use strata_e2e::World;
use strata_e2e::fixtures::{PUSH_REGISTRY, os_build, os_config};
use strata_e2e::world::{delete_and_wait, object};

/// What the apiserver should say to a change of a valid object.
#[derive(Clone, Copy)]
enum Answer {
    Accepts,
    /// With these words in its refusal.
    Refuses(&'static str),
}
use Answer::{Accepts, Refuses};

/// Which change, of the field at which JSON pointer, to what (`Null` removes it), and the answer.
type Row = (&'static str, &'static str, Value, Answer);

const TAG_RULE: &str =
    "the OCI Image name should follow the host[:port][/namespace]/name format, resembling";
const DIGEST_RULE: &str = "must end with a valid '@sha256:<digest>' suffix";
const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of";
const SHORT: &str = "should be at least";
const LONG: &str = "Too long: may not be more than";
const EARLY: &str = "2026-01-01T00:00:00Z";
const LATE: &str = "2026-01-01T00:00:01Z";

fn dry_run() -> PostParams {
    PostParams {
        dry_run: true,
        ..PostParams::default()
    }
}

fn judge(name: &str, outcome: kube::Result<DynamicObject>, answer: Answer) -> Result<()> {
    match (outcome, answer) {
        (Ok(_), Accepts) => Ok(()),
        (Err(kube::Error::Api(status)), Refuses(words)) if status.message.contains(words) => Ok(()),
        (Ok(_), Refuses(words)) => bail!("{name}: accepted; wanted a refusal with {words:?}"),
        (Err(error), Accepts) => bail!("{name}: refused: {error}"),
        (Err(error), Refuses(words)) => bail!("{name}: refused without {words:?}: {error}"),
    }
}

/// `value` with the field at a JSON pointer set, or removed by `Null`; its parent must be there, and a field that is removed, too.
fn with(mut value: Value, pointer: &str, field: Value) -> Result<Value> {
    let (parent, key) = pointer.rsplit_once('/').context("a pointer has a slash")?;
    let parent = value.pointer_mut(parent);
    let parent = parent.and_then(Value::as_object_mut);
    let parent = parent.with_context(|| format!("there is nothing that could hold {pointer}"))?;
    if field.is_null() {
        let removed = parent.remove(key);
        removed.with_context(|| format!("there is no {pointer} to remove"))?;
    } else {
        parent.insert(key.to_owned(), field);
    }
    Ok(value)
}

/// Tries each row's change of `valid` on creation.
async fn create(api: &Api<DynamicObject>, valid: &Value, rows: Vec<Row>) -> Result<()> {
    for (name, pointer, field, answer) in rows {
        let candidate = with(valid.clone(), pointer, field).context(name)?;
        judge(
            name,
            api.create(&dry_run(), &object(candidate)?).await,
            answer,
        )?;
    }
    Ok(())
}

/// Tries each row's change of the fragment `valid`, wrapped into a status, on the stored object `name`.
async fn status(
    api: &Api<DynamicObject>,
    name: &str,
    valid: &Value,
    wrap: impl Fn(Value) -> Value,
    rows: Vec<Row>,
) -> Result<()> {
    for (case, pointer, field, answer) in rows {
        let fragment = with(valid.clone(), pointer, field).context(case)?;
        patch_status(api, name, wrap(fragment), case, answer).await?;
    }
    Ok(())
}

async fn patch_status(
    api: &Api<DynamicObject>,
    name: &str,
    status: Value,
    case: &str,
    answer: Answer,
) -> Result<()> {
    let dry = PatchParams {
        dry_run: true,
        ..PatchParams::default()
    };
    let case = format!("{case}: {status:.200}");
    let patch = Patch::Merge(json!({"status": status}));
    judge(&case, api.patch_status(name, &dry, &patch).await, answer)
}

async fn patch(
    api: &Api<DynamicObject>,
    name: &str,
    change: Value,
    case: &str,
    answer: Answer,
) -> Result<()> {
    let dry = PatchParams {
        dry_run: true,
        ..PatchParams::default()
    };
    judge(
        case,
        api.patch(name, &dry, &Patch::Merge(change)).await,
        answer,
    )
}

/// Creates `value` for good, after what an earlier run left is gone.
async fn store(api: &Api<DynamicObject>, value: Value) -> Result<String> {
    let stored = object(value)?;
    let name = stored.metadata.name.clone().context("a name")?;
    delete_and_wait(api, &name, &DeleteParams::default()).await?;
    api.create(&PostParams::default(), &stored).await?;
    Ok(name)
}

async fn store_status(api: &Api<DynamicObject>, name: &str, status: Value) -> Result<()> {
    let patch = Patch::Merge(json!({"status": status}));
    api.patch_status(name, &PatchParams::default(), &patch)
        .await
        .with_context(|| format!("status of {name}"))?;
    Ok(())
}

/// A reference of `length` characters with a tag.
fn tagged(length: usize) -> Value {
    json!(format!("quay.io/{}:t", "a".repeat(length - 10)))
}

/// A reference of `length` characters with a digest.
fn digested(length: usize) -> Value {
    json!(format!(
        "quay.io/{}@sha256:{}",
        "a".repeat(length - 80),
        "0".repeat(64)
    ))
}

fn letters(length: usize) -> Value {
    json!("a".repeat(length))
}

/// Rows for a field that is a reference with a tag.
#[rustfmt::skip]
fn tag_rows(pointer: &'static str) -> Vec<Row> {
    let digest = format!("quay.io/org/repo@sha256:{}", "a".repeat(64));
    vec![
        ("no push spec", pointer, Value::Null, Refuses("renderedImagePushSpec: Required value")),
        ("an empty push spec", pointer, json!(""), Refuses(SHORT)),
        ("a push spec of 447", pointer, tagged(447), Accepts),
        ("a push spec of 448", pointer, tagged(448), Refuses(LONG)),
        ("no namespace", pointer, json!("quay.io/repo:tag"), Accepts),
        ("a nested repository", pointer, json!("quay.io/a/b/c:tag"), Accepts),
        ("an upper-case repository", pointer, json!("quay.io/Org/Repo:Tag"), Accepts),
        ("the internal registry", pointer, json!("image-registry.openshift-image-registry.svc:5000/ns/os:latest"), Accepts),
        ("the internal registry without a tag", pointer, json!("image-registry.openshift-image-registry.svc:5000/ns/os"), Refuses(TAG_RULE)),
        ("an address", pointer, json!("10.0.0.1:5000/org/repo:x"), Accepts),
        ("a port of one figure", pointer, json!("10.0.0.1:5/org/repo:x"), Refuses(TAG_RULE)),
        ("a port of six figures", pointer, json!("10.0.0.1:500000/org/repo:x"), Refuses(TAG_RULE)),
        ("a namespace of 61", pointer, json!(format!("quay.io/{}/repo:x", "a".repeat(61))), Accepts),
        ("a namespace of 62", pointer, json!(format!("quay.io/{}/repo:x", "a".repeat(62))), Refuses(TAG_RULE)),
        ("a namespace with a dot", pointer, json!("quay.io/my.org/repo:x"), Refuses(TAG_RULE)),
        ("no tag", pointer, json!("quay.io/org/repo"), Refuses(TAG_RULE)),
        ("a digest", pointer, json!(digest), Refuses(TAG_RULE)),
        ("a host without a dot", pointer, json!("registry:5000/org/repo:x"), Refuses(TAG_RULE)),
        ("a scheme", pointer, json!("https://quay.io/org/repo:x"), Refuses(TAG_RULE)),
    ]
}

/// Rows for a field that is a reference with a digest, in a status.
#[rustfmt::skip]
fn digest_rows(pointer: &'static str) -> Vec<Row> {
    let name_rule = "the OCI Image name should follow the host[:port][/namespace]/name format";
    let of = |name: &str| json!(format!("{name}@sha256:{}", "0".repeat(64)));
    vec![
        ("a digest", pointer, of("quay.io/org/repo"), Accepts),
        ("a digest at a port", pointer, of("10.0.0.1:5000/repo"), Accepts),
        ("a digest below nested repositories", pointer, of(&format!("{PUSH_REGISTRY}/a/b/c")), Accepts),
        ("an empty digest spec", pointer, json!(""), Refuses(SHORT)),
        ("a digest spec of 447", pointer, digested(447), Accepts),
        ("a digest spec of 448", pointer, digested(448), Refuses(LONG)),
        ("a tag", pointer, json!("quay.io/org/repo:tag"), Refuses(DIGEST_RULE)),
        ("a short digest", pointer, json!("quay.io/org/repo@sha256:abc"), Refuses(DIGEST_RULE)),
        ("an upper-case digest", pointer, json!(format!("quay.io/org/repo@sha256:{}", "A".repeat(64))), Refuses(DIGEST_RULE)),
        ("another algorithm", pointer, json!(format!("quay.io/org/repo@sha512:{}", "0".repeat(64))), Refuses(DIGEST_RULE)),
        ("two digests", pointer, of(&format!("quay.io/org/repo@sha256:{}", "0".repeat(64))), Refuses(DIGEST_RULE)),
        ("a digest without a host", pointer, of("repo"), Refuses(name_rule)),
        ("a digest and a tag", pointer, of("quay.io/org/repo:tag"), Refuses(name_rule)),
        ("a digest of a namespace with a dot", pointer, of("quay.io/my.org/repo"), Refuses(name_rule)),
        ("a digest of a namespace of 62", pointer, of(&format!("quay.io/{}/repo", "a".repeat(62))), Refuses(name_rule)),
    ]
}

/// Rows for the fields of a reference to an object.
#[rustfmt::skip]
fn reference_rows() -> Vec<Row> {
    vec![
        ("a reference", "/name", json!("x"), Accepts),
        ("no group", "/group", Value::Null, Refuses("group: Required value")),
        ("the core group", "/group", json!(""), Refuses(SUBDOMAIN)),
        ("an upper-case group", "/group", json!("Batch"), Refuses(SUBDOMAIN)),
        ("a group of 253", "/group", letters(253), Accepts),
        ("a group of 254", "/group", letters(254), Refuses(LONG)),
        ("no resource", "/resource", Value::Null, Refuses("resource: Required value")),
        ("an empty resource", "/resource", json!(""), Refuses(SHORT)),
        ("an upper-case resource", "/resource", json!("Upper"), Refuses("a DNS-1035 label must consist of")),
        ("a resource that begins with a figure", "/resource", json!("1jobs"), Refuses("a DNS-1035 label must consist of")),
        ("a resource of 63", "/resource", letters(63), Accepts),
        ("a resource of 64", "/resource", letters(64), Refuses(LONG)),
        ("no namespace", "/namespace", Value::Null, Accepts),
        ("an empty namespace", "/namespace", json!(""), Refuses(SHORT)),
        ("a namespace with a dot", "/namespace", json!("a.b"), Refuses("a DNS-1123 label must consist of")),
        ("an upper-case namespace", "/namespace", json!("Upper"), Refuses("a DNS-1123 label must consist of")),
        ("a namespace that begins with a figure", "/namespace", json!("1ns"), Accepts),
        ("a namespace of 63", "/namespace", letters(63), Accepts),
        ("a namespace of 64", "/namespace", letters(64), Refuses(LONG)),
        ("no name", "/name", Value::Null, Refuses("name: Required value")),
        ("an empty name", "/name", json!(""), Refuses(SHORT)),
        ("an upper-case name", "/name", json!("Upper"), Refuses(SUBDOMAIN)),
        ("a name of 253", "/name", letters(253), Accepts),
        ("a name of 254", "/name", letters(254), Refuses(LONG)),
    ]
}

fn reference() -> Value {
    json!({"group": "batch", "resource": "jobs", "namespace": "ns", "name": "build"})
}

/// Rows for the fields of a condition.
#[rustfmt::skip]
fn condition_rows() -> Vec<Row> {
    vec![
        ("a condition", "/status", json!("False"), Accepts),
        ("no type", "/type", Value::Null, Refuses("type: Required value")),
        ("an empty type", "/type", json!(""), Refuses("should match")),
        ("a type with a prefix", "/type", json!("example.com/Ready"), Accepts),
        ("a type of words", "/type", json!("Two Words"), Refuses("should match")),
        ("a type of 316", "/type", letters(316), Accepts),
        ("a type of 317", "/type", letters(317), Refuses(LONG)),
        ("no status", "/status", Value::Null, Refuses("status: Required value")),
        ("an unknown status", "/status", json!("Unknown"), Accepts),
        ("a lower-case status", "/status", json!("true"), Refuses("Unsupported value")),
        ("no reason", "/reason", Value::Null, Refuses("reason: Required value")),
        ("an empty reason", "/reason", json!(""), Refuses(SHORT)),
        ("a reason of words", "/reason", json!("Two Words"), Refuses("should match")),
        ("a reason that begins with a figure", "/reason", json!("1st"), Refuses("should match")),
        ("a reason of 1024", "/reason", letters(1024), Accepts),
        ("a reason of 1025", "/reason", letters(1025), Refuses(LONG)),
        ("no message", "/message", Value::Null, Refuses("message: Required value")),
        ("an empty message", "/message", json!(""), Accepts),
        ("a message of 32768", "/message", letters(32768), Accepts),
        ("a message of 32769", "/message", letters(32769), Refuses(LONG)),
        ("no time", "/lastTransitionTime", Value::Null, Refuses("lastTransitionTime: Required value")),
        ("a time of words", "/lastTransitionTime", json!("yesterday"), Refuses("must be of type date-time")),
        ("a generation", "/observedGeneration", json!(0), Accepts),
        ("a negative generation", "/observedGeneration", json!(-1), Refuses("should be greater than or equal to 0")),
    ]
}

fn condition(kind: &str, value: &str) -> Value {
    json!({"type": kind, "status": value, "reason": "Rules", "message": "rules", "lastTransitionTime": EARLY})
}

#[tokio::test]
#[rustfmt::skip]
async fn a_machine_os_config_is_judged_by_every_rule_on_creation() -> Result<()> {
    let world = World::connect().await?;
    let (api, valid) = (world.os_configs(), os_config("rules", "FROM configs AS final\n"));
    let entries = |n: usize| {
        let archs = ["NoArch", "ARM64", "AMD64", "PPC64LE", "S390X"];
        archs[..n].iter().map(|arch| json!({"containerfileArch": arch, "content": "FROM configs"})).collect::<Value>()
    };
    create(&api, &valid, vec![
        ("unchanged", "/metadata/name", json!("rules"), Accepts),
        ("another pool", "/spec/machineConfigPool/name", json!("other"), Refuses("MachineOSConfig name must match the referenced MachineConfigPool name")),
        ("no spec", "/spec", Value::Null, Refuses("spec: Required value")),
        ("no pool", "/spec/machineConfigPool", Value::Null, Refuses("spec.machineConfigPool: Required value")),
        ("a pool without a name", "/spec/machineConfigPool/name", Value::Null, Refuses("spec.machineConfigPool.name: Required value")),
        ("an empty pool name", "/spec/machineConfigPool/name", json!(""), Refuses(SUBDOMAIN)),
        ("a pool name of 254", "/spec/machineConfigPool/name", letters(254), Refuses(LONG)),
        ("no builder", "/spec/imageBuilder", Value::Null, Refuses("spec.imageBuilder: Required value")),
        ("a builder without a type", "/spec/imageBuilder/imageBuilderType", Value::Null, Refuses("imageBuilderType: Required value")),
        ("another builder", "/spec/imageBuilder/imageBuilderType", json!("PodImageBuilder"), Refuses("Unsupported value")),
        ("no push secret", "/spec/renderedImagePushSecret", Value::Null, Refuses("spec.renderedImagePushSecret: Required value")),
        ("a push secret without a name", "/spec/renderedImagePushSecret/name", Value::Null, Refuses("renderedImagePushSecret.name: Required value")),
        ("an empty push secret", "/spec/renderedImagePushSecret/name", json!(""), Refuses(SUBDOMAIN)),
        ("an upper-case push secret", "/spec/renderedImagePushSecret/name", json!("Upper"), Refuses(SUBDOMAIN)),
        ("a push secret of 253", "/spec/renderedImagePushSecret/name", letters(253), Accepts),
        ("a push secret of 254", "/spec/renderedImagePushSecret/name", letters(254), Refuses(LONG)),
        ("a base secret", "/spec/baseImagePullSecret", json!({"name": "base"}), Accepts),
        ("a base secret without a name", "/spec/baseImagePullSecret", json!({}), Refuses("spec.baseImagePullSecret.name: Required value")),
        ("an empty base secret", "/spec/baseImagePullSecret", json!({"name": ""}), Refuses(SUBDOMAIN)),
        ("an upper-case base secret", "/spec/baseImagePullSecret", json!({"name": "Base"}), Refuses(SUBDOMAIN)),
        ("a base secret of 254", "/spec/baseImagePullSecret", json!({"name": "a".repeat(254)}), Refuses(LONG)),
        ("no Containerfile", "/spec/containerFile", Value::Null, Accepts),
        ("an empty list", "/spec/containerFile", json!([]), Accepts),
        ("four Containerfiles", "/spec/containerFile", entries(4), Accepts),
        ("five Containerfiles", "/spec/containerFile", entries(5), Refuses("Too many")),
        ("an architecture twice", "/spec/containerFile", json!([{"containerfileArch": "ARM64", "content": "x"}, {"containerfileArch": "ARM64", "content": "y"}]), Refuses("Duplicate value")),
        ("an unknown architecture", "/spec/containerFile", json!([{"containerfileArch": "RISCV", "content": "x"}]), Refuses("Unsupported value")),
        ("a Containerfile without content", "/spec/containerFile", json!([{"containerfileArch": "ARM64"}]), Refuses("content: Required value")),
        ("4096 characters", "/spec/containerFile", json!([{"content": "é".repeat(4096)}]), Accepts),
        ("4097 characters", "/spec/containerFile", json!([{"content": "x".repeat(4097)}]), Refuses(LONG)),
    ]).await?;
    create(&api, &valid, tag_rows("/spec/renderedImagePushSpec")).await?;
    let unsaid = with(valid, "/spec/containerFile", json!([{"content": "x"}]))?;
    let defaulted = api.create(&dry_run(), &object(unsaid)?).await?;
    ensure!(defaulted.data.pointer("/spec/containerFile/0/containerfileArch") == Some(&json!("NoArch")));
    Ok(())
}

#[tokio::test]
#[rustfmt::skip]
async fn a_machine_os_build_is_judged_by_every_rule_on_creation() -> Result<()> {
    let world = World::connect().await?;
    let (api, valid) = (world.os_builds(), os_build("rules-1"));
    create(&api, &valid, vec![
        ("unchanged", "/metadata/name", json!("rules-1"), Accepts),
        ("no spec", "/spec", Value::Null, Refuses("spec: Required value")),
        ("no machine config", "/spec/machineConfig", Value::Null, Refuses("spec.machineConfig: Required value")),
        ("a machine config without a name", "/spec/machineConfig/name", Value::Null, Refuses("spec.machineConfig.name: Required value")),
        ("a machine config of 9", "/spec/machineConfig/name", json!("rendered-"), Refuses(SHORT)),
        ("a machine config of 10", "/spec/machineConfig/name", json!("rendered-1"), Accepts),
        ("a machine config of 253", "/spec/machineConfig/name", letters(253), Accepts),
        ("a machine config of 254", "/spec/machineConfig/name", letters(254), Refuses(LONG)),
        ("an upper-case machine config", "/spec/machineConfig/name", json!("Rendered-worker-1"), Refuses(SUBDOMAIN)),
        ("no config", "/spec/machineOSConfig", Value::Null, Refuses("spec.machineOSConfig: Required value")),
        ("a config without a name", "/spec/machineOSConfig/name", Value::Null, Refuses("spec.machineOSConfig.name: Required value")),
        ("an empty config name", "/spec/machineOSConfig/name", json!(""), Refuses(SHORT)),
        ("a config of 1", "/spec/machineOSConfig/name", json!("a"), Accepts),
        ("a config of 253", "/spec/machineOSConfig/name", letters(253), Accepts),
        ("a config of 254", "/spec/machineOSConfig/name", letters(254), Refuses(LONG)),
        ("an upper-case config", "/spec/machineOSConfig/name", json!("Rules"), Refuses(SUBDOMAIN)),
    ]).await?;
    create(&api, &valid, tag_rows("/spec/renderedImagePushSpec")).await
}

#[tokio::test]
#[rustfmt::skip]
async fn updates_of_a_config_are_judged_by_the_transition_rules() -> Result<()> {
    let world = World::connect().await?;
    let api = world.os_configs();
    // no pool of that name: the controller builds nothing
    let name = &store(&api, os_config("transitions", "FROM configs AS final\n")).await?;
    for (case, change, answer) in [
        ("another pool", json!({"machineConfigPool": {"name": "other"}}), Refuses("MachineOSConfig name must match")),
        ("another Containerfile", json!({"containerFile": [{"content": "FROM configs AS final\nRUN true\n"}]}), Accepts),
        ("no Containerfile", json!({"containerFile": null}), Accepts),
        ("another repository", json!({"renderedImagePushSpec": "quay.io/other/os:latest"}), Accepts),
        ("other secrets", json!({"renderedImagePushSecret": {"name": "other"}, "baseImagePullSecret": {"name": "other"}}), Accepts),
        ("a repository without a tag", json!({"renderedImagePushSpec": "quay.io/other/os"}), Refuses(TAG_RULE)),
    ] {
        patch(&api, name, json!({"spec": change}), case, answer).await?;
    }

    store_status(&api, name, json!({"observedGeneration": 1})).await?;
    for (generation, answer) in [
        (-1, Refuses("should be greater than or equal to 0")),
        (0, Refuses("observedGeneration must not move backwards")),
        (1, Accepts),
        (2, Accepts),
    ] {
        patch_status(&api, name, json!({"observedGeneration": generation}), "a generation", answer).await?;
    }
    status(&api, name, &json!({}), |fields| fields, digest_rows("/currentImagePullSpec")).await?;
    status(&api, name, &reference(), |fields| json!({"machineOSBuild": fields}), reference_rows()).await?;
    status(&api, name, &condition("Rules", "True"), |fields| json!({"conditions": [fields]}), condition_rows()).await?;
    let twice = json!({"conditions": [condition("Rules", "True"), condition("Rules", "False")]});
    patch_status(&api, name, twice, "a condition twice", Refuses("Duplicate value")).await?;
    delete_and_wait(&api, name, &DeleteParams::default()).await
}

#[tokio::test]
#[rustfmt::skip]
async fn updates_of_a_build_are_judged_by_every_rule() -> Result<()> {
    let world = World::connect().await?;
    let api = world.os_builds();
    // no MachineOSConfig of that name: nobody but this scenario writes to it
    let name = &store(&api, with(os_build("updates"), "/spec/machineOSConfig/name", json!("nobody"))?).await?;
    let immutable = Refuses("machineOSBuildSpec is immutable once set");
    patch(&api, name, json!({"spec": {"machineConfig": {"name": "rendered-rules-other"}}}), "another machine config", immutable).await?;
    patch(&api, name, json!({"spec": {"machineOSConfig": {"name": "other"}}}), "another config", immutable).await?;
    patch(&api, name, json!({"spec": {"renderedImagePushSpec": "quay.io/org/other:tag"}}), "another push spec", immutable).await?;
    patch(&api, name, json!({"spec": {"machineOSConfig": {"name": "nobody"}}}), "the same spec", Accepts).await?;
    patch(&api, name, json!({"metadata": {"labels": {"a": "b"}}}), "a label", Accepts).await?;

    let order = Refuses("buildEnd must be after buildStart");
    let conditions = |n: usize| (0..n).map(|n| condition(&format!("C{n}"), "False")).collect::<Value>();
    let related = |n: usize| (0..n).map(|n| json!({"group": "batch", "resource": "jobs", "name": format!("n{n}")})).collect::<Value>();
    for (case, fields, answer) in [
        ("an end without a start", json!({"buildEnd": LATE}), order),
        ("an end in the second of the start", json!({"buildStart": LATE, "buildEnd": LATE}), order),
        ("an end before the start", json!({"buildStart": LATE, "buildEnd": EARLY}), order),
        ("an end after the start", json!({"buildStart": EARLY, "buildEnd": LATE}), Accepts),
        ("a start of words", json!({"buildStart": "now"}), Refuses("must be of type date-time")),
        ("a builder without a type", json!({"builder": {"job": reference()}}), Refuses("imageBuilderType: Required value")),
        ("a Job builder without a Job", json!({"builder": {"imageBuilderType": "Job"}}), Refuses("job is required when imageBuilderType is Job")),
        ("another builder with a Job", json!({"builder": {"imageBuilderType": "Pod", "job": reference()}}), Refuses("forbidden otherwise")),
        ("another builder", json!({"builder": {"imageBuilderType": "Pod"}}), Accepts),
        ("a Job builder", json!({"builder": {"imageBuilderType": "Job", "job": reference()}}), Accepts),
        ("eight conditions", json!({"conditions": conditions(8)}), Accepts),
        ("nine conditions", json!({"conditions": conditions(9)}), Refuses("Too many")),
        ("a condition twice", json!({"conditions": [condition("C", "True"), condition("C", "False")]}), Refuses("Duplicate value")),
        ("ten related objects", json!({"relatedObjects": related(10)}), Accepts),
        ("eleven related objects", json!({"relatedObjects": related(11)}), Refuses("Too many")),
        ("a related object twice", json!({"relatedObjects": [reference(), reference()]}), Refuses("Duplicate value")),
    ] {
        patch_status(&api, name, fields, case, answer).await?;
    }
    status(&api, name, &json!({}), |fields| fields, digest_rows("/digestedImagePushSpec")).await?;
    status(&api, name, &reference(), |fields| json!({"builder": {"imageBuilderType": "Job", "job": fields}}), reference_rows()).await?;
    status(&api, name, &reference(), |fields| json!({"relatedObjects": [fields]}), reference_rows()).await?;
    status(&api, name, &condition("Rules", "True"), |fields| json!({"conditions": [fields]}), condition_rows()).await?;
    delete_and_wait(&api, name, &DeleteParams::default()).await
}

#[tokio::test]
#[rustfmt::skip]
async fn a_builds_times_and_terminal_conditions_are_immutable() -> Result<()> {
    let world = World::connect().await?;
    let api = world.os_builds();
    for (terminal, words) in [
        ("Failed", "once a Failed condition is set, conditions are immutable"),
        ("Interrupted", "once an Interrupted condition is set, conditions are immutable"),
        ("Succeeded", "once an Succeeded condition is set, conditions are immutable"),
    ] {
        let name = format!("immutable-{}", terminal.to_lowercase());
        let name = &store(&api, with(os_build(&name), "/spec/machineOSConfig/name", json!("nobody"))?).await?;

        // while it runs, conditions change and the start doesn't
        store_status(&api, name, json!({"buildStart": EARLY, "conditions": [condition(terminal, "False"), condition("Building", "True")]})).await?;
        for (case, fields, answer) in [
            ("another start of a running build", json!({"buildStart": LATE}), Refuses("buildStart is immutable once set")),
            ("the same start of a running build", json!({"buildStart": EARLY}), Accepts),
            ("other conditions of a running build", json!({"conditions": [condition(terminal, "False"), condition("Building", "False")]}), Accepts),
        ] {
            patch_status(&api, name, fields, case, answer).await?;
        }

        store_status(&api, name, json!({"buildEnd": LATE, "conditions": [condition(terminal, "True")]})).await?;
        for (case, fields, answer) in [
            ("another start", json!({"buildStart": "2025-12-31T00:00:00Z"}), Refuses("buildStart is immutable once set")),
            ("another end", json!({"buildEnd": "2026-01-02T00:00:00Z"}), Refuses("buildEnd is immutable once set")),
            ("one condition more", json!({"conditions": [condition(terminal, "True"), condition("Building", "True")]}), Refuses(words)),
            ("the condition taken back", json!({"conditions": [condition(terminal, "False")]}), Refuses(words)),
            ("another message", json!({"conditions": [with(condition(terminal, "True"), "/message", json!("other"))?]}), Refuses(words)),
            ("the same conditions", json!({"conditions": [condition(terminal, "True")]}), Accepts),
            ("a digest", json!({"digestedImagePushSpec": digested(100)}), Accepts),
        ] {
            patch_status(&api, name, fields, case, answer).await?;
        }
        delete_and_wait(&api, name, &DeleteParams::default()).await?;
    }
    Ok(())
}

#[test]
fn a_change_of_what_is_not_there_is_no_change() {
    let value = json!({"spec": {"a": 1}});
    for pointer in ["/spec/b/c", "/other/a", "/spec/a/b", "spec"] {
        assert!(
            with(value.clone(), pointer, json!(1)).is_err(),
            "{pointer} was set"
        );
    }
    assert!(with(value.clone(), "/spec/b", Value::Null).is_err());
    assert_eq!(
        with(value, "/spec/a", Value::Null).ok(),
        Some(json!({"spec": {}}))
    );
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
