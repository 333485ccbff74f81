//! The quantities everything else speaks in: process identity, kernel clocks and the host facts that turn
//! ticks and pages into seconds and bytes. Knows nothing of where a figure came from.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::hash::{BuildHasherDefault, Hasher};

/// Nanoseconds per second.
pub const NANOS_PER_SECOND: u64 = 1_000_000_000;

/// A process as the kernel numbers it (a thread group id), in the pid namespace of `--path.procfs`.
pub type Pid = u32;

/// Nanoseconds per clock tick of `/proc`: `USER_HZ` is 100 on every architecture that Rust has Linux for.
pub const NANOS_PER_TICK: u64 = NANOS_PER_SECOND / 100;

/// The identity of a process. Pids come back, so the start time is part of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ProcessKey {
    /// The thread group id.
    pub pid: Pid,
    /// When it started, `CLOCK_BOOTTIME` ns: as exact as the source tells it. eBPF gives
    /// `task_struct::start_boottime`, `/proc` the start of a tick, so keys are compared within one source only.
    pub start_ns: u64,
}

impl ProcessKey {
    /// From field 22 (`starttime`) of `/proc/PID/stat` (proc_pid_stat(5)).
    pub const fn from_ticks(pid: Pid, start_ticks: u64) -> Self {
        Self { pid, start_ns: start_ticks.saturating_mul(NANOS_PER_TICK) }
    }

    /// What that field shows for this process: the kernel rounds down (`nsec_to_clock_t`).
    pub const fn start_ticks(self) -> u64 {
        self.start_ns / NANOS_PER_TICK
    }
}

impl fmt::Display for ProcessKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.pid, self.start_ns)
    }
}

/// A map by [`Pid`] or [`ProcessKey`].
pub type ByProcess<K, V> = HashMap<K, V, BuildHasherDefault<ProcessHasher>>;

/// A set of them.
pub type Processes<K> = HashSet<K, BuildHasherDefault<ProcessHasher>>;

/// Hashes process identities with a multiplication for each number. They are looked up for every worker in every pass,
/// where the standard hasher is a good part of the cost. What that one is for, keys that an attacker chooses, cannot
/// happen here: the kernel chooses both numbers, and the maps are bounded.
#[derive(Clone, Copy, Debug, Default)]
pub struct ProcessHasher(u64);

impl Hasher for ProcessHasher {
    fn finish(&self) -> u64 {
        // Multiplication moves what differs to the high bits; a table takes the low ones.
        self.0.rotate_left(26)
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u32(&mut self, number: u32) {
        self.write_u64(u64::from(number));
    }

    fn write_u64(&mut self, number: u64) {
        /// An odd number without pattern: 2^64 divided by the golden ratio (Knuth, section 6.4).
        const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
        self.0 = (self.0 ^ number).wrapping_mul(FACTOR);
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

    /// These figures, with no part below what was known `before`; for a total that has not fallen. The split of a total
    /// is sampled, so one part can fall while the total rises; the kernel's `prev_cputime` forbids it in the same way.
    pub fn not_below(self, before: Self) -> Self {
        let total = self.total_ns();
        if self.user_ns < before.user_ns {
            Self { user_ns: before.user_ns, system_ns: total.saturating_sub(before.user_ns) }
        } else if self.system_ns < before.system_ns {
            Self { user_ns: total.saturating_sub(before.system_ns), system_ns: before.system_ns }
        } else {
            self
        }
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
            page_size: ask(SysconfVar::PAGE_SIZE, 4096),
            cpus: u32::try_from(ask(SysconfVar::_NPROCESSORS_ONLN, 1)).unwrap_or(1),
        }
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

/// CPU time of this thread so far, ns.
pub fn thread_cpu_ns() -> u64 {
    clock_ns(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID)
}

/// Nanoseconds since the Unix epoch, for the edge only: what is shown, never what is measured.
pub fn unix_ns() -> u64 {
    clock_ns(nix::time::ClockId::CLOCK_REALTIME)
}

fn clock_ns(clock: nix::time::ClockId) -> u64 {
    // clock_gettime fails only for a clock the kernel does not have; these exist since Linux 2.6.39.
    clock.now().map_or(0, |t| {
        u64::try_from(t.tv_sec()).unwrap_or(0) * NANOS_PER_SECOND + u64::try_from(t.tv_nsec()).unwrap_or(0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of 4,096 pids in a row, started in ticks in a row, no bucket of as many holds more than a random hash would
    /// put there once in a million.
    #[test]
    fn hashes_of_processes_spread() {
        use std::hash::BuildHasher;
        let hasher = BuildHasherDefault::<ProcessHasher>::default();
        for ticks_apart in [0, 1, 100] {
            let mut low = vec![0u32; 4096];
            let mut high = vec![0u32; 128];
            for n in 0..4096u32 {
                let key = ProcessKey::from_ticks(1000 + n, u64::from(n) * ticks_apart);
                let hash = hasher.hash_one(key);
                low[(hash % 4096) as usize] += 1;
                high[(hash >> 57) as usize] += 1;
            }
            assert!(low.iter().all(|count| *count <= 14), "{ticks_apart}: {:?}", low.iter().max());
            assert!(high.iter().all(|count| *count <= 80), "{ticks_apart}: {:?}", high.iter().max());
        }
    }

    #[test]
    fn split_adds_up_to_the_total() {
        assert_eq!(CpuTime::from_total(100, 0, 0), CpuTime { user_ns: 100, system_ns: 0 });
        assert_eq!(CpuTime::from_total(100, 0, 7), CpuTime { user_ns: 0, system_ns: 100 });
        assert_eq!(CpuTime::from_total(100, 3, 1), CpuTime { user_ns: 75, system_ns: 25 });
        let huge = CpuTime::from_total(u64::MAX, u64::MAX, u64::MAX);
        assert_eq!(huge.total_ns(), u64::MAX);
    }

    #[test]
    fn no_part_falls_while_the_total_rises() {
        let before = CpuTime { user_ns: 60, system_ns: 40 };
        for (user_ns, system_ns) in [(50, 60), (70, 35), (60, 41), (0, 100)] {
            let now = CpuTime { user_ns, system_ns };
            let kept = now.not_below(before);
            assert_eq!(kept.total_ns(), now.total_ns());
            assert!(kept.user_ns >= before.user_ns && kept.system_ns >= before.system_ns, "{kept:?}");
        }
    }

    #[test]
    fn start_time_rounds_down_as_proc_does() {
        let key = ProcessKey { pid: 1, start_ns: 19_999_999 };
        assert_eq!(key.start_ticks(), 1);
        assert_eq!(ProcessKey::from_ticks(1, 1).start_ns, 10_000_000);
    }
}
