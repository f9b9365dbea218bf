//! What shapes builds: text in, checked settings out; pure.
//!
//! The same names are flags (`--build-deadline`), environment variables and keys of the ConfigMap
//! (`STRATA_BUILD_DEADLINE`), and, for all that begins with `build-`, annotations of a MachineOSConfig
//! (`strata.image-mode.dev/build-deadline`), which count for its own builds alone.

use std::collections::BTreeMap;
use std::time::Duration;

use clap::{Args as _, Command, FromArgMatches as _};
use k8s_openapi::api::core::v1::Toleration;
use kube::ResourceExt as _;
use serde::Serialize;
use strata_builder::containerfile::nearest;
use strata_builder::layer::Compression;
use strata_builder::reference::Reference;
use strata_builder::sandbox::Tier;

use super::{OBJECT_NAME, SettingsError, checked, form, parse};
use crate::api::foreign::Proxy;
use crate::api::{MachineOSConfig, OWN_PREFIX, annotation};
use crate::job::{BACKOFF_LIMIT, JobSettings, PodShape, Resources, Scratch};
use crate::retention::Retention;

/// No build takes this long; such a number is a slip of the unit.
const LONGEST_DEADLINE: Duration = Duration::from_secs(30 * 24 * 3600);
/// More attempts than that only fill a cluster with failed pods.
const MOST_RETRIES: i32 = 100;
/// More Jobs at once than any cluster has nodes.
const MOST_BUILDS: usize = 10_000;

/// Flags that shape builds, as given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, clap::Args)]
pub struct BuildArgs {
    /// Image with strata-builder that build pods run; best by digest
    #[arg(
        long,
        env = "STRATA_BUILDER_IMAGE",
        value_name = "REFERENCE",
        default_value = ""
    )]
    pub builder_image: String,
    /// ServiceAccount of build pods; needs no rights, its token isn't mounted
    #[arg(
        long,
        env = "STRATA_BUILDER_SERVICE_ACCOUNT",
        value_name = "NAME",
        default_value = "strata-builder"
    )]
    pub builder_service_account: String,
    /// Registry that is spoken to without TLS, by builds and by the controller; repeatable, in the environment
    /// separated by commas
    #[arg(
        long,
        env = "STRATA_PLAIN_HTTP",
        value_name = "HOST[:PORT]",
        value_delimiter = ','
    )]
    pub plain_http: Vec<String>,
    /// Builds that run at the same time; those beyond it wait, the oldest starts first. 0 is no limit
    #[arg(
        long,
        env = "STRATA_MAX_BUILDS",
        value_name = "NUMBER",
        default_value = "0"
    )]
    pub max_builds: String,
    /// Newest succeeded builds of a config that stay, with their images; a number, or all. What is wanted or in use stays in any case
    #[arg(
        long,
        env = "STRATA_KEEP_BUILDS",
        value_name = "NUMBER",
        default_value = "all"
    )]
    pub keep_builds: String,
    /// Builds younger than that stay too, and if keep-builds is all, only these; 90s, 45m, 2h or 720h
    /// [default: those that keep-builds says]
    #[arg(long, env = "STRATA_KEEP_FOR", value_name = "DURATION")]
    pub keep_for: Option<String>,
    /// A build that lasts longer has failed; 90s, 45m, 2h or 1h30m
    #[arg(
        long,
        env = "STRATA_BUILD_DEADLINE",
        value_name = "DURATION",
        default_value = "2h"
    )]
    pub build_deadline: String,
    /// Failed pods of a build that are replaced by another attempt
    #[arg(
        long,
        env = "STRATA_BUILD_RETRIES",
        value_name = "NUMBER",
        default_value_t = BACKOFF_LIMIT.to_string()
    )]
    pub build_retries: String,
    /// Processor share that a build pod asks for; it has no limit
    #[arg(
        long,
        env = "STRATA_BUILD_CPU_REQUEST",
        value_name = "QUANTITY",
        default_value_t = Resources::default().cpu_request
    )]
    pub build_cpu_request: String,
    /// Memory that a build pod asks for
    #[arg(
        long,
        env = "STRATA_BUILD_MEMORY_REQUEST",
        value_name = "QUANTITY",
        default_value_t = Resources::default().memory_request
    )]
    pub build_memory_request: String,
    /// Memory that a build pod, its RUN steps included, may take
    #[arg(
        long,
        env = "STRATA_BUILD_MEMORY_LIMIT",
        value_name = "QUANTITY",
        default_value_t = Resources::default().memory_limit
    )]
    pub build_memory_limit: String,
    /// Disk (ephemeral storage) that a build pod asks for
    #[arg(
        long,
        env = "STRATA_BUILD_STORAGE_REQUEST",
        value_name = "QUANTITY",
        default_value_t = Resources::default().storage_request
    )]
    pub build_storage_request: String,
    /// Disk (ephemeral storage) that a build pod may take
    #[arg(
        long,
        env = "STRATA_BUILD_STORAGE_LIMIT",
        value_name = "QUANTITY",
        default_value_t = Resources::default().storage_limit
    )]
    pub build_storage_limit: String,
    /// Size of the volume that a build unpacks and builds in
    /// [default: what the pod's disk gives]
    #[arg(long, env = "STRATA_BUILD_SCRATCH_SIZE", value_name = "QUANTITY")]
    pub build_scratch_size: Option<String>,
    /// StorageClass of that volume, which is then claimed for each pod and goes with it; needs its size
    /// [default: a directory of the node]
    #[arg(long, env = "STRATA_BUILD_SCRATCH_CLASS", value_name = "NAME")]
    pub build_scratch_class: Option<String>,
    /// Label that the nodes of build pods have, besides that of their architecture; repeatable, in the environment
    /// separated by commas
    #[arg(
        long,
        env = "STRATA_BUILD_NODE_SELECTOR",
        value_name = "KEY=VALUE",
        value_delimiter = ','
    )]
    pub build_node_selector: Vec<String>,
    /// PriorityClass of build pods
    #[arg(long, env = "STRATA_BUILD_PRIORITY_CLASS", value_name = "NAME")]
    pub build_priority_class: Option<String>,
    /// Taint that build pods tolerate; repeatable, in the environment separated by commas. Without VALUE any value,
    /// without EFFECT every effect
    #[arg(
        long,
        env = "STRATA_BUILD_TOLERATION",
        value_name = "KEY[=VALUE][:EFFECT]",
        value_delimiter = ','
    )]
    pub build_toleration: Vec<String>,
    /// Shape of build pods: userns, userns-pull, rootless, rootless-default, privileged; or auto, the best of them that the
    /// cluster takes, but for privileged
    #[arg(
        long,
        env = "STRATA_BUILD_POD",
        value_name = "SHAPE",
        default_value = "auto"
    )]
    pub build_pod: String,
    /// Tier that the builder runs in, as strata-builder's --tier; auto is the best that its pod allows
    #[arg(
        long,
        env = "STRATA_BUILD_TIER",
        value_name = "TIER",
        default_value = "auto"
    )]
    pub build_tier: String,
    /// Layers of an image, as strata-builder's --layers: one per stage, or one per step
    #[arg(
        long,
        env = "STRATA_BUILD_LAYERS",
        value_name = "stage|step",
        default_value = "stage"
    )]
    pub build_layers: String,
    /// Compression of new layers, as strata-builder's --compression; nodes must be able to read it
    #[arg(
        long,
        env = "STRATA_BUILD_COMPRESSION",
        value_name = "gzip|zstd[:LEVEL]",
        default_value = "gzip"
    )]
    pub build_compression: String,
    /// Proxy of builds for http, instead of the cluster's
    #[arg(long, env = "STRATA_BUILD_HTTP_PROXY", value_name = "URL")]
    pub build_http_proxy: Option<String>,
    /// Proxy of builds for https, instead of the cluster's
    #[arg(long, env = "STRATA_BUILD_HTTPS_PROXY", value_name = "URL")]
    pub build_https_proxy: Option<String>,
    /// What builds reach without a proxy, instead of the cluster's list
    #[arg(long, env = "STRATA_BUILD_NO_PROXY", value_name = "LIST")]
    pub build_no_proxy: Option<String>,
}

/// What shapes builds, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct BuildSettings {
    given: BuildArgs,
    /// Of all builds whose config says nothing else.
    pub job: JobSettings,
    /// How many builds may run at the same time; none for any number.
    pub max_builds: Option<usize>,
    /// Which builds of a config stay whose annotations say nothing else.
    pub retention: Retention,
}

/// How settings are written where they come from.
type Spelling = fn(&str) -> String;

fn as_flag(name: &str) -> String {
    format!("--{name} ({})", as_key(name))
}

fn as_key(name: &str) -> String {
    format!("STRATA_{}", name.to_ascii_uppercase().replace('-', "_"))
}

fn as_annotation(name: &str) -> String {
    format!("annotation {}{name}", OWN_PREFIX)
}

impl BuildSettings {
    /// Of builds in `namespace`, given as flags.
    ///
    /// # Errors
    ///
    /// Permanent: the first that is wrong, and what to write.
    pub fn new(given: BuildArgs, namespace: &str) -> Result<Self, SettingsError> {
        Self::checked(given, namespace, as_flag)
    }

    fn checked(
        given: BuildArgs,
        namespace: &str,
        spelling: Spelling,
    ) -> Result<Self, SettingsError> {
        let max_builds = number("max-builds", &given.max_builds, MOST_BUILDS, spelling)?;
        Ok(Self {
            job: job_settings(&given, namespace, spelling)?,
            max_builds: (max_builds > 0).then_some(max_builds),
            retention: Retention {
                builds: keep_builds(&given.keep_builds, spelling)?,
                age: keep_for(given.keep_for.as_deref().unwrap_or_default(), spelling)?,
            },
            given,
        })
    }

    /// What `data` of the ConfigMap changes in `given`. Keys in `elsewhere` are read by others.
    ///
    /// # Errors
    ///
    /// Permanent: the first key that is wrong, and what to write.
    pub fn of_config_map(
        given: &BuildArgs,
        data: &BTreeMap<String, String>,
        elsewhere: &[&str],
        namespace: &str,
    ) -> Result<Self, SettingsError> {
        let names = names();
        let keys: Vec<String> = names.iter().map(|name| as_key(name)).collect();
        let mut changes = Vec::new();
        for (key, value) in data {
            if elsewhere.contains(&key.as_str()) {
                continue;
            }
            match keys.iter().position(|known| known == key) {
                Some(place) => changes.push((names[place].as_str(), value.as_str())),
                None => return Err(unknown(key.clone(), key, &keys)),
            }
        }
        Self::checked(changed(given, &changes), namespace, as_key)
    }

    /// The names of the settings in which this one isn't `other`, as of flags.
    #[must_use]
    pub fn differs(&self, other: &Self) -> Vec<String> {
        let texts = |args: &BuildArgs| serde_json::to_value(args).unwrap_or_default();
        let (own, others) = (texts(&self.given), texts(&other.given));
        let own = own.as_object().into_iter().flatten();
        own.filter(|(name, value)| others.get(name.as_str()) != Some(value))
            .map(|(name, _)| name.replace('_', "-"))
            .collect()
    }

    /// Of the builds of `os_config`: its annotations have the last word.
    ///
    /// # Errors
    ///
    /// Permanent: the first annotation that is wrong, and what to write.
    pub fn of(&self, os_config: &MachineOSConfig) -> Result<JobSettings, SettingsError> {
        let names = names();
        let own: Vec<String> = names
            .into_iter()
            .filter(|name| name.starts_with("build-"))
            .collect();
        let mut changes = Vec::new();
        for (key, value) in os_config.annotations() {
            let Some(name) = key.strip_prefix(OWN_PREFIX) else {
                continue;
            };
            if !name.starts_with("build-") || key == annotation::BUILD_ANEW {
                continue;
            }
            if !own.iter().any(|known| known == name) {
                return Err(unknown(as_annotation(name), name, &own));
            }
            changes.push((name, value.as_str()));
        }
        if changes.is_empty() {
            return Ok(self.job.clone());
        }
        let given = changed(&self.given, &changes);
        job_settings(&given, &self.job.namespace, as_annotation)
    }

    /// Which builds of `os_config` stay: its annotations have the last word, each for its bound.
    ///
    /// # Errors
    ///
    /// Permanent: the first annotation that is wrong, and what to write.
    pub fn retention_of(&self, os_config: &MachineOSConfig) -> Result<Retention, SettingsError> {
        let annotated = |key| os_config.annotations().get(key).map(String::as_str);
        let Retention { builds, age } = self.retention;
        Ok(Retention {
            builds: match annotated(annotation::KEEP_BUILDS) {
                Some(text) => keep_builds(text, as_annotation)?,
                None => builds,
            },
            age: match annotated(annotation::KEEP_FOR) {
                Some(text) => keep_for(text, as_annotation)?,
                None => age,
            },
        })
    }
}

/// None for `all`.
fn keep_builds(text: &str, spelling: Spelling) -> Result<Option<usize>, SettingsError> {
    if matches!(text.trim(), "all" | "") {
        return Ok(None);
    }
    let number = text.trim().parse().ok();
    let number = number.ok_or_else(|| form(spelling("keep-builds"), text.to_owned(), KEEP_BUILDS));
    number.map(Some)
}

/// None for no text.
fn keep_for(text: &str, spelling: Spelling) -> Result<Option<Duration>, SettingsError> {
    if text.trim().is_empty() {
        return Ok(None);
    }
    let age = parse::duration(text.trim()).filter(|age| !age.is_zero());
    let age = age.ok_or_else(|| form(spelling("keep-for"), text.to_owned(), KEEP_FOR));
    age.map(Some)
}

fn unknown(setting: String, name: &str, known: &[String]) -> SettingsError {
    let known: Vec<&str> = known.iter().map(String::as_str).collect();
    let suggestion =
        nearest(name, &known).map_or_else(String::new, |near| format!("; do you mean {near}?"));
    SettingsError::Unknown {
        setting,
        suggestion,
    }
}

/// All names, as of flags.
fn names() -> Vec<String> {
    let command = BuildArgs::augment_args(Command::new("settings"));
    command
        .get_arguments()
        .filter_map(|argument| argument.get_long().map(str::to_owned))
        .collect()
}

/// `given` with other values for some names, all of them known.
fn changed(given: &BuildArgs, changes: &[(&str, &str)]) -> BuildArgs {
    let command = BuildArgs::augment_args_for_update(Command::new("settings"))
        .no_binary_name(true)
        .mut_args(|argument| argument.env(None::<&str>).default_value(None::<&str>));
    let flags = changes
        .iter()
        .map(|(name, value)| format!("--{name}={value}"));
    let mut given = given.clone();
    // all are text: nothing of it can be refused
    if let Ok(matches) = command.try_get_matches_from(flags) {
        let _is_text = given.update_from_arg_matches(&matches);
    }
    given
}

fn job_settings(
    given: &BuildArgs,
    namespace: &str,
    spelling: Spelling,
) -> Result<JobSettings, SettingsError> {
    let BuildArgs {
        builder_image,
        builder_service_account,
        plain_http,
        max_builds: _,
        keep_builds: _,
        keep_for: _,
        build_deadline,
        build_retries,
        build_cpu_request,
        build_memory_request,
        build_memory_limit,
        build_storage_request,
        build_storage_limit,
        build_scratch_size,
        build_scratch_class,
        build_node_selector,
        build_priority_class,
        build_toleration,
        build_pod,
        build_tier,
        build_layers,
        build_compression,
        build_http_proxy,
        build_https_proxy,
        build_no_proxy,
    } = given;
    if let Err(source) = builder_image.parse::<Reference>() {
        return Err(SettingsError::Reference {
            setting: spelling("builder-image"),
            source,
        });
    }
    let text = |name: &str, text: &str, is_right: fn(&str) -> bool, wanted| {
        checked(spelling(name), text.to_owned(), is_right, wanted)
    };
    let maybe = |name: &str, given: &Option<String>, is_right: fn(&str) -> bool, wanted| {
        let given = given.as_deref().filter(|given| !given.is_empty());
        given
            .map(|given| text(name, given, is_right, wanted))
            .transpose()
    };
    let amount = |name: &str, given: &str| text(name, given, is_amount, QUANTITY);
    let resources = Resources {
        cpu_request: amount("build-cpu-request", build_cpu_request)?,
        memory_request: amount("build-memory-request", build_memory_request)?,
        memory_limit: amount("build-memory-limit", build_memory_limit)?,
        storage_request: amount("build-storage-request", build_storage_request)?,
        storage_limit: amount("build-storage-limit", build_storage_limit)?,
    };
    within_limits(&resources, spelling)?;
    let scratch = Scratch {
        size: maybe(
            "build-scratch-size",
            build_scratch_size,
            is_amount,
            QUANTITY,
        )?,
        class: maybe(
            "build-scratch-class",
            build_scratch_class,
            parse::is_dns_subdomain,
            OBJECT_NAME,
        )?,
    };
    if scratch.class.is_some() && scratch.size.is_none() {
        return Err(SettingsError::Alone {
            setting: spelling("build-scratch-class"),
            other: spelling("build-scratch-size"),
        });
    }
    Ok(JobSettings {
        namespace: namespace.to_owned(),
        cluster: None,
        builder_image: builder_image.clone(),
        service_account: text(
            "builder-service-account",
            builder_service_account,
            parse::is_dns_subdomain,
            OBJECT_NAME,
        )?,
        plain_http: entries(plain_http)
            .map(|host| text("plain-http", host, parse::is_host, HOST))
            .collect::<Result<_, _>>()?,
        deadline: deadline(build_deadline, spelling)?,
        retries: number("build-retries", build_retries, MOST_RETRIES, spelling)?,
        resources,
        scratch,
        node_selector: entries(build_node_selector)
            .map(|label| {
                parse::label(label)
                    .ok_or_else(|| form(spelling("build-node-selector"), label.to_owned(), LABEL))
            })
            .collect::<Result<_, _>>()?,
        tolerations: entries(build_toleration)
            .map(|taint| toleration(taint, spelling))
            .collect::<Result<_, _>>()?,
        priority_class: maybe(
            "build-priority-class",
            build_priority_class,
            parse::is_dns_subdomain,
            OBJECT_NAME,
        )?,
        shape: shape(build_pod, spelling)?,
        tier: text("build-tier", build_tier, is_tier, TIER)?,
        layers: text("build-layers", build_layers, is_layers, LAYERS)?,
        compression: text(
            "build-compression",
            build_compression,
            is_compression,
            COMPRESSION,
        )?,
        proxy: Proxy {
            http_proxy: maybe("build-http-proxy", build_http_proxy, parse::is_url, PROXY)?,
            https_proxy: maybe("build-https-proxy", build_https_proxy, parse::is_url, PROXY)?,
            no_proxy: build_no_proxy.clone().filter(|list| !list.is_empty()),
        },
    })
}

const KEEP_BUILDS: &str = "all or a number of builds, 0 or more";
const KEEP_FOR: &str = "a duration of 1s or more, like 45m, 2h or 720h";
const HOST: &str =
    "a registry's HOST or HOST:PORT as in image references, without https:// and without a path";
const QUANTITY: &str = "a Kubernetes quantity above 0, like 500m, 2, 512Mi or 8Gi";
const DEADLINE: &str = "a duration from 1s to 720h, like 90s, 45m, 2h or 1h30m";
const TOLERATION: &str = "KEY, KEY=VALUE, KEY:EFFECT or KEY=VALUE:EFFECT, with EFFECT one of NoSchedule, PreferNoSchedule, NoExecute";
const LABEL: &str = "a label of nodes, KEY=VALUE";
const SHAPE: &str =
    "auto or the shape of a pod: userns, userns-pull, rootless, rootless-default or privileged";
const TIER: &str = "a tier of strata-builder: auto, flat, root, userns, rootless, root-flat, userns-flat, rootless-flat or copy";
const LAYERS: &str = "stage or step";
const COMPRESSION: &str =
    "gzip, gzip:LEVEL with a level from 0 to 9, zstd, or zstd:LEVEL from 1 to 19";
const PROXY: &str = "the URL of a proxy, like http://proxy.example.com:3128";

/// Without the empty entries of a variable that is set to nothing or ends with a comma.
fn entries(list: &[String]) -> impl Iterator<Item = &str> {
    list.iter()
        .map(|entry| entry.trim())
        .filter(|entry| !entry.is_empty())
}

fn is_amount(text: &str) -> bool {
    parse::quantity(text).is_some_and(|amount| amount > 0.0)
}

fn is_layers(text: &str) -> bool {
    matches!(text, "stage" | "step")
}

fn is_compression(text: &str) -> bool {
    text.parse::<Compression>().is_ok()
}

fn is_tier(text: &str) -> bool {
    matches!(text, "auto" | "flat") || Tier::LADDER.iter().any(|tier| tier.name() == text)
}

/// A number from 0 to `most`.
fn number<N>(name: &str, text: &str, most: N, spelling: Spelling) -> Result<N, SettingsError>
where
    N: std::str::FromStr + PartialOrd + Default,
{
    let number = text.trim().parse::<N>().ok();
    let number = number.filter(|number| (N::default()..=most).contains(number));
    number.ok_or_else(|| form(spelling(name), text.to_owned(), NUMBER))
}

const NUMBER: &str = "a small number, 0 or more";

fn within_limits(resources: &Resources, spelling: Spelling) -> Result<(), SettingsError> {
    let Resources {
        cpu_request: _,
        memory_request,
        memory_limit,
        storage_request,
        storage_limit,
    } = resources;
    for (what, request, limit) in [
        ("memory", memory_request, memory_limit),
        ("storage", storage_request, storage_limit),
    ] {
        if parse::quantity(request) > parse::quantity(limit) {
            return Err(SettingsError::AboveLimit {
                request_setting: spelling(&format!("build-{what}-request")),
                request: request.clone(),
                limit_setting: spelling(&format!("build-{what}-limit")),
                limit: limit.clone(),
            });
        }
    }
    Ok(())
}

fn deadline(text: &str, spelling: Spelling) -> Result<Duration, SettingsError> {
    let bounds = Duration::from_secs(1)..=LONGEST_DEADLINE;
    parse::duration(text)
        .filter(|duration| bounds.contains(duration))
        .ok_or_else(|| form(spelling("build-deadline"), text.to_owned(), DEADLINE))
}

/// None for `auto`.
fn shape(text: &str, spelling: Spelling) -> Result<Option<PodShape>, SettingsError> {
    if text == "auto" {
        return Ok(None);
    }
    match PodShape::named(text) {
        Some(shape) => Ok(Some(shape)),
        None => Err(form(spelling("build-pod"), text.to_owned(), SHAPE)),
    }
}

fn toleration(text: &str, spelling: Spelling) -> Result<Toleration, SettingsError> {
    parse::toleration(text)
        .ok_or_else(|| form(spelling("build-toleration"), text.to_owned(), TOLERATION))
}

#[cfg(test)]
mod tests;
