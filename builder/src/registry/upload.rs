//! A blob on its way into a repository, sent in pieces as it is made.
//!
//! Each piece is one PATCH. One that breaks is not sent again blindly: the registry is asked how far it came, and the rest follows. So at most one piece is held
//! in memory, and a finished layer is never lost to a bad minute.

use bytes::{Bytes, BytesMut};
use reqwest::StatusCode;
use reqwest::header::{CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, RANGE};
use url::Url;

use super::error::UPLOAD_OPERATION;
use super::exchange::{Scope, Subject, header, location};
use super::pace::SLOWEST_BYTES;
use super::retry::retry;
use super::{Registry, RegistryError};
use crate::digest::Digest;
use crate::error::{Class, Classify as _};
use crate::reference::Repository;

/// Large enough that round trips don't count, small enough to hold several uploads in memory.
const PIECE_BYTES: usize = 8 << 20;

const OCTETS: &str = "application/octet-stream";

/// An upload; dropped before its end, the registry forgets it.
#[derive(Debug)]
pub struct Upload {
    registry: Registry,
    repository: Repository,
    scope: Scope,
    target: String,
    session: Option<Session>,
    pending: BytesMut,
}

#[derive(Clone, Debug)]
struct Session {
    url: Url,
    /// What the registry has.
    offset: u64,
}

impl Upload {
    pub(super) fn new(registry: Registry, repository: Repository) -> Self {
        let scope = Scope::new(&repository, "pull,push");
        let target = repository.to_string();
        Self {
            registry,
            repository,
            scope,
            target,
            session: None,
            pending: BytesMut::new(),
        }
    }

    /// Takes the next bytes; sends a piece whenever one is full.
    ///
    /// # Errors
    /// User: no right. Transient: the network.
    ///
    /// # Cancel safety
    /// None: an upload whose write was cancelled must be dropped.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), RegistryError> {
        self.pending.extend_from_slice(bytes);
        while self.pending.len() >= PIECE_BYTES {
            let piece = self.pending.split_to(PIECE_BYTES).freeze();
            self.send(piece).await?;
        }
        Ok(())
    }

    /// Sends the rest and says what all of it is.
    ///
    /// # Errors
    /// As [`Self::write`]; Transient also if the registry found another digest.
    pub async fn finish(mut self, digest: Digest) -> Result<(), RegistryError> {
        let rest = self.pending.split().freeze();
        if self.session.is_some() && !rest.is_empty() {
            self.send(rest.clone()).await?;
        }
        let opened_for_rest = self.session.is_none();
        if opened_for_rest {
            self.session = Some(self.open().await?);
        }
        let Some(session) = self.session.clone() else {
            return Ok(());
        };
        let mut url = session.url;
        url.query_pairs_mut()
            .append_pair("digest", &digest.to_string());
        // a blob of one piece goes with the closing request
        let body = if opened_for_rest { rest } else { Bytes::new() };
        let subject = self.subject();
        retry(self.registry.trying(), || async {
            let request = |http: &reqwest::Client| {
                http.put(url.clone())
                    .header(CONTENT_TYPE, OCTETS)
                    .header(CONTENT_LENGTH, body.len())
            };
            let ended = self
                .registry
                .exchange_with(subject, &self.scope, &body, &request);
            match ended.await {
                Ok(_) => Ok(()),
                // a request that did its work but whose answer was lost has ended the session
                Err(error) if error.is_not_found() || error.class() == Class::Transient => {
                    let seen = self
                        .registry
                        .sees_blob(subject, &self.repository, digest)
                        .await;
                    if matches!(seen, Ok(true)) {
                        Ok(())
                    } else {
                        Err(error)
                    }
                }
                Err(error) => Err(error),
            }
        })
        .await
    }

    fn subject(&self) -> Subject<'_> {
        Subject {
            operation: UPLOAD_OPERATION,
            target: &self.target,
        }
    }

    async fn open(&self) -> Result<Session, RegistryError> {
        let subject = Subject {
            operation: "open an upload to",
            target: &self.target,
        };
        let start = self.registry.url(&self.repository, "blobs/uploads/");
        let response = retry(self.registry.trying(), || async {
            self.registry
                .exchange(subject, &self.scope, &|http| {
                    http.post(&start)
                        .header(CONTENT_LENGTH, 0)
                        .body(Bytes::new())
                })
                .await
        })
        .await?;
        let url = location(&response).ok_or_else(|| {
            subject.malformed("the registry opened an upload without saying where")
        })?;
        Ok(Session { url, offset: 0 })
    }

    /// Sends a piece; one that breaks is asked for before its rest follows.
    async fn send(&mut self, piece: Bytes) -> Result<(), RegistryError> {
        let mut session = match self.session.take() {
            Some(session) => session,
            None => self.open().await?,
        };
        let (start, end) = (session.offset, session.offset + piece.len() as u64);
        let mut trying = self.registry.trying();
        let mut is_sure = true;
        while session.offset < end {
            let rest = usize::try_from(session.offset - start).unwrap_or(usize::MAX);
            let tried = match is_sure {
                true => self.patch(&session, piece.slice(rest..)).await,
                false => self.ask(&session).await,
            };
            match tried {
                Ok(next) if !(start..=end).contains(&next.offset) => {
                    return Err(RegistryError::Miscounted {
                        target: self.target.clone(),
                        has_bytes: next.offset,
                        expected: format!("{start} to {end}"),
                    });
                }
                Ok(next) => {
                    if next.offset >= session.offset + SLOWEST_BYTES as u64 {
                        trying.progressed();
                    }
                    (session, is_sure) = (next, true);
                }
                Err(error) => {
                    trying.pause(error).await?;
                    is_sure = false;
                }
            }
        }
        self.session = Some(session);
        Ok(())
    }

    async fn patch(&self, session: &Session, rest: Bytes) -> Result<Session, RegistryError> {
        let subject = self.subject();
        let offset = session.offset + rest.len() as u64;
        let range = format!("{}-{}", session.offset, offset - 1);
        let request = |http: &reqwest::Client| {
            http.patch(session.url.clone())
                .header(CONTENT_TYPE, OCTETS)
                .header(CONTENT_RANGE, &range)
        };
        let response = self
            .registry
            .exchange_with(subject, &self.scope, &rest, &request)
            .await?;
        let url = location(&response).ok_or_else(|| {
            subject.malformed("the registry took a piece without saying where to go on")
        })?;
        Ok(Session { url, offset })
    }

    /// How far the registry came.
    async fn ask(&self, session: &Session) -> Result<Session, RegistryError> {
        let subject = Subject {
            operation: UPLOAD_OPERATION,
            target: &self.target,
        };
        let response = self
            .registry
            .exchange(subject, &self.scope, &|http| http.get(session.url.clone()))
            .await?;
        let url = location(&response).unwrap_or_else(|| session.url.clone());
        let received = header(&response, RANGE.as_str())
            .and_then(|range| range.rsplit_once('-')?.1.parse::<u64>().ok());
        let offset = match received {
            // `0-0` is what registries say of nothing at all, too
            Some(0) | None
                if response.status() == StatusCode::NO_CONTENT && session.offset == 0 =>
            {
                0
            }
            Some(last) => last + 1,
            None => session.offset,
        };
        Ok(Session { url, offset })
    }
}
