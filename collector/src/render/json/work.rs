//! What workers did: how long they were in which state, and how long each span of work was.

use std::collections::BTreeMap;

use collector_ebpf::schedule::SPAN;
use serde::Serialize;

use super::times::{Windows, windows};
use super::{Seconds, finite};
use crate::histogram::Scratch;
use crate::snapshot;
use crate::worker::schedule::WorkerSchedule;
use crate::worker::state::TIMED;

/// Since the scheduler is watched for the pool, or the worker.
#[derive(Serialize)]
pub(super) struct Work {
    /// By state.
    state_seconds: BTreeMap<&'static str, Seconds>,
    /// Spans that have ended.
    spans: u64,
    /// Of a pool: time that workers were active over what its size allowed, by window.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    utilization: BTreeMap<&'static str, f64>,
    /// Of a worker; a pool's are among its quantiles.
    #[serde(skip_serializing_if = "Option::is_none")]
    span_seconds: Option<Windows>,
}

impl Work {
    pub(super) fn of_pool(work: &snapshot::Work) -> Self {
        let shares = work.utilization.iter().filter_map(|(window, share)| Some((*window, finite(*share)?)));
        Self {
            state_seconds: by_state(work.state_ns),
            spans: work.spans,
            utilization: shares.collect(),
            span_seconds: None,
        }
    }

    pub(super) fn of_worker(schedule: &WorkerSchedule, at_ns: u64, scratch: &mut Scratch) -> Self {
        Self {
            state_seconds: by_state(schedule.state_ns(at_ns)),
            spans: schedule.spans(),
            utilization: BTreeMap::new(),
            span_seconds: schedule.distribution(SPAN as usize, at_ns, scratch).map(|d| windows(&d)),
        }
    }
}

fn by_state(state_ns: [u64; TIMED.len()]) -> BTreeMap<&'static str, Seconds> {
    TIMED.iter().map(|state| state.as_str()).zip(state_ns.map(Seconds)).collect()
}
