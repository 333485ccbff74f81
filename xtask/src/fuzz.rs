//! Runs the targets of `tests/fuzz`: cargo-fuzz builds and starts them, with the compiler that is here.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::command;

/// Seconds of each target.
const SECONDS: u64 = 150;
/// Bytes of an input. Small programs are shorter.
const LONGEST: u32 = 64 << 10;
/// A target is to come back from such an input within so many seconds, and this much memory.
const LIMITS: [&str; 3] = ["-timeout=10", "-rss_limit_mb=1024", "-malloc_limit_mb=512"];

/// `cargo xtask fuzz [target] [seconds]`
pub(crate) fn run(arguments: &[&str]) -> Result<()> {
    let known = targets()?;
    let (wanted, seconds) = chosen(arguments, &known)?;
    tools()?;
    let mut failed = Vec::new();
    for target in &wanted {
        if let Err(error) = fuzz(target, seconds) {
            println!("{error:#}");
            failed.push(target.as_str());
        }
    }
    ensure!(failed.is_empty(), "fuzz: {}; what did it is in {}", failed.join(", "), artifacts().display());
    Ok(())
}

/// Targets and seconds that are asked for.
fn chosen(arguments: &[&str], known: &[String]) -> Result<(Vec<String>, u64)> {
    let (target, seconds) = match *arguments {
        [] => (None, None),
        [only] if only.parse::<u64>().is_ok() => (None, Some(only)),
        [only] => (Some(only), None),
        [target, seconds] => (Some(target), Some(seconds)),
        _ => bail!("it is `cargo xtask fuzz [target] [seconds]`"),
    };
    let seconds = seconds.map_or(Ok(SECONDS), str::parse).context("the seconds are no number")?;
    // For libFuzzer, 0 is without an end.
    ensure!(seconds > 0, "a target runs for a second at least");
    let wanted = match target {
        None => known.to_vec(),
        Some(target) if known.iter().any(|known| known == target) => vec![target.to_owned()],
        Some(target) => bail!("no target is called `{target}`; there are {}", known.join(", ")),
    };
    Ok((wanted, seconds))
}

/// Each file in `targets` is one.
fn targets() -> Result<Vec<String>> {
    let directory = crate_directory().join("targets");
    let entries = fs::read_dir(&directory).with_context(|| format!("reading {}", directory.display()))?;
    let mut targets = Vec::new();
    for entry in entries {
        let path = entry.with_context(|| format!("reading {}", directory.display()))?.path();
        targets.extend(path.file_stem().map(|stem| stem.to_string_lossy().into_owned()));
    }
    targets.sort_unstable();
    Ok(targets)
}

fn tools() -> Result<()> {
    if command::output(&mut command::cargo(["fuzz", "--version"])).is_err() {
        bail!("cargo-fuzz is missing: cargo install --locked cargo-fuzz");
    }
    if !["c++", "g++", "clang++"].iter().any(|compiler| command::which(compiler).is_some()) {
        bail!("libFuzzer is compiled with a C++ compiler, and there is none (package g++)");
    }
    Ok(())
}

fn fuzz(target: &str, seconds: u64) -> Result<()> {
    let corpus = crate_directory().join("corpus").join(target);
    fs::create_dir_all(&corpus).with_context(|| format!("making {}", corpus.display()))?;
    // Optimized, and with checks of arithmetic: see its manifest.
    let mut fuzz = command::cargo(["fuzz", "run", "--release", "--fuzz-dir", "tests/fuzz", target]);
    fuzz.arg(&corpus).arg("--").args(LIMITS);
    fuzz.arg(format!("-max_total_time={seconds}")).arg(format!("-max_len={LONGEST}"));
    command::run(with_unstable_flags(&mut fuzz))
}

/// Coverage and the address sanitizer are flags that a stable compiler takes only so.
fn with_unstable_flags(command: &mut Command) -> &mut Command {
    command.env("RUSTC_BOOTSTRAP", "1")
}

fn crate_directory() -> PathBuf {
    command::root().join("tests/fuzz")
}

fn artifacts() -> PathBuf {
    crate_directory().join("artifacts")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_and_seconds_are_told_apart() {
        let known = ["elf".to_owned(), "names".to_owned()];
        let check = |arguments: &[&str], expected: Option<(&[&str], u64)>| {
            let found = chosen(arguments, &known).ok();
            let expected = expected.map(|(targets, seconds)| {
                (targets.iter().map(ToString::to_string).collect::<Vec<_>>(), seconds)
            });
            assert_eq!(found, expected, "{arguments:?}");
        };
        check(&[], Some((&["elf", "names"], SECONDS)));
        check(&["20"], Some((&["elf", "names"], 20)));
        check(&["names"], Some((&["names"], SECONDS)));
        check(&["elf", "5"], Some((&["elf"], 5)));
        check(&["elf", "0"], None);
        check(&["elf", "soon"], None);
        check(&["else"], None);
        check(&["elf", "5", "6"], None);
    }
}
