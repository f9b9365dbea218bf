//! Each setting in the three places where it can be written.

use strata_builder::error::{Class, Classify as _};

use super::*;
use crate::fixtures::{self, build_args};

fn keys(pairs: &[(&str, &str)]) -> Result<BuildSettings, SettingsError> {
    let data = pairs
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect();
    BuildSettings::of_config_map(&build_args(), &data, &["STRATA_LOG"], "ns")
}

fn annotated(pairs: &[(&str, &str)]) -> MachineOSConfig {
    let mut os_config = fixtures::os_config();
    for (key, value) in pairs {
        let annotations = os_config.annotations_mut();
        annotations.insert((*key).to_owned(), (*value).to_owned());
    }
    os_config
}

#[test]
fn without_any_setting_everything_but_the_image_has_its_default() {
    let settings = BuildSettings::new(build_args(), "ns").unwrap();
    assert_eq!(settings.max_builds, None);
    assert_eq!(settings.retention, Retention::default());
    let wanted = JobSettings {
        namespace: "ns".to_owned(),
        cluster: None,
        builder_image: "builder".to_owned(),
        service_account: "strata-builder".to_owned(),
        plain_http: Vec::new(),
        deadline: Duration::from_secs(7200),
        retries: 3,
        resources: Resources::default(),
        scratch: Scratch::default(),
        node_selector: BTreeMap::new(),
        tolerations: Vec::new(),
        priority_class: None,
        shape: None,
        tier: "auto".to_owned(),
        layers: "stage".to_owned(),
        compression: "gzip".to_owned(),
        proxy: Proxy::default(),
    };
    assert_eq!(settings.job, wanted);
    assert_eq!(
        keys(&[("STRATA_LOG", "what others read")]).unwrap(),
        settings
    );
}

#[test]
fn the_config_map_changes_what_it_names_and_nothing_else() {
    let before = BuildSettings::new(build_args(), "ns").unwrap();
    let settings = keys(&[
        ("STRATA_MAX_BUILDS", "4"),
        ("STRATA_PLAIN_HTTP", "10.0.0.1:5000, registry.local,"),
        ("STRATA_BUILD_DEADLINE", "45m"),
        ("STRATA_BUILD_NODE_SELECTOR", "disk=fast,infra="),
        ("STRATA_BUILD_TOLERATION", "infra:NoSchedule,"),
        ("STRATA_BUILD_PRIORITY_CLASS", ""),
        ("STRATA_BUILD_HTTP_PROXY", "http://proxy:3128"),
        ("STRATA_BUILD_POD", "rootless"),
    ])
    .unwrap();
    assert_eq!(settings.max_builds, Some(4));
    let job = &settings.job;
    assert_eq!(job.plain_http, ["10.0.0.1:5000", "registry.local"]);
    assert_eq!(job.deadline, Duration::from_secs(2700));
    let labels = [("disk", "fast"), ("infra", "")].map(|(k, v)| (k.to_owned(), v.to_owned()));
    assert_eq!(job.node_selector, BTreeMap::from(labels));
    assert_eq!(job.tolerations.len(), 1);
    assert_eq!(job.priority_class, None);
    assert_eq!(job.shape, Some(PodShape::Rootless));
    assert_eq!(job.proxy.http_proxy.as_deref(), Some("http://proxy:3128"));
    assert_eq!(job.resources, before.job.resources);
    assert_eq!(
        settings.differs(&before),
        [
            "build-deadline",
            "build-http-proxy",
            "build-node-selector",
            "build-pod",
            "build-priority-class",
            "build-toleration",
            "max-builds",
            "plain-http",
        ]
    );
}

#[test]
fn annotations_count_for_their_config_alone_and_leave_the_rest_as_it_is_set() {
    let settings = keys(&[
        ("STRATA_BUILD_MEMORY_LIMIT", "3Gi"),
        ("STRATA_BUILD_TOLERATION", "a,b"),
    ])
    .unwrap();
    let plain = annotated(&[
        ("strata.image-mode.dev/build-anew", ""),
        ("strata.image-mode.dev/another", "thing"),
        ("example.com/build-deadline", "soon"),
    ]);
    assert_eq!(settings.of(&plain).unwrap(), settings.job);
    let own = annotated(&[
        ("strata.image-mode.dev/build-deadline", "3h"),
        ("strata.image-mode.dev/build-toleration", "c"),
        ("strata.image-mode.dev/build-scratch-size", "20Gi"),
        ("strata.image-mode.dev/build-scratch-class", "fast"),
        ("strata.image-mode.dev/build-layers", "step"),
        ("strata.image-mode.dev/build-compression", "zstd:7"),
        ("strata.image-mode.dev/build-retries", "0"),
    ]);
    let job = settings.of(&own).unwrap();
    let wanted = JobSettings {
        deadline: Duration::from_secs(3 * 3600),
        tolerations: vec![parse::toleration("c").unwrap()],
        scratch: Scratch {
            size: Some("20Gi".to_owned()),
            class: Some("fast".to_owned()),
        },
        layers: "step".to_owned(),
        compression: "zstd:7".to_owned(),
        retries: 0,
        ..settings.job
    };
    assert_eq!(job, wanted);
}

#[test]
fn every_shape_and_every_tier_can_be_asked_for() {
    for shape in PodShape::ALL {
        let settings = keys(&[("STRATA_BUILD_POD", shape.name())]).unwrap();
        assert_eq!(settings.job.shape, Some(shape));
        assert!(SHAPE.contains(shape.name()));
    }
    for tier in Tier::LADDER.map(Tier::name).iter().chain(&["flat"]) {
        let settings = keys(&[("STRATA_BUILD_TIER", tier)]).unwrap();
        assert_eq!(settings.job.tier, *tier);
        assert!(TIER.contains(tier));
    }
}

#[test]
fn a_wrong_key_is_named_with_what_to_write() {
    for (key, value, message) in [
        (
            "STRATA_BUILDER_IMAGE",
            "Quay.io/X",
            "STRATA_BUILDER_IMAGE must be an image reference like quay.io/org/strata-builder:v1",
        ),
        (
            "STRATA_BUILDER_SERVICE_ACCOUNT",
            "",
            "STRATA_BUILDER_SERVICE_ACCOUNT \"\" must be an object's name: lower-case letters, digits, '-' and '.'",
        ),
        (
            "STRATA_PLAIN_HTTP",
            "http://x",
            "STRATA_PLAIN_HTTP \"http://x\" must be a registry's HOST or HOST:PORT as in image references, without https:// and without a path",
        ),
        (
            "STRATA_MAX_BUILDS",
            "many",
            "STRATA_MAX_BUILDS \"many\" must be a small number, 0 or more",
        ),
        (
            "STRATA_BUILD_DEADLINE",
            "90",
            "STRATA_BUILD_DEADLINE \"90\" must be a duration from 1s to 720h, like 90s, 45m, 2h or 1h30m",
        ),
        (
            "STRATA_BUILD_DEADLINE",
            "721h",
            "STRATA_BUILD_DEADLINE \"721h\" must be a duration from 1s to 720h, like 90s, 45m, 2h or 1h30m",
        ),
        (
            "STRATA_BUILD_RETRIES",
            "-1",
            "STRATA_BUILD_RETRIES \"-1\" must be a small number, 0 or more",
        ),
        (
            "STRATA_BUILD_CPU_REQUEST",
            "0",
            "STRATA_BUILD_CPU_REQUEST \"0\" must be a Kubernetes quantity above 0, like 500m, 2, 512Mi or 8Gi",
        ),
        (
            "STRATA_BUILD_MEMORY_LIMIT",
            "2GB",
            "STRATA_BUILD_MEMORY_LIMIT \"2GB\" must be a Kubernetes quantity above 0, like 500m, 2, 512Mi or 8Gi",
        ),
        (
            "STRATA_BUILD_MEMORY_REQUEST",
            "3Gi",
            "STRATA_BUILD_MEMORY_REQUEST 3Gi must not be above STRATA_BUILD_MEMORY_LIMIT 2Gi",
        ),
        (
            "STRATA_BUILD_STORAGE_LIMIT",
            "7Gi",
            "STRATA_BUILD_STORAGE_REQUEST 8Gi must not be above STRATA_BUILD_STORAGE_LIMIT 7Gi",
        ),
        (
            "STRATA_BUILD_SCRATCH_CLASS",
            "fast",
            "STRATA_BUILD_SCRATCH_CLASS needs STRATA_BUILD_SCRATCH_SIZE",
        ),
        (
            "STRATA_BUILD_NODE_SELECTOR",
            "disk",
            "STRATA_BUILD_NODE_SELECTOR \"disk\" must be a label of nodes, KEY=VALUE",
        ),
        (
            "STRATA_BUILD_PRIORITY_CLASS",
            "a/b",
            "STRATA_BUILD_PRIORITY_CLASS \"a/b\" must be an object's name: lower-case letters, digits, '-' and '.'",
        ),
        (
            "STRATA_BUILD_TOLERATION",
            "a:Never",
            "STRATA_BUILD_TOLERATION \"a:Never\" must be KEY, KEY=VALUE, KEY:EFFECT or KEY=VALUE:EFFECT, with EFFECT one of NoSchedule, PreferNoSchedule, NoExecute",
        ),
        (
            "STRATA_BUILD_POD",
            "best",
            "STRATA_BUILD_POD \"best\" must be auto or the shape of a pod: userns, userns-pull, rootless, rootless-default or privileged",
        ),
        (
            "STRATA_BUILD_TIER",
            "rootless-overlay",
            "STRATA_BUILD_TIER \"rootless-overlay\" must be a tier of strata-builder: auto, flat, root, userns, rootless, root-flat, userns-flat, rootless-flat or copy",
        ),
        (
            "STRATA_BUILD_LAYERS",
            "all",
            "STRATA_BUILD_LAYERS \"all\" must be stage or step",
        ),
        (
            "STRATA_BUILD_COMPRESSION",
            "zstd:22",
            "STRATA_BUILD_COMPRESSION \"zstd:22\" must be gzip, gzip:LEVEL with a level from 0 to 9, zstd, or zstd:LEVEL from 1 to 19",
        ),
        (
            "STRATA_BUILD_HTTPS_PROXY",
            "proxy:3128",
            "STRATA_BUILD_HTTPS_PROXY \"proxy:3128\" must be the URL of a proxy, like http://proxy.example.com:3128",
        ),
        (
            "STRATA_BUILD_DEDLINE",
            "2h",
            "STRATA_BUILD_DEDLINE is no setting; do you mean STRATA_BUILD_DEADLINE?",
        ),
        ("deadline", "2h", "deadline is no setting"),
    ] {
        let error = keys(&[(key, value)]).unwrap_err();
        assert_eq!(error.to_string(), message);
        assert_eq!(error.class(), Class::CONTRACT);
    }
}

#[test]
fn a_wrong_flag_or_annotation_is_told_as_it_is_written() {
    let given = changed(&build_args(), &[("build-deadline", "soon")]);
    let error = BuildSettings::new(given, "ns").unwrap_err().to_string();
    assert!(
        error.starts_with("--build-deadline (STRATA_BUILD_DEADLINE) \"soon\" must be"),
        "{error}"
    );
    let settings = fixtures::build_settings();
    for (key, value, message) in [
        (
            "build-memory-limit",
            "4 Gi",
            "annotation strata.image-mode.dev/build-memory-limit \"4 Gi\" must be a Kubernetes quantity above 0, like 500m, 2, 512Mi or 8Gi",
        ),
        (
            "build-memory-limt",
            "4Gi",
            "annotation strata.image-mode.dev/build-memory-limt is no setting; do you mean build-memory-limit?",
        ),
    ] {
        let own = annotated(&[(&format!("strata.image-mode.dev/{key}"), value)]);
        assert_eq!(settings.of(&own).unwrap_err().to_string(), message);
    }
}

#[test]
fn what_stays_is_said_for_all_and_by_annotations_for_one_config() {
    let keep = |builds, seconds: Option<u64>| Retention {
        builds,
        age: seconds.map(Duration::from_secs),
    };
    let settings = keys(&[("STRATA_KEEP_BUILDS", "3"), ("STRATA_KEEP_FOR", "720h")]).unwrap();
    let (builds, age) = (annotation::KEEP_BUILDS, annotation::KEEP_FOR);
    for (pairs, wanted) in [
        (vec![], keep(Some(3), Some(2_592_000))),
        (vec![(builds, "0")], keep(Some(0), Some(2_592_000))),
        (vec![(builds, "all"), (age, "")], keep(None, None)),
        (vec![(age, "90m")], keep(Some(3), Some(5_400))),
    ] {
        let found = settings.retention_of(&annotated(&pairs)).unwrap();
        assert_eq!(found, wanted, "{pairs:?}");
    }
    for (pairs, told) in [
        (
            vec![(builds, "-1")],
            "annotation strata.image-mode.dev/keep-builds \"-1\" must be all or a number of builds, 0 or more",
        ),
        (
            vec![(age, "0s")],
            "annotation strata.image-mode.dev/keep-for \"0s\" must be a duration of 1s or more, like 45m, 2h or 720h",
        ),
    ] {
        let error = settings.retention_of(&annotated(&pairs)).unwrap_err();
        assert_eq!(error.to_string(), told);
    }
    let error = keys(&[("STRATA_KEEP_FOR", "30d")]).unwrap_err();
    assert!(
        error.to_string().starts_with("STRATA_KEEP_FOR \"30d\""),
        "{error}"
    );
}
