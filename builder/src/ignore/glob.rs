//! Does a path match a pattern with `*`, `?`, `[…]` and `**`?

/// A pattern, read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Glob {
    tokens: Vec<Token>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Literal(char),
    /// `?`
    One,
    /// `*`
    Star,
    /// `**` at the end, or before plain text.
    Anything,
    /// `**/`, or `**` before something.
    Directories,
    /// `[a-z]`, `[^a-z]`
    Class {
        negated: bool,
        ranges: Vec<(char, char)>,
    },
}

impl Glob {
    /// `None` if it is no pattern.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut tokens = Vec::new();
        // other builders take `**` before plain text for any beginning, also of a name
        if let Some(end) = text.strip_prefix("**")
            && !end.is_empty()
            && !end.starts_with('/')
            && !end.contains(['*', '?', '[', ']', '\\'])
        {
            tokens.push(Token::Anything);
            tokens.extend(end.chars().map(Token::Literal));
            return Some(Self { tokens });
        }
        let mut chars = text.chars().peekable();
        while let Some(c) = chars.next() {
            tokens.push(match c {
                '*' if chars.next_if_eq(&'*').is_some() => {
                    chars.next_if_eq(&'/');
                    match chars.peek() {
                        Some(_) => Token::Directories,
                        None => Token::Anything,
                    }
                }
                '*' => Token::Star,
                '?' => Token::One,
                '[' => class(&mut chars)?,
                '\\' => Token::Literal(chars.next()?),
                c => Token::Literal(c),
            });
        }
        Some(Self { tokens })
    }

    /// True if the whole path matches. Follows all ways at once, so the time is pattern × path.
    pub(super) fn is_match(&self, path: &str) -> bool {
        let path: Vec<char> = path.chars().collect();
        let mut reached = vec![false; path.len() + 1];
        reached[0] = true;
        for token in &self.tokens {
            reached = token.step(&reached, &path);
        }
        reached[path.len()]
    }
}

impl Token {
    /// Positions that this token leads to from those reached before it.
    fn step(&self, before: &[bool], path: &[char]) -> Vec<bool> {
        let one = |fits: &dyn Fn(char) -> bool| {
            let mut after = vec![false; before.len()];
            for (at, c) in path.iter().enumerate() {
                after[at + 1] = before[at] && fits(*c);
            }
            after
        };
        match self {
            Token::Literal(literal) => one(&|c| c == *literal),
            Token::One => one(&|c| c != '/'),
            Token::Class { negated, ranges } => one(&|c| {
                ranges
                    .iter()
                    .any(|(first, last)| (*first..=*last).contains(&c))
                    != *negated
            }),
            Token::Star => {
                let mut after = before.to_vec();
                for (at, c) in path.iter().enumerate() {
                    after[at + 1] |= after[at] && *c != '/';
                }
                after
            }
            Token::Anything | Token::Directories => {
                let mut after = before.to_vec();
                let mut open = before[0];
                for (at, c) in path.iter().enumerate() {
                    let ends_here = *self == Token::Anything || *c == '/';
                    after[at + 1] |= open && ends_here;
                    open |= before[at + 1];
                }
                after
            }
        }
    }
}

/// What follows `[`, to the closing bracket.
fn class(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Option<Token> {
    let negated = chars.next_if_eq(&'^').is_some();
    let mut ranges = Vec::new();
    loop {
        let first = match chars.next()? {
            ']' if ranges.is_empty() => return None,
            ']' => return Some(Token::Class { negated, ranges }),
            '\\' => chars.next()?,
            c => c,
        };
        let mut last = first;
        if chars.next_if_eq(&'-').is_some() {
            last = match chars.next()? {
                ']' => return None,
                '\\' => chars.next()?,
                c => c,
            };
        }
        if last < first {
            return None;
        }
        ranges.push((first, last));
    }
}
