//! `ostree container …`: the command line of the ostree-ext library, which is published without a program of its own.
//!
//! libostree runs an external subcommand X as `<libexecdir>/libostree/ext/ostree-X` and hands it only what follows X; the library's parser wants
//! `<program> X …`, so X is put back.

use std::ffi::OsString;
use std::path::Path;

fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt::init();
    let mut arguments: Vec<OsString> = std::env::args_os().collect();
    let subcommand = arguments
        .first()
        .and_then(|program| Path::new(program).file_name())
        .and_then(|name| name.to_str())
        .and_then(|name| name.strip_prefix("ostree-"))
        .map(OsString::from);
    if let Some(subcommand) = subcommand
        && arguments.get(1) != Some(&subcommand)
    {
        arguments.insert(1, subcommand);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(ostree_ext::cli::run_from_iter(arguments))
}
