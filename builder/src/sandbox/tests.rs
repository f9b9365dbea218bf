//! Real steps on a root made of busybox, in both tiers. They need root; without it they say so and pass.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::*;
use crate::overlay::{Overlay, XattrPrefix};

/// A test binary has no `main` of ours, so the re-executed copy is caught before the test harness starts.
#[used]
#[unsafe(link_section = ".init_array")]
static INTERNAL: extern "C" fn() = {
    extern "C" fn internal() {
        let arguments = fs::read("/proc/self/cmdline").unwrap_or_default();
        let mut arguments = arguments.split(|byte| *byte == 0).skip(1);
        let first = arguments.next();
        if let Some(b"in-root-until-killed") = first {
            enter(Tier::Root).expect("enter the tier");
            stage().output("sleep 9871");
        }
        for (mode, tier) in [("in-userns", Tier::Userns), ("in-rootless", Tier::Rootless)] {
            if first == Some(mode.as_bytes()) {
                let test = arguments.next().unwrap_or_default();
                in_user_namespace(tier, &String::from_utf8_lossy(test));
            }
        }
        if let Some(status) = internal_main() {
            std::process::exit(status.into());
        }
    }
    internal
};

/// Enters the tier as the program does, then runs one test (or a step that sleeps, until it is killed) as the harness would.
fn in_user_namespace(tier: Tier, test: &str) {
    let entered = enter(tier).expect("enter the tier");
    assert_eq!(
        entered,
        Entered {
            tier,
            xattrs: XattrPrefix::User
        }
    );
    if test.starts_with("sleep ") {
        stage().output(test);
    }
    let (_, run) = TESTS
        .iter()
        .find(|(name, _)| *name == test)
        .expect("a test of this name");
    run();
    std::process::exit(0);
}

/// A stage whose base is busybox.
struct Stage {
    overlay: Overlay,
    scratch: tempfile::TempDir,
    stop: Stop,
}

const SHELL: &str = "/bin/sh";

fn stage() -> Stage {
    let scratch = tempfile::tempdir().unwrap();
    let base = scratch.path().join("base");
    for directory in ["bin", "etc", "tmp", "proc", "run", "data"] {
        fs::create_dir_all(base.join(directory)).unwrap();
    }
    fs::copy("/bin/busybox", base.join("bin/busybox")).unwrap();
    let tools = "sh cat ls id mkdir rm touch echo env sleep stat hostname test mount umount ps kill sync head wc grep setsid ip chown chmod tr dd readlink mknod";
    for tool in tools.split(' ') {
        symlink("busybox", base.join("bin").join(tool)).unwrap();
    }
    fs::write(
        base.join("etc/passwd"),
        "root:x:0:0:root:/root:/bin/sh\nann:x:1000:1001::/home/ann:/bin/sh\n",
    )
    .unwrap();
    fs::write(
        base.join("etc/group"),
        "root:x:0:\nann:x:1001:\nwheel:x:10:ann\n",
    )
    .unwrap();
    let overlay = Overlay::mount(
        &[base],
        &scratch.path().join("stage"),
        XattrPrefix::of_this_process().unwrap(),
    )
    .unwrap();
    Stage {
        overlay,
        scratch,
        stop: Stop::new().unwrap(),
    }
}

impl Stage {
    fn spec(&self, script: &str) -> RunSpec<'_> {
        RunSpec {
            root: self.overlay.merged(),
            scratch: self.scratch.path(),
            argv: [SHELL, "-c", script].map(str::to_owned).to_vec(),
            env: vec![("PATH".to_owned(), "/bin".to_owned())],
            workdir: "/",
            user: "",
            mounts: Vec::new(),
            network: Network::Default,
            stdin: None,
            files: Vec::new(),
            timeout: Some(Duration::from_secs(60)),
            stop: &self.stop,
        }
    }

    fn output(&self, script: &str) -> Vec<String> {
        let (status, lines) = go(&self.spec(script));
        assert_eq!(status, ExitStatus::Exited(0), "{script}: {lines:?}");
        lines
    }

    /// Paths of the upper directory, sorted.
    fn changes(&self) -> Vec<String> {
        fn walk(directory: &Path, top: &Path, found: &mut Vec<String>) {
            for entry in fs::read_dir(directory).unwrap() {
                let entry = entry.unwrap();
                found.push(
                    entry
                        .path()
                        .strip_prefix(top)
                        .unwrap()
                        .display()
                        .to_string(),
                );
                if entry.file_type().unwrap().is_dir() {
                    walk(&entry.path(), top, found);
                }
            }
        }
        let mut found = Vec::new();
        walk(self.overlay.upper(), self.overlay.upper(), &mut found);
        found.sort();
        found
    }
}

fn go(spec: &RunSpec<'_>) -> (ExitStatus, Vec<String>) {
    let mut lines = Vec::new();
    let status = run(spec, &mut |line| lines.push(line.to_owned())).unwrap();
    (status, lines)
}

fn a_step_changes_only_its_upper_and_leaves_no_mount_point() {
    let stage = stage();
    let times = |path: &str| {
        let found = fs::metadata(stage.overlay.merged().join(path)).unwrap();
        (found.mtime(), found.mtime_nsec())
    };
    let before = [times(""), times("etc"), times("run")];
    assert_eq!(
        stage.output("mkdir /data/new; echo hello > /data/new/file; cat /data/new/file"),
        ["hello"]
    );
    // Directories that mount points were made in were copied up, unchanged; what every image has is there now, and nothing else.
    assert_eq!(
        stage.changes(),
        [
            "data",
            "data/new",
            "data/new/file",
            "dev",
            "etc",
            "run",
            "sys"
        ]
    );
    assert_eq!([times(""), times("etc"), times("run")], before);
}

fn a_step_sees_no_process_environment_or_mount_of_the_builder() {
    let stage = stage();
    assert_eq!(
        stage.output("for p in /proc/[0-9]*; do echo $p; done"),
        ["/proc/1", "/proc/2"]
    );
    assert_eq!(
        stage.output("cat /proc/1/environ /proc/1/root/etc/passwd 2>&1 | grep -c denied"),
        ["2"]
    );
    let mut environment = stage.output("env");
    environment.sort();
    assert_eq!(environment, ["HOME=/root", "PATH=/bin", "PWD=/", "SHLVL=1"]);
    let mounts = stage.output("cat /proc/self/mountinfo").join("\n");
    let points: Vec<&str> = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .collect();
    for point in points {
        let expected = [
            "/proc",
            "/dev",
            "/sys",
            "/etc/resolv.conf",
            "/etc/hosts",
            "/run/.containerenv",
        ];
        assert!(
            point == "/" || expected.iter().any(|known| point.starts_with(known)),
            "{point}"
        );
    }
    assert_eq!(stage.output("hostname"), ["strata-build"]);
}

fn a_step_has_the_container_default_capabilities_and_no_more() {
    let stage = stage();
    let mask = format!("{:016x}", privileges::CONTAINER_DEFAULT.bits());
    let expected = [
        "CapInh:\t0000000000000000".to_owned(),
        format!("CapPrm:\t{mask}"),
        format!("CapEff:\t{mask}"),
        format!("CapBnd:\t{mask}"),
        "CapAmb:\t0000000000000000".to_owned(),
    ];
    assert_eq!(stage.output("grep ^Cap /proc/self/status"), expected);
    assert_eq!(mask, "00000000a80425fb");
    assert_eq!(
        stage.output("grep -E '^(NoNewPrivs|Seccomp):' /proc/self/status"),
        ["NoNewPrivs:\t0", "Seccomp:\t2"]
    );
    let mut spec = stage.spec("grep -E '^(CapEff|CapPrm)' /proc/self/status");
    spec.user = "ann";
    assert_eq!(
        go(&spec).1,
        ["CapPrm:\t0000000000000000", "CapEff:\t0000000000000000"]
    );
    // A node can be made with real root only, and leads nowhere.
    for place in ["/data/node", "/dev/node", "/dev/shm/node", "/tmp/node"] {
        let refusal = match XattrPrefix::of_this_process().unwrap() {
            XattrPrefix::Own | XattrPrefix::Trusted => {
                format!("cat: can't open '{place}': Permission denied")
            }
            XattrPrefix::User => format!("mknod: {place}: Operation not permitted"),
        };
        assert_eq!(
            go(&stage.spec(&format!("mknod {place} c 1 3 && cat {place}"))),
            (ExitStatus::Exited(1), vec![refusal])
        );
    }
    assert_ne!(
        go(&stage.spec("mount -t tmpfs none /data 2>&1")).0,
        ExitStatus::Exited(0)
    );
}

fn a_user_has_its_groups_home_and_working_directory() {
    let stage = stage();
    let mut spec = stage.spec("id -u; id -g; id -G; echo $HOME; pwd; umask");
    (spec.user, spec.workdir) = ("ann", "/none/here/../../data");
    assert_eq!(
        go(&spec),
        (
            ExitStatus::Exited(0),
            ["1000", "1001", "1001 10", "/home/ann", "/data", "0022"]
                .map(str::to_owned)
                .to_vec()
        )
    );
}

fn everything_a_step_started_is_dead_when_it_ends() {
    let stage = stage();
    let started = Instant::now();
    assert_eq!(
        stage.output("(setsid sleep 987 &) ; (sleep 987 >/dev/null 2>&1 </dev/null &); echo over"),
        ["over"]
    );
    assert!(started.elapsed() < Duration::from_secs(900));
    assert_eq!(sleepers("987"), 0);
}

fn the_end_of_a_step_is_told_exactly() {
    let stage = stage();
    assert_eq!(go(&stage.spec("exit 3")).0, ExitStatus::Exited(3));
    assert_eq!(go(&stage.spec("kill -TERM $$")).0, ExitStatus::Signaled(15));
    let mut spec = stage.spec("true");
    spec.workdir = "/none";
    assert_eq!(
        run(&spec, &mut |_| {}).unwrap_err().to_string(),
        "the working directory /none is no directory"
    );
    let stopped = run(&stage.spec("echo before; sleep 1000"), &mut |_| {
        stage.stop.say()
    });
    assert!(matches!(stopped, Err(RunError::Stopped)), "{stopped:?}");
    let stage = self::stage();
    // on a busy machine a step may not have said anything by then
    let mut limit = Duration::from_millis(300);
    loop {
        let mut spec = stage.spec("echo before; sleep 1000");
        spec.timeout = Some(limit);
        let (status, said) = go(&spec);
        assert_eq!(status, ExitStatus::TimedOut);
        if said == ["before"] {
            break;
        }
        limit *= 4;
        assert!(limit < Duration::from_secs(300), "{said:?}");
    }
    for (argv, message) in [
        (
            vec!["/no/such"],
            "run \"/no/such\": No such file or directory (os error 2)",
        ),
        (
            vec!["nosuch"],
            "run \"nosuch\": No such file or directory (os error 2)",
        ),
        (
            vec!["/etc/passwd"],
            "run \"/etc/passwd\": Permission denied (os error 13)",
        ),
    ] {
        let mut spec = stage.spec("");
        spec.argv = argv.into_iter().map(str::to_owned).collect();
        let error = run(&spec, &mut |_| {}).unwrap_err();
        let source = std::error::Error::source(&error).unwrap().to_string();
        assert_eq!(format!("{error}: {source}"), message);
    }
}

fn output_keeps_its_order_and_input_is_what_was_given() {
    let stage = stage();
    assert_eq!(stage.output("echo 1; echo 2 >&2; echo 3"), ["1", "2", "3"]);
    assert_eq!(stage.output("cat"), Vec::<String>::new());
    let mut spec = stage.spec("cat");
    spec.stdin = Some(b"given\n".to_vec());
    assert_eq!(go(&spec).1, ["given"]);
}

fn mounts_show_what_they_should_and_vanish() {
    let stage = stage();
    let outside = stage.scratch.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("file"), "outside").unwrap();
    let bind = |target: &str, source: PathBuf, access| MountSpec {
        target: PathBuf::from(target),
        kind: StepMount::Bind { source, access },
    };
    let mut spec = stage.spec(
        "cat /m/ro/file /m/one; echo x > /m/ro/file; echo x > /m/rw/file && cat /m/rw/file; echo new > /cache/new;
         cat /run/secrets/s; stat -c '%a %u' /run/secrets/s; echo t > /m/tmp/t; cat /m/tmp/nested; /dev/pipes/script; cat /etc/hosts | head -n 1",
    );
    spec.mounts = vec![
        bind("/m/ro", outside.clone(), Access::ReadOnly),
        bind("/m/rw", outside.clone(), Access::Discard),
        bind("/m/one", outside.join("file"), Access::ReadOnly),
        bind("/cache", outside.clone(), Access::ReadWrite),
        MountSpec {
            target: PathBuf::from("/m/tmp"),
            kind: StepMount::Tmpfs {
                size_bytes: Some(65536),
            },
        },
        bind("/m/tmp/nested", outside.join("file"), Access::Discard),
        MountSpec {
            target: PathBuf::from("/run/secrets/s"),
            kind: StepMount::File {
                content: b"hush\n".to_vec(),
                mode: 0o400,
                uid: 1000,
                gid: 0,
            },
        },
    ];
    spec.files = vec![(
        PathBuf::from("/dev/pipes/script"),
        b"#!/bin/sh\necho script\n".to_vec(),
    )];
    let expected = [
        "outsideoutside/bin/sh: can't create /m/ro/file: Read-only file system",
        "x",
        "hush",
        "400 1000",
        "outsidescript",
        "127.0.0.1\tlocalhost strata-build",
    ];
    assert_eq!(
        go(&spec),
        (ExitStatus::Exited(0), expected.map(str::to_owned).to_vec())
    );
    assert_eq!(fs::read_to_string(outside.join("file")).unwrap(), "outside");
    assert_eq!(fs::read_to_string(outside.join("new")).unwrap(), "new\n");
    assert_eq!(stage.changes(), ["dev", "etc", "run", "sys"]);
}

fn a_writable_bind_may_be_an_overlay_of_an_overlay_or_hold_mounts() {
    let (lowest, stage) = (stage(), stage());
    let middle = Overlay::mount(
        &[lowest.overlay.merged().to_owned()],
        &lowest.scratch.path().join("middle"),
        XattrPrefix::of_this_process().unwrap(),
    )
    .unwrap();
    let with_mount = stage.scratch.path().join("with-mount");
    fs::create_dir_all(with_mount.join("point")).unwrap();
    fs::write(stage.scratch.path().join("mounted"), "mounted").unwrap();
    fs::write(with_mount.join("file"), "").unwrap();
    rustix::mount::mount_bind(
        stage.scratch.path().join("mounted"),
        with_mount.join("file"),
    )
    .unwrap();
    let mut spec = stage.spec("cat /a/etc/group | grep -c wheel; rm /a/etc/group && echo removed; cat /b/file; echo x > /b/file");
    let bind = |target: &str, source: &Path| MountSpec {
        target: PathBuf::from(target),
        kind: StepMount::Bind {
            source: source.to_owned(),
            access: Access::Discard,
        },
    };
    spec.mounts = vec![bind("/a", middle.merged()), bind("/b", &with_mount)];
    assert_eq!(
        go(&spec),
        (
            ExitStatus::Exited(0),
            ["1", "removed", "mounted"].map(str::to_owned).to_vec()
        )
    );
    assert!(middle.merged().join("etc/group").exists());
    assert_eq!(
        fs::read_to_string(with_mount.join("file")).unwrap(),
        "mounted"
    );
    rustix::mount::unmount(
        with_mount.join("file"),
        rustix::mount::UnmountFlags::empty(),
    )
    .unwrap();
}

fn without_a_network_there_is_loopback_only() {
    let stage = stage();
    let mut spec = stage.spec("ls /sys/class/net >/dev/null; cat /proc/net/dev | grep -c :; cat /proc/net/dev | grep -c lo:; ip addr show lo | grep -c UP");
    spec.network = Network::None;
    assert_eq!(go(&spec).1, ["1", "1", "1"]);
}

fn devices_are_there_and_work() {
    let stage = stage();
    let script = "echo x > /dev/null; head -c 3 /dev/zero | wc -c; head -c 3 /dev/urandom | wc -c; echo e > /dev/stderr; readlink /dev/ptmx; touch /dev/shm/s; \
                  test -c /dev/pts/ptmx && echo pts; touch /sys/kernel/x 2>/dev/null || echo ro; cat /run/.containerenv | grep -c engine=";
    assert_eq!(
        stage.output(script),
        ["3", "3", "e", "pts/ptmx", "pts", "ro", "1"]
    );
}

/// A program of one call, in the numbers and registers of 32-bit programs or of ours, that ends with the number of its error.
#[cfg(target_arch = "x86_64")]
fn program_of(is_32_bit: bool, call: u32, first: u32, second: u32) -> Vec<u8> {
    let words = |list: &[u32]| {
        list.iter()
            .flat_map(|w| w.to_le_bytes())
            .collect::<Vec<u8>>()
    };
    let load = |register: u8, value: u32| [&[0xb8 + register][..], &words(&[value])].concat();
    let (first_register, second_register, exit, enter): (u8, u8, u32, [u8; 2]) = match is_32_bit {
        true => (3, 1, 1, [0xcd, 0x80]),
        false => (7, 6, 60, [0x0f, 0x05]),
    };
    // neg eax; mov REGISTER, eax
    let negated = [0xf7, 0xd8, 0x89, 0xc0 + first_register];
    let code = [
        &load(first_register, first)[..],
        &load(second_register, second),
        &load(0, call),
        &enter,
        &negated,
        &load(0, exit),
        &enter,
    ]
    .concat();
    let identity = [0x7f, b'E', b'L', b'F', 2 - u8::from(is_32_bit), 1, 1, 0];
    let (base, size) = (0x40_0000_u32, u32::try_from(code.len()).unwrap());
    let header = match is_32_bit {
        // executable, EM_386, entry, program headers; then one that loads all
        true => words(&[
            0x0003_0002,
            1,
            base + 84,
            52,
            0,
            0,
            0x0020_0034,
            0x0000_0001,
            0,
            1,
            0,
            base,
            base,
            84 + size,
            84 + size,
            5,
            0x1000,
        ]),
        false => words(&[
            0x003e_0002,
            1,
            base + 120,
            0,
            64,
            0,
            0,
            0,
            0,
            0x0038_0040,
            1,
            0,
            1,
            5,
            0,
            0,
            base,
            0,
            base,
            0,
            120 + size,
            0,
            120 + size,
            0,
            0x1000,
            0,
        ]),
    };
    [&identity[..], &[0; 8], &header, &code].concat()
}

#[cfg(target_arch = "x86_64")]
fn calls_are_refused_whatever_kind_of_program_makes_them() {
    use libc::{EAFNOSUPPORT, EBADF, ENOSYS, EPERM};
    let stage = stage();
    let namespace = libc::CLONE_NEWUSER.cast_unsigned();
    for (is_32_bit, call, first, second, error) in [
        // close, for comparison
        (false, 3, 9999, 0, EBADF),
        (true, 6, 9999, 0, EBADF),
        // keyctl
        (false, 250, 0, 0, EPERM),
        (true, 288, 0, 0, EPERM),
        // TIOCSTI
        (false, 16, 0, 0x5412, EPERM),
        (true, 54, 0, 0x5412, EPERM),
        // socket of a family that doesn't exist, for comparison, and of AF_VSOCK
        (false, 41, 99, 0, EAFNOSUPPORT),
        (true, 359, 99, 0, EAFNOSUPPORT),
        (false, 41, 40, 0, EPERM),
        (true, 359, 40, 0, EPERM),
        // unshare
        (false, 272, namespace, 0, EPERM),
        (true, 310, namespace, 0, EPERM),
        (true, 310, 0, 0, 0),
        // clone
        (false, 56, namespace, 0, EPERM),
        (true, 120, namespace, 0, EPERM),
        // clone3
        (false, 435, 0, 0, ENOSYS),
        (true, 435, 0, 0, ENOSYS),
        // close in the numbers of x32
        (false, 0x4000_0003, 9999, 0, ENOSYS),
    ] {
        let path = stage.overlay.merged().join("call");
        fs::write(&path, program_of(is_32_bit, call, first, second)).unwrap();
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let mut spec = stage.spec("");
        spec.argv = vec!["/call".to_owned()];
        let (status, lines) = go(&spec);
        assert_eq!(
            status,
            ExitStatus::Exited(error),
            "32 bit: {is_32_bit}, call {call}: {lines:?}"
        );
    }
}

fn an_empty_base_can_run_a_static_program() {
    let scratch = tempfile::tempdir().unwrap();
    let overlay = Overlay::mount(
        &[],
        &scratch.path().join("stage"),
        XattrPrefix::of_this_process().unwrap(),
    )
    .unwrap();
    fs::copy("/bin/busybox", overlay.merged().join("sh")).unwrap();
    let stage = Stage {
        overlay,
        scratch,
        stop: Stop::new().unwrap(),
    };
    let mut spec = stage.spec("");
    spec.argv = ["/sh", "-c", "echo alive"].map(str::to_owned).to_vec();
    assert_eq!(go(&spec), (ExitStatus::Exited(0), vec!["alive".to_owned()]));
    assert_eq!(stage.changes(), ["dev", "proc", "sh", "sys"]);
    let upper = stage.overlay.unmount().unwrap();
    assert!(upper.join("sh").exists());
}

/// Processes whose command line is `sleep SECONDS`.
fn sleepers(seconds: &str) -> usize {
    let expected = format!("sleep\0{seconds}\0");
    let lines = fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| fs::read(entry.ok()?.path().join("cmdline")).ok());
    lines.filter(|line| line == expected.as_bytes()).count()
}

fn wait_for_sleepers(seconds: &str, count: usize) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while sleepers(seconds) != count {
        assert!(
            Instant::now() < deadline,
            "{} instead of {count} processes sleep {seconds}",
            sleepers(seconds)
        );
        std::thread::yield_now();
    }
}

#[test]
fn a_killed_builder_takes_its_step_with_it_and_leaves_no_mount() {
    if !able("a_killed_builder_takes_its_step_with_it_and_leaves_no_mount") {
        return;
    }
    for (mode, seconds) in [("in-root-until-killed", "9871"), ("in-userns", "9872")] {
        let scratch = tempfile::tempdir().unwrap();
        let mut builder = std::process::Command::new("/proc/self/exe");
        let mut builder = builder
            .args([mode, "sleep 9872"])
            .env("TMPDIR", scratch.path())
            .spawn()
            .unwrap();
        wait_for_sleepers(seconds, 1);
        builder.kill().unwrap();
        builder.wait().unwrap();
        wait_for_sleepers(seconds, 0);
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(
            !mounts.contains(scratch.path().to_str().unwrap()),
            "{mounts}"
        );
    }
}

#[test]
fn signals_and_their_exit_status_pass_through_the_outer_process() {
    if !able("signals_and_their_exit_status_pass_through_the_outer_process") {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let mut outer = std::process::Command::new("/proc/self/exe");
    let mut outer = outer
        .args(["in-userns", "sleep 9873"])
        .env("TMPDIR", scratch.path())
        .spawn()
        .unwrap();
    wait_for_sleepers("9873", 1);
    let pid = rustix::process::Pid::from_child(&outer);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert_eq!(outer.wait().unwrap().code(), Some(128 + 15));
    wait_for_sleepers("9873", 0);
}

const TESTS: &[(&str, fn())] = &[
    (
        "changes",
        a_step_changes_only_its_upper_and_leaves_no_mount_point,
    ),
    (
        "hidden",
        a_step_sees_no_process_environment_or_mount_of_the_builder,
    ),
    (
        "capabilities",
        a_step_has_the_container_default_capabilities_and_no_more,
    ),
    ("user", a_user_has_its_groups_home_and_working_directory),
    ("kill", everything_a_step_started_is_dead_when_it_ends),
    ("end", the_end_of_a_step_is_told_exactly),
    ("output", output_keeps_its_order_and_input_is_what_was_given),
    (
        "deep",
        a_writable_bind_may_be_an_overlay_of_an_overlay_or_hold_mounts,
    ),
    ("mounts", mounts_show_what_they_should_and_vanish),
    ("network", without_a_network_there_is_loopback_only),
    ("devices", devices_are_there_and_work),
    ("empty", an_empty_base_can_run_a_static_program),
    #[cfg(target_arch = "x86_64")]
    (
        "calls",
        calls_are_refused_whatever_kind_of_program_makes_them,
    ),
];

fn able(test: &str) -> bool {
    if rustix::process::geteuid().is_root() && Path::new("/bin/busybox").exists() {
        return true;
    }
    crate::fixtures::skip(test, "needs root and /bin/busybox (static)");
    false
}

#[test]
fn every_promise_of_a_step_holds_with_real_root() {
    if able("every_promise_of_a_step_holds_with_real_root") {
        // The harness has threads, so only this thread gets mounts of its own; the steps inherit them.
        kernel::unshare(rustix::thread::UnshareFlags::NEWNS | rustix::thread::UnshareFlags::FS)
            .unwrap();
        enter::make_mounts_private().unwrap();
        for (name, test) in TESTS {
            eprintln!("root: {name}");
            test();
        }
    }
}

#[test]
fn every_promise_of_a_step_holds_in_a_user_namespace() {
    if able("every_promise_of_a_step_holds_in_a_user_namespace") {
        for (name, _) in TESTS {
            let status = std::process::Command::new("/proc/self/exe")
                .args(["in-userns", name])
                .status()
                .unwrap();
            assert!(status.success(), "userns: {name}: {status}");
        }
    }
}

/// Runs a shell command as an ordinary user who has subordinate ids of its own; `$0` is this program.
fn as_ordinary_user(command: &str) -> std::process::ExitStatus {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(
        folder.path(),
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )
    .unwrap();
    let passwd = fs::read_to_string("/etc/passwd").unwrap();
    for (name, content) in [
        (
            "passwd",
            format!("{passwd}strata-test:x:61234:61234::/:/bin/sh\n"),
        ),
        (
            "subuid",
            "strata-test:1:999\nstrata-test:200000:65536\n".to_owned(),
        ),
        ("subgid", "61234:300000:65537\n".to_owned()),
        ("program", String::new()),
    ] {
        fs::write(folder.path().join(name), content).unwrap();
    }
    // The program's own folder may be one that only root can enter.
    let script = "for file in passwd subuid subgid; do mount --bind $0/$file /etc/$file || exit; done; mount --bind /proc/$1/exe $0/program && \
                  exec setpriv --reuid 61234 --regid 61234 --clear-groups sh -c \"$2\" $0/program";
    std::process::Command::new("unshare")
        .args(["--mount", "sh", "-c", script])
        .arg(folder.path())
        .arg(std::process::id().to_string())
        .arg(command)
        .status()
        .unwrap()
}

#[test]
fn every_promise_of_a_step_holds_for_an_ordinary_user_with_subordinate_ids() {
    if able("every_promise_of_a_step_holds_for_an_ordinary_user_with_subordinate_ids") {
        for (name, _) in TESTS {
            let status = as_ordinary_user(&format!("exec $0 in-rootless {name}"));
            assert!(status.success(), "rootless: {name}: {status}");
        }
    }
}

#[test]
fn the_probe_finds_both_tiers_for_real_root_and_leaves_nothing() {
    if able("the_probe_finds_both_tiers_for_real_root_and_leaves_nothing") {
        let scratch = tempfile::tempdir().unwrap();
        let probe = probe(scratch.path()).unwrap();
        let text = crate::doctor::doctor(&probe);
        assert!(
            probe.allows(Tier::Root) && probe.allows(Tier::Userns),
            "{text}"
        );
        let rows = |rights| probe.rows.iter().filter(move |row| row.rights == rights);
        assert!(
            rows(Rights::Root)
                .chain(rows(Rights::Userns))
                .all(|row| row.failure.is_none()),
            "{text}"
        );
        assert_eq!(rows(Rights::Root).count(), 11, "{text}");
        assert_eq!(rows(Rights::Userns).count(), 12, "{text}");
        assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 0);
    }
}
