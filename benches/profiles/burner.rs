//! The load: processes that compute, ten calls deep, and count how far they are.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use nix::time::ClockId;
use nix::unistd::Pid;

use crate::common::launch::spawn;

/// Counts rounds of the outermost of its functions in a file that it maps.
const SOURCE: &str = r#"
#include <fcntl.h>
#include <sys/mman.h>

static volatile unsigned long sink;

__attribute__((noinline)) static void leaf(int rounds) { for (int i = 0; i < rounds; i++) sink += i; }
#define CALLS(outer, inner) __attribute__((noinline)) static void outer(int rounds) { inner(rounds); sink++; }
CALLS(f1, leaf)
CALLS(f2, f1)
CALLS(f3, f2)
CALLS(f4, f3)
CALLS(f5, f4)
CALLS(f6, f5)
CALLS(f7, f6)
CALLS(f8, f7)

int main(int argc, char **argv) {
    volatile unsigned long *done = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, open(argv[1], O_RDWR), 0);
    for (;;) {
        f8(1000);
        ++*done;
    }
}
"#;

/// What it is compiled into.
pub(crate) struct Program {
    path: PathBuf,
    directory: tempfile::TempDir,
}

impl Program {
    pub(crate) fn compile(frame_pointers: bool) -> anyhow::Result<Self> {
        let directory = tempfile::tempdir()?;
        let (source, path) = (directory.path().join("burner.c"), directory.path().join("burner"));
        std::fs::write(&source, SOURCE)?;
        let option = if frame_pointers { "-fno-omit-frame-pointer" } else { "-fomit-frame-pointer" };
        let status = Command::new("cc").args(["-O2", option, "-o"]).arg(&path).arg(&source).status()?;
        ensure!(status.success(), "cc failed");
        Ok(Self { path, directory })
    }

    /// Starts one, on this CPU only.
    pub(crate) fn start(&self, number: usize, cpu: usize) -> anyhow::Result<Burner> {
        let path = self.directory.path().join(format!("done{number}"));
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&path)?;
        file.set_len(4096)?;
        let mut command = Command::new("taskset");
        command.args(["-c", &cpu.to_string()]).arg(&self.path).arg(&path);
        let child = spawn(command.stdout(Stdio::null()))?;
        let burner = Burner { child, file };
        let deadline = Instant::now() + Duration::from_secs(20);
        while burner.rounds()? == 0 {
            ensure!(Instant::now() < deadline, "a burner does not burn");
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(burner)
    }

    /// One on each CPU.
    pub(crate) fn start_on_each_cpu(&self) -> anyhow::Result<Vec<Burner>> {
        let cpus = std::thread::available_parallelism()?.get();
        (0..cpus).map(|cpu| self.start(cpu, cpu)).collect()
    }
}

/// Burns while it lives.
pub(crate) struct Burner {
    child: Child,
    file: File,
}

impl Burner {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    fn rounds(&self) -> anyhow::Result<u64> {
        let mut word = [0; 8];
        self.file.read_exact_at(&mut word, 0)?;
        Ok(u64::from_ne_bytes(word))
    }

    fn cpu(&self) -> anyhow::Result<Duration> {
        cpu_of(self.pid())
    }
}

impl Drop for Burner {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// CPU time of all threads of a process.
pub(crate) fn cpu_of(pid: u32) -> anyhow::Result<Duration> {
    Ok(ClockId::pid_cpu_clock_id(Pid::from_raw(pid.cast_signed()))?.now()?.into())
}

/// CPU time of a thread of a process that has this name: the first number of its `schedstat`
/// (`Documentation/scheduler/sched-stats.rst`).
pub(crate) fn cpu_of_thread(pid: u32, name: &str) -> anyhow::Result<Duration> {
    for entry in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let path = entry?.path();
        if std::fs::read_to_string(path.join("comm"))?.trim_end() == name {
            let text = std::fs::read_to_string(path.join("schedstat"))?;
            let ns = text.split(' ').next().context("a number")?.parse()?;
            return Ok(Duration::from_nanos(ns));
        }
    }
    anyhow::bail!("{pid} has no thread that is named {name}")
}

/// CPU time that the burners take for a million rounds, ns, over so long.
pub(crate) fn cost_of_rounds(burners: &[Burner], time: Duration) -> anyhow::Result<f64> {
    let read = || -> anyhow::Result<(u64, Duration)> {
        let mut sum = (0, Duration::ZERO);
        for burner in burners {
            sum = (sum.0 + burner.rounds()?, sum.1 + burner.cpu()?);
        }
        Ok(sum)
    };
    let before = read()?;
    std::thread::sleep(time);
    let after = read()?;
    Ok((after.1 - before.1).as_nanos() as f64 / (after.0 - before.0) as f64 * 1e6)
}

/// The share of all CPU time that burners have over so long.
pub(crate) fn share_of_cpus(burners: &[Burner], time: Duration) -> anyhow::Result<f64> {
    let cpu = || burners.iter().map(Burner::cpu).sum::<anyhow::Result<Duration>>();
    let (began, before) = (Instant::now(), cpu()?);
    std::thread::sleep(time);
    let cpus = std::thread::available_parallelism()?.get() as f64;
    Ok((cpu()? - before).as_secs_f64() / began.elapsed().as_secs_f64() / cpus)
}
