//! Which files say how registries are reached? The ones that the arguments name, or else those that podman, buildah and skopeo read, too.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use strata_builder::error::Classify as _;
use strata_builder::registry::{Credentials, HostCertificates, Policy, Rules};

use crate::command::Classed;

/// For all users of the machine.
const SYSTEM: &str = "/etc/containers";

fn variable(name: &str) -> Option<PathBuf> {
    let value = std::env::var_os(name).filter(|value| !value.is_empty());
    value.map(PathBuf::from)
}

/// The user's own files of that kind of program. The home of another user, which `su` may leave in `HOME`, has none of them.
fn own_folder() -> Option<PathBuf> {
    let configuration =
        variable("XDG_CONFIG_HOME").or_else(|| Some(variable("HOME")?.join(".config")))?;
    let folder = configuration.join("containers");
    let is_closed = |error: io::Error| error.kind() == io::ErrorKind::PermissionDenied;
    (!fs::metadata(&folder).is_err_and(is_closed)).then_some(folder)
}

/// What it means that a file is there and this user may not read it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// It grants something: without it less is possible.
    Grants,
    /// It forbids something: without it everything would be allowed.
    Forbids,
}

impl Kind {
    fn is_absent(self, error: &io::Error) -> bool {
        match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => true,
            io::ErrorKind::PermissionDenied => self == Self::Grants,
            _ => false,
        }
    }
}

/// The text of a file that need not be there.
fn optional(path: &Path, kind: Kind) -> anyhow::Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if kind.is_absent(&error) => Ok(None),
        Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
    }
}

/// Entries of a folder by name; none if there is no such folder.
fn entries(folder: &Path, kind: Kind) -> anyhow::Result<Vec<PathBuf>> {
    let listed = match fs::read_dir(folder) {
        Ok(listed) => listed,
        Err(error) if kind.is_absent(&error) => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("read {}", folder.display())),
    };
    let mut paths = listed
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<io::Result<Vec<_>>>()
        .with_context(|| format!("read {}", folder.display()))?;
    paths.sort();
    Ok(paths)
}

/// The file `named`, alone; or else the user's or the system's, with the files of their registries.conf.d.
pub fn rules(named: Option<&Path>) -> anyhow::Result<Rules> {
    let read =
        |path: &Path, text: &str| Rules::parse(text).with_context(|| format!("{}", path.display()));
    if let Some(path) = named {
        let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        return read(path, &text);
    }
    let folders = [Some(PathBuf::from(SYSTEM)), own_folder()];
    let folders: Vec<PathBuf> = folders.into_iter().flatten().collect();
    let mut rules = Rules::default();
    // The user's main file takes the place of the system's.
    for folder in folders.iter().rev() {
        let path = folder.join("registries.conf");
        if let Some(text) = optional(&path, Kind::Forbids)? {
            rules = read(&path, &text)?;
            break;
        }
    }
    for folder in &folders {
        for path in entries(&folder.join("registries.conf.d"), Kind::Forbids)? {
            if path.extension() == Some(OsStr::new("conf"))
                && let Some(text) = optional(&path, Kind::Forbids)?
            {
                rules = rules.overridden_by(read(&path, &text)?);
            }
        }
    }
    Ok(rules)
}

/// The file `named`; or else the user's or the system's, and without any of them everything is allowed.
pub fn policy(named: Option<&Path>) -> anyhow::Result<Policy> {
    let read = |path: &Path, text: &str| {
        Policy::parse(text).with_context(|| format!("{}", path.display()))
    };
    if let Some(path) = named {
        let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        return read(path, &text);
    }
    for folder in own_folder().into_iter().chain([PathBuf::from(SYSTEM)]) {
        let path = folder.join("policy.json");
        if let Some(text) = optional(&path, Kind::Forbids)? {
            return read(&path, &text);
        }
    }
    Ok(Policy::default())
}

/// From the folder `named`, or else from the user's and the system's; of a registry that several of them have, the first counts.
pub fn certificates(named: Option<&Path>) -> anyhow::Result<BTreeMap<String, HostCertificates>> {
    let folders = match named {
        Some(named) if named.is_dir() => vec![named.to_owned()],
        Some(named) => bail!("{} is no folder", named.display()),
        None => {
            let own = own_folder().map(|folder| folder.join("certs.d"));
            let system = [SYSTEM, "/etc/docker"].map(|folder| Path::new(folder).join("certs.d"));
            own.into_iter().chain(system).collect()
        }
    };
    let mut hosts = BTreeMap::new();
    for folder in folders {
        for host in entries(&folder, Kind::Grants)? {
            let name = host.file_name().and_then(OsStr::to_str);
            if let Some(name) = name.filter(|name| !hosts.contains_key(*name) && host.is_dir()) {
                hosts.insert(name.to_owned(), certificates_of(&host)?);
            }
        }
    }
    Ok(hosts)
}

fn certificates_of(folder: &Path) -> anyhow::Result<HostCertificates> {
    let mut found = HostCertificates::default();
    let read = |path: &Path| fs::read(path).with_context(|| format!("read {}", path.display()));
    for path in entries(folder, Kind::Grants)? {
        match path.extension().and_then(OsStr::to_str) {
            Some("crt") => found.authorities.push(read(&path)?),
            Some("cert") => {
                let key = path.with_extension("key");
                if !key.exists() {
                    bail!("{} has no key {}", path.display(), key.display());
                }
                if found.identity.is_some() {
                    bail!("{} has more than one .cert", folder.display());
                }
                let mut both = read(&path)?;
                both.push(b'\n');
                both.extend(read(&key)?);
                found.identity = Some(both);
            }
            Some("key") if !path.with_extension("cert").exists() => {
                bail!("{} belongs to no .cert beside it", path.display());
            }
            _ => {}
        }
    }
    Ok(found)
}

/// From the file `named`, or else from those that `podman login` and `docker login` write; of an entry that several of them have, the first counts.
pub fn credentials(named: Option<&Path>) -> anyhow::Result<Credentials> {
    let read = |path: &Path, text: &str| -> anyhow::Result<Credentials> {
        Credentials::parse(text)
            .map_err(|error| Classed(error.class(), format!("{}: {error}", path.display())).into())
    };
    if let Some(path) = named {
        let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        return read(path, &text);
    }
    let docker = variable("DOCKER_CONFIG").or_else(|| Some(variable("HOME")?.join(".docker")));
    let paths = [
        variable("XDG_RUNTIME_DIR").map(|folder| folder.join("containers/auth.json")),
        own_folder().map(|folder| folder.join("auth.json")),
        docker.map(|folder| folder.join("config.json")),
        variable("HOME").map(|folder| folder.join(".dockercfg")),
    ];
    let mut credentials = Credentials::default();
    for path in paths.into_iter().flatten() {
        if let Some(text) = optional(&path, Kind::Grants)? {
            credentials = credentials.or(read(&path, &text)?);
        }
    }
    Ok(credentials)
}
