//! May an image be used? The rules of policy.json (see containers-policy.json(5)) for images from registries; pure.
//!
//! The requirements of the most exact scope count, and all of them must hold. Signatures can't be checked: an image of which one is required isn't used.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::error::{Class, Classify};
use crate::reference::Reference;

/// What policy.json says of images from registries; without a file everything is allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    default: Vec<Requirement>,
    /// Of the transport `docker`, by scope; "" is for all of it.
    scopes: BTreeMap<String, Vec<Requirement>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Requirement {
    Anything,
    Nothing,
    /// A signature, by the name of its kind.
    Signature(&'static str),
}

/// Why an image isn't used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// Nothing from there is.
    #[error("policy.json rejects it by the rule for {0}")]
    Rejected(String),
    /// It would need a proof that we can't check.
    #[error(
        "policy.json requires a signature of it ({kind}) by the rule for {scope}, and signatures can't be checked here: allow this repository by a rule of its own with insecureAcceptAnything, or take the image from another place"
    )]
    Unchecked {
        /// The rule's type.
        kind: &'static str,
        /// Where the rule stands.
        scope: String,
    },
}

/// A file that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// No JSON, or not of this shape.
    #[error("it can't be read as a policy.json")]
    Json(#[from] serde_json::Error),
    /// A rule that nothing can satisfy.
    #[error(
        "the rule for {0} has no requirements; write at least one, such as {{\"type\": \"reject\"}}"
    )]
    Empty(String),
}

impl Classify for PolicyError {
    fn class(&self) -> Class {
        Class::CONTRACT
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    default: Vec<RequirementEntry>,
    #[serde(default)]
    transports: BTreeMap<String, BTreeMap<String, Vec<RequirementEntry>>>,
}

/// Only what we can check is read in full.
#[derive(Deserialize)]
struct RequirementEntry {
    r#type: Kind,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Kind {
    InsecureAcceptAnything,
    Reject,
    SignedBy,
    SignedBaseLayer,
    SigstoreSigned,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            default: vec![Requirement::Anything],
            scopes: BTreeMap::new(),
        }
    }
}

impl Policy {
    /// Reads a file.
    ///
    /// # Errors
    /// Permanent (a wrong argument): no policy.json, or a rule without requirements.
    pub fn parse(text: &str) -> Result<Self, PolicyError> {
        let Document {
            default,
            mut transports,
        } = serde_json::from_str(text)?;
        let scopes = transports.remove("docker").unwrap_or_default();
        Ok(Self {
            default: requirements("\"default\"", default)?,
            scopes: scopes
                .into_iter()
                .map(|(scope, entries)| {
                    let requirements = requirements(&named(&scope), entries)?;
                    Ok((scope, requirements))
                })
                .collect::<Result<_, PolicyError>>()?,
        })
    }

    /// An error if the image may not be used.
    ///
    /// # Errors
    /// The requirement that doesn't hold.
    pub fn check(&self, image: &Reference) -> Result<(), Denied> {
        let found = scopes_of(image)
            .into_iter()
            .find_map(|scope| Some((named(&scope), self.scopes.get(&scope)?)));
        let (scope, requirements) =
            found.unwrap_or_else(|| ("\"default\"".to_owned(), &self.default));
        for requirement in requirements {
            match requirement {
                Requirement::Anything => {}
                Requirement::Nothing => return Err(Denied::Rejected(scope)),
                Requirement::Signature(kind) => return Err(Denied::Unchecked { kind, scope }),
            }
        }
        Ok(())
    }
}

fn requirements(
    scope: &str,
    entries: Vec<RequirementEntry>,
) -> Result<Vec<Requirement>, PolicyError> {
    if entries.is_empty() {
        return Err(PolicyError::Empty(scope.to_owned()));
    }
    let requirement = |entry: RequirementEntry| match entry.r#type {
        Kind::InsecureAcceptAnything => Requirement::Anything,
        Kind::Reject => Requirement::Nothing,
        Kind::SignedBy => Requirement::Signature("signedBy"),
        Kind::SignedBaseLayer => Requirement::Signature("signedBaseLayer"),
        Kind::SigstoreSigned => Requirement::Signature("sigstoreSigned"),
    };
    Ok(entries.into_iter().map(requirement).collect())
}

fn named(scope: &str) -> String {
    match scope {
        "" => "all of \"docker\"".to_owned(),
        scope => format!("{scope:?}"),
    }
}

/// The scopes that an image belongs to, the most exact first: itself, its repository and what is above it, its registry, the domains of that, all registries.
fn scopes_of(image: &Reference) -> Vec<String> {
    let repository = image.repository.to_string();
    // a digest counts before a tag, as everywhere
    let itself = match (&image.digest, &image.tag) {
        (Some(digest), _) => format!("{repository}@{digest}"),
        (None, tag) => format!("{repository}:{}", tag.as_deref().unwrap_or("latest")),
    };
    let mut scopes = vec![itself];
    let mut above = repository.as_str();
    loop {
        scopes.push(above.to_owned());
        match above.rsplit_once('/') {
            Some((parent, _)) => above = parent,
            None => break,
        }
    }
    let host = image.repository.host();
    let mut domain = host.rsplit_once(':').map_or(host, |(name, _)| name);
    while let Some((_, parent)) = domain.split_once('.') {
        scopes.push(format!("*.{parent}"));
        domain = parent;
    }
    scopes.push(String::new());
    scopes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::chain;

    const TEXT: &str = r#"{
        "default": [{"type": "reject"}],
        "transports": {
            "docker": {
                "registry.example.com/org": [{"type": "insecureAcceptAnything"}],
                "registry.example.com/org/bad": [{"type": "reject"}],
                "registry.example.com/org/bad:good": [{"type": "insecureAcceptAnything"}],
                "registry.example.com/signed": [{"type": "insecureAcceptAnything"}, {"type": "signedBy", "keyType": "GPGKeys", "keyPath": "/k"}],
                "*.example.net": [{"type": "sigstoreSigned", "keyPath": "/k"}],
                "sub.example.net:5000": [{"type": "insecureAcceptAnything"}]
            },
            "docker-daemon": {"": [{"type": "insecureAcceptAnything"}]}
        }
    }"#;

    #[test]
    fn the_most_exact_rule_decides_and_signatures_are_never_taken_for_granted() {
        let policy = Policy::parse(TEXT).unwrap();
        let digest = format!("sha256:{}", "a".repeat(64));
        for (image, said) in [
            ("registry.example.com/org/os:v1", "allowed"),
            (
                "registry.example.com/organisation/os",
                "rejects it by the rule for \"default\"",
            ),
            (
                "registry.example.com/org/bad/os",
                "rejects it by the rule for \"registry.example.com/org/bad\"",
            ),
            ("registry.example.com/org/bad:good", "allowed"),
            (
                &format!("registry.example.com/org/bad:good@{digest}"),
                "rejects it by the rule for \"registry.example.com/org/bad\"",
            ),
            (
                "registry.example.com/signed/os",
                "(signedBy) by the rule for \"registry.example.com/signed\"",
            ),
            (
                "a.b.example.net/os",
                "(sigstoreSigned) by the rule for \"*.example.net\"",
            ),
            ("sub.example.net:5000/os", "allowed"),
            ("sub.example.net/os", "(sigstoreSigned)"),
            ("busybox", "rejects it by the rule for \"default\""),
        ] {
            let answer = match policy.check(&image.parse().unwrap()) {
                Ok(()) => "allowed".to_owned(),
                Err(denied) => denied.to_string(),
            };
            assert!(answer.contains(said), "{image}: {answer}");
        }
    }

    #[test]
    fn without_a_file_everything_is_allowed_and_a_transports_rule_goes_before_the_default() {
        let image = "busybox".parse().unwrap();
        assert_eq!(Policy::default().check(&image), Ok(()));
        let all = r#"{"default": [{"type": "insecureAcceptAnything"}], "transports": {"docker": {"": [{"type": "reject"}]}}}"#;
        assert_eq!(
            Policy::parse(all).unwrap().check(&image),
            Err(Denied::Rejected("all of \"docker\"".to_owned()))
        );
    }

    #[test]
    fn what_is_no_policy_is_refused_with_a_reason() {
        for (text, said) in [
            ("{", "EOF"),
            ("{}", "missing field `default`"),
            (r#"{"default": []}"#, "\"default\" has no requirements"),
            (
                r#"{"default": [{"type": "trusted"}]}"#,
                "unknown variant `trusted`",
            ),
            (
                r#"{"default": [{"type": "reject"}], "transport": {}}"#,
                "unknown field `transport`",
            ),
            (
                r#"{"default": [{"type": "reject"}], "transports": {"docker": {"q.io": []}}}"#,
                "\"q.io\" has no requirements",
            ),
        ] {
            let error = chain(&Policy::parse(text).unwrap_err());
            assert!(error.contains(said), "{text}: {error}");
        }
    }
}
