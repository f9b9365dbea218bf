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
    /// A pattern of `#`, `%` or `/` with an escape that means nothing.
    #[error("the pattern {0:?} escapes something other than * ? \\ / and }}")]
    Pattern(String),
    /// Expansions within expansions, without end.
    #[error("`${{` is nested deeper than {MAX_DEPTH} levels")]
    Depth,
    /// Variables that grow, or a pattern on a long value.
    #[error("it grows beyond {MAX_BYTES} bytes, or takes too long")]
    TooLong,
    /// `${v:?message}`
    #[error("{name}: {message}")]
    Required {
        /// The variable.
        name: String,
        /// What the author wrote.
        message: String,
    },
}

/// No author nests deeper; a hostile text must not exhaust the stack.
const MAX_DEPTH: usize = 64;

/// What variables may make of a word; the kernel takes no variable or argument of more than an eighth of it.
const MAX_BYTES: usize = 1 << 20;

/// Steps that a pattern may take on a value: a second, at worst.
const MAX_STEPS: usize = 1 << 28;

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
}

impl Fields {
    fn room_for(&self, value: &str) -> Result<(), WordError> {
        match value.is_empty() || self.whole.len() + value.len() <= MAX_BYTES {
            true => Ok(()),
            false => Err(WordError::TooLong),
        }
    }

    /// Text from inside quotes or behind an escape: never split.
    fn quoted(&mut self, text: &str) {
        self.whole.push_str(text);
        self.field.push_str(text);
    }

    fn plain(&mut self, text: &str) {
        for c in text.chars() {
            self.whole.push(c);
            if c.is_whitespace() {
                self.close();
            } else {
                self.field.push(c);
            }
        }
    }

    fn close(&mut self) {
        if !self.field.is_empty() {
            self.fields.push(std::mem::take(&mut self.field));
        }
    }
}

/// What becomes of escapes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Escapes {
    /// What they escape is text, they are gone.
    Resolved,
    /// They stay.
    Kept,
    /// They stay for the pattern that is made of the text.
    OfPattern,
}

struct Lexer<'a> {
    chars: std::iter::Peekable<std::str::Chars<'a>>,
    escape: char,
    lookup: Lookup<'a>,
    /// False where quotes are plain text.
    quotes: bool,
    escapes: Escapes,
    depth: usize,
}

impl<'a> Lexer<'a> {
    fn new(text: &'a str, escape: char, lookup: Lookup<'a>) -> Self {
        Self {
            chars: text.chars().peekable(),
            escape,
            lookup,
            quotes: true,
            escapes: Escapes::Resolved,
            depth: 0,
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
                    out.room_for(&value)?;
                    out.plain(&value);
                }
                c if c == self.escape => {
                    if self.escapes != Escapes::Resolved {
                        out.quoted(c.encode_utf8(&mut [0; 4]));
                    }
                    match self.chars.next() {
                        Some(next) => out.quoted(next.encode_utf8(&mut [0; 4])),
                        None => break,
                    }
                }
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
            // the pattern then reads two, which is one as text
            if self.escapes == Escapes::OfPattern && c == self.escape {
                out.quoted(c.encode_utf8(&mut [0; 4]));
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
                    out.room_for(&value)?;
                    out.quoted(&value);
                }
                c if c == self.escape => {
                    // also before a character that can't be escaped here: the pattern then reads
                    // two, which is one escape as text
                    if self.escapes != Escapes::Resolved {
                        out.quoted(c.encode_utf8(&mut [0; 4]));
                    }
                    match self.chars.peek().copied() {
                        None => return Err(WordError::UnclosedQuote('"')),
                        Some(next) if next == '"' || next == '$' || next == self.escape => {
                            self.chars.next();
                            out.quoted(next.encode_utf8(&mut [0; 4]));
                        }
                        // an escape of anything else stays, as in a shell
                        Some(_) => out.quoted(c.encode_utf8(&mut [0; 4])),
                    }
                }
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
        let mut operator = self.chars.next();
        let colon = operator == Some(':');
        if colon {
            operator = self.chars.next();
        }
        match operator {
            None => Err(WordError::UnclosedBrace),
            Some('}') if !colon => Ok(value.unwrap_or_default()),
            Some(operator @ ('-' | '+' | '?')) => {
                let value = value.filter(|v| !colon || !v.is_empty());
                self.conditional(&name, value, operator)
            }
            Some(operator @ ('#' | '%')) if !colon => {
                let text = self.inner('}', Escapes::OfPattern)?;
                let (longest, text) = match text.strip_prefix(operator) {
                    Some(rest) => (true, rest),
                    None => (false, text.as_str()),
                };
                let (pattern, value) = (pattern(text)?, value.unwrap_or_default());
                check_steps(&pattern, &value)?;
                Ok(match operator {
                    '#' => without_prefix(&value, &pattern, longest),
                    _ => without_suffix(&value, &pattern, longest),
                })
            }
            Some('/') if !colon => {
                let all = self.chars.next_if_eq(&'/').is_some();
                let pattern = pattern(&self.inner('/', Escapes::OfPattern)?)?;
                let replacement = self.inner('}', Escapes::Kept)?;
                let value = value.unwrap_or_default();
                check_steps(&pattern, &value)?;
                replaced(&value, &pattern, &replacement, all)
            }
            Some(other) => Err(WordError::Unsupported(match colon {
                true => format!("{name}:{other}"),
                false => format!("{name}{other}"),
            })),
        }
    }

    fn conditional(
        &mut self,
        name: &str,
        value: Option<String>,
        operator: char,
    ) -> Result<String, WordError> {
        let word = self.inner('}', Escapes::Resolved)?;
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

    /// The expanded text up to `stop`.
    fn inner(&mut self, stop: char, escapes: Escapes) -> Result<String, WordError> {
        if self.depth == MAX_DEPTH {
            return Err(WordError::Depth);
        }
        self.depth += 1;
        let outside = std::mem::replace(&mut self.escapes, escapes);
        let mut out = Fields::default();
        self.run(Some(stop), &mut out)?;
        self.escapes = outside;
        self.depth -= 1;
        Ok(out.whole)
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

/// Reads a shell pattern; a backslash is its escape whatever the file's is.
fn pattern(text: &str) -> Result<Vec<Glob>, WordError> {
    let mut chars = text.chars().peekable();
    let mut pattern = Vec::new();
    while let Some(c) = chars.next() {
        pattern.push(match c {
            '*' => Glob::Any,
            '?' => Glob::One,
            // escaped for the expansion around the pattern, no part of it
            '\\' if matches!(chars.peek(), Some('}' | '/')) => continue,
            '\\' => match chars.next() {
                Some(c @ ('*' | '?' | '\\')) => Glob::Literal(c),
                _ => return Err(WordError::Pattern(text.to_owned())),
            },
            c => Glob::Literal(c),
        });
    }
    Ok(pattern)
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

/// A pattern is tried at each place of the value, and takes at most its own length for each character from there.
fn check_steps(pattern: &[Glob], value: &str) -> Result<(), WordError> {
    let steps = value.len().saturating_mul(value.len());
    match steps.saturating_mul(pattern.len().max(1)) <= MAX_STEPS {
        true => Ok(()),
        false => Err(WordError::TooLong),
    }
}

/// The end of the longest match that begins at the start of `text`.
fn longest(pattern: &[Glob], text: &[char]) -> Option<usize> {
    let skip_stars = |at: &mut Vec<bool>| {
        for (p, glob) in pattern.iter().enumerate() {
            at[p + 1] |= at[p] && *glob == Glob::Any;
        }
    };
    // the places in the pattern that what was read so far may have led to
    let mut at = vec![false; pattern.len() + 1];
    at[0] = true;
    skip_stars(&mut at);
    let mut best = at[pattern.len()].then_some(0);
    for (end, c) in (1..).zip(text) {
        let mut next = vec![false; pattern.len() + 1];
        for (p, glob) in pattern.iter().enumerate().filter(|(p, _)| at[*p]) {
            match glob {
                Glob::Any => next[p] = true,
                Glob::Literal(literal) if literal != c => {}
                Glob::One | Glob::Literal(_) => next[p + 1] = true,
            }
        }
        skip_stars(&mut next);
        if !next.contains(&true) {
            break;
        }
        if next[pattern.len()] {
            best = Some(end);
        }
        at = next;
    }
    best
}

/// Leftmost, longest. A pattern that can match nothing also does so between characters, but not
/// right behind another match.
fn replaced(
    value: &str,
    pattern: &[Glob],
    replacement: &str,
    all: bool,
) -> Result<String, WordError> {
    let chars: Vec<char> = value.chars().collect();
    let mut out = String::new();
    let mut at = 0;
    let mut matched_to = None;
    while at <= chars.len() {
        if let Some(length) = longest(pattern, &chars[at..])
            && (length > 0 || matched_to != Some(at))
        {
            if out.len() + replacement.len() > MAX_BYTES {
                return Err(WordError::TooLong);
            }
            out.push_str(replacement);
            at += length;
            if !all {
                break;
            }
            matched_to = Some(at);
            if length > 0 {
                continue;
            }
        }
        out.extend(chars.get(at));
        at += 1;
    }
    out.extend(chars.iter().skip(at));
    Ok(out)
}
