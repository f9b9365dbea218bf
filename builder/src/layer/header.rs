//! How does one entry look in a layer's tar? Attributes in, header blocks out; pure.
//!
//! Plain ustar wherever it can say it; a PAX record in front only for what doesn't fit: long or non-ASCII names, large numbers,
//! extended attributes. No user and group names, no sub-second times, no sparse files.

use std::collections::BTreeMap;

const BLOCK_BYTES: usize = 512;
/// Octal digits and a NUL: mode, ids and device numbers in 8 bytes, size and time in 12.
const MAX_SHORT_NUMBER: u64 = 0o777_7777;
const MAX_LONG_NUMBER: u64 = 0o777_7777_7777;

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// So many bytes follow, then zeros up to a whole block.
    File {
        /// How many.
        size_bytes: u64,
    },
    /// An earlier entry of the same layer, by its name.
    HardLink(Vec<u8>),
    /// With its target.
    Symlink(Vec<u8>),
    /// Its name ends with `/`.
    Directory,
    /// A named pipe.
    Fifo,
    /// A character device: major, minor.
    CharacterDevice(u32, u32),
    /// A block device: major, minor.
    BlockDevice(u32, u32),
}

/// One entry of a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Without a leading `/` or `./`.
    pub name: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Seconds since 1970.
    pub mtime: u64,
    /// By full name.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Entry {
    /// The header with the PAX record before it, if it needs one; a multiple of 512 bytes.
    #[must_use]
    pub fn header(&self) -> Vec<u8> {
        let (flag, size_bytes, link, device) = match &self.kind {
            Kind::File { size_bytes } => (b'0', *size_bytes, &[][..], None),
            Kind::HardLink(name) => (b'1', 0, &name[..], None),
            Kind::Symlink(target) => (b'2', 0, &target[..], None),
            Kind::CharacterDevice(major, minor) => (b'3', 0, &[][..], Some((*major, *minor))),
            Kind::BlockDevice(major, minor) => (b'4', 0, &[][..], Some((*major, *minor))),
            Kind::Directory => (b'5', 0, &[][..], None),
            Kind::Fifo => (b'6', 0, &[][..], None),
        };
        let mut records = Vec::new();
        let (prefix, name) = split_name(&self.name).unwrap_or_else(|| {
            record(&mut records, b"path", &self.name);
            (&[], ascii_tail(&self.name))
        });
        let short_link = if link.len() <= 100 && link.is_ascii() {
            link
        } else {
            record(&mut records, b"linkpath", link);
            ascii_tail(link)
        };
        let mut number = |key: &[u8], value: u64, max: u64| {
            if value <= max {
                return value;
            }
            record(&mut records, key, value.to_string().as_bytes());
            0
        };
        let uid = number(b"uid", self.uid.into(), MAX_SHORT_NUMBER);
        let gid = number(b"gid", self.gid.into(), MAX_SHORT_NUMBER);
        let size_bytes = number(b"size", size_bytes, MAX_LONG_NUMBER);
        let mtime = number(b"mtime", self.mtime, MAX_LONG_NUMBER);
        for (name, value) in &self.xattrs {
            record(&mut records, &[b"SCHILY.xattr.", &name[..]].concat(), value);
        }

        let mut bytes = Vec::with_capacity(3 * BLOCK_BYTES);
        if !records.is_empty() {
            let mut pax = Block::new(b"PaxHeader", b'x');
            pax.octal(100, 8, 0o644);
            pax.octal(124, 12, records.len() as u64);
            bytes.extend_from_slice(&pax.finish());
            bytes.extend_from_slice(&records);
            bytes.resize(bytes.len() + padding(records.len() as u64), 0);
        }
        let mut block = Block::new(name, flag);
        block.octal(100, 8, (self.mode & 0o7777).into());
        block.octal(108, 8, uid);
        block.octal(116, 8, gid);
        block.octal(124, 12, size_bytes);
        block.octal(136, 12, mtime);
        block.text(157, short_link);
        if let Some((major, minor)) = device {
            block.octal(329, 8, major.into());
            block.octal(337, 8, minor.into());
        }
        block.text(345, prefix);
        bytes.extend_from_slice(&block.finish());
        bytes
    }
}

/// Zeros after content of this length.
#[must_use]
pub fn padding(size_bytes: u64) -> usize {
    // Less than a block, so it fits any integer.
    (size_bytes.wrapping_neg() % BLOCK_BYTES as u64) as usize
}

/// What ends a tar.
pub const END: [u8; 2 * BLOCK_BYTES] = [0; 2 * BLOCK_BYTES];

struct Block([u8; BLOCK_BYTES]);

impl Block {
    fn new(name: &[u8], flag: u8) -> Self {
        let mut block = Self([0; BLOCK_BYTES]);
        block.text(0, name);
        block.0[156] = flag;
        block.text(257, b"ustar\x0000");
        // Numbers of a record that doesn't set them.
        for (offset, width) in [(100, 8), (108, 8), (116, 8), (124, 12), (136, 12)] {
            block.octal(offset, width, 0);
        }
        block
    }

    fn text(&mut self, offset: usize, text: &[u8]) {
        self.0[offset..offset + text.len()].copy_from_slice(text);
    }

    fn octal(&mut self, offset: usize, width: usize, number: u64) {
        let digits = format!("{number:0width$o}", width = width - 1);
        self.text(offset, digits.as_bytes());
    }

    /// The checksum counts its own field as spaces.
    fn finish(mut self) -> [u8; BLOCK_BYTES] {
        self.text(148, b"        ");
        let sum: u64 = self.0.iter().map(|byte| u64::from(*byte)).sum();
        self.text(148, format!("{sum:06o}\0 ").as_bytes());
        self.0
    }
}

/// `LENGTH KEY=VALUE\n`, where the length counts its own digits.
fn record(records: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    records.extend_from_slice(length.to_string().as_bytes());
    for part in [b" ", key, b"=", value, b"\n"] {
        records.extend_from_slice(part);
    }
}

/// A name as ustar's prefix and name; none if it doesn't fit.
fn split_name(name: &[u8]) -> Option<(&[u8], &[u8])> {
    if !name.is_ascii() {
        return None;
    }
    if name.len() <= 100 {
        return Some((&[], name));
    }
    // The name keeps at least one byte besides a directory's `/`.
    let body = &name[..name.len() - 1];
    let slash = (name.len() - 101..body.len().min(156)).find(|index| body[*index] == b'/')?;
    Some((&name[..slash], &name[slash + 1..]))
}

/// What a reader without PAX sees: the end of the name.
fn ascii_tail(name: &[u8]) -> &[u8] {
    let start = name
        .iter()
        .rposition(|byte| !byte.is_ascii())
        .map_or(0, |index| index + 1);
    &name[start.max(name.len().saturating_sub(100))..]
}

#[cfg(test)]
mod tests;
