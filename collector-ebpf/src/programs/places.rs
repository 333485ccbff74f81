//! Where the request of a connection is while it is in progress, and the lock of each place.
//!
//! A connection is known by the address of its inode, and only while a request of it is in progress: what it was before is
//! of no use. A lock is never waited for.

use core::intrinsics::{AtomicOrdering, atomic_cxchg, atomic_or};

use collector_ebpf::limits::REQUEST_SETS;
use collector_ebpf::request::{LOCKED, REQUEST_WAYS, Request, index_of, set_of, set_of_index, way_of_index};

use crate::{CONNECTIONS, REQUESTS};

/// The index of the request that is in progress on a connection.
#[inline(always)]
pub(crate) fn place_of(key: u64) -> Option<u32> {
    if key == 0 {
        return None;
    }
    let set = set_of(key);
    // Mostly it is right here.
    let likely = index_of(set, 0);
    let is_it = REQUESTS.get_ptr(likely).is_some_and(|request| key_of(request) == key);
    if is_it { Some(likely) } else { found(index_of_key(set, key)) }
}

/// The index that a global function has returned, which cannot return an `Option`.
#[inline(always)]
pub(crate) fn found(index: u32) -> Option<u32> {
    (index != NOWHERE).then_some(index)
}

/// No index.
pub(crate) const NOWHERE: u32 = u32::MAX;

/// The first index in a set that this connection has, or, for 0, that none has; [`NOWHERE`] if there is none. Global to the
/// verifier, see [`crate::requests`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn index_of_key(set: u32, key: u64) -> u32 {
    let Some(keys) = keys_of(set) else { return NOWHERE };
    for way in 0..REQUEST_WAYS {
        // SAFETY: one of the elements; other CPUs change them.
        if unsafe { keys.add(way).read_volatile() } == key {
            return index_of(set, way as u32);
        }
    }
    NOWHERE
}

#[inline(always)]
fn keys_of(set: u32) -> Option<*mut u64> {
    let set = CONNECTIONS.get_ptr_mut(set % REQUEST_SETS as u32)?;
    // SAFETY: a pointer into the array, checked by the verifier.
    Some(unsafe { (&raw mut (*set).keys).cast() })
}

/// Where the connection of a request is written.
#[inline(always)]
pub(crate) fn key_place(index: u32) -> Option<*mut u64> {
    let keys = keys_of(set_of_index(index))?;
    // SAFETY: one of the elements.
    Some(unsafe { keys.add(way_of_index(index) as usize % REQUEST_WAYS) })
}

/// The connection of a request.
#[inline(always)]
pub(crate) fn key_of(request: *const Request) -> u64 {
    // SAFETY: callers pass a pointer into the array; another CPU may change it.
    unsafe { (&raw const (*request).key).read_volatile() }
}

/// Locks a request. False if another program has it locked.
#[inline(always)]
pub(crate) fn try_lock(request: *mut Request) -> bool {
    mark(request, LOCKED) & LOCKED == 0
}

/// Sets a bit of the lock of a request. Returns what it was before.
#[inline(always)]
pub(crate) fn mark(request: *mut Request, bit: u32) -> u32 {
    // SAFETY: callers pass a pointer into the array; an aligned integer.
    unsafe { atomic_or::<u32, u32, { AtomicOrdering::SeqCst }>(&raw mut (*request).lock, bit) }
}

/// Unlocks a request. False if its connection was closed meanwhile: it is locked still.
#[inline(always)]
pub(crate) fn release(request: *mut Request) -> bool {
    // SAFETY: as above.
    let (before, _) = unsafe {
        atomic_cxchg::<u32, { AtomicOrdering::SeqCst }, { AtomicOrdering::SeqCst }>(
            &raw mut (*request).lock,
            LOCKED,
            0,
        )
    };
    before == LOCKED
}
