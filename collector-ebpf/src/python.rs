//! Frames of CPython: where its interpreter keeps what functions a thread is in, as distances in bytes, which differ from
//! version to version. `Include/internal/pycore_frame.h` and `Include/cpython/pystate.h` of CPython.

/// How to find the frames of a thread. 32 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Python {
    /// Where the address of the first interpreter's state is (`_PyRuntime.interpreters.head`); 0: no CPython that we know.
    pub interpreters: u64,
    /// In that state, the address of the first thread's.
    pub threads: u16,
    /// In a thread's state, the address of the next one.
    pub next: u16,
    /// In a thread's state, what `pthread_self` tells it, 8 bytes.
    pub thread_id: u16,
    /// In a thread's state, the address of its frame, or of what has that.
    pub frame: u16,
    /// In the latter, the address of the frame; [`DIRECT`] if there is none in between.
    pub current: u16,
    /// In a frame, the address of its caller's. This and those below are less than [`FRAME_BYTES`].
    pub previous: u16,
    /// In a frame, the address of its code.
    pub code: u16,
    /// In a frame, the byte that tells which one the interpreter was called for.
    pub entry: u16,
    /// What it has to be: before 3.12 one of each call has [`IS_ENTRY`], since then there is one more with [`OF_C`], of no code
    /// of Python.
    pub entry_is: u32,
    /// Zero.
    pub padding: u32,
}

/// [`Python::current`]: the thread's state has the address of the frame itself.
pub const DIRECT: u16 = u16::MAX;

/// `_PyInterpreterFrame.is_entry`, 3.11.
pub const IS_ENTRY: u32 = 1;
/// `FRAME_OWNED_BY_CSTACK` of `_PyInterpreterFrame.owner`, 3.12+.
pub const OF_C: u32 = 3;

/// Bytes of a frame that are looked at.
pub const FRAME_BYTES: usize = 72;

/// Added to the address of a frame's code, which is even: the interpreter was called for it. Alone: whatever comes next was
/// called by C.
pub const ENTRY: u64 = 1;

/// Threads of an interpreter that are looked through.
pub const MAX_THREADS: usize = 128;

const _: () = assert!(size_of::<Python>() == 32);
