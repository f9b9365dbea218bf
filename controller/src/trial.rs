//! Which pods does this cluster take for builds?
//!
//! Neither a version nor a list of feature gates tells: a gate may be off, an admission policy or a security context
//! constraint may forbid what the version has. So a pod that asks for what a build's pod asks for is created by dry run,
//! and what the apiserver gives back is compared: a field whose gate is off is gone in it. The best shape that comes back
//! whole is used, and asked for again after a while, since clusters are upgraded.
//!
//! Left out: whether a node can run it. That shows when a pod starts, and is said on the build ([`remedy`]).

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Pod, PodSpec, SecurityContext};
use kube::api::PostParams;
use kube::{Api, Client};
use strata_builder::error::{Class, chain};
use tokio::sync::Mutex;
use tracing::{info, warn};

use crate::api::FIELD_MANAGER;
use crate::error::{Error, class_of};
use crate::job::{JobSettings, PodShape, trial};
use crate::metrics::Metrics;

/// An answer counts for so long.
const VALID: Duration = Duration::from_secs(600);

/// What the apiserver makes of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It takes it as it is.
    Taken,
    /// It takes it, and a build does without what is named.
    Reduced(&'static str),
    /// It doesn't take it, or not what makes it this pod.
    Refused(String),
}

/// What a cluster takes, asked once in a while.
pub struct Trials {
    metrics: Metrics,
    known: Mutex<Option<(Instant, PodShape)>>,
}

impl Trials {
    /// Nothing is known yet.
    #[must_use]
    pub fn new(metrics: Metrics) -> Self {
        Self {
            metrics,
            known: Mutex::new(None),
        }
    }

    /// Begins anew with the settings of all builds: what other ones were answered may not hold for them.
    ///
    /// # Errors
    ///
    /// Transient: the apiserver didn't answer.
    pub async fn begin(&self, client: &Client, settings: &JobSettings) -> Result<(), Error> {
        *self.known.lock().await = None;
        if let Some(shape) = settings.shape {
            info!(shape = shape.name(), "pods of builds, as the settings say");
            self.metrics.build_pod(shape);
            return Ok(());
        }
        self.shape(client, settings).await.map(|_| ())
    }

    /// The shape of pods to make: that of the settings, or else the best that the cluster takes; or why it takes none.
    ///
    /// # Errors
    ///
    /// Transient: the apiserver didn't answer.
    ///
    /// # Cancel safety
    ///
    /// Nothing is known then; the next call asks again.
    pub async fn shape(
        &self,
        client: &Client,
        settings: &JobSettings,
    ) -> Result<Result<PodShape, String>, Error> {
        if let Some(shape) = settings.shape {
            return Ok(Ok(shape));
        }
        // held while asking, so that builds that begin together ask once
        let mut known = self.known.lock().await;
        if let Some((since, shape)) = *known
            && since.elapsed() < VALID
        {
            return Ok(Ok(shape));
        }
        let before = known.take().map(|(_, shape)| shape);
        let mut refused = Vec::new();
        let mut chosen = None;
        for shape in PodShape::LADDER {
            if chosen.is_some() {
                break;
            }
            match ask(client, settings, shape).await? {
                Verdict::Refused(why) => refused.push((shape, why)),
                verdict @ (Verdict::Taken | Verdict::Reduced(_)) => {
                    chosen = Some((shape, verdict));
                }
            }
        }
        let reasons: Vec<String> = refused
            .iter()
            .map(|(shape, why)| format!("{}: {why}", shape.name()))
            .collect();
        let Some((shape, verdict)) = chosen else {
            let reasons = reasons.join("; ");
            warn!(reasons, "the cluster takes no pod for builds");
            return Ok(Err(format!(
                "namespace {} takes no pod that could build; {reasons}",
                settings.namespace
            )));
        };
        if before != Some(shape) {
            let lacks = match verdict {
                Verdict::Reduced(what) => Some(what),
                Verdict::Taken | Verdict::Refused(_) => None,
            };
            info!(shape = shape.name(), lacks, better = ?reasons, "pods of builds");
            self.metrics.build_pod(shape);
        }
        *known = Some((Instant::now(), shape));
        Ok(Ok(shape))
    }
}

/// What the apiserver makes of a pod of `shape`; nothing is created.
///
/// # Errors
///
/// Transient: it didn't answer.
pub async fn ask(
    client: &Client,
    settings: &JobSettings,
    shape: PodShape,
) -> Result<Verdict, Error> {
    let pod = trial(shape, settings);
    let pods: Api<Pod> = Api::namespaced(client.clone(), &settings.namespace);
    let parameters = PostParams {
        dry_run: true,
        field_manager: Some(FIELD_MANAGER.to_owned()),
    };
    match pods.create(&parameters, &pod).await {
        Ok(answer) => Ok(compare(&pod, &answer)),
        Err(kube::Error::Api(status)) if is_about_room(&status.message) => Ok(Verdict::Taken),
        Err(source) if class_of(&source) == Class::Transient => Err(Error::Read {
            object: format!("whether a pod of shape {} would be taken", shape.name()),
            source,
        }),
        Err(kube::Error::Api(status)) => Ok(Verdict::Refused(status.message.clone())),
        Err(other) => Ok(Verdict::Refused(chain(&other))),
    }
}

/// A quota counts pods of any shape, and may have room when the build's is made.
fn is_about_room(message: &str) -> bool {
    message.contains("exceeded quota")
}

/// What came back of `asked`.
#[must_use]
pub fn compare(asked: &Pod, answer: &Pod) -> Verdict {
    let (Some(asked), Some(answer)) = (&asked.spec, &answer.spec) else {
        return Verdict::Refused("the apiserver's answer has no spec".to_owned());
    };
    let none = SecurityContext::default();
    let of_asked = context(asked).unwrap_or(&none);
    let of_answer = context(answer).unwrap_or(&none);
    let images = |spec: &PodSpec| {
        let volumes = spec.volumes.iter().flatten();
        volumes.filter(|volume| volume.image.is_some()).count()
    };
    let user = |spec: &PodSpec| spec.security_context.as_ref()?.run_as_user;
    let unconfined = |context: &SecurityContext| {
        let profile = context.seccomp_profile.as_ref();
        profile.is_none_or(|profile| profile.type_ == "Unconfined")
    };
    let loses_ids = of_answer.capabilities.as_ref().is_some_and(|capabilities| {
        let mut drop = capabilities.drop.iter().flatten();
        drop.any(|one| matches!(one.as_str(), "ALL" | "SETUID" | "SETGID"))
    });
    let changes = [
        (
            asked.host_users == answer.host_users,
            "it drops spec.hostUsers: false, which Kubernetes has from 1.33 on, or from 1.30 with the feature gate UserNamespacesSupport",
        ),
        (
            images(asked) == images(answer),
            "it drops the image volume, which Kubernetes has from 1.35 on, or from 1.33 with the feature gate ImageVolume",
        ),
        (
            user(asked) == user(answer),
            "a policy of the cluster changes spec.securityContext.runAsUser",
        ),
        (
            of_asked.privileged == of_answer.privileged,
            "a policy of the cluster changes securityContext.privileged",
        ),
        (
            of_answer.allow_privilege_escalation != Some(false),
            "a policy of the cluster forbids privilege escalation, which the file capabilities of newuidmap need",
        ),
        (
            unconfined(of_answer),
            "a policy of the cluster sets a seccomp profile, and the default ones forbid user namespaces",
        ),
        (
            !loses_ids,
            "a policy of the cluster drops the capabilities SETUID and SETGID",
        ),
    ];
    if let Some((_, what)) = changes.iter().find(|(is_kept, _)| !is_kept) {
        return Verdict::Refused((*what).to_owned());
    }
    if of_asked.proc_mount != of_answer.proc_mount {
        return Verdict::Reduced(
            "procMount: Unmasked: steps see the pod's own /proc, in which they can't look into the builder's processes",
        );
    }
    Verdict::Taken
}

fn context(spec: &PodSpec) -> Option<&SecurityContext> {
    spec.containers.first()?.security_context.as_ref()
}

/// What to do about a node that doesn't start a pod of `spec` and says `message`; none if its shape isn't to blame.
#[must_use]
pub fn remedy(spec: &PodSpec, message: &str) -> Option<String> {
    let message = message.to_ascii_lowercase();
    let says = |words: &[&str]| words.iter().any(|word| message.contains(word));
    let has_images = spec
        .volumes
        .iter()
        .flatten()
        .any(|volume| volume.image.is_some());
    if spec.host_users == Some(false)
        && says(&["user namespace", "userns", "idmap", "id map", "id-map"])
    {
        return Some(format!(
            "user namespaces for pods need containerd 2.0 or CRI-O 1.25 and Linux 6.3 on the node; without them set STRATA_BUILD_POD={}",
            PodShape::Rootless.name()
        ));
    }
    if has_images && says(&["image volume", "host_path", "host path", "image mount"]) {
        return Some(format!(
            "image volumes need containerd 2.1 or CRI-O 1.31 on the node; without them set STRATA_BUILD_POD={}",
            PodShape::UsernsPull.name()
        ));
    }
    None
}

/// What the cluster says to each shape, for people.
///
/// # Errors
///
/// Transient: the apiserver doesn't answer.
pub async fn doctor(client: &Client, settings: &JobSettings) -> Result<String, Error> {
    let version = client
        .apiserver_version()
        .await
        .map_err(|source| Error::Read {
            object: "the server's version".to_owned(),
            source,
        })?;
    let mut verdicts = Vec::new();
    for shape in PodShape::ALL {
        verdicts.push((shape, ask(client, settings, shape).await?));
    }
    let version = format!("Kubernetes {}", version.git_version);
    Ok(told(&version, settings, &verdicts))
}

fn told(version: &str, settings: &JobSettings, verdicts: &[(PodShape, Verdict)]) -> String {
    let mut lines = vec![
        format!("server      {version}"),
        format!("namespace   {}", settings.namespace),
        format!("account     {}", settings.service_account),
        String::new(),
    ];
    for (shape, verdict) in verdicts {
        let name = shape.name();
        lines.push(match verdict {
            Verdict::Taken => format!("pod {name}: taken"),
            Verdict::Reduced(what) => format!("pod {name}: taken, without {what}"),
            Verdict::Refused(why) => format!("pod {name}: refused: {why}"),
        });
    }
    let is_taken = |shape: &PodShape| {
        let mut known = verdicts.iter();
        known.any(|(one, verdict)| one == shape && !matches!(verdict, Verdict::Refused(_)))
    };
    let best = PodShape::LADDER.into_iter().find(is_taken);
    lines.push(String::new());
    lines.push(match (settings.shape, best) {
        (Some(shape), _) => format!(
            "Builds have pods of shape {}, as STRATA_BUILD_POD says.",
            shape.name()
        ),
        (None, Some(shape)) => format!("Builds have pods of shape {}.", shape.name()),
        (None, None) => "No build can run here.".to_owned(),
    });
    lines.push("Whether a node can run such a pod shows when it starts.".to_owned());
    lines.push(String::new());
    lines.join("\n")
}

#[cfg(test)]
mod tests;
