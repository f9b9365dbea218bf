//! Which ids does a name in `USER` or `--chown` stand for? Read from the root's own `/etc/passwd` and `/etc/group`.

use std::path::Path;

use super::{Root, RootError};

/// Who a step runs as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// User ID.
    pub uid: u32,
    /// Group ID.
    pub gid: u32,
    /// All groups, the first one included.
    pub groups: Vec<u32>,
    /// Home directory; `/` if the user has no entry.
    pub home: String,
}

struct PasswdEntry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

struct GroupEntry<'a> {
    name: &'a str,
    gid: u32,
    members: Vec<&'a str>,
}

impl Root {
    /// Who `text` (`name|uid[:group|gid]`, empty for root) is in this root. A number need not have an entry; supplementary groups come from
    /// `/etc/group` if no group is named.
    ///
    /// # Errors
    /// User, if a name has no entry.
    pub fn user(&self, text: &str) -> Result<User, RootError> {
        user(text, &self.text("/etc/passwd")?, &self.text("/etc/group")?)
    }

    /// The owner that `--chown=user[:group]` stands for. Without a group, a number is also the group's number, and a name brings its own group.
    ///
    /// # Errors
    /// User, if a name has no entry.
    pub fn owner(&self, text: &str) -> Result<(u32, u32), RootError> {
        owner(text, &self.text("/etc/passwd")?, &self.text("/etc/group")?)
    }

    fn text(&self, path: &str) -> Result<String, RootError> {
        let content = self.read(Path::new(path))?.unwrap_or_default();
        Ok(String::from_utf8_lossy(&content).into_owned())
    }
}

fn user(text: &str, passwd: &str, group: &str) -> Result<User, RootError> {
    let (name, group_name) = split(text);
    let number = if name.is_empty() {
        Some(0)
    } else {
        number(name)
    };
    let entry =
        passwd_entries(passwd).find(|entry| entry.name == name || Some(entry.uid) == number);
    let uid = entry
        .as_ref()
        .map(|entry| entry.uid)
        .or(number)
        .ok_or_else(|| RootError::NoUser(name.to_owned()))?;
    let mut groups = Vec::new();
    let gid = match group_name {
        Some(group_name) => group_id(group_name, group)?,
        None => {
            if let Some(entry) = &entry
                && !name.is_empty()
            {
                groups.extend(
                    group_entries(group)
                        .filter(|group| group.members.contains(&entry.name))
                        .map(|group| group.gid),
                );
            }
            entry.as_ref().map_or(0, |entry| entry.gid)
        }
    };
    groups.retain(|other| *other != gid);
    groups.insert(0, gid);
    let home = entry
        .map(|entry| entry.home)
        .filter(|home| !home.is_empty())
        .unwrap_or("/")
        .to_owned();
    Ok(User {
        uid,
        gid,
        groups,
        home,
    })
}

fn owner(text: &str, passwd: &str, group: &str) -> Result<(u32, u32), RootError> {
    let (name, group_name) = split(text);
    let (uid, own_group) = match number(name) {
        Some(uid) => (uid, uid),
        None if name.is_empty() => (0, 0),
        None => passwd_entries(passwd)
            .find(|entry| entry.name == name)
            .map(|entry| (entry.uid, entry.gid))
            .ok_or_else(|| RootError::NoUser(name.to_owned()))?,
    };
    let gid = match group_name {
        None => own_group,
        // a number is one, also if a group is called so
        Some(group_name) => match number(group_name) {
            Some(gid) => gid,
            None => group_id(group_name, group)?,
        },
    };
    Ok((uid, gid))
}

/// The id that needs no entry: a number, and root is root in images without `/etc/passwd` too.
fn number(name: &str) -> Option<u32> {
    match name {
        "root" => Some(0),
        name => name.parse().ok(),
    }
}

/// A name and, after the first `:`, a group; an empty group counts as none.
fn split(text: &str) -> (&str, Option<&str>) {
    match text.split_once(':') {
        Some((name, group)) => (name, Some(group).filter(|group| !group.is_empty())),
        None => (text, None),
    }
}

fn group_id(name: &str, group: &str) -> Result<u32, RootError> {
    let named = group_entries(group)
        .find(|entry| entry.name == name)
        .map(|entry| entry.gid);
    named
        .or_else(|| number(name))
        .ok_or_else(|| RootError::NoGroup(name.to_owned()))
}

/// Malformed lines are skipped, as libc does.
fn passwd_entries(text: &str) -> impl Iterator<Item = PasswdEntry<'_>> {
    text.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let [name, _, uid, gid, _, home, ..] = fields.as_slice() else {
            return None;
        };
        Some(PasswdEntry {
            name,
            uid: uid.parse().ok()?,
            gid: gid.parse().ok()?,
            home,
        })
    })
}

fn group_entries(text: &str) -> impl Iterator<Item = GroupEntry<'_>> {
    text.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let [name, _, gid, members, ..] = fields.as_slice() else {
            return None;
        };
        Some(GroupEntry {
            name,
            gid: gid.parse().ok()?,
            members: members.split(',').map(str::trim).collect(),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nbroken\nann:x:1000:1001::/home/ann:/bin/sh\nbob:x:1002:1002::/:/bin/sh\n";
    const GROUP: &str = "root:x:0:\nann:x:1001:\nwheel:x:10:root,ann\nbob:x:1002:\n77:x:700:\n";

    #[test]
    fn a_user_is_found_by_name_or_number_and_brings_groups_only_if_none_is_named() {
        for (text, uid, gid, groups, home) in [
            ("", 0, 0, vec![0], "/root"),
            ("root", 0, 0, vec![0, 10], "/root"),
            ("ann", 1000, 1001, vec![1001, 10], "/home/ann"),
            ("1000", 1000, 1001, vec![1001, 10], "/home/ann"),
            ("ann:bob", 1000, 1002, vec![1002], "/home/ann"),
            ("ann:5", 1000, 5, vec![5], "/home/ann"),
            ("4711", 4711, 0, vec![0], "/"),
            ("4711:4712", 4711, 4712, vec![4712], "/"),
            ("ann:", 1000, 1001, vec![1001, 10], "/home/ann"),
        ] {
            let expected = User {
                uid,
                gid,
                groups,
                home: home.to_owned(),
            };
            assert_eq!(user(text, PASSWD, GROUP).unwrap(), expected, "{text:?}");
        }
    }

    #[test]
    fn an_owner_without_a_group_takes_the_same_number_or_the_names_own_group() {
        for (text, expected) in [
            ("ann", (1000, 1001)),
            ("1000", (1000, 1000)),
            ("ann:wheel", (1000, 10)),
            ("5:6", (5, 6)),
            (":wheel", (0, 10)),
            ("5:77", (5, 77)),
            ("root:root", (0, 0)),
        ] {
            assert_eq!(owner(text, PASSWD, GROUP).unwrap(), expected, "{text:?}");
        }
    }

    #[test]
    fn root_needs_no_entry() {
        assert_eq!(owner("root", "", "").unwrap(), (0, 0));
        assert_eq!(owner("7:root", "", "").unwrap(), (7, 0));
        let root = user("root:root", "", "").unwrap();
        assert_eq!((root.uid, root.gid, root.groups), (0, 0, vec![0]));
    }

    #[test]
    fn unknown_names_are_told_by_name() {
        assert_eq!(
            user("eve", PASSWD, GROUP).unwrap_err().to_string(),
            "user \"eve\" is neither a number nor in /etc/passwd of the image"
        );
        assert_eq!(
            owner("ann:x", PASSWD, "").unwrap_err().to_string(),
            "group \"x\" is neither a number nor in /etc/group of the image"
        );
    }
}
