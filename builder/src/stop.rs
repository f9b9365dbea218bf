//! How does a part of the build hear that another one has failed? By a word that stays said, for tasks and for threads that wait in `poll`. And how does the whole build
//! hear that nobody wants it any more?

use std::future::Future;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

/// Said once, and never taken back.
#[derive(Debug)]
pub struct Stop {
    token: CancellationToken,
    /// Readable once it is said; nobody reads it.
    event: OwnedFd,
}

impl Stop {
    /// Not said yet.
    ///
    /// # Errors
    /// If this process has no descriptors left.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            token: CancellationToken::new(),
            event: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        })
    }

    /// Says it.
    pub fn say(&self) {
        self.token.cancel();
        // An eventfd takes this unless its count is at its largest, and then it is readable, too.
        let _said = rustix::io::write(&self.event, &1_u64.to_ne_bytes());
    }

    /// True once it is said.
    #[must_use]
    pub fn is_said(&self) -> bool {
        self.token.is_cancelled()
    }

    /// What `future` comes to; none if it is said before.
    ///
    /// # Cancel safety
    /// As `future`.
    pub async fn or<F: Future>(&self, future: F) -> Option<F::Output> {
        self.token.run_until_cancelled(future).await
    }

    /// Waits at most so long; true once it is said.
    ///
    /// # Errors
    /// If the kernel has no memory.
    pub fn wait(&self, most: Duration) -> io::Result<bool> {
        let mut descriptors = [PollFd::new(&self.event, PollFlags::IN)];
        let most = Timespec::try_from(most).ok();
        match poll(&mut descriptors, most.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(self.is_said()),
            Err(errno) => Err(errno.into()),
        }
    }
}

/// Somebody outside wants the build to end.
#[derive(Debug, Default)]
pub struct Interrupt {
    token: CancellationToken,
    by: OnceLock<&'static str>,
}

impl Interrupt {
    /// Says it; who has said it first is remembered.
    pub fn say(&self, by: &'static str) {
        // Taken only once.
        let _first = self.by.set(by);
        self.token.cancel();
    }

    /// Who has said it.
    #[must_use]
    pub fn by(&self) -> Option<&'static str> {
        self.by.get().copied()
    }

    /// What `future` comes to; none if it is said before.
    ///
    /// # Cancel safety
    /// As `future`.
    pub async fn or<F: Future>(&self, future: F) -> Option<F::Output> {
        self.token.run_until_cancelled(future).await
    }

    /// As long as the task lives, `stop` is said when this is. Called in a runtime.
    pub(crate) fn also_says(self: &Arc<Self>, stop: &Arc<Stop>) -> AbortOnDropHandle<()> {
        let (interrupt, stop) = (Arc::clone(self), Arc::clone(stop));
        AbortOnDropHandle::new(tokio::spawn(async move {
            interrupt.token.cancelled().await;
            stop.say();
        }))
    }
}

impl AsFd for Stop {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}
