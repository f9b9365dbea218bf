//! What does this machine, or this pod, really allow? Found by trying, in a process of its own, and given as data.
//!
//! Kernel versions and documentation say little here: seccomp, SELinux, AppArmor, masked paths and id maps all have a word. Every check is the
//! very call that a build makes. Nothing of it stays behind.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

use super::{Rights, Tier};
use crate::error::{Class, Classify};
use crate::shortage::check_room;

mod attempts;
mod choice;
mod remedy;

pub(super) use attempts::main;
pub use choice::{ChoiceError, choose, no_steps, obstacle};
pub use remedy::Place;

/// The first argument that starts this program as a probe.
pub(super) const INTERNAL_PROBE: &str = "internal-probe";

/// One thing that a build needs, or would like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Check {
    /// New mount, PID, UTS and IPC namespaces (and, but for the root tier, a user namespace).
    Namespaces,
    /// A file in the scratch folder.
    Files,
    /// Every id of ours under its own number.
    IdentityMap,
    /// Every id but one, shifted by one.
    ShiftedMap,
    /// Our own id only.
    SingleMap,
    /// Our own id and subordinate ones, by `newuidmap` and `newgidmap`.
    SubordinateIds,
    /// An overlay with its upper in the scratch folder.
    Overlay,
    /// A removed lower file leaves a whiteout.
    Whiteout,
    /// A replaced lower directory is marked opaque.
    Opaque,
    /// Files can be given to any id.
    Chown,
    /// File capabilities can be set.
    FileCapabilities,
    /// A new /proc in a new PID namespace.
    Proc,
    /// Memory file systems.
    Tmpfs,
    /// Terminals of its own.
    Devpts,
    /// The machine's /sys, read-only.
    Sys,
    /// A system call filter without `no_new_privs`.
    Seccomp,
}

/// A check and how it went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// With which rights it was tried.
    pub rights: Rights,
    /// What was tried.
    pub check: Check,
    /// Why it failed; none if it works.
    pub failure: Option<String>,
}

/// What there is to know before a tier is chosen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// Where.
    pub place: Place,
    /// Who we are: names and values, for people.
    pub facts: Vec<(String, String)>,
    /// In order of trying; the first failure of some rights may leave out their other rows.
    pub rows: Vec<Row>,
}

/// The probe itself failed.
#[derive(Debug, thiserror::Error)]
#[error("probe what this machine allows, with scratch folder {}", scratch.display())]
pub struct ProbeError {
    scratch: PathBuf,
    source: io::Error,
}

impl Classify for ProbeError {
    fn class(&self) -> Class {
        Class::of_file(&self.source)
    }
}

impl Check {
    #[cfg(test)]
    const ALL: [Self; 16] = [
        Self::Namespaces,
        Self::Files,
        Self::IdentityMap,
        Self::ShiftedMap,
        Self::SingleMap,
        Self::SubordinateIds,
        Self::Overlay,
        Self::Whiteout,
        Self::Opaque,
        Self::Chown,
        Self::FileCapabilities,
        Self::Proc,
        Self::Tmpfs,
        Self::Devpts,
        Self::Sys,
        Self::Seccomp,
    ];

    /// What was tried, in a few words.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Namespaces => "namespaces",
            Self::Files => "files in scratch",
            Self::IdentityMap => "id map, same numbers",
            Self::ShiftedMap => "id map, shifted by one",
            Self::SingleMap => "id map, one id",
            Self::SubordinateIds => "id map, subordinate ids",
            Self::Overlay => "overlay in scratch",
            Self::Whiteout => "whiteouts",
            Self::Opaque => "opaque directories",
            Self::Chown => "chown to any id",
            Self::FileCapabilities => "file capabilities",
            Self::Proc => "new /proc",
            Self::Tmpfs => "tmpfs",
            Self::Devpts => "devpts",
            Self::Sys => "read-only /sys",
            Self::Seccomp => "system call filter",
        }
    }
}

impl Probe {
    /// The rows that decide about `tier`.
    fn rows_of(&self, tier: Tier) -> impl Iterator<Item = &Row> {
        let counts =
            move |row: &&Row| row.rights == tier.rights() && row.check.is_required(tier.storage());
        self.rows.iter().filter(counts)
    }

    /// The required checks that failed for `tier`.
    pub fn obstacles(&self, tier: Tier) -> impl Iterator<Item = &Row> {
        self.rows_of(tier).filter(|row| row.failure.is_some())
    }

    /// How many required checks of `tier` went well.
    fn works(&self, tier: Tier) -> usize {
        self.rows_of(tier)
            .filter(|row| row.failure.is_none())
            .count()
    }

    /// True if a build would run in `tier`.
    #[must_use]
    pub fn allows(&self, tier: Tier) -> bool {
        let last = match tier.rights() {
            Rights::None => Check::Files,
            Rights::Root | Rights::Userns | Rights::Rootless => Check::Seccomp,
        };
        self.obstacles(tier).next().is_none() && self.rows_of(tier).any(|row| row.check == last)
    }
}

/// Tries everything, with uppers in `scratch`, which is made if absent.
///
/// # Errors
/// Transient without room in `scratch`; Permanent or the user's, if the probing process can't run.
pub fn probe(scratch: &Path) -> Result<Probe, ProbeError> {
    let failed = |source| ProbeError {
        scratch: scratch.to_owned(),
        source,
    };
    fs::create_dir_all(scratch).map_err(failed)?;
    check_room(scratch).map_err(failed)?;
    let folder = tempfile::Builder::new()
        .prefix("probe-")
        .tempdir_in(scratch)
        .map_err(failed)?;
    let mut child = Command::new("/proc/self/exe")
        .arg(INTERNAL_PROBE)
        .arg(folder.path())
        .env_clear()
        .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    let output = child.stdout.take().map_or(Ok(Vec::new()), |mut stdout| {
        let mut output = Vec::new();
        io::Read::read_to_end(&mut stdout, &mut output).map(|_| output)
    });
    child.wait().map_err(failed)?;
    let mut rows = Vec::new();
    for line in output
        .map_err(failed)?
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
    {
        rows.push(serde_json::from_slice(line).map_err(|error| failed(error.into()))?);
    }
    let place = place();
    Ok(Probe {
        place,
        facts: facts(place),
        rows,
    })
}

/// By what Kubernetes gives every container, and what podman and docker do.
fn place() -> Place {
    if std::env::var_os("KUBERNETES_SERVICE_HOST").is_some() {
        return Place::Pod;
    }
    let marks = ["/run/.containerenv", "/.dockerenv"];
    match marks.iter().any(|mark| Path::new(mark).exists()) {
        true => Place::Container,
        false => Place::Workstation,
    }
}

/// Where this is, and what `/proc` says about this process.
fn facts(place: Place) -> Vec<(String, String)> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let field = |name: &str| {
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.unwrap_or("unknown")
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ")
    };
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let map = map
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect::<Vec<_>>()
        .join(", ");
    let label = fs::read_to_string("/proc/self/attr/current").unwrap_or_default();
    let label = label.trim_matches(['\n', '\0']);
    [
        ("place", place.name().to_owned()),
        ("uid", rustix::process::geteuid().to_string()),
        ("id map (inside outside count)", map),
        ("capabilities", field("CapEff")),
        ("no_new_privs", field("NoNewPrivs")),
        ("seccomp mode", field("Seccomp")),
        (
            "security label",
            if label.is_empty() {
                "none".to_owned()
            } else {
                label.to_owned()
            },
        ),
        (
            "kernel",
            fs::read_to_string("/proc/sys/kernel/osrelease")
                .unwrap_or_default()
                .trim()
                .to_owned(),
        ),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .to_vec()
}

/// Says how a check went; the pipe's other end collects the lines.
fn tell(rights: Rights, check: Check, result: io::Result<()>) -> bool {
    let works = result.is_ok();
    let row = Row {
        rights,
        check,
        failure: result.err().map(|error| chain(&error)),
    };
    if let Ok(mut line) = serde_json::to_vec(&row) {
        line.push(b'\n');
        // Without a reader there is nobody to tell.
        let _ = io::stdout()
            .write_all(&line)
            .and_then(|()| io::stdout().flush());
    }
    works
}

/// An error and its causes in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(rights: Rights, check: Check, failure: Option<&str>) -> Row {
        Row {
            rights,
            check,
            failure: failure.map(str::to_owned),
        }
    }

    #[test]
    fn a_tier_is_allowed_if_all_that_it_requires_was_tried_and_works() {
        let works = vec![
            row(Rights::Userns, Check::Namespaces, None),
            row(Rights::Userns, Check::Proc, Some("no")),
            row(Rights::Userns, Check::Seccomp, None),
        ];
        let mut without_overlay = works.clone();
        without_overlay.insert(1, row(Rights::Userns, Check::Overlay, Some("no")));
        for (rows, allowed) in [
            (works.clone(), &[Tier::Userns, Tier::UsernsFlat][..]),
            (without_overlay, &[Tier::UsernsFlat]),
            (works[..2].to_vec(), &[]),
            (vec![], &[]),
        ] {
            let probe = Probe {
                place: Place::Pod,
                facts: Vec::new(),
                rows,
            };
            let found: Vec<Tier> = Tier::LADDER
                .into_iter()
                .filter(|tier| probe.allows(*tier))
                .collect();
            assert_eq!(found, allowed, "{:?}", probe.rows);
        }
    }
}
