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
    if let JobState::Present(job) = &observed.job {
        let steps = if job.is_going {
            Vec::new()
        } else {
            vec![Step::DeleteJob(job.target.clone())]
        };
        return Plan::new("deleting-job", steps);
    }
    if !api::is_guarded(os_build) {
        // the rest is the garbage collector's
        return Plan::new("deleting-done", Vec::new());
    }
    let refused = |why: &str| {
        let told = format!(
            "the image of MachineOSBuild {} ({}) stays in the registry: {why}",
            os_build.name_any(),
            image_name(os_build),
        );
        // the right may come back
        let digest = recorded(os_build).and_then(|image| image.digest);
        let entry = digest.and_then(|digest| entry(os_build, digest, now));
        let mut steps = Vec::from_iter(entry.map(Step::Remember));
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
        Answer::Unknown(why) if since >= OUTAGE_LIMIT => {
            let digest = recorded(os_build).and_then(|image| image.digest);
            match digest.and_then(|digest| entry(os_build, digest, now)) {
                Some(entry) => Plan::new(
                    "deleting-retain",
                    vec![Step::Remember(entry), Step::RemoveFinalizer],
                ),
                None => refused(why),
            }
        }
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

/// Deletes what is left of an image that was there once.
fn rest(os_build: &MachineOSBuild, now: Timestamp, since: SignedDuration) -> Option<Step> {
    let image = recorded(os_build).filter(|_| since < OUTAGE_LIMIT)?;
    let entry = entry(os_build, image.digest?, now)?;
    Some(delete(image, entry))
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

fn entry(os_build: &MachineOSBuild, digest: Digest, now: Timestamp) -> Option<Entry> {
    let push: Reference = os_build.spec.rendered_image_push_spec.parse().ok()?;
    Some(Entry {
        image: push.repository.digested(digest).to_string(),
        tag: push.tag,
        push_secret: os_build.annotations().get(annotation::PUSH_SECRET)?.clone(),
        os_build: os_build.name_any(),
        since: condition::whole_second(now),
        keep: false,
        orphan_of: None,
    })
}
