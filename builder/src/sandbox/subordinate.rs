//! Which ids may this user map into a namespace, and who writes the maps? `/etc/subuid`, `/etc/subgid`, `newuidmap` and `newgidmap`.
//!
//! Inside, 0 is our own id, and the subordinate ids follow from 1 on. The kernel lets nobody but the owner of those ids write such a map, so
//! it is left to the two programs that have that right by file capabilities or a set-user-ID bit.

use std::fs;
use std::io;
use std::process::{Command, Stdio};

use rustix::process::Pid;

/// The files and programs of one kind of id.
struct Kind {
    file: &'static str,
    program: &'static str,
}

const USERS: Kind = Kind {
    file: "/etc/subuid",
    program: "newuidmap",
};
const GROUPS: Kind = Kind {
    file: "/etc/subgid",
    program: "newgidmap",
};

/// Gives `process`, which is in a new user namespace of this user, our own id as 0 and the subordinate ones from 1 on.
///
/// # Errors
/// If there are no such ids, or the programs are missing or refuse; the text says which.
pub(super) fn write_maps(process: Pid) -> io::Result<()> {
    let (uid, gid) = (rustix::process::getuid(), rustix::process::getgid());
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let user = name_of(&passwd, uid.as_raw());
    for (kind, own) in [(USERS, uid.as_raw()), (GROUPS, gid.as_raw())] {
        let text = fs::read_to_string(kind.file)
            .map_err(|error| io::Error::other(format!("read {}: {error}", kind.file)))?;
        let ranges = ranges(&text, user, uid.as_raw());
        if ranges.is_empty() {
            let who = user.map_or_else(|| format!("uid {uid}"), |user| format!("user {user}"));
            return Err(io::Error::other(format!(
                "{} has no ids for {who}",
                kind.file
            )));
        }
        run(kind.program, process, &map(own, &ranges))?;
    }
    Ok(())
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
    fn a_user_is_called_as_in_the_password_file() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nbroken\nann:x:1000:1000::/:/bin/sh\n";
        assert_eq!(name_of(passwd, 1000), Some("ann"));
        assert_eq!(name_of(passwd, 1), None);
    }
}
