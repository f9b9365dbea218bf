//! What does a build say that fails, or goes on for long? The program as shipped: refusals with their place, lines of the author's file, logs and terminals.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that can't go on fails"
)]

mod common;

use std::process::Command;

use common::proxy::{Action, Proxy};
use common::{Workshop, can_build};
use serde_json::{Value, json};

#[test]
fn a_reader_who_has_gone_changes_no_outcome() {
    let test = "a_reader_who_has_gone_changes_no_outcome";
    if !can_build(test) {
        return;
    }
    let workshop = Workshop::with_files();
    let base = format!("base={}", workshop.base());
    let [file, report, digest] =
        ["Containerfile", "report", "digest"].map(|name| workshop.path(name).display().to_string());
    let out = format!("oci:{}", workshop.path("out").display());
    let no_reader = || std::io::pipe().unwrap().1;
    for (text, progress, status) in [
        ("FROM base\nRUN echo x\n", "plain", 0),
        ("FROM base\nRUN echo x\n", "json", 0),
        ("FROM base\nRUN false\n", "plain", 65),
    ] {
        std::fs::write(&file, text).unwrap();
        let ended = workshop
            .command(&["--containerfile", &file, "--build-context", &base])
            .args(["--push", &out, "--progress", progress])
            .args(["--report", &report, "--digestfile", &digest])
            .stdout(no_reader())
            .stderr(no_reader())
            .status()
            .unwrap();
        assert_eq!(ended.code(), Some(status), "{text} {progress}");
        let told: Value = serde_json::from_slice(&std::fs::read(&report).unwrap()).unwrap();
        match status {
            0 => {
                let digest = std::fs::read_to_string(&digest).unwrap();
                assert_eq!(told["outcome"]["digest"], digest.trim(), "{told}");
            }
            _ => assert_eq!(told["outcome"]["class"], "content", "{told}"),
        }
    }
    // The outcome is in its files before it is said.
    let full = std::fs::File::options().write(true).open("/dev/full");
    std::fs::write(&file, "FROM base\nLABEL a=b\n").unwrap();
    std::fs::write(&report, "").unwrap();
    let ended = workshop
        .command(&["--containerfile", &file, "--build-context", &base])
        .args(["--push", &out, "--report", &report])
        .stdout(full.unwrap())
        .status()
        .unwrap();
    assert_eq!(ended.code(), Some(75));
    let told: Value = serde_json::from_slice(&std::fs::read(&report).unwrap()).unwrap();
    assert_eq!(told["outcome"]["result"], "pushed", "{told}");
    for arguments in [&["doctor"][..], &["--help"], &["--version"]] {
        let ended = Command::new(env!("CARGO_BIN_EXE_strata-builder"))
            .args(arguments)
            .stdout(no_reader())
            .stderr(no_reader())
            .status()
            .unwrap();
        assert_eq!(ended.code(), Some(0), "{arguments:?}");
    }
}

#[test]
fn what_can_not_be_built_is_refused_with_its_place_and_a_pointer() {
    let test = "what_can_not_be_built_is_refused_with_its_place_and_a_pointer";
    if !can_build(test) {
        return;
    }
    let workshop = Workshop::with_files();
    for (text, status, said) in [
        (
            "FROM base\nRUN --mont=type=cache,target=/x true\n",
            65,
            "line 2, column 5: RUN has no flag --mont; did you mean --mount?\n  RUN --mont=type=cache,target=/x true\n      ^",
        ),
        (
            "FROM base\n\nRNU true\n",
            65,
            "line 3, column 1: unknown instruction RNU; did you mean RUN?\n  RNU true\n  ^",
        ),
        (
            "FROM base\nRUN --security=insecure true\n",
            65,
            "line 2, column 5: --security can't be \"insecure\"",
        ),
        (
            "FROM base\nRUN --mount=type=ssh true\n",
            65,
            "ssh mounts are not supported",
        ),
        (
            "FROM base\nADD https://example.com/x.git /x\n",
            65,
            "line 2, column 5: ADD of a git repository is not supported\n  ADD https://example.com/x.git /x\n      ^",
        ),
        (
            "FROM base\nRUN --mount=type=secret,id=s,required=true true\n",
            65,
            "the secret \"s\" is required; give it with --secret id=s,src=FILE",
        ),
        (
            "FROM base\nRUN --mount=type=cache true\n",
            65,
            "RUN --mount=type=cache true: --mount can't be \"type=cache\": it would hide the whole root file system; say target=…",
        ),
        (
            "FROM base\nWORKDIR /w\nRUN --mount=type=tmpfs true\nRUN --mount=type=tmpfs,dst=/./ true\n",
            65,
            "line 4: RUN --mount=type=tmpfs,dst=/./ true: --mount can't be",
        ),
        (
            "FROM base\nADD --checksum=sha256:00 a.txt /x\n",
            65,
            "line 2: ADD --checksum=sha256:00 a.txt /x: --checksum is for one source, and that a URL",
        ),
        (
            "FROM base\nCOPY http://example.com/x /x\n",
            65,
            "line 2, column 6: COPY of a URL, which ADD takes, is not supported",
        ),
        (
            "FROM base\nCOPY --exclude=x --exclude=[a d /x\n",
            65,
            "line 2: COPY --exclude=x --exclude=[a d /x: --exclude: line 2: \"[a\" is no pattern",
        ),
        (
            &format!("FROM base\nRUN : {}\n", "x".repeat(200_000)),
            65,
            &format!(
                "line 2: RUN : {}…: the command is too long for the kernel: an argument",
                "x".repeat(994)
            ),
        ),
        (
            "FROM base\nCOPY secret-file /\n",
            65,
            "excluded by the ignore file",
        ),
        (
            "FROM base\nRUN exit 7\n",
            65,
            "line 2: RUN exit 7: the command ended with status 7",
        ),
        (
            "FROM nowhere.invalid/x\nRUN true\n",
            75,
            "nowhere.invalid/x",
        ),
    ] {
        let built = workshop.build(text, &["--step-timeout", "60s", "--retry-for", "1s"]);
        assert_eq!(built.status, status, "{}", built.stderr);
        assert!(
            built.stderr.contains(said),
            "{said}\nnot in\n{}",
            built.stderr
        );
    }
    workshop.file(".dockerignore", "a\n!\n");
    let built = workshop.build("FROM base\nCOPY . /x\n", &[]);
    let file = workshop.path("context/.dockerignore");
    let told = format!(
        "line 2: COPY . /x: read {}: line 2: ! without a pattern",
        file.display()
    );
    assert!(built.stderr.contains(&told), "{}", built.stderr);
    let built = workshop.build("FROM base\nRUN sleep 100\n", &["--step-timeout", "1s"]);
    assert_eq!(built.status, 65);
    assert!(
        built.stderr.contains("took too long and was killed"),
        "{}",
        built.stderr
    );
}

#[test]
fn work_files_are_left_only_if_that_is_asked_for() {
    if !can_build("work_files_are_left_only_if_that_is_asked_for") {
        return;
    }
    let workshop = Workshop::with_files();
    let left = |more: &[&str]| {
        workshop.build("FROM base\nRUN true\n", more).ok();
        std::fs::read_dir(workshop.path("scratch")).unwrap().count()
    };
    assert_eq!(left(&[]), 0);
    assert_eq!(left(&["--leave-scratch"]), 1);
}

#[test]
fn lines_behind_generated_ones_are_counted_as_their_author_does_in_log_and_report() {
    let test = "lines_behind_generated_ones_are_counted_as_their_author_does_in_log_and_report";
    if !can_build(test) {
        return;
    }
    let workshop = Workshop::with_files();
    let report = workshop.path("report");
    workshop.base();
    let lost = workshop.path("lost");
    let mut copy = Command::new("cp");
    let copy = copy.arg("-r").arg(workshop.path("base")).arg(&lost);
    assert!(copy.status().unwrap().success());
    let layer = common::Image::read(&lost).manifest["layers"][0]["digest"].clone();
    let layer = layer.as_str().unwrap().replace(':', "/");
    std::fs::remove_file(lost.join("blobs").join(layer)).unwrap();
    let lost = format!("lost=oci:{}", lost.display());
    for (text, place) in [
        // The target has no layer yet.
        (
            "FROM base\n# mine:\nFROM lost\nLABEL a=b\n",
            "Containerfile, line 1: FROM lost: open ",
        ),
        (
            "FROM base\nRUN false\nRUN true\n",
            "Containerfile (generated part), line 2: RUN false",
        ),
        (
            "FROM base\n# mine:\nRUN true\nRUN false\n",
            "Containerfile, line 2: RUN false",
        ),
        (
            "FROM base\n# mine:\nRUNN true\n",
            "Containerfile, line 1, column 1: unknown",
        ),
        (
            "FROM base\n# mine:\nCOPY --from=later a b\nFROM base AS later\n",
            "Containerfile, line 1: ",
        ),
        (
            "FROM base\n# mine:\n\nADD git@example.com:x.git /x\n",
            "Containerfile, line 2, column 5: ",
        ),
        (
            "FROM base\nFROM absent AS x\nFROM x\nCOPY --from=absent /x /y\n",
            "Containerfile (generated part), line 2: FROM absent AS x: read /absent/oci-layout",
        ),
        (
            "FROM base\n# mine:\nRUN true\nCOPY --from=absent /x \\\n  /y\n",
            "Containerfile, line 2: COPY --from=absent /x   /y: read /absent/oci-layout",
        ),
        (
            "FROM base\n# mine:\nRUN --mount=from=absent,target=/x true\n",
            "Containerfile, line 1: RUN --mount=from=absent,target=/x true: read /absent/oci-layout",
        ),
        (
            "FROM base\n# mine:\nFROM x//y\n",
            "Containerfile, line 1: FROM x//y: ",
        ),
        (
            "FROM base\n# mine:\nFROM lost\nRUN true\n",
            "Containerfile, line 1: FROM lost: pull sha256:",
        ),
    ] {
        let more = [
            "--build-context",
            "absent=oci:/absent",
            "--build-context",
            &lost,
            "--generated-lines",
            "2",
            "--report",
            report.to_str().unwrap(),
        ];
        let built = workshop.build(text, &more);
        assert_eq!(built.status, 65, "{text}: {}", built.stderr);
        let last = built
            .stderr
            .lines()
            .find_map(|line| line.strip_prefix("error: "));
        assert!(last.unwrap().starts_with(place), "{text}: {}", built.stderr);
        let report = std::fs::read_to_string(&report).unwrap();
        let report: Value = serde_json::from_str(&report).unwrap();
        let told = match &report["outcome"]["step"] {
            Value::Null => report["outcome"]["message"].as_str().unwrap().to_owned(),
            step => format!(
                "{}, line {}: {}",
                step["file"].as_str().unwrap(),
                step["line"],
                [&step["text"], &report["outcome"]["message"]]
                    .map(|part| part.as_str().unwrap())
                    .join(": ")
            ),
        };
        assert!(told.starts_with(place), "{text}: {report:#}");
    }
}

#[test]
fn an_image_that_its_registry_refuses_is_told_with_the_line_that_names_it() {
    let test = "an_image_that_its_registry_refuses_is_told_with_the_line_that_names_it";
    if !can_build(test) {
        return;
    }
    let workshop = Workshop::with_files();
    let report = workshop.path("report");
    let registry = Proxy::start(1, |_, _| Action::Answer(403, Vec::new(), "not you"));
    let image = format!("{}/team/os:v1", registry.host);
    let text = format!("FROM base AS x\nFROM base\nCOPY --from={image} /a /b\n");
    let more = [
        "--plain-http",
        &registry.host,
        "--report",
        report.to_str().unwrap(),
    ];
    let built = workshop.build(&text, &more);
    assert_eq!(built.status, 77, "{}", built.stderr);
    let instruction = format!("COPY --from={image} /a /b");
    let told = format!("error: Containerfile, line 3: {instruction}: pull {image}: ");
    assert!(built.stderr.contains(&told), "{}", built.stderr);
    let report = std::fs::read_to_string(&report).unwrap();
    let report: Value = serde_json::from_str(&report).unwrap();
    let outcome = &report["outcome"];
    assert_eq!(
        outcome["step"],
        json!({"file": "Containerfile", "line": 3, "text": instruction})
    );
    assert_eq!(outcome["refusedBy"], image);
}

/// What `script` shows of a build at a terminal of its own, 100 columns wide, and how it ended.
fn at_a_terminal(workshop: &Workshop, containerfile: &str, progress: &str) -> common::Built {
    workshop.base();
    std::fs::write(workshop.path("Containerfile"), containerfile).unwrap();
    let whole = workshop.command(&[
        "--containerfile",
        workshop.path("Containerfile").to_str().unwrap(),
        "--context",
        workshop.path("context").to_str().unwrap(),
        "--build-context",
        &format!("base={}", workshop.base()),
        "--push",
        &format!("oci:{}:v1", workshop.path("out").display()),
        "--progress",
        progress,
    ]);
    let words: Vec<_> = std::iter::once(whole.get_program())
        .chain(whole.get_args())
        .collect();
    let line: Vec<_> = words.iter().map(|word| word.to_str().unwrap()).collect();
    let line = format!("stty cols 100 rows 30; {}", line.join(" "));
    let mut script = Command::new("script");
    script.args(["-qefc", &line, "/dev/null"]);
    common::Built::of(&script.stdin(std::process::Stdio::null()).output().unwrap())
}

#[test]
fn a_terminal_shows_what_goes_on_and_a_log_has_lines_only() {
    let test = "a_terminal_shows_what_goes_on_and_a_log_has_lines_only";
    if !can_build(test) || !common::has("script", test) {
        return;
    }
    let workshop = Workshop::with_files();
    let text = "FROM base\nRUN echo said; sleep 1\nRUN exit 3\n";
    for progress in ["auto", "tty"] {
        let shown = at_a_terminal(&workshop, text, progress);
        assert_eq!(shown.status, 65, "{}", shown.stdout);
        // A line of the log, and one that is drawn again and again with its time.
        for part in [
            "[stage 1/1 step 1/2]   said",
            "0s [stage 1/1 step 1/2] RUN echo",
            "\u{1b}[2K",
            "error: Containerfile, line 3",
        ] {
            assert!(
                shown.stdout.contains(part),
                "{progress}, {part:?}: {:?}",
                shown.stdout
            );
        }
        let (_, end) = shown.stdout.rsplit_once("error: ").unwrap();
        assert!(
            !end.contains("[stage"),
            "what was going on is gone: {end:?}"
        );
    }
    let plain = at_a_terminal(&workshop, text, "plain");
    assert!(!plain.stdout.contains('\u{1b}'), "{:?}", plain.stdout);
    let log = workshop.build(text, &[]);
    assert!(!log.stderr.contains('\u{1b}'), "{:?}", log.stderr);
    let refused = workshop.build(text, &["--progress", "tty"]);
    assert_eq!(refused.status, 64, "{}", refused.stderr);
    assert!(
        refused.stderr.contains("standard error is no terminal"),
        "{}",
        refused.stderr
    );
}
