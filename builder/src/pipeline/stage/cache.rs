//! Where does a cache mount keep its files? A folder per id, owner and mode, as in BuildKit.

use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use rustix::io::Errno;

use super::{StepError, make_folder, scratch};
use crate::copy::{CopyRequest, copy};
use crate::digest::Digest;
use crate::root::Root;

/// A cache that a step uses.
#[derive(Debug)]
pub(super) struct Cache {
    pub id: String,
    pub owner: (u32, u32),
    pub mode: u32,
    /// Its files; set when it is open.
    pub directory: PathBuf,
    /// Held as long as it is used, for builds that keep caches in one folder.
    pub lock: Option<File>,
}

impl Cache {
    /// Finds or makes the cache's folder below `caches`. A new one is filled from `filled`. Of a `private` cache that another build uses there
    /// are several; for a `locked` one this waits.
    pub(super) fn open(
        mut self,
        caches: &Path,
        sharing: &str,
        filled: Option<(&Root, &str)>,
    ) -> Result<Self, StepError> {
        make_folder(caches)?;
        let key = format!("{}\0{:?}\0{:o}", self.id, self.owner, self.mode);
        let name = Digest::of(key.as_bytes()).hex()[..32].to_owned();
        let mut number = 0;
        let (directory, lock) = loop {
            let directory = caches.join(format!("{name}-{number}"));
            let path = directory.with_extension("lock");
            let lock = File::create(&path).map_err(scratch("lock", &path))?;
            let operation = match sharing {
                "locked" => FlockOperation::LockExclusive,
                "private" => FlockOperation::NonBlockingLockExclusive,
                _ => FlockOperation::LockShared,
            };
            match rustix::fs::flock(&lock, operation) {
                Ok(()) => break (directory, lock),
                Err(Errno::WOULDBLOCK) => number += 1,
                Err(errno) => return Err(scratch("lock", &path)(errno.into())),
            }
        };
        if !directory.exists() {
            let new = directory.with_extension(format!("new-{}", std::process::id()));
            make_folder(&new)?;
            if let Some((from, path)) = filled {
                let request = CopyRequest {
                    sources: vec![path.to_owned()],
                    destination: "/".to_owned(),
                    ..CopyRequest::default()
                };
                copy(&request, from, None, &Root::open(&new)?)?;
            }
            chown(&new, Some(self.owner.0), Some(self.owner.1))
                .and_then(|()| fs::set_permissions(&new, fs::Permissions::from_mode(self.mode)))
                .and_then(|()| fs::rename(&new, &directory))
                .map_err(scratch("make the cache", &directory))?;
        }
        self.directory = directory;
        self.lock = Some(lock);
        Ok(self)
    }
}
