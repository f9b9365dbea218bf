//! How would the incumbent's YAML library write this document?
//!
//! A build's name is a hash over such text, so it must match byte for byte: ghodss/yaml over go-yaml
//! v2.4.0, that is Go's JSON encoding, read as YAML, written by go-yaml. Only what the hashed objects hold is
//! supported: mappings with plain ASCII letters as keys, sequences of those, strings and null. Oddities of
//! the original are kept and marked as such.

mod resolve;
mod scalar;

use serde_json::Value;
use strata_builder::error::{Class, Classify};

/// Text that can't be written; the incumbent gives no name to a build with it either.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum YamlError {
    /// U+007F, most of U+0080–U+009F, U+FFFE, U+FFFF.
    #[error("the control character U+{0:04X} is not allowed")]
    Control(u32),
    /// `---` or `...` alone after U+0085, which starts a new line.
    #[error("a document marker after a next-line character (U+0085) is not allowed")]
    DocumentMarker,
    /// A number or truth value; none of the hashed fields is one.
    #[error("only strings, lists and mappings can be written")]
    Unsupported,
}

impl Classify for YamlError {
    fn class(&self) -> Class {
        match self {
            YamlError::Control(_) | YamlError::DocumentMarker => Class::CONTENT,
            YamlError::Unsupported => Class::INTERNAL,
        }
    }
}

/// The document as go-yaml writes it, with a newline at its end.
///
/// # Errors
///
/// User for text that YAML does not allow, permanent for other values than the supported.
pub fn to_yaml(value: &Value) -> Result<String, YamlError> {
    let mut out = String::new();
    match value {
        Value::Object(_) | Value::Array(_) if !is_empty(value) => block(&mut out, value, 0, false)?,
        _ => inline(&mut out, value, 0, 0)?,
    }
    if !out.ends_with(scalar::is_break) {
        out.push('\n');
    }
    Ok(out)
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Object(fields) => fields.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}

/// A mapping or sequence at `indent`; `open` if the cursor is already there, behind a dash.
fn block(out: &mut String, value: &Value, indent: usize, open: bool) -> Result<(), YamlError> {
    let mut open = open;
    let mut line = |out: &mut String| {
        if !open {
            if !out.is_empty() && !out.ends_with(scalar::is_break) {
                out.push('\n');
            }
            out.push_str(&" ".repeat(indent));
        }
        open = false;
    };
    match value {
        Value::Object(fields) => {
            let mut fields: Vec<_> = fields.iter().collect();
            fields.sort_by_key(|(key, _)| *key);
            for (key, value) in fields {
                line(out);
                out.push_str(key);
                out.push(':');
                match value {
                    Value::Array(_) if !is_empty(value) => block(out, value, indent, false)?,
                    Value::Object(_) if !is_empty(value) => block(out, value, indent + 2, false)?,
                    _ => inline(out, value, indent + key.len() + 1, indent + 2)?,
                }
            }
        }
        Value::Array(items) => {
            for item in items {
                line(out);
                out.push('-');
                if is_empty(item) || !matches!(item, Value::Object(_) | Value::Array(_)) {
                    inline(out, item, indent + 1, indent + 2)?;
                } else {
                    out.push(' ');
                    block(out, item, indent + 2, true)?;
                }
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
            return Err(YamlError::Unsupported);
        }
    }
    Ok(())
}

/// A scalar or an empty collection behind a key or dash that ends at `column`.
fn inline(out: &mut String, value: &Value, column: usize, indent: usize) -> Result<(), YamlError> {
    if column > 0 {
        out.push(' ');
    }
    match value {
        Value::Null => out.push_str("null"),
        Value::Object(_) => out.push_str("{}"),
        Value::Array(_) => out.push_str("[]"),
        Value::String(text) => {
            let text = scalar::read_back(text)?;
            scalar::write(out, &text, column + 1, indent);
        }
        Value::Bool(_) | Value::Number(_) => return Err(YamlError::Unsupported),
    }
    Ok(())
}

/// Where in the document the text is that can't be written: `.field[0].of, line 3`.
#[must_use]
pub fn place(document: &Value, error: YamlError) -> Option<String> {
    let YamlError::Control(code) = error else {
        return None;
    };
    let wanted = char::from_u32(code)?;
    match document {
        Value::Object(fields) => fields.iter().find_map(|(name, value)| {
            let rest = place(value, error)?;
            Some(format!(".{name}{rest}"))
        }),
        Value::Array(values) => values.iter().enumerate().find_map(|(n, value)| {
            let rest = place(value, error)?;
            Some(format!("[{n}]{rest}"))
        }),
        Value::String(text) => {
            let line = text.lines().position(|line| line.contains(wanted))?;
            Some(format!(", line {}", line + 1))
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => None,
    }
}

#[cfg(test)]
mod tests;
