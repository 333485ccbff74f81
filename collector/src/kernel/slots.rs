//! The slot table: shared memory that the programs write, and the list of slots nobody uses.

use std::io;
use std::num::NonZero;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::atomic::{Ordering, fence};

use aya::maps::{MapData, Queue};
use collector_ebpf::limits::MAX_SLOTS;
use collector_ebpf::slot::{FREE, LIVE, Slot};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

pub(super) struct SlotTable {
    free: Queue<MapData, u32>,
    memory: NonNull<Slot>,
    /// Keeps the array alive; its descriptor is not used again.
    _array: MapData,
}

// SAFETY: the mapping belongs to this value alone and can be read from any thread.
unsafe impl Send for SlotTable {}

const LENGTH: NonZero<usize> = NonZero::new(MAX_SLOTS * size_of::<Slot>()).expect("there are slots");

impl SlotTable {
    /// Maps the array and puts every slot on the free list.
    pub(super) fn new(array: MapData, mut free: Queue<MapData, u32>) -> io::Result<Self> {
        // SAFETY: a fresh shared mapping at an address that the kernel chooses. The map was made with
        // BPF_F_MMAPABLE and MAX_SLOTS values of 128 bytes, so it is at least LENGTH long.
        let memory = unsafe {
            mmap(
                None,
                LENGTH,
                ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
                MapFlags::MAP_SHARED,
                array.fd().as_fd(),
                0,
            )
        }?
        .cast::<Slot>();
        for number in 0..MAX_SLOTS as u32 {
            free.push(number, 0).map_err(io::Error::other)?;
        }
        Ok(Self { free, memory, _array: array })
    }

    /// Reads a slot; the phase first, then what it vouches for.
    pub(super) fn get(&self, number: u32) -> Option<Slot> {
        let index = usize::try_from(number).ok().filter(|n| *n < MAX_SLOTS)?;
        // SAFETY: in bounds of the mapping, aligned to 128 bytes. The kernel may write at the same time, hence
        // volatile reads; all fields are integers, so any mixture is a valid value, and the phase tells which are
        // complete.
        let phase = unsafe { (&raw const (*self.memory.as_ptr().add(index)).phase).read_volatile() };
        fence(Ordering::Acquire);
        // SAFETY: as above.
        let slot = unsafe { self.memory.as_ptr().add(index).read_volatile() };
        Some(Slot { phase, ..slot })
    }

    /// Slots that belong to a worker.
    pub(super) fn in_use(&self) -> impl Iterator<Item = (u32, Slot)> + '_ {
        (0..MAX_SLOTS as u32)
            .filter_map(|n| self.get(n).map(|slot| (n, slot)))
            .filter(|(_, s)| s.phase != FREE)
    }

    /// Takes a slot for a worker that lived before it was tracked.
    pub(super) fn take(&mut self, worker: Slot) -> Option<u32> {
        let number = self.free.pop(0).ok()?;
        self.put(number, Slot { phase: LIVE, ..worker });
        Some(number)
    }

    /// Gives a slot back. The caller has its final figures.
    pub(super) fn release(&mut self, number: u32) {
        if self.get(number).is_none_or(|slot| slot.phase == FREE) {
            return;
        }
        self.put(number, Slot { phase: FREE, ..Slot::default() });
        // The list has room for every slot, so this cannot fail for want of it.
        let _ = self.free.push(number, 0);
    }

    fn put(&mut self, number: u32, slot: Slot) {
        if (number as usize) < MAX_SLOTS {
            // SAFETY: in bounds; a slot that is not on the free list and has no tagged process is ours alone.
            unsafe { self.memory.as_ptr().add(number as usize).write_volatile(slot) };
        }
    }
}

impl Drop for SlotTable {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `new`, with its length; nothing borrows from it.
        let _ = unsafe { munmap(self.memory.cast(), LENGTH.get()) };
    }
}
