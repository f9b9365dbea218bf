//! What the controller may ask of the apiserver, against what it has asked in all scenarios.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::Value;

/// API group, resource with its subresource, verb.
type Right = (String, String, String);

/// Rights that no request shows.
const UNSEEN: [(&str, &str, &str, &str); 2] = [
    (
        "machineconfiguration.openshift.io",
        "machineosconfigs/finalizers",
        "update",
        "asked for by the apiserver's admission, where it is on, when an owner blocks its deletion",
    ),
    (
        "machineconfiguration.openshift.io",
        "machineosbuilds/finalizers",
        "update",
        "the same",
    ),
];

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rule {
    api_groups: Vec<String>,
    resources: Vec<String>,
    verbs: Vec<String>,
}

/// What base/rbac.yaml gives the controller.
fn given() -> Result<BTreeSet<Right>> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/base/rbac.yaml");
    let text = std::fs::read_to_string(&file)?;
    let mut given = BTreeSet::new();
    for document in serde_yaml_ng::Deserializer::from_str(&text) {
        let role = Value::deserialize(document)?;
        let Some(rules) = role.get("rules") else {
            continue;
        };
        for rule in serde_json::from_value::<Vec<Rule>>(rules.clone())? {
            for group in &rule.api_groups {
                for resource in &rule.resources {
                    for verb in &rule.verbs {
                        ensure!(
                            ![group, resource, verb]
                                .iter()
                                .any(|word| word.contains('*')),
                            "a wildcard in {role}"
                        );
                        given.insert((group.clone(), resource.clone(), verb.clone()));
                    }
                }
            }
        }
    }
    Ok(given)
}

/// What the audit log has of the controller; and what was refused for want of a right.
fn asked() -> Result<(BTreeSet<Right>, BTreeSet<Right>)> {
    let log = std::env::var("STRATA_AUDIT_LOG").context("STRATA_AUDIT_LOG: `make test` sets it")?;
    let log = std::fs::read_to_string(&log).with_context(|| log)?;
    let (mut asked, mut refused) = (BTreeSet::new(), BTreeSet::new());
    for line in log.lines() {
        let event: Value = serde_json::from_str(line)?;
        let object = &event["objectRef"];
        let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let resource = match object["subresource"].as_str() {
            Some(subresource) => format!("{}/{subresource}", word(&object["resource"])),
            None => word(&object["resource"]),
        };
        // the server's version, for `doctor`
        if resource.is_empty() {
            continue;
        }
        let right = (word(&object["apiGroup"]), resource, word(&event["verb"]));
        if event["responseStatus"]["code"] == 403 {
            refused.insert(right);
        } else {
            asked.insert(right);
        }
    }
    Ok((asked, refused))
}

/// Run by `make test` after all others.
#[test]
#[ignore = "looks at what all other scenarios left"]
fn every_right_was_needed_and_none_was_missing() -> Result<()> {
    let given = given()?;
    let (asked, refused) = asked()?;
    ensure!(asked.len() > 20, "the audit log has only {asked:?}");
    let missing: Vec<_> = refused.difference(&given).collect();
    ensure!(
        missing.is_empty(),
        "refused for want of a right: {missing:?}"
    );
    let unseen = UNSEEN
        .map(|(group, resource, verb, _)| (group.to_owned(), resource.to_owned(), verb.to_owned()));
    let unneeded: Vec<_> = given
        .difference(&asked)
        .filter(|right| !unseen.contains(right))
        .collect();
    ensure!(unneeded.is_empty(), "never needed: {unneeded:?}");
    Ok(())
}
