//! A MachineOSConfig in, an image digest out.

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use kube::api::ListParams;
use serde_json::Value;
use strata_e2e::fixtures::{DOCUMENTED, PUSH_REGISTRY, push_secret_name, quick, rendered_name};
use strata_e2e::wait::{BUILD, eventually};
use strata_e2e::world::{annotation, condition, gone, is_true, labels, text};
use strata_e2e::{World, registry};

#[tokio::test]
async fn the_documented_example_becomes_an_image_in_which_cowsay_runs() -> Result<()> {
    let world = World::connect().await?;
    let pool = world.pool("documented").await?;
    pool.configure(DOCUMENTED).await?;
    let (build, image) = pool.succeeds(&[]).await?;

    let repository = format!("{PUSH_REGISTRY}/scenarios/documented");
    ensure!(
        image.starts_with(&format!("{repository}@sha256:")),
        "the image is {image}"
    );
    let name = build.name_any();
    let suffix = name
        .strip_prefix("documented-")
        .context("the build's name starts with the config's")?;
    ensure!(
        suffix.len() == 32 && suffix.bytes().all(|b| b.is_ascii_hexdigit()),
        "the build is called {name}"
    );
    ensure!(text(&build, "/spec/renderedImagePushSpec") == Some(format!("{repository}:{name}")));
    ensure!(
        registry::manifest(&format!("{repository}:{name}")).await?
            == registry::manifest(&image).await?
    );

    // conditions, times, builder and names as the API says
    for kind in ["Prepared", "Building", "Failed", "Interrupted"] {
        ensure!(
            condition(&build, kind).is_some() && !is_true(&build, kind),
            "{kind} of a succeeded build"
        );
    }
    let (start, end) = (
        text(&build, "/status/buildStart").context("buildStart")?,
        text(&build, "/status/buildEnd").context("buildEnd")?,
    );
    ensure!(
        start < end,
        "buildStart {start} is not before buildEnd {end}"
    );
    ensure!(text(&build, "/status/builder/imageBuilderType").as_deref() == Some("Job"));
    ensure!(text(&build, "/status/builder/job/name") == Some(format!("build-{name}")));
    let expected = [
        ("machine-os-config", "documented"),
        ("rendered-machine-config", &rendered_name("documented", 1)),
        ("target-machine-config-pool", "documented"),
    ];
    ensure!(
        labels(build.labels()) == expected.into_iter().collect(),
        "labels are {:?}",
        build.labels()
    );
    ensure!(
        annotation(&build, "rendered-image-push-secret") == Some(push_secret_name("documented"))
    );
    ensure!(annotation(&build, "job-uid").is_some());
    let os_config = pool.os_config().await?;
    ensure!(annotation(&os_config, "current-machine-os-build") == Some(name.clone()));
    let owner = build
        .owner_references()
        .first()
        .context("the build has an owner")?;
    ensure!(Some(&owner.uid) == os_config.metadata.uid.as_ref() && owner.controller == Some(true));

    // the image is the base plus what was asked for, and says where it comes from
    let image_config = registry::image_config(&image).await?;
    let label = |key: &str| {
        image_config
            .pointer("/config/Labels")
            .and_then(|l| l[key].as_str())
            .map(str::to_owned)
    };
    ensure!(label("machineconfig") == Some(rendered_name("documented", 1)));
    ensure!(label("machineconfigpool").as_deref() == Some("documented"));
    ensure!(label("baseOSContainerImage") == Some(world.base_image.clone()));
    ensure!(
        label("ostree.final-diffid").is_some(),
        "the base's own labels are kept"
    );
    let base = registry::manifest(&world.base_image).await?;
    let built = registry::manifest(&image).await?;
    let digests = |manifest: &Value| -> Vec<String> {
        let layers = manifest["layers"].as_array().cloned().unwrap_or_default();
        layers
            .iter()
            .filter_map(|layer| Some(layer["digest"].as_str()?.to_owned()))
            .collect()
    };
    ensure!(
        digests(&built).starts_with(&digests(&base)),
        "the base's layers are kept byte for byte, in order"
    );
    ensure!(digests(&built).len() > digests(&base).len());

    let output = world.run_image("documented-check", &image, &push_secret_name("documented"), &[
        "sh", "-c", "cowsay -f default built && jq -r .metadata.name /etc/machine-config-daemon/currentconfig && cat /etc/scenario/nice.conf && rpm -q cowsay && ls -A /run /tmp",
    ]).await?;
    ensure!(output.contains("< built >"), "cowsay said {output}");
    ensure!(
        output.contains(&rendered_name("documented", 1)) && output.contains("Nice=5"),
        "the machine config is in the image: {output}"
    );

    // what only the build needed is gone
    for name in [format!("base-{name}"), format!("final-{name}")] {
        gone(&world.secrets(), &name).await?;
    }
    gone(&world.jobs(), &format!("build-{name}")).await?;
    pool.remove().await
}

/// Fails if a step finds a token or credentials, sees a process but its own and their init, can look into that, or may mount. What it does see, and the reasons that it is
/// given, show that it looked where there is something to find.
const CONFINED: &str = r#"FROM configs AS final
RUN test -d /run && test ! -e /run/secrets/kubernetes.io && test ! -e /run/strata
RUN sleep 60 & until grep -q ^sleep /proc/$!/cmdline; do :; done; \
    for process in /proc/[0-9]*; do programs="$programs $(tr '\0' ' ' < $process/cmdline | cut -d ' ' -f 1)"; done; \
    cat /proc/$!/environ > /dev/null && kill $! && echo "processes:$programs" && test "$programs" = " /proc/self/exe /bin/sh sleep"
RUN test "$(cat /proc/1/environ /proc/1/root/etc/passwd 2>&1 | grep -c 'Permission denied')" = 2
RUN said=$(mount -t tmpfs none /tmp 2>&1) && exit 1; echo "$said" && echo "$said" | grep -q 'permission denied' && sleep 10
"#;

#[tokio::test]
async fn the_build_pod_has_no_more_rights_than_it_needs() -> Result<()> {
    let world = World::connect().await?;
    let pool = world.pool("rights").await?;
    pool.configure(CONFINED).await?;
    pool.build_in("Building", &[]).await?;
    let pod = eventually("the build's pod", BUILD, || async {
        let pods = world.pods().list(&ListParams::default()).await?.items;
        Ok(pods
            .into_iter()
            .find(|pod| pod.name_any().starts_with("build-rights-")))
    })
    .await?;
    let spec = pod.spec.as_ref().context("a pod has a spec")?;
    ensure!(spec.host_users == Some(false) && spec.automount_service_account_token == Some(false));
    ensure!(
        spec.active_deadline_seconds.is_some()
            || pool.jobs().await?.iter().all(|j| j
                .spec
                .as_ref()
                .is_some_and(|s| s.active_deadline_seconds.is_some()))
    );
    ensure!(
        spec.volumes
            .iter()
            .flatten()
            .any(|volume| volume.image.is_some()),
        "the base OS comes as an image volume"
    );
    ensure!(privileged(&pod).is_none(), "{:?}", privileged(&pod));
    for container in &spec.containers {
        let resources = container.resources.clone().unwrap_or_default();
        for list in [resources.requests, resources.limits] {
            let list = list.context("requests and limits")?;
            ensure!(
                ["memory", "ephemeral-storage"]
                    .iter()
                    .all(|key| list.contains_key(*key)),
                "resources are {list:?}"
            );
        }
    }
    pool.succeeds(&[]).await?;
    pool.remove().await
}

fn privileged(pod: &Pod) -> Option<String> {
    let containers = pod.spec.as_ref()?.containers.iter();
    let contexts = containers.filter_map(|c| c.security_context.as_ref());
    contexts
        .filter(|c| {
            c.privileged == Some(true) || c.capabilities.as_ref().is_some_and(|c| c.add.is_some())
        })
        .map(|c| format!("{c:?}"))
        .next()
}

#[tokio::test]
async fn a_config_without_a_containerfile_gives_the_base_with_the_machine_config() -> Result<()> {
    let world = World::connect().await?;
    let pool = world.pool("plain").await?;
    let mut os_config = strata_e2e::fixtures::os_config("plain", "");
    os_config["spec"]
        .as_object_mut()
        .context("a spec")?
        .remove("containerFile");
    pool.configure_with(os_config).await?;
    let (_, image) = pool.succeeds(&[]).await?;
    let output = world
        .run_image(
            "plain-check",
            &image,
            &push_secret_name("plain"),
            &["cat", "/etc/scenario/nice.conf"],
        )
        .await?;
    ensure!(output.contains("Nice=5"), "the file says {output}");
    pool.remove().await
}

#[tokio::test]
async fn a_pool_that_gets_its_machine_config_later_is_built_then() -> Result<()> {
    let world = World::connect().await?;
    let pool = world.pool("later").await?;
    let rendered = rendered_name("later", 1);
    strata_e2e::world::delete_and_wait(
        &world.objects("MachineConfig"),
        &rendered,
        &kube::api::DeleteParams::default(),
    )
    .await?;
    pool.configure(&quick("later")).await?;
    let os_config = eventually(
        "the config to say what it waits for",
        strata_e2e::wait::REACTION,
        || async {
            let os_config = pool.os_config().await?;
            Ok(os_config.data["status"]
                .to_string()
                .contains(&rendered)
                .then_some(os_config))
        },
    )
    .await?;
    ensure!(text(&os_config, "/status/currentImagePullSpec").is_none());
    ensure!(pool.jobs().await?.is_empty());
    pool.render(1).await?;
    pool.succeeds(&[]).await?;
    pool.remove().await
}
