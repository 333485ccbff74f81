//! The allocator of this program: the C library's, which remembers where some of what it gives out was asked for.
//!
//! It is always on: whoever asks what memory is used for asks when it is used already. Of the bytes that a thread asks for one
//! is chosen every 512 KiB, as Go does, at distances as they are between events at random (of an exponential distribution); the
//! block that it is in is a sample. A block of `size` is one with a probability of `1 - exp(-size / 512 KiB)`, and stands for one over that
//! many of its size: sums are unbiased, whatever the sizes.
//!
//! What it costs others (`cargo bench --bench heap`) is a subtraction for a block that is asked for, and for one that is given back a
//! look at a byte of a table of 4 KiB, which tells those that are certainly no sample.
//!
//! A sample takes the stack of its thread, followed by the tables for exceptions through libgcc, which needs no memory for it; then
//! tables of fixed size under a lock. Nothing here may ask for memory while it holds that.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::fmt;
use std::ptr;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use super::tables::{Copied, PARTS, Sum, Tables, mixed};

/// Bytes from a sample to the next, on average.
pub const PERIOD_BYTES: u64 = 512 << 10;

/// Frames of a stack, at most. Those of the server are some 50.
const MAX_FRAMES: usize = 128;

/// To be the global allocator of a program. In one that has another all profiles of the heap are empty.
#[derive(Debug)]
pub struct Sampled;

thread_local! {
    // Constants without destructors: to use them neither asks for memory nor registers anything, and they are there for as long
    // as the thread.
    /// Bytes before the next one that is chosen.
    static LEFT: Cell<i64> = const { Cell::new(0) };
    /// State of a generator of random numbers; 0 until the thread's first block.
    static RANDOM: Cell<u64> = const { Cell::new(0) };
}

static TABLES: Mutex<Tables> = Mutex::new(Tables::new());

/// How many samples in use have this hash, by hash.
static MAYBE: [AtomicU8; 4096] = [const { AtomicU8::new(0) }; 4096];

// SAFETY: every block is the system allocator's, with the size and alignment that it was asked for, and is given back to it as it came.
// Nothing is written into blocks, nothing here panics or unwinds, and what is asked for here is asked for in none of these methods.
// Calls, not copies in every function that asks for a block: those made the code 7 % longer.
unsafe impl GlobalAlloc for Sampled {
    #[inline(never)]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: what the caller promises is what the system's allocator asks for.
        let block = unsafe { System.alloc(layout) };
        given(block, layout.size());
        block
    }

    #[inline(never)]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above.
        let block = unsafe { System.alloc_zeroed(layout) };
        given(block, layout.size());
        block
    }

    #[inline(never)]
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // First: once it is given back somebody else can get it, and be a sample.
        taken_back(block, layout.size());
        // SAFETY: as above; it came from the system's allocator.
        unsafe { System.dealloc(block, layout) };
    }

    /// A new block in place of the old one, as it is for whoever asks how much was asked for.
    #[inline(never)]
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // Where there is no memory for the new one the old one stays, and counts no more.
        taken_back(block, layout.size());
        // SAFETY: as above.
        let block = unsafe { System.realloc(block, layout, size) };
        given(block, size);
        block
    }
}

#[inline]
fn given(block: *mut u8, size: usize) {
    // No layout is larger than isize::MAX.
    let left = LEFT.get() - size as i64;
    LEFT.set(left);
    if left < 0 {
        choose(block, size);
    }
}

#[inline]
fn taken_back(block: *mut u8, size: usize) {
    // Whoever gives a block back has got it from the thread that asked for it, which is what makes its count known here.
    if maybe(block.addr()).load(Ordering::Relaxed) != 0 {
        forget(block, size);
    }
}

fn maybe(address: usize) -> &'static AtomicU8 {
    &MAYBE[(address as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) as usize >> (usize::BITS - 12)]
}

/// A chosen byte is in this block, unless it is the first of its thread.
#[cold]
#[inline(never)]
fn choose(block: *mut u8, size: usize) {
    if block.is_null() {
        LEFT.set(LEFT.get() + size as i64);
        return;
    }
    if RANDOM.get() == 0 {
        RANDOM.set(seed());
        let left = LEFT.get().saturating_add(distance());
        LEFT.set(left);
        if left >= 0 {
            return;
        }
    }
    LEFT.set(distance());
    let mut walk = Walk { frames: [0; MAX_FRAMES], length: 0 };
    let complete = walk.follow();
    let frames = walk.frames.get(..walk.length).unwrap_or_default();
    let mut tables = TABLES.lock().unwrap_or_else(PoisonError::into_inner);
    if tables.add(block.addr(), frames, !complete, weight(size)) {
        let count = maybe(block.addr());
        // One that is full stays so: all that have this hash are looked for from then on.
        count.store(count.load(Ordering::Relaxed).saturating_add(1), Ordering::Relaxed);
    }
}

/// A block that may be a sample is given back.
#[cold]
#[inline(never)]
fn forget(block: *mut u8, size: usize) {
    let mut tables = TABLES.lock().unwrap_or_else(PoisonError::into_inner);
    if tables.remove(block.addr(), weight(size)) {
        let count = maybe(block.addr());
        let samples = count.load(Ordering::Relaxed);
        if samples < u8::MAX {
            count.store(samples.saturating_sub(1), Ordering::Relaxed);
        }
    }
}

/// What a sample of this size stands for. The same each time: what is added is taken off again.
fn weight(size: usize) -> Sum {
    let size = size as f64;
    let blocks = -1.0 / (-size / PERIOD_BYTES as f64).exp_m1();
    Sum { parts: (blocks * PARTS as f64).round() as u64, bytes: (blocks * size).round() as u64 }
}

/// Bytes to the next one that is chosen.
fn distance() -> i64 {
    // Xorshift of 64 bits, by Marsaglia.
    let mut random = RANDOM.get();
    random ^= random << 13;
    random ^= random >> 7;
    random ^= random << 17;
    RANDOM.set(random);
    // More than 0, and at most 1.
    let uniform = ((random >> 11) + 1) as f64 / (1u64 << 53) as f64;
    (-uniform.ln() * PERIOD_BYTES as f64) as i64
}

/// Of another sequence in each thread. Not 0.
fn seed() -> u64 {
    static THREADS: AtomicU64 = AtomicU64::new(0);
    let thread = THREADS.fetch_add(1, Ordering::Relaxed);
    // Where the program is in memory is another place each time.
    let place = LEFT.with(|left| ptr::from_ref(left).addr() as u64);
    mixed(mixed(place) ^ (thread + 1)) | 1
}

/// A stack that is being followed.
struct Walk {
    /// Addresses of calls, the innermost first.
    frames: [usize; MAX_FRAMES],
    length: usize,
}

/// `_URC_NO_REASON`, `_URC_NORMAL_STOP` and `_URC_END_OF_STACK` of the Itanium C++ ABI.
const GO_ON: c_int = 0;
const STOP: c_int = 4;
const END: c_int = 5;

type Each = extern "C" fn(context: *mut c_void, walk: *mut c_void) -> c_int;

// Of libgcc, which the standard library is linked with for the same purpose.
unsafe extern "C" {
    fn _Unwind_Backtrace(each: Each, argument: *mut c_void) -> c_int;
    fn _Unwind_GetIP(context: *mut c_void) -> usize;
}

impl Walk {
    /// Finds all frames. True if the outermost is one of them.
    fn follow(&mut self) -> bool {
        // SAFETY: the callback takes what it is called with for this walk, which nobody else has until it returns. Tables of programs
        // that are loaded tell of each frame what is to be read; where they tell nothing it ends.
        unsafe { _Unwind_Backtrace(each, ptr::from_mut(self).cast()) == END }
    }
}

extern "C" fn each(context: *mut c_void, walk: *mut c_void) -> c_int {
    // SAFETY: the walk of `follow`.
    let walk = unsafe { &mut *walk.cast::<Walk>() };
    // SAFETY: libgcc's own, of the frame that it calls this for.
    let returns_to = unsafe { _Unwind_GetIP(context) };
    match walk.frames.get_mut(walk.length) {
        Some(frame) if returns_to != 0 => {
            // A call can be the last of its function.
            *frame = returns_to - 1;
            walk.length += 1;
            GO_ON
        }
        Some(_) => GO_ON,
        None => STOP,
    }
}

/// What was allocated until a moment.
pub struct Heap(Copied);

impl fmt::Debug for Heap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Heap").finish_non_exhaustive()
    }
}

/// A stack of calls, and estimates of what was asked for there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allocated<'a> {
    /// Addresses of calls, the innermost first. None of those of which there was no room to tell.
    pub frames: &'a [usize],
    /// It ends before its outermost frame.
    pub truncated: bool,
    /// Since the program began.
    pub allocated: Amount,
    /// Of that, what is not given back.
    pub in_use: Amount,
}

/// An estimate. Less than nothing where it is a difference.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    /// Blocks.
    pub objects: i64,
    /// Their bytes.
    pub bytes: i64,
}

impl Amount {
    fn of(sum: Sum) -> Self {
        let objects = (sum.parts + PARTS / 2) / PARTS;
        Self { objects: objects.cast_signed(), bytes: sum.bytes.cast_signed() }
    }
}

impl std::ops::Sub for Amount {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self { objects: self.objects - other.objects, bytes: self.bytes - other.bytes }
    }
}

impl std::ops::AddAssign for Amount {
    fn add_assign(&mut self, other: Self) {
        self.objects += other.objects;
        self.bytes += other.bytes;
    }
}

/// What was allocated until now.
pub fn heap() -> Heap {
    let tables = || TABLES.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        let lengths = tables().lengths();
        // Some stacks may come meanwhile.
        let mut copied = Copied::with_room((lengths.0 + 16, lengths.1 + 16 * MAX_FRAMES));
        if copied.copy(&tables()) {
            return Heap(copied);
        }
    }
}

impl Heap {
    /// All that was asked for, by where it was.
    pub fn stacks(&self) -> impl Iterator<Item = Allocated<'_>> {
        self.0.stacks().map(|(stack, frames)| {
            let allocated = Amount::of(stack.allocated);
            Allocated {
                frames,
                truncated: stack.truncated || frames.is_empty(),
                allocated,
                in_use: allocated - Amount::of(stack.freed),
            }
        })
    }

    /// Samples that there was no place for while they were in use: they count as given back.
    pub fn unfollowed(&self) -> u64 {
        self.0.unfollowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What has been sampled by allocations with this function on their stack: some of it.
    fn of(function: usize, length: usize, heap: &Heap) -> (Amount, Amount) {
        let (mut allocated, mut in_use) = (Amount::default(), Amount::default());
        let here =
            |frames: &[usize]| frames.iter().any(|frame| (function..function + length).contains(frame));
        for stack in heap.stacks().filter(|stack| here(stack.frames)) {
            allocated += stack.allocated;
            in_use += stack.in_use;
        }
        (allocated, in_use)
    }

    /// Asks for blocks, as a program does that has this allocator.
    #[inline(never)]
    fn blocks_of(sizes: &[usize]) -> Vec<(*mut u8, Layout)> {
        let block = |size: &usize| {
            let layout = Layout::from_size_align(*size, 8).unwrap();
            // SAFETY: of a size that is not zero.
            let block = unsafe { Sampled.alloc(layout) };
            assert!(!block.is_null());
            (block, layout)
        };
        // Not as its last call, which would be in place of this one on the stack.
        std::hint::black_box(sizes.iter().map(block).collect())
    }

    #[test]
    fn estimates_are_near_what_was_asked_for_and_nothing_is_left_when_all_is_given_back() {
        // 256 MiB in small blocks, and as much in large ones.
        let sizes: Vec<usize> = (0..262_144).map(|_| 1024).chain((0..64).map(|_| 4 << 20)).collect();
        let (function, length) = (blocks_of as fn(&[usize]) -> _ as usize, 4096);
        let blocks = blocks_of(&sizes);
        let (allocated, in_use) = of(function, length, &heap());
        assert_eq!(allocated, in_use);
        // Of the small ones some 512 are samples, which vary by 4.4 % (standard deviation); of the large ones nearly all.
        let (bytes, objects) = (in_use.bytes as f64, in_use.objects as f64);
        assert!((bytes / (512 << 20) as f64 - 1.0).abs() < 0.12, "{bytes} bytes");
        assert!((objects / 262_208.0 - 1.0).abs() < 0.25, "{objects} blocks");
        // Half of them grow.
        let (grow, go) = blocks.split_at(blocks.len() / 2);
        let mut grown = Vec::new();
        for (block, layout) in grow {
            // SAFETY: asked for with this layout.
            let larger = unsafe { Sampled.realloc(*block, *layout, 2048) };
            grown.push((larger, Layout::from_size_align(2048, 8).unwrap()));
        }
        for (block, layout) in go.iter().chain(&grown) {
            // SAFETY: asked for with this layout.
            unsafe { Sampled.dealloc(*block, *layout) };
        }
        let (later, in_use) = of(function, length, &heap());
        assert_eq!((later, in_use), (allocated, Amount::default()));
    }

    #[test]
    fn a_block_stands_for_as_many_as_it_is_rarely_chosen() {
        let check = |size: usize, blocks: f64| {
            let Sum { parts, bytes } = weight(size);
            let found = parts as f64 / PARTS as f64;
            assert!((found / blocks - 1.0).abs() < 1e-3, "{size}: {found}");
            assert!((bytes as f64 / (blocks * size as f64) - 1.0).abs() < 1e-3, "{size}: {bytes}");
        };
        check(1, 524_288.5);
        check(16, 32_768.5);
        check(512 << 10, 1.581_977);
        check(16 << 20, 1.0);
        // More than there is memory for is no nonsense either.
        assert_eq!(weight(isize::MAX as usize).parts, PARTS);
    }

    #[test]
    fn distances_are_as_between_events_at_random() {
        RANDOM.set(seed());
        let distances: Vec<i64> = (0..100_000).map(|_| distance()).collect();
        let mean = distances.iter().sum::<i64>() as f64 / 1e5;
        assert!((mean / PERIOD_BYTES as f64 - 1.0).abs() < 0.02, "{mean}");
        let longer = distances.iter().filter(|distance| **distance > PERIOD_BYTES as i64).count();
        assert!((35_800..37_800).contains(&longer), "{longer} of 100,000, which is not one over e");
    }
}
