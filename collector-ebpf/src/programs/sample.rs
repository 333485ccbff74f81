//! Stacks of workers' threads, counted where they are found. Loaded and attached only while somebody asks for a profile.

use core::ffi::c_void;
use core::intrinsics::{AtomicOrdering, atomic_cxchg, atomic_xadd};

use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::generated::bpf_get_stack;
use aya_ebpf::macros::perf_event;
use aya_ebpf::programs::PerfEventContext;
use collector_ebpf::event::NONE;
use collector_ebpf::sample::{
    CODE_UNKNOWN, COMPLETE, MAX_FRAMES, MAX_STACKS, MAX_WORDS, NO_ROOM, NO_WINDOW, PLACES, READY,
    STATE_ON_CPU, Sampled as Counter, Stack, Walk,
};
use collector_ebpf::slot::ROLE_WORKER;

use crate::blocked::NO_USER_SIDE;
use crate::kernel::{Registers, Task, offset, read};
use crate::schedule::Followed;
use crate::unwind::{ask_for, may_ask_again, space_of, unwind};
use crate::{SAMPLED, SAMPLING, SLOTS, STACK_WORDS, STACKS, WALKS, add_u64, python};

/// Which of [`WALKS`] is whose: one program may interrupt another on its CPU.
const ON_CPU: u32 = 0;
pub(crate) const OFF_CPU: u32 = 1;

/// Where `struct bpf_perf_event_data`, which begins with `struct pt_regs`, has registers (`arch/x86/include/asm/ptrace.h`).
const BP: usize = 32;
const IP: usize = 128;
const CS: usize = 136;
const SP: usize = 152;
/// What follows them: `sample_period` of `struct bpf_perf_event_data` (`include/uapi/linux/bpf_perf_event.h`).
const PERIOD: usize = 168;

/// A thread of a worker.
pub(crate) struct Sampled {
    pub(crate) task: Task,
    pub(crate) slot: u32,
    pub(crate) pool: u32,
}

/// If it is one.
#[inline(always)]
pub(crate) fn sampled(task: Task) -> Option<Sampled> {
    let tag = task.leader().tag()?;
    let owner = Followed::by(tag);
    // SAFETY: the tag lives as long as its task.
    let role = unsafe { (&raw const (*tag.as_ptr()).role).read_volatile() };
    if role & ROLE_WORKER == 0 || owner.slot == NONE {
        return None;
    }
    let slot = SLOTS.get_ptr(owner.slot)?;
    // SAFETY: a pointer into the array.
    Some(Sampled { task, slot: owner.slot, pool: unsafe { (&raw const (*slot).pool).read_volatile() } })
}

/// One event of a CPU. Where it is of a counter, it is an interrupt that cannot be masked, and comes in the middle of anything, other programs
/// of ours too. No program of this kind begins while another one is at work on the same CPU (`bpf_prog_active`); each sampler has its
/// own of all maps that are written here; and helpers that would have to wait fail: for the memory of a program
/// (`nmi_uaccess_okay`), for room in the ring buffer, and before Linux 6.2 for a tag while one is looked up.
#[perf_event]
fn on_cpu(ctx: PerfEventContext) -> u32 {
    let Some(walk) = WALKS.get_ptr_mut(ON_CPU) else { return 0 };
    let Some(sampled) = sampled(Task::current()) else { return 0 };
    let word = |at: usize| {
        // SAFETY: the context is that long.
        unsafe { ctx.as_ptr().cast::<u8>().add(at).cast::<u64>().read_volatile() }
    };
    let registers = if word(CS) & 3 == 3 {
        begin(walk, None);
        Some([word(IP), word(SP), word(BP)])
    } else {
        begin(walk, Some(ctx.as_ptr()));
        Registers::of(Task::current()).map(user_registers)
    };
    if let Some(registers) = registers
        && let Some(place) = place_for(ON_CPU, &sampled, walk, registers, STATE_ON_CPU, 0)
        && let Some(stack) = STACKS.get_ptr_mut(place)
    {
        // SAFETY: a pointer into the array.
        unsafe {
            add_u64(&raw mut (*stack).count, 1);
            // Of a counter the period is set anew by the kernel all the time.
            let told = sample_ns();
            add_u64(&raw mut (*stack).time_ns, if told == 0 { word(PERIOD) } else { told });
        }
    }
    0
}

/// The time that a sample stands for. Not what has passed since the last event of this CPU: where a CPU is idle events come late, or
/// some are left out, and whoever runs next would have that time too.
#[inline(always)]
fn sample_ns() -> u64 {
    // SAFETY: a pointer into the array; user space sets it.
    SAMPLING.get_ptr(0).map_or(0, |sampling| unsafe { (&raw const (*sampling).sample_ns).read_volatile() })
}

#[inline(always)]
pub(crate) fn user_registers(registers: Registers) -> [u64; 3] {
    [registers.get(offset!(regs_ip)), registers.get(offset!(regs_sp)), registers.get(offset!(regs_bp))]
}

/// A walk begins: at the frames of the kernel, if it is in there.
#[inline(always)]
pub(crate) fn begin(walk: *mut Walk, kernel: Option<*mut c_void>) {
    const SIZE: u32 = (MAX_FRAMES * size_of::<u64>()) as u32;
    // SAFETY: callers pass a pointer into the array.
    unsafe {
        (*walk).user_frames = 0;
        (*walk).kernel_frames = 0;
        (*walk).called = 0;
        (*walk).alone = 0;
        (*walk).window_at = NO_WINDOW;
    }
    let Some(ctx) = kernel else { return };
    // SAFETY: the buffer is as long as it is said to be.
    let length = unsafe { bpf_get_stack(ctx, (&raw mut (*walk).kernel).cast(), SIZE, 0) };
    if length > 0 {
        // SAFETY: as above.
        unsafe { (*walk).kernel_frames = length as u32 / 8 };
    }
}

/// Unwinds the stack of the thread that runs. Returns its place in the table, if there is one.
#[inline(always)]
pub(crate) fn place_for(
    which: u32,
    sampled: &Sampled,
    walk: *mut Walk,
    [ip, sp, bp]: [u64; 3],
    state: u8,
    reason: u32,
) -> Option<u32> {
    let task = sampled.task;
    let (start_code, known) = space_of(task, walk);
    let pid = task.pid();
    // SAFETY: callers pass a pointer into the array.
    unsafe {
        (*walk).ip = ip;
        (*walk).sp = sp;
        (*walk).bp = bp;
        (*walk).hash = mixed(u64::from(state) << 32 | u64::from(reason), u64::from(task.tid()));
        (*walk).hash = mixed((*walk).hash, start_code);
        (*walk).hash = mixed((*walk).hash, task.start_ns());
    }
    let flags: u32 = read!(task.0, task_flags);
    if flags & NO_USER_SIDE != 0 || start_code == 0 {
        // Its registers are of whoever made it; or it is about to end, and has let go of its memory.
        // SAFETY: as above.
        unsafe {
            (*walk).flags = u32::from(COMPLETE);
            (*walk).python_frames = 0;
        }
    } else {
        unwind(which);
        python::unwind(which, task, walk);
    }
    // SAFETY: as above.
    let maps_more = unsafe { (*walk).flags } & u32::from(CODE_UNKNOWN) != 0;
    if start_code != 0 && (!known || maps_more && may_ask_again(pid)) {
        ask_for(pid);
    }
    let hash = hash_kernel_frames(walk);
    let Some(place) = place_of(hash) else {
        count(Counter::NO_PLACE);
        return None;
    };
    if !place.is_new {
        return Some(place.index);
    }
    let at = STACKS.get_ptr_mut(place.index)?;
    // SAFETY: this program alone has this place, and readers wait until it is said to be ready.
    unsafe {
        (*at).start_ns = task.leader_to_read().start_ns();
        (*at).pid = pid;
        (*at).tid = task.tid();
        (*at).pool = sampled.pool;
        task.copy_comm(&raw mut (*at).comm);
        (*at).state = state;
        (*at).reason = reason;
        (*at).space = (*walk).first;
        (*at).start_code = start_code;
        let room = copy_frames(which, at);
        let flags = (*walk).flags as u8 | READY | if room { 0 } else { NO_ROOM };
        (&raw mut (*at).flags).write_volatile(flags);
    }
    Some(place.index)
}

/// One more word of what tells stacks apart.
#[inline(always)]
pub(crate) fn mixed(hash: u64, word: u64) -> u64 {
    (hash.rotate_left(5) ^ word).wrapping_mul(0x517c_c1b7_2722_0a95)
}

#[inline(always)]
fn hash_kernel_frames(walk: *mut Walk) -> u64 {
    // SAFETY: callers pass a pointer into the array; indices below the length.
    unsafe {
        let mut hash = (*walk).hash;
        let frames = (*walk).kernel_frames as usize;
        for index in 0..MAX_FRAMES {
            if index >= frames {
                break;
            }
            hash = mixed(hash, (*walk).kernel[index]);
        }
        // Zero is nobody's.
        hash | 1
    }
}

struct Place {
    index: u32,
    is_new: bool,
}

/// Where a stack is in the table, or now has a place.
#[inline(always)]
fn place_of(hash: u64) -> Option<Place> {
    let first = (hash >> 32) as u32;
    for step in 0..PLACES as u32 {
        let index = first.wrapping_add(step) & (MAX_STACKS as u32 - 1);
        let at = STACKS.get_ptr_mut(index)?;
        // SAFETY: an aligned integer of the array, which other CPUs change.
        let known = unsafe { (&raw const (*at).hash).read_volatile() };
        if known == hash {
            return Some(Place { index, is_new: false });
        }
        if known != 0 {
            continue;
        }
        // SAFETY: as above.
        let (before, is_new) = unsafe {
            atomic_cxchg::<u64, { AtomicOrdering::SeqCst }, { AtomicOrdering::SeqCst }>(
                &raw mut (*at).hash,
                0,
                hash,
            )
        };
        if is_new || before == hash {
            return Some(Place { index, is_new });
        }
    }
    None
}

/// Copies the frames to the words, if there is room.
#[inline(always)]
fn copy_frames(which: u32, stack: *mut Stack) -> bool {
    let (Some(sampling), Some(walk)) = (SAMPLING.get_ptr_mut(0), WALKS.get_ptr(which)) else { return false };
    // SAFETY: pointers into arrays; indices below their lengths.
    unsafe {
        let kernel = (*walk).kernel_frames.min(MAX_FRAMES as u32);
        let user = (*walk).user_frames.min(MAX_FRAMES as u32);
        let python = (*walk).python_frames.min(MAX_FRAMES as u32);
        let words = &raw mut (*sampling).words;
        // Looked at before it is raised, so that it never wraps around.
        if words.read_volatile() >= (MAX_WORDS - 3 * MAX_FRAMES) as u32 {
            return false;
        }
        let first = atomic_xadd::<u32, u32, { AtomicOrdering::SeqCst }>(words, kernel + user + python);
        for index in 0..MAX_FRAMES as u32 {
            if index >= kernel {
                break;
            }
            let Some(word) = STACK_WORDS.get_ptr_mut(first.wrapping_add(index)) else { return false };
            *word = (*walk).kernel[index as usize];
        }
        for index in 0..MAX_FRAMES as u32 {
            if index >= user {
                break;
            }
            let Some(word) = STACK_WORDS.get_ptr_mut(first.wrapping_add(kernel).wrapping_add(index)) else {
                return false;
            };
            *word = (*walk).user[index as usize];
        }
        for index in 0..MAX_FRAMES as u32 {
            if index >= python {
                break;
            }
            let word = first.wrapping_add(kernel).wrapping_add(user).wrapping_add(index);
            let Some(word) = STACK_WORDS.get_ptr_mut(word) else { return false };
            *word = (*walk).python_code[index as usize];
        }
        (*stack).python_frames = python;
        (*stack).first_word = first;
        (*stack).kernel_frames = kernel as u8;
        (*stack).user_frames = user as u8;
    }
    true
}

/// Adds one to a counter of this CPU.
#[inline(always)]
pub(crate) fn count(counter: u32) {
    if let Some(sum) = SAMPLED.get_ptr_mut(counter) {
        add_u64(sum, 1);
    }
}
