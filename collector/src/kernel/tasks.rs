//! Reads the task iterators: all tracked processes, or the identity of all processes, in a few read(2) calls.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;

use collector_ebpf::task::{
    RSS_ANON, RSS_FILE, RSS_KINDS, RSS_SHMEM, RSS_SWAP, TASK_HAS_MEMORY, TASK_KERNEL_THREAD,
    TASK_MAIN_THREAD, TaskRow,
};

use super::load::Attached;
use super::sys;
use crate::input::{Comm, Listed, Rss, Sample, TaskState};
use crate::units::{CpuTime, HostFacts, Pid, ProcessKey, monotonic_ns};

const ROW: usize = size_of::<TaskRow>();
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

    /// One sample per tracked process.
    pub(super) fn pass(&mut self, missing: Missing, out: &mut dyn FnMut(Sample)) -> io::Result<()> {
        self.groups.clear();
        let mut iterator = sys::iterator_open(self.tracked.link.as_fd())?;
        let host = self.host;
        let mut at_ns = monotonic_ns();
        while let Some(rows) = fill(&mut iterator, &mut self.buffer)? {
            for row in rows {
                let main = row.flags & TASK_MAIN_THREAD != 0;
                if main && row.threads <= 1 {
                    let mut sums = Sums::default();
                    sums.add(&row);
                    out(sample(&row, &sums, missing, host, at_ns));
                    continue;
                }
                let group = self.groups.entry(row.pid).or_default();
                group.sums.add(&row);
                if row.flags & TASK_HAS_MEMORY != 0 {
                    group.rss_pages = Some(row.rss_pages);
                }
                if main {
                    group.main = Some(row);
                }
            }
            at_ns = monotonic_ns();
        }
        for group in self.groups.values() {
            // Without a row of the main thread the process ended while it was read.
            if let Some(mut main) = group.main {
                if let Some(rss_pages) = group.rss_pages {
                    main.flags |= TASK_HAS_MEMORY;
                    main.rss_pages = rss_pages;
                }
                out(sample(&main, &group.sums, missing, host, at_ns));
            }
        }
        Ok(())
    }

    /// Every process of the host.
    pub(super) fn list(&mut self, out: &mut dyn FnMut(Listed)) -> io::Result<()> {
        let mut iterator = sys::iterator_open(self.all.link.as_fd())?;
        while let Some(rows) = fill(&mut iterator, &mut self.buffer)? {
            for row in rows {
                out(Listed {
                    process: key(&row),
                    parent: row.parent,
                    comm: Comm(row.comm),
                    kernel_thread: row.flags & TASK_KERNEL_THREAD != 0,
                    zombie: row.exit_state & EXIT_TRACE != 0,
                });
            }
        }
        Ok(())
    }
}

/// Reads whole rows; `None` at the end.
fn fill<'a>(
    iterator: &mut File,
    buffer: &'a mut [u8],
) -> io::Result<Option<impl Iterator<Item = TaskRow> + 'a>> {
    let mut filled = 0;
    loop {
        let read = match iterator.read(&mut buffer[filled..]) {
            Err(error) if matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) => {
                continue;
            }
            result => result?,
        };
        filled += read;
        if read == 0 && filled % ROW != 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the task iterator ended within a row"));
        }
        if filled % ROW == 0 {
            break;
        }
    }
    if filled == 0 {
        return Ok(None);
    }
    Ok(Some(buffer[..filled].chunks_exact(ROW).map(|bytes| {
        // SAFETY: `chunks_exact` gives exactly ROW bytes; TaskRow is plain integers and bytes without padding, so
        // every bit pattern is valid, and the read needs no alignment.
        unsafe { bytes.as_ptr().cast::<TaskRow>().read_unaligned() }
    })))
}

fn key(row: &TaskRow) -> ProcessKey {
    ProcessKey { pid: row.pid, start_ns: row.start_ns }
}

fn sample(leader: &TaskRow, sums: &Sums, missing: Missing, host: HostFacts, at_ns: u64) -> Sample {
    let bytes =
        |kind: usize| u64::try_from(leader.rss_pages[kind]).unwrap_or(0).saturating_mul(host.page_size);
    let (file, anonymous, shmem) = (bytes(RSS_FILE), bytes(RSS_ANON), bytes(RSS_SHMEM));
    Sample {
        process: key(leader),
        cpu: CpuTime::from_total(sums.runtime_ns, sums.user_ns, sums.system_ns),
        rss: (leader.flags & TASK_HAS_MEMORY != 0).then_some(Rss {
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
