//! How the controller does with thousands of objects: `fleet CONFIGS…`, on the test cluster without its own controller.
//!
//! For each number: so many configs with four succeeded builds each are made as Strata leaves them; the shipped program, started as a process, is
//! measured from its start until it writes nothing any more, then for half a minute at rest, then at one edit. Prints an array of records
//! (section, workload, subject, metric, unit, median, min, max, runs).

use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{DeleteParams, ListParams, ObjectMeta, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt as _};
use serde_json::{Value, json};
use strata_controller::api::{
    CLEANUP_FINALIZER, MachineConfig, MachineConfigPool, MachineOSBuild, MachineOSConfig,
    NameReference,
};
use strata_controller::os_config::new_build;
use strata_controller::phase::Phase;
use strata_controller::wanted::{Wanted, wanted};
use strata_e2e::World;
use strata_e2e::fixtures::{self, quick};
use strata_e2e::wait::eventually;
use strata_e2e::world::{annotation, object};
use tokio::process::{Child, Command};

/// Requests at the same time while the fleet is made.
const AT_ONCE: usize = 24;
/// Builds of each config.
const BUILDS: usize = 4;
/// Without a write for so long it is settled.
const QUIET: Duration = Duration::from_secs(5);
/// At rest.
const REST: Duration = Duration::from_secs(30);
/// Nothing takes so long.
const LIMIT: Duration = Duration::from_secs(900);

#[tokio::main]
async fn main() -> Result<()> {
    let world = World::connect().await?;
    // what an earlier run has left
    remove(&world).await?;
    let mut records = Vec::new();
    let mut there = 0;
    for count in std::env::args().skip(1) {
        let count: usize = count.parse().context("usage: fleet CONFIGS…")?;
        let begin = Instant::now();
        stream::iter(there..count)
            .map(|n| make(&world, n))
            .buffer_unordered(AT_ONCE)
            .try_collect::<Vec<()>>()
            .await?;
        there = count;
        eprintln!("{count} configs made in {:.0?}", begin.elapsed());
        records.extend(measure(&world, count).await?);
    }
    println!("{}", serde_json::to_string_pretty(&records)?);
    remove(&world).await
}

fn name(n: usize) -> String {
    format!("fleet-{n}")
}

/// A config as Strata leaves it: the newest of its builds is the one that it wants and names.
async fn make(world: &World, n: usize) -> Result<()> {
    let (name, rendered) = (name(n), fixtures::rendered_name(&name(n), 1));
    let machine_config = fixtures::machine_config(&rendered, &world.base_image);
    let parameters = PostParams::default();
    world
        .objects("MachineConfig")
        .create(&parameters, &object(machine_config.clone())?)
        .await?;
    let pool = fixtures::pool(&name, &rendered);
    let pools: Api<MachineConfigPool> = Api::all(world.client.clone());
    let pool = pools
        .create(&parameters, &serde_json::from_value(pool)?)
        .await?;
    let mut config = fixtures::os_config(&name, &quick(&name));
    config["metadata"]["finalizers"] = json!([CLEANUP_FINALIZER]);
    let configs: Api<MachineOSConfig> = Api::all(world.client.clone());
    let config = configs
        .create(&parameters, &serde_json::from_value(config)?)
        .await?;
    let machine_config: MachineConfig = serde_json::from_value(machine_config)?;
    let Wanted::Build(inputs) = wanted(&config, Some(&pool), Some(&machine_config)) else {
        anyhow::bail!("{name} wants nothing");
    };
    let builds: Api<MachineOSBuild> = Api::all(world.client.clone());
    for older in (0..BUILDS).rev() {
        let mut build = new_build(&inputs, &config);
        let digest = format!("sha256:{n:032x}{older:032x}");
        let repository = inputs.push.repository.to_string();
        let image = format!("{repository}@{digest}");
        if older > 0 {
            build.metadata.name = Some(format!("{name}-{older:032x}"));
            build.spec.machine_config = NameReference::new(format!("{rendered}-{older}"));
            build.spec.rendered_image_push_spec = format!("{repository}:{older}");
        }
        let build = builds.create(&parameters, &build).await?;
        let now = k8s_openapi::jiff::Timestamp::now();
        let mut conditions = Vec::new();
        Phase::Succeeded.write(&mut conditions, None, now);
        let status = json!({"status": {
            "conditions": conditions, "digestedImagePushSpec": image,
            "buildStart": Time(now), "buildEnd": Time(now + k8s_openapi::jiff::SignedDuration::from_secs(1)),
        }});
        let merge = PatchParams::default();
        builds
            .patch_status(&build.name_any(), &merge, &Patch::Merge(status))
            .await?;
        if older == 0 {
            let status = json!({"status": {
                "currentImagePullSpec": image, "observedGeneration": config.metadata.generation,
                "machineOSBuild": {
                    "group": "machineconfiguration.openshift.io", "resource": "machineosbuilds",
                    "name": build.name_any(),
                },
            }});
            configs
                .patch_status(&name, &merge, &Patch::Merge(status))
                .await?;
        }
    }
    Ok(())
}

/// A controller, and where it tells its metrics.
struct Running {
    child: Child,
    url: String,
}

impl Running {
    async fn start(world: &World) -> Result<Self> {
        let program = std::env::var("STRATA_CONTROLLER").context("STRATA_CONTROLLER is not set")?;
        let child = Command::new(program)
            .arg("run")
            .env("STRATA_NAMESPACE", &world.namespace)
            .env("STRATA_LISTEN", "127.0.0.1:18797")
            .env("STRATA_LOG", "warn")
            .env("POD_NAME", "fleet")
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .spawn()?;
        Ok(Self {
            child,
            url: "127.0.0.1:18797".to_owned(),
        })
    }

    /// The value of a metric, summed over its series whose labels hold none of `but`; none while nobody answers.
    async fn sum(&self, metric: &str, but: &[&str]) -> Result<Option<f64>> {
        let fetched = Command::new("curl")
            .args(["-sf", &format!("http://{}/metrics", self.url)])
            .output()
            .await?;
        if !fetched.status.success() {
            return Ok(None);
        }
        let text = String::from_utf8(fetched.stdout)?;
        let series = text.lines().filter(|line| {
            let rest = line.strip_prefix(metric);
            rest.is_some_and(|rest| rest.starts_with(['{', ' ']))
                && !but.iter().any(|label| line.contains(label))
        });
        let values = series.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok());
        Ok(Some(values.sum()))
    }

    /// Requests that change something, but for the Lease's.
    async fn writes(&self) -> Result<Option<f64>> {
        let reads = [
            "verb=\"get\"",
            "verb=\"list\"",
            "verb=\"watch\"",
            "verb=\"update\"",
        ];
        self.sum("strata_api_requests_total", &reads).await
    }

    /// Waits until it leads and has written nothing for a while; how long it took to the last write, and how many there were.
    async fn settled(&self, begin: Instant) -> Result<(Duration, f64)> {
        let mut last = (begin, -1.0);
        loop {
            ensure!(begin.elapsed() < LIMIT, "it doesn't settle");
            tokio::time::sleep(Duration::from_millis(250)).await;
            let leads = self.sum("strata_leader", &[]).await? == Some(1.0);
            let passes = self
                .sum("strata_reconcile_total", &[])
                .await?
                .unwrap_or_default();
            let writes = self.writes().await?.unwrap_or_default();
            let work = passes + writes;
            if !leads || passes == 0.0 || work > last.1 {
                last = (Instant::now(), work);
            } else if last.0.elapsed() > QUIET {
                return Ok((last.0.duration_since(begin), writes));
            }
        }
    }

    /// Waits until it has looked once at all repositories and at all images that a status names, as it does at its start and then every few hours.
    async fn has_looked(&self) -> Result<()> {
        let begin = Instant::now();
        let changes = [
            "verb=\"create\"",
            "verb=\"patch\"",
            "verb=\"update\"",
            "verb=\"delete\"",
        ];
        loop {
            ensure!(begin.elapsed() < LIMIT, "it doesn't end its looks");
            let reads = async || self.sum("strata_api_requests_total", &changes).await;
            let before = reads().await?;
            tokio::time::sleep(QUIET).await;
            // the Lease is read on and on
            if reads().await?.unwrap_or_default() - before.unwrap_or_default()
                <= QUIET.as_secs_f64()
            {
                return Ok(());
            }
        }
    }

    async fn stop(mut self) -> Result<()> {
        self.child.kill().await?;
        Ok(())
    }
}

async fn measure(world: &World, count: usize) -> Result<Vec<Value>> {
    let record = |metric: &str, unit: &str, value: f64| {
        eprintln!("{count} configs: {metric} {value:.3} {unit}");
        json!({
            "section": "controller", "workload": format!("{count}-configs"), "subject": "strata",
            "metric": metric, "unit": unit, "median": value, "min": value, "max": value, "runs": 1,
        })
    };
    // what a first start writes (the pools' conditions) it writes once
    let first = Running::start(world).await?;
    let (took, writes) = first.settled(Instant::now()).await?;
    eprintln!("{count} configs: a first start wrote {writes} times in {took:.1?}");
    first.stop().await?;

    let begin = Instant::now();
    let running = Running::start(world).await?;
    let (settle, _) = running.settled(begin).await?;
    running.has_looked().await?;
    let cpu = "process_cpu_seconds_total";
    let missing = || "no metrics".to_owned();
    let before = running.sum(cpu, &[]).await?.with_context(missing)?;
    let writes = running.writes().await?.with_context(missing)?;
    tokio::time::sleep(REST).await;
    let used = running.sum(cpu, &[]).await?.with_context(missing)? - before;
    let written = running.writes().await?.with_context(missing)? - writes;
    let rss = running
        .sum("process_resident_memory_bytes", &[])
        .await?
        .with_context(missing)?;
    let edit = edit(world, count / 2).await?;
    running.stop().await?;
    Ok(vec![
        record("settle", "s", settle.as_secs_f64()),
        record("rss", "MiB", rss / f64::from(1 << 20)),
        record("writes-settled", "count", written),
        record("cpu-settled", "%", used / REST.as_secs_f64() * 100.0),
        record("edit-to-build", "s", edit.as_secs_f64()),
    ])
}

/// From an edit of one config to its new build, which is then taken away again.
async fn edit(world: &World, n: usize) -> Result<Duration> {
    let name = name(n);
    // what the config says costs the apiserver little to tell; a list of builds costs it all builds
    let current = || async {
        let config = world.os_configs().get(&name).await?;
        anyhow::Ok(annotation(&config, "current-machine-os-build"))
    };
    let before = current().await?;
    let content = json!([{"containerfileArch": "NoArch", "content": quick("edited")}]);
    let edit = Patch::Merge(json!({"spec": {"containerFile": content}}));
    let begin = Instant::now();
    let configs = world.os_configs();
    configs.patch(&name, &PatchParams::default(), &edit).await?;
    eventually("the new build", LIMIT, || async {
        Ok((current().await? != before).then_some(()))
    })
    .await?;
    let took = begin.elapsed();
    let back = json!([{"containerfileArch": "NoArch", "content": quick(&name)}]);
    let back = Patch::Merge(json!({"spec": {"containerFile": back}}));
    configs.patch(&name, &PatchParams::default(), &back).await?;
    Ok(took)
}

/// Takes the fleet away, without the finalizers that nobody is there to take off.
async fn remove(world: &World) -> Result<()> {
    let free = Patch::Merge(json!({"metadata": {"finalizers": Value::Null}}));
    let of_fleet = |meta: &ObjectMeta| {
        let name = meta.name.as_deref().unwrap_or_default();
        name.starts_with("fleet-") || name.starts_with("rendered-fleet-")
    };
    for kind in [
        "MachineOSBuild",
        "MachineOSConfig",
        "MachineConfigPool",
        "MachineConfig",
    ] {
        let api = world.objects(kind);
        let all = api.list_metadata(&ListParams::default()).await?;
        let all = all.items.into_iter().filter(|one| of_fleet(&one.metadata));
        stream::iter(all)
            .map(|one| {
                let (api, free) = (api.clone(), free.clone());
                async move {
                    let name = one.name_any();
                    // an owner's end may have been faster
                    let _gone = api.patch(&name, &PatchParams::default(), &free).await;
                    let _gone = api.delete(&name, &DeleteParams::background()).await;
                }
            })
            .buffer_unordered(AT_ONCE)
            .collect::<Vec<()>>()
            .await;
    }
    Ok(())
}
