//! Where are a stage's files? An overlay over what it starts from, or a flat root, is made when the first instruction needs it; and others see a
//! finished stage's files through a view of their own.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::sync::OwnedRwLockReadGuard;
use tokio::task::JoinHandle;

use super::{Current, EarlierPull, Stages, StepError, lock, make_folder};
use crate::containerfile::graph::{Source, StageBase};
use crate::flat::{self, FlatRoot};
use crate::layer::Changes;
use crate::overlay::Overlay;
use crate::pipeline::BuildError;
use crate::pipeline::bases::{Name, lowest_base};
use crate::pipeline::begin::of_earlier;
use crate::pipeline::todo::Position;
use crate::pull::{PullError, ResolvedImage, settle_layers, unpack_layers};
use crate::root::Root;
use crate::sandbox::Storage;
use crate::state::StageState;

/// The files that a stage starts from or ends with.
#[derive(Clone, Debug, Default)]
pub(super) struct Files {
    /// Changes, top first, each in a directory. Where there are no overlays, they are those of an earlier attempt.
    directories: Vec<PathBuf>,
    /// The image whose files are below them.
    image: Option<Name>,
    /// All in one tree; where there are none.
    flat: Option<Arc<FlatRoot>>,
}

/// Files that a stage has changed, ready to become a layer.
#[derive(Debug)]
pub struct Change {
    /// What made them.
    pub after: Position,
    /// What they are.
    pub changes: Changes,
    /// Keeps the tree that they are in as it is until they are read.
    pub reader: Option<OwnedRwLockReadGuard<()>>,
}

/// The files of an image on their way.
pub enum Pulling {
    /// Still coming.
    Running(JoinHandle<Result<Unpacked, BuildError>>),
    /// Here.
    Done(Unpacked),
    /// Not asked for: they are in a directory that was given, or no step uses them.
    NotBegun,
    /// They won't come; another stage has told why.
    Failed,
}

/// The files of an image.
#[derive(Clone, Debug)]
pub enum Unpacked {
    /// Top first.
    Stack(Vec<PathBuf>),
    /// In one tree.
    Flat(Arc<FlatRoot>),
}

/// The root of the stage that is being built.
pub(super) enum OpenRoot {
    Overlay(Overlay),
    Flat(flat::Open),
}

/// A root file system to take files from.
pub(super) enum View {
    Directory(PathBuf),
    Overlay(Overlay),
}

impl Files {
    pub(super) fn of_image(name: Name) -> Self {
        Self {
            image: Some(name),
            ..Self::default()
        }
    }

    /// Puts a layer of an earlier attempt on top, made by the last instruction of `state`.
    pub(super) fn put(&mut self, directory: PathBuf, state: &mut StageState) {
        self.directories.insert(0, directory);
        made_a_layer(state);
    }
}

fn made_a_layer(state: &mut StageState) {
    if let Some(last) = state.image.history.last_mut() {
        last.empty_layer = false;
    }
}

impl OpenRoot {
    fn path(&self) -> &Path {
        match self {
            Self::Overlay(overlay) => overlay.merged(),
            Self::Flat(open) => open.path(),
        }
    }
}

impl View {
    fn path(&self) -> &Path {
        match self {
            Self::Directory(path) => path,
            Self::Overlay(overlay) => overlay.merged(),
        }
    }
}

impl Stages<'_> {
    /// The stage's own root, writable.
    pub(super) fn root(&self, current: &mut Current<'_>) -> Result<Root, StepError> {
        let open = match current.open.take() {
            Some(open) => open,
            None => {
                let scratch = current.scratch.join(current.roots.to_string());
                current.roots += 1;
                self.open(current, &scratch)?
            }
        };
        let root = Root::open(open.path());
        current.open = Some(open);
        Ok(root?)
    }

    fn open(&self, current: &mut Current<'_>, scratch: &Path) -> Result<OpenRoot, StepError> {
        make_folder(scratch)?;
        match self.entered.tier.storage() {
            Storage::Overlay => {
                let below = self.directories(&current.below)?;
                let overlay = Overlay::mount(&below, scratch, self.entered.xattrs);
                Ok(OpenRoot::Overlay(overlay.map_err(BuildError::from)?))
            }
            Storage::Flat => {
                self.forget_what_is_not_needed(current.after.stage);
                let new = scratch.join("root");
                let open =
                    match self.flat(std::mem::take(&mut current.below), current.after.stage)? {
                        Some(root) => root.open(&new),
                        None => flat::Open::empty(&new),
                    };
                Ok(OpenRoot::Flat(open.map_err(BuildError::from)?))
            }
        }
    }

    /// Ends the stage's root, if there is one; what it changed lies below from now on.
    pub(super) fn seal(&self, current: &mut Current<'_>) -> Result<(), BuildError> {
        let change = match current.open.take() {
            None => return Ok(()),
            Some(OpenRoot::Overlay(overlay)) => {
                let below = self.directories(&current.below)?;
                let upper = overlay.unmount()?;
                let changes = Changes::Upper {
                    upper: upper.clone(),
                    below,
                };
                if !changes.is_empty()? {
                    current.below.directories.insert(0, upper);
                }
                Change {
                    after: current.after,
                    changes,
                    reader: None,
                }
            }
            Some(OpenRoot::Flat(open)) => {
                let (found, root) = open.seal()?;
                let changes = Changes::Listed {
                    root: root.path().to_owned(),
                    found: Arc::new(found),
                };
                let reader = root.reader();
                current.below.flat = Some(Arc::new(root));
                Change {
                    after: current.after,
                    changes,
                    reader,
                }
            }
        };
        if let Some(name) = &current.below.image
            && let Some(outline) = &self.outside.image(name)?.outline
            && !outline.covers(&change.changes)?
        {
            return Err(BuildError::BeyondOutline);
        }
        if !change.changes.is_empty()? {
            made_a_layer(&mut current.state);
            (current.on_change)(change);
        }
        Ok(())
    }

    /// All directories of `files`, top first; waits for those that are still coming.
    fn directories(&self, files: &Files) -> Result<Vec<PathBuf>, BuildError> {
        let mut directories = files.directories.clone();
        if let Some(name) = &files.image {
            match self.unpacked(name)? {
                Unpacked::Stack(stack) => directories.extend(stack),
                Unpacked::Flat(root) => directories.push(root.path().to_owned()),
            }
        }
        if directories.iter().any(|path| self.is_earlier(path)) {
            self.settle_earlier()?;
        }
        Ok(directories)
    }

    fn is_earlier(&self, path: &Path) -> bool {
        let mut known = self.earlier.directories.values();
        known.any(|directory| directory == path)
    }

    /// Waits for the layers of the earlier attempt, and fits them to what is below them.
    fn settle_earlier(&self) -> Result<(), BuildError> {
        // Held until they fit, since another stage may need them as well.
        let mut pulling = lock(&self.earlier.pulling);
        let (digest, layers) = match std::mem::replace(&mut *pulling, EarlierPull::Failed) {
            EarlierPull::Running(digest, layers) => (digest, layers),
            EarlierPull::Failed => return Err(BuildError::Stopped),
            EarlierPull::Over => {
                *pulling = EarlierPull::Over;
                return Ok(());
            }
        };
        let base = match lowest_base(self.graph, self.graph.target) {
            Some(name) => self.directories(&Files::of_image(name))?,
            None => Vec::new(),
        };
        let layers = self.wait(layers)???;
        settle_layers(layers, base).map_err(|source| PullError::Unpack { digest, source })?;
        *pulling = EarlierPull::Over;
        Ok(())
    }

    /// The tree that holds all of `files`, for the stage `index`; none if there are none.
    fn flat(&self, files: Files, index: usize) -> Result<Option<Arc<FlatRoot>>, BuildError> {
        let Files {
            directories,
            image,
            flat,
        } = files;
        let base = match (flat, image) {
            (Some(root), _) => return Ok(Some(root)),
            (None, None) => None,
            (None, Some(name)) => {
                let unpacked = self.unpacked(&name)?;
                if !self.is_image_needed(&name, index) {
                    self.forget(&name);
                }
                match unpacked {
                    Unpacked::Flat(root) => Some(root),
                    Unpacked::Stack(_) => None,
                }
            }
        };
        match (&self.earlier.image, directories.len()) {
            (None, _) | (_, 0) => Ok(base),
            (Some(image), count) => self.flat_with_earlier(base, image.clone(), count).map(Some),
        }
    }

    /// A tree of its own with the first `count` layers of an earlier attempt over `base`.
    fn flat_with_earlier(
        &self,
        base: Option<Arc<FlatRoot>>,
        mut image: ResolvedImage,
        count: usize,
    ) -> Result<Arc<FlatRoot>, BuildError> {
        let scratch = self.new_folder("with-earlier");
        image.manifest.layers.truncate(count);
        let transfer = of_earlier(&image, self.progress);
        let xattrs = self.entered.xattrs;
        let pulling = unpack_layers(&image, &scratch, xattrs, Vec::new(), &transfer);
        let layers = self.wait(pulling)??;
        let new = scratch.join("root");
        let root = match base {
            Some(base) => base.open(&new)?,
            None => flat::Open::empty(&new)?,
        };
        let root = root.path();
        let digest = image.digest;
        let stack = settle_layers(layers, vec![root.to_owned()])
            .map_err(|source| PullError::Unpack { digest, source })?;
        flat::add(&stack[..count.min(stack.len())], self.entered.xattrs, root)?;
        Ok(Arc::new(FlatRoot::ours(root.to_owned())))
    }

    fn unpacked(&self, name: &Name) -> Result<Unpacked, BuildError> {
        let base = self.outside.image(name)?;
        let Some(pulling) = self.pulls.get(name) else {
            return Ok(Unpacked::Stack(Vec::new()));
        };
        // Held while they come, so that others who need them wait, too.
        let mut pulling = lock(pulling);
        let unpacked = match std::mem::replace(&mut *pulling, Pulling::Failed) {
            Pulling::Done(unpacked) => unpacked,
            Pulling::Running(running) => self
                .wait(running)??
                .map_err(|error| name.told(self.file, self.graph, error))?,
            Pulling::Failed => return Err(BuildError::Stopped),
            Pulling::NotBegun => match (&base.rootfs, self.entered.tier.storage()) {
                (Some(rootfs), Storage::Overlay) => Unpacked::Stack(vec![rootfs.clone()]),
                (Some(rootfs), Storage::Flat) => {
                    Unpacked::Flat(Arc::new(FlatRoot::foreign(rootfs.clone())))
                }
                // Every image whose files are used is on the list of those to pull.
                (None, _) => Unpacked::Stack(Vec::new()),
            },
        };
        *pulling = Pulling::Done(unpacked.clone());
        Ok(unpacked)
    }

    fn forget(&self, name: &Name) {
        if let Some(pulling) = self.pulls.get(name) {
            *lock(pulling) = Pulling::NotBegun;
        }
    }

    /// Lets go of all files that nobody uses from the stage `index` on, besides those that it starts from itself.
    fn forget_what_is_not_needed(&self, index: usize) {
        for (number, finished) in lock(&self.finished).iter_mut() {
            let is_needed = self.reads(index, |source| *source == Source::Stage(*number))
                || self.starts(index, |base| *base == StageBase::Stage(*number));
            if !is_needed {
                finished.files = Files::default();
            }
        }
    }

    /// True if the files of an image are used from the stage `index` on, besides by what it starts from.
    fn is_image_needed(&self, name: &Name, index: usize) -> bool {
        let later = self.graph.stages.iter().enumerate().skip(index + 1);
        let mut later = later.filter(|(number, _)| self.todo.first(*number).is_some());
        let finished = lock(&self.finished);
        let mut finished = finished.values();
        self.reads(index, |source| {
            Name::of_source(source).as_ref() == Some(name)
        }) || later.any(|(_, stage)| Name::of_base(stage).as_ref() == Some(name))
            || finished.any(|finished| finished.files.image.as_ref() == Some(name))
    }

    /// True if an instruction of the stage `index` or of a later one takes files from such a source.
    fn reads(&self, index: usize, is_it: impl Fn(&Source) -> bool) -> bool {
        let stages = self.graph.stages.iter().enumerate().skip(index);
        let mut sources = stages
            .filter_map(|(number, stage)| stage.sources.get(self.todo.first(number)?..))
            .flat_map(|sources| sources.iter().flatten());
        sources.any(is_it)
    }

    /// True if a stage after `index` starts from such a base.
    fn starts(&self, index: usize, is_it: impl Fn(&StageBase) -> bool) -> bool {
        let later = self.graph.stages.iter().enumerate().skip(index + 1);
        let mut later = later.filter(|(number, _)| self.todo.first(*number).is_some());
        later.any(|(_, stage)| is_it(&stage.base))
    }

    /// Where files of `source` are.
    pub(super) fn view(&self, source: &Source) -> Result<PathBuf, StepError> {
        let (key, files) = match source {
            Source::MainContext => return Ok(self.spec.context.clone()),
            Source::Empty => ("empty".to_owned(), Files::default()),
            Source::Stage(index) => (format!("of-stage-{index}"), self.files_of(*index)),
            Source::Context(name) | Source::Image(name) => {
                let called = Name::of_source(source);
                let called =
                    called.ok_or_else(|| BuildError::ContextIsNoImage { name: name.clone() })?;
                if let Some(directory) = self.outside.directory(&called) {
                    return Ok(directory.to_owned());
                }
                (format!("of-image {name}"), Files::of_image(called))
            }
        };
        if let Some(view) = lock(&self.views).get(&key) {
            return Ok(view.path().to_owned());
        }
        let scratch = self.new_folder("view");
        let view = match self.entered.tier.storage() {
            Storage::Overlay => match self.directories(&files)?.as_slice() {
                [only] => View::Directory(only.clone()),
                directories => {
                    make_folder(&scratch)?;
                    let overlay = Overlay::mount(directories, &scratch, self.entered.xattrs);
                    View::Overlay(overlay.map_err(BuildError::from)?)
                }
            },
            // As long as it is read, nobody changes it: the files of no stage from the first on are let go.
            Storage::Flat => match self.flat(files, 0)? {
                Some(root) => View::Directory(root.path().to_owned()),
                None => {
                    make_folder(&scratch)?;
                    View::Directory(scratch)
                }
            },
        };
        // Another stage may have made the same meanwhile: one is enough.
        Ok(lock(&self.views)
            .entry(key)
            .or_insert(view)
            .path()
            .to_owned())
    }

    /// A name in scratch that nobody else uses.
    fn new_folder(&self, what: &str) -> PathBuf {
        let number = self.folders.fetch_add(1, Ordering::Relaxed);
        self.spec.scratch.join(format!("{what}-{number}"))
    }

    fn files_of(&self, index: usize) -> Files {
        let finished = lock(&self.finished);
        let files = finished.get(&index).map(|finished| finished.files.clone());
        files.unwrap_or_default()
    }
}
