//! A process from fork to the moment it leaves the kernel.

use core::intrinsics::{AtomicOrdering, atomic_xadd, atomic_xchg};
use core::mem::MaybeUninit;

use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;
use collector_ebpf::event::{
    Counter, DEATH_OOM, DEATH_OOM_KNOWN, DEATH_SENT_BY_KERNEL, DEATH_SENT_BY_PROCESS, Death, EXEC, EXIT,
    Exec, Exit, FORK, Fork, Header, NONE, REAP, RENAME, Reap, Rename,
};
use collector_ebpf::limits::MAX_SLOTS;
use collector_ebpf::offsets::ABSENT;
use collector_ebpf::schedule::{ON_CPU, RUNNABLE};
use collector_ebpf::slot::{EXITED, FINAL, LIVE, REAPED, ROLE_MASTER, ROLE_WORKER, SentSignal, Slot, Tag};

use crate::kernel::{Signal, Task, add, clear, cleared, now, offset, read};
use crate::schedule::Followed;
use crate::{CONTROL, FREE_SLOTS, SLOTS, count, emit, free_list, schedule};

/// `SIGNAL_GROUP_EXIT` of `include/linux/sched/signal.h`.
const SIGNAL_GROUP_EXIT: u32 = 4;
const SIGKILL: u32 = 9;

#[inline(always)]
fn header(kind: u32, process: Task, at_ns: u64) -> Header {
    Header { kind, pid: process.pid(), start_ns: process.start_ns(), at_ns }
}

/// Publishes a slot's phase after what it vouches for: the exchange is a full barrier.
#[inline(always)]
fn publish(slot: *mut Slot, phase: u32) {
    // SAFETY: a pointer into the array, checked by the verifier.
    unsafe { atomic_xchg::<u32, { AtomicOrdering::SeqCst }>(&raw mut (*slot).phase, phase) };
}

/// The slot of a tag, if it is still this process's: user space may have given it back and another worker have it, when
/// a process is let go of late.
#[inline(always)]
fn own_slot(number: u32, process: Task) -> Option<*mut Slot> {
    let slot = SLOTS.get_ptr_mut(number)?;
    // SAFETY: a pointer into the array, checked by the verifier.
    let (pid, start_ns) = unsafe { ((*slot).pid, (*slot).start_ns) };
    (pid == process.pid() && start_ns == process.start_ns()).then_some(slot)
}

/// A slot that was given back, or the next one that nobody has had.
#[inline(always)]
fn free_slot() -> Option<u32> {
    if let Some(number) = FREE_SLOTS.get_ptr_mut(0).and_then(free_list::take) {
        return Some(number);
    }
    let control = CONTROL.get_ptr_mut(0)?;
    // Looked at before it is raised, so that it never wraps around.
    // SAFETY: valid, aligned pointers into the array; user space raises it atomically, too.
    let number = unsafe {
        let next = &raw mut (*control).next_slot;
        if next.read_volatile() >= MAX_SLOTS as u32 {
            return None;
        }
        atomic_xadd::<u32, u32, { AtomicOrdering::SeqCst }>(next, 1)
    };
    (number < MAX_SLOTS as u32).then_some(number)
}

#[btf_tracepoint(function = "sched_process_fork")]
fn process_fork(ctx: BtfTracePointContext) -> i32 {
    let child = Task(ctx.arg(1));
    if child.tid() != child.pid() {
        if let Some(tag) = child.leader().tag() {
            schedule::follow(child.tid(), Followed::by(tag), RUNNABLE, false, now());
        }
        return 0;
    }
    let at_ns = now();
    // Not the first argument: with CLONE_PARENT the child is its forker's sibling.
    let parent = child.parent().leader();
    let mut pool = NONE;
    let mut slot_number = NONE;
    // SAFETY: the tag of a living process. User space may be changing it; its role is written last.
    if let Some(tag) = parent.tag().map(|tag| unsafe { tag.as_ptr().read_volatile() })
        && tag.role & ROLE_MASTER != 0
    {
        pool = tag.pool;
        match free_slot() {
            Some(number) => slot_number = number,
            None => count(Counter::NO_SLOT),
        }
        if let Some(slot) = SLOTS.get_ptr_mut(slot_number) {
            // SAFETY: the slot was free, so until it is published nobody else looks at it.
            unsafe {
                (*slot).pid = child.pid();
                (*slot).start_ns = child.start_ns();
                (*slot).parent = parent.pid();
                (*slot).pool = pool;
                (*slot).forked_at_ns = at_ns;
                (*slot).exited_at_ns = 0;
                clear(&raw mut (*slot).death);
                clear(&raw mut (*slot).cpu);
                (*slot).reaped_at_ns = 0;
                child.copy_comm(&raw mut (*slot).comm);
            }
            publish(slot, LIVE);
        }
        let wishes = tag.children_wishes;
        let mut room = MaybeUninit::uninit();
        if child.set_tag(worker_tag(&mut room, pool, slot_number, wishes)) {
            let owner = Followed { slot: slot_number, wishes };
            schedule::follow(child.tid(), owner, RUNNABLE, false, at_ns);
        } else {
            count(Counter::NO_TAG);
        }
    }
    emit(
        FORK,
        Fork {
            header: header(FORK, child, at_ns),
            parent: parent.pid(),
            pool,
            slot: slot_number,
            padding: 0,
            comm: child.comm(),
        },
    );
    0
}

#[btf_tracepoint(function = "sched_process_exec")]
fn process_exec(ctx: BtfTracePointContext) -> i32 {
    let task = Task(ctx.arg(0));
    let old_tid: u32 = ctx.arg(1);
    if old_tid != task.tid()
        && let Some(followed) = schedule::take_over(old_tid, task.tid(), ON_CPU, now())
    {
        tag_again(task, &followed);
    }
    let record = Exec {
        header: header(EXEC, task, now()),
        comm: task.comm(),
        by_thread: u32::from(old_tid != task.pid()),
        padding: 0,
    };
    emit(EXEC, record);
    0
}

/// A worker's tag went with its old main thread. Its slot knows what was in it, but for a pool that it is a master of:
/// user space adds that.
#[inline(always)]
fn tag_again(task: Task, followed: &Followed) {
    // The new main thread has the start of the old one (`de_thread` of `fs/exec.c`).
    let Some(slot) = own_slot(followed.slot, task) else { return };
    // SAFETY: a pointer into the array.
    let pool = unsafe { (*slot).pool };
    let (slot, wishes) = (followed.slot, followed.wishes);
    let mut room = MaybeUninit::uninit();
    if task.tag().is_none() && !task.set_tag(worker_tag(&mut room, pool, slot, wishes)) {
        count(Counter::NO_TAG);
    }
}

#[inline(always)]
fn worker_tag(room: &mut MaybeUninit<Tag>, pool: u32, slot: u32, wishes: u32) -> &mut Tag {
    let tag = cleared(room);
    (tag.pool, tag.role, tag.slot, tag.wishes) = (pool, ROLE_WORKER, slot, wishes);
    tag
}

#[btf_tracepoint(function = "task_rename")]
fn process_rename(ctx: BtfTracePointContext) -> i32 {
    let task = Task(ctx.arg(0));
    if task.tid() != task.pid() {
        return 0;
    }
    let name: *const u8 = ctx.arg(1);
    let mut comm = [0; 16];
    // SAFETY: the kernel passes a string; the helper stops at its end or at the size of the buffer.
    if unsafe { aya_ebpf::helpers::bpf_probe_read_kernel_str_bytes(name, &mut comm) }.is_err() {
        return 0;
    }
    emit(RENAME, Rename { header: header(RENAME, task, now()), comm });
    0
}

/// Runs in each thread that ends. The last one speaks for the process: `signal->live` is 0 by then.
#[btf_tracepoint(function = "sched_process_exit")]
fn process_exit(ctx: BtfTracePointContext) -> i32 {
    let task = Task(ctx.arg(0));
    let signal = task.signal();
    let live: i32 = read!(signal.0, signal_live);
    if live != 0 {
        return 0;
    }
    let leader = task.leader();
    let at_ns = now();
    let mut death = Death { wait_status: wait_status(leader, signal), ..Death::default() };
    death.peak_rss_pages = read!(signal.0, signal_maxrss);
    if offset!(signal_oom_mm) != ABSENT {
        let oom_mm: u64 = read!(signal.0, signal_oom_mm);
        death.flags |= DEATH_OOM_KNOWN | if oom_mm != 0 { DEATH_OOM } else { 0 };
    }
    // The dead threads that were released already, this one, and the main thread if it is another: it stays until
    // the process is reaped.
    let mut cpu = add(signal.dead_cpu(), task.cpu());
    if leader.tid() != task.tid() {
        cpu = add(cpu, leader.cpu());
    }
    let mut slot_number = NONE;
    if let Some(tag) = leader.tag() {
        let tag = tag.as_ptr();
        // Two threads that end together may both find nobody alive.
        // SAFETY: a valid pointer to an aligned integer in the tag.
        if unsafe { atomic_xadd::<u32, u32, { AtomicOrdering::SeqCst }>(&raw mut (*tag).exits_reported, 1) }
            != 0
        {
            return 0;
        }
        // SAFETY: the tag of this process.
        slot_number = unsafe { (*tag).slot };
        let signal_number = death.wait_status & 0x7f;
        if signal_number != 0 {
            // SAFETY: as above. A signal that is being sent now comes too late to be the cause.
            let sent = unsafe { if signal_number == SIGKILL { &(*tag).kill } else { &(*tag).other } };
            name_sender(&mut death, sent, signal_number);
        }
        if let Some(slot) = own_slot(slot_number, leader) {
            // SAFETY: a pointer into the array; the slot is this process's.
            unsafe {
                (*slot).exited_at_ns = at_ns;
                (*slot).death = death;
                (*slot).cpu = cpu;
            }
            publish(slot, EXITED);
        }
    }
    emit(EXIT, Exit { header: header(EXIT, leader, at_ns), slot: slot_number, padding: 0, death, cpu });
    0
}

/// As `wait_task_zombie` in `kernel/exit.c` computes it.
#[inline(always)]
fn wait_status(leader: Task, signal: Signal) -> u32 {
    let flags: u32 = read!(signal.0, signal_flags);
    if flags & SIGNAL_GROUP_EXIT != 0 {
        read!(signal.0, signal_group_exit_code)
    } else {
        read!(leader.0, task_exit_code)
    }
}

#[inline(always)]
fn name_sender(death: &mut Death, sent: &SentSignal, signal_number: u32) {
    if sent.signal != signal_number {
        return;
    }
    if sent.sender_pid == 0 {
        death.flags |= DEATH_SENT_BY_KERNEL;
    } else {
        death.flags |= DEATH_SENT_BY_PROCESS;
        death.sender_pid = sent.sender_pid;
        death.sender_comm = sent.sender_comm;
    }
}

/// The process was reaped and nothing runs on its behalf any more: the sums in `signal_struct` are final, the time
/// it took to tear down its memory included (since 6.16 `sched_process_exit` comes before that).
#[btf_tracepoint(function = "sched_process_free")]
fn process_free(ctx: BtfTracePointContext) -> i32 {
    let task = Task(ctx.arg(0));
    if task.tid() != task.pid() {
        return 0;
    }
    let Some(tag) = task.tag() else { return 0 };
    let at_ns = now();
    let cpu = task.signal().dead_cpu();
    // SAFETY: the tag lives as long as its task.
    let slot_number = unsafe { (*tag.as_ptr()).slot };
    if let Some(slot) = own_slot(slot_number, task) {
        // SAFETY: as in `process_exit`.
        unsafe {
            (*slot).cpu = cpu;
            (*slot).reaped_at_ns = at_ns;
        }
        publish(slot, REAPED);
    }
    emit(REAP, Reap { header: header(REAP, task, at_ns), slot: slot_number, padding: 0, cpu });
    0
}

/// The last thread of a slot that was followed has left the CPU for good. If no thread of its process lives, the sums are
/// final but for the main thread, which is not in them until the process is reaped; both may happen in either order.
///
/// The thread may have been released by now, and its main thread freed: that is only read from, and what was read counts
/// only if the main thread was still there afterwards.
///
/// `sched_process_free` is not hit for every process (6.18: for a few of a hundred at most in a fork storm, also as perf
/// counts it), and when it is, it is milliseconds later.
#[inline(always)]
pub(crate) fn last_switch(thread: Task, slot: u32) {
    let signal = thread.signal();
    let live: i32 = read!(signal.0, signal_live);
    if live != 0 {
        return;
    }
    let Some(slot) = SLOTS.get_ptr_mut(slot) else { return };
    // As long as it was followed the slot was its process's.
    // SAFETY: a pointer into the array, checked by the verifier.
    if unsafe { (*slot).pid } != thread.pid() {
        return;
    }
    let before = signal.dead_cpu();
    let own = thread.leader_to_read().cpu();
    let mut cpu = signal.dead_cpu();
    let threads: i32 = read!(signal.0, signal_nr_threads);
    if threads != 0 && cpu.runtime_ns == before.runtime_ns {
        cpu = add(cpu, own);
    }
    // SAFETY: a pointer into the array; the slot is this process's.
    unsafe {
        if (*slot).phase == REAPED {
            return;
        }
        (*slot).cpu = cpu;
    }
    publish(slot, FINAL);
}
