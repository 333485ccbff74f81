//! Runs of a pool whose work is a process per job.

use std::collections::BTreeMap;

use serde::{Serialize, Serializer};

use super::{Seconds, Time};
use crate::worker::runs;

/// Work as a process per job, since `since`.
#[derive(Serialize)]
pub(super) struct Runs<'a> {
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
    pub(super) fn of(runs: &'a runs::View) -> Self {
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
    pub(super) fn of(totals: &runs::Totals, span_ns: u64) -> Self {
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
