//! The verbs for blobs: pull whole or as a stream, look for, mount, upload.

use bytes::Bytes;
use futures::{Stream, StreamExt as _, stream};
use reqwest::StatusCode;
use reqwest::header::RANGE;

use super::exchange::{Scope, Subject, bounded_body, location};
use super::retry::{self, retry};
use super::{Registry, RegistryError, Upload};
use crate::digest::Digest;
use crate::reference::Repository;

impl Registry {
    /// A small blob whole: an image configuration.
    ///
    /// # Errors
    /// As [`Self::manifest`].
    pub async fn blob(
        &self,
        repository: &Repository,
        digest: Digest,
    ) -> Result<Bytes, RegistryError> {
        let target = format!("{repository}@{digest}");
        let subject = Subject {
            operation: "pull the blob",
            target: &target,
        };
        let scope = Scope::new(repository, "pull");
        let url = self.url(repository, &format!("blobs/{digest}"));
        retry(&self.bounds, || async {
            let response = self
                .exchange(subject, &scope, &|http| http.get(&url))
                .await?;
            let bytes = bounded_body(subject, response).await?;
            match Digest::of(&bytes) {
                got if got == digest => Ok(bytes),
                got => Err(RegistryError::WrongDigest {
                    target: target.clone(),
                    wanted: digest,
                    got,
                }),
            }
        })
        .await
    }

    /// A blob as it comes, without its first `offset` bytes; a broken connection goes on where it broke. The caller checks the digest of the whole.
    pub fn blob_stream(
        &self,
        repository: &Repository,
        digest: Digest,
        offset: u64,
    ) -> impl Stream<Item = Result<Bytes, RegistryError>> + Send + use<> {
        let state = (
            self.clone(),
            repository.clone(),
            digest,
            offset,
            None::<Body>,
            0u32,
        );
        stream::try_unfold(
            state,
            |(registry, repository, digest, mut offset, mut body, mut breaks)| async move {
                loop {
                    let mut open = match body.take() {
                        Some(body) => body,
                        None => registry.open_blob(&repository, digest, offset).await?,
                    };
                    let error = match open.next().await {
                        None => return Ok(None),
                        Some(Ok(bytes)) => {
                            offset += bytes.len() as u64;
                            return Ok(Some((
                                bytes,
                                (registry, repository, digest, offset, Some(open), breaks),
                            )));
                        }
                        Some(Err(error)) => error,
                    };
                    breaks += 1;
                    let target = format!("{repository}@{digest}");
                    let error = Subject {
                        operation: "pull the blob",
                        target: &target,
                    }
                    .transport(error);
                    if breaks >= registry.bounds.attempts {
                        return Err(error);
                    }
                    tracing::warn!(offset, error = %crate::error::chain(&error), "blob broke off, going on from its offset");
                    let delay = registry.bounds.delay(breaks, None, retry::jitter());
                    tokio::time::sleep(delay).await;
                }
            },
        )
    }

    async fn open_blob(
        &self,
        repository: &Repository,
        digest: Digest,
        offset: u64,
    ) -> Result<Body, RegistryError> {
        let target = format!("{repository}@{digest}");
        let subject = Subject {
            operation: "pull the blob",
            target: &target,
        };
        let scope = Scope::new(repository, "pull");
        let url = self.url(repository, &format!("blobs/{digest}"));
        let response = retry(&self.bounds, || async {
            let from = |http: &reqwest::Client| match offset {
                0 => http.get(&url),
                offset => http.get(&url).header(RANGE, format!("bytes={offset}-")),
            };
            self.exchange(subject, &scope, &from).await
        })
        .await?;
        // a registry that ignores Range starts over: drop what we have
        let skip = if response.status() == StatusCode::PARTIAL_CONTENT {
            0
        } else {
            offset
        };
        Ok(Box::pin(skipping(response.bytes_stream(), skip)))
    }

    /// Whether the repository has the blob.
    ///
    /// # Errors
    /// User: no right. Transient: the network.
    pub async fn has_blob(
        &self,
        repository: &Repository,
        digest: Digest,
    ) -> Result<bool, RegistryError> {
        let target = format!("{repository}@{digest}");
        let subject = Subject {
            operation: "look for the blob",
            target: &target,
        };
        // the scope of the pushes that follow, so that one token serves all
        let scope = Scope::new(repository, "pull,push");
        let url = self.url(repository, &format!("blobs/{digest}"));
        let head = retry(&self.bounds, || async {
            self.exchange(subject, &scope, &|http| http.head(&url))
                .await
        })
        .await;
        match head {
            Ok(_) => Ok(true),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Asks the registry to make a blob of `source` part of `target` without moving it; false if it won't.
    ///
    /// # Errors
    /// User: no right to push. Transient: the network.
    pub async fn mount_blob(
        &self,
        target: &Repository,
        source: &Repository,
        digest: Digest,
    ) -> Result<bool, RegistryError> {
        if target.host() != source.host() {
            return Ok(false);
        }
        let told = format!("{target}@{digest}");
        let subject = Subject {
            operation: "mount the blob",
            target: &told,
        };
        let scope = Scope::new(target, "pull,push").and(source, "pull");
        let url = self.url(target, "blobs/uploads/");
        let response = retry(&self.bounds, || async {
            let query = [
                ("mount", digest.to_string()),
                ("from", source.path().to_owned()),
            ];
            self.exchange(subject, &scope, &|http| {
                http.post(&url).query(&query).body(Bytes::new())
            })
            .await
        })
        .await?;
        if response.status() == StatusCode::CREATED {
            return Ok(true);
        }
        // 202 opened an upload instead; close it, and don't mind if the registry has no such function
        if let Some(location) = location(&response) {
            let _closed = self
                .exchange(subject, &scope, &|http| http.delete(location.clone()))
                .await;
        }
        Ok(false)
    }

    /// Opens an upload into the repository; bytes go out as they come, the digest is said at the end.
    #[must_use]
    pub fn upload(&self, repository: &Repository) -> Upload {
        Upload::new(self.clone(), repository.clone())
    }
}

type Body = std::pin::Pin<Box<dyn Stream<Item = Result<Bytes, reqwest::Error>> + Send>>;

/// The stream without its first `skip` bytes.
fn skipping(
    body: impl Stream<Item = Result<Bytes, reqwest::Error>> + Send,
    mut skip: u64,
) -> impl Stream<Item = Result<Bytes, reqwest::Error>> + Send {
    body.map(move |item| {
        item.map(|mut bytes| {
            let cut = usize::try_from(skip).unwrap_or(usize::MAX).min(bytes.len());
            skip -= cut as u64;
            bytes.split_off(cut)
        })
    })
    .filter(|item| std::future::ready(!matches!(item, Ok(bytes) if bytes.is_empty())))
}
