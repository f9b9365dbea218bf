//! Deletes the images of the ledger that nothing needs any more.
//!
//! | the registry | the entry |
//! | --- | --- |
//! | deleted the image, or has none | goes |
//! | fails, or can't be reached | is tried again, from 30 seconds later to an hour later |
//! | refuses, or there are no credentials | is tried again, from a minute later to six hours later, until it has refused for 30 days |
//!
//! A deletion uses the credentials that the image was pushed with; if these are refused or gone, those of the other configs that push
//! to the same repository, then to the same registry. An image that was found without its build waits a day, and stays if that build is there by then.
//! What keeps an image that nothing needs is told once, in an event on the ledger, with the remedy.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::ObjectReference;
use strata_builder::digest::Digest;
use strata_builder::error::{Class, Classify as _, chain};
use strata_builder::reference::Reference;
use strata_builder::registry::{Registry, RegistryError};
use tracing::{info, warn};

use super::{Entry, LEDGER_NAME, Removing};
use crate::api::condition;
use crate::apply::image::{Doomed, Removal, remedy, remove, restore};
use crate::context::Context;
use crate::error::Error;
use crate::events::{Notice, Reason};
use crate::live::Needs as _;
use crate::metrics::Deletion;
use crate::sweep::{GRACE, Origin};
use crate::usage::{Use, Users};

/// Who refuses for so long won't change.
const LONGEST_REFUSAL: SignedDuration = SignedDuration::from_hours(30 * 24);
/// What was entered later than this from now was entered by a clock that was ahead.
const LARGEST_SKEW: SignedDuration = SignedDuration::from_mins(5);

/// Failures by the entry's key; goes with the process.
#[derive(Debug, Default)]
pub struct Failures(BTreeMap<String, Failure>);

/// Of an image that nothing needs.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Failure {
    /// In a row.
    count: u32,
    /// When it is tried again; no clock that jumps moves it.
    again: Instant,
    why: String,
}

impl Failures {
    fn is_due(&self, key: &str, now: Instant) -> bool {
        self.0.get(key).is_none_or(|failure| failure.again <= now)
    }

    /// Counts a failure; whether it is to be told.
    fn failed(&mut self, key: String, class: Class, why: String, now: Instant) -> bool {
        let before = self.0.get(&key);
        let count = before.map_or(0, |before| before.count) + 1;
        let is_news = before.is_none_or(|before| before.why != why);
        let again = now + wait(class, count);
        self.0.insert(key, Failure { count, again, why });
        is_news
    }

    /// Keeps only those of images that are in the ledger and that nothing needs: nothing else is tried again.
    fn forget_needed(&mut self, known: &Users) {
        self.0.retain(|key, _| {
            let mut entries = known.entries.iter();
            entries.any(|entry| entry.key() == *key && !entry.keep && !is_needed(known, entry))
        });
    }

    /// How long until the next entry is tried again.
    fn wait(&self, now: Instant) -> Option<Duration> {
        let next = self.0.values().map(|failure| failure.again).min()?;
        Some(next.saturating_duration_since(now))
    }
}

/// Before the next try, after so many failures in a row, from 1.
fn wait(class: Class, count: u32) -> Duration {
    let (first, longest) = match class {
        Class::Transient => (Duration::from_secs(30), Duration::from_secs(3600)),
        Class::User(_) | Class::Permanent(_) => {
            (Duration::from_secs(60), Duration::from_secs(6 * 3600))
        }
    };
    let doublings = count.saturating_sub(1).min(16);
    first.saturating_mul(1 << doublings).min(longest)
}

/// Deletes every image of the ledger that nothing needs any more and that is due; how long until the next is, without any change in the cluster.
///
/// # Errors
///
/// Of the apiserver; what a registry says is told and tried again.
pub async fn drain(context: &Context, failures: &mut Failures) -> Result<Option<Duration>, Error> {
    let contents = context.ledger.contents().await?;
    let mut is_finished = true;
    for removing in &contents.cut_off {
        is_finished &= finish(context, removing).await?;
    }
    let known = Users::known(&context.cache, contents.entries);
    failures.forget_needed(&known);
    if !may_be_due(&known, failures) {
        let left = known.entries.iter().filter(|entry| !entry.keep);
        let oldest = left.clone().map(|entry| entry.since).min();
        context
            .metrics
            .ledger(left.count(), oldest, failures.0.len());
        return Ok(next_look(failures, is_finished));
    }
    let users = context.users().await?;
    let entries: Vec<&Entry> = users.entries.iter().filter(|entry| !entry.keep).collect();
    let count = entries.len();
    let oldest = entries.iter().map(|entry| entry.since).min();
    for entry in entries {
        let now = Timestamp::now();
        let key = entry.key();
        let Ok(image) = entry.image.parse::<Reference>() else {
            context.ledger.forget(entry).await?;
            continue;
        };
        if entry.since.duration_since(now) > LARGEST_SKEW {
            let since = condition::whole_second(now);
            let entry = Entry {
                since,
                ..entry.clone()
            };
            context.ledger.change(&entry).await?;
            continue;
        }
        let is_used = image
            .digest
            .is_some_and(|digest| users.of(digest, None).is_some());
        if is_used {
            failures.0.remove(&key);
            if entry.refused_since.is_some() {
                let refused_since = None;
                let entry = Entry {
                    refused_since,
                    ..entry.clone()
                };
                context.ledger.change(&entry).await?;
            }
            continue;
        }
        // its own deletion goes on
        if let Some(uid) = &entry.unseen_of
            && users.has_build(uid)
        {
            continue;
        }
        if let Some(uid) = &entry.orphan_of {
            if users.has_build(uid) {
                info!(
                    image = entry.image,
                    os_build = entry.os_build,
                    "the build is back"
                );
                context.ledger.forget(entry).await?;
                continue;
            }
            if now.duration_since(entry.since) < GRACE {
                continue;
            }
        }
        if !failures.is_due(&key, Instant::now()) {
            continue;
        }
        let (class, why) = match delete(context, entry, &image).await? {
            Drained::Gone => {
                context.metrics.image_deletion(Deletion::Deleted);
                context.ledger.forget(entry).await?;
                failures.0.remove(&key);
                info!(
                    image = entry.image,
                    os_build = entry.os_build,
                    "deleted an image that nothing needs any more"
                );
                continue;
            }
            Drained::InUse => {
                failures.0.remove(&key);
                continue;
            }
            Drained::Failed(class, why) => (class, why),
        };
        let refused_since = match class {
            Class::Transient => None,
            Class::User(_) | Class::Permanent(_) => Some(
                entry
                    .refused_since
                    .unwrap_or_else(|| condition::whole_second(now)),
            ),
        };
        let is_hopeless =
            refused_since.is_some_and(|since| now.duration_since(since) > LONGEST_REFUSAL);
        if refused_since != entry.refused_since && !is_hopeless {
            let entry = Entry {
                refused_since,
                ..entry.clone()
            };
            context.ledger.change(&entry).await?;
        }
        context.metrics.image_deletion(match is_hopeless {
            true => Deletion::Refused,
            false => Deletion::Failed,
        });
        if failures.failed(key, class, why.clone(), Instant::now()) || is_hopeless {
            tell(context, entry, is_hopeless, &why).await;
        }
        if is_hopeless {
            context.give_up(&entry.image);
            context.ledger.forget(entry).await?;
            failures.0.remove(&entry.key());
        }
    }
    context.metrics.ledger(count, oldest, failures.0.len());
    Ok(next_look(failures, is_finished))
}

/// How long until something is tried again.
fn next_look(failures: &Failures, is_finished: bool) -> Option<Duration> {
    let unfinished = (!is_finished).then(|| wait(Class::Transient, 1));
    let failed = failures.wait(Instant::now());
    failed.into_iter().chain(unfinished).min()
}

/// Does what is left of a deletion that was cut off; whether that could be done.
async fn finish(context: &Context, removing: &Removing) -> Result<bool, Error> {
    let failed = match context.registries.open(&removing.push_secret).await {
        Ok(registry) => match restore(context, &registry, removing).await {
            Ok(()) => return Ok(true),
            Err(error @ Error::Registry { .. }) => chain(&error),
            Err(error) => return Err(error),
        },
        Err(error) => chain(&error),
    };
    warn!(
        image = removing.image,
        error = failed,
        "whether an image was taken while it was deleted can't be told yet"
    );
    Ok(false)
}

/// Whether, by what the watches told, an image may be deleted now: only then the whole cluster is read.
fn may_be_due(known: &Users, failures: &Failures) -> bool {
    let now = Timestamp::now();
    known
        .entries
        .iter()
        .filter(|entry| !entry.keep)
        .any(|entry| {
            let waits = entry.orphan_of.as_ref().is_some_and(|uid| {
                !known.has_build(uid) && now.duration_since(entry.since) < GRACE
            });
            let goes_on = entry
                .unseen_of
                .as_ref()
                .is_some_and(|uid| known.has_build(uid));
            !is_needed(known, entry)
                && !waits
                && !goes_on
                && failures.is_due(&entry.key(), Instant::now())
        })
}

fn is_needed(users: &Users, entry: &Entry) -> bool {
    let image = entry.image.parse::<Reference>().ok();
    let digest = image.and_then(|image| image.digest);
    digest.is_some_and(|digest| users.of(digest, None).is_some())
}

async fn tell(context: &Context, entry: &Entry, is_hopeless: bool, why: &str) {
    let stays = match is_hopeless {
        true => "stays in the registry",
        false => "can't be deleted for now",
    };
    let told = format!(
        "{}, which nothing needs any more, {stays}: {why}",
        entry.image
    );
    warn!(
        image = entry.image,
        os_build = entry.os_build,
        error = why,
        is_hopeless,
        "an image that nothing needs is not deleted"
    );
    let about = ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("ConfigMap".to_owned()),
        name: Some(LEDGER_NAME.to_owned()),
        namespace: Some(context.namespace.clone()),
        ..ObjectReference::default()
    };
    let notice = Notice::new(Reason::ImageNotDeleted, told);
    context.recorder.publish(&about, &notice).await;
}

enum Drained {
    Gone,
    InUse,
    Failed(Class, String),
}

async fn delete(context: &Context, entry: &Entry, image: &Reference) -> Result<Drained, Error> {
    let mut refusal = None;
    for push_secret in credentials(context, entry, image) {
        let done = delete_with(context, entry, image, &push_secret).await?;
        match done {
            // the image's own credentials are what its administrator knows
            Drained::Failed(Class::User(_), _) => refusal = refusal.or(Some(done)),
            done => return Ok(done),
        }
    }
    Ok(refusal.unwrap_or(Drained::Gone))
}

async fn delete_with(
    context: &Context,
    entry: &Entry,
    image: &Reference,
    push_secret: &str,
) -> Result<Drained, Error> {
    let registry = match context.registries.open(push_secret).await {
        Ok(registry) => registry,
        Err(error) => return Ok(Drained::Failed(error.class(), chain(&error))),
    };
    let digest = match image.digest {
        Some(digest) => digest,
        None => match unseen(&registry, entry, image).await {
            Ok(Some(digest)) => digest,
            Ok(None) => return Ok(Drained::Gone),
            Err(error) => return Ok(Drained::Failed(error.class(), chain(&error))),
        },
    };
    let doomed = Doomed {
        repository: &image.repository,
        digest,
        tag: entry.tag.as_deref(),
        push_secret,
        asking: None,
    };
    match remove(context, &registry, &doomed).await {
        Ok(Removal::Gone { .. }) => Ok(Drained::Gone),
        Ok(Removal::InUse(Use::Unknown(why))) => Ok(Drained::Failed(Class::Transient, why)),
        Ok(Removal::InUse(_)) => Ok(Drained::InUse),
        Ok(Removal::Refused(error)) => {
            let why = format!("{}; {}", chain(&error), remedy(&error, push_secret));
            Ok(Drained::Failed(error.class(), why))
        }
        Err(error @ Error::Registry { .. }) => Ok(Drained::Failed(error.class(), chain(&error))),
        Err(error) => Err(error),
    }
}

/// What the build of `entry` has pushed under its tag, if it has.
async fn unseen(
    registry: &Registry,
    entry: &Entry,
    image: &Reference,
) -> Result<Option<Digest>, RegistryError> {
    let found = registry.stored_manifest(image).await?;
    Ok(found.and_then(|manifest| {
        let origin = Origin::of(&manifest.bytes)?;
        (Some(&origin.build_uid) == entry.unseen_of.as_ref()).then_some(manifest.digest)
    }))
}

/// Names of the Secrets to try, each once: the one that it was pushed with, those of configs that push to the same repository, to the same
/// registry.
fn credentials(context: &Context, entry: &Entry, image: &Reference) -> Vec<String> {
    let os_configs = context.cache.os_configs.store.state();
    let pushes = os_configs.iter().filter_map(|one| {
        let push: Reference = one.spec.rendered_image_push_spec.parse().ok()?;
        Some((push.repository, &one.spec.rendered_image_push_secret.name))
    });
    let pushes: Vec<_> = pushes.collect();
    let same = pushes.iter().filter(|(at, _)| *at == image.repository);
    let near = pushes
        .iter()
        .filter(|(at, _)| at.host() == image.repository.host());
    let others = same.chain(near).map(|(_, secret)| *secret);
    let mut found = Vec::new();
    for secret in std::iter::once(&entry.push_secret).chain(others) {
        if !found.contains(secret) {
            found.push(secret.clone());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_pass_is_tried_sooner_than_what_somebody_must_change() {
        for (class, count, seconds) in [
            (Class::Transient, 1, 30),
            (Class::Transient, 2, 60),
            (Class::Transient, 8, 3_600),
            (Class::Transient, u32::MAX, 3_600),
            (Class::RIGHTS, 1, 60),
            (Class::RIGHTS, 3, 240),
            (Class::CONTENT, u32::MAX, 21_600),
        ] {
            let wanted = Duration::from_secs(seconds);
            assert_eq!(wait(class, count), wanted, "{class:?} {count}");
        }
    }

    #[test]
    fn what_is_needed_again_or_no_longer_in_the_ledger_is_not_waited_for() {
        let now = Instant::now();
        let image = "registry.example.com/a/b@sha256:220a60ecd4a3c32c282622a625a54db9ba0ff55b5ba9c29c7064a2bc358b6a3e";
        let entry = crate::fixtures::entry(image);
        let failed = || {
            let mut failures = Failures::default();
            failures.failed(entry.key(), Class::Transient, "503".to_owned(), now);
            failures
        };
        let unneeded = Users {
            entries: vec![entry.clone()],
            ..Users::default()
        };
        let needed = Users {
            os_builds: vec![crate::fixtures::os_build_with_image(image).into()],
            ..unneeded.clone()
        };
        for (users, is_left) in [(unneeded, true), (needed, false), (Users::default(), false)] {
            let mut failures = failed();
            failures.forget_needed(&users);
            assert_eq!(failures.wait(now).is_some(), is_left);
        }
    }

    #[test]
    fn a_failure_is_told_once_and_waits_longer_each_time() {
        let start = Instant::now();
        let mut failures = Failures::default();
        let mut fails = |why: &str, seconds| {
            let now = start + Duration::from_secs(seconds);
            let is_news = failures.failed("a".to_owned(), Class::Transient, why.to_owned(), now);
            let due = |after| failures.is_due("a", now + Duration::from_secs(after));
            (is_news, (0..4000).find(|after| due(*after)))
        };
        assert_eq!(fails("503", 0), (true, Some(30)));
        assert_eq!(fails("503", 30), (false, Some(60)));
        assert_eq!(fails("502", 90), (true, Some(120)));
        assert!(failures.is_due("another", start));
        let wait = failures.wait(start);
        assert_eq!(wait, Some(Duration::from_secs(210)));
    }
}
