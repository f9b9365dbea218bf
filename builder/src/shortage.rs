//! Has a step failed because the machine gave it too little? The kernel's counters of its memory limit and the room in scratch, before and after.
//!
//! A limit is the cgroup's that this process is in, which is the pod's. Where neither version of cgroups can be seen, nothing is claimed.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::error::{Class, Classify};

/// Where both versions of cgroups are mounted by convention.
const CGROUPS: &str = "/sys/fs/cgroup";
/// What C libraries call ENOSPC, and so what nearly every program prints.
const NO_SPACE: &str = "No space left on device";
/// A full disk has a little left, in which nothing fits.
const NOTHING_BYTES: u64 = 1 << 20;

/// Too little of something.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Shortage {
    /// The kernel killed a process of this build.
    #[error(
        "out of memory{}; raise the builder's memory limit, or let the step need less",
        limit_bytes.map(|bytes| format!(" (limit {} MiB)", bytes >> 20)).unwrap_or_default()
    )]
    Memory {
        /// The lowest that applies; none if there is no limit but the machine's memory.
        limit_bytes: Option<u64>,
    },
    /// The disk of the scratch folder is full.
    #[error("no space is left in the scratch folder {}; give the builder more of it", scratch.display())]
    Disk {
        /// Which.
        scratch: PathBuf,
    },
}

impl Classify for Shortage {
    fn class(&self) -> Class {
        match self {
            // The next attempt has the same limit.
            Self::Memory { .. } => Class::CONTENT,
            // The next attempt may be on another node, or find room on this one.
            Self::Disk { .. } => Class::Transient,
        }
    }
}

/// Files that a probe of the machine makes, generously.
const FEW_FILES: u64 = 64;

/// An error if nothing can be tried in `scratch`: whatever were tried would seem to be forbidden.
///
/// # Errors
/// No storage is left, or the folder can't be seen.
pub fn check_room(scratch: &Path) -> io::Result<()> {
    let room = Room::of(scratch)?;
    match room.left_bytes < NOTHING_BYTES || room.left_files.is_some_and(|left| left < FEW_FILES) {
        true => Err(io::ErrorKind::StorageFull.into()),
        false => Ok(()),
    }
}

/// What there was before a step.
#[derive(Debug)]
pub struct Watch {
    memory: Option<Memory>,
    kills: u64,
    scratch: PathBuf,
}

impl Watch {
    /// Looks before the step.
    #[must_use]
    pub fn begin(scratch: &Path) -> Self {
        let memory = Memory::of_this_process(Path::new(CGROUPS));
        Self {
            kills: memory.as_ref().map_or(0, Memory::kills),
            memory,
            scratch: scratch.to_owned(),
        }
    }

    /// What the step, which has failed after printing `output` last, had too little of. If several run at once, it may be the other one's process that was killed.
    #[must_use]
    pub fn end(&self, output: &[String]) -> Option<Shortage> {
        if let Some(memory) = self.memory.as_ref().filter(|now| now.kills() > self.kills) {
            return Some(Shortage::Memory {
                limit_bytes: memory.limit_bytes(),
            });
        }
        let room = Room::of(&self.scratch).ok()?;
        let said = output.iter().any(|line| line.contains(NO_SPACE));
        room.is_used_up(said).then(|| Shortage::Disk {
            scratch: self.scratch.clone(),
        })
    }
}

/// What a file system has left.
#[derive(Clone, Copy, Debug)]
struct Room {
    all_bytes: u64,
    left_bytes: u64,
    /// Of a file system that counts them.
    left_files: Option<u64>,
}

impl Room {
    fn of(path: &Path) -> io::Result<Self> {
        let room = rustix::fs::statvfs(path)?;
        Ok(Self {
            all_bytes: room.f_blocks.saturating_mul(room.f_frsize),
            left_bytes: room.f_bavail.saturating_mul(room.f_frsize),
            left_files: (room.f_files > 0).then_some(room.f_favail),
        })
    }

    /// A step that failed for want of room may have removed what it wrote; then its words tell, but only with little room: a `tmpfs` mount of its own may be full, too.
    fn is_used_up(self, said: bool) -> bool {
        let nothing = self.left_bytes < NOTHING_BYTES || self.left_files == Some(0);
        nothing || (said && self.left_bytes < self.all_bytes / 10)
    }
}

/// The memory cgroup of this process.
#[derive(Debug)]
struct Memory {
    /// Its own, then those above it, as far as they can be seen.
    folders: Vec<PathBuf>,
    is_v2: bool,
}

impl Memory {
    fn of_this_process(root: &Path) -> Option<Self> {
        let text = fs::read_to_string("/proc/self/cgroup").ok()?;
        let found = candidates(&text, root);
        found.into_iter().find(|memory| {
            let file = memory.folders.first().map(|own| own.join(memory.counter()));
            file.is_some_and(|file| file.exists())
        })
    }

    fn counter(&self) -> &'static str {
        match self.is_v2 {
            true => "memory.events",
            false => "memory.oom_control",
        }
    }

    /// How many processes of it the kernel has killed for want of memory, whoever's limit it was.
    fn kills(&self) -> u64 {
        let text = self.folders.first().map(|own| own.join(self.counter()));
        let text = text.and_then(|file| fs::read_to_string(file).ok());
        text.and_then(|text| kills(&text)).unwrap_or(0)
    }

    fn limit_bytes(&self) -> Option<u64> {
        let file = match self.is_v2 {
            true => "memory.max",
            false => "memory.limit_in_bytes",
        };
        let texts = self
            .folders
            .iter()
            .filter_map(|folder| fs::read_to_string(folder.join(file)).ok());
        texts.filter_map(|text| limit(&text)).min()
    }
}

/// Where the memory cgroup may be, by `/proc/self/cgroup`: its path below the mount, or the mount itself if a container sees only its own.
fn candidates(text: &str, root: &Path) -> Vec<Memory> {
    let mut found = Vec::new();
    for line in text.lines() {
        let mut fields = line.splitn(3, ':');
        let (_, Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let (mount, is_v2) = match controllers {
            "" => (root.to_owned(), true),
            "memory" => (root.join("memory"), false),
            _ => continue,
        };
        let own = Path::new(path.trim_start_matches('/'));
        let chain = own.ancestors().map(|part| mount.join(part)).collect();
        for folders in [chain, vec![mount]] {
            found.push(Memory { folders, is_v2 });
        }
    }
    found
}

/// The line `oom_kill N` of both versions.
fn kills(text: &str) -> Option<u64> {
    let mut lines = text.lines();
    lines.find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}

/// None for `max`, and for the number that stands for no limit in the first version: all pages that a signed number can count.
fn limit(text: &str) -> Option<u64> {
    let bytes: u64 = text.trim().parse().ok()?;
    (bytes < i64::MAX.cast_unsigned() / 2).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_and_limits_of_both_versions_are_read_where_they_are() {
        let v2 = "0::/kubepods/pod1/c1\n";
        let v1 = "9:name=systemd:/\n4:memory:/docker/c1\n0::/\n";
        for (cgroup, own, files, expected) in [
            (
                v2,
                "kubepods/pod1/c1",
                [
                    ("memory.events", "low 0\noom 3\noom_kill 2\n"),
                    ("memory.max", "max\n"),
                    ("../memory.max", "268435456\n"),
                ],
                Some((2, Some(256))),
            ),
            (
                v2,
                "",
                [
                    ("memory.events", "oom_kill 1\n"),
                    ("memory.max", "1048576\n"),
                    ("x", ""),
                ],
                Some((1, Some(1))),
            ),
            (
                v1,
                "memory/docker/c1",
                [
                    ("memory.oom_control", "under_oom 0\noom_kill 7\n"),
                    ("memory.limit_in_bytes", "9223372036854771712\n"),
                    ("x", ""),
                ],
                Some((7, None)),
            ),
            (
                v1,
                "memory",
                [
                    ("memory.oom_control", "oom_kill 0\n"),
                    ("memory.limit_in_bytes", "134217728\n"),
                    ("x", ""),
                ],
                Some((0, Some(128))),
            ),
            (
                v1,
                "elsewhere",
                [("memory.oom_control", "oom_kill 0\n"), ("x", ""), ("x", "")],
                None,
            ),
        ] {
            let root = tempfile::tempdir().unwrap();
            let own = root.path().join(own);
            fs::create_dir_all(&own).unwrap();
            for (name, text) in files {
                fs::write(own.join(name), text).unwrap();
            }
            let memory = candidates(cgroup, root.path())
                .into_iter()
                .find(|memory| memory.folders[0].join(memory.counter()).exists());
            let read = memory.map(|memory| {
                (
                    memory.kills(),
                    memory.limit_bytes().map(|bytes| bytes >> 20),
                )
            });
            assert_eq!(read, expected, "{cgroup} {}", own.display());
        }
    }

    #[test]
    fn a_disk_is_full_if_nothing_fits_or_if_the_step_says_so_and_little_does() {
        for (left_mib, left_files, said, expected) in [
            (50, Some(9), false, false),
            (50, Some(9), true, false),
            (5, Some(9), false, false),
            (5, Some(9), true, true),
            (5, None, true, true),
            (0, Some(9), false, true),
            (50, Some(0), false, true),
            (50, None, false, false),
        ] {
            let room = Room {
                all_bytes: 100 << 20,
                left_bytes: left_mib << 20,
                left_files,
            };
            assert_eq!(room.is_used_up(said), expected, "{room:?} {said}");
        }
    }
}
