//! How does a file that ADD names by URL get here? Streamed to the disk, with its digest taken on the way.
//!
//! Nothing is asked of the server beyond the file itself: no credentials are sent, and a failure that may pass is tried again as a registry's is.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use reqwest::StatusCode;
use reqwest::header::LAST_MODIFIED;
use url::Url;

use crate::copy::Remote;
use crate::digest::{Digest, Hashing};
use crate::error::{Class, Classify, chain};
use crate::registry::retry::jitter;
use crate::registry::{Incoming, Registry, RegistryError, Subject};

/// What BuildKit calls a file whose URL names none.
const UNNAMED: &str = "__unnamed__";

/// As of a layer's content: far above any file for an operating system, far below a node's disk.
const LIMIT_BYTES: u64 = 64 << 30;

/// A file that didn't come. URLs are told without user, password and query.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// No URL.
    #[error("{text:?} is no URL")]
    Url {
        /// As written.
        text: String,
        /// Why not.
        source: url::ParseError,
    },
    /// The server's answer.
    #[error("fetch {url}: the server answered {status}")]
    Refused {
        /// What.
        url: String,
        /// HTTP.
        status: StatusCode,
    },
    /// No answer, or one that broke off.
    #[error(transparent)]
    Exchange(#[from] RegistryError),
    /// The disk.
    #[error("write {}", path.display())]
    Write {
        /// Where to.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// More than one file may have.
    #[error("{url} has more than {limit_bytes} bytes")]
    TooLarge {
        /// What.
        url: String,
        /// The limit.
        limit_bytes: u64,
    },
    /// `--checksum`
    #[error("{url} has the digest {got}, but --checksum says {wanted}")]
    Checksum {
        /// What.
        url: String,
        /// Of the file.
        got: Digest,
        /// In the Containerfile.
        wanted: Digest,
    },
}

impl Classify for FetchError {
    fn class(&self) -> Class {
        match self {
            Self::Url { .. } | Self::TooLarge { .. } | Self::Checksum { .. } => Class::CONTENT,
            Self::Refused { status, .. } => match status.as_u16() {
                408 | 425 | 429 | 500 | 502 | 503 | 504 => Class::Transient,
                _ => Class::CONTENT,
            },
            Self::Exchange(error) => error.class(),
            Self::Write { .. } => Class::Transient,
        }
    }
}

impl FetchError {
    /// As [`RegistryError::cause`].
    fn cause(&self) -> String {
        match self {
            Self::Refused { status, .. } => status.as_u16().to_string(),
            Self::Exchange(error) => error.cause(),
            Self::Write { .. } => "disk".to_owned(),
            Self::Url { .. } | Self::TooLarge { .. } | Self::Checksum { .. } => "file".to_owned(),
        }
    }
}

/// Fetches `url` to the new file `path`.
///
/// # Errors
/// User: no such file, one larger than 64 GiB, or another one than `checksum` says. Transient: the network, the disk.
pub async fn fetch(
    registry: &Registry,
    url: &str,
    path: &Path,
    checksum: Option<Digest>,
) -> Result<Remote, FetchError> {
    let parsed = Url::parse(url).map_err(|source| FetchError::Url {
        text: url.to_owned(),
        source,
    })?;
    let mut trying = registry.trying();
    let time = loop {
        let error = match fetch_once(registry, &parsed, path, checksum, LIMIT_BYTES).await {
            Ok(time) => break time,
            Err(error) => error,
        };
        let delay = match error.class() {
            Class::Transient => trying.failed(error.cause(), Instant::now(), None, jitter()),
            Class::User(_) | Class::Permanent(_) => None,
        };
        let Some(delay) = delay else {
            return Err(error);
        };
        tracing::warn!(error = %chain(&error), "fetching failed, trying again");
        tokio::time::sleep(delay).await;
    };
    Ok(Remote {
        path: path.to_owned(),
        name: file_name(&parsed),
        time,
    })
}

/// Returns the time that the server gives the file, in seconds since 1970; 0 if it gives none.
async fn fetch_once(
    registry: &Registry,
    url: &Url,
    path: &Path,
    checksum: Option<Digest>,
    limit_bytes: u64,
) -> Result<i64, FetchError> {
    let told = told(url);
    let subject = Subject {
        operation: "fetch",
        target: &told,
    };
    let write = |source| FetchError::Write {
        path: path.to_owned(),
        source,
    };
    let response = registry.file(subject, url.clone()).await?;
    let status = response.status();
    if !status.is_success() {
        return Err(FetchError::Refused {
            url: told.clone(),
            status,
        });
    }
    let modified = response.headers().get(LAST_MODIFIED);
    let time = modified
        .and_then(|date| jiff::fmt::rfc2822::parse(date.to_str().ok()?).ok())
        .map_or(0, |date| date.timestamp().as_second());
    let too_large = || FetchError::TooLarge {
        url: told.clone(),
        limit_bytes,
    };
    if response
        .content_length()
        .is_some_and(|length| length > limit_bytes)
    {
        return Err(too_large());
    }
    let mut left_bytes = limit_bytes;
    let mut file = Hashing::new(std::fs::File::create(path).map_err(write)?);
    let mut body = Incoming::of(response, registry.idle_timeout());
    while let Some(part) = body.next(subject).await? {
        left_bytes = left_bytes
            .checked_sub(part.len() as u64)
            .ok_or_else(too_large)?;
        file.write_all(&part).map_err(write)?;
    }
    let (_, got, _) = file.finish();
    match checksum {
        Some(wanted) if wanted != got => Err(FetchError::Checksum {
            url: told.clone(),
            got,
            wanted,
        }),
        Some(_) | None => Ok(time),
    }
}

fn told(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    let port = url.port().map(|port| format!(":{port}"));
    format!(
        "{}://{host}{}{}",
        url.scheme(),
        port.unwrap_or_default(),
        url.path()
    )
}

/// The last part of the decoded path that isn't empty.
fn file_name(url: &Url) -> String {
    let path = percent_decoded(url.path());
    match path.trim_end_matches('/').rsplit('/').next() {
        None | Some("" | "." | "..") => UNNAMED.to_owned(),
        Some(name) if name.contains('\0') => UNNAMED.to_owned(),
        Some(name) => name.to_owned(),
    }
}

fn percent_decoded(text: &str) -> String {
    // A form's rules but for the plus sign, which is an ordinary one in a path.
    let escaped = format!("x={}", text.replace('+', "%2B").replace('&', "%26"));
    url::form_urlencoded::parse(escaped.as_bytes())
        .next()
        .map(|(_, value)| value.into_owned())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_gives_the_name_and_is_told_without_secrets() {
        for (url, name, shown) in [
            (
                "https://ann:pw@example.com:8443/a/b%20c+d.tar?token=x#y",
                "b c+d.tar",
                "https://example.com:8443/a/b%20c+d.tar",
            ),
            ("https://example.com/", UNNAMED, "https://example.com/"),
            (
                "http://example.com/a/..%2Fb",
                "b",
                "http://example.com/a/..%2Fb",
            ),
            ("http://example.com/a/b//", "b", "http://example.com/a/b//"),
        ] {
            let url = Url::parse(url).unwrap();
            assert_eq!(
                (file_name(&url).as_str(), told(&url).as_str()),
                (name, shown)
            );
        }
    }

    /// A server that gives each request this answer.
    fn server(answer: &'static str) -> Url {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/file", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            use std::io::{BufRead as _, BufReader};
            for client in listener.incoming() {
                let client = client.unwrap();
                let lines = BufReader::new(&client).lines();
                // a client that has gone away is the next one's business
                let _head = lines
                    .take_while(|line| line.as_ref().is_ok_and(|l| !l.is_empty()))
                    .count();
                let _sent = (&client).write_all(answer.as_bytes());
            }
        });
        Url::parse(&url).unwrap()
    }

    #[tokio::test]
    async fn a_file_larger_than_its_limit_is_refused_whether_its_size_is_told_before_or_not() {
        let registry = Registry::new(crate::registry::Options::default()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        for (answer, limit_bytes, is_refused) in [
            (
                "HTTP/1.1 200 OK\r\ncontent-length: 68719476737\r\n\r\nx",
                LIMIT_BYTES,
                true,
            ),
            ("HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n12345", 4, true),
            (
                "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n12345",
                5,
                false,
            ),
            (
                "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n12345",
                5,
                false,
            ),
        ] {
            let url = server(answer);
            let fetched = fetch_once(&registry, &url, &path, None, limit_bytes).await;
            match fetched {
                Ok(_) if !is_refused => assert_eq!(std::fs::read(&path).unwrap(), b"12345"),
                Err(FetchError::TooLarge { .. }) if is_refused => {}
                other => panic!("{answer:?}: {other:?}"),
            }
        }
    }
}
