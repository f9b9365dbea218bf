//! How does the controller log in to the registry that a build pushed to?
//!
//! With the Secret that the build names, converted as for its pod, and with the certificates of the cluster's
//! ControllerConfig. Both are read at every use: a changed credential counts from then on.

use std::collections::BTreeSet;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client};
use strata_builder::digest::Digest;
use strata_builder::error::{Class, Classify, chain};
use strata_builder::reference::Reference;
use strata_builder::registry::{
    AuthFileError, Bounds, Credentials, Options, Registry, RegistryError,
};

use crate::api::foreign::ControllerConfigSpec;
use crate::api::{CONTROLLER_CONFIG_NAME, ControllerConfig};
use crate::error::{class_of, code};
use crate::etc_containers::{BundleError, Bundles, authorities};
use crate::secrets::{SecretError, docker_config};
use crate::settings::Current;
use crate::usage::{Use, Users};

/// A registry's bad second is waited for here; a bad minute by the object that needs it.
const BOUNDS: Bounds = Bounds {
    attempts: 3,
    patience: Duration::ZERO,
    first_delay: Duration::from_millis(250),
    longest_delay: Duration::from_secs(5),
};

/// In one index; nobody makes more than a few.
const MOST_INDEXES: usize = 64;

/// Reaches registries with the cluster's credentials.
#[derive(Clone)]
pub struct Registries {
    client: Client,
    namespace: String,
    settings: Current,
}

/// Why a registry can't be asked.
#[derive(Debug, thiserror::Error)]
pub enum RegistriesError {
    /// The apiserver didn't give an object.
    #[error("read {object}")]
    Read {
        /// Kind and name.
        object: String,
        /// Why.
        #[source]
        source: kube::Error,
    },
    /// There is no such Secret.
    #[error("secret {0} does not exist")]
    NoSecret(String),
    /// The Secret can't be used.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// Its credentials can't be used.
    #[error("secret {secret}")]
    Credentials {
        /// metadata.name.
        secret: String,
        /// Why.
        #[source]
        source: AuthFileError,
    },
    /// Certificates that are none.
    #[error("ControllerConfig {CONTROLLER_CONFIG_NAME}, {field} is no base64")]
    Certificates {
        /// Which field.
        field: &'static str,
        /// Why.
        #[source]
        source: base64::DecodeError,
    },
    /// The same, for a single registry.
    #[error(transparent)]
    RegistryBundle(#[from] BundleError),
    /// No client can be made.
    #[error(transparent)]
    Client(RegistryError),
}

impl Classify for RegistriesError {
    fn class(&self) -> Class {
        match self {
            RegistriesError::Read { source, .. } => class_of(source),
            RegistriesError::NoSecret(_) | RegistriesError::Credentials { .. } => Class::RIGHTS,
            RegistriesError::Certificates { .. } | RegistriesError::RegistryBundle(_) => {
                Class::CONTENT
            }
            RegistriesError::Secret(source) => source.class(),
            RegistriesError::Client(source) => source.class(),
        }
    }
}

/// What a registry says of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It wasn't asked: nothing depends on it.
    NotAsked,
    /// There is no such image.
    Absent,
    /// There is.
    Present {
        /// Of the manifest.
        digest: Digest,
        /// UID of the MachineOSBuild that it was built for, if the manifest was read and says so.
        build_uid: Option<String>,
    },
    /// Nobody can log in: the Secret is gone or can't be used.
    NoAccess(String),
    /// The registry refuses.
    Refused(String),
    /// No answer for now.
    Unknown(String),
}

impl Registries {
    /// Reads Secrets in `namespace`.
    #[must_use]
    pub fn new(client: Client, namespace: String, settings: Current) -> Self {
        Self {
            client,
            namespace,
            settings,
        }
    }

    /// A client with the credentials of the Secret `push_secret`.
    ///
    /// # Errors
    ///
    /// User: the Secret or the ControllerConfig must be changed. Transient: the apiserver.
    pub async fn open(&self, push_secret: &str) -> Result<Registry, RegistriesError> {
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), &self.namespace);
        let secret = secrets
            .get_opt(push_secret)
            .await
            .map_err(|source| RegistriesError::Read {
                object: format!("Secret {push_secret}"),
                source,
            })?
            .ok_or_else(|| RegistriesError::NoSecret(push_secret.to_owned()))?;
        let document = docker_config(&secret)?;
        let credentials = Credentials::parse(&String::from_utf8_lossy(document.as_bytes()))
            .map_err(|source| RegistriesError::Credentials {
                secret: push_secret.to_owned(),
                source,
            })?;
        let cluster = self.controller_config().await?.map(|found| found.spec);
        let cluster = cluster.unwrap_or_default();
        Registry::new(Options {
            credentials,
            plain_http: self.settings.get().job.plain_http.clone(),
            ca_bundles: certificates(&cluster)?,
            certificates: authorities(&Bundles::from(&cluster))?,
            bounds: Some(BOUNDS),
            ..Options::default()
        })
        .map_err(RegistriesError::Client)
    }

    /// The cluster's settings; plain Kubernetes may have none, nor their CRD.
    async fn controller_config(&self) -> Result<Option<ControllerConfig>, RegistriesError> {
        read_controller_config(&self.client)
            .await
            .map_err(|source| RegistriesError::Read {
                object: format!("ControllerConfig {CONTROLLER_CONFIG_NAME}"),
                source,
            })
    }

    /// What the registry says of `image`; with `manifest` its build's UID too.
    pub async fn look(&self, image: &Reference, push_secret: &str, manifest: bool) -> Answer {
        let registry = match self.open(push_secret).await {
            Ok(registry) => registry,
            Err(error) if error.class() == Class::Transient => {
                return Answer::Unknown(chain(&error));
            }
            Err(error) => return Answer::NoAccess(chain(&error)),
        };
        let found = if manifest {
            look_inside(&registry, image).await
        } else {
            registry.head_manifest(image).await.map(|digest| {
                digest.map(|digest| Answer::Present {
                    digest,
                    build_uid: None,
                })
            })
        };
        match found {
            Ok(found) => found.unwrap_or(Answer::Absent),
            Err(error) => match error.class() {
                Class::Transient => Answer::Unknown(chain(&error)),
                Class::User(_) | Class::Permanent(_) => Answer::Refused(chain(&error)),
            },
        }
    }
}

async fn look_inside(
    registry: &Registry,
    image: &Reference,
) -> Result<Option<Answer>, RegistryError> {
    #[derive(serde::Deserialize)]
    struct Annotated {
        #[serde(default)]
        annotations: std::collections::BTreeMap<String, String>,
    }
    // what we pushed is no index, so no platform is chosen
    match registry.manifest(image, "amd64").await {
        Ok(manifest) => Ok(Some(Answer::Present {
            digest: manifest.digest,
            build_uid: serde_json::from_slice::<Annotated>(&manifest.bytes)
                .ok()
                .and_then(|mut found| {
                    found
                        .annotations
                        .remove(strata_builder::contract::BUILD_UID_ANNOTATION)
                }),
        })),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

/// Who needs `image`, also as a part of an index: one that is the image itself, and any in its repository that is named. What
/// can't be read may need it.
pub async fn in_use(
    registry: &Registry,
    image: &Reference,
    digest: Digest,
    users: &Users,
    asking: Option<&str>,
) -> Option<Use> {
    if let Some(used) = users.of(digest, asking) {
        return Some(used);
    }
    let children = match parts(registry, image).await {
        Ok(found) => found.map_or_else(BTreeSet::new, |(_, children)| children),
        Err(unknown) => return Some(unknown),
    };
    if let Some(used) = children
        .into_iter()
        .find_map(|child| users.of(child, asking))
    {
        return Some(used);
    }
    for index in users.possible_indexes(&image.repository) {
        match parts(registry, &index).await {
            Ok(Some((of_index, children))) => {
                if of_index == digest || children.contains(&digest) {
                    return Some(Use::Index(index.to_string()));
                }
            }
            Ok(None) => {}
            Err(unknown) => return Some(unknown),
        }
    }
    None
}

/// The digest of what `image` names, and the manifests that it is made of, also those of indexes in it.
async fn parts(
    registry: &Registry,
    image: &Reference,
) -> Result<Option<(Digest, BTreeSet<Digest>)>, Use> {
    let stored = async |image: &Reference| {
        let found = registry.stored_manifest(image).await;
        found.map_err(|error| Use::Unknown(chain(&error)))
    };
    let Some(top) = stored(image).await? else {
        return Ok(None);
    };
    let digest = top.digest;
    let (mut found, mut indexes) = (BTreeSet::new(), 0);
    let mut left = vec![top];
    while let Some(manifest) = left.pop() {
        let unreadable = || Use::Unknown(format!("{image} is an unreadable index"));
        for child in manifest.children().ok_or_else(unreadable)? {
            if !found.insert(child.digest) || !child.is_index {
                continue;
            }
            indexes += 1;
            if indexes > MOST_INDEXES {
                let told = format!("{image} has more than {MOST_INDEXES} indexes in it");
                return Err(Use::Unknown(told));
            }
            left.extend(stored(&image.repository.digested(child.digest)).await?);
        }
    }
    Ok(Some((digest, found)))
}

/// The cluster's settings, if it has any.
///
/// # Errors
///
/// The apiserver's.
pub async fn read_controller_config(
    client: &Client,
) -> Result<Option<ControllerConfig>, kube::Error> {
    let api: Api<ControllerConfig> = Api::all(client.clone());
    match api.get(CONTROLLER_CONFIG_NAME).await {
        Ok(found) => Ok(Some(found)),
        // neither the object nor, on plain Kubernetes, its CRD
        Err(error) if code(&error) == Some(404) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The PEM bundles that the cluster trusts for all registries.
fn certificates(spec: &ControllerConfigSpec) -> Result<Vec<Vec<u8>>, RegistriesError> {
    [
        ("spec.additionalTrustBundle", &spec.additional_trust_bundle),
        ("spec.rootCAData", &spec.root_ca_data),
    ]
    .into_iter()
    .filter_map(|(field, text)| Some((field, text.as_deref().filter(|text| !text.is_empty())?)))
    .map(|(field, text)| {
        BASE64_STANDARD
            .decode(text)
            .map_err(|source| RegistriesError::Certificates { field, source })
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clusters_authorities_are_trusted_for_all_registries_and_a_broken_one_is_named() {
        let encoded = |text: &str| Some(BASE64_STANDARD.encode(text));
        let mut spec = ControllerConfigSpec {
            additional_trust_bundle: encoded("a"),
            root_ca_data: encoded("b"),
            ..ControllerConfigSpec::default()
        };
        assert_eq!(certificates(&spec).unwrap(), [b"a".to_vec(), b"b".to_vec()]);
        spec.root_ca_data = Some("%".to_owned());
        assert!(
            certificates(&spec)
                .unwrap_err()
                .to_string()
                .contains("spec.rootCAData")
        );
        spec.root_ca_data = Some(String::new());
        assert_eq!(certificates(&spec).unwrap(), [b"a".to_vec()]);
    }
}
