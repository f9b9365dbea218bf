use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::containerfile::parse::parse;

fn scope(globals: &[(&str, &str)], build_args: &[(&str, &str)]) -> Scope {
    let map = |pairs: &[(&str, &str)]| {
        pairs
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect()
    };
    Scope {
        escape: '\\',
        globals: map(globals),
        build_args: map(build_args),
    }
}

/// A stage on scratch with these lines applied, and its history.
fn applied(lines: &str, scope: Scope) -> Result<(StageState, Vec<String>), StateError> {
    apply_to(StageState::scratch("amd64", "linux", scope), lines)
}

fn apply_to(mut state: StageState, lines: &str) -> Result<(StageState, Vec<String>), StateError> {
    let file = parse(&format!("FROM scratch\n{lines}\n"), "Containerfile").unwrap();
    let mut history = Vec::new();
    for instruction in &file.stages[0].instructions {
        history.push(state.apply(&instruction.value)?);
    }
    Ok((state, history))
}

fn on_scratch(lines: &str) -> StageState {
    applied(lines, scope(&[], &[])).unwrap().0
}

fn environment(state: &StageState) -> Vec<String> {
    let variables = state.run_environment().into_iter();
    variables
        .map(|(name, value)| format!("{name}={value}"))
        .filter(|variable| !variable.starts_with("PATH="))
        .collect()
}

#[test]
fn the_whole_configuration_follows_from_the_lines() {
    let (state, history) = applied(
        r#"MAINTAINER me
ENV A=1 B="two words" C=$A
LABEL x=$B "y z"='$A'
WORKDIR /srv/./www/
WORKDIR ../data
USER $A:0
EXPOSE 80 443/UDP 7000-7001 127.0.0.1:90:91
STOPSIGNAL SIGTERM
VOLUME /v /w$A
SHELL ["/bin/bash", "-c"]
CMD echo $A
ENTRYPOINT ["/init", "$A"]
HEALTHCHECK --interval=30s --retries=2 CMD ["true"]
ONBUILD RUN echo hi"#,
        scope(&[], &[]),
    )
    .unwrap();
    assert_eq!(
        serde_json::to_value(&state.image).unwrap(),
        json!({
            "architecture": "amd64",
            "os": "linux",
            "author": "me",
            "rootfs": { "type": "layers", "diff_ids": [] },
            "config": {
                "User": "1:0",
                "Env": [format!("PATH={DEFAULT_PATH}"), "A=1", "B=two words", "C="],
                "Labels": { "x": "two words", "y z": "$A" },
                "WorkingDir": "/srv/data",
                "ExposedPorts": {
                    "80/tcp": {}, "443/udp": {}, "7000/tcp": {}, "7001/tcp": {}, "91/tcp": {}
                },
                "StopSignal": "SIGTERM",
                "Volumes": { "/v": {}, "/w1": {} },
                "Shell": ["/bin/bash", "-c"],
                "Cmd": ["/bin/bash", "-c", "echo $A"],
                "Entrypoint": ["/init", "$A"],
                "Healthcheck": { "Test": ["CMD", "true"], "Interval": 30_000_000_000_u64, "Retries": 2 },
                "OnBuild": ["RUN echo hi"],
            }
        })
    );
    assert_eq!(
        history,
        [
            "MAINTAINER me",
            r#"ENV A=1 B="two words" C=$A"#,
            r#"LABEL x=$B "y z"='$A'"#,
            "WORKDIR /srv/./www/",
            "WORKDIR /srv/data",
            "USER 1:0",
            "EXPOSE [91/tcp 443/udp 7000/tcp 7001/tcp 80/tcp]",
            "STOPSIGNAL SIGTERM",
            "VOLUME [/v /w1]",
            "SHELL [/bin/bash -c]",
            r#"CMD ["/bin/bash" "-c" "echo $A"]"#,
            r#"ENTRYPOINT ["/init" "$A"]"#,
            "HEALTHCHECK {Test:[CMD true] Interval:30s Timeout:0s StartPeriod:0s StartInterval:0s Retries:2}",
            "ONBUILD RUN echo hi",
        ]
    );
}

#[test]
fn the_history_has_the_texts_of_buildkit() {
    for (line, text) in [
        (
            "COPY --from=x --chmod=700 --chown=1:$B --link $A b /c/",
            "COPY --chown=1:$B --chmod=700 $A b /c/",
        ),
        ("COPY --parents a /c", "COPY --parents a /c"),
        ("ADD a <<EOF b <<F /c/\nEOF\nF", "ADD a b <<EOF <<F /c/"),
        (
            "HEALTHCHECK NONE",
            "HEALTHCHECK {Test:[NONE] Interval:0s Timeout:0s StartPeriod:0s StartInterval:0s Retries:0}",
        ),
        (
            "HEALTHCHECK --interval=1m30s --timeout=1500us --start-period=1h --start-interval=2h3m4.5s --retries=7 CMD a  b",
            "HEALTHCHECK {Test:[CMD-SHELL a  b] Interval:1m30s Timeout:1.5ms StartPeriod:1h0m0s StartInterval:2h3m4.5s Retries:7}",
        ),
        (
            r#"CMD ["a\tb'\"", "é\u0007\u0001\\"]"#,
            r#"CMD ["a\tb'\"" "é\a\x01\\"]"#,
        ),
        ("EXPOSE 443 80", "EXPOSE [443/tcp 80/tcp]"),
    ] {
        let (_, history) = applied(line, scope(&[], &[])).unwrap();
        assert_eq!(history, [text], "{line}");
    }
}

#[test]
fn variables_come_from_env_then_build_arguments_then_defaults_then_globals() {
    type Value = Option<&'static str>;
    // lines | build argument | global | value of V for RUN
    let table: [(&str, Value, Value, Value); 12] = [
        ("", Some("arg"), Some("global"), None),
        ("ARG V", None, None, None),
        ("ARG V", None, Some("global"), Some("global")),
        ("ARG V", Some("arg"), Some("global"), Some("arg")),
        ("ARG V=default", None, Some("global"), Some("default")),
        ("ARG V=default", Some("arg"), Some("global"), Some("arg")),
        ("ARG V=default\nARG V", None, None, Some("default")),
        ("ARG V=a\nARG V=b", None, None, Some("b")),
        ("ENV V=env\nARG V=default", Some("arg"), None, Some("env")),
        ("ARG V=default\nENV V=env", Some("arg"), None, Some("env")),
        ("ARG V=default\nENV V=${V}2", None, None, Some("default2")),
        ("ARG W=1 V=$W", None, None, Some("1")),
    ];
    for (lines, build_arg, global, expected) in table {
        let pair = |value: Value| value.map(|v| ("V", v)).into_iter();
        let globals: Vec<_> = pair(global).collect();
        let build_args: Vec<_> = pair(build_arg).collect();
        let (state, _) = applied(lines, scope(&globals, &build_args)).unwrap();
        let seen = state.run_environment().into_iter().find(|(n, _)| n == "V");
        assert_eq!(seen.map(|(_, v)| v).as_deref(), expected, "{lines:?}");
        assert_eq!(state.lookup("V").as_deref(), expected, "{lines:?}");
    }
}

#[test]
fn what_comes_from_outside_reaches_run_and_never_the_image() {
    let (state, history) = applied(
        "ARG TOKEN\nARG OTHER=plain\nENV X=$OTHER\nRUN use $TOKEN",
        scope(
            &[],
            &[
                ("TOKEN", "s3cret"),
                ("OTHER", "s3cret"),
                ("https_proxy", "http://s3cret:1"),
                ("UNDECLARED", "s3cret"),
            ],
        ),
    )
    .unwrap();
    assert_eq!(
        environment(&state),
        [
            "X=s3cret",
            "TOKEN=s3cret",
            "OTHER=s3cret",
            "HTTPS_PROXY=http://s3cret:1",
            "https_proxy=http://s3cret:1"
        ]
    );
    assert_eq!(
        history,
        [
            "ARG TOKEN",
            "ARG OTHER=plain",
            "ENV X=$OTHER",
            "RUN /bin/sh -c use $TOKEN"
        ]
    );
}

#[test]
fn the_working_directory_of_a_base_is_absolute() {
    for (given, workdir) in [("app/./x", "/app/x"), ("/a/../b", "/a/../b"), ("", "/")] {
        let mut image = ImageConfig::default();
        given.clone_into(&mut image.config.working_dir);
        let state = StageState::start(image, scope(&[], &[]));
        assert_eq!(state.workdir(), workdir, "{given:?}");
    }
}

#[test]
fn a_derived_stage_inherits_variables_but_no_triggers() {
    let base = on_scratch("ARG A=1\nENV E=2\nCMD [\"x\"]\nONBUILD RUN y");
    assert_eq!(super::triggers(&base.image), ["RUN y"]);
    let derived = base.clone().derive();
    assert_eq!(super::triggers(&derived.image), [""; 0]);
    assert_eq!(environment(&derived), ["E=2", "A=1"]);
    assert_eq!(derived.image.config.cmd, Some(vec!["x".to_owned()]));
}

#[test]
fn an_entrypoint_drops_the_inherited_cmd_and_keeps_the_stages_own() {
    let base = on_scratch("CMD [\"inherited\"]");
    let cmd = |lines| {
        apply_to(base.clone().derive(), lines)
            .unwrap()
            .0
            .image
            .config
            .cmd
    };
    assert_eq!(cmd("ENTRYPOINT [\"e\"]"), None);
    assert_eq!(
        cmd("CMD [\"own\"]\nENTRYPOINT [\"e\"]"),
        Some(vec!["own".to_owned()])
    );
    assert_eq!(cmd("USER 1"), Some(vec!["inherited".to_owned()]));
}

#[test]
fn a_run_is_a_line_an_array_a_script_or_a_line_with_documents() {
    let run = |lines: &str| {
        let file = parse(&format!("FROM scratch\n{lines}\n"), "f").unwrap();
        match &file.stages[0].instructions[0].value {
            Instruction::Run(run) => {
                let command = on_scratch("SHELL [\"/bin/bash\", \"-ec\"]")
                    .command_line(&run.command, &run.heredocs);
                (command.argv, command.files)
            }
            other => panic!("{other:?}"),
        }
    };
    let shell = |script: &str| {
        let argv = ["/bin/bash", "-ec", script].map(str::to_owned).to_vec();
        (argv, Vec::new())
    };
    assert_eq!(run("RUN a && b"), shell("a && b"));
    assert_eq!(
        run("RUN [\"a\", \"$b\"]"),
        (vec!["a".to_owned(), "$b".to_owned()], Vec::new())
    );
    assert_eq!(run("RUN <<EOF\na\n$b\nEOF"), shell("a\n$b\n"));
    assert_eq!(run("RUN <<-'EOF'\n\ta\n\tEOF"), shell("a\n"));
    assert_eq!(
        run("RUN cat <<-EOF\n\ta\n\tEOF"),
        shell("cat <<-EOF\n\ta\nEOF")
    );
    assert_eq!(run("RUN 3<<\"E F\"\na\nE F"), shell("a\n"));
    assert_eq!(run("RUN <<EOF b\na\nEOF"), shell("<<EOF b\na\nEOF"));
    assert_eq!(
        run("RUN <<EOF\n#!/usr/bin/env python3\nprint()\nEOF"),
        (
            vec!["/dev/pipes/EOF".to_owned()],
            vec![(
                "/dev/pipes/EOF".to_owned(),
                b"#!/usr/bin/env python3\nprint()\n".to_vec()
            )]
        )
    );
    assert_eq!(
        run("RUN --network=none \\\n bash <<'EOF'\necho $x\nEOF"),
        shell("bash <<'EOF'\necho $x\nEOF")
    );
    assert_eq!(
        run("RUN cat <<A <<B > /x\n1\nA\n2\nB"),
        shell("cat <<A <<B > /x\n1\nA\n2\nB")
    );
}

#[test]
fn inline_files_are_expanded_unless_their_delimiter_is_quoted() {
    let state = on_scratch("ENV A=1");
    let file = |expand| Heredoc {
        name: "F".to_owned(),
        content: "\"$A\" \\$A\n".to_owned(),
        expand,
        strip_tabs: false,
    };
    assert_eq!(state.inline_file(&file(true)).unwrap(), "\"1\" $A\n");
    assert_eq!(state.inline_file(&file(false)).unwrap(), "\"$A\" \\$A\n");
    let indented = Heredoc {
        content: "\t\t$A\n\n\t b\n".to_owned(),
        strip_tabs: true,
        ..file(true)
    };
    assert_eq!(state.inline_file(&indented).unwrap(), "1\n\n b\n");
    let mut backticks = state;
    backticks.scope.escape = '`';
    assert_eq!(backticks.inline_file(&file(true)).unwrap(), "\"1\" $A\n");
}

#[test]
fn what_makes_no_sense_is_refused() {
    for (line, told) in [
        (
            "EXPOSE x",
            "invalid port \"x\": expected PORT[-LAST][/tcp|/udp|/sctp]",
        ),
        (
            "EXPOSE 2-1",
            "invalid port \"2-1\": expected PORT[-LAST][/tcp|/udp|/sctp]",
        ),
        (
            "EXPOSE 1/icmp",
            "invalid port \"1/icmp\": expected PORT[-LAST][/tcp|/udp|/sctp]",
        ),
        (
            "EXPOSE x:80:80",
            "invalid port \"x:80:80\": expected PORT[-LAST][/tcp|/udp|/sctp]",
        ),
        (
            "EXPOSE 1-2:3-5",
            "invalid port \"1-2:3-5\": expected PORT[-LAST][/tcp|/udp|/sctp]",
        ),
        ("STOPSIGNAL SIGNOPE", "invalid signal \"SIGNOPE\""),
        ("STOPSIGNAL 0", "invalid signal \"0\""),
        ("VOLUME $none", "VOLUME of an empty string"),
        ("ENV $none=1", "ENV of an empty string"),
        (
            "ENV A=${none:?missing}",
            "can't expand \"${none:?missing}\"",
        ),
    ] {
        let error = applied(line, scope(&[], &[])).unwrap_err();
        assert_eq!(error.to_string(), told, "{line}");
    }
    for good in [
        "STOPSIGNAL 9",
        "STOPSIGNAL rtmin+3",
        "EXPOSE 65535/sctp",
        "EXPOSE 80/",
        "EXPOSE [::1]:80:80 :81 1-2:3",
        "EXPOSE $none",
    ] {
        assert!(applied(good, scope(&[], &[])).is_ok(), "{good}");
    }
}

proptest! {
    #[test]
    fn no_instruction_panics_and_path_and_workdir_stay_whole(
        text in "((ENV|ARG|LABEL|WORKDIR|USER|EXPOSE|VOLUME|STOPSIGNAL|CMD|ENTRYPOINT|RUN|SHELL|ONBUILD USER|HEALTHCHECK CMD) ([a-z0-9/.:=-]|\\$\\{?a|\\}|\"|'|\\[|\\]| |é|<<A){1,12}\n){1,6}",
    ) {
        let Ok(file) = parse(&format!("FROM scratch\n{text}"), "f") else { return Ok(()) };
        let mut state = StageState::scratch("amd64", "linux", scope(&[], &[]));
        for instruction in &file.stages[0].instructions {
            // what can't be applied is refused, and leaves a state that still makes sense
            let _ = state.apply(&instruction.value);
            prop_assert!(state.workdir().starts_with('/'));
            prop_assert!(state.workdir() == "/" || !state.workdir().ends_with('/'));
            let names: Vec<_> = state.run_environment().into_iter().map(|(name, _)| name).collect();
            prop_assert!(names.contains(&"PATH".to_owned()));
            let unique: std::collections::BTreeSet<_> = names.iter().collect();
            prop_assert_eq!(unique.len(), names.len());
            prop_assert!(!state.shell().is_empty());
        }
    }
}
