//! The load: `perf bench sched pipe`, two threads of one process that pass a word to and fro and do nothing else but
//! switch.
//!
//! Two processes would not do: perf forks the second from the first, which makes the first a master and no worker.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use nix::time::ClockId;
use nix::unistd::Pid;

use crate::common::launch::spawn;

/// The name that it gives itself.
pub(crate) const COMM: &str = "sched-pipe";

/// Where the pair may run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pinning {
    /// Both on one CPU: every operation is two switches from one to the other.
    OneCpu,
    /// Where the scheduler puts them: mostly on two CPUs, that idle in between.
    Free,
}

impl Pinning {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::OneCpu => "on one CPU",
            Self::Free => "on any CPU",
        }
    }

    fn command(self) -> Command {
        let mut command = match self {
            Self::OneCpu => {
                let mut command = Command::new("taskset");
                command.args(["-c", "0", "perf"]);
                command
            }
            Self::Free => Command::new("perf"),
        };
        command.args(["bench", "sched", "pipe", "--threaded", "--loop"]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }
}

/// A pair that runs until this is dropped.
pub(crate) struct Pipe(Child);

impl Pipe {
    pub(crate) fn available() -> bool {
        Pinning::OneCpu.command().arg("1").status().is_ok_and(|status| status.success())
    }

    /// Starts a pair, and waits until it runs.
    pub(crate) fn start(pinning: Pinning) -> anyhow::Result<Self> {
        // More than it will do.
        let pipe = Self(spawn(pinning.command().arg(i32::MAX.to_string()))?);
        let deadline = Instant::now() + Duration::from_secs(20);
        while !pipe.runs() {
            ensure!(Instant::now() < deadline, "perf bench sched pipe did not start");
            std::thread::sleep(Duration::from_millis(3));
        }
        Ok(pipe)
    }

    /// The main thread and both of the pair are there and have their name.
    fn runs(&self) -> bool {
        let Ok(threads) = fs::read_dir(format!("/proc/{}/task", self.0.id())) else { return false };
        let names =
            threads.flatten().filter_map(|thread| fs::read_to_string(thread.path().join("comm")).ok());
        names.filter(|name| name.trim_end() == COMM).count() >= 3
    }

    /// What the pair did so far.
    pub(crate) fn done(&self) -> anyhow::Result<Done> {
        let process = Pid::from_raw(self.0.id().cast_signed());
        let io = fs::read_to_string(format!("/proc/{process}/io"))?;
        let reads = io.lines().find_map(|line| line.strip_prefix("syscr: ")).context("no count of reads")?;
        let cpu = ClockId::pid_cpu_clock_id(process)?.now()?;
        Ok(Done { reads: reads.parse()?, cpu: cpu.into(), at: Instant::now() })
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Of a pair, at a moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Done {
    reads: u64,
    cpu: Duration,
    at: Instant,
}

impl Done {
    /// Each of the two reads once per operation.
    fn operations_since(&self, before: &Self) -> f64 {
        (self.reads - before.reads) as f64 / 2.0
    }

    /// CPU of both, µs per operation.
    pub(crate) fn cpu_us_since(&self, before: &Self) -> f64 {
        self.cpu.saturating_sub(before.cpu).as_secs_f64() * 1e6 / self.operations_since(before)
    }

    /// By the clock, µs per operation.
    pub(crate) fn us_since(&self, before: &Self) -> f64 {
        (self.at - before.at).as_secs_f64() * 1e6 / self.operations_since(before)
    }
}
