//! Any layer: unpacked and fitted to one below. Nothing may panic, and nothing may get out of its folder.
#![no_main]

use std::fs;
use std::os::unix::fs::symlink;

use libfuzzer_sys::fuzz_target;
use strata_builder::digest::Digest;
use strata_builder::overlay::XattrPrefix;
use strata_builder::unpack::{Limits, unpack_layer};
use strata_fuzz::{Place, archive};

const LIMITS: Limits = Limits {
    bytes: 1 << 20,
    entries: 1000,
    path_bytes: 1 << 20,
};

fuzz_target!(|data: &[u8]| {
    let place = Place::new();
    let blob = archive(data, &place.outside());
    let below = place.path("below");
    fs::create_dir_all(below.join("d/kept")).expect("a folder");
    fs::write(below.join("a"), "a").expect("a file");
    symlink(place.outside(), below.join("link")).expect("a link");
    symlink("../../../outside", below.join("up")).expect("a link");
    let layer = unpack_layer(
        blob.as_slice(),
        (Digest::of(&blob), None),
        &place.path("layer"),
        XattrPrefix::User,
        LIMITS,
    );
    match layer {
        Ok(layer) => drop(layer.settle(&[below])),
        Err(error) => drop(error.to_string()),
    }
    place.check();
});
