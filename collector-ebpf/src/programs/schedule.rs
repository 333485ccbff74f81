//! Where the time of workers' threads goes, switch by switch.
//!
//! All that a program here does for a thread that nobody follows is to look at one cache line. The rest is a few adds
//! in memory that user space maps: no call into the kernel but for the clock, and, for a thread that blocks, for the
//! system call that it blocked in.

use core::intrinsics::{AtomicOrdering, atomic_cxchg, atomic_xadd};
use core::ptr::NonNull;

use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;
use collector_ebpf::event::{Counter, NONE};
use collector_ebpf::limits::THREAD_SETS;
use collector_ebpf::offsets::ABSENT;
use collector_ebpf::schedule::{
    DISK, KINDS, LET_GO, ON_CPU, OTHER, PROFILE_COUNTERS, PROFILE_HISTOGRAMS, RUNNABLE, STOPPED,
    THREAD_BEFORE, THREAD_BEFORE_SHIFT, THREAD_BUSY, THREAD_HISTOGRAMS, THREAD_IN_REQUEST, THREAD_PARTIAL,
    TIMED_RUNS, Thread, Times, UNKNOWN, WAYS, parks_of, profile_of, wishes,
};
use collector_ebpf::slot::Tag;

use crate::blocked::reason;
use crate::histograms::{discard, record};
use crate::kernel::{Task, now, offset, opaque, read, unforeseen};
use crate::work::{begin_work, end_work, turn};
use crate::{CONTROL, THREADS, TIMES, add_u32, add_u64, count, count_by, lifecycle, waterfall};

/// `TASK_DEAD`: the last switch of a thread.
const TASK_DEAD: u32 = 0x80;
/// `TASK_NEW`: between its making and its first wake-up.
const TASK_NEW: u32 = 0x800;

/// `(bool preempt, struct task_struct *prev, struct task_struct *next, unsigned int prev_state)`; the last is younger
/// than our oldest kernel, and the state is still in `prev`.
#[btf_tracepoint(function = "sched_switch")]
fn task_switch(ctx: BtfTracePointContext) -> i32 {
    let (prev, next) = (Task(ctx.arg(1)), Task(ctx.arg(2)));
    // One after the other and not both looked up first: the verifier lets nobody compare two pointers at once, which is
    // what the compiler makes of it.
    let mut at_ns = 0;
    if let Some(thread) = find(prev.tid()) {
        at_ns = now();
        leave_cpu(prev, thread, ctx.arg::<u64>(0) & 1 != 0, at_ns);
    }
    if let Some(thread) = find(next.tid()) {
        if at_ns == 0 {
            at_ns = now();
        }
        if Thread::kind_of(thread.place) == ON_CPU {
            // Its switch away was not seen.
            lose_track(thread);
        }
        change(thread, ON_CPU, at_ns);
    }
    if at_ns != 0 {
        time_run(at_ns);
    }
    0
}

/// The thread is runnable again. It may be running still, on its way to sleep: then it never slept.
#[btf_tracepoint(function = "sched_wakeup")]
fn task_wakeup(ctx: BtfTracePointContext) -> i32 {
    let task = Task(ctx.arg(0));
    if let Some(thread) = find(task.tid()) {
        let kind = Thread::kind_of(thread.place);
        if kind >= DISK && kind < KINDS as u32 {
            let at_ns = now();
            change(thread, RUNNABLE, at_ns);
            time_run(at_ns);
        }
    }
    0
}

/// Adds the time since the run read the clock to what runs cost, for one in [`TIMED_RUNS`].
#[inline(always)]
pub(crate) fn time_run(since_ns: u64) {
    if is_timed(since_ns) {
        count_by(Counter::TIMED_NS, now() - since_ns);
    }
}

/// A run is one of those, by any time that has to do with it: the lowest bits of the clock are as good as a die, but for the
/// lowest three, which some clocks do not count.
#[inline(always)]
pub(crate) fn is_timed(at_ns: u64) -> bool {
    at_ns >> 3 & (TIMED_RUNS - 1) == 0
}

/// The thread is runnable for the first time: from here on it waits, and from here on it has lived, so that the moments
/// since its fork are in no time and in no life.
#[btf_tracepoint(function = "sched_wakeup_new")]
fn task_wakeup_new(ctx: BtfTracePointContext) -> i32 {
    let task = Task(ctx.arg(0));
    if let Some(thread) = find(task.tid()) {
        let (forked_ns, now) = (thread.since_ns, now());
        begin_change(thread);
        lived(Thread::slot_of(thread.place), forked_ns.wrapping_sub(now));
        // SAFETY: an aligned integer of ours; volatile, so that it is the last store.
        unsafe { (&raw mut thread.since_ns).write_volatile(now) };
    }
    0
}

/// The entry of a followed thread. Only the CPU that holds the thread's run queue changes it, hence no atomics, and user space,
/// which exchanges flags and looks again.
#[inline(always)]
pub(crate) fn find(tid: u32) -> Option<&'static mut Thread> {
    find_by(tid, way_of)
}

/// The same of a thread that is likely to be followed, which mostly has the first entry of its set.
#[inline(always)]
pub(crate) fn find_likely(tid: u32) -> Option<&'static mut Thread> {
    find_by(tid, |first, tid| if tid_of(first, 0) == u64::from(tid) { 0 } else { way_of(first, tid) })
}

#[inline(always)]
fn find_by(tid: u32, way: impl FnOnce(*mut Thread, u32) -> u64) -> Option<&'static mut Thread> {
    if tid == 0 {
        // The idle tasks; and in an entry it means that nobody has it.
        return None;
    }
    let set = THREADS.get_ptr_mut(tid % THREAD_SETS as u32)?;
    // SAFETY: a pointer into the array, checked by the verifier.
    let first = unsafe { (&raw mut (*set).threads).cast::<Thread>() };
    // SAFETY: below the number of elements, which the mask tells the verifier.
    let thread = unsafe { first.add((way(first, tid) & 3) as usize) };
    // SAFETY: valid and aligned; the entry, if it is the thread's, is changed by nobody else but for flags that user space
    // exchanges, and looks at again.
    let thread = unsafe { &mut *thread };
    (thread.tid == tid).then_some(thread)
}

/// Which of a set's entries a thread has, if it has one of the last three. By arithmetic and not by four branches: the verifier goes
/// through all that follows once for each branch.
#[inline(always)]
fn way_of(first: *mut Thread, tid: u32) -> u64 {
    // 1 if equal.
    let is = |other: u64| opaque(other ^ u64::from(tid)).wrapping_sub(1) >> 63;
    is(tid_of(first, 1)) + is(tid_of(first, 2)) * 2 + is(tid_of(first, 3)) * 3
}

#[inline(always)]
fn tid_of(first: *mut Thread, way: usize) -> u64 {
    // SAFETY: callers pass the first of a set and one of its ways; another CPU may enter a thread in another of them.
    u64::from(unsafe { (&raw const (*first.add(way)).tid).read_volatile() })
}

/// Begins to follow a thread of a worker, if the worker's pool wants it and it is not followed yet.
#[inline(always)]
pub(crate) fn follow(tid: u32, owner: Followed, kind: u32, partial: bool, now: u64) {
    let flags = if partial { THREAD_PARTIAL } else { 0 };
    begin_to_follow(tid, owner.slot, owner.wishes, Thread::place(0, kind, flags), now);
}

/// The same, with the place that it gets but for its slot. Global to the verifier, see [`crate::requests`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn begin_to_follow(tid: u32, slot: u32, wishes: u32, place: u32, now: u64) -> u32 {
    let owner = Followed { slot, wishes };
    let Some(control) = CONTROL.get_ptr(0) else { return 0 };
    // SAFETY: a valid pointer into the array; user space sets it.
    let ceiling = unsafe { (*control).ceiling };
    if owner.slot == NONE
        || owner.profile() < PROFILE_COUNTERS
        || ceiling < PROFILE_COUNTERS
        || find(tid).is_some()
    {
        return 0;
    }
    let mut flags = place & THREAD_PARTIAL;
    if owner.profile() >= PROFILE_HISTOGRAMS {
        flags |= THREAD_HISTOGRAMS;
    }
    enter(tid, Thread::place(owner.slot, Thread::kind_of(place), flags), parks_of(owner.wishes), now);
    0
}

/// A thread that has lived before it was followed, as an iteration finds it. False if it moved meanwhile, so that
/// what it does is not known: it is to be looked at once more.
#[inline(always)]
pub(crate) fn follow_found(task: Task, owner: Followed, now: u64) -> bool {
    let tid = task.tid();
    let (state, on_cpu) = state_of(task);
    if owner.slot == NONE
        || owner.profile() < PROFILE_COUNTERS
        || state & TASK_DEAD != 0
        || find(tid).is_some()
    {
        return true;
    }
    if state & TASK_NEW != 0 {
        // The probe of its fork is about to follow it, unless it was attached too late.
        return false;
    }
    let kind = if state != 0 {
        reason(task, state, OTHER)
    } else if offset!(task_on_cpu) == ABSENT {
        UNKNOWN
    } else if on_cpu != 0 {
        ON_CPU
    } else {
        RUNNABLE
    };
    follow(tid, owner, kind, true, now);
    // The switches of a thread that is not followed pass unseen: also its last one, between the look and the entry.
    if state_of(task) == (state, on_cpu) {
        return true;
    }
    leave(tid, now);
    false
}

/// `__state`, and whether it is on a CPU. Read anew each time.
#[inline(always)]
fn state_of(task: Task) -> (u32, i32) {
    let state = task.0.wrapping_add(offset!(task_state) as usize).cast::<u32>();
    // SAFETY: as for `read!`; volatile, because another CPU changes it.
    let state = unsafe { state.read_volatile() };
    if offset!(task_on_cpu) == ABSENT {
        return (state, 0);
    }
    let on_cpu = task.0.wrapping_add(offset!(task_on_cpu) as usize).cast::<i32>();
    // SAFETY: as above.
    (state, unsafe { on_cpu.read_volatile() })
}

/// For whom a thread is followed.
#[derive(Clone, Copy)]
pub(crate) struct Followed {
    pub(crate) slot: u32,
    /// [`collector_ebpf::schedule::wishes`]
    pub(crate) wishes: u32,
}

impl Followed {
    /// By its tag, which user space may change at the same time: each field is read once.
    #[inline(always)]
    pub(crate) fn by(tag: NonNull<Tag>) -> Self {
        let tag = tag.as_ptr();
        // SAFETY: the tag lives as long as its task.
        unsafe {
            Self {
                slot: (&raw const (*tag).slot).read_volatile(),
                wishes: (&raw const (*tag).wishes).read_volatile(),
            }
        }
    }

    #[inline(always)]
    fn profile(self) -> u32 {
        profile_of(self.wishes)
    }
}

/// Another thread than the main one called execve(2), which ended all others and gave it the main one's id. The last
/// switch of the main thread may have come before or after that, under either id.
#[inline(always)]
pub(crate) fn take_over(old_tid: u32, tid: u32, kind: u32, now: u64) -> Option<Followed> {
    let mut place = None;
    if let Some(thread) = find(old_tid) {
        place = Some(thread.place);
        leave(old_tid, now);
    }
    if let Some(thread) = find(tid) {
        place = Some(thread.place);
        leave(tid, now);
    }
    let place = place?;
    let (slot, flags) = (Thread::slot_of(place), place & THREAD_HISTOGRAMS);
    let profile = if flags != 0 { PROFILE_HISTOGRAMS } else { PROFILE_COUNTERS };
    // SAFETY: a pointer into the array.
    let parks = unsafe { (*TIMES.get_ptr(slot)?).parks };
    enter(tid, Thread::place(slot, kind, flags | THREAD_PARTIAL), parks, now);
    Some(Followed { slot, wishes: wishes(profile, parks) })
}

/// Gives a thread an entry.
#[inline(always)]
fn enter(tid: u32, place: u32, parks: u32, now: u64) {
    let Some(set) = THREADS.get_ptr_mut(tid % THREAD_SETS as u32) else { return };
    let Some(times) = TIMES.get_ptr_mut(Thread::slot_of(place)) else { return };
    // SAFETY: a pointer into the array.
    let followed = unsafe { &raw mut (*times).followed };
    // Before it has an entry, because it may leave as soon as it has.
    // SAFETY: an aligned integer of the map.
    let others = unsafe { atomic_xadd::<u32, u32, { AtomicOrdering::SeqCst }>(followed, 1) };
    // SAFETY: a pointer into the array, checked by the verifier.
    let first = unsafe { (&raw mut (*set).threads).cast::<Thread>() };
    let mut way = 0;
    // SAFETY: one of the elements; a valid, aligned integer. Whoever exchanges the zero has the entry. Nobody finds it until
    // all of it is written: what its last thread left there is another slot's.
    while !unsafe {
        atomic_cxchg::<u32, { AtomicOrdering::SeqCst }, { AtomicOrdering::SeqCst }>(
            &raw mut (*first.add(way)).tid,
            0,
            LET_GO,
        )
        .1
    } {
        way += 1;
        if way == WAYS {
            add_u32(followed, u32::MAX);
            count(Counter::NO_THREAD);
            return;
        }
    }
    let Some(control) = CONTROL.get_ptr_mut(0) else { return };
    // SAFETY: below the number of elements, which the mask tells the verifier.
    let thread = unsafe { first.add(unforeseen(way as u64, control) as usize % WAYS) };
    waterfall::leave(tid);
    if others == 0 {
        begin_work(times, parks, place & THREAD_PARTIAL != 0, now);
    }
    let place = turn(times, place, Thread::kind_of(place), now);
    lived(Thread::slot_of(place), now.wrapping_neg());
    // SAFETY: the entry is this thread's now; volatile, so that the order of the stores stays.
    unsafe {
        (&raw mut (*thread).place).write_volatile(place);
        (&raw mut (*thread).since_ns).write_volatile(now);
        (&raw mut (*thread).tid).write_volatile(tid);
    }
    count_change();
}

/// A thread is no longer followed. 1 if it was the last one of its slot. Global to the verifier, see [`crate::requests`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn leave(tid: u32, now: u64) -> u32 {
    let Some(thread) = find(tid) else { return 0 };
    let (place, since_ns) = (thread.place, thread.since_ns);
    let slot = Thread::slot_of(place);
    // User space may let go of it at the same moment: who exchanges the id accounts for it, and nobody writes to the
    // entry after that, which may be another thread's by then.
    // SAFETY: an aligned integer of ours.
    let (_, ours) = unsafe {
        atomic_cxchg::<u32, { AtomicOrdering::SeqCst }, { AtomicOrdering::SeqCst }>(
            &raw mut thread.tid,
            tid,
            0,
        )
    };
    if !ours {
        return 0;
    }
    let Some(times) = TIMES.get_ptr_mut(slot) else { return 0 };
    account(times, place, since_ns, now);
    end_work(times, place, now);
    if place & THREAD_IN_REQUEST != 0 {
        waterfall::leave(tid);
    }
    lived(slot, now);
    count_change();
    // SAFETY: a pointer into the array. After all that is written for this thread.
    let before =
        unsafe { atomic_xadd::<u32, u32, { AtomicOrdering::SeqCst }>(&raw mut (*times).followed, u32::MAX) };
    u32::from(before == 1)
}

/// After the change, so that user space looks again.
#[inline(always)]
fn count_change() {
    if let Some(control) = CONTROL.get_ptr_mut(0) {
        // SAFETY: a pointer into the array.
        add_u32(unsafe { &raw mut (*control).follow_changes }, 1);
    }
}

#[inline(always)]
fn leave_cpu(prev: Task, thread: &mut Thread, preempted: bool, now: u64) {
    if is_elsewhere(thread) {
        runs_unseen(thread, now);
    }
    let state: u32 = read!(prev.0, task_state);
    // A task that is preempted on its way to sleep is still runnable, and so is one that a signal kept from sleeping,
    // whose state was put back.
    let next = if preempted || state == 0 {
        RUNNABLE
    } else if state & TASK_DEAD != 0 {
        let slot = Thread::slot_of(thread.place);
        // Threads that end at the same time leave one after the other; until the last has, the slot is in use.
        if leave(thread.tid, now) != 0 {
            lifecycle::last_switch(prev, slot);
        }
        return;
    } else {
        let Some(control) = CONTROL.get_ptr(0) else { return };
        let reason = unforeseen(u64::from(reason(prev, state, before(thread.place))), control) as u32;
        if reason != STOPPED {
            remember(thread, reason);
        }
        reason
    };
    change(thread, next, now);
}

/// Why a thread was blocked when it last was, but for a stop.
#[inline(always)]
fn before(place: u32) -> u32 {
    match (place & THREAD_BEFORE) >> THREAD_BEFORE_SHIFT {
        0 => OTHER,
        kind => kind,
    }
}

#[inline(always)]
fn remember(thread: &mut Thread, reason: u32) {
    thread.place = thread.place & !THREAD_BEFORE | reason << THREAD_BEFORE_SHIFT & THREAD_BEFORE;
}

/// User space adds the interval that is not over to what `Times` says of those that are; 0 tells it to look again.
#[inline(always)]
fn begin_change(thread: *mut Thread) {
    // SAFETY: an aligned integer of ours; volatile, so that the order of the stores stays.
    unsafe { (&raw mut (*thread).since_ns).write_volatile(0) };
}

/// What of a thread's place outlasts an interval.
const THREAD_STAYS: u32 = THREAD_HISTOGRAMS | THREAD_BUSY | THREAD_BEFORE | THREAD_IN_REQUEST;

/// Ends the interval that a thread is in, and begins the next.
#[inline(always)]
fn change(thread: &mut Thread, kind: u32, now: u64) {
    let (place, since_ns) = (thread.place, thread.since_ns);
    begin_change(thread);
    let mut next = Thread::place(Thread::slot_of(place), kind, place & THREAD_STAYS);
    if let Some(times) = TIMES.get_ptr_mut(Thread::slot_of(place)) {
        account(times, place, since_ns, now);
        next = turn(times, next, kind, now);
    }
    if place & THREAD_IN_REQUEST != 0
        && !waterfall::pass(thread.tid, Thread::kind_of(place), now.wrapping_sub(since_ns))
    {
        next &= !THREAD_IN_REQUEST;
    }
    // SAFETY: as above.
    unsafe { (&raw mut thread.place).write_volatile(next) };
    // SAFETY: as above.
    unsafe { (&raw mut thread.since_ns).write_volatile(now) };
}

/// A thread that runs is said to do something else: the switch to it was not seen.
///
/// Some builds of the kernel hide the threads of the first process, and with them the switches away from those: seen with
/// one for microVMs (6.18), in its own trace as well.
#[inline(always)]
pub(crate) fn is_elsewhere(thread: &Thread) -> bool {
    let kind = Thread::kind_of(thread.place);
    kind != ON_CPU && kind < KINDS as u32
}

/// Sets that right. How long it has been running is not known: what it was said to do has lasted until now, and neither that
/// nor its turn is in a histogram.
#[inline(never)]
fn runs_unseen(thread: &mut Thread, now: u64) -> u32 {
    lose_track(thread);
    change(thread, ON_CPU, now);
    thread.place |= THREAD_PARTIAL;
    0
}

/// What a thread has done in the interval that it is in is not known: the interval is in no histogram, and a request that
/// it belongs to is not split.
#[inline(always)]
fn lose_track(thread: &mut Thread) {
    count(Counter::OUT_OF_ORDER);
    if thread.place & THREAD_IN_REQUEST != 0 {
        waterfall::give_up(thread.tid);
    }
    thread.place = thread.place & !THREAD_IN_REQUEST | THREAD_PARTIAL;
}

/// The same for a thread that does not leave its CPU. Global to the verifier, see [`crate::requests`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn set_right(tid: u32, now: u64) -> u32 {
    find(tid).map_or(0, |thread| runs_unseen(thread, now))
}

#[inline(always)]
fn account(times: *mut Times, place: u32, since_ns: u64, now: u64) {
    let kind = Thread::kind_of(place);
    if kind >= KINDS as u32 {
        return;
    }
    // With a mask that the compiler leaves, which needs no comparison to be known: before 6.2 the verifier does not know what is
    // compared and what is used to be the same when the compiler keeps one of them in memory.
    let kind = opaque(u64::from(kind)) as u32 & 15;
    // SAFETY: a pointer into the array, and an index below its length.
    let ended_ns = unsafe { (&raw mut (*times).ended_ns).cast::<u64>().add(kind as usize) };
    if now < since_ns {
        count(Counter::NEGATIVE);
        discard(times, kind);
        return;
    }
    let duration_ns = now - since_ns;
    add_u64(ended_ns, duration_ns);
    let known = place & THREAD_PARTIAL == 0;
    let recorded = known && (place & THREAD_HISTOGRAMS == 0 || record(times, kind, duration_ns));
    if !recorded {
        discard(times, kind);
    }
}

#[inline(always)]
fn lived(slot: u32, ns: u64) {
    if let Some(times) = TIMES.get_ptr_mut(slot) {
        // SAFETY: a pointer into the array.
        add_u64(unsafe { &raw mut (*times).lived_ns }, ns);
    }
}
