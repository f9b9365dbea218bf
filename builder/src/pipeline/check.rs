//! What in this Containerfile does this builder not do? Said before anything runs; pure.

use super::BuildError;
use super::stage::is_url;
use crate::containerfile::graph::BuildGraph;
use crate::containerfile::{Containerfile, Instruction, Located, Word};

/// Refuses the first instruction of a needed stage that can't be carried out.
pub fn supported(file: &Containerfile, graph: &BuildGraph) -> Result<(), BuildError> {
    for stage in &graph.stages {
        for located in &file.stages[stage.index].instructions {
            if let Some((what, mark)) = unsupported(&located.value) {
                let (column, source_line) = pointer(located, &mark);
                return Err(BuildError::Unsupported {
                    place: file.place(&located.location),
                    column,
                    what: what.to_owned(),
                    source_line,
                });
            }
        }
    }
    Ok(())
}

/// Refuses the first RUN of a needed stage.
pub fn without_steps(
    file: &Containerfile,
    graph: &BuildGraph,
    why: &str,
) -> Result<(), BuildError> {
    let stages = graph.stages.iter().map(|stage| &file.stages[stage.index]);
    let mut instructions = stages.flat_map(|stage| &stage.instructions);
    let step = instructions.find(|located| matches!(located.value, Instruction::Run(_)));
    step.map_or(Ok(()), |located| {
        Err(BuildError::NoSteps {
            place: file.place(&located.location),
            text: pointer(located, "RUN").1,
            why: why.to_owned(),
        })
    })
}

/// What is not supported, and the text that marks its place.
fn unsupported(instruction: &Instruction) -> Option<(&'static str, String)> {
    let transfer = match instruction {
        Instruction::Add(transfer) => transfer,
        Instruction::Copy(transfer) if transfer.from.is_none() => {
            let remote = |source: &&Word| is_url(&source.0) || is_git(&source.0);
            let source = transfer.sources.iter().find(remote)?;
            return Some(("COPY of a URL, which ADD takes,", source.0.clone()));
        }
        _ => return None,
    };
    if transfer.keep_git_dir {
        return Some(("ADD --keep-git-dir", "--keep-git-dir".to_owned()));
    }
    let git = transfer.sources.iter().find(|source| is_git(&source.0))?;
    Some(("ADD of a git repository", git.0.clone()))
}

/// As BuildKit tells a repository from a file.
pub(super) fn is_git(source: &str) -> bool {
    let schemes = ["git://", "git@", "ssh://"];
    let path = source.split(['#', '?']).next().unwrap_or_default();
    let is_web = is_url(source) && path.ends_with(".git");
    is_web || schemes.iter().any(|scheme| source.starts_with(scheme))
}

/// The column of `mark`, and the line to show it in.
fn pointer(located: &Located<Instruction>, mark: &str) -> (usize, String) {
    let text = &located.location.text;
    let column = text
        .find(mark)
        .map_or(1, |byte| text[..byte].chars().count() + 1);
    let line: String = text.replace('\t', " ").chars().take(200).collect();
    (column.min(200), line)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::containerfile::graph::{PlanOptions, Platform, plan};
    use crate::containerfile::parse::parse;

    fn refused(text: &str) -> Option<String> {
        let file = parse(text, "Containerfile").unwrap();
        let options = PlanOptions {
            target: None,
            build_args: Default::default(),
            platform: Platform::native(),
            build_platform: Platform::native(),
            context_names: Default::default(),
        };
        let graph = plan(&file, &options).unwrap();
        supported(&file, &graph)
            .err()
            .map(|error| error.to_string())
    }

    #[test]
    fn what_is_not_done_is_refused_with_its_place() {
        for (text, expected) in [
            (
                "FROM scratch\nCOPY --chown=1:1 a b\nADD https://example.com/x.git.txt /x\n",
                None,
            ),
            (
                "FROM scratch\n\nADD --chown=1 https://example.com/x.git#main /x\n",
                Some(
                    "Containerfile, line 3, column 15: ADD of a git repository is not supported\n  \
                     ADD --chown=1 https://example.com/x.git#main /x\n                ^",
                ),
            ),
            (
                "FROM scratch\nADD github.com/x/y /x\nCOPY --from=x https://x/y /z\n",
                None,
            ),
            (
                "FROM scratch\nCOPY a https://example.com/x /y\n",
                Some(
                    "Containerfile, line 2, column 8: COPY of a URL, which ADD takes, is not supported\n  \
                     COPY a https://example.com/x /y\n         ^",
                ),
            ),
            (
                "FROM scratch AS unused\nADD git@example.com:x.git /x\nFROM scratch\n",
                None,
            ),
        ] {
            assert_eq!(refused(text).as_deref(), expected, "{text}");
        }
    }
}
