//! Which extended attributes of a file go into an image?

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt as _;

use rustix::fs::{FileType, lgetxattr, llistxattr};
use rustix::io::Errno;

use crate::attributes;

/// The attributes of one file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Xattrs {
    /// What goes into the image.
    pub kept: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Overlayfs' mark.
    pub opaque: bool,
}

impl Xattrs {
    /// By way of `/proc/self/fd`, as there is no call for a name in an open directory.
    pub(super) fn read(
        directory: BorrowedFd<'_>,
        name: &[u8],
        file_type: FileType,
    ) -> Result<Self, Errno> {
        // The `user.` attributes that we keep and the mark exist on files and directories only, capabilities on files.
        if !matches!(file_type, FileType::RegularFile | FileType::Directory) {
            return Ok(Self::default());
        }
        let prefix = format!("/proc/self/fd/{}/", directory.as_raw_fd());
        let path = CString::new([prefix.as_bytes(), name].concat()).map_err(|_| Errno::INVAL)?;
        let mut list = vec![0; 1024];
        let listed = loop {
            match llistxattr(&path, &mut list[..]) {
                Ok(length) => break length,
                Err(Errno::RANGE) => list.resize(64 << 10, 0),
                Err(Errno::OPNOTSUPP) => break 0,
                Err(errno) => return Err(errno),
            }
        };
        let mut xattrs = Self {
            kept: attributes::recorded_xattrs(directory, OsStr::from_bytes(name))?,
            opaque: false,
        };
        for key in list[..listed]
            .split(|byte| *byte == 0)
            .filter(|key| !key.is_empty())
        {
            if matches!(key, b"user.overlay.opaque" | b"trusted.overlay.opaque") {
                xattrs.opaque = value(&path, key)? == b"y";
            } else if is_kept(key) {
                xattrs.kept.insert(key.to_vec(), value(&path, key)?);
            }
        }
        Ok(xattrs)
    }
}

fn value(path: &CString, key: &[u8]) -> Result<Vec<u8>, Errno> {
    // The kernel's limit for one attribute.
    let mut value = vec![0; 64 << 10];
    let length = lgetxattr(path, key, &mut value[..])?;
    value.truncate(length);
    Ok(value)
}

/// Labels of SELinux come from the policy of the machine that runs the image, and overlayfs' marks are not content.
fn is_kept(key: &[u8]) -> bool {
    key == b"security.capability"
        || (key.starts_with(b"user.") && !key.starts_with(b"user.overlay."))
}
