//! What does a RUN execute?

use crate::containerfile::{CommandForm, Heredoc, Word, words};

/// Where a script with a `#!` line appears to the step.
const SCRIPT_DIRECTORY: &str = "/dev/pipes";

/// A program with its arguments, and the files that only this step sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunCommand {
    /// Program and arguments, not empty.
    pub argv: Vec<String>,
    /// Executable files by absolute path.
    pub files: Vec<(String, Vec<u8>)>,
}

/// A heredoc that is the whole command is a script: run by its `#!` line, else by the shell. Any
/// other heredoc is the shell's to read, so it gets the line and the bodies below it.
pub(super) fn command_line(
    shell: &[String],
    command: &CommandForm,
    heredocs: &[Heredoc],
) -> RunCommand {
    let line = match command {
        CommandForm::Exec(argv) => {
            return RunCommand {
                argv: argv.clone(),
                files: Vec::new(),
            };
        }
        CommandForm::Shell(line) => line,
    };
    if let [only] = heredocs
        && is_bare_heredoc(line)
    {
        let body = only.body().into_owned();
        if body.starts_with("#!") {
            let path = format!("{SCRIPT_DIRECTORY}/{}", only.name);
            return RunCommand {
                argv: vec![path.clone()],
                files: vec![(path, body.into_bytes())],
            };
        }
        return with_shell(shell, body);
    }
    let mut script = line.clone();
    for heredoc in heredocs {
        script.push('\n');
        script.push_str(&heredoc.content);
        script.push_str(&heredoc.name);
    }
    with_shell(shell, script)
}

fn with_shell(shell: &[String], script: String) -> RunCommand {
    let mut argv = shell.to_vec();
    argv.push(script);
    RunCommand {
        argv,
        files: Vec::new(),
    }
}

/// True for `<<EOF` and nothing else; its name may have blanks in quotes, and a descriptor's number before it.
fn is_bare_heredoc(line: &str) -> bool {
    let word = line.trim_matches(|c: char| c.is_whitespace() || c.is_ascii_digit());
    let Some(name) = word.strip_prefix("<<") else {
        return false;
    };
    let name = Word(name.trim_start_matches('-').to_owned());
    let words = words::split(&name, '\\', &|_| None);
    !name.0.contains('<') && words.is_ok_and(|words| words.len() == 1)
}
