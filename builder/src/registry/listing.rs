//! What does a repository hold? Its tags, and the manifests that belong to an index. Nothing lists manifests without a tag.

use oci_client::manifest::{IMAGE_MANIFEST_LIST_MEDIA_TYPE, OCI_IMAGE_INDEX_MEDIA_TYPE};
use reqwest::header::LINK;
use serde::Deserialize;

use super::exchange::{Scope, Subject};
use super::referrers::next_page;
use super::retry::retry;
use super::{Manifest, Registry, RegistryError};
use crate::digest::Digest;
use crate::reference::{Reference, Repository};

/// Registries give a hundred or a thousand tags at once.
const MOST_PAGES: usize = 1000;

impl Registry {
    /// All tags of the repository, in the registry's order; none if there is no such repository.
    ///
    /// # Errors
    /// User: no right. Transient: the network. Permanent: an answer that is no list of tags.
    pub async fn tags(&self, repository: &Repository) -> Result<Vec<String>, RegistryError> {
        #[derive(Deserialize)]
        struct Page {
            // null from registries whose repository has none left
            tags: Option<Vec<String>>,
        }
        let target = repository.to_string();
        let subject = Subject {
            operation: "list the tags of",
            target: &target,
        };
        let scope = Scope::new(repository, "pull");
        let mut tags = Vec::new();
        let mut next = self.url(repository, "tags/list");
        for _ in 0..MOST_PAGES {
            let page = retry(self.trying(), || async {
                let request = |http: &reqwest::Client| http.get(&next);
                let response = self.exchange(subject, &scope, &request).await?;
                let link = response.headers().get(LINK).and_then(|l| l.to_str().ok());
                let link = link
                    .and_then(next_page)
                    .and_then(|link| response.url().join(link).ok());
                Ok((link, self.body(subject, response).await?))
            });
            let (link, bytes) = match page.await {
                Ok(page) => page,
                Err(error) if error.is_not_found() && tags.is_empty() => return Ok(tags),
                Err(error) => return Err(error),
            };
            let page: Page = serde_json::from_slice(&bytes)
                .map_err(|error| subject.malformed(error.to_string()))?;
            tags.extend(page.tags.unwrap_or_default());
            match link {
                Some(link) => next = link.into(),
                None => return Ok(tags),
            }
        }
        Err(subject.malformed(format!("the answer has more than {MOST_PAGES} pages")))
    }

    /// The manifest that `reference` names, an index too; `None` if the registry has no such manifest.
    ///
    /// # Errors
    /// User: no right. Transient: the network.
    pub async fn stored_manifest(
        &self,
        reference: &Reference,
    ) -> Result<Option<Manifest>, RegistryError> {
        match self.raw_manifest(reference).await {
            Ok(found) => Ok(Some(found)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// A manifest that an index names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Child {
    /// Of the manifest.
    pub digest: Digest,
    /// Whether it is an index itself.
    pub is_index: bool,
}

impl Manifest {
    /// The manifests that an index (or manifest list) is made of, in its order; no manifests of anything else, `None` if it is an index of
    /// another form.
    #[must_use]
    pub fn children(&self) -> Option<Vec<Child>> {
        #[derive(Deserialize)]
        struct Index {
            manifests: Vec<Descriptor>,
        }
        #[derive(Deserialize)]
        struct Descriptor {
            #[serde(rename = "mediaType", default)]
            media_type: String,
            digest: Digest,
        }
        if !is_index(&self.media_type) {
            return Some(Vec::new());
        }
        let index: Index = serde_json::from_slice(&self.bytes).ok()?;
        let children = index.manifests.into_iter().map(|one| Child {
            digest: one.digest,
            is_index: is_index(&one.media_type),
        });
        Some(children.collect())
    }
}

fn is_index(media_type: &str) -> bool {
    [OCI_IMAGE_INDEX_MEDIA_TYPE, IMAGE_MANIFEST_LIST_MEDIA_TYPE].contains(&media_type)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_index_has_children() {
        let (child, inner) = (Digest::of(b"child"), Digest::of(b"inner"));
        let document = format!(
            r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"m","digest":"{child}","size":5}},{{"mediaType":"{OCI_IMAGE_INDEX_MEDIA_TYPE}","digest":"{inner}"}}]}}"#
        );
        let both = vec![
            Child {
                digest: child,
                is_index: false,
            },
            Child {
                digest: inner,
                is_index: true,
            },
        ];
        let manifest = |media_type: &str, text: &str| Manifest {
            digest: Digest::of(text.as_bytes()),
            media_type: media_type.to_owned(),
            bytes: text.to_owned().into(),
        };
        for (media_type, text, children) in [
            (
                OCI_IMAGE_INDEX_MEDIA_TYPE,
                document.as_str(),
                Some(both.clone()),
            ),
            (
                IMAGE_MANIFEST_LIST_MEDIA_TYPE,
                document.as_str(),
                Some(both.clone()),
            ),
            (
                "application/vnd.oci.image.manifest.v1+json",
                document.as_str(),
                Some(vec![]),
            ),
            (OCI_IMAGE_INDEX_MEDIA_TYPE, "{}", None),
        ] {
            assert_eq!(manifest(media_type, text).children(), children);
        }
    }
}
