//! Real registries for tests, of other crates too, and why a test can't run here.
#![allow(dead_code, reason = "each test file uses a part of it")]

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Prints why a test does nothing, past libtest's capture and in one piece: such lines are counted.
pub fn skip(test: &str, why: &str) {
    let line = format!("skipped: {test}: {why}\n");
    let _ = std::io::stderr().write_all(line.as_bytes());
}

/// True if the program is installed; else says so.
pub fn has(program: &str, test: &str) -> bool {
    let found = std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|path| path.join(program).exists()));
    if !found {
        skip(test, &format!("{program} is not installed"));
    }
    found
}

/// A program that is ended with its test.
pub struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A program that is a registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// Debian's docker-registry 2.8.
    Docker2,
    /// `distribution` v3, from its Go module.
    Distribution3,
}

impl Program {
    /// True if it is installed; else says so.
    pub fn is_there(self, test: &str) -> bool {
        match self {
            Self::Docker2 => has("docker-registry", test),
            Self::Distribution3 => {
                let found = self.path().exists();
                if !found {
                    skip(
                        test,
                        "distribution v3 is not built: e2e/setup check does it",
                    );
                }
                found
            }
        }
    }

    /// Where it is: the second one in the cache of e2e/cluster/build.sh.
    pub fn path(self) -> PathBuf {
        if self == Self::Docker2 {
            return "docker-registry".into();
        }
        let recipe = Path::new(env!("CARGO_MANIFEST_DIR")).join("../e2e/cluster/recipe.sh");
        let recipe = Command::new(recipe).arg("distribution").output().unwrap();
        assert!(recipe.status.success());
        let variable = |name: &str| std::env::var_os(name).map(PathBuf::from);
        let own_cache = || {
            let home = || variable("HOME").unwrap_or("/root".into()).join(".cache");
            variable("XDG_CACHE_HOME")
                .unwrap_or_else(home)
                .join("strata")
        };
        let cache = variable("STRATA_CACHE").unwrap_or_else(own_cache);
        let hash = String::from_utf8(recipe.stdout).unwrap();
        cache.join(format!("distribution-{}/registry", hash.trim()))
    }
}

/// Makes each of these functions a test with either registry program.
#[macro_export]
macro_rules! with_both_registries {
    ($($name:ident)*) => {
        mod docker_2 {
            $(#[test] fn $name() { super::$name(super::Program::Docker2); })*
        }
        mod distribution_3 {
            $(#[test] fn $name() { super::$name(super::Program::Distribution3); })*
        }
    };
}

/// A registry on a port of its own.
pub struct RegistryServer {
    pub host: String,
    program: Program,
    port: u16,
    configuration: PathBuf,
    process: Option<Running>,
}

impl RegistryServer {
    /// With its files in `folder`.
    pub fn start(program: Program, folder: &Path) -> Self {
        Self::start_with(program, folder, "")
    }

    /// Also with these settings of its `http`.
    pub fn start_with(program: Program, folder: &Path, http: &str) -> Self {
        Self::start_as(program, folder, "true", http)
    }

    /// It keeps everything.
    pub fn start_without_delete(program: Program, folder: &Path) -> Self {
        Self::start_as(program, folder, "false", "")
    }

    fn start_as(program: Program, folder: &Path, deletes: &str, http: &str) -> Self {
        let port = free_port();
        let text = format!(
            "version: 0.1\nstorage: {{filesystem: {{rootdirectory: {}}}, delete: {{enabled: {deletes}}}}}\n\
             http: {{addr: \"127.0.0.1:{port}\", secret: x{http}}}\nlog: {{level: error, accesslog: {{disabled: true}}}}\n",
            folder.join("registry").display()
        );
        let configuration = folder.join("registry.yml");
        fs::write(&configuration, text).unwrap();
        let mut registry = Self {
            host: format!("127.0.0.1:{port}"),
            program,
            port,
            configuration,
            process: None,
        };
        registry.restart();
        registry
    }

    pub fn restart(&mut self) {
        self.stop();
        let child = Command::new(self.program.path())
            .arg("serve")
            .arg(&self.configuration)
            // the third version sends traces to this machine otherwise
            .env("OTEL_TRACES_EXPORTER", "none")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        self.process = Some(Running(child));
        wait_for(self.port);
    }

    pub fn stop(&mut self) {
        self.process = None;
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// The manifest under `tag`, as it is. A registry that is writing one at this moment answers 500.
    pub fn manifest(&self, repository: &str, tag: &str) -> Option<Vec<u8>> {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let (status, body) = self.get(&format!("/v2/{repository}/manifests/{tag}"));
            match status.as_str() {
                "200" => return Some(body),
                "404" => return None,
                _ => assert!(
                    Instant::now() < deadline,
                    "{tag}: the registry answers {status}"
                ),
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Status and body.
    pub fn get(&self, path: &str) -> (String, Vec<u8>) {
        let mut connection = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        let request = format!(
            "GET {path} HTTP/1.0\r\nhost: x\r\naccept: application/vnd.oci.image.manifest.v1+json\r\n\r\n"
        );
        connection.write_all(request.as_bytes()).unwrap();
        let mut answer = Vec::new();
        connection.read_to_end(&mut answer).unwrap();
        let end = answer.windows(4).position(|four| four == b"\r\n\r\n");
        let body = answer.split_off(end.unwrap() + 4);
        let head = String::from_utf8(answer).unwrap();
        (head.split(' ').nth(1).unwrap().to_owned(), body)
    }

    /// Removes a blob behind the registry's back.
    pub fn lose_blob(&self, digest: &str) {
        fs::remove_dir_all(self.blob_folder(digest)).unwrap();
    }

    /// A blob as it is on the disk.
    pub fn blob(&self, digest: &str) -> Vec<u8> {
        fs::read(self.blob_folder(digest).join("data")).unwrap()
    }

    fn blob_folder(&self, digest: &str) -> PathBuf {
        let hex = digest.strip_prefix("sha256:").unwrap();
        let blobs = self.storage().join("blobs/sha256");
        blobs.join(&hex[..2]).join(hex)
    }

    /// Digests of the blobs that the repository has.
    pub fn layers(&self, repository: &str) -> Vec<String> {
        let links = self.storage().join("repositories").join(repository);
        let links = fs::read_dir(links.join("_layers/sha256")).unwrap();
        let name = |link: fs::DirEntry| link.file_name().into_string().unwrap();
        links
            .map(|link| format!("sha256:{}", name(link.unwrap())))
            .collect()
    }

    fn storage(&self) -> PathBuf {
        let folder = self.configuration.with_file_name("registry");
        folder.join("docker/registry/v2")
    }
}

pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

fn wait_for(port: u16) {
    let began = Instant::now();
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(
            began.elapsed() < Duration::from_secs(20),
            "no server on {port}"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}
