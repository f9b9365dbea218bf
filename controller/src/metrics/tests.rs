use super::*;

/// The samples of `metrics` without buckets and what the process is.
fn samples(metrics: &Metrics) -> Vec<String> {
    metrics
        .encode()
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter(|line| !line.contains("_bucket{") && !line.starts_with("process_"))
        .map(str::to_owned)
        .collect()
}

fn report() -> BuildReport {
    serde_json::from_value(serde_json::json!({
        "version": 1, "tier": "userns",
        "outcome": {"result": "pushed", "digest": format!("sha256:{}", "0".repeat(64)), "sizeBytes": 9, "layers": 1, "sentBytes": 7},
        "phases": [{"name": "push", "millis": 1500}, {"name": "unheard of", "millis": 1}],
    }))
    .unwrap()
}

#[test]
fn a_new_process_counts_nothing() {
    let samples = samples(&Metrics::default());
    let all_zero = samples
        .iter()
        .all(|one| one.ends_with(" 0") || one.ends_with(" 0.0"));
    assert!(all_zero, "{samples:#?}");
    // from the first error on its increase is seen
    let errors = |one: &&String| one.starts_with("strata_reconcile_errors_total{");
    assert_eq!(samples.iter().filter(errors).count(), 12);
    let deletions = |one: &&String| one.starts_with("strata_image_deletions_total{");
    assert_eq!(samples.iter().filter(deletions).count(), 4);
    let others = samples.iter().filter(|one| !one.contains('{'));
    assert_eq!(
        others.collect::<Vec<_>>(),
        [
            "strata_queued_builds 0",
            "strata_pushed_images_total 0",
            "strata_pushed_bytes_total 0",
            "strata_leader 0",
            "strata_ledger_entries 0",
            "strata_ledger_oldest_timestamp_seconds 0.0",
            "strata_ledger_failing 0",
            "strata_settings_valid 0",
            "mco_mosc_count 0"
        ]
    );
}

#[test]
fn every_count_has_its_name_its_labels_and_base_units() {
    let metrics = Metrics::new();
    metrics.rule(Kind::OsBuild, "start");
    metrics.rule(Kind::OsBuild, "start");
    metrics.reconcile_seconds(Kind::OsConfig, Duration::from_millis(250));
    metrics.reconcile_error(Kind::Ledger, Class::RIGHTS);
    metrics.step("create-job", Outcome::Done, Duration::from_millis(500));
    metrics.step("create-job", Outcome::Failed, Duration::from_millis(500));
    metrics.leader(true);
    metrics.build_pod(PodShape::Userns);
    metrics.build_pod(PodShape::Rootless);
    metrics.image_deletion(Deletion::Refused);
    metrics.settings_valid(true);
    metrics.ledger(3, Some(Timestamp::from_second(5).unwrap()), 1);
    metrics.api_request("get", Some(404));
    metrics.api_request("get", None);
    let phases = [
        Phase::Initial,
        Phase::Building,
        Phase::Initial,
        Phase::Failed,
    ];
    metrics.builds(&phases, 1);
    metrics.pushed(&report());
    metrics.objects(Kind::OsConfig, 7);
    let mut found = samples(&metrics);
    found.retain(|one| !one.ends_with("\"} 0") || one.contains("_pod") || one.contains("_builds"));
    found.sort_unstable();
    assert_eq!(
        found,
        [
            r#"mco_mosc_count 7"#,
            r#"strata_api_requests_total{verb="get",code="404"} 1"#,
            r#"strata_api_requests_total{verb="get",code="error"} 1"#,
            r#"strata_build_phase_duration_seconds_count{phase="push"} 1"#,
            r#"strata_build_phase_duration_seconds_sum{phase="push"} 1.5"#,
            r#"strata_build_pod{shape="privileged"} 0"#,
            r#"strata_build_pod{shape="rootless"} 1"#,
            r#"strata_build_pod{shape="rootless-default"} 0"#,
            r#"strata_build_pod{shape="userns"} 0"#,
            r#"strata_build_pod{shape="userns-pull"} 0"#,
            r#"strata_builds{phase="building"} 1"#,
            r#"strata_builds{phase="initial"} 2"#,
            r#"strata_builds{phase="prepared"} 0"#,
            r#"strata_image_deletions_total{outcome="refused"} 1"#,
            r#"strata_leader 1"#,
            r#"strata_ledger_entries 3"#,
            r#"strata_ledger_failing 1"#,
            r#"strata_ledger_oldest_timestamp_seconds 5.0"#,
            r#"strata_objects{kind="os_config"} 7"#,
            r#"strata_pushed_bytes_total 7"#,
            r#"strata_pushed_images_total 1"#,
            r#"strata_queued_builds 1"#,
            r#"strata_reconcile_duration_seconds_count{kind="os_config"} 1"#,
            r#"strata_reconcile_duration_seconds_sum{kind="os_config"} 0.25"#,
            r#"strata_reconcile_errors_total{kind="ledger",class="user"} 1"#,
            r#"strata_reconcile_total{kind="os_build",rule="start"} 2"#,
            r#"strata_settings_valid 1"#,
            r#"strata_step_duration_seconds_count{step="create-job"} 2"#,
            r#"strata_step_duration_seconds_sum{step="create-job"} 1.0"#,
            r#"strata_step_total{step="create-job",outcome="done"} 1"#,
            r#"strata_step_total{step="create-job",outcome="failed"} 1"#,
        ]
    );
}

#[test]
fn a_builds_life_is_told_in_the_incumbents_names_and_ends_with_its_pool() {
    let metrics = Metrics::new();
    let ours = |metrics: &Metrics| {
        let mut found: Vec<String> = samples(metrics)
            .into_iter()
            .filter(|line| line.starts_with("ocl_"))
            .filter(|line| !line.starts_with("ocl_build_state") || line.ends_with(" 1"))
            .collect();
        found.sort_unstable();
        found
    };
    let at = |second| Timestamp::from_second(second).ok();
    let prepared = PoolState {
        phase: Some(Phase::Prepared),
        unfinished: 1,
        start: at(100),
        end: None,
    };
    metrics.pool("worker", Some(prepared));
    assert_eq!(
        ours(&metrics),
        [
            r#"ocl_active_builds{pool="worker"} 1"#,
            r#"ocl_build_start_timestamp_seconds{pool="worker"} 100.0"#,
            r#"ocl_build_state{pool="worker",state="pending"} 1"#,
        ]
    );
    metrics.build_ended("worker", Phase::Failed, Some(Duration::from_secs(4)));
    let failed = PoolState {
        phase: Some(Phase::Failed),
        unfinished: 0,
        end: at(104),
        ..prepared
    };
    metrics.pool("worker", Some(failed));
    assert_eq!(
        ours(&metrics),
        [
            r#"ocl_active_builds{pool="worker"} 0"#,
            r#"ocl_build_duration_seconds_count{pool="worker",state="failed"} 1"#,
            r#"ocl_build_duration_seconds_sum{pool="worker",state="failed"} 4.0"#,
            r#"ocl_build_end_timestamp_seconds{pool="worker",state="failed"} 104.0"#,
            r#"ocl_build_start_timestamp_seconds{pool="worker"} 100.0"#,
            r#"ocl_build_state{pool="worker",state="failed"} 1"#,
            r#"ocl_build_total{pool="worker",state="failed"} 1"#,
        ]
    );
    metrics.pool("worker", None);
    assert_eq!(ours(&metrics), [""; 0]);
    assert!(!metrics.encode().contains("worker"));
}

#[test]
fn the_process_tells_its_memory_its_processor_time_and_its_start() {
    let text = Metrics::new().encode();
    for name in [
        "process_start_time_seconds",
        "process_resident_memory_bytes",
        "process_cpu_seconds_total",
    ] {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap();
        let value: f64 = line.split_once(' ').unwrap().1.parse().unwrap();
        assert!(value >= 0.0, "{line}");
    }
}
