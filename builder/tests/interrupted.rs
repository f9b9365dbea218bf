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
use std::process::{Command, Stdio};
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

fn wait_until(what: &str, is_so: impl Fn() -> bool) {
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
        let build = Command::new(env!("CARGO_BIN_EXE_strata-builder"))
            .args(["build", "--tier", tier, "--build-context", &base])
            .args(["--plain-http", &registry, "--containerfile"])
            .arg(workshop.path("Containerfile"))
            .arg("--context")
            .arg(workshop.path("context"))
            .args(["--push", &format!("oci:{}", workshop.path("out").display())])
            .arg("--report")
            .arg(&report)
            .env("TMPDIR", temporary.path())
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let before = asked.load(Ordering::Relaxed);
        wait_until(&row, || {
            running("sleep 98.76") > 1 || asked.load(Ordering::Relaxed) > before
        });
        let target = match to {
            "terminal" => format!("-{}", build.id()),
            _ => build.id().to_string(),
        };
        let mut kill = Command::new("kill");
        let sent = kill.args([&format!("-{signal}"), "--", &target]).status();
        assert!(sent.unwrap().success());
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
