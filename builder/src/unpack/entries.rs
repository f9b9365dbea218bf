//! Which entries does this tar stream hold?
//!
//! POSIX ustar, GNU long names and PAX records, read one header at a time, so that no header makes us allocate more than
//! [`EXTENSION_LIMIT_BYTES`]. PAX values may hold any byte: file capabilities regularly contain a line feed.

use std::io::{self, Read};

use tar::{EntryType, Header};

/// PAX records and long names of one entry together; Linux takes at most 64 KiB of extended attributes and 4 KiB of path per file.
const EXTENSION_LIMIT_BYTES: u64 = 1 << 20;
const BLOCK_BYTES: usize = 512;
/// Where a header has the type of its entry: 0 in archives from before POSIX, which `tar` reads as `0`.
const TYPE_BYTE: usize = 156;

/// What an entry makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    HardLink,
    Symlink,
    Directory,
    Fifo,
    CharDevice,
    BlockDevice,
}

/// One entry; the bytes of a file follow in the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// As written: it may be absolute, end in `/` or contain `..`.
    pub path: Vec<u8>,
    pub kind: Kind,
    /// The twelve permission bits.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Seconds since 1970 and nanoseconds.
    pub mtime: (i64, u32),
    /// Of the bytes that follow; 0 for all but files.
    pub size_bytes: u64,
    /// Target of a link, as written.
    pub link: Vec<u8>,
    /// Major and minor number.
    pub device: (u32, u32),
    /// Names and values, in the order of the records.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// The stream can't be read on.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    /// Below the tar: the transfer or the compression.
    #[error("read the layer")]
    Read(#[source] io::Error),
    /// Not a tar that we know how to unpack.
    #[error("malformed tar: {0}")]
    Malformed(&'static str),
}

impl From<io::Error> for TarError {
    fn from(error: io::Error) -> Self {
        Self::Read(error)
    }
}

/// A stream of which no more than so many bytes are read: what is skipped costs time, too.
pub(crate) struct Bounded<R> {
    inner: R,
    left: u64,
}

impl<R> Bounded<R> {
    pub fn new(inner: R, limit_bytes: u64) -> Self {
        Self {
            inner,
            left: limit_bytes,
        }
    }

    pub fn into_inner(self) -> R {
        self.inner
    }
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        match self.left.checked_sub(read as u64) {
            Some(left) => self.left = left,
            None => {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "the archive is larger than any that is expected",
                ));
            }
        }
        Ok(read)
    }
}

/// Reads entries from `inner`; between two calls of [`Self::next`] the bytes of the entry are read through [`Self::content`].
pub(crate) struct EntryReader<R> {
    inner: R,
    /// Of the current entry, not yet read.
    content_bytes: u64,
    padding_bytes: u64,
}

/// What PAX records and GNU long names say about the entry after them.
#[derive(Default)]
struct Extension {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size_bytes: Option<u64>,
    uid: Option<u32>,
    gid: Option<u32>,
    mtime: Option<(i64, u32)>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl<R: Read> EntryReader<R> {
    pub fn new(inner: R) -> Self {
        Self {
            inner,
            content_bytes: 0,
            padding_bytes: 0,
        }
    }

    /// The stream after the end of the archive.
    pub fn into_inner(self) -> R {
        self.inner
    }

    /// The next entry; none at the end of the archive.
    pub fn next(&mut self) -> Result<Option<Entry>, TarError> {
        let mut extension = Extension::default();
        // Of all extension headers of the entry.
        let mut left = EXTENSION_LIMIT_BYTES;
        loop {
            self.skip_content()?;
            let mut block = [0; BLOCK_BYTES];
            if !self.read_block(&mut block)? || block.iter().all(|&byte| byte == 0) {
                return Ok(None);
            }
            let header = Header::from_byte_slice(&block);
            check_sum(header)?;
            let size_bytes = number(header.entry_size())?;
            match header.entry_type() {
                EntryType::XHeader => {
                    let records = self.read_extension(size_bytes, &mut left)?;
                    extension.add_records(&records)?;
                }
                EntryType::GNULongName => {
                    extension.path = Some(until_nul(self.read_extension(size_bytes, &mut left)?));
                }
                EntryType::GNULongLink => {
                    extension.link = Some(until_nul(self.read_extension(size_bytes, &mut left)?));
                }
                // Comments, such as the commit of a `git archive`.
                EntryType::XGlobalHeader => self.expect_content(size_bytes),
                kind => return self.entry(header, kind, size_bytes, extension).map(Some),
            }
        }
    }

    /// Reads bytes of the current entry; 0 when there are no more.
    pub fn content(&mut self, buffer: &mut [u8]) -> Result<usize, TarError> {
        let wanted = buffer
            .len()
            .min(usize::try_from(self.content_bytes).unwrap_or(usize::MAX));
        if wanted == 0 {
            return Ok(0);
        }
        let read = self.inner.read(&mut buffer[..wanted])?;
        if read == 0 {
            return Err(TarError::Read(io::ErrorKind::UnexpectedEof.into()));
        }
        self.content_bytes -= read as u64;
        Ok(read)
    }

    fn entry(
        &mut self,
        header: &Header,
        entry_type: EntryType,
        header_size_bytes: u64,
        extension: Extension,
    ) -> Result<Entry, TarError> {
        let path = extension
            .path
            .unwrap_or_else(|| header.path_bytes().into_owned());
        let kind = match entry_type {
            // Archives from before POSIX mark a directory by the slash alone.
            EntryType::Regular | EntryType::Continuous if path.ends_with(b"/") => Kind::Directory,
            EntryType::Regular | EntryType::Continuous => Kind::File,
            EntryType::Link => Kind::HardLink,
            EntryType::Symlink => Kind::Symlink,
            EntryType::Directory => Kind::Directory,
            EntryType::Fifo => Kind::Fifo,
            EntryType::Char => Kind::CharDevice,
            EntryType::Block => Kind::BlockDevice,
            EntryType::GNUSparse => {
                return Err(TarError::Malformed("sparse files aren't supported"));
            }
            _ => return Err(TarError::Malformed("unknown type of entry")),
        };
        let size_bytes = extension.size_bytes.unwrap_or(header_size_bytes);
        // As Go's and Python's readers have it: what can have no content has none behind it, whatever its size field says. Who reads on elsewhere sees other entries.
        let is_old_folder = header.as_bytes()[TYPE_BYTE] == 0 && kind == Kind::Directory;
        let has_content = match entry_type {
            EntryType::Regular | EntryType::Continuous => !is_old_folder,
            _ => false,
        };
        self.expect_content(if has_content { size_bytes } else { 0 });
        let device = |number: io::Result<Option<u32>>| {
            Ok::<_, TarError>(number.unwrap_or(None).unwrap_or(0))
        };
        let id = |number: io::Result<u64>| {
            u32::try_from(number.map_err(|_| TarError::Malformed("owner is not a number"))?)
                .map_err(|_| TarError::Malformed("owner is out of range"))
        };
        let (uid, gid) = (
            extension.uid.map_or_else(|| id(header.uid()), Ok)?,
            extension.gid.map_or_else(|| id(header.gid()), Ok)?,
        );
        // The kernel's word for "leave it".
        if uid == u32::MAX || gid == u32::MAX {
            return Err(TarError::Malformed("owner is out of range"));
        }
        Ok(Entry {
            kind,
            mode: header
                .mode()
                .map_err(|_| TarError::Malformed("mode is not a number"))?
                & 0o7777,
            uid,
            gid,
            mtime: match extension.mtime {
                Some(mtime) => mtime,
                None => (
                    i64::try_from(number(header.mtime())?).unwrap_or(i64::MAX),
                    0,
                ),
            },
            size_bytes: if kind == Kind::File { size_bytes } else { 0 },
            link: extension
                .link
                .or_else(|| header.link_name_bytes().map(|link| link.into_owned()))
                .unwrap_or_default(),
            device: (
                device(header.device_major())?,
                device(header.device_minor())?,
            ),
            xattrs: extension.xattrs,
            path,
        })
    }

    fn expect_content(&mut self, size_bytes: u64) {
        self.content_bytes = size_bytes;
        self.padding_bytes =
            (BLOCK_BYTES as u64 - size_bytes % BLOCK_BYTES as u64) % BLOCK_BYTES as u64;
    }

    fn skip_content(&mut self) -> Result<(), TarError> {
        let mut sink = [0; 4096];
        while self.content(&mut sink)? > 0 {}
        let padding = usize::try_from(std::mem::take(&mut self.padding_bytes)).unwrap_or(0);
        Ok(self.inner.read_exact(&mut sink[..padding])?)
    }

    /// False at the end of the stream, where some writers leave the final zero blocks out.
    fn read_block(&mut self, block: &mut [u8; BLOCK_BYTES]) -> Result<bool, TarError> {
        let mut filled = 0;
        while filled < BLOCK_BYTES {
            match self.inner.read(&mut block[filled..])? {
                0 if filled == 0 => return Ok(false),
                0 => return Err(TarError::Read(io::ErrorKind::UnexpectedEof.into())),
                read => filled += read,
            }
        }
        Ok(true)
    }

    fn read_extension(&mut self, size_bytes: u64, left: &mut u64) -> Result<Vec<u8>, TarError> {
        *left = left
            .checked_sub(size_bytes.saturating_add(BLOCK_BYTES as u64))
            .ok_or(TarError::Malformed(
                "the extended headers of an entry are larger than 1 MiB",
            ))?;
        self.expect_content(size_bytes);
        let mut bytes = vec![0; usize::try_from(size_bytes).unwrap_or(0)];
        let mut filled = 0;
        while filled < bytes.len() {
            filled += self.content(&mut bytes[filled..])?;
        }
        Ok(bytes)
    }
}

impl Extension {
    /// Records are `LENGTH KEY=VALUE\n`, where LENGTH counts the whole record; an empty value takes the key back.
    fn add_records(&mut self, mut records: &[u8]) -> Result<(), TarError> {
        const BROKEN: TarError = TarError::Malformed("broken PAX record");
        while !records.is_empty() {
            let space = records
                .iter()
                .position(|&byte| byte == b' ')
                .ok_or(BROKEN)?;
            let length: usize = text(&records[..space])?.parse().map_err(|_| BROKEN)?;
            if length <= space + 1 || length > records.len() || records[length - 1] != b'\n' {
                return Err(BROKEN);
            }
            let record = &records[space + 1..length - 1];
            let equals = record.iter().position(|&byte| byte == b'=').ok_or(BROKEN)?;
            self.add_record(&record[..equals], &record[equals + 1..])?;
            records = &records[length..];
        }
        Ok(())
    }

    fn add_record(&mut self, key: &[u8], value: &[u8]) -> Result<(), TarError> {
        const BROKEN: TarError = TarError::Malformed("a PAX number is not one");
        let present = !value.is_empty();
        match key {
            b"path" => self.path = present.then(|| value.to_vec()),
            b"linkpath" => self.link = present.then(|| value.to_vec()),
            b"size" if present => self.size_bytes = Some(text(value)?.parse().map_err(|_| BROKEN)?),
            b"uid" if present => self.uid = Some(text(value)?.parse().map_err(|_| BROKEN)?),
            b"gid" if present => self.gid = Some(text(value)?.parse().map_err(|_| BROKEN)?),
            b"mtime" if present => self.mtime = Some(timestamp(text(value)?).ok_or(BROKEN)?),
            _ if key.starts_with(b"GNU.sparse.") => {
                return Err(TarError::Malformed("sparse files aren't supported"));
            }
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.xattrs.push((name.to_vec(), value.to_vec()));
                }
            }
        }
        Ok(())
    }
}

/// `1700000000.25` and `-1.5`: nanoseconds always count upwards.
fn timestamp(text: &str) -> Option<(i64, u32)> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().ok()?;
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let digits: String = fraction
        .chars()
        .chain(std::iter::repeat('0'))
        .take(9)
        .collect();
    let nanoseconds: u32 = digits.parse().ok()?;
    if whole.starts_with('-') && nanoseconds > 0 {
        return Some((seconds.checked_sub(1)?, 1_000_000_000 - nanoseconds));
    }
    Some((seconds, nanoseconds))
}

fn check_sum(header: &Header) -> Result<(), TarError> {
    const FIELD: std::ops::Range<usize> = 148..156;
    let sum: u32 = header
        .as_bytes()
        .iter()
        .enumerate()
        .map(|(index, &byte)| u32::from(if FIELD.contains(&index) { b' ' } else { byte }))
        .sum();
    match header.cksum() {
        Ok(stated) if stated == sum => Ok(()),
        _ => Err(TarError::Malformed("checksum of a header is wrong")),
    }
}

fn number(number: io::Result<u64>) -> Result<u64, TarError> {
    number.map_err(|_| TarError::Malformed("a number in a header is not one"))
}

fn text(bytes: &[u8]) -> Result<&str, TarError> {
    std::str::from_utf8(bytes).map_err(|_| TarError::Malformed("broken PAX record"))
}

fn until_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    if let Some(end) = bytes.iter().position(|&byte| byte == 0) {
        bytes.truncate(end);
    }
    bytes
}
