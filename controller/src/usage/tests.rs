use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::*;
use crate::api::machine_os_config::MachineOSConfigStatus;
use crate::decoded::Decoded;
use crate::fixtures;

const IMAGE: &str = "10.0.0.1:5000/os/worker@sha256:220a60ecd4a3c32c282622a625a54db9ba0ff55b5ba9c29c7064a2bc358b6a3e";

fn digest() -> Digest {
    IMAGE.rsplit_once('@').unwrap().1.parse().unwrap()
}

fn node(key: &str, value: &str) -> Users {
    Users {
        nodes: vec![fixtures::node(key, value).into()],
        ..Users::default()
    }
}

fn config(change: impl Fn(&mut MachineOSConfig)) -> Users {
    let mut os_config = fixtures::os_config();
    change(&mut os_config);
    Users {
        os_configs: vec![os_config.into()],
        ..Users::default()
    }
}

fn build(mut os_build: MachineOSBuild, annotations: &[(&str, &str)]) -> Users {
    for (key, value) in annotations {
        let annotations = os_build.annotations_mut();
        annotations.insert((*key).to_owned(), (*value).to_owned());
    }
    Users {
        os_builds: vec![os_build.into()],
        ..Users::default()
    }
}

fn going(mut users: Users) -> Users {
    let now = Some(Time(Timestamp::UNIX_EPOCH));
    for one in &mut users.os_configs {
        Arc::make_mut(one).metadata.deletion_timestamp = now.clone();
    }
    for one in &mut users.os_builds {
        Arc::make_mut(one).metadata.deletion_timestamp = now.clone();
    }
    users
}

fn machine_config(change: impl Fn(&mut MachineConfig)) -> Users {
    let mut machine_config = fixtures::machine_config();
    change(&mut machine_config);
    Users {
        machine_configs: vec![Arc::new(machine_config)],
        ..Users::default()
    }
}

fn entry(keep: bool) -> Users {
    Users {
        entries: vec![Entry {
            keep,
            ..fixtures::entry(IMAGE)
        }],
        ..Users::default()
    }
}

fn adopted(os_config: &mut MachineOSConfig) {
    os_config.status = Some(MachineOSConfigStatus {
        current_image_pull_spec: Some(IMAGE.to_owned()),
        ..MachineOSConfigStatus::default()
    });
}

#[test]
fn whatever_names_an_image_needs_it() {
    let elsewhere = IMAGE.replace("10.0.0.1:5000", "mirror.example.com");
    let other = IMAGE.replace("220a", "330b");
    let staged = format!(r#"{{"staged":{{"image":"{IMAGE}"}}}}"#);
    let built = || fixtures::os_build_with_image(IMAGE);
    let name = built().name_any();
    let annotated = |key: &'static str| {
        move |config: &mut MachineOSConfig| {
            let annotations = config.annotations_mut();
            annotations.insert(key.to_owned(), format!("q.io/a/b:1, {IMAGE}"));
        }
    };
    let claim = [(annotation::REUSED_IMAGE, IMAGE)];
    let keep = [(annotation::KEEP_IMAGE, "")];
    let on_node = || Some(Use::Node("node1".to_owned()));
    let by_config = || Some(Use::Config("worker".to_owned()));
    let by_build = || Some(Use::Build(name.clone()));
    let by_machine_config = || Some(Use::MachineConfig("rendered-worker-0".to_owned()));
    let by_hand = || Some(Use::Kept(name.clone()));
    for (users, asking, wanted) in [
        (node(annotation::NODE_CURRENT_IMAGE, IMAGE), None, on_node()),
        (
            node(annotation::NODE_DESIRED_IMAGE, &elsewhere),
            None,
            on_node(),
        ),
        (
            node("rpm-ostree.example.com/state", &staged),
            None,
            on_node(),
        ),
        (node(annotation::NODE_DESIRED_IMAGE, ""), None, None),
        (
            node(annotation::NODE_DESIRED_IMAGE, "junk@sha256:12"),
            None,
            None,
        ),
        (config(adopted), None, by_config()),
        (
            config(annotated(annotation::PRE_BUILT_IMAGE)),
            None,
            by_config(),
        ),
        (config(annotated(annotation::KEEP_IMAGE)), None, by_config()),
        (config(annotated("example.com/note")), None, None),
        (going(config(adopted)), None, None),
        (
            machine_config(|one| one.spec.os_image_url = Some(IMAGE.to_owned())),
            None,
            by_machine_config(),
        ),
        (
            machine_config(|one| one.spec.extensions_image = Some(IMAGE.to_owned())),
            None,
            by_machine_config(),
        ),
        (
            machine_config(|one| one.spec.os_image_url = Some(other.clone())),
            None,
            None,
        ),
        (build(built(), &[]), None, by_build()),
        (build(built(), &[]), Some("build-uid"), None),
        (going(build(built(), &[])), None, None),
        (build(fixtures::os_build(), &claim), None, by_build()),
        // it ended with another
        (
            build(fixtures::os_build_with_image(&other), &claim),
            None,
            None,
        ),
        (build(built(), &keep), Some("build-uid"), by_hand()),
        (going(build(built(), &keep)), Some("build-uid"), by_hand()),
        (
            build(built(), &[(annotation::KEEP_IMAGE, "false")]),
            Some("build-uid"),
            None,
        ),
        (entry(true), None, Some(Use::Kept("worker-0".to_owned()))),
        (entry(false), None, None),
        (Users::default(), None, None),
    ] {
        assert_eq!(users.of(digest(), asking), wanted, "{users:#?}");
    }
}

#[test]
fn only_what_was_not_built_here_can_be_an_index_with_the_image() {
    let repository = IMAGE.parse::<Reference>().unwrap().repository;
    let other = IMAGE.replace("220a", "330b");
    let built = build(fixtures::os_build_with_image(IMAGE), &[]);
    let seeded = build(
        fixtures::os_build_with_image(IMAGE),
        &[(annotation::PRE_BUILT_IMAGE, IMAGE)],
    );
    let mut named = Users {
        nodes: node(annotation::NODE_CURRENT_IMAGE, &other).nodes,
        os_configs: config(adopted).os_configs,
        ..built
    };
    let tag = "10.0.0.1:5000/os/worker:latest";
    named.machine_configs = machine_config(|one| {
        one.spec.os_image_url = Some(tag.to_owned());
        one.spec.extensions_image = Some("q.io/os/worker:latest".to_owned());
    })
    .machine_configs;
    for (users, wanted) in [
        (named, vec![other.as_str(), tag]),
        (seeded, vec![IMAGE]),
        (node("example.com/note", IMAGE), vec![IMAGE]),
    ] {
        let found = users.possible_indexes(&repository);
        let found: Vec<_> = found.iter().map(ToString::to_string).collect();
        assert_eq!(found, wanted);
    }
}

#[test]
fn while_an_object_can_not_be_decoded_no_image_is_unneeded() {
    let wrong = serde_json::json!({
        "apiVersion": "machineconfiguration.openshift.io/v1",
        "kind": "MachineOSBuild",
        "metadata": {"name": "worker-7", "uid": "uid-7"},
        "spec": {"renderedImagePushSpec": 7},
    });
    let Decoded::<MachineOSBuild>::Undecodable(one) = serde_json::from_value(wrong).unwrap() else {
        panic!("decoded");
    };
    let unknown = Some(Use::Unknown(one.told()));
    let users = Users {
        undecodable: vec![Arc::from(one)],
        ..node(
            annotation::NODE_CURRENT_IMAGE,
            &IMAGE.replace("220a", "330b"),
        )
    };
    assert_eq!(users.of(digest(), None), unknown);
    assert_eq!(users.beside_builds(digest()), unknown);
    assert!(users.has_build("uid-7") && !users.has_build("uid-8"));
    let named = Users {
        undecodable: users.undecodable,
        ..build(fixtures::os_build_with_image(IMAGE), &[])
    };
    assert!(matches!(named.of(digest(), None), Some(Use::Build(_))));
    assert_eq!(named.beside_builds(digest()), unknown);
}
