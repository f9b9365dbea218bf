use super::*;
use crate::fixtures;

fn build(uid: &str, os_config: &str) -> MachineOSBuild {
    let mut os_build = fixtures::os_build();
    os_build.metadata.name = Some(format!("build-{uid}"));
    os_build.metadata.uid = Some(uid.to_owned());
    os_build.spec.machine_os_config.name = os_config.to_owned();
    os_build
}

fn uids(touched: &[Arc<MachineOSBuild>]) -> Vec<String> {
    let mut uids: Vec<_> = touched.iter().filter_map(|one| one.uid()).collect();
    uids.sort();
    uids
}

#[test]
fn objects_are_found_by_group_and_move_between_groups() {
    let (kept, mut keeper) = kept(build_groups);
    keeper.take(&Event::Apply(build("1", "a")));
    keeper.take(&Event::Apply(build("2", "a")));
    assert_eq!(kept.names_in("a"), ["build-1", "build-2"]);
    keeper.take(&Event::Apply(build("2", "b")));
    assert_eq!(kept.names_in("a"), ["build-1"]);
    assert_eq!(uids(&kept.of("b")), ["2"]);
    keeper.take(&Event::Delete(build("1", "a")));
    assert!(kept.of("a").is_empty());
}

fn undecodable(name: &str, generation: i64) -> Decoded<MachineOSBuild> {
    serde_json::from_value(serde_json::json!({
        "apiVersion": "machineconfiguration.openshift.io/v1",
        "kind": "MachineOSBuild",
        "metadata": {"name": name, "uid": name, "generation": generation},
        "spec": {"machineConfig": 7},
    }))
    .unwrap()
}

#[test]
fn what_can_not_be_decoded_is_kept_apart_told_once_and_taken_back_when_it_is_mended() {
    let (kept, mut keeper) = kept(build_groups);
    let whole = |name| Decoded::Whole(build(name, "a"));
    let apart = |kept: &Kept<MachineOSBuild>| -> Vec<String> {
        let apart = kept.all_undecodable();
        apart.iter().map(|one| one.name().to_owned()).collect()
    };
    type Row = (
        Event<Decoded<MachineOSBuild>>,
        Vec<&'static str>,
        bool,
        bool,
        Vec<&'static str>,
    );
    let rows: Vec<Row> = vec![
        (Event::Init, vec![], false, false, vec![]),
        (Event::InitApply(whole("1")), vec![], false, false, vec![]),
        // the others of its list are there all the same
        (
            Event::InitApply(undecodable("build-2", 1)),
            vec![],
            true,
            false,
            vec![],
        ),
        (Event::InitDone, vec!["1"], false, true, vec!["build-2"]),
        // its status may be written as often as it will
        (
            Event::Apply(undecodable("build-2", 1)),
            vec![],
            false,
            false,
            vec!["build-2"],
        ),
        (
            Event::Apply(undecodable("build-2", 2)),
            vec![],
            true,
            true,
            vec!["build-2"],
        ),
        (Event::Apply(whole("2")), vec!["2"], false, true, vec![]),
        (
            Event::Apply(undecodable("build-1", 3)),
            vec!["1"],
            true,
            true,
            vec!["build-1"],
        ),
        (
            Event::Delete(undecodable("build-1", 3)),
            vec![],
            false,
            true,
            vec![],
        ),
        (Event::Init, vec![], false, false, vec![]),
        (
            Event::InitApply(undecodable("build-2", 4)),
            vec![],
            true,
            false,
            vec![],
        ),
        (Event::InitDone, vec!["2"], false, true, vec!["build-2"]),
        (Event::Init, vec![], false, false, vec!["build-2"]),
        (
            Event::InitApply(undecodable("build-2", 4)),
            vec![],
            false,
            false,
            vec!["build-2"],
        ),
        (Event::InitDone, vec![], false, false, vec!["build-2"]),
    ];
    for (n, (event, touched, is_news, is_other, are_apart)) in rows.into_iter().enumerate() {
        let heard = keeper.hear(event);
        assert_eq!(uids(&heard.touched), touched, "{n}");
        assert_eq!(heard.news.is_some(), is_news, "{n}");
        assert_eq!(heard.is_other, is_other, "{n}");
        assert_eq!(apart(&kept), are_apart, "{n}");
    }
    assert!(kept.names_in("a").is_empty());
}

fn broken<K>(name: &str) -> Decoded<K>
where
    K: Resource<DynamicType = ()> + serde::de::DeserializeOwned,
{
    serde_json::from_value(serde_json::json!({
        "apiVersion": K::api_version(&()),
        "kind": K::kind(&()),
        "metadata": {"name": name},
        "spec": 7,
    }))
    .unwrap()
}

#[test]
fn what_decides_on_a_build_and_can_not_be_decoded_is_named() {
    let (os_builds, mut builds) = kept(build_groups);
    let (pools, mut pool_keeper) = kept(pool_groups);
    let (machine_configs, mut machine_config_keeper) = kept(ungrouped);
    let cache = Cache {
        os_configs: kept(config_groups).0,
        os_builds,
        pools,
        machine_configs,
        nodes: kept(ungrouped).0,
        jobs: kept(owned_groups).0,
        config_maps: kept(owned_groups).0,
        secrets: kept(owned_groups).0,
    };
    let told = || match cache.wanted(&fixtures::os_config()).0 {
        Wanted::Invalid { why, .. } => why.split(" can't be read").next().unwrap().to_owned(),
        Wanted::Waiting(told) => told,
        Wanted::Build(inputs) => inputs.name.to_string(),
    };
    let name = fixtures::inputs().name.to_string();
    let mut said = Vec::new();
    pool_keeper.hear(Event::Apply(broken("worker")));
    said.push(told());
    pool_keeper.hear(Event::Apply(Decoded::Whole(fixtures::pool())));
    machine_config_keeper.hear(Event::Apply(broken("rendered-worker-0")));
    said.push(told());
    let machine_config = fixtures::machine_config();
    machine_config_keeper.hear(Event::Apply(Decoded::Whole(machine_config)));
    builds.hear(Event::Apply(broken(&name)));
    said.push(told());
    builds.hear(Event::Delete(broken(&name)));
    said.push(told());
    let wanted = [
        "MachineConfigPool worker",
        "MachineConfig rendered-worker-0",
        &format!("MachineOSBuild {name}"),
        &name,
    ];
    assert_eq!(said, wanted);
}

#[test]
fn a_new_list_concerns_what_is_there_and_what_has_gone_unseen() {
    let (kept, mut keeper) = kept(build_groups);
    keeper.take(&Event::Apply(build("1", "a")));
    keeper.take(&Event::Apply(build("2", "a")));
    assert!(keeper.take(&Event::Init).is_empty());
    assert!(keeper.take(&Event::InitApply(build("2", "a"))).is_empty());
    keeper.take(&Event::InitApply(build("3", "b")));
    // until the list is whole, the old one holds
    assert_eq!(kept.names_in("a"), ["build-1", "build-2"]);
    assert_eq!(uids(&keeper.take(&Event::InitDone)), ["1", "2", "3"]);
    assert_eq!(kept.names_in("a"), ["build-2"]);
    assert_eq!(kept.names_in("b"), ["build-3"]);
}
