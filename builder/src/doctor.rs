//! What would a build do on this machine, and what would make it better? The probe's table, for people; pure.

use crate::sandbox::probe::obstacle;
use crate::sandbox::{Probe, Rights, Tier, choose};

/// The text that `strata-builder doctor` prints.
#[must_use]
pub fn doctor(probe: &Probe) -> String {
    let mut lines: Vec<String> = probe
        .facts
        .iter()
        .map(|(name, value)| format!("{name:<30} {value}"))
        .collect();
    for rights in Rights::ALL {
        lines.push(String::new());
        for tier in Tier::LADDER
            .into_iter()
            .filter(|tier| tier.rights() == rights)
        {
            let is_allowed = match probe.allows(tier) {
                true => "available",
                false => "not available",
            };
            lines.push(format!("tier {}: {is_allowed}", tier.name()));
        }
        for row in probe.rows.iter().filter(|row| row.rights == rights) {
            let Some(failure) = &row.failure else {
                lines.push(format!("  yes  {}", row.check.name()));
                continue;
            };
            lines.push(format!("  no   {}: {failure}", row.check.name()));
            lines.push(format!("         so:     {}", row.check.consequence()));
            lines.push(format!(
                "         remedy: {}",
                row.check.remedy(rights, probe.place)
            ));
        }
    }
    lines.push(String::new());
    let chosen = choose("auto", probe);
    lines.push(match &chosen {
        Ok(Tier::Copy) => {
            "A build with --tier auto runs in tier copy here, if it has no RUN.".to_owned()
        }
        Ok(tier) => format!(
            "A build with --tier auto runs in tier {} here.",
            tier.name()
        ),
        Err(error) => format!("A build can't run here: {error}."),
    });
    let better = Tier::LADDER
        .into_iter()
        .take_while(|tier| chosen.as_ref().is_ok_and(|chosen| tier != chosen));
    lines.extend(better.map(|tier| {
        let (obstacle, _) = obstacle(probe, tier);
        format!("Not in tier {}: {obstacle}.", tier.name())
    }));
    lines.push(String::new());
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::probe::{Check, Place, Row};

    #[test]
    fn the_text_names_what_works_what_does_not_and_the_remedy() {
        let row = |rights, check, failure: Option<&str>| Row {
            rights,
            check,
            failure: failure.map(str::to_owned),
        };
        let mut probe = Probe {
            place: Place::Pod,
            facts: vec![("uid".to_owned(), "0".to_owned())],
            rows: vec![
                row(
                    Rights::Root,
                    Check::Namespaces,
                    Some("Operation not permitted (os error 1)"),
                ),
                row(Rights::Userns, Check::Namespaces, None),
                row(
                    Rights::Userns,
                    Check::Proc,
                    Some("Operation not permitted (os error 1)"),
                ),
                row(Rights::Userns, Check::Seccomp, None),
                row(Rights::Rootless, Check::Namespaces, None),
                row(
                    Rights::Rootless,
                    Check::SubordinateIds,
                    Some("/etc/subuid has no ids for user root"),
                ),
                row(Rights::None, Check::Files, None),
            ],
        };
        let expected = "\
uid                            0

tier root: not available
tier root-flat: not available
  no   namespaces: Operation not permitted (os error 1)
         so:     no step can run in this tier
         remedy: spec.hostUsers: false and containers[].securityContext.capabilities.add: [SYS_ADMIN], or privileged: true

tier userns: available
tier userns-flat: available
  yes  namespaces
  no   new /proc: Operation not permitted (os error 1)
         so:     steps get the /proc that is here: they can see, but not look into, the builder's processes
         remedy: containers[].securityContext.procMount: Unmasked (allowed with hostUsers: false)
  yes  system call filter

tier rootless: not available
tier rootless-flat: not available
  yes  namespaces
  no   id map, subordinate ids: /etc/subuid has no ids for user root
         so:     owners of the base image's files can't be kept
         remedy: newuidmap and newgidmap (Debian package uidmap) with file capabilities or a set-user-ID bit, lines of this user in /etc/passwd, /etc/subuid and /etc/subgid, \
and containers[].securityContext.allowPrivilegeEscalation: true without drop: [SETUID, SETGID]

tier copy: available
  yes  files in scratch

A build with --tier auto runs in tier userns here.
Not in tier root: namespaces: Operation not permitted (os error 1).
";
        assert_eq!(doctor(&probe), expected);
        probe.place = Place::Workstation;
        let text = doctor(&probe);
        let remedies: Vec<&str> = text
            .lines()
            .filter_map(|line| line.trim().strip_prefix("remedy: "))
            .collect();
        assert_eq!(
            remedies,
            [
                "run it as root: sudo strata-builder",
                "nothing mounted over parts of /proc, as in containers",
                "newuidmap and newgidmap (package uidmap or shadow-utils), and lines of this user in /etc/subuid and /etc/subgid: \
                 usermod --add-subuids 100000-165535 --add-subgids 100000-165535 USER",
            ]
        );
    }
}
