//! Do the plans keep their promises in whatever order things happen?
//!
//! A history is a script of what users, nodes, Kubernetes, a registry and chance do, in a [`world`] that is small enough
//! to hold in memory. Observing and planning are the real ones and are shown that world; watches may be late, passes
//! are cut off between any two requests, requests fail or lose their answers. What must hold at every request is
//! checked in [`promises`]; then the world comes to rest, and what must hold at rest is checked in [`end`].
//!
//! This is a model for properties of pure functions. That apiserver and registries really behave so is tested on
//! real ones.
//!
//! | promise | checked |
//! | --- | --- |
//! | settles | at rest: every config has its image or the reason why not, nothing is being deleted |
//! | crash-safe | a pass may be dropped before each of its requests |
//! | at most one live build | at rest no build is live |
//! | one build for one content | at each start of a build |
//! | no more builds than may | at each start of a build |
//! | never deletes an image in use | at each deletion of a manifest |
//! | another cluster's images stay | at each deletion of a manifest |
//! | retention | at each deletion of a build that a config has no other reason for; at rest nothing is left that may go |
//! | terminal is terminal | at each write of a build's status |
//! | guarded | at each request with an effect outside |
//! | owned only | at each deletion |
//! | quiet | at rest a second look at everything writes nothing |
//! | a build has a cause | at rest: so one rebuild annotation is one rebuild |
//! | nothing is left over | at rest, and after the deletion of all configs |

mod controller;
mod end;
mod found;
mod kubernetes;
mod promises;
mod registry;
mod requests;
mod script;
mod table;
mod world;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::time::Instant;

use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};

use self::controller::Hearing;
use self::kubernetes::End;
use self::script::{Action, Verb, scripts};
use self::table::Propagation;
use self::world::World;
use crate::fixtures::documented_rules;

/// Unless STRATA_HISTORIES says another number.
const HISTORIES: u32 = 10_000;
/// Actions in a history.
const LONGEST: usize = 150;
/// How many searches go on at the same time.
const SEARCHES: u32 = 4;

/// What became of the world of a script: the promise that it broke, if any.
fn play(script: &[Action], mut world: World) -> World {
    for action in script {
        act(&mut world, *action);
        if world.broken_rule.is_some() {
            return world;
        }
    }
    world.come_to_rest();
    world.check();
    if world.broken_rule.is_none() {
        world.remove_all();
    }
    world
}

fn act(world: &mut World, Action { verb, n }: Action) {
    match verb {
        Verb::Pass => {
            world.go_on(n);
        }
        Verb::Tell => {
            world.hear_one(n, Hearing::Once);
        }
        Verb::TellTwice => {
            world.hear_one(n, Hearing::Twice);
        }
        Verb::Relist => world.relist(n),
        Verb::Crash => {
            world.stop();
            world.start();
        }
        Verb::Stop => world.stop(),
        Verb::Start => world.start(),
        Verb::Refuse => world.controller.refuses = true,
        Verb::WriteFails => world.controller.write_fails = true,
        Verb::AnswerLost => world.controller.answer_lost = true,
        Verb::ReadFails => *world.read_fails.get_mut() = true,
        Verb::Unguard => world.unguard(n),
        Verb::TouchConfig => world.touch_config(n),
        Verb::TouchBuild => world.touch_build(n),
        Verb::Limit => world.limit(n),
        Verb::Works => {
            world.works();
        }
        Verb::Calm => {
            for _ in 0..=n {
                world.round();
            }
        }
        Verb::Create => world.create_config(n, false),
        Verb::Seed => world.create_config(n, true),
        Verb::Edit => world.edit(n),
        Verb::Rebuild => world.ask_for_rebuild(n),
        Verb::Retain => world.retain(n),
        Verb::DeleteConfig => world.delete_config(n),
        Verb::DeleteBuild => world.delete_build(n, Propagation::Background),
        Verb::DeleteBuildForeground => world.delete_build(n, Propagation::Foreground),
        Verb::DeleteJob => world.delete_job(n),
        Verb::SecretGone => world.secret_goes(),
        Verb::SecretBack => world.secret_comes(),
        Verb::MovePool => world.move_pool(n),
        Verb::PoolBad => world.degrade(n, true),
        Verb::PoolWell => world.degrade(n, false),
        Verb::NodeWants => world.node_wants(n),
        Verb::NodeHas => world.node_has(n),
        Verb::NodeStages => world.node_stages(n),
        Verb::Pin => world.pin(n),
        Verb::KeepImage => world.keep_image(n),
        Verb::NodeLeaves => world.node_leaves(n),
        Verb::PodStarts => {
            world.pod_starts(n);
        }
        Verb::PodPushes => {
            world.pod_pushes(n);
        }
        Verb::PodEnds => {
            world.pod_ends(n, End::Well);
        }
        Verb::PodFails => {
            world.pod_ends(n, End::Fails);
        }
        Verb::PodBreaks => {
            world.pod_ends(n, End::Breaks);
        }
        Verb::PodEvicted => {
            world.pod_ends(n, End::Evicted);
        }
        Verb::PodLost => {
            world.pod_ends(n, End::Lost);
        }
        Verb::PodGoes => {
            world.pod_goes(n);
        }
        Verb::JobLooks => {
            let job = world.jobs.nth(n).map(kube::ResourceExt::name_any);
            job.map(|job| world.job_looks(&job));
        }
        Verb::JobLate => world.job_late(n),
        Verb::Collect => {
            world.collect(n);
        }
        Verb::RegistryDown => world.registry.is_down = true,
        Verb::RegistryUp => {
            world.registry.is_down = false;
            world.registry.is_late = false;
        }
        Verb::RegistryLate => world.registry.is_late = true,
        Verb::RegistryKeeps => world.registry.keeps = true,
        Verb::RegistryLoses => world.registry_loses(n),
        Verb::PushTheirs => world.push_theirs(n),
        Verb::Wait => world.wait(i64::from(n) * 3),
        Verb::WaitLong => world.wait(i64::from(n) * 60),
    }
}

fn told(script: &[Action]) -> String {
    script.iter().map(|action| format!("{action}\n")).collect()
}

/// The diary of a script's world.
fn diary(script: &[Action]) -> String {
    let mut world = World::new();
    world.diary = Some(Vec::new());
    play(script, world).diary.unwrap_or_default().join("\n")
}

/// Plays so many histories; the rules of the plans that they used.
fn search(histories: u32, seed: u64) -> BTreeSet<(&'static str, &'static str)> {
    let used = RefCell::new(BTreeSet::new());
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let config = Config {
        cases: histories,
        failure_persistence: None,
        max_shrink_iters: 20_000,
        ..Config::default()
    };
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let searched = TestRunner::new_with_rng(config, rng).run(&scripts(LONGEST), |script| {
        let world = play(&script, World::new());
        used.borrow_mut().extend(world.rules);
        match world.broken_rule {
            None => Ok(()),
            Some(rule) => Err(TestCaseError::fail(rule)),
        }
    });
    match searched {
        Ok(()) => used.into_inner(),
        Err(TestError::Fail(rule, script)) => panic!(
            "{rule}\n\nthe script (for the table in found.rs):\n\n{}\nwhat happened:\n\n{}\n",
            told(&script),
            diary(&script)
        ),
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn random_histories_keep_every_promise() {
    let histories = std::env::var("STRATA_HISTORIES").map_or(HISTORIES, |n| n.parse().unwrap());
    let begun = Instant::now();
    // more searches than most machines have cores, each with its own seed: the same histories everywhere
    let searches = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..SEARCHES)
            .map(|seed| scope.spawn(move || search(histories.div_ceil(SEARCHES), u64::from(seed))))
            .collect();
        threads
            .into_iter()
            .map(|one| one.join())
            .collect::<Vec<_>>()
    });
    let used: BTreeSet<_> = searches.into_iter().flat_map(|one| one.unwrap()).collect();
    println!("{histories} histories in {:.1?}", begun.elapsed());
    // fewer don't come everywhere
    if histories < HISTORIES {
        return;
    }
    for (plan, source) in [
        ("os_config", include_str!("os_config/plan.rs")),
        ("os_build", include_str!("os_build/plan.rs")),
        ("pool", include_str!("pool.rs")),
    ] {
        let rules = used.iter().filter(|(of, _)| *of == plan);
        let rules: BTreeSet<_> = rules.map(|(_, rule)| *rule).collect();
        // the model's objects can all be read
        let mut wanted = documented_rules(source);
        wanted.remove("undecodable");
        assert_eq!(rules, wanted, "rules of {plan} that were used");
    }
}
