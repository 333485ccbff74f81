//! Profiles by counters of cycles, where there are any: in guests a module is one, whose interrupts cannot be masked.

use std::os::fd::{FromRawFd as _, OwnedFd};

use nix::errno::Errno;
use nix::unistd::Pid;

use super::profiles::profiled;
use crate::support::{Collector, Workload};

/// Of `include/uapi/linux/perf_event.h`.
const PERF_TYPE_HARDWARE: u32 = 0;
const PERF_COUNT_HW_CPU_CYCLES: u64 = 0;
const PERF_FLAG_FD_CLOEXEC: libc::c_ulong = 8;

/// `struct perf_event_attr` as long as it was first (`PERF_ATTR_SIZE_VER0`).
#[repr(C)]
#[derive(Default)]
struct Event {
    kind: u32,
    size: u32,
    config: u64,
    others: [u64; 3],
    flags: u64,
    more: [u64; 2],
}

/// In [`Event::flags`]: it has a counter or does not count.
const PINNED: u64 = 1 << 2;

/// Counts the cycles of a process, or of a CPU.
struct Counter(OwnedFd);

impl Counter {
    fn of(pid: Pid) -> Result<Self, Errno> {
        let any_cpu = -1;
        Self::open(pid.as_raw(), any_cpu, 0)
    }

    /// One that the first CPU has for this alone, if it has one left.
    fn held() -> Option<Self> {
        let any_process = -1;
        let counter = Self::open(any_process, 0, PINNED).ok()?;
        (nix::unistd::read(&counter.0, &mut [0; 8]) == Ok(8)).then_some(counter)
    }

    #[allow(unsafe_code, reason = "perf_event_open(2)")]
    fn open(pid: i32, cpu: i32, flags: u64) -> Result<Self, Errno> {
        let event = Event {
            kind: PERF_TYPE_HARDWARE,
            size: size_of::<Event>() as u32,
            config: PERF_COUNT_HW_CPU_CYCLES,
            flags,
            ..Event::default()
        };
        let no_group = -1;
        // SAFETY: the attributes live until it returns.
        let fd = unsafe {
            libc::syscall(
                libc::SYS_perf_event_open,
                &raw const event,
                pid,
                cpu,
                no_group,
                PERF_FLAG_FD_CLOEXEC,
            )
        };
        let fd = Errno::result(fd)?;
        // SAFETY: nobody else knows it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd as i32) }))
    }

    fn read(&self) -> u64 {
        let mut count = [0; 8];
        assert_eq!(nix::unistd::read(&self.0, &mut count), Ok(8));
        u64::from_ne_bytes(count)
    }
}

/// Samples, and cycles of them.
fn header(text: &str) -> (u64, u64) {
    let counted = text.lines().find_map(|line| line.strip_suffix(" cycles")?.split_once(" samples, "));
    let (samples, cycles) = counted.unwrap_or_else(|| panic!("{text}"));
    (samples.parse().unwrap(), cycles.parse().unwrap())
}

/// Why there is no profile.
fn refused(collector: &Collector, path: &str, status: u16) -> String {
    let mut answer = collector.request(path, &[]).unwrap();
    let text = answer.body_mut().read_to_string().unwrap();
    assert_eq!(answer.status().as_u16(), status, "{text}");
    text
}

/// Another value of one of the kernel's settings, for as long as it lives.
struct Sysctl {
    path: String,
    before: String,
}

impl Sysctl {
    fn set(name: &str, value: &str) -> Self {
        let path = format!("/proc/sys/kernel/{name}");
        let before = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, value).unwrap();
        Self { path, before }
    }
}

impl Drop for Sysctl {
    fn drop(&mut self) {
        std::fs::write(&self.path, &self.before).unwrap();
    }
}

/// Has Debian's kernels count for who has CAP_PERFMON, as others do.
fn as_elsewhere() -> Sysctl {
    Sysctl::set("perf_event_paranoid", "2")
}

/// A counter of a process; or, where there is none, it is refused to profile by it.
fn counter(collector: &Collector, pid: Pid) -> Option<Counter> {
    let counter = Counter::of(pid);
    if let Err(error) = &counter {
        assert!(std::env::var_os("CYCLES_ARE_COUNTED").is_none(), "{error}");
        let text = refused(collector, "/debug/pprof/profile?seconds=3&event=cycles", 501);
        assert!(text.contains("cycles cannot be counted here: "), "{text}");
        assert!(text.contains("perf stat -e cycles"), "{text}");
    }
    counter.ok()
}

/// A pool of who burns CPU and one that does this, with who burns, and the collector that watches both.
fn burning_beside(behaviour: &str) -> (Workload, Pid, Collector) {
    let mut master = Workload::start();
    let burner = master.spawn("burn 600000");
    master.spawn(behaviour);
    let collector = Collector::start(&["--source=ebpf"]);
    collector.pool_of(master.pid(), 2);
    (master, burner, collector)
}

#[test]
fn cycles_are_those_that_were_counted_or_cannot_be() {
    let _as_elsewhere = as_elsewhere();
    let (_master, burner, collector) = burning_beside("sleep");
    let Some(counter) = counter(&collector, burner) else { return };
    let path = format!("/debug/pprof/profile?pid={burner}&seconds=3&hz=499&debug=1");
    let (text, counted) = profiled(&collector, &format!("{path}&event=cycles"), || counter.read() as f64);
    let (samples, cycles) = header(&text);
    println!("{samples} samples, {cycles} cycles; counted were {counted}");
    assert!((cycles as f64 - counted).abs() * 10.0 <= counted, "{counted} cycles: {text}");
    assert!(samples >= 300, "{text}");
    // What asks for the time that it has used holds a lock there, interrupts off.
    let innermost = |text: &str, function: &str| {
        let first = text.lines().zip(text.lines().skip(1));
        first.filter(|(who, frame)| who.contains(" @ ") && frame.contains(function)).count()
    };
    let by_clock = collector.text(&path, "*/*");
    assert_eq!(innermost(&by_clock, "update_curr"), 0, "{by_clock}");
    assert!(innermost(&text, "update_curr") > 0, "{text}");
}

/// The counter interrupts our other programs at work, and the kernel where it tags and forgets processes.
#[test]
fn cycles_are_right_while_processes_come_and_go() {
    let _as_elsewhere = as_elsewhere();
    let (mut master, burner, collector) = burning_beside("duty 30 600000");
    let Some(counter) = counter(&collector, burner) else { return };
    let path = format!("/debug/pprof/profile?pid={burner}&seconds=3&hz=299&debug=1&event=cycles");
    let (text, counted) = std::thread::scope(|scope| {
        let storm = scope.spawn(|| master.ask("storm 100 300"));
        let profile = profiled(&collector, &path, || counter.read() as f64);
        storm.join().unwrap();
        profile
    });
    let (samples, cycles) = header(&text);
    println!("{samples} samples, {cycles} cycles; counted were {counted}");
    // Some 300 samples.
    assert!((cycles as f64 - counted).abs() * 5.0 <= counted, "{counted} cycles: {text}");
}

#[test]
fn who_finds_no_counter_is_told() {
    let _as_elsewhere = as_elsewhere();
    let (_master, burner, collector) = burning_beside("sleep");
    let path = "/debug/pprof/profile?seconds=0.5&debug=1&event=cycles";
    let Some(counter) = counter(&collector, burner) else { return };
    drop(counter);
    // CPUs have some ten at most.
    let held: Vec<Counter> = std::iter::repeat_with(Counter::held).take(100).map_while(|held| held).collect();
    println!("{} counters", held.len());
    assert!((1..100).contains(&held.len()), "{}", held.len());
    let text = refused(&collector, path, 503);
    assert!(text.contains("no counter of cycles is free") && text.contains("nmi_watchdog"), "{text}");
    drop(held);
    assert!(header(&collector.text(path, "*/*")).1 > 0);
    let most = Sysctl::set("perf_event_max_sample_rate", "5000");
    let text = refused(&collector, &format!("{path}&hz=9999"), 400);
    drop(most);
    assert!(text.contains("no more than 5000 samples a second by cycles, and 9999 are asked for"), "{text}");
    assert!(header(&collector.text(path, "*/*")).1 > 0);
}
