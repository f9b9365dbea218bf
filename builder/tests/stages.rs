//! What happens at the same time, and what ends with what? Stages beside each other, uploads beside steps. Nothing here measures a time: what must happen at
//! once waits for each other.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that can't go on fails"
)]

mod common;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::proxy::{Action, Proxy};
use common::{Built, Program, RegistryServer, Workshop, can_build};

const EPOCH: [&str; 2] = ["--source-date-epoch", "1700000000"];

/// Two stages, each of which ends only if the other runs meanwhile, and one that takes from both.
const MEETING: &str = "\
FROM base AS a
RUN --mount=type=cache,id=c,target=/c touch /c/a; until test -e /c/b; do sleep 0.1; done; echo a > /a
FROM base AS b
RUN --mount=type=cache,id=c,target=/c touch /c/b; until test -e /c/a; do sleep 0.1; done; echo b > /b
FROM base
COPY --from=b /b /b
COPY --from=a /a /a
RUN cat /a /b > /ab
";

#[test]
fn stages_that_need_nothing_of_each_other_run_at_once_and_one_by_one_to_the_same_image() {
    if !can_build(
        "stages_that_need_nothing_of_each_other_run_at_once_and_one_by_one_to_the_same_image",
    ) {
        return;
    }
    let workshop = Workshop::new();
    let at_once = workshop.build(MEETING, &EPOCH).ok();
    for line in at_once.stderr.lines().filter(|line| line.contains("RUN")) {
        assert!(line.contains("[stage "), "{line}");
    }
    // One after the other, what waits for the other would wait for ever.
    let alone = MEETING.replace("until test -e /c/b; do sleep 0.1; done; ", "");
    let alone = alone.replace("until test -e /c/a; do sleep 0.1; done; ", "");
    for tier in ["auto", "flat"] {
        let more = [&EPOCH[..], &["--tier", tier]].concat();
        let built = workshop.build(&alone, &more).ok();
        assert_eq!(built.stdout, at_once.stdout, "{tier}: {}", built.stderr);
    }
}

#[test]
fn a_stage_that_fails_ends_the_others_at_once_and_is_the_one_that_is_told() {
    if !can_build("a_stage_that_fails_ends_the_others_at_once_and_is_the_one_that_is_told") {
        return;
    }
    let workshop = Workshop::new();
    let text = "\
FROM base AS a
RUN --mount=type=cache,id=c,target=/c touch /c/a; sleep 5000; echo over
RUN echo never
FROM base AS b
RUN --mount=type=cache,id=c,target=/c until test -e /c/a; do sleep 0.1; done; echo no; exit 7
FROM base
COPY --from=a / /a
COPY --from=b / /b
";
    let began = Instant::now();
    let built = workshop.build(text, &["--report", "/dev/stdout"]);
    assert!(began.elapsed() < Duration::from_secs(2000));
    assert_eq!(built.status, 65, "{}", built.stderr);
    let report: serde_json::Value = serde_json::from_str(&built.stdout).unwrap();
    let failed = &report["outcome"];
    assert_eq!(failed["step"]["line"], 5, "{report:#}");
    assert_eq!(failed["step"]["exitStatus"], 7, "{report:#}");
    assert_eq!(built.output(), ["no"]);
}

#[test]
fn a_locked_cache_is_one_stages_at_a_time_and_two_of_them_never_wait_for_each_other() {
    if !can_build(
        "a_locked_cache_is_one_stages_at_a_time_and_two_of_them_never_wait_for_each_other",
    ) {
        return;
    }
    let workshop = Workshop::new();
    let mount = |id| format!("--mount=type=cache,sharing=locked,id={id},target=/{id}");
    let (x, y) = (mount("x"), mount("y"));
    // Twice in one step is once.
    let again = x.replace("target=/x", "target=/z");
    let alone = "mkdir /x/held && sleep 0.2 && rmdir /x/held && test -e /z";
    let run = |mounts: &str| format!("RUN {mounts} {alone}\n").repeat(5);
    let text = format!(
        "FROM base AS a\n{}FROM base AS b\n{}FROM base\nCOPY --from=a /bin/sh /a\nCOPY --from=b /bin/sh /b\n",
        run(&format!("{x} {y} {again}")),
        run(&format!("{again} {y} {x}")),
    );
    workshop.build(&text, &[]).ok();
}

fn marked(path: &Path) -> bool {
    let deadline = Instant::now() + Duration::from_secs(120);
    while !path.exists() {
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    true
}

/// A build from scratch, so that the only layers are those of its steps, to a registry behind a proxy.
fn from_scratch(workshop: &Workshop, host: &str, steps: &str, marks: &Path) -> Built {
    workshop.file("busybox", std::fs::read("/bin/busybox").unwrap());
    let file = workshop.path("Containerfile");
    let text = format!(
        "FROM scratch\nSHELL [\"/busybox\", \"sh\", \"-c\"]\nCOPY --chmod=755 busybox /busybox\n{steps}"
    );
    std::fs::write(&file, text).unwrap();
    let volume = format!("{}:/marks:rw", marks.display());
    workshop.run(&[
        "--containerfile",
        file.to_str().unwrap(),
        "--context",
        workshop.path("context").to_str().unwrap(),
        "--push",
        &format!("{host}/org/os:v1"),
        "--plain-http",
        host,
        "--layers",
        "step",
        "--volume",
        &volume,
    ])
}

fn registry(test: &str) -> Option<(Workshop, RegistryServer, PathBuf)> {
    if !can_build(test) || !Program::Docker2.is_there(test) {
        return None;
    }
    let workshop = Workshop::new();
    let registry = RegistryServer::start(Program::Docker2, &workshop.path(""));
    let marks = workshop.path("marks");
    std::fs::create_dir(&marks).unwrap();
    Some((workshop, registry, marks))
}

#[test]
fn the_next_step_runs_while_a_layer_uploads() {
    let Some((workshop, registry, marks)) = registry("the_next_step_runs_while_a_layer_uploads")
    else {
        return;
    };
    let mark = marks.join("second");
    let proxy = Proxy::start(registry.port(), move |request, _| {
        // The first layer is not taken before the second step has run.
        let is_upload = !["GET", "HEAD"].contains(&request.method.as_str());
        match is_upload && !marked(&mark) {
            true => Action::Answer(400, Vec::new(), "the second step never ran"),
            false => Action::Forward,
        }
    });
    let steps = "RUN /busybox touch /marks/second /two\nRUN /busybox touch /three\n";
    let built = from_scratch(&workshop, &proxy.host, steps, &marks).ok();
    let seen = proxy.seen();
    let uploads = seen.iter().filter(|r| r.is("PUT", "/blobs/uploads/"));
    assert_eq!(uploads.count(), 4, "{}", built.stderr);
}

#[test]
fn a_registry_that_takes_no_layer_ends_the_step_that_runs() {
    let test = "a_registry_that_takes_no_layer_ends_the_step_that_runs";
    let Some((workshop, registry, marks)) = registry(test) else {
        return;
    };
    let mark = marks.join("second");
    let proxy = Proxy::start(registry.port(), move |request, _| {
        match request.method.as_str() {
            "GET" | "HEAD" => Action::Forward,
            _ if marked(&mark) => Action::Answer(403, Vec::new(), ""),
            _ => Action::Forward,
        }
    });
    let steps = "RUN /busybox touch /marks/second; /busybox sleep 5000; echo over\n";
    let built = from_scratch(&workshop, &proxy.host, steps, &marks);
    assert_eq!(built.status, 77, "{}", built.stderr);
    assert_eq!(built.output(), [""; 0]);
}

#[test]
fn a_report_says_what_was_done_and_how_long_each_step_took() {
    if !can_build("a_report_says_what_was_done_and_how_long_each_step_took") {
        return;
    }
    let workshop = Workshop::new();
    let report = workshop.path("report");
    let more = ["--report", report.to_str().unwrap()];
    let text = "FROM base AS a\nRUN sleep 0.2; echo a > /a\nFROM base\nCOPY --from=a /a /a\nRUN cat /a > /b\nRUN false\n";
    for (text, steps) in [
        (text, [(1, 1), (2, 1), (2, 2)]),
        (&text[..text.len() - 10], [(1, 1), (2, 1), (2, 2)]),
    ] {
        workshop.build(text, &more);
        let report: serde_json::Value =
            serde_json::from_str(&std::fs::read_to_string(&report).unwrap()).unwrap();
        let work = &report["work"];
        let times = work["steps"].as_array().unwrap();
        let told: Vec<_> = times
            .iter()
            .map(|s| (s["stage"].as_u64().unwrap(), s["step"].as_u64().unwrap()))
            .collect();
        assert_eq!(told, steps, "{report:#}");
        assert!(times[0]["millis"].as_u64() >= Some(200), "{report:#}");
        assert!(work["unpackedBytes"].as_u64() > Some(100_000), "{report:#}");
        let layers = work["layerBytes"].as_u64().unwrap();
        assert_eq!(
            layers > 0,
            report["outcome"]["result"] == "pushed",
            "{report:#}"
        );
        let base = ["Present", "Mounted", "Copied"]
            .map(|how| work[format!("baseLayers{how}")].as_u64().unwrap());
        // A build that fails may end before its base is through.
        let pushed = u64::from(layers > 0);
        assert!((pushed..=1).contains(&base.iter().sum()), "{report:#}");
    }
}
