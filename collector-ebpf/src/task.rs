//! One row of the task iterators.

use crate::limits::COMM_LEN;

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

/// In [`RowHeader::flags`]: its one thread has not run since its figures were told; nothing follows the header.
pub const TASK_UNCHANGED: u32 = 8;

/// Figures that were told already are told again in one pass of so many, because others can change them: memory that
/// was reclaimed is no longer resident.
pub const TELL_AGAIN_PASSES: u32 = 4;

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

/// Cumulative figures of one thread; those of all threads add up to the process. Memory is the process's and the same
/// in each row that has it (a main thread that ended before the others has not). 168 bytes.
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
    /// Zero.
    pub padding: u32,
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

const _: () = {
    assert!(size_of::<RowHeader>() == 16);
    assert!(size_of::<TaskRow>() == 168);
};
