//! Any archive: ADDed to a root that has links out of it. Nothing may panic, and nothing may get out.
#![no_main]

use std::fs;
use std::os::unix::fs::symlink;

use libfuzzer_sys::fuzz_target;
use strata_builder::copy::{CopyRequest, copy};
use strata_builder::root::Root;
use strata_fuzz::{Place, archive};

fuzz_target!(|data: &[u8]| {
    let place = Place::new();
    let (context, root) = (place.path("context"), place.path("root"));
    fs::create_dir_all(&context).expect("a folder");
    fs::create_dir_all(root.join("x/d/kept")).expect("a folder");
    symlink(place.outside(), root.join("x/link")).expect("a link");
    symlink("../../../outside", root.join("x/up")).expect("a link");
    fs::write(context.join("a.tar"), archive(data, &place.outside())).expect("a file");
    let request = CopyRequest {
        sources: vec!["a.tar".to_owned()],
        destination: "/x/".to_owned(),
        workdir: "/".to_owned(),
        unpack: true,
        ..CopyRequest::default()
    };
    let from = Root::open(&context).expect("a root");
    let into = Root::open(&root).expect("a root");
    let _ = copy(&request, &from, None, &into);
    place.check();
});
