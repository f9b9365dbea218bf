//! Any bytes: parsed, planned, and applied to an image's configuration, steps up to what they would run and mount. Nothing may panic, and what parses says where it
//! stands.
#![no_main]

use std::collections::{BTreeMap, BTreeSet};

use libfuzzer_sys::fuzz_target;
use strata_builder::containerfile::graph::{PlanOptions, Platform, plan};
use strata_builder::containerfile::parse::{parse, read};
use strata_builder::containerfile::{Instruction, Word};
use strata_builder::pipeline::stage::StepError;
use strata_builder::state::StageState;

fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    let file = match read(data, "Containerfile") {
        Ok(file) => file,
        Err(error) => {
            assert!(error.line > 0 && error.column > 0);
            let _ = error.to_string();
            return;
        }
    };
    // What isn't UTF-8 is in comments, and so makes no difference.
    assert_eq!(parse(&text, "Containerfile").as_ref(), Ok(&file));
    let lines = text.lines().count() + 1;
    let instructions = file.stages.iter().flat_map(|stage| &stage.instructions);
    for located in instructions {
        let place = &located.location;
        assert!(0 < place.line && place.line <= place.last_line && place.last_line <= lines);
    }
    let options = PlanOptions {
        target: None,
        build_args: BTreeMap::from([("A".to_owned(), "given".to_owned())]),
        platform: Platform::native(),
        build_platform: Platform::native(),
        context_names: BTreeSet::from(["base".to_owned()]),
    };
    let Ok(graph) = plan(&file, &options) else {
        return;
    };
    for planned in &graph.stages {
        let instructions = &file.stages[planned.index].instructions;
        assert_eq!(planned.sources.len(), instructions.len());
        let mut state = StageState::scratch("amd64", "linux", graph.scope.clone());
        for located in instructions {
            if state.apply(&located.value).is_err() {
                break;
            }
            if let Instruction::Run(run) = &located.value {
                let command = state.command_line(&run.command, &run.heredocs);
                assert!(!command.argv.is_empty());
                for mount in &run.mounts {
                    let expand = |word: &Word| state.expand(word).map_err(StepError::from);
                    let _ = mount.mount(expand);
                }
            }
        }
        let _ = serde_json::to_vec(&state.image);
    }
});
