//! What workers were asked.

use std::collections::BTreeMap;

use collector_ebpf::schedule::REQUEST;
use serde::Serialize;

use super::finite;
use super::times::{Windows, recorded, windows};
use crate::histogram::Scratch;
use crate::input::REQUEST_OUTCOMES;
use crate::snapshot::{self, Snapshot};
use crate::worker::requests::{self, imbalance};
use crate::worker::schedule::WorkerSchedule;

/// Since requests are watched for the pool, or the worker.
#[derive(Serialize)]
pub(super) struct Requests {
    /// That have ended.
    total: u64,
    by_outcome: BTreeMap<&'static str, u64>,
    in_flight: u32,
    /// Over all sockets.
    receive_bytes: u64,
    transmit_bytes: u64,
    /// Of a pool: the most that one living worker has answered over an equal share.
    #[serde(skip_serializing_if = "Option::is_none")]
    imbalance: Option<f64>,
    /// Of a worker, by outcome; a pool's are among its quantiles.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    duration_seconds: BTreeMap<&'static str, Windows>,
}

impl Requests {
    fn of(requests: &requests::Requests) -> Self {
        Self {
            total: requests.count(),
            by_outcome: REQUEST_OUTCOMES.into_iter().zip(requests.ended).collect(),
            in_flight: requests.in_flight,
            receive_bytes: requests.received_bytes,
            transmit_bytes: requests.sent_bytes,
            imbalance: None,
            duration_seconds: BTreeMap::new(),
        }
    }

    pub(super) fn of_pool(pool: &snapshot::Pool, snapshot: &Snapshot) -> Option<Self> {
        let requests = pool.schedule.as_ref()?.requests.as_ref()?;
        let counts = pool.workers.iter().filter_map(|worker| Some(snapshot.requests_of(worker)?.count()));
        Some(Self { imbalance: imbalance(counts).and_then(finite), ..Self::of(&requests.total) })
    }

    pub(super) fn of_worker(schedule: &WorkerSchedule, at_ns: u64, scratch: &mut Scratch) -> Option<Self> {
        let mut of_outcome = |outcome: usize| {
            schedule.distribution(REQUEST as usize + outcome, at_ns, scratch).map(|d| windows(&d))
        };
        let outcomes = REQUEST_OUTCOMES.into_iter().enumerate();
        let durations = outcomes.filter_map(|(outcome, name)| Some((name, of_outcome(outcome)?)));
        let duration_seconds = durations.collect();
        Some(Self { duration_seconds, ..Self::of(schedule.requests()?) })
    }
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
