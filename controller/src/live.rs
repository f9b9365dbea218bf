//! What is the case at this moment?
//!
//! Reads that a pass makes anew, because the watches may lag behind. One request each; nothing is decided here.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, Event, Node, Pod, Secret};
use kube::api::{ListParams, Patch, PatchParams};
use kube::core::{ClusterResourceScope, PartialObjectMeta};
use kube::{Api, Client, Resource, ResourceExt as _};
use serde::de::DeserializeOwned;
use serde_json::json;
use strata_builder::error::chain;
use strata_builder::reference::{Reference, Repository};

use crate::api::{
    CONTROLLER_CONFIG_NAME, ControllerConfig, MachineConfig, MachineConfigPool, MachineOSBuild,
    MachineOSConfig, label, name,
};
use crate::cache::Cache;
use crate::context::Context;
use crate::decoded::{Decoded, Undecodable};
use crate::error::{Error, code, within};
use crate::image_streams::ImageStream;
use crate::inputs::OptionalMounts;
use crate::job::{JobSettings, PodShape};
use crate::ledger::{AtWork, Entry, Removing};
use crate::registries::{Answer, in_use, read_controller_config};
use crate::settings::BuildSettings;
use crate::turns::Turns;
use crate::usage::{Use, Users};
use crate::wanted::Wanted;
use crate::watches::keep_outcome;

/// Of all reads of a pass together: the registry's and those of all that can name an image have limits of their own, which leave room
/// for the rest.
pub const OBSERVE_LIMIT: Duration = Duration::from_secs(120);
/// Of one question to a registry. Far above what one that works needs; one that hangs is one that can't be asked for now.
const LOOK_LIMIT: Duration = Duration::from_secs(20);
/// Of reading all that can name an image. Twice that, before a deletion and after it, fits into the time of a step, so that what was taken meanwhile
/// is put back.
const USERS_LIMIT: Duration = Duration::from_secs(40);

/// What deleting an image needs; every error is the apiserver's.
pub trait Needs: Sync {
    /// What images say that are built here; none if the cluster can't be told.
    fn cluster(&self) -> Option<&str>;

    /// What keeps the images of `repository`, if that is in OpenShift's own registry.
    fn image_stream(&self, repository: &Repository) -> impl Read<Option<ImageStream>>;

    /// All that can name an image.
    fn users(&self) -> impl Read<Users>;

    /// Notes that a manifest is about to be deleted, so that it can be put back if this process ends before it has seen that nobody took it.
    fn begin_removal(&self, removing: &Removing) -> impl Read<AtWork>;

    /// Takes the note away.
    fn end_removal(&self, removing: &Removing) -> impl Read<()>;
}

/// What observing needs. Absence is a value; every error is the apiserver's.
pub trait Live: Needs {
    /// What the watches have told.
    fn cache(&self) -> &Cache;

    /// Where all namespaced objects live.
    fn namespace(&self) -> &str;

    /// What shapes builds at this moment.
    fn settings(&self) -> Arc<BuildSettings>;

    /// Which build `os_config` wants, and its pool, as the watches told them.
    fn wanted(&self, os_config: &MachineOSConfig) -> (Wanted, Option<Arc<MachineConfigPool>>) {
        self.cache().wanted(os_config)
    }

    /// Whose turn it is.
    fn turns(&self) -> &Turns;

    /// The MachineOSConfig of this name.
    fn os_config(&self, name: &str) -> impl Read<Option<MachineOSConfig>>;

    /// The MachineOSBuilds of this MachineOSConfig that the watch has told, and the one that it wants, each as it is at this moment.
    ///
    /// Not a list: what that costs the apiserver grows with the builds of all configs.
    fn os_builds(&self, os_config: &str, wanted: Option<&str>) -> impl Read<Vec<MachineOSBuild>> {
        async move {
            let known = self.cache().os_builds.names_in(os_config);
            let mut names: BTreeSet<String> = known.into_iter().collect();
            names.extend(wanted.map(str::to_owned));
            let mut found = Vec::new();
            for name in names {
                let os_build = self.os_build(&name).await?;
                found.extend(os_build.filter(|one| one.spec.machine_os_config.name == os_config));
            }
            Ok(found)
        }
    }

    /// The MachineOSBuild of this name.
    fn os_build(&self, name: &str) -> impl Read<Option<MachineOSBuild>>;

    /// The Job of this name.
    fn job(&self, name: &str) -> impl Read<Option<Job>>;

    /// The pods of the Job with this UID.
    fn pods(&self, job_uid: &str) -> impl Read<Vec<Pod>>;

    /// The pods made for builds of this name, whatever became of their Job.
    fn pods_of_build(&self, os_build: &str) -> impl Read<Vec<Pod>>;

    /// Why no pod could be made for the Job with this UID, as its controller told last.
    fn refused_pod(&self, job_uid: &str) -> impl Read<Option<String>>;

    /// What the node has against starting the pod with this UID, as it told last.
    fn refused_start(&self, pod_uid: &str) -> impl Read<Option<String>>;

    /// The shape of pods of builds with these settings, or why the cluster takes none.
    fn pod_shape(&self, settings: &JobSettings) -> impl Read<Result<PodShape, String>>;

    /// Whether the apiserver would take `image` for the status of `os_build`, or why not; nothing is written.
    fn takes_image(
        &self,
        os_build: &MachineOSBuild,
        image: &Reference,
    ) -> impl Read<Result<(), String>>;

    /// The MachineConfig of this name, whole.
    fn machine_config(&self, name: &str) -> impl Read<Option<MachineConfig>>;

    /// The cluster's settings; plain Kubernetes may have none.
    fn controller_config(&self) -> impl Read<Option<ControllerConfig>>;

    /// The Secret of this name.
    fn secret(&self, name: &str) -> impl Read<Option<Secret>>;

    /// The ConfigMap of this name.
    fn config_map(&self, name: &str) -> impl Read<Option<ConfigMap>>;

    /// Which of the optional objects of builds for this pool exist.
    fn optional_mounts(&self, pool: &str) -> impl Read<OptionalMounts>;

    /// What the ledger has.
    fn entries(&self) -> impl Read<Vec<Entry>>;

    /// Who needs `image`, asked with the Secret `push_secret`; what is being deleted needs nothing, nor does the build with the UID `asking`.
    fn used(
        &self,
        image: &Reference,
        push_secret: &str,
        asking: Option<&str>,
    ) -> impl Read<Option<Use>>;

    /// Whether `image`, which a status names, was looked for in vain.
    fn is_missing(&self, image: &Reference) -> bool;

    /// What the registry says of `image`, asked with the Secret `push_secret`; with `manifest` its build's UID too.
    fn look(
        &self,
        image: &Reference,
        push_secret: &str,
        manifest: bool,
    ) -> impl Future<Output = Answer> + Send;
}

/// A request to the apiserver.
pub trait Read<T>: Future<Output = Result<T, Error>> + Send {}

impl<T, F: Future<Output = Result<T, Error>> + Send> Read<T> for F {}

impl Needs for Context {
    fn cluster(&self) -> Option<&str> {
        self.cluster.as_deref()
    }

    async fn image_stream(&self, repository: &Repository) -> Result<Option<ImageStream>, Error> {
        let found = ImageStream::of(&self.client, repository).await;
        found.map_err(|source| Error::Read {
            object: "images.config.openshift.io cluster".to_owned(),
            source,
        })
    }

    async fn users(&self) -> Result<Users, Error> {
        within("reading what names images", USERS_LIMIT, users(self)).await
    }

    async fn begin_removal(&self, removing: &Removing) -> Result<AtWork, Error> {
        Ok(self.ledger.begin(removing).await?)
    }

    async fn end_removal(&self, removing: &Removing) -> Result<(), Error> {
        Ok(self.ledger.end(removing).await?)
    }
}

impl Live for Context {
    fn cache(&self) -> &Cache {
        &self.cache
    }

    fn namespace(&self) -> &str {
        &self.namespace
    }

    fn settings(&self) -> Arc<BuildSettings> {
        self.settings.get()
    }

    fn turns(&self) -> &Turns {
        &self.turns
    }

    async fn os_config(&self, name: &str) -> Result<Option<MachineOSConfig>, Error> {
        get_whole(&self.client, "MachineOSConfig", name).await
    }

    async fn os_build(&self, name: &str) -> Result<Option<MachineOSBuild>, Error> {
        get_whole(&self.client, "MachineOSBuild", name).await
    }

    async fn job(&self, name: &str) -> Result<Option<Job>, Error> {
        get(&self.namespaced(), "Job", name).await
    }

    async fn pods(&self, job_uid: &str) -> Result<Vec<Pod>, Error> {
        let selector = format!("batch.kubernetes.io/controller-uid={job_uid}");
        list(&self.namespaced(), "Pods", Some(&selector)).await
    }

    async fn pods_of_build(&self, os_build: &str) -> Result<Vec<Pod>, Error> {
        let selector = format!("{}={os_build}", label::OS_BUILD);
        list(&self.namespaced(), "Pods", Some(&selector)).await
    }

    async fn refused_pod(&self, job_uid: &str) -> Result<Option<String>, Error> {
        newest_event(
            &self.namespaced(),
            &format!("involvedObject.uid={job_uid},reason=FailedCreate"),
        )
        .await
    }

    async fn refused_start(&self, pod_uid: &str) -> Result<Option<String>, Error> {
        newest_event(
            &self.namespaced(),
            &format!("involvedObject.uid={pod_uid},type=Warning"),
        )
        .await
    }

    async fn pod_shape(&self, settings: &JobSettings) -> Result<Result<PodShape, String>, Error> {
        self.trials.shape(&self.client, settings).await
    }

    async fn takes_image(
        &self,
        os_build: &MachineOSBuild,
        image: &Reference,
    ) -> Result<Result<(), String>, Error> {
        let api: Api<MachineOSBuild> = Api::all(self.client.clone());
        let parameters = PatchParams {
            dry_run: true,
            ..PatchParams::default()
        };
        let name = os_build.name_any();
        let change = json!({"status": {"digestedImagePushSpec": image.to_string()}});
        match api
            .patch_status(&name, &parameters, &Patch::Merge(change))
            .await
        {
            Ok(_) => Ok(Ok(())),
            Err(error) if code(&error) == Some(422) => Ok(Err(chain(&error))),
            Err(source) => Err(failed(|| format!("MachineOSBuild {name}"))(source)),
        }
    }

    async fn machine_config(&self, name: &str) -> Result<Option<MachineConfig>, Error> {
        get_whole(&self.client, "MachineConfig", name).await
    }

    async fn controller_config(&self) -> Result<Option<ControllerConfig>, Error> {
        read_controller_config(&self.client)
            .await
            .map_err(failed(|| {
                format!("ControllerConfig {CONTROLLER_CONFIG_NAME}")
            }))
    }

    async fn secret(&self, name: &str) -> Result<Option<Secret>, Error> {
        get(&self.namespaced(), "Secret", name).await
    }

    async fn config_map(&self, name: &str) -> Result<Option<ConfigMap>, Error> {
        get(&self.namespaced(), "ConfigMap", name).await
    }

    async fn optional_mounts(&self, pool: &str) -> Result<OptionalMounts, Error> {
        let secrets: Api<PartialObjectMeta<Secret>> = self.namespaced();
        let config_maps: Api<PartialObjectMeta<ConfigMap>> = self.namespaced();
        let entitlement = name::entitlement(pool);
        let (entitlement, rpm_gpg, yum_repos) = futures::try_join!(
            get(&secrets, "Secret", &entitlement),
            get(&secrets, "Secret", name::RPM_GPG),
            get(&config_maps, "ConfigMap", name::YUM_REPOS),
        )?;
        Ok(OptionalMounts {
            entitlement: entitlement.is_some(),
            yum_repos: yum_repos.is_some(),
            rpm_gpg: rpm_gpg.is_some(),
        })
    }

    async fn entries(&self) -> Result<Vec<Entry>, Error> {
        Ok(self.ledger.entries().await?)
    }

    async fn used(
        &self,
        image: &Reference,
        push_secret: &str,
        asking: Option<&str>,
    ) -> Result<Option<Use>, Error> {
        let Some(digest) = image.digest else {
            return Ok(None);
        };
        let users = self.users().await?;
        if let Some(used) = users.of(digest, asking) {
            return Ok(Some(used));
        }
        let looking = async {
            match self.registries.open(push_secret).await {
                Ok(registry) => in_use(&registry, image, digest, &users, asking).await,
                Err(error) => Some(Use::Unknown(chain(&error))),
            }
        };
        let looked = tokio::time::timeout(USERS_LIMIT, looking).await;
        Ok(looked.unwrap_or_else(|_elapsed| Some(Use::Unknown(silent(image, USERS_LIMIT)))))
    }

    fn is_missing(&self, image: &Reference) -> bool {
        self.is_missing(image)
    }

    async fn look(&self, image: &Reference, push_secret: &str, manifest: bool) -> Answer {
        let looking = self.registries.look(image, push_secret, manifest);
        let looked = tokio::time::timeout(LOOK_LIMIT, looking).await;
        looked.unwrap_or_else(|_elapsed| Answer::Unknown(silent(image, LOOK_LIMIT)))
    }
}

fn silent(image: &Reference, limit: Duration) -> String {
    let seconds = limit.as_secs();
    format!("its registry did not tell of {image} within {seconds} s")
}

async fn users(context: &Context) -> Result<Users, Error> {
    let client = || context.client.clone();
    let nodes: Api<Node> = Api::all(client());
    // in the order in which an image is handed on: so none is missed that changes hands meanwhile
    let mut undecodable = Vec::new();
    let os_builds = all(
        &Api::all(client()),
        "MachineOSBuilds",
        keep_outcome,
        &mut undecodable,
    )
    .await?;
    let entries = context.ledger.entries().await?;
    let os_configs = all(
        &Api::all(client()),
        "MachineOSConfigs",
        |_| {},
        &mut undecodable,
    )
    .await?;
    let machine_configs = machine_configs(context, &mut undecodable).await?;
    let nodes = nodes.list_metadata(&ListParams::default()).await;
    let nodes = nodes.map_err(failed(|| "Nodes".to_owned()))?.items;
    Ok(Users {
        nodes: nodes.into_iter().map(Arc::new).collect(),
        os_configs,
        os_builds,
        machine_configs,
        entries,
        undecodable,
    })
}

/// All MachineConfigs as they are now, without what names no image. They are large, so of those that the watch has told in
/// this version only that is asked.
async fn machine_configs(
    context: &Context,
    undecodable: &mut Vec<Arc<Undecodable>>,
) -> Result<Vec<Arc<MachineConfig>>, Error> {
    let api: Api<Decoded<MachineConfig>> = Api::all(context.client.clone());
    let listed = api.list_metadata(&ListParams::default()).await;
    let mut found = Vec::new();
    for one in listed
        .map_err(failed(|| "MachineConfigs".to_owned()))?
        .items
    {
        let name = one.name_any();
        let known = context.cache.machine_configs.get(&name).filter(|known| {
            known.uid() == one.uid() && known.resource_version() == one.resource_version()
        });
        if let Some(known) = known {
            found.push(known);
            continue;
        }
        match get(&api, "MachineConfig", &name).await? {
            Some(Decoded::Whole(machine_config)) => found.push(Arc::new(machine_config)),
            Some(Decoded::Undecodable(one)) => undecodable.push(Arc::from(one)),
            None => {}
        }
    }
    Ok(found)
}

/// What the newest event with `selector` says.
async fn newest_event(events: &Api<Event>, selector: &str) -> Result<Option<String>, Error> {
    let events = events
        .list(&ListParams::default().fields(selector))
        .await
        .map_err(failed(|| format!("Events with {selector}")))?;
    let newest = events
        .items
        .into_iter()
        .max_by_key(|event| event.last_timestamp.as_ref().map(|time| time.0));
    Ok(newest.and_then(|event| event.message))
}

async fn get<K>(api: &Api<K>, kind: &'static str, name: &str) -> Result<Option<K>, Error>
where
    K: Resource + Clone + std::fmt::Debug + DeserializeOwned,
{
    api.get_opt(name)
        .await
        .map_err(failed(|| format!("{kind} {name}")))
}

/// As [`get`]; one that can't be decoded is an error of its own.
async fn get_whole<K>(client: &Client, kind: &'static str, name: &str) -> Result<Option<K>, Error>
where
    K: Resource<DynamicType = (), Scope = ClusterResourceScope>
        + Clone
        + std::fmt::Debug
        + DeserializeOwned,
{
    let api: Api<Decoded<K>> = Api::all(client.clone());
    match get(&api, kind, name).await? {
        Some(Decoded::Whole(object)) => Ok(Some(object)),
        Some(Decoded::Undecodable(one)) => Err(Error::Undecodable(one.told())),
        None => Ok(None),
    }
}

/// Objects that one answer of the apiserver holds: so that neither it nor this process has thousands in hand as text.
const PAGE: u32 = 500;

/// All objects of a kind, each trimmed, in pages of one state of the cluster; those that can't be decoded go to the others that can't.
async fn all<K>(
    api: &Api<Decoded<K>>,
    kinds: &'static str,
    trim: fn(&mut K),
    undecodable: &mut Vec<Arc<Undecodable>>,
) -> Result<Vec<Arc<K>>, Error>
where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned,
{
    let mut page = ListParams::default().limit(PAGE);
    let mut found = Vec::new();
    loop {
        let listed = api.list(&page).await.map_err(failed(|| kinds.to_owned()))?;
        for one in listed.items {
            match one {
                Decoded::Whole(mut object) => {
                    object.managed_fields_mut().clear();
                    trim(&mut object);
                    found.push(Arc::new(object));
                }
                Decoded::Undecodable(one) => undecodable.push(Arc::from(one)),
            }
        }
        match listed.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => page.continue_token = Some(token),
            None => return Ok(found),
        }
    }
}

async fn list<K>(api: &Api<K>, kinds: &'static str, selector: Option<&str>) -> Result<Vec<K>, Error>
where
    K: Resource + Clone + std::fmt::Debug + DeserializeOwned,
{
    let which = selector.map_or_else(ListParams::default, |selector| {
        ListParams::default().labels(selector)
    });
    let found = api.list(&which).await.map_err(failed(|| match selector {
        Some(selector) => format!("{kinds} with {selector}"),
        None => kinds.to_owned(),
    }))?;
    Ok(found.items)
}

fn failed(object: impl FnOnce() -> String) -> impl FnOnce(kube::Error) -> Error {
    move |source| Error::Read {
        object: object(),
        source,
    }
}
