//! What the C library's allocator keeps back from the kernel, and what was read of the program's own files; and, in [`sampled`],
//! what it gives out.
#![allow(unsafe_code, reason = "calls of the C library about memory")]

pub mod sampled;
mod tables;

use std::ffi::c_int;
use std::ptr;

/// Blocks from this size on are mapped one by one, and given back when they are freed: bodies of answers, and tables
/// that grow.
const MAPPED_BYTES: c_int = 128 << 10;

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

/// Bytes of blocks that are in use, as the C library's allocator counts them: with what it needs for each, and what threads keep for
/// their next ones. It looks through all that is free for that.
pub fn malloc_in_use() -> u64 {
    // SAFETY: no precondition.
    let info = unsafe { libc::mallinfo2() };
    info.uordblks as u64 + info.hblkhd as u64
}

/// Gives the pages of code and constants back to the kernel: most of what a start needs is not needed again, and what is
/// comes back from the page cache, sixteen pages at a time.
pub fn let_go_of_code() {
    // SAFETY: the callback is of the type that is asked for, and takes no data.
    unsafe { libc::dl_iterate_phdr(Some(let_go_of_object), ptr::null_mut()) };
}

/// One file of the program: itself, or a library.
unsafe extern "C" fn let_go_of_object(
    info: *mut libc::dl_phdr_info,
    _size: libc::size_t,
    _data: *mut libc::c_void,
) -> c_int {
    let Ok(page) = usize::try_from(procfs::page_size()) else { return 0 };
    // SAFETY: the C library passes a valid record.
    let info = unsafe { &*info };
    // SAFETY: it has so many headers, as long as the callback runs.
    let headers = unsafe { std::slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum.into()) };
    // What was never writable is as it is in the file.
    let unwritten =
        |header: &&libc::Elf64_Phdr| header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_W == 0;
    for header in headers.iter().filter(unwritten) {
        let begin = info.dlpi_addr as usize + header.p_vaddr as usize;
        let (from, to) = (begin.next_multiple_of(page), (begin + header.p_memsz as usize) / page * page);
        if let Some(length) = to.checked_sub(from).filter(|length| *length > 0) {
            // SAFETY: whole pages of a segment, which are mapped from the file and which nobody can have written to. A
            // refusal leaves things as they are.
            unsafe { libc::madvise(ptr::with_exposed_provenance_mut(from), length, libc::MADV_DONTNEED) };
        }
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_and_constants_that_were_let_go_of_come_back() {
        let text = "a constant of this program, which is read after that";
        let before = text.to_owned();
        let_go_of_code();
        assert_eq!(text, before);
        assert_eq!(format!("{:.1}", std::hint::black_box(2.25f64).sqrt()), "1.5");
    }
}
