//! Histories that once broke a promise, as they were found: each is a script with the bug that it told.

use super::script::parse;
use super::{diary, play};
use crate::histories::world::World;

/// What was wrong, and the script that showed it.
const FOUND: &[(&str, &str)] = &[
    (
        "a rebuild asked for before the first build seeded again and again",
        "seed 0
         rebuild 0",
    ),
    (
        "a build that had pushed failed because its secret was away for a moment",
        "create 0
         pass 0
         registry-down 0
         calm 3
         wait-long 1
         secret-gone 0
         pass 0
         pass 0",
    ),
    (
        "a build that was wanted again after a crash between its Job's deletion and the note of why stayed interrupted",
        "pool-bad 0
         create 0
         edit 0
         calm 5
         pool-well 0
         tell 0
         # the config has nothing to do; the build starts: one pass each for its plan, each step, ConfigMap and Secret, and its Job
         pass 0
         pass 0
         pass 0
         pass 0
         pass 0
         pass 0
         pass 0
         pass 0
         pass 0
         pass 0
         pass 0
         pass 0
         pass 0
         pass 0
         pass 0
         pass 0
         edit 2
         tell 0
         # the build, not the config
         pass 1
         pass 0
         stop 0
         edit 0",
    ),
];

#[test]
fn what_was_found_once_stays_mended() {
    for (bug, text) in FOUND {
        let script = parse(text).unwrap();
        let broken = play(&script, World::new()).broken_rule;
        assert_eq!(broken, None, "{bug}\n{}", diary(&script));
    }
}
