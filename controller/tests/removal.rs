//! What is left in a real registry when an image was deleted, and how many bytes on its disk?
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that can't go on fails"
)]

#[path = "../../builder/tests/common/server.rs"]
#[macro_use]
mod server;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use k8s_openapi::api::core::v1::Node;
use kube::client::Body;
use kube::core::PartialObjectMeta;
use kube::{Client, ResourceExt as _};
use serde_json::json;
use server::{Program, RegistryServer};
use strata_builder::digest::Digest;
use strata_builder::reference::{Reference, Repository};
use strata_builder::registry::{Options, Registry};
use strata_controller::apply::image::{Doomed, Removal, remedy, remove, restore};
use strata_controller::error::Error;
use strata_controller::image_streams::ImageStream;
use strata_controller::ledger::{AtWork, Removing};
use strata_controller::live::Needs;
use strata_controller::usage::{Use, Users};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// What each look at the cluster finds, the first one first; the last again and again, or never.
struct Looks {
    left: Mutex<Vec<Users>>,
    is_endless: bool,
    noted: Mutex<Vec<Removing>>,
    /// An apiserver that may know an ImageStream.
    apiserver: Option<Client>,
}

impl Looks {
    fn new(mut looks: Vec<Users>) -> Self {
        looks.reverse();
        Self {
            left: Mutex::new(looks),
            is_endless: true,
            noted: Mutex::default(),
            apiserver: None,
        }
    }
}

impl Needs for Looks {
    fn cluster(&self) -> Option<&str> {
        Some("ours")
    }

    async fn image_stream(&self, repository: &Repository) -> Result<Option<ImageStream>, Error> {
        match &self.apiserver {
            Some(client) => Ok(ImageStream::of(client, repository).await.unwrap()),
            None => Ok(None),
        }
    }

    async fn users(&self) -> Result<Users, Error> {
        let found = {
            let mut looks = self.left.lock().unwrap();
            match looks.len() {
                1 if self.is_endless => Some(looks[0].clone()),
                _ => looks.pop(),
            }
        };
        match found {
            Some(found) => Ok(found),
            None => std::future::pending().await,
        }
    }

    async fn begin_removal(&self, removing: &Removing) -> Result<AtWork, Error> {
        self.noted.lock().unwrap().push(removing.clone());
        Ok(AtWork::default())
    }

    async fn end_removal(&self, removing: &Removing) -> Result<(), Error> {
        self.noted.lock().unwrap().retain(|one| one != removing);
        Ok(())
    }
}

fn node(image: &str) -> Users {
    let mut node: PartialObjectMeta<Node> = PartialObjectMeta::default();
    node.annotations_mut()
        .insert("example.com/staged".to_owned(), image.to_owned());
    Users {
        nodes: vec![node.into()],
        ..Users::default()
    }
}

struct Place {
    server: RegistryServer,
    registry: Registry,
    at: Repository,
}

impl Place {
    fn new(program: Program, folder: &Path) -> Self {
        let _installed_before = rustls::crypto::ring::default_provider().install_default();
        let server = RegistryServer::start(program, folder);
        let reference: Reference = format!("{}/org/os:v1", server.host).parse().unwrap();
        Self {
            registry: Registry::new(Options {
                plain_http: vec![server.host.clone()],
                ..Options::default()
            })
            .unwrap(),
            server,
            at: reference.repository,
        }
    }

    /// Of these layers, each a byte that comes a hundred thousand times; with what else the manifest has.
    async fn push(&self, tag: &str, layers: &[u8], more: serde_json::Value) -> Digest {
        let mut blobs = vec![b"{}".to_vec()];
        blobs.extend(layers.iter().map(|byte| vec![*byte; 100_000]));
        let mut descriptors = Vec::new();
        for blob in blobs {
            let digest = Digest::of(&blob);
            if !self.registry.has_blob(&self.at, digest).await.unwrap() {
                let mut upload = self.registry.upload(&self.at);
                upload.write(&blob).await.unwrap();
                upload.finish(digest).await.unwrap();
            }
            descriptors.push(json!({"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest, "size": blob.len()}));
        }
        let mut manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "config": descriptors[0], "layers": descriptors[1..],
        });
        manifest["config"]["mediaType"] = "application/vnd.oci.image.config.v1+json".into();
        for (key, value) in more.as_object().unwrap() {
            manifest[key] = value.clone();
        }
        self.put(tag, MANIFEST, &manifest).await
    }

    async fn put(&self, tag: &str, media_type: &str, manifest: &serde_json::Value) -> Digest {
        let bytes = Bytes::from(manifest.to_string());
        let reference = self.at.tagged(tag);
        let put = self.registry.push_manifest(&reference, media_type, &bytes);
        put.await.unwrap()
    }

    async fn tags(&self) -> Vec<String> {
        let mut tags = self.registry.tags(&self.at).await.unwrap();
        tags.sort();
        tags
    }

    async fn remove(&self, looks: Vec<Users>, digest: Digest, tag: &str) -> Removal {
        self.remove_with(Looks::new(looks), digest, tag).await
    }

    async fn remove_with(&self, looks: Looks, digest: Digest, tag: &str) -> Removal {
        let doomed = Doomed {
            repository: &self.at,
            digest,
            tag: Some(tag),
            push_secret: "push",
            asking: Some("uid"),
        };
        let done = remove(&looks, &self.registry, &doomed).await.unwrap();
        assert!(looks.noted.lock().unwrap().is_empty());
        done
    }

    async fn has(&self, digest: Digest) -> bool {
        let image = self.at.digested(digest);
        self.registry.head_manifest(&image).await.unwrap() == Some(digest)
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.unwrap().block_on(future)
}

fn with_an_image_goes_what_belongs_to_it_and_nothing_else(program: Program) {
    if !program.is_there("with_an_image_goes_what_belongs_to_it_and_nothing_else") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let place = Place::new(program, folder.path());
    block_on(async {
        let image = place.push("v1", &[1], json!({})).await;
        let other = place.push("v2", &[1, 2], json!({})).await;
        let hex = image.hex();
        let subject = json!({"mediaType": MANIFEST, "digest": image, "size": 1});
        let sbom = place.push("sbom", &[3], json!({"subject": subject})).await;
        let index = json!({
            "schemaVersion": 2, "mediaType": INDEX,
            "manifests": [{"mediaType": MANIFEST, "digest": sbom, "size": 1}],
        });
        place.put(&format!("sha256-{hex}"), INDEX, &index).await;
        let signature = place
            .push(&format!("sha256-{hex}.sig"), &[4], json!({}))
            .await;
        // somebody gave an image in use a name like an attestation's
        let used = place
            .push(&format!("sha256-{hex}.att"), &[5], json!({}))
            .await;
        let note = |uid: &str| json!({"annotations": {"strata.image-mode.dev/steps-of": uid}});
        place.push("v1-strata-steps", &[6], note("uid")).await;
        place.push("v2-strata-steps", &[7], note("another")).await;
        let named = place.at.digested(used).to_string();
        let done = place.remove(vec![node(&named)], image, "v1").await;
        assert!(
            matches!(done, Removal::Gone { was_there: true }),
            "{done:?}"
        );
        for gone in [image, sbom, signature] {
            assert!(!place.has(gone).await, "{gone}");
        }
        assert!(place.has(other).await && place.has(used).await);
        let left = [
            format!("sha256-{hex}.att"),
            "v2".to_owned(),
            "v2-strata-steps".to_owned(),
        ];
        assert_eq!(place.tags().await, left);
        // again: there is nothing to do
        let done = place.remove(vec![node(&named)], image, "v1").await;
        assert!(
            matches!(done, Removal::Gone { was_there: false }),
            "{done:?}"
        );
        // a note of another build stays with its tag
        let done = place.remove(vec![node(&named)], other, "v2").await;
        assert!(
            matches!(done, Removal::Gone { was_there: true }),
            "{done:?}"
        );
        assert_eq!(place.tags().await, [left[0].clone(), left[2].clone()]);
    });
}

fn an_image_that_is_taken_meanwhile_is_put_back_with_its_tag(program: Program) {
    if !program.is_there("an_image_that_is_taken_meanwhile_is_put_back_with_its_tag") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let place = Place::new(program, folder.path());
    block_on(async {
        let image = place.push("v1", &[1], json!({})).await;
        let before = place.server.manifest("org/os", "v1").unwrap();
        let taken = || node(&place.at.digested(image).to_string());
        let free = Users::default;
        let done = place.remove(vec![taken()], image, "v1").await;
        assert!(matches!(done, Removal::InUse(Use::Node(_))), "{done:?}");
        let done = place.remove(vec![free(), taken()], image, "v1").await;
        assert!(matches!(done, Removal::InUse(Use::Node(_))), "{done:?}");
        assert!(place.has(image).await);
        assert_eq!(place.server.manifest("org/os", "v1").unwrap(), before);
        // also a part of an index that is named
        let index = json!({
            "schemaVersion": 2, "mediaType": INDEX,
            "manifests": [{"mediaType": MANIFEST, "digest": image, "size": 1}],
        });
        let index = place.put("some", INDEX, &index).await;
        // and of one in that
        let outer = json!({
            "schemaVersion": 2, "mediaType": INDEX,
            "manifests": [{"mediaType": INDEX, "digest": index, "size": 1}],
        });
        let index = place.put("all", INDEX, &outer).await;
        let mut of_index = node("");
        Arc::make_mut(&mut of_index.nodes[0])
            .annotations_mut()
            .insert(
                "machineconfiguration.openshift.io/currentImage".to_owned(),
                place.at.digested(index).to_string(),
            );
        let done = place.remove(vec![of_index], image, "v1").await;
        assert!(matches!(done, Removal::InUse(Use::Index(_))), "{done:?}");
        let done = place.remove(vec![free()], image, "v1").await;
        assert!(
            matches!(done, Removal::Gone { was_there: true }),
            "{done:?}"
        );
    });
}

/// An apiserver of OpenShift, for which `host` is the cluster's own registry: the digest that each ImageStreamTag names, and which of them it was asked to delete.
#[derive(Clone, Default)]
struct OpenShift {
    host: String,
    tags: Arc<Mutex<BTreeMap<String, Digest>>>,
    is_allowed: bool,
}

impl OpenShift {
    fn client(&self) -> Client {
        let this = self.clone();
        let answer = move |request: Request<Body>| {
            let (status, body) = this.answer(request.method(), request.uri().path());
            let response = Response::builder().status(status);
            let response = response.body(Body::from(body.to_string().into_bytes()));
            std::future::ready(response)
        };
        Client::new(tower::service_fn(answer), "ns")
    }

    fn answer(&self, method: &Method, path: &str) -> (StatusCode, serde_json::Value) {
        const TAGS: &str = "/apis/image.openshift.io/v1/namespaces/org/imagestreamtags/";
        let failure = |status: StatusCode| {
            let body = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": "no", "code": status.as_u16()});
            (status, body)
        };
        if path == "/apis/config.openshift.io/v1/images/cluster" {
            let status = json!({"internalRegistryHostname": self.host});
            let body = json!({"apiVersion": "config.openshift.io/v1", "kind": "Image", "metadata": {"name": "cluster"}, "status": status});
            return (StatusCode::OK, body);
        }
        let name = path.strip_prefix(TAGS).unwrap();
        let mut tags = self.tags.lock().unwrap();
        let Some(digest) = tags.get(name) else {
            return failure(StatusCode::NOT_FOUND);
        };
        let tag = json!({
            "apiVersion": "image.openshift.io/v1", "kind": "ImageStreamTag", "metadata": {"name": name, "namespace": "org"},
            "image": {"metadata": {"name": digest}, "dockerImageReference": ""},
        });
        match *method {
            Method::DELETE if self.is_allowed => {
                tags.remove(name);
                (StatusCode::OK, tag)
            }
            Method::DELETE => failure(StatusCode::FORBIDDEN),
            _ => (StatusCode::OK, tag),
        }
    }
}

fn from_openshifts_registry_go_the_tags_of_the_image_stream(program: Program) {
    if !program.is_there("from_openshifts_registry_go_the_tags_of_the_image_stream") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let place = Place::new(program, folder.path());
    block_on(async {
        let image = place.push("v1", &[1], json!({})).await;
        let signature_tag = format!("sha256-{}.sig", image.hex());
        let signature = place.push(&signature_tag, &[2], json!({})).await;
        let note = json!({"annotations": {"strata.image-mode.dev/steps-of": "uid"}});
        let note = place.push("v1-strata-steps", &[3], note).await;
        let other = place.push("v2", &[4], json!({})).await;
        let openshift = OpenShift {
            host: place.server.host.clone(),
            is_allowed: true,
            ..OpenShift::default()
        };
        let named = || -> Vec<String> { openshift.tags.lock().unwrap().keys().cloned().collect() };
        for (tag, digest) in [
            ("v1", image),
            (&signature_tag, signature),
            ("v1-strata-steps", note),
            ("v2", other),
        ] {
            let name = format!("os:{tag}");
            openshift.tags.lock().unwrap().insert(name, digest);
        }
        let looks = |openshift: &OpenShift| Looks {
            apiserver: Some(openshift.client()),
            ..Looks::new(vec![Users::default()])
        };
        let refusing = OpenShift {
            is_allowed: false,
            ..openshift.clone()
        };
        let done = place.remove_with(looks(&refusing), image, "v1").await;
        let Removal::Refused(error) = done else {
            panic!("{done:?}")
        };
        let told = remedy(&error, "push");
        assert!(told.contains("imagestreamtags in namespace org"), "{told}");
        assert_eq!(named().len(), 4);

        let done = place.remove_with(looks(&openshift), image, "v1").await;
        assert!(
            matches!(done, Removal::Gone { was_there: true }),
            "{done:?}"
        );
        assert_eq!(named(), ["os:v2"]);
        // the registry itself was not asked for it
        assert!(place.has(image).await && place.has(signature).await);

        // a tag that names something else by now stays
        let done = place.remove_with(looks(&openshift), image, "v2").await;
        assert!(matches!(done, Removal::Refused(_)), "{done:?}");
        assert_eq!(named(), ["os:v2"]);

        let elsewhere = OpenShift {
            host: "registry.example.com".to_owned(),
            ..openshift.clone()
        };
        let done = place.remove_with(looks(&elsewhere), image, "v1").await;
        assert!(
            matches!(done, Removal::Gone { was_there: true }),
            "{done:?}"
        );
        assert!(!place.has(image).await);
    });
}

fn a_deletion_that_was_cut_off_is_finished_by_the_next_process(program: Program) {
    if !program.is_there("a_deletion_that_was_cut_off_is_finished_by_the_next_process") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let place = Place::new(program, folder.path());
    block_on(async {
        for (tag, layer, is_taken) in [("v1", 1, true), ("v2", 2, false)] {
            let image = place.push(tag, &[layer], json!({})).await;
            let before = place.server.manifest("org/os", tag).unwrap();
            let looks = Looks {
                is_endless: false,
                ..Looks::new(vec![Users::default()])
            };
            let doomed = Doomed {
                repository: &place.at,
                digest: image,
                tag: Some(tag),
                push_secret: "push",
                asking: Some("uid"),
            };
            let removal = remove(&looks, &place.registry, &doomed);
            let gone = async {
                while place.has(image).await {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            };
            tokio::select! {
                done = removal => panic!("{done:?} without a second look"),
                () = gone => {}
            }
            let noted = looks.noted.into_inner().unwrap();
            let [removing] = noted.as_slice() else {
                panic!("{noted:?}");
            };
            assert_eq!(
                (removing.push_secret.as_str(), removing.tag.as_deref()),
                ("push", Some(tag))
            );
            let users = match is_taken {
                true => node(&place.at.digested(image).to_string()),
                false => Users::default(),
            };
            let looks = Looks::new(vec![users]);
            restore(&looks, &place.registry, removing).await.unwrap();
            assert_eq!(place.has(image).await, is_taken);
            let after = place.server.manifest("org/os", tag);
            assert_eq!(after.is_some_and(|after| after == before), is_taken);
        }
    });
}

fn what_is_freed_leaves_the_disk_with_the_registrys_garbage_collection(program: Program) {
    if !program.is_there("what_is_freed_leaves_the_disk_with_the_registrys_garbage_collection") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut place = Place::new(program, folder.path());
    let (image, stays) = block_on(async {
        let image = place.push("v1", &[1, 2, 3], json!({})).await;
        (image, place.push("v2", &[1], json!({})).await)
    });
    let blobs = || bytes_of(&folder.path().join("registry/docker/registry/v2/blobs"));
    let before = blobs();
    block_on(place.remove(vec![Users::default()], image, "v1"));
    assert_eq!(blobs(), before, "only the registry frees bytes");
    place.server.stop();
    let collected = Command::new(program.path())
        .args(["garbage-collect"])
        .arg(folder.path().join("registry.yml"))
        .env("OTEL_TRACES_EXPORTER", "none")
        .output()
        .unwrap();
    assert!(collected.status.success());
    let freed = before - blobs();
    println!("{program:?}: {before} bytes before, {freed} freed");
    // two layers of its own, and its manifest
    assert!((200_000..201_000).contains(&freed), "{freed}");
    place.server.restart();
    assert!(block_on(place.has(stays)));
}

fn bytes_of(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).unwrap();
    let sizes = entries.map(|entry| {
        let entry = entry.unwrap();
        match entry.file_type().unwrap().is_dir() {
            true => bytes_of(&entry.path()),
            false => entry.metadata().unwrap().len(),
        }
    });
    sizes.sum()
}

with_both_registries! {
    with_an_image_goes_what_belongs_to_it_and_nothing_else
    an_image_that_is_taken_meanwhile_is_put_back_with_its_tag
    from_openshifts_registry_go_the_tags_of_the_image_stream
    a_deletion_that_was_cut_off_is_finished_by_the_next_process
    what_is_freed_leaves_the_disk_with_the_registrys_garbage_collection
}
