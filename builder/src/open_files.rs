//! How many files may this process have open, and how many may a step?
//!
//! Trees are walked with a descriptor or more for each level, several at a time, and the usual limit of 1,024 is what a shell needs. A step gets back what we found: there
//! are programs that close every descriptor they might have, one by one.

use std::io;
use std::sync::OnceLock;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The limit as we found it.
static FOUND: OnceLock<Option<u64>> = OnceLock::new();

/// Raises the limit to the highest that is allowed.
///
/// # Errors
/// The kernel's.
pub fn allow_most() -> io::Result<()> {
    let found = getrlimit(Resource::Nofile);
    FOUND.get_or_init(|| found.current);
    let most = Rlimit {
        current: found.maximum,
        ..found
    };
    Ok(setrlimit(Resource::Nofile, most)?)
}

/// The limit before [`allow_most`]; none if it wasn't called, or there was no limit.
#[must_use]
pub fn found() -> Option<u64> {
    FOUND.get().copied().flatten()
}

/// Takes the limit back to what it was.
///
/// # Errors
/// The kernel's.
pub fn limit_to(found: u64) -> io::Result<()> {
    let limit = Rlimit {
        current: Some(found),
        ..getrlimit(Resource::Nofile)
    };
    Ok(setrlimit(Resource::Nofile, limit)?)
}
