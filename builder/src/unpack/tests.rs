use std::ffi::OsString;
use std::io::Write as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};

use flate2::Compression;
use flate2::write::GzEncoder;
use rustix::fs::{fgetxattr, lgetxattr};
use tar::{EntryType, Header};

use super::*;

const MARKS: XattrPrefix = XattrPrefix::User;

/// Owners, devices and the marks of overlays can be set by root only.
fn is_root() -> bool {
    crate::fixtures::is_root("to give files to other users")
}

/// A tar under construction.
#[derive(Default)]
struct Tar(Vec<u8>);

impl Tar {
    fn raw(
        mut self,
        kind: EntryType,
        name: &[u8],
        link: &[u8],
        mode: u32,
        owner: (u64, u64),
        content: &[u8],
    ) -> Self {
        let mut header = Header::new_ustar();
        let bytes = header.as_mut_bytes();
        bytes[..name.len()].copy_from_slice(name);
        bytes[157..157 + link.len()].copy_from_slice(link);
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(owner.0);
        header.set_gid(owner.1);
        header.set_mtime(1_700_000_000);
        header.set_size(content.len() as u64);
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    fn file(self, name: &str, content: &[u8]) -> Self {
        self.raw(
            EntryType::Regular,
            name.as_bytes(),
            b"",
            0o644,
            (0, 0),
            content,
        )
    }

    fn folder(self, name: &str, mode: u32) -> Self {
        self.raw(
            EntryType::Directory,
            name.as_bytes(),
            b"",
            mode,
            (0, 0),
            b"",
        )
    }

    fn symlink(self, name: &str, target: &str) -> Self {
        self.raw(
            EntryType::Symlink,
            name.as_bytes(),
            target.as_bytes(),
            0o777,
            (0, 0),
            b"",
        )
    }

    fn link(self, name: &str, target: &str) -> Self {
        self.raw(
            EntryType::Link,
            name.as_bytes(),
            target.as_bytes(),
            0o644,
            (0, 0),
            b"",
        )
    }

    fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut body = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let length = (rest..)
                .find(|length| length.to_string().len() + rest == *length)
                .unwrap();
            body.extend_from_slice(format!("{length} {key}=").as_bytes());
            body.extend_from_slice(value);
            body.push(b'\n');
        }
        self.raw(EntryType::XHeader, b"pax", b"", 0o644, (0, 0), &body)
    }

    fn gzip(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
        gzip.write_all(&self.0).unwrap();
        gzip.finish().unwrap()
    }
}

fn unpack(folder: &Path, name: &str, blob: &[u8]) -> Result<UnpackedLayer, UnpackError> {
    unpack_layer(
        blob,
        (Digest::of(blob), None),
        &folder.join(name),
        MARKS,
        DEFAULT_LIMITS,
    )
}

/// Unpacks and settles the tars, lowest first; all their folders, top first.
fn stack(folder: &Path, tars: Vec<Tar>) -> Result<Vec<PathBuf>, UnpackError> {
    let mut lowers = Vec::new();
    for (index, tar) in tars.into_iter().enumerate() {
        let layer = unpack(folder, &index.to_string(), &tar.gzip())?.settle(&lowers)?;
        lowers.insert(0, layer);
    }
    Ok(lowers)
}

/// One line per entry: `path kind mode uid:gid size|target|device [opaque]`.
fn listing(root: &Path) -> Vec<String> {
    fn walk(root: &Path, folder: &Path, lines: &mut Vec<String>) {
        let mut names: Vec<OsString> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        for name in names {
            let path = folder.join(&name);
            let stat = fs::symlink_metadata(&path).unwrap();
            let kind = stat.file_type();
            let what = if kind.is_dir() {
                let handle = fs::File::open(&path).unwrap();
                let mut value = [0; 1];
                match fgetxattr(&handle, MARKS.opaque(), &mut value) {
                    Ok(_) => "folder, opaque".to_owned(),
                    Err(_) => "folder".to_owned(),
                }
            } else if kind.is_symlink() {
                format!("-> {}", fs::read_link(&path).unwrap().display())
            } else if kind.is_char_device() {
                format!("character device {}", stat.rdev())
            } else if kind.is_fifo() {
                "fifo".to_owned()
            } else {
                format!(
                    "{:?}, {} names",
                    String::from_utf8_lossy(&fs::read(&path).unwrap()),
                    stat.nlink()
                )
            };
            let inside = path.strip_prefix(root).unwrap().display().to_string();
            let owner = match (stat.uid(), stat.gid()) {
                (0, 0) => String::new(),
                (uid, gid) => format!(" {uid}:{gid}"),
            };
            lines.push(format!("{inside} {:o}{owner} {what}", stat.mode() & 0o7777));
            if kind.is_dir() {
                walk(root, &path, lines);
            }
        }
    }
    let mut lines = Vec::new();
    walk(root, root, &mut lines);
    lines
}

#[test]
fn every_kind_of_entry_arrives_with_mode_owner_time_and_attributes() {
    if !is_root() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let long = format!("long/{}", "n".repeat(200));
    let capability =
        b"\x01\x00\x00\x02\x00\x0a\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00";
    let tar = Tar::default()
        .folder("./", 0o755)
        .raw(
            EntryType::Directory,
            b"home/",
            b"",
            0o2750,
            (1000, 100),
            b"",
        )
        .raw(
            EntryType::Regular,
            b"home/tool",
            b"",
            0o4755,
            (1000, 100),
            b"run",
        )
        .link("home/again", "home/tool")
        .pax(&[
            ("SCHILY.xattr.security.capability", capability),
            ("SCHILY.xattr.user.note", b"a\nb=c"),
            ("mtime", b"1600000000.5"),
        ])
        .file("cap", b"c")
        .pax(&[("path", long.as_bytes())])
        .file("short", b"l")
        .symlink("link", "/etc/passwd")
        .raw(EntryType::Fifo, b"pipe", b"", 0o600, (0, 0), b"")
        .raw(EntryType::Regular, b"/absolute", b"", 0o600, (0, 0), b"a");
    let layer = unpack(folder.path(), "layer", &tar.gzip())
        .unwrap()
        .settle(&[])
        .unwrap();
    assert_eq!(
        listing(&layer),
        [
            "absolute 600 \"a\", 1 names".to_owned(),
            "cap 644 \"c\", 1 names".to_owned(),
            "home 2750 1000:100 folder".to_owned(),
            "home/again 4755 1000:100 \"run\", 2 names".to_owned(),
            "home/tool 4755 1000:100 \"run\", 2 names".to_owned(),
            "link 777 -> /etc/passwd".to_owned(),
            "long 755 folder".to_owned(),
            format!("{long} 644 \"l\", 1 names"),
            "pipe 600 fifo".to_owned(),
        ]
    );
    let mut value = [0; 64];
    let length = lgetxattr(layer.join("cap"), "user.note", &mut value).unwrap();
    assert_eq!(&value[..length], b"a\nb=c");
    let length = lgetxattr(layer.join("cap"), "security.capability", &mut value).unwrap();
    assert_eq!(&value[..length], capability);
    let mtime = |name: &str| {
        let stat = fs::symlink_metadata(layer.join(name)).unwrap();
        (stat.mtime(), stat.mtime_nsec())
    };
    assert_eq!(mtime("cap"), (1_600_000_000, 500_000_000));
    assert_eq!(
        [mtime("home"), mtime("link"), mtime("pipe"), mtime("")],
        [(1_700_000_000, 0); 4]
    );
}

#[test]
fn whiteouts_hide_lower_layers_only_whatever_the_order() {
    if !is_root() {
        return;
    }
    let tar = Tar::default()
        .folder("etc", 0o755)
        .file("etc/.wh.gone", b"")
        .file("etc/kept", b"k")
        .file("etc/.wh.kept", b"")
        .folder("etc/folder", 0o700)
        .file("etc/folder/in", b"i")
        .file("etc/.wh.folder", b"")
        .file("etc/.wh.back", b"")
        .folder("etc/back", 0o711)
        .file("etc/.wh.implied", b"")
        .file("etc/implied/file", b"f")
        .file("etc/.wh..wh.plnk", b"")
        .folder("var", 0o755)
        .file("var/.wh..wh..opq", b"")
        .file("var/new", b"n")
        .file(".wh.lib", b"")
        .symlink("lib", "usr/lib");
    let folder = tempfile::tempdir().unwrap();
    let lowers = stack(folder.path(), vec![tar]).unwrap();
    assert_eq!(
        listing(&lowers[0]),
        [
            "etc 755 folder",
            "etc/back 711 folder, opaque",
            "etc/folder 700 folder, opaque",
            "etc/folder/in 644 \"i\", 1 names",
            "etc/gone 0 character device 0",
            "etc/implied 755 folder, opaque",
            "etc/implied/file 644 \"f\", 1 names",
            "etc/kept 644 \"k\", 1 names",
            "lib 777 -> usr/lib",
            "var 755 folder, opaque",
            "var/new 644 \"n\", 1 names",
        ]
    );
}

#[test]
fn a_later_entry_replaces_an_earlier_one_of_any_kind() {
    if !is_root() {
        return;
    }
    let tar = Tar::default()
        .folder("a", 0o755)
        .file("a/b", b"1")
        .file("a/c", b"2")
        .file("a", b"now a file")
        .symlink("s", "elsewhere")
        .folder("s", 0o700)
        .file("s/x", b"3")
        .symlink("s", "a")
        .file("f", b"4")
        .folder("f", 0o755)
        .folder("kept", 0o755)
        .file("kept/in", b"5")
        .folder("kept", 0o711)
        .file("twice", b"old")
        .link("other", "twice")
        .file("twice", b"new");
    let folder = tempfile::tempdir().unwrap();
    let lowers = stack(folder.path(), vec![tar]).unwrap();
    assert_eq!(
        listing(&lowers[0]),
        [
            "a 644 \"now a file\", 1 names",
            "f 755 folder",
            "kept 711 folder",
            "kept/in 644 \"5\", 1 names",
            "other 644 \"old\", 1 names",
            "s 777 -> a",
            "twice 644 \"new\", 1 names",
        ]
    );
}

#[test]
fn links_lead_where_they_would_within_the_root_and_never_outside() {
    if !is_root() {
        return;
    }
    let outside = tempfile::tempdir().unwrap();
    let target = outside.path().to_str().unwrap();
    let inside = target.trim_start_matches('/');
    let tar = Tar::default()
        .symlink("absolute", target)
        .file("absolute/file", b"1")
        .symlink("up", "../../../../../../..")
        .file("up/file", b"2")
        .symlink("lib", "usr/lib")
        .folder("lib/modules", 0o700)
        .file("dots/../plain", b"3");
    let folder = tempfile::tempdir().unwrap();
    let lowers = stack(folder.path(), vec![tar]).unwrap();
    let read = |path: &str| fs::read(lowers[0].join(path)).unwrap();
    assert_eq!(read(&format!("{inside}/file")), b"1");
    assert_eq!(
        (read("file"), read("plain")),
        (b"2".to_vec(), b"3".to_vec())
    );
    assert!(lowers[0].join("usr/lib/modules").is_dir());
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
}

#[test]
fn entries_that_leave_the_root_or_make_no_sense_are_the_authors_fault_and_leave_nothing() {
    if !is_root() {
        return;
    }
    let (deep, many) = ("x/".repeat(2100), "x/".repeat(257));
    let long = "n".repeat(256);
    for (tar, why) in [
        (Tar::default().file("../x", b""), "it leaves the root"),
        (Tar::default().file("a/../../x", b""), "it leaves the root"),
        (
            Tar::default().link("x", "../../etc/passwd"),
            "it leaves the root",
        ),
        (
            Tar::default().file("x", b"").file("x/y", b""),
            "a part of its path is no folder",
        ),
        (
            Tar::default().symlink("x", "x").file("x/y", b""),
            "its path has too many symbolic links",
        ),
        (
            Tar::default().folder("d", 0o755).link("x", "d"),
            "its target is a folder",
        ),
        (Tar::default().file("d/.wh...", b""), "it hides no name"),
        (
            Tar::default().symlink("/", "x"),
            "only a folder can be the root",
        ),
        (
            Tar::default()
                .pax(&[("path", deep.as_bytes())])
                .file("x", b""),
            "its path is longer than 4096 bytes",
        ),
        (
            Tar::default()
                .pax(&[("path", many.as_bytes())])
                .file("x", b""),
            "its path has more than 256 names",
        ),
        (
            Tar::default()
                .pax(&[("path", long.as_bytes())])
                .file("x", b""),
            "its path has a name longer than 255 bytes",
        ),
        (
            Tar::default().symlink("x", ""),
            "it is a symbolic link to nothing",
        ),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let error = unpack(folder.path(), "layer", &tar.gzip()).unwrap_err();
        assert!(
            matches!(&error, UnpackError::Entry { why: got, .. } if *got == why),
            "{error:?}, not {why}"
        );
        assert_eq!(error.class(), Class::CONTENT);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "{why}");
    }
}

#[test]
fn an_archive_that_is_broken_or_unsupported_says_so_and_leaves_nothing() {
    if !is_root() {
        return;
    }
    let whole = Tar::default().file("file", &vec![7; 100_000]).gzip();
    let cut = whole[..whole.len() - 20].to_vec();
    let mut spoiled = Tar::default().file("file", b"content").0;
    spoiled[0] = b'F';
    let huge = Tar::default().raw(
        EntryType::XHeader,
        b"pax",
        b"",
        0,
        (0, 0),
        &vec![b'x'; (1 << 20) + 1],
    );
    let pax = |records: &[(&str, &[u8])]| Tar::default().pax(records).file("x", b"").gzip();
    for (blob, class, message) in [
        (cut, Class::Transient, "read the layer"),
        (
            spoiled,
            Class::CONTENT,
            "malformed tar: checksum of a header is wrong",
        ),
        (
            huge.gzip(),
            Class::CONTENT,
            "malformed tar: the extended headers of an entry are larger than 1 MiB",
        ),
        (
            pax(&[("GNU.sparse.major", b"1")]),
            Class::CONTENT,
            "malformed tar: sparse files aren't supported",
        ),
        (
            pax(&[("uid", b"4294967295")]),
            Class::CONTENT,
            "malformed tar: owner is out of range",
        ),
        (
            b"\xfd7zXZ\0....".to_vec(),
            Class::CONTENT,
            "xz, which no image may use",
        ),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let error = unpack(folder.path(), "layer", &blob).unwrap_err();
        let chain = crate::error::chain(&error);
        assert!(chain.contains(message), "{chain}, not {message}");
        assert_eq!(error.class(), class, "{chain}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "{message}");
    }
}

#[test]
fn a_layer_with_another_digest_gets_no_name() {
    if !is_root() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut blob = Tar::default().file("file", b"content").gzip();
    let digest = Digest::of(&blob);
    // Behind the compressed stream, where inflating doesn't look.
    blob.extend_from_slice(&[0; 16]);
    let error = unpack_layer(
        &blob[..],
        (digest, None),
        &folder.path().join("layer"),
        MARKS,
        DEFAULT_LIMITS,
    )
    .unwrap_err();
    assert!(error.class() != Class::INTERNAL, "{error:?}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn a_layer_with_another_diff_id_is_told_with_both_and_gets_no_name() {
    if !is_root() {
        return;
    }
    let mut bare = Tar::default().file("file", b"content").0;
    bare.resize(bare.len() + 1024, 0);
    // What follows the archive's end belongs to the diff ID, too.
    bare.resize(bare.len() + (1 << 20), 0);
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(&bare).unwrap();
    let zstd = zstd::encode_all(&bare[..], 1).unwrap();
    let (right, wrong) = (Digest::of(&bare), Digest::of(b"other"));
    for blob in [gzip.finish().unwrap(), zstd, bare] {
        let folder = tempfile::tempdir().unwrap();
        let layer = Digest::of(&blob);
        let unpack = |diff_id| {
            let directory = folder.path().join("layer");
            let digests = (layer, Some(diff_id));
            unpack_layer(&blob[..], digests, &directory, MARKS, DEFAULT_LIMITS)
        };
        let error = unpack(wrong).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!(
                "the layer {layer} unpacks to {right}, but the image's configuration says {wrong}"
            )
        );
        assert_eq!(error.class(), Class::CONTENT);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        unpack(right).unwrap();
    }
}

#[test]
fn a_layer_larger_than_its_limits_is_stopped() {
    if !is_root() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let blob = Tar::default()
        .file("one", &[0; 600])
        .file("two", &[0; 600])
        // ten folders with 100 bytes of paths
        .file("a/a/a/a/a/a/a/a/a/a/f", b"")
        .gzip();
    for (limits, unit) in [
        (
            Limits {
                bytes: 1000,
                ..DEFAULT_LIMITS
            },
            "bytes",
        ),
        (
            Limits {
                entries: 1,
                ..DEFAULT_LIMITS
            },
            "entries",
        ),
        (
            Limits {
                entries: 11,
                ..DEFAULT_LIMITS
            },
            "entries",
        ),
        (
            Limits {
                path_bytes: 99,
                ..DEFAULT_LIMITS
            },
            "bytes of paths",
        ),
    ] {
        let error = unpack_layer(
            &blob[..],
            (Digest::of(&blob), None),
            &folder.path().join("l"),
            MARKS,
            limits,
        )
        .unwrap_err();
        assert!(
            matches!(error, UnpackError::TooLarge { unit: got, .. } if got == unit),
            "{error:?}"
        );
    }
}

#[test]
fn many_small_headers_of_one_entry_are_as_limited_as_a_large_one() {
    let folder = tempfile::tempdir().unwrap();
    let value = vec![b'x'; 4000];
    let mut tar = Tar::default();
    for _ in 0..400 {
        tar = tar.pax(&[("SCHILY.xattr.user.x", &value)]);
    }
    let blob = tar.file("f", b"").gzip();
    let unpacked = unpack_layer(
        &blob[..],
        (Digest::of(&blob), None),
        &folder.path().join("l"),
        MARKS,
        DEFAULT_LIMITS,
    );
    let error = crate::error::chain(&unpacked.unwrap_err());
    assert!(error.contains("larger than 1 MiB"), "{error}");
}

#[test]
fn what_is_skipped_counts_towards_the_limit() {
    let folder = tempfile::tempdir().unwrap();
    // a folder has no content, whatever its header says
    let nothing = vec![0; 100_000];
    let blob = Tar::default()
        .raw(EntryType::Directory, b"d", b"", 0o755, (0, 0), &nothing)
        .gzip();
    let limits = Limits {
        bytes: 1000,
        entries: 10,
        ..DEFAULT_LIMITS
    };
    let unpacked = unpack_layer(
        &blob[..],
        (Digest::of(&blob), None),
        &folder.path().join("l"),
        MARKS,
        limits,
    );
    let error = unpacked.unwrap_err();
    assert_eq!(error.class(), Class::CONTENT, "{error:?}");
}

#[test]
fn a_tar_brings_no_marks_of_overlayfs_along() {
    if !is_root() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let tar = Tar::default()
        .pax(&[
            ("SCHILY.xattr.user.overlay.opaque", b"y"),
            ("SCHILY.xattr.user.overlay.redirect", b"/etc"),
        ])
        .folder("d", 0o755);
    let lowers = stack(folder.path(), vec![tar]).unwrap();
    assert_eq!(listing(&lowers[0]), ["d 755 folder"]);
}

#[test]
fn implied_folders_and_links_take_after_the_layers_below() {
    if !is_root() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let base = Tar::default()
        .folder("./", 0o711)
        .raw(EntryType::Directory, b"srv", b"", 0o1770, (7, 8), b"")
        .raw(EntryType::Directory, b"srv/data", b"", 0o750, (9, 9), b"")
        .raw(
            EntryType::Regular,
            b"srv/data/big",
            b"",
            0o4711,
            (5, 6),
            b"big",
        )
        .folder("old", 0o700)
        .file("old/gone", b"g");
    let middle = Tar::default().file(".wh.old", b"");
    let top = Tar::default()
        .file("srv/new", b"n")
        .link("bin/big", "srv/data/big")
        .link("bin/again", "bin/big")
        .file("old/fresh", b"f");
    let lowers = stack(folder.path(), vec![base, middle, top]).unwrap();
    assert_eq!(
        listing(&lowers[0]),
        [
            "bin 755 folder",
            "bin/again 4711 5:6 \"big\", 3 names",
            "bin/big 4711 5:6 \"big\", 3 names",
            "old 755 folder",
            "old/fresh 644 \"f\", 1 names",
            "srv 1770 7:8 folder",
            "srv/data 750 9:9 folder",
            "srv/data/big 4711 5:6 \"big\", 3 names",
            "srv/new 644 \"n\", 1 names",
        ]
    );
    assert_eq!(fs::metadata(&lowers[0]).unwrap().mode() & 0o7777, 0o711);
    assert_eq!(
        fs::metadata(lowers[0].join("srv")).unwrap().mtime(),
        1_700_000_000
    );

    for (tar, why) in [
        (
            Tar::default().link("x", "old/gone"),
            "the target of this hard link doesn't exist",
        ),
        (
            Tar::default().link("x", "nowhere"),
            "the target of this hard link doesn't exist",
        ),
        (
            Tar::default().link("x", "srv"),
            "the target of this hard link is no file in a lower layer",
        ),
    ] {
        let layer = unpack(folder.path(), why, &tar.gzip()).unwrap();
        let error = layer.settle(&lowers[1..]).unwrap_err();
        assert!(
            matches!(&error, UnpackError::Entry { why: got, .. } if *got == why),
            "{error:?}"
        );
        fs::remove_dir_all(folder.path().join(why)).unwrap();
    }
}

#[test]
fn entries_that_imply_many_deep_folders_take_no_longer_than_their_folders_are_many() {
    if !is_root() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut tar = Tar::default();
    for number in 0..60 {
        let path = format!("{number:04}{}/f", "/a".repeat(254));
        tar = tar.pax(&[("path", path.as_bytes())]).file("f", b"f");
    }
    let begun = std::time::Instant::now();
    let layer = unpack(folder.path(), "layer", &tar.gzip()).unwrap();
    assert_eq!(layer.implied.len(), 60 * 255 + 1);
    let lower = Tar::default().folder("0059", 0o711).gzip();
    let lower = unpack(folder.path(), "lower", &lower).unwrap();
    let lower = lower.settle(&[]).unwrap();
    let settled = layer.settle(&[lower]).unwrap();
    let mode = |path: &str| fs::metadata(settled.join(path)).unwrap().mode() & 0o7777;
    assert_eq!(
        (mode("0058"), mode("0059"), mode("0059/a")),
        (0o755, 0o711, 0o755)
    );
    // far less on any machine; each from the root again would be a million folders
    assert!(begun.elapsed().as_secs() < 60, "{:?}", begun.elapsed());
}

#[test]
fn what_can_have_no_content_has_none_whatever_its_size_says() {
    if !is_root() {
        return;
    }
    for (kind, name, link) in [
        (b'5', "d", ""),
        (b'1', "l", "a"),
        (b'2', "s", "a"),
        (b'6', "p", ""),
        // from before POSIX
        (0, "old/", ""),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let mut tar = Tar::default().file("a", b"a");
        let at = tar.0.len();
        tar = tar.raw(
            EntryType::Regular,
            name.as_bytes(),
            link.as_bytes(),
            0o755,
            (0, 0),
            b"",
        );
        let mut header = Header::from_byte_slice(&tar.0[at..at + 512]).clone();
        header.as_mut_bytes()[156] = kind;
        header.set_size(512);
        header.set_cksum();
        tar.0[at..at + 512].copy_from_slice(header.as_bytes());
        let lowers = stack(folder.path(), vec![tar.file("seen", b"s")]).unwrap();
        assert!(lowers[0].join("seen").exists(), "{kind:?}");
        assert!(lowers[0].join(name).symlink_metadata().is_ok(), "{kind:?}");
    }
}

#[test]
fn whose_fault_a_refusal_of_the_kernel_is_is_told_by_what_was_done() {
    let write = |operation, errno| UnpackError::Write {
        operation,
        path: PathBuf::from("f"),
        source: io::Error::from_raw_os_error(errno),
    };
    for (operation, errno, class) in [
        ("write", libc::ENOSPC, Class::Transient),
        ("write", libc::EDQUOT, Class::Transient),
        ("write", libc::EIO, Class::Transient),
        ("create", libc::EMFILE, Class::Transient),
        ("create", libc::ENAMETOOLONG, Class::CONTENT),
        ("create", libc::EINVAL, Class::CONTENT),
        ("create", libc::EACCES, Class::INTERNAL),
        (XATTRS, libc::ENOSPC, Class::CONTENT),
        (XATTRS, libc::EOPNOTSUPP, Class::CONTENT),
        (XATTRS, libc::EPERM, Class::CONTENT),
        (XATTRS, libc::EIO, Class::Transient),
    ] {
        let error = write(operation, errno);
        assert_eq!(error.class(), class, "{operation}: {errno}");
    }
}

#[test]
fn attributes_that_a_kind_of_file_cannot_have_are_left_out_and_impossible_ones_are_the_authors() {
    if !is_root() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let user = |tar: Tar| tar.pax(&[("SCHILY.xattr.user.x", b"v")]);
    let tar = user(user(Tar::default()).symlink("s", "x")).raw(
        EntryType::Fifo,
        b"p",
        b"",
        0o600,
        (0, 0),
        b"",
    );
    let lowers = stack(folder.path(), vec![tar]).unwrap();
    assert!(lowers[0].join("p").symlink_metadata().is_ok());
    let large = vec![b'v'; 60_000];
    for (name, value) in [
        ("SCHILY.xattr.nonsense.x", &b"v"[..]),
        ("SCHILY.xattr.security.capability", b"v"),
        ("SCHILY.xattr.user.large", &large),
    ] {
        let tar = Tar::default().pax(&[(name, value)]).file("f", b"f");
        match unpack(folder.path(), "layer", &tar.gzip()) {
            // Some file systems have room for it.
            Ok(_) => assert_eq!(value.len(), large.len()),
            Err(error) => {
                let told = error.to_string();
                assert_eq!(told, "set the extended attributes of f", "{name}");
                assert_eq!(error.class(), Class::CONTENT, "{name}");
            }
        }
    }
}

#[test]
fn a_link_to_what_its_layer_hides_since_has_the_content_and_the_old_name_stays_hidden() {
    if !is_root() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let base = Tar::default()
        .folder("etc", 0o755)
        .raw(EntryType::Regular, b"etc/one", b"", 0o640, (5, 6), b"1")
        .file("etc/two", b"2")
        .folder("srv", 0o755)
        .file("srv/three", b"3")
        .file("four", b"4");
    let top = Tar::default()
        .folder("etc", 0o755)
        .link("a", "etc/one")
        .link("b", "etc/one")
        .file("etc/.wh.one", b"")
        .folder("srv", 0o755)
        .link("c", "srv/three")
        .file("srv/.wh..wh..opq", b"")
        // The layer's own link stays; the mark is about what lies below.
        .link("d", "four")
        .file(".wh.d", b"");
    let lowers = stack(folder.path(), vec![base, top]).unwrap();
    assert_eq!(
        listing(&lowers[0]),
        [
            "a 640 5:6 \"1\", 2 names",
            "b 640 5:6 \"1\", 2 names",
            "c 644 \"3\", 1 names",
            "d 644 \"4\", 2 names",
            "etc 755 folder",
            "etc/one 0 character device 0",
            "four 644 \"4\", 2 names",
            "srv 755 folder, opaque",
        ]
    );
}

#[test]
fn a_link_into_a_lower_layer_with_something_below_it_is_the_authors_fault() {
    if !is_root() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let base = Tar::default().file("f", b"f");
    let top = Tar::default().link("l", "f").file("l/x", b"x");
    let error = stack(folder.path(), vec![base, top]).unwrap_err();
    assert!(
        matches!(&error, UnpackError::Entry { why, .. } if *why == "other entries make a folder of it"),
        "{error:?}"
    );
    assert_eq!(error.class(), Class::CONTENT);
    // With an entry of its own, the folder comes in its place.
    let folder = tempfile::tempdir().unwrap();
    let base = Tar::default().file("f", b"f");
    let top = Tar::default()
        .link("l", "f")
        .folder("l", 0o755)
        .file("l/x", b"x");
    let lowers = stack(folder.path(), vec![base, top]).unwrap();
    assert!(lowers[0].join("l/x").exists());
}

#[test]
fn the_longest_name_can_be_hidden() {
    if !is_root() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let name = "n".repeat(255);
    let hidden = format!(".wh.{name}");
    let file = |path: &str| {
        Tar::default()
            .pax(&[("path", path.as_bytes())])
            .file("f", b"")
    };
    let lowers = stack(folder.path(), vec![file(&name), file(&hidden)]).unwrap();
    let whiteout = format!("{name} 0 character device 0");
    assert_eq!(listing(&lowers[0]), [whiteout]);
}
