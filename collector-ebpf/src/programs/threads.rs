//! Threads of workers, where they are at this moment: for who asks what they all do. Loaded only then.

use core::mem::MaybeUninit;

use aya_ebpf::helpers::generated::bpf_get_task_stack;
use collector_ebpf::offsets::ABSENT;
use collector_ebpf::task::{THREAD_FRAMES, THREAD_HAS_REGISTERS, THREAD_ON_CPU, ThreadRow};

use crate::blocked::NO_USER_SIDE;
use crate::kernel::{Registers, Task, cleared, offset, peek, read, read_if_present};
use crate::sample::{sampled, user_registers};
use crate::tasks::{IterTask, write};

/// One row per thread of a worker. What a thread has in its registers is not known while it is on a CPU: those that were
/// saved are of when it last entered the kernel.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task")]
extern "C" fn worker_threads(ctx: &IterTask) -> i32 {
    if ctx.task.is_null() {
        return 0;
    }
    let task = Task(ctx.task);
    let Some(found) = sampled(task) else { return 0 };
    let mut row = MaybeUninit::uninit();
    let row: &mut ThreadRow = cleared(&mut row);
    row.pid = task.pid();
    row.tid = task.tid();
    row.start_ns = task.leader().start_ns();
    row.pool = found.pool;
    row.state = read!(task.0, task_state);
    row.exit_state = read!(task.0, task_exit_state);
    // SAFETY: as long, and as far into the row as two words are aligned.
    unsafe { task.copy_comm(&raw mut row.comm) };
    const SIZE: u32 = (THREAD_FRAMES * size_of::<u64>()) as u32;
    // SAFETY: the task is alive while the iterator is at it, and the buffer is as long as it is said to be.
    let length =
        unsafe { bpf_get_task_stack(task.0.cast_mut().cast(), row.addresses.as_mut_ptr().cast(), SIZE, 0) };
    row.frames = if length > 0 { length as i32 / size_of::<u64>() as i32 } else { length as i32 };
    let on_cpu: u32 = read_if_present!(task.0, task_on_cpu);
    let flags: u32 = read!(task.0, task_flags);
    if on_cpu != 0 {
        row.flags = THREAD_ON_CPU;
    } else if flags & NO_USER_SIDE == 0
        && let Some(registers) = Registers::of(task)
    {
        [row.ip, row.sp, row.bp] = user_registers(registers);
        row.syscall = if offset!(regs_syscall) == ABSENT { -1 } else { registers.get(offset!(regs_syscall)) };
        row.flags = THREAD_HAS_REGISTERS;
    }
    if offset!(task_fsbase) != ABSENT {
        row.thread_id = peek(task.0 as u64, offset!(task_fsbase));
    }
    write(ctx, row);
    0
}
