//! The few bpf(2) commands and system calls that aya does not wrap. The only raw system calls of the crate.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;
const BPF_MAP_DELETE_ELEM: libc::c_long = 3;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_ITER_CREATE: libc::c_long = 33;
/// `enum bpf_attach_type` of `include/uapi/linux/bpf.h`.
const BPF_TRACE_ITER: u32 = 28;

/// Leading part of `union bpf_attr` as 64-bit words; the kernel takes what follows the given size as zero.
fn bpf(command: libc::c_long, attr: &[u64]) -> io::Result<libc::c_long> {
    // SAFETY: the kernel reads `size_of_val(attr)` bytes from a live slice; pointers inside it are made by the
    // callers below from borrows that outlive the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attr.as_ptr(), size_of_val(attr)) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Two 32-bit attributes in one word, in memory order.
fn pair(first: u32, second: u32) -> u64 {
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&first.to_ne_bytes());
    bytes[4..].copy_from_slice(&second.to_ne_bytes());
    u64::from_ne_bytes(bytes)
}

fn raw(fd: BorrowedFd<'_>) -> u32 {
    // Descriptors are never negative while borrowed.
    fd.as_raw_fd().cast_unsigned()
}

fn owned(fd: libc::c_long) -> io::Result<OwnedFd> {
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel has just given us this descriptor and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sets the value that a task storage map holds for the process behind a pidfd. `T` must be the map's value type.
pub(super) fn task_storage_set<T: Copy>(
    map: BorrowedFd<'_>,
    pidfd: BorrowedFd<'_>,
    value: &T,
) -> io::Result<()> {
    let key = pidfd.as_raw_fd();
    let attr = [pair(raw(map), 0), std::ptr::from_ref(&key) as u64, std::ptr::from_ref(value) as u64, 0];
    bpf(BPF_MAP_UPDATE_ELEM, &attr).map(drop)
}

/// Removes it.
pub(super) fn task_storage_delete(map: BorrowedFd<'_>, pidfd: BorrowedFd<'_>) -> io::Result<()> {
    let key = pidfd.as_raw_fd();
    bpf(BPF_MAP_DELETE_ELEM, &[pair(raw(map), 0), std::ptr::from_ref(&key) as u64]).map(drop)
}

/// Links an iterator program, so that iterators can be opened.
pub(super) fn iterator_link(program: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    owned(bpf(BPF_LINK_CREATE, &[pair(raw(program), 0), pair(BPF_TRACE_ITER, 0), 0, 0])?)
}

/// Opens one iteration; reading to the end runs the program for every object once.
pub(super) fn iterator_open(link: BorrowedFd<'_>) -> io::Result<File> {
    Ok(File::from(owned(bpf(BPF_ITER_CREATE, &[pair(raw(link), 0)])?)?))
}

/// pidfd_open(2) of a process (not a thread). 5.3+.
pub(super) fn pidfd_open(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: plain integers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if fd < 0 { Err(io::Error::last_os_error()) } else { owned(fd) }
}
