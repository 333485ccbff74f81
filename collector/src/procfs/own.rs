//! What this process itself holds. Read once per snapshot, so it is a fixed part of what watching costs: the parts of
//! `/proc/self` that tell it, and no more.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use nix::sys::resource::{Resource, getrlimit};

use super::parse::statm::Statm;

/// Our own memory and descriptors. `None` where `/proc/self` does not tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OwnProcess {
    /// Resident memory, bytes (`statm`).
    pub rss_bytes: Option<u64>,
    /// Virtual memory, bytes (`statm`).
    pub virtual_bytes: Option<u64>,
    /// Descriptors open now (entries of `/proc/self/fd`).
    pub open_fds: Option<u64>,
    /// Soft limit of descriptors (`RLIMIT_NOFILE`); `u64::MAX` without a limit.
    pub max_fds: Option<u64>,
}

/// Reads `/proc/self` through files that are kept open. Not under `--path.procfs`: a foreign root may show us under
/// another pid or not at all.
#[derive(Debug)]
pub struct OwnReader {
    statm: Option<File>,
    descriptors: Option<File>,
}

const DESCRIPTORS: &str = "/proc/self/fd";

impl Default for OwnReader {
    fn default() -> Self {
        Self { statm: File::open("/proc/self/statm").ok(), descriptors: File::open(DESCRIPTORS).ok() }
    }
}

impl OwnReader {
    /// Reads all.
    pub fn read(&self) -> OwnProcess {
        let memory = self.statm.as_ref().and_then(|file| {
            // Seven numbers of at most twenty digits.
            let mut text = [0; 160];
            let length = file.read_at(&mut text, 0).ok()?;
            Statm::parse(&text[..length]).ok()
        });
        let page_size = ::procfs::page_size();
        OwnProcess {
            rss_bytes: memory.as_ref().map(|m| m.resident.saturating_mul(page_size)),
            virtual_bytes: memory.as_ref().map(|m| m.size.saturating_mul(page_size)),
            open_fds: self.open_fds(),
            // Without a limit it is the largest number.
            max_fds: getrlimit(Resource::RLIMIT_NOFILE).ok().map(|(soft, _)| soft),
        }
    }

    fn open_fds(&self) -> Option<u64> {
        match self.descriptors.as_ref()?.metadata().ok()?.len() {
            // Before 6.2 the size of the directory says nothing; the one that lists it is open as well.
            0 => Some((fs::read_dir(DESCRIPTORS).ok()?.count() as u64).saturating_sub(1)),
            count => Some(count),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_everything_about_ourselves() {
        let own = OwnReader::default().read();
        assert!(own.rss_bytes.is_some_and(|bytes| bytes > 0));
        assert!(own.virtual_bytes >= own.rss_bytes);
        assert!(own.open_fds.is_some_and(|count| count >= 3));
        assert!(own.max_fds >= own.open_fds);
    }
}
