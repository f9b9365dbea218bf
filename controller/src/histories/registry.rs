//! A registry: manifests by digest, tags that name them.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use sha2::{Digest as _, Sha256};
use strata_builder::digest::Digest;
use strata_builder::reference::Reference;

use crate::registries::Answer;

/// This cluster and another one that pushes to the same repositories.
pub(super) const OURS: &str = "ours";
const THEIRS: &str = "theirs";

/// How long a late registry hides what is pushed.
const LATE: SignedDuration = SignedDuration::from_secs(20);

#[derive(Default)]
pub(super) struct Registry {
    pub(super) images: BTreeMap<Digest, Image>,
    tags: BTreeMap<String, Digest>,
    pub(super) is_down: bool,
    pub(super) is_late: bool,
    pub(super) keeps: bool,
    /// Deleted by others.
    pub(super) lost: BTreeSet<Digest>,
    /// Somebody wanted them to stay when their build was deleted.
    pub(super) kept: BTreeSet<Digest>,
    /// Nobody could know of these, or delete them: they may stay.
    pub(super) excused: BTreeSet<Digest>,
}

pub(super) struct Image {
    pub(super) build_uid: String,
    /// Whose build that is.
    pub(super) cluster: &'static str,
    served_from: Timestamp,
}

impl Registry {
    /// Takes an image; each push has its own digest.
    pub(super) fn push(&mut self, reference: &str, build_uid: &str, now: Timestamp, n: u64) {
        let digest = digest_of(n);
        self.images.insert(
            digest,
            Image {
                build_uid: build_uid.to_owned(),
                cluster: OURS,
                served_from: if self.is_late { now + LATE } else { now },
            },
        );
        self.tags.insert(reference.to_owned(), digest);
    }

    /// Another cluster pushes to a tag of ours. What had it has none any more, so that it is found by its digest alone.
    pub(super) fn push_theirs(&mut self, reference: &str, now: Timestamp, n: u64) {
        let digest = digest_of(n);
        let image = Image {
            build_uid: format!("theirs-{n}"),
            cluster: THEIRS,
            served_from: now,
        };
        self.images.insert(digest, image);
        self.excused
            .extend(self.tags.insert(reference.to_owned(), digest));
    }

    /// Images with a tag that are served, and that tag.
    pub(super) fn listed(&self, now: Timestamp) -> impl Iterator<Item = (&String, Digest, &Image)> {
        let found = self.tags.iter().filter_map(|(tag, digest)| {
            let image = self.images.get(digest)?;
            Some((tag, *digest, image))
        });
        found.filter(move |(_, _, image)| image.served_from <= now)
    }

    /// The image of a tag, if it was made for this build.
    pub(super) fn tagged(&self, reference: &str, build_uid: &str) -> Option<Digest> {
        let digest = *self.tags.get(reference)?;
        (self.images.get(&digest)?.build_uid == build_uid).then_some(digest)
    }

    /// Images of this build may stay.
    pub(super) fn excuse(&mut self, build_uid: &str) {
        let its = self
            .images
            .iter()
            .filter(|(_, image)| image.build_uid == build_uid);
        self.excused.extend(its.map(|(digest, _)| *digest));
    }

    pub(super) fn look(&self, image: &Reference, manifest: bool, now: Timestamp) -> Answer {
        if self.is_down {
            return Answer::Unknown("it is down".to_owned());
        }
        let digest = image
            .digest
            .or_else(|| self.tags.get(&image.to_string()).copied());
        let found = digest.and_then(|digest| Some((digest, self.images.get(&digest)?)));
        match found {
            Some((digest, image)) if image.served_from <= now => Answer::Present {
                digest,
                build_uid: manifest.then(|| image.build_uid.clone()),
            },
            _ => Answer::Absent,
        }
    }

    /// Whether it gives this image to whoever asks.
    pub(super) fn serves(&self, digest: Digest, now: Timestamp) -> bool {
        let image = self.images.get(&digest);
        !self.is_down && image.is_some_and(|image| image.served_from <= now)
    }

    /// Whether there are images of this build that it doesn't serve yet.
    pub(super) fn hides(&self, build_uid: &str, now: Timestamp) -> bool {
        let mut its = self
            .images
            .values()
            .filter(|image| image.build_uid == build_uid);
        its.any(|image| image.served_from > now)
    }

    pub(super) fn remove(&mut self, digest: Digest) {
        self.images.remove(&digest);
        self.tags.retain(|_, one| *one != digest);
    }
}

fn digest_of(n: u64) -> Digest {
    let hash = hex::encode(Sha256::digest(n.to_be_bytes()));
    format!("sha256:{hash}").parse().unwrap()
}
