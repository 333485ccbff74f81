//! Tags as user space reads and writes them: one run of a program for each, of kernels whose programs find a task by its
//! pid (6.10+ in programs that user space runs).

use core::mem::MaybeUninit;

use aya_ebpf::helpers::generated::bpf_task_storage_delete;
use collector_ebpf::kfunc;
use collector_ebpf::slot::{
    ACCESS_DELETE, ACCESS_DONE, ACCESS_FAILED, ACCESS_GONE, ACCESS_NONE, ACCESS_SET, TICK_NS, Tag, TagAccess,
};

use crate::TAGS;
use crate::kernel::{Task, cleared};
use crate::walk::kernel_function;

/// Reads a field of the context. Volatile, so that it is one load at its constant distance from the context, which is all
/// that the verifier allows.
macro_rules! context {
    ($access:expr, $($field:ident).+) => {
        // SAFETY: the context is as long as the verifier found us to reach; the kernel sees to that.
        unsafe { (&raw const (*$access).$($field).+).read_volatile() }
    };
}

/// Does to the tag of a process what the context says, unless another process has its pid by now.
///
/// The section is not its kind, as for [`crate::tasks`]' `tracked_processes`.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task")]
extern "C" fn access_tag(access: *mut TagAccess) -> i32 {
    let from_pid = kernel_function!(kfunc::TASK_FROM_PID => fn(pid: i32) -> *const u8);
    let release = kernel_function!(kfunc::TASK_RELEASE => fn(task: *const u8));
    let (pid, start_ns) = (context!(access, pid), context!(access, start_ns));
    let mut outcome = ACCESS_GONE;
    // SAFETY: any number is a pid to ask for.
    let task = Task(unsafe { from_pid(pid.cast_signed()) });
    if !task.0.is_null() {
        if task.start_ns() / TICK_NS == start_ns / TICK_NS {
            outcome = apply(task, access);
        }
        // SAFETY: held since `from_pid`; the verifier refuses a program that does not let go.
        unsafe { release(task.0) };
    }
    // SAFETY: as in `context!`.
    unsafe { (&raw mut (*access).outcome).write_volatile(outcome) };
    0
}

#[inline(always)]
fn apply(task: Task, access: *mut TagAccess) -> u32 {
    let operation = context!(access, operation);
    if operation == ACCESS_DELETE {
        // SAFETY: a map of task storage, and a task that is held.
        unsafe { bpf_task_storage_delete((&raw const TAGS).cast_mut().cast(), task.0.cast_mut().cast()) };
        return ACCESS_DONE;
    }
    let (pool, role) = (context!(access, tag.pool), context!(access, tag.role));
    let slot = context!(access, tag.slot);
    let (wishes, children_wishes) = (context!(access, tag.wishes), context!(access, tag.children_wishes));
    let Some(tag) = task.tag() else {
        if operation != ACCESS_SET {
            return ACCESS_NONE;
        }
        let mut tag = MaybeUninit::uninit();
        let tag: &mut Tag = cleared(&mut tag);
        (tag.pool, tag.role, tag.slot) = (pool, role, slot);
        (tag.wishes, tag.children_wishes) = (wishes, children_wishes);
        return if task.set_tag(tag) { ACCESS_DONE } else { ACCESS_FAILED };
    };
    let tag = tag.as_ptr();
    if operation == ACCESS_SET {
        // What programs keep in the tag stays. The role last: it says what the rest is for.
        // SAFETY: the tag lives as long as its task; volatile, because programs on other CPUs read it.
        unsafe {
            (&raw mut (*tag).pool).write_volatile(pool);
            (&raw mut (*tag).slot).write_volatile(slot);
            (&raw mut (*tag).wishes).write_volatile(wishes);
            (&raw mut (*tag).children_wishes).write_volatile(children_wishes);
            (&raw mut (*tag).role).write_volatile(role);
        }
    } else {
        // SAFETY: as above, and as in `context!`.
        unsafe {
            (&raw mut (*access).tag.pool).write_volatile((&raw const (*tag).pool).read_volatile());
            (&raw mut (*access).tag.slot).write_volatile((&raw const (*tag).slot).read_volatile());
            (&raw mut (*access).tag.wishes).write_volatile((&raw const (*tag).wishes).read_volatile());
            (&raw mut (*access).tag.children_wishes)
                .write_volatile((&raw const (*tag).children_wishes).read_volatile());
            (&raw mut (*access).tag.role).write_volatile((&raw const (*tag).role).read_volatile());
        }
    }
    ACCESS_DONE
}
