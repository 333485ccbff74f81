//! A collector that a bench starts, with its rules, and what it says.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, bail, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::cost::Cost;

/// Runs while it lives.
pub(crate) struct Sidecar {
    child: Child,
    address: SocketAddr,
    _rules: tempfile::NamedTempFile,
}

impl Sidecar {
    /// Starts it with a file of rules, and waits until it listens.
    pub(crate) fn start(collector: &Path, rules: &str) -> anyhow::Result<Self> {
        let mut file = tempfile::Builder::new().suffix(".yaml").tempfile()?;
        file.write_all(rules.as_bytes())?;
        let mut command = Command::new(collector);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("COLLECTOR_") {
                command.env_remove(name);
            }
        }
        // Without a budget: the load of a bench is above any, and the probes would record less.
        command.args(["--source=ebpf", "--probes.overhead-budget=0", "--web.listen-address=127.0.0.1:0"]);
        command.arg("--config.file").arg(file.path());
        command.stderr(Stdio::piped());
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
        Ok(Self { child, address, _rules: file })
    }

    /// What it knows of its first pool. `None` before it answers.
    pub(crate) fn pool(&self) -> Option<Value> {
        let mut answer = ureq::get(format!("http://{}/api/v1/stats", self.address)).call().ok()?;
        let mut stats = answer.body_mut().read_json::<Value>().ok()?;
        Some(stats["pools"][0].take())
    }

    /// Fails if it has ended.
    pub(crate) fn alive(&mut self) -> anyhow::Result<()> {
        let status = self.child.try_wait()?;
        ensure!(status.is_none(), "the collector ended: {status:?}");
        Ok(())
    }

    /// Run time of its programs so far.
    pub(crate) fn cost(&self) -> anyhow::Result<Cost> {
        Cost::of(&self.child.id().to_string())
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts a program that ends with us, however we end.
pub(crate) fn spawn(command: &mut Command) -> anyhow::Result<Child> {
    command.stdin(Stdio::null());
    // SAFETY: prctl(2) is async-signal-safe, and nothing is allocated or locked.
    unsafe {
        command.pre_exec(|| Ok(nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?));
    }
    command.spawn().with_context(|| format!("starting {}", command.get_program().display()))
}
