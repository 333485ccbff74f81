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

use std::path::Path;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::connector::{Connector, ConnectorError, Event, Received};
use super::parse::stat::Stat;
use super::root::{Buffer, ProcfsError, ReadError, Root};
use super::scan::Scan;
use super::tracked::{Allowance, FILES, Phase, Tracked};
use crate::input::{self, Comm, ExitStatus, Input, Listed, Role, SlotRecord, Source};
use crate::snapshot::{EventCounts, Feature};
use crate::units::{
    ByProcess, CpuTime, HostFacts, NANOS_PER_TICK, Pid, ProcessKey, boottime_ns, monotonic_ns,
};

/// `PROC_PID_INIT_INO` of `include/linux/proc_ns.h`: the inode of the initial pid namespace.
const INITIAL_PID_NAMESPACE: &str = "pid:[4026531836]";

/// Processes that are remembered, at most; the rest is counted.
const MAX_KNOWN: usize = 131_072;

/// Messages taken in one drain, so that a storm cannot keep the collecting thread from its other work.
const MESSAGES_PER_DRAIN: usize = 65_536;

/// Descriptors left to everybody else in this process.
const RESERVED_DESCRIPTORS: usize = 512;

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
    connector: Result<Connector, Option<ConnectorError>>,
    tracked: ByProcess<Pid, Tracked>,
    known: ByProcess<Pid, Known>,
    allowance: Allowance,
    /// Number of the current listing.
    listing: u32,
    /// The aggregator was given a full listing, so a new process is news.
    listed: bool,
    /// Events were lost: the next pass compares listings, as without the connector.
    compare: bool,
    /// Messages that went missing, as far as it was said already.
    missing_told: u64,
    /// Overruns that no gap has explained so far.
    unexplained_overruns: u64,
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
        let connector = if !config.connector {
            Err(None)
        } else if !shows_initial_pids(&root) {
            Err(Some(ConnectorError::OtherPids))
        } else {
            Connector::open().map_err(Some)
        };
        Ok(Self {
            root,
            scan,
            host,
            buffer: Buffer::default(),
            connector,
            tracked: ByProcess::default(),
            known: ByProcess::default(),
            allowance: Allowance { kept: 0, limit },
            listing: 0,
            listed: false,
            compare: false,
            missing_told: 0,
            unexplained_overruns: 0,
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

    fn receive(&mut self, out: &mut dyn FnMut(Input)) {
        let boot_minus_monotonic = boot_minus_monotonic();
        let mut overruns = 0;
        for _ in 0..MESSAGES_PER_DRAIN {
            let Ok(connector) = &mut self.connector else { return };
            match connector.receive() {
                Received::Event(event) => self.event(event, boot_minus_monotonic, out),
                Received::Malformed => self.losses.malformed_events += 1,
                Received::Overrun => overruns += 1,
                Received::Empty => break,
                Received::Failed(errno) => {
                    tracing::warn!(%errno, "the process connector failed; processes are found by polling from now on");
                    self.connector = Err(Some(ConnectorError::Failed(errno)));
                    out(Input::Lost { events: 1 });
                    return;
                }
            }
        }
        let Ok(connector) = &self.connector else { return };
        // An overrun tells at once that something was lost, a gap tells later how much: the next message of that CPU
        // has to come first. What was guessed for the one is taken off the other.
        let gap = connector.missing - self.missing_told;
        self.missing_told = connector.missing;
        let explained = gap.min(self.unexplained_overruns);
        self.unexplained_overruns -= explained;
        let mut lost = gap - explained;
        if overruns > 0 && lost == 0 {
            lost = 1;
            self.unexplained_overruns += 1;
        }
        if lost > 0 {
            self.compare = true;
            out(Input::Lost { events: lost });
        }
    }

    fn event(&mut self, event: Event, boot_minus_monotonic: u64, out: &mut dyn FnMut(Input)) {
        match event {
            Event::Fork { parent, child, at_ns } => {
                self.forked(parent, child, at_ns, boot_minus_monotonic, out);
            }
            Event::Thread { process } => {
                if let Some(known) = self.known.get_mut(&process) {
                    known.threaded = true;
                }
            }
            Event::Exec { process, at_ns } => self.executed(process, at_ns, out),
            Event::Rename { process, comm } => self.renamed(process, comm, out),
            Event::Exit { process, main, status, at_ns } => {
                self.thread_ended(process, main, status, at_ns, out)
            }
            Event::Acknowledged { .. } | Event::Other => {}
        }
    }

    /// The message names a pid; who that is, `stat` tells, unless the child ended before we came to it.
    fn forked(
        &mut self,
        parent: Pid,
        child: Pid,
        at_ns: u64,
        boot_minus_monotonic: u64,
        out: &mut dyn FnMut(Input),
    ) {
        let at_ticks = at_ns.saturating_add(boot_minus_monotonic) / NANOS_PER_TICK;
        let master = self.tracked.get(&parent).filter(|parent| parent.children.is_some());
        let pool = master.and_then(|master| master.children);
        let read = match self.root.stat(child, &mut self.buffer) {
            // The pid was given to another process since, whose own message is to come.
            Ok(stat) if stat.starttime > at_ticks.saturating_add(1) => Err(ReadError::Gone),
            other => other,
        };
        let (key, comm) = match read {
            Ok(stat) => (key(&stat), stat.comm),
            Err(error) => {
                self.count_failure(&error);
                self.losses.gone_before_read += 1;
                // Of strangers nothing is known, and nothing is said. A worker counts although it is gone: its start
                // is told by the message, within a tick, and nobody can be mistaken for it any more.
                let Some(master) = self.tracked.get(&parent).filter(|_| pool.is_some()) else { return };
                (ProcessKey::from_ticks(child, at_ticks), master.comm.unwrap_or_default())
            }
        };
        // A listing may have come before the message.
        let threaded =
            self.known.get(&child).is_some_and(|k| k.start_ticks == key.start_ticks() && k.threaded);
        self.displace(key, out);
        let known = Known {
            start_ticks: key.start_ticks(),
            comm,
            inode: 0,
            listing: self.listing,
            threaded,
            young: false,
        };
        self.remember(child, known);
        if let Some(pool) = pool.filter(|_| !self.is_tracked(key)) {
            let mut tracked = Tracked::new(key);
            tracked.add(Role::Worker, pool);
            self.tracked.insert(child, tracked);
        }
        self.told.fork += 1;
        out(Input::Fork(input::Fork { child: key, parent, comm, pool, record: None, at_ns }));
    }

    /// Another process has the pid now, so the one that had it is gone.
    fn displace(&mut self, key: ProcessKey, out: &mut dyn FnMut(Input)) {
        if self.tracked.get(&key.pid).is_some_and(|tracked| tracked.key != key) {
            self.gone(key.pid, None, monotonic_ns(), out);
        }
    }

    fn executed(&mut self, pid: Pid, at_ns: u64, out: &mut dyn FnMut(Input)) {
        let stat = match self.root.stat(pid, &mut self.buffer) {
            Ok(stat) => stat,
            Err(error) => {
                self.count_failure(&error);
                return;
            }
        };
        // One that we never heard of, or that took over the pid: its own fork was lost or is to come.
        let Some(known) = self.known.get_mut(&pid).filter(|k| k.start_ticks == stat.starttime) else {
            return;
        };
        known.comm = stat.comm;
        known.threaded = stat.num_threads > 1;
        let process = key(&stat);
        if let Some(tracked) = self.tracked.get_mut(&pid).filter(|t| t.key == process) {
            tracked.comm = Some(stat.comm);
            tracked.main_ended = None;
        }
        self.told.exec += 1;
        // An exec by another thread swaps tasks under the pid. Kept descriptors follow the pid, so nothing is lost.
        out(Input::Exec(input::Exec { process, comm: stat.comm, by_thread: false, at_ns }));
    }

    fn renamed(&mut self, pid: Pid, comm: Comm, out: &mut dyn FnMut(Input)) {
        let Some(known) = self.known.get_mut(&pid) else { return };
        known.comm = comm;
        let process = ProcessKey::from_ticks(pid, known.start_ticks);
        if let Some(tracked) = self.tracked.get_mut(&pid).filter(|t| t.key == process) {
            tracked.comm = Some(comm);
        }
        self.told.rename += 1;
        out(Input::Rename(input::Rename { process, comm }));
    }

    fn thread_ended(&mut self, pid: Pid, main: bool, status: u32, at_ns: u64, out: &mut dyn FnMut(Input)) {
        if self.tracked.contains_key(&pid) {
            self.tracked_thread_ended(pid, main, status, at_ns, out);
            return;
        }
        let Some(known) = self.known.get(&pid).copied() else { return };
        if known.threaded {
            // The main thread may have ended first; which one is last cannot be told from the messages.
            match self.root.stat(pid, &mut self.buffer) {
                Ok(stat) if stat.starttime == known.start_ticks && !stat.is_over() => return,
                Ok(_) | Err(_) => {}
            }
        } else if !main {
            return;
        }
        self.known.remove(&pid);
        let process = ProcessKey::from_ticks(pid, known.start_ticks);
        self.told.exit += 1;
        out(Input::Exit(input::Exit {
            process,
            status: ExitStatus::from_wait_status(status),
            sender: None,
            oom_killed: None,
            cpu: None,
            peak_rss_bytes: None,
            at_ns,
        }));
    }

    fn tracked_thread_ended(
        &mut self,
        pid: Pid,
        main: bool,
        status: u32,
        at_ns: u64,
        out: &mut dyn FnMut(Input),
    ) {
        let Some(tracked) = self.tracked.get_mut(&pid) else { return };
        if tracked.phase == Phase::Ended || !main && tracked.main_ended.is_none() {
            return;
        }
        match tracked.last_stat(&self.root, &mut self.buffer) {
            Ok((stat, _)) if !stat.is_over() => {
                // Others go on, or an exec by another thread has just replaced the main thread.
                if stat.task_state() == input::TaskState::Zombie {
                    tracked.main_ended = Some(status);
                }
            }
            Ok((stat, cpu)) => {
                // What wait(2) will say, where we may see it; the message tells the status of one thread.
                let status = tracked.wait_status(&stat).filter(|code| *code != 0).unwrap_or(status);
                self.ended(pid, ExitStatus::from_wait_status(status), Some(cpu), at_ns, out);
            }
            // Reaped already.
            Err(ReadError::Gone) => self.gone(pid, Some(status), at_ns, out),
            Err(error) => {
                self.count_failure(&error);
                self.ended(pid, ExitStatus::from_wait_status(status), None, at_ns, out);
            }
        }
    }

    /// Tells the end of a tracked process, once.
    fn ended(
        &mut self,
        pid: Pid,
        status: ExitStatus,
        cpu: Option<CpuTime>,
        at_ns: u64,
        out: &mut dyn FnMut(Input),
    ) {
        let Some(tracked) = self.tracked.get_mut(&pid).filter(|t| t.phase != Phase::Ended) else { return };
        tracked.ended(cpu, &mut self.allowance);
        let process = tracked.key;
        if self.known.get(&pid).is_some_and(|known| known.start_ticks == process.start_ticks()) {
            self.known.remove(&pid);
        }
        self.told.exit += 1;
        out(Input::Exit(input::Exit {
            process,
            status,
            sender: None,
            oom_killed: None,
            cpu,
            peak_rss_bytes: None,
            at_ns,
        }));
    }

    /// A tracked process left the kernel. Its CPU was final if it was read as a zombie.
    fn gone(&mut self, pid: Pid, status: Option<u32>, at_ns: u64, out: &mut dyn FnMut(Input)) {
        let Some(tracked) = self.tracked.get(&pid) else { return };
        let process = tracked.key;
        let status = status.or(tracked.main_ended).map_or(ExitStatus::Unknown, ExitStatus::from_wait_status);
        let cpu = tracked.final_cpu;
        self.ended(pid, status, None, at_ns, out);
        self.forget(pid);
        self.told.reap += 1;
        out(Input::Reap(input::Reap { process, cpu, at_ns }));
    }

    fn forget(&mut self, pid: Pid) {
        if let Some(tracked) = self.tracked.remove(&pid) {
            self.allowance.kept = self.allowance.kept.saturating_sub(tracked.descriptors());
        }
    }

    /// Compares the processes there are with those that are known. What is new is told as a fork. What is missing is
    /// told as an end, unless the connector will do so.
    fn compare_listing(&mut self, now_ns: u64, out: &mut dyn FnMut(Input)) {
        self.listing = self.listing.wrapping_add(1);
        let boot_minus_monotonic = boot_minus_monotonic();
        let mut look = std::mem::take(&mut self.look);
        look.clear();
        let (known, listing) = (&mut self.known, self.listing);
        let listed = self.scan.pids(|pid, inode| match known.get_mut(&pid) {
            Some(known) if known.inode == inode && !known.young => known.listing = listing,
            _ => look.push((pid, inode)),
        });
        if let Err(error) = listed {
            self.losses.listing_failed += 1;
            tracing::warn!(%error, "listing the proc root failed; processes stay as they were");
            self.look = look;
            return;
        }
        for (pid, inode) in look.drain(..) {
            self.looked_up(pid, inode, now_ns, boot_minus_monotonic, out);
        }
        self.look = look;
        if self.connector.is_err() {
            let mut pids = std::mem::take(&mut self.pids);
            let missing = self.known.iter().filter(|(_, known)| known.listing != listing);
            pids.extend(missing.map(|(pid, _)| *pid));
            for pid in pids.drain(..) {
                let Some(known) = self.known.remove(&pid) else { continue };
                let process = ProcessKey::from_ticks(pid, known.start_ticks);
                // The pass finds out about those that are tracked.
                if !self.is_tracked(process) {
                    self.vanished(process, now_ns, out);
                }
            }
            self.pids = pids;
        }
    }

    /// An untracked process is gone, and that is all there is to know.
    fn vanished(&mut self, process: ProcessKey, at_ns: u64, out: &mut dyn FnMut(Input)) {
        self.told.exit += 1;
        self.told.reap += 1;
        out(Input::Exit(input::Exit {
            process,
            status: ExitStatus::Unknown,
            sender: None,
            oom_killed: None,
            cpu: None,
            peak_rss_bytes: None,
            at_ns,
        }));
        out(Input::Reap(input::Reap { process, cpu: None, at_ns }));
    }

    /// Reads a process that is new, young, or lost its inode.
    fn looked_up(
        &mut self,
        pid: Pid,
        inode: u64,
        now_ns: u64,
        boot_minus_monotonic: u64,
        out: &mut dyn FnMut(Input),
    ) {
        let stat = match self.root.stat(pid, &mut self.buffer) {
            Ok(stat) => stat,
            Err(error) => {
                self.count_failure(&error);
                self.losses.gone_before_read += u64::from(matches!(error, ReadError::Gone));
                return;
            }
        };
        let process = key(&stat);
        let before = self.known.get(&pid).copied();
        let same = before.is_some_and(|known| known.start_ticks == stat.starttime);
        let started_ns = (stat.starttime.saturating_mul(NANOS_PER_TICK)).saturating_sub(boot_minus_monotonic);
        let young = now_ns.saturating_sub(started_ns) < SETTLED_NS;
        let known = Known { inode, listing: self.listing, young, ..of(&stat) };
        if let Some(before) = before.filter(|_| !same) {
            let old = ProcessKey::from_ticks(pid, before.start_ticks);
            if !self.is_tracked(old) && self.connector.is_err() {
                self.vanished(old, now_ns, out);
            }
        }
        self.displace(process, out);
        let pool = self.tracked.get(&stat.ppid).and_then(|parent| parent.children);
        if stat.is_over() && self.connector.is_ok() && pool.is_none() {
            // Its end was told or lost, and nothing would tell when to forget it.
            return;
        }
        self.remember(pid, known);
        if same {
            if before.is_some_and(|before| before.comm != stat.comm) {
                self.told.rename += 1;
                out(Input::Rename(input::Rename { process, comm: stat.comm }));
            }
            return;
        }
        // Told by the listing that the aggregator asks for first; or a stranger that is defunct already.
        if !self.listed || stat.is_over() && pool.is_none() {
            return;
        }
        if let Some(pool) = pool.filter(|_| !self.is_tracked(process)) {
            let mut tracked = Tracked::new(process);
            tracked.add(Role::Worker, pool);
            self.tracked.insert(pid, tracked);
        }
        self.told.fork += 1;
        out(Input::Fork(input::Fork {
            child: process,
            parent: stat.ppid,
            comm: stat.comm,
            pool,
            record: None,
            at_ns: started_ns.min(now_ns),
        }));
    }

    /// One tracked process in a pass.
    fn read(&mut self, pid: Pid, now_ns: u64, out: &mut dyn FnMut(Input)) {
        let Some(tracked) = self.tracked.get_mut(&pid) else { return };
        match tracked.sample(&self.root, self.host, &mut self.allowance, &mut self.buffer) {
            Ok(sample) => {
                self.io_refused |= tracked.io_refused() && tracked.phase == Phase::Alive;
                if let Some(comm) = tracked.last_read().map(|stat| stat.comm) {
                    let changed = tracked.comm.replace(comm).is_some_and(|before| before != comm);
                    if changed && self.connector.is_err() {
                        self.told.rename += 1;
                        out(Input::Rename(input::Rename { process: sample.process, comm }));
                    }
                }
                out(Input::Sample(sample));
                self.ended_unheard(pid, now_ns, out);
            }
            Err(ReadError::Gone) => {
                // The event of its end may be behind us, in the socket.
                if self.connector.is_err() || tracked.phase != Phase::Alive {
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
            Phase::Alive if self.connector.is_ok() => {
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
        if self.connector.is_err() || std::mem::take(&mut self.compare) {
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
            if !stat.is_over() || self.connector.is_err() {
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
        if self.connector.is_ok() {
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
        if let Ok(connector) = &self.connector {
            // The numbering tells how many messages are missing, those of threads included, not of which kind.
            let lost = connector.missing + self.unexplained_overruns;
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
        match &self.connector {
            Ok(_) => features.extend([full("lifecycle_events"), full("exit_status")]),
            Err(error) => {
                let (why, remedy) = match error {
                    Some(error) => (error.to_string(), error.remedy()),
                    None => ("the process connector is turned off".into(), "turn it on in the configuration"),
                };
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

/// Pids in this root mean what they mean to the connector: both we and the root are in the initial pid namespace.
fn shows_initial_pids(root: &Root) -> bool {
    let own_pid = std::process::id().to_string();
    root.link("self").is_ok_and(|link| link == *own_pid)
        && root.link("self/ns/pid").is_ok_and(|link| link == *INITIAL_PID_NAMESPACE)
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
mod tests {
    use super::*;
    use std::process::{Child, Command};
    use std::time::{Duration, Instant};

    /// Polling, because whether the connector may be used depends on who runs the tests; with events made by hand.
    fn source(kept_descriptors: usize) -> ProcfsSource {
        let config = Config { kept_descriptors, connector: false };
        let mut source = ProcfsSource::open(Path::new("/proc"), HostFacts::of_this_host(), config)
            .expect("/proc is mounted");
        source.list(&mut |_| {});
        source
    }

    struct Sleeper(Child);

    impl Drop for Sleeper {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    impl Sleeper {
        fn new() -> Self {
            let child = Self(Command::new("sleep").arg("60").spawn().expect("sleep runs"));
            // The spawning returns in the middle of the exec, before name and arguments are set.
            let deadline = Instant::now() + Duration::from_secs(20);
            while std::fs::read(format!("/proc/{}/cmdline", child.0.id())).expect("it lives").is_empty() {
                assert!(Instant::now() < deadline, "it does not begin");
            }
            child
        }

        fn key(&self) -> ProcessKey {
            key_of(self.0.id())
        }
    }

    fn key_of(pid: Pid) -> ProcessKey {
        let root = Root::open(Path::new("/proc")).expect("/proc is mounted");
        key(&root.stat(pid, &mut Buffer::default()).expect("it lives"))
    }

    fn pass(source: &mut ProcfsSource) -> Vec<Input> {
        let mut inputs = Vec::new();
        source.pass(&mut |input| inputs.push(input));
        assert!(matches!(inputs.last(), Some(Input::PassComplete { .. })), "a pass ends so");
        inputs
    }

    fn sample_of(inputs: &[Input], process: ProcessKey) -> Option<input::Sample> {
        inputs.iter().find_map(|input| match input {
            Input::Sample(sample) if sample.process == process => Some(*sample),
            _ => None,
        })
    }

    /// Passes until one says what is looked for.
    fn until<T>(source: &mut ProcfsSource, mut find: impl FnMut(&Input) -> Option<T>) -> T {
        let deadline = Instant::now() + Duration::from_secs(20);
        while Instant::now() < deadline {
            if let Some(found) = pass(source).iter().find_map(&mut find) {
                return found;
            }
            #[expect(clippy::disallowed_methods, reason = "between two looks at a condition")]
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("it did not come in time");
    }

    fn exit_of(process: ProcessKey) -> impl FnMut(&Input) -> Option<input::Exit> {
        move |input| match input {
            Input::Exit(exit) if exit.process == process => Some(*exit),
            _ => None,
        }
    }

    fn check_figures(kept_descriptors: usize) {
        let child = Sleeper::new();
        let mut source = source(kept_descriptors);
        assert_eq!(source.track(child.key(), 1, Role::Worker), None, "there are no records here");
        // Asleep when the first reading has the same CPU as the second.
        let deadline = Instant::now() + Duration::from_secs(20);
        let (first, second) = loop {
            let first = sample_of(&pass(&mut source), child.key()).expect("it is tracked");
            let second = sample_of(&pass(&mut source), child.key()).expect("it is tracked");
            if first.cpu == second.cpu && second.state == input::TaskState::Sleeping {
                break (first, second);
            }
            assert!(Instant::now() < deadline, "sleep does not sleep");
        };
        assert_eq!(second.threads, 1);
        assert!(second.cpu.total_ns() > 0);
        assert!(second.run_delay_ns.is_some());
        assert!(second.minor_faults > 0);
        assert_eq!((second.read_bytes, second.written_bytes), (first.read_bytes, first.written_bytes));
        assert!(second.read_bytes.is_some(), "it is ours, so we may see it");
        let rss = second.rss.expect("it lives");
        assert!(rss.anonymous_bytes.is_some_and(|bytes| bytes <= rss.total_bytes));
        assert_eq!(second.voluntary_switches, None, "missing is not zero");
        let expected = if kept_descriptors >= FILES { FILES } else { 0 };
        assert_eq!(source.descriptors(), expected);
        source.untrack(child.key(), Role::Worker);
        assert_eq!(source.descriptors(), 0);
        assert!(sample_of(&pass(&mut source), child.key()).is_none());
    }

    #[test]
    fn figures_through_kept_descriptors() {
        check_figures(64);
    }

    #[test]
    fn figures_without_a_descriptor_to_keep() {
        check_figures(0);
    }

    #[test]
    fn agrees_with_what_the_kernel_accounts_to_us() {
        let mut source = source(64);
        let own = key_of(std::process::id());
        source.track(own, 1, Role::Worker);
        let usage = || {
            let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF)
                .expect("always allowed");
            let nanos = |t: nix::sys::time::TimeVal| (t.tv_sec() * 1_000_000 + t.tv_usec()) as u64 * 1000;
            nanos(usage.user_time()) + nanos(usage.system_time())
        };
        let mut previous = 0;
        for _ in 0..10 {
            // Threads that come and go: what they used stays with the process.
            std::thread::spawn(|| {
                let begin = Instant::now();
                while begin.elapsed() < Duration::from_millis(20) {}
            })
            .join()
            .expect("it ends");
            let before = usage();
            let sample = sample_of(&pass(&mut source), own).expect("we live");
            let after = usage();
            let total = sample.cpu.total_ns();
            // Two ticks short at most, and what runs on another CPU is accounted by its tick (10 ms at most).
            assert!(total + 30_000_000 >= before, "{total} is far below {before}");
            assert!(total <= after + 10_000_000, "{total} is above {after}");
            assert!(total >= previous, "it went back");
            assert_eq!(sample.run_delay_ns, None, "unknown with more than one thread");
            previous = total;
        }
    }

    #[test]
    fn an_end_is_told_once_and_then_the_reaping() {
        let mut child = Sleeper::new();
        let process = child.key();
        let mut source = source(64);
        source.track(process, 1, Role::Worker);
        pass(&mut source);
        child.0.kill().expect("it is ours");
        // Not waited for, so it stays as a zombie and its stat tells how it ended.
        let exit = until(&mut source, exit_of(process));
        assert_eq!(exit.status, ExitStatus::Signal { signal: 9, core_dumped: false });
        let cpu = exit.cpu.expect("a zombie still shows it");
        let inputs = pass(&mut source);
        assert!(inputs.iter().find_map(exit_of(process)).is_none(), "once");
        let zombie = sample_of(&inputs, process).expect("it is there until it is reaped");
        assert_eq!((zombie.state, zombie.rss), (input::TaskState::Zombie, None));
        child.0.wait().expect("it ended");
        let reap = until(&mut source, |input| match input {
            Input::Reap(reap) if reap.process == process => Some(*reap),
            _ => None,
        });
        assert_eq!(reap.cpu, Some(cpu));
        assert_eq!(source.descriptors(), 0);
        assert!(sample_of(&pass(&mut source), process).is_none());
    }

    #[test]
    fn one_that_vanished_is_told_with_what_is_known() {
        let mut child = Sleeper::new();
        let process = child.key();
        let mut source = source(64);
        source.track(process, 1, Role::Worker);
        pass(&mut source);
        child.0.kill().expect("it is ours");
        child.0.wait().expect("it ended");
        let inputs = pass(&mut source);
        let exit = inputs.iter().find_map(exit_of(process)).expect("it is gone");
        assert_eq!((exit.status, exit.cpu), (ExitStatus::Unknown, None));
        assert!(
            inputs
                .iter()
                .any(|i| matches!(i, Input::Reap(reap) if reap.process == process && reap.cpu.is_none()))
        );
        assert_eq!(source.descriptors(), 0);
    }

    #[test]
    fn one_that_was_never_there_is_gone() {
        let own = key_of(std::process::id());
        let other = ProcessKey::from_ticks(own.pid, own.start_ticks() + 1);
        let mut source = source(64);
        source.track(other, 1, Role::Worker);
        assert!(pass(&mut source).iter().find_map(exit_of(other)).is_some());
    }

    #[test]
    fn children_of_a_master_are_followed() {
        let mut source = source(64);
        source.track(key_of(std::process::id()), 7, Role::Master);
        pass(&mut source);
        let child = Sleeper::new();
        let process = child.key();
        let inputs = pass(&mut source);
        let fork = inputs.iter().find_map(|input| match input {
            Input::Fork(fork) if fork.child == process => Some(*fork),
            _ => None,
        });
        let fork = fork.expect("it is new");
        assert_eq!((fork.pool, fork.parent, fork.record), (Some(7), std::process::id(), None));
        assert!(fork.at_ns <= monotonic_ns());
        assert!(sample_of(&inputs, process).is_some(), "in the same pass");
    }

    #[test]
    fn polling_tells_of_strangers_too() {
        let mut source = source(64);
        let mut child = Sleeper::new();
        let process = child.key();
        let forked = pass(&mut source)
            .iter()
            .any(|input| matches!(input, Input::Fork(fork) if fork.child == process && fork.pool.is_none()));
        assert!(forked);
        assert!(
            pass(&mut source).iter().all(|i| !matches!(i, Input::Fork(fork) if fork.child == process)),
            "once"
        );
        child.0.kill().expect("it is ours");
        child.0.wait().expect("it ended");
        assert!(pass(&mut source).iter().find_map(exit_of(process)).is_some());
    }

    /// What the connector would say, given by hand.
    fn told(source: &mut ProcfsSource, event: Event) -> Vec<Input> {
        let mut inputs = Vec::new();
        let boot_minus_monotonic = boot_minus_monotonic();
        source.event(event, boot_minus_monotonic, &mut |input| inputs.push(input));
        inputs
    }

    #[test]
    fn events_follow_a_child_from_fork_to_end() {
        let mut source = source(64);
        let own = std::process::id();
        source.track(key_of(own), 7, Role::Master);
        let mut child = Sleeper::new();
        let process = child.key();
        let fork = Event::Fork { parent: own, child: process.pid, at_ns: monotonic_ns() };
        assert!(
            matches!(told(&mut source, fork)[..], [Input::Fork(fork)] if fork.pool == Some(7) && fork.child == process)
        );
        let exec = Event::Exec { process: process.pid, at_ns: monotonic_ns() };
        assert!(
            matches!(told(&mut source, exec)[..], [Input::Exec(exec)] if exec.comm.as_bytes() == b"sleep")
        );
        let exit = |main, status| Event::Exit { process: process.pid, main, status, at_ns: monotonic_ns() };
        assert!(told(&mut source, exit(false, 0)).is_empty(), "a thread's end is not the process's");
        assert!(told(&mut source, exit(true, 0)).is_empty(), "it lives: an exec by a thread looks like this");
        child.0.kill().expect("it is ours");
        child.0.wait().expect("it ended");
        let inputs = told(&mut source, exit(true, 9));
        let [Input::Exit(end), Input::Reap(reap)] = inputs[..] else { panic!("{inputs:?}") };
        assert_eq!((end.process, reap.process), (process, process));
        assert_eq!(end.status, ExitStatus::Signal { signal: 9, core_dumped: false });
        assert_eq!(source.descriptors(), 0);
    }

    #[test]
    fn a_worker_that_died_before_we_looked_still_counts() {
        let mut source = source(64);
        let own = std::process::id();
        let mut child = Sleeper::new();
        let pid = child.0.id();
        child.0.kill().expect("it is ours");
        child.0.wait().expect("it ended");
        let fork = Event::Fork { parent: own, child: pid, at_ns: monotonic_ns() };
        assert!(told(&mut source, fork).is_empty(), "of a stranger nothing is known");
        source.track(key_of(own), 7, Role::Master);
        let inputs = told(&mut source, fork);
        let [Input::Fork(fork)] = inputs[..] else { panic!("{inputs:?}") };
        assert_eq!((fork.child.pid, fork.pool), (pid, Some(7)));
        let inputs = told(
            &mut source,
            Event::Exit { process: pid, main: true, status: 0x0300, at_ns: monotonic_ns() },
        );
        let [Input::Exit(exit), Input::Reap(_)] = inputs[..] else { panic!("{inputs:?}") };
        assert_eq!((exit.process, exit.status, exit.cpu), (fork.child, ExitStatus::Code(3), None));
        let lost = source.losses();
        assert!(lost.contains(&("process_gone_before_read", 2)), "{lost:?}");
    }

    /// A proc root made of files.
    fn made_of(files: &[(&str, &str)]) -> (tempfile::TempDir, ProcfsSource) {
        let root = tempfile::tempdir().expect("a place for files");
        std::fs::create_dir(root.path().join("42")).expect("made");
        for (name, text) in files {
            std::fs::write(root.path().join("42").join(name), text).expect("written");
        }
        let host = HostFacts { page_size: 4096, cpus: 1 };
        let source = ProcfsSource::open(root.path(), host, Config::default()).expect("it is a directory");
        (root, source)
    }

    const MADE: ProcessKey = ProcessKey::from_ticks(42, 4242);
    const STAT: &str = "42 (web) S 1 42 42 0 -1 4194560 111 222 5 6 70 80 9 10 20 0 1 0 4242 8192000 500 \
        18446744073709551615 4096 1 1 0 0 0 0 0 0 0 0 0 0 17 1 0 0 0 0 0 0 0 0 0 0 0 0 0\n";

    #[test]
    fn what_the_kernel_does_not_tell_is_absent() {
        let (_root, mut source) = made_of(&[("stat", STAT), ("schedstat", "0 0 0\n")]);
        assert!(source.features().iter().any(|f| f.name == "lifecycle_events" && !f.enabled));
        source.track(MADE, 1, Role::Worker);
        for _ in 0..2 {
            let sample = sample_of(&pass(&mut source), MADE).expect("it is there");
            assert_eq!(sample.cpu, CpuTime { user_ns: 700_000_000, system_ns: 800_000_000 });
            let rss = sample.rss.expect("it has memory");
            assert_eq!((rss.total_bytes, rss.anonymous_bytes), (500 * 4096, None));
            assert_eq!((sample.run_delay_ns, sample.read_bytes, sample.written_bytes), (None, None, None));
        }
        assert!(source.features().iter().any(|f| f.name == "storage_io" && !f.enabled));
    }

    #[test]
    fn everything_there_is_is_told() {
        let (root, mut source) = made_of(&[
            ("stat", STAT),
            ("statm", "2000 600 100 1 0 300 0\n"),
            ("schedstat", "1512345678 77 9\n"),
            ("io", "rchar: 1\nread_bytes: 4096\nwrite_bytes: 8192\n"),
        ]);
        source.track(MADE, 1, Role::Worker);
        let sample = sample_of(&pass(&mut source), MADE).expect("it is there");
        assert_eq!(sample.cpu.total_ns(), 1_512_345_678);
        assert_eq!(
            (sample.run_delay_ns, sample.read_bytes, sample.written_bytes),
            (Some(77), Some(4096), Some(8192))
        );
        let rss = sample.rss.expect("it has memory");
        assert_eq!((rss.total_bytes, rss.anonymous_bytes), (600 * 4096, Some(500 * 4096)));
        // It did not run since, but its memory was taken away: seen within four passes.
        std::fs::write(root.path().join("42/statm"), "2000 550 100 1 0 300 0\n").expect("written");
        let mut sample = sample;
        for _ in 0..4 {
            sample = sample_of(&pass(&mut source), MADE).expect("it is there");
        }
        assert_eq!(sample.rss.map(|rss| rss.total_bytes), Some(550 * 4096));
        // It ran, and `stat` shows that memory came: seen at once.
        std::fs::write(root.path().join("42/statm"), "2000 560 100 1 0 300 0\n").expect("written");
        std::fs::write(root.path().join("42/stat"), STAT.replace(" 111 ", " 112 ")).expect("written");
        std::fs::write(root.path().join("42/schedstat"), "1512345679 77 10\n").expect("written");
        let sample = sample_of(&pass(&mut source), MADE).expect("it is there");
        assert_eq!(sample.rss.map(|rss| rss.total_bytes), Some(560 * 4096));
        assert_eq!(sample.minor_faults, 112);
    }

    #[test]
    fn nonsense_is_counted_and_is_no_end() {
        let (root, mut source) = made_of(&[("stat", STAT), ("schedstat", "1 2\n")]);
        source.track(MADE, 1, Role::Worker);
        let inputs = pass(&mut source);
        assert!(sample_of(&inputs, MADE).is_none() && inputs.iter().find_map(exit_of(MADE)).is_none());
        assert!(source.losses().contains(&("file_malformed", 1)), "{:?}", source.losses());
        std::fs::write(root.path().join("42/stat"), "42 (web").expect("written");
        let inputs = pass(&mut source);
        assert!(sample_of(&inputs, MADE).is_none() && inputs.iter().find_map(exit_of(MADE)).is_none());
    }

    #[test]
    fn polling_says_why_and_what_would_help() {
        let features = source(64).features();
        let lifecycle = features.iter().find(|f| f.name == "lifecycle_events").expect("listed");
        assert!(!lifecycle.enabled && !lifecycle.reason.is_empty() && !lifecycle.remedy.is_empty());
        let full = features.iter().filter(|f| !f.enabled);
        assert!(full.clone().all(|f| !f.reason.is_empty()), "{:?}", full.collect::<Vec<_>>());
    }

    #[test]
    fn lists_ourselves_as_the_kernel_does() {
        let mut source = source(64);
        let mut found = None;
        source.list(&mut |listed| {
            if listed.process.pid == std::process::id() {
                found = Some(listed);
            }
        });
        let listed = found.expect("we live");
        assert_eq!(listed.process, key_of(std::process::id()));
        assert_eq!(listed.parent, nix::unistd::getppid().as_raw().cast_unsigned());
        assert!(!listed.kernel_thread && !listed.zombie);
    }
}
