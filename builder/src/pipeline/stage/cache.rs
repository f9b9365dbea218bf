//! Where does a cache mount keep its files? A folder per id, owner and mode, as in BuildKit.

use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::FlockOperation;
use rustix::io::Errno;

use super::error::scratch;
use super::{StepError, make_folder};
use crate::copy::{CopyRequest, copy};
use crate::digest::Digest;
use crate::pipeline::BuildError;
use crate::root::Root;
use crate::stop::Stop;

/// How often a cache that another step holds is tried again: steps that share one `locked` take seconds at least.
const TRY_AGAIN: Duration = Duration::from_millis(20);

/// A cache that a step uses.
#[derive(Debug)]
pub(super) struct Wanted {
    pub id: String,
    pub owner: (u32, u32),
    pub mode: u32,
    pub sharing: String,
    /// What a new one begins with: a root and a path in it.
    pub filled: Option<(Root, String)>,
}

/// A cache while a step uses it; its lock is for other steps, and for builds that keep caches in the same folder.
#[derive(Debug)]
pub(super) struct Cache {
    /// Its files.
    pub directory: PathBuf,
    _lock: File,
}

impl Wanted {
    /// The same for the same cache. Who takes several takes them in this order, or two steps could wait for each other.
    pub(super) fn key(&self) -> String {
        let key = format!("{}\0{:?}\0{:o}", self.id, self.owner, self.mode);
        Digest::of(key.as_bytes()).hex()[..32].to_owned()
    }

    /// Finds or makes the cache's folder below `caches`. Of a `private` cache that another step uses there are several; for a `locked` one this waits.
    pub(super) fn open(&self, caches: &Path, stop: &Stop) -> Result<Cache, StepError> {
        make_folder(caches)?;
        let mut number = 0;
        let (directory, lock) = loop {
            let directory = caches.join(format!("{}-{number}", self.key()));
            let path = directory.with_extension("lock");
            let failed = || scratch("lock", &path);
            let lock = File::create(&path).map_err(failed())?;
            let operation = match self.sharing.as_str() {
                "locked" | "private" => FlockOperation::NonBlockingLockExclusive,
                _ => FlockOperation::NonBlockingLockShared,
            };
            match rustix::fs::flock(&lock, operation) {
                Ok(()) => break (directory, lock),
                Err(Errno::WOULDBLOCK) if self.sharing == "private" => number += 1,
                Err(Errno::WOULDBLOCK) => {
                    if stop.wait(TRY_AGAIN).map_err(failed())? {
                        return Err(BuildError::Stopped.into());
                    }
                }
                Err(errno) => return Err(failed()(errno.into())),
            }
        };
        self.make(caches, &directory)?;
        Ok(Cache {
            directory,
            _lock: lock,
        })
    }

    /// Makes the folder if it isn't there.
    fn make(&self, caches: &Path, directory: &Path) -> Result<(), StepError> {
        let failed = || scratch("make the cache", directory);
        // Steps that share a cache come here together, and an empty folder would let itself be replaced under the one that uses it.
        let making = File::create(caches.join("making.lock")).map_err(failed())?;
        rustix::fs::flock(&making, FlockOperation::LockExclusive)
            .map_err(|errno| failed()(errno.into()))?;
        if directory.exists() {
            return Ok(());
        }
        let new = tempfile::Builder::new().prefix("new-").tempdir_in(caches);
        let new = new.map_err(failed())?.keep();
        if let Some((from, path)) = &self.filled {
            let request = CopyRequest {
                sources: vec![path.clone()],
                destination: "/".to_owned(),
                ..CopyRequest::default()
            };
            copy(&request, from, None, &Root::open(&new)?)?;
        }
        chown(&new, Some(self.owner.0), Some(self.owner.1))
            .and_then(|()| fs::set_permissions(&new, fs::Permissions::from_mode(self.mode)))
            .and_then(|()| fs::rename(&new, directory))
            .map_err(failed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(sharing: &str) -> Wanted {
        Wanted {
            id: "c".to_owned(),
            owner: (
                rustix::process::getuid().as_raw(),
                rustix::process::getgid().as_raw(),
            ),
            mode: 0o755,
            sharing: sharing.to_owned(),
            filled: None,
        }
    }

    #[test]
    fn who_holds_a_cache_lets_others_in_as_its_sharing_says() {
        for (held, then, same) in [
            ("shared", "shared", Some(true)),
            ("shared", "private", Some(false)),
            ("private", "private", Some(false)),
            ("shared", "locked", None),
            ("locked", "shared", None),
            ("locked", "locked", None),
        ] {
            let caches = tempfile::tempdir().unwrap();
            let stop = Stop::new().unwrap();
            let first = wanted(held).open(caches.path(), &stop).unwrap();
            if same.is_none() {
                // It would wait for ever, but for this.
                stop.say();
            }
            let second = wanted(then).open(caches.path(), &stop);
            match (second, same) {
                (Ok(second), Some(same)) => {
                    assert_eq!(second.directory == first.directory, same, "{held} {then}");
                }
                (Err(error), None) => {
                    let StepError::Files(error) = error else {
                        panic!("{error}");
                    };
                    assert!(matches!(*error, BuildError::Stopped), "{held} {then}");
                    drop(first);
                    wanted(then).open(caches.path(), &stop).unwrap();
                }
                (second, _) => panic!("{held} {then}: {second:?}"),
            }
        }
    }

    #[test]
    fn a_cache_that_many_steps_make_at_once_is_one() {
        let caches = tempfile::tempdir().unwrap();
        let open = || {
            let stop = Stop::new().unwrap();
            let cache = wanted("shared").open(caches.path(), &stop).unwrap();
            fs::write(cache.directory.join("used"), "").unwrap();
        };
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(open);
            }
        });
        let entries = fs::read_dir(caches.path()).unwrap();
        assert_eq!(entries.count(), 3, "a folder and two locks");
    }
}
