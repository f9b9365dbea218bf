//! Who gets to see a credential? Only its registry and the token server that this names, whatever they lead to.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that can't go on fails"
)]

mod common;

use bytes::Bytes;
use common::certificates::certify;
use common::proxy::{Action, Proxy};
use common::{Program, RegistryServer, has};
use strata_builder::digest::Digest;
use strata_builder::error::{Class, Classify as _, chain};
use strata_builder::reference::{Reference, Repository};
use strata_builder::registry::{Bounds, Credentials, Options, Registry, RegistryError, Rules};

/// `ann:secret`
const BASIC: &str = r#"{"auth": "YW5uOnNlY3JldA=="}"#;
const IDENTITY: &str = r#"{"identitytoken": "secret"}"#;

fn options(host: &str, entry: Option<&str>) -> Options {
    let entry = entry.map(|entry| format!("\"{host}\": {entry}"));
    let text = format!("{{\"auths\": {{{}}}}}", entry.unwrap_or_default());
    Options {
        credentials: Credentials::parse(&text).unwrap(),
        bounds: Some(Bounds {
            attempts: 1,
            patience: std::time::Duration::ZERO,
            ..strata_builder::registry::retry::DEFAULT_BOUNDS
        }),
        ..Options::default()
    }
}

/// A client for a registry without TLS.
fn plain(host: &str, entry: Option<&str>) -> Registry {
    let plain_http = vec![host.to_owned()];
    Registry::new(Options {
        plain_http,
        ..options(host, entry)
    })
    .unwrap()
}

fn repository(host: &str) -> Repository {
    let reference: Reference = format!("{host}/org/os:v1").parse().unwrap();
    reference.repository
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.unwrap().block_on(future)
}

fn look(registry: &Registry, host: &str) -> Result<bool, RegistryError> {
    block_on(registry.has_blob(&repository(host), Digest::of(b"x")))
}

/// Asks for a token of the server at `realm`, and has nothing.
fn asking(realm: &str) -> Proxy {
    let challenge = format!("Bearer realm=\"{realm}\",service=\"x\"");
    Proxy::start(0, move |request, _| match request.header("authorization") {
        Some("Bearer good") => Action::Answer(404, Vec::new(), ""),
        _ => Action::Answer(401, vec![("www-authenticate", challenge.clone())], ""),
    })
}

const TOKEN: &str = r#"{"token": "good"}"#;

#[test]
fn a_token_server_that_leads_elsewhere_gets_no_password_and_no_refresh_token_there() {
    for status in [301, 302, 303, 307, 308] {
        for (entry, is_followed) in [(Some(BASIC), false), (Some(IDENTITY), false), (None, true)] {
            let elsewhere = Proxy::start(0, |_, _| Action::Answer(200, Vec::new(), TOKEN));
            let to = format!("http://{}/token", elsewhere.host);
            let tokens = Proxy::start(0, move |_, _| {
                Action::Answer(status, vec![("location", to.clone())], "")
            });
            let proxy = asking(&format!("http://{}/token", tokens.host));
            let looked = look(&plain(&proxy.host, entry), &proxy.host);
            assert_eq!(tokens.seen().len(), 1);
            let case = format!("{status} {entry:?}: {looked:?}");
            let seen = elsewhere.seen();
            assert_eq!(seen.len(), usize::from(is_followed), "{case}");
            assert_eq!(looked.is_ok(), is_followed, "{case}");
            for request in seen {
                assert_eq!(request.header("authorization"), None, "{case}");
            }
        }
    }
}

#[test]
fn a_token_server_may_lead_to_another_path_of_its_own() {
    for (entry, method) in [(BASIC, "GET"), (IDENTITY, "POST")] {
        let tokens = Proxy::start(0, |request, _| match request.path.starts_with("/token") {
            true => Action::Answer(
                307,
                vec![("location", "/v2/token?service=x".to_owned())],
                "",
            ),
            false => Action::Answer(200, Vec::new(), TOKEN),
        });
        let proxy = asking(&format!("http://{}/token", tokens.host));
        assert!(!look(&plain(&proxy.host, Some(entry)), &proxy.host).unwrap());
        let seen = tokens.seen();
        let seen: Vec<_> = seen
            .iter()
            .map(|r| (r.method.as_str(), r.body_bytes > 0))
            .collect();
        assert_eq!(seen, [(method, method == "POST"); 2]);
    }
}

#[test]
fn a_token_server_that_leads_in_circles_is_left() {
    let tokens = Proxy::start(0, |_, _| {
        Action::Answer(307, vec![("location", "/again".to_owned())], "")
    });
    let proxy = asking(&format!("http://{}/token", tokens.host));
    let error = look(&plain(&proxy.host, Some(IDENTITY)), &proxy.host).unwrap_err();
    assert_eq!(error.class(), Class::INTERNAL, "{error:?}");
    assert_eq!(tokens.seen().len(), 11);
}

#[test]
fn a_manifest_goes_where_its_registry_sends_it_but_without_credentials() {
    let elsewhere = Proxy::start(0, |_, _| Action::Answer(201, Vec::new(), ""));
    let to = format!("http://{}/x", elsewhere.host);
    let proxy = Proxy::start(0, move |request, _| match request.header("authorization") {
        Some(_) => Action::Answer(307, vec![("location", to.clone())], ""),
        None => {
            let challenge = "Basic realm=\"x\"".to_owned();
            Action::Answer(401, vec![("www-authenticate", challenge)], "")
        }
    });
    let registry = plain(&proxy.host, Some(BASIC));
    let manifest = Bytes::from_static(b"{}");
    let at = repository(&proxy.host).tagged("v1");
    block_on(registry.push_manifest(&at, "application/json", &manifest)).unwrap();
    let [request] = &elsewhere.seen()[..] else {
        panic!("{:?}", elsewhere.seen());
    };
    assert_eq!((request.method.as_str(), request.body_bytes), ("PUT", 2));
    assert_eq!(request.header("authorization"), None);
}

#[test]
fn a_login_at_a_registry_that_turns_out_to_have_no_tls_goes_there_without() {
    let proxy = Proxy::start(0, |request, _| match request.header("authorization") {
        Some(_) => Action::Answer(200, Vec::new(), "{}"),
        None => {
            let challenge = "Basic realm=\"x\"".to_owned();
            Action::Answer(401, vec![("www-authenticate", challenge)], "")
        }
    });
    let rules = format!(
        "[[registry]]\nlocation = \"{}\"\ninsecure = true\n",
        proxy.host
    );
    let registry = Registry::new(Options {
        rules: Rules::parse(&rules).unwrap(),
        ..options(&proxy.host, Some(BASIC))
    })
    .unwrap();
    let at = repository(&proxy.host).tagged("v1");
    let found = block_on(registry.manifest(&at, "amd64")).unwrap();
    assert_eq!(found.bytes, "{}");
    assert_eq!(proxy.seen().len(), 2);
}

#[test]
fn a_place_with_tls_sees_nothing_in_clear_because_another_of_its_host_may() {
    let digest = Digest::of(b"{}");
    let proxy = Proxy::start(0, |request, _| match request.header("authorization") {
        Some(_) => Action::Answer(200, Vec::new(), "{}"),
        None => {
            let challenge = "Basic realm=\"x\"".to_owned();
            Action::Answer(401, vec![("www-authenticate", challenge)], "")
        }
    });
    let host = &proxy.host;
    let rules = format!(
        r#"
        [[registry]]
        location = "{host}"
        [[registry]]
        location = "{host}/plain"
        insecure = true
        [[registry]]
        location = "upstream.invalid"
        mirror = [{{location = "{host}/mirror", insecure = true}}]
        [[registry]]
        prefix = "elsewhere.invalid"
        location = "{host}/moved"
        insecure = true
        "#
    );
    let registry = Registry::new(Options {
        rules: Rules::parse(&rules).unwrap(),
        ..options(host, Some(BASIC))
    })
    .unwrap();
    let image = |name: &str| name.parse::<Reference>().unwrap();
    let seen_at = |path: &str| {
        let seen = proxy.seen();
        seen.iter().filter(|r| r.path.contains(path)).count()
    };
    let plain = image(&format!("{host}/plain/os:v1")).repository;
    assert!(block_on(registry.has_blob(&plain, digest)).unwrap());
    for (name, path) in [
        ("upstream.invalid/os:v1", "mirror/os"),
        ("elsewhere.invalid/os:v1", "moved/os"),
    ] {
        let found = block_on(registry.manifest_from_any(&image(name), "amd64"));
        let (place, _) = found.unwrap();
        // All of the image comes from there, and so.
        let blob = block_on(registry.blob(&place.repository, digest)).unwrap();
        assert_eq!(blob, "{}");
        let before = seen_at(path);
        let own_name = image(&format!("{host}/{path}:v1")).repository;
        block_on(registry.has_blob(&own_name, digest)).unwrap_err();
        assert_eq!(seen_at(path), before, "{path} was asked in clear");
    }
    let secure = image(&format!("{host}/secure/os:v1")).repository;
    block_on(registry.has_blob(&secure, digest)).unwrap_err();
    assert_eq!(seen_at("secure/"), 0);
}

/// A registry with TLS and these sections of its configuration, and a client that trusts it.
fn with_tls(
    program: Program,
    folder: &std::path::Path,
    sections: &str,
    entry: Option<&str>,
) -> (RegistryServer, Registry) {
    certify(folder, "authority", None);
    certify(folder, "server", Some("authority"));
    let at = folder.display();
    let tls =
        format!(", tls: {{certificate: {at}/server.crt, key: {at}/server.key}}}}\n{sections}");
    // the last brace is the one that would have ended `http`
    let tls = tls.strip_suffix('}').unwrap();
    let server = RegistryServer::start_with(program, folder, tls);
    let ca_bundles = vec![std::fs::read(folder.join("authority.crt")).unwrap()];
    let options = Options {
        ca_bundles,
        ..options(&server.host, entry)
    };
    (server, Registry::new(options).unwrap())
}

fn a_registry_with_tls_may_not_name_a_token_server_without(program: Program) {
    let test = "a_registry_with_tls_may_not_name_a_token_server_without";
    if !program.is_there(test) || !has("openssl", test) {
        return;
    }
    for entry in [Some(BASIC), Some(IDENTITY), None] {
        let folder = tempfile::tempdir().unwrap();
        let tokens = Proxy::start(0, |_, _| Action::Answer(200, Vec::new(), TOKEN));
        let auth = format!(
            "auth: {{token: {{realm: \"http://{}/token\", service: x, issuer: us, rootcertbundle: {}/authority.crt}}}}",
            tokens.host,
            folder.path().display(),
        );
        let (server, registry) = with_tls(program, folder.path(), &auth, entry);
        let error = look(&registry, &server.host).unwrap_err();
        assert!(
            chain(&error).contains("token server is reached without TLS"),
            "{error:?}"
        );
        assert_eq!(tokens.seen().len(), 0);
    }
}

fn a_registry_with_tls_may_not_lead_to_a_place_without(program: Program) {
    let test = "a_registry_with_tls_may_not_lead_to_a_place_without";
    if !program.is_there(test) || !has("openssl", test) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let store = Proxy::start(0, |_, _| Action::Answer(200, Vec::new(), "x"));
    let redirect = format!(
        "middleware: {{storage: [{{name: redirect, options: {{baseurl: \"http://{}\"}}}}]}}",
        store.host
    );
    let (server, registry) = with_tls(program, folder.path(), &redirect, None);
    let repository = repository(&server.host);
    let digest = Digest::of(b"x");
    let error = block_on(async {
        let mut upload = registry.upload(&repository);
        upload.write(b"x").await.unwrap();
        upload.finish(digest).await.unwrap();
        registry.blob(&repository, digest).await.unwrap_err()
    });
    assert!(
        chain(&error).contains("it leads away from TLS"),
        "{error:?}"
    );
    assert_eq!(error.class(), Class::INTERNAL);
    assert_eq!(store.seen().len(), 0);
}

with_both_registries! {
    a_registry_with_tls_may_not_name_a_token_server_without
    a_registry_with_tls_may_not_lead_to_a_place_without
}
