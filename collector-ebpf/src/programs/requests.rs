//! What workers are asked and how long they take to answer, connection by connection.
//!
//! A connection is known by the address of its `struct socket`, and only while a request of it is in progress: what it was
//! before is of no use. (The address of its `struct sock` would do, too, but the verifier lets nobody calculate with it.)
//! Several threads may use one connection, and another CPU may close it, so a request is locked by who changes it; that is
//! never waited for.
//!
//! The functions that are not mangled are global to the verifier: it goes through each of them once, with whatever it is
//! given, and not once for each way that leads to each of their calls. That takes numbers for arguments, no pointers.

use core::intrinsics::{AtomicOrdering, atomic_cxchg, atomic_or, atomic_xchg};

use aya_ebpf::helpers::generated::{bpf_get_current_pid_tgid, bpf_get_current_task_btf, bpf_task_pt_regs};
use aya_ebpf::helpers::{bpf_probe_read_user, bpf_probe_read_user_buf};
use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;
use collector_ebpf::event::Counter;
use collector_ebpf::limits::REQUEST_SETS;
use collector_ebpf::offsets::ABSENT;
use collector_ebpf::request::{
    ABORTED, ANSWERED, BYTES, CLOSED, Finish, LOCKED, MESSAGE, NO_BYTES, OK_2XX, REQUEST_HISTOGRAMS,
    REQUEST_LEFT, REQUEST_WAYS, Request, STATUS_LINE, WANTS_REQUESTS, WANTS_STATUS, set_of,
};
use collector_ebpf::schedule::{REQUEST, SYSCALLS, THREAD_HISTOGRAMS, Thread, Times};

use crate::kernel::{load_cast, now, offset, read};
use crate::schedule::{add_u32, add_u64, fall, find, record_or_discard, rise, time_run};
use crate::{CONNECTIONS, REQUESTS, TIMES, count, waterfall};

/// `MSG_PEEK` of `include/linux/socket.h`.
const MSG_PEEK: i32 = 2;
/// `EPIPE` and `ECONNRESET` of `include/uapi/asm-generic`.
const EPIPE: i32 = 32;
const ECONNRESET: i32 = 104;
/// `AF_UNIX`, `AF_INET` and `AF_INET6` of `include/linux/socket.h`.
const AF_UNIX: u16 = 1;
const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;
/// `SOCK_STREAM` and `SOCK_SEQPACKET` of `include/linux/net.h`.
const SOCK_STREAM: u16 = 1;
const SOCK_SEQPACKET: u16 = 5;
/// `SEND_SHUTDOWN` of `include/net/sock.h`.
const SEND_SHUTDOWN: u8 = 2;
/// `TCP_FIN_WAIT1`, `TCP_CLOSE` and `TCP_LAST_ACK` of `include/net/tcp_states.h`.
const TCP_FIN_WAIT1: i32 = 4;
const TCP_CLOSE: i32 = 7;
const TCP_LAST_ACK: i32 = 9;
/// `SOCK_NOSPACE` of `include/linux/net.h`.
const SOCK_NOSPACE: u32 = 2;
/// Where `struct msghdr` has `msg_iov`, on machines of 64 bits.
const MESSAGE_VECTORS: usize = 16;

/// How system calls by number name the bytes that they send, set by the loader.
#[unsafe(no_mangle)]
static SYSCALL_BYTES: [u8; SYSCALLS] = [NO_BYTES; SYSCALLS];

/// `(struct sock *sk, int ret, int flags)`
#[btf_tracepoint(function = "sock_recv_length")]
fn socket_received(ctx: BtfTracePointContext) -> i32 {
    let Some(thread) = find(current_tid()) else { return 0 };
    let (sock, length, flags) = (ctx.arg::<*const u8>(0), ctx.arg::<i32>(1), ctx.arg::<i32>(2));
    if flags & MSG_PEEK != 0 || length < 0 {
        return 0;
    }
    let Some(times) = TIMES.get_ptr_mut(Thread::slot_of(thread.place)) else { return 0 };
    // SAFETY: a pointer into the array.
    let wants = unsafe { (*times).parks };
    if wants & WANTS_REQUESTS == 0 {
        return 0;
    }
    // SAFETY: as above.
    add_u64(unsafe { &raw mut (*times).received_bytes }, u64::from(length.cast_unsigned()));
    if length == END_OF_INPUT && wants & WANTS_STATUS != 0 && is_end_of_input() != 0 {
        return 0;
    }
    let at_ns = now();
    let key = key_of_sock(sock);
    match place_of(key).and_then(|index| request_of(key, index, at_ns)) {
        Some(index) => continued(key, index, sock, thread, length, at_ns),
        None if length > 0 && asks(sock) => begin(key, sock, thread, times, at_ns),
        None => {}
    }
    time_run(at_ns);
    0
}

/// `(struct sock *sk, int ret, int flags)`
#[btf_tracepoint(function = "sock_send_length")]
fn socket_sent(ctx: BtfTracePointContext) -> i32 {
    let Some(thread) = find(current_tid()) else { return 0 };
    let (sock, length) = (ctx.arg::<*const u8>(0), ctx.arg::<i32>(1));
    if length <= 0 && length != -EPIPE && length != -ECONNRESET {
        return 0;
    }
    let Some(times) = TIMES.get_ptr_mut(Thread::slot_of(thread.place)) else { return 0 };
    // SAFETY: a pointer into the array.
    let asks = unsafe { (*times).parks };
    if asks & WANTS_REQUESTS == 0 {
        return 0;
    }
    if length > 0 {
        // SAFETY: as above.
        add_u64(unsafe { &raw mut (*times).sent_bytes }, u64::from(length.cast_unsigned()));
    }
    let key = key_of_sock(sock);
    let Some(index) = place_of(key) else { return 0 };
    let at_ns = now();
    if let Some(index) = request_of(key, index, at_ns) {
        answered(key, index, sock, thread, length, asks & WANTS_STATUS != 0, at_ns);
    }
    time_run(at_ns);
    0
}

/// `(const struct sock *sk, const int oldstate, const int newstate)`. In whatever task the packet came to.
#[btf_tracepoint(function = "inet_sock_set_state")]
fn connection_state(ctx: BtfTracePointContext) -> i32 {
    let state = ctx.arg::<i32>(2);
    if state != TCP_FIN_WAIT1 && state != TCP_LAST_ACK && state != TCP_CLOSE {
        return 0;
    }
    let key = key_of_sock(ctx.arg(0));
    if let Some(index) = place_of(key) {
        let at_ns = now();
        if lock_to_end(key, index).is_none() {
            return 0;
        }
        end(key, index, at_ns);
        time_run(at_ns);
    }
    0
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
    let answer_ns = unsafe { (*request).answer_ns };
    let quiet = answer_ns != 0 && answer_ns < quiet_since_ns && !waits_for_room(key, request);
    if quiet || abandon != 0 || !is_open(key, request) {
        end(key, index, end_ns);
    } else {
        unlock(key, index, request);
    }
    0
}

/// The connection of a request is still there, also if nobody has told that it was closed: nobody tells it of UNIX
/// connections.
#[inline(always)]
fn is_open(key: u64, request: *mut Request) -> bool {
    // SAFETY: a pointer into the array; locked.
    let sock = unsafe { (&raw const (*request).sock).cast::<u64>().read_volatile() };
    // What was freed may be anything by now, but hardly two things that point to each other.
    let back: u64 = load_cast(key as *const u8, offset!(socket_sock));
    // SAFETY: as above.
    let inode = unsafe { (&raw const (*request).inode).read_volatile() };
    back == sock && load_cast::<u64>(sock as *const u8, offset!(sock_socket)) == key && inode_of(key) == inode
}

/// A send has found no room on the connection of a request, and there is none yet, be it that the call waits for it, or that
/// it has sent a part or nothing. Of TCP the kernel notes it (`tcp_sendmsg_locked`), and when there is room
/// (`sk_stream_write_space`).
#[inline(always)]
fn waits_for_room(key: u64, request: *mut Request) -> bool {
    // SAFETY: a pointer into the array; locked.
    let sock = unsafe { (&raw const (*request).sock).cast::<u64>().read_volatile() } as *const u8;
    if load_cast::<u16>(sock, offset!(sock_family)) == AF_UNIX {
        let (held, limit): (i32, i32) =
            (load_cast(sock, offset!(sock_wmem_alloc)), load_cast(sock, offset!(sock_sndbuf)));
        return held >= limit;
    }
    load_cast::<u64>(key as *const u8, offset!(socket_flags)) & 1 << SOCK_NOSPACE != 0
}

#[inline(always)]
fn current_tid() -> u32 {
    // SAFETY: no precondition.
    unsafe { bpf_get_current_pid_tgid() as u32 }
}

/// A connection that somebody else has opened to this side, and on which this side has not said that it sends no more: what
/// comes after that is read away.
///
/// A TCP connection that was accepted has the limit of the queue of its listening socket, of which it began as a copy
/// (`inet_csk_clone_lock` of `net/ipv4/inet_connection_sock.c`); one that connect(2) opened has none. An accepted UNIX
/// connection has the address of its listening socket (`unix_stream_connect` of `net/unix/af_unix.c`); the other end has
/// none, unless it was bound to one. When that is closed, neither direction is open, which does not keep this side from
/// reading what came before.
#[inline(always)]
fn asks(sock: *const u8) -> bool {
    if offset!(sock_family) == ABSENT || offset!(word_type) == ABSENT {
        return false;
    }
    let (family, kind): (u16, u16) = (read!(sock, sock_family), read!(sock, sock_type));
    let shutdown: u8 = read!(sock, sock_shutdown);
    match family {
        AF_INET | AF_INET6 => {
            let backlog: u32 = read!(sock, sock_max_ack_backlog);
            kind == SOCK_STREAM && backlog != 0 && (shutdown & SEND_SHUTDOWN == 0 || was_reset(sock))
        }
        AF_UNIX if offset!(unix_address) != ABSENT => {
            let address: u64 = load_cast(sock, offset!(unix_address));
            (kind == SOCK_STREAM || kind == SOCK_SEQPACKET) && address != 0 && shutdown != SEND_SHUTDOWN
        }
        _ => false,
    }
}

/// A TCP connection was reset by the other side before anything was sent on it. Neither direction is open then, as after
/// this side has ended its own; what came before the reset can be read.
#[inline(always)]
fn was_reset(sock: *const u8) -> bool {
    let error: i32 = read!(sock, sock_error);
    error != 0 && load_cast::<u64>(sock, offset!(tcp_bytes_sent)) == 0
}

/// What comes on a connection whose last request was answered is read away, and is no other request: this side has said
/// that it sends no more. If the other side has closed the connection by now nothing tells who was first, but for what
/// had come before the answer.
#[inline(always)]
fn is_read_away(sock: *const u8, place: u32) -> bool {
    let shutdown: u8 = read!(sock, sock_shutdown);
    shutdown == SEND_SHUTDOWN || shutdown & SEND_SHUTDOWN != 0 && place & REQUEST_LEFT != 0
}

/// What a connection is known by; 0 if nobody has it open.
#[inline(always)]
fn key_of_sock(sock: *const u8) -> u64 {
    load_cast(sock, offset!(sock_socket))
}

/// The index of the request that is in progress on a connection.
#[inline(always)]
fn place_of(key: u64) -> Option<u32> {
    found(index_of_key(set_of(key), key)).filter(|_| key != 0)
}

/// The index that a global function has returned, which cannot return an `Option`.
#[inline(always)]
fn found(index: u32) -> Option<u32> {
    (index != NOWHERE).then_some(index)
}

/// No index.
const NOWHERE: u32 = u32::MAX;

/// The first index in a set whose key is this one, which may be 0; [`NOWHERE`] if none is.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn index_of_key(set: u32, key: u64) -> u32 {
    let Some(keys) = keys_of(set) else { return NOWHERE };
    for way in 0..REQUEST_WAYS {
        // SAFETY: one of the elements; other CPUs change them.
        if unsafe { keys.add(way).read_volatile() } == key {
            return set * REQUEST_WAYS as u32 + way as u32;
        }
    }
    NOWHERE
}

/// The index, if the request there is in progress on this connection. One of a connection that was closed untold, and whose
/// address this one has got, is accounted for.
#[inline(always)]
fn request_of(key: u64, index: u32, at_ns: u64) -> Option<u32> {
    let request = REQUESTS.get_ptr_mut(index)?;
    // SAFETY: a pointer into the array; it was written before the key.
    if unsafe { (&raw const (*request).inode).read_volatile() } == inode_of(key) {
        return Some(index);
    }
    if lock_to_end(key, index).is_some() {
        end(key, index, at_ns);
    }
    None
}

/// Number of the inode of a `struct socket`: no two of those that live now have the same.
#[inline(always)]
fn inode_of(key: u64) -> u64 {
    load_cast(key as *const u8, offset!(socket_inode_number))
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
    let keys = keys_of(index / REQUEST_WAYS as u32)?;
    // SAFETY: one of the elements.
    Some(unsafe { keys.add(index as usize % REQUEST_WAYS) })
}

#[inline(always)]
fn key_of(index: u32) -> u64 {
    // SAFETY: a pointer into the array; another CPU may change it.
    key_place(index).map_or(0, |key| unsafe { key.read_volatile() })
}

/// Locks the request of a connection. `None` while another program is at it, which is counted, or if it has ended.
#[inline(always)]
fn lock(key: u64, index: u32) -> Option<*mut Request> {
    let request = REQUESTS.get_ptr_mut(index)?;
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
    if key_of(index) == key {
        return Some(request);
    }
    unlock(key_of(index), index, request);
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
    // SAFETY: a pointer into the array; locked.
    let (worker, answer_ns) = unsafe { ((*request).place, (*request).answer_ns) };
    leave_thread(request, at_ns);
    if let Some(times) = TIMES.get_ptr_mut(Request::slot_of(worker)) {
        if answer_ns == 0 {
            fly_no_more(times, worker, at_ns);
            account(index, ABORTED, at_ns);
        } else {
            account(index, Request::outcome_of(worker), answer_ns);
        }
        // SAFETY: a pointer into the array.
        add_u32(unsafe { &raw mut (*times).open }, u32::MAX);
    }
    // First nobody finds it, then it can be locked. Whoever has found it before that finds another's key, or none.
    // SAFETY: aligned integers of the maps.
    unsafe {
        atomic_cxchg::<u64, { AtomicOrdering::SeqCst }, { AtomicOrdering::SeqCst }>(place, key, 0);
        atomic_xchg::<u32, { AtomicOrdering::SeqCst }>(&raw mut (*request).lock, 0);
    }
    0
}

/// The thread that a request began on has nothing to do with it any more.
#[inline(always)]
fn leave_thread(request: *mut Request, at_ns: u64) {
    // SAFETY: callers pass a pointer into the array; locked.
    let (tid, begin_ns, answer_ns) = unsafe { ((*request).tid, (*request).begin_ns, (*request).answer_ns) };
    waterfall::ended(tid, begin_ns, answer_ns != 0, at_ns);
}

/// Adds a request that has ended to its worker's.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn account(index: u32, outcome: u32, end_ns: u64) -> u32 {
    let Some(request) = REQUESTS.get_ptr_mut(index) else { return 0 };
    // SAFETY: a pointer into the array; locked.
    let (place, begin_ns) = unsafe { ((*request).place, (*request).begin_ns) };
    let slot = Request::slot_of(place);
    let Some(times) = TIMES.get_ptr_mut(slot) else { return 0 };
    let outcome = if outcome > ABORTED { ABORTED } else { outcome };
    // SAFETY: a pointer into the array, and an index below its length.
    add_u32(unsafe { &raw mut (*times).requests[outcome as usize] }, 1);
    let measure = REQUEST + outcome;
    if place & REQUEST_HISTOGRAMS != 0 {
        record_or_discard(slot, measure, end_ns.saturating_sub(begin_ns));
    }
    0
}

#[inline(always)]
fn fly_no_more(times: *mut Times, place: u32, at_ns: u64) {
    // SAFETY: callers pass a pointer into the array.
    add_u32(unsafe { &raw mut (*times).in_flight }, u32::MAX);
    fall(times, place & REQUEST_HISTOGRAMS != 0, at_ns);
}

#[inline(always)]
fn fly(times: *mut Times, at_ns: u64) {
    // SAFETY: callers pass a pointer into the array.
    unsafe {
        add_u32(&raw mut (*times).in_flight, 1);
        if (*times).first_request_ns == 0 {
            (*times).first_request_ns = at_ns;
            let work = &raw mut (*times).work;
            if (*work).ready_ns == 0 {
                // It has not had to wait for it, and works now, without having been seen to wait for work.
                ((*work).ready_ns, (*work).worked_ns, (*work).since_ns) = (at_ns, at_ns, at_ns);
            }
        }
    }
    rise(times, at_ns);
}

/// The first byte of a request.
#[inline(always)]
fn begin(key: u64, sock: *const u8, thread: &mut Thread, times: *mut Times, at_ns: u64) {
    let thread_place = thread.place;
    let set = set_of(key);
    let free = free_place(set).or_else(|| found(make_room(set, at_ns)).and_then(|_| free_place(set)));
    let Some(index) = free else {
        count(Counter::NO_REQUEST);
        return;
    };
    let (Some(request), Some(place)) = (REQUESTS.get_ptr_mut(index), key_place(index)) else { return };
    let histograms = if thread_place & THREAD_HISTOGRAMS != 0 { REQUEST_HISTOGRAMS } else { 0 };
    let tid = waterfall::begin(thread, times, at_ns);
    // SAFETY: pointers into the arrays; locked, and nobody finds it until its key is written.
    unsafe {
        (&raw mut (*request).place)
            .write_volatile(Request::with_outcome(Thread::slot_of(thread_place) | histograms, ANSWERED));
        (&raw mut (*request).begin_ns).write_volatile(at_ns);
        (&raw mut (*request).answer_ns).write_volatile(0);
        (&raw mut (*request).sock).cast::<*const u8>().write_volatile(sock);
        (&raw mut (*request).inode).write_volatile(inode_of(key));
        (&raw mut (*request).tid).write_volatile(tid);
        add_u32(&raw mut (*times).open, 1);
        fly(times, at_ns);
        atomic_xchg::<u64, { AtomicOrdering::SeqCst }>(place, key);
    }
    unlock(key, index, request);
}

/// More bytes came on a connection with a request, or no more will (`length` 0).
#[inline(always)]
fn continued(key: u64, index: u32, sock: *const u8, thread: &mut Thread, length: i32, at_ns: u64) {
    let Some(request) = lock(key, index) else { return };
    // SAFETY: a pointer into the array; locked.
    let (place, answer_ns) = unsafe { ((*request).place, (*request).answer_ns) };
    if answer_ns != 0 && length == 0 {
        end(key, index, at_ns);
        return;
    }
    if answer_ns != 0 && !is_read_away(sock, place) {
        // The answer was complete: this is the next request.
        let thread_place = thread.place;
        let (before, slot) = (Request::slot_of(place), Thread::slot_of(thread_place));
        let (Some(old), Some(new)) = (TIMES.get_ptr_mut(before), TIMES.get_ptr_mut(slot)) else { return };
        account(index, Request::outcome_of(place), answer_ns);
        leave_thread(request, at_ns);
        let tid = waterfall::begin(thread, new, at_ns);
        let histograms = if thread_place & THREAD_HISTOGRAMS != 0 { REQUEST_HISTOGRAMS } else { 0 };
        // SAFETY: pointers into the arrays; locked.
        unsafe {
            if before != slot {
                // Another worker was given the connection.
                add_u32(&raw mut (*old).open, u32::MAX);
                add_u32(&raw mut (*new).open, 1);
            }
            (&raw mut (*request).place).write_volatile(Request::with_outcome(slot | histograms, ANSWERED));
            (&raw mut (*request).begin_ns).write_volatile(at_ns);
            (&raw mut (*request).answer_ns).write_volatile(0);
            (&raw mut (*request).tid).write_volatile(tid);
        }
        fly(new, at_ns);
    }
    unlock(key, index, request);
}

/// Bytes were sent on a connection with a request, or found no room, or nobody who takes them.
#[inline(always)]
fn answered(
    key: u64,
    index: u32,
    sock: *const u8,
    thread: &Thread,
    length: i32,
    wants_status: bool,
    at_ns: u64,
) {
    let Some(request) = lock(key, index) else { return };
    // SAFETY: a pointer into the array; locked.
    let (place, answer_ns) = unsafe { ((*request).place, (*request).answer_ns) };
    if length <= 0 {
        end(key, index, at_ns);
        return;
    }
    let mut outcome = Request::outcome_of(place);
    if answer_ns == 0 || outcome < ANSWERED {
        let told = if wants_status { told_outcome() } else { ANSWERED };
        if told == INTERIM {
            // 100 Continue and the like: the answer is yet to come.
            unlock(key, index, request);
            return;
        }
        if answer_ns == 0 {
            outcome = told;
            if let Some(times) = TIMES.get_ptr_mut(Request::slot_of(place)) {
                fly_no_more(times, place, at_ns);
            }
        } else if told < ANSWERED {
            // The answer to the next of several requests that came together: begun when the last one was done with.
            account(index, outcome, answer_ns);
            leave_thread(request, at_ns);
            outcome = told;
            // SAFETY: as above.
            unsafe { (&raw mut (*request).begin_ns).write_volatile(answer_ns) };
        }
    }
    let queued: u32 = read!(sock, sock_queued);
    let left = if queued != 0 { REQUEST_LEFT } else { 0 };
    // SAFETY: as above.
    unsafe {
        let place = Request::with_outcome(place & !REQUEST_LEFT | left, outcome);
        (&raw mut (*request).place).write_volatile(place);
        (&raw mut (*request).answer_ns).write_volatile(at_ns);
    }
    // SAFETY: as above.
    let (tid, begin_ns) = unsafe { ((*request).tid, (*request).begin_ns) };
    waterfall::answered(thread, tid, begin_ns, outcome, answer_ns == 0, at_ns);
    unlock(key, index, request);
}

/// An HTTP/1 answer that is not the last to its request.
const INTERIM: u32 = 0xff;

/// The outcome that the bytes tell that the current system call sends.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn told_outcome() -> u32 {
    let Some(line) = first_bytes::<STATUS_LINE>() else { return ANSWERED };
    if line[..7] != *b"HTTP/1." || line[8] != b' ' {
        return ANSWERED;
    }
    match line[9] {
        b'1' if line[10] == b'0' && line[11] == b'1' => ANSWERED,
        b'1' => INTERIM,
        class @ b'2'..=b'5' => OK_2XX + u32::from(class - b'2'),
        _ => ANSWERED,
    }
}

/// Length of a FastCGI record without content, which is its header.
const END_OF_INPUT: i32 = 8;

/// 1 if what was received is the empty `FCGI_STDIN` that ends a FastCGI request. php-fpm reads it when it has answered.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn is_end_of_input() -> u32 {
    const VERSION: u8 = 1;
    const STDIN: u8 = 5;
    let Some(record) = first_bytes::<{ END_OF_INPUT as usize }>() else { return 0 };
    u32::from(record[0] == VERSION && record[1] == STDIN && record[4] == 0 && record[5] == 0)
}

/// The first bytes that the current system call sends or has received. `None` where it does not say them: sendfile(2),
/// io_uring.
#[inline(always)]
fn first_bytes<const LENGTH: usize>() -> Option<[u8; LENGTH]> {
    if offset!(regs_syscall) == ABSENT || offset!(regs_second) == ABSENT {
        return None;
    }
    // SAFETY: no precondition.
    let task = unsafe { bpf_get_current_task_btf() };
    // SAFETY: a trusted task; the helper gives the registers that were saved on entry to the kernel.
    let registers = unsafe { bpf_task_pt_regs(task) } as *const u8;
    let number: i32 = read!(registers, regs_syscall);
    let number = number as usize;
    if number >= SYSCALLS {
        return None;
    }
    let named = (&raw const SYSCALL_BYTES).cast::<u8>();
    // SAFETY: an index below the length; volatile, because the loader replaces the values.
    let named = unsafe { named.add(number).read_volatile() };
    let mut at: u64 = read!(registers, regs_second);
    if named == NO_BYTES {
        return None;
    }
    if named == MESSAGE {
        at = user_word(at.wrapping_add(MESSAGE_VECTORS as u64))?;
    }
    if named != BYTES {
        at = user_word(at)?;
    }
    let mut line = [0; LENGTH];
    // SAFETY: the helper checks the address.
    unsafe { bpf_probe_read_user_buf(at as *const u8, &mut line) }.ok()?;
    Some(line)
}

#[inline(always)]
fn user_word(at: u64) -> Option<u64> {
    // SAFETY: the helper checks the address.
    unsafe { bpf_probe_read_user(at as *const u64) }.ok()
}

/// A place that nobody has, locked.
#[inline(always)]
fn free_place(set: u32) -> Option<u32> {
    for _ in 0..ATTEMPTS_TO_BEGIN {
        let index = found(index_of_key(set, 0))?;
        let request = REQUESTS.get_ptr_mut(index)?;
        if try_lock(request) && still_of(0, index, request).is_some() {
            return Some(index);
        }
    }
    None
}

/// Another CPU can be about to take the same one.
const ATTEMPTS_TO_BEGIN: usize = 3;

/// Takes a request that was answered for complete, so that there is room for one that is not. Returns what was its index,
/// or [`NOWHERE`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn make_room(set: u32, at_ns: u64) -> u32 {
    for way in 0..REQUEST_WAYS as u32 {
        let index = set * REQUEST_WAYS as u32 + way;
        let Some(request) = REQUESTS.get_ptr_mut(index) else { break };
        // SAFETY: a pointer into the array; another CPU may change it.
        if unsafe { (&raw const (*request).answer_ns).read_volatile() } == 0 {
            continue;
        }
        let key = key_of(index);
        if lock(key, index).is_some() {
            end(key, index, at_ns);
            return index;
        }
    }
    NOWHERE
}
