//! A collector that a bench starts, with its rules, and what it says.

use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Child;
use std::thread::JoinHandle;

use anyhow::{Context, ensure};
use serde_json::Value;

use super::cost::Cost;
use super::launch;

/// Runs while it lives.
pub(crate) struct Sidecar {
    child: Child,
    address: SocketAddr,
    _rules: tempfile::NamedTempFile,
}

impl Sidecar {
    /// Starts it with a file of rules and more arguments, and waits until it listens.
    pub(crate) fn start(collector: &Path, rules: &str, more: &[&str]) -> anyhow::Result<Self> {
        let mut file = tempfile::Builder::new().suffix(".yaml").tempfile()?;
        file.write_all(rules.as_bytes())?;
        let rules = file.path().to_str().context("a path")?;
        // Without a budget: the load of a bench is above any, and the probes would record less.
        let arguments = ["--source=ebpf", "--probes.overhead-budget=0", "--config.file", rules];
        let (child, address) = launch::collector(collector, &[&arguments[..], more].concat())?;
        Ok(Self { child, address, _rules: file })
    }

    /// What it knows of its first pool. `None` before it answers.
    pub(crate) fn pool(&self) -> Option<Value> {
        let mut answer = ureq::get(format!("http://{}/api/v1/stats", self.address)).call().ok()?;
        let mut stats = answer.body_mut().read_json::<Value>().ok()?;
        Some(stats["pools"][0].take())
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A profile, as it is served.
    pub(crate) fn profile(&self, what: &str) -> anyhow::Result<Vec<u8>> {
        profile(self.address, what)
    }

    /// The same, asked for by a thread of its own.
    pub(crate) fn begin_profile(&self, what: &str) -> JoinHandle<anyhow::Result<Vec<u8>>> {
        let (address, what) = (self.address, what.to_owned());
        std::thread::spawn(move || profile(address, &what))
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

fn profile(address: SocketAddr, what: &str) -> anyhow::Result<Vec<u8>> {
    let mut answer = ureq::get(format!("http://{address}/debug/pprof/{what}")).call()?;
    Ok(answer.body_mut().read_to_vec()?)
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
