//! What the C library's allocator keeps back from the kernel.
#![allow(unsafe_code, reason = "two calls of the C library that take integers")]

/// Blocks from this size on are mapped one by one, and given back when they are freed: bodies of answers, and tables
/// that grow.
const MAPPED_BYTES: libc::c_int = 128 << 10;

/// Keeps blocks of 128 KiB and more out of the heap. Without it the first large block that is freed raises the limit to
/// its own size (mallopt(3)), and the next ones leave holes that stay resident.
pub fn map_large_blocks() {
    // SAFETY: no precondition. A refusal leaves things as they are.
    unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED_BYTES) };
}

/// Gives the heap's free pages back to the kernel: after what needs much for a moment.
pub fn trim() {
    // SAFETY: no precondition.
    unsafe { libc::malloc_trim(0) };
}
