//! What does COPY or ADD put where? BuildKit's rules, with the differences of `builder/DIFFERENCES.md`.
//!
//! * A source that is itself a link is followed inside its own root; links below a copied directory stay links.
//! * A directory's contents are copied. An existing destination keeps its own mode and owner; directories below take the source's.
//! * The destination is resolved inside its root, links included; missing directories are made with mode 0755.
//! * Modes (set-user-ID too), times, `user.*` attributes, file capabilities and hard links inside one COPY are kept.
//!
//! Nothing runs in either root meanwhile. Left out: fetching what is elsewhere ([`crate::fetch`]).

use std::io;
use std::path::{Component, Path, PathBuf};

use crate::error::{Class, Classify, is_disk_full};
use crate::ignore::Ignore;
use crate::root::{Root, RootError};

mod archive;
mod mode;
mod pattern;
mod tree;

pub use mode::{InvalidMode, ModeChange};
use pattern::InvalidPattern;
use tree::Copier;

/// Tells what a rule such as `.dockerignore` says about a path: relative, without a leading `/`; true for a directory.
pub type Rule<'a> = &'a dyn Fn(&Path, bool) -> Verdict;

/// What a rule says about a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It takes part.
    Included,
    /// It doesn't, nor does anything below.
    Excluded,
    /// A directory that doesn't, but something below may (`!re-included`); made only if something is.
    Descend,
}

/// What the patterns of an ignore file say.
#[must_use]
pub fn verdict(ignore: &Ignore, path: &Path, is_directory: bool) -> Verdict {
    let path = path.to_string_lossy();
    if !ignore.is_excluded(&path) {
        Verdict::Included
    } else if is_directory && ignore.may_include_below(&path) {
        Verdict::Descend
    } else {
        Verdict::Excluded
    }
}

/// One COPY or ADD, expanded.
#[derive(Clone, Default)]
pub struct CopyRequest<'a> {
    /// Paths in the source root, which may hold wildcards.
    pub sources: Vec<String>,
    /// Files that were fetched for ADD. Mode 0600.
    pub remote: Vec<Remote>,
    /// Files given in the Containerfile itself: name and content. Mode 0644.
    pub inline: Vec<(String, Vec<u8>)>,
    /// As written: a `/` at its end makes it a directory.
    pub destination: String,
    /// Absolute; what a relative destination starts at.
    pub workdir: String,
    /// Who owns what is copied: root for a build context, `--chown` if given; none keeps the source's owners (another stage, an image).
    pub owner: Option<(u32, u32)>,
    /// Who owns what comes out of archives: `--chown` if given; none keeps the archive's owners.
    pub archive_owner: Option<(u32, u32)>,
    /// `--chmod`
    pub mode: Option<ModeChange>,
    /// `--exclude`; paths are relative to each source directory.
    pub exclude: Option<Rule<'a>>,
    /// `--parents`: what is copied keeps its path in the destination, from the source's `/./` on.
    pub parents: bool,
    /// ADD: local tar archives are unpacked into the destination.
    pub unpack: bool,
    /// The same for fetched ones.
    pub unpack_remote: bool,
    /// For inline files, in seconds since 1970; now if absent.
    pub time: Option<i64>,
}

/// A file that was fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remote {
    /// Where it is.
    pub path: PathBuf,
    /// What it is called in a destination directory.
    pub name: String,
    /// In seconds since 1970.
    pub time: i64,
}

/// What was copied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CopySummary {
    /// Entries of any kind.
    pub entries: u64,
    /// Content of files.
    pub bytes: u64,
}

/// COPY or ADD failed.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// No such file, or no match.
    #[error("{pattern:?}: {}", if *excluded { "excluded by the ignore file" } else { "not found" })]
    NotFound {
        /// The source as written.
        pattern: String,
        /// It is there, but an ignore rule hides it.
        excluded: bool,
    },
    /// A wildcard.
    #[error(transparent)]
    Pattern(#[from] InvalidPattern),
    /// A directory in the way of something else, or the reverse.
    #[error("cannot replace {} {} by {}", there, Path::new("/").join(path).display(), new)]
    InTheWay {
        /// In the destination root.
        path: PathBuf,
        /// What is there.
        there: &'static str,
        /// What should be.
        new: &'static str,
    },
    /// An archive that comes to more than a layer of an image may.
    #[error("{} unpacks to more than {limit} {unit}", Path::new("/").join(path).display())]
    TooLarge {
        /// In its root.
        path: PathBuf,
        /// How many.
        limit: u64,
        /// Of what.
        unit: &'static str,
    },
    /// A path in one of the roots.
    #[error(transparent)]
    Root(#[from] RootError),
    /// The operation failed.
    #[error("{operation} {}", path.display())]
    File {
        /// What was tried.
        operation: &'static str,
        /// In its root.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

impl Classify for CopyError {
    fn class(&self) -> Class {
        match self {
            Self::NotFound { .. }
            | Self::Pattern(_)
            | Self::InTheWay { .. }
            | Self::TooLarge { .. } => Class::CONTENT,
            Self::Root(error) => error.class(),
            // A full disk may be less full elsewhere; anything else is about the files themselves.
            Self::File { source, .. } if is_disk_full(source) => Class::Transient,
            Self::File { .. } => Class::CONTENT,
        }
    }
}

/// Copies what `request` says from one root into another.
///
/// # Errors
/// User, about the sources, the destination or what is in the way; Transient for a full disk.
pub fn copy(
    request: &CopyRequest<'_>,
    from: &Root,
    ignore: Option<Rule<'_>>,
    into: &Root,
) -> Result<CopySummary, CopyError> {
    let (destination, must_be_directory) = destination(&request.workdir, &request.destination);
    let parent_owner = request.owner.unwrap_or((0, 0));
    let target = into.canonical(&destination)?;
    let mut copier = Copier::new(request, from, ignore, into);
    if request.parents {
        into.create_directories(&target, parent_owner)?;
        let mut missing = None;
        for source in &request.sources {
            match with_parents(source, &mut copier, &target) {
                Err(error @ CopyError::NotFound { .. }) if pattern::is_pattern(source) => {
                    missing = Some(error);
                }
                result => result?,
            }
        }
        if let Some(error) = missing
            && copier.summary == CopySummary::default()
        {
            return Err(error);
        }
        others(request, &mut copier, into, &target, true)?;
        return Ok(copier.summary);
    }
    let found = find_all(&request.sources, from, ignore)?;
    let count = found.len() + request.remote.len() + request.inline.len();
    let mut fresh = into.file_type(&target)?.is_none();
    let only_directories = count == found.len() && found.iter().all(|found| found.is_directory);
    // several files have room in a directory only, whatever the spelling says
    if must_be_directory || (count > 1 && !only_directories) {
        into.create_directories(&target, parent_owner)?;
    } else if let Some(parent) = target.parent() {
        into.create_directories(parent, parent_owner)?;
    }
    let is_directory = into.file_type(&target)? == Some(rustix::fs::FileType::Directory);
    for Found {
        canonical,
        name,
        is_directory: source_is_directory,
    } in &found
    {
        if *source_is_directory {
            into.create_directories(&target, parent_owner)?;
            copier.contents(canonical, &target)?;
            continue;
        }
        let unpacked = request.unpack
            && archive::unpack(
                request,
                &from.path().join(canonical),
                canonical,
                into,
                &target,
                std::mem::take(&mut fresh),
                &mut copier.summary,
            )?;
        if !unpacked {
            let place = place(&target, name, is_directory);
            copier.one(canonical, &place)?;
        }
    }
    others(request, &mut copier, into, &target, is_directory)?;
    Ok(copier.summary)
}

/// What comes from neither root.
fn others(
    request: &CopyRequest<'_>,
    copier: &mut Copier<'_>,
    into: &Root,
    target: &Path,
    is_directory: bool,
) -> Result<(), CopyError> {
    for Remote { path, name, time } in &request.remote {
        let source = Path::new(name);
        let unpacked = request.unpack_remote
            && archive::unpack(
                request,
                path,
                source,
                into,
                target,
                false,
                &mut copier.summary,
            )?;
        if !unpacked {
            copier.remote(path, *time, &place(target, source, is_directory))?;
        }
    }
    for (name, content) in &request.inline {
        copier.inline(content, &place(target, Path::new(name), is_directory))?;
    }
    Ok(())
}

fn place(target: &Path, name: &Path, is_directory: bool) -> PathBuf {
    if is_directory {
        target.join(name)
    } else {
        target.to_owned()
    }
}

/// `--parents`: as BuildKit does, everything under the part before `/./` takes part that the part behind it matches, with the directories above it.
fn with_parents(source: &str, copier: &mut Copier<'_>, target: &Path) -> Result<(), CopyError> {
    let (pivot, pattern) = source.split_once("/./").unwrap_or(("", source));
    let pattern = clean(pattern).to_string_lossy().into_owned();
    let invalid = |_| InvalidPattern(source.to_owned());
    copier.only = match pattern.as_str() {
        "" => None,
        pattern => Some(Ignore::of(["**", &format!("!{pattern}")]).map_err(invalid)?),
    };
    let canonical = copier.from.canonical(&clean(pivot))?;
    let before = copier.summary;
    copier.contents(&canonical, target)?;
    copier.only = None;
    let copied = copier.summary != before;
    if copied {
        Ok(())
    } else {
        Err(CopyError::NotFound {
            pattern: source.to_owned(),
            excluded: false,
        })
    }
}

/// The sources that exist. A wildcard may match nothing if another source is there.
fn find_all(
    sources: &[String],
    from: &Root,
    ignore: Option<Rule<'_>>,
) -> Result<Vec<Found>, CopyError> {
    let mut found = Vec::new();
    let mut missing = None;
    for source in sources {
        match find(source, from, ignore, &mut found) {
            Err(CopyError::NotFound { pattern, excluded }) if pattern::is_pattern(&pattern) => {
                missing = Some(CopyError::NotFound { pattern, excluded });
            }
            result => result?,
        }
    }
    match missing {
        Some(error) if found.is_empty() => Err(error),
        Some(_) | None => Ok(found),
    }
}

/// A source that exists.
struct Found {
    /// Where it really is.
    canonical: PathBuf,
    /// What it is called in a destination directory.
    name: PathBuf,
    is_directory: bool,
}

fn find(
    source: &str,
    from: &Root,
    ignore: Option<Rule<'_>>,
    found: &mut Vec<Found>,
) -> Result<(), CopyError> {
    let clean = clean(source);
    let candidates = pattern::expand(&clean, from)?;
    let before = found.len();
    let mut excluded = false;
    for candidate in candidates {
        let canonical = from.canonical(&candidate)?;
        let Some(kind) = from.file_type(&canonical)? else {
            continue;
        };
        let is_directory = kind == rustix::fs::FileType::Directory;
        let hidden = |path: &Path| {
            !path.as_os_str().is_empty()
                && ignore.is_some_and(|rule| rule(path, is_directory) == Verdict::Excluded)
        };
        if hidden(&candidate) || hidden(&canonical) {
            excluded = true;
            continue;
        }
        let name = PathBuf::from(candidate.file_name().unwrap_or_default());
        found.push(Found {
            canonical,
            name,
            is_directory,
        });
    }
    if found.len() == before {
        Err(CopyError::NotFound {
            pattern: source.to_owned(),
            excluded,
        })
    } else {
        Ok(())
    }
}

/// The path inside the root, `.` and `..` taken out as text; `..` stops at the root.
pub(crate) fn clean(path: &str) -> PathBuf {
    let mut clean = PathBuf::new();
    for component in Path::new(path).components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => {
                clean.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    clean
}

/// The absolute destination, and whether its spelling says that it is a directory.
fn destination(workdir: &str, written: &str) -> (PathBuf, bool) {
    let must_be_directory =
        written.is_empty() || written.ends_with('/') || written == "." || written.ends_with("/.");
    (
        clean(&Path::new("/").join(workdir).join(written).to_string_lossy()),
        must_be_directory,
    )
}

#[cfg(test)]
mod tests;
