//! The program as shipped, and images made with it, for the tests beside this folder.
#![allow(dead_code, reason = "each test file uses a part of it")]

pub mod certificates;
pub mod proxy;

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use strata_builder::digest::Digest;

/// A folder with a context, and what is built from it.
pub struct Workshop {
    folder: tempfile::TempDir,
}

/// How a build ended.
pub struct Built {
    pub status: i32,
    pub stdout: String,
    pub stderr: String,
}

/// Prints why a test does nothing, past libtest's capture and in one piece: such lines are counted.
pub fn skip(test: &str, why: &str) {
    let line = format!("skipped: {test}: {why}\n");
    let _ = std::io::stderr().write_all(line.as_bytes());
}

/// True if the tests of builds can run here; else says why not.
pub fn can_build(test: &str) -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let is_root = status
        .lines()
        .any(|line| line.starts_with("Uid:") && line.split_whitespace().nth(2) == Some("0"));
    if !is_root {
        skip(test, "it needs root");
    } else if !Path::new("/bin/busybox").exists() {
        skip(
            test,
            "it needs /bin/busybox (Debian package busybox-static)",
        );
    } else {
        return true;
    }
    false
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

/// Files for COPY, and what hides some.
const CONTEXT: [(&str, &str); 9] = [
    ("a.txt", "a\n"),
    ("b.txt", "b\n"),
    ("d/x", "x\n"),
    ("d/sub/y", "y\n"),
    ("d/sub/z.md", "z\n"),
    ("secret-file", "s\n"),
    (".dockerignore", "secret-file\nignored\n"),
    ("ignored/x", ""),
    ("cache/seed", "seed\n"),
];

impl Workshop {
    /// With some files in its context.
    pub fn with_files() -> Self {
        let workshop = Self::new();
        for (name, content) in CONTEXT {
            workshop.file(name, content);
        }
        workshop
    }

    /// Empty, but for an image of busybox: the context `base`.
    pub fn new() -> Self {
        let workshop = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        fs::create_dir_all(workshop.path("context")).unwrap();
        workshop
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a file of the context.
    pub fn file(&self, name: &str, content: impl AsRef<[u8]>) -> &Self {
        let path = self.path("context").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
        self
    }

    /// The image `oci:…/base`: busybox, its links, /etc/passwd and /etc/group.
    pub fn base(&self) -> String {
        let layout = self.path("base");
        if !layout.exists() {
            let context = self.path("base-context");
            for directory in ["bin", "etc", "tmp", "root", "home/ann"] {
                fs::create_dir_all(context.join(directory)).unwrap();
            }
            let open = std::os::unix::fs::PermissionsExt::from_mode(0o1777);
            fs::set_permissions(context.join("tmp"), open).unwrap();
            fs::copy("/bin/busybox", context.join("bin/busybox")).unwrap();
            let list = Command::new("/bin/busybox").arg("--list").output().unwrap();
            for applet in String::from_utf8(list.stdout).unwrap().lines() {
                let link = context.join("bin").join(applet);
                if !link.exists() {
                    std::os::unix::fs::symlink("busybox", link).unwrap();
                }
            }
            fs::write(
                context.join("etc/passwd"),
                "root:x:0:0:root:/root:/bin/sh\nann:x:1000:1001::/home/ann:/bin/sh\n",
            )
            .unwrap();
            fs::write(
                context.join("etc/group"),
                "root:x:0:\nann:x:1001:\nwheel:x:10:ann\n",
            )
            .unwrap();
            let file = "FROM scratch\nCOPY . /\nENV PATH=/bin\nCMD [\"sh\"]\n";
            fs::write(self.path("base.Containerfile"), file).unwrap();
            let built = self.run(&[
                "--containerfile",
                self.path("base.Containerfile").to_str().unwrap(),
                "--context",
                context.to_str().unwrap(),
                "--push",
                &format!("oci:{}:latest", layout.display()),
                "--source-date-epoch",
                "1700000000",
            ]);
            assert_eq!(built.status, 0, "{}", built.stderr);
        }
        format!("oci:{}:latest", layout.display())
    }

    /// Builds `containerfile` with the context and the named context `base`, into the layout `out`.
    pub fn build(&self, containerfile: &str, more: &[&str]) -> Built {
        let out = format!("oci:{}:v1", self.path("out").display());
        self.build_to(containerfile, &out, more)
    }

    pub fn build_to(&self, containerfile: &str, push: &str, more: &[&str]) -> Built {
        let base = format!("base={}", self.base());
        fs::write(self.path("Containerfile"), containerfile).unwrap();
        let file = self.path("Containerfile").display().to_string();
        let context = self.path("context").display().to_string();
        let mut arguments = vec!["--containerfile", &file, "--context", &context];
        arguments.extend(["--build-context", &base, "--push", push]);
        arguments.extend(more);
        self.run(&arguments)
    }

    /// `strata-builder build` with these arguments.
    pub fn run(&self, arguments: &[&str]) -> Built {
        Built::of(&self.command(arguments).output().unwrap())
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let scratch = self.path("scratch");
        fs::create_dir_all(&scratch).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_strata-builder"));
        command
            .arg("build")
            .args(arguments)
            .arg("--scratch")
            .arg(scratch)
            .stdin(Stdio::null());
        command
    }

    /// The image in the layout `out`.
    pub fn image(&self) -> Image {
        Image::read(&self.path("out"))
    }
}

impl Built {
    pub fn of(output: &Output) -> Self {
        Self {
            status: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Fails the test if the build failed.
    pub fn ok(self) -> Self {
        assert_eq!(self.status, 0, "{}", self.stderr);
        self
    }

    /// What steps printed.
    pub fn output(&self) -> Vec<&str> {
        let lines = self.stderr.lines();
        lines
            .filter_map(|line| line.split_once("]   ").map(|(_, output)| output))
            .collect()
    }
}

/// An image in a layout, read without any code of ours but the digest.
pub struct Image {
    pub layout: PathBuf,
    pub index: Value,
    pub manifest: Value,
    pub config: Value,
}

impl Image {
    pub fn read(layout: &Path) -> Self {
        let json = |bytes: Vec<u8>| serde_json::from_slice::<Value>(&bytes).unwrap();
        let index = json(fs::read(layout.join("index.json")).unwrap());
        let of = |descriptor: &Value| json(blob(layout, descriptor));
        let manifest = of(&index["manifests"][0]);
        let config = of(&manifest["config"]);
        Self {
            layout: layout.to_owned(),
            index,
            manifest,
            config,
        }
    }

    /// Compressed, lowest first; digest and size compared.
    pub fn layers(&self) -> Vec<Vec<u8>> {
        let layers = self.manifest["layers"].as_array().unwrap();
        layers
            .iter()
            .map(|layer| blob(&self.layout, layer))
            .collect()
    }

    /// All files, later layers over earlier ones: path → mode, owner, and content or target. Whiteouts are applied.
    pub fn files(&self) -> BTreeMap<String, String> {
        let mut files = BTreeMap::new();
        for layer in self.layers() {
            for (path, text) in entries(&layer) {
                let (folder, name) = path.rsplit_once('/').unwrap_or(("", &path));
                match name.strip_prefix(".wh.") {
                    Some(name) => {
                        let gone = format!("{folder}/{name}");
                        let gone = gone.trim_start_matches('/');
                        files.retain(|path: &String, _| {
                            path != gone && !path.starts_with(&format!("{gone}/"))
                        });
                    }
                    None => {
                        files.insert(path, text);
                    }
                }
            }
        }
        files
    }

    /// Entries of the topmost layer, `path mode uid:gid content`.
    pub fn top(&self) -> Vec<String> {
        let layers = self.layers();
        let top = layers
            .last()
            .map(|layer| entries(layer))
            .unwrap_or_default();
        top.iter()
            .map(|(path, text)| format!("{path} {text}"))
            .collect()
    }
}

pub fn entries(layer: &[u8]) -> Vec<(String, String)> {
    let mut tar = tar::Archive::new(flate2::read::GzDecoder::new(layer));
    let mut found = Vec::new();
    for entry in tar.entries().unwrap() {
        let mut entry = entry.unwrap();
        let path = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let path = path.trim_end_matches('/').to_owned();
        let header = entry.header().clone();
        let kind = match header.entry_type() {
            tar::EntryType::Directory => "directory".to_owned(),
            tar::EntryType::Regular => {
                let mut content = Vec::new();
                entry.read_to_end(&mut content).unwrap();
                match content.len() {
                    ..200 => format!("{:?}", String::from_utf8_lossy(&content)),
                    length => format!("{length} bytes"),
                }
            }
            tar::EntryType::Symlink | tar::EntryType::Link => {
                let link = entry.link_name().unwrap().unwrap();
                format!("{:?} {}", header.entry_type(), link.display())
            }
            other => format!("{other:?}"),
        };
        let owner = format!("{}:{}", header.uid().unwrap(), header.gid().unwrap());
        found.push((path, format!("{:o} {owner} {kind}", header.mode().unwrap())));
    }
    found
}

fn blob(layout: &Path, descriptor: &Value) -> Vec<u8> {
    let digest = descriptor["digest"].as_str().unwrap();
    let path = layout.join("blobs").join(digest.replace(':', "/"));
    let bytes = fs::read(path).unwrap();
    assert_eq!(Digest::of(&bytes).to_string(), digest);
    assert_eq!(descriptor["size"].as_u64(), Some(bytes.len() as u64));
    bytes
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
    fn path(self) -> PathBuf {
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
