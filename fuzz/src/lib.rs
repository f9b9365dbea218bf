//! From bytes to archives, and a place to unpack them that shows what got out.

use std::fs;
use std::path::{Path, PathBuf};

use tar::{EntryType, Header};

/// Parts of names; a name is up to four of them. Such as lead out of a root, if any do.
const PARTS: [&str; 16] = [
    "a", "b", "d", "..", ".", "", "outside", ".wh.a", ".wh..wh..opq", "link", "up", "kept", "é", "etc", "/", "secret",
];

const KINDS: [EntryType; 8] = [
    EntryType::Regular,
    EntryType::Directory,
    EntryType::Symlink,
    EntryType::Link,
    EntryType::Fifo,
    EntryType::Char,
    EntryType::XHeader,
    EntryType::XGlobalHeader,
];

/// An archive: the bytes themselves if the first is odd, else entries that they choose, with proper checksums.
#[must_use]
pub fn archive(data: &[u8], outside: &Path) -> Vec<u8> {
    let Some((first, rest)) = data.split_first() else {
        return Vec::new();
    };
    if first % 2 == 1 {
        return rest.to_vec();
    }
    let outside = outside.to_string_lossy();
    let mut bytes = rest.iter().copied();
    let mut out = Vec::new();
    while let Some(kind) = bytes.next() {
        let mut next = || bytes.next().unwrap_or_default();
        let kind = KINDS[usize::from(kind) % KINDS.len()];
        let name = path(&mut next, &outside);
        let link = path(&mut next, &outside);
        let mode = u32::from(next()) << 4 | u32::from(next() % 16);
        let size = usize::from(next() % 64);
        let mut content: Vec<u8> = (0..size).map(|_| next()).collect();
        if matches!(kind, EntryType::XHeader | EntryType::XGlobalHeader) {
            content = records(&content);
        } else if kind != EntryType::Regular {
            content.clear();
        }
        out.extend(entry(kind, &name, &link, mode, &content));
    }
    out.extend([0; 1024]);
    out
}

fn path(next: &mut impl FnMut() -> u8, outside: &str) -> String {
    let mut parts = Vec::new();
    for _ in 0..next() % 4 + 1 {
        parts.push(PARTS[usize::from(next()) % PARTS.len()]);
    }
    let path = parts.join("/");
    match next() % 8 {
        0 => format!("{outside}/{path}"),
        1 => format!("../../../../../../../..{outside}/{path}"),
        _ => path,
    }
}

/// Records of a PAX header, proper or nearly so.
fn records(bytes: &[u8]) -> Vec<u8> {
    let keys = ["path", "linkpath", "size", "uid", "mtime", "SCHILY.xattr.user.a", "SCHILY.xattr.trusted.overlay.opaque", "GNU.sparse.map"];
    let mut out = Vec::new();
    for pair in bytes.chunks(4) {
        let key = keys[usize::from(pair[0]) % keys.len()];
        let value = match pair.get(1).copied().unwrap_or_default() % 6 {
            0 => "../outside/x".to_owned(),
            1 => "-1".to_owned(),
            2 => "18446744073709551616".to_owned(),
            3 => "3".to_owned(),
            4 => "1.5".to_owned(),
            _ => String::from_utf8_lossy(pair).into_owned(),
        };
        let text = format!(" {key}={value}\n");
        let wrong = usize::from(pair.get(2).copied().unwrap_or_default() == 255);
        let mut length = text.len() + 1;
        while length.to_string().len() + text.len() != length {
            length += 1;
        }
        out.extend(format!("{}{text}", length + wrong).into_bytes());
    }
    out
}

fn entry(kind: EntryType, name: &str, link: &str, mode: u32, content: &[u8]) -> Vec<u8> {
    let mut header = Header::new_ustar();
    let bytes = header.as_mut_bytes();
    let put = |at: &mut [u8], text: &str| {
        let length = at.len().min(text.len());
        at[..length].copy_from_slice(&text.as_bytes()[..length]);
    };
    put(&mut bytes[..100], name);
    put(&mut bytes[157..257], link);
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(u64::from(mode % 3));
    header.set_gid(0);
    header.set_mtime(1_700_000_000);
    header.set_size(content.len() as u64);
    header.set_cksum();
    let mut out = header.as_bytes().to_vec();
    out.extend(content);
    out.resize(out.len().next_multiple_of(512), 0);
    out
}

/// A folder with room for an unpacked archive, beside one that nothing may touch.
pub struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    /// In memory, if there is a file system for that.
    ///
    /// # Panics
    /// If there is no room.
    #[must_use]
    pub fn new() -> Self {
        let memory = Path::new("/dev/shm");
        let folder = if memory.is_dir() {
            tempfile::tempdir_in(memory)
        } else {
            tempfile::tempdir()
        };
        let place = Self {
            folder: folder.expect("a folder"),
        };
        fs::create_dir_all(place.outside().join("d")).expect("a folder");
        fs::write(place.outside().join("secret"), "hush").expect("a file");
        place
    }

    /// What nothing may touch.
    #[must_use]
    pub fn outside(&self) -> PathBuf {
        self.folder.path().join("outside")
    }

    /// A path inside.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Fails if anything outside has changed.
    ///
    /// # Panics
    /// If it has.
    pub fn check(&self) {
        let mut names: Vec<_> = fs::read_dir(self.outside())
            .expect("the folder")
            .map(|entry| entry.expect("an entry").file_name())
            .collect();
        names.sort();
        assert_eq!(names, ["d", "secret"], "something got out");
        assert_eq!(fs::read(self.outside().join("secret")).expect("the file"), b"hush");
        let inside = fs::read_dir(self.outside().join("d")).expect("the folder").count();
        assert_eq!(inside, 0, "something got out");
    }
}

impl Default for Place {
    fn default() -> Self {
        Self::new()
    }
}
