//! Map sizes and array lengths that both sides must agree on.

/// Bytes of the event ring buffer (a power of two and a multiple of the page size). At 48,000 events a second of
/// about 90 bytes (12,000 processes a second that fork, exec, exit and are reaped) it holds a quarter of a second, five
/// times the interval at which it is drained. It is mapped twice in a row, so its resident cost is double.
pub const EVENT_RING_BYTES: usize = 1 << 20;

/// Slots: workers that can be tracked at a time with a record of their own, over all pools.
pub const MAX_SLOTS: usize = 8192;

/// Sets of [`crate::schedule::WAYS`] threads; a power of two. As many as pids by default (`pid_max` 32768 or 4194304,
/// handed out in order), so that sets fill evenly: 65,536 threads can be followed.
pub const THREAD_SETS: usize = 16_384;

/// Chunks of histograms and of their directories, 8 MiB: some 25 for each of a thousand busy workers, or 7 for each of the
/// four thousand that a fork storm can leave to be read. Numbers have to fit 16 bits.
pub const MAX_CHUNKS: usize = 32_768;

/// Sets of [`crate::request::REQUEST_WAYS`] requests; a power of two. 16,384 requests can be in progress.
pub const REQUEST_SETS: usize = 2048;

/// Places for threads whose requests are split into where their time went, by thread id; a power of two.
pub const FLIGHTS: usize = 2048;

/// Places for requests of which it is not known yet whether their answer goes on, while another one has their thread; a power
/// of two, 256 KiB.
pub const ASIDE: usize = 2048;

/// Pools that can have a waterfall of their requests.
pub const MAX_WATERFALLS: usize = 64;

/// Places for what was last told of a process, by pid (a power of two): enough that few of [`MAX_SLOTS`] processes meet
/// in one place.
pub const TOLD_PLACES: usize = 16384;

/// Rows of one run of a pass; a pass of more processes that ran takes several runs. A mapped array is resident in full.
pub const PASS_ROWS: usize = 1024;

/// `TASK_COMM_LEN` of `include/linux/sched.h`.
pub const COMM_LEN: usize = 16;
