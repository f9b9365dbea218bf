//! Where does a name really lead? The rules of registries.conf (version 2, see containers-registries.conf(5)); pure.
//!
//! A reference belongs to the registry entry with the longest prefix. For pulling it has the entry's mirrors, in their order, and last the entry's own location. Pushes go
//! where the reference says; for them an entry only says whether it is blocked or insecure. So each place has one table that says whether TLS may be done without: the
//! mirror's or entry's that led there, or else the entry with its own longest prefix.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::error::{Class, Classify};
use crate::reference::{InvalidReference, Reference, Repository};

/// What registries.conf and the files of registries.conf.d say together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// Tried in this order for names without a registry.
    search: Option<Vec<String>>,
    short_names: Option<ShortNames>,
    aliases: BTreeMap<String, String>,
    /// By prefix.
    registries: BTreeMap<String, Rule>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum ShortNames {
    Enforcing,
    Permissive,
    Disabled,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule {
    location: Option<String>,
    insecure: bool,
    blocked: bool,
    mirrors: Vec<Mirror>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Mirror {
    location: String,
    insecure: bool,
    pulls: Pulls,
}

/// What is pulled from a mirror.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Pulls {
    #[default]
    All,
    DigestOnly,
    TagOnly,
}

/// A file that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum RulesError {
    /// No TOML, or with keys that we don't know.
    #[error("it can't be read")]
    Toml(#[from] toml::de::Error),
    /// `[registries.search]` and its like.
    #[error("it has the tables [registries.…] of version 1; write [[registry]] tables instead")]
    VersionOne,
    /// An entry without a place.
    #[error("a [[registry]] has neither prefix nor location")]
    NoPrefix,
    /// An entry that makes no sense.
    #[error("the registry {prefix:?}: {why}")]
    Registry {
        /// Its prefix.
        prefix: String,
        /// What is wrong.
        why: &'static str,
    },
    /// `credential-helpers`
    #[error("the credential helper {0:?} is not supported: credentials come from files")]
    Helper(String),
}

impl Classify for RulesError {
    fn class(&self) -> Class {
        Class::CONTRACT
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Document {
    unqualified_search_registries: Option<Vec<String>>,
    short_name_mode: Option<String>,
    #[serde(default)]
    credential_helpers: Vec<String>,
    #[serde(default)]
    registry: Vec<RegistryEntry>,
    #[serde(default)]
    aliases: BTreeMap<String, String>,
    /// Of version 1.
    registries: Option<toml::Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct RegistryEntry {
    prefix: Option<String>,
    location: Option<String>,
    #[serde(default)]
    insecure: bool,
    #[serde(default)]
    blocked: bool,
    #[serde(default)]
    mirror_by_digest_only: bool,
    #[serde(default)]
    mirror: Vec<MirrorEntry>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct MirrorEntry {
    location: Option<String>,
    #[serde(default)]
    insecure: bool,
    pull_from_mirror: Option<Pulls>,
}

impl Rules {
    /// Reads one file.
    ///
    /// # Errors
    /// Permanent (a wrong argument): no registries.conf of version 2, or one with what we don't support.
    pub fn parse(text: &str) -> Result<Self, RulesError> {
        let document: Document = toml::from_str(text)?;
        if document.registries.is_some() {
            return Err(RulesError::VersionOne);
        }
        let unknown = |helper: &String| helper != "containers-auth.json";
        if let Some(helper) = document.credential_helpers.into_iter().find(unknown) {
            return Err(RulesError::Helper(helper));
        }
        let short_names = match document.short_name_mode.as_deref() {
            None | Some("") => None,
            Some(mode) => Some(ShortNames::deserialize(toml::Value::from(mode))?),
        };
        let mut registries = BTreeMap::new();
        for entry in document.registry {
            let (prefix, rule) = rule(entry)?;
            registries.insert(prefix, rule);
        }
        let trimmed = |names: Vec<String>| names.iter().map(|name| bare(name)).collect();
        Ok(Self {
            search: document.unqualified_search_registries.map(trimmed),
            short_names,
            aliases: document.aliases,
            registries,
        })
    }

    /// With what a later file says instead: whole entries by prefix, aliases one by one.
    #[must_use]
    pub fn overridden_by(mut self, later: Self) -> Self {
        self.search = later.search.or(self.search);
        self.short_names = later.short_names.or(self.short_names);
        self.aliases.extend(later.aliases);
        self.registries.extend(later.registries);
        self
    }

    /// What an image name of a Containerfile may mean, best first; more than one only for a short name.
    ///
    /// # Errors
    /// User: text that is no name, or a short one that has to be written out.
    pub fn candidates(&self, text: &str) -> Result<Vec<Reference>, InvalidReference> {
        // as podman and buildah write it, and never short
        if let Some(image) = text.strip_prefix("docker://") {
            return Ok(vec![image.parse()?]);
        }
        let plain: Reference = text.parse()?;
        let is_short = match text.split_once('/') {
            Some((first, _)) => !first.contains(['.', ':']) && first != "localhost",
            None => true,
        };
        if !is_short {
            return Ok(vec![plain]);
        }
        let name = text.split(['@', ':']).next().unwrap_or(text);
        if let Some(alias) = self.aliases.get(name).filter(|alias| !alias.is_empty()) {
            return Ok(vec![format!("{alias}{}", &text[name.len()..]).parse()?]);
        }
        let search = self.search.as_deref().unwrap_or_default();
        if self.short_names == Some(ShortNames::Enforcing) && search.len() > 1 {
            return Err(InvalidReference {
                text: text.to_owned(),
                why: "registries.conf has several registries for short names and enforces a choice: write the registry in front of the name",
            });
        }
        match search {
            [] => Ok(vec![plain]),
            search => search
                .iter()
                .map(|registry| format!("{registry}/{text}").parse())
                .collect(),
        }
    }

    /// True if nobody may use the registry that `reference` belongs to.
    #[must_use]
    pub fn is_blocked(&self, reference: &Reference) -> bool {
        self.rule(&reference.to_string())
            .is_some_and(|(_, _, rule)| rule.blocked)
    }

    /// Where `reference` is pulled from: its mirrors in their order, then its own place.
    ///
    /// # Errors
    /// User: a location that makes no reference.
    pub fn places(&self, reference: &Reference) -> Result<Vec<Reference>, InvalidReference> {
        let text = reference.to_string();
        let Some((_, length, rule)) = self.rule(&text) else {
            return Ok(vec![reference.clone()]);
        };
        let is_digested = reference.digest.is_some();
        let mirrors = rule.mirrors.iter().filter(|mirror| match mirror.pulls {
            Pulls::All => true,
            Pulls::DigestOnly => is_digested,
            Pulls::TagOnly => !is_digested,
        });
        let led = |location: &str, insecure| {
            let place: Reference = format!("{location}{}", &text[length..]).parse()?;
            Ok(Reference {
                repository: place.repository.led_to(insecure),
                ..place
            })
        };
        let mut places = mirrors
            .map(|mirror| led(&mirror.location, mirror.insecure))
            .collect::<Result<Vec<Reference>, _>>()?;
        places.push(match &rule.location {
            Some(location) => led(location, rule.insecure)?,
            None => reference.clone(),
        });
        Ok(places)
    }

    /// True if the repository may be reached without TLS, or with a certificate that nobody vouches for.
    #[must_use]
    pub fn is_insecure(&self, repository: &Repository) -> bool {
        if let Some(insecure) = repository.led() {
            return insecure;
        }
        let entry = self.rule(&repository.to_string());
        entry.is_some_and(|(prefix, _, rule)| {
            // an entry that leads elsewhere speaks of that place
            rule.insecure && rule.location.as_ref().is_none_or(|to| to == prefix)
        })
    }

    /// The entry of a reference: its prefix and how much of the text that is.
    fn rule(&self, text: &str) -> Option<(&str, usize, &Rule)> {
        self.registries
            .iter()
            .filter_map(|(prefix, rule)| Some((prefix.as_str(), matched(text, prefix)?, rule)))
            .max_by_key(|(prefix, _, _)| prefix.len())
    }
}

fn rule(entry: RegistryEntry) -> Result<(String, Rule), RulesError> {
    let location = entry.location.filter(|location| !location.is_empty());
    let location = location.map(|location| bare(&location));
    let prefix = entry.prefix.filter(|prefix| !prefix.is_empty());
    let prefix = prefix.map(|prefix| bare(&prefix)).or(location.clone());
    let prefix = prefix.ok_or(RulesError::NoPrefix)?;
    let wrong = |why| RulesError::Registry {
        prefix: prefix.clone(),
        why,
    };
    let is_wildcard = prefix.starts_with("*.");
    if is_wildcard && prefix.contains(['/', ':', '@']) {
        return Err(wrong(
            "a prefix with a * can't have a path, port, tag or digest",
        ));
    }
    if location.is_none() && !is_wildcard {
        return Err(wrong("its location is missing"));
    }
    let mut mirrors = Vec::new();
    for mirror in entry.mirror {
        let pulls = match (entry.mirror_by_digest_only, mirror.pull_from_mirror) {
            (true, Some(_)) => {
                return Err(wrong(
                    "mirror-by-digest-only and pull-from-mirror exclude each other",
                ));
            }
            (true, None) => Pulls::DigestOnly,
            (false, pulls) => pulls.unwrap_or_default(),
        };
        let location = mirror.location.filter(|location| !location.is_empty());
        mirrors.push(Mirror {
            location: bare(&location.ok_or_else(|| wrong("a mirror has no location"))?),
            insecure: mirror.insecure,
            pulls,
        });
    }
    let rule = Rule {
        location,
        insecure: entry.insecure,
        blocked: entry.blocked,
        mirrors,
    };
    Ok((prefix, rule))
}

/// Without a scheme and closing slashes.
fn bare(place: &str) -> String {
    let place = place.strip_prefix("https://").unwrap_or(place);
    let place = place.strip_prefix("http://").unwrap_or(place);
    place.trim_end_matches('/').to_owned()
}

/// How much of `text` is covered by `prefix`, if it is at a part's end.
fn matched(text: &str, prefix: &str) -> Option<usize> {
    let length = match prefix.strip_prefix('*') {
        // `*.example.com`
        Some(domain) => {
            let host = text.split(['/', ':', '@']).next()?;
            let is_below = host.ends_with(domain) && host.len() > domain.len();
            return is_below.then_some(host.len());
        }
        None => text.starts_with(prefix).then_some(prefix.len())?,
    };
    let ends = text[length..].chars().next();
    ends.is_none_or(|next| "/:@".contains(next))
        .then_some(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"
        unqualified-search-registries = ["quay.io", "docker.io"]
        [[registry]]
        prefix = "quay.io/org"
        location = "registry.local:5000/org"
        [[registry.mirror]]
        location = "mirror.local/quay"
        insecure = true
        [[registry.mirror]]
        location = "digests.local"
        pull-from-mirror = "digest-only"
        [[registry.mirror]]
        location = "tags.local/x"
        pull-from-mirror = "tag-only"
        [[registry]]
        location = "quay.io"
        mirror-by-digest-only = true
        mirror = [{location = "all.local"}]
        [[registry]]
        prefix = "*.example.com"
        insecure = true
        [[registry]]
        location = "plain.io"
        insecure = true
        [[registry]]
        location = "plain.io/secure"
        [[registry.mirror]]
        location = "plain.io/mirror"
        [[registry]]
        location = "plain.io/secure/plain"
        insecure = true
        [[registry.mirror]]
        location = "plain.io/secure/mirror"
        [[registry]]
        location = "bad.io"
        blocked = true
        [[registry]]
        location = "bad.io/good"
        [aliases]
        "fedora" = "registry.fedoraproject.org/fedora"
    "#;

    fn digest() -> String {
        format!("sha256:{}", "a".repeat(64))
    }

    #[test]
    fn a_reference_is_pulled_from_the_mirrors_of_its_longest_prefix_and_then_from_its_place() {
        let rules = Rules::parse(TEXT).unwrap();
        let digested = format!("quay.io/org/os@{}", digest());
        for (reference, places) in [
            (
                "quay.io/org/os:v1",
                vec![
                    "mirror.local/quay/os:v1",
                    "tags.local/x/os:v1",
                    "registry.local:5000/org/os:v1",
                ],
            ),
            (
                &digested,
                vec![
                    "mirror.local/quay/os@",
                    "digests.local/os@",
                    "registry.local:5000/org/os@",
                ],
            ),
            ("quay.io/organ/os:v1", vec!["quay.io/organ/os:v1"]),
            ("a.example.com/os:v1", vec!["a.example.com/os:v1"]),
            ("elsewhere.io/os:v1", vec!["elsewhere.io/os:v1"]),
        ] {
            let found = rules.places(&reference.parse().unwrap()).unwrap();
            let found: Vec<_> = found.iter().map(Reference::to_string).collect();
            let whole = |place: &&str| match place.strip_suffix('@') {
                Some(name) => format!("{name}@{}", digest()),
                None => (*place).to_owned(),
            };
            assert_eq!(found, places.iter().map(whole).collect::<Vec<_>>());
        }
        let by_digest = format!("quay.io/other/os@{}", digest()).parse().unwrap();
        assert_eq!(rules.places(&by_digest).unwrap().len(), 2);
    }

    #[test]
    fn blocked_and_insecure_are_told_by_place() {
        let rules = Rules::parse(TEXT).unwrap();
        for (reference, blocked, insecure) in [
            ("bad.io/x", true, false),
            ("bad.io/good/x", false, false),
            ("bad.ios/x", false, false),
            ("a.b.example.com/x", false, true),
            ("example.com/x", false, false),
            ("mirror.local/quay/os", false, false),
            ("registry.local:5000/org/os", false, false),
            ("quay.io/org/os", false, false),
            ("plain.io/x", false, true),
            ("plain.io/secure/x", false, false),
            ("plain.io/secure/plain/x", false, true),
            ("plain.io/secured", false, true),
        ] {
            let reference: Reference = reference.parse().unwrap();
            assert_eq!(rules.is_blocked(&reference), blocked, "{reference}");
            assert_eq!(
                rules.is_insecure(&reference.repository),
                insecure,
                "{reference}"
            );
        }
    }

    #[test]
    fn a_place_that_is_led_to_is_as_insecure_as_the_table_that_leads_there() {
        let rules = Rules::parse(TEXT).unwrap();
        for (reference, expected) in [
            // the mirror's own word, not that of the place's entry or of the entry that has the mirror
            (
                "quay.io/org/os:v1",
                vec![
                    ("mirror.local/quay/os", true),
                    ("tags.local/x/os", false),
                    ("registry.local:5000/org/os", false),
                ],
            ),
            (
                "plain.io/secure/x:v1",
                vec![("plain.io/mirror/x", false), ("plain.io/secure/x", false)],
            ),
            (
                "plain.io/secure/plain/x:v1",
                vec![
                    ("plain.io/secure/mirror/x", false),
                    ("plain.io/secure/plain/x", true),
                ],
            ),
            ("a.example.com/os:v1", vec![("a.example.com/os", true)]),
        ] {
            let places = rules.places(&reference.parse().unwrap()).unwrap();
            let found = places.iter().map(|place| {
                let insecure = rules.is_insecure(&place.repository);
                (place.repository.to_string(), insecure)
            });
            let expected = expected
                .iter()
                .map(|(place, insecure)| ((*place).to_owned(), *insecure));
            assert!(
                found.clone().eq(expected),
                "{:?}",
                found.collect::<Vec<_>>()
            );
        }
    }

    #[test]
    fn a_short_name_is_an_alias_or_searched_for() {
        let rules = Rules::parse(TEXT).unwrap();
        let candidates = |rules: &Rules, text: &str| {
            let found = rules.candidates(text).unwrap();
            found.iter().map(Reference::to_string).collect::<Vec<_>>()
        };
        for (text, expected) in [
            ("fedora:41", vec!["registry.fedoraproject.org/fedora:41"]),
            (
                "busybox",
                vec!["quay.io/busybox:latest", "docker.io/library/busybox:latest"],
            ),
            (
                "org/os:v1",
                vec!["quay.io/org/os:v1", "docker.io/org/os:v1"],
            ),
            ("quay.io/os:v1", vec!["quay.io/os:v1"]),
            ("localhost/os:v1", vec!["localhost/os:v1"]),
        ] {
            assert_eq!(candidates(&rules, text), expected, "{text}");
        }
        assert_eq!(
            candidates(&Rules::default(), "busybox"),
            ["docker.io/library/busybox:latest"]
        );
        let later =
            Rules::parse("short-name-mode = \"enforcing\"\n[aliases]\nbusybox = \"x.io/b\"")
                .unwrap();
        let both = rules.overridden_by(later);
        assert_eq!(candidates(&both, "busybox:1"), ["x.io/b:1"]);
        assert_eq!(candidates(&both, "docker://x.io/b:1"), ["x.io/b:1"]);
        let full = candidates(&both, "docker://busybox:1");
        assert_eq!(full, ["docker.io/library/busybox:1"]);
        assert!(
            both.candidates("os")
                .unwrap_err()
                .to_string()
                .contains("write the registry")
        );
    }

    #[test]
    fn what_is_no_registries_conf_of_version_two_is_refused_with_a_reason() {
        for (text, why) in [
            ("[registries.search]\nregistries = [\"x\"]", "of version 1"),
            (
                "[[registry]]\ninsecure = true",
                "neither prefix nor location",
            ),
            ("[[registry]]\nprefix = \"x.io\"", "location is missing"),
            ("[[registry]]\nprefix = \"*.io/x\"", "can't have a path"),
            (
                "[[registry]]\nlocation = \"x.io\"\n[[registry.mirror]]\ninsecure = true",
                "no location",
            ),
            (
                "[[registry]]\nlocation = \"x.io\"\nmirror-by-digest-only = true\nmirror = [{location = \"m.io\", pull-from-mirror = \"all\"}]",
                "exclude each other",
            ),
            ("short-name-mode = \"strict\"", "strict"),
            ("credential-helpers = [\"secretservice\"]", "secretservice"),
            ("blocked-registries = []", "blocked-registries"),
            ("unqualified", "line 1"),
        ] {
            let error = Rules::parse(text).unwrap_err();
            let told = crate::error::chain(&error);
            assert!(told.contains(why), "{text}: {told}");
        }
    }
}
