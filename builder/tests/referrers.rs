//! What refers to an image, and what goes when it is deleted? With real registries, which have no referrers API yet, and with the answers of those that have.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that can't go on fails"
)]

mod common;

use bytes::Bytes;
use common::proxy::{Action, Proxy};
use common::{Program, RegistryServer};
use strata_builder::digest::Digest;
use strata_builder::error::{Class, Classify as _};
use strata_builder::reference::{Reference, Repository};
use strata_builder::registry::{Bounds, Options, Registry};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

fn client(host: &str) -> Registry {
    Registry::new(Options {
        plain_http: vec![host.to_owned()],
        bounds: Some(Bounds {
            attempts: 2,
            patience: std::time::Duration::ZERO,
            first_delay: std::time::Duration::from_millis(20),
            longest_delay: std::time::Duration::from_millis(100),
        }),
        ..Options::default()
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

/// An image of nothing, pushed under `tags`, that refers to `subject`.
async fn push(
    registry: &Registry,
    at: &Repository,
    tags: &[&str],
    subject: Option<&str>,
) -> (Digest, u64) {
    let config = Digest::of(b"{}");
    let mut upload = registry.upload(at);
    upload.write(b"{}").await.unwrap();
    upload.finish(config).await.unwrap();
    let subject = subject
        .map(|subject| format!("\"subject\": {subject},"))
        .unwrap_or_default();
    let manifest = Bytes::from(format!(
        r#"{{"schemaVersion": 2, "mediaType": "{MANIFEST}", "artifactType": "example/sbom", {subject}
        "config": {{"mediaType": "application/vnd.oci.image.config.v1+json", "digest": "{config}", "size": 2}}, "layers": []}}"#
    ));
    let digest = Digest::of(&manifest);
    for tag in tags {
        registry
            .push_manifest(&at.tagged(tag), MANIFEST, &manifest)
            .await
            .unwrap();
    }
    (digest, manifest.len() as u64)
}

fn descriptor(digest: Digest, size: u64) -> String {
    format!(
        r#"{{"mediaType": "{MANIFEST}", "digest": "{digest}", "size": {size}, "artifactType": "example/sbom"}}"#
    )
}

fn index(descriptors: &[String]) -> String {
    let manifests = descriptors.join(", ");
    format!(r#"{{"schemaVersion": 2, "mediaType": "{INDEX}", "manifests": [{manifests}]}}"#)
}

fn what_refers_to_an_image_is_found_by_the_tag_that_stands_for_it(program: Program) {
    if !program.is_there("what_refers_to_an_image_is_found_by_the_tag_that_stands_for_it") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let server = RegistryServer::start(program, folder.path());
    let (registry, at) = (client(&server.host), repository(&server.host));
    block_on(async {
        let absent = registry.referrers(&at, Digest::of(b"x")).await.unwrap();
        assert_eq!(absent, [], "of a repository that isn't there");
        let (image, size) = push(&registry, &at, &["v1"], None).await;
        assert_eq!(registry.referrers(&at, image).await.unwrap(), []);
        let subject = descriptor(image, size);
        let (sbom, size) = push(&registry, &at, &["sbom"], Some(&subject)).await;
        // as cosign, oras and others keep it
        let tag = at.tagged(&format!("sha256-{}", image.hex()));
        let text = Bytes::from(index(&[descriptor(sbom, size)]));
        registry.push_manifest(&tag, INDEX, &text).await.unwrap();
        let found = registry.referrers(&at, image).await.unwrap();
        let found: Vec<_> = found
            .iter()
            .map(|found| (found.digest, found.size_bytes))
            .collect();
        assert_eq!(found, [(sbom, size)]);
        // somebody's tag for something else
        let (other, _) = push(&registry, &at, &[], None).await;
        let tag = format!("sha256-{}", Digest::of(b"y").hex());
        push(&registry, &at, &[&tag], None).await;
        assert_eq!(
            registry.referrers(&at, Digest::of(b"y")).await.unwrap(),
            [],
            "{other}"
        );
    });
}

#[test]
fn a_registry_that_knows_what_refers_to_an_image_tells_it_page_by_page_and_not_without_end() {
    let (image, one, two) = (Digest::of(b"image"), Digest::of(b"one"), Digest::of(b"two"));
    let page = |digest| &*index(&[descriptor(digest, 3)]).leak();
    let pages = [page(one), page(two)];
    let json = || ("content-type", INDEX.to_owned());
    let proxy = Proxy::start(0, move |request, before| match before {
        0 if request.is("GET", "/v2/org/os/referrers/sha256:") => {
            let next = "</v2/org/os/referrers/next?last=x>; rel=\"next\"".to_owned();
            Action::Answer(200, vec![json(), ("link", next)], pages[0])
        }
        1 if request.path.ends_with("next?last=x") => Action::Answer(200, vec![json()], pages[1]),
        _ => Action::Answer(400, Vec::new(), ""),
    });
    let found = block_on(client(&proxy.host).referrers(&repository(&proxy.host), image)).unwrap();
    assert_eq!(
        found.iter().map(|found| found.digest).collect::<Vec<_>>(),
        [one, two]
    );
    assert_eq!(found[0].other["artifactType"], "example/sbom");

    for (text, requests) in [(pages[0], 32), ("no index", 1), ("{\"manifests\": [7]}", 1)] {
        let proxy = Proxy::start(0, move |_, _| {
            let next = "</v2/org/os/referrers/again>; rel=\"next\"".to_owned();
            Action::Answer(200, vec![json(), ("link", next)], text)
        });
        let found = block_on(client(&proxy.host).referrers(&repository(&proxy.host), image));
        assert_eq!(found.unwrap_err().class(), Class::INTERNAL, "{text}");
        assert_eq!(proxy.seen().len(), requests, "{text}");
    }
}

fn a_tag_goes_alone_where_tags_are_kept_apart_and_a_manifest_takes_its_tags_along(
    program: Program,
) {
    if !program
        .is_there("a_tag_goes_alone_where_tags_are_kept_apart_and_a_manifest_takes_its_tags_along")
    {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let server = RegistryServer::start(program, folder.path());
    let (registry, at) = (client(&server.host), repository(&server.host));
    block_on(async {
        let (image, _) = push(&registry, &at, &["one", "two", "three"], None).await;
        let is_apart = registry.delete_tag(&at, "one").await.unwrap();
        assert_eq!(is_apart, program == Program::Distribution3);
        assert_eq!(server.manifest("org/os", "one").is_none(), is_apart);
        assert!(server.manifest("org/os", "two").is_some());
        assert_eq!(registry.delete_tag(&at, "absent").await.unwrap(), is_apart);
        for _ in 0..2 {
            registry.delete_manifest(&at, image).await.unwrap();
            for tag in ["one", "two", "three"] {
                assert_eq!(server.manifest("org/os", tag), None);
            }
        }
    });
}

fn a_registry_that_does_not_delete_says_so_once(program: Program) {
    if !program.is_there("a_registry_that_does_not_delete_says_so_once") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let server = RegistryServer::start_without_delete(program, folder.path());
    let proxy = Proxy::start(server.port(), |_, _| Action::Forward);
    let (registry, at) = (client(&proxy.host), repository(&proxy.host));
    block_on(async {
        let (image, _) = push(&registry, &at, &["v1"], None).await;
        let error = registry.delete_manifest(&at, image).await.unwrap_err();
        assert_ne!(error.class(), Class::Transient, "{error}");
        assert!(error.to_string().contains("405 UNSUPPORTED"), "{error}");
        assert!(!registry.delete_tag(&at, "v1").await.unwrap());
    });
    assert!(server.manifest("org/os", "v1").is_some());
    let seen = proxy.seen();
    assert_eq!(
        seen.iter()
            .filter(|request| request.method == "DELETE")
            .count(),
        2
    );
}

fn a_repository_lists_its_tags_and_an_index_its_manifests(program: Program) {
    if !program.is_there("a_repository_lists_its_tags_and_an_index_its_manifests") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let server = RegistryServer::start(program, folder.path());
    let (registry, at) = (client(&server.host), repository(&server.host));
    block_on(async {
        let none: [&str; 0] = [];
        assert_eq!(registry.tags(&at).await.unwrap(), none, "no repository");
        assert!(
            registry
                .stored_manifest(&at.tagged("v1"))
                .await
                .unwrap()
                .is_none()
        );
        let (image, size) = push(&registry, &at, &["v1", "v2"], None).await;
        let text = Bytes::from(index(&[descriptor(image, size)]));
        let all = at.tagged("all");
        registry.push_manifest(&all, INDEX, &text).await.unwrap();
        let mut tags = registry.tags(&at).await.unwrap();
        tags.sort();
        assert_eq!(tags, ["all", "v1", "v2"]);
        for (tag, children) in [("all", vec![image]), ("v1", vec![])] {
            let found = registry.stored_manifest(&at.tagged(tag)).await.unwrap();
            let found = found.unwrap().children().unwrap();
            let found: Vec<_> = found.into_iter().map(|child| child.digest).collect();
            assert_eq!(found, children, "{tag}");
        }
        registry.delete_manifest(&at, image).await.unwrap();
        assert_eq!(registry.tags(&at).await.unwrap(), ["all"]);
    });
}

#[test]
fn tags_are_listed_page_by_page_and_null_is_none() {
    let proxy = Proxy::start(0, move |_, before| match before {
        0 => {
            let next = "</v2/org/os/tags/list?last=b>; rel=\"next\"".to_owned();
            Action::Answer(200, vec![("link", next)], r#"{"tags": ["a", "b"]}"#)
        }
        1 => Action::Answer(200, Vec::new(), r#"{"name": "org/os", "tags": ["c"]}"#),
        _ => Action::Answer(200, Vec::new(), r#"{"name": "org/os", "tags": null}"#),
    });
    let (registry, at) = (client(&proxy.host), repository(&proxy.host));
    block_on(async {
        assert_eq!(registry.tags(&at).await.unwrap(), ["a", "b", "c"]);
        let none: [&str; 0] = [];
        assert_eq!(registry.tags(&at).await.unwrap(), none);
    });
}

/// As their documentation, their code and their users' reports have it: nobody here has tried them.
#[test]
fn the_documented_answers_of_registries_to_a_deletion_say_who_can_do_something_about_it() {
    let error = |status: u16, code: &str, message: &str| {
        let text = format!(r#"{{"errors": [{{"code": "{code}", "message": "{message}"}}]}}"#);
        (status, &*text.leak())
    };
    let served = true;
    for (registry, (status, body), is_served, wanted) in [
        ("any", (202, ""), false, Ok(())),
        ("Harbor", (200, ""), false, Ok(())),
        (
            "any, twice",
            error(404, "MANIFEST_UNKNOWN", "unknown"),
            false,
            Ok(()),
        ),
        (
            "Harbor, twice",
            error(404, "NOT_FOUND", "artifact not found"),
            false,
            Ok(()),
        ),
        (
            "Quay, twice",
            error(500, "UNKNOWN", "Tag was deleted or has expired"),
            false,
            Ok(()),
        ),
        (
            "ECR",
            error(404, "NOT_FOUND", "page not found"),
            served,
            Err(Class::INTERNAL),
        ),
        (
            "distribution, delete off",
            error(405, "UNSUPPORTED", "unsupported"),
            served,
            Err(Class::INTERNAL),
        ),
        (
            "GHCR",
            error(405, "UNSUPPORTED", "unsupported"),
            served,
            Err(Class::INTERNAL),
        ),
        (
            "Artifact Registry",
            error(
                400,
                "GOOGLE_MANIFEST_DANGLING_TAG",
                "still referenced by tag",
            ),
            served,
            Err(Class::INTERNAL),
        ),
        (
            "Harbor, immutable tag",
            error(412, "PRECONDITION", "matches an immutable rule"),
            served,
            Err(Class::INTERNAL),
        ),
        (
            "Harbor, robot",
            error(403, "FORBIDDEN", "no delete permission"),
            served,
            Err(Class::RIGHTS),
        ),
        (
            "Quay, read robot",
            error(401, "UNAUTHORIZED", "access is not authorized"),
            served,
            Err(Class::RIGHTS),
        ),
        (
            "OpenShift",
            error(403, "DENIED", "requested access to the resource is denied"),
            served,
            Err(Class::RIGHTS),
        ),
        (
            "Artifactory, Nexus, Gitea",
            error(403, "DENIED", "forbidden"),
            served,
            Err(Class::RIGHTS),
        ),
        (
            "any, limited",
            error(429, "TOOMANYREQUESTS", "slow down"),
            served,
            Err(Class::Transient),
        ),
        (
            "any, read-only",
            error(503, "UNAVAILABLE", "read-only"),
            served,
            Err(Class::Transient),
        ),
    ] {
        let proxy = Proxy::start(0, move |request, _| match request.method.as_str() {
            "DELETE" => Action::Answer(status, Vec::new(), body),
            _ if is_served => Action::Answer(200, Vec::new(), ""),
            _ => Action::Answer(404, Vec::new(), ""),
        });
        let (registry_client, at) = (client(&proxy.host), repository(&proxy.host));
        let deleted = block_on(registry_client.delete_manifest(&at, Digest::of(b"x")));
        assert_eq!(deleted.map_err(|error| error.class()), wanted, "{registry}");
    }
}

with_both_registries! {
    a_repository_lists_its_tags_and_an_index_its_manifests
    what_refers_to_an_image_is_found_by_the_tag_that_stands_for_it
    a_tag_goes_alone_where_tags_are_kept_apart_and_a_manifest_takes_its_tags_along
    a_registry_that_does_not_delete_says_so_once
}
