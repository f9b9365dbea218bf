//! Does a second attempt of a build go on where the first was killed? The program against a real docker-registry, killed at every request that changes something
//! there and in every step.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that can't go on fails"
)]

mod common;

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use common::proxy::{Action, Proxy, Request};
use common::{Built, Program, RegistryServer, Workshop, can_build};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// Like the one that is documented: what a stage makes goes into the next, and the last one installs something.
const CONTAINERFILE: &str = "\
FROM base AS tool
RUN echo ran tool && echo tool > /tool
FROM base AS configs
COPY --from=tool /tool /tool
RUN echo ran one && cat /tool > /one && mkdir /d && echo x > /d/x
FROM configs AS final
RUN echo ran two && rm /one && rm -r /d && mkdir /d && echo two > /d/two
LABEL a=b
RUN echo ran three && test ! -e /one && test ! -e /d/x && cat /d/two > /three
";

/// What `STAGE.STEP` of a note means that the next attempt must not run: the steps up to there, and `tool`, once its file is copied.
fn finished(noted: &str) -> &'static [&'static str] {
    match noted {
        "" => &[],
        "1.1" => &["tool"],
        "1.2" => &["tool", "one"],
        "2.1" => &["tool", "one", "two"],
        "2.3" => &["tool", "one", "two", "three"],
        other => panic!("no layer is made after {other}"),
    }
}

fn workshop(program: Program, test: &str) -> Option<(Workshop, RegistryServer)> {
    if !can_build(test) || !program.is_there(test) {
        return None;
    }
    let workshop = Workshop::new();
    let registry = RegistryServer::start(program, &workshop.path(""));
    workshop.base();
    Some((workshop, registry))
}

fn command(workshop: &Workshop, host: &str, containerfile: &str, more: &[&str]) -> Command {
    std::fs::write(workshop.path("Containerfile"), containerfile).unwrap();
    let base = format!("base={}", workshop.base());
    let push = format!("{host}/org/os:v1");
    let file = workshop.path("Containerfile").display().to_string();
    let context = workshop.path("context").display().to_string();
    let mut arguments = vec!["--containerfile", &file, "--context", &context];
    arguments.extend(["--build-context", &base, "--push", &push]);
    arguments.extend(["--plain-http", host]);
    for option in [
        ["--source-date-epoch", "1700000000"],
        ["--build-uid", "1-2-3"],
    ] {
        if !more.contains(&option[0]) {
            arguments.extend(option);
        }
    }
    arguments.extend(more);
    workshop.command(&arguments)
}

fn build(workshop: &Workshop, host: &str, containerfile: &str, more: &[&str]) -> Built {
    Built::of(
        &command(workshop, host, containerfile, more)
            .output()
            .unwrap(),
    )
}

/// After which instruction the last noted layer is; empty if there is no note.
fn noted(registry: &RegistryServer) -> String {
    let Some(note) = registry.manifest("org/os", "v1-strata-steps") else {
        return String::new();
    };
    let note: Value = serde_json::from_slice(&note).unwrap();
    let last = note["layers"].as_array().unwrap().last().unwrap();
    let after = &last["annotations"]["strata.image-mode.dev/after"];
    after.as_str().unwrap().to_owned()
}

/// What ran, by the lines that it printed.
fn ran(built: &Built) -> Vec<String> {
    let lines = built.output().into_iter();
    lines
        .filter_map(|line| line.strip_prefix("ran "))
        .map(str::to_owned)
        .collect()
}

/// An attempt that is killed at the request that the rule has something to do with; false if none came.
fn attempt_until(
    workshop: &Workshop,
    registry: &RegistryServer,
    more: &[&str],
    mut rule: impl FnMut(&Request) -> Option<Action> + Send + 'static,
) -> bool {
    let victim: Arc<Mutex<Option<Pid>>> = Arc::default();
    let of_proxy = Arc::clone(&victim);
    let proxy = Proxy::start(registry.port(), move |request, _| {
        let Some(action) = rule(request) else {
            return Action::Forward;
        };
        let victim = of_proxy.lock().unwrap().take().unwrap();
        kill_process(victim, Signal::KILL).unwrap();
        action
    });
    let mut command = command(workshop, &proxy.host, CONTAINERFILE, more);
    // The proxy waits until we know whom it kills.
    let mut slot = victim.lock().unwrap();
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = child.spawn().unwrap();
    *slot = Pid::from_raw(i32::try_from(child.id()).unwrap());
    drop(slot);
    let built = Built::of(&child.wait_with_output().unwrap());
    let killed = victim.lock().unwrap().is_none();
    assert_eq!(built.status == 0, !killed, "{}", built.stderr);
    killed
}

/// The attempt after one that was killed: nothing that was noted runs again, and the image is the one that an attempt makes that isn't killed.
fn go_on(workshop: &Workshop, registry: &RegistryServer, wanted: &str, more: &[&str]) -> usize {
    let noted = noted(registry);
    let built = build(workshop, &registry.host, CONTAINERFILE, more).ok();
    assert_eq!(built.stdout, wanted, "after {noted:?}: {}", built.stderr);
    for step in ran(&built) {
        assert!(
            !finished(&noted).contains(&step.as_str()),
            "{step} ran again after {noted:?}: {}",
            built.stderr
        );
    }
    assert_eq!(registry.manifest("org/os", "v1-strata-steps"), None);
    finished(&noted).len()
}

fn empty(workshop: &Workshop) {
    for folder in ["registry", "scratch"] {
        std::fs::remove_dir_all(workshop.path(folder)).unwrap();
    }
}

fn an_attempt_after_one_killed_at_any_change_to_the_registry_makes_the_same_image(
    program: Program,
) {
    let test = "an_attempt_after_one_killed_at_any_change_to_the_registry_makes_the_same_image";
    let worker = |layers: &'static str| {
        let Some((workshop, registry)) = workshop(program, test) else {
            return;
        };
        let more = ["--layers", layers];
        let wanted = build(&workshop, &registry.host, CONTAINERFILE, &more);
        let wanted = wanted.ok().stdout;
        let mut most = 0;
        for at in 0.. {
            empty(&workshop);
            let mut changes = 0;
            let killed = attempt_until(&workshop, &registry, &more, move |request| {
                changes += usize::from(!["GET", "HEAD"].contains(&request.method.as_str()));
                (changes == at + 1).then(|| {
                    changes += 1;
                    // The registry has done it, or has not.
                    match at % 2 {
                        0 => Action::LoseAnswer,
                        _ => Action::Drop,
                    }
                })
            });
            if !killed {
                assert!(at > 10, "only {at} changes");
                break;
            }
            most = most.max(go_on(&workshop, &registry, &wanted, &more));
        }
        assert_eq!(most, 4, "no attempt went on behind the last step");
    };
    std::thread::scope(|scope| {
        let workers = ["step", "stage"].map(|layers| scope.spawn(move || worker(layers)));
        for worker in workers {
            worker.join().unwrap();
        }
    });
}

fn an_attempt_after_one_killed_in_any_step_makes_the_same_image(program: Program) {
    let test = "an_attempt_after_one_killed_in_any_step_makes_the_same_image";
    let Some((workshop, registry)) = workshop(program, test) else {
        return;
    };
    let more = ["--layers", "step"];
    let wanted = build(&workshop, &registry.host, CONTAINERFILE, &more);
    let wanted = wanted.ok().stdout;
    for step in ["tool", "one", "two", "three"] {
        empty(&workshop);
        let mut child = command(&workshop, &registry.host, CONTAINERFILE, &more)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        while !line.ends_with(&format!("ran {step}\n")) {
            line.clear();
            assert_ne!(lines.read_line(&mut line).unwrap(), 0, "{step} never ran");
        }
        child.kill().unwrap();
        child.wait().unwrap();
        // All its processes are gone once nobody can write any more.
        lines.read_to_string(&mut line).unwrap();
        go_on(&workshop, &registry, &wanted, &more);
    }
}

/// An attempt that has pushed all layers, but not the image.
fn leave_a_note(workshop: &Workshop, registry: &RegistryServer) {
    let killed = attempt_until(workshop, registry, &["--layers", "step"], |request| {
        let is_image = request.is("PUT", "/manifests/v1") && request.path.ends_with("/v1");
        is_image.then_some(Action::Drop)
    });
    assert!(killed);
    assert_eq!(noted(registry), "2.3");
}

fn a_note_counts_only_for_the_same_build_and_the_same_inputs_and_while_its_layers_are_there(
    program: Program,
) {
    let test =
        "a_note_counts_only_for_the_same_build_and_the_same_inputs_and_while_its_layers_are_there";
    let Some((workshop, registry)) = workshop(program, test) else {
        return;
    };
    let all = ["tool", "one", "two", "three"];
    let step = ["--layers", "step"];
    leave_a_note(&workshop, &registry);
    let same = build(&workshop, &registry.host, CONTAINERFILE, &step).ok();
    assert_eq!(ran(&same), [""; 0], "{}", same.stderr);
    assert!(
        same.stderr.contains(
            "[stage 3/3 step 3/3] is where this attempt goes on: an earlier one has pushed 4 layers"
        ),
        "{}",
        same.stderr
    );
    type Changed = fn(&Workshop, &RegistryServer) -> (Vec<&'static str>, String);
    let cases: [(&str, Changed, &[&str]); 5] = [
        (
            "another build",
            |_, _| (vec!["--build-uid", "4-5-6"], CONTAINERFILE.to_owned()),
            &all,
        ),
        (
            "another Containerfile",
            |_, _| (Vec::new(), format!("{CONTAINERFILE}RUN echo ran more\n")),
            &["tool", "one", "two", "three", "more"],
        ),
        (
            "another context",
            |workshop, _| {
                workshop.file("new", "new");
                (Vec::new(), CONTAINERFILE.to_owned())
            },
            &all,
        ),
        (
            "another time",
            |_, _| {
                (
                    vec!["--source-date-epoch", "1700000001"],
                    CONTAINERFILE.to_owned(),
                )
            },
            &all,
        ),
        (
            "a layer that the registry lost",
            |_, registry| {
                let note = registry.manifest("org/os", "v1-strata-steps").unwrap();
                let note: Value = serde_json::from_slice(&note).unwrap();
                registry.lose_blob(note["layers"][2]["digest"].as_str().unwrap());
                (Vec::new(), CONTAINERFILE.to_owned())
            },
            &["two", "three"],
        ),
    ];
    for (name, change, runs) in cases {
        empty(&workshop);
        leave_a_note(&workshop, &registry);
        let (arguments, text) = change(&workshop, &registry);
        let arguments = [&step[..], &arguments].concat();
        let built = build(&workshop, &registry.host, &text, &arguments).ok();
        assert_eq!(ran(&built), runs, "{name}: {}", built.stderr);
    }
}

fn a_note_is_found_where_it_was_left_whatever_is_said_of_images_that_are_pulled(program: Program) {
    let test = "a_note_is_found_where_it_was_left_whatever_is_said_of_images_that_are_pulled";
    let Some((workshop, registry)) = workshop(program, test) else {
        return;
    };
    let host = &registry.host;
    let elsewhere = Proxy::start(registry.port(), |_, _| Action::Drop);
    let policy = r#"{"default": [{"type": "reject"}]}"#.to_owned();
    let mirror = format!(
        "[[registry]]\nlocation = \"{host}\"\nmirror = [{{location = \"{}\", insecure = true}}]\n",
        elsewhere.host
    );
    let moved = format!(
        "[[registry]]\nprefix = \"{host}\"\nlocation = \"{}\"\ninsecure = true\n",
        elsewhere.host
    );
    for (option, text) in [
        ("--signature-policy", policy),
        ("--registries-conf", mirror),
        ("--registries-conf", moved),
    ] {
        leave_a_note(&workshop, &registry);
        let path = workshop.path("rules").display().to_string();
        std::fs::write(&path, &text).unwrap();
        let more = ["--layers", "step", option, &path];
        let built = build(&workshop, host, CONTAINERFILE, &more).ok();
        assert_eq!(ran(&built), [""; 0], "{text}: {}", built.stderr);
        assert_eq!(elsewhere.seen().len(), 0, "{text}");
        empty(&workshop);
    }
}

fn a_build_that_ends_for_good_leaves_no_note_unless_the_registry_refuses(program: Program) {
    let test = "a_build_that_ends_for_good_leaves_no_note_unless_the_registry_refuses";
    let Some((workshop, registry)) = workshop(program, test) else {
        return;
    };
    let text = format!("{CONTAINERFILE}RUN false\n");
    let built = build(&workshop, &registry.host, &text, &["--layers", "step"]);
    assert_eq!(built.status, 65, "{}", built.stderr);
    assert_eq!(noted(&registry), "");
    let keeps = Proxy::start(registry.port(), |request, _| {
        match request.method.as_str() {
            "DELETE" => Action::Answer(405, Vec::new(), ""),
            _ => Action::Forward,
        }
    });
    let built = build(&workshop, &keeps.host, CONTAINERFILE, &["--layers", "step"]).ok();
    let deletions = keeps.seen();
    let deletions = deletions.iter().filter(|r| r.method == "DELETE").count();
    assert_eq!(deletions, 1, "it was told once: {}", built.stderr);
    // What stays does no harm to the next build of that name.
    let again = build(
        &workshop,
        &registry.host,
        CONTAINERFILE,
        &["--layers", "step"],
    )
    .ok();
    assert_eq!(again.stdout, built.stdout);
    assert_eq!(noted(&registry), "");
}

/// Each step first does what `/marks/hog` says; no attempt sees the same one.
const HOGS: &str = "\
FROM base AS tool
RUN sh /marks/hog tool && echo ran tool && echo tool > /tool
FROM base AS configs
COPY --from=tool /tool /tool
RUN sh /marks/hog one && echo ran one && cat /tool > /one && mkdir /d && echo x > /d/x
FROM configs AS final
RUN sh /marks/hog two && echo ran two && rm /one && rm -r /d && mkdir /d && echo two > /d/two
LABEL a=b
RUN sh /marks/hog three && echo ran three && test ! -e /one && test ! -e /d/x && cat /d/two > /three
";

/// Attempts in a narrow place fail in each step in turn, with this status and these words; those after them, with enough of all, make the same image.
fn attempts_in(
    workshop: &Workshop,
    registry: &RegistryServer,
    hog: &str,
    narrow: &str,
    (status, words): (i32, &str),
) {
    let marks = workshop.path("marks");
    std::fs::create_dir_all(&marks).unwrap();
    let volume = format!("{}:/marks:ro", marks.display());
    let more = ["--layers", "step", "--volume", &volume];
    let write_hog = |hog: &str| std::fs::write(marks.join("hog"), hog).unwrap();
    write_hog("");
    let wanted = build(workshop, &registry.host, HOGS, &more).ok().stdout;
    for step in ["tool", "one", "two", "three"] {
        empty(workshop);
        write_hog(&format!("if [ $1 = {step} ]; then {hog}; fi\n"));
        let whole = command(workshop, &registry.host, HOGS, &more);
        let mut narrowed = Command::new("unshare");
        narrowed.args(["-m", "sh", "-c", &format!("{narrow} && exec \"$@\""), "sh"]);
        narrowed.arg(whole.get_program()).args(whole.get_args());
        let built = Built::of(&narrowed.output().unwrap());
        assert_eq!(built.status, status, "{step}: {}", built.stderr);
        let told = built
            .stderr
            .lines()
            .find(|line| line.starts_with("error: "));
        let told = told.unwrap_or_default();
        assert!(
            told.contains(words) && told.contains(step),
            "{}",
            built.stderr
        );
        write_hog("");
        let noted = noted(registry);
        let built = build(workshop, &registry.host, HOGS, &more).ok();
        assert_eq!(built.stdout, wanted, "after {step}: {}", built.stderr);
        for again in ran(&built) {
            let is_done = finished(&noted).contains(&again.as_str());
            assert!(!is_done, "{again} ran again after {step}: {}", built.stderr);
        }
    }
}

#[test]
fn an_attempt_after_one_without_room_in_any_step_makes_the_same_image() {
    let test = "an_attempt_after_one_without_room_in_any_step_makes_the_same_image";
    let Some((workshop, registry)) = workshop(Program::Docker2, test) else {
        return;
    };
    let scratch = workshop.path("scratch");
    let narrow = format!("mount -t tmpfs -o size=32m tmpfs {}", scratch.display());
    let hog = "head -c 64m /dev/zero > /big || exit 1";
    let end = (75, "no space is left in the scratch folder");
    attempts_in(&workshop, &registry, hog, &narrow, end);
}

/// A cgroup of this test.
struct Limited(std::path::PathBuf);

impl Limited {
    fn new(megabytes: u64) -> Option<Self> {
        let name = format!("strata-test-{}", std::process::id());
        let cgroups = std::path::Path::new("/sys/fs/cgroup");
        for (folder, file) in [
            (cgroups.join("memory").join(&name), "memory.limit_in_bytes"),
            (cgroups.join(&name), "memory.max"),
        ] {
            // What is no cgroup's file can't be written: these are never made by us.
            if folder.parent().is_some_and(std::path::Path::exists)
                && std::fs::create_dir(&folder).is_ok()
            {
                let limited = Self(folder);
                let path = limited.0.join(file);
                if path.exists() && std::fs::write(path, (megabytes << 20).to_string()).is_ok() {
                    return Some(limited);
                }
            }
        }
        None
    }
}

impl Drop for Limited {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.0);
    }
}

#[test]
fn an_attempt_after_one_without_memory_in_any_step_makes_the_same_image() {
    let test = "an_attempt_after_one_without_memory_in_any_step_makes_the_same_image";
    let Some((workshop, registry)) = workshop(Program::Docker2, test) else {
        return;
    };
    let Some(limited) = Limited::new(192) else {
        return common::skip(
            test,
            "it needs the right to make cgroups with a memory limit",
        );
    };
    let narrow = format!("echo $$ > {}/cgroup.procs", limited.0.display());
    let hog = "dd if=/dev/zero of=/dev/null bs=400M count=1";
    let end = (65, "out of memory (limit 192 MiB)");
    attempts_in(&workshop, &registry, hog, &narrow, end);
}

with_both_registries! {
    an_attempt_after_one_killed_at_any_change_to_the_registry_makes_the_same_image
    an_attempt_after_one_killed_in_any_step_makes_the_same_image
    a_note_counts_only_for_the_same_build_and_the_same_inputs_and_while_its_layers_are_there
    a_note_is_found_where_it_was_left_whatever_is_said_of_images_that_are_pulled
    a_build_that_ends_for_good_leaves_no_note_unless_the_registry_refuses
}
