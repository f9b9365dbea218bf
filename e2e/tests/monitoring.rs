//! Every query of deploy/monitoring against what the controller really tells.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use kube::ResourceExt as _;
use promql_parser::parser::{self, Expr, LabelModifier};
use promql_parser::util::{ExprVisitor, walk_expr};
use serde_json::Value;
use strata_e2e::World;
use strata_e2e::fixtures::quick;
use strata_e2e::wait::{REACTION, eventually};

/// What Prometheus adds to a series when it reads it.
const ADDED: [&str; 4] = ["instance", "job", "namespace", "pod"];

/// Which metrics a query reads, and by which labels it tells their series apart.
#[derive(Default)]
struct Reads {
    metrics: BTreeSet<String>,
    labels: BTreeSet<String>,
}

impl Reads {
    fn select(&mut self, selector: &parser::VectorSelector) {
        self.metrics.extend(selector.name.clone());
        let matchers = selector.matchers.matchers.iter();
        self.labels
            .extend(matchers.map(|matcher| matcher.name.clone()));
    }

    fn modify(&mut self, modifier: Option<&LabelModifier>) {
        if let Some(LabelModifier::Include(labels) | LabelModifier::Exclude(labels)) = modifier {
            self.labels.extend(labels.labels.iter().cloned());
        }
    }
}

impl ExprVisitor for Reads {
    type Error = std::convert::Infallible;

    fn pre_visit(&mut self, expr: &Expr) -> Result<bool, Self::Error> {
        match expr {
            Expr::VectorSelector(selector) => self.select(selector),
            Expr::MatrixSelector(selector) => self.select(&selector.vs),
            Expr::Aggregate(aggregate) => self.modify(aggregate.modifier.as_ref()),
            Expr::Binary(binary) => {
                let modifier = binary.modifier.as_ref();
                self.modify(modifier.and_then(|modifier| modifier.matching.as_ref()));
            }
            _ => {}
        }
        Ok(true)
    }
}

/// The labels of each metric's series.
fn series(metrics: &str) -> BTreeMap<String, BTreeSet<String>> {
    let mut series: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for line in metrics.lines().filter(|line| !line.starts_with('#')) {
        let (name, rest) = match line.split_once('{') {
            Some((name, rest)) => (name, rest.split_once('}').map_or("", |(labels, _)| labels)),
            None => (line.split(' ').next().unwrap_or_default(), ""),
        };
        let labels = rest.split(',').filter_map(|pair| pair.split_once('='));
        let known = series.entry(name.to_owned()).or_default();
        known.extend(labels.map(|(label, _)| label.to_owned()));
    }
    series
}

/// Names that the controller declares, also those of which it has no series yet.
fn declared(metrics: &str) -> BTreeSet<String> {
    let types = metrics.lines().filter_map(|line| {
        let (name, kind) = line.strip_prefix("# TYPE ")?.split_once(' ')?;
        Some((name, kind))
    });
    types
        .flat_map(|(name, kind)| match kind {
            "counter" => vec![format!("{name}_total")],
            "histogram" => ["bucket", "sum", "count"]
                .map(|end| format!("{name}_{end}"))
                .to_vec(),
            _ => vec![name.to_owned()],
        })
        .collect()
}

/// All strings under the key `expr`.
fn queries(document: &Value, found: &mut Vec<String>) {
    match document {
        Value::Object(fields) => {
            for (key, value) in fields {
                match value.as_str() {
                    Some(query) if key == "expr" => found.push(query.to_owned()),
                    _ => queries(value, found),
                }
            }
        }
        Value::Array(values) => values.iter().for_each(|value| queries(value, found)),
        _ => {}
    }
}

#[tokio::test]
async fn every_query_reads_what_the_controller_tells() -> Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/monitoring");
    let mut asked = Vec::new();
    let alerts = std::fs::read_to_string(folder.join("alerts.yaml"))?;
    queries(&serde_yaml_ng::from_str(&alerts)?, &mut asked);
    ensure!(asked.len() > 5, "alerts: {asked:?}");
    let before = asked.len();
    let dashboard = std::fs::read_to_string(folder.join("dashboard.json"))?;
    queries(&serde_json::from_str(&dashboard)?, &mut asked);
    ensure!(asked.len() > before + 5, "dashboard: {asked:?}");

    let world = World::connect().await?;
    let pool = world.pool("monitored").await?;
    pool.configure(&quick("monitored")).await?;
    pool.succeeds(&[]).await?;
    let metrics = eventually("the build to be counted", REACTION, || async {
        let metrics = world.metrics().await?;
        Ok(metrics
            .contains("strata_build_phase_duration_seconds_bucket{")
            .then_some(metrics))
    })
    .await?;
    pool.remove().await?;
    let (declared, series) = (declared(&metrics), series(&metrics));
    for query in asked {
        let expr = match parser::parse(&query) {
            Ok(expr) => expr,
            Err(error) => bail!("{query}: {error}"),
        };
        let mut reads = Reads::default();
        let Ok(_) = walk_expr(&mut reads, &expr);
        ensure!(!reads.metrics.is_empty(), "{query} reads no metric");
        for metric in &reads.metrics {
            ensure!(declared.contains(metric), "{query}: there is no {metric}");
        }
        // a label that none of its metrics has is a mistake; of what has no series yet nothing is known
        let known: Option<Vec<_>> = reads.metrics.iter().map(|one| series.get(one)).collect();
        let Some(known) = known else {
            continue;
        };
        for label in reads.labels {
            let is_known = label == "le"
                || ADDED.contains(&label.as_str())
                || known.iter().any(|labels| labels.contains(&label));
            ensure!(is_known, "{query}: no series has the label {label}");
        }
    }
    // what the alerts and panels are mostly about has series after one build
    for metric in [
        "ocl_build_state",
        "strata_api_requests_total",
        "strata_builds",
    ] {
        series.get(metric).context(metric)?;
    }
    let leader = world.controller().await?.name_any();
    ensure!(metrics.contains("strata_leader 1"), "{leader} leads");
    Ok(())
}
