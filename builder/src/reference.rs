//! Which image is meant? References parsed once, never strings again.

use std::fmt;
use std::str::FromStr;

use crate::digest::Digest;
use crate::error::{Class, Classify};

/// A repository on a registry: `quay.io/org/os`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Repository {
    host: String,
    path: String,
    /// Where registries.conf has led here from another name: whether its entry for this place is insecure.
    led: Option<bool>,
}

/// A repository with a tag, a digest or both.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    /// Where.
    pub repository: Repository,
    /// `latest` if the text had neither tag nor digest.
    pub tag: Option<String>,
    /// Wins over the tag.
    pub digest: Option<Digest>,
}

/// Text that names no image.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no image reference: {why}")]
pub struct InvalidReference {
    /// As given.
    pub text: String,
    /// What is wrong.
    pub why: &'static str,
}

impl Classify for InvalidReference {
    fn class(&self) -> Class {
        Class::CONTENT
    }
}

impl Repository {
    /// Host and port as in the reference.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The path below the host.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The same place, as one to which registries.conf has led from another name: only what it says there tells whether TLS may be done without.
    pub(crate) fn led_to(self, is_insecure: bool) -> Self {
        Self {
            led: Some(is_insecure),
            ..self
        }
    }

    /// Whether TLS may be done without in a place that registries.conf has led to; none if the repository goes by its own name.
    pub(crate) fn led(&self) -> Option<bool> {
        self.led
    }

    /// The image with this tag.
    #[must_use]
    pub fn tagged(&self, tag: &str) -> Reference {
        Reference {
            repository: self.clone(),
            tag: Some(tag.to_owned()),
            digest: None,
        }
    }

    /// The image with this digest.
    #[must_use]
    pub fn digested(&self, digest: Digest) -> Reference {
        Reference {
            repository: self.clone(),
            tag: None,
            digest: Some(digest),
        }
    }
}

impl Reference {
    /// What stands for the manifest in a registry's URLs: the digest, else the tag.
    #[must_use]
    pub fn manifest_name(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => "latest".to_owned(),
        }
    }
}

impl FromStr for Reference {
    type Err = InvalidReference;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = |why| InvalidReference {
            text: text.chars().take(300).collect(),
            why,
        };
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (
                rest,
                Some(digest.parse().map_err(|_| {
                    invalid("behind @ stands no sha256:<64 lower-case hex digits>")
                })?),
            ),
            None => (text, None),
        };
        let (name, tag) = match rest.rsplit_once(':') {
            // a colon before a slash is the registry's port
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
            _ => (rest, None),
        };
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(invalid(
                "a tag has 1 to 128 letters, digits, '_', '.' or '-' and starts with none of the last two",
            ));
        }
        let (host, path) = match name.split_once('/') {
            Some(("docker.io" | "index.docker.io", path)) if !path.contains('/') => {
                ("docker.io", format!("library/{path}"))
            }
            Some(("index.docker.io", path)) => ("docker.io", path.to_owned()),
            Some((host, path)) if host.contains(['.', ':']) || host == "localhost" => {
                (host, path.to_owned())
            }
            Some(_) => ("docker.io", name.to_owned()),
            None => ("docker.io", format!("library/{name}")),
        };
        let bare_host = host.rsplit_once(':').map_or(host, |(bare, _)| bare);
        let is_host = |c: char| c.is_ascii_alphanumeric() || ".-[]:_".contains(c);
        if bare_host.is_empty() || !host.chars().all(is_host) {
            return Err(invalid("its registry is no host name"));
        }
        if !path.split('/').all(is_path_component) || path.len() > 255 {
            return Err(invalid(
                "a repository path has lower-case letters and digits, separated by '/', '.', '_', '__' or dashes",
            ));
        }
        let tag = match (tag, &digest) {
            (None, None) => Some("latest".to_owned()),
            (tag, _) => tag.map(str::to_owned),
        };
        Ok(Self {
            repository: Repository {
                host: host.to_owned(),
                path,
                led: None,
            },
            tag,
            digest,
        })
    }
}

pub(crate) fn is_tag(tag: &str) -> bool {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    (1..=128).contains(&tag.len())
        && tag.starts_with(word)
        && tag.chars().all(|c| word(c) || c == '.' || c == '-')
}

fn is_path_component(component: &str) -> bool {
    let alphanumeric = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    component.starts_with(alphanumeric)
        && component.ends_with(alphanumeric)
        && component
            .chars()
            .all(|c| alphanumeric(c) || "._-".contains(c))
        && !component.contains("..")
        && !component.contains("___")
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.host, self.path)
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_parse_to_host_path_tag_and_digest() {
        let digest = format!("sha256:{}", "a".repeat(64));
        for (text, host, path, name) in [
            ("quay.io/org/os:v1", "quay.io", "org/os", "v1"),
            ("quay.io/a/b/c", "quay.io", "a/b/c", "latest"),
            ("10.0.0.1:5000/x:y", "10.0.0.1:5000", "x", "y"),
            ("localhost/x", "localhost", "x", "latest"),
            ("busybox", "docker.io", "library/busybox", "latest"),
            ("org/os:1", "docker.io", "org/os", "1"),
            (&format!("quay.io/os:t@{digest}"), "quay.io", "os", &digest),
        ] {
            let reference: Reference = text.parse().unwrap();
            assert_eq!(
                (
                    reference.repository.host(),
                    reference.repository.path(),
                    reference.manifest_name().as_str()
                ),
                (host, path, name)
            );
        }
    }

    #[test]
    fn what_is_no_reference_is_refused_with_the_reason() {
        for text in [
            "",
            "quay.io/Org/os",
            "quay.io/os:",
            "quay.io/os:-x",
            "quay.io//os",
            "quay.io/os@sha256:abc",
            "ba d.io/x",
            ":5000/x",
            "quay.io/a..b",
        ] {
            assert!(text.parse::<Reference>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_reference_prints_as_it_was_written_in_full() {
        for text in [
            "quay.io/org/os:v1",
            "10.0.0.1:5000/x:y",
            &format!("quay.io/os@sha256:{}", "b".repeat(64)),
        ] {
            assert_eq!(text.parse::<Reference>().unwrap().to_string(), text);
        }
    }
}
