//! Builds that only put files onto an image made from an ostree commit: the same layers as with the whole base, which is unpacked only where its folders don't say enough.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that can't go on fails"
)]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
use std::path::Path;

use sha2::{Digest as _, Sha256};

mod common;
use common::{Image, Workshop, can_build};

type Checksum = [u8; 32];

/// A folder of the commit: owner, mode, names that are no folders, folders.
#[derive(Default)]
struct Folder {
    owner: u32,
    mode: u32,
    others: Vec<&'static str>,
    folders: BTreeMap<&'static str, Folder>,
}

fn folder(others: &[&'static str], folders: Vec<(&'static str, Folder)>) -> Folder {
    Folder {
        owner: 0,
        mode: 0o755,
        others: others.to_vec(),
        folders: folders.into_iter().collect(),
    }
}

/// Serialized as GVariant: members of variable length one after the other, then where each ends. All offsets have the size that the whole needs.
fn framed(members: &[Vec<u8>], ends: impl Fn(&[usize]) -> Vec<usize>) -> Vec<u8> {
    let mut bytes = members.concat();
    let mut sums = Vec::new();
    for member in members {
        sums.push(sums.last().unwrap_or(&0) + member.len());
    }
    let ends = ends(&sums);
    let width = if bytes.len() + ends.len() < 256 { 1 } else { 2 };
    for end in ends {
        bytes.extend(&end.to_le_bytes()[..width]);
    }
    bytes
}

fn array(members: &[Vec<u8>]) -> Vec<u8> {
    framed(members, <[usize]>::to_vec)
}

fn tuple(members: &[Vec<u8>]) -> Vec<u8> {
    framed(members, |sums| {
        let without_last = &sums[..sums.len() - 1];
        without_last.iter().rev().copied().collect()
    })
}

fn string(text: &str) -> Vec<u8> {
    [text.as_bytes(), b"\0"].concat()
}

/// Writes an object below `context`; its checksum.
fn object(context: &Path, kind: &str, content: &[u8]) -> Checksum {
    let checksum: Checksum = Sha256::digest(content).into();
    let name = hex::encode(checksum);
    let folder = context.join("sysroot/ostree/repo/objects").join(&name[..2]);
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join(format!("{}.{kind}", &name[2..])), content).unwrap();
    checksum
}

/// Content and metadata of a folder and all below it.
fn objects(context: &Path, folder: &Folder) -> [Checksum; 2] {
    let files: Vec<Vec<u8>> = folder
        .others
        .iter()
        .map(|name| tuple(&[string(name), vec![7; 32]]))
        .collect();
    let folders: Vec<Vec<u8>> = folder
        .folders
        .iter()
        .map(|(name, folder)| {
            let [content, metadata] = objects(context, folder);
            tuple(&[string(name), content.to_vec(), metadata.to_vec()])
        })
        .collect();
    let content = tuple(&[array(&files), array(&folders)]);
    let metadata = [folder.owner, folder.owner, 0o40000 | folder.mode]
        .map(u32::to_be_bytes)
        .concat();
    [
        object(context, "dirtree", &content),
        object(context, "dirmeta", &metadata),
    ]
}

/// The commit's checksum.
fn commit(context: &Path, top: &Folder) -> String {
    let [content, metadata] = objects(context, top);
    // (a{sv} ay a(say) s s t ay ay): three times nothing, subject, body, padding, time, the two checksums, ends of all but the last and the time
    let mut commit = [b"x\0\0\0\0\0\0\0", 0u64.to_le_bytes().as_slice()].concat();
    commit.extend([content, metadata].concat());
    commit.extend([48, 3, 2, 0, 0, 0]);
    hex::encode(object(context, "commit", &commit))
}

/// Two images of the same layers: `commit` says that it was made from an ostree commit, `plain` doesn't.
fn bases(workshop: &Workshop) {
    let conf = |mode, owner| Folder {
        owner,
        mode,
        ..folder(&["old"], Vec::new())
    };
    let etc = folder(
        &["passwd", "group", "file", "link"],
        vec![("conf", conf(0o750, 12))],
    );
    let usr = folder(
        &["tmp"],
        vec![("etc", etc), ("bin", folder(&["tool"], Vec::new()))],
    );
    let names = ["bin", "home", "ostree"];
    let top = folder(
        &names,
        vec![
            ("usr", usr),
            ("var", folder(&[], Vec::new())),
            ("sysroot", folder(&[], Vec::new())),
        ],
    );
    let context = workshop.path("os");
    for name in [
        "first",
        "second/etc/conf",
        "second/usr/bin",
        "second/var/home",
    ] {
        fs::create_dir_all(context.join(name)).unwrap();
    }
    let commit = commit(&context.join("first"), &top);
    let second = context.join("second");
    for (name, content) in [
        (
            "etc/passwd",
            "root:x:0:0::/root:/bin/sh\nann:x:1000:1001::/:/bin/sh\n",
        ),
        ("etc/group", "root:x:0:\nann:x:1001:\n"),
        ("etc/file", "old\n"),
        ("etc/conf/old", "old\n"),
        ("usr/bin/tool", "old\n"),
    ] {
        fs::write(second.join(name), content).unwrap();
    }
    for (name, target) in [
        ("etc/link", "conf"),
        ("bin", "usr/bin"),
        ("home", "var/home"),
    ] {
        symlink(target, second.join(name)).unwrap();
    }
    fs::set_permissions(second.join("etc/conf"), fs::Permissions::from_mode(0o750)).unwrap();
    chown(second.join("etc/conf"), Some(12), Some(12)).unwrap();
    let build = |name: &str, labels: &[String]| {
        fs::write(
            workshop.path("os.Containerfile"),
            // what ADD takes out of an archive keeps its owner
            "FROM scratch\nCOPY first /\nADD second.tar /\n",
        )
        .unwrap();
        let file = workshop.path("os.Containerfile").display().to_string();
        let context = context.display().to_string();
        let push = format!("oci:{}:latest", workshop.path(name).display());
        let mut arguments = vec![
            "--containerfile",
            &file,
            "--context",
            &context,
            "--push",
            &push,
        ];
        arguments.extend(["--layers", "step", "--source-date-epoch", "1700000000"]);
        arguments.extend(labels.iter().flat_map(|label| ["--label", label]));
        workshop.run(&arguments).ok();
    };
    let tar = std::process::Command::new("tar")
        .args(["--numeric-owner", "-C"])
        .arg(&second)
        .arg("-cf")
        .arg(context.join("second.tar"))
        .arg(".")
        .status();
    assert!(tar.unwrap().success());
    build("plain", &[]);
    let plain = Image::read(&workshop.path("plain"));
    let diff_ids = plain.config["rootfs"]["diff_ids"].as_array().unwrap();
    let last = diff_ids.last().unwrap().as_str().unwrap();
    build(
        "commit",
        &[
            format!("ostree.commit={commit}"),
            format!("ostree.final-diffid={last}"),
        ],
    );
}

#[test]
fn folders_are_enough_where_files_only_come_to_new_places() {
    if !can_build("folders_are_enough_where_files_only_come_to_new_places") {
        return;
    }
    let workshop = Workshop::new();
    bases(&workshop);
    for (name, content) in [
        ("a", "new\n"),
        ("tree/etc/conf/new", "new\n"),
        ("tree/opt/new", "new\n"),
        ("over/etc/file", "new\n"),
        ("deep/one/two", "new\n"),
    ] {
        workshop.file(name, content);
    }
    // a hard link to a file that only the base has, and a file beside it
    let mut archives = [Vec::new(), Vec::new()];
    for (archive, kind, link) in [
        (0, tar::EntryType::Link, "file"),
        (1, tar::EntryType::Regular, ""),
    ] {
        let mut builder = tar::Builder::new(&mut archives[archive]);
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(0);
        if !link.is_empty() {
            header.set_link_name(link).unwrap();
        }
        builder
            .append_data(&mut header, "another", std::io::empty())
            .unwrap();
        builder.finish().unwrap();
    }
    workshop.file("links.tar", &archives[0]);
    workshop.file("new.tar", &archives[1]);
    let (folders, files) = (false, true);
    for (text, unpacks) in [
        ("COPY a /etc/new/", folders),
        ("COPY a /etc/conf/", folders),
        ("COPY a /etc/conf/a/b", folders),
        ("COPY a /app", folders),
        ("COPY tree /", folders),
        ("COPY deep /etc", folders),
        ("COPY --chown=root:root a /etc/", folders),
        ("COPY --chown=5 a /etc/", folders),
        ("COPY --link --chmod=600 a /etc/", folders),
        ("WORKDIR /etc/conf\nCOPY a .", folders),
        ("WORKDIR /new\nUSER 5\nWORKDIR below\nCOPY . .", folders),
        ("ENV there=/etc/conf\nCOPY a $there/", folders),
        ("COPY <<here /etc/here\ntext\nhere", folders),
        ("LABEL a=b", folders),
        ("COPY a /etc/new/\nFROM one\nCOPY a /etc/new/a2", folders),
        ("COPY a /etc/file", files),
        ("COPY a /etc/link/", files),
        ("COPY a /bin/", files),
        ("COPY a /usr/bin/tool", files),
        ("COPY a /home/", files),
        ("COPY a /var/", files),
        ("COPY a /var/lib/new", files),
        ("COPY a /usr/etc/", files),
        ("COPY a /sysroot/", files),
        ("COPY over /", files),
        ("ADD links.tar /etc/", files),
        ("ADD new.tar /etc/", folders),
        ("COPY --parents tree/./etc/conf/new /", folders),
        ("COPY --chown=5:6 a /etc/", files),
        ("COPY --chown=ann a /etc/", files),
        ("USER ann\nWORKDIR /new", files),
        (
            "COPY a /etc/\nFROM os\nCOPY --from=one /etc/file /etc/other",
            files,
        ),
        ("COPY --from=os /etc/file /etc/other", files),
    ] {
        let file = format!("FROM os AS one\n{text}\n");
        let build = |base: &str| {
            let base = format!("os=oci:{}:latest", workshop.path(base).display());
            let more = [
                "--build-context",
                &base,
                "--source-date-epoch",
                "1700000000",
            ];
            let built = workshop.build(&file, &more).ok();
            (built.stderr, workshop.image())
        };
        let (told, image) = build("commit");
        assert_eq!(told.contains("unpacked"), unpacks, "{text}\n{told}");
        let (_, plain) = build("plain");
        assert_eq!(image.top(), plain.top(), "{text}");
        assert_eq!(image.manifest["layers"], plain.manifest["layers"], "{text}");
        assert_eq!(image.config["rootfs"], plain.config["rootfs"], "{text}");
    }
}

#[test]
fn a_commit_that_is_not_what_it_says_is_not_believed() {
    if !can_build("a_commit_that_is_not_what_it_says_is_not_believed") {
        return;
    }
    let workshop = Workshop::new();
    bases(&workshop);
    workshop.file("a", "new\n");
    let image = Image::read(&workshop.path("commit"));
    let layers = image.config["rootfs"]["diff_ids"].as_array().unwrap();
    let commit = image.config["config"]["Labels"]["ostree.commit"]
        .as_str()
        .unwrap();
    let base = format!("os=oci:{}:latest", workshop.path("plain").display());
    for (commit, last) in [
        // another commit than the layer has
        ("0".repeat(64), layers[1].as_str().unwrap()),
        ("no checksum".to_owned(), layers[1].as_str().unwrap()),
        // there are layers above the commit's
        (commit.to_owned(), layers[0].as_str().unwrap()),
    ] {
        let labelled = format!("oci:{}:latest", workshop.path("labelled").display());
        let labels = [
            format!("ostree.commit={commit}"),
            format!("ostree.final-diffid={last}"),
        ];
        let more = [
            "--build-context",
            &base,
            "--label",
            &labels[0],
            "--label",
            &labels[1],
        ];
        workshop.build_to("FROM os\n", &labelled, &more).ok();
        let base = format!("os={labelled}");
        let built = workshop.build("FROM os\nCOPY a /etc/link/\n", &["--build-context", &base]);
        assert!(built.ok().stderr.contains("unpacked"), "{labels:?}");
        let top = workshop.image().top();
        assert_eq!(
            top.last().unwrap(),
            "etc/conf/a 644 0:0 \"new\\n\"",
            "{labels:?}"
        );
    }
}
