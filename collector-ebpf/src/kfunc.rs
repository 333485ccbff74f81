//! Functions of the kernel that a program calls by BTF id, numbered for the loader.
//!
//! The numbers stand where a helper's number stands in a call, and are far beyond all helpers.

/// `bpf_iter_task_new`
pub const ITER_TASK_NEW: u32 = FIRST;
/// `bpf_iter_task_next`
pub const ITER_TASK_NEXT: u32 = FIRST + 1;
/// `bpf_iter_task_destroy`
pub const ITER_TASK_DESTROY: u32 = FIRST + 2;
/// `bpf_rcu_read_lock`
pub const RCU_READ_LOCK: u32 = FIRST + 3;
/// `bpf_rcu_read_unlock`
pub const RCU_READ_UNLOCK: u32 = FIRST + 4;
/// `bpf_task_acquire`
pub const TASK_ACQUIRE: u32 = FIRST + 5;
/// `bpf_task_release`
pub const TASK_RELEASE: u32 = FIRST + 6;
/// `bpf_rdonly_cast` (6.2+)
pub const RDONLY_CAST: u32 = FIRST + 7;
/// `bpf_task_from_pid` (6.2+)
pub const TASK_FROM_PID: u32 = FIRST + 8;

/// The first of them.
pub const FIRST: u32 = 0x4b46_0000;

/// Their names in the kernel, in the order of their numbers.
pub const NAMES: [&str; 9] = [
    "bpf_iter_task_new",
    "bpf_iter_task_next",
    "bpf_iter_task_destroy",
    "bpf_rcu_read_lock",
    "bpf_rcu_read_unlock",
    "bpf_task_acquire",
    "bpf_task_release",
    "bpf_rdonly_cast",
    "bpf_task_from_pid",
];
