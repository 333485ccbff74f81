//! The slot table: shared memory that the programs write, and which of its slots are free.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};

use aya::maps::MapData;
use collector_ebpf::limits::MAX_SLOTS;
use collector_ebpf::slot::{Control, FREE, LIVE, Slot};

use super::free_list::FreeList;
use super::shared::Shared;
use crate::units::ProcessKey;

// SAFETY: the pointer is to the mapping that it owns, which can be used from any thread.
unsafe impl Send for SlotTable {}

pub(super) struct SlotTable {
    free: FreeList<MAX_SLOTS>,
    control_record: *mut Control,
    /// Keeps the record mapped.
    _control: Shared<Control>,
    slots: Shared<Slot>,
}

impl SlotTable {
    pub(super) fn new(slots: MapData, control: MapData, free: MapData) -> io::Result<Self> {
        let control = Shared::map(control, 1)?;
        let control_record = control.at(0).ok_or(io::ErrorKind::OutOfMemory)?;
        let (free, slots) = (FreeList::new(free)?, Shared::map(slots, MAX_SLOTS)?);
        Ok(Self { free, control_record, _control: control, slots })
    }

    /// A field of the control record, which the programs read or change by atomic instructions.
    fn control(&self, field: impl FnOnce(*mut Control) -> *mut u32) -> &AtomicU32 {
        // SAFETY: a field inside the mapping, aligned, as long as `self`.
        unsafe { AtomicU32::from_ptr(field(self.control_record)) }
    }

    fn next(&self) -> &AtomicU32 {
        // SAFETY: a pointer to a field inside the mapping.
        self.control(|control| unsafe { &raw mut (*control).next_slot })
    }

    /// Slots that somebody has or has had.
    pub(super) fn handed_out(&self) -> u32 {
        self.next().load(Ordering::Relaxed).min(MAX_SLOTS as u32)
    }

    /// Chunks of histograms that some slot has or has had.
    pub(super) fn chunks_handed_out(&self) -> u32 {
        // SAFETY: a pointer to a field inside the mapping.
        self.control(|control| unsafe { &raw mut (*control).last_chunk }).load(Ordering::Relaxed)
    }

    /// How often a thread began or ceased to be followed, wrapping.
    pub(super) fn follow_changes(&self) -> u32 {
        // SAFETY: a pointer to a field inside the mapping.
        self.control(|control| unsafe { &raw mut (*control).follow_changes }).load(Ordering::Acquire)
    }

    /// Sets the most that any pool gets of what it wants to know of the scheduler, one of `PROFILE_…`.
    pub(super) fn set_ceiling(&self, profile: u32) {
        // SAFETY: a pointer to a field inside the mapping.
        let ceiling = self.control(|control| unsafe { &raw mut (*control).ceiling });
        ceiling.store(profile, Ordering::Release);
    }

    /// Tells the programs whose kernel stacks an iteration is to show.
    pub(super) fn set_stacks_of(&self, pid: u32) {
        // SAFETY: a pointer to a field inside the mapping.
        let stacks_of = self.control(|control| unsafe { &raw mut (*control).stacks_of });
        stacks_of.store(pid, Ordering::Release);
    }

    /// Tells the programs whether the next event is to wake its reader.
    pub(super) fn set_reader_waits(&mut self, waits: bool) {
        // SAFETY: a pointer to a field inside the mapping.
        let reader_waits = self.control(|control| unsafe { &raw mut (*control).reader_waits });
        reader_waits.store(u32::from(waits), Ordering::SeqCst);
    }

    /// Reads a slot; the phase first, then what it vouches for.
    pub(super) fn get(&self, number: u32) -> Option<Slot> {
        let slot = self.slots.at(usize::try_from(number).ok()?)?;
        // SAFETY: a pointer to a field inside the mapping.
        let phase = unsafe { &raw mut (*slot).phase };
        // SAFETY: mapped, aligned, as long as `self`; the programs exchange it atomically, after what it vouches for.
        let phase = unsafe { AtomicU32::from_ptr(phase) }.load(Ordering::Acquire);
        // SAFETY: valid and aligned. A program may write at the same time, hence volatile; all fields are integers, so
        // any mixture is a valid value, and the phase that was read before tells which are complete.
        let slot = unsafe { slot.read_volatile() };
        Some(Slot { phase, ..slot })
    }

    /// A slot belongs to this worker.
    pub(super) fn is_of(&self, number: u32, worker: ProcessKey) -> bool {
        self.get(number).is_some_and(|slot| {
            slot.phase != FREE && ProcessKey { pid: slot.pid, start_ns: slot.start_ns } == worker
        })
    }

    /// Slots that belong to a worker.
    pub(super) fn in_use(&self) -> impl Iterator<Item = (u32, Slot)> + '_ {
        (0..self.next().load(Ordering::Acquire).min(MAX_SLOTS as u32))
            .filter_map(|n| self.get(n).map(|slot| (n, slot)))
            .filter(|(_, s)| s.phase != FREE)
    }

    /// Takes a slot for a worker that lived before it was tracked.
    pub(super) fn take(&mut self, worker: Slot) -> Option<u32> {
        let number = match self.free.take() {
            Some(number) => number,
            None => self
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
        self.free.give(number);
    }

    /// Hands out every slot that was given back and calls for each, then gives it back again: nobody else has it
    /// meanwhile.
    pub(super) fn with_free(&mut self, mut call: impl FnMut(u32)) {
        let mut taken = Vec::new();
        while let Some(number) = self.free.take() {
            call(number);
            taken.push(number);
        }
        taken.into_iter().for_each(|number| self.free.give(number));
    }

    /// Writes a slot, its phase last, as the programs do.
    fn put(&mut self, number: u32, slot: Slot) {
        let Some(place) = self.slots.at(number as usize) else { return };
        // SAFETY: valid and aligned; within this process `&mut self` keeps others away, and no reference to the mapping
        // exists anywhere. The programs are another matter. One that gives a slot to a new worker has its number from
        // the list or the counter, as we have ours, and those give each number to one of us. One that holds a tag
        // compares pid and start with its own process before it writes: it passes a free slot by, whose fields are
        // zero, and one that was given to another. Between that look and its last write there are nanoseconds in which
        // we may free the slot of a process that we took for gone; then both write. The accesses are volatile, so no
        // compiler relies on what it saw or wrote before, and each field is an integer, so any mixture is a valid value:
        // the worst is a wrong end in the record of one worker, never memory that is not ours.
        unsafe { place.write_volatile(Slot { phase: FREE, ..slot }) };
        // SAFETY: a pointer to a field inside the mapping.
        let phase = unsafe { &raw mut (*place).phase };
        // SAFETY: mapped, aligned, as long as `self`; the programs exchange it atomically. Released after the fields
        // that it vouches for.
        unsafe { AtomicU32::from_ptr(phase) }.store(slot.phase, Ordering::Release);
    }
}
