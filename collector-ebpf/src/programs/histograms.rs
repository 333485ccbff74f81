//! Histograms of workers: which bucket counts a value, and where the worker's directories and chunks have it.

use core::hint::black_box;
use core::intrinsics::{AtomicOrdering, atomic_cxchg, atomic_or, atomic_xadd, atomic_xor};

use collector_ebpf::event::Counter;
use collector_ebpf::histogram::{SUB_BUCKETS, index_by};
use collector_ebpf::limits::MAX_CHUNKS;
use collector_ebpf::schedule::{
    CHUNK_WORDS, COMING, Chunk, DIRECTORIES, FRESH, KEPT, PROFILE_HISTOGRAMS, Times, directory_of, entry_of,
    shift_of,
};

use crate::kernel::opaque;
use crate::{CHUNKS, CONTROL, FREE_CHUNKS, TIMES, add_u32, count, free_list};

/// A value of a measure is in no histogram.
#[inline(always)]
pub(crate) fn discard(times: *mut Times, measure: u32) {
    // SAFETY: callers pass a pointer into the array, and a measure below the length.
    add_u32(unsafe { &raw mut (*times).discarded[measure as usize] }, 1);
}

/// Lengths are recorded now.
#[inline(always)]
pub(crate) fn records() -> bool {
    // SAFETY: a valid pointer into the array; user space sets it.
    CONTROL.get_ptr(0).is_some_and(|control| unsafe { (*control).ceiling } >= PROFILE_HISTOGRAMS)
}

/// Adds one to the bucket of a value. False if it is not wanted now, or there was no chunk for it.
#[inline(always)]
pub(crate) fn record(times: *mut Times, measure: u32, value: u64) -> bool {
    let Some(control) = CONTROL.get_ptr(0) else { return false };
    // SAFETY: a valid pointer into the array; user space sets it.
    if unsafe { (*control).ceiling } < PROFILE_HISTOGRAMS {
        return false;
    }
    // SAFETY: as above; volatile, because it is always zero.
    let zero = unsafe { (&raw const (*control).zero).read_volatile() };
    let bucket = index_by(value, zero) as u32;
    let (directory, entry) = (directory_of(measure), entry_of(measure, bucket / SUB_BUCKETS as u32));
    // SAFETY: a pointer into the array, and an index below its length.
    let word = unsafe { &raw mut (*times).directories[(directory / 2) as usize % (DIRECTORIES / 2)] };
    let Some(directory) = chunk(word, shift_of(directory)) else { return false };
    // SAFETY: as above.
    let word = unsafe { &raw mut (*directory).words[(entry / 2) as usize % CHUNK_WORDS] };
    let Some(chunk) = chunk(word, shift_of(entry)) else { return false };
    // SAFETY: as above.
    let count = unsafe { &raw mut (*chunk).words[bucket as usize % CHUNK_WORDS] };
    // Before the bit: who takes the count clears the bit first. On arm64 only an add that gives back what was there is in
    // order with what follows; what it was is of no use.
    // SAFETY: an aligned place in a map.
    black_box(unsafe { atomic_xadd::<u32, u32, { AtomicOrdering::SeqCst }>(count, 1) });
    // SAFETY: as above.
    let fresh = unsafe { &raw mut (*directory).words[FRESH + (entry / 32) as usize % (CHUNK_WORDS - FRESH)] };
    let bit = 1 << (entry % 32);
    // SAFETY: a valid, aligned integer of the map. Mostly it is set already.
    unsafe {
        if fresh.read_volatile() & bit == 0 {
            atomic_or::<u32, u32, { AtomicOrdering::Relaxed }>(fresh, bit);
        }
    }
    true
}

/// A length that is not known.
pub(crate) const UNKNOWN_NS: u64 = u64::MAX;

/// Adds one to the bucket of a value, or counts it as in none. Global to the verifier, see [`crate::requests`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn record_or_discard(slot: u32, measure: u32, value: u64) -> u32 {
    let Some(times) = TIMES.get_ptr_mut(slot) else { return 0 };
    // A value of its own, so that what is compared is what is used.
    let measure = opaque(u64::from(measure)) as u32;
    if measure < KEPT as u32 && (value == UNKNOWN_NS || !record(times, measure, value)) {
        discard(times, measure);
    }
    0
}

/// The chunk whose number is in a word, which gets one if it has none.
#[inline(always)]
fn chunk(word: *mut u32, shift: u32) -> Option<*mut Chunk> {
    // SAFETY: callers pass an aligned place in a map; another CPU may set the other half.
    let number = || unsafe { word.read_volatile() } >> shift & 0xffff;
    if number() == 0 {
        hand_out(word, shift);
    }
    // Read again, so that all ways that lead here are one to the verifier.
    CHUNKS.get_ptr_mut(number().wrapping_sub(1))
}

/// Puts the number of a free chunk into a word, if there is one left.
///
/// Not inlined: it is rare, and would otherwise be verified on every path that records.
#[inline(never)]
fn hand_out(word: *mut u32, shift: u32) {
    // SAFETY: a pointer into a map, checked by the verifier.
    let known = unsafe { word.read_volatile() };
    if known >> shift & 0xffff != 0 {
        return;
    }
    // Threads of the same worker on other CPUs may want one for either half of the word at the same time. One wins, and
    // the others have none this time.
    let pending = known | COMING << shift;
    // SAFETY: as above, and aligned.
    let (_, mine) = unsafe {
        atomic_cxchg::<u32, { AtomicOrdering::SeqCst }, { AtomicOrdering::SeqCst }>(word, known, pending)
    };
    if mine {
        let number = free_chunk() & COMING;
        // SAFETY: as above.
        unsafe { atomic_xor::<u32, u32, { AtomicOrdering::SeqCst }>(word, (COMING ^ number) << shift) };
    }
}

/// A chunk that nobody has: its number, or 0, which is counted. Global to the verifier, see [`crate::requests`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn free_chunk() -> u32 {
    let number = chunk_that_nobody_has();
    if number == 0 {
        count(Counter::NO_CHUNK);
    }
    number
}

#[inline(always)]
fn chunk_that_nobody_has() -> u32 {
    let Some(control) = CONTROL.get_ptr_mut(0) else { return 0 };
    // Looked at before it is raised, so that it never wraps around.
    // SAFETY: valid, aligned pointers into the array.
    let handed_out = unsafe {
        let last = &raw mut (*control).last_chunk;
        if last.read_volatile() >= MAX_CHUNKS as u32 {
            MAX_CHUNKS as u32
        } else {
            atomic_xadd::<u32, u32, { AtomicOrdering::SeqCst }>(last, 1)
        }
    };
    if handed_out < MAX_CHUNKS as u32 {
        return handed_out + 1;
    }
    FREE_CHUNKS.get_ptr_mut(0).and_then(free_list::take).map_or(0, |index| index + 1)
}
