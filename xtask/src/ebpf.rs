//! The BPF object: built from source, kept with a manifest, proved fresh.
//!
//! The same source and the same toolchain give the same bytes on any machine: paths are mapped away, and the build
//! profile is stated here, not taken from the workspace. The manifest records a hash of everything else that goes
//! in, so that an object which is older than its source is found without a BPF toolchain at hand.

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::command;
use crate::packages::{self, Need};

const TARGET: &str = "bpfel-unknown-none";
const LINKER_VERSION: &str = "0.13.0";
const LLVM_MAJOR: &str = "22";
const LLVM_BIN: &str = "/usr/lib/llvm-22/bin";
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";

/// `v3` brings 32-bit atomics, which the programs use; it needs Linux 5.12. BTF is made from debug information.
const FLAGS: [&str; 3] = ["-Clink-arg=--btf", "-Cdebuginfo=2", "-Ctarget-cpu=v3"];

/// Stated here so that a change to the profile of the service does not change the programs.
const PROFILE: [(&str, &str); 6] = [
    ("CARGO_PROFILE_RELEASE_OPT_LEVEL", "3"),
    ("CARGO_PROFILE_RELEASE_DEBUG", "2"),
    ("CARGO_PROFILE_RELEASE_LTO", "fat"),
    ("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1"),
    ("CARGO_PROFILE_RELEASE_PANIC", "abort"),
    ("CARGO_PROFILE_RELEASE_OVERFLOW_CHECKS", "false"),
];

/// What `verify` found out about bytes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verified {
    /// The committed object is exactly what its source gives.
    SameBytes,
    /// Built with another toolchain; the rebuilt object is in this file.
    OtherToolchain(PathBuf),
}

/// Where the committed object is.
pub(crate) fn committed() -> PathBuf {
    command::root().join("collector-ebpf/prebuilt/collector.bpf.o")
}

fn manifest_path() -> PathBuf {
    command::root().join("collector-ebpf/prebuilt/manifest.toml")
}

/// `cargo xtask build-ebpf`
pub(crate) fn build() -> Result<()> {
    let toolchain = Toolchain::find()?;
    let object = compile(&toolchain)?;
    fs::copy(&object, committed()).with_context(|| format!("writing {}", committed().display()))?;
    let manifest = Manifest { source: source_hash()?, object: sha256(&fs::read(&object)?)?, toolchain };
    let path = manifest_path();
    fs::write(&path, manifest.to_toml()).with_context(|| format!("writing {}", path.display()))?;
    println!("wrote {} and {}; commit both", committed().display(), path.display());
    Ok(())
}

/// The committed object belongs to its manifest, and the manifest to the source. Needs no toolchain for BPF.
pub(crate) fn fresh() -> Result<()> {
    let recorded = Recorded::read()?;
    ensure!(
        recorded.get("source")? == source_hash()?,
        "the committed BPF object is older than its source; run `cargo xtask build-ebpf` and commit \
         collector-ebpf/prebuilt"
    );
    let object = fs::read(committed()).with_context(|| format!("reading {}", committed().display()))?;
    ensure!(
        recorded.get("object")? == sha256(&object)?,
        "the committed BPF object is not the one its manifest describes; run `cargo xtask build-ebpf` and commit \
         collector-ebpf/prebuilt"
    );
    Ok(())
}

/// `cargo xtask verify-ebpf`
pub(crate) fn verify() -> Result<Verified> {
    fresh()?;
    let recorded = Recorded::read()?;
    let object = fs::read(committed()).with_context(|| format!("reading {}", committed().display()))?;
    let toolchain = Toolchain::find()?;
    let rebuilt = compile(&toolchain)?;
    for (key, value) in toolchain.named() {
        let then = recorded.get(key)?;
        if then != value {
            println!("the object builds; its bytes were not compared: {key} is `{value}` here, was `{then}`");
            println!("(`cargo xtask build-ebpf` records an object of this toolchain)");
            return Ok(Verified::OtherToolchain(rebuilt));
        }
    }
    ensure!(
        fs::read(&rebuilt)? == object,
        "the same source and toolchain gave other bytes: {} against {}. If the committed object was made by hand, \
         run `cargo xtask build-ebpf` and commit collector-ebpf/prebuilt; if not, the build has come to depend on \
         something the manifest does not record",
        rebuilt.display(),
        committed().display()
    );
    println!("the committed BPF object is what its source gives, byte for byte");
    Ok(Verified::SameBytes)
}

/// A compiler for the BPF target, and what identifies it.
#[derive(Debug)]
pub(crate) struct Toolchain {
    kind: Kind,
    rustc: String,
    llvm: String,
    linker: String,
    core: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Debian's packages, whose `core` is compiled already.
    Debian,
    /// A nightly of rustup with rust-src, and a bpf-linker in `PATH`.
    Nightly,
}

impl Toolchain {
    /// Debian's where it is installed, because the committed object comes from it and bytes can be compared; else a
    /// nightly; else Debian's packages are installed.
    pub(crate) fn find() -> Result<Self> {
        if packages::missing(Need::Ebpf).is_empty() {
            return Self::debian();
        }
        if let Some(toolchain) = Self::nightly() {
            return Ok(toolchain);
        }
        packages::ensure(Need::Ebpf).context(
            "no toolchain for BPF (on other systems: `rustup toolchain install nightly --component rust-src` and \
             `cargo install bpf-linker`)",
        )?;
        Self::debian()
    }

    /// Debian's, if it is here or can be installed, for what needs its clippy.
    pub(crate) fn debian() -> Result<Self> {
        let tools = command::target().join("tools");
        let linker = tools.join("bin/bpf-linker");
        let version = |linker: &Path| command::output(Command::new(linker).arg("--version"));
        let wanted = format!("bpf-linker {LINKER_VERSION}");
        if !version(&linker).is_ok_and(|v| v.trim() == wanted) {
            println!("building {wanted}, once for this checkout: about a minute");
            let mut install = command::cargo(["install", "bpf-linker", "--locked", "--force", "--quiet"]);
            install.args(["--version", LINKER_VERSION, "--root"]).arg(&tools);
            install.args(["--no-default-features", "--features", &format!("llvm-{LLVM_MAJOR}")]);
            command::prepend_path(&mut install, &[Path::new(LLVM_BIN)])?;
            command::run(&mut install)?;
        }
        let rustc = command::output(&mut command::program(DEBIAN_RUSTC, ["--version"]))?;
        let llvm = command::output(Command::new(Path::new(LLVM_BIN).join("llvm-config")).arg("--version"))?;
        Ok(Self {
            kind: Kind::Debian,
            rustc: rustc.trim().to_owned(),
            llvm: llvm.trim().to_owned(),
            linker: version(&linker)?.trim().to_owned(),
            core: debian_core()?,
        })
    }

    fn nightly() -> Option<Self> {
        let sysroot = nightly_sysroot().ok()?;
        if !sysroot.join("lib/rustlib/src/rust/library/core").is_dir() {
            return None;
        }
        let about =
            command::output(&mut command::program("rustup", ["run", "nightly", "rustc", "-vV"])).ok()?;
        let linker = command::output(&mut command::program("bpf-linker", ["--version"])).ok()?;
        Some(Self {
            kind: Kind::Nightly,
            rustc: about.lines().next()?.to_owned(),
            llvm: about.lines().find_map(|line| line.strip_prefix("LLVM version: "))?.to_owned(),
            linker: linker.trim().to_owned(),
            core: "build-std".into(),
        })
    }

    fn named(&self) -> [(&'static str, &str); 5] {
        [
            ("rustc", &self.rustc),
            ("llvm", &self.llvm),
            ("linker", &self.linker),
            ("core", &self.core),
            ("target", TARGET),
        ]
    }

    /// A cargo command that compiles for BPF, to be continued with the subcommand's options.
    pub(crate) fn cargo(&self, subcommand: &str) -> Result<Command> {
        let mut cargo = match self.kind {
            Kind::Debian => {
                let mut cargo = command::cargo([subcommand]);
                // The compiler is a stable one; `core::intrinsics` and the target's unstable options are not.
                cargo.env("RUSTC", DEBIAN_RUSTC).env("RUSTC_BOOTSTRAP", "1");
                let tools = command::target().join("tools/bin");
                command::prepend_path(&mut cargo, &[&tools, Path::new(LLVM_BIN)])?;
                cargo
            }
            Kind::Nightly => {
                let mut cargo = command::program("rustup", ["run", "nightly", "cargo", subcommand]);
                cargo.arg("-Zbuild-std=core");
                cargo
            }
        };
        cargo.args(["--locked", "--release", "--target", TARGET, "--package", "collector-ebpf"]);
        cargo.args(["--features", "programs", "--bin", "programs"]);
        cargo.arg("--target-dir").arg(command::target().join("ebpf"));
        cargo.envs(PROFILE).env_remove("RUSTFLAGS");
        let mut flags: Vec<String> = FLAGS.map(str::to_owned).into();
        for (from, to) in path_prefixes()? {
            flags.push(format!("--remap-path-prefix={}={to}", from.display()));
        }
        // Unlike RUSTFLAGS, this takes paths with spaces.
        cargo.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
        Ok(cargo)
    }
}

/// Names that paths of this machine get in the object. They must not exist, or LLVM would copy source lines from
/// them into the BTF.
fn path_prefixes() -> Result<Vec<(PathBuf, &'static str)>> {
    let mut prefixes = vec![(command::root().to_path_buf(), "/source/collector")];
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| std::env::home_dir().map(|dir| dir.join(".cargo")));
    // One directory per registry, named by a hash of its address. It is there: our own dependencies are in it.
    let registries = home.context("neither CARGO_HOME nor HOME is set")?.join("registry/src");
    let entries = fs::read_dir(&registries).with_context(|| format!("listing {}", registries.display()))?;
    for entry in entries {
        prefixes.push((entry?.path(), "/source/crates"));
    }
    Ok(prefixes)
}

/// Version of the compiled `core`, and whether its source is installed: LLVM then copies lines of it into the BTF.
fn debian_core() -> Result<String> {
    let mut core = command::output(&mut command::program(
        "dpkg-query",
        ["--show", "--showformat=${Package} ${Version}", "libstd-rust-web-dev-bpf"],
    ))?;
    let source = command::output(&mut command::program(
        "dpkg-query",
        ["--show", "--showformat=${db:Status-Status}", "rust-web-src"],
    ));
    if source.is_ok_and(|status| status == "installed") {
        core.push_str(", with rust-web-src");
    }
    Ok(core)
}

fn nightly_sysroot() -> Result<PathBuf> {
    let sysroot =
        command::output(&mut command::program("rustup", ["run", "nightly", "rustc", "--print=sysroot"]))?;
    Ok(PathBuf::from(sysroot.trim()))
}

/// Builds, and strips the DWARF that BTF was made from: the object goes into every `collector`.
fn compile(toolchain: &Toolchain) -> Result<PathBuf> {
    println!("building the BPF programs: {}, {}, LLVM {}", toolchain.rustc, toolchain.linker, toolchain.llvm);
    command::run(toolchain.cargo("build")?.arg("--quiet"))?;
    let linked = command::target().join("ebpf").join(TARGET).join("release/programs");
    let object = command::target().join("ebpf/collector.bpf.o");
    let mut strip = match toolchain.kind {
        Kind::Debian => Command::new(Path::new(LLVM_BIN).join("llvm-objcopy")),
        Kind::Nightly => {
            let sysroot = nightly_sysroot()?;
            let host = format!("lib/rustlib/{}-unknown-linux-gnu/bin/rust-objcopy", std::env::consts::ARCH);
            let mut strip = Command::new(sysroot.join(host));
            strip.env("LD_LIBRARY_PATH", sysroot.join("lib"));
            strip
        }
    };
    command::run(strip.arg("--strip-debug").arg(&linked).arg(&object))?;
    Ok(object)
}

struct Manifest {
    source: String,
    object: String,
    toolchain: Toolchain,
}

impl Manifest {
    fn to_toml(&self) -> String {
        let mut text = String::from(
            "# Written by `cargo xtask build-ebpf`; `cargo xtask verify-ebpf` compares it with source and object.\n",
        );
        let hashes = [("source", self.source.as_str()), ("object", self.object.as_str())];
        for (key, value) in hashes.into_iter().chain(self.toolchain.named()) {
            writeln!(text, "{key} = \"{value}\"").expect("a string takes any text");
        }
        text
    }
}

/// A manifest as it was written: one `key = "value"` a line.
struct Recorded(String);

impl Recorded {
    fn read() -> Result<Self> {
        let path = manifest_path();
        fs::read_to_string(&path)
            .map(Self)
            .with_context(|| format!("reading {} (`cargo xtask build-ebpf` writes it)", path.display()))
    }

    fn get(&self, key: &str) -> Result<&str> {
        let line =
            self.0.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(" = \"")?.strip_suffix('"'));
        line.with_context(|| {
            format!("no `{key}` in {}; run `cargo xtask build-ebpf`", manifest_path().display())
        })
    }
}

/// Hash over all that decides the bytes, the toolchain excepted: sources, manifest, versions of the dependencies and
/// the flags above.
fn source_hash() -> Result<String> {
    let crate_dir = command::root().join("collector-ebpf");
    let mut files = vec![crate_dir.join("Cargo.toml")];
    collect(&crate_dir.join("src"), &mut files)?;
    files.sort();
    let mut all = Vec::new();
    for file in files {
        let name = file.strip_prefix(command::root())?.to_string_lossy().into_owned();
        let content = fs::read(&file).with_context(|| format!("reading {}", file.display()))?;
        // Lengths keep the end of one file and the start of the next apart.
        writeln!(all, "{name} {}", content.len())?;
        all.extend(content);
    }
    let lock = fs::read_to_string(command::root().join("Cargo.lock")).context("reading Cargo.lock")?;
    let locked: Vec<&str> =
        lock.split("[[package]]").filter(|package| package.contains("name = \"aya-ebpf")).collect();
    if locked.is_empty() {
        bail!("Cargo.lock has no aya-ebpf; run `cargo update --workspace`");
    }
    writeln!(all, "{locked:?}\n{FLAGS:?}\n{PROFILE:?}\n{TARGET}")?;
    sha256(&all)
}

fn collect(dir: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("listing {}", dir.display()))? {
        let path = entry?.path();
        if path.is_dir() { collect(&path, files)? } else { files.push(path) }
    }
    Ok(())
}

/// By the tool of coreutils: a crate would cost more to compile than all of this program.
fn sha256(bytes: &[u8]) -> Result<String> {
    let mut child = Command::new("sha256sum")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start sha256sum (package coreutils)")?;
    child.stdin.take().context("sha256sum has no standard input")?.write_all(bytes)?;
    let output = child.wait_with_output()?;
    let text = String::from_utf8(output.stdout)?;
    let hash = text.split_whitespace().next().filter(|hash| hash.len() == 64).context("sha256sum failed")?;
    Ok(hash.to_owned())
}
