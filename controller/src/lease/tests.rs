use super::*;

fn spec(holder: Option<&str>, duration_seconds: Option<i32>, renewed: i64) -> LeaseSpec {
    LeaseSpec {
        acquire_time: Some(MicroTime(at(0))),
        holder_identity: holder.map(str::to_owned),
        lease_duration_seconds: duration_seconds,
        lease_transitions: Some(3),
        renew_time: Some(MicroTime(at(renewed))),
        ..LeaseSpec::default()
    }
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

#[test]
fn a_lease_is_judged_by_its_holder_and_by_how_long_we_saw_no_change() {
    let start = Instant::now();
    let held = |holder: &str| Verdict::Held(holder.to_owned());
    let expired = |holder: &str| Verdict::Expired(holder.to_owned());
    for (case, holder, duration_seconds, unchanged_for, verdict) in [
        ("never held", None, None, 0, Verdict::Free),
        ("released by client-go", Some(""), Some(1), 0, Verdict::Free),
        ("ours, fresh", Some("pod-a"), Some(30), 0, Verdict::Ours),
        (
            "ours after a restart",
            Some("pod-a"),
            Some(30),
            0,
            Verdict::Ours,
        ),
        (
            "ours, long expired",
            Some("pod-a"),
            Some(30),
            999,
            Verdict::Ours,
        ),
        (
            "another replica's",
            Some("pod-b"),
            Some(30),
            29,
            held("pod-b"),
        ),
        (
            "another's, expired",
            Some("pod-b"),
            Some(30),
            30,
            expired("pod-b"),
        ),
        (
            "the incumbent's",
            Some("host_uuid"),
            Some(137),
            136,
            held("host_uuid"),
        ),
        (
            "the incumbent's, expired",
            Some("host_uuid"),
            Some(137),
            137,
            expired("host_uuid"),
        ),
        (
            "a name that begins like ours",
            Some("pod-a-2"),
            Some(30),
            0,
            held("pod-a-2"),
        ),
        ("no duration", Some("pod-b"), None, 29, held("pod-b")),
        (
            "no duration, expired",
            Some("pod-b"),
            None,
            30,
            expired("pod-b"),
        ),
        (
            "a senseless duration",
            Some("pod-b"),
            Some(-5),
            29,
            held("pod-b"),
        ),
        (
            "a duration of nothing",
            Some("pod-b"),
            Some(0),
            29,
            held("pod-b"),
        ),
    ] {
        let seen = Seen {
            spec: spec(holder, duration_seconds, 0),
            since: start,
        };
        let now = start + Duration::from_secs(unchanged_for);
        assert_eq!(judge(&seen, "pod-a", now), verdict, "{case}");
    }
}

#[test]
fn only_our_own_clock_counts_however_wrong_the_holders_is() {
    let start = Instant::now();
    let later = |seconds| start + Duration::from_secs(seconds);
    // an hour behind, then an hour ahead of ours: the value says nothing, its change does
    for skew in [-3600, 3600] {
        let wall = Timestamp::now().as_second() + skew;
        let first = observe(None, &spec(Some("b"), Some(30), wall), later(0));
        assert_eq!(judge(&first, "a", later(29)), Verdict::Held("b".to_owned()));
        let renewed = observe(Some(first), &spec(Some("b"), Some(30), wall + 5), later(29));
        assert_eq!(
            judge(&renewed, "a", later(58)),
            Verdict::Held("b".to_owned())
        );
        let same = observe(
            Some(renewed),
            &spec(Some("b"), Some(30), wall + 5),
            later(58),
        );
        assert_eq!(
            judge(&same, "a", later(59)),
            Verdict::Expired("b".to_owned())
        );
    }
}

#[test]
fn of_two_waiting_identities_each_takes_what_the_other_releases() {
    let start = Instant::now();
    let mut lease = Lease::default();
    for (turn, identity, other) in [(0, "a", "b"), (1, "b", "a"), (2, "a", "b")] {
        let look = |lease: &Lease, identity| {
            let seen = observe(None, &lease.spec.clone().unwrap_or_default(), start);
            judge(&seen, identity, start)
        };
        assert_eq!(look(&lease, identity), Verdict::Free);
        lease = taken(lease, identity, at(turn * 10));
        assert_eq!(look(&lease, identity), Verdict::Ours);
        assert_eq!(look(&lease, other), Verdict::Held(identity.to_owned()));
        lease = released(lease, at(turn * 10 + 5));
    }
}

#[test]
fn taking_counts_a_transition_and_renewing_changes_only_the_time() {
    let mut other = Lease {
        spec: Some(spec(Some("b"), Some(137), 7)),
        ..Lease::default()
    };
    other
        .annotations_mut()
        .insert("k".to_owned(), "v".to_owned());
    let ours = taken(other.clone(), "a", at(50));
    assert_eq!(
        ours.spec,
        Some(LeaseSpec {
            acquire_time: Some(MicroTime(at(50))),
            holder_identity: Some("a".to_owned()),
            lease_duration_seconds: Some(30),
            lease_transitions: Some(4),
            renew_time: Some(MicroTime(at(50))),
            ..LeaseSpec::default()
        })
    );
    assert_eq!(ours.annotations(), other.annotations());

    let renewed = taken(ours.clone(), "a", at(55));
    let mut expected = ours.spec.clone().unwrap();
    expected.renew_time = Some(MicroTime(at(55)));
    assert_eq!(renewed.spec, Some(expected.clone()));

    let free = released(renewed, at(60));
    expected.holder_identity = Some(String::new());
    expected.lease_duration_seconds = Some(1);
    expected.acquire_time = Some(MicroTime(at(60)));
    expected.renew_time = Some(MicroTime(at(60)));
    assert_eq!(free.spec, Some(expected));

    let first = taken(Lease::default(), "a", at(1)).spec.unwrap();
    assert_eq!(first.lease_transitions, Some(0));
}

#[test]
fn a_holder_stops_before_others_may_begin() {
    assert!(RENEW_PERIOD + REQUEST_TIMEOUT < RENEW_DEADLINE);
    assert!(RENEW_DEADLINE + Duration::from_secs(10) <= LEASE_DURATION);
}

#[test]
fn only_missing_rights_and_misunderstandings_end_the_wait() {
    let api = |code| LeaseError::Request {
        verb: "get",
        namespace: "n".to_owned(),
        source: Box::new(kube::Error::Api(
            kube::core::Status::failure("", "").with_code(code).boxed(),
        )),
    };
    for (code, class) in [
        (403, Class::RIGHTS),
        (404, Class::RIGHTS),
        (422, Class::INTERNAL),
        (401, Class::Transient),
        (409, Class::Transient),
        (429, Class::Transient),
        (500, Class::Transient),
        (503, Class::Transient),
    ] {
        assert_eq!(api(code).class(), class, "{code}");
    }
    let silent = LeaseError::Timeout {
        verb: "update",
        namespace: "n".to_owned(),
    };
    assert_eq!(silent.class(), Class::Transient);
    assert_eq!(
        silent.to_string(),
        "no answer in 5s to update lease machine-os-builder in namespace n"
    );
}
