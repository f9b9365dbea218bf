//! What is to be done before a deleted MachineOSBuild may go? Its Job first, then its image, then the finalizer.
//!
//! A registry that can't or won't delete never holds the object for ever: it is told, and the rest goes on.

use jiff::{SignedDuration, Timestamp};
use kube::ResourceExt as _;
use strata_builder::contract::steps_tag;
use strata_builder::digest::Digest;
use strata_builder::reference::Reference;

use super::{ASK_AGAIN, image_name, pushed, recorded};
use crate::api::{self, MachineOSBuild, annotation, condition};
use crate::events::{Notice, Reason};
use crate::ledger::{Entry, LEDGER_NAME};
use crate::os_build::observe::{JobState, Observed};
use crate::phase::Phase;
use crate::plan::{ImageDeletion, Plan, Step};
use crate::registries::Answer;
use crate::usage::is_to_be_kept;

/// Whoever removes a config removes its secrets too, in any order: this long a credential may still come back.
const CREDENTIAL_LIMIT: SignedDuration = SignedDuration::from_secs(30);

/// A registry that is away, or fails to delete, this long isn't waited for with the object; the ledger goes on.
const OUTAGE_LIMIT: SignedDuration = SignedDuration::from_secs(300);

/// The plan of a build that was deleted `since` ago.
pub(super) fn deleting(observed: &Observed, now: Timestamp, since: SignedDuration) -> Plan {
    let os_build = &observed.os_build;
    // the incumbent's, which nobody can guard any more: it may be gone by the next look
    let is_guarded = api::is_guarded(os_build);
    let mut steps = Vec::new();
    if !is_guarded {
        steps.extend(unguarded(observed, now).map(Step::Remember));
    }
    if let JobState::Present(job) = &observed.job {
        if !job.is_going {
            steps.push(Step::DeleteJob(job.target.clone()));
        }
        return Plan::new("deleting-job", steps);
    }
    if !is_guarded {
        // the rest is the garbage collector's
        return Plan::new("deleting-done", steps);
    }
    if observed.is_pushing {
        return Plan::new("deleting-pod", Vec::new()).again_after(ASK_AGAIN);
    }
    let refused = |why: &str| {
        let secret = os_build.annotations().get(annotation::PUSH_SECRET);
        let remedy = secret.map_or_else(String::new, |secret| {
            format!(
                "; let the credentials in secret {secret} read and delete it, or delete it by hand"
            )
        });
        let told = format!(
            "the image of MachineOSBuild {} ({}) stays in the registry for now: {why}{remedy}",
            os_build.name_any(),
            image_name(os_build),
        );
        // the right may come back
        let mut steps = Vec::from_iter(entry_of_last(os_build, now).map(Step::Remember));
        steps.extend([
            Step::Tell(Notice::new(Reason::ImageNotDeleted, told)),
            Step::RemoveFinalizer,
        ]);
        Plan::new("deleting-refused", steps)
    };
    if is_to_be_kept(os_build)
        && let Some(entry) = entry_to_keep(observed, now)
    {
        let told = format!(
            "{} stays in the registry, as annotation {} asks; to let it go, take its entry out of ConfigMap {LEDGER_NAME}",
            entry.image,
            annotation::KEEP_IMAGE,
        );
        let steps = vec![
            Step::Remember(entry),
            Step::Tell(Notice::new(Reason::ImageRetained, told)),
            Step::RemoveFinalizer,
        ];
        return Plan::new("deleting-kept", steps);
    }
    match &observed.image {
        Answer::NotAsked => Plan::new("deleting-done", vec![Step::RemoveFinalizer]),
        Answer::Absent => {
            // what refers to it may have been left by a pass that was cut off
            let mut steps = Vec::from_iter(rest(os_build, now, since));
            steps.extend(note(os_build, since));
            steps.push(Step::RemoveFinalizer);
            Plan::new("deleting-done", steps)
        }
        Answer::Present { digest, .. } => present(observed, *digest, now, since),
        Answer::Refused(why) => refused(why),
        Answer::NoAccess(why) if since >= CREDENTIAL_LIMIT => refused(why),
        Answer::Unknown(why) if since >= OUTAGE_LIMIT => match entry_of_last(os_build, now) {
            Some(entry) => Plan::new(
                "deleting-retain",
                vec![Step::Remember(entry), Step::RemoveFinalizer],
            ),
            None => refused(why),
        },
        Answer::NoAccess(_) | Answer::Unknown(_) => {
            Plan::new("deleting-waiting", Vec::new()).again_after(ASK_AGAIN)
        }
    }
}

/// The registry has the image of a build that is being deleted.
fn present(observed: &Observed, digest: Digest, now: Timestamp, since: SignedDuration) -> Plan {
    let os_build = &observed.os_build;
    let image = pushed(os_build, digest);
    let entry = entry(os_build, digest, now);
    match (&observed.used, image, entry) {
        (Some(used), _, Some(entry)) => {
            let told = format!(
                "{} stays in the registry until nothing needs it: {used}",
                entry.image
            );
            Plan::new(
                "deleting-retain",
                vec![
                    Step::Remember(entry),
                    Step::Tell(Notice::new(Reason::ImageRetained, told)),
                    Step::RemoveFinalizer,
                ],
            )
        }
        (None, _, Some(entry)) if since >= OUTAGE_LIMIT => Plan::new(
            "deleting-retain",
            vec![Step::Remember(entry), Step::RemoveFinalizer],
        ),
        (None, Some(image), Some(entry)) => {
            let mut steps = vec![delete(image, entry)];
            steps.extend(note(os_build, since));
            steps.push(Step::RemoveFinalizer);
            Plan::new("deleting-image", steps)
        }
        // a push spec that is none was never pushed to
        (_, None, _) | (_, _, None) => Plan::new("deleting-done", vec![Step::RemoveFinalizer]),
    }
}

fn delete(image: Reference, entry: Entry) -> Step {
    Step::DeleteImage(Box::new(ImageDeletion {
        image,
        tag: entry.tag,
        push_secret: entry.push_secret,
    }))
}

/// Deletes what is left of an image that was there once; from the ledger, if its registry fails for long.
fn rest(os_build: &MachineOSBuild, now: Timestamp, since: SignedDuration) -> Option<Step> {
    let image = recorded(os_build)?;
    let entry = entry(os_build, image.digest?, now)?;
    Some(match since < OUTAGE_LIMIT {
        true => delete(image, entry),
        false => Step::Remember(entry),
    })
}

/// Deletes what a build that was stopped may have noted of its steps; one that has succeeded did so itself.
fn note(os_build: &MachineOSBuild, since: SignedDuration) -> Option<Step> {
    if Phase::of_build(os_build) == Phase::Succeeded || since >= OUTAGE_LIMIT {
        return None;
    }
    let push: Reference = os_build.spec.rendered_image_push_spec.parse().ok()?;
    let tag = steps_tag(push.tag.as_deref()?)?;
    Some(Step::DeleteImage(Box::new(ImageDeletion {
        image: push.repository.tagged(&tag),
        tag: None,
        push_secret: os_build.annotations().get(annotation::PUSH_SECRET)?.clone(),
    })))
}

/// Of an image that is to stay, unless there is none.
fn entry_to_keep(observed: &Observed, now: Timestamp) -> Option<Entry> {
    let os_build = &observed.os_build;
    let digest = match &observed.image {
        Answer::Present { digest, .. } => *digest,
        Answer::NotAsked | Answer::Absent => return None,
        Answer::NoAccess(_) | Answer::Refused(_) | Answer::Unknown(_) => {
            recorded(os_build)?.digest?
        }
    };
    let entry = entry(os_build, digest, now)?;
    Some(Entry {
        keep: true,
        ..entry
    })
}

/// Of the image of a build of the incumbent that a config controls. One that we have begun had our finalizer, and if that was handed back, its image says
/// whose it is, so that it is found.
fn unguarded(observed: &Observed, now: Timestamp) -> Option<Entry> {
    let os_build = &observed.os_build;
    let is_begun_here = os_build.annotations().contains_key(annotation::CONTENT_KEY);
    if !observed.is_controlled || observed.has_given_image || is_begun_here {
        return None;
    }
    let entry = entry(os_build, recorded(os_build)?.digest?, now)?;
    Some(Entry {
        keep: is_to_be_kept(os_build),
        ..entry
    })
}

/// Of the image that was recorded, or of one that may have been pushed unseen.
fn entry_of_last(os_build: &MachineOSBuild, now: Timestamp) -> Option<Entry> {
    if let Some(digest) = recorded(os_build).and_then(|image| image.digest) {
        return entry(os_build, digest, now);
    }
    let push: Reference = os_build.spec.rendered_image_push_spec.parse().ok()?;
    let annotations = os_build.annotations();
    let begun = [annotation::CONTENT_KEY, annotation::JOB_UID];
    if !begun.iter().any(|key| annotations.contains_key(*key)) {
        return None;
    }
    Some(Entry {
        unseen_of: Some(os_build.metadata.uid.clone()?),
        ..entry_for(os_build, &push, now)?
    })
}

fn entry(os_build: &MachineOSBuild, digest: Digest, now: Timestamp) -> Option<Entry> {
    entry_for(os_build, &pushed(os_build, digest)?, now)
}

fn entry_for(os_build: &MachineOSBuild, image: &Reference, now: Timestamp) -> Option<Entry> {
    let push: Reference = os_build.spec.rendered_image_push_spec.parse().ok()?;
    let annotated = |key| os_build.annotations().get(key).cloned();
    Some(Entry {
        image: image.to_string(),
        tag: push.tag,
        push_secret: annotated(annotation::PUSH_SECRET)?,
        os_build: os_build.name_any(),
        since: condition::whole_second(now),
        keep: false,
        orphan_of: None,
        unseen_of: None,
        content_key: annotated(annotation::CONTENT_KEY),
        refused_since: None,
    })
}
