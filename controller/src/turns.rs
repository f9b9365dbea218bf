//! Whose turn is it, when no more than so many builds may run at the same time?
//!
//! Builds that could start ask; the oldest that asks gets the place that is free. A turn is given in memory and counts at once,
//! since the watches tell only later that its build has begun. After a restart whoever asks first is the oldest that is known.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use futures::channel::mpsc::UnboundedSender;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt as _;
use kube::runtime::controller::ReconcileRequest;
use kube::runtime::reflector::ObjectRef;

use crate::api::MachineOSBuild;
use crate::cache::{ACTIVE, Kept};
use crate::phase::Phase;

/// Who waits, and who was given a turn.
pub struct Turns {
    state: Mutex<State>,
    queue: UnboundedSender<ReconcileRequest<MachineOSBuild>>,
}

#[derive(Default)]
struct State {
    /// Names, the oldest first.
    waiting: BTreeMap<Age, String>,
    /// UIDs of those that have begun, or are about to.
    given: BTreeSet<String>,
}

/// When a build was created, and its UID.
type Age = (Option<Time>, String);

/// No turn yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("waits for its turn: {running} builds run, STRATA_MAX_BUILDS is {max}")]
pub struct Occupied {
    running: usize,
    max: usize,
}

impl Turns {
    /// Nobody waits; those whose turn may have come are put into `queue`.
    #[must_use]
    pub fn new(queue: UnboundedSender<ReconcileRequest<MachineOSBuild>>) -> Self {
        Self {
            state: Mutex::default(),
            queue,
        }
    }

    /// Asks for a turn of a build that has not begun and could; `known` are all builds.
    ///
    /// # Errors
    ///
    /// It is another's turn: this one is looked at again when that may have changed.
    pub fn ask(
        &self,
        os_build: &MachineOSBuild,
        known: &Kept<MachineOSBuild>,
        max: Option<usize>,
    ) -> Result<(), Occupied> {
        let uid = os_build.uid().unwrap_or_default();
        // whoever begins without a bound counts, too, should one come before the watch has told of it
        let max = max.unwrap_or(usize::MAX);
        let active = known.of(ACTIVE);
        let mut running: BTreeSet<String> = BTreeSet::new();
        let mut initial: BTreeSet<String> = BTreeSet::from([uid.clone()]);
        for other in &active {
            let other_uid = other.uid().unwrap_or_default();
            match Phase::of_build(other) {
                Phase::Initial => initial.insert(other_uid),
                _ => running.insert(other_uid),
            };
        }
        let mut state = self.lock();
        state.given.retain(|one| initial.contains(one));
        state.waiting.retain(|(_, one), _| initial.contains(one));
        running.extend(state.given.iter().cloned());
        running.remove(&uid);
        let age = (os_build.creation_timestamp(), uid.clone());
        state.waiting.insert(age.clone(), os_build.name_any());
        let before = match state.given.contains(&uid) {
            true => 0,
            false => state.waiting.range(..&age).count(),
        };
        if running.len() + before >= max {
            state.given.remove(&uid);
            return Err(Occupied {
                running: running.len(),
                max,
            });
        }
        state.waiting.remove(&age);
        state.given.insert(uid);
        drop(state);
        self.wake();
        Ok(())
    }

    /// It doesn't begin: something else is missing, or nobody wants it any more.
    pub fn leave(&self, uid: &str) {
        let mut state = self.lock();
        let waiting = state.waiting.len();
        state.waiting.retain(|(_, one), _| one != uid);
        let has_left = state.waiting.len() != waiting;
        if state.given.remove(uid) || has_left {
            drop(state);
            self.wake();
        }
    }

    /// Whose turn may have come is looked at.
    pub fn wake(&self) {
        let state = self.lock();
        if let Some(name) = state.waiting.values().next() {
            // closed at the stop only
            let _stopping = self.queue.unbounded_send(ObjectRef::new(name).into());
        }
    }

    /// How many wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.lock().waiting.len()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use futures::channel::mpsc::{UnboundedReceiver, unbounded};
    use jiff::{SignedDuration, Timestamp};
    use kube::runtime::watcher::Event;

    use super::*;
    use crate::cache::{Keeper, build_groups, kept};
    use crate::fixtures;

    struct Cluster {
        turns: Turns,
        woken: UnboundedReceiver<ReconcileRequest<MachineOSBuild>>,
        known: Kept<MachineOSBuild>,
        keeper: Keeper<MachineOSBuild>,
    }

    impl Cluster {
        /// With so many builds, the first the oldest, of which none has begun.
        fn new(builds: i64) -> Self {
            let (queue, woken) = unbounded();
            let (known, mut keeper) = kept(build_groups);
            for n in 0..builds {
                keeper.take(&Event::Apply(build(n, Phase::Initial)));
            }
            Self {
                turns: Turns::new(queue),
                woken,
                known,
                keeper,
            }
        }

        fn ask(&self, n: i64) -> bool {
            let asking = build(n, Phase::Initial);
            self.turns.ask(&asking, &self.known, Some(2)).is_ok()
        }

        fn becomes(&mut self, n: i64, phase: Phase) {
            self.keeper.take(&Event::Apply(build(n, phase)));
        }

        fn woken(&mut self) -> Vec<String> {
            std::iter::from_fn(|| self.woken.try_recv().ok())
                .map(|one| one.obj_ref.name)
                .collect()
        }
    }

    fn build(n: i64, phase: Phase) -> MachineOSBuild {
        let mut os_build = fixtures::os_build();
        os_build.metadata.name = Some(format!("build-{n}"));
        os_build.metadata.uid = Some(format!("uid-{n}"));
        let created = Timestamp::UNIX_EPOCH + SignedDuration::from_secs(n);
        os_build.metadata.creation_timestamp = Some(Time(created));
        let status = os_build.status.get_or_insert_default();
        if phase != Phase::Initial {
            let conditions = status.conditions.get_or_insert_default();
            phase.write(conditions, None, fixtures::now());
        }
        os_build
    }

    #[test]
    fn no_more_begin_than_may_and_the_oldest_that_asks_is_next() {
        let mut cluster = Cluster::new(5);
        assert!(cluster.ask(4));
        assert!(cluster.ask(3));
        assert!(!cluster.ask(2) && !cluster.ask(1));
        // a turn is kept until the watch tells that it was used
        assert!(cluster.ask(4));
        cluster.woken();
        cluster.becomes(4, Phase::Building);
        cluster.becomes(3, Phase::Prepared);
        cluster.turns.wake();
        assert_eq!(cluster.woken(), ["build-1"]);
        assert!(!cluster.ask(1) && !cluster.ask(2));
        cluster.becomes(4, Phase::Succeeded);
        assert!(!cluster.ask(2), "build-1 is older");
        assert!(cluster.ask(1));
        assert_eq!(cluster.woken(), ["build-2"]);
        assert!(!cluster.ask(2));
    }

    #[test]
    fn who_can_not_begin_gives_the_turn_to_the_next() {
        let mut cluster = Cluster::new(4);
        assert!(cluster.ask(0) && cluster.ask(1) && !cluster.ask(2) && !cluster.ask(3));
        cluster.woken();
        cluster.turns.leave("uid-2");
        assert_eq!(cluster.woken(), ["build-3"]);
        assert!(!cluster.ask(3));
        cluster.turns.leave("uid-0");
        assert_eq!(cluster.woken(), ["build-3"]);
        assert!(cluster.ask(3));
        cluster.turns.leave("uid-9");
        assert!(cluster.woken().is_empty());
    }

    #[test]
    fn builds_that_are_gone_take_no_place() {
        let mut cluster = Cluster::new(3);
        assert!(cluster.ask(0) && cluster.ask(1) && !cluster.ask(2));
        cluster
            .keeper
            .take(&Event::Delete(build(0, Phase::Initial)));
        assert!(cluster.ask(2));
    }

    #[test]
    fn without_a_limit_nobody_waits() {
        let cluster = Cluster::new(3);
        assert!(cluster.ask(0) && cluster.ask(1) && !cluster.ask(2));
        let asking = build(2, Phase::Initial);
        assert!(cluster.turns.ask(&asking, &cluster.known, None).is_ok());
        assert_eq!(cluster.turns.waiting(), 0);
    }
}
