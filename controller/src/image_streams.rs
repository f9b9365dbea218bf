//! Which repositories does the cluster keep itself?
//!
//! OpenShift's own registry shows what ImageStreams name, and deletes no manifest by the registries' API: it refuses, or says that there is none. So an
//! image goes from there with its ImageStreamTag, as `oc delete imagestreamtag` does it; its bytes go when `oc adm prune images` finds it in no stream.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, DynamicObject};
use kube::core::{ApiResource, GroupVersionKind};
use kube::{Api, Client};
use serde::Deserialize;
use strata_builder::digest::Digest;
use strata_builder::reference::Repository;

use crate::error::code;

/// What a Service's name may end with.
const CLUSTER_DOMAIN: &str = ".cluster.local";
const CLUSTER_IMAGE_NAME: &str = "cluster";

/// A repository of the cluster's own registry.
#[derive(Clone, Debug)]
pub struct ImageStream {
    tags: Api<DynamicObject>,
    namespace: String,
    name: String,
}

/// Where the cluster's own registry is, as `images.config.openshift.io` says.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Hosts {
    /// Of its Service.
    internal_registry_hostname: Option<String>,
    /// Of its routes.
    #[serde(default)]
    external_registry_hostnames: Vec<String>,
}

impl Hosts {
    /// Whether `host`, with its port, is one of them.
    fn have(&self, host: &str) -> bool {
        let plain = |host: &str| host.replacen(CLUSTER_DOMAIN, "", 1);
        let mut known = self
            .internal_registry_hostname
            .iter()
            .chain(&self.external_registry_hostnames);
        known.any(|known| plain(known) == plain(host))
    }
}

impl ImageStream {
    /// The one behind `repository`; none on plain Kubernetes, and for other registries.
    ///
    /// # Errors
    ///
    /// The apiserver's.
    pub async fn of(client: &Client, repository: &Repository) -> Result<Option<Self>, kube::Error> {
        let Some((namespace, name)) = repository.path().split_once('/') else {
            return Ok(None);
        };
        let kind = resource("config.openshift.io", "Image", "images");
        let images: Api<DynamicObject> = Api::all_with(client.clone(), &kind);
        let image = match images.get(CLUSTER_IMAGE_NAME).await {
            Ok(image) => image,
            Err(error) if code(&error) == Some(404) => return Ok(None),
            Err(error) => return Err(error),
        };
        let hosts = Hosts::deserialize(&image.data["status"]).unwrap_or_default();
        if !hosts.have(repository.host()) || name.contains('/') {
            return Ok(None);
        }
        let kind = resource("image.openshift.io", "ImageStreamTag", "imagestreamtags");
        Ok(Some(Self {
            tags: Api::namespaced_with(client.clone(), namespace, &kind),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        }))
    }

    /// metadata.namespace.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// metadata.name of the ImageStreamTag for `tag`.
    #[must_use]
    pub fn tag(&self, tag: &str) -> String {
        format!("{}:{tag}", self.name)
    }

    /// Deletes `tag` if it names `digest`; whether it did.
    ///
    /// # Errors
    ///
    /// The apiserver's.
    pub async fn delete(&self, tag: &str, digest: Digest) -> Result<bool, kube::Error> {
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Image {
            metadata: ObjectMeta,
        }
        let name = self.tag(tag);
        let Some(found) = self.tags.get_opt(&name).await? else {
            return Ok(false);
        };
        let image = Image::deserialize(&found.data["image"]).unwrap_or_default();
        if image.metadata.name != Some(digest.to_string()) {
            return Ok(false);
        }
        match self.tags.delete(&name, &DeleteParams::default()).await {
            Err(error) if code(&error) != Some(404) => Err(error),
            _ => Ok(true),
        }
    }
}

fn resource(group: &str, kind: &str, plural: &str) -> ApiResource {
    ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, "v1", kind), plural)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_registrys_service_and_routes_are_known_by_their_names() {
        let hosts = Hosts {
            internal_registry_hostname: Some(
                "image-registry.openshift-image-registry.svc:5000".to_owned(),
            ),
            external_registry_hostnames: vec!["registry.apps.example.com".to_owned()],
        };
        for (host, is_its) in [
            ("image-registry.openshift-image-registry.svc:5000", true),
            (
                "image-registry.openshift-image-registry.svc.cluster.local:5000",
                true,
            ),
            ("registry.apps.example.com", true),
            ("image-registry.openshift-image-registry.svc", false),
            ("registry.example.com", false),
        ] {
            assert_eq!(hosts.have(host), is_its, "{host}");
        }
        assert!(!Hosts::default().have(""));
    }
}
