//! One logical line → one instruction: flags, JSON forms, words.

use super::super::{
    CommandForm, Healthcheck, Heredoc, Instruction, Mount, MountKind, Network, Run, Transfer, Word,
};
use super::lines::heredoc;
use super::{Fault, declarations, words_of};

const INSTRUCTIONS: [&str; 18] = [
    "ADD",
    "ARG",
    "CMD",
    "COPY",
    "ENTRYPOINT",
    "ENV",
    "EXPOSE",
    "FROM",
    "HEALTHCHECK",
    "LABEL",
    "MAINTAINER",
    "ONBUILD",
    "RUN",
    "SHELL",
    "STOPSIGNAL",
    "USER",
    "VOLUME",
    "WORKDIR",
];

/// A flag before an instruction's arguments.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Flag {
    pub name: String,
    pub value: Option<String>,
}

impl Flag {
    fn text(&self) -> String {
        format!("--{}", self.name)
    }

    fn word(self) -> Word {
        Word(self.value.unwrap_or_default())
    }

    fn is_set(&self) -> Result<bool, Fault> {
        match self.value.as_deref() {
            None | Some("true" | "1" | "") => Ok(true),
            Some("false" | "0") => Ok(false),
            Some(_) => Err(self.bad("true or false")),
        }
    }

    fn bad(&self, wanted: &str) -> Fault {
        Fault::FlagValue {
            flag: self.text(),
            value: self.value.clone().unwrap_or_default(),
            wanted: wanted.to_owned(),
        }
    }
}

/// The first word and the rest.
pub(super) fn split_name(text: &str) -> (&str, &str) {
    text.split_once(char::is_whitespace)
        .map_or((text, ""), |(name, rest)| (name, rest.trim_start()))
}

/// Whether bodies may follow the line: not behind the JSON form, and of these instructions only.
pub(super) fn takes_heredocs(name: &str, rest: &str, escape: char) -> bool {
    let (name, mut rest) = match name {
        "ONBUILD" => split_name(rest),
        _ => (name, rest),
    };
    while rest.starts_with("--") {
        rest = flag_word(rest, escape).1.trim_start();
    }
    let name = name.to_ascii_uppercase();
    ["ADD", "COPY", "RUN"].contains(&name.as_str())
        && rest.contains("<<")
        && matches!(json_form(&name, rest), Ok(None))
}

/// Reads the leading `--name[=value]` words; those not in `known` are errors.
pub(super) fn flags<'a>(
    instruction: &str,
    rest: &'a str,
    escape: char,
    known: &[&str],
) -> Result<(Vec<Flag>, &'a str), Fault> {
    let mut flags: Vec<Flag> = Vec::new();
    let mut rest = rest.trim_start();
    while rest.starts_with("--") {
        let (word, after) = flag_word(rest, escape);
        rest = after.trim_start();
        if word == "--" {
            break;
        }
        let (name, value) = match word[2..].split_once('=') {
            Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
            None => (word[2..].to_owned(), None),
        };
        if !known.contains(&name.as_str()) {
            let suggestion = nearest(&name, known).map(|s| format!("--{s}"));
            return Err(Fault::UnknownFlag {
                instruction: instruction.to_owned(),
                flag: format!("--{name}"),
                suggestion,
            });
        }
        let repeatable = ["mount", "exclude"].contains(&name.as_str());
        if !repeatable && flags.iter().any(|flag| flag.name == name) {
            return Err(Fault::RepeatedFlag(format!("--{name}")));
        }
        flags.push(Flag { name, value });
    }
    Ok((flags, rest))
}

/// One flag without its quotes, and what follows it.
fn flag_word(text: &str, escape: char) -> (String, &str) {
    let mut word = String::new();
    let mut quote = None;
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match quote {
            None if c.is_whitespace() => return (word, &text[at..]),
            None if c == '\'' || c == '"' => quote = Some(c),
            Some(open) if c == open => quote = None,
            _ if c == escape => word.extend(chars.next().map(|(_, c)| c)),
            _ => word.push(c),
        }
    }
    (word, "")
}

/// The known word that is nearest to what was written, if it is near at all.
fn nearest<'a>(written: &str, known: &[&'a str]) -> Option<&'a str> {
    let best = known
        .iter()
        .map(|k| {
            (
                distance(&written.to_ascii_uppercase(), &k.to_ascii_uppercase()),
                *k,
            )
        })
        .min()?;
    (best.0 <= 1 + best.1.len() / 4).then_some(best.1)
}

/// Insertions, deletions, replacements and swaps of neighbours between two words.
fn distance(a: &str, b: &str) -> usize {
    // a longer word is no misspelling of an instruction, and must cost nothing
    if a.len() > 32 {
        return usize::MAX;
    }
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut before: Vec<usize> = Vec::new();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut next = vec![i + 1];
        for (j, y) in b.iter().enumerate() {
            let mut best = (row[j] + usize::from(x != y))
                .min(next[j] + 1)
                .min(row[j + 1] + 1);
            if i > 0 && j > 0 && *x == b[j - 1] && a[i - 1] == *y {
                best = best.min(before[j - 1] + 1);
            }
            next.push(best);
        }
        before = std::mem::replace(&mut row, next);
    }
    row.last().copied().unwrap_or(0)
}

/// Reads anything but FROM.
pub(super) fn read(
    name: &str,
    rest: &str,
    heredocs: Vec<Heredoc>,
    escape: char,
) -> Result<Instruction, Fault> {
    if !INSTRUCTIONS.contains(&name) {
        let suggestion = nearest(name, &INSTRUCTIONS).map(str::to_owned);
        return Err(Fault::UnknownInstruction {
            name: name.chars().take(60).collect(),
            suggestion,
        });
    }
    let known: &[&str] = match name {
        "RUN" => &["mount", "network", "security"],
        "COPY" => &["from", "chown", "chmod", "link", "parents", "exclude"],
        "ADD" => &[
            "chown",
            "chmod",
            "link",
            "exclude",
            "checksum",
            "keep-git-dir",
            "unpack",
        ],
        "HEALTHCHECK" => &[
            "interval",
            "timeout",
            "start-period",
            "start-interval",
            "retries",
        ],
        _ => &[],
    };
    let (flags, rest) = match name {
        // their arguments may start with dashes
        "CMD" | "ENTRYPOINT" | "MAINTAINER" | "ONBUILD" => (Vec::new(), rest),
        _ => flags(name, rest, escape, known)?,
    };
    let needs = |wanted| Fault::Arguments {
        instruction: name.to_owned(),
        wanted,
    };
    let some = |words: Vec<Word>, wanted| {
        if words.is_empty() {
            Err(needs(wanted))
        } else {
            Ok(words)
        }
    };
    match name {
        "RUN" => run(flags, rest, heredocs),
        "COPY" => Ok(Instruction::Copy(transfer(
            name, flags, rest, heredocs, escape,
        )?)),
        "ADD" => Ok(Instruction::Add(transfer(
            name, flags, rest, heredocs, escape,
        )?)),
        "ARG" => match declarations(&words_of(rest, escape)) {
            words if words.is_empty() => Err(needs("a name")),
            words if words.iter().any(|w| w.name.is_empty()) => Err(needs("a name before =")),
            words => Ok(Instruction::Arg(words)),
        },
        "ENV" => Ok(Instruction::Env(pairs(name, rest, escape)?)),
        "LABEL" => Ok(Instruction::Label(pairs(name, rest, escape)?)),
        "WORKDIR" if rest.is_empty() => Err(needs("a directory")),
        "WORKDIR" => Ok(Instruction::Workdir(Word(rest.to_owned()))),
        "USER" if rest.is_empty() => Err(needs("a user")),
        "USER" => Ok(Instruction::User(Word(rest.to_owned()))),
        "SHELL" => match json_form(name, rest)? {
            Some(words) if !words.is_empty() => Ok(Instruction::Shell(words)),
            _ => Err(needs(
                "its words as a JSON array, such as [\"/bin/bash\", \"-c\"]",
            )),
        },
        "CMD" => Ok(Instruction::Cmd(command(name, rest)?)),
        "ENTRYPOINT" => Ok(Instruction::Entrypoint(command(name, rest)?)),
        "EXPOSE" => Ok(Instruction::Expose(some(
            plain_words(rest),
            "at least one port",
        )?)),
        "STOPSIGNAL" if rest.is_empty() => Err(needs("a signal")),
        "STOPSIGNAL" => Ok(Instruction::StopSignal(Word(rest.to_owned()))),
        "VOLUME" => {
            let words = match json_form(name, rest)? {
                Some(words) => words.into_iter().map(Word).collect(),
                None => plain_words(rest),
            };
            Ok(Instruction::Volume(some(words, "at least one path")?))
        }
        "MAINTAINER" if rest.is_empty() => Err(needs("a name")),
        "MAINTAINER" => Ok(Instruction::Maintainer(rest.to_owned())),
        "HEALTHCHECK" => healthcheck(flags, rest),
        _ => onbuild(rest, heredocs, escape),
    }
}

fn onbuild(rest: &str, heredocs: Vec<Heredoc>, escape: char) -> Result<Instruction, Fault> {
    let (name, arguments) = split_name(rest);
    match name.to_ascii_uppercase().as_str() {
        "" => Err(Fault::Arguments {
            instruction: "ONBUILD".to_owned(),
            wanted: "an instruction",
        }),
        name @ ("ONBUILD" | "FROM" | "MAINTAINER") => Err(Fault::Trigger(name.to_owned())),
        name => {
            read(name, arguments, heredocs.clone(), escape)?;
            let bodies = heredocs
                .iter()
                .map(|h| format!("\n{}{}", h.content, h.name));
            Ok(Instruction::Onbuild(
                rest.to_owned() + &bodies.collect::<String>(),
            ))
        }
    }
}

fn plain_words(rest: &str) -> Vec<Word> {
    rest.split_whitespace()
        .map(|word| Word(word.to_owned()))
        .collect()
}

/// The array if the text is one and nothing else.
fn json_form(instruction: &str, rest: &str) -> Result<Option<Vec<String>>, Fault> {
    let array = rest.trim_start().starts_with('[');
    let values = array.then(|| serde_json::from_str::<Vec<serde_json::Value>>(rest));
    let Some(Ok(values)) = values else {
        return Ok(None);
    };
    let strings = values.into_iter().map(|value| match value {
        serde_json::Value::String(text) => Ok(text),
        _ => Err(Fault::NotStrings(instruction.to_owned())),
    });
    strings.collect::<Result<_, _>>().map(Some)
}

fn command(instruction: &str, rest: &str) -> Result<CommandForm, Fault> {
    Ok(match json_form(instruction, rest)? {
        Some(words) => CommandForm::Exec(words),
        None => CommandForm::Shell(rest.to_owned()),
    })
}

/// `a=b c="d e"`, or the old `name the rest`.
fn pairs(name: &str, rest: &str, escape: char) -> Result<Vec<(Word, Word)>, Fault> {
    let needs = |wanted| Fault::Arguments {
        instruction: name.to_owned(),
        wanted,
    };
    let words = words_of(rest, escape);
    let first = words.first().ok_or_else(|| needs("NAME=value"))?;
    if !first.contains('=') {
        let (key, value) = split_name(rest);
        return match value {
            "" => Err(needs("a value: write NAME=value")),
            value => Ok(vec![(Word(key.to_owned()), Word(value.to_owned()))]),
        };
    }
    let pair = |word: &String| match word.split_once('=') {
        Some(("", _)) => Err(needs("a name before =")),
        Some((key, value)) => Ok((Word(key.to_owned()), Word(value.to_owned()))),
        None => Err(Fault::NoEquals { word: word.clone() }),
    };
    words.iter().map(pair).collect()
}

fn transfer(
    name: &str,
    flags: Vec<Flag>,
    rest: &str,
    heredocs: Vec<Heredoc>,
    escape: char,
) -> Result<Transfer, Fault> {
    let needs = || Fault::Arguments {
        instruction: name.to_owned(),
        wanted: "at least one source, and a destination as the last word",
    };
    let mut words = match json_form(name, rest)? {
        Some(words) => words,
        None if heredocs.is_empty() => rest.split_whitespace().map(str::to_owned).collect(),
        None => words_of(rest, escape),
    };
    let destination = Word(words.pop().ok_or_else(needs)?);
    if !heredocs.is_empty() {
        words.retain(|word| heredoc(word).is_none());
    }
    if words.is_empty() && heredocs.is_empty() {
        return Err(needs());
    }
    let sources = words.into_iter().map(Word).collect();
    let mut transfer = Transfer {
        sources,
        heredocs,
        destination,
        from: None,
        chown: None,
        chmod: None,
        link: false,
        parents: false,
        exclude: Vec::new(),
        checksum: None,
        keep_git_dir: false,
        unpack: None,
    };
    for flag in flags {
        if flag.value.as_deref().unwrap_or_default().is_empty()
            && ["from", "chown", "chmod", "exclude", "checksum"].contains(&flag.name.as_str())
        {
            return Err(flag.bad("a value must follow ="));
        }
        match flag.name.as_str() {
            "from" => transfer.from = Some(flag.word()),
            "chown" => transfer.chown = Some(flag.word()),
            "chmod" => transfer.chmod = Some(flag.word()),
            "checksum" => transfer.checksum = Some(flag.word()),
            "exclude" => transfer.exclude.push(flag.word()),
            "link" => transfer.link = flag.is_set()?,
            "parents" => transfer.parents = flag.is_set()?,
            "keep-git-dir" => transfer.keep_git_dir = flag.is_set()?,
            _ => transfer.unpack = Some(flag.is_set()?),
        }
    }
    Ok(transfer)
}

fn run(flags: Vec<Flag>, rest: &str, heredocs: Vec<Heredoc>) -> Result<Instruction, Fault> {
    let command = command("RUN", rest)?;
    let empty = match &command {
        CommandForm::Shell(line) => line.is_empty(),
        CommandForm::Exec(argv) => argv.is_empty(),
    };
    if empty {
        return Err(Fault::Arguments {
            instruction: "RUN".to_owned(),
            wanted: "a command",
        });
    }
    let mut run = Run {
        command,
        heredocs,
        mounts: Vec::new(),
        network: Network::Default,
    };
    for flag in flags {
        match (flag.name.as_str(), flag.value.as_deref()) {
            ("mount", Some(value)) => run.mounts.push(mount(value)?),
            ("network", Some("default")) => run.network = Network::Default,
            ("network", Some("none")) => run.network = Network::None,
            ("network", Some("host")) => run.network = Network::Host,
            ("network", _) => return Err(flag.bad("default, none or host")),
            ("security", Some("sandbox")) => {}
            ("security", _) => {
                return Err(flag.bad("steps run in a sandbox here; leave the flag out"));
            }
            _ => return Err(flag.bad("write type=…,target=…")),
        }
    }
    Ok(Instruction::Run(run))
}

/// The options of a `--mount`, checked by type.
fn mount(text: &str) -> Result<Mount, Fault> {
    let bad = |wanted: &str| Fault::FlagValue {
        flag: "--mount".to_owned(),
        value: text.to_owned(),
        wanted: wanted.to_owned(),
    };
    let mut kind = "bind".to_owned();
    let mut options: Vec<(String, Option<String>)> = Vec::new();
    for option in text.split(',').filter(|o| !o.is_empty()) {
        let (key, value) = match option.split_once('=') {
            Some((key, value)) => (
                key.trim().to_ascii_lowercase(),
                Some(value.trim_matches('"').to_owned()),
            ),
            None => (option.trim().to_ascii_lowercase(), None),
        };
        match key.as_str() {
            "type" => kind = value.unwrap_or_default(),
            _ => options.push((key, value)),
        }
    }
    let allowed: &[&str] = match kind.as_str() {
        "bind" => &["from", "source", "src", "bind-propagation"],
        "cache" => &[
            "id", "from", "source", "src", "sharing", "mode", "uid", "gid",
        ],
        "tmpfs" => &["size"],
        "secret" => &[
            "id", "source", "src", "required", "mode", "uid", "gid", "env",
        ],
        "ssh" => {
            return Err(bad(
                "ssh mounts are not supported; use bind, cache, tmpfs or secret",
            ));
        }
        other => {
            return Err(bad(&format!(
                "there is no type {other}; use bind, cache, tmpfs or secret"
            )));
        }
    };
    let common = [
        "target",
        "dst",
        "destination",
        "ro",
        "readonly",
        "rw",
        "readwrite",
        "z",
    ];
    if let Some((key, _)) = options
        .iter()
        .find(|(key, _)| !allowed.contains(&key.as_str()) && !common.contains(&key.as_str()))
    {
        return Err(bad(&format!("type={kind} has no option {key}")));
    }
    let get = |names: &[&str]| {
        options
            .iter()
            .rev()
            .find(|(key, _)| names.contains(&key.as_str()))
            .map(|(_, value)| value.clone())
    };
    let word = |names: &[&str]| get(names).flatten().map(Word);
    let flag = |names: &[&str]| match get(names) {
        None => Ok(None),
        Some(None) => Ok(Some(true)),
        Some(Some(value)) => match value.as_str() {
            "true" | "1" | "" => Ok(Some(true)),
            "false" | "0" => Ok(Some(false)),
            _ => Err(bad("a switch is true or false")),
        },
    };
    let number = |name: &str, radix| match get(&[name]).flatten() {
        None => Ok(None),
        Some(value) => u32::from_str_radix(&value, radix)
            .map(Some)
            .map_err(|_| bad(&format!("{name} must be a number"))),
    };
    let target = word(&["target", "dst", "destination"]);
    let read_write = match (flag(&["rw", "readwrite"])?, flag(&["ro", "readonly"])?) {
        (Some(rw), _) => Some(rw),
        (None, ro) => ro.map(|ro| !ro),
    };
    if target.is_none() && kind != "secret" {
        return Err(bad("target= is missing"));
    }
    let kind = match kind.as_str() {
        "bind" => MountKind::Bind {
            from: word(&["from"]),
            source: word(&["source", "src"]),
        },
        "tmpfs" => MountKind::Tmpfs {
            size_bytes: get(&["size"])
                .flatten()
                .map(|s| size(&s).ok_or_else(|| bad("size must be bytes, or end in k, m or g")))
                .transpose()?,
        },
        "cache" => MountKind::Cache {
            id: word(&["id"]),
            from: word(&["from"]),
            source: word(&["source", "src"]),
            sharing: match get(&["sharing"]).flatten() {
                None => "shared".to_owned(),
                Some(s) if ["shared", "private", "locked"].contains(&s.as_str()) => s,
                Some(_) => return Err(bad("sharing is shared, private or locked")),
            },
            mode: number("mode", 8)?,
            uid: number("uid", 10)?,
            gid: number("gid", 10)?,
        },
        _ => MountKind::Secret {
            id: get(&["id"]).flatten(),
            required: flag(&["required"])?.unwrap_or(false),
            mode: number("mode", 8)?,
            uid: number("uid", 10)?,
            gid: number("gid", 10)?,
            env: get(&["env"]).flatten(),
        },
    };
    Ok(Mount {
        kind,
        target,
        read_write,
    })
}

fn size(text: &str) -> Option<u64> {
    let lower = text.to_ascii_lowercase();
    let digits = lower.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match &lower[digits.len()..] {
        "" | "b" => 0,
        "k" | "kb" => 10,
        "m" | "mb" => 20,
        "g" | "gb" => 30,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

fn healthcheck(flags: Vec<Flag>, rest: &str) -> Result<Instruction, Fault> {
    let needs = |wanted| Fault::Arguments {
        instruction: "HEALTHCHECK".to_owned(),
        wanted,
    };
    let (kind, arguments) = split_name(rest);
    match kind.to_ascii_uppercase().as_str() {
        "NONE" if arguments.is_empty() && flags.is_empty() => {
            Ok(Instruction::Healthcheck(Healthcheck::None))
        }
        "NONE" => Err(needs("nothing beside NONE")),
        "CMD" if arguments.is_empty() => Err(needs("a command after CMD")),
        "CMD" => {
            let [
                mut interval_nanos,
                mut timeout_nanos,
                mut start_period_nanos,
                mut start_interval_nanos,
            ] = [None; 4];
            let mut retries = None;
            for flag in flags {
                let value = flag.value.clone().unwrap_or_default();
                let nanos = || {
                    duration(&value)
                        .ok_or_else(|| flag.bad("a duration such as 30s or 1m30s"))
                        .map(Some)
                };
                match flag.name.as_str() {
                    "interval" => interval_nanos = nanos()?,
                    "timeout" => timeout_nanos = nanos()?,
                    "start-period" => start_period_nanos = nanos()?,
                    "start-interval" => start_interval_nanos = nanos()?,
                    _ => retries = Some(value.parse().map_err(|_| flag.bad("a whole number"))?),
                }
            }
            let command = command("HEALTHCHECK", arguments)?;
            Ok(Instruction::Healthcheck(Healthcheck::Command {
                command,
                interval_nanos,
                timeout_nanos,
                start_period_nanos,
                start_interval_nanos,
                retries,
            }))
        }
        _ => Err(needs("NONE, or CMD and a command")),
    }
}

/// A duration as Go writes it, in nanoseconds.
fn duration(text: &str) -> Option<u64> {
    let mut total = 0.0;
    let mut rest = text;
    while !rest.is_empty() {
        let number = rest.find(|c: char| c.is_ascii_alphabetic() || c == 'µ')?;
        let unit = rest[number..]
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .map_or(rest.len(), |at| number + at);
        let factor = match &rest[number..unit] {
            "ns" => 1.0,
            "us" | "µs" => 1e3,
            "ms" => 1e6,
            "s" => 1e9,
            "m" => 60e9,
            "h" => 3600e9,
            _ => return None,
        };
        total += rest[..number].parse::<f64>().ok()? * factor;
        rest = &rest[unit..];
    }
    (!text.is_empty() && (0.0..9e18).contains(&total)).then_some(total as u64)
}
