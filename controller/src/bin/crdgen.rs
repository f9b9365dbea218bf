//! Which CRDs follow from the API types?
//!
//! `cargo crds --out deploy/crds` writes one file per kind: ours into the folder, other controllers'
//! into `DIR-foreign`. Without `--out` everything is printed.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Parser;
use strata_controller::api;

/// Prints or writes the CustomResourceDefinitions.
#[derive(Parser)]
struct Arguments {
    /// Folder for the files; other controllers' kinds go to the folder of this name and `-foreign`.
    #[arg(long)]
    out: Option<PathBuf>,
}

fn main() -> anyhow::Result<()> {
    let Arguments { out } = Arguments::parse();
    let own = api::crd_files(api::own_crds())?;
    let foreign = api::crd_files(api::foreign_crds())?;
    match out {
        None => own
            .iter()
            .chain(&foreign)
            .for_each(|(_, text)| print!("---\n{text}")),
        Some(directory) => {
            let mut beside = directory.clone().into_os_string();
            beside.push("-foreign");
            write(&directory, own)?;
            write(Path::new(&beside), foreign)?;
        }
    }
    Ok(())
}

fn write(directory: &Path, files: Vec<(String, String)>) -> anyhow::Result<()> {
    std::fs::create_dir_all(directory)
        .with_context(|| format!("create {}", directory.display()))?;
    for (name, text) in files {
        let path = directory.join(name);
        std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}
