//! A [`Node`] → the instruction it means: known names, known flags, enough arguments.

use super::super::mounts::MountFlag;
use super::super::{
    ArgDeclaration, CommandForm, Healthcheck, Heredoc, Instruction, Network, Run, Stage, Transfer,
    Word,
};
use super::Fault;
use super::lines::heredoc;
use super::syntax::{Arguments, Node, Pair};

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

    /// What stands behind `=`; nothing there is as good as no flag.
    fn word(self) -> Result<Option<Word>, Fault> {
        match self.value {
            Some(value) => Ok(Some(Word(value)).filter(|word| !word.0.is_empty())),
            None => Err(self.bad("a value must follow =")),
        }
    }

    fn is_set(&self) -> Result<bool, Fault> {
        match self
            .value
            .as_deref()
            .map(str::to_ascii_lowercase)
            .as_deref()
        {
            None | Some("true") => Ok(true),
            Some("false") => Ok(false),
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

/// The known word that is nearest to what was written, if it is near at all.
pub fn nearest<'a>(written: &str, known: &[&'a str]) -> Option<&'a str> {
    let best = known
        .iter()
        .map(|k| {
            (
                distance(&written.to_ascii_uppercase(), &k.to_ascii_uppercase()),
                *k,
            )
        })
        .min()?;
    // of a word of one letter nothing would be left
    (best.0 <= 1 + best.1.len() / 4 && best.0 < best.1.len()).then_some(best.1)
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

/// Reads the flags; those not in `known` are errors.
fn flags(node: &Node, known: &[&str]) -> Result<Vec<Flag>, Fault> {
    let mut flags: Vec<Flag> = Vec::new();
    for word in &node.flags {
        let (name, value) = match word[2..].split_once('=') {
            Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
            None => (word[2..].to_owned(), None),
        };
        if !known.contains(&name.as_str()) {
            let suggestion = nearest(&name, known).map(|s| format!("--{s}"));
            return Err(Fault::UnknownFlag {
                instruction: node.name.to_ascii_uppercase(),
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
    Ok(flags)
}

/// An instruction's name in capitals, if there is such an instruction.
pub(super) fn name(node: &Node) -> Result<String, Fault> {
    let name = node.name.to_ascii_uppercase();
    if INSTRUCTIONS.contains(&name.as_str()) {
        return Ok(name);
    }
    let suggestion = nearest(&name, &INSTRUCTIONS).map(str::to_owned);
    Err(Fault::UnknownInstruction {
        name: name.chars().take(60).collect(),
        suggestion,
    })
}

fn known_flags(name: &str) -> &'static [&'static str] {
    match name {
        "RUN" => &["mount", "network", "security"],
        "FROM" => &["platform"],
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
    }
}

/// Reads anything but FROM.
pub(super) fn read(node: Node) -> Result<Instruction, Fault> {
    let name = name(&node)?;
    let flags = flags(&node, known_flags(&name))?;
    let needs = |wanted| Fault::Arguments {
        instruction: name.clone(),
        wanted,
    };
    let text = |wanted| match &node.arguments {
        Arguments::Text(text) if !text.is_empty() => Ok(text.clone()),
        _ => Err(needs(wanted)),
    };
    let words = |wanted| match &node.arguments {
        Arguments::Words(words) | Arguments::Array(words) if !words.is_empty() => {
            Ok(words.iter().cloned().map(Word))
        }
        _ => Err(needs(wanted)),
    };
    Ok(match name.as_str() {
        "RUN" => run(flags, node)?,
        "COPY" => Instruction::Copy(transfer(flags, node)?),
        "ADD" => Instruction::Add(transfer(flags, node)?),
        "ARG" => {
            let declarations: Vec<_> = words("a name")?.map(declaration).collect();
            if declarations.iter().any(|arg| arg.name.is_empty()) {
                return Err(needs("a name before ="));
            }
            Instruction::Arg(declarations)
        }
        "ENV" => Instruction::Env(pairs(&name, node)?),
        "LABEL" => Instruction::Label(pairs(&name, node)?),
        "WORKDIR" => Instruction::Workdir(Word(text("a directory")?)),
        "USER" => Instruction::User(Word(text("a user")?)),
        "SHELL" => match node.arguments {
            Arguments::Array(words) if !words.is_empty() => Instruction::Shell(words),
            _ => {
                return Err(needs(
                    "its words as a JSON array, such as [\"/bin/bash\", \"-c\"]",
                ));
            }
        },
        "CMD" => Instruction::Cmd(command(node.arguments)),
        "ENTRYPOINT" => Instruction::Entrypoint(command(node.arguments)),
        "EXPOSE" => Instruction::Expose(words("at least one port")?.collect()),
        "STOPSIGNAL" => Instruction::StopSignal(Word(text("a signal")?)),
        "VOLUME" => {
            let paths = words("at least one path")?.map(|word| Word(word.0.trim().to_owned()));
            Instruction::Volume(paths.collect())
        }
        "MAINTAINER" => Instruction::Maintainer(text("a name")?),
        "HEALTHCHECK" => healthcheck(flags, node.arguments)?,
        _ => match node.arguments {
            Arguments::Trigger(trigger) => onbuild(*trigger, node.heredocs)?,
            _ => return Err(needs("an instruction")),
        },
    })
}

/// Reads a FROM.
pub(super) fn from(node: Node) -> Result<Stage, Fault> {
    let platform = flags(&node, known_flags("FROM"))?.pop();
    let words = match &node.arguments {
        Arguments::Words(words) => words.as_slice(),
        _ => &[],
    };
    let (base, name) = match words {
        [base] => (base, None),
        [base, keyword, name] if keyword.eq_ignore_ascii_case("as") => {
            (base, Some(name.to_lowercase()))
        }
        _ => {
            return Err(Fault::Arguments {
                instruction: "FROM".to_owned(),
                wanted: "an image, or an image followed by AS and a name",
            });
        }
    };
    if let Some(name) = &name {
        let proper = name.starts_with(|c: char| c.is_ascii_lowercase())
            && name
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
        if !proper {
            return Err(Fault::StageName(name.clone()));
        }
    }
    Ok(Stage {
        base: Word(base.clone()),
        name,
        platform: platform.map(Flag::word).transpose()?.flatten(),
        instructions: Vec::new(),
        location: node.location,
    })
}

/// `NAME` or `NAME=default`.
fn declaration(word: Word) -> ArgDeclaration {
    match word.0.split_once('=') {
        Some((name, default)) => ArgDeclaration {
            name: name.to_owned(),
            default: Some(Word(default.to_owned())),
        },
        None => ArgDeclaration {
            name: word.0,
            default: None,
        },
    }
}

/// Checks the trigger by reading it.
fn onbuild(trigger: Node, heredocs: Vec<Heredoc>) -> Result<Instruction, Fault> {
    let mut text = trigger.location.text.clone();
    for heredoc in &heredocs {
        text.push('\n');
        text.push_str(&heredoc.content);
        text.push_str(&heredoc.name);
    }
    read(Node {
        heredocs,
        ..trigger
    })?;
    Ok(Instruction::Onbuild(text))
}

fn command(arguments: Arguments) -> CommandForm {
    match arguments {
        Arguments::Array(words) => CommandForm::Exec(words),
        Arguments::Text(text) => CommandForm::Shell(text),
        _ => CommandForm::Shell(String::new()),
    }
}

fn pairs(name: &str, node: Node) -> Result<Vec<(Word, Word)>, Fault> {
    let needs = |wanted| Fault::Arguments {
        instruction: name.to_owned(),
        wanted,
    };
    let pairs = match node.arguments {
        Arguments::Pairs(pairs) if !pairs.is_empty() => pairs,
        _ => return Err(needs("NAME=value")),
    };
    let pair = |pair: Pair| match pair.name.as_str() {
        "" => Err(needs("a name before =")),
        _ => Ok((Word(pair.name), Word(pair.value))),
    };
    pairs.into_iter().map(pair).collect()
}

fn transfer(flags: Vec<Flag>, node: Node) -> Result<Transfer, Fault> {
    let needs = || Fault::Arguments {
        instruction: node.name.to_ascii_uppercase(),
        wanted: "at least one source, and a destination as the last word",
    };
    let mut words = match node.arguments {
        Arguments::Words(words) if words.last().is_some_and(|last| heredoc(last).is_some()) => {
            return Err(needs());
        }
        Arguments::Words(words) => without_heredocs(words),
        Arguments::Array(words) => words,
        _ => Vec::new(),
    };
    let destination = Word(words.pop().ok_or_else(needs)?);
    if words.is_empty() && node.heredocs.is_empty() {
        return Err(needs());
    }
    let sources = words.into_iter().map(Word).collect();
    let mut transfer = Transfer {
        sources,
        heredocs: node.heredocs,
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
        match flag.name.as_str() {
            "from" => transfer.from = flag.word()?,
            "chown" => transfer.chown = flag.word()?,
            "chmod" => transfer.chmod = flag.word()?,
            "checksum" => transfer.checksum = flag.word()?,
            "exclude" => transfer.exclude.extend(flag.word()?),
            "link" => transfer.link = flag.is_set()?,
            "parents" => transfer.parents = flag.is_set()?,
            "keep-git-dir" => transfer.keep_git_dir = flag.is_set()?,
            _ => transfer.unpack = Some(flag.is_set()?),
        }
    }
    Ok(transfer)
}

/// The words that are no heredocs; a blank may stand between `<<` and the name.
fn without_heredocs(words: Vec<String>) -> Vec<String> {
    let mut left = Vec::with_capacity(words.len());
    let mut words = words.into_iter().peekable();
    while let Some(word) = words.next() {
        if word.trim_start_matches(|c: char| c.is_ascii_digit()) == "<<" && words.len() > 1 {
            words.next();
        } else if heredoc(&word).is_none() {
            left.push(word);
        }
    }
    left
}

fn run(flags: Vec<Flag>, node: Node) -> Result<Instruction, Fault> {
    let command = command(node.arguments);
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
        heredocs: node.heredocs,
        mounts: Vec::new(),
        network: Network::Default,
    };
    for flag in flags {
        match (flag.name.as_str(), flag.value.as_deref()) {
            ("mount", Some(value)) if !value.trim().is_empty() => {
                let mount = MountFlag::new(value);
                mount.check()?;
                run.mounts.push(mount);
            }
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

fn healthcheck(flags: Vec<Flag>, arguments: Arguments) -> Result<Instruction, Fault> {
    let needs = |wanted| Fault::Arguments {
        instruction: "HEALTHCHECK".to_owned(),
        wanted,
    };
    let Arguments::Check(kind, arguments) = arguments else {
        return Err(needs("NONE, or CMD and a command"));
    };
    let command = command(*arguments);
    let is_empty = match &command {
        CommandForm::Shell(line) => line.is_empty(),
        CommandForm::Exec(argv) => argv.is_empty(),
    };
    match kind.to_ascii_uppercase().as_str() {
        // whatever its flags say
        "NONE" if is_empty => Ok(Instruction::Healthcheck(Healthcheck::None)),
        "NONE" => Err(needs("nothing beside NONE")),
        "CMD" if is_empty => Err(needs("a command after CMD")),
        "CMD" => {
            let [
                mut interval_nanos,
                mut timeout_nanos,
                mut start_period_nanos,
                mut start_interval_nanos,
            ] = [None; 4];
            let mut retries = None;
            for flag in flags {
                if flag.value.as_deref() == Some("") {
                    continue;
                }
                let value = flag.value.clone().unwrap_or_default();
                let nanos = || match duration(&value) {
                    // what the runtime makes of a check without it
                    Some(0) => Ok(None),
                    Some(nanos @ 1_000_000..) => Ok(Some(nanos)),
                    Some(_) => Err(flag.bad("at least 1ms")),
                    None => Err(flag.bad("a duration such as 30s or 1m30s")),
                };
                match flag.name.as_str() {
                    "interval" => interval_nanos = nanos()?,
                    "timeout" => timeout_nanos = nanos()?,
                    "start-period" => start_period_nanos = nanos()?,
                    "start-interval" => start_interval_nanos = nanos()?,
                    _ => {
                        let number: u32 = value.parse().map_err(|_| flag.bad("a whole number"))?;
                        retries = (number > 0).then_some(number);
                    }
                }
            }
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
    if text == "0" {
        return Some(0);
    }
    let mut total = 0.0;
    let mut rest = text;
    while !rest.is_empty() {
        let number =
            rest.find(|c: char| c.is_ascii_alphabetic() || ['\u{b5}', '\u{3bc}'].contains(&c))?;
        let unit = rest[number..]
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .map_or(rest.len(), |at| number + at);
        let factor = match &rest[number..unit] {
            "ns" => 1.0,
            "us" | "\u{b5}s" | "\u{3bc}s" => 1e3,
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
