//! The kernel's statistics of BPF programs, for a short time.

use std::os::fd::{FromRawFd, OwnedFd};

use anyhow::Context;

/// `BPF_ENABLE_STATS` of `enum bpf_cmd` in `include/uapi/linux/bpf.h`; since 5.8.
const BPF_ENABLE_STATS: libc::c_long = 32;

/// Run time and run count are counted while this lives. Unlike the sysctl `kernel.bpf_stats_enabled` it leaves
/// nothing behind, however the bench ends.
pub(crate) struct Counting(#[expect(dead_code, reason = "counting ends when it is closed")] OwnedFd);

impl Counting {
    pub(crate) fn start() -> anyhow::Result<Self> {
        /// `BPF_STATS_RUN_TIME`.
        const RUN_TIME: u32 = 0;
        let attributes: u32 = RUN_TIME;
        // SAFETY: the command reads one u32, which is what it is given; it writes nothing.
        let fd = unsafe {
            libc::syscall(libc::SYS_bpf, BPF_ENABLE_STATS, &raw const attributes, size_of_val(&attributes))
        };
        let fd = i32::try_from(fd)?;
        nix::errno::Errno::result(fd).context("counting the run time of BPF programs")?;
        // SAFETY: a descriptor that the kernel just made for us alone.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }
}
