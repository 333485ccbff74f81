//! The least that counts stacks: a program that has the kernel look up both, and adds one to their count. As that of
//! `profile` of libbpf-tools, without telling processes apart by more than their number.

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use anyhow::{Context, ensure};

use crate::burner::Burner;
use crate::common::bpf;

/// Of `enum bpf_cmd`, `enum bpf_map_type` and `enum bpf_prog_type` of `include/uapi/linux/bpf.h`.
const BPF_MAP_CREATE: libc::c_long = 0;
const HASH: u32 = 1;
const STACK_TRACE: u32 = 7;
const PERF_EVENT: u32 = 7;

/// `PERF_MAX_STACK_DEPTH`
const DEPTH: u32 = 127;
const ENTRIES: u32 = 16_384;

/// Of `include/uapi/linux/perf_event.h`.
const PERF_TYPE_SOFTWARE: u32 = 1;
const PERF_COUNT_SW_CPU_CLOCK: u64 = 0;
const PERF_FLAG_FD_CLOEXEC: libc::c_ulong = 8;
const PERF_EVENT_IOC_SET_BPF: libc::c_ulong = 0x4004_2408;
const PERF_EVENT_IOC_ENABLE: libc::c_ulong = 0x2400;

#[repr(C)]
struct Map {
    kind: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
}

/// `struct perf_event_attr` as long as it was first (`PERF_ATTR_SIZE_VER0`).
#[repr(C)]
#[derive(Default)]
struct Event {
    kind: u32,
    size: u32,
    config: u64,
    period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup_events: u32,
    bp_type: u32,
    bp_addr: u64,
}

/// Attached while it lives.
pub(crate) struct Minimal {
    program: OwnedFd,
    _others: Vec<OwnedFd>,
}

impl Minimal {
    /// So many times a second of CPU time of each of these processes.
    pub(crate) fn attach(hz: u32, burners: &[Burner]) -> anyhow::Result<Self> {
        let stacks = map(STACK_TRACE, 4, DEPTH * 8)?;
        let counts = map(HASH, 24, 8)?;
        let instructions = program(stacks.as_raw_fd(), counts.as_raw_fd());
        let program = bpf::load(PERF_EVENT, &instructions).context("loading the minimal program")?;
        let mut others = vec![stacks, counts];
        for burner in burners {
            let event = Event {
                kind: PERF_TYPE_SOFTWARE,
                size: size_of::<Event>() as u32,
                config: PERF_COUNT_SW_CPU_CLOCK,
                period: 1_000_000_000 / u64::from(hz),
                ..Event::default()
            };
            // SAFETY: the attributes live until it returns; this process, any CPU, no group.
            let fd = unsafe {
                libc::syscall(
                    libc::SYS_perf_event_open,
                    &raw const event,
                    burner.pid(),
                    -1,
                    -1,
                    PERF_FLAG_FD_CLOEXEC,
                )
            };
            let event = bpf::owned(fd).context("opening a clock of a process")?;
            for (request, argument) in
                [(PERF_EVENT_IOC_SET_BPF, program.as_raw_fd()), (PERF_EVENT_IOC_ENABLE, 0)]
            {
                // SAFETY: both take a number.
                let result = unsafe { libc::ioctl(event.as_raw_fd(), request, argument) };
                nix::errno::Errno::result(result).context("attaching the minimal program")?;
            }
            others.push(event);
        }
        Ok(Self { program, _others: others })
    }

    /// Run time, ns, and runs.
    pub(crate) fn runs(&self) -> anyhow::Result<Runs> {
        runs_of(&fs::read_to_string(format!("/proc/self/fdinfo/{}", self.program.as_raw_fd()))?)
            .context("a program says how long it ran")
    }
}

/// How long programs ran, ns, and how often.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Runs {
    pub(crate) ns: u64,
    pub(crate) count: u64,
}

impl Runs {
    /// Mean of those since.
    pub(crate) fn ns_since(self, before: Self) -> f64 {
        (self.ns - before.ns) as f64 / (self.count - before.count) as f64
    }
}

/// The sampling program that a process has open, if it has one.
pub(crate) fn sampler_of(pid: u32) -> anyhow::Result<Option<Runs>> {
    let mut found = None;
    for entry in fs::read_dir(format!("/proc/{pid}/fdinfo"))? {
        // A process closes descriptors while we look.
        let Ok(text) = fs::read_to_string(entry?.path()) else { continue };
        if field(&text, "prog_type") == Some(u64::from(PERF_EVENT)) && field(&text, "prog_jited").is_some() {
            ensure!(found.is_none(), "process {pid} has more than one sampling program");
            found = runs_of(&text);
        }
    }
    Ok(found)
}

/// The sampling program of a process runs at events: what is loaded may be kept for the next time.
pub(crate) fn samples_now(pid: u32) -> anyhow::Result<bool> {
    for entry in fs::read_dir(format!("/proc/{pid}/fdinfo"))? {
        let Ok(text) = fs::read_to_string(entry?.path()) else { continue };
        let kind = text.lines().find_map(|line| line.strip_prefix("link_type:"));
        if kind.is_some_and(|kind| kind.trim().starts_with("perf")) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn runs_of(fdinfo: &str) -> Option<Runs> {
    Some(Runs { ns: field(fdinfo, "run_time_ns")?, count: field(fdinfo, "run_cnt")? })
}

fn field(fdinfo: &str, name: &str) -> Option<u64> {
    let rest = fdinfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    rest.trim().parse().ok()
}

fn map(kind: u32, key_size: u32, value_size: u32) -> anyhow::Result<OwnedFd> {
    bpf::command(BPF_MAP_CREATE, &Map { kind, key_size, value_size, max_entries: ENTRIES })
        .context("making a map")
}

/// A `struct bpf_insn`: opcode, destination, source, offset, immediate.
const fn op(code: u64, to: u64, from: u64, offset: i16, immediate: i32) -> u64 {
    code | to << 8 | from << 12 | (offset as u16 as u64) << 16 | (immediate as u32 as u64) << 32
}

fn program(stacks: RawFd, counts: RawFd) -> Vec<u64> {
    const CONTEXT: u64 = 6;
    const FRAME: u64 = 10;
    // BPF_LD | BPF_IMM | BPF_DW with BPF_PSEUDO_MAP_FD, of two instructions.
    let map = |to, fd| [op(0x18, to, 1, 0, fd), 0];
    let copy = |to, from| op(0xbf, to, from, 0, 0);
    let set = |to, value| op(0xb7, to, 0, 0, value);
    let add = |to, value| op(0x07, to, 0, 0, value);
    let store = |offset, from| op(0x7b, FRAME, from, offset, 0);
    let call = |helper| op(0x85, 0, 0, 0, helper);
    let (look_up, update, pid_tgid, stack_id) = (call(1), call(2), call(14), call(27));
    /// `BPF_F_USER_STACK`
    const USER: i32 = 1 << 8;
    let mut program = vec![copy(CONTEXT, 1)];
    for (flags, at) in [(0, -16), (USER, -8)] {
        program.push(copy(1, CONTEXT));
        program.extend(map(2, stacks));
        program.extend([set(3, flags), stack_id, store(at, 0)]);
    }
    program.extend([pid_tgid, store(-24, 0)]);
    program.extend(map(1, counts));
    program.extend([copy(2, FRAME), add(2, -24), look_up]);
    let end = [set(0, 0), op(0x95, 0, 0, 0, 0)];
    // If there is one (not zero), add to it.
    program.push(op(0x15, 0, 0, 4, 0));
    program.extend([set(1, 1), op(0xdb, 0, 1, 0, 0)]);
    program.extend(end);
    program.extend([set(1, 1), store(-32, 1)]);
    program.extend(map(1, counts));
    program.extend([copy(2, FRAME), add(2, -24), copy(3, FRAME), add(3, -32), set(4, 0), update]);
    program.extend(end);
    program
}
