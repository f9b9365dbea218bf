//! How does a RUN go? Its mounts, its command, its last words.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Component, Path, PathBuf};

use super::cache::{Cache, Wanted};
use super::{Current, Stages, StepError, make_folder};
use crate::containerfile::Run;
use crate::containerfile::graph::Source;
use crate::containerfile::mounts::{InvalidMount, Mount, MountFlag, MountKind};
use crate::copy::clean;
use crate::progress::Event;
use crate::root::Root;
use crate::sandbox::{Access, ExitStatus, MountSpec, RunError, RunSpec, StepMount, run};
use crate::shortage::Watch;
use crate::stop::Stop;

/// Lines of a failed command that its report shows.
const LAST_LINES: usize = 20;
/// Where a secret without a target appears.
const SECRETS_DIRECTORY: &str = "/run/secrets";

/// What the mounts of one RUN come to.
#[derive(Default)]
struct Prepared {
    specs: Vec<MountSpec>,
    variables: Vec<(String, String)>,
    /// By key, with the mounts that show it.
    caches: BTreeMap<String, (Wanted, Vec<usize>)>,
}

impl Prepared {
    /// Makes the caches known to their mounts; they are to be held while the step runs.
    fn open_caches(&mut self, folder: &Path, stop: &Stop) -> Result<Vec<Cache>, StepError> {
        let mut held = Vec::new();
        for (wanted, mounts) in self.caches.values() {
            let cache = wanted.open(folder, stop)?;
            for mount in mounts {
                if let StepMount::Bind { source, .. } = &mut self.specs[*mount].kind {
                    source.clone_from(&cache.directory);
                }
            }
            held.push(cache);
        }
        Ok(held)
    }
}

impl Stages<'_> {
    pub(super) fn run(
        &self,
        current: &mut Current<'_>,
        run_instruction: &Run,
        sources: &[Source],
    ) -> Result<(), StepError> {
        let Run {
            command,
            heredocs,
            mounts,
            network,
        } = run_instruction;
        let root = self.root(current)?;
        let workdir = current.state.workdir().to_owned();
        root.create_directories(Path::new(&workdir), (0, 0))?;
        let mut prepared = Prepared {
            specs: self.spec.volumes.clone(),
            ..Prepared::default()
        };
        for (mount, source) in mounts.iter().zip(sources) {
            self.mount(current, mount, source, &mut prepared)?;
        }
        let caches = match &self.spec.caches {
            Some(directory) => directory.clone(),
            None => self.spec.scratch.join("caches"),
        };
        let caches = prepared.open_caches(&caches, self.stop)?;
        let scratch = current.scratch.join("steps");
        make_folder(&scratch)?;
        let command = current.state.command_line(command, heredocs);
        let mut env = current.state.run_environment();
        for (name, value) in prepared.variables {
            env.retain(|(known, _)| *known != name);
            env.push((name, value));
        }
        let spec = RunSpec {
            root: root.path(),
            scratch: &scratch,
            argv: command.argv,
            env,
            workdir: &workdir,
            user: current.state.user(),
            mounts: prepared.specs,
            network: *network,
            stdin: None,
            files: command
                .files
                .into_iter()
                .map(|(path, content)| (path.into(), content))
                .collect(),
            timeout: self.spec.step_timeout,
            stop: self.stop,
        };
        let number = current.number;
        let mut last = VecDeque::with_capacity(LAST_LINES);
        let watch = Watch::begin(&self.spec.scratch);
        let ended = run(&spec, &mut |line| {
            self.progress.tell(&Event::Output { number, line });
            if last.len() == LAST_LINES {
                last.pop_front();
            }
            last.push_back(line.to_owned());
        });
        drop(caches);
        let output = Vec::from(last);
        match ended {
            Ok(status) if status.is_success() => Ok(()),
            Ok(status) => Err(match watch.end(&output) {
                None => StepError::Exit { status, output },
                Some(source) => StepError::Short {
                    status,
                    output,
                    source,
                },
            }),
            // Not only the command, but what holds it: then it can't say how it ended.
            Err(RunError::Killed(how)) => Err(match watch.end(&output) {
                None => RunError::Killed(how).into(),
                Some(source) => StepError::Short {
                    status: ExitStatus::Signaled(libc::SIGKILL),
                    output,
                    source,
                },
            }),
            Err(error) => Err(error.into()),
        }
    }

    fn mount(
        &self,
        current: &mut Current<'_>,
        mount: &MountFlag,
        source: &Source,
        prepared: &mut Prepared,
    ) -> Result<(), StepError> {
        let Mount {
            kind,
            target,
            read_write,
        } = mount.mount(|word| current.state.expand(word).map_err(StepError::from))?;
        let inside = |target: Option<String>| {
            let target = Path::new(current.state.workdir()).join(target.unwrap_or_default());
            let is_root = |part| matches!(part, Component::RootDir | Component::CurDir);
            match target.components().all(is_root) {
                false => Ok(target),
                true => Err(InvalidMount {
                    text: mount.text.clone(),
                    wanted: "it would hide the whole root file system; say target=…".to_owned(),
                }),
            }
        };
        match kind {
            MountKind::Bind { source: path } => {
                let path = path.unwrap_or_else(|| "/".to_owned());
                let root = Root::open(&self.visible(source)?)?;
                let access = match read_write {
                    Some(true) => Access::Discard,
                    Some(false) | None => Access::ReadOnly,
                };
                let kind = StepMount::Bind {
                    source: root.resolve(Path::new(&path))?,
                    access,
                };
                let target = inside(target)?;
                prepared.specs.push(MountSpec { target, kind });
            }
            MountKind::Tmpfs { size_bytes } => {
                let kind = StepMount::Tmpfs { size_bytes };
                let target = inside(target)?;
                prepared.specs.push(MountSpec { target, kind });
            }
            MountKind::Cache {
                id,
                source: path,
                sharing,
                mode,
                uid,
                gid,
            } => {
                // as it is written, whatever the working directory is
                let id = id
                    .filter(|id| !id.is_empty())
                    .unwrap_or_else(|| cleaned(target.as_deref().unwrap_or_default()));
                let target = inside(target)?;
                let path = path.unwrap_or_else(|| "/".to_owned());
                let filled = match source {
                    Source::Empty => None,
                    source => Some((Root::open(&self.visible(source)?)?, path)),
                };
                let wanted = Wanted {
                    id,
                    owner: (uid.unwrap_or(0), gid.unwrap_or(0)),
                    mode: mode.unwrap_or(0o755),
                    sharing,
                    filled,
                };
                let cache = prepared.caches.entry(wanted.key());
                let (_, mounts) = cache.or_insert((wanted, Vec::new()));
                mounts.push(prepared.specs.len());
                let kind = StepMount::Bind {
                    // Known once it is open.
                    source: PathBuf::new(),
                    access: match read_write {
                        Some(false) => Access::ReadOnly,
                        Some(true) | None => Access::ReadWrite,
                    },
                };
                prepared.specs.push(MountSpec { target, kind });
            }
            MountKind::Secret {
                id,
                required,
                mode,
                uid,
                gid,
                env,
            } => {
                let last = |path: &String| path.rsplit('/').next().map(str::to_owned);
                let id = id.or_else(|| target.as_ref().and_then(last));
                let id = id.or_else(|| env.clone()).unwrap_or_default();
                let Some(secret) = self.spec.secrets.get(&id) else {
                    return match required {
                        true => Err(StepError::NoSecret { id }),
                        false => Ok(()),
                    };
                };
                if let Some(variable) = env {
                    let text = String::from_utf8(secret.0.clone());
                    let text = text.map_err(|_| StepError::SecretIsNoText {
                        id: id.clone(),
                        variable: variable.clone(),
                    })?;
                    prepared.variables.push((variable.clone(), text));
                    if target.is_none() {
                        return Ok(());
                    }
                }
                let target = match target {
                    target @ Some(_) => inside(target)?,
                    None => Path::new(SECRETS_DIRECTORY).join(last(&id).unwrap_or_default()),
                };
                let kind = StepMount::File {
                    content: secret.0.clone(),
                    mode: mode.unwrap_or(0o400),
                    uid: uid.unwrap_or(0),
                    gid: gid.unwrap_or(0),
                };
                prepared.specs.push(MountSpec { target, kind });
            }
        }
        Ok(())
    }
}

/// The path without `.`, `..` and slashes that change nothing.
fn cleaned(path: &str) -> String {
    let clean = clean(path).to_string_lossy().into_owned();
    match path.starts_with('/') {
        true => format!("/{clean}"),
        false => clean,
    }
}
