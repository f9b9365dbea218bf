//! Deletes an image from its registry, and what belongs to it alone.
//!
//! | goes | found by |
//! | --- | --- |
//! | the manifest | its digest |
//! | its tag, and the note of its build's steps | the build's push spec, unless another build has that one by now |
//! | what refers to it: signatures, attestations, SBOMs; and what refers to these | the registry, or the tag `sha256-HEX` |
//! | the same as cosign keeps it | the tags `sha256-HEX.sig`, `.att` and `.sbom` |
//!
//! Who needs the image is read before its manifest is deleted and once more afterwards, whatever the registry answered. If it
//! was taken in between, the manifest is put back as it was; its layers are still there, as registries collect those later. In
//! between the ledger has the manifest: should this process end there, the next one looks in its place. So nothing that is
//! handed on meanwhile is lost. Layers go when the registry collects what no manifest names.
//!
//! In OpenShift's own registry it isn't the manifest that is deleted, but the [`ImageStream`]'s tag that names it.

use std::collections::BTreeMap;

use bytes::Bytes;
use strata_builder::contract::steps_tag;
use strata_builder::digest::Digest;
use strata_builder::error::{Class, Classify, chain};
use strata_builder::reference::{Reference, Repository};
use strata_builder::registry::{Registry, RegistryError};
use tracing::{debug, error, info, warn};

use crate::error::{Error, class_of};
use crate::image_streams::ImageStream;
use crate::ledger::{LEDGER_NAME, Removing};
use crate::live::Needs;
use crate::registries::in_use;
use crate::sweep::Origin;
use crate::usage::{Use, Users};

/// Signatures of what refers to an image are the last that anybody makes.
const DEEPEST: usize = 3;
/// What cosign appends to the tag that stands for an image; without anything, the tag is that of an index of referrers.
const TAG_SUFFIXES: [&str; 4] = [".sig", ".att", ".sbom", ""];

/// An image that is to go.
#[derive(Clone, Copy, Debug)]
pub struct Doomed<'a> {
    /// Where.
    pub repository: &'a Repository,
    /// Of the manifest.
    pub digest: Digest,
    /// The tag that it was pushed under, if it is known.
    pub tag: Option<&'a str>,
    /// Name of the Secret with the registry's credentials.
    pub push_secret: &'a str,
    /// UID of the MachineOSBuild whose image it is, if that is still there.
    pub asking: Option<&'a str>,
}

/// What became of it.
#[derive(Debug)]
pub enum Removal {
    /// The registry has nothing of it any more, or it keeps only what refers to it, which was told.
    Gone {
        /// Whether it was there.
        was_there: bool,
    },
    /// It stays, since somebody needs it.
    InUse(Use),
    /// It stays: the registry can't or won't delete it.
    Refused(DeleteError),
}

/// Why an image is still there.
#[derive(Debug, thiserror::Error)]
pub enum DeleteError {
    /// Its registry failed, or refuses.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The apiserver did, asked for the ImageStreamTag that names it.
    #[error("delete ImageStreamTag {name} in namespace {namespace}")]
    ImageStreamTag {
        /// metadata.name.
        name: String,
        /// metadata.namespace.
        namespace: String,
        /// Why.
        #[source]
        source: kube::Error,
    },
    /// It has no tag of a build that could be deleted.
    #[error("its ImageStream in namespace {0} names it, but no tag of its build does")]
    OtherTag(String),
}

impl Classify for DeleteError {
    fn class(&self) -> Class {
        match self {
            DeleteError::Registry(source) => source.class(),
            DeleteError::ImageStreamTag { source, .. } => class_of(source),
            DeleteError::OtherTag(_) => Class::INTERNAL,
        }
    }
}

/// A repository, and what lets go of its manifests.
struct Keeper<'a> {
    registry: &'a Registry,
    repository: &'a Repository,
    stream: Option<ImageStream>,
}

/// Deletes `doomed`; one that isn't there is fine. Doing it again does what is left.
///
/// # Errors
///
/// Of the apiserver, or transient ones of the registry: to be done again.
///
/// # Cancel safety
///
/// As safe as a crash: [`restore`] does what is left of a deletion that was cut off.
pub async fn remove(
    live: &impl Needs,
    registry: &Registry,
    doomed: &Doomed<'_>,
) -> Result<Removal, Error> {
    let Doomed {
        repository,
        digest,
        tag,
        push_secret,
        asking,
    } = *doomed;
    let image = repository.digested(digest);
    let failed = |source| failed(&image, source);
    let keeper = Keeper {
        registry,
        repository,
        stream: live.image_stream(repository).await?,
    };
    let stored = registry.stored_manifest(&image).await;
    let stored = stored.map_err(|source| failed(source.into()))?;
    let mut attached = attached(registry, repository, digest).await?;
    attached.remove(&digest);
    let users = live.users().await?;
    let used = in_use(registry, &image, digest, &users, asking).await;
    if let Some(used) = used {
        return Ok(match stored {
            Some(_) => Removal::InUse(used),
            None => Removal::Gone { was_there: false },
        });
    }
    let own_tag = tag.filter(|tag| !is_anothers(&users, repository, tag, asking));
    if let Some(manifest) = &stored {
        let Ok(text) = String::from_utf8(manifest.bytes.to_vec()) else {
            let why = "its manifest is no text".to_owned();
            return Ok(Removal::InUse(Use::Unknown(why)));
        };
        let removing = Removing {
            image: image.to_string(),
            tag: own_tag.map(str::to_owned),
            push_secret: push_secret.to_owned(),
            media_type: manifest.media_type.clone(),
            manifest: text,
        };
        let _at_work = live.begin_removal(&removing).await?;
        let deleted = keeper.delete(digest, own_tag).await;
        // one that was refused is still there; after any other answer it may be gone
        let may_be_gone = !matches!(&deleted, Err(error) if error.class() != Class::Transient);
        if may_be_gone {
            let used = match live.users().await {
                Ok(users) => Ok(in_use(registry, &image, digest, &users, asking).await),
                Err(error) => Err(error),
            };
            if !matches!(used, Ok(None)) {
                put_back(registry, &image, &removing).await?;
            }
            if let Some(used) = used? {
                live.end_removal(&removing).await?;
                return Ok(Removal::InUse(used));
            }
        }
        live.end_removal(&removing).await?;
        match deleted {
            Ok(()) => {}
            Err(error) if may_be_gone => return Err(failed(error)),
            Err(error) => return Ok(Removal::Refused(error)),
        }
    }
    if let Some(tag) = own_tag {
        remove_tag(registry, repository, tag, digest).await;
        if let Some(note) = steps_tag(tag) {
            let cluster = live.cluster();
            let is_ours = |origin: &Origin| {
                asking == Some(origin.build_uid.as_str())
                    || cluster.is_some_and(|cluster| origin.is_orphan(cluster, &note, &users))
            };
            keeper.delete_note(&note, is_ours).await?;
        }
    }
    for (one, tag) in attached {
        // somebody's image may have been given such a name
        if users.of(one, asking).is_some() {
            continue;
        }
        tolerate(keeper.delete_attached(one, tag.as_deref()).await, &image)?;
        if let Some(tag) = tag {
            remove_tag(registry, repository, &tag, one).await;
        }
    }
    Ok(Removal::Gone {
        was_there: stored.is_some(),
    })
}

/// Does what is left of a deletion that was cut off: the manifest is put back if it is gone and anybody needs it.
///
/// # Errors
///
/// Of the apiserver or the registry: to be done again.
pub async fn restore(
    live: &impl Needs,
    registry: &Registry,
    removing: &Removing,
) -> Result<(), Error> {
    let image: Option<Reference> = removing.image.parse().ok();
    if let Some(image) = image
        && let Some(digest) = image.digest
    {
        let stored = registry.head_manifest(&image).await;
        let stored = stored.map_err(|source| failed(&image, source.into()))?;
        let users = live.users().await?;
        if stored.is_none()
            && in_use(registry, &image, digest, &users, None)
                .await
                .is_some()
        {
            put_back(registry, &image, removing).await?;
        }
    }
    live.end_removal(removing).await
}

/// Deletes the note of a build's steps under `tag`, if it `is_ours`; that there is none is fine, and a refusal is told.
///
/// # Errors
///
/// Of the apiserver, or transient ones of the registry.
pub async fn remove_note(
    live: &impl Needs,
    registry: &Registry,
    repository: &Repository,
    tag: &str,
    is_ours: impl Fn(&Origin) -> bool,
) -> Result<(), Error> {
    let stream = live.image_stream(repository).await?;
    let keeper = Keeper {
        registry,
        repository,
        stream,
    };
    keeper.delete_note(tag, is_ours).await
}

/// What must be changed for a registry that refused `error` to delete with the credentials in Secret `push_secret`.
#[must_use]
pub fn remedy(error: &DeleteError, push_secret: &str) -> String {
    match (error, error.class()) {
        (DeleteError::ImageStreamTag { namespace, .. }, _) => format!(
            "grant the verbs get and delete on imagestreamtags in namespace {namespace} to the ServiceAccount strata-controller, or delete it by hand"
        ),
        (DeleteError::OtherTag(_), _) => {
            "delete that tag, or let `oc adm prune images` shorten its history".to_owned()
        }
        (DeleteError::Registry(_), Class::User(_)) => format!(
            "grant the right to delete to the credentials in secret {push_secret}, or delete it by hand"
        ),
        (DeleteError::Registry(_), Class::Transient | Class::Permanent(_)) => {
            "let the registry delete manifests by digest (Docker distribution: REGISTRY_STORAGE_DELETE_ENABLED=true), or delete it by hand"
                .to_owned()
        }
    }
}

/// Whether a build other than the asking one pushes to this tag.
fn is_anothers(users: &Users, repository: &Repository, tag: &str, asking: Option<&str>) -> bool {
    let push = repository.tagged(tag).to_string();
    let mut builds = users.os_builds.iter();
    builds.any(|one| {
        one.spec.rendered_image_push_spec == push && one.metadata.uid.as_deref() != asking
    })
}

impl Keeper<'_> {
    /// Deletes a manifest by digest; if the registry doesn't as long as a tag names it, after that tag.
    async fn delete(&self, digest: Digest, tag: Option<&str>) -> Result<(), DeleteError> {
        let Self {
            registry,
            repository,
            stream,
        } = self;
        if let Some(stream) = stream {
            return untag(stream, digest, tag).await;
        }
        let error = match registry.delete_manifest(repository, digest).await {
            Err(error) if error.class() != Class::Transient => error,
            done => return Ok(done?),
        };
        let Some(tag) = tag else {
            return Err(error.into());
        };
        let named = registry.head_manifest(&repository.tagged(tag)).await;
        if !matches!(named, Ok(Some(named)) if named == digest) {
            return Err(error.into());
        }
        match registry.delete_tag(repository, tag).await {
            Ok(true) => Ok(registry.delete_manifest(repository, digest).await?),
            Ok(false) => Err(error.into()),
            Err(of_tag) => {
                debug!(%repository, tag, error = chain(&of_tag), "its tag can't be deleted either");
                Err(error.into())
            }
        }
    }

    /// What belongs to an image, under the tag that it was found by.
    async fn delete_attached(&self, digest: Digest, tag: Option<&str>) -> Result<(), DeleteError> {
        match &self.stream {
            Some(stream) => untag(stream, digest, tag).await,
            None => Ok(self
                .registry
                .delete_manifest(self.repository, digest)
                .await?),
        }
    }

    async fn delete_note(&self, tag: &str, is_ours: impl Fn(&Origin) -> bool) -> Result<(), Error> {
        let image = self.repository.tagged(tag);
        let deleted = match self.registry.stored_manifest(&image).await {
            Ok(Some(note)) if Origin::of(&note.bytes).is_some_and(|origin| is_ours(&origin)) => {
                self.delete_attached(note.digest, Some(tag)).await
            }
            Ok(_) => Ok(()),
            Err(error) => Err(error.into()),
        };
        tolerate(deleted, &image)
    }
}

/// Deletes the ImageStreamTag `tag`, if it names `digest`.
async fn untag(stream: &ImageStream, digest: Digest, tag: Option<&str>) -> Result<(), DeleteError> {
    let namespace = stream.namespace();
    let other = || DeleteError::OtherTag(namespace.to_owned());
    let tag = tag.ok_or_else(other)?;
    match stream.delete(tag, digest).await {
        Ok(true) => Ok(()),
        Ok(false) => Err(other()),
        Err(source) => Err(DeleteError::ImageStreamTag {
            name: stream.tag(tag),
            namespace: namespace.to_owned(),
            source,
        }),
    }
}

fn failed(image: &Reference, source: DeleteError) -> Error {
    Error::Registry {
        image: image.to_string(),
        source,
    }
}

async fn put_back(
    registry: &Registry,
    image: &Reference,
    removing: &Removing,
) -> Result<(), Error> {
    // a tag's manifest is there by its digest, too; in an ImageStream one without a tag would become `latest`
    let reference = match &removing.tag {
        Some(tag) => image.repository.tagged(tag),
        None => image.clone(),
    };
    let manifest = Bytes::from(removing.manifest.clone());
    let put = registry.push_manifest(&reference, &removing.media_type, &manifest);
    if let Err(source) = put.await {
        error!(%image, error = chain(&source), "an image that was taken while it was deleted is not put back yet; ConfigMap {LEDGER_NAME} has its manifest");
        return Err(failed(image, source.into()));
    }
    warn!(%image, "an image that was taken while it was deleted was put back");
    Ok(())
}

/// Deletes a tag that still names what was deleted; nothing depends on it.
async fn remove_tag(registry: &Registry, repository: &Repository, tag: &str, digest: Digest) {
    let done = match registry.head_manifest(&repository.tagged(tag)).await {
        Ok(Some(named)) if named == digest => registry.delete_tag(repository, tag).await,
        Ok(_) => return,
        Err(error) => Err(error),
    };
    if let Err(error) = done {
        debug!(%repository, tag, error = chain(&error), "the registry keeps a tag without its image");
    }
}

/// The manifests that refer to the image, and those that refer to these, each once and with the tag that it was found by.
async fn attached(
    registry: &Registry,
    repository: &Repository,
    digest: Digest,
) -> Result<BTreeMap<Digest, Option<String>>, Error> {
    let mut found = BTreeMap::new();
    for suffix in TAG_SUFFIXES {
        let tag = format!("sha256-{}{suffix}", digest.hex());
        let image = repository.tagged(&tag);
        match registry.head_manifest(&image).await {
            Ok(named) => found.extend(named.map(|named| (named, Some(tag)))),
            Err(error) => tolerate(Err(error.into()), &image)?,
        }
    }
    let mut subjects = vec![digest];
    for _ in 0..DEEPEST {
        let mut next = Vec::new();
        for subject in subjects {
            match registry.referrers(repository, subject).await {
                Ok(referrers) => next.extend(referrers.into_iter().map(|one| one.digest)),
                Err(error) => tolerate(Err(error.into()), &repository.digested(subject))?,
            }
        }
        next.retain(|one| {
            let is_new = *one != digest && !found.contains_key(one);
            if is_new {
                found.insert(*one, None);
            }
            is_new
        });
        if next.is_empty() {
            break;
        }
        subjects = next;
    }
    Ok(found)
}

/// What isn't the image itself may stay where a registry doesn't let us.
fn tolerate(done: Result<(), DeleteError>, image: &Reference) -> Result<(), Error> {
    match done {
        Ok(()) => Ok(()),
        Err(error) if error.class() != Class::Transient => {
            info!(%image, error = chain(&error), "the registry does not delete what belongs to an image");
            Ok(())
        }
        Err(source) => Err(failed(image, source)),
    }
}
