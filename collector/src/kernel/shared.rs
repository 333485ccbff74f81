//! Arrays that the programs and we share: mapped memory, no system call to read it.

use std::cell::Cell;
use std::io;
use std::num::NonZero;
use std::os::fd::AsFd;
use std::ptr::NonNull;

use aya::maps::MapData;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};

/// The array is mapped in steps of so many bytes, each when one of its elements is asked for: mapped pages count as
/// resident, and most of an array is never used. A multiple of every page size.
const STEP: usize = 64 << 10;

/// A mappable array, mapped where it is used.
pub(super) struct Shared<T> {
    /// Address space for all of it; what is not mapped yet cannot be touched. The values are records of
    /// `collector_ebpf`: integers, which any bits are.
    memory: NonNull<T>,
    reserved: NonZero<usize>,
    /// By step.
    mapped: Box<[Cell<bool>]>,
    length: usize,
    array: MapData,
}

// SAFETY: the mapping belongs to this value alone and can be used from any thread; `T` is plain data.
unsafe impl<T: Copy + Send> Send for Shared<T> {}

impl<T> Shared<T> {
    /// The array must have been made with `BPF_F_MMAPABLE` and `length` values of the size of `T`, a multiple of 8 or
    /// the only one, or with one value that is as long as all of these. The caller vouches that every bit pattern is a `T`.
    pub(super) fn map(array: MapData, length: usize) -> io::Result<Self> {
        let bytes = length.checked_mul(size_of::<T>()).ok_or(io::ErrorKind::InvalidInput)?;
        let reserved =
            NonZero::new(bytes.next_multiple_of(STEP)).ok_or(io::Error::from(io::ErrorKind::InvalidInput))?;
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE;
        // SAFETY: a fresh mapping at an address that the kernel chooses.
        let memory = unsafe { mmap_anonymous(None, reserved, ProtFlags::PROT_NONE, flags) }?;
        let mapped = vec![Cell::new(false); reserved.get() / STEP].into();
        Ok(Self { memory: memory.cast(), reserved, mapped, length, array })
    }

    /// A pointer to an element, valid until `self` is changed. The kernel may write to it at any time. `None` beyond the end,
    /// or if the kernel refuses the mapping.
    pub(super) fn at(&self, index: usize) -> Option<*mut T> {
        if index >= self.length {
            return None;
        }
        let begin = index * size_of::<T>();
        for step in begin / STEP..=(begin + size_of::<T>() - 1) / STEP {
            if self.mapped.get(step).is_none_or(|mapped| !mapped.get()) {
                self.map_step(step).ok()?;
            }
        }
        // SAFETY: in bounds of what is mapped.
        Some(unsafe { self.memory.as_ptr().add(index) })
    }

    /// A copy of the value at an index. Whoever writes it at the same time may leave a mixture.
    pub(super) fn get(&self, index: usize) -> Option<T>
    where
        T: Copy,
    {
        // SAFETY: a pointer into the mapping, which begins at a page; any bits are a value. Volatile, because the
        // programs may write.
        self.at(index).map(|value| unsafe { value.read_volatile() })
    }

    /// Sets the value at an index, if there is one.
    pub(super) fn set(&mut self, index: usize, value: T) {
        if let Some(place) = self.at(index) {
            // SAFETY: a pointer into the mapping, which begins at a page. Volatile, because the programs read it.
            unsafe { place.write_volatile(value) };
        }
    }

    /// Unmaps what has none of these elements: what was looked through in full is mapped for no longer than that.
    pub(super) fn let_go_of_all_but(&mut self, kept: impl Iterator<Item = usize>) {
        let mut wanted = vec![false; self.mapped.len()];
        for index in kept.filter(|index| *index < self.length) {
            let begin = index * size_of::<T>();
            if let Some(steps) = wanted.get_mut(begin / STEP..=(begin + size_of::<T>() - 1) / STEP) {
                steps.fill(true);
            }
        }
        let unwanted = self
            .mapped
            .iter()
            .zip(wanted)
            .enumerate()
            .filter(|(_, (mapped, wanted))| mapped.get() && !wanted);
        for (step, (mapped, _)) in unwanted {
            let address = NonZero::new(self.memory.as_ptr().addr() + step * STEP);
            let (Some(address), Some(size)) = (address, NonZero::new(STEP)) else { continue };
            let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE | MapFlags::MAP_FIXED;
            // SAFETY: becomes reserved again, as it was made, all of which is inside the reservation. Nothing points into it:
            // what was borrowed was borrowed of `self`, and who keeps a pointer lets go of nothing.
            if unsafe { mmap_anonymous(Some(address), size, ProtFlags::PROT_NONE, flags) }.is_ok() {
                mapped.set(false);
            }
        }
    }

    #[cold]
    fn map_step(&self, step: usize) -> io::Result<()> {
        let mapped = self.mapped.get(step).ok_or(io::ErrorKind::InvalidInput)?;
        // The last step may be longer than the array, which is mapped in whole pages and no further.
        let page = usize::try_from(procfs::page_size()).map_err(io::Error::other)?;
        let all = (self.length * size_of::<T>()).next_multiple_of(page);
        let begin = step * STEP;
        let size = NonZero::new(STEP.min(all - begin)).ok_or(io::ErrorKind::InvalidInput)?;
        let address = NonZero::new(self.memory.as_ptr().addr() + begin);
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let flags = MapFlags::MAP_SHARED | MapFlags::MAP_FIXED;
        let offset = i64::try_from(begin).map_err(io::Error::other)?;
        // SAFETY: replaces a part of our own reservation that nothing points into yet.
        unsafe { mmap(address, size, protection, flags, self.array.fd().as_fd(), offset) }?;
        mapped.set(true);
        Ok(())
    }
}

impl<T> Drop for Shared<T> {
    fn drop(&mut self) {
        // SAFETY: the reservation made in `map`, with its length and all that was mapped over it; nothing borrows from
        // it.
        let _ = unsafe { munmap(self.memory.cast(), self.reserved.get()) };
    }
}

impl<T> std::fmt::Debug for Shared<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let steps = self.mapped.iter().filter(|step| step.get()).count();
        f.debug_struct("Shared").field("length", &self.length).field("steps", &steps).finish()
    }
}
