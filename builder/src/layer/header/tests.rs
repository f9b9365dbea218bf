use std::io::Read;

use super::*;

fn file(name: &str) -> Entry {
    Entry {
        name: name.as_bytes().to_vec(),
        kind: Kind::File { size_bytes: 0 },
        mode: 0o644,
        uid: 0,
        gid: 0,
        mtime: 1,
        xattrs: BTreeMap::new(),
    }
}

#[test]
fn a_plain_file_is_one_block_with_exactly_these_bytes() {
    let entry = Entry {
        kind: Kind::File { size_bytes: 5 },
        uid: 1000,
        gid: 8,
        mtime: 1_700_000_000,
        ..file("etc/motd")
    };
    let mut expected = [0_u8; 512];
    for (offset, text) in [
        (0, "etc/motd"),
        (100, "0000644"),
        (108, "0001750"),
        (116, "0000010"),
        (124, "00000000005"),
        (136, "14524770400"),
        (148, "007550\0 "),
        (156, "0"),
        (257, "ustar\x0000"),
    ] {
        expected[offset..offset + text.len()].copy_from_slice(text.as_bytes());
    }
    let sum: u32 = expected[..148]
        .iter()
        .chain(&expected[156..])
        .map(|b| u32::from(*b))
        .sum();
    expected[148..156].copy_from_slice(format!("{:06o}\0 ", sum + 8 * 32).as_bytes());
    assert!(entry.header() == expected);
}

/// Name, link, uid, size, mtime and attributes as an independent reader finds them, and the number of blocks before the content.
fn read_back(entry: &Entry) -> (Entry, usize) {
    let mut bytes = entry.header();
    let blocks = bytes.len() / 512;
    let size_bytes = match entry.kind {
        Kind::File { size_bytes } => size_bytes,
        _ => 0,
    };
    bytes.extend(END);
    let reader = bytes.chain(std::io::repeat(0));
    let mut archive = tar::Archive::new(reader);
    let mut read = archive.entries().unwrap().next().unwrap().unwrap();
    let xattrs = read
        .pax_extensions()
        .unwrap()
        .into_iter()
        .flatten()
        .map(Result::unwrap)
        .filter_map(|record| {
            let name = record.key_bytes().strip_prefix(b"SCHILY.xattr.")?;
            Some((name.to_vec(), record.value_bytes().to_vec()))
        })
        .collect();
    let link = read.link_name_bytes().map(|name| name.into_owned());
    let header = read.header();
    let kind = match header.entry_type() {
        tar::EntryType::Regular => Kind::File {
            size_bytes: read.size(),
        },
        tar::EntryType::Link => Kind::HardLink(link.unwrap()),
        tar::EntryType::Symlink => Kind::Symlink(link.unwrap()),
        tar::EntryType::Directory => Kind::Directory,
        tar::EntryType::Fifo => Kind::Fifo,
        tar::EntryType::Char => Kind::CharacterDevice(
            header.device_major().unwrap().unwrap(),
            header.device_minor().unwrap().unwrap(),
        ),
        other => panic!("{other:?}"),
    };
    assert!(
        matches!(kind, Kind::File { size_bytes: read } if read == size_bytes) || size_bytes == 0
    );
    let read = Entry {
        name: read.path_bytes().into_owned(),
        kind,
        mode: header.mode().unwrap(),
        uid: u32::try_from(header.uid().unwrap()).unwrap(),
        gid: u32::try_from(header.gid().unwrap()).unwrap(),
        mtime: header.mtime().unwrap(),
        xattrs,
    };
    (read, blocks)
}

#[test]
fn an_independent_reader_finds_what_was_written_and_pax_is_used_only_where_ustar_ends() {
    let long = format!("{}/{}", "d".repeat(120), "f".repeat(100));
    let longer = "x".repeat(101);
    let xattrs = BTreeMap::from([(b"security.capability".to_vec(), vec![1, 0, b'=', 255])]);
    for (entry, blocks) in [
        (file("a"), 1),
        (file(&"n".repeat(100)), 1),
        (file(&long), 1),
        (file(&longer), 3),
        (file("usr/share/größe"), 3),
        (
            Entry {
                kind: Kind::File {
                    size_bytes: 8 << 30,
                },
                ..file("big")
            },
            3,
        ),
        (
            Entry {
                kind: Kind::File {
                    size_bytes: (8 << 30) - 1,
                },
                ..file("big")
            },
            1,
        ),
        (
            Entry {
                xattrs,
                ..file("usr/bin/ping")
            },
            3,
        ),
        (
            Entry {
                kind: Kind::Symlink("t".repeat(100).into()),
                ..file("link")
            },
            1,
        ),
        (
            Entry {
                kind: Kind::Symlink("t".repeat(101).into()),
                ..file("link")
            },
            3,
        ),
        (
            Entry {
                kind: Kind::HardLink(longer.clone().into()),
                ..file(&long)
            },
            3,
        ),
        (
            Entry {
                kind: Kind::Directory,
                mode: 0o1777,
                ..file("var/tmp/")
            },
            1,
        ),
        (
            Entry {
                kind: Kind::CharacterDevice(10, 229),
                ..file("dev/fuse")
            },
            1,
        ),
        (
            Entry {
                kind: Kind::Fifo,
                mode: 0o4755,
                ..file("run/pipe")
            },
            1,
        ),
    ] {
        assert_eq!(read_back(&entry), (entry.clone(), blocks));
    }
}

#[test]
fn ids_beyond_seven_octal_digits_are_pax_records() {
    let entry = Entry {
        uid: 2_097_152,
        gid: 4_000_000_000,
        ..file("a")
    };
    let header = entry.header();
    let records = String::from_utf8_lossy(&header[512..1024]);
    assert!(
        records.starts_with("15 uid=2097152\n18 gid=4000000000\n\0"),
        "{records:?}"
    );
}

#[test]
fn a_record_counts_its_own_digits() {
    for (value, expected) in [(1, 9), (90, 99), (91, 101)] {
        let mut records = Vec::new();
        record(&mut records, b"path", "v".repeat(value).as_bytes());
        let said: usize = String::from_utf8_lossy(&records)
            .split(' ')
            .next()
            .unwrap()
            .parse()
            .unwrap();
        assert_eq!((records.len(), said), (expected, expected));
    }
}
