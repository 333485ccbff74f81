//! Arrays whose address is part of the programs' code.
//!
//! To look an element of a map up takes a key on the stack, a load of it and two jumps, each time; with the whole array as
//! the one value of a map, as the kernel has it for global variables (`BPF_PSEUDO_MAP_VALUE`), it takes a comparison and an
//! addition. The loader makes a map of each section that begins with `.bss.` and calls it by the rest of its name. Before Linux
//! 6.0 values may have up to `KMALLOC_MAX_SIZE`, 4 MiB.
//!
//! The verifier sees that nobody leaves the array, and not that nobody leaves an element: whoever goes on from an element by an
//! index has to keep it below the length.

use core::cell::UnsafeCell;
use core::mem::MaybeUninit;

use crate::kernel::opaque;

/// `N` values in a map that user space can map, as if it were an array map of them.
#[repr(transparent)]
pub(crate) struct DirectArray<T, const N: usize>(UnsafeCell<MaybeUninit<[T; N]>>);

// SAFETY: it hands out raw pointers, and whoever goes through one argues for that.
unsafe impl<T, const N: usize> Sync for DirectArray<T, N> {}

impl<T, const N: usize> DirectArray<T, N> {
    /// All bits are zero.
    pub(crate) const fn zeroed() -> Self {
        const { assert!(size_of::<[T; N]>() <= 4 << 20 && size_of::<T>().is_multiple_of(8)) };
        Self(UnsafeCell::new(MaybeUninit::zeroed()))
    }

    /// An element.
    #[inline(always)]
    pub(crate) fn get_ptr(&self, index: u32) -> Option<*const T> {
        self.get_ptr_mut(index).map(<*mut T>::cast_const)
    }

    /// The same to write to.
    #[inline(always)]
    pub(crate) fn get_ptr_mut(&self, index: u32) -> Option<*mut T> {
        let first = self.0.get().cast::<T>();
        if N == 1 {
            return (index == 0).then_some(first);
        }
        let index = opaque(u64::from(index));
        if index >= N as u64 {
            return None;
        }
        // SAFETY: below the length.
        let element = unsafe { first.add(index as usize) };
        // Here, and not where it is used: what is compared has to be the register that is added, because the verifier does not
        // know (before 6.2) of another one with the same number what it has found of the one.
        Some(opaque(element as u64) as *mut T)
    }
}
