//! Numbers that were given back, for whoever needs one next: a stack in mapped memory, so that user space needs no system
//! call for each, and the last given back is taken first, because its memory is in a cache.
//!
//! Lock-free (R. K. Treiber, *Systems Programming: Coping with Parallelism*, IBM RJ 5118, 1986). User space gives; both
//! sides take, each by its own function, because BPF has no atomic types.

/// Numbers below `N` that are free.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct FreeList<const N: usize> {
    /// The first number plus one, or 0 for none, in the low half; in the high half how often it was changed, so that who
    /// compares it before an exchange does not take a number that was taken and given back meanwhile for one that stayed.
    pub head: u64,
    /// By number: what was the low half of `head` before it was put in.
    pub next: [u32; N],
}

/// The first number in a [`FreeList::head`]; `None` if there is none.
#[inline(always)]
pub const fn first(head: u64) -> Option<u32> {
    (head as u32).checked_sub(1)
}

/// What [`FreeList::head`] becomes when `low` is its new low half.
#[inline(always)]
pub const fn changed(head: u64, low: u32) -> u64 {
    (head >> 32).wrapping_add(1) << 32 | low as u64
}

const _: () = assert!(size_of::<FreeList<2>>() == 16);
