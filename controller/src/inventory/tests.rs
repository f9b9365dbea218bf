use jiff::SignedDuration;
use kube::ResourceExt as _;

use super::*;
use crate::api::{MachineOSBuild, annotation};
use crate::fixtures::{self, now};
use crate::ledger::Entry;

const REPOSITORY: &str = "registry.example.com/org/repo";

/// A manifest of these layers, each of a kilobyte times its number, pushed for a build.
fn image(layers: &[u64], build_uid: Option<&str>, cluster: &str) -> Stored {
    let blob = |n: u64| {
        let digest = Digest::of(&n.to_be_bytes());
        serde_json::json!({"mediaType": "m", "digest": digest, "size": n * 1024})
    };
    let annotations = match build_uid {
        Some(uid) => serde_json::json!({
            "strata.image-mode.dev/build-uid": uid,
            "strata.image-mode.dev/cluster": cluster,
            "strata.image-mode.dev/tag": "v1",
        }),
        None => serde_json::json!({}),
    };
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "config": blob(0),
        "layers": layers.iter().map(|n| blob(*n)).collect::<Vec<_>>(),
        "annotations": annotations,
    });
    let manifest = manifest.to_string().into_bytes();
    Stored {
        repository: format!("{REPOSITORY}:x")
            .parse::<strata_builder::reference::Reference>()
            .unwrap()
            .repository,
        digest: Digest::of(&manifest),
        tags: BTreeSet::from(["v1".to_owned()]),
        manifest,
    }
}

fn named(stored: &Stored) -> String {
    format!("{REPOSITORY}@{}", stored.digest)
}

fn build(stored: &Stored, uid: &str) -> MachineOSBuild {
    let mut os_build = fixtures::os_build_with_image(&named(stored));
    os_build.metadata.name = Some(format!("worker-{uid}"));
    os_build.metadata.uid = Some(uid.to_owned());
    os_build
}

fn facts(stored: Vec<Stored>, users: Users) -> Facts {
    Facts {
        stored,
        users,
        cluster: Some("ours".to_owned()),
        surplus: BTreeMap::from([("old".to_owned(), "the newest 1 stay".to_owned())]),
    }
}

fn with_entry(entry: Entry) -> Users {
    Users {
        entries: vec![entry],
        ..Users::default()
    }
}

#[test]
fn every_image_has_a_fate_and_its_cause() {
    use Fate::{Goes, NotOurs, Stays, Waits};
    let ours = || image(&[1], Some("old"), "ours");
    let with_build = |uid| Users {
        os_builds: vec![build(&ours(), uid).into()],
        ..Users::default()
    };
    let on_node = |users: Users| Users {
        nodes: vec![fixtures::node(annotation::NODE_CURRENT_IMAGE, &named(&ours())).into()],
        ..users
    };
    let both = || Users {
        os_builds: ["old", "new"]
            .map(|uid| build(&ours(), uid).into())
            .to_vec(),
        ..Users::default()
    };
    let entry = || fixtures::entry(&named(&ours()));
    let orphan = |hours| Entry {
        since: now() - SignedDuration::from_hours(hours),
        orphan_of: Some("old".to_owned()),
        ..entry()
    };
    let mut running = with_build("old");
    std::sync::Arc::make_mut(&mut running.os_builds[0]).status = None;
    for (stored, users, fate, why) in [
        (
            ours(),
            with_build("new"),
            Stays,
            "MachineOSBuild worker-new names it",
        ),
        (
            ours(),
            with_build("old"),
            Goes,
            "MachineOSBuild worker-old names it, which goes, as the newest 1 stay",
        ),
        (ours(), both(), Stays, "MachineOSBuild worker-old names it"),
        (
            ours(),
            on_node(with_build("old")),
            Stays,
            "node node1 names it",
        ),
        (ours(), running, Stays, "its build has not ended"),
        (
            ours(),
            with_entry(entry()),
            Goes,
            "MachineOSBuild worker-0 is gone, and nothing needs it any more",
        ),
        (
            ours(),
            on_node(with_entry(entry())),
            Waits,
            "until nothing needs it, as MachineOSBuild worker-0 is gone: node node1 names it",
        ),
        (
            ours(),
            with_entry(orphan(1)),
            Waits,
            "until 2023-11-15T21:13:20Z, as MachineOSBuild worker-0 is gone",
        ),
        (
            ours(),
            with_entry(orphan(25)),
            Goes,
            "MachineOSBuild worker-0 is gone, and nothing needs it any more",
        ),
        (
            ours(),
            with_entry(Entry {
                keep: true,
                ..entry()
            }),
            Stays,
            "MachineOSBuild worker-0 has the annotation strata.image-mode.dev/keep-image",
        ),
        (
            ours(),
            Users::default(),
            Waits,
            "its build is gone: it goes a day after that was seen",
        ),
        (
            image(&[1], Some("old"), "theirs"),
            Users::default(),
            NotOurs,
            "a build of another cluster, or one before images said so",
        ),
        (
            image(&[1], None, ""),
            Users::default(),
            NotOurs,
            "no build made it",
        ),
    ] {
        let found = inventory(&facts(vec![stored], users), now());
        let row = &found.images[0];
        assert_eq!((row.fate, row.why.as_str()), (fate, why));
    }
}

#[test]
fn a_blob_comes_free_once_and_only_if_no_image_that_stays_has_it() {
    let (stays, goes, goes_too) = (
        image(&[1, 2], None, ""),
        image(&[2, 4, 8], Some("old"), "ours"),
        image(&[8, 16], Some("old"), "ours"),
    );
    let users = Users {
        os_builds: [&goes, &goes_too]
            .map(|one| build(one, "old").into())
            .to_vec(),
        ..Users::default()
    };
    let names = users.os_builds.iter().map(|one| one.name_any());
    assert_eq!(names.collect::<Vec<_>>(), ["worker-old", "worker-old"]);
    let stored = vec![stays.clone(), goes.clone(), goes_too.clone()];
    let found = inventory(&facts(stored, users), now());
    let row = |stored: &Stored| {
        let row = found.images.iter().find(|row| row.digest == stored.digest);
        let row = row.unwrap();
        [row.size_bytes, row.shared_bytes].map(|bytes| bytes / 1024)
    };
    assert_eq!(row(&stays), [3, 2]);
    assert_eq!(row(&goes), [14, 10]);
    assert_eq!(row(&goes_too), [24, 8]);
    assert_eq!(found.total_bytes, 31 * 1024);
    assert_eq!(found.freed_bytes, 28 * 1024);
}

#[test]
fn the_table_has_a_line_for_each_image_and_the_sum() {
    let mut stored = image(&[1, 2048], None, "");
    stored.digest = Digest::of(b"");
    let found = inventory(&facts(vec![stored], Users::default()), now());
    assert_eq!(
        table(&found),
        "\
REPOSITORY                     DIGEST               TAGS  SIZE     SHARED  FATE      FREES  WHY
registry.example.com/org/repo  sha256:e3b0c44298fc  v1    2.0 MiB  0 B     not-ours  0 B    no build made it
1 images with 2.0 MiB; 0 go and free 0 B
"
    );
    let json = serde_json::to_value(&found).unwrap();
    assert_eq!(json["images"][0]["fate"], "not-ours");
    assert_eq!(json["images"][0]["sizeBytes"], 2049 * 1024);
}
