//! Does a build that somebody stops leave anything behind, and does it say who stopped it? The program as shipped, and signals as terminals and others send them.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that can't go on fails"
)]

mod common;

use std::fs;
use std::net::TcpListener;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::{Built, Workshop, can_build};
use serde_json::Value;

/// Whose names of processes hold `text`.
fn running(text: &str) -> usize {
    let found = Command::new("pgrep").args(["-fc", text]).output().unwrap();
    String::from_utf8_lossy(&found.stdout)
        .trim()
        .parse()
        .unwrap()
}

fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < Duration::from_secs(60), "never: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Its address, and how often it was connected to.
fn silent_registry() -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let asked = Arc::<AtomicUsize>::default();
    let count = Arc::clone(&asked);
    std::thread::spawn(move || {
        let mut open = Vec::new();
        for connection in listener.incoming() {
            open.push(connection.unwrap());
            count.store(open.len(), Ordering::Relaxed);
        }
    });
    (address, asked)
}

/// The workshop's Containerfile, in a group of its own; the report goes to `report`.
fn start(workshop: &Workshop, base: &str, temporary: &Path, more: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_strata-builder"))
        .args(["build", "--build-context", base])
        .args(more)
        .arg("--containerfile")
        .arg(workshop.path("Containerfile"))
        .arg("--context")
        .arg(workshop.path("context"))
        .args(["--push", &format!("oci:{}", workshop.path("out").display())])
        .arg("--report")
        .arg(workshop.path("report"))
        .env("TMPDIR", temporary)
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Whether a thread of a process whose command line holds `text` waits for the other end of a named pipe.
fn is_stuck(text: &str) -> bool {
    let found = Command::new("pgrep").args(["-f", text]).output().unwrap();
    let processes = String::from_utf8(found.stdout).unwrap();
    let tasks = processes.lines().filter_map(|process| {
        let tasks = fs::read_dir(format!("/proc/{process}/task"));
        Some(tasks.ok()?.filter_map(Result::ok))
    });
    tasks.flatten().any(|task| {
        let place = fs::read_to_string(task.path().join("wchan"));
        place.is_ok_and(|place| ["wait_for_partner", "fifo_open"].contains(&place.as_str()))
    })
}

fn send(signal: &str, target: &str) {
    let mut kill = Command::new("kill");
    let sent = kill.args([&format!("-{signal}"), "--", target]).status();
    assert!(sent.unwrap().success());
}

#[test]
fn a_stopped_build_ends_soon_whatever_a_thread_of_it_waits_for() {
    let test = "a_stopped_build_ends_soon_whatever_a_thread_of_it_waits_for";
    if !can_build(test) || !common::has("pgrep", test) {
        return;
    }
    for (tier, text) in [
        // the thread that waits for all others
        ("auto", None),
        // one of the runtime's own
        ("auto", Some("FROM base\nRUN true\n")),
        ("userns", Some("FROM base\nRUN true\n")),
        ("root-flat", Some("FROM base\nRUN true\n")),
    ] {
        let row = format!("{tier}: {text:?}");
        let workshop = Workshop::new();
        let base = format!("base={}", workshop.base());
        let temporary = tempfile::tempdir().unwrap();
        // Nobody will ever write to it: who opens it waits, as for a disk that doesn't answer.
        let hangs = match text {
            None => workshop.path("Containerfile"),
            Some(text) => {
                fs::write(workshop.path("Containerfile"), text).unwrap();
                let image = common::Image::read(&workshop.path("base"));
                let layer = image.manifest["layers"][0]["digest"].as_str().unwrap();
                let layer = workshop.path("base/blobs").join(layer.replace(':', "/"));
                fs::remove_file(&layer).unwrap();
                layer
            }
        };
        let made = Command::new("mkfifo").arg(&hangs).status();
        assert!(made.unwrap().success());
        let build = start(&workshop, &base, temporary.path(), &["--tier", tier]);
        let ours = workshop.path("report").display().to_string();
        wait_until(&row, || is_stuck(&ours));
        send("TERM", &build.id().to_string());
        let began = Instant::now();
        let built = Built::of(&build.wait_with_output().unwrap());
        assert!(began.elapsed() < Duration::from_secs(10), "{row}: too late");
        assert_eq!(built.status, 143, "{row}: {}", built.stderr);
        let told = "the build was stopped by SIGTERM";
        let last = built.stderr.lines().last();
        assert_eq!(last, Some(format!("error: {told}").as_str()), "{row}");
        let report = fs::read(workshop.path("report")).unwrap();
        let report: Value = serde_json::from_slice(&report).unwrap();
        assert_eq!(report["outcome"]["message"], told, "{row}");
        assert_eq!(report["outcome"]["class"], "transient", "{row}");
        assert_ne!(report["tier"], "none", "{row}");
        let left: Vec<_> = fs::read_dir(temporary.path()).unwrap().collect();
        assert!(left.is_empty(), "{row}: {left:?}");
    }
}

#[test]
fn a_stopped_build_says_by_what_and_leaves_neither_files_nor_processes() {
    let test = "a_stopped_build_says_by_what_and_leaves_neither_files_nor_processes";
    if !can_build(test) || !common::has("pgrep", test) {
        return;
    }
    let workshop = Workshop::new();
    let (registry, asked) = silent_registry();
    let base = format!("base={}", workshop.base());
    let (step, pull) = (
        "FROM base\nRUN trap '' INT TERM; touch /f; sleep 98.76 & sleep 98.76; wait\n".to_owned(),
        format!("FROM {}/x\nRUN true\n", registry),
    );
    for (tier, text, to, signal, code) in [
        ("auto", &step, "process", "TERM", 143),
        ("auto", &step, "terminal", "INT", 130),
        ("userns", &step, "terminal", "INT", 130),
        ("userns", &step, "process", "HUP", 129),
        ("root-flat", &step, "process", "INT", 130),
        ("auto", &pull, "process", "TERM", 143),
        ("userns", &pull, "terminal", "INT", 130),
    ] {
        let row = format!("{tier}, {signal} to the {to}: {text}");
        let temporary = tempfile::tempdir().unwrap();
        let report = workshop.path("report");
        fs::write(workshop.path("Containerfile"), text).unwrap();
        let more = ["--tier", tier, "--plain-http", &registry];
        let build = start(&workshop, &base, temporary.path(), &more);
        let before = asked.load(Ordering::Relaxed);
        wait_until(&row, || {
            running("sleep 98.76") > 1 || asked.load(Ordering::Relaxed) > before
        });
        let target = match to {
            "terminal" => format!("-{}", build.id()),
            _ => build.id().to_string(),
        };
        send(signal, &target);
        let began = Instant::now();
        let built = Built::of(&build.wait_with_output().unwrap());
        assert!(began.elapsed() < Duration::from_secs(20), "{row}: too late");
        assert_eq!(built.status, code, "{row}: {}", built.stderr);
        let told = format!("the build was stopped by SIG{signal}");
        let last = built.stderr.lines().last();
        assert_eq!(last, Some(format!("error: {told}").as_str()), "{row}");
        let report: Value = serde_json::from_slice(&fs::read(report).unwrap()).unwrap();
        assert_eq!(report["outcome"]["message"], told, "{row}");
        assert_eq!(report["outcome"]["class"], "transient", "{row}");
        let left: Vec<_> = fs::read_dir(temporary.path()).unwrap().collect();
        assert!(left.is_empty(), "{row}: {left:?}");
        wait_until(&row, || running("sleep 98.76") == 0);
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let folder = temporary.path().display().to_string();
        assert!(!mounts.contains(&folder), "{row}: {mounts}");
    }
}
