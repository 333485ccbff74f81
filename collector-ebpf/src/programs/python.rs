//! Which functions of Python a thread is in, where its process is CPython.

use aya_ebpf::helpers::generated::bpf_probe_read_user;
use collector_ebpf::offsets::ABSENT;
use collector_ebpf::python::{DIRECT, ENTRY, FRAME_BYTES, IS_ENTRY, MAX_THREADS, OF_C};
use collector_ebpf::sample::{MAX_FRAMES, Walk};

use crate::WALKS;
use crate::kernel::{Task, offset, peek};
use crate::sample::mixed;
use crate::unwind::read_user;

/// Goes through all frames of the thread that runs.
#[inline(always)]
pub(crate) fn unwind(which: u32, task: Task, walk: *mut Walk) {
    // SAFETY: callers pass a pointer into the array.
    let is_python = unsafe {
        (*walk).python_frames = 0;
        (*walk).python.interpreters != 0
    };
    if !is_python || offset!(task_fsbase) == ABSENT {
        return;
    }
    // The register itself belongs to whoever runs; this is what it was set to when the thread was made.
    let thread_id: u64 = peek(task.0 as u64, offset!(task_fsbase));
    // SAFETY: as above.
    unsafe { (*walk).python_at = first_frame(which, thread_id) };
    for _ in 0..MAX_FRAMES {
        if python_step(which) == 0 {
            break;
        }
    }
}

/// Where the innermost frame of a thread is; 0 if it has none. Global to the verifier, see [`crate::requests`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn first_frame(which: u32, thread_id: u64) -> u64 {
    let Some(walk) = WALKS.get_ptr(which) else { return 0 };
    // SAFETY: a pointer into the array.
    let python = unsafe { (*walk).python };
    let at = |from: u64, distance: u16| read_user(from.wrapping_add(u64::from(distance)));
    let mut thread = at(read_user(python.interpreters), python.threads);
    for _ in 0..MAX_THREADS {
        if thread == 0 {
            return 0;
        }
        if at(thread, python.thread_id) == thread_id {
            let frame = at(thread, python.frame);
            return if python.current == DIRECT { frame } else { at(frame, python.current) };
        }
        thread = at(thread, python.next);
    }
    0
}

/// Keeps one frame, and goes on to its caller. 0 at the end. Global to the verifier.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn python_step(which: u32) -> u32 {
    let Some(walk) = WALKS.get_ptr_mut(which) else { return 0 };
    // SAFETY: a pointer into the array, which nobody else uses while this program runs; indices below the lengths.
    unsafe {
        let at = (*walk).python_at;
        let count = (*walk).python_frames as usize;
        if at == 0 || count >= MAX_FRAMES {
            return 0;
        }
        let frame = (&raw mut (*walk).python_frame).cast();
        if bpf_probe_read_user(frame, FRAME_BYTES as u32, at as *const _) != 0 {
            return 0;
        }
        let python = (*walk).python;
        let words = (&raw const (*walk).python_frame).cast::<u64>();
        let word = |distance: u16| {
            let index = (distance as usize / 8).min(FRAME_BYTES / 8 - 1);
            words.add(index).read_volatile()
        };
        let entry = word(python.entry) >> (python.entry % 8 * 8) & 0xff;
        let mut code = word(python.code) & !ENTRY;
        if python.entry_is == OF_C && entry == u64::from(OF_C) {
            code = ENTRY;
        } else if python.entry_is == IS_ENTRY && entry != 0 {
            code |= ENTRY;
        }
        (*walk).python_code[count] = code;
        (*walk).python_frames = count as u32 + 1;
        (*walk).hash = mixed((*walk).hash, code);
        (*walk).python_at = word(python.previous);
    }
    1
}
