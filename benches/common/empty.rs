//! A program that does nothing, at the same tracepoints as those that are measured: its run time is what counting
//! costs.
//!
//! It is a plain raw tracepoint program, which needs no types of the kernel; it is run by the same function as the
//! BTF-typed ones.

use std::ffi::CString;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use anyhow::Context;

use super::cost::Cost;

/// `r0 = 0; exit` as `struct bpf_insn` (opcode, registers, offset, immediate).
const PROGRAM: [u64; 2] = [0xb7, 0x95];

/// `enum bpf_cmd` and `enum bpf_prog_type` of `include/uapi/linux/bpf.h`.
const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_RAW_TRACEPOINT_OPEN: libc::c_long = 17;
const RAW_TRACEPOINT: u32 = 17;

/// The first fields of the attributes of `BPF_PROG_LOAD`; the kernel takes the rest as zero.
#[repr(C)]
struct Load {
    kind: u32,
    instructions: u32,
    instruction: *const u64,
    license: *const libc::c_char,
}

/// The attributes of `BPF_RAW_TRACEPOINT_OPEN`.
#[repr(C)]
struct Open {
    name: *const libc::c_char,
    program: u32,
    padding: u32,
}

/// Attached while it lives.
pub(crate) struct Empty(#[expect(dead_code, reason = "detached when they are closed")] Vec<OwnedFd>);

impl Empty {
    /// A program of its own for each tracepoint, so that each is counted by itself.
    pub(crate) fn attach(tracepoints: &[&str]) -> anyhow::Result<Self> {
        let mut kept = Vec::new();
        for tracepoint in tracepoints {
            let load = Load {
                kind: RAW_TRACEPOINT,
                instructions: PROGRAM.len() as u32,
                instruction: PROGRAM.as_ptr(),
                license: c"GPL".as_ptr(),
            };
            let program = bpf(BPF_PROG_LOAD, &load).context("loading an empty program")?;
            let name = CString::new(*tracepoint)?;
            let open = Open { name: name.as_ptr(), program: program.as_raw_fd().cast_unsigned(), padding: 0 };
            let link = bpf(BPF_RAW_TRACEPOINT_OPEN, &open)
                .with_context(|| format!("attaching an empty program to {tracepoint}"))?;
            kept.extend([program, link]);
        }
        Ok(Self(kept))
    }

    pub(crate) fn cost(&self) -> anyhow::Result<Cost> {
        Cost::of("self")
    }
}

/// A command that gives a descriptor.
fn bpf<T>(command: libc::c_long, attributes: &T) -> anyhow::Result<OwnedFd> {
    // SAFETY: both commands here read their attributes, which live until it returns with all that they point to, and
    // write nothing.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>()) };
    let fd = i32::try_from(fd)?;
    nix::errno::Errno::result(fd)?;
    // SAFETY: a descriptor that the kernel just made for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
