//! Reads files that an operator names: never waits for one, never takes more than one can need.
//!
//! They are read on the thread that serves, also while it serves: a FIFO without a writer would stop it for ever, and
//! an endless device would fill the memory.

use std::fs::OpenOptions;
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

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
}
