//! How is the apiserver reached? By kube's client, each of its requests counted.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use http::{Method, Request, Response};
use kube::client::ClientBuilder;
use kube::{Client, Config};
use tower::Service;
use tower::layer::layer_fn;

use crate::metrics::Metrics;

/// A client for the cluster of this pod, or of the kubeconfig; it may be none.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Neither a pod's environment nor a kubeconfig.
    #[error("find a cluster: in one, or by KUBECONFIG")]
    Config(#[from] kube::config::InferConfigError),
    /// What the kubeconfig names can't be used.
    #[error("make a client of what the kubeconfig names")]
    Client(#[from] kube::Error),
}

/// A client whose requests `metrics` count.
///
/// # Errors
///
/// Permanent: no cluster is known, or what is known of it is wrong.
pub async fn connect(metrics: &Metrics) -> Result<Client, ConnectError> {
    let config = Config::infer().await?;
    let metrics = metrics.clone();
    let counting = layer_fn(move |service| Counted {
        service,
        metrics: metrics.clone(),
    });
    Ok(ClientBuilder::try_from(config)?
        .with_layer(&counting)
        .build())
}

/// Counts what `service` is asked, and how it answers.
#[derive(Clone)]
struct Counted<S> {
    service: S,
    metrics: Metrics,
}

type Answer<R, E> = Pin<Box<dyn Future<Output = Result<Response<R>, E>> + Send>>;

impl<S, B, R> Service<Request<B>> for Counted<S>
where
    S: Service<Request<B>, Response = Response<R>>,
    S::Future: Send + 'static,
{
    type Response = Response<R>;
    type Error = S::Error;
    type Future = Answer<R, S::Error>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.service.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let verb = verb(request.method(), request.uri());
        let metrics = self.metrics.clone();
        let answer = self.service.call(request);
        Box::pin(async move {
            let answer = answer.await;
            let code = answer.as_ref().ok().map(|one| one.status().as_u16());
            metrics.api_request(verb, code);
            answer
        })
    }
}

/// The verb of the apiserver's own metrics and of its audit log.
fn verb(method: &Method, uri: &http::Uri) -> &'static str {
    match *method {
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ if uri.query().is_some_and(is_watch) => "watch",
        _ if is_collection(uri.path()) => "list",
        _ => "get",
    }
}

fn is_watch(query: &str) -> bool {
    query
        .split('&')
        .any(|pair| matches!(pair, "watch" | "watch=1" | "watch=true"))
}

/// `/api/VERSION/[namespaces/NAMESPACE/]RESOURCE`, or the same under `/apis/GROUP/VERSION`.
fn is_collection(path: &str) -> bool {
    let mut parts = path.split('/').filter(|part| !part.is_empty());
    let skipped = match parts.next() {
        Some("api") => 1,
        Some("apis") => 2,
        _ => return false,
    };
    let parts: Vec<&str> = parts.skip(skipped).collect();
    matches!(parts.as_slice(), [_] | ["namespaces", _, _])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verbs_are_those_of_the_apiserver() {
        let ours = "/apis/machineconfiguration.openshift.io/v1/machineosbuilds";
        for (method, uri, wanted) in [
            (
                Method::GET,
                "/api/v1/namespaces/ns/secrets/push".to_owned(),
                "get",
            ),
            (
                Method::GET,
                "/api/v1/namespaces/ns/secrets".to_owned(),
                "list",
            ),
            (Method::GET, "/api/v1/nodes?limit=500".to_owned(), "list"),
            (Method::GET, "/api/v1/namespaces/ns".to_owned(), "get"),
            (Method::GET, "/version".to_owned(), "get"),
            (Method::GET, ours.to_owned(), "list"),
            (Method::GET, format!("{ours}/worker-0"), "get"),
            (Method::GET, format!("{ours}?a=b&watch=true&c=d"), "watch"),
            (Method::POST, ours.to_owned(), "create"),
            (Method::PATCH, format!("{ours}/worker-0/status"), "patch"),
            (Method::PUT, format!("{ours}/worker-0"), "update"),
            (Method::DELETE, format!("{ours}/worker-0"), "delete"),
        ] {
            assert_eq!(
                verb(&method, &uri.parse().unwrap()),
                wanted,
                "{method} {uri}"
            );
        }
    }
}
