//! What does a [`Word`] say once quotes, escapes and variables are dealt with? Pure; the rules of BuildKit's shell lexer.

use super::Word;

#[cfg(test)]
mod tests;

/// A word that can't be expanded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WordError {
    /// `'` or `"` without its partner.
    #[error("{0} has no closing quote")]
    UnclosedQuote(char),
    /// `${` without `}`.
    #[error("`${{` has no closing brace")]
    UnclosedBrace,
    /// `${v^^}` and the like.
    #[error("`${{{0}}}` uses an expansion that is not supported")]
    Unsupported(String),
    /// `${v:?message}`
    #[error("{name}: {message}")]
    Required {
        /// The variable.
        name: String,
        /// What the author wrote.
        message: String,
    },
}

/// The value of a variable; `None` if it is not set.
pub type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

/// `word` without quotes, with its variables replaced.
///
/// # Errors
/// User: an unclosed quote or brace, an unknown operator, `${v:?}` of an unset variable.
pub fn expand(word: &Word, escape: char, lookup: Lookup<'_>) -> Result<String, WordError> {
    let mut lexer = Lexer::new(&word.0, escape, lookup);
    let mut out = Fields::default();
    lexer.run(None, &mut out)?;
    Ok(out.whole)
}

/// `text` with its variables replaced and escapes resolved; quotes are text like any other.
///
/// # Errors
/// As [`expand`], without the quotes.
pub fn expand_text(text: &str, escape: char, lookup: Lookup<'_>) -> Result<String, WordError> {
    let mut lexer = Lexer {
        quotes: false,
        ..Lexer::new(text, escape, lookup)
    };
    let mut out = Fields::default();
    lexer.run(None, &mut out)?;
    Ok(out.whole)
}

/// `word` as [`expand`] gives it, split where unquoted white space stands in the text or in a variable's value.
///
/// # Errors
/// As [`expand`].
pub fn split(word: &Word, escape: char, lookup: Lookup<'_>) -> Result<Vec<String>, WordError> {
    let mut lexer = Lexer::new(&word.0, escape, lookup);
    let mut out = Fields::default();
    lexer.run(None, &mut out)?;
    out.close();
    Ok(out.fields)
}

/// The text as one string and as fields.
#[derive(Default)]
struct Fields {
    whole: String,
    fields: Vec<String>,
    field: String,
    open: bool,
}

impl Fields {
    /// Text from inside quotes or behind an escape: never split.
    fn quoted(&mut self, text: &str) {
        self.open = true;
        self.whole.push_str(text);
        self.field.push_str(text);
    }

    fn plain(&mut self, text: &str) {
        for c in text.chars() {
            self.whole.push(c);
            if c.is_whitespace() {
                self.close();
            } else {
                self.open = true;
                self.field.push(c);
            }
        }
    }

    fn close(&mut self) {
        if std::mem::take(&mut self.open) {
            self.fields.push(std::mem::take(&mut self.field));
        }
    }
}

struct Lexer<'a> {
    chars: std::iter::Peekable<std::str::Chars<'a>>,
    escape: char,
    lookup: Lookup<'a>,
    /// False where quotes are plain text.
    quotes: bool,
}

impl<'a> Lexer<'a> {
    fn new(text: &'a str, escape: char, lookup: Lookup<'a>) -> Self {
        Self {
            chars: text.chars().peekable(),
            escape,
            lookup,
            quotes: true,
        }
    }

    /// Reads to `stop` (consumed) or, without one, to the end.
    fn run(&mut self, stop: Option<char>, out: &mut Fields) -> Result<(), WordError> {
        while let Some(c) = self.chars.next() {
            match c {
                c if Some(c) == stop => return Ok(()),
                '\'' if self.quotes => self.single_quoted(out)?,
                '"' if self.quotes => self.double_quoted(out)?,
                '$' => {
                    let value = self.dollar()?;
                    out.plain(&value);
                }
                c if c == self.escape => match self.chars.next() {
                    Some(next) => out.quoted(next.encode_utf8(&mut [0; 4])),
                    None => break,
                },
                c => out.plain(c.encode_utf8(&mut [0; 4])),
            }
        }
        match stop {
            Some(_) => Err(WordError::UnclosedBrace),
            None => Ok(()),
        }
    }

    fn single_quoted(&mut self, out: &mut Fields) -> Result<(), WordError> {
        out.quoted("");
        for c in self.chars.by_ref() {
            if c == '\'' {
                return Ok(());
            }
            out.quoted(c.encode_utf8(&mut [0; 4]));
        }
        Err(WordError::UnclosedQuote('\''))
    }

    fn double_quoted(&mut self, out: &mut Fields) -> Result<(), WordError> {
        out.quoted("");
        while let Some(c) = self.chars.next() {
            match c {
                '"' => return Ok(()),
                '$' => {
                    let value = self.dollar()?;
                    out.quoted(&value);
                }
                c if c == self.escape => match self.chars.peek().copied() {
                    None => return Err(WordError::UnclosedQuote('"')),
                    Some(next) if next == '"' || next == '$' || next == self.escape => {
                        self.chars.next();
                        out.quoted(next.encode_utf8(&mut [0; 4]));
                    }
                    // an escape of anything else stays, as in a shell
                    Some(_) => out.quoted(c.encode_utf8(&mut [0; 4])),
                },
                c => out.quoted(c.encode_utf8(&mut [0; 4])),
            }
        }
        Err(WordError::UnclosedQuote('"'))
    }

    /// What stands for `$…`, the dollar being read already.
    fn dollar(&mut self) -> Result<String, WordError> {
        if self.chars.peek() != Some(&'{') {
            let name = self.name();
            return Ok(match name.is_empty() {
                true => "$".to_owned(),
                false => (self.lookup)(&name).unwrap_or_default(),
            });
        }
        self.chars.next();
        let name = self.name();
        if name.is_empty() {
            return Err(match self.chars.peek() {
                None => WordError::UnclosedBrace,
                Some(c) => WordError::Unsupported(c.to_string()),
            });
        }
        let value = (self.lookup)(&name);
        match self.chars.next() {
            None => Err(WordError::UnclosedBrace),
            Some('}') => Ok(value.unwrap_or_default()),
            Some(':') => match self.chars.next() {
                Some(operator @ ('-' | '+' | '?')) => {
                    self.conditional(&name, value.filter(|v| !v.is_empty()), operator)
                }
                Some(other) => Err(WordError::Unsupported(format!("{name}:{other}"))),
                None => Err(WordError::UnclosedBrace),
            },
            Some(operator @ ('-' | '+' | '?')) => self.conditional(&name, value, operator),
            Some(operator @ ('#' | '%')) => {
                let longest = self.chars.next_if_eq(&operator).is_some();
                let pattern = self.pattern('}')?.0;
                let value = value.unwrap_or_default();
                Ok(match operator {
                    '#' => without_prefix(&value, &pattern, longest),
                    _ => without_suffix(&value, &pattern, longest),
                })
            }
            Some('/') => {
                let all = self.chars.next_if_eq(&'/').is_some();
                let (pattern, closed) = self.pattern('/')?;
                let replacement = match closed {
                    true => String::new(),
                    false => self.inner()?,
                };
                Ok(replaced(
                    &value.unwrap_or_default(),
                    &pattern,
                    &replacement,
                    all,
                ))
            }
            Some(other) => Err(WordError::Unsupported(format!("{name}{other}"))),
        }
    }

    fn conditional(
        &mut self,
        name: &str,
        value: Option<String>,
        operator: char,
    ) -> Result<String, WordError> {
        let word = self.inner()?;
        match (operator, value) {
            ('+', Some(_)) | ('-', None) => Ok(word),
            ('+', None) => Ok(String::new()),
            ('?', None) => {
                let message = if word.is_empty() {
                    "is not allowed to be unset or empty".to_owned()
                } else {
                    word
                };
                Err(WordError::Required {
                    name: name.to_owned(),
                    message,
                })
            }
            (_, Some(value)) => Ok(value),
            (_, None) => Ok(String::new()),
        }
    }

    /// The expanded text up to the closing brace.
    fn inner(&mut self) -> Result<String, WordError> {
        let mut out = Fields::default();
        self.run(Some('}'), &mut out)?;
        Ok(out.whole)
    }

    /// A pattern up to `stop` or `}`, and whether it was the brace that ended it.
    fn pattern(&mut self, stop: char) -> Result<(Vec<Glob>, bool), WordError> {
        let mut pattern = Vec::new();
        while let Some(c) = self.chars.next() {
            match c {
                '}' => return Ok((pattern, true)),
                c if c == stop => return Ok((pattern, false)),
                '*' => pattern.push(Glob::Any),
                '?' => pattern.push(Glob::One),
                '$' => pattern.extend(self.dollar()?.chars().map(Glob::Literal)),
                '\'' => {
                    let mut out = Fields::default();
                    self.single_quoted(&mut out)?;
                    pattern.extend(out.whole.chars().map(Glob::Literal));
                }
                '"' => {
                    let mut out = Fields::default();
                    self.double_quoted(&mut out)?;
                    pattern.extend(out.whole.chars().map(Glob::Literal));
                }
                c if c == self.escape => pattern.extend(self.chars.next().map(Glob::Literal)),
                c => pattern.push(Glob::Literal(c)),
            }
        }
        Err(WordError::UnclosedBrace)
    }

    /// A variable's name, a number or one of the shell's special parameters; empty if none follows.
    fn name(&mut self) -> String {
        let mut name = String::new();
        match self.chars.peek() {
            Some(c) if c.is_ascii_digit() => {
                while let Some(c) = self.chars.next_if(char::is_ascii_digit) {
                    name.push(c);
                }
            }
            Some('@' | '*' | '#' | '?' | '-' | '$' | '!') => name.extend(self.chars.next()),
            _ => {
                while let Some(c) = self.chars.next_if(|c| *c == '_' || c.is_alphanumeric()) {
                    name.push(c);
                }
            }
        }
        name
    }
}

/// One element of a shell pattern.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Glob {
    Literal(char),
    One,
    Any,
}

/// Whether all of `text` matches; linear in text × pattern, since `*` backtracks only to the last one.
fn matches(pattern: &[Glob], text: &[char]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(Glob::Any) => {
                star = Some((p, t));
                p += 1;
            }
            Some(Glob::One) => (p, t) = (p + 1, t + 1),
            Some(Glob::Literal(c)) if *c == text[t] => (p, t) = (p + 1, t + 1),
            _ => match star {
                Some((star_p, star_t)) => {
                    (p, t) = (star_p + 1, star_t + 1);
                    star = Some((star_p, t));
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|g| *g == Glob::Any)
}

fn without_prefix(value: &str, pattern: &[Glob], longest: bool) -> String {
    let chars: Vec<char> = value.chars().collect();
    let mut ends: Vec<usize> = (0..=chars.len()).collect();
    if longest {
        ends.reverse();
    }
    let end = ends
        .into_iter()
        .find(|end| matches(pattern, &chars[..*end]))
        .unwrap_or(0);
    chars[end..].iter().collect()
}

fn without_suffix(value: &str, pattern: &[Glob], longest: bool) -> String {
    let chars: Vec<char> = value.chars().collect();
    let mut starts: Vec<usize> = (0..=chars.len()).rev().collect();
    if longest {
        starts.reverse();
    }
    let start = starts
        .into_iter()
        .find(|start| matches(pattern, &chars[*start..]))
        .unwrap_or(chars.len());
    chars[..start].iter().collect()
}

fn replaced(value: &str, pattern: &[Glob], replacement: &str, all: bool) -> String {
    let chars: Vec<char> = value.chars().collect();
    let mut out = String::new();
    let mut at = 0;
    while at < chars.len() {
        // leftmost, longest; a match of nothing replaces nothing
        let end = (at + 1..=chars.len())
            .rev()
            .find(|end| matches(pattern, &chars[at..*end]));
        match end {
            Some(end) => {
                out.push_str(replacement);
                at = end;
                if !all {
                    break;
                }
            }
            None => {
                out.push(chars[at]);
                at += 1;
            }
        }
    }
    out.extend(&chars[at..]);
    out
}
