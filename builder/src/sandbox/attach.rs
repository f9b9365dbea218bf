//! Where in the step's root does a mount go, and how does it get there? By descriptors only.
//!
//! A cache in the root is shared with steps that run at this very moment: what was a folder of it is a link to anywhere a moment later. So no place below the root is ever
//! named by a path of the builder's; it is found and made with the kernel keeping to the root, and what was found is what is mounted on.

use std::ffi::OsString;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{
    CWD, FileType, Mode, OFlags, ResolveFlags, fstat, mkdirat, openat, openat2, readlinkat,
};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};

use super::kernel::{Restriction, restrict};
use super::mount_points::Shape;
use crate::root::{MAX_LINKS, Root, parts};

/// Times that somebody else's changes may come between; far more than chance brings.
const ATTEMPTS: usize = 64;

/// The place of `target`, made if absent (which is so only inside the step's own mounts).
///
/// # Errors
/// The kernel's; ENOTDIR or EISDIR if something of another shape is there.
pub(super) fn point(inside: &Root, target: &Path, shape: Shape) -> Result<OwnedFd, Errno> {
    for _ in 0..ATTEMPTS {
        let found = match existing(inside, target) {
            // Somebody has put something there, or taken it away, in between.
            Err(Errno::NOENT) => match make(inside, target, shape) {
                Err(Errno::EXIST | Errno::NOENT) => continue,
                other => other?,
            },
            // A rename on the way to a `..`.
            Err(Errno::AGAIN) => continue,
            other => other?,
        };
        let is_directory = FileType::from_raw_mode(fstat(&found)?.st_mode) == FileType::Directory;
        return match (shape, is_directory) {
            (Shape::Directory, true) | (Shape::File, false) => Ok(found),
            (Shape::Directory, false) => Err(Errno::NOTDIR),
            (Shape::File, true) => Err(Errno::ISDIR),
        };
    }
    Err(Errno::AGAIN)
}

/// The place of `target`, which is there.
///
/// # Errors
/// The kernel's.
pub(super) fn existing(inside: &Root, target: &Path) -> Result<OwnedFd, Errno> {
    let way = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    openat2(inside, target, flags, Mode::empty(), way)
}

/// Makes what is missing of `target`, the target of a link that leads nowhere, too.
fn make(inside: &Root, target: &Path, shape: Shape) -> Result<OwnedFd, Errno> {
    let mut trail: Vec<OwnedFd> = Vec::new();
    let mut pending: Vec<OsString> = parts(target).rev().collect();
    let mut links = 0;
    while let Some(part) = pending.pop() {
        if part == ".." {
            trail.pop();
            continue;
        }
        let here: BorrowedFd<'_> = trail.last().map_or(inside.as_fd(), AsFd::as_fd);
        let found = match openat2(
            here,
            &part,
            OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
            ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS,
        ) {
            Err(Errno::NOENT) if pending.is_empty() && shape == Shape::File => {
                let flags = OFlags::RDONLY
                    | OFlags::CREATE
                    | OFlags::EXCL
                    | OFlags::NOFOLLOW
                    | OFlags::CLOEXEC;
                return openat(here, &part, flags, Mode::from_raw_mode(0o644));
            }
            Err(Errno::NOENT) => {
                mkdirat(here, &part, Mode::from_raw_mode(0o755))?;
                pending.push(part);
                continue;
            }
            other => other?,
        };
        if FileType::from_raw_mode(fstat(&found)?.st_mode) != FileType::Symlink {
            trail.push(found);
            continue;
        }
        links += 1;
        if links > MAX_LINKS {
            return Err(Errno::LOOP);
        }
        let to = readlinkat(&found, "", Vec::new())?.into_bytes();
        let to = PathBuf::from(OsString::from_vec(to));
        if to.is_absolute() {
            trail.clear();
        }
        pending.extend(parts(&to).rev());
    }
    match trail.pop() {
        Some(made) => Ok(made),
        None => rustix::io::fcntl_dupfd_cloexec(inside, 0),
    }
}

/// A path of the builder's that leads to just this place, for calls that take only paths.
pub(super) fn path_of(place: &OwnedFd) -> PathBuf {
    Path::new("/proc/self/fd").join(place.as_raw_fd().to_string())
}

/// Opens a path of the builder's own for [`bind`].
///
/// # Errors
/// The kernel's.
pub(super) fn source(path: &Path) -> Result<OwnedFd, Errno> {
    openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
}

/// Shows `source`, with all that is mounted below it, at `target`, too.
///
/// # Errors
/// The kernel's.
pub(super) fn bind(
    source: impl AsFd,
    target: impl AsFd,
    restrictions: &[Restriction],
) -> std::io::Result<()> {
    let tree = open_tree(
        &source,
        "",
        OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_RECURSIVE
            | OpenTreeFlags::AT_EMPTY_PATH,
    )?;
    for restriction in restrictions {
        restrict(&tree, *restriction)?;
    }
    let by_descriptor =
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(move_mount(&tree, "", &target, "", by_descriptor)?)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::sync::atomic::{AtomicBool, Ordering};

    use rustix::fs::{RenameFlags, renameat_with};

    use super::*;

    #[test]
    fn a_place_is_found_or_made_where_links_lead_inside_the_root() {
        let scratch = tempfile::tempdir().unwrap();
        let root = scratch.path().join("root");
        fs::create_dir_all(root.join("srv/data")).unwrap();
        fs::write(root.join("srv/file"), "").unwrap();
        for (link, target) in [
            ("absolute", "/srv"),
            ("up", "../../../srv"),
            ("dangling", "/new/deep"),
            ("loop", "loop"),
        ] {
            symlink(target, root.join(link)).unwrap();
        }
        let inside = Root::open(&root).unwrap();
        for (target, shape, expected) in [
            ("/", Shape::Directory, Ok("")),
            ("/srv/data", Shape::Directory, Ok("srv/data")),
            ("/absolute/a/b", Shape::File, Ok("srv/a/b")),
            ("/up/../c/d", Shape::Directory, Ok("c/d")),
            ("/dangling/e", Shape::File, Ok("new/deep/e")),
            ("/dangling", Shape::Directory, Ok("new/deep")),
            ("/../../f", Shape::File, Ok("f")),
            ("/loop/x", Shape::File, Err(Errno::LOOP)),
            ("/srv/file", Shape::Directory, Err(Errno::NOTDIR)),
            ("/srv/file/x", Shape::File, Err(Errno::NOTDIR)),
            ("/srv", Shape::File, Err(Errno::ISDIR)),
        ] {
            let found = point(&inside, Path::new(target), shape);
            let found = found.map(|found| fs::read_link(path_of(&found)).unwrap());
            let expected = expected.map(|path| root.join(path).components().collect::<PathBuf>());
            assert_eq!(found, expected, "{target}");
        }
        assert_eq!(
            fs::read_dir(scratch.path()).unwrap().count(),
            1,
            "nothing is made outside"
        );
    }

    #[test]
    fn nothing_is_made_or_emptied_outside_while_a_folder_becomes_a_link_and_back() {
        let scratch = tempfile::tempdir().unwrap();
        let (root, outside) = (scratch.path().join("root"), scratch.path().join("outside"));
        fs::create_dir_all(root.join("cache/folder")).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("file"), "precious").unwrap();
        symlink(&outside, root.join("cache/link")).unwrap();
        let inside = Root::open(&root).unwrap();
        let done = AtomicBool::new(false);
        let cache = source(&root.join("cache")).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    renameat_with(&cache, "folder", &cache, "link", RenameFlags::EXCHANGE).unwrap();
                }
            });
            for round in 0..2000 {
                for target in [
                    "/cache/folder/file".to_owned(),
                    format!("/cache/folder/{round}/new"),
                ] {
                    // What comes of it is a matter of luck; where it is, isn't.
                    let _ = point(&inside, Path::new(&target), Shape::File);
                }
            }
            done.store(true, Ordering::Relaxed);
        });
        assert_eq!(
            fs::read_to_string(outside.join("file")).unwrap(),
            "precious"
        );
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
    }
}
