//! Is what we write what the OCI specification and other tools take for an image?
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that can't go on fails"
)]

mod common;

use std::io::{BufRead as _, Read as _};
use std::process::Command;

use common::{Image, Workshop, can_build, has};
use flate2::bufread::GzDecoder;
use serde_json::Value;
use strata_builder::digest::Digest;

/// Every kind of metadata, files with every kind of header, and nothing at all.
const FILES: [(&str, &str); 5] = [
    ("nothing but files", "FROM scratch\nCOPY a.txt /\n"),
    ("nothing but metadata", "FROM base\nLABEL a=b\n"),
    ("no layer at all", "FROM scratch\nENV A=b\n"),
    (
        "all metadata",
        "FROM base AS first\nRUN echo 1 > /one\nFROM first\nMAINTAINER Ann <ann@example.com>\nENV A=b C=\"d e\"\nLABEL x=y \"z z\"='w'\nEXPOSE 80 53/udp\nVOLUME /data [\"/v\"]\n\
         USER ann:wheel\nWORKDIR /work\nSTOPSIGNAL SIGINT\nSHELL [\"/bin/sh\", \"-e\", \"-c\"]\nHEALTHCHECK --interval=5s --retries=3 CMD true\nONBUILD RUN true\nENTRYPOINT [\"/bin/sh\"]\nCMD [\"-c\", \"id\"]\n",
    ),
    (
        "all files",
        "FROM base\nRUN mkdir -p /d/empty && ln -s /nowhere /d/link && echo x > /d/file && ln /d/file /d/hard && mkfifo /d/fifo && chmod 4755 /d/file && rm /bin/vi && \
         touch /d/$(printf 'n%.0s' $(seq 200)) && mkdir -p /d/$(printf 'deep/%.0s' $(seq 60)) && touch '/d/ümläut and blank' && rm -rf /home && mkdir /home && touch /home/new\n",
    ),
];

fn schema(name: &str) -> jsonschema::Validator {
    struct Folder;
    impl jsonschema::Retrieve for Folder {
        fn retrieve(
            &self,
            uri: &jsonschema::Uri<String>,
        ) -> Result<Value, Box<dyn std::error::Error + Send + Sync>> {
            // the schemas name each other relative to several made-up addresses
            let name = uri.path().as_str().rsplit('/').next().unwrap_or_default();
            read(name)
        }
    }
    fn read(name: &str) -> Result<Value, Box<dyn std::error::Error + Send + Sync>> {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/oci-schemas/");
        Ok(serde_json::from_slice(&std::fs::read(format!(
            "{folder}{name}"
        ))?)?)
    }
    jsonschema::options()
        .with_retriever(Folder)
        .build(&read(name).unwrap())
        .unwrap()
}

fn images(test: &str) -> Option<Vec<(&'static str, Workshop, Image)>> {
    if !can_build(test) {
        return None;
    }
    let built = FILES.iter().flat_map(|(name, text)| {
        ["stage", "step"].map(|layers| {
            let workshop = Workshop::new();
            workshop.file("a.txt", "a");
            workshop.build(text, &["--layers", layers]).ok();
            let image = workshop.image();
            (*name, workshop, image)
        })
    });
    Some(built.collect())
}

#[test]
fn every_document_of_an_image_has_its_schema() {
    let Some(images) = images("every_document_of_an_image_has_its_schema") else {
        return;
    };
    let [manifest, config, index, layout] = [
        "image-manifest-schema.json",
        "config-schema.json",
        "image-index-schema.json",
        "image-layout-schema.json",
    ]
    .map(schema);
    for (name, _workshop, image) in images {
        let marker = std::fs::read(image.layout.join("oci-layout")).unwrap();
        let marker: Value = serde_json::from_slice(&marker).unwrap();
        for (schema, document) in [
            (&manifest, &image.manifest),
            (&config, &image.config),
            (&index, &image.index),
            (&layout, &marker),
        ] {
            if name == "no layer at all" && document == &image.manifest {
                // an image of nothing has no layer, which the specification allows and its schema doesn't
                continue;
            }
            let errors: Vec<String> = schema
                .iter_errors(document)
                .map(|error| error.to_string())
                .collect();
            assert!(errors.is_empty(), "{name}: {errors:?} in {document}");
        }
    }
}

#[test]
fn layers_are_single_gzip_members_whose_content_has_the_diff_id_and_history_counts_them() {
    let Some(images) = images("layers_are_single_gzip_members") else {
        return;
    };
    for (name, _workshop, image) in images {
        let diff_ids = image.config["rootfs"]["diff_ids"].as_array().unwrap();
        let layers = image.layers();
        assert_eq!(diff_ids.len(), layers.len(), "{name}");
        for (layer, diff_id) in layers.iter().zip(diff_ids) {
            let mut first_member = GzDecoder::new(layer.as_slice());
            let mut tar = Vec::new();
            first_member.read_to_end(&mut tar).unwrap();
            let rest = first_member.into_inner().fill_buf().unwrap().len();
            assert_eq!(rest, 0, "{name}: a second member");
            assert_eq!(Digest::of(&tar).to_string(), diff_id.as_str().unwrap());
        }
        let history = image.config["history"].as_array().unwrap();
        let with_layer = history
            .iter()
            .filter(|entry| entry["empty_layer"] != Value::Bool(true));
        assert_eq!(with_layer.count(), layers.len(), "{name}");
    }
}

#[test]
fn skopeo_reads_every_image() {
    let test = "skopeo_reads_every_image";
    if !has("skopeo", test) {
        return;
    }
    for (name, workshop, image) in images(test).unwrap_or_default() {
        let layout = format!("oci:{}:v1", image.layout.display());
        let output = Command::new("skopeo")
            .args(["inspect", "--config", &layout])
            .output()
            .unwrap();
        let said: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(said["rootfs"], image.config["rootfs"], "{name}");
        // a copy in Docker's format makes it read and check every layer
        let copy = format!("dir:{}", workshop.path("copy").display());
        let copied = Command::new("skopeo")
            .args(["copy", "--quiet", "--format", "v2s2", &layout, &copy])
            .status();
        assert!(copied.unwrap().success(), "{name}");
    }
}

#[test]
fn umoci_unpacks_what_the_steps_made() {
    let test = "umoci_unpacks_what_the_steps_made";
    if !has("umoci", test) {
        return;
    }
    for (name, workshop, image) in images(test).unwrap_or_default() {
        let bundle = workshop.path("bundle");
        let output = Command::new("umoci")
            .args(["unpack", "--image"])
            .arg(format!("{}:v1", image.layout.display()))
            .arg(&bundle)
            .output()
            .unwrap();
        assert!(output.status.success(), "{name}: {output:?}");
        let mut unpacked = Vec::new();
        list(&bundle.join("rootfs"), "", &mut unpacked);
        let mut ours: Vec<String> = image.files().into_keys().collect();
        // parents that a layer only implies
        ours.retain(|path| !path.is_empty());
        unpacked.retain(|path| ours.contains(path) || !bundle.join("rootfs").join(path).is_dir());
        unpacked.sort();
        assert_eq!(unpacked, ours, "{name}");
    }
}

fn list(root: &std::path::Path, below: &str, found: &mut Vec<String>) {
    for entry in std::fs::read_dir(root.join(below)).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = match below {
            "" => name,
            below => format!("{below}/{name}"),
        };
        found.push(path.clone());
        if entry.file_type().unwrap().is_dir() {
            list(root, &path, found);
        }
    }
}
