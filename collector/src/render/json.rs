//! A snapshot as the documents of `/api/v1`: the wire types and what fills them.
//!
//! Names are snake_case and carry their unit, times are RFC 3339 in UTC, and what is unknown is absent. Numbers that
//! JSON cannot write (infinities, NaN) count as unknown. The types only borrow: a document costs its bytes.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io;

use collector_ebpf::schedule::{DISK, KINDS, ON_CPU, RUNNABLE};
use jiff::Timestamp;
use serde::{Serialize, Serializer};

use crate::histogram::Scratch;
use crate::input::{ExitStatus, Sender, TIME_KINDS};
use crate::snapshot::{self, DeathCertificate, Distribution, Snapshot};
use crate::units::{CpuTime, NANOS_PER_SECOND, Pid};
use crate::worker::runs::{self, Outcome};
use crate::worker::schedule::WorkerSchedule;

/// `/api/v1/summary`: pools without their workers.
pub fn summary(snapshot: &Snapshot) -> Vec<u8> {
    bytes(&Summary { head: Head::of(snapshot), pools: snapshot.pools.iter().map(PoolSummary::of).collect() })
}

/// `/api/v1/stats`: everything but the deaths, worker by worker.
///
/// It is large, so it goes to a writer, in many small pieces; an error of the writer ends the document early.
pub fn stats(snapshot: &Snapshot, out: &mut impl io::Write) {
    let pools = snapshot.pools.iter().map(|pool| PoolStats::of(pool, snapshot)).collect();
    write(&Stats { head: Head::of(snapshot), pools, collector: Collector::of(snapshot) }, out);
}

/// `/api/v1/pools/{pool}`: one pool of `stats`; `None` if there is none of this name.
pub fn pool(snapshot: &Snapshot, name: &str) -> Option<Vec<u8>> {
    let pool = snapshot.pools.iter().find(|pool| &*pool.name == name)?;
    Some(bytes(&OnePool { head: Head::of(snapshot), pool: PoolStats::of(pool, snapshot) }))
}

/// `/api/v1/workers/{pool}/{slot}`: one worker of `stats`; `None` if nobody listed has the slot now.
pub fn worker(snapshot: &Snapshot, pool: &str, slot: u32) -> Option<Vec<u8>> {
    let pool = snapshot.pools.iter().find(|p| &*p.name == pool)?;
    let worker = pool.workers.iter().find(|worker| worker.slot == slot)?;
    let mut scratch = Scratch::new();
    let worker = Worker::of(&pool.name, worker, snapshot, &mut scratch);
    Some(bytes(&OneWorker { head: Head::of(snapshot), pool: &pool.name, worker }))
}

/// `/api/v1/exits`: death certificates, newest first, at most `limit`, of one pool or of all; `None` if there is neither
/// a pool of this name nor a certificate of one.
pub fn exits(snapshot: &Snapshot, pool: Option<&str>, limit: usize) -> Option<Vec<u8>> {
    if let Some(name) = pool
        && !snapshot.pools.iter().any(|pool| *pool.name == *name)
        && !snapshot.exits.iter().any(|exit| *exit.pool == *name)
    {
        return None;
    }
    Some(bytes(&Exits {
        head: Head::of(snapshot),
        total: snapshot.exits_total,
        kept: snapshot.exits.len(),
        exits: snapshot
            .exits
            .iter()
            .filter(|exit| pool.is_none_or(|pool| &*exit.pool == pool))
            .take(limit)
            .map(|exit| Exit::of(exit))
            .collect(),
    }))
}

/// Any serializable value of this module, as JSON with a newline at its end.
fn bytes(value: &impl Serialize) -> Vec<u8> {
    let mut out = Vec::new();
    write(value, &mut out);
    out.shrink_to_fit();
    out
}

fn write(value: &impl Serialize, out: &mut impl io::Write) {
    // Maps have string keys and memory takes every byte: neither way to fail exists.
    let _ = serde_json::to_writer(&mut *out, value);
    let _ = out.write_all(b"\n");
}

/// Nanoseconds since the Unix epoch, shown as RFC 3339.
struct Time(u64);

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // In range until the year 9999, and a `u64` ends in 2554.
        serializer.collect_str(&Timestamp::from_nanosecond(i128::from(self.0)).unwrap_or_default())
    }
}

/// Nanoseconds, shown as seconds.
struct Seconds(u64);

impl Serialize for Seconds {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(self.0 as f64 / NANOS_PER_SECOND as f64)
    }
}

fn finite(value: f64) -> Option<f64> {
    value.is_finite().then_some(value)
}

/// What every document begins with.
#[derive(Serialize)]
struct Head {
    timestamp: Time,
    uptime_seconds: Seconds,
    source: &'static str,
}

impl Head {
    fn of(snapshot: &Snapshot) -> Self {
        Self {
            timestamp: Time(snapshot.at_unix_ns),
            uptime_seconds: Seconds(snapshot.at_unix_ns.saturating_sub(snapshot.started_unix_ns)),
            source: snapshot.source,
        }
    }
}

#[derive(Serialize)]
struct Summary<'a> {
    #[serde(flatten)]
    head: Head,
    pools: Vec<PoolSummary<'a>>,
}

#[derive(Serialize)]
struct Stats<'a> {
    #[serde(flatten)]
    head: Head,
    pools: Vec<PoolStats<'a>>,
    collector: Collector<'a>,
}

#[derive(Serialize)]
struct OnePool<'a> {
    #[serde(flatten)]
    head: Head,
    #[serde(flatten)]
    pool: PoolStats<'a>,
}

#[derive(Serialize)]
struct OneWorker<'a> {
    #[serde(flatten)]
    head: Head,
    pool: &'a str,
    #[serde(flatten)]
    worker: Worker<'a>,
}

#[derive(Serialize)]
struct Exits<'a> {
    #[serde(flatten)]
    head: Head,
    /// Since start, also those that are no longer kept and those of other pools.
    total: u64,
    kept: usize,
    exits: Vec<Exit<'a>>,
}

/// States that need more than the life cycle (`ready`, `active`, `idle` and with them `utilization`) are absent
/// until a source tells them.
#[derive(Serialize)]
struct PoolSummary<'a> {
    name: &'a str,
    origin: &'a str,
    size: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    configured_size: Option<u32>,
    creating: u32,
    running: u32,
    total: u32,
    defunct: u32,
    awaiting_final_cpu: u32,
    unused: u32,
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
    fn of(pool: &'a snapshot::Pool) -> Self {
        let total = pool.states.creating + pool.states.running;
        Self {
            name: &pool.name,
            origin: &pool.origin,
            size: pool.size,
            configured_size: pool.configured_size,
            creating: pool.states.creating,
            running: pool.states.running,
            total,
            defunct: pool.defunct,
            awaiting_final_cpu: pool.awaiting_final_cpu,
            unused: pool.size.saturating_sub(total),
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
struct PoolStats<'a> {
    #[serde(flatten)]
    summary: PoolSummary<'a>,
    totals: Totals,
    masters: Vec<Master<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    accept_queues: Vec<AcceptQueue<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    schedule: Option<Schedule>,
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
        let worker = |worker| Worker::of(&self.pool.name, worker, self.snapshot, &mut scratch);
        serializer.collect_seq(workers.iter().map(worker))
    }
}

impl<'a> PoolStats<'a> {
    fn of(pool: &'a snapshot::Pool, snapshot: &'a Snapshot) -> Self {
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
            accept_queues: pool.accept_queues.iter().map(AcceptQueue::of).collect(),
            schedule: pool.schedule.as_ref().map(Schedule::of_pool),
            runs: pool.runs.as_ref().map(Runs::of),
            unattributed_cpu_seconds: pool.unattributed_cpu_ns().map(|(by, ns)| (by, Seconds(ns))).collect(),
            quantiles: Quantiles {
                cpu_utilization: windows(&pool.cpu_utilization),
                worker_rss_bytes: windows(&pool.worker_rss_bytes),
                lifetime_seconds: windows(&pool.lifetime_seconds),
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

/// Since the collector started.
#[derive(Serialize)]
struct Totals {
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
    fn of(master: &'a snapshot::Master) -> Self {
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
    fn of(queue: &'a snapshot::AcceptQueue) -> Self {
        Self {
            address: &queue.address,
            family: queue.family.as_str(),
            sockets: queue.sockets,
            length: queue.length,
            limit: queue.limit,
        }
    }
}

#[derive(Serialize)]
struct Quantiles {
    cpu_utilization: BTreeMap<&'static str, Window>,
    worker_rss_bytes: BTreeMap<&'static str, Window>,
    lifetime_seconds: BTreeMap<&'static str, Window>,
    #[serde(flatten)]
    intervals: Option<Intervals>,
}

type Windows = BTreeMap<&'static str, Window>;

/// `None` if there was nothing to record: most reasons never occur.
fn recorded(distribution: &Distribution) -> Option<Windows> {
    (distribution.count > 0 || distribution.discarded > 0).then(|| windows(distribution))
}

/// Lengths of the intervals between which the threads' time is divided.
#[derive(Serialize)]
struct Intervals {
    #[serde(skip_serializing_if = "Option::is_none")]
    run_queue_wait_seconds: Option<Windows>,
    #[serde(skip_serializing_if = "Option::is_none")]
    on_cpu_seconds: Option<Windows>,
    /// By reason.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    off_cpu_seconds: BTreeMap<&'static str, Windows>,
}

impl Intervals {
    fn of(mut windows: impl FnMut(usize) -> Option<Windows>) -> Self {
        let reasons = TIME_KINDS.iter().enumerate().skip(DISK as usize);
        Self {
            run_queue_wait_seconds: windows(RUNNABLE as usize),
            on_cpu_seconds: windows(ON_CPU as usize),
            off_cpu_seconds: reasons.filter_map(|(kind, name)| Some((*name, windows(kind)?))).collect(),
        }
    }
}

/// Where the time of threads went while they were followed.
#[derive(Serialize)]
struct Schedule {
    /// By kind of time.
    seconds: BTreeMap<&'static str, Seconds>,
    /// Lifetimes of the threads, together: what `seconds` add up to but for the residual.
    followed_seconds: Seconds,
    residual_seconds: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    quantiles: Option<Intervals>,
}

impl Schedule {
    fn of(time_ns: [u64; KINDS], lived_ns: u64) -> Self {
        let residual_ns = lived_ns.wrapping_sub(time_ns.iter().sum()).cast_signed();
        Self {
            seconds: TIME_KINDS.into_iter().zip(time_ns.map(Seconds)).collect(),
            followed_seconds: Seconds(lived_ns),
            residual_seconds: residual_ns as f64 / NANOS_PER_SECOND as f64,
            quantiles: None,
        }
    }

    fn of_pool(schedule: &snapshot::Schedule) -> Self {
        Self::of(schedule.time_ns, schedule.lived_ns)
    }

    fn of_worker(schedule: &WorkerSchedule, at_ns: u64, scratch: &mut Scratch) -> Self {
        let quantiles = Intervals::of(|kind| Some(windows(&schedule.distribution(kind, at_ns, scratch)?)));
        Self { quantiles: Some(quantiles), ..Self::of(schedule.time_ns(at_ns), schedule.lived_ns(at_ns)) }
    }
}

/// Work as a process per job, since `since`.
#[derive(Serialize)]
struct Runs<'a> {
    since: Time,
    uptime_seconds: Seconds,
    uptime: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_run: Option<Time>,
    #[serde(flatten)]
    figures: RunFigures,
    last_hour: LastHour<'a>,
}

/// Of those that ended within `window_seconds`: an hour, or as long as there were no more than are kept.
#[derive(Serialize)]
struct LastHour<'a> {
    window_seconds: Seconds,
    #[serde(flatten)]
    figures: RunFigures,
    /// Oldest first.
    runs: EachRun<'a>,
}

/// Figures of some runs. The ratios leave out those of which nobody told how they ended.
#[derive(Serialize)]
struct RunFigures {
    total: u64,
    succeeded: u64,
    failed: u64,
    /// How those failed that did.
    failed_by: BTreeMap<&'static str, u64>,
    unknown: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    success_ratio: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error_ratio: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    runs_per_hour: Option<f64>,
    duration: RunDuration,
}

#[derive(Serialize)]
struct RunDuration {
    total_seconds: Seconds,
    #[serde(skip_serializing_if = "Option::is_none")]
    average_seconds: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    min_seconds: Option<Seconds>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_seconds: Option<Seconds>,
}

impl<'a> Runs<'a> {
    fn of(runs: &'a runs::View) -> Self {
        Self {
            since: Time(runs.since_unix_ns),
            uptime_seconds: Seconds(runs.counted_ns),
            uptime: runs::written(runs.counted_ns),
            last_run: runs.last_unix_ns.map(Time),
            figures: RunFigures::of(&runs.totals, runs.counted_ns),
            last_hour: LastHour {
                window_seconds: Seconds(runs.window_ns),
                figures: RunFigures::of(&runs.window.totals, runs.window_ns),
                runs: EachRun(&runs.window.runs),
            },
        }
    }
}

impl RunFigures {
    fn of(totals: &runs::Totals, span_ns: u64) -> Self {
        let (min_seconds, max_seconds) =
            totals.extremes_ns.map(|(min, max)| (Seconds(min), Seconds(max))).unzip();
        Self {
            total: totals.runs(),
            succeeded: totals.success,
            failed: totals.failed(),
            failed_by: [("error", totals.error), ("signal", totals.signal), ("oom", totals.oom)].into(),
            unknown: totals.unknown,
            success_ratio: totals.success_ratio(),
            error_ratio: totals.error_ratio(),
            runs_per_hour: totals.per_hour(span_ns),
            duration: RunDuration {
                total_seconds: Seconds(totals.duration_ns),
                average_seconds: totals.average_seconds(),
                min_seconds,
                max_seconds,
            },
        }
    }
}

/// Turned into wire types one by one while they are written, as workers are.
struct EachRun<'a>(&'a [runs::Run]);

impl Serialize for EachRun<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(|run| OneRun {
            timestamp: Time(run.ended_unix_ns),
            duration_seconds: Seconds(run.duration_ns),
            success: run.outcome.succeeded(),
        }))
    }
}

/// A run that is over: when it ended, how long it took, and whether it went well where that is known.
#[derive(Serialize)]
struct OneRun {
    timestamp: Time,
    duration_seconds: Seconds,
    #[serde(skip_serializing_if = "Option::is_none")]
    success: Option<bool>,
}

#[derive(Serialize)]
struct Window {
    count: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    p50: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    p90: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    p95: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    p99: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    p999: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    coverage: Option<f64>,
}

fn windows(distribution: &Distribution) -> BTreeMap<&'static str, Window> {
    let window = |w: &snapshot::WindowQuantiles| Window {
        count: w.count,
        p50: finite(w.p50),
        p90: finite(w.p90),
        p95: finite(w.p95),
        p99: finite(w.p99),
        p999: finite(w.p999),
        max: finite(w.max),
        coverage: finite(w.coverage),
    };
    distribution.windows.iter().map(|w| (w.window, window(w))).collect()
}

#[derive(Serialize)]
struct Cpu {
    user_seconds: Seconds,
    system_seconds: Seconds,
    #[serde(skip_serializing_if = "Option::is_none")]
    utilization: Option<f64>,
}

impl Cpu {
    fn of(cpu: CpuTime) -> Self {
        Self { user_seconds: Seconds(cpu.user_ns), system_seconds: Seconds(cpu.system_ns), utilization: None }
    }
}

#[derive(Serialize)]
struct Memory {
    rss_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    anonymous_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    file_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    shmem_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    swap_bytes: Option<u64>,
}

#[derive(Serialize)]
struct Faults {
    minor: u64,
    major: u64,
}

#[derive(Serialize)]
struct ContextSwitches {
    #[serde(skip_serializing_if = "Option::is_none")]
    voluntary: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    involuntary: Option<u64>,
}

#[derive(Serialize)]
struct Storage {
    #[serde(skip_serializing_if = "Option::is_none")]
    read_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    written_bytes: Option<u64>,
}

impl Storage {
    fn of(read_bytes: Option<u64>, written_bytes: Option<u64>) -> Option<Self> {
        (read_bytes.is_some() || written_bytes.is_some()).then_some(Self { read_bytes, written_bytes })
    }
}

/// `pool/slot.generation`: names a worker for ever, where pids come back.
struct Id<'a> {
    pool: &'a str,
    slot: u32,
    generation: u32,
}

impl Serialize for Id<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{}/{}.{}", self.pool, self.slot, self.generation))
    }
}

#[derive(Serialize)]
struct Worker<'a> {
    id: Id<'a>,
    slot: u32,
    generation: u32,
    pid: Pid,
    parent: Pid,
    comm: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    app: Option<&'a str>,
    state: &'static str,
    since: Time,
    started: Time,
    uptime_seconds: Seconds,
    #[serde(flatten)]
    reading: Option<Reading>,
    #[serde(skip_serializing_if = "Option::is_none")]
    schedule: Option<Schedule>,
}

#[derive(Serialize)]
struct Reading {
    cpu: Cpu,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory: Option<Memory>,
    threads: u32,
    faults: Faults,
    #[serde(skip_serializing_if = "Option::is_none")]
    context_switches: Option<ContextSwitches>,
    #[serde(skip_serializing_if = "Option::is_none")]
    run_delay_seconds: Option<Seconds>,
    #[serde(skip_serializing_if = "Option::is_none")]
    storage: Option<Storage>,
}

impl Reading {
    fn of(reading: &snapshot::Reading) -> Self {
        let (voluntary, involuntary) = (reading.voluntary_switches, reading.involuntary_switches);
        Self {
            cpu: Cpu { utilization: reading.cpu_utilization.and_then(finite), ..Cpu::of(reading.cpu) },
            memory: reading.rss.map(|rss| Memory {
                rss_bytes: rss.total_bytes,
                anonymous_bytes: rss.anonymous_bytes,
                file_bytes: rss.file_bytes,
                shmem_bytes: rss.shmem_bytes,
                swap_bytes: rss.swap_bytes,
            }),
            threads: reading.threads,
            faults: Faults { minor: reading.minor_faults, major: reading.major_faults },
            context_switches: (voluntary.is_some() || involuntary.is_some())
                .then_some(ContextSwitches { voluntary, involuntary }),
            run_delay_seconds: reading.run_delay_ns.map(Seconds),
            storage: Storage::of(reading.read_bytes, reading.written_bytes),
        }
    }
}

impl<'a> Worker<'a> {
    fn of(
        pool: &'a str,
        worker: &'a snapshot::Worker,
        snapshot: &'a Snapshot,
        scratch: &mut Scratch,
    ) -> Self {
        let at_ns = snapshot.schedules_at_ns;
        let record = worker.record.and_then(|record| usize::try_from(record).ok());
        let schedule = record.and_then(|record| snapshot.schedules.get(record)?.as_deref());
        Self {
            id: Id { pool, slot: worker.slot, generation: worker.generation },
            slot: worker.slot,
            generation: worker.generation,
            pid: worker.pid,
            parent: worker.parent,
            comm: &worker.comm,
            app: worker.app.as_deref(),
            state: worker.state.as_str(),
            since: Time(worker.since_unix_ns),
            started: Time(worker.started_unix_ns),
            uptime_seconds: Seconds(snapshot.at_unix_ns.saturating_sub(worker.started_unix_ns)),
            reading: worker.reading.as_ref().map(Reading::of),
            schedule: schedule.map(|s| Schedule::of_worker(s, at_ns, scratch)),
        }
    }
}

#[derive(Serialize)]
struct Exit<'a> {
    sequence: u64,
    id: Id<'a>,
    pool: &'a str,
    slot: u32,
    generation: u32,
    pid: Pid,
    comm: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    app: Option<&'a str>,
    reason: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    exit_code: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    signal: Option<Signal>,
    #[serde(skip_serializing_if = "Option::is_none")]
    core_dumped: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sender: Option<SignalSender>,
    #[serde(skip_serializing_if = "Option::is_none")]
    oom_killed: Option<bool>,
    started: Time,
    ended: Time,
    lifetime_seconds: Seconds,
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu: Option<Cpu>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu_final: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    peak_rss_bytes: Option<u64>,
    last_state: &'static str,
}

#[derive(Serialize)]
struct Signal {
    number: u8,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<Cow<'static, str>>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum SignalSender {
    Kernel { kernel: bool },
    Process { pid: Pid, comm: String },
}

impl<'a> Exit<'a> {
    fn of(death: &'a DeathCertificate) -> Self {
        let (exit_code, signal, core_dumped) = match death.status {
            ExitStatus::Code(code) => (Some(code), None, None),
            ExitStatus::Signal { signal, core_dumped } => {
                (None, Some(Signal { number: signal, name: signal_name(signal) }), Some(core_dumped))
            }
            ExitStatus::Unknown => (None, None, None),
        };
        Self {
            sequence: death.sequence,
            id: Id { pool: &death.pool, slot: death.slot, generation: death.generation },
            pool: &death.pool,
            slot: death.slot,
            generation: death.generation,
            pid: death.pid,
            comm: &death.comm,
            app: death.app.as_deref(),
            reason: Outcome::of(death.status, death.oom_killed).as_str(),
            exit_code,
            signal,
            core_dumped,
            sender: death.sender.map(|sender| match sender {
                Sender::Kernel => SignalSender::Kernel { kernel: true },
                Sender::Process { pid, comm } => {
                    SignalSender::Process { pid, comm: String::from_utf8_lossy(comm.as_bytes()).into_owned() }
                }
            }),
            oom_killed: death.oom_killed,
            started: Time(death.started_unix_ns),
            ended: Time(death.ended_unix_ns),
            lifetime_seconds: Seconds(death.lifetime_ns),
            cpu: death.cpu.map(Cpu::of),
            cpu_final: death.cpu.map(|_| death.cpu_final),
            peak_rss_bytes: death.peak_rss_bytes,
            last_state: death.last_state.as_str(),
        }
    }
}

/// Real-time signals are counted from 34, the first that libc leaves to programs.
fn signal_name(number: u8) -> Option<Cow<'static, str>> {
    match number {
        34 => Some("SIGRTMIN".into()),
        35..=64 => Some(format!("SIGRTMIN+{}", number - 34).into()),
        _ => nix::sys::signal::Signal::try_from(i32::from(number)).ok().map(|signal| signal.as_str().into()),
    }
}

/// About ourselves: what works, what was lost, what it costs.
#[derive(Serialize)]
struct Collector<'a> {
    version: &'static str,
    processes: u64,
    features: Vec<Feature<'a>>,
    events: Vec<Events>,
    losses: BTreeMap<&'static str, u64>,
    cost: Cost<'a>,
    config: Config,
}

#[derive(Serialize)]
struct Feature<'a> {
    name: &'static str,
    enabled: bool,
    #[serde(skip_serializing_if = "str::is_empty")]
    reason: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    remedy: &'a str,
}

#[derive(Serialize)]
struct Events {
    kind: &'static str,
    counted: u64,
    delivered: u64,
    lost: u64,
}

#[derive(Serialize)]
struct Cost<'a> {
    cpu: Cpu,
    passes: u64,
    pass_cpu_seconds: Seconds,
    event_cpu_seconds: Seconds,
    #[serde(skip_serializing_if = "Option::is_none")]
    rss_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    virtual_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kernel_map_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    open_fds: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_fds: Option<u64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    programs: Vec<Program<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    scheduler_probes: Option<Probes>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    maps: BTreeMap<&'static str, Fill>,
}

#[derive(Serialize)]
struct Probes {
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu_ratio: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu_budget_ratio: Option<f64>,
    /// What is recorded at most for now: `none`, `counters` or `histograms`.
    recording: &'static str,
}

#[derive(Serialize)]
struct Fill {
    entries: u64,
    capacity: u64,
}

#[derive(Serialize)]
struct Program<'a> {
    name: &'a str,
    runs: u64,
    run_seconds: Seconds,
}

#[derive(Serialize)]
struct Config {
    #[serde(skip_serializing_if = "Option::is_none")]
    loaded: Option<Time>,
    last_reload_successful: bool,
}

impl<'a> Collector<'a> {
    fn of(snapshot: &'a Snapshot) -> Self {
        let own = &snapshot.own;
        let mut losses = BTreeMap::new();
        for (reason, count) in &own.losses {
            *losses.entry(*reason).or_default() += count;
        }
        Self {
            version: env!("CARGO_PKG_VERSION"),
            processes: own.processes,
            features: snapshot
                .features
                .iter()
                .map(|f| Feature { name: f.name, enabled: f.enabled, reason: &f.reason, remedy: &f.remedy })
                .collect(),
            events: own
                .events
                .iter()
                .map(|e| Events { kind: e.kind, counted: e.counted, delivered: e.delivered, lost: e.lost })
                .collect(),
            losses,
            cost: Cost {
                cpu: Cpu::of(own.cpu),
                passes: own.passes,
                pass_cpu_seconds: Seconds(own.pass_cpu_ns),
                event_cpu_seconds: Seconds(own.event_cpu_ns),
                rss_bytes: own.rss_bytes,
                virtual_bytes: own.virtual_bytes,
                kernel_map_bytes: own.map_bytes,
                open_fds: own.open_fds,
                max_fds: own.max_fds,
                programs: own
                    .programs
                    .iter()
                    .map(|p| Program { name: p.name, runs: p.runs, run_seconds: Seconds(p.run_time_ns) })
                    .collect(),
                scheduler_probes: own.scheduler.map(|scheduler| Probes {
                    cpu_ratio: scheduler.share.and_then(finite),
                    cpu_budget_ratio: scheduler.budget,
                    recording: scheduler.ceiling.as_str(),
                }),
                maps: own
                    .maps
                    .iter()
                    .map(|map| (map.name, Fill { entries: map.entries, capacity: map.capacity }))
                    .collect(),
            },
            config: Config {
                loaded: own.config_loaded_unix_ns.map(Time),
                last_reload_successful: own.config_last_reload_successful,
            },
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::render::fixture::{self, HOSTILE};

    fn parsed(bytes: &[u8]) -> Value {
        serde_json::from_slice(bytes).unwrap()
    }

    fn stats_of(snapshot: &Snapshot) -> Value {
        let mut out = Vec::new();
        stats(snapshot, &mut out);
        parsed(&out)
    }

    #[test]
    fn golden_files() {
        let snapshot = fixture::snapshot();
        for (name, value) in [
            ("summary.json", parsed(&summary(&snapshot))),
            ("stats.json", stats_of(&snapshot)),
            ("exits.json", parsed(&exits(&snapshot, None, 100).unwrap())),
        ] {
            let mut value = value;
            if let Some(collector) = value.get_mut("collector") {
                collector["version"] = "VERSION".into();
            }
            fixture::check_golden(name, &(serde_json::to_string_pretty(&value).unwrap() + "\n"));
        }
    }

    #[test]
    fn a_pool_adds_up() {
        let snapshot = fixture::snapshot();
        let all = parsed(&summary(&snapshot));
        for pool in all["pools"].as_array().unwrap() {
            let field = |name: &str| pool[name].as_u64().unwrap();
            assert_eq!(field("total"), field("creating") + field("running"), "{pool}");
            assert_eq!(field("unused"), field("size").saturating_sub(field("total")), "{pool}");
        }
    }

    #[test]
    fn unknown_is_absent() {
        let all = stats_of(&fixture::snapshot());
        let withheld = &all["pools"][3];
        assert_eq!(withheld["name"], "withheld");
        for absent in ["configured_size", "rss_bytes", "cpu_utilization"] {
            assert!(withheld.get(absent).is_none(), "{absent}");
        }
        let worker = &withheld["workers"][0];
        for absent in ["app", "memory", "context_switches", "run_delay_seconds", "storage"] {
            assert!(worker.get(absent).is_none(), "{absent}");
        }
        assert!(worker["cpu"].get("utilization").is_none());
        let unread = &all["pools"][2]["workers"][2];
        assert_eq!(unread["state"], "creating");
        assert!(unread.get("cpu").is_none(), "{unread}");
        assert_eq!(all["pools"][1]["cpu_utilization"], 0.0, "no worker uses no CPU");
        assert!(!all.to_string().contains("null"), "{all}");
    }

    #[test]
    fn numbers_that_json_cannot_write_are_absent() {
        let mut snapshot = fixture::snapshot();
        for pool in &mut snapshot.pools {
            let mut workers: Vec<_> = pool.workers.iter().cloned().collect();
            for reading in workers.iter_mut().filter_map(|worker| worker.reading.as_mut()) {
                reading.cpu_utilization = Some(f64::NAN);
            }
            pool.workers = workers.into();
            for window in &mut pool.cpu_utilization.windows {
                window.max = f64::INFINITY;
            }
        }
        assert!(!stats_of(&snapshot).to_string().contains("null"));
        assert!(!parsed(&summary(&snapshot)).to_string().contains("null"));
    }

    #[test]
    fn hostile_text_comes_back() {
        let snapshot = fixture::snapshot();
        let one = parsed(&pool(&snapshot, HOSTILE).unwrap());
        assert_eq!(one["name"], HOSTILE);
        assert_eq!(one["workers"][0]["comm"], HOSTILE);
        assert_eq!(one["workers"][0]["id"], format!("{HOSTILE}/0.17"));
        assert_eq!(parsed(&worker(&snapshot, HOSTILE, 0).unwrap())["pool"], HOSTILE);
        assert!(pool(&snapshot, "nobody").is_none());
        assert!(worker(&snapshot, "web", 9).is_none());
    }

    #[test]
    fn exits_can_be_narrowed() {
        let snapshot = fixture::snapshot();
        let sequences = |pool, limit| -> Vec<u64> {
            let all = parsed(&exits(&snapshot, pool, limit).unwrap());
            assert_eq!(all["total"], 18);
            assert_eq!(all["kept"], 4);
            all["exits"].as_array().unwrap().iter().map(|e| e["sequence"].as_u64().unwrap()).collect()
        };
        assert_eq!(sequences(None, 100), [18, 17, 16, 15]);
        assert_eq!(sequences(None, 2), [18, 17]);
        assert_eq!(sequences(Some("web"), 2), [17, 16]);
        assert!(sequences(Some("jobs"), 2).is_empty(), "nobody has died there");
        assert!(exits(&snapshot, Some("nobody"), 2).is_none());
        let dropped = Snapshot { pools: Vec::new(), ..snapshot };
        assert!(exits(&dropped, Some("web"), 2).is_some(), "certificates outlive their pool");
        assert!(exits(&dropped, Some("jobs"), 2).is_none());
    }

    #[test]
    fn signals_have_names() {
        for (number, name) in [
            (9, Some("SIGKILL")),
            (11, Some("SIGSEGV")),
            (33, None),
            (34, Some("SIGRTMIN")),
            (64, Some("SIGRTMIN+30")),
            (65, None),
        ] {
            assert_eq!(signal_name(number).as_deref(), name, "{number}");
        }
    }
}
