//! `/proc/PID/io`, proc_pid_io(5); printed by `do_io_accounting` in `fs/proc/base.c`. All threads, living and dead.

use super::{ParseError, line, unsigned};

const FILE: &str = "io";

/// Storage traffic that the process caused, bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Io {
    /// Fetched from storage.
    pub read_bytes: u64,
    /// Sent to storage, or made dirty to be sent.
    pub write_bytes: u64,
}

impl Io {
    /// Finds the two lines.
    pub fn parse(text: &[u8]) -> Result<Self, ParseError> {
        let value = |name: &'static str, prefix: &[u8]| {
            let text = line(text, prefix).ok_or(ParseError::Missing { file: FILE, field: name })?;
            unsigned(text).ok_or(ParseError::NotANumber { file: FILE, field: name })
        };
        Ok(Self {
            read_bytes: value("read_bytes", b"read_bytes:")?,
            write_bytes: value("write_bytes", b"write_bytes:")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn print(io: &Io) -> String {
        format!(
            "rchar: 1\nwchar: 2\nsyscr: 3\nsyscw: 4\nread_bytes: {}\nwrite_bytes: {}\ncancelled_write_bytes: 5\n",
            io.read_bytes, io.write_bytes
        )
    }

    #[test]
    fn malformed_beside_well_formed() {
        let io = Io { read_bytes: 4096, write_bytes: 8192 };
        assert_eq!(Io::parse(print(&io).as_bytes()), Ok(io));
        let missing = ParseError::Missing { file: FILE, field: "write_bytes" };
        assert_eq!(Io::parse(b"read_bytes: 1\ncancelled_write_bytes: 5\n"), Err(missing));
        let strange = ParseError::NotANumber { file: FILE, field: "read_bytes" };
        assert_eq!(Io::parse(b"read_bytes: x\nwrite_bytes: 5\n"), Err(strange));
    }

    proptest! {
        #[test]
        fn what_is_printed_parses_back((read_bytes, write_bytes) in any::<(u64, u64)>()) {
            let io = Io { read_bytes, write_bytes };
            prop_assert_eq!(Io::parse(print(&io).as_bytes()), Ok(io));
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
            let _ = Io::parse(&bytes);
        }
    }
}
