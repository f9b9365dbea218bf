//! What in this Containerfile does this version not do? Said before anything runs; pure.

use super::BuildError;
use crate::containerfile::graph::BuildGraph;
use crate::containerfile::{Containerfile, Instruction, Located, MountKind, Transfer};

/// Refuses the first instruction of a needed stage that this version can't carry out.
pub fn supported(file: &Containerfile, graph: &BuildGraph) -> Result<(), BuildError> {
    for stage in &graph.stages {
        for located in &file.stages[stage.index].instructions {
            if let Some((what, mark)) = unsupported(&located.value) {
                return Err(BuildError::Unsupported {
                    file: file.file.clone(),
                    line: located.location.line,
                    column: column(located, mark),
                    what: what.to_owned(),
                });
            }
        }
    }
    Ok(())
}

/// What is not supported, and the text that marks its place.
fn unsupported(instruction: &Instruction) -> Option<(&'static str, &'static str)> {
    match instruction {
        Instruction::Run(run) => run.mounts.iter().find_map(|mount| match mount.kind {
            MountKind::Bind { .. } | MountKind::Tmpfs { .. } => None,
            MountKind::Cache { .. } => Some(("RUN --mount=type=cache", "--mount=type=cache")),
            MountKind::Secret { .. } => Some(("RUN --mount=type=secret", "--mount=type=secret")),
        }),
        Instruction::Copy(transfer) => transfer_flag(transfer),
        Instruction::Add(transfer) => {
            let is_remote = |text: &str| {
                ["http://", "https://", "git://", "git@", "ssh://"]
                    .iter()
                    .any(|scheme| text.starts_with(scheme))
            };
            if transfer.sources.iter().any(|source| is_remote(&source.0)) {
                return Some(("ADD of a remote source", "://"));
            }
            transfer_flag(transfer)
        }
        Instruction::Arg(_)
        | Instruction::Env(_)
        | Instruction::Label(_)
        | Instruction::Workdir(_)
        | Instruction::User(_)
        | Instruction::Shell(_)
        | Instruction::Cmd(_)
        | Instruction::Entrypoint(_)
        | Instruction::Expose(_)
        | Instruction::StopSignal(_)
        | Instruction::Volume(_)
        | Instruction::Maintainer(_)
        | Instruction::Healthcheck(_)
        | Instruction::Onbuild(_) => None,
    }
}

fn transfer_flag(transfer: &Transfer) -> Option<(&'static str, &'static str)> {
    [
        (transfer.parents, "--parents"),
        (transfer.link, "--link"),
        (transfer.checksum.is_some(), "--checksum"),
        (transfer.keep_git_dir, "--keep-git-dir"),
        (transfer.unpack.is_some(), "--unpack"),
    ]
    .into_iter()
    .find_map(|(given, flag)| given.then_some((flag, flag)))
}

fn column(located: &Located<Instruction>, mark: &str) -> usize {
    let text = &located.location.text;
    text.find(mark)
        .map_or(1, |byte| text[..byte].chars().count() + 1)
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
    fn what_comes_later_is_refused_with_its_place() {
        for (text, expected) in [
            (
                "FROM scratch\nCOPY --chown=1:1 a b\nRUN --mount=type=bind,target=/x true\n",
                None,
            ),
            (
                "FROM scratch\nCOPY --parents a b\n",
                Some("Containerfile, line 2, column 6: --parents is not supported yet"),
            ),
            (
                "FROM scratch\n\nRUN --network=none --mount=type=secret,id=x true\n",
                Some(
                    "Containerfile, line 3, column 20: RUN --mount=type=secret is not supported yet",
                ),
            ),
            (
                "FROM scratch\nADD https://example.com/x /x\n",
                Some(
                    "Containerfile, line 2, column 10: ADD of a remote source is not supported yet",
                ),
            ),
            (
                "FROM scratch AS unused\nCOPY --link a b\nFROM scratch\n",
                None,
            ),
        ] {
            assert_eq!(refused(text).as_deref(), expected, "{text}");
        }
    }
}
