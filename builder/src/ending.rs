//! How does a build's process end? By telling the outcome, once: in the report, in the digest file, on standard output and in the exit code.
//!
//! An interrupted build ends by itself, mostly at once. But no thread can be made to leave a read from a disk that hangs, and the runtime waits for all of them. So
//! somebody else, who waits for nobody, ends it when that takes too long ([`Ending::come_soon`]).

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, mpsc};
use std::time::Duration;

use rustix::mount::{UnmountFlags, unmount};
use strata_builder::contract::{BuildReport, Failure, Outcome, REPORT_VERSION, Work};
use strata_builder::error::{Class, Classify as _};
use strata_builder::pipeline::{BuildError, report};
use strata_builder::progress::Progress;
use strata_builder::sandbox::Entered;
use strata_builder::stop::Interrupt;

use crate::signals;
use crate::streams::{self, complain};

/// Steps are killed and transfers cut at once. Together with [`LAST_TRY`] less than the 10 s after which container runtimes kill.
const GRACE: Duration = Duration::from_secs(5);
/// For what is done in place of the build's threads then; it may meet the same disk.
const LAST_TRY: Duration = Duration::from_secs(3);
/// Threads that still write to a folder make its removal fail; most have ended when it is tried again.
const REMOVALS: u32 = 10;
const BETWEEN_REMOVALS: Duration = Duration::from_millis(100);

/// The end of this process's build.
#[derive(Default)]
pub struct Ending {
    report: Option<PathBuf>,
    digest: Option<PathBuf>,
    interrupt: Arc<Interrupt>,
    /// What is to be gone in the end.
    scratch: Mutex<Vec<PathBuf>>,
    begun: OnceLock<(Entered, Arc<Progress>)>,
    reached: Mutex<Option<(BuildReport, Option<String>)>>,
    is_begun_to_tell: AtomicBool,
    /// Once it is told.
    code: OnceLock<u8>,
}

impl Ending {
    /// With these files for the outcome.
    pub fn new(report: Option<PathBuf>, digest: Option<PathBuf>) -> Self {
        Self {
            report,
            digest,
            ..Self::default()
        }
    }

    /// By which the build is ended from outside.
    pub fn interrupt(&self) -> &Arc<Interrupt> {
        &self.interrupt
    }

    /// A folder that is to be gone in the end.
    pub fn makes(&self, folder: &Path) {
        let scratch = self.scratch.lock();
        scratch
            .unwrap_or_else(PoisonError::into_inner)
            .push(folder.to_owned());
    }

    /// From now on there is something to report.
    pub fn begins(&self, entered: Entered, progress: &Arc<Progress>) {
        // There is one build in a process.
        let _first = self.begun.set((entered, Arc::clone(progress)));
    }

    /// The outcome is known. What is still to be done may hang.
    pub fn reaches(&self, report: &BuildReport, told: Option<&str>) {
        let outcome = (report.clone(), told.map(str::to_owned));
        let mut reached = self.reached.lock().unwrap_or_else(PoisonError::into_inner);
        *reached = Some(outcome);
    }

    /// Tells the outcome; the exit code says who can end a failure. Doesn't come back if somebody else has told one.
    pub fn tell(&self, report: &BuildReport, told: Option<&str>) -> u8 {
        if self.is_begun_to_tell.swap(true, Ordering::SeqCst) {
            // It ends the process.
            loop {
                std::thread::park();
            }
        }
        self.write(report, told)
    }

    fn write(&self, report: &BuildReport, told: Option<&str>) -> u8 {
        // First what somebody will look for; whether anybody still listens is not known.
        let path = self.report.as_ref();
        let mut written = path.map_or(Ok(()), |path| report::write(report, path));
        if let Some((_, progress)) = self.begun.get() {
            progress.close();
        }
        if let Some(message) = told {
            complain(&format!("error: {message}"));
        }
        let code = match &report.outcome {
            Outcome::Pushed { digest, .. } => {
                let line = format!("{digest}\n");
                let path = self.digest.as_ref();
                let filed = path.map_or(Ok(()), |path| fs::write(path, &line));
                written = written.and(filed).and(streams::print(&line));
                0
            }
            Outcome::Failed(failure) => {
                let interrupted = self.interrupt.by().and_then(signals::exit_code);
                interrupted.unwrap_or(failure.class.exit_code())
            }
        };
        let code = match written {
            Ok(()) => code,
            Err(error) => {
                complain(&format!("error: write the outcome: {error}"));
                Class::of_file(&error).exit_code()
            }
        };
        *self.code.get_or_init(|| code)
    }

    /// Ends the process, interrupted by `by`, if it doesn't end by itself soon.
    pub fn come_soon(self: &Arc<Self>, by: &'static str) {
        std::thread::sleep(GRACE);
        let (done, is_done) = mpsc::channel();
        let ending = Arc::clone(self);
        std::thread::spawn(move || {
            ending.tell_late(by);
            ending.clear_away();
            // Nobody waits for it any more.
            let _late = done.send(());
        });
        // Done or not: nothing more is waited for, not even to say so.
        let _done = is_done.recv_timeout(LAST_TRY);
        let told = self.code.get().copied().or(signals::exit_code(by));
        std::process::exit(told.unwrap_or(Class::Transient.exit_code()).into())
    }

    /// In place of those that should have, by now.
    fn tell_late(&self, by: &'static str) {
        if !self.is_begun_to_tell.swap(true, Ordering::SeqCst) {
            let reached = self.reached.lock().unwrap_or_else(PoisonError::into_inner);
            let (report, told) = reached.clone().unwrap_or_else(|| self.interrupted(by));
            self.write(&report, told.as_deref());
        }
    }

    fn clear_away(&self) {
        let scratch = self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        // One may lie in the one before.
        for folder in scratch.iter().rev() {
            if let Err(error) = remove(folder) {
                tracing::warn!(folder = %folder.display(), %error, "a scratch folder stays");
            }
        }
    }

    fn interrupted(&self, by: &'static str) -> (BuildReport, Option<String>) {
        let error = BuildError::Interrupted(by);
        let message = error.to_string();
        let failed = report_of(failure(error.class(), message.clone()));
        let report = match self.begun.get() {
            Some((entered, progress)) => BuildReport {
                tier: entered.tier.name().to_owned(),
                work: progress.work(),
                ..failed
            },
            None => failed,
        };
        (report, Some(message))
    }
}

/// Nothing was built.
pub fn failure(class: Class, message: String) -> Outcome {
    Outcome::Failed(Failure {
        class,
        message,
        refused_by: None,
        step: None,
    })
}

/// The outcome of what was never begun.
pub fn report_of(outcome: Outcome) -> BuildReport {
    BuildReport {
        version: REPORT_VERSION,
        outcome,
        tier: "none".to_owned(),
        phases: Vec::new(),
        peak_rss_bytes: 0,
        work: Work::default(),
    }
}

/// Removes a folder in which others may still be at work. What is mounted in it is let go before, so that nothing of it is removed.
fn remove(folder: &Path) -> io::Result<()> {
    let mut removed = Ok(());
    for _ in 0..REMOVALS {
        removed = unmount_all(folder).and_then(|()| match fs::remove_dir_all(folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        });
        if removed.is_ok() {
            break;
        }
        std::thread::sleep(BETWEEN_REMOVALS);
    }
    removed
}

fn unmount_all(folder: &Path) -> io::Result<()> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    // Later ones may be on top of earlier ones.
    for point in mount_points(&mounts, folder).into_iter().rev() {
        unmount(&point, UnmountFlags::DETACH)?;
    }
    Ok(())
}

/// Those below `folder`, in the order of `mountinfo`.
fn mount_points(mountinfo: &str, folder: &Path) -> Vec<PathBuf> {
    let points = mountinfo.lines().filter_map(|line| line.split(' ').nth(4));
    points
        .map(|point| PathBuf::from(unescaped(point)))
        .filter(|point| point.starts_with(folder) && point != folder)
        .collect()
}

/// Blanks and their like are written as `\040`.
fn unescaped(text: &str) -> OsString {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&first, behind)) = rest.split_first() {
        let digits = behind.get(..3).filter(|_| first == b'\\');
        let code = digits.and_then(|digits| std::str::from_utf8(digits).ok());
        match code.and_then(|code| u8::from_str_radix(code, 8).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &behind[3..];
            }
            None => {
                bytes.push(first);
                rest = behind;
            }
        }
    }
    OsString::from_vec(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_mounted_below_a_folder_is_found_whatever_its_name() {
        let mountinfo = "\
            22 1 0:20 / /proc rw - proc proc rw\n\
            30 1 8:1 / /scratch\\040x rw - ext4 /dev/sda rw\n\
            31 30 0:50 / /scratch\\040x/a\\134b/merged rw - overlay overlay rw\n\
            32 31 0:51 / /scratch\\040x/a\\134b/merged/\\999 rw - tmpfs tmpfs rw\n\
            33 1 0:52 / /scratch\\040xy rw - tmpfs tmpfs rw\n";
        let found = mount_points(mountinfo, Path::new("/scratch x"));
        let expected = ["/scratch x/a\\b/merged", "/scratch x/a\\b/merged/\\999"];
        assert_eq!(found, expected.map(PathBuf::from));
    }
}
