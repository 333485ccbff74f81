//! Whether a worker is busy: while any of its threads is not parked, or a request is in flight. From there to where it is
//! no longer is a span of work.

use core::intrinsics::{AtomicOrdering, atomic_xadd};

use collector_ebpf::schedule::{SPAN, THREAD_BUSY, THREAD_HISTOGRAMS, Times, parks_in};

use crate::add_u64;
use crate::histograms::{discard, record};

/// A worker begins to be followed, or does again.
#[inline(always)]
pub(crate) fn begin_work(times: *mut Times, parks: u32, partial: bool, now: u64) {
    // SAFETY: callers pass a pointer into the array.
    let work = unsafe { &raw mut (*times).work };
    // SAFETY: fields of the map.
    unsafe {
        (*times).parks = parks;
        if (*work).begin_ns == 0 {
            (*work).begin_ns = now;
            if partial {
                // What it did before nobody has seen: it is taken for one that has worked, and has been as it is since now.
                (*work).ready_ns = now;
                (*work).worked_ns = now;
                (*work).since_ns = now;
            }
            return;
        }
        let gap_ns = now - (*work).end_ns;
        (*work).begin_ns += gap_ns;
        if (*work).ready_ns != 0 {
            (*work).ready_ns += gap_ns;
        }
        if (*work).worked_ns != 0 {
            (*work).worked_ns += gap_ns;
        }
    }
}

/// A thread whose place says what it was is now in a kind of time: it may have ceased to be parked, or begun to. The
/// worker is busy while any is not. Returns the place with what it is now.
///
/// Threads on other CPUs do the same at the same time. Whoever takes the count from zero or to it has the time added, and
/// the adds come to the same in any order.
#[inline(always)]
pub(crate) fn turn(times: *mut Times, place: u32, kind: u32, now: u64) -> u32 {
    let parked = is_parked(times, kind);
    if parked == (place & THREAD_BUSY == 0) {
        return place;
    }
    if !parked {
        rise(times, 1, now);
        return place | THREAD_BUSY;
    }
    fall(times, 1, place & THREAD_HISTOGRAMS != 0, now);
    place & !THREAD_BUSY
}

/// A thread of a worker waits for work in this kind of time.
#[inline(always)]
pub(crate) fn is_parked(times: *const Times, kind: u32) -> bool {
    // SAFETY: callers pass a pointer into the array.
    let parks = unsafe { (*times).parks };
    // SAFETY: as above; others change it.
    parks_in(parks, kind, || unsafe { (&raw const (*times).followed).read_volatile() })
}

/// One more thing keeps a worker busy: a thread that is not parked, or a request in flight, each with what it adds.
#[inline(always)]
pub(crate) fn rise(times: *mut Times, more: u64, now: u64) {
    // SAFETY: callers pass a pointer into the array.
    let (busy, work) = unsafe { (&raw mut (*times).busy, &raw mut (*times).work) };
    // SAFETY: an aligned integer of the map.
    let before = unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::SeqCst }>(busy, more) };
    if Times::reasons_of(before) == 0 {
        // SAFETY: fields of the map.
        unsafe {
            add_u64(&raw mut (*work).busy_ns, now.wrapping_neg());
            (*work).since_ns = now;
            if (*work).ready_ns != 0 && (*work).worked_ns == 0 {
                (*work).worked_ns = now;
            }
        }
    }
}

/// One thing less.
#[inline(always)]
pub(crate) fn fall(times: *mut Times, less: u64, histograms: bool, now: u64) {
    // SAFETY: callers pass a pointer into the array.
    let busy = unsafe { &raw mut (*times).busy };
    // SAFETY: an aligned integer of the map.
    let before = unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::SeqCst }>(busy, less.wrapping_neg()) };
    if Times::reasons_of(before) == 1 {
        end_span(times, histograms, now);
    }
}

/// All threads of a worker are parked, and no request is in flight.
#[inline(always)]
fn end_span(times: *mut Times, wanted: bool, now: u64) {
    // SAFETY: callers pass a pointer into the array.
    let work = unsafe { &raw mut (*times).work };
    // SAFETY: fields of the map.
    unsafe {
        let since_ns = (*work).since_ns;
        add_u64(&raw mut (*work).busy_ns, now);
        (*work).since_ns = now;
        if (*work).ready_ns == 0 {
            (*work).ready_ns = now;
            return;
        }
        add_u64(&raw mut (*work).spans, 1);
        // The first one of a worker that was busy already when it began to be followed.
        let known = since_ns != (*work).begin_ns && since_ns <= now;
        if !known || wanted && !record(times, SPAN, now - since_ns) {
            discard(times, SPAN);
        }
    }
}

/// A thread is gone: what it left undone is no span.
#[inline(always)]
pub(crate) fn end_work(times: *mut Times, place: u32, now: u64) {
    // SAFETY: callers pass a pointer into the array.
    let (busy, work) = unsafe { (&raw mut (*times).busy, &raw mut (*times).work) };
    // SAFETY: fields of the map.
    unsafe {
        (*work).end_ns = now;
        if place & THREAD_BUSY != 0
            && Times::reasons_of(atomic_xadd::<u64, u64, { AtomicOrdering::SeqCst }>(busy, u64::MAX)) == 1
        {
            add_u64(&raw mut (*work).busy_ns, now);
            (*work).since_ns = now;
        }
    }
}
