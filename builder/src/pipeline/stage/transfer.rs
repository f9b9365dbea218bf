//! How does a COPY or ADD go? From words to the request that the copying understands.

use std::path::Path;

use super::{Current, Stages, StepError, make_folder};
use crate::containerfile::graph::Source;
use crate::containerfile::{Transfer, Word};
use crate::copy::{CopyRequest, Remote, copy, verdict};
use crate::digest::Digest;
use crate::fetch::fetch;
use crate::ignore::Ignore;
use crate::pipeline::check::is_git;
use crate::root::Root;
use crate::state::StateError;

impl Stages<'_> {
    pub(super) fn transfer(
        &self,
        current: &mut Current<'_>,
        transfer: &Transfer,
        sources: &[Source],
        is_add: bool,
    ) -> Result<(), StepError> {
        let into = self.root(current)?;
        let source = sources.first().unwrap_or(&Source::MainContext);
        let from = Root::open(&self.view(source)?)?;
        let ignored = match source {
            Source::MainContext => self.ignored()?,
            Source::Empty | Source::Stage(_) | Source::Context(_) | Source::Image(_) => None,
        };
        let state = &current.state;
        let expand = |word: &Word| state.expand(word);
        let mut inline = Vec::new();
        for heredoc in &transfer.heredocs {
            let content = state.inline_file(heredoc)?.into_bytes();
            inline.push((heredoc.name.clone(), content));
        }
        let sources = state.expand_all(&transfer.sources)?;
        if let Some(git) = sources.iter().find(|source| is_add && is_git(source)) {
            return Err(StepError::Git(git.clone()));
        }
        let (urls, local): (Vec<_>, Vec<_>) = sources
            .into_iter()
            .partition(|source| is_add && is_url(source));
        // A flag whose variables leave nothing is none.
        let flag = |word: &Option<Word>| -> Result<Option<String>, StateError> {
            let value = word.as_ref().map(expand).transpose()?;
            Ok(value.filter(|value| !value.is_empty()))
        };
        let checksum = match flag(&transfer.checksum)? {
            Some(_) if (urls.len(), local.len()) != (1, 0) => {
                return Err(StepError::ChecksumOfWhat);
            }
            Some(checksum) => Some(checksum.parse::<Digest>()?),
            None => None,
        };
        let remote = self.fetch_all(current, &urls, checksum)?;
        // What comes from outside belongs to root; what comes from another root file system keeps its owners.
        let chown = flag(&transfer.chown)?;
        let owner = match (&chown, source) {
            (Some(owner), _) => Some(into.owner(owner)?),
            (None, Source::MainContext) => Some((0, 0)),
            (None, Source::Context(_)) if self.is_directory(source) => Some((0, 0)),
            (None, Source::Empty | Source::Stage(_) | Source::Context(_) | Source::Image(_)) => {
                None
            }
        };
        let mode = match flag(&transfer.chmod)? {
            Some(mode) => Some(mode.parse()?),
            None => None,
        };
        // As it is written: no variable is replaced in it.
        let exclude = transfer.exclude.iter().map(|word| word.0.as_str());
        let exclude = Ignore::of(exclude).map_err(StepError::Exclude)?;
        let exclude = |path: &Path, is_directory: bool| verdict(&exclude, path, is_directory);
        let request = CopyRequest {
            sources: local,
            remote,
            inline,
            destination: expand(&transfer.destination)?,
            workdir: state.workdir().to_owned(),
            owner,
            archive_owner: chown.is_some().then_some(owner).flatten(),
            mode,
            exclude: (!transfer.exclude.is_empty()).then_some(&exclude as _),
            parents: transfer.parents,
            unpack: is_add && transfer.unpack != Some(false),
            unpack_remote: is_add && transfer.unpack == Some(true),
            time: self
                .spec
                .layers
                .source_date_epoch
                .and_then(|seconds| i64::try_from(seconds).ok()),
        };
        let ignored = ignored.map(|ignored| {
            move |path: &Path, is_directory: bool| verdict(&ignored, path, is_directory)
        });
        copy(
            &request,
            &from,
            ignored.as_ref().map(|rule| rule as _),
            &into,
        )?;
        Ok(())
    }

    /// Fetches what lies elsewhere into scratch.
    fn fetch_all(
        &self,
        current: &Current<'_>,
        urls: &[String],
        checksum: Option<Digest>,
    ) -> Result<Vec<Remote>, StepError> {
        let mut remote = Vec::new();
        for url in urls {
            let folder = current.scratch.join("remote");
            make_folder(&folder)?;
            let path = folder.join(format!("{}-{}", current.number.step, remote.len()));
            let fetched = fetch(&self.spec.pull, url, &path, checksum);
            remote.push(self.wait(fetched)??);
        }
        Ok(remote)
    }
}

/// True for what ADD fetches.
pub(in crate::pipeline) fn is_url(source: &str) -> bool {
    source.starts_with("http://") || source.starts_with("https://")
}
