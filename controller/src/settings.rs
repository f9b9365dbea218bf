//! What was this process told by flags, environment and a ConfigMap, and is it right?
//!
//! [`RunArgs`] is the raw text, [`RunArgs::validate`] checks all of it once at the start, and nothing is checked later:
//! a wrong quantity would otherwise be told by the apiserver, build after build. What shapes builds ([`BuildArgs`]) may be
//! changed while the process runs: by the ConfigMap `strata-settings` for all of them ([`current`]), by annotations of a
//! MachineOSConfig for its own ([`BuildSettings::of`]).

mod builds;
pub mod current;
mod parse;

use std::net::SocketAddr;

use strata_builder::error::{Class, Classify};
use strata_builder::reference::InvalidReference;

pub use self::builds::{BuildArgs, BuildSettings};
pub use self::current::Current;
use crate::api::DEFAULT_NAMESPACE;
use crate::telemetry::LogFormat;

/// Where the kernel tells the host name, which is the pod's name in a pod.
const HOST_NAME_FILE: &str = "/proc/sys/kernel/hostname";

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
    /// Take our finalizers off everything instead of working, so that machine-os-builder can go on
    #[arg(long, env = "STRATA_HAND_BACK")]
    pub hand_back: bool,
    /// What shapes builds.
    #[command(flatten)]
    pub builds: BuildArgs,
    /// How to log.
    #[command(flatten)]
    pub log: LogArgs,
}

/// What the process runs with.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Of all namespaced objects.
    pub namespace: String,
    /// Of the admin server.
    pub listen: SocketAddr,
    /// Of this replica, in the Lease; not empty.
    pub identity: String,
    /// Give everything back to the incumbent instead of working.
    pub hand_back: bool,
    /// What shapes builds, before the ConfigMap has its say.
    pub builds: BuildArgs,
}

/// A setting that must be changed.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// No image.
    #[error("{setting} must be an image reference like quay.io/org/strata-builder:v1")]
    Reference {
        /// Flag and variable, key or annotation.
        setting: String,
        /// What is wrong.
        source: InvalidReference,
    },
    /// Text of the wrong form.
    #[error("{setting} {text:?} must be {wanted}")]
    Form {
        /// Flag and variable, key or annotation.
        setting: String,
        /// As given.
        text: String,
        /// What to write.
        wanted: &'static str,
    },
    /// No scheduler would ever take it.
    #[error("{request_setting} {request} must not be above {limit_setting} {limit}")]
    AboveLimit {
        /// Flag and variable, key or annotation.
        request_setting: String,
        /// As given.
        request: String,
        /// Flag and variable, key or annotation.
        limit_setting: String,
        /// As given.
        limit: String,
    },
    /// One goes with the other.
    #[error("{setting} needs {other}")]
    Alone {
        /// Flag and variable, key or annotation.
        setting: String,
        /// The one that is not given.
        other: String,
    },
    /// A key of the ConfigMap, or an annotation, that means nothing.
    #[error("{setting} is no setting{suggestion}")]
    Unknown {
        /// As given.
        setting: String,
        /// What may have been meant; empty, or to be added to the sentence.
        suggestion: String,
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
            | SettingsError::AboveLimit { .. }
            | SettingsError::Alone { .. }
            | SettingsError::Unknown { .. } => Class::CONTRACT,
            SettingsError::HostName(_) => Class::INTERNAL,
        }
    }
}

impl RunArgs {
    /// The settings, all checked, but for those of builds, which [`BuildSettings::new`] checks.
    ///
    /// # Errors
    ///
    /// Permanent: the first flag that is wrong, and what to write.
    pub fn validate(self) -> Result<Settings, SettingsError> {
        let Self {
            namespace,
            listen,
            identity,
            hand_back,
            builds,
            log: _,
        } = self;
        let given = |flag: &str| format!("--{flag}");
        Ok(Settings {
            namespace: checked(
                given("namespace (STRATA_NAMESPACE)"),
                namespace,
                parse::is_dns_label,
                DNS_LABEL,
            )?,
            listen: listen
                .parse()
                .map_err(|_| form(given("listen (STRATA_LISTEN)"), listen, LISTEN))?,
            identity: match identity.filter(|name| !name.is_empty()) {
                Some(name) => checked(
                    given("identity (POD_NAME)"),
                    name,
                    parse::is_dns_subdomain,
                    OBJECT_NAME,
                )?,
                None => host_name()?,
            },
            hand_back,
            builds,
        })
    }
}

const DNS_LABEL: &str =
    "a namespace's name: lower-case letters, digits and '-', at most 63 of them";
const OBJECT_NAME: &str = "an object's name: lower-case letters, digits, '-' and '.'";
const LISTEN: &str = "an IP address with a port, like 0.0.0.0:8797 or [::]:8797";

fn form(setting: String, text: String, wanted: &'static str) -> SettingsError {
    SettingsError::Form {
        setting,
        text,
        wanted,
    }
}

fn checked(
    setting: String,
    text: String,
    is_right: impl Fn(&str) -> bool,
    wanted: &'static str,
) -> Result<String, SettingsError> {
    if is_right(&text) {
        Ok(text)
    } else {
        Err(form(setting, text, wanted))
    }
}

fn host_name() -> Result<String, SettingsError> {
    let text = std::fs::read_to_string(HOST_NAME_FILE).map_err(SettingsError::HostName)?;
    // a workstation's name may have upper case; in a Lease that is as good
    Ok(text.trim().to_owned())
}

#[cfg(test)]
mod tests;
