//! Where the time of a request went: the waterfall.
//!
//! Only of a request that has the thread to itself on which its first byte was received: none that began there before is
//! unanswered, none begins there before it is answered itself, and no other thread sends its answer. From its first byte
//! to the last one of its answer the thread does nothing else then, so that the kinds of time the thread was in are those
//! that the request took. They are summed up in a [`Flight`], a place that the thread shares with those whose numbers are
//! the same in the low bits.
//!
//! When another begins there, one that was answered may not have ended: what an answer's last byte was is known later
//! ([`crate::request`]). It is [set aside](Answered) until that is known, and left out if its answer went on. Of one whose
//! thread has not left its CPU until the last byte so far there is nothing to keep, as its duration is where its time went:
//! that is a bit of the request ([`crate::request::REQUEST_ON_CPU`]). Nor is it added to the waterfall here: it is in the
//! histograms of its worker ([`crate::schedule::ON_CPU_REQUEST`]), and user space adds it to both.
//!
//! When another has ended, its times are added to the waterfall of its pool, which is a [`crate::schedule::Times`] behind those
//! of the slots: [`ended_ns`](crate::schedule::Times::ended_ns) and the histograms have the time by kind,
//! [`lived_ns`](crate::schedule::Times::lived_ns) the durations, and the first of
//! [`requests`](crate::schedule::Times::requests) their number, raised last. While one is added
//! [`busy`](crate::schedule::Times::busy) is not 0, and the sums do not close. Kinds that it was in for no time are
//! in no histogram: their number is what lacks to that. While lengths are not recorded it is in none of the histograms, and
//! its kinds of no time are not in them either: that is the number at [`UNRECORDED`].
//!
//! A waterfall is a pool's until another needs it. Then threads and tags may still say that they are of the one before, so
//! what they say is a [`ticket`], which has changed, and their requests are in no waterfall.
//!
//! The slowest of each stretch of time are kept whole ([`Slowest`]).

use crate::limits::{ASIDE, FLIGHTS, MAX_SLOTS, MAX_WATERFALLS};
use crate::schedule::KINDS;

/// A thread that requests begin on. 128 bytes.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default)]
pub struct Flight {
    /// Thread id; 0 for none, [`crate::schedule::LET_GO`] while another thread is given the place.
    pub tid: u32,
    /// Requests that began on it, wrapping; only the thread itself adds to it. Those that have no answer yet are what is left of
    /// them without `answered` and `ended`.
    pub begun: u32,
    /// When the request began whose time is taken, `CLOCK_MONOTONIC` ns; 0 for none, [`ENDING`] while it is accounted for.
    pub begin_ns: u64,
    /// Not zero when an interval was added to `passed_ns` that is to be cleared before the next request.
    pub passed: u32,
    /// Requests that the thread itself has answered of those that began on it, wrapping; only it adds to it.
    pub answered: u32,
    /// Requests of those that began on it that others have answered, or that have ended without, wrapping.
    pub ended: u32,
    /// Zero.
    pub padding: u32,
    /// Time by kind since it began, ns, without the interval that is not over, and less what of the first one was before it;
    /// wrapping.
    pub passed_ns: [u64; KINDS],
}

/// A request until what was sent last of its answer: of a [`Flight`], at the same index, or, behind those, one that is set
/// aside ([`aside_of`]). 128 bytes.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default)]
pub struct Answered {
    /// Of one that is set aside, when it began; 0 for none, [`ENDING`] while it is changed. Written last.
    pub begin_ns: u64,
    /// When the last byte so far of its answer was sent; not after it began: that of the one before, as of this one nothing
    /// is noted.
    pub answer_ns: u64,
    /// The thread.
    pub tid: u32,
    /// Thread group id.
    pub pid: u32,
    /// [`ticket`] of the waterfall of its pool.
    pub waterfall: u32,
    /// How it was answered so far, as an outcome of [`crate::request`].
    pub outcome: u32,
    /// Time by kind until `answer_ns`, ns.
    pub time_ns: [u64; KINDS],
}

/// Where the flight of a thread is.
#[inline(always)]
pub const fn flight_of(tid: u32) -> u32 {
    tid % FLIGHTS as u32
}

/// Where a request is that is set aside, among the [`Answered`].
#[inline(always)]
pub const fn aside_of(begin_ns: u64) -> u32 {
    let place = begin_ns.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - ASIDE.trailing_zeros());
    FLIGHTS as u32 + place as u32
}

/// [`Flight::begin_ns`] that no request has.
pub const ENDING: u64 = 1;

/// Where in [`crate::schedule::Times::requests`] of a waterfall the number of those is whose times are in the sums alone.
pub const UNRECORDED: usize = 1;

/// Requests that are kept of each stretch of time.
pub const SLOWEST: usize = 10;

/// A stretch of time is 2^33 ns, 8.6 s: no division is needed to know which one it is.
pub const STRETCH_SHIFT: u32 = 33;

/// Stretches whose requests can be read: the one that lasts and the one before.
pub const STRETCHES: usize = 2;

/// The slowest requests that ended in one stretch of time. 1312 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Slowest {
    /// Not zero while a program is at it.
    pub lock: u32,
    /// Raised before and after each change: odd while there is one.
    pub changes: u32,
    /// Which stretch, `CLOCK_MONOTONIC` shifted right by [`STRETCH_SHIFT`].
    pub stretch: u64,
    /// The shortest of `requests`, ns; 0 while there is room.
    pub least_ns: u64,
    /// How many of `requests` there are.
    pub length: u32,
    /// Index of the shortest, when there is no room.
    pub least: u32,
    /// In no order.
    pub requests: [SlowRequest; SLOWEST],
}

/// One request. 128 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct SlowRequest {
    /// When its first byte was received, `CLOCK_MONOTONIC` ns.
    pub begin_ns: u64,
    /// From then to the last byte of its answer.
    pub duration_ns: u64,
    /// Thread group id of its worker.
    pub pid: u32,
    /// The thread.
    pub tid: u32,
    /// An outcome of [`crate::request`].
    pub outcome: u32,
    /// Zero.
    pub padding: u32,
    /// Where the thread was meanwhile, by kind, ns.
    pub time_ns: [u64; KINDS],
}

/// Where what a pool wants to know has the ticket of its waterfall, or 0.
const TICKET_SHIFT: u32 = 18;
const TICKET_MASK: u32 = 0x3ff;
const NUMBER_BITS: u32 = 7;

/// What a pool has that has the waterfall with this number, from 1, and which turn it is that the number has a pool. One of
/// eight turns ago is taken for the same. [`crate::schedule::Times::parks`] of the waterfall is its ticket.
pub const fn ticket(number: u32, turn: u32) -> u32 {
    (number | turn << NUMBER_BITS) & TICKET_MASK
}

/// The number of the waterfall of a ticket, from 1; 0 of none.
#[inline(always)]
pub const fn number_of(ticket: u32) -> u32 {
    ticket & ((1 << NUMBER_BITS) - 1)
}

/// What a pool wants to know, with the ticket of its waterfall in the place of the one before.
pub const fn with_ticket(parks: u32, ticket: u32) -> u32 {
    parks & !(TICKET_MASK << TICKET_SHIFT) | (ticket & TICKET_MASK) << TICKET_SHIFT
}

/// The ticket of a pool's waterfall; 0 if it has none.
#[inline(always)]
pub const fn ticket_of(parks: u32) -> u32 {
    parks >> TICKET_SHIFT & TICKET_MASK
}

/// Where the waterfall with a number, from 1, is among the times.
#[inline(always)]
pub const fn index_of(number: u32) -> u32 {
    MAX_SLOTS as u32 + number - 1
}

/// Where the slowest requests of a waterfall and a stretch are; nowhere for number 0.
#[inline(always)]
pub const fn slowest_of(number: u32, stretch: u64) -> u32 {
    let first = number.wrapping_sub(1).wrapping_mul(STRETCHES as u32);
    first.wrapping_add((stretch % STRETCHES as u64) as u32)
}

const _: () = {
    assert!(size_of::<Flight>() == 128);
    assert!(size_of::<Answered>() == 128);
    assert!(ASIDE.is_power_of_two());
    assert!(size_of::<SlowRequest>() == 128);
    assert!(size_of::<Slowest>() == 32 + SLOWEST * 128);
    assert!(MAX_WATERFALLS < 1 << NUMBER_BITS);
    assert!(crate::request::WANTS_STATUS < 1 << TICKET_SHIFT);
    // Whatever a pool wants to know has room in a tag beside its profile.
    assert!(
        crate::schedule::parks_of(crate::schedule::wishes(0, TICKET_MASK << TICKET_SHIFT))
            == TICKET_MASK << TICKET_SHIFT
    );
};
