//! Format, clippy for both targets, documentation, and paths of this machine in committed files.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};

use crate::command;
use crate::ebpf::Toolchain;
use crate::packages::{self, Need};

/// `cargo xtask lint`: every check, also after one has failed.
pub(crate) fn run() -> Result<()> {
    type Check = fn() -> Result<()>;
    let checks: [(&str, Check); 5] = [
        ("format (`cargo fmt --all` mends it)", format),
        ("clippy", clippy),
        ("clippy for the BPF programs", programs),
        ("documentation", documentation),
        ("paths", paths),
    ];
    let mut failed = Vec::new();
    for (name, check) in checks {
        if let Err(error) = check() {
            println!("{error:#}");
            failed.push(name);
        }
    }
    ensure!(failed.is_empty(), "lint: {}", failed.join(", "));
    Ok(())
}

fn format() -> Result<()> {
    command::run(&mut command::cargo(["fmt", "--all", "--check"]))
}

fn clippy() -> Result<()> {
    // Those that `cargo test` leaves alone are not among all targets.
    for targets in [["--workspace", "--all-targets"], ["--package=collector", "--test=kernel"]] {
        let mut clippy = command::cargo(["clippy", "--quiet", "--locked"]);
        command::run(clippy.args(targets).args(["--", "--deny=warnings"]))?;
    }
    Ok(())
}

fn documentation() -> Result<()> {
    let mut doc = command::cargo(["doc", "--quiet", "--workspace", "--no-deps", "--document-private-items"]);
    command::run(doc.arg("--locked").env("RUSTDOCFLAGS", "--deny=warnings"))
}

/// The BPF programs, with the clippy that belongs to the compiler that builds them.
fn programs() -> Result<()> {
    if let Err(error) = packages::ensure(Need::Ebpf) {
        println!("left out: clippy for the BPF programs: {error:#}");
        return Ok(());
    }
    let toolchain = Toolchain::debian()?;
    let mut clippy = toolchain.cargo("clippy")?;
    // cargo looks for `cargo-clippy` in its own directory first, which is the other compiler's.
    let arguments: Vec<_> = clippy.get_args().map(ToOwned::to_owned).collect();
    let environment: Vec<_> =
        clippy.get_envs().map(|(key, value)| (key.to_owned(), value.map(ToOwned::to_owned))).collect();
    clippy = command::program("/usr/bin/cargo-clippy", []);
    for (key, value) in environment {
        match value {
            Some(value) => clippy.env(key, value),
            None => clippy.env_remove(key),
        };
    }
    clippy.args(arguments).args(["--quiet", "--", "--deny=warnings"]);
    command::run(&mut clippy)
}

/// Committed files must not name places of the machine they were made on; the BPF object, whose debug information
/// holds paths, least of all.
fn paths() -> Result<()> {
    let home = std::env::home_dir().filter(|home| home.components().count() > 1);
    let places: Vec<PathBuf> = [Some(command::root().to_path_buf()), home].into_iter().flatten().collect();
    // In CI the checkout often belongs to another user, which git wants to be told.
    let listed = command::output(&mut command::program("git", ["-c", "safe.directory=*", "ls-files", "-z"]))?;
    let mut found = Vec::new();
    for name in listed.split_terminator('\0') {
        let path = command::root().join(name);
        // A link, or a file that was removed and not committed yet.
        if !path.is_file() {
            continue;
        }
        let content = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        for place in &places {
            let place = format!("{}/", place.display());
            if content.windows(place.len()).any(|window| window == place.as_bytes()) {
                found.push(format!("{name} names {place}"));
            }
        }
    }
    if !found.is_empty() {
        bail!("paths of this machine in committed files:\n    {}", found.join("\n    "));
    }
    Ok(())
}
