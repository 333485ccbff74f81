//! What is received and sent, as system calls return it: where requests come from if that was asked for. It is the only way
//! before Linux 6.3, and the only one to requests that come through pipes; but each system call of each thread of the host
//! comes by here.
//!
//! When a call returns, the registers that were saved on its entry still have its number and its arguments.

use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;
use collector_ebpf::request::{NO_MOVE, RECEIVES_BY_FLAGS, RECEIVES_BY_MESSAGE, SENDS, SPLICES};
use collector_ebpf::schedule::SYSCALLS;

use crate::connections::Connection;
use crate::kernel::{S_IFIFO, S_IFMT, S_IFSOCK, STDIN, STDOUT, file_of, inode_of, offset, peek, read};
use crate::requests::{ECONNRESET, EPIPE, in_progress, received, sent, serving};
use crate::sockets::NOT_FROM_PEER;

/// What system calls by number do with bytes, set by the loader.
#[unsafe(no_mangle)]
static SYSCALL_MOVES: [u8; SYSCALLS] = [NO_MOVE; SYSCALLS];

/// `(struct pt_regs *regs, long ret)`
// In place: it has as many frames on top of it as verifiers allow.
#[btf_tracepoint(function = "sys_exit")]
#[inline(always)]
fn syscall_returned(ctx: BtfTracePointContext) -> i32 {
    let Some(mut serving) = serving() else { return 0 };
    let (registers, result) = (ctx.arg::<*const u8>(0), ctx.arg::<i64>(1));
    let number: i32 = read!(registers, regs_syscall);
    let number = number as usize;
    if number >= SYSCALLS {
        return 0;
    }
    let moves = (&raw const SYSCALL_MOVES).cast::<u8>();
    // SAFETY: an index below the length; volatile, because the loader replaces the values.
    let moves = unsafe { moves.add(number).read_volatile() };
    let failed = result < 0 && result != -i64::from(EPIPE) && result != -i64::from(ECONNRESET);
    if moves == NO_MOVE || failed {
        return 0;
    }
    // A call moves less than 2 GiB (read(2)).
    let length = result as i32;
    let task = serving.task.0 as u64;
    let first: u64 = read!(registers, regs_argument);
    let flags: u64 = match moves {
        RECEIVES_BY_MESSAGE => read!(registers, regs_third),
        RECEIVES_BY_FLAGS => read!(registers, regs_fourth),
        _ => 0,
    };
    let target: u64 = if moves == SPLICES { read!(registers, regs_third) } else { first };
    if moves != SENDS
        && length >= 0
        && flags as u32 & NOT_FROM_PEER == 0
        && let Some(connection) = read_from(task, first as u32)
    {
        received::<false>(&mut serving, connection, length);
    }
    if (moves == SENDS || moves == SPLICES)
        && let Some(connection) = written_to(task, target as u32)
    {
        sent::<false>(&serving, connection, length);
    }
    0
}

/// What a descriptor is open on, if requests may come from there.
#[inline(always)]
fn read_from(task: u64, descriptor: u32) -> Option<Connection<false>> {
    let file = file_of(task, descriptor);
    let (key, mode) = inode_of(file);
    let stdin = Connection::<false> { key, sock: 0 };
    match mode & S_IFMT {
        S_IFSOCK => {
            let connection = Connection::<false> { key, sock: sock_of(file) };
            // One of a pair, as some hand to their children instead of pipes.
            Some(if descriptor == STDIN && !connection.asks() { stdin } else { connection })
        }
        S_IFIFO if descriptor == STDIN => Some(stdin),
        _ => None,
    }
}

/// What a descriptor is open on, if it may answer requests.
#[inline(always)]
fn written_to(task: u64, descriptor: u32) -> Option<Connection<false>> {
    let file = file_of(task, descriptor);
    let (key, mode) = inode_of(file);
    let kind = mode & S_IFMT;
    if kind == S_IFSOCK && (descriptor != STDOUT || in_progress(key)) {
        return Some(Connection::<false> { key, sock: sock_of(file) });
    }
    if descriptor != STDOUT || kind != S_IFSOCK && kind != S_IFIFO {
        return None;
    }
    let (key, mode) = inode_of(file_of(task, STDIN));
    let kind = mode & S_IFMT;
    (kind == S_IFIFO || kind == S_IFSOCK).then_some(Connection::<false> { key, sock: 0 })
}

/// The `struct sock` of an open socket.
#[inline(always)]
fn sock_of(file: u64) -> u64 {
    let socket: u64 = peek(file, offset!(file_private_data));
    peek(socket, offset!(socket_sock))
}
