//! Where all threads of workers are at one moment: addresses in the kernel, and the registers with which they go on.
//!
//! Loaded when somebody asks, and gone when nobody has for a while.

use std::io;
use std::os::fd::AsFd as _;

use collector_ebpf::task::ThreadRow;

use super::load::Attached;
use super::sys;
use super::tasks::read_rows;

/// Rows that are read at a time.
const ROWS: usize = 64;

/// Reads where threads are.
pub struct Threads {
    iterator: Attached,
}

impl std::fmt::Debug for Threads {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Threads").finish_non_exhaustive()
    }
}

impl Threads {
    pub(super) fn new(iterator: Attached) -> Self {
        Self { iterator }
    }

    /// Calls `out` with each thread of a worker.
    pub fn read(&self, out: &mut dyn FnMut(&ThreadRow)) -> io::Result<()> {
        let iterator = sys::iterator_open(self.iterator.link.as_fd())?;
        let mut buffer = vec![0; ROWS * size_of::<ThreadRow>()];
        read_rows(iterator, &mut buffer, &mut |row: &ThreadRow, _| out(row))
    }
}
