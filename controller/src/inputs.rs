//! What decides an image's bytes, under which name is it built, and when is it the same image again?
//!
//! [`build_name`] is the incumbent's name, bit for bit, so that builds survive a takeover. [`ContentKey`] is
//! ours: builds with the same key make images that nodes may use in each other's place. Name and Ignition of the
//! rendered MachineConfig are not in it, nor its kernel arguments: an image has the files of the MachineConfig that it was
//! built for, and the machine config daemon brings a node's files up to the one that its pool wants.

use std::collections::BTreeSet;
use std::fmt;

use kube::ResourceExt as _;
use md5::{Digest as _, Md5};
use serde_json::{Map, Value, json};
use sha2::Sha256;
use strata_builder::error::{Class, Classify};
use strata_builder::reference::{InvalidReference, Reference};

use crate::api::foreign::{CoreObjectReference, PoolConfiguration, Proxy};
use crate::api::machine_os_config::{ContainerfileArch, ImageBuilderType, OsContainerfile};
use crate::api::{
    ControllerConfig, MachineConfig, MachineConfigPool, MachineOSConfig, RENDERED_PREFIX,
    annotation, name,
};
use crate::etc_containers::{self, FileError};
use crate::yaml::{YamlError, place, to_yaml};

/// The incumbent's constant; the render controller has the same.
const SALT: [u8; 80] = [
    0x10, 0x7c, 0xce, 0xe4, 0x8b, 0x38, 0xaf, 0xaf, 0x4f, 0xe5, 0x86, 0x76, 0x9d, 0x9a, 0xd3, 0x6e,
    0x19, 0x5d, 0x2f, 0xfd, 0xac, 0x6a, 0x25, 0x07, 0xae, 0x0d, 0xa0, 0xb9, 0x6e, 0x11, 0x57, 0x34,
    0xdb, 0x83, 0x0c, 0xce, 0xda, 0x8d, 0x74, 0x87, 0xbc, 0xb5, 0xc0, 0x97, 0xe9, 0x3e, 0x7e, 0xa5,
    0x40, 0x53, 0xb3, 0x77, 0x0f, 0xa8, 0xd0, 0xc5, 0x92, 0x6b, 0x3a, 0xe3, 0x85, 0xbc, 0xee, 0x1a,
    0x21, 0x1a, 0xeb, 0xca, 0x20, 0xad, 0x1f, 0xea, 0x29, 0x90, 0x94, 0x4f, 0x06, 0xce, 0x17, 0x16,
];

/// Layout of the document that a content key is made over.
const CONTENT_KEY_VERSION: u32 = 2;

/// A label value has at most 63 characters; the names of the Job and of the rendered MachineConfig are ones.
const LABEL_LIMIT: usize = 63;

/// `<MachineOSConfig name>-<32 hex digits>`; `build-<it>` fits a label value.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BuildName(String);

impl BuildName {
    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for BuildName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// `v2:<64 hex digits>` over all that makes an image another one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ContentKey(String);

impl ContentKey {
    /// The value of the annotation.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The key in an annotation; none if it was made over another layout.
    #[must_use]
    pub fn of_annotation(value: &str) -> Option<Self> {
        let ours = format!("v{CONTENT_KEY_VERSION}:");
        value.starts_with(&ours).then(|| Self(value.to_owned()))
    }
}

/// Objects that can't be built from.
#[derive(Debug, thiserror::Error)]
pub enum InputError {
    /// The pool is another one than the config names.
    #[error(
        "MachineOSConfig {os_config} names the pool {wanted} in spec.machineConfigPool.name, not {pool}"
    )]
    OtherPool {
        /// The MachineOSConfig.
        os_config: String,
        /// The pool it names.
        wanted: String,
        /// The pool at hand.
        pool: String,
    },
    /// No rendered MachineConfig.
    #[error("MachineConfig {0} is no rendered one: its name must start with {RENDERED_PREFIX:?}")]
    NotRendered(String),
    /// An annotation of the render controller is missing.
    #[error("MachineConfig {machine_config} has no annotation {key}")]
    NoAnnotation {
        /// The MachineConfig.
        machine_config: String,
        /// The missing or empty one.
        key: &'static str,
    },
    /// A field that must not be empty is.
    #[error("MachineConfig {machine_config} has no spec.{field}")]
    NoField {
        /// The MachineConfig.
        machine_config: String,
        /// The missing or empty one.
        field: &'static str,
    },
    /// A field of the config that must not be empty is.
    #[error("MachineOSConfig {os_config} has no spec.{field}")]
    NotNamed {
        /// The MachineOSConfig.
        os_config: String,
        /// The missing or empty one.
        field: &'static str,
    },
    /// Another kind of builder than ours.
    #[error(
        "MachineOSConfig {os_config} has {found:?} in spec.imageBuilder.imageBuilderType: write Job, the only kind of builder that there is"
    )]
    Builder {
        /// The MachineOSConfig.
        os_config: String,
        /// In the field.
        found: String,
    },
    /// The hash can't be made.
    #[error("{object} can't be given a build name")]
    Yaml {
        /// Kind, name and field.
        object: String,
        /// Why.
        #[source]
        source: YamlError,
    },
    /// A push spec or base image that is none.
    #[error("{object}")]
    Reference {
        /// Kind, name and field.
        object: String,
        /// Why.
        #[source]
        source: InvalidReference,
    },
    /// An image by its tag alone.
    #[error(
        "{object} is {image}, which has no digest: name the image as REPOSITORY@sha256:…, since what a tag names may change during a build"
    )]
    NoDigest {
        /// Kind, name and field.
        object: String,
        /// The image.
        image: String,
    },
    /// A name too long for what is made from it.
    #[error("{object} has {length} characters; at most {limit} leave room for what is added to it")]
    TooLong {
        /// Kind and name.
        object: String,
        /// Of the name.
        length: usize,
        /// Longest that works.
        limit: usize,
    },
    /// A file that says how to pull, and can't be used.
    #[error(transparent)]
    EtcContainers(#[from] FileError),
    /// Containerfiles, but none that can be built for.
    #[error(
        "MachineOSConfig {os_config} has Containerfiles for {architectures} only in spec.containerFile, but builds are for {ours} here: add one for {ours} or for NoArch"
    )]
    OtherArchitecture {
        /// The MachineOSConfig.
        os_config: String,
        /// Of the Containerfiles, joined by commas.
        architectures: String,
        /// What is built for.
        ours: String,
    },
}

impl Classify for InputError {
    fn class(&self) -> Class {
        match self {
            InputError::OtherPool { .. }
            | InputError::NotRendered(_)
            | InputError::NoAnnotation { .. }
            | InputError::NoField { .. }
            | InputError::NotNamed { .. }
            | InputError::Builder { .. }
            | InputError::Reference { .. }
            | InputError::NoDigest { .. }
            | InputError::OtherArchitecture { .. }
            | InputError::TooLong { .. } => Class::CONTENT,
            InputError::Yaml { source, .. } => source.class(),
            InputError::EtcContainers(source) => source.class(),
        }
    }
}

/// What a build is made from, as read.
#[derive(Clone, Copy, Debug)]
pub struct Sources<'a> {
    /// The pool.
    pub pool: &'a MachineConfigPool,
    /// The rendered MachineConfig that the pool wants.
    pub machine_config: &'a MachineConfig,
    /// Whose image it is.
    pub os_config: &'a MachineOSConfig,
    /// The cluster's settings, if it has any.
    pub controller_config: Option<&'a ControllerConfig>,
    /// The optional objects that exist.
    pub optional: OptionalMounts,
}

/// Which optional objects exist in the namespace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OptionalMounts {
    /// Secret `etc-pki-entitlement-<pool>`.
    pub entitlement: bool,
    /// ConfigMap `etc-yum-repos-d`.
    pub yum_repos: bool,
    /// Secret `etc-pki-rpm-gpg`.
    pub rpm_gpg: bool,
}

/// Everything that decides an image's bytes, and where it goes; valid.
#[derive(Clone, Debug, PartialEq)]
pub struct BuildInputs {
    /// The build's name.
    pub name: BuildName,
    /// Name of the MachineOSConfig.
    pub os_config: String,
    /// Name of the pool.
    pub pool: String,
    /// The rendered MachineConfig.
    pub machine_config: MachineConfig,
    /// Base operating-system image (`spec.osImageURL`).
    pub base_image: Reference,
    /// Image of extensions and kernels (`spec.baseOSExtensionsContainerImage`).
    pub extensions_image: Option<Reference>,
    /// Where the image is pushed to: the user's repository, tagged with the build's name.
    pub push: Reference,
    /// Secret to pull with, if the config names one.
    pub pull_secret: Option<String>,
    /// Secret to push with.
    pub push_secret: String,
    /// The administrator's Containerfile.
    pub containerfile: Option<OsContainerfile>,
    /// PEM certificates to trust, in base64.
    pub trust_bundle: Option<String>,
    /// How to reach what is outside.
    pub proxy: Proxy,
    /// How the pool's nodes pull, as the rendered MachineConfig says.
    pub etc_containers: etc_containers::Files,
    /// Certificates for single registries, of the cluster.
    pub registry_bundles: etc_containers::Bundles,
    /// The optional objects that exist.
    pub optional: OptionalMounts,
}

impl BuildInputs {
    /// The inputs in `sources`.
    ///
    /// # Errors
    ///
    /// User: an object or field, which the error names, must be changed.
    pub fn new(sources: Sources<'_>) -> Result<Self, InputError> {
        let Sources {
            pool,
            machine_config,
            os_config,
            controller_config,
            optional,
        } = sources;
        check(os_config)?;
        let name = build_name(pool, machine_config, os_config)?;
        let os_config_name = os_config.name_any();
        let rendered = machine_config.name_any();
        check_lengths(&os_config_name, &rendered)?;
        let spec = &os_config.spec;
        let push = reference(
            &spec.rendered_image_push_spec,
            format!("MachineOSConfig {os_config_name}, spec.renderedImagePushSpec"),
        )?;
        let base = spec_field(machine_config.spec.os_image_url.as_deref()).ok_or_else(|| {
            InputError::NoField {
                machine_config: rendered.clone(),
                field: "osImageURL",
            }
        })?;
        let settings = controller_config.map(|config| &config.spec);
        Ok(Self {
            push: push.repository.tagged(name.as_str()),
            name,
            pool: pool.name_any(),
            base_image: digested(base, format!("MachineConfig {rendered}, spec.osImageURL"))?,
            extensions_image: spec_field(machine_config.spec.extensions_image.as_deref())
                .map(|image| {
                    let field = "spec.baseOSExtensionsContainerImage";
                    digested(image, format!("MachineConfig {rendered}, {field}"))
                })
                .transpose()?,
            etc_containers: etc_containers::of_machine_config(machine_config)?,
            machine_config: machine_config.clone(),
            pull_secret: spec
                .base_image_pull_secret
                .as_ref()
                .map(|secret| secret.name.clone()),
            push_secret: spec.rendered_image_push_secret.name.clone(),
            containerfile: chosen(os_config)?,
            trust_bundle: settings
                .and_then(|settings| settings.additional_trust_bundle.clone())
                .filter(|bundle| !bundle.is_empty()),
            registry_bundles: settings.map(Into::into).unwrap_or_default(),
            proxy: settings
                .and_then(|settings| settings.proxy.clone())
                .unwrap_or_default(),
            optional,
            os_config: os_config_name,
        })
    }

    /// The key under which this image is found again.
    #[must_use]
    pub fn content_key(&self) -> ContentKey {
        let spec = &self.machine_config.spec;
        let file = self.containerfile.as_ref();
        let arch = file.map_or(&ContainerfileArch::NoArch, |file| &file.containerfile_arch);
        // packages, whose order and number don't matter
        let extensions: BTreeSet<_> = spec.extensions.iter().flatten().collect();
        // Keys are sorted and the writer has no freedom, so equal inputs give equal bytes.
        let document = json!({
            "version": CONTENT_KEY_VERSION,
            "pool": self.pool,
            "base": self.base_image.to_string(),
            "extensionsImage": self.extensions_image.as_ref().map(ToString::to_string),
            "extensions": extensions,
            "kernelType": spec.kernel_type(),
            "containerfile": file.map(|file| file.content.as_str()).unwrap_or_default(),
            "architecture": arch.node_label(),
            "trustBundle": self.trust_bundle,
            "entitlement": self.optional.entitlement,
            "yumRepos": self.optional.yum_repos,
            "rpmGpg": self.optional.rpm_gpg,
            "repository": self.push.repository.to_string(),
        });
        let digest = Sha256::digest(canonical(&document).to_string());
        ContentKey(format!("v{CONTENT_KEY_VERSION}:{}", hex::encode(digest)))
    }
}

/// The same document with sorted keys, whatever order the JSON library keeps.
fn canonical(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let mut keys: Vec<_> = fields.keys().collect();
            keys.sort();
            keys.into_iter()
                .map(|key| (key.clone(), canonical(&fields[key])))
                .collect()
        }
        Value::Array(items) => items.iter().map(canonical).collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => value.clone(),
    }
}

fn spec_field(text: Option<&str>) -> Option<&str> {
    text.filter(|text| !text.is_empty())
}

fn reference(text: &str, object: String) -> Result<Reference, InputError> {
    text.parse()
        .map_err(|source| InputError::Reference { object, source })
}

fn digested(text: &str, object: String) -> Result<Reference, InputError> {
    let image = reference(text, object.clone())?;
    if image.digest.is_none() {
        return Err(InputError::NoDigest {
            object,
            image: text.to_owned(),
        });
    }
    Ok(image)
}

/// Whether the spec says what the CRD asks for; one that was stored under another may not.
///
/// # Errors
///
/// User: the error names the field.
pub fn check(os_config: &MachineOSConfig) -> Result<(), InputError> {
    let spec = &os_config.spec;
    let pull_secret = spec.base_image_pull_secret.as_ref();
    for (field, is_empty) in [
        (
            "machineConfigPool.name",
            spec.machine_config_pool.name.is_empty(),
        ),
        (
            "renderedImagePushSecret.name",
            spec.rendered_image_push_secret.name.is_empty(),
        ),
        (
            "baseImagePullSecret.name",
            pull_secret.is_some_and(|secret| secret.name.is_empty()),
        ),
        (
            "renderedImagePushSpec",
            spec.rendered_image_push_spec.is_empty(),
        ),
    ] {
        if is_empty {
            return Err(InputError::NotNamed {
                os_config: os_config.name_any(),
                field,
            });
        }
    }
    match &spec.image_builder.image_builder_type {
        ImageBuilderType::Job => Ok(()),
        ImageBuilderType::Other(found) => Err(InputError::Builder {
            os_config: os_config.name_any(),
            found: found.clone(),
        }),
    }
}

/// The name that this build has with the incumbent.
///
/// # Errors
///
/// User: the error names object and field.
pub fn build_name(
    pool: &MachineConfigPool,
    machine_config: &MachineConfig,
    os_config: &MachineOSConfig,
) -> Result<BuildName, InputError> {
    let os_config_name = os_config.name_any();
    let wanted = &os_config.spec.machine_config_pool.name;
    if *wanted != pool.name_any() {
        return Err(InputError::OtherPool {
            os_config: os_config_name,
            wanted: wanted.clone(),
            pool: pool.name_any(),
        });
    }
    let rendered = machine_config.name_any();
    if !rendered.starts_with(RENDERED_PREFIX) {
        return Err(InputError::NotRendered(rendered));
    }
    let annotation_of = |key: &'static str| {
        machine_config
            .annotations()
            .get(key)
            .filter(|value| !value.is_empty())
            .ok_or_else(|| InputError::NoAnnotation {
                machine_config: rendered.clone(),
                key,
            })
    };
    let release = annotation_of(annotation::RELEASE_IMAGE_VERSION)?;
    annotation_of(annotation::GENERATED_BY_VERSION)?;
    let documents = [
        (
            configuration_document(pool.spec.configuration.as_ref()),
            format!("MachineConfigPool {wanted}, spec.configuration"),
        ),
        (
            spec_document(os_config),
            format!("MachineOSConfig {os_config_name}, spec"),
        ),
        (
            json!({
                "BaseOSContainerImage": machine_config.spec.os_image_url.clone().unwrap_or_default(),
                "BaseOSExtensionsContainerImage":
                    machine_config.spec.extensions_image.clone().unwrap_or_default(),
                "OSImageURL": "",
                "ReleaseVersion": release,
            }),
            format!("MachineConfig {rendered}"),
        ),
    ];
    let mut hash = Md5::new();
    hash.update(SALT);
    for (document, object) in documents {
        let text = to_yaml(&document).map_err(|source| {
            let place = place(&document, source).unwrap_or_default();
            InputError::Yaml {
                object: format!("{object}{place}"),
                source,
            }
        })?;
        hash.update(text);
    }
    Ok(BuildName(format!(
        "{os_config_name}-{}",
        hex::encode(hash.finalize())
    )))
}

/// Go's `corev1.ObjectReference` with `source`; empty fields are left out.
fn configuration_document(configuration: Option<&PoolConfiguration>) -> Value {
    let Some(PoolConfiguration { reference, source }) = configuration else {
        return json!({});
    };
    let mut fields = object_reference(reference);
    let source = source.as_deref().unwrap_or_default();
    if !source.is_empty() {
        let source = source
            .iter()
            .map(|one| Value::Object(object_reference(one)));
        fields.insert("source".to_owned(), source.collect());
    }
    Value::Object(fields)
}

fn object_reference(reference: &CoreObjectReference) -> Map<String, Value> {
    let CoreObjectReference {
        api_version,
        field_path,
        kind,
        name,
        namespace,
        resource_version,
        uid,
    } = reference;
    [
        ("apiVersion", api_version),
        ("fieldPath", field_path),
        ("kind", kind),
        ("name", name),
        ("namespace", namespace),
        ("resourceVersion", resource_version),
        ("uid", uid),
    ]
    .into_iter()
    .filter_map(|(key, value)| {
        let value = spec_field(value.as_deref())?;
        Some((key.to_owned(), json!(value)))
    })
    .collect()
}

/// Go's `MachineOSConfigSpec`: a list that isn't there is null, an optional object isn't there at all.
fn spec_document(os_config: &MachineOSConfig) -> Value {
    let spec = &os_config.spec;
    let mut document = json!({
        "machineConfigPool": {"name": spec.machine_config_pool.name},
        "imageBuilder": {"imageBuilderType": spec.image_builder.image_builder_type},
        "renderedImagePushSecret": {"name": spec.rendered_image_push_secret.name},
        "renderedImagePushSpec": spec.rendered_image_push_spec,
        "containerFile": spec.container_file.as_ref().map(|files| {
            files
                .iter()
                .map(|file| json!({
                    "containerfileArch": file.containerfile_arch.as_str(),
                    "content": file.content,
                }))
                .collect::<Vec<_>>()
        }),
    });
    if let Some(secret) = &spec.base_image_pull_secret {
        document["baseImagePullSecret"] = json!({"name": secret.name});
    }
    document
}

/// The Containerfile for all architectures; without one that for ours. Those for others are left alone, as by the incumbent, but there must be one to
/// build: an image without what the administrator wrote is none that anybody asked for.
fn chosen(os_config: &MachineOSConfig) -> Result<Option<OsContainerfile>, InputError> {
    let files = os_config.spec.container_file.as_deref().unwrap_or_default();
    let ours = ContainerfileArch::OURS;
    let of = |arch: &ContainerfileArch| files.iter().find(|file| file.containerfile_arch == *arch);
    match of(&ContainerfileArch::NoArch).or_else(|| of(&ours)) {
        Some(file) => Ok(Some(file.clone())),
        None if files.is_empty() => Ok(None),
        None => Err(InputError::OtherArchitecture {
            os_config: os_config.name_any(),
            architectures: files
                .iter()
                .map(|file| file.containerfile_arch.as_str())
                .collect::<Vec<_>>()
                .join(", "),
            ours: ours.as_str().to_owned(),
        }),
    }
}

fn check_lengths(os_config: &str, rendered: &str) -> Result<(), InputError> {
    // The Job's name is a label of its pods.
    let added = name::job("-").len() - 1 + "-".len() + 32;
    for (object, length, limit) in [
        (
            format!("the name of MachineOSConfig {os_config}"),
            os_config.len(),
            LABEL_LIMIT - added,
        ),
        (
            format!("the name of MachineConfig {rendered}"),
            rendered.len(),
            LABEL_LIMIT,
        ),
    ] {
        if length > limit {
            return Err(InputError::TooLong {
                object,
                length,
                limit,
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
