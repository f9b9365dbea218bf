//! What refers to an image: signatures, attestations? The registry says so itself, or else a tag that stands for its digest.

use reqwest::header::{ACCEPT, LINK};
use serde::Deserialize;

use oci_client::manifest::OCI_IMAGE_INDEX_MEDIA_TYPE;

use super::exchange::{Scope, Subject};
use super::retry::retry;
use super::{Registry, RegistryError};
use crate::digest::Digest;
use crate::image::Descriptor;
use crate::reference::Repository;

/// Registries give a hundred or more at once; nobody has so many that this is reached.
const MOST_PAGES: usize = 32;

#[derive(Deserialize)]
struct Index {
    #[serde(default)]
    manifests: Vec<Descriptor>,
}

impl Registry {
    /// The manifests of the repository that name `digest` as their subject, in the registry's order; `artifactType` and annotations are in [`Descriptor::other`].
    ///
    /// # Errors
    /// User: no right. Transient: the network. Permanent: an answer that is no index.
    pub async fn referrers(
        &self,
        repository: &Repository,
        digest: Digest,
    ) -> Result<Vec<Descriptor>, RegistryError> {
        let target = format!("{repository}@{digest}");
        let subject = Subject {
            operation: "look for what refers to",
            target: &target,
        };
        let scope = Scope::new(repository, "pull");
        let mut found = Vec::new();
        let mut next = self.url(repository, &format!("referrers/{digest}"));
        for _ in 0..MOST_PAGES {
            let page = retry(self.trying(), || async {
                let request = |http: &reqwest::Client| {
                    http.get(&next).header(ACCEPT, OCI_IMAGE_INDEX_MEDIA_TYPE)
                };
                let response = self.exchange(subject, &scope, &request).await?;
                let link = response.headers().get(LINK).and_then(|l| l.to_str().ok());
                let link = link
                    .and_then(next_page)
                    .and_then(|link| response.url().join(link).ok());
                Ok((link, self.body(subject, response).await?))
            });
            let (link, bytes) = match page.await {
                Ok(page) => page,
                Err(error) if error.is_not_found() && found.is_empty() => {
                    return self.referrers_by_tag(repository, digest).await;
                }
                Err(error) => return Err(error),
            };
            found.extend(index(subject, &bytes)?);
            match link {
                Some(link) => next = link.into(),
                None => return Ok(found),
            }
        }
        Err(subject.malformed(format!("the answer has more than {MOST_PAGES} pages")))
    }

    /// Of a registry without that function: clients keep an index under a tag that is named for the digest.
    async fn referrers_by_tag(
        &self,
        repository: &Repository,
        digest: Digest,
    ) -> Result<Vec<Descriptor>, RegistryError> {
        let reference = repository.tagged(&format!("sha256-{}", digest.hex()));
        let target = reference.to_string();
        let subject = Subject {
            operation: "look for what refers to the image in",
            target: &target,
        };
        match self.raw_manifest(&reference).await {
            Ok(found) if found.media_type == OCI_IMAGE_INDEX_MEDIA_TYPE => {
                index(subject, &found.bytes)
            }
            // somebody's tag for something else
            Ok(_) => Ok(Vec::new()),
            Err(error) if error.is_not_found() => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }
}

fn index(subject: Subject<'_>, bytes: &[u8]) -> Result<Vec<Descriptor>, RegistryError> {
    let index: Index =
        serde_json::from_slice(bytes).map_err(|error| subject.malformed(error.to_string()))?;
    Ok(index.manifests)
}

/// The place in a Link header like `</v2/a/referrers/b?last=c>; rel="next"`.
pub(super) fn next_page(link: &str) -> Option<&str> {
    let (place, relation) = link.trim().strip_prefix('<')?.split_once('>')?;
    relation.contains("next").then_some(place)
}
