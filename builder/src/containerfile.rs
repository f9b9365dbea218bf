//! What does the Containerfile say? Text in, stages of located instructions out; pure.
//!
//! The whole language as BuildKit reads it; where builders disagree, BuildKit's way unless
//! `builder/DIFFERENCES.md` says otherwise. Parsing never opens a file and expands no variable: expansion needs the environment of a
//! base image, so a [`Word`] stays raw until the step that uses it runs.

use std::borrow::Cow;

pub mod graph;
pub mod mounts;
pub mod parse;
pub mod words;

pub use parse::nearest;

/// A parsed file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Containerfile {
    /// The name that errors and reports show.
    pub file: String,
    /// How many lines at its start somebody has put there who isn't its author: errors and reports count the author's own.
    pub generated_lines: usize,
    /// `\` or `` ` ``, from the `# escape=` directive.
    pub escape: char,
    /// `ARG`s before the first `FROM`; visible to `FROM` lines, and to stages that repeat the name.
    pub global_args: Vec<Located<Vec<ArgDeclaration>>>,
    /// At least one, in file order.
    pub stages: Vec<Stage>,
}

impl Containerfile {
    /// True if a line, from 1, is of the body of a heredoc or its end.
    fn is_in_heredoc(&self, line: usize) -> bool {
        let instructions = self.stages.iter().flat_map(|stage| &stage.instructions);
        let mut with_bodies = instructions.map(|located| {
            let bodies: usize = match &located.value {
                Instruction::Run(run) => run.heredocs.iter().map(Heredoc::lines).sum(),
                Instruction::Copy(transfer) | Instruction::Add(transfer) => {
                    transfer.heredocs.iter().map(Heredoc::lines).sum()
                }
                // the first line is the instruction's own
                Instruction::Onbuild(text) => text.matches('\n').count(),
                _ => 0,
            };
            (bodies, &located.location)
        });
        with_bodies.any(|(bodies, location)| {
            line <= location.last_line && line + bodies > location.last_line
        })
    }

    /// How its author calls the place of an instruction.
    #[must_use]
    pub fn place(&self, location: &Location) -> Place {
        Place::of_author(&self.file, location.line, self.generated_lines)
    }
}

/// Where in which file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Name of the file.
    pub file: String,
    /// From 1.
    pub line: usize,
}

impl Place {
    /// The line `line` of a file that begins with `generated` lines of somebody else.
    #[must_use]
    pub fn of_author(file: &str, line: usize, generated: usize) -> Self {
        match line.checked_sub(generated) {
            None | Some(0) => Self {
                file: format!("{file} (generated part)"),
                line,
            },
            Some(line) => Self {
                file: file.to_owned(),
                line,
            },
        }
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}, line {}", self.file, self.line)
    }
}

/// A `FROM` and what follows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stage {
    /// The `FROM` line.
    pub location: Location,
    /// The image, stage or context as written; global `ARG`s not yet expanded.
    pub base: Word,
    /// `AS name`, lower case.
    pub name: Option<String>,
    /// `--platform`, not yet expanded.
    pub platform: Option<Word>,
    /// In file order.
    pub instructions: Vec<Located<Instruction>>,
}

/// Where an instruction stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    /// First line, from 1.
    pub line: usize,
    /// Last line, heredoc bodies included.
    pub last_line: usize,
    /// The instruction's text as written, continuation lines joined, without heredoc bodies.
    pub text: String,
}

/// Of an instruction's text, in characters; a thousand are a dozen lines.
const SHOWN: usize = 1000;

impl Location {
    /// The text for messages: its beginning, if it is very long.
    #[must_use]
    pub fn shown(&self) -> String {
        match self.text.char_indices().nth(SHOWN) {
            Some((end, _)) => format!("{}…", &self.text[..end]),
            None => self.text.clone(),
        }
    }
}

/// Something and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Located<T> {
    /// Where.
    pub location: Location,
    /// What.
    pub value: T,
}

/// Text that may hold quotes, escapes and variables, as written.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Word(pub String);

/// `ARG name[=default]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArgDeclaration {
    /// Variable name.
    pub name: String,
    /// Default, not yet expanded.
    pub default: Option<Word>,
}

/// `<<EOF … EOF`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heredoc {
    /// The delimiter without quotes.
    pub name: String,
    /// Body with line ends, as written.
    pub content: String,
    /// False if the delimiter was quoted.
    pub expand: bool,
    /// `<<-`.
    pub strip_tabs: bool,
}

impl Heredoc {
    /// The body without what `<<-` takes from its lines.
    #[must_use]
    pub fn body(&self) -> Cow<'_, str> {
        if !self.strip_tabs {
            return Cow::Borrowed(&self.content);
        }
        let lines = self.content.split_inclusive('\n');
        Cow::Owned(lines.map(|line| line.trim_start_matches('\t')).collect())
    }

    /// Of its body and its end.
    fn lines(&self) -> usize {
        self.content.matches('\n').count() + 1
    }
}

/// RUN, CMD, ENTRYPOINT: run by the stage's shell, or as given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CommandForm {
    /// One string for the shell, kept as written (continuations joined, comments between them removed).
    Shell(String),
    /// The JSON array.
    Exec(Vec<String>),
}

/// One instruction of a stage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Instruction {
    /// `RUN`
    Run(Run),
    /// `COPY`
    Copy(Transfer),
    /// `ADD`
    Add(Transfer),
    /// `ARG`
    Arg(Vec<ArgDeclaration>),
    /// `ENV`, in order; both forms.
    Env(Vec<(Word, Word)>),
    /// `LABEL`, in order.
    Label(Vec<(Word, Word)>),
    /// `WORKDIR`
    Workdir(Word),
    /// `USER`
    User(Word),
    /// `SHELL`
    Shell(Vec<String>),
    /// `CMD`
    Cmd(CommandForm),
    /// `ENTRYPOINT`
    Entrypoint(CommandForm),
    /// `EXPOSE`
    Expose(Vec<Word>),
    /// `STOPSIGNAL`
    StopSignal(Word),
    /// `VOLUME`, either form.
    Volume(Vec<Word>),
    /// `MAINTAINER`
    Maintainer(String),
    /// `HEALTHCHECK`
    Healthcheck(Healthcheck),
    /// `ONBUILD`: the trigger's text, checked by parsing it.
    Onbuild(String),
}

/// `HEALTHCHECK NONE` or a command with its times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Healthcheck {
    /// `NONE`
    None,
    /// `[flags] CMD …`; durations in nanoseconds as the image configuration holds them.
    Command {
        /// The command.
        command: CommandForm,
        /// `--interval`
        interval_nanos: Option<u64>,
        /// `--timeout`
        timeout_nanos: Option<u64>,
        /// `--start-period`
        start_period_nanos: Option<u64>,
        /// `--start-interval`
        start_interval_nanos: Option<u64>,
        /// `--retries`
        retries: Option<u32>,
    },
}

/// A RUN.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// The command; with heredocs the shell string still holds its `<<EOF` words and the bodies are in `heredocs`.
    pub command: CommandForm,
    /// In order of their `<<` words.
    pub heredocs: Vec<Heredoc>,
    /// `--mount`, in order.
    pub mounts: Vec<mounts::MountFlag>,
    /// `--network`
    pub network: Network,
}

/// `--network`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Network {
    /// The build's own.
    #[default]
    Default,
    /// Loopback only.
    None,
    /// The host's (the pod's).
    Host,
}

/// COPY or ADD.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transfer {
    /// Files, wildcards, URLs; at least one source or heredoc.
    pub sources: Vec<Word>,
    /// Inline files, each with the name of its delimiter.
    pub heredocs: Vec<Heredoc>,
    /// Where to.
    pub destination: Word,
    /// `--from`
    pub from: Option<Word>,
    /// `--chown`
    pub chown: Option<Word>,
    /// `--chmod`
    pub chmod: Option<Word>,
    /// `--link`
    pub link: bool,
    /// `--parents`
    pub parents: bool,
    /// `--exclude`
    pub exclude: Vec<Word>,
    /// `--checksum` (ADD)
    pub checksum: Option<Word>,
    /// `--keep-git-dir` (ADD)
    pub keep_git_dir: bool,
    /// `--unpack` (ADD)
    pub unpack: Option<bool>,
}
