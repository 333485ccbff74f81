//! The slot table: shared memory that the programs write, and which of its slots are free.

use std::io;
use std::num::NonZero;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering, fence};

use aya::maps::{MapData, Queue};
use collector_ebpf::limits::MAX_SLOTS;
use collector_ebpf::slot::{Control, FREE, LIVE, Slot};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

/// A mappable array of `length` values, mapped.
struct Shared<T> {
    memory: NonNull<T>,
    length: usize,
    /// Keeps the array alive; its descriptor is not used again.
    _array: MapData,
}

// SAFETY: the mapping belongs to this value alone and can be read from any thread.
unsafe impl<T> Send for Shared<T> {}

impl<T> Shared<T> {
    /// The array must have been made with `BPF_F_MMAPABLE` and `length` values of the size of `T`, a multiple of 8 or
    /// the only one.
    fn map(array: MapData, length: usize) -> io::Result<Self> {
        let bytes = NonZero::new(length * size_of::<T>()).ok_or(io::ErrorKind::InvalidInput)?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a fresh shared mapping at an address that the kernel chooses.
        let memory = unsafe { mmap(None, bytes, protection, MapFlags::MAP_SHARED, array.fd().as_fd(), 0) }?;
        Ok(Self { memory: memory.cast(), length, _array: array })
    }

    fn at(&self, index: usize) -> Option<*mut T> {
        // SAFETY: in bounds of the mapping.
        (index < self.length).then(|| unsafe { self.memory.as_ptr().add(index) })
    }
}

impl<T> Drop for Shared<T> {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `map`, with its length; nothing borrows from it.
        let _ = unsafe { munmap(self.memory.cast(), self.length * size_of::<T>()) };
    }
}

pub(super) struct SlotTable {
    free: Queue<MapData, u32>,
    control: Shared<Control>,
    slots: Shared<Slot>,
}

impl SlotTable {
    pub(super) fn new(slots: MapData, control: MapData, free: Queue<MapData, u32>) -> io::Result<Self> {
        Ok(Self { free, control: Shared::map(control, 1)?, slots: Shared::map(slots, MAX_SLOTS)? })
    }

    fn next(&self) -> &AtomicU32 {
        // SAFETY: a pointer to a field inside the mapping.
        let next = unsafe { &raw mut (*self.control.memory.as_ptr()).next_slot };
        // SAFETY: mapped, aligned, as long as `self`; the programs change it by atomic instructions.
        unsafe { AtomicU32::from_ptr(next) }
    }

    /// Tells the iterator that another pass begins, and whether it is to tell what it told before, too.
    pub(super) fn begin_pass(&mut self, tell_all: bool) {
        let control = self.control.memory.as_ptr();
        // SAFETY: a pointer to a field inside the mapping.
        let pass = unsafe { &raw mut (*control).pass };
        // SAFETY: mapped, aligned, as long as `self`; the programs only read it.
        unsafe { AtomicU32::from_ptr(pass) }.fetch_add(1, Ordering::Relaxed);
        // SAFETY: a pointer to a field inside the mapping.
        let all = unsafe { &raw mut (*control).tell_all };
        // SAFETY: mapped, aligned, as long as `self`; the programs only read it.
        unsafe { AtomicU32::from_ptr(all) }.store(u32::from(tell_all), Ordering::Relaxed);
    }

    /// Reads a slot; the phase first, then what it vouches for.
    pub(super) fn get(&self, number: u32) -> Option<Slot> {
        let slot = self.slots.at(usize::try_from(number).ok()?)?;
        // SAFETY: a pointer into the mapping.
        let phase = unsafe { &raw const (*slot).phase };
        // SAFETY: valid and aligned. The kernel may write at the same time, hence volatile reads; all fields are
        // integers, so any mixture is a valid value, and the phase tells which are complete.
        let phase = unsafe { phase.read_volatile() };
        fence(Ordering::Acquire);
        // SAFETY: as above.
        let slot = unsafe { slot.read_volatile() };
        Some(Slot { phase, ..slot })
    }

    /// Slots that belong to a worker.
    pub(super) fn in_use(&self) -> impl Iterator<Item = (u32, Slot)> + '_ {
        (0..self.next().load(Ordering::Acquire).min(MAX_SLOTS as u32))
            .filter_map(|n| self.get(n).map(|slot| (n, slot)))
            .filter(|(_, s)| s.phase != FREE)
    }

    /// Takes a slot for a worker that lived before it was tracked.
    pub(super) fn take(&mut self, worker: Slot) -> Option<u32> {
        let number = match self.free.pop(0) {
            Ok(number) => number,
            Err(_) => self
                .next()
                .fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| {
                    (n < MAX_SLOTS as u32).then_some(n + 1)
                })
                .ok()?,
        };
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
        if let Some(place) = self.slots.at(number as usize) {
            // SAFETY: in bounds; a slot that is not free and has no tagged process is ours alone.
            unsafe { place.write_volatile(slot) };
        }
    }
}
