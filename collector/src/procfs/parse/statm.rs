//! `/proc/PID/statm`, proc_pid_statm(5); printed by `proc_pid_statm` in `fs/proc/array.c`.

use super::{ParseError, Words};

/// Memory in pages. All zeros for a process without an address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Statm {
    /// Virtual memory.
    pub size: u64,
    /// Resident: file, anonymous and shared memory.
    pub resident: u64,
    /// Resident pages of files and of shared memory (`MM_FILEPAGES + MM_SHMEMPAGES`).
    pub shared: u64,
}

impl Statm {
    /// Parses the line; what follows `shared` is not used.
    pub fn parse(text: &[u8]) -> Result<Self, ParseError> {
        let mut words = Words::new("statm", text);
        Ok(Self {
            size: words.unsigned("size")?,
            resident: words.unsigned("resident")?,
            shared: words.unsigned("shared")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn malformed_beside_well_formed() {
        assert_eq!(Statm::parse(b"10 5 2 1 0 4 0\n"), Ok(Statm { size: 10, resident: 5, shared: 2 }));
        assert_eq!(Statm::parse(b"10 5\n"), Err(ParseError::Missing { file: "statm", field: "shared" }));
        assert_eq!(
            Statm::parse(b"10 -5 2\n"),
            Err(ParseError::NotANumber { file: "statm", field: "resident" })
        );
        assert!(Statm::parse(b"").is_err());
    }

    proptest! {
        #[test]
        fn what_is_printed_parses_back((size, resident, shared) in any::<(u64, u64, u64)>()) {
            let text = format!("{size} {resident} {shared} 1 0 2 0\n");
            prop_assert_eq!(Statm::parse(text.as_bytes()), Ok(Statm { size, resident, shared }));
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..128)) {
            let _ = Statm::parse(&bytes);
        }
    }
}
