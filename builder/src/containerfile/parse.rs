//! Text → [`Containerfile`]; the rules of BuildKit's parser.

mod instruction;
mod lines;
pub mod syntax;
#[cfg(test)]
mod tests;

use std::borrow::Cow;

use super::mounts::InvalidMount;
use super::{Containerfile, Instruction, Located};
use crate::error::{Class, Classify};
pub use instruction::nearest;
use syntax::{Node, Nodes};

/// A file that can't be read as a Containerfile, with the place and the text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{file}, line {line}, column {column}: {fault}\n  {source_line}\n  {caret:>column$}",
    caret = '^'
)]
pub struct ParseError {
    /// As given to [`parse`].
    pub file: String,
    /// From 1.
    pub line: usize,
    /// In characters, from 1.
    pub column: usize,
    /// The physical line, without tabs.
    pub source_line: String,
    /// What is wrong with it.
    pub fault: Box<Fault>,
}

/// What is wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Nothing but comments.
    #[error("the file has no instructions; start with FROM")]
    Empty,
    /// A byte of another encoding.
    #[error("the byte 0x{0:02x} is no UTF-8; save the file as UTF-8")]
    Encoding(u8),
    /// `# escape=`
    #[error("the escape directive must be a backslash or a backtick, not {0:?}")]
    Escape(String),
    /// A directive given twice.
    #[error("the directive {0} is given twice")]
    RepeatedDirective(String),
    /// `<<NAME` without its end.
    #[error("the heredoc {0} is never closed: no line consists of {0} alone")]
    UnclosedHeredoc(String),
    /// An instruction that does not exist.
    #[error("unknown instruction {name}{}", did_you_mean(.suggestion.as_deref()))]
    UnknownInstruction {
        /// As written.
        name: String,
        /// The nearest that exists.
        suggestion: Option<String>,
    },
    /// A flag that the instruction does not have.
    #[error("{instruction} has no flag {flag}{}", did_you_mean(.suggestion.as_deref()))]
    UnknownFlag {
        /// The instruction.
        instruction: String,
        /// As written, without its value.
        flag: String,
        /// The nearest that exists.
        suggestion: Option<String>,
    },
    /// A flag's value that makes no sense.
    #[error("{flag} can't be {value:?}: {wanted}")]
    FlagValue {
        /// The flag.
        flag: String,
        /// As written.
        value: String,
        /// What it may be.
        wanted: String,
    },
    /// A `--mount`.
    #[error(transparent)]
    Mount(#[from] InvalidMount),
    /// A flag given twice.
    #[error("{0} is given twice")]
    RepeatedFlag(String),
    /// Too few or too many words.
    #[error("{instruction} needs {wanted}")]
    Arguments {
        /// The instruction.
        instruction: String,
        /// What it needs.
        wanted: &'static str,
    },
    /// A word without `=` where one is needed.
    #[error("{word:?} has no = ; write NAME=value")]
    NoEquals {
        /// The word.
        word: String,
    },
    /// Something else before the first FROM.
    #[error("{0} stands before the first FROM; only ARG may")]
    BeforeFrom(String),
    /// A name that is none.
    #[error(
        "{0:?} is no name for a stage: it must start with a letter and hold only letters, digits, '-', '_' and '.'"
    )]
    StageName(String),
    /// A JSON array of something else than strings.
    #[error("the array of {0} must hold strings only")]
    NotStrings(String),
    /// A trigger that may not be one.
    #[error("{0} can't be an ONBUILD trigger")]
    Trigger(String),
}

pub(super) fn did_you_mean(suggestion: Option<&str>) -> String {
    suggestion
        .map(|s| format!("; did you mean {s}?"))
        .unwrap_or_default()
}

impl Fault {
    /// The part of the line that the caret should point at.
    fn quoted(&self) -> &str {
        match self {
            Fault::Empty | Fault::Encoding(_) => "",
            Fault::Escape(text)
            | Fault::RepeatedDirective(text)
            | Fault::UnclosedHeredoc(text)
            | Fault::RepeatedFlag(text)
            | Fault::BeforeFrom(text)
            | Fault::StageName(text)
            | Fault::NotStrings(text)
            | Fault::Trigger(text)
            | Fault::UnknownInstruction { name: text, .. }
            | Fault::UnknownFlag { flag: text, .. }
            | Fault::FlagValue { flag: text, .. }
            | Fault::Arguments {
                instruction: text, ..
            }
            | Fault::NoEquals { word: text } => text,
            Fault::Mount(_) => "--mount",
        }
    }
}

impl ParseError {
    fn new(file: &str, source: &[&str], first: usize, last: usize, fault: Fault) -> Self {
        let quoted = fault.quoted();
        let span = first..=last.min(source.len()).max(first);
        let place = span.clone().find_map(|line| {
            let text = source.get(line - 1)?;
            let at = text
                .to_ascii_lowercase()
                .find(&quoted.to_ascii_lowercase())?;
            Some((
                line,
                text.get(..at)
                    .map_or(1, |before| before.chars().count() + 1),
            ))
        });
        let (line, column) = place.filter(|_| !quoted.is_empty()).unwrap_or((first, 1));
        let source_line = source
            .get(line - 1)
            .unwrap_or(&"")
            .replace('\t', " ")
            .chars()
            .take(200)
            .collect();
        Self {
            file: file.to_owned(),
            line,
            column: column.min(200),
            source_line,
            fault: Box::new(fault),
        }
    }
}

impl Classify for ParseError {
    fn class(&self) -> Class {
        Class::CONTENT
    }
}

/// Reads a whole file, which may have bytes of any encoding in its comments; `file` is the name that errors show.
///
/// # Errors
/// User: bytes elsewhere that aren't UTF-8, at the place of the first one; anything that [`parse`] refuses.
pub fn read(bytes: &[u8], file: &str) -> Result<Containerfile, ParseError> {
    let text = String::from_utf8_lossy(bytes);
    if let Cow::Borrowed(text) = text {
        return parse(text, file);
    }
    let parsed = parse(&text, file);
    for (index, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
        let number = index + 1;
        let in_body = |parsed: &Containerfile| parsed.is_in_heredoc(number);
        let is_comment =
            line.trim_ascii_start().starts_with(b"#") && !parsed.as_ref().is_ok_and(in_body);
        if let Err(error) = std::str::from_utf8(line)
            && !is_comment
        {
            return Err(encoding(line, error.valid_up_to(), number, file));
        }
    }
    parsed
}

/// The byte `at` of a line isn't UTF-8.
fn encoding(line: &[u8], at: usize, number: usize, file: &str) -> ParseError {
    let (before, rest) = line.split_at(at);
    let before = String::from_utf8_lossy(before);
    let source_line = String::from_utf8_lossy(line);
    let source_line = source_line.trim_end_matches('\r').replace('\t', " ");
    ParseError {
        file: file.to_owned(),
        line: number,
        column: (before.chars().count() + 1).min(200),
        source_line: source_line.chars().take(200).collect(),
        fault: Box::new(Fault::Encoding(rest.first().copied().unwrap_or_default())),
    }
}

/// Reads a whole file; `file` is the name that errors show.
///
/// # Errors
/// User: anything that BuildKit refuses too, at its place.
pub fn parse(text: &str, file: &str) -> Result<Containerfile, ParseError> {
    let mut nodes = Nodes::new(text, file)?;
    let mut parsed = Containerfile {
        generated_lines: 0,
        file: file.to_owned(),
        escape: nodes.reader.escape,
        global_args: Vec::new(),
        stages: Vec::new(),
    };
    while let Some(node) = nodes.next() {
        let node = node?;
        let location = node.location.clone();
        let added = add(&mut parsed, node);
        added.map_err(|fault| nodes.reader.fault_in(&location, fault))?;
    }
    match parsed.stages.is_empty() {
        true => Err(nodes.reader.fault(1, Fault::Empty)),
        false => Ok(parsed),
    }
}

fn add(parsed: &mut Containerfile, node: Node) -> Result<(), Fault> {
    let name = instruction::name(&node)?;
    if name == "FROM" {
        parsed.stages.push(instruction::from(node)?);
        return Ok(());
    }
    let location = node.location.clone();
    match (parsed.stages.last_mut(), instruction::read(node)?) {
        (Some(stage), value) => stage.instructions.push(Located { location, value }),
        (None, Instruction::Arg(value)) => parsed.global_args.push(Located { location, value }),
        (None, _) => return Err(Fault::BeforeFrom(name)),
    }
    Ok(())
}
