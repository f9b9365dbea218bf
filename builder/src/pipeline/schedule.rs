//! Which stage runs when? Each as soon as those that it needs are done, several at a time; lower ones first.
//!
//! [`Queue`] decides, [`run`] has the threads.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crate::stop::Stop;

/// What is still to be begun. Pure.
#[derive(Debug)]
struct Queue {
    /// With what must be done before.
    waiting: BTreeMap<usize, BTreeSet<usize>>,
    running: usize,
}

impl Queue {
    fn next(&mut self) -> Option<usize> {
        let mut waiting = self.waiting.iter();
        let name = waiting.find_map(|(name, needs)| needs.is_empty().then_some(*name))?;
        self.waiting.remove(&name);
        self.running += 1;
        Some(name)
    }

    fn done(&mut self, name: usize) {
        self.running -= 1;
        for needs in self.waiting.values_mut() {
            needs.remove(&name);
        }
    }

    /// Nothing more is begun.
    fn give_up(&mut self) {
        self.waiting.clear();
    }

    /// True if nothing is begun any more, unless by what runs.
    fn is_over(&self) -> bool {
        self.running == 0 || self.waiting.is_empty()
    }
}

struct Shared<E> {
    state: Mutex<(Queue, Option<E>)>,
    changed: Condvar,
}

impl<E> Shared<E> {
    fn lock(&self) -> MutexGuard<'_, (Queue, Option<E>)> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next one, once there is one.
    fn next(&self) -> Option<usize> {
        let mut state = self.lock();
        loop {
            if let Some(name) = state.0.next() {
                return Some(name);
            }
            if state.0.is_over() {
                return None;
            }
            let waited = self.changed.wait(state);
            state = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Tells the others that one is done, however that came.
struct Running<'a, E> {
    shared: &'a Shared<E>,
    name: usize,
}

impl<E> Drop for Running<'_, E> {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        if std::thread::panicking() {
            state.0.give_up();
        }
        state.0.done(self.name);
        self.shared.changed.notify_all();
    }
}

/// Works on all of `needs`, by name with the names that must be done before, `most` at a time, on this thread and others. After the first failure `stop` is said
/// and nothing more is begun; what runs is waited for.
///
/// # Errors
/// The first failure.
pub fn run<E: Send>(
    needs: BTreeMap<usize, BTreeSet<usize>>,
    most: usize,
    stop: &Stop,
    work: impl Fn(usize) -> Result<(), E> + Sync,
) -> Result<(), E> {
    let threads = most.min(needs.len());
    let queue = Queue {
        waiting: needs,
        running: 0,
    };
    let shared = Shared {
        state: Mutex::new((queue, None)),
        changed: Condvar::new(),
    };
    let worker = || {
        while let Some(name) = shared.next() {
            let running = Running {
                shared: &shared,
                name,
            };
            if let Err(error) = work(name) {
                let mut state = shared.lock();
                state.0.give_up();
                state.1.get_or_insert(error);
                drop(state);
                // Later: what is stopped by this comes behind it.
                stop.say();
            }
            drop(running);
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(worker);
        }
        worker();
    });
    let state = shared.state.into_inner();
    match state.unwrap_or_else(PoisonError::into_inner).1 {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::time::Duration;

    use super::*;

    fn needs(rows: &[(usize, &[usize])]) -> BTreeMap<usize, BTreeSet<usize>> {
        let rows = rows.iter();
        rows.map(|(name, needs)| (*name, needs.iter().copied().collect()))
            .collect()
    }

    #[test]
    fn each_runs_after_what_it_needs_and_those_that_need_nothing_of_each_other_at_once() {
        let order = Mutex::new(Vec::new());
        // two that wait for each other can only end if both run
        let both = Barrier::new(2);
        let rows = needs(&[(0, &[]), (1, &[]), (2, &[0, 1]), (3, &[2])]);
        let result = run::<()>(rows, 2, &Stop::new().unwrap(), |name| {
            if name < 2 {
                both.wait();
            }
            order.lock().unwrap().push(name);
            Ok(())
        });
        assert_eq!(result, Ok(()));
        let order = order.into_inner().unwrap();
        assert_eq!((order.len(), &order[2..]), (4, &[2, 3][..]));
    }

    #[test]
    fn one_at_a_time_goes_by_number_on_the_calling_thread() {
        let order = Mutex::new(Vec::new());
        let here = std::thread::current().id();
        let rows = needs(&[(0, &[]), (1, &[0]), (2, &[]), (3, &[1])]);
        let result = run::<()>(rows, 1, &Stop::new().unwrap(), |name| {
            assert_eq!(std::thread::current().id(), here);
            order.lock().unwrap().push(name);
            Ok(())
        });
        assert_eq!(result, Ok(()));
        assert_eq!(order.into_inner().unwrap(), [0, 1, 2, 3]);
    }

    #[test]
    fn the_first_failure_stops_what_runs_and_nothing_more_is_begun() {
        let begun = Mutex::new(BTreeSet::new());
        let both = Barrier::new(2);
        let stop = Stop::new().unwrap();
        let rows = needs(&[(0, &[]), (1, &[]), (2, &[0]), (3, &[1])]);
        let result = run(rows, 2, &stop, |name| {
            begun.lock().unwrap().insert(name);
            both.wait();
            if name == 1 {
                return Err("failed");
            }
            while !stop.wait(Duration::from_secs(60)).unwrap() {}
            Err("stopped")
        });
        assert_eq!(result, Err("failed"));
        assert_eq!(begun.into_inner().unwrap(), BTreeSet::from([0, 1]));
    }
}
