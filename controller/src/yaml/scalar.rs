//! One string: what is left of it after go-yaml has read it, and the style in which it is written.

use super::YamlError;

/// Lines are folded at the first space beyond it.
const BEST_WIDTH: usize = 80;

/// What remains of a string on its way through Go's JSON encoder and go-yaml's reader.
///
/// The encoder escapes C0 controls, U+2028 and U+2029; everything else is read raw. U+0085 is a line
/// break to the reader and folded as in any quoted scalar.
pub(super) fn read_back(text: &str) -> Result<String, YamlError> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            ' ' | '\u{85}' => {
                let mut spaces = String::new();
                let mut breaks = 0_usize;
                let mut next = Some(c);
                while let Some(c) = next {
                    if c == '\u{85}' {
                        breaks += 1;
                    } else if breaks == 0 {
                        spaces.push(c);
                    }
                    next = rest.next_if(|c| matches!(c, ' ' | '\u{85}'));
                    if breaks > 0 && c == '\u{85}' {
                        marker(&rest, next)?;
                    }
                }
                match breaks {
                    0 => out.push_str(&spaces),
                    1 => out.push(' '),
                    more => out.push_str(&"\n".repeat(more - 1)),
                }
            }
            '\u{7f}'..='\u{9f}' | '\u{fffe}' | '\u{ffff}' => {
                return Err(YamlError::Control(u32::from(c)));
            }
            c => out.push(c),
        }
    }
    Ok(out)
}

/// Behind a line break with nothing before it, `---` and `...` start or end a document.
fn marker(
    rest: &std::iter::Peekable<std::str::Chars<'_>>,
    next: Option<char>,
) -> Result<(), YamlError> {
    if next.is_some() {
        return Ok(());
    }
    let start: Vec<char> = rest.clone().take(4).collect();
    let is_marker = matches!(start.as_slice(), ['-', '-', '-', ..] | ['.', '.', '.', ..]);
    if is_marker && matches!(start.get(3), Some(' ' | '\u{85}')) {
        return Err(YamlError::DocumentMarker);
    }
    Ok(())
}

/// Line breaks of YAML 1.1; the last one of a literal ends its line, whichever it is.
pub(super) fn is_break(c: char) -> bool {
    matches!(c, '\r' | '\n' | '\u{85}' | '\u{2028}' | '\u{2029}')
}

fn is_blank(c: char) -> bool {
    matches!(c, ' ' | '\t')
}

fn is_printable(c: char) -> bool {
    // The original looks at the first byte only and knows none of four bytes.
    matches!(c, '\n' | ' '..='~' | '\u{a0}'..='\u{fffd}') && c != '\u{feff}'
}

/// What a string's characters allow.
#[derive(Default)]
struct Analysis {
    indicators: bool,
    breaks: bool,
    special: bool,
    leading: bool,
    trailing: bool,
    trailing_space: bool,
    break_space: bool,
    space_break: bool,
}

fn analyze(chars: &[char]) -> Analysis {
    let mut found = Analysis::default();
    if chars.len() >= 3 && matches!(&chars[..3], ['-', '-', '-'] | ['.', '.', '.']) {
        found.indicators = true;
    }
    let mut preceded_by_whitespace = true;
    let (mut previous_space, mut previous_break) = (false, false);
    for (i, &c) in chars.iter().enumerate() {
        let last = i + 1 == chars.len();
        let followed_by_whitespace = last || is_blank(chars[i + 1]);
        found.indicators |= match c {
            ',' | '[' | ']' | '{' | '}' | '&' | '*' | '!' | '|' | '>' | '\'' | '"' | '%' | '@'
            | '`' => i == 0,
            '#' => preceded_by_whitespace,
            '?' | '-' => i == 0 && followed_by_whitespace,
            ':' => followed_by_whitespace,
            _ => false,
        };
        found.special |= !is_printable(c);
        if c == ' ' {
            found.leading |= i == 0;
            found.trailing |= last;
            found.trailing_space |= last;
            found.break_space |= previous_break;
            (previous_space, previous_break) = (true, false);
        } else if is_break(c) {
            found.breaks = true;
            found.leading |= i == 0;
            found.space_break |= previous_space;
            // The original takes the width of a first byte, so it sees the last of every break.
            found.trailing |= last;
            (previous_space, previous_break) = (false, true);
        } else {
            (previous_space, previous_break) = (false, false);
        }
        preceded_by_whitespace = is_blank(c) || is_break(c) || c == '\0';
    }
    found
}

/// Writes `text` at `column`; further lines at `indent`.
pub(super) fn write(out: &mut String, text: &str, column: usize, indent: usize) {
    let chars: Vec<char> = text.chars().collect();
    let found = analyze(&chars);
    let mut cursor = Cursor {
        out,
        column,
        indent,
    };
    let quotable = !(found.break_space || found.space_break || found.special);
    if text.contains('\n') {
        if found.trailing_space || found.space_break || found.special {
            cursor.double_quoted(&chars);
        } else {
            cursor.literal(&chars);
        }
    } else if !super::resolve::is_string(text) {
        cursor.double_quoted(&chars);
    } else if quotable && !(found.leading || found.trailing || found.breaks || found.indicators) {
        cursor.plain(&chars);
    } else if quotable {
        cursor.single_quoted(&chars);
    } else {
        cursor.double_quoted(&chars);
    }
}

struct Cursor<'a> {
    out: &'a mut String,
    column: usize,
    indent: usize,
}

impl Cursor<'_> {
    fn put(&mut self, c: char) {
        self.out.push(c);
        self.column += 1;
    }

    fn line_break(&mut self, c: char) {
        self.out.push(c);
        self.column = 0;
    }

    fn new_line(&mut self) {
        self.line_break('\n');
        self.pad();
    }

    fn pad(&mut self) {
        while self.column < self.indent {
            self.put(' ');
        }
    }

    fn plain(&mut self, chars: &[char]) {
        let mut spaces = false;
        for (i, &c) in chars.iter().enumerate() {
            let folds = c == ' ' && !spaces && self.column > BEST_WIDTH;
            if folds && chars.get(i + 1) != Some(&' ') {
                self.new_line();
            } else {
                self.put(c);
            }
            spaces = c == ' ';
        }
    }

    fn single_quoted(&mut self, chars: &[char]) {
        self.put('\'');
        let (mut spaces, mut breaks) = (false, false);
        for (i, &c) in chars.iter().enumerate() {
            if c == ' ' {
                let folds = !spaces && self.column > BEST_WIDTH && i > 0 && i + 1 < chars.len();
                if folds && chars[i + 1] != ' ' {
                    self.new_line();
                } else {
                    self.put(c);
                }
                spaces = true;
            } else if is_break(c) {
                self.line_break(c);
                breaks = true;
            } else {
                if breaks {
                    self.pad();
                }
                if c == '\'' {
                    self.put(c);
                }
                self.put(c);
                (spaces, breaks) = (false, false);
            }
        }
        self.put('\'');
    }

    fn double_quoted(&mut self, chars: &[char]) {
        // The original asks whether the first character is a byte order mark, for every character.
        let marked = chars.first() == Some(&'\u{feff}');
        self.put('"');
        let mut spaces = false;
        for (i, &c) in chars.iter().enumerate() {
            if marked || !is_printable(c) || is_break(c) || c == '"' || c == '\\' {
                escape(c).chars().for_each(|c| self.put(c));
                spaces = false;
            } else if c == ' ' {
                let folds = !spaces && self.column > BEST_WIDTH && i > 0 && i + 1 < chars.len();
                if folds {
                    self.new_line();
                    if chars[i + 1] == ' ' {
                        self.put('\\');
                    }
                } else {
                    self.put(c);
                }
                spaces = true;
            } else {
                self.put(c);
                spaces = false;
            }
        }
        self.put('"');
    }

    fn literal(&mut self, chars: &[char]) {
        self.put('|');
        if chars.first().is_some_and(|&c| c == ' ' || is_break(c)) {
            self.put('2');
        }
        match chars {
            [.., last] if !is_break(*last) => self.put('-'),
            [_] => self.put('+'),
            [.., before, _] if is_break(*before) => self.put('+'),
            _ => {}
        }
        self.line_break('\n');
        let mut breaks = true;
        for &c in chars {
            if is_break(c) {
                self.line_break(c);
            } else {
                if breaks {
                    self.pad();
                }
                self.put(c);
            }
            breaks = is_break(c);
        }
    }
}

fn escape(c: char) -> String {
    let short = match c {
        '\0' => '0',
        '\u{7}' => 'a',
        '\u{8}' => 'b',
        '\t' => 't',
        '\n' => 'n',
        '\u{b}' => 'v',
        '\u{c}' => 'f',
        '\r' => 'r',
        '\u{1b}' => 'e',
        '"' => '"',
        '\\' => '\\',
        '\u{85}' => 'N',
        '\u{a0}' => '_',
        '\u{2028}' => 'L',
        '\u{2029}' => 'P',
        other => {
            let code = u32::from(other);
            return match code {
                0..=0xff => format!("\\x{code:02X}"),
                0x100..=0xffff => format!("\\u{code:04X}"),
                _ => format!("\\U{code:08X}"),
            };
        }
    };
    format!("\\{short}")
}
