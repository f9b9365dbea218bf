//! Do we read words and lines as BuildKit does? Runs every table in `tests/tables`, and in the folder that STRATA_FOREIGN_TABLES names, of the forms that BuildKit's own tests
//! have, so that its tables can be put there:
//!
//! | what | holds |
//! | --- | --- |
//! | a file `envVarTest…` | `PLATFORM\|word\|expected` |
//! | a file `wordsTest…` | `words\|expected,…`, and `ENV name=value` for the rows below |
//! | a folder with `Dockerfile` and `result` | a file, and its instructions as BuildKit's parser dumps them |
//! | a folder with `Dockerfile` somewhere below one whose name ends in `negative` | a file that is no Containerfile |
#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use strata_builder::containerfile::Word;
use strata_builder::containerfile::parse::syntax::{Arguments, Node, Nodes};
use strata_builder::containerfile::words::{expand, split};

const ESCAPE: char = '\\';

/// All files below our tables and the foreign ones, in order.
fn files() -> Vec<PathBuf> {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tables");
    let foreign = std::env::var_os("STRATA_FOREIGN_TABLES").map(PathBuf::from);
    let mut folders: Vec<PathBuf> = [Some(own), foreign].into_iter().flatten().collect();
    let mut files = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                files.push(path);
            }
        }
    }
    files.sort();
    files
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap().to_string_lossy().into_owned()
}

/// Name and text of the files whose name begins with `kind`.
fn tables(kind: &str) -> Vec<(String, String)> {
    let paths = files().into_iter();
    let found: Vec<_> = paths
        .filter(|path| file_name(path).starts_with(kind))
        .map(|path| {
            (
                path.display().to_string(),
                fs::read_to_string(&path).unwrap(),
            )
        })
        .collect();
    assert!(!found.is_empty(), "no table of the form {kind}");
    found
}

fn rows(text: &str) -> impl Iterator<Item = (usize, Vec<&str>)> {
    let lines = (1..).zip(text.lines());
    lines
        .filter(|(_, line)| !line.starts_with('#') && !line.trim().is_empty())
        .map(|(number, line)| (number, line.split('|').collect()))
}

#[test]
fn single_words_expand_as_the_tables_say() {
    let lookup = |name: &str| match name {
        "PWD" => Some("/home".to_owned()),
        "SHELL" => Some("bash".to_owned()),
        "KOREAN" => Some("한국어".to_owned()),
        "NULL" => Some(String::new()),
        _ => None,
    };
    let mut wrong = Vec::new();
    for (name, text) in tables("envVarTest") {
        for (line, fields) in rows(&text) {
            let [platform, word, expected] = fields[..] else {
                wrong.push(format!("{name}, line {line}: no row of three"));
                continue;
            };
            if platform.trim() == "W" {
                continue;
            }
            let got = expand(&Word(word.trim().to_owned()), ESCAPE, &lookup);
            let got = got.unwrap_or_else(|_| "error".to_owned());
            if got != expected.trim() {
                wrong.push(format!(
                    "{name}, line {line}: {} became {got:?}",
                    word.trim()
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn lists_of_words_split_as_the_tables_say() {
    let mut wrong = Vec::new();
    for (name, text) in tables("wordsTest") {
        let mut variables = BTreeMap::new();
        for (line, fields) in rows(&text) {
            if let [only] = fields[..]
                && let Some((variable, value)) = only
                    .strip_prefix("ENV ")
                    .and_then(|assignment| assignment.split_once('='))
            {
                variables.insert(variable, value.to_owned());
                continue;
            }
            let [words, expected] = fields[..] else {
                wrong.push(format!("{name}, line {line}: no row of two"));
                continue;
            };
            let lookup = |name: &str| variables.get(name).cloned();
            let got = split(&Word(words.trim().to_owned()), ESCAPE, &lookup);
            let got = got.map_or_else(|_| "error".to_owned(), |words| words.join(","));
            if got != expected.trim_start() {
                wrong.push(format!("{name}, line {line}: {words} became {got:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn files_are_cut_into_instructions_as_the_results_say() {
    let mut count = 0;
    for path in files() {
        let result = path.with_file_name("result");
        if file_name(&path) == "Dockerfile" && result.exists() {
            let text = fs::read_to_string(&path).unwrap();
            let nodes: Result<Vec<Node>, _> = Nodes::new(&text, "Dockerfile").unwrap().collect();
            let dumped: String = nodes
                .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
                .iter()
                .map(|node| format!("({})\n", dump(node)))
                .collect();
            let expected = fs::read_to_string(result).unwrap();
            assert_eq!(dumped.trim_end(), expected.trim_end(), "{}", path.display());
            count += 1;
        }
    }
    assert!(count > 0, "no folder with Dockerfile and result");
}

#[test]
fn what_is_no_containerfile_is_refused() {
    let mut count = 0;
    for path in files() {
        let is_negative = path
            .ancestors()
            .any(|folder| folder.to_string_lossy().ends_with("negative"));
        if file_name(&path) == "Dockerfile" && is_negative {
            let text = fs::read_to_string(&path).unwrap();
            let nodes = Nodes::new(&text, "Dockerfile");
            let nodes = nodes.and_then(Iterator::collect::<Result<Vec<Node>, _>>);
            let accepted = nodes.is_ok_and(|nodes| !nodes.is_empty());
            assert!(!accepted, "{}", path.display());
            count += 1;
        }
    }
    assert!(count > 0, "no folder of refused files");
}

/// An instruction in the form of BuildKit's `Node.Dump`.
fn dump(node: &Node) -> String {
    let mut text = node.name.to_lowercase();
    if !node.flags.is_empty() {
        let flags: Vec<String> = node.flags.iter().map(|flag| quoted(flag)).collect();
        text += &format!(" [{}]", flags.join(" "));
    }
    text + &arguments(&node.arguments)
}

fn arguments(arguments_of: &Arguments) -> String {
    let list = |words: &[String]| {
        words
            .iter()
            .map(|word| format!(" {}", quoted(word)))
            .collect()
    };
    match arguments_of {
        Arguments::Words(words) | Arguments::Array(words) => list(words),
        Arguments::Text(text) if text.is_empty() => String::new(),
        Arguments::Text(text) => list(std::slice::from_ref(text)),
        Arguments::Pairs(pairs) => {
            let words = pairs.iter().flat_map(|pair| {
                let sign = if pair.equals { "=" } else { "" };
                [pair.name.clone(), pair.value.clone(), sign.to_owned()]
            });
            list(&words.collect::<Vec<_>>())
        }
        Arguments::Check(kind, _) if kind.is_empty() => String::new(),
        Arguments::Check(kind, command) => format!(" {}{}", quoted(kind), arguments(command)),
        Arguments::Trigger(node) => format!(" ({})", dump(node)),
    }
}

/// As Go quotes a string.
fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '\n' => out += "\\n",
            '\r' => out += "\\r",
            '\t' => out += "\\t",
            '\u{7}' => out += "\\a",
            '\u{8}' => out += "\\b",
            '\u{b}' => out += "\\v",
            '\u{c}' => out += "\\f",
            c if c < ' ' || c == '\u{7f}' => out += &format!("\\x{:02x}", u32::from(c)),
            c => out.push(c),
        }
    }
    out + "\""
}
