//! The controller's processes as the machine sees them, for scenarios that kill them.

use std::fs;

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};

/// Process ids whose cgroup belongs to the pod with `pod_uid` and whose program is called `program`.
///
/// # Errors
/// If /proc can't be listed.
pub fn in_pod(pod_uid: &str, program: &str) -> Result<Vec<Pid>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").context("list /proc")? {
        let path = entry?.path();
        let Some(pid) = path
            .file_name()
            .and_then(|n| n.to_str())
            .and_then(|n| n.parse().ok())
        else {
            continue;
        };
        // a process may end while we look at it
        let (Ok(cgroup), Ok(command)) = (
            fs::read_to_string(path.join("cgroup")),
            fs::read_to_string(path.join("comm")),
        ) else {
            continue;
        };
        if cgroup.contains(pod_uid) && program.starts_with(command.trim()) {
            found.extend(Pid::from_raw(pid));
        }
    }
    Ok(found)
}

/// SIGKILL to each; one that is gone already is fine.
pub fn kill(pids: &[Pid]) {
    for pid in pids {
        let _gone_already = kill_process(*pid, Signal::KILL);
    }
}
