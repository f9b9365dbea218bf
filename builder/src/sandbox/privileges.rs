//! What may a step do? The capabilities and system calls that containers have by default.

use rustix::fs::{Gid, Uid};
use rustix::thread::{
    CapabilitySet, CapabilitySets, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_thread_groups, set_thread_res_gid,
    set_thread_res_uid,
};

use super::seccomp;
use super::step::{Doing, Failed};

/// The default of Docker, containerd and BuildKit.
pub(super) const CONTAINER_DEFAULT: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::MKNOD)
    .union(CapabilitySet::NET_RAW)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETFCAP)
    .union(CapabilitySet::SETPCAP)
    .union(CapabilitySet::NET_BIND_SERVICE)
    .union(CapabilitySet::SYS_CHROOT)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::AUDIT_WRITE);

/// Gives everything else up, then becomes the user. The order is forced: a filter without `no_new_privs` needs CAP_SYS_ADMIN, the bounding
/// set CAP_SETPCAP, groups CAP_SETGID; and the user comes last, because it may keep none of them.
pub(super) fn take(uid: u32, gid: u32, groups: &[u32]) -> Result<(), Failed> {
    seccomp::install().doing(|| "install the system call filter".to_owned())?;
    for capability in CapabilitySet::all().difference(CONTAINER_DEFAULT).iter() {
        match remove_capability_from_bounding_set(capability) {
            // Unknown to an older kernel.
            Ok(()) | Err(rustix::io::Errno::INVAL) => {}
            Err(errno) => return Err(errno).doing(|| "limit the capabilities".to_owned()),
        }
    }
    clear_ambient_capability_set().doing(|| "clear the ambient capabilities".to_owned())?;
    let groups: Vec<Gid> = groups.iter().copied().map(Gid::from_raw).collect();
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    set_thread_groups(&groups).doing(|| "set the groups".to_owned())?;
    set_thread_res_gid(gid, gid, gid).doing(|| format!("become group {}", gid.as_raw()))?;
    let kept = CapabilitySets {
        effective: CONTAINER_DEFAULT,
        permitted: CONTAINER_DEFAULT,
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, kept).doing(|| "drop capabilities".to_owned())?;
    set_thread_res_uid(uid, uid, uid).doing(|| format!("become user {}", uid.as_raw()))
}
