//! Requests: what a worker is asked over a connection, and how long its answer takes.
//!
//! A request begins with the first byte that a worker receives on a connection somebody else opened, and ends with the
//! last byte that it sends before it receives the next. Standard input and output are such a connection where system calls
//! are watched. It is in flight until the first byte of the answer. While it is
//! not known to have ended it has a place in the table of [`Request`]s, found by the connection; a connection on which
//! nothing happens has none.
//!
//! What an answer's last byte was is known when the next request comes, or the connection is closed, or when nothing has
//! followed for [`QUIET_NS`]: then user space has it accounted ([`Finish`]).

/// Ways in which a request ends.
pub const OUTCOMES: usize = 6;

/// An HTTP/1 answer with status 200 to 299; 300 to 399, 400 to 499 and 500 to 599 are the next three.
pub const OK_2XX: u32 = 0;
/// Answered, with something else than HTTP/1 in clear text.
pub const ANSWERED: u32 = 4;
/// The connection was closed, or its worker ended, before any answer.
pub const ABORTED: u32 = 5;

/// Bytes that tell the status of an HTTP/1 answer: `HTTP/1.1 200`.
pub const STATUS_LINE: usize = 12;

/// An answer is taken for complete when nothing more of it was sent for so long, ns. As long as the connection has no
/// room for more it is not.
pub const QUIET_NS: u64 = 2_000_000_000;

/// A request that is in progress, or whose answer may still go on. 64 bytes.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default)]
pub struct Request {
    /// `LOCKED` while a program is at it, `CLOSED` if its connection was closed meanwhile.
    pub lock: u32,
    /// Slot of the worker in the low 16 bits, then 8 bits of the outcome so far, then `REQUEST_…` bits.
    pub place: u32,
    /// When its first byte was received, `CLOCK_MONOTONIC` ns.
    pub begin_ns: u64,
    /// When the last byte so far of its answer was sent; 0 while there is none.
    pub answer_ns: u64,
    /// Address of the `struct sock` of its connection; 0 for standard input and output.
    pub sock: u64,
    /// Number of the inode of its connection, by which that is told apart from one that had the same addresses before it.
    pub inode: u64,
    /// Thread that it counts for as unanswered ([`crate::waterfall`]), or 0.
    pub tid: u32,
    /// Zero: fills the cache line, so that workers on different CPUs do not meet in one.
    pub padding: [u32; 5],
}

/// In [`Request::lock`]
pub const LOCKED: u32 = 1;
/// In [`Request::lock`]: who has it locked is to account for it.
pub const CLOSED: u32 = 2;

/// In [`Request::place`]: its pool wants histograms.
pub const REQUEST_HISTOGRAMS: u32 = 1 << 24;
/// In [`Request::place`]: when the last byte so far of its answer was sent, something had come that was not read yet.
pub const REQUEST_LEFT: u32 = 1 << 25;

/// In [`Request::place`]: what was received may need no answer, by its length and what can be seen of it. Then it was no
/// request unless it is answered, and it is not in flight.
pub const REQUEST_PROVISIONAL: u32 = 1 << 26;

/// In [`Request::place`]: the thread that it began on had nothing else to do, and did not leave its CPU until the last byte so
/// far of the answer was sent. Where its time went is known by its duration.
pub const REQUEST_ON_CPU: u32 = 1 << 27;

impl Request {
    /// The slot in a place.
    #[inline(always)]
    pub const fn slot_of(place: u32) -> u32 {
        place & 0xffff
    }

    /// The outcome in a place.
    #[inline(always)]
    pub const fn outcome_of(place: u32) -> u32 {
        place >> 16 & 0xff
    }

    /// The place with another outcome.
    #[inline(always)]
    pub const fn with_outcome(place: u32, outcome: u32) -> u32 {
        place & !0x00ff_0000 | (outcome & 0xff) << 16
    }
}

/// Requests that share a set.
pub const REQUEST_WAYS: usize = 8;

/// Which connections the requests of a set are of: the addresses of their inodes, 0 where a place is free. 64 bytes.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default)]
pub struct Connections {
    /// By way; the request of way `w` in set `s` has the index `s * REQUEST_WAYS + w`.
    pub keys: [u64; REQUEST_WAYS],
}

/// The set of a connection. Inodes are far apart and aligned, so the product is taken from its top.
#[inline(always)]
pub const fn set_of(key: u64) -> u32 {
    (key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - crate::limits::REQUEST_SETS.trailing_zeros())) as u32
}

/// Context of the program that accounts for a request which nothing else ends. 32 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Finish {
    /// Of the request.
    pub index: u32,
    /// Why to do it whatever it waits for, or 0.
    pub abandon: u32,
    /// Whose it has to be.
    pub key: u64,
    /// Only if its answer was sent before this time, `CLOCK_MONOTONIC` ns.
    pub quiet_since_ns: u64,
    /// When an unanswered one is taken to have ended.
    pub end_ns: u64,
}

/// In [`Finish::abandon`]: its worker is gone.
pub const WORKER_GONE: u32 = 1;
/// In [`Finish::abandon`]: requests are followed no more. What was not answered is in no count.
pub const FOLLOWED_NO_MORE: u32 = 2;

/// What a pool wants to know of requests, in its wishes: anything.
pub const WANTS_REQUESTS: u32 = 1 << 16;
/// What a pool wants to know of requests, in its wishes: the status of HTTP/1 answers.
pub const WANTS_STATUS: u32 = 1 << 17;

/// How a system call that sends names the first bytes: not at all.
pub const NO_BYTES: u8 = 0;
/// How a system call that sends names the first bytes: its second argument points to them.
pub const BYTES: u8 = 1;
/// How a system call that sends names the first bytes: its second argument is an array of `struct iovec`.
pub const VECTORS: u8 = 2;
/// How a system call that sends names the first bytes: its second argument is a `struct msghdr`.
pub const MESSAGE: u8 = 3;

/// What a system call does with bytes: nothing that is looked at.
pub const NO_MOVE: u8 = 0;
/// What a system call does with bytes: it receives them from the descriptor that is its first argument.
pub const RECEIVES: u8 = 1;
/// What a system call does with bytes: the same, and its third argument are flags, which may say to leave them there.
pub const RECEIVES_BY_MESSAGE: u8 = 2;
/// What a system call does with bytes: the same, and its fourth argument are the flags.
pub const RECEIVES_BY_FLAGS: u8 = 3;
/// What a system call does with bytes: it sends them to the descriptor that is its first argument.
pub const SENDS: u8 = 4;
/// What a system call does with bytes: it receives them from the descriptor that is its first argument, and sends them to
/// the one that is its third.
pub const SPLICES: u8 = 5;

const _: () = {
    assert!(size_of::<Request>() == 64);
    assert!(size_of::<Connections>() == 64);
    assert!(size_of::<Finish>() == 32);
    assert!(crate::limits::REQUEST_SETS.is_power_of_two());
};
