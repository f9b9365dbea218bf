//! What tests of several modules share.

use std::io::Write as _;

/// True for root. Else says which test does nothing, and why.
pub(crate) fn is_root(why: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        let test = std::thread::current();
        skip(
            test.name().unwrap_or("a test"),
            &format!("needs root, {why}"),
        );
    }
    root
}

/// Says why a test does nothing, past libtest's capture and in one piece: such lines are counted.
pub(crate) fn skip(test: &str, why: &str) {
    let line = format!("skipped: {test}: {why}\n");
    let _unheard = std::io::stderr().write_all(line.as_bytes());
}
