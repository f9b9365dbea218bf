//! What does a `--mount` ask for? Its options may hold variables, so that they are read twice: when the file is parsed, as far as they hold none, and when
//! the step runs.

use super::Word;
use super::parse::{did_you_mean, nearest};

/// One `--mount` as written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountFlag {
    /// All of it, as errors show it.
    pub text: String,
    options: Vec<(String, Option<Word>)>,
}

/// A `--mount` without variables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// `type=`, and what belongs to it.
    pub kind: MountKind,
    /// `target=`, `dst=`, `destination=`; if absent, a secret has its own place and anything else is put over the working directory.
    pub target: Option<String>,
    /// `rw`/`readwrite` or `ro`/`readonly`; none if unsaid.
    pub read_write: Option<bool>,
}

/// `--mount=type=…`
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MountKind {
    /// From the context, a stage, a named context or an image.
    Bind {
        /// `source=`
        source: Option<String>,
    },
    /// A directory that outlives the step.
    Cache {
        /// `id=`
        id: Option<String>,
        /// `source=`
        source: Option<String>,
        /// `sharing=`: shared, private, locked.
        sharing: String,
        /// `mode=`
        mode: Option<u32>,
        /// `uid=`
        uid: Option<u32>,
        /// `gid=`
        gid: Option<u32>,
    },
    /// An empty tmpfs.
    Tmpfs {
        /// `size=`
        size_bytes: Option<u64>,
    },
    /// A file that never reaches the image.
    Secret {
        /// `id=`
        id: Option<String>,
        /// `required=`
        required: bool,
        /// `mode=`
        mode: Option<u32>,
        /// `uid=`
        uid: Option<u32>,
        /// `gid=`
        gid: Option<u32>,
        /// `env=`: give it as a variable too.
        env: Option<String>,
    },
}

/// A `--mount` that makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("--mount can't be {text:?}: {wanted}")]
pub struct InvalidMount {
    /// As written.
    pub text: String,
    /// What it may be.
    pub wanted: String,
}

/// What `type=` may be.
const TYPES: [&str; 4] = ["bind", "cache", "tmpfs", "secret"];

/// These may stand without a value.
const SWITCHES: [&str; 8] = [
    "ro",
    "readonly",
    "rw",
    "readwrite",
    "required",
    "z",
    "relabel",
    "bind-nonrecursive",
];

/// Accepted for every type: SELinux labels and propagation have no meaning in a build's own namespaces.
const COMMON: [&str; 9] = [
    "target",
    "dst",
    "destination",
    "ro",
    "readonly",
    "rw",
    "readwrite",
    "z",
    "relabel",
];

impl MountFlag {
    /// Cuts the value of the flag at its commas.
    #[must_use]
    pub fn new(text: &str) -> Self {
        let option = |option: &str| match option.split_once('=') {
            Some((key, value)) => {
                let value = value.trim_matches('"').to_owned();
                (key.trim().to_ascii_lowercase(), Some(Word(value)))
            }
            None => (option.trim().to_ascii_lowercase(), None),
        };
        let options = text.split(',').filter(|option| !option.trim().is_empty());
        Self {
            text: text.to_owned(),
            options: options.map(option).collect(),
        }
    }

    /// Finds the mistakes that are mistakes whatever the variables say.
    ///
    /// # Errors
    /// User: an unknown type or option, and any other if there are no variables.
    pub fn check(&self) -> Result<(), InvalidMount> {
        let has_variables = self
            .options
            .iter()
            .any(|(_, value)| value.as_ref().is_some_and(|value| value.0.contains('$')));
        if has_variables {
            self.known_options(self.kind()).map(drop)
        } else {
            self.mount(|word| Ok(word.0.clone())).map(drop)
        }
    }

    /// `type=`, which holds no variable.
    fn kind(&self) -> &str {
        let mut options = self.options.iter().rev();
        options
            .find(|(key, _)| key == "type")
            .map_or("bind", |(_, value)| {
                value.as_ref().map_or("", |word| &word.0)
            })
    }

    /// True if the files come from the build context when there is no [`MountFlag::from`].
    #[must_use]
    pub fn is_bind(&self) -> bool {
        self.kind().eq_ignore_ascii_case("bind")
    }

    /// `from=`, where it means something.
    #[must_use]
    pub fn from(&self) -> Option<&Word> {
        if self.kind().eq_ignore_ascii_case("tmpfs") {
            return None;
        }
        let mut options = self.options.iter().rev();
        options
            .find(|(key, _)| key == "from")
            .and_then(|(_, value)| value.as_ref())
    }

    /// The mount, with `expand` for what its values say.
    ///
    /// # Errors
    /// User: [`InvalidMount`], and what `expand` can't.
    pub fn mount<E: From<InvalidMount>>(
        &self,
        mut expand: impl FnMut(&Word) -> Result<String, E>,
    ) -> Result<Mount, E> {
        let mut values = Vec::with_capacity(self.options.len());
        for (key, value) in &self.options {
            let value = match (key.as_str(), value) {
                // planned long before, from the ARG and ENV lines of the stage
                ("from", _) | (_, None) => None,
                (_, Some(word)) => Some(expand(word)?),
            };
            values.push((key.as_str(), value));
        }
        Ok(self.read(&Values { flag: self, values })?)
    }

    fn bad(&self, wanted: impl Into<String>) -> InvalidMount {
        InvalidMount {
            text: self.text.clone(),
            wanted: wanted.into(),
        }
    }

    fn known_options(&self, kind: &str) -> Result<String, InvalidMount> {
        let kind = kind.to_ascii_lowercase();
        let own: &[&str] = match kind.as_str() {
            // what means nothing for a type but is no mistake, either
            "bind" => &[
                "from",
                "source",
                "src",
                "id",
                "env",
                "bind-propagation",
                "bind-nonrecursive",
            ],
            "cache" => &[
                "id", "from", "source", "src", "sharing", "mode", "uid", "gid", "env",
            ],
            "tmpfs" => &["size", "tmpfs-size", "from", "source", "src", "id", "env"],
            "secret" => &[
                "id", "source", "src", "required", "mode", "uid", "gid", "env",
            ],
            "ssh" => {
                return Err(
                    self.bad("ssh mounts are not supported; use bind, cache, tmpfs or secret")
                );
            }
            other => {
                let suggestion = did_you_mean(nearest(other, &TYPES));
                return Err(self.bad(format!(
                    "there is no type {other}; use bind, cache, tmpfs or secret{suggestion}"
                )));
            }
        };
        let known = |key: &str| key == "type" || own.contains(&key) || COMMON.contains(&key);
        if let Some((key, _)) = self.options.iter().find(|(key, _)| !known(key)) {
            let known = [&["type"], own, &COMMON].concat();
            let suggestion = did_you_mean(nearest(key, &known));
            return Err(self.bad(format!("type={kind} has no option {key}{suggestion}")));
        }
        let lacks_value = |(key, value): &&(String, Option<Word>)| {
            value.is_none() && !SWITCHES.contains(&key.as_str())
        };
        match self.options.iter().find(lacks_value) {
            Some((key, _)) => Err(self.bad(format!("{key} needs a value: write {key}=…"))),
            None => Ok(kind),
        }
    }

    fn read(&self, values: &Values<'_>) -> Result<Mount, InvalidMount> {
        let kind = values.text(&["type"]).unwrap_or_else(|| "bind".to_owned());
        let kind = self.known_options(&kind)?;
        let target = values.text(&["target", "dst", "destination"]);
        let rw = ["rw", "readwrite"];
        let read_write = match values.last(&["rw", "readwrite", "ro", "readonly"]) {
            Some(name) => {
                let is_on = values.switch(&[name])?;
                is_on.map(|is_on| is_on == rw.contains(&name))
            }
            None => None,
        };
        let source = values.text(&["source", "src"]);
        let kind = match kind.as_str() {
            "bind" => MountKind::Bind { source },
            "tmpfs" => MountKind::Tmpfs {
                size_bytes: match values.text(&["size", "tmpfs-size"]) {
                    None => None,
                    Some(text) => Some(
                        size(&text)
                            .ok_or_else(|| self.bad("size must be bytes, or end in k, m or g"))?,
                    ),
                },
            },
            "cache" => MountKind::Cache {
                id: values.text(&["id"]),
                source,
                sharing: match values.text(&["sharing"]).map(|s| s.to_ascii_lowercase()) {
                    None => "shared".to_owned(),
                    Some(s) if ["shared", "private", "locked"].contains(&s.as_str()) => s,
                    Some(_) => return Err(self.bad("sharing is shared, private or locked")),
                },
                mode: values.number("mode", 8)?,
                uid: values.number("uid", 10)?,
                gid: values.number("gid", 10)?,
            },
            _ if source.is_some() && values.text(&["id"]).is_some() => {
                return Err(self.bad("id and source both name the secret; give one of them"));
            }
            _ if source.is_none() && values.text(&["id", "env"]).or(target.clone()).is_none() => {
                return Err(self.bad("say which secret: id=…"));
            }
            _ => MountKind::Secret {
                id: values.text(&["id"]).or(source),
                required: values.switch(&["required"])?.unwrap_or(false),
                mode: values.number("mode", 8)?,
                uid: values.number("uid", 10)?,
                gid: values.number("gid", 10)?,
                env: values.text(&["env"]),
            },
        };
        Ok(Mount {
            kind,
            target,
            read_write,
        })
    }
}

/// The options' values; the last one of a name counts.
struct Values<'a> {
    flag: &'a MountFlag,
    values: Vec<(&'a str, Option<String>)>,
}

impl Values<'_> {
    fn get(&self, names: &[&str]) -> Option<Option<&str>> {
        let mut values = self.values.iter().rev();
        values
            .find(|(key, _)| names.contains(key))
            .map(|(_, value)| value.as_deref())
    }

    /// Which of the names comes last.
    fn last(&self, names: &[&'static str]) -> Option<&'static str> {
        let mut values = self.values.iter().rev();
        values.find_map(|(key, _)| names.iter().find(|name| *name == key).copied())
    }

    fn text(&self, names: &[&str]) -> Option<String> {
        self.get(names).flatten().map(str::to_owned)
    }

    fn switch(&self, names: &[&str]) -> Result<Option<bool>, InvalidMount> {
        match self.get(names) {
            None => Ok(None),
            Some(None) => Ok(Some(true)),
            Some(Some(value)) => match value.to_ascii_lowercase().as_str() {
                "true" | "t" | "1" | "" => Ok(Some(true)),
                "false" | "f" | "0" => Ok(Some(false)),
                _ => Err(self.flag.bad("a switch is true or false")),
            },
        }
    }

    fn number(&self, name: &str, radix: u32) -> Result<Option<u32>, InvalidMount> {
        match self.get(&[name]).flatten() {
            None => Ok(None),
            Some(value) => u32::from_str_radix(value, radix)
                .map(Some)
                .map_err(|_| self.flag.bad(format!("{name} must be a number"))),
        }
    }
}

/// `64m`, `1.5g`, `10MiB`: powers of two whatever the spelling.
fn size(text: &str) -> Option<u64> {
    let lower = text.to_ascii_lowercase();
    let digits = lower.trim_end_matches(|c: char| c.is_ascii_alphabetic() || c == ' ');
    let unit = lower[digits.len()..].trim();
    let shift = match unit.trim_end_matches('b').trim_end_matches('i') {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => return None,
    };
    let bytes = digits.parse::<f64>().ok()? * 2f64.powi(shift);
    (0.0..1e18).contains(&bytes).then_some(bytes as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_powers_of_two() {
        for (text, bytes) in [
            ("100", Some(100)),
            ("64m", Some(64 << 20)),
            ("1.5G", Some(3 << 29)),
            ("10MiB", Some(10 << 20)),
            ("2kb", Some(2048)),
            ("m", None),
            ("1x", None),
            ("-1", None),
        ] {
            assert_eq!(size(text), bytes, "{text}");
        }
    }

    #[test]
    fn a_misspelt_type_or_option_gets_the_nearest_one() {
        let table = [
            (
                "type=bnd,target=/x",
                "there is no type bnd; use bind, cache, tmpfs or secret; did you mean bind?",
            ),
            (
                "type=volume,target=/x",
                "there is no type volume; use bind, cache, tmpfs or secret",
            ),
            (
                "type=cache,taget=/x",
                "type=cache has no option taget; did you mean target?",
            ),
            (
                "type=secret,id=x,requierd",
                "type=secret has no option requierd; did you mean required?",
            ),
            (
                "type=cache,target=/x,shring=$S",
                "type=cache has no option shring; did you mean sharing?",
            ),
            ("type=tmpfs,target=/x,q", "type=tmpfs has no option q"),
            ("type=secret,id=x,from=y", "type=secret has no option from"),
            ("type=cache,target", "target needs a value: write target=…"),
            (
                "type=tmpfs,target=/x,sharing=locked",
                "type=tmpfs has no option sharing",
            ),
        ];
        for (text, wanted) in table {
            let error = MountFlag::new(text).check().unwrap_err();
            assert_eq!(error.wanted, wanted, "{text}");
        }
    }

    #[test]
    fn an_option_that_means_nothing_for_a_type_is_no_mistake() {
        for text in [
            "type=bind,target=/x,id=a,env=b",
            "type=cache,target=/x,env=b",
            "type=tmpfs,target=/x,id=a,from=b,source=c",
        ] {
            assert_eq!(MountFlag::new(text).check(), Ok(()), "{text}");
        }
        let tmpfs = MountFlag::new("type=tmpfs,target=/x,from=b");
        assert_eq!(tmpfs.from(), None);
    }

    #[test]
    fn what_is_said_last_counts() {
        for (options, read_write) in [
            ("", None),
            ("rw", Some(true)),
            ("ro", Some(false)),
            ("rw,ro", Some(false)),
            ("ro,rw", Some(true)),
            ("readonly,readwrite=false", Some(false)),
            ("rw=0,readonly=f", Some(true)),
        ] {
            let flag = MountFlag::new(&format!("type=bind,target=/a,{options},dst=/b"));
            let mount: Result<Mount, InvalidMount> = flag.mount(|word| Ok(word.0.clone()));
            let mount = mount.unwrap();
            assert_eq!(mount.read_write, read_write, "{options}");
            assert_eq!(mount.target.as_deref(), Some("/b"));
        }
    }

    #[test]
    fn variables_are_read_when_the_step_runs() {
        let flag = MountFlag::new("type=cache,target=/c,uid=$U,gid=${G:-7},mode=0$M,id=c-$U");
        assert_eq!(flag.check(), Ok(()));
        let expand = |word: &Word| -> Result<String, InvalidMount> {
            let values = [
                ("$U", "5"),
                ("${G:-7}", "7"),
                ("0$M", "0700"),
                ("c-$U", "c-5"),
            ];
            let known = values.iter().find(|(text, _)| *text == word.0);
            Ok(known.map_or(word.0.clone(), |(_, value)| (*value).to_owned()))
        };
        assert_eq!(
            flag.mount(expand).map(|mount| mount.kind),
            Ok(MountKind::Cache {
                id: Some("c-5".to_owned()),
                source: None,
                sharing: "shared".to_owned(),
                mode: Some(0o700),
                uid: Some(5),
                gid: Some(7),
            })
        );
        let plain = |word: &Word| Ok(word.0.clone());
        let error: Result<Mount, InvalidMount> = flag.mount(plain);
        assert_eq!(
            error.map_err(|error| error.wanted),
            Err("mode must be a number".to_owned())
        );
    }
}
