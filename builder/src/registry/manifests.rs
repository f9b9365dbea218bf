//! The verbs for manifests: pull, look for, push, delete; and which manifest of an index is ours.

use bytes::Bytes;
use oci_client::manifest::{
    IMAGE_DOCKER_CONFIG_MEDIA_TYPE, IMAGE_MANIFEST_LIST_MEDIA_TYPE, IMAGE_MANIFEST_MEDIA_TYPE,
    OCI_IMAGE_INDEX_MEDIA_TYPE, OCI_IMAGE_MEDIA_TYPE,
};
use reqwest::header::{ACCEPT, CONTENT_TYPE};
use reqwest::{Method, RequestBuilder};
use serde::Deserialize;

use super::exchange::{Scope, Subject, header};
use super::retry::retry;
use super::{Registry, RegistryError};
use crate::digest::Digest;
use crate::reference::{Reference, Repository};

/// Of the manifest that is named, on every answer about one.
const DIGEST: &str = "docker-content-digest";

/// A manifest as the registry has it.
#[derive(Clone, Debug)]
pub struct Manifest {
    /// Of `bytes`, checked.
    pub digest: Digest,
    /// As the registry names it.
    pub media_type: String,
    /// Exactly as served.
    pub bytes: Bytes,
}

impl Registry {
    /// As [`Self::manifest`], from the first place that has it of those that registries.conf names; and that place.
    ///
    /// # Errors
    /// As [`Self::manifest`], of the last place; a blocked registry and what policy.json doesn't allow are the user's.
    pub async fn manifest_from_any(
        &self,
        reference: &Reference,
        architecture: &str,
    ) -> Result<(Reference, Manifest), RegistryError> {
        self.check_blocked(reference)?;
        let allowed = self.inner.policy.check(reference);
        allowed.map_err(|source| RegistryError::Policy {
            target: reference.to_string(),
            source,
        })?;
        let mut places = self.rules().places(reference)?;
        let own = places.pop().unwrap_or_else(|| reference.clone());
        for mirror in places {
            match self
                .with_bounds(self.bounds.of_a_mirror())
                .manifest(&mirror, architecture)
                .await
            {
                Ok(found) => return Ok((mirror, found)),
                Err(error) => {
                    tracing::warn!(%mirror, error = %crate::error::chain(&error), "the mirror doesn't give the image");
                }
            }
        }
        let found = self.manifest(&own, architecture).await?;
        Ok((own, found))
    }

    /// An error if registries.conf blocks the registry of `reference`.
    ///
    /// # Errors
    /// User, in that case.
    pub fn check_blocked(&self, reference: &Reference) -> Result<(), RegistryError> {
        match self.rules().is_blocked(reference) {
            true => Err(RegistryError::Blocked {
                target: reference.to_string(),
            }),
            false => Ok(()),
        }
    }

    /// The manifest that `reference` names; of an index the one for linux on `architecture` (GOARCH).
    ///
    /// # Errors
    /// User: no such image, no right, no such platform. Transient: the network.
    pub async fn manifest(
        &self,
        reference: &Reference,
        architecture: &str,
    ) -> Result<Manifest, RegistryError> {
        let found = self.raw_manifest(reference).await?;
        let chosen = choose_platform(
            &reference.to_string(),
            &found.media_type,
            &found.bytes,
            architecture,
        )?;
        match chosen {
            Some(digest) => {
                self.raw_manifest(&reference.repository.digested(digest))
                    .await
            }
            None => Ok(found),
        }
    }

    pub(super) async fn raw_manifest(
        &self,
        reference: &Reference,
    ) -> Result<Manifest, RegistryError> {
        let target = reference.to_string();
        let subject = Subject {
            operation: "pull the manifest of",
            target: &target,
        };
        let scope = Scope::new(&reference.repository, "pull");
        let url = self.url(
            &reference.repository,
            &format!("manifests/{}", reference.manifest_name()),
        );
        retry(self.trying(), || async {
            let response = self
                .exchange(subject, &scope, &|http| {
                    manifest_request(http, Method::GET, &url)
                })
                .await?;
            let media_type = header(&response, CONTENT_TYPE.as_str()).unwrap_or_default();
            // what a tag stands for only the registry knows
            let told = header(&response, DIGEST).and_then(|digest| digest.parse().ok());
            let bytes = self.body(subject, response).await?;
            let digest = Digest::of(&bytes);
            match reference.digest.or(told) {
                Some(wanted) if wanted != digest => Err(RegistryError::WrongDigest {
                    target: target.clone(),
                    wanted,
                    got: digest,
                }),
                _ => Ok(Manifest {
                    digest,
                    media_type: manifest_media_type(media_type, &bytes),
                    bytes,
                }),
            }
        })
        .await
    }

    /// The digest that `reference` resolves to; `None` if the registry has no such manifest.
    ///
    /// # Errors
    /// User: no right. Transient: the network.
    pub async fn head_manifest(
        &self,
        reference: &Reference,
    ) -> Result<Option<Digest>, RegistryError> {
        let target = reference.to_string();
        let subject = Subject {
            operation: "look for",
            target: &target,
        };
        let scope = Scope::new(&reference.repository, "pull");
        let url = self.url(
            &reference.repository,
            &format!("manifests/{}", reference.manifest_name()),
        );
        let head = retry(self.trying(), || async {
            self.exchange(subject, &scope, &|http| {
                manifest_request(http, Method::HEAD, &url)
            })
            .await
        });
        match head.await {
            Ok(response) => match header(&response, DIGEST)
                .and_then(|d| d.parse().ok())
                .or(reference.digest)
            {
                Some(digest) => Ok(Some(digest)),
                // some registries leave the header out of a HEAD
                None => self
                    .raw_manifest(reference)
                    .await
                    .map(|manifest| Some(manifest.digest)),
            },
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Pushes a manifest under the tag or digest of `reference`; its digest as the registry confirms it.
    ///
    /// # Errors
    /// User: no right. Transient: the network.
    pub async fn push_manifest(
        &self,
        reference: &Reference,
        media_type: &str,
        bytes: &Bytes,
    ) -> Result<Digest, RegistryError> {
        let target = reference.to_string();
        let subject = Subject {
            operation: "push the manifest to",
            target: &target,
        };
        let scope = Scope::new(&reference.repository, "pull,push");
        let url = self.url(
            &reference.repository,
            &format!("manifests/{}", reference.manifest_name()),
        );
        let wanted = Digest::of(bytes);
        retry(self.trying(), || async {
            let response = self
                .exchange_with(subject, &scope, bytes, &|http| {
                    http.put(&url).header(CONTENT_TYPE, media_type)
                })
                .await?;
            let got = header(&response, DIGEST);
            match got.and_then(|digest| digest.parse::<Digest>().ok()) {
                Some(got) if got != wanted => Err(RegistryError::WrongDigest {
                    target: target.clone(),
                    wanted,
                    got,
                }),
                Some(_) | None => Ok(wanted),
            }
        })
        .await
    }

    /// Deletes a manifest by digest; one that isn't there is fine.
    ///
    /// # Errors
    /// User: no right, or a registry that doesn't delete. Transient: the network.
    pub async fn delete_manifest(
        &self,
        repository: &Repository,
        digest: Digest,
    ) -> Result<(), RegistryError> {
        let target = format!("{repository}@{digest}");
        let subject = Subject {
            operation: "delete the manifest",
            target: &target,
        };
        // token servers differ in the word for it; those that know neither ignore it
        let scope = Scope::new(repository, "pull,push,delete");
        let url = self.url(repository, &format!("manifests/{digest}"));
        match retry(self.trying(), || async {
            self.exchange(subject, &scope, &|http| http.delete(&url))
                .await
        })
        .await
        {
            Ok(_) => Ok(()),
            // ECR says so of every manifest
            Err(error) if error.is_not_found() => {
                match self.head_manifest(&repository.digested(digest)).await? {
                    None => Ok(()),
                    Some(_) => Err(subject.malformed(
                        "the registry says that it has no such manifest, and serves it all the same",
                    )),
                }
            }
            Err(error) => Err(error),
        }
    }
}

impl Registry {
    /// Deletes a tag and nothing else; false from a registry that can't, as it deletes tags with their manifest. One that isn't there is fine.
    ///
    /// # Errors
    /// User: no right. Transient: the network.
    pub async fn delete_tag(
        &self,
        repository: &Repository,
        tag: &str,
    ) -> Result<bool, RegistryError> {
        let target = format!("{repository}:{tag}");
        let subject = Subject {
            operation: "delete the tag",
            target: &target,
        };
        let scope = Scope::new(repository, "pull,push,delete");
        let url = self.url(repository, &format!("manifests/{tag}"));
        match retry(self.trying(), || async {
            self.exchange(subject, &scope, &|http| http.delete(&url))
                .await
        })
        .await
        {
            Ok(_) => Ok(true),
            Err(error) if error.is_not_found() => Ok(true),
            // docker-registry 2.8 takes the tag for a digest
            Err(RegistryError::Refused {
                status: 400 | 405, ..
            }) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

fn manifest_request(http: &reqwest::Client, method: Method, url: &str) -> RequestBuilder {
    let kinds = [
        OCI_IMAGE_MEDIA_TYPE,
        OCI_IMAGE_INDEX_MEDIA_TYPE,
        IMAGE_MANIFEST_MEDIA_TYPE,
        IMAGE_MANIFEST_LIST_MEDIA_TYPE,
    ];
    http.request(method, url).header(ACCEPT, kinds.join(", "))
}

/// The manifest for linux on `architecture` that an index (or manifest list) names; `None` if the document is no index.
pub(crate) fn choose_platform(
    target: &str,
    media_type: &str,
    bytes: &[u8],
    architecture: &str,
) -> Result<Option<Digest>, RegistryError> {
    if ![OCI_IMAGE_INDEX_MEDIA_TYPE, IMAGE_MANIFEST_LIST_MEDIA_TYPE].contains(&media_type) {
        return Ok(None);
    }
    let subject = Subject {
        operation: "read the index",
        target,
    };
    let index: oci_client::manifest::OciImageIndex =
        serde_json::from_slice(bytes).map_err(|e| subject.malformed(e.to_string()))?;
    let ours = index.manifests.iter().find(|entry| {
        entry.platform.as_ref().is_some_and(|p| {
            p.os.to_string() == "linux" && p.architecture.to_string() == architecture
        })
    });
    let ours = ours.ok_or_else(|| RegistryError::NoPlatform {
        target: target.to_owned(),
        architecture: architecture.to_owned(),
    })?;
    let digest = ours
        .digest
        .parse()
        .map_err(|e: crate::digest::InvalidDigest| subject.malformed(e.to_string()))?;
    Ok(Some(digest))
}

/// The manifest's own word for its kind, where the registry's header is missing or vague.
pub(crate) fn manifest_media_type(header: String, bytes: &[u8]) -> String {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Kind {
        media_type: Option<String>,
        manifests: Option<serde::de::IgnoredAny>,
        config: Option<ConfigKind>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct ConfigKind {
        media_type: Option<String>,
    }
    let Ok(kind) = serde_json::from_slice::<Kind>(bytes) else {
        return header;
    };
    let docker = kind
        .config
        .is_some_and(|c| c.media_type.as_deref() == Some(IMAGE_DOCKER_CONFIG_MEDIA_TYPE));
    match (kind.media_type, kind.manifests) {
        (Some(own), _) => own,
        (None, Some(_)) => OCI_IMAGE_INDEX_MEDIA_TYPE.to_owned(),
        (None, None) if docker => IMAGE_MANIFEST_MEDIA_TYPE.to_owned(),
        (None, None) => OCI_IMAGE_MEDIA_TYPE.to_owned(),
    }
}
