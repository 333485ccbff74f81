//! The quantities everything else speaks in: process identity, kernel clocks and the host facts that turn
//! ticks and pages into seconds and bytes. Knows nothing of where a figure came from.

use std::fmt;

/// Nanoseconds per second.
pub const NANOS_PER_SECOND: u64 = 1_000_000_000;

/// A process as the kernel numbers it (a thread group id), in the pid namespace of `--path.procfs`.
pub type Pid = u32;

/// The identity of a process. Pids come back, so the start time is part of it.
///
/// `start_ticks` is field 22 (`starttime`) of `/proc/PID/stat`, in clock ticks since boot (proc_pid_stat(5)). A
/// source that knows nanoseconds (`task_struct::start_boottime`) rounds them down with
/// [`HostFacts::ticks_from_nanos`], as the kernel does when it prints the field, so that both sources name one
/// process alike. Two processes can share a pid within one tick (10 ms) only if the whole pid space was used up
/// in between.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ProcessKey {
    /// The thread group id.
    pub pid: Pid,
    /// When it started, in clock ticks since boot.
    pub start_ticks: u64,
}

impl fmt::Display for ProcessKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.pid, self.start_ticks)
    }
}

/// CPU time a process has used, cumulative, all threads, living and dead (not its children).
///
/// `total_ns` is the scheduler's exact account (`sum_exec_runtime`); the user/system split is sampled by the kernel
/// and scaled so that it adds up to the total, as `/proc/PID/stat` does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuTime {
    /// Nanoseconds in user mode.
    pub user_ns: u64,
    /// Nanoseconds in kernel mode.
    pub system_ns: u64,
}

impl CpuTime {
    /// User plus system, in nanoseconds.
    pub fn total_ns(&self) -> u64 {
        self.user_ns.saturating_add(self.system_ns)
    }

    /// Splits an exact total in the proportion of two sampled times, as `cputime_adjust` in the kernel's
    /// `kernel/sched/cputime.c`: with no sampled system time all of it is user time, and the reverse.
    pub fn from_total(total_ns: u64, sampled_user: u64, sampled_system: u64) -> Self {
        let system_ns = if sampled_system == 0 {
            0
        } else if sampled_user == 0 {
            total_ns
        } else {
            let sampled = u128::from(sampled_user) + u128::from(sampled_system);
            // The quotient is at most `total_ns`, so the cast cannot truncate.
            (u128::from(total_ns) * u128::from(sampled_system) / sampled) as u64
        };
        Self { user_ns: total_ns - system_ns, system_ns }
    }
}

/// Constants of this host, read once at start.
#[derive(Clone, Copy, Debug)]
pub struct HostFacts {
    /// Clock ticks per second in `/proc` (`sysconf(_SC_CLK_TCK)`, 100 on every current architecture).
    pub ticks_per_second: u64,
    /// Bytes per page (`sysconf(_SC_PAGESIZE)`).
    pub page_size: u64,
    /// CPUs the kernel can schedule on now (`sysconf(_SC_NPROCESSORS_ONLN)`).
    pub cpus: u32,
}

impl HostFacts {
    /// Asks libc. Values that it cannot tell (never seen) fall back to the constants of x86-64 Linux.
    pub fn of_this_host() -> Self {
        use nix::unistd::{SysconfVar, sysconf};
        let ask = |var, otherwise: u64| {
            sysconf(var)
                .ok()
                .flatten()
                .and_then(|v| u64::try_from(v).ok())
                .filter(|v| *v > 0)
                .unwrap_or(otherwise)
        };
        Self {
            ticks_per_second: ask(SysconfVar::CLK_TCK, 100),
            page_size: ask(SysconfVar::PAGE_SIZE, 4096),
            cpus: u32::try_from(ask(SysconfVar::_NPROCESSORS_ONLN, 1)).unwrap_or(1),
        }
    }

    /// `nsec_to_clock_t` of the kernel: rounds down.
    pub fn ticks_from_nanos(&self, nanos: u64) -> u64 {
        nanos / (NANOS_PER_SECOND / self.ticks_per_second)
    }

    /// The start of a clock tick, in nanoseconds.
    pub fn nanos_from_ticks(&self, ticks: u64) -> u64 {
        ticks.saturating_mul(NANOS_PER_SECOND / self.ticks_per_second)
    }
}

/// Nanoseconds of `CLOCK_BOOTTIME`: the clock that `starttime` counts, also while the host sleeps.
pub fn boottime_ns() -> u64 {
    clock_ns(nix::time::ClockId::CLOCK_BOOTTIME)
}

/// Nanoseconds of `CLOCK_MONOTONIC`, for intervals.
pub fn monotonic_ns() -> u64 {
    clock_ns(nix::time::ClockId::CLOCK_MONOTONIC)
}

/// Nanoseconds since the Unix epoch, for the edge only: what is shown, never what is measured.
pub fn unix_ns() -> u64 {
    clock_ns(nix::time::ClockId::CLOCK_REALTIME)
}

fn clock_ns(clock: nix::time::ClockId) -> u64 {
    // clock_gettime fails only for a clock the kernel does not have; these three exist since Linux 2.6.39.
    clock.now().map_or(0, |t| {
        u64::try_from(t.tv_sec()).unwrap_or(0) * NANOS_PER_SECOND + u64::try_from(t.tv_nsec()).unwrap_or(0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn split_adds_up_to_the_total() {
        assert_eq!(CpuTime::from_total(100, 0, 0), CpuTime { user_ns: 100, system_ns: 0 });
        assert_eq!(CpuTime::from_total(100, 0, 7), CpuTime { user_ns: 0, system_ns: 100 });
        assert_eq!(CpuTime::from_total(100, 3, 1), CpuTime { user_ns: 75, system_ns: 25 });
        let huge = CpuTime::from_total(u64::MAX, u64::MAX, u64::MAX);
        assert_eq!(huge.total_ns(), u64::MAX);
    }

    #[test]
    fn start_time_rounds_down_as_proc_does() {
        let host = HostFacts { ticks_per_second: 100, page_size: 4096, cpus: 1 };
        assert_eq!(host.ticks_from_nanos(19_999_999), 1);
        assert_eq!(host.nanos_from_ticks(1), 10_000_000);
    }
}
