//! Why a thread is blocked.

use collector_ebpf::offsets::ABSENT;
use collector_ebpf::schedule::{
    ADDRESS_SPACE, AS_BEFORE, BY_DESCRIPTOR, CHILD, DISK, LOCK, NETWORK, OTHER, PAGE_FAULT, PIPE, POLL,
    STOPPED, SYSCALLS,
};

use crate::kernel::{Registers, S_IFIFO, S_IFMT, S_IFSOCK, STDIN, Task, file_of, inode_of, offset, read};

/// `TASK_UNINTERRUPTIBLE` of `include/linux/sched.h`.
const TASK_UNINTERRUPTIBLE: u32 = 0x2;
/// `__TASK_STOPPED | __TASK_TRACED`
const TASK_STOPPED_OR_TRACED: u32 = 0x4 | 0x8;
/// `JOBCTL_TRAP_FREEZE` of `include/linux/sched/jobctl.h` (5.2+): the thread is frozen with its cgroup of version 2, or
/// will be as soon as it has left the kernel.
const JOBCTL_TRAP_FREEZE: u64 = 1 << 23;
/// `TASK_NOLOAD`: uninterruptible, but idle.
const TASK_NOLOAD: u32 = 0x400;
/// `PF_IO_WORKER`, `PF_USER_WORKER` (6.4+) and `PF_KTHREAD` of `include/linux/sched.h`: threads without a user side, whose saved
/// registers mean nothing.
const PF_IO_WORKER: u32 = 0x10;
const PF_USER_WORKER: u32 = 0x4000;
const PF_KTHREAD: u32 = 0x0020_0000;
pub(crate) const NO_USER_SIDE: u32 = PF_IO_WORKER | PF_USER_WORKER | PF_KTHREAD;

/// File type bits of `i_mode` (inode(7)) of a character device.
const S_IFCHR: u16 = 0o020_000;

/// Reasons by system call number, set by the loader: a kind of time, or [`BY_DESCRIPTOR`].
#[unsafe(no_mangle)]
static SYSCALL_REASONS: [u8; SYSCALLS] = [OTHER as u8; SYSCALLS];

/// Why a thread is blocked: its state, and the system call it is in.
///
/// | state | in | reason |
/// |---|---|---|
/// | stopped or traced, or frozen with its cgroup | | `STOPPED` |
/// | any | no system call | `PAGE_FAULT` |
/// | uninterruptible | clone, fork, vfork, wait | `CHILD` |
/// | uninterruptible | mmap, munmap and the like, exit, of a process of several threads | `LOCK`: others hold the address space |
/// | uninterruptible | any other | `DISK` |
/// | interruptible | restart_syscall, after a stop or a freeze | as before that |
/// | interruptible | a call of the table | its reason there |
/// | interruptible | read, write and the like | by what the descriptor is open on |
/// | any | of a thread without user side | `DISK` if uninterruptible, else `POLL` if it is of io_uring, else `OTHER` |
#[inline(always)]
pub(crate) fn reason(task: Task, state: u32, before: u32) -> u32 {
    if state & TASK_STOPPED_OR_TRACED != 0 {
        return STOPPED;
    }
    if offset!(task_jobctl) != ABSENT {
        let jobctl: u64 = read!(task.0, task_jobctl);
        if jobctl & JOBCTL_TRAP_FREEZE != 0 {
            return STOPPED;
        }
    }
    let uninterruptible = state & TASK_UNINTERRUPTIBLE != 0 && state & TASK_NOLOAD == 0;
    let flags: u32 = read!(task.0, task_flags);
    if flags & NO_USER_SIDE != 0 || offset!(regs_syscall) == ABSENT {
        return match uninterruptible {
            true => DISK,
            // Helpers of the process for io_uring: they wait to be given something to do, or for a descriptor.
            false if flags & (PF_IO_WORKER | PF_USER_WORKER) != 0 => POLL,
            false => OTHER,
        };
    }
    let Some(registers) = Registers::of(task) else { return OTHER };
    let number: i32 = registers.get(offset!(regs_syscall));
    if number < 0 {
        return PAGE_FAULT;
    }
    let number = number as usize;
    let listed = if number < SYSCALLS {
        let reasons = (&raw const SYSCALL_REASONS).cast::<u8>();
        // SAFETY: an index below the length; volatile, because the loader replaces the values.
        unsafe { reasons.add(number).read_volatile() }
    } else {
        OTHER as u8
    };
    if uninterruptible {
        return match listed {
            ADDRESS_SPACE if has_threads(task) => LOCK,
            _ if u32::from(listed) == CHILD => CHILD,
            _ => DISK,
        };
    }
    if listed == ADDRESS_SPACE {
        return OTHER;
    }
    if listed == AS_BEFORE {
        return before;
    }
    if listed == BY_DESCRIPTOR {
        return by_descriptor(task, registers.get(offset!(regs_argument)));
    }
    u32::from(listed)
}

/// Its process has more than one thread, or is just losing the others.
#[inline(always)]
fn has_threads(task: Task) -> bool {
    let signal = task.signal();
    let threads: i32 = read!(signal.0, signal_nr_threads);
    threads > 1
}

/// What a descriptor is open on. Who reads the pipe or socket that is its standard input waits for what it is there for.
#[inline(always)]
fn by_descriptor(task: Task, descriptor: u64) -> u32 {
    // The kernel takes an `unsigned int`.
    let descriptor = descriptor as u32;
    if offset!(inode_mode) == ABSENT {
        return OTHER;
    }
    let (inode, mode) = inode_of(file_of(task.0 as u64, descriptor));
    if inode == 0 {
        return OTHER;
    }
    match mode & S_IFMT {
        S_IFSOCK | S_IFIFO if descriptor == STDIN => POLL,
        S_IFSOCK => NETWORK,
        S_IFIFO => PIPE,
        // An anonymous inode has no type: event descriptors, timers, signals, inotify.
        0 => POLL,
        S_IFCHR => OTHER,
        _ => DISK,
    }
}
