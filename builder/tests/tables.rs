//! Do words expand as in BuildKit? Runs every table in `tests/tables` of the two forms that BuildKit's own tests have, so that its tables can be put there:
//! names that begin with `envVarTest` (`PLATFORM|word|expected`) and with `wordsTest` (`words|expected,…`).
#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

use std::fs;

use strata_builder::containerfile::Word;
use strata_builder::containerfile::words::{expand, split};

const ESCAPE: char = '\\';

fn tables(kind: &str) -> Vec<(String, String)> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/tables");
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with(kind) {
            found.push((name, fs::read_to_string(entry.path()).unwrap()));
        }
    }
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
        for (line, fields) in rows(&text) {
            let [words, expected] = fields[..] else {
                wrong.push(format!("{name}, line {line}: no row of two"));
                continue;
            };
            let got = split(&Word(words.trim().to_owned()), ESCAPE, &|_| None);
            let got = got.map_or_else(|_| "error".to_owned(), |words| words.join(","));
            if got != expected.trim_start() {
                wrong.push(format!("{name}, line {line}: {words} became {got:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
