//! Does hostile input reach anything outside of the image? The program as shipped, on what other builders have fallen for; each row names the advisory whose class it is of.
//! Beside the build lies a folder that no build may read or change.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that can't go on fails"
)]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::Path;

use common::{Built, Workshop, can_build};
use flate2::Compression;
use flate2::write::GzEncoder;
use rustix::fs::{Mode, OFlags};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::{Value, json};
use strata_builder::digest::Digest;
use tar::{EntryType, Header};

const CONTENT: i32 = 65;

/// A workshop, and in it the folder `outside`: a secret, an empty folder and their attributes.
struct Scene {
    workshop: Workshop,
    before: BTreeMap<String, String>,
}

impl Scene {
    fn new() -> Self {
        let workshop = Workshop::new();
        let outside = workshop.path("outside");
        fs::create_dir_all(outside.join("empty")).unwrap();
        fs::write(outside.join("secret"), "hush").unwrap();
        let before = listing(&outside);
        Self { workshop, before }
    }

    fn outside(&self) -> String {
        self.workshop.path("outside").display().to_string()
    }

    /// Builds; what is outside must be as it was, and the secret untold.
    fn build(&self, text: &str, more: &[&str]) -> Built {
        let text = text.replace("OUTSIDE", &self.outside());
        let built = self.workshop.build(&text, more);
        assert_eq!(
            listing(&self.workshop.path("outside")),
            self.before,
            "{text}\n{}",
            built.stderr
        );
        assert!(!built.stderr.contains("hush"), "{text}\n{}", built.stderr);
        if built.status == 0 {
            let files = self.workshop.image().files();
            let told = files.iter().find(|(_, file)| file.contains("hush"));
            assert_eq!(told, None, "{text}");
        }
        built
    }
}

/// Path → kind, mode, owner and content.
fn listing(folder: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for path in fs::read_dir(&folder).unwrap().map(|e| e.unwrap().path()) {
            let metadata = fs::symlink_metadata(&path).unwrap();
            let content = fs::read_to_string(&path).unwrap_or_default();
            let what = format!("{:o} {} {content}", metadata.mode(), metadata.uid());
            if metadata.is_dir() {
                folders.push(path.clone());
            }
            found.insert(path.display().to_string(), what);
        }
    }
    found
}

/// One entry with its content; PAX records before it.
struct Entry<'a>(EntryType, &'a str, &'a str, u32, &'a [u8]);

fn tar(entries: &[Entry<'_>]) -> Vec<u8> {
    let mut out = Vec::new();
    for Entry(kind, name, link, mode, content) in entries {
        let mut header = Header::new_ustar();
        let bytes = header.as_mut_bytes();
        bytes[..name.len()].copy_from_slice(name.as_bytes());
        bytes[157..157 + link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(*kind);
        header.set_mode(*mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_700_000_000);
        header.set_size(content.len() as u64);
        header.set_cksum();
        out.extend_from_slice(header.as_bytes());
        out.extend_from_slice(content);
        out.resize(out.len().next_multiple_of(512), 0);
    }
    out.extend([0; 1024]);
    out
}

/// Entries that other unpackers let out of their root.
fn escapes(outside: &str) -> Vec<(&'static str, Vec<u8>)> {
    use EntryType::{Directory, Link, Regular, Symlink};
    let escape = format!("{outside}/new");
    let deep = format!(
        "../../../../../../../../../../../../../../{}",
        &outside[1..]
    );
    let up = format!("{deep}/new");
    let secret = format!("{deep}/secret");
    vec![
        (
            "CVE-2026-28406",
            tar(&[Entry(Regular, &up, "", 0o644, b"x")]),
        ),
        (
            "CVE-2020-10696",
            tar(&[Entry(Regular, &escape, "", 0o644, b"x")]),
        ),
        (
            "CVE-2026-42574",
            tar(&[
                Entry(Symlink, "d", outside, 0o777, b""),
                Entry(Regular, "d/new", "", 0o644, b"x"),
                Entry(Regular, "d/secret", "", 0o644, b"x"),
                Entry(Directory, "d/empty", "", 0o700, b""),
            ]),
        ),
        (
            "CVE-2024-9676",
            tar(&[
                Entry(Symlink, "a", "b", 0o777, b""),
                Entry(Symlink, "b", &deep, 0o777, b""),
                Entry(Regular, "a/empty/x", "", 0o644, b"x"),
            ]),
        ),
        (
            "CVE-2026-33056",
            tar(&[
                Entry(Symlink, "d", outside, 0o777, b""),
                Entry(Directory, "d", "", 0o777, b""),
                Entry(Directory, "d/", "", 0o4777, b""),
            ]),
        ),
        (
            "CVE-2026-50163",
            tar(&[
                Entry(Link, "stolen", &secret, 0o666, b""),
                Entry(Regular, "stolen", "", 0o666, b"changed"),
            ]),
        ),
        (
            "CVE-2026-50163, by a link",
            tar(&[
                Entry(Symlink, "l", &format!("{outside}/secret"), 0o777, b""),
                Entry(Link, "stolen", "l", 0o666, b""),
                Entry(Regular, "l", "", 0o666, b"changed"),
            ]),
        ),
        (
            "whiteout",
            tar(&[Entry(Regular, &format!("{deep}/.wh.empty"), "", 0o644, b"")]),
        ),
    ]
}

/// A layout with one image of one layer; `change` may spoil its manifest.
fn layout(folder: &Path, tar: &[u8], change: impl FnOnce(&mut Value)) -> String {
    let blobs = folder.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let put = |bytes: &[u8]| {
        let digest = Digest::of(bytes);
        fs::write(blobs.join(digest.hex()), bytes).unwrap();
        (digest.to_string(), bytes.len())
    };
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(tar).unwrap();
    let (layer, layer_size) = put(&gzip.finish().unwrap());
    let config = json!({
        "architecture": "amd64", "os": "linux", "config": {},
        "rootfs": { "type": "layers", "diff_ids": [Digest::of(tar).to_string()] },
    });
    let (config, config_size) = put(config.to_string().as_bytes());
    let mut manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": { "mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": config_size },
        "layers": [{ "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": layer, "size": layer_size }],
    });
    change(&mut manifest);
    let (digest, size) = put(manifest.to_string().as_bytes());
    let index = json!({
        "schemaVersion": 2,
        "manifests": [{
            "mediaType": manifest["mediaType"], "digest": digest, "size": size,
            "annotations": { "org.opencontainers.image.ref.name": "v1" },
        }],
    });
    fs::write(
        folder.join("oci-layout"),
        r#"{"imageLayoutVersion":"1.0.0"}"#,
    )
    .unwrap();
    fs::write(folder.join("index.json"), index.to_string()).unwrap();
    format!("evil=oci:{}:v1", folder.display())
}

#[test]
fn no_entry_of_a_layer_leaves_the_root() {
    if !can_build("no_entry_of_a_layer_leaves_the_root") {
        return;
    }
    let scene = Scene::new();
    for (number, (name, tar)) in escapes(&scene.outside()).into_iter().enumerate() {
        let folder = scene.workshop.path(&format!("evil-{number}"));
        let context = layout(&folder, &tar, |_| {});
        for text in [
            "FROM evil\nWORKDIR /d/w\n",
            "FROM base\nCOPY --from=evil / /\n",
            "FROM base\nRUN --mount=from=evil,target=/m cat /m/* /m/*/* 2>/dev/null || true\n",
        ] {
            let built = scene.build(text, &["--build-context", &context]);
            assert!(
                [0, CONTENT].contains(&built.status),
                "{name}: {text}\n{}",
                built.stderr
            );
        }
    }
}

#[test]
fn no_entry_of_an_added_archive_leaves_the_destination() {
    if !can_build("no_entry_of_an_added_archive_leaves_the_destination") {
        return;
    }
    let scene = Scene::new();
    for (name, tar) in escapes(&scene.outside()) {
        scene.workshop.file("a.tar", tar);
        for text in [
            "FROM base\nADD a.tar /x/\n",
            "FROM base\nRUN ln -s OUTSIDE /x\nADD a.tar /x\n",
        ] {
            let built = scene.build(text, &[]);
            assert!(
                [0, CONTENT].contains(&built.status),
                "{name}: {text}\n{}",
                built.stderr
            );
        }
    }
}

#[test]
fn what_a_record_says_of_a_size_counts_for_everybody() {
    if !can_build("what_a_record_says_of_a_size_counts_for_everybody") {
        return;
    }
    let scene = Scene::new();
    let inner = tar(&[Entry(EntryType::Regular, "smuggled", "", 0o4755, b"x")]);
    let size = inner.len();
    let record = |text: String| {
        let length = text.len() + 1;
        let digits = (length + 3).to_string().len();
        format!("{} {text}", length + digits)
    };
    let pax = record(format!("size={size}\n"));
    // the header says 0, the record the truth: CVE-2025-62518, CVE-2026-33055
    let mut outer = tar(&[Entry(EntryType::XHeader, "p", "", 0o644, pax.as_bytes())]);
    outer.truncate(1024);
    let mut file = tar(&[Entry(EntryType::Regular, "outer.tar", "", 0o644, b"")]);
    file.truncate(512);
    outer.extend(file);
    outer.extend(&inner);
    outer.resize(outer.len().next_multiple_of(512) + 1024, 0);
    let context = layout(&scene.workshop.path("evil"), &outer, |_| {});
    scene.workshop.file("a.tar", &outer);
    for text in [
        "FROM evil\nWORKDIR /w\nCOPY a.tar /w/\n",
        "FROM scratch\nADD a.tar /\n",
    ] {
        let built = scene.build(text, &["--build-context", &context]).ok();
        let files = scene.workshop.image().files();
        assert!(files.contains_key("outer.tar"), "{text}: {files:?}");
        assert!(!files.contains_key("smuggled"), "{text}: {}", built.stderr);
    }
    for malformed in [
        "9999 size=1\n",
        "x size=1\n",
        "12 size=-1\n",
        "11 size=9x\n",
        "6 a=\n",
    ] {
        let mut outer = tar(&[Entry(
            EntryType::XHeader,
            "p",
            "",
            0o644,
            malformed.as_bytes(),
        )]);
        outer.truncate(1024);
        outer.extend(tar(&[Entry(EntryType::Regular, "f", "", 0o644, b"x")]));
        let folder = scene
            .workshop
            .path(&format!("evil-{}", Digest::of(malformed.as_bytes()).hex()));
        let context = layout(&folder, &outer, |_| {});
        let built = scene.build("FROM evil\nWORKDIR /w\n", &["--build-context", &context]);
        assert_eq!(built.status, CONTENT, "{malformed:?}: {}", built.stderr);
    }
}

#[test]
fn documents_that_make_no_sense_are_refused() {
    if !can_build("documents_that_make_no_sense_are_refused") {
        return;
    }
    let scene = Scene::new();
    let plain = tar(&[Entry(EntryType::Regular, "f", "", 0o644, b"x")]);
    let set = |path: &'static str, value: Value| {
        move |manifest: &mut Value| *manifest.pointer_mut(path).unwrap() = value
    };
    type Change = Box<dyn FnOnce(&mut Value)>;
    let changes: Vec<(&str, Change)> = vec![
        // CVE-2024-3727
        (
            "a digest that is a path",
            Box::new(set(
                "/layers/0/digest",
                json!("sha256:../../../../outside/secret"),
            )),
        ),
        (
            "a digest of another kind",
            Box::new(set(
                "/config/digest",
                json!("md5:d41d8cd98f00b204e9800998ecf8427e"),
            )),
        ),
        (
            "another layer",
            Box::new(set(
                "/layers/0/digest",
                json!(Digest::of(b"other").to_string()),
            )),
        ),
        (
            "a size that is too small",
            Box::new(set("/layers/0/size", json!(10))),
        ),
        (
            "a negative size",
            Box::new(set("/layers/0/size", json!(-1))),
        ),
        ("no layers", Box::new(set("/layers", json!("none")))),
        (
            "fewer layers than diff ids",
            Box::new(set("/layers", json!([]))),
        ),
        (
            "a layer of another type",
            Box::new(set("/layers/0/mediaType", json!("application/x-iso"))),
        ),
        (
            "schema 1",
            Box::new(set(
                "",
                json!({ "schemaVersion": 1, "fsLayers": [], "history": [] }),
            )),
        ),
    ];
    for (number, (name, change)) in changes.into_iter().enumerate() {
        let folder = scene.workshop.path(&format!("evil-{number}"));
        let context = layout(&folder, &plain, change);
        let built = scene.build("FROM evil\nWORKDIR /w\n", &["--build-context", &context]);
        assert_ne!(built.status, 0, "{name}: {}", built.stderr);
        assert!(
            !built.stderr.contains("panicked"),
            "{name}: {}",
            built.stderr
        );
    }
}

#[test]
fn a_layer_is_what_the_configuration_says() {
    if !can_build("a_layer_is_what_the_configuration_says") {
        return;
    }
    let scene = Scene::new();
    let plain = |name| tar(&[Entry(EntryType::Regular, name, "", 0o644, b"x")]);
    let mut config = Value::Null;
    let told = scene.workshop.path("told");
    layout(&told, &plain("told"), |manifest| {
        config = manifest["config"].clone();
    });
    let folder = scene.workshop.path("evil");
    let context = layout(&folder, &plain("shown"), |manifest| {
        manifest["config"] = config.clone();
    });
    let digest = config["digest"].as_str().unwrap();
    let blob = format!("blobs/sha256/{}", &digest["sha256:".len()..]);
    fs::copy(told.join(&blob), folder.join(&blob)).unwrap();
    let text = "FROM evil\nCOPY --from=base /bin/busybox /bin/sh\nRUN true\n";
    for tier in ["auto", "root-flat"] {
        let more = ["--build-context", &context, "--tier", tier];
        let built = scene.build(text, &more);
        assert_eq!(built.status, CONTENT, "{}", built.stderr);
        let (right, wrong) = (Digest::of(&plain("shown")), Digest::of(&plain("told")));
        let why = format!("unpacks to {right}, but the image's configuration says {wrong}");
        assert!(built.stderr.contains(&why), "{}", built.stderr);
    }
}

#[test]
fn no_source_destination_or_mount_leads_out_of_its_root() {
    if !can_build("no_source_destination_or_mount_leads_out_of_its_root") {
        return;
    }
    let scene = Scene::new();
    let context = scene.workshop.path("context");
    symlink(scene.outside(), context.join("out")).unwrap();
    symlink(format!("{}/secret", scene.outside()), context.join("file")).unwrap();
    symlink("../outside", context.join("up")).unwrap();
    scene.workshop.file("x", "x");
    // whether it fails is a matter of the row; that nothing gets out is checked for all
    for (name, text) in [
        ("buildah 1.44", "FROM base\nCOPY out/secret /x\n"),
        ("buildah 1.44", "FROM base\nCOPY file /x\n"),
        ("buildah 1.44", "FROM base\nCOPY up/ /x/\n"),
        (
            "buildah 1.44",
            "FROM base\nCOPY */secret ../outside/secret /x/\n",
        ),
        (
            "buildah 1.44",
            "FROM base\nADD . /all/\nRUN cat /all/file /all/out/* || true\n",
        ),
        (
            "CVE-2024-1753",
            "FROM base\nRUN --mount=type=bind,source=out,target=/m,rw cat /m/secret; touch /m/new\n",
        ),
        (
            "CVE-2024-1753",
            "FROM base\nRUN --mount=type=bind,source=../outside,target=/m,rw cat /m/secret; touch /m/new\n",
        ),
        (
            "CVE-2024-1753",
            "FROM base AS evil\nRUN ln -s / /root-link && ln -s OUTSIDE /out\nFROM base\nRUN --mount=type=bind,from=evil,source=/out,target=/m,rw cat /m/secret; touch /m/new; true\n",
        ),
        (
            "CVE-2024-1753",
            "FROM base AS evil\nRUN ln -s OUTSIDE /out\nFROM base\nCOPY --from=evil /out/secret /x\n",
        ),
        (
            "CVE-2024-1753",
            "FROM base\nRUN ln -s OUTSIDE /m\nRUN --mount=type=tmpfs,target=/m/empty touch /m/empty/new\n",
        ),
        (
            "CVE-2024-9407",
            "FROM base\nRUN --mount=type=bind,source=/,target=/m,rw,bind-propagation=shared touch /m/new\n",
        ),
        (
            "CVE-2024-9675",
            "FROM base\nRUN --mount=type=cache,id=../../../../outside,target=/c touch /c/new; cat /c/secret || true\n",
        ),
        (
            "CVE-2024-9675",
            "FROM base\nRUN --mount=type=cache,id=OUTSIDE,target=/c touch /c/new; cat /c/secret || true\n",
        ),
        (
            "CVE-2024-9675",
            "FROM base\nRUN --mount=type=cache,from=base,source=../../outside,target=/c touch /c/new; cat /c/secret || true\n",
        ),
        (
            "CVE-2024-23651",
            "FROM base\nRUN --mount=type=cache,id=c,target=/c ln -s OUTSIDE /c/l\nRUN --mount=type=cache,id=c,target=/c --mount=type=tmpfs,target=/c/l/empty touch /c/l/empty/new; touch /c/l/new; true\n",
        ),
        (
            "CVE-2024-23652",
            "FROM base\nRUN --mount=type=tmpfs,target=/a/empty mv /a /z && ln -s OUTSIDE /a\n",
        ),
        (
            "CVE-2024-23652",
            "FROM base\nRUN --mount=type=bind,source=x,target=/a/secret mv /a /z && ln -s OUTSIDE /a\n",
        ),
        (
            "CVE-2026-55686",
            "FROM base\nRUN ln -s OUTSIDE /w\nWORKDIR /w/new\nUSER ann\nWORKDIR /w/empty\nRUN touch new\n",
        ),
        (
            "CVE-2026-55686",
            "FROM base\nRUN ln -s OUTSIDE /w\nCOPY --chown=ann --chmod=777 x /w/\nCOPY --chown=ann x /w/secret\nADD x /w/empty/x\n",
        ),
        (
            "passwd through a link",
            "FROM base\nRUN ln -sf OUTSIDE/secret /etc/passwd\nUSER ann\nRUN true\n",
        ),
        (
            "CVE-2026-33747",
            "# syntax=../../outside\nFROM base\nRUN true\n",
        ),
        (
            "CVE-2026-33748",
            "FROM base\nADD https://example.com/x.git#main:../../outside /x\n",
        ),
    ] {
        let built = scene.build(text, &[]);
        assert!(
            [0, CONTENT].contains(&built.status),
            "{name}: {text}\n{}",
            built.stderr
        );
    }
}

#[test]
fn a_step_gets_nothing_from_the_builder() {
    if !can_build("a_step_gets_nothing_from_the_builder") {
        return;
    }
    let scene = Scene::new();
    // CVE-2024-21626: a working directory that is an open descriptor of the builder, or of whoever started it
    let leaked = OFlags::RDONLY | OFlags::DIRECTORY;
    let leaked = rustix::fs::open(scene.workshop.path("outside"), leaked, Mode::empty()).unwrap();
    let own = leaked.as_raw_fd();
    for number in (0..24).chain([own]) {
        let text = format!(
            "FROM base\nWORKDIR /proc/self/fd/{number}\nRUN cat ../outside/secret ../../outside/secret secret; ls ../context; cd ../../../../../.. && cat .OUTSIDE/secret; true\n"
        );
        let built = scene.build(&text, &[]);
        assert!(!built.output().contains(&"hush"), "{text}");
        if number == own {
            assert_eq!(built.status, CONTENT, "{text}\n{}", built.stderr);
        }
    }
    drop(leaked);
    // CVE-2022-27651, CVE-2026-57231
    let text = "FROM base\nRUN grep -E '^Cap(Inh|Amb)' /proc/self/status; env | grep STRATA_TEST; ls /proc/self/fd | wc -l; ls -d /proc/[0-9]* | wc -l\n";
    let file = scene.workshop.path("Containerfile");
    fs::write(&file, text).unwrap();
    let base = format!("base={}", scene.workshop.base());
    let output = scene
        .workshop
        .command(&["--containerfile", file.to_str().unwrap()])
        .args([
            "--context",
            scene.workshop.path("context").to_str().unwrap(),
        ])
        .args(["--build-context", &base, "--push"])
        .arg(format!("oci:{}:v1", scene.workshop.path("out").display()))
        .env("STRATA_TEST_SECRET", "hush")
        .output()
        .unwrap();
    let built = Built::of(&output).ok();
    let printed = built.output();
    let [inheritable, ambient, descriptors, processes] = printed[..] else {
        panic!("{printed:?}")
    };
    assert_eq!(inheritable, "CapInh:\t0000000000000000");
    assert_eq!(ambient, "CapAmb:\t0000000000000000");
    // of ls itself: three and the folder
    assert_eq!(descriptors, "4");
    assert!(processes.parse::<u32>().unwrap() <= 4, "{processes}");
}

#[test]
fn a_file_without_end_costs_little_and_is_refused_or_built() {
    if !can_build("a_file_without_end_costs_little_and_is_refused_or_built") {
        return;
    }
    let scene = Scene::new();
    let long = "ab".repeat(1 << 15);
    let stages = |count: usize| {
        let stage = |number| format!("FROM s{} AS s{number}\nLABEL l{number}=x\n", number - 1);
        "FROM base AS s0\n".to_owned() + &(1..count).map(stage).collect::<String>()
    };
    let grow = (0..64)
        .map(|_| "ENV A=$A$A$A$A$A$A$A$A$A$A\n")
        .collect::<String>();
    for (name, text, status) in [
        (
            "a megabyte in one line",
            format!("FROM base\nLABEL l={}\n", "x".repeat(1 << 20)),
            None,
        ),
        (
            "a line of quotes",
            format!("FROM base\nENV a={}\n", "'\"".repeat(1 << 19)),
            Some(CONTENT),
        ),
        (
            "nested variables",
            format!("FROM base\nENV a={}\n", "${a:-".repeat(1 << 18)),
            Some(CONTENT),
        ),
        ("thousands of stages", stages(4000), Some(0)),
        (
            "a cycle",
            "FROM b AS a\nFROM a AS b\nCOPY --from=c x /\nFROM b AS c\n".to_owned(),
            Some(CONTENT),
        ),
        (
            "itself",
            "FROM base AS a\nCOPY --from=a x /\n".to_owned(),
            Some(CONTENT),
        ),
        (
            "a variable that grows",
            format!("FROM base\nENV A=xxxxxxxxxx\n{grow}"),
            Some(CONTENT),
        ),
        (
            "a pattern on a long value",
            format!("FROM base\nENV A={long}\nENV B=${{A//*a*b*c/x}} C=${{A%%*c}}\n"),
            Some(CONTENT),
        ),
        (
            "wildcards",
            format!("FROM base\nCOPY {} /x/\n", "*".repeat(1 << 16)),
            Some(CONTENT),
        ),
        (
            "binary",
            "FROM base\nRUN \0\u{1}\u{fffd}\n".to_owned(),
            Some(CONTENT),
        ),
        (
            "continuation without end",
            format!("FROM base\nRUN {}", "\\\n".repeat(1 << 19)),
            Some(CONTENT),
        ),
        (
            "heredocs",
            format!("FROM base\nRUN {}\n", "<<A ".repeat(1 << 16)),
            Some(CONTENT),
        ),
    ] {
        let report = scene.workshop.path("report");
        let built = scene.build(&text, &["--report", report.to_str().unwrap()]);
        assert!(
            [0, CONTENT].contains(&built.status),
            "{name}: {}",
            built.stderr
        );
        if let Some(status) = status {
            assert_eq!(built.status, status, "{name}: {}", built.stderr);
        }
        let report: Value = serde_json::from_slice(&fs::read(&report).unwrap()).unwrap();
        let peak = report["peakRssBytes"].as_u64().unwrap();
        assert!(peak < 256 << 20, "{name}: {peak} bytes");
    }
}

#[test]
fn a_tree_without_end_is_its_authors_fault_however_few_files_may_be_open() {
    if !can_build("a_tree_without_end_is_its_authors_fault_however_few_files_may_be_open") {
        return;
    }
    let scene = Scene::new();
    let few = Rlimit {
        current: Some(512),
        ..getrlimit(Resource::Nofile)
    };
    setrlimit(Resource::Nofile, few).unwrap();
    let deep = |depth| "d/".repeat(depth);
    let context = scene.workshop.path("context");
    fs::create_dir_all(context.join("c").join(deep(300))).unwrap();
    for (text, status) in [
        (format!("FROM base\nRUN mkdir -p /{}\n", deep(250)), 0),
        (
            format!("FROM base\nRUN mkdir -p /{}\n", deep(1500)),
            CONTENT,
        ),
        (
            format!("FROM base\nWORKDIR /{}\nRUN true\n", deep(1500)),
            CONTENT,
        ),
        ("FROM base\nCOPY c /x\n".to_owned(), CONTENT),
    ] {
        for tier in ["auto", "root-flat"] {
            let built = scene.build(&text, &["--tier", tier]);
            assert_eq!(built.status, status, "{text}: {}", built.stderr);
            let is_told = built.stderr.contains("is more than 256 folders deep");
            assert_eq!(is_told, status == CONTENT, "{text}: {}", built.stderr);
        }
    }
    // A step is given what the builder was, not what it has taken.
    let built = scene.build("FROM base\nRUN ulimit -Sn\n", &[]).ok();
    assert_eq!(built.output(), ["512"]);
}
