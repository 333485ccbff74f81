//! Debian packages that builds and tests need: which, why, and installing them without leaving servers running.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::command;

/// The step of `cargo xtask test` that needs a package.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Need {
    /// Building the BPF object.
    Ebpf,
    /// Workers of the integration and kernel tests.
    Workers,
    /// The kernel matrix.
    Vm,
    /// Benchmarks, with the peers they compare with.
    Bench,
}

const PACKAGES: [(&str, Need, &str); 38] = [
    ("rustc-web", Need::Ebpf, "a compiler whose LLVM is the linker's, at /usr/bin/rustc"),
    ("libstd-rust-web-dev-bpf", Need::Ebpf, "`core`, compiled for BPF"),
    ("rust-web-clippy", Need::Ebpf, "lints the BPF programs"),
    ("llvm-22-dev", Need::Ebpf, "bpf-linker is built against it"),
    ("libzstd-dev", Need::Ebpf, "LLVM links with it"),
    ("zlib1g-dev", Need::Ebpf, "LLVM links with it"),
    ("nginx", Need::Workers, "prefork workers that share a listening socket"),
    ("gunicorn", Need::Workers, "prefork workers of an interpreter"),
    ("postgresql", Need::Workers, "one process per connection"),
    ("apache2-bin", Need::Workers, "prefork workers of a server that writes no titles; without the service"),
    ("php-fpm", Need::Workers, "workers of several pools under one master"),
    ("uwsgi-core", Need::Workers, "workers that are told from routers by number alone"),
    ("uwsgi-plugin-python3", Need::Workers, "an application for them"),
    ("puma", Need::Workers, "a cluster of another interpreter"),
    ("python3-celery", Need::Workers, "workers of a queue; its file system transport needs no broker"),
    ("python3-setproctitle", Need::Workers, "gunicorn and celery write titles with it"),
    ("uvicorn", Need::Workers, "workers with many requests on one thread"),
    ("redis-server", Need::Workers, "a broker of jobs"),
    ("python3-redis", Need::Workers, "consumers of its queue"),
    ("prometheus", Need::Workers, "promtool judges our text, the server scrapes it and our protobuf"),
    ("python3-prometheus-client", Need::Workers, "its parser judges our OpenMetrics text"),
    ("gcc", Need::Workers, "compiles programs that are known to do this and that"),
    ("libc6-dev", Need::Workers, "what they are compiled and linked with"),
    ("golang-go", Need::Workers, "`go tool pprof` judges our profiles"),
    ("wrk", Need::Workers, "asks them for more than they can answer"),
    (
        "binutils",
        Need::Workers,
        "readelf judges our rules of how callers are found; takes debug information out of programs",
    ),
    ("qemu-system-x86", Need::Vm, "boots other kernels"),
    ("busybox-static", Need::Vm, "user space of the guest"),
    ("cpio", Need::Vm, "packs the guest's file system"),
    ("binutils", Need::Vm, "strips what goes into it"),
    ("gcc-12", Need::Vm, "compiles a module, as it did the kernels"),
    ("make", Need::Vm, "as the kernel wants modules to be made"),
    ("libelf1", Need::Vm, "what checks modules is linked with it"),
    ("prometheus-process-exporter", Need::Bench, "the peer of the scrape benchmarks"),
    ("libbpf-tools", Need::Bench, "the peers of the benchmark of scheduler probes"),
    ("linux-perf", Need::Bench, "its load: `perf bench sched pipe`"),
    ("nginx", Need::Bench, "the server whose requests are followed"),
    ("wrk", Need::Bench, "load for the HTTP benchmarks"),
];

/// Installs everything.
pub(crate) fn run() -> Result<()> {
    for need in [Need::Ebpf, Need::Workers, Need::Vm, Need::Bench] {
        ensure(need)?;
    }
    Ok(())
}

/// Packages of the need that are not installed; none where there is no dpkg to ask.
pub(crate) fn missing(need: Need) -> Vec<&'static str> {
    let wanted = PACKAGES.iter().filter(|(_, n, _)| *n == need);
    wanted.map(|(name, ..)| *name).filter(|name| !installed(name)).collect()
}

/// Makes the need's packages available, or says how to.
pub(crate) fn ensure(need: Need) -> Result<()> {
    let missing = missing(need);
    if missing.is_empty() {
        return Ok(());
    }
    if command::which("apt-get").is_none() {
        bail!("this is no Debian; install what these packages of Debian 12 have: {}", missing.join(" "));
    }
    if !command::is_root() {
        // On one line: it ends up in the summary of `cargo xtask test`.
        bail!(
            "packages are missing; as root: apt-get update && apt-get install --no-install-recommends {}",
            missing.join(" ")
        );
    }
    println!("installing packages:");
    for (name, _, why) in PACKAGES.iter().filter(|(name, ..)| missing.contains(name)) {
        println!("    {name:<28} {why}");
    }
    let _no_services = NoServices::declare()?;
    // A list of packages that is missing or has aged is the usual reason for a failure; the network is the other.
    let mut result = install(&missing);
    for _ in 0..2 {
        if result.is_ok() {
            break;
        }
        println!("refreshing the list of packages, then once more");
        result = apt(&["update"]).and_then(|()| install(&missing));
    }
    result.with_context(|| format!("installing {}", missing.join(" ")))
}

fn install(names: &[&str]) -> Result<()> {
    apt(&[&["install", "--yes", "--no-install-recommends"], names].concat())
}

fn apt(arguments: &[&str]) -> Result<()> {
    let mut apt = command::program(
        "apt-get",
        ["-qq", "-o", "Acquire::Retries=3", "-o", "DPkg::Lock::Timeout=300", "-o", "Dpkg::Use-Pty=0"],
    );
    command::run(apt.args(arguments).env("DEBIAN_FRONTEND", "noninteractive"))
}

fn installed(name: &str) -> bool {
    command::output(&mut command::program("dpkg-query", ["--show", "--showformat=${db:Status-Status}", name]))
        .is_ok_and(|status| status == "installed")
}

/// While it lives, installing a server does not start it (the local policy of invoke-rc.d(8)).
struct NoServices {
    ours: bool,
}

const POLICY: &str = "/usr/sbin/policy-rc.d";

impl NoServices {
    fn declare() -> Result<Self> {
        if Path::new(POLICY).exists() {
            return Ok(Self { ours: false });
        }
        fs::write(POLICY, "#!/bin/sh\nexit 101\n").with_context(|| format!("writing {POLICY}"))?;
        fs::set_permissions(POLICY, fs::Permissions::from_mode(0o755))
            .with_context(|| format!("making {POLICY} executable"))?;
        Ok(Self { ours: true })
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if self.ours
            && let Err(error) = fs::remove_file(POLICY)
        {
            eprintln!("{POLICY} could not be removed ({error}); remove it, or services will not start");
        }
    }
}
