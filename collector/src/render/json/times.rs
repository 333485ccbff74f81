//! Where time went, and quantiles by window.

use std::collections::BTreeMap;

use collector_ebpf::schedule::{DISK, KINDS, ON_CPU, RUNNABLE};
use serde::Serialize;

use super::{Seconds, finite};
use crate::histogram::Scratch;
use crate::input::TIME_KINDS;
use crate::snapshot::{self, Distribution};
use crate::units::NANOS_PER_SECOND;
use crate::worker::schedule::WorkerSchedule;

#[derive(Serialize)]
pub(super) struct Quantiles {
    pub(super) cpu_utilization: BTreeMap<&'static str, Window>,
    pub(super) worker_rss_bytes: BTreeMap<&'static str, Window>,
    pub(super) lifetime_seconds: BTreeMap<&'static str, Window>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) span_seconds: Option<Windows>,
    /// By outcome.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) request_duration_seconds: Option<BTreeMap<&'static str, Windows>>,
    /// By kind of time, of requests that had their thread to themselves.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) request_time_seconds: Option<BTreeMap<&'static str, Windows>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) spawn_to_ready_seconds: Option<Windows>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) spawn_to_first_request_seconds: Option<Windows>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) accept_wait_seconds: Option<Windows>,
    #[serde(flatten)]
    pub(super) intervals: Option<Intervals>,
}

pub(super) type Windows = BTreeMap<&'static str, Window>;

/// `None` if there was nothing to record: most reasons never occur.
pub(super) fn recorded(distribution: &Distribution) -> Option<Windows> {
    (distribution.count > 0 || distribution.discarded > 0).then(|| windows(distribution))
}

/// Lengths of the intervals between which the threads' time is divided.
#[derive(Serialize)]
pub(super) struct Intervals {
    #[serde(skip_serializing_if = "Option::is_none")]
    run_queue_wait_seconds: Option<Windows>,
    #[serde(skip_serializing_if = "Option::is_none")]
    on_cpu_seconds: Option<Windows>,
    /// By reason.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    off_cpu_seconds: BTreeMap<&'static str, Windows>,
}

impl Intervals {
    pub(super) fn of(mut windows: impl FnMut(usize) -> Option<Windows>) -> Self {
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
pub(super) struct Schedule {
    /// By kind of time.
    seconds: BTreeMap<&'static str, Seconds>,
    /// Lifetimes of the threads, together: what `seconds` add up to but for the residual.
    followed_seconds: Seconds,
    residual_seconds: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    quantiles: Option<Intervals>,
}

impl Schedule {
    pub(super) fn of(time_ns: [u64; KINDS], lived_ns: u64) -> Self {
        let residual_ns = lived_ns.wrapping_sub(time_ns.iter().sum()).cast_signed();
        Self {
            seconds: TIME_KINDS.into_iter().zip(time_ns.map(Seconds)).collect(),
            followed_seconds: Seconds(lived_ns),
            residual_seconds: residual_ns as f64 / NANOS_PER_SECOND as f64,
            quantiles: None,
        }
    }

    pub(super) fn of_pool(schedule: &snapshot::Schedule) -> Self {
        Self::of(schedule.time_ns, schedule.lived_ns)
    }

    pub(super) fn of_worker(schedule: &WorkerSchedule, at_ns: u64, scratch: &mut Scratch) -> Self {
        let quantiles = Intervals::of(|kind| Some(windows(&schedule.distribution(kind, at_ns, scratch)?)));
        Self { quantiles: Some(quantiles), ..Self::of(schedule.time_ns(at_ns), schedule.lived_ns(at_ns)) }
    }
}

#[derive(Serialize)]
pub(super) struct Window {
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

pub(super) fn windows(distribution: &Distribution) -> BTreeMap<&'static str, Window> {
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
