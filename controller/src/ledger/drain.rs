//! Deletes the images of the ledger that nothing needs any more.
//!
//! | the registry | the entry |
//! | --- | --- |
//! | deleted the image, or has none | goes |
//! | fails, or can't be reached | is tried again, from 30 seconds later to an hour later |
//! | refuses these credentials, or there are none | is tried again, from a minute later to six hours later, for 30 days |
//! | deletes nothing | goes |
//!
//! An image that was found without its build waits a day, and stays if that build is there by then.
//! What keeps an image that nothing needs is told once, in an event on the ledger, with the remedy.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::ObjectReference;
use strata_builder::error::{Class, Classify as _, chain};
use strata_builder::reference::Reference;
use strata_builder::registry::Registry;
use tracing::{info, warn};

use super::{Entry, LEDGER_NAME};
use crate::apply::image::{Doomed, Removal, remedy, remove};
use crate::context::Context;
use crate::error::Error;
use crate::events::{Notice, Reason};
use crate::live::Needs as _;
use crate::metrics::Deletion;
use crate::registries::RegistriesError;
use crate::sweep::GRACE;
use crate::usage::{Use, Users};

/// Who refuses for so long won't change.
const LONGEST_REFUSAL: SignedDuration = SignedDuration::from_hours(30 * 24);

/// Failures by the entry's key; goes with the process.
#[derive(Debug, Default)]
pub struct Failures(BTreeMap<String, Failure>);

/// Of an image that nothing needs.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Failure {
    /// In a row.
    count: u32,
    /// When it is tried again.
    again: Timestamp,
    why: String,
}

impl Failures {
    fn is_due(&self, key: &str, now: Timestamp) -> bool {
        self.0.get(key).is_none_or(|failure| failure.again <= now)
    }

    /// Counts a failure; whether it is to be told.
    fn failed(&mut self, key: String, class: Class, why: String, now: Timestamp) -> bool {
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
    fn wait(&self, now: Timestamp) -> Option<Duration> {
        let next = self.0.values().map(|failure| failure.again).min()?;
        let left = next.duration_since(now);
        Some(Duration::try_from(left).unwrap_or_default())
    }
}

/// Before the next try, after so many failures in a row, from 1.
fn wait(class: Class, count: u32) -> SignedDuration {
    let (first, longest) = match class {
        Class::Transient => (SignedDuration::from_secs(30), SignedDuration::from_hours(1)),
        Class::User(_) | Class::Permanent(_) => {
            (SignedDuration::from_mins(1), SignedDuration::from_hours(6))
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
    let entries = context.ledger.entries().await?;
    let known = Users::known(&context.cache, entries.clone());
    failures.forget_needed(&known);
    if !may_be_due(&known, failures) {
        let left = entries.iter().filter(|entry| !entry.keep);
        let oldest = left.clone().map(|entry| entry.since).min();
        context
            .metrics
            .ledger(left.count(), oldest, failures.0.len());
        return Ok(failures.wait(Timestamp::now()));
    }
    let users = context.users().await?;
    let entries: Vec<&Entry> = users.entries.iter().filter(|entry| !entry.keep).collect();
    let count = entries.len();
    let oldest = entries.iter().map(|entry| entry.since).min();
    for entry in entries {
        let now = Timestamp::now();
        let key = entry.key();
        let image = entry.image.parse::<Reference>().ok();
        let Some((image, digest)) = image.and_then(|image| Some((image.clone(), image.digest?)))
        else {
            context.ledger.forget(entry).await?;
            continue;
        };
        if users.of(digest, None).is_some() {
            failures.0.remove(&key);
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
        if !failures.is_due(&key, now) {
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
        let is_hopeless = match class {
            Class::Transient => false,
            Class::User(_) => now.duration_since(entry.since) > LONGEST_REFUSAL,
            Class::Permanent(_) => true,
        };
        context.metrics.image_deletion(match is_hopeless {
            true => Deletion::Refused,
            false => Deletion::Failed,
        });
        if failures.failed(key, class, why.clone(), now) || is_hopeless {
            tell(context, entry, is_hopeless, &why).await;
        }
        if is_hopeless {
            context.give_up(&entry.image);
            context.ledger.forget(entry).await?;
            failures.0.remove(&entry.key());
        }
    }
    context.metrics.ledger(count, oldest, failures.0.len());
    Ok(failures.wait(Timestamp::now()))
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
            !is_needed(known, entry) && !waits && failures.is_due(&entry.key(), now)
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
    let Some(digest) = image.digest else {
        return Ok(Drained::Gone);
    };
    let registry = match open(context, entry, image).await {
        Ok(registry) => registry,
        Err(error) => return Ok(Drained::Failed(error.class(), chain(&error))),
    };
    let doomed = Doomed {
        repository: &image.repository,
        digest,
        tag: entry.tag.as_deref(),
        asking: None,
    };
    match remove(context, &registry, &doomed).await {
        Ok(Removal::Gone { .. }) => Ok(Drained::Gone),
        Ok(Removal::InUse(Use::Unknown(why))) => Ok(Drained::Failed(Class::Transient, why)),
        Ok(Removal::InUse(_)) => Ok(Drained::InUse),
        Ok(Removal::Refused(error)) => {
            let why = format!("{}; {}", chain(&error), remedy(&error, &entry.push_secret));
            Ok(Drained::Failed(error.class(), why))
        }
        Err(error @ Error::Registry { .. }) => Ok(Drained::Failed(error.class(), chain(&error))),
        Err(error) => Err(error),
    }
}

/// With the entry's Secret; if that went with its config, with one that another config pushes to the same registry with.
async fn open(
    context: &Context,
    entry: &Entry,
    image: &Reference,
) -> Result<Registry, RegistriesError> {
    let gone = match context.registries.open(&entry.push_secret).await {
        Err(error @ RegistriesError::NoSecret(_)) => error,
        opened => return opened,
    };
    for os_config in context.cache.os_configs.store.state() {
        let spec = &os_config.spec;
        let pushes_there = spec
            .rendered_image_push_spec
            .parse::<Reference>()
            .is_ok_and(|push| push.repository.host() == image.repository.host());
        if pushes_there
            && let Ok(registry) = context
                .registries
                .open(&spec.rendered_image_push_secret.name)
                .await
        {
            return Ok(registry);
        }
    }
    Err(gone)
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
            let wanted = SignedDuration::from_secs(seconds);
            assert_eq!(wait(class, count), wanted, "{class:?} {count}");
        }
    }

    #[test]
    fn what_is_needed_again_or_no_longer_in_the_ledger_is_not_waited_for() {
        let now = crate::fixtures::now();
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
        let start = crate::fixtures::now();
        let mut failures = Failures::default();
        let mut fails = |why: &str, seconds| {
            let now = start + SignedDuration::from_secs(seconds);
            let is_news = failures.failed("a".to_owned(), Class::Transient, why.to_owned(), now);
            let due = |after| failures.is_due("a", now + SignedDuration::from_secs(after));
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
