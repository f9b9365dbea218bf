//! What does the registry client make of each fault at each kind of request? One row for each pair, with real registries behind a proxy that does the harm. What the program makes of it as a
//! whole is tested in `registry.rs`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that can't go on fails"
)]

mod common;

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use common::proxy::{Action, Proxy, Request};
use common::{Program, RegistryServer};
use futures::TryStreamExt as _;
use strata_builder::digest::{Digest, Hashing};
use strata_builder::error::{Class, Classify as _, chain};
use strata_builder::reference::{Reference, Repository};
use strata_builder::registry::{Bounds, Credentials, Options, Registry, RegistryError};
use strata_builder::store::{StoreError, until_kept};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// `ann:secret`
const LOGIN: &str = r#"{"auths": {"HOST": {"auth": "YW5uOnNlY3JldA=="}}}"#;
/// Two pieces.
const BIG_BYTES: usize = 9 << 20;
const PIECE_BYTES: usize = 8 << 20;
/// What is waited for nothing to move: long for a machine that is busy with other tests.
const IDLE_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a registry is away.
const OUTAGE: Duration = Duration::from_millis(1500);

fn client(host: &str, credentials: &str) -> Registry {
    Registry::new(Options {
        credentials: Credentials::parse(&credentials.replace("HOST", host)).unwrap(),
        plain_http: vec![host.to_owned()],
        bounds: Some(Bounds {
            attempts: 3,
            patience: OUTAGE * 4,
            first_delay: Duration::from_millis(20),
            longest_delay: Duration::from_millis(500),
        }),
        idle_timeout: Some(IDLE_TIMEOUT),
        ..Options::default()
    })
    .unwrap()
}

fn repository(host: &str, name: &str) -> Repository {
    let reference: Reference = format!("{host}/{name}:v1").parse().unwrap();
    reference.repository
}

/// A kind of request, and by what it is known.
type Kind = (&'static str, fn(&Request) -> bool);

const KINDS: [Kind; 14] = [
    ("token", |r| r.path.starts_with("/token")),
    ("HEAD blob", |r| r.is("HEAD", "/blobs/sha256:")),
    ("POST upload", |r| {
        r.method == "POST" && !r.path.contains("mount=")
    }),
    ("PATCH", |r| {
        r.method == "PATCH" && r.body_bytes == PIECE_BYTES
    }),
    ("PUT blob", |r| r.is("PUT", "/blobs/") && r.body_bytes == 0),
    ("PUT small blob", |r| {
        r.is("PUT", "/blobs/") && r.body_bytes > 0
    }),
    ("GET blob", |r| r.is("GET", "/blobs/sha256:")),
    ("POST mount", |r| r.is("POST", "mount=")),
    ("PUT manifest", |r| r.is("PUT", "/manifests/")),
    ("HEAD manifest", |r| r.is("HEAD", "/manifests/")),
    ("GET manifest", |r| r.is("GET", "/manifests/v1")),
    ("GET referrers", |r| r.is("GET", "/referrers/")),
    ("DELETE tag", |r| r.is("DELETE", "/manifests/v2")),
    ("DELETE manifest", |r| r.is("DELETE", "/manifests/sha256:")),
];

/// What an image's life brings: whether its blob was mounted, or in which of the verbs it ended.
async fn live(
    registry: &Registry,
    host: &str,
    name: &str,
) -> Result<bool, (&'static str, RegistryError)> {
    let (here, there) = (
        repository(host, name),
        repository(host, &format!("{name}-too")),
    );
    let at = |verb| move |error| (verb, error);
    let mut big = vec![7; BIG_BYTES];
    big[..name.len()].copy_from_slice(name.as_bytes());
    let (big, small) = (
        Bytes::from(big),
        Bytes::from(format!("{{\"of\": \"{name}\"}}")),
    );
    for blob in [&big, &small] {
        push(registry, &here, blob).await?;
    }
    let digest = Digest::of(&big);
    let found = registry.has_blob(&here, digest).await;
    assert!(found.map_err(at("look for a blob"))?);
    let mut hashed = Hashing::new(std::io::sink());
    let mut pulled = std::pin::pin!(registry.blob_stream(&here, digest, 0));
    while let Some(bytes) = pulled.try_next().await.map_err(at("pull a blob"))? {
        hashed.update(&bytes);
    }
    let (_, got, got_bytes) = hashed.finish();
    if got != digest {
        let (target, wanted) = (format!("{got_bytes} bytes"), digest);
        return Err((
            "pull a blob",
            RegistryError::WrongDigest {
                target,
                wanted,
                got,
            },
        ));
    }
    let mounted = registry.mount_blob(&there, &here, digest).await;
    let is_mounted = mounted.map_err(at("mount a blob"))?;
    if !is_mounted {
        push(registry, &there, &big).await?;
    }

    let manifest = Bytes::from(format!(
        r#"{{"schemaVersion":2,"mediaType":"{MANIFEST}","config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{}","size":{}}},
        "layers":[{{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"{digest}","size":{BIG_BYTES}}}]}}"#,
        Digest::of(&small),
        small.len(),
    ));
    let digest = Digest::of(&manifest);
    for tag in ["v1", "v2"] {
        let tagged = here.tagged(tag);
        let pushed = registry.push_manifest(&tagged, MANIFEST, &manifest);
        assert_eq!(pushed.await.map_err(at("push a manifest"))?, digest);
    }
    let found = registry.head_manifest(&here.tagged("v1")).await;
    assert_eq!(found.map_err(at("look for a manifest"))?, Some(digest));
    let found = registry.manifest(&here.tagged("v1"), "amd64").await;
    assert_eq!(found.map_err(at("pull a manifest"))?.bytes, manifest);
    let found = registry.referrers(&here, digest).await;
    assert_eq!(found.map_err(at("look for referrers"))?, []);
    registry
        .delete_tag(&here, "v2")
        .await
        .map_err(at("delete a tag"))?;
    let deleted = registry.delete_manifest(&here, digest).await;
    deleted.map_err(at("delete a manifest"))?;
    Ok(is_mounted)
}

async fn push(
    registry: &Registry,
    repository: &Repository,
    blob: &Bytes,
) -> Result<(), (&'static str, RegistryError)> {
    let digest = Digest::of(blob);
    let push = || async {
        let mut upload = registry.upload(repository);
        upload.write(blob).await?;
        Ok::<_, StoreError>(upload.finish(digest).await?)
    };
    let pushed = until_kept(StoreError::is_lost_upload, push).await;
    pushed.map_err(|error| match error {
        StoreError::Registry(error) => ("push a blob", error),
        other => panic!("{other}"),
    })?;
    Ok(())
}

/// What the registry has of a life: its blobs with their right digests, and no manifest any more.
fn check(server: &RegistryServer, name: &str) {
    let blobs = server.layers(name);
    assert_eq!(blobs.len(), 2, "{name}: {blobs:?}");
    for digest in &blobs {
        let blob = server.blob(digest);
        assert_eq!(digest, &Digest::of(&blob).to_string(), "{name}");
        server.lose_blob(digest);
    }
    assert_eq!(server.layers(&format!("{name}-too")).len(), 1, "{name}");
    for tag in ["v1", "v2"] {
        assert_eq!(server.manifest(name, tag), None, "{name}");
    }
}

/// Something that goes wrong.
struct Fault {
    name: &'static str,
    action: Action,
    /// How often, and for how long after the first time.
    times: usize,
    lasts: Duration,
    /// At which kinds of request; at all, if there are none.
    only: &'static [&'static str],
    /// What comes of it, where that isn't that everything goes well.
    outcome: fn(&str) -> Option<Class>,
}

fn faults() -> Vec<Fault> {
    let fault = |name, action| Fault {
        name,
        action,
        times: 2,
        lasts: Duration::MAX,
        only: &[],
        outcome: |_| None,
    };
    let busy = |status, headers: &[(&'static str, &str)]| {
        let headers = headers.iter();
        let headers = headers.map(|(name, value)| (*name, (*value).to_owned()));
        Action::Answer(status, headers.collect(), "busy")
    };
    let date = "Wed, 25 Nov 2026 10:00:00 GMT";
    let later = "Wed, 25 Nov 2026 10:00:01 GMT";
    let sent: &[&str] = &["PATCH", "PUT small blob", "PUT manifest"];
    let got: &[&str] = &["token", "GET blob", "GET manifest"];
    let mut faults = vec![
        fault("429", busy(429, &[])),
        fault("429, 1 s", busy(429, &[("retry-after", "1")])),
        fault(
            "429, a date",
            busy(429, &[("date", date), ("retry-after", later)]),
        ),
        fault("408", busy(408, &[])),
        fault("500", busy(500, &[])),
        fault("502", busy(502, &[])),
        fault("503", busy(503, &[])),
        fault("504", busy(504, &[])),
        fault("lost request", Action::Drop),
        fault("lost answer", Action::LoseAnswer),
        fault("no answer", Action::StallAnswer(0)),
        fault("dripping answer", Action::Drip(Duration::from_millis(100))),
        fault("came twice", Action::Twice),
        Fault {
            times: 1,
            // those with a token that was good before
            only: &[
                "HEAD blob",
                "PATCH",
                "PUT blob",
                "PUT small blob",
                "PUT manifest",
                "HEAD manifest",
                "GET manifest",
                "GET referrers",
            ],
            ..fault("401, an expired token", Action::Answer(401, Vec::new(), ""))
        },
        Fault {
            times: usize::MAX,
            outcome: |_| Some(Class::RIGHTS),
            ..fault("401", Action::Answer(401, Vec::new(), ""))
        },
        Fault {
            times: usize::MAX,
            lasts: OUTAGE,
            ..fault("outage", Action::Drop)
        },
        Fault {
            times: usize::MAX,
            outcome: |_| Some(Class::Transient),
            ..fault("503 without end", busy(503, &[]))
        },
        Fault {
            times: usize::MAX,
            outcome: |_| Some(Class::RIGHTS),
            ..fault("403", busy(403, &[]))
        },
    ];
    for (name, action) in [
        ("request cut", Action::CutRequest(100)),
        ("request reset", Action::ResetRequest(100)),
        ("request stalls", Action::StallRequest(100)),
        ("request spoiled", Action::SpoilRequest),
    ] {
        faults.push(Fault {
            only: sent,
            ..fault(name, action)
        });
    }
    for (name, action) in [
        ("answer cut", Action::CutAnswer(20)),
        ("answer reset", Action::ResetAnswer(20)),
        ("answer stalls", Action::StallAnswer(20)),
    ] {
        faults.push(Fault {
            only: got,
            ..fault(name, action)
        });
    }
    for (name, action) in [
        (
            "request cut in the middle",
            Action::CutRequest(PIECE_BYTES / 2),
        ),
        (
            "request reset in the middle",
            Action::ResetRequest(PIECE_BYTES / 2),
        ),
        (
            "request stalls in the middle",
            Action::StallRequest(PIECE_BYTES / 2),
        ),
        (
            "request cut near its end",
            Action::CutRequest(PIECE_BYTES - 1),
        ),
    ] {
        faults.push(Fault {
            only: &["PATCH"],
            ..fault(name, action)
        });
    }
    for (name, action) in [
        ("answer cut in the middle", Action::CutAnswer(BIG_BYTES / 2)),
        (
            "answer reset in the middle",
            Action::ResetAnswer(BIG_BYTES / 2),
        ),
        (
            "answer stalls in the middle",
            Action::StallAnswer(BIG_BYTES / 2),
        ),
        ("answer cut near its end", Action::CutAnswer(BIG_BYTES - 1)),
    ] {
        faults.push(Fault {
            only: &["GET blob"],
            ..fault(name, action)
        });
    }
    faults.push(Fault {
        only: &["GET blob", "GET manifest"],
        // Of a blob only its taker knows the digest.
        outcome: |kind| (kind == "GET blob").then_some(Class::Transient),
        ..fault("answer spoiled", Action::Spoil)
    });
    faults
}

fn each_fault_at_each_kind_of_request_has_its_outcome(program: Program) {
    if !program.is_there("each_fault_at_each_kind_of_request_has_its_outcome") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let server = RegistryServer::start(program, folder.path());
    let faults = faults();
    let mut rows = Vec::new();
    for fault in &faults {
        let kinds = KINDS.iter();
        let kinds = kinds.filter(|(kind, _)| fault.only.is_empty() || fault.only.contains(kind));
        rows.extend(kinds.map(|kind| (fault, *kind)));
    }
    let (rows, failures) = (Mutex::new(rows), Mutex::new(Vec::new()));
    let next = || {
        let mut rows = rows.lock().unwrap();
        let row = rows.pop();
        row.map(|row| (rows.len(), row))
    };
    let worker = || {
        while let Some((number, (fault, kind))) = next() {
            let name = format!("life-{number}");
            let row = || has_its_outcome(&server, fault, kind, &name);
            let row = std::panic::catch_unwind(std::panic::AssertUnwindSafe(row));
            if let Err(told) = row.unwrap_or_else(|_| Err(format!("{name} panicked"))) {
                let told = format!("{} at {}: {told}", fault.name, kind.0);
                failures.lock().unwrap().push(told);
            }
        }
    };
    // mostly waiting, so many at once
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..8).map(|_| scope.spawn(worker)).collect();
        for worker in workers {
            worker.join().unwrap();
        }
    });
    let failures = failures.into_inner().unwrap();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

fn has_its_outcome(
    server: &RegistryServer,
    fault: &Fault,
    (kind, hit): Kind,
    name: &str,
) -> Result<(), String> {
    let came = Arc::new(Mutex::new((0, None)));
    let counted = Arc::clone(&came);
    let (action, times, lasts) = (fault.action.clone(), fault.times, fault.lasts);
    let host = guarded(server.port(), move |request| {
        let mut came = counted.lock().unwrap();
        // a registry that is away is so for all
        if !hit(request) && (lasts == Duration::MAX || came.0 == 0) {
            return None;
        }
        came.0 += 1;
        let since = *came.1.get_or_insert_with(Instant::now);
        (came.0 <= times && since.elapsed() < lasts).then(|| action.clone())
    });
    let registry = client(&host, LOGIN);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let began = Instant::now();
    let lived = runtime.unwrap().block_on(live(&registry, &host, name));
    let (came, _) = *came.lock().unwrap();
    let got = lived.as_ref().err().map(|(_, error)| error.class());
    let told = lived
        .as_ref()
        .map_err(|(verb, error)| format!("{verb}: {}", chain(error)));
    let mut outcome = (fault.outcome)(kind);
    // who may not mount sends the bytes
    let is_mounted = !(kind == "POST mount" && outcome == Some(Class::RIGHTS));
    if !is_mounted {
        outcome = None;
    }
    let is_told = got == outcome
        && told
            .as_ref()
            .map_or(true, |mounted| **mounted == is_mounted);
    if !is_told || !(1..100).contains(&came) {
        return Err(format!("{came} times, {told:?}"));
    }
    if fault.name.starts_with("429, ") && began.elapsed() < Duration::from_secs(2) {
        return Err("the client didn't wait".to_owned());
    }
    if got.is_none() {
        check(server, name);
    }
    Ok(())
}

/// A proxy that wants a token for everything, and one before the server that gives them; the first one's host.
fn guarded(port: u16, harm: impl Fn(&Request) -> Option<Action> + Send + Sync + 'static) -> String {
    let harm = Arc::new(harm);
    let tokens = Proxy::start(0, |_, _| {
        let token = r#"{"token": "good", "expires_in": 300, "issued_at": "2026-11-25T10:00:00Z"}"#;
        Action::Answer(200, Vec::new(), token)
    });
    let of_tokens = Arc::clone(&harm);
    let tokens = Proxy::start(tokens.port(), move |request, _| {
        of_tokens(request).unwrap_or(Action::Forward)
    });
    let realm = format!(
        "Bearer realm=\"http://{}/token\",service=\"x\"",
        tokens.host
    );
    let challenge = move || {
        let header = ("www-authenticate", realm.clone());
        Action::Answer(401, vec![header], "")
    };
    let proxy = Proxy::start(port, move |request, _| {
        if request.header("authorization") != Some("Bearer good") {
            return challenge();
        }
        match harm(request) {
            Some(Action::Answer(401, ..)) => challenge(),
            Some(action) => action,
            None => Action::Forward,
        }
    });
    proxy.host
}

fn a_slow_link_is_not_cut_however_long_a_piece_takes(program: Program) {
    if !program.is_there("a_slow_link_is_not_cut_however_long_a_piece_takes") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let server = RegistryServer::start(program, folder.path());
    // 64 parts of a piece take more than twice what may pass without any
    let proxy = Proxy::start(server.port(), |_, _| {
        Action::Slow(Duration::from_millis(100))
    });
    let registry = client(&proxy.host, r#"{"auths": {}}"#);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let lived = runtime
        .unwrap()
        .block_on(live(&registry, &proxy.host, "slow"));
    lived
        .map_err(|(verb, error)| format!("{verb}: {}", chain(&error)))
        .unwrap();
    check(&server, "slow");
    let seen = proxy.seen();
    let count = |method: &str| seen.iter().filter(|r| r.is(method, "/blobs/")).count();
    assert_eq!((count("PATCH"), count("GET")), (2, 1));
}

with_both_registries! {
    a_slow_link_is_not_cut_however_long_a_piece_takes
    each_fault_at_each_kind_of_request_has_its_outcome
}
