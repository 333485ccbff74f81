//! bpf(2), as far as the benches load programs of their own, written down instruction by instruction.

use std::os::fd::{FromRawFd, OwnedFd};

/// `enum bpf_cmd` of `include/uapi/linux/bpf.h`.
const BPF_PROG_LOAD: libc::c_long = 5;

/// The first fields of the attributes of `BPF_PROG_LOAD`; the kernel takes the rest as zero.
#[repr(C)]
struct Load {
    kind: u32,
    instructions: u32,
    instruction: *const u64,
    license: *const libc::c_char,
}

/// Loads a program of a kind of `enum bpf_prog_type`, each instruction a `struct bpf_insn`.
pub(crate) fn load(kind: u32, instructions: &[u64]) -> anyhow::Result<OwnedFd> {
    let load = Load {
        kind,
        instructions: u32::try_from(instructions.len())?,
        instruction: instructions.as_ptr(),
        license: c"GPL".as_ptr(),
    };
    command(BPF_PROG_LOAD, &load)
}

/// A command that reads its attributes, writes nothing, and gives a descriptor.
pub(crate) fn command<T>(command: libc::c_long, attributes: &T) -> anyhow::Result<OwnedFd> {
    // SAFETY: the attributes live until it returns with all that they point to, and nothing is written.
    owned(unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>()) })
}

/// The descriptor that a system call has just made.
pub(crate) fn owned(fd: libc::c_long) -> anyhow::Result<OwnedFd> {
    let fd = i32::try_from(fd)?;
    nix::errno::Errno::result(fd)?;
    // SAFETY: callers pass what the kernel just made for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
