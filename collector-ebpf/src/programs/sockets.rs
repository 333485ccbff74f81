//! What is received and sent, as the kernel tells of each socket: where requests come from, unless system calls are watched
//! ([`crate::syscalls`]).

use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;

use crate::connections::Connection;
use crate::requests::{closed, received, sent, serving};

/// `MSG_PEEK` and `MSG_ERRQUEUE` of `include/linux/socket.h`: what is received stays there, or is what the kernel says of
/// what was sent.
pub(crate) const NOT_FROM_PEER: u32 = 2 | 0x2000;
/// `TCP_FIN_WAIT1`, `TCP_CLOSE` and `TCP_LAST_ACK` of `include/net/tcp_states.h`.
const TCP_FIN_WAIT1: i32 = 4;
const TCP_CLOSE: i32 = 7;
const TCP_LAST_ACK: i32 = 9;

/// `(struct sock *sk, int ret, int flags)`
#[btf_tracepoint(function = "sock_recv_length")]
fn socket_received(ctx: BtfTracePointContext) -> i32 {
    let (sock, length, flags) = (ctx.arg::<u64>(0), ctx.arg::<i32>(1), ctx.arg::<u32>(2));
    // Some servers read until nothing is left.
    if length < 0 || flags & NOT_FROM_PEER != 0 {
        return 0;
    }
    if let Some(mut serving) = serving() {
        received::<true>(&mut serving, Connection::of_sock(sock), length);
    }
    0
}

/// `(struct sock *sk, int ret, int flags)`
#[btf_tracepoint(function = "sock_send_length")]
fn socket_sent(ctx: BtfTracePointContext) -> i32 {
    let Some(serving) = serving() else { return 0 };
    let (sock, length) = (ctx.arg::<u64>(0), ctx.arg::<i32>(1));
    sent::<true>(&serving, Connection::of_sock(sock), length);
    0
}

/// `(const struct sock *sk, const int oldstate, const int newstate)`. In whatever task the packet came to.
#[btf_tracepoint(function = "inet_sock_set_state")]
fn connection_state(ctx: BtfTracePointContext) -> i32 {
    let state = ctx.arg::<i32>(2);
    if state == TCP_FIN_WAIT1 || state == TCP_LAST_ACK || state == TCP_CLOSE {
        closed(Connection::<true>::of_sock(ctx.arg(0)).key, state != TCP_CLOSE);
    }
    0
}
