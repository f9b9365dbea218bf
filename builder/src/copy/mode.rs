//! Which mode results from `--chmod`? Octal or as chmod(1) takes it; pure.

/// A parsed `--chmod`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModeChange {
    /// The permission bits themselves, set-ID and sticky bits included.
    Exactly(u32),
    /// `u=rwX,go-w`, in order.
    Symbolic(Vec<Clause>),
}

/// One clause: for whom, how, what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Clause {
    /// 0o700, 0o070, 0o007 or several of them.
    who: u32,
    operator: Operator,
    what: What,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operator {
    Add,
    Remove,
    Set,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    /// Permissions of one class (0–7), `X`, `s`, `t`.
    Letters {
        bits: u32,
        execute_if_any: bool,
        set_id: bool,
        sticky: bool,
    },
    /// The permissions that a class has already: its shift.
    Copy(u32),
}

/// It is neither octal nor symbolic.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is neither an octal mode nor one like u=rwX,go-w")]
pub struct InvalidMode(pub String);

impl std::str::FromStr for ModeChange {
    type Err = InvalidMode;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidMode(text.to_owned());
        if text.starts_with(|c: char| c.is_ascii_digit()) {
            let bits = u32::from_str_radix(text, 8).map_err(|_| invalid())?;
            return if bits <= 0o7777 {
                Ok(Self::Exactly(bits))
            } else {
                Err(invalid())
            };
        }
        let mut clauses = Vec::new();
        for clause in text.split(',') {
            parse_clauses(clause, &mut clauses).ok_or_else(invalid)?;
        }
        Ok(Self::Symbolic(clauses))
    }
}

/// `who` once, then any number of operators: `u+r-w`.
fn parse_clauses(text: &str, clauses: &mut Vec<Clause>) -> Option<()> {
    let start = text.find(['+', '-', '='])?;
    let mut who = 0;
    for letter in text[..start].chars() {
        who |= match letter {
            'u' => 0o700,
            'g' => 0o070,
            'o' => 0o007,
            'a' => 0o777,
            _ => return None,
        };
    }
    let who = if who == 0 { 0o777 } else { who };
    let mut rest = &text[start..];
    while let Some(sign) = rest.chars().next() {
        let operator = match sign {
            '+' => Operator::Add,
            '-' => Operator::Remove,
            '=' => Operator::Set,
            _ => return None,
        };
        let end = rest[1..]
            .find(['+', '-', '='])
            .map_or(rest.len(), |end| end + 1);
        clauses.push(Clause {
            who,
            operator,
            what: parse_what(&rest[1..end])?,
        });
        rest = &rest[end..];
    }
    Some(())
}

fn parse_what(text: &str) -> Option<What> {
    match text {
        "u" => return Some(What::Copy(6)),
        "g" => return Some(What::Copy(3)),
        "o" => return Some(What::Copy(0)),
        _ => {}
    }
    let (mut bits, mut execute_if_any, mut set_id, mut sticky) = (0, false, false, false);
    for letter in text.chars() {
        match letter {
            'r' => bits |= 4,
            'w' => bits |= 2,
            'x' => bits |= 1,
            'X' => execute_if_any = true,
            's' => set_id = true,
            't' => sticky = true,
            _ => return None,
        }
    }
    Some(What::Letters {
        bits,
        execute_if_any,
        set_id,
        sticky,
    })
}

impl ModeChange {
    /// The new permission bits of a file or directory that had `mode`.
    #[must_use]
    pub fn apply(&self, mode: u32, is_directory: bool) -> u32 {
        match self {
            Self::Exactly(bits) => *bits,
            Self::Symbolic(clauses) => {
                // what `X` looks at is the mode from before all clauses
                let any_executes = is_directory || mode & 0o111 != 0;
                let mode = mode & 0o7777;
                clauses
                    .iter()
                    .fold(mode, |mode, clause| clause.apply(mode, any_executes))
            }
        }
    }
}

impl Clause {
    fn apply(&self, mode: u32, any_executes: bool) -> u32 {
        let everyone = |bits: u32| bits << 6 | bits << 3 | bits;
        let (permissions, special) = match self.what {
            What::Copy(shift) => (everyone(mode >> shift & 7), 0),
            What::Letters {
                bits,
                execute_if_any,
                set_id,
                sticky,
            } => {
                let execute = u32::from(execute_if_any && any_executes);
                let set_user = if set_id && self.who & 0o700 != 0 {
                    0o4000
                } else {
                    0
                };
                let set_group = if set_id && self.who & 0o070 != 0 {
                    0o2000
                } else {
                    0
                };
                // others alone have no such bit
                let sticky = if sticky && self.who & 0o770 != 0 {
                    0o1000
                } else {
                    0
                };
                (everyone(bits | execute), set_user | set_group | sticky)
            }
        };
        let change = permissions & self.who | special;
        match self.operator {
            Operator::Add => mode | change,
            Operator::Remove => mode & !change,
            Operator::Set => {
                // a copy of permissions leaves the set-ID bits alone
                let set_ids = match self.what {
                    What::Copy(_) => 0,
                    What::Letters { .. } => {
                        let user = if self.who & 0o700 != 0 { 0o4000 } else { 0 };
                        user | if self.who & 0o070 != 0 { 0o2000 } else { 0 }
                    }
                };
                mode & !(self.who | set_ids) | change
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chmod_gives_what_buildkit_gives() {
        for (text, mode, is_directory, expected) in [
            ("755", 0o600, false, 0o755),
            ("04711", 0o600, false, 0o4711),
            ("u+x", 0o644, false, 0o744),
            ("+x", 0o644, false, 0o755),
            ("go=u", 0o640, false, 0o666),
            ("go-rwx", 0o755, false, 0o700),
            ("a+X", 0o644, false, 0o644),
            ("a+X", 0o744, false, 0o755),
            ("a+X", 0o644, true, 0o755),
            ("u=rw,g=r,o=", 0o777, false, 0o640),
            ("u+s,+t", 0o755, false, 0o5755),
            ("u=rwx", 0o4644, false, 0o744),
            ("u=rwx", 0o2755, true, 0o2755),
            ("u+r-w", 0o200, false, 0o400),
            ("g=rx", 0o2755, true, 0o755),
            ("go=u", 0o2755, true, 0o2777),
            ("u+x,g+X", 0o644, false, 0o744),
            ("o+t", 0o755, true, 0o755),
            ("u=rwX,go=rX", 0o640, false, 0o644),
            ("u=rwX,go=rX", 0o700, true, 0o755),
        ] {
            let change: ModeChange = text.parse().unwrap();
            assert_eq!(
                change.apply(mode, is_directory),
                expected,
                "{text} on {mode:o}"
            );
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for text in ["", "8", "77777", "rwx", "u~x", "z+x", "u+q"] {
            assert_eq!(
                text.parse::<ModeChange>(),
                Err(InvalidMode(text.to_owned())),
                "{text}"
            );
        }
    }
}
