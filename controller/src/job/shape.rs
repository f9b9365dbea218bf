//! What may a build's pod, and where does it get its base image from? A ladder of shapes, best first; pure.
//!
//! | shape | builder's rights | base and extensions images | seccomp profile |
//! | --- | --- | --- | --- |
//! | `userns` | root of the pod's own user namespace | image volumes, by the node | none |
//! | `userns-pull` | the same | pulled by the builder | none |
//! | `rootless` | user 1000 of the node with `newuidmap` | pulled by the builder | none |
//! | `rootless-default` | the same | the same | what the cluster gives, as OpenShift's SCC `anyuid` demands |
//! | `privileged` | root of the node: only if a setting says so | pulled by the builder | none |

use k8s_openapi::api::core::v1::{
    AppArmorProfile, Capabilities, PodSecurityContext, SeccompProfile, SecurityContext,
};

/// User and group of a rootless builder; the builder's image has subordinate ids for it.
const ROOTLESS_ID: i64 = 1000;

/// What containers have by default in any runtime, without the two that `newuidmap` and `newgidmap` need: SETUID and SETGID.
const NOT_NEEDED_ROOTLESS: [&str; 12] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "NET_RAW",
    "SETFCAP",
    "SETPCAP",
    "SYS_CHROOT",
];

/// A shape of a build's pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PodShape {
    /// In a user namespace of its own, with image volumes.
    Userns,
    /// In a user namespace of its own.
    UsernsPull,
    /// An ordinary user of the node.
    Rootless,
    /// The same, with the cluster's default seccomp profile.
    RootlessDefault,
    /// With all rights on the node.
    Privileged,
}

impl PodShape {
    /// All.
    pub const ALL: [Self; 5] = [
        Self::Userns,
        Self::UsernsPull,
        Self::Rootless,
        Self::RootlessDefault,
        Self::Privileged,
    ];

    /// Those that may be chosen by what a cluster takes, best first.
    pub const LADDER: [Self; 4] = [
        Self::Userns,
        Self::UsernsPull,
        Self::Rootless,
        Self::RootlessDefault,
    ];

    /// As in the setting, the metric and the table above.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Userns => "userns",
            Self::UsernsPull => "userns-pull",
            Self::Rootless => "rootless",
            Self::RootlessDefault => "rootless-default",
            Self::Privileged => "privileged",
        }
    }

    /// The shape of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|shape| shape.name() == name)
    }

    /// Whether the node brings the base image.
    #[must_use]
    pub const fn has_image_volumes(self) -> bool {
        matches!(self, Self::Userns)
    }

    /// `spec.hostUsers`: false in a user namespace, absent elsewhere.
    pub(super) fn host_users(self) -> Option<bool> {
        match self {
            Self::Userns | Self::UsernsPull => Some(false),
            Self::Rootless | Self::RootlessDefault | Self::Privileged => None,
        }
    }

    /// Of the pod.
    pub(super) fn pod_context(self) -> Option<PodSecurityContext> {
        match self {
            Self::Userns | Self::UsernsPull | Self::Privileged => None,
            Self::Rootless | Self::RootlessDefault => Some(PodSecurityContext {
                // scratch and credentials are root's otherwise
                fs_group: Some(ROOTLESS_ID),
                run_as_group: Some(ROOTLESS_ID),
                run_as_non_root: Some(true),
                run_as_user: Some(ROOTLESS_ID),
                ..PodSecurityContext::default()
            }),
        }
    }

    /// Of the builder's container.
    pub(super) fn container_context(self) -> SecurityContext {
        // both default profiles forbid the namespaces and mounts that the builder makes
        let context = SecurityContext {
            app_armor_profile: Some(AppArmorProfile {
                type_: "Unconfined".to_owned(),
                localhost_profile: None,
            }),
            seccomp_profile: Some(SeccompProfile {
                type_: "Unconfined".to_owned(),
                localhost_profile: None,
            }),
            ..SecurityContext::default()
        };
        match self {
            Self::Userns | Self::UsernsPull => SecurityContext {
                // the kernel lets a nested namespace mount a proc of its own only if this one hides nothing
                proc_mount: Some("Unmasked".to_owned()),
                ..context
            },
            Self::Rootless => SecurityContext {
                // the file capabilities of newuidmap are an escalation
                allow_privilege_escalation: Some(true),
                capabilities: Some(Capabilities {
                    add: None,
                    drop: Some(NOT_NEEDED_ROOTLESS.map(str::to_owned).to_vec()),
                }),
                ..context
            },
            Self::RootlessDefault => SecurityContext {
                seccomp_profile: None,
                ..Self::Rootless.container_context()
            },
            Self::Privileged => SecurityContext {
                privileged: Some(true),
                ..context
            },
        }
    }
}
