//! How does one entry, or all below a directory, get from one root into the other?

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, Stat, Timespec, Timestamps};
use rustix::io::Errno;

use super::{CopyError, CopyRequest, CopySummary, Rule, Verdict, verdict};
use crate::attributes;
use crate::ignore::Ignore;
use crate::root::{DEEPEST, Root};

/// The copying of one request.
pub(super) struct Copier<'a> {
    request: &'a CopyRequest<'a>,
    pub(super) from: &'a Root,
    ignore: Option<Rule<'a>>,
    /// `--parents`: the patterns that say what takes part; paths are as for `--exclude`.
    pub(super) only: Option<Ignore>,
    into: &'a Root,
    /// Files with several names: device and inode of the source → first copy.
    links: HashMap<(u64, u64), PathBuf>,
    pub(super) summary: CopySummary,
}

/// Attributes that an entry gets.
pub(super) struct Attributes {
    pub mode: u32,
    pub owner: (u32, u32),
    pub modified: Timespec,
}

impl<'a> Copier<'a> {
    pub(super) fn new(
        request: &'a CopyRequest<'a>,
        from: &'a Root,
        ignore: Option<Rule<'a>>,
        into: &'a Root,
    ) -> Self {
        Self {
            request,
            from,
            ignore,
            only: None,
            into,
            links: HashMap::new(),
            summary: CopySummary::default(),
        }
    }

    /// Copies what is in the directory `source` into the existing directory `target`; both canonical.
    pub(super) fn contents(&mut self, source: &Path, target: &Path) -> Result<(), CopyError> {
        // hard links are kept among the files of one source only
        self.links.clear();
        self.directory(source, target, Path::new(""), &mut Vec::new())
    }

    /// Copies one thing that is no directory.
    pub(super) fn one(&mut self, source: &Path, target: &Path) -> Result<(), CopyError> {
        let metadata = look(&self.from.path().join(source)).map_err(failed("look at", source))?;
        self.links.clear();
        self.entry(source, &metadata, target)
    }

    /// Writes a file that the Containerfile itself holds.
    pub(super) fn inline(&mut self, content: &[u8], target: &Path) -> Result<(), CopyError> {
        make_way(self.into, target, "a file")?;
        let place = self.into.path().join(target);
        create(&place)
            .and_then(|mut file| file.write_all(content))
            .map_err(failed("write", target))?;
        let mode = self
            .request
            .mode
            .as_ref()
            .map_or(0o644, |change| change.apply(0o644, false));
        let modified = self
            .request
            .time
            .map_or_else(now, |tv_sec| Timespec { tv_sec, tv_nsec: 0 });
        let attributes = Attributes {
            mode,
            owner: self.request.owner.unwrap_or((0, 0)),
            modified,
        };
        attributes
            .give(&place, FileType::RegularFile)
            .map_err(failed("set the attributes of", target))?;
        self.count(content.len() as u64);
        Ok(())
    }

    /// Copies a file that was fetched.
    pub(super) fn remote(
        &mut self,
        fetched: &Path,
        time: i64,
        target: &Path,
    ) -> Result<(), CopyError> {
        make_way(self.into, target, "a file")?;
        let place = self.into.path().join(target);
        let bytes = File::open(fetched)
            .and_then(|mut from| io::copy(&mut from, &mut create(&place)?))
            .map_err(failed("copy to", target))?;
        let mode = self.request.mode.as_ref();
        let attributes = Attributes {
            mode: mode.map_or(0o600, |change| change.apply(0o600, false)),
            owner: self.request.owner.unwrap_or((0, 0)),
            modified: Timespec {
                tv_sec: time,
                tv_nsec: 0,
            },
        };
        attributes
            .give(&place, FileType::RegularFile)
            .map_err(failed("set the attributes of", target))?;
        self.count(bytes);
        Ok(())
    }

    /// `below` is the path from the copied source directory, which `--exclude` is about. `pending` are directories whose making waits for the
    /// first entry that is wanted below them.
    fn directory(
        &mut self,
        source: &Path,
        target: &Path,
        below: &Path,
        pending: &mut Vec<PathBuf>,
    ) -> Result<(), CopyError> {
        if below.iter().nth(DEEPEST).is_some() {
            return Err(too_deep(source));
        }
        let listed = failed("list", source);
        let entries = fs::read_dir(self.from.path().join(source))
            .and_then(Iterator::collect::<io::Result<Vec<_>>>)
            .map_err(listed)?;
        let mut names: Vec<_> = entries.into_iter().map(|entry| entry.file_name()).collect();
        names.sort();
        for name in names {
            let (source, mut target, below) =
                (source.join(&name), target.join(&name), below.join(&name));
            let metadata =
                look(&self.from.path().join(&source)).map_err(failed("look at", &source))?;
            let is_directory = is_directory(&metadata);
            let (verdict, leads_only) = self.verdict(&source, &below, is_directory);
            if verdict == Verdict::Excluded {
                continue;
            }
            if verdict == Verdict::Included {
                for target in pending.drain(..) {
                    self.make_directory(&target)?;
                }
            }
            if !is_directory {
                if verdict == Verdict::Included {
                    self.entry(&source, &metadata, &target)?;
                }
                continue;
            }
            // A link that leads to a directory is gone through, as it is for the destination itself.
            if self.into.file_type(&target)? == Some(FileType::Symlink) {
                let leads_to = self.into.canonical(&target)?;
                if self.into.file_type(&leads_to)? == Some(FileType::Directory) {
                    target = leads_to;
                }
            }
            if verdict == Verdict::Descend {
                let depth = pending.len();
                let was_there = self.into.file_type(&target)? == Some(FileType::Directory);
                pending.push(target.clone());
                self.directory(&source, &target, &below, pending)?;
                if pending.len() <= depth {
                    if leads_only && was_there {
                        self.give_mode(&metadata, &target)?;
                    } else {
                        self.finish(&source, &metadata, &target, FileType::Directory)?;
                    }
                }
                pending.truncate(depth);
                continue;
            }
            self.make_directory(&target)?;
            self.directory(&source, &target, &below, pending)?;
            // Last, since every entry changes the directory's time.
            self.finish(&source, &metadata, &target, FileType::Directory)?;
            self.count(0);
        }
        Ok(())
    }

    /// What happens to an entry; true for a directory that is not copied itself and only leads to what is: no `--chown` and no `--chmod` is about one that is
    /// there already. What an ignore file hides but for something below is a directory like any other.
    fn verdict(&self, source: &Path, below: &Path, is_directory: bool) -> (Verdict, bool) {
        let of = |rule: Option<Rule<'_>>, path: &Path| {
            rule.map_or(Verdict::Included, |rule| rule(path, is_directory))
        };
        let only = self.only.as_ref();
        let all = [
            of(self.ignore, source),
            of(self.request.exclude, below),
            only.map_or(Verdict::Included, |only| verdict(only, below, is_directory)),
        ];
        let verdict = if all.contains(&Verdict::Excluded) {
            Verdict::Excluded
        } else if all.contains(&Verdict::Descend) {
            Verdict::Descend
        } else {
            Verdict::Included
        };
        (verdict, all[1..].contains(&Verdict::Descend))
    }

    fn make_directory(&self, target: &Path) -> Result<(), CopyError> {
        match self.into.file_type(target)? {
            None => {
                let made = rustix::fs::mkdirat(self.into, target, Mode::from_raw_mode(0o755));
                made.map_err(|errno| failed("create the directory", target)(errno.into()))
            }
            Some(FileType::Directory) => Ok(()),
            Some(other) => Err(CopyError::InTheWay {
                path: target.to_owned(),
                there: describe(other),
                new: "a directory",
            }),
        }
    }

    fn entry(&mut self, source: &Path, metadata: &Stat, target: &Path) -> Result<(), CopyError> {
        let kind = FileType::from_raw_mode(metadata.st_mode);
        make_way(self.into, target, describe(kind))?;
        let (place, origin) = (self.into.path().join(target), self.from.path().join(source));
        let mut bytes = 0;
        match kind {
            FileType::RegularFile => {
                let identity = (metadata.st_dev, metadata.st_ino);
                if metadata.st_nlink > 1 {
                    if let Some(first) = self.links.get(&identity) {
                        fs::hard_link(self.into.path().join(first), &place)
                            .map_err(failed("link", target))?;
                        self.count(0);
                        return Ok(());
                    }
                    self.links.insert(identity, target.to_owned());
                }
                let mut from = OpenOptions::new()
                    .read(true)
                    .custom_flags(libc::O_NOFOLLOW)
                    .open(&origin)
                    .map_err(failed("read", source))?;
                let mut to = create(&place).map_err(failed("write", target))?;
                // Uses copy_file_range, and with it reflinks, where the file systems have them.
                bytes = io::copy(&mut from, &mut to).map_err(failed("copy to", target))?;
            }
            FileType::Symlink => {
                let link = fs::read_link(&origin).map_err(failed("read the link", source))?;
                symlink(link, &place).map_err(failed("make the link", target))?;
            }
            FileType::Socket => {
                tracing::debug!(path = %source.display(), "a socket is not copied");
                return Ok(());
            }
            FileType::Fifo
            | FileType::CharacterDevice
            | FileType::BlockDevice
            | FileType::Directory
            | FileType::Unknown => {
                let made = rustix::fs::mknodat(
                    CWD,
                    &place,
                    kind,
                    Mode::from_raw_mode(0o600),
                    metadata.st_rdev,
                );
                made.map_err(|errno| failed("make the special file", target)(errno.into()))?;
            }
        }
        self.finish(source, metadata, target, kind)?;
        self.count(bytes);
        Ok(())
    }

    fn finish(
        &self,
        source: &Path,
        metadata: &Stat,
        target: &Path,
        kind: FileType,
    ) -> Result<(), CopyError> {
        let place = self.into.path().join(target);
        let attributes = self.attributes(metadata);
        attributes
            .give(&place, kind)
            .map_err(failed("set the attributes of", target))?;
        if matches!(kind, FileType::RegularFile | FileType::Directory) {
            let copied = copy_xattrs(&self.from.path().join(source), &place)
                .map_err(|errno| failed("set the extended attributes of", target)(errno.into()))?;
            if copied {
                attributes
                    .give_time(&place)
                    .map_err(failed("set the time of", target))?;
            }
        }
        Ok(())
    }

    /// Gives a directory the mode of its source and nothing else.
    fn give_mode(&self, metadata: &Stat, target: &Path) -> Result<(), CopyError> {
        attributes::chmod(
            CWD,
            self.into.path().join(target),
            metadata.st_mode & 0o7777,
        )
        .map_err(|error| failed("set the mode of", target)(error.into()))
    }

    fn attributes(&self, metadata: &Stat) -> Attributes {
        let mode = metadata.st_mode & 0o7777;
        Attributes {
            mode: self
                .request
                .mode
                .as_ref()
                .map_or(mode, |change| change.apply(mode, is_directory(metadata))),
            owner: self
                .request
                .owner
                .unwrap_or((metadata.st_uid, metadata.st_gid)),
            modified: Timespec {
                tv_sec: metadata.st_mtime,
                tv_nsec: metadata.st_mtime_nsec.cast_signed(),
            },
        }
    }

    fn count(&mut self, bytes: u64) {
        self.summary.entries += 1;
        self.summary.bytes += bytes;
    }
}

impl Attributes {
    /// The owner first: a change of it clears set-ID bits and capabilities.
    pub(super) fn give(&self, place: &Path, kind: FileType) -> io::Result<()> {
        attributes::chown(CWD, place, self.owner)?;
        if kind != FileType::Symlink {
            attributes::chmod(CWD, place, self.mode)?;
        }
        self.give_time(place)
    }

    fn give_time(&self, place: &Path) -> io::Result<()> {
        let times = Timestamps {
            last_access: self.modified,
            last_modification: self.modified,
        };
        Ok(rustix::fs::utimensat(
            CWD,
            place,
            &times,
            AtFlags::SYMLINK_NOFOLLOW,
        )?)
    }
}

/// Removes a file or link at `target`; a directory is not replaced by something else.
pub(super) fn make_way(into: &Root, target: &Path, new: &'static str) -> Result<(), CopyError> {
    match into.file_type(target)? {
        None => Ok(()),
        Some(FileType::Directory) => Err(CopyError::InTheWay {
            path: target.to_owned(),
            there: "the directory",
            new,
        }),
        Some(_) => fs::remove_file(into.path().join(target)).map_err(failed("replace", target)),
    }
}

pub(super) fn create(place: &Path) -> io::Result<File> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(place)
}

pub(super) fn failed<'a>(
    operation: &'static str,
    path: &'a Path,
) -> impl FnOnce(io::Error) -> CopyError + 'a {
    move |source| CopyError::File {
        operation,
        path: Path::new("/").join(path),
        source,
    }
}

/// Attributes that belong to an image: `user.*` and file capabilities. Labels come from the policy of the machine that runs it, and
/// overlayfs keeps its own marks in its own name space.
pub(super) fn belongs_to_image(name: &[u8]) -> bool {
    name == b"security.capability"
        || (name.starts_with(b"user.") && !name.starts_with(b"user.overlay."))
}

fn look(place: &Path) -> io::Result<Stat> {
    Ok(attributes::stat(CWD, place)?)
}

fn is_directory(metadata: &Stat) -> bool {
    FileType::from_raw_mode(metadata.st_mode) == FileType::Directory
}

/// True if there was any.
fn copy_xattrs(from: &Path, to: &Path) -> Result<bool, Errno> {
    let mut names: Vec<u8> = Vec::new();
    let mut any = false;
    for (name, value) in attributes::recorded_xattrs(CWD, from)? {
        set_xattr(to, &name, &value)?;
        any = true;
    }
    match rustix::fs::llistxattr_query(from) {
        Ok(0) | Err(Errno::NOTSUP) => return Ok(any),
        Ok(length) => names.resize(length, 0),
        Err(errno) => return Err(errno),
    }
    let length = rustix::fs::llistxattr(from, names.as_mut_slice())?;
    for name in names[..length]
        .split(|byte| *byte == 0)
        .filter(|name| belongs_to_image(name))
    {
        let mut value = vec![0; rustix::fs::lgetxattr_query(from, name)?];
        let length = if value.is_empty() {
            0
        } else {
            rustix::fs::lgetxattr(from, name, value.as_mut_slice())?
        };
        set_xattr(to, name, &value[..length])?;
        any = true;
    }
    Ok(any)
}

/// A file system that keeps no such attributes is not worth a failed build.
pub(super) fn set_xattr(to: &Path, name: &[u8], value: &[u8]) -> Result<(), Errno> {
    match attributes::set_xattr(CWD, to, OsStr::from_bytes(name), value) {
        Err(Errno::NOTSUP) => {
            tracing::debug!(path = %to.display(), "the file system keeps no extended attributes");
            Ok(())
        }
        other => other,
    }
}

/// Whoever goes down a tree takes some of the stack for each level.
pub(super) fn not_too_deep(path: &Path) -> Result<(), CopyError> {
    match path.iter().nth(DEEPEST) {
        None => Ok(()),
        Some(_) => Err(too_deep(path)),
    }
}

fn too_deep(path: &Path) -> CopyError {
    failed("copy", path)(io::Error::new(
        io::ErrorKind::InvalidData,
        format!("it is more than {DEEPEST} folders deep, which no image may have"),
    ))
}

fn describe(kind: FileType) -> &'static str {
    match kind {
        FileType::RegularFile => "a file",
        FileType::Directory => "a directory",
        FileType::Symlink => "a symbolic link",
        FileType::Fifo
        | FileType::Socket
        | FileType::CharacterDevice
        | FileType::BlockDevice
        | FileType::Unknown => "a special file",
    }
}

fn now() -> Timespec {
    Timespec {
        tv_sec: 0,
        tv_nsec: libc::UTIME_NOW,
    }
}
