//! One worker, and what it uses.

use serde::{Serialize, Serializer};

use super::flag::Flagged;
use super::requests::Requests;
use super::times::Schedule;
use super::work::Work;
use super::{Seconds, Time, finite};
use crate::histogram::Scratch;
use crate::snapshot::{self, Snapshot};
use crate::units::{CpuTime, Pid};

#[derive(Serialize)]
pub(super) struct Cpu {
    user_seconds: Seconds,
    system_seconds: Seconds,
    #[serde(skip_serializing_if = "Option::is_none")]
    utilization: Option<f64>,
}

impl Cpu {
    pub(super) fn of(cpu: CpuTime) -> Self {
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
pub(super) struct Storage {
    #[serde(skip_serializing_if = "Option::is_none")]
    read_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    written_bytes: Option<u64>,
}

impl Storage {
    pub(super) fn of(read_bytes: Option<u64>, written_bytes: Option<u64>) -> Option<Self> {
        (read_bytes.is_some() || written_bytes.is_some()).then_some(Self { read_bytes, written_bytes })
    }
}

/// `pool/slot.generation`: names a worker for ever, where pids come back.
pub(super) struct Id<'a> {
    pub(super) pool: &'a str,
    pub(super) slot: u32,
    pub(super) generation: u32,
}

impl Serialize for Id<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{}/{}.{}", self.pool, self.slot, self.generation))
    }
}

#[derive(Serialize)]
pub(super) struct Worker<'a> {
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
    #[serde(skip_serializing_if = "Option::is_none")]
    flag: Option<Flagged<'a>>,
    started: Time,
    uptime_seconds: Seconds,
    #[serde(flatten)]
    reading: Option<Reading>,
    #[serde(skip_serializing_if = "Option::is_none")]
    schedule: Option<Schedule>,
    #[serde(skip_serializing_if = "Option::is_none")]
    work: Option<Work>,
    #[serde(skip_serializing_if = "Option::is_none")]
    requests: Option<Requests>,
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
    pub(super) fn of(reading: &snapshot::Reading) -> Self {
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
    pub(super) fn of(
        pool: &'a snapshot::Pool,
        worker: &'a snapshot::Worker,
        snapshot: &'a Snapshot,
        scratch: &mut Scratch,
    ) -> Self {
        let at_ns = snapshot.schedules_at_ns;
        let schedule = snapshot.schedule_of(worker);
        let requests = pool.schedule.as_ref().and_then(|schedule| schedule.requests.as_ref());
        let followed = requests.is_some_and(|requests| requests.followed);
        Self {
            id: Id { pool: &pool.name, slot: worker.slot, generation: worker.generation },
            slot: worker.slot,
            generation: worker.generation,
            pid: worker.pid,
            parent: worker.parent,
            comm: &worker.comm,
            app: worker.app.as_deref(),
            state: worker.state.as_str(),
            since: Time(worker.since_unix_ns),
            flag: worker.flag.as_ref().map(Flagged::of),
            started: Time(worker.started_unix_ns),
            uptime_seconds: Seconds(snapshot.at_unix_ns.saturating_sub(worker.started_unix_ns)),
            reading: worker.reading.as_ref().map(Reading::of),
            schedule: schedule.map(|s| Schedule::of_worker(s, at_ns, scratch)),
            work: schedule.map(|s| Work::of_worker(s, at_ns, scratch)),
            requests: schedule.and_then(|s| Requests::of_worker(s, followed, at_ns, scratch)),
        }
    }
}
