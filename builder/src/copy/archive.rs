//! Is a file that ADD takes a tar archive, and what comes out of it?
//!
//! Names and links inside the archive lead nowhere outside the destination directory, and it may come to no more than a layer of an image may.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, Timespec};
use tar::{Archive, Entry, EntryType};

use super::tree::{
    Attributes, belongs_to_image, create, failed, make_way, not_too_deep, set_xattr,
};
use super::{CopyError, CopyRequest, CopySummary};
use crate::decompress::{WindowTooLarge, decompress};
use crate::root::Root;
use crate::unpack::{DEFAULT_LIMITS, Limits};

/// Headers, PAX records and long names of one entry together, which are held in memory; Linux takes at most 64 KiB of extended attributes and 4 KiB of path per file.
const HEADERS_LIMIT_BYTES: u64 = 1 << 20;

/// Unpacks `place` (`source` in its root) below `target`, made if absent. False if it is no archive. A `fresh` target, which this ADD makes, takes the attributes
/// that the archive has for its root; another one keeps its own.
pub(super) fn unpack(
    request: &CopyRequest<'_>,
    place: &Path,
    source: &Path,
    into: &Root,
    target: &Path,
    fresh: bool,
    summary: &mut CopySummary,
) -> Result<bool, CopyError> {
    if !fs::symlink_metadata(place)
        .map_err(failed("look at", source))?
        .is_file()
    {
        return Ok(false);
    }
    let file = File::open(place).map_err(failed("read", source))?;
    let mut content =
        decompress(BufReader::with_capacity(128 << 10, file)).map_err(failed("read", source))?;
    let first = first_block(&mut content).map_err(failed("read", source))?;
    let Some(first) = first else {
        return Ok(false);
    };
    into.create_directories(target, request.owner.unwrap_or((0, 0)))?;
    let inside = Root::open(&into.path().join(target))?;
    let left_bytes = Cell::new(HEADERS_LIMIT_BYTES);
    let mut archive = Archive::new(Bounded {
        inner: io::Cursor::new(first).chain(content),
        left_bytes: &left_bytes,
    });
    let mut directories = BTreeMap::new();
    let mut total = Total::default();
    let too_large = |(limit, unit)| CopyError::TooLarge {
        path: source.to_owned(),
        limit,
        unit,
    };
    let entries = archive.entries().map_err(failed("unpack", source))?;
    for entry in entries {
        let entry = entry.map_err(failed("unpack", source))?;
        total
            .add(entry.size(), kept_path_bytes(&entry), DEFAULT_LIMITS)
            .map_err(too_large)?;
        let stored_bytes = stored_bytes(&entry).map_err(failed("unpack", source))?;
        left_bytes.set(stored_bytes.saturating_add(HEADERS_LIMIT_BYTES));
        if fresh && is_root(&entry).map_err(failed("unpack", source))? {
            let attributes = attributes(request, &entry).map_err(failed("unpack", source))?;
            directories.insert(PathBuf::new(), attributes);
            continue;
        }
        let implied = unpack_entry(request, entry, source, &inside, &mut directories, summary)?;
        total.implied(&implied, DEFAULT_LIMITS).map_err(too_large)?;
    }
    // Times of directories last, deepest first, since every entry changes them; the last entry of a name counts.
    for (path, attributes) in directories.into_iter().rev() {
        attributes
            .give(&inside.path().join(&path), FileType::Directory)
            .map_err(failed("set the attributes of", &path))?;
    }
    Ok(true)
}

/// What an archive comes to so far.
#[derive(Default)]
struct Total {
    bytes: u64,
    entries: u64,
    path_bytes: u64,
}

impl Total {
    /// With another entry; the limit that is exceeded, if one is.
    fn add(
        &mut self,
        size_bytes: u64,
        path_bytes: u64,
        limits: Limits,
    ) -> Result<(), (u64, &'static str)> {
        self.bytes = self.bytes.saturating_add(size_bytes);
        self.path_bytes += path_bytes;
        self.entries += 1;
        self.within(limits)
    }

    /// With folders that the last entry implied.
    fn implied(&mut self, paths: &[PathBuf], limits: Limits) -> Result<(), (u64, &'static str)> {
        self.entries += paths.len() as u64;
        self.within(limits)
    }

    fn within(&self, limits: Limits) -> Result<(), (u64, &'static str)> {
        if self.bytes > limits.bytes {
            Err((limits.bytes, "bytes"))
        } else if self.entries > limits.entries {
            Err((limits.entries, "entries"))
        } else if self.path_bytes > limits.path_bytes {
            Err((limits.path_bytes, "bytes of paths"))
        } else {
            Ok(())
        }
    }
}

/// Paths of folders are kept until the end, for their times.
fn kept_path_bytes(entry: &Entry<'_, impl Read>) -> u64 {
    match entry.header().entry_type().is_dir() {
        true => entry.path_bytes().len() as u64,
        false => 0,
    }
}

/// A stream of which only so much is read as the current entry and the next one's headers may have.
struct Bounded<'a, R> {
    inner: R,
    left_bytes: &'a Cell<u64>,
}

impl<R: Read> Read for Bounded<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.left_bytes.get();
        let wanted = usize::try_from(left).map_or(buffer.len(), |left| left.min(buffer.len()));
        if wanted == 0 && !buffer.is_empty() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the headers of an entry are larger than 1 MiB",
            ));
        }
        let read = self.inner.read(&mut buffer[..wanted])?;
        self.left_bytes.set(left - read as u64);
        Ok(read)
    }
}

/// What follows the header in the archive; a sparse file's size counts its holes, too.
fn stored_bytes(entry: &Entry<'_, impl Read>) -> io::Result<u64> {
    match entry.header().entry_type() {
        EntryType::GNUSparse => entry.header().entry_size(),
        _ => Ok(entry.size()),
    }
}

/// The first header, if it is one: its checksum tells. An archive of nothing but zeros isn't taken for one.
///
/// # Errors
/// If only a larger window of the decoder would tell.
fn first_block(content: &mut dyn Read) -> io::Result<Option<Vec<u8>>> {
    let mut block = Vec::new();
    match content.take(512).read_to_end(&mut block) {
        Ok(_) => Ok(is_header(&block).then_some(block)),
        Err(error) if WindowTooLarge::is_in(&error) => Err(error),
        // What only begins like a compressed file is an ordinary one.
        Err(_) => Ok(None),
    }
}

fn is_header(block: &[u8]) -> bool {
    let Ok(bytes): Result<[u8; 512], _> = block.try_into() else {
        return false;
    };
    let mut header = tar::Header::new_old();
    *header.as_mut_bytes() = bytes;
    let sum: u32 = bytes
        .iter()
        .enumerate()
        .map(|(at, byte)| {
            if (148..156).contains(&at) {
                32
            } else {
                u32::from(*byte)
            }
        })
        .sum();
    header.cksum().is_ok_and(|said| said == sum)
}

/// Returns the folders that it had to make for the entry.
fn unpack_entry(
    request: &CopyRequest<'_>,
    mut entry: Entry<'_, impl Read>,
    source: &Path,
    inside: &Root,
    directories: &mut BTreeMap<PathBuf, Attributes>,
    summary: &mut CopySummary,
) -> Result<Vec<PathBuf>, CopyError> {
    let header = |source_error| failed("unpack", source)(source_error);
    let name = super::clean(&entry.path().map_err(header)?.to_string_lossy());
    if name.as_os_str().is_empty() {
        // The destination keeps its own attributes.
        return Ok(Vec::new());
    }
    not_too_deep(&name)?;
    let path = inside.canonical_parent(&name)?;
    // Links lead deeper than a name looks.
    not_too_deep(&path)?;
    let implied = match path.parent() {
        Some(parent) => inside.create_directories(parent, request.owner.unwrap_or((0, 0)))?,
        None => Vec::new(),
    };
    let place = inside.path().join(&path);
    let attributes = attributes(request, &entry).map_err(header)?;
    let kind = entry.header().entry_type();
    let xattrs = image_xattrs(&mut entry).map_err(header)?;
    match kind {
        EntryType::Directory => {
            if inside.file_type(&path)? != Some(FileType::Directory) {
                make_way(inside, &path, "a directory")?;
                fs::create_dir(&place).map_err(failed("create the directory", &path))?;
            }
            directories.insert(path, attributes);
            summary.entries += 1;
            return Ok(implied);
        }
        EntryType::Link => {
            let first = inside.canonical_parent(&super::clean(
                &link_name(&entry).map_err(header)?.to_string_lossy(),
            ))?;
            if first != path {
                make_way(inside, &path, "a hard link")?;
                fs::hard_link(inside.path().join(first), &place).map_err(failed("link", &path))?;
            }
            // the file's attributes are what its last name says
            if inside.file_type(&path)? == Some(FileType::RegularFile) {
                attributes
                    .give(&place, FileType::RegularFile)
                    .map_err(failed("set the attributes of", &path))?;
            }
            summary.entries += 1;
            return Ok(implied);
        }
        EntryType::Symlink => {
            make_way(inside, &path, "a symbolic link")?;
            symlink(link_name(&entry).map_err(header)?, &place)
                .map_err(failed("make the link", &path))?;
            attributes
                .give(&place, FileType::Symlink)
                .map_err(failed("set the attributes of", &path))?;
        }
        EntryType::Char | EntryType::Block | EntryType::Fifo => {
            make_way(inside, &path, "a special file")?;
            let number =
                |part: io::Result<Option<u32>>| part.map(Option::unwrap_or_default).map_err(header);
            let made = match kind {
                EntryType::Char => FileType::CharacterDevice,
                EntryType::Block => FileType::BlockDevice,
                _ => FileType::Fifo,
            };
            // a fifo's numbers may be blank
            let device = match made {
                FileType::Fifo => 0,
                _ => rustix::fs::makedev(
                    number(entry.header().device_major())?,
                    number(entry.header().device_minor())?,
                ),
            };
            rustix::fs::mknodat(CWD, &place, made, Mode::from_raw_mode(0o600), device)
                .map_err(|errno| failed("make the special file", &path)(errno.into()))?;
            attributes
                .give(&place, made)
                .map_err(failed("set the attributes of", &path))?;
        }
        _ => {
            make_way(inside, &path, "a file")?;
            let mut file = create(&place).map_err(failed("write", &path))?;
            summary.bytes += io::copy(&mut entry, &mut file).map_err(failed("write", &path))?;
            attributes
                .give(&place, FileType::RegularFile)
                .map_err(failed("set the attributes of", &path))?;
            for (name, value) in xattrs {
                set_xattr(&place, &name, &value).map_err(|errno| {
                    failed("set the extended attributes of", &path)(errno.into())
                })?;
            }
        }
    }
    summary.entries += 1;
    Ok(implied)
}

fn is_root(entry: &Entry<'_, impl Read>) -> io::Result<bool> {
    let name = super::clean(&entry.path()?.to_string_lossy());
    Ok(name.as_os_str().is_empty() && entry.header().entry_type().is_dir())
}

fn link_name(entry: &Entry<'_, impl Read>) -> io::Result<PathBuf> {
    entry
        .link_name()?
        .map(|name| name.into_owned())
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "a link to nothing"))
}

fn attributes(request: &CopyRequest<'_>, entry: &Entry<'_, impl Read>) -> io::Result<Attributes> {
    let header = entry.header();
    let number = |value: u64| {
        u32::try_from(value)
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "an owner beyond 32 bits"))
    };
    let owner = match request.archive_owner {
        Some(owner) => owner,
        None => (number(header.uid()?)?, number(header.gid()?)?),
    };
    let mode = header.mode()? & 0o7777;
    let mode = request.mode.as_ref().map_or(mode, |change| {
        change.apply(mode, header.entry_type().is_dir())
    });
    let modified = Timespec {
        tv_sec: header.mtime()?.cast_signed(),
        tv_nsec: 0,
    };
    Ok(Attributes {
        mode,
        owner,
        modified,
    })
}

fn image_xattrs(entry: &mut Entry<'_, impl Read>) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let Some(extensions) = entry.pax_extensions()? else {
        return Ok(Vec::new());
    };
    let mut found = Vec::new();
    for extension in extensions {
        let extension = extension?;
        if let Some(name) = extension.key_bytes().strip_prefix(b"SCHILY.xattr.")
            && belongs_to_image(name)
        {
            found.push((name.to_vec(), extension.value_bytes().to_vec()));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_comes_to_no_more_than_its_limits() {
        let limits = Limits {
            bytes: 10,
            entries: 3,
            path_bytes: 100,
        };
        for (sizes, path_bytes, exceeded) in [
            (&[5, 5, 0][..], 30, None),
            (&[5, 6], 30, Some((10, "bytes"))),
            (&[1, u64::MAX], 30, Some((10, "bytes"))),
            (&[0, 0, 0, 0], 0, Some((3, "entries"))),
            (&[0, 0, 0], 40, Some((100, "bytes of paths"))),
        ] {
            let mut total = Total::default();
            let mut added = sizes
                .iter()
                .map(|size| total.add(*size, path_bytes, limits));
            assert_eq!(added.find_map(Result::err), exceeded, "{sizes:?}");
        }
        let mut total = Total::default();
        let implied = ["a", "a/b"].map(PathBuf::from);
        assert_eq!(total.implied(&implied, limits), Ok(()));
        let exceeded = total.implied(&implied, limits);
        assert_eq!(exceeded, Err((3, "entries")));
    }
}
