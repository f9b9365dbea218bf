//! Any documents: read as a layout's index, a manifest and a configuration, and written again. Nothing may panic, and what is written reads as it was.
#![no_main]

use std::fs;

use libfuzzer_sys::fuzz_target;
use strata_builder::image::{Image, ImageConfig, Manifest};
use strata_builder::layout::Layout;
use strata_builder::reference::Reference;
use strata_fuzz::Place;

fuzz_target!(|data: &[u8]| {
    let mut parts = data.splitn(2, |byte| *byte == 0);
    let (first, second) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let manifest = serde_json::from_slice::<Manifest>(first);
    let config = serde_json::from_slice::<ImageConfig>(second);
    if let (Ok(manifest), Ok(config)) = (manifest, config)
        && let Ok(image) = Image::of_base(&manifest, config)
        && let Ok(assembled) = image.assemble("1970-01-01T00:00:00Z")
    {
        let again: Manifest = serde_json::from_slice(&assembled.manifest).expect("our own");
        assert_eq!(again.layers, image.layers);
        serde_json::from_slice::<ImageConfig>(&assembled.config).expect("our own");
    }
    if let Ok(text) = std::str::from_utf8(first)
        && let Ok(reference) = text.parse::<Reference>()
    {
        assert_eq!(reference.to_string().parse::<Reference>().expect("our own"), reference);
    }
    let place = Place::new();
    let folder = place.path("layout");
    fs::create_dir_all(folder.join("blobs/sha256")).expect("a folder");
    fs::write(folder.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).expect("a file");
    fs::write(folder.join("index.json"), first).expect("a file");
    if let Ok(layout) = Layout::open(&folder) {
        for tag in [None, Some("v1")] {
            if let Ok(descriptor) = layout.find(tag) {
                let _ = layout.blob(descriptor.digest);
            }
        }
    }
});
