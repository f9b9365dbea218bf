//! What is lost where something isn't allowed, and who changes that how? In a pod its manifest does, in a container the command that starts it, elsewhere the machine. Pure.

use serde::{Deserialize, Serialize};

use super::Check;
use crate::sandbox::{Rights, Storage};

/// What it is that this program runs in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Place {
    /// A pod of Kubernetes.
    Pod,
    /// A container that podman or docker has started.
    Container,
    /// A machine.
    Workstation,
}

impl Place {
    /// For people.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pod => "a pod of Kubernetes",
            Self::Container => "a container",
            Self::Workstation => "a workstation",
        }
    }
}

impl Check {
    /// True if a tier with this storage can't do without it.
    #[must_use]
    pub const fn is_required(self, storage: Storage) -> bool {
        match self {
            Self::Overlay | Self::Whiteout | Self::Opaque => matches!(storage, Storage::Overlay),
            Self::ShiftedMap | Self::SingleMap | Self::FileCapabilities | Self::Proc => false,
            Self::Namespaces
            | Self::Files
            | Self::IdentityMap
            | Self::SubordinateIds
            | Self::Chown
            | Self::Tmpfs
            | Self::Devpts
            | Self::Sys
            | Self::Seccomp => true,
        }
    }

    /// What is lost without it.
    #[must_use]
    pub const fn consequence(self) -> &'static str {
        match self {
            Self::Namespaces => "no step can run in this tier",
            Self::Files => "nothing can be copied",
            Self::IdentityMap | Self::SubordinateIds => {
                "owners of the base image's files can't be kept"
            }
            Self::ShiftedMap | Self::SingleMap => "nothing: no tier uses it",
            Self::Overlay | Self::Whiteout | Self::Opaque => {
                "only the flat tier runs, which unpacks a base for itself and looks through all files for changes"
            }
            Self::Chown => "files can't have the owners that packages give them",
            Self::FileCapabilities => "packages that set file capabilities fail to install",
            Self::Proc => {
                "steps get the /proc that is here: they can see, but not look into, the builder's processes"
            }
            Self::Tmpfs | Self::Devpts | Self::Sys => "steps don't find what containers have",
            Self::Seccomp => "steps could use system calls that containers may not",
        }
    }

    /// The change that would allow it with these rights.
    #[must_use]
    pub const fn remedy(self, rights: Rights, place: Place) -> &'static str {
        match place {
            Place::Pod => self.in_pod(rights),
            Place::Container => self.in_container(rights),
            Place::Workstation => self.on_workstation(rights),
        }
    }

    const fn in_pod(self, rights: Rights) -> &'static str {
        match (self, rights) {
            (Self::Namespaces, Rights::Root) => {
                "spec.hostUsers: false and containers[].securityContext.capabilities.add: [SYS_ADMIN], or privileged: true"
            }
            (Self::Namespaces, Rights::Userns | Rights::Rootless | Rights::None) => {
                "spec.hostUsers: false and no seccompProfile of type RuntimeDefault; on OpenShift the SCC nested-container; \
                 on the node, sysctls user.max_user_namespaces above 0 and kernel.apparmor_restrict_unprivileged_userns=0"
            }
            (Self::Chown, Rights::Rootless) => {
                "65536 subordinate ids in /etc/subuid and /etc/subgid of the container's image for this user"
            }
            (Self::IdentityMap | Self::ShiftedMap | Self::Chown, _) => {
                "containers[].securityContext: runAsUser: 0 and capabilities.add: [SETUID, SETGID, SETFCAP]"
            }
            (Self::SingleMap, _) => "as for namespaces",
            (Self::Files, _) => "a folder of this user, such as an emptyDir, as the scratch folder",
            (Self::SubordinateIds, _) => {
                "newuidmap and newgidmap (Debian package uidmap) with file capabilities or a set-user-ID bit, lines of this user in /etc/passwd, /etc/subuid and /etc/subgid, \
                 and containers[].securityContext.allowPrivilegeEscalation: true without drop: [SETUID, SETGID]"
            }
            (Self::Overlay | Self::Whiteout | Self::Opaque | Self::FileCapabilities, _) => {
                "an emptyDir or other volume as the scratch folder; with SELinux seLinuxOptions.type: container_engine_t (SCC nested-container); \
                 with AppArmor appArmorProfile.type: Unconfined"
            }
            (Self::Proc, _) => {
                "containers[].securityContext.procMount: Unmasked (allowed with hostUsers: false)"
            }
            (Self::Tmpfs | Self::Devpts | Self::Sys, _) => {
                "with SELinux seLinuxOptions.type: container_engine_t; with AppArmor appArmorProfile.type: Unconfined"
            }
            (Self::Seccomp, _) => {
                "a kernel with CONFIG_SECCOMP_FILTER and no seccompProfile that forbids seccomp(2)"
            }
        }
    }

    const fn in_container(self, rights: Rights) -> &'static str {
        match (self, rights) {
            (Self::Namespaces, Rights::Root) => {
                "start the container with --cap-add SYS_ADMIN --security-opt seccomp=unconfined, or with --privileged"
            }
            (Self::Namespaces, Rights::Userns | Rights::Rootless | Rights::None) => {
                "start the container with --security-opt seccomp=unconfined; on the machine, sysctls user.max_user_namespaces above 0 and \
                 kernel.apparmor_restrict_unprivileged_userns=0"
            }
            (Self::Chown, Rights::Rootless) => {
                "65536 subordinate ids in /etc/subuid and /etc/subgid of the container's image for this user"
            }
            (Self::IdentityMap | Self::ShiftedMap | Self::Chown, _) => {
                "start the container with --user 0 --cap-add SETUID,SETGID,SETFCAP,CHOWN"
            }
            (Self::SingleMap, _) => "as for namespaces",
            (Self::Files, _) => {
                "a folder of this user, such as a volume, as the scratch folder (--scratch)"
            }
            (Self::SubordinateIds, _) => {
                "newuidmap and newgidmap (Debian package uidmap) and lines of this user in /etc/passwd, /etc/subuid and /etc/subgid of the container's image; \
                 the container started without --security-opt no-new-privileges and without --cap-drop of SETUID or SETGID"
            }
            (Self::Overlay | Self::Whiteout | Self::Opaque | Self::FileCapabilities, _) => {
                "a volume as the scratch folder (--volume /PATH for the container, --scratch /PATH for the build); \
                 with SELinux --security-opt label=disable; with AppArmor --security-opt apparmor=unconfined"
            }
            (Self::Proc, _) => {
                "start the container with --security-opt unmask=ALL (podman) or systempaths=unconfined (docker)"
            }
            (Self::Tmpfs | Self::Devpts | Self::Sys, _) => {
                "start the container with --security-opt label=disable (SELinux) or apparmor=unconfined (AppArmor)"
            }
            (Self::Seccomp, _) => {
                "a kernel with CONFIG_SECCOMP_FILTER; start the container with --security-opt seccomp=unconfined"
            }
        }
    }

    const fn on_workstation(self, rights: Rights) -> &'static str {
        match (self, rights) {
            (Self::Namespaces, Rights::Root) => "run it as root: sudo strata-builder",
            (Self::Namespaces, Rights::Userns | Rights::Rootless | Rights::None) => {
                "sysctls user.max_user_namespaces above 0 and, where they exist, kernel.unprivileged_userns_clone=1 and kernel.apparmor_restrict_unprivileged_userns=0; \
                 or run it as root"
            }
            (Self::Chown, Rights::Rootless) => {
                "65536 subordinate ids for this user: usermod --add-subuids 100000-165535 --add-subgids 100000-165535 USER"
            }
            (Self::IdentityMap | Self::ShiftedMap | Self::Chown, _) => {
                "run it as root: sudo strata-builder; an ordinary user needs subordinate ids instead"
            }
            (Self::SingleMap, _) => "as for namespaces",
            (Self::Files, _) => {
                "a folder of this user as the scratch folder: --scratch, or the variable TMPDIR"
            }
            (Self::SubordinateIds, _) => {
                "newuidmap and newgidmap (package uidmap or shadow-utils), and lines of this user in /etc/subuid and /etc/subgid: \
                 usermod --add-subuids 100000-165535 --add-subgids 100000-165535 USER"
            }
            (Self::Overlay | Self::Whiteout | Self::Opaque | Self::FileCapabilities, _) => {
                "a scratch folder (--scratch, or the variable TMPDIR) on ext4, xfs or btrfs, not on an overlay or a network's file system; \
                 for ordinary users a kernel from 5.11 on"
            }
            (Self::Proc, _) => "nothing mounted over parts of /proc, as in containers",
            (Self::Tmpfs | Self::Devpts | Self::Sys, _) => {
                "an SELinux or AppArmor policy under which this program may mount file systems"
            }
            (Self::Seccomp, _) => "a kernel with CONFIG_SECCOMP_FILTER",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_remedy_is_of_the_place_where_it_is_needed() {
        let of_pods = ["securityContext", "emptyDir", "SCC", "Profile", "spec."];
        let of_containers = ["--security-opt", "--cap-add", "the container"];
        let of_machines = ["sudo", "usermod", "TMPDIR"];
        let foreign = |place| match place {
            Place::Pod => [&of_containers[..2], &of_machines].concat(),
            Place::Container => [&of_pods[..], &of_machines].concat(),
            Place::Workstation => [&of_pods[..], &of_containers].concat(),
        };
        for place in [Place::Pod, Place::Container, Place::Workstation] {
            for check in Check::ALL {
                for rights in Rights::ALL {
                    let remedy = check.remedy(rights, place);
                    let is_foreign = |word: &&str| remedy.contains(word);
                    let found = foreign(place).into_iter().find(is_foreign);
                    assert_eq!(found, None, "{check:?} {rights:?} {place:?}: {remedy}");
                }
            }
        }
    }
}
