//! Reads files that an operator names, and opens those that processes have: never waits for one, never takes more than
//! one can need.
//!
//! What an operator names is read on the thread that serves, also while it serves: a FIFO without a writer would stop it
//! for ever, and an endless device would fill the memory.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::os::fd::{AsFd, AsRawFd as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};

/// Larger files are refused: a configuration of a thousand rules needs a tenth, all the authorities of a browser a
/// quarter.
pub const MAX_BYTES: u64 = 1 << 20;

/// Why a file cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The system says no, or it is no text.
    #[error("{path}: {error}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// A directory, a FIFO, a device.
    #[error("{0} is no regular file")]
    Kind(PathBuf),
    /// Longer than any file of ours.
    #[error("{0} has more than {MAX_BYTES} bytes: this is not what belongs here")]
    TooLong(PathBuf),
}

/// The bytes of a file.
pub fn read(path: &Path) -> Result<Vec<u8>, Error> {
    let failed = |error| Error::Io { path: path.to_owned(), error };
    // Opening must not wait for the other end of a FIFO, nor make a terminal ours. That it is closed on exec is the
    // standard library's doing.
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(failed)?;
    // Asked of what was opened: a name can be given to something else meanwhile.
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(Error::Kind(path.to_owned()));
    }
    let mut bytes = Vec::new();
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MAX_BYTES { Err(Error::TooLong(path.to_owned())) } else { Ok(bytes) }
}

/// The text of a file.
pub fn read_text(path: &Path) -> Result<String, Error> {
    String::from_utf8(read(path)?).map_err(|error| {
        let error = io::Error::new(io::ErrorKind::InvalidData, error.utf8_error());
        Error::Io { path: path.to_owned(), error }
    })
}

/// Opens a regular file to be read by its path below a directory that is its root, as if in a chroot(2): neither `..` nor
/// a symbolic link leads out. The path and what is there are another's, so nothing but a regular file is opened: to open
/// a device can do something. Linux 5.6; before, it fails.
pub fn open_below(root: impl AsFd, path: &Path) -> io::Result<File> {
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    open_handle(openat2(root, path, how)?)
}

/// Opens what a descriptor of [`open(2)`](https://man7.org/linux/man-pages/man2/open.2.html) with `O_PATH` is of, if it
/// is a regular file.
pub fn open_handle(handle: impl AsFd) -> io::Result<File> {
    let path = PathBuf::from(format!("/proc/self/fd/{}", handle.as_fd().as_raw_fd()));
    if !std::fs::metadata(&path)?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "no regular file"));
    }
    // Of a regular file it means nothing but that a lease does not keep us waiting.
    OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_file_is_refused_at_once() {
        let directory = tempfile::tempdir().unwrap();
        let fifo = directory.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        for path in [&*fifo, directory.path(), Path::new("/dev/zero"), Path::new("/dev/null")] {
            let error = read(path).unwrap_err().to_string();
            assert_eq!(error, format!("{} is no regular file", path.display()));
        }
        let error = read(Path::new("/nonexistent")).unwrap_err().to_string();
        assert!(error.starts_with("/nonexistent: No such file"), "{error}");
    }

    #[test]
    fn files_are_read_up_to_the_limit() {
        let directory = tempfile::tempdir().unwrap();
        let (path, link) = (directory.path().join("file"), directory.path().join("link"));
        std::os::unix::fs::symlink(&path, &link).unwrap();
        let limit = usize::try_from(MAX_BYTES).unwrap();
        std::fs::write(&path, vec![b'#'; limit]).unwrap();
        assert_eq!(read_text(&link).unwrap().len(), limit);
        std::fs::write(&path, vec![b'#'; limit + 1]).unwrap();
        let error = read(&path).unwrap_err().to_string();
        assert!(error.contains("more than 1048576 bytes"), "{error}");
        std::fs::write(&path, b"a\xff").unwrap();
        let error = read_text(&path).unwrap_err().to_string();
        assert!(error.contains("utf-8"), "{error}");
    }

    #[test]
    fn nothing_leads_out_of_a_root() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        std::fs::create_dir(path.join("root")).unwrap();
        std::fs::write(path.join("secret"), "outside").unwrap();
        std::fs::write(path.join("root/secret"), "inside").unwrap();
        std::os::unix::fs::symlink("/secret", path.join("root/absolute")).unwrap();
        std::os::unix::fs::symlink("../../secret", path.join("root/relative")).unwrap();
        nix::unistd::mkfifo(&path.join("root/fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let root = File::open(path.join("root")).unwrap();
        for name in ["secret", "/secret", "../secret", "absolute", "relative"] {
            let mut text = String::new();
            open_below(&root, Path::new(name)).unwrap().read_to_string(&mut text).unwrap();
            assert_eq!(text, "inside", "{name}");
        }
        assert!(open_below(&root, Path::new("fifo")).is_err());
        assert!(open_below(&root, Path::new(".")).is_err());
    }
}
