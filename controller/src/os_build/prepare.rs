//! Can this build start, and with which objects?
//!
//! Reads what only the start of a build needs: the whole MachineConfig, secrets, the cluster's settings.

use kube::ResourceExt as _;
use strata_builder::error::{Class, Classify as _, chain};

use crate::api::{DEFAULT_PULL_SECRET, MachineConfigPool, MachineOSBuild, MachineOSConfig};
use crate::error::Error;
use crate::inputs::{BuildInputs, ContentKey, Sources};
use crate::job::{BuildObjects, Credentials, build_objects};
use crate::live::Live;
use crate::render::render;
use crate::secrets::{DockerConfig, docker_config};

/// Whether a build can start.
#[derive(Clone, Debug, PartialEq)]
pub enum Preparation {
    /// Nothing depends on it.
    NotAsked,
    /// With these objects.
    Ready(Box<Prepared>),
    /// Not before this is mended; then by itself.
    Waiting(String),
    /// Not before its pool is well.
    Blocked(String),
    /// Never: what it is made from can't be built.
    Invalid(String),
}

/// What starts a build.
#[derive(Clone, Debug, PartialEq)]
pub struct Prepared {
    /// ConfigMaps, Secrets, Job.
    pub objects: BuildObjects,
    /// Of the image.
    pub content_key: ContentKey,
}

/// Prepares `os_build`, which `os_config` wants.
///
/// # Errors
///
/// Of the apiserver.
pub async fn prepare(
    live: &impl Live,
    os_build: &MachineOSBuild,
    os_config: &MachineOSConfig,
    pool: &MachineConfigPool,
) -> Result<Preparation, Error> {
    let rendered_name = &os_build.spec.machine_config.name;
    let Some(machine_config) = live.machine_config(rendered_name).await? else {
        return Ok(Preparation::Waiting(format!(
            "MachineConfig {rendered_name} does not exist"
        )));
    };
    let controller_config = live.controller_config().await?;
    let sources = Sources {
        pool,
        machine_config: &machine_config,
        os_config,
        controller_config: controller_config.as_ref(),
        optional: live.optional_mounts(&pool.name_any()).await?,
    };
    let inputs = match BuildInputs::new(sources) {
        Ok(inputs) => inputs,
        Err(error) => return Ok(Preparation::Invalid(chain(&error))),
    };
    if inputs.name.as_str() != os_build.name_any() {
        // config, pool or MachineConfig have moved on since: their events are on the way
        return Ok(Preparation::Waiting(format!(
            "MachineOSConfig {} wants another build by now",
            inputs.os_config
        )));
    }
    let rendered = match render(&inputs) {
        Ok(rendered) => rendered,
        Err(error) => return Ok(Preparation::Invalid(chain(&error))),
    };
    let credentials = match credentials(live, &inputs).await? {
        Ok(credentials) => credentials,
        Err(what) => return Ok(Preparation::Waiting(what)),
    };
    let shape = match live.pod_shape().await? {
        Ok(shape) => shape,
        Err(why) => return Ok(Preparation::Waiting(why)),
    };
    let settings = live.settings();
    Ok(
        match build_objects(os_build, &inputs, &rendered, &credentials, shape, settings) {
            Ok(objects) => Preparation::Ready(Box::new(Prepared {
                content_key: inputs.content_key(&rendered.containerfile),
                objects,
            })),
            // an object besides the config's own inputs: mended, the same build can go on
            Err(error) => match error.class() {
                Class::User(_) => Preparation::Waiting(chain(&error)),
                Class::Transient | Class::Permanent(_) => Preparation::Invalid(chain(&error)),
            },
        },
    )
}

/// The credentials, or what is wrong with them.
async fn credentials(
    live: &impl Live,
    inputs: &BuildInputs,
) -> Result<Result<Credentials, String>, Error> {
    let namespace = &live.settings().namespace;
    let field = |field: &str, secret: &str| {
        format!(
            "secret {secret}, which MachineOSConfig {} names in spec.{field}.name, does not exist in namespace {namespace}",
            inputs.os_config
        )
    };
    let push_name = &inputs.push_secret;
    let push = match live.secret(push_name).await? {
        None => return Ok(Err(field("renderedImagePushSecret", push_name))),
        Some(secret) => match docker_config(&secret) {
            Ok(push) => push,
            Err(error) => return Ok(Err(chain(&error))),
        },
    };
    let pull_name = inputs.pull_secret.as_deref();
    let pull = match (
        live.secret(pull_name.unwrap_or(DEFAULT_PULL_SECRET))
            .await?,
        pull_name,
    ) {
        (Some(secret), _) => match docker_config(&secret) {
            Ok(pull) => pull,
            Err(error) => return Ok(Err(chain(&error))),
        },
        (None, Some(name)) => return Ok(Err(field("baseImagePullSecret", name))),
        // plain Kubernetes has no global pull secret: public images need none
        (None, None) => DockerConfig::anonymous(),
    };
    Ok(Ok(Credentials { pull, push }))
}
