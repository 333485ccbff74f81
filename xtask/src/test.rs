//! `cargo xtask test`: the one command that tests everything, step by step, with what was left out and why.

use std::fs;
use std::io::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::command;
use crate::ebpf::{self, Toolchain, Verified};
use crate::lint;
use crate::packages::{self, Need};
use crate::vm;

/// What was asked for.
#[derive(Debug, Default)]
pub(crate) struct Options {
    no_vm: bool,
    bench_smoke: bool,
}

impl Options {
    /// Reads the arguments after `test`.
    pub(crate) fn parse(arguments: &[&str]) -> Result<Self> {
        let mut options = Self::default();
        for argument in arguments {
            match *argument {
                "--no-vm" => options.no_vm = true,
                "--bench-smoke" => options.bench_smoke = true,
                other => bail!("unknown option `{other}`; see `cargo xtask --help`"),
            }
        }
        Ok(options)
    }
}

/// How a step ended, if it did not fail.
enum Outcome {
    Ok,
    LeftOut(String),
}

/// Runs all steps, also after one has failed: one run tells everything.
pub(crate) fn run(options: &Options) -> Result<()> {
    let mut steps = Steps::default();
    steps.step("packages", || install(options));
    steps.step("lint", || lint::run().map(|()| Outcome::Ok));
    steps.step("unit and suite tests", || {
        command::run(&mut command::cargo(["test", "--workspace", "--locked"])).map(|()| Outcome::Ok)
    });
    let mut rebuilt = None;
    steps.step("BPF object from source", || {
        ebpf::fresh()?;
        if let Err(error) = Toolchain::find()
            && !command::is_root()
        {
            return Ok(Outcome::LeftOut(format!("as new as its source, but not rebuilt: {error:#}")));
        }
        if let Verified::OtherToolchain(object) = ebpf::verify()? {
            rebuilt = Some(object);
        }
        Ok(Outcome::Ok)
    });
    // What the kernel tests load must be what the source gives, also where that is not the committed object.
    let in_place = rebuilt.map(|object| InPlace::put(&object)).transpose()?;
    steps.step("kernel tests", kernel);
    steps.step("kernel matrix", || {
        if options.no_vm {
            return Ok(Outcome::LeftOut("--no-vm".into()));
        }
        if let Err(error) = packages::ensure(Need::Vm) {
            return Ok(Outcome::LeftOut(format!("{error:#}")));
        }
        vm::run().map(|()| Outcome::Ok)
    });
    drop(in_place);
    if options.bench_smoke {
        steps.step("benchmarks, once", || {
            command::run(&mut command::cargo(["test", "--workspace", "--locked", "--benches", "--release"]))
                .map(|()| Outcome::Ok)
        });
    }
    steps.summary()
}

fn install(options: &Options) -> Result<Outcome> {
    let mut left_out = Vec::new();
    for need in [Need::Ebpf, Need::Workers, Need::Vm, Need::Bench] {
        if need == Need::Vm && options.no_vm || need == Need::Bench && !options.bench_smoke {
            continue;
        }
        if let Err(error) = packages::ensure(need) {
            // As root on Debian nothing excuses a failure.
            if command::is_root() && command::which("apt-get").is_some() {
                return Err(error);
            }
            println!("{error:#}");
            left_out.extend(packages::missing(need));
        }
    }
    Ok(if left_out.is_empty() {
        Outcome::Ok
    } else {
        Outcome::LeftOut(format!("not installed: {}", left_out.join(" ")))
    })
}

fn kernel() -> Result<Outcome> {
    if !command::is_root() {
        return Ok(Outcome::LeftOut("loading eBPF programs needs root".into()));
    }
    let missing = packages::missing(Need::Workers);
    if !missing.is_empty() {
        return Ok(Outcome::LeftOut(format!("workers to watch are not installed: {}", missing.join(" "))));
    }
    let build = ["build", "--package", "collector", "--locked", "--example", "workload"];
    command::run(&mut command::cargo(build))?;
    // One at a time: they compare what a process did with what it was given to do, on few CPUs.
    let test = ["test", "--package", "collector", "--locked", "--test", "kernel", "--", "--test-threads=1"];
    command::run(&mut command::cargo(test)).map(|()| Outcome::Ok)
}

/// Another object in the place of the committed one, for a while.
struct InPlace {
    committed: Vec<u8>,
}

impl InPlace {
    fn put(object: &std::path::Path) -> Result<Self> {
        let committed = fs::read(ebpf::committed()).context("reading the committed BPF object")?;
        fs::copy(object, ebpf::committed()).context("putting the rebuilt BPF object in its place")?;
        Ok(Self { committed })
    }
}

impl Drop for InPlace {
    fn drop(&mut self) {
        if let Err(error) = fs::write(ebpf::committed(), &self.committed) {
            eprintln!(
                "the committed BPF object was not restored ({error}): `git checkout collector-ebpf/prebuilt`"
            );
        }
    }
}

#[derive(Default)]
struct Steps {
    done: Vec<(&'static str, Result<Outcome>, Duration)>,
}

impl Steps {
    fn step(&mut self, name: &'static str, work: impl FnOnce() -> Result<Outcome>) {
        println!("\n=== {name}");
        let start = Instant::now();
        let result = work();
        let took = start.elapsed();
        match &result {
            Ok(Outcome::Ok) => println!("=== {name}: ok, {:.0} s", took.as_secs_f64()),
            Ok(Outcome::LeftOut(why)) => println!("=== {name}: left out: {why}"),
            Err(error) => println!("=== {name}: FAILED: {error:#}"),
        }
        // What follows may write to standard error.
        let _ = std::io::stdout().flush();
        self.done.push((name, result, took));
    }

    fn summary(self) -> Result<()> {
        println!("\n{:<26}{:>6}  result", "step", "time");
        let mut failed = Vec::new();
        for (name, result, took) in &self.done {
            let result = match result {
                Ok(Outcome::Ok) => "ok".to_owned(),
                Ok(Outcome::LeftOut(why)) => format!("left out: {}", first_line(why)),
                Err(error) => {
                    failed.push(*name);
                    format!("FAILED: {}", first_line(&format!("{error:#}")))
                }
            };
            println!("{name:<26}{:>4.0} s  {result}", took.as_secs_f64());
        }
        if !failed.is_empty() {
            bail!("failed: {}", failed.join(", "));
        }
        Ok(())
    }
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}
