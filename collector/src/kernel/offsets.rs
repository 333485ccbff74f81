//! The table of kernel fields that the programs read, and how layouts that changed are told apart.
//!
//! A field that every supported kernel must have and that is missing refuses the load by name. The other ones are
//! marked [`ABSENT`], and the feature that needs them is off.

use collector_ebpf::offsets::{ABSENT, Offsets};
use thiserror::Error;

use super::btf::{Btf, Field, Kind};

/// Why offsets could not be resolved.
#[derive(Debug, Error)]
pub enum OffsetsError {
    /// A struct is missing.
    #[error("this kernel's BTF has no struct {0}")]
    Struct(&'static str),
    /// A field is missing or has an unexpected size.
    #[error("this kernel's BTF has no usable field {0}")]
    Field(String),
}

/// Where the saved registers have the number of the system call, and its size.
#[cfg(target_arch = "x86_64")]
const REGS_SYSCALL: (&str, u32) = ("orig_ax", 8);
#[cfg(target_arch = "aarch64")]
const REGS_SYSCALL: (&str, u32) = ("syscallno", 4);

/// Where they have its first argument.
#[cfg(target_arch = "x86_64")]
const REGS_ARGUMENT: &str = "di";
#[cfg(target_arch = "aarch64")]
const REGS_ARGUMENT: &str = "orig_x0";

/// Where they have its second to fourth one.
#[cfg(target_arch = "x86_64")]
fn regs_later(btf: &Btf<'_>, regs: u32) -> Option<[u32; 3]> {
    let at = |name: &str| Some(btf.field(regs, name).filter(|field| field.size == 8)?.offset);
    Some([at("si")?, at("dx")?, at("r10")?])
}

/// Where they have its second to fourth one.
#[cfg(target_arch = "aarch64")]
fn regs_later(btf: &Btf<'_>, regs: u32) -> Option<[u32; 3]> {
    let registers = btf.field(regs, "regs").filter(|field| field.size == 8)?;
    let at = |index: u32| registers.offset.checked_add(registers.size * index);
    Some([at(1)?, at(2)?, at(3)?])
}

/// Resolves every offset from the running kernel's BTF. `cast` is the BTF id of `bpf_rdonly_cast`.
pub fn resolve(btf: &Btf<'_>, cast: Option<u32>) -> Result<Offsets, OffsetsError> {
    const NAMES: [&str; 16] = [
        "task_struct",
        "signal_struct",
        "mm_struct",
        "kernel_siginfo",
        "files_struct",
        "fdtable",
        "file",
        "inode",
        "pt_regs",
        "sock",
        "unix_sock",
        "socket",
        "socket_alloc",
        "tcp_sock",
        "unix_address",
        "inet_connection_sock",
    ];
    let found = btf.find(NAMES.map(|name| (Kind::Struct, name)));
    let id = |index: usize| found[index].ok_or(OffsetsError::Struct(NAMES[index]));
    let (task, signal, mm, siginfo) = (id(0)?, id(1)?, id(2)?, id(3)?);
    let optional = |id: u32, path: &str, size: u32| {
        btf.field(id, path).filter(|f| f.size == size && f.elements.is_none()).map_or(ABSENT, |f| f.offset)
    };
    let required = |name: &str, id: u32, path: &str, size: u32| match optional(id, path, size) {
        ABSENT => Err(OffsetsError::Field(format!("{name}.{path} of {size} bytes"))),
        offset => Ok(offset),
    };
    let of_task = |path, size| required("task_struct", task, path, size);
    let of_signal = |path, size| required("signal_struct", signal, path, size);
    let of = |index: usize, path: &str, size| found[index].map_or(ABSENT, |id| optional(id, path, size));
    // Before 5.14 the field was `long state`; its first four bytes are all that was ever used (little endian).
    let state = match optional(task, "__state", 4) {
        ABSENT => of_task("state", 8)?,
        offset => offset,
    };
    let comm = btf.field(task, "comm").filter(|f| f.size == 1 && f.elements == Some(16));
    let (mm_rss_first, mm_rss_stride) = rss(btf, mm).unwrap_or((ABSENT, ABSENT));
    let [regs_second, regs_third, regs_fourth] =
        found[8].and_then(|regs| regs_later(btf, regs)).unwrap_or([ABSENT; 3]);
    Ok(Offsets {
        task_pid: of_task("pid", 4)?,
        task_tgid: of_task("tgid", 4)?,
        task_group_leader: of_task("group_leader", 8)?,
        task_real_parent: of_task("real_parent", 8)?,
        task_signal: of_task("signal", 8)?,
        task_mm: of_task("mm", 8)?,
        task_comm: comm.ok_or_else(|| OffsetsError::Field("task_struct.comm of 16 bytes".into()))?.offset,
        task_start_boottime: of_task("start_boottime", 8)?,
        task_exit_code: of_task("exit_code", 4)?,
        task_flags: of_task("flags", 4)?,
        task_exit_state: of_task("exit_state", 4)?,
        task_state: state,
        task_sum_exec_runtime: of_task("se.sum_exec_runtime", 8)?,
        task_utime: of_task("utime", 8)?,
        task_stime: of_task("stime", 8)?,
        task_min_flt: of_task("min_flt", 8)?,
        task_maj_flt: of_task("maj_flt", 8)?,
        task_nvcsw: of_task("nvcsw", 8)?,
        task_nivcsw: of_task("nivcsw", 8)?,
        task_run_delay: optional(task, "sched_info.run_delay", 8),
        task_last_arrival: optional(task, "sched_info.last_arrival", 8),
        task_on_cpu: optional(task, "on_cpu", 4),
        task_read_bytes: optional(task, "ioac.read_bytes", 8),
        task_write_bytes: optional(task, "ioac.write_bytes", 8),
        signal_live: of_signal("live.counter", 4)?,
        signal_nr_threads: of_signal("nr_threads", 4)?,
        signal_sum_sched_runtime: of_signal("sum_sched_runtime", 8)?,
        signal_utime: of_signal("utime", 8)?,
        signal_stime: of_signal("stime", 8)?,
        signal_min_flt: of_signal("min_flt", 8)?,
        signal_maj_flt: of_signal("maj_flt", 8)?,
        signal_nvcsw: of_signal("nvcsw", 8)?,
        signal_nivcsw: of_signal("nivcsw", 8)?,
        signal_read_bytes: optional(signal, "ioac.read_bytes", 8),
        signal_write_bytes: optional(signal, "ioac.write_bytes", 8),
        signal_maxrss: of_signal("maxrss", 8)?,
        signal_oom_mm: optional(signal, "oom_mm", 8),
        signal_flags: of_signal("flags", 4)?,
        signal_group_exit_code: of_signal("group_exit_code", 4)?,
        mm_rss_first,
        mm_rss_stride,
        siginfo_code: required("kernel_siginfo", siginfo, "si_code", 4)?,
        task_jobctl: optional(task, "jobctl", 8),
        // Where a thread says itself where they are, they may be elsewhere each time.
        task_stack: match cast.and(btf.field(task, "thread_info.user_pt_regs")) {
            None if cast.is_some() => optional(task, "stack", 8),
            _ => ABSENT,
        },
        task_files: of_task("files", 8)?,
        files_fdt: of(4, "fdt", 8),
        fdtable_max_fds: of(5, "max_fds", 4),
        fdtable_fd: of(5, "fd", 8),
        file_inode: of(6, "f_inode", 8),
        file_private_data: of(6, "private_data", 8),
        inode_mode: of(7, "i_mode", 2),
        regs_syscall: of(8, REGS_SYSCALL.0, REGS_SYSCALL.1),
        regs_argument: of(8, REGS_ARGUMENT, 8),
        regs_second,
        regs_third,
        regs_fourth,
        sock_family: of(9, "__sk_common.skc_family", 2),
        sock_type: of(9, "sk_type", 2),
        sock_shutdown: of(9, "sk_shutdown", 1),
        sock_error: of(9, "sk_err", 4),
        sock_queued: of(9, "sk_receive_queue.qlen", 4),
        sock_sndbuf: of(9, "sk_sndbuf", 4),
        sock_wmem_alloc: of(9, "sk_wmem_alloc.refs.counter", 4),
        socket_flags: of(11, "flags", 8),
        sock_hash: of(9, "__sk_common.skc_hash", 4),
        sock_port: of(9, "__sk_common.skc_dport", 2),
        sock_protocol: of(9, "sk_protocol", 2),
        tcp_nonagle: of(13, "nonagle", 1),
        tcp_bytes_sent: of(13, "bytes_sent", 8),
        tcp_sent_tick: of(13, "lsndtime", 4),
        tcp_received_tick: of(15, "icsk_ack.lrcvtime", 4),
        sock_max_ack_backlog: of(9, "sk_max_ack_backlog", 4),
        sock_socket: of(9, "sk_socket", 8),
        socket_sock: of(11, "sk", 8),
        socket_inode: found[12]
            .and_then(|id| btf.field(id, "vfs_inode"))
            .map_or(ABSENT, |field| field.offset),
        inode_number: of(7, "i_ino", 8),
        unix_address: of(10, "addr", 8),
        unix_peer: of(10, "peer", 8),
        address_users: of(14, "refcnt.refs.counter", 4),
        mm_start_code: optional(mm, "start_code", 8),
        mm_start_brk: optional(mm, "start_brk", 8),
        regs_ip: of(8, "ip", 8),
        regs_sp: of(8, "sp", 8),
        regs_bp: of(8, "bp", 8),
        task_fsbase: optional(task, "thread.fsbase", 8),
        // `pt_regs` begins with a general register everywhere.
        word_type: cast.and(found[8]).unwrap_or(ABSENT),
        task_type: cast.map_or(ABSENT, |_| task),
        signal_type: cast.map_or(ABSENT, |_| signal),
        mm_type: cast.map_or(ABSENT, |_| mm),
    })
}

/// Offset of the first counter of resident pages and the distance to the next. Since 6.2 `rss_stat` is an array of
/// `struct percpu_counter`; before, a struct with an array of `atomic_long_t count`.
fn rss(btf: &Btf<'_>, mm: u32) -> Option<(u32, u32)> {
    const KINDS: u32 = collector_ebpf::task::RSS_KINDS as u32;
    let stat = btf.field(mm, "rss_stat")?;
    if let Some(elements) = stat.elements {
        let count = btf.element_field(stat, "count").filter(|f: &Field| f.size == 8)?;
        return (elements >= KINDS).then_some((stat.offset.checked_add(count.offset)?, stat.size));
    }
    let count = btf.field(mm, "rss_stat.count")?;
    (count.elements? >= KINDS && count.size == 8).then_some((count.offset, count.size))
}

/// Names of the fields that this kernel lacks.
pub fn absent(offsets: &Offsets) -> Vec<&'static str> {
    offsets.named().into_iter().filter(|(_, offset)| *offset == ABSENT).map(|(name, _)| name).collect()
}
