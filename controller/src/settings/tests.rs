use clap::{Args as _, CommandFactory as _, Parser};

use super::*;

#[derive(Parser)]
struct Program {
    #[command(flatten)]
    run: RunArgs,
}

fn parse(flags: &[&str]) -> RunArgs {
    Program::try_parse_from(["strata-controller"].iter().chain(flags))
        .unwrap()
        .run
}

#[test]
fn without_flags_everything_has_its_default() {
    let settings = parse(&["--identity", "strata-controller-7f-x"])
        .validate()
        .unwrap();
    assert_eq!(settings.namespace, "openshift-machine-config-operator");
    assert_eq!(settings.listen, "0.0.0.0:8797".parse().unwrap());
    assert_eq!(settings.identity, "strata-controller-7f-x");
    let host = parse(&["--identity", ""]).validate().unwrap().identity;
    assert!(!host.is_empty(), "the host name");
}

#[test]
fn a_wrong_flag_is_named_with_what_to_write() {
    for (flags, message) in [
        (
            ["--namespace", "a.b"],
            "--namespace (STRATA_NAMESPACE) \"a.b\" must be a namespace's name: lower-case letters, digits and '-', at most 63 of them",
        ),
        (
            ["--listen", "8797"],
            "--listen (STRATA_LISTEN) \"8797\" must be an IP address with a port, like 0.0.0.0:8797 or [::]:8797",
        ),
        (
            ["--identity", "Pod"],
            "--identity (POD_NAME) \"Pod\" must be an object's name: lower-case letters, digits, '-' and '.'",
        ),
    ] {
        let error = parse(&flags).validate().unwrap_err();
        assert_eq!(error.to_string(), message);
        assert_eq!(error.class(), Class::CONTRACT);
    }
}

#[test]
fn the_help_shows_every_flag_with_its_variable_and_default() {
    let help = Program::command()
        .term_width(200)
        .render_long_help()
        .to_string();
    let flat = help.split_whitespace().collect::<Vec<_>>().join(" ");
    for flag in [
        "[env: STRATA_NAMESPACE=] [default: openshift-machine-config-operator]",
        "--builder-image <REFERENCE>",
        "[env: STRATA_BUILDER_SERVICE_ACCOUNT=] [default: strata-builder]",
        "--plain-http <HOST[:PORT]>",
        "[env: STRATA_LISTEN=] [default: 0.0.0.0:8797]",
        "[env: POD_NAME=]",
        "[env: STRATA_MAX_BUILDS=] [default: 0]",
        "[env: STRATA_BUILD_DEADLINE=] [default: 2h]",
        "[env: STRATA_BUILD_RETRIES=] [default: 3]",
        "[env: STRATA_BUILD_CPU_REQUEST=] [default: 500m]",
        "[env: STRATA_BUILD_MEMORY_REQUEST=] [default: 512Mi]",
        "[env: STRATA_BUILD_MEMORY_LIMIT=] [default: 2Gi]",
        "[env: STRATA_BUILD_STORAGE_REQUEST=] [default: 8Gi]",
        "[env: STRATA_BUILD_STORAGE_LIMIT=] [default: 30Gi]",
        "[env: STRATA_BUILD_POD=] [default: auto]",
        "[env: STRATA_BUILD_TIER=] [default: auto]",
        "--build-toleration <KEY[=VALUE][:EFFECT]>",
        "[env: STRATA_LOG=] [default: info]",
        "[env: STRATA_LOG_FORMAT=] [default: text]",
    ] {
        assert!(flat.contains(flag), "{flag} in\n{help}");
    }
    // the same name everywhere: key and annotation are made from the flag
    for argument in BuildArgs::augment_args_for_update(clap::Command::new("")).get_arguments() {
        let flag = argument.get_long().unwrap();
        let variable = argument.get_env().unwrap().to_str().unwrap();
        let wanted = format!("STRATA_{}", flag.to_uppercase().replace('-', "_"));
        assert_eq!(variable, wanted);
    }
}
