//! Others that count stacks: `perf record -g`, and bpftrace.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use nix::sys::resource::{UsageWho, getrusage};

use crate::burner::Burner;
use crate::common::launch::spawn;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Peer {
    Perf,
    Bpftrace,
}

impl Peer {
    pub(crate) const ALL: [Self; 2] = [Self::Perf, Self::Bpftrace];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Perf => "perf record -g",
            Self::Bpftrace => "bpftrace",
        }
    }

    /// Debian's.
    pub(crate) fn package(self) -> &'static str {
        match self {
            Self::Perf => "linux-perf",
            Self::Bpftrace => "bpftrace",
        }
    }

    fn program(self) -> &'static str {
        match self {
            Self::Perf => "perf",
            Self::Bpftrace => "bpftrace",
        }
    }

    pub(crate) fn is_available(self) -> bool {
        Command::new(self.program()).arg("--version").output().is_ok()
    }

    /// Has it sample the burners, and waits until it does.
    pub(crate) fn start(self, hz: u32, burners: &[Burner]) -> anyhow::Result<Sampling> {
        let directory = tempfile::tempdir()?;
        let mut command = Command::new(self.program());
        match self {
            Self::Perf => {
                command.args([
                    "record",
                    "-g",
                    "-e",
                    "cpu-clock",
                    "-F",
                    &hz.to_string(),
                    "-p",
                    &pids(burners),
                ]);
                command.arg("-o").arg(directory.path().join("perf.data"));
            }
            Self::Bpftrace => {
                command.arg("-e").arg(format!("profile:hz:{hz} {{ @[pid, kstack, ustack] = count(); }}"));
                command.arg("-o").arg(directory.path().join("out"));
            }
        }
        let child = spawn(command.stdout(Stdio::null()).stderr(Stdio::null()))?;
        let sampling = Sampling { child, _directory: directory };
        let deadline = Instant::now() + Duration::from_secs(30);
        while !sampling.has_events()? {
            ensure!(Instant::now() < deadline, "{} does not sample", self.name());
            std::thread::sleep(Duration::from_millis(50));
        }
        std::thread::sleep(Duration::from_millis(500));
        Ok(sampling)
    }
}

/// Samples while it lives.
pub(crate) struct Sampling {
    child: Child,
    _directory: tempfile::TempDir,
}

impl Sampling {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// It has opened what counts.
    fn has_events(&self) -> anyhow::Result<bool> {
        let mut found = false;
        for entry in std::fs::read_dir(format!("/proc/{}/fd", self.pid()))? {
            let target = std::fs::read_link(entry?.path());
            found |= target.is_ok_and(|target| target.to_string_lossy().contains("perf_event"));
        }
        Ok(found)
    }
}

impl Drop for Sampling {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn pids(burners: &[Burner]) -> String {
    burners.iter().map(|burner| burner.pid().to_string()).collect::<Vec<_>>().join(",")
}

/// Records the burners, and returns the CPU time that `perf script` takes to tell what it found.
pub(crate) fn record_and_script(seconds: u64, hz: u32, burners: &[Burner]) -> anyhow::Result<Duration> {
    let directory = tempfile::tempdir()?;
    let data = directory.path().join("perf.data");
    let mut record = Command::new("perf");
    record.args(["record", "-g", "-e", "cpu-clock", "-F", &hz.to_string(), "-p", &pids(burners), "-o"]);
    let output = record.arg(&data).args(["--", "sleep", &seconds.to_string()]).output()?;
    ensure!(output.status.success(), "perf record: {output:?}");
    let before = children()?;
    let output = Command::new("perf").arg("script").arg("-i").arg(&data).stderr(Stdio::null()).output()?;
    ensure!(output.status.success() && !output.stdout.is_empty(), "perf script failed");
    Ok(children()? - before)
}

/// CPU time of children that have ended.
fn children() -> anyhow::Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let of = |time: nix::sys::time::TimeVal| {
        Some(Duration::new(time.tv_sec().try_into().ok()?, u32::try_from(time.tv_usec()).ok()? * 1000))
    };
    Ok(of(usage.user_time()).context("a time")? + of(usage.system_time()).context("a time")?)
}
