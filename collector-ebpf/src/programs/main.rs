//! The BPF programs: maps, and one kernel subject per module.
//!
//! They decide nothing: which process is a master, which pool it belongs to and when a slot is free again is told
//! to them through [`TAGS`] and [`FREE_SLOTS`]. Kernel floor: BPF ring buffer and task iterator 5.8, task storage
//! in tracing programs 5.12, atomics with fetch 5.12, BTF-typed tracepoints 5.5. The functions of [`walk`] and
//! [`tags`] are newer; user space has an older way for each program that calls them.
#![no_std]
#![no_main]
#![allow(
    internal_features,
    reason = "BPF has no atomic types; the intrinsic is the only way to an atomic add"
)]
#![allow(unsafe_code, reason = "every kernel read is a raw pointer read that the verifier checks")]
#![allow(clippy::multiple_unsafe_ops_per_block, reason = "kernel structs are read field after field")]
#![feature(core_intrinsics, asm_experimental_arch)]

mod blocked;
mod connections;
mod direct_array;
mod first_bytes;
mod free_list;
mod histograms;
mod kernel;
mod lifecycle;
mod names;
mod places;
mod python;
mod requests;
mod sample;
mod schedule;
mod signals;
mod sockets;
mod syscalls;
mod tags;
mod tasks;
mod threads;
mod unwind;
mod waits;
mod walk;
mod waterfall;
mod work;

use core::intrinsics::{AtomicOrdering, atomic_xadd};

use aya_ebpf::bindings::{
    BPF_F_MMAPABLE, BPF_F_NO_PREALLOC, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP, bpf_map_type,
};
use aya_ebpf::btf_maps::{Array, HashMap, PerCpuArray, RingBuf};
use aya_ebpf::macros::btf_map;
use collector_ebpf::event::Counter;
use collector_ebpf::free_list::FreeList;
use collector_ebpf::limits::{
    ASIDE, EVENT_RING_BYTES, FLIGHTS, MAX_CHUNKS, MAX_SLOTS, MAX_WATERFALLS, PASS_ROWS, REQUEST_SETS,
    THREAD_SETS, TOLD_PLACES,
};
use collector_ebpf::names::{NAMES, Named};
use collector_ebpf::request::{Connections, REQUEST_WAYS, Request};
use collector_ebpf::sample::{
    Code, KNOWN, Known, LEAST, MAX_CODE, MAX_POOLS, MAX_ROWS, MAX_SPACES, MAX_STACKS, MAX_TAILS, MAX_WAITS,
    MAX_WORDS, STRANGERS_BYTES, Sampled, Sampling, Space, Stack, Tail, Wait, Walk,
};
use collector_ebpf::schedule::{Chunk, ThreadSet, Times};
use collector_ebpf::slot::{Control, Slot, Tag};
use collector_ebpf::task::{Pass, TaskRow, Told};
use collector_ebpf::unwind::Row;
use collector_ebpf::waterfall::{Answered, Flight, STRETCHES, Slowest};

use direct_array::DirectArray;

#[btf_map]
static EVENTS: RingBuf<u64, EVENT_RING_BYTES> = RingBuf::new();

#[btf_map]
static SLOTS: Array<Slot, MAX_SLOTS, { BPF_F_MMAPABLE as usize }> = Array::new();

#[btf_map]
static FREE_SLOTS: Array<FreeList<MAX_SLOTS>, 1, { BPF_F_MMAPABLE as usize }> = Array::new();

#[unsafe(no_mangle)]
#[unsafe(link_section = ".bss.CONTROL")]
static CONTROL: DirectArray<Control, 1> = DirectArray::zeroed();

#[unsafe(no_mangle)]
#[unsafe(link_section = ".bss.THREADS")]
static THREADS: DirectArray<ThreadSet, THREAD_SETS> = DirectArray::zeroed();

#[unsafe(no_mangle)]
#[unsafe(link_section = ".bss.TIMES")]
static TIMES: DirectArray<Times, { MAX_SLOTS + MAX_WATERFALLS }> = DirectArray::zeroed();

#[btf_map]
static CHUNKS: Array<Chunk, MAX_CHUNKS, { BPF_F_MMAPABLE as usize }> = Array::new();

#[btf_map]
static FREE_CHUNKS: Array<FreeList<MAX_CHUNKS>, 1, { BPF_F_MMAPABLE as usize }> = Array::new();

#[unsafe(no_mangle)]
#[unsafe(link_section = ".bss.CONNECTIONS")]
static CONNECTIONS: DirectArray<Connections, REQUEST_SETS> = DirectArray::zeroed();

#[unsafe(no_mangle)]
#[unsafe(link_section = ".bss.REQUESTS")]
static REQUESTS: DirectArray<Request, { REQUEST_SETS * REQUEST_WAYS }> = DirectArray::zeroed();

#[unsafe(no_mangle)]
#[unsafe(link_section = ".bss.FLYING")]
static FLYING: DirectArray<Flight, FLIGHTS> = DirectArray::zeroed();

#[unsafe(no_mangle)]
#[unsafe(link_section = ".bss.ANSWERED")]
static ANSWERED: DirectArray<Answered, { FLIGHTS + ASIDE }> = DirectArray::zeroed();

#[unsafe(no_mangle)]
#[unsafe(link_section = ".bss.SLOWEST_REQUESTS")]
static SLOWEST_REQUESTS: DirectArray<Slowest, { MAX_WATERFALLS * STRETCHES }> = DirectArray::zeroed();

#[btf_map]
static PASS: Array<Pass, 1, { BPF_F_MMAPABLE as usize }> = Array::new();

#[btf_map]
static TOLD: Array<Told, TOLD_PLACES> = Array::new();

#[btf_map]
static ROWS: Array<TaskRow, PASS_ROWS, { BPF_F_MMAPABLE as usize }> = Array::new();

#[btf_map]
static COUNTERS: PerCpuArray<u64, { Counter::COUNT }> = PerCpuArray::new();

/// From here on: only while somebody asks for a profile. The hash maps are allocated as a whole: before 6.1 programs of
/// events may use no others, and those of the scheduler must not ask for memory.
#[btf_map]
static SAMPLING: Array<Sampling, 1, { BPF_F_MMAPABLE as usize }> = Array::new();

#[btf_map]
static STACKS: Array<Stack, MAX_STACKS, { BPF_F_MMAPABLE as usize }> = Array::new();

#[btf_map]
static STACK_WORDS: Array<u64, MAX_WORDS, { BPF_F_MMAPABLE as usize }> = Array::new();

#[btf_map]
static NAMED: Array<Named, NAMES, { BPF_F_MMAPABLE as usize }> = Array::new();

#[btf_map]
static SPACES: HashMap<u32, Space, MAX_SPACES> = HashMap::new();

#[btf_map]
static CODE: Array<Code, MAX_CODE, { BPF_F_MMAPABLE as usize }> = Array::new();

#[btf_map]
static MODULE_ROWS: Array<Row, MAX_ROWS, { BPF_F_MMAPABLE as usize }> = Array::new();

#[btf_map]
static WAITS: HashMap<u32, Wait, MAX_WAITS> = HashMap::new();

#[btf_map]
static TAILS: Array<Tail, MAX_TAILS, { BPF_F_MMAPABLE as usize }> = Array::new();

/// The shortest wait of a pool that is a tail, by kind, ns.
#[btf_map]
static LEAST_OF_POOLS: HashMap<u32, [u64; LEAST], MAX_POOLS> = HashMap::new();

#[btf_map]
static STRANGERS: RingBuf<u32, STRANGERS_BYTES> = RingBuf::new();

/// By kind of program.
#[btf_map]
static WALKS: PerCpuArray<Walk, 2> = PerCpuArray::new();

/// By kind of program.
#[btf_map]
static KNOWN_RULES: PerCpuArray<Known, { 2 * KNOWN }> = PerCpuArray::new();

#[btf_map]
static SAMPLED: PerCpuArray<u64, { Sampled::COUNT }> = PerCpuArray::new();

/// Task storage, which aya-ebpf has no wrapper for.
#[repr(C)]
struct TaskStorage<T> {
    r#type: *const [i32; bpf_map_type::BPF_MAP_TYPE_TASK_STORAGE as usize],
    key: *const i32,
    value: *const T,
    max_entries: *const [i32; 0],
    map_flags: *const [i32; BPF_F_NO_PREALLOC as usize],
}

// SAFETY: the fields exist for their BTF types only and are never read; the kernel synchronises the map.
unsafe impl<T> Sync for TaskStorage<T> {}

#[unsafe(no_mangle)]
#[unsafe(link_section = ".maps")]
static TAGS: TaskStorage<Tag> = TaskStorage {
    r#type: core::ptr::null(),
    key: core::ptr::null(),
    value: core::ptr::null(),
    max_entries: core::ptr::null(),
    map_flags: core::ptr::null(),
};

/// Adds one to a counter of this CPU.
#[inline(always)]
fn count(counter: u32) {
    count_by(counter, 1);
}

/// Adds to a counter of this CPU.
#[inline(always)]
fn count_by(counter: u32, value: u64) {
    if let Some(sum) = COUNTERS.get_ptr_mut(counter) {
        // SAFETY: the pointer is to this CPU's 8 aligned bytes. An add that an interrupt could tear is not enough
        // for counts that have to add up, so it is an atomic one.
        unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(sum, value) };
    }
}

#[inline(always)]
fn add_u64(to: *mut u64, value: u64) {
    // SAFETY: callers pass an aligned place in a map; threads of one worker run on several CPUs.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(to, value) };
}

#[inline(always)]
fn add_u32(to: *mut u32, value: u32) {
    // SAFETY: as above.
    unsafe { atomic_xadd::<u32, u32, { AtomicOrdering::Relaxed }>(to, value) };
}

/// Sends one record. Wakes the reader only if it waits for that: while there is much to tell it drains by timer,
/// because a wake-up costs more than all the rest.
#[inline(always)]
fn emit<T: 'static>(kind: u32, record: T) {
    count(Counter::counted(kind));
    match EVENTS.reserve_untyped::<T>(0) {
        Some(mut entry) => {
            entry.write(record);
            entry.submit(u64::from(if reader_waits() { BPF_RB_FORCE_WAKEUP } else { BPF_RB_NO_WAKEUP }));
        }
        None => count(Counter::lost(kind)),
    }
}

#[inline(always)]
fn reader_waits() -> bool {
    // SAFETY: a valid pointer into the array. Read anew each time: user space writes it.
    CONTROL
        .get_ptr(0)
        .is_some_and(|control| unsafe { (&raw const (*control).reader_waits).read_volatile() != 0 })
}

/// A program that could panic is refused by the verifier, which sees a loop without end.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
