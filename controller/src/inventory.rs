//! What is in the repositories, who uses it, what would happen to it and why, and how many bytes that frees?
//!
//! Pure; [`gc`](crate::gc) reads and prints. Sizes are those of compressed layers and configurations, as a registry stores
//! them. A blob comes free when no image of its repository that stays has it, as far as the registry lists images; it leaves the disk with the
//! registry's own garbage collection.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde::Serialize;
use strata_builder::digest::Digest;
use strata_builder::image::Manifest;
use strata_builder::reference::Repository;

use crate::sweep::{GRACE, Origin};
use crate::usage::{Use, Users};

/// What becomes of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fate {
    /// Something needs it, or no bound lets it go.
    Stays,
    /// It is deleted as soon as the time or the use that is told ends.
    Waits,
    /// It is deleted now.
    Goes,
    /// No build of this cluster made it: it is never touched.
    NotOurs,
}

impl Fate {
    /// The wire form.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Fate::Stays => "stays",
            Fate::Waits => "waits",
            Fate::Goes => "goes",
            Fate::NotOurs => "not-ours",
        }
    }
}

/// A manifest of a repository.
#[derive(Clone, Debug)]
pub struct Stored {
    /// Where.
    pub repository: Repository,
    /// Of the manifest.
    pub digest: Digest,
    /// That name it.
    pub tags: BTreeSet<String>,
    /// As served.
    pub manifest: Vec<u8>,
}

/// All that decides.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Each manifest once.
    pub stored: Vec<Stored>,
    /// All that names images.
    pub users: Users,
    /// This cluster's, if it is known.
    pub cluster: Option<String>,
    /// UIDs of the builds that retention lets go, and why.
    pub surplus: BTreeMap<String, String>,
}

/// An image, as it is printed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Row {
    /// Where.
    pub repository: String,
    /// Of the manifest.
    pub digest: Digest,
    /// That name it, sorted.
    pub tags: BTreeSet<String>,
    /// Of all its blobs.
    pub size_bytes: u64,
    /// Of those that another image of the repository has too.
    pub shared_bytes: u64,
    /// The first that needs it.
    pub used_by: Option<String>,
    /// What becomes of it.
    pub fate: Fate,
    /// The cause of that.
    pub why: String,
    /// That come free with it, each blob counted with the first image that has it; 0 unless it goes.
    pub freed_bytes: u64,
}

/// All images, by repository and digest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Inventory {
    /// Each once.
    pub images: Vec<Row>,
    /// Of all blobs of all repositories, each once in its repository.
    pub total_bytes: u64,
    /// Of those that come free.
    pub freed_bytes: u64,
}

/// What `facts` come to at `now`.
#[must_use]
pub fn inventory(facts: &Facts, now: Timestamp) -> Inventory {
    let Facts {
        stored,
        users,
        cluster,
        surplus,
    } = facts;
    let mut judged: Vec<_> = stored
        .iter()
        .map(|one| {
            let used = users.of(one.digest, None);
            let (fate, why) = fate(one, users, used.as_ref(), cluster.as_deref(), surplus, now);
            (one, blobs(&one.manifest), used, fate, why)
        })
        .collect();
    judged.sort_by_key(|(one, ..)| (one.repository.clone(), one.digest));
    // how many images have a blob, and whether one of them stays
    let mut holders: BTreeMap<(&Repository, Digest), (usize, bool, u64)> = BTreeMap::new();
    for (one, blobs, _, fate, _) in &judged {
        for (blob, size) in blobs {
            let holder = holders.entry((&one.repository, *blob)).or_default();
            *holder = (holder.0 + 1, holder.1 || *fate != Fate::Goes, *size);
        }
    }
    let total_bytes = holders.values().map(|(.., size)| size).sum();
    let mut freed = BTreeSet::new();
    let images: Vec<Row> = judged
        .iter()
        .map(|(one, blobs, used, fate, why)| {
            let of = |blob: &Digest| holders[&(&one.repository, *blob)];
            let sum = |is_counted: &mut dyn FnMut(&Digest) -> bool| -> u64 {
                let counted = blobs.iter().filter(|(blob, _)| is_counted(blob));
                counted.map(|(_, size)| size).sum()
            };
            Row {
                repository: one.repository.to_string(),
                digest: one.digest,
                tags: one.tags.clone(),
                size_bytes: sum(&mut |_| true),
                shared_bytes: sum(&mut |blob| of(blob).0 > 1),
                used_by: used.as_ref().map(ToString::to_string),
                fate: *fate,
                why: why.clone(),
                freed_bytes: sum(&mut |blob| !of(blob).1 && freed.insert((&one.repository, *blob))),
            }
        })
        .collect();
    Inventory {
        freed_bytes: images.iter().map(|one| one.freed_bytes).sum(),
        images,
        total_bytes,
    }
}

/// The blobs of an image, each once; none of an index, whose manifests are images themselves.
fn blobs(manifest: &[u8]) -> BTreeMap<Digest, u64> {
    let Ok(manifest) = serde_json::from_slice::<Manifest>(manifest) else {
        return BTreeMap::new();
    };
    let layers = manifest.layers.into_iter().chain([manifest.config]);
    layers.map(|blob| (blob.digest, blob.size_bytes)).collect()
}

fn fate(
    stored: &Stored,
    users: &Users,
    used: Option<&Use>,
    cluster: Option<&str>,
    surplus: &BTreeMap<String, String>,
    now: Timestamp,
) -> (Fate, String) {
    let digest = stored.digest.to_string();
    let mut entries = users.entries.iter();
    let entry = entries.find(|entry| !entry.keep && entry.image.ends_with(&digest));
    let let_go = users.beside_builds(stored.digest).is_none();
    if let Some(entry) = entry {
        let build = &entry.os_build;
        if let Some(used) = used {
            let why = format!("until nothing needs it, as MachineOSBuild {build} is gone: {used}");
            return (Fate::Waits, why);
        }
        if entry.orphan_of.is_some() && now.duration_since(entry.since) < GRACE {
            let end = entry.since.checked_add(GRACE).unwrap_or(entry.since);
            return (
                Fate::Waits,
                format!("until {end}, as MachineOSBuild {build} is gone"),
            );
        }
        return (
            Fate::Goes,
            format!("MachineOSBuild {build} is gone, and nothing needs it any more"),
        );
    }
    if let Some(used) = used {
        let is_named = |status: Option<&String>| status.is_some_and(|one| one.ends_with(&digest));
        let mut names = users.os_builds.iter().filter(|build| {
            let status = build.status.as_ref();
            is_named(status.and_then(|status| status.digested_image_push_spec.as_ref()))
        });
        let reasons = names.clone().map(|build| {
            let uid = build.metadata.uid.as_ref()?;
            surplus.get(uid)
        });
        let reasons: Option<Vec<&String>> = reasons.collect();
        if let_go
            && names.next().is_some()
            && let Some(why) = reasons.as_deref().and_then(<[_]>::first)
        {
            return (Fate::Goes, format!("{used}, which goes, as {why}"));
        }
        return (Fate::Stays, used.to_string());
    }
    match Origin::of(&stored.manifest) {
        Some(origin) if users.has_build(&origin.build_uid) => {
            (Fate::Stays, "its build has not ended".to_owned())
        }
        Some(origin)
            if cluster.is_some_and(|cluster| {
                let mut tags = stored.tags.iter();
                tags.any(|tag| origin.is_orphan(cluster, tag, users))
            }) =>
        {
            (
                Fate::Waits,
                "its build is gone: it goes a day after that was seen".to_owned(),
            )
        }
        Some(_) => (
            Fate::NotOurs,
            "a build of another cluster, or one before images said so".to_owned(),
        ),
        None => (Fate::NotOurs, "no build made it".to_owned()),
    }
}

/// `inventory` for a reader: a line per image and one for all.
#[must_use]
pub fn table(inventory: &Inventory) -> String {
    let Inventory {
        images,
        total_bytes,
        freed_bytes,
    } = inventory;
    let head = [
        "REPOSITORY",
        "DIGEST",
        "TAGS",
        "SIZE",
        "SHARED",
        "FATE",
        "FREES",
        "WHY",
    ];
    let mut lines = vec![head.map(str::to_owned)];
    for row in images {
        let tags: Vec<&str> = row.tags.iter().map(String::as_str).collect();
        lines.push([
            row.repository.clone(),
            row.digest.to_string()[..19].to_owned(),
            match tags.is_empty() {
                true => "-".to_owned(),
                false => tags.join(","),
            },
            size(row.size_bytes),
            size(row.shared_bytes),
            row.fate.as_str().to_owned(),
            size(row.freed_bytes),
            row.why.clone(),
        ]);
    }
    let width = |column: usize| lines.iter().map(|line| line[column].len()).max();
    let widths: Vec<usize> = (0..head.len()).map(|one| width(one).unwrap_or(0)).collect();
    let mut text = String::new();
    for line in &lines {
        let cells = line.iter().zip(&widths);
        let padded: Vec<String> = cells
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        text.push_str(padded.join("  ").trim_end());
        text.push('\n');
    }
    let going = images.iter().filter(|row| row.fate == Fate::Goes).count();
    text.push_str(&format!(
        "{} images with {}; {going} go and free {}\n",
        images.len(),
        size(*total_bytes),
        size(*freed_bytes)
    ));
    if going > 0 {
        text.push_str("Layers come free when the registry's own garbage collection runs.\n");
    }
    text
}

/// In the largest unit that leaves a number above 1, with one digit behind the point.
fn size(bytes: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut amount = bytes as f64 / 1024.0;
    let mut unit = 0;
    while amount >= 1024.0 && unit + 1 < units.len() {
        amount /= 1024.0;
        unit += 1;
    }
    format!("{amount:.1} {}", units[unit])
}

#[cfg(test)]
mod tests;
