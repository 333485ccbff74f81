//! Taking from a [`FreeList`].

use core::intrinsics::{AtomicOrdering, atomic_cxchg, atomic_xadd};

use collector_ebpf::free_list::{FreeList, changed, first};

/// Each attempt that fails is one that another CPU has won.
const ATTEMPTS: usize = 8;

/// Takes a number out.
#[inline(always)]
pub(crate) fn take<const N: usize>(list: *mut FreeList<N>) -> Option<u32> {
    for _ in 0..ATTEMPTS {
        let head = head(list);
        let number = first(head)?;
        if number >= N as u32 {
            return None;
        }
        // SAFETY: a pointer into the array, and an index below the length.
        let next = unsafe { (&raw const (*list).next[number as usize]).read_volatile() };
        if exchange(list, head, changed(head, next)) {
            return Some(number);
        }
    }
    None
}

#[inline(always)]
fn head<const N: usize>(list: *mut FreeList<N>) -> u64 {
    // SAFETY: a valid, aligned pointer into the array. An addition of nothing is a load that nothing overtakes.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::SeqCst }>(&raw mut (*list).head, 0) }
}

#[inline(always)]
fn exchange<const N: usize>(list: *mut FreeList<N>, old: u64, new: u64) -> bool {
    // SAFETY: as above.
    unsafe {
        atomic_cxchg::<u64, { AtomicOrdering::SeqCst }, { AtomicOrdering::SeqCst }>(
            &raw mut (*list).head,
            old,
            new,
        )
        .1
    }
}
