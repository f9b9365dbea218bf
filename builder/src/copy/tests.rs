//! Real files from one directory into another. Owners can only be set by root; without it the tests say so and pass.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use super::*;

struct Roots {
    _scratch: tempfile::TempDir,
    from: Root,
    into: Root,
}

/// A context with a bit of everything, and an image with directories and links.
fn roots() -> Option<Roots> {
    if !crate::fixtures::is_root("to give files to other users") {
        return None;
    }
    let scratch = tempfile::tempdir().unwrap();
    let (from, into) = (scratch.path().join("from"), scratch.path().join("into"));
    for directory in ["d/sub", "x"] {
        fs::create_dir_all(from.join(directory)).unwrap();
    }
    for (file, mode) in [
        ("a.txt", 0o644),
        ("b.txt", 0o600),
        ("d/one", 0o4755),
        ("d/sub/two", 0o640),
        ("x/[odd]", 0o644),
    ] {
        fs::write(from.join(file), file).unwrap();
        fs::set_permissions(from.join(file), fs::Permissions::from_mode(mode)).unwrap();
    }
    symlink("one", from.join("d/link")).unwrap();
    symlink("/d", from.join("to-d")).unwrap();
    symlink("../../../etc/passwd", from.join("out")).unwrap();
    fs::hard_link(from.join("d/one"), from.join("d/same")).unwrap();
    std::os::unix::fs::chown(from.join("d/sub/two"), Some(7), Some(8)).unwrap();
    fs::set_permissions(from.join("d/sub"), fs::Permissions::from_mode(0o700)).unwrap();
    for directory in ["etc", "srv/real", "work"] {
        fs::create_dir_all(into.join(directory)).unwrap();
    }
    symlink("/srv/real", into.join("alias")).unwrap();
    fs::write(into.join("etc/file"), "old").unwrap();
    Some(Roots {
        from: Root::open(&from).unwrap(),
        into: Root::open(&into).unwrap(),
        _scratch: scratch,
    })
}

fn request(sources: &[&str], destination: &str) -> CopyRequest<'static> {
    CopyRequest {
        sources: sources.iter().map(|source| (*source).to_owned()).collect(),
        destination: destination.to_owned(),
        workdir: "/work".to_owned(),
        owner: Some((0, 0)),
        ..CopyRequest::default()
    }
}

/// `mode owner path` of everything below, sorted; links with their targets.
fn list(directory: &Path) -> Vec<String> {
    fn walk(directory: &Path, top: &Path, found: &mut Vec<String>) {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let metadata = path.symlink_metadata().unwrap();
            let name = path.strip_prefix(top).unwrap().display();
            let owner = format!("{}:{}", metadata.uid(), metadata.gid());
            if metadata.is_symlink() {
                found.push(format!(
                    "{name} -> {}",
                    fs::read_link(&path).unwrap().display()
                ));
            } else if metadata.is_dir() {
                found.push(format!("{name}/ {:o} {owner}", metadata.mode() & 0o7777));
                walk(&path, top, found);
            } else {
                found.push(format!(
                    "{name} {:o} {owner} {}",
                    metadata.mode() & 0o7777,
                    fs::read_to_string(&path).unwrap()
                ));
            }
        }
    }
    let mut found = Vec::new();
    walk(directory, directory, &mut found);
    found.sort();
    found
}

const BEFORE: [&str; 6] = [
    "alias -> /srv/real",
    "etc/ 755 0:0",
    "etc/file 644 0:0 old",
    "srv/ 755 0:0",
    "srv/real/ 755 0:0",
    "work/ 755 0:0",
];

/// What is there after a copy and wasn't before.
fn added(roots: &Roots) -> Vec<String> {
    let mut after = list(roots.into.path());
    after.retain(|line| !BEFORE.contains(&line.as_str()));
    after
}

#[test]
fn destinations_are_found_as_buildkit_finds_them() {
    for (sources, destination, expected) in [
        (vec!["a.txt"], "new", vec!["work/new 644 0:0 a.txt"]),
        (
            vec!["a.txt"],
            "new/",
            vec!["work/new/ 755 0:0", "work/new/a.txt 644 0:0 a.txt"],
        ),
        (vec!["a.txt"], "/etc", vec!["etc/a.txt 644 0:0 a.txt"]),
        (vec!["a.txt"], ".", vec!["work/a.txt 644 0:0 a.txt"]),
        (
            vec!["a.txt"],
            "/p/q/r",
            vec!["p/ 755 0:0", "p/q/ 755 0:0", "p/q/r 644 0:0 a.txt"],
        ),
        (
            vec!["a.txt"],
            "/alias",
            vec!["srv/real/a.txt 644 0:0 a.txt"],
        ),
        (vec!["a.txt"], "/alias/x", vec!["srv/real/x 644 0:0 a.txt"]),
        (vec!["a.txt"], "/../../x", vec!["x 644 0:0 a.txt"]),
        (vec!["../../a.txt"], "/x", vec!["x 644 0:0 a.txt"]),
        (
            vec!["?.txt"],
            "/x/",
            vec![
                "x/ 755 0:0",
                "x/a.txt 644 0:0 a.txt",
                "x/b.txt 600 0:0 b.txt",
            ],
        ),
        (vec!["a*"], "/x", vec!["x 644 0:0 a.txt"]),
        (vec!["x/[[]odd]"], "/x", vec!["x 644 0:0 x/[odd]"]),
        (
            vec!["*/sub"],
            "/x",
            vec!["x/ 755 0:0", "x/two 640 0:0 d/sub/two"],
        ),
        (vec!["to-d/sub/two"], "/x", vec!["x 640 0:0 d/sub/two"]),
        (
            vec!["a.txt", "b.txt"],
            "/etc",
            vec!["etc/a.txt 644 0:0 a.txt", "etc/b.txt 600 0:0 b.txt"],
        ),
    ] {
        let Some(roots) = roots() else { return };
        copy(
            &request(&sources, destination),
            &roots.from,
            None,
            &roots.into,
        )
        .unwrap();
        assert_eq!(added(&roots), expected, "{sources:?} to {destination}");
    }
}

#[test]
fn a_directory_gives_its_contents_with_links_modes_and_hard_links() {
    let Some(roots) = roots() else { return };
    let old = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000);
    fs::File::open(roots.from.path().join("d/sub"))
        .unwrap()
        .set_modified(old)
        .unwrap();
    rustix::fs::setxattr(
        roots.from.path().join("d/one"),
        "user.note",
        b"kept",
        rustix::fs::XattrFlags::empty(),
    )
    .unwrap();
    let summary = copy(&request(&["to-d"], "/x"), &roots.from, None, &roots.into).unwrap();
    assert_eq!(
        summary,
        CopySummary {
            entries: 5,
            bytes: 14
        }
    );
    assert_eq!(
        added(&roots),
        [
            "x/ 755 0:0",
            "x/link -> one",
            "x/one 4755 0:0 d/one",
            "x/same 4755 0:0 d/one",
            "x/sub/ 700 0:0",
            "x/sub/two 640 0:0 d/sub/two"
        ]
    );
    let find = |path: &str| fs::metadata(roots.into.path().join(path)).unwrap();
    assert_eq!(find("x/one").ino(), find("x/same").ino());
    assert_eq!(find("x/sub").modified().unwrap(), old);
    assert_eq!(
        find("x/one").mtime_nsec(),
        fs::metadata(roots.from.path().join("d/one"))
            .unwrap()
            .mtime_nsec()
    );
    let mut value = [0; 4];
    assert_eq!(
        rustix::fs::getxattr(roots.into.path().join("x/one"), "user.note", &mut value),
        Ok(4)
    );
}

#[test]
fn owners_and_modes_are_the_sources_unless_they_are_given() {
    for (owner, mode, expected) in [
        (None, None, vec!["x/ 755 0:0", "x/two 640 7:8 d/sub/two"]),
        (
            Some((5, 6)),
            None,
            vec!["x/ 755 5:6", "x/two 640 5:6 d/sub/two"],
        ),
        (
            Some((0, 0)),
            Some("g=u,o-r"),
            vec!["x/ 755 0:0", "x/two 660 0:0 d/sub/two"],
        ),
        (
            Some((0, 0)),
            Some("4711"),
            vec!["x/ 755 0:0", "x/two 4711 0:0 d/sub/two"],
        ),
    ] {
        let Some(roots) = roots() else { return };
        let mut request = request(&["d/sub"], "/x");
        (request.owner, request.mode) = (owner, mode.map(|mode| mode.parse().unwrap()));
        copy(&request, &roots.from, None, &roots.into).unwrap();
        assert_eq!(added(&roots), expected, "{owner:?} {mode:?}");
    }
}

#[test]
fn several_files_make_their_destination_a_directory_and_a_wildcard_may_match_nothing() {
    let Some(roots) = roots() else { return };
    let request = request(&["none*", "?.txt"], "/x");
    copy(&request, &roots.from, None, &roots.into).unwrap();
    let found = fs::read_dir(roots.into.path().join("x")).unwrap();
    let mut names: Vec<_> = found.map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["a.txt", "b.txt"]);
}

#[test]
fn what_cannot_be_copied_is_told_with_its_path() {
    for (sources, destination, expected) in [
        (vec!["none"], "/x", "\"none\": not found"),
        (vec!["none*"], "/x", "\"none*\": not found"),
        (vec!["out"], "/x", "\"out\": not found"),
        (
            vec!["[x"],
            "/x",
            "\"[x\" is not a proper wildcard: a [ without ], or a \\ at the end",
        ),
        (vec!["none*", "no?e"], "/x", "\"no?e\": not found"),
        (vec!["none", "a.txt"], "/x", "\"none\": not found"),
        (
            vec!["?.txt"],
            "/etc/file",
            "create the directory etc/file in the root file system",
        ),
        (
            vec!["a.txt"],
            "/etc/file/",
            "create the directory etc/file in the root file system",
        ),
    ] {
        let Some(roots) = roots() else { return };
        let error = copy(
            &request(&sources, destination),
            &roots.from,
            None,
            &roots.into,
        )
        .unwrap_err();
        assert_eq!(
            (error.to_string().as_str(), error.class()),
            (expected, Class::CONTENT),
            "{sources:?} to {destination}"
        );
    }
}

#[test]
fn files_replace_files_and_links_but_never_directories() {
    let Some(roots) = roots() else { return };
    let into = roots.into.path();
    symlink("/srv", into.join("srv/sub")).unwrap();
    symlink("/nowhere", into.join("srv/one")).unwrap();
    copy(&request(&["d"], "/srv"), &roots.from, None, &roots.into).unwrap();
    assert_eq!(fs::read_to_string(into.join("srv/one")).unwrap(), "d/one");
    assert!(into.join("srv/one").symlink_metadata().unwrap().is_file());
    // `sub` is a link to a directory: gone through.
    assert_eq!(
        fs::read_to_string(into.join("srv/two")).unwrap(),
        "d/sub/two"
    );
    fs::create_dir(into.join("etc/one")).unwrap();
    let error = copy(&request(&["d"], "/etc"), &roots.from, None, &roots.into).unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot replace the directory /etc/one by a file"
    );
    fs::write(into.join("work/sub"), "").unwrap();
    let error = copy(&request(&["d"], "/work"), &roots.from, None, &roots.into).unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot replace a file /work/sub by a directory"
    );
}

#[test]
fn rules_leave_out_what_they_say_and_bring_back_what_they_bring_back() {
    let Some(roots) = roots() else { return };
    // `d` is excluded but for `d/sub/two`.
    let ignore = |path: &Path, is_directory: bool| match path.to_str().unwrap() {
        "d/sub/two" => Verdict::Included,
        other if other.starts_with('d') && is_directory => Verdict::Descend,
        other if other.starts_with('d') => Verdict::Excluded,
        _ => Verdict::Included,
    };
    let exclude = |path: &Path, _: bool| {
        if path.extension().is_some() || path.starts_with("x") {
            Verdict::Excluded
        } else {
            Verdict::Included
        }
    };
    let mut all = request(&["."], "/new");
    all.exclude = Some(&exclude);
    copy(&all, &roots.from, Some(&ignore), &roots.into).unwrap();
    assert_eq!(
        added(&roots),
        [
            "new/ 755 0:0",
            "new/d/ 755 0:0",
            "new/d/sub/ 700 0:0",
            "new/d/sub/two 640 0:0 d/sub/two",
            "new/out -> ../../../etc/passwd",
            "new/to-d -> /d"
        ]
    );
    let error = copy(
        &request(&["d/one"], "/y"),
        &roots.from,
        Some(&ignore),
        &roots.into,
    )
    .unwrap_err();
    assert_eq!(error.to_string(), "\"d/one\": excluded by the ignore file");
}

#[test]
fn inline_files_are_written_where_they_belong() {
    for (destination, names, expected) in [
        ("/x", vec!["EOF"], vec!["x 644 0:0 EOF"]),
        ("/x/", vec!["EOF"], vec!["x/ 755 0:0", "x/EOF 644 0:0 EOF"]),
        (
            "/x/",
            vec!["A", "B"],
            vec!["x/ 755 0:0", "x/A 644 0:0 A", "x/B 644 0:0 B"],
        ),
    ] {
        let Some(roots) = roots() else { return };
        let mut request = request(&[], destination);
        request.inline = names
            .iter()
            .map(|name| ((*name).to_owned(), name.as_bytes().to_vec()))
            .collect();
        request.time = Some(77);
        copy(&request, &roots.from, None, &roots.into).unwrap();
        assert_eq!(added(&roots), expected, "{destination}");
    }
}

fn archive() -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut add = |kind: tar::EntryType, name: &str, content: &str, link: Option<&str>| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(0o750);
        header.set_uid(11);
        header.set_gid(12);
        header.set_mtime(1000);
        header.set_size(content.len() as u64);
        match link {
            Some(link) => builder.append_link(&mut header, name, link).unwrap(),
            None => builder
                .append_data(&mut header, name, content.as_bytes())
                .unwrap(),
        }
    };
    add(tar::EntryType::Directory, "t/", "", None);
    add(tar::EntryType::Regular, "t/file", "content", None);
    add(tar::EntryType::Link, "t/hard", "", Some("t/file"));
    add(tar::EntryType::Symlink, "t/up", "", Some("/../../.."));
    add(tar::EntryType::Regular, "t/up/etc/escaped", "inside", None);
    builder.into_inner().unwrap()
}

#[test]
fn add_unpacks_tar_and_gzip_and_leads_nowhere_outside() {
    use std::io::Write;
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&archive()).unwrap();
    for content in [archive(), gzip.finish().unwrap()] {
        let Some(roots) = roots() else { return };
        fs::write(roots.from.path().join("archive"), content).unwrap();
        let mut request = request(&["archive"], "/x");
        (request.owner, request.unpack) = (None, true);
        copy(&request, &roots.from, None, &roots.into).unwrap();
        assert_eq!(
            added(&roots),
            [
                "x/ 755 0:0",
                "x/etc/ 755 0:0",
                "x/etc/escaped 750 11:12 inside",
                "x/t/ 750 11:12",
                "x/t/file 750 11:12 content",
                "x/t/hard 750 11:12 content",
                "x/t/up -> /../../.."
            ]
        );
        assert_eq!(
            fs::metadata(roots.into.path().join("x/t")).unwrap().mtime(),
            1000
        );
    }
}

#[test]
fn add_copies_what_is_no_archive_even_if_it_begins_like_one() {
    let Some(roots) = roots() else { return };
    let mut request = request(&["a.txt"], "/x");
    request.unpack = true;
    copy(&request, &roots.from, None, &roots.into).unwrap();
    assert_eq!(added(&roots), ["x 644 0:0 a.txt"]);
    for start in [
        &b"BZh91AY&SY"[..],
        b"\x28\xb5\x2f\xfd",
        b"\xfd7zXZ\0",
        b"\x1f\x8b",
    ] {
        fs::write(roots.from.path().join("a.txt"), start).unwrap();
        copy(&request, &roots.from, None, &roots.into).unwrap();
        assert_eq!(fs::read(roots.into.path().join("x")).unwrap(), start);
    }
}

#[test]
fn add_of_an_archive_that_would_fill_memory_or_disk_is_refused_with_the_limit() {
    use std::io::Write;
    let header = |kind: tar::EntryType, size_bytes: u64| {
        let mut header = tar::Header::new_ustar();
        header.set_path("name").unwrap();
        header.set_entry_type(kind);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(size_bytes);
        header.set_cksum();
        header.as_bytes().to_vec()
    };
    let records = |length: usize| {
        let value = "x".repeat(length - "1000000 comment=\n".len());
        let mut records = header(tar::EntryType::XHeader, length as u64);
        writeln!(records, "{length:07} comment={value}").unwrap();
        records.resize(records.len().next_multiple_of(512), 0);
        records.extend(header(tar::EntryType::Regular, 0));
        records
    };
    let mut window = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
    window.window_log(28).unwrap();
    window.write_all(&archive()).unwrap();
    window.flush().unwrap();
    for (content, told) in [
        (records(1_000_000), None),
        (
            records(1_100_000),
            Some("unpack /archive: the headers of an entry are larger than 1 MiB"),
        ),
        (
            header(tar::EntryType::Regular, (64 << 30) + 1),
            Some("/archive unpacks to more than 68719476736 bytes"),
        ),
        (
            window.finish().unwrap(),
            Some(
                "read /archive: it is compressed with a window of more than 128 MiB, the most that is taken here",
            ),
        ),
    ] {
        let Some(roots) = roots() else { return };
        fs::write(roots.from.path().join("archive"), content).unwrap();
        let mut request = request(&["archive"], "/x");
        request.unpack = true;
        let copied = copy(&request, &roots.from, None, &roots.into);
        let error = copied.err().map(|error| {
            assert_eq!(error.class(), Class::CONTENT);
            crate::error::chain(&error).to_string()
        });
        assert_eq!(error.as_deref(), told);
    }
}

#[test]
fn a_tree_or_archive_deeper_than_an_image_may_be_is_refused_with_its_path() {
    for (depth, is_fine) in [(256, true), (257, false)] {
        let Some(roots) = roots() else { return };
        let path = vec!["d"; depth].join("/");
        let folder = roots.from.path().join("deep").join(&path);
        fs::create_dir_all(folder).unwrap();
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Directory);
        header.set_mode(0o755);
        header.set_size(0);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        let mut archive = tar::Builder::new(Vec::new());
        archive
            .append_data(&mut header, &path, io::empty())
            .unwrap();
        fs::write(
            roots.from.path().join("archive"),
            archive.into_inner().unwrap(),
        )
        .unwrap();
        for source in ["deep", "archive"] {
            let mut request = request(&[source], "/x/");
            request.unpack = true;
            let copied = copy(&request, &roots.from, None, &roots.into);
            let Err(error) = copied else {
                assert!(is_fine, "{source}");
                continue;
            };
            assert!(!is_fine, "{source}: {error}");
            assert_eq!(error.class(), Class::CONTENT);
            let told = crate::error::chain(&error);
            let why = "it is more than 256 folders deep, which no image may have";
            let place = if source == "deep" { "/deep/" } else { "/" };
            assert_eq!(told, format!("copy {place}{path}: {why}"));
        }
    }
}

#[test]
fn directories_that_only_lead_to_what_is_copied_keep_their_owner() {
    let Some(roots) = roots() else { return };
    let there = roots.into.path().join("d");
    fs::create_dir(&there).unwrap();
    std::os::unix::fs::chown(&there, Some(5), Some(6)).unwrap();
    fs::set_permissions(&there, fs::Permissions::from_mode(0o711)).unwrap();
    let request = CopyRequest {
        parents: true,
        owner: Some((7, 8)),
        mode: Some("u=rwX,go=".parse().unwrap()),
        ..request(&["d/sub/two", "none*"], "/")
    };
    copy(&request, &roots.from, None, &roots.into).unwrap();
    assert_eq!(
        added(&roots),
        [
            "d/ 755 5:6",
            "d/sub/ 700 7:8",
            "d/sub/two 600 7:8 d/sub/two"
        ]
    );
    let nothing = CopyRequest {
        sources: vec!["none*".to_owned()],
        ..request
    };
    assert!(copy(&nothing, &roots.from, None, &roots.into).is_err());
}
