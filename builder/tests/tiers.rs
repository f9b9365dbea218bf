//! Does every tier make the same image? Each builds the same files as itself: root, a user namespace, an ordinary user with subordinate ids; with overlays
//! and without; and files alone with no rights at all.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that can't go on fails"
)]

mod common;

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::Path;
use std::process::Command;

use common::{Built, Image, Workshop, can_build};

const TIERS: [&str; 7] = [
    "root",
    "userns",
    "rootless",
    "root-flat",
    "userns-flat",
    "rootless-flat",
    "copy",
];
const USER: u32 = 61234;
const TIME: &str = "1700000000";

/// A base of many layers, with what one layer can do to those below it, and with files of several names as ostree has them.
const DEEP: &str = r"FROM base
RUN mkdir -p /d/one/two /opaque/old /usr/lib /sysroot/ostree/repo/objects/ab && for f in a b c; do echo $f > /d/one/$f; echo $f > /opaque/old/$f; done
RUN for f in db doc tool; do echo $f > /usr/lib/$f && ln /usr/lib/$f /sysroot/ostree/repo/objects/ab/$f.file; done; touch /usr/lib/.hidden
RUN echo group > /usr/lib/g1 && ln /usr/lib/g1 /usr/lib/g2 && ln -s ../d/one /usr/one && mkfifo /d/fifo && chmod 4755 /d/one/a && chown 12:34 /d/one/b
RUN rm -rf /opaque && mkdir /opaque && echo new > /opaque/new
RUN rm /d/one/c /usr/lib/.hidden && mkdir /d/one/c && echo x > /d/one/c/x
RUN chmod 700 /d/one/two && rm -r /home && echo file > /home && mkdir -m 2775 /d/shared && chown 0:77 /d/shared && touch /usr/lib/locked && chmod 0 /usr/lib/locked
";

/// What is built from it (`deep`), and further arguments.
const BUILDS: [(&str, &str, &[&str]); 10] = [
    (
        "changes of every kind",
        r"FROM deep
RUN echo a >> /d/one/b && rm /d/one/a && chmod 600 /d/one/c/x && echo new > /d/new && mkdir -p /d/empty/deeper && ln -s nowhere /d/link
RUN rm /usr/one && mkdir /usr/one && echo x > /usr/one/x && rm -r /opaque && echo file > /opaque && rm /d/fifo && mkfifo -m 600 /d/fifo2
RUN chown 5:6 /d/one/two && chmod 4711 /bin/busybox && rm /home && mkdir /home && touch /home/new && mv /d/one/c /d/moved
RUN echo 1 > '/d/ümläut and blank' && dd if=/dev/zero of=/d/sparse bs=1 count=1 seek=70000 2>/dev/null && ln /d/new /d/newer
",
        &[],
    ),
    (
        "what is touched and stays as it was",
        r"FROM deep
RUN chown -R 0:0 /bin && chmod 755 /d && exec 3<>/d/one/b && touch -r /d/one/b /tmp/t && cat /d/one/b > /tmp/c && cat /tmp/c > /d/one/b && touch -r /tmp/t /d/one/b && rm /tmp/t /tmp/c
RUN mkdir /d/gone && rm -r /d/gone && echo x > /d/x && rm /d/x
",
        &[],
    ),
    (
        "a directory that is made anew with some of what it had",
        "FROM deep\nRUN cp -a /d/one /tmp/one && rm -r /d/one && cp -a /tmp/one /d/one && rm -r /tmp/one /d/one/two && echo more > /d/one/more\n",
        &[],
    ),
    (
        "a hidden change: same size, same time",
        "FROM deep\nRUN touch -r /usr/lib/doc /t && echo cod > /usr/lib/doc && touch -r /t /usr/lib/doc && rm /t\n",
        &[],
    ),
    (
        "files of several names, as ostree has them",
        r"FROM deep
RUN echo more >> /usr/lib/db && rm /usr/lib/tool && chmod 600 /usr/lib/doc
RUN rm /usr/lib/g1 && ln /usr/lib/doc /usr/lib/doc2 && echo n > /sysroot/ostree/repo/objects/ab/new.file && rm /sysroot/ostree/repo/objects/ab/tool.file
",
        &[],
    ),
    (
        "stages that start from one image, one after another",
        r"FROM deep AS extract
COPY a.txt /tmp/a.txt
RUN mkdir -p /etc/x && cat /tmp/a.txt > /etc/x/current
FROM deep AS configs
COPY --from=extract /etc/x/current /etc/x/current
RUN test ! -e /tmp/a.txt && echo y >> /etc/x/current && rm /d/one/a
LABEL a=b
FROM configs AS final
RUN test ! -e /d/one/a && cat /etc/x/current > /final && echo z >> /etc/x/current
",
        &[],
    ),
    (
        "a stage that others start from and take files from",
        r"FROM deep AS a
RUN echo 1 > /1 && echo a >> /d/one/b
FROM a AS b
RUN echo 2 > /2 && rm /1
FROM a AS c
RUN --mount=from=b,target=/m test -e /m/2 && test ! -e /m/1 && test -e /1 && echo 3 > /3 && rm /d/one/b
FROM a
COPY --from=b /2 /opaque/
COPY --from=c --chown=7:8 /3 /d/one/two/
RUN --mount=from=a,target=/m,rw echo x > /m/x && cat /d/one/b && test -e /1
",
        &[],
    ),
    (
        "a layer for each step",
        "FROM deep\nRUN echo 1 > /1\nRUN echo 2 > /2 && rm /1 && chmod 600 /d/one/b\nCOPY a.txt /1\nRUN true\nRUN rm -r /d && echo 3 > /2\nWORKDIR /w/x\nUSER 5\nRUN id -u > /tmp/id\n",
        &["--layers", "step"],
    ),
    (
        "files of every kind, copied",
        r"FROM deep
COPY --chown=ann:wheel --chmod=4750 a.txt /opt/new/tool
COPY tree /d/one/
COPY --from=deep /usr/lib /copied
COPY --from=deep /d /moved
COPY --from=deep /opaque/new /usr/one/through-a-link
ADD archive.tar /unpacked/
COPY a.txt /d/shared/sub/
ADD --chown=5 archive.tar /d/shared/
USER ann
WORKDIR /work/ann
COPY <<one <<two /inline/
1
one
2
two
",
        &[],
    ),
    (
        "nothing below, and nothing but files",
        "FROM scratch AS s\nCOPY a.txt /x/\nFROM s\nCOPY --from=deep /d /d\nADD --chown=3:4 a.txt /a\nWORKDIR /w\n",
        &[],
    ),
];

/// Where the builder runs as an ordinary user who has subordinate ids.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Here,
    /// As in a pod of the SCC `anyuid`: default capabilities, our own `newuidmap` with file capabilities, masked /proc, no overlay in the scratch folder.
    Pod,
    /// As in a pod without any right: no capabilities, no ids of its own, and no way to get them.
    Nothing,
}

fn as_ordinary_user(workshop: &Workshop, command: &Command, place: Place) -> Command {
    let passwd = fs::read_to_string("/etc/passwd").unwrap();
    let passwd = format!("{passwd}strata-test:x:{USER}:{USER}::/:/bin/sh\n");
    let ids = format!("strata-test:1:999\n{USER}:200000:65536\n");
    for (name, content) in [
        ("passwd", passwd.as_str()),
        ("subuid", &ids),
        ("subgid", &ids),
        ("program", ""),
    ] {
        fs::write(workshop.path(name), content).unwrap();
    }
    let tools = workshop.path("tools");
    if place == Place::Pod && !tools.exists() {
        fs::create_dir_all(&tools).unwrap();
        let tool = tools.join("newuidmap");
        common::copy_program(command.get_program(), &tool);
        fs::set_permissions(&tool, fs::Permissions::from_mode(0o755)).unwrap();
        // Version 2, permitted and effective: CAP_SETGID and CAP_SETUID.
        let mut value = [0_u8; 20];
        (value[0], value[3], value[4]) = (1, 2, 1 << 6 | 1 << 7);
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::lsetxattr(&tool, "security.capability", &value, flags).unwrap();
        fs::hard_link(&tool, tools.join("newgidmap")).unwrap();
    }
    // The program's own folder may be one that only root can enter.
    let script = "folder=$0 place=$1 program=$2; shift 2; [ $place = nothing ] || for file in passwd subuid subgid; do mount --bind $folder/$file /etc/$file || exit; done; \
                  mount --bind $program $folder/program || exit; bounding=; \
                  if [ $place = pod ]; then cd $folder && mkdir -p lower upper work && mount -t overlay -o lowerdir=lower,upperdir=upper,workdir=work none scratch && \
                  chown 61234 scratch && mount -t tmpfs -o ro none /proc/irq && export PATH=$folder/tools:$PATH || exit; \
                  bounding='--bounding-set -all,+chown,+dac_override,+fowner,+fsetid,+kill,+setgid,+setuid,+setpcap,+net_bind_service'; fi; \
                  [ $place != nothing ] || bounding='--bounding-set -all --no-new-privs'; \
                  exec setpriv --reuid 61234 --regid 61234 --clear-groups $bounding $folder/program \"$@\"";
    let mut outer = Command::new("unshare");
    outer.args(["--mount", "sh", "-c", script]);
    outer.arg(workshop.path(""));
    outer.arg(match place {
        Place::Here => "here",
        Place::Pod => "pod",
        Place::Nothing => "nothing",
    });
    outer.arg(command.get_program()).args(command.get_args());
    outer
}

/// Builds in a tier.
fn build(workshop: &Workshop, tier: &str, containerfile: &str, more: &[&str]) -> (Built, Image) {
    let place = match tier {
        "copy" => Place::Nothing,
        _ => Place::Here,
    };
    build_in(workshop, tier, place, containerfile, more)
}

fn build_in(
    workshop: &Workshop,
    tier: &str,
    place: Place,
    containerfile: &str,
    more: &[&str],
) -> (Built, Image) {
    let out = workshop.path(&format!("out-{tier}"));
    let _ = fs::remove_dir_all(&out);
    let scratch = workshop.path("scratch");
    for folder in [&out, &scratch] {
        fs::create_dir_all(folder).unwrap();
        chown(folder, Some(USER), Some(USER)).unwrap();
    }
    fs::write(workshop.path("Containerfile"), containerfile).unwrap();
    let mut arguments: Vec<String> = [
        "--tier",
        tier,
        "--source-date-epoch",
        TIME,
        "--containerfile",
    ]
    .map(str::to_owned)
    .to_vec();
    arguments.push(workshop.path("Containerfile").display().to_string());
    arguments.push("--context".to_owned());
    arguments.push(workshop.path("context").display().to_string());
    arguments.push("--push".to_owned());
    arguments.push(format!("oci:{}:v1", out.display()));
    for name in ["base", "deep"] {
        let layout = workshop.path(name);
        if layout.exists() {
            arguments.push("--build-context".to_owned());
            arguments.push(format!("{name}=oci:{}:latest", layout.display()));
        }
    }
    arguments.extend(more.iter().map(|argument| (*argument).to_owned()));
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let mut command = workshop.command(&arguments);
    if tier.starts_with("rootless") || place != Place::Here {
        command = as_ordinary_user(workshop, &command, place);
    }
    let built = Built::of(&command.output().unwrap());
    assert_eq!(built.status, 0, "{tier}\n{containerfile}\n{}", built.stderr);
    let image = Image::read(&out);
    (built, image)
}

fn workshop() -> Workshop {
    let workshop = Workshop::new();
    fs::set_permissions(workshop.path(""), fs::Permissions::from_mode(0o755)).unwrap();
    workshop.file("a.txt", "a\n");
    workshop.file("tree/sub/x", "x\n").file("tree/a", "new a\n");
    let context = workshop.path("context");
    fs::hard_link(context.join("tree/a"), context.join("tree/sub/linked")).unwrap();
    std::os::unix::fs::symlink("/nowhere", context.join("tree/link")).unwrap();
    fs::set_permissions(context.join("tree/sub"), fs::Permissions::from_mode(0o2755)).unwrap();
    let archived = Command::new("tar")
        .args([
            "--sort=name",
            "--mtime=@1500000000",
            "--owner=1234",
            "--group=77",
        ])
        .arg("-cf")
        .arg(context.join("archive.tar"))
        .arg("-C")
        .arg(&context)
        .arg("tree")
        .status()
        .unwrap();
    assert!(archived.success());
    // Times in the context are part of the image.
    let time = filetime(workshop.path("context/a.txt"));
    assert!(time.success());
    workshop.base();
    let (_, image) = build(&workshop, "root", DEEP, &["--layers", "step"]);
    assert_eq!(image.layers().len(), 7);
    let deep = workshop.path("deep");
    fs::rename(workshop.path("out-root"), &deep).unwrap();
    let index = fs::read_to_string(deep.join("index.json")).unwrap();
    fs::write(deep.join("index.json"), index.replace("v1", "latest")).unwrap();
    workshop
}

fn filetime(path: std::path::PathBuf) -> std::process::ExitStatus {
    Command::new("touch")
        .args(["-d", "@1500000000"])
        .arg(path)
        .status()
        .unwrap()
}

#[test]
fn every_tier_makes_the_same_image() {
    if !can_build("every_tier_makes_the_same_image") {
        return;
    }
    let workshop = workshop();
    for (what, containerfile, more) in BUILDS {
        let mut first: Option<(String, Image)> = None;
        for tier in TIERS {
            if tier == "copy" && containerfile.contains("RUN") {
                continue;
            }
            let (built, image) = build(&workshop, tier, containerfile, more);
            match &first {
                None => first = Some((built.stdout, image)),
                Some((digest, expected)) => {
                    let tops = |image: &Image| {
                        let layers = image.layers();
                        let base = image.layers().len().min(7);
                        layers[base..]
                            .iter()
                            .map(|layer| common::entries(layer))
                            .collect::<Vec<_>>()
                    };
                    assert_eq!(tops(&image), tops(expected), "{what}: {tier}");
                    assert_eq!(*digest, built.stdout, "{what}: {tier}");
                }
            }
        }
    }
}

#[test]
fn a_layer_tells_what_changed_and_nothing_else() {
    if !can_build("a_layer_tells_what_changed_and_nothing_else") {
        return;
    }
    let workshop = workshop();
    for tier in ["root", "rootless-flat"] {
        let tops = [0, 1, 2, 3, 4].map(|row: usize| {
            let (_, image) = build(&workshop, tier, BUILDS[row].1, BUILDS[row].2);
            match image.layers().len() {
                7 => Vec::new(),
                _ => image.top(),
            }
        });
        let expected: [&[&str]; 5] = [
            &[
                "bin/busybox 4711 0:0 BUSYBOX",
                "d/empty 755 0:0 directory",
                "d/empty/deeper 755 0:0 directory",
                "d/.wh.fifo 0 0:0 \"\"",
                "d/fifo2 600 0:0 Fifo",
                "d/link 777 0:0 Symlink nowhere",
                "d/moved 755 0:0 directory",
                "d/moved/x 600 0:0 \"x\\n\"",
                "d/new 644 0:0 \"new\\n\"",
                "d/newer 644 0:0 Link d/new",
                "d/one/.wh.a 0 0:0 \"\"",
                "d/one/b 644 12:34 \"b\\na\\n\"",
                "d/one/.wh.c 0 0:0 \"\"",
                "d/one/two 700 5:6 directory",
                "d/sparse 644 0:0 70001 bytes",
                "d/ümläut and blank 644 0:0 \"1\\n\"",
                "home 755 0:0 directory",
                "home/new 644 0:0 \"\"",
                "opaque 644 0:0 \"file\\n\"",
                "usr/one 755 0:0 directory",
                "usr/one/x 644 0:0 \"x\\n\"",
            ],
            &[],
            &["d/one/more 644 0:0 \"more\\n\"", "d/one/.wh.two 0 0:0 \"\""],
            &["usr/lib/doc 644 0:0 \"cod\\n\""],
            &[
                "usr/lib/db 644 0:0 \"db\\nmore\\n\"",
                "usr/lib/doc 600 0:0 \"doc\\n\"",
                "usr/lib/doc2 600 0:0 Link usr/lib/doc",
                "usr/lib/.wh.g1 0 0:0 \"\"",
                "usr/lib/.wh.tool 0 0:0 \"\"",
                "sysroot/ostree/repo/objects/ab/new.file 644 0:0 \"n\\n\"",
                "sysroot/ostree/repo/objects/ab/.wh.tool.file 0 0:0 \"\"",
            ],
        ];
        let busybox = format!("{} bytes", fs::metadata("/bin/busybox").unwrap().len());
        for (top, expected) in tops.iter().zip(expected) {
            let top: Vec<String> = top
                .iter()
                .map(|entry| entry.replace(&busybox, "BUSYBOX"))
                .collect();
            assert_eq!(top, expected, "{tier}");
        }
    }
}

/// Whether these tests run in a container, where its remedies are said.
fn is_container() -> bool {
    let marks = ["/run/.containerenv", "/.dockerenv"];
    let variable = std::env::var_os("KUBERNETES_SERVICE_HOST");
    variable.is_some() || marks.iter().any(|mark| Path::new(mark).exists())
}

#[test]
fn a_pod_that_may_not_mount_overlays_builds_flat_and_doctor_says_why() {
    if !can_build("a_pod_that_may_not_mount_overlays_builds_flat_and_doctor_says_why") {
        return;
    }
    let workshop = workshop();
    let (_, containerfile, more) = BUILDS[0];
    let (expected, _) = build(&workshop, "root", containerfile, more);
    let (built, _) = build_in(&workshop, "auto", Place::Pod, containerfile, more);
    assert_eq!(built.stdout, expected.stdout);
    let mut doctor = Command::new(env!("CARGO_BIN_EXE_strata-builder"));
    doctor
        .arg("doctor")
        .arg("--scratch")
        .arg(workshop.path("scratch"));
    let said = as_ordinary_user(&workshop, &doctor, Place::Pod)
        .output()
        .unwrap();
    let said = String::from_utf8(said.stdout).unwrap();
    let end: Vec<&str> = said
        .lines()
        .skip_while(|line| !line.starts_with("A build"))
        .collect();
    let expected = [
        "A build with --tier auto runs in tier rootless-flat here.",
        "Not in tier root: namespaces: Operation not permitted (os error 1).",
        "Not in tier userns: id map, same numbers: Operation not permitted (os error 1).",
        "Not in tier rootless: overlay in scratch: Invalid argument (os error 22).",
        "Not in tier root-flat: namespaces: Operation not permitted (os error 1).",
        "Not in tier userns-flat: id map, same numbers: Operation not permitted (os error 1).",
    ];
    assert_eq!(end, expected, "{said}");
    for (variable, remedy) in [
        ("KUBERNETES_SERVICE_HOST", "spec.hostUsers: false and "),
        ("NOTHING", "run it as root: sudo strata-builder"),
    ] {
        if variable == "NOTHING" && is_container() {
            continue;
        }
        let mut doctor = as_ordinary_user(&workshop, &doctor, Place::Pod);
        let said = doctor.env(variable, "10.0.0.1").output().unwrap();
        let said = String::from_utf8(said.stdout).unwrap();
        let mut remedies = said
            .lines()
            .filter_map(|line| line.trim().strip_prefix("remedy: "));
        assert!(remedies.next().unwrap().starts_with(remedy), "{said}");
    }
    for (tier, obstacle) in [
        ("root", "namespaces: Operation not permitted (os error 1)"),
        (
            "rootless",
            "overlay in scratch: Invalid argument (os error 22)",
        ),
    ] {
        let push = format!("oci:{}", workshop.path("out-auto").display());
        let file = workshop.path("Containerfile").display().to_string();
        let command =
            workshop.command(&["--tier", tier, "--containerfile", &file, "--push", &push]);
        let output = as_ordinary_user(&workshop, &command, Place::Pod)
            .output()
            .unwrap();
        let refused = Built::of(&output);
        let message =
            format!("error: this machine does not allow tier {tier}; {obstacle}; remedy: ");
        assert!(refused.stderr.starts_with(&message), "{}", refused.stderr);
        assert_eq!(refused.status, 77);
    }
}

#[test]
fn a_pod_without_any_right_copies_files_and_says_why_it_runs_nothing() {
    if !can_build("a_pod_without_any_right_copies_files_and_says_why_it_runs_nothing") {
        return;
    }
    let workshop = workshop();
    let copied = "FROM deep\nCOPY --chown=ann a.txt /new\nLABEL a=b\n";
    let (expected, _) = build(&workshop, "root", copied, &[]);
    let (built, image) = build_in(&workshop, "auto", Place::Nothing, copied, &[]);
    assert_eq!(built.stdout, expected.stdout);
    assert_eq!(image.top(), ["new 644 1000:1001 \"a\\n\""]);
    for (tier, why) in [
        (
            "auto",
            "this machine allows no tier that runs steps; tier userns: id map, same numbers: Operation not permitted (os error 1); remedy: ",
        ),
        ("copy", "tier copy, which was asked for, runs no steps"),
    ] {
        let file = workshop.path("run.Containerfile");
        fs::write(&file, "FROM scratch\nLABEL a=b\nRUN true\n").unwrap();
        let push = format!("oci:{}", workshop.path("out-auto").display());
        let command = workshop.command(&[
            "--tier",
            tier,
            "--containerfile",
            file.to_str().unwrap(),
            "--push",
            &push,
        ]);
        let output = as_ordinary_user(&workshop, &command, Place::Nothing)
            .output()
            .unwrap();
        let refused = Built::of(&output);
        let message = format!("error: run.Containerfile, line 3: RUN can't be done: {why}");
        assert!(refused.stderr.starts_with(&message), "{}", refused.stderr);
        assert_eq!(refused.status, 77);
    }
}

#[test]
fn an_owner_that_a_tier_has_no_id_for_is_named() {
    if !can_build("an_owner_that_a_tier_has_no_id_for_is_named") {
        return;
    }
    let workshop = workshop();
    let owned = "FROM base\nRUN touch /file && chown 70000:5 /file\n";
    build(&workshop, "root", owned, &["--layers", "step"]);
    fs::remove_dir_all(workshop.path("deep")).unwrap();
    fs::rename(workshop.path("out-root"), workshop.path("deep")).unwrap();
    fs::write(workshop.path("Containerfile"), "FROM owned\nRUN true\n").unwrap();
    let file = workshop.path("Containerfile").display().to_string();
    let push = format!("oci:{}", workshop.path("scratch/out").display());
    let owned = format!("owned=oci:{}:v1", workshop.path("deep").display());
    let command = workshop.command(&[
        "--tier",
        "rootless",
        "--containerfile",
        &file,
        "--context",
        "/",
        "--build-context",
        &owned,
        "--push",
        &push,
    ]);
    let output = as_ordinary_user(&workshop, &command, Place::Here)
        .output()
        .unwrap();
    let refused = Built::of(&output);
    let message =
        "has the entry file of 70000:5, but this tier has no such id; see `strata-builder doctor`";
    assert!(refused.stderr.contains(message), "{}", refused.stderr);
    assert_eq!(refused.status, 77);
}
