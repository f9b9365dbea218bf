//! Which files does a wildcard name? Go's `filepath.Match`, which Containerfiles have always meant.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::CopyError;
use crate::root::Root;

/// A wildcard that doesn't end properly.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is not a proper wildcard: a [ without ], or a \\ at the end")]
pub struct InvalidPattern(pub String);

/// The paths that `path` means, in byte order. Without a wildcard it means itself, whether it exists or not. Up to the first wildcard
/// links are followed, from there on they are not.
pub(super) fn expand(path: &Path, root: &Root) -> Result<Vec<PathBuf>, CopyError> {
    let parts: Vec<&[u8]> = path.iter().map(OsStrExt::as_bytes).collect();
    let Some(first) = parts.iter().position(|part| has_wildcard(part)) else {
        return Ok(vec![path.to_owned()]);
    };
    let base = root.canonical(&path.iter().take(first).collect::<PathBuf>())?;
    for part in &parts[first..] {
        // Names can't be empty, so this only checks the syntax.
        matches(part, b"").ok_or_else(|| InvalidPattern(path.display().to_string()))?;
    }
    let mut found = vec![base];
    for part in &parts[first..] {
        let mut next = Vec::new();
        for directory in &found {
            next.extend(matching(root, directory, part)?);
        }
        found = next;
    }
    Ok(found)
}

/// Whether a source as written may match several files.
pub(super) fn is_pattern(source: &str) -> bool {
    has_wildcard(source.as_bytes())
}

/// Entries of `directory` whose names match, sorted; none if it is no directory.
fn matching(root: &Root, directory: &Path, pattern: &[u8]) -> Result<Vec<PathBuf>, CopyError> {
    if root.file_type(directory)? != Some(rustix::fs::FileType::Directory) {
        return Ok(Vec::new());
    }
    let failed = |source| CopyError::File {
        operation: "list",
        path: directory.to_owned(),
        source,
    };
    let mut names = Vec::new();
    for entry in fs::read_dir(root.path().join(directory)).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        if matches(pattern, name.as_bytes()) == Some(true) {
            names.push(name);
        }
    }
    names.sort();
    Ok(names.into_iter().map(|name| directory.join(name)).collect())
}

fn has_wildcard(part: &[u8]) -> bool {
    let mut bytes = part.iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b'*' | b'?' | b'[' => return true,
            b'\\' => {
                bytes.next();
            }
            _ => {}
        }
    }
    false
}

/// One element of a pattern.
enum Token {
    /// `*`
    Star,
    /// `?`
    One,
    /// `[a-z]`, `[^a-z]`
    Class(bool, Vec<(char, char)>),
    Byte(u8),
}

impl Token {
    /// How much of the start of `name` it takes; none if it doesn't fit.
    fn fits(&self, name: &[u8]) -> Option<usize> {
        let (character, length) = first_character(name);
        let fits = match self {
            Self::Star => false,
            Self::One => true,
            Self::Class(negated, ranges) => {
                let inside = ranges
                    .iter()
                    .any(|(low, high)| (*low..=*high).contains(&character));
                inside != *negated
            }
            Self::Byte(byte) => return (name.first() == Some(byte)).then_some(1),
        };
        (fits && length > 0).then_some(length)
    }
}

/// Reads a pattern; none if it is malformed.
fn parse(mut pattern: &[u8]) -> Option<Vec<Token>> {
    let mut tokens = Vec::new();
    while let Some((first, rest)) = pattern.split_first() {
        let (token, rest) = match first {
            b'*' => (Token::Star, rest),
            b'?' => (Token::One, rest),
            b'[' => class(rest)?,
            b'\\' => {
                let (escaped, rest) = rest.split_first()?;
                (Token::Byte(*escaped), rest)
            }
            byte => (Token::Byte(*byte), rest),
        };
        tokens.push(token);
        pattern = rest;
    }
    Some(tokens)
}

/// Whether the whole of `name` matches; none if the pattern is malformed. A star that took too little takes more; only the last one has to, so that this takes
/// at most pattern × name.
fn matches(pattern: &[u8], name: &[u8]) -> Option<bool> {
    let tokens = parse(pattern)?;
    let (mut token, mut at) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    loop {
        match tokens.get(token) {
            Some(Token::Star) => {
                star = Some((token, at));
                token += 1;
                continue;
            }
            Some(other) => {
                if let Some(length) = other.fits(&name[at..]) {
                    (token, at) = (token + 1, at + length);
                    continue;
                }
            }
            None if at == name.len() => return Some(true),
            None => {}
        }
        match star {
            Some((of, taken)) if taken < name.len() => {
                star = Some((of, taken + 1));
                (token, at) = (of + 1, taken + 1);
            }
            Some(_) | None => return Some(false),
        }
    }
}

/// The first character and its length in bytes; bytes that aren't UTF-8 stand for themselves.
fn first_character(bytes: &[u8]) -> (char, usize) {
    let start = &bytes[..bytes.len().min(4)];
    let valid = match std::str::from_utf8(start) {
        Ok(text) => text,
        Err(error) => std::str::from_utf8(&start[..error.valid_up_to()]).unwrap_or_default(),
    };
    match (valid.chars().next(), bytes.first()) {
        (Some(character), _) => (character, character.len_utf8()),
        (None, Some(byte)) => (char::from(*byte), 1),
        (None, None) => ('\0', 0),
    }
}

/// The class that starts after `[`, and what follows its `]`.
fn class(class: &[u8]) -> Option<(Token, &[u8])> {
    let (negated, mut rest) = match class.split_first() {
        Some((b'^', rest)) => (true, rest),
        _ => (false, class),
    };
    let mut ranges = Vec::new();
    loop {
        if let Some((b']', after)) = rest.split_first()
            && !ranges.is_empty()
        {
            return Some((Token::Class(negated, ranges), after));
        }
        let (low, after) = class_character(rest)?;
        let (high, after) = match after.split_first() {
            Some((b'-', after)) => class_character(after)?,
            _ => (low, after),
        };
        ranges.push((low, high));
        rest = after;
    }
}

fn class_character(rest: &[u8]) -> Option<(char, &[u8])> {
    let rest = match rest.split_first()? {
        (b'-' | b']', _) => return None,
        (b'\\', rest) => rest,
        _ => rest,
    };
    let (character, length) = first_character(rest);
    if length == 0 {
        None
    } else {
        Some((character, &rest[length..]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_match_as_in_go() {
        for (pattern, name, expected) in [
            ("abc", "abc", Some(true)),
            ("*", "abc", Some(true)),
            ("*c", "abc", Some(true)),
            ("a*", "a", Some(true)),
            ("a*b?c*x", "abxbbxdbxebxczzx", Some(true)),
            ("a*b?c*x", "abxbbxdbxebxczzy", Some(false)),
            ("ab[c]", "abc", Some(true)),
            ("ab[b-d]", "abc", Some(true)),
            ("ab[e-g]", "abc", Some(false)),
            ("ab[^c]", "abc", Some(false)),
            ("ab[^e-g]", "abc", Some(true)),
            ("a\\*b", "a*b", Some(true)),
            ("a\\*b", "ab", Some(false)),
            ("a?b", "a☺b", Some(true)),
            ("a[^a]b", "a☺b", Some(true)),
            ("a???b", "a☺b", Some(false)),
            ("[a-ζ]*", "α", Some(true)),
            ("*[a-ζ]", "A", Some(false)),
            ("[\\]a]", "]", Some(true)),
            ("[\\-x]", "-", Some(true)),
            ("[[]x", "[x", Some(true)),
            ("[]a]", "]", None),
            ("[-]", "-", None),
            ("[x-]", "x", None),
            ("[", "a", None),
            ("[^", "a", None),
            ("a[", "ab", None),
            ("\\", "a", None),
            ("*x", "xxx", Some(true)),
        ] {
            assert_eq!(
                matches(pattern.as_bytes(), name.as_bytes()),
                expected,
                "{pattern} on {name}"
            );
        }
    }
}
