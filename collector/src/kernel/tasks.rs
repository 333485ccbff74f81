//! Reads the task iterators: all tracked processes, or the identity of all processes, in a few read(2) calls.

use std::collections::HashMap;
use std::io::{self, Read};
use std::os::fd::AsFd;

use collector_ebpf::task::{
    RSS_ANON, RSS_FILE, RSS_KINDS, RSS_SHMEM, RSS_SWAP, RowHeader, TASK_HAS_MEMORY, TASK_KERNEL_THREAD,
    TASK_MAIN_THREAD, TASK_UNCHANGED, TaskRow,
};

use super::load::Attached;
use super::sys;
use crate::input::{Comm, Input, Listed, Rss, Sample, TaskState};
use crate::units::{CpuTime, HostFacts, Pid, ProcessKey, monotonic_ns};

/// A read(2) of an iterator returns at most 8 pages (`bpf_seq_read` in `kernel/bpf/bpf_iter.c`).
const BUFFER: usize = 32 << 10;
/// `EXIT_DEAD | EXIT_ZOMBIE` of `include/linux/sched.h`.
const EXIT_TRACE: u32 = 0x30;

pub(super) struct TaskReader {
    tracked: Attached,
    all: Attached,
    host: HostFacts,
    buffer: Box<[u8]>,
    /// Processes of several threads.
    groups: HashMap<Pid, Group>,
}

/// What the rows of one process have told so far.
#[derive(Default)]
struct Group {
    main: Option<TaskRow>,
    sums: Sums,
    rss_pages: Option<[i64; RSS_KINDS]>,
    /// When the last of them was read.
    at_ns: u64,
}

#[derive(Clone, Copy, Default)]
struct Sums {
    runtime_ns: u64,
    user_ns: u64,
    system_ns: u64,
    minor_faults: u64,
    major_faults: u64,
    voluntary_switches: u64,
    involuntary_switches: u64,
    run_delay_ns: u64,
    read_bytes: u64,
    written_bytes: u64,
}

impl Sums {
    fn add(&mut self, row: &TaskRow) {
        self.runtime_ns += row.runtime_ns;
        self.user_ns += row.user_ns;
        self.system_ns += row.system_ns;
        self.minor_faults += row.minor_faults;
        self.major_faults += row.major_faults;
        self.voluntary_switches += row.voluntary_switches;
        self.involuntary_switches += row.involuntary_switches;
        self.run_delay_ns += row.run_delay_ns;
        self.read_bytes += row.read_bytes;
        self.written_bytes += row.written_bytes;
    }
}

/// Fields that this kernel lacks.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Missing {
    pub(super) run_delay: bool,
    pub(super) storage_io: bool,
}

impl TaskReader {
    pub(super) fn new(tracked: Attached, all: Attached, host: HostFacts) -> Self {
        Self { tracked, all, host, buffer: vec![0; BUFFER].into_boxed_slice(), groups: HashMap::new() }
    }

    /// The iterator programs.
    pub(super) fn programs(&self) -> [&Attached; 2] {
        [&self.tracked, &self.all]
    }

    /// One sample per tracked process, or the word that it has not run since the last.
    pub(super) fn pass(&mut self, missing: Missing, out: &mut dyn FnMut(Input)) -> io::Result<()> {
        self.groups.clear();
        let iterator = sys::iterator_open(self.tracked.link.as_fd())?;
        let (host, groups) = (self.host, &mut self.groups);
        read_rows(iterator, &mut self.buffer, &mut |row, at_ns| match row {
            Row::Unchanged(header) => out(Input::Unchanged { process: key(header), at_ns }),
            Row::Full(row) => {
                let main = row.header.flags & TASK_MAIN_THREAD != 0;
                if main && row.threads <= 1 {
                    let mut sums = Sums::default();
                    sums.add(row);
                    out(Input::Sample(sample(row, &sums, missing, host, at_ns)));
                    return;
                }
                let group = groups.entry(row.header.pid).or_default();
                group.sums.add(row);
                group.at_ns = at_ns;
                if row.header.flags & TASK_HAS_MEMORY != 0 {
                    group.rss_pages = Some(row.rss_pages);
                }
                if main {
                    group.main = Some(*row);
                }
            }
        })?;
        for group in self.groups.values() {
            // Without a row of the main thread the process ended while it was read.
            if let Some(mut main) = group.main {
                if let Some(rss_pages) = group.rss_pages {
                    main.header.flags |= TASK_HAS_MEMORY;
                    main.rss_pages = rss_pages;
                }
                out(Input::Sample(sample(&main, &group.sums, missing, host, group.at_ns)));
            }
        }
        Ok(())
    }

    /// Every process of the host.
    pub(super) fn list(&mut self, out: &mut dyn FnMut(Listed)) -> io::Result<()> {
        let iterator = sys::iterator_open(self.all.link.as_fd())?;
        read_rows(iterator, &mut self.buffer, &mut |row, _| {
            let Row::Full(row) = row else { return };
            out(Listed {
                process: key(&row.header),
                parent: row.parent,
                comm: Comm(row.comm),
                kernel_thread: row.header.flags & TASK_KERNEL_THREAD != 0,
                zombie: row.exit_state & EXIT_TRACE != 0,
            });
        })
    }
}

/// What an iterator tells of one task.
enum Row<'a> {
    Full(&'a TaskRow),
    Unchanged(&'a RowHeader),
}

/// Reads an iterator to its end. Each row comes with the time just before it was read, `CLOCK_MONOTONIC` ns.
fn read_rows(
    mut iterator: impl Read,
    buffer: &mut [u8],
    out: &mut dyn FnMut(Row<'_>, u64),
) -> io::Result<()> {
    let mut filled = 0;
    loop {
        let at_ns = monotonic_ns();
        let read = match iterator.read(&mut buffer[filled..]) {
            Err(error) if matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) => {
                continue;
            }
            result => result?,
        };
        filled += read;
        if read == 0 {
            return match filled {
                0 => Ok(()),
                _ => {
                    Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the task iterator ended within a row"))
                }
            };
        }
        let mut rest = &buffer[..filled];
        while let Some(header) = front::<RowHeader>(rest) {
            if header.flags & TASK_UNCHANGED != 0 {
                out(Row::Unchanged(&header), at_ns);
                rest = &rest[size_of::<RowHeader>()..];
            } else if let Some(row) = front::<TaskRow>(rest) {
                out(Row::Full(&row), at_ns);
                rest = &rest[size_of::<TaskRow>()..];
            } else {
                break;
            }
        }
        // The kernel cuts where the buffer ends: the begin of a row waits for its rest.
        let left = rest.len();
        buffer.copy_within(filled - left..filled, 0);
        filled = left;
    }
}

/// Copies a record out of the front of some bytes; `None` if there are too few.
fn front<T: Copy>(bytes: &[u8]) -> Option<T> {
    let bytes = bytes.get(..size_of::<T>())?;
    // SAFETY: as long as T. Called with `RowHeader` and `TaskRow` only: plain integers and bytes without padding, for
    // which every bit pattern is valid. The read needs no alignment.
    Some(unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}

fn key(header: &RowHeader) -> ProcessKey {
    ProcessKey { pid: header.pid, start_ns: header.start_ns }
}

fn sample(leader: &TaskRow, sums: &Sums, missing: Missing, host: HostFacts, at_ns: u64) -> Sample {
    let bytes =
        |kind: usize| u64::try_from(leader.rss_pages[kind]).unwrap_or(0).saturating_mul(host.page_size);
    let (file, anonymous, shmem) = (bytes(RSS_FILE), bytes(RSS_ANON), bytes(RSS_SHMEM));
    Sample {
        process: key(&leader.header),
        cpu: CpuTime::from_total(sums.runtime_ns, sums.user_ns, sums.system_ns),
        rss: (leader.header.flags & TASK_HAS_MEMORY != 0).then_some(Rss {
            total_bytes: file + anonymous + shmem,
            file_bytes: Some(file),
            anonymous_bytes: Some(anonymous),
            shmem_bytes: Some(shmem),
            swap_bytes: Some(bytes(RSS_SWAP)),
        }),
        threads: leader.threads,
        minor_faults: sums.minor_faults,
        major_faults: sums.major_faults,
        voluntary_switches: Some(sums.voluntary_switches),
        involuntary_switches: Some(sums.involuntary_switches),
        run_delay_ns: (!missing.run_delay).then_some(sums.run_delay_ns),
        read_bytes: (!missing.storage_io).then_some(sums.read_bytes),
        written_bytes: (!missing.storage_io).then_some(sums.written_bytes),
        state: state(leader.state, leader.exit_state),
        at_ns,
    }
}

/// `TASK_…` bits of `include/linux/sched.h`, as `fs/proc/array.c` turns them into letters.
fn state(state: u32, exit_state: u32) -> TaskState {
    const INTERRUPTIBLE: u32 = 1;
    const UNINTERRUPTIBLE: u32 = 2;
    const STOPPED_OR_TRACED: u32 = 4 | 8;
    const NOLOAD: u32 = 0x400;
    if exit_state & EXIT_TRACE != 0 {
        TaskState::Zombie
    } else if state & 0xff == 0 {
        TaskState::Running
    } else if state & INTERRUPTIBLE != 0 {
        TaskState::Sleeping
    } else if state & UNINTERRUPTIBLE != 0 {
        if state & NOLOAD != 0 { TaskState::Idle } else { TaskState::DiskSleep }
    } else if state & STOPPED_OR_TRACED != 0 {
        TaskState::Stopped
    } else {
        TaskState::Other
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Gives at most so many bytes a time, as an iterator does that is cut by a buffer.
    struct Pieces<'a>(&'a [u8], usize);

    impl Read for Pieces<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let length = self.0.len().min(self.1).min(buffer.len());
            let (now, later) = self.0.split_at(length);
            buffer[..length].copy_from_slice(now);
            self.0 = later;
            Ok(length)
        }
    }

    fn header(pid: u32, flags: u32) -> Vec<u8> {
        [pid.to_ne_bytes().as_slice(), &flags.to_ne_bytes(), &7u64.to_ne_bytes()].concat()
    }

    proptest! {
        #[test]
        fn rows_are_whole_however_they_are_cut(rows in proptest::collection::vec(any::<bool>(), 0..40), piece in 1usize..400) {
            let mut bytes = Vec::new();
            for (pid, full) in (0..).zip(&rows) {
                bytes.extend(header(pid, if *full { TASK_MAIN_THREAD } else { TASK_UNCHANGED }));
                if *full {
                    bytes.resize(bytes.len() + size_of::<TaskRow>() - size_of::<RowHeader>(), 0);
                }
            }
            let mut seen = Vec::new();
            read_rows(Pieces(&bytes, piece), &mut [0; 512], &mut |row, _| match row {
                Row::Full(row) => seen.push((row.header.pid, true)),
                Row::Unchanged(header) => seen.push((header.pid, false)),
            }).unwrap();
            prop_assert_eq!(seen, (0..).zip(rows).collect::<Vec<_>>());
            if !bytes.is_empty() {
                bytes.pop();
                let cut = read_rows(Pieces(&bytes, piece), &mut [0; 512], &mut |_, _| {});
                prop_assert!(cut.is_err());
            }
        }
    }
}
