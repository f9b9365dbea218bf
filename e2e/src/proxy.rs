//! A controller of this machine between whom and the apiserver things go wrong.
//!
//! It is the shipped program, started as a process, whose kubeconfig names a proxy. The proxy asks the real apiserver in the name of the
//! controller's ServiceAccount, so its rights are the real ones. Every write is disturbed the first time it is seen, and goes through from then
//! on: so each one is tried, and the work goes on.

use std::collections::HashSet;
use std::convert::Infallible;
use std::io;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use http::{HeaderValue, Method, Request, Response, header};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::client::Body;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::process::{Child, Command};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinHandle;

use crate::World;

/// What happens to a write when it is seen for the first time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The controller is killed when the apiserver has done it.
    Kill,
    /// The apiserver does it, and the connection breaks before its answer.
    LoseAnswer,
    /// Another writer changes the object just before.
    Conflict,
}

/// A controller behind a proxy.
pub struct Disturbed {
    shared: Arc<Shared>,
    proxy: JoinHandle<()>,
    keeper: JoinHandle<Result<()>>,
    stop: UnboundedSender<Order>,
    kubeconfig: PathBuf,
}

struct Shared {
    client: Client,
    user: HeaderValue,
    fault: Fault,
    seen: Mutex<HashSet<(Method, String, String)>>,
    disturbed: Mutex<Vec<String>>,
    kill: UnboundedSender<Order>,
}

#[derive(Debug)]
enum Order {
    Kill,
    Stop,
}

impl Disturbed {
    /// Starts a controller, whose writes go wrong in this way.
    ///
    /// # Errors
    /// If STRATA_CONTROLLER, which `make test` sets, is no program, or no port is free.
    pub async fn start(world: &World, fault: Fault) -> Result<Self> {
        let program = std::env::var("STRATA_CONTROLLER")
            .context("STRATA_CONTROLLER is not set: `make test` sets it")?;
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let (orders, received) = unbounded_channel();
        let namespace = &world.namespace;
        let user = format!("system:serviceaccount:{namespace}:strata-controller");
        let shared = Arc::new(Shared {
            client: world.client.clone(),
            user: HeaderValue::try_from(user)?,
            fault,
            seen: Mutex::default(),
            disturbed: Mutex::default(),
            kill: orders.clone(),
        });
        let kubeconfig = std::env::temp_dir().join(format!("strata-proxy-{}", address.port()));
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "proxy",
            "clusters": [{"name": "proxy", "cluster": {"server": format!("http://{address}")}}],
            "users": [{"name": "proxy", "user": {}}],
            "contexts": [{"name": "proxy", "context": {"cluster": "proxy", "user": "proxy"}}],
        });
        std::fs::write(&kubeconfig, config.to_string())?;
        let mut command = Command::new(program);
        command
            .arg("run")
            .env("KUBECONFIG", &kubeconfig)
            .env("STRATA_NAMESPACE", namespace)
            .env("STRATA_LISTEN", "127.0.0.1:0")
            .env("POD_NAME", "disturbed")
            .stdin(Stdio::null())
            .kill_on_drop(true);
        Ok(Self {
            proxy: tokio::spawn(serve(listener, Arc::clone(&shared))),
            keeper: tokio::spawn(keep(command, received)),
            shared,
            stop: orders,
            kubeconfig,
        })
    }

    /// The writes that were disturbed so far: method and path.
    #[must_use]
    pub fn disturbed(&self) -> Vec<String> {
        let disturbed = self.shared.disturbed.lock();
        disturbed.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Stops it as Kubernetes would.
    ///
    /// # Errors
    /// If it had ended by itself.
    pub async fn stop(self) -> Result<()> {
        let _ended_before = self.stop.send(Order::Stop);
        let kept = self.keeper.await?;
        self.proxy.abort();
        std::fs::remove_file(&self.kubeconfig)?;
        kept
    }
}

/// Starts the controller, and again whenever it was killed.
async fn keep(mut command: Command, mut orders: UnboundedReceiver<Order>) -> Result<()> {
    loop {
        let mut child = command.spawn().context("start the controller")?;
        let order = tokio::select! {
            order = orders.recv() => order,
            ended = child.wait() => bail!("the controller ended by itself: {:?}", ended?),
        };
        match order {
            Some(Order::Kill) => child.kill().await?,
            Some(Order::Stop) | None => return terminate(child).await,
        }
        // of several writes at the same time the first has killed it for all
        while let Ok(order) = orders.try_recv() {
            if let Order::Stop = order {
                return Ok(());
            }
        }
    }
}

async fn terminate(mut child: Child) -> Result<()> {
    let id = child.id().and_then(|id| Pid::from_raw(id.try_into().ok()?));
    if let Some(id) = id {
        kill_process(id, Signal::TERM)?;
    }
    let ended = tokio::time::timeout(Duration::from_secs(20), child.wait()).await;
    let status = ended.context("the controller doesn't end when it is told to")??;
    ensure!(status.success(), "the controller ended with {status}");
    Ok(())
}

async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    while let Ok((stream, _)) = listener.accept().await {
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            let answer = service_fn(move |request| pass_on(request, Arc::clone(&shared)));
            // what breaks here, the controller sees
            let _broken = http1::Builder::new()
                .serve_connection(TokioIo::new(stream), answer)
                .await;
        });
    }
}

async fn pass_on(request: Request<Incoming>, shared: Arc<Shared>) -> io::Result<Response<Body>> {
    let (mut parts, body) = request.into_parts();
    let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
    parts.headers.remove(header::HOST);
    let user = shared.user.clone();
    parts.headers.insert("impersonate-user", user);
    let is_first = shared.is_first(&parts.method, parts.uri.path(), &body);
    let path = parts.uri.path().to_owned();
    let method = parts.method.clone();
    let fault = is_first.then_some(shared.fault);
    if fault == Some(Fault::Conflict) && method == Method::PATCH {
        shared.touch(&path).await;
    }
    let request = Request::from_parts(parts, Body::from(body));
    let answer = shared.client.send(request).await;
    match fault {
        Some(Fault::Kill) => {
            let _stopping = shared.kill.send(Order::Kill);
            let never: Infallible = std::future::pending().await;
            match never {}
        }
        Some(Fault::LoseAnswer) => Err(io::Error::other("the answer is lost")),
        Some(Fault::Conflict) | None => answer.map_err(io::Error::other),
    }
}

impl Shared {
    /// Whether this is a write of the controller's work, and new; what keeps the Lease, and what only tells, is neither.
    fn is_first(&self, method: &Method, path: &str, body: &[u8]) -> bool {
        let is_other = ["/leases", "/events"]
            .iter()
            .any(|kind| path.contains(kind));
        if method == Method::GET || is_other {
            return false;
        }
        let mut body: Value = serde_json::from_slice(body).unwrap_or_default();
        without_time(&mut body);
        let write = (method.clone(), path.to_owned(), body.to_string());
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let is_first = seen.insert(write);
        if is_first {
            let mut disturbed = self
                .disturbed
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            disturbed.push(format!("{method} {path}"));
        }
        is_first
    }

    /// Another writer's annotation on the object.
    async fn touch(&self, path: &str) {
        let object = path.strip_suffix("/status").unwrap_or(path);
        let value = format!("{:?}", Instant::now());
        let change = json!({"metadata": {"annotations": {"example.com/touched": value}}});
        let request = Request::patch(object)
            .header(header::CONTENT_TYPE, "application/merge-patch+json")
            .body(Body::from(change.to_string().into_bytes()));
        if let Ok(request) = request {
            // one that is gone can't be touched
            let _gone = self.client.send(request).await;
        }
    }
}

/// Without what is another one with each try: times, and the version that was read.
fn without_time(body: &mut Value) {
    match body {
        Value::Object(fields) => {
            fields.remove("resourceVersion");
            fields.values_mut().for_each(without_time);
        }
        Value::Array(values) => values.iter_mut().for_each(without_time),
        Value::String(text) if text.parse::<Timestamp>().is_ok() => text.clear(),
        _ => {}
    }
}
