//! What workers are asked and how long they take to answer, connection by connection.
//!
//! Several threads may use one connection, and another CPU may close it, so a request is locked by who changes it
//! ([`crate::places`]), but for when its answer was last sent ([`goes_on`]) and what a first part of it tells
//! ([`is_held_back`]).
//!
//! The functions that are not mangled are global to the verifier: it goes through each of them once, with whatever it is
//! given, and not once for each way that leads to each of their calls. That takes numbers for arguments, no pointers.

use core::intrinsics::{AtomicOrdering, atomic_cxchg, atomic_xchg};
use core::ptr::null_mut;

use collector_ebpf::event::Counter;
use collector_ebpf::request::{
    ABORTED, ANSWERED, CLOSED, FOLLOWED_NO_MORE, Finish, LOCKED, REQUEST_HISTOGRAMS, REQUEST_LEFT,
    REQUEST_ON_CPU, REQUEST_PROVISIONAL, REQUEST_SEEN_HELD, REQUEST_WAYS, Request, WANTS_REQUESTS,
    WANTS_STATUS, index_of, set_of,
};
use collector_ebpf::schedule::{
    ACCEPT_WAIT, IN_FLIGHT, ON_CPU_REQUEST, REQUEST, THREAD_HISTOGRAMS, Thread, Times,
};

use crate::connections::{Connection, is_open, waits_for_room};
use crate::first_bytes::{Asks, INTERIM, asks, tells_outcome, told_outcome};
use crate::histograms::{UNKNOWN_NS, record_or_discard};
use crate::kernel::{Task, now, opaque};
use crate::places::{NOWHERE, found, index_of_key, key_of, key_place, mark, place_of, release, try_lock};
use crate::schedule::{find_likely, is_timed, time_run};
use crate::work::{fall, rise};
use crate::{REQUESTS, TIMES, add_u32, add_u64, count, count_by, waterfall};

/// `EPIPE` and `ECONNRESET` of `include/uapi/asm-generic`.
pub(crate) const EPIPE: i32 = 32;
pub(crate) const ECONNRESET: i32 = 104;

/// The current thread, if it is of a worker whose pool wants to know of requests.
pub(crate) struct Serving {
    pub(crate) task: Task,
    thread: &'static mut Thread,
    times: *mut Times,
    wants: u32,
}

impl Serving {
    /// The times of the worker in the place of a request, mostly the same.
    #[inline(always)]
    fn times_of(&self, place: u32) -> Option<*mut Times> {
        let slot = Request::slot_of(place);
        if slot == Thread::slot_of(self.thread.place) { Some(self.times) } else { TIMES.get_ptr_mut(slot) }
    }
}

/// Who receives or sends.
#[inline(always)]
pub(crate) fn serving() -> Option<Serving> {
    let task = Task::current();
    let thread = find_likely(task.tid())?;
    let times = TIMES.get_ptr_mut(Thread::slot_of(thread.place))?;
    // SAFETY: a pointer into the array.
    let wants = unsafe { (*times).parks };
    (wants & WANTS_REQUESTS != 0).then_some(Serving { task, thread, times, wants })
}

/// So many bytes were received on a connection; 0 at the end of all. `HERE`: see [`Connection`].
#[inline(always)]
pub(crate) fn received<const HERE: bool>(serving: &mut Serving, connection: Connection<HERE>, length: i32) {
    let (times, wants) = (serving.times, serving.wants);
    // SAFETY: a pointer into the array.
    add_bytes(times, unsafe { &raw mut (*times).received_bytes }, length);
    let (at_ns, key) = (now(), connection.key);
    // Both have a value, or the compiler would leave one to chance where there is no request, which the verifier refuses.
    let index = place_of(key).unwrap_or(NOWHERE);
    let request = request_of(connection, index, at_ns).unwrap_or(null_mut());
    let looks =
        wants & WANTS_STATUS != 0 && connection.has_sock() && (request.is_null() || !speaks_http(request));
    let asks = if looks { asks(length) } else { Asks::Something };
    if asks == Asks::Nothing {
        return;
    }
    let provisional = asks == Asks::Perhaps;
    if !request.is_null() {
        continued(connection, index, request, serving, length, provisional, at_ns);
    } else if length > 0 && connection.asks() {
        if let Some(ns) = connection.accept_wait_ns() {
            record_or_discard(Thread::slot_of(serving.thread.place), ACCEPT_WAIT, ns);
        }
        begin(connection, serving, provisional, at_ns);
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
pub(crate) fn sent<const HERE: bool>(serving: &Serving, connection: Connection<HERE>, length: i32) {
    let times = serving.times;
    if length <= 0 && length != -EPIPE && length != -ECONNRESET {
        return;
    }
    if length > 0 {
        // SAFETY: a pointer into the array.
        add_bytes(times, unsafe { &raw mut (*times).sent_bytes }, length);
    }
    let key = connection.key;
    let Some(index) = place_of(key) else { return };
    // It saves a lock, an exchange and a look at the clock: little of what it costs to follow system calls.
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
            if in_order || !(Connection::<false> { key, sock }).is_corked() {
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

/// The request at an index, if it is in progress on this connection. One of a connection that was closed untold, and whose
/// address this one has got, is accounted for.
#[inline(always)]
fn request_of<const HERE: bool>(
    connection: Connection<HERE>,
    index: u32,
    at_ns: u64,
) -> Option<*mut Request> {
    let key = connection.key;
    let request = REQUESTS.get_ptr_mut(index)?;
    // SAFETY: a pointer into the array; it was written before the key.
    let identity = unsafe { (&raw const (*request).identity).read_volatile() };
    // SAFETY: as above.
    let is_stdin = || unsafe { (&raw const (*request).sock).read_volatile() } == 0;
    // A standard input is known by its inode, whatever socket it is. Only system calls tell of one.
    if identity == connection.identity()
        || !HERE && is_stdin() && identity == (Connection::<false> { key, sock: 0 }).identity()
    {
        return Some(request);
    }
    if lock_to_end(key, index).is_some() {
        end(key, index, at_ns);
    }
    None
}

/// The last answer on a connection was one of HTTP/1 in clear text: nobody says there what asks for nothing.
#[inline(always)]
fn speaks_http(request: *const Request) -> bool {
    // SAFETY: callers pass a pointer into the array; another CPU may change it.
    Request::outcome_of(unsafe { (&raw const (*request).place).read_volatile() }) < ANSWERED
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
        if mark(request, CLOSED) & LOCKED != 0 {
            return None;
        }
    }
    count(Counter::REQUEST_MISSED);
    None
}

/// A lock is held for less than a microsecond.
const ATTEMPTS_TO_END: usize = 3;

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
    if !release(request) {
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
    if let Some(times) = TIMES.get_ptr_mut(Request::slot_of(worker)) {
        leave_thread(index, request, times, at_ns);
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
fn leave_thread(index: u32, request: *mut Request, times: *const Times, at_ns: u64) {
    // SAFETY: callers pass a pointer into the array; locked.
    let (tid, begin_ns, answer_ns) = unsafe { ((*request).tid, (*request).begin_ns, (*request).answer_ns) };
    // SAFETY: as above.
    if unsafe { (*request).place } & REQUEST_ON_CPU != 0 {
        waterfall::ended_on_cpu(index, request, times, at_ns);
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
fn begin<const HERE: bool>(
    connection: Connection<HERE>,
    serving: &mut Serving,
    provisional: bool,
    at_ns: u64,
) {
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
        add_u32(&raw mut (*serving.times).open, 1);
    }
    ask(request, serving, provisional, at_ns);
    // SAFETY: as above. All else is written before it, on every CPU.
    unsafe {
        atomic_xchg::<u64, { AtomicOrdering::SeqCst }>(&raw mut (*request).key, key);
        atomic_xchg::<u64, { AtomicOrdering::SeqCst }>(place, key);
    }
    unlock(key, index, request);
}

/// A locked request begins, be it the first one of its connection or the next. Provisional, it is not in flight.
#[inline(always)]
fn ask(request: *mut Request, serving: &mut Serving, provisional: bool, at_ns: u64) {
    let (thread, times) = (&mut *serving.thread, serving.times);
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
fn continued<const HERE: bool>(
    connection: Connection<HERE>,
    index: u32,
    request: *mut Request,
    serving: &mut Serving,
    length: i32,
    provisional: bool,
    at_ns: u64,
) {
    let key = connection.key;
    let Some(request) = lock_at(key, index, request) else { return };
    // SAFETY: a pointer into the array; locked.
    let (place, answer_ns, corked) = unsafe { ((*request).place, (*request).answer_ns, (*request).corked) };
    let Some(old) = serving.times_of(place) else {
        unlock(key, index, request);
        return;
    };
    let same = Request::slot_of(place) == Thread::slot_of(serving.thread.place);
    if answer_ns != 0 {
        if length == 0 {
            end(key, index, at_ns);
            return;
        }
        if connection.is_read_away(place) {
            unlock(key, index, request);
            return;
        }
        // The answer was complete: this is the next request.
        account(index, Request::outcome_of(place), answer_ns, u32::from(same && has_one_thread(old)));
        leave_thread(index, request, old, at_ns);
    } else if length > 0 && corked != 0 {
        // All of its answer was held back, and will have been sent by now.
        note_lone(request);
        fly_no_more(old, place, at_ns);
        account(index, corked - 1, UNKNOWN_NS, 0);
        leave_thread(index, request, old, at_ns);
    } else if length == 0 || place & REQUEST_PROVISIONAL == 0 {
        unlock(key, index, request);
        return;
    }
    if !same {
        // Another worker was given the connection.
        // SAFETY: pointers into the array.
        unsafe {
            add_u32(&raw mut (*old).open, u32::MAX);
            add_u32(&raw mut (*serving.times).open, 1);
        }
    }
    ask(request, serving, provisional, at_ns);
    unlock(key, index, request);
}

/// The first part of an answer was sent, and TCP_CORK holds it back: what it tells is noted, and not when, because another part
/// follows before it leaves. Servers of files send the header so, and then the file. Only of requests that are split into where
/// their time went, whose thread is known.
///
/// Without the lock: the request has begun on this thread, and of what ends it meanwhile it is open whether this was told before.
/// Another one could have got its place between the last look and the store, to which this would be told then.
#[inline(always)]
fn is_held_back<const HERE: bool>(
    connection: Connection<HERE>,
    index: u32,
    serving: &Serving,
    length: i32,
) -> bool {
    let Some(request) = REQUESTS.get_ptr_mut(index) else { return false };
    macro_rules! request {
        ($field:ident) => {
            // SAFETY: a pointer into the array; another CPU may change it.
            unsafe { (&raw const (*request).$field).read_volatile() }
        };
    }
    let begin_ns = request!(begin_ns);
    // Mostly what is looked at first is enough.
    if request!(corked) != 0
        || request!(answer_ns) != 0
        || length <= 0
        || request!(place) & REQUEST_PROVISIONAL != 0
        || request!(tid) != serving.thread.tid
        // SAFETY: as above.
        || unsafe { (&raw const (*serving.times).lone_corked).read_volatile() } != 0
        || !connection.is_corked()
        || request!(identity) != connection.identity()
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
    if serving.wants & WANTS_STATUS != 0 { told_outcome(serving.task) } else { ANSWERED }
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
fn goes_on<const HERE: bool>(
    connection: Connection<HERE>,
    request: *mut Request,
    serving: &Serving,
    length: i32,
    at_ns: u64,
) -> bool {
    macro_rules! request {
        ($field:ident) => {
            // SAFETY: callers pass a pointer into the array; another CPU may change it.
            unsafe { (&raw const (*request).$field).read_volatile() }
        };
    }
    let answer_ns = request!(answer_ns);
    if answer_ns == 0 {
        return false;
    }
    let (place, begin_ns, tid) = (request!(place), request!(begin_ns), request!(tid));
    let looks = Request::outcome_of(place) < ANSWERED && serving.wants & WANTS_STATUS != 0;
    if length <= 0
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
fn answered<const HERE: bool>(
    connection: Connection<HERE>,
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
    let (first, so_far) = (answer_ns == 0, Request::outcome_of(place));
    let told = if first || so_far < ANSWERED { told(serving) } else { ANSWERED };
    if told == INTERIM {
        // 100 Continue and the like: the answer is yet to come.
        unlock(key, index, request);
        return;
    }
    if first
        && place & REQUEST_PROVISIONAL == 0
        && let Some(times) = serving.times_of(place)
    {
        fly_no_more(times, place, at_ns);
    }
    let outcome = if !first {
        so_far
    } else if corked == 0 {
        told
    } else {
        corked - 1
    };
    let another = told < ANSWERED && outcome < ANSWERED && (!first || corked != 0);
    if first && !another {
        note_answer(connection, request, serving, outcome, true, at_ns);
    } else {
        if another {
            // The answer to the next of several requests that came together: begun when the last one was done with. What
            // was held back is sent with it.
            let done_ns = if first { at_ns } else { answer_ns };
            account(index, outcome, done_ns, 0);
            if let Some(times) = serving.times_of(place) {
                leave_thread(index, request, times, at_ns);
            }
            // SAFETY: as above.
            unsafe { (&raw mut (*request).begin_ns).write_volatile(done_ns) };
        }
        note_answer(connection, request, serving, if another { told } else { outcome }, false, at_ns);
    }
    unlock(key, index, request);
}

/// Notes in a locked request that a part of its answer was sent, the `first` one or another.
#[inline(always)]
fn note_answer<const HERE: bool>(
    connection: Connection<HERE>,
    request: *mut Request,
    serving: &Serving,
    outcome: u32,
    first: bool,
    at_ns: u64,
) {
    let left = if connection.has_more() { REQUEST_LEFT } else { 0 };
    // SAFETY: callers pass a pointer into the array; locked.
    let (place, tid, begin_ns) = unsafe { ((*request).place, (*request).tid, (*request).begin_ns) };
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
