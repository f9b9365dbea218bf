//! What of the build context may an instruction see? All that its ignore file doesn't hide.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Stages, StepError, lock, make_folder};
use crate::containerfile::graph::Source;
use crate::copy::{CopyRequest, copy, verdict};
use crate::ignore::{self, Ignore};
use crate::pipeline::BuildError;
use crate::pipeline::bases::Name;
use crate::root::Root;

impl Stages<'_> {
    pub(super) fn is_directory(&self, source: &Source) -> bool {
        Name::of_source(source).is_some_and(|name| self.outside.directory(&name).is_some())
    }

    /// What the context hides.
    pub(super) fn ignored(&self) -> Result<Option<Arc<Ignore>>, StepError> {
        let mut ignored = lock(&self.ignored);
        if let Some(known) = &*ignored {
            return Ok(known.clone());
        }
        let mut found = None;
        for path in ignore::candidates(&self.spec.containerfile, &self.spec.context) {
            match std::fs::read_to_string(&path) {
                Ok(text) => {
                    let parsed = Ignore::parse(&text);
                    let parsed = parsed.map_err(|source| StepError::IgnoreFile { path, source })?;
                    found = Some(Arc::new(parsed));
                    break;
                }
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(source) => return Err(BuildError::ReadFile { path, source }.into()),
            }
        }
        *ignored = Some(found.clone());
        Ok(found)
    }

    /// Where files of `source` are, without those that an ignore file hides.
    pub(super) fn visible(&self, source: &Source) -> Result<PathBuf, StepError> {
        if *source != Source::MainContext {
            return self.view(source);
        }
        let Some(ignored) = self.ignored()? else {
            return self.view(source);
        };
        let copied = self.spec.scratch.join("view-context");
        let mut is_copied = lock(&self.context_is_copied);
        if !*is_copied {
            make_folder(&copied)?;
            let everything = CopyRequest {
                sources: vec![".".to_owned()],
                destination: "/".to_owned(),
                ..CopyRequest::default()
            };
            let rule = |path: &Path, is_directory: bool| verdict(&ignored, path, is_directory);
            let (from, into) = (Root::open(&self.spec.context)?, Root::open(&copied)?);
            copy(&everything, &from, Some(&rule), &into)?;
            *is_copied = true;
        }
        Ok(copied)
    }
}
