//! What the scheduler does with the threads of workers: where each is now, and where its time went.
//!
//! A thread is always in exactly one [kind](KINDS) of time: on a CPU, runnable and waiting for one, or blocked for a
//! reason. Each change ends an interval, which is added to the [`Times`] of the worker's slot and, if the pool wants
//! histograms, to the bucket of its length ([`crate::histogram`]).
//!
//! Buckets are kept in [`Chunk`]s of 64, one power of two each, handed out when the first value falls into one: a
//! worker's waits lie in a dozen of the 481 that there could be. The numbers of a slot's chunks are in chunks, too, its
//! directories: one for every three measures, found in [`Times`]. A slot keeps its chunks when another worker takes it,
//! so a fork storm hands out none.
//!
//! A thread is *parked* while it waits for work: while it is blocked in one of the kinds of time that its pool counts as
//! such. A worker is busy while at least one of its threads is not parked, or it has not begun to answer a
//! [request](crate::request); each stretch of that is a span ([`Work`]).

use crate::histogram::{BUCKETS, SUB_BUCKETS};
use crate::request::{ABORTED, OUTCOMES};

/// Executing.
pub const ON_CPU: u32 = 0;
/// Ready to run, waiting for a CPU: woken up, preempted, or yielding.
pub const RUNNABLE: u32 = 1;
/// Blocked uninterruptibly, which is nearly always for storage, or in a call on a file.
pub const DISK: u32 = 2;
/// Blocked in futex(2), a System V semaphore or a file lock.
pub const LOCK: u32 = 3;
/// Blocked in a call on a socket other than accept(2).
pub const NETWORK: u32 = 4;
/// Blocked in a call that waits for work: epoll, poll, select, accept, io_uring, message queues, event descriptors.
pub const POLL: u32 = 5;
/// Blocked in nanosleep(2), pause(2) and the like.
pub const SLEEP: u32 = 6;
/// Blocked in a read or write of a pipe.
pub const PIPE: u32 = 7;
/// Blocked outside any system call: a page had to come, or the address space was locked.
pub const PAGE_FAULT: u32 = 8;
/// Blocked in wait(2), or in vfork(2) until the child executes.
pub const CHILD: u32 = 9;
/// Stopped by a signal or a debugger.
pub const STOPPED: u32 = 10;
/// Blocked in anything else.
pub const OTHER: u32 = 11;

/// Number of kinds of time. Kinds from [`DISK`] on are reasons to be off CPU.
pub const KINDS: usize = 12;

/// Number of what there is a histogram of: the kinds of time, [`SPAN`], the outcomes from [`REQUEST`] on, and
/// [`ACCEPT_WAIT`].
pub const MEASURES: usize = KINDS + 1 + OUTCOMES + 1;

/// How long a worker was busy, from the moment in which the first of its threads ceased to be parked to the one in which
/// all of them were again and no request was in flight.
pub const SPAN: u32 = KINDS as u32;

/// How long requests took that ended with the first outcome ([`crate::request`]); the others follow.
pub const REQUEST: u32 = SPAN + 1;

/// From the moment in which a TCP connection was established to the one in which a worker had read its first bytes, of
/// clients that sent them at once. As fine as the kernel's tick.
pub const ACCEPT_WAIT: u32 = REQUEST + OUTCOMES as u32;

/// How long requests took whose thread did not leave its CPU ([`crate::request::REQUEST_ON_CPU`]), by outcome; none of them
/// was aborted. They are in no other measure: user space adds them to those from [`REQUEST`] on, and to the waterfall of
/// their pool, where all of it was time on a CPU.
pub const ON_CPU_REQUEST: u32 = MEASURES as u32;

/// Number of what the programs have a histogram of: the measures, and [`ON_CPU_REQUEST`].
pub const KEPT: usize = MEASURES + ABORTED as usize;

/// Among the kinds in [`Times::parks`], which are bits by their number: a thread that is blocked in [`LOCK`] is parked if
/// it is not the only one of its worker. A thread of a pool waits for work so, and one that waits for another thread of
/// its own process finds that one busy; a lone thread waits for another process.
pub const PARKS_IN_SHARED_LOCK: u32 = 1 << 15;

/// A thread of a worker waits for work in this kind of time, by [`Times::parks`] and by how many of its threads are
/// followed.
#[inline(always)]
pub fn parks_in(parks: u32, kind: u32, followed: impl FnOnce() -> u32) -> bool {
    let mut parked = parks >> (kind & 31) & 1 != 0;
    if kind == LOCK && parks & PARKS_IN_SHARED_LOCK != 0 {
        parked |= followed() > 1;
    }
    parked
}

/// The thread was found running: what it does is known from its next switch on.
pub const UNKNOWN: u32 = 0xff;

/// A system call whose reason depends on what its first argument, a descriptor, is open on. Only in the table of
/// system calls; never a kind of time.
pub const BY_DESCRIPTOR: u8 = 0xfe;

/// A system call that locks the address space, where a thread that is blocked uninterruptibly waits for threads of its
/// own process. Only in the table of system calls; never a kind of time.
pub const ADDRESS_SPACE: u8 = 0xfd;

/// restart_syscall(2): the call that a stop or a freeze has interrupted goes on, and the reason is as it was. Only in the
/// table of system calls; never a kind of time.
pub const AS_BEFORE: u8 = 0xfc;

/// System calls in the table of reasons; those with higher numbers are [`OTHER`].
pub const SYSCALLS: usize = 512;

/// A followed thread. 16 bytes. Written on the CPU that changes what it does, and by user space when that lets go of it, or its
/// pool wants to know something else: then flags of `place` are exchanged.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Thread {
    /// Thread id; 0 when this place is free, [`LET_GO`] while a thread is given it or user space takes it back.
    pub tid: u32,
    /// Slot of its worker in the low 16 bits, then 8 bits of its kind of time, then `THREAD_…` bits.
    pub place: u32,
    /// When the interval began, `CLOCK_MONOTONIC` ns; 0 while its end is being accounted.
    pub since_ns: u64,
}

/// [`Thread::tid`] that no thread has.
pub const LET_GO: u32 = u32::MAX;

/// In [`Thread::place`]: the interval began before the thread was followed, so its length is not known.
pub const THREAD_PARTIAL: u32 = 1 << 24;
/// In [`Thread::place`]: its pool wants histograms.
pub const THREAD_HISTOGRAMS: u32 = 1 << 25;
/// In [`Thread::place`]: it is one of [`Times::busy`].
pub const THREAD_BUSY: u32 = 1 << 26;
/// In [`Thread::place`], from this bit on, four bits: the last kind that was a reason to be blocked other than
/// [`STOPPED`]; 0 where there was none.
pub const THREAD_BEFORE_SHIFT: u32 = 27;
/// The bits of the same.
pub const THREAD_BEFORE: u32 = 0xf << THREAD_BEFORE_SHIFT;
/// In [`Thread::place`]: its time is that of a request ([`crate::waterfall`]).
pub const THREAD_IN_REQUEST: u32 = 1 << 31;

/// What a request in flight adds to [`Times::busy`]; a thread that is not parked adds 1.
pub const IN_FLIGHT: u64 = 1 << 32 | 1;

impl Times {
    /// Requests that have ended, by outcome.
    pub fn ended_requests(&self) -> [u32; OUTCOMES] {
        core::array::from_fn(|outcome| {
            let own = self.own_requests.get(outcome).copied().unwrap_or(0);
            self.requests[outcome].wrapping_add(own)
        })
    }

    /// Of [`Times::busy`], what keeps the worker so.
    #[inline(always)]
    pub const fn reasons_of(busy: u64) -> u32 {
        busy as u32
    }

    /// Of [`Times::busy`], requests in flight.
    pub const fn in_flight_of(busy: u64) -> u32 {
        (busy >> 32) as u32
    }
}

impl Thread {
    /// Packs a place.
    #[inline(always)]
    pub const fn place(slot: u32, kind: u32, flags: u32) -> u32 {
        slot & 0xffff | (kind & 0xff) << 16 | flags
    }

    /// The slot in a place.
    #[inline(always)]
    pub const fn slot_of(place: u32) -> u32 {
        place & 0xffff
    }

    /// The kind in a place.
    #[inline(always)]
    pub const fn kind_of(place: u32) -> u32 {
        place >> 16 & 0xff
    }
}

/// Threads that share a cache line.
pub const WAYS: usize = 4;

/// The places that a thread may have: the set with number `tid % THREAD_SETS`. 64 bytes.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default)]
pub struct ThreadSet {
    /// In no order.
    pub threads: [Thread; WAYS],
}

/// Where the time of a worker's threads went, and what they were asked. 384 bytes: workers on different CPUs do not meet in
/// one cache line.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default)]
pub struct Times {
    /// Intervals that ended, by kind, ns.
    pub ended_ns: [u64; KINDS],
    /// By measure, values that are in no histogram: begun before the thread was followed, negative, or without a chunk.
    pub discarded: [u32; KEPT],
    /// Requests that have a place in the table.
    pub open: u32,
    /// What came of being busy.
    pub work: Work,
    /// Kinds of time in which a thread waits for work, as bits by number, and `PARKS_IN_SHARED_LOCK`; then what its pool
    /// wants to know of requests, and the ticket of its waterfall ([`crate::waterfall::ticket`]). User space may change all
    /// of it. From here on a cache line of what is read and changed when something is sent or received.
    pub parks: u32,
    /// Threads that are followed now. While there are any the slot may not have another worker: they still write here.
    pub followed: u32,
    /// Requests that have ended, by outcome, but for `own_requests`.
    pub requests: [u32; OUTCOMES],
    /// In the low half threads that are not parked and requests in flight, in the high half the latter alone: both change
    /// at once. User space changes it, too, and may for a moment have taken away more than there was.
    pub busy: u64,
    /// Bytes received from sockets.
    pub received_bytes: u64,
    /// Bytes sent to sockets.
    pub sent_bytes: u64,
    /// Durations of the requests in [`ON_CPU_REQUEST`] that user space has not taken yet, in histograms or not, ns.
    pub on_cpu_ns: u64,
    /// Chunk numbers of the slot's directories, two to a word, the first in the low half; 0 where there is none yet.
    pub directories: [u32; DIRECTORIES / 2],
    /// Requests of a worker with one thread that this thread itself has found to have ended, by outcome: answered, and the next
    /// has come. Nobody else adds to them, so that it takes no atomic instruction.
    pub own_requests: [u32; ABORTED as usize],
    /// When its first request began, `CLOCK_MONOTONIC` ns; 0 before.
    pub first_request_ns: u64,
    /// Sum of the times at which threads ended less the sum of the times at which they were first followed, ns,
    /// wrapping: with the times of now added for those that live it is how long all of them have lived.
    pub lived_ns: u64,
    /// 1 if it, or, of a waterfall, any worker of the pool, has answered with a single part which TCP_CORK held back at first: when
    /// the last byte was sent is not known then by what is sent later, and first parts of its answers are looked at as all others.
    pub lone_corked: u32,
    /// Zero.
    pub padding: u32,
}

/// When a worker was busy: written by the programs, and by user space when its pool waits for work in something else. Times
/// are `CLOCK_MONOTONIC` ns, 0 for what has not happened; while it was not followed, time stood still for the first ones
/// that happened before. 56 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Sum of the times at which it ceased to be busy less the sum of the times at which it began to, ns, wrapping: with
    /// the time of now added if it is busy, it is how long it has been.
    pub busy_ns: u64,
    /// When it last began or ceased to be busy; or, of a busy one, when its pool got more to wait for work in.
    pub since_ns: u64,
    /// When its first thread was followed.
    pub begin_ns: u64,
    /// When all its threads were parked for the first time, or were found to be by what its pool says now; as `begin_ns`
    /// for a worker that had lived before that.
    pub ready_ns: u64,
    /// When it was busy for the first time after that; as `begin_ns` for a worker that had lived before that.
    pub worked_ns: u64,
    /// When a thread of it last ended, or ceased to be followed.
    pub end_ns: u64,
    /// Spans that have ended, after it was ready.
    pub spans: u64,
}

/// Powers of two that values can have; chunks per measure.
pub const ROWS: usize = BUCKETS / SUB_BUCKETS as usize;

/// Directories of a slot.
pub const DIRECTORIES: usize = 10;

/// Words of a chunk.
pub const CHUNK_WORDS: usize = SUB_BUCKETS as usize;

/// Counts of 64 neighbouring buckets, by the low six bits of the bucket number, which user space takes by exchanging them
/// for 0. Or a directory: numbers of chunks of counts, from 1, two to a word, the first in the low half, 0 where there is
/// none yet; and from word [`FRESH`] on a bit for each of them, set when it was added to, cleared by user space before it
/// takes the counts. 256 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Chunk {
    /// Counts, or numbers and bits.
    pub words: [u32; CHUNK_WORDS],
}

/// In place of a chunk's number, for the moment in which it is got; no chunk has it.
pub const COMING: u32 = 0xffff;

/// Words of a directory from here on are bits, by entry.
pub const FRESH: usize = CHUNK_WORDS - (MEASURES_PER_DIRECTORY as usize * ROWS).div_ceil(32);

/// The directory that a measure is in. The division is by three, which BPF would do by the slowest of instructions.
#[inline(always)]
pub const fn directory_of(measure: u32) -> u32 {
    (measure * 11) >> 5
}

/// Where in its directory the number of a measure's chunk for a power of two is.
#[inline(always)]
pub const fn entry_of(measure: u32, row: u32) -> u32 {
    (measure - directory_of(measure) * MEASURES_PER_DIRECTORY) * ROWS as u32 + row
}

/// The measure and the power of two that an entry of a directory is for.
pub const fn measure_and_row_of(directory: u32, entry: u32) -> (u32, u32) {
    (directory * MEASURES_PER_DIRECTORY + entry / ROWS as u32, entry % ROWS as u32)
}

const MEASURES_PER_DIRECTORY: u32 = 3;

/// How far the number at this place is to be shifted in its word.
#[inline(always)]
pub const fn shift_of(entry: u32) -> u32 {
    entry % 2 * 16
}

/// One in so many runs of the scheduler probes is timed, by chance: the kernel's own statistics would add half to what a
/// run costs, and to switch them on takes CAP_SYS_ADMIN. A power of two.
pub const TIMED_RUNS: u64 = 64;

/// What a pool wants to know: nothing of the scheduler.
pub const PROFILE_NONE: u32 = 0;
/// What a pool wants to know: where the time went.
pub const PROFILE_COUNTERS: u32 = 1;
/// What a pool wants to know: that and how long intervals were.
pub const PROFILE_HISTOGRAMS: u32 = 2;

/// Packs what a pool wants to know, one of `PROFILE_…`, and what [`Times::parks`] is to be.
pub const fn wishes(profile: u32, parks: u32) -> u32 {
    profile | parks << PROFILE_BITS
}

/// What a pool wants to know, of its wishes.
#[inline(always)]
pub const fn profile_of(wishes: u32) -> u32 {
    wishes & ((1 << PROFILE_BITS) - 1)
}

/// What [`Times::parks`] is to be, of its wishes.
#[inline(always)]
pub const fn parks_of(wishes: u32) -> u32 {
    wishes >> PROFILE_BITS
}

const PROFILE_BITS: u32 = 4;

const _: () = {
    assert!(size_of::<Thread>() == 16);
    assert!(size_of::<ThreadSet>() == 64);
    assert!(size_of::<Times>() == 384 && core::mem::offset_of!(Times, parks).is_multiple_of(64));
    assert!(size_of::<Work>() == 56);
    assert!(size_of::<Chunk>() == 256);
    assert!(DIRECTORIES.is_multiple_of(2) && DIRECTORIES * MEASURES_PER_DIRECTORY as usize >= KEPT);
    assert!(MEASURES_PER_DIRECTORY as usize * ROWS <= FRESH * 2);
    let mut measure = 0;
    while measure < KEPT as u32 {
        assert!(directory_of(measure) == measure / MEASURES_PER_DIRECTORY);
        let (same, row) = measure_and_row_of(directory_of(measure), entry_of(measure, ROWS as u32 - 1));
        assert!(same == measure && row == ROWS as u32 - 1);
        measure += 1;
    }
    assert!(crate::request::WANTS_STATUS << PROFILE_BITS != 0);
    assert!(PARKS_IN_SHARED_LOCK >> KINDS != 0 && PARKS_IN_SHARED_LOCK < 1 << 16);
    assert!(crate::limits::MAX_SLOTS <= 1 << 16);
    assert!(crate::limits::MAX_CHUNKS < COMING as usize);
};
