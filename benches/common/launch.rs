//! Starting programs that end with the bench.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, bail};
use nix::sys::signal::Signal;

/// Starts a program that ends with us, however we end.
pub(crate) fn spawn(command: &mut Command) -> anyhow::Result<Child> {
    command.stdin(Stdio::null());
    die_with_us(command);
    command.spawn().with_context(|| format!("starting {}", command.get_program().display()))
}

/// However we end.
pub(crate) fn die_with_us(command: &mut Command) {
    // SAFETY: prctl(2) is async-signal-safe, and nothing is allocated or locked.
    unsafe {
        command.pre_exec(|| Ok(nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?));
    }
}

/// Starts a collector on a free port, and tells where it listens as soon as it does; it need not be ready yet.
pub(crate) fn collector(program: &Path, arguments: &[&str]) -> anyhow::Result<(Child, SocketAddr)> {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("COLLECTOR_") {
            command.env_remove(name);
        }
    }
    command.args(arguments).arg("--web.listen-address=127.0.0.1:0").stderr(Stdio::piped());
    let mut child = spawn(&mut command)?;
    let mut lines = BufReader::new(child.stderr.take().context("piped")?).lines();
    let mut log = Vec::new();
    let address = loop {
        let Some(line) = lines.next() else {
            bail!("the collector ended before it listened:\n{}", log.join("\n"));
        };
        let line = line?;
        match line.split("address=").nth(1).and_then(|rest| rest.split_whitespace().next()) {
            Some(address) => break address.trim_matches('"').parse()?,
            None => log.push(line),
        }
    };
    // Its log goes on, and must not block it.
    std::thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
    Ok((child, address))
}
