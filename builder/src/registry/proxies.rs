//! Which proxy leads to a URL? As Go programs read it from the environment (`golang.org/x/net/http/httpproxy`), so that builder, container runtime and podman go the
//! same way; pure.
//!
//! `HTTP_PROXY` and `HTTPS_PROXY` are for URLs of their scheme; there is no `ALL_PROXY`. This machine (`localhost`, 127.0.0.0/8, `::1`) is never reached by way of a proxy.
//! `NO_PROXY` excepts others, separated by commas:
//!
//! | entry | excepts |
//! | --- | --- |
//! | `example.com` | the domain and what is below it |
//! | `.example.com`, `*.example.com` | only what is below it |
//! | `10.1.2.3`, `fd00::1` | the address, where a URL has it instead of a name |
//! | `10.0.0.0/8`, `fd00::/8` | the addresses of a network, in the same way |
//! | any of these but a network, with `:PORT` | that port alone; an address of version 6 stands in brackets then |
//! | `*` | all |

use std::net::IpAddr;

use url::{Host, Url};

/// What the variables say.
#[derive(Clone, Default, PartialEq, Eq)]
pub(super) struct Proxies {
    http: Option<Url>,
    https: Option<Url>,
    excepted: Vec<Excepted>,
}

/// A proxy's URL may hold a password.
impl std::fmt::Debug for Proxies {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Proxies(…)")
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Excepted {
    All,
    Network {
        address: IpAddr,
        bits: u32,
    },
    Address {
        address: IpAddr,
        port: Option<String>,
    },
    Domain {
        /// With a dot in front.
        below: String,
        itself: bool,
        port: Option<String>,
    },
}

impl Proxies {
    /// By the values of variables. One that is written in capitals counts before the same in small letters.
    pub(super) fn of(variable: impl Fn(&str) -> Option<String>) -> Self {
        let value = |name: &str| {
            let names = [name.to_owned(), name.to_lowercase()];
            let mut values = names.iter().filter_map(|name| variable(name));
            values.find(|value| !value.is_empty())
        };
        let excepted = value("NO_PROXY").unwrap_or_default();
        Self {
            http: value("HTTP_PROXY").and_then(|text| proxy(&text)),
            https: value("HTTPS_PROXY").and_then(|text| proxy(&text)),
            excepted: excepted.split(',').filter_map(excepted_by).collect(),
        }
    }

    /// The proxy for `url`; none if it is reached without.
    pub(super) fn to(&self, url: &Url) -> Option<&Url> {
        let proxy = match url.scheme() {
            "https" => self.https.as_ref(),
            "http" => self.http.as_ref(),
            _ => None,
        }?;
        let (host, port) = (url.host()?, url.port_or_known_default()?);
        let address = match host {
            Host::Ipv4(address) => Some(IpAddr::V4(address)),
            Host::Ipv6(address) => Some(IpAddr::V6(address).to_canonical()),
            Host::Domain(_) => None,
        };
        let name = match host {
            Host::Domain(name) => name.to_lowercase(),
            Host::Ipv4(_) | Host::Ipv6(_) => String::new(),
        };
        if name == "localhost" || address.is_some_and(|address| address.is_loopback()) {
            return None;
        }
        let port = port.to_string();
        let mut excepted = self.excepted.iter();
        let is_excepted = excepted.any(|entry| entry.covers(&name, address, &port));
        (!is_excepted).then_some(proxy)
    }
}

/// Without a scheme it speaks HTTP. One that is no URL is none.
fn proxy(text: &str) -> Option<Url> {
    match text.contains("://") {
        true => Url::parse(text).ok(),
        false => Url::parse(&format!("http://{text}")).ok(),
    }
}

fn excepted_by(entry: &str) -> Option<Excepted> {
    let entry = entry.trim().to_lowercase();
    if entry == "*" {
        return Some(Excepted::All);
    }
    if let Some((address, bits)) = entry.split_once('/') {
        let network = (address.parse().ok(), bits.parse().ok());
        let network = match network {
            (Some(address @ IpAddr::V4(_)), Some(bits @ 0..=32)) => Some((address, bits)),
            (Some(address @ IpAddr::V6(_)), Some(bits @ 0..=128)) => Some((address, bits)),
            _ => None,
        };
        if let Some((address, bits)) = network {
            return Some(Excepted::Network { address, bits });
        }
    }
    let (host, port) = match split_port(&entry) {
        Some((host, port)) => (host, Some(port.to_owned()).filter(|port| !port.is_empty())),
        None => (entry.as_str(), None),
    };
    if let Ok(address) = host.parse::<IpAddr>() {
        let address = address.to_canonical();
        return Some(Excepted::Address { address, port });
    }
    let host = match host.strip_prefix("*.") {
        Some(_) => &host[1..],
        None => host,
    };
    match host.strip_prefix('.') {
        _ if host.is_empty() => None,
        Some(_) => Some(Excepted::Domain {
            below: host.to_owned(),
            itself: false,
            port,
        }),
        None => Some(Excepted::Domain {
            below: format!(".{host}"),
            itself: true,
            port,
        }),
    }
}

/// `HOST:PORT` or `[ADDRESS]:PORT`.
fn split_port(entry: &str) -> Option<(&str, &str)> {
    let (host, port) = entry.rsplit_once(':')?;
    match host.strip_prefix('[') {
        Some(host) => Some((host.strip_suffix(']')?, port)),
        None => (!host.contains(':')).then_some((host, port)),
    }
}

impl Excepted {
    /// `name` is empty where the URL has an address.
    fn covers(&self, name: &str, address: Option<IpAddr>, port: &str) -> bool {
        let is_port = |of: &Option<String>| of.as_ref().is_none_or(|of| of == port);
        match self {
            Self::All => true,
            Self::Network {
                address: network,
                bits,
            } => address.is_some_and(|address| is_in(address, *network, *bits)),
            Self::Address {
                address: excepted,
                port: of,
            } => address == Some(*excepted) && is_port(of),
            Self::Domain {
                below,
                itself,
                port: of,
            } => {
                let is_itself = *itself && Some(name) == below.strip_prefix('.');
                (is_itself || name.ends_with(below.as_str())) && is_port(of)
            }
        }
    }
}

fn is_in(address: IpAddr, network: IpAddr, bits: u32) -> bool {
    match (address, network) {
        (IpAddr::V4(address), IpAddr::V4(network)) => {
            let differ = address.to_bits() ^ network.to_bits();
            differ.leading_zeros() >= bits
        }
        (IpAddr::V6(address), IpAddr::V6(network)) => {
            let differ = address.to_bits() ^ network.to_bits();
            differ.leading_zeros() >= bits
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxies(variables: &[(&str, &str)]) -> Proxies {
        Proxies::of(|name| {
            let mut variables = variables.iter();
            let found = variables.find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn a_host_is_excepted_as_go_programs_except_it() {
        for (except, url, is_proxied) in [
            ("", "https://quay.io/v2/", true),
            ("quay.io", "https://quay.io/v2/", false),
            ("quay.io", "https://cdn.quay.io/v2/", false),
            ("quay.io", "https://notquay.io/", true),
            ("QUAY.io", "https://Quay.IO/", false),
            (".quay.io", "https://quay.io/", true),
            (".quay.io", "https://cdn.quay.io/", false),
            ("*.quay.io", "https://quay.io/", true),
            ("*.quay.io", "https://cdn.quay.io/", false),
            ("*.quay.io:443", "https://a.b.quay.io/", false),
            ("*.quay.io:8443", "https://a.b.quay.io/", true),
            ("quay.io:443", "https://quay.io/", false),
            ("quay.io:443", "http://quay.io/", true),
            ("quay.io:80", "http://quay.io/", false),
            ("quay.io:5000", "http://quay.io:5000/", false),
            ("quay.io:", "http://quay.io:5000/", false),
            ("quay", "https://quay.io/", true),
            ("x.io, quay.io ,y.io", "https://quay.io/", false),
            ("x.io quay.io", "https://quay.io/", true),
            ("*", "https://quay.io/", false),
            ("x.io,*", "https://10.0.0.1/", false),
            (",, ,:80", "https://quay.io/", true),
            ("10.1.2.3", "http://10.1.2.3:5000/", false),
            ("10.1.2.3", "http://10.1.2.30/", true),
            ("10.1.2.3:5000", "http://10.1.2.3:5000/", false),
            ("10.1.2.3:5000", "http://10.1.2.3/", true),
            ("10.0.0.0/8", "http://10.1.2.3/", false),
            ("10.9.9.9/8", "http://10.1.2.3/", false),
            ("10.0.0.0/16", "http://10.1.2.3/", true),
            ("0.0.0.0/0", "http://10.1.2.3/", false),
            ("0.0.0.0/0", "https://quay.io/", true),
            ("10.0.0.0/33", "http://10.1.2.3/", true),
            ("::/0", "http://10.1.2.3/", true),
            ("fd00::1", "http://[fd00::1]:5000/", false),
            ("[fd00::1]:5000", "http://[fd00::1]:5000/", false),
            ("[fd00::1]:5000", "http://[fd00::1]/", true),
            ("fd00::/8", "http://[fd12::1]/", false),
            ("fd00::/8", "http://[fe80::1]/", true),
            ("10.0.0.0/8", "http://[::ffff:10.1.2.3]/", false),
            // never, whatever is excepted
            ("", "http://localhost:5000/", false),
            ("", "http://127.0.0.1:5000/", false),
            ("", "http://127.9.9.9/", false),
            ("", "https://[::1]:5000/", false),
            ("", "http://0.0.0.0:5000/", true),
            ("", "http://localhost.example/", true),
            ("", "http://127.0.0.1.example/", true),
            ("", "ftp://quay.io/", false),
        ] {
            let proxies = proxies(&[
                ("HTTP_PROXY", "http://ann:secret@plain.example:3128"),
                ("HTTPS_PROXY", "secure.example:3129"),
                ("NO_PROXY", except),
            ]);
            let url: Url = url.parse().unwrap();
            let expected = match url.scheme() {
                "http" => "http://ann:secret@plain.example:3128/",
                _ => "http://secure.example:3129/",
            };
            let found = proxies.to(&url).map(Url::as_str);
            assert_eq!(found, is_proxied.then_some(expected), "{except:?} {url}");
        }
    }

    #[test]
    fn variables_are_for_a_scheme_and_capitals_come_first() {
        let (http, https) = ("http://quay.io/", "https://quay.io/");
        type Variables = &'static [(&'static str, &'static str)];
        let cases: [(Variables, &str, Option<&str>); 9] = [
            (&[("HTTP_PROXY", "http://p")], https, None),
            (&[("HTTPS_PROXY", "http://p")], http, None),
            (&[("https_proxy", "https://p")], https, Some("https://p/")),
            (
                &[("HTTP_PROXY", "http://p"), ("http_proxy", "http://q")],
                http,
                Some("http://p/"),
            ),
            (
                &[("HTTP_PROXY", ""), ("http_proxy", "http://q")],
                http,
                Some("http://q/"),
            ),
            (&[("ALL_PROXY", "http://p")], http, None),
            (
                &[("HTTP_PROXY", "http://p"), ("no_proxy", "quay.io")],
                http,
                None,
            ),
            (
                &[("HTTP_PROXY", "10.0.0.1:80")],
                http,
                Some("http://10.0.0.1/"),
            ),
            (&[("HTTP_PROXY", "http://a b")], http, None),
        ];
        for (variables, url, expected) in cases {
            let found = proxies(variables);
            let found = found.to(&url.parse().unwrap()).map(Url::as_str);
            assert_eq!(found, expected, "{variables:?} {url}");
        }
    }
}
