//! Lists the processes of a proc root: which pids there are, and whether one has changed hands since the last look.

use nix::dir::Dir;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;

use super::root::{ReadError, Root};
use crate::units::Pid;

/// The directory, held open: listing it again costs no open.
#[derive(Debug)]
pub(super) struct Scan {
    directory: Dir,
}

impl Scan {
    pub(super) fn open(root: &Root) -> Result<Self, ReadError> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        Ok(Self { directory: Dir::openat(root.fd(), ".", flags, Mode::empty())? })
    }

    /// Every pid with the inode number of its directory. The kernel makes that inode when the process is first
    /// looked at and frees it with the process (or when memory is short), and gives no number twice within 2^32: the
    /// same pid with the same number is the same process, and need not be read again (`proc_fill_cache` in
    /// `fs/proc/base.c`).
    pub(super) fn pids(&mut self, mut out: impl FnMut(Pid, u64)) -> Result<(), ReadError> {
        for entry in self.directory.iter() {
            let entry = entry?;
            if let Some(pid) = pid(entry.file_name().to_bytes()) {
                out(pid, entry.ino());
            }
        }
        Ok(())
    }
}

/// A name that is a pid: digits only.
fn pid(name: &[u8]) -> Option<Pid> {
    if name.is_empty() || name.len() > 10 {
        return None;
    }
    name.iter().try_fold(0u32, |value, byte| {
        byte.is_ascii_digit().then_some(())?;
        value.checked_mul(10)?.checked_add(u32::from(byte - b'0'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_numbers_are_pids() {
        assert_eq!(pid(b"1"), Some(1));
        assert_eq!(pid(b"4194304"), Some(4_194_304));
        for name in ["", "self", "1a", "-1", "4294967296", "99999999999"] {
            assert_eq!(pid(name.as_bytes()), None, "{name}");
        }
    }

    #[test]
    fn a_living_process_keeps_its_number() {
        let root = Root::open(std::path::Path::new("/proc")).expect("/proc is mounted");
        let mut scan = Scan::open(&root).expect("listable");
        let mut own = || {
            let mut found = None;
            scan.pids(|pid, inode| {
                if pid == std::process::id() {
                    found = Some(inode);
                }
            })
            .expect("listable");
            found
        };
        let first = own();
        assert!(first.is_some());
        assert_eq!(own(), first);
    }
}
