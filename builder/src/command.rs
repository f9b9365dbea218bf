//! How does a command go from its arguments to an exit code? Everything that touches the machine before and after the pipeline.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io::{self, IsTerminal as _};
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use strata_builder::containerfile::graph::Platform;
use strata_builder::contract::BuildReport;
use strata_builder::error::{Class, Classify};
use strata_builder::layer::LayerOptions;
use strata_builder::layout::{Layout, Location};
use strata_builder::pipeline::target::Target;
use strata_builder::pipeline::{self, BuildSpec, LayerPer, Secret};
use strata_builder::progress::{self, Format, Progress};
use strata_builder::registry::retry::{Bounds, DEFAULT_BOUNDS};
use strata_builder::registry::{Options, Registry};
use strata_builder::sandbox::{Entered, MountSpec, StepMount, choose, enter, no_steps, probe};

use crate::arguments::{Build, Doctor, Layers, ProgressChoice, PushTarget, SecretSource, Volume};
use crate::ending::{Ending, failure, report_of};
use crate::streams::{self, complain};
use crate::{places, signals};

/// Builds; the exit code says who can end a failure.
pub fn build(build: Build) -> ExitCode {
    let (report_path, digest_path) = (build.report.clone(), build.digestfile.clone());
    for path in [&report_path, &digest_path].into_iter().flatten() {
        // Not after an hour's build; what is there stays until then.
        if let Err(error) = fs::File::options().append(true).create(true).open(path) {
            complain(&format!("error: write {}: {error}", path.display()));
            return ExitCode::from(Class::of_file(&error).exit_code());
        }
    }
    let ending = Arc::new(Ending::new(report_path, digest_path));
    let (report, told) = match prepare_and_build(build, &ending) {
        Ok((report, told)) => (report, told),
        Err(error) => {
            let message = format!("{error:#}");
            let failed = failure(class_of(&error), message.clone());
            (report_of(failed), Some(message))
        }
    };
    ExitCode::from(ending.tell(&report, told.as_deref()))
}

/// The class of a failure before the pipeline.
#[derive(Debug, thiserror::Error)]
#[error("{1}")]
pub struct Classed(pub Class, pub String);

/// A file's failure has the file's class; whatever else has none is a wrong call.
fn class_of(error: &anyhow::Error) -> Class {
    if let Some(classed) = error.downcast_ref::<Classed>() {
        return classed.0;
    }
    let file = error.chain().find_map(|cause| cause.downcast_ref());
    file.map_or(Class::CONTRACT, Class::of_file)
}

fn prepare_and_build(
    build: Build,
    ending: &Arc<Ending>,
) -> anyhow::Result<(BuildReport, Option<String>)> {
    let format = match build.progress {
        ProgressChoice::Auto if io::stderr().is_terminal() => Format::Live,
        ProgressChoice::Tty if io::stderr().is_terminal() => Format::Live,
        ProgressChoice::Tty => {
            anyhow::bail!("--progress tty: standard error is no terminal; use plain")
        }
        ProgressChoice::Auto | ProgressChoice::Plain => Format::Plain,
        ProgressChoice::Json => Format::Json,
    };
    let containerfile = containerfile(&build)?;
    let temporary = match build.scratch {
        Some(_) => None,
        None => Some(
            tempfile::Builder::new()
                .prefix("strata-")
                .tempdir()
                .context("make a scratch folder")?,
        ),
    };
    let scratch = match (&build.scratch, &temporary) {
        (Some(scratch), _) => scratch.clone(),
        (None, Some(temporary)) => temporary.path().to_owned(),
        (None, None) => std::env::temp_dir(),
    };
    let mut work = tempfile::Builder::new()
        .prefix("build-")
        .tempdir_in(&scratch)
        .with_context(|| {
            format!(
                "make a folder in the scratch directory {}",
                scratch.display()
            )
        })?;
    work.disable_cleanup(build.leave_scratch);
    let canonical = |path| fs::canonicalize(path).context("find the scratch directory");
    let scratch = canonical(work.path())?;
    if let Some(temporary) = &temporary {
        ending.makes(&canonical(temporary.path())?);
    }
    if !build.leave_scratch {
        ending.makes(&scratch);
    }
    let push_credentials = places::credentials(build.authfile.as_deref())?;
    let pull_credentials = match &build.pull_authfile {
        Some(path) => places::credentials(Some(path))?,
        None => push_credentials.clone(),
    };
    let ca_bundles = build
        .ca_bundles
        .iter()
        .map(|path| fs::read(path).with_context(|| format!("read {}", path.display())))
        .collect::<Result<Vec<_>, _>>()?;
    let certificates = places::certificates(build.certs_dir.as_deref())?;
    let rules = places::rules(build.registries_conf.as_deref())?;
    let policy = places::policy(build.signature_policy.as_deref())?;
    let layer_per = match build.layers {
        Layers::Stage => LayerPer::Stage,
        Layers::Step => LayerPer::Step,
    };
    let secrets = secrets(&build.secrets)?;
    let volumes = volumes(&build.volumes)?;
    let build_args = build_args(&build);
    // Namespaces belong to threads, so this comes before the runtime starts any.
    let (entered, no_steps) = enter_tier(&build.tier, &scratch)?;
    let registry = |credentials| {
        Registry::new(Options {
            credentials,
            plain_http: build.plain_http.clone(),
            ca_bundles: ca_bundles.clone(),
            certificates: certificates.clone(),
            rules: rules.clone(),
            policy: policy.clone(),
            bounds: build.retry_for.map(|patience| Bounds {
                patience,
                ..DEFAULT_BOUNDS
            }),
            idle_timeout: build.idle_timeout,
        })
    };
    let push = match build.push {
        PushTarget(Location::Registry(reference)) => {
            let registry = registry(push_credentials).map_err(|error| classed(&error))?;
            let allowed = registry.check_blocked(&reference);
            allowed.map_err(|error| classed(&error))?;
            Target::registry(registry, &reference)
        }
        PushTarget(Location::Layout { directory, tag }) => {
            let layout = Layout::create(&absolute(&directory)?).map_err(|error| classed(&error))?;
            Target::layout(layout, tag)
        }
    };
    let spec = BuildSpec {
        containerfile,
        generated_lines: build.generated_lines,
        context: absolute(&build.context)?,
        target: build.target,
        build_args,
        contexts: build
            .build_contexts
            .into_iter()
            .map(|context| (context.name, context.source))
            .collect(),
        labels: build
            .labels
            .into_iter()
            .map(|pair| (pair.0, pair.1))
            .collect(),
        annotations: build
            .annotations
            .into_iter()
            .map(|pair| (pair.0, pair.1))
            .collect(),
        secrets,
        volumes,
        caches: build.cache_dir.as_deref().map(absolute).transpose()?,
        base_rootfs: build.base_rootfs,
        push,
        pull: registry(pull_credentials).map_err(|error| classed(&error))?,
        scratch,
        layers: LayerOptions {
            source_date_epoch: build.source_date_epoch,
            compression: build.compression,
        },
        layer_per,
        step_timeout: build.step_timeout,
        no_steps,
        build_uid: build.build_uid,
        architecture: Platform::native().architecture,
        interrupt: Arc::clone(ending.interrupt()),
    };
    let progress = Arc::new(Progress::new(format, Box::new(io::stderr())));
    progress::listen(&progress);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("start the runtime")?;
    ending.begins(entered, &progress);
    let of_signals = Arc::clone(ending);
    signals::listen(ending.interrupt(), move |by| of_signals.come_soon(by))
        .context("listen for signals")?;
    let (report, error) = runtime.block_on(pipeline::build(&spec, entered, &progress));
    let told = error.map(|error| strata_builder::error::chain(&error));
    ending.reaches(&report, told.as_deref());
    Ok((report, told))
}

fn containerfile(build: &Build) -> anyhow::Result<PathBuf> {
    if let Some(path) = &build.containerfile {
        return absolute(path);
    }
    let candidates = ["Containerfile", "Dockerfile"].map(|name| build.context.join(name));
    match candidates.iter().find(|path| path.is_file()) {
        Some(path) => absolute(path),
        None => anyhow::bail!(
            "there is neither Containerfile nor Dockerfile in {}; name one with --containerfile",
            build.context.display()
        ),
    }
}

fn absolute(path: &Path) -> anyhow::Result<PathBuf> {
    std::path::absolute(path).with_context(|| format!("find {}", path.display()))
}

/// Without a source the variable of its own name, or else the file, as Docker has it.
fn secrets(sources: &[SecretSource]) -> anyhow::Result<BTreeMap<String, Secret>> {
    let mut secrets = BTreeMap::new();
    for SecretSource { id, file, variable } in sources {
        let from_variable = |name: &str| std::env::var_os(name).map(OsString::into_vec);
        let content = match (file, variable) {
            (Some(file), _) => None.ok_or(file.as_path()),
            (None, Some(name)) => match from_variable(name) {
                Some(value) => Ok(value),
                None => anyhow::bail!("the secret {id}: there is no variable {name}"),
            },
            (None, None) => from_variable(id).ok_or(Path::new(id)),
        };
        let content = match content {
            Ok(content) => content,
            Err(file) => fs::read(file)
                .with_context(|| format!("read the secret {id} from {}", file.display()))?,
        };
        secrets.insert(id.clone(), Secret(content));
    }
    Ok(secrets)
}

fn volumes(volumes: &[Volume]) -> anyhow::Result<Vec<MountSpec>> {
    let mut mounts = Vec::new();
    for volume in volumes {
        let source = match fs::canonicalize(&volume.source) {
            Ok(source) => source,
            Err(error) if volume.is_optional && error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => {
                let source = volume.source.display();
                return Err(error).with_context(|| format!("find the volume {source}"));
            }
        };
        mounts.push(MountSpec {
            target: volume.target.clone(),
            kind: StepMount::Bind {
                source,
                access: volume.access,
            },
        });
    }
    Ok(mounts)
}

/// A bare name that the environment doesn't have says nothing.
fn build_args(build: &Build) -> BTreeMap<String, String> {
    let value = |name: &str| std::env::var(name).ok();
    build
        .build_args
        .iter()
        .filter_map(|arg| {
            Some((
                arg.name.clone(),
                arg.value.clone().or_else(|| value(&arg.name))?,
            ))
        })
        .collect()
}

/// Only trying tells what a machine allows. The second part says why no step can run, if that is so.
fn enter_tier(requested: &str, scratch: &Path) -> anyhow::Result<(Entered, Option<String>)> {
    let probed = probe(scratch).map_err(|error| classed(&error))?;
    let tier = choose(requested, &probed).map_err(|error| classed(&error))?;
    let entered = enter(tier).map_err(|error| classed(&error))?;
    Ok((entered, no_steps(requested, tier, &probed)))
}

fn classed<E: std::error::Error + Classify>(error: &E) -> anyhow::Error {
    Classed(error.class(), strata_builder::error::chain(error)).into()
}

/// Prints what this machine allows.
pub fn doctor(doctor: Doctor) -> ExitCode {
    let scratch = doctor.scratch.unwrap_or_else(std::env::temp_dir);
    if !scratch.is_dir() {
        complain(&format!(
            "error: --scratch {}: there is no such directory",
            scratch.display()
        ));
        return ExitCode::from(Class::CONTRACT.exit_code());
    }
    match probe(&scratch) {
        Ok(probed) => match streams::print(&strata_builder::doctor::doctor(&probed)) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                complain(&format!("error: write to standard output: {error}"));
                ExitCode::from(Class::of_file(&error).exit_code())
            }
        },
        Err(error) => {
            complain(&format!("error: {}", strata_builder::error::chain(&error)));
            ExitCode::from(error.class().exit_code())
        }
    }
}
