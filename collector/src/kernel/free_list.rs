//! Our side of the lists of free numbers that the programs share.

use std::io;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use aya::maps::MapData;
use collector_ebpf::free_list::{self as layout, changed, first};

use super::shared::Shared;

pub(super) struct FreeList<const N: usize> {
    list: *mut layout::FreeList<N>,
    /// Keeps the list mapped.
    _array: Shared<layout::FreeList<N>>,
}

// SAFETY: the pointer is to the mapping that it owns, which can be used from any thread.
unsafe impl<const N: usize> Send for FreeList<N> {}

impl<const N: usize> FreeList<N> {
    pub(super) fn new(array: MapData) -> io::Result<Self> {
        let array = Shared::map(array, 1)?;
        let list = array.at(0).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { list, _array: array })
    }

    fn head(&self) -> &AtomicU64 {
        // SAFETY: a pointer to a field inside the mapping.
        let head = unsafe { &raw mut (*self.list).head };
        // SAFETY: mapped, aligned, as long as `self`; the programs change it by atomic instructions.
        unsafe { AtomicU64::from_ptr(head) }
    }

    fn next(&self, number: u32) -> Option<&AtomicU32> {
        if number >= N as u32 {
            return None;
        }
        // SAFETY: a pointer to an element inside the mapping.
        let next = unsafe { &raw mut (*self.list).next[number as usize] };
        // SAFETY: as above; whoever owns a number that is in no list has its element.
        Some(unsafe { AtomicU32::from_ptr(next) })
    }

    /// Takes a number out.
    pub(super) fn take(&mut self) -> Option<u32> {
        let mut head = self.head().load(Ordering::SeqCst);
        loop {
            let number = first(head)?;
            let next = self.next(number)?.load(Ordering::SeqCst);
            match self.exchange(head, changed(head, next)) {
                Ok(_) => return Some(number),
                Err(by_another) => head = by_another,
            }
        }
    }

    /// Puts a number in, which must not be in the list.
    pub(super) fn give(&mut self, number: u32) {
        let mut head = self.head().load(Ordering::SeqCst);
        while let Some(next) = self.next(number) {
            next.store(head as u32, Ordering::SeqCst);
            match self.exchange(head, changed(head, number + 1)) {
                Ok(_) => return,
                Err(by_another) => head = by_another,
            }
        }
    }

    fn exchange(&self, old: u64, new: u64) -> Result<u64, u64> {
        self.head().compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst)
    }
}
