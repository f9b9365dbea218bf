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
    let workshop = Workshop::with_files();
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
                "RUN --mount=type=cache,target=/c/d/ echo 1 > /c/d/f\nWORKDIR /c\nRUN --mount=type=cache,target=/c/./d cat d/f\nRUN --mount=type=cache,target=e echo 2 > e/f\nWORKDIR /w\nRUN --mount=type=cache,target=e cat e/f\n",
                &[],
                &["1", "2"],
            ),
            (
                "RUN --mount=type=secret,id=a/s cat /run/secrets/s; echo\n",
                &["--secret", "id=a/s,src=SECRET"],
                &["hush"],
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
                "ARG none\nCOPY --chown=$none --chmod=$none a.txt /1\nADD --checksum=$none a.txt /2\nRUN stat -c '%u:%g %a' /1 /2\n",
                &[],
                &["0:0 644", "0:0 644"],
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
                "ENV X=x\nCOPY --exclude=$X --exclude=#x --exclude=/x d /1\nRUN find /1 -type f | sort | tr '\\n' ' '; echo\n",
                &[],
                &["/1/sub/y /1/sub/z.md /1/x "],
            ),
            (
                "RUN mkdir -m 711 /d && chown 5 /d\nCOPY --parents --chown=ann --chmod=600 d/x /\nRUN stat -c '%a %u' /d/x /d\n",
                &[],
                &["600 1000", "755 5"],
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
    let workshop = Workshop::with_files();
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
    let workshop = Workshop::with_files();
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
    let workshop = Workshop::with_files();
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
