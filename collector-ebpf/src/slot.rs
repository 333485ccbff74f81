//! What the kernel keeps per tracked process: a [`Tag`] on its main thread, and, for workers, a [`Slot`] that
//! user space maps.
//!
//! The slot is the record of the worker, the events are news of it: when the ring buffer had no room for the news,
//! user space still finds here that a worker came, how it ended and what CPU it used. A slot is free, then belongs
//! to one worker until user space has taken its final figures, and only user space gives it back.

use crate::event::{Cpu, Death};
use crate::limits::COMM_LEN;

/// In [`Tag::role`]: its children are workers of [`Tag::pool`].
pub const ROLE_MASTER: u32 = 1;
/// In [`Tag::role`]: it is a worker.
pub const ROLE_WORKER: u32 = 2;

/// A signal on its way, remembered so that a death by it can name the sender. 24 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct SentSignal {
    /// Signal number; 0 when none was seen.
    pub signal: u32,
    /// Pid of the sender, 0 for the kernel.
    pub sender_pid: u32,
    /// Its name.
    pub sender_comm: [u8; COMM_LEN],
}

/// Value of the task storage. 80 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Tag {
    /// Pool number that user space chose.
    pub pool: u32,
    /// `ROLE_…` bits.
    pub role: u32,
    /// Slot number, or [`crate::event::NONE`].
    pub slot: u32,
    /// Raised once by the thread that reports the exit, so that two last threads do not report two.
    pub exits_reported: u32,
    /// The last SIGKILL.
    pub kill: SentSignal,
    /// The last other signal whose default is to end the process.
    pub other: SentSignal,
    /// What the pool that it is a worker of wants to know of the scheduler ([`crate::schedule::wishes`]).
    pub wishes: u32,
    /// 1 while a sender writes `kill` or `other`, so that two do not write into each other.
    pub sending: u32,
    /// Number of the pass that last told the figures of the process. In a second run of that pass they are left out, also
    /// those of a process whose place among what was told ([`crate::task::Told`]) is another's.
    pub told_in: u32,
    /// What the pool that its children are workers of wants to know.
    pub children_wishes: u32,
}

/// In [`TagAccess::operation`]: read pool, role, slot and both wishes of the tag.
pub const ACCESS_GET: u32 = 0;
/// In [`TagAccess::operation`]: give the process the tag, or change pool, role, slot and both wishes of the one it has.
pub const ACCESS_SET: u32 = 1;
/// In [`TagAccess::operation`]: remove the tag, if there is one.
pub const ACCESS_DELETE: u32 = 2;

/// In [`TagAccess::outcome`]: done.
pub const ACCESS_DONE: u32 = 0;
/// In [`TagAccess::outcome`]: there is no such process, or another one under its pid.
pub const ACCESS_GONE: u32 = 1;
/// In [`TagAccess::outcome`]: there is no tag to read.
pub const ACCESS_NONE: u32 = 2;
/// In [`TagAccess::outcome`]: there was no memory for the tag.
pub const ACCESS_FAILED: u32 = 3;

/// Length of a clock tick of `/proc` (`USER_HZ` is 100), ns. The start of a process is known by the tick where it was
/// read from there.
pub const TICK_NS: u64 = 10_000_000;

/// Context of the program that reads and writes tags. 104 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct TagAccess {
    /// Thread group id.
    pub pid: u32,
    /// One of `ACCESS_GET`, `ACCESS_SET` and `ACCESS_DELETE`.
    pub operation: u32,
    /// Start of the process, `CLOCK_BOOTTIME` ns, exact to the tick.
    pub start_ns: u64,
    /// One of `ACCESS_DONE`, `ACCESS_GONE`, `ACCESS_NONE` and `ACCESS_FAILED`; set by the program.
    pub outcome: u32,
    /// Zero.
    pub padding: u32,
    /// Pool, role, slot and both wishes to be set, or as they were read; the rest is zero.
    pub tag: Tag,
}

/// What both sides share about the whole. 128 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Control {
    /// The lowest slot number that nobody has had; raised atomically by both sides.
    pub next_slot: u32,
    /// Not zero while the reader of events sleeps until one comes. Set by user space.
    pub reader_waits: u32,
    /// The most that any pool gets of what it wants to know of the scheduler, one of [`crate::schedule`]'s `PROFILE_…`.
    /// Set by user space.
    pub ceiling: u32,
    /// The highest chunk number that was handed out; raised atomically.
    pub last_chunk: u32,
    /// Zero, which the verifier does not know.
    pub zero: u64,
    /// Thread group id whose kernel stacks an iteration tells. Set by user space.
    pub stacks_of: u32,
    /// How far from the begin of a thread's stack its registers are that were saved when it entered the kernel, bytes; 0
    /// until the first iteration over all processes has found it out.
    pub registers_at: u32,
    /// Zero: fills the cache line, which every switch reads.
    pub padding: [u32; 8],
    /// How often a thread began or ceased to be followed, wrapping; raised atomically after it.
    pub follow_changes: u32,
    /// Zero.
    pub padding_of_changes: [u32; 15],
}

/// [`Slot::phase`]: nobody's.
pub const FREE: u32 = 0;
/// [`Slot::phase`]: its worker lives.
pub const LIVE: u32 = 1;
/// [`Slot::phase`]: its worker ended; `death` and a preliminary `cpu` are set.
pub const EXITED: u32 = 2;
/// [`Slot::phase`]: its worker ended and has left the CPU for good; `cpu` is final. It may not have been reaped.
pub const FINAL: u32 = 3;
/// [`Slot::phase`]: its worker is gone; `cpu` is final.
pub const REAPED: u32 = 4;

/// The record of one worker. 128 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Slot {
    /// `FREE`, `LIVE`, `EXITED`, `FINAL` or `REAPED`, in this order; written after the fields that it vouches for.
    pub phase: u32,
    /// Thread group id.
    pub pid: u32,
    /// Start, `CLOCK_BOOTTIME` ns.
    pub start_ns: u64,
    /// Thread group id of its parent.
    pub parent: u32,
    /// Pool number.
    pub pool: u32,
    /// When it was forked, `CLOCK_MONOTONIC` ns.
    pub forked_at_ns: u64,
    /// When its last thread ended, `CLOCK_MONOTONIC` ns.
    pub exited_at_ns: u64,
    /// How it ended.
    pub death: Death,
    /// CPU at its end.
    pub cpu: Cpu,
    /// When it left the kernel, `CLOCK_MONOTONIC` ns.
    pub reaped_at_ns: u64,
    /// Its name when it was forked.
    pub comm: [u8; COMM_LEN],
}

const _: () = {
    assert!(size_of::<SentSignal>() == 24);
    assert!(size_of::<Tag>() == 80);
    assert!(size_of::<TagAccess>() == 104);
    assert!(size_of::<Control>() == 128);
    assert!(size_of::<Slot>() == 128);
};
