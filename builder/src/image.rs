//! What is an image made of? The OCI image configuration and manifest, and how layers are added; pure.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::contract::ANNOTATION_PREFIX;
use crate::digest::Digest;
use crate::error::{Class, Classify};

/// An OCI image configuration; fields that we don't know are kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Default)]
pub struct ImageConfig {
    /// RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// GOARCH.
    #[serde(default)]
    pub architecture: String,
    /// GOOS.
    #[serde(default)]
    pub os: String,
    /// How a container of it runs.
    #[serde(default)]
    pub config: RunConfig,
    /// The layers' diff IDs.
    #[serde(default)]
    pub rootfs: RootFs,
    /// One entry per instruction.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub history: Vec<History>,
    /// `author`, `variant`, and what we don't know.
    #[serde(flatten)]
    pub other: BTreeMap<String, serde_json::Value>,
}

/// The `config` of an image configuration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Default)]
#[serde(rename_all = "PascalCase")]
pub struct RunConfig {
    /// `USER`
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub user: String,
    /// `EXPOSE`: `8080/tcp` → `{}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exposed_ports: Option<BTreeMap<String, serde_json::Value>>,
    /// `NAME=value`, in order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub env: Option<Vec<String>>,
    /// `ENTRYPOINT`
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entrypoint: Option<Vec<String>>,
    /// `CMD`
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cmd: Option<Vec<String>>,
    /// `VOLUME`: path → `{}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volumes: Option<BTreeMap<String, serde_json::Value>>,
    /// `WORKDIR`
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub working_dir: String,
    /// `LABEL`
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<BTreeMap<String, String>>,
    /// `STOPSIGNAL`
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_signal: Option<String>,
    /// `SHELL`, `HEALTHCHECK`, `ONBUILD` (Docker's extensions, kept), and what we don't know.
    #[serde(flatten)]
    pub other: BTreeMap<String, serde_json::Value>,
}

/// The `rootfs` of an image configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootFs {
    /// Always `layers`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Of the uncompressed layers, lowest first.
    pub diff_ids: Vec<Digest>,
}

impl Default for RootFs {
    fn default() -> Self {
        Self {
            kind: "layers".to_owned(),
            diff_ids: Vec::new(),
        }
    }
}

/// One entry of an image's history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct History {
    /// RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// The instruction.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_by: Option<String>,
    /// Free text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
    /// Free text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub author: Option<String>,
    /// True if the instruction made no layer.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub empty_layer: bool,
}

/// An OCI image manifest.
pub const MANIFEST_MEDIA_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
/// An OCI image configuration.
pub const CONFIG_MEDIA_TYPE: &str = "application/vnd.oci.image.config.v1+json";
/// A layer as [`crate::layer`] writes it.
pub const LAYER_MEDIA_TYPE: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
/// The same with zstd.
pub const LAYER_ZSTD_MEDIA_TYPE: &str = "application/vnd.oci.image.layer.v1.tar+zstd";

/// An image manifest, OCI or Docker schema 2; fields that we don't know are kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Always 2.
    pub schema_version: u32,
    /// Absent in some OCI manifests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// Of the image configuration.
    pub config: Descriptor,
    /// Lowest first.
    pub layers: Vec<Descriptor>,
    /// Free keys.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// `subject`, `artifactType`, and what we don't know.
    #[serde(flatten)]
    pub other: BTreeMap<String, serde_json::Value>,
}

/// A blob as a manifest names it; fields that we don't know are kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What the blob is.
    pub media_type: String,
    /// Of the blob.
    pub digest: Digest,
    /// Of the blob, in bytes.
    #[serde(rename = "size")]
    pub size_bytes: u64,
    /// `annotations`, `urls`, `platform`, and what we don't know.
    #[serde(flatten)]
    pub other: BTreeMap<String, serde_json::Value>,
}

impl Descriptor {
    /// A blob of which only this is known.
    #[must_use]
    pub fn new(media_type: &str, digest: Digest, size_bytes: u64) -> Self {
        Self {
            media_type: media_type.to_owned(),
            digest,
            size_bytes,
            other: BTreeMap::new(),
        }
    }
}

/// An image while it grows: what a stage starts from, and what it leaves to the stages from it.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Image {
    /// With one diff ID per layer.
    pub config: ImageConfig,
    /// Lowest first.
    pub layers: Vec<Descriptor>,
    /// For the manifest.
    pub annotations: BTreeMap<String, String>,
}

/// A manifest, its configuration, and their bytes as they are pushed.
#[derive(Clone, Debug, PartialEq)]
pub struct Assembled {
    /// The configuration's bytes.
    pub config: Vec<u8>,
    /// The configuration as the manifest names it.
    pub config_descriptor: Descriptor,
    /// The manifest's bytes.
    pub manifest: Vec<u8>,
    /// Of the manifest's bytes: the image's digest.
    pub digest: Digest,
    /// Compressed size of all layers and the configuration.
    pub size_bytes: u64,
}

/// An image that can't be built on, or not be written.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// Manifest and configuration of a base don't belong together.
    #[error("the manifest names {layers} layers, but the image configuration {diff_ids}")]
    LayerCount {
        /// In the manifest.
        layers: usize,
        /// In the configuration.
        diff_ids: usize,
    },
    /// A base with something else than files, or with files that are kept elsewhere.
    #[error(
        "a layer of the image has the media type {0:?}; layers are tar archives, plain, gzip or zstd"
    )]
    LayerType(String),
    /// Our own document.
    #[error("write the image's {document} as JSON")]
    Encode {
        /// `manifest` or `configuration`.
        document: &'static str,
        /// Why not.
        source: serde_json::Error,
    },
}

impl Classify for ImageError {
    fn class(&self) -> Class {
        match self {
            Self::LayerCount { .. } | Self::LayerType(_) => Class::CONTENT,
            Self::Encode { .. } => Class::INTERNAL,
        }
    }
}

impl Image {
    /// The image that a registry's manifest and configuration describe. Layer descriptors stay as they are, except that Docker's media
    /// types become their OCI equivalents, as our manifest is an OCI one.
    ///
    /// What its manifest says of itself as an image of ours isn't true of one made from it.
    ///
    /// # Errors
    /// User, if the two don't belong together.
    pub fn of_base(manifest: &Manifest, config: ImageConfig) -> Result<Self, ImageError> {
        let (layers, diff_ids) = (manifest.layers.len(), config.rootfs.diff_ids.len());
        if layers != diff_ids {
            return Err(ImageError::LayerCount { layers, diff_ids });
        }
        let layers = manifest.layers.iter().cloned().map(|mut layer| {
            match oci_layer_media_type(&layer.media_type) {
                Some(media_type) => layer.media_type = media_type.to_owned(),
                None => return Err(ImageError::LayerType(layer.media_type)),
            }
            Ok(layer)
        });
        Ok(Self {
            config,
            layers: layers.collect::<Result<_, _>>()?,
            annotations: manifest
                .annotations
                .iter()
                .filter(|(key, _)| !key.starts_with(ANNOTATION_PREFIX))
                .map(|(key, value)| (key.clone(), value.clone()))
                .collect(),
        })
    }

    /// Puts a layer on top.
    pub fn add_layer(&mut self, descriptor: Descriptor, diff_id: Digest) {
        self.layers.push(descriptor);
        self.config.rootfs.diff_ids.push(diff_id);
    }

    /// The bytes to push: `created` (RFC 3339) goes into the configuration.
    ///
    /// # Errors
    /// Permanent, if the documents can't be written.
    pub fn assemble(&self, created: &str) -> Result<Assembled, ImageError> {
        let encode = |document| move |source| ImageError::Encode { document, source };
        let mut config = self.config.clone();
        config.created = Some(created.to_owned());
        let config = serde_json::to_vec(&config).map_err(encode("configuration"))?;
        let config_descriptor =
            Descriptor::new(CONFIG_MEDIA_TYPE, Digest::of(&config), config.len() as u64);
        let manifest = Manifest {
            schema_version: 2,
            media_type: Some(MANIFEST_MEDIA_TYPE.to_owned()),
            config: config_descriptor.clone(),
            layers: self.layers.clone(),
            annotations: self.annotations.clone(),
            other: BTreeMap::new(),
        };
        let manifest = serde_json::to_vec(&manifest).map_err(encode("manifest"))?;
        let layer_bytes: u64 = self.layers.iter().map(|layer| layer.size_bytes).sum();
        Ok(Assembled {
            size_bytes: layer_bytes + config_descriptor.size_bytes,
            digest: Digest::of(&manifest),
            config,
            config_descriptor,
            manifest,
        })
    }
}

/// The OCI name of a layer's media type; none if it is no archive of files, is encrypted, or is kept elsewhere.
fn oci_layer_media_type(media_type: &str) -> Option<&'static str> {
    match media_type {
        "application/vnd.oci.image.layer.v1.tar"
        | "application/vnd.docker.image.rootfs.diff.tar" => {
            Some("application/vnd.oci.image.layer.v1.tar")
        }
        LAYER_MEDIA_TYPE | "application/vnd.docker.image.rootfs.diff.tar.gzip" => {
            Some(LAYER_MEDIA_TYPE)
        }
        LAYER_ZSTD_MEDIA_TYPE | "application/vnd.docker.image.rootfs.diff.tar.zstd" => {
            Some(LAYER_ZSTD_MEDIA_TYPE)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests;
