//! Pools: alone, with their workers, and what is added up over these.

use std::collections::BTreeMap;

use serde::{Serialize, Serializer};

use super::requests::{self, Requests, durations};
use super::runs::Runs;
use super::times::{Intervals, Quantiles, Schedule, recorded, windows};
use super::work::Work;
use super::worker::{Cpu, Storage, Worker};
use super::{Seconds, Time, finite};
use crate::histogram::Scratch;
use crate::snapshot::{self, Snapshot};
use crate::units::Pid;
use crate::worker::flags::Flag;
use crate::worker::matcher;

/// Workers without life that are listed one by one; all are counted.
const DEFUNCT_LISTED: usize = 100;

/// `ready`, `active`, `idle` and `utilization` are absent where nobody watches when workers wait for work; then those that
/// live are `running`.
#[derive(Serialize)]
pub(super) struct PoolSummary<'a> {
    name: &'a str,
    origin: &'a str,
    size: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    configured_size: Option<u32>,
    creating: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    ready: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    active: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    idle: Option<u32>,
    running: u32,
    total: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    stuck: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stale: Option<u32>,
    defunct: u32,
    awaiting_final_cpu: u32,
    unused: u32,
    /// `active` over `size`.
    #[serde(skip_serializing_if = "Option::is_none")]
    utilization: Option<f64>,
    /// What one piece of its work is: `runs`, `requests` or `spans`.
    #[serde(skip_serializing_if = "Option::is_none")]
    unit_of_work: Option<&'static str>,
    unlisted: u32,
    /// CPUs the workers used together in the last interval.
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu_utilization: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rss_bytes: Option<u64>,
    spawns_total: u64,
    exits_total: u64,
}

impl<'a> PoolSummary<'a> {
    pub(super) fn of(pool: &'a snapshot::Pool) -> Self {
        let total = pool.states.total();
        let known = |count: u32| pool.work_known.then_some(count);
        let flagged = |flag: Flag| {
            pool.by_flag(pool.flags).find_map(|(name, count)| (name == flag.as_str()).then_some(count))
        };
        Self {
            name: &pool.name,
            origin: &pool.origin,
            size: pool.size,
            configured_size: pool.configured_size,
            creating: pool.states.creating,
            ready: known(pool.states.ready),
            active: known(pool.states.active),
            idle: known(pool.states.idle),
            running: pool.states.running,
            total,
            stuck: flagged(Flag::Stuck),
            stale: flagged(Flag::Stale),
            defunct: pool.flags.defunct,
            awaiting_final_cpu: pool.awaiting_final_cpu,
            unused: pool.size.saturating_sub(total),
            utilization: pool.utilization().and_then(finite),
            unit_of_work: pool.unit_of_work().map(matcher::Work::as_str),
            unlisted: pool.unlisted,
            cpu_utilization: pool_utilization(pool),
            rss_bytes: pool.rss_bytes,
            spawns_total: pool.spawns_total,
            exits_total: pool.exits.total(),
        }
    }
}

/// The sum over workers: 0 without any, unknown if not all are listed or none has been read twice.
fn pool_utilization(pool: &snapshot::Pool) -> Option<f64> {
    if pool.unlisted > 0 {
        return None;
    }
    let mut known = pool.workers.iter().filter_map(|w| w.reading.as_ref()?.cpu_utilization).peekable();
    if known.peek().is_none() && !pool.workers.is_empty() {
        return None;
    }
    // An empty sum of floats is -0.0.
    finite(known.fold(0.0, |sum, share| sum + share))
}

#[derive(Serialize)]
pub(super) struct PoolStats<'a> {
    #[serde(flatten)]
    summary: PoolSummary<'a>,
    totals: Totals,
    masters: Vec<Master<'a>>,
    /// Workers that were given a flag since start, by flag.
    flag_entries: BTreeMap<&'static str, u32>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    defunct_workers: Vec<Defunct>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    accept_queues: Vec<AcceptQueue<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    schedule: Option<Schedule>,
    #[serde(skip_serializing_if = "Option::is_none")]
    work: Option<Work>,
    #[serde(skip_serializing_if = "Option::is_none")]
    requests: Option<Requests>,
    #[serde(skip_serializing_if = "Option::is_none")]
    runs: Option<Runs<'a>>,
    /// By account of the kernel's that has it while ours has not.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    unattributed_cpu_seconds: BTreeMap<&'static str, Seconds>,
    quantiles: Quantiles,
    workers: Workers<'a>,
}

/// Turned into wire types one by one while they are written: a list of all would be larger than the snapshot.
struct Workers<'a> {
    pool: &'a snapshot::Pool,
    snapshot: &'a Snapshot,
}

impl Serialize for Workers<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let workers = &self.pool.workers;
        let mut scratch = Scratch::new();
        let worker = |worker| Worker::of(self.pool, worker, self.snapshot, &mut scratch);
        serializer.collect_seq(workers.iter().map(worker))
    }
}

impl<'a> PoolStats<'a> {
    pub(super) fn of(pool: &'a snapshot::Pool, snapshot: &'a Snapshot) -> Self {
        Self {
            summary: PoolSummary::of(pool),
            totals: Totals {
                spawns: pool.spawns_total,
                exits: pool.exits.by_reason().into_iter().collect(),
                cpu: Cpu::of(pool.cpu),
                run_delay_seconds: pool.run_delay_ns.map(Seconds),
                storage: Storage::of(pool.read_bytes, pool.written_bytes),
            },
            masters: pool.masters.iter().map(Master::of).collect(),
            flag_entries: pool.by_flag(pool.flagged).collect(),
            defunct_workers: pool.defunct.iter().take(DEFUNCT_LISTED).map(Defunct::of).collect(),
            accept_queues: pool.accept_queues.iter().map(AcceptQueue::of).collect(),
            schedule: pool.schedule.as_ref().map(Schedule::of_pool),
            work: pool.schedule.as_ref().map(|schedule| Work::of_pool(&schedule.work)),
            requests: Requests::of_pool(pool, snapshot),
            runs: pool.runs.as_ref().map(Runs::of),
            unattributed_cpu_seconds: pool.unattributed_cpu_ns().map(|(by, ns)| (by, Seconds(ns))).collect(),
            quantiles: Quantiles {
                cpu_utilization: windows(&pool.cpu_utilization),
                worker_rss_bytes: windows(&pool.worker_rss_bytes),
                lifetime_seconds: windows(&pool.lifetime_seconds),
                span_seconds: pool
                    .schedule
                    .as_ref()
                    .and_then(|schedule| Some(windows(schedule.work.span_seconds.as_ref()?))),
                request_duration_seconds: pool.schedule.as_ref().and_then(durations),
                request_time_seconds: pool.schedule.as_ref().and_then(requests::times),
                spawn_to_ready_seconds: pool
                    .schedule
                    .as_ref()
                    .map(|schedule| windows(&schedule.work.spawn_to_ready_seconds)),
                spawn_to_first_request_seconds: pool
                    .schedule
                    .as_ref()
                    .and_then(|schedule| schedule.requests.as_ref())
                    .map(|requests| windows(&requests.spawn_to_first_request_seconds)),
                accept_wait_seconds: pool
                    .schedule
                    .as_ref()
                    .and_then(|schedule| schedule.requests.as_ref()?.accept_wait_seconds.as_deref())
                    .and_then(recorded),
                intervals: pool
                    .schedule
                    .as_ref()
                    .and_then(|schedule| schedule.intervals.as_ref())
                    .map(|of_kinds| Intervals::of(|kind| recorded(of_kinds.get(kind)?))),
            },
            workers: Workers { pool, snapshot },
        }
    }
}

/// A worker that ended and was not reaped.
#[derive(Serialize)]
struct Defunct {
    pid: Pid,
    since: Time,
}

impl Defunct {
    fn of((pid, ended_unix_ns): &(Pid, u64)) -> Self {
        Self { pid: *pid, since: Time(*ended_unix_ns) }
    }
}

/// Since the collector started.
#[derive(Serialize)]
pub(super) struct Totals {
    spawns: u64,
    exits: BTreeMap<&'static str, u64>,
    cpu: Cpu,
    #[serde(skip_serializing_if = "Option::is_none")]
    run_delay_seconds: Option<Seconds>,
    #[serde(skip_serializing_if = "Option::is_none")]
    storage: Option<Storage>,
}

#[derive(Serialize)]
struct Master<'a> {
    pid: Pid,
    comm: &'a str,
    started: Time,
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu: Option<Cpu>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rss_bytes: Option<u64>,
}

impl<'a> Master<'a> {
    pub(super) fn of(master: &'a snapshot::Master) -> Self {
        Self {
            pid: master.pid,
            comm: &master.comm,
            started: Time(master.started_unix_ns),
            cpu: master.cpu.map(Cpu::of),
            rss_bytes: master.rss_bytes,
        }
    }
}

/// Where a pool listens.
#[derive(Serialize)]
struct AcceptQueue<'a> {
    address: &'a str,
    family: &'static str,
    sockets: u32,
    length: u64,
    limit: u64,
}

impl<'a> AcceptQueue<'a> {
    pub(super) fn of(queue: &'a snapshot::AcceptQueue) -> Self {
        Self {
            address: &queue.address,
            family: queue.family.as_str(),
            sockets: queue.sockets,
            length: queue.length,
            limit: queue.limit,
        }
    }
}
