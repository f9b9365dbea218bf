//! The forms of settings: quantities, durations, names, hosts, tolerations; pure.

use std::time::Duration;

use jiff::SignedDuration;
use k8s_openapi::api::core::v1::Toleration;

/// Binary and decimal suffixes of a Kubernetes quantity and what they multiply with.
const SUFFIXES: [(&str, f64); 15] = [
    ("n", 1e-9),
    ("u", 1e-6),
    ("m", 1e-3),
    ("", 1.0),
    ("k", 1e3),
    ("M", 1e6),
    ("G", 1e9),
    ("T", 1e12),
    ("P", 1e15),
    ("Ki", 1024.0),
    ("Mi", 1_048_576.0),
    ("Gi", 1_073_741_824.0),
    ("Ti", 1_099_511_627_776.0),
    ("Pi", 1_125_899_906_842_624.0),
    ("Ei", 1_152_921_504_606_846_976.0),
];

/// The amount of a Kubernetes quantity, near enough to be compared; none if the apiserver wouldn't take it.
///
/// `<quantity> ::= <sign?><digits with a point?><suffix>`, with `E` (exa) and `e5`, `E5` (powers of ten) as suffixes too.
pub(super) fn quantity(text: &str) -> Option<f64> {
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    let end = unsigned
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(unsigned.len());
    let (digits, suffix) = unsigned.split_at(end);
    let amount: f64 = digits.parse().ok()?;
    let factor = match SUFFIXES.iter().find(|(known, _)| *known == suffix) {
        Some((_, factor)) => *factor,
        None if suffix == "E" => 1e18,
        None => 10f64.powi(exponent(suffix.strip_prefix(['e', 'E'])?)?),
    };
    let sign = if text.starts_with('-') { -1.0 } else { 1.0 };
    Some(sign * amount * factor)
}

fn exponent(text: &str) -> Option<i32> {
    // more would be no amount of anything
    text.parse()
        .ok()
        .filter(|exponent| (-30..=30).contains(exponent))
}

/// `90s`, `45m`, `2h`, `1h30m`, `PT2H`: jiff's two forms, in whole seconds, rounded down.
pub(super) fn duration(text: &str) -> Option<Duration> {
    let duration: SignedDuration = text.parse().ok()?;
    Duration::try_from(duration)
        .ok()
        .map(|duration| Duration::from_secs(duration.as_secs()))
}

/// RFC 1123 label: the name of a namespace.
pub(super) fn is_dns_label(text: &str) -> bool {
    let is_end = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    let bytes = text.as_bytes();
    bytes.len() <= 63
        && bytes.first().copied().is_some_and(is_end)
        && bytes.last().copied().is_some_and(is_end)
        && bytes.iter().all(|c| is_end(*c) || *c == b'-')
}

/// RFC 1123 subdomain: the name of most objects.
pub(super) fn is_dns_subdomain(text: &str) -> bool {
    text.len() <= 253
        && text
            .split('.')
            .all(|part| is_dns_label(part) || (part.len() > 63 && is_dns_label_of_any_length(part)))
}

/// The apiserver bounds only the whole subdomain.
fn is_dns_label_of_any_length(text: &str) -> bool {
    text.as_bytes().chunks(63).all(|part| {
        part.iter()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || *c == b'-')
    }) && !text.starts_with('-')
        && !text.ends_with('-')
}

/// `HOST` or `HOST:PORT` as at the beginning of an image reference; IPv6 in brackets.
pub(super) fn is_host(text: &str) -> bool {
    let Ok(authority) = text.parse::<http::uri::Authority>() else {
        return false;
    };
    let host = authority.host();
    let name = host
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    let is_name = match name {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            let is_word = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
            !host.is_empty() && host.chars().all(is_word)
        }
    };
    let port = &authority.as_str()[host.len().min(authority.as_str().len())..];
    let is_port = match port.strip_prefix(':') {
        Some(number) => {
            number.bytes().all(|c| c.is_ascii_digit())
                && number.parse::<u16>().is_ok_and(|number| number > 0)
        }
        None => port.is_empty(),
    };
    is_name && is_port && authority.as_str() == text
}

/// `KEY[=VALUE][:EFFECT]` as in a taint; without a value any value, without an effect every effect.
pub(super) fn toleration(text: &str) -> Option<Toleration> {
    let (rest, effect) = match text.split_once(':') {
        Some((rest, effect)) => (rest, Some(effect)),
        None => (text, None),
    };
    let (key, value) = match rest.split_once('=') {
        Some((key, value)) => (key, Some(value)),
        None => (rest, None),
    };
    let effects = ["NoSchedule", "PreferNoSchedule", "NoExecute"];
    let is_right = is_qualified_name(key)
        && value.is_none_or(|value| value.is_empty() || is_label_word(value))
        && effect.is_none_or(|effect| effects.contains(&effect));
    is_right.then(|| Toleration {
        effect: effect.map(str::to_owned),
        key: Some(key.to_owned()),
        operator: Some(if value.is_some() { "Equal" } else { "Exists" }.to_owned()),
        toleration_seconds: None,
        value: value.map(str::to_owned),
    })
}

/// `KEY=VALUE` of a label.
pub(super) fn label(text: &str) -> Option<(String, String)> {
    let (key, value) = text.split_once('=')?;
    let is_right = is_qualified_name(key) && (value.is_empty() || is_label_word(value));
    is_right.then(|| (key.to_owned(), value.to_owned()))
}

/// `http://` or `https://` with a host.
pub(super) fn is_url(text: &str) -> bool {
    text.parse::<http::Uri>().is_ok_and(|url| {
        matches!(url.scheme_str(), Some("http" | "https"))
            && url.host().is_some_and(|host| !host.is_empty())
    })
}

/// `[prefix/]name` of labels and taints.
fn is_qualified_name(text: &str) -> bool {
    match text.split_once('/') {
        Some((prefix, name)) => is_dns_subdomain(prefix) && is_label_word(name),
        None => is_label_word(text),
    }
}

/// Name of a label, or its value when that isn't empty.
fn is_label_word(text: &str) -> bool {
    let bytes = text.as_bytes();
    (1..=63).contains(&bytes.len())
        && bytes.first().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.last().is_some_and(u8::is_ascii_alphanumeric)
        && bytes
            .iter()
            .all(|c| c.is_ascii_alphanumeric() || b"-_.".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_as_the_apiserver_reads_them() {
        for (text, amount) in [
            ("500m", Some(0.5)),
            ("2", Some(2.0)),
            ("1.5", Some(1.5)),
            (".5", Some(0.5)),
            ("5.", Some(5.0)),
            ("+3", Some(3.0)),
            ("-1", Some(-1.0)),
            ("1k", Some(1e3)),
            ("2Ki", Some(2048.0)),
            ("512Mi", Some(536_870_912.0)),
            ("8Gi", Some(8_589_934_592.0)),
            ("1E", Some(1e18)),
            ("1e3", Some(1e3)),
            ("12E6", Some(1.2e7)),
            ("1e-3", Some(1e-3)),
            ("0", Some(0.0)),
            ("", None),
            (".", None),
            ("Mi", None),
            ("1 Gi", None),
            ("1K", None),
            ("1mi", None),
            ("1GB", None),
            ("1.2.3", None),
            ("1e", None),
            ("1e9999999", None),
            ("0x10", None),
            ("inf", None),
            ("½", None),
        ] {
            assert_eq!(quantity(text), amount, "{text:?}");
        }
    }

    #[test]
    fn durations_need_a_unit_and_a_direction() {
        for (text, seconds) in [
            ("90s", Some(90)),
            ("45m", Some(2700)),
            ("2h", Some(7200)),
            ("1h30m", Some(5400)),
            ("1h 30m", Some(5400)),
            ("PT2H", Some(7200)),
            ("1500ms", Some(1)),
            ("90", None),
            ("", None),
            ("2h ago", None),
            ("-2h", None),
            ("soon", None),
            ("1d", None),
        ] {
            assert_eq!(
                duration(text).map(|duration| duration.as_secs()),
                seconds,
                "{text:?}"
            );
        }
    }

    #[test]
    fn hosts_are_those_of_image_references() {
        for (text, expected) in [
            ("registry.local", true),
            ("localhost:5000", true),
            ("10.0.0.1:5000", true),
            ("[fd00::1]:5000", true),
            ("registry_1", true),
            ("", false),
            (":5000", false),
            ("host:", false),
            ("host:0", false),
            ("host:65536", false),
            ("host:+80", false),
            ("http://host", false),
            ("host/path", false),
            ("user@host", false),
            ("host:a", false),
            ("[::1", false),
            ("[x]:1", false),
            ("a b", false),
        ] {
            assert_eq!(is_host(text), expected, "{text:?}");
        }
    }

    #[test]
    fn names_are_those_that_the_apiserver_takes() {
        for (text, label, subdomain) in [
            ("a", true, true),
            ("strata-1", true, true),
            ("a.b", false, true),
            ("", false, false),
            ("-a", false, false),
            ("a-", false, false),
            ("A", false, false),
            ("a..b", false, false),
            (&"a".repeat(63), true, true),
            (&"a".repeat(64), false, true),
            (&"a".repeat(254), false, false),
        ] {
            assert_eq!(is_dns_label(text), label, "{text:?}");
            assert_eq!(is_dns_subdomain(text), subdomain, "{text:?}");
        }
    }

    #[test]
    fn tolerations_match_as_the_taint_is_written() {
        let some = |text: &str| Some(text.to_owned());
        for (text, key, operator, value, effect) in [
            ("infra", "infra", "Exists", None, None),
            ("infra=", "infra", "Equal", some(""), None),
            ("infra=yes", "infra", "Equal", some("yes"), None),
            (
                "node-role.kubernetes.io/infra:NoSchedule",
                "node-role.kubernetes.io/infra",
                "Exists",
                None,
                some("NoSchedule"),
            ),
            ("a=b:NoExecute", "a", "Equal", some("b"), some("NoExecute")),
        ] {
            assert_eq!(
                toleration(text),
                Some(Toleration {
                    effect,
                    key: some(key),
                    operator: some(operator),
                    toleration_seconds: None,
                    value,
                }),
                "{text}"
            );
        }
        for text in [
            "",
            ":NoSchedule",
            "=b",
            "a:",
            "a:noschedule",
            "a=b=c",
            "a b",
            "/a",
            "a/b/c",
            "a=b:NoExecute:3",
        ] {
            assert_eq!(toleration(text), None, "{text:?}");
        }
    }
}
