//! Everything a developer or CI runs, so that CI has nothing of its own: `cargo xtask --help`.
//!
//! Knows the tree, cargo and Debian's packages; depends on no module of `collector`, and on little else, because it
//! is compiled before anything useful happens.
#![allow(clippy::disallowed_methods, reason = "the environment is this program's input")]

mod command;
mod ebpf;
mod fuzz;
mod lint;
mod packages;
mod test;
mod vm;

use std::process::ExitCode;

use anyhow::{Result, bail};

const HELP: &str = "\
Usage: cargo xtask <command>

  test          everything: packages, lint, unit and integration tests, the BPF object, kernel tests, kernel matrix
      --no-vm         leave the kernel matrix out
      --bench-smoke   also run each benchmark once
  lint          rustfmt, clippy for both targets, rustdoc, paths of this machine in committed files
  build-ebpf    build the BPF object, and put it and its manifest in collector-ebpf/prebuilt
  verify-ebpf   prove that the committed object is what its source gives
  vm            load the programs and run the portable kernel tests in each kernel of the matrix
  fuzz [target] [seconds]
                give parsers and decoders what libFuzzer makes up; each target for 150 s, unless told otherwise
  packages      install what builds, tests and benchmarks need (Debian, as root)
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match dispatch(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(arguments: &[String]) -> Result<()> {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        [] | ["help"] => print!("{HELP}"),
        arguments if arguments.iter().any(|a| matches!(*a, "-h" | "--help")) => print!("{HELP}"),
        ["test", options @ ..] => test::run(&test::Options::parse(options)?)?,
        ["lint"] => lint::run()?,
        ["build-ebpf"] => ebpf::build()?,
        ["verify-ebpf"] => drop(ebpf::verify()?),
        ["vm"] => vm::run()?,
        ["fuzz", arguments @ ..] => fuzz::run(arguments)?,
        ["packages"] => packages::run()?,
        [command, ..] => bail!("cannot do `{command}` with these arguments; see `cargo xtask --help`"),
    }
    Ok(())
}
