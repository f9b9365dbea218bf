use serde_json::json;

use super::*;
use crate::fixtures::job_settings;

/// The answer to a trial of `shape` after a cluster has changed the fields at these places.
fn answer(shape: PodShape, changes: &[(&str, serde_json::Value)]) -> Verdict {
    let asked = trial(shape, &job_settings());
    let mut answer = serde_json::to_value(&asked).unwrap();
    for (pointer, value) in changes {
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        let parent = answer.pointer_mut(parent).unwrap();
        match (value.is_null(), key.parse::<usize>()) {
            (_, Ok(index)) => parent[index] = value.clone(),
            (true, Err(_)) => drop(parent.as_object_mut().unwrap().remove(key)),
            (false, Err(_)) => parent[key] = value.clone(),
        }
    }
    compare(&asked, &serde_json::from_value(answer).unwrap())
}

#[test]
fn a_pod_that_comes_back_whole_is_taken_and_one_that_lost_what_it_needs_is_not() {
    const CONTEXT: &str = "/spec/containers/0/securityContext";
    let context = |field: &str| format!("{CONTEXT}/{field}");
    let unconfined = json!({"type": "Unconfined"});
    let default = json!({"type": "RuntimeDefault"});
    let scc_drops = json!({"drop": ["MKNOD", "KILL"]});
    let image_volume = PodShape::Userns;
    for (shape, changes, refusal) in [
        (image_volume, vec![], None),
        (PodShape::UsernsPull, vec![], None),
        (PodShape::Rootless, vec![], None),
        (PodShape::RootlessDefault, vec![], None),
        (PodShape::Privileged, vec![], None),
        (
            image_volume,
            vec![("/spec/hostUsers".to_owned(), json!(null))],
            Some("it drops spec.hostUsers: false"),
        ),
        (
            image_volume,
            // how an apiserver without the field reads it
            vec![(
                "/spec/volumes/1".to_owned(),
                json!({"name": "base", "emptyDir": {}}),
            )],
            Some("it drops the image volume"),
        ),
        (
            PodShape::UsernsPull,
            vec![("/spec/hostUsers".to_owned(), json!(null))],
            Some("it drops spec.hostUsers: false"),
        ),
        (
            PodShape::Rootless,
            vec![("/spec/securityContext/runAsUser".to_owned(), json!(1000650))],
            Some("a policy of the cluster changes spec.securityContext.runAsUser"),
        ),
        (
            PodShape::Rootless,
            vec![(context("allowPrivilegeEscalation"), json!(false))],
            Some("a policy of the cluster forbids privilege escalation"),
        ),
        (
            PodShape::Rootless,
            vec![(context("capabilities"), json!({"drop": ["ALL"]}))],
            Some("a policy of the cluster drops the capabilities SETUID and SETGID"),
        ),
        (
            PodShape::RootlessDefault,
            vec![(context("capabilities"), scc_drops)],
            None,
        ),
        (
            PodShape::RootlessDefault,
            vec![(context("seccompProfile"), default)],
            Some("a policy of the cluster sets a seccomp profile"),
        ),
        (
            PodShape::RootlessDefault,
            vec![(context("seccompProfile"), unconfined)],
            None,
        ),
        (
            PodShape::Privileged,
            vec![(context("privileged"), json!(false))],
            Some("a policy of the cluster changes securityContext.privileged"),
        ),
    ] {
        let changes: Vec<_> = changes
            .iter()
            .map(|(pointer, value)| (pointer.as_str(), value.clone()))
            .collect();
        match (answer(shape, &changes), refusal) {
            (Verdict::Taken, None) => {}
            (Verdict::Refused(why), Some(wanted)) if why.starts_with(wanted) => {}
            (verdict, wanted) => panic!("{shape:?} {changes:?}: {verdict:?}, not {wanted:?}"),
        }
    }
}

#[test]
fn a_pod_without_its_own_proc_is_still_taken() {
    let proc_mount = "/spec/containers/0/securityContext/procMount";
    let verdict = answer(PodShape::Userns, &[(proc_mount, json!("Default"))]);
    assert!(matches!(verdict, Verdict::Reduced(what) if what.starts_with("procMount: Unmasked")));
}

#[test]
fn a_full_quota_says_nothing_about_a_shape() {
    assert!(is_about_room(
        "pods \"strata-trial-userns\" is forbidden: exceeded quota: small, requested: pods=1, used: pods=5, limited: pods=5"
    ));
    assert!(!is_about_room(
        "pods \"strata-trial-userns\" is forbidden: violates PodSecurity \"baseline:latest\""
    ));
}

#[test]
fn a_node_that_can_not_do_it_is_told_with_the_setting_that_does_without() {
    let spec = |shape| trial(shape, &job_settings()).spec.unwrap();
    for (shape, message, setting) in [
        (
            PodShape::Userns,
            "can't set `spec.hostUsers: false`, runtime does not support user namespaces",
            Some("STRATA_BUILD_POD=rootless"),
        ),
        (
            PodShape::UsernsPull,
            "OCI runtime create failed: failed to set MOUNT_ATTR_IDMAP: invalid argument",
            Some("STRATA_BUILD_POD=rootless"),
        ),
        (
            PodShape::Userns,
            "failed to mkdir \"\": image volume mounts are not supported",
            Some("STRATA_BUILD_POD=userns-pull"),
        ),
        (PodShape::Rootless, "no user namespaces here", None),
        (PodShape::UsernsPull, "image volume", None),
        (PodShape::Userns, "no space left on device", None),
    ] {
        let remedy = remedy(&spec(shape), message);
        assert_eq!(remedy.is_some(), setting.is_some(), "{message}");
        if let (Some(remedy), Some(setting)) = (remedy, setting) {
            assert!(remedy.contains(setting), "{remedy}");
        }
    }
}

#[test]
fn doctor_tells_each_shape_and_the_one_that_builds_get() {
    let refused = |why: &str| Verdict::Refused(why.to_owned());
    let verdicts = [
        (PodShape::Userns, refused("it drops spec.hostUsers: false")),
        (
            PodShape::UsernsPull,
            refused("it drops spec.hostUsers: false"),
        ),
        (PodShape::Rootless, refused("seccomp may not be set")),
        (PodShape::RootlessDefault, Verdict::Taken),
        (PodShape::Privileged, refused("not allowed")),
    ];
    let mut settings = job_settings();
    let text = told("Kubernetes v1.32.4", &settings, &verdicts);
    assert_eq!(
        text,
        "\
server      Kubernetes v1.32.4
namespace   ns
account     strata-builder

pod userns: refused: it drops spec.hostUsers: false
pod userns-pull: refused: it drops spec.hostUsers: false
pod rootless: refused: seccomp may not be set
pod rootless-default: taken
pod privileged: refused: not allowed

Builds have pods of shape rootless-default.
Whether a node can run such a pod shows when it starts.
"
    );
    settings.shape = Some(PodShape::Privileged);
    let text = told("Kubernetes v1.32.4", &settings, &verdicts);
    assert!(text.contains("of shape privileged, as STRATA_BUILD_POD says."));
}
