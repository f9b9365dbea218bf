//! One logical line → an instruction's name, its flags and its arguments, cut as BuildKit's line parsers cut them. What they mean is not known here, so
//! any name and any flag will do.

use super::super::{Heredoc, Location};
use super::lines::Reader;
use super::{Fault, ParseError};

/// An instruction as it stands in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Where.
    pub location: Location,
    /// As written.
    pub name: String,
    /// The words that begin with `--`, without their quotes.
    pub flags: Vec<String>,
    /// What follows.
    pub arguments: Arguments,
    /// In order of their `<<` words.
    pub heredocs: Vec<Heredoc>,
}

/// What follows an instruction's flags; how it is cut depends on the instruction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Arguments {
    /// Words; with quotes and escapes as written.
    Words(Vec<String>),
    /// A JSON array.
    Array(Vec<String>),
    /// All of it; empty if there is nothing.
    Text(String),
    /// `NAME=value` words, or the old `NAME value`.
    Pairs(Vec<Pair>),
    /// HEALTHCHECK: its kind and the command.
    Check(String, Box<Arguments>),
    /// ONBUILD.
    Trigger(Box<Node>),
}

/// One name with its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// Before the first `=`, or the first word.
    pub name: String,
    /// The rest, as written.
    pub value: String,
    /// False for the old form.
    pub equals: bool,
}

/// The instructions of a file, one after the other.
pub struct Nodes<'a> {
    pub(super) reader: Reader<'a>,
}

impl<'a> Nodes<'a> {
    /// Reads the directives at the top of `text`; `file` is the name that errors show.
    ///
    /// # Errors
    /// User: a directive that makes no sense.
    pub fn new(text: &'a str, file: &'a str) -> Result<Self, ParseError> {
        let reader = Reader::new(text, file)?;
        Ok(Self { reader })
    }
}

impl Iterator for Nodes<'_> {
    type Item = Result<Node, ParseError>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut logical = self.reader.next_logical()?;
        let node = node(&logical, self.reader.escape);
        Some(match node {
            Err(fault) => Err(self.reader.fault_in(&logical, fault)),
            Ok(node) if node.takes_heredocs() => {
                let heredocs = self.reader.heredocs(&mut logical);
                heredocs.map(|heredocs| Node {
                    heredocs,
                    location: logical,
                    ..node
                })
            }
            Ok(node) => Ok(node),
        })
    }
}

impl Node {
    /// Whether bodies may follow the line: not behind the JSON form, and of these instructions only.
    fn takes_heredocs(&self) -> bool {
        match (&self.arguments, self.name.to_ascii_uppercase().as_str()) {
            (Arguments::Trigger(node), _) => node.takes_heredocs(),
            (Arguments::Array(_), _) => false,
            (_, "ADD" | "COPY" | "RUN") => true,
            _ => false,
        }
    }
}

fn node(logical: &Location, escape: char) -> Result<Node, Fault> {
    let (name, rest) = split_name(&logical.text);
    let (flags, rest) = flags(rest, escape);
    let arguments = match name.to_ascii_uppercase().as_str() {
        "ADD" | "COPY" | "VOLUME" => {
            array(name, rest)?.unwrap_or_else(|| Arguments::Words(plain_words(rest)))
        }
        "CMD" | "ENTRYPOINT" | "RUN" | "SHELL" => command(name, rest)?,
        "ARG" => Arguments::Words(words_of(rest, escape)),
        "ENV" | "LABEL" => Arguments::Pairs(pairs(name, rest, escape)?),
        "EXPOSE" | "FROM" => Arguments::Words(plain_words(rest)),
        "HEALTHCHECK" => {
            let (kind, rest) = split_name(rest);
            Arguments::Check(kind.to_owned(), Box::new(command(name, rest)?))
        }
        "ONBUILD" if !rest.is_empty() => {
            let inner = Location {
                line: logical.line,
                last_line: logical.last_line,
                text: rest.to_owned(),
            };
            Arguments::Trigger(Box::new(node_of_trigger(&inner, escape)?))
        }
        _ => Arguments::Text(rest.to_owned()),
    };
    Ok(Node {
        location: logical.clone(),
        name: name.to_owned(),
        flags,
        arguments,
        heredocs: Vec::new(),
    })
}

/// A trigger may not be an ONBUILD itself, so that this never goes deeper than once.
fn node_of_trigger(logical: &Location, escape: char) -> Result<Node, Fault> {
    let (name, _) = split_name(&logical.text);
    match name.to_ascii_uppercase().as_str() {
        forbidden @ ("ONBUILD" | "FROM" | "MAINTAINER") => {
            Err(Fault::Trigger(forbidden.to_owned()))
        }
        _ => node(logical, escape),
    }
}

/// What separates words; a non-breaking space doesn't.
fn is_blank(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\u{b}' | '\u{c}' | '\r')
}

/// The first word and the rest.
fn split_name(text: &str) -> (&str, &str) {
    text.split_once(is_blank)
        .map_or((text, ""), |(name, rest)| (name, rest.trim()))
}

fn plain_words(text: &str) -> Vec<String> {
    let words = text.split(is_blank).filter(|word| !word.is_empty());
    words.map(str::to_owned).collect()
}

/// The leading words that begin with `--`, and what follows them; `--` alone ends them.
fn flags(text: &str, escape: char) -> (Vec<String>, &str) {
    let mut flags = Vec::new();
    let mut rest = text.trim();
    while rest.starts_with("--") {
        let (word, after) = flag_word(rest, escape);
        rest = after.trim_start();
        if word == "--" {
            break;
        }
        flags.push(word);
    }
    (flags, rest)
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

/// The array if the text is one and nothing else.
fn array(instruction: &str, text: &str) -> Result<Option<Arguments>, Fault> {
    if !text.starts_with('[') {
        return Ok(None);
    }
    let Ok(values) = serde_json::from_str::<Vec<serde_json::Value>>(text) else {
        return Ok(None);
    };
    let strings = values.into_iter().map(|value| match value {
        serde_json::Value::String(text) => Ok(text),
        _ => Err(Fault::NotStrings(instruction.to_ascii_uppercase())),
    });
    Ok(Some(Arguments::Array(strings.collect::<Result<_, _>>()?)))
}

fn command(instruction: &str, text: &str) -> Result<Arguments, Fault> {
    Ok(array(instruction, text)?.unwrap_or_else(|| Arguments::Text(text.to_owned())))
}

/// `a=b c="d e"`, or the old `name the rest`.
fn pairs(instruction: &str, rest: &str, escape: char) -> Result<Vec<Pair>, Fault> {
    let words = words_of(rest, escape);
    match words.first() {
        None => return Ok(Vec::new()),
        Some(first) if !first.contains('=') => {
            let (name, value) = split_name(rest);
            if value.is_empty() {
                return Err(Fault::Arguments {
                    instruction: instruction.to_ascii_uppercase(),
                    wanted: "a value: write NAME=value",
                });
            }
            return Ok(vec![Pair {
                name: name.to_owned(),
                value: value.to_owned(),
                equals: false,
            }]);
        }
        Some(_) => {}
    }
    let pair = |word: &String| match word.split_once('=') {
        Some((name, value)) => Ok(Pair {
            name: name.to_owned(),
            value: value.to_owned(),
            equals: true,
        }),
        None => Err(Fault::NoEquals { word: word.clone() }),
    };
    words.iter().map(pair).collect()
}

/// The words of a line with their quotes and escapes kept.
pub(super) fn words_of(text: &str, escape: char) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut quote: Option<char> = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match quote {
            None if c.is_whitespace() => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                continue;
            }
            None if c == '\'' || c == '"' => quote = Some(c),
            Some(open) if c == open => quote = None,
            _ => {}
        }
        // nothing can be escaped between single quotes
        if c == escape && quote != Some('\'') {
            // at the very end it escapes nothing and is dropped
            if let Some(next) = chars.next() {
                word.extend([c, next]);
            }
            continue;
        }
        word.push(c);
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}
