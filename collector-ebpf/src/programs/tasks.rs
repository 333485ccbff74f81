//! Every task of the host in one `read()`: the figures of tracked processes, or the identity of all.

use core::ffi::c_void;

use aya_ebpf::helpers::bpf_probe_read_kernel;
use aya_ebpf::helpers::generated::bpf_seq_write;
use collector_ebpf::offsets::ABSENT;
use collector_ebpf::task::{
    RowHeader, TASK_HAS_MEMORY, TASK_KERNEL_THREAD, TASK_MAIN_THREAD, TASK_UNCHANGED, TELL_AGAIN_PASSES,
    TaskRow,
};

use crate::kernel::{Signal, Task, add, now, offset, read, read_if_present, read_pointer};
use crate::{CONTROL, schedule};

/// `PF_KTHREAD` of `include/linux/sched.h`.
const PF_KTHREAD: u32 = 0x0020_0000;

/// `struct bpf_iter_meta`
#[repr(C)]
struct Meta {
    seq: *mut c_void,
}

/// `struct bpf_iter__task`
#[repr(C)]
struct IterTask {
    meta: *const Meta,
    task: *const u8,
}

#[inline(always)]
/// False if the buffer is full: the kernel empties it and calls the program for the same task again.
fn write<T>(ctx: &IterTask, row: &T) -> bool {
    // SAFETY: `meta` and `seq` are never null in an iterator program; the row is initialised and without padding.
    unsafe {
        bpf_seq_write((*ctx.meta).seq.cast(), core::ptr::from_ref(row).cast(), size_of::<T>() as u32) == 0
    }
}

#[inline(always)]
fn identity(task: Task, leader: Task, parent: Task, signal: Signal) -> TaskRow {
    let flags: u32 = read!(task.0, task_flags);
    let mut row = TaskRow {
        header: RowHeader { pid: task.pid(), flags: 0, start_ns: leader.start_ns() },
        tid: task.tid(),
        exit_state: read!(task.0, task_exit_state),
        state: read!(task.0, task_state),
        ..TaskRow::default()
    };
    if flags & PF_KTHREAD != 0 {
        row.header.flags |= TASK_KERNEL_THREAD;
    }
    let live: i32 = read!(signal.0, signal_live);
    if live > 0 {
        // A main thread that ended before the others waits for them; the process lives.
        row.exit_state = 0;
    }
    if row.tid == row.header.pid {
        row.header.flags |= TASK_MAIN_THREAD;
        row.parent = parent.pid();
        row.comm = task.comm();
    }
    row
}

/// Gives [`read!`] the type to read.
#[inline(always)]
fn u64_of(value: u64) -> u64 {
    value
}

/// One row per process, with who it is and nothing else: at start and after losses.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task")]
extern "C" fn all_processes(ctx: &IterTask) -> i32 {
    if ctx.task.is_null() {
        return 0;
    }
    let task = Task(ctx.task);
    if task.tid() != task.pid() {
        return 0;
    }
    let row = identity(task, task, task.parent(), task.signal());
    write(ctx, &row);
    0
}

/// One row per thread of a tracked process. Rows of one process add up: the main thread's holds what the
/// threads that are gone have left in `signal_struct`.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task")]
extern "C" fn tracked_tasks(ctx: &IterTask) -> i32 {
    if ctx.task.is_null() {
        return 0;
    }
    let task = Task(ctx.task);
    let leader = task.leader();
    let Some(tag) = leader.tag() else { return 0 };
    // SAFETY: the tag lives as long as its task; what an iterator writes to it nobody else writes.
    let tag = unsafe { &mut *tag.as_ptr() };
    let (pid, is_main) = (task.pid(), task.tid() == task.pid());
    let switches = u64_of(read!(task.0, task_nvcsw)) + u64_of(read!(task.0, task_nivcsw));
    let state: u32 = read!(task.0, task_state);
    // A thread that is asleep and has not switched since has not run. What follows reads a dozen cache lines that no
    // longer are in any cache, for nothing.
    if is_main && tag.told_alone != 0 && tag.told_switches == switches && state != 0 && !is_due(pid) {
        write(ctx, &RowHeader { pid, flags: TASK_UNCHANGED, start_ns: leader.start_ns() });
        return 0;
    }
    schedule::follow_found(task, tag, state, now());
    let (parent, signal) = (task.parent(), task.signal());
    let mm = read_pointer!(task.0, task_mm);
    let mut row = identity(task, leader, parent, signal);
    let mut cpu = task.cpu();
    row.minor_faults = read!(task.0, task_min_flt);
    row.major_faults = read!(task.0, task_maj_flt);
    row.voluntary_switches = read!(task.0, task_nvcsw);
    row.involuntary_switches = read!(task.0, task_nivcsw);
    row.run_delay_ns = read_if_present!(task.0, task_run_delay);
    row.read_bytes = read_if_present!(task.0, task_read_bytes);
    row.written_bytes = read_if_present!(task.0, task_write_bytes);
    if row.header.flags & TASK_MAIN_THREAD != 0 {
        cpu = add(cpu, signal.dead_cpu());
        row.threads = read!(signal.0, signal_nr_threads);
        row.minor_faults += u64_of(read!(signal.0, signal_min_flt));
        row.major_faults += u64_of(read!(signal.0, signal_maj_flt));
        row.voluntary_switches += u64_of(read!(signal.0, signal_nvcsw));
        row.involuntary_switches += u64_of(read!(signal.0, signal_nivcsw));
        if offset!(signal_read_bytes) != ABSENT {
            row.read_bytes += u64_of(read!(signal.0, signal_read_bytes));
            row.written_bytes += u64_of(read!(signal.0, signal_write_bytes));
        }
    }
    memory(mm, &mut row);
    row.runtime_ns = cpu.runtime_ns;
    row.user_ns = cpu.user_ns;
    row.system_ns = cpu.system_ns;
    if write(ctx, &row) && is_main {
        tag.told_switches = switches;
        tag.told_alone = u32::from(row.threads <= 1);
    }
    0
}

/// It is this process's turn to be told again, or all figures are wanted.
#[inline(always)]
fn is_due(pid: u32) -> bool {
    let Some(control) = CONTROL.get_ptr(0) else { return true };
    // SAFETY: a valid pointer into the array; user space writes it between passes.
    let (pass, tell_all) = unsafe { ((*control).pass, (*control).tell_all) };
    tell_all != 0 || pass.wrapping_add(pid) % TELL_AGAIN_PASSES == 0
}

/// Reads the address space without holding it: a task that ends at this moment may give zeros (a load from memory
/// that is gone), never a fault.
#[inline(always)]
fn memory(mm: *const u8, row: &mut TaskRow) {
    if offset!(mm_rss_first) == ABSENT || mm.is_null() {
        return;
    }
    row.header.flags |= TASK_HAS_MEMORY;
    let first = offset!(mm_rss_first) as usize;
    let stride = offset!(mm_rss_stride) as usize;
    if stride == size_of::<u64>() {
        // Before 6.2 the counters are `atomic_long_t`, a typedef, and the verifier does not look through a typedef
        // for the elements of an array. The branch is dead elsewhere, so no helper is asked for there.
        // SAFETY: the helper checks the address; integers have no invalid bit patterns.
        if let Ok(pages) = unsafe { bpf_probe_read_kernel(mm.add(first).cast()) } {
            row.rss_pages = pages;
        }
        return;
    }
    // Unrolled by hand: each address must be the base plus one constant for the verifier.
    // SAFETY: as for every field, checked against the BTF of `mm_struct`.
    unsafe {
        row.rss_pages[0] = *mm.add(first).cast();
        row.rss_pages[1] = *mm.add(first + stride).cast();
        row.rss_pages[2] = *mm.add(first + 2 * stride).cast();
        row.rss_pages[3] = *mm.add(first + 3 * stride).cast();
    }
}
