//! A program that does nothing, at the same tracepoints as those that are measured: its run time is what counting
//! costs.
//!
//! It is a plain raw tracepoint program, which needs no types of the kernel; it is run by the same function as the
//! BTF-typed ones.

use std::ffi::CString;
use std::os::fd::{AsRawFd, OwnedFd};

use anyhow::Context;

use super::bpf;
use super::cost::Cost;

/// `r0 = 0; exit` as `struct bpf_insn` (opcode, registers, offset, immediate).
const PROGRAM: [u64; 2] = [0xb7, 0x95];

/// `enum bpf_cmd` and `enum bpf_prog_type` of `include/uapi/linux/bpf.h`.
const BPF_RAW_TRACEPOINT_OPEN: libc::c_long = 17;
const RAW_TRACEPOINT: u32 = 17;

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
            let program = bpf::load(RAW_TRACEPOINT, &PROGRAM).context("loading an empty program")?;
            let name = CString::new(*tracepoint)?;
            let open = Open { name: name.as_ptr(), program: program.as_raw_fd().cast_unsigned(), padding: 0 };
            let link = bpf::command(BPF_RAW_TRACEPOINT_OPEN, &open)
                .with_context(|| format!("attaching an empty program to {tracepoint}"))?;
            kept.extend([program, link]);
        }
        Ok(Self(kept))
    }

    pub(crate) fn cost(&self) -> anyhow::Result<Cost> {
        Cost::of("self")
    }
}
