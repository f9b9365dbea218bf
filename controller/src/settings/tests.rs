use clap::Parser;

use super::*;

#[derive(Parser)]
struct Program {
    #[command(flatten)]
    run: RunArgs,
}

fn parse(flags: &[&str]) -> RunArgs {
    let all = [
        "strata-controller",
        "--builder-image",
        "quay.io/s/builder:v1",
    ];
    Program::try_parse_from(all.iter().chain(flags))
        .unwrap()
        .run
}

#[test]
fn without_flags_everything_but_the_image_has_its_default() {
    let settings = parse(&["--identity", "strata-controller-7f-x"])
        .validate()
        .unwrap();
    assert_eq!(
        settings,
        Settings {
            job: JobSettings {
                namespace: "openshift-machine-config-operator".to_owned(),
                builder_image: "quay.io/s/builder:v1".to_owned(),
                service_account: "strata-builder".to_owned(),
                plain_http: Vec::new(),
                deadline: Duration::from_secs(7200),
                resources: Resources::default(),
                tolerations: Vec::new(),
                priority_class: None,
                shape: None,
                tier: "auto".to_owned(),
            },
            listen: "0.0.0.0:8797".parse().unwrap(),
            identity: "strata-controller-7f-x".to_owned(),
        }
    );
}

#[test]
fn flags_repeat_and_take_lists_and_empty_ones_are_as_if_not_given() {
    let args = parse(&[
        "--plain-http",
        "10.0.0.1:5000,registry.local",
        "--plain-http",
        "localhost",
        "--build-toleration",
        "infra:NoSchedule,",
        "--build-priority-class",
        "",
        "--identity",
        "",
    ]);
    let settings = args.validate().unwrap();
    assert_eq!(
        settings.job.plain_http,
        ["10.0.0.1:5000", "registry.local", "localhost"]
    );
    assert_eq!(settings.job.tolerations.len(), 1);
    assert_eq!(settings.job.priority_class, None);
    assert!(!settings.identity.is_empty(), "the host name");
}

#[test]
fn every_shape_and_every_tier_can_be_asked_for() {
    for shape in PodShape::ALL {
        let settings = parse(&["--build-pod", shape.name()]).validate().unwrap();
        assert_eq!(settings.job.shape, Some(shape));
        assert!(SHAPE.contains(shape.name()));
    }
    for tier in Tier::LADDER.map(Tier::name).iter().chain(&["flat"]) {
        let settings = parse(&["--build-tier", tier]).validate().unwrap();
        assert_eq!(settings.job.tier, *tier);
        assert!(TIER.contains(tier));
    }
}

#[test]
fn a_wrong_flag_is_named_with_what_to_write() {
    for (flags, message) in [
        (
            ["--builder-image", "Quay.io/X"],
            "--builder-image (STRATA_BUILDER_IMAGE) must be an image reference like quay.io/org/strata-builder:v1",
        ),
        (
            ["--namespace", "a.b"],
            "--namespace (STRATA_NAMESPACE) \"a.b\" must be a namespace's name: lower-case letters, digits and '-', at most 63 of them",
        ),
        (
            ["--builder-service-account", ""],
            "--builder-service-account (STRATA_BUILDER_SERVICE_ACCOUNT) \"\" must be an object's name: lower-case letters, digits, '-' and '.'",
        ),
        (
            ["--plain-http", "http://x"],
            "--plain-http (STRATA_PLAIN_HTTP) \"http://x\" must be a registry's HOST or HOST:PORT as in image references, without https:// and without a path",
        ),
        (
            ["--listen", "8797"],
            "--listen (STRATA_LISTEN) \"8797\" must be an IP address with a port, like 0.0.0.0:8797 or [::]:8797",
        ),
        (
            ["--identity", "Pod"],
            "--identity (POD_NAME) \"Pod\" must be an object's name: lower-case letters, digits, '-' and '.'",
        ),
        (
            ["--build-deadline", "90"],
            "--build-deadline (STRATA_BUILD_DEADLINE) \"90\" must be a duration from 1s to 720h, like 90s, 45m, 2h or 1h30m",
        ),
        (
            ["--build-deadline", "721h"],
            "--build-deadline (STRATA_BUILD_DEADLINE) \"721h\" must be a duration from 1s to 720h, like 90s, 45m, 2h or 1h30m",
        ),
        (
            ["--build-cpu-request", "0"],
            "--build-cpu-request (STRATA_BUILD_CPU_REQUEST) \"0\" must be a Kubernetes quantity above 0, like 500m, 2, 512Mi or 8Gi",
        ),
        (
            ["--build-memory-limit", "2GB"],
            "--build-memory-limit (STRATA_BUILD_MEMORY_LIMIT) \"2GB\" must be a Kubernetes quantity above 0, like 500m, 2, 512Mi or 8Gi",
        ),
        (
            ["--build-memory-request", "3Gi"],
            "--build-memory-request (STRATA_BUILD_MEMORY_REQUEST) 3Gi must not be above --build-memory-limit (STRATA_BUILD_MEMORY_LIMIT) 2Gi",
        ),
        (
            ["--build-storage-limit", "7Gi"],
            "--build-storage-request (STRATA_BUILD_STORAGE_REQUEST) 8Gi must not be above --build-storage-limit (STRATA_BUILD_STORAGE_LIMIT) 7Gi",
        ),
        (
            ["--build-priority-class", "a/b"],
            "--build-priority-class (STRATA_BUILD_PRIORITY_CLASS) \"a/b\" must be an object's name: lower-case letters, digits, '-' and '.'",
        ),
        (
            ["--build-toleration", "a:Never"],
            "--build-toleration (STRATA_BUILD_TOLERATION) \"a:Never\" must be KEY, KEY=VALUE, KEY:EFFECT or KEY=VALUE:EFFECT, with EFFECT one of NoSchedule, PreferNoSchedule, NoExecute",
        ),
        (
            ["--build-pod", "best"],
            "--build-pod (STRATA_BUILD_POD) \"best\" must be auto or the shape of a pod: userns, userns-pull, rootless, rootless-default or privileged",
        ),
        (
            ["--build-tier", "rootless-overlay"],
            "--build-tier (STRATA_BUILD_TIER) \"rootless-overlay\" must be a tier of strata-builder: auto, flat, root, userns, rootless, root-flat, userns-flat, rootless-flat or copy",
        ),
    ] {
        let mut all = vec!["strata-controller"];
        if flags[0] != "--builder-image" {
            all.extend(["--builder-image", "quay.io/s/builder:v1"]);
        }
        all.extend(flags);
        let args = Program::try_parse_from(all).unwrap().run;
        let error = args.validate().unwrap_err();
        assert_eq!(error.to_string(), message);
        assert_eq!(error.class(), Class::CONTRACT);
    }
}

#[test]
fn the_help_shows_every_flag_with_its_variable_and_default() {
    use clap::CommandFactory as _;
    let help = Program::command()
        .term_width(200)
        .render_long_help()
        .to_string();
    for flag in [
        "[env: STRATA_NAMESPACE=] [default: openshift-machine-config-operator]",
        "--builder-image <REFERENCE>",
        "[env: STRATA_BUILDER_IMAGE=]",
        "[env: STRATA_BUILDER_SERVICE_ACCOUNT=] [default: strata-builder]",
        "--plain-http <HOST[:PORT]>",
        "[env: STRATA_PLAIN_HTTP=]",
        "[env: STRATA_LISTEN=] [default: 0.0.0.0:8797]",
        "[env: POD_NAME=]",
        "[env: STRATA_BUILD_DEADLINE=] [default: 2h]",
        "[env: STRATA_BUILD_CPU_REQUEST=] [default: 500m]",
        "[env: STRATA_BUILD_MEMORY_REQUEST=] [default: 512Mi]",
        "[env: STRATA_BUILD_MEMORY_LIMIT=] [default: 2Gi]",
        "[env: STRATA_BUILD_STORAGE_REQUEST=] [default: 8Gi]",
        "[env: STRATA_BUILD_STORAGE_LIMIT=] [default: 30Gi]",
        "[env: STRATA_BUILD_PRIORITY_CLASS=]",
        "[env: STRATA_BUILD_POD=] [default: auto]",
        "[env: STRATA_BUILD_TIER=] [default: auto]",
        "--build-toleration <KEY[=VALUE][:EFFECT]>",
        "[env: STRATA_LOG=] [default: info]",
        "[env: STRATA_LOG_FORMAT=] [default: text]",
    ] {
        let flat = help.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(flat.contains(flag), "{flag} in\n{help}");
    }
}
