//! How does this program speak to whoever started it? Without minding that nobody listens any more: what it did is in files and in its exit code.

use std::io::{self, Write as _};

/// To standard output. A reader who has gone is no error, a full disk behind it is.
pub fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    heard(out.write_all(text.as_bytes()).and_then(|()| out.flush()))
}

/// A line to standard error; where that can't be written to, there is nobody to tell.
pub fn complain(line: &str) {
    let written = io::stderr()
        .lock()
        .write_all(format!("{line}\n").as_bytes());
    if let Err(error) = written {
        tracing::debug!(%error, "line lost");
    }
}

/// True of what was written, or had nobody to read it.
pub fn heard(written: io::Result<()>) -> io::Result<()> {
    match written {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}
