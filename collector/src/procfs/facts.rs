//! [`ProgramReader`]: what `/proc` says about the program of a process. Read when a decision needs it, never per pass.
//!
//! Everything here is written or chosen by the process that is looked at: bytes are taken as they are, sizes are
//! bounded, and a path is resolved inside the process's own root, so that no link in it leads out.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};

use super::parse::{cgroup, status};
use super::root::{Buffer, ProcessDirectory, ProcfsError, ReadError, Root};
use crate::input::{Doing, FactReader, Needs, ProgramFacts};
use crate::units::ProcessKey;

/// Longest command line that is kept, bytes. Titles and the first arguments tell a program; a class path does not.
const CMDLINE: usize = 4096;

/// Largest configuration file that is read, bytes.
const CONFIG: u64 = 256 << 10;

/// What the kernel adds to a path whose file was removed or replaced (`d_path`).
const DELETED: &[u8] = b" (deleted)";

/// Reads facts under one proc root.
#[derive(Debug)]
pub struct ProgramReader {
    root: Root,
    buffer: Buffer,
}

impl ProgramReader {
    /// Opens the proc root.
    pub fn open(root: &Path) -> Result<Self, ProcfsError> {
        Ok(Self { root: Root::open(root)?, buffer: Buffer::default() })
    }

    /// The directory of this process and no other. What is read through it later is of this process too.
    fn directory(&mut self, process: ProcessKey) -> Option<ProcessDirectory> {
        let directory = self.root.process(process.pid).ok()?;
        let stat = directory.stat(&mut self.buffer).ok()?;
        (stat.starttime == process.start_ticks()).then_some(directory)
    }

    fn text(&mut self, directory: &ProcessDirectory, name: &str) -> Result<&[u8], ReadError> {
        let file = directory.file(name)?;
        self.buffer.read(&file)
    }

    /// Reading takes the target's `mmap_lock` (`get_mm_cmdline`): a process that is busy mapping memory makes us
    /// wait. That is why this is not in the pass.
    fn cmdline(&mut self, directory: &ProcessDirectory) -> Option<Vec<u8>> {
        let file = directory.file("cmdline").ok()?;
        let mut text = vec![0; CMDLINE];
        // The kernel stops short only at the end, or where the memory cannot be read (`get_mm_cmdline` of `fs/proc/base.c`).
        let length = loop {
            match file.read_at(&mut text, 0) {
                Ok(length) => break length,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => return None,
            }
        };
        text.truncate(length);
        text.shrink_to_fit();
        Some(text)
    }

    /// The path without the mark of a replaced file: after an upgrade the process still runs the program of that name.
    fn exe(directory: &ProcessDirectory) -> Option<Vec<u8>> {
        let mut path = directory.link("exe").ok()?.into_vec();
        if path.ends_with(DELETED) {
            path.truncate(path.len() - DELETED.len());
        }
        Some(path)
    }
}

impl FactReader for ProgramReader {
    fn read(&mut self, process: ProcessKey, needs: Needs) -> Option<ProgramFacts> {
        let directory = self.directory(process)?;
        let mut facts = ProgramFacts::default();
        if needs.exe {
            facts.exe = Self::exe(&directory);
        }
        if needs.cmdline {
            facts.cmdline = self.cmdline(&directory);
        }
        if needs.uid {
            facts.uid =
                self.text(&directory, "status").ok().and_then(|text| status::effective_uid(text).ok());
        }
        if needs.cgroup {
            facts.cgroup = self.text(&directory, "cgroup").ok().and_then(cgroup::path).map(<[u8]>::to_vec);
        }
        Some(facts)
    }

    fn doing(&mut self, process: ProcessKey) -> Option<Doing> {
        let directory = self.directory(process)?;
        Some(super::doing::read(&directory, &mut self.buffer))
    }

    fn config_text(&mut self, process: ProcessKey, path: &Path) -> Option<String> {
        let directory = self.directory(process)?;
        let path = if path.is_absolute() {
            path.to_owned()
        } else {
            PathBuf::from(directory.link("cwd").ok()?).join(path)
        };
        let root = directory.directory("root").ok()?;
        // A place, not an open file: opening a FIFO waits for a writer, opening a device may do anything.
        let how = OpenHow::new()
            .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        let place = openat2(&root, path.as_path(), how).ok()?;
        let place = File::from(place);
        let metadata = place.metadata().ok()?;
        if !metadata.is_file() || metadata.len() > CONFIG {
            return None;
        }
        // Through our own descriptor, so that it is this file whatever the path leads to by now.
        let file = File::open(format!("/proc/self/fd/{}", place.as_raw_fd())).ok()?;
        let mut text = Vec::new();
        // Its size may be a lie (0 in pseudo filesystems) or change while we read.
        file.take(CONFIG + 1).read_to_end(&mut text).ok()?;
        if text.len() as u64 > CONFIG {
            return None;
        }
        Some(String::from_utf8_lossy(&text).into_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::stat::Mode;
    use std::process::{Child, Command};
    use std::time::{Duration, Instant};

    struct Sleeper(Child);

    impl Drop for Sleeper {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    fn reader() -> ProgramReader {
        ProgramReader::open(Path::new("/proc")).expect("/proc is mounted")
    }

    fn key(pid: u32) -> ProcessKey {
        let root = Root::open(Path::new("/proc")).expect("/proc is mounted");
        let stat = root.stat(pid, &mut Buffer::default()).expect("it lives");
        ProcessKey::from_ticks(pid, stat.starttime)
    }

    const ALL: Needs = Needs { exe: true, cmdline: true, uid: true, cgroup: true, parent: false };

    #[test]
    fn tells_the_program_of_a_child() {
        let child = Sleeper(Command::new("sleep").arg("60").spawn().expect("sleep runs"));
        let key = key(child.0.id());
        // In the middle of an exec there are no arguments for a moment.
        let deadline = Instant::now() + Duration::from_secs(20);
        let facts = loop {
            let facts = reader().read(key, ALL).expect("it lives");
            if facts.cmdline.as_deref() == Some(b"sleep\x0060\0") {
                break facts;
            }
            assert!(Instant::now() < deadline, "{facts:?}");
        };
        assert!(facts.exe.is_some_and(|exe| exe.starts_with(b"/")));
        assert_eq!(facts.uid, Some(nix::unistd::geteuid().as_raw()));
        assert!(facts.cgroup.is_some());
    }

    #[test]
    fn reads_only_what_is_asked_for() {
        let facts = reader().read(key(std::process::id()), Needs { exe: true, ..Needs::default() });
        let facts = facts.expect("we live");
        assert!(facts.exe.is_some());
        assert_eq!((facts.cmdline, facts.uid, facts.cgroup), (None, None, None));
    }

    #[test]
    fn another_process_under_the_same_pid_is_no_answer() {
        let own = key(std::process::id());
        let other = ProcessKey::from_ticks(own.pid, own.start_ticks() + 1);
        assert_eq!(reader().read(other, ALL), None);
        assert_eq!(reader().config_text(other, Path::new("/etc/passwd")), None);
    }

    #[test]
    fn reads_small_regular_files_and_nothing_else() {
        let own = key(std::process::id());
        let directory = tempfile::tempdir().expect("a place for files");
        let path = |name: &str| directory.path().join(name);
        std::fs::write(path("good"), b"workers 4;\xff\n").expect("written");
        assert_eq!(reader().config_text(own, &path("good")).as_deref(), Some("workers 4;\u{fffd}\n"));
        std::fs::write(path("large"), vec![b'a'; CONFIG as usize + 1]).expect("written");
        assert_eq!(reader().config_text(own, &path("large")), None);
        nix::unistd::mkfifo(&path("fifo"), Mode::S_IRUSR).expect("made");
        assert_eq!(reader().config_text(own, &path("fifo")), None, "it must not wait for a writer");
        assert_eq!(reader().config_text(own, directory.path()), None);
        assert_eq!(reader().config_text(own, Path::new("/dev/zero")), None);
        assert_eq!(reader().config_text(own, &path("absent")), None);
        std::os::unix::fs::symlink("/proc/self/exe", path("magic")).expect("made");
        assert_eq!(reader().config_text(own, &path("magic")), None, "links of /proc are not followed");
        std::os::unix::fs::symlink("good", path("link")).expect("made");
        assert!(reader().config_text(own, &path("link")).is_some(), "ordinary links are");
    }
}
