//! Walking over tasks inside a program: functions of the kernel (kfuncs) that programs run by user space may
//! call since Linux 6.10 (walking itself is of 6.7).
//!
//! A kernel function is called by its BTF id, which differs from kernel to kernel, and rustc has no way to leave it to
//! the loader. So each has the number of a helper that no kernel has (`collector_ebpf::kfunc`), and our loader puts the
//! id in its place.

use core::mem::MaybeUninit;

use collector_ebpf::kfunc;

use crate::kernel::Task;

/// `BPF_TASK_ITER_ALL_PROCS` of `kernel/bpf/task_iter.c`.
const ALL_PROCESSES: u32 = 0;
/// `BPF_TASK_ITER_PROC_THREADS`.
const THREADS_OF_PROCESS: u32 = 2;

/// `struct bpf_iter_task`: on the stack, and the kernel's alone.
type Iterator = MaybeUninit<[u64; 3]>;

macro_rules! kernel_function {
    ($number:expr => fn($($name:ident: $type:ty),*) $(-> $result:ty)?) => {{
        // SAFETY: never called as it stands: the loader replaces the number by the id of the function, and the
        // verifier checks the arguments against the function's type.
        unsafe { core::mem::transmute::<usize, unsafe extern "C" fn($($name: $type),*) $(-> $result)?>($number as usize) }
    }};
}

pub(crate) use kernel_function;

/// Calls `each` with one task after the other, until it says no.
#[inline(always)]
fn walk(start: *const u8, which: u32, mut each: impl FnMut(Task) -> bool) {
    let new =
        kernel_function!(kfunc::ITER_TASK_NEW => fn(it: *mut Iterator, start: *const u8, which: u32) -> i32);
    let next = kernel_function!(kfunc::ITER_TASK_NEXT => fn(it: *mut Iterator) -> *const u8);
    let destroy = kernel_function!(kfunc::ITER_TASK_DESTROY => fn(it: *mut Iterator));
    let mut iterator = Iterator::uninit();
    // SAFETY: the verifier sees to it that an iterator is made, used and destroyed in this order, also if making it
    // failed.
    unsafe {
        new(&raw mut iterator, start, which);
        loop {
            let task = next(&raw mut iterator);
            if task.is_null() {
                break;
            }
            if !each(Task(task)) {
                break;
            }
        }
        destroy(&raw mut iterator);
    }
}

/// Calls `each` with the main thread of every process, in the order in which they were forked, until it says no.
#[inline(always)]
pub(crate) fn processes(each: impl FnMut(Task) -> bool) {
    let lock = kernel_function!(kfunc::RCU_READ_LOCK => fn());
    let unlock = kernel_function!(kfunc::RCU_READ_UNLOCK => fn());
    // A program of this kind may sleep, so it has to say when tasks must not go away.
    // SAFETY: the verifier refuses a program that does not unlock.
    unsafe { lock() };
    walk(core::ptr::null(), ALL_PROCESSES, each);
    // SAFETY: as above.
    unsafe { unlock() };
}

/// Calls `each` with every thread of a process, until it says no. For use inside [`processes`].
#[inline(always)]
pub(crate) fn threads(process: Task, each: impl FnMut(Task) -> bool) {
    let acquire = kernel_function!(kfunc::TASK_ACQUIRE => fn(task: *const u8) -> *const u8);
    let release = kernel_function!(kfunc::TASK_RELEASE => fn(task: *const u8));
    // A walk begins at a task that is held, not only protected for the moment.
    // SAFETY: the verifier refuses a program that does not let go.
    let held = unsafe { acquire(process.0) };
    if held.is_null() {
        return;
    }
    walk(held, THREADS_OF_PROCESS, each);
    // SAFETY: as above.
    unsafe { release(held) };
}
