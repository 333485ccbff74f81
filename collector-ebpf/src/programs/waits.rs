//! What workers' threads wait for, stack by stack. Loaded and attached only while somebody asks for a profile of waits, or all the
//! time if long ones are to be kept.

use core::hint::black_box;
use core::intrinsics::{AtomicOrdering, atomic_xadd};

use aya_ebpf::EbpfContext;
use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;
use collector_ebpf::sample::{
    LEAST, MAX_TAILS, STATE_BLOCKED, STATE_PREEMPTED, Sampled as Counter, Wait, Walk,
};
use collector_ebpf::schedule::{OTHER, RUNNABLE, Times};

use crate::blocked::reason;
use crate::kernel::{Registers, Task, now, read};
use crate::sample::{OFF_CPU, Sampled, begin, count, place_for, sampled, user_registers};
use crate::work::is_parked;
use crate::{LEAST_OF_POOLS, SAMPLING, STACKS, TAILS, TIMES, WAITS, WALKS, add_u64};

/// Stacks that may be looked at at once where they are not to be too often.
const AT_ONCE: u64 = 64;

/// `TASK_DEAD` of `include/linux/sched.h`: the last switch of a thread.
const TASK_DEAD: u32 = 0x80;

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
    let next_ns = unsafe { (*walk).next_ns };
    if next_ns > now + AT_ONCE * apart_ns {
        count(Counter::PASSED_OVER);
        return false;
    }
    // SAFETY: as above.
    unsafe { (*walk).next_ns = next_ns.max(now) + apart_ns };
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
