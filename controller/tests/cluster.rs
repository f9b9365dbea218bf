//! The Lease and events on a real apiserver, in a namespace of their own. Only in the test cluster's network
//! (`e2e/cluster/exec cargo test -p strata-controller --test cluster -- --ignored`).

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::{Namespace, ObjectReference};
use k8s_openapi::api::events::v1::Event;
use kube::api::{Api, DeleteParams, ListParams, ObjectMeta, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt as _};
use strata_controller::api::LEASE_NAME;
use strata_controller::events::{Notice, Reason, Recorder};
use strata_controller::lease::{Leadership, LeaseError, Lost, acquire};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

const DEADLINE: Duration = Duration::from_secs(60);
/// Less than the 30 s after which a Lease of ours expires, far above what a slow machine needs.
const UNEXPIRED: Duration = Duration::from_secs(20);

/// A namespace that goes with the test.
async fn namespace(test: &str) -> Result<(Client, String)> {
    // KUBECONFIG alone may be anybody's cluster
    if std::env::var_os("KUBECONFIG").is_none() || std::env::var_os("STRATA_BASE_IMAGE").is_none() {
        bail!("not in the test cluster's network: run it by e2e/cluster/exec");
    }
    let _installed_before = rustls::crypto::ring::default_provider().install_default();
    let client = Client::try_default().await?;
    let name = format!("strata-test-{test}-{}", std::process::id());
    let namespace = Namespace {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            ..ObjectMeta::default()
        },
        ..Namespace::default()
    };
    Api::all(client.clone())
        .create(&PostParams::default(), &namespace)
        .await?;
    Ok((client, name))
}

async fn remove(client: Client, namespace: &str) -> Result<()> {
    let namespaces: Api<Namespace> = Api::all(client);
    namespaces
        .delete(namespace, &DeleteParams::default())
        .await?;
    Ok(())
}

struct Candidate {
    shutdown: CancellationToken,
    waiting: JoinHandle<Result<Option<Leadership>, LeaseError>>,
}

impl Candidate {
    fn new(client: &Client, namespace: &str, identity: &'static str) -> Self {
        let shutdown = CancellationToken::new();
        let (client, namespace, token) = (client.clone(), namespace.to_owned(), shutdown.clone());
        let waiting =
            tokio::spawn(async move { acquire(client, &namespace, identity, token).await });
        Self { shutdown, waiting }
    }

    async fn leads(&mut self) -> Result<Leadership> {
        timeout(DEADLINE, &mut self.waiting)
            .await???
            .context("shut down instead of leading")
    }

    /// Renews until the token is cancelled.
    async fn holds(mut self) -> Result<(CancellationToken, JoinHandle<Lost>)> {
        let leadership = self.leads().await?;
        let held = tokio::spawn(leadership.hold(self.shutdown.clone()));
        Ok((self.shutdown, held))
    }
}

async fn spec(leases: &Api<Lease>) -> Result<LeaseSpec> {
    leases.get(LEASE_NAME).await?.spec.context("no spec")
}

#[tokio::test]
#[ignore = "needs the test cluster: make test runs it there"]
async fn a_released_lease_and_an_own_one_are_taken_without_waiting_for_their_end() -> Result<()> {
    let (client, namespace) = namespace("release").await?;
    let leases: Api<Lease> = Api::namespaced(client.clone(), &namespace);
    let (stop_a, held_a) = Candidate::new(&client, &namespace, "a").holds().await?;
    let b = Candidate::new(&client, &namespace, "b");

    let first = spec(&leases).await?;
    assert_eq!(first.holder_identity.as_deref(), Some("a"));
    assert_eq!(first.lease_duration_seconds, Some(30));
    // long enough for a renewal
    let begun = Instant::now();
    while spec(&leases).await?.renew_time == first.renew_time {
        if begun.elapsed() > DEADLINE {
            bail!("never renewed");
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert!(!b.waiting.is_finished());

    // a container of the same pod that begins anew
    let restarted = Instant::now();
    let mut again = Candidate::new(&client, &namespace, "a");
    again.leads().await?;
    assert!(restarted.elapsed() < UNEXPIRED);

    let released = Instant::now();
    stop_a.cancel();
    assert_eq!(timeout(DEADLINE, held_a).await??, Lost::Released);
    let (stop_b, held_b) = b.holds().await?;
    assert!(released.elapsed() < UNEXPIRED, "{:?}", released.elapsed());
    let second = spec(&leases).await?;
    assert_eq!(second.holder_identity.as_deref(), Some("b"));
    assert_eq!(second.lease_transitions, Some(1));

    stop_b.cancel();
    assert_eq!(timeout(DEADLINE, held_b).await??, Lost::Released);
    assert_eq!(spec(&leases).await?.holder_identity.as_deref(), Some(""));
    remove(client, &namespace).await
}

#[tokio::test]
#[ignore = "needs the test cluster: make test runs it there"]
async fn a_foreign_lease_is_waited_for_by_its_own_duration_and_a_stolen_one_is_lost() -> Result<()>
{
    let (client, namespace) = namespace("expiry").await?;
    let leases: Api<Lease> = Api::namespaced(client.clone(), &namespace);
    let foreign: Lease = serde_json::from_value(serde_json::json!({
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": LEASE_NAME, "annotations": {"kept": "yes"}},
        // its clock is far behind
        "spec": {"holderIdentity": "host_uuid", "leaseDurationSeconds": 4, "leaseTransitions": 7, "renewTime": "2001-01-01T00:00:00.000000Z"},
    }))?;
    leases.create(&PostParams::default(), &foreign).await?;
    let begun = Instant::now();
    let (stop, held) = Candidate::new(&client, &namespace, "a").holds().await?;
    let waited = begun.elapsed();
    assert!(
        waited > Duration::from_secs(4) && waited < UNEXPIRED,
        "{waited:?}"
    );
    let lease = leases.get(LEASE_NAME).await?;
    assert_eq!(lease.annotations()["kept"], "yes");
    assert_eq!(lease.spec.and_then(|spec| spec.lease_transitions), Some(8));

    // somebody touches it: it stays ours
    let touch = serde_json::json!({"metadata": {"annotations": {"kept": "no"}}});
    let merge = |patch| Patch::Merge(patch);
    let parameters = PatchParams::default();
    leases.patch(LEASE_NAME, &parameters, &merge(touch)).await?;
    let touched = spec(&leases).await?;
    let begun = Instant::now();
    while spec(&leases).await?.renew_time == touched.renew_time {
        if begun.elapsed() > DEADLINE {
            bail!("not renewed after it was touched");
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    // somebody deletes it: it is made again
    leases.delete(LEASE_NAME, &DeleteParams::default()).await?;
    let begun = Instant::now();
    while leases.get_opt(LEASE_NAME).await?.is_none() {
        if begun.elapsed() > DEADLINE {
            bail!("not made again");
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert!(!held.is_finished());
    // somebody takes it
    let steal = serde_json::json!({"spec": {"holderIdentity": "thief"}});
    leases.patch(LEASE_NAME, &parameters, &merge(steal)).await?;
    assert_eq!(timeout(DEADLINE, held).await??, Lost::Expired);
    assert_eq!(
        spec(&leases).await?.holder_identity.as_deref(),
        Some("thief")
    );
    stop.cancel();

    let waiting = Candidate::new(&client, &namespace, "b");
    waiting.shutdown.cancel();
    assert!(timeout(DEADLINE, waiting.waiting).await???.is_none());
    remove(client, &namespace).await
}

#[tokio::test]
#[ignore = "needs the test cluster: make test runs it there"]
async fn without_the_namespace_the_wait_ends_with_an_error() -> Result<()> {
    let (client, namespace) = namespace("absent").await?;
    let absent = format!("{namespace}-not");
    let error = timeout(
        DEADLINE,
        acquire(client.clone(), &absent, "a", CancellationToken::new()),
    )
    .await?
    .err()
    .context("acquired")?;
    assert_eq!(
        error.to_string(),
        format!("can't create lease machine-os-builder in namespace {absent}")
    );
    remove(client, &namespace).await
}

#[tokio::test]
#[ignore = "needs the test cluster: make test runs it there"]
async fn events_are_written_told_apart_by_their_note_and_counted() -> Result<()> {
    let (client, namespace) = namespace("events").await?;
    let recorder = Recorder::new(client.clone(), "pod-1");
    let about = |namespace: Option<&str>, version: &str| ObjectReference {
        api_version: Some("machineconfiguration.openshift.io/v1".to_owned()),
        kind: Some("MachineOSConfig".to_owned()),
        name: Some(format!("config-{}", std::process::id())),
        namespace: namespace.map(str::to_owned),
        resource_version: Some(version.to_owned()),
        uid: Some(format!("uid-{}", std::process::id())),
        ..ObjectReference::default()
    };
    let secret = |name: &str| {
        Notice::new(
            Reason::Waiting,
            format!("create Secret {name} in {namespace}"),
        )
    };
    // cluster-scoped
    recorder.publish(&about(None, "1"), &secret("a")).await;
    recorder.publish(&about(None, "2"), &secret("b")).await;
    recorder.publish(&about(None, "3"), &secret("b")).await;
    let long = Notice::new(Reason::BuildFailed, "é".repeat(5000));
    recorder.publish(&about(None, "4"), &long).await;
    // namespaced
    recorder
        .publish(&about(Some(&namespace), "1"), &secret("c"))
        .await;

    let found = async |namespace: &str| -> Result<Vec<Event>> {
        let events: Api<Event> = Api::namespaced(client.clone(), namespace);
        let uid = about(None, "").uid;
        let mut list = events.list(&ListParams::default()).await?.items;
        list.retain(|event| event.regarding.as_ref().and_then(|about| about.uid.clone()) == uid);
        list.sort_by_key(|event| event.event_time.clone().map(|time| time.0));
        Ok(list)
    };
    let told = |events: &[Event]| -> Vec<(String, String, i32)> {
        events
            .iter()
            .map(|event| {
                let note: String = event
                    .note
                    .iter()
                    .flat_map(|note| note.chars())
                    .take(16)
                    .collect();
                let count = event.series.as_ref().map_or(1, |series| series.count);
                (event.type_.clone().unwrap_or_default(), note, count)
            })
            .collect()
    };
    let of_cluster = found("default").await?;
    let warning = |note: &str, count| ("Warning".to_owned(), note.to_owned(), count);
    assert_eq!(
        told(&of_cluster),
        [
            warning("create Secret a ", 1),
            warning("create Secret b ", 2),
            warning(&"é".repeat(16), 1),
        ]
    );
    assert_eq!(
        of_cluster[0].reporting_controller.as_deref(),
        Some("machineosbuilder")
    );
    assert_eq!(
        told(&found(&namespace).await?),
        [warning("create Secret c ", 1)]
    );
    let in_default: Api<Event> = Api::namespaced(client.clone(), "default");
    for event in of_cluster {
        in_default
            .delete(&event.name_any(), &DeleteParams::default())
            .await?;
    }
    remove(client, &namespace).await
}
