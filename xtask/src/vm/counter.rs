//! A counter of cycles for the guests, whose CPUs have none: a module (`tests/guest`), compiled for each kernel.
//!
//! With Debian's headers, which are unpacked as the kernels are, and not installed.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::unpack;
use crate::command;

const SOURCE: &str = "tests/guest";
const FILES: [&str; 2] = ["Kbuild", "cycles.c"];
const MODULE: &str = "cycles.ko";

/// Compiles it for a release and puts it in a directory.
pub(super) fn build(dir: &Path, release: &str, to: &Path) -> Result<()> {
    let headers = headers(dir, release)?;
    let work = dir.join(format!("cycles-{release}"));
    fs::create_dir_all(&work).with_context(|| format!("creating {}", work.display()))?;
    for file in FILES {
        let from = command::root().join(SOURCE).join(file);
        fs::copy(&from, work.join(file)).with_context(|| format!("copying {}", from.display()))?;
    }
    let mut make = command::program("make", ["--silent", "-C"]);
    for variable in ["KBUILD_OUTPUT", "KCFLAGS", "LLVM", "W"] {
        make.env_remove(variable);
    }
    // Nobody needs its BTF, which takes one more program to make where the headers have that of the kernel.
    make.arg(&headers)
        .arg(format!("M={}", work.display()))
        .args(["CONFIG_DEBUG_INFO_BTF_MODULES=", "modules"]);
    command::run(&mut make)?;
    command::run(
        command::program("strip", ["--strip-debug", "-o"]).arg(to.join(MODULE)).arg(work.join(MODULE)),
    )
}

/// Where the headers of a release are.
fn headers(dir: &Path, release: &str) -> Result<PathBuf> {
    let package = format!("linux-headers-{release}");
    let unpacked = dir.join(&package);
    let source = unpacked.join("usr/src");
    let headers = source.join(&package);
    let makefile = headers.join("Makefile");
    let own = format!("include {}/{}/Makefile\n", source.display(), common(&package));
    // Written last.
    if fs::read_to_string(&makefile).is_ok_and(|text| text == own) {
        return Ok(headers);
    }
    let depends = command::output(&mut command::program("apt-cache", ["depends", &package]))?;
    let others = depends.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
    let others = others.filter(|name| *name == common(&package) || name.starts_with("linux-kbuild-"));
    let packages: Vec<&str> = others.chain([&*package]).collect();
    ensure!(
        packages.len() == 3,
        "{package} was to depend on headers and on what builds with them: {depends}"
    );
    for package in packages {
        unpack(dir, package, &unpacked)?;
    }
    // Theirs includes what would be installed.
    fs::write(&makefile, own).with_context(|| format!("writing {}", makefile.display()))?;
    Ok(headers)
}

/// The package of headers that all kernels of a version have: `linux-headers-6.1.0-1-common` of `linux-headers-6.1.0-1-cloud-amd64`.
fn common(package: &str) -> String {
    format!("{}-common", package.trim_end_matches("-cloud-amd64"))
}
