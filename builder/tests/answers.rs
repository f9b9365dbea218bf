//! What comes of a registry whose answers are huge, senseless or lead on and on? A clear end, little memory, and nobody else asked.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that can't go on fails"
)]

mod common;

use common::proxy::{Action, Proxy};
use common::{Workshop, can_build};
use serde_json::{Value, json};
use strata_builder::digest::Digest;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// The most that a builder may need, whatever an image is.
const MOST_BYTES: u64 = 256 << 20;

/// An answer to each path that ends so.
type Answers = Vec<(String, &'static str, Vec<u8>)>;

fn blob(bytes: &[u8]) -> (String, &'static str, Vec<u8>) {
    (
        Digest::of(bytes).to_string(),
        "application/octet-stream",
        bytes.to_vec(),
    )
}

fn tagged(media_type: &'static str, document: &Value) -> (String, &'static str, Vec<u8>) {
    (
        "/manifests/v1".to_owned(),
        media_type,
        document.to_string().into_bytes(),
    )
}

/// A manifest of these layers, and its configuration.
fn image(layers: &Value) -> (Value, (String, &'static str, Vec<u8>)) {
    let diff_ids: Vec<String> = (0..layers.as_array().unwrap().len())
        .map(|_| Digest::of(b"x").to_string())
        .collect();
    let config = json!({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": diff_ids}});
    let config = blob(config.to_string().as_bytes());
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST,
        "config": {"mediaType": CONFIG, "digest": config.0, "size": config.2.len()},
        "layers": layers,
    });
    (manifest, config)
}

fn entry(media_type: &str, digest: &str, size: usize) -> Value {
    let platform = json!({"os": "linux", "architecture": std::env::consts::ARCH.replace("x86_64", "amd64").replace("aarch64", "arm64")});
    json!({"mediaType": media_type, "digest": digest, "size": size, "platform": platform})
}

fn index(entries: &[Value]) -> Value {
    json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries})
}

#[test]
fn senseless_and_huge_answers_come_to_a_clear_end() {
    if !can_build("senseless_and_huge_answers_come_to_a_clear_end") {
        return;
    }
    let workshop = Workshop::new();
    let elsewhere = Proxy::start(0, |_, _| Action::Answer(200, Vec::new(), ""));
    let url = format!("http://{}/layer", elsewhere.host);
    let nothing = Digest::of(b"").to_string();
    let huge = vec![b' '; 9 << 20];
    let layer = |media_type: &str| {
        let layer = json!({"mediaType": media_type, "digest": nothing, "size": 0, "urls": [&url]});
        image(&json!([layer]))
    };
    let (of_nothing, config) = image(&json!([]));
    let huge_config = blob(&huge);
    let mut with_huge_config = of_nothing.clone();
    with_huge_config["config"]["digest"] = json!(huge_config.0);
    let inner = index(&[entry(MANIFEST, &nothing, 2)]).to_string();
    let inner = (
        Digest::of(inner.as_bytes()).to_string(),
        INDEX,
        inner.into_bytes(),
    );
    let outer = index(&[entry(INDEX, &inner.0, inner.2.len())]);
    let others: Vec<Value> = (0..30_000)
        .map(|_| json!({"mediaType": MANIFEST, "digest": nothing, "size": 2, "platform": {"os": "linux", "architecture": "s390x"}}))
        .collect();
    let (foreign, foreign_config) =
        layer("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip");
    let (reserved, reserved_config) =
        layer("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip");
    let (other_type, other_config) = layer("application/x-iso9660-image");
    let many: Vec<Value> = (0..50_000)
        .map(|_| json!({"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": nothing, "size": 0}))
        .collect();
    let (many, many_config) = image(&json!(many));
    let cases: Vec<(&str, Answers, i32, &str)> = vec![
        (
            "a huge manifest",
            vec![("/manifests/v1".into(), MANIFEST, huge.clone())],
            70,
            "larger than 8388608 bytes",
        ),
        (
            "a huge configuration",
            vec![tagged(MANIFEST, &with_huge_config), huge_config],
            70,
            "larger than 8388608 bytes",
        ),
        (
            "a page of a portal",
            vec![(
                "/manifests/v1".into(),
                "text/html",
                b"<html>log in".to_vec(),
            )],
            65,
            "its manifest can't be read",
        ),
        (
            "schema 1",
            vec![tagged(
                "application/vnd.docker.distribution.manifest.v1+json",
                &json!({"schemaVersion": 1, "fsLayers": []}),
            )],
            65,
            "its manifest can't be read",
        ),
        (
            "an index of indexes",
            vec![tagged(INDEX, &outer), inner],
            65,
            "its manifest can't be read",
        ),
        (
            "an index that leads to itself",
            vec![
                tagged(INDEX, &index(&[entry(INDEX, &nothing, 2)])),
                (
                    nothing.clone(),
                    INDEX,
                    index(&[entry(INDEX, &nothing, 2)]).to_string().into_bytes(),
                ),
            ],
            75,
            "was asked for",
        ),
        (
            "an index of many others",
            vec![tagged(INDEX, &index(&others))],
            65,
            "has no image for linux/",
        ),
        (
            "an index that is none",
            vec![tagged(INDEX, &json!({"manifests": "none"}))],
            70,
            "read the index",
        ),
        (
            "many layers that aren't there",
            vec![tagged(MANIFEST, &many), many_config],
            65,
            "",
        ),
        (
            "a foreign layer",
            vec![tagged(MANIFEST, &foreign), foreign_config],
            65,
            "layers are tar archives",
        ),
        (
            "a layer not to be distributed",
            vec![tagged(MANIFEST, &reserved), reserved_config],
            65,
            "layers are tar archives",
        ),
        (
            "a layer of another type",
            vec![tagged(MANIFEST, &other_type), other_config],
            65,
            "layers are tar archives",
        ),
        (
            "no configuration",
            vec![tagged(MANIFEST, &of_nothing)],
            65,
            "404",
        ),
        (
            "a good image of nothing",
            vec![tagged(MANIFEST, &of_nothing), config],
            0,
            "",
        ),
    ];
    for (name, answers, status, words) in cases {
        let proxy = Proxy::start(0, move |request, _| {
            let found = answers
                .iter()
                .find(|(path, ..)| request.path.ends_with(path.as_str()));
            match found {
                Some((_, media_type, body)) => {
                    let text = String::from_utf8(body.clone()).unwrap();
                    let header = ("content-type", (*media_type).to_owned());
                    Action::Answer(200, vec![header], text.leak())
                }
                None => Action::Answer(404, Vec::new(), ""),
            }
        });
        let report = workshop.path("report").display().to_string();
        let arguments = ["--plain-http", &proxy.host, "--report", &report];
        let text = format!("FROM {}/org/os:v1\nWORKDIR /w\n", proxy.host);
        let built = workshop.build(&text, &arguments);
        assert_eq!(built.status, status, "{name}: {}", built.stderr);
        assert!(built.stderr.contains(words), "{name}: {}", built.stderr);
        assert!(
            !built.stderr.contains("panicked"),
            "{name}: {}",
            built.stderr
        );
        let report: Value = serde_json::from_slice(&std::fs::read(&report).unwrap()).unwrap();
        let peak = report["peakRssBytes"].as_u64().unwrap();
        assert!(peak < MOST_BYTES, "{name}: {peak}");
        assert!(
            proxy.seen().len() < 1000,
            "{name}: {} requests",
            proxy.seen().len()
        );
    }
    assert_eq!(elsewhere.seen().len(), 0);
}
