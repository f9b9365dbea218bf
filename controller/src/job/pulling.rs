//! How do the files below /etc/containers come into the pod? By two ConfigMaps in one volume.
//!
//! Keys of a ConfigMap have no slashes, so each but the two that the incumbent knows is numbered, and the volume says where it goes.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{
    ConfigMapProjection, KeyToPath, ProjectedVolumeSource, Volume, VolumeMount, VolumeProjection,
};

use super::pod::mount;
use crate::api::name;
use crate::etc_containers::{FOLDER, Files};

const VOLUME: &str = "etc-containers";
const POLICY: &str = "policy.json";
const REGISTRIES: &str = "registries.conf";

/// A ConfigMap: its name, and key, path and content of what it holds.
struct Part<'a> {
    config_map: String,
    files: Vec<(String, &'a str, &'a [u8])>,
}

fn parts<'a>(build: &str, files: &'a Files) -> Vec<Part<'a>> {
    let (policy, others): (Vec<_>, Vec<_>) = files.iter().partition(|(path, _)| *path == POLICY);
    let policy = policy
        .into_iter()
        .map(|(path, content)| (POLICY.to_owned(), path.as_str(), content.as_slice()))
        .collect();
    let others = others
        .into_iter()
        .enumerate()
        .map(|(number, (path, content))| {
            let key = match path.as_str() {
                REGISTRIES => REGISTRIES.to_owned(),
                _ => format!("file-{number}"),
            };
            (key, path.as_str(), content.as_slice())
        })
        .collect();
    [
        Part {
            config_map: name::policy(build),
            files: policy,
        },
        Part {
            config_map: name::registries(build),
            files: others,
        },
    ]
    .into_iter()
    .filter(|part| !part.files.is_empty())
    .collect()
}

/// What a ConfigMap holds.
#[derive(Default)]
pub(super) struct Content {
    pub text: BTreeMap<String, String>,
    pub binary: BTreeMap<String, ByteString>,
}

/// Names and contents of the ConfigMaps.
pub(super) fn contents(build: &str, files: &Files) -> Vec<(String, Content)> {
    let content = |part: Part<'_>| {
        let mut content = Content::default();
        for (key, _, bytes) in part.files {
            match std::str::from_utf8(bytes) {
                Ok(text) => drop(content.text.insert(key, text.to_owned())),
                Err(_) => drop(content.binary.insert(key, ByteString(bytes.to_vec()))),
            }
        }
        (part.config_map, content)
    };
    parts(build, files).into_iter().map(content).collect()
}

/// The volume, if there are any files.
pub(super) fn volume(build: &str, files: &Files) -> Option<(Volume, VolumeMount)> {
    let source = |part: Part<'_>| VolumeProjection {
        config_map: Some(ConfigMapProjection {
            name: part.config_map,
            items: Some(
                part.files
                    .into_iter()
                    .map(|(key, path, _)| KeyToPath {
                        key,
                        path: path.to_owned(),
                        ..KeyToPath::default()
                    })
                    .collect(),
            ),
            optional: None,
        }),
        ..VolumeProjection::default()
    };
    let sources: Vec<_> = parts(build, files).into_iter().map(source).collect();
    if sources.is_empty() {
        return None;
    }
    let volume = Volume {
        name: VOLUME.to_owned(),
        projected: Some(ProjectedVolumeSource {
            sources: Some(sources),
            ..ProjectedVolumeSource::default()
        }),
        ..Volume::default()
    };
    Some((volume, mount(VOLUME, FOLDER, true)))
}
