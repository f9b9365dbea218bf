//! How does a Containerfile become an image in a registry? The build in order:
//!
//! ```text
//! parse ─► plan ─► resolve ─┬─► images whose files are needed: pulled and unpacked, several layers at once
//!                           ├─► stage by stage: steps on an overlay ─► upper ─┐
//!                           │                      (next step runs meanwhile) ├─► layer ─► upload ─┐
//!                           └─► layers of the base: there, mounted or copied ─────────────────────┼─► config ─► manifest ─► report
//! ```
//!
//! * Where a build only puts files onto an image of an ostree commit, the commit's folders stand for it, and no layer is unpacked (`outline`).
//! * Nothing runs before the whole file is parsed, planned and checked for what this builder doesn't do.
//! * A stage (or, with [`LayerPer::Step`], a step) makes at most one layer, and none if it changed no file.
//! * Stages that need nothing of each other run at the same time, each on a thread of its own; uploads go on beside them. The first failure stops all.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use crate::containerfile::graph::{self, BuildGraph, PlanOptions, Platform};
use crate::containerfile::parse;
use crate::containerfile::{Containerfile, Place};
use crate::contract::{BUILD_UID_ANNOTATION, BuildReport, Outcome, REPORT_VERSION, TAG_ANNOTATION};
use crate::image::Image;
use crate::progress::{Event, Progress, millis};
use crate::sandbox::{Entered, Storage};
use crate::stop::Stop;
use crate::tee::Fed;
use attempt::{Note, inputs};
use bases::{Outside, lowest_base};
use begin::{go_on, start_pulls, tell_where};
use layers::Layers;
use outcome::{Phases, failure, peak_rss_bytes};
use outline::outline;
use stage::{Change, Earlier, Stages};
use target::Target;
use todo::{Todo, ancestors};

mod attempt;
pub mod bases;
mod begin;
mod check;
mod error;
mod layers;
mod outcome;
mod outline;
pub mod report;
mod schedule;
mod spec;
pub mod stage;
pub mod target;
pub mod todo;
mod triggers;

pub use error::BuildError;
pub use spec::{BaseRootfs, BuildSpec, ContextSource, LayerPer, Secret};

/// Builds and pushes; every outcome is a report. The second part is the error behind a failed one. Interrupted, it ends soon: steps are killed, transfers are cut.
pub async fn build(
    spec: &BuildSpec,
    entered: Entered,
    progress: &Arc<Progress>,
) -> (BuildReport, Option<BuildError>) {
    let mut phases = Phases::default();
    let running = run(spec, entered, progress, &mut phases);
    let result = spec.interrupt.or(running).await;
    let result = result.unwrap_or(Err(BuildError::Stopped));
    let result = match (result, spec.interrupt.by()) {
        // Whatever failed then did so for that.
        (Err(_), Some(by)) => Err(BuildError::Interrupted(by)),
        (result, _) => result,
    };
    let (outcome, error) = match result {
        Ok(outcome) => (outcome, None),
        Err(error) => (Outcome::Failed(failure(&error)), Some(error)),
    };
    let mut work = progress.work();
    let push = spec.push.in_registry().map(|(registry, _)| registry);
    for registry in [Some(&spec.pull), push].into_iter().flatten() {
        registry.retries().add_to(&mut work.retries);
    }
    let report = BuildReport {
        version: REPORT_VERSION,
        outcome,
        tier: entered.tier.name().to_owned(),
        phases: phases.finish(),
        peak_rss_bytes: peak_rss_bytes(),
        work,
    };
    (report, error)
}

async fn run(
    spec: &BuildSpec,
    entered: Entered,
    progress: &Arc<Progress>,
    phases: &mut Phases,
) -> Result<Outcome, BuildError> {
    phases.begin("plan");
    let file = read_file(spec)?;
    let graph = plan(spec, &file)?;
    let note = Note::of(spec).map(Arc::new);
    let earlier = match &spec.build_uid {
        Some(uid) => spec.push.earlier_attempt(uid, &spec.architecture).await?,
        None => None,
    };
    let result = match earlier {
        Some(outcome) => {
            if let Outcome::Pushed { digest, .. } = outcome {
                progress.tell(&Event::AlreadyThere {
                    target: spec.push.name(),
                    digest,
                });
            }
            Ok(outcome)
        }
        None => {
            let note = note.as_ref();
            let planned = (file, graph);
            let begun = attempt(spec, entered, progress, phases, planned.clone(), note, true);
            match begun.await {
                Err(BuildError::BeyondOutline) => {
                    // Its stages begin with nothing of the ones before.
                    let scratch = spec.scratch.join("again");
                    let spec = BuildSpec {
                        scratch,
                        ..spec.clone()
                    };
                    attempt(&spec, entered, progress, phases, planned, note, false).await
                }
                result => result,
            }
        }
    };
    if let Some(note) = note {
        match &result {
            Ok(Outcome::Pushed {
                already_there: false,
                ..
            }) => note.delete().await,
            Err(error) if error.may_go_on() => {}
            Ok(_) | Err(_) => note.find_and_delete().await,
        }
    }
    result
}

async fn attempt(
    spec: &BuildSpec,
    entered: Entered,
    progress: &Arc<Progress>,
    phases: &mut Phases,
    (mut file, mut graph): (Containerfile, BuildGraph),
    note: Option<&Arc<Note>>,
    may_outline: bool,
) -> Result<Outcome, BuildError> {
    let mut outside = Outside::default();
    let mut triggered = BTreeSet::new();
    loop {
        outside.resolve(&file, &graph, spec, progress).await?;
        if !triggers::insert(&mut file, &graph, &outside, &mut triggered)? {
            break;
        }
        graph = plan(spec, &file)?;
    }
    for warning in &graph.warnings {
        progress.tell(&Event::Warning { text: warning });
    }
    let inputs = tokio::task::block_in_place(|| match note {
        Some(_) => inputs(spec, &outside).map(Some),
        None => Ok(None),
    })?;
    let note = note.cloned().zip(inputs);
    let left = match &note {
        Some((note, inputs)) => note.find(*inputs).await?,
        None => None,
    };
    let done = left.as_ref().and_then(|left| left.layers.last());
    let todo = Todo::after(&graph, done.map(|done| done.after));
    if may_outline && left.is_none() {
        outline(&mut outside, spec, &file, &graph, &todo).await;
    }
    let planned = stage::Plan {
        spec,
        file: &file,
        graph: &graph,
        outside: &outside,
        todo: &todo,
    };
    let stop = Arc::new(Stop::new().map_err(BuildError::Stop)?);
    let _heeded = spec.interrupt.also_says(&stop);
    let (pulls, fed) = start_pulls(planned, entered, progress);
    let base = base_of_target(&graph, &outside)?;
    let base_layers = ensure_base(spec.push.clone(), base, fed, Arc::clone(progress));
    let base_layers = tokio::spawn(stopping(Arc::clone(&stop), base_layers));
    let needs_files = |index| todo.needs_files(&file, &graph, index);
    let (done, earlier) = match left {
        Some(left) => {
            tell_where(&graph, &left, progress);
            go_on(
                spec,
                left,
                (0..graph.stages.len()).any(needs_files),
                entered,
                progress,
            )
        }
        None => (Vec::new(), Earlier::default()),
    };
    let sent_before = done.len();

    phases.begin("steps");
    let stages = Stages::new(planned, earlier, pulls, entered, progress, &stop);
    let ancestors = ancestors(&graph, graph.target);
    let layers = Layers::after(done, note, Arc::clone(&stop));
    let runtime = tokio::runtime::Handle::current();
    let build = |index: usize| {
        let _known = runtime.enter();
        let in_image = ancestors.contains(&index);
        let name = &graph.stages[index].name;
        let on_change = |change: Change| {
            if in_image {
                layers.start(spec, name, change, progress);
            }
        };
        stages.build(index, &on_change)
    };
    let most = stages_at_once(entered);
    // Blocks this thread only; uploads go on in the runtime's own.
    let built =
        tokio::task::block_in_place(|| schedule::run(todo.needs(&graph), most, &stop, build));
    if built.is_ok() {
        phases.begin("layers");
    }
    // Once one part has failed, the others end soon. They are waited for: what comes next may be the same build once more.
    let layers = both(built, layers.finish().await);
    if layers.is_ok() {
        phases.begin("push");
    }
    let base_bytes = base_layers.await.map_err(BuildError::from).flatten();
    let base_bytes = base_bytes.map_err(|error| match lowest_base(&graph, graph.target) {
        Some(name) if error.is_of_source() => name.told(&file, &graph, error),
        _ => error,
    });
    let (((), layers), mut sent_bytes) = both(layers, base_bytes)?;
    let mut image = base_image(&graph, &outside)?;
    image.config = stages.image_of(graph.target).unwrap_or_default();
    for (index, layer) in layers.into_iter().enumerate() {
        if index >= sent_before {
            sent_bytes += layer.descriptor.size_bytes;
        }
        image.add_layer(layer.descriptor, layer.diff_id);
    }
    if !spec.labels.is_empty() {
        image
            .config
            .config
            .labels
            .get_or_insert_default()
            .extend(spec.labels.clone());
    }
    image.annotations.extend(spec.annotations.clone());
    if let Some(uid) = &spec.build_uid {
        image
            .annotations
            .insert(BUILD_UID_ANNOTATION.to_owned(), uid.clone());
        if let Some(tag) = spec.push.tag() {
            let key = TAG_ANNOTATION.to_owned();
            image.annotations.insert(key, tag.to_owned());
        }
    }
    let assembled = image.assemble(&stages.created)?;
    sent_bytes += assembled.config_descriptor.size_bytes;
    let size_bytes = assembled.size_bytes;
    let digest = spec.push.push_image(assembled).await?;
    progress.tell(&Event::Pushed {
        target: spec.push.name(),
        digest,
        millis: millis(progress.elapsed()),
    });
    let layers = image.layers.len();
    Ok(Outcome::Pushed {
        digest,
        size_bytes,
        layers,
        sent_bytes,
        already_there: false,
    })
}

/// Steps compile, or wait for a network: two even on one processor, and not so many that they only get into each other's way. Where stages share one tree, one.
fn stages_at_once(entered: Entered) -> usize {
    match entered.tier.storage() {
        Storage::Flat => 1,
        Storage::Overlay => std::thread::available_parallelism()
            .map_or(2, |processors| processors.get().clamp(2, 8)),
    }
}

fn read_file(spec: &BuildSpec) -> Result<Containerfile, BuildError> {
    let bytes = read(&spec.containerfile)?;
    let name = spec.containerfile.file_name().map_or_else(
        || "Containerfile".into(),
        |name| name.to_string_lossy().into_owned(),
    );
    let generated = spec.generated_lines;
    let mut file = parse::read(&bytes, &name).map_err(|mut error| {
        let Place { file, line } = Place::of_author(&error.file, error.line, generated);
        (error.file, error.line) = (file, line);
        error
    })?;
    file.generated_lines = generated;
    Ok(file)
}

fn plan(spec: &BuildSpec, file: &Containerfile) -> Result<BuildGraph, BuildError> {
    let platform = Platform {
        architecture: spec.architecture.clone(),
        ..Platform::native()
    };
    let options = PlanOptions {
        target: spec.target.clone(),
        build_args: spec.build_args.clone(),
        platform,
        build_platform: Platform::native(),
        context_names: spec.contexts.keys().cloned().collect(),
    };
    let graph = graph::plan(file, &options)?;
    check::supported(file, &graph)?;
    if let Some(why) = &spec.no_steps {
        check::without_steps(file, &graph, why)?;
    }
    Ok(graph)
}

fn read(path: &Path) -> Result<Vec<u8>, BuildError> {
    std::fs::read(path).map_err(|source| BuildError::ReadFile {
        path: path.to_owned(),
        source,
    })
}

/// The image below the target's lowest ancestor; none on scratch.
fn base_of_target(
    graph: &BuildGraph,
    outside: &Outside,
) -> Result<Option<bases::Base>, BuildError> {
    match lowest_base(graph, graph.target) {
        Some(name) => outside.image(&name).cloned().map(Some),
        None => Ok(None),
    }
}

fn base_image(graph: &BuildGraph, outside: &Outside) -> Result<Image, BuildError> {
    Ok(base_of_target(graph, outside)?
        .map(|base| base.image)
        .unwrap_or_default())
}

/// The work of a part of the build that stops the others when it fails, and is stopped by them.
///
/// # Errors
/// [`BuildError::Stopped`] if another part failed before.
async fn stopping<T>(
    stop: Arc<Stop>,
    work: impl Future<Output = Result<T, BuildError>>,
) -> Result<T, BuildError> {
    let result = stop.or(work).await.unwrap_or(Err(BuildError::Stopped));
    if result.is_err() {
        stop.say();
    }
    result
}

/// What two parts of the build came to; if both failed, the failure of the one that didn't only stop for the other.
fn both<T, U>(
    one: Result<T, BuildError>,
    other: Result<U, BuildError>,
) -> Result<(T, U), BuildError> {
    match (one, other) {
        (Ok(one), Ok(other)) => Ok((one, other)),
        (Err(BuildError::Stopped) | Ok(_), Err(error)) | (Err(error), _) => Err(error),
    }
}

async fn ensure_base(
    target: Target,
    base: Option<bases::Base>,
    fed: Vec<Fed>,
    progress: Arc<Progress>,
) -> Result<u64, BuildError> {
    match base {
        Some(base) => {
            target
                .ensure_layers(&base.resolved.store, &base.image.layers, fed, &progress)
                .await
        }
        None => Ok(0),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn a_part_that_fails_ends_the_others_and_is_what_is_told() {
        let stop = Arc::new(Stop::new().unwrap());
        let failed = std::future::ready(Err::<(), _>(BuildError::BeyondOutline));
        let endless = std::future::pending::<Result<(), BuildError>>();
        let upload = tokio::spawn(stopping(Arc::clone(&stop), endless));
        let failed = stopping(Arc::clone(&stop), failed).await;
        let deadline = Duration::from_secs(60);
        let upload = tokio::time::timeout(deadline, upload).await.unwrap();
        let told = both(upload.unwrap(), failed);
        assert!(matches!(told, Err(BuildError::BeyondOutline)), "{told:?}");
    }

    #[test]
    fn the_failure_of_two_that_is_told_is_the_one_that_stopped_the_other() {
        let of = |failure| match failure {
            "" => Ok(()),
            "stopped" => Err(BuildError::Stopped),
            name => Err(BuildError::StageIsGone { name: name.into() }),
        };
        for (one, other, told) in [
            ("", "", "Ok"),
            ("a", "", "a"),
            ("", "b", "b"),
            ("a", "b", "a"),
            ("a", "stopped", "a"),
            ("stopped", "b", "b"),
            ("stopped", "", "Stopped"),
            ("", "stopped", "Stopped"),
            ("stopped", "stopped", "Stopped"),
        ] {
            let got = match both(of(one), of(other)) {
                Ok(_) => "Ok".to_owned(),
                Err(BuildError::StageIsGone { name }) => name,
                Err(error) => format!("{error:?}"),
            };
            assert_eq!(got, told, "{one:?} {other:?}");
        }
    }
}
