//! Real processes to look at: this program, started again as a master that forks workers and obeys.
//!
//! A worker has memory of its own and waits for a signal, as a server waits for a request. Nobody is left behind:
//! the master dies with the bench and the workers with the master, however the bench ends.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, bail, ensure};
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, getppid};

use crate::common::launch::die_with_us;

/// First argument of a bench that is to be the master.
pub(crate) const MASTER: &str = "--be-the-master-of-workers";

/// `comm` of master and workers, by which the peer groups them.
pub(crate) const COMM: &str = "bench-worker";

/// What each worker writes to once.
const TOUCHED_BYTES: usize = 256 << 10;

/// What an active worker does when it is woken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Activity {
    /// It runs and waits again.
    Runs,
    /// It also takes memory and gives it back, so its faults move.
    Faults,
}

/// The master, seen from the bench.
pub(crate) struct Workers {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    pub(crate) pids: Vec<Pid>,
}

impl Workers {
    pub(crate) fn start() -> anyhow::Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(MASTER).stdin(Stdio::piped()).stdout(Stdio::piped());
        die_with_us(&mut command);
        let mut child = command.spawn().context("starting the master of the workers")?;
        let input = child.stdin.take().context("piped")?;
        let output = BufReader::new(child.stdout.take().context("piped")?);
        Ok(Self { child, input, output, pids: Vec::new() })
    }

    fn ask(&mut self, command: &str) -> anyhow::Result<String> {
        writeln!(self.input, "{command}")?;
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        ensure!(!line.is_empty(), "the master of the workers ended");
        Ok(line.trim().to_owned())
    }

    /// Forks until there are so many.
    pub(crate) fn grow_to(&mut self, count: usize) -> anyhow::Result<()> {
        let more = count.saturating_sub(self.pids.len());
        let answer = self.ask(&format!("spawn {more}"))?;
        for pid in answer.split(' ').filter(|word| !word.is_empty()) {
            self.pids.push(Pid::from_raw(pid.parse()?));
        }
        ensure!(self.pids.len() == count, "forking stopped at {} of {count} workers", self.pids.len());
        Ok(())
    }

    /// Pids as others write them.
    pub(crate) fn numbers(&self) -> Vec<u32> {
        self.pids.iter().map(|pid| pid.as_raw().cast_unsigned()).collect()
    }

    /// Wakes each worker once.
    pub(crate) fn wake(&self, activity: Activity) -> anyhow::Result<()> {
        let signal = match activity {
            Activity::Runs => Signal::SIGUSR1,
            Activity::Faults => Signal::SIGUSR2,
        };
        for pid in &self.pids {
            kill(*pid, signal).with_context(|| format!("waking worker {pid}"))?;
        }
        Ok(())
    }

    /// Forks and reaps so many children that do nothing, as fast as it goes.
    pub(crate) fn storm(&mut self, count: usize) -> anyhow::Result<()> {
        let answer = self.ask(&format!("storm {count}"))?;
        ensure!(answer == "done", "the storm answered {answer:?}");
        Ok(())
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The life of the master: one command a line on standard input, one line of answer each.
pub(crate) fn be_master() -> anyhow::Result<()> {
    nix::sys::prctl::set_name(c"bench-worker")?;
    let wakes = SigSet::from_iter([Signal::SIGUSR1, Signal::SIGUSR2]);
    wakes.thread_block()?;
    let mut out = std::io::stdout().lock();
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let (word, count) = line.split_once(' ').context("a command and a number")?;
        let count: usize = count.parse()?;
        match word {
            "spawn" => {
                for _ in 0..count {
                    match spawn(&wakes) {
                        Ok(pid) => write!(out, "{pid} ")?,
                        // The bench sees how many there are.
                        Err(_) => break,
                    }
                }
                writeln!(out)?;
            }
            "storm" => {
                storm(count)?;
                writeln!(out, "done")?;
            }
            _ => bail!("unknown command {word:?}"),
        }
        out.flush()?;
    }
    Ok(())
}

fn spawn(wakes: &SigSet) -> nix::Result<Pid> {
    let master = nix::unistd::getpid();
    // SAFETY: the master has one thread, so no lock is held by a thread that the child lacks.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => Ok(child),
        ForkResult::Child => {
            let died_already =
                nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).is_err() || getppid() != master;
            if !died_already {
                work(wakes);
            }
            // SAFETY: ends the child without running what belongs to its parent.
            unsafe { libc::_exit(0) }
        }
    }
}

fn work(wakes: &SigSet) {
    let memory = std::hint::black_box(vec![1u8; TOUCHED_BYTES]);
    while let Ok(signal) = wakes.wait() {
        if signal == Signal::SIGUSR2 {
            take_and_give_back();
        }
    }
    drop(memory);
}

/// A page fault or two; resident memory ends as it was.
fn take_and_give_back() {
    let Some(length) = std::num::NonZero::new(16 << 10) else { return };
    let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: a fresh private mapping at an address that the kernel chooses.
    let Ok(memory) = (unsafe { mmap_anonymous(None, length, protection, MapFlags::MAP_PRIVATE) }) else {
        return;
    };
    // SAFETY: the first byte of the mapping just made, writable and ours alone.
    unsafe { memory.cast::<u8>().write_volatile(1) };
    // SAFETY: the mapping just made, with its length; nothing borrows from it.
    let _ = unsafe { munmap(memory, length.get()) };
}

fn storm(count: usize) -> anyhow::Result<()> {
    // The workers are children, too, but they do not end.
    let mut running = 0;
    for _ in 0..count {
        // SAFETY: the master has one thread.
        match unsafe { fork() }.context("fork")? {
            // SAFETY: ends the child without running what belongs to its parent.
            ForkResult::Child => unsafe { libc::_exit(0) },
            ForkResult::Parent { .. } => running += 1,
        }
        while running > 64 {
            waitpid(None, None)?;
            running -= 1;
        }
        while running > 0 && matches!(waitpid(None, Some(WaitPidFlag::WNOHANG)), Ok(WaitStatus::Exited(..))) {
            running -= 1;
        }
    }
    while running > 0 {
        waitpid(None, None)?;
        running -= 1;
    }
    Ok(())
}
