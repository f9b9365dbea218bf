//! Physical lines → logical lines: directives, comments, continuations, heredoc bodies.

use super::super::{Heredoc, Location};
use super::syntax::words_of;
use super::{Fault, ParseError};

/// Reads a file line by line.
pub(super) struct Reader<'a> {
    file: &'a str,
    lines: Vec<&'a str>,
    next: usize,
    pub escape: char,
}

impl<'a> Reader<'a> {
    /// Reads the directives; `text` may start with a byte order mark.
    pub fn new(text: &'a str, file: &'a str) -> Result<Self, ParseError> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let mut reader = Self {
            file,
            lines: text.split_inclusive('\n').collect(),
            next: 0,
            escape: '\\',
        };
        reader.directives()?;
        Ok(reader)
    }

    /// `# key=value` lines at the very top; `escape` counts, `syntax` and `check` are for other frontends.
    fn directives(&mut self) -> Result<(), ParseError> {
        let mut seen: Vec<String> = Vec::new();
        for (number, line) in self.lines.iter().enumerate() {
            let Some((key, value)) = line
                .trim()
                .strip_prefix('#')
                .and_then(|rest| rest.split_once('='))
            else {
                break;
            };
            let key = key.trim().to_ascii_lowercase();
            if !["escape", "syntax", "check"].contains(&key.as_str()) || value.trim().is_empty() {
                break;
            }
            if seen.contains(&key) {
                return Err(self.fault(number + 1, Fault::RepeatedDirective(key)));
            }
            if key == "escape" {
                self.escape = match value.trim() {
                    "\\" => '\\',
                    "`" => '`',
                    other => return Err(self.fault(number + 1, Fault::Escape(other.to_owned()))),
                };
            }
            seen.push(key);
        }
        Ok(())
    }

    /// An error at a line of this file.
    pub fn fault(&self, line: usize, fault: Fault) -> ParseError {
        let source: Vec<&str> = self
            .lines
            .iter()
            .map(|l| l.trim_end_matches(['\n', '\r']))
            .collect();
        ParseError::new(self.file, &source, line, line, fault)
    }

    /// An error somewhere in the lines of an instruction, at the column of the text that the fault quotes.
    pub fn fault_in(&self, place: &Location, fault: Fault) -> ParseError {
        let source: Vec<&str> = self
            .lines
            .iter()
            .map(|l| l.trim_end_matches(['\n', '\r']))
            .collect();
        ParseError::new(self.file, &source, place.line, place.last_line, fault)
    }

    /// The next instruction's text, continuation lines joined.
    pub fn next_logical(&mut self) -> Option<Location> {
        loop {
            let line = self.take()?;
            let trimmed = line.trim_start();
            if trimmed.is_empty() || trimmed.starts_with('#') {
                continue;
            }
            let first = self.next;
            let mut text = String::new();
            let mut more = self.join(trimmed, &mut text);
            while more {
                // comments and blank lines between continuation lines don't end the instruction
                let Some(line) = self.take() else { break };
                if line.trim_start().starts_with('#') || line.trim().is_empty() {
                    continue;
                }
                more = self.join(line, &mut text);
            }
            let text = text.trim_end().to_owned();
            if !text.is_empty() {
                return Some(Location {
                    line: first,
                    last_line: self.next,
                    text,
                });
            }
        }
    }

    fn take(&mut self) -> Option<&'a str> {
        let line = self.lines.get(self.next)?;
        self.next += 1;
        Some(line.trim_end_matches(['\n', '\r']))
    }

    /// Appends a line without its continuation mark; whether there was one.
    fn join(&self, line: &str, text: &mut String) -> bool {
        let bare = line.trim_end_matches([' ', '\t']);
        match bare.strip_suffix(self.escape) {
            // a doubled escape is an escaped one and no continuation
            Some(rest) if !rest.ends_with(self.escape) => {
                text.push_str(rest);
                true
            }
            _ => {
                text.push_str(line);
                false
            }
        }
    }

    /// Reads the bodies of the heredocs that `logical` announces and moves its end behind them.
    pub fn heredocs(&mut self, logical: &mut Location) -> Result<Vec<Heredoc>, ParseError> {
        let mut heredocs = announced(&logical.text, self.escape);
        for heredoc in &mut heredocs {
            loop {
                let Some(raw) = self.lines.get(self.next) else {
                    return Err(
                        self.fault_in(logical, Fault::UnclosedHeredoc(heredoc.name.clone()))
                    );
                };
                self.next += 1;
                let line = if heredoc.strip_tabs {
                    raw.trim_start_matches('\t')
                } else {
                    raw
                };
                if line.trim_end_matches(['\n', '\r']) == heredoc.name {
                    break;
                }
                heredoc.content.push_str(raw);
            }
        }
        logical.last_line = self.next.max(logical.last_line);
        Ok(heredocs)
    }
}

/// The `<<NAME` words of a line, with empty bodies. Blanks may stand before the name; `$((1 << 2))` is arithmetic.
fn announced(text: &str, escape: char) -> Vec<Heredoc> {
    let mut found = Vec::new();
    let mut arithmetic = 0;
    let mut words = words_of(text, escape).into_iter().peekable();
    while let Some(mut word) = words.next() {
        arithmetic += word.matches("((").count();
        if arithmetic == 0 {
            if word.trim_start_matches(|c: char| c.is_ascii_digit()) == "<<" {
                word.extend(words.next());
            }
            found.extend(heredoc(&word));
        }
        arithmetic = arithmetic.saturating_sub(word.matches("))").count());
    }
    found
}

/// The heredoc that a word announces: `<<NAME`, `<<-NAME`, `3<<"NAME"`.
pub(super) fn heredoc(word: &str) -> Option<Heredoc> {
    let rest = word
        .trim_start_matches(|c: char| c.is_ascii_digit())
        .strip_prefix("<<")?;
    let (rest, strip_tabs) = match rest.strip_prefix('-') {
        Some(rest) => (rest, true),
        None => (rest, false),
    };
    if rest.is_empty() || rest.contains('<') {
        return None;
    }
    // a backslash before the name doesn't keep variables from being replaced, as it does in a shell
    let quoted = rest.contains(['"', '\'']);
    let name: String = rest
        .chars()
        .filter(|c| !matches!(c, '"' | '\'' | '\\'))
        .collect();
    (!name.is_empty()).then_some(Heredoc {
        name,
        content: String::new(),
        expand: !quoted,
        strip_tabs,
    })
}
