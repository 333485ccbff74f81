//! `/proc/PID/status`, proc_pid_status(5): the user, which no cheaper file tells. The owner of `/proc/PID` does not:
//! it is root for every process that gave up its rights without an exec, as workers do. And the pid by which a process
//! knows itself.

use super::{ParseError, line, unsigned};

const FILE: &str = "status";

/// Effective user id, in the user namespace of the reader.
pub fn effective_uid(text: &[u8]) -> Result<u32, ParseError> {
    // Real, effective, saved, filesystem; tabs between. The name above it has its newlines escaped, so no process can
    // forge this line.
    let uids = line(text, b"Uid:").ok_or(ParseError::Missing { file: FILE, field: "Uid" })?;
    let mut uids = uids.split(|b| b.is_ascii_whitespace()).filter(|word| !word.is_empty());
    let effective = uids.nth(1).ok_or(ParseError::Missing { file: FILE, field: "effective Uid" })?;
    unsigned(effective)
        .and_then(|uid| u32::try_from(uid).ok())
        .ok_or(ParseError::NotANumber { file: FILE, field: "effective Uid" })
}

/// The pid in the innermost pid namespace that the process is in: its own view. `None` before Linux 4.1.
pub fn innermost_pid(text: &[u8]) -> Option<u32> {
    let pids = line(text, b"NSpid:")?;
    let innermost = pids.split(|b| b.is_ascii_whitespace()).rfind(|word| !word.is_empty())?;
    u32::try_from(unsigned(innermost)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn malformed_beside_well_formed() {
        assert_eq!(effective_uid(b"Name:\tUid: 7 7\nUmask:\t0022\nUid:\t0\t33\t0\t0\nGid:\t1\n"), Ok(33));
        assert_eq!(effective_uid(b"Name:\ta\n"), Err(ParseError::Missing { file: FILE, field: "Uid" }));
        assert!(effective_uid(b"Uid:\t0\n").is_err());
        assert!(effective_uid(b"Uid:\t0\t4294967296\t0\t0\n").is_err());
        assert_eq!(innermost_pid(b"Groups:\t7\nNSpid:\t4711\t12\t1\nNSpgid:\t9\n"), Some(1));
        assert_eq!(innermost_pid(b"Name:\ta\nNSpid:\t4711\n"), Some(4711));
        assert_eq!(innermost_pid(b"NSpid:\t\n"), None);
        assert_eq!(innermost_pid(b"NSpid:\tx\n"), None);
    }

    proptest! {
        #[test]
        fn what_is_printed_parses_back(uids in any::<[u32; 4]>()) {
            let text = format!("Name:\tx\nUid:\t{}\t{}\t{}\t{}\n", uids[0], uids[1], uids[2], uids[3]);
            prop_assert_eq!(effective_uid(text.as_bytes()), Ok(uids[1]));
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
            let _ = (effective_uid(&bytes), innermost_pid(&bytes));
        }
    }
}
