use proptest::prelude::*;

use super::super::mounts::{Mount, MountKind};
use super::super::*;
use super::*;

/// The shape of the file that the controller renders.
const RENDERED: &str = r#"FROM registry.example.com/os@sha256:aa AS extract
COPY ./machineconfig/machineconfig.json.gz /tmp/machineconfig.json.gz
RUN mkdir -p /etc/machine-config-daemon && \
    cat /tmp/machineconfig.json.gz | base64 -d | gunzip - > /etc/machine-config-daemon/currentconfig

FROM registry.example.com/os@sha256:aa AS configs
COPY --from=extract /etc/machine-config-daemon/currentconfig /etc/machine-config-daemon/currentconfig
RUN --mount=type=bind,from=registry.example.com/extensions@sha256:bb,target=/tmp/mco,rw \
  # a comment between continuation lines
  bash <<'EOF'
set -e
echo "$HOME" \
  done
EOF
LABEL machineconfig=rendered-worker-1 "quoted key"="a b"

FROM configs AS final
RUN dnf install -y cowsay && dnf clean all && ostree container commit
"#;

fn only(text: &str) -> Instruction {
    let mut file = parse(&format!("FROM scratch\n{text}\n"), "Containerfile").unwrap();
    file.stages.remove(0).instructions.remove(0).value
}

fn word(text: &str) -> Word {
    Word(text.to_owned())
}

#[test]
fn the_rendered_file_parses_with_its_heredoc_behind_a_flag_and_a_continuation() {
    let file = parse(RENDERED, "Containerfile").unwrap();
    let names: Vec<_> = file
        .stages
        .iter()
        .map(|stage| stage.name.as_deref().unwrap())
        .collect();
    assert_eq!(names, ["extract", "configs", "final"]);
    let heredoc_step = &file.stages[1].instructions[1];
    assert_eq!(
        (heredoc_step.location.line, heredoc_step.location.last_line),
        (8, 14)
    );
    let Instruction::Run(run) = &heredoc_step.value else {
        panic!("a RUN")
    };
    assert_eq!(run.command, CommandForm::Shell("bash <<'EOF'".to_owned()));
    assert_eq!(
        run.heredocs,
        [Heredoc {
            name: "EOF".into(),
            content: "set -e\necho \"$HOME\" \\\n  done\n".into(),
            expand: false,
            strip_tabs: false
        }]
    );
    let [mount] = run.mounts.as_slice() else {
        panic!("one mount")
    };
    assert_eq!(
        mount.from(),
        Some(&word("registry.example.com/extensions@sha256:bb"))
    );
    let plain = |word: &Word| -> Result<String, InvalidMount> { Ok(word.0.clone()) };
    assert_eq!(
        mount.mount(plain),
        Ok(Mount {
            kind: MountKind::Bind { source: None },
            target: Some("/tmp/mco".to_owned()),
            read_write: Some(true),
        })
    );
    assert_eq!(
        file.stages[1].instructions[2].value,
        Instruction::Label(vec![
            (word("machineconfig"), word("rendered-worker-1")),
            (word("\"quoted key\""), word("\"a b\""))
        ])
    );
}

#[test]
fn every_instruction_has_its_forms() {
    let shell = |text: &str| CommandForm::Shell(text.to_owned());
    let exec = |words: &[&str]| CommandForm::Exec(words.iter().map(|w| (*w).to_owned()).collect());
    assert_eq!(
        only("CMD [\"a\", \"b c\"]"),
        Instruction::Cmd(exec(&["a", "b c"]))
    );
    assert_eq!(
        only("entrypoint [\"a\"] # text"),
        Instruction::Entrypoint(shell("[\"a\"] # text"))
    );
    assert_eq!(
        only("ENV a=b c=\"d e\" f=g\\ h"),
        Instruction::Env(vec![
            (word("a"), word("b")),
            (word("c"), word("\"d e\"")),
            (word("f"), word("g\\ h"))
        ])
    );
    assert_eq!(
        only("ENV old the rest=of it"),
        Instruction::Env(vec![(word("old"), word("the rest=of it"))])
    );
    assert_eq!(
        only("EXPOSE 80 $p/udp"),
        Instruction::Expose(vec![word("80"), word("$p/udp")])
    );
    assert_eq!(
        only("VOLUME [\"/a b\"]"),
        Instruction::Volume(vec![word("/a b")])
    );
    assert_eq!(
        only("VOLUME /a /b"),
        Instruction::Volume(vec![word("/a"), word("/b")])
    );
    assert_eq!(
        only("SHELL [\"/bin/bash\", \"-c\"]"),
        Instruction::Shell(vec!["/bin/bash".into(), "-c".into()])
    );
    assert_eq!(
        only("HEALTHCHECK NONE"),
        Instruction::Healthcheck(Healthcheck::None)
    );
    assert_eq!(
        only("HEALTHCHECK --interval=1m30s --retries=3 CMD true"),
        Instruction::Healthcheck(Healthcheck::Command {
            command: shell("true"),
            interval_nanos: Some(90_000_000_000),
            timeout_nanos: None,
            start_period_nanos: None,
            start_interval_nanos: None,
            retries: Some(3),
        })
    );
    assert_eq!(
        only("HEALTHCHECK --interval=5s none"),
        Instruction::Healthcheck(Healthcheck::None)
    );
    assert_eq!(
        only(
            "HEALTHCHECK --interval= --timeout=1000\u{3bc}s --start-period=2000\u{b5}s --retries= CMD x"
        ),
        Instruction::Healthcheck(Healthcheck::Command {
            command: shell("x"),
            interval_nanos: None,
            timeout_nanos: Some(1_000_000),
            start_period_nanos: Some(2_000_000),
            start_interval_nanos: None,
            retries: None,
        })
    );
    // as Docker's API has it, none and nothing are one
    assert_eq!(
        only("HEALTHCHECK --interval=0 --timeout=0s --start-period=1ms --retries=0 CMD [\"x\"]"),
        Instruction::Healthcheck(Healthcheck::Command {
            command: CommandForm::Exec(vec!["x".to_owned()]),
            interval_nanos: None,
            timeout_nanos: None,
            start_period_nanos: Some(1_000_000),
            start_interval_nanos: None,
            retries: None,
        })
    );
    assert_eq!(
        only("ONBUILD RUN echo hi"),
        Instruction::Onbuild("RUN echo hi".to_owned())
    );
    assert_eq!(
        only("ONBUILD RUN cat <<-EOF\n\thi\n\tEOF"),
        Instruction::Onbuild("RUN cat <<-EOF\n\thi\nEOF".to_owned())
    );
    assert_eq!(
        only("ARG a b=c"),
        Instruction::Arg(vec![
            ArgDeclaration {
                name: "a".into(),
                default: None
            },
            ArgDeclaration {
                name: "b".into(),
                default: Some(word("c"))
            },
        ])
    );
    let Instruction::Copy(copy) = only("COPY --chown=1:2 --chmod=755 --link a b /c/") else {
        panic!("a COPY")
    };
    assert_eq!(
        (copy.sources, copy.destination),
        (vec![word("a"), word("b")], word("/c/"))
    );
    assert_eq!(
        (copy.chown, copy.chmod, copy.link),
        (Some(word("1:2")), Some(word("755")), true)
    );
    let Instruction::Copy(copy) = only("COPY <<a <<-\"b\" /dir/\n1 $x\na\n\t2\n\tb") else {
        panic!("a COPY")
    };
    assert_eq!(
        copy.heredocs,
        [
            Heredoc {
                name: "a".into(),
                content: "1 $x\n".into(),
                expand: true,
                strip_tabs: false
            },
            Heredoc {
                name: "b".into(),
                content: "\t2\n".into(),
                expand: false,
                strip_tabs: true
            },
        ]
    );
    assert!(copy.sources.is_empty());
}

#[test]
fn a_flag_with_nothing_behind_its_sign_is_none_and_a_switch_is_true_or_false_in_any_case() {
    for (flags, chown, link) in [
        ("--chown=1 --link", Some("1"), true),
        (
            "--chown= --chmod= --from= --exclude= --link=TRUE",
            None,
            true,
        ),
        ("--link=False", None, false),
    ] {
        let Instruction::Copy(copy) = only(&format!("COPY {flags} a /b")) else {
            panic!("a COPY")
        };
        assert_eq!(copy.chown, chown.map(word), "{flags}");
        assert_eq!(
            (copy.chmod, copy.from, copy.exclude),
            (None, None, Vec::new()),
            "{flags}"
        );
        assert_eq!(copy.link, link, "{flags}");
    }
    for line in [
        "COPY --link=1 a /b",
        "COPY --link= a /b",
        "COPY --chown a /b",
        "ADD --unpack=yes a /b",
        "FROM --platform scratch",
    ] {
        let parsed = parse(&format!("FROM scratch\n{line}\n"), "f");
        assert!(parsed.is_err(), "{line}");
    }
}

#[test]
fn only_quotes_keep_variables_of_a_heredoc() {
    for (word, name, expand) in [
        ("<<EOF", "EOF", true),
        ("<<\\EOF", "EOF", true),
        ("<<'EOF'", "EOF", false),
        ("<<\"EOF\"", "EOF", false),
        ("<<E'O'F", "EOF", false),
    ] {
        let Instruction::Copy(copy) = only(&format!("COPY {word} /x\n{name}")) else {
            panic!("a COPY")
        };
        let heredoc = &copy.heredocs[0];
        assert_eq!(
            (heredoc.name.as_str(), heredoc.expand),
            (name, expand),
            "{word}"
        );
    }
}

#[test]
fn heredocs_are_found_wherever_a_shell_would_find_them() {
    // line | heredocs' names
    let table: [(&str, &[&str]); 12] = [
        ("RUN [ -f x ] && cat <<EOF", &["EOF"]),
        ("RUN cat <<A - 3<<'B' <<-\"C\"", &["A", "B", "C"]),
        ("RUN --network=none cat <<EOF", &["EOF"]),
        ("ONBUILD RUN cat <<EOF", &["EOF"]),
        ("ADD --chmod=1 <<EOF /x", &["EOF"]),
        ("RUN [\"cat\", \"<<EOF\"]", &[]),
        ("RUN cat <<<EOF", &[]),
        ("RUN echo \"a <<EOF b\"", &[]),
        ("RUN echo $((1<<2))", &[]),
        ("RUN echo $(( 1 << 2 ))", &[]),
        ("RUN echo a\\ <<EOF", &[]),
        ("CMD cat <<EOF", &[]),
    ];
    for (line, names) in table {
        let bodies: String = names.iter().map(|name| format!("{name}\n")).collect();
        let text = format!("FROM scratch\n{line}\n{bodies}USER x\n");
        let file = parse(&text, "f").unwrap_or_else(|error| panic!("{line}: {error}"));
        let [first, last] = &file.stages[0].instructions[..] else {
            panic!("{line}: two instructions")
        };
        assert_eq!(last.value, Instruction::User(word("x")), "{line}");
        assert_eq!(
            first.location.last_line - first.location.line,
            names.len(),
            "{line}"
        );
    }
}

#[test]
fn comments_blank_lines_and_both_escapes_join_lines_as_in_buildkit() {
    let run = |text: &str| match parse(text, "f").unwrap().stages[0].instructions[0]
        .value
        .clone()
    {
        Instruction::Run(run) => run.command,
        other => panic!("{other:?}"),
    };
    let shell = |text: &str| CommandForm::Shell(text.to_owned());
    assert_eq!(
        run("FROM scratch\nRUN a \\\n # comment\n\n  b"),
        shell("a   b")
    );
    assert_eq!(run("FROM scratch\r\nRUN a \\\r\nb\r\n"), shell("a b"));
    assert_eq!(
        run("# escape=`\nFROM scratch\nRUN a `\nb \\\n"),
        shell("a b \\")
    );
    assert_eq!(run("\u{feff}FROM scratch\nRUN a"), shell("a"));
    assert_eq!(
        run("# syntax=docker/dockerfile:1\n# escape=`\nFROM scratch\nRUN a `\n b"),
        shell("a  b")
    );
}

#[test]
fn another_encoding_is_told_with_its_place() {
    let error = super::read(
        b"FROM a\n# \xc3\xbc \xff\n\tRUN echo \xc3\xbc caf\xe9 x\nRUN \xff\n",
        "Containerfile",
    )
    .unwrap_err();
    assert_eq!(
        error.to_string(),
        "Containerfile, line 3, column 16: the byte 0xe9 is no UTF-8; save the file as UTF-8\n   \
         RUN echo \u{fc} caf\u{fffd} x\n                 ^"
    );
    assert_eq!(error.class(), Class::CONTENT);
    for (bytes, place) in [
        (&b"FROM \xc3"[..], Some((1, 6))),
        (b"\xff\xfeF\0R\0O\0M\0 \0a\0\n\0", Some((1, 1))),
        (
            b"# \xe9\nFROM a\r\n  # \xe9\r\nRUN a \\\n# \xe9\n b\n",
            None,
        ),
        (
            b"# \xe9\nFROM a\nRUN <<A cat <<B\n1\nA\n# \xe9\nB\n",
            Some((6, 3)),
        ),
        (b"FROM a\nRUN <<A \\\n# \xe9\n cat\n# 1\nA\n# \xe9\n", None),
        (b"FROM a\nCOPY <<A /\n# 1\n\n#\xe9\nA\n", Some((5, 2))),
        (
            b"FROM a\nONBUILD RUN <<A\n\n#\xe9\nA\n# \xe9\n",
            Some((4, 2)),
        ),
        ("FROM a\nRUN x # \u{fc} \u{fffd}\n".as_bytes(), None),
    ] {
        let read = super::read(bytes, "f");
        let got = read.err().map(|error| (error.line, error.column));
        assert_eq!(got, place, "{}", String::from_utf8_lossy(bytes));
    }
}

#[test]
fn what_is_wrong_is_told_with_its_place() {
    let table: [(&str, usize, usize, &str); 28] = [
        ("", 1, 1, "no instructions"),
        ("# only\n", 1, 1, "no instructions"),
        ("RUN x\n", 1, 1, "RUN stands before the first FROM"),
        (
            "FROM a\nRUM x\n",
            2,
            1,
            "unknown instruction RUM; did you mean RUN?",
        ),
        ("FROM a\nBANANA x\n", 2, 1, "unknown instruction BANANA"),
        (
            "FROM a\n  COPY --form=b x y\n",
            2,
            8,
            "COPY has no flag --form; did you mean --from?",
        ),
        (
            "FROM a\nRUN --mount=type=bnd,target=/x true\n",
            2,
            5,
            "no type bnd",
        ),
        (
            "FROM a\nRUN --mount=type=cache,mode=9 true\n",
            2,
            5,
            "mode must be a number",
        ),
        (
            "FROM a\nRUN --network=lan true\n",
            2,
            5,
            "default, none or host",
        ),
        ("FROM a\nRUN --security=insecure true\n", 2, 5, "sandbox"),
        ("FROM a\nRUN\n", 2, 1, "RUN needs a command"),
        ("FROM a\nCOPY x\n", 2, 1, "COPY needs at least one source"),
        ("FROM a\nENV x\n", 2, 1, "write NAME=value"),
        ("FROM a\nENV x=1 y\n", 2, 9, "\"y\" has no ="),
        ("FROM a b c\n", 1, 1, "FROM needs an image"),
        ("FROM a AS 1st\n", 1, 11, "no name for a stage"),
        (
            "FROM a\nCMD [\"x\", 1]\n",
            2,
            1,
            "the array of CMD must hold strings only",
        ),
        ("FROM a\nRUN []\n", 2, 1, "RUN needs a command"),
        (
            "FROM a\nRUN cat <<EOF\nx\n",
            2,
            11,
            "heredoc EOF is never closed",
        ),
        ("FROM a\nSHELL bash\n", 2, 1, "JSON array"),
        (
            "FROM a\nCOPY b <<EOF\nx\nEOF\n",
            2,
            1,
            "COPY needs at least one source, and a destination",
        ),
        ("FROM a\nRUN --mount= x\n", 2, 5, "write type=…,target=…"),
        (
            "FROM a\nRUN --mount=type=secret x\n",
            2,
            5,
            "say which secret: id=…",
        ),
        (
            "FROM a\nRUN --mount=type=secret,id=x,src=y x\n",
            2,
            5,
            "id and source both name the secret",
        ),
        (
            "FROM a\nHEALTHCHECK --timeout=999us CMD x\n",
            2,
            13,
            "--timeout can't be \"999us\": at least 1ms",
        ),
        (
            "FROM a\nONBUILD FROM b\n",
            2,
            9,
            "can't be an ONBUILD trigger",
        ),
        ("# escape=x\nFROM a\n", 1, 10, "backslash or a backtick"),
        (
            "FROM a\nCOPY --chmod=1 --chmod=2 x y\n",
            2,
            6,
            "given twice",
        ),
    ];
    for (text, line, column, words) in table {
        let error = parse(text, "Containerfile").unwrap_err();
        let told = error.to_string();
        assert!(told.contains(words), "{text:?} says {told}");
        assert_eq!((error.line, error.column), (line, column), "{text:?}");
        assert!(
            told.starts_with(&format!("Containerfile, line {line}, column {column}: ")),
            "{told}"
        );
    }
}

proptest! {
    #[test]
    fn no_text_panics_and_every_place_lies_within_the_file(text in "(FROM|RUN|COPY|ENV|LABEL|ARG|#|<<|EOF|--|=|\\\\|`|'|\"|\\[|\\]|\\$|[a-z]|[ \t\n\r]|é){0,60}") {
        let lines = text.lines().count().max(1);
        match parse(&text, "f") {
            Ok(file) => for stage in &file.stages {
                for instruction in &stage.instructions {
                    prop_assert!(instruction.location.line <= instruction.location.last_line && instruction.location.last_line <= lines);
                }
            },
            Err(error) => prop_assert!(error.line <= lines.max(error.line.min(1))),
        }
    }

    #[test]
    fn not_even_arbitrary_text_panics(text in any::<String>()) {
        let _ = parse(&text, "f");
        let _ = parse(&format!("FROM a\nRUN {text}"), "f");
        let _ = parse(&format!("FROM a\nHEALTHCHECK --interval={text} CMD x\nCOPY --{text}"), "f");
        let _ = parse(&format!("FROM a\nRUN --mount={text} x"), "f");
    }
}

#[test]
fn arithmetic_announces_no_heredoc() {
    for text in [
        "RUN echo $((1 << 2))",
        "RUN x=$(( 1<<2 )) y",
        "RUN [ $((8<<1)) ] && a",
    ] {
        let Instruction::Run(run) = only(text) else {
            panic!("a RUN")
        };
        assert_eq!(run.heredocs, [], "{text}");
    }
}
