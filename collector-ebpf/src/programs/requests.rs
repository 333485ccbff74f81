//! What workers are asked and how long they take to answer, connection by connection.
//!
//! A connection is known by the address of its inode, and only while a request of it is in progress: what it was before is
//! of no use. Several threads may use one connection, and another CPU may close it, so a request is locked by who changes
//! it, but for when its answer was last sent ([`goes_on`]) and what a first part of it tells ([`is_held_back`]); that is never
//! waited for.
//!
//! The functions that are not mangled are global to the verifier: it goes through each of them once, with whatever it is
//! given, and not once for each way that leads to each of their calls. That takes numbers for arguments, no pointers.

use core::intrinsics::{AtomicOrdering, atomic_cxchg, atomic_or, atomic_xchg};

use collector_ebpf::event::Counter;
use collector_ebpf::limits::REQUEST_SETS;
use collector_ebpf::request::{
    ABORTED, ANSWERED, CLOSED, FOLLOWED_NO_MORE, Finish, LOCKED, REQUEST_HISTOGRAMS, REQUEST_LEFT,
    REQUEST_ON_CPU, REQUEST_PROVISIONAL, REQUEST_SEEN_HELD, REQUEST_WAYS, Request, WANTS_REQUESTS,
    WANTS_STATUS, index_of, set_of, set_of_index, way_of_index,
};
use collector_ebpf::schedule::{
    ACCEPT_WAIT, IN_FLIGHT, ON_CPU_REQUEST, REQUEST, THREAD_HISTOGRAMS, Thread, Times,
};

use crate::connections::{Connection, is_open, waits_for_room};
use crate::first_bytes::{Asks, INTERIM, asks, tells_outcome, told_outcome};
use crate::histograms::{UNKNOWN_NS, record_or_discard};
use crate::kernel::{Current, now, opaque, unforeseen};
use crate::schedule::{find_likely, is_timed, time_run};
use crate::work::{fall, rise};
use crate::{CONNECTIONS, CONTROL, REQUESTS, TIMES, add_u32, add_u64, count, count_by, waterfall};

/// `EPIPE` and `ECONNRESET` of `include/uapi/asm-generic`.
pub(crate) const EPIPE: i32 = 32;
pub(crate) const ECONNRESET: i32 = 104;

/// The current thread, if it is of a worker whose pool wants to know of requests.
pub(crate) struct Serving {
    pub(crate) task: Current,
    thread: &'static mut Thread,
    times: *mut Times,
    wants: u32,
}

/// Who receives or sends.
#[inline(always)]
pub(crate) fn serving() -> Option<Serving> {
    let task = Current::get();
    let thread = find_likely(task.tid())?;
    let times = TIMES.get_ptr_mut(Thread::slot_of(thread.place))?;
    // SAFETY: a pointer into the array.
    let wants = unsafe { (*times).parks };
    (wants & WANTS_REQUESTS != 0).then_some(Serving { task, thread, times, wants })
}

/// So many bytes were received on a connection; 0 at the end of all. `HERE`: see [`place_of_at`].
#[inline(always)]
pub(crate) fn received<const HERE: bool>(serving: &mut Serving, connection: Connection, length: i32) {
    let (thread, times, wants) = (&mut *serving.thread, serving.times, serving.wants);
    // SAFETY: a pointer into the array.
    add_bytes(times, unsafe { &raw mut (*times).received_bytes }, length);
    let (at_ns, key) = (now(), connection.key);
    let in_progress =
        place_of_at::<HERE>(key).filter(|index| request_of(connection, *index, at_ns).is_some());
    let index = in_progress.unwrap_or(NOWHERE);
    let looks = wants & WANTS_STATUS != 0 && connection.sock != 0 && !speaks_http(index);
    let asks = if looks { asks(serving.task, length) } else { Asks::Something };
    if asks == Asks::Nothing {
        return;
    }
    let provisional = asks == Asks::Perhaps;
    match found(index) {
        Some(index) => continued(connection, index, thread, length, provisional, at_ns),
        None if length > 0 && connection.asks() => {
            if let Some(ns) = connection.accept_wait_ns() {
                record_or_discard(Thread::slot_of(thread.place), ACCEPT_WAIT, ns);
            }
            begin(connection, thread, times, provisional, at_ns);
        }
        None => {}
    }
    time_run(at_ns);
}

/// Adds to a sum of the worker of the current thread.
#[inline(always)]
fn add_bytes(times: *mut Times, sum: *mut u64, length: i32) {
    let more = u64::from(length.cast_unsigned());
    if has_one_thread(times) {
        // SAFETY: callers pass pointers into the array; an aligned integer.
        unsafe { sum.write_volatile(sum.read_volatile().wrapping_add(more)) };
    } else {
        add_u64(sum, more);
    }
}

/// The worker of the current thread has no other: what only its threads add to, nobody else does now. A second one would have
/// to be begun, or found by an iteration, and receive something, between a load and a store. An atomic add takes as long as twenty
/// other instructions.
#[inline(always)]
fn has_one_thread(times: *const Times) -> bool {
    // SAFETY: callers pass a pointer into the array; another CPU may change it.
    unsafe { (&raw const (*times).followed).read_volatile() == 1 }
}

/// So many bytes were sent on a connection, or, negative, why none were.
#[inline(always)]
pub(crate) fn sent<const HERE: bool>(serving: &Serving, connection: Connection, length: i32) {
    let times = serving.times;
    if length <= 0 && length != -EPIPE && length != -ECONNRESET {
        return;
    }
    if length > 0 {
        // SAFETY: a pointer into the array.
        add_bytes(times, unsafe { &raw mut (*times).sent_bytes }, length);
    }
    let key = connection.key;
    let Some(index) = place_of_at::<HERE>(key) else { return };
    if HERE && is_held_back(connection, index, serving, length) {
        return;
    }
    let at_ns = now();
    if let Some(request) = request_of(connection, index, at_ns)
        && !goes_on(connection, request, serving, length, at_ns)
    {
        answered(connection, index, request, serving, length, at_ns);
    }
    time_run(at_ns);
}

/// This side has ended a connection, or nobody has it any more. `in_order`: this side has said that it sends no more.
#[inline(always)]
pub(crate) fn closed(key: u64, in_order: bool) {
    if let Some(index) = place_of(key) {
        let at_ns = now();
        if let Some(request) = lock_to_end(key, index) {
            // SAFETY: a pointer into the array; locked.
            let sock = unsafe { (*request).sock };
            // Or somebody has failed while more was to come.
            if in_order || !(Connection { key, sock }).is_corked() {
                note_lone(request);
            }
            end(key, index, at_ns);
            time_run(at_ns);
        }
    }
}

/// A request of a connection is in progress.
#[inline(always)]
pub(crate) fn in_progress(key: u64) -> bool {
    place_of(key).is_some()
}

/// Accounts for a request whose connection says nothing more, as user space has found it.
///
/// The section is not its kind, as for [`crate::tasks`]' `tracked_processes`.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task")]
extern "C" fn finish_request(context: *mut Finish) -> i32 {
    macro_rules! context {
        ($field:ident) => {
            // SAFETY: the context is as long as the verifier found us to reach. Volatile, so that it is one load.
            unsafe { (&raw const (*context).$field).read_volatile() }
        };
    }
    let (index, key, abandon) = (context!(index), context!(key), context!(abandon));
    let (quiet_since_ns, end_ns) = (context!(quiet_since_ns), context!(end_ns));
    let Some(request) = lock(key, index) else { return 0 };
    // SAFETY: a pointer into the array; locked.
    let (place, answer_ns, unanswered) =
        unsafe { ((*request).place, (*request).answer_ns, (*request).is_unanswered()) };
    if abandon == FOLLOWED_NO_MORE
        && unanswered
        && place & REQUEST_PROVISIONAL == 0
        && let Some(times) = TIMES.get_ptr_mut(Request::slot_of(place))
    {
        fly_no_more(times, place, end_ns);
        // SAFETY: as above.
        unsafe { (&raw mut (*request).place).write_volatile(place | REQUEST_PROVISIONAL) };
    }
    // What is held back from one look to the next is so no longer.
    let held = answer_ns == 0 && !unanswered && abandon == 0;
    let alone = held && place & REQUEST_SEEN_HELD != 0;
    if alone {
        note_lone(request);
    } else if held {
        // SAFETY: as above.
        unsafe { (&raw mut (*request).place).write_volatile(place | REQUEST_SEEN_HELD) };
    }
    let quiet = alone || answer_ns != 0 && answer_ns < quiet_since_ns && !waits_for_room(key, request);
    if quiet || abandon != 0 || !is_open(key, request) {
        end(key, index, end_ns);
    } else {
        unlock(key, index, request);
    }
    0
}

/// The index of the request that is in progress on a connection.
#[inline(always)]
fn place_of(key: u64) -> Option<u32> {
    if key == 0 { None } else { found(index_of_key(set_of(key), key)) }
}

/// The same, in place if `HERE`: faster, and more to verify.
#[inline(always)]
fn place_of_at<const HERE: bool>(key: u64) -> Option<u32> {
    if !HERE || key == 0 {
        return place_of(key);
    }
    let set = set_of(key);
    let likely = index_of(set, 0);
    // SAFETY: a pointer into the array; another CPU may change it.
    let is_it =
        REQUESTS.get_ptr(likely).is_some_and(|at| unsafe { (&raw const (*at).key).read_volatile() } == key);
    let index = if is_it { likely } else { search(set, key) };
    // One number to the verifier, and not one for each place.
    Some(unforeseen(u64::from(found(index)?), CONTROL.get_ptr(0)?) as u32)
}

/// The index that a global function has returned, which cannot return an `Option`.
#[inline(always)]
fn found(index: u32) -> Option<u32> {
    (index != NOWHERE).then_some(index)
}

/// No index.
const NOWHERE: u32 = u32::MAX;

/// The first index in a set that this connection has, or, for 0, that none has; [`NOWHERE`] if there is none.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn index_of_key(set: u32, key: u64) -> u32 {
    search(set, key)
}

#[inline(always)]
fn search(set: u32, key: u64) -> u32 {
    let Some(keys) = keys_of(set) else { return NOWHERE };
    for way in 0..REQUEST_WAYS {
        // SAFETY: one of the elements; other CPUs change them.
        if unsafe { keys.add(way).read_volatile() } == key {
            return index_of(set, way as u32);
        }
    }
    NOWHERE
}

/// The request at an index, if it is in progress on this connection. One of a connection that was closed untold, and whose
/// address this one has got, is accounted for.
#[inline(always)]
fn request_of(connection: Connection, index: u32, at_ns: u64) -> Option<*mut Request> {
    let key = connection.key;
    let request = REQUESTS.get_ptr_mut(index)?;
    // SAFETY: a pointer into the array; it was written before the key.
    let (identity, its_sock) = unsafe {
        ((&raw const (*request).identity).read_volatile(), (&raw const (*request).sock).read_volatile())
    };
    // Of a standard input, whatever socket it is.
    let sock = if its_sock == 0 { 0 } else { connection.sock };
    if identity == (Connection { key, sock }).identity() {
        return Some(request);
    }
    if lock_to_end(key, index).is_some() {
        end(key, index, at_ns);
    }
    None
}

/// The last answer on a connection was one of HTTP/1 in clear text: nobody says there what asks for nothing.
#[inline(always)]
fn speaks_http(index: u32) -> bool {
    // SAFETY: a pointer into the array; another CPU may change it.
    let place = |request: *const Request| unsafe { (&raw const (*request).place).read_volatile() };
    REQUESTS.get_ptr(index).is_some_and(|request| Request::outcome_of(place(request)) < ANSWERED)
}

#[inline(always)]
fn keys_of(set: u32) -> Option<*mut u64> {
    let set = CONNECTIONS.get_ptr_mut(set % REQUEST_SETS as u32)?;
    // SAFETY: a pointer into the array, checked by the verifier.
    Some(unsafe { (&raw mut (*set).keys).cast() })
}

/// Where the connection of a request is written.
#[inline(always)]
fn key_place(index: u32) -> Option<*mut u64> {
    let keys = keys_of(set_of_index(index))?;
    // SAFETY: one of the elements.
    Some(unsafe { keys.add(way_of_index(index) as usize % REQUEST_WAYS) })
}

#[inline(always)]
fn key_of(request: *const Request) -> u64 {
    // SAFETY: callers pass a pointer into the array; another CPU may change it.
    unsafe { (&raw const (*request).key).read_volatile() }
}

/// Locks the request of a connection. `None` while another program is at it, which is counted, or if it has ended.
#[inline(always)]
fn lock(key: u64, index: u32) -> Option<*mut Request> {
    lock_at(key, index, REQUESTS.get_ptr_mut(index)?)
}

/// The same with the request at the index.
#[inline(always)]
fn lock_at(key: u64, index: u32, request: *mut Request) -> Option<*mut Request> {
    if !try_lock(request) {
        count(Counter::REQUEST_MISSED);
        return None;
    }
    still_of(key, index, request)
}

/// The same to end it: if another program is at it, that one will.
#[inline(always)]
fn lock_to_end(key: u64, index: u32) -> Option<*mut Request> {
    let request = REQUESTS.get_ptr_mut(index)?;
    for _ in 0..ATTEMPTS_TO_END {
        if try_lock(request) {
            return still_of(key, index, request);
        }
        // SAFETY: an aligned integer of the map.
        let before =
            unsafe { atomic_or::<u32, u32, { AtomicOrdering::SeqCst }>(&raw mut (*request).lock, CLOSED) };
        if before & LOCKED != 0 {
            return None;
        }
    }
    count(Counter::REQUEST_MISSED);
    None
}

/// A lock is held for less than a microsecond.
const ATTEMPTS_TO_END: usize = 3;

#[inline(always)]
fn try_lock(request: *mut Request) -> bool {
    // SAFETY: an aligned integer of the map.
    let before =
        unsafe { atomic_or::<u32, u32, { AtomicOrdering::SeqCst }>(&raw mut (*request).lock, LOCKED) };
    before & LOCKED == 0
}

/// A locked request, if it is of this connection.
#[inline(always)]
fn still_of(key: u64, index: u32, request: *mut Request) -> Option<*mut Request> {
    if key_of(request) == key {
        return Some(request);
    }
    unlock(key_of(request), index, request);
    None
}

/// Unlocks a request, and accounts for it if its connection was closed meanwhile.
#[inline(always)]
fn unlock(key: u64, index: u32, request: *mut Request) {
    // SAFETY: an aligned integer of the map.
    let (_, unlocked) = unsafe {
        atomic_cxchg::<u32, { AtomicOrdering::SeqCst }, { AtomicOrdering::SeqCst }>(
            &raw mut (*request).lock,
            LOCKED,
            0,
        )
    };
    if !unlocked {
        end(key, index, now());
    }
}

/// Ends a locked request and frees its place.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn end(key: u64, index: u32, at_ns: u64) -> u32 {
    let (Some(place), Some(request)) = (key_place(index), REQUESTS.get_ptr_mut(index)) else { return 0 };
    if key == 0 {
        // A free place still has what its last request left there.
        // SAFETY: an aligned integer of the map.
        unsafe { atomic_xchg::<u32, { AtomicOrdering::SeqCst }>(&raw mut (*request).lock, 0) };
        return 0;
    }
    // SAFETY: a pointer into the array; locked.
    let (worker, answer_ns, corked) = unsafe { ((*request).place, (*request).answer_ns, (*request).corked) };
    leave_thread(index, request, at_ns);
    if let Some(times) = TIMES.get_ptr_mut(Request::slot_of(worker)) {
        if answer_ns != 0 {
            account(index, Request::outcome_of(worker), answer_ns, 0);
        } else if worker & REQUEST_PROVISIONAL == 0 {
            fly_no_more(times, worker, at_ns);
            match corked {
                0 => account(index, ABORTED, at_ns, 0),
                told => account(index, told - 1, UNKNOWN_NS, 0),
            };
        }
        // SAFETY: a pointer into the array.
        add_u32(unsafe { &raw mut (*times).open }, u32::MAX);
    }
    // First nobody finds it, then it can be locked. Whoever has found it before that finds another's key, or none.
    // SAFETY: aligned integers of the maps.
    unsafe {
        (&raw mut (*request).key).write_volatile(0);
        atomic_cxchg::<u64, { AtomicOrdering::SeqCst }, { AtomicOrdering::SeqCst }>(place, key, 0);
        atomic_xchg::<u32, { AtomicOrdering::SeqCst }>(&raw mut (*request).lock, 0);
    }
    0
}

/// The thread that a request began on has nothing to do with it any more.
#[inline(always)]
fn leave_thread(index: u32, request: *mut Request, at_ns: u64) {
    // SAFETY: callers pass a pointer into the array; locked.
    let (tid, begin_ns, answer_ns) = unsafe { ((*request).tid, (*request).begin_ns, (*request).answer_ns) };
    // SAFETY: as above.
    if unsafe { (*request).place } & REQUEST_ON_CPU != 0 {
        waterfall::ended_on_cpu(index, request, at_ns);
    } else {
        waterfall::ended(tid, begin_ns, answer_ns != 0, at_ns);
    }
}

/// Adds a request that has ended to its worker's; when it was answered may be [`UNKNOWN_NS`]. `own` is not 0 if it is the worker's only thread that does so.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn account(index: u32, outcome: u32, end_ns: u64, own: u32) -> u32 {
    let Some(request) = REQUESTS.get_ptr_mut(index) else { return 0 };
    // SAFETY: a pointer into the array; locked.
    let (place, begin_ns) = unsafe { ((*request).place, (*request).begin_ns) };
    let slot = Request::slot_of(place);
    let Some(times) = TIMES.get_ptr_mut(slot) else { return 0 };
    // A value of its own, as in `schedule::account`, and with a mask that the compiler leaves.
    let outcome = opaque(u64::from(outcome.min(ABORTED))) as u32 & 7;
    // SAFETY: a pointer into the array, and an index below its length.
    unsafe {
        if own != 0 && outcome < ABORTED {
            let ended = (&raw mut (*times).own_requests).cast::<u32>().add(outcome as usize);
            ended.write_volatile(ended.read_volatile().wrapping_add(1));
        } else {
            add_u32((&raw mut (*times).requests).cast::<u32>().add(outcome as usize), 1);
        }
    }
    let duration_ns = if end_ns == UNKNOWN_NS { UNKNOWN_NS } else { end_ns.saturating_sub(begin_ns) };
    let mut measure = REQUEST + outcome;
    if place & REQUEST_ON_CPU != 0 && outcome < ABORTED {
        measure = ON_CPU_REQUEST + outcome;
        // SAFETY: as above.
        add_u64(unsafe { &raw mut (*times).on_cpu_ns }, duration_ns);
    }
    if place & REQUEST_HISTOGRAMS != 0 {
        record_or_discard(slot, measure, duration_ns);
    }
    0
}

#[inline(always)]
fn fly_no_more(times: *mut Times, place: u32, at_ns: u64) {
    fall(times, IN_FLIGHT, place & REQUEST_HISTOGRAMS != 0, at_ns);
}

#[inline(always)]
fn fly(times: *mut Times, at_ns: u64) {
    // SAFETY: callers pass a pointer into the array.
    unsafe {
        if (*times).first_request_ns == 0 {
            (*times).first_request_ns = at_ns;
            // What was found out of the others of its pool.
            (*times).lone_corked = waterfall::of_worker(times).map_or(0, |pool| (*pool).lone_corked);
            let work = &raw mut (*times).work;
            if (*work).ready_ns == 0 {
                // It has not had to wait for it, and works now, without having been seen to wait for work.
                ((*work).ready_ns, (*work).worked_ns, (*work).since_ns) = (at_ns, at_ns, at_ns);
            }
        }
    }
    rise(times, IN_FLIGHT, at_ns);
}

/// The first byte of a request.
#[inline(always)]
fn begin(connection: Connection, thread: &mut Thread, times: *mut Times, provisional: bool, at_ns: u64) {
    let Connection { key, sock } = connection;
    let set = set_of(key);
    let mut index = free_place(set);
    if index == NOWHERE && make_room(set, at_ns) != 0 {
        index = free_place(set);
    }
    let Some(index) = found(index) else {
        count(Counter::NO_REQUEST);
        return;
    };
    let (Some(request), Some(place)) = (REQUESTS.get_ptr_mut(index), key_place(index)) else { return };
    // SAFETY: pointers into the arrays; locked, and nobody finds it until its key is written.
    unsafe {
        (&raw mut (*request).sock).write_volatile(sock);
        (&raw mut (*request).identity).write_volatile(connection.identity());
        add_u32(&raw mut (*times).open, 1);
    }
    ask(request, thread, times, provisional, at_ns);
    // SAFETY: as above. All else is written before it, on every CPU.
    unsafe {
        atomic_xchg::<u64, { AtomicOrdering::SeqCst }>(&raw mut (*request).key, key);
        atomic_xchg::<u64, { AtomicOrdering::SeqCst }>(place, key);
    }
    unlock(key, index, request);
}

/// A locked request begins, be it the first one of its connection or the next. Provisional, it is not in flight.
#[inline(always)]
fn ask(request: *mut Request, thread: &mut Thread, times: *mut Times, provisional: bool, at_ns: u64) {
    let thread_place = thread.place;
    let mut place = Thread::slot_of(thread_place);
    if thread_place & THREAD_HISTOGRAMS != 0 {
        place |= REQUEST_HISTOGRAMS;
    }
    let mut tid = 0;
    if provisional {
        place |= REQUEST_PROVISIONAL;
    } else {
        tid = waterfall::begin(thread, times, at_ns);
        fly(times, at_ns);
    }
    // SAFETY: callers pass a pointer into the array; locked.
    unsafe {
        (&raw mut (*request).place).write_volatile(Request::with_outcome(place, ANSWERED));
        (&raw mut (*request).begin_ns).write_volatile(at_ns);
        (&raw mut (*request).answer_ns).write_volatile(0);
        (&raw mut (*request).tid).write_volatile(tid);
        (&raw mut (*request).corked).write_volatile(0);
    }
}

/// More bytes came on a connection with a request, or no more will (`length` 0).
#[inline(always)]
fn continued(
    connection: Connection,
    index: u32,
    thread: &mut Thread,
    length: i32,
    provisional: bool,
    at_ns: u64,
) {
    let key = connection.key;
    let Some(request) = lock(key, index) else { return };
    // SAFETY: a pointer into the array; locked.
    let (place, answer_ns, corked) = unsafe { ((*request).place, (*request).answer_ns, (*request).corked) };
    let answered = answer_ns != 0;
    // All of its answer was held back, and will have been sent by now.
    let alone = !answered && corked != 0 && length > 0;
    if answered && length == 0 {
        end(key, index, at_ns);
        return;
    }
    // The answer was complete, or what came before needed none: this is the next request.
    let next = if answered {
        !connection.is_read_away(place)
    } else {
        alone || place & REQUEST_PROVISIONAL != 0 && length > 0
    };
    if next {
        let (before, slot) = (Request::slot_of(place), Thread::slot_of(thread.place));
        if let (Some(old), Some(new)) = (TIMES.get_ptr_mut(before), TIMES.get_ptr_mut(slot)) {
            if answered {
                let own = before == slot && has_one_thread(old);
                account(index, Request::outcome_of(place), answer_ns, u32::from(own));
                leave_thread(index, request, at_ns);
            } else if alone {
                note_lone(request);
                fly_no_more(old, place, at_ns);
                account(index, corked - 1, UNKNOWN_NS, 0);
                leave_thread(index, request, at_ns);
            }
            if before != slot {
                // Another worker was given the connection.
                // SAFETY: pointers into the array.
                unsafe {
                    add_u32(&raw mut (*old).open, u32::MAX);
                    add_u32(&raw mut (*new).open, 1);
                }
            }
            ask(request, thread, new, provisional, at_ns);
        }
    }
    unlock(key, index, request);
}

/// The first part of an answer was sent, and TCP_CORK holds it back: what it tells is noted, and not when, because another part
/// follows before it leaves. Servers of files send the header so, and then the file. Only of requests that are split into where
/// their time went, whose thread is known.
///
/// Without the lock: the request has begun on this thread, and of what ends it meanwhile it is open whether this was told before.
/// Another one could have got its place between the last look and the store, to which this would be told then.
#[inline(always)]
fn is_held_back(connection: Connection, index: u32, serving: &Serving, length: i32) -> bool {
    let Some(request) = REQUESTS.get_ptr_mut(index) else { return false };
    // SAFETY: pointers into the arrays; another CPU may change them.
    let (place, begin_ns, identity, tid, unanswered, learnt) = unsafe {
        let lone = (&raw const (*serving.times).lone_corked).read_volatile();
        let answer_ns = (&raw const (*request).answer_ns).read_volatile();
        let corked = (&raw const (*request).corked).read_volatile();
        (
            (&raw const (*request).place).read_volatile(),
            (&raw const (*request).begin_ns).read_volatile(),
            (&raw const (*request).identity).read_volatile(),
            (&raw const (*request).tid).read_volatile(),
            answer_ns == 0 && corked == 0,
            lone != 0,
        )
    };
    if !unanswered
        || length <= 0
        || place & REQUEST_PROVISIONAL != 0
        || tid != serving.thread.tid
        || learnt
        || !connection.is_corked()
        || identity != connection.identity()
    {
        return false;
    }
    let since_ns = if is_timed(begin_ns) { now() } else { 0 };
    let told = told(serving);
    if told != INTERIM {
        // SAFETY: as above.
        unsafe {
            if (&raw const (*request).begin_ns).read_volatile() == begin_ns
                && key_of(request) == connection.key
            {
                (&raw mut (*request).corked).write_volatile(told + 1);
            }
        }
    }
    if since_ns != 0 {
        count_by(Counter::TIMED_NS, now() - since_ns);
    }
    true
}

/// The outcome that is told by what this thread sends.
#[inline(always)]
fn told(serving: &Serving) -> u32 {
    let told = if serving.wants & WANTS_STATUS != 0 { told_outcome(serving.task) } else { ANSWERED };
    // One number to the verifier.
    CONTROL.get_ptr(0).map_or(told, |control| unforeseen(u64::from(told), control) as u32)
}

/// A locked request that had one part of an answer, which was held back, and no other: its worker sends answers so, and so will
/// those of its pool that begin. When they are sent is looked at with the first part from now on.
#[inline(always)]
fn note_lone(request: *mut Request) {
    // SAFETY: callers pass a pointer into the array; locked.
    let (place, answer_ns, corked) = unsafe { ((*request).place, (*request).answer_ns, (*request).corked) };
    if answer_ns == 0
        && corked != 0
        && let Some(times) = TIMES.get_ptr_mut(Request::slot_of(place))
    {
        // SAFETY: as above; an aligned integer.
        unsafe { (&raw mut (*times).lone_corked).write_volatile(1) };
        if let Some(pool) = waterfall::of_worker(times) {
            // SAFETY: as above.
            unsafe { (&raw mut (*pool).lone_corked).write_volatile(1) };
        }
    }
}

/// More of an answer was sent, without anything else to note than when: by the same thread, which has not left its CPU since
/// the request began, and nothing that could tell another outcome. That needs no lock, because no two answers were last sent at
/// the same time, and what ends or begins a request meanwhile leaves `answer_ns` as it was or makes it 0. Servers of files send
/// the header first and then, by sendfile(2), what is in the file.
#[inline(always)]
fn goes_on(
    connection: Connection,
    request: *mut Request,
    serving: &Serving,
    length: i32,
    at_ns: u64,
) -> bool {
    // SAFETY: callers pass a pointer into the array; another CPU may change it.
    let (place, answer_ns, begin_ns, tid) = unsafe {
        (
            (&raw const (*request).place).read_volatile(),
            (&raw const (*request).answer_ns).read_volatile(),
            (&raw const (*request).begin_ns).read_volatile(),
            (&raw const (*request).tid).read_volatile(),
        )
    };
    let looks = Request::outcome_of(place) < ANSWERED && serving.wants & WANTS_STATUS != 0;
    if length <= 0
        || answer_ns == 0
        || place & REQUEST_ON_CPU == 0
        || looks && tells_outcome(serving.task)
        || connection.has_more() != (place & REQUEST_LEFT != 0)
        || !waterfall::has_thread_still(serving.thread, tid, begin_ns)
    {
        return false;
    }
    // SAFETY: an aligned integer of the map.
    let (_, done) = unsafe {
        atomic_cxchg::<u64, { AtomicOrdering::SeqCst }, { AtomicOrdering::SeqCst }>(
            &raw mut (*request).answer_ns,
            answer_ns,
            at_ns,
        )
    };
    done
}

/// Bytes were sent on a connection with a request, or found no room, or nobody who takes them.
#[inline(always)]
fn answered(
    connection: Connection,
    index: u32,
    request: *mut Request,
    serving: &Serving,
    length: i32,
    at_ns: u64,
) {
    let key = connection.key;
    let Some(request) = lock_at(key, index, request) else { return };
    // SAFETY: a pointer into the array; locked.
    let (place, answer_ns, corked) = unsafe { ((*request).place, (*request).answer_ns, (*request).corked) };
    if length <= 0 {
        end(key, index, at_ns);
        return;
    }
    let mut outcome = Request::outcome_of(place);
    let mut first = answer_ns == 0;
    if first || outcome < ANSWERED {
        let told = told(serving);
        if told == INTERIM {
            // 100 Continue and the like: the answer is yet to come.
            unlock(key, index, request);
            return;
        }
        if first {
            outcome = if corked == 0 { told } else { corked - 1 };
            if place & REQUEST_PROVISIONAL == 0
                && let Some(times) = TIMES.get_ptr_mut(Request::slot_of(place))
            {
                fly_no_more(times, place, at_ns);
            }
        }
        if told < ANSWERED && outcome < ANSWERED && (!first || corked != 0) {
            // The answer to the next of several requests that came together: begun when the last one was done with. What
            // was held back is sent with it.
            let done_ns = if first { at_ns } else { answer_ns };
            account(index, outcome, done_ns, 0);
            leave_thread(index, request, at_ns);
            (outcome, first) = (told, false);
            // SAFETY: as above.
            unsafe { (&raw mut (*request).begin_ns).write_volatile(done_ns) };
        }
    }
    let left = if connection.has_more() { REQUEST_LEFT } else { 0 };
    // SAFETY: as above.
    let (tid, begin_ns) = unsafe { ((*request).tid, (*request).begin_ns) };
    let noted = place & REQUEST_ON_CPU != 0;
    let on_cpu = waterfall::answered(serving.thread, tid, begin_ns, outcome, first, noted, at_ns);
    let place = place & !(REQUEST_LEFT | REQUEST_PROVISIONAL | REQUEST_ON_CPU)
        | left
        | if on_cpu { REQUEST_ON_CPU } else { 0 };
    // SAFETY: as above.
    unsafe {
        (&raw mut (*request).place).write_volatile(Request::with_outcome(place, outcome));
        (&raw mut (*request).answer_ns).write_volatile(at_ns);
    }
    unlock(key, index, request);
}

/// The index of a place that nobody has, locked; [`NOWHERE`] if there is none.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn free_place(set: u32) -> u32 {
    for _ in 0..ATTEMPTS_TO_BEGIN {
        let index = index_of_key(set, 0);
        let Some(request) = REQUESTS.get_ptr_mut(index) else { break };
        if try_lock(request) && still_of(0, index, request).is_some() {
            return index;
        }
    }
    NOWHERE
}

/// Another CPU can be about to take the same one.
const ATTEMPTS_TO_BEGIN: usize = 3;

/// Takes a request that was answered for complete, or one for none that may be none, so that there is room for another. 1
/// if there was one.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn make_room(set: u32, at_ns: u64) -> u32 {
    for way in 0..REQUEST_WAYS as u32 {
        if end_answered(index_of(set, way), at_ns) != 0 {
            return 1;
        }
    }
    0
}

/// Takes a request for complete if it was answered, and for none if it may be none. 1 if it was either.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn end_answered(index: u32, at_ns: u64) -> u32 {
    let Some(request) = REQUESTS.get_ptr_mut(index) else { return 0 };
    // SAFETY: a pointer into the array; another CPU may change it.
    let (place, answer_ns) = unsafe {
        ((&raw const (*request).place).read_volatile(), (&raw const (*request).answer_ns).read_volatile())
    };
    if answer_ns == 0 && place & REQUEST_PROVISIONAL == 0 {
        return 0;
    }
    let key = key_of(request);
    if key == 0 || lock(key, index).is_none() {
        return 0;
    }
    if answer_ns == 0 {
        count(Counter::REQUEST_UNDECIDED);
    }
    end(key, index, at_ns);
    1
}
