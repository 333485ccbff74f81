//! Stacks of workers' threads, counted where they are found. Loaded and attached only while somebody asks for a profile.

use core::ffi::c_void;
use core::hint::black_box;
use core::intrinsics::{AtomicOrdering, atomic_cxchg, atomic_xadd};

use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::generated::bpf_get_stack;
use aya_ebpf::macros::{btf_tracepoint, perf_event};
use aya_ebpf::programs::{BtfTracePointContext, PerfEventContext};
use collector_ebpf::event::NONE;
use collector_ebpf::sample::{
    CODE_UNKNOWN, COMPLETE, LEAST, MAX_FRAMES, MAX_STACKS, MAX_TAILS, MAX_WORDS, NO_ROOM, NO_WINDOW, PLACES,
    READY, STATE_BLOCKED, STATE_ON_CPU, STATE_PREEMPTED, Sampled as Counter, Stack, Wait, Walk,
};
use collector_ebpf::schedule::{OTHER, RUNNABLE, Times};
use collector_ebpf::slot::ROLE_WORKER;

use crate::blocked::{NO_USER_SIDE, reason};
use crate::kernel::{Current, Registers, Task, now, offset, read};
use crate::schedule::Followed;
use crate::unwind::{ask_for, space_of, unwind};
use crate::work::is_parked;
use crate::{
    LEAST_OF_POOLS, SAMPLED, SAMPLING, SLOTS, STACK_WORDS, STACKS, TAILS, TIMES, WAITS, WALKS, add_u64,
    python,
};

/// Which of [`WALKS`] is whose: one program may interrupt another on its CPU.
const ON_CPU: u32 = 0;
const OFF_CPU: u32 = 1;

/// Stacks of waits that may be looked at at once where they are not to be too often.
const AT_ONCE: u64 = 64;

/// `TASK_DEAD` of `include/linux/sched.h`: the last switch of a thread.
const TASK_DEAD: u32 = 0x80;

/// Where `struct bpf_perf_event_data`, which begins with `struct pt_regs`, has registers (`arch/x86/include/asm/ptrace.h`).
const BP: usize = 32;
const IP: usize = 128;
const CS: usize = 136;
const SP: usize = 152;

/// A thread of a worker.
pub(crate) struct Sampled {
    task: Task,
    slot: u32,
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

/// One event of a CPU.
#[perf_event]
fn on_cpu(ctx: PerfEventContext) -> u32 {
    count(Counter::FIRED);
    let Some(walk) = WALKS.get_ptr_mut(ON_CPU) else { return 0 };
    let passed_ns = passed(walk);
    let Some(sampled) = sampled(Task::current()) else { return 0 };
    let register = |at: usize| {
        // SAFETY: the context is that long.
        unsafe { ctx.as_ptr().cast::<u8>().add(at).cast::<u64>().read_volatile() }
    };
    let registers = if register(CS) & 3 == 3 {
        begin(walk, None);
        Some([register(IP), register(SP), register(BP)])
    } else {
        begin(walk, Some(ctx.as_ptr()));
        Registers::of_current(Current::get()).map(user_registers)
    };
    if let Some(registers) = registers
        && let Some(place) = place_for(ON_CPU, &sampled, walk, registers, STATE_ON_CPU, 0)
        && let Some(stack) = STACKS.get_ptr_mut(place)
    {
        // SAFETY: a pointer into the array.
        unsafe {
            add_u64(&raw mut (*stack).count, 1);
            add_u64(&raw mut (*stack).time_ns, passed_ns);
        }
    }
    0
}

/// The time that a sample stands for: since the last event of this CPU, whoever ran. It is not always a period: an event
/// comes late where interrupts are off, and begins anew with each period. Periods are up to twice as long as what was asked for;
/// what is longer is time that a hypervisor took.
#[inline(always)]
fn passed(walk: *mut Walk) -> u64 {
    let Some(sampling) = SAMPLING.get_ptr(0) else { return 0 };
    let at_ns = now();
    // SAFETY: pointers into arrays; user space has written the period.
    unsafe {
        let (period_ns, last_ns) = ((*sampling).period_ns, (*walk).last_ns);
        (*walk).last_ns = at_ns;
        let passed_ns = at_ns.wrapping_sub(last_ns);
        if passed_ns < 3 * period_ns { passed_ns } else { period_ns }
    }
}

#[inline(always)]
pub(crate) fn user_registers(registers: Registers) -> [u64; 3] {
    [registers.get(offset!(regs_ip)), registers.get(offset!(regs_sp)), registers.get(offset!(regs_bp))]
}

/// A thread leaves its CPU, another one comes. Arguments as of [`crate::schedule`]'s.
#[btf_tracepoint(function = "sched_switch")]
fn off_cpu_switch(ctx: BtfTracePointContext) -> i32 {
    let (prev, next) = (Task(ctx.arg(1)), Task(ctx.arg(2)));
    let mut at_ns = 0;
    if let Some(sampled) = sampled(prev) {
        at_ns = now();
        leave(&ctx, &sampled, ctx.arg::<u64>(0) & 1 != 0, at_ns);
    }
    if let Some(wait) = WAITS.get_ptr_mut(next.tid()) {
        if at_ns == 0 {
            at_ns = now();
        }
        // SAFETY: a pointer into the map; of a thread that is on this CPU.
        if unsafe { (*wait).runnable } == 0 {
            end_blocked(wait, at_ns);
        }
        end_queued(wait, at_ns);
    }
    0
}

/// A thread is runnable again.
#[btf_tracepoint(function = "sched_wakeup")]
fn off_cpu_wakeup(ctx: BtfTracePointContext) -> i32 {
    if let Some(wait) = WAITS.get_ptr_mut(Task(ctx.arg(0)).tid()) {
        // SAFETY: a pointer into the map; whoever wakes a thread holds it.
        if unsafe { (*wait).runnable } == 0 {
            end_blocked(wait, now());
        }
    }
    0
}

#[inline(always)]
fn leave(ctx: &BtfTracePointContext, sampled: &Sampled, preempted: bool, now: u64) {
    let task = sampled.task;
    let tid = task.tid();
    let state: u32 = read!(task.0, task_state);
    if state & TASK_DEAD != 0 {
        let _ = WAITS.remove(tid);
        return;
    }
    let known = WAITS.get_ptr_mut(tid);
    if let Some(wait) = known {
        // SAFETY: a pointer into the map, of this thread.
        unsafe {
            if (*wait).stack != 0 {
                count(Counter::UNSEEN);
                (*wait).stack = 0;
            }
        }
    }
    let wants_to_run = preempted || state == 0;
    let (Some(walk), Some(registers)) = (WALKS.get_ptr_mut(OFF_CPU), Registers::of(task)) else { return };
    let (kind, reason) =
        if wants_to_run { (STATE_PREEMPTED, 0) } else { (STATE_BLOCKED, reason(task, state, OTHER)) };
    if !is_to_be_looked_at(sampled, if wants_to_run { RUNNABLE } else { reason }, walk, now) {
        return;
    }
    begin(walk, Some(ctx.as_ptr()));
    let registers = user_registers(registers);
    let Some(place) = place_for(OFF_CPU, sampled, walk, registers, kind, reason) else { return };
    let wait = Wait { stack: place + 1, runnable: u32::from(wants_to_run), since_ns: now };
    match known {
        // SAFETY: as above.
        Some(known) => unsafe { *known = wait },
        None if WAITS.insert(tid, wait, 0).is_err() => count(Counter::NO_PLACE),
        None => {}
    }
}

/// A blocked thread could run again.
#[inline(always)]
fn end_blocked(wait: *mut Wait, now: u64) {
    forget_stack_of_before(wait);
    // SAFETY: callers pass a pointer into the map.
    let (place, waited_ns) = unsafe { ((*wait).stack.wrapping_sub(1), now.wrapping_sub((*wait).since_ns)) };
    if let Some(stack) = STACKS.get_ptr_mut(place)
        // SAFETY: a pointer into the array; who wrote it was this program.
        && let (pool, reason) = unsafe { ((*stack).pool, (*stack).reason) }
        && waited_ns >= least_ns(pool, reason)
    {
        // SAFETY: a pointer into the array.
        unsafe {
            add_u64(&raw mut (*stack).count, 1);
            add_u64(&raw mut (*stack).time_ns, waited_ns);
            tell_tail(place, pool, reason, waited_ns, now);
        }
    }
    // SAFETY: as above.
    unsafe {
        (*wait).runnable = 1;
        (*wait).since_ns = now;
    }
}

/// A wait that began before all stacks were forgotten has none any more: its place may be another's.
#[inline(always)]
fn forget_stack_of_before(wait: *mut Wait) {
    let Some(sampling) = SAMPLING.get_ptr(0) else { return };
    // SAFETY: a pointer into the array, which user space sets; callers pass a pointer into the map.
    unsafe {
        if (*wait).since_ns < (&raw const (*sampling).began_ns).read_volatile() && (*wait).stack != 0 {
            count(Counter::UNSEEN);
            (*wait).stack = 0;
        }
    }
}

/// A thread that could run runs.
#[inline(always)]
fn end_queued(wait: *mut Wait, now: u64) {
    forget_stack_of_before(wait);
    // SAFETY: callers pass a pointer into the map.
    let (place, waited_ns) = unsafe { ((*wait).stack.wrapping_sub(1), now.wrapping_sub((*wait).since_ns)) };
    if let Some(stack) = STACKS.get_ptr_mut(place)
        // SAFETY: as above.
        && let pool = unsafe { (*stack).pool }
        && waited_ns >= least_ns(pool, RUNNABLE)
    {
        // SAFETY: as above.
        unsafe {
            add_u64(&raw mut (*stack).queued, 1);
            add_u64(&raw mut (*stack).queued_ns, waited_ns);
            tell_tail(place, pool, RUNNABLE, waited_ns, now);
        }
    }
    // SAFETY: as above.
    unsafe { (*wait).stack = 0 };
}

/// The shortest wait that counts.
#[inline(always)]
fn least_ns(pool: u32, kind: u32) -> u64 {
    let Some(sampling) = SAMPLING.get_ptr(0) else { return u64::MAX };
    let kind = black_box(kind) as usize % LEAST;
    // SAFETY: pointers into maps, and an index below the length; user space sets both.
    unsafe {
        if (*sampling).walks_apart_ns != 0
            && let Some(least_ns) = LEAST_OF_POOLS.get_ptr(pool)
        {
            return (&raw const (*least_ns)[kind]).read_volatile();
        }
        (&raw const (*sampling).least_ns[kind]).read_volatile()
    }
}

/// Whether the stack of who leaves its CPU for this may be wanted: not where it waits for work, nor too often, if only those of
/// tails are.
#[inline(always)]
fn is_to_be_looked_at(sampled: &Sampled, kind: u32, walk: *mut Walk, now: u64) -> bool {
    let Some(sampling) = SAMPLING.get_ptr(0) else { return false };
    // SAFETY: a pointer into the array; user space sets it.
    let apart_ns = unsafe { (*sampling).walks_apart_ns };
    if apart_ns == 0 {
        return true;
    }
    if least_ns(sampled.pool, kind) == u64::MAX || waits_for_work(sampled.slot, kind) {
        return false;
    }
    // SAFETY: callers pass a pointer into the array, of this CPU.
    let next_ns = unsafe { (*walk).last_ns };
    if next_ns > now + AT_ONCE * apart_ns {
        count(Counter::PASSED_OVER);
        return false;
    }
    // SAFETY: as above.
    unsafe { (*walk).last_ns = next_ns.max(now) + apart_ns };
    true
}

/// A worker that was asked for nothing waits for work.
#[inline(always)]
fn waits_for_work(slot: u32, kind: u32) -> bool {
    let Some(times) = TIMES.get_ptr(slot) else { return false };
    // SAFETY: a pointer into the array; others change it.
    let busy = unsafe { (&raw const (*times).busy).read_volatile() };
    Times::in_flight_of(busy) == 0 && is_parked(times, kind)
}

/// Tells a wait, if each is to be told.
#[inline(always)]
fn tell_tail(stack: u32, pool: u32, kind: u32, waited_ns: u64, now: u64) {
    let Some(sampling) = SAMPLING.get_ptr_mut(0) else { return };
    // SAFETY: a pointer into the array; user space sets it.
    if unsafe { (*sampling).walks_apart_ns } == 0 {
        return;
    }
    // SAFETY: an aligned integer of the array.
    let before =
        unsafe { atomic_xadd::<u32, u32, { AtomicOrdering::SeqCst }>(&raw mut (*sampling).tails, 1) };
    let Some(tail) = TAILS.get_ptr_mut(before & (MAX_TAILS as u32 - 1)) else { return };
    // SAFETY: a pointer into the array. Who is overtaken by all others meanwhile is overwritten in part: its number is another.
    unsafe {
        (&raw mut (*tail).number).write_volatile(0);
        (&raw mut (*tail).end_ns).write_volatile(now);
        (&raw mut (*tail).waited_ns).write_volatile(waited_ns);
        (&raw mut (*tail).stack).write_volatile(stack);
        (&raw mut (*tail).kind).write_volatile(kind);
        (&raw mut (*tail).pool).write_volatile(pool);
        (&raw mut (*tail).number).write_volatile(before.wrapping_add(1));
    }
}

/// A walk begins: at the frames of the kernel, if it is in there.
#[inline(always)]
fn begin(walk: *mut Walk, kernel: Option<*mut c_void>) {
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
fn place_for(
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
    if start_code != 0 && (!known || unsafe { (*walk).flags } & u32::from(CODE_UNKNOWN) != 0) {
        ask_for(pid);
    }
    let hash = hash_kernel_frames(walk);
    let Some(place) = place_of(hash) else {
        count(Counter::NO_PLACE);
        return None;
    };
    count(Counter::KEPT);
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
fn count(counter: u32) {
    if let Some(sum) = SAMPLED.get_ptr_mut(counter) {
        add_u64(sum, 1);
    }
}
