//! What a cluster gives to builds reaches their steps, and not the image.

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{DeleteParams, PostParams};
use serde_json::json;
use strata_e2e::World;
use strata_e2e::fixtures::push_secret_name;
use strata_e2e::world::delete_and_wait;

const CONTAINERFILE: &str = "\
FROM configs AS final
RUN cat /etc/pki/entitlement/1.pem /etc/yum.repos.d/own.repo /etc/pki/rpm-gpg/own > /usr/share/seen && ls /etc/yum.repos.d >> /usr/share/seen
RUN echo changed >> /etc/pki/entitlement/1.pem
RUN cat /etc/pki/entitlement/1.pem >> /usr/share/seen
";

// one scenario for all three: the last two are for all pools, so no other build may run beside it
#[tokio::test]
async fn entitlements_repositories_and_keys_reach_the_steps_and_stay_out_of_the_image() -> Result<()>
{
    let world = World::connect().await?;
    let pool = world.pool("entitled").await?;
    let (entitlement, keys, repos) = (
        "etc-pki-entitlement-entitled",
        "etc-pki-rpm-gpg",
        "etc-yum-repos-d",
    );
    let remove = || async {
        let at_once = DeleteParams::default();
        delete_and_wait(&world.secrets(), entitlement, &at_once).await?;
        delete_and_wait(&world.secrets(), keys, &at_once).await?;
        delete_and_wait(&world.config_maps(), repos, &at_once).await
    };
    remove().await?;
    let secret = |name: &str, key: &str, content: &str| json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": {key: content}});
    world
        .create_secret(secret(entitlement, "1.pem", "certificate\n"))
        .await?;
    world.create_secret(secret(keys, "own", "key\n")).await?;
    let config_map: ConfigMap = serde_json::from_value(json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": repos}, "data": {"own.repo": "repository\n"},
    }))?;
    world
        .config_maps()
        .create(&PostParams::default(), &config_map)
        .await?;
    pool.configure(CONTAINERFILE).await?;
    let built = pool.succeeds(&[]).await;
    remove().await?;
    let (_, image) = built?;
    let output = world
        .run_image(
            "entitled-look",
            &image,
            &push_secret_name("entitled"),
            &[
                "sh",
                "-c",
                "cat /usr/share/seen; ls -d /etc/pki/entitlement /etc/pki/rpm-gpg/own /etc/yum.repos.d/own.repo 2> /dev/null || echo none left",
            ],
        )
        .await?;
    let lines: Vec<_> = output.lines().collect();
    ensure!(
        lines
            == [
                "certificate",
                "repository",
                "key",
                "own.repo",
                "certificate",
                "none left"
            ],
        "the image says {lines:?}"
    );
    pool.remove().await
}
