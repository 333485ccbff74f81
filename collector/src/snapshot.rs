//! The immutable view that every reader gets: plain data, no methods that look anything up.
//!
//! The aggregator builds one per collection and publishes it behind an `Arc`; a reader holds it as long as it
//! likes and never waits. `None` means "this host, this source or our rights do not tell", never 0.

use std::sync::Arc;

use collector_ebpf::request::OUTCOMES;
use collector_ebpf::schedule::KINDS;

use crate::input::{Doing, ExitStatus, Profile, Sender, SlowRequest, SocketFamily, TaskState};
use crate::units::{CpuTime, Pid};
use crate::worker::flags::{Flag, Limits};
use crate::worker::matcher;
use crate::worker::requests;
use crate::worker::runs;
use crate::worker::schedule::WorkerSchedule;
use crate::worker::state::TIMED;

/// Everything there is to show at one moment.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// When it was taken, nanoseconds since the Unix epoch.
    pub at_unix_ns: u64,
    /// When collection began, nanoseconds since the Unix epoch.
    pub started_unix_ns: u64,
    /// Where the time of workers' threads went, by [`Worker::record`]; `None` where that is not watched.
    pub schedules: Vec<Option<Arc<WorkerSchedule>>>,
    /// When their totals were taken, `CLOCK_MONOTONIC` ns.
    pub schedules_at_ns: u64,
    /// What `CLOCK_MONOTONIC` lacks to the time since the Unix epoch, ns.
    pub unix_minus_monotonic: i64,
    /// Where the facts come from: `ebpf` or `procfs`.
    pub source: &'static str,
    /// What this kernel and these rights allow, feature by feature.
    pub features: Arc<[Feature]>,
    /// Pools in the order of their names.
    pub pools: Vec<Pool>,
    /// The last deaths, newest first; each pool has its share of them, also after it was dropped.
    pub exits: Vec<Arc<DeathCertificate>>,
    /// Deaths since start, also those that have left the list above.
    pub exits_total: u64,
    /// What collecting costs and what was lost.
    pub own: Own,
}

/// One thing the product can or cannot do here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Feature {
    /// A stable name, e.g. `lifecycle_events`.
    pub name: &'static str,
    /// Works here.
    pub enabled: bool,
    /// Why not, or in what reduced way; empty when it works in full.
    pub reason: String,
    /// What would bring it (a capability, a sysctl, a kernel version); empty when nothing is missing.
    pub remedy: String,
}

/// Number of living workers by state; a worker is in exactly one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StateCounts {
    /// [`WorkerState::Creating`]
    pub creating: u32,
    /// [`WorkerState::Ready`]
    pub ready: u32,
    /// [`WorkerState::Active`]
    pub active: u32,
    /// [`WorkerState::Idle`]
    pub idle: u32,
    /// [`WorkerState::Running`]
    pub running: u32,
}

impl StateCounts {
    /// One more in this state. The dead are not counted.
    pub fn add(&mut self, state: WorkerState) {
        let count = match state {
            WorkerState::Creating => &mut self.creating,
            WorkerState::Ready => &mut self.ready,
            WorkerState::Active => &mut self.active,
            WorkerState::Idle => &mut self.idle,
            WorkerState::Running => &mut self.running,
            WorkerState::Terminated => return,
        };
        *count += 1;
    }

    /// Those of some workers and those of others.
    pub fn plus(self, other: Self) -> Self {
        Self {
            creating: self.creating + other.creating,
            ready: self.ready + other.ready,
            active: self.active + other.active,
            idle: self.idle + other.idle,
            running: self.running + other.running,
        }
    }

    /// All of them.
    pub fn total(&self) -> u32 {
        self.creating + self.ready + self.active + self.idle + self.running
    }
}

/// Number of workers by flag.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlagCounts {
    /// [`Flag::Stuck`]
    pub stuck: u32,
    /// [`Flag::Stale`]
    pub stale: u32,
    /// [`Flag::Defunct`]
    pub defunct: u32,
}

impl FlagCounts {
    /// One more with this flag.
    pub fn add(&mut self, flag: Flag) {
        let count = match flag {
            Flag::Stuck => &mut self.stuck,
            Flag::Stale => &mut self.stale,
            Flag::Defunct => &mut self.defunct,
        };
        *count = count.saturating_add(1);
    }
}

/// A flag of a worker.
#[derive(Clone, Debug)]
pub struct Flagged {
    /// Which.
    pub flag: Flag,
    /// Since when, nanoseconds since the Unix epoch.
    pub since_unix_ns: u64,
    /// What it was doing when that was noticed, of a stuck one.
    pub doing: Option<Arc<Doing>>,
}

/// Why workers left, counted since start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExitCounts {
    /// exit(0).
    pub success: u64,
    /// exit with another code.
    pub error: u64,
    /// Killed by a signal, the OOM killer apart.
    pub signal: u64,
    /// Chosen by the OOM killer.
    pub oom: u64,
    /// Vanished, and the source cannot tell how.
    pub unknown: u64,
    /// Alive, but no longer a worker of this pool (it ran another program or took another name).
    pub reclassified: u64,
}

impl ExitCounts {
    /// Label values with their counts, in a fixed order.
    pub fn by_reason(&self) -> [(&'static str, u64); 6] {
        [
            ("success", self.success),
            ("error", self.error),
            ("signal", self.signal),
            ("oom", self.oom),
            ("unknown", self.unknown),
            ("reclassified", self.reclassified),
        ]
    }

    /// All reasons together.
    pub fn total(&self) -> u64 {
        self.by_reason().iter().map(|(_, n)| n).sum()
    }
}

/// A pool of workers.
#[derive(Clone, Debug)]
pub struct Pool {
    /// Unique name. Any Unicode text.
    pub name: Arc<str>,
    /// What the source knows it by.
    pub number: u32,
    /// What made it a pool: `config`, `recognized:nginx`, `zero-config`.
    pub origin: Arc<str>,
    /// Masters alive now (a pool can have several during an upgrade, or none).
    pub masters: Vec<Master>,
    /// The configured number of workers, where it is known from the rule, argv or the program's configuration.
    pub configured_size: Option<u32>,
    /// `configured_size`, otherwise the number of living workers.
    pub size: u32,
    /// Living workers by state.
    pub states: StateCounts,
    /// It is known when they wait for work: the scheduler is watched for them now.
    pub work_known: bool,
    /// Workers with a flag now. Whether a worker is stuck or stale is known where [`Self::limits`] and
    /// [`Self::work_known`] say so.
    pub flags: FlagCounts,
    /// Workers that were given a flag since start.
    pub flagged: FlagCounts,
    /// How long a worker may be in one state.
    pub limits: Limits,
    /// Workers that ended and that their parent has not reaped: pid, and when they ended, nanoseconds since the Unix
    /// epoch.
    pub defunct: Vec<(Pid, u64)>,
    /// Workers that ended and whose final figures have not come: those that are not reaped, and those that the kernel is
    /// about to let go of.
    pub awaiting_final_cpu: u32,
    /// Workers without a series of their own, because the pool has more than the ceiling.
    pub unlisted: u32,
    /// Workers forked since start (those that lived already are not in it).
    pub spawns_total: u64,
    /// Workers that left since start.
    pub exits: ExitCounts,
    /// CPU used by workers while watched, living and dead, since start.
    pub cpu: CpuTime,
    /// Time workers waited runnable for a CPU, ns, since start; `None` where no worker's was readable.
    pub run_delay_ns: Option<u64>,
    /// Bytes read from storage by workers while watched; `None` where unreadable.
    pub read_bytes: Option<u64>,
    /// Bytes written to storage by workers while watched; `None` where unreadable.
    pub written_bytes: Option<u64>,
    /// Resident memory of living workers together, bytes; `None` if no living worker's was readable, 0 without any.
    /// Pages shared between workers count once per worker.
    pub rss_bytes: Option<u64>,
    /// CPU used by a worker in one interval, as a share of one CPU (1.0 = a full core).
    pub cpu_utilization: Distribution,
    /// Resident memory of one worker, bytes, one value per worker and interval.
    pub worker_rss_bytes: Distribution,
    /// Age of workers when they ended, seconds.
    pub lifetime_seconds: Distribution,
    /// Where the time of its workers' threads went; `None` where the scheduler is not watched for this pool.
    pub schedule: Option<Schedule>,
    /// Its workers' lives as runs; `None` where they are not its work.
    pub runs: Option<runs::View>,
    /// Where its masters and workers listen, by address; empty if they do not, or not in our network namespace, and where
    /// that cannot be told.
    pub accept_queues: Arc<[AcceptQueue]>,
    /// CPU that was charged to the pool's control group and that neither workers nor masters have used, ns,
    /// while all of its processes were those of the pool; `None` until they have been.
    pub unattributed_cgroup_cpu_ns: Option<u64>,
    /// Living workers, by slot, at most the ceiling of series.
    pub workers: Workers,
}

impl Pool {
    /// What one piece of its work is: as configured, else requests if there have been any, else spans; `None` where nobody
    /// watches.
    pub fn unit_of_work(&self) -> Option<matcher::Work> {
        if self.runs.is_some() {
            return Some(matcher::Work::Runs);
        }
        let schedule = self.schedule.as_ref()?;
        let asked = |requests: &Requests| requests.total.count() > 0 || requests.total.in_flight > 0;
        let requests = schedule.requests.as_ref().is_some_and(asked);
        Some(if requests { matcher::Work::Requests } else { matcher::Work::Spans })
    }

    /// Which part of its places works now, from 0; above 1 if there are more workers than that. `None` where it is not
    /// known when they wait for work, and for a pool of no size.
    pub fn utilization(&self) -> Option<f64> {
        (self.work_known && self.size > 0).then(|| f64::from(self.states.active) / f64::from(self.size))
    }

    /// Counts by flag, of flags that are given here.
    pub fn by_flag(&self, counts: FlagCounts) -> impl Iterator<Item = (&'static str, u32)> {
        let stuck = (self.work_known && self.limits.stuck_after_ns.is_some()).then_some(counts.stuck);
        let stale = (self.work_known && self.limits.idle_ttl_ns.is_some()).then_some(counts.stale);
        let all = [(Flag::Stuck, stuck), (Flag::Stale, stale), (Flag::Defunct, Some(counts.defunct))];
        all.into_iter().filter_map(|(flag, count)| Some((flag.as_str(), count?)))
    }

    /// CPU that an account of the kernel's has and ours has not, ns, by account, where the two are compared.
    pub fn unattributed_cpu_ns(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let process = self.schedule.as_ref().map(|schedule| schedule.unattributed_cpu_ns);
        let accounts = [("process", process), ("cgroup", self.unattributed_cgroup_cpu_ns)];
        accounts.into_iter().filter_map(|(account, ns)| Some((account, ns?)))
    }
}

/// Workers by slot, in pieces that snapshots share as long as nothing in them changes.
#[derive(Clone, Debug, Default)]
pub struct Workers {
    pieces: Vec<Arc<[Worker]>>,
    count: usize,
}

impl Workers {
    /// Adds a piece; its slots are beyond those that are there.
    pub fn push(&mut self, piece: Arc<[Worker]>) {
        self.count += piece.len();
        self.pieces.push(piece);
    }

    /// Number of workers.
    pub fn len(&self) -> usize {
        self.count
    }

    /// There is none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// All.
    pub fn iter(&self) -> WorkersIter<'_> {
        self.pieces.iter().flat_map(|piece| piece.iter())
    }
}

/// See [`Workers::iter`].
pub type WorkersIter<'a> = std::iter::FlatMap<
    std::slice::Iter<'a, Arc<[Worker]>>,
    std::slice::Iter<'a, Worker>,
    fn(&'a Arc<[Worker]>) -> std::slice::Iter<'a, Worker>,
>;

impl<'a> IntoIterator for &'a Workers {
    type Item = &'a Worker;
    type IntoIter = WorkersIter<'a>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl From<Vec<Worker>> for Workers {
    fn from(workers: Vec<Worker>) -> Self {
        let count = workers.len();
        Self { pieces: vec![workers.into()], count }
    }
}

impl FromIterator<Worker> for Workers {
    fn from_iter<I: IntoIterator<Item = Worker>>(workers: I) -> Self {
        workers.into_iter().collect::<Vec<_>>().into()
    }
}

/// Where the time of a pool's threads went while they were followed, living and dead workers, since start.
#[derive(Clone, Debug)]
pub struct Schedule {
    /// By kind of time ([`crate::input::TIME_KINDS`]), ns, intervals that are not over included.
    pub time_ns: [u64; KINDS],
    /// How long threads were followed, ns, all together: what the times add up to but for what is not known.
    pub lived_ns: u64,
    /// CPU that the kernel accounted to workers and that is in none of the times, ns.
    pub unattributed_cpu_ns: u64,
    /// Lengths of intervals in seconds, by kind of time; `None` where they are not measured.
    pub intervals: Option<[Arc<Distribution>; KINDS]>,
    /// How much of the time they worked.
    pub work: Work,
    /// What they were asked; `None` where that is not watched.
    pub requests: Option<Requests>,
}

/// What a pool's workers were asked while they were watched, living and dead, since start.
#[derive(Clone, Debug)]
pub struct Requests {
    /// How many requests and bytes.
    pub total: requests::Requests,
    /// They are followed now; if not, none is known to be in flight, nor that there is none.
    pub followed: bool,
    /// From the fork of a worker to its first request, seconds.
    pub spawn_to_first_request_seconds: Arc<Distribution>,
    /// From the establishing of a TCP connection to its first bytes being read, seconds, of clients that sent them at
    /// once; `None` where that is not measured.
    pub accept_wait_seconds: Option<Arc<Distribution>>,
    /// `None` where that is not measured.
    pub waterfall: Option<Waterfall>,
    /// That is because all that there can be are other pools'.
    pub no_waterfall_left: bool,
    /// How long requests took, seconds, by outcome ([`crate::input::REQUEST_OUTCOMES`]); `None` where that is not measured.
    pub seconds: Option<[Arc<Distribution>; OUTCOMES]>,
}

/// Where the time of requests went that had the thread to themselves that they began on, since start.
#[derive(Clone, Debug)]
pub struct Waterfall {
    /// How many there were.
    pub requests: u64,
    /// Of so many that have ended in this time.
    pub of_requests: u64,
    /// How long they took, together, ns.
    pub duration_ns: u64,
    /// Where their threads were meanwhile, by kind of time, ns; adds up to `duration_ns`.
    pub time_ns: [u64; KINDS],
    /// Time of a request in a kind, seconds, by kind; those that were not in it are there with 0.
    pub seconds: [Arc<Distribution>; KINDS],
    /// Which took longest.
    pub slowest: Arc<Slowest>,
}

/// The slowest requests by window, the slowest first.
pub type Slowest = Vec<(&'static str, Vec<SlowRequest>)>;

impl Snapshot {
    /// Where the time of a worker's threads went; `None` where that is not watched.
    pub fn schedule_of(&self, worker: &Worker) -> Option<&WorkerSchedule> {
        let record = usize::try_from(worker.record?).ok()?;
        self.schedules.get(record)?.as_deref()
    }

    /// What a worker was asked; `None` where that is not watched.
    pub fn requests_of(&self, worker: &Worker) -> Option<&requests::Requests> {
        self.schedule_of(worker)?.requests()
    }
}

/// What a pool's workers have done while they were watched, living and dead, since start.
#[derive(Clone, Debug)]
pub struct Work {
    /// Time in the states of [`TIMED`], ns, all workers together.
    pub state_ns: [u64; TIMED.len()],
    /// Spans that have ended: from the moment in which a worker ceases to wait for work until it waits again.
    pub spans: u64,
    /// How long they were, seconds; `None` where that is not measured.
    pub span_seconds: Option<Arc<Distribution>>,
    /// From fork to the first wait for work, seconds.
    pub spawn_to_ready_seconds: Arc<Distribution>,
    /// Time that workers were active over the size of the pool, by window; absent before a collection lies in it.
    pub utilization: Vec<(&'static str, f64)>,
}

/// The sockets of a pool that listen at one address, and what waits there to be accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcceptQueue {
    /// As [`crate::input::SocketAddress`] is shown.
    pub address: Arc<str>,
    /// What they are.
    pub family: SocketFamily,
    /// How many; with SO_REUSEPORT there can be several.
    pub sockets: u32,
    /// Established connections that nobody has accepted, at all of them.
    pub length: u64,
    /// The backlogs of all of them.
    pub limit: u64,
}

/// A process that forks the workers of a pool.
#[derive(Clone, Debug)]
pub struct Master {
    /// Its pid.
    pub pid: Pid,
    /// Its `comm`, arbitrary bytes shown as text.
    pub comm: Arc<str>,
    /// When it started, nanoseconds since the Unix epoch.
    pub started_unix_ns: u64,
    /// CPU it has used since it started; `None` before the first reading.
    pub cpu: Option<CpuTime>,
    /// Its resident memory, bytes.
    pub rss_bytes: Option<u64>,
}

/// The life of a worker. [`crate::worker::state`] says what leads from one state to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkerState {
    /// Forked, and has not waited for work yet; where nobody watches what it waits for: not yet seen to run on its own.
    Creating,
    /// Waits for its first work.
    Ready,
    /// Works.
    Active,
    /// Waits for more work.
    Idle,
    /// Alive; nobody watches whether it works.
    Running,
    /// Ended.
    Terminated,
}

impl WorkerState {
    /// The label value and JSON text.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Ready => "ready",
            Self::Active => "active",
            Self::Idle => "idle",
            Self::Running => "running",
            Self::Terminated => "terminated",
        }
    }
}

/// One living worker.
#[derive(Clone, Debug)]
pub struct Worker {
    /// Its place in the pool, from 0; a successor takes it over.
    pub slot: u32,
    /// How many workers have had this slot, from 1.
    pub generation: u32,
    /// Its pid.
    pub pid: Pid,
    /// Its parent's pid.
    pub parent: Pid,
    /// Its `comm`, arbitrary bytes shown as text (invalid UTF-8 replaced).
    pub comm: Arc<str>,
    /// What it serves, where a rule or recognizer says so.
    pub app: Option<Arc<str>>,
    /// State.
    pub state: WorkerState,
    /// When it entered the state, nanoseconds since the Unix epoch.
    pub since_unix_ns: u64,
    /// It has been in this state for too long.
    pub flag: Option<Flagged>,
    /// When it started, nanoseconds since the Unix epoch.
    pub started_unix_ns: u64,
    /// Cumulative figures; `None` before the first reading.
    pub reading: Option<Reading>,
    /// The number of its kernel record, where it has one: its place in [`Snapshot::schedules`].
    pub record: Option<u32>,
}

/// The latest figures of a worker.
#[derive(Clone, Debug)]
pub struct Reading {
    /// CPU since it started.
    pub cpu: CpuTime,
    /// CPU used in the last interval as a share of one CPU; `None` until there are two readings.
    pub cpu_utilization: Option<f64>,
    /// Resident memory.
    pub rss: Option<crate::input::Rss>,
    /// Living threads.
    pub threads: u32,
    /// Faults served without IO, since it started.
    pub minor_faults: u64,
    /// Faults that needed IO, since it started.
    pub major_faults: u64,
    /// Voluntary context switches since it started.
    pub voluntary_switches: Option<u64>,
    /// Involuntary context switches since it started.
    pub involuntary_switches: Option<u64>,
    /// Time waited runnable for a CPU since it started, ns.
    pub run_delay_ns: Option<u64>,
    /// Bytes read from storage since it started.
    pub read_bytes: Option<u64>,
    /// Bytes written to storage since it started.
    pub written_bytes: Option<u64>,
    /// State of its main thread.
    pub task_state: TaskState,
}

/// A histogram as readers get it: buckets since start, quantiles by window.
#[derive(Clone, Debug, Default)]
pub struct Distribution {
    /// Upper bounds (inclusive) of the classic buckets, ascending, without `+Inf`; in the unit of the metric.
    pub bounds: &'static [f64],
    /// Cumulative counts for `bounds`; as long as `bounds`.
    pub cumulative: Vec<u64>,
    /// All values since start, those beyond the last bound included.
    pub count: u64,
    /// Their sum.
    pub sum: f64,
    /// Values that could not be used (negative, absurd), counted and left out.
    pub discarded: u64,
    /// Counts since start by bucket of [`collector_ebpf::histogram`], ascending; they add up to `count`.
    pub buckets: Arc<Vec<(u16, u64)>>,
    /// What the values in `buckets` were multiplied by.
    pub per_unit: f64,
    /// Quantiles by window; a window without values is absent.
    pub windows: Vec<WindowQuantiles>,
}

/// Quantiles of one window. Each is within 1.6 % of a value that really occurred.
#[derive(Clone, Debug)]
pub struct WindowQuantiles {
    /// `1m`, `5m` or `start`.
    pub window: &'static str,
    /// Values in the window.
    pub count: u64,
    /// The median.
    pub p50: f64,
    /// 90 % are at most this.
    pub p90: f64,
    /// 95 % are at most this.
    pub p95: f64,
    /// 99 % are at most this.
    pub p99: f64,
    /// 99.9 % are at most this.
    pub p999: f64,
    /// The largest.
    pub max: f64,
    /// Used values over all that were seen (used + discarded), 0–1.
    pub coverage: f64,
}

/// What is known about a worker's end.
#[derive(Clone, Debug)]
pub struct DeathCertificate {
    /// Ever rising number of the death, from 1.
    pub sequence: u64,
    /// Its pool.
    pub pool: Arc<str>,
    /// Its slot.
    pub slot: u32,
    /// Its generation.
    pub generation: u32,
    /// Its pid.
    pub pid: Pid,
    /// Its `comm`.
    pub comm: Arc<str>,
    /// What it served.
    pub app: Option<Arc<str>>,
    /// How it ended.
    pub status: ExitStatus,
    /// Who sent the signal.
    pub sender: Option<Sender>,
    /// Chosen by the OOM killer; `None` where the source cannot tell.
    pub oom_killed: Option<bool>,
    /// When it started, nanoseconds since the Unix epoch.
    pub started_unix_ns: u64,
    /// When it ended, nanoseconds since the Unix epoch.
    pub ended_unix_ns: u64,
    /// Age at the end, ns.
    pub lifetime_ns: u64,
    /// Lifetime CPU; `None` where the source cannot tell.
    pub cpu: Option<CpuTime>,
    /// `cpu` includes the tearing down of its memory: nothing can be added any more.
    pub cpu_final: bool,
    /// Largest resident set, bytes.
    pub peak_rss_bytes: Option<u64>,
    /// The state it was in before it ended.
    pub last_state: WorkerState,
}

/// Our own cost and losses, as totals since start unless said otherwise.
#[derive(Clone, Debug, Default)]
pub struct Own {
    /// What profiles of workers cost; `None` if there can be none here.
    pub profiling: Option<Profiling>,
    /// CPU of this process, `getrusage(RUSAGE_SELF)`.
    pub cpu: CpuTime,
    /// Our resident memory, bytes, now.
    pub rss_bytes: Option<u64>,
    /// Our virtual memory, bytes, now.
    pub virtual_bytes: Option<u64>,
    /// Descriptors open now.
    pub open_fds: Option<u64>,
    /// Limit of descriptors.
    pub max_fds: Option<u64>,
    /// Memory of our kernel maps, bytes (`memlock` in their fdinfo).
    pub map_bytes: Option<u64>,
    /// Passes over all tracked processes.
    pub passes: u64,
    /// CPU time of the collecting thread spent in passes, ns.
    pub pass_cpu_ns: u64,
    /// CPU time of the collecting thread spent draining and applying events, ns.
    pub event_cpu_ns: u64,
    /// Lifecycle events by kind: counted by the kernel, delivered to us, lost between.
    pub events: Vec<EventCounts>,
    /// Things that went wrong and cost a fact, by reason.
    pub losses: Vec<(&'static str, u64)>,
    /// Runs and run time by BPF program; empty unless the kernel keeps them (`kernel.bpf_stats_enabled`).
    pub programs: Vec<ProgramCost>,
    /// How full our kernel maps are.
    pub maps: Vec<MapFill>,
    /// The scheduler probes; `None` where there are none.
    pub scheduler: Option<SchedulerCost>,
    /// Processes known now.
    pub processes: u64,
    /// Configuration was loaded at, nanoseconds since the Unix epoch; `None` for the built-in defaults.
    pub config_loaded_unix_ns: Option<u64>,
    /// The last reload succeeded.
    pub config_last_reload_successful: bool,
}

/// What profiles of workers cost, as totals since start unless said otherwise.
#[derive(Clone, Copy, Debug)]
pub struct Profiling {
    /// Since when profiles are kept, those of requests that were slow among them, nanoseconds since the Unix epoch; `None` if they
    /// are not.
    pub kept_since_unix_ns: Option<u64>,
    /// Captures that somebody asked for and that have begun.
    pub captures: u64,
    /// Samples, and waits, that there was no room for in a profile, or that were not seen to their end; those of two captures at a time
    /// count for both.
    pub lost: u64,
    /// Waits that were not looked at, long or not, as there were too many.
    pub passed_over: u64,
    /// Memory that kept profiles take now, bytes, about; `None` if none are kept.
    pub kept_bytes: Option<u64>,
    /// CPU time of the profiling thread, ns. What sampling itself takes is not in it.
    pub cpu_ns: u64,
}

/// How full a kernel map is.
#[derive(Clone, Copy, Debug)]
pub struct MapFill {
    /// What its entries are: `slots`, `threads`, `histogram_chunks`.
    pub name: &'static str,
    /// In use, or handed out and never given back.
    pub entries: u64,
    /// There are.
    pub capacity: u64,
}

/// What the scheduler probes cost, and may cost.
#[derive(Clone, Copy, Debug)]
pub struct SchedulerCost {
    /// Share of one CPU that they may take; `None` for no limit.
    pub budget: Option<f64>,
    /// Share of one CPU that they took in the last second, from a sample of their runs; `None` before it is known.
    pub share: Option<f64>,
    /// The most that any pool gets for now: less than histograms is degraded.
    pub ceiling: Profile,
}

/// Counts of one kind of lifecycle event.
#[derive(Clone, Copy, Debug)]
pub struct EventCounts {
    /// `fork`, `exec`, `rename`, `exit`, `reap`.
    pub kind: &'static str,
    /// The kernel side saw this many.
    pub counted: u64,
    /// We were handed this many.
    pub delivered: u64,
    /// No room in the ring buffer for this many.
    pub lost: u64,
}

/// What one BPF program cost.
#[derive(Clone, Debug)]
pub struct ProgramCost {
    /// Program name.
    pub name: &'static str,
    /// Times it ran.
    pub runs: u64,
    /// Time it ran, ns (the statistics themselves cost about 44 ns of each run).
    pub run_time_ns: u64,
}
