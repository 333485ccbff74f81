//! Rare facts, sent one by one through the ring buffer.
//!
//! Each record starts with a [`Header`]; its `kind` tells which struct follows. Times named `start_ns` are
//! `CLOCK_BOOTTIME` (`task_struct::start_boottime`), times named `at_ns` are `CLOCK_MONOTONIC`.

use crate::limits::COMM_LEN;

/// `kind` of a [`Fork`].
pub const FORK: u32 = 1;
/// `kind` of an [`Exec`].
pub const EXEC: u32 = 2;
/// `kind` of a [`Rename`].
pub const RENAME: u32 = 3;
/// `kind` of an [`Exit`].
pub const EXIT: u32 = 4;
/// `kind` of a [`Reap`].
pub const REAP: u32 = 5;

/// Number of event kinds; kinds count from 1.
pub const KINDS: usize = 5;

/// No pool, no slot.
pub const NONE: u32 = u32::MAX;

/// First part of every record. 24 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Header {
    /// One of the constants above.
    pub kind: u32,
    /// Thread group id in the initial pid namespace.
    pub pid: u32,
    /// Start of the process, `CLOCK_BOOTTIME` ns.
    pub start_ns: u64,
    /// When it happened, `CLOCK_MONOTONIC` ns.
    pub at_ns: u64,
}

/// A process was created. 56 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Fork {
    /// The child.
    pub header: Header,
    /// Thread group id of its parent.
    pub parent: u32,
    /// Pool of the tracked master that forked it, or [`NONE`].
    pub pool: u32,
    /// Slot it was given, or [`NONE`].
    pub slot: u32,
    /// Zero.
    pub padding: u32,
    /// Name, inherited from the forking thread.
    pub comm: [u8; COMM_LEN],
}

/// A process called execve(2). 48 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Exec {
    /// Who.
    pub header: Header,
    /// Name taken from the new program.
    pub comm: [u8; COMM_LEN],
    /// 1 when another thread than the leader called it: tags on the old leader are gone.
    pub by_thread: u32,
    /// Zero.
    pub padding: u32,
}

/// A process changed its name. 40 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Rename {
    /// Who.
    pub header: Header,
    /// The new name.
    pub comm: [u8; COMM_LEN],
}

/// In [`Death::flags`]: the OOM killer chose this process (`signal_struct::oom_mm` is set).
pub const DEATH_OOM: u32 = 1;
/// In [`Death::flags`]: the sending of the signal was seen, and it came from the kernel.
pub const DEATH_SENT_BY_KERNEL: u32 = 2;
/// In [`Death::flags`]: the sending of the signal was seen, and it came from `sender_pid`.
pub const DEATH_SENT_BY_PROCESS: u32 = 4;
/// In [`Death::flags`]: the kernel tells whether the OOM killer chose a process.
pub const DEATH_OOM_KNOWN: u32 = 8;

/// How a process ended. 40 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Death {
    /// Status as wait(2) gives it: low 7 bits signal, 0x80 core dumped, next 8 bits exit code.
    pub wait_status: u32,
    /// `DEATH_…` bits.
    pub flags: u32,
    /// Sender of the signal, with [`DEATH_SENT_BY_PROCESS`].
    pub sender_pid: u32,
    /// Zero.
    pub padding: u32,
    /// Its name when it sent the signal.
    pub sender_comm: [u8; COMM_LEN],
    /// Largest resident set, pages (`signal_struct::maxrss`).
    pub peak_rss_pages: u64,
}

/// CPU of a whole thread group, living and dead threads. 24 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Cpu {
    /// The scheduler's exact account, ns.
    pub runtime_ns: u64,
    /// User time as sampled, ns; only its proportion to `system_ns` means something.
    pub user_ns: u64,
    /// System time as sampled, ns.
    pub system_ns: u64,
}

/// The last thread of a process ended. 96 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Exit {
    /// Who.
    pub header: Header,
    /// Slot of a tracked worker, or [`NONE`].
    pub slot: u32,
    /// Zero.
    pub padding: u32,
    /// How.
    pub death: Death,
    /// CPU so far; memory is yet to be torn down.
    pub cpu: Cpu,
}

/// A tracked process has left the kernel. 56 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Reap {
    /// Who.
    pub header: Header,
    /// Slot of a tracked worker, or [`NONE`].
    pub slot: u32,
    /// Zero.
    pub padding: u32,
    /// Lifetime CPU, final.
    pub cpu: Cpu,
}

/// Index into the per-CPU counters: `kind - 1` counts events seen, `KINDS + kind - 1` those that found no room.
pub struct Counter;

impl Counter {
    /// A tracked master forked while no slot was free.
    pub const NO_SLOT: u32 = 2 * KINDS as u32;
    /// The kernel had no memory for a tag.
    pub const NO_TAG: u32 = Self::NO_SLOT + 1;
    /// A thread of a worker found no free place in its set.
    pub const NO_THREAD: u32 = Self::NO_TAG + 1;
    /// All chunks of histograms were handed out.
    pub const NO_CHUNK: u32 = Self::NO_THREAD + 1;
    /// An interval ended before it began.
    pub const NEGATIVE: u32 = Self::NO_CHUNK + 1;
    /// A thread came to run while it was said to run, or ran while it was not: an event before that was missed.
    pub const OUT_OF_ORDER: u32 = Self::NEGATIVE + 1;
    /// Run time of one in [`crate::schedule::TIMED_RUNS`] runs of the probes of threads and requests that had something to do, ns.
    pub const TIMED_NS: u32 = Self::OUT_OF_ORDER + 1;
    /// A request found no place in the table.
    pub const NO_REQUEST: u32 = Self::TIMED_NS + 1;
    /// Bytes came or went on a connection while another program was at its request.
    pub const REQUEST_MISSED: u32 = Self::NO_REQUEST + 1;
    /// A request that may have been one of the slowest came while another program was at these.
    pub const SLOW_MISSED: u32 = Self::REQUEST_MISSED + 1;
    /// A message that may have been a request was forgotten before it was answered, to make room for another.
    pub const REQUEST_UNDECIDED: u32 = Self::SLOW_MISSED + 1;
    /// Number of counters.
    pub const COUNT: usize = Self::REQUEST_UNDECIDED as usize + 1;

    /// Events of `kind` (one of the constants above) that the program saw.
    pub const fn counted(kind: u32) -> u32 {
        kind - 1
    }

    /// Events of `kind` for which the ring buffer had no room.
    pub const fn lost(kind: u32) -> u32 {
        KINDS as u32 + kind - 1
    }
}

const _: () = {
    assert!(size_of::<Header>() == 24);
    assert!(size_of::<Fork>() == 56);
    assert!(size_of::<Exec>() == 48);
    assert!(size_of::<Rename>() == 40);
    assert!(size_of::<Death>() == 40);
    assert!(size_of::<Cpu>() == 24);
    assert!(size_of::<Exit>() == 96);
    assert!(size_of::<Reap>() == 56);
};
