//! Does a build that can't begin say who can end that? Files that aren't what they should be, and a machine without room.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that can't go on fails"
)]

mod common;

use std::process::Command;

use common::{Built, Workshop, can_build};
use serde_json::Value;

#[test]
fn a_file_that_is_not_what_it_should_be_is_its_authors() {
    if !can_build("a_file_that_is_not_what_it_should_be_is_its_authors") {
        return;
    }
    let workshop = Workshop::new();
    std::fs::write(workshop.path("bytes"), [0xff, 0xfe]).unwrap();
    std::fs::write(workshop.path("text"), "no JSON, no TOML, no PEM").unwrap();
    let path = |name: &str| workshop.path(name).display().to_string();
    let (absent, folder, bytes, text) =
        (path("absent"), path("context"), path("bytes"), path("text"));
    let secret = format!("id=x,src={absent}");
    let volume = format!("{absent}:/x");
    let report = path("report");
    for (arguments, status) in [
        (["--authfile", &absent], 65),
        (["--authfile", &folder], 65),
        (["--authfile", &bytes], 65),
        (["--authfile", &text], 65),
        (["--registries-conf", &absent], 65),
        (["--registries-conf", &bytes], 65),
        (["--registries-conf", &text], 64),
        (["--signature-policy", &absent], 65),
        (["--signature-policy", &bytes], 65),
        (["--signature-policy", &text], 64),
        (["--ca-bundle", &absent], 65),
        (["--ca-bundle", &folder], 65),
        (["--secret", &secret], 65),
        (["--volume", &volume], 65),
        (["--report", "/proc/no/such/folder"], 65),
    ] {
        let report = ["--report", &report];
        let is_report = arguments[0] == "--report";
        let more = [&arguments[..], if is_report { &[] } else { &report }].concat();
        let built = workshop.build("FROM base\nLABEL a=b\n", &more);
        assert_eq!(built.status, status, "{arguments:?}: {}", built.stderr);
        assert!(
            built.stderr.contains("error: "),
            "{arguments:?}: {}",
            built.stderr
        );
        if !is_report {
            let report: Value = serde_json::from_slice(&std::fs::read(report[1]).unwrap()).unwrap();
            assert!(
                report["outcome"]["message"].is_string(),
                "{arguments:?}: {report}"
            );
        }
    }
}

#[test]
fn a_scratch_disk_without_room_is_nobodys_and_passes() {
    let test = "a_scratch_disk_without_room_is_nobodys_and_passes";
    if !can_build(test) {
        return;
    }
    let workshop = Workshop::new();
    workshop.base();
    std::fs::write(workshop.path("Containerfile"), "FROM base\nRUN true\n").unwrap();
    let scratch = workshop.path("scratch").display().to_string();
    let file = workshop.path("Containerfile").display().to_string();
    let push = format!("oci:{}", workshop.path("out").display());
    let base = format!("base={}", workshop.base());
    let arguments = [
        "--containerfile",
        &file,
        "--build-context",
        &base,
        "--push",
        &push,
    ];
    let whole = workshop.command(&arguments);
    // room for nothing; for the folder, but not for what is in it
    for options in ["nr_inodes=1", "nr_inodes=2", "nr_inodes=12", "size=8k"] {
        let narrow = format!("mount -t tmpfs -o {options} tmpfs {scratch} && exec \"$@\"");
        let mut narrowed = Command::new("unshare");
        narrowed.args(["-m", "sh", "-c", &narrow, "sh"]);
        narrowed.arg(whole.get_program()).args(whole.get_args());
        let built = Built::of(&narrowed.output().unwrap());
        assert_eq!(built.status, 75, "{options}: {}", built.stderr);
        let (told, why) = (built.stderr.to_lowercase(), "no storage space");
        let is_told = told.contains(why) || told.contains("no space left on device");
        assert!(is_told, "{options}: {}", built.stderr);
    }
    Built::of(&workshop.command(&arguments).output().unwrap()).ok();
}
