//! Any objects of an ostree commit: its folders are found and made. Nothing may panic or get out of the root, and what is said to be a folder becomes one.
//!
//! An input is a row of objects: kind, length (two bytes), content. Where a content has `REF` and a number, the checksum of that earlier object begins; the last object is
//! the commit. So the fuzzer changes what objects say without breaking their names.
#![no_main]

use std::fs;
use std::path::Path;

use libfuzzer_sys::fuzz_target;
use strata_builder::digest::Digest;
use strata_builder::ostree::{Folders, Kind};
use strata_fuzz::Place;

const KINDS: [&str; 3] = ["dirmeta", "dirtree", "commit"];
const PATHS: [&str; 5] = ["", "usr", "usr/bin", "etc/conf", "var/lib"];
/// Checksums in one input: a few objects that hold each other make any number of folders, and there is nothing to learn from that.
const MOST_REFERENCES: usize = 24;

fuzz_target!(|data: &[u8]| {
    let (tar, commit) = layer(data);
    let Ok(folders) = Folders::read(tar.as_slice(), commit) else {
        return;
    };
    let place = Place::new();
    for (number, path) in PATHS.into_iter().enumerate() {
        let root = place.path(&number.to_string());
        fs::create_dir(&root).expect("a folder");
        let is_folder = folders.kind(Path::new(path)) == Kind::Folder;
        let made = folders.make(Path::new(path), &root);
        if is_folder && made.is_ok() {
            assert!(root.join(path).is_dir(), "{path:?} is said to be a folder");
        }
    }
    place.check();
});

/// A tar of the objects, and the checksum of the last one.
fn layer(mut data: &[u8]) -> (Vec<u8>, [u8; 32]) {
    let mut tar = tar::Builder::new(Vec::new());
    let mut checksums = Vec::<[u8; 32]>::new();
    let mut references = 0;
    while let [kind, low, high, rest @ ..] = data {
        let length = usize::from(u16::from_le_bytes([*low, *high])).min(rest.len());
        let (content, after) = rest.split_at(length);
        data = after;
        let mut content = content.to_vec();
        for at in 0..content.len().saturating_sub(31) {
            if let [b'R', b'E', b'F', number] = content[at..at + 4]
                && let Some(checksum) = checksums.get(usize::from(number))
            {
                references += 1;
                content[at..at + 32].copy_from_slice(checksum);
            }
        }
        if references > MOST_REFERENCES {
            break;
        }
        let hex = Digest::of(&content).hex();
        let kind = KINDS[usize::from(*kind) % KINDS.len()];
        let name = format!(
            "sysroot/ostree/repo/objects/{}/{}.{kind}",
            &hex[..2],
            &hex[2..]
        );
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, content.as_slice())
            .expect("memory");
        let byte = |at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).expect("a digest");
        checksums.push(std::array::from_fn(byte));
    }
    let tar = tar.into_inner().expect("memory");
    (tar, checksums.last().copied().unwrap_or_default())
}
