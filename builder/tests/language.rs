//! Does a Containerfile do what it says? The program on an image of busybox; rows of a table are instructions after `FROM base` and what their steps print.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that can't go on fails"
)]

mod common;

use std::process::Command;

use common::proxy::{Action, Proxy};
use common::{Workshop, can_build};
use serde_json::{Value, json};

const CONTEXT: [(&str, &str); 9] = [
    ("a.txt", "a\n"),
    ("b.txt", "b\n"),
    ("d/x", "x\n"),
    ("d/sub/y", "y\n"),
    ("d/sub/z.md", "z\n"),
    ("secret-file", "s\n"),
    (".dockerignore", "secret-file\nignored\n"),
    ("ignored/x", ""),
    ("cache/seed", "seed\n"),
];

fn workshop() -> Workshop {
    let workshop = Workshop::new();
    for (name, content) in CONTEXT {
        workshop.file(name, content);
    }
    workshop
}

/// Instructions, more arguments, what the steps print.
type Row = (
    &'static str,
    &'static [&'static str],
    &'static [&'static str],
);

fn check(test: &str, rows: &[Row]) {
    if !can_build(test) {
        return;
    }
    let workshop = workshop();
    workshop.base();
    for (text, arguments, expected) in rows {
        let text = if text.starts_with("# ") || text.contains("FROM ") {
            (*text).to_owned()
        } else {
            format!("FROM base\n{text}")
        };
        let secret = workshop.path("secret").display().to_string();
        std::fs::write(&secret, "hush").unwrap();
        let context = workshop.path("context").display().to_string();
        let arguments: Vec<String> = arguments
            .iter()
            .map(|argument| argument.replace("SECRET", &secret))
            .map(|argument| argument.replace("CONTEXT", &context))
            .collect();
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let built = workshop.build(&text, &arguments);
        assert_eq!(built.status, 0, "{text}\n{}", built.stderr);
        assert_eq!(built.output(), *expected, "{text}\n{}", built.stderr);
    }
}

#[test]
fn steps_see_what_their_mounts_show_and_nothing_of_it_stays() {
    check(
        "steps_see_what_their_mounts_show_and_nothing_of_it_stays",
        &[
            (
                "RUN --mount=target=/m cat /m/a.txt && ! touch /m/new 2>/dev/null\nRUN ls /m 2>&1 || true\n",
                &[],
                &["a", "ls: /m: No such file or directory"],
            ),
            (
                "RUN --mount=target=/m ls /m\n",
                &[],
                &["a.txt", "b.txt", "cache", "d"],
            ),
            (
                "RUN --mount=type=bind,source=d,target=/m,rw touch /m/new && ls /m\nRUN --mount=source=d,target=/m ls /m\n",
                &[],
                &["new", "sub", "x", "sub", "x"],
            ),
            (
                "FROM base AS other\nRUN echo 1 > /f\nFROM base\nRUN --mount=from=other,source=/f,target=/t cat /t\n",
                &[],
                &["1"],
            ),
            (
                "RUN --mount=from=base,source=/etc/passwd,target=/t head -c 4 /t; echo\n",
                &[],
                &["root"],
            ),
            (
                "ENV D=d\nWORKDIR /w\nRUN --mount=source=$D,target=in ls /w/in\n",
                &[],
                &["sub", "x"],
            ),
            (
                "RUN --mount=type=tmpfs,target=/t touch /t/x && stat -c %a /t\nRUN ls /t 2>/dev/null || echo gone\n",
                &[],
                &["1777", "gone"],
            ),
            (
                "RUN --mount=type=cache,target=/c echo 1 >> /c/f\nRUN --mount=type=cache,target=/c echo 2 >> /c/f && cat /c/f\nRUN ls /c 2>/dev/null || echo gone\n",
                &[],
                &["1", "2", "gone"],
            ),
            (
                "RUN --mount=type=cache,id=k,target=/c,uid=1000,gid=1001,mode=0700 stat -c '%a %u %g' /c\nRUN --mount=type=cache,id=k,target=/d ls /d\n",
                &[],
                &["700 1000 1001"],
            ),
            (
                "RUN --mount=type=cache,target=/c,from=base,source=/etc ls /c\n",
                &[],
                &["group", "passwd"],
            ),
            (
                "FROM scratch AS seed\nCOPY cache /\nFROM base\nRUN --mount=type=cache,target=/c,from=seed cat /c/seed && touch /c/new\nRUN --mount=type=cache,target=/c,from=seed,ro ls /c && ! touch /c/x 2>/dev/null\n",
                &[],
                &["seed", "new", "seed"],
            ),
            (
                "RUN --mount=type=cache,target=/c,sharing=locked echo 1 > /c/x\nRUN --mount=type=cache,target=/c,sharing=private cat /c/x\n",
                &[],
                &["1"],
            ),
            (
                "RUN --mount=type=secret,id=s cat /run/secrets/s && echo && stat -c '%a %u' /run/secrets/s\nRUN ls /run/secrets 2>/dev/null || echo gone\n",
                &["--secret", "id=s,src=SECRET"],
                &["hush", "400 0", "gone"],
            ),
            (
                "RUN --mount=type=secret,id=s,target=/x/y,mode=0444,uid=1000 cat /x/y && echo && stat -c '%a %u' /x/y\n",
                &["--secret", "id=s,src=SECRET"],
                &["hush", "444 1000"],
            ),
            (
                "RUN --mount=type=secret,id=s,env=TOKEN echo $TOKEN && ls /run/secrets 2>/dev/null || echo none\n",
                &["--secret", "id=s,src=SECRET"],
                &["hush", "none"],
            ),
            (
                "FROM base AS one\nRUN ls /etc/v && touch /etc/v/new\nRUN ls /etc/v\nFROM base\nCOPY --from=one /etc /copy\nRUN ls /copy/v 2>&1 || true\n",
                &["--volume", "CONTEXT/d:/etc/v"],
                &[
                    "sub",
                    "x",
                    "sub",
                    "x",
                    "ls: /copy/v: No such file or directory",
                ],
            ),
            (
                "RUN cat /v && ! echo 2>/dev/null > /v\nRUN ls /absent 2>/dev/null || echo none\n",
                &[
                    "-v",
                    "CONTEXT/a.txt:/v:ro",
                    "-v",
                    "CONTEXT/absent:/absent:optional",
                ],
                &["a", "none"],
            ),
            (
                "RUN --mount=type=secret,id=absent ls /run/secrets 2>/dev/null || echo none\n",
                &[],
                &["none"],
            ),
        ],
    );
}

#[test]
fn steps_run_by_the_words_of_their_stage() {
    check(
        "steps_run_by_the_words_of_their_stage",
        &[
            ("RUN <<EOF\necho one\necho two\nEOF\n", &[], &["one", "two"]),
            (
                "RUN <<EOF\n#!/bin/awk BEGIN { print \"awk\" }\nEOF\n",
                &[],
                &["awk"],
            ),
            (
                "RUN <<A cat && cat <<B\none\nA\ntwo\nB\n",
                &[],
                &["one", "two"],
            ),
            ("RUN cat <<'EOF'\n$HOME ${x}\nEOF\n", &[], &["$HOME ${x}"]),
            (
                "ENV x=1\nRUN cat <<-EOF\n\t\tin $x\n\tEOF\n",
                &[],
                &["in 1"],
            ),
            (
                "COPY <<a <<b /h/\none\na\ntwo\nb\nRUN cat /h/a /h/b\n",
                &[],
                &["one", "two"],
            ),
            (
                "\u{feff}# escape=`\r\nFROM base\r\nRUN echo a `\r\n # c\r\n\r\n  b\r\n",
                &[],
                &["a b"],
            ),
            ("RUN <<'E O F' cat\nx $HOME\nE O F\n", &[], &["x $HOME"]),
            ("RUN 3<<EOF.1 cat <&3\n# 1\nEOF.1\n", &[], &["# 1"]),
            (
                "ARG V=1\nCOPY <<EOF /h\n$V '$V' \"$V\" \\\\ \\x ${N:-n}\nEOF\nRUN cat /h\n",
                &[],
                &["1 '1' \"1\" \\ x n"],
            ),
            (
                "ARG A=1 C\nARG B=${A}2${C:+no}\nFROM base\nARG B\nARG A=7\nRUN echo $A $B $C\n",
                &[],
                &["7 12"],
            ),
            (
                "ENV P=/usr/lib/x.so.1.2\nENV A=${P##*/} B=${P%/*} C=${P%%.*} D=${P#*/} E=${P/lib/LIB} F=${P//./-}\nRUN echo $A $B $C $D $E $F\n",
                &[],
                &[
                    "x.so.1.2 /usr/lib /usr/lib/x usr/lib/x.so.1.2 /usr/LIB/x.so.1.2 /usr/lib/x-so-1-2",
                ],
            ),
            (
                "ENV a b c=d \"e f\" \\\n # c\n\n g\nRUN echo \"$a\"\n",
                &[],
                &["b c=d e f  g"],
            ),
            (
                "ENV x=1\nENV x=2 y=$x z=${x}3\nRUN echo $x $y $z\n",
                &[],
                &["2 1 13"],
            ),
            (
                "ENV A=\\$B C=\"\\$B\" D='$B' E=$$.\nRUN echo $A $C $D $E\n",
                &[],
                &["$B $B $B ."],
            ),
            (
                "RUN --mount=TYPE=CACHE,Target=/c,sharing=LOCKED,dst=/d -- ls -d /d\n",
                &[],
                &["/d"],
            ),
            (
                "RUN --mount=target=/m --mount=type=tmpfs,tmpfs-size=1m,target=/m/d ls /m/d | wc -l\n",
                &[],
                &["0"],
            ),
            (
                "RUN --mount=target=/m,rw,ro touch /m/x 2>/dev/null || echo ro\n",
                &[],
                &["ro"],
            ),
            (
                "FROM base AS Build\nRUN echo 1 > /1\nFROM base AS TWO\nCOPY --from=BUILD /1 /\nFROM two\nRUN cat /1\n",
                &[],
                &["1"],
            ),
            ("USER :wheel\nRUN id -u; id -g\n", &[], &["0", "10"]),
            ("USER ann:\nRUN id -g\n", &[], &["1001"]),
            (
                "WORKDIR /a//b/./c/\nRUN pwd\nWORKDIR ..\nWORKDIR d/../e/\nRUN pwd\n",
                &[],
                &["/a/b/c", "/a/b/e"],
            ),
            (
                "ENV U=日本\nARG Ü=/ü\nCOPY a.txt /$U${Ü}\nRUN cat /日本/ü\n",
                &[],
                &["a"],
            ),
            ("RUN [\"/bin/echo\", \"$HOME\"]\n", &[], &["$HOME"]),
            (
                "SHELL [\"/bin/sh\", \"-x\", \"-c\"]\nRUN echo 1\n",
                &[],
                &["+ echo 1", "1"],
            ),
            (
                "USER ann\nRUN id -u && id -g && echo $HOME && umask\n",
                &[],
                &["1000", "1001", "/home/ann", "0022"],
            ),
            ("USER 7:wheel\nRUN id -u; id -g\n", &[], &["7", "10"]),
            (
                "USER ann\nWORKDIR /a/b\nRUN stat -c '%u %g' /a /a/b\n",
                &[],
                &["1000 1001", "1000 1001"],
            ),
            ("WORKDIR /a/b\nWORKDIR c\nRUN pwd\n", &[], &["/a/b/c"]),
            (
                "ARG V=default\nRUN echo $V\n",
                &["--build-arg", "V=given"],
                &["given"],
            ),
            (
                "ARG V=default\nENV V=env\nRUN echo $V\n",
                &["--build-arg", "V=given"],
                &["env"],
            ),
            (
                "ARG A=1\nARG B=${A:+$A-}${C:-c}\nENV D=${B#1} E=${B%c} F=${B/1/one}\nRUN echo $B $D $E $F\n",
                &[],
                &["1-c -c 1- one-c"],
            ),
            (
                "ARG TARGETARCH\nARG BUILDPLATFORM\nRUN echo $TARGETARCH $BUILDPLATFORM\n",
                &[],
                &["amd64 linux/amd64"],
            ),
            (
                "RUN echo $HTTP_PROXY $no_proxy\n",
                &[
                    "--build-arg",
                    "HTTP_PROXY=http://p:1",
                    "--build-arg",
                    "no_proxy=x",
                ],
                &["http://p:1 x"],
            ),
            ("# escape=`\nFROM base\nRUN echo a`\n  b\n", &[], &["a b"]),
            (
                "# syntax=docker/dockerfile:99\nFROM base\nRUN \\\n# a comment\n\n echo on\n",
                &[],
                &["on"],
            ),
            (
                "RUN --network=none cat /proc/net/dev | tail -n +3 | wc -l\n",
                &[],
                &["1"],
            ),
            (
                "RUN --network=host --security=sandbox echo yes\n",
                &[],
                &["yes"],
            ),
            (
                "RUN test -f /run/.containerenv && test -s /etc/hosts && ! cat /proc/1/environ 2>/dev/null && env | sort\n",
                &[],
                &["HOME=/root", "PATH=/bin", "PWD=/", "SHLVL=1"],
            ),
        ],
    );
}

#[test]
fn files_arrive_as_buildkit_would_put_them() {
    check(
        "files_arrive_as_buildkit_would_put_them",
        &[
            ("COPY a.txt b.txt /in/\nRUN cat /in/*\n", &[], &["a", "b"]),
            (
                "COPY --chown=ann a.txt /1\nCOPY --chown=7 a.txt /2\nCOPY --chown=5:wheel a.txt /3\nCOPY --chown=:10 a.txt /4\nCOPY --chown=ann: a.txt /5\nRUN stat -c %u:%g /1 /2 /3 /4 /5\n",
                &[],
                &["1000:1001", "7:7", "5:10", "0:10", "1000:1001"],
            ),
            (
                "ARG U=ann\nCOPY --chown=$U:${G:-wheel} --chmod=0${M:-640} a.txt /1\nCOPY --chmod=u+x,go-r a.txt /2\nRUN stat -c '%u:%g %a' /1 /2\n",
                &[],
                &["1000:10 640", "0:0 700"],
            ),
            (
                "COPY --parents d/sub/./y a.txt d/**/z.md /p\nRUN find /p -type f | sort\n",
                &[],
                &["/p/a.txt", "/p/d/sub/z.md", "/p/y"],
            ),
            (
                "COPY --exclude=*.md d /1\nCOPY --exclude=sub d /2\nCOPY --exclude=d/sub d /3\nRUN find /1 /2 /3 -type f | sort | tr '\\n' ' '; echo\n",
                &[],
                &["/1/sub/y /1/sub/z.md /1/x /2/x /3/sub/y /3/sub/z.md /3/x "],
            ),
            (
                "WORKDIR /w\nCOPY ../a.txt ./d/../b.txt .\nCOPY [ab].txt g/\nRUN find . -type f | sort | tr '\\n' ' '; echo\n",
                &[],
                &["./a.txt ./b.txt ./g/a.txt ./g/b.txt "],
            ),
            (
                "COPY --chown=ann:wheel --chmod=640 a.txt /x\nRUN stat -c '%a %u %g' /x\n",
                &[],
                &["640 1000 10"],
            ),
            (
                "COPY --parents d/sub/y a.txt /p/\nRUN find /p | sort\n",
                &[],
                &["/p", "/p/a.txt", "/p/d", "/p/d/sub", "/p/d/sub/y"],
            ),
            (
                "COPY --parents ./d/./sub/* /p\nRUN find /p | sort\n",
                &[],
                &["/p", "/p/sub", "/p/sub/y", "/p/sub/z.md"],
            ),
            (
                "COPY --parents **/*.md /p\nRUN find /p | sort\n",
                &[],
                &["/p", "/p/d", "/p/d/sub", "/p/d/sub/z.md"],
            ),
            (
                "COPY --exclude=**/*.md --exclude=x d /p\nRUN find /p | sort\n",
                &[],
                &["/p", "/p/sub", "/p/sub/y"],
            ),
            (
                "COPY --link a.txt /tmp/l\nRUN cat /tmp/l; stat -c %a /tmp\n",
                &[],
                &["a", "1777"],
            ),
            (
                "COPY --from=base /etc/group /g\nRUN head -n 1 /g\n",
                &[],
                &["root:x:0:"],
            ),
            (
                "FROM base AS one\nRUN echo 1 > /1\nFROM base AS two\nCOPY --from=one /1 /\nCOPY --from=0 /1 /again\nRUN cat /1 /again\n",
                &[],
                &["1", "1"],
            ),
            (
                "COPY [\"a.txt\", \"/with blank\"]\nRUN cat '/with blank'\n",
                &[],
                &["a"],
            ),
            (
                "COPY . /all\nRUN find /all -type f | sort\n",
                &[],
                &[
                    "/all/.dockerignore",
                    "/all/a.txt",
                    "/all/b.txt",
                    "/all/cache/seed",
                    "/all/d/sub/y",
                    "/all/d/sub/z.md",
                    "/all/d/x",
                ],
            ),
        ],
    );
}

#[test]
fn triggers_run_in_the_stages_that_start_from_them() {
    let test = "triggers_run_in_the_stages_that_start_from_them";
    check(
        test,
        &[(
            "FROM base AS parent\nONBUILD COPY a.txt /t\nONBUILD RUN cat /t && echo $V\nONBUILD ARG V=1\nFROM parent\nRUN echo own $V\n",
            &[],
            &["a", "", "own 1"],
        )],
    );
    if !can_build(test) {
        return;
    }
    let workshop = workshop();
    let image = format!("oci:{}:v1", workshop.path("triggers").display());
    let text = "FROM base\nONBUILD RUN echo triggered\nONBUILD COPY --from=later /x /y\n";
    workshop.build_to(text, &image, &[]).ok();
    let context = format!("trigger={image}");
    let text = "FROM base AS later\nRUN echo needed > /x\nFROM trigger\nRUN cat /y\nFROM scratch\nFROM trigger AS last\nRUN cat /y\n";
    let built = workshop.build(text, &["--build-context", &context]).ok();
    assert_eq!(built.output(), ["triggered", "needed"]);
    let config = workshop.image().config;
    assert_eq!(config["config"]["OnBuild"], Value::Null);
    let bad = format!("oci:{}:v1", workshop.path("bad").display());
    workshop
        .build_to("FROM base\nONBUILD ENV a b\n", &bad, &[])
        .ok();
}

#[test]
fn archives_of_every_kind_are_unpacked_by_add_alone() {
    let test = "archives_of_every_kind_are_unpacked_by_add_alone";
    if !can_build(test) {
        return;
    }
    let workshop = workshop();
    let make = "cd $1 && mkdir -p t/d && echo x > t/d/f && chown -R 5:6 t/d && chmod 750 t/d && tar -cf a.tar -C t d && gzip -k a.tar && \
                { xz -k a.tar 2>/dev/null || true; } && { bzip2 -k a.tar 2>/dev/null || true; } && { zstd -q a.tar 2>/dev/null || true; }; rm -r t";
    let context = workshop.path("context");
    let made = Command::new("sh")
        .args(["-c", make, "sh"])
        .arg(&context)
        .status();
    assert!(made.unwrap().success());
    for kind in ["", ".gz", ".xz", ".bz2", ".zst"] {
        let name = format!("a.tar{kind}");
        if !context.join(&name).exists() {
            common::skip(test, &format!("there is no program to make {name}"));
            continue;
        }
        let text = format!(
            "FROM base\nADD {name} /u/\nADD --chown=7:8 {name} /v/\nCOPY {name} /w/\nADD --unpack=false {name} /w2\nRUN stat -c '%a %u %g' /u/d /v/d && cat /u/d/f && ls /w && test -f /w2\n"
        );
        let built = workshop.build(&text, &[]).ok();
        assert_eq!(built.output(), ["750 5 6", "750 7 8", "x", name.as_str()]);
    }
}

#[test]
fn remote_files_are_added_with_their_time_and_checked() {
    let test = "remote_files_are_added_with_their_time_and_checked";
    if !can_build(test) {
        return;
    }
    let workshop = workshop();
    let mut failures = 1;
    let server = Proxy::start(1, move |request, _| {
        use Action::{Answer, Drop};
        assert_eq!(request.header("authorization"), None);
        let modified = ("last-modified", "Tue, 14 Nov 2023 22:13:20 GMT".to_owned());
        match request.path.as_str() {
            "/pub/a%20file.txt?x=y" if failures > 0 => {
                failures -= 1;
                Drop
            }
            "/pub/a%20file.txt?x=y" => Answer(200, vec![modified], "remote\n"),
            "/moved" => Answer(
                302,
                vec![("location", "/pub/a%20file.txt?x=y".to_owned())],
                "",
            ),
            _ => Answer(404, Vec::new(), "no"),
        }
    });
    let url = format!("http://{}", server.host);
    let digest = strata_builder::digest::Digest::of(b"remote\n");
    let text = format!(
        "FROM base\nADD {url}/pub/a%20file.txt?x=y /r/\nADD --checksum={digest} --chmod=644 {url}/moved /s/\nRUN stat -c '%n %a %u %Y' '/r/a file.txt' /s/moved && cat /s/moved\n"
    );
    let report = workshop.path("report").display().to_string();
    let built = workshop.build(&text, &["--report", &report]).ok();
    let report: Value = serde_json::from_slice(&std::fs::read(report).unwrap()).unwrap();
    assert_eq!(report["work"]["retries"], json!({"connection": 1}));
    assert_eq!(
        built.output(),
        [
            "/r/a file.txt 600 0 1700000000",
            "/s/moved 644 0 1700000000",
            "remote"
        ]
    );
    let wrong = format!(
        "FROM base\nADD --checksum=sha256:{} {url}/moved /x\n",
        "0".repeat(64)
    );
    for (text, status, said) in [
        (wrong, 65, "but --checksum says sha256:0000"),
        (
            format!("FROM base\nADD {url}/absent /x\n"),
            65,
            "the server answered 404 Not Found",
        ),
    ] {
        let built = workshop.build(&text, &[]);
        assert_eq!(built.status, status, "{}", built.stderr);
        assert!(built.stderr.contains(said), "{}", built.stderr);
    }
}

#[test]
fn what_can_not_be_built_is_refused_with_its_place_and_a_pointer() {
    let test = "what_can_not_be_built_is_refused_with_its_place_and_a_pointer";
    if !can_build(test) {
        return;
    }
    let workshop = workshop();
    for (text, status, said) in [
        (
            "FROM base\nRUN --mont=type=cache,target=/x true\n",
            65,
            "line 2, column 5: RUN has no flag --mont; did you mean --mount?\n  RUN --mont=type=cache,target=/x true\n      ^",
        ),
        (
            "FROM base\n\nRNU true\n",
            65,
            "line 3, column 1: unknown instruction RNU; did you mean RUN?\n  RNU true\n  ^",
        ),
        (
            "FROM base\nRUN --security=insecure true\n",
            65,
            "line 2, column 5: --security can't be \"insecure\"",
        ),
        (
            "FROM base\nRUN --mount=type=ssh true\n",
            65,
            "ssh mounts are not supported",
        ),
        (
            "FROM base\nADD https://example.com/x.git /x\n",
            65,
            "line 2, column 5: ADD of a git repository is not supported\n  ADD https://example.com/x.git /x\n      ^",
        ),
        (
            "FROM base\nRUN --mount=type=secret,id=s,required=true true\n",
            65,
            "the secret \"s\" is required; give it with --secret id=s,src=FILE",
        ),
        (
            "FROM base\nRUN --mount=type=cache true\n",
            65,
            "RUN --mount=type=cache true: --mount can't be \"type=cache\": it would hide the whole root file system; say target=…",
        ),
        (
            "FROM base\nWORKDIR /w\nRUN --mount=type=tmpfs true\nRUN --mount=type=tmpfs,dst=/./ true\n",
            65,
            "line 4: RUN --mount=type=tmpfs,dst=/./ true: --mount can't be",
        ),
        (
            "FROM base\nADD --checksum=sha256:00 a.txt /x\n",
            65,
            "line 2: ADD --checksum=sha256:00 a.txt /x: --checksum is for one source, and that a URL",
        ),
        (
            "FROM base\nCOPY http://example.com/x /x\n",
            65,
            "line 2, column 6: COPY of a URL, which ADD takes, is not supported",
        ),
        (
            "FROM base\nCOPY --exclude=x --exclude=[a d /x\n",
            65,
            "line 2: COPY --exclude=x --exclude=[a d /x: --exclude: line 2: \"[a\" is no pattern",
        ),
        (
            &format!("FROM base\nRUN : {}\n", "x".repeat(200_000)),
            65,
            &format!(
                "line 2: RUN : {}…: the command is too long for the kernel: an argument",
                "x".repeat(994)
            ),
        ),
        (
            "FROM base\nCOPY secret-file /\n",
            65,
            "excluded by the ignore file",
        ),
        (
            "FROM base\nRUN exit 7\n",
            65,
            "line 2: RUN exit 7: the command ended with status 7",
        ),
        (
            "FROM nowhere.invalid/x\nRUN true\n",
            75,
            "nowhere.invalid/x",
        ),
    ] {
        let built = workshop.build(text, &["--step-timeout", "60s", "--retry-for", "1s"]);
        assert_eq!(built.status, status, "{}", built.stderr);
        assert!(
            built.stderr.contains(said),
            "{said}\nnot in\n{}",
            built.stderr
        );
    }
    workshop.file(".dockerignore", "a\n!\n");
    let built = workshop.build("FROM base\nCOPY . /x\n", &[]);
    let file = workshop.path("context/.dockerignore");
    let told = format!(
        "line 2: COPY . /x: read {}: line 2: ! without a pattern",
        file.display()
    );
    assert!(built.stderr.contains(&told), "{}", built.stderr);
    let built = workshop.build("FROM base\nRUN sleep 100\n", &["--step-timeout", "1s"]);
    assert_eq!(built.status, 65);
    assert!(
        built.stderr.contains("took too long and was killed"),
        "{}",
        built.stderr
    );
}

#[test]
fn work_files_are_left_only_if_that_is_asked_for() {
    if !can_build("work_files_are_left_only_if_that_is_asked_for") {
        return;
    }
    let workshop = workshop();
    let left = |more: &[&str]| {
        workshop.build("FROM base\nRUN true\n", more).ok();
        std::fs::read_dir(workshop.path("scratch")).unwrap().count()
    };
    assert_eq!(left(&[]), 0);
    assert_eq!(left(&["--leave-scratch"]), 1);
}

#[test]
fn lines_behind_generated_ones_are_counted_as_their_author_does_in_log_and_report() {
    let test = "lines_behind_generated_ones_are_counted_as_their_author_does_in_log_and_report";
    if !can_build(test) {
        return;
    }
    let workshop = workshop();
    let report = workshop.path("report");
    workshop.base();
    let lost = workshop.path("lost");
    let mut copy = Command::new("cp");
    let copy = copy.arg("-r").arg(workshop.path("base")).arg(&lost);
    assert!(copy.status().unwrap().success());
    let layer = common::Image::read(&lost).manifest["layers"][0]["digest"].clone();
    let layer = layer.as_str().unwrap().replace(':', "/");
    std::fs::remove_file(lost.join("blobs").join(layer)).unwrap();
    let lost = format!("lost=oci:{}", lost.display());
    for (text, place) in [
        // The target has no layer yet.
        (
            "FROM base\n# mine:\nFROM lost\nLABEL a=b\n",
            "Containerfile, line 1: FROM lost: open ",
        ),
        (
            "FROM base\nRUN false\nRUN true\n",
            "Containerfile (generated part), line 2: RUN false",
        ),
        (
            "FROM base\n# mine:\nRUN true\nRUN false\n",
            "Containerfile, line 2: RUN false",
        ),
        (
            "FROM base\n# mine:\nRUNN true\n",
            "Containerfile, line 1, column 1: unknown",
        ),
        (
            "FROM base\n# mine:\nCOPY --from=later a b\nFROM base AS later\n",
            "Containerfile, line 1: ",
        ),
        (
            "FROM base\n# mine:\n\nADD git@example.com:x.git /x\n",
            "Containerfile, line 2, column 5: ",
        ),
        (
            "FROM base\nFROM absent AS x\nFROM x\nCOPY --from=absent /x /y\n",
            "Containerfile (generated part), line 2: FROM absent AS x: read /absent/oci-layout",
        ),
        (
            "FROM base\n# mine:\nRUN true\nCOPY --from=absent /x \\\n  /y\n",
            "Containerfile, line 2: COPY --from=absent /x   /y: read /absent/oci-layout",
        ),
        (
            "FROM base\n# mine:\nRUN --mount=from=absent,target=/x true\n",
            "Containerfile, line 1: RUN --mount=from=absent,target=/x true: read /absent/oci-layout",
        ),
        (
            "FROM base\n# mine:\nFROM x//y\n",
            "Containerfile, line 1: FROM x//y: ",
        ),
        (
            "FROM base\n# mine:\nFROM lost\nRUN true\n",
            "Containerfile, line 1: FROM lost: pull sha256:",
        ),
    ] {
        let more = [
            "--build-context",
            "absent=oci:/absent",
            "--build-context",
            &lost,
            "--generated-lines",
            "2",
            "--report",
            report.to_str().unwrap(),
        ];
        let built = workshop.build(text, &more);
        assert_eq!(built.status, 65, "{text}: {}", built.stderr);
        let last = built
            .stderr
            .lines()
            .find_map(|line| line.strip_prefix("error: "));
        assert!(last.unwrap().starts_with(place), "{text}: {}", built.stderr);
        let report = std::fs::read_to_string(&report).unwrap();
        let report: Value = serde_json::from_str(&report).unwrap();
        let told = match &report["outcome"]["step"] {
            Value::Null => report["outcome"]["message"].as_str().unwrap().to_owned(),
            step => format!(
                "{}, line {}: {}",
                step["file"].as_str().unwrap(),
                step["line"],
                [&step["text"], &report["outcome"]["message"]]
                    .map(|part| part.as_str().unwrap())
                    .join(": ")
            ),
        };
        assert!(told.starts_with(place), "{text}: {report:#}");
    }
}

#[test]
fn an_image_that_its_registry_refuses_is_told_with_the_line_that_names_it() {
    let test = "an_image_that_its_registry_refuses_is_told_with_the_line_that_names_it";
    if !can_build(test) {
        return;
    }
    let workshop = workshop();
    let report = workshop.path("report");
    let registry = Proxy::start(1, |_, _| Action::Answer(403, Vec::new(), "not you"));
    let image = format!("{}/team/os:v1", registry.host);
    let text = format!("FROM base AS x\nFROM base\nCOPY --from={image} /a /b\n");
    let more = [
        "--plain-http",
        &registry.host,
        "--report",
        report.to_str().unwrap(),
    ];
    let built = workshop.build(&text, &more);
    assert_eq!(built.status, 77, "{}", built.stderr);
    let instruction = format!("COPY --from={image} /a /b");
    let told = format!("error: Containerfile, line 3: {instruction}: pull {image}: ");
    assert!(built.stderr.contains(&told), "{}", built.stderr);
    let report = std::fs::read_to_string(&report).unwrap();
    let report: Value = serde_json::from_str(&report).unwrap();
    let outcome = &report["outcome"];
    assert_eq!(
        outcome["step"],
        json!({"file": "Containerfile", "line": 3, "text": instruction})
    );
    assert_eq!(outcome["refusedBy"], image);
}

/// What `script` shows of a build at a terminal of its own, 100 columns wide, and how it ended.
fn at_a_terminal(workshop: &Workshop, containerfile: &str, progress: &str) -> common::Built {
    workshop.base();
    std::fs::write(workshop.path("Containerfile"), containerfile).unwrap();
    let whole = workshop.command(&[
        "--containerfile",
        workshop.path("Containerfile").to_str().unwrap(),
        "--context",
        workshop.path("context").to_str().unwrap(),
        "--build-context",
        &format!("base={}", workshop.base()),
        "--push",
        &format!("oci:{}:v1", workshop.path("out").display()),
        "--progress",
        progress,
    ]);
    let words: Vec<_> = std::iter::once(whole.get_program())
        .chain(whole.get_args())
        .collect();
    let line: Vec<_> = words.iter().map(|word| word.to_str().unwrap()).collect();
    let line = format!("stty cols 100 rows 30; {}", line.join(" "));
    let mut script = Command::new("script");
    script.args(["-qefc", &line, "/dev/null"]);
    common::Built::of(&script.stdin(std::process::Stdio::null()).output().unwrap())
}

#[test]
fn a_terminal_shows_what_goes_on_and_a_log_has_lines_only() {
    let test = "a_terminal_shows_what_goes_on_and_a_log_has_lines_only";
    if !can_build(test) || !common::has("script", test) {
        return;
    }
    let workshop = workshop();
    let text = "FROM base\nRUN echo said; sleep 1\nRUN exit 3\n";
    for progress in ["auto", "tty"] {
        let shown = at_a_terminal(&workshop, text, progress);
        assert_eq!(shown.status, 65, "{}", shown.stdout);
        // A line of the log, and one that is drawn again and again with its time.
        for part in [
            "[stage 1/1 step 1/2]   said",
            "0s [stage 1/1 step 1/2] RUN echo",
            "\u{1b}[2K",
            "error: Containerfile, line 3",
        ] {
            assert!(
                shown.stdout.contains(part),
                "{progress}, {part:?}: {:?}",
                shown.stdout
            );
        }
        let (_, end) = shown.stdout.rsplit_once("error: ").unwrap();
        assert!(
            !end.contains("[stage"),
            "what was going on is gone: {end:?}"
        );
    }
    let plain = at_a_terminal(&workshop, text, "plain");
    assert!(!plain.stdout.contains('\u{1b}'), "{:?}", plain.stdout);
    let log = workshop.build(text, &[]);
    assert!(!log.stderr.contains('\u{1b}'), "{:?}", log.stderr);
    let refused = workshop.build(text, &["--progress", "tty"]);
    assert_eq!(refused.status, 64, "{}", refused.stderr);
    assert!(
        refused.stderr.contains("standard error is no terminal"),
        "{}",
        refused.stderr
    );
}
