//! What shall be done for a MachineOSConfig? Pure.
//!
//! Rules are tried in order; the first that matches makes the plan. Steps on the status follow those of the rule when
//! the status is to say something else.
//!
//! | rule | observed | steps |
//! | --- | --- | --- |
//! | deleting | deleted | DeleteBuild of each build; when none is left Tell, RemoveFinalizer |
//! | guard | no finalizer | AddFinalizer |
//! | invalid | the build can't be named, or can't be built and none has succeeded, or the seed is no digest | – |
//! | waiting | pool or rendered MachineConfig absent | – |
//! | rebuild-requested | rebuild annotation, the wanted build exists | DeleteBuild |
//! | seed | pre-built annotation, nothing built before or asked for | CreateBuild that stands for the image |
//! | refused | the apiserver refused what a rule makes, or an object with another owner is in its way | Tell |
//! | undecodable | it isn't what its type says | Tell |
//! | create | the wanted build is absent | Annotate (its name; no rebuild, but to build anew), CreateBuild |
//! | replaced | the wanted build is being deleted | – |
//! | restart | the wanted build was superseded earlier, or ended without an image and then another was wanted | Annotate (to build anew, if it was to), DeleteBuild |
//! | building | the wanted build has not ended | Annotate its name, unless it is to be seeded; if it has begun DeleteBuild of the others that ended without an image |
//! | failed | it has, without an image | Annotate its name, DeleteBuild of the others without one |
//! | image-lost | it has an image to adopt, which the registry has lost, or names none | Tell, DeleteBuild |
//! | unconfirmed | it has an image to adopt, and the registry doesn't answer, or doesn't show yet what is new | – |
//! | adopt | it has an image that the status doesn't name | SetConfigStatus, Annotate |
//! | prune | other builds ended without an image, or have one that nothing needs and needn't stay | DeleteBuild of each, Tell |
//! | settled | – | – |

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use kube::ResourceExt as _;
use strata_builder::reference::Reference;

use super::observe::Observed;
use super::{new_build, seeded_build};
use crate::api::condition::{self, SEEDED, Statement};
use crate::api::machine_os_config::MachineOSConfigStatus;
use crate::api::{self, GROUP, MachineOSBuild, ObjectReference, annotation, label};
use crate::decoded::Undecodable;
use crate::events::{Notice, Reason};
use crate::inputs::BuildInputs;
use crate::os_build::plan::CONFIRMATION_LIMIT;
use crate::phase::{self, Phase};
use crate::plan::{Plan, Step, Target};
use crate::registries::Answer;
use crate::retention::{Surplus, surplus};
use crate::wanted::Wanted;

/// Whether the newest content is built; ours, since the incumbent's objects don't say.
const READY: &str = "Ready";
/// The reason of [`READY`] when spec or pool must be changed.
const INVALID: &str = "Invalid";

/// A registry that doesn't answer is asked again after this long.
const ASK_AGAIN: Duration = Duration::from_secs(10);

/// An image that was there a moment ago is looked for again after this long.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// Until the next look at a build that may go and is still needed.
const STILL_NEEDED: Duration = Duration::from_secs(600);

/// What a rule decides.
struct Decision<'a> {
    rule: &'static str,
    steps: Vec<Step>,
    /// What the status shall say; none leaves it.
    ready: Option<Ready>,
    /// Told when the status comes to say something else.
    news: Option<Notice>,
    adopt: Option<&'a MachineOSBuild>,
    again: Option<Duration>,
}

struct Ready {
    holds: bool,
    reason: &'static str,
    message: String,
}

impl Decision<'_> {
    fn new(rule: &'static str, steps: Vec<Step>) -> Self {
        Self {
            rule,
            steps,
            ready: None,
            news: None,
            adopt: None,
            again: None,
        }
    }

    fn saying(mut self, reason: &'static str, message: impl Into<String>) -> Self {
        self.ready = Some(Ready {
            holds: false,
            reason,
            message: message.into(),
        });
        self
    }
}

/// The plan for what was observed at `now`.
#[must_use]
pub fn plan(observed: &Observed, now: Timestamp) -> Plan {
    let Decision {
        rule,
        mut steps,
        ready,
        news,
        adopt,
        again,
    } = decide(observed, now);
    let refusal = ready
        .as_ref()
        .filter(|ready| ready.reason == INVALID)
        .map(|ready| Notice::new(Reason::ConfigReconcileFailed, &ready.message));
    if let Some(status) = status(observed, ready, adopt, now) {
        // what is said of a build comes before what makes it unneeded, and after what makes it exist
        let at = if adopt.is_some() { 0 } else { steps.len() };
        steps.insert(at, Step::SetConfigStatus(Box::new(status)));
        steps.extend(refusal.or(news).map(Step::Tell));
    }
    let plan = Plan::new(rule, steps);
    match again {
        Some(delay) => plan.again_after(delay),
        None => plan,
    }
}

/// The plan when the apiserver has refused what [`plan`] would make, or something is in its way.
#[must_use]
pub fn refused(observed: &Observed, why: &str, now: Timestamp) -> Option<Plan> {
    if observed.os_config.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let ready = Ready {
        holds: false,
        reason: "Refused",
        message: why.to_owned(),
    };
    let status = status(observed, Some(ready), None, now)?;
    let notice = Notice::new(Reason::ConfigReconcileFailed, why);
    // first what needs no change of the config, as that may be what is refused
    let steps = vec![Step::Tell(notice), Step::SetConfigStatus(Box::new(status))];
    Some(Plan::new("refused", steps))
}

/// What is told on a MachineOSConfig that can't be decoded. Its status isn't touched if that is what can't.
#[must_use]
pub fn undecodable(one: &Undecodable, now: Timestamp) -> Vec<Step> {
    let told = one.told();
    let notice = Notice::new(Reason::ConfigReconcileFailed, &told);
    let mut steps = vec![Step::Tell(notice)];
    if let Some(mut conditions) = one.conditions.clone() {
        let statement = Statement {
            type_: READY,
            holds: false,
            reason: INVALID.to_owned(),
            message: told,
        };
        if condition::set(&mut conditions, statement, now) {
            // what isn't named stays
            steps.push(Step::SetConfigStatus(Box::new(MachineOSConfigStatus {
                conditions: Some(conditions),
                ..MachineOSConfigStatus::default()
            })));
        }
    }
    steps
}

fn decide(observed: &Observed, now: Timestamp) -> Decision<'_> {
    let Observed {
        os_config,
        wanted,
        os_builds,
        image: _,
        retention: _,
        users: _,
    } = observed;
    let guarded = api::is_guarded(os_config);
    if os_config.metadata.deletion_timestamp.is_some() {
        let left = os_builds.iter().filter(|one| !is_going(one));
        let mut steps: Vec<_> = left
            .map(|one| Step::DeleteBuild(Target::of(one.as_ref())))
            .collect();
        if os_builds.is_empty() && guarded {
            let told = "its builds, and the images that nothing needs, are gone";
            steps.push(Step::Tell(Notice::new(Reason::ConfigDeleted, told)));
            steps.push(Step::RemoveFinalizer);
        }
        return Decision::new("deleting", steps);
    }
    if !guarded {
        return Decision::new("guard", vec![Step::AddFinalizer]);
    }
    let inputs = match wanted {
        Wanted::Invalid { why, name: _ } => return unbuildable(observed, why, now),
        Wanted::Waiting(what) => {
            return Decision::new("waiting", Vec::new()).saying("Waiting", what);
        }
        Wanted::Build(inputs) => inputs,
    };
    let current = observed.current();
    if os_config.annotations().contains_key(annotation::REBUILD)
        && let Some(current) = current
    {
        let steps = if is_going(current) {
            Vec::new()
        } else {
            let told = format!("MachineOSBuild {} is built again", current.name_any());
            vec![
                Step::Tell(Notice::new(Reason::RebuildRequested, told)),
                Step::DeleteBuild(Target::of(current.as_ref())),
            ]
        };
        return Decision::new("rebuild-requested", steps)
            .saying("Building", "a rebuild was asked for");
    }
    let Some(current) = current else {
        return create(observed, inputs);
    };
    if is_going(current) {
        let message = format!("MachineOSBuild {} is being deleted", current.name_any());
        return Decision::new("replaced", Vec::new()).saying("Building", message);
    }
    existing(observed, current, now)
}

/// The wanted build can't be begun. One that was made all the same, by the incumbent, is as good as any.
fn unbuildable<'a>(observed: &'a Observed, why: &str, now: Timestamp) -> Decision<'a> {
    let asks = observed.os_config.annotations();
    let asks_for_rebuild = asks.contains_key(annotation::REBUILD);
    match observed.current() {
        Some(current)
            if Phase::of_build(current) == Phase::Succeeded
                && !is_going(current)
                && !asks_for_rebuild =>
        {
            succeeded(observed, current, now)
        }
        _ => Decision::new("invalid", Vec::new()).saying(INVALID, why),
    }
}

/// The image of the wanted build is lost, as `told`: it is built again, if it can be.
fn lost<'a>(observed: &'a Observed, current: &MachineOSBuild, told: String) -> Decision<'a> {
    if let Wanted::Invalid { why, name: _ } = &observed.wanted {
        return Decision::new("invalid", Vec::new()).saying(INVALID, format!("{told}, but {why}"));
    }
    let told = format!("{told}: it is built again");
    let steps = vec![
        Step::Tell(Notice::new(Reason::ImageLost, told.clone())),
        Step::DeleteBuild(Target::of(current)),
    ];
    Decision::new("image-lost", steps).saying("Building", told)
}

/// The wanted build doesn't exist.
fn create<'a>(observed: &'a Observed, inputs: &BuildInputs) -> Decision<'a> {
    let os_config = &observed.os_config;
    let name = inputs.name.to_string();
    let building = format!("MachineOSBuild {name} is being built");
    if let Some(image) = seed(observed) {
        if image
            .parse::<Reference>()
            .ok()
            .and_then(|image| image.digest)
            .is_none()
        {
            let message = format!(
                "annotation {}: {image:?} is no image with a digest (REPOSITORY@sha256:…)",
                annotation::PRE_BUILT_IMAGE
            );
            return Decision::new("invalid", Vec::new()).saying(INVALID, message);
        }
        let os_build = seeded_build(inputs, os_config, image);
        return Decision::new("seed", vec![Step::CreateBuild(Box::new(os_build))]).saying(
            "Building",
            format!("MachineOSBuild {name} is seeded with {image}"),
        );
    }
    let annotations = os_config.annotations();
    let is_anew = annotations.contains_key(annotation::REBUILD)
        || annotations.contains_key(annotation::BUILD_ANEW);
    let yes = String::new();
    let anew = is_anew.then_some(&yes);
    let mut steps = annotate(
        observed,
        &[
            (annotation::CURRENT_BUILD, Some(&name)),
            (annotation::REBUILD, None),
            (annotation::BUILD_ANEW, anew),
        ],
    );
    let mut os_build = new_build(inputs, os_config);
    if let Some(yes) = anew {
        let annotations = os_build.annotations_mut();
        annotations.insert(annotation::BUILD_ANEW.to_owned(), yes.clone());
    }
    steps.push(Step::CreateBuild(Box::new(os_build)));
    steps.push(Step::Tell(Notice::new(
        Reason::ConfigReconciled,
        format!("MachineOSBuild {name} was created"),
    )));
    Decision::new("create", steps).saying("Building", building)
}

/// The wanted build exists and isn't being deleted.
fn existing<'a>(
    observed: &'a Observed,
    current: &'a Arc<MachineOSBuild>,
    now: Timestamp,
) -> Decision<'a> {
    let name = current.name_any();
    let conditions = current
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_deref())
        .unwrap_or_default();
    let detail = phase::detail(conditions);
    let annotations = observed.os_config.annotations();
    // without that name a config is known to be one that is to be seeded, by the incumbent too
    let is_to_be_seeded = current.labels().contains_key(label::PRE_BUILT_IMAGE)
        && Phase::of(conditions) == Phase::Initial;
    let to_name = match is_to_be_seeded {
        true => annotations.get(annotation::CURRENT_BUILD),
        false => Some(&name),
    };
    let named = || {
        annotate(
            observed,
            &[
                (annotation::CURRENT_BUILD, to_name),
                (annotation::BUILD_ANEW, None),
            ],
        )
    };
    let with_detail = |text: String| match detail {
        Some(detail) => format!("{text}: {detail}"),
        None => text,
    };
    match Phase::of(conditions) {
        Phase::Initial if detail.is_some() => Decision::new("building", named())
            .saying("Waiting", with_detail(format!("MachineOSBuild {name}"))),
        unended @ (Phase::Initial | Phase::Prepared | Phase::Building) => {
            let mut steps = named();
            if unended != Phase::Initial {
                steps.extend(without_image(observed));
            }
            Decision::new("building", steps).saying(
                "Building",
                with_detail(format!("MachineOSBuild {name} is being built")),
            )
        }
        Phase::Failed | Phase::Interrupted if is_to_restart(observed) => {
            let mut steps = Vec::new();
            if let Some(anew) = current.annotations().get(annotation::BUILD_ANEW) {
                steps = annotate(observed, &[(annotation::BUILD_ANEW, Some(anew))]);
            }
            steps.push(Step::DeleteBuild(Target::of(current.as_ref())));
            Decision::new("restart", steps).saying(
                "Building",
                format!("MachineOSBuild {name} ended without an image and is built again"),
            )
        }
        ended @ (Phase::Failed | Phase::Interrupted) => {
            let (reason, what) = match ended {
                Phase::Interrupted => ("BuildInterrupted", "was interrupted"),
                _ => ("BuildFailed", "failed"),
            };
            let mut steps = named();
            steps.extend(without_image(observed));
            let mut decision = Decision::new("failed", steps);
            if ended == Phase::Failed {
                let told = format!("MachineOSBuild {name} failed, and its conditions say why");
                decision.news = Some(Notice::new(Reason::BuildDegraded, told));
            }
            decision.saying(reason, with_detail(format!("MachineOSBuild {name} {what}")))
        }
        Phase::Succeeded => succeeded(observed, current, now),
    }
}

fn succeeded<'a>(
    observed: &'a Observed,
    current: &'a Arc<MachineOSBuild>,
    now: Timestamp,
) -> Decision<'a> {
    let name = current.name_any();
    let status = current.status.as_ref();
    if status.is_none_or(|status| status.digested_image_push_spec.is_none()) {
        let told = format!("MachineOSBuild {name} succeeded without naming its image");
        return lost(observed, current, told);
    }
    if observed.image == Answer::Absent && is_new(current, now) {
        let mut decision = Decision::new("unconfirmed", Vec::new()).saying(
            "Waiting",
            format!("MachineOSBuild {name} succeeded, but its registry doesn't show the image yet"),
        );
        decision.again = Some(LOOK_AGAIN);
        return decision;
    }
    if observed.image == Answer::Absent {
        let told = format!("the registry no longer has the image of MachineOSBuild {name}");
        return lost(observed, current, told);
    }
    if to_adopt(observed).is_some() {
        match &observed.image {
            Answer::Unknown(why) => {
                let mut decision = Decision::new("unconfirmed", Vec::new()).saying(
                    "Waiting",
                    format!("MachineOSBuild {name} succeeded, but its registry can't be asked for the image: {why}"),
                );
                decision.again = Some(ASK_AGAIN);
                return decision;
            }
            // a registry that doesn't let us look was pushed to all the same
            Answer::NotAsked
            | Answer::Absent
            | Answer::Present { .. }
            | Answer::NoAccess(_)
            | Answer::Refused(_) => {}
        }
        let mut decision = Decision::new("adopt", tidy(observed, current));
        let mut others = observed.os_builds.iter();
        if others.any(|one| Phase::of_build(one) == Phase::Failed) {
            let told = format!("MachineOSBuild {name} succeeded after a failed one");
            decision.news = Some(Notice::new(Reason::BuildRecovered, told));
        }
        decision.adopt = Some(current);
        decision.ready = Some(ready(current));
        return decision;
    }
    let mut steps = tidy(observed, current);
    let mut rest: Vec<_> = without_image(observed).collect();
    let again = let_go(observed, now, &mut rest);
    let rule = if rest.is_empty() { "settled" } else { "prune" };
    steps.extend(rest);
    let mut decision = Decision::new(rule, steps);
    let mut ready = ready(current);
    if let Err(wrong) = &observed.retention {
        ready.message = format!("{}; all its builds stay, as {wrong}", ready.message);
    }
    decision.ready = Some(ready);
    decision.again = again;
    decision
}

/// Whether a build has succeeded so short a time ago that one of its registry's servers may not know yet of its image.
fn is_new(os_build: &MachineOSBuild, now: Timestamp) -> bool {
    let status = os_build.status.as_ref();
    let conditions = status.and_then(|status| status.conditions.as_deref());
    // a build that took another's image has no other time
    let succeeded = condition::get(conditions.unwrap_or_default(), Phase::Succeeded.as_str());
    succeeded.is_some_and(|succeeded| {
        now.duration_since(succeeded.last_transition_time.0) < CONFIRMATION_LIMIT
    })
}

/// Whether something is to be let go, unless something needs it.
#[must_use]
pub fn has_surplus(observed: &Observed, now: Timestamp) -> bool {
    let current = observed.current();
    let has_ended = current.is_some_and(|one| Phase::of_build(one) == Phase::Succeeded);
    has_ended && !surplus_of(observed, now).os_builds.is_empty()
}

fn surplus_of(observed: &Observed, now: Timestamp) -> Surplus {
    let Observed {
        os_config,
        wanted,
        os_builds,
        image: _,
        retention,
        users: _,
    } = observed;
    match (retention, wanted.name()) {
        (Ok(retention), Some(wanted)) => surplus(*retention, os_config, os_builds, wanted, now),
        _ => Surplus::default(),
    }
}

/// Deletes the builds that needn't stay and whose image nothing needs; when to look again for others.
fn let_go(observed: &Observed, now: Timestamp, steps: &mut Vec<Step>) -> Option<Duration> {
    let Surplus { os_builds, next } = surplus_of(observed, now);
    let mut again = next.and_then(|next| Duration::try_from(next.duration_since(now)).ok());
    for one in os_builds {
        let status = one.status.as_ref();
        let image = status.and_then(|status| status.digested_image_push_spec.as_deref());
        let image = image.and_then(|image| image.parse::<Reference>().ok());
        let digest = image.and_then(|image| image.digest);
        let is_unused = observed
            .users
            .as_ref()
            .is_some_and(|users| digest.is_none_or(|digest| users.beside_builds(digest).is_none()));
        if is_unused {
            let name = one.name_any();
            let bounds = observed.retention.as_ref().copied().unwrap_or_default();
            let told = format!("MachineOSBuild {name} goes with its image, as {bounds}");
            steps.push(Step::DeleteBuild(Target::of(one.as_ref())));
            steps.push(Step::Tell(Notice::new(Reason::BuildPruned, told)));
        } else {
            // no watch of nodes looks at configs
            again = Some(again.map_or(STILL_NEEDED, |again| again.min(STILL_NEEDED)));
        }
    }
    again
}

/// The annotations of a config whose image is told in its status.
fn tidy(observed: &Observed, current: &MachineOSBuild) -> Vec<Step> {
    annotate(
        observed,
        &[
            (annotation::CURRENT_BUILD, Some(&current.name_any())),
            (annotation::PRE_BUILT_IMAGE, None),
            (annotation::BUILD_ANEW, None),
        ],
    )
}

fn ready(current: &MachineOSBuild) -> Ready {
    Ready {
        holds: true,
        reason: "ImageReady",
        message: format!(
            "MachineOSBuild {} has built what is asked for",
            current.name_any()
        ),
    }
}

/// The wanted build, if it has an image that the status doesn't name for this generation.
#[must_use]
pub fn to_adopt(observed: &Observed) -> Option<&MachineOSBuild> {
    let current = observed.current().filter(|current| !is_going(current))?;
    let status = current.status.as_ref()?;
    let image = status.digested_image_push_spec.as_ref()?;
    if Phase::of_build(current) != Phase::Succeeded {
        return None;
    }
    let told = observed.os_config.status.as_ref();
    let adopted = told.is_some_and(|told| {
        told.current_image_pull_spec.as_ref() == Some(image)
            && told.observed_generation == observed.os_config.metadata.generation
            && told
                .machine_os_build
                .as_ref()
                .map(|build| build.name.as_str())
                == Some(current.name_any().as_str())
    });
    (!adopted).then_some(current)
}

/// Whether the wanted build ended without an image before another was wanted: the config has gone back to it, and it is tried again.
#[must_use]
pub fn is_to_restart(observed: &Observed) -> bool {
    let Some(current) = observed.current().filter(|current| !is_going(current)) else {
        return false;
    };
    let named = observed
        .os_config
        .annotations()
        .get(annotation::CURRENT_BUILD);
    let is_superseded = current
        .annotations()
        .contains_key(annotation::SUPERSEDED_BY);
    // whatever is wanted is named before it is made, and whoever finds it named wrongly takes the name away
    let was_left = named.is_some_and(|named| *named != current.name_any());
    match Phase::of_build(current) {
        Phase::Interrupted => is_superseded || was_left,
        Phase::Failed => was_left,
        Phase::Initial | Phase::Prepared | Phase::Building | Phase::Succeeded => false,
    }
}

/// Deletion of the builds that ended without an image and aren't wanted. Kept until their successor has begun, as the incumbent does, so that what became
/// of them can be seen.
fn without_image(observed: &Observed) -> impl Iterator<Item = Step> {
    let wanted = observed.wanted.name().unwrap_or_default();
    observed.os_builds.iter().filter_map(move |os_build| {
        let ended = matches!(
            Phase::of_build(os_build),
            Phase::Failed | Phase::Interrupted
        );
        (ended && !is_going(os_build) && os_build.name_any() != wanted)
            .then(|| Step::DeleteBuild(Target::of(os_build.as_ref())))
    })
}

/// The image to start with, as long as nothing was built and nobody asks for a build.
fn seed(observed: &Observed) -> Option<&str> {
    let annotations = observed.os_config.annotations();
    let image = annotations.get(annotation::PRE_BUILT_IMAGE)?;
    let status = observed.os_config.status.as_ref();
    let fresh = !annotations.contains_key(annotation::CURRENT_BUILD)
        && !annotations.contains_key(annotation::REBUILD)
        && status.is_none_or(|status| status.current_image_pull_spec.is_none());
    (fresh && !image.is_empty()).then_some(image)
}

/// A step that makes the annotations so, unless they are.
fn annotate(observed: &Observed, wanted: &[(&'static str, Option<&String>)]) -> Vec<Step> {
    let there = observed.os_config.annotations();
    let changes: Vec<_> = wanted
        .iter()
        .filter(|(key, value)| there.get(*key) != *value)
        .map(|(key, value)| (*key, value.cloned()))
        .collect();
    if changes.is_empty() {
        Vec::new()
    } else {
        vec![Step::Annotate(changes)]
    }
}

/// The whole status, if it is to say something else.
fn status(
    observed: &Observed,
    ready: Option<Ready>,
    adopt: Option<&MachineOSBuild>,
    now: Timestamp,
) -> Option<MachineOSConfigStatus> {
    let before = observed.os_config.status.clone().unwrap_or_default();
    let mut status = before.clone();
    if let Some(Ready {
        holds,
        reason,
        message,
    }) = ready
    {
        let statement = Statement {
            type_: READY,
            holds,
            reason: reason.to_owned(),
            message,
        };
        condition::set(status.conditions.get_or_insert_default(), statement, now);
    }
    if let Some(os_build) = adopt {
        let image = os_build
            .status
            .as_ref()
            .and_then(|status| status.digested_image_push_spec.clone());
        if os_build.labels().contains_key(label::PRE_BUILT_IMAGE)
            && let Some(image) = &image
        {
            let statement = Statement {
                type_: SEEDED,
                holds: true,
                reason: "PreBuiltImageSeeded".to_owned(),
                message: format!("MachineOSConfig seeded with pre-built image \"{image}\""),
            };
            condition::set(status.conditions.get_or_insert_default(), statement, now);
        }
        status.current_image_pull_spec = image;
        // it must not move backwards
        status.observed_generation = observed
            .os_config
            .metadata
            .generation
            .max(before.observed_generation);
        status.machine_os_build = Some(ObjectReference {
            group: GROUP.to_owned(),
            resource: "machineosbuilds".to_owned(),
            namespace: None,
            name: os_build.name_any(),
        });
    }
    (status != before).then_some(status)
}

fn is_going(os_build: &MachineOSBuild) -> bool {
    os_build.metadata.deletion_timestamp.is_some()
}

#[cfg(test)]
mod tests;
