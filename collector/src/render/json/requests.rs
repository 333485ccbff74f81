//! What workers were asked.

use std::collections::BTreeMap;

use collector_ebpf::schedule::{KINDS, REQUEST};
use serde::Serialize;

use super::times::{Windows, recorded, windows};
use super::{Seconds, Time, finite};
use crate::histogram::Scratch;
use crate::input::{REQUEST_OUTCOMES, SlowRequest, TIME_KINDS};
use crate::render::slow::{profile_of, span_of};
use crate::snapshot::{self, Snapshot};
use crate::units::{NANOS_PER_SECOND, Pid};
use crate::worker::requests::{self, imbalance};
use crate::worker::schedule::WorkerSchedule;

/// Since requests are watched for the pool, or the worker.
#[derive(Serialize)]
pub(super) struct Requests {
    /// That have ended.
    total: u64,
    by_outcome: BTreeMap<&'static str, u64>,
    /// Unknown while requests are not followed.
    #[serde(skip_serializing_if = "Option::is_none")]
    in_flight: Option<u32>,
    /// Over all sockets.
    receive_bytes: u64,
    transmit_bytes: u64,
    /// Of a pool: the most that one living worker has answered over an equal share.
    #[serde(skip_serializing_if = "Option::is_none")]
    imbalance: Option<f64>,
    /// Of a pool.
    #[serde(skip_serializing_if = "Option::is_none")]
    waterfall: Option<Waterfall>,
    /// Of a worker, by outcome; a pool's are among its quantiles.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    duration_seconds: BTreeMap<&'static str, Windows>,
}

impl Requests {
    fn of(requests: &requests::Requests, followed: bool) -> Self {
        Self {
            total: requests.count(),
            by_outcome: REQUEST_OUTCOMES.into_iter().zip(requests.ended).collect(),
            in_flight: followed.then_some(requests.in_flight),
            receive_bytes: requests.received_bytes,
            transmit_bytes: requests.sent_bytes,
            imbalance: None,
            waterfall: None,
            duration_seconds: BTreeMap::new(),
        }
    }

    pub(super) fn of_pool(pool: &snapshot::Pool, snapshot: &Snapshot) -> Option<Self> {
        let requests = pool.schedule.as_ref()?.requests.as_ref()?;
        let counts = pool.workers.iter().filter_map(|worker| Some(snapshot.requests_of(worker)?.count()));
        let waterfall = requests.waterfall.as_ref().map(Waterfall::of);
        Some(Self {
            imbalance: imbalance(counts).and_then(finite),
            waterfall,
            ..Self::of(&requests.total, requests.followed)
        })
    }

    /// `followed`: those of its pool are.
    pub(super) fn of_worker(
        schedule: &WorkerSchedule,
        followed: bool,
        at_ns: u64,
        scratch: &mut Scratch,
    ) -> Option<Self> {
        let mut of_outcome = |outcome: usize| {
            schedule.distribution(REQUEST as usize + outcome, at_ns, scratch).map(|d| windows(&d))
        };
        let outcomes = REQUEST_OUTCOMES.into_iter().enumerate();
        let durations = outcomes.filter_map(|(outcome, name)| Some((name, of_outcome(outcome)?)));
        let duration_seconds = durations.collect();
        Some(Self { duration_seconds, ..Self::of(schedule.requests()?, followed) })
    }
}

/// Where the time of requests went that had their thread to themselves.
#[derive(Serialize)]
struct Waterfall {
    requests: u64,
    /// Of the requests that have ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    coverage: Option<f64>,
    duration_seconds: Seconds,
    /// By kind of time.
    seconds: BTreeMap<&'static str, Seconds>,
    /// By kind of time, of one request.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    mean_seconds: BTreeMap<&'static str, f64>,
    /// What `seconds` lack to `duration_seconds`.
    residual_seconds: f64,
}

impl Waterfall {
    fn of(waterfall: &snapshot::Waterfall) -> Self {
        let residual_ns = residual_ns(waterfall.duration_ns, &waterfall.time_ns);
        let mean = |ns: u64| finite(ns as f64 / NANOS_PER_SECOND as f64 / waterfall.requests as f64);
        let kinds = || TIME_KINDS.into_iter().zip(waterfall.time_ns);
        Self {
            requests: waterfall.requests,
            coverage: finite(waterfall.requests as f64 / waterfall.of_requests as f64)
                .map(|share| share.min(1.0)),
            duration_seconds: Seconds(waterfall.duration_ns),
            seconds: kinds().map(|(kind, ns)| (kind, Seconds(ns))).collect(),
            mean_seconds: kinds().filter_map(|(kind, ns)| Some((kind, mean(ns)?))).collect(),
            residual_seconds: residual_ns as f64 / NANOS_PER_SECOND as f64,
        }
    }
}

fn residual_ns(duration_ns: u64, time_ns: &[u64; KINDS]) -> i64 {
    duration_ns.wrapping_sub(time_ns.iter().fold(0, |sum: u64, ns| sum.wrapping_add(*ns))).cast_signed()
}

/// One of the slowest.
#[derive(Serialize)]
struct Slow {
    /// Its worker; who has left and has no certificate any more is known by pid alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    slot: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    generation: Option<u32>,
    pid: Pid,
    tid: Pid,
    started: Time,
    duration_seconds: Seconds,
    #[serde(skip_serializing_if = "Option::is_none")]
    outcome: Option<&'static str>,
    /// By kind of time; those that it was in for no time are left out.
    seconds: BTreeMap<&'static str, Seconds>,
    residual_seconds: f64,
    /// Where to find what its thread did meanwhile.
    #[serde(skip_serializing_if = "Option::is_none")]
    profile: Option<String>,
}

/// The slowest requests of a pool by window, the slowest first; `None` where that is not measured.
#[derive(Serialize)]
#[serde(transparent)]
pub(super) struct SlowRequests(BTreeMap<&'static str, Vec<Slow>>);

impl SlowRequests {
    pub(super) fn of(pool: &snapshot::Pool, snapshot: &Snapshot) -> Option<Self> {
        let waterfall = pool.schedule.as_ref()?.requests.as_ref()?.waterfall.as_ref()?;
        let windows = waterfall.slowest.iter();
        let slow = |request: &SlowRequest| Slow::of(request, pool, snapshot);
        Some(Self(windows.map(|(window, all)| (*window, all.iter().map(slow).collect())).collect()))
    }
}

impl Slow {
    fn of(request: &SlowRequest, pool: &snapshot::Pool, snapshot: &Snapshot) -> Self {
        let (began_unix_ns, _) = span_of(request, snapshot);
        // A pid may have come back since.
        let lives = pool.workers.iter().find(|w| w.pid == request.pid && w.started_unix_ns <= began_unix_ns);
        let died = || {
            snapshot.exits.iter().find(|exit| {
                exit.pid == request.pid
                    && *exit.pool == *pool.name
                    && (exit.started_unix_ns..=exit.ended_unix_ns).contains(&began_unix_ns)
            })
        };
        let worker = lives
            .map(|worker| (worker.slot, worker.generation))
            .or_else(|| died().map(|exit| (exit.slot, exit.generation)));
        let kinds = TIME_KINDS.into_iter().zip(request.time_ns);
        Self {
            slot: worker.map(|(slot, _)| slot),
            generation: worker.map(|(_, generation)| generation),
            pid: request.pid,
            tid: request.tid,
            started: Time(began_unix_ns),
            duration_seconds: Seconds(request.duration_ns),
            outcome: REQUEST_OUTCOMES.get(request.outcome as usize).copied(),
            seconds: kinds.filter(|(_, ns)| *ns > 0).map(|(kind, ns)| (kind, Seconds(ns))).collect(),
            residual_seconds: residual_ns(request.duration_ns, &request.time_ns) as f64
                / NANOS_PER_SECOND as f64,
            profile: profile_of(request, snapshot),
        }
    }
}

/// Where the time of a pool's requests went, by kind; kinds that none was ever in are left out.
pub(super) fn times(schedule: &snapshot::Schedule) -> Option<BTreeMap<&'static str, Windows>> {
    let waterfall = schedule.requests.as_ref()?.waterfall.as_ref()?;
    let kinds = TIME_KINDS.into_iter().zip(&waterfall.seconds);
    let known = kinds.filter(|(_, seconds)| seconds.sum > 0.0);
    Some(known.map(|(kind, seconds)| (kind, windows(seconds))).collect())
}

/// How long a pool's took, by outcome; those that never occurred are left out.
pub(super) fn durations(schedule: &snapshot::Schedule) -> Option<BTreeMap<&'static str, Windows>> {
    let seconds = schedule.requests.as_ref()?.seconds.as_ref()?;
    Some(
        REQUEST_OUTCOMES
            .into_iter()
            .zip(seconds)
            .filter_map(|(name, d)| Some((name, recorded(d)?)))
            .collect(),
    )
}
