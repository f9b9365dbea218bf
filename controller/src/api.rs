//! Which objects does Strata read and write, and under which keys?
//!
//! MachineOSConfig and MachineOSBuild are ours to generate CRDs for; [`foreign`] holds the slices of
//! MachineConfigPool, MachineConfig and ControllerConfig that builds read. Names, labels and annotations
//! are the incumbent's, so that either controller can take over from the other; keys under
//! [`OWN_PREFIX`] are additions that nothing of the incumbent's looks at.

pub mod condition;
pub mod foreign;
pub(crate) mod lenient;
pub mod machine_os_build;
pub mod machine_os_config;
mod schema;

pub use foreign::{ControllerConfig, MachineConfig, MachineConfigPool};
pub use machine_os_build::MachineOSBuild;
pub use machine_os_config::MachineOSConfig;
pub use schema::{crd_files, foreign_crds, own_crds};

use kube::{Resource, ResourceExt as _};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::lenient::null_as_default;

/// API group of all five kinds.
pub const GROUP: &str = "machineconfiguration.openshift.io";
/// The only served version.
pub const VERSION: &str = "v1";
/// Field manager of every write, and source component of events.
pub const FIELD_MANAGER: &str = "strata-controller";
/// Namespace of Jobs, ConfigMaps and Secrets unless a setting names another.
pub const DEFAULT_NAMESPACE: &str = "openshift-machine-config-operator";
/// The incumbent's Lease: whoever holds it works.
pub const LEASE_NAME: &str = "machine-os-builder";
/// The only ControllerConfig.
pub const CONTROLLER_CONFIG_NAME: &str = "machine-config-controller";
/// Pull secret of a MachineOSConfig that names none.
pub const DEFAULT_PULL_SECRET: &str = "global-pull-secret-copy";
/// The rendered MachineConfig's name starts with it.
pub const RENDERED_PREFIX: &str = "rendered-";
/// `metav1.FinalizerDeleteDependents`: a MachineOSBuild goes only after its Job.
pub const FOREGROUND_FINALIZER: &str = "foregroundDeletion";
/// Ours: the object stays until images, Jobs and builds that belong to it are gone.
pub const CLEANUP_FINALIZER: &str = "strata.image-mode.dev/cleanup";
/// Prefix of Strata's own keys.
pub const OWN_PREFIX: &str = "strata.image-mode.dev/";

/// Whether `object` stays until we have cleaned up after it.
#[must_use]
pub fn is_guarded(object: &impl Resource) -> bool {
    let mut finalizers = object.finalizers().iter();
    finalizers.any(|one| one == CLEANUP_FINALIZER)
}

/// Label keys.
pub mod label {
    /// On every object made for one build; empty.
    pub const ON_CLUSTER_LAYERING: &str = "machineconfiguration.openshift.io/on-cluster-layering";
    /// On every object that goes with the build; empty.
    pub const EPHEMERAL: &str = "machineconfiguration.openshift.io/ephemeral-build-object";
    /// Name of the rendered MachineConfig.
    pub const RENDERED_MACHINE_CONFIG: &str =
        "machineconfiguration.openshift.io/rendered-machine-config";
    /// Name of the pool.
    pub const TARGET_POOL: &str = "machineconfiguration.openshift.io/target-machine-config-pool";
    /// Name of the MachineOSConfig.
    pub const OS_CONFIG: &str = "machineconfiguration.openshift.io/machine-os-config";
    /// Name of the MachineOSBuild.
    pub const OS_BUILD: &str = "machineconfiguration.openshift.io/machine-os-build";
    /// `true` on a build that was seeded and never ran.
    pub const PRE_BUILT_IMAGE: &str = "machineconfiguration.openshift.io/pre-built-image";
    /// On a Secret converted to dockerconfigjson; empty.
    pub const CANONICALIZED_SECRET: &str = "machineconfiguration.openshift.io/canonicalizedSecret";
    /// Name of the Secret that such a one was made from.
    pub const ORIGINAL_SECRET_NAME: &str = "machineconfiguration.openshift.io/originalSecretName";
}

/// Annotation keys.
pub mod annotation {
    /// On a MachineOSConfig: name of the build it wants.
    pub const CURRENT_BUILD: &str = "machineconfiguration.openshift.io/current-machine-os-build";
    /// On a MachineOSConfig, by an administrator: build once more.
    pub const REBUILD: &str = "machineconfiguration.openshift.io/rebuild";
    /// On a MachineOSConfig: digest reference of an image to start with.
    pub const PRE_BUILT_IMAGE: &str = "machineconfiguration.openshift.io/pre-built-image";
    /// On a MachineOSBuild: UID of its Job.
    pub const JOB_UID: &str = "machineconfiguration.openshift.io/job-uid";
    /// On a MachineOSBuild: name of the Secret to inspect and delete its image with.
    pub const PUSH_SECRET: &str = "machineconfiguration.openshift.io/rendered-image-push-secret";
    /// On ephemeral objects: name of the MachineOSConfig.
    pub const OS_CONFIG: &str = "machineconfiguration.openshift.io/machine-os-config";
    /// On ephemeral objects: name of the MachineOSBuild.
    pub const OS_BUILD: &str = "machineconfiguration.openshift.io/machine-os-build";
    /// On ephemeral objects when the pool has an entitlement Secret; empty.
    pub const HAS_ENTITLEMENT: &str = "machineconfiguration.openshift.io/has-etc-pki-entitlement";
    /// On ephemeral objects when there is a repository ConfigMap; empty.
    pub const HAS_YUM_REPOS: &str = "machineconfiguration.openshift.io/has-etc-yum-repos-d";
    /// On ephemeral objects when there is a package key Secret; empty.
    pub const HAS_RPM_GPG: &str = "machineconfiguration.openshift.io/has-etc-pki-rpm-gpg";
    /// On a rendered MachineConfig: release it was rendered for; part of the build's name.
    pub const RELEASE_IMAGE_VERSION: &str =
        "machineconfiguration.openshift.io/release-image-version";
    /// On a rendered MachineConfig: version of the controller that rendered it.
    pub const GENERATED_BY_VERSION: &str =
        "machineconfiguration.openshift.io/generated-by-controller-version";
    /// On a Node: image it runs.
    pub const NODE_CURRENT_IMAGE: &str = "machineconfiguration.openshift.io/currentImage";
    /// On a Node: image it shall run.
    pub const NODE_DESIRED_IMAGE: &str = "machineconfiguration.openshift.io/desiredImage";
    /// On a MachineOSBuild: key over everything that makes its image another one.
    pub const CONTENT_KEY: &str = "strata.image-mode.dev/content-key";
    /// On a MachineOSBuild: image of an earlier one, by digest, that it takes instead of being built. As long as it hasn't ended, nobody deletes that image.
    pub const REUSED_IMAGE: &str = "strata.image-mode.dev/reused-image";
    /// On a MachineOSBuild that somebody asked to be built again: it takes no image of an earlier one. On its MachineOSConfig from the moment at which the asking annotation goes until that build is there.
    pub const BUILD_ANEW: &str = "strata.image-mode.dev/build-anew";
    /// On a MachineOSBuild that was interrupted for a newer one: that one's name. If it is wanted again, it is built again.
    pub const SUPERSEDED_BY: &str = "strata.image-mode.dev/superseded-by";
    /// On a MachineOSBuild: since when the registry has been asked in vain for the image that its Job has pushed, or may have.
    pub const UNCONFIRMED_SINCE: &str = "strata.image-mode.dev/unconfirmed-since";
    /// By an administrator. On a MachineOSBuild, with any value but `false`: its image stays, also when the build is deleted. On a MachineOSConfig: images by digest, separated by commas, that stay as long as the config does.
    pub const KEEP_IMAGE: &str = "strata.image-mode.dev/keep-image";
    /// By an administrator, on a MachineOSConfig: how many of its newest builds stay, or `all`.
    pub const KEEP_BUILDS: &str = "strata.image-mode.dev/keep-builds";
    /// By an administrator, on a MachineOSConfig: how long its builds stay.
    pub const KEEP_FOR: &str = "strata.image-mode.dev/keep-for";
    /// On a MachineOSBuild: the tier that its builder ran in.
    pub const TIER: &str = "strata.image-mode.dev/tier";
    /// On a MachineOSBuild: the size of its image, all blobs together.
    pub const IMAGE_BYTES: &str = "strata.image-mode.dev/image-bytes";
}

/// Names of the objects that belong to the build `os_build`.
pub mod name {
    /// The Job.
    #[must_use]
    pub fn job(os_build: &str) -> String {
        format!("build-{os_build}")
    }

    /// ConfigMap with the rendered Containerfile.
    #[must_use]
    pub fn containerfile(os_build: &str) -> String {
        format!("containerfile-{os_build}")
    }

    /// ConfigMap with the packed MachineConfig.
    #[must_use]
    pub fn machine_config(os_build: &str) -> String {
        format!("mc-{os_build}")
    }

    /// ConfigMap with the cluster's additional trust bundle.
    #[must_use]
    pub fn trust_bundle(os_build: &str) -> String {
        format!("additionaltrustbundle-{os_build}")
    }

    /// ConfigMap with the image policy from the MachineConfig.
    #[must_use]
    pub fn policy(os_build: &str) -> String {
        format!("etc-policy-{os_build}")
    }

    /// ConfigMap with the registries' settings from the MachineConfig.
    #[must_use]
    pub fn registries(os_build: &str) -> String {
        format!("etc-registries-{os_build}")
    }

    /// Secret to pull with.
    #[must_use]
    pub fn pull_secret(os_build: &str) -> String {
        format!("base-{os_build}")
    }

    /// Secret to push with.
    #[must_use]
    pub fn push_secret(os_build: &str) -> String {
        format!("final-{os_build}")
    }

    /// ConfigMap in which the incumbent's builds leave their digest, under [`DIGEST_KEY`]; we never write one.
    #[must_use]
    pub fn digest(os_build: &str) -> String {
        format!("digest-{os_build}")
    }

    /// The key of the digest in [`digest`].
    pub const DIGEST_KEY: &str = "digest";

    /// Secret with the entitlement of a pool.
    #[must_use]
    pub fn entitlement(pool: &str) -> String {
        format!("etc-pki-entitlement-{pool}")
    }

    /// Secret with package signing keys.
    pub const RPM_GPG: &str = "etc-pki-rpm-gpg";
    /// ConfigMap with package repositories.
    pub const YUM_REPOS: &str = "etc-yum-repos-d";
}

/// A reference by name to an object whose kind the field fixes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NameReference {
    /// metadata.name of the object.
    #[serde(default, deserialize_with = "null_as_default")]
    #[schemars(!default, schema_with = "schema::dns_subdomain")]
    pub name: String,
}

impl NameReference {
    /// A reference to `name`.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into() }
    }
}

/// A reference to an object of any kind outside the core group.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ObjectReference {
    /// API group of the object.
    #[serde(default, deserialize_with = "null_as_default")]
    #[schemars(!default, schema_with = "schema::dns_subdomain")]
    pub group: String,
    /// Resource of the object: the lower-case plural of its kind.
    #[serde(default, deserialize_with = "null_as_default")]
    #[schemars(!default, schema_with = "schema::resource_name")]
    pub resource: String,
    /// Namespace of the object, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::namespace_name")]
    pub namespace: Option<String>,
    /// metadata.name of the object.
    #[serde(default, deserialize_with = "null_as_default")]
    #[schemars(!default, schema_with = "schema::dns_subdomain_not_empty")]
    pub name: String,
}
