//! Does a push survive what registries and networks do? The program against a real docker-registry behind a proxy that does harm.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that can't go on fails"
)]

mod common;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::proxy::{Action, Proxy, Request};
use common::{Built, Program, RegistryServer, Workshop, can_build};

/// `ann:secret`
const LOGIN: &str = "Basic YW5uOnNlY3JldA==";
const CONTAINERFILE: &str = "FROM base\nCOPY big /big\nRUN echo done > /done\n";

fn workshop(program: Program, test: &str) -> Option<(Workshop, RegistryServer)> {
    if !can_build(test) || !program.is_there(test) {
        return None;
    }
    let workshop = Workshop::new();
    // two pieces of an upload, as random as a hash can make it
    let mut big = Vec::new();
    let mut block = [0; 32];
    while big.len() < 12 << 20 {
        block = sha2_of(&block);
        big.extend_from_slice(&block);
    }
    workshop.file("big", &big);
    let registry = RegistryServer::start(program, &workshop.path(""));
    Some((workshop, registry))
}

fn sha2_of(bytes: &[u8]) -> [u8; 32] {
    let hex = strata_builder::digest::Digest::of(bytes).hex();
    std::array::from_fn(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).unwrap())
}

fn push(workshop: &Workshop, host: &str, more: &[&str]) -> Built {
    push_of(workshop, CONTAINERFILE, host, more)
}

fn push_of(workshop: &Workshop, containerfile: &str, host: &str, more: &[&str]) -> Built {
    let mut arguments = vec!["--plain-http", host, "--source-date-epoch", "1700000000"];
    arguments.extend(more);
    workshop.build_to(containerfile, &format!("{host}/org/os:v1"), &arguments)
}

/// The manifest's digest as the registry itself has it.
fn digest_at(registry: &RegistryServer) -> String {
    let output = std::process::Command::new("skopeo")
        .args(["inspect", "--tls-verify=false", "--format", "{{.Digest}}"])
        .arg(format!("docker://{}/org/os:v1", registry.host))
        .output()
        .unwrap();
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// Harm that is done, by its name: to which request, and what.
type Harm = (&'static str, fn(&Request) -> bool, Action);

fn harms() -> Vec<Harm> {
    let busy = |status, headers: &[(&'static str, &str)]| {
        let headers = headers
            .iter()
            .map(|(name, value)| (*name, (*value).to_owned()));
        Action::Answer(status, headers.collect(), "busy")
    };
    let head: fn(&Request) -> bool = |request| request.is("HEAD", "/blobs/");
    let open: fn(&Request) -> bool = |request| request.method == "POST";
    let piece: fn(&Request) -> bool =
        |request| request.method == "PATCH" && request.body_bytes > 1 << 20;
    let close: fn(&Request) -> bool = |request| request.is("PUT", "/blobs/");
    let manifest: fn(&Request) -> bool = |request| request.is("PUT", "/manifests/");
    let mut harms = Vec::new();
    for (name, hit) in [
        ("looking for a blob", head),
        ("opening an upload", open),
        ("a piece", piece),
        ("closing an upload", close),
        ("the manifest", manifest),
    ] {
        for (harm, action) in [
            ("429", busy(429, &[("retry-after", "1")])),
            ("500", busy(500, &[])),
            ("502", busy(502, &[])),
            ("503", busy(503, &[])),
            ("a lost connection", Action::Drop),
            ("a lost answer", Action::LoseAnswer),
        ] {
            harms.push((
                Box::leak(format!("{harm} for {name}").into_boxed_str()) as &str,
                hit,
                action,
            ));
        }
    }
    harms.push(("half a piece", piece, Action::CutRequest(3 << 20)));
    harms.push((
        "nearly a whole piece",
        piece,
        Action::CutRequest((8 << 20) - 1),
    ));
    harms
}

fn a_push_survives_harm_to_each_kind_of_request(program: Program) {
    let test = "a_push_survives_harm_to_each_kind_of_request";
    let harms = Mutex::new(harms());
    let next = || harms.lock().unwrap().pop();
    // mostly waiting, so several at once
    let worker = || {
        let Some((workshop, registry)) = workshop(program, test) else {
            return;
        };
        let wanted = push(&workshop, &registry.host, &[]).ok().stdout;
        while let Some((name, hit, action)) = next() {
            std::fs::remove_dir_all(workshop.path("registry")).unwrap();
            let mut left = 2;
            let proxy = Proxy::start(registry.port(), move |request, _| {
                if hit(request) && left > 0 {
                    left -= 1;
                    return action.clone();
                }
                Action::Forward
            });
            let built = push(&workshop, &proxy.host, &[]);
            assert_eq!(built.status, 0, "{name}: {}", built.stderr);
            assert_eq!(built.stdout, wanted, "{name}");
            assert_eq!(digest_at(&registry), wanted.trim(), "{name}");
        }
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..4).map(|_| scope.spawn(worker)).collect();
        workers
            .into_iter()
            .for_each(|worker| worker.join().unwrap());
    });
}

fn an_upload_that_a_restarted_registry_has_forgotten_begins_again(program: Program) {
    let test = "an_upload_that_a_restarted_registry_has_forgotten_begins_again";
    let Some((workshop, registry)) = workshop(program, test) else {
        return;
    };
    let (registry, folder) = (Arc::new(Mutex::new(registry)), workshop.path("registry"));
    let port = registry.lock().unwrap().port();
    let restarted = AtomicBool::new(false);
    // the proxy outlives the test, its registry must not
    let for_proxy = Arc::downgrade(&registry);
    let proxy = Proxy::start(port, move |request, _| {
        let in_the_middle = request.method == "PATCH" && request.body_bytes > 1 << 20;
        if in_the_middle && !restarted.swap(true, Ordering::SeqCst) {
            // with it goes what it had received
            let uploads = folder.join("docker/registry/v2/repositories/org/os/_uploads");
            std::fs::remove_dir_all(uploads).unwrap();
            for_proxy.upgrade().unwrap().lock().unwrap().restart();
        }
        Action::Forward
    });
    let built = push(&workshop, &proxy.host, &[]).ok();
    assert_eq!(digest_at(&registry.lock().unwrap()), built.stdout.trim());
}

fn what_does_not_pass_is_told_with_its_class_and_without_many_attempts(program: Program) {
    let test = "what_does_not_pass_is_told_with_its_class_and_without_many_attempts";
    let Some((workshop, registry)) = workshop(program, test) else {
        return;
    };
    for (status, code, exit, said) in [
        (
            403,
            "DENIED",
            77,
            "the registry answered 403 DENIED: no right",
        ),
        (
            401,
            "UNAUTHORIZED",
            77,
            "the registry answered 401 UNAUTHORIZED: no right",
        ),
        (
            404,
            "NAME_UNKNOWN",
            65,
            "the registry answered 404 NAME_UNKNOWN: no right",
        ),
    ] {
        let text = format!("{{\"errors\":[{{\"code\":\"{code}\",\"message\":\"no right\"}}]}}");
        let text: &'static str = text.leak();
        let proxy = Proxy::start(registry.port(), move |request, _| {
            match request.method.as_str() {
                "POST" => Action::Answer(status, Vec::new(), text),
                _ => Action::Forward,
            }
        });
        let report = workshop.path("report").display().to_string();
        let built = push(&workshop, &proxy.host, &["--report", &report]);
        assert_eq!(built.status, exit, "{}", built.stderr);
        assert!(built.stderr.contains(said), "{}", built.stderr);
        let report: serde_json::Value =
            serde_json::from_slice(&std::fs::read(report).unwrap()).unwrap();
        let refused_by = report["outcome"]["refusedBy"].as_str();
        assert_eq!(
            refused_by.is_some_and(|target| target.starts_with(&proxy.host)),
            exit == 77,
            "{report}"
        );
        let posts = proxy
            .seen()
            .iter()
            .filter(|request| request.method == "POST")
            .count();
        assert!(posts <= 10, "{posts} attempts");
    }
}

fn a_retried_build_reports_the_image_that_is_there_instead_of_building_it(program: Program) {
    let test = "a_retried_build_reports_the_image_that_is_there_instead_of_building_it";
    let Some((workshop, registry)) = workshop(program, test) else {
        return;
    };
    let report = workshop.path("report").display().to_string();
    let of_cluster = ["--build-uid", "1-2-3", "--annotation", "example.com/a=b=c"];
    let first = push(&workshop, &registry.host, &of_cluster).ok();
    let manifest = registry.manifest("org/os", "v1").unwrap();
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
    let annotations = &manifest["annotations"];
    assert_eq!(annotations["example.com/a"], "b=c");
    assert_eq!(annotations["strata.image-mode.dev/build-uid"], "1-2-3");
    let proxy = Proxy::start(registry.port(), |_, _| Action::Forward);
    let again = push(
        &workshop,
        &proxy.host,
        &["--build-uid", "1-2-3", "--report", &report],
    )
    .ok();
    assert_eq!(again.stdout, first.stdout);
    assert!(!again.stderr.contains("step 1/2"), "{}", again.stderr);
    let report: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&report).unwrap()).unwrap();
    assert_eq!(report["outcome"]["alreadyThere"], true);
    let looks_only = |request: &Request| ["GET", "HEAD"].contains(&request.method.as_str());
    assert!(proxy.seen().iter().all(looks_only));
    // another build under the same tag is no attempt of this one
    let other = push(&workshop, &registry.host, &["--build-uid", "4-5-6"]).ok();
    assert_ne!(other.stdout, first.stdout);
}

fn what_somebody_else_put_under_the_tag_is_replaced(program: Program) {
    let test = "what_somebody_else_put_under_the_tag_is_replaced";
    let Some((workshop, registry)) = workshop(program, test) else {
        return;
    };
    let index = "application/vnd.oci.image.index.v1+json";
    let others = r#"{"schemaVersion": 2, "manifests": [{"mediaType": "application/vnd.oci.image.manifest.v1+json", "size": 2,
        "digest": "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",
        "platform": {"os": "linux", "architecture": "s390x"}}]}"#;
    for (media_type, document) in [
        (index, others),
        (index, r#"{"schemaVersion": 2, "manifests": []}"#),
        (index, r#"{"manifests": "none"}"#),
        ("text/html", "<html>"),
    ] {
        let proxy = Proxy::start(registry.port(), move |request, _| {
            match request.method == "GET" && request.path.ends_with("/manifests/v1") {
                true => {
                    Action::Answer(200, vec![("content-type", media_type.to_owned())], document)
                }
                false => Action::Forward,
            }
        });
        let built = push(&workshop, &proxy.host, &["--build-uid", "1-2-3"]);
        assert_eq!(built.status, 0, "{document}: {}", built.stderr);
        assert_eq!(digest_at(&registry), built.stdout.trim(), "{document}");
    }
}

/// Asks for a login, and remembers who was told it.
fn guarded(port: u16, then: impl Fn(&Request) -> Action + Send + 'static) -> Proxy {
    Proxy::start(port, move |request, _| {
        match request.header("authorization") {
            Some(LOGIN) => then(request),
            _ => Action::Answer(
                401,
                vec![("www-authenticate", "Basic realm=\"x\"".to_owned())],
                "",
            ),
        }
    })
}

fn authfile(workshop: &Workshop, host: &str) -> String {
    let path = workshop.path("auth.json");
    let text = format!("{{\"auths\": {{\"{host}\": {{\"auth\": \"YW5uOnNlY3JldA==\"}}}}}}");
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}

fn credentials_stay_with_their_registry_whatever_an_upload_or_a_redirect_names(program: Program) {
    let test = "credentials_stay_with_their_registry_whatever_an_upload_or_a_redirect_names";
    let Some((workshop, registry)) = workshop(program, test) else {
        return;
    };
    // An upload's Location leads elsewhere, where another login is asked for.
    let elsewhere = Proxy::start(registry.port(), |_, before| match before {
        0 => Action::Answer(
            401,
            vec![("www-authenticate", "Basic realm=\"mine\"".to_owned())],
            "",
        ),
        _ => Action::Forward,
    });
    let to = format!("http://{}", elsewhere.host);
    let location = to.clone();
    let proxy = guarded(registry.port(), move |request| {
        match request.method.as_str() {
            "POST" => Action::MoveTo(location.clone()),
            _ => Action::Forward,
        }
    });
    let login = authfile(&workshop, &proxy.host);
    let built = push(&workshop, &proxy.host, &["--authfile", &login]);
    assert_eq!(built.status, 77, "{}", built.stderr);
    assert!(
        elsewhere
            .seen()
            .iter()
            .any(|request| request.method == "PATCH" || request.method == "PUT")
    );
    for request in elsewhere.seen() {
        assert_eq!(request.header("authorization"), None, "{request:?}");
    }
    // Blobs are redirected elsewhere, as object stores are used.
    push(&workshop, &registry.host, &[]).ok();
    let store = Proxy::start(registry.port(), |_, _| Action::Forward);
    let to = format!("http://{}", store.host);
    let proxy = guarded(registry.port(), move |request| {
        match request.is("GET", "/blobs/") {
            true => Action::Answer(307, vec![("location", format!("{to}{}", request.path))], ""),
            false => Action::Forward,
        }
    });
    let login = authfile(&workshop, &proxy.host);
    let from = format!("{}/org/os:v1", proxy.host);
    let out = format!("oci:{}", workshop.path("pulled").display());
    let arguments = ["--plain-http", &proxy.host, "--authfile", &login];
    let text = format!("FROM {from}\nRUN cat /done\n");
    let built = workshop.build_to(&text, &out, &arguments).ok();
    assert_eq!(built.output(), ["done"]);
    assert!(!store.seen().is_empty());
    for request in store.seen() {
        assert_eq!(request.header("authorization"), None, "{request:?}");
    }
}

fn a_token_server_that_says_not_found_says_nothing_about_the_image(program: Program) {
    let test = "a_token_server_that_says_not_found_says_nothing_about_the_image";
    let Some((workshop, registry)) = workshop(program, test) else {
        return;
    };
    let tokens = Proxy::start(registry.port(), |_, _| {
        Action::Answer(404, Vec::new(), "no such service")
    });
    let realm = format!(
        "Bearer realm=\"http://{}/token\",service=\"x\"",
        tokens.host
    );
    let proxy = Proxy::start(registry.port(), move |_, _| {
        Action::Answer(401, vec![("www-authenticate", realm.clone())], "")
    });
    let built = push(&workshop, &proxy.host, &["--build-uid", "1"]);
    assert_eq!(built.status, 77, "{}", built.stderr);
    assert!(
        built.stderr.contains("the token server answered 404"),
        "{}",
        built.stderr
    );
}

fn a_pull_survives_broken_connections_and_never_uses_spoiled_bytes(program: Program) {
    let test = "a_pull_survives_broken_connections_and_never_uses_spoiled_bytes";
    let Some((workshop, registry)) = workshop(program, test) else {
        return;
    };
    push(&workshop, &registry.host, &[]).ok();
    let text = |host: &str| format!("FROM {host}/org/os:v1\nRUN cat /done && sha256sum /big\n");
    let out = format!("oci:{}", workshop.path("pulled").display());
    let pull = |host: &str| workshop.build_to(&text(host), &out, &["--plain-http", host]);
    let wanted = pull(&registry.host).ok();
    for (name, action, status) in [
        ("cut in the middle", Action::CutAnswer(5 << 20), 0),
        ("cut at the start", Action::CutAnswer(0), 0),
        ("no answer", Action::Drop, 0),
        ("busy", Action::Answer(503, Vec::new(), ""), 0),
        ("spoiled", Action::Spoil, 75),
    ] {
        std::fs::remove_dir_all(workshop.path("pulled")).unwrap();
        let always = matches!(action, Action::Spoil);
        let mut left = 2;
        let proxy = Proxy::start(registry.port(), move |request, _| {
            if request.is("GET", "/blobs/") && (always || left > 0) {
                left -= 1;
                return action.clone();
            }
            Action::Forward
        });
        let built = pull(&proxy.host);
        assert_eq!(built.status, status, "{name}: {}", built.stderr);
        let output = if status == 0 {
            wanted.output()
        } else {
            Vec::new()
        };
        assert_eq!(built.output(), output, "{name}");
    }
}

fn a_stalled_answer_is_given_up_and_asked_for_again(program: Program) {
    let test = "a_stalled_answer_is_given_up_and_asked_for_again";
    let Some((workshop, registry)) = workshop(program, test) else {
        return;
    };
    let mut left = 1;
    let proxy = Proxy::start(registry.port(), move |request, _| {
        if request.is("PUT", "/manifests/") && left > 0 {
            left -= 1;
            return Action::Late(Duration::from_secs(3600));
        }
        Action::Forward
    });
    let began = Instant::now();
    push(&workshop, &proxy.host, &["--idle-timeout", "2s"]).ok();
    assert!(began.elapsed() < Duration::from_secs(1800));
}

/// A base of three layers in `host`'s repository `org/base`, and what is built on it: one step.
fn base_of_three_layers(workshop: &Workshop, host: &str) -> &'static str {
    for name in ["one", "two"] {
        let big = std::fs::read(workshop.path("context/big")).unwrap();
        workshop.file(name, &big[name.len()..]);
    }
    let text = "FROM base\nCOPY one /one\nCOPY two /two\n";
    let arguments = ["--plain-http", host, "--layers", "step"];
    workshop
        .build_to(text, &format!("{host}/org/base:v1"), &arguments)
        .ok();
    "RUN sha256sum /one /two > /sums\n"
}

fn blobs_fetched(proxy: &Proxy) -> Vec<Option<String>> {
    let seen = proxy.seen();
    let blobs = seen.iter().filter(|request| request.is("GET", "/blobs/"));
    blobs
        .map(|request| request.header("range").map(str::to_owned))
        .collect()
}

fn a_base_that_is_unpacked_and_pushed_is_fetched_once_unless_its_upload_falls_behind(
    program: Program,
) {
    let test = "a_base_that_is_unpacked_and_pushed_is_fetched_once_unless_its_upload_falls_behind";
    let Some((workshop, source)) = workshop(program, test) else {
        return;
    };
    let step = base_of_three_layers(&workshop, &source.host);
    std::fs::create_dir(workshop.path("target")).unwrap();
    let target = RegistryServer::start(program, &workshop.path("target"));
    let build = |from: &str, to: &str| {
        let text = format!("FROM {from}/org/base:v1\n{step}");
        let arguments = ["--plain-http", from, "--plain-http", to];
        let arguments = [&arguments[..], &["--source-date-epoch", "1700000000"]].concat();
        workshop.build_to(&text, &format!("{to}/org/os:v1"), &arguments)
    };
    let from = Proxy::start(source.port(), |_, _| Action::Forward);
    let wanted = build(&from.host, &target.host).ok().stdout;
    // A configuration and three layers, from their start.
    assert_eq!(blobs_fetched(&from), [const { None }; 4]);
    assert_eq!(digest_at(&target), wanted.trim());

    std::fs::remove_dir_all(workshop.path("target/registry")).unwrap();
    let from = Proxy::start(source.port(), |_, _| Action::Forward);
    let slow = Proxy::start(target.port(), |request, _| match request.method.as_str() {
        "PATCH" => Action::Late(Duration::from_secs(1)),
        _ => Action::Forward,
    });
    let built = build(&from.host, &slow.host).ok();
    assert_eq!(built.stdout, wanted);
    assert_eq!(digest_at(&target), wanted.trim());
}

fn layers_of_a_base_in_the_same_registry_are_mounted_and_not_moved(program: Program) {
    let test = "layers_of_a_base_in_the_same_registry_are_mounted_and_not_moved";
    let Some((workshop, registry)) = workshop(program, test) else {
        return;
    };
    let step = base_of_three_layers(&workshop, &registry.host);
    for (steps, layers_fetched) in [("LABEL a=b\n", 0), (step, 3)] {
        std::fs::remove_dir_all(workshop.path("registry/docker/registry/v2/repositories/org/os"))
            .unwrap_or_default();
        let proxy = Proxy::start(registry.port(), |_, _| Action::Forward);
        let text = format!("FROM {}/org/base:v1\n{steps}", proxy.host);
        let built = push_of(&workshop, &text, &proxy.host, &[]).ok();
        assert!(
            built
                .stderr
                .contains("layers of the base: 0 there already, 3 mounted, 0 copied"),
            "{}",
            built.stderr
        );
        assert_eq!(blobs_fetched(&proxy).len(), 1 + layers_fetched);
        let sent: usize = proxy.seen().iter().map(|request| request.body_bytes).sum();
        assert!(sent < 100_000, "{sent} bytes sent");
        assert_eq!(digest_at(&registry), built.stdout.trim());
    }
}

fn a_mount_that_is_refused_is_done_without(program: Program) {
    let test = "a_mount_that_is_refused_is_done_without";
    let Some((workshop, registry)) = workshop(program, test) else {
        return;
    };
    base_of_three_layers(&workshop, &registry.host);
    for (status, by_token_server, mounted) in [
        (401, false, 0),
        (403, false, 0),
        (404, false, 0),
        (405, false, 0),
        (401, true, 0),
        (403, true, 0),
        // these pass
        (429, false, 3),
        (503, false, 3),
        (429, true, 3),
    ] {
        std::fs::remove_dir_all(workshop.path("registry/docker/registry/v2/repositories/org/os"))
            .unwrap_or_default();
        let has_passed = mounted > 0;
        let mut refused = 0;
        let mut refuse = move || {
            refused += 1;
            !has_passed || refused == 1
        };
        let mut refuse_token = refuse;
        // Says in a token what it is for.
        let tokens = Proxy::start(0, move |request, _| {
            let is_mount = request.path.contains("org%2Fbase") && request.path.contains("org%2Fos");
            if by_token_server && is_mount && refuse_token() {
                return Action::Answer(status, Vec::new(), "");
            }
            let text = format!("{{\"token\": \"{}\"}}", request.path);
            Action::Answer(200, Vec::new(), text.leak())
        });
        let realm = format!("Bearer realm=\"http://{}/token\"", tokens.host);
        let proxy = Proxy::start(registry.port(), move |request, _| {
            let token = request.header("authorization").unwrap_or_default();
            let repository = match request.path.contains("/org/os/") {
                true => "org%2Fos",
                false => "org%2Fbase",
            };
            let challenge = vec![("www-authenticate", realm.clone())];
            if !token.contains(repository) {
                return Action::Answer(401, challenge, "");
            }
            if !by_token_server && request.path.contains("mount=") && refuse() {
                return Action::Answer(status, challenge, "");
            }
            Action::Forward
        });
        let text = format!("FROM {}/org/base:v1\nLABEL a=b\n", proxy.host);
        let built = push_of(&workshop, &text, &proxy.host, &[]);
        let case = format!("{status} {by_token_server}: {}", built.stderr);
        assert_eq!(built.status, 0, "{case}");
        let copied = 3 - mounted;
        let told =
            format!("layers of the base: 0 there already, {mounted} mounted, {copied} copied");
        assert!(built.stderr.contains(&told), "{case}");
        let warned = built.stderr.matches("so they are copied").count();
        assert_eq!(warned, usize::from(!has_passed), "{case}");
        assert_eq!(digest_at(&registry), built.stdout.trim(), "{case}");
    }
}

fn a_redirect_without_end_is_told_at_once(program: Program) {
    let test = "a_redirect_without_end_is_told_at_once";
    let Some((workshop, registry)) = workshop(program, test) else {
        return;
    };
    let proxy = Proxy::start(registry.port(), |request, _| {
        Action::Answer(307, vec![("location", request.path.clone())], "")
    });
    let text = format!("FROM {}/org/os:v1\n", proxy.host);
    let built = workshop.build(&text, &["--plain-http", &proxy.host]);
    assert_eq!(built.status, 70, "{}", built.stderr);
    assert_eq!(proxy.seen().len(), 11);
}

fn a_token_that_ends_in_the_middle_of_an_upload_is_asked_for_anew(program: Program) {
    let test = "a_token_that_ends_in_the_middle_of_an_upload_is_asked_for_anew";
    let Some((workshop, registry)) = workshop(program, test) else {
        return;
    };
    let mut given = 0;
    let tokens = Proxy::start(registry.port(), move |_, _| {
        given += 1;
        let text = format!("{{\"token\": \"t{given}\"}}");
        Action::Answer(200, Vec::new(), text.leak())
    });
    let realm = format!("Bearer realm=\"http://{}/token\"", tokens.host);
    // Each is good for two requests.
    let mut used = std::collections::BTreeMap::<String, usize>::new();
    let proxy = Proxy::start(registry.port(), move |request, _| {
        let token = request.header("authorization").unwrap_or_default();
        let uses = used.entry(token.to_owned()).or_default();
        *uses += 1;
        match token.starts_with("Bearer t") && *uses <= 2 {
            true => Action::Forward,
            false => Action::Answer(401, vec![("www-authenticate", realm.clone())], ""),
        }
    });
    let built = push(&workshop, &proxy.host, &[]).ok();
    assert_eq!(digest_at(&registry), built.stdout.trim());
    assert!(tokens.seen().len() > 3, "{} tokens", tokens.seen().len());
}

fn another_digest_than_the_one_that_was_pushed_is_no_success(program: Program) {
    let test = "another_digest_than_the_one_that_was_pushed_is_no_success";
    let Some((workshop, registry)) = workshop(program, test) else {
        return;
    };
    let proxy = Proxy::start(registry.port(), |request, _| {
        let other = format!("sha256:{}", "0".repeat(64));
        match request.is("PUT", "/manifests/") {
            true => Action::Answer(201, vec![("docker-content-digest", other)], ""),
            false => Action::Forward,
        }
    });
    let built = push(&workshop, &proxy.host, &[]);
    assert_eq!(built.status, 75, "{}", built.stderr);
    assert!(
        built.stderr.contains("the registry sent sha256:0000"),
        "{}",
        built.stderr
    );
}

fn a_registry_that_is_away_at_each_kind_of_request_in_turn_only_costs_time(program: Program) {
    let test = "a_registry_that_is_away_at_each_kind_of_request_in_turn_only_costs_time";
    let Some((workshop, registry)) = workshop(program, test) else {
        return;
    };
    let away = Duration::from_secs(2);
    base_of_three_layers(&workshop, &registry.host);
    let (port, host) = (registry.port(), registry.host.clone());
    let text = |host: &str| {
        format!("FROM {host}/org/base:v1\nRUN sha256sum /one > /sum\nCOPY big /more\n")
    };
    let wanted = push_of(&workshop, &text(&host), &host, &[]).ok().stdout;
    std::fs::remove_dir_all(workshop.path("registry/docker/registry/v2/repositories/org/os"))
        .unwrap();
    let registry = Arc::new(Mutex::new(registry));
    // the proxy outlives the test, its registry must not
    let for_proxy = Arc::downgrade(&registry);
    let met = Arc::new(Mutex::new(std::collections::BTreeSet::new()));
    let told = Arc::clone(&met);
    let mut back: Option<std::thread::JoinHandle<()>> = None;
    let proxy = Proxy::start(port, move |request, _| {
        let of = ["/manifests/", "mount=", "/blobs/uploads/", "/blobs/"];
        let of = of.into_iter().find(|of| request.path.contains(of));
        let kind = (request.method.clone(), of.unwrap_or_default());
        let is_back = back.as_ref().is_none_or(|back| back.is_finished());
        if is_back && told.lock().unwrap().insert(kind) {
            for_proxy.upgrade().unwrap().lock().unwrap().stop();
            let registry = for_proxy.clone();
            back = Some(std::thread::spawn(move || {
                std::thread::sleep(away);
                if let Some(registry) = registry.upgrade() {
                    registry.lock().unwrap().restart();
                }
            }));
        }
        Action::Forward
    });
    let built = push_of(&workshop, &text(&proxy.host), &proxy.host, &[]).ok();
    assert_eq!(built.stdout, wanted);
    assert_eq!(digest_at(&registry.lock().unwrap()), wanted.trim());
    let met = met.lock().unwrap();
    for kind in [
        ("GET", "/manifests/"),
        ("GET", "/blobs/"),
        ("HEAD", "/blobs/"),
        ("POST", "mount="),
        ("POST", "/blobs/uploads/"),
        ("PATCH", "/blobs/uploads/"),
        ("PUT", "/blobs/uploads/"),
        ("PUT", "/manifests/"),
    ] {
        assert!(
            met.contains(&(kind.0.to_owned(), kind.1)),
            "{kind:?}: {met:?}"
        );
    }
}

/// A build whose only big blob is the layer of its base, and whose others are small.
fn is_big(request: &Request) -> bool {
    request.path.contains("/blobs/uploads/") && request.body_bytes > 100_000
}

fn a_layer_that_is_refused_ends_the_upload_of_the_base(program: Program) {
    let test = "a_layer_that_is_refused_ends_the_upload_of_the_base";
    let Some((workshop, registry)) = workshop(program, test) else {
        return;
    };
    let proxy = Proxy::start(registry.port(), |request, _| {
        if is_big(request) {
            Action::StallRequest(1000)
        } else if request.is("PUT", "/blobs/") {
            Action::Answer(403, Vec::new(), "no")
        } else {
            Action::Forward
        }
    });
    let text = "FROM base\nCOPY <<a /a\nx\na\nRUN sleep 1000\n";
    let built = push_of(&workshop, text, &proxy.host, &["--layers", "step"]);
    assert_eq!(built.status, 77, "{}", built.stderr);
    let seen = proxy.seen();
    let big = seen.iter().filter(|request| is_big(request)).count();
    // waited for, it would have been tried again
    assert!(big < 2, "{}", built.stderr);
}

fn no_more_than_two_layers_are_uploaded_at_once(program: Program) {
    let test = "no_more_than_two_layers_are_uploaded_at_once";
    let Some((workshop, registry)) = workshop(program, test) else {
        return;
    };
    // all that begin at once have done so before the first is through
    let proxy = Proxy::start(registry.port(), |request, _| {
        match request.method.as_str() {
            "POST" => Action::Late(Duration::from_secs(1)),
            _ => Action::Forward,
        }
    });
    let steps = (0..7).map(|step| format!("COPY <<a /{step}\n{step}\na\n"));
    let text = format!("FROM scratch\n{}", steps.collect::<String>());
    let built = push_of(&workshop, &text, &proxy.host, &["--layers", "step"]).ok();
    let (mut begun, mut most) = (0_usize, 0);
    for request in proxy.seen() {
        match request.method.as_str() {
            "POST" => begun += 1,
            "PUT" if request.path.contains("/blobs/") => begun -= 1,
            _ => {}
        }
        most = most.max(begun);
    }
    assert_eq!((begun, most), (0, 2), "{}", built.stderr);
    let image = registry.manifest("org/os", "v1").unwrap();
    let image: serde_json::Value = serde_json::from_slice(&image).unwrap();
    assert_eq!(image["layers"].as_array().unwrap().len(), 7);
}

with_both_registries! {
    a_layer_that_is_refused_ends_the_upload_of_the_base
    no_more_than_two_layers_are_uploaded_at_once
    a_registry_that_is_away_at_each_kind_of_request_in_turn_only_costs_time
    a_push_survives_harm_to_each_kind_of_request
    an_upload_that_a_restarted_registry_has_forgotten_begins_again
    what_does_not_pass_is_told_with_its_class_and_without_many_attempts
    a_retried_build_reports_the_image_that_is_there_instead_of_building_it
    what_somebody_else_put_under_the_tag_is_replaced
    credentials_stay_with_their_registry_whatever_an_upload_or_a_redirect_names
    a_token_server_that_says_not_found_says_nothing_about_the_image
    a_pull_survives_broken_connections_and_never_uses_spoiled_bytes
    a_stalled_answer_is_given_up_and_asked_for_again
    a_base_that_is_unpacked_and_pushed_is_fetched_once_unless_its_upload_falls_behind
    layers_of_a_base_in_the_same_registry_are_mounted_and_not_moved
    a_mount_that_is_refused_is_done_without
    a_redirect_without_end_is_told_at_once
    a_token_that_ends_in_the_middle_of_an_upload_is_asked_for_anew
    another_digest_than_the_one_that_was_pushed_is_no_success
}
