//! How does somebody outside ask a build to end? By the signals of a terminal, of a service manager and of whoever runs containers.

use std::io;
use std::sync::Arc;
use std::task::Poll;

use strata_builder::stop::Interrupt;
use tokio::signal::unix::{SignalKind, signal};

/// Those that are heeded, by name and number.
const SIGNALS: [(&str, i32); 3] = [
    ("SIGHUP", libc::SIGHUP),
    ("SIGINT", libc::SIGINT),
    ("SIGTERM", libc::SIGTERM),
];

/// From now on each of them interrupts, instead of ending this process where it stands. A second one changes nothing: a terminal's reaches this process twice, by way of
/// its parent, too.
///
/// Then `next` is performed. Both have a thread of their own: those of the build may hang.
///
/// # Errors
/// If this process has no descriptors or threads left.
pub fn listen(
    interrupt: &Arc<Interrupt>,
    next: impl FnOnce(&'static str) + Send + 'static,
) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()?;
    let mut listened = Vec::new();
    {
        let _known = runtime.enter();
        for (name, number) in SIGNALS {
            listened.push((name, signal(SignalKind::from_raw(number))?));
        }
    }
    let interrupt = Arc::clone(interrupt);
    let thread = std::thread::Builder::new().name("signals".to_owned());
    thread.spawn(move || {
        let by = runtime.block_on(std::future::poll_fn(|context| {
            let mut all = listened.iter_mut();
            let come = all.find_map(|(name, signals)| {
                let is_come = signals.poll_recv(context).is_ready();
                is_come.then_some(*name)
            });
            come.map_or(Poll::Pending, Poll::Ready)
        }));
        interrupt.say(by);
        next(by);
    })?;
    Ok(())
}

/// The exit code of a build that was interrupted: as shells have it, so that whoever sent the signal sees that it was heeded.
pub fn exit_code(interrupted_by: &str) -> Option<u8> {
    let mut signals = SIGNALS.iter();
    let (_, number) = signals.find(|(name, _)| *name == interrupted_by)?;
    u8::try_from(128 + number).ok()
}
