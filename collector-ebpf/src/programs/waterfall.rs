//! Where the time of requests went that had their thread to themselves.
//!
//! A thread's place is written by the thread itself, when a request begins and when something is sent, and by its
//! switches, which cannot be at the same time. Whoever ends a request may be on another CPU: the begin of the request is
//! exchanged first, and who has done that may read what the thread does not write to any more.

use core::intrinsics::{AtomicOrdering, atomic_cxchg, atomic_xadd, atomic_xchg};

use collector_ebpf::event::Counter;
use collector_ebpf::limits::MAX_WATERFALLS;
use collector_ebpf::request::{QUIET_NS, Request};
use collector_ebpf::schedule::{KINDS, LET_GO, ON_CPU, THREAD_HISTOGRAMS, THREAD_IN_REQUEST, Thread, Times};
use collector_ebpf::waterfall::{
    Answered, ENDING, Flight, SLOWEST, STRETCH_SHIFT, SlowRequest, Slowest, UNRECORDED, aside_of, flight_of,
    index_of, number_of, slowest_of, ticket_of,
};

use crate::histograms::{record_or_discard, records};
use crate::kernel::{clear, copy, opaque};
use crate::schedule::{find, is_elsewhere, set_right};
use crate::{ANSWERED, FLYING, REQUESTS, SLOTS, SLOWEST_REQUESTS, TIMES, add_u32, add_u64, count};

/// The place of a thread, if it has it.
#[inline(always)]
fn its_flight(tid: u32) -> Option<*mut Flight> {
    let flight = FLYING.get_ptr_mut(flight_of(tid))?;
    // SAFETY: a pointer into the array; another CPU may change it.
    (tid != 0 && unsafe { (&raw const (*flight).tid).read_volatile() } == tid).then_some(flight)
}

/// Exchanges the begin of the request whose time is taken. Who has succeeded has the request.
#[inline(always)]
fn exchange(flight: *mut Flight, from: u64, to: u64) -> bool {
    // SAFETY: callers pass a pointer into the array.
    exchange_begin(unsafe { &raw mut (*flight).begin_ns }, from, to)
}

/// The same of one that is set aside.
#[inline(always)]
fn exchange_aside(aside: *mut Answered, from: u64, to: u64) -> bool {
    // SAFETY: as above.
    exchange_begin(unsafe { &raw mut (*aside).begin_ns }, from, to)
}

#[inline(always)]
fn exchange_begin(begin_ns: *mut u64, from: u64, to: u64) -> bool {
    // SAFETY: as above; an aligned integer.
    let (_, done) = unsafe {
        atomic_cxchg::<u64, { AtomicOrdering::SeqCst }, { AtomicOrdering::SeqCst }>(begin_ns, from, to)
    };
    done
}

/// A request of a thread, if it is set aside.
#[inline(always)]
fn aside(tid: u32, begin_ns: u64) -> Option<*mut Answered> {
    let aside = ANSWERED.get_ptr_mut(aside_of(begin_ns))?;
    // SAFETY: a pointer into the array; other CPUs change it.
    let (its_begin_ns, its_tid) = unsafe {
        ((&raw const (*aside).begin_ns).read_volatile(), (&raw const (*aside).tid).read_volatile())
    };
    (its_begin_ns == begin_ns && its_tid == tid).then_some(aside)
}

/// A request begins on the current thread. Returns the thread's id if it counts among those that are unanswered there,
/// else 0.
#[inline(always)]
pub(crate) fn begin(thread: &mut Thread, times: *mut Times, at_ns: u64) -> u32 {
    // SAFETY: callers pass a pointer into the array.
    let ticket = ticket_of(unsafe { (*times).parks });
    let tid = thread.tid;
    let thread = if is_elsewhere(thread) {
        set_right(tid, at_ns);
        // What was written meanwhile was written by another way than that reference.
        find(tid)
    } else {
        Some(thread)
    };
    let Some(thread) = thread else { return 0 };
    let (tid, place, since_ns) = (thread.tid, thread.place, thread.since_ns);
    if ticket == 0 || place & THREAD_HISTOGRAMS == 0 {
        return 0;
    }
    let Some(flight) = FLYING.get_ptr_mut(flight_of(tid)) else { return 0 };
    if !take(flight, tid) {
        return 0;
    }
    let alone = unanswered(flight) == 0;
    // SAFETY: a pointer into the array; this thread is the only one that adds to what it counts.
    let before = unsafe {
        let begun = &raw mut (*flight).begun;
        begun.write_volatile(begun.read_volatile().wrapping_add(1));
        (&raw const (*flight).begin_ns).read_volatile()
    };
    if !alone {
        // Neither this one nor the one that is in flight has the thread to itself.
        if before > ENDING {
            exchange(flight, before, 0);
        }
        return tid;
    }
    // If the thread has not left its CPU since the one before, that is noted where that request is.
    let noted = before > ENDING && since_ns <= before;
    if before > ENDING && !noted {
        set_aside(tid, before, at_ns);
    }
    // SAFETY: as above.
    let free = noted || unsafe { (&raw const (*flight).begin_ns).read_volatile() } == 0;
    // What it was before it was followed is not known.
    if free && Thread::kind_of(place) == ON_CPU {
        // SAFETY: as above; this thread is the only one that writes here. The begin is written last.
        unsafe {
            if (*flight).passed != 0 {
                (*flight).passed = 0;
                clear(&raw mut (*flight).passed_ns);
            }
            (*flight).passed_ns[ON_CPU as usize] = since_ns.wrapping_sub(at_ns);
            // Whoever ends the one before at this moment does no more here than take its begin away.
            (&raw mut (*flight).begin_ns).write_volatile(at_ns);
        }
        if place & THREAD_IN_REQUEST == 0 {
            thread.place = place | THREAD_IN_REQUEST;
        }
    }
    tid
}

/// Requests that began on a thread and have no answer yet.
#[inline(always)]
fn unanswered(flight: *const Flight) -> u32 {
    // SAFETY: callers pass a pointer into the array; other CPUs change it.
    let (begun, answered, ended) = unsafe {
        (
            (&raw const (*flight).begun).read_volatile(),
            (&raw const (*flight).answered).read_volatile(),
            (&raw const (*flight).ended).read_volatile(),
        )
    };
    begun.wrapping_sub(answered).wrapping_sub(ended)
}

/// None of what began on a thread counts any more.
#[inline(always)]
fn answer_all(flight: *mut Flight) {
    // SAFETY: callers pass a pointer into the array.
    unsafe {
        (&raw mut (*flight).begun).write_volatile(0);
        (&raw mut (*flight).answered).write_volatile(0);
        (&raw mut (*flight).ended).write_volatile(0);
    }
}

/// Gives the place to this thread, if it does not have it. False if another one needs it.
#[inline(always)]
fn take(flight: *mut Flight, tid: u32) -> bool {
    // SAFETY: a pointer into the array; other CPUs change it.
    let holder = unsafe { (&raw const (*flight).tid).read_volatile() };
    if holder == tid {
        return true;
    }
    if holder == LET_GO {
        return false;
    }
    if holder != 0 {
        // SAFETY: as above.
        let needed =
            unanswered(flight) != 0 || unsafe { (&raw const (*flight).begin_ns).read_volatile() } != 0;
        // User space lets go of threads and leaves this as it was.
        if needed && find(holder).is_some() {
            return false;
        }
    }
    // SAFETY: as above, and aligned.
    unsafe {
        let (_, taken) = atomic_cxchg::<u32, { AtomicOrdering::SeqCst }, { AtomicOrdering::SeqCst }>(
            &raw mut (*flight).tid,
            holder,
            LET_GO,
        );
        if !taken {
            return false;
        }
        answer_all(flight);
        (&raw mut (*flight).begin_ns).write_volatile(0);
        (&raw mut (*flight).tid).write_volatile(tid);
    }
    true
}

/// An interval of a thread is over. False if it is of no request.
#[inline(always)]
pub(crate) fn pass(tid: u32, kind: u32, ns: u64) -> bool {
    let Some(flight) = its_flight(tid) else { return false };
    if kind >= KINDS as u32 {
        return false;
    }
    // SAFETY: a pointer into the array, and an index below its length. The thread is the only one that writes here, and this
    // is its switch.
    unsafe {
        if (&raw const (*flight).begin_ns).read_volatile() == 0 {
            return false;
        }
        (*flight).passed = 1;
        let passed_ns = &raw mut (*flight).passed_ns[kind as usize];
        *passed_ns = (*passed_ns).wrapping_add(ns);
    }
    true
}

/// Something was sent by this thread to who has asked what began on thread `tid` (or 0), for the first time or again. True
/// if the thread has been on a CPU all the while since the request began, and had nothing else to do; `noted` if that was so
/// when something was last sent.
#[inline(always)]
pub(crate) fn answered(
    thread: &Thread,
    tid: u32,
    begin_ns: u64,
    outcome: u32,
    first: bool,
    noted: bool,
    at_ns: u64,
) -> bool {
    if !first
        && !noted
        && let Some(aside) = aside(tid, begin_ns)
    {
        // Its answer has gone on since another began: it shares its thread with that.
        exchange_aside(aside, begin_ns, 0);
        return false;
    }
    let (Some(flight), Some(answered)) = (its_flight(tid), ANSWERED.get_ptr_mut(flight_of(tid))) else {
        return false;
    };
    if first {
        // SAFETY: a pointer into the array; what the thread itself has answered nobody else writes to.
        unsafe {
            if thread.tid == tid {
                let answered = &raw mut (*flight).answered;
                answered.write_volatile(answered.read_volatile().wrapping_add(1));
            } else {
                add_u32(&raw mut (*flight).ended, 1);
            }
        }
    }
    // SAFETY: as above.
    if unsafe { (&raw const (*flight).begin_ns).read_volatile() } != begin_ns {
        return false;
    }
    if thread.tid != tid || is_elsewhere(thread) {
        exchange(flight, begin_ns, 0);
        return false;
    }
    if thread.since_ns <= begin_ns {
        return true;
    }
    let slot = Thread::slot_of(thread.place);
    let Some(times) = TIMES.get_ptr_mut(slot) else { return false };
    // SAFETY: as above. Whoever ends the request waits for the lock that our caller has, or begins one on this thread.
    unsafe {
        (*answered).tid = tid;
        (*answered).pid = pid_of(slot);
        (*answered).waterfall = ticket_of((*times).parks);
        copy(&raw mut (*answered).time_ns, &raw const (*flight).passed_ns);
        let on_cpu_ns = &raw mut (*answered).time_ns[ON_CPU as usize];
        *on_cpu_ns = (*on_cpu_ns).wrapping_add(at_ns.wrapping_sub(thread.since_ns));
        (*answered).outcome = outcome;
        (*answered).answer_ns = at_ns;
    }
    false
}

/// The current thread has had nothing else to do since a request began on thread `tid` (or 0), and has not left its CPU.
#[inline(always)]
pub(crate) fn has_thread_still(thread: &Thread, tid: u32, begin_ns: u64) -> bool {
    // SAFETY: a pointer into the array; another CPU may change it.
    let its_begin_ns = |flight: *mut Flight| unsafe { (&raw const (*flight).begin_ns).read_volatile() };
    thread.tid == tid
        && !is_elsewhere(thread)
        && thread.since_ns <= begin_ns
        && its_flight(tid).is_some_and(|flight| its_begin_ns(flight) == begin_ns)
}

/// A request of this worker has ended that its thread has answered without leaving its CPU.
#[inline(always)]
pub(crate) fn ended_on_cpu(index: u32, request: *mut Request, worker: *const Times, at_ns: u64) {
    // SAFETY: callers pass a pointer into the array; locked.
    let (tid, begin_ns, answer_ns) = unsafe { ((*request).tid, (*request).begin_ns, (*request).answer_ns) };
    if let Some(flight) = its_flight(tid) {
        // SAFETY: a pointer into the array; another CPU may change it.
        let its_begin_ns = unsafe { (&raw const (*flight).begin_ns).read_volatile() };
        // Mostly the thread has begun another since.
        if its_begin_ns == begin_ns {
            exchange(flight, begin_ns, 0);
        }
    }
    // SAFETY: callers pass a pointer into the array.
    let number = number_of(ticket_of(unsafe { (*worker).parks }));
    if slowest_before(number, answer_ns.wrapping_sub(begin_ns), at_ns >> STRETCH_SHIFT).is_some() {
        keep_on_cpu(index, at_ns);
    }
}

/// The request that began on thread `tid` (or 0) at this time has ended, answered or not.
#[inline(always)]
pub(crate) fn ended(tid: u32, begin_ns: u64, answered: bool, at_ns: u64) {
    if tid == 0 {
        return;
    }
    if answered {
        end_flight(tid, begin_ns, at_ns);
        return;
    }
    let Some(flight) = its_flight(tid) else { return };
    // SAFETY: a pointer into the array.
    add_u32(unsafe { &raw mut (*flight).ended }, 1);
    exchange(flight, begin_ns, 0);
}

/// Where a thread was meanwhile is not known: its request is not split.
#[inline(always)]
pub(crate) fn give_up(tid: u32) {
    let Some(flight) = its_flight(tid) else { return };
    // SAFETY: a pointer into the array.
    let before = unsafe { (&raw const (*flight).begin_ns).read_volatile() };
    if before > ENDING {
        exchange(flight, before, 0);
    }
}

/// A thread is gone, or followed no more.
#[inline(always)]
pub(crate) fn leave(tid: u32) {
    let Some(flight) = its_flight(tid) else { return };
    give_up(tid);
    // SAFETY: a pointer into the array; aligned integers.
    unsafe {
        answer_all(flight);
        atomic_xchg::<u32, { AtomicOrdering::SeqCst }>(&raw mut (*flight).tid, 0);
    }
}

/// Adds a request to the waterfall of its pool, whose answer is complete. Not a function to
/// the verifier: with one more on the way to the histograms there were too many at once.
#[inline(always)]
fn end_flight(tid: u32, begin_ns: u64, at_ns: u64) {
    let flight = its_flight(tid);
    // SAFETY: a pointer into the array; other CPUs change it.
    let flight =
        flight.filter(|flight| unsafe { (&raw const (**flight).begin_ns).read_volatile() } == begin_ns);
    if let Some(flight) = flight
        && exchange(flight, begin_ns, ENDING)
    {
        add(flight_of(tid), begin_ns, at_ns);
        // SAFETY: a pointer into the array.
        unsafe { atomic_xchg::<u64, { AtomicOrdering::SeqCst }>(&raw mut (*flight).begin_ns, 0) };
    } else if let Some(aside) = aside(tid, begin_ns)
        && exchange_aside(aside, begin_ns, ENDING)
    {
        add(aside_of(begin_ns), begin_ns, at_ns);
        // SAFETY: as above.
        unsafe { atomic_xchg::<u64, { AtomicOrdering::SeqCst }>(&raw mut (*aside).begin_ns, 0) };
    }
}

/// Another request begins on the thread of one that was answered: whether its answer goes on will be known later. Global
/// to the verifier, see [`crate::requests`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn set_aside(tid: u32, begin_ns: u64, at_ns: u64) -> u32 {
    let (Some(flight), Some(answered)) = (its_flight(tid), ANSWERED.get_ptr_mut(flight_of(tid))) else {
        return 0;
    };
    let Some(aside) = ANSWERED.get_ptr_mut(aside_of(begin_ns)) else { return 0 };
    // What is at its place nobody else changes: that is done on its thread, where the next one begins.
    // SAFETY: a pointer into the array.
    let noted = unsafe { (*answered).answer_ns } <= begin_ns;
    if !exchange(flight, begin_ns, 0) || noted {
        // Where its time went is noted where the request is.
        return 0;
    }
    // SAFETY: a pointer into the array; other CPUs change it.
    let before_ns = unsafe { (&raw const (*aside).begin_ns).read_volatile() };
    if before_ns != ENDING && exchange_aside(aside, before_ns, ENDING) {
        // SAFETY: as above; it is ours now.
        let answer_ns = unsafe { (*aside).answer_ns };
        if before_ns != 0 && at_ns.wrapping_sub(answer_ns) < QUIET_NS {
            // It has to make room and is taken for complete. One that was answered longer ago would have ended if it were.
            add(aside_of(begin_ns), before_ns, at_ns);
        }
        // SAFETY: pointers into the array, and both are ours. The begin is written last.
        unsafe {
            (*aside).answer_ns = (*answered).answer_ns;
            (*aside).tid = tid;
            (*aside).pid = (*answered).pid;
            (*aside).waterfall = (*answered).waterfall;
            (*aside).outcome = (*answered).outcome;
            copy(&raw mut (*aside).time_ns, &raw const (*answered).time_ns);
            atomic_xchg::<u64, { AtomicOrdering::SeqCst }>(&raw mut (*aside).begin_ns, begin_ns);
        }
    } else {
        // Another program is at the place.
        add(flight_of(tid), begin_ns, at_ns);
    }
    0
}

/// Adds what is at this place, which is the caller's. Global to the verifier.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn add(index: u32, begin_ns: u64, at_ns: u64) -> u32 {
    let Some(answered) = ANSWERED.get_ptr_mut(index) else { return 0 };
    // SAFETY: a pointer into the array.
    let (answer_ns, ticket) = unsafe { ((*answered).answer_ns, (*answered).waterfall) };
    let number = number_of(ticket);
    let Some(times) = sums_of(ticket).filter(|_| answer_ns >= begin_ns) else { return 0 };
    let duration_ns = answer_ns - begin_ns;
    let recorded = begin_to_add(times);
    for kind in 0..KINDS {
        // SAFETY: an element of each.
        let (ns, sum) = unsafe { ((*answered).time_ns[kind], &raw mut (*times).ended_ns[kind]) };
        if ns != 0 {
            add_u64(sum, ns);
            if recorded {
                record_or_discard(index_of(number), kind as u32, ns);
            }
        }
    }
    end_to_add(times, duration_ns, recorded);
    let stretch = at_ns >> STRETCH_SHIFT;
    if let Some(slowest) = slowest_before(number, duration_ns, stretch) {
        keep(slowest, answered, duration_ns, number, stretch);
    }
    0
}

/// The sums of the waterfall that a worker's requests are in.
#[inline(always)]
pub(crate) fn of_worker(times: *const Times) -> Option<*mut Times> {
    // SAFETY: callers pass a pointer into the array; user space changes it.
    sums_of(ticket_of(unsafe { (&raw const (*times).parks).read_volatile() }))
}

/// The waterfall with this ticket, unless it is another pool's by now.
#[inline(always)]
fn sums_of(ticket: u32) -> Option<*mut Times> {
    let number = number_of(ticket);
    if number == 0 || number > MAX_WATERFALLS as u32 {
        return None;
    }
    let times = TIMES.get_ptr_mut(index_of(number))?;
    // SAFETY: a pointer into the array; user space changes it.
    (unsafe { (&raw const (*times).parks).read_volatile() } == ticket).then_some(times)
}

/// From here on sums do not close. True if lengths are recorded: one answer for all kinds, or those that the request was in
/// for no time would be known of it, and the others not.
#[inline(always)]
fn begin_to_add(times: *mut Times) -> bool {
    // SAFETY: callers pass a pointer into the array; an aligned integer.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::SeqCst }>(&raw mut (*times).busy, 1) };
    records()
}

/// From here on they do again.
#[inline(always)]
fn end_to_add(times: *mut Times, duration_ns: u64, recorded: bool) {
    // SAFETY: callers pass a pointer into the array; aligned integers.
    unsafe {
        add_u64(&raw mut (*times).lived_ns, duration_ns);
        if !recorded {
            add_u32(&raw mut (*times).requests[UNRECORDED], 1);
        }
        atomic_xadd::<u32, u32, { AtomicOrdering::SeqCst }>(&raw mut (*times).requests[0], 1);
        atomic_xadd::<u64, u64, { AtomicOrdering::SeqCst }>(&raw mut (*times).busy, u64::MAX);
    }
}

/// The slowest requests of a stretch of time, if one that took so long may be among them.
#[inline(always)]
fn slowest_before(number: u32, duration_ns: u64, stretch: u64) -> Option<*mut Slowest> {
    let slowest = SLOWEST_REQUESTS.get_ptr_mut(slowest_of(number, stretch))?;
    // SAFETY: a pointer into the array; other CPUs change it.
    let (of, least_ns) = unsafe {
        ((&raw const (*slowest).stretch).read_volatile(), (&raw const (*slowest).least_ns).read_volatile())
    };
    (of != stretch || duration_ns > least_ns).then_some(slowest)
}

/// Keeps a request among the slowest of a stretch of time, in place of the least slow.
#[inline(never)]
fn keep(slowest: *mut Slowest, answered: *mut Answered, duration_ns: u64, number: u32, stretch: u64) -> u64 {
    keep_with(slowest, duration_ns, number, stretch, |place| {
        // SAFETY: pointers into the arrays; the place is locked.
        unsafe {
            (*place).begin_ns = (*answered).answer_ns - duration_ns;
            (*place).pid = (*answered).pid;
            (*place).tid = (*answered).tid;
            (*place).outcome = (*answered).outcome;
            copy(&raw mut (*place).time_ns, &raw const (*answered).time_ns);
        }
    })
}

/// The same with one whose thread did not leave its CPU. Global to the verifier, see [`crate::requests`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn keep_on_cpu(index: u32, at_ns: u64) -> u32 {
    let Some(request) = REQUESTS.get_ptr_mut(index) else { return 0 };
    // SAFETY: a pointer into the array; locked.
    let (worker, tid, begin_ns, answer_ns) =
        unsafe { ((*request).place, (*request).tid, (*request).begin_ns, (*request).answer_ns) };
    let slot = Request::slot_of(worker);
    let Some(times) = TIMES.get_ptr_mut(slot) else { return 0 };
    // SAFETY: a pointer into the array.
    let ticket = ticket_of(unsafe { (*times).parks });
    if sums_of(ticket).is_none() || answer_ns < begin_ns {
        return 0;
    }
    let (duration_ns, stretch) = (answer_ns - begin_ns, at_ns >> STRETCH_SHIFT);
    let Some(slowest) = slowest_before(number_of(ticket), duration_ns, stretch) else { return 0 };
    keep_with(slowest, duration_ns, number_of(ticket), stretch, |place| {
        // SAFETY: a pointer into the array; the place is locked.
        unsafe {
            (*place).begin_ns = begin_ns;
            (*place).pid = pid_of(slot);
            (*place).tid = tid;
            (*place).outcome = Request::outcome_of(worker);
            clear(&raw mut (*place).time_ns);
            (*place).time_ns[ON_CPU as usize] = duration_ns;
        }
    });
    0
}

/// Thread group id of the worker of a slot.
#[inline(always)]
fn pid_of(slot: u32) -> u32 {
    // SAFETY: a pointer into the array.
    SLOTS.get_ptr(slot).map_or(0, |slot| unsafe { (*slot).pid })
}

#[inline(always)]
fn keep_with(
    slowest: *mut Slowest,
    duration_ns: u64,
    number: u32,
    stretch: u64,
    write: impl FnOnce(*mut SlowRequest),
) -> u64 {
    // SAFETY: callers pass pointers into the arrays.
    let lock = unsafe { &raw mut (*slowest).lock };
    // SAFETY: an aligned integer of the map.
    if unsafe { atomic_xchg::<u32, { AtomicOrdering::SeqCst }>(lock, 1) } != 0 {
        // Another CPU is at it; that happens to one of the slowest only.
        count(Counter::SLOW_MISSED);
        return 0;
    }
    // SAFETY: pointers into the arrays, locked; indices below their lengths.
    unsafe {
        add_u32(&raw mut (*slowest).changes, 1);
        if (*slowest).stretch != stretch {
            (*slowest).stretch = stretch;
            (*slowest).length = 0;
            (*slowest).least_ns = 0;
        }
        let (length, least_slow) = ((*slowest).length, (*slowest).least);
        let full = length >= SLOWEST as u32;
        // As wide as an address, or the verifier does not take what is compared for what is used.
        let index = opaque(u64::from(if full { least_slow } else { length })) as usize;
        if index < SLOWEST {
            let place = &raw mut (*slowest).requests[index];
            write(place);
            (*place).duration_ns = duration_ns;
            (*slowest).length = length + u32::from(!full);
            if (*slowest).length == SLOWEST as u32 {
                note_least(number, stretch);
            }
        }
        add_u32(&raw mut (*slowest).changes, 1);
        atomic_xchg::<u32, { AtomicOrdering::SeqCst }>(lock, 0);
    }
    0
}

/// Notes which of them is the least slow, and how long it took. By arithmetic: with a branch for each the verifier goes through
/// a hundred ways. Global to it, see [`crate::requests`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn note_least(number: u32, stretch: u64) -> u32 {
    let Some(slowest) = SLOWEST_REQUESTS.get_ptr_mut(slowest_of(number, stretch)) else { return 0 };
    let (mut index, mut least_ns) = (0, u64::MAX >> 1);
    for other in 0..SLOWEST {
        // SAFETY: a pointer into the array, which our caller has locked; an element.
        let ns = unsafe { (*slowest).requests[other].duration_ns };
        // 1 if it is less than the least so far: neither is as long as half the clock.
        let less = opaque(ns.wrapping_sub(least_ns) >> 63);
        least_ns = least_ns.wrapping_add(ns.wrapping_sub(least_ns).wrapping_mul(less));
        index = (other as u32).wrapping_sub(index).wrapping_mul(less as u32).wrapping_add(index);
    }
    // SAFETY: as above.
    unsafe { ((*slowest).least, (*slowest).least_ns) = (index, least_ns) };
    0
}
