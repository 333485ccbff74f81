//! What the kernel's own tracing saw of the scheduler: the ground truth where a thread cannot tell how long it waited.
//!
//! Time that a hypervisor takes from a running thread is in no clock of that thread: neither in its CPU time nor in its
//! wait for a CPU (`CONFIG_PARAVIRT_TIME_ACCOUNTING`). A request to a virtual disk is such a moment. The trace has the
//! switch and the wake-up themselves.

use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::unistd::Pid;

/// An instance of ftrace that records switches and wake-ups of all threads while this lives.
pub(crate) struct Trace {
    mounted: tempfile::TempDir,
    instance: PathBuf,
}

impl Trace {
    pub(crate) fn start() -> Self {
        let mounted = tempfile::tempdir().unwrap();
        mount(Some("tracefs"), mounted.path(), Some("tracefs"), MsFlags::empty(), None::<&Path>).unwrap();
        let instance = mounted.path().join(format!("instances/collector-tests-{}", std::process::id()));
        let trace = Self { mounted, instance };
        std::fs::create_dir(&trace.instance).unwrap();
        trace.write("trace_clock", "mono");
        trace.write("buffer_size_kb", "8192");
        trace.write("events/sched/sched_switch/enable", "1");
        trace.write("events/sched/sched_wakeup/enable", "1");
        trace
    }

    fn write(&self, file: &str, text: &str) {
        std::fs::write(self.instance.join(file), text).unwrap_or_else(|error| panic!("{file}: {error}"));
    }

    /// How long the main thread of a process was off CPU in an uninterruptible sleep each time, until it was woken up,
    /// ns. To the microsecond, as the trace is written.
    pub(crate) fn disk_waits(&self, pid: Pid) -> Vec<u64> {
        self.write("tracing_on", "0");
        let text = std::fs::read_to_string(self.instance.join("trace")).unwrap();
        let (mut waits, mut asleep_us) = (Vec::new(), None);
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            assert!(!line.contains("LOST"), "the trace is not complete: {line}");
            let Some((head, event)) = line.split_once(": sched_") else { continue };
            let (seconds, micros) = head.rsplit(' ').next().unwrap().split_once('.').unwrap();
            let at_us = seconds.parse::<u64>().unwrap() * 1_000_000 + micros.parse::<u64>().unwrap();
            if event.starts_with("switch") {
                let left = event.contains(&format!(" prev_pid={pid} ")) && event.contains(" prev_state=D");
                asleep_us = left.then_some(at_us).or(asleep_us);
            } else if event.contains(&format!(" pid={pid} "))
                && let Some(since_us) = asleep_us.take()
            {
                waits.push((at_us - since_us) * 1000);
            }
        }
        waits
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        // Whatever the test came to, tracing must not go on.
        let removed = std::fs::remove_dir(&self.instance);
        let unmounted = umount2(self.mounted.path(), MntFlags::MNT_DETACH);
        if !std::thread::panicking() {
            removed.unwrap();
            unmounted.unwrap();
        }
    }
}
