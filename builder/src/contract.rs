//! What passes between the controller and the build pod: exit codes and the `BuildReport`.
//!
//! The report is the container's termination message, so it is at most [`REPORT_LIMIT_BYTES`] long. The
//! controller believes its digest only after the registry has confirmed it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::error::Class;

/// Kubernetes keeps 4096 bytes of a container's termination message.
pub const REPORT_LIMIT_BYTES: usize = 4096;

/// The report's layout; another number is refused by the controller.
pub const REPORT_VERSION: u32 = 1;

/// Annotation on the pushed manifest: the UID of the MachineOSBuild that it was built for. A retried pod,
/// and a controller whose pod is gone, accept the build's tag only with this value.
pub const BUILD_UID_ANNOTATION: &str = "strata.image-mode.dev/build-uid";

/// Annotation on the manifest under [`steps_tag`]: the UID of the unfinished build whose layers it notes.
pub const STEPS_OF_ANNOTATION: &str = "strata.image-mode.dev/steps-of";

/// Annotation on the pushed manifest and on the one under [`steps_tag`]: the cluster whose MachineOSBuild that is, as several may push to a repository.
pub const CLUSTER_ANNOTATION: &str = "strata.image-mode.dev/cluster";

/// Annotation on both: the tag that the manifest was pushed under. Whatever is made from it with annotations and all has another.
pub const TAG_ANNOTATION: &str = "strata.image-mode.dev/tag";

/// Annotations of ours start with it; no image hands them on to those made from it.
pub const ANNOTATION_PREFIX: &str = "strata.image-mode.dev/";

/// The tag beside a build's own one under which its layers are noted while it runs, for another attempt of it. None if it would be longer than
/// the 128 characters of a tag.
#[must_use]
pub fn steps_tag(tag: &str) -> Option<String> {
    let tag = format!("{tag}-strata-steps");
    (tag.len() <= 128).then_some(tag)
}

/// What a build came to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BuildReport {
    /// [`REPORT_VERSION`].
    pub version: u32,
    /// The pushed image, or why there is none.
    pub outcome: Outcome,
    /// The tier that ran, as `--tier` takes it.
    pub tier: String,
    /// Wall time of each phase in milliseconds, in the order they began.
    pub phases: Vec<PhaseTime>,
    /// Largest resident set of the builder process, in bytes.
    #[serde(default)]
    pub peak_rss_bytes: u64,
    /// What was done, also by a build that failed.
    #[serde(default)]
    pub work: Work,
}

/// What a build has done.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Work {
    /// In the order they ended; the slowest, if there are more than the report has room for.
    pub steps: Vec<StepTime>,
    /// Layers that an earlier attempt of the same build had pushed, and whose steps were not run again.
    pub earlier_layers: usize,
    /// Of images that were unpacked, compressed.
    pub unpacked_bytes: u64,
    /// Layers of the base that the target had.
    pub base_layers_present: usize,
    /// Layers of the base that the registry took over from another repository.
    pub base_layers_mounted: usize,
    /// Layers of the base that were sent as they are.
    pub base_layers_copied: usize,
    /// Of those that were sent as they are.
    pub base_copied_bytes: u64,
    /// Of layers that were made and sent.
    pub layer_bytes: u64,
    /// How often a request or transfer was tried again, by what had gone wrong: `connection`, `slow`, `digest`, `answer`, `disk`, or the status of a refusal.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub retries: BTreeMap<String, u32>,
}

/// How long an instruction took.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StepTime {
    /// Of the stages that were built, from 1.
    pub stage: usize,
    /// In its stage, from 1.
    pub step: usize,
    /// Wall time.
    pub millis: u64,
}

impl BuildReport {
    /// The pushed manifest's digest, if there is one.
    #[must_use]
    pub fn pushed(&self) -> Option<Digest> {
        match &self.outcome {
            Outcome::Pushed { digest, .. } => Some(*digest),
            Outcome::Failed(_) => None,
        }
    }
}

/// How a build ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "result")]
pub enum Outcome {
    /// The image is in the registry.
    #[serde(rename_all = "camelCase")]
    Pushed {
        /// Of the manifest.
        digest: Digest,
        /// Compressed size of all layers and the configuration.
        size_bytes: u64,
        /// Layers in the manifest, the base's included.
        layers: usize,
        /// Bytes of blobs sent to the registry by this run.
        sent_bytes: u64,
        /// Found in the registry from an earlier attempt, not built again.
        #[serde(default)]
        already_there: bool,
    },
    /// There is no image.
    Failed(Failure),
}

/// Why a build failed, in the words of the user's own file where it was that file's doing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Failure {
    /// Who can end it.
    pub class: Class,
    /// One sentence, causes joined by `: `; where a step failed, without its place.
    pub message: String,
    /// The repository, as a rule with tag or digest, whose registry refused the credentials.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused_by: Option<String>,
    /// The instruction that failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<FailedStep>,
}

/// The instruction that failed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FailedStep {
    /// File name as given to the builder.
    pub file: String,
    /// First line of the instruction, from 1.
    pub line: usize,
    /// The instruction as written, joined to one line and shortened.
    pub text: String,
    /// Exit status of the command; none if it was no command or was killed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_status: Option<i32>,
    /// The last lines of its output, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub output: Vec<String>,
}

/// How long a phase took.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PhaseTime {
    /// `plan`, `pull`, `steps`, `layers`, `push`.
    pub name: String,
    /// Wall time.
    pub millis: u64,
}
