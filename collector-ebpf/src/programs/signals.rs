//! Who signals whom, remembered on the receiver until it dies of it.

use core::hint::black_box;
use core::intrinsics::{AtomicOrdering, atomic_cxchg, atomic_xchg};
use core::mem::MaybeUninit;

use aya_ebpf::helpers::generated::bpf_get_current_comm;
use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_probe_read_kernel};
use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;
use collector_ebpf::limits::COMM_LEN;

use crate::kernel::{Task, cleared, copy, offset};

const SIGKILL: u32 = 9;
/// SIGCHLD, SIGCONT, SIGURG and SIGWINCH: ignored by default, so nobody dies of them.
const HARMLESS: u64 = 1 << 17 | 1 << 18 | 1 << 23 | 1 << 28;
/// `TRACE_SIGNAL_DELIVERED` and `TRACE_SIGNAL_LOSE_INFO` of `include/trace/events/signal.h`; in the other cases
/// the signal was dropped, or one is pending already and its sender stays the cause.
const DELIVERED: u32 = 0;
const LOSE_INFO: u32 = 4;

/// `(int sig, struct kernel_siginfo *info, struct task_struct *task, int type, int result)`
#[btf_tracepoint(function = "signal_generate")]
fn signal_sent(ctx: BtfTracePointContext) -> i32 {
    let signal: u32 = ctx.arg(0);
    let result: u32 = ctx.arg(4);
    if signal > 64
        || (signal < 64 && HARMLESS >> signal & 1 != 0)
        || (result != DELIVERED && result != LOSE_INFO)
    {
        return 0;
    }
    let target = Task(ctx.arg(2));
    let Some(tag) = target.leader().tag() else { return 0 };
    let (mut sender_pid, mut room) = (0, MaybeUninit::uninit());
    let sender_comm: &mut [u32; COMM_LEN / size_of::<u32>()] = cleared(&mut room);
    if by_process(ctx.arg(1)) {
        sender_pid = (bpf_get_current_pid_tgid() >> 32) as u32;
        // SAFETY: as long as it is said to be. A failure leaves it zero.
        unsafe { bpf_get_current_comm(sender_comm.as_mut_ptr().cast(), COMM_LEN as u32) };
    }
    let tag = tag.as_ptr();
    // Of two that are sent at the same moment either is the cause; what must not be is a mixture.
    // SAFETY: the tag of a living process, aligned.
    let (_, alone) = unsafe {
        atomic_cxchg::<u32, { AtomicOrdering::SeqCst }, { AtomicOrdering::SeqCst }>(
            &raw mut (*tag).sending,
            0,
            1,
        )
    };
    if alone {
        // Word by word: the compiler makes bytes of an assignment, and looks for each of them which of the two it is of.
        // SAFETY: as above, and nobody else writes these.
        unsafe {
            let sent = if signal == SIGKILL { &raw mut (*tag).kill } else { &raw mut (*tag).other };
            let sent = black_box(sent);
            (*sent).signal = signal;
            (*sent).sender_pid = sender_pid;
            copy((&raw mut (*sent).sender_comm).cast(), sender_comm);
        }
        // SAFETY: as above.
        unsafe { atomic_xchg::<u32, { AtomicOrdering::SeqCst }>(&raw mut (*tag).sending, 0) };
    }
    0
}

/// `info` is 0 for a signal without information from a process (`SEND_SIG_NOINFO`), 1 for one from the kernel
/// (`SEND_SIG_PRIV`), else a pointer; codes above 0 are the kernel's (sigaction(2)).
///
/// A pointer that may hold a small number is a plain number to the verifier since 6.13 (and 6.12 stable), which
/// refuses a direct load; the helper takes any address.
#[inline(always)]
fn by_process(info: *const u8) -> bool {
    match info as u64 {
        0 => true,
        1 => false,
        _ => {
            let code = info.wrapping_add(offset!(siginfo_code) as usize).cast::<i32>();
            // SAFETY: the helper checks the address; `int` has no invalid bit patterns.
            unsafe { bpf_probe_read_kernel(code) }.is_ok_and(|code| code <= 0)
        }
    }
}
