//! The program as shipped, and images made with it, for the tests beside this folder.
#![allow(dead_code, reason = "each test file uses a part of it")]

pub mod certificates;
pub mod proxy;
pub mod server;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;
pub use server::*;
use strata_builder::digest::Digest;

/// A folder with a context, and what is built from it.
pub struct Workshop {
    folder: tempfile::TempDir,
}

/// Copies a program so that it can be executed at once. Written by this process, it might be held open by one that another test has just forked.
pub fn copy_program(from: impl AsRef<OsStr>, to: &Path) {
    let copied = Command::new("cp").arg(from).arg(to).status().unwrap();
    assert!(copied.success());
}

/// How a build ended.
pub struct Built {
    pub status: i32,
    pub stdout: String,
    pub stderr: String,
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
