//! What does a step's file system hold besides the stage's own? Runs in pid 1 of the step, before the root is changed.
//!
//! `/proc` is new where the kernel allows it; in a pod with masked paths it doesn't, and then the pod's own is bound: `/proc/self` is right
//! there too, other processes of the pod can be seen but not looked into.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{
    DirBuilderExt, FileTypeExt, OpenOptionsExt, PermissionsExt, chown, symlink,
};
use std::path::{Path, PathBuf};

use rustix::fs::FileType;
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use super::attach;
use super::kernel::Restriction;
use super::mount_points::Shape;
use super::step::{Doing, Failed, HOST_NAME, StepOrder};
use super::{Access, MountSpec, StepMount};
use crate::flat::copy_tree;
use crate::overlay::{Overlay, XattrPrefix};
use crate::root::Root;

const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];

/// As containers have them: each tells about, or reaches, the whole machine.
const MASKED: [&str; 11] = [
    "proc/acpi",
    "proc/asound",
    "proc/interrupts",
    "proc/kcore",
    "proc/keys",
    "proc/latency_stats",
    "proc/sched_debug",
    "proc/scsi",
    "proc/timer_list",
    "proc/timer_stats",
    "sys/firmware",
];

const READ_ONLY: [&str; 5] = [
    "proc/bus",
    "proc/fs",
    "proc/irq",
    "proc/sys",
    "proc/sysrq-trigger",
];

/// Builds all mounts of the step and makes its root ours.
pub(super) fn build(order: &StepOrder) -> Result<(), Failed> {
    let root = &order.root;
    // pivot_root wants a mount point, and one that is nobody else's. With real root a node made by a step would otherwise be the machine's own disk.
    let place = attach::source(root).doing(|| "open the root".to_owned())?;
    attach::bind(&place, &place, &[Restriction::NoDevices]).doing(|| "bind the root".to_owned())?;
    let inside = Root::open(root)
        .map_err(io::Error::other)
        .doing(|| "open the root".to_owned())?;
    mount_proc(&mount_point(&inside, Path::new("/proc"), Shape::Directory)?)?;
    mount_devices(&inside)?;
    let sys = mount_point(&inside, Path::new("/sys"), Shape::Directory)?;
    bind(Path::new("/sys"), &sys, &[Restriction::ReadOnly]).doing(|| "bind /sys".to_owned())?;
    hide(&inside)?;

    let own = order.scratch.join("files");
    fs::create_dir(&own).doing(|| "make a folder for files".to_owned())?;
    tmpfs(&own, MountFlags::NOSUID | MountFlags::NODEV, "mode=0700")
        .doing(|| "mount a folder for files".to_owned())?;
    let mut files = OwnFiles {
        directory: own,
        count: 0,
    };
    for (target, content) in [
        (
            "/etc/resolv.conf",
            fs::read("/etc/resolv.conf").unwrap_or_default(),
        ),
        (
            "/etc/hosts",
            hosts(
                &fs::read_to_string("/etc/hosts").unwrap_or_default(),
                order.own_network,
            )
            .into_bytes(),
        ),
        (
            "/run/.containerenv",
            format!("engine=\"strata-{}\"\n", env!("CARGO_PKG_VERSION")).into_bytes(),
        ),
    ] {
        let source = files
            .add(&content, 0o644, 0, 0)
            .doing(|| format!("write {target}"))?;
        mount_file(&inside, Path::new(target), &source)?;
    }
    for (index, spec) in order.mounts.iter().enumerate() {
        mount_one(
            &inside,
            spec,
            &mut files,
            &order.scratch.join(format!("discard-{index}")),
        )?;
    }
    for (target, content) in &order.files {
        let source = files
            .add(content, 0o755, 0, 0)
            .doing(|| format!("write {}", target.display()))?;
        mount_file(&inside, target, &source)?;
    }
    pivot(root)
}

fn pivot(root: &Path) -> Result<(), Failed> {
    rustix::process::chdir(root).doing(|| "enter the root".to_owned())?;
    rustix::process::pivot_root(".", ".").doing(|| "change the root".to_owned())?;
    unmount(".", UnmountFlags::DETACH).doing(|| "leave the old root".to_owned())?;
    rustix::process::chdir("/").doing(|| "enter the new root".to_owned())
}

fn tmpfs(target: &Path, flags: MountFlags, options: &str) -> io::Result<()> {
    let options = std::ffi::CString::new(options)?;
    Ok(mount(
        "tmpfs",
        target,
        "tmpfs",
        flags,
        Some(options.as_c_str()),
    )?)
}

fn mount_proc(target: &OwnedFd) -> Result<(), Failed> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    match mount("proc", attach::path_of(target), "proc", flags, None) {
        Err(Errno::PERM | Errno::ACCESS) => {
            bind(Path::new("/proc"), target, &[]).doing(|| "bind /proc".to_owned())
        }
        other => other.doing(|| "mount /proc".to_owned()),
    }
}

fn mount_devices(inside: &Root) -> Result<(), Failed> {
    let place = || mount_point(inside, Path::new("/dev"), Shape::Directory);
    // Nodes that a step makes lead nowhere; those that it is given are mounts of their own.
    tmpfs(
        &attach::path_of(&place()?),
        MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC,
        "mode=0755,size=65536k",
    )
    .doing(|| "mount /dev".to_owned())?;
    // What is in it from here on is ours.
    let mounted = place()?;
    let dev = attach::path_of(&mounted);
    for name in DEVICES {
        let source = Path::new("/dev").join(name);
        // A pod may lack some (`tty`).
        if fs::metadata(&source).is_ok_and(|found| found.file_type().is_char_device()) {
            let target = File::create(dev.join(name)).doing(|| format!("make /dev/{name}"))?;
            bind(&source, &target, &[]).doing(|| format!("bind /dev/{name}"))?;
        }
    }
    let directory = |name: &str| {
        fs::DirBuilder::new()
            .mode(0o755)
            .create(dev.join(name))
            .doing(|| format!("make /dev/{name}"))
    };
    directory("pts")?;
    directory("shm")?;
    let flags = MountFlags::NOSUID | MountFlags::NOEXEC;
    mount(
        "devpts",
        dev.join("pts"),
        "devpts",
        flags,
        Some(c"newinstance,ptmxmode=0666,mode=0620,gid=5"),
    )
    .doing(|| "mount /dev/pts".to_owned())?;
    tmpfs(
        &dev.join("shm"),
        flags | MountFlags::NODEV,
        "mode=1777,size=65536k",
    )
    .doing(|| "mount /dev/shm".to_owned())?;
    for (link, target) in [
        ("ptmx", "pts/ptmx"),
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
    ] {
        symlink(target, dev.join(link)).doing(|| format!("make /dev/{link}"))?;
    }
    Ok(())
}

fn hide(inside: &Root) -> Result<(), Failed> {
    for path in READ_ONLY {
        if let Ok(target) = attach::existing(inside, Path::new(path)) {
            attach::bind(&target, &target, &[Restriction::ReadOnly])
                .doing(|| format!("make /{path} read-only"))?;
        }
    }
    for path in MASKED {
        let Ok(target) = attach::existing(inside, Path::new(path)) else {
            continue;
        };
        let found = rustix::fs::fstat(&target).doing(|| format!("look at /{path}"))?;
        if FileType::from_raw_mode(found.st_mode) == FileType::Directory {
            tmpfs(&attach::path_of(&target), MountFlags::RDONLY, "size=0")
        } else {
            bind(Path::new("/dev/null"), &target, &[])
        }
        .doing(|| format!("mask /{path}"))?;
    }
    Ok(())
}

/// The builder's own entries (a pod's host aliases, too) after the step's own line; without a network only that.
fn hosts(ours: &str, own_network: bool) -> String {
    let mut text =
        format!("127.0.0.1\tlocalhost {HOST_NAME}\n::1\tlocalhost ip6-localhost ip6-loopback\n");
    let is_loopback = |line: &str| line.starts_with("127.") || line.starts_with("::1");
    for line in ours.lines().filter(|line| {
        !own_network && !is_loopback(line) && !line.starts_with('#') && !line.trim().is_empty()
    }) {
        text.push_str(line);
        text.push('\n');
    }
    text
}

/// Files in memory that are bound into the root one by one.
struct OwnFiles {
    directory: PathBuf,
    count: usize,
}

impl OwnFiles {
    fn add(&mut self, content: &[u8], mode: u32, uid: u32, gid: u32) -> io::Result<PathBuf> {
        let path = self.directory.join(self.count.to_string());
        self.count += 1;
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)?
            .write_all(content)?;
        chown(&path, Some(uid), Some(gid))?;
        fs::set_permissions(&path, Permissions::from_mode(mode & 0o7777))?;
        Ok(path)
    }
}

/// The place of `target` in the root, made if absent (which is so only inside the step's own mounts).
fn mount_point(inside: &Root, target: &Path, shape: Shape) -> Result<OwnedFd, Failed> {
    attach::point(inside, target, shape)
        .doing(|| format!("make the mount point {}", target.display()))
}

fn bind(source: &Path, target: impl AsFd, restrictions: &[Restriction]) -> io::Result<()> {
    attach::bind(attach::source(source)?, target, restrictions)
}

/// Shows one of our own files.
fn mount_file(inside: &Root, target: &Path, source: &Path) -> Result<(), Failed> {
    let point = mount_point(inside, target, Shape::File)?;
    bind(
        source,
        &point,
        &[Restriction::NoDevices, Restriction::ReadOnly],
    )
    .doing(|| format!("bind {}", target.display()))
}

fn mount_one(
    inside: &Root,
    MountSpec { target, kind }: &MountSpec,
    files: &mut OwnFiles,
    discard: &Path,
) -> Result<(), Failed> {
    let doing = || format!("mount {}", target.display());
    match kind {
        StepMount::Bind { source, access } => {
            let directory = fs::metadata(source).doing(doing)?.is_dir();
            let shape = match directory {
                true => Shape::Directory,
                false => Shape::File,
            };
            let point = mount_point(inside, target, shape)?;
            let no_devices = [Restriction::NoDevices];
            match access {
                Access::ReadOnly => bind(
                    source,
                    &point,
                    &[Restriction::NoDevices, Restriction::ReadOnly],
                ),
                Access::ReadWrite => bind(source, &point, &no_devices),
                Access::Discard => {
                    let copy = throwaway(source, directory, discard).doing(doing)?;
                    bind(&copy, &point, &no_devices)
                }
            }
            .doing(doing)
        }
        StepMount::Tmpfs { size_bytes } => {
            let size = size_bytes.map_or(String::new(), |bytes| format!(",size={bytes}"));
            let point = mount_point(inside, target, Shape::Directory)?;
            tmpfs(
                &attach::path_of(&point),
                MountFlags::NOSUID | MountFlags::NODEV,
                &format!("mode=1777{size}"),
            )
            .doing(doing)
        }
        StepMount::File {
            content,
            mode,
            uid,
            gid,
        } => {
            let source = files.add(content, *mode, *uid, *gid).doing(doing)?;
            mount_file(inside, target, &source)
        }
    }
}

/// A writable view of `source` whose changes go to `scratch`, which the builder removes.
fn throwaway(source: &Path, directory: bool, scratch: &Path) -> io::Result<PathBuf> {
    if !directory {
        fs::copy(source, scratch)?;
        return Ok(scratch.to_owned());
    }
    let xattrs = XattrPrefix::of_this_process().map_err(io::Error::other)?;
    // An overlay would show the folders below other mounts, and can't be made over an overlay of an overlay.
    if !has_mounts_below(source)?
        && let Ok(overlay) = Overlay::mount(&[source.to_owned()], scratch, xattrs)
    {
        let merged = overlay.merged().to_owned();
        // It ends with this mount namespace.
        std::mem::forget(overlay);
        return Ok(merged);
    }
    let copied = scratch.join("copy");
    copy_tree(source, &copied).map_err(io::Error::other)?;
    Ok(copied)
}

/// True if something is mounted somewhere below `directory`.
fn has_mounts_below(directory: &Path) -> io::Result<bool> {
    let directory = fs::canonicalize(directory)?;
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let mut points = mounts.lines().filter_map(|line| line.split(' ').nth(4));
    // The kernel writes blanks as \040; such a point merely costs a copy less.
    Ok(points
        .any(|point| Path::new(point).starts_with(&directory) && Path::new(point) != directory))
}
