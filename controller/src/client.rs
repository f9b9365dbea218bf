//! How is the apiserver reached? By kube's client, each of its requests counted, and none waited for without an end.
//!
//! | what | until it fails, transiently |
//! | --- | --- |
//! | a read, until its answer begins | 30 s |
//! | a write, until its answer begins | 70 s |
//! | an answer of which nothing more comes, that of a watch too | 310 s |

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Method, Request, Response};
use kube::client::ClientBuilder;
use kube::{Client, Config};
use tower::layer::layer_fn;
use tower::{BoxError, Service};

use crate::metrics::Metrics;

/// A healthy apiserver begins to answer a read within seconds; one that is restarted closes its connections.
const READ_LIMIT: Duration = Duration::from_secs(30);
/// Longer than the apiserver's own limit of a minute, since what its webhooks and quotas have against a change is told at its end.
const WRITE_LIMIT: Duration = Duration::from_secs(70);
/// Longer than kube waits for the next event of a watch, 295 s, so that a quiet one isn't cut.
const IDLE_LIMIT: Duration = Duration::from_secs(310);

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
    let mut config = Config::infer().await?;
    config.read_timeout = Some(IDLE_LIMIT);
    // what a connection has waited for its next request doesn't count
    config.reset_reader_on_write = true;
    let limiting = layer_fn(|service| Limited { service, limit });
    let metrics = metrics.clone();
    let counting = layer_fn(move |service| Counted {
        service,
        metrics: metrics.clone(),
    });
    Ok(ClientBuilder::try_from(config)?
        .with_layer(&limiting)
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

/// The apiserver is silent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the apiserver did not begin to answer within {} s", .0.as_secs())]
pub struct Silence(pub Duration);

/// Fails when the answer of `service` doesn't begin in time. Whatever is in it may take longer: a watch goes on for minutes.
#[derive(Clone)]
struct Limited<S> {
    service: S,
    limit: fn(&Method) -> Duration,
}

impl<S, B, R> Service<Request<B>> for Limited<S>
where
    S: Service<Request<B>, Response = Response<R>>,
    S::Error: Into<BoxError>,
    S::Future: Send + 'static,
{
    type Response = Response<R>;
    type Error = BoxError;
    type Future = Answer<R, BoxError>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.service.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let limit = (self.limit)(request.method());
        let answer = self.service.call(request);
        Box::pin(async move {
            match tokio::time::timeout(limit, answer).await {
                Ok(answer) => answer.map_err(Into::into),
                Err(_elapsed) => Err(Silence(limit).into()),
            }
        })
    }
}

/// How long to wait until an answer begins.
fn limit(method: &Method) -> Duration {
    match *method {
        Method::GET | Method::HEAD => READ_LIMIT,
        _ => WRITE_LIMIT,
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
    use std::convert::Infallible;

    use strata_builder::error::{Class, chain};

    use super::*;

    /// Answers after so long, or never.
    struct Answering(Option<Duration>);

    impl Service<Request<()>> for Answering {
        type Response = Response<()>;
        type Error = Infallible;
        type Future = Answer<(), Infallible>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, _: Request<()>) -> Self::Future {
            let after = self.0;
            Box::pin(async move {
                match after {
                    Some(after) => tokio::time::sleep(after).await,
                    None => std::future::pending().await,
                }
                Ok(Response::new(()))
            })
        }
    }

    #[tokio::test]
    async fn an_answer_that_does_not_begin_in_time_is_a_transient_failure() {
        const SHORT: Duration = Duration::from_millis(20);
        for (after, is_answered) in [(Some(Duration::ZERO), true), (None, false)] {
            let mut service = Limited {
                service: Answering(after),
                limit: |_| SHORT,
            };
            let answer = service.call(Request::new(())).await;
            let failure = answer.err().map(kube::Error::Service);
            assert_eq!(failure.is_none(), is_answered, "{after:?}");
            if let Some(failure) = failure {
                assert_eq!(crate::error::class_of(&failure), Class::Transient);
                assert_eq!(
                    chain(&Silence(READ_LIMIT)),
                    "the apiserver did not begin to answer within 30 s"
                );
            }
        }
    }

    #[test]
    fn a_write_is_waited_for_longer_than_the_apiserver_takes_to_refuse_it() {
        let minute = Duration::from_secs(60);
        for (method, is_longer) in [
            (Method::GET, false),
            (Method::POST, true),
            (Method::PUT, true),
            (Method::PATCH, true),
            (Method::DELETE, true),
        ] {
            assert_eq!(limit(&method) > minute, is_longer, "{method}");
        }
    }

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
