//! Byte offsets of the kernel fields that the programs read, resolved from the running kernel's BTF.
//!
//! The table of names is in `collector`'s `kernel::offsets`; here is only the shape that crosses. In the programs' code a
//! [`PLACEHOLDER`] stands for each use of an offset, so that what is loaded has it as a constant.

/// The kernel has no such field. Programs test for it before use; the verifier removes the dead branch. Of 31 bits, which is
/// what a comparison has room for: what a larger number takes to be loaded would stay.
pub const ABSENT: u32 = i32::MAX as u32;

/// High half of a constant of 64 bits in the programs' code that stands for an offset: which one, in the order of their
/// declaration, is the low half. The loader replaces all of it.
pub const PLACEHOLDER: u32 = 0x4f46_4653;

macro_rules! offsets {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {
        /// Offsets in bytes, or [`ABSENT`].
        #[repr(C)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct Offsets { $($(#[$doc])* pub $name: u32),+ }

        impl Offsets {
            /// Field names and values in declaration order.
            pub fn named(&self) -> [(&'static str, u32); Self::COUNT] {
                [$((stringify!($name), self.$name)),+]
            }

            /// Number of fields.
            pub const COUNT: usize = [$(stringify!($name)),+].len();
        }
    };
}

offsets! {
    /// `task_struct.pid`: thread id, int
    task_pid,
    /// `task_struct.stack`, in a kernel with `bpf_rdonly_cast` (6.2+) that has the saved registers at the same place of all
    /// stacks
    task_stack,
    /// `sock.sk_socket`
    sock_socket,
    /// `socket_alloc.vfs_inode`, and so from a `struct socket`, which is its first field
    socket_inode,
    /// `sock.sk_receive_queue.qlen`: u32, buffers that were not read to their end yet
    sock_queued,
    /// `sock.sk_shutdown`: u8
    sock_shutdown,
    /// `pt_regs.orig_ax` (x86-64) or `.syscallno` in its first four bytes (arm64)
    regs_syscall,
    /// `pt_regs.si` (x86-64) or `.regs[1]` (arm64): the second argument of a system call
    regs_second,
    /// Not an offset: BTF id of a struct that begins with a word, in a kernel with `bpf_rdonly_cast` (6.2+)
    word_type,
    /// `inode.i_ino`: unsigned long
    inode_number,
    /// `sock.__sk_common.skc_family`: unsigned short
    sock_family,
    /// `task_struct.tgid`: thread group id, int
    task_tgid,
    /// `task_struct.group_leader`
    task_group_leader,
    /// `task_struct.real_parent`
    task_real_parent,
    /// `task_struct.signal`
    task_signal,
    /// `task_struct.mm`
    task_mm,
    /// `task_struct.comm`: 16 bytes
    task_comm,
    /// `task_struct.start_boottime`: u64 ns
    task_start_boottime,
    /// `task_struct.exit_code`: int
    task_exit_code,
    /// `task_struct.flags`: unsigned int, `PF_…`
    task_flags,
    /// `task_struct.exit_state`: int
    task_exit_state,
    /// `task_struct.__state` (5.14+, unsigned int) or `state` (long; its low half is enough)
    task_state,
    /// `task_struct.se.sum_exec_runtime`: u64 ns
    task_sum_exec_runtime,
    /// `task_struct.utime`: u64 ns
    task_utime,
    /// `task_struct.stime`: u64 ns
    task_stime,
    /// `task_struct.min_flt`: unsigned long
    task_min_flt,
    /// `task_struct.maj_flt`: unsigned long
    task_maj_flt,
    /// `task_struct.nvcsw`: unsigned long
    task_nvcsw,
    /// `task_struct.nivcsw`: unsigned long
    task_nivcsw,
    /// `task_struct.sched_info.run_delay`: unsigned long long ns
    task_run_delay,
    /// `task_struct.sched_info.last_arrival`: unsigned long long ns
    task_last_arrival,
    /// `task_struct.on_cpu`: int
    task_on_cpu,
    /// `task_struct.ioac.read_bytes`: u64
    task_read_bytes,
    /// `task_struct.ioac.write_bytes`: u64
    task_write_bytes,
    /// `signal_struct.live.counter`: int
    signal_live,
    /// `signal_struct.nr_threads`: int
    signal_nr_threads,
    /// `signal_struct.sum_sched_runtime`: unsigned long long ns, dead threads
    signal_sum_sched_runtime,
    /// `signal_struct.utime`: u64 ns, dead threads
    signal_utime,
    /// `signal_struct.stime`: u64 ns, dead threads
    signal_stime,
    /// `signal_struct.min_flt`: unsigned long, dead threads
    signal_min_flt,
    /// `signal_struct.maj_flt`: unsigned long, dead threads
    signal_maj_flt,
    /// `signal_struct.nvcsw`: unsigned long, dead threads
    signal_nvcsw,
    /// `signal_struct.nivcsw`: unsigned long, dead threads
    signal_nivcsw,
    /// `signal_struct.ioac.read_bytes`: u64, dead threads
    signal_read_bytes,
    /// `signal_struct.ioac.write_bytes`: u64, dead threads
    signal_write_bytes,
    /// `signal_struct.maxrss`: unsigned long pages
    signal_maxrss,
    /// `signal_struct.oom_mm`: set for a victim of the OOM killer
    signal_oom_mm,
    /// `signal_struct.flags`: unsigned int, `SIGNAL_…`
    signal_flags,
    /// `signal_struct.group_exit_code`: int
    signal_group_exit_code,
    /// `mm_struct.rss_stat`: counter of the first kind of page, s64 (the `count` of a `percpu_counter` since 6.2,
    /// an `atomic_long_t` before)
    mm_rss_first,
    /// Not an offset: distance in bytes between the counters of two kinds of pages
    mm_rss_stride,
    /// `kernel_siginfo.si_code`: int
    siginfo_code,
    /// `task_struct.jobctl`: unsigned long
    task_jobctl,
    /// `task_struct.files`
    task_files,
    /// `files_struct.fdt`
    files_fdt,
    /// `fdtable.max_fds`: unsigned int
    fdtable_max_fds,
    /// `fdtable.fd`: array of `struct file *`
    fdtable_fd,
    /// `file.f_inode`
    file_inode,
    /// `file.private_data`: of a socket its `struct socket`
    file_private_data,
    /// `inode.i_mode`: unsigned short
    inode_mode,
    /// `pt_regs.di` (x86-64) or `.orig_x0` (arm64): the first argument of a system call
    regs_argument,
    /// `pt_regs.dx` (x86-64) or `.regs[2]` (arm64): the third argument of a system call
    regs_third,
    /// `pt_regs.r10` (x86-64) or `.regs[3]` (arm64): the fourth argument of a system call
    regs_fourth,
    /// `sock.sk_type`: u16
    sock_type,
    /// `sock.sk_err`: int
    sock_error,
    /// `sock.sk_sndbuf`: int
    sock_sndbuf,
    /// `sock.sk_wmem_alloc`: int, bytes that were sent on a UNIX connection and not received yet, and one more
    sock_wmem_alloc,
    /// `socket.flags`: unsigned long
    socket_flags,
    /// `sock.__sk_common.skc_hash`: unsigned int, of both ends of a TCP connection
    sock_hash,
    /// `sock.__sk_common.skc_dport`: u16, the port of the other end
    sock_port,
    /// `sock.sk_protocol`: u16
    sock_protocol,
    /// `tcp_sock.nonagle`: the low four bits of a byte
    tcp_nonagle,
    /// `tcp_sock.bytes_sent`: u64
    tcp_bytes_sent,
    /// `tcp_sock.lsndtime`: u32, tick in which something was last sent, or else the connection was established
    tcp_sent_tick,
    /// `inet_connection_sock.icsk_ack.lrcvtime`: u32, tick in which something last came, or the same
    tcp_received_tick,
    /// `sock.sk_max_ack_backlog`: u32
    sock_max_ack_backlog,
    /// `socket.sk`
    socket_sock,
    /// `unix_sock.addr`
    unix_address,
    /// `unix_sock.peer`
    unix_peer,
    /// `unix_address.refcnt`: int, sockets that have the address
    address_users,
    /// `mm_struct.start_code`: unsigned long, where the code of the program begins
    mm_start_code,
    /// `mm_struct.start_brk`: unsigned long, where its heap begins
    mm_start_brk,
    /// `pt_regs.ip` (or what the architecture calls it): unsigned long
    regs_ip,
    /// `pt_regs.sp`
    regs_sp,
    /// `pt_regs.bp`
    regs_bp,
    /// `task_struct.thread.fsbase`: unsigned long, what a thread's `fs` was set to (x86_64)
    task_fsbase,
    /// Not an offset: BTF id of `task_struct`, in a kernel with `bpf_rdonly_cast`
    task_type,
    /// Not an offset: BTF id of `signal_struct`, in a kernel with `bpf_rdonly_cast`
    signal_type,
    /// Not an offset: BTF id of `mm_struct`, in a kernel with `bpf_rdonly_cast`
    mm_type,
}
