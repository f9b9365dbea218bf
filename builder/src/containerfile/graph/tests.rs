use proptest::prelude::*;

use super::super::parse::parse;
use super::prune::used_by;
use super::*;

const FAN: &str = "\
ARG OS=registry.example.com/os
ARG TAG
FROM ${OS}:${TAG:-latest} AS extract
FROM golang AS unused
COPY --from=extract /a /b
FROM $OS AS configs
COPY --from=extract /x /y
RUN --mount=type=bind,from=tools,target=/t --mount=type=tmpfs,target=/m true
FROM configs AS Final
COPY --from=0 /x /y
COPY a /a
";

fn options() -> PlanOptions {
    PlanOptions {
        target: None,
        build_args: BTreeMap::new(),
        platform: Platform::parse("linux/amd64").unwrap(),
        build_platform: Platform::parse("linux/arm64/v8").unwrap(),
        context_names: BTreeSet::new(),
    }
}

fn planned(text: &str, options: &PlanOptions) -> Result<BuildGraph, PlanError> {
    plan(&parse(text, "Containerfile").unwrap(), options)
}

fn image(reference: &str) -> StageBase {
    StageBase::Image(reference.to_owned())
}

#[test]
fn only_what_the_target_needs_is_planned_with_its_sources_resolved() {
    let graph = planned(FAN, &options()).unwrap();
    let stage = |index, name: &str, base, sources| PlannedStage {
        index,
        name: name.to_owned(),
        base,
        platform: None,
        sources,
    };
    assert_eq!(
        graph.stages,
        [
            stage(
                0,
                "extract",
                image("registry.example.com/os:latest"),
                vec![]
            ),
            stage(
                2,
                "configs",
                image("registry.example.com/os"),
                vec![
                    vec![Source::Stage(0)],
                    vec![Source::Image("tools".to_owned()), Source::Empty]
                ]
            ),
            stage(
                3,
                "final",
                StageBase::Stage(1),
                vec![vec![Source::Stage(0)], vec![Source::MainContext]]
            ),
        ]
    );
    assert_eq!(graph.target, 2);
}

#[test]
fn a_target_is_a_name_in_any_case_or_an_index() {
    for (target, names) in [
        (Some("EXTRACT"), vec!["extract"]),
        (Some("1"), vec!["extract", "unused"]),
        (Some("configs"), vec!["extract", "configs"]),
        (Some(""), vec!["extract", "configs", "final"]),
        (None, vec!["extract", "configs", "final"]),
    ] {
        let options = PlanOptions {
            target: target.map(str::to_owned),
            ..options()
        };
        let graph = planned(FAN, &options).unwrap();
        let got: Vec<_> = graph.stages.iter().map(|s| s.name.as_str()).collect();
        assert_eq!((got, graph.target), (names.clone(), names.len() - 1));
    }
}

#[test]
fn of_two_stages_of_one_name_the_last_above_counts_and_a_warning_says_so() {
    let text = "FROM a AS x\nFROM b AS X\nFROM x\n";
    let graph = planned(text, &options()).unwrap();
    assert_eq!(graph.stages[0].base, image("b"));
    assert_eq!(graph.stages[1].base, StageBase::Stage(0));
    assert_eq!(
        graph.warnings,
        ["Containerfile, line 2: an earlier stage is called x too"]
    );
}

#[test]
fn a_named_context_goes_before_stages_and_images() {
    let contexts = |names: &[&str]| PlanOptions {
        context_names: names.iter().map(|name| (*name).to_owned()).collect(),
        ..options()
    };
    let context = |name: &str| StageBase::Context(name.to_owned());
    let graph = planned(FAN, &contexts(&["configs"])).unwrap();
    assert_eq!(graph.stages.len(), 2, "extract for --from=0, and final");
    assert_eq!(graph.stages[1].base, context("configs"));

    let graph = planned("FROM Alpine:latest\nCOPY --from=x a b\n", &contexts(&["x"])).unwrap();
    assert_eq!(graph.stages[0].base, image("Alpine:latest"));
    assert_eq!(graph.stages[0].sources, [[Source::Context("x".to_owned())]]);

    for (written, known, found) in [
        ("alpine:latest", "alpine", true),
        ("alpine", "alpine:latest", true),
        ("docker.io/library/alpine", "alpine", true),
        ("alpine:3", "docker.io/alpine:3", true),
        ("quay.io/alpine", "alpine", false),
        ("alpine:3", "alpine", false),
    ] {
        let graph = planned(&format!("FROM {written}\n"), &contexts(&[known])).unwrap();
        let expected = match found {
            true => context(known),
            false => image(written),
        };
        assert_eq!(graph.stages[0].base, expected, "{written}");
    }
    let graph = planned("FROM scratch\n", &contexts(&["scratch"])).unwrap();
    assert_eq!(graph.stages[0].base, StageBase::Scratch);
}

#[test]
fn global_variables_are_expanded_in_from_lines() {
    let build_args = |pairs: &[(&str, &str)]| PlanOptions {
        build_args: pairs
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect(),
        ..options()
    };
    for (text, args, base) in [
        ("ARG A=x\nARG B=$A/y\nFROM $B", vec![], "x/y"),
        ("ARG A=x\nARG B=$A/y\nFROM $B", vec![("A", "z")], "z/y"),
        ("ARG A\nFROM ${A:-none}", vec![], "none"),
        ("ARG A\nFROM ${A:-none}", vec![("A", "z")], "z"),
        (
            "FROM x:$TARGETARCH-$BUILDARCH$BUILDVARIANT",
            vec![],
            "x:amd64-arm64v8",
        ),
        ("FROM x:$TARGETSTAGE", vec![], "x:default"),
        ("FROM x:$TARGETSTAGE AS last", vec![], "x:last"),
        // not declared, so not visible
        ("FROM x$A", vec![("A", "z")], "x"),
    ] {
        let graph = planned(text, &build_args(&args)).unwrap();
        assert_eq!(graph.stages[0].base, image(base), "{text}");
    }
}

#[test]
fn scratch_and_platforms_are_understood() {
    let text = "FROM --platform=$BUILDPLATFORM a AS x\nFROM scratch\nCOPY --from=x a a\nCOPY --from=scratch a a";
    let graph = planned(text, &options()).unwrap();
    assert_eq!(graph.stages[0].platform, Platform::parse("linux/arm64/v8"));
    assert_eq!(graph.stages[1].base, StageBase::Scratch);
    assert_eq!(
        graph.stages[1].sources,
        [[Source::Stage(0)], [Source::Empty]]
    );
}

#[test]
fn a_variable_of_from_that_nothing_declares_gets_a_warning() {
    let text = "ARG A\nFROM --platform=${BULIDPLATFORM:-arm64} x${TAG:+:$TAG}$A$TARGETVARIANT\n";
    let graph = planned(text, &options()).unwrap();
    assert_eq!(graph.stages[0].base, image("x"));
    assert_eq!(graph.stages[0].platform, Platform::parse("linux/arm64"));
    assert_eq!(
        graph.warnings,
        [
            "Containerfile, line 2: no ARG before the first FROM declares TAG",
            "Containerfile, line 2: no ARG before the first FROM declares BULIDPLATFORM",
        ]
    );
}

#[test]
fn a_build_argument_that_nothing_takes_gets_a_warning() {
    let text = "ARG GLOBAL\nFROM a AS dead\nARG DEAD\nFROM b\nARG VERSION=1 OTHER\n";
    let names = [
        "GLOBAL",
        "DEAD",
        "OTHER",
        "https_proxy",
        "TARGETARCH",
        "VERSOIN",
        "X",
    ];
    let build_args = names.map(|name| (name.to_owned(), "1".to_owned())).into();
    let options = PlanOptions {
        build_args,
        ..options()
    };
    assert_eq!(
        planned(text, &options).unwrap().warnings,
        [
            "no ARG takes the build argument VERSOIN; did you mean VERSION?",
            "no ARG takes the build argument X",
        ]
    );
}

proptest! {
    #[test]
    fn every_plan_uses_earlier_stages_only_and_ends_with_its_target(
        text in "(FROM (a|x|0|scratch|\\$V)( AS (x|y|z))?\n|ARG V=(a|b)\n|ENV V=\\$V\n|COPY --from=(x|y|z|0|1|img|\\$V) a b\n|RUN --mount=from=(x|y),target=/t true\n){1,12}",
        target in proptest::option::of("[xyz0-9]"),
    ) {
        let file = parse(&format!("FROM a AS x\n{text}"), "f").unwrap();
        let options = PlanOptions { target, ..options() };
        let Ok(graph) = plan(&file, &options) else { return Ok(()) };
        prop_assert_eq!(graph.target + 1, graph.stages.len());
        let mut needed = BTreeSet::from([graph.target]);
        for (position, stage) in graph.stages.iter().enumerate().rev() {
            prop_assert!(needed.contains(&position), "{} is not needed", stage.name);
            prop_assert_eq!(stage.sources.len(), file.stages[stage.index].instructions.len());
            for used in used_by(stage) {
                prop_assert!(used < position);
                needed.insert(used);
            }
        }
    }
}

#[test]
fn variables_of_from_flags_come_from_the_stages_own_lines() {
    for (lines, expected) in [
        ("ARG V=1", Some("img:1")),
        ("ENV V=2\nARG V=1", Some("img:2")),
        ("ARG W=3 V=$W", Some("img:3")),
        ("ARG G\nENV V=$G", Some("img:g")),
        ("ENV V=$PATH", None),
        ("", None),
    ] {
        let text = format!("ARG G=g\nFROM a\n{lines}\nCOPY --from=img:$V a b\n");
        match (planned(&text, &options()), expected) {
            (Ok(graph), Some(expected)) => assert_eq!(
                graph.stages[0].sources.last().unwrap(),
                &[Source::Image(expected.to_owned())]
            ),
            (Err(error), None) => assert_eq!(
                error.to_string(),
                format!(
                    "Containerfile, line {}: can't expand \"img:$V\" from the ARG and ENV lines above it",
                    text.lines().count()
                )
            ),
            (got, _) => panic!("{lines}: {got:?}"),
        }
    }
}

#[test]
fn what_cannot_be_planned_is_told_with_its_line() {
    for (text, target, told) in [
        (
            "FROM a AS x\nFROM b\n",
            Some("y"),
            "there is no stage \"y\" to build; its stages are x, 1",
        ),
        (
            "FROM a\nCOPY --from=later a b\nFROM b AS later\nFROM c\nCOPY --from=0 a b",
            None,
            "Containerfile, line 2: stage \"later\" must be defined before the stage that uses it",
        ),
        (
            "FROM a AS x\nCOPY --from=x a b",
            None,
            "Containerfile, line 2: stage \"x\" must be defined before the stage that uses it",
        ),
        (
            "FROM a\nCOPY --from=0 a b",
            None,
            "Containerfile, line 2: stage \"0\" must be defined before the stage that uses it",
        ),
        (
            "FROM a\nCOPY --from=7 a b",
            None,
            "Containerfile, line 2: there is no stage 7",
        ),
        (
            "FROM $NONE",
            None,
            "Containerfile, line 1: \"$NONE\" expands to nothing; declare its ARG before the first FROM",
        ),
        (
            "FROM ${A:?gone}",
            None,
            "Containerfile, line 1: can't expand \"${A:?gone}\"",
        ),
        (
            "FROM --platform=pdp11 a",
            None,
            "Containerfile, line 1: \"pdp11\" is no platform: expected OS/ARCHITECTURE[/VARIANT], OS or ARCHITECTURE",
        ),
        (
            "FROM --platform=$NONE a",
            None,
            "Containerfile, line 1: \"$NONE\" expands to nothing; declare its ARG before the first FROM",
        ),
    ] {
        let options = PlanOptions {
            target: target.map(str::to_owned),
            ..options()
        };
        let error = planned(text, &options).unwrap_err();
        assert_eq!(error.to_string(), told, "{text}");
    }
}
