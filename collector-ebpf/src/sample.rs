//! Stacks of workers' threads: what the sampling programs count, and what they must know of address spaces to find
//! callers without frame pointers.
//!
//! None of these maps exists while nobody asks for a profile.

use crate::limits::COMM_LEN;
use crate::python::{FRAME_BYTES, Python};
use crate::schedule::KINDS;

/// Frames of a stack that are kept, of the kernel and of the program each (`PERF_MAX_STACK_DEPTH` of
/// `include/uapi/linux/perf_event.h`).
pub const MAX_FRAMES: usize = 127;

/// Stacks that are told apart at a time, each of one thread; a power of two.
pub const MAX_STACKS: usize = 16_384;

/// Addresses of all their frames together.
pub const MAX_WORDS: usize = 1 << 20;

/// Address spaces that are known at a time.
pub const MAX_SPACES: usize = 16_384;

/// Ranges of code of all address spaces together. Numbers have to fit 16 bits.
pub const MAX_CODE: usize = 65_536;

/// Rows of all modules together, if user space makes the map no larger.
pub const MAX_ROWS: usize = 1 << 20;

/// Bytes of the ring buffer of processes whose address space is asked for, 16 each: no page is larger.
pub const STRANGERS_BYTES: usize = 65_536;

/// Where one stack may be in the table, from where its hash says on.
pub const PLACES: usize = 16;

/// What a process has mapped, in the map of address spaces under its thread group id. 64 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Space {
    /// Index of its first range of code, from 1. Whoever has the same ones may share them.
    pub first: u32,
    /// How many; ascending by address, none overlaps the next.
    pub count: u32,
    /// `mm_struct.start_code`: another one, and it is another program's address space. 0: whatever program it is, there is nothing to
    /// be told of it now.
    pub start_code: u64,
    /// `mm_struct.start_brk`, which is at random for each execve(2): the children of a process have its own.
    pub start_brk: u64,
    /// If it maps more, or nothing could be told, it is to be asked for again from then on, `CLOCK_MONOTONIC` ns.
    pub again_ns: u64,
    /// Where the frames of its interpreter are.
    pub python: Python,
}

/// A range of code that is mapped. 32 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Code {
    /// Its first address.
    pub start: u64,
    /// The first address after it.
    pub end: u64,
    /// Where the lowest virtual address of the module's file is, or would be.
    pub base: u64,
    /// Index of the module's first row ([`crate::unwind::Row`]).
    pub first_row: u32,
    /// How many it has. None: its frames have frame pointers, or so it is hoped.
    pub rows: u32,
}

/// [`Stack::state`]: a thread on a CPU.
pub const STATE_ON_CPU: u8 = 1;
/// [`Stack::state`]: a thread that left its CPU and wanted to run on.
pub const STATE_PREEMPTED: u8 = 2;
/// [`Stack::state`]: a thread that left its CPU to wait for something.
pub const STATE_BLOCKED: u8 = 3;

/// Threads that wait at a time.
pub const MAX_WAITS: usize = 65_536;

/// A thread that left its CPU, in the map of waits under its thread id. 16 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Wait {
    /// One more than the index of its stack in the table; 0 if it has come back.
    pub stack: u32,
    /// 0 while it is blocked, 1 from when it could run again.
    pub runnable: u32,
    /// Since when it is what it is, `CLOCK_MONOTONIC` ns.
    pub since_ns: u64,
}

/// Tails that are kept until they are read; a power of two.
pub const MAX_TAILS: usize = 4096;

/// Pools with limits of their own for tails.
pub const MAX_POOLS: usize = 1024;

/// A wait that was as long as those are that make requests slow, or longer. 32 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Tail {
    /// When it was over, `CLOCK_MONOTONIC` ns.
    pub end_ns: u64,
    /// How long it was, ns.
    pub waited_ns: u64,
    /// Index of its stack in the table.
    pub stack: u32,
    /// A kind of [`crate::schedule`]: why it was blocked, or that it waited for a CPU.
    pub kind: u32,
    /// One more than how many there were before, wrapping. Set last, and to 0 first.
    pub number: u32,
    /// Number of its pool.
    pub pool: u32,
}

/// In [`Stack::flags`]: the outermost frame is among its frames.
pub const COMPLETE: u8 = 1;
/// In [`Stack::flags`]: the address space was not known yet; frame pointers were hoped for.
pub const SPACE_UNKNOWN: u8 = 2;
/// In [`Stack::flags`]: there was no room for its frames, it has none.
pub const NO_ROOM: u8 = 4;
/// In [`Stack::flags`]: it is all there. Set last.
pub const READY: u8 = 8;
/// In [`Stack::flags`]: a frame is nowhere in the code of its address space, or not yet.
pub const CODE_UNKNOWN: u8 = 16;

/// One stack of one thread, and how often it was found. 104 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Stack {
    /// Of all that tells it from others; 0 if the place is free.
    pub hash: u64,
    /// How often it was found on a CPU; or how many waits there were that are over.
    pub count: u64,
    /// How long it was on a CPU, or blocked, altogether, ns; cycles if those are what is counted.
    pub time_ns: u64,
    /// How often it waited for a CPU and got it.
    pub queued: u64,
    /// How long altogether, ns.
    pub queued_ns: u64,
    /// Start of the process, `CLOCK_BOOTTIME` ns.
    pub start_ns: u64,
    /// Thread group id.
    pub pid: u32,
    /// Thread id.
    pub tid: u32,
    /// Number of the worker's pool.
    pub pool: u32,
    /// Index of the address of its innermost frame; those of the kernel come first.
    pub first_word: u32,
    /// Name of the thread.
    pub comm: [u8; COMM_LEN],
    /// Frames of the kernel, below [`MAX_FRAMES`] or as many.
    pub kernel_frames: u8,
    /// Frames of the program. The address of a call, but for the innermost one and one that a signal came upon, of which it
    /// is the next instruction.
    pub user_frames: u8,
    /// `STATE_…`
    pub state: u8,
    /// [`COMPLETE`], [`SPACE_UNKNOWN`], [`NO_ROOM`], [`READY`]
    pub flags: u8,
    /// Why it is blocked, a kind of [`crate::schedule`].
    pub reason: u32,
    /// The address space that its frames are of, as [`Space::first`].
    pub space: u32,
    /// Frames of Python, after those of the program: the address of the code of each, and [`crate::python::ENTRY`].
    pub python_frames: u32,
    /// `mm_struct.start_code` of its process.
    pub start_code: u64,
}

/// Kinds of waits, and more, so that a mask tells the verifier that a kind is one of them.
pub const LEAST: usize = KINDS.next_power_of_two();

/// What the sampling programs and user space share about the whole. 192 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Sampling {
    /// Words that were handed out; raised atomically.
    pub words: u32,
    /// Not 0: whoever asks for an address space is to wake user space up, which is asleep until then. Set by user space, and
    /// reset by who asks.
    pub reader_waits: u32,
    /// The time that a sample of what runs stands for, ns; 0: it stands for the period of its event. Set by user space.
    pub sample_ns: u64,
    /// Not 0: only waits are of interest that are as long as the limits of their pool say, each of them is told as a [`Tail`],
    /// and on each CPU stacks are looked at no more often than once in so many ns, but for a few at once. Set by user space.
    pub walks_apart_ns: u64,
    /// Tails that were told, wrapping; raised atomically.
    pub tails: u32,
    /// Zero: fills the cache line.
    pub padding: [u32; 7],
    /// When sampling began with all stacks forgotten, `CLOCK_MONOTONIC` ns: waits that began before have none. Set by user space.
    pub began_ns: u64,
    /// Waits that were shorter are in no count, by kind of [`crate::schedule`], ns. Set by user space.
    pub least_ns: [u64; LEAST],
}

/// What is counted for each CPU.
pub struct Sampled;

impl Sampled {
    /// Samples and waits for which there was no place in the table.
    pub const NO_PLACE: u32 = 0;
    /// Waits whose end was not seen.
    pub const UNSEEN: u32 = 1;
    /// Waits whose stack was not looked at, as that would have been too often.
    pub const PASSED_OVER: u32 = 2;
    /// How many of these.
    pub const COUNT: usize = 3;
}

/// Words of a stack that are read at once.
pub const WINDOW: usize = 64;

/// [`Walk::window_at`] as long as none was read: no program has memory there.
pub const NO_WINDOW: u64 = 1 << 63;

/// The stack that is being looked at. One for each CPU and kind of program. 3,776 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Walk {
    /// Next instruction of the frame that is looked at.
    pub ip: u64,
    /// Its stack pointer.
    pub sp: u64,
    /// Its frame pointer.
    pub bp: u64,
    /// Of the frames so far.
    pub hash: u64,
    /// [`Space::first`]
    pub first: u32,
    /// [`Space::count`]
    pub count: u32,
    /// Frames of the program so far.
    pub user_frames: u32,
    /// Frames of the kernel.
    pub kernel_frames: u32,
    /// 1 if the frame that is looked at made a call, 0 if it was interrupted.
    pub called: u32,
    /// [`Stack::flags`]
    pub flags: u32,
    /// Of waits: from when on a stack may be looked at, `CLOCK_MONOTONIC` ns, but for the few that may be at once.
    pub next_ns: u64,
    /// Where the frames of the interpreter are.
    pub python: Python,
    /// The frame of it that is looked at.
    pub python_at: u64,
    /// What is there.
    pub python_frame: [u64; FRAME_BYTES / 8],
    /// Frames of it so far.
    pub python_frames: u32,
    /// Not zero when no more words are read than one at a time: more cannot be.
    pub alone: u32,
    /// Where `window` is in the stack, or [`NO_WINDOW`].
    pub window_at: u64,
    /// Words of the stack, as they were when it was first looked at.
    pub window: [u64; WINDOW],
    /// Addresses of their code, and [`crate::python::ENTRY`].
    pub python_code: [u64; MAX_FRAMES + 1],
    /// Addresses of the frames of the program.
    pub user: [u64; MAX_FRAMES + 1],
    /// Addresses of the frames of the kernel.
    pub kernel: [u64; MAX_FRAMES + 1],
}

/// A rule that was looked up. 16 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Known {
    /// Address, and above it the space. 0: none.
    pub key: u64,
    /// [`crate::unwind::Rule`]
    pub rule: u32,
    /// Zero.
    pub padding: u32,
}

/// Rules that are remembered, for each CPU and kind of program; a power of two.
pub const KNOWN: usize = 1024;

const _: () = {
    assert!(size_of::<Space>() == 64);
    assert!(size_of::<Code>() == 32);
    assert!(size_of::<Stack>() == 104);
    assert!(size_of::<Sampling>() == 192);
    assert!(size_of::<Wait>() == 16);
    assert!(size_of::<Tail>() == 32);
    assert!(size_of::<Walk>() == 3776);
    assert!(size_of::<Known>() == 16);
};
