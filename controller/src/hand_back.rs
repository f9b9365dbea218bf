//! How does the incumbent get everything back? Without our finalizers: it would never take one off, and what it deletes would stay for ever.
//!
//! Images of builds that were being deleted at that moment stay in their registry; the ledger has those that wait for the end of their use.

use std::fmt::Debug;

use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, Client, Resource, ResourceExt as _};
use serde::de::DeserializeOwned;
use serde_json::json;
use tracing::info;

use crate::api::{CLEANUP_FINALIZER, FIELD_MANAGER, MachineOSBuild, MachineOSConfig, is_guarded};
use crate::decoded::Decoded;
use crate::error::{Error, code};

/// An object that somebody changes at the same moment is tried so often.
const TRIES: u32 = 10;

/// Takes our finalizer off every object; whoever calls holds the Lease, so that nobody puts it on again.
///
/// # Errors
///
/// Of the apiserver; done again, it goes on with the rest.
pub async fn free_all(client: &Client) -> Result<(), Error> {
    // also off what we can't read
    let builds = free::<Decoded<MachineOSBuild>>(client, "MachineOSBuild").await?;
    let configs = free::<Decoded<MachineOSConfig>>(client, "MachineOSConfig").await?;
    info!(
        builds,
        configs, "took our finalizers off: machine-os-builder may go on; delete this Deployment"
    );
    Ok(())
}

async fn free<K>(client: &Client, kind: &'static str) -> Result<u32, Error>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    let api: Api<K> = Api::all(client.clone());
    let listed = api
        .list(&ListParams::default())
        .await
        .map_err(|source| Error::Read {
            object: format!("{kind}s"),
            source,
        })?;
    let mut freed = 0;
    for object in listed.items.iter().filter(|object| is_guarded(*object)) {
        free_one(&api, kind, object).await?;
        freed += 1;
    }
    Ok(freed)
}

async fn free_one<K>(api: &Api<K>, kind: &'static str, object: &K) -> Result<(), Error>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    let name = object.name_any();
    let failed = |source| Error::Write {
        step: "hand-back",
        object: format!("{kind} {name}"),
        source,
    };
    let parameters = PatchParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PatchParams::default()
    };
    let mut object = object.clone();
    for left in (0..TRIES).rev() {
        let others = object.finalizers().iter();
        let others: Vec<_> = others.filter(|one| *one != CLEANUP_FINALIZER).collect();
        let change = json!({"metadata": {
            "finalizers": others, "resourceVersion": object.resource_version(), "uid": object.uid(),
        }});
        match api.patch(&name, &parameters, &Patch::Merge(change)).await {
            Ok(_) => return Ok(()),
            Err(error) if code(&error) == Some(404) => return Ok(()),
            Err(error) if code(&error) == Some(409) && left > 0 => {}
            Err(error) => return Err(failed(error)),
        }
        match api.get_opt(&name).await.map_err(failed)? {
            Some(now) if is_guarded(&now) => object = now,
            Some(_) | None => return Ok(()),
        }
    }
    Ok(())
}
