//! [`Cgroups`]: what control groups of version 2 say of themselves, found from a process that is in one.
//!
//! The paths that `/proc/PID/cgroup` and `/proc/self/mountinfo` show are as seen from our own cgroup
//! namespace, and a process beyond its root has one with `..` in it. The names in them were chosen by whoever
//! made the cgroup. So a path is resolved beneath the root of a mount, over no link and no other mount, and
//! where it leads elsewhere there is no answer.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::sys::stat::Mode;
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, fstatfs};

use super::parse::{cgroup, cgroup2};
use super::root::{Buffer, ProcfsError, ReadError, Root};
use crate::input::{Cgroup, CgroupReader};
use crate::snapshot::Feature;
use crate::units::Pid;

/// Mounts of cgroup2 that are tried. More than the host's and our own are hardly of use.
const MAX_MOUNTS: usize = 8;

/// The longest line of `cgroup.procs`.
const LONGEST_PID: usize = "4294967295\n".len();

/// A mounted cgroup2 file system, or a part of one.
#[derive(Debug)]
struct Mount {
    /// The cgroup that is the root of the mount, as our cgroup namespace has it.
    root: PathBuf,
    directory: OwnedFd,
}

impl Mount {
    /// `None` if something else is mounted over it, or we may not go there.
    fn open(root: &str, mount_point: &Path) -> Option<Self> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let directory = open(mount_point, flags, Mode::empty()).ok()?;
        let is_cgroup2 = fstatfs(&directory).is_ok_and(|fs| fs.filesystem_type() == CGROUP2_SUPER_MAGIC);
        is_cgroup2.then(|| Self { root: root.into(), directory })
    }

    /// The directory of the cgroup with this path in our namespace.
    fn cgroup(&self, path: &Path) -> Option<OwnedFd> {
        let below = path.strip_prefix(&self.root).ok()?;
        if !below.components().all(|component| matches!(component, Component::Normal(_))) {
            return None;
        }
        let below = if below.as_os_str().is_empty() { Path::new(".") } else { below };
        let how = OpenHow::new().flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC).resolve(
            ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_XDEV,
        );
        openat2(&self.directory, below, how).ok()
    }
}

/// Every mount of cgroup2 that we see. Not under `--path.procfs`: it is we who open them.
fn mounts() -> Vec<Mount> {
    let all = ::procfs::process::Process::myself().and_then(|process| process.mountinfo());
    let all = all.map(|all| all.0).unwrap_or_default();
    let cgroup2 = all.iter().filter(|mount| mount.fs_type == "cgroup2");
    cgroup2.filter_map(|mount| Mount::open(&mount.root, &mount.mount_point)).take(MAX_MOUNTS).collect()
}

/// Whether pools can be compared with their control groups here.
pub fn feature() -> Feature {
    let enabled = !mounts().is_empty();
    let told = |text: &str| if enabled { String::new() } else { text.to_owned() };
    Feature {
        name: "cgroup_cpu",
        enabled,
        reason: told(
            "no cgroup2 file system is mounted: the CPU of pools is not compared with their cgroups",
        ),
        remedy: told("mount -t cgroup2; in a container the host's /sys/fs/cgroup"),
    }
}

/// Finds the control groups of processes under one proc root.
#[derive(Debug)]
pub struct Cgroups {
    root: Root,
    buffer: Buffer,
    mounts: Vec<Mount>,
}

impl Cgroups {
    /// Opens the proc root, and every mount of cgroup2 that there is now.
    pub fn open(root: &Path) -> Result<Self, ProcfsError> {
        Ok(Self { root: Root::open(root)?, buffer: Buffer::default(), mounts: mounts() })
    }

    fn path(&mut self, pid: Pid) -> Result<Option<PathBuf>, ReadError> {
        // Whoever has the pid: if it is another process by now, its cgroup has other members than those of
        // the pool.
        let file = self.root.process(pid)?.file("cgroup")?;
        Ok(cgroup::unified(self.buffer.read(&file)?).map(|path| OsStr::from_bytes(path).into()))
    }
}

impl CgroupReader for Cgroups {
    fn of(&mut self, pid: Pid) -> Option<Box<dyn Cgroup>> {
        if self.mounts.is_empty() {
            return None;
        }
        let path = self.path(pid).ok()??;
        let directory = self.mounts.iter().find_map(|mount| mount.cgroup(&path))?;
        Some(Box::new(Held { cpu_stat: beneath(&directory, "cpu.stat")?, directory }))
    }
}

/// A cgroup whose directory is held: it is this one, also when another gets its name.
#[derive(Debug)]
struct Held {
    directory: OwnedFd,
    cpu_stat: File,
}

impl Cgroup for Held {
    fn usage_ns(&mut self) -> Option<u64> {
        // Where there are controllers it has some twenty lines; the one that is wanted is the first.
        let mut text = [0; 128];
        let length = std::os::unix::fs::FileExt::read_at(&self.cpu_stat, &mut text, 0).ok()?;
        cgroup2::usage_usec(&text[..length])?.checked_mul(1000)
    }

    fn members(&mut self, at_most: usize, out: &mut Vec<Pid>) -> bool {
        out.clear();
        let read = |name: &str, limit: usize| {
            let mut text = Vec::new();
            // One more, to see that it does not end there.
            let read = beneath(&self.directory, name)?.take(limit as u64 + 1).read_to_end(&mut text);
            read.is_ok_and(|length| length <= limit).then_some(text)
        };
        // Lines that later kernels may add are welcome.
        let alone = read("cgroup.stat", 4096).is_some_and(|text| cgroup2::nr_descendants(&text) == Some(0));
        alone
            && read("cgroup.procs", at_most.saturating_mul(LONGEST_PID))
                .is_some_and(|text| cgroup2::pids(&text, out) && out.len() <= at_most)
    }
}

/// Opens a file of a cgroup to be read.
fn beneath(directory: &OwnedFd, name: &str) -> Option<File> {
    let how = OpenHow::new()
        .flags(OFlag::O_RDONLY | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
    openat2(directory, name, how).ok().map(File::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// A directory that looks like a mount; what it says is up to the test.
    fn mount(root: &str, directory: &Path) -> Mount {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
        Mount { root: root.into(), directory: open(directory, flags, Mode::empty()).unwrap() }
    }

    fn cgroup(directory: &Path, procs: &str, descendants: u32) -> Held {
        let write = |name: &str, text: String| fs::write(directory.join(name), text).unwrap();
        write("cgroup.procs", procs.to_owned());
        write("cgroup.stat", format!("nr_descendants {descendants}\nnr_dying_descendants 3\n"));
        write("cpu.stat", "usage_usec 1500\nuser_usec 1000\nsystem_usec 500\n".to_owned());
        let directory = mount("/", directory).directory;
        Held { cpu_stat: beneath(&directory, "cpu.stat").unwrap(), directory }
    }

    #[test]
    fn paths_lead_nowhere_else() {
        let place = tempfile::tempdir().unwrap();
        let at = |name: &str| place.path().join(name);
        fs::create_dir_all(at("a/b")).unwrap();
        fs::create_dir(at("..c")).unwrap();
        std::os::unix::fs::symlink("/", at("out")).unwrap();
        std::os::unix::fs::symlink("a", at("in")).unwrap();
        let opens = |root: &str, path: &str| mount(root, place.path()).cgroup(Path::new(path)).is_some();
        for (root, path) in
            [("/", "/"), ("/", "/a/b"), ("/", "/..c"), ("/x", "/x/a"), ("/..", "/../a"), ("/x", "/x")]
        {
            assert!(opens(root, path), "{path} of {root}");
        }
        for (root, path) in [
            ("/", "/.."),
            ("/", "/../a"),
            ("/", "/a/../a"),
            ("/..", "/../../a"),
            ("/x", "/xa"),
            ("/x", "/a"),
            ("/", "/out"),
            ("/", "/out/etc"),
            ("/", "/in/b"),
            ("/", "/none"),
            ("/", "a"),
            ("/", "/a (deleted)"),
            ("/", ""),
        ] {
            assert!(!opens(root, path), "{path} of {root}");
        }
    }

    #[test]
    fn what_has_another_mount_in_its_way_is_no_cgroup() {
        // Whatever is mounted at /, it has /proc mounted in it.
        assert!(mount("/", Path::new("/")).cgroup(Path::new("/proc")).is_none());
        assert!(Mount::open("/", Path::new("/proc")).is_none(), "no cgroup2");
    }

    #[test]
    fn members_are_told_when_they_are_few_and_alone() {
        let place = tempfile::tempdir().unwrap();
        let told = |procs: &str, descendants, at_most| {
            let mut out = vec![7];
            cgroup(place.path(), procs, descendants).members(at_most, &mut out).then_some(out)
        };
        assert_eq!(told("1\n22\n333\n", 0, 3), Some(vec![1, 22, 333]));
        assert_eq!(told("", 0, 3), Some(vec![]));
        assert_eq!(told("1\n22\n333\n", 0, 2), None, "too many");
        assert_eq!(told(&"4294967295\n".repeat(4), 0, 3), None, "too long");
        assert_eq!(told("1\n", 1, 3), None, "somebody may be below it");
        assert_eq!(told("1\nx\n", 0, 3), None);
    }

    #[test]
    fn an_account_is_read_again_and_again() {
        let place = tempfile::tempdir().unwrap();
        let mut cgroup = cgroup(place.path(), "", 0);
        assert_eq!(cgroup.usage_ns(), Some(1_500_000));
        fs::write(place.path().join("cpu.stat"), "usage_usec 1501\n").unwrap();
        assert_eq!(cgroup.usage_ns(), Some(1_501_000));
        fs::write(place.path().join("cpu.stat"), "nr_periods 0\n").unwrap();
        assert_eq!(cgroup.usage_ns(), None);
    }
}
