//! What is an image for, and what do we run on?

use std::collections::BTreeMap;

/// Names that may stand alone.
const SYSTEMS: [&str; 5] = ["darwin", "freebsd", "linux", "solaris", "windows"];

/// Names that may stand alone, too.
const ARCHITECTURES: [&str; 14] = [
    "386", "amd64", "arm", "arm64", "loong64", "mips", "mips64", "mips64le", "mipsle", "ppc64",
    "ppc64le", "riscv64", "s390x", "wasm",
];

fn system(name: &str) -> &str {
    match name {
        "macos" => "darwin",
        name => name,
    }
}

/// `os/architecture[/variant]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Platform {
    /// GOOS.
    pub os: String,
    /// GOARCH.
    pub architecture: String,
    /// `v8`
    pub variant: Option<String>,
}

impl Platform {
    /// Linux on this program's own architecture.
    #[must_use]
    pub fn native() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            "powerpc64" => "ppc64le",
            other => other,
        };
        Self {
            os: "linux".to_owned(),
            architecture: architecture.to_owned(),
            variant: None,
        }
    }

    /// Reads `os/architecture[/variant]`, `os` or `architecture`, with the names that other systems have for them.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let lower = text.to_ascii_lowercase();
        let parts: Vec<&str> = lower.split('/').collect();
        if parts.contains(&"") {
            return None;
        }
        let native = Self::native();
        match parts[..] {
            [os] if SYSTEMS.contains(&system(os)) => Some(Self {
                os: system(os).to_owned(),
                ..native
            }),
            [name] => {
                let platform = Self::of(&native.os, name, None);
                ARCHITECTURES
                    .contains(&platform.architecture.as_str())
                    .then_some(platform)
            }
            [os, architecture] => Some(Self::of(os, architecture, None)),
            [os, architecture, variant] => Some(Self::of(os, architecture, Some(variant))),
            _ => None,
        }
    }

    /// With Go's names.
    fn of(os: &str, architecture: &str, variant: Option<&str>) -> Self {
        let (architecture, variant) = match (architecture, variant) {
            ("i386", _) => ("386", None),
            ("x86_64" | "x86-64" | "amd64", None | Some("v1")) => ("amd64", None),
            ("x86_64" | "x86-64", variant) => ("amd64", variant),
            ("aarch64" | "arm64", Some("8")) => ("arm64", Some("v8")),
            ("aarch64", variant) => ("arm64", variant),
            ("armhf", _) | ("arm", None | Some("7")) => ("arm", Some("v7")),
            ("armel", _) | ("arm", Some("6")) => ("arm", Some("v6")),
            ("arm", Some("5")) => ("arm", Some("v5")),
            ("arm", Some("8")) => ("arm", Some("v8")),
            other => other,
        };
        Self {
            os: system(os).to_owned(),
            architecture: architecture.to_owned(),
            variant: variant.map(str::to_owned),
        }
    }

    pub(super) fn args(&self, prefix: &str, globals: &mut BTreeMap<String, String>) {
        let variant = self.variant.clone().unwrap_or_default();
        for (name, value) in [
            ("PLATFORM", self.to_string()),
            ("OS", self.os.clone()),
            ("OSVERSION", String::new()),
            ("ARCH", self.architecture.clone()),
            ("VARIANT", variant),
        ] {
            globals.insert(format!("{prefix}{name}"), value);
        }
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn platforms_have_short_forms_and_other_names() {
        let here = Platform::native();
        for (text, expected) in [
            ("linux/amd64", Some("linux/amd64")),
            ("Linux/x86_64", Some("linux/amd64")),
            ("linux/amd64/v3", Some("linux/amd64/v3")),
            ("linux/aarch64", Some("linux/arm64")),
            ("linux/arm64/8", Some("linux/arm64/v8")),
            ("linux/arm", Some("linux/arm/v7")),
            ("linux/arm/v6", Some("linux/arm/v6")),
            ("linux/armhf", Some("linux/arm/v7")),
            ("arm64", Some("linux/arm64")),
            ("x86_64", Some("linux/amd64")),
            ("s390x", Some("linux/s390x")),
            ("linux", Some(here.to_string().as_str())),
            ("windows/amd64", Some("windows/amd64")),
            ("bogus", None),
            ("", None),
            ("linux/", None),
            ("linux/a/b/c", None),
        ] {
            let got = Platform::parse(text).map(|platform| platform.to_string());
            assert_eq!(got.as_deref(), expected, "{text}");
        }
    }
}
