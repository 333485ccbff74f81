//! What a pass over the tracked processes leaves: rows of figures, and the word that nothing has changed.

use crate::limits::{COMM_LEN, TOLD_PLACES};

/// Kinds of resident memory, in the order of `MM_FILEPAGES`, `MM_ANONPAGES`, `MM_SWAPENTS`, `MM_SHMEMPAGES` in the
/// kernel's `include/linux/mm_types_task.h`.
pub const RSS_KINDS: usize = 4;
/// Index of file pages.
pub const RSS_FILE: usize = 0;
/// Index of anonymous pages.
pub const RSS_ANON: usize = 1;
/// Index of swapped-out anonymous pages.
pub const RSS_SWAP: usize = 2;
/// Index of shared memory pages.
pub const RSS_SHMEM: usize = 3;

/// In [`RowHeader::flags`]: a kernel thread (`PF_KTHREAD`).
pub const TASK_KERNEL_THREAD: u32 = 1;
/// In [`RowHeader::flags`]: it has an address space, `rss_pages` is set.
pub const TASK_HAS_MEMORY: u32 = 2;
/// In [`RowHeader::flags`]: the main thread of its process; counters include dead threads.
pub const TASK_MAIN_THREAD: u32 = 4;

/// In [`RowHeader::flags`]: the row is the whole process, all its threads together.
pub const TASK_WHOLE_PROCESS: u32 = 8;
/// In [`RowHeader::flags`]: from now on the bit of its place in [`Pass::unchanged`] speaks of this process.
pub const TASK_HAS_PLACE: u32 = 16;

/// The memory of a process that has not run is looked at in one pass of so many, because others can change it: what was
/// reclaimed is no longer resident.
pub const MEMORY_PASSES: u32 = 4;

/// What was last told of a process. It has the place of its pid; who finds it taken is told in full each time. One
/// cache line.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Told {
    /// Thread group id; 0 for nobody's place.
    pub pid: u32,
    /// Number of the pass that told it.
    pub pass: u32,
    /// Start of the main thread, `CLOCK_BOOTTIME` ns.
    pub start_ns: u64,
    /// When its one thread last came to a CPU, on the clock of the run queues; [`NEVER`] if it had several threads, or
    /// was on a CPU when it was read.
    pub arrival_ns: u64,
    /// Context switches of that thread.
    pub switches: u64,
    /// Pages by kind.
    pub rss_pages: [i64; RSS_KINDS],
}

/// [`Told::arrival_ns`] that no thread has.
pub const NEVER: u64 = u64::MAX;

/// The place of a process in the table of what was told.
pub const fn place_of(pid: u32) -> usize {
    pid as usize % TOLD_PLACES
}

/// What both sides share about one pass. User space sets what the programs write to zero.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Pass {
    /// Number of the pass, from 1.
    pub number: u32,
    /// Rows that were written.
    pub rows: u32,
    /// Not zero if a process found no room for its row. A second run leaves out what the first has told.
    pub full: u32,
    /// Not zero when all figures are wanted, also those that still hold. Set by user space.
    pub tell_all: u32,
    /// A bit for each place: the figures told of that process still hold.
    pub unchanged: [u64; TOLD_PLACES / 64],
}

/// First part of every row. 16 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct RowHeader {
    /// Thread group id.
    pub pid: u32,
    /// `TASK_…` bits.
    pub flags: u32,
    /// Start of the process's main thread, `CLOCK_BOOTTIME` ns.
    pub start_ns: u64,
}

/// Cumulative figures of one process, or of one thread; those of all threads add up to the process. Memory is the
/// process's and the same in each row that has it (a main thread that ended before the others has not). 168 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct TaskRow {
    /// Who.
    pub header: RowHeader,
    /// Thread id.
    pub tid: u32,
    /// Thread group id of the parent.
    pub parent: u32,
    /// `task_struct::__state`.
    pub state: u32,
    /// `task_struct::exit_state`; 0 as long as any thread of the process lives.
    pub exit_state: u32,
    /// Living threads of the process.
    pub threads: u32,
    /// Slot number of its tag.
    pub slot: u32,
    /// Scheduler's account, ns.
    pub runtime_ns: u64,
    /// User time as sampled, ns.
    pub user_ns: u64,
    /// System time as sampled, ns.
    pub system_ns: u64,
    /// Faults served without IO.
    pub minor_faults: u64,
    /// Faults that needed IO.
    pub major_faults: u64,
    /// Voluntary context switches.
    pub voluntary_switches: u64,
    /// Involuntary context switches.
    pub involuntary_switches: u64,
    /// Time spent runnable without a CPU, ns; living threads only, the kernel keeps no sum of the dead.
    pub run_delay_ns: u64,
    /// Bytes fetched from storage (`task_io_accounting::read_bytes`).
    pub read_bytes: u64,
    /// Bytes sent to storage (`task_io_accounting::write_bytes`).
    pub written_bytes: u64,
    /// Pages by kind; may be below zero for a moment.
    pub rss_pages: [i64; RSS_KINDS],
    /// Thread name.
    pub comm: [u8; COMM_LEN],
}

/// Functions of a kernel stack that are told at most: what fits on the stack of a program.
pub const STACK_FRAMES: usize = 48;

/// Where in the kernel a thread is. 392 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct StackRow {
    /// Thread id.
    pub tid: u32,
    /// Number of addresses; 0 for a thread that runs.
    pub frames: u32,
    /// Return addresses, the innermost first.
    pub addresses: [u64; STACK_FRAMES],
}

/// Functions of the kernel that are told of a thread at most: what fits on the stack of a program beside the rest.
pub const THREAD_FRAMES: usize = 40;

/// In [`ThreadRow::flags`]: it is on a CPU.
pub const THREAD_ON_CPU: u32 = 1;
/// In [`ThreadRow::flags`]: its registers are those with which it goes on in its program.
pub const THREAD_HAS_REGISTERS: u32 = 2;

/// Where a thread of a worker is. 408 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ThreadRow {
    /// Thread group id.
    pub pid: u32,
    /// Thread id.
    pub tid: u32,
    /// Start of the process's main thread, `CLOCK_BOOTTIME` ns.
    pub start_ns: u64,
    /// Pool number.
    pub pool: u32,
    /// `THREAD_…` bits.
    pub flags: u32,
    /// `task_struct::__state`.
    pub state: u32,
    /// `task_struct::exit_state`.
    pub exit_state: u32,
    /// What it goes on with in its program; this and those below with [`THREAD_HAS_REGISTERS`].
    pub ip: u64,
    /// Its stack pointer.
    pub sp: u64,
    /// Its frame pointer, or whatever it has in that register.
    pub bp: u64,
    /// What `pthread_self` tells it; 0 if that is not known.
    pub thread_id: u64,
    /// Thread name.
    pub comm: [u8; COMM_LEN],
    /// Number of the system call that it is in; negative for one that was interrupted outside any.
    pub syscall: i32,
    /// Number of addresses, none for a thread that runs; or the kernel's error, which is negative.
    pub frames: i32,
    /// Return addresses in the kernel, the innermost first.
    pub addresses: [u64; THREAD_FRAMES],
}

const _: () = {
    assert!(size_of::<StackRow>() == 392);
    assert!(size_of::<ThreadRow>() == 408);
    assert!(size_of::<RowHeader>() == 16);
    assert!(size_of::<TaskRow>() == 168);
    assert!(size_of::<Told>() == 64);
    assert!(size_of::<Pass>() == 16 + TOLD_PLACES / 8);
    assert!(TOLD_PLACES.is_power_of_two());
};
