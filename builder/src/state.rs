//! What does a stage's environment and image configuration look like after each instruction? Pure.
//!
//! A [`StageState`] starts from a base image's configuration, or from the state that another stage
//! ended in, and [`StageState::apply`] takes it through the instructions. RUN, COPY and ADD change
//! nothing here; this module says what they run with ([`StageState::run_environment`],
//! [`StageState::command_line`]) and how the history names them.
//!
//! Values given from outside (`--build-arg`) reach variables and RUN, never the history.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::containerfile::words::{self, WordError};
use crate::containerfile::{ArgDeclaration, CommandForm, Heredoc, Instruction, Word};
use crate::error::{Class, Classify};
use crate::image::ImageConfig;

mod command;
mod metadata;

pub use command::RunCommand;

/// PATH of an image that sets none, as other builders and runtimes have it.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Build arguments that RUN sees without an ARG, in either case.
const PROXY_ARGS: [&str; 5] = [
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "FTP_PROXY",
    "NO_PROXY",
    "ALL_PROXY",
];

/// Why an instruction's metadata can't be applied.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Quotes or variables of a word.
    #[error("can't expand {word:?}")]
    Expand {
        /// As written.
        word: String,
        /// Why.
        source: WordError,
    },
    /// EXPOSE with something that is no port.
    #[error("invalid port {0:?}: expected PORT[-LAST][/tcp|/udp|/sctp]")]
    Port(String),
    /// STOPSIGNAL with something that is no signal.
    #[error("invalid signal {0:?}")]
    Signal(String),
    /// An instruction whose argument is empty once its variables are replaced.
    #[error("{instruction} of an empty string")]
    Empty {
        /// Its name.
        instruction: &'static str,
    },
}

impl Classify for StateError {
    fn class(&self) -> Class {
        match self {
            Self::Expand { .. } | Self::Port(_) | Self::Signal(_) | Self::Empty { .. } => {
                Class::CONTENT
            }
        }
    }
}

/// Variables from outside the stage, the same for all stages of a build.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope {
    /// The file's escape character.
    pub escape: char,
    /// Global ARGs and the platform's; a stage sees one by repeating its name.
    pub globals: BTreeMap<String, String>,
    /// `--build-arg`.
    pub build_args: BTreeMap<String, String>,
}

/// One ARG in scope.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Arg {
    name: String,
    /// None: declared, no value.
    value: Option<String>,
}

/// A stage between two instructions.
#[derive(Clone, Debug, PartialEq)]
pub struct StageState {
    /// The configuration of the image that the stage would be if it ended here; history and layers
    /// are those of the base image.
    pub image: ImageConfig,
    scope: Scope,
    args: Vec<Arg>,
    /// A CMD of this stage survives an ENTRYPOINT that follows, an inherited one doesn't.
    has_cmd: bool,
}

impl StageState {
    /// A stage on an image. Its ONBUILD [`triggers`] are not inherited: they became instructions.
    #[must_use]
    pub fn start(mut image: ImageConfig, scope: Scope) -> Self {
        image.config.other.remove("OnBuild");
        let workdir = &mut image.config.working_dir;
        if !workdir.is_empty() && !workdir.starts_with('/') {
            *workdir = metadata::joined("/", workdir);
        }
        let mut state = Self {
            image,
            scope,
            args: Vec::new(),
            has_cmd: false,
        };
        if state.env("PATH").is_none() {
            state.set_env("PATH", DEFAULT_PATH.to_owned());
        }
        state
    }

    /// A stage on `scratch`.
    #[must_use]
    pub fn scratch(architecture: &str, os: &str, scope: Scope) -> Self {
        let mut image = ImageConfig {
            architecture: architecture.to_owned(),
            os: os.to_owned(),
            ..ImageConfig::default()
        };
        "/".clone_into(&mut image.config.working_dir);
        Self::start(image, scope)
    }

    /// A stage on the end of this one: variables are inherited, ONBUILD triggers are not (they are
    /// for those who build on the image).
    #[must_use]
    pub fn derive(mut self) -> Self {
        self.has_cmd = false;
        self.image.config.other.remove("OnBuild");
        self
    }

    /// Applies what the instruction says about the image, and returns the history's text for it.
    ///
    /// # Errors
    /// [`StateError`], always of class user.
    pub fn apply(&mut self, instruction: &Instruction) -> Result<String, StateError> {
        metadata::apply(self, instruction)
    }

    /// A variable's value: ENV first, then ARG.
    #[must_use]
    pub fn lookup(&self, name: &str) -> Option<String> {
        self.env(name).map(str::to_owned).or_else(|| {
            let arg = self.args.iter().find(|arg| arg.name == name)?;
            arg.value.clone()
        })
    }

    /// The word with its variables replaced and quotes removed.
    ///
    /// # Errors
    /// [`StateError::Expand`].
    pub fn expand(&self, word: &Word) -> Result<String, StateError> {
        words::expand(word, self.scope.escape, &|name| self.lookup(name)).map_err(|source| {
            StateError::Expand {
                word: word.0.clone(),
                source,
            }
        })
    }

    /// [`Self::expand`] for each.
    ///
    /// # Errors
    /// [`StateError::Expand`] of the first that fails.
    pub fn expand_all(&self, words: &[Word]) -> Result<Vec<String>, StateError> {
        words.iter().map(|word| self.expand(word)).collect()
    }

    /// The word with its variables replaced, split at blanks outside quotes.
    fn split(&self, word: &Word) -> Result<Vec<String>, StateError> {
        words::split(word, self.scope.escape, &|name| self.lookup(name)).map_err(|source| {
            StateError::Expand {
                word: word.0.clone(),
                source,
            }
        })
    }

    /// The content of a file that COPY or ADD holds inline: variables replaced unless its delimiter
    /// was quoted, quotes kept.
    ///
    /// # Errors
    /// [`StateError::Expand`].
    pub fn inline_file(&self, heredoc: &Heredoc) -> Result<String, StateError> {
        if !heredoc.expand {
            return Ok(heredoc.body().into_owned());
        }
        // Whatever the file's own escape is, as in a shell.
        words::expand_text(&heredoc.body(), '\\', &|name| self.lookup(name)).map_err(|source| {
            StateError::Expand {
                word: format!("<<{}", heredoc.name),
                source,
            }
        })
    }

    /// The environment of a RUN: the image's, then ARGs in scope, then proxies from build
    /// arguments. A name occurs once; the first that sets it wins.
    #[must_use]
    pub fn run_environment(&self) -> Vec<(String, String)> {
        let mut environment: Vec<(String, String)> = Vec::new();
        let mut add = |name: &str, value: &str| {
            if !environment.iter().any(|(known, _)| known == name) {
                environment.push((name.to_owned(), value.to_owned()));
            }
        };
        for variable in self.image.config.env.iter().flatten() {
            let (name, value) = variable.split_once('=').unwrap_or((variable, ""));
            add(name, value);
        }
        for arg in &self.args {
            if let Some(value) = &arg.value {
                add(&arg.name, value);
            }
        }
        for (name, value) in &self.scope.build_args {
            if is_proxy(name) {
                let upper = name.to_ascii_uppercase();
                add(&upper, value);
                add(&upper.to_ascii_lowercase(), value);
            }
        }
        environment
    }

    /// What a RUN executes.
    #[must_use]
    pub fn command_line(&self, command: &CommandForm, heredocs: &[Heredoc]) -> RunCommand {
        command::command_line(&self.shell(), command, heredocs)
    }

    /// SHELL, or `/bin/sh -c`.
    #[must_use]
    pub fn shell(&self) -> Vec<String> {
        let shell = self.extension_strings("Shell");
        if shell.is_empty() {
            vec!["/bin/sh".to_owned(), "-c".to_owned()]
        } else {
            shell
        }
    }

    /// The working directory, absolute.
    #[must_use]
    pub fn workdir(&self) -> &str {
        match self.image.config.working_dir.as_str() {
            "" => "/",
            workdir => workdir,
        }
    }

    /// USER as the image has it; empty is root.
    #[must_use]
    pub fn user(&self) -> &str {
        &self.image.config.user
    }

    fn env(&self, name: &str) -> Option<&str> {
        self.image.config.env.iter().flatten().find_map(|variable| {
            let (known, value) = variable.split_once('=').unwrap_or((variable, ""));
            (known == name).then_some(value)
        })
    }

    fn set_env(&mut self, name: &str, value: String) {
        let variables = self.image.config.env.get_or_insert_default();
        let variable = format!("{name}={value}");
        let known = variables
            .iter_mut()
            .find(|known| known.split_once('=').map_or(known.as_str(), |(n, _)| n) == name);
        match known {
            Some(known) => *known = variable,
            None => variables.push(variable),
        }
    }

    fn declare(&mut self, declaration: &ArgDeclaration) -> Result<(), StateError> {
        let value = arg_value(declaration, &self.scope, |word| self.expand(word))?;
        let known = self
            .args
            .iter_mut()
            .find(|arg| arg.name == declaration.name);
        match known {
            // a bare repetition takes nothing away
            Some(arg) => arg.value = value.or_else(|| arg.value.take()),
            None => self.args.push(Arg {
                name: declaration.name.clone(),
                value,
            }),
        }
        Ok(())
    }

    fn extension_strings(&self, key: &str) -> Vec<String> {
        extension_strings(&self.image, key)
    }
}

/// True for a build argument that every RUN sees without an ARG.
pub(crate) fn is_proxy(name: &str) -> bool {
    PROXY_ARGS.contains(&name.to_ascii_uppercase().as_str())
}

/// What an image's ONBUILD asks of stages that start from it.
#[must_use]
pub fn triggers(image: &ImageConfig) -> Vec<String> {
    extension_strings(image, "OnBuild")
}

fn extension_strings(image: &ImageConfig, key: &str) -> Vec<String> {
    match image.config.other.get(key) {
        Some(Value::Array(values)) => values
            .iter()
            .filter_map(|value| value.as_str().map(str::to_owned))
            .collect(),
        Some(_) | None => Vec::new(),
    }
}

/// An ARG's value: from outside, else its default, else the global of its name.
pub(crate) fn arg_value<E>(
    declaration: &ArgDeclaration,
    scope: &Scope,
    expand: impl FnOnce(&Word) -> Result<String, E>,
) -> Result<Option<String>, E> {
    if let Some(value) = scope.build_args.get(&declaration.name) {
        return Ok(Some(value.clone()));
    }
    match &declaration.default {
        Some(default) => expand(default).map(Some),
        None => Ok(scope.globals.get(&declaration.name).cloned()),
    }
}

#[cfg(test)]
mod tests;
