//! The tables that the programs look a system call up in: why a thread that is blocked in it is blocked, and what it does
//! with bytes.
//!
//! Numbers differ by architecture and come from libc, so the table is right for the one we are built for. A 32-bit
//! program on a 64-bit kernel has other numbers; its reasons are wrong.

use collector_ebpf::request::{
    BYTES, MESSAGE, NO_BYTES, NO_MOVE, RECEIVES, RECEIVES_BY_FLAGS, RECEIVES_BY_MESSAGE, SENDS, SPLICES,
    VECTORS,
};
use collector_ebpf::schedule::{
    ADDRESS_SPACE, AS_BEFORE, BY_DESCRIPTOR, CHILD, DISK, LOCK, NETWORK, OTHER, POLL, SLEEP, SYSCALLS,
};

macro_rules! calls {
    ($($name:ident)*) => { &[$(libc::$name),*] };
}

/// Reasons with their calls, on every architecture.
const CALLS: [(u8, &[libc::c_long]); 10] = [
    (
        POLL as u8,
        calls!(SYS_epoll_pwait SYS_epoll_pwait2 SYS_ppoll SYS_pselect6 SYS_accept SYS_accept4 SYS_io_uring_enter
            SYS_mq_timedreceive SYS_msgrcv),
    ),
    (
        LOCK as u8,
        calls!(SYS_futex SYS_futex_waitv SYS_semop SYS_semtimedop SYS_flock SYS_fcntl SYS_mq_timedsend SYS_msgsnd),
    ),
    (
        NETWORK as u8,
        calls!(SYS_recvfrom SYS_recvmsg SYS_recvmmsg SYS_sendto SYS_sendmsg SYS_sendmmsg SYS_connect SYS_shutdown),
    ),
    (SLEEP as u8, calls!(SYS_nanosleep SYS_clock_nanosleep SYS_rt_sigsuspend SYS_rt_sigtimedwait)),
    (
        DISK as u8,
        calls!(SYS_pread64 SYS_pwrite64 SYS_preadv SYS_pwritev SYS_preadv2 SYS_pwritev2 SYS_fsync SYS_fdatasync
            SYS_sync SYS_syncfs SYS_sync_file_range SYS_io_getevents SYS_openat SYS_openat2),
    ),
    (CHILD as u8, calls!(SYS_wait4 SYS_waitid SYS_clone SYS_clone3)),
    (
        BY_DESCRIPTOR,
        calls!(SYS_read SYS_write SYS_readv SYS_writev SYS_close SYS_ioctl SYS_sendfile SYS_splice SYS_tee SYS_vmsplice),
    ),
    (
        ADDRESS_SPACE,
        calls!(SYS_mmap SYS_munmap SYS_mremap SYS_mprotect SYS_pkey_mprotect SYS_madvise SYS_brk SYS_mlock SYS_munlock
            SYS_exit SYS_exit_group SYS_prctl),
    ),
    (AS_BEFORE, calls!(SYS_restart_syscall)),
    (OTHER as u8, &[]),
];

/// Calls that newer architectures have no more.
#[cfg(target_arch = "x86_64")]
const OLDER_CALLS: [(u8, &[libc::c_long]); 4] = [
    (POLL as u8, calls!(SYS_epoll_wait SYS_poll SYS_select)),
    (SLEEP as u8, calls!(SYS_pause)),
    (CHILD as u8, calls!(SYS_fork SYS_vfork)),
    (DISK as u8, calls!(SYS_open)),
];
#[cfg(not(target_arch = "x86_64"))]
const OLDER_CALLS: [(u8, &[libc::c_long]); 0] = [];

/// Calls that move bytes, and whereto. Those that move several messages at once return how many, not how long they are;
/// they are for datagrams.
const MOVERS: [(u8, libc::c_long); 13] = [
    (RECEIVES, libc::SYS_read),
    (RECEIVES, libc::SYS_readv),
    (RECEIVES, libc::SYS_preadv2),
    (RECEIVES_BY_MESSAGE, libc::SYS_recvmsg),
    (RECEIVES_BY_FLAGS, libc::SYS_recvfrom),
    (SENDS, libc::SYS_write),
    (SENDS, libc::SYS_writev),
    (SENDS, libc::SYS_pwritev2),
    (SENDS, libc::SYS_sendmsg),
    (SENDS, libc::SYS_sendto),
    (SENDS, libc::SYS_sendfile),
    (SENDS, libc::SYS_vmsplice),
    (SPLICES, libc::SYS_splice),
];

/// Calls that send or receive, and how each names the bytes.
const SENDERS: [(u8, libc::c_long); 11] = [
    (BYTES, libc::SYS_read),
    (BYTES, libc::SYS_recvfrom),
    (BYTES, libc::SYS_write),
    (BYTES, libc::SYS_sendto),
    (VECTORS, libc::SYS_readv),
    (VECTORS, libc::SYS_preadv2),
    (VECTORS, libc::SYS_writev),
    (VECTORS, libc::SYS_pwritev2),
    (MESSAGE, libc::SYS_recvmsg),
    (MESSAGE, libc::SYS_sendmsg),
    // The first message of several.
    (MESSAGE, libc::SYS_sendmmsg),
];

/// How a call names the bytes that it sends, by its number.
pub(super) fn sent_bytes() -> [u8; SYSCALLS] {
    table(NO_BYTES, SENDERS)
}

/// What a call does with bytes, by its number.
pub(super) fn moves() -> [u8; SYSCALLS] {
    table(NO_MOVE, MOVERS)
}

/// Reason by number of the call.
pub(super) fn reasons() -> [u8; SYSCALLS] {
    let listed = CALLS.iter().chain(&OLDER_CALLS);
    table(OTHER as u8, listed.flat_map(|(reason, calls)| calls.iter().map(|call| (*reason, *call))))
}

fn table(default: u8, calls: impl IntoIterator<Item = (u8, libc::c_long)>) -> [u8; SYSCALLS] {
    let mut table = [default; SYSCALLS];
    for (value, call) in calls {
        if let Some(entry) = usize::try_from(call).ok().and_then(|call| table.get_mut(call)) {
            *entry = value;
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_listed_call_has_its_reason() {
        let table = reasons();
        let listed: usize = CALLS.iter().chain(&OLDER_CALLS).map(|(_, calls)| calls.len()).sum();
        assert_eq!(
            table.iter().filter(|reason| **reason != OTHER as u8).count(),
            listed,
            "one call has two reasons"
        );
        assert_eq!(u32::from(table[libc::SYS_futex as usize]), LOCK);
        assert_eq!(table[libc::SYS_read as usize], BY_DESCRIPTOR);
        assert_eq!(table[libc::SYS_munmap as usize], ADDRESS_SPACE);
    }
}
