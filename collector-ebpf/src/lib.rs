//! The contract between the kernel programs and `collector`: one definition of every record that crosses.
//!
//! The library half is `no_std`, has no dependency and is compiled for the host and for BPF alike; the programs
//! themselves live in the binary `programs` and are built by `cargo xtask build-ebpf` only. Every struct here is
//! `repr(C)` without implicit padding, because the verifier refuses to let uninitialised bytes out of a program.
#![cfg_attr(not(test), no_std)]

pub mod event;
pub mod free_list;
pub mod histogram;
pub mod kfunc;
pub mod limits;
pub mod names;
pub mod offsets;
pub mod python;
pub mod request;
pub mod sample;
pub mod schedule;
pub mod slot;
pub mod task;
pub mod unwind;
pub mod waterfall;

/// Names of the maps in the object.
pub mod maps {
    /// Ring buffer of [`crate::event`] records.
    pub const EVENTS: &str = "EVENTS";
    /// Task storage: one [`crate::slot::Tag`] on the main thread of each tracked process.
    pub const TAGS: &str = "TAGS";
    /// Mappable array of [`crate::slot::Slot`].
    pub const SLOTS: &str = "SLOTS";
    /// Mappable array of one [`crate::free_list::FreeList`] of slots that were given back; a slot keeps its chunks.
    pub const FREE_SLOTS: &str = "FREE_SLOTS";
    /// Mappable array of one [`crate::slot::Control`].
    pub const CONTROL: &str = "CONTROL";
    /// Mappable array of one [`crate::task::Pass`].
    pub const PASS: &str = "PASS";
    /// Array of [`crate::task::Told`].
    pub const TOLD: &str = "TOLD";
    /// Mappable array of [`crate::task::TaskRow`].
    pub const ROWS: &str = "ROWS";
    /// Per-CPU array of counters, indexed by [`crate::event::Counter`].
    pub const COUNTERS: &str = "COUNTERS";
    /// Mappable array of [`crate::schedule::ThreadSet`].
    pub const THREADS: &str = "THREADS";
    /// Mappable array of [`crate::schedule::Times`]: by slot, then by number of a waterfall.
    pub const TIMES: &str = "TIMES";
    /// Mappable array of [`crate::schedule::Chunk`]; chunk number 1 is the first.
    pub const CHUNKS: &str = "CHUNKS";
    /// Mappable array of one [`crate::free_list::FreeList`] of chunks that were given back, by chunk number less one.
    pub const FREE_CHUNKS: &str = "FREE_CHUNKS";
    /// Mappable array of [`crate::request::Connections`].
    pub const CONNECTIONS: &str = "CONNECTIONS";
    /// Mappable array of [`crate::request::Request`].
    pub const REQUESTS: &str = "REQUESTS";
    /// Array of [`crate::waterfall::Flight`].
    pub const FLYING: &str = "FLYING";
    /// Array of [`crate::waterfall::Answered`].
    pub const ANSWERED: &str = "ANSWERED";
    /// Mappable array of [`crate::names::Named`].
    pub const NAMED: &str = "NAMED";
    /// Mappable array of [`crate::waterfall::Slowest`].
    pub const SLOWEST_REQUESTS: &str = "SLOWEST_REQUESTS";
    /// Mappable array of one [`crate::sample::Sampling`]. It and those that follow exist only while somebody asks for a
    /// profile.
    pub const SAMPLING: &str = "SAMPLING";
    /// Mappable array of [`crate::sample::Stack`], found by hash.
    pub const STACKS: &str = "STACKS";
    /// Mappable array of addresses: the frames of stacks.
    pub const STACK_WORDS: &str = "STACK_WORDS";
    /// Hash of [`crate::sample::Space`] by thread group id.
    pub const SPACES: &str = "SPACES";
    /// Mappable array of [`crate::sample::Code`].
    pub const CODE: &str = "CODE";
    /// Mappable array of [`crate::unwind::Row`], as long as user space wants it.
    pub const MODULE_ROWS: &str = "MODULE_ROWS";
    /// Hash of [`crate::sample::Wait`] by thread id.
    pub const WAITS: &str = "WAITS";
    /// Mappable array of [`crate::sample::Tail`].
    pub const TAILS: &str = "TAILS";
    /// Hash of the shortest waits of a pool that are tails, by kind of time ([`crate::sample::LEAST`]), ns, by number of the pool.
    pub const LEAST_OF_POOLS: &str = "LEAST_OF_POOLS";
    /// Ring buffer of thread group ids whose address space is not known, u32 each.
    pub const STRANGERS: &str = "STRANGERS";
    /// Per-CPU array of [`crate::sample::Walk`].
    pub const WALKS: &str = "WALKS";
    /// Per-CPU array of [`crate::sample::Known`].
    pub const KNOWN_RULES: &str = "KNOWN_RULES";
    /// Per-CPU array of counters, indexed by [`crate::sample::Sampled`].
    pub const SAMPLED: &str = "SAMPLED";

    /// Maps that exist only while somebody asks for a profile.
    pub const OF_PROFILES: [&str; 13] = [
        SAMPLING,
        STACKS,
        STACK_WORDS,
        SPACES,
        CODE,
        MODULE_ROWS,
        WAITS,
        TAILS,
        LEAST_OF_POOLS,
        STRANGERS,
        WALKS,
        KNOWN_RULES,
        SAMPLED,
    ];
}

/// Names of the programs in the object; each is attached to the tracepoint or iterator of its documentation.
pub mod programs {
    /// `tp_btf/sched_process_fork`
    pub const FORK: &str = "process_fork";
    /// `tp_btf/sched_process_exec`
    pub const EXEC: &str = "process_exec";
    /// `tp_btf/task_rename`
    pub const RENAME: &str = "process_rename";
    /// `tp_btf/sched_process_exit`
    pub const EXIT: &str = "process_exit";
    /// `tp_btf/sched_process_free`
    pub const FREE: &str = "process_free";
    /// `tp_btf/signal_generate`
    pub const SIGNAL: &str = "signal_sent";
    /// `tp_btf/sched_switch`
    pub const SWITCH: &str = "task_switch";
    /// `tp_btf/sched_wakeup`
    pub const WAKEUP: &str = "task_wakeup";
    /// `tp_btf/sched_wakeup_new`
    pub const WAKEUP_NEW: &str = "task_wakeup_new";
    /// `tp_btf/sock_recv_length`. Needs Linux 6.3.
    pub const RECEIVED: &str = "socket_received";
    /// `tp_btf/sock_send_length`. Needs Linux 6.3.
    pub const SENT: &str = "socket_sent";
    /// `tp_btf/sys_exit`
    pub const SYSCALL_RETURNED: &str = "syscall_returned";
    /// `tp_btf/inet_sock_set_state`
    pub const CONNECTION_STATE: &str = "connection_state";
    /// `syscall`: accounts for a request whose connection says nothing more ([`crate::request::Finish`]).
    pub const FINISH_REQUEST: &str = "finish_request";
    /// `syscall`: one row per tracked process that may have run. Needs Linux 6.10.
    pub const TRACKED_PROCESSES: &str = "tracked_processes";
    /// `syscall`: reads or writes the tag of a process. Needs Linux 6.10.
    pub const ACCESS_TAG: &str = "access_tag";
    /// `iter/task`: one row per thread of a tracked process that may have run.
    pub const TRACKED_TASKS: &str = "tracked_tasks";
    /// `iter/task`: no row; begins to follow the threads of workers that are not followed yet.
    pub const FOLLOW_TASKS: &str = "follow_tasks";
    /// `iter/task`: one row per process.
    pub const ALL_PROCESSES: &str = "all_processes";
    /// `iter/task`: one row per thread of the process that [`crate::slot::Control::stacks_of`] names.
    pub const TASK_STACKS: &str = "task_stacks";
    /// `iter/task`: one row per thread of a worker: what it does, and where. Loaded when somebody asks.
    pub const WORKER_THREADS: &str = "worker_threads";
    /// `syscall`: names addresses in the kernel ([`crate::names`]). Loaded when somebody asks.
    pub const NAME_ADDRESSES: &str = "name_addresses";
    /// `perf_event`: counts the stack of the worker's thread that runs on a CPU.
    pub const ON_CPU: &str = "on_cpu";
    /// `tp_btf/sched_switch`: a worker's thread leaves its CPU at a stack, or comes back.
    pub const OFF_CPU_SWITCH: &str = "off_cpu_switch";
    /// `tp_btf/sched_wakeup`: a worker's thread could run again.
    pub const OFF_CPU_WAKEUP: &str = "off_cpu_wakeup";
}
