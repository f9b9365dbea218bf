//! Which files of a context may a COPY not see? The rules of `.dockerignore`; pure.
//!
//! Patterns are tried in file order and the last that matches decides; `!` takes a path back in,
//! also below an excluded directory. A pattern that matches a directory covers all below it. `*` and
//! `?` stay within a path component, `**` is any number of components.

use std::path::{Path, PathBuf};

use crate::error::{Class, Classify};

mod glob;
#[cfg(test)]
mod tests;

use glob::Glob;

/// A line that is no pattern.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IgnoreError {
    /// A bracket without its partner, an escape of nothing.
    #[error("line {line}: {pattern:?} is no pattern")]
    Pattern {
        /// From 1.
        line: usize,
        /// As written.
        pattern: String,
    },
    /// `!` alone.
    #[error("line {line}: ! without a pattern")]
    Empty {
        /// From 1.
        line: usize,
    },
}

impl Classify for IgnoreError {
    fn class(&self) -> Class {
        match self {
            Self::Pattern { .. } | Self::Empty { .. } => Class::CONTENT,
        }
    }
}

/// The patterns of one ignore file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ignore {
    patterns: Vec<Pattern>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Pattern {
    glob: Glob,
    /// Cleaned, without `!`.
    text: String,
    /// `!`: takes back in.
    includes: bool,
}

/// Where the ignore file of a build may be; the first that exists counts, the others are not read.
#[must_use]
pub fn candidates(containerfile: &Path, context: &Path) -> [PathBuf; 4] {
    let beside = |suffix: &str| {
        let mut name = containerfile.as_os_str().to_owned();
        name.push(suffix);
        PathBuf::from(name)
    };
    [
        beside(".containerignore"),
        beside(".dockerignore"),
        context.join(".containerignore"),
        context.join(".dockerignore"),
    ]
}

impl Ignore {
    /// Reads an ignore file.
    ///
    /// # Errors
    /// [`IgnoreError`], of class user.
    pub fn parse(text: &str) -> Result<Self, IgnoreError> {
        let mut patterns = Vec::new();
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        for (line, written) in (1..).zip(text.lines()) {
            // a comment starts in the first column; ` #x` is a file's name
            if written.starts_with('#') {
                continue;
            }
            patterns.extend(Pattern::read(line, written)?);
        }
        Ok(Self { patterns })
    }

    /// Takes patterns that stand in no file: nothing is a comment, and a leading `/` is part of the pattern, which then matches nothing.
    ///
    /// # Errors
    /// [`IgnoreError`], of class user; its line is the number of the pattern.
    pub fn of<'a>(written: impl IntoIterator<Item = &'a str>) -> Result<Self, IgnoreError> {
        let mut patterns = Vec::new();
        for (number, written) in (1..).zip(written) {
            if !written.trim().trim_start_matches('!').starts_with('/') {
                patterns.extend(Pattern::read(number, written)?);
            }
        }
        Ok(Self { patterns })
    }

    /// True if COPY doesn't see `path`, which is relative to the context and has no `.` or `..`.
    #[must_use]
    pub fn is_excluded(&self, path: &str) -> bool {
        let path = path.trim_matches('/');
        let mut excluded = false;
        for pattern in &self.patterns {
            // a pattern that would change nothing needs no look
            if pattern.includes == excluded && pattern.matches_path_or_parent(path) {
                excluded = !pattern.includes;
            }
        }
        excluded
    }

    /// True if something below the excluded directory `path` may be taken back in, so that a walk
    /// must go into it.
    #[must_use]
    pub fn may_include_below(&self, path: &str) -> bool {
        self.patterns
            .iter()
            .any(|pattern| pattern.includes && pattern.may_match_below(path))
    }
}

impl Pattern {
    /// None if there is only white space.
    fn read(line: usize, written: &str) -> Result<Option<Self>, IgnoreError> {
        let trimmed = written.trim();
        let (includes, body) = match trimmed.strip_prefix('!') {
            Some(body) => (true, body.trim()),
            None => (false, trimmed),
        };
        if body.is_empty() {
            return match includes {
                true => Err(IgnoreError::Empty { line }),
                false => Ok(None),
            };
        }
        let text = clean(body);
        let glob = Glob::parse(&text).ok_or_else(|| IgnoreError::Pattern {
            line,
            pattern: trimmed.to_owned(),
        })?;
        Ok(Some(Self {
            glob,
            text,
            includes,
        }))
    }

    fn matches_path_or_parent(&self, path: &str) -> bool {
        let parents = path.match_indices('/').map(|(at, _)| &path[..at]);
        parents.chain([path]).any(|path| self.glob.is_match(path))
    }

    fn may_match_below(&self, directory: &str) -> bool {
        for (ours, theirs) in self.text.split('/').zip(directory.split('/')) {
            if ours.contains(['*', '?', '[', '\\']) {
                return true;
            }
            if ours != theirs {
                return false;
            }
        }
        true
    }
}

/// The path without `.`, `..`, repeated, leading and trailing slashes, as far as its text says.
fn clean(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => {
                parts.pop();
            }
            // nothing is above the root
            ".." if path.starts_with('/') => {}
            part => parts.push(part),
        }
    }
    if parts.is_empty() {
        ".".to_owned()
    } else {
        parts.join("/")
    }
}
