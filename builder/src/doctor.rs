//! What would a build do on this machine, and what would make it better? The probe's table, for people; pure.

use crate::sandbox::{Probe, choose};
use crate::sandbox::{Tier, probe};

/// The text that `strata-builder doctor` prints.
#[must_use]
pub fn doctor(probe: &Probe) -> String {
    let mut lines: Vec<String> = probe
        .facts
        .iter()
        .map(|(name, value)| format!("{name:<30} {value}"))
        .collect();
    for tier in [Tier::Root, Tier::Userns] {
        lines.push(String::new());
        lines.push(format!(
            "tier {}: {}",
            tier.name(),
            if probe.allows(tier) {
                "available"
            } else {
                "not available"
            }
        ));
        for row in probe.rows.iter().filter(|row| row.tier == tier) {
            let Some(failure) = &row.failure else {
                lines.push(format!("  yes  {}", row.check.name()));
                continue;
            };
            lines.push(format!("  no   {}: {failure}", row.check.name()));
            lines.push(format!("         so:     {}", row.check.consequence()));
            lines.push(format!("         remedy: {}", row.check.remedy(tier)));
        }
    }
    lines.push(String::new());
    lines.extend(
        probe::LATER
            .map(|(name, purpose)| format!("tier {name}: comes with a later version ({purpose})")),
    );
    lines.push(String::new());
    lines.push(match choose("auto", probe) {
        Ok(tier) => format!(
            "A build with --tier auto runs in tier {} here.",
            tier.name()
        ),
        Err(error) => format!("A build can't run here: {error}."),
    });
    lines.push(String::new());
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::probe::{Check, Row};

    #[test]
    fn the_text_names_what_works_what_does_not_and_the_remedy() {
        let row = |tier, check, failure: Option<&str>| Row {
            tier,
            check,
            failure: failure.map(str::to_owned),
        };
        let probe = Probe {
            facts: vec![("uid".to_owned(), "0".to_owned())],
            rows: vec![
                row(
                    Tier::Root,
                    Check::Namespaces,
                    Some("Operation not permitted (os error 1)"),
                ),
                row(Tier::Userns, Check::Namespaces, None),
                row(
                    Tier::Userns,
                    Check::Proc,
                    Some("Operation not permitted (os error 1)"),
                ),
                row(Tier::Userns, Check::Seccomp, None),
            ],
        };
        let expected = "\
uid                            0

tier root: not available
  no   namespaces: Operation not permitted (os error 1)
         so:     no step can run in this tier
         remedy: spec.hostUsers: false and containers[].securityContext.capabilities.add: [SYS_ADMIN], or privileged: true

tier userns: available
  yes  namespaces
  no   new /proc: Operation not permitted (os error 1)
         so:     steps get the pod's own /proc: they can see, but not look into, the builder's processes
         remedy: containers[].securityContext.procMount: Unmasked (allowed with hostUsers: false)
  yes  system call filter

tier rootless: comes with a later version (an ordinary user with subordinate ids (newuidmap))
tier flat: comes with a later version (no overlay: one unpacked tree)
tier copy: comes with a later version (no namespaces: Containerfiles without RUN)

A build with --tier auto runs in tier userns here.
";
        assert_eq!(doctor(&probe), expected);
    }
}
