//! Which Containerfile does a build run, and what lies in its context?
//!
//! Inputs to text; pure. The administrator's part follows ours verbatim, and errors in it are told in its
//! own lines.

use std::io::Write as _;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use flate2::{Compression, GzBuilder};
use kube::ResourceExt as _;
use strata_builder::containerfile::parse::{ParseError, parse};
use strata_builder::containerfile::{Containerfile, words};
use strata_builder::error::{Class, Classify};

use crate::api::MachineConfig;
use crate::api::machine_os_config::ContainerfileArch;
use crate::inputs::BuildInputs;

const TEMPLATE: &str = include_str!("../../containerfiles/on-cluster-build.Containerfile");

/// The stage that holds base image and machine config; the administrator's stages build on it.
const CONFIGS_STAGE: &str = "configs";

/// The apiserver takes 1 MiB for all of a ConfigMap's values; some of it stays for the rest of the object.
const CONFIG_MAP_LIMIT_BYTES: usize = 1024 * 1024 - 16 * 1024;

const KERNEL_DEFAULT: &str =
    "kernel kernel-core kernel-modules kernel-modules-core kernel-modules-extra";
const KERNEL_REALTIME: &str =
    "kernel-rt-core kernel-rt-modules kernel-rt-modules-extra kernel-rt-kvm";
const KERNEL_64K: &str =
    "kernel-64k-core kernel-64k-modules kernel-64k-modules-core kernel-64k-modules-extra";

/// Names of extensions and the packages they stand for.
const EXTENSIONS: [(&str, &str); 7] = [
    (
        "ipsec",
        "NetworkManager-libreswan libreswan openvswitch3.5-ipsec",
    ),
    ("kerberos", "krb5-workstation libkadm5"),
    ("kernel-devel", "kernel-devel kernel-headers"),
    ("sandboxed-containers", "kata-containers"),
    ("sysstat", "sysstat"),
    ("two-node-ha", "pacemaker pcs fence-agents-all"),
    ("usbguard", "usbguard"),
];

/// What a build's ConfigMaps hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendered {
    /// The whole Containerfile.
    pub containerfile: String,
    /// Lines before the administrator's first.
    pub user_line_offset: usize,
    /// base64(gzip(JSON)) of the MachineConfig.
    pub packed_machine_config: String,
}

/// Inputs that give no Containerfile.
#[derive(Debug, thiserror::Error)]
pub enum RenderError {
    /// Not a Containerfile; line and column are the administrator's.
    #[error("spec.containerFile of MachineOSConfig {os_config}: {source}")]
    Parse {
        /// The MachineOSConfig.
        os_config: String,
        /// Where and why.
        #[source]
        source: ParseError,
    },
    /// Another character than ours at the ends of lines.
    #[error(
        "spec.containerFile of MachineOSConfig {os_config}, line 1: # escape= can't be used in a cluster, since the text follows a part with backslashes; end its lines with \\ instead"
    )]
    Escape {
        /// The MachineOSConfig.
        os_config: String,
    },
    /// The result would not be the operating system.
    #[error(
        "spec.containerFile of MachineOSConfig {os_config}, line {line}: the last stage starts from {base:?}, so its image would lack the base operating system and the pool's configuration; start it with FROM {CONFIGS_STAGE}"
    )]
    NotDerived {
        /// The MachineOSConfig.
        os_config: String,
        /// Of its FROM, counted from the administrator's first.
        line: usize,
        /// What the chain of stages starts from.
        base: String,
    },
    /// Names of no extension.
    #[error("MachineConfig {machine_config}, spec.extensions: there are no extensions {}; there are {}", .unknown.join(", "), known_extensions())]
    Extensions {
        /// The MachineConfig.
        machine_config: String,
        /// In its order.
        unknown: Vec<String>,
    },
    /// No such kernel.
    #[error(
        "MachineConfig {machine_config}, spec.kernelType: {kernel_type:?} is none of default, realtime, 64k-pages"
    )]
    KernelType {
        /// The MachineConfig.
        machine_config: String,
        /// As it stands there.
        kernel_type: String,
    },
    /// There is no such kernel for the architecture.
    #[error(
        "MachineConfig {machine_config}, spec.kernelType: 64k-pages exists for ARM64 only, and the Containerfile is for {arch}"
    )]
    KernelArch {
        /// The MachineConfig.
        machine_config: String,
        /// Of the Containerfile.
        arch: String,
    },
    /// Too big for a ConfigMap.
    #[error(
        "MachineConfig {machine_config} has {packed_bytes} bytes when packed; a ConfigMap takes {CONFIG_MAP_LIMIT_BYTES}"
    )]
    TooLarge {
        /// The MachineConfig.
        machine_config: String,
        /// base64(gzip(JSON)).
        packed_bytes: usize,
    },
    /// The MachineConfig can't be written as JSON.
    #[error("write MachineConfig {machine_config} as JSON")]
    Json {
        /// The MachineConfig.
        machine_config: String,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// The compressor failed.
    #[error("compress MachineConfig {machine_config}")]
    Compress {
        /// The MachineConfig.
        machine_config: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

fn known_extensions() -> String {
    EXTENSIONS.map(|(name, _)| name).join(", ")
}

impl Classify for RenderError {
    fn class(&self) -> Class {
        match self {
            RenderError::Parse { .. }
            | RenderError::Escape { .. }
            | RenderError::NotDerived { .. }
            | RenderError::Extensions { .. }
            | RenderError::KernelType { .. }
            | RenderError::KernelArch { .. }
            | RenderError::TooLarge { .. } => Class::CONTENT,
            RenderError::Json { .. } | RenderError::Compress { .. } => Class::INTERNAL,
        }
    }
}

/// Containerfile and context of a build.
///
/// # Errors
///
/// User: the MachineOSConfig's Containerfile or the MachineConfig must be changed. Permanent: a bug.
pub fn render(inputs: &BuildInputs) -> Result<Rendered, RenderError> {
    let fixed = fixed_part(inputs)?;
    let user_line_offset = fixed.lines().count();
    let mut containerfile = fixed;
    if let Some(user) = &inputs.containerfile {
        let content = user.content.trim_start_matches('\u{feff}');
        // a directive counts at the top of a file only, and ours is there
        if parse(content, "Containerfile").is_ok_and(|file| file.escape != '\\') {
            return Err(RenderError::Escape {
                os_config: inputs.os_config.clone(),
            });
        }
        containerfile.push_str(content);
        if !containerfile.ends_with('\n') {
            containerfile.push('\n');
        }
    }
    check(inputs, &containerfile, user_line_offset)?;
    Ok(Rendered {
        containerfile,
        user_line_offset,
        packed_machine_config: packed(&inputs.machine_config)?,
    })
}

fn fixed_part(inputs: &BuildInputs) -> Result<String, RenderError> {
    let packages = extension_packages(&inputs.machine_config)?;
    let kernel = kernel_packages(inputs)?;
    let base = inputs.base_image.to_string();
    let rendered = inputs.machine_config.name_any();
    let extensions_image = inputs.extensions_image.as_ref().map(ToString::to_string);
    let values = [
        ("@BASE_IMAGE@", base.as_str()),
        (
            "@EXTENSIONS_IMAGE@",
            extensions_image.as_deref().unwrap_or_default(),
        ),
        ("@EXTENSION_PACKAGES@", &packages),
        ("@KERNEL_PACKAGES@", kernel),
        ("@KERNEL_DEFAULT@", KERNEL_DEFAULT),
        ("@KERNEL_REALTIME@", KERNEL_REALTIME),
        ("@KERNEL_64K@", KERNEL_64K),
        ("@MACHINE_CONFIG@", &rendered),
        ("@POOL@", &inputs.pool),
    ];
    let mut out = String::with_capacity(TEMPLATE.len());
    let mut keeping = true;
    for line in TEMPLATE.lines() {
        match line {
            "#@begin extensions" => keeping = extensions_image.is_some(),
            "#@end" => keeping = true,
            _ if keeping => {
                let filled = values.iter().fold(line.to_owned(), |line, (key, value)| {
                    line.replace(key, value)
                });
                out.push_str(&filled);
                out.push('\n');
            }
            _ => {}
        }
    }
    Ok(out)
}

fn extension_packages(machine_config: &MachineConfig) -> Result<String, RenderError> {
    let wanted = machine_config
        .spec
        .extensions
        .as_deref()
        .unwrap_or_default();
    let mut packages = Vec::new();
    let mut unknown = Vec::new();
    for extension in wanted {
        match EXTENSIONS.iter().find(|(name, _)| name == extension) {
            Some((_, names)) => packages.push(*names),
            None => unknown.push(extension.clone()),
        }
    }
    if unknown.is_empty() {
        return Ok(packages.join(" "));
    }
    Err(RenderError::Extensions {
        machine_config: machine_config.name_any(),
        unknown,
    })
}

/// The packages of the kernel to swap to; empty for the one that the base image has.
fn kernel_packages(inputs: &BuildInputs) -> Result<&'static str, RenderError> {
    let machine_config = || inputs.machine_config.name_any();
    match inputs.machine_config.spec.kernel_type() {
        "default" => Ok(""),
        "realtime" => Ok(KERNEL_REALTIME),
        "64k-pages" => {
            let arch = inputs
                .containerfile
                .as_ref()
                .map_or(&ContainerfileArch::NoArch, |file| &file.containerfile_arch);
            match arch {
                ContainerfileArch::Arm64 | ContainerfileArch::NoArch => Ok(KERNEL_64K),
                other @ (ContainerfileArch::Amd64
                | ContainerfileArch::Ppc64le
                | ContainerfileArch::S390x
                | ContainerfileArch::Other(_)) => Err(RenderError::KernelArch {
                    machine_config: machine_config(),
                    arch: other.as_str().to_owned(),
                }),
            }
        }
        other => Err(RenderError::KernelType {
            machine_config: machine_config(),
            kernel_type: other.to_owned(),
        }),
    }
}

/// The file parses, and its last stage is the operating system.
fn check(inputs: &BuildInputs, text: &str, offset: usize) -> Result<(), RenderError> {
    let os_config = || inputs.os_config.clone();
    let file = parse(text, "Containerfile").map_err(|mut source| {
        source.line = source.line.saturating_sub(offset);
        RenderError::Parse {
            os_config: os_config(),
            source,
        }
    })?;
    let Some(last) = file.stages.last() else {
        return Ok(());
    };
    match first_base(&file) {
        None => Ok(()),
        Some(base) => Err(RenderError::NotDerived {
            os_config: os_config(),
            line: last.location.line.saturating_sub(offset),
            base,
        }),
    }
}

/// What the last stage's chain starts from, if it doesn't go through `configs`.
fn first_base(file: &Containerfile) -> Option<String> {
    let mut at = file.stages.len().checked_sub(1)?;
    loop {
        let stage = file.stages.get(at)?;
        if stage.name.as_deref() == Some(CONFIGS_STAGE) {
            return None;
        }
        // Our part comes first, so no ARG stands before the first FROM and no variable has a value here.
        let base = words::expand(&stage.base, file.escape, &|_| None)
            .unwrap_or_else(|_| stage.base.0.clone());
        let name = base.to_lowercase();
        match (0..at).rev().find(|&earlier| {
            file.stages
                .get(earlier)
                .is_some_and(|stage| stage.name.as_deref() == Some(name.as_str()))
        }) {
            Some(earlier) => at = earlier,
            None => return Some(base),
        }
    }
}

/// base64(gzip(JSON)) of the MachineConfig, as the node keeps it.
fn packed(machine_config: &MachineConfig) -> Result<String, RenderError> {
    let name = || machine_config.name_any();
    let mut kept = machine_config.clone();
    kept.metadata.managed_fields = None;
    let json = serde_json::to_vec(&kept).map_err(|source| RenderError::Json {
        machine_config: name(),
        source,
    })?;
    let mut gzip = GzBuilder::new()
        .mtime(0)
        .write(Vec::new(), Compression::best());
    let compressed = gzip
        .write_all(&json)
        .and_then(|()| gzip.finish())
        .map_err(|source| RenderError::Compress {
            machine_config: name(),
            source,
        })?;
    let packed = BASE64_STANDARD.encode(compressed);
    if packed.len() > CONFIG_MAP_LIMIT_BYTES {
        return Err(RenderError::TooLarge {
            machine_config: name(),
            packed_bytes: packed.len(),
        });
    }
    Ok(packed)
}

#[cfg(test)]
mod tests;
