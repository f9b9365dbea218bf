//! Are the files obeyed that say how registries are reached? registries.conf, certs.d and proxies, with real registries behind them.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that can't go on fails"
)]

mod common;

use std::os::unix::process::CommandExt as _;

use common::certificates::certify;
use common::proxy::{Action, Proxy};
use common::{Built, Program, RegistryServer, Workshop, can_build, has};

fn workshop(program: Program, test: &str) -> Option<(Workshop, RegistryServer)> {
    if !can_build(test) || !program.is_there(test) {
        return None;
    }
    let workshop = Workshop::new();
    let registry = RegistryServer::start(program, &workshop.path(""));
    Some((workshop, registry))
}

/// An image there whose step prints `name`.
fn publish(workshop: &Workshop, host: &str, name: &str) {
    let push = format!("{host}/{name}");
    let text = format!("FROM base\nRUN echo {name} > /name\n");
    workshop
        .build_to(&text, &push, &["--plain-http", host])
        .ok();
}

fn build(workshop: &Workshop, containerfile: &str, configuration: &str, more: &[&str]) -> Built {
    let path = workshop.path("registries.conf").display().to_string();
    std::fs::write(&path, configuration).unwrap();
    let arguments = [&["--registries-conf", &path], more].concat();
    workshop.build(containerfile, &arguments)
}

fn images_come_from_mirrors_without_tls_and_from_where_short_names_lead(program: Program) {
    let test = "images_come_from_mirrors_without_tls_and_from_where_short_names_lead";
    let Some((workshop, registry)) = workshop(program, test) else {
        return;
    };
    let host = &registry.host;
    publish(&workshop, host, "mirror/org/os:v1");
    publish(&workshop, host, "own/os:v1");
    let configuration = format!(
        r#"
        unqualified-search-registries = ["{host}/nothing", "{host}/own"]
        [aliases]
        alias = "{host}/mirror/org/os"
        [[registry]]
        prefix = "upstream.invalid/org"
        location = "{host}/own"
        insecure = true
        [[registry.mirror]]
        location = "{host}/absent"
        insecure = true
        [[registry.mirror]]
        location = "{host}/mirror/org"
        insecure = true
        pull-from-mirror = "tag-only"
        [[registry]]
        location = "{host}"
        insecure = true
        [[registry]]
        location = "blocked.invalid"
        blocked = true
        "#
    );
    let digest = {
        let manifest = registry.manifest("own/os", "v1").unwrap();
        strata_builder::digest::Digest::of(&manifest)
    };
    for (image, from) in [
        ("upstream.invalid/org/os:v1", "mirror/org/os:v1"),
        (&format!("upstream.invalid/org/os@{digest}"), "own/os:v1"),
        ("alias:v1", "mirror/org/os:v1"),
        ("os:v1", "own/os:v1"),
    ] {
        let text = format!("FROM {image}\nRUN cat /name\n");
        let built = build(&workshop, &text, &configuration, &[]).ok();
        assert_eq!(built.output(), [from], "{image}: {}", built.stderr);
    }
    let blocked = "registries.conf blocks this registry";
    let built = build(&workshop, "FROM blocked.invalid/x\n", &configuration, &[]);
    assert_eq!(built.status, 65, "{}", built.stderr);
    assert!(built.stderr.contains(blocked), "{}", built.stderr);
    let path = workshop.path("registries.conf").display().to_string();
    let arguments = ["--registries-conf", &path];
    let built = workshop.build_to("FROM base\n", "blocked.invalid/x:v1", &arguments);
    assert_eq!(built.status, 65, "{}", built.stderr);
    assert!(built.stderr.contains(blocked), "{}", built.stderr);
    let built = build(&workshop, "FROM base\n", "[registries.block]\n", &[]);
    assert_eq!(built.status, 64, "{}", built.stderr);
    assert!(built.stderr.contains("of version 1"), "{}", built.stderr);
}

fn images_that_policy_json_does_not_allow_are_not_pulled(program: Program) {
    let test = "images_that_policy_json_does_not_allow_are_not_pulled";
    let Some((workshop, registry)) = workshop(program, test) else {
        return;
    };
    let host = &registry.host;
    publish(&workshop, host, "good/os:v1");
    publish(&workshop, host, "signed/os:v1");
    let path = workshop.path("policy.json").display().to_string();
    let policy = format!(
        r#"{{"default": [{{"type": "reject"}}], "transports": {{"docker": {{
            "{host}/good": [{{"type": "insecureAcceptAnything"}}],
            "{host}/signed": [{{"type": "signedBy", "keyType": "GPGKeys", "keyPath": "/k"}}]
        }}}}}}"#
    );
    std::fs::write(&path, policy).unwrap();
    let arguments = ["--signature-policy", &path, "--plain-http", host];
    let built = |text: &str| {
        let own = registry.host.clone();
        workshop.build(&text.replace("HOST", &own), &arguments)
    };
    built("FROM HOST/good/os:v1\nLABEL a=b\n").ok();
    for (text, said) in [
        (
            "FROM HOST/signed/os:v1\nLABEL a=b\n",
            "requires a signature of it (signedBy)",
        ),
        (
            "FROM HOST/bad/os:v1\nLABEL a=b\n",
            "rejects it by the rule for \"default\"",
        ),
        (
            "FROM HOST/good/os:v1\nCOPY --from=HOST/signed/os:v1 /name /\n",
            "requires a signature of it (signedBy)",
        ),
    ] {
        let built = built(text);
        assert_eq!(built.status, 65, "{text}: {}", built.stderr);
        assert!(built.stderr.contains(said), "{text}: {}", built.stderr);
    }
}

/// Who isn't root, and so may be refused a file.
const NOBODY: u32 = 65534;

#[test]
fn a_file_that_forbids_something_and_cannot_be_read_is_an_error() {
    let test = "a_file_that_forbids_something_and_cannot_be_read_is_an_error";
    if !can_build(test) {
        return;
    }
    let workshop = Workshop::new();
    let open = |path: &std::path::Path| {
        let everybody = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        std::fs::set_permissions(path, everybody).unwrap();
    };
    let program = workshop.path("program");
    common::copy_program(env!("CARGO_BIN_EXE_strata-builder"), &program);
    std::fs::write(workshop.path("Containerfile"), "FROM scratch\nCOPY . /\n").unwrap();
    workshop.file("f", "f");
    let home = workshop.path("home");
    let containers = home.join("containers");
    for path in [home.clone(), workshop.path("out")] {
        std::fs::create_dir_all(&path).unwrap();
        open(&path);
    }
    open(&program);
    open(&workshop.path(""));
    for (file, status) in [
        ("policy.json", 77),
        ("registries.conf", 77),
        ("registries.conf.d/x.conf", 77),
        // without it less is possible
        ("auth.json", 0),
        // the last one, as it closes what is above: another user's home
        ("../policy.json", 0),
    ] {
        let path = containers.join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, "").unwrap();
        let nobodys: std::fs::Permissions = std::os::unix::fs::PermissionsExt::from_mode(0o000);
        std::fs::set_permissions(&path, nobodys.clone()).unwrap();
        if file.starts_with("..") {
            std::fs::set_permissions(&home, nobodys).unwrap();
        }
        let out = workshop.path("out").join(file.replace('/', "-"));
        let output = std::process::Command::new(&program)
            .args(["build", "--tier", "copy", "--containerfile"])
            .arg(workshop.path("Containerfile"))
            .arg("--context")
            .arg(workshop.path("context"))
            .arg("--push")
            .arg(format!("oci:{}", out.display()))
            .env("XDG_CONFIG_HOME", &home)
            .env("HOME", &home)
            .env("TMPDIR", workshop.path("out"))
            .stdin(std::process::Stdio::null())
            .uid(NOBODY)
            .gid(NOBODY)
            .output()
            .unwrap();
        let built = Built::of(&output);
        assert_eq!(built.status, status, "{file}: {}", built.stderr);
        let told = format!("read {}: ", path.display());
        assert_eq!(
            built.stderr.contains(&told),
            status != 0,
            "{}",
            built.stderr
        );
        std::fs::remove_file(&path).unwrap();
    }
}

fn a_registry_with_certificates_of_its_own_is_reached_with_those_of_its_folder(program: Program) {
    let test = "a_registry_with_certificates_of_its_own_is_reached_with_those_of_its_folder";
    if !can_build(test) || !program.is_there(test) || !has("openssl", test) {
        return;
    }
    let workshop = Workshop::new();
    let folder = workshop.path("");
    certify(&folder, "authority", None);
    certify(&folder, "server", Some("authority"));
    certify(&folder, "client", Some("authority"));
    let tls = format!(
        ", tls: {{certificate: {0}/server.crt, key: {0}/server.key, clientcas: [{0}/authority.crt]}}",
        folder.display()
    );
    let registry = RegistryServer::start_with(program, &folder, &tls);
    let push = format!("{}/org/os:v1", registry.host);
    let of_host = workshop.path("certs.d").join(&registry.host);
    std::fs::create_dir_all(&of_host).unwrap();
    let certs_dir = workshop.path("certs.d").display().to_string();
    let build = |more: &[&str]| {
        let arguments = [&["--certs-dir", &certs_dir], more].concat();
        workshop.build_to("FROM base\nLABEL a=b\n", &push, &arguments)
    };
    let refused = |why: &str| {
        let built = build(&[]);
        assert_eq!(built.status, 77, "{}", built.stderr);
        assert!(
            built.stderr.contains("no trusted connection"),
            "{}",
            built.stderr
        );
        assert!(built.stderr.contains(why), "{}", built.stderr);
    };
    refused("UnknownIssuer");
    std::fs::copy(folder.join("authority.crt"), of_host.join("ca.crt")).unwrap();
    // The registry answers only those that show a certificate.
    std::fs::copy(folder.join("client.crt"), of_host.join("us.cert")).unwrap();
    let built = build(&[]);
    assert_eq!(built.status, 64, "{}", built.stderr);
    assert!(
        built.stderr.contains("us.cert has no key"),
        "{}",
        built.stderr
    );
    std::fs::copy(folder.join("client.key"), of_host.join("us.key")).unwrap();
    build(&[]).ok();
    // Nobody vouches for it, but nobody has to.
    std::fs::remove_file(of_host.join("ca.crt")).unwrap();
    refused("UnknownIssuer");
    let path = workshop.path("registries.conf").display().to_string();
    let text = format!(
        "[[registry]]\nlocation = \"{}\"\ninsecure = true\n",
        registry.host
    );
    std::fs::write(&path, text).unwrap();
    build(&["--registries-conf", &path]).ok();
}

fn attempts_are_told_as_they_fail(program: Program) {
    let Some((workshop, _)) = workshop(program, "attempts_are_told_as_they_fail") else {
        return;
    };
    let push = format!("127.0.0.1:{}/org/os:v1", common::free_port());
    for (progress, beginning) in [("plain", "warning: "), ("json", "{\"at_millis\":")] {
        let more = ["--retry-for", "1s", "--progress", progress];
        let built = workshop.build_to("FROM base\nLABEL a=b\n", &push, &more);
        assert_eq!(built.status, 75, "{}", built.stderr);
        let told = built.stderr.lines();
        let told: Vec<_> = told
            .filter(|line| line.contains("trying again in"))
            .collect();
        assert!(told.len() >= 2, "{}", built.stderr);
        assert!(told.iter().all(|line| line.contains(beginning)), "{told:?}");
    }
}

fn a_registry_without_tls_is_told_at_once(program: Program) {
    let Some((workshop, registry)) = workshop(program, "a_registry_without_tls_is_told_at_once")
    else {
        return;
    };
    let push = format!("{}/org/os:v1", registry.host);
    let built = workshop.build_to("FROM base\nLABEL a=b\n", &push, &[]);
    assert_eq!(built.status, 65, "{}", built.stderr);
    assert!(built.stderr.contains("speaks no TLS"), "{}", built.stderr);
    assert!(!built.stderr.contains("trying again"), "{}", built.stderr);
}

fn a_proxy_is_used_but_for_hosts_that_are_excepted(program: Program) {
    let test = "a_proxy_is_used_but_for_hosts_that_are_excepted";
    let Some((workshop, registry)) = workshop(program, test) else {
        return;
    };
    let port = registry.port();
    // Another name of this machine, and not one that goes without saying.
    let address = format!("0.0.0.0:{port}");
    for (host, except, is_used) in [
        (&address, "elsewhere.example", true),
        (&address, "0.0.0.0:1", true),
        (&address, "0.0.0.0", false),
        (&address, &address, false),
        (&address, "elsewhere.example,0.0.0.0/8", false),
        (&registry.host, "", false),
        (&format!("localhost:{port}"), "", false),
    ] {
        let proxy = Proxy::start(port, |_, _| Action::Forward);
        let base = format!("base={}", workshop.base());
        std::fs::write(workshop.path("Containerfile"), "FROM base\nLABEL a=b\n").unwrap();
        let file = workshop.path("Containerfile").display().to_string();
        let push = format!("{host}/org/os:v1");
        let output = workshop
            .command(&["--containerfile", &file, "--build-context", &base])
            .args(["--push", &push, "--plain-http", host])
            .env("HTTP_PROXY", format!("http://{}", proxy.host))
            .env("NO_PROXY", except)
            .output()
            .unwrap();
        Built::of(&output).ok();
        assert_eq!(!proxy.seen().is_empty(), is_used, "{host} except {except}");
    }
}

with_both_registries! {
    images_come_from_mirrors_without_tls_and_from_where_short_names_lead
    a_registry_with_certificates_of_its_own_is_reached_with_those_of_its_folder
    images_that_policy_json_does_not_allow_are_not_pulled
    attempts_are_told_as_they_fail
    a_registry_without_tls_is_told_at_once
    a_proxy_is_used_but_for_hosts_that_are_excepted
}
