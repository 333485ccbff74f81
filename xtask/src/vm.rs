//! The kernel matrix: the portable kernel tests and `collector doctor` in kernels other than the running one.
//!
//! Kernels are Debian's, unpacked and not installed; the guest is busybox and our binaries in an initramfs; QEMU
//! emulates, so neither KVM nor root is needed. Guest and host share the serial console and nothing else: the guest
//! writes sections between marker lines, and without the last marker the run has failed.

mod counter;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::command;
use crate::packages::{self, Need};

/// Debian 12's stable kernel and the newer one it offers; the package whose dependency is the newest build.
const KERNELS: [(&str, &str); 2] =
    [("6.1", "linux-image-cloud-amd64"), ("6.12", "linux-image-6.12-cloud-amd64")];

/// Features of `collector doctor` that are known to be off in a kernel of the matrix, with the reason. Any other one
/// that is off fails the run: a feature that quietly stops loading is what this matrix is for.
const KNOWN_OFF: [(&str, &str, &str); 2] = [
    ("6.1", "task_walk", "programs may walk over tasks since 6.10"),
    ("6.1", "requests", "sockets tell how much they received and sent since 6.3"),
];

/// What a host would load by itself when it is asked for, each after those that it needs; paths below a release's `kernel`. [`counter`]
/// is loaded beside.
const MODULES: [&str; 3] = ["net/ipv4/inet_diag.ko", "net/ipv4/tcp_diag.ko", "net/unix/unix_diag.ko"];

/// Boot takes about ten seconds under emulation and the tests some ten minutes; the rest is for a loaded machine.
const TIMEOUT_SECONDS: u32 = 1800;

const MARK: &str = "@@@@ ";

const INIT: &str = r#"#!/bin/busybox sh
/bin/busybox mkdir -p /sbin /usr/bin /usr/sbin /proc /sys /dev /tmp /run
/bin/busybox --install -s
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /tmp
mount -t tracefs tracefs /sys/kernel/tracing
mount -t bpf bpf /sys/fs/bpf
mount -t cgroup2 cgroup2 /sys/fs/cgroup
ip link set lo up
for module in /modules/$(uname -r)/*; do insmod "$module"; done
export PATH=/bin:/sbin:/usr/bin:/usr/sbin HOME=/tmp RUST_BACKTRACE=1
export COLLECTOR_BINARY=/tests/collector WORKLOAD_BINARY=/tests/workload CYCLES_ARE_COUNTED=1
# Into files first, so that no kernel message lands in the middle of a line.
/tests/kernel portable --test-threads=1 >/tmp/tests 2>&1
echo "exit status $?" >>/tmp/tests
/tests/collector doctor --format=json >/tmp/doctor 2>/tmp/doctor-errors
for section in tests doctor doctor-errors; do
    echo "@@@@ $section"
    cat /tmp/$section
    echo
done
echo "@@@@ end"
poweroff -f
"#;

/// `cargo xtask vm`
pub(crate) fn run() -> Result<()> {
    packages::ensure(Need::Vm)?;
    let dir = command::target().join("vm");
    fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
    let mut kernels = Vec::new();
    for (name, metapackage) in KERNELS {
        let package = newest(metapackage)?;
        let image = kernel_image(&dir, &package)?;
        kernels.push((name, package, image));
    }
    let packages = kernels.iter().map(|(_, package, _)| dir.join(package));
    let initramfs = initramfs(&dir, packages)?;
    // At once, because a guest takes one CPU of the host and no more.
    let consoles: Vec<_> = std::thread::scope(|scope| {
        let guests: Vec<_> = kernels
            .iter()
            .map(|(name, package, image)| {
                println!("booting {package}");
                let (dir, initramfs) = (&dir, &initramfs);
                scope.spawn(move || boot(dir, name, image, initramfs))
            })
            .collect();
        guests.into_iter().map(|guest| guest.join().expect("no panic while it boots")).collect()
    });
    let mut reports = Vec::new();
    for ((name, package, _), console) in kernels.into_iter().zip(consoles) {
        let console = console.with_context(|| format!("the guest with {package}"))?;
        let report = Report::parse(&console).with_context(|| {
            format!("the guest with {package} gave no full report; its last words:\n{}", tail(&console, 60))
        })?;
        reports.push((name, report));
    }
    print!("{}", table(&reports));
    let failures: Vec<String> = reports.iter().flat_map(|(kernel, report)| report.failures(kernel)).collect();
    ensure!(failures.is_empty(), "{}", failures.join("\n"));
    Ok(())
}

/// The package that a metapackage stands for.
fn newest(metapackage: &str) -> Result<String> {
    let look = || {
        let depends = command::output(&mut command::program("apt-cache", ["depends", metapackage])).ok()?;
        let name = depends.lines().find_map(|line| line.trim().strip_prefix("Depends: linux-image-"))?;
        Some(format!("linux-image-{name}"))
    };
    if let Some(package) = look() {
        return Ok(package);
    }
    if command::is_root() {
        command::run(&mut command::program("apt-get", ["-qq", "update"]))?;
    }
    look().with_context(|| {
        format!("no package {metapackage}; the matrix takes kernels of Debian 12: `apt-get update`, or run it there")
    })
}

/// Downloads and unpacks a kernel once.
fn kernel_image(dir: &Path, package: &str) -> Result<PathBuf> {
    let unpacked = dir.join(package);
    let image = unpacked.join(package.replacen("linux-image-", "boot/vmlinuz-", 1));
    if image.is_file() {
        return Ok(image);
    }
    unpack(dir, package, &unpacked)?;
    ensure!(image.is_file(), "{package} holds no {}", image.display());
    Ok(image)
}

/// Downloads a package and unpacks it.
fn unpack(dir: &Path, package: &str, to: &Path) -> Result<()> {
    println!("downloading {package}");
    let archive = || -> Result<Option<PathBuf>> {
        let name = format!("{package}_");
        let mut files = fs::read_dir(dir)?.filter_map(|entry| Some(entry.ok()?.path()));
        Ok(files.find(|path| path.file_name().is_some_and(|n| n.to_string_lossy().starts_with(&name))))
    };
    // Of a run that was cut off, perhaps in the middle of it, or long ago.
    while let Some(old) = archive()? {
        fs::remove_file(&old).with_context(|| format!("removing {}", old.display()))?;
    }
    let download = || {
        let mut apt = command::program("apt-get", ["-qq", "-o", "Acquire::Retries=3", "download", package]);
        // The download user of apt may not write here, and need not.
        command::run(apt.args(["-o", "APT::Sandbox::User="]).current_dir(dir))
    };
    if download().is_err() {
        ensure!(
            command::is_root(),
            "downloading {package} failed; as root: `apt-get update`, then try again"
        );
        command::run(&mut command::program("apt-get", ["-qq", "update"]))?;
        download()?;
    }
    let archive = archive()?.with_context(|| format!("apt-get downloaded no {package}"))?;
    command::run(command::program("dpkg-deb", ["--extract"]).arg(&archive).arg(to))?;
    fs::remove_file(&archive).with_context(|| format!("removing {}", archive.display()))
}

/// Builds the binaries and packs them with their libraries, and the modules of the kernels.
fn initramfs(dir: &Path, kernels: impl Iterator<Item = PathBuf>) -> Result<PathBuf> {
    let test = ["test", "--package", "collector", "--locked", "--test", "kernel", "--no-run"];
    let kernel_tests = executable(&mut command::cargo(test), "test", "kernel")?;
    let build = ["build", "--package", "collector", "--locked", "--bin", "collector"];
    let collector = executable(&mut command::cargo(build), "bin", "collector")?;
    let build = ["build", "--package", "collector", "--locked", "--example", "workload"];
    let workload = executable(&mut command::cargo(build), "example", "workload")?;
    let root = dir.join("root");
    if root.exists() {
        fs::remove_dir_all(&root).with_context(|| format!("removing {}", root.display()))?;
    }
    for sub in ["bin", "tests"] {
        fs::create_dir_all(root.join(sub))?;
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).context("copying busybox (package busybox-static)")?;
    let binaries =
        [(kernel_tests, "tests/kernel"), (collector, "tests/collector"), (workload, "tests/workload")];
    for (binary, name) in binaries {
        for library in libraries(&binary)? {
            let copy = root.join(library.strip_prefix("/")?);
            fs::create_dir_all(copy.parent().context("a library has a directory")?)?;
            fs::copy(&library, &copy).with_context(|| format!("copying {}", library.display()))?;
        }
        // Debug information is most of a file that the guest has to unpack.
        command::run(command::program("strip", ["--strip-debug", "-o"]).arg(root.join(name)).arg(&binary))?;
    }
    for kernel in kernels {
        copy_modules(dir, &kernel, &root.join("modules"))?;
    }
    let init = root.join("init");
    fs::write(&init, INIT).context("writing the guest's init")?;
    fs::set_permissions(&init, fs::Permissions::from_mode(0o755))?;
    // What scripts in tests expect; busybox installs the rest.
    symlink("busybox", root.join("bin/sh"))?;

    let image = dir.join("initramfs");
    let file = fs::File::create(&image).with_context(|| format!("creating {}", image.display()))?;
    let mut pack = Command::new("sh");
    pack.args(["-c", "find . | cpio --quiet --create --format=newc"]).current_dir(&root).stdout(file);
    command::run(&mut pack)?;
    Ok(image)
}

/// Copies [`MODULES`] of the releases in an unpacked package, numbered in their order, to a directory for each release; and the counter
/// of cycles.
fn copy_modules(dir: &Path, kernel: &Path, to: &Path) -> Result<()> {
    for release in fs::read_dir(kernel.join("lib/modules")).context("a kernel has modules")? {
        let release = release?;
        let to = to.join(release.file_name());
        fs::create_dir_all(&to)?;
        for (number, module) in MODULES.iter().enumerate() {
            let from = release.path().join("kernel").join(module);
            let packed = from.with_extension("ko.xz");
            let copy = to.join(format!("{number}.ko"));
            if packed.is_file() {
                let file = fs::File::create(&copy).with_context(|| format!("creating {}", copy.display()))?;
                let mut unpack = Command::new("/bin/busybox");
                command::run(unpack.arg("xzcat").arg(&packed).stdout(file))?;
            } else {
                fs::copy(&from, &copy).with_context(|| format!("copying {}", from.display()))?;
            }
        }
        counter::build(dir, &release.file_name().to_string_lossy(), &to)?;
    }
    Ok(())
}

/// The executable of a target that a cargo command builds, from its JSON messages.
fn executable(cargo: &mut Command, kind: &str, name: &str) -> Result<PathBuf> {
    cargo.args(["--quiet", "--message-format=json-render-diagnostics"]).stderr(Stdio::inherit());
    let messages = command::output(cargo)?;
    let (kind, wanted) = (format!("\"kind\":[\"{kind}\"]"), format!("\"name\":\"{name}\""));
    let message = messages.lines().find(|line| line.contains(&kind) && line.contains(&wanted));
    let path = message.and_then(|line| line.split("\"executable\":\"").nth(1)?.split('"').next());
    path.map(PathBuf::from).with_context(|| format!("cargo built no executable {name}"))
}

/// What the dynamic loader would map, the loader included.
fn libraries(binary: &Path) -> Result<Vec<PathBuf>> {
    let list = command::output(Command::new("ldd").arg(binary))?;
    Ok(list.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect())
}

/// Runs the guest to its end and gives what its console showed.
fn boot(dir: &Path, name: &str, image: &Path, initramfs: &Path) -> Result<String> {
    let console = dir.join(format!("console-{name}"));
    let file = fs::File::create(&console).with_context(|| format!("creating {}", console.display()))?;
    let mut qemu = Command::new("timeout");
    qemu.arg(TIMEOUT_SECONDS.to_string()).arg("qemu-system-x86_64");
    // KVM would be faster, but is not to be had inside most CI machines. Instructions are the guest's clock, 8 ns each, and
    // while it has none to run time is skipped: whatever else the host does, for the guest it is the same. Hence one CPU: of
    // two that share that clock the second gets no time for as long as the first one does not wait (QEMU 7.2).
    qemu.args(["-accel", "tcg", "-icount", "shift=3,sleep=off", "-rtc", "clock=vm"]);
    qemu.args(["-cpu", "max", "-m", "1G", "-global", "hpet.msi=on"]);
    qemu.args(["-nographic", "-no-reboot", "-nic", "none", "-kernel"]).arg(image);
    qemu.arg("-initrd").arg(initramfs).args(["-append", "console=ttyS0 panic=-1 quiet tsc=reliable"]);
    let result = command::run(qemu.stdout(file));
    let shown = String::from_utf8_lossy(&fs::read(&console)?).replace('\r', "");
    result.with_context(|| {
        format!(
            "no end within {TIMEOUT_SECONDS} s, or QEMU failed; last words of the guest:\n{}",
            tail(&shown, 60)
        )
    })?;
    Ok(shown)
}

fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// What a guest found out.
struct Report {
    /// By feature: empty when it works, else the reason.
    features: BTreeMap<String, String>,
    /// By test: it passed.
    tests: BTreeMap<String, bool>,
    /// Exit status of the test binary.
    status: String,
    /// What the test binary printed.
    output: String,
}

impl Report {
    fn parse(console: &str) -> Result<Self> {
        let section = |name: &str| {
            let marker = format!("{MARK}{name}\n");
            let (_, rest) = console.split_once(&marker).with_context(|| format!("no section {name}"))?;
            Ok::<_, anyhow::Error>(rest.split(MARK).next().unwrap_or_default())
        };
        section("end")?;
        let mut tests = BTreeMap::new();
        let mut status = None;
        let output = section("tests")?;
        for line in output.lines() {
            if let Some((name, result)) = line.strip_prefix("test ").and_then(|l| l.split_once(" ... ")) {
                tests.insert(name.to_owned(), result.trim() == "ok");
            }
            status = line.strip_prefix("exit status ").map(str::to_owned).or(status);
        }
        ensure!(!tests.is_empty(), "no test of the binary `kernel` has `portable` in its name");
        let doctor = section("doctor")?;
        let features = features(doctor);
        ensure!(
            !features.is_empty(),
            "`collector doctor --format=json` named no feature: {doctor}{}",
            section("doctor-errors")?
        );
        let status = status.context("the tests did not end")?;
        Ok(Self { features, tests, status, output: output.to_owned() })
    }

    fn failures(&self, kernel: &str) -> Vec<String> {
        let mut failures = Vec::new();
        if self.status != "0" || self.tests.values().any(|passed| !passed) {
            failures.push(format!("tests failed on {kernel}; they printed:\n{}", tail(&self.output, 60)));
        }
        for (feature, reason) in &self.features {
            let known = KNOWN_OFF.iter().find(|(k, f, _)| *k == kernel && f == feature);
            match (reason.is_empty(), known) {
                (false, None) => failures.push(format!("{feature} is off on {kernel}: {reason}")),
                (true, Some(_)) => {
                    failures.push(format!(
                        "{feature} works on {kernel}: take it out of KNOWN_OFF in xtask/src/vm.rs"
                    ));
                }
                _ => {}
            }
        }
        failures
    }
}

/// Reads `"features":[{"name":…,"enabled":…,"reason":…},…]`. Not a JSON parser: the writer is ours, the objects are
/// flat, and all that can go wrong is a reason that is cut short.
fn features(json: &str) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let Some((_, list)) = json.split_once("\"features\"") else { return found };
    for object in list.split('{').skip(1) {
        let value = |key: &str| {
            let (_, rest) = object.split_once(&format!("\"{key}\""))?;
            Some(rest.trim_start_matches([':', ' ']))
        };
        let text = |key: &str| value(key)?.strip_prefix('"')?.split('"').next();
        let (Some(name), Some(enabled)) = (text("name"), value("enabled")) else { continue };
        let reason = match text("reason") {
            _ if enabled.starts_with("true") => "",
            Some(reason) if !reason.is_empty() => reason,
            _ => "no reason given",
        };
        found.insert(name.to_owned(), reason.to_owned());
    }
    found
}

/// Kernels across, features and tests down.
fn table(reports: &[(&str, Report)]) -> String {
    let mut rows: BTreeMap<(bool, &str), Vec<String>> = BTreeMap::new();
    for (column, (_, report)) in reports.iter().enumerate() {
        let features = report.features.iter().map(|(name, reason)| {
            let cell = if reason.is_empty() { "works".to_owned() } else { format!("degraded: {reason}") };
            ((false, name.as_str()), cell)
        });
        let tests = report.tests.iter().map(|(name, passed)| {
            ((true, name.as_str()), if *passed { "works" } else { "FAILED" }.to_owned())
        });
        for (key, cell) in features.chain(tests) {
            rows.entry(key).or_insert_with(|| vec!["absent".to_owned(); reports.len()])[column] = cell;
        }
    }
    let width = |cells: &mut dyn Iterator<Item = usize>| cells.max().unwrap_or(0) + 2;
    let first = width(&mut rows.keys().map(|(_, name)| name.len()).chain([7]));
    let others: Vec<usize> = (0..reports.len())
        .map(|column| width(&mut rows.values().map(|cells| cells[column].len()).chain([5])))
        .collect();
    let line = |name: &str, cells: &mut dyn Iterator<Item = &str>| {
        let cells: String = cells.zip(&others).map(|(cell, width)| format!("{cell:<width$}")).collect();
        format!("{name:<first$}{}\n", cells.trim_end())
    };
    let mut text = line("", &mut reports.iter().map(|(kernel, ..)| *kernel));
    for ((_, name), cells) in &rows {
        text.push_str(&line(name, &mut cells.iter().map(String::as_str)));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONSOLE: &str = "SeaBIOS\n@@@@ tests\ntest portable::fork ... ok\ntest portable::signal ... FAILED\n\
        exit status 101\n\n@@@@ doctor\n{\"kernel\":\"6.1\",\"features\":[{\"name\":\"a\",\"enabled\":true,\
        \"reason\":\"\"},{\"name\":\"b\", \"enabled\": false,\"reason\":\"no BTF\",\"remedy\":\"\"}]}\n\n\
        @@@@ doctor-errors\n\n@@@@ end\n";

    #[test]
    fn reads_a_report() {
        let report = Report::parse(CONSOLE).expect("complete");
        assert_eq!(report.status, "101");
        assert_eq!(
            report.tests,
            [("portable::fork".into(), true), ("portable::signal".into(), false)].into()
        );
        assert_eq!(report.features, [("a".into(), String::new()), ("b".into(), "no BTF".into())].into());
        let failures = report.failures("6.1");
        assert!(failures[0].contains("tests failed on 6.1"), "{failures:?}");
        assert!(failures[1].contains("b is off on 6.1: no BTF"), "{failures:?}");
    }

    #[test]
    fn a_guest_that_died_is_no_success() {
        for end in ["@@@@ tests", "@@@@ doctor\n", "@@@@ end"] {
            let cut = CONSOLE.split(end).next().unwrap_or_default();
            assert!(Report::parse(cut).is_err(), "cut before {end}");
        }
        assert!(Report::parse(&CONSOLE.replace("test portable", "no portable")).is_err(), "no test ran");
    }

    #[test]
    fn kernels_are_columns() {
        let other = CONSOLE.replace("\"name\":\"a\"", "\"name\":\"c\"");
        let report = |console: &str| Report::parse(console).expect("complete");
        let table = table(&[("6.1", report(CONSOLE)), ("6.12", report(&other))]);
        let row =
            |name: &str| table.lines().find(|l| l.starts_with(name)).map(|l| l.split_whitespace().collect());
        assert_eq!(row("a"), Some(vec!["a", "works", "absent"]), "{table}");
        assert_eq!(row("c"), Some(vec!["c", "absent", "works"]), "{table}");
    }
}
