use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags, lsetxattr, mknodat, utimensat,
};

use super::*;

/// Directories of one test; made with mode 0755 and time 1000.
struct Tree(tempfile::TempDir);

impl Tree {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    fn directory(&self, path: &str) -> PathBuf {
        let path = self.path(path);
        fs::create_dir_all(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    fn file(&self, path: &str, content: &str, mode: u32) -> PathBuf {
        let path = self.path(path);
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        set_time(&path, 1000);
        path
    }

    fn whiteout(&self, path: &str) {
        let path = self.path(path);
        mknodat(CWD, &path, FileType::CharacterDevice, Mode::empty(), 0).unwrap();
        set_time(&path, 1000);
    }

    fn opaque(&self, path: &str) {
        lsetxattr(
            self.path(path),
            "user.overlay.opaque",
            b"y",
            XattrFlags::empty(),
        )
        .unwrap();
    }

    /// The names in the layer of `upper` above `lowers`, whiteouts and directories included.
    fn names(&self, lowers: &[&str]) -> Vec<String> {
        entries(&self.tar(lowers, LayerOptions::default()))
            .into_iter()
            .map(|entry| entry.0)
            .collect()
    }

    /// Of `upper` above `lowers`.
    fn changes(&self, lowers: &[&str]) -> Changes {
        Changes::Upper {
            upper: self.path("upper"),
            below: lowers.iter().map(|lower| self.path(lower)).collect(),
        }
    }

    fn tar(&self, lowers: &[&str], options: LayerOptions) -> Vec<u8> {
        let (descriptor, gzip) = write_layer(&self.changes(lowers), options, Vec::new()).unwrap();
        assert_eq!(
            (descriptor.digest, descriptor.size_bytes),
            (Digest::of(&gzip), gzip.len() as u64)
        );
        let mut tar = Vec::new();
        flate2::bufread::GzDecoder::new(&gzip[..])
            .read_to_end(&mut tar)
            .unwrap();
        assert_eq!(
            (descriptor.diff_id, descriptor.tar_size_bytes),
            (Digest::of(&tar), tar.len() as u64)
        );
        assert_eq!(descriptor.entries, entries(&tar).len() as u64);
        tar
    }
}

fn set_time(path: &Path, seconds: i64) {
    let time = Timespec {
        tv_sec: seconds,
        tv_nsec: 999_999_999,
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

/// Name and content or link target, as an independent reader finds them.
fn entries(tar: &[u8]) -> Vec<(String, String)> {
    let mut archive = tar::Archive::new(tar);
    let mut entries = Vec::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let mut content = String::new();
        entry.read_to_string(&mut content).unwrap();
        if let Some(link) = entry.link_name_bytes() {
            content = String::from_utf8_lossy(&link).into_owned();
        }
        entries.push((
            String::from_utf8_lossy(&entry.path_bytes()).into_owned(),
            content,
        ));
    }
    entries
}

/// A tree with one of everything that an unprivileged user can make.
fn one_of_everything() -> Tree {
    let tree = Tree::new();
    tree.directory("upper/etc");
    tree.file("upper/etc/motd", "hello", 0o644);
    let tool = tree.file("upper/etc/tool", "#!/bin/sh\n", 0o4755);
    lsetxattr(&tool, "user.note", b"kept", XattrFlags::empty()).unwrap();
    symlink("motd", tree.path("upper/etc/link")).unwrap();
    set_time(&tree.path("upper/etc/link"), 1000);
    tree.whiteout("upper/etc/gone");
    tree.directory("upper/sysroot");
    let object = tree.file("upper/sysroot/object", "shared", 0o644);
    lsetxattr(&object, "user.note", b"kept", XattrFlags::empty()).unwrap();
    tree.directory("upper/usr");
    fs::hard_link(
        tree.path("upper/sysroot/object"),
        tree.path("upper/usr/file"),
    )
    .unwrap();
    let pipe = tree.path("upper/usr/pipe");
    mknodat(CWD, &pipe, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
    set_time(&pipe, 3000);
    std::os::unix::net::UnixListener::bind(tree.path("upper/usr/socket")).unwrap();
    for directory in ["upper/usr", "upper/sysroot", "upper/etc"] {
        set_time(&tree.path(directory), 5000);
    }
    tree
}

#[test]
fn a_small_tree_is_exactly_these_bytes() {
    let tree = one_of_everything();
    let owner = fs::metadata(tree.path("upper")).unwrap();
    let entry = |name: &str, kind, mode, mtime| Entry {
        name: name.as_bytes().to_vec(),
        kind,
        mode,
        uid: owner.uid(),
        gid: owner.gid(),
        mtime,
        xattrs: std::collections::BTreeMap::new(),
    };
    let file = |content: &str| Kind::File {
        size_bytes: content.len() as u64,
    };
    let mut whiteout = entry("etc/.wh.gone", file(""), 0, 0);
    (whiteout.uid, whiteout.gid) = (0, 0);
    let with_note = |mut entry: Entry| {
        entry.xattrs.insert(b"user.note".to_vec(), b"kept".to_vec());
        entry
    };
    let tool = entry("etc/tool", file("#!/bin/sh\n"), 0o4755, 1000);
    let mut expected = Vec::new();
    for (entry, content) in [
        (entry("etc/", Kind::Directory, 0o755, 2000), ""),
        (whiteout, ""),
        (
            entry("etc/link", Kind::Symlink(b"motd".to_vec()), 0o777, 1000),
            "",
        ),
        (entry("etc/motd", file("hello"), 0o644, 1000), "hello"),
        (with_note(tool), "#!/bin/sh\n"),
        (entry("usr/", Kind::Directory, 0o755, 2000), ""),
        (
            with_note(entry("usr/file", file("shared"), 0o644, 1000)),
            "shared",
        ),
        (entry("usr/pipe", Kind::Fifo, 0o600, 2000), ""),
        (entry("sysroot/", Kind::Directory, 0o755, 2000), ""),
        (
            with_note(entry(
                "sysroot/object",
                Kind::HardLink(b"usr/file".to_vec()),
                0o644,
                1000,
            )),
            "",
        ),
    ] {
        expected.extend(entry.header());
        expected.extend(content.as_bytes());
        expected.resize(expected.len().next_multiple_of(512), 0);
    }
    // Whiteouts sort by the name that they hide: etc/gone comes before etc/link.
    expected.extend(header::END);
    let options = LayerOptions {
        source_date_epoch: Some(2000),
        ..LayerOptions::default()
    };
    assert!(tree.tar(&[], options) == expected);
}

#[test]
fn the_same_tree_made_twice_has_the_same_digest() {
    let options = LayerOptions {
        source_date_epoch: Some(2000),
        ..LayerOptions::default()
    };
    let layer = |tree: &Tree| write_layer(&tree.changes(&[]), options, Vec::new()).unwrap();
    assert_eq!(layer(&one_of_everything()), layer(&one_of_everything()));
}

#[test]
fn system_tar_reads_the_layer() {
    let tree = one_of_everything();
    let (_, gzip) = write_layer(&tree.changes(&[]), LayerOptions::default(), Vec::new()).unwrap();
    fs::write(tree.path("layer.tar.gz"), gzip).unwrap();
    let listed = Command::new("tar")
        .arg("-tzf")
        .arg(tree.path("layer.tar.gz"))
        .output()
        .unwrap();
    assert!(
        listed.status.success(),
        "{}",
        String::from_utf8_lossy(&listed.stderr)
    );
    assert_eq!(
        String::from_utf8_lossy(&listed.stdout)
            .lines()
            .collect::<Vec<_>>(),
        [
            "etc/",
            "etc/.wh.gone",
            "etc/link",
            "etc/motd",
            "etc/tool",
            "usr/",
            "usr/file",
            "usr/pipe",
            "sysroot/",
            "sysroot/object",
        ]
    );
}

#[test]
fn a_directory_that_only_leads_to_a_change_is_left_out_and_a_changed_one_is_not() {
    let tree = Tree::new();
    for path in ["upper/usr/bin", "upper/opt", "lower/usr/bin", "lower/opt"] {
        tree.directory(path);
    }
    tree.file("upper/usr/bin/new", "", 0o755);
    fs::set_permissions(tree.path("upper/opt"), fs::Permissions::from_mode(0o700)).unwrap();
    assert_eq!(tree.names(&["lower"]), ["opt/", "usr/bin/new"]);
}

#[test]
fn an_untouched_overlay_has_no_changes() {
    let tree = Tree::new();
    for path in ["upper/usr", "lower/usr"] {
        tree.directory(path);
    }
    let changes = tree.changes(&["lower"]);
    assert!(changes.is_empty().unwrap());
    tree.file("upper/usr/new", "", 0o644);
    assert!(!changes.is_empty().unwrap());
}

#[test]
fn an_opaque_directory_becomes_a_whiteout_for_each_entry_that_it_hides_at_any_depth() {
    let tree = Tree::new();
    for path in [
        "upper/a/kept",
        "middle/a",
        "lower/a/kept/deep",
        "lower/a/old",
        "lower/b",
    ] {
        tree.directory(path);
    }
    tree.file("lower/a/kept/file", "", 0o644);
    tree.file("lower/a/again", "", 0o644);
    tree.file("lower/a/gone-before", "", 0o644);
    tree.whiteout("middle/a/gone-before");
    tree.file("middle/a/middle", "", 0o644);
    tree.file("upper/a/again", "", 0o644);
    tree.opaque("upper/a");
    assert_eq!(
        tree.names(&["middle", "lower"]),
        [
            "a/kept/.wh.deep",
            "a/kept/.wh.file",
            "a/.wh.middle",
            "a/.wh.old"
        ]
    );
}

#[test]
fn an_opaque_directory_of_a_lower_layer_hides_what_is_below_it() {
    let tree = Tree::new();
    for path in ["upper/a", "middle/a", "lower/a"] {
        tree.directory(path);
    }
    tree.file("lower/a/hidden", "", 0o644);
    tree.file("middle/a/seen", "", 0o644);
    tree.opaque("middle/a");
    tree.opaque("upper/a");
    assert_eq!(tree.names(&["middle", "lower"]), ["a/.wh.seen"]);
}

#[test]
fn names_that_are_no_text_and_a_thousand_bytes_long_paths_are_kept() {
    let tree = Tree::new();
    let deep = vec!["d".repeat(200); 6].join("/");
    let directory = tree.directory(&format!("upper/{deep}"));
    fs::write(directory.join(OsStr::from_bytes(b"\xff\xfe")), "x").unwrap();
    let tar = tree.tar(&[], LayerOptions::default());
    let mut archive = tar::Archive::new(&tar[..]);
    let last = archive.entries().unwrap().last().unwrap().unwrap();
    assert_eq!(*last.path_bytes(), [deep.as_bytes(), b"/\xff\xfe"].concat());
}

/// A chain of folders called `d` below `top`, deeper than a path can name; made and entered one by one.
fn deep_folders(top: &Path, depth: usize) {
    let flags = DIRECTORY_FLAGS;
    let mut here = rustix::fs::open(top, flags, Mode::empty()).unwrap();
    for _ in 0..depth {
        rustix::fs::mkdirat(&here, "d", Mode::from_raw_mode(0o755)).unwrap();
        here = rustix::fs::openat(&here, "d", flags, Mode::empty()).unwrap();
    }
}

const DIRECTORY_FLAGS: rustix::fs::OFlags =
    rustix::fs::OFlags::RDONLY.union(rustix::fs::OFlags::DIRECTORY);

#[test]
fn a_tree_as_deep_as_may_be_becomes_a_layer_and_a_deeper_one_is_its_makers_fault() {
    for (depth, is_fine) in [(DEEPEST, true), (DEEPEST + 1, false), (8000, false)] {
        let tree = Tree::new();
        tree.directory("lower");
        let upper = tree.directory("upper");
        deep_folders(&upper, depth);
        let written = write_layer(
            &tree.changes(&["lower"]),
            LayerOptions::default(),
            Vec::new(),
        );
        let indexed = index::Index::of(&upper, index::Known::Nothing);
        let empty = index::Index::of(&tree.path("lower"), index::Known::Nothing).unwrap();
        let changed = walk::changes(&upper, &empty);
        let all = [
            written.map(|(layer, _)| layer.entries),
            indexed.map(|_| depth as u64),
            changed.map(|found| found.len() as u64),
        ];
        for result in all {
            match result {
                Ok(entries) => assert_eq!((is_fine, entries), (true, depth as u64)),
                Err(error) => {
                    assert!(!is_fine, "{error}");
                    assert_eq!(error.class(), Class::CONTENT);
                    let path = "d/".repeat(DEEPEST + 1);
                    let told = format!("{} is more than 256 folders deep", &path[..513]);
                    assert!(error.to_string().starts_with(&told), "{error}");
                }
            }
        }
        let removed = Command::new("rm").arg("-r").arg(&upper).status().unwrap();
        assert!(removed.success());
    }
}

#[test]
fn compressions_are_gzip_and_zstd_with_a_level() {
    assert_eq!("gzip".parse(), Ok(Compression::default()));
    assert_eq!("gzip:9".parse(), Ok(Compression::Gzip { level: 9 }));
    assert_eq!("zstd".parse(), Ok(Compression::Zstd { level: 3 }));
    assert_eq!("zstd:19".parse(), Ok(Compression::Zstd { level: 19 }));
    for text in ["zstd:0", "zstd:20", "gzip:10", "gzip:", "none"] {
        assert_eq!(
            text.parse::<Compression>(),
            Err(InvalidCompression(text.to_owned()))
        );
    }
}

#[test]
fn a_zstd_layer_holds_the_same_tar_and_is_the_same_with_any_number_of_threads() {
    let tree = Tree::new();
    tree.directory("upper");
    // More than one thread's share.
    let mut content = String::new();
    for number in 0..3_000_000 {
        content += &format!("{number:x} ");
    }
    tree.file("upper/numbers", &content, 0o644);
    let tar = tree.tar(&[], LayerOptions::default());
    let options = LayerOptions {
        compression: Compression::Zstd { level: 1 },
        ..LayerOptions::default()
    };
    let (descriptor, layer) = write_layer(&tree.changes(&[]), options, Vec::new()).unwrap();
    assert_eq!(descriptor.media_type, LAYER_ZSTD_MEDIA_TYPE);
    assert_eq!(descriptor.diff_id, Digest::of(&tar));
    assert_eq!(descriptor.digest, Digest::of(&layer));
    assert_eq!(zstd::decode_all(&layer[..]).unwrap(), tar);
    for threads in [1, 3] {
        let write = |out: &mut dyn Write| Ok(out.write_all(&tar)?);
        let ((), again) = zstd_frame(1, threads, Vec::new(), write).unwrap();
        assert_eq!(Digest::of(&again), descriptor.digest, "{threads} threads");
    }
}

#[test]
fn a_large_node_compresses_on_eight_threads() {
    let threads = [1, 2, 8, 9, 256].map(threads_for);
    assert_eq!(threads, [1, 2, 8, 8, 8]);
}
