//! What was this process told by flags and environment, and is it right?
//!
//! [`RunArgs`] is the raw text, [`RunArgs::validate`] checks all of it once at the start, and nothing is checked later:
//! a wrong quantity would otherwise be told by the apiserver, build after build.

mod parse;

use std::net::SocketAddr;
use std::time::Duration;

use k8s_openapi::api::core::v1::Toleration;
use strata_builder::error::{Class, Classify};
use strata_builder::reference::{InvalidReference, Reference};
use strata_builder::sandbox::Tier;

use crate::api::DEFAULT_NAMESPACE;
use crate::job::{JobSettings, PodShape, Resources};
use crate::telemetry::LogFormat;

/// Where the kernel tells the host name, which is the pod's name in a pod.
const HOST_NAME_FILE: &str = "/proc/sys/kernel/hostname";
/// No build takes this long; such a number is a slip of the unit.
const LONGEST_DEADLINE: Duration = Duration::from_secs(30 * 24 * 3600);

/// Flags of every command that logs.
#[derive(Clone, Debug, PartialEq, Eq, clap::Args)]
pub struct LogArgs {
    /// Which lines to log: a level (error, warn, info, debug, trace), or a list of module=level
    #[arg(
        long = "log",
        env = "STRATA_LOG",
        value_name = "FILTER",
        default_value = "info"
    )]
    pub filter: String,
    /// Form of the log lines
    #[arg(
        long = "log-format",
        env = "STRATA_LOG_FORMAT",
        value_name = "FORMAT",
        value_enum,
        default_value_t
    )]
    pub format: LogFormat,
}

/// Flags of `strata-controller run`, as given.
#[derive(Clone, Debug, PartialEq, Eq, clap::Args)]
pub struct RunArgs {
    /// Namespace of Jobs, ConfigMaps, Secrets and the Lease
    #[arg(long, env = "STRATA_NAMESPACE", default_value = DEFAULT_NAMESPACE)]
    pub namespace: String,
    /// Image with strata-builder that build pods run; best by digest
    #[arg(long, env = "STRATA_BUILDER_IMAGE", value_name = "REFERENCE")]
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
    /// Address of /healthz, /readyz and /metrics
    #[arg(
        long,
        env = "STRATA_LISTEN",
        value_name = "ADDRESS:PORT",
        default_value = "0.0.0.0:8797"
    )]
    pub listen: String,
    /// Name of this replica in the Lease: the pod's name, so that a restarted container goes on at once
    /// [default: the host name]
    #[arg(long, env = "POD_NAME", value_name = "NAME")]
    pub identity: Option<String>,
    /// A build that lasts longer has failed; 90s, 45m, 2h or 1h30m
    #[arg(
        long,
        env = "STRATA_BUILD_DEADLINE",
        value_name = "DURATION",
        default_value = "2h"
    )]
    pub build_deadline: String,
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
    /// How to log.
    #[command(flatten)]
    pub log: LogArgs,
}

/// What the process runs with.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// What shapes Jobs.
    pub job: JobSettings,
    /// Of the admin server.
    pub listen: SocketAddr,
    /// Of this replica, in the Lease; not empty.
    pub identity: String,
}

/// A flag, or its variable, that must be changed.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// No image.
    #[error("{flag} must be an image reference like quay.io/org/strata-builder:v1")]
    Reference {
        /// Which flag and variable.
        flag: &'static str,
        /// What is wrong.
        source: InvalidReference,
    },
    /// Text of the wrong form.
    #[error("{flag} {text:?} must be {wanted}")]
    Form {
        /// Which flag and variable.
        flag: &'static str,
        /// As given.
        text: String,
        /// What to write.
        wanted: &'static str,
    },
    /// No scheduler would ever take it.
    #[error("{request_flag} {request} must not be above {limit_flag} {limit}")]
    AboveLimit {
        /// Which flag and variable.
        request_flag: &'static str,
        /// As given.
        request: String,
        /// Which flag and variable.
        limit_flag: &'static str,
        /// As given.
        limit: String,
    },
    /// No name for this replica.
    #[error(
        "--identity (POD_NAME) must be given, as the host name can't be read from {HOST_NAME_FILE}"
    )]
    HostName(#[source] std::io::Error),
}

impl Classify for SettingsError {
    fn class(&self) -> Class {
        match self {
            SettingsError::Reference { .. }
            | SettingsError::Form { .. }
            | SettingsError::AboveLimit { .. } => Class::CONTRACT,
            SettingsError::HostName(_) => Class::INTERNAL,
        }
    }
}

impl RunArgs {
    /// The settings, all checked.
    ///
    /// # Errors
    ///
    /// Permanent: the first flag that is wrong, and what to write.
    pub fn validate(self) -> Result<Settings, SettingsError> {
        let Self {
            namespace,
            builder_image,
            builder_service_account,
            plain_http,
            listen,
            identity,
            build_deadline,
            build_cpu_request,
            build_memory_request,
            build_memory_limit,
            build_storage_request,
            build_storage_limit,
            build_priority_class,
            build_toleration,
            build_pod,
            build_tier,
            log: _,
        } = self;
        if let Err(source) = builder_image.parse::<Reference>() {
            return Err(SettingsError::Reference {
                flag: "--builder-image (STRATA_BUILDER_IMAGE)",
                source,
            });
        }
        let resources = Resources {
            cpu_request: quantity(
                "--build-cpu-request (STRATA_BUILD_CPU_REQUEST)",
                build_cpu_request,
            )?,
            memory_request: quantity(
                "--build-memory-request (STRATA_BUILD_MEMORY_REQUEST)",
                build_memory_request,
            )?,
            memory_limit: quantity(
                "--build-memory-limit (STRATA_BUILD_MEMORY_LIMIT)",
                build_memory_limit,
            )?,
            storage_request: quantity(
                "--build-storage-request (STRATA_BUILD_STORAGE_REQUEST)",
                build_storage_request,
            )?,
            storage_limit: quantity(
                "--build-storage-limit (STRATA_BUILD_STORAGE_LIMIT)",
                build_storage_limit,
            )?,
        };
        within_limits(&resources)?;
        Ok(Settings {
            job: JobSettings {
                namespace: checked(
                    "--namespace (STRATA_NAMESPACE)",
                    namespace,
                    parse::is_dns_label,
                    DNS_LABEL,
                )?,
                builder_image,
                service_account: checked(
                    "--builder-service-account (STRATA_BUILDER_SERVICE_ACCOUNT)",
                    builder_service_account,
                    parse::is_dns_subdomain,
                    OBJECT_NAME,
                )?,
                plain_http: entries(plain_http)
                    .map(|host| {
                        checked(
                            "--plain-http (STRATA_PLAIN_HTTP)",
                            host,
                            parse::is_host,
                            HOST,
                        )
                    })
                    .collect::<Result<_, _>>()?,
                deadline: deadline(build_deadline)?,
                resources,
                tolerations: entries(build_toleration)
                    .map(toleration)
                    .collect::<Result<_, _>>()?,
                priority_class: build_priority_class
                    .filter(|name| !name.is_empty())
                    .map(|name| {
                        checked(
                            "--build-priority-class (STRATA_BUILD_PRIORITY_CLASS)",
                            name,
                            parse::is_dns_subdomain,
                            OBJECT_NAME,
                        )
                    })
                    .transpose()?,
                shape: shape(build_pod)?,
                tier: checked(
                    "--build-tier (STRATA_BUILD_TIER)",
                    build_tier,
                    is_tier,
                    TIER,
                )?,
            },
            listen: listen
                .parse()
                .map_err(|_| form("--listen (STRATA_LISTEN)", listen, LISTEN))?,
            identity: match identity.filter(|name| !name.is_empty()) {
                Some(name) => checked(
                    "--identity (POD_NAME)",
                    name,
                    parse::is_dns_subdomain,
                    OBJECT_NAME,
                )?,
                None => host_name()?,
            },
        })
    }
}

const DNS_LABEL: &str =
    "a namespace's name: lower-case letters, digits and '-', at most 63 of them";
const OBJECT_NAME: &str = "an object's name: lower-case letters, digits, '-' and '.'";
const HOST: &str =
    "a registry's HOST or HOST:PORT as in image references, without https:// and without a path";
const LISTEN: &str = "an IP address with a port, like 0.0.0.0:8797 or [::]:8797";
const QUANTITY: &str = "a Kubernetes quantity above 0, like 500m, 2, 512Mi or 8Gi";
const DEADLINE: &str = "a duration from 1s to 720h, like 90s, 45m, 2h or 1h30m";
const TOLERATION: &str = "KEY, KEY=VALUE, KEY:EFFECT or KEY=VALUE:EFFECT, with EFFECT one of NoSchedule, PreferNoSchedule, NoExecute";

const SHAPE: &str =
    "auto or the shape of a pod: userns, userns-pull, rootless, rootless-default or privileged";
const TIER: &str = "a tier of strata-builder: auto, flat, root, userns, rootless, root-flat, userns-flat, rootless-flat or copy";

fn form(flag: &'static str, text: String, wanted: &'static str) -> SettingsError {
    SettingsError::Form { flag, text, wanted }
}

fn checked(
    flag: &'static str,
    text: String,
    is_right: impl Fn(&str) -> bool,
    wanted: &'static str,
) -> Result<String, SettingsError> {
    if is_right(&text) {
        Ok(text)
    } else {
        Err(form(flag, text, wanted))
    }
}

/// Without the empty entries of a variable that is set to nothing or ends with a comma.
fn entries(list: Vec<String>) -> impl Iterator<Item = String> {
    list.into_iter()
        .map(|entry| entry.trim().to_owned())
        .filter(|entry| !entry.is_empty())
}

fn quantity(flag: &'static str, text: String) -> Result<String, SettingsError> {
    let is_right = |text: &str| parse::quantity(text).is_some_and(|amount| amount > 0.0);
    checked(flag, text, is_right, QUANTITY)
}

fn within_limits(resources: &Resources) -> Result<(), SettingsError> {
    let Resources {
        cpu_request: _,
        memory_request,
        memory_limit,
        storage_request,
        storage_limit,
    } = resources;
    for (request_flag, request, limit_flag, limit) in [
        (
            "--build-memory-request (STRATA_BUILD_MEMORY_REQUEST)",
            memory_request,
            "--build-memory-limit (STRATA_BUILD_MEMORY_LIMIT)",
            memory_limit,
        ),
        (
            "--build-storage-request (STRATA_BUILD_STORAGE_REQUEST)",
            storage_request,
            "--build-storage-limit (STRATA_BUILD_STORAGE_LIMIT)",
            storage_limit,
        ),
    ] {
        if parse::quantity(request) > parse::quantity(limit) {
            return Err(SettingsError::AboveLimit {
                request_flag,
                request: request.clone(),
                limit_flag,
                limit: limit.clone(),
            });
        }
    }
    Ok(())
}

fn deadline(text: String) -> Result<Duration, SettingsError> {
    let bounds = Duration::from_secs(1)..=LONGEST_DEADLINE;
    match parse::duration(&text).filter(|duration| bounds.contains(duration)) {
        Some(duration) => Ok(duration),
        None => Err(form(
            "--build-deadline (STRATA_BUILD_DEADLINE)",
            text,
            DEADLINE,
        )),
    }
}

/// None for `auto`.
fn shape(text: String) -> Result<Option<PodShape>, SettingsError> {
    if text == "auto" {
        return Ok(None);
    }
    match PodShape::named(&text) {
        Some(shape) => Ok(Some(shape)),
        None => Err(form("--build-pod (STRATA_BUILD_POD)", text, SHAPE)),
    }
}

fn is_tier(text: &str) -> bool {
    matches!(text, "auto" | "flat") || Tier::LADDER.iter().any(|tier| tier.name() == text)
}

fn toleration(text: String) -> Result<Toleration, SettingsError> {
    parse::toleration(&text).ok_or_else(|| {
        form(
            "--build-toleration (STRATA_BUILD_TOLERATION)",
            text,
            TOLERATION,
        )
    })
}

fn host_name() -> Result<String, SettingsError> {
    let text = std::fs::read_to_string(HOST_NAME_FILE).map_err(SettingsError::HostName)?;
    // a workstation's name may have upper case; in a Lease that is as good
    Ok(text.trim().to_owned())
}

#[cfg(test)]
mod tests;
