//! Passes over all tracked processes, and listings of all processes: one run of a program, or a few read(2) calls of an
//! iterator.

use std::collections::HashMap;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};

use aya::maps::MapData;
use collector_ebpf::limits::{PASS_ROWS, TOLD_PLACES};
use collector_ebpf::programs;
use collector_ebpf::task::{
    Pass, RSS_ANON, RSS_FILE, RSS_KINDS, RSS_SHMEM, RSS_SWAP, RowHeader, StackRow, TASK_HAS_MEMORY,
    TASK_HAS_PLACE, TASK_KERNEL_THREAD, TASK_MAIN_THREAD, TASK_WHOLE_PROCESS, TaskRow, ThreadRow, Told,
    place_of,
};

use super::events;
use super::load::{Attached, Tracked};
use super::shared::Shared;
use super::sys;
use crate::input::{Comm, Input, Listed, Rss, Sample, TaskState};
use crate::units::{CpuTime, HostFacts, Pid, ProcessKey, monotonic_ns};

/// A read(2) of an iterator returns at most 8 pages (`bpf_seq_read` in `kernel/bpf/bpf_iter.c`).
const BUFFER: usize = 32 << 10;
/// Runs of one pass at most: several times the processes for which there are slots.
const RUNS: usize = 64;
/// `EXIT_DEAD | EXIT_ZOMBIE` of `include/linux/sched.h`.
const EXIT_TRACE: u32 = 0x30;

/// What the programs leave of a pass.
pub(super) struct PassMemory {
    pass: Shared<Pass>,
    rows: Shared<TaskRow>,
    /// What was told, as the programs remember it. Not mapped: a mapped array counts as resident memory in full.
    told: MapData,
    owners: Owners,
    /// The next pass is to tell all.
    tell_all: bool,
}

/// Of whom the bit of a place speaks.
#[derive(Clone, Copy, Default)]
struct Owner {
    start_ns: u64,
    pid: Pid,
    /// Slot number of its tag.
    slot: u32,
}

/// Neighbouring places whose owners are kept in one block: pids are given in order, so that those of workers that came
/// together are neighbours.
const BLOCK: usize = 256;

/// Whose the places are: in blocks, each made when the first of its places is somebody's, because most are nobody's.
struct Owners {
    blocks: [Option<Box<[Owner; BLOCK]>>; TOLD_PLACES / BLOCK],
}

impl Owners {
    fn nobodys() -> Self {
        Self { blocks: [const { None }; TOLD_PLACES / BLOCK] }
    }

    /// Notes whose place it is that a row was told from.
    fn note(&mut self, row: &TaskRow) {
        let place = place_of(row.header.pid);
        if row.header.flags & TASK_HAS_PLACE != 0
            && let Some(block) = self.blocks.get_mut(place / BLOCK)
        {
            let block = block.get_or_insert_with(|| Box::new([Owner::default(); BLOCK]));
            block[place % BLOCK] =
                Owner { start_ns: row.header.start_ns, pid: row.header.pid, slot: row.slot };
        }
    }

    /// `None` for nobody's place.
    fn of(&self, place: usize) -> Option<Owner> {
        let block = self.blocks.get(place / BLOCK)?.as_ref()?;
        Some(block[place % BLOCK]).filter(|owner| owner.pid != 0)
    }
}

impl PassMemory {
    pub(super) fn new(pass: MapData, told: MapData, rows: MapData) -> io::Result<Self> {
        Ok(Self {
            pass: Shared::map(pass, 1)?,
            rows: Shared::map(rows, PASS_ROWS)?,
            told,
            owners: Owners::nobodys(),
            tell_all: false,
        })
    }

    /// The programs write here only while we have them run.
    fn pass(&self) -> Option<Pass> {
        self.pass.get(0)
    }

    /// Another pass: nothing was told in it. Its number is not that of a tag that was never told.
    fn begin(&mut self) {
        let number = self.pass().map_or(1, |pass| pass.number.wrapping_add(1).max(1));
        let nothing = [0; TOLD_PLACES / 64];
        let tell_all = u32::from(std::mem::take(&mut self.tell_all));
        self.pass.set(0, Pass { number, rows: 0, full: 0, tell_all, unchanged: nothing });
    }

    /// The rows of the last run, and whether a process found no room for its own. In another run of the same pass there
    /// is room again.
    fn take_rows(&mut self, out: &mut dyn FnMut(&TaskRow)) -> bool {
        let Some(pass) = self.pass() else { return false };
        for index in 0..pass.rows as usize {
            let Some(row) = self.rows.get(index) else { break };
            self.owners.note(&row);
            out(&row);
        }
        self.pass.set(0, Pass { rows: 0, full: 0, ..pass });
        pass.full != 0
    }

    /// The processes whose figures still hold.
    fn unchanged(&self) -> impl Iterator<Item = Owner> + '_ {
        let words = self.pass().into_iter().flat_map(|pass| pass.unchanged);
        let places = words.zip((0..).step_by(64)).flat_map(|(mut word, first)| {
            std::iter::from_fn(move || {
                let bit = word.trailing_zeros() as usize;
                // Takes the lowest bit away; without one there is nothing left.
                word &= word.checked_sub(1)?;
                Some(first + bit)
            })
        });
        places.filter_map(|index| self.owners.of(index))
    }

    /// What was told of a process, and of any other in its place, is to be told again.
    fn forget(&mut self, pid: Pid) {
        let place = place_of(pid);
        if self.owners.of(place).is_none() {
            return;
        }
        if let Err(error) = sys::array_set(self.told.fd().as_fd(), place as u32, &Told::default()) {
            tracing::warn!(%error, "forgetting the figures of a process failed; all are read again");
            self.tell_all = true;
        }
    }
}

pub(super) struct TaskReader {
    tracked: Tracked,
    all: Attached,
    memory: PassMemory,
    host: HostFacts,
    buffer: Box<[u8]>,
    /// Processes of several threads, where there is a row for each.
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
    pub(super) fn new(tracked: Tracked, all: Attached, memory: PassMemory, host: HostFacts) -> Self {
        let buffer = vec![0; BUFFER].into_boxed_slice();
        Self { tracked, all, memory, host, buffer, groups: HashMap::new() }
    }

    /// The programs: the one that runs in every pass, then the other.
    pub(super) fn programs(&self) -> [(&'static str, BorrowedFd<'_>); 2] {
        let tracked = match &self.tracked {
            Tracked::Walk(program) => (programs::TRACKED_PROCESSES, program.as_fd()),
            Tracked::Iterator(attached) => (attached.name, attached.program.as_fd()),
        };
        [tracked, (self.all.name, self.all.program.as_fd())]
    }

    /// The next pass tells all figures of a process.
    pub(super) fn forget(&mut self, pid: Pid) {
        self.memory.forget(pid);
    }

    /// One sample per tracked process, or the word that it has not run since the last.
    pub(super) fn pass(&mut self, missing: Missing, out: &mut dyn FnMut(Input)) -> io::Result<()> {
        self.memory.begin();
        let at_ns = monotonic_ns();
        let result = match self.tracked {
            Tracked::Walk(_) => self.walk(missing, out),
            Tracked::Iterator(_) => self.iterate(missing, out),
        };
        if result.is_err() {
            // What was told may not have arrived.
            self.memory.tell_all = true;
            return result;
        }
        for owner in self.memory.unchanged() {
            let process = ProcessKey { pid: owner.pid, start_ns: owner.start_ns };
            out(Input::Unchanged { process, record: events::some(owner.slot), at_ns });
        }
        Ok(())
    }

    fn walk(&mut self, missing: Missing, out: &mut dyn FnMut(Input)) -> io::Result<()> {
        let Tracked::Walk(program) = &self.tracked else { return Ok(()) };
        for _ in 0..RUNS {
            let at_ns = monotonic_ns();
            sys::program_run(program.as_fd())?;
            let host = self.host;
            let full = self.memory.take_rows(&mut |row| out(Input::Sample(whole(row, missing, host, at_ns))));
            if !full {
                return Ok(());
            }
        }
        Err(io::Error::other(format!(
            "more than {} processes have run since the last pass",
            RUNS * PASS_ROWS
        )))
    }

    fn iterate(&mut self, missing: Missing, out: &mut dyn FnMut(Input)) -> io::Result<()> {
        let Tracked::Iterator(tracked) = &self.tracked else { return Ok(()) };
        self.groups.clear();
        let iterator = sys::iterator_open(tracked.link.as_fd())?;
        let (host, groups, owners) = (self.host, &mut self.groups, &mut self.memory.owners);
        read_rows(iterator, &mut self.buffer, &mut |row, at_ns| {
            owners.note(row);
            if row.header.flags & TASK_WHOLE_PROCESS != 0 {
                out(Input::Sample(whole(row, missing, host, at_ns)));
                return;
            }
            let group = groups.entry(row.header.pid).or_default();
            group.sums.add(row);
            group.at_ns = at_ns;
            if row.header.flags & TASK_HAS_MEMORY != 0 {
                group.rss_pages = Some(row.rss_pages);
            }
            if row.header.flags & TASK_MAIN_THREAD != 0 {
                group.main = Some(*row);
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
        read_rows(iterator, &mut self.buffer, &mut |row: &TaskRow, _| {
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

/// Reads an iterator to its end. Each row comes with the time just before it was read, `CLOCK_MONOTONIC` ns.
pub(super) fn read_rows<T: Row>(
    mut iterator: impl Read,
    buffer: &mut [u8],
    out: &mut dyn FnMut(&T, u64),
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
        while let Some(row) = front::<T>(rest) {
            out(&row, at_ns);
            rest = &rest[size_of::<T>()..];
        }
        // The kernel cuts where the buffer ends: the begin of a row waits for its rest.
        let left = rest.len();
        buffer.copy_within(filled - left..filled, 0);
        filled = left;
    }
}

/// What an iterator writes.
///
/// # Safety
///
/// Plain integers and bytes without padding, for which every bit pattern is valid.
pub(super) unsafe trait Row: Copy {}

// SAFETY: integers and arrays of them, whose sizes add up.
unsafe impl Row for TaskRow {}
// SAFETY: as above.
unsafe impl Row for StackRow {}
// SAFETY: as above.
unsafe impl Row for ThreadRow {}

/// Copies a record out of the front of some bytes; `None` if there are too few.
fn front<T: Row>(bytes: &[u8]) -> Option<T> {
    let bytes = bytes.get(..size_of::<T>())?;
    // SAFETY: as long as T, which is valid whatever they are. The read needs no alignment.
    Some(unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}

fn key(header: &RowHeader) -> ProcessKey {
    ProcessKey { pid: header.pid, start_ns: header.start_ns }
}

/// The sample of a row that stands for all threads.
fn whole(row: &TaskRow, missing: Missing, host: HostFacts, at_ns: u64) -> Sample {
    let mut sums = Sums::default();
    sums.add(row);
    sample(row, &sums, missing, host, at_ns)
}

fn sample(leader: &TaskRow, sums: &Sums, missing: Missing, host: HostFacts, at_ns: u64) -> Sample {
    let bytes =
        |kind: usize| u64::try_from(leader.rss_pages[kind]).unwrap_or(0).saturating_mul(host.page_size);
    let (file, anonymous, shmem) = (bytes(RSS_FILE), bytes(RSS_ANON), bytes(RSS_SHMEM));
    Sample {
        process: key(&leader.header),
        cpu: CpuTime::from_total(sums.runtime_ns, sums.user_ns, sums.system_ns),
        rss: (leader.header.flags & TASK_HAS_MEMORY != 0).then_some(Rss {
            total_bytes: file.saturating_add(anonymous).saturating_add(shmem),
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

    proptest! {
        #[test]
        fn rows_are_whole_however_they_are_cut(rows in 0u32..40, piece in 1usize..400) {
            let mut bytes = Vec::new();
            for pid in 0..rows {
                bytes.extend(pid.to_ne_bytes());
                bytes.resize(bytes.len() + size_of::<TaskRow>() - size_of_val(&pid), 0);
            }
            let mut seen = Vec::new();
            read_rows(Pieces(&bytes, piece), &mut [0; 512], &mut |row: &TaskRow, _| seen.push(row.header.pid)).unwrap();
            prop_assert_eq!(seen, (0..rows).collect::<Vec<_>>());
            if !bytes.is_empty() {
                bytes.pop();
                let cut = read_rows(Pieces(&bytes, piece), &mut [0; 512], &mut |_: &TaskRow, _| {});
                prop_assert!(cut.is_err());
            }
        }
    }
}
