//! Can this build start, and with which objects?
//!
//! Reads what only the start of a build needs: the whole MachineConfig, secrets, the cluster's settings.

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::core::PartialObjectMeta;
use kube::{Api, ResourceExt as _};
use strata_builder::error::{Class, Classify as _, chain};

use crate::api::{
    DEFAULT_PULL_SECRET, MachineConfig, MachineConfigPool, MachineOSBuild, MachineOSConfig, name,
};
use crate::context::Context;
use crate::error::Error;
use crate::inputs::{BuildInputs, ContentKey, OptionalMounts, Sources};
use crate::job::{BuildObjects, Credentials, build_objects};
use crate::registries::read_controller_config;
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
    context: &Context,
    os_build: &MachineOSBuild,
    os_config: &MachineOSConfig,
    pool: &MachineConfigPool,
) -> Result<Preparation, Error> {
    let rendered_name = &os_build.spec.machine_config.name;
    let machine_configs: Api<MachineConfig> = Api::all(context.client.clone());
    let machine_config = machine_configs
        .get_opt(rendered_name)
        .await
        .map_err(read("MachineConfig", rendered_name))?;
    let Some(machine_config) = machine_config else {
        return Ok(Preparation::Waiting(format!(
            "MachineConfig {rendered_name} does not exist"
        )));
    };
    let controller_config = read_controller_config(&context.client)
        .await
        .map_err(read("ControllerConfig", crate::api::CONTROLLER_CONFIG_NAME))?;
    let sources = Sources {
        pool,
        machine_config: &machine_config,
        os_config,
        controller_config: controller_config.as_ref(),
        optional: optional_mounts(context, &pool.name_any()).await?,
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
    let credentials = match credentials(context, &inputs).await? {
        Ok(credentials) => credentials,
        Err(what) => return Ok(Preparation::Waiting(what)),
    };
    Ok(
        match build_objects(
            os_build,
            &inputs,
            &rendered,
            &credentials,
            &context.settings,
        ) {
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

fn read(kind: &'static str, name: &str) -> impl FnOnce(kube::Error) -> Error {
    let object = format!("{kind} {name}");
    move |source| Error::Read { object, source }
}

async fn secret(context: &Context, name: &str) -> Result<Option<Secret>, Error> {
    let secrets: Api<Secret> = Api::namespaced(context.client.clone(), &context.settings.namespace);
    secrets.get_opt(name).await.map_err(read("Secret", name))
}

/// The credentials, or what is wrong with them.
async fn credentials(
    context: &Context,
    inputs: &BuildInputs,
) -> Result<Result<Credentials, String>, Error> {
    let namespace = &context.settings.namespace;
    let field = |field: &str, secret: &str| {
        format!(
            "secret {secret}, which MachineOSConfig {} names in spec.{field}.name, does not exist in namespace {namespace}",
            inputs.os_config
        )
    };
    let push_name = &inputs.push_secret;
    let push = match secret(context, push_name).await? {
        None => return Ok(Err(field("renderedImagePushSecret", push_name))),
        Some(secret) => match docker_config(&secret) {
            Ok(push) => push,
            Err(error) => return Ok(Err(chain(&error))),
        },
    };
    let pull_name = inputs.pull_secret.as_deref();
    let pull = match (
        secret(context, pull_name.unwrap_or(DEFAULT_PULL_SECRET)).await?,
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

async fn optional_mounts(context: &Context, pool: &str) -> Result<OptionalMounts, Error> {
    let namespace = &context.settings.namespace;
    let secrets: Api<PartialObjectMeta<Secret>> =
        Api::namespaced(context.client.clone(), namespace);
    let config_maps: Api<PartialObjectMeta<ConfigMap>> =
        Api::namespaced(context.client.clone(), namespace);
    let entitlement = name::entitlement(pool);
    let (entitlement, rpm_gpg, yum_repos) = futures::try_join!(
        exists(&secrets, "Secret", &entitlement),
        exists(&secrets, "Secret", name::RPM_GPG),
        exists(&config_maps, "ConfigMap", name::YUM_REPOS),
    )?;
    Ok(OptionalMounts {
        entitlement,
        yum_repos,
        rpm_gpg,
    })
}

async fn exists<K>(
    api: &Api<PartialObjectMeta<K>>,
    kind: &'static str,
    name: &str,
) -> Result<bool, Error>
where
    K: kube::Resource<DynamicType = ()> + Clone + std::fmt::Debug,
{
    let found = api.get_opt(name).await.map_err(read(kind, name))?;
    Ok(found.is_some())
}
