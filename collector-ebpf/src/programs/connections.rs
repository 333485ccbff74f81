//! What requests come over: server-side sockets of every family, and the pipes or sockets that are a worker's standard
//! input and output.

use aya_ebpf::helpers::generated::bpf_jiffies64;
use collector_ebpf::offsets::ABSENT;
use collector_ebpf::request::{REQUEST_LEFT, Request};

use crate::histograms::UNKNOWN_NS;
use crate::kernel::{offset, peek, read};

/// `AF_UNIX`, `AF_INET` and `AF_INET6` of `include/linux/socket.h`.
const AF_UNIX: u16 = 1;
const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;
/// `SOCK_STREAM` and `SOCK_SEQPACKET` of `include/linux/net.h`.
const SOCK_STREAM: u16 = 1;
const SOCK_SEQPACKET: u16 = 5;
/// `IPPROTO_TCP` of `include/uapi/linux/in.h`.
const IPPROTO_TCP: u16 = 6;
/// `TCP_NAGLE_CORK` of `include/net/tcp.h`.
const TCP_NAGLE_CORK: u8 = 2;
/// `SEND_SHUTDOWN` of `include/net/sock.h`.
const SEND_SHUTDOWN: u8 = 2;
/// `SOCK_NOSPACE` of `include/linux/net.h`.
const SOCK_NOSPACE: u32 = 2;

/// Length of the kernel's tick, ns, set by the loader.
#[unsafe(no_mangle)]
static TICK_NS: u64 = 0;

/// What a client sends with its last word of the handshake, or right after it, comes so soon, ns.
const AT_ONCE_NS: u64 = 4_000_000;

/// A field of the `struct sock` of a [`Connection`]. What tracepoints hand over is trusted (6.2+): nothing stands before such a load,
/// and the socket is there, as `sock_recvmsg` and `sock_sendmsg` of `net/socket.c` have it.
macro_rules! field {
    ($connection:ident, $field:ident, $type:ty) => {{
        let value: $type = if HERE {
            read!($connection.sock as *const u8, $field)
        } else {
            peek($connection.sock, offset!($field))
        };
        value
    }};
}

/// Over what a request comes. Addresses are plain numbers to the verifier, but `HERE` for the one of the socket: that is what the
/// tracepoint has handed over, and needs no guard to be read from.
#[derive(Clone, Copy)]
pub(crate) struct Connection<const HERE: bool> {
    /// Address of the inode: of the socket, or of the standard input. 0 if nobody has the socket open.
    pub(crate) key: u64,
    /// Address of the `struct sock`; 0 for standard input and output, of which each may be something else.
    pub(crate) sock: u64,
}

impl<const HERE: bool> Connection<HERE> {
    /// By its `struct sock`.
    #[inline(always)]
    pub(crate) fn of_sock(sock: u64) -> Self {
        let socket: u64 = peek(sock, offset!(sock_socket));
        let key = if socket == 0 { 0 } else { socket + u64::from(offset!(socket_inode)) };
        Self { key, sock }
    }

    /// There is a socket.
    #[inline(always)]
    pub(crate) fn has_sock(self) -> bool {
        HERE || self.sock != 0
    }

    /// What tells it apart from one that had the same addresses before it: of TCP, and of what has ports like it, the hash of
    /// both ends and the port of the other one, which are beside each other where the kernel has just been; of all else the
    /// number of the inode.
    #[inline(always)]
    pub(crate) fn identity(self) -> u64 {
        if self.has_sock() {
            let (ends, port) = (field!(self, sock_hash, u32), field!(self, sock_port, u16));
            if port != 0 {
                return u64::from(ends) | u64::from(port) << u32::BITS;
            }
        }
        peek(self.key, offset!(inode_number))
    }

    /// A connection that somebody else has opened to this side, and on which this side has not said that it sends no more:
    /// what comes after that is read away.
    ///
    /// A TCP connection that was accepted has the limit of the queue of its listening socket, of which it began as a copy
    /// (`inet_csk_clone_lock` of `net/ipv4/inet_connection_sock.c`); one that connect(2) opened has none. When the other
    /// end of a UNIX connection is closed, neither direction is open, which does not keep this side from reading what came
    /// before.
    #[inline(always)]
    pub(crate) fn asks(self) -> bool {
        let sock = self.sock;
        if !self.has_sock() {
            return true;
        }
        let (family, kind) = (field!(self, sock_family, u16), field!(self, sock_type, u16));
        let shutdown = field!(self, sock_shutdown, u8);
        match family {
            AF_INET | AF_INET6 => {
                let backlog = field!(self, sock_max_ack_backlog, u32);
                kind == SOCK_STREAM && backlog != 0 && (shutdown & SEND_SHUTDOWN == 0 || self.was_reset())
            }
            AF_UNIX if offset!(address_users) != ABSENT && offset!(unix_peer) != ABSENT => {
                (kind == SOCK_STREAM || kind == SOCK_SEQPACKET)
                    && was_accepted(sock)
                    && shutdown != SEND_SHUTDOWN
            }
            _ => false,
        }
    }

    /// A TCP connection was reset by the other side before anything was sent on it. Neither direction is open then, as
    /// after this side has ended its own; what came before the reset can be read.
    #[inline(always)]
    fn was_reset(self) -> bool {
        let error: i32 = peek(self.sock, offset!(sock_error));
        error != 0 && peek::<u64>(self.sock, offset!(tcp_bytes_sent)) == 0
    }

    /// How long it waited to be accepted, ns, if what was just read are its first bytes and it is one of TCP. [`UNKNOWN_NS`] if
    /// the client took its time.
    ///
    /// As long as nothing was sent, the kernel keeps the tick in which the connection was established where else it keeps
    /// that of what was last sent (`tcp_create_openreq_child` of `net/ipv4/tcp_minisocks.c`).
    #[inline(always)]
    pub(crate) fn accept_wait_ns(self) -> Option<u64> {
        let sock = self.sock;
        if !self.has_sock() || offset!(tcp_sent_tick) == ABSENT || offset!(tcp_received_tick) == ABSENT {
            return None;
        }
        let family: u16 = peek(sock, offset!(sock_family));
        if family == AF_UNIX || peek::<u64>(sock, offset!(tcp_bytes_sent)) != 0 {
            return None;
        }
        // SAFETY: an integer that the loader sets; volatile, because the compiler knows another one.
        let tick_ns = unsafe { (&raw const TICK_NS).read_volatile() };
        let established: u32 = peek(sock, offset!(tcp_sent_tick));
        let received: u32 = peek(sock, offset!(tcp_received_tick));
        if u64::from(received.wrapping_sub(established)) * tick_ns > AT_ONCE_NS.max(tick_ns) {
            return Some(UNKNOWN_NS);
        }
        // SAFETY: no precondition.
        let now = unsafe { bpf_jiffies64() } as u32;
        Some(u64::from(now.wrapping_sub(established)) * tick_ns)
    }

    /// What comes on a connection whose last request was answered is read away, and is no other request: this side has
    /// said that it sends no more. If the other side has closed the connection by now nothing tells who was first, but for
    /// what had come before the answer. `place` is that of the request.
    #[inline(always)]
    pub(crate) fn is_read_away(self, place: u32) -> bool {
        if !self.has_sock() {
            return false;
        }
        let shutdown = field!(self, sock_shutdown, u8);
        shutdown == SEND_SHUTDOWN || shutdown & SEND_SHUTDOWN != 0 && place & REQUEST_LEFT != 0
    }

    /// What is sent on it is held back until a segment is full, the server says that it is all, or 200 ms have passed (`TCP_CORK`
    /// of tcp(7)).
    #[inline(always)]
    pub(crate) fn is_corked(self) -> bool {
        self.has_sock()
            && field!(self, sock_protocol, u16) == IPPROTO_TCP
            && peek::<u8>(self.sock, offset!(tcp_nonagle)) & TCP_NAGLE_CORK != 0
    }

    /// Something has come that was not read yet.
    #[inline(always)]
    pub(crate) fn has_more(self) -> bool {
        self.has_sock() && field!(self, sock_queued, u32) != 0
    }
}

/// A UNIX connection has the address of the listening socket that it came to, and shares it with that one
/// (`unix_stream_connect` of `net/unix/af_unix.c`). The other end has none, unless it was bound to one, of its own.
#[inline(always)]
fn was_accepted(sock: u64) -> bool {
    let users = |sock: u64| -> i32 {
        let address: u64 = peek(sock, offset!(unix_address));
        if address == 0 { 0 } else { peek(address, offset!(address_users)) }
    };
    let ours = users(sock);
    ours != 0 && ours > users(peek(sock, offset!(unix_peer)))
}

/// The connection of a request is still there, also if nobody has told that it was closed: nobody tells it of UNIX
/// connections, and of pipes.
#[inline(always)]
pub(crate) fn is_open(key: u64, request: *mut Request) -> bool {
    // SAFETY: a pointer into the array; locked.
    let (sock, identity) = unsafe {
        ((&raw const (*request).sock).read_volatile(), (&raw const (*request).identity).read_volatile())
    };
    // What was freed may be anything by now, but hardly two things that point to each other.
    let socket = key.wrapping_sub(u64::from(offset!(socket_inode)));
    let has_sock = sock == 0
        || peek::<u64>(socket, offset!(socket_sock)) == sock
            && peek::<u64>(sock, offset!(sock_socket)) == socket;
    has_sock && (Connection::<false> { key, sock }).identity() == identity
}

/// A send has found no room on the connection of a request, and there is none yet, be it that the call waits for it, or that
/// it has sent a part or nothing. Of TCP the kernel notes it (`tcp_sendmsg_locked`), and when there is room
/// (`sk_stream_write_space`).
#[inline(always)]
pub(crate) fn waits_for_room(key: u64, request: *mut Request) -> bool {
    // SAFETY: a pointer into the array; locked.
    let sock = unsafe { (&raw const (*request).sock).read_volatile() };
    if sock == 0 {
        return false;
    }
    if peek::<u16>(sock, offset!(sock_family)) == AF_UNIX {
        let (held, limit): (i32, i32) =
            (peek(sock, offset!(sock_wmem_alloc)), peek(sock, offset!(sock_sndbuf)));
        return held >= limit;
    }
    let socket = key.wrapping_sub(u64::from(offset!(socket_inode)));
    peek::<u64>(socket, offset!(socket_flags)) & 1 << SOCK_NOSPACE != 0
}
