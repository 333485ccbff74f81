//! What this process itself holds, by the procfs crate: read once per snapshot, so its cost does not matter.

use ::procfs::process::{LimitValue, Process};

/// Our own memory and descriptors. `None` where `/proc/self` does not tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OwnProcess {
    /// Resident memory, bytes (`statm`).
    pub rss_bytes: Option<u64>,
    /// Virtual memory, bytes (`statm`).
    pub virtual_bytes: Option<u64>,
    /// Descriptors open now (entries of `/proc/self/fd`, without the one that lists them).
    pub open_fds: Option<u64>,
    /// Soft limit of descriptors (`RLIMIT_NOFILE`); `u64::MAX` without a limit.
    pub max_fds: Option<u64>,
}

/// Reads `/proc/self`. Not under `--path.procfs`: a foreign root may show us under another pid or not at all.
pub fn own() -> OwnProcess {
    let Ok(process) = Process::myself() else { return OwnProcess::default() };
    let memory = process.statm().ok();
    let page_size = ::procfs::page_size();
    OwnProcess {
        rss_bytes: memory.as_ref().map(|m| m.resident.saturating_mul(page_size)),
        virtual_bytes: memory.as_ref().map(|m| m.size.saturating_mul(page_size)),
        open_fds: process.fd_count().ok().map(|count| (count as u64).saturating_sub(1)),
        max_fds: process.limits().ok().map(|limits| match limits.max_open_files.soft_limit {
            LimitValue::Value(limit) => limit,
            LimitValue::Unlimited => u64::MAX,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_everything_about_ourselves() {
        let own = own();
        assert!(own.rss_bytes.is_some_and(|bytes| bytes > 0));
        assert!(own.virtual_bytes >= own.rss_bytes);
        assert!(own.open_fds.is_some_and(|count| count >= 3));
        assert!(own.max_fds >= own.open_fds);
    }
}
