use serde_json::{Value, json};
use strata_builder::error::chain;

use super::*;
use crate::fixtures;

fn machine_config(files: &Value) -> MachineConfig {
    let mut machine_config = fixtures::machine_config();
    machine_config.spec.config =
        Some(json!({"ignition": {"version": "3.4.0"}, "storage": {"files": files}}));
    machine_config
}

fn file(path: &str, content: &str) -> Value {
    let source = format!("data:text/plain;base64,{}", BASE64_STANDARD.encode(content));
    json!({"path": path, "mode": 420, "overwrite": true, "contents": {"source": source}})
}

const REGISTRIES: &str = "[[registry]]\nlocation = \"bad.example.com\"\nblocked = true\n";
const POLICY: &str = r#"{"default": [{"type": "insecureAcceptAnything"}]}"#;

#[test]
fn a_build_has_the_files_that_say_how_a_node_pulls_and_no_others() {
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut packed, POLICY.as_bytes()).unwrap();
    let packed = BASE64_STANDARD.encode(packed.finish().unwrap());
    let escaped = REGISTRIES
        .replace('\n', "%0A")
        .replace(' ', "%20")
        .replace('"', "%22");
    let files = json!([
        {"path": "/etc/containers/policy.json", "contents": {
            "source": format!("data:;base64,{packed}"), "compression": "gzip"}},
        {"path": "/etc/containers/registries.conf", "contents": {
            "source": format!("data:,{escaped}"), "compression": ""}},
        file("/etc/containers/registries.conf.d/10-a.conf", REGISTRIES),
        file("/etc/containers/registries.conf.d/README", "x"),
        {"path": "/etc/containers/registries.conf.d/20-empty.conf", "contents": {}},
        file("/etc/containers/registries.d/default.yaml", "x"),
        file("/etc/containers/storage.conf", "x"),
        file("/etc/containers/certs.d/a.example.com:5000/ca.crt", "A"),
        file("/etc/containers/certs.d/a.example.com:5000/deeper/ca.crt", "x"),
        file("/etc/docker/certs.d/a.example.com:5000/ca.crt", "not used"),
        file("/etc/docker/certs.d/b.example.com/ca.crt", "B"),
        file("/etc/docker/certs.d/../ca.crt", "x"),
        file("/etc/docker/daemon.json", "x"),
        file("/etc/containersX/policy.json", "x"),
        file("/etc/motd", "x"),
    ]);
    let found = of_machine_config(&machine_config(&files)).unwrap();
    let found: Vec<_> = found
        .iter()
        .map(|(path, content)| (path.as_str(), std::str::from_utf8(content).unwrap()))
        .collect();
    assert_eq!(
        found,
        [
            ("certs.d/a.example.com:5000/ca.crt", "A"),
            ("certs.d/b.example.com/ca.crt", "B"),
            ("policy.json", POLICY),
            ("registries.conf", REGISTRIES),
            ("registries.conf.d/10-a.conf", REGISTRIES),
            ("registries.conf.d/20-empty.conf", ""),
        ]
    );
}

#[test]
fn what_the_builder_could_not_read_is_named_with_its_file() {
    let path = "/etc/containers/policy.json";
    for (one, said) in [
        (file(path, "{"), "it can't be used as a policy.json"),
        (
            file("/etc/containers/registries.conf", "[registries.search]\n"),
            "it can't be used as a registries.conf: it has the tables [registries.…] of version 1",
        ),
        (
            json!({"path": path, "contents": {"source": "https://example.com/p"}}),
            "is no data URL",
        ),
        (
            json!({"path": path, "contents": {"source": "data:;base64,%%%"}}),
            "can't be decoded",
        ),
        (
            json!({"path": path, "contents": {"source": "data:,x", "compression": "gzip"}}),
            "compression can't be undone",
        ),
        (
            json!({"path": path, "contents": {"source": "data:,x", "compression": "xz"}}),
            "\"xz\" is unknown",
        ),
        (
            json!({"path": path, "contents": {"source": "data:,%FF"}}),
            "it is no text in UTF-8",
        ),
        (
            file(
                "/etc/containers/certs.d/a/ca.crt",
                &"x".repeat(LIMIT_BYTES + 1),
            ),
            "have more than 716800 bytes",
        ),
    ] {
        let wanted = format!(
            "MachineConfig rendered-worker-0, the file {} in spec.config.storage.files: ",
            one["path"].as_str().unwrap()
        );
        let error = chain(&of_machine_config(&machine_config(&json!([one]))).unwrap_err());
        assert!(error.starts_with(&wanted), "{error}");
        assert!(error.contains(said), "{error}");
    }
}

#[test]
fn an_ignition_of_another_shape_has_no_files() {
    let mut other = fixtures::machine_config();
    for config in [None, Some(json!(7)), Some(json!({"storage": {"files": 7}}))] {
        other.spec.config = config;
        assert_eq!(of_machine_config(&other).unwrap(), Files::new());
    }
}

#[test]
fn authorities_of_single_registries_are_for_these_alone() {
    let bundle = |file: &str, data: &str| RegistryBundle {
        file: file.to_owned(),
        data: data.to_owned(),
    };
    let encoded = |text: &str| BASE64_STANDARD.encode(text);
    let mut bundles = Bundles {
        cluster: vec![bundle("r.example.com..5000", &encoded("R"))],
        user: vec![
            bundle("r.example.com..5000", &encoded("U")),
            bundle("s.example.com", &encoded("S")),
            bundle("empty.example.com", ""),
        ],
    };
    let files = Files::from([("policy.json".to_owned(), b"{}".to_vec())]);
    let files = with_authorities(files, &authorities(&bundles).unwrap());
    let names: Vec<_> = files.keys().map(String::as_str).collect();
    assert_eq!(
        names,
        [
            "certs.d/r.example.com:5000/cluster-0.crt",
            "certs.d/r.example.com:5000/cluster-1.crt",
            "certs.d/s.example.com/cluster-0.crt",
            "policy.json",
        ]
    );
    for (entry, said) in [
        (
            bundle("a", "%"),
            "spec.imageRegistryBundleUserData: \"a\" is no base64",
        ),
        (bundle("../x", ""), "\"../x\" names no registry"),
    ] {
        bundles.user = vec![entry];
        let error = chain(&authorities(&bundles).unwrap_err());
        assert!(error.contains(said), "{error}");
    }
}
