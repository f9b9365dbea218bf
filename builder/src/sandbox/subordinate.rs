//! Which ids may this user map into a namespace, and who writes the maps? `/etc/subuid`, `/etc/subgid`, `newuidmap` and `newgidmap`.
//!
//! Inside, 0 is our own id, and the subordinate ids follow from 1 on. The kernel lets nobody but the owner of those ids write such a map, so
//! it is left to the two programs that have that right by file capabilities or a set-user-ID bit. Where there are no others, a copy of this program
//! with the names and capabilities of both does as well: our own image has one.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::fs::{Mode, OFlags, fstat, openat};
use rustix::process::Pid;

/// The files and programs of one kind of id.
pub(super) struct Kind {
    file: &'static str,
    program: &'static str,
    map: &'static str,
}

const USERS: Kind = Kind {
    file: "/etc/subuid",
    program: "newuidmap",
    map: "uid_map",
};
const GROUPS: Kind = Kind {
    file: "/etc/subgid",
    program: "newgidmap",
    map: "gid_map",
};

/// Gives `process`, which is in a new user namespace of this user, our own id as 0 and the subordinate ones from 1 on.
///
/// # Errors
/// If there are no such ids, or the programs are missing or refuse; the text says which.
pub(super) fn write_maps(process: Pid) -> io::Result<()> {
    for kind in [USERS, GROUPS] {
        let ranges = kind.ranges()?;
        run(kind.program, process, &map(kind.own(), &ranges))?;
    }
    Ok(())
}

/// The whole life of this program under the name of one of the two: `newuidmap PID [INSIDE OUTSIDE COUNT]...`; returns its exit status.
pub(super) fn main(kind: &Kind) -> u8 {
    let numbers: Option<Vec<u32>> = std::env::args()
        .skip(1)
        .map(|argument| argument.parse().ok())
        .collect();
    let written = match numbers.as_deref() {
        Some([process, map @ ..]) if !map.is_empty() && map.len() % 3 == 0 => {
            kind.write(*process, map)
        }
        _ => Err(io::Error::other("expected PID [INSIDE OUTSIDE COUNT]...")),
    };
    match written {
        Ok(()) => 0,
        Err(error) => {
            let _ = writeln!(io::stderr(), "{}: {error}", kind.program);
            1
        }
    }
}

impl Kind {
    /// What this program is called as, if it is one of the two.
    pub(super) fn called(program: &OsStr) -> Option<&'static Self> {
        let name = Path::new(program).file_name()?;
        [&USERS, &GROUPS]
            .into_iter()
            .find(|kind| kind.program == name)
    }

    fn own(&self) -> u32 {
        match self.map {
            "uid_map" => rustix::process::getuid().as_raw(),
            _ => rustix::process::getgid().as_raw(),
        }
    }

    /// The subordinate ids of our user; both files go by users.
    fn ranges(&self) -> io::Result<Vec<(u32, u32)>> {
        let uid = rustix::process::getuid();
        let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
        let user = name_of(&passwd, uid.as_raw());
        let text = fs::read_to_string(self.file)
            .map_err(|error| io::Error::other(format!("read {}: {error}", self.file)))?;
        let ranges = ranges(&text, user, uid.as_raw());
        if ranges.is_empty() {
            let who = user.map_or_else(|| format!("uid {uid}"), |user| format!("user {user}"));
            return Err(io::Error::other(format!(
                "{} has no ids for {who}",
                self.file
            )));
        }
        Ok(ranges)
    }

    /// Writes the map of a process of our own, with ids of our own.
    fn write(&self, process: u32, map: &[u32]) -> io::Result<()> {
        if let Some((outside, count)) = stranger(map, self.own(), &self.ranges()?) {
            let file = self.file;
            return Err(io::Error::other(format!(
                "{count} ids from {outside} on are not all in {file}"
            )));
        }
        // Held open, so that no other process can take the number meanwhile.
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = rustix::fs::open(format!("/proc/{process}"), flags, Mode::empty())?;
        if fstat(&folder)?.st_uid != rustix::process::getuid().as_raw() {
            return Err(io::Error::other("the process is not ours"));
        }
        let text: String = map
            .chunks(3)
            .map(|line| format!("{} {} {}\n", line[0], line[1], line[2]))
            .collect();
        let file = openat(
            &folder,
            self.map,
            OFlags::WRONLY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        // The kernel takes a map in one piece.
        rustix::io::write(file, text.as_bytes())?;
        Ok(())
    }
}

/// The first part of a map that is neither our own id nor in our ranges: first id outside, and count.
fn stranger(map: &[u32], own: u32, ranges: &[(u32, u32)]) -> Option<(u32, u32)> {
    let is_ours = |outside: u32, count: u32| {
        let is_in = |(first, length): &(u32, u32)| {
            outside >= *first
                && u64::from(outside) + u64::from(count) <= u64::from(*first) + u64::from(*length)
        };
        (outside, count) == (own, 1) || ranges.iter().any(is_in)
    };
    map.chunks(3)
        .map(|part| (part[1], part[2]))
        .find(|(outside, count)| !is_ours(*outside, *count))
}

fn run(program: &str, process: Pid, map: &[u32]) -> io::Result<()> {
    let output = Command::new(program)
        .arg(process.as_raw_nonzero().to_string())
        .args(map.iter().map(u32::to_string))
        .stdin(Stdio::null())
        .output()
        .map_err(|error| io::Error::other(format!("run {program}: {error}")))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.lines().next().unwrap_or_default();
    Err(io::Error::other(format!("{program}: {said}")))
}

/// The user's name in `/etc/passwd`.
fn name_of(passwd: &str, uid: u32) -> Option<&str> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then_some(name)
    })
}

/// First id and count of each range of the user, by name or number.
fn ranges(text: &str, user: Option<&str>, uid: u32) -> Vec<(u32, u32)> {
    let range = |line: &str| {
        let mut fields = line.trim().split(':');
        let who = fields.next()?;
        let is_ours = user == Some(who) || who.parse() == Ok(uid);
        let range = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        (is_ours && range.1 > 0).then_some(range)
    };
    text.lines().filter_map(range).collect()
}

/// Inside, outside and count of each part, as the programs take them.
fn map(own: u32, ranges: &[(u32, u32)]) -> Vec<u32> {
    let mut map = vec![0, own, 1];
    let mut inside = 1_u32;
    for (first, count) in ranges {
        map.extend([inside, *first, *count]);
        inside = inside.saturating_add(*count);
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_found_by_name_and_by_number_and_follow_each_other_inside() {
        let text = "ann:100000:65536\n1000:1:999\nbob:5:5\nann:1001:64535\nann:7:0\nann:x:1\n";
        for (user, uid, expected) in [
            (
                Some("ann"),
                1000,
                vec![(100_000, 65536), (1, 999), (1001, 64535)],
            ),
            (None, 1000, vec![(1, 999)]),
            (Some("bob"), 7, vec![(5, 5)]),
            (Some("eve"), 8, vec![]),
        ] {
            assert_eq!(ranges(text, user, uid), expected, "{user:?} {uid}");
        }
        assert_eq!(
            map(1000, &[(1, 999), (1001, 64535)]),
            [0, 1000, 1, 1, 1, 999, 1000, 1001, 64535]
        );
    }

    #[test]
    fn nobody_maps_ids_that_are_not_its_own() {
        let ranges = [(1, 999), (1001, 64535)];
        for (map, expected) in [
            (&[0, 1000, 1, 1, 1, 999, 1000, 1001, 64535][..], None),
            (&[0, 0, 1], Some((0, 1))),
            (&[0, 1000, 2], Some((1000, 2))),
            (&[0, 1, 1000], Some((1, 1000))),
            (&[0, 1001, u32::MAX], Some((1001, u32::MAX))),
            (&[0, 1000, 1, 1, 65536, 1], Some((65536, 1))),
        ] {
            assert_eq!(stranger(map, 1000, &ranges), expected, "{map:?}");
        }
    }

    #[test]
    fn a_user_is_called_as_in_the_password_file() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nbroken\nann:x:1000:1000::/:/bin/sh\n";
        assert_eq!(name_of(passwd, 1000), Some("ann"));
        assert_eq!(name_of(passwd, 1), None);
    }
}
