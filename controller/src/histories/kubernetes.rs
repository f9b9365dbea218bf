//! What Kubernetes itself does: Jobs get pods, pods end, the garbage collector takes what has lost its owner.

use k8s_openapi::api::batch::v1::{Job, JobCondition};
use k8s_openapi::api::core::v1::{
    ContainerState, ContainerStateTerminated, ContainerStatus, Pod, PodCondition, PodStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::{Resource, ResourceExt as _};
use strata_builder::contract::{BuildReport, Failure, Outcome, REPORT_VERSION};
use strata_builder::digest::Digest;
use strata_builder::error::Class;

use super::table::{Propagation, is_owned, owners};
use super::world::World;
use crate::api::{FOREGROUND_FINALIZER, label};
use crate::job::CONTAINER;

/// Failed pods that a Job replaces; that of the Jobs made by [`crate::job`].
const BACKOFF_LIMIT: i32 = 3;

/// How a pod ends.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Well,
    Fails,
    Breaks,
    Evicted,
    Lost,
}

/// Something that the garbage collector has to do.
enum Garbage {
    Pod(String),
    Job(String),
    /// A Job, or a build, whose dependents are gone.
    FreeJob(String),
    FreeBuild(String),
    Build(String),
    ConfigMap(String),
    Secret(String),
}

impl World {
    /// A Job that has neither ended nor a pod that runs gets one.
    pub(super) fn pod_starts(&mut self, n: u8) -> bool {
        let Some(job) = self.jobs.nth(n).cloned() else {
            return false;
        };
        if job.metadata.deletion_timestamp.is_some()
            || has_ended(&job)
            || self
                .pods_of(&job)
                .any(|pod| is_live(pod) || phase(pod) == "Succeeded" || exit_code(pod) == Some(65))
        {
            return false;
        }
        let name = format!("{}-{}", job.name_any(), self.clock.next());
        let mut owner = job.controller_owner_ref(&()).unwrap();
        owner.block_owner_deletion = Some(true);
        let build = job.labels()[label::OS_BUILD].clone();
        let pod = Pod {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                namespace: job.namespace(),
                labels: Some([(label::OS_BUILD.to_owned(), build)].into()),
                owner_references: Some(vec![owner]),
                ..ObjectMeta::default()
            },
            status: Some(PodStatus {
                phase: Some("Running".to_owned()),
                ..PodStatus::default()
            }),
            ..Pod::default()
        };
        self.pods.create(&mut self.clock, pod);
        self.job_looks(&job.name_any());
        self.note(|| format!("pod {name} runs"));
        true
    }

    fn pods_of<'a>(&'a self, job: &'a Job) -> impl Iterator<Item = &'a Pod> {
        let uid = job.metadata.uid.as_deref().unwrap_or_default();
        self.pods
            .all()
            .filter(move |pod| is_owned(&pod.metadata, uid))
    }

    fn live_pod(&self, n: u8) -> Option<&Pod> {
        let count = self.pods.all().filter(|pod| is_live(pod)).count().max(1);
        let mut live = self.pods.all().filter(|pod| is_live(pod));
        live.nth(usize::from(n) % count)
    }

    /// Keeps what the pods of a Job are told by its template, also for when the objects are gone.
    pub(super) fn send(&mut self, job: &str) {
        let Some(job) = self.jobs.get(job) else {
            return;
        };
        let build = self.os_builds.get(&job.labels()[label::OS_BUILD]);
        if let (Some(uid), Some(build)) = (job.uid(), build) {
            let reference = build.spec.rendered_image_push_spec.clone();
            let errand = (reference, build.uid().unwrap_or_default());
            self.errands.entry(uid).or_insert(errand);
        }
    }

    /// Whom a pod builds for: reference to push to, UID of the build.
    fn errand(&self, pod: &Pod) -> (String, String) {
        let job_uid = pod.owner_references()[0].uid.clone();
        self.errands[&job_uid].clone()
    }

    /// A pod that runs pushes, unless an earlier one of its Job did; also one that is told to end may just have.
    pub(super) fn pod_pushes(&mut self, n: u8) -> bool {
        let Some(pod) = self.live_pod(n).cloned() else {
            return false;
        };
        let (reference, build_uid) = self.errand(&pod);
        if self.registry.tagged(&reference, &build_uid).is_some() {
            return false;
        }
        let stamp = self.clock.next();
        self.registry
            .push(&reference, &build_uid, self.clock.now, stamp);
        self.note(|| format!("pod {} pushes {reference}", pod.name_any()));
        true
    }

    pub(super) fn pod_ends(&mut self, n: u8, end: End) -> bool {
        let Some(pod) = self.live_pod(n).cloned() else {
            return false;
        };
        let (reference, build_uid) = self.errand(&pod);
        let name = pod.name_any();
        if end == End::Well {
            // it was told to end: it does so without a report
            if pod.metadata.deletion_timestamp.is_some() {
                return false;
            }
            self.pod_pushes(n);
        } else {
            self.blamed.insert(build_uid.clone());
        }
        let job_uid = pod.owner_references()[0].uid.clone();
        let digest = self.registry.tagged(&reference, &build_uid);
        if matches!(end, End::Breaks | End::Lost) {
            *self.broken.entry(job_uid).or_default() += 1;
        }
        if end == End::Lost {
            self.pods.change(&mut self.clock, &name, |pod| {
                pod.metadata.deletion_timestamp = Some(Time(jiff::Timestamp::UNIX_EPOCH));
            });
            self.note(|| format!("pod {name} is lost"));
            return true;
        }
        let now = self.clock.now;
        self.pods.change(&mut self.clock, &name, |pod| {
            pod.status = Some(ended(end, digest, now));
        });
        self.note(|| {
            format!(
                "pod {name} has ended {}",
                if end == End::Well { "well" } else { "badly" }
            )
        });
        true
    }

    /// A pod that was told to end is gone.
    pub(super) fn pod_goes(&mut self, n: u8) -> bool {
        let going: Vec<_> = self
            .pods
            .all()
            .filter(|pod| pod.metadata.deletion_timestamp.is_some())
            .map(kube::ResourceExt::name_any)
            .collect();
        let Some(name) = going.get(usize::from(n) % going.len().max(1)).cloned() else {
            return false;
        };
        self.pods.change(&mut self.clock, &name, |pod| {
            pod.metadata.finalizers = None;
        });
        self.note(|| format!("pod {name} is gone"));
        true
    }

    pub(super) fn job_late(&mut self, n: u8) {
        let Some(job) = self.jobs.nth(n).cloned() else {
            return;
        };
        if has_ended(&job) {
            return;
        }
        let owner = job.owner_references()[0].uid.clone();
        self.blamed.insert(owner);
        self.job_ends(&job.name_any(), "Failed", "DeadlineExceeded");
        let pods: Vec<_> = self
            .pods_of(&job)
            .map(kube::ResourceExt::name_any)
            .collect();
        for pod in pods {
            self.tell_pod_to_end(&pod);
        }
    }

    fn job_ends(&mut self, name: &str, type_: &str, reason: &str) {
        let now = self.clock.now;
        self.jobs.change(&mut self.clock, name, |job| {
            let status = job.status.get_or_insert_default();
            status.active = None;
            status
                .conditions
                .get_or_insert_default()
                .push(JobCondition {
                    last_transition_time: Some(Time(now)),
                    reason: Some(reason.to_owned()),
                    status: "True".to_owned(),
                    type_: type_.to_owned(),
                    ..JobCondition::default()
                });
        });
        self.note(|| format!("Job {name}: {type_} {reason}"));
    }

    /// The Job controller writes what has become of the pods.
    pub(super) fn job_looks(&mut self, name: &str) -> bool {
        let Some(job) = self.jobs.get(name).cloned() else {
            return false;
        };
        if has_ended(&job) {
            return false;
        }
        let uid = job.metadata.uid.clone().unwrap_or_default();
        let failed = self.broken.get(&uid).copied().unwrap_or_default();
        let hopeless = self.pods_of(&job).any(|pod| exit_code(pod) == Some(65));
        let done = self.pods_of(&job).any(|pod| phase(pod) == "Succeeded");
        let active = self.pods_of(&job).filter(|pod| is_live(pod)).count();
        if done {
            self.job_ends(name, "Complete", "CompletionsReached");
        } else if hopeless {
            self.job_ends(name, "Failed", "PodFailurePolicy");
        } else if failed > BACKOFF_LIMIT {
            self.job_ends(name, "Failed", "BackoffLimitExceeded");
        } else {
            let before = job.status.clone();
            self.jobs.change(&mut self.clock, name, |job| {
                let status = job.status.get_or_insert_default();
                status.failed = (failed > 0).then_some(failed);
                status.active = i32::try_from(active).ok().filter(|active| *active > 0);
            });
            return self.jobs.get(name).map(|job| &job.status) != Some(&before);
        }
        true
    }

    fn tell_pod_to_end(&mut self, name: &str) {
        let now = self.clock.now;
        // the kubelet takes its hand off when it has ended
        self.pods.change(&mut self.clock, name, |pod| {
            pod.metadata.deletion_timestamp.get_or_insert(Time(now));
            pod.metadata.finalizers = Some(vec!["kubelet".to_owned()]);
        });
        self.note(|| format!("pod {name} is told to end"));
    }

    /// One thing of those that the garbage collector has to do.
    pub(super) fn collect(&mut self, n: u8) -> bool {
        let mut garbage = self.garbage();
        if garbage.is_empty() {
            return false;
        }
        let one = garbage.swap_remove(usize::from(n) % garbage.len());
        let clock = &mut self.clock;
        let says = Propagation::AsItSays;
        match one {
            Garbage::Pod(name) => self.tell_pod_to_end(&name),
            Garbage::Job(name) => {
                self.jobs.delete(clock, &name, Propagation::Foreground);
                self.note(|| format!("the collector deletes Job {name}"));
            }
            Garbage::FreeJob(name) => {
                self.jobs.change(clock, &name, free);
                self.note(|| format!("Job {name} is gone"));
            }
            Garbage::FreeBuild(name) => self.os_builds.change(clock, &name, free),
            Garbage::Build(name) => {
                self.os_builds.delete(clock, &name, says);
                self.note(|| format!("the collector deletes build {name}"));
            }
            Garbage::ConfigMap(name) => self.config_maps.delete(clock, &name, says),
            Garbage::Secret(name) => self.secrets.delete(clock, &name, says),
        }
        true
    }

    fn garbage(&self) -> Vec<Garbage> {
        let mut garbage = Vec::new();
        for pod in self.pods.all() {
            let job = self.jobs.all().find(|job| {
                let uid = job.metadata.uid.as_deref().unwrap_or_default();
                is_owned(&pod.metadata, uid)
            });
            if pod.metadata.deletion_timestamp.is_none() && job.is_none_or(waits_for_dependents) {
                garbage.push(Garbage::Pod(pod.name_any()));
            }
        }
        for job in self.jobs.all() {
            let owner = owners(&job.metadata).find_map(|owner| {
                self.os_builds
                    .all()
                    .find(|one| one.uid().as_ref() == Some(&owner.uid))
            });
            if waits_for_dependents(job) {
                if self.pods_of(job).next().is_none() {
                    garbage.push(Garbage::FreeJob(job.name_any()));
                }
            } else if owner.is_none_or(waits_for_dependents) {
                garbage.push(Garbage::Job(job.name_any()));
            }
        }
        for os_build in self.os_builds.all() {
            let uid = os_build.uid().unwrap_or_default();
            let is_lost =
                || !owners(&os_build.metadata).any(|owner| self.os_configs.has_uid(&owner.uid));
            if waits_for_dependents(os_build) {
                if !self.jobs.all().any(|job| is_owned(&job.metadata, &uid)) {
                    garbage.push(Garbage::FreeBuild(os_build.name_any()));
                }
            } else if os_build.metadata.deletion_timestamp.is_none() && is_lost() {
                garbage.push(Garbage::Build(os_build.name_any()));
            }
        }
        let lost = |meta: &ObjectMeta| {
            owners(meta).count() > 0 && !owners(meta).any(|one| self.os_builds.has_uid(&one.uid))
        };
        for config_map in self.config_maps.all().filter(|one| lost(&one.metadata)) {
            garbage.push(Garbage::ConfigMap(config_map.name_any()));
        }
        for secret in self.secrets.all().filter(|one| lost(&one.metadata)) {
            garbage.push(Garbage::Secret(secret.name_any()));
        }
        garbage
    }
}

fn waits_for_dependents(object: &impl Resource) -> bool {
    object.meta().deletion_timestamp.is_some()
        && object
            .finalizers()
            .iter()
            .any(|one| one == FOREGROUND_FINALIZER)
}

fn free(object: &mut impl Resource) {
    object
        .finalizers_mut()
        .retain(|one| one != FOREGROUND_FINALIZER);
}

pub(super) fn has_ended(job: &Job) -> bool {
    let status = job.status.as_ref();
    status.is_some_and(|status| {
        status
            .conditions
            .as_ref()
            .is_some_and(|all| !all.is_empty())
    })
}

fn phase(pod: &Pod) -> &str {
    let status = pod.status.as_ref();
    status
        .and_then(|status| status.phase.as_deref())
        .unwrap_or_default()
}

pub(super) fn is_live(pod: &Pod) -> bool {
    phase(pod) == "Running"
}

fn exit_code(pod: &Pod) -> Option<i32> {
    let statuses = pod.status.as_ref()?.container_statuses.as_ref()?;
    Some(
        statuses
            .first()?
            .state
            .as_ref()?
            .terminated
            .as_ref()?
            .exit_code,
    )
}

fn ended(end: End, digest: Option<Digest>, now: jiff::Timestamp) -> PodStatus {
    let failed = |class| {
        Outcome::Failed(Failure {
            class,
            message: "the command failed".to_owned(),
            refused_by: None,
            step: None,
        })
    };
    let (phase, outcome) = match (end, digest) {
        (End::Well, Some(digest)) => (
            "Succeeded",
            Outcome::Pushed {
                digest,
                size_bytes: 1,
                layers: 1,
                sent_bytes: 1,
                already_there: false,
            },
        ),
        (End::Fails, _) => ("Failed", failed(Class::CONTENT)),
        (End::Breaks | End::Well, _) => ("Failed", failed(Class::Transient)),
        (End::Evicted | End::Lost, _) => {
            let condition = PodCondition {
                type_: "DisruptionTarget".to_owned(),
                status: "True".to_owned(),
                ..PodCondition::default()
            };
            return PodStatus {
                phase: Some("Failed".to_owned()),
                reason: Some("Evicted".to_owned()),
                conditions: Some(vec![condition]),
                ..PodStatus::default()
            };
        }
    };
    let exit_code = match &outcome {
        Outcome::Pushed { .. } => 0,
        Outcome::Failed(failure) => i32::from(failure.class.exit_code()),
    };
    let report = BuildReport {
        version: REPORT_VERSION,
        outcome,
        tier: "userns".to_owned(),
        phases: Vec::new(),
        peak_rss_bytes: 0,
        work: strata_builder::contract::Work::default(),
    };
    let terminated = ContainerStateTerminated {
        exit_code,
        finished_at: Some(Time(now)),
        message: serde_json::to_string(&report).ok(),
        ..ContainerStateTerminated::default()
    };
    PodStatus {
        phase: Some(phase.to_owned()),
        container_statuses: Some(vec![ContainerStatus {
            name: CONTAINER.to_owned(),
            state: Some(ContainerState {
                terminated: Some(terminated),
                ..ContainerState::default()
            }),
            ..ContainerStatus::default()
        }]),
        ..PodStatus::default()
    }
}
