//! The tags on main threads: read and written by a program of ours where programs find a task by its pid, which is one
//! system call each, and under a pidfd elsewhere.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use aya::maps::MapData;
use collector_ebpf::slot::{
    ACCESS_DELETE, ACCESS_DONE, ACCESS_GET, ACCESS_GONE, ACCESS_NONE, ACCESS_SET, TICK_NS, Tag, TagAccess,
};

use super::sys::{self, TaskStorage};
use crate::procfs::root::{Buffer, ReadError, Root};
use crate::units::{NANOS_PER_TICK, ProcessKey};

const _: () = assert!(TICK_NS == NANOS_PER_TICK);

/// All tags.
pub(super) struct Tags {
    storage: TaskStorage<Tag>,
    program: Option<OwnedFd>,
}

/// A process whose tag is looked at.
pub(super) enum Tagged {
    /// Found by the program, each time, if it is still there.
    ByPid(ProcessKey),
    /// Held.
    Pidfd(OwnedFd),
}

impl Tags {
    /// With the program that reads and writes them, if the kernel takes it.
    pub(super) fn new(map: MapData, program: Option<OwnedFd>) -> io::Result<Self> {
        Ok(Self { storage: TaskStorage::new(map)?, program })
    }

    /// A process, and no other that has its pid; `None` if it is known to be gone.
    pub(super) fn of(
        &self,
        process: ProcessKey,
        procfs: &Root,
        buffer: &mut Buffer,
    ) -> io::Result<Option<Tagged>> {
        if self.program.is_some() {
            return Ok(Some(Tagged::ByPid(process)));
        }
        let pidfd = match sys::pidfd_open(process.pid) {
            Ok(pidfd) => pidfd,
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(None),
            Err(error) => return Err(error),
        };
        // While we hold the pidfd the process is either the one whose start we read now, or gone.
        match procfs.stat(process.pid, buffer) {
            Ok(stat) if stat.starttime == process.start_ticks() => Ok(Some(Tagged::Pidfd(pidfd))),
            Ok(_) | Err(ReadError::Gone) => Ok(None),
            Err(error) => Err(io::Error::other(error)),
        }
    }

    /// Reads a tag; `None` if the process has none. ESRCH if it is gone.
    pub(super) fn get(&self, of: &Tagged) -> io::Result<Option<Tag>> {
        match of {
            Tagged::Pidfd(pidfd) => self.storage.get(pidfd.as_fd()),
            Tagged::ByPid(process) => self.access(*process, ACCESS_GET, Tag::default()),
        }
    }

    /// Gives a process a tag, or all that one says another value. ESRCH if it is gone.
    pub(super) fn set(&self, of: &Tagged, tag: Tag) -> io::Result<()> {
        match of {
            Tagged::Pidfd(pidfd) => self.storage.set(pidfd.as_fd(), &tag),
            Tagged::ByPid(process) => self.access(*process, ACCESS_SET, tag).map(drop),
        }
    }

    /// Takes the tag away. ESRCH if the process is gone.
    pub(super) fn delete(&self, of: &Tagged) -> io::Result<()> {
        match of {
            Tagged::Pidfd(pidfd) => self.storage.delete(pidfd.as_fd()),
            Tagged::ByPid(process) => self.access(*process, ACCESS_DELETE, Tag::default()).map(drop),
        }
    }

    fn access(&self, process: ProcessKey, operation: u32, tag: Tag) -> io::Result<Option<Tag>> {
        let Some(program) = &self.program else { return Err(io::ErrorKind::Unsupported.into()) };
        let ProcessKey { pid, start_ns } = process;
        let mut access =
            TagAccess { pid, operation, start_ns, tag, outcome: ACCESS_GONE, ..TagAccess::default() };
        sys::program_run_with(program.as_fd(), &mut access)?;
        match access.outcome {
            ACCESS_DONE => Ok(Some(access.tag)),
            ACCESS_NONE => Ok(None),
            ACCESS_GONE => Err(io::Error::from_raw_os_error(libc::ESRCH)),
            _ => Err(io::ErrorKind::OutOfMemory.into()),
        }
    }
}
