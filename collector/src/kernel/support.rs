//! Facts about this host's eBPF: what is there and what our rights allow, not what to do about it.

use std::fs;
use std::path::{Path, PathBuf};

/// The oldest Linux that the programs are for; the README names it, too. What they use is there since 5.12 (see
/// `collector-ebpf/src/programs/main.rs`); of the kernels from there on, this is the first that distributions support.
pub const OLDEST_LINUX: &str = "5.14";

/// Where the kernel shows its own types below sysfs (CONFIG_DEBUG_INFO_BTF, since 5.4).
const VMLINUX_BTF: &str = "kernel/btf/vmlinux";

/// `PROC_PID_INIT_INO` of `include/linux/proc_ns.h`: the inode of the initial pid namespace.
const INITIAL_PID_NAMESPACE: &str = "pid:[4026531836]";

/// Capability numbers of `include/uapi/linux/capability.h`.
const CAP_SYS_ADMIN: u32 = 21;
const CAP_PERFMON: u32 = 38;
const CAP_BPF: u32 = 39;

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Support {
    /// `uname -r`
    pub release: String,
    /// Where the kernel shows its own types.
    pub btf_path: PathBuf,
    /// Reason why they cannot be read, if so.
    pub btf_missing: Option<String>,
    /// Effective capabilities, as in `/proc/self/status`; `None` when unreadable.
    pub capabilities: Option<u64>,
    /// We see the pids that the kernel sees.
    pub initial_pid_namespace: bool,
    /// `[none] integrity confidentiality`; `None` where there is no such file.
    pub lockdown: Option<String>,
}

impl Support {
    /// Looks; `sysfs` is where that is mounted.
    pub fn probe(sysfs: &Path) -> Self {
        let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned();
        let btf_path = sysfs.join(VMLINUX_BTF);
        let btf_missing = fs::File::open(&btf_path).err().map(|e| e.to_string());
        let capabilities = fs::read_to_string("/proc/self/status").ok().and_then(|status| {
            let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
            u64::from_str_radix(line.trim(), 16).ok()
        });
        let initial_pid_namespace =
            fs::read_link("/proc/self/ns/pid").is_ok_and(|link| link == Path::new(INITIAL_PID_NAMESPACE));
        let lockdown =
            fs::read_to_string(sysfs.join("kernel/security/lockdown")).ok().map(|s| s.trim().to_owned());
        Self { release, btf_path, btf_missing, capabilities, initial_pid_namespace, lockdown }
    }

    fn has(&self, capability: u32) -> bool {
        self.capabilities.is_some_and(|set| set >> capability & 1 == 1)
    }

    /// May load tracing programs: CAP_BPF and CAP_PERFMON, or CAP_SYS_ADMIN.
    pub fn may_load(&self) -> bool {
        self.has(CAP_SYS_ADMIN) || self.has(CAP_BPF) && self.has(CAP_PERFMON)
    }

    /// The first thing that stands in the way of eBPF, with what would remove it: `(reason, remedy)`.
    pub fn obstacle(&self) -> Option<(String, String)> {
        if !self.may_load() {
            return Some((
                "no right to load eBPF programs".into(),
                "run as root, or grant CAP_BPF and CAP_PERFMON".into(),
            ));
        }
        if let Some(error) = &self.btf_missing {
            return Some((
                format!("the kernel's types cannot be read from {}: {error}", self.btf_path.display()),
                format!(
                    "mount sysfs, or use a kernel built with CONFIG_DEBUG_INFO_BTF=y (Linux {OLDEST_LINUX} or newer)"
                ),
            ));
        }
        if !self.initial_pid_namespace {
            return Some((
                "this pid namespace is not the host's: process numbers would not match the kernel's".into(),
                "run in the host's pid namespace (Kubernetes: hostPID: true; Docker: --pid=host)".into(),
            ));
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn healthy() -> Support {
        Support {
            release: "6.12.0".into(),
            btf_path: PathBuf::new(),
            btf_missing: None,
            capabilities: Some(1 << CAP_BPF | 1 << CAP_PERFMON),
            initial_pid_namespace: true,
            lockdown: None,
        }
    }

    #[test]
    fn each_obstacle_names_its_remedy() {
        assert_eq!(healthy().obstacle(), None);
        let check = |support: Support, remedy: &str| {
            assert!(support.obstacle().is_some_and(|(_, r)| r.contains(remedy)), "{support:?}");
        };
        check(Support { capabilities: Some(1 << CAP_BPF), ..healthy() }, "CAP_PERFMON");
        check(Support { capabilities: None, ..healthy() }, "root");
        check(Support { btf_missing: Some("No such file".into()), ..healthy() }, "CONFIG_DEBUG_INFO_BTF");
        check(Support { initial_pid_namespace: false, ..healthy() }, "hostPID");
        assert_eq!(Support { capabilities: Some(1 << CAP_SYS_ADMIN), ..healthy() }.obstacle(), None);
    }
}
