//! The collector itself.

use std::collections::BTreeMap;

use serde::Serialize;

use super::worker::Cpu;
use super::{Seconds, Time, finite};
use crate::snapshot::Snapshot;

/// About ourselves: what works, what was lost, what it costs.
#[derive(Serialize)]
pub(super) struct Collector<'a> {
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
    #[serde(skip_serializing_if = "Option::is_none")]
    profiles: Option<Profiles>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    maps: BTreeMap<&'static str, Fill>,
}

/// Those of workers.
#[derive(Serialize)]
struct Profiles {
    captures: u64,
    lost_samples: u64,
    cpu_seconds: Seconds,
    #[serde(skip_serializing_if = "Option::is_none")]
    kept_bytes: Option<u64>,
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
    pub(super) fn of(snapshot: &'a Snapshot) -> Self {
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
                profiles: own.profiling.map(|profiling| Profiles {
                    captures: profiling.captures,
                    lost_samples: profiling.lost,
                    cpu_seconds: Seconds(profiling.cpu_ns),
                    kept_bytes: profiling.kept_bytes,
                }),
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
