//! A build pulls as the pool's nodes do: by the registries.conf and policy.json of the rendered MachineConfig.

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use strata_e2e::World;
use strata_e2e::fixtures::push_secret_name;
use strata_e2e::world::{message, uid};

/// A registry that nobody can reach, but for its mirror.
const MIRRORED: &str = "images.example.invalid/tools";

fn file(path: &str, content: &str) -> Value {
    let source = format!("data:;base64,{}", BASE64_STANDARD.encode(content));
    json!({"path": path, "mode": 420, "overwrite": true, "contents": {"source": source}})
}

fn add(spec: &mut Value, file: Value) {
    if let Some(files) = spec["config"]["storage"]["files"].as_array_mut() {
        files.push(file);
    }
}

#[tokio::test]
async fn mirrors_and_policies_of_the_rendered_machine_config_count_in_builds() -> Result<()> {
    let world = World::connect().await?;
    let image = world.builder_image().await?;
    let (repository, digest) = image
        .split_once('@')
        .with_context(|| format!("{image} has no digest"))?;
    let pool = world.pool("pulling").await?;
    let registries = format!(
        "[[registry]]\nprefix = \"{MIRRORED}\"\nlocation = \"{MIRRORED}\"\nmirror-by-digest-only = true\n\
         [[registry.mirror]]\nlocation = \"{repository}\"\ninsecure = true\n"
    );
    let policy = r#"{"default": [{"type": "insecureAcceptAnything"}],
        "transports": {"docker": {"images.example.invalid/forbidden": [{"type": "reject"}]}}}"#;
    pool.render_with(2, |spec| {
        add(spec, file("/etc/containers/registries.conf", &registries));
        add(spec, file("/etc/containers/policy.json", policy));
    })
    .await?;
    pool.move_to(2).await?;
    pool.configure(&format!(
        "FROM configs AS final\nCOPY --from={MIRRORED}@{digest} /etc/passwd /usr/share/seen\nRUN ls /run/strata /etc/containers/registries.conf 2> /dev/null >> /usr/share/seen || true\n"
    ))
    .await?;
    let (build, built) = pool.succeeds(&[]).await?;
    let secret = push_secret_name("pulling");
    let command = [
        "sh",
        "-c",
        "head -n 1 /usr/share/seen; grep -c /run/strata /usr/share/seen || true",
    ];
    let output = world
        .run_image("pulling-look", &built, &secret, &command)
        .await?;
    ensure!(
        output.lines().collect::<Vec<_>>() == ["root:x:0:0:root:/:/usr/sbin/nologin", "0"],
        "the image says {output:?}"
    );
    pool.edit(&format!(
        "FROM configs AS final\nCOPY --from=images.example.invalid/forbidden/tool@{digest} /etc/passwd /usr/share/seen\n"
    ))
    .await?;
    let failed = pool.build_in("Failed", &[uid(&build)]).await?;
    let told = message(&failed, "Failed");
    let wanted = "policy.json rejects it by the rule for \"images.example.invalid/forbidden\"";
    ensure!(told.contains(wanted), "{told:?}");
    // a file that no build can use is named before there is a Job
    pool.render_with(3, |spec| {
        add(spec, file("/etc/containers/policy.json", "{"));
    })
    .await?;
    pool.move_to(3).await?;
    let failed = pool
        .build_in("Failed", &[uid(&build), uid(&failed)])
        .await?;
    let told = message(&failed, "Failed");
    ensure!(
        told.contains("the file /etc/containers/policy.json in spec.config.storage.files"),
        "{told:?}"
    );
    pool.remove().await
}
