//! What do ARG and ENV lines say before anything runs?

use std::cell::Cell;
use std::collections::BTreeMap;

use super::super::{ArgDeclaration, Word, words};
use crate::state::Scope;

/// What a stage's own lines say about its variables; `None` if it takes the base image to know.
#[derive(Clone, Default)]
pub(super) struct Variables {
    args: BTreeMap<String, Option<String>>,
    env: BTreeMap<String, Option<String>>,
}

impl Variables {
    fn get(&self, name: &str) -> Option<String> {
        let value = self.env.get(name).or_else(|| self.args.get(name));
        value.cloned().flatten()
    }

    /// The word's value, if all its variables have one.
    pub(super) fn value(&self, word: &Word, escape: char) -> Option<String> {
        let unknown = Cell::new(false);
        let lookup = |name: &str| {
            let value = self.get(name);
            unknown.set(unknown.get() || value.is_none());
            value
        };
        let value = words::expand(word, escape, &lookup).ok()?;
        (!unknown.get()).then_some(value)
    }

    /// ARG: from outside, else the default, else the global of its name.
    pub(super) fn declare(&mut self, declarations: &[ArgDeclaration], scope: &Scope) {
        for declaration in declarations {
            let given = scope.build_args.get(&declaration.name);
            let value = match (given, &declaration.default) {
                (Some(value), _) => Some(value.clone()),
                (None, Some(default)) => self.value(default, scope.escape),
                (None, None) => scope.globals.get(&declaration.name).cloned(),
            };
            if value.is_some() || declaration.default.is_some() {
                self.args.insert(declaration.name.clone(), value);
            }
        }
    }

    /// ENV: all values see what was before the instruction.
    pub(super) fn set(&mut self, pairs: &[(Word, Word)], escape: char) {
        let values: Vec<_> = pairs
            .iter()
            .map(|(_, value)| self.value(value, escape))
            .collect();
        for ((name, _), value) in pairs.iter().zip(values) {
            self.env.insert(name.0.clone(), value);
        }
    }
}
