//! Arrays that the programs and we share: mapped memory, no system call to read it.

use std::cell::Cell;
use std::io;
use std::num::NonZero;
use std::os::fd::AsFd;
use std::ptr::NonNull;

use aya::maps::MapData;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};

/// The array is mapped in steps of so many bytes, as its elements come into use: mapped pages count as resident, and
/// most of an array is never used. A multiple of every page size.
const STEP: usize = 256 << 10;

/// A mappable array, mapped as far as it is used.
pub(super) struct Shared<T> {
    /// Address space for all of it; what is not mapped yet cannot be touched. The values are records of
    /// `collector_ebpf`: integers, which any bits are.
    memory: NonNull<T>,
    reserved: NonZero<usize>,
    mapped: Cell<usize>,
    length: usize,
    array: MapData,
}

// SAFETY: the mapping belongs to this value alone and can be used from any thread; `T` is plain data.
unsafe impl<T: Copy + Send> Send for Shared<T> {}

impl<T> Shared<T> {
    /// The array must have been made with `BPF_F_MMAPABLE` and `length` values of the size of `T`, a multiple of 8 or
    /// the only one. The caller vouches that every bit pattern is a `T`.
    pub(super) fn map(array: MapData, length: usize) -> io::Result<Self> {
        let bytes = length.checked_mul(size_of::<T>()).ok_or(io::ErrorKind::InvalidInput)?;
        let reserved =
            NonZero::new(bytes.next_multiple_of(STEP)).ok_or(io::Error::from(io::ErrorKind::InvalidInput))?;
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE;
        // SAFETY: a fresh mapping at an address that the kernel chooses.
        let memory = unsafe { mmap_anonymous(None, reserved, ProtFlags::PROT_NONE, flags) }?;
        Ok(Self { memory: memory.cast(), reserved, mapped: Cell::new(0), length, array })
    }

    /// A pointer to an element, valid as long as `self`. The kernel may write to it at any time. `None` beyond the end,
    /// or if the kernel refuses the mapping.
    pub(super) fn at(&self, index: usize) -> Option<*mut T> {
        if index >= self.length {
            return None;
        }
        let end = (index + 1) * size_of::<T>();
        if end > self.mapped.get() {
            self.extend(end).ok()?;
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

    fn extend(&self, end: usize) -> io::Result<()> {
        let mapped = self.mapped.get();
        // The last step may be longer than the array, which is mapped in whole pages and no further.
        let page = usize::try_from(procfs::page_size()).map_err(io::Error::other)?;
        let all = (self.length * size_of::<T>()).next_multiple_of(page);
        let to = end.next_multiple_of(STEP).min(all);
        let size = NonZero::new(to - mapped).ok_or(io::ErrorKind::InvalidInput)?;
        let address = NonZero::new(self.memory.as_ptr().addr() + mapped);
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let flags = MapFlags::MAP_SHARED | MapFlags::MAP_FIXED;
        let offset = i64::try_from(mapped).map_err(io::Error::other)?;
        // SAFETY: replaces a part of our own reservation that nothing points into yet.
        unsafe { mmap(address, size, protection, flags, self.array.fd().as_fd(), offset) }?;
        self.mapped.set(to);
        Ok(())
    }
}

impl<T> Drop for Shared<T> {
    fn drop(&mut self) {
        // SAFETY: the reservation made in `new`, with its length and all that was mapped over it; nothing borrows from
        // it.
        let _ = unsafe { munmap(self.memory.cast(), self.reserved.get()) };
    }
}

impl<T> std::fmt::Debug for Shared<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("length", &self.length).field("mapped", &self.mapped.get()).finish()
    }
}
