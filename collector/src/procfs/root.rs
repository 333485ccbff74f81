//! Opens files under one proc root, relative to a kept directory, and reads them into one reused buffer.
//!
//! A `/proc/PID` directory that is held open belongs to one process for good: when its pid is given to another, what
//! is opened through it fails. So identity is checked once per directory and holds for every file in it.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat, readlinkat};
use nix::sys::stat::Mode;
use thiserror::Error;

use super::parse::ParseError;
use super::parse::stat::Stat;
use crate::units::Pid;

/// The source cannot start.
#[derive(Debug, Error)]
pub enum ProcfsError {
    /// The root cannot be opened.
    #[error("opening the proc root {path}: {error}")]
    Root {
        /// As it was given.
        path: PathBuf,
        /// What open(2) said.
        error: io::Error,
    },
}

/// One file could not be read; split by what follows from it.
#[derive(Debug, Error)]
pub enum ReadError {
    /// The process is not there any more. Normal.
    #[error("the process is gone")]
    Gone,
    /// We have no right to it, or this kernel has no such file. It stays so.
    #[error("not readable: {0}")]
    Refused(Errno),
    /// No descriptor is left for us (EMFILE) or on the host (ENFILE). Passes.
    #[error("no descriptor left: {0}")]
    NoDescriptor(Errno),
    /// Anything else; not expected, and tried again.
    #[error("reading: {0}")]
    Failed(Errno),
    /// The kernel printed what we do not understand.
    #[error(transparent)]
    Malformed(#[from] ParseError),
}

impl From<Errno> for ReadError {
    fn from(errno: Errno) -> Self {
        match errno {
            Errno::ESRCH | Errno::ENOENT => Self::Gone,
            Errno::EACCES | Errno::EPERM => Self::Refused(errno),
            Errno::EMFILE | Errno::ENFILE => Self::NoDescriptor(errno),
            other => Self::Failed(other),
        }
    }
}

impl From<io::Error> for ReadError {
    fn from(error: io::Error) -> Self {
        Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)).into()
    }
}

/// Size of [`Buffer`]: no file that we read once per pass is longer. `status` may be (a line of groups without
/// limit), but what we use of it stands before.
const BUFFER: usize = 4096;

/// Threads of a process that are asked for its address space, at most.
const MAX_THREADS: usize = 16;

/// The one buffer that every file is read into.
#[derive(Debug)]
pub struct Buffer(Box<[u8; BUFFER]>);

impl Default for Buffer {
    fn default() -> Self {
        Self(Box::new([0; BUFFER]))
    }
}

impl Buffer {
    /// The file's first 4 KiB, from its beginning: a `/proc` file is printed anew for each read there, and in one
    /// piece when it fits.
    pub fn read(&mut self, file: &File) -> Result<&[u8], ReadError> {
        loop {
            match file.read_at(&mut self.0[..], 0) {
                Ok(length) => return Ok(&self.0[..length]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// A mounted `/proc`.
#[derive(Debug)]
pub struct Root {
    directory: OwnedFd,
    path: PathBuf,
}

impl Root {
    /// Opens the directory that `--path.procfs` names.
    pub fn open(path: &Path) -> Result<Self, ProcfsError> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        match open(path, flags, Mode::empty()) {
            Ok(directory) => Ok(Self { directory, path: path.to_owned() }),
            Err(errno) => Err(ProcfsError::Root { path: path.to_owned(), error: errno.into() }),
        }
    }

    /// As it was given.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The descriptor.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    /// The directory of a process, whichever has the pid now.
    pub fn process(&self, pid: Pid) -> Result<ProcessDirectory, ReadError> {
        let mut digits = itoa::Buffer::new();
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        Ok(ProcessDirectory(openat(&self.directory, digits.format(pid), flags, Mode::empty())?))
    }

    /// Where a process shows its address space.
    pub fn address_space(&self, pid: Pid, buffer: &mut Buffer) -> Result<AddressSpace, ReadError> {
        let process = self.process(pid)?;
        let stat = process.stat(buffer)?;
        let starttime = stat.starttime;
        if stat.startcode == 0 && stat.num_threads > 1 {
            let tids = process.listing("task")?.into_iter().flatten();
            let tids =
                tids.filter_map(|entry| std::str::from_utf8(entry.file_name().to_bytes()).ok()?.parse().ok());
            for thread in tids.filter(|tid| *tid != pid).take(MAX_THREADS) {
                let Ok(directory) = self.process(thread) else { continue };
                let stat = directory.stat(buffer).ok().filter(|stat| stat.startcode != 0);
                // It is still the process's, and so was what was opened.
                let stat = stat.filter(|_| process.file(&format!("task/{thread}/stat")).is_ok());
                if let Some(stat) = stat {
                    return Ok(AddressSpace { starttime, thread, directory, stat });
                }
            }
        }
        Ok(AddressSpace { starttime, thread: pid, directory: process, stat })
    }

    /// `stat` of the process that has the pid now, in one open.
    pub fn stat(&self, pid: Pid, buffer: &mut Buffer) -> Result<Stat, ReadError> {
        let mut path = [0u8; 16];
        let mut digits = itoa::Buffer::new();
        let digits = digits.format(pid).as_bytes();
        let end = digits.len() + b"/stat".len();
        path[..digits.len()].copy_from_slice(digits);
        path[digits.len()..end].copy_from_slice(b"/stat");
        let file = openat(&self.directory, &path[..end], OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
        Ok(Stat::parse(buffer.read(&File::from(file))?)?)
    }

    /// The text of a symbolic link in the root, e.g. `self`.
    pub(super) fn link(&self, name: &str) -> Result<std::ffi::OsString, ReadError> {
        Ok(readlinkat(&self.directory, name)?)
    }
}

/// Where a process shows its address space: in its own directory, or, if its main thread has ended before others, in that of another
/// thread (`/proc/TID`, which is there, though not listed: proc(5)).
#[derive(Debug)]
pub struct AddressSpace {
    /// When the process started, clock ticks after boot.
    pub starttime: u64,
    /// Id of the thread.
    pub thread: Pid,
    /// Its directory.
    pub directory: ProcessDirectory,
    /// Its `stat`.
    pub stat: Stat,
}

/// `/proc/PID`, held open (without the right to list it).
#[derive(Debug)]
pub struct ProcessDirectory(OwnedFd);

impl ProcessDirectory {
    /// Opens a file in it to be read.
    pub fn file(&self, name: &str) -> Result<File, ReadError> {
        Ok(File::from(openat(&self.0, name, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?))
    }

    /// Its `stat`.
    pub fn stat(&self, buffer: &mut Buffer) -> Result<Stat, ReadError> {
        Ok(Stat::parse(buffer.read(&self.file("stat")?)?)?)
    }

    /// Follows a link of the process that leads to a directory (`root`, `cwd`), as the kernel does: into the
    /// process's own mount namespace.
    pub fn directory(&self, name: &str) -> Result<OwnedFd, ReadError> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        Ok(openat(&self.0, name, flags, Mode::empty())?)
    }

    /// Follows a link of the process (`map_files/…`) without opening what it leads to.
    pub fn handle(&self, name: &str) -> Result<OwnedFd, ReadError> {
        Ok(openat(&self.0, name, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?)
    }

    /// Opens a directory of it to be listed (`fd`).
    pub(super) fn listing(&self, name: &str) -> Result<Dir, ReadError> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        Ok(Dir::openat(&self.0, name, flags, Mode::empty())?)
    }

    /// The text of a link (`exe`, `cwd`).
    pub fn link(&self, name: &str) -> Result<std::ffi::OsString, ReadError> {
        Ok(readlinkat(&self.0, name)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_root_is_named() {
        let error = Root::open(Path::new("/nonexistent/proc")).expect_err("no such directory");
        assert!(error.to_string().contains("/nonexistent/proc"), "{error}");
    }

    #[test]
    fn reads_this_process_and_no_other() {
        let root = Root::open(Path::new("/proc")).expect("/proc is mounted");
        let mut buffer = Buffer::default();
        let pid = std::process::id();
        let stat = root.stat(pid, &mut buffer).expect("own stat");
        assert_eq!(stat.pid, pid);
        let directory = root.process(pid).expect("own directory");
        assert_eq!(directory.stat(&mut buffer).expect("own stat").starttime, stat.starttime);
        // Above the largest pid that Linux gives (2^22).
        assert!(matches!(root.stat(4_194_305, &mut buffer), Err(ReadError::Gone)));
    }

    #[test]
    fn a_directory_outlives_its_process_as_gone() {
        let root = Root::open(Path::new("/proc")).expect("/proc is mounted");
        let mut child = std::process::Command::new("sleep").arg("60").spawn().expect("sleep runs");
        let directory = root.process(child.id()).expect("it lives");
        let file = directory.file("stat").expect("it lives");
        child.kill().expect("it is ours");
        child.wait().expect("it ends");
        let mut buffer = Buffer::default();
        assert!(matches!(buffer.read(&file), Err(ReadError::Gone)));
        assert!(matches!(directory.file("stat"), Err(ReadError::Gone)));
    }
}
