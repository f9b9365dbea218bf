//! What is a user told in the events of an object, under which reason?
//!
//! A [`Notice`] is a value of a plan; [`Recorder::publish`] is the effect. The reasons of the incumbent keep their
//! names and types, so that alerts and habits still work. Events are news, not state: what must be known later
//! stands in a condition, and an event that can't be written fails nothing.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube::runtime::events::{self, EventType, Reporter};
use strata_builder::error::chain;

use crate::api::condition::shorten;

/// Source component, the incumbent's.
const COMPONENT: &str = "machineosbuilder";
/// The apiserver's bound on a note.
const NOTE_LIMIT_BYTES: usize = 1024;
/// The apiserver's bound on the reporting instance.
const INSTANCE_LIMIT: usize = 128;
/// A reconcile waits for an event no longer than this.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(5);

/// Declares [`Reason`] so that variant, wire name and type stand in one line.
macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident $type:ident,)*) => {
        /// CamelCase cause of an event; its wire form is its name.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Reason { $($(#[$doc])* $variant,)* }

        impl Reason {
            /// All of them, the incumbent's first.
            pub const ALL: &[Reason] = &[$(Reason::$variant,)*];

            /// The wire form.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Reason::$variant => stringify!($variant),)* }
            }

            /// Whether somebody should have a look.
            #[must_use]
            pub const fn is_warning(self) -> bool {
                match self { $(Reason::$variant => matches!(EventType::$type, EventType::Warning),)* }
            }
        }
    };
}

reasons! {
    // on a MachineOSBuild, the incumbent's
    /// The build was taken up.
    BuildStarted Normal,
    /// Its objects are made, its pod doesn't run yet.
    BuildPreparing Normal,
    /// Its pod runs.
    BuildBuilding Normal,
    /// The image is in the registry.
    BuildCompleted Normal,
    /// There will be no image; the message says why.
    BuildFailed Warning,
    /// Stopped, or replaced by a newer one.
    BuildInterrupted Warning,
    /// The object and what belongs to it go.
    BuildDeleted Normal,
    /// The Job was created.
    JobCreated Normal,
    /// The Job has a pod that runs.
    JobStarted Normal,
    /// The Job is complete.
    JobCompleted Normal,
    /// The Job, or a pod of it, failed.
    JobFailed Warning,
    /// The Job was deleted.
    JobDeleted Normal,

    // on a MachineOSConfig, the incumbent's
    /// Everything is as the spec wants it.
    ConfigReconciled Normal,
    /// It isn't, and the message says why.
    ConfigReconcileFailed Warning,
    /// An annotation asked for one more build.
    RebuildRequested Normal,
    /// The object and its builds go.
    ConfigDeleted Normal,
    /// The pool can't get an image.
    BuildDegraded Warning,
    /// The pool can get an image again.
    BuildRecovered Normal,

    // on a MachineConfigPool, the incumbent's
    /// It has another rendered MachineConfig.
    PoolConfigChanged Normal,

    // ours
    /// A referenced object is missing; work goes on by itself when it appears.
    Waiting Warning,
    /// As many builds run as may; this one starts when one of them has ended.
    Queued Normal,
    /// A spec, or an object that it names, must be changed.
    InvalidInput Warning,
    /// A key of the ConfigMap with the settings is wrong; those before it go on.
    InvalidSettings Warning,
    /// A build goes that is older than what is to stay.
    BuildPruned Normal,
    /// The content was built before; the image is used again.
    ImageReused Normal,
    /// An image from outside was taken as the first build.
    PreBuiltImageSeeded Normal,
    /// The registry no longer has the image of a build; it is built again.
    ImageLost Warning,
    /// The image was removed from the registry.
    ImageDeleted Normal,
    /// The image is in use and stays until it no longer is.
    ImageRetained Normal,
    /// The registry can't or won't delete the image; the message names the missing right.
    ImageNotDeleted Warning,
}

/// Something that the user of an object should hear.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// Why.
    pub reason: Reason,
    /// A sentence; if there is a remedy it contains it. Shortened to what an event takes when published.
    pub message: String,
}

impl Notice {
    /// A notice.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
        }
    }
}

/// Writes events.
#[derive(Clone)]
pub struct Recorder {
    events: events::Recorder,
}

impl std::fmt::Debug for Recorder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Recorder").finish_non_exhaustive()
    }
}

impl Recorder {
    /// Writes events in the name of the replica `identity`.
    #[must_use]
    pub fn new(client: Client, identity: &str) -> Self {
        Self {
            events: events::Recorder::new(
                client,
                Reporter {
                    controller: COMPONENT.to_owned(),
                    instance: Some(identity.chars().take(INSTANCE_LIMIT).collect()),
                },
            ),
        }
    }

    /// Tells `notice` about an object; the event of a cluster-scoped one goes to the namespace `default`. Told
    /// again within 6 minutes, the same notice is counted in the same event.
    ///
    /// # Cancel safety
    ///
    /// The event may or may not have been written.
    pub async fn publish(&self, about: &ObjectReference, notice: &Notice) {
        let event = event(notice);
        // With it, every version of an object would begin a series of its own.
        let about = ObjectReference {
            resource_version: None,
            ..about.clone()
        };
        let reason = notice.reason.as_str();
        let name = about.name.as_deref().unwrap_or_default();
        match tokio::time::timeout(PUBLISH_TIMEOUT, self.events.publish(&event, &about)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::debug!(reason, about = name, error = %chain(&error), "event lost");
            }
            Err(_elapsed) => tracing::debug!(reason, about = name, "event lost, no answer in time"),
        }
    }
}

fn event(notice: &Notice) -> events::Event {
    let Notice { reason, message } = notice;
    // kube counts what has the same action in one event, whatever its note says; a second secret that is
    // missing would repeat the name of the first. So the action, which nobody is shown, tells notes apart.
    let mut hasher = DefaultHasher::new();
    message.hash(&mut hasher);
    events::Event {
        type_: if reason.is_warning() {
            EventType::Warning
        } else {
            EventType::Normal
        },
        reason: reason.as_str().to_owned(),
        note: Some(shorten_bytes(message, NOTE_LIMIT_BYTES)),
        action: format!("{}-{:08x}", reason.as_str(), hasher.finish() as u32),
        secondary: None,
    }
}

/// [`shorten`] to a limit in bytes.
fn shorten_bytes(text: &str, limit: usize) -> String {
    let mut characters = limit;
    loop {
        let short = shorten(text, characters);
        let excess = short.len().saturating_sub(limit);
        if excess == 0 {
            return short;
        }
        // a character has 4 bytes at most, so this never takes away too much
        characters = characters.saturating_sub(excess.div_ceil(4));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_incumbents_reasons_keep_their_names_and_types() {
        let warnings: Vec<&str> = Reason::ALL
            .iter()
            .filter(|reason| reason.is_warning())
            .map(|reason| reason.as_str())
            .collect();
        assert_eq!(
            warnings,
            [
                "BuildFailed",
                "BuildInterrupted",
                "JobFailed",
                "ConfigReconcileFailed",
                "BuildDegraded",
                "Waiting",
                "InvalidInput",
                "InvalidSettings",
                "ImageLost",
                "ImageNotDeleted",
            ]
        );
        let names: Vec<&str> = Reason::ALL[..19]
            .iter()
            .map(|reason| reason.as_str())
            .collect();
        assert_eq!(
            names.join(" "),
            "BuildStarted BuildPreparing BuildBuilding BuildCompleted BuildFailed BuildInterrupted BuildDeleted \
             JobCreated JobStarted JobCompleted JobFailed JobDeleted \
             ConfigReconciled ConfigReconcileFailed RebuildRequested ConfigDeleted BuildDegraded BuildRecovered \
             PoolConfigChanged"
        );
    }

    #[test]
    fn a_note_fits_in_1024_bytes_whatever_its_letters() {
        for letter in ["x", "é", "日", "🦀"] {
            let text = format!("begin{}end", letter.repeat(3000));
            let note = shorten_bytes(&text, NOTE_LIMIT_BYTES);
            assert!(
                (1016..=1024).contains(&note.len()),
                "{letter} {}",
                note.len()
            );
            assert!(note.starts_with("begin") && note.ends_with("end"), "{note}");
        }
        let fits = "é".repeat(512);
        assert_eq!(shorten_bytes(&fits, NOTE_LIMIT_BYTES), fits);
    }

    #[test]
    fn other_words_make_another_event_and_the_same_words_the_same() {
        let action = |message: &str| event(&Notice::new(Reason::Waiting, message)).action;
        assert_eq!(action("secret a is missing"), action("secret a is missing"));
        assert_ne!(action("secret a is missing"), action("secret b is missing"));
        assert!(action("").starts_with("Waiting-"));
    }
}
