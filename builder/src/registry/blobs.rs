//! The verbs for blobs: pull whole or as a stream, look for, mount, upload.

use bytes::Bytes;
use futures::{Stream, stream};
use reqwest::StatusCode;
use reqwest::header::RANGE;

use super::exchange::{Scope, Subject, location};
use super::pace::{Incoming, SLOWEST_BYTES};
use super::retry::{Trying, retry};
use super::{Registry, RegistryError, Upload};
use crate::digest::Digest;
use crate::error::chain;
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
        retry(self.trying(), || async {
            let response = self
                .exchange(subject, &scope, &|http| http.get(&url))
                .await?;
            let bytes = self.body(subject, response).await?;
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
        let download = Download {
            registry: self.clone(),
            repository: repository.clone(),
            digest,
            offset,
            open: None,
            trying: self.trying(),
            unbroken_bytes: 0,
        };
        stream::try_unfold(download, |mut download| async move {
            let next = download.next().await?;
            Ok(next.map(|bytes| (bytes, download)))
        })
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
        retry(self.trying(), || {
            self.sees_blob(subject, repository, digest)
        })
        .await
    }

    /// One look.
    pub(super) async fn sees_blob(
        &self,
        subject: Subject<'_>,
        repository: &Repository,
        digest: Digest,
    ) -> Result<bool, RegistryError> {
        // the scope of the pushes that follow, so that one token serves all
        let scope = Scope::new(repository, "pull,push");
        let url = self.url(repository, &format!("blobs/{digest}"));
        let head = |http: &reqwest::Client| http.head(&url);
        match self.exchange(subject, &scope, &head).await {
            Ok(_) => Ok(true),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Asks the registry to make a blob of `source` part of `target` without moving it; false if it won't. Who may push need not be allowed to pull what is mounted:
    /// a refusal, of the registry or of its token server, says only that the bytes have to be sent.
    ///
    /// # Errors
    /// Transient: the network.
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
        let asked = retry(self.trying(), || async {
            let query = [
                ("mount", digest.to_string()),
                ("from", source.path().to_owned()),
            ];
            self.exchange(subject, &scope, &|http| {
                http.post(&url).query(&query).body(Bytes::new())
            })
            .await
        });
        let response = match asked.await {
            Ok(response) => response,
            Err(error) if error.is_refusal() => {
                self.tell_refused_mount(target, source, &error);
                return Ok(false);
            }
            Err(error) => return Err(error),
        };
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

    /// Once for all blobs of a base, which mostly are refused together.
    fn tell_refused_mount(&self, target: &Repository, source: &Repository, error: &RegistryError) {
        let pair = (target.clone(), source.clone());
        let told = self.inner.refused_mounts.lock();
        let is_first = told
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .insert(pair);
        let error = chain(error);
        if is_first {
            tracing::warn!(%source, %error, "the registry doesn't mount layers of the base, so they are copied");
        } else {
            tracing::debug!(%source, %error, "another layer that is not mounted");
        }
    }

    /// Opens an upload into the repository; bytes go out as they come, the digest is said at the end.
    #[must_use]
    pub fn upload(&self, repository: &Repository) -> Upload {
        Upload::new(self.clone(), repository.clone())
    }
}

/// A blob on its way to us.
struct Download {
    registry: Registry,
    repository: Repository,
    digest: Digest,
    /// What has come, or was there before.
    offset: u64,
    open: Option<Open>,
    trying: Trying,
    /// Since it last broke off.
    unbroken_bytes: usize,
}

/// One answer.
struct Open {
    body: Incoming,
    /// What comes though we have it.
    skip: u64,
}

impl Download {
    /// The next bytes; a connection that breaks off is no end.
    async fn next(&mut self) -> Result<Option<Bytes>, RegistryError> {
        let target = format!("{}@{}", self.repository, self.digest);
        let subject = Subject {
            operation: "pull the blob",
            target: &target,
        };
        loop {
            match self.once(subject).await {
                Ok(Some(bytes)) => {
                    self.offset += bytes.len() as u64;
                    self.unbroken_bytes += bytes.len();
                    if self.unbroken_bytes >= SLOWEST_BYTES {
                        self.trying.progressed();
                    }
                    return Ok(Some(bytes));
                }
                Ok(None) => return Ok(None),
                Err(error) => {
                    self.open = None;
                    self.unbroken_bytes = 0;
                    self.trying.pause(error).await?;
                }
            }
        }
    }

    async fn once(&mut self, subject: Subject<'_>) -> Result<Option<Bytes>, RegistryError> {
        let mut open = match self.open.take() {
            Some(open) => open,
            None => match self.open(subject).await? {
                Some(open) => open,
                None => return Ok(None),
            },
        };
        while let Some(mut bytes) = open.body.next(subject).await? {
            let cut = usize::try_from(open.skip).map_or(bytes.len(), |skip| skip.min(bytes.len()));
            open.skip -= cut as u64;
            let bytes = bytes.split_off(cut);
            if !bytes.is_empty() {
                self.open = Some(open);
                return Ok(Some(bytes));
            }
        }
        Ok(None)
    }

    /// Asks for what is missing; none if that is nothing.
    async fn open(&mut self, subject: Subject<'_>) -> Result<Option<Open>, RegistryError> {
        let registry = &self.registry;
        let scope = Scope::new(&self.repository, "pull");
        let url = registry.url(&self.repository, &format!("blobs/{}", self.digest));
        let offset = self.offset;
        let from = |http: &reqwest::Client| match offset {
            0 => http.get(&url),
            offset => http.get(&url).header(RANGE, format!("bytes={offset}-")),
        };
        let response = match registry.exchange(subject, &scope, &from).await {
            Ok(response) => response,
            // It broke off behind its last byte.
            Err(RegistryError::Refused { status: 416, .. }) if self.offset > 0 => return Ok(None),
            Err(error) => return Err(error),
        };
        // a registry that ignores Range starts over: drop what we have
        let skip = match response.status() {
            StatusCode::PARTIAL_CONTENT => 0,
            _ => self.offset,
        };
        let body = Incoming::of(response, registry.idle_timeout());
        Ok(Some(Open { body, skip }))
    }
}
