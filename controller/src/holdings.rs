//! How many images are there, how large are they, and what holds them?
//!
//! Of what builds here have pushed and not lost; a registry isn't asked. For metrics: what is deleted is decided by [`usage`](crate::usage).

use std::collections::{BTreeMap, BTreeSet};

use kube::ResourceExt as _;
use strata_builder::digest::Digest;
use strata_builder::reference::Reference;

use crate::api::{MachineOSBuild, annotation};
use crate::reuse::is_pre_built;
use crate::usage::{Users, is_to_be_kept};

/// What holds an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Held {
    /// A node, a MachineOSConfig or a MachineConfig names it, or somebody keeps it.
    InUse,
    /// Nothing but MachineOSBuilds.
    ByBuild,
    /// Nothing: the ledger has it.
    Leaving,
}

impl Held {
    /// All states.
    pub const ALL: [Held; 3] = [Held::InUse, Held::ByBuild, Held::Leaving];

    /// The value of a label.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Held::InUse => "in-use",
            Held::ByBuild => "build-only",
            Held::Leaving => "leaving",
        }
    }
}

/// Images in one state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum {
    /// Each digest once.
    pub images: u64,
    /// Of their blobs, as far as their builds have told it.
    pub bytes: u64,
}

/// All images of builds and of the ledger by what holds them.
#[must_use]
pub fn holdings(users: &Users) -> BTreeMap<Held, Sum> {
    let named = named(users);
    let mut found: BTreeMap<Digest, (Held, u64)> = BTreeMap::new();
    for os_build in &users.os_builds {
        let Some(digest) = digest_of(os_build).filter(|_| !is_pre_built(os_build)) else {
            continue;
        };
        let held = match named.contains(&digest) || is_to_be_kept(os_build) {
            true => Held::InUse,
            false => Held::ByBuild,
        };
        let told = os_build.annotations().get(annotation::IMAGE_BYTES);
        let bytes = told.and_then(|bytes| bytes.parse().ok()).unwrap_or(0);
        let known = found.entry(digest).or_insert((held, bytes));
        *known = (known.0.min(held), known.1.max(bytes));
    }
    for entry in &users.entries {
        let image = entry.image.parse::<Reference>().ok();
        if let Some(digest) = image.and_then(|image| image.digest) {
            let held = match entry.keep || named.contains(&digest) {
                true => Held::InUse,
                false => Held::Leaving,
            };
            found.entry(digest).or_insert((held, 0));
        }
    }
    let mut sums: BTreeMap<Held, Sum> = Held::ALL.map(|held| (held, Sum::default())).into();
    for (held, bytes) in found.into_values() {
        let sum = sums.entry(held).or_default();
        sum.images += 1;
        sum.bytes += bytes;
    }
    sums
}

fn digest_of(os_build: &MachineOSBuild) -> Option<Digest> {
    let image = os_build
        .status
        .as_ref()?
        .digested_image_push_spec
        .as_ref()?;
    image.parse::<Reference>().ok()?.digest
}

/// The digests that anything but a build names.
fn named(users: &Users) -> BTreeSet<Digest> {
    let on_nodes = users
        .nodes
        .iter()
        .flat_map(|one| one.annotations().values());
    let of_configs = users.os_configs.iter().flat_map(|one| {
        let status = one.status.as_ref();
        let told = status.and_then(|status| status.current_image_pull_spec.as_ref());
        let keys = [annotation::PRE_BUILT_IMAGE, annotation::KEEP_IMAGE];
        let annotated = keys
            .into_iter()
            .filter_map(|key| one.annotations().get(key));
        annotated.chain(told)
    });
    let of_machine_configs = users.machine_configs.iter().flat_map(|one| {
        let spec = &one.spec;
        [&spec.os_image_url, &spec.extensions_image]
            .into_iter()
            .flatten()
    });
    let texts = on_nodes.chain(of_configs).chain(of_machine_configs);
    texts.flat_map(|text| digests_in(text)).collect()
}

/// Each `sha256:` with 64 digits in `text`.
fn digests_in(text: &str) -> impl Iterator<Item = Digest> {
    let length = "sha256:".len() + 64;
    text.match_indices("sha256:")
        .filter_map(move |(at, _)| text.get(at..at + length)?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures;

    fn image(n: u8) -> String {
        format!("q.io/a/b@sha256:{:064x}", n)
    }

    fn build(n: u8, bytes: &str) -> MachineOSBuild {
        let mut os_build = fixtures::os_build_with_image(&image(n));
        os_build
            .annotations_mut()
            .insert(annotation::IMAGE_BYTES.to_owned(), bytes.to_owned());
        os_build
    }

    #[test]
    fn each_image_counts_once_and_by_its_strongest_holder() {
        let list = format!("[\"{}\", \"{}\"]", image(1), image(9));
        let seeded = {
            let mut os_build = build(5, "50");
            os_build
                .annotations_mut()
                .insert(annotation::PRE_BUILT_IMAGE.to_owned(), image(5));
            os_build
        };
        let users = Users {
            nodes: vec![fixtures::node("example.com/booted", &list).into()],
            os_builds: [
                build(1, "10"),
                build(1, "10"),
                build(2, "20"),
                build(3, "?"),
                seeded,
            ]
            .map(Into::into)
            .into(),
            entries: vec![fixtures::entry(&image(3)), fixtures::entry(&image(4))],
            ..Users::default()
        };
        let sum = |images, bytes| Sum { images, bytes };
        let wanted = BTreeMap::from([
            (Held::InUse, sum(1, 10)),
            (Held::ByBuild, sum(2, 20)),
            (Held::Leaving, sum(1, 0)),
        ]);
        assert_eq!(holdings(&users), wanted);
    }
}
