//! Which files below /etc/containers does a build's pod have, so that it pulls as the pool's nodes do?
//!
//! `policy.json`, `registries.conf`, `registries.conf.d/*.conf` and `certs.d/HOST/*` of the rendered MachineConfig's Ignition, where /etc/docker/certs.d counts
//! for registries that have no folder in /etc/containers; and the authorities that the ControllerConfig names for single registries. Pure. What the builder could
//! not read is refused here, with the file's name. Signatures are not checked, so registries.d is left out.

use std::collections::BTreeMap;
use std::io::Read as _;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use kube::ResourceExt as _;
use serde::Deserialize;
use strata_builder::error::{Class, Classify};
use strata_builder::registry::{HostCertificates, Policy, PolicyError, Rules, RulesError};

use crate::api::foreign::{ControllerConfigSpec, RegistryBundle};
use crate::api::{CONTROLLER_CONFIG_NAME, MachineConfig};

/// Where the builder looks for them.
pub const FOLDER: &str = "/etc/containers";

const DOCKER_CERTIFICATES: &str = "/etc/docker/certs.d/";

/// All of them together; the apiserver takes 1 MiB of a ConfigMap, of which base64 makes a third.
const LIMIT_BYTES: usize = 700 * 1024;

/// Contents by path below [`FOLDER`].
pub type Files = BTreeMap<String, Vec<u8>>;

/// A file that no build can use.
#[derive(Debug, thiserror::Error)]
#[error("MachineConfig {machine_config}, the file {path} in spec.config.storage.files")]
pub struct FileError {
    /// The rendered MachineConfig.
    pub machine_config: String,
    /// On a node.
    pub path: String,
    /// Why.
    pub source: ContentError,
}

/// What is wrong with a file.
#[derive(Debug, thiserror::Error)]
pub enum ContentError {
    /// Ignition would fetch it.
    #[error("its contents.source is no data URL, and builds fetch nothing")]
    Url,
    /// Base64 that is none.
    #[error("its contents.source can't be decoded")]
    Base64(#[source] data_url::forgiving_base64::InvalidBase64),
    /// Another compression than gzip, or a broken one.
    #[error("its contents.compression can't be undone")]
    Compression(#[source] std::io::Error),
    /// Beyond what a ConfigMap holds.
    #[error("with it the files below {FOLDER} have more than {LIMIT_BYTES} bytes")]
    TooLarge,
    /// Bytes where text is expected.
    #[error("it is no text in UTF-8")]
    Text(#[source] std::str::Utf8Error),
    /// A registries.conf that the builder doesn't read.
    #[error("it can't be used as a registries.conf")]
    Rules(#[source] RulesError),
    /// A policy.json that the builder doesn't read.
    #[error("it can't be used as a policy.json")]
    Policy(#[source] PolicyError),
}

impl Classify for FileError {
    fn class(&self) -> Class {
        Class::CONTENT
    }
}

/// Certificates of a single registry that are none.
#[derive(Debug, thiserror::Error)]
#[error("ControllerConfig {CONTROLLER_CONFIG_NAME}, {field}: {file:?} {what}")]
pub struct BundleError {
    /// Of the ControllerConfig.
    pub field: &'static str,
    /// The entry.
    pub file: String,
    /// What is wrong with it.
    pub what: &'static str,
    /// Why, where there is more to say.
    pub source: Option<base64::DecodeError>,
}

impl Classify for BundleError {
    fn class(&self) -> Class {
        Class::CONTENT
    }
}

#[derive(Deserialize)]
struct Ignition {
    #[serde(default)]
    storage: Storage,
}

#[derive(Default, Deserialize)]
struct Storage {
    #[serde(default)]
    files: Vec<IgnitionFile>,
}

#[derive(Deserialize)]
struct IgnitionFile {
    path: String,
    #[serde(default)]
    contents: Contents,
}

#[derive(Default, Deserialize)]
struct Contents {
    source: Option<String>,
    compression: Option<String>,
}

/// The files that `machine_config` puts on a node.
///
/// # Errors
///
/// User: a file, which the error names, must be changed.
pub fn of_machine_config(machine_config: &MachineConfig) -> Result<Files, FileError> {
    // an Ignition config that can't be read at all is the node's trouble, not the build's
    let ignition = machine_config.spec.config.clone();
    let files = ignition
        .and_then(|ignition| serde_json::from_value::<Ignition>(ignition).ok())
        .map_or_else(Vec::new, |ignition| ignition.storage.files);
    let mut found = Files::new();
    let mut of_docker = Files::new();
    let mut size_bytes = 0;
    for IgnitionFile { path, contents } in files {
        let Some((below, is_of_docker)) = place(&path) else {
            continue;
        };
        let mut read = || {
            let content = decoded(&contents)?;
            size_bytes += content.len();
            if size_bytes > LIMIT_BYTES {
                return Err(ContentError::TooLarge);
            }
            check(&below, &content)?;
            Ok(content)
        };
        let content = read().map_err(|source| FileError {
            machine_config: machine_config.name_any(),
            path: path.clone(),
            source,
        })?;
        if is_of_docker {
            of_docker.insert(below, content);
        } else {
            found.insert(below, content);
        }
    }
    for (path, content) in of_docker {
        // of a registry with two folders the first counts, as everywhere
        let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
        let has_own = found.keys().any(|own| {
            own.strip_prefix(folder)
                .is_some_and(|rest| rest.starts_with('/'))
        });
        if !has_own {
            found.insert(path, content);
        }
    }
    Ok(found)
}

/// The path below [`FOLDER`] of a file that the builder reads, and whether it lies in Docker's folder on a node.
fn place(path: &str) -> Option<(String, bool)> {
    let is_name = |name: &str| !name.is_empty() && !name.starts_with('.') && !name.contains('/');
    let certificate = |below: &str| {
        let (host, name) = below.split_once('/')?;
        let is_known = [".crt", ".cert", ".key"]
            .iter()
            .any(|end| name.ends_with(end));
        (is_name(host) && is_name(name) && is_known).then(|| format!("certs.d/{below}"))
    };
    if let Some(below) = path.strip_prefix(DOCKER_CERTIFICATES) {
        return Some((certificate(below)?, true));
    }
    let below = path.strip_prefix(FOLDER)?.strip_prefix('/')?;
    let found = match below.split_once('/') {
        None if matches!(below, "policy.json" | "registries.conf") => Some(below.to_owned()),
        Some(("registries.conf.d", name)) if is_name(name) && name.ends_with(".conf") => {
            Some(below.to_owned())
        }
        Some(("certs.d", rest)) => certificate(rest),
        _ => None,
    };
    Some((found?, false))
}

/// What Ignition would write.
fn decoded(contents: &Contents) -> Result<Vec<u8>, ContentError> {
    let Some(source) = contents
        .source
        .as_deref()
        .filter(|source| !source.is_empty())
    else {
        return Ok(Vec::new());
    };
    let url = data_url::DataUrl::process(source).map_err(|_no_data_url| ContentError::Url)?;
    let (bytes, _) = url.decode_to_vec().map_err(ContentError::Base64)?;
    match contents.compression.as_deref() {
        None | Some("") => Ok(bytes),
        Some("gzip") => {
            let mut plain = Vec::new();
            let limit = u64::try_from(LIMIT_BYTES).unwrap_or(u64::MAX) + 1;
            flate2::read::MultiGzDecoder::new(bytes.as_slice())
                .take(limit)
                .read_to_end(&mut plain)
                .map_err(ContentError::Compression)?;
            Ok(plain)
        }
        Some(other) => Err(ContentError::Compression(std::io::Error::other(format!(
            "{other:?} is unknown"
        )))),
    }
}

/// The builder can read it.
fn check(below: &str, content: &[u8]) -> Result<(), ContentError> {
    let text = || std::str::from_utf8(content).map_err(ContentError::Text);
    if below == "policy.json" {
        Policy::parse(text()?).map_err(ContentError::Policy)?;
    } else if below.starts_with("registries.conf") {
        Rules::parse(text()?).map_err(ContentError::Rules)?;
    }
    Ok(())
}

/// Certificates for single registries, as the ControllerConfig has them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bundles {
    /// The cluster's.
    pub cluster: Vec<RegistryBundle>,
    /// Its administrators'.
    pub user: Vec<RegistryBundle>,
}

impl From<&ControllerConfigSpec> for Bundles {
    fn from(spec: &ControllerConfigSpec) -> Self {
        let all = |bundles: &Option<Vec<_>>| bundles.clone().unwrap_or_default();
        Self {
            cluster: all(&spec.image_registry_bundle_data),
            user: all(&spec.image_registry_bundle_user_data),
        }
    }
}

/// The authorities that are trusted for single registries, by `HOST[:PORT]`.
///
/// # Errors
///
/// User: the ControllerConfig must be changed.
pub fn authorities(bundles: &Bundles) -> Result<BTreeMap<String, HostCertificates>, BundleError> {
    let Bundles { cluster, user } = bundles;
    let mut hosts = BTreeMap::<String, HostCertificates>::new();
    for (field, bundles) in [
        ("spec.imageRegistryBundleData", cluster),
        ("spec.imageRegistryBundleUserData", user),
    ] {
        for RegistryBundle { file, data } in bundles {
            let wrong = |what, source| BundleError {
                field,
                file: file.clone(),
                what,
                source,
            };
            // no colon may stand in a ConfigMap's key, which these come from
            let host = file.replace("..", ":");
            if host.is_empty() || host.contains('/') || host.starts_with('.') {
                return Err(wrong("names no registry", None));
            }
            let authority = BASE64_STANDARD
                .decode(data)
                .map_err(|source| wrong("is no base64", Some(source)))?;
            if !authority.is_empty() {
                hosts.entry(host).or_default().authorities.push(authority);
            }
        }
    }
    Ok(hosts)
}

/// `files` with the certificates of `hosts`, beside those that are there.
#[must_use]
pub fn with_authorities(mut files: Files, hosts: &BTreeMap<String, HostCertificates>) -> Files {
    for (host, certificates) in hosts {
        for (number, authority) in certificates.authorities.iter().enumerate() {
            let name = format!("certs.d/{host}/cluster-{number}.crt");
            files.insert(name, authority.clone());
        }
    }
    files
}

#[cfg(test)]
mod tests;
