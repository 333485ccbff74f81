//! Requests: what a worker is asked over a connection, and how long its answer takes.
//!
//! A request begins with the first byte that a worker receives on a connection somebody else opened, and ends with the
//! last byte that it sends before it receives the next. Standard input and output are such a connection where system calls
//! are watched. It is in flight until the first byte of the answer, or, if TCP_CORK (tcp(7)) holds that back, until more follows. While it is
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
    /// By what its connection is told apart from one that had the same addresses before it.
    pub identity: u64,
    /// Thread that it counts for as unanswered ([`crate::waterfall`]), or 0.
    pub tid: u32,
    /// What the first part of its answer tells, which TCP_CORK (tcp(7)) holds back until more is sent: 1 more than the outcome. 0 if
    /// there was none. Nothing was answered before [`Request::answer_ns`] says when.
    pub corked: u32,
    /// Address of the inode of its connection, as among the keys of its set, so that whoever is right about the way has no
    /// need of those; 0 while the place is free.
    pub key: u64,
    /// Zero: fills the cache line, so that workers on different CPUs do not meet in one.
    pub fill: u64,
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

/// In [`Request::place`]: user space has looked at it when all of its answer so far was held back.
pub const REQUEST_SEEN_HELD: u32 = 1 << 28;

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

    /// It has begun, and no part of an answer was sent, also none that is held back.
    pub const fn is_unanswered(&self) -> bool {
        self.answer_ns == 0 && self.corked == 0
    }

    /// It is one of those that keep its worker busy: at most a part of its answer that is held back was sent.
    pub const fn is_in_flight(&self) -> bool {
        self.answer_ns == 0 && self.place & REQUEST_PROVISIONAL == 0
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
    /// By way; [`index_of`] says where the request of each is.
    pub keys: [u64; REQUEST_WAYS],
}

/// The set of a connection.
///
/// The kernel has inodes of sockets side by side in blocks of 16 KiB and more (`sock_inode_cache`, 832 bytes each): those of
/// a block have sets side by side, so that the requests of connections that were opened one after the other are in few pages,
/// whose translations the CPU keeps. Blocks are anywhere in memory, so where theirs begin is taken from the top of a product.
#[inline(always)]
pub const fn set_of(key: u64) -> u32 {
    const SETS: usize = crate::limits::REQUEST_SETS;
    let first = (key >> BLOCK_BITS).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - SETS.trailing_zeros());
    let inside = (key >> INODE_BITS) % (1 << (BLOCK_BITS - INODE_BITS));
    (first + inside) as u32 % SETS as u32
}

/// Inodes are further apart than this power of two.
const INODE_BITS: u32 = 9;
/// Length of a block, as a power of two.
const BLOCK_BITS: u32 = 14;

/// The index of the request of a way of a set. Those of one way are side by side, and mostly the first way is enough.
#[inline(always)]
pub const fn index_of(set: u32, way: u32) -> u32 {
    way * crate::limits::REQUEST_SETS as u32 + set
}

/// The set of an index.
#[inline(always)]
pub const fn set_of_index(index: u32) -> u32 {
    index % crate::limits::REQUEST_SETS as u32
}

/// The way of an index.
#[inline(always)]
pub const fn way_of_index(index: u32) -> u32 {
    index / crate::limits::REQUEST_SETS as u32
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
    /// Only if its answer was sent before this time, `CLOCK_MONOTONIC` ns, or all of it was held back already when this was last
    /// asked.
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

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;
    use crate::limits::REQUEST_SETS;

    /// Length of an element of `sock_inode_cache`.
    const INODE: u64 = 832;

    proptest! {
        #[test]
        fn every_request_has_an_index(set in 0..REQUEST_SETS as u32, way in 0..REQUEST_WAYS as u32) {
            let index = index_of(set, way);
            prop_assert!((index as usize) < REQUEST_SETS * REQUEST_WAYS);
            prop_assert_eq!((set_of_index(index), way_of_index(index)), (set, way));
        }

        #[test]
        fn sockets_of_one_block_share_no_set_and_few_pages(block in 0..1u64 << 32) {
            let keys = (0..(1 << BLOCK_BITS) / INODE).map(|inode| (block << BLOCK_BITS) + inode * INODE + 128);
            let sets: HashSet<u32> = keys.clone().map(set_of).collect();
            prop_assert_eq!(sets.len(), keys.count());
            let pages: HashSet<usize> = sets.iter().map(|set| *set as usize * size_of::<Request>() / 4096).collect();
            // They may begin at the end of the table, and go on at its begin.
            prop_assert!(pages.len() <= 2, "{pages:?}");
        }
    }

    /// Half as many connections with a request in progress as there are places, in blocks that are anywhere.
    #[test]
    fn blocks_spread() {
        let mut taken = [0_usize; REQUEST_SETS];
        let mut random = 0x2545_f491_4f6c_dd1d_u64;
        for _ in 0..REQUEST_SETS * REQUEST_WAYS / 2 / 19 {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let block = random >> 30 << BLOCK_BITS;
            for inode in 0..19 {
                taken[set_of(block + inode * INODE) as usize] += 1;
            }
        }
        let none_left: usize = taken.iter().map(|taken| taken.saturating_sub(REQUEST_WAYS)).sum();
        assert!(none_left < REQUEST_SETS * REQUEST_WAYS / 2 / 50, "{none_left} of them have no place");
    }
}
