//! [`ProcfsSource`]: the [`Source`] for hosts where eBPF is refused.
//!
//! Figures come from kept descriptors of `/proc/PID` (see `tracked`). Lifecycle comes from the process connector where
//! the kernel lets us listen, and otherwise from comparing listings of `/proc`, once per pass.
//!
//! A process is over when its last thread ends. The connector reports each thread; the kernel sends a thread's message
//! after the thread became a zombie or, unless it is the main thread, was let go of. So when the last message of a
//! process is read, `stat` shows a zombie with one thread or nothing at all. That is looked up at the end of the main
//! thread and, when others outlive it, at the end of each of them. It is taken for granted for a process that we do
//! not follow and that never had a second thread: a fork storm must not cost a read per death.

mod events;
mod listening;
mod polling;

use std::path::Path;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use self::listening::Listening;
use super::parse::stat::Stat;
use super::root::{Buffer, ProcfsError, ReadError, Root};
use super::scan::Scan;
use super::tracked::{Allowance, FILES, Phase, Reading, Tracked};
use crate::input::{self, Comm, ExitStatus, Input, Listed, Role, SlotRecord, Source};
use crate::snapshot::{EventCounts, Feature};
use crate::units::{ByProcess, HostFacts, NANOS_PER_TICK, Pid, ProcessKey, boottime_ns, monotonic_ns};

/// Processes that are remembered, at most; the rest is counted.
const MAX_KNOWN: usize = 131_072;

/// Descriptors left to everybody else in this process: connections, control groups and some more.
const RESERVED_DESCRIPTORS: usize = 856;

/// A process younger than this is looked at again in the next pass, while polling: it may be between fork and exec.
const SETTLED_NS: u64 = 2_000_000_000;

/// What may be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Descriptors kept for tracked processes, at most; four for each. Reading through a kept descriptor costs a
    /// quarter to a half of opening the file anew, but each holds about 4.6 KiB of kernel memory (the file, its inode
    /// and one page of text).
    pub kept_descriptors: usize,
    /// Listen to the process connector, where we may.
    pub connector: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self { kept_descriptors: 16_384, connector: true }
    }
}

/// What is remembered of every process of the host.
#[derive(Clone, Copy, Debug)]
struct Known {
    start_ticks: u64,
    comm: Comm,
    /// Inode number of its directory; 0 if it was not listed yet.
    inode: u64,
    /// The last listing that showed it.
    listing: u32,
    /// It has or had more than one thread.
    threaded: bool,
    /// Too young to be believed: read again in the next listing.
    young: bool,
}

/// By kind, as in [`EventCounts`].
#[derive(Clone, Copy, Debug, Default)]
struct Told {
    fork: u64,
    exec: u64,
    rename: u64,
    exit: u64,
    reap: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Losses {
    gone_before_read: u64,
    malformed_events: u64,
    malformed_files: u64,
    read_failed: u64,
    no_descriptor: u64,
    listing_failed: u64,
    not_remembered: u64,
}

/// Watches through `/proc`.
#[derive(Debug)]
pub struct ProcfsSource {
    root: Root,
    scan: Scan,
    host: HostFacts,
    buffer: Buffer,
    listening: Listening,
    tracked: ByProcess<Pid, Tracked>,
    known: ByProcess<Pid, Known>,
    allowance: Allowance,
    /// Number of the current listing.
    listing: u32,
    /// The aggregator was given a full listing, so a new process is news.
    listed: bool,
    /// Facts that came up while something else was asked.
    pending: Vec<Input>,
    /// Pids to be read, and those to be looked at with the inode of their directory; kept for their room.
    pids: Vec<Pid>,
    look: Vec<(Pid, u64)>,
    told: Told,
    losses: Losses,
    io_refused: bool,
}

impl ProcfsSource {
    /// Opens the proc root and subscribes to lifecycle events, if we may. Raises our soft limit of descriptors to the
    /// hard one.
    pub fn open(root: &Path, host: HostFacts, config: Config) -> Result<Self, ProcfsError> {
        let root = Root::open(root)?;
        let scan = Scan::open(&root).map_err(|error| ProcfsError::Root {
            path: root.path().to_owned(),
            error: std::io::Error::other(error),
        })?;
        let limit = config.kept_descriptors.min(descriptors_for_us());
        let listening = Listening::begin(&root, config.connector);
        Ok(Self {
            root,
            scan,
            host,
            buffer: Buffer::default(),
            listening,
            tracked: ByProcess::default(),
            known: ByProcess::default(),
            allowance: Allowance { kept: 0, limit },
            listing: 0,
            listed: false,
            pending: Vec::new(),
            pids: Vec::new(),
            look: Vec::new(),
            told: Told::default(),
            losses: Losses::default(),
            io_refused: false,
        })
    }

    /// Descriptors held for tracked processes now.
    pub fn descriptors(&self) -> usize {
        self.allowance.kept
    }

    fn remember(&mut self, pid: Pid, known: Known) {
        if self.known.len() >= MAX_KNOWN && !self.known.contains_key(&pid) {
            self.losses.not_remembered += 1;
            return;
        }
        self.known.insert(pid, known);
    }

    fn is_tracked(&self, key: ProcessKey) -> bool {
        self.tracked.get(&key.pid).is_some_and(|tracked| tracked.key == key)
    }

    fn count_failure(&mut self, error: &ReadError) {
        match error {
            ReadError::Gone => {}
            ReadError::NoDescriptor(_) => self.losses.no_descriptor += 1,
            ReadError::Malformed(_) => self.losses.malformed_files += 1,
            ReadError::Refused(_) | ReadError::Failed(_) => self.losses.read_failed += 1,
        }
    }

    /// One tracked process in a pass.
    fn read(&mut self, pid: Pid, now_ns: u64, out: &mut dyn FnMut(Input)) {
        let Some(tracked) = self.tracked.get_mut(&pid) else { return };
        match tracked.sample(&self.root, self.host, &mut self.allowance, &mut self.buffer) {
            Ok(Reading::Unchanged { at_ns }) => {
                out(Input::Unchanged { process: tracked.key, record: None, at_ns });
            }
            Ok(Reading::Sample(sample)) => {
                self.io_refused |= tracked.io_refused() && tracked.phase == Phase::Alive;
                if let Some(comm) = tracked.last_read().map(|stat| stat.comm) {
                    let changed = tracked.comm.replace(comm).is_some_and(|before| before != comm);
                    if changed && !self.listening.works() {
                        self.told.rename += 1;
                        out(Input::Rename(input::Rename { process: sample.process, comm }));
                    }
                }
                out(Input::Sample(sample));
                self.ended_unheard(pid, now_ns, out);
            }
            Err(ReadError::Gone) => {
                // The event of its end may be behind us, in the socket.
                if !self.listening.works() || tracked.phase != Phase::Alive {
                    self.gone(pid, None, now_ns, out);
                } else {
                    tracked.phase = Phase::Missed;
                }
            }
            Err(error) => {
                tracing::debug!(pid, %error, "reading a process failed");
                self.count_failure(&error);
            }
        }
    }

    /// A zombie that no event told of: while polling, or when its event was lost. The connector gets one pass of time.
    fn ended_unheard(&mut self, pid: Pid, now_ns: u64, out: &mut dyn FnMut(Input)) {
        let Some(tracked) = self.tracked.get_mut(&pid) else { return };
        let Some(stat) = tracked.last_read().filter(|stat| stat.is_over()) else { return };
        match tracked.phase {
            Phase::Ended => return,
            Phase::Alive if self.listening.works() => {
                tracked.phase = Phase::Missed;
                return;
            }
            Phase::Alive | Phase::Missed => {}
        }
        let status = tracked.wait_status(&stat).or(tracked.main_ended);
        let status = status.map_or(ExitStatus::Unknown, ExitStatus::from_wait_status);
        let cpu = tracked.cpu_so_far();
        self.ended(pid, status, cpu, now_ns, out);
    }
}

impl Source for ProcfsSource {
    fn name(&self) -> &'static str {
        "procfs"
    }

    fn drain(&mut self, out: &mut dyn FnMut(Input)) {
        for input in std::mem::take(&mut self.pending) {
            out(input);
        }
        self.receive(out);
    }

    /// None: who a process was is only found out while it lives.
    fn quiet_drain_ns(&self) -> u64 {
        0
    }

    fn pass(&mut self, out: &mut dyn FnMut(Input)) {
        let started_ns = monotonic_ns();
        self.drain(out);
        if self.listening.wants_comparison() {
            self.compare_listing(started_ns, out);
        }
        let mut pids = std::mem::take(&mut self.pids);
        pids.extend(self.tracked.keys());
        for pid in pids.drain(..) {
            self.read(pid, started_ns, out);
        }
        self.pids = pids;
        // Ends that came while we read.
        self.receive(out);
        out(Input::PassComplete { started_ns });
    }

    fn list(&mut self, out: &mut dyn FnMut(Listed)) {
        let mut pids = Vec::new();
        if let Err(error) = self.scan.pids(|pid, inode| pids.push((pid, inode))) {
            self.losses.listing_failed += 1;
            tracing::warn!(%error, "listing the proc root failed");
            return;
        }
        self.listing = self.listing.wrapping_add(1);
        self.listed = true;
        for (pid, inode) in pids {
            let stat = match self.root.stat(pid, &mut self.buffer) {
                Ok(stat) => stat,
                Err(error) => {
                    self.count_failure(&error);
                    // There, though we cannot see it now.
                    if let Some(known) =
                        self.known.get_mut(&pid).filter(|_| !matches!(error, ReadError::Gone))
                    {
                        known.listing = self.listing;
                    }
                    continue;
                }
            };
            let same = self.known.get(&pid).is_some_and(|known| known.start_ticks == stat.starttime);
            let threaded = same && self.known.get(&pid).is_some_and(|known| known.threaded);
            let fresh = of(&stat);
            let known = Known { inode, listing: self.listing, threaded: threaded || fresh.threaded, ..fresh };
            if !stat.is_over() || !self.listening.works() {
                self.remember(pid, known);
            }
            out(Listed {
                process: key(&stat),
                parent: stat.ppid,
                comm: stat.comm,
                kernel_thread: stat.is_kernel_thread(),
                zombie: stat.is_over(),
            });
        }
        if self.listening.works() {
            // Whose end was lost. Those born since the listing began are in messages that are still to be read.
            let listing = self.listing;
            self.known.retain(|_, known| known.listing == listing);
        }
    }

    fn track(&mut self, process: ProcessKey, pool: u32, role: Role) -> SlotRecord {
        let mut pending = std::mem::take(&mut self.pending);
        self.displace(process, &mut |input| pending.push(input));
        self.pending = pending;
        self.tracked.entry(process.pid).or_insert_with(|| Tracked::new(process)).add(role, pool);
        None
    }

    fn untrack(&mut self, process: ProcessKey, role: Role) {
        if self.is_tracked(process)
            && self.tracked.get_mut(&process.pid).is_some_and(|tracked| tracked.take(role))
        {
            self.forget(process.pid);
        }
    }

    fn release(&mut self, _record: u32) {}

    /// `utime` and `stime`, each less than a tick.
    fn cpu_short_ns(&self) -> u64 {
        2 * NANOS_PER_TICK
    }

    fn event_counts(&self) -> Vec<EventCounts> {
        let told = self.told;
        let seen = |kind, count| EventCounts { kind, counted: count, delivered: count, lost: 0 };
        let mut counts = vec![
            seen("fork", told.fork),
            seen("exec", told.exec),
            seen("rename", told.rename),
            seen("exit", told.exit),
            seen("reap", told.reap),
        ];
        if let Some(lost) = self.listening.lost() {
            // The numbering tells how many messages are missing, those of threads included, not of which kind.
            counts.push(EventCounts { kind: "unknown", counted: lost, delivered: 0, lost });
        }
        counts
    }

    fn losses(&self) -> Vec<(&'static str, u64)> {
        let losses = self.losses;
        vec![
            ("process_gone_before_read", losses.gone_before_read),
            ("event_malformed", losses.malformed_events),
            ("file_malformed", losses.malformed_files),
            ("file_not_read", losses.read_failed),
            ("no_descriptor", losses.no_descriptor),
            ("listing_failed", losses.listing_failed),
            ("process_not_remembered", losses.not_remembered),
        ]
    }

    fn features(&self) -> Vec<Feature> {
        let full = |name| Feature { name, enabled: true, reason: String::new(), remedy: String::new() };
        let without = |name, reason: &str, remedy: &str| Feature {
            name,
            enabled: false,
            reason: reason.into(),
            remedy: remedy.into(),
        };
        const EBPF: &str = "eBPF: run as root, or grant CAP_BPF and CAP_PERFMON";
        let mut features = Vec::new();
        match self.listening.obstacle() {
            None => features.extend([full("lifecycle_events"), full("exit_status")]),
            Some((why, remedy)) => {
                let polling = format!(
                    "processes are found by polling, so those that live shorter than a pass are not seen: {why}"
                );
                features.push(without("lifecycle_events", &polling, remedy));
                let status =
                    "polling sees the exit status only of processes that their parent has not reaped yet";
                features.push(without("exit_status", status, remedy));
            }
        }
        features.push(Feature {
            reason: "of processes with a single thread only".into(),
            remedy: EBPF.into(),
            ..full("run_delay")
        });
        features.push(if self.io_refused {
            without(
                "storage_io",
                "/proc/PID/io of some processes cannot be read",
                "grant CAP_SYS_PTRACE, or run as the user of the workers",
            )
        } else {
            full("storage_io")
        });
        features.push(Feature {
            reason: "total and anonymous memory; file and shared memory together are the rest".into(),
            remedy: EBPF.into(),
            ..full("resident_memory")
        });
        let switches = "they would cost another file per process";
        features.push(without("context_switches", switches, EBPF));
        features.push(without("peak_memory", "it is gone when the end of a process is heard of", EBPF));
        features.push(without("signal_sender", "/proc does not tell who sent a signal", EBPF));
        features.push(without("oom_kill", "/proc does not tell whom the OOM killer chose", EBPF));
        features
    }
}

fn key(stat: &Stat) -> ProcessKey {
    ProcessKey::from_ticks(stat.pid, stat.starttime)
}

fn of(stat: &Stat) -> Known {
    Known {
        start_ticks: stat.starttime,
        comm: stat.comm,
        inode: 0,
        listing: 0,
        threaded: stat.num_threads > 1,
        young: false,
    }
}

/// What the host slept since boot, ns: events are dated by one clock, starts by the other.
fn boot_minus_monotonic() -> u64 {
    // In this order: the one that is read second is never the smaller.
    let monotonic = monotonic_ns();
    boottime_ns().saturating_sub(monotonic)
}

/// Raises the soft limit, which only protects programs that use select(2), and leaves a reserve to the rest of us.
fn descriptors_for_us() -> usize {
    let Ok((mut soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return 0 };
    if soft < hard && setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok() {
        soft = hard;
    }
    let limit = usize::try_from(soft).unwrap_or(usize::MAX);
    limit.saturating_sub(RESERVED_DESCRIPTORS.min(limit / 2)) / FILES * FILES
}

#[cfg(test)]
mod tests;
