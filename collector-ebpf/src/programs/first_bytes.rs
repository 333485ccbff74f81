//! What the first bytes of a message tell. They are read from where the current system call has them; none is kept.

use aya_ebpf::helpers::generated::{bpf_get_current_task_btf, bpf_task_pt_regs};
use aya_ebpf::helpers::{bpf_probe_read_user, bpf_probe_read_user_buf};
use collector_ebpf::offsets::ABSENT;
use collector_ebpf::request::{ANSWERED, BYTES, MESSAGE, NO_BYTES, OK_2XX, STATUS_LINE};
use collector_ebpf::schedule::SYSCALLS;

use crate::kernel::{offset, read};

/// Where `struct msghdr` has `msg_iov`, on machines of 64 bits.
const MESSAGE_VECTORS: usize = 16;

/// How system calls by number name the bytes that they send, set by the loader.
#[unsafe(no_mangle)]
static SYSCALL_BYTES: [u8; SYSCALLS] = [NO_BYTES; SYSCALLS];

/// An HTTP/1 answer that is not the last to its request.
pub(crate) const INTERIM: u32 = 0xff;

/// The outcome that the bytes tell that the current system call sends.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn told_outcome() -> u32 {
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
pub(crate) const END_OF_INPUT: i32 = 8;

/// 1 if what was received is the empty `FCGI_STDIN` that ends a FastCGI request. php-fpm reads it when it has answered.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn is_end_of_input() -> u32 {
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
