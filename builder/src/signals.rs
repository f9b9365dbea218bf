//! How does somebody outside ask a build to end? By the signals of a terminal, of a service manager and of whoever runs containers.

use std::io;
use std::sync::Arc;

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
/// # Errors
/// If this process has no descriptors left.
pub fn listen(interrupt: &Arc<Interrupt>) -> io::Result<()> {
    for (name, number) in SIGNALS {
        let mut signals = signal(SignalKind::from_raw(number))?;
        let interrupt = Arc::clone(interrupt);
        tokio::spawn(async move {
            if signals.recv().await.is_some() {
                interrupt.say(name);
            }
        });
    }
    Ok(())
}

/// The exit code of a build that was interrupted: as shells have it, so that whoever sent the signal sees that it was heeded.
pub fn exit_code(interrupted_by: &str) -> Option<u8> {
    let mut signals = SIGNALS.iter();
    let (_, number) = signals.find(|(name, _)| *name == interrupted_by)?;
    u8::try_from(128 + number).ok()
}
